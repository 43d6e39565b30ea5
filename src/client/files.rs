//! Looking at, putting and getting single files, straight on the server.

use std::collections::VecDeque;
use std::fs::File;
use std::io::{self, Read};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use tokio::task::spawn_blocking;

use super::local::{NewFile, open_regular};
use super::transfer::{Source, Target, Uploaded};
use super::{ClientError, Result, Session, TransferError};
use crate::model::{
    Attrs, Body, Change, ChangeOp, ChunkData, Content, Name, Node, NodeId, Place, Refusal, RelPath,
    Rev, Timestamp, Usage, Versioned,
};
use crate::protocol::limits::{BATCH_COUNT_MAX, IN_FLIGHT_MAX, INLINE_LEN_MAX};
use crate::protocol::message::{ChangeResult, Commit, Committed, ListDir, Lookup, Space};

/// How often a change is planned anew when others were faster, or a file is read anew.
const TRIES_MAX: u32 = 5;

/// Whether there is room for as many bytes more is asked before they are sent; what is less is soon
/// sent, and the answer to it says so.
const ROOM_ASKED_MIN: u64 = 1024 * 1024;

/// The clock that stamps files ticks at least this often (Linux: every 1 to 10 ms).
const TICK_MAX: Duration = Duration::from_millis(20);

/// A file, directory or link of the drive.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// Where it is.
    pub path: RelPath,
    /// Its id.
    pub id: NodeId,
    /// The rev of its last change.
    pub rev: Rev,
    /// What it is.
    pub node: Node,
}

impl Entry {
    fn new(path: RelPath, found: Versioned) -> Result<Self> {
        Ok(Self {
            path,
            id: found.id,
            rev: found.rev,
            node: found
                .node
                .ok_or(ClientError::Nonsense("a deleted node where a live one should be"))?,
        })
    }
}

/// The entries of a directory, fetched as they are needed.
#[derive(Debug)]
pub struct Listing {
    session: Session,
    path: RelPath,
    dir: NodeId,
    after: Option<Name>,
    fetched: VecDeque<Versioned>,
    more: bool,
}

impl Listing {
    /// Returns the next entry in the order of names.
    ///
    /// # Errors
    /// When the server cannot be asked.
    pub async fn next(&mut self) -> Result<Option<Entry>> {
        if self.fetched.is_empty() && self.more {
            let request =
                ListDir { drive: self.session.drive.id, dir: self.dir, after: self.after.clone() };
            let reply = self.session.connection.call(&request).await?;
            let last = reply.entries.last().and_then(|last| last.node.as_ref());
            let last = last.map(|node| node.place.name.clone());
            if reply.more && (last.is_none() || last <= self.after) {
                return Err(ClientError::Nonsense("a listing that does not go on"));
            }
            self.after = last;
            self.more = reply.more;
            self.fetched = reply.entries.into();
        }
        let Some(found) = self.fetched.pop_front() else {
            return Ok(None);
        };
        let name = found.node.as_ref().map(|node| node.place.name.clone());
        let name = name.ok_or(ClientError::Nonsense("a deleted node in a listing"))?;
        Entry::new(self.path.join(&name), found).map(Some)
    }
}

/// What to record with a file that is put.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PutOptions {
    /// Its permission bits; for a file that is replaced `None` keeps the ones it has, for a new one
    /// it means `0o644`.
    pub mode: Option<u32>,
    /// When its bytes were last modified.
    pub mtime: Timestamp,
}

/// A file that was put.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Stored {
    /// Its id.
    pub id: NodeId,
    /// The rev it got.
    pub rev: Rev,
    /// What it holds.
    pub content: Content,
    /// Whether it is new, rather than a new version.
    pub created: bool,
}

impl Session {
    /// Returns what is at a path, if there is something. The root itself has no entry.
    ///
    /// # Errors
    /// When the server cannot be asked.
    pub async fn stat(&self, path: &RelPath) -> Result<Option<Entry>> {
        if path.is_root() {
            return Err(ClientError::Root);
        }
        let request = Lookup { drive: self.drive.id, path: path.clone() };
        let found = self.connection.call(&request).await?.node;
        found.map(|found| Entry::new(path.clone(), found)).transpose()
    }

    /// Lists a directory.
    ///
    /// # Errors
    /// When there is no such directory.
    pub async fn list(&self, path: &RelPath) -> Result<Listing> {
        let dir = if path.is_root() {
            NodeId::ROOT
        } else {
            let path = || path.clone();
            match self.stat(&path()).await? {
                None => return Err(ClientError::NotFound { path: path() }),
                Some(entry) if entry.node.is_dir() => entry.id,
                Some(_) => return Err(ClientError::NotADirectory { path: path() }),
            }
        };
        Ok(Listing {
            session: self.clone(),
            path: path.clone(),
            dir,
            after: None,
            fetched: VecDeque::new(),
            more: true,
        })
    }

