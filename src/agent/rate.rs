//! Bounds on transfers: a token bucket that may go into debt, so that one batch of any size passes
//! and the next one waits for it. A limit can change while somebody waits.

use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// Nobody waits longer than this without looking at the limit again.
const NAP_MAX: Duration = Duration::from_millis(250);

/// What a bucket holds at most: the bytes of this time.
const BURST: Duration = Duration::from_millis(500);

/// A bound on bytes per second that many tasks share.
#[derive(Debug)]
pub struct Rate {
    bucket: Mutex<Bucket>,
}

#[derive(Debug)]
struct Bucket {
    /// Bytes per second; 0 for no limit.
    bytes_per_s: u64,
    /// Bytes that may pass at once; negative while an earlier batch is paid for.
    tokens: f64,
    filled_at: Instant,
}

impl Bucket {
    fn fill(&mut self, now: Instant) {
        #[expect(clippy::cast_precision_loss, reason = "a rate needs no 53 bits")]
        let per_s = self.bytes_per_s as f64;
        let passed = now.saturating_duration_since(self.filled_at);
        self.tokens = (self.tokens + passed.as_secs_f64() * per_s).min(per_s * BURST.as_secs_f64());
        self.filled_at = now;
    }
}

impl Rate {
    /// Returns a bound of so many KiB per second; 0 for none.
    #[must_use]
    pub fn new(kib_per_s: u32) -> Self {
        Self {
            bucket: Mutex::new(Bucket {
                bytes_per_s: u64::from(kib_per_s) * 1024,
                tokens: 0.0,
                filled_at: Instant::now(),
            }),
        }
    }

    /// Changes the bound; who waits is not kept by the old one.
    pub fn set(&self, kib_per_s: u32) {
        let mut bucket = self.bucket.lock().unwrap_or_else(PoisonError::into_inner);
        let bytes_per_s = u64::from(kib_per_s) * 1024;
        if bucket.bytes_per_s != bytes_per_s {
            bucket.bytes_per_s = bytes_per_s;
            bucket.tokens = 0.0;
            bucket.filled_at = Instant::now();
        }
    }

    /// Waits until so many bytes may pass.
    pub async fn pass(&self, bytes: u64) {
        while let Some(nap) = self.try_pass(bytes, Instant::now()) {
            tokio::time::sleep(nap).await;
        }
    }

    /// Lets the bytes pass, or returns how long to wait before asking again.
    fn try_pass(&self, bytes: u64, now: Instant) -> Option<Duration> {
        let mut bucket = self.bucket.lock().unwrap_or_else(PoisonError::into_inner);
        if bucket.bytes_per_s == 0 {
            return None;
        }
        bucket.fill(now);
        #[expect(clippy::cast_precision_loss, reason = "a rate needs no 53 bits")]
        let (bytes, per_s) = (bytes as f64, bucket.bytes_per_s as f64);
        if bucket.tokens >= 0.0 {
            bucket.tokens -= bytes;
            return None;
        }
        let debt = Duration::from_secs_f64((-bucket.tokens / per_s).min(60.0));
        Some(debt.clamp(Duration::from_millis(1), NAP_MAX))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn over_time_no_more_passes_than_the_limit_and_a_lifted_limit_holds_nobody() {
        let rate = Rate::new(100);
        let mut now = Instant::now();
        let (start, mut passed) = (now, 0);
        while now < start + Duration::from_secs(20) {
            match rate.try_pass(64 * 1024, now) {
                None => passed += 64,
                Some(nap) => now += nap,
            }
        }
        assert!((1900..=2200).contains(&passed), "{passed} KiB in 20 s at 100 KiB/s");
        assert!(rate.try_pass(1 << 30, now).is_some());
        rate.set(0);
        assert_eq!(rate.try_pass(1 << 30, now), None);
    }
}
