//! Fetching a content while another device is still sending it, before it is committed.
//!
//! Notes of the server ([`Coming`](crate::protocol::message::Coming)) tell what the drive has of it
//! already. That is brought to staging as a fetch does it, every chunk checked, and taken over by the
//! fetch of that content once the engine asks for it ([`Prefetches::claim`]). Nothing relies on a note:
//! what nobody asks for is dropped a little after the last one.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, oneshot, watch};
use tokio::task::JoinSet;
use tokio::time::{Instant, MissedTickBehavior, interval};

use super::Context;
use super::fetch::{self, ALL, Fetch, Plan, Source, Stop};
use super::progress::Progress;
use crate::agent::disk::StagedFile;
use crate::model::{Content, ContentList, Extent, ListId, NodeId};

/// Contents fetched ahead at once, with those that a fetch has claimed and that are not complete.
const FILES_MAX: usize = 4;

/// Notes that wait: a few of each file.
pub(super) const NOTES_MAX: usize = 4 * FILES_MAX;

/// What nobody has claimed is dropped so long after the last note of it.
pub(super) const QUIET_MAX: Duration = Duration::from_secs(30);

/// How often to look for that.
const LOOK_EVERY: Duration = Duration::from_secs(1);

/// After so many in a row that nobody claimed, nothing is fetched ahead for a while: somebody sends
/// what is never committed, a file that is written to all the time, say.
const UNCLAIMED_MAX: u32 = 4;

/// For how long.
const REST: Duration = Duration::from_secs(600);

/// Nothing is fetched ahead that would leave less of the disk free than one part in so many, or than
/// [`FREE_MIN`] of a large one.
const FREE_SHARE: u64 = 20;

/// In bytes.
const FREE_MIN: u64 = 1024 * 1024 * 1024;

/// What is told of a content on its way.
#[derive(Debug)]
pub(in crate::agent) enum Note {
    /// Its list, encoded: the engine would have it fetched.
    Begins {
        node: NodeId,
        list: ListId,
        len: u64,
        extents: Vec<u8>,
        upto: usize,
        /// What it may be made of.
        old: Option<Box<Source>>,
    },
    /// The drive has so many of its extents.
    Goes { node: NodeId, list: ListId, upto: usize },
    /// Nothing is wanted any more.
    Stop,
}

/// The contents that are being fetched ahead on one connection.
#[derive(Debug)]
pub(super) struct Prefetches {
    running: Mutex<HashMap<NodeId, Running>>,
    room: Arc<Semaphore>,
    unclaimed: Mutex<Unclaimed>,
}

#[derive(Debug, Default)]
struct Unclaimed {
    in_a_row: u32,
    rest_until: Option<Instant>,
}

#[derive(Debug)]
struct Running {
    list: ListId,
    /// How many bytes it may take of the disk.
    disk_len: u64,
    /// How many extents may be fetched.
    goal: watch::Sender<usize>,
    heard_at: Instant,
    tally: Arc<Tally>,
    remains: Remains,
}

/// Where the file is left that is there, in whole or in part, once the fetching is over. What nobody takes
/// is kept for the next session, unless nobody wants it.
#[derive(Debug)]
struct Remains {
    cx: Arc<Context>,
    node: NodeId,
    content: Content,
    receiver: oneshot::Receiver<StagedFile>,
    is_forgotten: Arc<AtomicBool>,
}

impl Drop for Remains {
    fn drop(&mut self) {
        self.receiver.close();
        if let Ok(staged) = self.receiver.try_recv() {
            keep(&self.cx, self.node, self.content, staged, &self.is_forgotten);
        }
    }
}

fn keep(
    cx: &Context,
    node: NodeId,
    content: Content,
    staged: StagedFile,
    is_forgotten: &AtomicBool,
) {
    if !is_forgotten.load(Ordering::Relaxed) {
        cx.partials.put_early(node, content, staged);
    }
}

/// What a fetch has claimed.
#[derive(Debug)]
pub(super) struct Claimed {
    node: NodeId,
    tally: Arc<Tally>,
    remains: Remains,
    /// Its end would be the end of the fetching.
    _goal: watch::Sender<usize>,
}

impl Claimed {
    /// Waits until the fetching is over; returns what there is of the file then, all of it as a rule.
    pub(super) async fn staged(mut self, down: &Progress) -> Option<StagedFile> {
        self.tally.claim(self.node, down);
        (&mut self.remains.receiver).await.ok()
    }
}

/// How many bytes have arrived: of a pending node once the content is claimed, of nothing before.
#[derive(Debug)]
struct Tally(Mutex<Option<u64>>);