    async fn regular(&self, path: &RelPath) -> Result<(Entry, Content, Timestamp)> {
        let path = || path.clone();
        let entry = self.stat(&path()).await?;
        let entry = entry.ok_or_else(|| ClientError::NotFound { path: path() })?;
        match entry.node.body {
            Body::Dir => Err(ClientError::IsDirectory { path: path() }),
            Body::Link { .. } => Err(ClientError::IsLink { path: path() }),
            Body::File { content, mtime } => Ok((entry, content, mtime)),
        }
    }

    /// Puts a file of this machine, with its permissions and modification time. Directories on the
    /// way are made; a file that is there already gets a new version.
    ///
    /// # Errors
    /// When the file cannot be read or changes all the time, when a directory or link is at the
    /// path, or when the server does not accept it.
    pub async fn put_file(&self, local: &Path, remote: &RelPath) -> Result<Stored> {
        let failed = |action, source| ClientError::Local { action, path: local.to_owned(), source };
        // Before the bytes are sent: a path that cannot be is told at once.
        let plan = self.plan(remote).await?;
        for _ in 0..TRIES_MAX {
            let path = local.to_owned();
            let opening = spawn_blocking(move || open_regular(&path)).await;
            let file = opening
                .map_err(|error| failed("open", io::Error::other(error)))?
                .map_err(|source| failed("open", source))?;
            let mut before = file.metadata().map_err(|source| failed("read", source))?;
            if is_fresh(&before) {
                tokio::time::sleep(TICK_MAX).await;
                before = file.metadata().map_err(|source| failed("read", source))?;
            }
            self.check_room(remote, plan.growth(before.len())).await?;
            let uploaded = self.upload(Source::File(file)).await?;
            let file = uploaded.file.as_ref();
            let file = file.ok_or(ClientError::Transfer(TransferError::Abandoned))?;
            let after = file.metadata().map_err(|source| failed("read", source))?;
            let stamp = |meta: &std::fs::Metadata| {
                let times = (meta.mtime(), meta.mtime_nsec(), meta.ctime(), meta.ctime_nsec());
                (meta.ino(), meta.size(), times)
            };
            if stamp(&before) != stamp(&after) || uploaded.chunked.content.len() != after.size() {
                continue;
            }
            let nanos = u32::try_from(after.mtime_nsec()).unwrap_or_default();
            let options = PutOptions {
                mode: Some(after.mode()),
                mtime: Timestamp::new(after.mtime(), nanos).unwrap_or_default(),
            };
            return self.commit_file(remote, uploaded, options).await;
        }
        Err(ClientError::Unquiet { path: local.to_owned() })
    }

    /// Puts what a reader yields, up to its end. As [`Session::put_file`] otherwise.
    ///
    /// # Errors
    /// As there.
    pub async fn put(
        &self,
        reader: impl Read + Send + 'static,
        remote: &RelPath,
        options: PutOptions,
    ) -> Result<Stored> {
        self.plan(remote).await?;
        let uploaded = self.upload(Source::Reader(Box::new(reader))).await?;
        self.commit_file(remote, uploaded, options).await
    }

    /// Says that there is no room for a larger file before it is sent.
    async fn check_room(&self, remote: &RelPath, growth: u64) -> Result<()> {
        if growth < ROOM_ASKED_MIN {
            return Ok(());
        }
        // A server of an earlier version has no quota, or cannot be asked.
        let Ok(Space { used: Some(used), quota, .. }) = self.space().await else {
            return Ok(());
        };
        let usage = Usage { used, quota };
        if usage.has_room_for(growth) {
            return Ok(());
        }
        let (path, left) = (remote.clone(), usage.left().unwrap_or(0));
        Err(ClientError::OverQuota { path, needs: growth, left })
    }

    async fn upload(&self, source: Source) -> Result<Uploaded> {
        Ok(self.bulk.upload(source, None, INLINE_LEN_MAX).await?)
    }

