//! Nodes: the entries of a drive.

use serde::{Deserialize, Deserializer, Serialize};

use super::{Content, Name, NodeId, Rev, Timestamp};

/// Where a node is: its parent directory and its name there.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Place {
    /// The directory that holds the node.
    pub parent: NodeId,
    /// The node's name in it.
    pub name: Name,
}

/// What kind of thing a node is; it never changes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum Kind {
    /// A directory.
    Dir,
    /// A regular file.
    File,
    /// A symbolic link; synced as such, never followed.
    Link,
}

/// What a node is and holds.
///
/// A directory carries no modification time: it is a by-product of changes to its entries, and
/// carrying it would make a change of every change.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Body {
    /// A directory.
    Dir,
    /// A regular file.
    File {
        /// Its bytes.
        content: Content,
        /// When its bytes were last modified, by the device that modified them.
        mtime: Timestamp,
    },
    /// A symbolic link.
    Link {
        /// Its target, as it is: never resolved. 1 to 4095 bytes without NUL.
        #[serde(serialize_with = "serde_bytes::serialize", deserialize_with = "legal_target")]
        target: Vec<u8>,
    },
}

fn is_legal_target(target: &[u8]) -> bool {
    !target.is_empty() && target.len() <= Body::TARGET_LEN_MAX && !target.contains(&0)
}

fn legal_target<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<u8>, D::Error> {
    let target: Vec<u8> = serde_bytes::deserialize(deserializer)?;
    if is_legal_target(&target) {
        Ok(target)
    } else {
        Err(serde::de::Error::custom("a link target that no link can have"))
    }
}

impl Body {
    /// The longest link target in bytes: `PATH_MAX` of Linux without its NUL.
    pub const TARGET_LEN_MAX: usize = 4095;

    /// Returns the kind of node this is the body of.
    #[must_use]
    pub const fn kind(&self) -> Kind {
        match self {
            Self::Dir => Kind::Dir,
            Self::File { .. } => Kind::File,
            Self::Link { .. } => Kind::Link,
        }
    }

    /// Returns whether both hold the same bytes; modification times do not matter.
    #[must_use]
    pub fn same_bytes(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::File { content: a, .. }, Self::File { content: b, .. }) => a == b,
            _ => self == other,
        }
    }

    /// Returns whether this is an empty file and the other one a file: nothing is lost where the
    /// other takes its place. A power cut leaves such files where bytes were not on disk yet.
    #[must_use]
    pub const fn holds_nothing_against(&self, other: &Self) -> bool {
        matches!(self, Self::File { content: Content::Empty, .. })
            && matches!(other, Self::File { .. })
    }

    /// Returns the length of a file's content, 0 for anything else.
    #[must_use]
    pub const fn content_len(&self) -> u64 {
        match self {
            Self::File { content, .. } => content.len(),
            Self::Dir | Self::Link { .. } => 0,
        }
    }

    /// Returns whether every part is within its limits.
    #[must_use]
    pub fn is_legal(&self) -> bool {
        match self {
            Self::Dir => true,
            Self::File { content, .. } => content.is_legal(),
            Self::Link { target } => is_legal_target(target),
        }
    }
}

/// Attributes that every node has, beside its place and body.
///
/// Bits that are not carried are refused where attributes are read: a peer that sends the set-user-id
/// bit gets no file that has it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize)]
#[serde(transparent)]
pub struct Attrs {
    /// Permission bits, of `0o777`. For a link 0: links have no permissions of their own.
    pub mode: u16,
}

impl Attrs {
    /// The permission bits that are carried: no set-user-id, set-group-id or sticky bits, which
    /// would carry one machine's trust to another.
    pub const MODE_MASK: u16 = 0o777;

    /// Returns attributes with the carried bits of `mode`.
    #[must_use]
    pub const fn from_mode(mode: u32) -> Self {
        Self { mode: (mode & Self::MODE_MASK as u32) as u16 }
    }

    /// Returns whether only carried bits are set.
    #[must_use]
    pub const fn is_legal(self) -> bool {
        self.mode & !Self::MODE_MASK == 0
    }
}

impl<'de> Deserialize<'de> for Attrs {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let attrs = Self { mode: u16::deserialize(deserializer)? };
        if attrs.is_legal() {
            Ok(attrs)
        } else {
            Err(serde::de::Error::custom("a mode with bits that are not carried"))
        }
    }
}

/// The state of a node: everything about it but its id and rev.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Node {
    /// Where it is.
    pub place: Place,
    /// What it is and holds.
    pub body: Body,
    /// Its attributes.
    pub attrs: Attrs,
}

impl Node {
    /// Returns whether this is a directory.
    #[must_use]
    pub const fn is_dir(&self) -> bool {
        matches!(self.body, Body::Dir)
    }
}

/// A node as the journal tells it: its state after its last change, or that it was deleted.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Versioned {
    /// The node.
    pub id: NodeId,
    /// The rev of its last change.
    pub rev: Rev,
    /// Its state; nothing when it was deleted.
    pub node: Option<Node>,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sent<V: Serialize + serde::de::DeserializeOwned>(value: &V) -> Option<V> {
        rmp_serde::from_slice(&rmp_serde::to_vec_named(value).unwrap()).ok()
    }

    #[test]
    fn no_peer_can_set_a_mode_bit_that_is_not_carried() {
        for mode in [0o4755, 0o2755, 0o1777, 0o100_644] {
            assert_eq!(sent(&Attrs { mode }), None, "{mode:o}");
        }
        assert_eq!(sent(&Attrs { mode: 0o777 }), Some(Attrs { mode: 0o777 }));
    }

    #[test]
    fn no_peer_can_name_a_link_target_that_no_link_can_have() {
        let link = |target: &[u8]| Body::Link { target: target.to_vec() };
        for bad in [link(b""), link(b"a\0b"), link(&[b'a'; Body::TARGET_LEN_MAX + 1])] {
            assert_eq!(sent(&bad), None);
        }
        let longest = link(&[b'a'; Body::TARGET_LEN_MAX]);
        assert_eq!(sent(&longest), Some(longest.clone()));
    }
}
