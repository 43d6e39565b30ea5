//! The three trees: what the engine knows, and the trait behind which it is kept.
//!
//! Per node one [`Entry`] holds its state on this disk, on the server and where both last agreed.
//! A store keeps entries by node id, with four indexes (see [`Trees`]); the engine reads its own
//! writes at once, and makes groups of them durable by [`Trees::checkpoint`].

use std::fmt::Debug;

use serde::{Deserialize, Serialize};

use super::decide::{Need, decide};
use super::defect::Defect;
use super::seam::Stat;
use crate::model::{
    Attrs, Body, Content, Digest, Flow, Lineage, ListId, Name, Node, NodeId, Place, RelPath, Rev,
    Timestamp,
};

/// A node on this disk, as last observed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Local {
    /// Where it is; the name is the drive's.
    pub place: Place,
    /// The name on this disk, where that had to be another.
    #[serde(default)]
    pub alias: Option<Name>,
    /// What the disk says of it.
    pub stat: Stat,
    /// What it holds.
    pub body: LocalBody,
    /// Whether the file must be read again at the next look, whatever its stat says then.
    #[serde(default)]
    pub racy: bool,
    /// Whether it waits in `.picloud/parked` for its place to become free.
    #[serde(default)]
    pub parked: bool,
    /// What its modification time and permissions stand for, where this disk could not hold those
    /// of the drive: as long as the disk's stay as they are, these count.
    #[serde(default)]
    pub stands_for: Option<StandsFor>,
}

/// A modification time and permissions that a disk could not hold.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct StandsFor {
    /// The drive's modification time.
    pub mtime: Timestamp,
    /// The drive's permissions.
    pub attrs: Attrs,
}

/// What a node on this disk holds.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum LocalBody {
    /// Entries.
    Dir,
    /// Bytes; nothing when not read yet since they changed.
    File(Option<Content>),
    /// A target.
    Link(#[serde(with = "serde_bytes")] Vec<u8>),
}

impl Local {
    /// Returns the name on this disk.
    #[must_use]
    pub fn disk_name(&self) -> &Name {
        self.alias.as_ref().unwrap_or(&self.place.name)
    }

    /// Takes a new stat in; what it stands for is kept as far as the disk's own did not change.
    pub fn set_stat(&mut self, stat: Stat) {
        if let Some(stands_for) = &mut self.stands_for {
            if stat.mtime != self.stat.mtime {
                stands_for.mtime = stat.mtime;
            }
            if stat.attrs != self.stat.attrs {
                stands_for.attrs = stat.attrs;
            }
        }
        self.stat = stat;
    }

    /// Returns the permissions as the drive knows them.
    #[must_use]
    pub fn attrs(&self) -> Attrs {
        self.stands_for.map_or(self.stat.attrs, |stands_for| stands_for.attrs)
    }

    /// Returns the modification time as the drive knows it.
    #[must_use]
    pub fn mtime(&self) -> Timestamp {
        self.stands_for.map_or(self.stat.mtime, |stands_for| stands_for.mtime)
    }

    /// Returns the node this is, or nothing while its bytes are not known.
    #[must_use]
    pub fn node(&self) -> Option<Node> {
        let body = match &self.body {
            LocalBody::Dir => Body::Dir,
            LocalBody::File(None) => return None,
            LocalBody::File(Some(content)) => Body::File { content: *content, mtime: self.mtime() },
            LocalBody::Link(target) => Body::Link { target: target.clone() },
        };
        Some(Node { place: self.place.clone(), body, attrs: self.attrs() })
    }

    /// Returns the content list of a larger file, when its content is known.
    #[must_use]
    pub fn list(&self) -> Option<ListId> {
        match &self.body {
            LocalBody::File(Some(content)) => content.list(),
            LocalBody::File(None) | LocalBody::Dir | LocalBody::Link(_) => None,
        }
    }
}

/// A node on the server, as last heard.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Remote {
    /// The rev of its last change.
    pub rev: Rev,
    /// Its state.
    pub node: Node,
}

