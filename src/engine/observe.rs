//! From looks at the disk to the local tree.
//!
//! Looks come in rounds: all hints gathered so far are looked at, and what was found may ask for
//! more looks in the same round. A name that is missing is only noted; a new name whose inode is
//! that of a known node asks for a look at where that node was. When no look of the round is left,
//! a missing node whose inode turned up elsewhere has moved, and a name that stayed missing over a
//! second look is deleted. An unreadable directory makes everything below it unknown: nothing
//! about it changes.
//!
//! A disk entry is matched to a node by path first (an editor's save by rename is an edit), else by
//! inode and birth time (a move). For directories the inode decides first: nobody saves a directory
//! by rename.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};

use super::defect::Defect;
use super::seam::{Action, Found, INNER_FOLDER, Look, Seen, Stat};
use super::trees::{Entry, Local, LocalBody, Trees};
use super::{ApplyKind, Applying, Engine, Flight, Subject, normal};
use crate::model::{Content, Kind, Name, NodeId, Place, Timestamp};

/// The most looks under way.
const LOOKS_MAX: usize = 32;
/// From this many names on, the whole directory is looked at.
const NAMES_MAX: usize = 512;
/// How long after a racy read a file is read again.
const RACY_RECHECK_MS: u64 = 1_500;
/// How long to wait with a directory that was not where it should be.
const GONE_RECHECK_MS: u64 = 20;

/// How often a name is looked at again whose inode another node has: a file may have two names, a
/// directory has one.
const LOOKS_AGAIN: u32 = 2;
const LOOKS_AGAIN_DIR: u32 = 8;
/// The most names that are looked at again for that; of more a few become second nodes.
const DOUBTED_MAX: usize = 4096;

/// What is to be looked at in a directory.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Want {
    Names(BTreeSet<Name>),
    /// Everything; with `deep`, everything in its directories too.
    All {
        deep: bool,
    },
}

impl Want {
    fn add(&mut self, more: Self) {
        *self = match (std::mem::replace(self, Self::All { deep: false }), more) {
            (Self::All { deep: a }, Self::All { deep: b }) => Self::All { deep: a || b },
            (all @ Self::All { .. }, Self::Names(_)) | (Self::Names(_), all @ Self::All { .. }) => {
                all
            }
            (Self::Names(mut names), Self::Names(more)) => {
                names.extend(more);
                if names.len() > NAMES_MAX { Self::All { deep: false } } else { Self::Names(names) }
            }
        };
    }
}

/// A node that was not where it was.
#[derive(Debug, Clone, Copy)]
struct Missing {
    since_ms: u64,
    asked_again: bool,
    confirmed: bool,
    /// Whether its name may have been lost with the power; that is no deletion.
    is_lost: bool,
}

/// A new name whose node is not decided yet.
#[derive(Debug, Clone)]
struct Newcomer {
    dir: NodeId,
    name: Name,
    found: Found,
}

/// The looks wanted and under way, and what they have found that is not decided yet.
#[derive(Debug, Default)]
pub(super) struct Looks {
    /// This round's.
    wanted: BTreeMap<NodeId, Want>,
    /// The order in which to look: the last first, so that a deep look is bounded by the depth
    /// of the tree and the width of its directories.
    stack: Vec<NodeId>,
    /// The next round's: hints that came meanwhile.
    hints: BTreeMap<NodeId, Want>,
    under_way: BTreeMap<NodeId, Want>,
    missing: BTreeMap<NodeId, Missing>,
    newcomers: BTreeMap<(NodeId, Name), Found>,
    /// Nodes whose old places were looked at in this round for a newcomer.
    claimed: HashSet<NodeId>,
    /// Names that were looked at while an operation of ours was at work on them: to be looked at
    /// again when it is over.
    after: HashMap<NodeId, BTreeSet<(NodeId, Name)>>,
    /// Nodes on the move whose directory went away meanwhile, and whether that was lost.
    orphans: BTreeMap<NodeId, bool>,
    /// Nodes that wait for looks to come back.
    waiters: BTreeSet<NodeId>,
    /// Directories with racily read files, or that could not be read, and when to look at them
    /// again.
    rechecks: BTreeMap<NodeId, u64>,
    /// Directories that were not where they should be, when to look for them again, and at what.
    /// Until then what is in them is not known.
    astray: BTreeMap<NodeId, (u64, Want)>,
    /// Whether a look among the hints is one that this round owes: what it finds was there before.
    is_owing: bool,
    /// Names that are looked at again, because their inode is another node's: of which inode, and how
    /// often.
    doubted: HashMap<(NodeId, Name), ((u64, Timestamp), u32)>,
    rescan_wanted: bool,
    rescanning: bool,
    /// How many rounds have begun.
    pub(super) rounds: u64,
    /// Completed looks at everything.
    pub(super) rescans_done: u64,
    /// Whether everything was looked at once, and nothing of that is left open.
    pub(super) is_known: bool,
    /// Nodes that are parked as far as is known: they were in this life of the agent, and no attempt to bring
    /// them back since has left that open.
    pub(super) parked: HashSet<NodeId>,
    /// Directories that were parked at an unclean stop. What the power took of them is found by the
    /// first look, as everywhere; afterwards it would pass for what a person did.
    pub(super) out_of_sight: Vec<NodeId>,
    /// Files that were parked at an unclean stop: the first look at where they are then finds what the power
    /// took of them.
    pub(super) suspects: HashSet<NodeId>,
    /// Directories that could not be read when all was looked at after an unclean stop: what the power took
    /// of them is found once they can.
    pub(super) unread: HashSet<NodeId>,
    /// Files that look as they did before an unclean stop, but may have lost bytes: they are being
    /// read, and count as what both sides agreed on only if they still hold it.
    pub(super) torn: HashSet<NodeId>,
}

