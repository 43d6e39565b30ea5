//! The metadata in SQLite: one file, WAL, one writer, readers beside it.

use std::num::NonZeroU64;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rusqlite::config::DbConfig;
use rusqlite::types::ValueRef;
use rusqlite::{Connection, OpenFlags, Row, params};

use super::StoreError;
use super::metadata::{
    Access, Applied, Asked, Author, Bounds, ChunkRow, Database, Device, Drive, EXAMPLE_LEN_MAX,
    EXAMPLES_MAX, HELD_MAX, HeldRow, ListRow, Metadata, OwnQuota, PageNode, PageRows, Result,
    Spent, Totals, UndoAsked, Undone, User,
};
use crate::model::{
    Attrs, BatchId, Body, ChunkId, Content, DeviceId, Digest, DriveId, Lineage, ListId, Name, Node,
    NodeId, Place, RelPath, Rev, Timestamp, Usage, UserId, Versioned,
};
use crate::protocol::message::FailureCode;
use crate::server::gate::{Decision, Gate};
use crate::server::packs::Location;
use crate::server::rules::undo::{self, Batch, History, Made, Undo, UndoError};
use crate::server::rules::{self, Manifest, Presence, Version};

/// The steps from each format to the next; the number of steps is the newest format.
const MIGRATIONS: &[&str] = &[
    include_str!("schema.sql"),
    include_str!("schema-2.sql"),
    include_str!("schema-3.sql"),
    include_str!("schema-4.sql"),
];

/// The newest format.
#[allow(clippy::cast_possible_wrap, reason = "there are a handful of steps")]
pub(super) const FORMAT: i64 = MIGRATIONS.len() as i64;

/// How long a writer waits for the writer of another process.
const BUSY: Duration = Duration::from_secs(10);

/// Prepared statements kept per connection: all that there are.
const STATEMENTS_MAX: usize = 96;

/// Log pages after which the log is written back: 16 MiB.
const CHECKPOINT_PAGES: u32 = 4096;

/// The database file.
#[derive(Debug, Clone)]
pub struct Sqlite {
    path: PathBuf,
}

impl Sqlite {
    /// Opens the database, makes it if there is none, and brings it to the newest format.
    ///
    /// # Errors
    /// When it cannot be opened, or is of a newer format.
    pub fn open(path: &Path) -> Result<Self> {
        let sqlite = Self { path: path.to_owned() };
        sqlite.migrate()?;
        Ok(sqlite)
    }

    fn migrate(&self) -> Result<()> {
        let mut connection = self.raw(Access::Write)?;
        // Another process may migrate at the same moment: look and write in one transaction.
        let transaction =
            connection.transaction_with_behavior(rusqlite::TransactionBehavior::Immediate)?;
        let found: i64 = transaction.query_row("PRAGMA user_version", [], |row| row.get(0))?;
        if found > FORMAT {
            return Err(StoreError::TooNew { path: self.path.clone(), found, known: FORMAT });
        }
        let done = usize::try_from(found)
            .map_err(|_| StoreError::Damaged(format!("its format is {found}")))?;
        for step in &MIGRATIONS[done..] {
            transaction.execute_batch(step)?;
        }
        if found < FORMAT {
            transaction.pragma_update(None, "user_version", FORMAT)?;
        }
        transaction.commit()?;
        Ok(())
    }

    fn raw(&self, access: Access) -> Result<Connection> {
        let flags = OpenFlags::SQLITE_OPEN_READ_WRITE
            | OpenFlags::SQLITE_OPEN_CREATE
            | OpenFlags::SQLITE_OPEN_NO_MUTEX;
        let connection = Connection::open_with_flags(&self.path, flags)?;
        connection.busy_timeout(BUSY)?;
        connection.set_prepared_statement_cache_capacity(STATEMENTS_MAX);
        // Else a statement may be compiled anew for each value that is bound to it.
        connection.set_db_config(DbConfig::SQLITE_DBCONFIG_ENABLE_QPSG, true)?;
        use_wal(&connection)?;
        connection.pragma_update(None, "synchronous", "FULL")?;
        connection.pragma_update(None, "foreign_keys", true)?;
        connection.pragma_update(None, "trusted_schema", false)?;
        connection.pragma_update(None, "wal_autocheckpoint", CHECKPOINT_PAGES)?;
        connection.pragma_update(None, "journal_size_limit", 64 * 1024 * 1024)?;
        // 16 MiB for the writer, whose working set is the indexes; 4 MiB for a reader.
        let cache_kib = if access == Access::Write { -16_384 } else { -4096 };
        connection.pragma_update(None, "cache_size", cache_kib)?;
        if access == Access::Read {
            connection.pragma_update(None, "query_only", true)?;
        }
        Ok(connection)
    }
}

/// Puts a database into WAL mode. Another process that opens a new one at the same moment holds a lock
/// for which SQLite does not wait by itself.
fn use_wal(connection: &Connection) -> rusqlite::Result<()> {
    let patience = Instant::now() + BUSY;
    loop {
        match connection.pragma_update(None, "journal_mode", "WAL") {
            Err(error)
                if error.sqlite_error_code() == Some(rusqlite::ErrorCode::DatabaseBusy)
                    && Instant::now() < patience =>
            {
                std::thread::sleep(Duration::from_millis(10));
            }
            outcome => return outcome,
        }
    }
}

impl Database for Sqlite {
    fn connect(&self, access: Access) -> Result<Box<dyn Metadata>> {
        Ok(Box::new(SqliteConnection { connection: self.raw(access)?, access }))
    }
}

struct SqliteConnection {
    connection: Connection,
    access: Access,
}

impl SqliteConnection {
    fn exec(&self, sql: &str, values: impl rusqlite::Params) -> Result<usize> {
        Ok(self.connection.prepare_cached(sql)?.execute(values)?)
    }

