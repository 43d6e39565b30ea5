//! Files that are gone from this disk, and what took their bytes.
//!
//! A file that is renamed over another one is, by its place, an edit of that one, and the deletion of its
//! own node. Told first, the deletion leaves its bytes on this disk alone, and a power cut may take
//! them. So it is told once the server has them by the node that took them: the one that has its
//! inode now. Where that is, may not have been looked at yet; so it also waits until no looks
//! are left, or at least some rounds of them are over. Both waits are bounded: an application
//! may write all the time.
//!
//! Nothing here outlives the agent: a kill alone takes no bytes, and after a power cut a deletion that was
//! not told comes undone.

use std::collections::{BTreeSet, HashMap};

use super::decide::Need;
use super::trees::{Entry, Local, LocalBody, Trees};
use super::{Engine, Subject};
use crate::model::{Content, NodeId, NodeIdHash, Timestamp};

/// The longest that a deletion waits, in milliseconds.
const WAIT_MAX_MS: u64 = 30_000;

/// While looks go on and on, a deletion waits for so long, and until so many rounds of them are over: what
/// was in doubt when it was found is looked at three times.
const LOOKS_WAIT_MS: u64 = 1_000;
const ROUNDS: u64 = 8;

/// The most files of which it is remembered what they were. The deletions of more are not delayed.
const GONE_MAX: usize = 16 * 1024;

/// What tells one inode from all others, at any time.
type Inode = (u64, Timestamp);

/// When something was last found gone: the time, and the round of looks.
#[derive(Debug, Clone, Copy, Default)]
struct Since {
    ms: u64,
    round: u64,
}

/// What is remembered of files that are gone.
#[derive(Debug, Default)]
pub(super) struct Gone {
    inodes: HashMap<NodeId, Inode, NodeIdHash>,
    /// A file that was moved over one after the other is found gone more than once.
    since: HashMap<Inode, Since>,
    /// Since when deletions can be told on this connection.
    open_since: Since,
    /// Deletions that wait for looks, by since when.
    waiting: BTreeSet<(u64, NodeId)>,
    /// Deletions that wait for another node to be sent, by when they wait no longer.
    until: BTreeSet<(u64, NodeId)>,
}

impl Gone {
    fn note(&mut self, id: NodeId, inode: Inode, since: Since) {
        if self.inodes.len() >= GONE_MAX {
            self.since.retain(|_, at| since.ms < at.ms + WAIT_MAX_MS);
            let since = &self.since;
            self.inodes.retain(|_, inode| since.contains_key(inode));
        }
        if self.inodes.len() < GONE_MAX {
            self.inodes.insert(id, inode);
            self.since.insert(inode, since);
        }
    }

    /// A deletion is told.
    fn forget(&mut self, id: NodeId) {
        self.inodes.remove(&id);
        if self.inodes.is_empty() {
            self.forget_all();
        }
    }

    fn forget_all(&mut self) {
        self.inodes.clear();
        self.since.clear();
        self.waiting.clear();
        self.until.clear();
    }

    /// Returns since when a deletion could have been told, but for what is waited for here.
    fn since(&self, id: NodeId) -> Option<(Inode, Since)> {
        let inode = *self.inodes.get(&id)?;
        let Since { ms, round } = *self.since.get(&inode)?;
        let open = self.open_since;
        Some((inode, Since { ms: ms.max(open.ms), round: round.max(open.round) }))
    }
}

impl<T: Trees> Engine<T> {
    /// A node is not on this disk any more.
    pub(super) fn note_gone(&mut self, id: NodeId, local: &Local) {
        if matches!(local.body, LocalBody::File(_)) && local.stat.size > 0 {
            let since = self.now_looked();
            self.gone.note(id, (local.stat.ino, local.stat.birth), since);
        }
    }

    fn now_looked(&self) -> Since {
        Since { ms: self.now.ms, round: self.looks.rounds }
    }

    /// Deletions can be told from now on.
    pub(super) fn begin_telling(&mut self) {
        self.gone.open_since = self.now_looked();
    }

