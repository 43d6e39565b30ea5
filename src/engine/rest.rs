//! What lies on this disk and is known to be the same on the server: what a person's wish, rather than
//! a plan, may be carried out on.

use super::seam::{Expected, Spot};
use super::trees::{LocalBody, Trees};
use super::{Engine, Flight};
use crate::model::{NodeId, RelPath};

/// A node that is in sync.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AtRest {
    /// The node.
    pub id: NodeId,
    /// Where it is on this disk.
    pub at: Spot,
    /// What is there.
    pub expected: Expected,
}

impl<T: Trees> Engine<T> {
    /// Returns the node at a path of this disk; nothing when there is none, and `Err` when it is not in
    /// sync, or is about to be looked at.
    ///
    /// # Errors
    /// The outer one when the trees cannot be read.
    pub fn at_rest(&mut self, path: &RelPath) -> Result<Result<Option<AtRest>, Unrest>, T::Error> {
        let mut id = NodeId::ROOT;
        for name in path.names() {
            match self.trees.local_at(id, name)?.first() {
                Some(found) => id = *found,
                None if self.looks.is_pending(id, name) => return Ok(Err(Unrest::Waits)),
                None => return Ok(Ok(None)),
            }
        }
        let entry = self.trees.get(id)?;
        let Some(local) = &entry.local else {
            return Ok(Ok(None));
        };
        let is_looked_at = self.looks.is_pending(local.place.parent, local.disk_name());
        if self.is_kept(id, &entry) {
            return Ok(Err(Unrest::Kept));
        }
        if entry.is_dirty() || is_looked_at || self.flights.contains_key(&id) {
            return Ok(Err(Unrest::Waits));
        }
        let content = match &local.body {
            LocalBody::File(content) => *content,
            LocalBody::Dir | LocalBody::Link(_) => None,
        };
        let expected = Expected { stat: local.stat, content };
        let spot = self.spot(local)?;
        Ok(spot.map(|at| Some(AtRest { id, at, expected })).ok_or(Unrest::Waits))
    }

    /// Returns whether a disk operation of the plan's is under way for a node.
    pub fn is_applying(&self, id: NodeId) -> bool {
        matches!(self.flights.get(&id), Some(Flight::Apply(_)))
    }
}

/// Why it is not in sync.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Unrest {
    /// There is something to do for it.
    Waits,
    /// It differs and stays so: changes go one way only.
    Kept,
}
