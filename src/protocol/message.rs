//! The messages: what each one says, who may send it, and what answers it.
//!
//! Every message is a MessagePack map with named fields; a reader ignores fields it does not know,
//! and a new field has a default. Kinds are our own numbers, never reused. A request is answered by
//! exactly one reply or one [`Failure`] with the same request id; requests are pipelined and may be
//! answered out of order, but commits of one connection are applied in the order they were sent.
//! Pushes carry request id 0. The specification for other clients is `docs/protocol.md`.

use std::fmt;

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

pub use crate::content::{BlockSums, ChunkDelta};
pub use crate::model::{ChunkData, Codec};

use super::limits::{BATCH_COUNT_MAX, LIST_PART_LEN_MAX};
use crate::model::{
    BatchId, Change, ChunkId, DeviceId, Digest, DriveId, Lineage, ListId, Name, NodeId, Refusal,
    RelPath, Rev, Timestamp, Usage, UserId, Versioned,
};

/// A message with its own kind number.
pub trait Message: Serialize + DeserializeOwned + Send + Sync + 'static {
    /// The number in the frame header.
    const KIND: u8;
}

/// A message that asks for a reply.
pub trait Request: Message {
    /// What answers it, when it does not fail.
    type Reply: Message;
}

macro_rules! messages {
    ($($kind:literal $name:ident $(=> $reply:ident)?;)*) => {
        $(
            impl Message for $name {
                const KIND: u8 = $kind;
            }
            $(impl Request for $name {
                type Reply = $reply;
            })?
        )*

        /// Every kind number in use, with its name, for logs and for the test that none repeats.
        pub const KINDS: &[(u8, &str)] = &[$(($kind, stringify!($name))),*];
    };
}

messages! {
    // Before authentication.
    1 Hello => HelloReply;
    2 Join => AuthReply;
    3 Login => AuthReply;
    4 Register => AuthReply;
    5 Answer => AuthReply;
    6 Resume => AuthReply;
    7 Ping => Done;
    // The journal.
    8 Subscribe => Subscribed;
    9 PageSeen;
    10 Commit => Committed;
    // Content.
    11 FindMissing => Missing;
    12 PutChunks => Done;
    13 PutList => Done;
    14 HasList => Has;
    15 GetList => ListPart;
    16 GetChunks => Chunks;
    // Looking without a folder.
    17 Lookup => Found;
    18 ListDir => Entries;
    // The account.
    20 ListDevices => Devices;
    21 RevokeDevice => Done;
    22 Invite => Invited;
    23 Logout => Done;
    24 ChangePassword => Done;
    25 TotpBegin => TotpSecret;
    26 TotpConfirm => Done;
    27 TotpDisable => Done;
    // Mass deletions that wait for a person.
    28 ListHeld => HeldList;
    29 ApproveHeld => Done;
    30 RejectHeld => Done;
    // Batches of changes, and taking one back.
    31 ListBatches => Batches;
    32 UndoBatch => Undone;
    // Looking at the drive as a whole.
    33 GetAuthors => Authors;
    34 GetSpace => Space;
    // Content as the difference to what the other side has.
    40 GetSums => Sums;
    41 PutDeltas => Done;
    42 GetDeltas => Deltas;
    43 PutSplice => Done;
    44 GetSplice => Splice;
    // Replies.
    64 HelloReply;
    65 AuthReply;
    66 Done;
    67 Subscribed;
    68 Committed;
    69 Missing;
    70 Has;
    71 ListPart;
    72 Chunks;
    73 Found;
    74 Entries;
    75 Devices;
    76 Invited;
    77 TotpSecret;
    78 HeldList;
    79 Batches;
    80 Undone;
    81 Authors;
    82 Space;
    90 Sums;
    91 Deltas;
    92 Splice;
    // Pushes.
    128 Page;
    129 Bye;
    130 HeldNow;
    132 UsageNow;
    // From a device to the server, and on to the others.
    131 Coming;
    // Failure of a request; with request id 0, of the connection.
    255 Failure;
}

/// Messages with a secret inside show their name only, so that no log ever holds one.
macro_rules! secret {
    ($($name:ident)*) => {
        $(impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.debug_struct(stringify!($name)).finish_non_exhaustive()
            }
        })*
    };
}

