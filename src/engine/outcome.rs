//! What became of actions, taken into the trees.

use super::defect::Defect;
use super::observe::suspect;
use super::seam::{Hashed, Outcome, Stat, Uploaded};
use super::trees::{Local, LocalBody, StandsFor, Trees};
use super::{ApplyKind, Applying, Engine, Flight, Subject, normal};
use crate::model::{Body, Name, Node, NodeId, Place};

/// What a person should know of a directory that is left out and cannot go.
const LEFT_BEHIND: &str = "It is left out on this device, but there is something in it that is not in \
    the drive (ignored files, say), so it stays: move that elsewhere or delete it, or bring the \
    directory back with `picloud include`";

impl<T: Trees> Engine<T> {
    pub(super) fn hashed(&mut self, id: NodeId, hashed: Hashed) -> Result<(), T::Error> {
        if !matches!(self.flights.get(&id), Some(Flight::Hash)) {
            return Ok(());
        }
        self.land(id);
        let mut entry = self.trees.get(id)?;
        let Some(local) = &mut entry.local else {
            return Ok(());
        };
        match hashed {
            Hashed::Content { stat, content, racy } => {
                let stat = normal(stat);
                if !local.stat.same_inode(&stat) {
                    return self.look_again(id);
                }
                if !matches!(local.body, LocalBody::File(_)) {
                    return Ok(());
                }
                let is_changed = local.stat.attrs != stat.attrs || local.stat.mtime != stat.mtime;
                if is_changed && self.other_name_at_work(id, &stat)?.is_some() {
                    return self.look_again(id);
                }
                let dir = local.place.parent;
                local.set_stat(stat);
                local.body = LocalBody::File(Some(content));
                local.racy = racy;
                self.puttings.was_read(id, content);
                if self.looks.torn.remove(&id) {
                    let mut local = local.clone();
                    let here = local.node();
                    let is_whole = match (&here, &entry.synced) {
                        (Some(here), Some(base)) => here.body.same_bytes(&base.body),
                        _ => false,
                    };
                    if !is_whole {
                        suspect(&mut entry, &mut local);
                        entry.local = Some(local);
                    }
                }
                self.agenda.clear_retry(id);
                self.solve(&Subject::Node(id));
                self.put(id, &entry)?;
                if racy {
                    self.recheck(dir);
                }
            }
            Hashed::Changed => self.look_again(id)?,
            Hashed::Unreadable { reason } => {
                self.problem(Subject::Node(id), reason);
                self.agenda.retry_slowly(id, self.now.ms);
            }
        }
        Ok(())
    }

    pub(super) fn uploaded(&mut self, id: NodeId, uploaded: Uploaded) -> Result<(), T::Error> {
        if !matches!(self.flights.get(&id), Some(Flight::Upload { .. })) {
            return Ok(());
        }
        let Some(Flight::Upload { content }) = self.land(id) else {
            return Ok(());
        };
        match uploaded {
            Uploaded::Done => {
                self.solve(&Subject::Node(id));
                self.agenda.clear_retry(id);
                self.uploaded.insert(id, content);
            }
            Uploaded::Changed => self.look_again(id)?,
            Uploaded::Later { reason } => {
                if self.link.online {
                    self.problem(Subject::Node(id), reason);
                }
                self.agenda.retry(id, self.now.ms);
            }
        }
        Ok(())
    }

    /// What is on disk is not what was expected: look at the place, then plan again.
    pub(super) fn look_again(&mut self, id: NodeId) -> Result<(), T::Error> {
        let mut entry = self.trees.get(id)?;
        if let Some(local) = &mut entry.local
            && !local.parked
        {
            self.looks.hint_name(local.place.parent, local.disk_name().clone());
            // What is known of a file is wrong, even if its stat should be as it was.
            if matches!(local.body, LocalBody::File(_)) && !local.racy {
                local.racy = true;
                self.put(id, &entry)?;
            }
        }
        self.agenda.retry(id, self.now.ms);
        Ok(())
    }

