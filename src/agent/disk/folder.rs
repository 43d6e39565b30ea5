//! The folder itself: opening it beneath its root, and the primitive operations of [`Folder`].

use std::collections::BTreeSet;
use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, PoisonError, RwLock};

use rustix::fs::{
    AtFlags, CWD, FlockOperation, Mode, OFlags, RenameFlags, ResolveFlags, Timespec, Timestamps,
    UTIME_OMIT,
};
use rustix::io::Errno;

use super::identity::{self, FolderError, Identity, Linked};
use super::{STATX, fault, look, reason, stat_of};
use crate::engine::apply::OWN_DIR;
use crate::engine::folder::{Fault, Folder, FolderGone, Own, Rename};
use crate::engine::seam::{DirRef, INNER_FOLDER, Stat};
use crate::model::{Attrs, Content, Kind, Name, RelPath, Timestamp};

/// The most directories remembered that are synced folders of their own.
const INNER_MAX: usize = 1000;

/// The longest path given to the kernel at once; longer ones are walked in pieces.
const PATH_PIECE_MAX: usize = 4000;

pub(super) const DIR_FLAGS: OFlags =
    OFlags::RDONLY.union(OFlags::DIRECTORY).union(OFlags::NOFOLLOW).union(OFlags::CLOEXEC);

/// Never across a symbolic link, a magic link or a mount, never upwards.
const BENEATH: ResolveFlags = ResolveFlags::BENEATH
    .union(ResolveFlags::NO_SYMLINKS)
    .union(ResolveFlags::NO_MAGICLINKS)
    .union(ResolveFlags::NO_XDEV);

/// A linked folder, open and locked for this process. Clones are the same folder.
#[derive(Debug, Clone)]
pub struct DiskFolder(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    path: PathBuf,
    root: Arc<OwnedFd>,
    device: (u32, u32),
    ino: u64,
    identity: Identity,
    /// Holds the lock.
    _lock: OwnedFd,
    /// What the identity file looked like when it was last read.
    identity_stat: Stat,
    staging: Arc<OwnedFd>,
    trash: Arc<OwnedFd>,
    parked: Arc<OwnedFd>,
    /// Whether this disk holds names for the same that differ in case.
    naming: Naming,
    next_staged: AtomicU64,
    /// Held for writing while a directory is lent.
    lending: RwLock<()>,
    /// Directories that the looks found to be synced folders of their own: nothing is done in them.
    inner: RwLock<BTreeSet<RelPath>>,
}

/// The room of a file system, in bytes.
#[derive(Debug, Clone, Copy)]
pub struct Space {
    /// What may still be written.
    pub free: u64,
    /// All there is.
    pub total: u64,
}

impl DiskFolder {
    /// Gives a folder its identity, and creates it if it is not there. A folder that has the very
    /// same identity already keeps it, and says from then on that it is of these settings.
    ///
    /// # Errors
    /// When it has another identity, an agent has it open, or it cannot be written.
    pub fn link(path: &Path, identity: Identity, config: Option<&Path>) -> Result<(), FolderError> {
        let io = |error: std::io::Error| FolderError::Io {
            path: path.to_owned(),
            reason: error.to_string(),
        };
        std::fs::create_dir_all(path).map_err(io)?;
        let errno = |errno: Errno| FolderError::Io { path: path.to_owned(), reason: reason(errno) };
        let root =
            rustix::fs::open(path, DIR_FLAGS & !OFlags::NOFOLLOW, Mode::empty()).map_err(errno)?;
        make_private_dir(&root, OWN_DIR).map_err(errno)?;
        let own = open_one(root.as_fd(), OWN_DIR, DIR_FLAGS).map_err(errno)?;
        let linked = Linked::new(identity, config);
        // Held until the new file is in the old one's place: no agent may open the folder meanwhile.
        let (has_identity, _locked) = match read_identity(path, own.as_fd()) {
            Ok((_, found)) if found.identity != identity => {
                return Err(FolderError::OtherIdentity { path: path.to_owned() });
            }
            Ok((_, found)) if found == linked => return Ok(()),
            Ok((file, _)) => (true, Some(lock(path, file)?)),
            Err(FolderError::NotLinked { .. }) => (false, None),
            Err(error) => return Err(error),
        };
        let temporary = "identity.new";
        match rustix::fs::unlinkat(&own, temporary, AtFlags::empty()) {
            Ok(()) | Err(Errno::NOENT) => {}
            Err(error) => return Err(errno(error)),
        }
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC;
        let file = rustix::fs::openat(&own, temporary, flags, Mode::from_raw_mode(0o600))
            .map_err(errno)?;
        let mut file = File::from(file);
        file.write_all(linked.to_text().as_bytes()).map_err(io)?;
        file.sync_all().map_err(io)?;
        let how = if has_identity { RenameFlags::empty() } else { RenameFlags::NOREPLACE };
        match rustix::fs::renameat_with(&own, temporary, &own, "identity", how) {
            Ok(()) => {}
            Err(Errno::EXIST) => {
                // Another links it at this very moment.
                rustix::fs::unlinkat(&own, temporary, AtFlags::empty()).map_err(errno)?;
                return Err(FolderError::Busy { path: path.to_owned() });
            }
            Err(Errno::INVAL) => {
                return Err(FolderError::Unsupported { path: path.to_owned() });
            }
            Err(error) => return Err(errno(error)),
        }
        rustix::fs::fsync(&own).map_err(errno)?;
        rustix::fs::fsync(&root).map_err(errno)
    }

