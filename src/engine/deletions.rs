//! Deletions on their way to the server: told as one act, held as one act.
//!
//! The server holds a mass deletion until a person decides, and it can do so from the first deletion
//! only if it hears how many there will be. So a larger number of deletions waits until no more are
//! being found, and each commit announces how many are pending ([`Engine::deletions_pending`]).
//!
//! What is held is one thing for the whole folder, not a problem of each node: nothing of it is
//! asked again before the server's word changes. Once it is rejected, the merge base of each node is
//! dropped, so that the server's side is written here again.

use super::seam::{Action, Word};
use super::trees::Trees;
use super::{Batch, COMMITS_MAX, Engine};
use crate::model::ChangeOp;

/// The longest that a few deletions wait for others that are being found, in milliseconds.
const WAIT_MAX_MS: u64 = 1_000;

/// The longest that so many or more wait. Not for ever: an application may make and delete files
/// all the time.
const ACT_MIN: u64 = 64;
const ACT_WAIT_MAX_MS: u64 = 30_000;

/// How long to wait before asking again a server that refused and does not tell of its own accord
/// when that changes; doubled each time up to the second one.
const ASK_AGAIN_MIN_MS: u64 = 2_000;
const ASK_AGAIN_MAX_MS: u64 = 60_000;

/// While something is held, the server is told of another number at most this often, in
/// milliseconds.
const ANNOUNCE_MS: u64 = 1_000;

/// What becomes of a deletion.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Course {
    /// The server is told.
    Tell,
    /// Nothing now; it is planned again when that changes.
    PutOff,
    /// It was rejected: the node is written here again.
    TakeBack,
}

/// How deletions stand.
#[derive(Debug, Default)]
pub(super) struct Deletions {
    word: Word,
    /// Since when deletions are refused while the server has not said why; it does so in a moment, and
    /// until then it is not certain what they wait for.
    refused_at_ms: Option<u64>,
    /// When to ask again; none when the server will tell.
    ask_again_ms: Option<u64>,
    refusals: u32,
    /// Whether a node's deletion was put off and has to be planned again.
    put_off: bool,
    /// Since when deletions wait for others.
    growing_since_ms: Option<u64>,
    /// Whether the server was told, since this connection began, that nothing is pending, or of a deletion: an
    /// approval of what is not wanted any more must not be there for something else.
    is_begun: bool,
    /// What the server was last told, and when it may be told something else.
    announced: Option<u64>,
    announce_at_ms: u64,
}

impl<T: Trees> Engine<T> {
    /// Returns how many deletions are pending with a commit and after it: what its announcement
    /// says. Those of earlier commits that are not answered yet do not count: the server decides on
    /// them before it hears this.
    pub fn deletions_pending(&self, batch: u64) -> u64 {
        let earlier = self.batches.iter().filter(|(number, _)| **number < batch);
        let sent: u64 = earlier.map(|(_, batch)| batch.deletions).sum();
        self.trees.totals().deletions.saturating_sub(sent)
    }

    /// Returns whether deletions wait for a person's decision.
    pub fn are_deletions_held(&self) -> bool {
        let refused_at_ms = self.deletions.refused_at_ms;
        self.link.online
            && self.deletions.word == Word::Held
            && refused_at_ms.is_none_or(|at_ms| self.now.ms >= at_ms + ANNOUNCE_MS)
            && self.trees.totals().deletions > 0
    }

    /// The connection is another one: what was said on the last one does not count.
    pub(super) fn forget_word(&mut self) {
        self.deletions = Deletions::default();
    }

    /// The server tells how this device's deletions stand.
    pub(super) fn heard_word(&mut self, word: Word) {
        let before = std::mem::replace(&mut self.deletions.word, word);
        self.deletions.ask_again_ms = None;
        self.deletions.refused_at_ms = None;
        self.deletions.refusals = 0;
        if word != before {
            self.deletions.announced = None;
            self.deletions.put_off = false;
            self.agenda.sweep();
        }
    }

    /// The server refused a deletion until a person has decided.
    pub(super) fn deletion_refused(&mut self) {
        let now_ms = self.now.ms;
        let deletions = &mut self.deletions;
        if deletions.word == Word::Open {
            deletions.word = Word::Held;
            deletions.refused_at_ms = Some(now_ms);
            // What the refused commit announced.
            deletions.announced = None;
            deletions.announce_at_ms = now_ms + ANNOUNCE_MS;
            let wait = ASK_AGAIN_MIN_MS << deletions.refusals.min(5);
            deletions.ask_again_ms = Some(now_ms + wait.min(ASK_AGAIN_MAX_MS));
            deletions.refusals += 1;
        }
    }

    /// Returns what is to be done with a deletion that was found here.
    pub(super) fn deletion_course(&mut self) -> Course {
        let word = self.deletions.word;
        if word == Word::Rejected {
            return Course::TakeBack;
        }
        if word == Word::Open && !self.is_act_growing() {
            self.deletions.is_begun = true;
            return Course::Tell;
        }
        self.deletions.put_off = true;
        Course::PutOff
    }

