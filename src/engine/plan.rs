//! The planner: what a node needs (`decide`), fitted to its neighbours, as actions.
//!
//! A node is planned when it is ready. Whatever it needs first (its parent on the other side, a name
//! that another node has to leave, room in a window) it waits for, and is planned again. So plans
//! are small, are made from the newest state, and need no undoing.

use super::agenda::Room;
use super::aliases::name_between;
use super::apply::OWN_DIR;
use super::decide::Need;
use super::defect::Defect;
use super::deletions::Course;
use super::kept::IN_THE_WAY;
use super::rings::{Ring, reached_from};
use super::seam::{Action, DirRef, DiskOp, Expected, Outgoing, Spot};
use super::trees::{Aspects, Entry, Local, LocalBody, Remote, Sent, Trees};
use super::{
    ApplyKind, Applying, Batch, COMMIT_BYTES_MAX, COMMIT_CHANGES_MAX, Engine, Flight, Pushed,
    Subject,
};
use crate::model::{Body, Change, ChangeOp, Content, Flow, Name, Node, NodeId, Place, Rev};

/// The most changes that a server takes as one, and so the longest ring of nodes, each of which waits
/// for the next, that can be told of in one step. Of the entries of a directory that is to go as many
/// are asked what they wait for: the others come to be asked when these are gone.
const RING_MAX: usize = 64;

/// How deep a directory of the server's may be: an honest server allows no more.
const DEPTH_MAX: usize = 4096;

/// How a node gets out of what it waits for on the server.
enum Way {
    /// It is in no ring.
    Free,
    /// This is told of in one step.
    Together(Vec<NodeId>),
    /// First this one, which the ring waits for and is no part of it.
    After(NodeId),
    /// The ring is too long to be told of in one step: it is opened by a name in between.
    Between,
}

/// Whether a neighbour is ready.
enum Ready<V> {
    Yes(V),
    /// Wait for this node.
    After(NodeId),
    /// Something was changed; plan this node again.
    Again,
    /// What is on disk at the name is in question; wait for the look at it.
    Looking,
}

macro_rules! ready {
    ($self:ident, $id:ident, $what:expr) => {
        match $what {
            Ready::Yes(value) => value,
            Ready::After(blocker) => return $self.wait_behind($id, blocker),
            Ready::Again => {
                $self.agenda.schedule($id);
                return Ok(());
            }
            Ready::Looking => {
                $self.looks.wait_for_looks($id);
                return Ok(());
            }
        }
    };
}

impl<T: Trees> Engine<T> {
    /// Plans one node.
    pub(super) fn plan(&mut self, id: NodeId, actions: &mut Vec<Action>) -> Result<(), T::Error> {
        if self.flights.contains_key(&id) || self.agenda.must_wait(id, self.now.ms) {
            return Ok(());
        }
        if !self.uploaded.contains_key(&id) {
            self.quota.release(id);
        }
        let mut entry = self.trees.get(id)?;
        if self.fit(id, &mut entry)? {
            return self.put(id, &entry);
        }
        let need = self.mistake(self.decide(&entry), &entry);
        if need != Need::Hash {
            self.looks.torn.remove(&id);
        }
        match need {
            Need::Rest => return Ok(()),
            Need::Forget => return self.put(id, &Entry::default()),
            Need::Hash if self.is_stray(&entry)? => return self.take_stray(id),
            Need::Hash => return self.hash(id, &entry, actions),
            _ => {}
        }
        if !self.link.online || self.link.paused || !self.trees.meta().consistent {
            return Ok(());
        }
        if self.is_after_unclean_stop() {
            // What is known of the disk may not be there any more: it is no base for anything.
            return Ok(());
        }
        if self.unsure.contains_key(&id) {
            if self.settings.flow == Flow::ReceiveOnly {
                // It tells nothing any more: nothing is agreed on.
                self.unsure.remove(&id);
                self.agenda.schedule(id);
                return Ok(());
            }
            return self.ask_again(id, actions);
        }
        if self.puttings.contains(id) {
            return self.settle_putting(id, &entry);
        }
        if self.is_stray(&entry)? {
            return self.take_stray(id);
        }
        match need {
            Need::Rest | Need::Forget | Need::Hash => Ok(()),
            Need::TakeLocalAsBase => {
                // What an earlier life of this agent removed, because it was left out then, may not be
                // known to be gone yet: taken for what both sides agree on, it would seem deleted.
                if entry.synced.is_none() && !self.looks.is_known {
                    return Ok(());
                }
                let mut entry = entry;
                entry.synced = entry.local.as_ref().and_then(Local::node);
                self.put(id, &entry)
            }
            Need::DropBase => {
                let mut entry = entry;
                entry.synced = None;
                self.put(id, &entry)
            }
            Need::TakeRemoteAsBase => {
                if entry.synced.is_none() && !self.looks.is_known {
                    return Ok(());
                }
                let mut entry = entry;
                entry.synced = entry.remote.as_ref().map(|remote| remote.node.clone());
                self.put(id, &entry)
            }
            Need::Keep => self.keep(id, &entry, actions),
            Need::Revive => match &entry.local {
                Some(local) if local.parked => self.unpark(id, local),
                _ => {
                    let fresh = self.fresh_id();
                    self.give_local(id, fresh)
                }
            },
            Need::PushCreate | Need::PushUpdate(_) | Need::PushDelete => {
                // The server may have told of part of what it has: the rest may be the same as this.
                if self.waits_for_journal(id) {
                    return Ok(());
                }
                if need == Need::PushDelete && !(self.may_delete(id)? && self.may_let_go(id)?) {
                    return Ok(());
                }
                if !self.has_room(Room::Commits) {
                    self.agenda.crowd_out(id, Room::Commits);
                    return Ok(());
                }
                match need {
                    Need::PushCreate => self.push_create(id, &entry, actions),
                    Need::PushUpdate(aspects) => self.push_update(id, &entry, aspects, actions),
                    _ => self.push_delete(id, &entry, actions),
                }
            }
            Need::PullCreate
            | Need::PullPlace
            | Need::PullBody { .. }
            | Need::PullAttrs
            | Need::PullDelete
            | Need::LeaveOut => {
                // Before the first look at the disk is complete, what is there is not known.
                if self.looks.rescans_done == 0 {
                    return Ok(());
                }
                if !self.has_room(Room::Applies) {
                    self.agenda.crowd_out(id, Room::Applies);
                    return Ok(());
                }
                if let Some(local) = &entry.local
                    && self.looks.is_pending(local.place.parent, local.disk_name())
                {
                    self.looks.wait_for_looks(id);
                    return Ok(());
                }
                match need {
                    Need::PullCreate => self.pull_create(id, &entry, actions),
                    Need::PullPlace => self.pull_place(id, &entry, actions),
                    Need::PullBody { keep } => self.pull_body(id, &entry, keep, actions),
                    Need::PullAttrs => self.pull_attrs(id, &entry, actions),
                    _ => self.pull_delete(id, &entry, actions),
                }
            }
        }
    }

