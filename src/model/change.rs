//! What a device asks for, and why it may be refused.

use serde::{Deserialize, Serialize};

use super::{Attrs, Body, ChunkId, Node, NodeId, Place, Rev};

/// One change of one node.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Change {
    /// The node; for a creation a fresh id of the device's.
    pub node: NodeId,
    /// The rev of the node that the author had seen; [`Rev::ZERO`] for a creation.
    pub base: Rev,
    /// What to do.
    pub op: ChangeOp,
    /// Whether this change and the next are one: both are accepted or neither, and only what they
    /// come to together has to be valid. So names can be exchanged in one step.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub with_next: bool,
}

impl Change {
    /// Returns a change that stands for itself.
    #[must_use]
    pub const fn new(node: NodeId, base: Rev, op: ChangeOp) -> Self {
        Self { node, base, op, with_next: false }
    }
}

/// What a change does.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum ChangeOp {
    /// A new node.
    Create(Node),
    /// Any of these, at least one; the rest stays.
    Update {
        /// A new place: a rename or a move.
        #[serde(default)]
        place: Option<Place>,
        /// A new body of the same kind: an edit.
        #[serde(default)]
        body: Option<Body>,
        /// New attributes.
        #[serde(default)]
        attrs: Option<Attrs>,
    },
    /// The node goes; a directory must be empty.
    Delete,
}

/// Why the server did not accept a change.
///
/// The device plans the node again once it has seen the journal up to the head that came with the
/// refusal, so every refusal here is about the state of the manifest, never about syntax.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
pub enum Refusal {
    /// Somebody else changed the node since `base`; `current` is its rev, 0 if it does not exist.
    #[error("The node was changed meanwhile (now at rev {current})")]
    Stale {
        /// The node's rev now.
        current: Rev,
    },
    /// The parent does not exist, is deleted, or is not a directory.
    #[error("The parent directory is gone")]
    NoParent,
    /// Another live node has that name there.
    #[error("The name is taken by node {by}")]
    NameTaken {
        /// The node that has it.
        by: NodeId,
    },
    /// The move would put a directory into itself.
    #[error("The move would put a directory into itself")]
    Cycle,
    /// The directory to delete has entries.
    #[error("The directory is not empty")]
    NotEmpty,
    /// A chunk (or list) the content needs has not been uploaded to this drive.
    #[error("The server lacks content of this change")]
    MissingContent {
        /// One of the missing chunks, for the log; none when a whole list is missing.
        #[serde(default)]
        chunk: Option<ChunkId>,
    },
    /// The change itself is not legal (kind changed, root touched, empty update, illegal value).
    #[error("The change is not legal: {reason}")]
    Illegal {
        /// What is wrong with it.
        reason: String,
    },
    /// The change waits for a person's approval (a mass deletion).
    #[error("The change waits for approval")]
    NeedsApproval,
    /// It makes more of the room of the drive's owner used than the quota allows. How much is left comes with
    /// the answer; the author knows what it asked for.
    #[error("The account has used up its room on the server")]
    OverQuota,
}
