//! A drive's digest: an order-independent hash over its live nodes, kept by one step per change.
//!
//! A multiset hash by addition (after Clarke et al., "Incremental Multiset Hash Functions",
//! ASIACRYPT 2003): each live node, with its rev, is hashed to four 64-bit lanes, which are added
//! modulo 2^64. It proves agreement between honest parties; it is not a defence against a server
//! that looks for collisions.

use serde::{Deserialize, Serialize};

use super::{Body, Content, Node, NodeId, Rev};

/// The sum of the hashes of all live nodes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Digest([u64; 4]);

impl Digest {
    const KEY: &'static str = "picloud 2026 drive digest v1";

    /// Adds a node that came to life or took this state.
    pub fn add(&mut self, id: NodeId, rev: Rev, node: &Node) {
        for (lane, term) in self.0.iter_mut().zip(Self::term(id, rev, node)) {
            *lane = lane.wrapping_add(term);
        }
    }

    /// Takes away a node that died or left this state.
    pub fn remove(&mut self, id: NodeId, rev: Rev, node: &Node) {
        for (lane, term) in self.0.iter_mut().zip(Self::term(id, rev, node)) {
            *lane = lane.wrapping_sub(term);
        }
    }

    /// Returns the 32 bytes to store.
    #[must_use]
    pub fn to_bytes(self) -> [u8; 32] {
        let mut bytes = [0; 32];
        for (part, lane) in bytes.chunks_exact_mut(8).zip(self.0) {
            part.copy_from_slice(&lane.to_be_bytes());
        }
        bytes
    }

    /// Reads the 32 stored bytes back.
    #[must_use]
    pub fn from_bytes(bytes: [u8; 32]) -> Self {
        let (lanes, _) = bytes.as_chunks::<8>();
        let mut digest = Self::default();
        for (lane, part) in digest.0.iter_mut().zip(lanes) {
            *lane = u64::from_be_bytes(*part);
        }
        digest
    }

    /// Every field has a fixed width or a length in front, so two nodes never encode alike.
    fn term(id: NodeId, rev: Rev, node: &Node) -> [u64; 4] {
        let mut hasher = blake3::Hasher::new_derive_key(Self::KEY);
        hasher.update(id.as_bytes());
        hasher.update(&rev.0.to_be_bytes());
        hasher.update(node.place.parent.as_bytes());
        let name = node.place.name.as_bytes();
        hasher.update(&[u8::try_from(name.len()).unwrap_or(u8::MAX)]);
        hasher.update(name);
        hasher.update(&node.attrs.mode.to_be_bytes());
        match &node.body {
            Body::Dir => hasher.update(&[0]),
            Body::File { content, mtime } => {
                hasher.update(&[1]);
                hasher.update(&mtime.secs.to_be_bytes());
                hasher.update(&mtime.nanos().to_be_bytes());
                hasher.update(&content.len().to_be_bytes());
                match content {
                    Content::Empty => hasher.update(&[0]),
                    Content::Chunk { id, .. } => hasher.update(&[1]).update(id.as_bytes()),
                    Content::List { id, .. } => hasher.update(&[2]).update(id.as_bytes()),
                }
            }
            Body::Link { target } => hasher.update(&[2]).update(target),
        };
        let mut term = [0; 4];
        let hash = hasher.finalize();
        let (lanes, _) = hash.as_bytes().as_chunks::<8>();
        for (lane, part) in term.iter_mut().zip(lanes) {
            *lane = u64::from_be_bytes(*part);
        }
        term
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{Attrs, Name, Place};

    #[test]
    fn order_does_not_matter_and_removal_undoes() {
        let node = |name: &str| Node {
            place: Place { parent: NodeId::ROOT, name: Name::try_from(name).unwrap() },
            body: Body::Dir,
            attrs: Attrs::from_mode(0o755),
        };
        let (a, b) = (NodeId::from_bytes([1; 16]), NodeId::from_bytes([2; 16]));
        let mut one = Digest::default();
        one.add(a, Rev(1), &node("a"));
        one.add(b, Rev(2), &node("b"));
        let mut two = Digest::default();
        two.add(b, Rev(2), &node("b"));
        let only_b = two;
        two.add(a, Rev(1), &node("a"));
        assert_eq!(one, two);
        one.remove(a, Rev(1), &node("a"));
        assert_eq!(one, only_b);
        assert_ne!(one, two);
        assert_eq!(Digest::from_bytes(two.to_bytes()), two);
    }
}
