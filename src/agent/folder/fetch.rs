//! Fetching contents that did not come inside a page.
//!
//! Chunks of small files are asked for together, whichever files they belong to. A larger file is
//! put together in staging: what another file of this content, or an old version, has on this disk is
//! copied from there, what had arrived when an earlier fetch of it broke off is there already, the rest
//! is asked for in order with several batches under way, as deltas to the old version where it has
//! something in the same place. Every chunk is checked against its hash before it is written.

use std::collections::{HashMap, HashSet, VecDeque};
use std::sync::Arc;

use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, watch};
use tokio::task::JoinSet;

use super::prefetch::{Claimed, Note, Prefetches};
use super::{Context, DELTA_FROM, FRUITLESS_MAX, Fetched, Input, Session, prefetch};
use crate::agent::disk::{OpenFile, StagedFile};
use crate::content::{ChunkDelta, delta, splice, unpack};
use crate::engine::apply::Payload;
use crate::engine::folder::Fault;
use crate::engine::seam::{Expected, Outcome, Spot};
use crate::model::{
    Attrs, Checked, ChunkData, ChunkId, Content, ContentList, Extent, ListId, NodeId, Timestamp,
};
use crate::protocol::limits::{
    BASE_CHUNKS_MAX, BASES_MAX, BATCH_LEN_MAX, IDS_MAX, INLINE_LEN_MAX, LIST_LEN_MAX,
    LIST_PART_LEN_MAX,
};
use crate::protocol::message::{
    FailureCode, GetChunks, GetDeltas, GetList, GetSplice, WantedDelta,
};
use crate::protocol::{CallError, Pending};

/// Fetches that wait: more than the engine has disk operations under way.
pub(super) const JOBS_MAX: usize = 2048;

/// Larger files fetched at once.
const FILES_MAX: usize = 4;

/// Batches of chunks asked for at once for small files.
const SMALL_BATCHES_MAX: usize = 4;

/// Batches of chunks asked for at once, per larger file; each at most 1 MiB.
const FILE_BATCHES_MAX: usize = 4;

/// A content list with more extents than this takes megabytes, and one at its limit hundreds: such
/// files are fetched one at a time.
const LONG_LIST: usize = LIST_PART_LEN_MAX / 37;

/// The goal of a fetch of all the extents of a file.
pub(super) const ALL: usize = usize::MAX;

/// A file on this disk of a content, or of one that may share chunks with it.
pub(super) type Source = (Spot, Expected);

/// A content to fetch for a write.
#[derive(Debug)]
pub(in crate::agent) struct Job {
    pub node: NodeId,
    pub content: Content,
    pub attrs: Attrs,
    pub mtime: Timestamp,
    /// Another file of this content on this disk, or the version it replaces, which may share chunks.
    pub old: Option<Source>,
}

/// Why a fetch ended early.
#[derive(Debug)]
pub(super) enum Stop {
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

pub(super) fn failed(reason: impl Into<String>) -> Stop {
    Stop::Outcome(Outcome::Failed { reason: reason.into() })
}

fn absent() -> Stop {
    failed("The server does not have this content any more; another device may have to send it")
}

pub(super) fn fault_of_program(error: &tokio::task::JoinError) -> Stop {
    failed(format!("A fetch ended by a fault in the program: {error}"))
}

/// Serves the fetches of a session until it ends.
pub(super) async fn run(
    cx: Arc<Context>,
    session: Session,
    mut jobs: mpsc::Receiver<Job>,
    notes: mpsc::Receiver<Note>,
) {
    let long_lists = Arc::new(Semaphore::new(1));
    let prefetches = Arc::new(Prefetches::new());
    let fetch = Fetch { cx, session, long_lists, prefetches };
    let (small_sender, small) = mpsc::channel(JOBS_MAX);
    let small_files = fetch.small_files(small);
    let large_files = async {
        let mut files = JoinSet::new();
        // Larger files that wait; as bounded as the jobs.
        let mut waiting = VecDeque::new();
        loop {
            while files.len() < FILES_MAX
                && let Some((job, claimed)) = waiting.pop_front()
            {
                files.spawn(fetch.clone().large_file(job, claimed));
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
                        _ => {
                            // At once: it is wanted, however long this job has to wait.
                            let claimed = fetch.prefetches.claim(job.node, &job.content);
                            waiting.push_back((job, claimed));
                        }
                    }
                }
                Some(_) = files.join_next() => {}
            }
        }
    };
    tokio::select! {
        () = small_files => {}
        () = large_files => {}
        () = prefetch::run(fetch.clone(), notes) => {}
    }
}