/// A node in the three trees. An entry with none of the three does not exist.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Entry {
    /// On this disk.
    pub local: Option<Local>,
    /// On the server.
    pub remote: Option<Remote>,
    /// Where both last agreed: the merge base.
    pub synced: Option<Node>,
    /// Whether the server has it in a directory that is left out on this device, or it is that
    /// directory: it is wanted nowhere on this disk, and its absence is at rest and no deletion. Kept
    /// before anything is removed for it. Never of what the server does not have.
    #[serde(default)]
    pub left_out: bool,
}

impl Entry {
    /// Returns whether no tree has the node.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.local.is_none() && self.remote.is_none() && self.synced.is_none()
    }

    /// Returns whether there is anything to plan: the three do not agree, or bytes are not known.
    ///
    /// Where the name on this disk had to be another, or a mode cannot be held, `synced` says so,
    /// so an entry at rest is always three equal states; or, of what is left out here, the server's
    /// alone.
    #[must_use]
    pub fn is_dirty(&self) -> bool {
        match (&self.local, &self.remote, &self.synced) {
            (None, None, None) => false,
            (None, Some(_), None) => !self.left_out,
            (Some(local), Some(remote), Some(synced)) => {
                self.left_out
                    || local.parked
                    || remote.node != *synced
                    || local.node().as_ref() != Some(synced)
            }
            _ => true,
        }
    }

    /// Returns whether the node was deleted here and the server is to be told.
    #[must_use]
    pub fn is_deletion(&self) -> bool {
        match (&self.local, &self.remote, &self.synced) {
            (None, Some(remote), Some(synced)) => !self.left_out && remote.node == *synced,
            _ => false,
        }
    }

    /// Returns whether what there is to do brings something here (rather than to the server).
    #[must_use]
    pub fn comes_here(&self) -> bool {
        if self.left_out {
            // What was told to the server is only removed here.
            return match (&self.local, &self.synced) {
                (Some(local), Some(synced)) => local.node().as_ref() == Some(synced),
                (Some(_), None) => false,
                (None, _) => true,
            };
        }
        match (&self.remote, &self.synced) {
            (Some(remote), Some(synced)) => remote.node != *synced,
            (Some(_), None) => self.local.is_none(),
            (None, Some(_)) => true,
            (None, None) => false,
        }
    }
}

/// What the trees hold in all, kept by one step per write. What is pending follows from the direction in
/// which changes go.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Totals {
    /// Files and links on the server.
    pub files: u64,
    /// Directories on the server.
    pub dirs: u64,
    /// Bytes in the server's files.
    pub bytes: u64,
    /// Dirty entries whose change goes to the server.
    pub uploads: u64,
    /// Bytes of content among them.
    pub upload_bytes: u64,
    /// Deletions among them.
    #[serde(default)]
    pub deletions: u64,
    /// Dirty entries whose change comes here.
    pub downloads: u64,
    /// Bytes of content among them.
    pub download_bytes: u64,
    /// Files and links on the server that are left out on this device.
    #[serde(default)]
    pub left_out_files: u64,
    /// Directories on the server that are.
    #[serde(default)]
    pub left_out_dirs: u64,
    /// Bytes in those files.
    #[serde(default)]
    pub left_out_bytes: u64,
    /// The direction for which what is pending was counted.
    #[serde(default)]
    pub flow: Flow,
    /// Dirty entries that differ in a way that is not carried in this direction.
    #[serde(default)]
    pub kept: u64,
}

impl Totals {
    /// Returns whether anything on the server is left out on this device.
    #[must_use]
    pub const fn has_left_out(&self) -> bool {
        self.left_out_files > 0 || self.left_out_dirs > 0
    }

    /// Takes the part of one entry into account, or out again with `add` false.
    pub fn count(&mut self, entry: &Entry, add: bool) {
        let step = |total: &mut u64, by: u64| {
            *total = if add { total.saturating_add(by) } else { total.saturating_sub(by) };
        };
        if let Some(remote) = &entry.remote {
            step(if remote.node.is_dir() { &mut self.dirs } else { &mut self.files }, 1);
            step(&mut self.bytes, remote.node.body.content_len());
            if entry.left_out {
                let is_dir = remote.node.is_dir();
                step(if is_dir { &mut self.left_out_dirs } else { &mut self.left_out_files }, 1);
                step(&mut self.left_out_bytes, remote.node.body.content_len());
            }
        }
        self.count_pending(entry, add);
    }

