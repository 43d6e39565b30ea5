//! Looking at a directory: its entries and their stats, and nothing made up.

use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

use rustix::fs::{OFlags, RawDir};
use rustix::io::Errno;

use super::folder::{DiskFolder, is_linked, statx_at, statx_fd};
use super::{reason, stat_of};
use crate::agent::ignore::{DirRules, FILE_LEN_MAX, FILE_NAME, Ignore, Loaded};
use crate::engine::apply::OWN_DIR;
use crate::engine::folder::{Fault, Folder, FolderGone};
use crate::engine::seam::{DirRef, Found, INNER_FOLDER, Look, Seen, Stat};
use crate::model::{Kind, Name, RelPath};

/// Bytes of entries asked of the kernel at once.
const BUFFER_LEN: usize = 64 * 1024;

/// How often an entry that changes its kind while it is looked at is looked at again.
const TRIES_MAX: u32 = 5;

/// A directory that is open for a look; a watch can be set on it first.
#[derive(Debug)]
pub struct OpenDir {
    folder: DiskFolder,
    path: Arc<RelPath>,
    handle: Arc<OwnedFd>,
}

impl AsFd for OpenDir {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.handle.as_fd()
    }
}

impl DiskFolder {
    /// Opens the directory that `dir` tells of for a look. The inner error is what the look came to
    /// when it cannot be opened.
    ///
    /// # Errors
    /// When the folder is gone.
    pub fn open_for_look(&self, dir: &DirRef) -> Result<Result<OpenDir, Look>, FolderGone> {
        let look = match self.open_ref(dir) {
            Ok((handle, _)) => {
                return Ok(Ok(OpenDir { folder: self.clone(), path: dir.path.clone(), handle }));
            }
            Err(Fault::NotFound | Fault::Changed) => Look::Gone,
            Err(Fault::Gone(gone)) => return Err(gone),
            Err(fault) => Look::Unreadable { reason: fault.to_string() },
        };
        // That a directory is gone is worth something only while the folder is there.
        self.check()?;
        Ok(Err(look))
    }

    /// Opens and looks: at all of a directory, or at some names in it.
    ///
    /// # Errors
    /// When the folder is gone.
    pub fn look(
        &self,
        dir: &DirRef,
        names: Option<&[Name]>,
        ignore: &Ignore,
    ) -> Result<Look, FolderGone> {
        match self.open_for_look(dir)? {
            Ok(open) => open.look(names, ignore),
            Err(look) => Ok(look),
        }
    }
}

impl OpenDir {
    /// Looks: at all of the directory, or at some names in it. Blocks on the disk.
    ///
    /// # Errors
    /// When the folder is gone.
    pub fn look(&self, names: Option<&[Name]>, ignore: &Ignore) -> Result<Look, FolderGone> {
        // One that was known before it became a folder of its own: what is in it is another
        // agent's now, and nothing that is missing there was deleted.
        let is_inner = !self.path.is_root() && is_linked(self.handle.as_fd(), None);
        self.folder.note_inner(&self.path, is_inner);
        if is_inner {
            self.folder.check()?;
            return Ok(Look::Unreadable { reason: INNER_FOLDER.to_owned() });
        }
        let looked = self.entries(names, ignore);
        // Checked after the listing: a listing that ends early because the folder went away must
        // not count.
        self.folder.check()?;
        Ok(match looked {
            Ok((dir, entries)) => Look::Entries { dir, entries },
            Err(Errno::NOENT | Errno::STALE) if self.was_removed() => Look::Gone,
            Err(errno) => Look::Unreadable { reason: reason(errno) },
        })
    }

    /// Returns whether the directory was removed since it was opened: an open handle of one that was
    /// cannot be listed any more. Nothing or another one is then at its path.
    fn was_removed(&self) -> bool {
        let ino = statx_fd(self.handle.as_fd()).map(|statx| statx.stx_ino);
        match self.folder.open_anyway(&self.path) {
            Ok((_, stat)) => ino.is_ok_and(|ino| ino != stat.ino),
            Err(fault) => matches!(fault, Fault::NotFound),
        }
    }

    fn entries(&self, names: Option<&[Name]>, ignore: &Ignore) -> Result<(Stat, Vec<Seen>), Errno> {
        let mut rules = ignore.rules(&self.path, |at| self.load_rules(at));
        let mut entries = match names {
            Some(names) if self.folder.folds_case() => self.look_exactly(names, &mut rules)?,
            Some(names) => self.look_at(names, &mut rules)?,
            None => self.look_at_all(&mut rules)?,
        };
        let statx = {
            let _steady = self.folder.steady();
            statx_fd(self.handle.as_fd())?
        };
        let patterns = entries
            .iter()
            .find(|seen| seen.name.as_bytes() == FILE_NAME)
            .map(|seen| seen.found.as_ref().map(|found| found.stat));
        if patterns.is_some() || names.is_none() {
            let before = ignore.generation();
            let stat = patterns.flatten().filter(|stat| stat.kind == Some(Kind::File));
            let load = || self.read_rules(&self.handle).map(|(_, loaded)| loaded);
            ignore.note(&self.path, stat, load);
            if ignore.generation() != before {
                let mut rules = ignore.rules(&self.path, |at| self.load_rules(at));
                for seen in &mut entries {
                    if let Some(found) = &mut seen.found {
                        let is_dir = found.stat.kind == Some(Kind::Dir);
                        found.ignored = rules.is_ignored(seen.name.as_bytes(), is_dir);
                    }
                }
            }
        }
        Ok((stat_of(&statx), entries))
    }

