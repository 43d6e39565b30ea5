//! Slows down guessing: after some failures, each further one doubles the wait.
//!
//! What counts is the account that is tried together with the address it is tried from: who
//! mistypes a password locks nobody else out, neither others behind the same address nor the
//! account's owner elsewhere. An address that tries many accounts, and an account that is tried from
//! many addresses, meet a bound of their own, which is much higher. Everything is bounded: when it is
//! full, the entry that failed longest ago goes.

use std::collections::HashMap;
use std::hash::Hash;
use std::net::{IpAddr, Ipv6Addr};
use std::time::{Duration, Instant};

/// Failures that cost nothing: a person mistypes.
const FREE: u32 = 5;

/// The same for all accounts from one address, and for one account from all addresses. A guesser gets
/// this many tries, and then one in a quarter of an hour.
const FREE_OF_MANY: u32 = 100;

/// The longest wait, and after how long without a failure all is forgotten.
const WAIT_MAX: Duration = Duration::from_secs(15 * 60);

/// The most keys remembered.
const KEYS_MAX: usize = 10_000;

/// The failures of one kind of key.
#[derive(Debug)]
struct Throttle<K> {
    free: u32,
    failures: HashMap<K, (u32, Instant)>,
}

impl<K> Throttle<K> {
    fn new(free: u32) -> Self {
        Self { free, failures: HashMap::new() }
    }
}

impl<K: Hash + Eq + Clone> Throttle<K> {
    /// Returns how long this key has to wait before its next try.
    fn wait(&self, key: &K, now: Instant) -> Option<Duration> {
        let (count, last) = self.failures.get(key)?;
        let wait = self.wait_after(*count)?;
        (*last + wait).checked_duration_since(now).filter(|left| !left.is_zero())
    }

    fn wait_after(&self, count: u32) -> Option<Duration> {
        let over = count.checked_sub(self.free)?;
        Some(Duration::from_secs(1 << over.min(10)).min(WAIT_MAX))
    }