    fn one<T>(
        &self,
        sql: &str,
        values: impl rusqlite::Params,
        read: impl FnOnce(&Row<'_>) -> Result<T>,
    ) -> Result<Option<T>> {
        let mut statement = self.connection.prepare_cached(sql)?;
        let mut rows = statement.query(values)?;
        rows.next()?.map(read).transpose()
    }

    fn all<T>(
        &self,
        sql: &str,
        values: impl rusqlite::Params,
        mut read: impl FnMut(&Row<'_>) -> Result<T>,
    ) -> Result<Vec<T>> {
        let mut statement = self.connection.prepare_cached(sql)?;
        let mut rows = statement.query(values)?;
        let mut found = Vec::new();
        while let Some(row) = rows.next()? {
            found.push(read(row)?);
        }
        Ok(found)
    }

    fn gate(&self, drive: i64, device: i64) -> Result<Option<Gate>> {
        self.one(
            "SELECT window_start_ms, passed, live_at_start, held_since_ms, approved_until_ms,
                 announced, rejected_ms
             FROM gate WHERE drive = ?1 AND device = ?2",
            params![drive, device],
            |row| {
                Ok(Gate {
                    window_start_ms: row.get(0)?,
                    passed: unsigned(row, 1)?,
                    live_at_start: unsigned(row, 2)?,
                    held_since_ms: row.get(3)?,
                    approved_until_ms: row.get(4)?,
                    announced: optional_unsigned(row, 5)?,
                    rejected_ms: row.get(6)?,
                })
            },
        )
    }

    fn set_gate(&self, drive: i64, device: i64, gate: &Gate) -> Result<()> {
        self.exec(
            "INSERT OR REPLACE INTO gate (drive, device, window_start_ms, passed, live_at_start,
                 held_since_ms, approved_until_ms, announced, rejected_ms)
             VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9)",
            params![
                drive,
                device,
                gate.window_start_ms,
                signed(gate.passed)?,
                signed(gate.live_at_start)?,
                gate.held_since_ms,
                gate.approved_until_ms,
                gate.announced.map(signed).transpose()?,
                gate.rejected_ms
            ],
        )?;
        Ok(())
    }

    /// Returns a drive to work on, as a device, with the gate as it is stored.
    fn manifest<'a>(
        &'a mut self,
        drive: i64,
        author: Author,
        now_ms: i64,
        bounds: &'a Bounds,
    ) -> Result<SqliteManifest<'a>> {
        let state = Metadata::drive(self, drive)?.ok_or_else(|| {
            StoreError::Damaged(format!("drive {drive} is gone while it is written to"))
        })?;
        let stored = self.gate(drive, author.num)?.unwrap_or_default();
        Ok(SqliteManifest {
            before: state.head,
            bytes_before: state.bytes,
            drive: state,
            author,
            now_ms,
            bounds,
            elsewhere: None,
            gate: stored,
            stored,
            connection: self,
        })
    }

    /// Returns the sum of the sizes of the files in all drives of a user, but for one.
    fn bytes_owned(&self, user: i64, but: Option<i64>) -> Result<u64> {
        let drives = self.all(
            "SELECT bytes FROM drive WHERE owner = ?1 AND num IS NOT ?2",
            params![user, but],
            |row| unsigned(row, 0),
        )?;
        Ok(drives.into_iter().fold(0, u64::saturating_add))
    }

    /// Returns the limit of that sum, also for the drives that a removed user left.
    fn quota_of(&self, user: i64, default: Option<u64>) -> Result<Option<u64>> {
        let own =
            self.one("SELECT quota FROM user WHERE num = ?1", [user], |row| read_quota(row, 0))?;
        Ok(own.unwrap_or_default().limit(default))
    }

    fn forget_held(&self, drive: i64, device: i64) -> Result<()> {
        self.exec("DELETE FROM held WHERE drive = ?1 AND device = ?2", [drive, device])?;
        Ok(())
    }

    /// Returns where some of the nodes are whose deletion is held; those that are gone meanwhile,
    /// and those with very long paths, are left out.
    fn examples(&mut self, drive: i64, device: i64) -> Result<Vec<RelPath>> {
        let nodes = self.all(
            "SELECT node FROM held WHERE drive = ?1 AND device = ?2 ORDER BY node LIMIT ?3",
            params![drive, device, 4 * EXAMPLES_MAX],
            |row| Ok(NodeId::from_bytes(blob(row, 0)?)),
        )?;
        let mut examples = Vec::new();
        for id in nodes {
            if examples.len() < EXAMPLES_MAX as usize
                && let Some(path) = self.short_path(drive, id)?
            {
                examples.push(path);
            }
        }
        Ok(examples)
    }

    fn short_path(&mut self, drive: i64, id: NodeId) -> Result<Option<RelPath>> {
        let (mut names, mut len, mut at) = (Vec::new(), 0, id);
        while at != NodeId::ROOT {
            let Some(Node { place, .. }) = Metadata::node(self, drive, at)?.and_then(|v| v.node)
            else {
                return Ok(None);
            };
            len += place.name.as_bytes().len() + 1;
            if len > EXAMPLE_LEN_MAX {
                return Ok(None);
            }
            names.push(place.name);
            at = place.parent;
        }
        names.reverse();
        Ok(Some(RelPath::from_names(names)))
    }
}

// Values of SQLite: integers are signed 64 bits, ids are blobs.

fn signed(number: u64) -> Result<i64> {
    i64::try_from(number).map_err(|_| StoreError::Damaged(format!("{number} is out of range")))
}

fn unsigned(row: &Row<'_>, column: usize) -> Result<u64> {
    let number: i64 = row.get(column)?;
    u64::try_from(number).map_err(|_| StoreError::Damaged(format!("{number} is out of range")))
}

fn optional_unsigned(row: &Row<'_>, column: usize) -> Result<Option<u64>> {
    match row.get_ref(column)? {
        ValueRef::Null => Ok(None),
        _ => unsigned(row, column).map(Some),
    }
}

fn narrow<T: TryFrom<i64>>(row: &Row<'_>, column: usize) -> Result<T> {
    let number: i64 = row.get(column)?;
    T::try_from(number).map_err(|_| StoreError::Damaged(format!("{number} is out of range")))
}

fn blob<const N: usize>(row: &Row<'_>, column: usize) -> Result<[u8; N]> {
    match row.get_ref(column)? {
        ValueRef::Blob(bytes) => bytes
            .try_into()
            .map_err(|_| StoreError::Damaged(format!("{} bytes where {N} should be", bytes.len()))),
        _ => Err(StoreError::Damaged("a missing id".to_owned())),
    }
}

fn read_rev(row: &Row<'_>, column: usize) -> Result<Rev> {
    unsigned(row, column).map(Rev)
}

/// The columns of a node's state, in the order in which [`read_node`] and [`StateValues`] have them.
const KIND_DIR: i64 = 0;
const KIND_LINK: i64 = 1;
const KIND_EMPTY: i64 = 2;
const KIND_CHUNK: i64 = 3;
const KIND_LIST: i64 = 4;

