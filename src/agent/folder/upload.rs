//! Bringing larger contents to the server before the change that needs them.
//!
//! A file is read again by its extents, each checked against its hash, so that what was hashed is
//! what is sent, whoever writes to the file meanwhile. Only chunks that the drive lacks travel, and
//! those of an edited file as deltas to what they replace: the bytes that were there before the edit
//! are gone here, but the server has them, and tells their block sums.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use tokio::sync::{Mutex, Semaphore, mpsc, oneshot};
use tokio::task::JoinSet;

use super::announce::Announcer;
use super::{Context, DELTA_FROM, FRUITLESS_MAX, Input, Session};
use crate::agent::disk::OpenFile;
use crate::content::splice::NewChunk;
use crate::content::{BlockSums, ChunkDelta, Chunker, delta, pack, splice};
use crate::engine::folder::Fault;
use crate::engine::seam::{Expected, Spot, Uploaded};
use crate::model::{Checked, ChunkData, ChunkId, Content, ContentList, Extent, ListId, NodeId};
use crate::protocol::CallError;
use crate::protocol::limits::{
    BASE_CHUNKS_MAX, BASES_MAX, BATCH_LEN_MAX, IDS_MAX, LIST_PART_LEN_MAX,
};
use crate::protocol::message::{
    Failure, FailureCode, FindMissing, GetSums, HasList, PutChunks, PutDeltas, PutList, PutSplice,
};

/// Uploads that wait: more than the engine has under way.
pub(super) const JOBS_MAX: usize = 64;

/// Files uploaded at once.
const FILES_MAX: usize = 8;

/// Batches of chunks read, packed or under way at once, of all files together; each at most 2 MiB. The
/// server answers a group of them once it is durable: enough that one group travels while another is
/// written.
const BATCHES_MAX: usize = 12;

/// An upload of the engine's.
#[derive(Debug)]
pub(in crate::agent) struct Job {
    pub node: NodeId,
    pub at: Spot,
    pub expected: Expected,
    /// What the server has of an older version.
    pub base: Option<Content>,
}

/// An older version that the server has.
enum Old {
    List(ListId, ContentList),
    Chunk(Extent),
    Unknown,
}

impl Old {
    fn extents(&self) -> &[Extent] {
        match self {
            Self::List(_, list) => list.extents(),
            Self::Chunk(extent) => std::slice::from_ref(extent),
            Self::Unknown => &[],
        }
    }
}

/// Why an upload ended early.
enum Stop {
    Uploaded(Uploaded),
    Call(CallError),
}

/// The puts of one file that are under way.
#[derive(Default)]
struct Puts {
    running: JoinSet<Result<(), Stop>>,
    /// Ends once the last of them has sent what it reads, or will not.
    last_sent: Option<oneshot::Receiver<()>>,
}

impl Puts {
    /// Takes in what became of those that are over.
    fn look(&mut self) -> Result<(), Stop> {
        while let Some(put) = self.running.try_join_next() {
            finished(put)?;
        }
        Ok(())
    }

    /// Waits for all.
    async fn all(mut self) -> Result<(), Stop> {
        while let Some(put) = self.running.join_next().await {
            finished(put)?;
        }
        Ok(())
    }
}

impl From<CallError> for Stop {
    fn from(error: CallError) -> Self {
        Self::Call(error)
    }
}

impl From<Fault> for Stop {
    fn from(fault: Fault) -> Self {
        Self::Uploaded(match fault {
            Fault::NotFound | Fault::Changed | Fault::Gone(_) => Uploaded::Changed,
            fault => Uploaded::Later { reason: fault.to_string() },
        })
    }
}