    /// Puts a node aside while it is not known yet what was on the server when the connection began;
    /// returns whether it does.
    fn waits_for_journal(&mut self, id: NodeId) -> bool {
        let waits = self.trees.meta().cursor < self.link.head_at_first;
        if waits {
            self.agenda.wait_for_rev(id, self.link.head_at_first);
        }
        waits
    }

    /// Returns what a node needs as an engine with one of these faults would have it.
    fn mistake(&self, need: Need, entry: &Entry) -> Need {
        let is_deleted_there = entry.remote.is_none() && entry.synced.is_some();
        match need {
            Need::Revive
                if is_deleted_there && self.trees.has_defect(Defect::DeletionBeatsEdit) =>
            {
                Need::PullDelete
            }
            Need::PullBody { keep } => {
                Need::PullBody { keep: keep && !self.trees.has_defect(Defect::ConflictDropped) }
            }
            Need::DropBase if entry.left_out && self.trees.has_defect(Defect::LeftOutIsDeleted) => {
                Need::PushDelete
            }
            Need::Keep if entry.is_deletion() && self.trees.has_defect(Defect::ReceiverDeletes) => {
                Need::PushDelete
            }
            need => need,
        }
    }

    fn hash(
        &mut self,
        id: NodeId,
        entry: &Entry,
        actions: &mut Vec<Action>,
    ) -> Result<(), T::Error> {
        if !self.has_room(Room::Hashes) {
            self.agenda.crowd_out(id, Room::Hashes);
            return Ok(());
        }
        let Some(local) = &entry.local else {
            return Ok(());
        };
        let Some(at) = self.spot(local)? else {
            return Ok(());
        };
        self.launch(id, Flight::Hash);
        actions.push(Action::Hash { node: id, at, stat: local.stat });
        Ok(())
    }

    // To the server.

    fn push_create(
        &mut self,
        id: NodeId,
        entry: &Entry,
        actions: &mut Vec<Action>,
    ) -> Result<(), T::Error> {
        let Some((local, node)) = entry.local.as_ref().and_then(|l| Some((l, l.node()?))) else {
            return Ok(());
        };
        ready!(self, id, self.parent_there(node.place.parent)?);
        if let Some(same) = self.met_there(entry)? {
            return self.give_local(id, same);
        }
        if self.is_name_held(id, local)? {
            return self.set_aside(id, local, actions);
        }
        ready!(self, id, self.name_there(id, &node.place)?);
        let attach = match self.content_there(id, local, &node.body, None, actions)? {
            Some(attach) => attach,
            None => return Ok(()),
        };
        let change = Change::new(id, Rev::ZERO, ChangeOp::Create(node.clone()));
        let pushed =
            Pushed { node: Some(node), is_create: true, base: Rev::ZERO, told: Aspects::ALL };
        self.commit(Outgoing { change, attach }, pushed, actions)
    }

    fn push_update(
        &mut self,
        id: NodeId,
        entry: &Entry,
        mut aspects: Aspects,
        actions: &mut Vec<Action>,
    ) -> Result<(), T::Error> {
        let (Some(local), Some(remote)) = (&entry.local, &entry.remote) else {
            return Ok(());
        };
        let Some(here) = local.node() else {
            return Ok(());
        };
        let place = here.place.clone();
        if aspects.place {
            let parent = place.parent;
            let above = self.trees.get(parent)?;
            if above.remote.is_none() && above.synced.is_some() {
                // Deleted there; it goes on as something new before anything is told of what is in it.
                ready!(self, id, self.parent_there(parent)?);
            }
            let anchor = self.anchor_there(parent)?;
            if self.is_undone(id, parent)? {
                if self.settings.flow == Flow::SendOnly && !entry.left_out {
                    self.problem(Subject::Node(id), IN_THE_WAY);
                    return Ok(());
                }
                return self.undo_move(id, entry, &place);
            }
            match self.way_out_there(id)? {
                Way::Free => {}
                Way::Together(ring) => return self.push_ring(id, &ring, actions),
                Way::After(first) => ready!(self, id, Ready::<()>::After(first)),
                Way::Between => return self.push_between(id, remote, actions),
            }
            ready!(self, id, self.parent_there(parent)?);
            if self.is_below_there(anchor, id)?
                && let Some(mover) = self.mover_there(anchor, id)?
            {
                ready!(self, id, Ready::<()>::After(mover));
            }
            if self.is_name_held(id, local)? {
                return self.set_aside(id, local, actions);
            }
            ready!(self, id, self.name_there(id, &place)?);
        }
        let has_else = aspects.place || aspects.attrs;
        let known = Some(&remote.node.body);
        let is_held = aspects.body && has_else && !self.fits_quota(id, &here.body, known);
        // What it holds now waits for room; where it is, and who may read it, does not.
        aspects.body &= !is_held;
        let attach = if aspects.body {
            match self.content_there(id, local, &here.body, Some(&remote.node.body), actions)? {
                Some(attach) => attach,
                None => return Ok(()),
            }
        } else {
            None
        };
        aspects.place &= place != remote.node.place;
        if is_held && !aspects.place && !aspects.attrs {
            return Ok(());
        }
        let after = Node {
            place: if aspects.place { place.clone() } else { remote.node.place.clone() },
            body: if aspects.body { here.body.clone() } else { remote.node.body.clone() },
            attrs: if aspects.attrs { here.attrs } else { remote.node.attrs },
        };
        let op = ChangeOp::Update {
            place: aspects.place.then_some(place),
            body: aspects.body.then_some(here.body),
            attrs: aspects.attrs.then_some(here.attrs),
        };
        let change = Change::new(id, remote.rev, op);
        let pushed =
            Pushed { node: Some(after), is_create: false, base: remote.rev, told: aspects };
        self.commit(Outgoing { change, attach }, pushed, actions)
    }

    fn push_delete(
        &mut self,
        id: NodeId,
        entry: &Entry,
        actions: &mut Vec<Action>,
    ) -> Result<(), T::Error> {
        let Some(remote) = &entry.remote else {
            return Ok(());
        };
        if remote.node.is_dir() {
            // Its entries first: those deleted here too go the same way; any other brings the
            // directory back when it is planned, as one does that is left out here: nobody who did not
            // see it can have deleted it.
            for child in self.trees.remote_children(id, None, 8)? {
                if self.trees.look(child, |child| child.left_out && child.local.is_none())? {
                    let mut entry = entry.clone();
                    entry.synced = None;
                    return self.put(id, &entry);
                }
                let on_its_way = matches!(self.flights.get(&child),
                    Some(Flight::Commit { pushed }) if pushed.node.is_none());
                if !on_its_way {
                    return self.wait_behind(id, child);
                }
            }
            if let [.., last] = self.trees.remote_children(id, None, 9)?.as_slice()
                && self.trees.remote_children(id, None, 9)?.len() > 8
            {
                self.agenda.wait_for(id, *last);
                return Ok(());
            }
        }
        let change = Change::new(id, remote.rev, ChangeOp::Delete);
        let pushed = Pushed { node: None, is_create: false, base: remote.rev, told: Aspects::ALL };
        self.commit(Outgoing { change, attach: None }, pushed, actions)
    }