secret! {
    Join Login Register Answer Resume AuthReply Admitted Invited ChangePassword TotpSecret
    TotpConfirm TotpDisable
}

/// The protocol version spoken here; the ALPN name is `picloud/1`.
pub const PROTOCOL: u16 = 1;

/// The feature of a server that passes [`Coming`] on.
pub const COMING: &str = "coming";

/// The first message of a connection, from the device. Its shape never changes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hello {
    /// The newest protocol the device speaks.
    pub protocol: u16,
    /// Program and version, for the log: `picloud/0.1.0`.
    pub program: String,
    /// Features beyond the protocol version that the device understands.
    #[serde(default)]
    pub features: Vec<String>,
}

/// The server's half of the hello. Its shape never changes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct HelloReply {
    /// The protocol this connection will speak: the older of the two.
    pub protocol: u16,
    /// Program and version.
    pub program: String,
    /// Features the server understands.
    #[serde(default)]
    pub features: Vec<String>,
    /// The server's clock.
    pub time: Timestamp,
}

/// Joins a new device with the one-time secret of a join link.
#[derive(Clone, Serialize, Deserialize)]
pub struct Join {
    /// The secret of the link, 32 bytes.
    #[serde(with = "serde_bytes")]
    pub secret: Vec<u8>,
    /// How the device is to be called.
    pub device_name: String,
}

/// Adds a device by password.
#[derive(Clone, Serialize, Deserialize)]
pub struct Login {
    /// The account's name.
    pub user: String,
    /// Its password.
    pub password: String,
    /// How the device is to be called.
    pub device_name: String,
}

/// Makes an account, and adds this device to it.
#[derive(Clone, Serialize, Deserialize)]
pub struct Register {
    /// The account's name.
    pub user: String,
    /// Its password.
    pub password: String,
    /// The secret of an invitation, where the server wants one.
    #[serde(default, with = "serde_bytes")]
    pub secret: Option<Vec<u8>>,
    /// How the device is to be called.
    pub device_name: String,
}

/// The person's answer to the [`Question`] of the last [`AuthReply`] on this connection.
#[derive(Clone, Serialize, Deserialize)]
pub struct Answer {
    /// What the person typed.
    pub answer: String,
}

/// Continues as a device that was admitted before.
#[derive(Clone, Serialize, Deserialize)]
pub struct Resume {
    /// The device.
    pub device: DeviceId,
    /// Its token, 32 bytes.
    #[serde(with = "serde_bytes")]
    pub token: Vec<u8>,
}

/// The outcome of an authentication request: exactly one of the two is there.
#[derive(Clone, Serialize, Deserialize)]
pub struct AuthReply {
    /// The device is in.
    #[serde(default)]
    pub admitted: Option<Admitted>,
    /// The server wants to know one more thing first.
    #[serde(default)]
    pub question: Option<Question>,
}

/// A question for the person, as the 2015 program's input request.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Question {
    /// What to show: "Six-digit code of your authenticator app".
    pub text: String,
    /// Whether what is typed must not be shown.
    pub secret: bool,
}

/// Who the connection now speaks for.
#[derive(Clone, Serialize, Deserialize)]
pub struct Admitted {
    /// The account.
    pub user: UserId,
    /// Its name.
    pub user_name: String,
    /// The device.
    pub device: DeviceId,
    /// Its name.
    pub device_name: String,
    /// The token for later [`Resume`]s; only for a new device.
    #[serde(default, with = "serde_bytes")]
    pub token: Option<Vec<u8>>,
    /// The drives it may use; the user's own is the first.
    pub drives: Vec<DriveInfo>,
}

/// A drive one may use.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DriveInfo {
    /// The drive.
    pub id: DriveId,
    /// Its name: for a personal drive the user's.
    pub name: String,
    /// Its lineage.
    pub lineage: Lineage,
    /// Its newest rev.
    pub head: Rev,
}

/// Asks for a sign of life.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Ping {}

/// It is done.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Done {}