/// Reads `parent, name, kind, mode, mtime_secs, mtime_nanos, content, len` from `at` on.
fn read_node(row: &Row<'_>, at: usize) -> Result<Option<Node>> {
    if row.get_ref(at)? == ValueRef::Null {
        return Ok(None);
    }
    let damaged = |what: &str| StoreError::Damaged(what.to_owned());
    let name: Vec<u8> = row.get(at + 1)?;
    let kind: i64 = row.get(at + 2)?;
    let file = |content: Content| -> Result<Body> {
        let mtime = Timestamp::new(row.get(at + 4)?, narrow(row, at + 5)?)
            .ok_or_else(|| damaged("a time out of range"))?;
        Ok(Body::File { content, mtime })
    };
    let body = match kind {
        KIND_DIR => Body::Dir,
        KIND_LINK => Body::Link { target: row.get(at + 6)? },
        KIND_EMPTY => file(Content::Empty)?,
        KIND_CHUNK => file(Content::Chunk {
            id: ChunkId::from_bytes(blob(row, at + 6)?),
            len: narrow(row, at + 7)?,
        })?,
        KIND_LIST => file(Content::List {
            id: ListId::from_bytes(blob(row, at + 6)?),
            len: unsigned(row, at + 7)?,
        })?,
        _ => return Err(damaged("a node of unknown kind")),
    };
    Ok(Some(Node {
        place: Place {
            parent: NodeId::from_bytes(blob(row, at)?),
            name: Name::new(name).map_err(|error| StoreError::Damaged(error.to_string()))?,
        },
        body,
        attrs: Attrs { mode: narrow(row, at + 3)? },
    }))
}

/// A node's state as column values.
#[derive(Default)]
struct StateValues<'a> {
    parent: Option<&'a [u8]>,
    name: Option<&'a [u8]>,
    kind: Option<i64>,
    mode: Option<u16>,
    mtime_secs: Option<i64>,
    mtime_nanos: Option<u32>,
    content: Option<&'a [u8]>,
    len: Option<i64>,
}

impl<'a> StateValues<'a> {
    fn of(node: Option<&'a Node>) -> Result<Self> {
        let Some(node) = node else {
            return Ok(Self::default());
        };
        let mut values = Self {
            parent: Some(node.place.parent.as_bytes()),
            name: Some(node.place.name.as_bytes()),
            mode: Some(node.attrs.mode),
            ..Self::default()
        };
        match &node.body {
            Body::Dir => values.kind = Some(KIND_DIR),
            Body::Link { target } => {
                values.kind = Some(KIND_LINK);
                values.content = Some(target);
            }
            Body::File { content, mtime } => {
                values.mtime_secs = Some(mtime.secs);
                values.mtime_nanos = Some(mtime.nanos());
                values.len = Some(signed(content.len())?);
                match content {
                    Content::Empty => values.kind = Some(KIND_EMPTY),
                    Content::Chunk { id, .. } => {
                        values.kind = Some(KIND_CHUNK);
                        values.content = Some(id.as_bytes());
                    }
                    Content::List { id, .. } => {
                        values.kind = Some(KIND_LIST);
                        values.content = Some(id.as_bytes());
                    }
                }
            }
        }
        Ok(values)
    }
}

fn read_location(row: &Row<'_>, at: usize) -> Result<Location> {
    Ok(Location {
        pack: narrow(row, at)?,
        offset: unsigned(row, at + 1)?,
        stored_len: narrow(row, at + 2)?,
    })
}

fn read_user(row: &Row<'_>) -> Result<User> {
    Ok(User {
        num: row.get(0)?,
        id: UserId::from_bytes(blob(row, 1)?),
        name: row.get(2)?,
        password: row.get(3)?,
        totp: row.get(4)?,
        totp_pending: row.get(5)?,
        created_ms: row.get(6)?,
        quota: read_quota(row, 7)?,
    })
}

/// Nothing for the quota of the settings, 0 for none.
fn read_quota(row: &Row<'_>, column: usize) -> Result<OwnQuota> {
    Ok(match optional_unsigned(row, column)? {
        None => OwnQuota::Default,
        Some(bytes) => NonZeroU64::new(bytes).map_or(OwnQuota::None, OwnQuota::Bytes),
    })
}

fn read_device(row: &Row<'_>) -> Result<Device> {
    let revoked: Option<i64> = row.get(7)?;
    Ok(Device {
        num: row.get(0)?,
        id: DeviceId::from_bytes(blob(row, 1)?),
        user: row.get(2)?,
        name: row.get(3)?,
        token: blob(row, 4)?,
        added_ms: row.get(5)?,
        last_seen_ms: row.get(6)?,
        revoked: revoked.is_some(),
    })
}

fn read_drive(row: &Row<'_>) -> Result<Drive> {
    Ok(Drive {
        num: row.get(0)?,
        id: DriveId::from_bytes(blob(row, 1)?),
        owner: row.get(7)?,
        name: row.get(2)?,
        lineage: Lineage::from_bytes(blob(row, 3)?),
        head: read_rev(row, 4)?,
        live: unsigned(row, 5)?,
        digest: Digest::from_bytes(blob(row, 6)?),
        bytes: unsigned(row, 8)?,
    })
}

fn read_versioned(row: &Row<'_>) -> Result<Versioned> {
    Ok(Versioned {
        id: NodeId::from_bytes(blob(row, 0)?),
        rev: read_rev(row, 1)?,
        node: read_node(row, 2)?,
    })
}

const USER: &str =
    "SELECT num, id, name, password, totp, totp_pending, created_ms, quota FROM user";
const DEVICE: &str =
    "SELECT num, id, user, name, token, added_ms, last_seen_ms, revoked_ms FROM device";

impl Metadata for SqliteConnection {
    fn begin(&mut self) -> Result<()> {
        self.exec(
            match self.access {
                Access::Read => "BEGIN DEFERRED",
                Access::Write => "BEGIN IMMEDIATE",
            },
            [],
        )?;
        Ok(())
    }

    fn savepoint(&mut self) -> Result<()> {
        self.exec("SAVEPOINT part", [])?;
        Ok(())
    }

    fn release(&mut self) -> Result<()> {
        self.exec("RELEASE part", [])?;
        Ok(())
    }

    fn undo(&mut self) -> Result<()> {
        self.exec("ROLLBACK TO part", [])?;
        self.release()
    }

    fn commit(&mut self) -> Result<()> {
        self.exec("COMMIT", [])?;
        Ok(())
    }

    fn rollback(&mut self) {
        // Some failures end the transaction by themselves.
        if !self.connection.is_autocommit()
            && let Err(error) = self.exec("ROLLBACK", [])
        {
            tracing::error!(error = %error, "a transaction could not be undone");
        }
    }

