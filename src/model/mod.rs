//! The words of PiCloud as types: ids, names, nodes, contents, changes.
//!
//! Nothing here does I/O, reads a clock or draws randomness, and nothing here knows the other
//! modules. Every value that can come from a peer or a disk is checked in its one constructor and
//! again when it is deserialised, so a value of these types is always legal.

mod batch;
mod change;
mod checked;
mod chunk;
mod conflict;
mod content;
mod digest;
mod flow;
mod id;
mod join_link;
mod log_filter;
mod name;
mod node;
mod node_id_hash;
mod portable;
mod settings;
mod time;
mod usage;

pub use batch::{BatchId, BatchIdError};
pub use change::{Change, ChangeOp, Refusal};
pub use checked::Checked;
pub use chunk::{ChunkData, Codec};
pub use conflict::{
    CopyName, conflict_name, kept_name, original_of, read_copy_name, restored_name,
};
pub use content::{Content, ContentList, ContentListError, Extent};
pub use digest::Digest;
pub use flow::{Difference, Flow};
pub use id::{
    ChunkId, DeviceId, DriveId, FolderId, IdError, IdSource, Lineage, ListId, NodeId, Rev, UserId,
};
pub use join_link::{Fingerprint, JoinLink, JoinLinkError};
pub use log_filter::check_log_filter;
pub use name::{Name, NameError, RelPath};
pub use node::{Attrs, Body, Kind, Node, Place, Versioned};
pub use node_id_hash::NodeIdHash;
pub use portable::{folded, why_not_portable};
pub use settings::{Wrong, check_device_name, free_device_name, is_host_and_port};
pub use time::Timestamp;
pub use usage::{Usage, byte_count};
