//! What differs and stays so, because a folder's changes go one way only.
//!
//! In a folder that only receives, what a person changes here is never told; in one that only sends, what
//! others change is never applied. Neither is work: such an entry is dirty, but needs nothing
//! (`Keep`), is pending nowhere, and is counted by itself ([`Totals::kept`]). What changes go the
//! other way is settled by the same rules as ever, on this side alone: a file that was edited here and
//! there becomes a conflict copy here, one that was edited here and deleted there lives on here.
//!
//! A person ends it by choosing a side. That is a choice of merge base, and nothing else ([`Engine::settle`]): the
//! state of this disk, so that everything that differs comes from the server; or the server's, so that everything
//! that differs is told. What follows is planned, checked and held at the gate like any other change.
//!
//! [`Totals::kept`]: super::trees::Totals::kept

use super::Engine;
use super::Subject;
use super::decide::Need;
use super::seam::Action;
use super::trees::{Entry, Local, Trees};
use crate::model::{Difference, Flow, Node, NodeId, RelPath};

/// What a person should know of a change that cannot be told past one that stays on the server.
pub(super) const IN_THE_WAY: &str = "What others changed in the drive is in the way, and this folder only \
    sends; `picloud override` makes the drive what this folder is";

/// What a person should know of a directory that is left out, and holds what was changed in it here.
const STAYS_INSIDE: &str = "What was changed in it here stays here, so it cannot go from this device; move that \
    elsewhere, or `picloud revert` takes it back";

/// A path that differs and stays so.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KeptPath {
    /// Where it is here, or else in the drive.
    pub path: RelPath,
    /// How it differs.
    pub what: Difference,
}

/// Returns how the side on which a change was made differs from the other.
pub(super) fn difference(entry: &Entry, flow: Flow) -> Difference {
    let here = entry.local.as_ref().and_then(Local::node);
    let there = entry.remote.as_ref().map(|remote| remote.node.clone());
    let (changed, other) = match flow {
        Flow::SendOnly => (there, here),
        Flow::ReceiveOnly | Flow::Both => (here, there),
    };
    match (changed, other) {
        (Some(_), None) => Difference::New,
        (None, _) => Difference::Gone,
        (Some(changed), Some(other)) if changed.place != other.place => Difference::Moved,
        (Some(changed), Some(other)) if !changed.body.same_bytes(&other.body) => {
            let is_base = |base: &Node| other.body.same_bytes(&base.body);
            match entry.synced.as_ref().is_some_and(is_base) {
                true => Difference::Edited,
                false => Difference::Both,
            }
        }
        (Some(_), Some(_)) => Difference::Touched,
    }
}

impl<T: Trees> Engine<T> {
    /// Returns the way changes go.
    pub fn flow(&self) -> Flow {
        self.settings.flow
    }

    /// Returns how many entries at and below a path differ and stay so, and the first of them.
    ///
    /// # Errors
    /// When the trees cannot be read.
    pub fn kept(
        &mut self,
        under: &RelPath,
        limit: usize,
    ) -> Result<(u64, Vec<KeptPath>), T::Error> {
        let mut count = 0;
        let mut first = Vec::new();
        self.for_each_kept(under, |engine, id, entry| {
            count += 1;
            if first.len() < limit {
                let path = engine.trees.path_of(id);
                first.push(KeptPath { path, what: difference(&entry, engine.settings.flow) });
            }
            Ok(())
        })?;
        Ok((count, first))
    }

    /// Ends that what is kept at and below a path differs: where this folder only receives, it becomes
    /// what the drive is; where it only sends, the drive becomes what it is. What follows is planned.
    ///
    /// # Errors
    /// When the trees cannot be read or written; the engine must then be dropped.
    pub fn settle(&mut self, under: &RelPath) -> Result<(), T::Error> {
        self.for_each_kept(under, Self::choose_side)
    }

    /// Does something with each entry at and below a path that differs and stays so.
    fn for_each_kept(
        &mut self,
        under: &RelPath,
        mut act: impl FnMut(&mut Self, NodeId, Entry) -> Result<(), T::Error>,
    ) -> Result<(), T::Error> {
        let mut after = 0;
        loop {
            let dirty = self.trees.dirty(after, 512)?;
            let Some((last, _)) = dirty.last() else { return Ok(()) };
            after = *last;
            for (_, id) in dirty {
                let entry = self.trees.get(id)?;
                if self.is_kept(id, &entry) && self.is_at_or_below(id, under)? {
                    act(self, id, entry)?;
                }
            }
        }
    }