    /// Forgets what is pending, to be counted anew for a direction.
    pub fn begin_pending(&mut self, flow: Flow) {
        *self = Self {
            uploads: 0,
            upload_bytes: 0,
            deletions: 0,
            downloads: 0,
            download_bytes: 0,
            kept: 0,
            flow,
            ..*self
        };
    }

    /// Takes what there is to do for one entry into account, or out again with `add` false.
    pub fn count_pending(&mut self, entry: &Entry, add: bool) {
        let step = |total: &mut u64, by: u64| {
            *total = if add { total.saturating_add(by) } else { total.saturating_sub(by) };
        };
        if entry.is_dirty() {
            if self.flow != Flow::Both && decide(entry, self.flow) == Need::Keep {
                step(&mut self.kept, 1);
            } else if entry.comes_here() {
                let bytes = entry.remote.as_ref().map_or(0, |r| r.node.body.content_len());
                let same = matches!((&entry.remote, &entry.synced), (Some(r), Some(s))
                    if r.node.body.same_bytes(&s.body));
                step(&mut self.downloads, 1);
                step(&mut self.download_bytes, if same || entry.left_out { 0 } else { bytes });
            } else {
                let bytes = entry.local.as_ref().map_or(0, |l| match &l.body {
                    LocalBody::File(Some(content))
                        if entry.synced.as_ref().is_some_and(
                            |s| matches!(&s.body, Body::File { content: c, .. } if c == content),
                        ) =>
                    {
                        0
                    }
                    LocalBody::File(_) => l.stat.size,
                    LocalBody::Dir | LocalBody::Link(_) => 0,
                });
                step(&mut self.uploads, 1);
                step(&mut self.deletions, u64::from(entry.is_deletion()));
                step(&mut self.upload_bytes, bytes);
            }
        }
    }
}

/// What is known of the drive as a whole.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Meta {
    /// The lineage the remote tree belongs to; nothing before the first connection.
    pub lineage: Option<Lineage>,
    /// The rev up to which the remote tree is known.
    pub cursor: Rev,
    /// Whether the remote tree is one that was; else wait for more pages.
    pub consistent: bool,
    /// The digest over the remote tree.
    pub digest: Digest,
    /// Whether the first pass after linking (or after the loss of the state, or a change of
    /// lineage) is over. Until then nothing is deleted on either side.
    pub linked: bool,
    /// When both sides last agreed, by this device's clock.
    pub last_sync: Option<Timestamp>,
}

/// Aspects of a node that can change by themselves.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Aspects {
    /// Parent or name.
    pub place: bool,
    /// Bytes, target or modification time.
    pub body: bool,
    /// Permissions.
    pub attrs: bool,
}

impl Aspects {
    /// All of them.
    pub const ALL: Self = Self { place: true, body: true, attrs: true };
    /// Where it is.
    pub const PLACE: Self = Self { place: true, body: false, attrs: false };

    const fn all() -> Self {
        Self::ALL
    }
}

/// What a change that was sent makes of a node: nothing for a deletion.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Sent {
    /// The node.
    pub node: NodeId,
    /// Its state once the change is accepted.
    pub after: Option<Node>,
    /// The rev of the version that the change is based on, 0 for a creation; nothing in what earlier
    /// versions of this program wrote.
    #[serde(default)]
    pub base: Option<Rev>,
    /// Which aspects of it the change tells: in the others it is as the server had it. Earlier versions of this
    /// program did not say.
    #[serde(default = "Aspects::all")]
    pub told: Aspects,
}

