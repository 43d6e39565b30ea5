//! How fast what is pending shrinks.

use std::collections::VecDeque;

/// What was done longer ago than this does not count, in milliseconds.
const WINDOW_MS: u64 = 10_000;

/// Steps closer together than this are one, in milliseconds: so there are few.
const STEP_MS: u64 = 200;

/// The pace of one direction. What is added to what is pending meanwhile does not count.
#[derive(Debug, Default)]
pub(super) struct Pace {
    left: Option<u64>,
    begun_ms: u64,
    /// When so many bytes were done.
    steps: VecDeque<(u64, u64)>,
}

impl Pace {
    /// Takes note that so many bytes are pending now.
    pub(super) fn note(&mut self, now_ms: u64, left: u64) {
        if left == 0 {
            *self = Self::default();
            return;
        }
        let Some(before) = self.left.replace(left) else {
            self.begun_ms = now_ms;
            return;
        };
        let done = before.saturating_sub(left);
        match self.steps.back_mut() {
            Some((at_ms, bytes)) if now_ms < *at_ms + STEP_MS => *bytes += done,
            _ if done > 0 => self.steps.push_back((now_ms, done)),
            _ => {}
        }
        while self.steps.front().is_some_and(|(at_ms, _)| at_ms + WINDOW_MS < now_ms) {
            self.steps.pop_front();
        }
    }

    /// Returns how many bytes are done per second.
    pub(super) fn per_s(&self, now_ms: u64) -> u64 {
        let done: u64 = self.steps.iter().map(|(_, bytes)| bytes).sum();
        let span_ms = now_ms.saturating_sub(self.begun_ms).clamp(1000, WINDOW_MS);
        done.saturating_mul(1000) / span_ms
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_pace_is_what_was_done_lately_whatever_was_added() {
        let mut pace = Pace::default();
        let mut left = 1_000_000;
        for ms in (0..20_000).step_by(100) {
            pace.note(ms, left);
            left -= 1000;
        }
        let is_right = |pace: &Pace| (9_500..=10_500).contains(&pace.per_s(20_000));
        assert!(is_right(&pace), "{}", pace.per_s(20_000));
        pace.note(20_000, left + 5_000_000);
        assert!(is_right(&pace), "{}", pace.per_s(20_000));
        // It stalls: after the window there is no pace.
        pace.note(40_000, left + 5_000_000);
        assert_eq!(pace.per_s(40_000), 0);
        pace.note(41_000, 0);
        pace.note(50_000, 700);
        assert_eq!(pace.per_s(50_100), 0);
    }
}