    fn choose_side(&mut self, id: NodeId, mut entry: Entry) -> Result<(), T::Error> {
        match (self.settings.flow, &entry.remote) {
            (Flow::Both, _) => return Ok(()),
            (Flow::ReceiveOnly, _) => entry.synced = entry.local.as_ref().and_then(Local::node),
            (Flow::SendOnly, Some(remote)) => entry.synced = Some(remote.node.clone()),
            (Flow::SendOnly, None) => {
                // Its id is used up.
                let fresh = self.fresh_id();
                return self.give_local(id, fresh);
            }
        }
        self.put(id, &entry)
    }

    /// Returns whether a node is at a path or below it, here or in the drive.
    fn is_at_or_below(&self, id: NodeId, under: &RelPath) -> Result<bool, T::Error> {
        let is_in = |path: RelPath| path.names().starts_with(under.names());
        Ok(under.is_root() || is_in(self.trees.path_of(id)) || is_in(self.path_in_drive(id)?))
    }

    pub(super) fn is_kept(&self, id: NodeId, entry: &Entry) -> bool {
        !self.flights.contains_key(&id) && self.decide(entry) == Need::Keep
    }

    /// A node differs and stays so. What it needs on this side alone is done: a directory that is not
    /// deleted here because something of this side's is in it, a name that the drive has for another.
    pub(super) fn keep(
        &mut self,
        id: NodeId,
        entry: &Entry,
        actions: &mut Vec<Action>,
    ) -> Result<(), T::Error> {
        self.solve(&Subject::Node(id));
        let Some(local) = &entry.local else { return Ok(()) };
        if self.settings.flow != Flow::ReceiveOnly {
            return Ok(());
        }
        let parent = local.place.parent;
        let is_placed_here =
            entry.remote.as_ref().is_none_or(|there| there.node.place != local.place);
        if !is_placed_here {
            return Ok(());
        }
        let above = self.trees.get(parent)?;
        if above.remote.is_none() && above.synced.is_some() {
            return self.revive_above(id, parent);
        }
        if entry.remote.is_some() && !entry.left_out && self.is_undone(id, parent)? {
            return self.undo_move(id, entry, &local.place);
        }
        if self.is_name_held(id, local)? {
            return self.set_aside(id, local, actions);
        }
        Ok(())
    }

    /// Puts a node aside until something happens to another. Where that other one stays as it is, a
    /// person should know.
    pub(super) fn wait_behind(&mut self, id: NodeId, blocker: NodeId) -> Result<(), T::Error> {
        self.agenda.schedule(blocker);
        self.agenda.wait_for(id, blocker);
        let reason = match self.settings.flow {
            Flow::Both => return Ok(()),
            Flow::ReceiveOnly => STAYS_INSIDE,
            Flow::SendOnly => IN_THE_WAY,
        };
        let is_leaving = self.trees.look(id, |entry| entry.left_out)?;
        if self.settings.flow == Flow::SendOnly || is_leaving {
            let entry = self.trees.get(blocker)?;
            if self.is_kept(blocker, &entry) {
                self.problem(Subject::Node(id), reason);
            }
        }
        Ok(())
    }

    /// Returns the node of the drive's that something new here is the same as, in a folder that only sends:
    /// it is of the same kind and has its name, and does not come here by itself.
    pub(super) fn met_there(&self, entry: &Entry) -> Result<Option<NodeId>, T::Error> {
        let Some(here) = entry.local.as_ref().and_then(Local::node) else { return Ok(None) };
        if self.settings.flow != Flow::SendOnly {
            return Ok(None);
        }
        for other in self.trees.remote_at(here.place.parent, &here.place.name)? {
            let entry = self.trees.get(other)?;
            let is_same_kind = entry
                .remote
                .as_ref()
                .is_some_and(|there| there.node.body.kind() == here.body.kind());
            if is_same_kind && entry.local.is_none() && self.is_kept(other, &entry) {
                return Ok(Some(other));
            }
        }
        Ok(None)
    }
}