/// A version of the server's that is being put on this disk, or only the place of one.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Putting {
    /// The node.
    pub node: NodeId,
    /// The rev of the version.
    pub rev: Rev,
    /// The node as it will be on this disk.
    pub here: Node,
    /// The name on this disk, where that has to be another.
    #[serde(default)]
    pub alias: Option<Name>,
    /// What both sides agree on then.
    pub base: Node,
    /// Whether it is here already, and is only moved there: nothing is said of what it holds.
    #[serde(default)]
    pub is_move: bool,
}

/// Where the three trees are kept.
///
/// Methods see all earlier writes of the same store. What is written becomes durable with
/// [`Trees::checkpoint`], all of it or nothing.
pub trait Trees {
    /// What can go wrong: the store's disk.
    type Error: Debug + std::error::Error + Send + Sync + 'static;

    /// Returns the entry of a node; an empty one when there is none.
    ///
    /// # Errors
    /// When the store cannot be read.
    fn get(&self, id: NodeId) -> Result<Entry, Self::Error>;

    /// Hands the entry of a node to `look`, which costs no copy of it. `look` must not use these trees.
    ///
    /// # Errors
    /// When the store cannot be read.
    fn look<R>(&self, id: NodeId, look: impl FnOnce(&Entry) -> R) -> Result<R, Self::Error> {
        Ok(look(&self.get(id)?))
    }

    /// Returns a node's path for people, by whichever tree has it.
    fn path_of(&self, id: NodeId) -> RelPath {
        let mut names = Vec::new();
        let mut at = id;
        // Longer only when a damaged state has a ring.
        while at != NodeId::ROOT && names.len() < 1000 {
            let step = self.look(at, |entry| match (&entry.local, &entry.remote, &entry.synced) {
                (Some(local), _, _) => Some((local.disk_name().clone(), local.place.parent)),
                (None, Some(Remote { node, .. }), _) | (None, None, Some(node)) => {
                    Some((node.place.name.clone(), node.place.parent))
                }
                (None, None, None) => None,
            });
            let Ok(Some((name, parent))) = step else { break };
            names.push(name);
            at = parent;
        }
        names.reverse();
        RelPath::from_names(names)
    }

    /// This id was made a moment ago, so nothing is known of the node: who asks all the same need not be
    /// answered by a search.
    fn made(&mut self, _id: NodeId) {}

    /// Replaces the entry of a node; an empty one removes it. Keeps the indexes and totals.
    ///
    /// # Errors
    /// When the store cannot be written.
    fn put(&mut self, id: NodeId, entry: &Entry) -> Result<(), Self::Error>;

    /// Returns the nodes whose `local` is at this name *on disk* in this directory. There is at
    /// most one, except while a name waits to be looked at again. Parked nodes do not count.
    ///
    /// # Errors
    /// When the store cannot be read.
    fn local_at(&self, parent: NodeId, disk_name: &Name) -> Result<Vec<NodeId>, Self::Error>;

    /// Returns the nodes whose `remote` is at this name in this directory. There is at most one
    /// when the remote tree is consistent.
    ///
    /// # Errors
    /// When the store cannot be read.
    fn remote_at(&self, parent: NodeId, name: &Name) -> Result<Vec<NodeId>, Self::Error>;

    /// Returns the nodes whose `local` is in this directory (parked ones included), at most `limit`
    /// of them with ids after `after`, in the order of ids.
    ///
    /// # Errors
    /// When the store cannot be read.
    fn local_children(
        &self,
        parent: NodeId,
        after: Option<NodeId>,
        limit: usize,
    ) -> Result<Vec<NodeId>, Self::Error>;

    /// The same for `remote`.
    ///
    /// # Errors
    /// When the store cannot be read.
    fn remote_children(
        &self,
        parent: NodeId,
        after: Option<NodeId>,
        limit: usize,
    ) -> Result<Vec<NodeId>, Self::Error>;

    /// Returns the nodes whose `local` has this inode number.
    ///
    /// # Errors
    /// When the store cannot be read.
    fn local_by_inode(&self, ino: u64) -> Result<Vec<NodeId>, Self::Error>;

