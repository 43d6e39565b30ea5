//! What is being put or moved on this disk: remembered, so that an agent that dies before it has recorded
//! that as done does not take the server's version or order for what a person did.
//!
//! A note is kept with the trees from before the operation is asked for until what became of it is
//! in the trees. After a restart a file or directory of which the trees do not know is first taken
//! for the node that was to be put there; once it is known what it holds, and the journal has been
//! heard up to the version that was put, the note says what both sides agreed on. Of a node that was to
//! be moved, and is found at that place, it says so of the place alone. A note is a help:
//! without it, or where it does not fit, nothing is lost, but a conflict copy may be made.

use std::collections::{HashMap, HashSet};

use super::seam::{DiskOp, Stat};
use super::trees::{Entry, Local, LocalBody, Putting, Trees};
use super::{ApplyKind, Engine, Flight};
use crate::model::{Body, Content, Name, NodeId, Rev};

/// The most notes held; of more than this the ones of failed operations go.
const NOTES_MAX: usize = 8 * 1024;

/// The notes.
#[derive(Debug, Default)]
pub(super) struct Puttings {
    notes: HashMap<NodeId, Putting>,
    /// By directory and name on this disk.
    places: HashMap<(NodeId, Name), NodeId>,
    /// Nodes that were read and found to hold what was put: what they hold later is an edit of that.
    found: HashSet<NodeId>,
    /// Nodes whose notes an earlier life of this agent made: what became of them only the looks can tell.
    earlier: HashSet<NodeId>,
}

impl Puttings {
    pub(super) fn new(notes: Vec<Putting>) -> Self {
        let mut all = Self::default();
        for note in notes {
            let id = note.node;
            all.insert(note);
            all.earlier.insert(id);
        }
        all
    }

    fn insert(&mut self, note: Putting) {
        self.remove(note.node);
        self.places.insert(note.spot(), note.node);
        self.notes.insert(note.node, note);
    }

    fn remove(&mut self, id: NodeId) -> Option<Putting> {
        let note = self.notes.remove(&id)?;
        let spot = note.spot();
        if self.places.get(&spot) == Some(&id) {
            self.places.remove(&spot);
        }
        self.found.remove(&id);
        self.earlier.remove(&id);
        Some(note)
    }

    /// A file was read.
    pub(super) fn was_read(&mut self, id: NodeId, content: Content) {
        if self.notes.get(&id).is_some_and(
            |note| matches!(&note.here.body, Body::File { content: put, .. } if *put == content),
        ) {
            self.found.insert(id);
        }
    }

    pub(super) fn contains(&self, id: NodeId) -> bool {
        self.notes.contains_key(&id)
    }
}

impl Putting {
    fn spot(&self) -> (NodeId, Name) {
        let place = &self.here.place;
        (place.parent, self.alias.as_ref().unwrap_or(&place.name).clone())
    }
}

impl<T: Trees> Engine<T> {
    /// Notes what an operation is about to put on this disk.
    pub(super) fn note_putting(
        &mut self,
        id: NodeId,
        op: &DiskOp,
        what: &ApplyKind,
    ) -> Result<(), T::Error> {
        let (node, alias, base, is_move) = match what {
            ApplyKind::Put { node, alias, base } => (node, alias, base, false),
            ApplyKind::Move { node, alias, .. } => (node, alias, node, true),
            ApplyKind::Park
            | ApplyKind::Unpark { .. }
            | ApplyKind::SetAside
            | ApplyKind::Remove => {
                return Ok(());
            }
        };
        if matches!(op, DiskOp::SetAttrs { .. }) {
            // It brings no bytes by which it could be told.
            return Ok(());
        }
        if self.puttings.notes.len() >= NOTES_MAX {
            let flights = &self.flights;
            let idle = |id: &NodeId| !matches!(flights.get(id), Some(Flight::Apply(_)));
            let old: Vec<NodeId> = self.puttings.notes.keys().copied().filter(idle).collect();
            for id in old {
                self.forget_putting(id)?;
            }
        }
        let rev = self.trees.get(id)?.remote.map_or(Rev::ZERO, |remote| remote.rev);
        let (here, alias, base) = (node.clone(), alias.clone(), base.clone());
        let note = Putting { node: id, rev, here, alias, base, is_move };
        self.trees.note_putting(&note)?;
        self.puttings.insert(note);
        Ok(())
    }