    pub(super) fn applied(&mut self, id: NodeId, outcome: Outcome) -> Result<(), T::Error> {
        if !matches!(self.flights.get(&id), Some(Flight::Apply(_))) {
            return Ok(());
        }
        let Some(Flight::Apply(applying)) = self.land(id) else {
            return Ok(());
        };
        let subject = Subject::Node(id);
        match outcome {
            Outcome::Done { stat, kept } => {
                self.agenda.clear_retry(id);
                self.solve(&subject);
                self.stubborn.remove(&id);
                self.forget_putting(id)?;
                self.done(id, applying, normal(stat), kept)?;
            }
            Outcome::Changed | Outcome::Taken => {
                let in_the_way = applying
                    .targets
                    .iter()
                    .find_map(|(dir, name)| self.problems.get(&Subject::Spot(*dir, name.clone())))
                    .cloned();
                for (dir, name) in applying.targets {
                    self.looks.hint_name(dir, name);
                }
                if let Some(reason) = in_the_way {
                    // A person has to see to it, and then the look tells.
                    self.problem(subject, reason);
                    self.agenda.retry_slowly(id, self.now.ms);
                    return self.end_orphan(id);
                }
                let is_parked = self.trees.get(id)?.local.is_some_and(|local| local.parked);
                if is_parked && outcome == Outcome::Changed {
                    // It is not where only we move things, and that is no person's deletion.
                    self.take_lost(id)?;
                    self.looks.rescan();
                }
                if is_parked && outcome == Outcome::Taken {
                    self.looks.parked.insert(id);
                }
                self.look_again(id)?;
            }
            Outcome::NameImpossible { .. }
                if matches!(&applying.what, ApplyKind::Move { .. })
                    && self.trees.get(id)?.local.is_some_and(|local| !local.parked) =>
            {
                // It may be its own old name that is in its way: another spelling of the new one.
                if let Some(local) = self.trees.get(id)?.local {
                    let mut actions = Vec::new();
                    self.park(id, &local, &mut actions)?;
                    self.pending.extend(actions);
                }
            }
            Outcome::NameImpossible { reason } => {
                self.forget_putting(id)?;
                match &applying.what {
                    ApplyKind::Put { node, .. } | ApplyKind::Move { node, .. } => {
                        self.choose_alias(id, &node.place);
                    }
                    ApplyKind::Unpark { .. }
                    | ApplyKind::Park
                    | ApplyKind::SetAside
                    | ApplyKind::Remove => self.agenda.retry(id, self.now.ms),
                }
                self.problem(subject, reason);
            }
            Outcome::NotEmpty => {
                // Something is in it that we do not know, or ignore. If it is still so after
                // another look, the directory stays, and the others get it back.
                let times = self.stubborn.entry(id).or_insert(0);
                *times += 1;
                if *times > 2 && self.trees.look(id, |entry| entry.left_out)? {
                    self.looks.hint_all(id);
                    self.problem(subject, LEFT_BEHIND);
                    self.agenda.retry_slowly(id, self.now.ms);
                } else if *times > 2 {
                    self.stubborn.remove(&id);
                    let fresh = self.fresh_id();
                    self.give_local(id, fresh)?;
                    self.agenda.schedule(fresh);
                } else {
                    self.looks.hint_all(id);
                    self.agenda.retry(id, self.now.ms);
                }
            }
            Outcome::NoContent { reason } => {
                self.forget_putting(id)?;
                if self.link.online {
                    self.problem(subject, reason);
                }
                self.agenda.retry(id, self.now.ms);
            }
            Outcome::Failed { reason } => {
                // It may be there all the same.
                self.looks.parked.remove(&id);
                self.problem(subject, reason);
                self.agenda.retry_slowly(id, self.now.ms);
            }
        }
        self.end_orphan(id)
    }

    fn done(
        &mut self,
        id: NodeId,
        applying: Applying,
        stat: Stat,
        kept: Option<Name>,
    ) -> Result<(), T::Error> {
        let mut entry = self.trees.get(id)?;
        let parent_was = entry.local.as_ref().map(|local| local.place.parent);
        match applying.what {
            ApplyKind::Put { node, alias, base } => {
                if node.place.parent != NodeId::ROOT
                    && self.trees.get(node.place.parent)?.local.is_none()
                {
                    // Its directory went away with it meanwhile.
                    return Ok(());
                }
                if let Some(kept) = kept {
                    self.looks.hint_name(node.place.parent, kept);
                }
                let is_dir = node.is_dir();
                let before = entry.local.as_ref().map(|local| local.stat);
                let was_here = before.is_some();
                entry.synced = Some(base);
                entry.local = Some(new_local(node, alias, stat));
                if is_dir && was_here {
                    // Only its attributes changed; what is below stays.
                    return self.put(id, &entry);
                }
                self.put(id, &entry)?;
                if let Some(before) = before.filter(|before| before.same_inode(&stat)) {
                    self.tell_other_names(id, &before, &stat)?;
                }
                if is_dir {
                    self.looks.hint_all(id);
                    self.schedule_children_there(id)?;
                }
            }
            ApplyKind::Move { node, alias, was_out_of_sight } => {
                let Some(local) = &mut entry.local else {
                    return Ok(());
                };
                local.place = node.place.clone();
                local.alias = alias;
                if was_out_of_sight && local.body == LocalBody::Dir {
                    // What came into it meanwhile was where no look goes.
                    self.looks.hint_deep(id);
                }
                take_moved(local, stat, was_out_of_sight);
                if let Some(base) = &mut entry.synced {
                    base.place = node.place;
                }
                self.paths.clear();
                self.put(id, &entry)?;
            }
            ApplyKind::Park => {
                let Some(local) = &mut entry.local else {
                    return Ok(());
                };
                local.parked = true;
                local.set_stat(stat);
                self.looks.parked.insert(id);
                self.paths.clear();
                self.put(id, &entry)?;
            }
            ApplyKind::Unpark { place } => {
                let Some(local) = &mut entry.local else {
                    return Ok(());
                };
                local.place = place;
                local.alias = None;
                if local.body == LocalBody::Dir {
                    self.looks.hint_deep(id);
                }
                take_moved(local, stat, true);
                if (entry.remote.is_none() || entry.left_out)
                    && let (Some(base), Some(local)) = (&mut entry.synced, &entry.local)
                {
                    // It was brought back only to be removed, or to go on as something new.
                    base.place = local.place.clone();
                }
                self.paths.clear();
                self.put(id, &entry)?;
            }
            ApplyKind::SetAside => {
                let (Some(local), Some(kept)) = (&mut entry.local, kept) else {
                    return Ok(());
                };
                // What a person has done there since was told of a name that nobody knew.
                self.looks.hint_name(local.place.parent, kept.clone());
                local.place.name = kept;
                local.alias = None;
                local.set_stat(stat);
                self.paths.clear();
                self.put(id, &entry)?;
            }
            ApplyKind::Remove => {
                entry.local = None;
                // The server wished it gone, or it is left out here: that is no deletion of ours.
                if !(entry.left_out && self.trees.has_defect(Defect::LeftOutIsDeleted)) {
                    entry.synced = None;
                }
                self.paths.clear();
                self.put(id, &entry)?;
            }
        }
        if let Some(parent) = parent_was {
            // A directory that is to go waits for its entries.
            self.agenda.wake(parent);
            self.agenda.schedule(parent);
        }
        Ok(())
    }

