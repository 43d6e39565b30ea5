//! The seam between the engine and whatever drives it: events in, actions out.
//!
//! The engine decides, the driver does. The driver may lose any action and any event (a crash, a
//! cut connection): the trees then still differ, and the engine plans again. What the driver must
//! never do is report as done what is not durable, or report a disk state it did not read.

use std::sync::Arc;

use crate::model::{
    Attrs, Change, Content, Digest, Kind, Lineage, Name, NodeId, Refusal, RelPath, Rev, Timestamp,
    Usage, Versioned,
};

/// What `lstat` tells of an entry. Two equal values mean: not touched, as far as the disk can tell.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, serde::Serialize, serde::Deserialize)]
pub struct Stat {
    /// What it is; nothing for sockets, FIFOs and devices.
    pub kind: Option<Kind>,
    /// Inode number.
    pub ino: u64,
    /// Birth time; zero where the file system has none.
    pub birth: Timestamp,
    /// Size in bytes; 0 for directories.
    pub size: u64,
    /// Modification time.
    pub mtime: Timestamp,
    /// Change time: what no application can set.
    pub ctime: Timestamp,
    /// Permission bits.
    pub attrs: Attrs,
}

impl Stat {
    /// Returns whether both are the same file with the same bytes and attributes, as far as the
    /// disk can tell. Directories change time with every entry, so for them only identity and
    /// permissions count.
    #[must_use]
    pub fn unchanged(&self, other: &Self) -> bool {
        if self.kind == Some(Kind::Dir) && other.kind == Some(Kind::Dir) {
            return self.same_inode(other) && self.attrs == other.attrs;
        }
        self == other
    }

    /// Returns whether both are the same but for the change time, which a rename sets.
    #[must_use]
    pub fn same_but_ctime(&self, other: &Self) -> bool {
        self.same_inode(other)
            && self.size == other.size
            && self.mtime == other.mtime
            && self.attrs == other.attrs
    }

    /// Returns whether both are the same inode (a number may be used again, a birth time not).
    #[must_use]
    pub fn same_inode(&self, other: &Self) -> bool {
        self.ino == other.ino && self.birth == other.birth && self.kind == other.kind
    }
}

/// A directory of the folder as the engine believes it to be on disk.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DirRef {
    /// The directory.
    pub id: NodeId,
    /// Where it is, by the names on this disk.
    pub path: Arc<RelPath>,
    /// Its inode: when something else is at `path`, the driver must not work there.
    pub ino: u64,
}

/// An entry of a directory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Spot {
    /// The directory.
    pub dir: DirRef,
    /// The name on this disk.
    pub name: Name,
}

impl Spot {
    /// Returns the path for people.
    #[must_use]
    pub fn path(&self) -> RelPath {
        self.dir.path.join(&self.name)
    }
}

/// What must be at a spot for an operation on it to go ahead.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Expected {
    /// What was last seen there.
    pub stat: Stat,
    /// The content last seen there, of a file.
    pub content: Option<Content>,
}

/// A content that would have to be fetched.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Awaited {
    /// The version on this disk, which may share chunks with it.
    pub old: Option<(Spot, Expected)>,
}

/// One entry, as a look found it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Seen {
    /// The name on disk.
    pub name: Name,
    /// What it is; nothing when there is no such entry (only when names were asked for).
    pub found: Option<Found>,
}

/// What a person should know of a directory that is a synced folder of its own.
pub const INNER_FOLDER: &str = "It is a synced folder of its own, and not synced from here: move \
    it out of this folder; or if no agent syncs it, remove the .picloud directory in it";

/// What a look found at a name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Found {
    /// Its stat.
    pub stat: Stat,
    /// Of a link: its target.
    pub target: Option<Vec<u8>>,
    /// Whether the ignore rules leave it out. It counts only for what is not in the drive yet:
    /// what is synced stays synced.
    pub ignored: bool,
    /// Whether it is a directory that is a synced folder of its own: never looked into.
    pub is_folder: bool,
}

/// What a look at a directory came to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Look {
    /// The entries: all of them when no names were asked for, listed to the end without an error.
    /// Otherwise one per name.
    Entries {
        /// The directory's own stat.
        dir: Stat,
        /// What is in it.
        entries: Vec<Seen>,
    },
    /// The directory is not there, or another one is.
    Gone,
    /// It could not be read: what is below is unknown, never deleted.
    Unreadable {
        /// Why, for a person.
        reason: String,
    },
}

