//! One synced folder on a real disk: [`DiskFolder`], and what is done with it.
//!
//! Every path is resolved beneath an open handle of the folder's root, without following symbolic
//! links, without leaving the file system, and never by a name that was put together into an
//! absolute path: so nothing outside the folder can be read or written, whatever the names and
//! links in it. The only paths given to the kernel beside are the folder's own, to see that it is
//! still the same, and `/proc/self/fd/N`, which names an open handle.

mod examine;
mod folder;
mod hash;
mod identity;
mod kept;
mod lend;
mod look;
mod pool;
mod stage;
#[cfg(test)]
mod tests;

pub use examine::{Contents, Examined, Named};
pub use folder::DiskFolder;
pub use hash::{FileContent, LastDir, OpenFile};
pub use identity::{FolderError, Identity, Linked};
pub use kept::Kept;
pub use look::OpenDir;
pub use pool::{ApplyPool, PoolClosed, Report};
pub use stage::StagedFile;

use rustix::fs::{FileType, Statx, StatxFlags, StatxTimestamp};
use rustix::io::Errno;

use crate::engine::folder::Fault;
use crate::engine::seam::Stat;
use crate::model::{Attrs, Kind, Timestamp};

/// What is asked of `statx`.
const STATX: StatxFlags = StatxFlags::BASIC_STATS.union(StatxFlags::BTIME);

/// Returns what the kernel told of an entry.
fn stat_of(statx: &Statx) -> Stat {
    let kind = match FileType::from_raw_mode(statx.stx_mode.into()) {
        FileType::RegularFile => Some(Kind::File),
        FileType::Directory => Some(Kind::Dir),
        FileType::Symlink => Some(Kind::Link),
        _ => None,
    };
    let has_birth = statx.stx_mask & StatxFlags::BTIME.bits() != 0;
    Stat {
        kind,
        ino: statx.stx_ino,
        birth: if has_birth { timestamp(statx.stx_btime) } else { Timestamp::default() },
        size: match kind {
            Some(Kind::File | Kind::Link) => statx.stx_size,
            Some(Kind::Dir) | None => 0,
        },
        mtime: timestamp(statx.stx_mtime),
        ctime: timestamp(statx.stx_ctime),
        attrs: match kind {
            // A link has no permissions of its own, whatever a file system says.
            Some(Kind::Link) => Attrs { mode: 0 },
            _ => Attrs::from_mode(statx.stx_mode.into()),
        },
    }
}

fn timestamp(time: StatxTimestamp) -> Timestamp {
    Timestamp::new(time.tv_sec, time.tv_nsec).unwrap_or_default()
}

/// Returns what an error of the kernel means.
fn fault(errno: Errno) -> Fault {
    match errno {
        Errno::NOENT | Errno::NOTDIR | Errno::LOOP | Errno::STALE => Fault::NotFound,
        Errno::EXIST => Fault::Exists,
        Errno::NOTEMPTY => Fault::NotEmpty,
        Errno::INVAL | Errno::ILSEQ | Errno::NAMETOOLONG => Fault::BadName,
        other => Fault::Other(reason(other)),
    }
}

/// Returns an error of the kernel in words for a person.
fn reason(errno: Errno) -> String {
    match errno {
        Errno::NOSPC => "The disk is full; make room".into(),
        Errno::DQUOT => "Your quota on this disk is used up; make room".into(),
        Errno::ACCESS | Errno::PERM => "Permission denied".into(),
        Errno::ROFS => "The disk is mounted read-only".into(),
        Errno::XDEV => "Another file system is mounted there; a folder is one file system".into(),
        Errno::IO => "The disk reports an error".into(),
        Errno::FBIG => "The disk cannot hold a file of that size".into(),
        Errno::MFILE | Errno::NFILE => "Too many files are open".into(),
        other => std::io::Error::from(other).to_string(),
    }
}
