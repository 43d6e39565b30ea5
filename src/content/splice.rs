//! A content list as the difference to one the other side has, and which old chunks a new one is
//! probably made of.
//!
//! A large file is thousands of chunks, an edit changes one or two of them: the splice is a few dozen
//! bytes where the list is a hundred thousand. What a splice makes is checked against the list's id
//! by whoever applies it.

use std::collections::HashMap;

use super::delta::BASE_CHUNKS_MAX;
use crate::model::{ChunkId, ContentList, ContentListError, Extent};

/// The longest encoded list that is spliced, or spliced from: a file of about 28 GiB. A longer one
/// travels whole, so that two of them need never be in memory at a time.
pub const SPLICED_LEN_MAX: usize = 4 * 1024 * 1024;

/// How far before or behind its own place in an old version the bytes of a chunk are looked for.
const SHIFT_MAX: u64 = 256 * 1024;

const TAG_COPY: u8 = 2;
const PIECE_LEN: usize = 1 + 4 + 4;

/// Why a splice makes no list.
#[derive(Debug, thiserror::Error)]
pub enum SpliceError {
    /// It ends inside a piece, or takes extents that the old list does not have.
    #[error("A splice of a content list is malformed")]
    Malformed,
    /// It would make a longer list than is spliced.
    #[error("A splice makes a content list of more than {SPLICED_LEN_MAX} bytes")]
    TooLong,
    /// What it makes is no content list.
    #[error(transparent)]
    List(#[from] ContentListError),
}

/// A run of a new list.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Run {
    /// So many extents of the old list, from this index on.
    Old { from: usize, count: usize },
    /// Extents of its own, by their indexes.
    New(std::ops::Range<usize>),
}

/// Finds the old list's extents in the new one: in one pass, going on with a run as long as it goes.
fn runs(old: &[Extent], new: &[Extent]) -> Vec<Run> {
    let mut places: HashMap<&Extent, usize> = HashMap::with_capacity(old.len());
    for (index, extent) in old.iter().enumerate() {
        places.entry(extent).or_insert(index);
    }
    let mut runs: Vec<Run> = Vec::new();
    for (index, extent) in new.iter().enumerate() {
        match runs.last_mut() {
            Some(Run::Old { from, count }) if old.get(*from + *count) == Some(extent) => {
                *count += 1;
                continue;
            }
            _ => {}
        }
        match (places.get(extent), runs.last_mut()) {
            (Some(from), _) => runs.push(Run::Old { from: *from, count: 1 }),
            (None, Some(Run::New(run))) => run.end = index + 1,
            (None, _) => runs.push(Run::New(index..index + 1)),
        }
    }
    runs
}

/// Returns the splice that makes `new` of `old`, unless it is hardly shorter than `new` itself or
/// one of them is too long.
///
/// Pieces follow each other: an extent as [`ContentList::encode`] writes it, or tag 2, the index of
/// the first extent to take from the old list, and how many, as u32 each, big-endian.
#[must_use]
pub fn splice(old: &ContentList, new: &ContentList) -> Option<Vec<u8>> {
    if !may_be_spliced(old) || !may_be_spliced(new) {
        return None;
    }
    let mut bytes = Vec::new();
    for run in runs(old.extents(), new.extents()) {
        match run {
            Run::Old { from, count } => {
                bytes.push(TAG_COPY);
                for number in [from, count] {
                    bytes.extend_from_slice(&u32::try_from(number).ok()?.to_be_bytes());
                }
            }
            Run::New(run) => {
                for extent in &new.extents()[run] {
                    extent.encode(&mut bytes);
                }
            }
        }
    }
    (bytes.len() < new.encoded_len() / 4 * 3).then_some(bytes)
}

/// Returns whether a list is short enough to be spliced, or spliced from.
#[must_use]
pub fn may_be_spliced(list: &ContentList) -> bool {
    list.encoded_len() <= SPLICED_LEN_MAX
}

/// Returns the list that a splice makes of `old`.
///
/// # Errors
/// When it makes none, or one longer than [`SPLICED_LEN_MAX`].
pub fn unsplice(old: &ContentList, mut bytes: &[u8]) -> Result<ContentList, SpliceError> {
    let mut extents = Vec::new();
    let mut len = 0;
    while let Some(tag) = bytes.first() {
        let from = extents.len();
        if *tag == TAG_COPY {
            let piece = bytes.get(1..PIECE_LEN).ok_or(SpliceError::Malformed)?;
            let (numbers, _) = piece.as_chunks::<4>();
            let number = |index: usize| u32::from_be_bytes(numbers[index]) as usize;
            let taken = old.extents().get(number(0)..).and_then(|rest| rest.get(..number(1)));
            extents.extend_from_slice(taken.ok_or(SpliceError::Malformed)?);
            bytes = &bytes[PIECE_LEN..];
        } else {
            let (extent, rest) = Extent::decode(bytes)?;
            extents.push(extent);
            bytes = rest;
        }
        len += extents[from..].iter().map(Extent::encoded_len).sum::<usize>();
        if len > SPLICED_LEN_MAX {
            return Err(SpliceError::TooLong);
        }
    }
    Ok(ContentList::new(extents)?)
}

/// A chunk of a new version that the old one does not have.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NewChunk {
    /// Where it is in the new version.
    pub offset: u64,
    /// The chunk.
    pub id: ChunkId,
    /// Its length.
    pub len: u32,
    /// Chunks of the old version, one after the other there, that stand about where it does now: at
    /// most [`BASE_CHUNKS_MAX`]; none when nothing does.
    pub base: Vec<ChunkId>,
}