    /// Sends a change once more of which it is not known whether the server took it: based on what it
    /// was based on, it is answered as it was then, or refused, since others have come after that.
    fn ask_again(&mut self, id: NodeId, actions: &mut Vec<Action>) -> Result<(), T::Error> {
        let known = self.trees.get(id)?.remote.map(|remote| remote.rev);
        let Some((Sent { after: Some(after), base: Some(base), told, .. }, base_was)) =
            self.unsure.get(&id).filter(|(sent, _)| sent.base < known).cloned()
        else {
            self.unsure.remove(&id);
            self.agenda.schedule(id);
            return Ok(());
        };
        if !self.has_room(Room::Commits) {
            self.agenda.crowd_out(id, Room::Commits);
            return Ok(());
        }
        let Node { place, body, attrs } = after.clone();
        let is_moved = base_was.is_none_or(|was| was.place != place);
        let place = is_moved.then_some(place);
        let op = ChangeOp::Update { place, body: Some(body), attrs: Some(attrs) };
        let pushed = Pushed { node: Some(after), is_create: false, base, told };
        self.commit(Outgoing { change: Change::new(id, base, op), attach: None }, pushed, actions)
    }

    /// Returns whether the server may be told of a deletion now; what was rejected is taken back.
    fn may_delete(&mut self, id: NodeId) -> Result<bool, T::Error> {
        match self.deletion_course() {
            Course::Tell => Ok(true),
            Course::PutOff => Ok(false),
            Course::TakeBack => {
                let mut entry = self.trees.get(id)?;
                entry.synced = None;
                self.put(id, &entry)?;
                Ok(false)
            }
        }
    }

    fn commit(
        &mut self,
        outgoing: Outgoing,
        pushed: Pushed,
        actions: &mut Vec<Action>,
    ) -> Result<(), T::Error> {
        let id = outgoing.change.node;
        if let Some((_, expected)) = &outgoing.attach {
            self.outbox_bytes += expected.content.map_or(0, |content| content.len());
        }
        self.launch(id, Flight::Commit { pushed });
        self.outbox.push(outgoing);
        if self.outbox.len() >= COMMIT_CHANGES_MAX || self.outbox_bytes >= COMMIT_BYTES_MAX {
            self.flush(actions)?;
        }
        Ok(())
    }

    /// Sends the changes gathered so far.
    ///
    /// What they ask for is remembered in the trees, which the driver makes durable before it sends.
    pub(super) fn flush(&mut self, actions: &mut Vec<Action>) -> Result<(), T::Error> {
        if self.outbox.is_empty() {
            return Ok(());
        }
        let changes = std::mem::take(&mut self.outbox);
        self.outbox_bytes = 0;
        let batch = self.next_batch;
        self.next_batch += 1;
        let sent: Vec<Sent> = changes
            .iter()
            .filter_map(|outgoing| match self.flights.get(&outgoing.change.node) {
                Some(Flight::Commit { pushed }) => Some(Sent {
                    node: outgoing.change.node,
                    after: pushed.node.clone(),
                    base: Some(pushed.base),
                    told: pushed.told,
                }),
                _ => None,
            })
            .collect();
        if !self.trees.has_defect(Defect::SentForgotten) {
            self.trees.note_sent(batch, &sent)?;
        }
        self.batches.insert(batch, Batch::of(&changes));
        actions.push(Action::Commit { batch, changes });
        Ok(())
    }

    /// Sees to it that the server has the content of a file: nothing when that takes an upload
    /// first, else what has to be attached to the change.
    fn content_there(
        &mut self,
        id: NodeId,
        local: &Local,
        body: &Body,
        known: Option<&Body>,
        actions: &mut Vec<Action>,
    ) -> Result<Option<Option<(Spot, Expected)>>, T::Error> {
        let Body::File { content, .. } = body else {
            return Ok(Some(None));
        };
        if !self.fits_quota(id, body, known) {
            return Ok(None);
        }
        let is_there = content.is_empty()
            || known.is_some_and(|known| known.same_bytes(body))
            || self.uploaded.get(&id) == Some(content);
        if is_there {
            self.reserve_room(id, body, known);
            return Ok(Some(None));
        }
        let Some(at) = self.spot(local)? else {
            return Ok(None);
        };
        let expected = Expected { stat: local.stat, content: Some(*content) };
        match content {
            Content::Chunk { len, .. } if *len <= self.settings.inline_len_max => {
                self.reserve_room(id, body, known);
                Ok(Some(Some((at, expected))))
            }
            _ => {
                if !self.has_room(Room::Uploads) {
                    self.agenda.crowd_out(id, Room::Uploads);
                } else {
                    self.launch(id, Flight::Upload { content: *content });
                    self.reserve_room(id, body, known);
                    let base = match known {
                        Some(Body::File { content, .. }) => Some(*content),
                        _ => None,
                    };
                    actions.push(Action::Upload { node: id, at, expected, base });
                }
                Ok(None)
            }
        }
    }

    /// Sees to it that a directory of this disk is on the server, or will be before what is sent
    /// next.
    fn parent_there(&mut self, parent: NodeId) -> Result<Ready<()>, T::Error> {
        if parent == NodeId::ROOT {
            return Ok(Ready::Yes(()));
        }
        let entry = self.trees.get(parent)?;
        if entry.remote.is_some()
            || matches!(self.flights.get(&parent),
                Some(Flight::Commit { pushed }) if pushed.is_create)
        {
            return Ok(Ready::Yes(()));
        }
        if entry.synced.is_some() {
            // Deleted there, but something new or edited is in it here: it lives on.
            if let Some(local) = entry.local.filter(|local| local.parked) {
                if !self.flights.contains_key(&parent) {
                    self.unpark(parent, &local)?;
                }
                return Ok(Ready::After(parent));
            }
            let fresh = self.fresh_id();
            self.give_local(parent, fresh)?;
            self.agenda.schedule(fresh);
            return Ok(Ready::Again);
        }
        Ok(Ready::After(parent))
    }

    /// From here on only the server moved a node, so that who waits for it, and for whom it waits, knows where
    /// it goes. What is left out goes from where it is.
    pub(super) fn undo_move(
        &mut self,
        id: NodeId,
        entry: &Entry,
        here: &Place,
    ) -> Result<(), T::Error> {
        let mut entry = entry.clone();
        if let Some(base) = &mut entry.synced {
            base.place = here.clone();
        }
        self.put(id, &entry)
    }

    /// A directory was deleted there, and something of this disk's is in it: it lives on, before anything
    /// becomes of that.
    pub(super) fn revive_above(&mut self, id: NodeId, parent: NodeId) -> Result<(), T::Error> {
        ready!(self, id, self.parent_there(parent)?);
        Ok(())
    }

