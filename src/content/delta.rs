//! A chunk as the difference to bytes the other side has.
//!
//! The bytes the other side has are described by block sums: for each whole block of them a weak sum
//! that can be rolled over new bytes, and a strong one. Whoever has the new bytes finds those blocks
//! in them wherever they are now, and says what is new in between: the algorithm of rsync (Tridgell
//! and Mackerras, 1996), per chunk instead of per file. So a device that changed a file in place,
//! and has the old bytes no more, can still send four changed kilobytes as four kilobytes.
//!
//! Sums and delta are hints. What a delta makes is checked against the chunk's id, always, so a sum
//! that two blocks share, or a lie, costs time and never a byte.

use std::collections::HashMap;

use serde::{Deserialize, Serialize};

use crate::model::{Checked, ChunkData, ChunkId, Content};

use super::packing::{self, UnpackError};

/// The most chunks that are together the base of a delta.
pub const BASE_CHUNKS_MAX: usize = 8;

/// The most bytes of a base.
const BASE_LEN_MAX: usize = BASE_CHUNKS_MAX * Content::CHUNK_LEN_MAX as usize;

/// Bytes of a weak and a strong sum.
const SUM_LEN: usize = 4 + 8;

/// Bytes that say one step: where it copies from, how much, how many new bytes follow.
const STEP_LEN: usize = 12;

/// The sums of a base's blocks, as they travel.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct BlockSums {
    /// Bytes per block; 0 when there are no sums, because the base is not there.
    pub block_len: u32,
    /// Per whole block, in order: the weak sum as u32 and the first eight bytes of the BLAKE3 hash.
    /// A shorter block at the end has none.
    #[serde(with = "serde_bytes")]
    pub sums: Vec<u8>,
}

impl BlockSums {
    /// The sums of nothing.
    pub const NONE: Self = Self { block_len: 0, sums: Vec::new() };

    /// Returns the sums of these bytes.
    #[must_use]
    pub fn of(base: &[u8]) -> Self {
        // The sums of half a megabyte take six kilobytes, those of eight twenty-four.
        let block_len: u32 = match base.len() {
            0..=0x8_0000 => 1024,
            0x8_0001..=0x20_0000 => 2048,
            _ => 4096,
        };
        let blocks = base.chunks_exact(block_len as usize);
        let mut sums = Vec::with_capacity(blocks.len() * SUM_LEN);
        for block in blocks {
            sums.extend_from_slice(&Weak::of(block).sum().to_be_bytes());
            sums.extend_from_slice(&strong(block));
        }
        Self { block_len, sums }
    }

    /// Returns how many blocks there are sums of; none when the sums are not what a server makes.
    fn blocks(&self) -> Option<usize> {
        let len = self.block_len as usize;
        let blocks = self.sums.len() / SUM_LEN;
        let is_possible = (512..=64 * 1024).contains(&len)
            && self.sums.len().is_multiple_of(SUM_LEN)
            && blocks.checked_mul(len).is_some_and(|base_len| base_len <= BASE_LEN_MAX);
        is_possible.then_some(blocks)
    }
}

fn strong(block: &[u8]) -> [u8; 8] {
    let mut sum = [0; 8];
    sum.copy_from_slice(&blake3::hash(block).as_bytes()[..8]);
    sum
}

/// The rolling sum of rsync's technical report: the sum of the bytes, and the sum of those sums.
#[derive(Clone, Copy)]
struct Weak {
    a: u32,
    b: u32,
    len: u32,
}

impl Weak {
    fn of(block: &[u8]) -> Self {
        let (mut a, mut b) = (0_u32, 0_u32);
        for byte in block {
            a = a.wrapping_add(u32::from(*byte));
            b = b.wrapping_add(a);
        }
        #[expect(clippy::cast_possible_truncation, reason = "blocks are at most 64 KiB")]
        let len = block.len() as u32;
        Self { a, b, len }
    }

    fn roll(&mut self, out: u8, new: u8) {
        self.a = self.a.wrapping_sub(u32::from(out)).wrapping_add(u32::from(new));
        self.b = self.b.wrapping_sub(self.len.wrapping_mul(u32::from(out))).wrapping_add(self.a);
    }

