//! Fetching contents that did not come inside a page.
//!
//! Chunks of small files are asked for together, whichever files they belong to. A larger file is
//! put together in staging: what an old version on this disk shares with it is copied from there,
//! what had arrived when an earlier fetch of it broke off is there already, the rest is asked for in order with several batches under way. Every chunk is checked against
//! its hash before it is written.

use std::collections::{HashMap, HashSet, VecDeque};
use std::sync::Arc;

use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};
use tokio::task::JoinSet;

use super::{Context, Fetched, Input, Session};
use crate::agent::disk::StagedFile;
use crate::content::unpack;
use crate::engine::apply::Payload;
use crate::engine::folder::Fault;
use crate::engine::seam::{Expected, Outcome, Spot};
use crate::model::{
    Attrs, ChunkData, ChunkId, Content, ContentList, Extent, ListId, NodeId, Timestamp,
};
use crate::protocol::limits::{
    BATCH_LEN_MAX, IDS_MAX, INLINE_LEN_MAX, LIST_LEN_MAX, LIST_PART_LEN_MAX,
};
use crate::protocol::message::{FailureCode, GetChunks, GetList};
use crate::protocol::{CallError, Pending};

/// Fetches that wait: more than the engine has disk operations under way.
pub(super) const JOBS_MAX: usize = 2048;

/// Larger files fetched at once.
const FILES_MAX: usize = 4;

/// Batches of chunks asked for at once for small files.
const SMALL_BATCHES_MAX: usize = 4;

/// Batches of chunks asked for at once, per larger file; each at most 2 MiB.
const FILE_BATCHES_MAX: usize = 4;

/// A content list with more extents than this takes megabytes, and one at its limit hundreds: such
/// files are fetched one at a time.
const LONG_LIST: usize = LIST_PART_LEN_MAX / 37;

/// A content to fetch for a write.
#[derive(Debug)]
pub(in crate::agent) struct Job {
    pub node: NodeId,
    pub content: Content,
    pub attrs: Attrs,
    pub mtime: Timestamp,
    /// The version it replaces, which may share chunks with it.
    pub old: Option<(Spot, Expected)>,
}

/// Why a fetch ended early.
enum Stop {
    Outcome(Outcome),
    Call(CallError),
}

impl From<CallError> for Stop {
    fn from(error: CallError) -> Self {
        Self::Call(error)
    }
}

impl From<Fault> for Stop {
    fn from(fault: Fault) -> Self {
        failed(fault.to_string())
    }
}

fn failed(reason: impl Into<String>) -> Stop {
    Stop::Outcome(Outcome::Failed { reason: reason.into() })
}

fn absent() -> Stop {
    failed("The server does not have this content any more; another device may have to send it")
}

fn fault_of_program(error: &tokio::task::JoinError) -> Stop {
    failed(format!("A fetch ended by a fault in the program: {error}"))
}

/// Serves the fetches of a session until it ends.
pub(super) async fn run(cx: Arc<Context>, session: Session, mut jobs: mpsc::Receiver<Job>) {
    let fetch = Fetch { cx, session, long_lists: Arc::new(Semaphore::new(1)) };
    let (small_sender, small) = mpsc::channel(JOBS_MAX);
    let small_files = fetch.small_files(small);
    let large_files = async {
        let mut files = JoinSet::new();
        // Larger files that wait; as bounded as the jobs.
        let mut waiting = VecDeque::new();
        loop {
            while files.len() < FILES_MAX
                && let Some(job) = waiting.pop_front()
            {
                files.spawn(fetch.clone().large_file(job));
            }
            tokio::select! {
                job = jobs.recv() => {
                    let Some(job) = job else { return };
                    match job.content {
                        Content::Chunk { len, .. } if len <= INLINE_LEN_MAX => {
                            if small_sender.send(job).await.is_err() {
                                return;
                            }
                        }
                        _ => waiting.push_back(job),
                    }
                }
                Some(_) = files.join_next() => {}
            }
        }
    };
    tokio::select! {
        () = small_files => {}
        () = large_files => {}
    }
}

#[derive(Clone)]
struct Fetch {
    cx: Arc<Context>,
    session: Session,
    /// Held by the file whose content list is long.
    long_lists: Arc<Semaphore>,
}

