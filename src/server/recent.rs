//! Records that were appended lately, in memory: what one device sends, the others ask for next, while it is
//! still being sent. They get it without a read from the pack and a check of what was read.
//!
//! A record's id names its bytes, so nothing in here can be out of date. It was verified before it was appended,
//! and is put in here once it is on stable storage. What a drive has is for the metadata to say: whoever asks by
//! an id alone has it from a node of the drive.

use std::collections::{HashMap, VecDeque};
use std::sync::{Mutex, MutexGuard, PoisonError};

use super::packs::{Location, Record, RecordKind};
use crate::model::ChunkId;

/// The most bytes kept, with what keeping them takes.
const LEN_MAX: usize = 16 * 1024 * 1024;

/// What a record takes beside its bytes, in bytes, roughly.
const OVERHEAD: usize = 256;

/// The records, the oldest first to go.
#[derive(Debug, Default)]
pub(super) struct Recent(Mutex<Kept>);

#[derive(Debug, Default)]
struct Kept {
    records: HashMap<Id, (Location, Record)>,
    order: VecDeque<Id>,
    len: usize,
    /// Whether any was put or taken since this was last asked.
    was_used: bool,
}

type Id = [u8; 32];

impl Recent {
    fn kept(&self) -> MutexGuard<'_, Kept> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Keeps a record that lies there, for as long as there is room.
    pub(super) fn put(&self, at: Location, record: &Record) {
        let mut kept = self.kept();
        kept.was_used = true;
        kept.len += record.data.len() + OVERHEAD;
        match kept.records.insert(record.id, (at, record.clone())) {
            Some((_, before)) => kept.len -= before.data.len() + OVERHEAD,
            None => kept.order.push_back(record.id),
        }
        while kept.len > LEN_MAX
            && let Some(oldest) = kept.order.pop_front()
            && let Some((_, record)) = kept.records.remove(&oldest)
        {
            kept.len -= record.data.len() + OVERHEAD;
        }
    }

    /// Returns the record of this id that lies there, if it is kept.
    pub(super) fn get(&self, at: Location, id: &Id) -> Option<Record> {
        let mut kept = self.kept();
        kept.was_used = true;
        kept.records.get(id).filter(|(place, _)| *place == at).map(|(_, record)| record.clone())
    }

    /// Returns the record of a chunk, wherever it lies, if it is kept.
    pub(super) fn chunk(&self, id: ChunkId) -> Option<Record> {
        let mut kept = self.kept();
        kept.was_used = true;
        let (_, record) = kept.records.get(id.as_bytes())?;
        (record.kind == RecordKind::Chunk).then(|| record.clone())
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

    use super::*;

    #[test]
    fn the_oldest_go_first_and_all_once_nobody_asks() {
        let recent = Recent::default();
        let at = |number: u32| Location { pack: 1, offset: number.into(), stored_len: 1 << 20 };
        let id = |number: u32| [u8::try_from(number).unwrap(); 32];
        let record = |number: u32, kind| Record {
            kind,
            codec: 0,
            plain_len: 1 << 20,
            id: id(number),
            data: Arc::new(vec![u8::try_from(number).unwrap(); 1 << 20]),
        };
        for number in 0..100 {
            recent.put(at(number), &record(number, RecordKind::Chunk));
            let kept = recent.kept();
            assert!(kept.len <= LEN_MAX);
            assert_eq!(kept.len, kept.records.len() * ((1 << 20) + OVERHEAD));
            assert_eq!(kept.order.len(), kept.records.len());
        }
        assert_eq!(recent.get(at(99), &id(99)).unwrap().data[0], 99);
        assert_eq!(recent.get(at(85), &id(85)).unwrap().data[0], 85);
        assert!(recent.get(at(84), &id(84)).is_none());
        assert!(recent.get(at(98), &id(99)).is_none(), "it lies elsewhere");
        assert_eq!(recent.chunk(ChunkId::from_bytes(id(99))).unwrap().data[0], 99);
        // The bytes of a list may be those of a chunk, too.
        recent.put(at(100), &record(99, RecordKind::List));
        assert!(recent.chunk(ChunkId::from_bytes(id(99))).is_none());
        assert!(recent.get(at(99), &id(99)).is_none());
        let kept = recent.kept();
        assert_eq!(kept.len, kept.records.len() * ((1 << 20) + OVERHEAD));
        drop(kept);
        assert!(!recent.rest(), "it was used just now");
        assert!(recent.rest());
        assert!(recent.get(at(100), &id(99)).is_none());
        assert!(!recent.rest() && !recent.rest(), "nothing is there");
    }
}