    fn users(&mut self) -> Result<Vec<User>> {
        let sql = format!("{USER} WHERE removed_ms IS NULL ORDER BY name COLLATE NOCASE");
        self.all(&sql, [], read_user)
    }

    fn user(&mut self, num: i64) -> Result<Option<User>> {
        let sql = format!("{USER} WHERE num = ?1 AND removed_ms IS NULL");
        self.one(&sql, [num], read_user)
    }

    fn user_by_name(&mut self, name: &str) -> Result<Option<User>> {
        let sql = format!("{USER} WHERE name = ?1 COLLATE NOCASE AND removed_ms IS NULL");
        self.one(&sql, [name], read_user)
    }

    fn add_user(
        &mut self,
        id: UserId,
        name: &str,
        drive: DriveId,
        lineage: Lineage,
        now_ms: i64,
    ) -> Result<User> {
        self.exec(
            "INSERT INTO user (id, name, created_ms) VALUES (?1, ?2, ?3)",
            params![id.as_bytes(), name, now_ms],
        )?;
        let user = self.connection.last_insert_rowid();
        self.exec(
            "INSERT INTO drive (id, owner, name, lineage, digest, created_ms)
             VALUES (?1, ?2, ?3, ?4, ?5, ?6)",
            params![
                drive.as_bytes(),
                user,
                name,
                lineage.as_bytes(),
                Digest::default().to_bytes(),
                now_ms
            ],
        )?;
        let drive = self.connection.last_insert_rowid();
        self.exec("INSERT INTO member (user, drive) VALUES (?1, ?2)", [user, drive])?;
        Ok(User {
            num: user,
            id,
            name: name.to_owned(),
            password: None,
            totp: None,
            totp_pending: None,
            created_ms: now_ms,
            quota: OwnQuota::Default,
        })
    }

    fn remove_user(&mut self, user: i64, now_ms: i64) -> Result<()> {
        self.exec(
            "UPDATE user SET removed_ms = ?2, password = NULL, totp = NULL, totp_pending = NULL
             WHERE num = ?1",
            [user, now_ms],
        )?;
        self.exec(
            "UPDATE device SET revoked_ms = ?2 WHERE user = ?1 AND revoked_ms IS NULL",
            [user, now_ms],
        )?;
        self.exec("DELETE FROM invitation WHERE user = ?1", [user])?;
        self.exec("DELETE FROM member WHERE user = ?1", [user])?;
        self.exec("UPDATE notice SET changes = changes + 1", [])?;
        Ok(())
    }

    fn set_password(&mut self, user: i64, hash: &str) -> Result<()> {
        self.exec("UPDATE user SET password = ?2 WHERE num = ?1", params![user, hash])?;
        Ok(())
    }

    fn set_totp_pending(&mut self, user: i64, secret: Option<&[u8]>) -> Result<()> {
        self.exec("UPDATE user SET totp_pending = ?2 WHERE num = ?1", params![user, secret])?;
        Ok(())
    }

    fn set_totp(&mut self, user: i64, secret: Option<&[u8]>) -> Result<()> {
        self.exec(
            "UPDATE user SET totp = ?2, totp_pending = NULL WHERE num = ?1",
            params![user, secret],
        )?;
        Ok(())
    }

    fn use_totp_step(&mut self, user: i64, step: i64) -> Result<bool> {
        let changed = self.exec(
            "UPDATE user SET totp_last_step = ?2 WHERE num = ?1 AND totp_last_step < ?2",
            [user, step],
        )?;
        Ok(changed == 1)
    }

    fn set_quota(&mut self, user: i64, quota: OwnQuota) -> Result<()> {
        let stored = match quota {
            OwnQuota::Default => None,
            OwnQuota::None => Some(0),
            OwnQuota::Bytes(bytes) => Some(signed(bytes.get())?),
        };
        self.exec("UPDATE user SET quota = ?2 WHERE num = ?1", params![user, stored])?;
        self.exec("UPDATE notice SET changes = changes + 1", [])?;
        Ok(())
    }

    fn usage(&mut self, user: i64, default: Option<u64>) -> Result<Usage> {
        Ok(Usage { used: self.bytes_owned(user, None)?, quota: self.quota_of(user, default)? })
    }

    fn devices(&mut self, user: i64) -> Result<Vec<Device>> {
        let sql = format!("{DEVICE} WHERE user = ?1 AND revoked_ms IS NULL ORDER BY num");
        self.all(&sql, [user], read_device)
    }

    fn device(&mut self, id: DeviceId) -> Result<Option<Device>> {
        let sql = format!("{DEVICE} WHERE id = ?1");
        self.one(&sql, [id.as_bytes()], read_device)
    }

    fn add_device(
        &mut self,
        id: DeviceId,
        user: i64,
        name: &str,
        token: &[u8; 32],
        now_ms: i64,
    ) -> Result<Device> {
        self.exec(
            "INSERT INTO device (id, user, name, token, added_ms, last_seen_ms)
             VALUES (?1, ?2, ?3, ?4, ?5, ?5)",
            params![id.as_bytes(), user, name, token, now_ms],
        )?;
        Ok(Device {
            num: self.connection.last_insert_rowid(),
            id,
            user,
            name: name.to_owned(),
            token: *token,
            added_ms: now_ms,
            last_seen_ms: Some(now_ms),
            revoked: false,
        })
    }

    fn revoke_device(&mut self, device: i64, now_ms: i64) -> Result<()> {
        self.exec(
            "UPDATE device SET revoked_ms = ?2 WHERE num = ?1 AND revoked_ms IS NULL",
            [device, now_ms],
        )?;
        self.exec("UPDATE notice SET changes = changes + 1", [])?;
        Ok(())
    }

    fn set_last_seen(&mut self, device: i64, now_ms: i64) -> Result<()> {
        self.exec("UPDATE device SET last_seen_ms = ?2 WHERE num = ?1", [device, now_ms])?;
        Ok(())
    }

    fn revoked(&mut self, devices: &[DeviceId]) -> Result<Vec<DeviceId>> {
        let mut gone = Vec::new();
        for id in devices {
            if self.device(*id)?.is_none_or(|device| device.revoked) {
                gone.push(*id);
            }
        }
        Ok(gone)
    }

    fn notice(&mut self) -> Result<i64> {
        let found = self.one("SELECT changes FROM notice", [], |row| Ok(row.get(0)?))?;
        Ok(found.unwrap_or(0))
    }