/// What reading a file came to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Hashed {
    /// Read to the end, and its stat was `stat` before and after.
    Content {
        /// The stat before and after.
        stat: Stat,
        /// What it holds.
        content: Content,
        /// Whether it was modified so shortly before it was read that another modification may
        /// have left no trace in its stat. It is then read again at the next look.
        racy: bool,
    },
    /// It changed while it was read, or is no longer what was asked for; look again.
    Changed,
    /// It could not be read.
    Unreadable {
        /// Why, for a person.
        reason: String,
    },
}

/// What is to be done on disk. Each is durable before it is reported done.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum DiskOp {
    /// Make a directory where nothing is.
    MakeDir {
        /// Where.
        at: Spot,
        /// Its permissions.
        attrs: Attrs,
    },
    /// Put a file where nothing is (`over` is none), or in place of the file expected there.
    Write {
        /// Where.
        at: Spot,
        /// Its content.
        content: Content,
        /// Its modification time.
        mtime: Timestamp,
        /// Its permissions.
        attrs: Attrs,
        /// What it replaces. When something else comes out, that is a person's version: it is
        /// kept as a conflict copy beside, and reported.
        over: Option<Expected>,
        /// Whether what comes out is to be kept as a conflict copy even if it is as expected.
        keep: bool,
    },
    /// Put a symbolic link where nothing is, or in place of the one expected there.
    Link {
        /// Where.
        at: Spot,
        /// Its target.
        target: Vec<u8>,
        /// As in `Write`.
        over: Option<Expected>,
        /// As in `Write`.
        keep: bool,
    },
    /// Move to where nothing is.
    Move {
        /// From where; none for a node that is parked.
        from: Option<Spot>,
        /// Where to; none to park it: out of the way, into `.picloud/parked`, under the node's id.
        to: Option<Spot>,
        /// What is expected at `from`.
        expected: Expected,
    },
    /// Rename to the first free conflict copy name in the same directory.
    SetAside {
        /// What.
        at: Spot,
        /// What is expected there.
        expected: Expected,
    },
    /// Remove a file or link (through the trash), or an empty directory.
    Remove {
        /// What.
        at: Spot,
        /// What is expected there. When something else comes out, it is put back.
        expected: Expected,
    },
    /// Set permissions, and the modification time of a file.
    SetAttrs {
        /// What.
        at: Spot,
        /// What is expected there.
        expected: Expected,
        /// The permissions.
        attrs: Attrs,
        /// The modification time.
        mtime: Option<Timestamp>,
    },
}

/// What a disk operation came to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// Done and durable.
    Done {
        /// The stat of the node at its spot now; for a removal the stat it had.
        stat: Stat,
        /// The name in the same directory under which a displaced or set-aside version lives now.
        kept: Option<Name>,
    },
    /// What is on disk is not what was expected; nothing was done, but that an edit of the very moment
    /// may have got the attributes that were to be set. Look again.
    Changed,
    /// Something is where nothing was expected; nothing was done. Look again.
    Taken,
    /// This file system cannot hold the name (illegal here, or equal to another but for case or
    /// Unicode form).
    NameImpossible {
        /// Why, for a person.
        reason: String,
    },
    /// The directory is not empty.
    NotEmpty,
    /// The content could not be had now; try again when there is a connection.
    NoContent {
        /// Why, for a person.
        reason: String,
    },
    /// It failed for a reason a person may have to see to (no permission, disk full); nothing was
    /// done.
    Failed {
        /// Why, for a person.
        reason: String,
    },
}

/// What an upload of a content came to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Uploaded {
    /// The server has all of it, durable.
    Done,
    /// The file is not what it was; look again.
    Changed,
    /// No connection, or the server cannot take it now.
    Later {
        /// Why, for a person.
        reason: String,
    },
}

/// A change on its way out, with where its small content can be read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Outgoing {
    /// The change.
    pub change: Change,
    /// For a file whose content travels inside the commit: where it is, and what it must be there.
    pub attach: Option<(Spot, Expected)>,
}