    const fn sum(self) -> u32 {
        (self.b << 16) | (self.a & 0xffff)
    }
}

/// A chunk as a delta, on its way. The receiver has the chunks of `base`, puts their bytes one after
/// the other, and applies `delta` to them.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ChunkDelta {
    /// The chunk.
    pub id: ChunkId,
    /// The length of its plain bytes, at most [`Content::CHUNK_LEN_MAX`].
    pub plain_len: u32,
    /// The chunks it is a delta to, at most [`BASE_CHUNKS_MAX`].
    pub base: Vec<ChunkId>,
    /// The steps, packed as a chunk is: their number as u32; then for each where it copies from in
    /// the base, how many bytes, and how many new bytes follow them, as u32 each; then all new bytes.
    pub steps: ChunkData,
}

/// Why a delta makes no chunk.
#[derive(Debug, thiserror::Error)]
pub enum DeltaError {
    /// Its steps are damaged.
    #[error(transparent)]
    Steps(#[from] UnpackError),
    /// Its steps do not make the stated length, or copy from outside the base.
    #[error("The delta of chunk {id} is malformed")]
    Malformed {
        /// The chunk.
        id: ChunkId,
    },
    /// What it makes is another chunk than its id says.
    #[error("The delta of chunk {id} makes {found}: it is damaged, or made for other bytes")]
    Id {
        /// What it should be.
        id: ChunkId,
        /// What it is.
        found: ChunkId,
    },
}

/// Returns a chunk as a delta to the base with these sums, when less than three quarters of its
/// bytes are new.
#[must_use]
pub fn make(id: ChunkId, plain: &[u8], base: &[ChunkId], sums: &BlockSums) -> Option<ChunkDelta> {
    let steps = steps(plain, sums)?;
    let new: usize = steps.iter().map(|step| step.new.len()).sum();
    let encoded_len = 4 + steps.len() * STEP_LEN + new;
    if encoded_len > plain.len() / 4 * 3 {
        return None;
    }
    let mut encoded = Vec::with_capacity(encoded_len);
    encoded.extend_from_slice(&u32::try_from(steps.len()).ok()?.to_be_bytes());
    for step in &steps {
        for number in [step.from, step.len, step.new.len()] {
            encoded.extend_from_slice(&u32::try_from(number).ok()?.to_be_bytes());
        }
    }
    for step in &steps {
        encoded.extend_from_slice(&plain[step.new.clone()]);
    }
    Some(ChunkDelta {
        id,
        plain_len: u32::try_from(plain.len()).ok()?,
        base: base.to_vec(),
        steps: packing::pack(ChunkId::of(&encoded), &encoded),
    })
}

/// Copies `len` bytes of the base from `from` on, then takes `new` of the chunk's own bytes.
struct Step {
    from: usize,
    len: usize,
    new: std::ops::Range<usize>,
}

/// Finds the base's blocks in the new bytes. None when the sums are no help.
fn steps(plain: &[u8], sums: &BlockSums) -> Option<Vec<Step>> {
    let (blocks, block_len) = (sums.blocks()?, sums.block_len as usize);
    if blocks == 0 || plain.len() < block_len {
        return None;
    }
    let entry = |index: usize| {
        let (weak, strong) = sums.sums[index * SUM_LEN..][..SUM_LEN].split_at(4);
        (weak, strong)
    };
    let mut by_weak: HashMap<[u8; 4], Vec<u32>> = HashMap::with_capacity(blocks);
    for index in 0..blocks {
        let mut weak = [0; 4];
        weak.copy_from_slice(entry(index).0);
        let same = by_weak.entry(weak).or_default();
        // Blocks of zeros and the like: the first few are as good as all.
        if same.len() < 8 {
            same.push(u32::try_from(index).ok()?);
        }
    }
    let mut steps = vec![Step { from: 0, len: 0, new: 0..0 }];
    let mut at = 0;
    let mut weak = Weak::of(&plain[..block_len]);
    loop {
        // The block after the one found last is tried first: then a copy goes on.
        let next = steps.last().map_or(0, |step| (step.from + step.len) / block_len);
        let is_here = |index: usize, hash: &[u8; 8]| index < blocks && entry(index).1 == hash;
        let found = by_weak.get(&weak.sum().to_be_bytes()).and_then(|same| {
            let hash = strong(&plain[at..at + block_len]);
            if is_here(next, &hash) {
                return Some(next);
            }
            same.iter().map(|index| *index as usize).find(|index| is_here(*index, &hash))
        });
        if let Some(index) = found {
            match steps.last_mut() {
                Some(last) if last.new.is_empty() && last.from + last.len == index * block_len => {
                    last.len += block_len;
                    last.new = at + block_len..at + block_len;
                }
                _ => steps.push(Step {
                    from: index * block_len,
                    len: block_len,
                    new: at + block_len..at + block_len,
                }),
            }
            at += block_len;
            if at + block_len > plain.len() {
                break;
            }
            weak = Weak::of(&plain[at..at + block_len]);
        } else {
            if at + block_len == plain.len() {
                break;
            }
            weak.roll(plain[at], plain[at + block_len]);
            at += 1;
            if let Some(last) = steps.last_mut() {
                last.new.end = at;
            }
        }
    }
    if let Some(last) = steps.last_mut() {
        last.new.end = plain.len();
    }
    Some(steps)
}

/// Returns the plain bytes of the chunk that a delta makes of its base's bytes, after checking that
/// they are what its id names. Takes no more memory than three times a chunk's length.
///
/// # Errors
/// When they are not.
pub fn apply(delta: &ChunkDelta, base: &[u8]) -> Result<Checked<'static>, DeltaError> {
    let id = delta.id;
    let malformed = || DeltaError::Malformed { id };
    if delta.plain_len == 0 || delta.plain_len > Content::CHUNK_LEN_MAX {
        return Err(malformed());
    }
    let steps = packing::unpack(&delta.steps)?;
    let (count, rest) = steps.split_first_chunk::<4>().ok_or_else(malformed)?;
    let table_len = (u32::from_be_bytes(*count) as usize).checked_mul(STEP_LEN);
    let (table, mut new) =
        table_len.and_then(|len| rest.split_at_checked(len)).ok_or_else(malformed)?;
    let mut plain = Vec::with_capacity(delta.plain_len as usize);
    let (numbers, _) = table.as_chunks::<4>();
    for step in numbers.chunks_exact(3) {
        let number = |index: usize| u32::from_be_bytes(step[index]) as usize;
        let from = base.get(number(0)..).and_then(|from| from.get(..number(1)));
        let (taken, left) = new.split_at_checked(number(2)).ok_or_else(malformed)?;
        let copied = from.ok_or_else(malformed)?;
        if plain.len() + copied.len() + taken.len() > delta.plain_len as usize {
            return Err(malformed());
        }
        plain.extend_from_slice(copied);
        plain.extend_from_slice(taken);
        new = left;
    }
    if plain.len() != delta.plain_len as usize || !new.is_empty() {
        return Err(malformed());
    }
    Checked::new(id, plain).map_err(|found| DeltaError::Id { id, found })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn noise(seed: u64, len: usize) -> Vec<u8> {
        let mut bytes = vec![0; len];
        blake3::Hasher::new().update(&seed.to_be_bytes()).finalize_xof().fill(&mut bytes);
        bytes
    }

