//! What is wanted on this disk: all of the drive but the directories that are left out here.
//!
//! A person names directories, which are held by node id: wherever one is moved to, it stays left
//! out. What the server has below it follows from the remote tree, and is asked here only
//! (`Engine::fit`): walking up, with a memory for directories. Each entry bears the answer as its
//! mark ([`Entry::left_out`]), so that what is left out and not here is at rest like anything that is
//! in sync. The mark is written before anything is removed for it, and taken off before anything is
//! planned without it; with it goes the merge base of what may be gone already. So whenever an agent
//! dies, what it had removed is never taken for deleted by a person.
//!
//! When what is wanted changes, or a directory comes to be elsewhere, the marks below it are set
//! anew in steps (`Engine::advance_scope`); a node that is planned before its turn gets its own
//! first.

use std::collections::{BTreeSet, HashMap};

use super::Engine;
use super::defect::Defect;
use super::trees::{Entry, Local, Remote, Trees};
use crate::model::{Name, NodeId, NodeIdHash, Place, RelPath};

/// The most directories of which it is remembered whether they are left out, but for one way up.
const KNOWN_MAX: usize = 64 * 1024;

/// How far up is walked: an honest server's tree is no deeper.
const DEPTH_MAX: usize = 4096;

/// So many entries get their mark in one poll.
const MARKS_PER_POLL: usize = 4096;

/// A directory below which marks are to be set anew.
#[derive(Debug, Clone, Copy)]
struct Open {
    dir: NodeId,
    /// The last of its entries that was looked at.
    after: Option<NodeId>,
    /// Whether what is below is looked at also where a mark is right.
    is_deep: bool,
}

/// What is wanted, and how far that is known.
#[derive(Debug, Default)]
pub(super) struct Scope {
    left_out: BTreeSet<NodeId>,
    /// Directories of the drive, and whether they are, or are in, one that is left out. Who is in it
    /// has those above it in it.
    known: HashMap<NodeId, bool, NodeIdHash>,
    /// At most two for each directory of the drive; the last one is next.
    open: Vec<Open>,
}

impl Scope {
    /// `has_marks` says whether entries may bear a mark from an earlier life of this agent, which may
    /// have ended in the midst of setting them.
    pub(super) fn new(mut left_out: BTreeSet<NodeId>, has_marks: bool) -> Self {
        left_out.remove(&NodeId::ROOT);
        let is_open = has_marks || !left_out.is_empty();
        let root = Open { dir: NodeId::ROOT, after: None, is_deep: true };
        Self {
            left_out,
            known: HashMap::default(),
            open: is_open.then_some(root).into_iter().collect(),
        }
    }

    /// Returns whether each entry bears the right mark.
    pub(super) fn is_settled(&self) -> bool {
        self.open.is_empty()
    }
}

/// A directory that is left out on this device.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LeftOut {
    /// The directory.
    pub id: NodeId,
    /// Where it is in the drive; nothing when it is not there, or was not heard of yet.
    pub path: Option<RelPath>,
}

/// What a path names, for a person who wants it left out or back.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Named {
    /// A directory of the drive.
    Dir(NodeId),
    /// Something in the drive that is no directory.
    NoDir,
    /// Something on this disk that the server does not have yet.
    NotSent,
    /// Nothing.
    Nothing,
}

impl<T: Trees> Engine<T> {
    /// Leaves out these directories, and no others: what is wanted now and is not here comes, what is
    /// not and is here goes.
    ///
    /// # Errors
    /// When the trees cannot be read or written; the engine must then be dropped.
    pub fn leave_out(&mut self, mut left_out: BTreeSet<NodeId>) -> Result<(), T::Error> {
        left_out.remove(&NodeId::ROOT);
        let changed: Vec<NodeId> =
            self.scope.left_out.symmetric_difference(&left_out).copied().collect();
        self.scope.left_out = left_out;
        self.scope.known.clear();
        for id in changed {
            let entry = self.trees.get(id)?;
            self.put(id, &entry)?;
        }
        Ok(())
    }