impl Looks {
    /// Everything may have changed.
    pub(super) fn rescan(&mut self) {
        self.rescan_wanted = true;
    }

    fn hint(&mut self, dir: NodeId, want: Want) {
        match self.hints.get_mut(&dir) {
            Some(old) => old.add(want),
            None => {
                self.hints.insert(dir, want);
            }
        }
    }

    fn want(&mut self, dir: NodeId, want: Want) {
        match self.wanted.get_mut(&dir) {
            Some(old) => old.add(want),
            None => {
                self.wanted.insert(dir, want);
                self.stack.push(dir);
            }
        }
    }

    /// Looks for a directory again a little later.
    fn astray(&mut self, dir: NodeId, at_ms: u64, mut want: Want) {
        if let Some((_, before)) = self.astray.remove(&dir) {
            want.add(before);
        }
        self.astray.insert(dir, (at_ms, want));
    }

    /// Looks at a name in the next round.
    pub(super) fn hint_name(&mut self, dir: NodeId, name: Name) {
        self.hint(dir, Want::Names(BTreeSet::from([name])));
    }

    /// Looks at a whole directory in the next round (this also sets the watch on it).
    pub(super) fn hint_all(&mut self, dir: NodeId) {
        self.hint(dir, Want::All { deep: false });
    }

    /// Looks at a directory and everything below it in the next round.
    pub(super) fn hint_deep(&mut self, dir: NodeId) {
        self.hint(dir, Want::All { deep: true });
    }

    /// What is here of a node goes on under another id: whether it is missing is asked anew.
    pub(super) fn rename_node(&mut self, from: NodeId, dir: NodeId, name: Name) {
        if self.missing.remove(&from).is_some() {
            self.hint_name(dir, name);
        }
    }

    /// A directory goes on under a new id.
    pub(super) fn rename_dir(&mut self, from: NodeId, to: NodeId) {
        // What is new in it is found again by the look that follows.
        self.newcomers.retain(|(dir, _), _| *dir != from);
        // What was wanted or under way for the old id is asked again for the new one.
        self.wanted.remove(&from);
        self.hints.remove(&from);
        self.astray.remove(&from);
        self.hint(to, Want::All { deep: true });
    }

    /// Returns whether a look at this name is wanted or under way: what is there is in question.
    pub(super) fn is_pending(&self, dir: NodeId, name: &Name) -> bool {
        let covers = |want: &Want| match want {
            Want::Names(names) => names.contains(name),
            Want::All { .. } => true,
        };
        [&self.hints, &self.wanted, &self.under_way]
            .into_iter()
            .any(|looks| looks.get(&dir).is_some_and(covers))
    }

    /// Puts a node aside until more looks have come back.
    pub(super) fn wait_for_looks(&mut self, id: NodeId) {
        self.waiters.insert(id);
    }

    /// An operation is over: looks at the names it worked on that were put off.
    pub(super) fn operation_over(&mut self, id: NodeId) {
        for (dir, name) in self.after.remove(&id).unwrap_or_default() {
            self.hint_name(dir, name);
        }
    }

    /// Returns whether more deletions may be found any moment: looks are wanted or under way, or
    /// names are missing of which it is not known yet whether they are deleted.
    pub(super) fn may_find_deletions(&self) -> bool {
        !(self.wanted.is_empty()
            && self.hints.is_empty()
            && self.under_way.is_empty()
            && self.astray.is_empty()
            && self.missing.is_empty())
    }

    pub(super) fn is_idle(&self) -> bool {
        self.wanted.is_empty()
            && self.hints.is_empty()
            && self.under_way.is_empty()
            && self.astray.is_empty()
            && self.missing.is_empty()
            && self.newcomers.is_empty()
            && !self.rescan_wanted
            && !self.rescanning
    }

    pub(super) fn next_due_ms(&self) -> Option<u64> {
        let missing = self.missing.values().filter(|m| !m.asked_again).map(|m| m.since_ms).min();
        let astray = self.astray.values().map(|(at, _)| *at).min();
        self.rechecks.values().copied().chain(missing).chain(astray).min()
    }
}

impl<T: Trees> Engine<T> {
    pub(super) fn touched(&mut self, dir: NodeId, name: Option<Name>) {
        match name {
            Some(name) => self.looks.hint_name(dir, name),
            None => self.looks.hint_all(dir),
        }
    }