/// Serves the uploads of a session until it ends.
pub(super) async fn run(cx: Arc<Context>, session: Session, mut jobs: mpsc::Receiver<Job>) {
    let batches = Arc::new(Semaphore::new(BATCHES_MAX));
    let list_turn = Arc::new(Mutex::new(()));
    let mut files = JoinSet::new();
    loop {
        tokio::select! {
            job = jobs.recv(), if files.len() < FILES_MAX => {
                let Some(job) = job else { return };
                let upload = Upload {
                    cx: Arc::clone(&cx),
                    session: session.clone(),
                    batches: Arc::clone(&batches),
                    list_turn: Arc::clone(&list_turn),
                    announcer: None,
                    fruitless: Arc::default(),
                };
                files.spawn(upload.run(job));
            }
            Some(_) = files.join_next() => {}
        }
    }
}

#[derive(Clone)]
struct Upload {
    cx: Arc<Context>,
    session: Session,
    batches: Arc<Semaphore>,
    /// Held while a list is put: the pieces of two would mix on the connection.
    list_turn: Arc<Mutex<()>>,
    /// How many requests for sums in a row led to no delta, for this file.
    fruitless: Arc<AtomicU32>,
    /// Tells the other devices how far it is, when they are to know.
    announcer: Option<Arc<Announcer>>,
}

impl Upload {
    async fn run(mut self, job: Job) {
        self.cx.up.begin(job.node);
        let uploaded = match self.upload(&job).await {
            Ok(()) => {
                self.cx.up.finish(job.node, job.expected.stat.size);
                Uploaded::Done
            }
            Err(Stop::Uploaded(uploaded)) => uploaded,
            Err(Stop::Call(CallError::Failed(failure)))
                if failure.code != FailureCode::Malformed =>
            {
                Uploaded::Later { reason: failure.message }
            }
            Err(Stop::Call(error)) => {
                // The engine hears of it by the connection's end.
                tracing::debug!(%error, "an upload broke off");
                self.session.bulk.close();
                return;
            }
        };
        if uploaded != Uploaded::Done {
            self.cx.up.forget(job.node);
        }
        let input = Input::Uploaded { session: self.session.number, node: job.node, uploaded };
        // The core ended, and the session with it.
        self.cx.inputs.send(input).await.ok();
    }

    async fn upload(&mut self, job: &Job) -> Result<(), Stop> {
        let changed = || Stop::Uploaded(Uploaded::Changed);
        let open = {
            let (cx, at, stat) = (Arc::clone(&self.cx), job.at.clone(), job.expected.stat);
            blocking(move || cx.folder.open_file(&at, &stat)).await??
        };
        let file = Arc::new(open);
        match job.expected.content {
            None => Err(changed()),
            Some(Content::Empty) => Ok(()),
            Some(Content::Chunk { id, len }) => {
                let old = self.old(job.base).await?;
                let extent = Extent::Chunk { id, len };
                let mut puts = Puts::default();
                let chunks = chunks(&[extent], old.extents());
                self.put_missing(job.node, &file, chunks, &mut puts).await?;
                puts.all().await
            }
            Some(Content::List { id, .. }) => {
                let drive = self.cx.drive;
                let has = self.session.bulk.call(&HasList { drive, list: id }).await?;
                if has.present {
                    return Ok(());
                }
                let list = self.list(id, job).await?.ok_or_else(changed)?;
                let node = job.node;
                self.announcer =
                    Announcer::new(&self.session, drive, node, id, &list).map(Arc::new);
                let old = self.old(job.base).await?;
                if let Old::List(old_id, old_list) = &old
                    && let Some(splice) = splice::splice(old_list, &list)
                {
                    // What the old list has, the drive has: nobody need ask.
                    let new = splice::new_chunks(old_list.extents(), list.extents());
                    self.put_in_turns(job, &file, new).await?;
                    let put = PutSplice { drive, list: id, base: *old_id, splice };
                    match self.session.bulk.call(&put).await {
                        // A server put back from a backup has less than was thought.
                        Err(CallError::Failed(failure)) if is_not_there(&failure) => {}
                        put => return put.map(drop).map_err(Stop::from),
                    }
                }
                self.put_in_turns(job, &file, chunks(list.extents(), old.extents())).await?;
                self.put_list(id, &list).await
            }
        }
    }

