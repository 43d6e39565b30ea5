//! Which revs of a drive a connection made itself: they are not told to it again.
//!
//! Registered by the writer before the commit is visible to anybody, and taken back there when it
//! fails, since the next commit gets the same revs. A rev is *unanswered* until the device has been
//! sent the reply that tells it; a page that reaches over such a rev has to wait, or the device
//! would be told that it knows all up to there and does not.

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

use tokio::sync::Notify;

use crate::model::Rev;

/// Ranges remembered at most; when there are more, the device is told some of its own changes,
/// which costs it a look.
const RANGES_MAX: usize = 4096;

/// A run of revs that one commit made, and whether it was answered.
#[derive(Debug, Clone, Copy)]
struct Range {
    last: Rev,
    answered: bool,
}

/// The own revs of one connection in one subscribed drive.
#[derive(Debug, Default)]
pub struct OwnRevs {
    /// By the first rev of the range.
    ranges: Mutex<BTreeMap<Rev, Range>>,
    changed: Notify,
    /// The turn of the subscription, when it took over ([`crate::server::hub::Hub::take_over`]).
    pub turn: Option<u64>,
}

impl OwnRevs {
    /// Returns those of a subscription that begins.
    pub fn new(turn: Option<u64>) -> Self {
        Self { turn, ..Self::default() }
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<Rev, Range>> {
        self.ranges.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Registers the revs after `before` up to `last`, not answered yet.
    pub fn add(&self, before: Rev, last: Rev) {
        let mut ranges = self.lock();
        let range = Range { last, answered: false };
        ranges.insert(before.next(), range);
        if ranges.len() > RANGES_MAX
            && let Some(oldest) =
                ranges.iter().find(|(_, range)| range.answered).map(|(first, _)| *first)
        {
            ranges.remove(&oldest);
        }
    }

    /// Takes a registration back: the commit failed.
    pub fn remove(&self, before: Rev) {
        self.lock().remove(&before.next());
        self.changed.notify_waiters();
    }

    /// Notes that the reply with these revs is on its way.
    pub fn answered(&self, before: Rev) {
        if let Some(range) = self.lock().get_mut(&before.next()) {
            range.answered = true;
        }
        self.changed.notify_waiters();
    }

    /// Returns whether this connection made this rev.
    pub fn contains(&self, rev: Rev) -> bool {
        let ranges = self.lock();
        let before = ranges.range(..=rev).next_back();
        before.is_some_and(|(_, range)| rev <= range.last)
    }

    /// Waits until every own rev up to this one was answered.
    pub async fn all_answered(&self, upto: Rev) {
        loop {
            let changed = self.changed.notified();
            tokio::pin!(changed);
            changed.as_mut().enable();
            let waits = self.lock().range(..=upto).any(|(_, range)| !range.answered);
            if !waits {
                return;
            }
            changed.await;
        }
    }

    /// Forgets what lies at or before a rev.
    pub fn forget(&self, upto: Rev) {
        self.lock().retain(|_, range| range.last > upto);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn own_revs_are_known_awaited_and_forgotten() {
        let own = OwnRevs::default();
        own.add(Rev(2), Rev(5));
        own.add(Rev(9), Rev(10));
        let known: Vec<u64> = (0..12).filter(|rev| own.contains(Rev(*rev))).collect();
        assert_eq!(known, [3, 4, 5, 10]);
        own.all_answered(Rev(2)).await;
        let wait = own.all_answered(Rev(3));
        tokio::pin!(wait);
        assert!(futures_poll(wait.as_mut()).await.is_none(), "not answered");
        own.answered(Rev(2));
        wait.await;
        own.remove(Rev(9));
        own.all_answered(Rev(99)).await;
        assert!(!own.contains(Rev(10)));
        own.forget(Rev(5));
        assert!(!own.contains(Rev(5)));
    }

    async fn futures_poll<F: Future + Unpin>(future: F) -> Option<F::Output> {
        tokio::select! {
            biased;
            output = future => Some(output),
            () = std::future::ready(()) => None,
        }
    }
}