    fn delta(base: &[u8], plain: &[u8]) -> Option<ChunkDelta> {
        make(ChunkId::of(plain), plain, &[ChunkId::of(base)], &BlockSums::of(base))
    }

    #[test]
    fn a_small_change_makes_a_small_delta_wherever_it_is() {
        let base = noise(1, 300_000);
        let mut overwritten = base.clone();
        overwritten[100_000..104_096].copy_from_slice(&noise(2, 4096));
        let inserted = [&base[..5], b"x", &base[5..]].concat();
        let removed = [&base[..200_000], &base[200_100..]].concat();
        let grown = [&base[..], &noise(3, 5000)].concat();
        let swapped = [&base[150_000..], &base[..150_000]].concat();
        let cases = [
            (overwritten, 4096 + 2 * 1024),
            (inserted, 2 * 1024),
            (removed, 2 * 1024),
            (grown, 5000 + 1024),
            (swapped, 3 * 1024),
            (base.clone(), 1024),
        ];
        for (plain, new_max) in cases {
            let delta = delta(&base, &plain).unwrap();
            let len = delta.steps.data.len();
            assert!(len < new_max + 200, "{len} for at most {new_max} new bytes");
            assert!(*apply(&delta, &base).unwrap() == plain);
        }
    }

    #[test]
    fn what_has_little_in_common_or_no_sums_gets_no_delta() {
        let base = noise(1, 300_000);
        assert_eq!(delta(&base, &noise(2, 300_000)), None);
        assert_eq!(delta(&base, b"short"), None);
        assert_eq!(delta(b"short", &base), None);
        let id = ChunkId::of(&base);
        for block_len in [0, 1, 511, 64 * 1024 + 1, u32::MAX] {
            let sums = BlockSums { block_len, ..BlockSums::of(&base) };
            assert_eq!(make(id, &base, &[], &sums), None, "blocks of {block_len}");
        }
        let cut = BlockSums { block_len: 1024, sums: vec![0; 17] };
        assert_eq!(make(id, &base, &[], &cut), None);
    }