    /// Returns what is known of the older version that the server has.
    async fn old(&self, base: Option<Content>) -> Result<Old, Stop> {
        match base {
            Some(Content::Chunk { id, len }) => Ok(Old::Chunk(Extent::Chunk { id, len })),
            Some(Content::List { id, .. }) => {
                let cx = Arc::clone(&self.cx);
                let list = blocking(move || cx.lists.get(id)).await?;
                Ok(list.map_or(Old::Unknown, |list| Old::List(id, list)))
            }
            Some(Content::Empty) | None => Ok(Old::Unknown),
        }
    }

    /// Returns the list of the file, reading the file once more if it is not at hand.
    async fn list(&self, id: ListId, job: &Job) -> Result<Option<ContentList>, Stop> {
        let (cx, at, stat) = (Arc::clone(&self.cx), job.at.clone(), job.expected.stat);
        blocking(move || {
            cx.lists.get(id).or_else(|| {
                let read = cx.folder.hash(&at, &stat, &mut Chunker::new(), |_, _| {});
                let list = read.list.filter(|list| list.id() == id)?;
                cx.lists.put(id, &list);
                Some(list)
            })
        })
        .await
    }

    async fn put_in_turns(
        &self,
        job: &Job,
        file: &Arc<OpenFile>,
        chunks: Vec<NewChunk>,
    ) -> Result<(), Stop> {
        // What is not among them, the drive has.
        let len: u64 = chunks.iter().map(|chunk| u64::from(chunk.len)).sum();
        if let Some(announcer) = &self.announcer {
            announcer.begin(&chunks);
        }
        self.cx.up.begin(job.node);
        self.cx.up.add(job.node, job.expected.stat.size.saturating_sub(len));
        let mut chunks = chunks.into_iter().peekable();
        let mut puts = Puts::default();
        while chunks.peek().is_some() {
            let turn = chunks.by_ref().take(IDS_MAX).collect();
            self.put_missing(job.node, file, turn, &mut puts).await?;
        }
        puts.all().await
    }

    /// Begins to put those of the chunks, at most [`IDS_MAX`], that the drive lacks.
    async fn put_missing(
        &self,
        node: NodeId,
        file: &Arc<OpenFile>,
        chunks: Vec<NewChunk>,
        puts: &mut Puts,
    ) -> Result<(), Stop> {
        if chunks.is_empty() {
            return Ok(());
        }
        let find = FindMissing {
            drive: self.cx.drive,
            chunks: chunks.iter().map(|chunk| chunk.id).collect(),
        };
        let missing: HashSet<ChunkId> =
            self.session.bulk.call(&find).await?.chunks.into_iter().collect();
        if let Some(announcer) = &self.announcer {
            announcer.asked(&chunks, &missing);
        }
        let mut batch = Vec::new();
        let mut len = 0;
        for chunk in chunks {
            if !missing.contains(&chunk.id) {
                self.cx.up.add(node, chunk.len.into());
                continue;
            }
            len += chunk.len as usize;
            batch.push(chunk);
            if len >= BATCH_LEN_MAX {
                len = 0;
                self.put(node, file, std::mem::take(&mut batch), puts).await?;
            }
        }
        if !batch.is_empty() {
            self.put(node, file, batch, puts).await?;
        }
        Ok(())
    }