    /// Returns what the folder at a path says of itself, if it is linked.
    ///
    /// # Errors
    /// When it cannot be read, or an agent has the folder open.
    pub fn linked_at(path: &Path) -> Result<Option<Linked>, FolderError> {
        let Ok(root) = rustix::fs::open(path, DIR_FLAGS & !OFlags::NOFOLLOW, Mode::empty()) else {
            return Ok(None);
        };
        match open_one(root.as_fd(), OWN_DIR, DIR_FLAGS) {
            Ok(own) => match read_identity(path, own.as_fd()) {
                // The lock goes with the file, at the end of this.
                Ok((file, linked)) => lock(path, file).map(|_| Some(linked)),
                Err(FolderError::NotLinked { .. }) => Ok(None),
                Err(error) => Err(error),
            },
            Err(_) => Ok(None),
        }
    }

    /// Opens a linked folder, and locks it against other agents.
    ///
    /// # Errors
    /// When it is not there, not this one, or not fit.
    pub fn open(path: &Path, identity: Identity) -> Result<Self, FolderError> {
        let errno = |errno: Errno| FolderError::Io { path: path.to_owned(), reason: reason(errno) };
        let root = match rustix::fs::open(path, DIR_FLAGS & !OFlags::NOFOLLOW, Mode::empty()) {
            Ok(root) => root,
            Err(Errno::NOENT | Errno::NOTDIR) => {
                return Err(FolderError::Missing { path: path.to_owned() });
            }
            Err(error) => return Err(errno(error)),
        };
        let own = match open_one(root.as_fd(), OWN_DIR, DIR_FLAGS) {
            Ok(own) => own,
            Err(Errno::NOENT) => {
                return Err(FolderError::NotLinked { path: path.to_owned() });
            }
            Err(error) => return Err(errno(error)),
        };
        let (identity_file, found) = read_identity(path, own.as_fd())?;
        if found.identity != identity {
            return Err(FolderError::OtherIdentity { path: path.to_owned() });
        }
        let identity_file = lock(path, identity_file)?;
        let own_dir = |name: &str| {
            make_private_dir(&own, name.as_bytes())?;
            open_one(own.as_fd(), name.as_bytes(), DIR_FLAGS).map(Arc::new)
        };
        let staging = own_dir("staging").map_err(errno)?;
        let statx = statx_fd(root.as_fd()).map_err(errno)?;
        let identity_stat = stat_of(&statx_fd(identity_file.as_fd()).map_err(errno)?);
        let named = rustix::fs::statx(&own, "identity", AtFlags::SYMLINK_NOFOLLOW, STATX);
        if stat_of(&named.map_err(errno)?).ino != identity_stat.ino {
            // It was linked anew since it was opened, and the lock is on the old file.
            return Err(FolderError::Busy { path: path.to_owned() });
        }
        let naming = match probe(staging.as_fd(), "probe").map_err(errno)? {
            Probed::Fit(naming) => naming,
            Probed::CannotExchange => {
                return Err(FolderError::Unsupported { path: path.to_owned() });
            }
            Probed::RewritesNames => {
                return Err(FolderError::RewritesNames { path: path.to_owned() });
            }
        };
        let folder = Self(Arc::new(Inner {
            path: path.to_owned(),
            device: (statx.stx_dev_major, statx.stx_dev_minor),
            ino: statx.stx_ino,
            identity,
            _lock: identity_file,
            identity_stat,
            trash: own_dir("trash").map_err(errno)?,
            parked: own_dir("parked").map_err(errno)?,
            staging,
            root: Arc::new(root),
            naming,
            next_staged: AtomicU64::new(1),
            lending: RwLock::new(()),
            inner: RwLock::default(),
        }));
        folder.give_back().map_err(errno)?;
        Ok(folder)
    }