/// Asks for the journal of a drive, from `cursor` on, as [`Page`]s.
///
/// A second subscription to the same drive on one connection replaces the first.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Subscribe {
    /// The drive.
    pub drive: DriveId,
    /// The rev up to which the device knows the journal of `lineage`.
    pub cursor: Rev,
    /// The lineage `cursor` belongs to; none for a device that knows nothing.
    #[serde(default)]
    pub lineage: Option<Lineage>,
    /// Contents of at most this many bytes come with the page, at most
    /// [`super::limits::INLINE_LEN_MAX`]; 0 for none.
    #[serde(default)]
    pub inline_len_max: u32,
    /// Whether it takes over from earlier subscriptions of the device to this drive that took over,
    /// too: nothing more is taken from commits sent on their connections, so that what the journal
    /// does not tell by now never arrives.
    #[serde(default)]
    pub takes_over: bool,
    /// Whether the device wants to hear of contents that others are sending, see [`Coming`].
    #[serde(default)]
    pub coming: bool,
}

/// The subscription holds.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Subscribed {
    /// The drive's lineage. When it is not the one asked with, or `cursor` was past the head, the
    /// journal is told from the beginning and the device must not read any absence as a deletion.
    pub lineage: Lineage,
    /// Where the pages begin: the cursor asked with, or 0.
    pub from: Rev,
    /// The newest rev.
    pub head: Rev,
    /// How much of the room of the drive's owner is in use; an older server does not say. Where there is a
    /// quota, [`UsageNow`] tells of what changes.
    #[serde(default)]
    pub usage: Option<Usage>,
}

/// A piece of the journal, pushed: each node changed in (`from`, `upto`], once, in its latest state.
///
/// The order is by rev. A node changed again after `upto` is not in this page but in a later one,
/// so between pages the tree can be one that never was (a child before its parent's move, say);
/// `consistent` tells when it is one that was, and only then may it be planned on.
///
/// Nodes whose last change this very connection committed are left out.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Page {
    /// The drive.
    pub drive: DriveId,
    /// The rev after which this page begins.
    pub from: Rev,
    /// The rev with which it ends; becomes the device's cursor.
    pub upto: Rev,
    /// The newest rev when the page was made.
    pub head: Rev,
    /// Whether the nodes known after this page are the drive as it was at `upto`.
    pub consistent: bool,
    /// The changed nodes.
    pub nodes: Vec<Versioned>,
    /// Small contents of theirs that the device may not have.
    pub chunks: Vec<ChunkData>,
    /// The drive's digest, when `upto` is `head`.
    #[serde(default)]
    pub digest: Option<Digest>,
    /// The names of the devices that made these versions, for people.
    #[serde(default)]
    pub devices: Vec<String>,
    /// For each node, which of them that is; one that points nowhere tells nothing.
    #[serde(default)]
    pub made_by: Vec<u32>,
}

impl Page {
    /// Checks what a page promises by itself: its bounds, and the order of its nodes.
    pub(super) fn check(&self) -> Result<(), String> {
        if self.nodes.len() > BATCH_COUNT_MAX {
            return Err(format!("{} nodes, at most {BATCH_COUNT_MAX} fit", self.nodes.len()));
        }
        if self.from > self.upto || self.upto > self.head {
            return Err(format!(
                "revs {} to {} of {} are in no order",
                self.from, self.upto, self.head
            ));
        }
        let mut last = self.from;
        for Versioned { id, rev, node } in &self.nodes {
            if *rev <= last || *rev > self.upto {
                return Err(format!("a node of rev {rev} has no place after rev {last}"));
            }
            last = *rev;
            if *id == NodeId::ROOT || node.as_ref().is_some_and(|node| node.place.parent == *id) {
                return Err(format!("node {id} cannot be in a directory"));
            }
        }
        Ok(())
    }
}

/// Tells the server that a page has been taken in, so that it may send another. Has no reply.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct PageSeen {
    /// The drive.
    pub drive: DriveId,
    /// The page's `upto`.
    pub upto: Rev,
}

/// Asks for changes, applied in order, each (or each run of joined ones) accepted or refused by itself.
///
/// All accepted ones become visible to other devices at once. The reply comes when they are on
/// stable storage, with the chunks.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Commit {
    /// The drive.
    pub drive: DriveId,
    /// The changes, at most [`super::limits::BATCH_COUNT_MAX`].
    pub changes: Vec<Change>,
    /// Chunks that they need and that have not been put before.
    pub chunks: Vec<ChunkData>,
    /// How many deletions the device has pending in this drive: those of this commit and those
    /// still to come, not those of earlier commits. A mass deletion is thereby known before its
    /// first deletion passes. None when it does not say. A commit without changes says it for sure:
    /// it is sent when no deletion is on its way.
    #[serde(default)]
    pub deletions: Option<u64>,
}

