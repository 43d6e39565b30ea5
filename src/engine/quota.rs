//! What is held back because the account has no more room on the server.
//!
//! The server tells how much is in use, and refuses what would make it more than the quota. So that nothing is
//! read, packed and sent only to be refused, the engine keeps account itself: what the server last told, and
//! what is on its way and will be in use once the server has taken it (*reserved*). A file that does not fit
//! into the rest is held, as a problem of its own; all else goes on. Whenever there is more room, by the
//! server's word or because something on its way came to nothing, the held files that fit are planned
//! again, the smallest first, one after the other: each reserves its room before the next one is asked.
//!
//! A reservation ends when the answer to the commit is taken in, which comes with what is in use after it.
//! Pushes of the server's can run ahead of that, and then something is counted twice for a moment: some
//! file is held a little longer than need be, and never sent in vain.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use super::trees::Trees;
use super::{Engine, Subject};
use crate::model::{Body, NodeId, NodeIdHash, RelPath, Usage, byte_count};

/// The most held nodes that are known by name; that there are more is known, too.
const HELD_MAX: usize = 32 * 1024;

/// A node that is held back.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Lack {
    /// How many bytes more it would make used.
    pub needs: u64,
    /// How many were left when it was held: told as it was then, so that a person is not told of the same
    /// file again and again.
    pub left: u64,
}

impl Lack {
    /// Returns what a person should know.
    #[must_use]
    pub fn reason(&self) -> String {
        format!(
            "Over quota: it needs {} on the server, where {} are left; delete something, or ask whoever \
             runs the server for more",
            byte_count(self.needs),
            byte_count(self.left)
        )
    }
}

/// The account of the room.
#[derive(Debug, Default)]
pub(super) struct Quota {
    /// What the server last told; nothing while there is no connection, or when it does not say.
    usage: Option<Usage>,
    /// What is on its way, by node.
    reserved: HashMap<NodeId, u64, NodeIdHash>,
    reserved_sum: u64,
    held: BTreeMap<NodeId, Lack>,
    /// Those of them that wait for room, by what they need.
    waiting: BTreeSet<(u64, NodeId)>,
    /// Whether some are held that found no place among them: a sweep finds them when there is room.
    left_out: bool,
}

impl Quota {
    /// Returns how many bytes more may be sent; nothing where there is no limit.
    pub(super) fn left(&self) -> Option<u64> {
        let left = self.usage?.left()?;
        Some(left.saturating_sub(self.reserved_sum))
    }

    fn has_room_for(&self, growth: u64) -> bool {
        growth == 0 || self.left().is_none_or(|left| growth <= left)
    }

    pub(super) fn reserve(&mut self, id: NodeId, growth: u64) {
        self.release(id);
        if growth > 0 {
            self.reserved.insert(id, growth);
            self.reserved_sum = self.reserved_sum.saturating_add(growth);
        }
    }

    /// What was on its way of a node is not any more, or is in use.
    pub(super) fn release(&mut self, id: NodeId) {
        if let Some(growth) = self.reserved.remove(&id) {
            self.reserved_sum = self.reserved_sum.saturating_sub(growth);
        }
    }

    fn hold(&mut self, id: NodeId, needs: u64) {
        let left = self.left().unwrap_or(0);
        if self.held.get(&id).is_none_or(|lack| lack.needs != needs) {
            self.free(id);
            if self.held.len() >= HELD_MAX {
                self.left_out = true;
                return;
            }
            self.held.insert(id, Lack { needs, left });
        }
        self.waiting.insert((needs, id));
    }

    /// A node is not held any more.
    pub(super) fn free(&mut self, id: NodeId) {
        if let Some(Lack { needs, .. }) = self.held.remove(&id) {
            self.waiting.remove(&(needs, id));
        }
    }

    /// Takes the next held node that there is room for.
    pub(super) fn admit(&mut self) -> Option<NodeId> {
        if !self.may_admit() {
            return None;
        }
        self.waiting.pop_first().map(|(_, id)| id)
    }

    /// Returns whether there is room for a held node.
    pub(super) fn may_admit(&self) -> bool {
        self.usage.is_some()
            && self.waiting.first().is_some_and(|(needs, _)| self.has_room_for(*needs))
    }

    /// Returns what is held.
    pub(super) fn held(&self) -> impl Iterator<Item = (NodeId, Lack)> {
        self.held.iter().map(|(id, lack)| (*id, *lack))
    }

    /// Returns how much is held, as far as it is known by name.
    pub(super) fn held_count(&self) -> usize {
        self.held.len()
    }

    /// Returns why a node is held, if it is.
    pub(super) fn lack_of(&self, id: NodeId) -> Option<Lack> {
        self.held.get(&id).copied()
    }

    /// Returns whether more is held than is known by name.
    pub(super) fn holds_more(&self) -> bool {
        self.left_out
    }

