//! The gate against mass deletions (a device whose disk went wrong must not empty the drive).
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
    /// Fewer deletions than this are never held; 0 turns the gate off.
    pub count_min: u64,
    /// The share of the drive's live nodes that one act may delete, 0 to 1.
    pub share: f64,
}

impl Default for GateLimits {
    fn default() -> Self {
        Self { window: Duration::from_secs(600), count_min: 1000, share: 0.5 }
    }
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
    /// Until when an approval lets everything pass.
    pub approved_until_ms: Option<i64>,
}

impl Gate {
    /// An approval that is not made use of ends after this long.
    const APPROVAL_MS: i64 = 7 * 24 * 3600 * 1000;

    /// Returns whether one more deletion passes, and counts it.
    ///
    /// What is held stays held until a person approves it: if it passed when the window is over, a
    /// broken device would only have to be patient.
    pub fn admit(&mut self, now_ms: i64, live: u64, limits: &GateLimits) -> bool {
        if limits.count_min == 0 {
            return true;
        }
        let window_ms = i64::try_from(limits.window.as_millis()).unwrap_or(i64::MAX);
        if let Some(until) = self.approved_until_ms {
            if now_ms <= until {
                // From now on the approval lasts as long as the act it was given for goes on.
                self.approved_until_ms = Some(now_ms.saturating_add(window_ms));
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
        #[expect(
            clippy::cast_precision_loss,
            reason = "counts far below 2^52, and a share is not exact anyway"
        )]
        let over_share = self.passed as f64 >= limits.share * self.live_at_start as f64;
        if self.passed >= limits.count_min && over_share {
            self.held_since_ms = Some(now_ms);
            return false;
        }
        self.passed += 1;
        true
    }

    /// Lets what is held pass when it is asked for again.
    pub const fn approve(&mut self, now_ms: i64) {
        *self = Self {
            window_start_ms: 0,
            passed: 0,
            live_at_start: 0,
            held_since_ms: None,
            approved_until_ms: Some(now_ms.saturating_add(Self::APPROVAL_MS)),
        };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMITS: GateLimits =
        GateLimits { window: Duration::from_secs(600), count_min: 10, share: 0.5 };

    /// Deletes one after the other until one is held; returns how many passed.
    fn delete(gate: &mut Gate, now_ms: i64, live: u64, wanted: u64) -> u64 {
        (0..wanted).take_while(|done| gate.admit(now_ms, live - done, &LIMITS)).count() as u64
    }

    #[test]
    fn both_the_count_and_the_share_must_be_passed() {
        assert_eq!(delete(&mut Gate::default(), 0, 12, 12), 10, "count rules");
        assert_eq!(delete(&mut Gate::default(), 0, 100, 100), 50, "share rules");
        assert_eq!(delete(&mut Gate::default(), 0, 9, 9), 9, "a small drive");
    }

    #[test]
    fn what_is_held_stays_held_until_it_is_approved() {
        let mut gate = Gate::default();
        assert_eq!(delete(&mut gate, 0, 100, 100), 50);
        assert_eq!(delete(&mut gate, 86_400_000, 50, 1), 0, "a day later");
        gate.approve(86_400_001);
        assert_eq!(delete(&mut gate, 86_400_002, 50, 50), 50);
        assert_eq!(delete(&mut gate, 90_000_000, 100, 100), 50, "a new act");
    }

    #[test]
    fn slow_deletions_pass_and_a_zero_turns_the_gate_off() {
        let mut gate = Gate::default();
        for hour in 0..50 {
            assert!(gate.admit(hour * 3_600_000, 100, &LIMITS), "hour {hour}");
        }
        let off = GateLimits { count_min: 0, ..LIMITS };
        let mut gate = Gate::default();
        assert!((0..1000).all(|_| gate.admit(0, 1, &off)));
    }
}
