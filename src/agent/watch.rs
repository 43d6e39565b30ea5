//! Watching directories: hints that something may have changed, by node and name.
//!
//! A hint is never a fact: what is true is read from the disk. A watch follows its directory through
//! renames, so hints name the directory's node, not a path. A closed writer is told at once; what is
//! still being written to, after a pause, so that a file that is never closed is noticed too.

use std::collections::{HashMap, HashSet};
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::os::unix::ffi::OsStrExt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use inotify::{EventMask, Inotify, WatchDescriptor, WatchMask, Watches};
use rustix::io::Errno;
use tokio::io::unix::AsyncFd;
use tokio::sync::mpsc::Sender;
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep_until};

use crate::engine::apply::OWN_DIR;
use crate::model::{Name, NodeId};

/// What a watcher tells.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Hint {
    /// Something may have changed in a directory: at a name, or anywhere in it.
    Touched {
        /// The directory.
        dir: NodeId,
        /// The name.
        name: Option<Name>,
    },
    /// Hints were lost: anything may have changed.
    Rescan,
}

/// What became of a request to watch a directory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Watched {
    /// Every change is told from now on.
    Yes,
    /// There are too many watches; the directory is told as touched at intervals.
    Polled,
    /// It cannot be watched, and nothing is told of it; why, for a person.
    No(String),
}

/// Watches directories.
pub trait Watcher: Send + Sync + std::fmt::Debug {
    /// Watches the directory that is open under `handle`, and tells of it as `dir` from now on,
    /// whatever it was called before.
    fn watch(&self, dir: NodeId, handle: BorrowedFd<'_>) -> Watched;

    /// Ends the watch of a directory, if there is one. One that is deleted ends by itself.
    fn unwatch(&self, dir: NodeId);

    /// Forgets those of the directories beyond the limit that are not known any more.
    fn keep_polled(&self, is_known: &mut dyn FnMut(NodeId) -> bool);

    /// Returns what a person should know.
    fn problem(&self) -> Option<String>;
}

/// Changes of a file that a close will follow, or that come in twos and threes (a `chmod` while a
/// copy is made), wait this long for what follows.
const SETTLE: Duration = Duration::from_millis(50);

/// A file that is written to and not closed is told this long after the last write …
const QUIET: Duration = Duration::from_secs(1);

/// … or at the latest this long after the first.
const QUIET_MAX: Duration = Duration::from_secs(10);

/// The most names waiting; of more the next is told at once.
const PENDING_MAX: usize = 4096;

/// How often a directory that cannot be watched is told as touched.
const POLL: Duration = Duration::from_secs(60);

/// Room for some 200 events with the longest names.
const BUFFER_LEN: usize = 64 * 1024;

fn mask() -> WatchMask {
    WatchMask::CREATE
        | WatchMask::DELETE
        | WatchMask::CLOSE_WRITE
        | WatchMask::MODIFY
        | WatchMask::ATTRIB
        | WatchMask::MOVED_FROM
        | WatchMask::MOVED_TO
        | WatchMask::ONLYDIR
        | WatchMask::EXCL_UNLINK
}

/// The watcher of Linux.
#[derive(Debug)]
pub struct InotifyWatcher {
    watches: Arc<Mutex<Map>>,
    reader: JoinHandle<()>,
}

/// Which watch is which node's. The kernel's number for a watch is not used again while any event
/// of it is unread.
#[derive(Debug)]
struct Map {
    watches: Watches,
    nodes: HashMap<i32, NodeId>,
    descriptors: HashMap<NodeId, WatchDescriptor>,
    /// Directories beyond the kernel's limit.
    polled: HashSet<NodeId>,
}

impl InotifyWatcher {
    /// Begins; hints go to `hints`. While that is full the kernel keeps what happens, and tells of
    /// an overflow if it cannot. To be called within a tokio runtime.
    ///
    /// # Errors
    /// When the kernel has no further instance.
    pub fn start(hints: Sender<Hint>) -> io::Result<Self> {
        let inotify = Inotify::init().map_err(|error| {
            if error.raw_os_error() == Some(Errno::MFILE.raw_os_error()) {
                io::Error::other(
                    "Too many programs watch files; raise the limit with: \
                     sudo sysctl fs.inotify.max_user_instances=1024",
                )
            } else {
                error
            }
        })?;
        let watches = Arc::new(Mutex::new(Map {
            watches: inotify.watches(),
            nodes: HashMap::new(),
            descriptors: HashMap::new(),
            polled: HashSet::new(),
        }));
        let reader = Reader {
            map: watches.clone(),
            hints,
            pending: Pending::default(),
            told: HashSet::new(),
        };
        #[expect(
            deprecated,
            reason = "the only constructor without `unsafe`; an Inotify owns its one descriptor \
                      for as long as it lives, which is all that the other asks for"
        )]
        let inotify = AsyncFd::new(inotify)?;
        Ok(Self { watches, reader: tokio::spawn(reader.run(inotify)) })
    }
}

