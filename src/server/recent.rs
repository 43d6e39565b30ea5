//! Records that were appended lately, in memory: what one device sends, the others ask for next, while it is
//! still being sent. They get it without a read from the pack and a check of what was read.
//!
//! A record is known by where it lies, and nothing is ever written there again, so nothing in here can be out of
//! date. It was verified before it was appended, and is put in here once it is on stable storage.

use std::collections::{HashMap, VecDeque};
use std::sync::{Mutex, MutexGuard, PoisonError};

use super::packs::{Location, Record};

/// The most bytes kept, with what keeping them takes.
const LEN_MAX: usize = 16 * 1024 * 1024;

/// What a record takes beside its bytes, in bytes, roughly.
const OVERHEAD: usize = 256;

/// The records, the oldest first to go.
#[derive(Debug, Default)]
pub(super) struct Recent(Mutex<Kept>);

#[derive(Debug, Default)]
struct Kept {
    records: HashMap<Place, Record>,
    order: VecDeque<Place>,
    len: usize,
    /// Whether any was put or taken since this was last asked.
    was_used: bool,
}

/// A pack's number, and where in it.
type Place = (u32, u64);

impl Recent {
    fn kept(&self) -> MutexGuard<'_, Kept> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Keeps a record that lies there, for as long as there is room.
    pub(super) fn put(&self, at: Location, record: &Record) {
        let place = (at.pack, at.offset);
        let mut kept = self.kept();
        kept.was_used = true;
        if kept.records.insert(place, record.clone()).is_some() {
            return;
        }
        kept.len += record.data.len() + OVERHEAD;
        kept.order.push_back(place);
        while kept.len > LEN_MAX
            && let Some(oldest) = kept.order.pop_front()
            && let Some(record) = kept.records.remove(&oldest)
        {
            kept.len -= record.data.len() + OVERHEAD;
        }
    }

    /// Returns the record that lies there, if it is kept.
    pub(super) fn get(&self, at: Location) -> Option<Record> {
        let mut kept = self.kept();
        kept.was_used = true;
        kept.records.get(&(at.pack, at.offset)).cloned()
    }

    /// Drops everything, unless it was used since the last call. Returns whether there was something to drop.
    pub(super) fn rest(&self) -> bool {
        let mut kept = self.kept();
        if std::mem::take(&mut kept.was_used) || kept.records.is_empty() {
            return false;
        }
        *kept = Kept::default();
        true
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::super::packs::RecordKind;
    use super::*;

    #[test]
    fn the_oldest_go_first_and_all_once_nobody_asks() {
        let recent = Recent::default();
        let at = |number: u32| Location { pack: 1, offset: number.into(), stored_len: 1 << 20 };
        for number in 0..100 {
            let record = Record {
                kind: RecordKind::Chunk,
                codec: 0,
                plain_len: 1 << 20,
                id: [0; 32],
                data: Arc::new(vec![u8::try_from(number).unwrap(); 1 << 20]),
            };
            recent.put(at(number), &record);
            let kept = recent.kept();
            assert!(kept.len <= LEN_MAX);
            assert_eq!(kept.len, kept.records.len() * ((1 << 20) + OVERHEAD));
            assert_eq!(kept.order.len(), kept.records.len());
        }
        assert_eq!(recent.get(at(99)).unwrap().data[0], 99);
        assert_eq!(recent.get(at(85)).unwrap().data[0], 85);
        assert!(recent.get(at(84)).is_none());
        assert!(!recent.rest(), "it was used just now");
        assert!(recent.rest());
        assert!(recent.get(at(99)).is_none());
        assert!(!recent.rest() && !recent.rest(), "nothing is there");
    }
}