    /// Returns whether the deletions pending may be the beginning of a larger act.
    fn is_act_growing(&mut self) -> bool {
        if !self.looks.may_find_deletions() {
            self.deletions.growing_since_ms = None;
            return false;
        }
        let now_ms = self.now.ms;
        let since_ms = *self.deletions.growing_since_ms.get_or_insert(now_ms);
        now_ms < since_ms + self.wait_max_ms()
    }

    fn wait_max_ms(&self) -> u64 {
        if self.trees.totals().deletions < ACT_MIN { WAIT_MAX_MS } else { ACT_WAIT_MAX_MS }
    }

    /// Goes on with deletions that were put off, and announces what has become of held ones.
    pub(super) fn advance_deletions(&mut self, actions: &mut Vec<Action>) -> Result<(), T::Error> {
        if !self.link.online || self.link.paused {
            return Ok(());
        }
        let now_ms = self.now.ms;
        if self.deletions.ask_again_ms.is_some_and(|at_ms| at_ms <= now_ms) {
            self.deletions.ask_again_ms = None;
            self.deletions.word = Word::Open;
        }
        if self.deletions.word == Word::Open {
            if !self.deletions.is_begun && self.may_tell_of_none() {
                return self.tell_how_many(0, actions);
            }
            if self.deletions.put_off && !self.is_act_growing() {
                self.deletions.put_off = false;
                self.agenda.sweep();
            }
            return Ok(());
        }
        if self.announce_due_ms().is_none_or(|due_ms| due_ms > now_ms) {
            return Ok(());
        }
        let pending = self.trees.totals().deletions;
        if pending == 0 && self.deletions.word == Word::Rejected {
            // A crash must not bring back, as a smaller act that may pass, what was rejected.
            self.trees.checkpoint()?;
        }
        self.tell_how_many(pending, actions)?;
        if pending == 0 {
            // The server hears that nothing is pending before it hears of any later deletion.
            self.deletions.word = Word::Open;
            self.deletions.ask_again_ms = None;
        }
        Ok(())
    }

    /// Tells the server, without a change, how many deletions are pending.
    fn tell_how_many(&mut self, pending: u64, actions: &mut Vec<Action>) -> Result<(), T::Error> {
        // What is gathered goes first: commits are heard in the order of their numbers.
        self.flush(actions)?;
        let batch = self.next_batch;
        self.next_batch += 1;
        self.batches.insert(batch, Batch::default());
        actions.push(Action::Commit { batch, changes: Vec::new() });
        self.deletions.is_begun = true;
        self.deletions.announced = Some(pending);
        self.deletions.announce_at_ms = self.now.ms + ANNOUNCE_MS;
        Ok(())
    }

    /// Returns whether the server can be told that nothing is pending: it is known what is on disk, and no
    /// deletion is on its way.
    fn may_tell_of_none(&self) -> bool {
        self.trees.totals().deletions == 0
            && self.trees.meta().consistent
            && self.looks.is_known
            && self.looks.is_idle()
            && self.batches.len() + usize::from(!self.outbox.is_empty()) < COMMITS_MAX
            && !self.is_deletion_under_way()
    }

    fn is_deletion_under_way(&self) -> bool {
        self.batches.values().any(|batch| batch.deletions > 0)
            || self.outbox.iter().any(|outgoing| outgoing.change.op == ChangeOp::Delete)
    }

    /// Returns when the server is to be told, without a change, how many deletions are pending now
    /// that some are held or rejected; none while there is nothing new to tell, or it is not certain.
    fn announce_due_ms(&self) -> Option<u64> {
        let pending = self.trees.totals().deletions;
        let has_room = self.batches.len() + usize::from(!self.outbox.is_empty()) < COMMITS_MAX;
        // The number is taken for all there are.
        if self.deletions.announced == Some(pending) || !has_room || self.is_deletion_under_way() {
            return None;
        }
        if pending > 0 {
            return Some(self.deletions.announce_at_ms);
        }
        // That it is over is said when it is known what is on disk: after a start, what was deleted may
        // not have been found yet.
        (self.looks.rescans_done > 0 && self.looks.is_idle()).then_some(self.now.ms)
    }

    /// Returns when [`Engine::advance_deletions`] has something to do.
    pub(super) fn deletions_due_ms(&self) -> Option<u64> {
        if !self.link.online || self.link.paused {
            return None;
        }
        let deletions = &self.deletions;
        if deletions.word != Word::Open {
            return self.announce_due_ms().into_iter().chain(deletions.ask_again_ms).min();
        }
        let growing = self.looks.may_find_deletions();
        let until = deletions.growing_since_ms.filter(|_| growing);
        if !deletions.is_begun && self.may_tell_of_none() {
            return Some(self.now.ms);
        }
        deletions
            .put_off
            .then(|| until.map_or(self.now.ms, |since_ms| since_ms + self.wait_max_ms()))
    }
}