    /// Begins to put a batch, once there is room for one more; takes in what became of earlier ones. What
    /// several read at once is sent in the order of the file: on a slow line the other devices, which can only
    /// be told how far it is from its beginning, would else stay behind by all that is under way.
    async fn put(
        &self,
        node: NodeId,
        file: &Arc<OpenFile>,
        batch: Vec<NewChunk>,
        puts: &mut Puts,
    ) -> Result<(), Stop> {
        puts.look()?;
        let Ok(permit) = Arc::clone(&self.batches).acquire_owned().await else {
            return Ok(());
        };
        let (this, file) = (self.clone(), Arc::clone(file));
        let (sent, is_sent) = oneshot::channel();
        let before = puts.last_sent.replace(is_sent);
        puts.running.spawn(async move {
            let _permit = permit;
            let plain: u64 = batch.iter().map(|chunk| u64::from(chunk.len)).sum();
            let ids: Vec<ChunkId> = batch.iter().map(|chunk| chunk.id).collect();
            let (with_base, whole) = batch.into_iter().partition(|chunk| this.may_be_delta(chunk));
            let whole = this.put_deltas(&file, with_base, whole).await?;
            this.put_whole(&file, whole, before, sent).await?;
            this.cx.up.add(node, plain);
            if let Some(announcer) = &this.announcer {
                announcer.stored(ids);
            }
            Ok(())
        });
        Ok(())
    }

    /// Returns whether it is worth while to ask for the sums of what a chunk may be made of.
    fn may_be_delta(&self, chunk: &NewChunk) -> bool {
        !chunk.base.is_empty()
            && chunk.len >= DELTA_FROM
            && self.fruitless.load(Ordering::Relaxed) < FRUITLESS_MAX
    }

    /// Puts chunks as deltas where that pays; returns the others with those that are put whole.
    async fn put_deltas(
        &self,
        file: &Arc<OpenFile>,
        chunks: Vec<NewChunk>,
        mut whole: Vec<NewChunk>,
    ) -> Result<Vec<NewChunk>, Stop> {
        let drive = self.cx.drive;
        for group in groups(chunks) {
            let mut bases: Vec<Vec<ChunkId>> = Vec::new();
            for chunk in &group {
                if bases.last() != Some(&chunk.base) {
                    bases.push(chunk.base.clone());
                }
            }
            let sums = self.session.bulk.call(&GetSums { drive, bases: bases.clone() }).await?.sums;
            let sums: HashMap<Vec<ChunkId>, BlockSums> = bases.into_iter().zip(sums).collect();
            let (from, tried) = (Arc::clone(file), group.clone());
            let deltas = blocking(move || make_deltas(&from, &tried, &sums)).await??;
            if deltas.is_empty() {
                self.fruitless.fetch_add(1, Ordering::Relaxed);
                whole.extend(group);
                continue;
            }
            self.fruitless.store(0, Ordering::Relaxed);
            let made: HashSet<ChunkId> = deltas.iter().map(|delta| delta.id).collect();
            let len: usize = deltas.iter().map(|delta| delta.steps.data.len()).sum();
            self.cx.rates.up.pass(len as u64).await;
            let put = self.session.bulk.call(&PutDeltas { drive, deltas }).await;
            let put = match put {
                Err(CallError::Failed(failure)) if is_not_there(&failure) => false,
                put => put.map(|_| true)?,
            };
            whole.extend(group.into_iter().filter(|chunk| !put || !made.contains(&chunk.id)));
        }
        Ok(whole)
    }

    /// Puts chunks as they are, once those `before` are sent; `sent` is dropped when these are.
    async fn put_whole(
        &self,
        file: &Arc<OpenFile>,
        batch: Vec<NewChunk>,
        before: Option<oneshot::Receiver<()>>,
        sent: oneshot::Sender<()>,
    ) -> Result<(), Stop> {
        if batch.is_empty() {
            return Ok(());
        }
        let file = Arc::clone(file);
        let chunks = blocking(move || read(&file, &batch)).await??;
        let len: usize = chunks.iter().map(|chunk| chunk.data.len()).sum();
        if let Some(before) = before {
            // Its end is all that is waited for.
            before.await.ok();
        }
        self.cx.rates.up.pass(len as u64).await;
        let put = self.session.bulk.send(&PutChunks { drive: self.cx.drive, chunks }).await?;
        drop(sent);
        put.reply().await?;
        Ok(())
    }

