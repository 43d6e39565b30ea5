//! The store: metadata in a database, contents in packs, and the one thread that writes both.
//!
//! The writer takes all work that waits, appends its contents to a pack, makes them durable with one
//! `fdatasync`, applies everything in one transaction, makes that durable with one `fsync` of the
//! log, and only then answers. So an answer means stable storage, contents lie there before the row
//! that needs them, and a disk's latency is paid per group, not per file.

mod error;
pub mod examine;
pub mod metadata;
pub mod sqlite;

use std::collections::HashSet;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Instant;

use tokio::sync::{Semaphore, mpsc, oneshot};

use super::metrics::WriterMetrics;
use super::packs::{PackWriter, Packs, Record, RecordKind};
use crate::model::{ChunkId, ListId};
pub use error::StoreError;
use metadata::{Access, ChunkRow, Database, ListRow, Metadata, Result};

/// Jobs that may wait for the writer; a session that wants to add one more waits.
const QUEUE_MAX: usize = 256;

/// The most jobs of one group, so that no answer waits for ever.
const GROUP_COUNT_MAX: usize = 128;

/// A group is closed once it holds this many bytes of contents.
const GROUP_LEN_MAX: usize = 16 * 1024 * 1024;

/// Readers at work at once. More would only wait for the same two or four cores.
const READERS_MAX: usize = 4;

/// The files of a data directory.
#[derive(Debug, Clone)]
pub struct Layout {
    dir: PathBuf,
}

impl Layout {
    /// Makes the directory if there is none, for its owner only.
    ///
    /// # Errors
    /// When it cannot be made.
    pub fn create(dir: &Path) -> Result<Self> {
        use std::os::unix::fs::DirBuilderExt;
        if !dir.is_dir() {
            std::fs::DirBuilder::new()
                .recursive(true)
                .mode(0o700)
                .create(dir)
                .map_err(StoreError::file("create", dir))?;
        }
        Ok(Self { dir: dir.to_owned() })
    }

    /// The files of a directory that need not be there.
    #[must_use]
    pub fn at(dir: &Path) -> Self {
        Self { dir: dir.to_owned() }
    }

    /// The directory itself.
    #[must_use]
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// The database.
    #[must_use]
    pub fn database(&self) -> PathBuf {
        self.dir.join("picloud.db")
    }

    /// The packs.
    #[must_use]
    pub fn packs(&self) -> PathBuf {
        self.dir.join("packs")
    }

    /// The lock that a running server holds.
    #[must_use]
    pub fn lock(&self) -> PathBuf {
        self.dir.join("lock")
    }

    /// The server's own certificate and its key.
    #[must_use]
    pub fn identity(&self) -> PathBuf {
        self.dir.join("identity.pem")
    }

    /// Opens the database, for a moment's work by whatever process.
    ///
    /// # Errors
    /// When it cannot be opened.
    pub fn open_database(&self) -> Result<Arc<dyn Database>> {
        Ok(Arc::new(sqlite::Sqlite::open(&self.database())?))
    }
}

/// Runs one transaction on a connection of one's own.
///
/// # Errors
/// When the work or the database fails; nothing has happened then.
pub fn transact<T>(
    metadata: &mut dyn Metadata,
    work: impl FnOnce(&mut dyn Metadata) -> Result<T>,
) -> Result<T> {
    metadata.begin()?;
    let outcome = work(metadata).and_then(|value| metadata.commit().map(|()| value));
    if outcome.is_err() {
        metadata.rollback();
    }
    outcome
}

/// Contents that a write brings along.
#[derive(Debug, Default)]
pub struct Contents {
    /// The number of the drive that gets them.
    pub drive: i64,
    /// Chunks, checked against their ids already.
    pub chunks: Vec<Record>,
    /// A content list, checked already, and the length of the file it describes.
    pub list: Option<(Record, u64)>,
}