/// What became of a commit.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Committed {
    /// One result per change.
    pub results: Vec<ChangeResult>,
    /// The newest rev afterwards.
    pub head: Rev,
    /// How much of the room of the drive's owner is in use afterwards; an older server does not say.
    #[serde(default)]
    pub usage: Option<Usage>,
}

/// What became of a change.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum ChangeResult {
    /// It is part of the drive (or was already, when it is sent a second time).
    Accepted {
        /// The rev it got.
        rev: Rev,
    },
    /// It is not; see there.
    Refused(Refusal),
}

/// A device is sending a content that it will commit: others may begin to fetch it. Has no reply.
///
/// Sent to a server with the feature [`COMING`], and passed on as a push to those other devices that
/// asked for it with their subscription, if there is room on their connections: a hint that may be
/// lost, be late, and lead to no commit. The server keeps nothing of it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Coming {
    /// The drive.
    pub drive: DriveId,
    /// The node that the content is to be of; it may be one that nobody knows yet.
    pub node: NodeId,
    /// The content's list.
    pub list: ListId,
    /// The content's length.
    pub len: u64,
    /// The list, encoded, at most [`LIST_PART_LEN_MAX`] bytes: with the first note.
    #[serde(default, with = "serde_bytes")]
    pub extents: Option<Vec<u8>>,
    /// So many of its extents, from the first on, have their chunks in the drive.
    pub upto: u32,
}

impl Coming {
    /// Checks the bounds of a note.
    ///
    /// # Errors
    /// When it breaks one.
    pub fn check(&self) -> Result<(), String> {
        let extents_len = self.extents.as_ref().map_or(0, Vec::len);
        if extents_len > LIST_PART_LEN_MAX {
            return Err(format!(
                "a content list of {extents_len} bytes, at most {LIST_PART_LEN_MAX} are passed on"
            ));
        }
        if self.node == NodeId::ROOT {
            return Err("the root has no content".to_owned());
        }
        if self.len == 0 || i64::try_from(self.len).is_err() {
            return Err(format!("a content list cannot be of {} bytes", self.len));
        }
        Ok(())
    }
}

/// Asks which of these chunks this drive lacks.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct FindMissing {
    /// The drive.
    pub drive: DriveId,
    /// At most [`super::limits::IDS_MAX`].
    pub chunks: Vec<ChunkId>,
}

/// The chunks that the drive lacks.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Missing {
    /// A subset of those asked for, in their order.
    pub chunks: Vec<ChunkId>,
}

/// Puts chunks into a drive. The reply comes when they are on stable storage.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct PutChunks {
    /// The drive.
    pub drive: DriveId,
    /// The chunks, together about [`super::limits::BATCH_LEN_MAX`].
    pub chunks: Vec<ChunkData>,
}

/// Puts a content list into a drive, piece by piece in order on one connection; the last is checked
/// against the id, and all chunks of the list must be in the drive by then.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct PutList {
    /// The drive.
    pub drive: DriveId,
    /// The list.
    pub list: ListId,
    /// Where this piece begins in the encoding; 0 begins anew.
    pub offset: u64,
    /// Whether this is the last piece.
    pub last: bool,
    /// At most [`super::limits::LIST_PART_LEN_MAX`] bytes of the canonical encoding.
    #[serde(with = "serde_bytes")]
    pub data: Vec<u8>,
}

/// Asks whether this drive has a content list, with all its chunks.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct HasList {
    /// The drive.
    pub drive: DriveId,
    /// The list.
    pub list: ListId,
}

/// Whether it has.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Has {
    /// Whether it has.
    pub present: bool,
}

/// Asks for a piece of a content list.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct GetList {
    /// The drive.
    pub drive: DriveId,
    /// The list.
    pub list: ListId,
    /// Where the piece is to begin.
    pub offset: u64,
}

/// A piece of a content list, as long as fits.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct ListPart {
    /// The length of the whole encoding.
    pub total: u64,
    /// The bytes from the offset asked for.
    #[serde(with = "serde_bytes")]
    pub data: Vec<u8>,
}

