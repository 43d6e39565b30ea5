//! The primitive operations on one synced folder, over which [`super::apply`] is written.
//!
//! Small enough for a model of a file system to implement it too, with crashes and faults at every
//! call. An implementation promises only what is said here: no operation follows a symbolic link,
//! none leaves the folder, each is one step for anyone who looks (but not durable before a sync).

use super::defect::Defect;
use super::seam::Stat;
use crate::model::{Attrs, Content, Name, RelPath, Timestamp};

/// Why a primitive operation did not do what was asked; it then did nothing.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Fault {
    /// Nothing is at that name, or something that is no directory where one was asked for.
    #[error("There is no such entry")]
    NotFound,
    /// Something is at that name.
    #[error("There is something at that name already")]
    Exists,
    /// The directory has entries.
    #[error("The directory is not empty")]
    NotEmpty,
    /// What is there changed while it was worked on, or is not what was expected.
    #[error("It changed meanwhile")]
    Changed,
    /// The file system cannot hold the name.
    #[error("This disk cannot hold a file of that name")]
    BadName,
    /// The folder, or its identity, is gone: an unmounted disk, say. Everything stops.
    #[error("{0}")]
    Gone(FolderGone),
    /// Anything else, in words for a person.
    #[error("{0}")]
    Other(String),
}

/// The folder is not there any more, or is another one. Nothing may be concluded from that about
/// what is in it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "The folder is not there any more ({reason}); mount it or bring it back, or end it with `picloud logout`"
)]
pub struct FolderGone {
    /// What was found, for a person.
    pub reason: String,
}

/// The directories below `.picloud` that the careful procedures work with.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Own {
    /// New contents, before they are complete and durable. Worth nothing after a crash.
    Staging,
    /// What is on its way in by an exchange, or was displaced or removed. Each entry says in its
    /// name which contents may be dropped.
    Trash,
    /// Nodes whose place is not free yet, each under its id.
    Parked,
}

/// How a rename treats what is at the new name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Rename {
    /// Nothing may be there: else [`Fault::Exists`].
    NoReplace,
    /// Something must be there, else [`Fault::NotFound`]; both change places.
    Exchange,
}

/// One synced folder.
pub trait Folder {
    /// A handle of an open directory: it stays the same directory whatever is renamed around it.
    type Dir: Clone;

    /// Checks that the folder and its identity are as they were when the folder was opened.
    ///
    /// # Errors
    /// When they are not.
    fn check(&self) -> Result<(), FolderGone>;

    /// Opens a directory, and tells its stat. `.picloud` is refused, but for what is below a
    /// parked node.
    ///
    /// # Errors
    /// [`Fault::NotFound`] when there is no directory at that path (a link is none).
    fn open_dir(&self, path: &RelPath) -> Result<(Self::Dir, Stat), Fault>;

    /// Returns one of the directories below `.picloud`.
    fn own_dir(&self, own: Own) -> Self::Dir;

    /// Returns whether this file system stores this name as it is. One that it stores otherwise would
    /// be found as another name, as if a person had given it.
    fn keeps_name(&self, name: &Name) -> bool;

    /// Tells what is at a name, as `lstat` does.
    ///
    /// # Errors
    /// [`Fault::NotFound`] when nothing is.
    fn stat(&self, dir: &Self::Dir, name: &Name) -> Result<Stat, Fault>;

    /// Lists a directory.
    ///
    /// # Errors
    /// When it could not be listed to the end.
    fn list(&self, dir: &Self::Dir) -> Result<Vec<Name>, Fault>;

    /// Reads the target of a link.
    ///
    /// # Errors
    /// When there is no link at that name.
    fn read_link(&self, dir: &Self::Dir, name: &Name) -> Result<Vec<u8>, Fault>;

    /// Reads a file, and tells what it holds and its stat, which was the same before and after.
    ///
    /// # Errors
    /// [`Fault::Changed`] when it was not, or when it is no regular file.
    fn content(&self, dir: &Self::Dir, name: &Name) -> Result<(Stat, Content), Fault>;

    /// Makes a file with these bytes and attributes, where nothing is.
    ///
    /// # Errors
    /// When it could not be written whole; it may then be there in part.
    fn make_file(
        &self,
        dir: &Self::Dir,
        name: &Name,
        bytes: &[u8],
        attrs: Attrs,
        mtime: Option<Timestamp>,
    ) -> Result<(), Fault>;

    /// Reads a file of at most `limit` bytes.
    ///
    /// # Errors
    /// When it is longer, too.
    fn read_file(&self, dir: &Self::Dir, name: &Name, limit: usize) -> Result<Vec<u8>, Fault>;

    /// Makes a directory with exactly these permissions, where nothing is.
    ///
    /// # Errors
    /// [`Fault::Exists`] when something is.
    fn make_dir(&self, dir: &Self::Dir, name: &Name, attrs: Attrs) -> Result<(), Fault>;

    /// Makes a symbolic link, where nothing is.
    ///
    /// # Errors
    /// [`Fault::Exists`] when something is.
    fn make_link(&self, dir: &Self::Dir, name: &Name, target: &[u8]) -> Result<(), Fault>;

    /// Renames.
    ///
    /// # Errors
    /// As [`Rename`] says.
    fn rename(
        &self,
        from: (&Self::Dir, &Name),
        to: (&Self::Dir, &Name),
        how: Rename,
    ) -> Result<(), Fault>;

    /// Removes a file or link.
    ///
    /// # Errors
    /// When nothing is there.
    fn unlink(&self, dir: &Self::Dir, name: &Name) -> Result<(), Fault>;

    /// Removes an empty directory.
    ///
    /// # Errors
    /// [`Fault::NotEmpty`] when it is not.
    fn remove_dir(&self, dir: &Self::Dir, name: &Name) -> Result<(), Fault>;

    /// Sets the permissions and, if given, the modification time of the very inode that `expected`
    /// tells of.
    ///
    /// # Errors
    /// [`Fault::Changed`] when the stat at that name is not [`Stat::unchanged`] any more.
    fn set_attrs(
        &self,
        dir: &Self::Dir,
        name: &Name,
        expected: &Stat,
        attrs: Attrs,
        mtime: Option<Timestamp>,
    ) -> Result<(), Fault>;

    /// Makes everything done so far in the folder durable.
    ///
    /// # Errors
    /// When the disk did not take it all.
    fn sync_all(&self) -> Result<(), Fault>;

    /// Makes the content and attributes of a file or directory durable.
    ///
    /// # Errors
    /// When the disk did not take it all.
    fn sync_entry(&self, dir: &Self::Dir, name: &Name) -> Result<(), Fault>;

    /// Makes the entries of a directory durable.
    ///
    /// # Errors
    /// When the disk did not take them all.
    fn sync_dir(&self, dir: &Self::Dir) -> Result<(), Fault>;

    /// Returns whether the procedures over this folder have a fault on purpose; only the simulator's
    /// do.
    fn has_defect(&self, _defect: Defect) -> bool {
        false
    }
}

impl Fault {
    /// Returns the reason for a person, with what was worked on.
    #[must_use]
    pub fn about(&self, path: &RelPath) -> String {
        format!("{self}: {path}")
    }
}