    /// Commits a file whose content the server has, planning anew while others are faster.
    async fn commit_file(
        &self,
        remote: &RelPath,
        uploaded: Uploaded,
        options: PutOptions,
    ) -> Result<Stored> {
        let content = uploaded.chunked.content;
        let body = Body::File { content, mtime: options.mtime };
        // One id for all tries: a commit that was carried out although its answer was lost, or that
        // was refused for another reason, can then never make a second file.
        let fresh = self.fresh_id();
        let mut refused = None;
        for _ in 0..TRIES_MAX {
            let plan = self.plan(remote).await?;
            let mut changes = self.make_dirs(&plan)?;
            let (created, growth) = (plan.file.is_none(), plan.growth(content.len()));
            let mode = options.mode.map(Attrs::from_mode);
            let (node, base, op) = match plan.file {
                Some((id, rev, _)) => {
                    let body = Some(body.clone());
                    let (place, attrs) = (None, mode);
                    (id, rev, ChangeOp::Update { place, body, attrs })
                }
                None => {
                    let parent = changes.last().map_or(plan.parent, |last| last.node);
                    let node = Node {
                        place: Place { parent, name: plan.name.clone() },
                        body: body.clone(),
                        attrs: mode.unwrap_or(Attrs::from_mode(0o644)),
                    };
                    (fresh, Rev::ZERO, ChangeOp::Create(node))
                }
            };
            changes.push(Change::new(node, base, op));
            let chunks = uploaded.inline.iter().cloned().collect();
            let (result, usage) = self.commit(changes, chunks).await?;
            match result {
                Ok(rev) => {
                    return Ok(Stored { id: node, rev, content, created });
                }
                Err(
                    refusal @ (Refusal::Stale { .. }
                    | Refusal::NoParent
                    | Refusal::NameTaken { .. }),
                ) => refused = Some(refusal),
                Err(Refusal::OverQuota) => {
                    let left = usage.and_then(|usage| usage.left()).unwrap_or(0);
                    let path = remote.clone();
                    return Err(ClientError::OverQuota { path, needs: growth, left });
                }
                Err(refusal) => {
                    let path = remote.clone();
                    return Err(ClientError::Refused { path, refusal });
                }
            }
        }
        Err(ClientError::Refused {
            path: remote.clone(),
            refusal: refused.unwrap_or(Refusal::NoParent),
        })
    }

    /// Commits changes that stand or fall with the last one; returns what became of that one, and how much
    /// room is in use afterwards, if the server says so.
    async fn commit(
        &self,
        changes: Vec<Change>,
        chunks: Vec<ChunkData>,
    ) -> Result<(std::result::Result<Rev, Refusal>, Option<Usage>)> {
        let count = changes.len();
        let request = Commit { drive: self.drive.id, changes, chunks, deletions: None };
        let Committed { mut results, usage, .. } = self.connection.call(&request).await?;
        if results.len() != count {
            return Err(ClientError::Nonsense("a result for each change was due"));
        }
        match results.pop() {
            Some(ChangeResult::Accepted { rev }) => Ok((Ok(rev), usage)),
            Some(ChangeResult::Refused(refusal)) => Ok((Err(refusal), usage)),
            None => Err(ClientError::Nonsense("no result for a change")),
        }
    }

    /// Finds out what is on the way to a path.
    async fn plan(&self, remote: &RelPath) -> Result<Plan> {
        let (dir, name) = remote.split_last().ok_or(ClientError::Root)?;
        let depth = dir.names().len();
        if depth >= BATCH_COUNT_MAX {
            return Err(ClientError::Refused {
                path: remote.clone(),
                refusal: Refusal::Illegal {
                    reason: format!("it is more than {BATCH_COUNT_MAX} directories deep"),
                },
            });
        }
        let file = match self.stat(remote).await? {
            None => None,
            Some(entry) => match entry.node.body {
                Body::File { content, .. } => Some((entry.id, entry.rev, content.len())),
                Body::Dir => return Err(ClientError::IsDirectory { path: entry.path }),
                Body::Link { .. } => return Err(ClientError::IsLink { path: entry.path }),
            },
        };
        let mut plan = Plan { file, parent: NodeId::ROOT, missing: vec![], name: name.clone() };
        if plan.file.is_some() {
            return Ok(plan);
        }
        // Upwards, some at a time, to the deepest directory that is there.
        let paths: Vec<RelPath> =
            (1..=depth).rev().map(|len| RelPath::from_names(dir.names()[..len].to_vec())).collect();
        for some in paths.chunks(IN_FLIGHT_MAX / 2) {
            let mut pending = Vec::with_capacity(some.len());
            for path in some {
                let request = Lookup { drive: self.drive.id, path: path.clone() };
                pending.push(self.connection.send(&request).await?);
            }
            for (path, pending) in some.iter().zip(pending) {
                match pending.reply().await?.node {
                    None => plan.missing.extend(path.names().last().cloned()),
                    Some(found) => {
                        let entry = Entry::new(path.clone(), found)?;
                        if !entry.node.is_dir() {
                            return Err(ClientError::NotADirectory { path: entry.path });
                        }
                        plan.parent = entry.id;
                        return Ok(plan);
                    }
                }
            }
        }
        Ok(plan)
    }