/// Asks for chunks of a drive.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct GetChunks {
    /// The drive.
    pub drive: DriveId,
    /// At most [`super::limits::IDS_MAX`]; best no more than fill a batch.
    pub chunks: Vec<ChunkId>,
}

/// The first so many of the chunks asked for as fit a batch, at least one; ask again for the rest.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Chunks {
    /// The chunks, in the order asked for.
    pub chunks: Vec<ChunkData>,
    /// Those that the drive does not have, among the ones dealt with.
    #[serde(default)]
    pub absent: Vec<ChunkId>,
}

/// Asks for the block sums of bases that the drive has, for making deltas to them.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct GetSums {
    /// The drive.
    pub drive: DriveId,
    /// Each base as chunks of the drive, one after the other, at most
    /// [`crate::content::delta::BASE_CHUNKS_MAX`]; at most [`super::limits::BASES_MAX`] bases.
    pub bases: Vec<Vec<ChunkId>>,
}

/// The block sums, in the order of the bases: none for one that the drive does not have whole.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Sums {
    /// One per base.
    pub sums: Vec<BlockSums>,
}

/// Puts chunks into a drive, as deltas to chunks it has. The reply comes when they are on stable
/// storage.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct PutDeltas {
    /// The drive.
    pub drive: DriveId,
    /// At most [`super::limits::BASES_MAX`]; the chunks together at most about two batches long.
    pub deltas: Vec<ChunkDelta>,
}

/// Asks for chunks of a drive, as deltas to chunks that the device has.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct GetDeltas {
    /// The drive.
    pub drive: DriveId,
    /// At most [`super::limits::BASES_MAX`].
    pub wanted: Vec<WantedDelta>,
}

/// One of them.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct WantedDelta {
    /// The chunk.
    pub chunk: ChunkId,
    /// What the device has, as in [`GetSums`].
    pub base: Vec<ChunkId>,
}

/// The first so many of the chunks asked for as fit a batch, at least one; ask again for the rest.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Deltas {
    /// Those for which a delta pays.
    pub deltas: Vec<ChunkDelta>,
    /// The others, whole.
    pub chunks: Vec<ChunkData>,
    /// Those that the drive does not have, among the ones dealt with.
    #[serde(default)]
    pub absent: Vec<ChunkId>,
}

/// Puts a content list into a drive, as a splice of one that the drive has; checked as with
/// [`PutList`].
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct PutSplice {
    /// The drive.
    pub drive: DriveId,
    /// The list.
    pub list: ListId,
    /// The list it is made of.
    pub base: ListId,
    /// How, see [`crate::content::splice`]; at most [`super::limits::LIST_PART_LEN_MAX`] bytes.
    #[serde(with = "serde_bytes")]
    pub splice: Vec<u8>,
}

/// Asks for a content list as a splice of one that the device has.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct GetSplice {
    /// The drive.
    pub drive: DriveId,
    /// The list.
    pub list: ListId,
    /// The list that the device has.
    pub base: ListId,
}

/// The splice.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Splice {
    /// None when the drive does not have both lists, or when a splice does not pay.
    #[serde(default, with = "serde_bytes")]
    pub splice: Option<Vec<u8>>,
}

/// Asks for the node at a path.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Lookup {
    /// The drive.
    pub drive: DriveId,
    /// The path; not the root.
    pub path: RelPath,
}

/// The node, if there is one.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Found {
    /// The node; always a live one.
    #[serde(default)]
    pub node: Option<Versioned>,
}

/// Asks for the entries of a directory, in the order of their names.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct ListDir {
    /// The drive.
    pub drive: DriveId,
    /// The directory.
    pub dir: NodeId,
    /// Only names after this one.
    #[serde(default)]
    pub after: Option<Name>,
}

/// Entries of a directory, at most [`super::limits::BATCH_COUNT_MAX`].
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Entries {
    /// Live nodes.
    pub entries: Vec<Versioned>,
    /// Whether there are more.
    pub more: bool,
}

/// Asks for the devices of the account.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct ListDevices {}

/// The devices of the account, oldest first.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Devices {
    /// The devices that are not revoked.
    pub devices: Vec<DeviceInfo>,
}

/// A device of the account.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DeviceInfo {
    /// The device.
    pub id: DeviceId,
    /// Its name.
    pub name: String,
    /// When it was added, by the server's clock.
    pub added: Timestamp,
    /// When it was last connected, by the server's clock.
    #[serde(default)]
    pub last_seen: Option<Timestamp>,
    /// Whether it is connected now.
    pub connected: bool,
    /// Whether it is the one that asks.
    pub this: bool,
}