impl Tally {
    fn lock(&self) -> MutexGuard<'_, Option<u64>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn add(&self, node: NodeId, len: u64, down: &Progress) {
        match &mut *self.lock() {
            Some(unclaimed) => *unclaimed += len,
            None => down.add(node, len),
        }
    }

    fn claim(&self, node: NodeId, down: &Progress) {
        if let Some(unclaimed) = self.lock().take() {
            down.add(node, unclaimed);
        }
    }
}

impl Prefetches {
    pub(super) fn new() -> Self {
        Self {
            running: Mutex::default(),
            room: Arc::new(Semaphore::new(FILES_MAX)),
            unclaimed: Mutex::default(),
        }
    }

    fn running(&self) -> MutexGuard<'_, HashMap<NodeId, Running>> {
        self.running.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn unclaimed(&self) -> MutexGuard<'_, Unclaimed> {
        self.unclaimed.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes over what is being fetched of a node's content: all of it is in the drive. What is being
    /// fetched of another content of the node is of no use any more.
    pub(super) fn claim(&self, node: NodeId, content: &Content) -> Option<Claimed> {
        let running = self.running().remove(&node)?;
        match content {
            Content::List { id, .. } if *id == running.list => {
                self.unclaimed().in_a_row = 0;
                running.goal.send_replace(ALL);
                let Running { tally, remains, goal, .. } = running;
                Some(Claimed { node, tally, remains, _goal: goal })
            }
            _ => {
                self.forget(&running);
                None
            }
        }
    }

    /// Ends what nobody will claim. It ends by its goal's end; until then it takes room.
    fn forget(&self, running: &Running) {
        running.remains.is_forgotten.store(true, Ordering::Relaxed);
        let mut unclaimed = self.unclaimed();
        unclaimed.in_a_row += 1;
        if unclaimed.in_a_row >= UNCLAIMED_MAX {
            *unclaimed = Unclaimed { in_a_row: 0, rest_until: Some(Instant::now() + REST) };
        }
    }

    fn rests(&self) -> bool {
        self.unclaimed().rest_until.is_some_and(|until| Instant::now() < until)
    }

    /// Returns whether there was something of this content that may go on.
    fn goes(&self, node: NodeId, list: ListId, upto: usize) -> bool {
        let mut all = self.running();
        match all.get_mut(&node) {
            Some(running) if running.list == list => {
                running.heard_at = Instant::now();
                running.goal.send_if_modified(|goal| {
                    let is_more = upto > *goal;
                    *goal = upto.max(*goal);
                    is_more
                });
                true
            }
            _ => false,
        }
    }

    fn drop_where(&self, mut is_over: impl FnMut(&Running) -> bool) {
        self.running().retain(|_, running| {
            let is_over = is_over(running);
            if is_over {
                self.forget(running);
            }
            !is_over
        });
    }

    fn disk_len(&self) -> u64 {
        self.running().values().fold(0, |sum, running| sum.saturating_add(running.disk_len))
    }
}

/// Serves the notes of a session until it ends.
pub(super) async fn run(fetch: Fetch, mut notes: mpsc::Receiver<Note>) {
    let mut files = JoinSet::new();
    let mut looks = interval(LOOK_EVERY);
    looks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            note = notes.recv() => match note {
                Some(note) => take(&fetch, note, &mut files),
                None => return,
            },
            Some(_) = files.join_next() => {}
            _ = looks.tick(), if !files.is_empty() => {
                fetch.prefetches.drop_where(|running| running.heard_at.elapsed() >= QUIET_MAX);
            }
        }
    }
}

fn take(fetch: &Fetch, note: Note, files: &mut JoinSet<()>) {
    let prefetches = &fetch.prefetches;
    match note {
        Note::Goes { node, list, upto } => {
            prefetches.goes(node, list, upto);
        }
        Note::Stop => prefetches.drop_where(|_| true),
        Note::Begins { node, list, upto, len, extents, old } => {
            if prefetches.goes(node, list, upto) || prefetches.rests() {
                return;
            }
            // Another content of the same node.
            if let Some(running) = prefetches.running().remove(&node) {
                prefetches.forget(&running);
            }
            let Ok(permit) = Arc::clone(&prefetches.room).try_acquire_owned() else {
                return;
            };
            let content = Content::List { id: list, len };
            let (goal, goals) = watch::channel(upto);
            let (done, receiver) = oneshot::channel();
            let tally = Arc::new(Tally(Mutex::new(Some(0))));
            let is_forgotten = Arc::new(AtomicBool::new(false));
            let cx = Arc::clone(&fetch.cx);
            let file = File {
                fetch: fetch.clone(),
                node,
                list,
                len,
                old,
                tally: Arc::clone(&tally),
                is_forgotten: Arc::clone(&is_forgotten),
            };
            let remains = Remains { cx, node, content, receiver, is_forgotten };
            let running =
                Running { list, disk_len: 0, goal, heard_at: Instant::now(), tally, remains };
            prefetches.running().insert(node, running);
            files.spawn(file.run(extents, goals, done, permit));
        }
    }
}