    /// Returns the folder's path, for people.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.0.path
    }

    /// Returns which folder this is.
    #[must_use]
    pub fn identity(&self) -> Identity {
        self.0.identity
    }

    /// Returns whether this disk holds names for the same that differ in case.
    #[must_use]
    pub fn folds_case(&self) -> bool {
        self.0.naming.folds_case
    }

    pub(super) fn lending(&self) -> &RwLock<()> {
        &self.0.lending
    }

    pub(super) fn root(&self) -> BorrowedFd<'_> {
        self.0.root.as_fd()
    }

    /// Returns a name for a file in staging that no other has.
    pub(super) fn fresh_staged_name(&self) -> Result<Name, Fault> {
        let number = self.0.next_staged.fetch_add(1, Ordering::Relaxed);
        Name::new(format!("w{number:x}.part")).map_err(|error| Fault::Other(error.to_string()))
    }

    /// Returns how much room there is where staging is.
    ///
    /// # Errors
    /// When the file system does not say.
    pub fn space(&self) -> Result<Space, Fault> {
        let stat = rustix::fs::fstatvfs(&self.0.staging).map_err(fault)?;
        let bytes = |blocks: u64| blocks.saturating_mul(stat.f_frsize);
        Ok(Space { free: bytes(stat.f_bavail), total: bytes(stat.f_blocks) })
    }

    /// Opens the directory that `dir` tells of.
    ///
    /// # Errors
    /// [`Fault::Changed`] when another one is there.
    pub(super) fn open_ref(&self, dir: &DirRef) -> Result<(Arc<OwnedFd>, Stat), Fault> {
        let (handle, stat) = self.open_anyway(&dir.path)?;
        // The root's identity is known better than by its inode.
        if stat.ino == dir.ino || dir.path.is_root() {
            Ok((handle, stat))
        } else {
            Err(Fault::Changed)
        }
    }

    /// Opens a directory, also one that is a synced folder of its own.
    pub(super) fn open_anyway(&self, path: &RelPath) -> Result<(Arc<OwnedFd>, Stat), Fault> {
        let names = path.names();
        let handle = match names {
            [] => self.0.root.clone(),
            [first, rest @ ..] => {
                let is_ours = first.as_bytes() == OWN_DIR;
                let is_parked = rest.len() > 1 && rest[0].as_bytes() == b"parked";
                if is_ours && !is_parked {
                    return Err(Fault::NotFound);
                }
                Arc::new(self.open_beneath(names, DIR_FLAGS).map_err(fault)?)
            }
        };
        let _steady = self.steady();
        let stat = stat_of(&statx_fd(handle.as_fd()).map_err(fault)?);
        Ok((handle, stat))
    }

    /// Notes whether a directory is a synced folder of its own.
    pub(super) fn note_inner(&self, path: &RelPath, is_inner: bool) {
        let is_noted = |inner: &BTreeSet<RelPath>| inner.contains(path);
        if is_noted(&self.0.inner.read().unwrap_or_else(PoisonError::into_inner)) == is_inner {
            return;
        }
        let mut inner = self.0.inner.write().unwrap_or_else(PoisonError::into_inner);
        if !is_inner {
            inner.remove(path);
        } else if inner.len() < INNER_MAX {
            inner.insert(path.clone());
        }
    }

    fn is_inside_inner(&self, path: &RelPath) -> bool {
        let inner = self.0.inner.read().unwrap_or_else(PoisonError::into_inner);
        inner.iter().any(|inner| path.names().starts_with(inner.names()))
    }

    /// Opens a directory with these flags, the root too.
    pub(super) fn open_handle(&self, path: &RelPath, flags: OFlags) -> Result<OwnedFd, Errno> {
        match path.names() {
            [] => rustix::fs::openat(self.root(), ".", flags, Mode::empty()),
            names => self.open_beneath(names, flags),
        }
    }

    fn open_beneath(&self, names: &[Name], flags: OFlags) -> Result<OwnedFd, Errno> {
        let root = self.0.root.as_fd();
        let mut at: Option<OwnedFd> = None;
        let mut rest = names;
        while !rest.is_empty() {
            let mut len = 0;
            let count = rest
                .iter()
                .take_while(|name| {
                    len += name.as_bytes().len() + 1;
                    len <= PATH_PIECE_MAX
                })
                .count();
            let (piece, later) = rest.split_at(count);
            let flags = if later.is_empty() { flags } else { DIR_FLAGS };
            let dir = at.as_ref().map_or(root, AsFd::as_fd);
            let path = RelPath::from_names(piece.to_vec()).to_bytes();
            let next = open_one(dir, &path, flags).or_else(|errno| match errno {
                // No openat2 here.
                Errno::NOSYS => walk(dir, piece, flags),
                other => Err(other),
            })?;
            at = Some(next);
            rest = later;
        }
        at.ok_or(Errno::INVAL)
    }
}