/// Ends a device of the account: its token is void and its connections are closed at once.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct RevokeDevice {
    /// The device.
    pub device: DeviceId,
}

/// Asks for a join link for one more device of this account.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Invite {}

/// A join link.
#[derive(Clone, Serialize, Deserialize)]
pub struct Invited {
    /// The whole link.
    pub link: String,
    /// Until when it can be used, by the server's clock.
    pub expires: Timestamp,
}

/// Ends this device: its token is void.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Logout {}

/// Sets a new password.
#[derive(Clone, Serialize, Deserialize)]
pub struct ChangePassword {
    /// The present one.
    pub old: String,
    /// The new one.
    pub new: String,
}

/// Asks for a new TOTP secret; it counts only once confirmed.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct TotpBegin {}

/// A TOTP secret.
#[derive(Clone, Serialize, Deserialize)]
pub struct TotpSecret {
    /// `otpauth://totp/…`, for an authenticator app.
    pub uri: String,
}

/// Shows that the authenticator app has the new secret, and puts it in force.
#[derive(Clone, Serialize, Deserialize)]
pub struct TotpConfirm {
    /// The six digits.
    pub code: String,
}

/// Ends TOTP for the account.
#[derive(Clone, Serialize, Deserialize)]
pub struct TotpDisable {
    /// The account's password.
    pub password: String,
}

/// Asks for the deletions of a drive that wait for a person.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct ListHeld {
    /// The drive.
    pub drive: DriveId,
}

/// The deletions that wait.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct HeldList {
    /// One entry per device that asked for them.
    pub held: Vec<Held>,
}

/// A mass deletion that waits for a person.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Held {
    /// The device that asked for it.
    pub device: DeviceId,
    /// Its name.
    pub device_name: String,
    /// How many nodes it wants to delete.
    pub deletions: u64,
    /// How many it deleted shortly before, which passed and count as the same act.
    #[serde(default)]
    pub earlier: u64,
    /// Since when, by the server's clock.
    pub since: Timestamp,
    /// Whether it was rejected: the device is to put the files back, and nothing waits for a person
    /// any more.
    #[serde(default)]
    pub rejected: bool,
    /// Where some of the nodes are.
    #[serde(default)]
    pub examples: Vec<RelPath>,
}

/// The mass deletions of a drive that wait for a person, pushed to each subscription when it begins
/// (unless there are none) and whenever they change. A device that was told `NeedsApproval` asks
/// again once it is not among them any more; one that finds itself rejected puts the files back.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct HeldNow {
    /// The drive.
    pub drive: DriveId,
    /// As in [`HeldList`].
    pub held: Vec<Held>,
}

/// Refuses a device's held deletions of a drive for good: the device puts the files back.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct RejectHeld {
    /// The drive.
    pub drive: DriveId,
    /// The device.
    pub device: DeviceId,
}

/// Lets a device's held deletions of a drive pass when it asks again.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct ApproveHeld {
    /// The drive.
    pub drive: DriveId,
    /// The device.
    pub device: DeviceId,
}

/// Asks for the newest batches of a drive.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct ListBatches {
    /// The drive.
    pub drive: DriveId,
    /// Only changes up to this rev are looked at; none for all.
    #[serde(default)]
    pub upto: Option<Rev>,
    /// How many, at most 100.
    pub count: u32,
}

/// Batches, those with the newest changes first.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Batches {
    /// The batches.
    pub batches: Vec<Batch>,
    /// Whether there are older ones.
    pub more: bool,
}

/// What one device changed in one burst.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Batch {
    /// Its name.
    pub id: BatchId,
    /// The device that made the changes.
    pub device: DeviceId,
    /// Its name.
    pub device_name: String,
    /// When the first change was made, by the server's clock.
    pub began: Timestamp,
    /// When the last change was made.
    pub ended: Timestamp,
    /// What it came to.
    pub counts: BatchCounts,
    /// Where some of the nodes are, or were.
    #[serde(default)]
    pub examples: Vec<RelPath>,
    /// The batch that it took back.
    #[serde(default)]
    pub undoes: Option<BatchId>,
    /// The batch that took it back.
    #[serde(default)]
    pub undone_by: Option<BatchId>,
}

