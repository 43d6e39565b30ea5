//! A fast hash for maps by node id. Ids come from other devices, so it is keyed: nobody can choose ids that
//! collide here.

use std::hash::{BuildHasher, Hasher};

/// Builds the hasher of one map: multiplies and folds, with two keys of its own.
#[derive(Clone, Copy)]
pub struct NodeIdHash([u64; 2]);

impl std::fmt::Debug for NodeIdHash {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("NodeIdHash")
    }
}

impl Default for NodeIdHash {
    fn default() -> Self {
        let key = || std::hash::RandomState::new().build_hasher().finish();
        Self([key(), key() | 1])
    }
}

impl BuildHasher for NodeIdHash {
    type Hasher = NodeIdHasher;

    fn build_hasher(&self) -> NodeIdHasher {
        NodeIdHasher { key: self.0, hash: 0 }
    }
}

/// The hash of one id under way.
#[derive(Debug)]
pub struct NodeIdHasher {
    key: [u64; 2],
    hash: u64,
}

impl Hasher for NodeIdHasher {
    fn write(&mut self, bytes: &[u8]) {
        let (words, _) = bytes.as_chunks::<8>();
        for word in words {
            let word = u64::from_be_bytes(*word) ^ self.hash ^ self.key[0];
            let product = u128::from(word) * u128::from(self.key[1]);
            #[expect(clippy::cast_possible_truncation, reason = "both halves are folded")]
            let folded = product as u64 ^ (product >> 64) as u64;
            self.hash = folded;
        }
    }

    /// The length in front of the bytes: always 16.
    fn write_usize(&mut self, _: usize) {}

    fn finish(&self) -> u64 {
        self.hash
    }
}