impl Folder for DiskFolder {
    type Dir = Arc<OwnedFd>;

    fn check(&self) -> Result<(), FolderGone> {
        let gone =
            |reason: &str| FolderGone { reason: format!("{}: {reason}", self.0.path.display()) };
        let statx = rustix::fs::statx(CWD, &self.0.path, AtFlags::NO_AUTOMOUNT, STATX)
            .map_err(|errno| gone(&reason(errno)))?;
        if (statx.stx_dev_major, statx.stx_dev_minor) != self.0.device
            || statx.stx_ino != self.0.ino
        {
            return Err(gone("another directory is in its place"));
        }
        let path = [OWN_DIR, b"/identity"].concat();
        let flags = AtFlags::SYMLINK_NOFOLLOW | AtFlags::NO_AUTOMOUNT;
        let statx = rustix::fs::statx(&*self.0.root, path, flags, STATX)
            .map_err(|_| gone("its .picloud/identity is missing"))?;
        if stat_of(&statx) == self.0.identity_stat {
            return Ok(());
        }
        let own = open_one(self.0.root.as_fd(), OWN_DIR, DIR_FLAGS)
            .map_err(|_| gone("its .picloud is missing"))?;
        match read_identity(&self.0.path, own.as_fd()) {
            Ok((_, found)) if found.identity == self.0.identity => Ok(()),
            Ok(_) => Err(gone("its .picloud/identity is another folder's")),
            Err(error) => Err(gone(&error.to_string())),
        }
    }

    fn open_dir(&self, path: &RelPath) -> Result<(Self::Dir, Stat), Fault> {
        if self.is_inside_inner(path) {
            return Err(Fault::Other(INNER_FOLDER.to_owned()));
        }
        self.open_anyway(path)
    }

    fn own_dir(&self, own: Own) -> Self::Dir {
        match own {
            Own::Staging => self.0.staging.clone(),
            Own::Trash => self.0.trash.clone(),
            Own::Parked => self.0.parked.clone(),
        }
    }

    fn keeps_name(&self, name: &Name) -> bool {
        self.0.naming.keeps(name)
    }

    fn stat(&self, dir: &Self::Dir, name: &Name) -> Result<Stat, Fault> {
        let _steady = self.steady();
        statx_at(dir.as_fd(), name).map_err(fault)
    }

    fn list(&self, dir: &Self::Dir) -> Result<Vec<Name>, Fault> {
        look::list(dir.as_fd()).map_err(|error| Fault::Other(error.to_string()))
    }

    fn read_link(&self, dir: &Self::Dir, name: &Name) -> Result<Vec<u8>, Fault> {
        match rustix::fs::readlinkat(&**dir, name.as_bytes(), Vec::new()) {
            Ok(target) => Ok(target.into_bytes()),
            Err(Errno::INVAL) => Err(Fault::Changed),
            Err(errno) => Err(fault(errno)),
        }
    }