    /// Returns what is left out.
    ///
    /// # Errors
    /// When the trees cannot be read.
    pub fn left_out(&self) -> Result<Vec<LeftOut>, T::Error> {
        let mut all = Vec::with_capacity(self.scope.left_out.len());
        for id in &self.scope.left_out {
            let is_there = self.trees.look(*id, |entry| entry.remote.is_some())?;
            let path = if is_there { Some(self.path_in_drive(*id)?) } else { None };
            all.push(LeftOut { id: *id, path });
        }
        Ok(all)
    }

    /// Returns what a path names; its names are those on this disk, or else those in the drive.
    ///
    /// # Errors
    /// When the trees cannot be read.
    pub fn named(&self, path: &RelPath) -> Result<Named, T::Error> {
        let mut id = NodeId::ROOT;
        for name in path.names() {
            match self.node_at(id, name)? {
                Some(found) => id = found,
                None => return Ok(Named::Nothing),
            }
        }
        self.trees.look(id, |entry| match &entry.remote {
            Some(remote) if remote.node.is_dir() => Named::Dir(id),
            Some(_) => Named::NoDir,
            None => Named::NotSent,
        })
    }

    /// Returns the node of that name in a directory: on this disk, or else in the drive.
    pub(super) fn node_at(&self, dir: NodeId, name: &Name) -> Result<Option<NodeId>, T::Error> {
        Ok(match self.trees.local_at(dir, name)?.first() {
            Some(here) => Some(*here),
            None => self.trees.remote_at(dir, name)?.first().copied(),
        })
    }

    /// Returns the directory for whose sake a node is left out, by the drive's tree.
    pub(super) fn left_out_with(&self, id: NodeId) -> Result<Option<NodeId>, T::Error> {
        let mut at = id;
        for _ in 0..DEPTH_MAX {
            if self.scope.left_out.contains(&at) {
                return Ok(Some(at));
            }
            match self.trees.look(at, |entry| entry.remote.as_ref().map(parent_of))? {
                Some(parent) => at = parent,
                None => break,
            }
        }
        Ok(None)
    }

    /// Returns whether nothing is left out, nor has a mark that it was.
    pub(super) fn is_all_wanted(&self) -> bool {
        self.scope.left_out.is_empty() && !self.trees.totals().has_left_out()
    }

    /// Returns whether what the server has in a directory is left out here.
    fn is_left_out_in(&mut self, dir: NodeId) -> Result<bool, T::Error> {
        if self.scope.known.len() >= KNOWN_MAX {
            self.scope.known.clear();
        }
        let mut walked = Vec::new();
        let mut at = dir;
        let is_left_out = loop {
            if at == NodeId::ROOT || walked.len() >= DEPTH_MAX {
                break false;
            }
            if self.scope.left_out.contains(&at) {
                break true;
            }
            if let Some(known) = self.scope.known.get(&at) {
                break *known;
            }
            walked.push(at);
            match self.trees.look(at, |entry| entry.remote.as_ref().map(parent_of))? {
                Some(parent) => at = parent,
                // Not heard of yet: that it comes tells more.
                None => break false,
            }
        };
        self.scope.known.extend(walked.into_iter().map(|at| (at, is_left_out)));
        Ok(is_left_out)
    }

    /// Returns whether an entry is wanted nowhere on this disk.
    fn is_left_out(&mut self, id: NodeId, entry: &Entry) -> Result<bool, T::Error> {
        match &entry.remote {
            Some(remote) if !self.scope.left_out.is_empty() => {
                Ok(self.scope.left_out.contains(&id) || self.is_left_out_in(parent_of(remote))?)
            }
            _ => Ok(false),
        }
    }

    /// Returns whether the server has a node that is left out here and is gone, or never came.
    pub(super) fn is_absent_by_wish(&mut self, id: NodeId) -> Result<bool, T::Error> {
        if self.scope.left_out.is_empty() {
            return Ok(false);
        }
        let entry = self.trees.get(id)?;
        Ok(entry.local.is_none() && self.is_left_out(id, &entry)?)
    }