    /// What was to be put is in the trees, or surely not on disk.
    pub(super) fn forget_putting(&mut self, id: NodeId) -> Result<Option<Putting>, T::Error> {
        let note = self.puttings.remove(id);
        if note.is_some() {
            self.trees.forget_putting(id)?;
        }
        Ok(note)
    }

    /// Nothing that was agreed on counts any more.
    pub(super) fn forget_puttings(&mut self) -> Result<(), T::Error> {
        let all: Vec<NodeId> = self.puttings.notes.keys().copied().collect();
        for id in all {
            self.forget_putting(id)?;
        }
        Ok(())
    }

    /// Everything on disk was looked at: notes for what is not there, or is known by now, are void.
    pub(super) fn sift_puttings(&mut self) -> Result<(), T::Error> {
        let all: Vec<NodeId> = self.puttings.notes.keys().copied().collect();
        for id in all {
            let entry = self.trees.get(id)?;
            let is_void = entry.local.is_none() || !entry.is_dirty();
            if is_void && !self.flights.contains_key(&id) {
                self.forget_putting(id)?;
            } else {
                self.agenda.schedule(id);
            }
        }
        Ok(())
    }

    /// Returns the node that was to be put where a newcomer was found, with its note.
    pub(super) fn was_put(
        &self,
        dir: NodeId,
        name: &Name,
        stat: &Stat,
    ) -> Result<Option<(Putting, Entry)>, T::Error> {
        let Some(id) = self.puttings.places.get(&(dir, name.clone())) else { return Ok(None) };
        let Some(note) = self.puttings.notes.get(id) else { return Ok(None) };
        let entry = self.trees.get(*id)?;
        let is_it = entry.local.is_none()
            && !self.flights.contains_key(id)
            && stat.kind == Some(note.here.body.kind());
        Ok(is_it.then(|| (note.clone(), entry)))
    }

    /// Decides, now that it is known what is on disk and in the journal, whether it is what was being
    /// put there: then that is what both sides agreed on.
    pub(super) fn settle_putting(&mut self, id: NodeId, entry: &Entry) -> Result<(), T::Error> {
        if !self.looks.is_known && self.puttings.earlier.contains(&id) {
            return Ok(());
        }
        if let Some(local) = &entry.local
            && self.looks.is_pending(local.place.parent, local.disk_name())
        {
            self.looks.wait_for_looks(id);
            return Ok(());
        }
        let was_found = self.puttings.found.contains(&id);
        let Some(note) = self.forget_putting(id)? else { return Ok(()) };
        self.agenda.schedule(id);
        self.agenda.wake(id);
        let Some(local) = &entry.local else { return Ok(()) };
        if note.is_move {
            return self.settle_move_noted(id, entry, local, note);
        }
        if (was_found || holds(local, &note.here.body)) && self.trees.meta().cursor >= note.rev {
            let mut entry = entry.clone();
            entry.synced = Some(note.base);
            return self.put(id, &entry);
        }
        let is_elsewhere = entry.remote.as_ref().is_none_or(|r| r.node.place != local.place);
        if entry.synced.is_none() && is_elsewhere {
            // Only the place spoke for it: it is something else.
            let fresh = self.fresh_id();
            self.give_local(id, fresh)?;
            self.agenda.schedule(fresh);
        }
        Ok(())
    }

    /// A node that is where it was to be moved was moved there by us: both sides agree on that place.
    fn settle_move_noted(
        &mut self,
        id: NodeId,
        entry: &Entry,
        local: &Local,
        note: Putting,
    ) -> Result<(), T::Error> {
        let is_there = note.spot() == (local.place.parent, local.disk_name().clone());
        if !is_there || local.parked || self.trees.meta().cursor < note.rev {
            return Ok(());
        }
        let mut entry = entry.clone();
        if let Some(local) = &mut entry.local {
            (local.place, local.alias) = (note.here.place, note.alias);
        }
        if let Some(base) = &mut entry.synced {
            base.place = note.base.place;
        }
        self.put(id, &entry)
    }
}

fn holds(local: &Local, body: &Body) -> bool {
    match (&local.body, body) {
        (LocalBody::Dir, Body::Dir) => true,
        (LocalBody::File(Some(here)), Body::File { content, .. }) => here == content,
        (LocalBody::Link(here), Body::Link { target }) => here == target,
        _ => false,
    }
}
