//! Directories that their owner made read-only, made writable for the moment of a change.
//!
//! A directory's permissions are synced, and so is what other devices put into it: a directory of
//! mode 0555 gets new entries as any other. Only its owner may do that, and only what is the
//! agent's own user's is lent; whatever else is denied stays denied.
//!
//! Nobody shall take that moment for a change of permissions. So looks wait meanwhile
//! ([`DiskFolder::steady`]); and a note is made first, a link in staging whose target tells the mode
//! and the path, by which the next start gives back what a kill left lent. A link, because it holds
//! its text from the moment it is there.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::{PoisonError, RwLockReadGuard};

use rustix::fs::{AtFlags, CWD, Mode, OFlags};
use rustix::io::Errno;

use super::folder::{DiskFolder, proc_path, statx_fd};
use super::look;
use crate::engine::folder::{Folder, Own};
use crate::model::{Name, RelPath};

/// What filling a directory takes: writing and searching.
const NEEDED: u32 = 0o300;

const SET_GROUP_ID: u32 = 0o2000;

const NOTE_PREFIX: &str = "lent-";

const HANDLE: OFlags =
    OFlags::PATH.union(OFlags::DIRECTORY).union(OFlags::NOFOLLOW).union(OFlags::CLOEXEC);

/// A directory that is lent; given back when dropped.
struct Lent<'a> {
    folder: &'a DiskFolder,
    dir: BorrowedFd<'a>,
    mode: u32,
    note: String,
}