    fn content(&self, dir: &Self::Dir, name: &Name) -> Result<(Stat, Content), Fault> {
        super::hash::content_at(dir.as_fd(), name)
    }

    fn make_file(
        &self,
        dir: &Self::Dir,
        name: &Name,
        bytes: &[u8],
        attrs: Attrs,
        mtime: Option<Timestamp>,
    ) -> Result<(), Fault> {
        let mut file = create(dir.as_fd(), name)?;
        file.write_all(bytes).map_err(io_fault)?;
        set_on(&file, attrs, mtime)
    }

    fn read_file(&self, dir: &Self::Dir, name: &Name, limit: usize) -> Result<Vec<u8>, Fault> {
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
        let file =
            rustix::fs::openat(&**dir, name.as_bytes(), flags, Mode::empty()).map_err(fault)?;
        let mut bytes = Vec::new();
        let limit = u64::try_from(limit).unwrap_or(u64::MAX);
        File::from(file).take(limit.saturating_add(1)).read_to_end(&mut bytes).map_err(io_fault)?;
        if bytes.len() as u64 > limit {
            return Err(Fault::Other("The file is longer than it can be".into()));
        }
        Ok(bytes)
    }

    fn make_dir(&self, dir: &Self::Dir, name: &Name, attrs: Attrs) -> Result<(), Fault> {
        let mode = Mode::from_raw_mode(attrs.mode.into());
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let make = || {
            rustix::fs::mkdirat(&**dir, name.as_bytes(), mode)?;
            rustix::fs::openat(&**dir, name.as_bytes(), flags, Mode::empty())
        };
        // The process's umask took bits away, perhaps; a handle cannot be led astray by a swap.
        let made = self.in_dirs(&[dir.as_fd()], make).map_err(fault)?;
        let statx = statx_fd(made.as_fd()).map_err(fault)?;
        set_mode(made.as_fd(), statx.stx_mode, attrs)
    }

    fn make_link(&self, dir: &Self::Dir, name: &Name, target: &[u8]) -> Result<(), Fault> {
        let make = || rustix::fs::symlinkat(target, &**dir, name.as_bytes());
        self.in_dirs(&[dir.as_fd()], make).map_err(|errno| match errno {
            // A link on a file system that has none.
            Errno::PERM => Fault::Other("This disk cannot hold symbolic links".into()),
            other => fault(other),
        })
    }

    fn rename(
        &self,
        from: (&Self::Dir, &Name),
        to: (&Self::Dir, &Name),
        how: Rename,
    ) -> Result<(), Fault> {
        let flags = match how {
            Rename::NoReplace => RenameFlags::NOREPLACE,
            Rename::Exchange => RenameFlags::EXCHANGE,
        };
        let (from_name, to_name) = (from.1.as_bytes(), to.1.as_bytes());
        let rename = || rustix::fs::renameat_with(&**from.0, from_name, &**to.0, to_name, flags);
        self.in_dirs_of_rename((from.0.as_fd(), from.1), (to.0.as_fd(), to.1), rename)
            .map_err(fault)
    }

    fn unlink(&self, dir: &Self::Dir, name: &Name) -> Result<(), Fault> {
        let unlink = || rustix::fs::unlinkat(&**dir, name.as_bytes(), AtFlags::empty());
        self.in_dirs(&[dir.as_fd()], unlink).map_err(fault)
    }

    fn remove_dir(&self, dir: &Self::Dir, name: &Name) -> Result<(), Fault> {
        let remove = || rustix::fs::unlinkat(&**dir, name.as_bytes(), AtFlags::REMOVEDIR);
        match self.in_dirs(&[dir.as_fd()], remove) {
            Err(Errno::EXIST) => Err(Fault::NotEmpty),
            other => other.map_err(fault),
        }
    }

