//! What the server asks of its database: accounts, manifests, and where contents lie.
//!
//! [`Metadata`] is one connection of a database. SQLite implements it now; whoever adds another
//! database implements this trait and [`crate::server::rules::Manifest`], and nothing else changes.

use std::num::NonZeroU64;

use crate::model::{
    BatchId, Change, ChunkId, DeviceId, Digest, DriveId, Lineage, ListId, Name, NodeId, RelPath,
    Rev, Usage, UserId, Versioned,
};
use crate::protocol::message::ChangeResult;
use crate::server::gate::{Decision, GateLimits};
use crate::server::packs::Location;
use crate::server::rules::undo::{Batch, Outcome};

use super::StoreError;

/// The result of a question to the database.
pub type Result<T> = std::result::Result<T, StoreError>;

/// An account.
#[derive(Clone)]
pub struct User {
    /// Its number within this database.
    pub num: i64,
    /// Its id.
    pub id: UserId,
    /// Its name.
    pub name: String,
    /// Its argon2id hash; none while no password was set.
    pub password: Option<String>,
    /// The TOTP secret in force.
    pub totp: Option<Vec<u8>>,
    /// A TOTP secret that waits for its confirmation.
    pub totp_pending: Option<Vec<u8>>,
    /// When it was made, in milliseconds.
    pub created_ms: i64,
    /// How much room it has.
    pub quota: OwnQuota,
}

/// How much room a user has: what the files of all drives that the user owns may be together.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum OwnQuota {
    /// What the settings say for everybody.
    #[default]
    Default,
    /// No limit, whatever the settings say.
    None,
    /// So many bytes.
    Bytes(NonZeroU64),
}

impl OwnQuota {
    /// Returns the limit in bytes, if there is one; `default` is that of the settings.
    #[must_use]
    pub fn limit(self, default: Option<u64>) -> Option<u64> {
        match self {
            Self::Default => default,
            Self::None => None,
            Self::Bytes(bytes) => Some(bytes.get()),
        }
    }
}

/// What changes are judged by, beside the drive itself.
#[derive(Debug, Clone, Copy, Default)]
pub struct Bounds {
    /// When deletions are held.
    pub gate: GateLimits,
    /// The quota of a user who has none of their own, in bytes.
    pub quota: Option<u64>,
}

impl std::fmt::Debug for User {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("User").field("name", &self.name).finish_non_exhaustive()
    }
}

/// A device, revoked or not.
#[derive(Debug, Clone)]
pub struct Device {
    /// Its number within this database.
    pub num: i64,
    /// Its id.
    pub id: DeviceId,
    /// The number of its user.
    pub user: i64,
    /// Its name.
    pub name: String,
    /// The BLAKE3 hash of its token.
    pub token: [u8; 32],
    /// When it was added, in milliseconds.
    pub added_ms: i64,
    /// When it was last connected, in milliseconds.
    pub last_seen_ms: Option<i64>,
    /// Whether its token is void.
    pub revoked: bool,
}

/// A drive.
#[derive(Debug, Clone)]
pub struct Drive {
    /// Its number within this database.
    pub num: i64,
    /// Its id.
    pub id: DriveId,
    /// The number of the user who owns it.
    pub owner: i64,
    /// Its name.
    pub name: String,
    /// Its lineage.
    pub lineage: Lineage,
    /// Its newest rev.
    pub head: Rev,
    /// The digest over its live nodes.
    pub digest: Digest,
    /// How many live nodes it has.
    pub live: u64,
    /// The sum of the sizes of its live files.
    pub bytes: u64,
}

/// What a change did to the room of a drive's owner.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Spent {
    /// The number of the owner.
    pub owner: i64,
    /// How much is in use now.
    pub usage: Usage,
    /// Whether that is another sum than before.
    pub is_new: bool,
}