impl Drop for InotifyWatcher {
    fn drop(&mut self) {
        self.reader.abort();
    }
}

fn lock(map: &Mutex<Map>) -> MutexGuard<'_, Map> {
    // The two maps are brought in step again by the next watch of the same node.
    map.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Watcher for InotifyWatcher {
    fn watch(&self, dir: NodeId, handle: BorrowedFd<'_>) -> Watched {
        let path = format!("/proc/self/fd/{}", handle.as_raw_fd());
        // Held while the watch is added: the reader must not see an event of it before the map has
        // it.
        let mut map = lock(&self.watches);
        match map.watches.add(path, mask()) {
            Ok(descriptor) => {
                map.insert(dir, descriptor);
                Watched::Yes
            }
            Err(error) if error.raw_os_error() == Some(Errno::NOSPC.raw_os_error()) => {
                map.remove(dir);
                map.polled.insert(dir);
                Watched::Polled
            }
            Err(error) => Watched::No(error.to_string()),
        }
    }

    fn unwatch(&self, dir: NodeId) {
        lock(&self.watches).remove(dir);
    }

    fn keep_polled(&self, is_known: &mut dyn FnMut(NodeId) -> bool) {
        // Asked without the lock: whoever answers reads a database.
        let polled = lock(&self.watches).polled.clone();
        let gone: Vec<NodeId> = polled.into_iter().filter(|dir| !is_known(*dir)).collect();
        let mut map = lock(&self.watches);
        for dir in gone {
            map.polled.remove(&dir);
        }
    }

    fn problem(&self) -> Option<String> {
        let count = lock(&self.watches).polled.len();
        (count > 0).then(|| {
            format!(
                "The system's limit on watched directories is reached: changes in {count} of them \
                 are seen after a minute only. Raise it with: \
                 sudo sysctl fs.inotify.max_user_watches=1048576"
            )
        })
    }
}

impl Map {
    fn insert(&mut self, dir: NodeId, descriptor: WatchDescriptor) {
        let id = descriptor.get_watch_descriptor_id();
        self.polled.remove(&dir);
        if let Some(other) = self.nodes.insert(id, dir)
            && other != dir
        {
            self.descriptors.remove(&other);
        }
        // The node was another directory before: nobody wants to hear of that one any more.
        if let Some(old) = self.descriptors.insert(dir, descriptor)
            && old.get_watch_descriptor_id() != id
        {
            self.nodes.remove(&old.get_watch_descriptor_id());
            drop(self.watches.remove(old));
        }
    }

    fn remove(&mut self, dir: NodeId) {
        self.polled.remove(&dir);
        if let Some(descriptor) = self.descriptors.remove(&dir) {
            self.nodes.remove(&descriptor.get_watch_descriptor_id());
            // It fails only when the directory is gone, and its watch with it.
            drop(self.watches.remove(descriptor));
        }
    }

