//! How a chunk travels and lies in a pack: compressed where that pays, and checked when it is
//! opened.
//!
//! zstd at level 1, kept only when it saves at least 3 %: what does not shrink (photos, films,
//! archives) would cost time on every reading for nothing. Most of that is told by a sample of its
//! bytes, before any time goes into compressing it; the idea is that of Btrfs (`fs/btrfs/compression.c`,
//! `btrfs_compress_heuristic`). A packed chunk comes from a peer, so opening it never takes more memory
//! than its stated length, and never trusts its id.

use std::borrow::Cow;
use std::cell::RefCell;
use std::io;

use zstd::bulk::{Compressor, Decompressor};

use crate::model::{Checked, ChunkData, ChunkId, Codec, Content};

const LEVEL: i32 = 1;

/// Shorter chunks are compressed without a look at a sample.
const SAMPLED_FROM: usize = 4096;

/// The sample is so many bytes at each of at most so many places.
const SAMPLE_RUN: usize = 16;
const SAMPLE_PLACES: usize = 256;

/// Why a packed chunk is not what it says.
#[derive(Debug, thiserror::Error)]
pub enum UnpackError {
    /// Its stated length is not that of a chunk, or its packed bytes are more than that.
    #[error("Chunk {id} has an impossible length ({plain_len} bytes, {packed_len} packed)")]
    Length {
        /// The chunk.
        id: ChunkId,
        /// The stated length.
        plain_len: u32,
        /// The length of the packed bytes.
        packed_len: usize,
    },
    /// It cannot be decompressed, to no more than the stated length.
    #[error("Chunk {id} cannot be decompressed to {plain_len} bytes")]
    Zstd {
        /// The chunk.
        id: ChunkId,
        /// The stated length.
        plain_len: u32,
        /// What zstd says.
        source: io::Error,
    },
    /// Its bytes are others than its id says.
    #[error("Chunk {id} is damaged: its bytes are those of {found}")]
    Id {
        /// What it should be.
        id: ChunkId,
        /// What it is.
        found: ChunkId,
    },
}

thread_local! {
    /// A context is some hundred kilobytes, and making one takes longer than packing a small chunk.
    static COMPRESSOR: RefCell<Option<Compressor<'static>>> = const { RefCell::new(None) };
    static DECOMPRESSOR: RefCell<Option<Decompressor<'static>>> = const { RefCell::new(None) };
    static SCRATCH: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
}

/// Packs the bytes of a chunk, 1 to [`Content::CHUNK_LEN_MAX`] of them, whose id is known. Given a vector, it
/// goes on in that when the bytes stay plain.
#[must_use]
pub fn pack<'plain>(id: ChunkId, plain: impl Into<Cow<'plain, [u8]>>) -> ChunkData {
    let plain = plain.into();
    debug_assert!(!plain.is_empty() && plain.len() <= Content::CHUNK_LEN_MAX as usize);
    let plain_len = u32::try_from(plain.len()).unwrap_or(u32::MAX);
    let (codec, data) = match compress(&plain) {
        Some(packed) => (Codec::Zstd, packed),
        None => (Codec::Plain, plain.into_owned()),
    };
    ChunkData { id, plain_len, codec, data }
}

/// Returns whether a sample of the bytes has all values equally often, nearly, as what is compressed or
/// encrypted already has. What repeats itself at a distance may pass for that, which costs a few bytes.
fn looks_random(plain: &[u8]) -> bool {
    if plain.len() < SAMPLED_FROM {
        return false;
    }
    let places = (plain.len() / 128).min(SAMPLE_PLACES);
    let mut counts = [0_u32; 256];
    for run in plain.chunks_exact(plain.len() / places).take(places) {
        for byte in &run[..SAMPLE_RUN] {
            counts[usize::from(*byte)] += 1;
        }
    }
    // Pairs of equal bytes: of random ones one pair in 256 is, give or take 3 % with the smallest sample.
    let pairs = |count: u64| count * (count - 1) / 2;
    let all = (places * SAMPLE_RUN) as u64;
    let equal: u64 =
        counts.iter().filter(|count| **count > 0).map(|count| pairs((*count).into())).sum();
    equal * 256 * 100 <= pairs(all) * 108
}

/// Returns the compressed bytes, unless they are hardly fewer or compressing fails.
fn compress(plain: &[u8]) -> Option<Vec<u8>> {
    if looks_random(plain) {
        return None;
    }
    COMPRESSOR.with_borrow_mut(|slot| {
        let compressor = match slot {
            Some(compressor) => compressor,
            None => slot.insert(Compressor::new(LEVEL).ok()?),
        };
        SCRATCH.with_borrow_mut(|scratch| {
            // No room for more than is worth keeping: zstd gives up when it is used up.
            let most = plain.len() - plain.len().div_ceil(33);
            if scratch.len() < most {
                scratch.resize(most, 0);
            }
            let len = compressor.compress_to_buffer(plain, &mut scratch[..most]).ok()?;
            Some(scratch[..len].to_vec())
        })
    })
}

