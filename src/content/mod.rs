//! Bytes to chunks and back: where a file is cut, and how a chunk is packed.
//!
//! Knows only `model`. Both ends, and every device, must come to the same result for the same
//! bytes: the definitions here are part of the protocol (`docs/protocol.md`) and never change.

pub mod chunker;
pub mod packing;

pub use chunker::{ChunkError, Chunked, Chunker};
pub use packing::{UnpackError, pack, unpack};