impl Contents {
    fn len(&self) -> usize {
        let list = self.list.iter().map(|(record, _)| record);
        self.chunks.iter().chain(list).map(|record| record.data.len()).sum()
    }
}

/// Something for the writer to do.
trait Job: Send {
    fn contents(&self) -> &Contents;
    /// Runs in the group's transaction; what it did is undone when it fails.
    fn run(&mut self, metadata: &mut dyn Metadata) -> Result<()>;
    /// Told once everything is durable, or has failed; before the next group begins.
    fn finish(self: Box<Self>, outcome: Result<()>);
}

struct Task<T, W, D> {
    contents: Contents,
    work: Option<W>,
    done: Option<D>,
    value: Option<T>,
    reply: Option<oneshot::Sender<Result<T>>>,
}

impl<T, W, D> Job for Task<T, W, D>
where
    T: Send,
    W: FnOnce(&mut dyn Metadata) -> Result<T> + Send,
    D: FnOnce(std::result::Result<&T, &StoreError>) + Send,
{
    fn contents(&self) -> &Contents {
        &self.contents
    }

    fn run(&mut self, metadata: &mut dyn Metadata) -> Result<()> {
        if let Some(work) = self.work.take() {
            self.value = Some(work(metadata)?);
        }
        Ok(())
    }

    fn finish(mut self: Box<Self>, outcome: Result<()>) {
        let outcome = outcome.and_then(|()| self.value.take().ok_or(StoreError::Closed));
        if let Some(done) = self.done.take() {
            done(outcome.as_ref());
        }
        if let Some(reply) = self.reply.take() {
            // Nobody listens any more when the connection is gone; the work counts all the same.
            reply.send(outcome).unwrap_or_default();
        }
    }
}

/// The open store of a running server.
pub struct Store {
    database: Arc<dyn Database>,
    packs: Arc<Packs>,
    metrics: Arc<WriterMetrics>,
    idle_readers: Mutex<Vec<Box<dyn Metadata>>>,
    reading: Semaphore,
    jobs: Mutex<Option<mpsc::Sender<Box<dyn Job>>>>,
    writer: Mutex<Option<JoinHandle<()>>>,
    /// Held as long as the store is open.
    _lock: std::fs::File,
}

impl std::fmt::Debug for Store {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Store").field("database", &self.database).finish_non_exhaustive()
    }
}

impl Store {
    /// Opens the store for a server; there can be one at a time.
    ///
    /// # Errors
    /// When another server uses it, it cannot be opened, or is of a newer format.
    pub fn open(layout: &Layout, free_min: u64) -> Result<Arc<Self>> {
        let path = layout.lock();
        let lock = std::fs::OpenOptions::new()
            .create(true)
            .truncate(false)
            .write(true)
            .open(&path)
            .map_err(StoreError::file("open", &path))?;
        lock.try_lock().map_err(|error| match error {
            std::fs::TryLockError::WouldBlock => {
                StoreError::InUse { path: layout.dir().to_owned() }
            }
            std::fs::TryLockError::Error(error) => StoreError::file("lock", &path)(error),
        })?;
        let database = layout.open_database()?;
        let packs = Arc::new(Packs::open(&layout.packs())?);
        let mut metadata = database.connect(Access::Write)?;
        // Packs on a disk that is not mounted are not an empty store: what was written beside them
        // would be gone once they are back.
        match transact(&mut *metadata, |metadata| metadata.newest_pack())? {
            0 => {}
            newest => packs.check(newest)?,
        }
        let metrics = Arc::new(WriterMetrics::default());
        let mut writer = Writer {
            metadata,
            packs: PackWriter::open(Arc::clone(&packs), free_min)?,
            metrics: Arc::clone(&metrics),
        };
        let (jobs, queue) = mpsc::channel(QUEUE_MAX);
        let thread = std::thread::Builder::new()
            .name("writer".to_owned())
            .spawn(move || writer.run(queue))
            .map_err(StoreError::file("start the writer of", layout.dir()))?;
        Ok(Arc::new(Self {
            database,
            packs,
            metrics,
            idle_readers: Mutex::new(Vec::new()),
            reading: Semaphore::new(READERS_MAX),
            jobs: Mutex::new(Some(jobs)),
            writer: Mutex::new(Some(thread)),
            _lock: lock,
        }))
    }

