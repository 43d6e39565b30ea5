//! The conflict copies that the server has: what is kept there already needs no other copy.
//!
//! A server that went back to an older backup meets the same newer version of a file on each of its
//! devices. The first one makes a conflict copy of it; the others find that copy by its name, its place and
//! its bytes, and make none. This is a help: of a copy that was not heard of in this life of the agent,
//! another one may be made.

use std::collections::{BTreeSet, HashMap};

use super::Engine;
use super::decide::Need;
use super::trees::{Local, Remote, Trees};
use crate::model::{Body, Node, NodeId, Place, original_of};

/// The most copies remembered; of more than this the ones heard of last are.
const COPIES_MAX: usize = 8 * 1024;
/// So many copies of one file are compared.
const COMPARED_MAX: usize = 64;

/// The copies heard of. What became of them since is asked of the trees.
#[derive(Debug, Default)]
pub(super) struct Copies {
    /// By the place of what they are copies of.
    of: HashMap<Place, BTreeSet<NodeId>>,
    count: usize,
}

/// Returns where that is of which a node is a conflict copy.
fn place_of_original(copy: &Place) -> Option<Place> {
    Some(Place { parent: copy.parent, name: original_of(&copy.name)? })
}

impl Copies {
    /// The journal tells of a node.
    pub(super) fn heard(&mut self, id: NodeId, node: &Node) {
        if !matches!(node.body, Body::File { .. }) {
            return;
        }
        let Some(original) = place_of_original(&node.place) else { return };
        if self.count >= COPIES_MAX {
            self.of.clear();
            self.count = 0;
        }
        if self.of.entry(original).or_default().insert(id) {
            self.count += 1;
        }
    }
}

impl<T: Trees> Engine<T> {
    /// Returns whether the server has these bytes as a conflict copy of what is at a place, and that copy
    /// is still to come here. One that is here does not count: a person may have put it in place of the
    /// original, and then it is not there any more.
    pub(super) fn is_kept_there(&self, original: &Place, bytes: &Body) -> Result<bool, T::Error> {
        let copies = self.copies.of.get(original).into_iter().flatten();
        for id in copies.take(COMPARED_MAX) {
            if self.flights.contains_key(id) || self.puttings.contains(*id) {
                continue;
            }
            let is_it = self.trees.look(*id, |entry| {
                let is_copy = entry.remote.as_ref().is_some_and(|Remote { node, .. }| {
                    node.body.same_bytes(bytes)
                        && place_of_original(&node.place).as_ref() == Some(original)
                });
                is_copy && self.decide(entry) == Need::PullCreate
            })?;
            if is_it {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// Returns what a node that is to come here is a conflict copy of, while that is to be replaced here and
    /// holds the same bytes, or it is not known what it holds: that gives way first, and needs no copy then.
    pub(super) fn original_to_replace(&self, copy: &Node) -> Result<Option<NodeId>, T::Error> {
        let Some(place) = place_of_original(&copy.place) else { return Ok(None) };
        for id in self.trees.local_at(place.parent, &place.name)? {
            if self.agenda.has_failed(id) {
                continue;
            }
            let comes_first = self.trees.look(id, |entry| match self.decide(entry) {
                Need::Hash => entry.synced.is_none() && entry.remote.is_some(),
                Need::PullBody { keep: true } => {
                    let here = entry.local.as_ref().and_then(Local::node);
                    here.is_some_and(|here| here.body.same_bytes(&copy.body))
                }
                _ => false,
            })?;
            if comes_first {
                return Ok(Some(id));
            }
        }
        Ok(None)
    }
}