/// What the driver is asked to do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Action {
    /// Look at a directory: at all of it (after a watch on it is set), or at some names.
    /// Answered by [`Event::Looked`].
    Look {
        /// The directory.
        dir: DirRef,
        /// The names; none for the whole directory.
        names: Option<Vec<Name>>,
    },
    /// Read a file and tell its content. Answered by [`Event::Hashed`].
    Hash {
        /// The node.
        node: NodeId,
        /// Where it is.
        at: Spot,
        /// What was seen there.
        stat: Stat,
    },
    /// Bring the content of a file to the server. Answered by [`Event::Uploaded`].
    Upload {
        /// The node.
        node: NodeId,
        /// Where it is.
        at: Spot,
        /// What must be there.
        expected: Expected,
        /// What the server has of an older version: most of the new one may be in it.
        base: Option<Content>,
    },
    /// Send changes, in this order, after all earlier commits, once everything written to the trees
    /// so far is durable: they remember what is asked for here. What
    /// [`super::Engine::deletions_pending`] says then goes with them, and without a change, that
    /// alone. Answered by [`Event::Committed`];
    /// by nothing when the connection is lost, which [`Event::Offline`] tells.
    Commit {
        /// Names the commit in its answer.
        batch: u64,
        /// The changes.
        changes: Vec<Outgoing>,
    },
    /// Do this on disk, once everything written to the trees so far is kept
    /// ([`super::trees::Trees::keep`]): they remember what is put there. Answered by
    /// [`Event::Applied`].
    Apply {
        /// The node.
        node: NodeId,
        /// What.
        op: DiskOp,
    },
}

/// What became of one change of a commit.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Committed {
    /// The server took it (or had it already); it got this rev.
    Accepted {
        /// The rev.
        rev: Rev,
    },
    /// The server did not take it.
    Refused(Refusal),
    /// The driver left it out: its file is no longer what it was. Look again.
    Changed,
    /// The driver left it out: its file cannot be read.
    Unreadable {
        /// Why, for a person.
        reason: String,
    },
}

/// A page of the journal.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct JournalPage {
    /// The cursor after it.
    pub upto: Rev,
    /// The newest rev when it was made.
    pub head: Rev,
    /// Whether the remote tree after it is one that was.
    pub consistent: bool,
    /// The changed nodes, by rev.
    pub nodes: Vec<Versioned>,
    /// The digest, when `upto` is `head`.
    pub digest: Option<Digest>,
}

/// What the server says of this device's deletions.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Word {
    /// Nothing: they pass.
    #[default]
    Open,
    /// They are a mass deletion, which waits for a person's decision.
    Held,
    /// A person has rejected them: what was deleted is to be written here again.
    Rejected,
}

/// What the driver tells.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// Something may have changed in a directory: at a name, or anywhere in it. A hint, not a fact.
    Touched {
        /// The directory.
        dir: NodeId,
        /// The name.
        name: Option<Name>,
    },
    /// Anything may have changed anywhere: at the start, after an overflow, on a timer, or when a
    /// person asks for a sync.
    Rescan,
    /// Answers [`Action::Look`].
    Looked {
        /// The directory.
        dir: NodeId,
        /// The names that were asked for.
        names: Option<Vec<Name>>,
        /// What was found.
        look: Look,
    },
    /// Answers [`Action::Hash`].
    Hashed {
        /// The node.
        node: NodeId,
        /// What came of it.
        hashed: Hashed,
    },
    /// Answers [`Action::Upload`].
    Uploaded {
        /// The node.
        node: NodeId,
        /// What came of it.
        uploaded: Uploaded,
    },
    /// Answers [`Action::Apply`].
    Applied {
        /// The node.
        node: NodeId,
        /// What came of it.
        outcome: Outcome,
    },
    /// Answers [`Action::Commit`].
    Committed {
        /// The commit.
        batch: u64,
        /// One per change.
        results: Vec<Committed>,
        /// The newest rev.
        head: Rev,
    },
    /// There is a connection, subscribed from `from`. Nothing of an earlier connection is answered
    /// any more.
    Online {
        /// The drive's lineage.
        lineage: Lineage,
        /// Where the pages begin: our cursor, or 0 when the journal is told anew.
        from: Rev,
        /// The newest rev.
        head: Rev,
    },
    /// The connection is gone; commits and uploads under way will not be answered.
    Offline,
    /// A page of the journal.
    Page(JournalPage),
    /// The server's word about this device's deletions; it will tell when that changes.
    Deletions(Word),
    /// How much of the account's room is in use: when a connection begins, with each answer to a commit
    /// (before that), and when the server says so.
    Usage(Usage),
    /// A person paused or resumed transfers.
    Paused(bool),
}