    fn add_invitation(
        &mut self,
        secret: &[u8; 32],
        user: Option<i64>,
        expires_ms: i64,
        now_ms: i64,
    ) -> Result<()> {
        self.exec("DELETE FROM invitation WHERE expires_ms <= ?1", [now_ms])?;
        // At most a hundred links of one user are open: the ones that expire last.
        self.exec(
            "DELETE FROM invitation WHERE user IS ?1 AND secret NOT IN (SELECT secret FROM invitation
                 WHERE user IS ?1 ORDER BY expires_ms DESC LIMIT 99)",
            [user],
        )?;
        self.exec(
            "INSERT INTO invitation (secret, user, expires_ms) VALUES (?1, ?2, ?3)",
            params![secret, user, expires_ms],
        )?;
        Ok(())
    }

    fn invitation(&mut self, secret: &[u8; 32], now_ms: i64) -> Result<Option<Option<i64>>> {
        self.one(
            "SELECT user FROM invitation WHERE secret = ?1 AND expires_ms > ?2",
            params![secret, now_ms],
            |row| Ok(row.get(0)?),
        )
    }

    fn end_invitation(&mut self, secret: &[u8; 32]) -> Result<()> {
        self.exec("DELETE FROM invitation WHERE secret = ?1", params![secret])?;
        Ok(())
    }

    fn drives(&mut self, user: i64) -> Result<Vec<Drive>> {
        self.all(
            "SELECT drive.num, drive.id, name, lineage, head, live, digest, owner, bytes
             FROM member JOIN drive ON drive.num = member.drive
             WHERE member.user = ?1 ORDER BY owner <> ?1, drive.num",
            [user],
            read_drive,
        )
    }

    fn drive(&mut self, drive: i64) -> Result<Option<Drive>> {
        self.one(
            "SELECT num, id, name, lineage, head, live, digest, owner, bytes FROM drive
             WHERE num = ?1",
            [drive],
            read_drive,
        )
    }

    fn apply(
        &mut self,
        drive: i64,
        author: Author,
        asked: &Asked<'_>,
        bounds: &Bounds,
    ) -> Result<Applied> {
        let mut manifest = self.manifest(drive, author, asked.now_ms, bounds)?;
        manifest.gate.announce(asked.deletions, asked.changes.is_empty());
        let results = rules::apply(&mut manifest, author.id, asked.changes)?;
        let spent = manifest.spent()?;
        let (before, head, held_changed) = manifest.write_back()?;
        Ok(Applied { results, before, head, held_changed, spent })
    }

    fn batches(
        &mut self,
        drive: i64,
        upto: Option<Rev>,
        count: usize,
    ) -> Result<(Vec<Batch>, bool)> {
        let nobody = Author { num: 0, id: DeviceId::from_bytes([0; 16]) };
        let bounds = Bounds::default();
        let mut manifest = self.manifest(drive, nobody, 0, &bounds)?;
        let head = manifest.drive.head;
        undo::batches(&mut manifest, upto.map_or(head, |upto| upto.min(head)), count)
    }

    fn undo_batch(
        &mut self,
        drive: i64,
        author: Author,
        asked: &UndoAsked<'_>,
        bounds: &Bounds,
    ) -> Result<Undone> {
        let mut manifest = self.manifest(drive, author, asked.now_ms, bounds)?;
        let how = undo::How {
            author: author.id,
            is_dry_run: asked.is_dry_run,
            is_approved: asked.is_approved,
            date: asked.date,
        };
        let outcome = undo::undo(&mut manifest, asked.batch, how)?.map_err(|error| {
            let code = match error {
                UndoError::OverQuota { .. } => FailureCode::OverQuota,
                UndoError::NoBatch | UndoError::TooLarge | UndoError::Entangled => {
                    FailureCode::NotFound
                }
            };
            StoreError::request(code, error.to_string())
        })?;
        let spent = manifest.spent()?;
        let (before, head) = if asked.is_dry_run {
            (manifest.drive.head, manifest.drive.head)
        } else {
            let (before, head, _) = manifest.write_back()?;
            (before, head)
        };
        Ok(Undone { outcome, before, head, spent })
    }

    fn page(&mut self, drive: i64, from: Rev, count_max: usize) -> Result<PageRows> {
        let state = Metadata::drive(self, drive)?
            .ok_or_else(|| StoreError::Damaged(format!("drive {drive} is gone")))?;
        let limit = i64::try_from(count_max + 1).unwrap_or(i64::MAX);
        let mut nodes = self.all(
            "SELECT id, rev, parent, name, kind, mode, mtime_secs, mtime_nanos, content, len, author
             FROM node WHERE drive = ?1 AND rev > ?2 ORDER BY rev LIMIT ?3",
            params![drive, signed(from.0)?, limit],
            |row| Ok(PageNode { node: read_versioned(row)?, author: row.get(10)? }),
        )?;
        let more = nodes.len() > count_max;
        nodes.truncate(count_max);
        Ok(PageRows { drive: state, nodes, more })
    }

    fn consistent_at(&mut self, drive: i64, upto: Rev) -> Result<bool> {
        // Looks at so many changed nodes only: the answer is a help for planning early, and a wrong
        // no costs a device some patience, while an endless look would cost everybody.
        const LOOKS_MAX: usize = 1000;
        let created = self.all(
            "SELECT created_rev FROM node
             WHERE drive = ?1 AND rev > ?2 AND rev <> created_rev ORDER BY rev LIMIT ?3",
            params![drive, signed(upto.0)?, i64::try_from(LOOKS_MAX).unwrap_or(i64::MAX)],
            |row| read_rev(row, 0),
        )?;
        Ok(created.len() < LOOKS_MAX && created.iter().all(|created| *created > upto))
    }

    fn node(&mut self, drive: i64, id: NodeId) -> Result<Option<Versioned>> {
        self.one(
            "SELECT id, rev, parent, name, kind, mode, mtime_secs, mtime_nanos, content, len
             FROM node WHERE drive = ?1 AND id = ?2",
            params![drive, id.as_bytes()],
            read_versioned,
        )
    }

    fn child(&mut self, drive: i64, parent: NodeId, name: &Name) -> Result<Option<Versioned>> {
        self.one(
            "SELECT id, rev, parent, name, kind, mode, mtime_secs, mtime_nanos, content, len
             FROM node WHERE drive = ?1 AND parent = ?2 AND name = ?3",
            params![drive, parent.as_bytes(), name.as_bytes()],
            read_versioned,
        )
    }

    fn author_of(&mut self, drive: i64, id: NodeId) -> Result<Option<(Device, i64)>> {
        // A node that was moved more often than that is told to be of its oldest move looked at.
        const LOOKS_MAX: i64 = 100;
        let found = self.one(
            "WITH last AS (
                 SELECT rev, author, time_ms, kind, content, len FROM journal
                 WHERE drive = ?1 AND node = ?2 ORDER BY rev DESC LIMIT ?3),
             now AS (SELECT kind, content, len FROM last ORDER BY rev DESC LIMIT 1)
             SELECT author, time_ms FROM last, now
             WHERE now.kind IS NOT NULL AND last.rev > coalesce(
                 (SELECT max(other.rev) FROM last AS other
                  WHERE other.kind IS NOT now.kind OR other.content IS NOT now.content
                     OR other.len IS NOT now.len), 0)
             ORDER BY last.rev LIMIT 1",
            params![drive, id.as_bytes(), LOOKS_MAX],
            |row| Ok((row.get::<_, i64>(0)?, row.get::<_, i64>(1)?)),
        )?;
        let Some((author, time_ms)) = found else {
            return Ok(None);
        };
        let sql = format!("{DEVICE} WHERE num = ?1");
        Ok(self.one(&sql, [author], read_device)?.map(|device| (device, time_ms)))
    }

    fn device_name(&mut self, num: i64) -> Result<Option<String>> {
        self.one("SELECT name FROM device WHERE num = ?1", [num], |row| Ok(row.get(0)?))
    }

    fn totals(&mut self) -> Result<Totals> {
        let totals = self.one(
            "SELECT (SELECT count(*) FROM user WHERE removed_ms IS NULL),
                    (SELECT count(*) FROM device WHERE revoked_ms IS NULL),
                    (SELECT coalesce(sum(live), 0) FROM drive JOIN user ON user.num = drive.owner
                     WHERE user.removed_ms IS NULL),
                    (SELECT count(*) FROM gate JOIN device ON device.num = gate.device
                     WHERE gate.held_since_ms IS NOT NULL AND device.revoked_ms IS NULL)",
            [],
            |row| {
                Ok(Totals {
                    users: unsigned(row, 0)?,
                    devices: unsigned(row, 1)?,
                    nodes: unsigned(row, 2)?,
                    held: unsigned(row, 3)?,
                })
            },
        )?;
        Ok(totals.unwrap_or_default())
    }

    fn stored(&mut self, drive: i64) -> Result<u64> {
        let sum = self.one(
            "SELECT (SELECT coalesce(sum(stored_len), 0) FROM chunk WHERE drive = ?1)
                  + (SELECT coalesce(sum(stored_len), 0) FROM list WHERE drive = ?1)",
            [drive],
            |row| Ok(row.get::<_, i64>(0)?),
        )?;
        Ok(u64::try_from(sum.unwrap_or(0)).unwrap_or(0))
    }

    fn children(
        &mut self,
        drive: i64,
        dir: NodeId,
        after: Option<&Name>,
        count_max: usize,
    ) -> Result<Vec<Versioned>> {
        self.all(
            "SELECT id, rev, parent, name, kind, mode, mtime_secs, mtime_nanos, content, len
             FROM node WHERE drive = ?1 AND parent = ?2 AND name > ?3 ORDER BY name LIMIT ?4",
            params![
                drive,
                dir.as_bytes(),
                after.map_or(&b""[..], Name::as_bytes),
                i64::try_from(count_max).unwrap_or(i64::MAX)
            ],
            read_versioned,
        )
    }

    fn chunk(&mut self, drive: i64, id: ChunkId) -> Result<Option<ChunkRow>> {
        self.one(
            "SELECT plain_len, pack, offset, stored_len FROM chunk WHERE drive = ?1 AND id = ?2",
            params![drive, id.as_bytes()],
            |row| Ok(ChunkRow { id, plain_len: narrow(row, 0)?, at: read_location(row, 1)? }),
        )
    }

    fn add_chunk(&mut self, drive: i64, chunk: &ChunkRow) -> Result<()> {
        self.exec(
            "INSERT OR IGNORE INTO chunk (drive, id, plain_len, pack, offset, stored_len)
             VALUES (?1, ?2, ?3, ?4, ?5, ?6)",
            params![
                drive,
                chunk.id.as_bytes(),
                chunk.plain_len,
                chunk.at.pack,
                signed(chunk.at.offset)?,
                chunk.at.stored_len
            ],
        )?;
        Ok(())
    }

    fn newest_pack(&mut self) -> Result<u32> {
        let found = self.one(
            "SELECT max(coalesce((SELECT max(pack) FROM chunk), 0),
                 coalesce((SELECT max(pack) FROM list), 0))",
            [],
            |row| narrow(row, 0),
        )?;
        Ok(found.unwrap_or(0))
    }

    fn list(&mut self, drive: i64, id: ListId) -> Result<Option<ListRow>> {
        self.one(
            "SELECT file_len, pack, offset, stored_len FROM list WHERE drive = ?1 AND id = ?2",
            params![drive, id.as_bytes()],
            |row| Ok(ListRow { id, file_len: unsigned(row, 0)?, at: read_location(row, 1)? }),
        )
    }

    fn add_list(&mut self, drive: i64, list: &ListRow) -> Result<()> {
        self.exec(
            "INSERT OR IGNORE INTO list (drive, id, file_len, pack, offset, stored_len)
             VALUES (?1, ?2, ?3, ?4, ?5, ?6)",
            params![
                drive,
                list.id.as_bytes(),
                signed(list.file_len)?,
                list.at.pack,
                signed(list.at.offset)?,
                list.at.stored_len
            ],
        )?;
        Ok(())
    }

    fn held(&mut self, drive: i64) -> Result<Vec<HeldRow>> {
        let mut rows = self.all(
            "SELECT device.num, device.id, device.user, device.name, token, added_ms, last_seen_ms,
                 revoked_ms, held_since_ms, rejected_ms, coalesce(announced,
                 (SELECT count(*) FROM held WHERE held.drive = gate.drive AND held.device = gate.device)),
                 passed
             FROM gate JOIN device ON device.num = gate.device
             WHERE gate.drive = ?1 AND held_since_ms IS NOT NULL AND revoked_ms IS NULL
             ORDER BY held_since_ms LIMIT ?2",
            params![drive, HELD_MAX],
            |row| {
                let rejected: Option<i64> = row.get(9)?;
                Ok(HeldRow {
                    device: read_device(row)?,
                    since_ms: row.get(8)?,
                    rejected: rejected.is_some(),
                    deletions: unsigned(row, 10)?,
                    earlier: unsigned(row, 11)?,
                    examples: Vec::new(),
                })
            },
        )?;
        for row in &mut rows {
            row.examples = self.examples(drive, row.device.num)?;
        }
        Ok(rows)
    }

    fn decide_held(
        &mut self,
        drive: i64,
        device: i64,
        decision: Decision,
        now_ms: i64,
    ) -> Result<()> {
        let mut gate = self.gate(drive, device)?.unwrap_or_default();
        gate.decide(decision, now_ms);
        self.set_gate(drive, device, &gate)?;
        if decision == Decision::Approve {
            self.forget_held(drive, device)?;
        }
        self.exec("UPDATE notice SET changes = changes + 1", [])?;
        Ok(())
    }
}

