//! Which nodes to plan next, and what the others wait for.
//!
//! Nothing here is durable, and nothing here has to be complete: the trees know what is dirty, and
//! a sweep over them finds everything again. So each list has a bound, and dropping an id from a
//! full one only costs a sweep.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet, VecDeque};

use crate::model::{NodeId, NodeIdHash, Rev};

/// The most ids that are ready at a time.
const READY_MAX: usize = 32 * 1024;
/// No more dirty nodes are looked for while so many have no room.
const CROWDED_SWEEP_MAX: usize = 1024;
/// The most ids that wait for another node.
const WAITING_MAX: usize = 32 * 1024;
/// The first delay after a failure, doubled with each further one up to [`DELAY_MAX_MS`].
const DELAY_MIN_MS: u64 = 50;
const DELAY_MAX_MS: u64 = 60_000;

/// How often a node failed, and when it may be tried again.
#[derive(Debug, Clone, Copy)]
struct Retry {
    at_ms: u64,
    attempts: u32,
}

/// What there can be too much of at a time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Room {
    Hashes,
    Uploads,
    Commits,
    Applies,
}

impl Room {
    /// Each of them; what is nearest to its end comes first.
    pub(crate) const ALL: [Self; 4] = [Self::Applies, Self::Commits, Self::Uploads, Self::Hashes];
}

/// Nodes in the order in which they came, each once.
#[derive(Debug, Default)]
struct Queue {
    order: VecDeque<NodeId>,
    ids: HashSet<NodeId, NodeIdHash>,
}

impl Queue {
    /// Appends a node, unless it is there; returns whether the queue had room.
    fn push(&mut self, id: NodeId) -> bool {
        if self.ids.contains(&id) {
            return true;
        }
        if self.order.len() >= READY_MAX {
            return false;
        }
        self.ids.insert(id);
        self.order.push_back(id);
        true
    }

    fn pop(&mut self) -> Option<NodeId> {
        let id = self.order.pop_front()?;
        self.ids.remove(&id);
        Some(id)
    }
}

/// The lists.
#[derive(Debug, Default)]
pub(crate) struct Agenda {
    ready: Queue,
    /// Nodes that wait until something happens to the node they are listed under.
    waiting: HashMap<NodeId, Vec<NodeId>, NodeIdHash>,
    waiting_count: usize,
    /// Nodes that wait until the journal is known up to a rev.
    after_rev: BTreeMap<Rev, BTreeSet<NodeId>>,
    after_rev_count: usize,
    /// Up to where the journal has to be known for those that found no room there.
    after_rev_left_out: Option<Rev>,
    retries: HashMap<NodeId, Retry, NodeIdHash>,
    due: BTreeSet<(u64, NodeId)>,
    /// Nodes for whose next step there was no room, by what there was too much of.
    crowded: [Queue; Room::ALL.len()],
    /// Where the sweep over the dirty nodes is; none when there is none.
    sweep: Option<u64>,
    /// Whether another sweep is to follow.
    sweep_again: bool,
}

impl Agenda {
    /// Puts a node on the list, unless it is there.
    pub(crate) fn schedule(&mut self, id: NodeId) {
        if !self.ready.push(id) {
            self.sweep_again = true;
        }
    }

    /// Takes the next node off the list.
    pub(crate) fn next(&mut self) -> Option<NodeId> {
        self.ready.pop()
    }

    /// Puts a node aside until something happens to `blocker`.
    pub(crate) fn wait_for(&mut self, id: NodeId, blocker: NodeId) {
        if self.waiting_count >= WAITING_MAX {
            self.sweep_again = true;
            return;
        }
        let list = self.waiting.entry(blocker).or_default();
        if list.last() != Some(&id) {
            list.push(id);
            self.waiting_count += 1;
        }
    }

    /// Something happened to `blocker`: who waited for it is ready.
    pub(crate) fn wake(&mut self, blocker: NodeId) {
        if let Some(list) = self.waiting.remove(&blocker) {
            self.waiting_count -= list.len();
            for id in list {
                self.schedule(id);
            }
        }
    }