    /// Sends looks out, and ends the round when none is left.
    pub(super) fn advance_looks(&mut self, actions: &mut Vec<Action>) -> Result<(), T::Error> {
        let now_ms = self.now.ms;
        let due: Vec<NodeId> = self
            .looks
            .rechecks
            .iter()
            .filter(|(_, at)| **at <= now_ms)
            .map(|(dir, _)| *dir)
            .collect();
        for dir in due {
            self.looks.rechecks.remove(&dir);
            self.looks.hint_all(dir);
        }
        let found: Vec<NodeId> = self
            .looks
            .astray
            .iter()
            .filter(|(_, (at, _))| *at <= now_ms)
            .map(|(id, _)| *id)
            .collect();
        for dir in found {
            if let Some((_, want)) = self.looks.astray.remove(&dir) {
                self.looks.hint(dir, want);
                self.looks.is_owing = true;
            }
        }
        for _ in 0..64 {
            self.issue_looks(actions)?;
            if !self.looks.wanted.is_empty() || !self.looks.under_way.is_empty() {
                return Ok(());
            }
            if !self.looks.newcomers.is_empty() || !self.looks.missing.is_empty() {
                self.end_round()?;
                if !self.looks.wanted.is_empty() {
                    continue;
                }
            }
            if self.looks.rescanning {
                self.looks.rescanning = false;
                self.looks.rescans_done += 1;
                self.agenda.sweep();
            }
            let is_known = self.looks.rescans_done > 0
                && self.looks.missing.is_empty()
                && self.looks.newcomers.is_empty()
                && self.looks.astray.is_empty()
                && !self.looks.is_owing;
            if is_known && self.is_after_unclean_stop() {
                // What was not to be planned until now.
                self.agenda.sweep();
            }
            if is_known && !self.looks.is_known {
                self.looks.is_known = true;
                self.sift_puttings()?;
                // What waited for that.
                self.agenda.sweep();
            }
            self.looks.is_owing = false;
            for (dir, want) in std::mem::take(&mut self.looks.hints) {
                self.looks.want(dir, want);
            }
            if std::mem::take(&mut self.looks.rescan_wanted) {
                self.looks.rescanning = true;
                self.looks.want(NodeId::ROOT, Want::All { deep: true });
                for dir in std::mem::take(&mut self.looks.out_of_sight) {
                    self.looks.want(dir, Want::All { deep: true });
                }
            }
            if self.looks.wanted.is_empty() {
                if self.looks.is_idle() {
                    self.looks.doubted.clear();
                }
                return Ok(());
            }
            self.looks.rounds += 1;
        }
        Ok(())
    }

    fn issue_looks(&mut self, actions: &mut Vec<Action>) -> Result<(), T::Error> {
        while self.looks.under_way.len() < LOOKS_MAX
            && let Some(dir) = self.looks.stack.pop()
        {
            let Some(want) = self.looks.wanted.remove(&dir) else {
                continue;
            };
            if self.looks.under_way.contains_key(&dir) {
                // In the next round; until then what is in it is not known.
                self.looks.hint(dir, want);
                self.looks.is_owing = true;
                continue;
            }
            let Some(dir_ref) = self.dir_ref(dir)? else {
                continue;
            };
            let names = match &want {
                Want::Names(names) => Some(names.iter().cloned().collect()),
                Want::All { .. } => None,
            };
            self.looks.under_way.insert(dir, want);
            actions.push(Action::Look { dir: dir_ref, names });
        }
        Ok(())
    }

    pub(super) fn looked(
        &mut self,
        dir: NodeId,
        names: Option<Vec<Name>>,
        look: Look,
    ) -> Result<(), T::Error> {
        let Some(asked) = self.looks.under_way.remove(&dir) else { return Ok(()) };
        for id in std::mem::take(&mut self.looks.waiters) {
            self.agenda.schedule(id);
        }
        let local = self.trees.get(dir)?.local;
        if dir != NodeId::ROOT && local.as_ref().is_none_or(|local| local.body != LocalBody::Dir) {
            return Ok(());
        }
        match look {
            Look::Unreadable { .. } if self.trees.has_defect(Defect::UnreadableIsEmpty) => {
                self.take_entries(dir, true, false, Vec::new())?;
            }
            Look::Entries { dir: stat, entries } => {
                self.solve(&Subject::Listing(dir));
                if dir == NodeId::ROOT {
                    self.root_ino = stat.ino;
                } else if self.root_ino == 0 {
                    self.looks.want(NodeId::ROOT, Want::All { deep: false });
                }
                let deep = asked == Want::All { deep: true };
                self.take_entries(dir, names.is_none(), deep, entries)?;
                if names.is_none() && self.looks.unread.contains(&dir) {
                    self.pass_doubt_on(dir)?;
                }
            }
            Look::Gone => match local {
                // The root is the driver's to watch: a missing folder is not an empty one.
                None => {}
                // It may be elsewhere, or lost; when all was looked at, it is known.
                Some(_) if !self.looks.is_known && self.was_parked_before(dir)? => {}
                // The look was asked for where it was before, or only the move out of there will
                // tell that it is gone.
                Some(local) if local.parked => {
                    self.looks.astray(dir, self.now.ms + GONE_RECHECK_MS, asked);
                }
                Some(local) => {
                    let name = local.disk_name().clone();
                    let parent = local.place.parent;
                    self.looks.want(parent, Want::Names(BTreeSet::from([name])));
                    // It may have been away for a moment only.
                    self.looks.astray(dir, self.now.ms + GONE_RECHECK_MS, asked);
                }
            },
            Look::Unreadable { reason } => {
                if self.is_after_unclean_stop() {
                    self.looks.unread.insert(dir);
                }
                self.problem(Subject::Listing(dir), reason);
                self.looks.rechecks.insert(dir, self.now.ms + 30_000);
            }
        }
        Ok(())
    }

    /// Returns whether a directory, or one above it, was parked in an earlier life of this agent, which may
    /// have ended before it knew that it was not any more.
    fn was_parked_before(&self, dir: NodeId) -> Result<bool, T::Error> {
        let mut at = dir;
        for _ in 0..100_000 {
            let here = self.trees.look(at, |entry| {
                entry.local.as_ref().map(|here| (here.parked, here.place.parent))
            })?;
            match here {
                Some((true, _)) => return Ok(!self.looks.parked.contains(&at)),
                Some((false, parent)) => at = parent,
                None => return Ok(false),
            }
        }
        Ok(false)
    }

