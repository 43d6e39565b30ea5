//! The gate against mass deletions (a device whose disk went wrong must not empty the drive).
//!
//! A device announces with each commit how many deletions it has pending in all, so an act that is
//! a mass deletion as a whole is held from its first deletion. Of a device that does not announce,
//! or announces too little, what passes within a window is counted, and what is past the limits is
//! held.
//!
//! Pure: the state of one device in one drive goes in, with the time and the drive's size, and the
//! verdict comes out. Whoever stores the manifest stores [`Gate`] beside it, in the same
//! transaction as the deletions it counts.

use std::time::Duration;

/// From how many deletions on a person is asked.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct GateLimits {
    /// The span in which deletions of one device count as one act.
    pub window: Duration,
    /// An act of at most this many deletions is never held; 0 turns the gate off.
    pub count_min: u64,
    /// An act that deletes at most this share of the drive's live nodes is never held, 0 to 1.
    pub share: f64,
}

impl Default for GateLimits {
    /// The reason for these numbers is in `config/server.toml`.
    fn default() -> Self {
        Self { window: Duration::from_secs(600), count_min: 500, share: 0.25 }
    }
}

/// What a person decides about a mass deletion.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Decision {
    /// It passes when the device asks again.
    Approve,
    /// It never passes: the device is to put the files back.
    Reject,
}

/// What is known of the deletions of one device in one drive.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Gate {
    /// When the window began, in milliseconds of the server's clock.
    pub window_start_ms: i64,
    /// How many deletions passed in it.
    pub passed: u64,
    /// How many live nodes the drive had when it began.
    pub live_at_start: u64,
    /// Since when deletions are held.
    pub held_since_ms: Option<i64>,
    /// How many deletions the device has pending by its last word, less those that passed since.
    /// Kept over commits only while something is held, or approved: that many are.
    pub announced: Option<u64>,
    /// Since when what is held is rejected: nothing passes until nothing is pending any more.
    pub rejected_ms: Option<i64>,
    /// Until when an approval lets everything pass.
    pub approved_until_ms: Option<i64>,
}

impl Gate {
    /// An approval that is not made use of ends after this long.
    const APPROVAL_MS: i64 = 7 * 24 * 3600 * 1000;

    /// More deletions than any drive has nodes; a larger announcement counts as this one.
    const ANNOUNCED_MAX: u64 = 1 << 40;

    /// Begins a commit: takes in how many deletions the device has pending, those of the commit
    /// included but not those of earlier ones; nothing when it does not say.
    ///
    /// A commit that says so `alone`, without a change, was sent when no deletion was on its way: the
    /// number is that of all there are. With none, whatever was held, rejected or approved is over.
    /// Any other may have been sent before the device knew that earlier ones were refused, and so say
    /// too little.
    pub fn announce(&mut self, pending: Option<u64>, alone: bool) {
        if pending == Some(0) && alone {
            self.held_since_ms = None;
            self.rejected_ms = None;
            self.approved_until_ms = None;
        }
        let pending = pending.map(|count| count.min(Self::ANNOUNCED_MAX));
        if self.approved_until_ms.is_some() && self.announced.is_some() && pending > self.announced
        {
            // More than what a person has approved is another act.
            self.approved_until_ms = None;
        }
        self.announced = match self.held_since_ms {
            Some(_) if !alone => pending.max(self.announced),
            Some(_) => pending.or(self.announced),
            None => pending,
        };
    }

    /// Ends a commit: returns what is to be stored.
    #[must_use]
    pub const fn at_rest(mut self) -> Self {
        if self.held_since_ms.is_none() && self.approved_until_ms.is_none() {
            self.announced = None;
        }
        self
    }

