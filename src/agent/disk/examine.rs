//! A look at a folder from outside its agent: which folder it is, who has it open, what its file system
//! can do, and what lies in it. The folder is not locked, so that an agent can have it meanwhile.

use std::collections::HashSet;
use std::hash::{BuildHasher, RandomState};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::fs::{Dir, FileType, Mode};
use rustix::io::Errno;

use super::folder::{DIR_FLAGS, Probed, make_private_dir, open_one, probe, read_identity};
use super::identity::{FolderError, Identity, Linked};
use super::reason;
use crate::checkup;
use crate::engine::apply::OWN_DIR;
use crate::model::{folded, why_not_portable};

/// The most entries that are looked at, and for how long.
const ENTRIES_MAX: u64 = 2_000_000;
const LOOK_MAX: Duration = Duration::from_secs(30);

/// Directories below one another that are gone into: as deep as a path can be given to the kernel.
const PATH_LEN_MAX: usize = 4000;

/// So many of a kind are named.
const NAMED_MAX: usize = 3;

/// A linked folder, looked at from outside.
#[derive(Debug)]
pub struct Examined {
    root: OwnedFd,
    own: OwnedFd,
    path: PathBuf,
    /// What it says of itself.
    pub linked: Linked,
    /// The process that has it open, as [`checkup::lock_holder`] tells.
    pub holder: Option<u32>,
}

/// Some paths, of which the first few are named.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Named {
    /// How many there are.
    pub count: u64,
    /// The first, each with what is to be said of it.
    pub first: Vec<String>,
}

/// What lies in a folder.
#[derive(Debug, Default)]
pub struct Contents {
    /// Directories, the folder itself too.
    pub dirs: u64,
    /// Everything.
    pub entries: u64,
    /// Whether the look came to its end.
    pub is_whole: bool,
    /// What cannot be looked into, with the reason.
    pub unreadable: Named,
    /// Names that some system cannot hold, with the reason.
    pub not_portable: Named,
    /// Names that differ from another in the same directory by case or Unicode form only.
    pub clashing: Named,
}

impl Examined {
    /// Looks at the folder at a path, which should be this one.
    ///
    /// # Errors
    /// When it is not there, or not this one.
    pub fn look(path: &Path, identity: Identity) -> Result<Self, FolderError> {
        let io = |reason: String| FolderError::Io { path: path.to_owned(), reason };
        let root = match rustix::fs::open(
            path,
            DIR_FLAGS & !rustix::fs::OFlags::NOFOLLOW,
            Mode::empty(),
        ) {
            Ok(root) => root,
            Err(Errno::NOENT | Errno::NOTDIR) => {
                return Err(FolderError::Missing { path: path.to_owned() });
            }
            Err(errno) => return Err(io(reason(errno))),
        };
        let own = match open_dir(root.as_fd(), OWN_DIR) {
            Ok(own) => own,
            Err(Errno::NOENT) => return Err(FolderError::NotLinked { path: path.to_owned() }),
            Err(errno) => return Err(io(reason(errno))),
        };
        let (_, linked) = read_identity(path, own.as_fd())?;
        if linked.identity != identity {
            return Err(FolderError::OtherIdentity { path: path.to_owned() });
        }
        let holder = checkup::lock_holder(&path.join(".picloud/identity"))
            .map_err(|error| io(error.to_string()))?;
        Ok(Self { root, own, path: path.to_owned(), linked, holder })
    }

    /// Tries out whether the file system can do what the agent needs, with two files of its own in the
    /// agent's directory.
    ///
    /// # Errors
    /// When it cannot, or nothing can be written there.
    pub fn try_file_system(&self) -> Result<(), FolderError> {
        let failed =
            |errno: Errno| FolderError::Io { path: self.path.clone(), reason: reason(errno) };
        make_private_dir(&self.own, b"staging").map_err(failed)?;
        let staging = open_dir(self.own.as_fd(), b"staging").map_err(failed)?;
        // An agent that opens the folder at this moment tries the same, under other names.
        let pid = std::process::id();
        match probe(staging.as_fd(), &format!("doctor-{pid}")) {
            Ok(Probed::Fit(_)) => Ok(()),
            Ok(Probed::CannotExchange) => Err(FolderError::Unsupported { path: self.path.clone() }),
            Ok(Probed::RewritesNames) => {
                Err(FolderError::RewritesNames { path: self.path.clone() })
            }
            Err(errno) => Err(failed(errno)),
        }
    }

    /// Goes through the names in the folder, on its own file system and without following links.
    #[must_use]
    pub fn contents(&self) -> Contents {
        let mut found = Contents { is_whole: true, ..Contents::default() };
        let deadline = Instant::now() + LOOK_MAX;
        let hasher = RandomState::new();
        let mut waiting: Vec<Vec<u8>> = vec![Vec::new()];
        while let Some(path) = waiting.pop() {
            if found.entries >= ENTRIES_MAX || Instant::now() > deadline {
                found.is_whole = false;
                break;
            }
            found.dirs += 1;
            if let Err(errno) = self.look_into(&path, &hasher, &mut found, &mut waiting)
                && errno != Errno::NOENT
            {
                found.unreadable.add(&path, &reason(errno));
            }
        }
        found
    }

    fn look_into(
        &self,
        path: &[u8],
        hasher: &RandomState,
        found: &mut Contents,
        waiting: &mut Vec<Vec<u8>>,
    ) -> Result<(), Errno> {
        let handle = open_dir(self.root.as_fd(), if path.is_empty() { b"." } else { path })?;
        let mut seen = HashSet::new();
        for entry in Dir::read_from(&handle)? {
            let entry = entry?;
            let name = entry.file_name().to_bytes();
            if matches!(name, b"." | b"..") || (path.is_empty() && name == OWN_DIR) {
                continue;
            }
            found.entries += 1;
            if found.entries >= ENTRIES_MAX {
                return Ok(());
            }
            let whole = if path.is_empty() { name.to_owned() } else { [path, b"/", name].concat() };
            if let Some(why) = why_not_portable(name) {
                found.not_portable.add(&whole, why);
            }
            // 64 bits in place of the name: among so few names two are never the same by chance.
            if !seen.insert(hasher.hash_one(folded(name))) {
                found.clashing.add(&whole, "");
            }
            let is_dir = match entry.file_type() {
                FileType::Unknown => {
                    let flags = rustix::fs::AtFlags::SYMLINK_NOFOLLOW;
                    rustix::fs::statat(&handle, name, flags).is_ok_and(|stat| {
                        FileType::from_raw_mode(stat.st_mode) == FileType::Directory
                    })
                }
                kind => kind == FileType::Directory,
            };
            if is_dir && whole.len() <= PATH_LEN_MAX {
                waiting.push(whole);
            } else if is_dir {
                found.is_whole = false;
            }
        }
        Ok(())
    }
}

impl Named {
    fn add(&mut self, path: &[u8], why: &str) {
        self.count += 1;
        if self.first.len() < NAMED_MAX {
            let path = String::from_utf8_lossy(path);
            self.first.push(match why {
                "" => format!("{path:?}"),
                why => format!("{path:?}: {why}"),
            });
        }
    }
}

/// Opens a directory beneath another; also where there is no `openat2`, for one that nobody swaps.
fn open_dir(root: BorrowedFd<'_>, path: &[u8]) -> Result<OwnedFd, Errno> {
    match open_one(root, path, DIR_FLAGS) {
        Err(Errno::NOSYS) => rustix::fs::openat(root, path, DIR_FLAGS, Mode::empty()),
        opened => opened,
    }
}