    fn take_entries(
        &mut self,
        dir: NodeId,
        whole: bool,
        deep: bool,
        entries: Vec<Seen>,
    ) -> Result<(), T::Error> {
        let mut seen = HashSet::new();
        for Seen { name, found } in entries {
            match found {
                Some(found) => {
                    self.take_entry(dir, &name, found, deep)?;
                    if whole {
                        seen.insert(name);
                    }
                }
                None if self.is_worked_on(dir, &name) => {}
                None => {
                    self.spot_is_free(dir, &name)?;
                    for id in self.trees.local_at(dir, &name)? {
                        self.note_missing(dir, id);
                    }
                }
            }
        }
        if whole {
            self.for_each_in(dir, |engine, child| {
                if let Some(local) = engine.trees.get(child)?.local
                    && !local.parked
                    && !seen.contains(local.disk_name())
                {
                    engine.note_missing(dir, child);
                }
                Ok(())
            })?;
            // What an operation of ours makes may be gone again by the time it is told.
            let worked_on: Vec<Name> = self
                .targets
                .keys()
                .filter(|(at, _)| *at == dir)
                .map(|(_, name)| name.clone())
                .collect();
            for name in worked_on {
                self.is_worked_on(dir, &name);
            }
        }
        Ok(())
    }

    /// Returns whether an operation of ours is at work on this name; it is then looked at again when
    /// that is over.
    fn is_worked_on(&mut self, dir: NodeId, name: &Name) -> bool {
        let spot = (dir, name.clone());
        let Some(by) = self.targets.get(&spot).filter(|by| self.flights.contains_key(by)) else {
            return false;
        };
        self.looks.after.entry(*by).or_default().insert(spot);
        true
    }

    /// What cannot be synced is not, or no longer, at this name: what the server has for it can come.
    fn spot_is_free(&mut self, dir: NodeId, name: &Name) -> Result<(), T::Error> {
        if self.problems.remove(&Subject::Spot(dir, name.clone())).is_some() {
            for id in self.trees.remote_at(dir, name)? {
                self.agenda.clear_retry(id);
                self.agenda.schedule(id);
            }
        }
        Ok(())
    }

    fn note_missing(&mut self, dir: NodeId, id: NodeId) {
        if matches!(self.flights.get(&id), Some(Flight::Apply(_))) {
            // An operation of ours may have moved it: look again when it is over.
            if let Ok(Entry { local: Some(local), .. }) = self.trees.get(id) {
                let spot = (local.place.parent, local.disk_name().clone());
                self.looks.after.entry(id).or_default().insert(spot);
            }
            return;
        }
        let since_ms = self.now.ms + self.settings.missing_settle_ms;
        let is_lost = self.is_in_doubt(dir);
        let missing = self.looks.missing.entry(id).or_insert(Missing {
            since_ms,
            asked_again: false,
            confirmed: false,
            is_lost,
        });
        if missing.asked_again {
            missing.confirmed = true;
        }
    }

    fn take_entry(
        &mut self,
        dir: NodeId,
        name: &Name,
        mut found: Found,
        deep: bool,
    ) -> Result<(), T::Error> {
        found.stat = normal(found.stat);
        if self.is_worked_on(dir, name) {
            if deep
                && found.stat.kind == Some(Kind::Dir)
                && let Some(by) = self.targets.get(&(dir, name.clone())).copied()
            {
                // A look at everything must not pass over what is in a directory on the move.
                self.looks.hint(by, Want::All { deep });
            }
            return Ok(());
        }
        let reason = match found.stat.kind {
            None => Some("A socket, FIFO or device is not synced; ignore it or remove it"),
            // One that is known stays known, wherever it was moved: it is only not looked into.
            Some(_) if found.is_folder && self.claims(&found)?.is_empty() => Some(INNER_FOLDER),
            Some(_) => None,
        };
        if let Some(reason) = reason {
            if !found.ignored {
                self.problem(Subject::Spot(dir, name.clone()), reason);
            }
            for id in self.trees.local_at(dir, name)? {
                self.note_missing(dir, id);
            }
            return Ok(());
        }
        self.spot_is_free(dir, name)?;
        let known = self.trees.local_at(dir, name)?;
        let mut matched = false;
        for &id in &known {
            let mut entry = self.trees.get(id)?;
            let Some(local) = entry.local.clone() else {
                continue;
            };
            let is_same = local.stat.kind == found.stat.kind
                && (local.stat.same_inode(&found.stat)
                    || (local.body != LocalBody::Dir && !self.is_anothers(id, &found)?));
            if !is_same || matched {
                self.note_missing(dir, id);
                continue;
            }
            matched = true;
            self.looks.missing.remove(&id);
            if !local.stat.unchanged(&found.stat)
                && let Some(by) = self.other_name_at_work(id, &found.stat)?
            {
                // It may be the operation that changed it: look again when that is over.
                self.looks.after.entry(by).or_default().insert((dir, name.clone()));
                continue;
            }
            // After a start it is only the looks that find it.
            self.tell_alias(id, Some(&local));
            // Whether it can be read, and what happened while it could not, is told by no event.
            let is_reopened = local.stat.attrs != found.stat.attrs;
            self.refresh(id, &mut entry, local, &found)?;
            if (deep || is_reopened) && found.stat.kind == Some(Kind::Dir) {
                self.looks.want(id, Want::All { deep });
            }
        }
        if matched {
            return Ok(());
        }
        if found.ignored && self.unclaimed_there(dir, name)?.is_none() {
            return Ok(());
        }
        let newcomer = Newcomer { dir, name: name.clone(), found };
        if self.is_plainly_new(&newcomer)? {
            self.take_new(newcomer)?;
        } else {
            self.look_at_claims(&newcomer)?;
            self.looks.newcomers.insert((dir, name.clone()), newcomer.found);
        }
        Ok(())
    }