    /// Returns the packs, for reading on a blocking thread.
    #[must_use]
    pub fn packs(&self) -> Arc<Packs> {
        Arc::clone(&self.packs)
    }

    /// Returns what the writer counts.
    #[must_use]
    pub fn metrics(&self) -> &WriterMetrics {
        &self.metrics
    }

    /// Returns how many jobs wait for the writer.
    #[must_use]
    pub fn queued(&self) -> usize {
        let jobs = self.jobs.lock().unwrap_or_else(PoisonError::into_inner);
        jobs.as_ref().map_or(0, |jobs| jobs.max_capacity() - jobs.capacity())
    }

    /// Asks the database, at one moment of it, on a blocking thread.
    ///
    /// # Errors
    /// When the question or the database fails.
    pub async fn read<T: Send + 'static>(
        self: &Arc<Self>,
        work: impl FnOnce(&mut dyn Metadata, &Packs) -> Result<T> + Send + 'static,
    ) -> Result<T> {
        let _permit = self.reading.acquire().await.map_err(|_| StoreError::Closed)?;
        let store = Arc::clone(self);
        let task = tokio::task::spawn_blocking(move || {
            let idle = || store.idle_readers.lock().unwrap_or_else(PoisonError::into_inner);
            let reader = idle().pop();
            let mut reader = match reader {
                Some(reader) => reader,
                None => store.database.connect(Access::Read)?,
            };
            let outcome = transact(&mut *reader, |metadata| work(metadata, &store.packs));
            idle().push(reader);
            outcome
        });
        task.await.map_err(|_| StoreError::Closed)?
    }

    /// Hands work to the writer and waits until it is durable.
    ///
    /// # Errors
    /// When the work fails or cannot be made durable; nothing has happened then.
    pub async fn write<T: Send + 'static>(
        &self,
        work: impl FnOnce(&mut dyn Metadata) -> Result<T> + Send + 'static,
    ) -> Result<T> {
        let reply = self.submit(Contents::default(), work, |_| ()).await?;
        reply.await.map_err(|_| StoreError::Closed)?
    }

    /// Hands contents and work to the writer, in the order of the calls. `done` is told on the
    /// writer's thread, before the writer does anything else.
    ///
    /// # Errors
    /// When the store is closed.
    pub async fn submit<T: Send + 'static>(
        &self,
        contents: Contents,
        work: impl FnOnce(&mut dyn Metadata) -> Result<T> + Send + 'static,
        done: impl FnOnce(std::result::Result<&T, &StoreError>) + Send + 'static,
    ) -> Result<oneshot::Receiver<Result<T>>> {
        let jobs = self.jobs.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let jobs = jobs.ok_or(StoreError::Closed)?;
        let (sender, receiver) = oneshot::channel();
        let task =
            Task { contents, work: Some(work), done: Some(done), value: None, reply: Some(sender) };
        jobs.send(Box::new(task)).await.map_err(|_| StoreError::Closed)?;
        Ok(receiver)
    }

    /// Lets the writer finish what it has, and waits for it. Nothing can be written afterwards.
    pub async fn close(&self) {
        drop(self.jobs.lock().unwrap_or_else(PoisonError::into_inner).take());
        let thread = self.writer.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(thread) = thread {
            let joined = tokio::task::spawn_blocking(move || thread.join()).await;
            if !matches!(joined, Ok(Ok(()))) {
                tracing::error!("the writer did not end as it should");
            }
        }
    }
}

