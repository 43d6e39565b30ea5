//! What a file contains: nothing, one chunk, or a list of extents.
//!
//! A file of one chunk, which most files are, names the chunk itself, so neither side keeps a list
//! for it. The three cases are distinct types of reference, so a list's hash can never be taken for
//! a chunk's. The division of bytes into extents is a function of the bytes alone (see
//! `content::chunker`): equal files have equal contents, on every device.

use serde::{Deserialize, Deserializer, Serialize};

use super::{ChunkId, ListId};

/// The content of a file, as carried in its node.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize)]
pub enum Content {
    /// No bytes.
    Empty,
    /// One chunk with all the bytes; `len` is its length, 1 to [`Content::CHUNK_LEN_MAX`].
    Chunk {
        /// The chunk.
        id: ChunkId,
        /// The file's length in bytes.
        len: u32,
    },
    /// Several extents, or holes; `len` is the file's length.
    List {
        /// The list.
        id: ListId,
        /// The file's length in bytes.
        len: u64,
    },
}

impl Content {
    /// The longest chunk in bytes. Chunks of the chunker are never longer.
    pub const CHUNK_LEN_MAX: u32 = 1024 * 1024;
    /// The longest file in bytes: what a Linux file offset can express.
    pub const LEN_MAX: u64 = i64::MAX as u64;

    /// Returns the file's length in bytes.
    #[must_use]
    pub const fn len(&self) -> u64 {
        match self {
            Self::Empty => 0,
            Self::Chunk { len, .. } => *len as u64,
            Self::List { len, .. } => *len,
        }
    }

    /// Returns the content list that a larger file has.
    #[must_use]
    pub const fn list(&self) -> Option<ListId> {
        match self {
            Self::List { id, .. } => Some(*id),
            Self::Empty | Self::Chunk { .. } => None,
        }
    }

    /// Returns whether the file has no bytes.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        matches!(self, Self::Empty)
    }

    /// Returns whether the lengths are within their limits.
    #[must_use]
    pub const fn is_legal(&self) -> bool {
        match self {
            Self::Empty => true,
            Self::Chunk { len, .. } => *len > 0 && *len <= Self::CHUNK_LEN_MAX,
            Self::List { len, .. } => *len > 0 && *len <= Self::LEN_MAX,
        }
    }
}

impl<'de> Deserialize<'de> for Content {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        #[derive(Deserialize)]
        #[serde(rename = "Content")]
        enum Raw {
            Empty,
            Chunk { id: ChunkId, len: u32 },
            List { id: ListId, len: u64 },
        }
        let content = match Raw::deserialize(deserializer)? {
            Raw::Empty => Self::Empty,
            Raw::Chunk { id, len } => Self::Chunk { id, len },
            Raw::List { id, len } => Self::List { id, len },
        };
        if content.is_legal() {
            Ok(content)
        } else {
            Err(serde::de::Error::custom("length of a content out of range"))
        }
    }
}

/// One run of a file's bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Extent {
    /// The bytes of one chunk, 1 to [`Content::CHUNK_LEN_MAX`] of them.
    Chunk {
        /// The chunk.
        id: ChunkId,
        /// Its length in bytes.
        len: u32,
    },
    /// Zeros that need not be stored.
    Hole {
        /// How many, at least 1.
        len: u64,
    },
}

impl Extent {
    /// Returns the number of bytes of the file this extent stands for.
    #[must_use]
    pub const fn len(&self) -> u64 {
        match self {
            Self::Chunk { len, .. } => *len as u64,
            Self::Hole { len } => *len,
        }
    }