/// How many nodes became what. One that was moved and edited counts twice.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct BatchCounts {
    /// Nodes that were not there before.
    pub created: u64,
    /// Nodes with another content, mode or time.
    pub edited: u64,
    /// Nodes that are elsewhere.
    pub moved: u64,
    /// Nodes that went.
    pub deleted: u64,
}

/// Takes a batch back as one change, or says what that would come to. What was changed since is left
/// alone. Asked for twice, it is done once.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct UndoBatch {
    /// The drive.
    pub drive: DriveId,
    /// The batch.
    pub batch: BatchId,
    /// Whether only to say what would happen.
    #[serde(default)]
    pub dry_run: bool,
    /// Whether a person has said that a mass deletion is meant.
    #[serde(default)]
    pub approved: bool,
}

/// What an undo did, or would do.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Undone {
    /// The device that made the batch.
    pub device: DeviceId,
    /// Its name.
    pub device_name: String,
    /// What it comes to: what comes back is created.
    pub counts: BatchCounts,
    /// How many nodes are as they were before the batch already.
    pub same: u64,
    /// The undo's own batch; none when it was a dry run or there was nothing to do.
    #[serde(default)]
    pub undo: Option<BatchId>,
    /// The batch was undone before: the last of the undos that undid it, undid that, and so on. Nothing
    /// happens then.
    #[serde(default)]
    pub undone_by: Option<BatchId>,
    /// With `undone_by`: whether the batch is back in force, and undoing that one undoes it again.
    #[serde(default)]
    pub redone: bool,
    /// Whether it deletes so much that it is not done before it is asked for with `approved`.
    #[serde(default)]
    pub needs_approval: bool,
    /// What happens to which path, the first hundred.
    #[serde(default)]
    pub acts: Vec<UndoAct>,
    /// To how many something does.
    #[serde(default)]
    pub act_count: u64,
    /// What comes back under another name, as its own is taken, the first hundred.
    #[serde(default)]
    pub beside: Vec<UndoBeside>,
    /// How many do.
    #[serde(default)]
    pub beside_count: u64,
    /// What is left alone, the first hundred.
    #[serde(default)]
    pub left: Vec<UndoLeft>,
    /// How much is.
    #[serde(default)]
    pub left_count: u64,
}

/// What an undo does to one node.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct UndoAct {
    /// Where it is afterwards, or was.
    pub path: RelPath,
    /// `restore`, `move` or `delete`.
    pub act: String,
}

/// A node that comes back under another name.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct UndoBeside {
    /// Where it was.
    pub path: RelPath,
    /// Its name now, in the same directory.
    pub name: Name,
}

/// A node that an undo leaves alone.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct UndoLeft {
    /// Where it is, or was.
    pub path: RelPath,
    /// Why, for a person.
    pub reason: String,
}

/// Asks who wrote what some nodes hold now.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct GetAuthors {
    /// The drive.
    pub drive: DriveId,
    /// At most [`super::limits::IDS_MAX`].
    pub nodes: Vec<NodeId>,
}

/// Who wrote it, of the nodes that exist.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Authors {
    /// One per node.
    pub authors: Vec<Author>,
}

/// Who wrote the bytes that a node holds now: moves, and changes of permissions, do not count.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Author {
    /// The node.
    pub node: NodeId,
    /// The device.
    pub device: DeviceId,
    /// Its name.
    pub device_name: String,
    /// When, by the server's clock.
    pub time: Timestamp,
}

/// Asks how much room there is.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct GetSpace {
    /// The drive.
    pub drive: DriveId,
}

/// How much room there is, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Space {
    /// What the contents of the drive take, those of earlier versions included, as packed. It may be a
    /// minute old.
    pub stored: u64,
    /// What the server can still take before it says that its disk is full.
    pub free: u64,
    /// The size of that disk.
    pub total: u64,
    /// The sum of the sizes of the files in all drives of this drive's owner, as [`Usage`] counts; an
    /// older server does not say.
    #[serde(default)]
    pub used: Option<u64>,
    /// How much that may be; none where that is not limited.
    #[serde(default)]
    pub quota: Option<u64>,
}

