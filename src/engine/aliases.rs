//! Other names on this disk, for nodes whose own it cannot hold.
//!
//! A disk may refuse a name, or hold it for the same as another one there. The node then gets a name of
//! the engine's making, on this disk only. Any will do, so it is this one that makes way: when it is
//! taken, or comes to be wanted by something that has it by right, the next one is tried.

use std::collections::HashMap;

use super::plan::{expected, is_out_of_sight};
use super::seam::{Action, DiskOp, Spot};
use super::trees::{Entry, Local, Trees};
use super::{ApplyKind, Engine};
use crate::model::{Name, Node, NodeId, Place};

/// How many other names are tried one after the other, before a person has to see to it for a while.
const TRIES_MAX: u32 = 16;

/// A place that a node has in the drive and this disk cannot hold, with the name it gets instead.
#[derive(Debug, Clone)]
struct Alias {
    place: Place,
    name: Name,
    /// Which of its other names this is, from 0 on.
    number: u32,
}

/// The names chosen in this life of the agent. Those in use are in the local tree.
#[derive(Debug, Default)]
pub(super) struct Aliases {
    chosen: HashMap<NodeId, Alias>,
}

impl Aliases {
    /// The node is in none of the trees any more.
    pub(super) fn forget(&mut self, id: NodeId) {
        if !self.chosen.is_empty() {
            self.chosen.remove(&id);
        }
    }

    /// Returns whether a node gets this name because it cannot have its own.
    fn is_chosen(&self, id: NodeId, name: &Name) -> bool {
        self.chosen.get(&id).is_some_and(|alias| alias.name == *name)
    }

    /// Chooses the next other name for a node at a place; returns false when all were tried, and
    /// begins again with the first one then.
    fn choose(&mut self, id: NodeId, place: &Place) -> bool {
        let next = match self.chosen.get(&id) {
            Some(alias) if alias.place == *place => alias.number + 1,
            _ => 0,
        };
        let number = next % TRIES_MAX;
        let name = made_name(&place.name, id, "name clash", number as usize);
        self.chosen.insert(id, Alias { place: place.clone(), name, number });
        next < TRIES_MAX
    }
}

impl<T: Trees> Engine<T> {
    /// Returns the name a node gets on this disk.
    pub(super) fn disk_name(&self, id: NodeId, place: &Place) -> Name {
        match self.aliases.chosen.get(&id) {
            Some(alias) if alias.place == *place => alias.name.clone(),
            _ => place.name.clone(),
        }
    }

    /// A node cannot have the name here that it was to get: it gets another one.
    pub(super) fn choose_alias(&mut self, id: NodeId, place: &Place) {
        if self.aliases.choose(id, place) {
            self.agenda.schedule(id);
        } else {
            self.agenda.retry_slowly(id, self.now.ms);
        }
    }

    /// A node is to get a name here that somebody else has: if it is one of the engine's making, it
    /// gets another one. Returns whether it does.
    pub(super) fn give_way(&mut self, id: NodeId, name: &Name) -> bool {
        if !self.aliases.is_chosen(id, name) {
            return false;
        }
        if let Some(place) = self.aliases.chosen.get(&id).map(|alias| alias.place.clone()) {
            self.choose_alias(id, &place);
        }
        true
    }

    /// Moves a node that is here under another name than its own, and that nothing is to be done for, to
    /// yet another one: what has the name by right is coming. Returns whether there is such a node.
    pub(super) fn make_way(
        &mut self,
        id: NodeId,
        entry: &Entry,
        actions: &mut Vec<Action>,
    ) -> Result<bool, T::Error> {
        let (Some(local), Some(remote)) = (&entry.local, &entry.remote) else { return Ok(false) };
        let Some(name) = &local.alias else { return Ok(false) };
        let Some(from) = self.spot(local)? else { return Ok(false) };
        // After a start the choice is not known any more.
        while self.aliases.choose(id, &local.place) {
            let next = self.disk_name(id, &local.place);
            if next != *name && !self.is_taken_here(local.place.parent, &next)? {
                self.move_to_alias(id, local, from, remote.node.clone(), next, actions)?;
                return Ok(true);
            }
        }
        Ok(false)
    }

    fn move_to_alias(
        &mut self,
        id: NodeId,
        local: &Local,
        from: Spot,
        node: Node,
        name: Name,
        actions: &mut Vec<Action>,
    ) -> Result<(), T::Error> {
        let parent = local.place.parent;
        let targets = vec![(parent, name.clone()), (parent, from.name.clone())];
        let was_out_of_sight = is_out_of_sight(&from.dir);
        let to = Some(Spot { dir: from.dir.clone(), name: name.clone() });
        let op = DiskOp::Move { from: Some(from), to, expected: expected(local) };
        let what = ApplyKind::Move { node, alias: Some(name), was_out_of_sight };
        self.apply(id, op, what, targets, actions)
    }

    /// Returns whether a name in a directory is in use on this disk, or is about to be.
    pub(super) fn is_taken_here(&self, parent: NodeId, name: &Name) -> Result<bool, T::Error> {
        Ok(self.targets.contains_key(&(parent, name.clone()))
            || !self.trees.local_at(parent, name)?.is_empty())
    }
}

/// Returns a name that a node has in the drive between two others.
pub(super) fn name_between(name: &Name, id: NodeId, number: usize) -> Name {
    made_name(name, id, "being renamed", number)
}

/// Returns another name for a node, which any disk can hold: ASCII letters, digits and a few signs of
/// its own, why it is another, and the end of the node's id, by which no two are alike.
fn made_name(name: &Name, id: NodeId, why: &str, number: usize) -> Name {
    let is_plain = |byte: &u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b' ');
    let bytes = name.as_bytes();
    let (stem, extension) = match bytes.iter().rposition(|byte| *byte == b'.') {
        Some(dot) if dot > 0 && bytes.len() - dot <= 16 => bytes.split_at(dot),
        _ => (bytes, &b""[..]),
    };
    let mut alias: Vec<u8> = stem.iter().copied().filter(is_plain).take(120).collect();
    let hex = id.to_string();
    let hex = &hex[hex.len() - 8..];
    let why = match number {
        0 => format!(" ({why} {hex})"),
        _ => format!(" ({why} {hex} {})", number + 1),
    };
    alias.extend_from_slice(why.as_bytes());
    alias.extend(extension.iter().copied().filter(|byte| is_plain(byte) || *byte == b'.'));
    // Some disks drop these at the end.
    while let Some(b'.' | b' ') = alias.last() {
        alias.pop();
    }
    Name::new(alias).unwrap_or_else(|_| name.clone())
}
