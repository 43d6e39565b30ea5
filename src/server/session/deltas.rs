//! Contents as the difference to what the drive has: what a device sends is made whole before it is
//! stored, what it asks for is made from what is stored.
//!
//! A base is chunks of the drive that is asked about, and only those: a delta to a chunk of another
//! drive would tell what is in it.

use std::sync::Arc;

use super::lane::{self, Prepared, malformed};
use super::shared::Shared;
use crate::content::delta;
use crate::content::{BlockSums, pack, splice, unpack};
use crate::model::{ChunkId, ContentList, ListId};
use crate::protocol::limits::{BASE_CHUNKS_MAX, BASES_MAX, BATCH_LEN_MAX, LIST_PART_LEN_MAX};
use crate::protocol::message::{
    Deltas, FailureCode, GetDeltas, GetSplice, GetSums, PutDeltas, PutSplice, Splice, Sums,
};
use crate::server::packs::Packs;
use crate::server::packs::chunk_data;
use crate::server::store::StoreError;
use crate::server::store::metadata::{Metadata, Result};

/// The bytes of the base that was needed last: neighbours in a file have the same.
struct Bases<'a> {
    metadata: &'a mut dyn Metadata,
    packs: &'a Packs,
    drive: i64,
    last: Option<(Vec<ChunkId>, Option<Vec<u8>>)>,
}

impl Bases<'_> {
    /// Returns the bytes of a base, if the drive has all of it.
    fn get(&mut self, base: &[ChunkId]) -> Result<Option<&[u8]>> {
        if self.last.as_ref().is_none_or(|(last, _)| last != base) {
            let bytes = self.read(base)?;
            self.last = Some((base.to_vec(), bytes));
        }
        Ok(self.last.as_ref().and_then(|(_, bytes)| bytes.as_deref()))
    }

    fn read(&mut self, base: &[ChunkId]) -> Result<Option<Vec<u8>>> {
        if base.len() > delta::BASE_CHUNKS_MAX {
            let most = delta::BASE_CHUNKS_MAX;
            return Err(too_large(format!("A base has at most {most} chunks")));
        }
        let mut bytes = Vec::new();
        for id in base {
            match self.chunk(*id)? {
                Some(chunk) => bytes.extend_from_slice(&chunk),
                None => return Ok(None),
            }
        }
        Ok(Some(bytes))
    }

    fn chunk(&mut self, id: ChunkId) -> Result<Option<Vec<u8>>> {
        let Some(chunk) = self.metadata.chunk(self.drive, id)? else {
            return Ok(None);
        };
        let packed = chunk_data(self.packs.read(chunk.at, id.as_bytes())?)?;
        let plain = unpack(&packed).map_err(|error| StoreError::Damaged(error.to_string()))?;
        Ok(Some(plain.into_vec()))
    }
}

fn too_large(reason: impl Into<String>) -> StoreError {
    StoreError::request(FailureCode::TooLarge, reason)
}

fn check<'a>(bases: impl ExactSizeIterator<Item = &'a Vec<ChunkId>>) -> Result<()> {
    if bases.len() > BASES_MAX || bases.map(Vec::len).sum::<usize>() > BASE_CHUNKS_MAX {
        return Err(too_large(format!(
            "A request names at most {BASES_MAX} bases with {BASE_CHUNKS_MAX} chunks together"
        )));
    }
    Ok(())
}

/// Makes the chunks that deltas stand for.
pub async fn undo(shared: &Arc<Shared>, drive: i64, put: PutDeltas) -> Result<Prepared> {
    check(put.deltas.iter().map(|delta| &delta.base))?;
    let len: usize = put.deltas.iter().map(|delta| delta.plain_len as usize).sum();
    if len > 2 * BATCH_LEN_MAX {
        return Err(too_large(format!("Deltas make at most {} bytes", 2 * BATCH_LEN_MAX)));
    }
    let work = move |metadata: &mut dyn Metadata, packs: &Packs| {
        let mut bases = Bases { metadata, packs, drive, last: None };
        let mut records = Vec::with_capacity(put.deltas.len());
        for one in &put.deltas {
            let base = bases.get(&one.base)?.ok_or_else(|| {
                StoreError::request(FailureCode::NotFound, "The drive lacks the base of a delta")
            })?;
            let plain = delta::apply(one, base).map_err(|error| malformed(error.to_string()))?;
            records.push(lane::record(pack(one.id, plain.into_vec())));
        }
        Ok(Prepared::Chunks(records))
    };
    shared.store.read(work).await
}

