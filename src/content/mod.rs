//! Bytes to chunks and back: where a file is cut, how a chunk is packed, and how chunks and lists
//! travel as the difference to what the other side has.
//!
//! Knows only `model`. Both ends, and every device, must come to the same result for the same
//! bytes: the definitions here are part of the protocol (`docs/protocol.md`) and never change.

pub mod chunker;
pub mod delta;
pub mod packing;
pub mod splice;

pub use chunker::{ChunkError, Chunked, Chunker};
pub use delta::{BlockSums, ChunkDelta, DeltaError};
pub use packing::{UnpackError, pack, unpack};