    fn set_attrs(
        &self,
        dir: &Self::Dir,
        name: &Name,
        expected: &Stat,
        attrs: Attrs,
        mtime: Option<Timestamp>,
    ) -> Result<(), Fault> {
        let _steady = self.steady();
        let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let handle =
            rustix::fs::openat(&**dir, name.as_bytes(), flags, Mode::empty()).map_err(fault)?;
        let statx = statx_fd(handle.as_fd()).map_err(fault)?;
        let stat = stat_of(&statx);
        if !stat.unchanged(expected) || !matches!(stat.kind, Some(Kind::File | Kind::Dir)) {
            return Err(Fault::Changed);
        }
        set_mode(handle.as_fd(), statx.stx_mode, attrs)?;
        let Some(mtime) = mtime.filter(|_| stat.kind == Some(Kind::File)) else {
            return Ok(());
        };
        let now = stat_of(&statx_fd(handle.as_fd()).map_err(fault)?);
        if now.mtime != expected.mtime || now.size != expected.size {
            return Err(Fault::Changed);
        }
        rustix::fs::utimensat(CWD, proc_path(handle.as_fd()), &times(mtime), AtFlags::empty())
            .map_err(fault)
    }

    fn sync_all(&self) -> Result<(), Fault> {
        rustix::fs::syncfs(&*self.0.root).map_err(fault)
    }

    fn sync_entry(&self, dir: &Self::Dir, name: &Name) -> Result<(), Fault> {
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
        match rustix::fs::openat(&**dir, name.as_bytes(), flags, Mode::empty()) {
            Ok(file) => rustix::fs::fsync(file).map_err(fault),
            // A file that its owner may not read.
            Err(Errno::ACCESS) => self.sync_all(),
            Err(errno) => Err(fault(errno)),
        }
    }

    fn sync_dir(&self, dir: &Self::Dir) -> Result<(), Fault> {
        rustix::fs::fsync(&**dir).map_err(fault)
    }
}

/// Opens a path beneath a directory.
pub(super) fn open_one(dir: BorrowedFd<'_>, path: &[u8], flags: OFlags) -> Result<OwnedFd, Errno> {
    loop {
        match rustix::fs::openat2(dir, path, flags, Mode::empty(), BENEATH) {
            Err(Errno::AGAIN | Errno::INTR) => {}
            Err(Errno::NOSYS) if !path.contains(&b'/') => return open_name(dir, path, flags),
            other => return other,
        }
    }
}

/// Opens one name in a directory where there is no openat2: an old kernel, an emulator, or a service
/// manager that takes it away.
fn open_name(dir: BorrowedFd<'_>, name: &[u8], flags: OFlags) -> Result<OwnedFd, Errno> {
    let opened = rustix::fs::openat(dir, name, flags | OFlags::NOFOLLOW, Mode::empty())?;
    let (here, there) = (statx_fd(dir)?, statx_fd(opened.as_fd())?);
    if (here.stx_dev_major, here.stx_dev_minor) != (there.stx_dev_major, there.stx_dev_minor) {
        return Err(Errno::XDEV);
    }
    Ok(opened)
}

/// Opens a path name by name, each without following.
fn walk(from: BorrowedFd<'_>, names: &[Name], flags: OFlags) -> Result<OwnedFd, Errno> {
    let mut at: Option<OwnedFd> = None;
    for (index, name) in names.iter().enumerate() {
        let flags = if index + 1 == names.len() { flags } else { DIR_FLAGS };
        let dir = at.as_ref().map_or(from, AsFd::as_fd);
        at = Some(open_name(dir, name.as_bytes(), flags)?);
    }
    at.ok_or(Errno::INVAL)
}

/// Returns whether a directory, or the one of this name in it, has the identity of a synced folder.
pub(super) fn is_linked(dir: BorrowedFd<'_>, name: Option<&Name>) -> bool {
    let identity = [OWN_DIR, b"/identity"].concat();
    let path = match name {
        Some(name) => [name.as_bytes(), b"/", &identity].concat(),
        None => identity,
    };
    let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    match open_one(dir, &path, flags) {
        Ok(found) => {
            statx_fd(found.as_fd()).is_ok_and(|statx| stat_of(&statx).kind == Some(Kind::File))
        }
        // No openat2 here; nothing is read, so a link in the way does no harm.
        Err(Errno::NOSYS) => rustix::fs::statx(dir, path, AtFlags::SYMLINK_NOFOLLOW, STATX)
            .is_ok_and(|statx| stat_of(&statx).kind == Some(Kind::File)),
        Err(_) => false,
    }
}

