//! Bytes kept for a moment: small contents that came inside a page until they are applied, and
//! those read for hashing until they are committed. Bounded by their bytes; the oldest go first. Whoever
//! fills it can ask how much nobody has taken yet, and wait.

use std::collections::{HashMap, VecDeque};
use std::sync::{Mutex, MutexGuard, PoisonError};

use crate::model::ChunkId;

/// A cache by chunk, bounded by bytes.
#[derive(Debug)]
pub struct Cache<T> {
    kept: Mutex<Kept<T>>,
    len_max: usize,
}

#[derive(Debug)]
struct Kept<T> {
    by_id: HashMap<ChunkId, Item<T>>,
    /// In the order of arrival, with the number of the arrival; what was taken or renewed since is
    /// skipped.
    order: VecDeque<(u64, ChunkId)>,
    arrivals: u64,
    len: usize,
    /// The bytes of what nobody has taken yet.
    untaken_len: usize,
}

#[derive(Debug)]
struct Item<T> {
    arrival: u64,
    len: usize,
    is_taken: bool,
    value: T,
}

impl<T> Kept<T> {
    fn remove(&mut self, id: ChunkId) {
        if let Some(item) = self.by_id.remove(&id) {
            self.gone(&item);
        }
    }

    fn gone(&mut self, item: &Item<T>) {
        self.len -= item.len;
        if !item.is_taken {
            self.untaken_len -= item.len;
        }
    }
}

impl<T: Clone> Cache<T> {
    /// Returns an empty cache for so many bytes.
    #[must_use]
    pub fn new(len_max: usize) -> Self {
        Self {
            kept: Mutex::new(Kept {
                by_id: HashMap::new(),
                order: VecDeque::new(),
                arrivals: 0,
                len: 0,
                untaken_len: 0,
            }),
            len_max,
        }
    }

    fn kept(&self) -> MutexGuard<'_, Kept<T>> {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Keeps a value that takes `len` bytes.
    pub fn put(&self, id: ChunkId, len: usize, value: T) {
        // What a map entry and a place in the queue take, so that tiny values are bounded too.
        let len = len + 128;
        if len > self.len_max {
            return;
        }
        let mut kept = self.kept();
        kept.arrivals += 1;
        let arrival = kept.arrivals;
        let item = Item { arrival, len, is_taken: false, value };
        if let Some(old) = kept.by_id.insert(id, item) {
            kept.gone(&old);
        }
        kept.len += len;
        kept.untaken_len += len;
        kept.order.push_back((arrival, id));
        let entries_max = kept.by_id.len() * 2 + 1024;
        while (kept.len > self.len_max || kept.order.len() > entries_max)
            && let Some((arrival, id)) = kept.order.pop_front()
        {
            if kept.by_id.get(&id).is_some_and(|item| item.arrival == arrival) {
                if kept.len > self.len_max {
                    kept.remove(id);
                } else {
                    kept.order.push_back((arrival, id));
                }
            }
        }
    }

    /// Returns a value and keeps it: several files may have the same content.
    #[must_use]
    pub fn get(&self, id: ChunkId) -> Option<T> {
        let mut kept = self.kept();
        let item = kept.by_id.get_mut(&id)?;
        let value = item.value.clone();
        if !std::mem::replace(&mut item.is_taken, true) {
            let len = item.len;
            kept.untaken_len -= len;
        }
        Some(value)
    }

    /// Returns how many bytes are kept that nobody has taken yet.
    #[must_use]
    pub fn untaken_len(&self) -> usize {
        self.kept().untaken_len
    }

    /// Drops everything.
    pub fn clear(&self) {
        let mut kept = self.kept();
        kept.by_id = HashMap::new();
        kept.order = VecDeque::new();
        kept.len = 0;
        kept.untaken_len = 0;
    }

    /// Drops a value.
    pub fn remove(&self, id: ChunkId) {
        self.kept().remove(id);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_oldest_go_when_the_bytes_are_too_many() {
        let id = |number: u32| ChunkId::of(&number.to_be_bytes());
        let cache = Cache::new(10 * 1128);
        for number in 0..100_000 {
            cache.put(id(number % 50), 1000, number);
            cache.put(id(7), 1000, number);
        }
        let kept = cache.kept();
        assert!(kept.len <= 10 * 1128 && kept.by_id.len() == 10, "{}", kept.by_id.len());
        assert!(kept.order.len() <= 2048, "{}", kept.order.len());
        assert_eq!(kept.len, kept.by_id.values().map(|item| item.len).sum::<usize>());
        drop(kept);
        assert_eq!(cache.untaken_len(), 10 * 1128);
        assert_eq!(cache.get(id(7)), Some(99_999));
        assert_eq!(cache.get(id(7)), Some(99_999));
        assert_eq!(cache.untaken_len(), 9 * 1128);
        assert_eq!(cache.get(id(0)), None);
        cache.remove(id(7));
        assert_eq!(cache.get(id(7)), None);
        cache.clear();
        assert_eq!(cache.get(id(49)), None);
        assert_eq!(cache.untaken_len(), 0);
    }
}
