//! Slows down guessing: after some failures, each further one doubles the wait.
//!
//! Per address and per user name. Bounded: when it is full, the entry that failed longest ago goes.

use std::collections::HashMap;
use std::hash::Hash;
use std::net::{IpAddr, Ipv6Addr};
use std::time::{Duration, Instant};

/// Failures that cost nothing: a person mistypes.
const FREE: u32 = 5;

/// The longest wait, and after how long without a failure all is forgotten.
const WAIT_MAX: Duration = Duration::from_secs(15 * 60);

/// The most keys remembered.
const KEYS_MAX: usize = 10_000;

/// The failures of one kind of key.
#[derive(Debug)]
pub struct Throttle<K> {
    failures: HashMap<K, (u32, Instant)>,
}

impl<K> Default for Throttle<K> {
    fn default() -> Self {
        Self { failures: HashMap::new() }
    }
}

impl<K: Hash + Eq + Clone> Throttle<K> {
    /// Returns how long this key has to wait before its next try.
    pub fn wait(&self, key: &K, now: Instant) -> Option<Duration> {
        let (count, last) = self.failures.get(key)?;
        let wait = Self::wait_after(*count)?;
        (*last + wait).checked_duration_since(now).filter(|left| !left.is_zero())
    }

    fn wait_after(count: u32) -> Option<Duration> {
        let over = count.checked_sub(FREE)?;
        Some(Duration::from_secs(1 << over.min(10)).min(WAIT_MAX))
    }

    /// Counts a failure.
    pub fn failed(&mut self, key: &K, now: Instant) {
        if self.failures.len() >= KEYS_MAX && !self.failures.contains_key(key) {
            self.failures.retain(|_, (_, last)| now.duration_since(*last) < WAIT_MAX);
            if self.failures.len() >= KEYS_MAX
                && let Some(oldest) = self
                    .failures
                    .iter()
                    .min_by_key(|(_, (_, last))| *last)
                    .map(|(key, _)| key.clone())
            {
                self.failures.remove(&oldest);
            }
        }
        let (count, last) = self.failures.entry(key.clone()).or_insert((0, now));
        if now.duration_since(*last) >= WAIT_MAX {
            *count = 0;
        }
        *count = count.saturating_add(1);
        *last = now;
    }

    /// Forgets the failures of a key that has proved itself.
    pub fn succeeded(&mut self, key: &K) {
        self.failures.remove(key);
    }
}

/// Returns what counts as one address: for IPv6 the /64 that one customer has.
#[must_use]
pub fn address_key(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V6(v6) => {
            let [a, b, c, d, ..] = v6.segments();
            IpAddr::V6(Ipv6Addr::new(a, b, c, d, 0, 0, 0, 0))
        }
        v4 @ IpAddr::V4(_) => v4,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_wait_doubles_and_ends() {
        let mut throttle = Throttle::default();
        let start = Instant::now();
        for _ in 0..FREE - 1 {
            throttle.failed(&"a", start);
            assert_eq!(throttle.wait(&"a", start), None);
        }
        let mut seconds = Vec::new();
        for _ in 0..12 {
            throttle.failed(&"a", start);
            seconds.push(throttle.wait(&"a", start).unwrap().as_secs());
        }
        assert_eq!(seconds, [1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 900, 900]);
        assert_eq!(throttle.wait(&"b", start), None, "another key");
        assert_eq!(throttle.wait(&"a", start + WAIT_MAX), None, "it waited");
        throttle.succeeded(&"a");
        assert_eq!(throttle.wait(&"a", start), None);
    }

    #[test]
    fn it_never_grows_over_its_bound() {
        let mut throttle = Throttle::default();
        let start = Instant::now();
        for key in 0..KEYS_MAX + 10 {
            throttle.failed(&key, start + Duration::from_millis(key as u64));
        }
        assert_eq!(throttle.failures.len(), KEYS_MAX);
        assert!(!throttle.failures.contains_key(&0));
    }

    #[test]
    fn one_ipv6_customer_is_one_address() {
        let key = |text: &str| address_key(text.parse().unwrap());
        assert_eq!(key("2001:db8::1"), key("2001:db8::ffff:1"));
        assert_ne!(key("2001:db8::1"), key("2001:db8:0:1::1"));
        assert_eq!(key("::ffff:10.0.0.1"), key("10.0.0.1"));
    }
}