/// A chunk that the drive has.
#[derive(Debug, Clone, Copy)]
pub struct ChunkRow {
    /// The chunk.
    pub id: ChunkId,
    /// The length of its plain bytes.
    pub plain_len: u32,
    /// Where it lies.
    pub at: Location,
}

/// A content list that the drive has, with all its chunks.
#[derive(Debug, Clone, Copy)]
pub struct ListRow {
    /// The list.
    pub id: ListId,
    /// The length of the file it describes.
    pub file_len: u64,
    /// Where its encoding lies.
    pub at: Location,
}

/// A node of a page.
#[derive(Debug, Clone)]
pub struct PageNode {
    /// The node.
    pub node: Versioned,
    /// The number of the device that made this version.
    pub author: i64,
}

/// What a page is made of, all of one moment.
#[derive(Debug, Clone)]
pub struct PageRows {
    /// The drive.
    pub drive: Drive,
    /// Nodes in the order of their revs.
    pub nodes: Vec<PageNode>,
    /// Whether there are more up to the head.
    pub more: bool,
}

/// The most held mass deletions of a drive that are told, each of another device: a reply with all
/// of them and their examples (5 paths of at most 1024 bytes each) stays far below a frame's limit.
pub const HELD_MAX: u32 = 100;

/// The most examples told of a held mass deletion.
pub const EXAMPLES_MAX: u32 = 5;

/// The longest path told as an example, in bytes.
pub const EXAMPLE_LEN_MAX: usize = 1024;

/// Held deletions of one device.
#[derive(Debug, Clone)]
pub struct HeldRow {
    /// The device.
    pub device: Device,
    /// How many it has pending by its own word; of a device that does not say, how many nodes it
    /// asked to delete.
    pub deletions: u64,
    /// How many it deleted within the window before, which passed.
    pub earlier: u64,
    /// Since when, in milliseconds.
    pub since_ms: i64,
    /// Whether a person has rejected them.
    pub rejected: bool,
    /// Some of the nodes that it asked to delete, by their paths.
    pub examples: Vec<RelPath>,
}

/// What a commit asks for.
#[derive(Debug, Clone, Copy)]
pub struct Asked<'a> {
    /// The changes, in order.
    pub changes: &'a [Change],
    /// How many deletions the device has pending in all, where it says so.
    pub deletions: Option<u64>,
    /// The time by the server's clock, in milliseconds.
    pub now_ms: i64,
}

/// What became of a commit.
#[derive(Debug, Clone)]
pub struct Applied {
    /// One result per change.
    pub results: Vec<ChangeResult>,
    /// The newest rev before it.
    pub before: Rev,
    /// The newest rev after it; all revs in between are of this commit.
    pub head: Rev,
    /// Whether what [`Metadata::held`] tells of the device is no longer what it was.
    pub held_changed: bool,
    /// What it did to the room of the drive's owner.
    pub spent: Spent,
}

/// How much there is, over all users.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Totals {
    /// Accounts.
    pub users: u64,
    /// Devices that are not revoked.
    pub devices: u64,
    /// Live nodes of the users' drives.
    pub nodes: u64,
    /// Mass deletions that wait for a person.
    pub held: u64,
}

/// What an undo asks for.
#[derive(Debug, Clone, Copy)]
pub struct UndoAsked<'a> {
    /// The batch to undo.
    pub batch: BatchId,
    /// Whether only to say what would happen.
    pub is_dry_run: bool,
    /// Whether a person has approved a mass deletion.
    pub is_approved: bool,
    /// The time by the server's clock, in milliseconds.
    pub now_ms: i64,
    /// The same as a date, for names.
    pub date: &'a str,
}

/// What became of an undo.
#[derive(Debug, Clone)]
pub struct Undone {
    /// What it did, or would do.
    pub outcome: Outcome,
    /// The newest rev before it.
    pub before: Rev,
    /// The newest rev after it.
    pub head: Rev,
    /// What it did to the room of the drive's owner.
    pub spent: Spent,
}