    /// Returns nodes whose `local` is a file with this content list, at most `limit` of them: not always
    /// all there are, since nothing but speed depends on it.
    ///
    /// # Errors
    /// When the store cannot be read.
    fn local_with_list(&self, list: ListId, limit: usize) -> Result<Vec<NodeId>, Self::Error>;

    /// Returns dirty nodes ([`Entry::is_dirty`]) in the order in which they were first written, at
    /// most `limit`, after the position `after`; each with its position.
    ///
    /// # Errors
    /// When the store cannot be read.
    fn dirty(&self, after: u64, limit: usize) -> Result<Vec<(u64, NodeId)>, Self::Error>;

    /// Returns nodes that have a `remote` or `synced`, in the order of ids, after `after`.
    /// For passes over everything (a change of lineage).
    ///
    /// # Errors
    /// When the store cannot be read.
    fn all(&self, after: Option<NodeId>, limit: usize) -> Result<Vec<NodeId>, Self::Error>;

    /// Returns the totals.
    fn totals(&self) -> Totals;

    /// Counts what is pending for another direction from now on.
    ///
    /// # Errors
    /// When the store cannot be read.
    fn count_for(&mut self, flow: Flow) -> Result<(), Self::Error>;

    /// Returns what is known of the drive.
    fn meta(&self) -> Meta;

    /// Replaces what is known of the drive.
    ///
    /// # Errors
    /// When the store cannot be written.
    fn set_meta(&mut self, meta: Meta) -> Result<(), Self::Error>;

    /// Remembers what a commit asks for, until its answer is known: a device that dies meanwhile must
    /// not take its own change for somebody else's.
    ///
    /// # Errors
    /// When the store cannot be written.
    fn note_sent(&mut self, commit: u64, changes: &[Sent]) -> Result<(), Self::Error>;

    /// Forgets a commit.
    ///
    /// # Errors
    /// When the store cannot be written.
    fn forget_sent(&mut self, commit: u64) -> Result<(), Self::Error>;

    /// Returns the commits remembered, with their numbers, in their order.
    ///
    /// # Errors
    /// When the store cannot be read.
    fn sent(&self) -> Result<Vec<(u64, Vec<Sent>)>, Self::Error>;

    /// Remembers what is being put on this disk, in place of what was remembered of that node before.
    ///
    /// # Errors
    /// When the store cannot be written.
    fn note_putting(&mut self, putting: &Putting) -> Result<(), Self::Error>;

    /// Forgets that a node was being put on this disk.
    ///
    /// # Errors
    /// When the store cannot be written.
    fn forget_putting(&mut self, node: NodeId) -> Result<(), Self::Error>;

    /// Returns what was being put on this disk.
    ///
    /// # Errors
    /// When the store cannot be read.
    fn puttings(&self) -> Result<Vec<Putting>, Self::Error>;

    /// Makes everything written so far outlive this process, all of it or nothing; a power cut may
    /// take it. Cheaper than [`Trees::checkpoint`].
    ///
    /// # Errors
    /// When the store cannot be written.
    fn keep(&mut self) -> Result<(), Self::Error>;

    /// Makes everything written so far durable, all of it or nothing.
    ///
    /// # Errors
    /// When the store cannot be written; what was written since the last one may then be lost.
    fn checkpoint(&mut self) -> Result<(), Self::Error>;

    /// Returns whether the engine over these trees has a fault on purpose; only the simulator's do.
    fn has_defect(&self, _defect: Defect) -> bool {
        false
    }
}

/// Returns the totals of these trees with what is pending counted anew for a direction.
///
/// # Errors
/// When the store cannot be read.
pub fn counted_for<T: Trees>(trees: &T, flow: Flow) -> Result<Totals, T::Error> {
    let mut totals = trees.totals();
    totals.begin_pending(flow);
    let mut after = 0;
    loop {
        let dirty = trees.dirty(after, 512)?;
        let Some((last, _)) = dirty.last() else {
            return Ok(totals);
        };
        after = *last;
        for (_, id) in dirty {
            trees.look(id, |entry| totals.count_pending(entry, true))?;
        }
    }
}
