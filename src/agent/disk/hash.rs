//! Reading a file to tell what it holds: stat, read, stat; if it moved underneath, the read is void.

use std::fs::File;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use rustix::time::{ClockId, clock_gettime};

use super::folder::{DiskFolder, statx_fd};
use super::{fault, stat_of};
use crate::content::{ChunkError, Chunker};
use crate::engine::folder::Fault;
use crate::engine::seam::{DirRef, Hashed, Spot, Stat};
use crate::model::{Checked, ChunkId, Content, ContentList, Extent, Kind, Name, Timestamp};
use crate::protocol::limits::INLINE_LEN_MAX;
use crate::reading::read_at;

/// Changed within this time before it was read, a file may change once more without a trace: some
/// file systems' clocks go in ticks of 10 ms.
const RACY_NANOS: i128 = 20_000_000;

/// What reading a file came to, and what was learnt on the way.
#[derive(Debug)]
pub struct FileContent {
    /// For the engine.
    pub hashed: Hashed,
    /// The list, when the content is one.
    pub list: Option<ContentList>,
    /// The bytes, of a content that travels inside the commit.
    pub small: Option<Vec<u8>>,
}

impl FileContent {
    const fn nothing(hashed: Hashed) -> Self {
        Self { hashed, list: None, small: None }
    }
}

/// A regular file that is open for reading, whatever becomes of its name.
#[derive(Debug)]
pub struct OpenFile {
    file: File,
    stat: Stat,
}

/// The directory in which a thread read last, open: files are read by directories. It keeps a disk from being
/// unmounted, so it is closed when there is nothing more to read.
#[derive(Debug, Default)]
pub struct LastDir(Option<(DirRef, Arc<OwnedFd>)>);

impl LastDir {
    /// Closes it.
    pub fn close(&mut self) {
        self.0 = None;
    }

    fn open(&mut self, folder: &DiskFolder, dir: &DirRef) -> Result<BorrowedFd<'_>, Fault> {
        let last = match self.0.take() {
            Some(last) if last.0 == *dir => last,
            _ => (dir.clone(), folder.open_ref(dir)?.0),
        };
        Ok(self.0.insert(last).1.as_fd())
    }
}

impl DiskFolder {
    /// Reads a file and tells its content; each extent goes to `sink`, with its bytes when it is a
    /// chunk. What `sink` got counts only if the read was not void. Blocks on the disk.
    pub fn hash(
        &self,
        at: &Spot,
        stat: &Stat,
        chunker: &mut Chunker,
        sink: impl FnMut(Extent, &[u8]),
    ) -> FileContent {
        self.hash_in(&mut LastDir::default(), at, stat, chunker, sink)
    }

    /// Like [`DiskFolder::hash`], for one file after the other.
    pub fn hash_in(
        &self,
        dir: &mut LastDir,
        at: &Spot,
        stat: &Stat,
        chunker: &mut Chunker,
        mut sink: impl FnMut(Extent, &[u8]),
    ) -> FileContent {
        let file =
            dir.open(self, &at.dir).and_then(|dir| OpenFile::open(dir, &at.name, Some(stat)));
        let unreadable = |reason: String| FileContent::nothing(Hashed::Unreadable { reason });
        let file = match file {
            Ok(file) => file,
            Err(Fault::NotFound | Fault::Changed) => return FileContent::nothing(Hashed::Changed),
            Err(fault) => return unreadable(fault.to_string()),
        };
        let started = now();
        let mut small = Vec::new();
        let chunked = chunker.read_file(&file.file, |extent, bytes| {
            if bytes.len() <= INLINE_LEN_MAX as usize && small.is_empty() {
                small.extend_from_slice(bytes);
            }
            sink(extent, bytes);
            Ok::<_, ChunkError>(())
        });
        let chunked = match (chunked, file.is_unchanged()) {
            (_, Ok(false)) => return FileContent::nothing(Hashed::Changed),
            (_, Err(fault)) => return unreadable(fault.to_string()),
            (Err(error), Ok(true)) => return unreadable(error.to_string()),
            (Ok(chunked), Ok(true)) => chunked,
        };
        if chunked.content.len() != file.stat.size {
            return FileContent::nothing(Hashed::Changed);
        }
        let is_small = chunked.list.is_none() && chunked.content.len() <= INLINE_LEN_MAX.into();
        FileContent {
            hashed: Hashed::Content {
                stat: file.stat,
                content: chunked.content,
                // A modification sets the change time to the present, and nothing else can set it:
                // only one that is about now can hide another. (In a far future, after a jump of
                // the clock, it would differ.)
                racy: (nanos(file.stat.ctime) - started).abs() <= RACY_NANOS,
            },
            list: chunked.list,
            small: is_small.then_some(small),
        }
    }