/// Who commits.
#[derive(Debug, Clone, Copy)]
pub struct Author {
    /// The device's number.
    pub num: i64,
    /// The device.
    pub id: DeviceId,
}

/// Whether a connection writes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Access {
    /// It only reads; its transactions see one moment.
    Read,
    /// It writes; its transactions exclude each other and are durable once committed.
    Write,
}

/// Makes connections.
pub trait Database: std::fmt::Debug + Send + Sync + 'static {
    /// Opens one more connection.
    ///
    /// # Errors
    /// When the database cannot be opened, or is of a newer format.
    fn connect(&self, access: Access) -> Result<Box<dyn Metadata>>;
}

/// One connection. Everything but transaction control is called within a transaction.
///
/// Every method fails only when the database does, unless it says more.
#[allow(missing_docs, reason = "the names of the plain accessors say all there is")]
#[allow(clippy::missing_errors_doc, reason = "said once above")]
pub trait Metadata: Send {
    /// Begins a transaction, which sees one moment of the database.
    fn begin(&mut self) -> Result<()>;
    /// Begins a part that can be undone alone.
    fn savepoint(&mut self) -> Result<()>;
    /// Ends the part that was begun last.
    fn release(&mut self) -> Result<()>;
    /// Undoes the part that was begun last.
    fn undo(&mut self) -> Result<()>;
    /// Makes everything durable. When this returns, it is on stable storage.
    fn commit(&mut self) -> Result<()>;
    /// Undoes everything since [`Metadata::begin`].
    fn rollback(&mut self);

    // Accounts.
    fn users(&mut self) -> Result<Vec<User>>;
    fn user(&mut self, num: i64) -> Result<Option<User>>;
    /// Names are looked for without regard to case.
    fn user_by_name(&mut self, name: &str) -> Result<Option<User>>;
    /// Makes an account with its personal drive.
    fn add_user(
        &mut self,
        id: UserId,
        name: &str,
        drive: DriveId,
        lineage: Lineage,
        now_ms: i64,
    ) -> Result<User>;
    /// Ends an account: its devices are revoked, its name is free, its data stays where it is.
    fn remove_user(&mut self, user: i64, now_ms: i64) -> Result<()>;
    fn set_password(&mut self, user: i64, hash: &str) -> Result<()>;
    fn set_totp_pending(&mut self, user: i64, secret: Option<&[u8]>) -> Result<()>;
    /// Puts a TOTP secret in force (or none), and forgets the pending one.
    fn set_totp(&mut self, user: i64, secret: Option<&[u8]>) -> Result<()>;
    /// Takes note that a TOTP step was used; returns whether it was not used before.
    fn use_totp_step(&mut self, user: i64, step: i64) -> Result<bool>;

    fn set_quota(&mut self, user: i64, quota: OwnQuota) -> Result<()>;
    /// Returns how much of a user's room is in use; `default` is the quota in bytes of one who has none of
    /// their own.
    fn usage(&mut self, user: i64, default: Option<u64>) -> Result<Usage>;

    // Devices.
    fn devices(&mut self, user: i64) -> Result<Vec<Device>>;
    fn device(&mut self, id: DeviceId) -> Result<Option<Device>>;
    fn add_device(
        &mut self,
        id: DeviceId,
        user: i64,
        name: &str,
        token: &[u8; 32],
        now_ms: i64,
    ) -> Result<Device>;
    fn revoke_device(&mut self, device: i64, now_ms: i64) -> Result<()>;
    fn set_last_seen(&mut self, device: i64, now_ms: i64) -> Result<()>;
    /// Returns those of these devices that are revoked or gone.
    fn revoked(&mut self, devices: &[DeviceId]) -> Result<Vec<DeviceId>>;
    /// Returns a number that changes with each revocation, removal, decision about held deletions, and
    /// change of a quota, by whatever process.
    fn notice(&mut self) -> Result<i64>;

