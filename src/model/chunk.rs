//! A chunk packed for its way over the wire and into a pack: `content::packing` makes and opens it.

use serde::{Deserialize, Serialize};

use super::ChunkId;

/// How a chunk's bytes are packed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "u8", into = "u8")]
pub enum Codec {
    /// As they are.
    Plain,
    /// One zstd frame.
    Zstd,
}

impl From<Codec> for u8 {
    fn from(codec: Codec) -> Self {
        match codec {
            Codec::Plain => 0,
            Codec::Zstd => 1,
        }
    }
}

impl TryFrom<u8> for Codec {
    type Error = String;

    fn try_from(number: u8) -> Result<Self, String> {
        match number {
            0 => Ok(Self::Plain),
            1 => Ok(Self::Zstd),
            unknown => Err(format!("unknown codec {unknown}")),
        }
    }
}

/// A chunk on its way. The receiver unpacks it, bounded by `plain_len`, and checks `id`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ChunkData {
    /// The chunk.
    pub id: ChunkId,
    /// The length of its plain bytes, at most [`super::Content::CHUNK_LEN_MAX`].
    pub plain_len: u32,
    /// How `data` is packed.
    pub codec: Codec,
    /// The packed bytes.
    #[serde(with = "serde_bytes")]
    pub data: Vec<u8>,
}