    /// Sees to it that a name is free on the server, or will be before what is sent next.
    fn name_there(&mut self, id: NodeId, place: &Place) -> Result<Ready<()>, T::Error> {
        for other in self.trees.remote_at(place.parent, &place.name)? {
            if other == id {
                continue;
            }
            if let Some(Flight::Commit { pushed }) = self.flights.get(&other)
                && pushed.node.as_ref().is_none_or(|node| node.place != *place)
            {
                continue;
            }
            // It is to leave (deleted or moved here, not told yet), or to come here, and then this
            // node makes way.
            return Ok(Ready::After(other));
        }
        Ok(Ready::Yes(()))
    }

    /// Returns whether another node has the same name in the drive, and stays: one of the two has an
    /// alias here, or that one is left out here, so that they are not in each other's way on this disk.
    pub(super) fn is_name_held(&mut self, id: NodeId, local: &Local) -> Result<bool, T::Error> {
        let Place { parent, name } = &local.place;
        for other in self.trees.remote_at(*parent, name)? {
            if other == id || self.flights.contains_key(&other) {
                continue;
            }
            let mut holder = self.trees.get(other)?;
            self.fit(other, &mut holder)?;
            if self.stays_left_out(&holder) {
                return Ok(true);
            }
            let there = self.trees.get(other)?.local.filter(|there| there.place == local.place);
            if there.is_some_and(|there| there.alias.is_some() || local.alias.is_some()) {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// Returns whether what is left out has nothing to tell that would take it from its place in the drive:
    /// whatever is still here of it only goes, or stays here alone.
    fn stays_left_out(&self, entry: &Entry) -> bool {
        let only_goes = |need| {
            matches!(need, Need::LeaveOut | Need::TakeLocalAsBase | Need::DropBase | Need::Keep)
        };
        entry.left_out && (entry.local.is_none() || only_goes(self.decide(entry)))
    }

    /// Tells the server of a ring of nodes, each of which waits for the next to leave its name or to
    /// be there, in one step.
    fn push_ring(
        &mut self,
        id: NodeId,
        ring: &[NodeId],
        actions: &mut Vec<Action>,
    ) -> Result<(), T::Error> {
        let mut changes = Vec::with_capacity(ring.len());
        for &member in ring {
            if member != id && self.flights.contains_key(&member) {
                self.agenda.wait_for(id, member);
                return Ok(());
            }
            let entry = self.trees.get(member)?;
            let here = entry.local.as_ref().and_then(Local::node);
            let change = match (self.decide(&entry), here, &entry.remote) {
                (Need::PushCreate, Some(node), None) if node.is_dir() => {
                    let op = ChangeOp::Create(node.clone());
                    (Change::new(member, Rev::ZERO, op), Some(node), true)
                }
                (Need::PushUpdate(_), Some(here), Some(remote))
                    if !self.is_undone(member, here.place.parent)? =>
                {
                    if let Some(local) = &entry.local
                        && self.is_name_held(member, local)?
                    {
                        self.set_aside(member, local, actions)?;
                        self.agenda.wait_for(id, member);
                        return Ok(());
                    }
                    let op = ChangeOp::Update {
                        place: Some(here.place.clone()),
                        body: None,
                        attrs: None,
                    };
                    let after = Node { place: here.place, ..remote.node.clone() };
                    (Change::new(member, remote.rev, op), Some(after), false)
                }
                (Need::PushDelete, _, Some(remote)) => {
                    if !self.may_delete(member)? {
                        return Ok(());
                    }
                    (Change::new(member, remote.rev, ChangeOp::Delete), None, false)
                }
                _ => {
                    // What is left out does nothing; the directory it is in comes back for it.
                    let first = match &entry.remote {
                        Some(remote) if entry.left_out && entry.local.is_none() => {
                            remote.node.place.parent
                        }
                        _ => member,
                    };
                    return self.wait_behind(id, first);
                }
            };
            changes.push(change);
        }
        if self.outbox.len() + changes.len() > COMMIT_CHANGES_MAX {
            self.flush(actions)?;
        }
        let last = changes.len() - 1;
        for (index, (mut change, node, is_create)) in changes.into_iter().enumerate() {
            change.with_next = index < last;
            let pushed = Pushed {
                node,
                is_create,
                base: change.base,
                told: if is_create { Aspects::ALL } else { Aspects::PLACE },
            };
            self.commit(Outgoing { change, attach: None }, pushed, actions)?;
        }
        Ok(())
    }

    /// Returns how a node that is to move gets out of a ring of nodes that wait for each other.
    fn way_out_there(&mut self, id: NodeId) -> Result<Way, T::Error> {
        let mut rings = std::mem::take(&mut self.rings_there);
        let ring = rings.of(id, |node| self.blockers_there(node));
        self.rings_there = rings;
        let ring = match ring? {
            Ring::No => return Ok(Way::Free),
            // While anything else goes on, the end of a chain may come nearer.
            Ring::Unknown if self.is_at_work() => return Ok(Way::Free),
            Ring::Unknown => return Ok(Way::Between),
            Ring::Of(ring) => ring,
        };
        if let Some(all) = reached_from(id, RING_MAX, |node| self.blockers_there(node))? {
            return Ok(Way::Together(all));
        }
        if ring.len() > RING_MAX {
            return Ok(Way::Between);
        }
        for member in &ring {
            let blockers = self.blockers_there(*member)?;
            if let Some(first) = blockers.into_iter().find(|blocker| !ring.contains(blocker)) {
                return Ok(Way::After(first));
            }
        }
        Ok(Way::Together(ring))
    }

    fn is_at_work(&self) -> bool {
        !self.flights.is_empty() || !self.outbox.is_empty()
    }

    /// Moves a node on the server to a name of the engine's making, so that those that wait for its
    /// name, or for it to come out of another, can be told of. It follows them to its own place.
    fn push_between(
        &mut self,
        id: NodeId,
        remote: &Remote,
        actions: &mut Vec<Action>,
    ) -> Result<(), T::Error> {
        let Remote { rev, node } = remote;
        let Some(local) = self.trees.get(id)?.local else { return Ok(()) };
        let anchor = self.anchor_there(local.place.parent)?;
        let parent =
            if self.is_below_there(anchor, id)? { NodeId::ROOT } else { node.place.parent };
        for number in 0..RING_MAX {
            let name = name_between(&node.place.name, id, number);
            if !self.trees.remote_at(parent, &name)?.is_empty() {
                continue;
            }
            let place = Place { parent, name };
            let op = ChangeOp::Update { place: Some(place.clone()), body: None, attrs: None };
            let after = Node { place, ..node.clone() };
            let pushed =
                Pushed { node: Some(after), is_create: false, base: *rev, told: Aspects::PLACE };
            let change = Change::new(id, *rev, op);
            return self.commit(Outgoing { change, attach: None }, pushed, actions);
        }
        self.agenda.retry_slowly(id, self.now.ms);
        Ok(())
    }

    /// Returns whether a node cannot go into this directory because that is, or will be once all is told,
    /// inside the node: somebody moved it there, and the server's order wins.
    pub(super) fn is_undone(&self, id: NodeId, parent: NodeId) -> Result<bool, T::Error> {
        let mut at = parent;
        for _ in 0..100_000 {
            if at == id {
                return Ok(true);
            }
            if at == NodeId::ROOT {
                return Ok(false);
            }
            let entry = self.trees.get(at)?;
            let is_told = self.stays_moved(&entry);
            at = match (&entry.remote, &entry.local) {
                (Some(remote), _) if !is_told => remote.node.place.parent,
                (_, Some(local)) => local.place.parent,
                (Some(remote), None) => remote.node.place.parent,
                (None, None) => return Ok(false),
            };
        }
        // Others go round in a circle above it; whoever is part of that is undone, not this one.
        Ok(false)
    }

    /// Returns whether a node was moved here, and is where it is now once all is told, or stays there.
    fn stays_moved(&self, entry: &Entry) -> bool {
        match self.decide(entry) {
            Need::PushUpdate(aspects) => aspects.place,
            Need::Keep if self.settings.flow == Flow::ReceiveOnly => {
                match (&entry.local, &entry.remote) {
                    (Some(local), Some(remote)) => local.place != remote.node.place,
                    _ => false,
                }
            }
            _ => false,
        }
    }

    /// Returns a directory of this disk, or, while the server does not have it, the first one above
    /// that it has.
    fn anchor_there(&self, dir: NodeId) -> Result<NodeId, T::Error> {
        let mut at = dir;
        for _ in 0..100_000 {
            if at == NodeId::ROOT {
                break;
            }
            let entry = self.trees.get(at)?;
            match (&entry.remote, &entry.local) {
                (None, Some(local)) => at = local.place.parent,
                _ => break,
            }
        }
        Ok(at)
    }

    /// Returns the first node from `dir` up to below `id`, by the remote tree, that was moved here
    /// and will leave when that is told.
    fn mover_there(&self, dir: NodeId, id: NodeId) -> Result<Option<NodeId>, T::Error> {
        let mut at = dir;
        for _ in 0..100_000 {
            if at == id || at == NodeId::ROOT {
                return Ok(None);
            }
            let entry = self.trees.get(at)?;
            if matches!(self.decide(&entry), Need::PushUpdate(Aspects { place: true, .. })) {
                return Ok(Some(at));
            }
            match &entry.remote {
                Some(remote) => at = remote.node.place.parent,
                None => return Ok(None),
            }
        }
        Ok(None)
    }

    /// Returns the nodes that have to be on the server, or to leave their names there, before this one
    /// can be told.
    fn blockers_there(&self, id: NodeId) -> Result<Vec<NodeId>, T::Error> {
        let entry = self.trees.get(id)?;
        let place = match (self.decide(&entry), &entry.local) {
            (Need::PushCreate | Need::PushUpdate(Aspects { place: true, .. }), Some(local)) => {
                &local.place
            }
            (Need::PushDelete, _) => return self.trees.remote_children(id, None, RING_MAX),
            _ => return Ok(Vec::new()),
        };
        let mut blockers = Vec::new();
        let anchor = self.anchor_there(place.parent)?;
        if anchor != place.parent {
            blockers.push(place.parent);
        }
        if entry.remote.is_some() && self.is_below_there(anchor, id)? {
            blockers.extend(self.mover_there(anchor, id)?);
        }
        for holder in self.trees.remote_at(place.parent, &place.name)? {
            // What is left out never leaves its name.
            if holder != id && !self.trees.look(holder, |entry| self.stays_left_out(entry))? {
                blockers.push(holder);
                break;
            }
        }
        Ok(blockers)
    }

    // To the disk.

    pub(super) fn apply(
        &mut self,
        id: NodeId,
        op: DiskOp,
        what: ApplyKind,
        targets: Vec<(NodeId, Name)>,
        actions: &mut Vec<Action>,
    ) -> Result<(), T::Error> {
        self.note_putting(id, &op, &what)?;
        self.launch(id, Flight::Apply(Applying { what, targets }));
        actions.push(Action::Apply { node: id, op });
        Ok(())
    }

    fn pull_create(
        &mut self,
        id: NodeId,
        entry: &Entry,
        actions: &mut Vec<Action>,
    ) -> Result<(), T::Error> {
        let Some(Remote { node, .. }) = &entry.remote else {
            return Ok(());
        };
        if let Some(original) = self.original_to_replace(node)? {
            ready!(self, id, Ready::<()>::After(original));
        }
        let parent = node.place.parent;
        let name = self.disk_name(id, &node.place);
        if is_reserved(&node.place) {
            let reason = RESERVED;
            self.problem(Subject::Node(id), reason);
            self.agenda.retry_slowly(id, self.now.ms);
            return Ok(());
        }
        let there = self.parent_here(parent)?;
        if matches!(there, Ready::After(_)) && !self.can_come_here(parent)? {
            let reason = "The server has this in a directory that is inside itself, or too deep; \
                          move it on another device";
            self.problem(Subject::Node(id), reason);
            self.agenda.retry_slowly(id, self.now.ms);
            return Ok(());
        }
        let dir = ready!(self, id, there);
        ready!(self, id, self.name_here(id, Some(&node.body), parent, &name, actions)?);
        let at = Spot { dir, name: name.clone() };
        let alias = (name != node.place.name).then(|| name.clone());
        let op = match &node.body {
            Body::Dir => DiskOp::MakeDir { at, attrs: node.attrs },
            Body::File { content, mtime } => DiskOp::Write {
                at,
                content: *content,
                mtime: *mtime,
                attrs: node.attrs,
                over: None,
                keep: false,
            },
            Body::Link { target } => {
                DiskOp::Link { at, target: target.clone(), over: None, keep: false }
            }
        };
        let what = ApplyKind::Put { node: node.clone(), alias, base: node.clone() };
        self.apply(id, op, what, vec![(parent, name)], actions)
    }

    fn pull_place(
        &mut self,
        id: NodeId,
        entry: &Entry,
        actions: &mut Vec<Action>,
    ) -> Result<(), T::Error> {
        let (Some(local), Some(Remote { node, .. })) = (&entry.local, &entry.remote) else {
            return Ok(());
        };
        let place = &node.place;
        let name = self.disk_name(id, place);
        if is_reserved(place) {
            let reason = RESERVED;
            self.problem(Subject::Node(id), reason);
            self.agenda.retry_slowly(id, self.now.ms);
            return Ok(());
        }
        let is_there = local.place.parent == place.parent && *local.disk_name() == name;
        if !local.parked && (is_there || local.place == *place) {
            // Moved back and forth, or between names that are the same here: only what is known of it
            // is out of date.
            let mut entry = entry.clone();
            if let Some(local) = &mut entry.local
                && is_there
            {
                local.place = place.clone();
                local.alias = (name != place.name).then_some(name);
            }
            if let Some(base) = &mut entry.synced {
                base.place = place.clone();
            }
            return self.put(id, &entry);
        }
        if self.is_below_here(place.parent, id)? {
            // Its new parent is still inside it: out of the way, so that the parent can come out.
            if !local.parked {
                return self.park(id, local, actions);
            }
            self.agenda.schedule(place.parent);
            self.agenda.wait_for(id, place.parent);
            self.agenda.retry(id, self.now.ms);
            return Ok(());
        }
        if !local.parked && self.is_ring_here(id)? {
            return self.park(id, local, actions);
        }
        let dir = ready!(self, id, self.parent_here(place.parent)?);
        ready!(self, id, self.name_here(id, None, place.parent, &name, actions)?);
        let from = self.spot(local)?;
        if from.is_none() && !local.parked {
            self.agenda.retry(id, self.now.ms);
            return Ok(());
        }
        let mut targets = vec![(place.parent, name.clone())];
        if !local.parked {
            targets.push((local.place.parent, local.disk_name().clone()));
        }
        let was_out_of_sight = from.as_ref().is_none_or(|at| is_out_of_sight(&at.dir));
        let to = Some(Spot { dir, name: name.clone() });
        let op = DiskOp::Move { from, to, expected: expected(local) };
        let alias = (name != place.name).then_some(name);
        let what = ApplyKind::Move { node: node.clone(), alias, was_out_of_sight };
        self.apply(id, op, what, targets, actions)
    }

    pub(super) fn park(
        &mut self,
        id: NodeId,
        local: &Local,
        actions: &mut Vec<Action>,
    ) -> Result<(), T::Error> {
        let Some(from) = self.spot(local)? else {
            self.agenda.retry(id, self.now.ms);
            return Ok(());
        };
        let targets = vec![(local.place.parent, local.disk_name().clone())];
        let op = DiskOp::Move { from: Some(from), to: None, expected: expected(local) };
        self.apply(id, op, ApplyKind::Park, targets, actions)
    }

    fn pull_body(
        &mut self,
        id: NodeId,
        entry: &Entry,
        keep: bool,
        actions: &mut Vec<Action>,
    ) -> Result<(), T::Error> {
        let (Some(local), Some(Remote { node, .. })) = (&entry.local, &entry.remote) else {
            return Ok(());
        };
        // Of what is said next it may follow that what is here is kept already.
        if keep && self.waits_for_journal(id) {
            return Ok(());
        }
        let Some(at) = self.spot(local)? else {
            self.agenda.retry(id, self.now.ms);
            return Ok(());
        };
        // Permissions changed here, and only here, stay.
        let attrs = match &entry.synced {
            Some(base) if base.attrs == node.attrs => local.attrs(),
            _ => node.attrs,
        };
        let over = Some(expected(local));
        let keep = keep
            && match local.node() {
                Some(here) => !self.is_kept_there(&node.place, &here.body)?,
                None => true,
            };
        let op = match &node.body {
            Body::Dir => return Ok(()),
            Body::File { content, mtime } => {
                DiskOp::Write { at, content: *content, mtime: *mtime, attrs, over, keep }
            }
            Body::Link { target } => DiskOp::Link { at, target: target.clone(), over, keep },
        };
        let put = Node { place: local.place.clone(), body: node.body.clone(), attrs };
        let base = Node {
            place: entry.synced.as_ref().map_or(&local.place, |base| &base.place).clone(),
            body: node.body.clone(),
            attrs: node.attrs,
        };
        let what = ApplyKind::Put { node: put, alias: local.alias.clone(), base };
        let targets = vec![(local.place.parent, local.disk_name().clone())];
        self.apply(id, op, what, targets, actions)
    }

    fn pull_attrs(
        &mut self,
        id: NodeId,
        entry: &Entry,
        actions: &mut Vec<Action>,
    ) -> Result<(), T::Error> {
        let (Some(local), Some(Remote { node, .. }), Some(base)) =
            (&entry.local, &entry.remote, &entry.synced)
        else {
            return Ok(());
        };
        let Some(here) = local.node() else {
            return Ok(());
        };
        let Some(at) = self.spot(local)? else {
            self.agenda.retry(id, self.now.ms);
            return Ok(());
        };
        let attrs = if base.attrs == node.attrs { here.attrs } else { node.attrs };
        // The time comes along where the bytes are equal; an edit made here keeps its own.
        let takes_time = here.body.same_bytes(&node.body) && node.body != base.body;
        let body = if takes_time { node.body.clone() } else { here.body };
        let mtime = match &body {
            Body::File { mtime, .. } => Some(*mtime),
            Body::Dir | Body::Link { .. } => None,
        };
        let op = DiskOp::SetAttrs { at, expected: expected(local), attrs, mtime };
        let put = Node { place: local.place.clone(), body, attrs };
        let base = Node {
            place: base.place.clone(),
            body: if takes_time { node.body.clone() } else { base.body.clone() },
            attrs: node.attrs,
        };
        let what = ApplyKind::Put { node: put, alias: local.alias.clone(), base };
        let targets = vec![(local.place.parent, local.disk_name().clone())];
        self.apply(id, op, what, targets, actions)
    }

    fn pull_delete(
        &mut self,
        id: NodeId,
        entry: &Entry,
        actions: &mut Vec<Action>,
    ) -> Result<(), T::Error> {
        let Some(local) = &entry.local else {
            return Ok(());
        };
        if local.parked {
            return self.unpark(id, local);
        }
        if local.body == LocalBody::Dir {
            // Its entries first: those deleted there too go the same way, those moved there leave;
            // any that stays brings the directory back when it is planned.
            if let Some(child) = self.children_inside(id, 1)?.first() {
                return self.wait_behind(id, *child);
            }
        }
        let Some(at) = self.spot(local)? else {
            self.agenda.retry(id, self.now.ms);
            return Ok(());
        };
        let targets = vec![(local.place.parent, local.disk_name().clone())];
        let op = DiskOp::Remove { at, expected: expected(local) };
        self.apply(id, op, ApplyKind::Remove, targets, actions)
    }

    /// Brings a parked node back into the folder where it was, or as near to that as can be: it is to
    /// be removed like any other, or it goes on as something new.
    pub(super) fn unpark(&mut self, id: NodeId, local: &Local) -> Result<(), T::Error> {
        let mut parent = local.place.parent;
        let is_reachable = match self.dir_ref(parent)? {
            Some(dir) => !is_out_of_sight(&dir),
            None => false,
        };
        if !is_reachable || self.is_below_here(parent, id)? {
            parent = NodeId::ROOT;
        }
        let Some(dir) = self.dir_ref(parent)? else { return Ok(()) };
        let mut name = self.disk_name(id, &local.place);
        if self.is_taken_here(parent, &name)? || self.agenda.has_failed(id) {
            // What the trees do not know of may be there, too.
            self.choose_alias(id, &local.place);
            name = self.disk_name(id, &local.place);
        }
        let targets = vec![(parent, name.clone())];
        let place = Place { parent, name: name.clone() };
        let to = Some(Spot { dir, name });
        let op = DiskOp::Move { from: None, to, expected: expected(local) };
        self.launch(id, Flight::Apply(Applying { what: ApplyKind::Unpark { place }, targets }));
        self.pending.push_back(Action::Apply { node: id, op });
        Ok(())
    }

    /// Sees to it that a directory of the server's is on this disk.
    fn parent_here(&mut self, parent: NodeId) -> Result<Ready<DirRef>, T::Error> {
        if let Some(dir) = self.dir_ref(parent)? {
            if is_out_of_sight(&dir) && !self.looks.is_known {
                // An earlier life of this agent parked it, and may have brought it back.
                return Ok(Ready::Looking);
            }
            return Ok(if matches!(self.flights.get(&parent), Some(Flight::Apply(_))) {
                Ready::After(parent)
            } else {
                Ready::Yes(dir)
            });
        }
        let mut entry = self.trees.get(parent)?;
        if entry.local.is_none() && entry.synced.is_some() && entry.remote.is_some() {
            // Deleted here, but something new or edited is in it there: it lives on.
            entry.synced = None;
            self.put(parent, &entry)?;
        }
        Ok(Ready::After(parent))
    }

    /// Returns whether the directories of the server's, from `dir` upwards, lead to one that is here.
    /// In a ring each would wait for the next, and all be planned for ever.
    fn can_come_here(&mut self, dir: NodeId) -> Result<bool, T::Error> {
        let mut at = dir;
        let mut walked = Vec::new();
        let mut depth = loop {
            if let Some(depth) = self.depths.get(&at) {
                break *depth;
            }
            let entry = self.trees.get(at)?;
            match &entry.remote {
                Some(remote) if at != NodeId::ROOT && entry.local.is_none() => {
                    walked.push(at);
                    at = remote.node.place.parent;
                }
                _ => break 0,
            }
            if walked.len() >= DEPTH_MAX {
                return Ok(false);
            }
        };
        for at in walked.into_iter().rev() {
            depth += 1;
            self.depths.insert(at, depth);
        }
        Ok(depth < DEPTH_MAX)
    }

    /// Sees to it that a name is free on this disk for a node of the server's.
    ///
    /// `coming` is the body that is to be created there, none for a node that is moved.
    fn name_here(
        &mut self,
        id: NodeId,
        coming: Option<&Body>,
        parent: NodeId,
        name: &Name,
        actions: &mut Vec<Action>,
    ) -> Result<Ready<()>, T::Error> {
        if let Some(by) = self.targets.get(&(parent, name.clone()))
            && *by != id
            && self.flights.contains_key(by)
        {
            return Ok(Ready::After(*by));
        }
        if self.looks.is_pending(parent, name) {
            return Ok(Ready::Looking);
        }
        for other in self.trees.local_at(parent, name)? {
            if other == id {
                continue;
            }
            if self.give_way(id, name) {
                return Ok(Ready::Again);
            }
            if self.flights.contains_key(&other) {
                return Ok(Ready::After(other));
            }
            let entry = self.trees.get(other)?;
            let Some(local) = &entry.local else { continue };
            if entry.is_dirty() && self.puttings.contains(other) {
                // It may be here because we put it here: what it needs is not known yet.
                return Ok(Ready::After(other));
            }
            let need = self.decide(&entry);
            if need == Need::Rest && self.make_way(other, &entry, actions)? {
                return Ok(Ready::After(other));
            }
            if let (Need::PullPlace, Some(remote)) = (need, &entry.remote) {
                let parent = remote.node.place.parent;
                if parent != NodeId::ROOT && self.trees.get(parent)?.local.is_none() {
                    // It will leave, but for a directory that is not here yet, and may itself wait
                    // for this name: out of the way with it.
                    self.park(other, local, actions)?;
                    return Ok(Ready::After(other));
                }
            }
            let stays = match need {
                // It will leave, or become something else, or its bytes are not known.
                Need::Hash
                | Need::PullPlace
                | Need::PullDelete
                | Need::LeaveOut
                | Need::Revive
                | Need::TakeLocalAsBase
                | Need::TakeRemoteAsBase
                | Need::DropBase
                | Need::Forget
                | Need::PushDelete
                | Need::PullCreate => false,
                Need::Rest | Need::PullAttrs | Need::PullBody { .. } => {
                    entry.remote.as_ref().is_none_or(|r| r.node.place != local.place)
                }
                Need::PushCreate | Need::PushUpdate(_) | Need::Keep => true,
            };
            if !stays {
                return Ok(Ready::After(other));
            }
            let same = |coming: &Body| match &local.node() {
                Some(here) => {
                    here.is_dir() && *coming == Body::Dir
                        || here.body.same_bytes(coming)
                        || here.body.holds_nothing_against(coming)
                }
                None => false,
            };
            if entry.remote.is_none() && entry.synced.is_none() && coming.is_some_and(same) {
                // Made on both sides: directories merge, equal files are one, and an empty one
                // gives way.
                self.give_local(other, id)?;
                return Ok(Ready::Again);
            }
            self.set_aside(other, local, actions)?;
            return Ok(Ready::After(other));
        }
        Ok(Ready::Yes(()))
    }

    /// Renames what has a name that the server gave to another node.
    pub(super) fn set_aside(
        &mut self,
        id: NodeId,
        local: &Local,
        actions: &mut Vec<Action>,
    ) -> Result<(), T::Error> {
        let Some(at) = self.spot(local)? else {
            return Ok(());
        };
        let targets = vec![(local.place.parent, local.disk_name().clone())];
        let op = DiskOp::SetAside { at, expected: expected(local) };
        self.apply(id, op, ApplyKind::SetAside, targets, actions)
    }

    /// Returns whether what a node waits for on this disk waits, over others, for the node itself. What
    /// is too much to tell is taken for that once nothing else goes on: to park it is never wrong.
    fn is_ring_here(&mut self, id: NodeId) -> Result<bool, T::Error> {
        let mut rings = std::mem::take(&mut self.rings_here);
        let ring = rings.of(id, |node| self.blockers_here(node));
        self.rings_here = rings;
        Ok(match ring? {
            Ring::No => false,
            Ring::Of(_) => true,
            Ring::Unknown => !self.is_at_work(),
        })
    }

    /// Returns the nodes that have to be on this disk, or to leave their names or their directory,
    /// before what the server wants of this one can be done.
    fn blockers_here(&self, id: NodeId) -> Result<Vec<NodeId>, T::Error> {
        let entry = self.trees.get(id)?;
        let place = match (self.decide(&entry), &entry.remote) {
            (Need::PullPlace | Need::PullCreate, Some(remote)) => &remote.node.place,
            (Need::PullDelete | Need::LeaveOut, _) => return self.children_inside(id, RING_MAX),
            _ => return Ok(Vec::new()),
        };
        let mut blockers = Vec::new();
        if place.parent != NodeId::ROOT && self.trees.get(place.parent)?.local.is_none() {
            blockers.push(place.parent);
        }
        if entry.local.is_some() && self.is_below_here(place.parent, id)? {
            blockers.extend(self.mover_here(place.parent, id)?);
        }
        let holders = self.trees.local_at(place.parent, &self.disk_name(id, place))?;
        blockers.extend(holders.into_iter().find(|holder| *holder != id));
        Ok(blockers)
    }

    /// Returns the first node from `dir` up to below `id`, by the local tree, that the server has
    /// elsewhere.
    fn mover_here(&self, dir: NodeId, id: NodeId) -> Result<Option<NodeId>, T::Error> {
        let mut at = dir;
        for _ in 0..100_000 {
            if at == id || at == NodeId::ROOT {
                return Ok(None);
            }
            let entry = self.trees.get(at)?;
            if self.decide(&entry) == Need::PullPlace {
                return Ok(Some(at));
            }
            match &entry.local {
                Some(local) => at = local.place.parent,
                None => return Ok(None),
            }
        }
        Ok(None)
    }
}

/// Returns whether a directory on this disk is one that no look goes to: the agent's own, or in one
/// that is parked there.
pub(super) fn is_out_of_sight(dir: &DirRef) -> bool {
    dir.path.names().first().is_some_and(|name| name.as_bytes() == OWN_DIR)
}

pub(super) fn expected(local: &Local) -> Expected {
    let content = match &local.body {
        LocalBody::File(content) => *content,
        LocalBody::Dir | LocalBody::Link(_) => None,
    };
    Expected { stat: local.stat, content }
}

/// What a person should know of such a name, which an older server may have taken.
const RESERVED: &str = "The name \".picloud\" is PiCloud's own and comes to no device; \
    `picloud undo` takes back what made it";

/// Returns whether this place is PiCloud's own: at the root of a folder, and, so that a folder copied
/// into another one is none on other devices, everywhere else.
fn is_reserved(place: &Place) -> bool {
    place.name.as_bytes() == OWN_DIR
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::memory::MemoryTrees;
    use crate::engine::seam::{Event, JournalPage, Look, Outcome, Stat};
    use crate::engine::{Now, Settings};
    use crate::model::{Attrs, IdSource, Kind, Lineage, RelPath, Timestamp, Versioned};

    const NOW: Now = Now { ms: 1, wall: Timestamp::new(0, 0).unwrap() };

    fn stat(kind: Kind, ino: u64) -> Stat {
        let (zero, attrs) = (Timestamp::default(), Attrs::from_mode(0o755));
        Stat { kind: Some(kind), ino, birth: zero, size: 0, mtime: zero, ctime: zero, attrs }
    }

    /// A directory of the drive, by one-byte ids.
    fn dir(number: u8, parent: NodeId, name: &str) -> Versioned {
        let place = Place { parent, name: Name::new(name).unwrap() };
        let node = Some(Node { place, body: Body::Dir, attrs: Attrs::from_mode(0o755) });
        Versioned { id: NodeId::from_bytes([number; 16]), rev: Rev(number.into()), node }
    }

    /// An engine that has looked at an empty folder and knows that these are in the drive.
    fn engine_with(nodes: Vec<Versioned>) -> (Engine<MemoryTrees>, Vec<Action>) {
        let settings = Settings::default();
        let mut engine = Engine::new(MemoryTrees::new(), settings, IdSource::new([1; 32])).unwrap();
        let mut actions = Vec::new();
        engine.handle(NOW, Event::Rescan).unwrap();
        engine.poll(NOW, &mut actions).unwrap();
        let look = Look::Entries { dir: stat(Kind::Dir, 1), entries: vec![] };
        engine.handle(NOW, Event::Looked { dir: NodeId::ROOT, names: None, look }).unwrap();
        let (lineage, from) = (Lineage::from_bytes([1; 16]), Rev::ZERO);
        let head = nodes.iter().map(|node| node.rev).max().unwrap();
        engine.handle(NOW, Event::Online { lineage, from, head }).unwrap();
        let page = JournalPage { upto: head, head, consistent: true, nodes, digest: None };
        engine.handle(NOW, Event::Page(page)).unwrap();
        (engine, actions)
    }

    #[test]
    fn directories_inside_each_other_are_a_problem_and_not_planned_for_ever() {
        let id = |number: u8| NodeId::from_bytes([number; 16]);
        let nodes = vec![dir(1, id(2), "b"), dir(2, id(1), "c"), dir(3, id(1), "d")];
        let (mut engine, mut actions) = engine_with(nodes);
        for _ in 0..3 {
            engine.poll(NOW, &mut actions).unwrap();
        }
        assert!(engine.wake_at_ms().is_none_or(|at| at > NOW.ms), "{}", engine.describe_waits());
        assert_eq!(engine.problem_count(), 3);
        assert!(!actions.iter().any(|action| matches!(action, Action::Apply { .. })));
    }

    #[test]
    fn a_name_that_this_disk_cannot_hold_is_told_with_both_names_until_it_is_renamed() {
        let (mut engine, mut actions) = engine_with(vec![dir(1, NodeId::ROOT, "Case")]);
        let node = NodeId::from_bytes([1; 16]);
        // The name is refused; the other one is taken.
        engine.poll(NOW, &mut actions).unwrap();
        let outcome = Outcome::NameImpossible { reason: "the same as another".into() };
        engine.handle(NOW, Event::Applied { node, outcome }).unwrap();
        actions.clear();
        engine.poll(NOW, &mut actions).unwrap();
        let Some(Action::Apply { op: DiskOp::MakeDir { at, .. }, .. }) = actions.first() else {
            panic!("{actions:?}");
        };
        let here = at.name.clone();
        let outcome = Outcome::Done { stat: stat(Kind::Dir, 2), kept: None };
        engine.handle(NOW, Event::Applied { node, outcome }).unwrap();
        let [(path, reason)] = &engine.problems()[..] else { panic!("{:?}", engine.problems()) };
        assert_eq!(path, &RelPath::ROOT.join(&here));
        assert!(reason.starts_with("In the drive its name is \"Case\""), "{reason}");
        // Somebody renames it elsewhere, to what can be here.
        let mut renamed = dir(1, NodeId::ROOT, "Other");
        renamed.rev = Rev(2);
        let (upto, head, nodes) = (Rev(2), Rev(2), vec![renamed]);
        let page = JournalPage { upto, head, consistent: true, nodes, digest: None };
        engine.handle(NOW, Event::Page(page)).unwrap();
        actions.clear();
        for _ in 0..3 {
            engine.poll(NOW, &mut actions).unwrap();
        }
        let to = actions.iter().find_map(|action| match action {
            Action::Apply { op: DiskOp::Move { to, .. }, .. } => to.as_ref(),
            _ => None,
        });
        assert_eq!(to.map(|spot| spot.name.to_string()).as_deref(), Some("Other"), "{actions:?}");
        let outcome = Outcome::Done { stat: stat(Kind::Dir, 2), kept: None };
        engine.handle(NOW, Event::Applied { node, outcome }).unwrap();
        assert_eq!(engine.problems(), []);
    }
}
