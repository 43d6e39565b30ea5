//! What all sessions of one server have in common.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::{Duration, Instant};

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::model::Fingerprint;
use crate::protocol::message::{Failure, FailureCode};
use crate::server::accounts;
use crate::server::config::Config;
use crate::server::hub::Hub;
use crate::server::metrics::Metrics;
use crate::server::packs;
use crate::server::store::{Layout, Store, StoreError};
use crate::server::throttle::{Tries, Try};

/// Password hashes at once: each takes 19 MiB and a core.
const HASHING_MAX: usize = 2;

/// Chunks are verified by so many threads at once.
const VERIFYING_MAX: usize = 4;

/// The server, as its sessions see it.
#[derive(Debug)]
pub struct Shared {
    /// The settings.
    pub config: Config,
    /// The files of the data directory.
    pub layout: Layout,
    /// The data.
    pub store: Arc<Store>,
    /// Who is connected.
    pub hub: Arc<Hub>,
    /// What is counted.
    pub metrics: Metrics,
    /// What join links name.
    pub fingerprint: Fingerprint,
    /// The address that join links name.
    pub public: String,
    /// A hash that no password has, verified when a user does not exist.
    dummy_hash: String,
    tries: Mutex<Tries>,
    hashing: Semaphore,
    /// Chunks are unpacked and hashed under these.
    pub verifying: Semaphore,
    /// Long content lists are checked under this, one at a time.
    pub long_lists: Semaphore,
    memory: Arc<Semaphore>,
    memory_kib: u32,
    memory_of_users: Mutex<HashMap<i64, Weak<Semaphore>>>,
    /// What drives take, and when that was found out.
    stored: Mutex<HashMap<i64, (Instant, u64)>>,
}

/// What a drive takes is found out at most this often: it is a look at each of its chunks.
const STORED_EVERY: Duration = Duration::from_secs(60);

/// The most drives of which it is remembered.
const STORED_MAX: usize = 10_000;

/// Memory that a request was granted, given back when this is dropped.
#[derive(Debug)]
pub struct Memory(
    #[expect(dead_code, reason = "held to be dropped")] OwnedSemaphorePermit,
    #[expect(dead_code, reason = "held to be dropped")] OwnedSemaphorePermit,
);

impl Shared {
    /// Puts the parts together.
    ///
    /// # Errors
    /// When the system has no randomness.
    pub fn new(
        config: Config,
        layout: Layout,
        store: Arc<Store>,
        hub: Arc<Hub>,
        fingerprint: Fingerprint,
        public: String,
    ) -> Result<Self, StoreError> {
        let nobodys: [u8; 16] = accounts::random()?;
        let memory_kib = config.limits.memory_max_mib.saturating_mul(1024);
        Ok(Self {
            config,
            layout,
            store,
            hub,
            metrics: Metrics::default(),
            fingerprint,
            public,
            dummy_hash: accounts::hash_password(&format!("{nobodys:?}"))?,
            tries: Mutex::default(),
            hashing: Semaphore::new(HASHING_MAX),
            verifying: Semaphore::new(VERIFYING_MAX),
            long_lists: Semaphore::new(1),
            memory: Arc::new(Semaphore::new(memory_kib as usize)),
            memory_kib,
            memory_of_users: Mutex::default(),
            stored: Mutex::default(),
        })
    }

    /// Returns the memory of one user: half of all, so that nobody can take it all.
    pub fn memory_of(&self, user: i64) -> Arc<Semaphore> {
        let mut all = self.memory_of_users.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(memory) = all.get(&user).and_then(Weak::upgrade) {
            return memory;
        }
        all.retain(|_, memory| memory.strong_count() > 0);
        let memory = Arc::new(Semaphore::new((self.memory_kib / 2) as usize));
        all.insert(user, Arc::downgrade(&memory));
        memory
    }

    /// Waits for memory for so many bytes.
    ///
    /// # Errors
    /// When the server is closing.
    pub async fn memory(
        &self,
        of_user: &Arc<Semaphore>,
        bytes: usize,
    ) -> Result<Memory, StoreError> {
        let kib = u32::try_from(bytes.div_ceil(1024)).unwrap_or(u32::MAX);
        // What is more than the user's share is granted when all of the share is free.
        let kib = kib.clamp(1, self.memory_kib / 2);
        let closed = |_| StoreError::Closed;
        let own = Arc::clone(of_user).acquire_many_owned(kib).await.map_err(closed)?;
        let all = Arc::clone(&self.memory).acquire_many_owned(kib).await.map_err(closed)?;
        Ok(Memory(own, all))
    }

    /// Returns what a drive takes, if that was found out lately.
    pub fn stored_lately(&self, drive: i64) -> Option<u64> {
        let stored = self.stored.lock().unwrap_or_else(PoisonError::into_inner);
        stored.get(&drive).filter(|(at, _)| at.elapsed() < STORED_EVERY).map(|(_, bytes)| *bytes)
    }

    /// Remembers what a drive takes.
    pub fn note_stored(&self, drive: i64, bytes: u64) {
        let mut stored = self.stored.lock().unwrap_or_else(PoisonError::into_inner);
        if stored.len() >= STORED_MAX {
            stored.clear();
        }
        stored.insert(drive, (Instant::now(), bytes));
    }

    /// Returns how many bytes can still be taken, and how large the disk is.
    ///
    /// # Errors
    /// When the disk cannot be asked.
    pub fn room(&self) -> Result<(u64, u64), StoreError> {
        let (free, total) = packs::room(&self.layout.packs())?;
        let kept_free = self.config.limits.disk_free_min_mib.saturating_mul(1024 * 1024);
        Ok((free.saturating_sub(kept_free), total))
    }

    /// Refuses when this one has failed too often lately.
    pub fn check_tries(&self, who: Try<'_>) -> Result<(), StoreError> {
        let tries = self.tries.lock().unwrap_or_else(PoisonError::into_inner);
        match tries.wait(who, Instant::now()) {
            None => Ok(()),
            Some(wait) => Err(throttled(wait)),
        }
    }

    /// Counts a failure or a success.
    pub fn count_try(&self, who: Try<'_>, admitted: bool) {
        let mut tries = self.tries.lock().unwrap_or_else(PoisonError::into_inner);
        if admitted {
            tries.succeeded(who);
        } else {
            tries.failed(who, Instant::now());
        }
    }

    /// Returns whether this is the password of that hash; without one it takes as long, and is not.
    ///
    /// # Errors
    /// When the server is closing.
    pub async fn verify_password(
        &self,
        password: String,
        hash: Option<String>,
    ) -> Result<bool, StoreError> {
        let known = hash.is_some();
        let hash = hash.unwrap_or_else(|| self.dummy_hash.clone());
        let verified = self.hash_with(move || accounts::verify_password(&password, &hash)).await?;
        Ok(verified && known)
    }

    /// Hashes a password to be set.
    ///
    /// # Errors
    /// When it is not legal.
    pub async fn hash_password(&self, password: String) -> Result<String, StoreError> {
        accounts::check_password(&password)?;
        self.hash_with(move || accounts::hash_password(&password)).await?
    }

    async fn hash_with<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> Result<T, StoreError> {
        let _permit = self.hashing.acquire().await.map_err(|_| StoreError::Closed)?;
        tokio::task::spawn_blocking(work).await.map_err(|_| StoreError::Closed)
    }
}

fn throttled(wait: Duration) -> StoreError {
    let secs = wait.as_secs() + 1;
    StoreError::Request(Failure {
        code: FailureCode::Throttled,
        message: format!("Too many tries: wait {secs} seconds"),
    })
}