/// Returns the plain bytes of a packed chunk, after checking that they are what its id names.
///
/// # Errors
/// When they are not.
pub fn unpack(chunk: &ChunkData) -> Result<Checked<'_>, UnpackError> {
    let (id, plain_len) = (chunk.id, chunk.plain_len);
    let plain_len_usize = plain_len as usize;
    let packed_len = chunk.data.len();
    let is_possible = match chunk.codec {
        Codec::Plain => packed_len == plain_len_usize,
        Codec::Zstd => packed_len < plain_len_usize,
    };
    if plain_len == 0 || plain_len > Content::CHUNK_LEN_MAX || !is_possible {
        return Err(UnpackError::Length { id, plain_len, packed_len });
    }
    let plain = match chunk.codec {
        Codec::Plain => Cow::Borrowed(chunk.data.as_slice()),
        Codec::Zstd => {
            let failed = |source| UnpackError::Zstd { id, plain_len, source };
            let plain = decompress(&chunk.data, plain_len_usize).map_err(failed)?;
            if plain.len() != plain_len_usize {
                return Err(failed(io::ErrorKind::UnexpectedEof.into()));
            }
            Cow::Owned(plain)
        }
    };
    Checked::new(id, plain).map_err(|found| UnpackError::Id { id, found })
}

fn decompress(packed: &[u8], plain_len: usize) -> io::Result<Vec<u8>> {
    DECOMPRESSOR.with_borrow_mut(|slot| {
        let decompressor = match slot {
            Some(decompressor) => decompressor,
            None => slot.insert(Decompressor::new()?),
        };
        // Never grown: zstd fails when this is not enough.
        let mut plain = Vec::with_capacity(plain_len);
        decompressor.decompress_to_buffer(packed, &mut plain)?;
        Ok(plain)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn noise(len: usize) -> Vec<u8> {
        let mut bytes = vec![0; len];
        blake3::Hasher::new().finalize_xof().fill(&mut bytes);
        bytes
    }

    #[test]
    fn a_chunk_survives_and_is_compressed_only_where_that_pays() {
        let text = b"the same again and again, ".repeat(1000);
        let mut mostly_noise = noise(100_000);
        mostly_noise[..2_000].fill(0);
        let cases = [
            (text, Codec::Zstd),
            (noise(100_000), Codec::Plain),
            (mostly_noise, Codec::Plain),
            (vec![7], Codec::Plain),
            (vec![0; 1 << 20], Codec::Zstd),
        ];
        for (plain, codec) in cases {
            let packed = pack(ChunkId::of(&plain), &plain);
            assert_eq!(packed.codec, codec, "{} bytes", plain.len());
            assert!(*unpack(&packed).unwrap() == plain);
        }
    }

    #[test]
    fn a_sample_tells_what_would_not_shrink_and_nothing_else() {
        for len in [4096, 8192, 100_000, 1 << 20, 1_777_777] {
            let bytes = noise(len);
            let runs = (0..50).filter(|&skip| looks_random(&bytes[skip..])).count();
            let is_short = len < SAMPLED_FROM + 50;
            assert!(is_short || runs >= 45, "{len}: {runs} of 50");
            // A tenth that shrinks well is worth the try, wherever it is.
            for at in 0..10 {
                let mut mixed = bytes.clone();
                for byte in &mut mixed[len / 10 * at..len / 10 * (at + 1)] {
                    *byte = b"etaoin shrdlu"[usize::from(*byte) % 13];
                }
                assert!(!looks_random(&mixed), "{len} at {at}");
            }
            let base64: Vec<u8> = bytes.iter().map(|byte| b'0' + byte % 64).collect();
            assert!(!looks_random(&base64));
        }
    }

    #[test]
    fn what_is_damaged_or_lies_is_refused() {
        let plain = b"some text, some text, some text, ".repeat(100);
        let good = pack(ChunkId::of(&plain), &plain);
        assert_eq!(good.codec, Codec::Zstd);
        let other_id = ChunkData { id: ChunkId::of(b"other"), ..good.clone() };
        assert!(matches!(unpack(&other_id), Err(UnpackError::Id { .. })));
        for plain_len in [0, 1, good.plain_len - 1, good.plain_len + 1, u32::MAX] {
            let lie = ChunkData { plain_len, ..good.clone() };
            assert!(unpack(&lie).is_err(), "{plain_len}");
        }
        for at in 0..good.data.len() {
            let mut flipped = good.clone();
            flipped.data[at] ^= 1;
            // Where zstd has bits that say nothing the bytes may still come out; never others.
            if let Ok(bytes) = unpack(&flipped) {
                assert!(*bytes == plain);
            }
        }
        for len in 0..good.data.len() {
            let mut short = good.clone();
            short.data.truncate(len);
            assert!(unpack(&short).is_err(), "cut at {len}");
        }
        let plain_lie = ChunkData { codec: Codec::Plain, ..good };
        assert!(matches!(unpack(&plain_lie), Err(UnpackError::Length { .. })));
    }

    #[test]
    fn a_bomb_gets_no_more_room_than_it_states() {
        let huge = vec![0; 64 << 20];
        let bomb = ChunkData {
            id: ChunkId::of(b"x"),
            plain_len: Content::CHUNK_LEN_MAX,
            codec: Codec::Zstd,
            data: zstd::bulk::compress(&huge, 1).unwrap(),
        };
        assert!(matches!(unpack(&bomb), Err(UnpackError::Zstd { .. })));
    }
}