    /// Returns whether a deletion may be told as far as the bytes of the file are concerned; it is
    /// planned again when that changes.
    pub(super) fn may_let_go(&mut self, id: NodeId) -> Result<bool, T::Error> {
        let Some((inode, since)) = self.gone.since(id) else { return Ok(true) };
        if self.now.ms < since.ms + WAIT_MAX_MS {
            if self.may_turn_up(since) {
                self.gone.waiting.insert((since.ms, id));
                return Ok(false);
            }
            if let Some(holder) = self.unsent_holder(id, inode)? {
                self.gone.until.insert((since.ms + WAIT_MAX_MS, id));
                self.agenda.wait_for(id, holder);
                return Ok(false);
            }
        }
        self.gone.forget(id);
        Ok(true)
    }

    /// Returns whether what was found gone then may be found elsewhere by the looks that are owed.
    fn may_turn_up(&self, since: Since) -> bool {
        let is_late = self.now.ms >= since.ms + LOOKS_WAIT_MS;
        let has_been_looked_for = is_late && self.looks.rounds > since.round + ROUNDS;
        self.looks.may_find_deletions()
            && !has_been_looked_for
            && self.now.ms < since.ms + WAIT_MAX_MS
    }

    /// Returns a node that has this inode and bytes that the server does not have, but is to get.
    fn unsent_holder(&self, id: NodeId, inode: Inode) -> Result<Option<NodeId>, T::Error> {
        let mut behind = None;
        for other in self.trees.local_by_inode(inode.0)? {
            let is_unsent = |entry: &Entry| {
                let local = entry.local.as_ref()?;
                let is_it = (local.stat.ino, local.stat.birth) == inode;
                let is_told = !is_sent(entry, local) && self.decide(entry) != Need::Keep;
                Some(is_it && !local.parked && is_told)
            };
            // What a person has to see to, or what waits for room, can take any time.
            let is_stuck = self.quota.lack_of(other).is_some()
                || self.problems.contains_key(&Subject::Node(other));
            if is_stuck || !self.trees.look(other, is_unsent)?.unwrap_or(false) {
                continue;
            }
            // Nor is waited for what waits for the name that this deletion frees.
            let behind = behind
                .get_or_insert_with(|| self.agenda.waiting_behind(&[id].into_iter().collect()));
            if !behind.contains(&other) {
                return Ok(Some(other));
            }
        }
        Ok(None)
    }

    /// Goes on with deletions that waited long enough.
    pub(super) fn advance_gone(&mut self) {
        if self.trees.totals().deletions == 0 {
            return self.gone.forget_all();
        }
        while let Some((since_ms, id)) = self.gone.waiting.first().copied() {
            let since = self.gone.since(id).map(|(_, since)| since);
            let since = since.filter(|since| self.may_turn_up(*since));
            if since.is_some_and(|since| since.ms == since_ms) {
                break;
            }
            self.gone.waiting.pop_first();
            match since {
                // It was found gone once more meanwhile.
                Some(since) => drop(self.gone.waiting.insert((since.ms, id))),
                None => self.agenda.schedule(id),
            }
        }
        while let Some((at_ms, id)) = self.gone.until.first().copied()
            && at_ms <= self.now.ms
        {
            self.gone.until.pop_first();
            self.agenda.schedule(id);
        }
    }

    /// Returns when [`Engine::advance_gone`] has something to do.
    pub(super) fn gone_due_ms(&self) -> Option<u64> {
        let until = self.gone.until.first().map(|(at_ms, _)| *at_ms);
        let oldest = self.gone.waiting.first().map(|(since_ms, _)| *since_ms);
        let looked = oldest.map(|since_ms| {
            if !self.looks.may_find_deletions() {
                self.now.ms
            } else if self.now.ms < since_ms + LOOKS_WAIT_MS {
                since_ms + LOOKS_WAIT_MS
            } else {
                // The rounds are counted as they begin.
                since_ms + WAIT_MAX_MS
            }
        });
        until.into_iter().chain(looked).min()
    }
}

/// Returns whether the server has what a file holds.
fn is_sent(entry: &Entry, local: &Local) -> bool {
    match (&local.body, local.node(), &entry.remote) {
        (LocalBody::File(Some(Content::Empty)), ..) => true,
        (_, Some(here), Some(there)) => here.body.same_bytes(&there.node.body),
        _ => false,
    }
}