struct Writer {
    metadata: Box<dyn Metadata>,
    packs: PackWriter,
    metrics: Arc<WriterMetrics>,
}

impl Writer {
    fn run(&mut self, mut queue: mpsc::Receiver<Box<dyn Job>>) {
        while let Some(first) = queue.blocking_recv() {
            let mut len = first.contents().len();
            let mut group = vec![first];
            while group.len() < GROUP_COUNT_MAX
                && len < GROUP_LEN_MAX
                && let Ok(job) = queue.try_recv()
            {
                len += job.contents().len();
                group.push(job);
            }
            self.process(group);
        }
    }

    fn process(&mut self, mut group: Vec<Box<dyn Job>>) {
        let mut outcomes: Vec<Result<()>> = group.iter().map(|_| Ok(())).collect();
        let begun = Instant::now();
        self.metrics.jobs.observe(group.len() as f64);
        let transacted = self.transact(&mut group, &mut outcomes);
        self.metrics.seconds.observe(begun.elapsed().as_secs_f64());
        if let Err(error) = transacted {
            self.metrics.failed.add(1);
            self.metadata.rollback();
            for outcome in outcomes.iter_mut().filter(|outcome| outcome.is_ok()) {
                *outcome = Err(error.clone());
            }
        }
        for (job, outcome) in group.into_iter().zip(outcomes) {
            job.finish(outcome);
        }
    }

    /// Fails as a whole, or leaves in `outcomes` which jobs failed alone.
    fn transact(&mut self, group: &mut [Box<dyn Job>], outcomes: &mut [Result<()>]) -> Result<()> {
        self.metadata.begin()?;
        self.store_contents(group, outcomes)?;
        for (job, outcome) in group.iter_mut().zip(outcomes.iter_mut()) {
            if outcome.is_ok() {
                self.metadata.savepoint()?;
                *outcome = job.run(&mut *self.metadata);
                match outcome {
                    Ok(()) => self.metadata.release()?,
                    Err(_) => self.metadata.undo()?,
                }
            }
        }
        self.metadata.commit()
    }