/// Tells what is at a name.
pub(super) fn statx_at(dir: BorrowedFd<'_>, name: &Name) -> Result<Stat, Errno> {
    let flags = AtFlags::SYMLINK_NOFOLLOW | AtFlags::NO_AUTOMOUNT;
    rustix::fs::statx(dir, name.as_bytes(), flags, STATX).map(|statx| stat_of(&statx))
}

pub(super) fn statx_fd(fd: BorrowedFd<'_>) -> Result<rustix::fs::Statx, Errno> {
    rustix::fs::statx(fd, "", AtFlags::EMPTY_PATH, STATX)
}

/// Creates a file for writing, where nothing is, that nobody else may read yet.
pub(super) fn create(dir: BorrowedFd<'_>, name: &Name) -> Result<File, Fault> {
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    rustix::fs::openat(dir, name.as_bytes(), flags, Mode::from_raw_mode(0o600))
        .map(File::from)
        .map_err(fault)
}

/// Sets the attributes of an open file, once everything is written to it.
pub(super) fn set_on(file: &File, attrs: Attrs, mtime: Option<Timestamp>) -> Result<(), Fault> {
    if attrs.mode != 0o600 {
        rustix::fs::fchmod(file, Mode::from_raw_mode(attrs.mode.into())).map_err(fault)?;
    }
    match mtime {
        Some(mtime) => rustix::fs::futimens(file, &times(mtime)).map_err(fault),
        None => Ok(()),
    }
}

fn times(mtime: Timestamp) -> Timestamps {
    Timestamps {
        last_access: Timespec { tv_sec: 0, tv_nsec: UTIME_OMIT },
        last_modification: Timespec { tv_sec: mtime.secs, tv_nsec: mtime.nanos().into() },
    }
}

/// Sets the carried permission bits of what is open, and leaves the others.
fn set_mode(handle: BorrowedFd<'_>, old: u16, attrs: Attrs) -> Result<(), Fault> {
    let mode = (old & 0o7000) | attrs.mode;
    if old & 0o7777 == mode {
        return Ok(());
    }
    let mode = Mode::from_raw_mode(mode.into());
    rustix::fs::chmodat(CWD, proc_path(handle), mode, AtFlags::empty()).map_err(fault)
}

/// Returns a path that names an open handle, whatever became of its name.
pub(super) fn proc_path(handle: BorrowedFd<'_>) -> PathBuf {
    PathBuf::from(format!("/proc/self/fd/{}", handle.as_raw_fd()))
}

pub(super) fn io_fault(error: std::io::Error) -> Fault {
    match Errno::from_io_error(&error) {
        Some(errno) => Fault::Other(reason(errno)),
        None => Fault::Other(error.to_string()),
    }
}

pub(super) fn make_private_dir(dir: &OwnedFd, name: &[u8]) -> Result<(), Errno> {
    match rustix::fs::mkdirat(dir, name, Mode::from_raw_mode(0o700)) {
        Ok(()) | Err(Errno::EXIST) => Ok(()),
        Err(errno) => Err(errno),
    }
}

pub(super) fn read_identity(
    path: &Path,
    own: BorrowedFd<'_>,
) -> Result<(OwnedFd, Linked), FolderError> {
    let bad = |reason: String| FolderError::BadIdentity { path: path.to_owned(), reason };
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let file = match rustix::fs::openat(own, "identity", flags, Mode::empty()) {
        Ok(file) => file,
        Err(Errno::NOENT) => {
            return Err(FolderError::NotLinked { path: path.to_owned() });
        }
        Err(errno) => return Err(bad(reason(errno))),
    };
    let mut bytes = Vec::new();
    let file = File::from(file);
    (&file)
        .take(identity::LEN_MAX as u64 + 1)
        .read_to_end(&mut bytes)
        .map_err(|error| bad(error.to_string()))?;
    if bytes.len() > identity::LEN_MAX {
        return Err(bad("It is too long".into()));
    }
    Ok((file.into(), Linked::parse(&bytes).map_err(bad)?))
}

/// Locks an identity file against other agents, for as long as it stays open.
fn lock(path: &Path, file: OwnedFd) -> Result<OwnedFd, FolderError> {
    match rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok(file),
        Err(Errno::WOULDBLOCK) => Err(FolderError::Busy { path: path.to_owned() }),
        Err(errno) => Err(FolderError::Io { path: path.to_owned(), reason: reason(errno) }),
    }
}