    #[test]
    fn zeros_and_repetitions_take_no_time_and_come_out_right() {
        for (base, plain) in [
            (vec![0; 1 << 20], vec![0; (1 << 20) - 7]),
            (noise(1, 1024).repeat(1000), noise(1, 1024).repeat(900)),
            (b"ab".repeat(1 << 19), b"ba".repeat(1 << 19)),
        ] {
            let delta = delta(&base, &plain).unwrap();
            assert!(*apply(&delta, &base).unwrap() == plain);
        }
    }

    #[test]
    fn a_delta_to_other_bytes_or_a_damaged_one_makes_nothing() {
        let base = noise(1, 100_000);
        let mut plain = base.clone();
        plain[50_000] ^= 1;
        let good = delta(&base, &plain).unwrap();
        let mut other = base.clone();
        other[0] ^= 1;
        assert!(matches!(apply(&good, &other), Err(DeltaError::Id { .. })));
        assert!(matches!(apply(&good, &base[..50_000]), Err(DeltaError::Malformed { .. })));
        for plain_len in [0, 1, good.plain_len - 1, good.plain_len + 1, u32::MAX] {
            let lie = ChunkDelta { plain_len, ..good.clone() };
            assert!(matches!(apply(&lie, &base), Err(DeltaError::Malformed { .. })));
        }
        let encoded = packing::unpack(&good.steps).unwrap().into_vec();
        for at in 0..(4 + 3 * STEP_LEN).min(encoded.len()) {
            for value in [0, 1, 0x7f, 0xff] {
                let mut changed = encoded.clone();
                changed[at] = value;
                let steps = packing::pack(ChunkId::of(&changed), &changed);
                let lie = ChunkDelta { steps, ..good.clone() };
                if let Ok(made) = apply(&lie, &base) {
                    assert!(*made == plain);
                }
            }
        }
    }

    proptest! {
        #[test]
        fn any_edits_come_out_right(
            seed in 0_u64..1000,
            len in 1_usize..200_000,
            edits in prop::collection::vec((any::<prop::sample::Index>(), 0_usize..3000, 0_usize..3000), 0..6),
        ) {
            let base = noise(seed, len);
            let mut plain = base.clone();
            for (n, (at, gone, new)) in edits.into_iter().enumerate() {
                let at = at.index(plain.len() + 1);
                let end = (at + gone).min(plain.len());
                plain.splice(at..end, noise(n as u64, new));
            }
            if let Some(delta) = delta(&base, &plain) {
                prop_assert!(*apply(&delta, &base).unwrap() == plain);
            }
        }
    }
}