    /// Returns the nodes for which others wait.
    pub(crate) fn blockers(&self) -> impl Iterator<Item = NodeId> {
        self.waiting.keys().copied()
    }

    /// Returns the node that another one waits for.
    pub(crate) fn blocker_of(&self, id: NodeId) -> Option<NodeId> {
        self.waiting.iter().find(|(_, list)| list.contains(&id)).map(|(blocker, _)| *blocker)
    }

    /// Returns the nodes that wait for one of these, or for one that does; none of these itself.
    pub(crate) fn waiting_behind(&self, blockers: &HashSet<NodeId>) -> HashSet<NodeId> {
        let mut found = HashSet::new();
        let mut open: Vec<NodeId> = blockers.iter().copied().collect();
        while let Some(blocker) = open.pop() {
            for id in self.waiting.get(&blocker).into_iter().flatten() {
                if !blockers.contains(id) && found.insert(*id) {
                    open.push(*id);
                }
            }
        }
        found
    }

    /// Puts a node aside until the journal is known up to `rev`.
    pub(crate) fn wait_for_rev(&mut self, id: NodeId, rev: Rev) {
        if self.after_rev_count >= WAITING_MAX {
            self.after_rev_left_out = self.after_rev_left_out.max(Some(rev));
        } else if self.after_rev.entry(rev).or_default().insert(id) {
            self.after_rev_count += 1;
        }
    }

    /// The journal is known up to `rev`.
    pub(crate) fn reached(&mut self, rev: Rev) {
        let later = self.after_rev.split_off(&rev.next());
        for ids in std::mem::replace(&mut self.after_rev, later).into_values() {
            self.after_rev_count -= ids.len();
            for id in ids {
                self.schedule(id);
            }
        }
        if self.after_rev_left_out.is_some_and(|last| last <= rev) {
            self.after_rev_left_out = None;
            self.sweep();
        }
    }

    /// The journal may be another one: nobody waits for a rev any more, and a sweep finds who did.
    pub(crate) fn forget_revs(&mut self) {
        self.after_rev.clear();
        self.after_rev_count = 0;
        self.after_rev_left_out = None;
    }

    /// Puts a node aside for a while, longer each time until [`Agenda::clear_retry`].
    pub(crate) fn retry(&mut self, id: NodeId, now_ms: u64) {
        let attempts = self.retries.get(&id).map_or(0, |retry| retry.attempts);
        self.retry_at(id, now_ms + (DELAY_MIN_MS << attempts.min(11)).min(DELAY_MAX_MS), attempts);
    }

    /// Puts a node aside for as long as is usual for what a person has to see to.
    pub(crate) fn retry_slowly(&mut self, id: NodeId, now_ms: u64) {
        let attempts = self.retries.get(&id).map_or(0, |retry| retry.attempts).max(5);
        self.retry_at(id, now_ms + (DELAY_MIN_MS << attempts.min(11)).min(DELAY_MAX_MS), attempts);
    }

    fn retry_at(&mut self, id: NodeId, at_ms: u64, attempts: u32) {
        let retry = Retry { at_ms, attempts: attempts + 1 };
        if let Some(old) = self.retries.insert(id, retry) {
            self.due.remove(&(old.at_ms, id));
        }
        self.due.insert((at_ms, id));
    }

    /// Returns whether a node must not be tried yet.
    pub(crate) fn must_wait(&self, id: NodeId, now_ms: u64) -> bool {
        self.retries.get(&id).is_some_and(|retry| retry.at_ms > now_ms)
    }

    /// Returns how long a node is not tried yet, in milliseconds.
    pub(crate) fn waits_ms(&self, id: NodeId, now_ms: u64) -> Option<u64> {
        let retry = self.retries.get(&id)?;
        retry.at_ms.checked_sub(now_ms).filter(|ms| *ms > 0)
    }

    /// Returns whether the last try with a node failed.
    pub(crate) fn has_failed(&self, id: NodeId) -> bool {
        self.retries.contains_key(&id)
    }

    /// Forgets that a node ever failed.
    pub(crate) fn clear_retry(&mut self, id: NodeId) {
        if let Some(old) = self.retries.remove(&id) {
            self.due.remove(&(old.at_ms, id));
        }
    }