/// What a disk makes of the names that files are given.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Naming {
    /// It holds names for the same that differ in case.
    folds_case: bool,
    /// It drops dots at the end, as FAT does.
    drops_final_dots: bool,
}

impl Naming {
    /// Returns whether a file that gets this name has it then.
    fn keeps(self, name: &Name) -> bool {
        !(self.drops_final_dots && name.as_bytes().ends_with(b"."))
    }
}

/// What trying out a disk came to.
pub(super) enum Probed {
    /// It can be used.
    Fit(Naming),
    /// It cannot exchange two files.
    CannotExchange,
    /// It stores names in another Unicode form or case than they are given in. Each would look as if a
    /// person had renamed it, and be renamed so everywhere.
    RewritesNames,
}

/// Tries out what a disk can do, with files whose names begin with `tag`.
pub(super) fn probe(staging: BorrowedFd<'_>, tag: &str) -> Result<Probed, Errno> {
    let [one, two] = [format!("{tag}-a"), format!("{tag}-b")];
    for name in [&one, &two] {
        make_empty(staging, name)?;
    }
    let exchanged = rustix::fs::renameat_with(staging, &one, staging, &two, RenameFlags::EXCHANGE);
    let folds_case = rustix::fs::accessat(
        staging,
        one.to_ascii_uppercase(),
        rustix::fs::Access::EXISTS,
        AtFlags::empty(),
    )
    .is_ok();
    for name in [&one, &two] {
        rustix::fs::unlinkat(staging, name, AtFlags::empty())?;
    }
    match exchanged {
        Ok(()) => {}
        Err(Errno::INVAL | Errno::OPNOTSUPP | Errno::NOSYS) => return Ok(Probed::CannotExchange),
        Err(errno) => return Err(errno),
    }
    for end in ["\u{e9}", "e\u{301}", "A"] {
        if !keeps_name(staging, &format!("{tag}-{end}"))? {
            return Ok(Probed::RewritesNames);
        }
    }
    let drops_final_dots = !keeps_name(staging, &format!("{tag}-c."))?;
    Ok(Probed::Fit(Naming { folds_case, drops_final_dots }))
}

fn make_empty(dir: BorrowedFd<'_>, name: &str) -> Result<(), Errno> {
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::CLOEXEC | OFlags::NOFOLLOW;
    rustix::fs::openat(dir, name, flags, Mode::from_raw_mode(0o600)).map(drop)
}

/// Returns whether a file that is given this name is listed under it.
fn keeps_name(dir: BorrowedFd<'_>, name: &str) -> Result<bool, Errno> {
    match make_empty(dir, name) {
        Ok(()) => {}
        // Nothing can have it, which is told when something is to.
        Err(Errno::INVAL | Errno::ILSEQ) => return Ok(true),
        Err(errno) => return Err(errno),
    }
    let mut is_listed = false;
    for entry in rustix::fs::Dir::read_from(dir)? {
        is_listed |= entry?.file_name().to_bytes() == name.as_bytes();
    }
    rustix::fs::unlinkat(dir, name, AtFlags::empty())?;
    Ok(is_listed)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn without_openat2_no_link_is_followed_either() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir_all(dir.path().join("a/b")).unwrap();
        std::os::unix::fs::symlink("a", dir.path().join("link")).unwrap();
        let root = rustix::fs::open(dir.path(), DIR_FLAGS, Mode::empty()).unwrap();
        let opened = |path: &[&str]| {
            let names: Vec<Name> = path.iter().map(|name| Name::new(*name).unwrap()).collect();
            walk(root.as_fd(), &names, DIR_FLAGS).map(|_| ())
        };
        assert_eq!(opened(&["a", "b"]), Ok(()));
        assert!(matches!(opened(&["link", "b"]), Err(Errno::NOTDIR | Errno::LOOP)));
        assert!(matches!(opened(&["link"]), Err(Errno::NOTDIR | Errno::LOOP)));
        let own = open_name(root.as_fd(), b"link", OFlags::PATH | OFlags::CLOEXEC).unwrap();
        assert_eq!(stat_of(&statx_fd(own.as_fd()).unwrap()).kind, Some(Kind::Link));
    }
}