    // Invitations.
    /// Keeps the hash of a secret; without a user it is an invitation to register.
    fn add_invitation(
        &mut self,
        secret: &[u8; 32],
        user: Option<i64>,
        expires_ms: i64,
        now_ms: i64,
    ) -> Result<()>;
    /// Returns for whom a secret is, if it is one and has not expired; the inner nothing is an
    /// invitation to register.
    fn invitation(&mut self, secret: &[u8; 32], now_ms: i64) -> Result<Option<Option<i64>>>;
    fn end_invitation(&mut self, secret: &[u8; 32]) -> Result<()>;

    // Drives.
    /// Returns the drives a user may use, the own one first.
    fn drives(&mut self, user: i64) -> Result<Vec<Drive>>;
    fn drive(&mut self, drive: i64) -> Result<Option<Drive>>;
    /// Applies changes in order, each accepted or refused by itself, by the rules of
    /// [`crate::server::rules`].
    fn apply(
        &mut self,
        drive: i64,
        author: Author,
        asked: &Asked<'_>,
        bounds: &Bounds,
    ) -> Result<Applied>;
    /// Returns the newest batches up to a rev, at most `count`, and whether there are older ones.
    fn batches(
        &mut self,
        drive: i64,
        upto: Option<Rev>,
        count: usize,
    ) -> Result<(Vec<Batch>, bool)>;
    /// Takes a batch back as one change, or says what that would come to: then a connection that
    /// only reads will do. Fails, too, when there is no such batch.
    fn undo_batch(
        &mut self,
        drive: i64,
        author: Author,
        asked: &UndoAsked<'_>,
        bounds: &Bounds,
    ) -> Result<Undone>;
    /// Returns what a page after `from` is made of: at most `count_max` nodes.
    fn page(&mut self, drive: i64, from: Rev, count_max: usize) -> Result<PageRows>;
    /// Returns whether no node that existed at `upto` has changed since. It may say no wrongly when
    /// very many nodes changed since.
    fn consistent_at(&mut self, drive: i64, upto: Rev) -> Result<bool>;
    fn node(&mut self, drive: i64, id: NodeId) -> Result<Option<Versioned>>;
    fn child(&mut self, drive: i64, parent: NodeId, name: &Name) -> Result<Option<Versioned>>;
    /// Returns who wrote the bytes that a live node holds now, and when, in milliseconds.
    fn author_of(&mut self, drive: i64, id: NodeId) -> Result<Option<(Device, i64)>>;
    /// Returns the name of a device by its number, also of one that was revoked.
    fn device_name(&mut self, num: i64) -> Result<Option<String>>;
    /// Counts what there is, over all users.
    fn totals(&mut self) -> Result<Totals>;
    /// Returns what the contents of a drive take, as packed. It looks at each of them.
    fn stored(&mut self, drive: i64) -> Result<u64>;
    /// Returns live entries in the order of their names.
    fn children(
        &mut self,
        drive: i64,
        dir: NodeId,
        after: Option<&Name>,
        count_max: usize,
    ) -> Result<Vec<Versioned>>;

    // Contents.
    fn chunk(&mut self, drive: i64, id: ChunkId) -> Result<Option<ChunkRow>>;
    fn add_chunk(&mut self, drive: i64, chunk: &ChunkRow) -> Result<()>;
    /// Returns the number of the newest pack in which something lies; 0 when nothing does.
    fn newest_pack(&mut self) -> Result<u32>;
    fn list(&mut self, drive: i64, id: ListId) -> Result<Option<ListRow>>;
    fn add_list(&mut self, drive: i64, list: &ListRow) -> Result<()>;

    // Held deletions.
    /// Returns the held deletions of devices that are not revoked, oldest first, at most
    /// [`HELD_MAX`].
    fn held(&mut self, drive: i64) -> Result<Vec<HeldRow>>;
    /// Takes in what a person decides about a device's held deletions.
    fn decide_held(
        &mut self,
        drive: i64,
        device: i64,
        decision: Decision,
        now_ms: i64,
    ) -> Result<()>;
}