    /// Gives an entry the right mark; returns whether it had another.
    pub(super) fn fit(&mut self, id: NodeId, entry: &mut Entry) -> Result<bool, T::Error> {
        let is_left_out = self.is_left_out(id, entry)?;
        if entry.left_out == is_left_out {
            return Ok(false);
        }
        entry.left_out = is_left_out;
        let is_wanted_again = !is_left_out && entry.remote.is_some();
        if is_wanted_again && !self.trees.has_defect(Defect::BaseOutlivesLeavingOut) {
            // What is as it was agreed on may be gone by now: that it is missing is no deletion.
            let here = entry.local.as_ref().map(Local::node);
            if here.is_none_or(|here| here == entry.synced) {
                entry.synced = None;
            }
        }
        Ok(true)
    }

    /// An entry is about to be written: where it is a directory that comes to be elsewhere, what was
    /// known of those below it is void.
    pub(super) fn note_place(&mut self, id: NodeId, entry: &Entry) -> Result<(), T::Error> {
        if self.scope.known.contains_key(&id) {
            let parent = entry.remote.as_ref().map(parent_of);
            let was = self.trees.look(id, |old| old.remote.as_ref().map(parent_of))?;
            if parent != was {
                self.scope.known.clear();
            }
        }
        Ok(())
    }

    /// An entry is about to be written with this mark: where it is a directory that had another, so do
    /// those below it.
    pub(super) fn note_mark(&mut self, id: NodeId, entry: &Entry) -> Result<(), T::Error> {
        let is_dir = entry.remote.as_ref().is_some_and(|remote| remote.node.is_dir());
        if is_dir && self.trees.look(id, |old| old.left_out)? != entry.left_out {
            self.scope.open.push(Open { dir: id, after: None, is_deep: false });
        }
        Ok(())
    }

    /// All is heard anew, so all is marked anew.
    pub(super) fn forget_scoped(&mut self) {
        self.scope.known.clear();
        self.scope.open.clear();
    }

    /// Goes on with setting marks.
    pub(super) fn advance_scope(&mut self) -> Result<(), T::Error> {
        let mut marked = 0;
        while marked < MARKS_PER_POLL
            && let Some(open) = self.scope.open.pop()
        {
            let children = self.trees.remote_children(open.dir, open.after, 512)?;
            let Some(last) = children.last() else { continue };
            self.scope.open.push(Open { after: Some(*last), ..open });
            marked += children.len();
            for child in children {
                let mut entry = self.trees.get(child)?;
                let is_dir = entry.remote.as_ref().is_some_and(|remote| remote.node.is_dir());
                if self.fit(child, &mut entry)? {
                    self.put(child, &entry)?;
                }
                if open.is_deep && is_dir {
                    self.scope.open.push(Open { dir: child, after: None, is_deep: true });
                }
            }
        }
        Ok(())
    }
}