    /// Takes in what is now known of a node at the place where it was.
    fn refresh(
        &mut self,
        id: NodeId,
        entry: &mut Entry,
        mut local: Local,
        found: &Found,
    ) -> Result<(), T::Error> {
        let target_changed =
            matches!((&local.body, &found.target), (LocalBody::Link(old), Some(new)) if old != new);
        let was_parked = self.looks.suspects.remove(&id);
        let is_suspect = was_parked || self.is_in_doubt(local.place.parent);
        let may_be_torn = is_suspect
            && found.stat.kind == Some(Kind::File)
            && self.settings.suspect_since.is_some_and(|since| found.stat.ctime >= since);
        if local.stat.unchanged(&found.stat) && !target_changed && !may_be_torn {
            if local.racy {
                self.verify(id, &local)?;
            }
            return Ok(());
        }
        let is_as_it_was = local.stat.unchanged(&found.stat) && !target_changed;
        let is_another = inode_of(&local.stat) != inode_of(&found.stat);
        local.set_stat(found.stat);
        local.racy = false;
        match (&mut local.body, &found.target) {
            (LocalBody::File(content), _) => *content = None,
            (LocalBody::Link(target), Some(new)) => *target = new.clone(),
            (LocalBody::Link(_) | LocalBody::Dir, _) => {}
        }
        if may_be_torn && is_as_it_was {
            // Only its bytes can tell, once they are read.
            self.looks.torn.insert(id);
        } else if is_suspect {
            suspect(entry, &mut local);
        }
        if entry.left_out && is_another && !self.looks.is_known {
            // An earlier life of this agent may have removed what was here, and this was made since: an
            // edit of what it was not made from, it would replace what the others have.
            entry.synced = None;
        }
        entry.local = Some(local);
        self.agenda.clear_retry(id);
        self.put(id, entry)
    }

    /// Reads a racily read file again, without taking what is known of it back.
    fn verify(&mut self, id: NodeId, local: &Local) -> Result<(), T::Error> {
        if self.flights.contains_key(&id) {
            return Ok(());
        }
        if let Some(at) = self.spot(local)? {
            self.launch(id, Flight::Hash);
            self.pending.push_back(Action::Hash { node: id, at, stat: local.stat });
        }
        Ok(())
    }

    /// Looks at a directory with a racily read file once the clock has surely moved on.
    pub(super) fn recheck(&mut self, dir: NodeId) {
        let at = self.now.ms + RACY_RECHECK_MS;
        self.looks.rechecks.entry(dir).or_insert(at);
    }

    /// Returns a node that the server has at this place and that is not on this disk, but is wanted
    /// here. What is made where something is left out is something else.
    fn unclaimed_there(
        &mut self,
        dir: NodeId,
        name: &Name,
    ) -> Result<Option<(NodeId, Entry)>, T::Error> {
        for id in self.trees.remote_at(dir, name)? {
            if self.is_absent_by_wish(id)? {
                continue;
            }
            let entry = self.trees.get(id)?;
            if entry.local.is_none() {
                return Ok(Some((id, entry)));
            }
        }
        Ok(None)
    }

    /// Returns whether nothing known could have become this entry.
    fn is_plainly_new(&self, newcomer: &Newcomer) -> Result<bool, T::Error> {
        Ok(self.trees.local_at(newcomer.dir, &newcomer.name)?.is_empty()
            && self.claims(&newcomer.found)?.is_empty())
    }