/// How much of the room of a drive's owner is in use, pushed to each subscription when that changes, where
/// there is a quota, but at most five times in a second: the newest is told. A device that holds a file
/// back for lack of room sends it once there is some.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct UsageNow {
    /// The drive.
    pub drive: DriveId,
    /// How much.
    pub usage: Usage,
}

/// The server ends the connection, and says why.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Bye {
    /// Why.
    pub code: FailureCode,
    /// For a person.
    pub message: String,
}

/// A request failed. Where it is the connection's failure (request id 0), the server closes it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[error("{message}")]
pub struct Failure {
    /// What a program can act on.
    pub code: FailureCode,
    /// What a person can act on: a sentence without a full stop.
    pub message: String,
}

/// What a program can tell apart of a failure.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(from = "u16", into = "u16")]
pub enum FailureCode {
    /// Not a legal frame, message or argument; asking again will not help.
    Malformed,
    /// The two programs speak no common protocol.
    Version,
    /// Not authenticated yet, or the wrong user, password, token, secret or answer.
    Unauthenticated,
    /// The device was revoked.
    Revoked,
    /// Authenticated, but not allowed.
    Forbidden,
    /// What is asked for does not exist.
    NotFound,
    /// What is to be made exists already.
    Exists,
    /// Over a limit of size or number.
    TooLarge,
    /// Too many tries: wait before the next.
    Throttled,
    /// The server cannot do it now (busy, shutting down); asking again later may help.
    Unavailable,
    /// A fault of the server's.
    Internal,
    /// There is no room on the server's disk. Only what brings contents or changes is refused so;
    /// asking again later may help.
    DiskFull,
    /// It would make more of the room of the drive's owner used than the quota allows. Single changes
    /// are refused with [`Refusal::OverQuota`] instead.
    OverQuota,
    /// A code of a newer protocol.
    Unknown(u16),
}

impl From<FailureCode> for u16 {
    fn from(code: FailureCode) -> Self {
        match code {
            FailureCode::Malformed => 1,
            FailureCode::Version => 2,
            FailureCode::Unauthenticated => 3,
            FailureCode::Revoked => 4,
            FailureCode::Forbidden => 5,
            FailureCode::NotFound => 6,
            FailureCode::Exists => 7,
            FailureCode::TooLarge => 8,
            FailureCode::Throttled => 9,
            FailureCode::Unavailable => 10,
            FailureCode::Internal => 11,
            FailureCode::DiskFull => 12,
            FailureCode::OverQuota => 13,
            FailureCode::Unknown(number) => number,
        }
    }
}

impl From<u16> for FailureCode {
    fn from(number: u16) -> Self {
        match number {
            1 => Self::Malformed,
            2 => Self::Version,
            3 => Self::Unauthenticated,
            4 => Self::Revoked,
            5 => Self::Forbidden,
            6 => Self::NotFound,
            7 => Self::Exists,
            8 => Self::TooLarge,
            9 => Self::Throttled,
            10 => Self::Unavailable,
            11 => Self::Internal,
            12 => Self::DiskFull,
            13 => Self::OverQuota,
            unknown => Self::Unknown(unknown),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    #[test]
    fn no_kind_number_is_used_twice() {
        let kinds: BTreeSet<u8> = KINDS.iter().map(|(kind, _)| *kind).collect();
        assert_eq!(kinds.len(), KINDS.len());
    }

    #[test]
    fn a_reader_ignores_fields_it_does_not_know_and_fills_in_missing_ones() {
        #[derive(Serialize)]
        struct NewerHello {
            protocol: u16,
            program: &'static str,
            colour: &'static str,
        }
        let newer = NewerHello { protocol: 2, program: "picloud/9", colour: "blue" };
        let wire = rmp_serde::to_vec_named(&newer).unwrap();
        let hello: Hello = rmp_serde::from_slice(&wire).unwrap();
        assert_eq!(hello.protocol, 2);
        assert!(hello.features.is_empty());
    }

    #[test]
    fn hello_on_the_wire_never_changes() {
        let hello = Hello { protocol: 1, program: "p".into(), features: vec!["f".into()] };
        let wire = rmp_serde::to_vec_named(&hello).unwrap();
        let expected = b"\x83\xa8protocol\x01\xa7program\xa1p\xa8features\x91\xa1f";
        assert_eq!(wire, expected);
    }
}