/// A content to fetch ahead.
struct File {
    fetch: Fetch,
    node: NodeId,
    list: ListId,
    len: u64,
    old: Option<Box<Source>>,
    tally: Arc<Tally>,
    is_forgotten: Arc<AtomicBool>,
}

impl File {
    async fn run(
        self,
        extents: Vec<u8>,
        goal: watch::Receiver<usize>,
        done: oneshot::Sender<StagedFile>,
        _permit: OwnedSemaphorePermit,
    ) {
        let node = self.node;
        if let Err(stop) = self.try_run(extents, goal, done).await {
            // Whatever it was, the fetch after the commit meets it again, and tells.
            tracing::debug!(%node, ?stop, "fetching ahead ended");
        }
    }

    async fn try_run(
        self,
        extents: Vec<u8>,
        mut goal: watch::Receiver<usize>,
        done: oneshot::Sender<StagedFile>,
    ) -> Result<(), Stop> {
        let (node, content) = (self.node, self.content());
        let (list, disk_len) = blocking(self.check(extents)).await??;
        if let Some(running) = self.fetch.prefetches.running().get_mut(&node) {
            running.disk_len = disk_len;
        }
        let (cx, from) = (Arc::clone(&self.fetch.cx), self.old);
        let begun = move || {
            let early = cx.partials.take(node, &content);
            fetch::begin(&cx, &content, from.as_deref(), Some(&list), early)
        };
        let (staged, old) = blocking(begun).await??;
        let Plan { places, missing, here_len } = Plan::of(&staged, old.as_ref());
        let (cx, tally, is_forgotten) = (Arc::clone(&self.fetch.cx), self.tally, self.is_forgotten);
        tally.add(node, here_len, &cx.down);
        let (chunks, arrived) = mpsc::channel(2);
        // Whatever becomes of this task: what has arrived is claimed, kept or removed.
        let writing = tokio::task::spawn_blocking(move || {
            let written = |len| tally.add(node, len, &cx.down);
            let staged = fetch::write(staged, &places, old.as_ref(), arrived, written)?;
            if let Err(staged) = done.send(staged) {
                keep(&cx, node, content, staged, &is_forgotten);
            }
            Ok::<_, Stop>(())
        });
        let got = self.fetch.get_all(missing, &mut goal, &chunks).await;
        drop(chunks);
        writing.await.map_err(|error| fetch::fault_of_program(&error))??;
        got
    }

    const fn content(&self) -> Content {
        Content::List { id: self.list, len: self.len }
    }

    /// Returns the list, checked and kept, and what it takes of the disk, if there is room for that.
    fn check(
        &self,
        extents: Vec<u8>,
    ) -> impl FnOnce() -> Result<(ContentList, u64), Stop> + Send + 'static {
        let (cx, id, len) = (Arc::clone(&self.fetch.cx), self.list, self.len);
        let taken = self.fetch.prefetches.disk_len();
        move || {
            if ContentList::id_of_encoded(&extents) != id {
                return Err(fetch::failed("A note brought another content list than it names"));
            }
            let list = ContentList::decode(&extents);
            let list = list.map_err(|error| fetch::failed(error.to_string()))?;
            if list.len() != len {
                return Err(fetch::failed("A note names a wrong length of its content"));
            }
            let disk_len = list.extents().iter().fold(0_u64, |sum, extent| match extent {
                Extent::Chunk { len, .. } => sum.saturating_add(u64::from(*len)),
                Extent::Hole { .. } => sum,
            });
            let space = cx.folder.space()?;
            let left = space.free.saturating_sub(taken).saturating_sub(disk_len);
            if left < (space.total / FREE_SHARE).min(FREE_MIN) {
                return Err(fetch::failed("The disk has too little room to fetch ahead"));
            }
            cx.lists.put(id, &list);
            Ok((list, disk_len))
        }
    }
}

async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> Result<T, Stop> {
    tokio::task::spawn_blocking(work).await.map_err(|error| fetch::fault_of_program(&error))
}