fn parent_of(remote: &Remote) -> NodeId {
    let Place { parent, .. } = &remote.node.place;
    *parent
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::memory::MemoryTrees;
    use crate::engine::seam::{Action, DiskOp, Event, JournalPage, Look, Stat};
    use crate::engine::{Now, Settings};
    use crate::model::{
        Attrs, Body, Content, IdSource, Kind, Lineage, Node, Rev, Timestamp, Versioned,
    };

    const NOW: Now = Now { ms: 1, wall: Timestamp::new(0, 0).unwrap() };
    const FILES: u32 = 20_000;

    fn id(number: u32) -> NodeId {
        NodeId::from_bytes(u128::from(number).to_be_bytes())
    }

    fn node(number: u32, parent: NodeId, body: Body) -> Versioned {
        let place = Place { parent, name: Name::new(format!("n{number}")).unwrap() };
        let node = Some(Node { place, body, attrs: Attrs::from_mode(0o755) });
        Versioned { id: id(number), rev: Rev(number.into()), node }
    }

    /// An engine that has looked at an empty folder, leaves out the first directory, and has heard of
    /// `nodes`.
    fn engine_with(nodes: Vec<Versioned>) -> Engine<MemoryTrees> {
        let settings = Settings { left_out: BTreeSet::from([id(1)]), ..Settings::default() };
        let mut engine = Engine::new(MemoryTrees::new(), settings, IdSource::new([1; 32])).unwrap();
        engine.handle(NOW, Event::Rescan).unwrap();
        engine.poll(NOW, &mut Vec::new()).unwrap();
        let zero = Timestamp::default();
        let attrs = Attrs::from_mode(0o755);
        let dir = Stat {
            kind: Some(Kind::Dir),
            ino: 1,
            birth: zero,
            size: 0,
            mtime: zero,
            ctime: zero,
            attrs,
        };
        let look = Look::Entries { dir, entries: vec![] };
        engine.handle(NOW, Event::Looked { dir: NodeId::ROOT, names: None, look }).unwrap();
        let head = nodes.iter().map(|node| node.rev).max().unwrap();
        let lineage = Lineage::from_bytes([1; 16]);
        engine.handle(NOW, Event::Online { lineage, from: Rev::ZERO, head }).unwrap();
        let page = JournalPage { upto: head, head, consistent: true, nodes, digest: None };
        engine.handle(NOW, Event::Page(page)).unwrap();
        engine
    }

    #[test]
    fn a_directory_of_many_that_is_left_out_is_at_rest_and_comes_back_in_steps() {
        let file = || Body::File { content: Content::Empty, mtime: Timestamp::default() };
        // What is in it is told first, and it itself last.
        let mut nodes: Vec<Versioned> =
            (2..FILES + 2).map(|number| node(number, id(1), file())).collect();
        nodes.push(node(1, NodeId::ROOT, Body::Dir));
        let mut engine = engine_with(nodes);
        let mut actions = Vec::new();
        let mut polls = 0;
        while !engine.is_settled() && polls < 20 {
            polls += 1;
            engine.poll(NOW, &mut actions).unwrap();
        }
        assert!(engine.is_settled(), "{}", engine.describe_waits());
        assert!(!actions.iter().any(|action| matches!(action, Action::Apply { .. })));
        assert_eq!(engine.wake_at_ms(), None);
        let totals = engine.trees().totals();
        assert_eq!((totals.left_out_files, totals.left_out_dirs), (FILES.into(), 1));
        assert_eq!((totals.uploads, totals.downloads, totals.deletions), (0, 0, 0));

        engine.leave_out(BTreeSet::new()).unwrap();
        actions.clear();
        engine.poll(NOW, &mut actions).unwrap();
        // One poll is no long one; and nothing but the directory can be made yet.
        assert!(engine.trees().totals().left_out_files > u64::from(FILES) / 2);
        let [Action::Apply { op: DiskOp::MakeDir { .. }, .. }] = actions.as_slice() else {
            panic!("{actions:?}");
        };
        for _ in 0..20 {
            engine.poll(NOW, &mut actions).unwrap();
        }
        assert!(!engine.trees().totals().has_left_out());
        assert_eq!(engine.trees().totals().downloads, u64::from(FILES) + 1);
        assert_eq!(actions.len(), 1);
    }

    #[test]
    fn what_is_left_out_follows_the_drives_tree_wherever_a_directory_goes() {
        // 1 is left out; 3 is in 2 in 1.
        let (dir, root) = (|| Body::Dir, NodeId::ROOT);
        let nodes = vec![node(3, id(2), dir()), node(2, id(1), dir()), node(1, root, dir())];
        let mut engine = engine_with(nodes);
        let marks = |engine: &mut Engine<MemoryTrees>| {
            engine.poll(NOW, &mut Vec::new()).unwrap();
            [1, 2, 3].map(|number| engine.trees().get(id(number)).unwrap().left_out)
        };
        assert_eq!(marks(&mut engine), [true, true, true]);
        for (parent, expected) in [(root, false), (id(1), true)] {
            let moved = Versioned { rev: Rev(10 + u64::from(expected)), ..node(2, parent, dir()) };
            let (upto, head) = (moved.rev, moved.rev);
            let nodes = vec![moved];
            let page = JournalPage { upto, head, consistent: true, nodes, digest: None };
            engine.handle(NOW, Event::Page(page)).unwrap();
            assert_eq!(marks(&mut engine), [true, expected, expected]);
        }
        engine.leave_out(BTreeSet::from([NodeId::ROOT, id(3)])).unwrap();
        assert_eq!(marks(&mut engine), [false, false, true], "the root is never left out");
        assert_eq!(engine.left_out().unwrap()[0].path.as_ref().unwrap().to_string(), "n1/n2/n3");
    }
}
