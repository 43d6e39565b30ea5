//! Bytes of a chunk that were checked against its id, so that whoever gets them need not do it again.

use std::borrow::Cow;
use std::ops::Deref;

use super::ChunkId;

/// The bytes of a chunk, known to be those that its id names.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Checked<'bytes> {
    id: ChunkId,
    bytes: Cow<'bytes, [u8]>,
}

impl<'bytes> Checked<'bytes> {
    /// Checks bytes against an id.
    ///
    /// # Errors
    /// The id whose bytes these are, when that is another.
    pub fn new(id: ChunkId, bytes: impl Into<Cow<'bytes, [u8]>>) -> Result<Self, ChunkId> {
        let bytes = bytes.into();
        let found = ChunkId::of(&bytes);
        if found == id { Ok(Self { id, bytes }) } else { Err(found) }
    }

    /// Names bytes by what they are.
    #[must_use]
    pub fn of(bytes: impl Into<Cow<'bytes, [u8]>>) -> Self {
        let bytes = bytes.into();
        Self { id: ChunkId::of(&bytes), bytes }
    }

    /// Returns the chunk's id.
    #[must_use]
    pub const fn id(&self) -> ChunkId {
        self.id
    }

    /// Returns the same with bytes of its own.
    #[must_use]
    pub fn into_owned(self) -> Checked<'static> {
        Checked { id: self.id, bytes: Cow::Owned(self.bytes.into_owned()) }
    }

    /// Returns the bytes, in a vector of their own.
    #[must_use]
    pub fn into_vec(self) -> Vec<u8> {
        self.bytes.into_owned()
    }
}

impl Deref for Checked<'_> {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.bytes
    }
}