    /// Always false: an extent has bytes.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        false
    }

    const TAG_CHUNK: u8 = 0;
    const TAG_HOLE: u8 = 1;

    /// Returns how many bytes the encoding takes.
    #[must_use]
    pub const fn encoded_len(&self) -> usize {
        match self {
            Self::Chunk { .. } => 1 + 4 + 32,
            Self::Hole { .. } => 1 + 8,
        }
    }

    /// Appends the encoding: a tag byte, then for a chunk its length as u32 and its id, for a hole
    /// its length as u64, all big-endian.
    pub fn encode(&self, bytes: &mut Vec<u8>) {
        match self {
            Self::Chunk { id, len } => {
                bytes.push(Self::TAG_CHUNK);
                bytes.extend_from_slice(&len.to_be_bytes());
                bytes.extend_from_slice(id.as_bytes());
            }
            Self::Hole { len } => {
                bytes.push(Self::TAG_HOLE);
                bytes.extend_from_slice(&len.to_be_bytes());
            }
        }
    }

    /// Reads one extent off the front of its encoding, and returns what follows. Whether its length
    /// is legal, [`ContentList::new`] says.
    ///
    /// # Errors
    /// When the bytes end inside the extent, or it has an unknown tag.
    pub fn decode(bytes: &[u8]) -> Result<(Self, &[u8]), ContentListError> {
        let truncated = ContentListError::Truncated;
        let (&tag, rest) = bytes.split_first().ok_or(truncated)?;
        match tag {
            Self::TAG_CHUNK => {
                let (len, rest) = rest.split_first_chunk::<4>().ok_or(truncated)?;
                let (id, rest) = rest.split_first_chunk::<32>().ok_or(truncated)?;
                let (id, len) = (ChunkId::from_bytes(*id), u32::from_be_bytes(*len));
                Ok((Self::Chunk { id, len }, rest))
            }
            Self::TAG_HOLE => {
                let (len, rest) = rest.split_first_chunk::<8>().ok_or(truncated)?;
                Ok((Self::Hole { len: u64::from_be_bytes(*len) }, rest))
            }
            unknown => Err(ContentListError::UnknownTag(unknown)),
        }
    }
}

/// Why some bytes are not a content list.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum ContentListError {
    /// The encoding ends inside an extent.
    #[error("A content list ends inside an extent")]
    Truncated,
    /// An extent has an unknown tag.
    #[error("A content list has an extent of unknown kind {0}")]
    UnknownTag(u8),
    /// An extent's length, or their sum, is out of range.
    #[error("A content list has an extent of an impossible length")]
    Length,
    /// The list could be a plainer content (empty, or a single chunk), or a hole follows a hole.
    #[error("A content list of this shape must not be a list")]
    NotCanonical,
}

/// The extents of a file in order, and nothing but legal ones.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ContentList {
    extents: Vec<Extent>,
    len: u64,
}

impl ContentList {
    const KEY: &'static str = "picloud 2026 content list v1";

    /// Checks and wraps extents.
    ///
    /// # Errors
    /// When a length is out of range, when the extents need no list, or when two holes could be one.
    pub fn new(extents: Vec<Extent>) -> Result<Self, ContentListError> {
        let mut len = 0_u64;
        for extent in &extents {
            let legal = match extent {
                Extent::Chunk { len, .. } => *len > 0 && *len <= Content::CHUNK_LEN_MAX,
                Extent::Hole { len } => *len > 0,
            };
            len = len
                .checked_add(extent.len())
                .filter(|len| legal && *len <= Content::LEN_MAX)
                .ok_or(ContentListError::Length)?;
        }
        let holes_meet =
            |pair: &[Extent; 2]| matches!(pair, [Extent::Hole { .. }, Extent::Hole { .. }]);
        if matches!(extents.as_slice(), [] | [Extent::Chunk { .. }])
            || extents.array_windows().any(holes_meet)
        {
            return Err(ContentListError::NotCanonical);
        }
        Ok(Self { extents, len })
    }

    /// Returns the extents in the order of the file.
    #[must_use]
    pub fn extents(&self) -> &[Extent] {
        &self.extents
    }

    /// Returns the file's length in bytes.
    #[must_use]
    pub const fn len(&self) -> u64 {
        self.len
    }