    /// The connection is gone: nothing is on its way, and what is in use will be told anew.
    pub(super) fn forget_usage(&mut self) {
        let held = std::mem::take(&mut self.held);
        // What is held stays known, so that it is not told of again.
        *self = Self { held, ..Self::default() };
    }
}

impl<T: Trees> Engine<T> {
    /// The server tells how much is in use.
    pub(super) fn heard_usage(&mut self, usage: Usage) {
        let before = self.quota.left();
        self.quota.usage = Some(usage);
        let has_grown = match (before, self.quota.left()) {
            (Some(before), Some(left)) => left > before,
            (before, None) => before.is_some(),
            (None, Some(_)) => false,
        };
        if self.quota.left_out && has_grown {
            self.quota.left_out = false;
            self.agenda.sweep();
        }
    }

    /// Returns whether the server has room for a node with this body, of which it knows `known`; else
    /// holds it back.
    pub(super) fn fits_quota(&mut self, id: NodeId, body: &Body, known: Option<&Body>) -> bool {
        let growth = growth(body, known);
        self.quota.release(id);
        if self.quota.has_room_for(growth) {
            self.quota.free(id);
            return true;
        }
        self.hold_for_room(id, growth);
        false
    }

    /// From now on what a node makes used is on its way.
    pub(super) fn reserve_room(&mut self, id: NodeId, body: &Body, known: Option<&Body>) {
        self.quota.reserve(id, growth(body, known));
    }

    /// The server refused a change for lack of room. By what it told with that, the node is held when it
    /// is planned again; where it tells nothing, or something else, it is asked again after a while.
    pub(super) fn over_quota(&mut self, id: NodeId, body: Option<&Body>, known: Option<&Body>) {
        let growth = body.map_or(0, |body| growth(body, known));
        if self.quota.has_room_for(growth) {
            let lack = Lack { needs: growth, left: self.quota.left().unwrap_or(0) };
            self.problem(Subject::Node(id), lack.reason());
            self.agenda.retry_slowly(id, self.now.ms);
        } else {
            self.hold_for_room(id, growth);
        }
    }

    fn hold_for_room(&mut self, id: NodeId, growth: u64) {
        self.quota.hold(id, growth);
        // What was wrong before is told no more: this is.
        self.solve(&Subject::Node(id));
    }

    /// Returns what is held back, with its path.
    pub(super) fn lacks(&self) -> impl Iterator<Item = (RelPath, String)> {
        self.quota.held().map(|(id, lack)| (self.trees.path_of(id), lack.reason()))
    }
}

/// Returns by how much a file becomes larger for the server.
fn growth(body: &Body, known: Option<&Body>) -> u64 {
    body.content_len().saturating_sub(known.map_or(0, Body::content_len))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id(number: u8) -> NodeId {
        NodeId::from_bytes([number; 16])
    }

    #[test]
    fn the_smallest_that_fit_are_let_in_and_what_is_on_its_way_counts() {
        let mut quota = Quota::default();
        assert!(quota.has_room_for(u64::MAX), "nothing is known");
        quota.usage = Some(Usage { used: 90, quota: Some(100) });
        quota.reserve(id(1), 6);
        for (number, needs) in [(2, 20), (3, 5), (4, 4), (5, 4)] {
            quota.hold(id(number), needs);
        }
        assert_eq!(quota.admit(), Some(id(4)));
        quota.free(id(4));
        quota.reserve(id(4), 4);
        assert_eq!(quota.admit(), None, "nothing is left");
        // It was refused, or came to nothing.
        quota.release(id(1));
        assert_eq!(quota.admit(), Some(id(5)));
        assert_eq!(quota.held_count(), 3, "it is held until its room is reserved");
        quota.hold(id(5), 4);
        quota.usage = Some(Usage { used: 200, quota: Some(100) });
        assert!(quota.admit().is_none() && !quota.has_room_for(1) && quota.has_room_for(0));
        quota.usage = Some(Usage { used: 200, quota: None });
        let all: Vec<_> = std::iter::from_fn(|| quota.admit()).collect();
        assert_eq!(all, [id(5), id(3), id(2)]);
    }

    #[test]
    fn what_is_told_of_a_held_file_stays_until_the_file_changes() {
        let mut quota =
            Quota { usage: Some(Usage { used: 9, quota: Some(10) }), ..Quota::default() };
        quota.hold(id(1), 5);
        quota.usage = Some(Usage { used: 8, quota: Some(10) });
        quota.hold(id(1), 5);
        assert_eq!(quota.lack_of(id(1)), Some(Lack { needs: 5, left: 1 }));
        quota.hold(id(1), 6);
        assert_eq!(quota.lack_of(id(1)), Some(Lack { needs: 6, left: 2 }));
        assert_eq!(quota.waiting.len(), 1);
        quota.forget_usage();
        assert!(quota.held_count() == 1 && !quota.may_admit());
    }
}