/// Makes the list that a splice stands for; it is checked in its turn.
pub async fn unsplice(shared: &Arc<Shared>, drive: i64, put: PutSplice) -> Result<Prepared> {
    if put.splice.len() > LIST_PART_LEN_MAX {
        return Err(too_large(format!("A splice has at most {LIST_PART_LEN_MAX} bytes")));
    }
    let work = move |metadata: &mut dyn Metadata, packs: &Packs| {
        let base = list(metadata, packs, drive, put.base)?.ok_or_else(|| {
            StoreError::request(FailureCode::NotFound, "The drive lacks the list of a splice")
        })?;
        let made = splice::unsplice(&base, &put.splice);
        let made = made.map_err(|error| malformed(error.to_string()))?;
        Ok(Prepared::Spliced(put.list, made.encode()))
    };
    shared.store.read(work).await
}

/// Returns a list of the drive, unless it is too long to be spliced.
fn list(
    metadata: &mut dyn Metadata,
    packs: &Packs,
    drive: i64,
    id: ListId,
) -> Result<Option<ContentList>> {
    let Some(row) = metadata.list(drive, id)? else {
        return Ok(None);
    };
    if row.at.stored_len as usize > splice::SPLICED_LEN_MAX {
        return Ok(None);
    }
    let record = packs.read(row.at, id.as_bytes())?;
    let list = ContentList::decode(&record.data);
    list.map(Some).map_err(|error| StoreError::Damaged(error.to_string()))
}

/// Answers [`GetSplice`].
pub async fn get_splice(shared: &Arc<Shared>, drive: i64, asked: GetSplice) -> Result<Splice> {
    let work = move |metadata: &mut dyn Metadata, packs: &Packs| {
        let base = list(metadata, packs, drive, asked.base)?;
        let wanted = list(metadata, packs, drive, asked.list)?;
        let splice = base.zip(wanted).and_then(|(base, wanted)| splice::splice(&base, &wanted));
        Ok(Splice { splice: splice.filter(|splice| splice.len() <= LIST_PART_LEN_MAX) })
    };
    shared.store.read(work).await
}

/// Answers [`GetSums`].
pub async fn get_sums(shared: &Arc<Shared>, drive: i64, asked: GetSums) -> Result<Sums> {
    check(asked.bases.iter())?;
    let work = move |metadata: &mut dyn Metadata, packs: &Packs| {
        let mut bases = Bases { metadata, packs, drive, last: None };
        let sums = asked.bases.iter().map(|base| {
            let bytes = bases.get(base)?;
            Ok(bytes.map_or(BlockSums::NONE, BlockSums::of))
        });
        Ok(Sums { sums: sums.collect::<Result<_>>()? })
    };
    shared.store.read(work).await
}

/// Answers [`GetDeltas`].
pub async fn get_deltas(shared: &Arc<Shared>, drive: i64, asked: GetDeltas) -> Result<Deltas> {
    check(asked.wanted.iter().map(|wanted| &wanted.base))?;
    let work = move |metadata: &mut dyn Metadata, packs: &Packs| {
        let mut bases = Bases { metadata, packs, drive, last: None };
        let mut reply = Deltas { deltas: Vec::new(), chunks: Vec::new(), absent: Vec::new() };
        let mut len = 0;
        for wanted in asked.wanted {
            let id = wanted.chunk;
            let Some(plain) = bases.chunk(id)? else {
                reply.absent.push(id);
                continue;
            };
            if len > 0 && len + plain.len() > BATCH_LEN_MAX {
                break;
            }
            len += plain.len();
            let sums = bases.get(&wanted.base)?.map_or(BlockSums::NONE, BlockSums::of);
            match delta::make(id, &plain, &wanted.base, &sums) {
                Some(delta) => reply.deltas.push(delta),
                None => reply.chunks.push(pack(id, plain)),
            }
        }
        Ok(reply)
    };
    shared.store.read(work).await
}