/// Returns the chunks of `new` that `old` does not have, each once.
#[must_use]
pub fn new_chunks(old: &[Extent], new: &[Extent]) -> Vec<NewChunk> {
    let runs = runs(old, new);
    let mut offset = 0;
    let mut found: Vec<NewChunk> = Vec::new();
    let mut seen = std::collections::HashSet::new();
    // Where the old version goes on after what was taken of it last.
    let mut old_from = 0;
    for (number, run) in runs.iter().enumerate() {
        match run {
            Run::Old { from, count } => {
                offset += old[*from..from + count].iter().map(Extent::len).sum::<u64>();
                old_from = from + count;
            }
            Run::New(run) => {
                let old_upto = match runs.get(number + 1) {
                    Some(Run::Old { from, .. }) if *from >= old_from => *from,
                    _ => old.len(),
                };
                let gap = &old[old_from..old_upto];
                let mut within = 0;
                for extent in &new[run.clone()] {
                    if let Extent::Chunk { id, len } = extent
                        && seen.insert(*id)
                    {
                        let base = standing_at(gap, within, u64::from(*len));
                        found.push(NewChunk { offset, id: *id, len: *len, base });
                    }
                    offset += extent.len();
                    within += extent.len();
                }
            }
        }
    }
    found
}

/// Returns the chunks of a gap that these bytes of it may be made of: those that stand within
/// [`SHIFT_MAX`] of them, or all of a small gap, so that what is in it has one base in common.
fn standing_at(gap: &[Extent], from: u64, len: u64) -> Vec<ChunkId> {
    let is_small = gap.len() <= BASE_CHUNKS_MAX;
    let mut base = Vec::new();
    let mut is_near = false;
    let mut offset = 0;
    for extent in gap {
        let end = offset + extent.len();
        let is_here = end + SHIFT_MAX > from && offset < from + len + SHIFT_MAX;
        is_near |= is_here;
        if let Extent::Chunk { id, .. } = extent
            && (is_here || is_small)
            && base.len() < BASE_CHUNKS_MAX
        {
            base.push(*id);
        }
        offset = end;
    }
    if is_near { base } else { Vec::new() }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn chunk(number: u32) -> Extent {
        Extent::Chunk { id: ChunkId::of(&number.to_be_bytes()), len: 1000 * (1 + number % 400) }
    }

    fn list(numbers: impl IntoIterator<Item = u32>) -> ContentList {
        ContentList::new(numbers.into_iter().map(chunk).collect()).unwrap()
    }

    #[test]
    fn an_edit_of_a_large_file_is_a_few_bytes() {
        let old = list(0..3000);
        let edited = list((0..1500).chain([9000, 9001]).chain(1502..3000));
        let bytes = splice(&old, &edited).unwrap();
        assert_eq!(bytes.len(), 2 * PIECE_LEN + 2 * 37);
        assert_eq!(unsplice(&old, &bytes).unwrap(), edited);
        assert_eq!(splice(&old, &list(5000..8000)), None, "nothing in common");
        let new = new_chunks(old.extents(), edited.extents());
        assert_eq!(new.len(), 2);
        let ids = |numbers: [u32; 2]| numbers.map(|n| ChunkId::of(&n.to_be_bytes())).to_vec();
        assert_eq!(new[0].base, ids([1500, 1501]));
        let offset: u64 = (0..1500).map(|n| chunk(n).len()).sum();
        assert_eq!((new[0].offset, new[0].id), (offset, ChunkId::of(&9000_u32.to_be_bytes())));
    }

    #[test]
    fn bases_are_bounded_and_near() {
        let old = list(0..2000);
        let all_new = list(10_000..12_000);
        for (index, new) in new_chunks(old.extents(), all_new.extents()).iter().enumerate() {
            assert!(new.base.len() <= BASE_CHUNKS_MAX && !new.base.is_empty(), "{index}");
        }
        let grown = list((0..2000).chain(5000..7000));
        assert!(new_chunks(old.extents(), grown.extents()).iter().all(|new| new.base.is_empty()));
    }

    #[test]
    fn a_splice_that_lies_makes_nothing() {
        let old = list(0..10);
        let piece = |from: u32, count: u32| {
            [&[TAG_COPY][..], &from.to_be_bytes(), &count.to_be_bytes()].concat()
        };
        for bytes in
            [piece(0, 11), piece(11, 0), piece(u32::MAX, u32::MAX), piece(0, 5)[..8].into()]
        {
            assert!(matches!(unsplice(&old, &bytes), Err(SpliceError::Malformed)), "{bytes:?}");
        }
        assert!(matches!(unsplice(&old, &[9]), Err(SpliceError::List(_))));
        assert!(matches!(unsplice(&old, &[]), Err(SpliceError::List(_))));
        let bomb = piece(0, 10).repeat(1_000_000);
        assert!(matches!(unsplice(&old, &bomb), Err(SpliceError::TooLong)));
    }

    proptest! {
        #[test]
        fn any_two_lists_come_out_right(
            old in prop::collection::vec(0_u32..30, 2..60),
            new in prop::collection::vec(0_u32..40, 2..60),
        ) {
            let (old, new) = (list(old), list(new));
            if let Some(bytes) = splice(&old, &new) {
                prop_assert_eq!(unsplice(&old, &bytes).unwrap(), new.clone());
            }
            let lacking: std::collections::HashSet<_> =
                new.extents().iter().filter(|extent| !old.extents().contains(extent)).collect();
            let found = new_chunks(old.extents(), new.extents());
            prop_assert_eq!(found.len(), lacking.len());
            for chunk in found {
                let mut offset = 0;
                let at = new.extents().iter().find(|extent| {
                    let is_here = offset == chunk.offset;
                    offset += extent.len();
                    is_here
                });
                prop_assert_eq!(at, Some(&Extent::Chunk { id: chunk.id, len: chunk.len }));
            }
        }
    }
}