#[derive(Clone)]
pub(super) struct Fetch {
    pub(super) cx: Arc<Context>,
    session: Session,
    /// Held by the file whose content list is long.
    long_lists: Arc<Semaphore>,
    /// What is being fetched before it is committed.
    pub(super) prefetches: Arc<Prefetches>,
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
            for (id, chunk) in opened.unwrap_or_default() {
                let nodes = wanted.remove(&id).unwrap_or_default();
                for node in nodes {
                    let fetched = match &chunk {
                        Ok(chunk) => Fetched::Payload(Payload::Chunk(chunk.clone())),
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

    async fn large_file(self, job: Job, claimed: Option<Claimed>) {
        let (node, len, attrs, mtime) = (job.node, job.content.len(), job.attrs, job.mtime);
        self.cx.down.begin(node);
        match self.stage(job, claimed).await {
            Ok(staged) => {
                let (cx, session) = (Arc::clone(&self.cx), self.session.number);
                // To the end, also when the session ends meanwhile: the core, which then has no use
                // for the file, removes it. Nobody else would.
                let finishing = tokio::task::spawn_blocking(move || {
                    let fetched = match staged.finish(attrs, mtime) {
                        Ok(payload) => {
                            cx.down.finish(node, len);
                            Fetched::Payload(payload)
                        }
                        Err(fault) => {
                            cx.down.forget(node);
                            Fetched::Outcome(Outcome::Failed { reason: fault.to_string() })
                        }
                    };
                    // The core ended, and the session with it.
                    cx.inputs.blocking_send(Input::Fetched { session, node, fetched }).ok();
                });
                if let Err(error) = finishing.await {
                    self.tell_stop([node], fault_of_program(&error)).await;
                }
            }
            Err(stop) => {
                self.cx.down.forget(node);
                self.tell_stop([node], stop).await;
            }
        }
    }

    /// Returns the file with all its bytes.
    async fn stage(&self, job: Job, claimed: Option<Claimed>) -> Result<StagedFile, Stop> {
        let early = match claimed {
            Some(claimed) => claimed.staged(&self.cx.down).await,
            None => None,
        };
        let early = match early {
            Some(staged) if staged.is_complete() => return Ok(staged),
            early => early,
        };
        let (list, turn) = match job.content {
            Content::List { id, .. } => {
                let old = match job.old.as_ref().and_then(|(_, expected)| expected.content) {
                    Some(Content::List { id, .. }) => Some(id),
                    Some(Content::Chunk { .. } | Content::Empty) | None => None,
                };
                let (list, turn) = self.list(id, old).await?;
                (Some(list), turn)
            }
            Content::Empty | Content::Chunk { .. } => (None, None),
        };
        let (node, content) = (job.node, job.content);
        // The turn is held to the end.
        let is_long = turn.is_some();
        let cx = Arc::clone(&self.cx);
        let begun = move || {
            let early = early.or_else(|| cx.partials.take(node, &content));
            begin(&cx, &content, job.old.as_ref(), list.as_ref(), early)
        };
        let begun = tokio::task::spawn_blocking(begun).await;
        let (staged, old) = begun.map_err(|error| fault_of_program(&error))??;
        let Plan { places, missing, here_len } = Plan::of(&staged, old.as_ref());
        // What was fetched ahead of it is counted here.
        self.cx.down.begin(node);
        self.cx.down.add(node, here_len);
        let (chunks, arrived) = mpsc::channel(2);
        let cx = Arc::clone(&self.cx);
        // Whatever becomes of this task: the writer keeps what has arrived.
        let writing = tokio::task::spawn_blocking(move || {
            let written = |len| cx.down.add(node, len);
            let staged = write(staged, &places, old.as_ref(), arrived, written)?;
            if staged.is_complete() {
                return Ok(Some(staged));
            }
            cx.partials.put(node, content, is_long, staged);
            Ok::<_, Stop>(None)
        });
        let (_goal, mut goal) = watch::channel(ALL);
        let got = self.get_all(missing, &mut goal, &chunks).await;
        drop(chunks);
        let staged = writing.await.map_err(|error| fault_of_program(&error))?;
        // A chunk that cannot be written ends the getting too, but the reason is with the writer.
        let staged = staged?;
        got?;
        staged.ok_or_else(absent)
    }

    /// Asks for chunks in order, with several batches under way, and hands them on: those of the
    /// extents before the goal, until the goal is [`ALL`] or gone.
    pub(super) async fn get_all(
        &self,
        mut missing: VecDeque<Wanted>,
        goal: &mut watch::Receiver<usize>,
        chunks: &mpsc::Sender<Vec<Arrived>>,
    ) -> Result<(), Stop> {
        let mut under_way: VecDeque<(Vec<Wanted>, Asked)> = VecDeque::new();
        let mut fruitless = 0;
        loop {
            if goal.has_changed().is_err() {
                return Ok(());
            }
            let upto = *goal.borrow_and_update();
            while under_way.len() < FILE_BATCHES_MAX
                && missing.front().is_some_and(|next| next.index < upto)
                && let Some(first) = missing.pop_front()
            {
                let batch = batch_of(first, &mut missing, upto);
                let asked = self.ask(&batch).await?;
                under_way.push_back((batch, asked));
            }
            let Some((batch, asked)) = under_way.pop_front() else {
                if upto == ALL || goal.changed().await.is_err() {
                    return Ok(());
                }
                continue;
            };
            let might_be_deltas = matches!(asked, Asked::Deltas(_));
            let arrived = asked.reply().await?;
            let packed: usize = arrived.iter().map(Arrived::packed_len).sum();
            self.cx.rates.down.pass(packed as u64).await;
            let got: HashSet<ChunkId> = arrived.iter().map(Arrived::id).collect();
            let before = batch.len();
            if arrived.len() > before {
                return Err(failed("The server sent chunks that were not asked for"));
            }
            let rest: Vec<_> = batch.into_iter().filter(|one| !got.contains(&one.id)).collect();
            if rest.len() == before {
                return Err(absent());
            }
            for chunk in rest.into_iter().rev() {
                missing.push_front(chunk);
            }
            if arrived.iter().any(|one| matches!(one, Arrived::Delta(_))) {
                fruitless = 0;
            } else if might_be_deltas {
                fruitless += 1;
            }
            if fruitless == FRUITLESS_MAX {
                // The file is all new, and looking for what it has in common costs the server time.
                missing.iter_mut().for_each(|one| one.base.clear());
            }
            if chunks.send(arrived).await.is_err() {
                // The writer ended early, and tells why.
                return Ok(());
            }
        }
    }

    async fn ask(&self, batch: &[Wanted]) -> Result<Asked, Stop> {
        let drive = self.cx.drive;
        if batch.iter().all(|one| one.base.is_empty()) {
            let get = GetChunks { drive, chunks: batch.iter().map(|one| one.id).collect() };
            return Ok(Asked::Whole(self.session.bulk.send(&get).await?));
        }
        let wanted = batch.iter().map(|one| WantedDelta { chunk: one.id, base: one.base.clone() });
        let get = GetDeltas { drive, wanted: wanted.collect() };
        Ok(Asked::Deltas(self.session.bulk.send(&get).await?))
    }

    /// Waits until no other file with a long content list is being fetched.
    async fn turn(&self) -> Result<OwnedSemaphorePermit, Stop> {
        let turn = Arc::clone(&self.long_lists).acquire_owned().await;
        turn.map_err(|_| failed("The connection to the server ended"))
    }

    /// Returns a content list, from this disk or from the server; for a long one with the turn to
    /// hold while it is worked with.
    async fn list(
        &self,
        id: ListId,
        old: Option<ListId>,
    ) -> Result<(ContentList, Option<OwnedSemaphorePermit>), Stop> {
        let cx = Arc::clone(&self.cx);
        let here = tokio::task::spawn_blocking(move || {
            let list = cx.lists.get(id);
            let old = if list.is_none() { old } else { None };
            (list, old.and_then(|old| Some((old, cx.lists.get(old)?))))
        });
        let (here, old) = here.await.map_err(|error| fault_of_program(&error))?;
        if let Some(list) = here {
            let is_long = list.extents().len() > LONG_LIST;
            return Ok((list, if is_long { Some(self.turn().await?) } else { None }));
        }
        if let Some((base, old)) = old
            && splice::may_be_spliced(&old)
        {
            let turn = self.turn().await?;
            let get = GetSplice { drive: self.cx.drive, list: id, base };
            if let Some(splice) = self.session.bulk.call(&get).await?.splice {
                self.cx.rates.down.pass(splice.len() as u64).await;
                let list = splice::unsplice(&old, &splice);
                let list = list.map_err(|error| failed(error.to_string()))?;
                if list.id() != id {
                    return Err(failed("The server sent another content list than was asked for"));
                }
                self.keep(id, &list).await;
                let is_long = list.extents().len() > LONG_LIST;
                return Ok((list, is_long.then_some(turn)));
            }
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
        self.keep(id, &list).await;
        Ok((list, turn))
    }

    /// Keeps a list; one that could not be kept is asked for again another time.
    async fn keep(&self, id: ListId, list: &ContentList) {
        let (cx, kept) = (Arc::clone(&self.cx), list.clone());
        tokio::task::spawn_blocking(move || cx.lists.put(id, &kept)).await.ok();
    }
}

/// Unpacks and checks chunks.
fn open_all(chunks: Vec<ChunkData>) -> Vec<(ChunkId, Result<Checked<'static>, String>)> {
    chunks
        .iter()
        .map(|chunk| {
            let bytes = unpack(chunk).map(Checked::into_owned).map_err(|error| error.to_string());
            (chunk.id, bytes)
        })
        .collect()
}

/// A chunk of a larger file to ask for.
pub(super) struct Wanted {
    /// The first extent it is of.
    index: usize,
    id: ChunkId,
    len: u32,
    /// Chunks of the old version on this disk that it may be made of.
    base: Vec<ChunkId>,
}

/// Takes chunks off the front that are asked for together with the first one: all with a base, or
/// all without; of extents before `upto` only. Together they are no more than the server answers at once:
/// the rest would come out of order, and in a batch of its own.
fn batch_of(first: Wanted, missing: &mut VecDeque<Wanted>, upto: usize) -> Vec<Wanted> {
    let has_base = !first.base.is_empty();
    let (mut len, mut base_chunks) = (first.len as usize, first.base.len());
    let mut batch = vec![first];
    while batch.len() < if has_base { BASES_MAX } else { IDS_MAX }
        && let Some(next) = missing.front()
        && len + next.len as usize <= BATCH_LEN_MAX
        && next.index < upto
        && next.base.is_empty() != has_base
        && base_chunks + next.base.len() <= BASE_CHUNKS_MAX
        && let Some(next) = missing.pop_front()
    {
        len += next.len as usize;
        base_chunks += next.base.len();
        batch.push(next);
    }
    batch
}

/// What of a file in staging is still to come.
pub(super) struct Plan {
    /// The extents that each missing chunk is of.
    pub(super) places: HashMap<ChunkId, Vec<usize>>,
    /// The missing chunks in the order of the file.
    pub(super) missing: VecDeque<Wanted>,
    /// How many bytes are there.
    pub(super) here_len: u64,
}

impl Plan {
    pub(super) fn of(staged: &StagedFile, old: Option<&Old>) -> Self {
        let mut plan = Self { places: HashMap::new(), missing: VecDeque::new(), here_len: 0 };
        for (index, (_, extent)) in staged.extents().enumerate() {
            match extent {
                Extent::Chunk { id, len } if !staged.is_written(index) => {
                    let indexes = plan.places.entry(id).or_default();
                    if indexes.is_empty() {
                        let base = old.and_then(|old| old.bases.get(&id)).cloned();
                        let base = base.unwrap_or_default();
                        plan.missing.push_back(Wanted { index, id, len, base });
                    }
                    indexes.push(index);
                }
                here => plan.here_len += here.len(),
            }
        }
        plan
    }
}

/// A request for chunks under way.
enum Asked {
    Whole(Pending<GetChunks>),
    Deltas(Pending<GetDeltas>),
}

impl Asked {
    async fn reply(self) -> Result<Vec<Arrived>, Stop> {
        let (absent_ids, arrived) = match self {
            Self::Whole(pending) => {
                let reply = pending.reply().await?;
                (reply.absent, reply.chunks.into_iter().map(Arrived::Whole).collect())
            }
            Self::Deltas(pending) => {
                let reply = pending.reply().await?;
                let deltas = reply.deltas.into_iter().map(Arrived::Delta);
                let whole = reply.chunks.into_iter().map(Arrived::Whole);
                (reply.absent, deltas.chain(whole).collect())
            }
        };
        if absent_ids.is_empty() { Ok(arrived) } else { Err(absent()) }
    }
}

/// A chunk that came.
pub(super) enum Arrived {
    Whole(ChunkData),
    Delta(ChunkDelta),
}

impl Arrived {
    const fn id(&self) -> ChunkId {
        match self {
            Self::Whole(chunk) => chunk.id,
            Self::Delta(delta) => delta.id,
        }
    }

    const fn packed_len(&self) -> usize {
        match self {
            Self::Whole(chunk) => chunk.data.len(),
            Self::Delta(delta) => delta.steps.data.len(),
        }
    }
}

/// The old version on this disk.
pub(super) struct Old {
    file: OpenFile,
    /// Where each of its chunks is, and how long.
    places: HashMap<ChunkId, (u64, u32)>,
    /// For chunks of the new version, which of the old ones they may be made of. All of these were
    /// seen to be there.
    bases: HashMap<ChunkId, Vec<ChunkId>>,
}

impl Old {
    /// Returns the bytes of chunks of the old version, one after the other, if they are there.
    fn read(&self, chunks: &[ChunkId]) -> Result<Option<Vec<u8>>, Fault> {
        if chunks.len() > delta::BASE_CHUNKS_MAX {
            return Ok(None);
        }
        let mut bytes = Vec::new();
        for id in chunks {
            let Some((offset, len)) = self.places.get(id) else {
                return Ok(None);
            };
            match self.file.read_chunk_at(*offset, id, *len)? {
                Some(chunk) => bytes.extend_from_slice(&chunk),
                None => return Ok(None),
            }
        }
        Ok(Some(bytes))
    }
}

/// Goes on with a file that is in staging in part, or begins one with what an old version on this disk
/// shares. Blocks on the disk.
pub(super) fn begin(
    cx: &Context,
    content: &Content,
    old: Option<&Source>,
    list: Option<&ContentList>,
    early: Option<StagedFile>,
) -> Result<(StagedFile, Option<Old>), Stop> {
    if let Some(staged) = early {
        return Ok((staged, None));
    }
    let mut staged = StagedFile::begin(&cx.folder, content, list)?;
    let Some((at, expected)) = old else {
        return Ok((staged, None));
    };
    let old_extents = match expected.content {
        Some(Content::Chunk { id, len }) => vec![Extent::Chunk { id, len }],
        Some(Content::List { id, .. }) => {
            cx.lists.get(id).map_or_else(Vec::new, |list| list.extents().to_vec())
        }
        Some(Content::Empty) | None => Vec::new(),
    };
    let mut places = HashMap::new();
    let mut offset = 0;
    for extent in &old_extents {
        if let Extent::Chunk { id, len } = *extent {
            places.entry(id).or_insert((offset, len));
        }
        offset += extent.len();
    }
    if places.is_empty() {
        return Ok((staged, None));
    }
    // What cannot be read here is fetched: the old version is a help, not a need.
    let Ok(file) = cx.folder.open_file(at, &expected.stat) else {
        return Ok((staged, None));
    };
    let extents: Vec<Extent> = staged.extents().map(|(_, extent)| extent).collect();
    for (index, extent) in extents.iter().enumerate() {
        if let Extent::Chunk { id, .. } = extent
            && let Some((offset, _)) = places.get(id)
        {
            staged.copy(index, &file, *offset)?;
        }
    }
    let mut old = Old { file, places, bases: HashMap::new() };
    let mut is_there: HashMap<ChunkId, bool> = HashMap::new();
    for new in splice::new_chunks(&old_extents, &extents) {
        if new.len < DELTA_FROM || new.base.is_empty() {
            continue;
        }
        let mut all_there = true;
        for id in &new.base {
            all_there &= match is_there.get(id) {
                Some(is_there) => *is_there,
                None => {
                    let found = old.read(&[*id])?.is_some();
                    is_there.insert(*id, found);
                    found
                }
            };
        }
        if all_there {
            old.bases.insert(new.id, new.base);
        }
    }
    Ok((staged, Some(old)))
}

/// Unpacks, checks and writes chunks as they arrive. Blocks on the disk.
pub(super) fn write(
    mut staged: StagedFile,
    places: &HashMap<ChunkId, Vec<usize>>,
    old: Option<&Old>,
    mut arrived: mpsc::Receiver<Vec<Arrived>>,
    written: impl Fn(u64),
) -> Result<StagedFile, Stop> {
    let damaged = |reason: String| Stop::Outcome(Outcome::NoContent { reason });
    while let Some(chunks) = arrived.blocking_recv() {
        for one in chunks {
            let bytes = match &one {
                Arrived::Whole(chunk) => {
                    unpack(chunk).map_err(|error| damaged(error.to_string()))?
                }
                Arrived::Delta(delta) => {
                    let base = old.map(|old| old.read(&delta.base)).transpose()?.flatten();
                    let base = base.ok_or_else(|| failed("The old version changed meanwhile"))?;
                    let bytes = delta::apply(delta, &base);
                    bytes.map_err(|error| damaged(error.to_string()))?
                }
            };
            for index in places.get(&one.id()).into_iter().flatten() {
                staged.write(*index, &bytes)?;
                written(bytes.len() as u64);
            }
        }
    }
    Ok(staged)
}