    async fn put_list(&self, id: ListId, list: &ContentList) -> Result<(), Stop> {
        let encoded = list.encode();
        let _turn = self.list_turn.lock().await;
        let parts = encoded.chunks(LIST_PART_LEN_MAX);
        let count = parts.len();
        let mut replies = Vec::with_capacity(count);
        let mut offset = 0;
        for (index, part) in parts.enumerate() {
            let piece = PutList {
                drive: self.cx.drive,
                list: id,
                offset,
                last: index + 1 == count,
                data: part.to_vec(),
            };
            self.cx.rates.up.pass(part.len() as u64).await;
            offset += part.len() as u64;
            replies.push(self.session.bulk.send(&piece).await?);
            if replies.len() >= 4 {
                replies.remove(0).reply().await?;
            }
        }
        for reply in replies {
            reply.reply().await?;
        }
        Ok(())
    }
}

fn finished(put: Result<Result<(), Stop>, tokio::task::JoinError>) -> Result<(), Stop> {
    put.unwrap_or_else(|error| {
        Err(Stop::Uploaded(Uploaded::Later {
            reason: format!("An upload ended by a fault in the program: {error}"),
        }))
    })
}

fn is_not_there(failure: &Failure) -> bool {
    failure.code == FailureCode::NotFound
}

/// Returns the chunks of some extents, each once, with what of the old ones each may be made of.
fn chunks(extents: &[Extent], old: &[Extent]) -> Vec<NewChunk> {
    let mut bases: HashMap<ChunkId, Vec<ChunkId>> =
        splice::new_chunks(old, extents).into_iter().map(|new| (new.id, new.base)).collect();
    let mut found = HashSet::new();
    let mut offset = 0;
    let mut chunks = Vec::new();
    for extent in extents {
        if let Extent::Chunk { id, len } = *extent
            && found.insert(id)
        {
            let base = bases.remove(&id).unwrap_or_default();
            chunks.push(NewChunk { offset, id, len, base });
        }
        offset += extent.len();
    }
    chunks
}

/// Divides chunks so that each part's bases fit a request.
fn groups(chunks: Vec<NewChunk>) -> Vec<Vec<NewChunk>> {
    let mut groups: Vec<Vec<NewChunk>> = Vec::new();
    let mut base_chunks = 0;
    for chunk in chunks {
        base_chunks += chunk.base.len();
        match groups.last_mut() {
            Some(last) if last.len() < BASES_MAX && base_chunks <= BASE_CHUNKS_MAX => {
                last.push(chunk);
            }
            _ => {
                base_chunks = chunk.base.len();
                groups.push(vec![chunk]);
            }
        }
    }
    groups
}

/// Reads chunks, and makes the deltas that pay. Blocks on the disk.
fn make_deltas(
    file: &OpenFile,
    chunks: &[NewChunk],
    sums: &HashMap<Vec<ChunkId>, BlockSums>,
) -> Result<Vec<ChunkDelta>, Stop> {
    let mut deltas = Vec::new();
    for chunk in chunks {
        let plain = read_chunk(file, chunk)?;
        let sums = sums.get(&chunk.base);
        deltas.extend(sums.and_then(|sums| delta::make(chunk.id, &plain, &chunk.base, sums)));
    }
    Ok(deltas)
}

/// Reads and packs chunks. Blocks on the disk.
fn read(file: &OpenFile, batch: &[NewChunk]) -> Result<Vec<ChunkData>, Stop> {
    batch.iter().map(|chunk| Ok(pack(chunk.id, read_chunk(file, chunk)?))).collect()
}

fn read_chunk(file: &OpenFile, chunk: &NewChunk) -> Result<Vec<u8>, Stop> {
    let bytes = file.read_chunk_at(chunk.offset, &chunk.id, chunk.len)?.map(Checked::into_vec);
    bytes.ok_or(Stop::Uploaded(Uploaded::Changed))
}

async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> Result<T, Stop> {
    tokio::task::spawn_blocking(work).await.map_err(|error| {
        Stop::Uploaded(Uploaded::Later {
            reason: format!("An upload ended by a fault in the program: {error}"),
        })
    })
}