/// One drive within a transaction. Head, digest, count and gate are written back at its end.
struct SqliteManifest<'a> {
    connection: &'a SqliteConnection,
    drive: Drive,
    author: Author,
    now_ms: i64,
    bounds: &'a Bounds,
    gate: Gate,
    /// The head, the sum of the sizes and the gate as they were at its beginning.
    before: Rev,
    bytes_before: u64,
    stored: Gate,
    /// What the owner's other drives hold, and the quota, once that was asked for.
    elsewhere: Option<Usage>,
}

impl SqliteManifest<'_> {
    /// Writes back what has changed; returns the head before and now, and whether what is told of
    /// held deletions is no longer what it was.
    fn write_back(self) -> Result<(Rev, Rev, bool)> {
        let Self { connection, drive, author, gate, stored, before, .. } = self;
        if drive.head != before {
            connection.exec(
                "UPDATE drive SET head = ?2, live = ?3, digest = ?4, bytes = ?5 WHERE num = ?1",
                params![
                    drive.num,
                    signed(drive.head.0)?,
                    signed(drive.live)?,
                    drive.digest.to_bytes(),
                    signed(drive.bytes)?
                ],
            )?;
        }
        let gate = gate.at_rest();
        if gate != stored {
            connection.set_gate(drive.num, author.num, &gate)?;
        }
        if gate.held_since_ms.is_none() && stored.held_since_ms.is_some() {
            connection.forget_held(drive.num, author.num)?;
        }
        let shown = |gate: &Gate| (gate.held_since_ms, gate.announced, gate.rejected_ms);
        Ok((before, drive.head, shown(&gate) != shown(&stored)))
    }

    /// Returns what was done so far to the room of the owner.
    fn spent(&mut self) -> Result<Spent> {
        let is_new = self.drive.bytes != self.bytes_before;
        Ok(Spent { owner: self.drive.owner, usage: Manifest::usage(self)?, is_new })
    }

    fn journal(&self, sql: &str, id: NodeId, rev: Rev) -> Result<Option<Version>> {
        self.connection.one(
            sql,
            params![self.drive.num, id.as_bytes(), signed(rev.0)?],
            read_version,
        )
    }
}