    fn look_at_all(&self, rules: &mut DirRules) -> Result<Vec<Seen>, Errno> {
        // A listing of its own: the offset of the shared handle belongs to nobody.
        let listing = reopen(self.handle.as_fd())?;
        let mut entries = Vec::new();
        each_entry(listing.as_fd(), |name| {
            if name == OWN_DIR {
                return Ok(());
            }
            // The kernel gives no other names.
            let Ok(name) = Name::new(name) else {
                return Err(Errno::ILSEQ);
            };
            if let Some(found) = self.find(&name, rules)? {
                entries.push(Seen { name, found: Some(found) });
            }
            Ok(())
        })?;
        Ok(entries)
    }

    fn look_at(&self, names: &[Name], rules: &mut DirRules) -> Result<Vec<Seen>, Errno> {
        names
            .iter()
            .map(|name| {
                let found = if name.as_bytes() == OWN_DIR { None } else { self.find(name, rules)? };
                Ok(Seen { name: name.clone(), found })
            })
            .collect()
    }

    /// Looks at names where the disk answers to other spellings of them, too: only the listing
    /// tells which is there.
    fn look_exactly(&self, names: &[Name], rules: &mut DirRules) -> Result<Vec<Seen>, Errno> {
        let mut listed: std::collections::HashMap<Name, Option<Found>> =
            self.look_at_all(rules)?.into_iter().map(|seen| (seen.name, seen.found)).collect();
        Ok(names
            .iter()
            .map(|name| Seen { name: name.clone(), found: listed.remove(name).flatten() })
            .collect())
    }

    /// Returns what is at a name; nothing when it is gone.
    fn find(&self, name: &Name, rules: &mut DirRules) -> Result<Option<Found>, Errno> {
        for _ in 0..TRIES_MAX {
            let seen = {
                let _steady = self.folder.steady();
                statx_at(self.handle.as_fd(), name)
            };
            let stat = match seen {
                Ok(stat) => stat,
                Err(Errno::NOENT | Errno::NOTDIR | Errno::STALE) => return Ok(None),
                // A name that this disk cannot hold is not there.
                Err(Errno::NAMETOOLONG | Errno::INVAL | Errno::ILSEQ) => return Ok(None),
                Err(errno) => return Err(errno),
            };
            let target = if stat.kind == Some(Kind::Link) {
                match rustix::fs::readlinkat(&*self.handle, name.as_bytes(), Vec::new()) {
                    Ok(target) => Some(target.into_bytes()),
                    // It is no link any more, or gone.
                    Err(Errno::INVAL | Errno::NOENT) => continue,
                    Err(errno) => return Err(errno),
                }
            } else {
                None
            };
            let is_dir = stat.kind == Some(Kind::Dir);
            return Ok(Some(Found {
                stat,
                target,
                ignored: rules.is_ignored(name.as_bytes(), is_dir),
                is_folder: is_dir && is_linked(self.handle.as_fd(), Some(name)),
            }));
        }
        Err(Errno::BUSY)
    }

    fn load_rules(&self, dir: &RelPath) -> Option<(Stat, Loaded)> {
        if *dir == *self.path {
            return self.read_rules(&self.handle);
        }
        let (handle, _) = self.folder.open_anyway(dir).ok()?;
        self.read_rules(&handle)
    }

    fn read_rules(&self, handle: &Arc<OwnedFd>) -> Option<(Stat, Loaded)> {
        let name = Name::new(FILE_NAME).ok()?;
        let stat = self.folder.stat(handle, &name).ok()?;
        if stat.kind != Some(Kind::File) {
            return None;
        }
        let read = self.folder.read_file(handle, &name, FILE_LEN_MAX);
        Some((stat, read.map_err(|fault| fault.to_string())))
    }
}

/// Lists the names in a directory.
pub(super) fn list(dir: BorrowedFd<'_>) -> Result<Vec<Name>, std::io::Error> {
    let listing = reopen(dir)?;
    let mut names = Vec::new();
    each_entry(listing.as_fd(), |name| {
        names.push(Name::new(name).map_err(|_| Errno::ILSEQ)?);
        Ok(())
    })?;
    Ok(names)
}

fn reopen(dir: BorrowedFd<'_>) -> Result<OwnedFd, Errno> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    rustix::fs::openat(dir, ".", flags, rustix::fs::Mode::empty())
}

fn each_entry(
    dir: BorrowedFd<'_>,
    mut visit: impl FnMut(&[u8]) -> Result<(), Errno>,
) -> Result<(), Errno> {
    let mut buffer = vec![MaybeUninit::uninit(); BUFFER_LEN];
    let mut listing = RawDir::new(dir, &mut buffer);
    while let Some(entry) = listing.next() {
        let entry = entry?;
        let name = entry.file_name().to_bytes();
        if name != b"." && name != b".." {
            visit(name)?;
        }
    }
    Ok(())
}