    /// The kernel ended a watch: its directory is gone.
    fn ended(&mut self, id: i32) {
        if let Some(dir) = self.nodes.remove(&id)
            && self
                .descriptors
                .get(&dir)
                .is_some_and(|descriptor| descriptor.get_watch_descriptor_id() == id)
        {
            self.descriptors.remove(&dir);
        }
    }
}

/// Names that wait a little before they are told.
#[derive(Debug, Default)]
struct Pending {
    names: HashMap<(NodeId, Name), Wait>,
    /// No name is due before this.
    next: Option<Instant>,
}

#[derive(Debug, Clone, Copy)]
struct Wait {
    first: Instant,
    due: Instant,
}

impl Pending {
    /// Makes a name wait, and returns whether there was room.
    fn delay(&mut self, dir: NodeId, name: &Name, now: Instant, is_write: bool) -> bool {
        let key = (dir, name.clone());
        if self.names.len() >= PENDING_MAX && !self.names.contains_key(&key) {
            return false;
        }
        let wait = self.names.entry(key).or_insert(Wait { first: now, due: now + QUIET_MAX });
        wait.due = if is_write {
            (now + QUIET).min(wait.first + QUIET_MAX)
        } else {
            wait.due.min(now + SETTLE)
        };
        let due = wait.due;
        self.next = Some(self.next.map_or(due, |next| next.min(due)));
        true
    }

    fn take_due(&mut self, now: Instant) -> Vec<(NodeId, Name)> {
        if self.next.is_none_or(|next| next > now) {
            return Vec::new();
        }
        let due = self.names.extract_if(|_, wait| wait.due <= now).map(|(key, _)| key).collect();
        self.next = self.names.values().map(|wait| wait.due).min();
        due
    }
}

struct Reader {
    map: Arc<Mutex<Map>>,
    hints: Sender<Hint>,
    pending: Pending,
    /// What was told from the present read already.
    told: HashSet<(NodeId, Name)>,
}

/// The receiver of hints is gone.
struct Closed;

impl Reader {
    async fn run(mut self, mut inotify: AsyncFd<Inotify>) {
        let mut buffer = vec![0; BUFFER_LEN];
        let mut poll_at = Instant::now() + POLL;
        loop {
            let wake_at = self.pending.next.map_or(poll_at, |next| next.min(poll_at));
            let hints = tokio::select! {
                readable = inotify.readable_mut() => {
                    let Ok(mut guard) = readable else { return };
                    match guard.get_inner_mut().read_events(&mut buffer) {
                        Ok(events) => self.take(events),
                        Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                            guard.clear_ready();
                            continue;
                        }
                        Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                        Err(error) => {
                            tracing::error!(%error, "The watcher cannot read its events");
                            return;
                        }
                    }
                }
                () = sleep_until(wake_at) => Vec::new(),
            };
            let now = Instant::now();
            let due = self.pending.take_due(now);
            let due = due.into_iter().map(|(dir, name)| Hint::Touched { dir, name: Some(name) });
            let mut all: Vec<Hint> = hints.into_iter().chain(due).collect();
            if now >= poll_at {
                poll_at = now + POLL;
                let polled = lock(&self.map).polled.clone();
                all.extend(polled.into_iter().map(|dir| Hint::Touched { dir, name: None }));
            }
            if self.tell(all).await.is_err() {
                return;
            }
        }
    }

    async fn tell(&self, hints: Vec<Hint>) -> Result<(), Closed> {
        for hint in hints {
            self.hints.send(hint).await.map_err(|_| Closed)?;
        }
        Ok(())
    }

    /// Takes events in, and returns what is to be told at once.
    fn take(&mut self, events: inotify::Events<'_>) -> Vec<Hint> {
        let now = Instant::now();
        let mut hints = Vec::new();
        self.told.clear();
        let map = self.map.clone();
        let mut map = lock(&map);
        for event in events {
            if event.mask.contains(EventMask::Q_OVERFLOW) {
                hints.push(Hint::Rescan);
                continue;
            }
            let id = event.wd.get_watch_descriptor_id();
            if event.mask.contains(EventMask::IGNORED) {
                map.ended(id);
                continue;
            }
            let Some(dir) = map.nodes.get(&id).copied() else {
                continue;
            };
            if event.mask.contains(EventMask::UNMOUNT) {
                hints.push(Hint::Rescan);
                continue;
            }
            // Without a name it is about the directory itself, of which its parent is told too.
            let Some(name) = event.name.and_then(|name| Name::new(name.as_bytes()).ok()) else {
                continue;
            };
            if dir == NodeId::ROOT && name.as_bytes() == OWN_DIR {
                continue;
            }
            let is_write = event.mask.contains(EventMask::MODIFY);
            let is_dir = event.mask.contains(EventMask::ISDIR);
            let waits = is_write
                || (event.mask.intersects(EventMask::CREATE | EventMask::ATTRIB) && !is_dir);
            if waits && self.pending.delay(dir, &name, now, is_write) {
                continue;
            }
            let key = (dir, name.clone());
            self.pending.names.remove(&key);
            if self.told.insert(key) {
                hints.push(Hint::Touched { dir, name: Some(name) });
            }
        }
        hints
    }
}