fn read_version(row: &Row<'_>) -> Result<Version> {
    Ok(Version {
        rev: read_rev(row, 0)?,
        author: DeviceId::from_bytes(blob(row, 1)?),
        node: read_node(row, 2)?,
    })
}

impl Manifest for SqliteManifest<'_> {
    type Error = StoreError;

    fn current(&mut self, id: NodeId) -> Result<Option<Version>> {
        self.connection.one(
            "SELECT rev, device.id, parent, node.name, kind, mode, mtime_secs, mtime_nanos, content, len
             FROM node JOIN device ON device.num = author WHERE drive = ?1 AND node.id = ?2",
            params![self.drive.num, id.as_bytes()],
            read_version,
        )
    }

    fn version(&mut self, id: NodeId, rev: Rev) -> Result<Option<Version>> {
        self.journal(
            "SELECT rev, device.id, parent, journal.name, kind, mode, mtime_secs, mtime_nanos, content, len
             FROM journal JOIN device ON device.num = author
             WHERE drive = ?1 AND node = ?2 AND rev = ?3",
            id,
            rev,
        )
    }

    fn version_after(&mut self, id: NodeId, rev: Rev) -> Result<Option<Version>> {
        self.journal(
            "SELECT rev, device.id, parent, journal.name, kind, mode, mtime_secs, mtime_nanos, content, len
             FROM journal JOIN device ON device.num = author
             WHERE drive = ?1 AND node = ?2 AND rev > ?3 ORDER BY rev LIMIT 1",
            id,
            rev,
        )
    }

    fn child(&mut self, parent: NodeId, name: &Name) -> Result<Option<NodeId>> {
        self.connection.one(
            "SELECT id FROM node WHERE drive = ?1 AND parent = ?2 AND name = ?3",
            params![self.drive.num, parent.as_bytes(), name.as_bytes()],
            |row| Ok(NodeId::from_bytes(blob(row, 0)?)),
        )
    }

    fn children(&mut self, dir: NodeId, limit: usize) -> Result<Vec<NodeId>> {
        self.connection.all(
            "SELECT id FROM node WHERE drive = ?1 AND parent = ?2 LIMIT ?3",
            params![self.drive.num, dir.as_bytes(), i64::try_from(limit).unwrap_or(i64::MAX)],
            |row| Ok(NodeId::from_bytes(blob(row, 0)?)),
        )
    }

    fn vacate(&mut self, id: NodeId, _place: &Place) -> Result<()> {
        self.connection.exec(
            "UPDATE node SET parent = NULL, name = NULL WHERE drive = ?1 AND id = ?2",
            params![self.drive.num, id.as_bytes()],
        )?;
        Ok(())
    }

    fn presence(&mut self, content: &Content) -> Result<Presence> {
        let (sql, id, missing) = match content {
            Content::Empty => return Ok(Presence::Present),
            Content::Chunk { id, .. } => (
                "SELECT plain_len FROM chunk WHERE drive = ?1 AND id = ?2",
                id.as_bytes(),
                Presence::Missing(Some(*id)),
            ),
            Content::List { id, .. } => (
                "SELECT file_len FROM list WHERE drive = ?1 AND id = ?2",
                id.as_bytes(),
                Presence::Missing(None),
            ),
        };
        let len = self.connection.one(sql, params![self.drive.num, id], |row| unsigned(row, 0))?;
        Ok(match len {
            None => missing,
            Some(len) if len == content.len() => Presence::Present,
            Some(_) => Presence::WrongLen,
        })
    }

    fn usage(&mut self) -> Result<Usage> {
        let elsewhere = match self.elsewhere {
            Some(elsewhere) => elsewhere,
            None => {
                let owner = self.drive.owner;
                let used = self.connection.bytes_owned(owner, Some(self.drive.num))?;
                let quota = self.connection.quota_of(owner, self.bounds.quota)?;
                *self.elsewhere.insert(Usage { used, quota })
            }
        };
        Ok(Usage { used: elsewhere.used.saturating_add(self.drive.bytes), ..elsewhere })
    }

    fn admit_deletion(&mut self, _author: DeviceId, id: NodeId) -> Result<bool> {
        let passes = self.gate.admit(self.now_ms, self.drive.live, &self.bounds.gate);
        if !passes {
            self.connection.exec(
                "INSERT OR IGNORE INTO held (drive, device, node) VALUES (?1, ?2, ?3)",
                params![self.drive.num, self.author.num, id.as_bytes()],
            )?;
        }
        Ok(passes)
    }

    fn put(
        &mut self,
        id: NodeId,
        _author: DeviceId,
        before: Option<&Version>,
        node: Option<Node>,
    ) -> Result<Rev> {
        let rev = self.drive.head.next();
        self.drive.head = rev;
        if let Some(Version { rev, node: Some(node), .. }) = before {
            self.drive.digest.remove(id, *rev, node);
            self.drive.live = self.drive.live.saturating_sub(1);
            self.drive.bytes = self.drive.bytes.saturating_sub(node.body.content_len());
        }
        if let Some(node) = &node {
            self.drive.digest.add(id, rev, node);
            self.drive.live += 1;
            self.drive.bytes = self.drive.bytes.saturating_add(node.body.content_len());
        }
        let values = StateValues::of(node.as_ref())?;
        let (number, author) = (signed(rev.0)?, self.author.num);
        if before.is_none() {
            self.connection.exec(
                "INSERT INTO node (drive, id, rev, created_rev, author, parent, name, kind, mode,
                     mtime_secs, mtime_nanos, content, len)
                 VALUES (?1, ?2, ?3, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12)",
                params![
                    self.drive.num,
                    id.as_bytes(),
                    number,
                    author,
                    values.parent,
                    values.name,
                    values.kind,
                    values.mode,
                    values.mtime_secs,
                    values.mtime_nanos,
                    values.content,
                    values.len
                ],
            )?;
        } else {
            self.connection.exec(
                "UPDATE node SET rev = ?3, author = ?4, parent = ?5, name = ?6, kind = ?7, mode = ?8,
                     mtime_secs = ?9, mtime_nanos = ?10, content = ?11, len = ?12
                 WHERE drive = ?1 AND id = ?2",
                params![
                    self.drive.num,
                    id.as_bytes(),
                    number,
                    author,
                    values.parent,
                    values.name,
                    values.kind,
                    values.mode,
                    values.mtime_secs,
                    values.mtime_nanos,
                    values.content,
                    values.len
                ],
            )?;
        }
        self.connection.exec(
            "INSERT INTO journal (drive, node, rev, prev_rev, author, time_ms, parent, name, kind,
                 mode, mtime_secs, mtime_nanos, content, len)
             VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12, ?13, ?14)",
            params![
                self.drive.num,
                id.as_bytes(),
                number,
                signed(before.map_or(0, |version| version.rev.0))?,
                author,
                self.now_ms,
                values.parent,
                values.name,
                values.kind,
                values.mode,
                values.mtime_secs,
                values.mtime_nanos,
                values.content,
                values.len
            ],
        )?;
        Ok(rev)
    }
}

