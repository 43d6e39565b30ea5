//! Larger files whose fetch broke off: what had arrived is kept in staging, so that a connection
//! that breaks every few minutes delays a large file and does not keep it away for ever.
//!
//! Only for as long as the folder is open: what is in staging when an agent starts is removed.

use std::collections::VecDeque;
use std::sync::{Mutex, PoisonError};

use crate::agent::disk::StagedFile;
use crate::model::{Content, NodeId};

/// As many as are fetched at once.
const PARTIALS_MAX: usize = 4;

/// Files that are there in part, the oldest first.
#[derive(Debug, Default)]
pub(in crate::agent) struct Partials(Mutex<VecDeque<Partial>>);

#[derive(Debug)]
struct Partial {
    node: NodeId,
    content: Content,
    /// Whether its list is so long that memory holds only one such.
    is_long: bool,
    staged: StagedFile,
}

impl Partials {
    /// Keeps what has arrived of a node's content.
    pub(super) fn put(&self, node: NodeId, content: Content, is_long: bool, staged: StagedFile) {
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        all.retain(|partial| partial.node != node && !(is_long && partial.is_long));
        if all.len() == PARTIALS_MAX {
            all.pop_front();
        }
        all.push_back(Partial { node, content, is_long, staged });
    }

    /// Takes what there is of a node's content. What there is of another content of it is of no use
    /// any more.
    pub(super) fn take(&self, node: NodeId, content: &Content) -> Option<StagedFile> {
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let found = all.iter().position(|partial| partial.node == node)?;
        let partial = all.remove(found)?;
        (partial.content == *content).then_some(partial.staged)
    }

    /// Drops all: nothing is to be fetched any more.
    pub(super) fn clear(&self) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clear();
    }
}
