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

use super::seam::{Action, Found, Look, Seen};
use super::trees::{Entry, Local, LocalBody, Trees};
use super::{Engine, Flight, Subject, normal};
use crate::model::{Body, Content, Kind, Name, NodeId, Place};

/// The most looks under way.
const LOOKS_MAX: usize = 32;
/// From this many names on, the whole directory is looked at.
const NAMES_MAX: usize = 512;
/// How long after a racy read a file is read again.
const RACY_RECHECK_MS: u64 = 1_500;

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
    /// Nodes that wait for looks to come back.
    waiters: BTreeSet<NodeId>,
    /// Directories with racily read files, and when to look at them again.
    rechecks: BTreeMap<NodeId, u64>,
    rescan_wanted: bool,
    rescanning: bool,
    /// Completed looks at everything.
    pub(super) rescans_done: u64,
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

    /// Looks at a name in the next round.
    pub(super) fn hint_name(&mut self, dir: NodeId, name: Name) {
        self.hint(dir, Want::Names(BTreeSet::from([name])));
    }

    /// Looks at a whole directory in the next round (this also sets the watch on it).
    pub(super) fn hint_all(&mut self, dir: NodeId) {
        self.hint(dir, Want::All { deep: false });
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
            && self.missing.is_empty())
    }

    pub(super) fn is_idle(&self) -> bool {
        self.wanted.is_empty()
            && self.hints.is_empty()
            && self.under_way.is_empty()
            && self.missing.is_empty()
            && self.newcomers.is_empty()
            && !self.rescan_wanted
            && !self.rescanning
    }

    pub(super) fn next_due_ms(&self) -> Option<u64> {
        let missing = self.missing.values().filter(|m| !m.asked_again).map(|m| m.since_ms).min();
        self.rechecks.values().copied().chain(missing).min()
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
            for (dir, want) in std::mem::take(&mut self.looks.hints) {
                self.looks.want(dir, want);
            }
            if std::mem::take(&mut self.looks.rescan_wanted) {
                self.looks.rescanning = true;
                self.looks.want(NodeId::ROOT, Want::All { deep: true });
            }
            if self.looks.wanted.is_empty() {
                return Ok(());
            }
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
                self.looks.hint(dir, want);
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
        let Some(want) = self.looks.under_way.remove(&dir) else { return Ok(()) };
        for id in std::mem::take(&mut self.looks.waiters) {
            self.agenda.schedule(id);
        }
        let local = self.trees.get(dir)?.local;
        if dir != NodeId::ROOT && local.as_ref().is_none_or(|local| local.body != LocalBody::Dir) {
            return Ok(());
        }
        match look {
            Look::Entries { dir: stat, entries } => {
                self.solve(&Subject::Listing(dir));
                if dir == NodeId::ROOT {
                    self.root_ino = stat.ino;
                } else if self.root_ino == 0 {
                    self.looks.want(NodeId::ROOT, Want::All { deep: false });
                }
                let deep = want == Want::All { deep: true };
                self.take_entries(dir, names.is_none(), deep, entries)?;
            }
            Look::Gone => match local {
                // The root is the driver's to watch: a missing folder is not an empty one.
                None => {}
                Some(local) if local.parked => self.note_missing(dir),
                Some(local) => {
                    let name = local.disk_name().clone();
                    let parent = local.place.parent;
                    self.looks.want(parent, Want::Names(BTreeSet::from([name])));
                    // It may have been away for a moment only.
                    self.looks.rechecks.insert(dir, self.now.ms + 200);
                }
            },
            Look::Unreadable { reason } => {
                self.problem(Subject::Listing(dir), reason);
                self.looks.rechecks.insert(dir, self.now.ms + 30_000);
            }
        }
        Ok(())
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
                None => {
                    self.solve(&Subject::Spot(dir, name.clone()));
                    for id in self.trees.local_at(dir, &name)? {
                        self.note_missing(id);
                    }
                }
            }
        }
        if whole {
            let mut after = None;
            loop {
                let children = self.trees.local_children(dir, after, 512)?;
                let Some(last) = children.last() else { break };
                after = Some(*last);
                for child in children {
                    let Some(local) = self.trees.get(child)?.local else {
                        continue;
                    };
                    if !local.parked && !seen.contains(local.disk_name()) {
                        self.note_missing(child);
                    }
                }
            }
        }
        Ok(())
    }

    fn note_missing(&mut self, id: NodeId) {
        if matches!(self.flights.get(&id), Some(Flight::Apply(_))) {
            // An operation of ours may have moved it: look again when it is over.
            if let Ok(Entry { local: Some(local), .. }) = self.trees.get(id) {
                let spot = (local.place.parent, local.disk_name().clone());
                self.looks.after.entry(id).or_default().insert(spot);
            }
            return;
        }
        let since_ms = self.now.ms + self.settings.missing_settle_ms;
        let missing = self.looks.missing.entry(id).or_insert(Missing {
            since_ms,
            asked_again: false,
            confirmed: false,
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
        if let Some(by) = self.targets.get(&(dir, name.clone()))
            && self.flights.contains_key(by)
        {
            // An operation of ours is at work on this name: look again when it is over.
            self.looks.after.entry(*by).or_default().insert((dir, name.clone()));
            return Ok(());
        }
        let special = Subject::Spot(dir, name.clone());
        if found.stat.kind.is_none() {
            if !found.ignored {
                let reason = "A socket, FIFO or device is not synced; ignore it or remove it";
                self.problem(special, reason);
            }
            for id in self.trees.local_at(dir, name)? {
                self.note_missing(id);
            }
            return Ok(());
        }
        self.solve(&special);
        let known = self.trees.local_at(dir, name)?;
        let mut matched = false;
        for &id in &known {
            let mut entry = self.trees.get(id)?;
            let Some(local) = entry.local.clone() else {
                continue;
            };
            let is_same = local.stat.kind == found.stat.kind
                && (local.body != LocalBody::Dir || local.stat.same_inode(&found.stat));
            if !is_same || matched {
                self.note_missing(id);
                continue;
            }
            matched = true;
            self.looks.missing.remove(&id);
            self.refresh(id, &mut entry, local, &found)?;
            if deep && found.stat.kind == Some(Kind::Dir) {
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
        if local.stat.unchanged(&found.stat) && !target_changed {
            if local.racy {
                self.verify(id, &local)?;
            }
            return Ok(());
        }
        local.set_stat(found.stat);
        local.racy = false;
        match (&mut local.body, &found.target) {
            (LocalBody::File(content), _) => *content = None,
            (LocalBody::Link(target), Some(new)) => *target = new.clone(),
            (LocalBody::Link(_) | LocalBody::Dir, _) => {}
        }
        if self.settings.unclean && self.looks.rescans_done == 0 {
            suspect_emptied(entry, &mut local);
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

    /// Returns a node that the server has at this place and that is not on this disk.
    fn unclaimed_there(
        &self,
        dir: NodeId,
        name: &Name,
    ) -> Result<Option<(NodeId, Entry)>, T::Error> {
        for id in self.trees.remote_at(dir, name)? {
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
            && self.claims(newcomer)?.is_empty())
    }

    /// Returns the nodes that are the same inode.
    fn claims(&self, newcomer: &Newcomer) -> Result<Vec<NodeId>, T::Error> {
        let mut claims = Vec::new();
        for id in self.trees.local_by_inode(newcomer.found.stat.ino)? {
            let local = self.trees.get(id)?.local;
            if local.is_some_and(|local| local.stat.same_inode(&newcomer.found.stat)) {
                claims.push(id);
            }
        }
        Ok(claims)
    }

    fn look_at_claims(&mut self, newcomer: &Newcomer) -> Result<(), T::Error> {
        for id in self.claims(newcomer)? {
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
                Some(local) if local.parked => return Ok(true),
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
        loop {
            let before = left.len();
            let mut still = Vec::new();
            for newcomer in left {
                if !self.settle_move(&newcomer)? {
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
                gone.push(id);
            } else if missing.asked_again {
                // The second look could not tell: begin again.
                missing.asked_again = false;
                missing.since_ms = now_ms + self.settings.missing_settle_ms;
            } else if missing.since_ms <= now_ms {
                missing.asked_again = true;
                again.push(id);
            }
        }
        for id in gone {
            self.looks.missing.remove(&id);
            self.take_gone(id)?;
        }
        for id in again {
            match self.trees.get(id)?.local {
                Some(local) if !local.parked && self.dir_ref(local.place.parent)?.is_some() => {
                    let names = BTreeSet::from([local.disk_name().clone()]);
                    self.looks.want(local.place.parent, Want::Names(names));
                }
                // Nothing to look at: a parked node that is gone, or one whose directory is.
                Some(_) => {
                    self.looks.missing.remove(&id);
                    self.take_gone(id)?;
                }
                None => {
                    self.looks.missing.remove(&id);
                }
            }
        }
        Ok(())
    }

    /// Takes a newcomer in as a known node that has moved; returns whether it is dealt with.
    fn settle_move(&mut self, newcomer: &Newcomer) -> Result<bool, T::Error> {
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
            // A file found where another file was is an edit of that one, whatever its inode.
            if found.stat.kind != Some(Kind::Dir) && local.stat.kind == found.stat.kind {
                self.looks.hint_name(*dir, name.clone());
                return Ok(true);
            }
        }
        for id in self.claims(newcomer)? {
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
            {
                *content = None;
            }
            local.set_stat(found.stat);
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

    /// Takes a newcomer in that no known node has become.
    fn settle_newcomer(&mut self, newcomer: Newcomer) -> Result<(), T::Error> {
        let Newcomer { dir, name, found } = &newcomer;
        for id in self.trees.local_at(*dir, name)? {
            let mut entry = self.trees.get(id)?;
            let Some(mut local) = entry.local.clone() else {
                continue;
            };
            let was_missing = self.looks.missing.remove(&id).is_some();
            if local.stat.kind == found.stat.kind {
                // A directory in place of another: by its path it is the same node.
                if local.body == LocalBody::Dir {
                    local.set_stat(found.stat);
                    entry.local = Some(local);
                    self.put(id, &entry)?;
                    self.looks.want(id, Want::All { deep: true });
                }
                return Ok(());
            }
            if was_missing {
                self.take_gone(id)?;
            }
        }
        self.take_new(newcomer)
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
        let (id, mut entry) = match known {
            Some(known) => known,
            None => (self.fresh_id(), Entry::default()),
        };
        let is_dir = body == LocalBody::Dir;
        let mut local = Local {
            place: Place { parent: dir, name },
            alias: None,
            stat: found.stat,
            body,
            racy: false,
            parked: false,
            stands_for: None,
        };
        if self.settings.unclean && self.looks.rescans_done == 0 {
            suspect_emptied(&mut entry, &mut local);
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
        self.ids.node_id(millis)
    }

    /// A node is no longer on this disk, nor is anything that was in it.
    fn take_gone(&mut self, id: NodeId) -> Result<(), T::Error> {
        let mut stack = vec![id];
        self.paths.clear();
        while let Some(id) = stack.pop() {
            let mut entry = self.trees.get(id)?;
            let Some(local) = entry.local.take() else {
                continue;
            };
            if local.body == LocalBody::Dir {
                // Children keep their old parent in the tree until they are taken, one page at a
                // time; each page is gone from the index before the next is asked for.
                let children = self.trees.local_children(id, None, 512)?;
                if !children.is_empty() {
                    stack.push(id);
                    stack.extend(children);
                    continue;
                }
            }
            self.looks.missing.remove(&id);
            self.uploaded.remove(&id);
            self.solve(&Subject::Node(id));
            self.agenda.clear_retry(id);
            self.put(id, &entry)?;
            self.agenda.schedule(local.place.parent);
        }
        Ok(())
    }
}

/// A file that is empty after an unclean stop, and was not before, may have lost its bytes with the
/// power. The emptiness becomes the merge base, so that the server's bytes come back; an empty file
/// holds nothing that could be lost by it.
fn suspect_emptied(entry: &mut Entry, local: &mut Local) {
    if let (LocalBody::File(content), Some(base)) = (&mut local.body, &mut entry.synced)
        && local.stat.size == 0
        && base.body.content_len() > 0
        && entry.remote.as_ref().is_some_and(|remote| remote.node.body == base.body)
    {
        *content = Some(Content::Empty);
        base.body = Body::File { content: Content::Empty, mtime: local.mtime() };
    }
}