fn read_undo(row: &Row<'_>) -> Result<Undo> {
    Ok(Undo {
        by: BatchId { first: read_rev(row, 0)?, last: read_rev(row, 1)? },
        of: BatchId { first: read_rev(row, 2)?, last: read_rev(row, 3)? },
    })
}

impl History for SqliteManifest<'_> {
    fn made(&mut self, first: Rev, last: Rev, limit: usize) -> Result<Vec<Made>> {
        self.connection.all(
            "SELECT rev, node, prev_rev, device.id, time_ms
             FROM journal JOIN device ON device.num = author
             WHERE drive = ?1 AND rev BETWEEN ?2 AND ?3 ORDER BY rev DESC LIMIT ?4",
            params![
                self.drive.num,
                signed(first.0)?,
                signed(last.0)?,
                i64::try_from(limit).unwrap_or(i64::MAX)
            ],
            |row| {
                Ok(Made {
                    rev: read_rev(row, 0)?,
                    node: NodeId::from_bytes(blob(row, 1)?),
                    prev: read_rev(row, 2)?,
                    author: DeviceId::from_bytes(blob(row, 3)?),
                    time_ms: row.get(4)?,
                })
            },
        )
    }

    fn version_before(&mut self, id: NodeId, rev: Rev) -> Result<Option<Version>> {
        self.journal(
            "SELECT rev, device.id, parent, journal.name, kind, mode, mtime_secs, mtime_nanos, content, len
             FROM journal JOIN device ON device.num = author
             WHERE drive = ?1 AND node = ?2 AND rev < ?3 ORDER BY rev DESC LIMIT 1",
            id,
            rev,
        )
    }

    fn undo_of(&mut self, batch: BatchId) -> Result<Option<Undo>> {
        self.connection.one(
            "SELECT first_rev, last_rev, of_first, of_last FROM undo
             WHERE drive = ?1 AND of_first = ?2 AND of_last = ?3 ORDER BY first_rev DESC LIMIT 1",
            params![self.drive.num, signed(batch.first.0)?, signed(batch.last.0)?],
            read_undo,
        )
    }

    fn undo_upto(&mut self, rev: Rev) -> Result<Option<Undo>> {
        self.connection.one(
            "SELECT first_rev, last_rev, of_first, of_last FROM undo
             WHERE drive = ?1 AND first_rev <= ?2 ORDER BY first_rev DESC LIMIT 1",
            params![self.drive.num, signed(rev.0)?],
            read_undo,
        )
    }

    fn add_undo(&mut self, undo: Undo) -> Result<()> {
        self.connection.exec(
            "INSERT INTO undo (drive, first_rev, last_rev, of_first, of_last)
             VALUES (?1, ?2, ?3, ?4, ?5)",
            params![
                self.drive.num,
                signed(undo.by.first.0)?,
                signed(undo.by.last.0)?,
                signed(undo.of.first.0)?,
                signed(undo.of.last.0)?
            ],
        )?;
        Ok(())
    }

    fn admit_at_once(&mut self, _author: DeviceId, count: u64, tried: bool) -> Result<bool> {
        let mut gate = self.gate;
        let passes = gate.admit_at_once(self.now_ms, self.drive.live, &self.bounds.gate, count);
        if !tried {
            self.gate = gate;
        }
        Ok(passes)
    }
}
