//! Larger files whose fetch broke off: what had arrived is kept in staging, so that a connection
//! that breaks every few minutes delays a large file and does not keep it away for ever.
//!
//! So is what was fetched ahead of a commit, for a short time: nobody may ask for it.
//!
//! Only for as long as the folder is open: what is in staging when an agent starts is removed.

use std::collections::VecDeque;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use super::prefetch::QUIET_MAX;
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
    /// Until when to keep it although nothing is to be fetched.
    until: Option<Instant>,
    staged: StagedFile,
}

impl Partials {
    /// Keeps what has arrived of a node's content.
    pub(super) fn put(&self, node: NodeId, content: Content, is_long: bool, staged: StagedFile) {
        self.add(Partial { node, content, is_long, until: None, staged });
    }

    /// Keeps for a little what has arrived of a content that is not committed yet.
    pub(super) fn put_early(&self, node: NodeId, content: Content, staged: StagedFile) {
        let until = Some(Instant::now() + QUIET_MAX);
        self.add(Partial { node, content, is_long: false, until, staged });
    }

    fn add(&self, new: Partial) {
        let mut all = self.lock();
        all.retain(|old| old.node != new.node && !(new.is_long && old.is_long));
        if all.len() == PARTIALS_MAX {
            all.pop_front();
        }
        all.push_back(new);
    }

    fn lock(&self) -> MutexGuard<'_, VecDeque<Partial>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes what there is of a node's content. What there is of another content of it is of no use
    /// any more.
    pub(super) fn take(&self, node: NodeId, content: &Content) -> Option<StagedFile> {
        let mut all = self.lock();
        let found = all.iter().position(|partial| partial.node == node)?;
        let partial = all.remove(found)?;
        (partial.content == *content).then_some(partial.staged)
    }

    /// Drops what is of no use: what was fetched ahead and not asked for in time, and when nothing is
    /// to be fetched, all but what was fetched ahead.
    pub(super) fn clear(&self, nothing_to_fetch: bool) {
        let now = Instant::now();
        self.lock().retain(|partial| match partial.until {
            Some(until) => now < until,
            None => !nothing_to_fetch,
        });
    }
}
