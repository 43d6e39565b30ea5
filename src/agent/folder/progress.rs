//! How far the transfers of larger contents are, so that what is pending shrinks while one travels.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

use crate::model::NodeId;

/// The most nodes kept track of: more than can be under way, with those that wait for their commit.
const NODES_MAX: usize = 1024;

/// The bytes that are over already of nodes that are still pending, in one direction.
#[derive(Debug, Default)]
pub(in crate::agent) struct Progress(Mutex<HashMap<NodeId, u64>>);

impl Progress {
    fn lock(&self) -> MutexGuard<'_, HashMap<NodeId, u64>> {
        // Nothing that holds it can panic.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A transfer begins, anew perhaps.
    pub(super) fn begin(&self, node: NodeId) {
        let mut nodes = self.lock();
        if nodes.len() < NODES_MAX || nodes.contains_key(&node) {
            nodes.insert(node, 0);
        }
    }

    /// This much more is over, or was there already.
    pub(super) fn add(&self, node: NodeId, len: u64) {
        if let Some(done) = self.lock().get_mut(&node) {
            *done = done.saturating_add(len);
        }
    }

    /// All of it is over: this many bytes.
    pub(super) fn finish(&self, node: NodeId, len: u64) {
        if let Some(done) = self.lock().get_mut(&node) {
            *done = len;
        }
    }

    /// It came to nothing.
    pub(super) fn forget(&self, node: NodeId) {
        self.lock().remove(&node);
    }

    /// Forgets the nodes that are not pending any more.
    pub(super) fn retain(&self, mut is_pending: impl FnMut(NodeId) -> bool) {
        self.lock().retain(|node, _| is_pending(*node));
    }

    /// Returns the nodes, and how many bytes of each are over.
    pub(super) fn list(&self) -> Vec<(NodeId, u64)> {
        self.lock().iter().map(|(node, done)| (*node, *done)).collect()
    }

    /// Returns how many bytes are over in all.
    pub(super) fn sum(&self) -> u64 {
        self.lock().values().fold(0, |sum, done| sum.saturating_add(*done))
    }
}