    /// Returns the creations of the directories that are missing, from the top.
    fn make_dirs(&self, plan: &Plan) -> Result<Vec<Change>> {
        let mut parent = plan.parent;
        let mut changes = Vec::with_capacity(plan.missing.len() + 1);
        for name in plan.missing.iter().rev() {
            let node = Node {
                place: Place { parent, name: name.clone() },
                body: Body::Dir,
                attrs: Attrs::from_mode(0o755),
            };
            parent = self.fresh_id();
            changes.push(Change::new(parent, Rev::ZERO, ChangeOp::Create(node)));
        }
        Ok(changes)
    }

    /// Gets a file: it appears at `local` whole, checked, durable, with its permissions and
    /// modification time, or not at all. A file that is there already is replaced. Holes stay
    /// holes.
    ///
    /// # Errors
    /// When there is no such file in the drive, or it cannot be written here.
    pub async fn get_file(&self, remote: &RelPath, local: &Path) -> Result<Entry> {
        let (entry, content, mtime) = self.regular(remote).await?;
        let failed =
            |source| ClientError::Local { action: "write", path: local.to_owned(), source };
        let path: PathBuf = local.to_owned();
        let len = content.len();
        let creating = spawn_blocking(move || NewFile::create(&path, len)).await;
        let target = creating.map_err(|error| failed(io::Error::other(error)))?.map_err(failed)?;
        let target = match self.bulk.download(&content, target).await {
            Ok(target) => target,
            Err(TransferError::Target(source)) => return Err(failed(source)),
            Err(error) => return Err(error.into()),
        };
        let attrs = entry.node.attrs;
        spawn_blocking(move || target.finish(attrs, mtime))
            .await
            .map_err(|error| failed(io::Error::other(error)))?
            .map_err(failed)?;
        Ok(entry)
    }

    /// Gets a file into a writer, front to back, holes as zeros. Each piece is checked before it
    /// is written; an error may come after some pieces were.
    ///
    /// # Errors
    /// When there is no such file in the drive, or the writer fails.
    pub async fn get<W: io::Write + Send + 'static>(
        &self,
        remote: &RelPath,
        writer: W,
    ) -> Result<(Entry, W)> {
        let (entry, content, _) = self.regular(remote).await?;
        let Stream(writer) = self.bulk.download(&content, Stream(writer)).await?;
        Ok((entry, writer))
    }
}

/// Returns whether a file changed so shortly ago that another change may not show in its times.
fn is_fresh(meta: &std::fs::Metadata) -> bool {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    let changed = Duration::new(
        u64::try_from(meta.ctime()).unwrap_or_default(),
        u32::try_from(meta.ctime_nsec()).unwrap_or_default(),
    );
    since.is_ok_and(|now| now.abs_diff(changed) < TICK_MAX)
}

/// What is on the way to a path.
struct Plan {
    /// The file that is there already, and its length.
    file: Option<(NodeId, Rev, u64)>,
    /// The deepest directory on the way that is there.
    parent: NodeId,
    /// The names of those that are not, from the bottom.
    missing: Vec<Name>,
    /// The name of the file.
    name: Name,
}

impl Plan {
    /// Returns how many bytes more a file of this length makes used.
    fn growth(&self, len: u64) -> u64 {
        len.saturating_sub(self.file.map_or(0, |(_, _, old)| old))
    }
}

/// A target that is written front to back.
struct Stream<W>(W);

impl<W: io::Write + Send + 'static> Target for Stream<W> {
    fn write(&mut self, _offset: u64, plain: &[u8]) -> io::Result<()> {
        self.0.write_all(plain)
    }

    fn hole(&mut self, _offset: u64, len: u64) -> io::Result<()> {
        io::copy(&mut io::repeat(0).take(len), &mut self.0)?;
        Ok(())
    }
}

/// A file that is made beside its place.
impl Target for NewFile {
    fn write(&mut self, offset: u64, plain: &[u8]) -> io::Result<()> {
        self.write_at(offset, plain)
    }

    fn hole(&mut self, _offset: u64, _len: u64) -> io::Result<()> {
        // The file got its length when it was made: what is not written is a hole.
        Ok(())
    }
}

/// A file is read from the beginning whatever its position.
impl From<File> for Source {
    fn from(file: File) -> Self {
        Self::File(file)
    }
}
