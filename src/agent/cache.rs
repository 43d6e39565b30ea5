//! Bytes kept for a moment: small contents that came inside a page until they are applied, and
//! those read for hashing until they are committed. Bounded by their bytes; the oldest go first.

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
    by_id: HashMap<ChunkId, (u64, usize, T)>,
    /// In the order of arrival, with the number of the arrival; what was taken or renewed since is
    /// skipped.
    order: VecDeque<(u64, ChunkId)>,
    arrivals: u64,
    len: usize,
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
        if let Some((_, old, _)) = kept.by_id.insert(id, (arrival, len, value)) {
            kept.len -= old;
        }
        kept.len += len;
        kept.order.push_back((arrival, id));
        let entries_max = kept.by_id.len() * 2 + 1024;
        while (kept.len > self.len_max || kept.order.len() > entries_max)
            && let Some((arrival, id)) = kept.order.pop_front()
        {
            match kept.by_id.get(&id) {
                Some((newest, len, _)) if *newest == arrival => {
                    let len = *len;
                    if kept.len > self.len_max {
                        kept.by_id.remove(&id);
                        kept.len -= len;
                    } else {
                        kept.order.push_back((arrival, id));
                    }
                }
                _ => {}
            }
        }
    }

    /// Returns a value and keeps it: several files may have the same content.
    #[must_use]
    pub fn get(&self, id: ChunkId) -> Option<T> {
        self.kept().by_id.get(&id).map(|(_, _, value)| value.clone())
    }

    /// Drops everything.
    pub fn clear(&self) {
        let mut kept = self.kept();
        kept.by_id = HashMap::new();
        kept.order = VecDeque::new();
        kept.len = 0;
    }

    /// Drops a value.
    pub fn remove(&self, id: ChunkId) {
        let mut kept = self.kept();
        if let Some((_, len, _)) = kept.by_id.remove(&id) {
            kept.len -= len;
        }
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
        assert_eq!(kept.len, kept.by_id.values().map(|(_, len, _)| len).sum::<usize>());
        drop(kept);
        assert_eq!(cache.get(id(7)), Some(99_999));
        assert_eq!(cache.get(id(0)), None);
        cache.remove(id(7));
        assert_eq!(cache.get(id(7)), None);
        cache.clear();
        assert_eq!(cache.get(id(49)), None);
    }
}