#[cfg(test)]
mod tests {
    use std::fs::{self, File};
    use std::io::Write;
    use std::os::fd::AsFd;
    use std::os::unix::fs::PermissionsExt;
    use std::path::Path;

    use tempfile::TempDir;
    use tokio::sync::mpsc::{Receiver, channel};
    use tokio::time::timeout;

    use super::*;

    const A: NodeId = NodeId::from_bytes([1; 16]);
    const B: NodeId = NodeId::from_bytes([2; 16]);

    fn start() -> (TempDir, InotifyWatcher, Receiver<Hint>) {
        let (sender, hints) = channel(64);
        (TempDir::new().unwrap(), InotifyWatcher::start(sender).unwrap(), hints)
    }

    fn watch(watcher: &InotifyWatcher, dir: NodeId, path: &Path) {
        let handle = File::open(path).unwrap();
        assert_eq!(watcher.watch(dir, handle.as_fd()), Watched::Yes);
    }

    fn touched(dir: NodeId, name: &str) -> Hint {
        Hint::Touched { dir, name: Some(Name::try_from(name).unwrap()) }
    }

    /// Waits for a hint, and returns what came before it.
    async fn wait_for(hints: &mut Receiver<Hint>, hint: &Hint) -> Vec<Hint> {
        let mut before = Vec::new();
        let wait = async {
            while let Some(next) = hints.recv().await {
                if next == *hint {
                    return;
                }
                before.push(next);
            }
            panic!("the watcher ended");
        };
        if timeout(Duration::from_secs(20), wait).await.is_err() {
            panic!("no {hint:?}, only {before:?}");
        }
        before
    }

    #[tokio::test]
    async fn a_closed_writer_is_told_at_once_and_an_open_one_after_a_while() {
        let (dir, watcher, mut hints) = start();
        watch(&watcher, A, dir.path());
        let begin = Instant::now();
        fs::write(dir.path().join("closed"), b"x").unwrap();
        wait_for(&mut hints, &touched(A, "closed")).await;
        assert!(begin.elapsed() < QUIET, "{:?}", begin.elapsed());
        let mut open = File::create(dir.path().join("open")).unwrap();
        let begin = Instant::now();
        open.write_all(b"x").unwrap();
        wait_for(&mut hints, &touched(A, "open")).await;
        assert!(begin.elapsed() >= QUIET, "{:?}", begin.elapsed());
        fs::hard_link(dir.path().join("open"), dir.path().join("link")).unwrap();
        wait_for(&mut hints, &touched(A, "link")).await;
        fs::set_permissions(dir.path().join("link"), PermissionsExt::from_mode(0o600)).unwrap();
        wait_for(&mut hints, &touched(A, "link")).await;
        fs::remove_file(dir.path().join("link")).unwrap();
        wait_for(&mut hints, &touched(A, "link")).await;
    }