    /// Returns whether what was found is the inode of a node other than this one. Then that one may
    /// have been moved here, or the two may have changed places, and the round has to tell.
    fn is_anothers(&self, id: NodeId, found: &Found) -> Result<bool, T::Error> {
        for other in self.trees.local_by_inode(found.stat.ino)? {
            let local = self.trees.get(other)?.local;
            if other != id && local.is_some_and(|local| local.stat.same_inode(&found.stat)) {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// Returns the nodes that are the same inode.
    fn claims(&self, found: &Found) -> Result<Vec<NodeId>, T::Error> {
        let mut claims = Vec::new();
        for id in self.trees.local_by_inode(found.stat.ino)? {
            let local = self.trees.get(id)?.local;
            if local.is_some_and(|local| local.stat.same_inode(&found.stat)) {
                claims.push(id);
            }
        }
        Ok(claims)
    }

    fn look_at_claims(&mut self, newcomer: &Newcomer) -> Result<(), T::Error> {
        for id in self.claims(&newcomer.found)? {
            if let Some(local) = self.trees.get(id)?.local
                && !local.parked
                && !self.looks.missing.contains_key(&id)
                && self.looks.claimed.insert(id)
            {
                let names = BTreeSet::from([local.disk_name().clone()]);
                self.looks.want(local.place.parent, Want::Names(names));
            }
        }
        Ok(())
    }

    /// Returns whether a node is not where it was: it, or a directory above it, is missing.
    fn is_away(&self, id: NodeId) -> Result<bool, T::Error> {
        let mut at = id;
        for _ in 0..100_000 {
            if at == NodeId::ROOT {
                return Ok(false);
            }
            if self.looks.missing.contains_key(&at) {
                return Ok(true);
            }
            match self.trees.get(at)?.local {
                // What is in a parked directory is where it was.
                Some(local) if local.parked => return Ok(at == id),
                Some(local) => at = local.place.parent,
                None => return Ok(true),
            }
        }
        Ok(true)
    }

    /// Decides what the looks of this round have left open.
    fn end_round(&mut self) -> Result<(), T::Error> {
        // Moves first: each may be what another newcomer's directory waits for.
        self.looks.claimed.clear();
        let mut left: Vec<_> = std::mem::take(&mut self.looks.newcomers)
            .into_iter()
            .map(|((dir, name), found)| Newcomer { dir, name, found })
            .collect();
        let present: HashSet<(u64, Timestamp)> =
            left.iter().map(|newcomer| inode_of(&newcomer.found.stat)).collect();
        loop {
            let before = left.len();
            let mut still = Vec::new();
            for newcomer in left {
                if !self.settle_move(&newcomer, &present)? {
                    still.push(newcomer);
                }
            }
            left = still;
            if left.len() == before || left.is_empty() {
                break;
            }
        }
        for newcomer in left {
            self.settle_newcomer(newcomer)?;
        }
        if !self.looks.wanted.is_empty() {
            return Ok(());
        }
        let now_ms = self.now.ms;
        let mut gone = Vec::new();
        let mut again = Vec::new();
        for (&id, missing) in &mut self.looks.missing {
            if missing.confirmed {
                gone.push((id, missing.is_lost));
            } else if missing.asked_again {
                // The second look could not tell: begin again.
                missing.asked_again = false;
                missing.since_ms = now_ms + self.settings.missing_settle_ms;
            } else if missing.since_ms <= now_ms {
                missing.asked_again = true;
                again.push(id);
            }
        }
        for (id, is_lost) in gone {
            self.looks.missing.remove(&id);
            self.take_away(id, is_lost)?;
        }
        for id in again {
            match self.trees.get(id)?.local {
                Some(local) if !local.parked && self.dir_ref(local.place.parent)?.is_some() => {
                    let names = BTreeSet::from([local.disk_name().clone()]);
                    self.looks.want(local.place.parent, Want::Names(names));
                }
                // We moved it out of the way meanwhile.
                Some(local) if local.parked => {
                    self.looks.missing.remove(&id);
                }
                // Nothing to look at: its directory is gone.
                Some(_) => {
                    let missing = self.looks.missing.remove(&id);
                    self.take_away(id, missing.is_some_and(|missing| missing.is_lost))?;
                }
                None => {
                    self.looks.missing.remove(&id);
                }
            }
        }
        Ok(())
    }

    /// Takes a newcomer in as a known node that has moved; returns whether it is dealt with. `present`
    /// are the inodes of all newcomers of the round.
    fn settle_move(
        &mut self,
        newcomer: &Newcomer,
        present: &HashSet<(u64, Timestamp)>,
    ) -> Result<bool, T::Error> {
        let Newcomer { dir, name, found } = newcomer;
        if *dir != NodeId::ROOT && self.trees.get(*dir)?.local.is_none() {
            return Ok(true);
        }
        for id in self.trees.local_at(*dir, name)? {
            let Some(local) = self.trees.get(id)?.local else { continue };
            if local.stat.same_inode(&found.stat) {
                // Dealt with meanwhile.
                return Ok(true);
            }
            // A file found where another file was is an edit of that one, whatever its inode; unless
            // that one is still there, too, under another name: then both were moved.
            if found.stat.kind != Some(Kind::Dir)
                && local.stat.kind == found.stat.kind
                && !present.contains(&inode_of(&local.stat))
            {
                if self.is_anothers(id, found)? && self.look_twice(newcomer)? {
                    return Ok(true);
                }
                self.take_edit(id, found)?;
                return Ok(true);
            }
        }
        for id in self.claims(found)? {
            let is_parked = self.trees.get(id)?.local.is_some_and(|local| local.parked);
            let is_dir = found.stat.kind == Some(Kind::Dir);
            let is_known = self.looks.is_known;
            if is_parked && self.looks.parked.contains(&id) && !(is_dir && is_known) {
                // Only we move what is parked, so this is what was there before, which another look
                // tells, or another name of it. That one does not wait for the end of the parking,
                // which may wait until all is known, or for this very name.
                continue;
            }
            if is_parked && is_known {
                // What was there before; or it came back from where it was parked and that could not be
                // told, which shows when it is to come back again.
                let names = BTreeSet::from([name.clone()]);
                self.looks.astray(*dir, self.now.ms + GONE_RECHECK_MS, Want::Names(names));
                return Ok(true);
            }
            if let Some(Flight::Apply(Applying { what: ApplyKind::SetAside, .. })) =
                self.flights.get(&id)
            {
                // It is we who give it that name, and have not heard of it yet.
                self.looks.after.entry(id).or_default().insert((*dir, name.clone()));
                return Ok(true);
            }
            if !self.is_away(id)?
                || matches!(self.flights.get(&id), Some(Flight::Apply(_)))
                || self.is_below_here(*dir, id)?
            {
                continue;
            }
            let mut entry = self.trees.get(id)?;
            let Some(mut local) = entry.local.take() else {
                continue;
            };
            self.looks.missing.remove(&id);
            let is_dir = local.body == LocalBody::Dir;
            local.place = Place { parent: *dir, name: name.clone() };
            local.alias = None;
            local.parked = false;
            // A rename changes the change time of a file, and so may hide an edit.
            if let LocalBody::File(content) = &mut local.body
                && local.stat != found.stat
                && !self.trees.has_defect(Defect::RenameHidesEdit)
            {
                *content = None;
            }
            local.set_stat(found.stat);
            if self.is_in_doubt(*dir) {
                suspect(&mut entry, &mut local);
            }
            entry.local = Some(local);
            self.agenda.clear_retry(id);
            if is_dir {
                self.paths.clear();
            }
            self.put(id, &entry)?;
            if is_dir {
                self.looks.want(id, Want::All { deep: true });
            }
            return Ok(true);
        }
        Ok(false)
    }

    /// Takes what was found at the place of a file as its newest version.
    fn take_edit(&mut self, id: NodeId, found: &Found) -> Result<(), T::Error> {
        self.looks.missing.remove(&id);
        let mut entry = self.trees.get(id)?;
        match entry.local.clone() {
            Some(local) => self.refresh(id, &mut entry, local, found),
            None => Ok(()),
        }
    }

    /// Takes a newcomer in that no known node has become.
    fn settle_newcomer(&mut self, newcomer: Newcomer) -> Result<(), T::Error> {
        let Newcomer { dir, name, found } = &newcomer;
        for id in self.trees.local_at(*dir, name)? {
            let mut entry = self.trees.get(id)?;
            let Some(mut local) = entry.local.clone() else {
                continue;
            };
            if local.body != LocalBody::Dir && local.stat.kind == found.stat.kind {
                // What was to be moved here could not be: by its path it is the same node.
                return self.take_edit(id, found);
            }
            if self.looks.missing.get(&id).is_some_and(|missing| !missing.confirmed) {
                // What was here may turn up where it was moved to; until it is known to be gone, what
                // took its place waits for another look.
                let at_ms = self.now.ms + self.settings.missing_settle_ms;
                self.looks.astray(*dir, at_ms, Want::Names(BTreeSet::from([name.clone()])));
                return Ok(());
            }
            let was_missing = self.looks.missing.remove(&id);
            if local.stat.kind == found.stat.kind {
                // A directory in place of another: by its path it is the same node.
                local.set_stat(found.stat);
                entry.local = Some(local);
                self.put(id, &entry)?;
                self.looks.want(id, Want::All { deep: true });
                return Ok(());
            }
            if let Some(missing) = was_missing {
                self.take_away(id, missing.is_lost)?;
            }
        }
        if self.look_twice(&newcomer)? {
            return Ok(());
        }
        self.take_new(newcomer)
    }

    /// A newcomer whose inode is that of a known node, which is where it was, as far as anybody has
    /// looked: it may have been moved between the two looks. Both places are looked at again before
    /// it may become a second node. Returns whether they are.
    fn look_twice(&mut self, newcomer: &Newcomer) -> Result<bool, T::Error> {
        let Newcomer { dir, name, found } = newcomer;
        let claims = self.claims(found)?;
        if claims.is_empty() {
            return Ok(false);
        }
        // A file may have two names; a directory has one.
        let limit = if found.stat.kind == Some(Kind::Dir) { LOOKS_AGAIN_DIR } else { LOOKS_AGAIN };
        let spot = (*dir, name.clone());
        let inode = inode_of(&found.stat);
        let times = match self.looks.doubted.get(&spot) {
            Some((of, times)) if *of == inode => *times,
            _ => 0,
        };
        if times >= limit || self.looks.doubted.len() >= DOUBTED_MAX {
            self.looks.doubted.remove(&spot);
            return Ok(false);
        }
        self.looks.doubted.insert(spot, (inode, times + 1));
        let at_ms = self.now.ms + GONE_RECHECK_MS;
        self.looks.astray(*dir, at_ms, Want::Names(BTreeSet::from([name.clone()])));
        for id in claims {
            if let Some(local) = self.trees.get(id)?.local
                && !local.parked
            {
                let names = BTreeSet::from([local.disk_name().clone()]);
                self.looks.astray(local.place.parent, at_ms, Want::Names(names));
            }
        }
        Ok(true)
    }

    /// Takes a newcomer in as a node of its own: the server's at this place, or a fresh one.
    fn take_new(&mut self, newcomer: Newcomer) -> Result<(), T::Error> {
        let Newcomer { dir, name, found } = newcomer;
        if dir != NodeId::ROOT && self.trees.get(dir)?.local.is_none() {
            return Ok(());
        }
        let body = match (found.stat.kind, found.target) {
            (Some(Kind::Dir), _) => LocalBody::Dir,
            (Some(Kind::File), _) => LocalBody::File(None),
            (Some(Kind::Link), Some(target)) => LocalBody::Link(target),
            (Some(Kind::Link), None) | (None, _) => return Ok(()),
        };
        let known = self.unclaimed_there(dir, &name)?.filter(|(id, entry)| {
            entry.remote.as_ref().map(|remote| remote.node.body.kind()) == found.stat.kind
                && !self.flights.contains_key(id)
        });
        let was_put = self.was_put(dir, &name, &found.stat)?;
        let mut place = Place { parent: dir, name };
        let mut alias = None;
        let (id, mut entry) = match (was_put, known) {
            (Some((putting, entry)), _) => {
                place = putting.here.place;
                alias = putting.alias;
                (putting.node, entry)
            }
            (None, Some(known)) => known,
            (None, None) => (self.fresh_id(), Entry::default()),
        };
        let is_dir = body == LocalBody::Dir;
        let mut local = Local {
            place,
            alias,
            stat: found.stat,
            body,
            racy: false,
            parked: false,
            stands_for: None,
        };
        if local.stat.size == 0 && self.is_in_doubt(local.place.parent) {
            suspect(&mut entry, &mut local);
        }
        entry.local = Some(local);
        self.put(id, &entry)?;
        if is_dir {
            self.looks.want(id, Want::All { deep: true });
        }
        Ok(())
    }

    pub(super) fn fresh_id(&mut self) -> NodeId {
        let millis = u64::try_from(self.now.wall.as_millis()).unwrap_or(0);
        let id = self.ids.node_id(millis);
        self.trees.made(id);
        id
    }

    /// Returns whether what is in a directory of this disk was not looked at since an unclean stop: of what
    /// differs there it is not known whether a person or the power did it.
    fn is_in_doubt(&self, dir: NodeId) -> bool {
        if self.looks.unread.is_empty() || self.is_after_unclean_stop() {
            return self.is_after_unclean_stop();
        }
        let mut at = dir;
        for _ in 0..100_000 {
            if self.looks.unread.contains(&at) {
                return true;
            }
            match self.trees.look(at, |entry| entry.local.as_ref().map(|here| here.place.parent)) {
                Ok(Some(parent)) => at = parent,
                Ok(None) | Err(_) => return at != NodeId::ROOT,
            }
        }
        true
    }

    /// A directory of which it was not known what the power took could be read: now that is not known of those
    /// in it.
    fn pass_doubt_on(&mut self, dir: NodeId) -> Result<(), T::Error> {
        let is_dir =
            |entry: &Entry| entry.local.as_ref().is_some_and(|here| here.body == LocalBody::Dir);
        self.for_each_in(dir, |engine, child| {
            if engine.trees.look(child, is_dir)? {
                engine.looks.unread.insert(child);
                engine.looks.want(child, Want::All { deep: true });
            }
            Ok(())
        })?;
        self.looks.unread.remove(&dir);
        Ok(())
    }

    /// Returns whether the machine stopped uncleanly and the disk has not been looked at since.
    pub(super) fn is_after_unclean_stop(&self) -> bool {
        self.settings.suspect_since.is_some() && !self.looks.is_known
    }

    /// A node is no longer on this disk, nor is anything that was in it, and that is nobody's wish:
    /// what the server has of it comes again.
    pub(super) fn take_lost(&mut self, id: NodeId) -> Result<(), T::Error> {
        self.take_away(id, true)
    }

    /// Returns whether a node is believed to be in a directory that is not on this disk. An operation
    /// that was under way for it when the directory went away, and whose end an earlier life of this
    /// agent did not see, leaves one behind; so does a file that came and went between a look at the
    /// directory and its removal.
    pub(super) fn is_stray(&self, entry: &Entry) -> Result<bool, T::Error> {
        match &entry.local {
            Some(local) if !local.parked && local.place.parent != NodeId::ROOT => {
                self.trees.look(local.place.parent, |parent| parent.local.is_none())
            }
            _ => Ok(false),
        }
    }

    /// Lets go of such a node, unless it may still be found elsewhere. That is nobody's deletion.
    pub(super) fn take_stray(&mut self, id: NodeId) -> Result<(), T::Error> {
        if self.looks.is_known && self.looks.is_idle() {
            return self.take_lost(id);
        }
        self.agenda.retry(id, self.now.ms);
        Ok(())
    }

    /// Returns at most `limit` of the nodes that really are in a directory of this disk: what is
    /// parked is not, wherever it was.
    pub(super) fn children_inside(
        &self,
        dir: NodeId,
        limit: usize,
    ) -> Result<Vec<NodeId>, T::Error> {
        let mut inside = Vec::new();
        let mut after = None;
        while inside.len() < limit {
            let page = self.trees.local_children(dir, after, limit)?;
            let Some(last) = page.last() else { break };
            after = Some(*last);
            for child in page {
                let is_inside =
                    |entry: &Entry| entry.local.as_ref().is_some_and(|local| !local.parked);
                if self.trees.look(child, is_inside)? {
                    inside.push(child);
                }
            }
        }
        inside.truncate(limit);
        Ok(inside)
    }

    /// A node has come to the end of its way: if that was in a directory that went away meanwhile, it
    /// went with it.
    pub(super) fn end_orphan(&mut self, id: NodeId) -> Result<(), T::Error> {
        let Some(is_lost) = self.looks.orphans.remove(&id) else { return Ok(()) };
        if let Some(local) = self.trees.get(id)?.local
            && !local.parked
            && self.dir_ref(local.place.parent)?.is_none()
        {
            self.take_away(id, is_lost)?;
        }
        Ok(())
    }

    /// A node is no longer on this disk, nor is anything that was in it: it is lost, or somebody
    /// deleted it.
    fn take_away(&mut self, id: NodeId, is_lost: bool) -> Result<(), T::Error> {
        let mut stack = vec![id];
        self.paths.clear();
        while let Some(id) = stack.pop() {
            if matches!(self.flights.get(&id), Some(Flight::Apply(_))) {
                // It is on the move, out of there perhaps: that is seen when it has arrived.
                self.looks.orphans.insert(id, is_lost);
                continue;
            }
            let mut entry = self.trees.get(id)?;
            let Some(local) = entry.local.take() else {
                continue;
            };
            if local.body == LocalBody::Dir {
                // Children keep their old parent in the tree until they are taken, one page at a
                // time; each page is gone from the index before the next is asked for.
                let mut children = self.children_inside(id, 512)?;
                children.retain(|child| !self.looks.orphans.contains_key(child));
                if !children.is_empty() {
                    stack.push(id);
                    stack.extend(children);
                    continue;
                }
            }
            if is_lost {
                entry.synced = None;
            } else {
                self.note_gone(id, &local);
            }
            self.looks.missing.remove(&id);
            self.looks.torn.remove(&id);
            self.forget_putting(id)?;
            self.uploaded.remove(&id);
            self.solve(&Subject::Node(id));
            self.agenda.clear_retry(id);
            self.put(id, &entry)?;
            self.agenda.schedule(local.place.parent);
        }
        Ok(())
    }
}

/// Returns what tells one inode from all others, at any time.
fn inode_of(stat: &Stat) -> (u64, Timestamp) {
    (stat.ino, stat.birth)
}

/// After an unclean stop a file that is not what it was last seen to be may have lost its newest bytes
/// with the power, although the server has them: it must not pass for an edit. So nothing both sides
/// agreed on counts for it any more, and where it differs from the server's it becomes a conflict
/// copy. An empty file holds nothing that could be lost: its emptiness becomes the merge base, and
/// the server's bytes come back.
pub(super) fn suspect(entry: &mut Entry, local: &mut Local) {
    let LocalBody::File(content) = &mut local.body else { return };
    let Some(remote) = &entry.remote else { return };
    entry.synced = None;
    if local.stat.size == 0 && remote.node.body.content_len() > 0 {
        *content = Some(Content::Empty);
        entry.synced = local.node();
    }
}