    /// Returns whether one more deletion passes, and counts it.
    ///
    /// What is held stays held until a person decides, or until the device wants none of it any
    /// more: if it passed when the window is over, a broken device would only have to be patient.
    pub fn admit(&mut self, now_ms: i64, live: u64, limits: &GateLimits) -> bool {
        if self.rejected_ms.is_some() {
            return false;
        }
        if limits.count_min == 0 {
            return true;
        }
        let window_ms = i64::try_from(limits.window.as_millis()).unwrap_or(i64::MAX);
        if let Some(until) = self.approved_until_ms {
            if now_ms <= until {
                // From now on the approval lasts as long as the act it was given for goes on.
                self.approved_until_ms = Some(now_ms.saturating_add(window_ms));
                self.count_down();
                if self.announced == Some(0) {
                    self.approved_until_ms = None;
                }
                return true;
            }
            self.approved_until_ms = None;
        }
        if self.held_since_ms.is_some() {
            return false;
        }
        // A clock that was set back begins a new window rather than an endless one.
        let age_ms = now_ms.saturating_sub(self.window_start_ms);
        if self.live_at_start == 0 || !(0..=window_ms).contains(&age_ms) {
            self.window_start_ms = now_ms;
            self.passed = 0;
            self.live_at_start = live;
        }
        let act = self.passed.saturating_add(self.announced.unwrap_or(0).max(1));
        #[expect(
            clippy::cast_precision_loss,
            reason = "counts far below 2^52, and a share is not exact anyway"
        )]
        let over_share = act as f64 > limits.share * self.live_at_start as f64;
        if act > limits.count_min && over_share {
            self.held_since_ms = Some(now_ms);
            return false;
        }
        self.passed += 1;
        self.count_down();
        true
    }

    /// Returns whether so many deletions pass that a person asks for as one act, apart from what the
    /// device has pending; counts them when they do. They are never held: who asks is there to be
    /// asked, and is told no. An approval of what the device has pending is not for them.
    pub fn admit_at_once(
        &mut self,
        now_ms: i64,
        live: u64,
        limits: &GateLimits,
        count: u64,
    ) -> bool {
        let mut gate = Self { announced: Some(count), approved_until_ms: None, ..*self };
        let passes = (0..count).all(|done| gate.admit(now_ms, live.saturating_sub(done), limits));
        if passes {
            let Self { announced, approved_until_ms, .. } = *self;
            *self = Self { announced, approved_until_ms, ..gate };
        }
        passes
    }

    fn count_down(&mut self) {
        self.announced = self.announced.map(|count| count.saturating_sub(1));
    }

    /// Takes a person's decision in.
    pub const fn decide(&mut self, decision: Decision, now_ms: i64) {
        match decision {
            Decision::Approve => {
                *self = Self {
                    window_start_ms: 0,
                    passed: 0,
                    live_at_start: 0,
                    held_since_ms: None,
                    announced: self.announced,
                    rejected_ms: None,
                    approved_until_ms: Some(now_ms.saturating_add(Self::APPROVAL_MS)),
                };
            }
            Decision::Reject => self.rejected_ms = Some(now_ms),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMITS: GateLimits =
        GateLimits { window: Duration::from_secs(600), count_min: 10, share: 0.5 };

    /// Deletes one after the other until one is held, without announcing; returns how many passed.
    fn delete(gate: &mut Gate, now_ms: i64, live: u64, wanted: u64) -> u64 {
        gate.announce(None, false);
        (0..wanted).take_while(|done| gate.admit(now_ms, live - done, &LIMITS)).count() as u64
    }

    /// Announces `pending` deletions and asks for the first `wanted` of them in one commit.
    fn announce(gate: &mut Gate, now_ms: i64, live: u64, pending: u64, wanted: u64) -> u64 {
        gate.announce(Some(pending), wanted == 0);
        let passed = (0..wanted).filter(|done| gate.admit(now_ms, live - done, &LIMITS)).count();
        *gate = gate.at_rest();
        passed as u64
    }

    #[test]
    fn both_the_count_and_the_share_must_be_passed() {
        assert_eq!(delete(&mut Gate::default(), 0, 12, 12), 10, "count rules");
        assert_eq!(delete(&mut Gate::default(), 0, 100, 100), 50, "share rules");
        assert_eq!(delete(&mut Gate::default(), 0, 9, 9), 9, "a small drive");
        for (live, largest) in [(12, 10), (100, 50), (9, 9)] {
            let mut gate = Gate::default();
            assert_eq!(announce(&mut gate, 0, live, largest, largest), largest, "of {live}");
            assert_eq!(gate.held_since_ms, None);
        }
    }

    #[test]
    fn an_announced_mass_deletion_is_held_from_its_first_deletion() {
        let mut gate = Gate::default();
        assert_eq!(announce(&mut gate, 0, 100, 51, 4), 0);
        assert_eq!((gate.held_since_ms, gate.announced), (Some(0), Some(51)));
        // Over several commits the sum stays what it was: 51 in all, or 50.
        let mut gate = Gate::default();
        assert_eq!(announce(&mut gate, 0, 100, 50, 20), 20);
        assert_eq!(announce(&mut gate, 1, 80, 30, 20), 20);
        assert_eq!(announce(&mut gate, 2, 60, 10, 10), 10);
        assert_eq!(gate.announced, None, "nothing is kept when nothing is held");
        assert_eq!(announce(&mut gate, 3, 50, 1, 1), 0, "what passed before counts too");
    }

    #[test]
    fn who_announces_too_little_is_stopped_by_counting() {
        let mut gate = Gate::default();
        let passed = (0..100).filter(|n| announce(&mut gate, 0, 100 - n, 1, 1) == 1).count();
        assert_eq!(passed, 50);
        let mut gate = Gate::default();
        assert_eq!(announce(&mut gate, 0, 100, 1, 100), 50);
        assert_eq!(announce(&mut gate, 0, 100, u64::MAX, 1), 0);
    }

    #[test]
    fn what_is_held_stays_held_until_it_is_approved() {
        let mut gate = Gate::default();
        assert_eq!(delete(&mut gate, 0, 100, 100), 50);
        assert_eq!(delete(&mut gate, 86_400_000, 50, 1), 0, "a day later");
        assert_eq!(announce(&mut gate, 86_400_000, 50, 1, 1), 0, "most of it put back");
        gate.decide(Decision::Approve, 86_400_001);
        assert_eq!(delete(&mut gate, 86_400_002, 50, 50), 50);
        assert_eq!(delete(&mut gate, 90_000_000, 100, 100), 50, "a new act");
    }

    #[test]
    fn an_approval_is_for_one_act() {
        let mut gate = Gate::default();
        assert_eq!(announce(&mut gate, 0, 100, 80, 40), 0);
        gate.decide(Decision::Approve, 1);
        assert_eq!(announce(&mut gate, 2, 100, 80, 40), 40);
        assert_eq!(announce(&mut gate, 3, 60, 40, 40), 40);
        assert_eq!(gate.approved_until_ms, None);
        assert_eq!(announce(&mut gate, 4, 20, 20, 20), 0, "the next one is asked about again");
        // One that was approved and came to nothing lets nothing larger pass.
        let mut gate = Gate::default();
        assert_eq!(announce(&mut gate, 0, 2000, 1200, 40), 0);
        gate.decide(Decision::Approve, 1);
        assert_eq!(announce(&mut gate, 2, 2000, 1201, 40), 0);
        assert_eq!((gate.approved_until_ms, gate.held_since_ms), (None, Some(2)));
    }

    #[test]
    fn what_is_rejected_never_passes_and_ends_when_nothing_is_pending() {
        let mut gate = Gate::default();
        assert_eq!(announce(&mut gate, 0, 100, 80, 40), 0);
        gate.decide(Decision::Reject, 1);
        assert_eq!(announce(&mut gate, 1_000_000_000, 100, 3, 3), 0);
        assert_eq!(announce(&mut gate, 1_000_000_001, 100, 0, 0), 0);
        assert_eq!((gate.held_since_ms, gate.rejected_ms), (None, None));
        assert_eq!(announce(&mut gate, 1_000_000_002, 100, 3, 3), 3);
    }

    #[test]
    fn putting_everything_back_ends_what_is_held() {
        let mut gate = Gate::default();
        assert_eq!(announce(&mut gate, 0, 100, 80, 40), 0);
        let held = gate;
        for (pending, alone) in [(None, true), (None, false), (Some(79), false), (Some(0), false)] {
            gate.announce(pending, alone);
            assert_eq!(gate, held, "{pending:?} beside changes may be too little");
        }
        gate.announce(Some(79), true);
        assert_eq!(gate.announced, Some(79));
        gate.announce(Some(0), true);
        assert_eq!(gate.at_rest().held_since_ms, None);
    }

    #[test]
    fn what_is_asked_for_at_once_passes_or_not_as_a_whole_and_holds_nothing() {
        let mut gate = Gate::default();
        assert!(!gate.admit_at_once(0, 100, &LIMITS, 51));
        assert_eq!(gate, Gate::default());
        assert!(gate.admit_at_once(0, 100, &LIMITS, 30));
        assert!(!gate.admit_at_once(1, 70, &LIMITS, 21), "what passed before counts");
        assert_eq!(announce(&mut gate, 2, 70, 21, 1), 0, "for the device as well");
        assert!(!gate.admit_at_once(3, 70, &LIMITS, 1), "something is held");
        gate.decide(Decision::Approve, 4);
        let approved = gate;
        assert!(!gate.admit_at_once(5, 70, &LIMITS, 40), "the approval is not for this");
        assert_eq!(gate, approved);
    }

    #[test]
    fn slow_deletions_pass_and_a_zero_turns_the_gate_off() {
        let mut gate = Gate::default();
        for hour in 0..50 {
            assert_eq!(announce(&mut gate, hour * 3_600_000, 100, 1, 1), 1, "hour {hour}");
        }
        let off = GateLimits { count_min: 0, ..LIMITS };
        let mut gate = Gate::default();
        gate.announce(Some(1000), false);
        assert!((0..1000).all(|_| gate.admit(0, 1, &off)));
    }
}