impl DiskFolder {
    /// Keeps permissions from being lent for as long as the guard lives: what is seen meanwhile are
    /// the real ones.
    pub(super) fn steady(&self) -> RwLockReadGuard<'_, ()> {
        // Nothing is behind the lock that could be left half-way.
        self.lending().read().unwrap_or_else(PoisonError::into_inner)
    }

    /// Does something in directories; when that is denied, once more while those of them that are
    /// ours and closed to us are lent.
    pub(super) fn in_dirs<T>(
        &self,
        dirs: &[BorrowedFd<'_>],
        act: impl Fn() -> Result<T, Errno>,
    ) -> Result<T, Errno> {
        match act() {
            Err(Errno::ACCESS) => {}
            other => return other,
        }
        let _alone = self.lending().write().unwrap_or_else(PoisonError::into_inner);
        let mut lent = Vec::with_capacity(dirs.len());
        for dir in dirs {
            lent.extend(self.lend(*dir)?);
        }
        if lent.is_empty() { Err(Errno::ACCESS) } else { act() }
    }

    /// As [`DiskFolder::in_dirs`], for a rename: a directory that gets another parent has to be
    /// writable itself, for its `..`.
    pub(super) fn in_dirs_of_rename(
        &self,
        from: (BorrowedFd<'_>, &Name),
        to: (BorrowedFd<'_>, &Name),
        act: impl Fn() -> Result<(), Errno>,
    ) -> Result<(), Errno> {
        match act() {
            Err(Errno::ACCESS) => {}
            other => return other,
        }
        let moved: Vec<OwnedFd> = [from, to]
            .iter()
            .filter_map(|(dir, name)| {
                rustix::fs::openat(dir, name.as_bytes(), HANDLE, Mode::empty()).ok()
            })
            .collect();
        let mut dirs = vec![from.0, to.0];
        dirs.extend(moved.iter().map(AsFd::as_fd));
        self.in_dirs(&dirs, act)
    }

    /// Makes a directory writable, if it is ours and is not.
    fn lend<'a>(&'a self, dir: BorrowedFd<'a>) -> Result<Option<Lent<'a>>, Errno> {
        let statx = statx_fd(dir)?;
        let mode = u32::from(statx.stx_mode) & 0o7777;
        let is_ours = statx.stx_uid == rustix::process::geteuid().as_raw();
        // The kernel would take the bit away, and it could not be given back.
        let loses_bit =
            mode & SET_GROUP_ID != 0 && statx.stx_gid != rustix::process::getegid().as_raw();
        if mode & NEEDED == NEEDED || !is_ours || loses_bit {
            return Ok(None);
        }
        let Some(path) = self.path_of(dir) else { return Ok(None) };
        let note = format!("{NOTE_PREFIX}{:x}", statx.stx_ino);
        let mut text = format!("{mode:o} {} ", statx.stx_ino).into_bytes();
        text.extend_from_slice(&path);
        let staging = self.own_dir(Own::Staging);
        match rustix::fs::symlinkat(&*text, &*staging, &*note) {
            Err(Errno::EXIST) => {
                rustix::fs::unlinkat(&*staging, &*note, AtFlags::empty())?;
                rustix::fs::symlinkat(&*text, &*staging, &*note)?;
            }
            other => other?,
        }
        let lent = Lent { folder: self, dir, mode, note };
        set_mode(dir, mode | NEEDED)?;
        Ok(Some(lent))
    }

    /// Returns where in the folder an open directory is now; nothing when it is not, or so deep that
    /// the kernel does not tell.
    fn path_of(&self, dir: BorrowedFd<'_>) -> Option<Vec<u8>> {
        let place = |fd| rustix::fs::readlinkat(CWD, proc_path(fd), Vec::new()).ok();
        let (root, dir) = (place(self.root())?.into_bytes(), place(dir)?.into_bytes());
        match dir.strip_prefix(&*root)? {
            [] => Some(Vec::new()),
            [b'/', path @ ..] => Some(path.to_vec()),
            [..] => None,
        }
    }

    /// Gives back what a kill left lent.
    pub(super) fn give_back(&self) -> Result<(), Errno> {
        let staging = self.own_dir(Own::Staging);
        let names = look::list(staging.as_fd())
            .map_err(|error| Errno::from_io_error(&error).unwrap_or(Errno::IO))?;
        for name in names.iter().filter(|n| n.as_bytes().starts_with(NOTE_PREFIX.as_bytes())) {
            let Ok(text) = rustix::fs::readlinkat(&*staging, name.as_bytes(), Vec::new()) else {
                continue;
            };
            // A note of what is not there any more is of no use; recovery removes it.
            if let Some((mode, ino, path)) = parse(text.as_bytes())
                && let Ok(dir) = self.open_handle(&path, HANDLE)
                && let Ok(statx) = statx_fd(dir.as_fd())
                && statx.stx_ino == ino
                && u32::from(statx.stx_mode) & 0o7777 == mode | NEEDED
            {
                set_mode(dir.as_fd(), mode)?;
            }
        }
        Ok(())
    }
}

impl Drop for Lent<'_> {
    fn drop(&mut self) {
        // RACE: a person's `chmod` since it was lent is kept unless it comes between these two steps.
        let is_lent = statx_fd(self.dir)
            .is_ok_and(|statx| u32::from(statx.stx_mode) & 0o7777 == self.mode | NEEDED);
        let given_back = if is_lent { set_mode(self.dir, self.mode) } else { Ok(()) };
        match given_back {
            Ok(()) => {
                let staging = self.folder.own_dir(Own::Staging);
                // A note that stays is removed by the next recovery.
                rustix::fs::unlinkat(&*staging, &*self.note, AtFlags::empty()).ok();
            }
            Err(errno) => {
                let dir = proc_path(self.dir);
                tracing::warn!(?dir, %errno, "a directory could not be made read-only again");
            }
        }
    }
}

fn set_mode(dir: BorrowedFd<'_>, mode: u32) -> Result<(), Errno> {
    rustix::fs::chmodat(CWD, proc_path(dir), Mode::from_raw_mode(mode), AtFlags::empty())
}

/// Reads a note: the mode, the inode and the path.
fn parse(text: &[u8]) -> Option<(u32, u64, RelPath)> {
    let mut parts = text.splitn(3, |byte| *byte == b' ');
    let mut text = || std::str::from_utf8(parts.next()?).ok();
    let mode = u32::from_str_radix(text()?, 8).ok()?;
    let ino = text()?.parse().ok()?;
    let path = parts.next()?;
    let path = if path.is_empty() { RelPath::ROOT } else { RelPath::parse(path).ok()? };
    Some((mode & 0o7777, ino, path))
}