impl Fetch {
    async fn tell(&self, node: NodeId, fetched: Fetched) {
        let input = Input::Fetched { session: self.session.number, node, fetched };
        // The core ended, and the session with it.
        self.cx.inputs.send(input).await.ok();
    }

    /// Tells what stopped the fetches of these nodes; a broken connection tells it by its end.
    async fn tell_stop(&self, nodes: impl IntoIterator<Item = NodeId>, stop: Stop) {
        let outcome = match stop {
            Stop::Outcome(outcome) => outcome,
            Stop::Call(CallError::Failed(failure)) if failure.code != FailureCode::Malformed => {
                Outcome::NoContent { reason: failure.message }
            }
            Stop::Call(error) => {
                tracing::debug!(%error, "a fetch broke off");
                self.session.bulk.close();
                return;
            }
        };
        for node in nodes {
            self.tell(node, Fetched::Outcome(outcome.clone())).await;
        }
    }

    /// Gathers what waits into batches and has several of them under way.
    async fn small_files(&self, mut jobs: mpsc::Receiver<Job>) {
        let under_way = Arc::new(Semaphore::new(SMALL_BATCHES_MAX));
        let mut batches = JoinSet::new();
        while let Some(first) = jobs.recv().await {
            let Ok(permit) = Arc::clone(&under_way).acquire_owned().await else {
                return;
            };
            let mut len = first.content.len();
            let mut batch = vec![first];
            while len < BATCH_LEN_MAX as u64
                && batch.len() < IDS_MAX
                && let Ok(job) = jobs.try_recv()
            {
                len += job.content.len();
                batch.push(job);
            }
            while batches.try_join_next().is_some() {}
            let this = self.clone();
            batches.spawn(async move {
                let _permit = permit;
                this.small_batch(batch).await;
            });
        }
    }

    async fn small_batch(&self, batch: Vec<Job>) {
        let mut wanted: HashMap<ChunkId, Vec<NodeId>> = HashMap::new();
        let mut ids = Vec::with_capacity(batch.len());
        for job in batch {
            if let Content::Chunk { id, .. } = job.content {
                let nodes = wanted.entry(id).or_default();
                if nodes.is_empty() {
                    ids.push(id);
                }
                nodes.push(job.node);
            }
        }
        while !ids.is_empty() {
            let get = GetChunks { drive: self.cx.drive, chunks: ids.clone() };
            let reply = match self.session.bulk.call(&get).await {
                Ok(reply) => reply,
                Err(error) => {
                    let nodes: Vec<NodeId> = wanted.into_values().flatten().collect();
                    return self.tell_stop(nodes, error.into()).await;
                }
            };
            let packed: usize = reply.chunks.iter().map(|chunk| chunk.data.len()).sum();
            self.cx.rates.down.pass(packed as u64).await;
            let before = wanted.len();
            for id in reply.absent {
                let nodes = wanted.remove(&id).unwrap_or_default();
                self.tell_stop(nodes, absent()).await;
            }
            let opened = tokio::task::spawn_blocking(move || open_all(reply.chunks)).await;
            for (id, bytes) in opened.unwrap_or_default() {
                let nodes = wanted.remove(&id).unwrap_or_default();
                for node in nodes {
                    let fetched = match &bytes {
                        Ok(bytes) => Fetched::Payload(Payload::Bytes(bytes.clone())),
                        Err(reason) => {
                            Fetched::Outcome(Outcome::NoContent { reason: reason.clone() })
                        }
                    };
                    self.tell(node, fetched).await;
                }
            }
            if wanted.len() == before {
                // Nothing of what was asked for: asking again would go on for ever.
                let nodes: Vec<NodeId> = wanted.into_values().flatten().collect();
                return self.tell_stop(nodes, absent()).await;
            }
            ids.retain(|id| wanted.contains_key(id));
        }
    }

    async fn large_file(self, job: Job) {
        let node = job.node;
        match self.stage(job).await {
            Ok(payload) => self.tell(node, Fetched::Payload(payload)).await,
            Err(stop) => self.tell_stop([node], stop).await,
        }
    }