    /// Makes every node ready that waits for a time.
    pub(crate) fn retry_all_now(&mut self) {
        for (_, id) in std::mem::take(&mut self.due) {
            self.retries.remove(&id);
            self.schedule(id);
        }
    }

    /// Makes the nodes ready whose time has come; they stay remembered as having failed.
    pub(crate) fn pass_time(&mut self, now_ms: u64) {
        while let Some(&(at_ms, id)) = self.due.first()
            && at_ms <= now_ms
        {
            self.due.pop_first();
            self.schedule(id);
        }
    }

    /// Returns when the next node's time comes.
    pub(crate) fn next_due_ms(&self) -> Option<u64> {
        self.due.first().map(|(at_ms, _)| *at_ms)
    }

    /// Puts a node aside until there is room for its next step.
    pub(crate) fn crowd_out(&mut self, id: NodeId, room: Room) {
        if !self.crowded[room as usize].push(id) {
            self.sweep_again = true;
        }
    }

    /// Takes the next node for whose next step there was no room of this kind.
    pub(crate) fn admit(&mut self, room: Room) -> Option<NodeId> {
        self.crowded[room as usize].pop()
    }

    /// Returns how many nodes wait for room of this kind.
    pub(crate) fn crowded_out(&self, room: Room) -> usize {
        self.crowded[room as usize].order.len()
    }

    fn crowded_count(&self) -> usize {
        self.crowded.iter().map(|queue| queue.order.len()).sum()
    }

    /// Begins a sweep over all dirty nodes, or another one after the one under way.
    pub(crate) fn sweep(&mut self) {
        if self.sweep.is_some() {
            self.sweep_again = true;
        } else {
            self.sweep = Some(0);
        }
    }

    /// Returns the position after which the sweep goes on, when the lists have room for more.
    pub(crate) fn sweep_position(&mut self) -> Option<u64> {
        if !self.may_sweep() {
            return None;
        }
        if self.sweep.is_none() {
            self.sweep_again = false;
            self.sweep = Some(0);
        }
        self.sweep
    }

    /// Returns whether a sweep is under way or due, and the lists have room for what it finds.
    pub(crate) fn may_sweep(&self) -> bool {
        let is_due = self.sweep_again && self.waiting_count < WAITING_MAX;
        let has_room = !self.has_ready() && self.crowded_count() < CROWDED_SWEEP_MAX;
        has_room && (self.sweep.is_some() || is_due)
    }

    /// The sweep got as far as `position`; none ends it.
    pub(crate) fn sweep_to(&mut self, position: Option<u64>) {
        self.sweep = position;
    }

    /// Returns whether nothing is ready or will be without an event or the passing of time.
    pub(crate) fn is_idle(&self) -> bool {
        !self.has_ready() && self.crowded_count() == 0 && self.sweep.is_none()
    }

    /// Returns whether a node is ready.
    pub(crate) fn has_ready(&self) -> bool {
        !self.ready.order.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id(number: usize) -> NodeId {
        NodeId::from_bytes((number as u128).to_be_bytes())
    }

    #[test]
    fn what_finds_no_room_to_wait_for_the_journal_is_found_again_by_a_sweep() {
        let mut agenda = Agenda::default();
        // One that is refused again and again waits once.
        for _ in 0..3 {
            agenda.wait_for_rev(id(0), Rev(7));
        }
        for number in 1..WAITING_MAX + 100 {
            agenda.wait_for_rev(id(number), Rev(5 + number as u64 % 3));
        }
        assert_eq!(agenda.after_rev_count, WAITING_MAX);
        assert_eq!(agenda.after_rev.values().map(BTreeSet::len).sum::<usize>(), WAITING_MAX);
        agenda.reached(Rev(6));
        assert!(agenda.sweep.is_none(), "for some of them it is too early");
        agenda.reached(Rev(7));
        assert!(agenda.sweep.is_some() && agenda.after_rev.is_empty());
        assert_eq!((agenda.after_rev_count, agenda.ready.order.len()), (0, WAITING_MAX));
    }
}