    #[tokio::test]
    async fn a_watch_follows_its_directory_and_takes_the_name_it_was_last_given() {
        let (dir, watcher, mut hints) = start();
        let (one, two) = (dir.path().join("one"), dir.path().join("two"));
        fs::create_dir(&one).unwrap();
        watch(&watcher, A, &one);
        fs::rename(&one, &two).unwrap();
        fs::create_dir(two.join("x")).unwrap();
        wait_for(&mut hints, &touched(A, "x")).await;
        watch(&watcher, B, &two);
        fs::create_dir(two.join("y")).unwrap();
        assert_eq!(wait_for(&mut hints, &touched(B, "y")).await, []);
        // The end of A's watch is not the end of B's, which is the same.
        watcher.unwatch(A);
        fs::create_dir(two.join("z")).unwrap();
        assert_eq!(wait_for(&mut hints, &touched(B, "z")).await, []);
        watch(&watcher, A, dir.path());
        watcher.unwatch(B);
        fs::create_dir(two.join("unheard")).unwrap();
        fs::create_dir(dir.path().join("heard")).unwrap();
        assert_eq!(wait_for(&mut hints, &touched(A, "heard")).await, []);
        // A deleted directory's watch ends by itself.
        watch(&watcher, B, &two);
        fs::remove_dir_all(&two).unwrap();
        wait_for(&mut hints, &touched(A, "two")).await;
        let limit = Instant::now() + Duration::from_secs(20);
        while lock(&watcher.watches).descriptors.contains_key(&B) {
            assert!(Instant::now() < limit, "the watch stays");
            tokio::task::yield_now().await;
        }
        assert_eq!(lock(&watcher.watches).nodes.len(), 1);
    }

    #[tokio::test]
    async fn a_look_after_the_watch_misses_nothing_of_a_new_directory() {
        let (dir, watcher, mut hints) = start();
        watch(&watcher, A, dir.path());
        for round in 0..20 {
            let name = format!("d{round}");
            let path = dir.path().join(&name);
            let maker = std::thread::spawn({
                let path = path.clone();
                move || {
                    fs::create_dir(&path).unwrap();
                    for file in 0..100 {
                        fs::write(path.join(format!("f{file}")), b"x").unwrap();
                    }
                }
            });
            wait_for(&mut hints, &touched(A, &name)).await;
            watch(&watcher, B, &path);
            let mut seen: HashSet<Name> = fs::read_dir(&path)
                .unwrap()
                .map(|entry| Name::new(entry.unwrap().file_name().as_bytes()).unwrap())
                .collect();
            let all = async {
                while seen.len() < 100 {
                    if let Some(Hint::Touched { dir: B, name: Some(name) }) = hints.recv().await {
                        seen.insert(name);
                    }
                }
            };
            timeout(Duration::from_secs(20), all).await.unwrap();
            maker.join().unwrap();
        }
    }

    #[tokio::test]
    async fn an_overflow_asks_for_a_rescan_and_our_own_directory_is_never_told() {
        let (dir, watcher, mut hints) = start();
        watch(&watcher, NodeId::ROOT, dir.path());
        fs::create_dir(dir.path().join(".picloud")).unwrap();
        let limit: usize = fs::read_to_string("/proc/sys/fs/inotify/max_queued_events")
            .unwrap()
            .trim()
            .parse()
            .unwrap();
        // Nobody reads meanwhile: this test has one thread, and does not wait.
        let (one, two) = (dir.path().join("1"), dir.path().join("2"));
        fs::create_dir(&one).unwrap();
        for _ in 0..=limit / 4 {
            fs::rename(&one, &two).unwrap();
            fs::rename(&two, &one).unwrap();
        }
        let before = wait_for(&mut hints, &Hint::Rescan).await;
        assert!(before.len() < limit, "equal hints of one read are told once");
        assert!(!before.contains(&touched(NodeId::ROOT, ".picloud")));
        fs::create_dir(dir.path().join("after")).unwrap();
        wait_for(&mut hints, &touched(NodeId::ROOT, "after")).await;
    }
}