    /// One of the names of an inode has brought it other attributes. For its other names that is no
    /// edit: what they stand for stays, as on a disk that cannot hold it. Else two devices on which it
    /// has both names would tell each other of it for ever.
    fn tell_other_names(&mut self, id: NodeId, before: &Stat, now: &Stat) -> Result<(), T::Error> {
        for other in self.trees.local_by_inode(now.ino)? {
            let mut entry = self.trees.get(other)?;
            let Some(local) = &mut entry.local else { continue };
            if other == id || !local.stat.same_inode(now) || local.stat.attrs != before.attrs {
                continue;
            }
            let as_known = Stat { ctime: before.ctime, ..local.stat };
            if as_known != *before {
                // It was edited, and the look at this name is still to come.
                continue;
            }
            if local.stat.ctime != before.ctime
                && let LocalBody::File(content) = &mut local.body
            {
                *content = None;
            }
            local.stands_for = Some(StandsFor { mtime: local.mtime(), attrs: local.attrs() });
            local.stat = *now;
            self.put(other, &entry)?;
        }
        Ok(())
    }

    /// Returns the node that an operation of ours is at work on and that is another name of this inode.
    pub(super) fn other_name_at_work(
        &self,
        id: NodeId,
        stat: &Stat,
    ) -> Result<Option<NodeId>, T::Error> {
        if self.counts.applies == 0 {
            return Ok(None);
        }
        for other in self.trees.local_by_inode(stat.ino)? {
            if other != id
                && matches!(self.flights.get(&other), Some(Flight::Apply(_)))
                && self.trees.get(other)?.local.is_some_and(|local| local.stat.same_inode(stat))
            {
                return Ok(Some(other));
            }
        }
        Ok(None)
    }

    /// A directory is here now: what the server has in it can follow.
    fn schedule_children_there(&mut self, dir: NodeId) -> Result<(), T::Error> {
        let mut after = None;
        loop {
            let children = self.trees.remote_children(dir, after, 512)?;
            let Some(last) = children.last() else {
                return Ok(());
            };
            after = Some(*last);
            for child in children {
                self.agenda.schedule(child);
            }
        }
    }
}

/// Takes in where a node was moved to. What was out of sight may have been written to meanwhile, through
/// a descriptor that was open; nobody looked.
fn take_moved(local: &mut Local, stat: Stat, was_out_of_sight: bool) {
    let is_same = local.stat.size == stat.size && local.stat.mtime == stat.mtime;
    if was_out_of_sight
        && !is_same
        && let LocalBody::File(content) = &mut local.body
    {
        *content = None;
    }
    local.parked = false;
    local.set_stat(stat);
}

fn new_local(node: Node, alias: Option<Name>, stat: Stat) -> Local {
    let mtime = match &node.body {
        Body::File { mtime, .. } => *mtime,
        Body::Dir | Body::Link { .. } => stat.mtime,
    };
    let holds = mtime == stat.mtime && node.attrs == stat.attrs;
    let stands_for = (!holds).then_some(StandsFor { mtime, attrs: node.attrs });
    let body = match node.body {
        Body::Dir => LocalBody::Dir,
        Body::File { content, .. } => LocalBody::File(Some(content)),
        Body::Link { target } => LocalBody::Link(target),
    };
    let place = Place { parent: node.place.parent, name: node.place.name };
    Local { place, alias, stat, body, racy: false, parked: false, stands_for }
}