    /// Always false: an empty file has no list.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        false
    }

    /// Returns how many bytes the canonical encoding takes.
    #[must_use]
    pub fn encoded_len(&self) -> usize {
        self.extents.iter().map(Extent::encoded_len).sum()
    }

    /// Returns the canonical encoding: the extents' own, one after the other.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(self.encoded_len());
        for extent in &self.extents {
            extent.encode(&mut bytes);
        }
        bytes
    }

    /// Reads the canonical encoding back.
    ///
    /// # Errors
    /// When `bytes` is not what [`ContentList::encode`] writes for some legal list.
    pub fn decode(mut bytes: &[u8]) -> Result<Self, ContentListError> {
        // Counted first, so that a list takes the memory of its extents and no more; refused early
        // when a hole follows a hole, which is the only way to have many extents in few bytes.
        let mut extents = Vec::with_capacity(Self::count(bytes)?);
        while !bytes.is_empty() {
            let (extent, rest) = Extent::decode(bytes)?;
            extents.push(extent);
            bytes = rest;
        }
        Self::new(extents)
    }

    /// Returns how many extents an encoding has.
    fn count(mut bytes: &[u8]) -> Result<usize, ContentListError> {
        let (mut count, mut last_is_hole) = (0, false);
        while !bytes.is_empty() {
            let (extent, rest) = Extent::decode(bytes)?;
            let is_hole = matches!(extent, Extent::Hole { .. });
            if is_hole && last_is_hole {
                return Err(ContentListError::NotCanonical);
            }
            (count, last_is_hole, bytes) = (count + 1, is_hole, rest);
        }
        Ok(count)
    }

    /// Returns the id of this list.
    #[must_use]
    pub fn id(&self) -> ListId {
        Self::id_of_encoded(&self.encode())
    }

    /// Returns the id of the list with this canonical encoding.
    #[must_use]
    pub fn id_of_encoded(encoded: &[u8]) -> ListId {
        ListId::from_bytes(blake3::derive_key(Self::KEY, encoded))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn chunk(bytes: &[u8]) -> Extent {
        Extent::Chunk { id: ChunkId::of(bytes), len: u32::try_from(bytes.len()).unwrap() }
    }

    #[test]
    fn a_list_survives_its_encoding() {
        let list = ContentList::new(vec![chunk(b"a"), Extent::Hole { len: 1 << 40 }]).unwrap();
        assert_eq!(ContentList::decode(&list.encode()).unwrap(), list);
        assert_eq!(list.len(), (1 << 40) + 1);
        for cut in 1..list.encode().len() {
            assert!(ContentList::decode(&list.encode()[..cut]).is_err(), "cut at {cut}");
        }
    }

    #[test]
    fn what_needs_no_list_is_none() {
        assert_eq!(ContentList::new(vec![]), Err(ContentListError::NotCanonical));
        assert_eq!(ContentList::new(vec![chunk(b"a")]), Err(ContentListError::NotCanonical));
        assert!(ContentList::new(vec![Extent::Hole { len: 1 }]).is_ok());
        let huge = Extent::Hole { len: u64::MAX };
        assert_eq!(ContentList::new(vec![huge, huge]), Err(ContentListError::Length));
    }

    /// Nine bytes per hole, forty in memory: 64 MiB of holes took half a gigabyte.
    #[test]
    fn many_holes_in_few_bytes_are_refused() {
        let hole = Extent::Hole { len: 1 };
        assert_eq!(ContentList::new(vec![hole, hole]), Err(ContentListError::NotCanonical));
        let bytes = b"\x01\0\0\0\0\0\0\0\x01".repeat(2);
        assert_eq!(ContentList::decode(&bytes), Err(ContentListError::NotCanonical));
        let dense = ContentList::new([chunk(b"a"), hole].repeat(1000)).unwrap();
        assert_eq!(ContentList::decode(&dense.encode()).unwrap().extents.capacity(), 2000);
    }
}