    /// Opens a file to read parts of it.
    ///
    /// # Errors
    /// [`Fault::Changed`] when it is not what is expected.
    pub fn open_file(&self, at: &Spot, expected: &Stat) -> Result<OpenFile, Fault> {
        let (dir, _) = self.open_ref(&at.dir)?;
        let file = OpenFile::open(dir.as_fd(), &at.name, Some(expected))?;
        if file.stat.unchanged(expected) { Ok(file) } else { Err(Fault::Changed) }
    }
}

impl OpenFile {
    /// Opens a regular file, and nothing else: the inode of `expected`, if given.
    fn open(dir: BorrowedFd<'_>, name: &Name, expected: Option<&Stat>) -> Result<Self, Fault> {
        // Opening some special files does something; so look first. The check of the handle below
        // is what counts, and a FIFO put there in between does not block.
        let stat = super::folder::statx_at(dir, name).map_err(fault)?;
        if stat.kind != Some(Kind::File) {
            return Err(Fault::Changed);
        }
        let flags =
            OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
        let open = |flags| rustix::fs::openat(dir, name.as_bytes(), flags, Mode::empty());
        let file = match open(flags | OFlags::NOATIME) {
            // Only the owner may leave the access time alone.
            Err(Errno::PERM) => open(flags),
            other => other,
        }
        .map_err(fault)?;
        let stat = stat_of(&statx_fd(file.as_fd()).map_err(fault)?);
        let is_expected = expected.is_none_or(|expected| stat.same_inode(expected));
        if stat.kind == Some(Kind::File) && is_expected {
            Ok(Self { file: file.into(), stat })
        } else {
            Err(Fault::Changed)
        }
    }

    /// Returns its stat when it was opened.
    #[must_use]
    pub const fn stat(&self) -> &Stat {
        &self.stat
    }

    /// Returns whether nobody touched it since it was opened.
    ///
    /// # Errors
    /// When it cannot be asked.
    pub fn is_unchanged(&self) -> Result<bool, Fault> {
        let statx = statx_fd(self.file.as_fd()).map_err(fault)?;
        Ok(stat_of(&statx).unchanged(&self.stat))
    }

    /// Reads `len` bytes at `offset`.
    ///
    /// # Errors
    /// [`Fault::Changed`] when there are not as many.
    pub fn read_at(&self, offset: u64, len: usize) -> Result<Vec<u8>, Fault> {
        read_at(&self.file, offset, len).map_err(|error| match Errno::from_io_error(&error) {
            Some(errno) => fault(errno),
            None => Fault::Changed,
        })
    }

    /// Reads a chunk at `offset`; nothing when other bytes are there.
    ///
    /// # Errors
    /// When it cannot be read.
    pub fn read_chunk_at(
        &self,
        offset: u64,
        id: &ChunkId,
        len: u32,
    ) -> Result<Option<Checked<'static>>, Fault> {
        match self.read_at(offset, len as usize) {
            Ok(bytes) => Ok(Checked::new(*id, bytes).ok()),
            Err(Fault::Changed) => Ok(None),
            Err(fault) => Err(fault),
        }
    }
}

/// Reads the file at a name in an open directory.
pub(super) fn content_at(dir: BorrowedFd<'_>, name: &Name) -> Result<(Stat, Content), Fault> {
    let file = OpenFile::open(dir, name, None)?;
    let chunked = Chunker::new()
        .read_file(&file.file, |_, _| Ok::<_, ChunkError>(()))
        .map_err(|error| Fault::Other(error.to_string()))?;
    if file.is_unchanged()? && chunked.content.len() == file.stat.size {
        Ok((file.stat, chunked.content))
    } else {
        Err(Fault::Changed)
    }
}

fn now() -> i128 {
    // The clock the kernel stamps files with.
    let now = clock_gettime(ClockId::RealtimeCoarse);
    i128::from(now.tv_sec) * 1_000_000_000 + i128::from(now.tv_nsec)
}

fn nanos(time: Timestamp) -> i128 {
    i128::from(time.secs) * 1_000_000_000 + i128::from(time.nanos())
}