    /// Counts a failure.
    fn failed(&mut self, key: &K, now: Instant) {
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
    fn succeeded(&mut self, key: &K) {
        self.failures.remove(key);
    }
}

/// Who tries to be let in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Try<'a> {
    /// Somebody at this address, as this account.
    Account(IpAddr, &'a str),
    /// Somebody at this address with the secret of a link, which nobody guesses.
    Secret(IpAddr),
    /// Somebody at this address who wants an account on a server that is open to all. Each account
    /// counts as a failure, so that they are not made by the thousand.
    Registration(IpAddr),
    /// A device that is in already, and is asked for this account's password again. Apart from
    /// log-ins, so that neither locks out the other.
    SignedIn(&'a str),
}

/// The failed tries of who wants in.
#[derive(Debug)]
pub struct Tries {
    accounts: Throttle<(IpAddr, String)>,
    registrations: Throttle<IpAddr>,
    signed_in: Throttle<String>,
    all_of_address: Throttle<IpAddr>,
    all_of_account: Throttle<String>,
}

impl Default for Tries {
    fn default() -> Self {
        Self {
            accounts: Throttle::new(FREE),
            registrations: Throttle::new(FREE),
            signed_in: Throttle::new(FREE),
            all_of_address: Throttle::new(FREE_OF_MANY),
            all_of_account: Throttle::new(FREE_OF_MANY),
        }
    }
}

impl Tries {
    /// Returns how long this one has to wait before the next try.
    #[must_use]
    pub fn wait(&self, who: Try<'_>, now: Instant) -> Option<Duration> {
        match who {
            Try::Account(address, user) => {
                let user = user.to_lowercase();
                let of_account = self.all_of_account.wait(&user, now);
                let of_both = self.accounts.wait(&(address, user), now);
                of_both.max(of_account).max(self.all_of_address.wait(&address, now))
            }
            Try::Secret(address) => self.all_of_address.wait(&address, now),
            Try::Registration(address) => {
                let of_address = self.all_of_address.wait(&address, now);
                self.registrations.wait(&address, now).max(of_address)
            }
            Try::SignedIn(user) => self.signed_in.wait(&user.to_lowercase(), now),
        }
    }

    /// Counts a failure.
    pub fn failed(&mut self, who: Try<'_>, now: Instant) {
        match who {
            Try::Account(address, user) => {
                let user = user.to_lowercase();
                self.all_of_account.failed(&user, now);
                self.accounts.failed(&(address, user), now);
                self.all_of_address.failed(&address, now);
            }
            Try::Secret(address) => self.all_of_address.failed(&address, now),
            Try::Registration(address) => self.registrations.failed(&address, now),
            Try::SignedIn(user) => self.signed_in.failed(&user.to_lowercase(), now),
        }
    }

    /// Forgets the failures of one that has proved itself. Those of the address and the account as
    /// such stay: else whoever has one account could guess at others without an end.
    pub fn succeeded(&mut self, who: Try<'_>) {
        match who {
            Try::Account(address, user) => self.accounts.succeeded(&(address, user.to_lowercase())),
            Try::SignedIn(user) => self.signed_in.succeeded(&user.to_lowercase()),
            Try::Secret(_) | Try::Registration(_) => {}
        }
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
        let mut throttle = Throttle::new(FREE);
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
        let mut throttle = Throttle::new(FREE);
        let start = Instant::now();
        for key in 0..KEYS_MAX + 10 {
            throttle.failed(&key, start + Duration::from_millis(key as u64));
        }
        assert_eq!(throttle.failures.len(), KEYS_MAX);
        assert!(!throttle.failures.contains_key(&0));
    }

    #[test]
    fn one_member_of_a_family_does_not_lock_out_the_others() {
        let mut tries = Tries::default();
        let now = Instant::now();
        let home: IpAddr = "192.0.2.1".parse().unwrap();
        let away: IpAddr = "192.0.2.2".parse().unwrap();
        for _ in 0..20 {
            tries.failed(Try::Account(home, "Ann"), now);
        }
        assert_eq!(tries.wait(Try::Account(home, "ann"), now), Some(WAIT_MAX));
        for free in [
            Try::Account(home, "bob"),
            Try::Account(away, "ann"),
            Try::Secret(home),
            Try::Registration(home),
            Try::SignedIn("ann"),
        ] {
            assert_eq!(tries.wait(free, now), None, "{free:?}");
        }
        // Registrations are counted on their own, and lock out no log-in.
        for _ in 0..=FREE {
            tries.failed(Try::Registration(home), now);
        }
        assert!(tries.wait(Try::Registration(home), now).is_some());
        assert_eq!(tries.wait(Try::Account(home, "bob"), now), None);
    }

    #[test]
    fn an_address_that_guesses_at_all_accounts_is_stopped_and_so_is_a_crowd_at_one() {
        let now = Instant::now();
        let home: IpAddr = "192.0.2.1".parse().unwrap();
        let mut tries = Tries::default();
        for number in 0..FREE_OF_MANY {
            let victim = format!("user{number}");
            assert_eq!(tries.wait(Try::Account(home, &victim), now), None);
            tries.failed(Try::Account(home, &victim), now);
            // An account of its own does not wipe the slate.
            tries.succeeded(Try::Account(home, "own"));
        }
        assert!(tries.wait(Try::Account(home, "another"), now).is_some());
        assert!(tries.wait(Try::Secret(home), now).is_some());

        let mut tries = Tries::default();
        for number in 0..u8::try_from(FREE_OF_MANY).unwrap() {
            tries.failed(Try::Account(IpAddr::from([10, 0, 0, number]), "ann"), now);
        }
        assert!(tries.wait(Try::Account(home, "ann"), now).is_some());
        assert_eq!(tries.wait(Try::Account(home, "bob"), now), None);
    }

    #[test]
    fn one_ipv6_customer_is_one_address() {
        let key = |text: &str| address_key(text.parse().unwrap());
        assert_eq!(key("2001:db8::1"), key("2001:db8::ffff:1"));
        assert_ne!(key("2001:db8::1"), key("2001:db8:0:1::1"));
        assert_eq!(key("::ffff:10.0.0.1"), key("10.0.0.1"));
    }
}