    async fn stage(&self, job: Job) -> Result<Payload, Stop> {
        let (list, turn) = match job.content {
            Content::List { id, .. } => {
                let (list, turn) = self.list(id).await?;
                (Some(list), turn)
            }
            Content::Empty | Content::Chunk { .. } => (None, None),
        };
        let (attrs, mtime, node, content) = (job.attrs, job.mtime, job.node, job.content);
        // The turn is held to the end.
        let is_long = turn.is_some();
        let cx = Arc::clone(&self.cx);
        let staged = tokio::task::spawn_blocking(move || begin(&cx, &job, list.as_ref()))
            .await
            .map_err(|error| fault_of_program(&error))??;
        let mut places: HashMap<ChunkId, Vec<usize>> = HashMap::new();
        let mut missing = VecDeque::new();
        for (index, (_, extent)) in staged.extents().enumerate() {
            if let Extent::Chunk { id, len } = extent
                && !staged.is_written(index)
            {
                let indexes = places.entry(id).or_default();
                if indexes.is_empty() {
                    missing.push_back((id, len));
                }
                indexes.push(index);
            }
        }
        let (chunks, arrived) = mpsc::channel(2);
        let cx = Arc::clone(&self.cx);
        // Whatever becomes of this task: the writer keeps what has arrived.
        let writing = tokio::task::spawn_blocking(move || {
            let staged = write(staged, &places, arrived)?;
            if staged.is_complete() {
                return Ok(Some(staged));
            }
            cx.partials.put(node, content, is_long, staged);
            Ok::<_, Stop>(None)
        });
        let got = self.get_all(missing, &chunks).await;
        drop(chunks);
        let staged = writing.await.map_err(|error| fault_of_program(&error))?;
        // A chunk that cannot be written ends the getting too, but the reason is with the writer.
        let staged = staged?;
        got?;
        let staged = staged.ok_or_else(absent)?;
        tokio::task::spawn_blocking(move || staged.finish(attrs, mtime))
            .await
            .map_err(|error| fault_of_program(&error))?
            .map_err(Stop::from)
    }

    /// Asks for chunks in order, with several batches under way, and hands them on.
    async fn get_all(
        &self,
        mut missing: VecDeque<(ChunkId, u32)>,
        chunks: &mpsc::Sender<Vec<ChunkData>>,
    ) -> Result<(), Stop> {
        type Batch = Vec<(ChunkId, u32)>;
        let mut under_way: VecDeque<(Batch, Pending<GetChunks>)> = VecDeque::new();
        loop {
            while under_way.len() < FILE_BATCHES_MAX && !missing.is_empty() {
                let mut batch = Vec::new();
                let mut len = 0;
                while len < BATCH_LEN_MAX
                    && batch.len() < IDS_MAX
                    && let Some(next) = missing.pop_front()
                {
                    len += next.1 as usize;
                    batch.push(next);
                }
                let get = GetChunks {
                    drive: self.cx.drive,
                    chunks: batch.iter().map(|(id, _)| *id).collect(),
                };
                let pending = self.session.bulk.send(&get).await?;
                under_way.push_back((batch, pending));
            }
            let Some((batch, pending)) = under_way.pop_front() else {
                return Ok(());
            };
            let reply = pending.reply().await?;
            if !reply.absent.is_empty() {
                return Err(absent());
            }
            let packed: usize = reply.chunks.iter().map(|chunk| chunk.data.len()).sum();
            self.cx.rates.down.pass(packed as u64).await;
            let got: HashSet<ChunkId> = reply.chunks.iter().map(|chunk| chunk.id).collect();
            let rest: Vec<_> = batch.iter().filter(|(id, _)| !got.contains(id)).copied().collect();
            if rest.len() == batch.len() {
                return Err(absent());
            }
            for chunk in rest.into_iter().rev() {
                missing.push_front(chunk);
            }
            if chunks.send(reply.chunks).await.is_err() {
                // The writer ended early, and tells why.
                return Ok(());
            }
        }
    }

    /// Waits until no other file with a long content list is being fetched.
    async fn turn(&self) -> Result<OwnedSemaphorePermit, Stop> {
        let turn = Arc::clone(&self.long_lists).acquire_owned().await;
        turn.map_err(|_| failed("The connection to the server ended"))
    }

