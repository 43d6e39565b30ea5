//! What differs and stays so, because a folder's changes go one way only.
//!
//! In a folder that only receives, what a person changes here is never told; in one that only sends, what
//! others change is never applied. Neither is work: such an entry is dirty, but needs nothing
//! ([`Need::Keep`]), is pending nowhere, and is counted by itself ([`Totals::kept`]). What changes go the
//! other way is settled by the same rules as ever, on this side alone: a file that was edited here and
//! there becomes a conflict copy here, one that was edited here and deleted there lives on here.
//!
//! A person ends it by choosing a side. That is a choice of merge base, and nothing else ([`Engine::settle`]): the
//! state of this disk, so that everything that differs comes from the server; or the server's, so that everything
//! that differs is told. What follows is planned, checked and held at the gate like any other change.
//!
//! [`Totals::kept`]: super::trees::Totals::kept

use super::Engine;
use super::decide::Need;
use super::seam::Action;
use super::trees::{Entry, Local, Trees};
use super::{Flight, Subject};
use crate::model::{Difference, Flow, NodeId, RelPath};

/// So many entries are looked at in one poll.
const SETTLED_PER_POLL: usize = 1024;

/// What a person should know of a change that cannot be told past one that stays on the server.
pub(super) const IN_THE_WAY: &str = "What others changed in the drive is in the way, and this folder only \
    sends; `picloud override` makes the drive what this folder is";

/// A path that differs and stays so.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KeptPath {
    /// Where it is here, or else in the drive.
    pub path: RelPath,
    /// How it differs.
    pub what: Difference,
}

/// A choice of side that is being carried out.
#[derive(Debug)]
pub(super) struct Settling {
    /// What it is about: this path and all below it.
    under: RelPath,
    /// The position of the last dirty entry looked at.
    after: u64,
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
        (Some(changed), Some(other)) if !changed.body.same_bytes(&other.body) => Difference::Edited,
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
    pub fn kept(&self, under: &RelPath, limit: usize) -> Result<(u64, Vec<KeptPath>), T::Error> {
        let mut count = 0;
        let mut first = Vec::new();
        let mut after = 0;
        loop {
            let dirty = self.trees.dirty(after, 512)?;
            let Some((last, _)) = dirty.last() else {
                return Ok((count, first));
            };
            after = *last;
            for (_, id) in dirty {
                let entry = self.trees.get(id)?;
                if !self.is_kept(id, &entry) {
                    continue;
                }
                let path = self.trees.path_of(id);
                if !path.names().starts_with(under.names()) {
                    continue;
                }
                count += 1;
                if first.len() < limit {
                    first.push(KeptPath { path, what: difference(&entry, self.settings.flow) });
                }
            }
        }
    }

    /// Ends that what is kept at and below a path differs: where this folder only receives, it becomes
    /// what the drive is; where it only sends, the drive becomes what it is. This goes on in steps.
    pub fn settle(&mut self, under: RelPath) {
        self.settling = Some(Settling { under, after: 0 });
    }

    /// Goes on with that.
    pub(super) fn advance_settling(&mut self) -> Result<(), T::Error> {
        let Some(Settling { under, after }) = self.settling.take() else { return Ok(()) };
        let dirty = self.trees.dirty(after, SETTLED_PER_POLL)?;
        let Some((last, _)) = dirty.last().copied() else { return Ok(()) };
        for (_, id) in dirty {
            let mut entry = self.trees.get(id)?;
            if !self.is_kept(id, &entry)
                || !self.trees.path_of(id).names().starts_with(under.names())
            {
                continue;
            }
            match self.settings.flow {
                Flow::ReceiveOnly => entry.synced = entry.local.as_ref().and_then(Local::node),
                Flow::SendOnly => match &entry.remote {
                    Some(remote) => entry.synced = Some(remote.node.clone()),
                    None => {
                        // Its id is used up.
                        let fresh = self.fresh_id();
                        self.give_local(id, fresh)?;
                        continue;
                    }
                },
                Flow::Both => return Ok(()),
            }
            self.put(id, &entry)?;
        }
        self.settling = Some(Settling { under, after: last });
        Ok(())
    }

    fn is_kept(&self, id: NodeId, entry: &Entry) -> bool {
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
        if self.settings.flow == Flow::SendOnly
            && !matches!(self.flights.get(&blocker), Some(Flight::Apply(_)))
        {
            let entry = self.trees.get(blocker)?;
            if self.is_kept(blocker, &entry) {
                self.problem(Subject::Node(id), IN_THE_WAY);
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