    /// Appends what the drives do not have yet. When that fails, the jobs that need it fail; those
    /// that bring nothing new go on, so that a full disk can still be looked at and emptied.
    fn store_contents(
        &mut self,
        group: &[Box<dyn Job>],
        outcomes: &mut [Result<()>],
    ) -> Result<()> {
        let mut seen = HashSet::new();
        let mut wanted: Vec<(i64, &Record, u64)> = Vec::new();
        for job in group {
            let contents = job.contents();
            let drive = contents.drive;
            for record in &contents.chunks {
                if seen.insert((drive, record.id))
                    && self.metadata.chunk(drive, ChunkId::from_bytes(record.id))?.is_none()
                {
                    wanted.push((drive, record, 0));
                }
            }
            if let Some((record, file_len)) = &contents.list
                && seen.insert((drive, record.id))
                && self.metadata.list(drive, ListId::from_bytes(record.id))?.is_none()
            {
                wanted.push((drive, record, *file_len));
            }
        }
        if wanted.is_empty() {
            return Ok(());
        }
        let records: Vec<&Record> = wanted.iter().map(|(_, record, _)| *record).collect();
        let locations = match self.packs.append(&records) {
            Ok(locations) => {
                self.metrics.records.add(records.len());
                self.metrics.record_bytes.add(records.iter().map(|record| record.data.len()).sum());
                locations
            }
            Err(error) => {
                tracing::error!(%error, cause = ?std::error::Error::source(&error).map(ToString::to_string), "contents could not be stored");
                // A job may also rest on contents that another of its group brings.
                let drives: HashSet<i64> = wanted.iter().map(|(drive, _, _)| *drive).collect();
                for (job, outcome) in group.iter().zip(outcomes.iter_mut()) {
                    let contents = job.contents();
                    let brings = !contents.chunks.is_empty() || contents.list.is_some();
                    if brings && drives.contains(&contents.drive) {
                        *outcome = Err(error.clone());
                    }
                }
                return Ok(());
            }
        };
        for ((drive, record, file_len), at) in wanted.into_iter().zip(locations) {
            match record.kind {
                RecordKind::Chunk => self.metadata.add_chunk(
                    drive,
                    &ChunkRow {
                        id: ChunkId::from_bytes(record.id),
                        plain_len: record.plain_len,
                        at,
                    },
                )?,
                RecordKind::List => self.metadata.add_list(
                    drive,
                    &ListRow { id: ListId::from_bytes(record.id), file_len, at },
                )?,
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{DriveId, Lineage, UserId};
    use crate::protocol::message::FailureCode;

    fn record(word: &str) -> Record {
        Record {
            kind: RecordKind::Chunk,
            codec: 0,
            plain_len: u32::try_from(word.len()).unwrap(),
            id: *ChunkId::of(word.as_bytes()).as_bytes(),
            data: Arc::new(word.into()),
        }
    }

    fn contents(word: &str) -> Contents {
        Contents { drive: 1, chunks: vec![record(word)], list: None }
    }

    fn add_user(metadata: &mut dyn Metadata, name: &str) -> Result<()> {
        let mut id = [0; 16];
        id[..name.len()].copy_from_slice(name.as_bytes());
        let (drive, lineage) = (DriveId::from_bytes(id), Lineage::from_bytes(id));
        metadata.add_user(UserId::from_bytes(id), name, drive, lineage, 0)?;
        Ok(())
    }

    async fn has(store: &Arc<Store>, word: &'static str) -> bool {
        let id = ChunkId::of(word.as_bytes());
        let found = store.read(move |metadata, packs| {
            let Some(row) = metadata.chunk(1, id)? else {
                return Ok(false);
            };
            let record = packs.read(row.at, id.as_bytes())?;
            assert_eq!(*record.data, word.as_bytes());
            Ok(true)
        });
        found.await.unwrap()
    }

    #[tokio::test]
    async fn a_job_that_fails_is_undone_alone_and_the_rest_of_its_group_counts() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(&Layout::create(dir.path()).unwrap(), 0).unwrap();
        // The writer is kept busy, so that the next three are one group.
        let (release, wait) = std::sync::mpsc::channel::<()>();
        let work = move |_: &mut dyn Metadata| {
            wait.recv().unwrap();
            Ok(())
        };
        let first = store.submit(Contents::default(), work, |_| ()).await.unwrap();
        let good = |name: &'static str| move |metadata: &mut dyn Metadata| add_user(metadata, name);
        let one = store.submit(contents("one"), good("one"), |_| ()).await.unwrap();
        let told = Arc::new(Mutex::new(false));
        let tell = Arc::clone(&told);
        let bad = |metadata: &mut dyn Metadata| -> Result<()> {
            add_user(metadata, "bad")?;
            Err(StoreError::request(FailureCode::Exists, "no"))
        };
        let done = move |outcome: std::result::Result<&(), &StoreError>| {
            *tell.lock().unwrap() = outcome.is_err();
        };
        let two = store.submit(contents("two"), bad, done).await.unwrap();
        let three = store.submit(contents("three"), good("three"), |_| ()).await.unwrap();
        release.send(()).unwrap();
        first.await.unwrap().unwrap();
        one.await.unwrap().unwrap();
        assert!(two.await.unwrap().is_err());
        assert!(*told.lock().unwrap());
        three.await.unwrap().unwrap();
        let users = store.read(|metadata, _| metadata.users()).await.unwrap();
        let names: Vec<_> = users.iter().map(|user| user.name.as_str()).collect();
        assert_eq!(names, ["one", "three"]);
        assert!(has(&store, "one").await && has(&store, "three").await);
        store.close().await;
        let closed = store.write(|_| Ok(())).await;
        assert!(matches!(closed, Err(StoreError::Closed)));
    }

    #[tokio::test]
    async fn a_full_disk_refuses_contents_but_lets_everything_else_pass() {
        let dir = tempfile::tempdir().unwrap();
        let layout = Layout::create(dir.path()).unwrap();
        let full = Store::open(&layout, u64::MAX / 2).unwrap();
        let refused = full.submit(contents("one"), |_| Ok(()), |_| ()).await.unwrap();
        let error = refused.await.unwrap().unwrap_err();
        assert_eq!(error.to_failure().code, FailureCode::DiskFull);
        assert_eq!(
            error.to_failure().message,
            "The server's disk is full: it needs more room, then it goes on by itself. Deleting synced \
             files frees none, since every version is kept"
        );
        full.write(|metadata| add_user(metadata, "alice")).await.unwrap();
        full.close().await;
        drop(full);
        let store = Store::open(&layout, 0).unwrap();
        assert!(!has(&store, "one").await);
        let put = store.submit(contents("one"), |_| Ok(()), |_| ()).await.unwrap();
        put.await.unwrap().unwrap();
        assert!(has(&store, "one").await);
    }

    #[tokio::test]
    async fn packs_that_are_not_there_are_not_an_empty_store() {
        let dir = tempfile::tempdir().unwrap();
        let layout = Layout::create(dir.path()).unwrap();
        let store = Store::open(&layout, 0).unwrap();
        let put = store.submit(contents("one"), |_| Ok(()), |_| ()).await.unwrap();
        put.await.unwrap().unwrap();
        store.close().await;
        drop(store);
        let away = dir.path().join("away");
        std::fs::rename(layout.packs(), &away).unwrap();
        for _ in 0..2 {
            let refused = Store::open(&layout, 0).unwrap_err().to_string();
            assert!(refused.contains("0000000001.pack\" is not there"), "{refused}");
        }
        std::fs::remove_dir(layout.packs()).unwrap();
        std::fs::rename(&away, layout.packs()).unwrap();
        assert!(has(&Store::open(&layout, 0).unwrap(), "one").await);
    }

    #[tokio::test]
    async fn there_is_one_server_per_directory_and_a_newer_format_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let layout = Layout::create(dir.path()).unwrap();
        let store = Store::open(&layout, 0).unwrap();
        let second = Store::open(&layout, 0).unwrap_err().to_string();
        assert!(second.starts_with("Another picloud-server uses "), "{second}");
        store.close().await;
        drop(store);
        let newer = rusqlite::Connection::open(layout.database()).unwrap();
        newer.pragma_update(None, "user_version", 5).unwrap();
        let refused = Store::open(&layout, 0).unwrap_err().to_string();
        assert!(
            refused
                .ends_with("has format 5, but this version reads up to 4: upgrade picloud-server"),
            "{refused}"
        );
    }

    #[tokio::test]
    async fn a_database_of_format_1_is_brought_up_to_date_with_what_it_holds() {
        let dir = tempfile::tempdir().unwrap();
        let layout = Layout::create(dir.path()).unwrap();
        let old = rusqlite::Connection::open(layout.database()).unwrap();
        old.execute_batch(include_str!("schema.sql")).unwrap();
        old.execute_batch(
            "INSERT INTO user (num, id, name, created_ms) VALUES (1, zeroblob(16), 'alice', 0);
             INSERT INTO device (num, id, user, name, token, added_ms)
                 VALUES (7, zeroblob(16), 1, 'one', zeroblob(32), 0);
             INSERT INTO gate VALUES (1, 7, 5, 600, 900, 5, NULL);
             INSERT INTO held VALUES (1, 7, zeroblob(16));
             INSERT INTO drive (num, id, owner, name, lineage, head, live, digest, created_ms)
                 VALUES (1, zeroblob(16), 1, 'alice', zeroblob(16), 4, 3, zeroblob(32), 0);
             INSERT INTO node (drive, id, rev, created_rev, author, parent, name, kind, mode, mtime_secs,
                     mtime_nanos, content, len) VALUES
                 (1, x'01010101010101010101010101010101', 1, 1, 7, zeroblob(16), x'64', 0, 493, NULL, NULL,
                     NULL, NULL),
                 (1, x'02020202020202020202020202020202', 2, 2, 7, zeroblob(16), x'66', 3, 420, 0, 0,
                     zeroblob(32), 1000),
                 (1, x'03030303030303030303030303030303', 3, 3, 7, zeroblob(16), x'67', 4, 420, 0, 0,
                     zeroblob(32), 6000000000),
                 (1, x'04040404040404040404040404040404', 4, 4, 7, NULL, NULL, NULL, NULL, NULL, NULL,
                     NULL, NULL);
             INSERT INTO drive (num, id, owner, name, lineage, digest, created_ms)
                 VALUES (2, randomblob(16), 1, 'empty', zeroblob(16), zeroblob(32), 0),
                        (3, randomblob(16), 1, 'sparse', zeroblob(16), zeroblob(32), 0);
             INSERT INTO node (drive, id, rev, created_rev, author, parent, name, kind, len)
                 VALUES (3, zeroblob(16), 1, 1, 7, zeroblob(16), x'61', 4, 9000000000000000000),
                        (3, randomblob(16), 2, 2, 7, zeroblob(16), x'62', 4, 9000000000000000000);
             PRAGMA user_version = 1;",
        )
        .unwrap();
        drop(old);
        let store = Store::open(&layout, 0).unwrap();
        let held = store.read(|metadata, _| metadata.held(1)).await.unwrap();
        let [row] = held.as_slice() else { panic!("{held:?}") };
        assert_eq!((row.deletions, row.since_ms, row.rejected), (1, 5, false));
        let decide = |metadata: &mut dyn Metadata| {
            metadata.decide_held(1, 7, crate::server::gate::Decision::Reject, 9)?;
            metadata.held(1)
        };
        assert!(store.write(decide).await.unwrap()[0].rejected);
        // The sizes of what is alive are added up; so are those of sparse files larger than any disk.
        let bytes = store
            .read(|metadata, _| {
                let drives = [metadata.drive(1)?, metadata.drive(2)?, metadata.drive(3)?];
                Ok((
                    drives.map(|drive| drive.map(|drive| drive.bytes)),
                    metadata.usage(1, Some(5))?,
                ))
            })
            .await
            .unwrap();
        let most = crate::model::Usage::USED_MAX;
        assert_eq!(bytes.0, [Some(6_000_001_000), Some(0), Some(most)]);
        assert_eq!(bytes.1.quota, Some(5), "as the settings say");
        let examination = examine::Examination::open(&layout.database()).unwrap();
        assert_eq!(examination.wrong_sums().unwrap(), []);
        let spoil = rusqlite::Connection::open(layout.database()).unwrap();
        spoil.execute("UPDATE drive SET bytes = 7 WHERE num <> 3", []).unwrap();
        assert_eq!(examination.wrong_sums().unwrap(), [(1, 7, 6_000_001_000), (2, 7, 0)]);
    }

    #[tokio::test]
    async fn what_a_drive_has_already_is_not_stored_again() {
        let dir = tempfile::tempdir().unwrap();
        let layout = Layout::create(dir.path()).unwrap();
        let store = Store::open(&layout, 0).unwrap();
        let size = || std::fs::metadata(layout.packs().join("0000000001.pack")).unwrap().len();
        let put = async |drive| {
            let contents = Contents { drive, ..contents("one") };
            store.submit(contents, |_| Ok(()), |_| ()).await.unwrap().await.unwrap().unwrap();
        };
        put(1).await;
        let once = size();
        put(1).await;
        assert_eq!(size(), once);
        put(2).await;
        assert!(size() > once, "another drive has it for itself");
    }
}