    /// Returns a content list, from this disk or from the server; for a long one with the turn to
    /// hold while it is worked with.
    async fn list(&self, id: ListId) -> Result<(ContentList, Option<OwnedSemaphorePermit>), Stop> {
        let cx = Arc::clone(&self.cx);
        let here = tokio::task::spawn_blocking(move || cx.lists.get(id)).await;
        if let Ok(Some(list)) = here {
            let is_long = list.extents().len() > LONG_LIST;
            return Ok((list, if is_long { Some(self.turn().await?) } else { None }));
        }
        let mut encoded = Vec::new();
        let mut turn = None;
        loop {
            let get = GetList { drive: self.cx.drive, list: id, offset: encoded.len() as u64 };
            let part = self.session.bulk.call(&get).await?;
            self.cx.rates.down.pass(part.data.len() as u64).await;
            let len = encoded.len() + part.data.len();
            if part.data.is_empty() || len > LIST_LEN_MAX || len as u64 > part.total {
                return Err(failed("The server sent a content list of a wrong length"));
            }
            if turn.is_none() && part.total > LIST_PART_LEN_MAX as u64 {
                turn = Some(self.turn().await?);
            }
            encoded.extend_from_slice(&part.data);
            if len as u64 == part.total {
                break;
            }
        }
        if ContentList::id_of_encoded(&encoded) != id {
            return Err(failed("The server sent another content list than was asked for"));
        }
        let list = ContentList::decode(&encoded).map_err(|error| failed(error.to_string()))?;
        let (cx, kept) = (Arc::clone(&self.cx), list.clone());
        // A list that could not be kept is asked for again another time.
        tokio::task::spawn_blocking(move || cx.lists.put(id, &kept)).await.ok();
        Ok((list, turn))
    }
}

/// Unpacks and checks chunks.
fn open_all(chunks: Vec<ChunkData>) -> Vec<(ChunkId, Result<Vec<u8>, String>)> {
    chunks
        .iter()
        .map(|chunk| {
            let bytes =
                unpack(chunk).map(std::borrow::Cow::into_owned).map_err(|error| error.to_string());
            (chunk.id, bytes)
        })
        .collect()
}

/// Begins a file in staging with what an old version on this disk shares. Blocks on the disk.
fn begin(cx: &Context, job: &Job, list: Option<&ContentList>) -> Result<StagedFile, Stop> {
    if let Some(staged) = cx.partials.take(job.node, &job.content) {
        return Ok(staged);
    }
    let mut staged = StagedFile::begin(&cx.folder, &job.content, list)?;
    let Some((at, expected)) = &job.old else {
        return Ok(staged);
    };
    let mut offsets: HashMap<ChunkId, u64> = HashMap::new();
    match expected.content {
        Some(Content::Chunk { id, .. }) => {
            offsets.insert(id, 0);
        }
        Some(Content::List { id, .. }) => {
            let mut offset = 0;
            for extent in cx.lists.get(id).iter().flat_map(ContentList::extents) {
                if let Extent::Chunk { id, .. } = extent {
                    offsets.entry(*id).or_insert(offset);
                }
                offset += extent.len();
            }
        }
        Some(Content::Empty) | None => {}
    }
    if offsets.is_empty() {
        return Ok(staged);
    }
    // What cannot be read here is fetched: the old version is a help, not a need.
    let Ok(old) = cx.folder.open_file(at, &expected.stat) else {
        return Ok(staged);
    };
    let wanted: Vec<(usize, u64)> = staged
        .extents()
        .enumerate()
        .filter_map(|(index, (_, extent))| match extent {
            Extent::Chunk { id, .. } => offsets.get(&id).map(|offset| (index, *offset)),
            Extent::Hole { .. } => None,
        })
        .collect();
    for (index, offset) in wanted {
        staged.copy(index, &old, offset)?;
    }
    Ok(staged)
}

/// Unpacks, checks and writes chunks as they arrive. Blocks on the disk.
fn write(
    mut staged: StagedFile,
    places: &HashMap<ChunkId, Vec<usize>>,
    mut arrived: mpsc::Receiver<Vec<ChunkData>>,
) -> Result<StagedFile, Stop> {
    while let Some(chunks) = arrived.blocking_recv() {
        for chunk in chunks {
            let bytes = unpack(&chunk)
                .map_err(|error| Stop::Outcome(Outcome::NoContent { reason: error.to_string() }))?;
            for index in places.get(&chunk.id).into_iter().flatten() {
                staged.write(*index, &bytes)?;
            }
        }
    }
    Ok(staged)
}
