//! The three trees on this disk: an SQLite database per folder.
//!
//! One row per node, keyed by the order in which the nodes were first written, with the columns the
//! indexes of [`Trees`] need and the encoded [`Entry`]. Everything since the last checkpoint is one
//! open transaction, so a crash leaves the trees of some checkpoint, which is all the engine asks
//! for: what it did since is found again by looking. A database that is damaged is set aside under
//! another name; the first pass after that is a union, because a new database says so
//! (`Meta::linked` is false). Damage is looked for when the database is opened (its structure) and
//! whenever an entry is read (each carries a check of its own). The format is described in
//! `docs/formats.md`.

use std::cell::RefCell;
use std::collections::HashMap;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use rusqlite::config::DbConfig;
use rusqlite::{Connection, OpenFlags, OptionalExtension as _, params};
use serde::{Deserialize, Serialize};

use crate::engine::trees::{
    Entry, Local, LocalBody, Meta, Putting, Remote, Sent, StandsFor, Totals, Trees, counted_for,
};
use crate::model::{
    Body, DriveId, Flow, FolderId, ListId, Name, Node, NodeId, NodeIdHash, Place, original_of,
};

/// The format written here, in `PRAGMA user_version`.
const FORMAT: i32 = 2;

/// The format before, in which the keys of names (see [`at_key`]) were made otherwise.
const FORMAT_OF_OTHER_KEYS: i32 = 1;

/// Entries that are given new keys at a time.
const REKEYED_AT_A_TIME: usize = 1000;

/// Entries of each of the two generations of the read cache: more than the engine has operations
/// under way. An entry is about 600 bytes, so both generations full are about 5 MiB.
const CACHED_MAX: usize = 4 * 1024;

/// Commits that were sent and not answered yet, what is being put on this disk, and the larger files on
/// it by their content. Younger than the rest of the schema; a version that does not know these tables is
/// not disturbed by them.
const YOUNGER_SCHEMA: &str = "
    CREATE TABLE IF NOT EXISTS sent (number INTEGER PRIMARY KEY, changes BLOB NOT NULL);
    CREATE TABLE IF NOT EXISTS putting (node BLOB PRIMARY KEY, putting BLOB NOT NULL)
        WITHOUT ROWID;
    CREATE TABLE IF NOT EXISTS local_list (list BLOB, node BLOB, PRIMARY KEY (list, node))
        WITHOUT ROWID;";

/// How many damaged databases are kept beside the one in use: the newest ones.
const SET_ASIDE_MAX: usize = 3;

/// The bytes after an entry that tell whether it is as it was written.
const CHECK_LEN: usize = 8;

const SCHEMA: &str = "
    CREATE TABLE meta (key TEXT PRIMARY KEY, value BLOB NOT NULL) WITHOUT ROWID;
    CREATE TABLE entry (
        seq INTEGER PRIMARY KEY,
        id BLOB NOT NULL UNIQUE,
        local_parent BLOB,
        local_at INTEGER,
        ino INTEGER,
        remote_parent BLOB,
        remote_at INTEGER,
        dirty INTEGER NOT NULL,
        shared INTEGER NOT NULL,
        listed INTEGER NOT NULL,
        conflict INTEGER NOT NULL,
        data BLOB NOT NULL
    );
    CREATE INDEX entry_local_parent ON entry (local_parent, id) WHERE local_parent IS NOT NULL;
    CREATE INDEX entry_local_at ON entry (local_at) WHERE local_at IS NOT NULL;
    CREATE INDEX entry_ino ON entry (ino) WHERE ino IS NOT NULL;
    CREATE INDEX entry_remote_parent ON entry (remote_parent, id) WHERE remote_parent IS NOT NULL;
    CREATE INDEX entry_remote_at ON entry (remote_at) WHERE remote_at IS NOT NULL;
    CREATE INDEX entry_dirty ON entry (seq) WHERE dirty;
    CREATE INDEX entry_listed ON entry (seq) WHERE listed;
    CREATE INDEX entry_conflict ON entry (seq) WHERE conflict;
";

/// Why the trees cannot be kept.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StateError {
    /// The database refused a step.
    #[error("Cannot use the state database {path:?}")]
    Database {
        /// The database.
        path: PathBuf,
        /// Why.
        source: rusqlite::Error,
    },
    /// The database answers, but what it holds makes no sense.
    #[error("The state database {path:?} is damaged: {reason}")]
    Damaged {
        /// The database.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// A newer version of this program wrote it.
    #[error(
        "The state database {path:?} has format {found}, but this version reads up to {FORMAT}: \
         upgrade picloud on this device"
    )]
    TooNew {
        /// The database.
        path: PathBuf,
        /// Its format.
        found: i32,
    },
    /// It belongs to another folder or drive.
    #[error(
        "The state database {path:?} belongs to {found}, not to {expected}: \
         give each folder a state directory of its own"
    )]
    Foreign {
        /// The database.
        path: PathBuf,
        /// What it belongs to.
        found: String,
        /// What was to be opened.
        expected: String,
    },
    /// Its directory cannot be made, or it cannot be set aside.
    #[error("Cannot prepare {path:?} for the state database")]
    Disk {
        /// The directory or file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
}

impl StateError {
    /// A statement that makes no sense to a database when it is opened found another content there
    /// than ours: tables that are missing, or there already.
    fn at_open(self) -> Self {
        match self {
            Self::Database { path, source }
                if source.sqlite_error_code() == Some(rusqlite::ErrorCode::Unknown)
                    || matches!(source, rusqlite::Error::SqlInputError { .. }) =>
            {
                Self::Damaged { path, reason: source.to_string() }
            }
            other => other,
        }
    }

    /// Returns whether the database is beyond use, so that a new one is the way on.
    #[must_use]
    pub fn is_damage(&self) -> bool {
        match self {
            Self::Damaged { .. } => true,
            Self::Database { source, .. } => match source {
                // Nothing of the kind is ever written to these columns.
                rusqlite::Error::FromSqlConversionFailure(..)
                | rusqlite::Error::InvalidColumnType(..)
                | rusqlite::Error::IntegralValueOutOfRange(..) => true,
                other => matches!(
                    other.sqlite_error_code(),
                    Some(rusqlite::ErrorCode::DatabaseCorrupt | rusqlite::ErrorCode::NotADatabase)
                ),
            },
            Self::TooNew { .. } | Self::Foreign { .. } | Self::Disk { .. } => false,
        }
    }
}

/// How an entry is encoded: as itself, but for states that are equal, which are the rule.
#[derive(Serialize, Deserialize)]
struct Stored<'a> {
    local: Option<StoredLocal<'a>>,
    remote: Option<std::borrow::Cow<'a, Remote>>,
    synced: StoredSynced<'a>,
    /// Only there where it is so: earlier versions write none.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    left_out: bool,
}

/// [`Local`] without a place that is the remote one.
#[derive(Serialize, Deserialize)]
struct StoredLocal<'a> {
    place: Option<std::borrow::Cow<'a, Place>>,
    alias: Option<std::borrow::Cow<'a, Name>>,
    stat: crate::engine::seam::Stat,
    body: std::borrow::Cow<'a, LocalBody>,
    racy: bool,
    parked: bool,
    stands_for: Option<StandsFor>,
}

/// `Entry::synced`, when it is not the remote state.
#[derive(Serialize, Deserialize)]
enum StoredSynced<'a> {
    None,
    AsRemote,
    Own(std::borrow::Cow<'a, Node>),
}

fn encode(entry: &Entry) -> Result<Vec<u8>, String> {
    use std::borrow::Cow::Borrowed;
    let remote = entry.remote.as_ref();
    let stored = Stored {
        local: entry.local.as_ref().map(|local| StoredLocal {
            place: remote
                .is_none_or(|remote| remote.node.place != local.place)
                .then_some(Borrowed(&local.place)),
            alias: local.alias.as_ref().map(Borrowed),
            stat: local.stat,
            body: Borrowed(&local.body),
            racy: local.racy,
            parked: local.parked,
            stands_for: local.stands_for,
        }),
        remote: remote.map(Borrowed),
        synced: match &entry.synced {
            None => StoredSynced::None,
            Some(synced) if remote.is_some_and(|remote| remote.node == *synced) => {
                StoredSynced::AsRemote
            }
            Some(synced) => StoredSynced::Own(Borrowed(synced)),
        },
        left_out: entry.left_out,
    };
    let mut data = rmp_serde::to_vec(&stored).map_err(|error| error.to_string())?;
    data.extend_from_slice(&check_of(&data));
    Ok(data)
}

fn check_of(data: &[u8]) -> [u8; CHECK_LEN] {
    let mut check = [0; CHECK_LEN];
    check.copy_from_slice(&blake3::hash(data).as_bytes()[..CHECK_LEN]);
    check
}

fn decode(data: &[u8]) -> Result<Entry, String> {
    let checked = data.split_last_chunk().filter(|(entry, check)| **check == check_of(entry));
    let stored: Stored<'static> = match checked {
        Some((entry, _)) => rmp_serde::from_slice(entry).map_err(|error| error.to_string())?,
        None => {
            let mut rest = data;
            let stored = rmp_serde::from_read(&mut rest).map_err(|error| error.to_string())?;
            // Entries of early versions end without a check.
            if !rest.is_empty() {
                return Err("it is not what was written".to_owned());
            }
            stored
        }
    };
    let remote = stored.remote.map(std::borrow::Cow::into_owned);
    let same = || {
        remote
            .as_ref()
            .map(|remote| remote.node.clone())
            .ok_or("an entry refers to a remote state that it does not have")
    };
    let synced = match stored.synced {
        StoredSynced::None => None,
        StoredSynced::AsRemote => Some(same()?),
        StoredSynced::Own(node) => Some(node.into_owned()),
    };
    let local = match stored.local {
        None => None,
        Some(local) => Some(Local {
            place: match local.place {
                Some(place) => place.into_owned(),
                None => same()?.place,
            },
            alias: local.alias.map(std::borrow::Cow::into_owned),
            stat: local.stat,
            body: local.body.into_owned(),
            racy: local.racy,
            parked: local.parked,
            stands_for: local.stands_for,
        }),
    };
    Ok(Entry { local, remote, synced, left_out: stored.left_out })
}

/// Returns the index key of a name in a directory. Two names may share one: what an index finds is
/// compared in full. The names of a directory are beside each other in the index, so that looking
/// through one, or writing one, takes few pages of it.
fn at_key(parent: NodeId, name: &Name) -> i64 {
    let mut key = [0; 8];
    // Of an id, what is not the time it was made at differs most.
    key[..4].copy_from_slice(&parent.as_bytes()[NodeId::LEN - 4..]);
    key[4..].copy_from_slice(&blake3::hash(name.as_bytes()).as_bytes()[..4]);
    i64::from_be_bytes(key)
}

/// Which columns of an entry, beside `data` and `shared`, are others than before.
#[derive(Clone, Copy)]
struct Changed {
    local: bool,
    ino: bool,
    remote: bool,
    dirty: bool,
    listed: bool,
    conflict: bool,
}

impl Changed {
    fn between(old: &Entry, new: &Entry) -> Self {
        let local = local_spot(old) != local_spot(new);
        Self {
            local,
            ino: ino_of(old) != ino_of(new),
            remote: remote_place(old) != remote_place(new),
            dirty: old.is_dirty() != new.is_dirty(),
            listed: is_listed(old) != is_listed(new),
            conflict: local && is_conflict(old) != is_conflict(new),
        }
    }
}

/// Returns where a node is on this disk, and whether it is parked.
fn local_spot(entry: &Entry) -> Option<(NodeId, &Name, bool)> {
    let local = entry.local.as_ref()?;
    Some((local.place.parent, local.disk_name(), local.parked))
}

fn local_at(entry: &Entry) -> Option<i64> {
    let (parent, name, is_parked) = local_spot(entry)?;
    (!is_parked).then(|| at_key(parent, name))
}

fn ino_of(entry: &Entry) -> Option<i64> {
    entry.local.as_ref().map(|local| local.stat.ino.cast_signed())
}

fn remote_place(entry: &Entry) -> Option<&Place> {
    entry.remote.as_ref().map(|remote| &remote.node.place)
}

fn remote_at(entry: &Entry) -> Option<i64> {
    remote_place(entry).map(|place| at_key(place.parent, &place.name))
}

fn is_listed(entry: &Entry) -> bool {
    lists_of(entry).next().is_some()
}

/// Returns whether its name on this disk is that of a conflict copy.
fn is_conflict(entry: &Entry) -> bool {
    local_spot(entry).is_some_and(|(_, name, is_parked)| !is_parked && original_of(name).is_some())
}

fn is_shared(entry: &Entry) -> bool {
    entry.remote.is_some() || entry.synced.is_some()
}

/// Returns the content list of the file on this disk.
fn local_list(entry: &Entry) -> Option<ListId> {
    entry.local.as_ref().and_then(Local::list)
}

/// Returns the content lists an entry refers to.
fn lists_of(entry: &Entry) -> impl Iterator<Item = ListId> + '_ {
    let of_node = move |node: &Node| match &node.body {
        Body::File { content, .. } => content.list(),
        Body::Dir | Body::Link { .. } => None,
    };
    let local = entry.local.as_ref().and_then(Local::list);
    let remote = entry.remote.as_ref().and_then(|remote| of_node(&remote.node));
    let synced = entry.synced.as_ref().and_then(of_node);
    local.into_iter().chain(remote).chain(synced)
}

/// Entries read or written lately, in two generations: when the young one is full it becomes the
/// old one, and the old one goes.
#[derive(Default)]
struct Cache {
    young: HashMap<NodeId, (Option<i64>, Box<Entry>), NodeIdHash>,
    old: HashMap<NodeId, (Option<i64>, Box<Entry>), NodeIdHash>,
}

impl Cache {
    fn get(&mut self, id: NodeId) -> Option<&(Option<i64>, Box<Entry>)> {
        if !self.old.is_empty()
            && let Some((seq, entry)) = self.old.remove(&id)
        {
            self.insert(id, seq, entry);
        }
        self.young.get(&id)
    }

    fn insert(&mut self, id: NodeId, seq: Option<i64>, entry: Box<Entry>) {
        if self.young.len() >= CACHED_MAX {
            self.old = std::mem::take(&mut self.young);
        }
        if !self.old.is_empty() {
            self.old.remove(&id);
        }
        self.young.insert(id, (seq, entry));
    }
}

/// The three trees of one folder, in an SQLite database. See the module.
pub struct SqliteTrees {
    path: PathBuf,
    connection: Connection,
    cache: RefCell<Cache>,
    totals: Totals,
    meta: Meta,
    /// The position of the next new entry; never used twice while the database is open.
    next_seq: i64,
    in_transaction: bool,
    /// Whether something is committed that a power cut may take.
    is_unsynced: bool,
    /// Which file is open: device and inode.
    file: (u64, u64),
}

impl std::fmt::Debug for SqliteTrees {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("SqliteTrees")
            .field("path", &self.path)
            .field("meta", &self.meta)
            .field("totals", &self.totals)
            .finish_non_exhaustive()
    }
}

/// An opened database, and where an unreadable one before it was set aside.
#[derive(Debug)]
pub struct Opened {
    /// The trees.
    pub trees: SqliteTrees,
    /// Whether nothing was there yet.
    pub is_new: bool,
    /// Where the damaged database lies that this one replaces.
    pub set_aside: Option<PathBuf>,
}

impl SqliteTrees {
    /// Opens the database at `path` for this folder and drive, or makes it. One that is damaged
    /// is set aside first.
    ///
    /// # Errors
    /// When it belongs to something else, is too new, or the disk refuses.
    pub fn open(path: &Path, folder: FolderId, drive: DriveId) -> Result<Opened, StateError> {
        if let Some(dir) = path.parent() {
            std::fs::create_dir_all(dir)
                .map_err(|source| StateError::Disk { path: dir.to_owned(), source })?;
        }
        match Self::open_as_is(path, folder, drive).map_err(StateError::at_open) {
            Ok((trees, is_new)) => Ok(Opened { trees, is_new, set_aside: None }),
            Err(error) if error.is_damage() => {
                tracing::error!(%error, "the state database is set aside and begun anew");
                let set_aside = Self::set_aside(path)?;
                let (trees, is_new) = Self::open_as_is(path, folder, drive)?;
                Ok(Opened { trees, is_new, set_aside })
            }
            Err(error) => Err(error),
        }
    }

    /// Renames a database that is beyond use, with its journal, to a new name beside it, and returns
    /// that; nothing when there is none any more. Of those set aside before only the newest stay.
    ///
    /// # Errors
    /// When the disk refuses.
    pub fn set_aside(path: &Path) -> Result<Option<PathBuf>, StateError> {
        let mut numbers = damaged_numbers(path)?;
        let number = numbers.last().map_or(1, |last| last.saturating_add(1));
        let mut is_there = false;
        for part in PARTS {
            let from = suffixed(path, part);
            let to = suffixed(path, &format!(".damaged-{number}{part}"));
            match std::fs::rename(&from, to) {
                Ok(()) => is_there |= part.is_empty(),
                Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
                Err(source) => return Err(StateError::Disk { path: from, source }),
            }
        }
        numbers.push(number);
        for number in numbers.iter().rev().skip(SET_ASIDE_MAX) {
            for part in PARTS {
                // One that stays is tried again the next time.
                drop(std::fs::remove_file(suffixed(path, &format!(".damaged-{number}{part}"))));
            }
        }
        Ok(is_there.then(|| suffixed(path, &format!(".damaged-{number}"))))
    }

    /// Gives back the memory that made work fast, until there is work again.
    pub fn rest(&self) {
        *self.cache.borrow_mut() = Cache::default();
        if let Err(error) = self.connection.execute_batch("PRAGMA shrink_memory") {
            tracing::debug!(%error, "the database keeps its memory");
        }
    }

    /// Returns whether the database is still where it was opened. One that was removed while it is
    /// open would be lost without a word at the next start.
    #[must_use]
    pub fn is_in_place(&self) -> bool {
        // What cannot be looked at now may still be there.
        match std::fs::metadata(&self.path) {
            Ok(metadata) => (metadata.dev(), metadata.ino()) == self.file,
            Err(error) => error.kind() != std::io::ErrorKind::NotFound,
        }
    }

    /// Returns the damage of being gone.
    #[must_use]
    pub fn gone(&self) -> StateError {
        self.damaged("it was removed or replaced while it was in use".to_owned())
    }

    /// Returns the database, and whether it is new.
    fn open_as_is(
        path: &Path,
        folder: FolderId,
        drive: DriveId,
    ) -> Result<(Self, bool), StateError> {
        let fail = |source| StateError::Database { path: path.to_owned(), source };
        let damaged = |reason: String| StateError::Damaged { path: path.to_owned(), reason };
        let flags = OpenFlags::SQLITE_OPEN_READ_WRITE
            | OpenFlags::SQLITE_OPEN_CREATE
            | OpenFlags::SQLITE_OPEN_NO_MUTEX;
        let connection = Connection::open_with_flags(path, flags).map_err(fail)?;
        connection
            .execute_batch(
                "PRAGMA locking_mode = EXCLUSIVE;
                 PRAGMA journal_mode = WAL;
                 PRAGMA synchronous = FULL;
                 PRAGMA cache_size = -16384;
                 PRAGMA temp_store = MEMORY;
                 PRAGMA busy_timeout = 5000;",
            )
            .map_err(fail)?;
        connection.set_prepared_statement_cache_capacity(64);
        // Else a statement may be compiled anew for each value that is bound to it.
        connection.set_db_config(DbConfig::SQLITE_DBCONFIG_ENABLE_QPSG, true).map_err(fail)?;
        let metadata = std::fs::metadata(path)
            .map_err(|source| StateError::Disk { path: path.to_owned(), source })?;
        let format: i32 =
            connection.query_row("PRAGMA user_version", [], |row| row.get(0)).map_err(fail)?;
        let binding = format!("folder {folder} of drive {drive}");
        match format {
            0 => {
                // A crash between making and filling the file leaves an empty database: format 0.
                connection
                    .execute_batch(&format!(
                        "BEGIN IMMEDIATE; {SCHEMA} PRAGMA user_version = {FORMAT};"
                    ))
                    .map_err(fail)?;
                connection
                    .execute("INSERT INTO meta VALUES ('binding', ?1)", params![binding.as_bytes()])
                    .map_err(fail)?;
                connection.execute_batch("COMMIT").map_err(fail)?;
            }
            FORMAT_OF_OTHER_KEYS | FORMAT => {
                let wrong: String = connection
                    .query_row("PRAGMA quick_check(1)", [], |row| row.get(0))
                    .map_err(fail)?;
                if wrong != "ok" {
                    return Err(damaged(wrong.lines().collect::<Vec<_>>().join(" ")));
                }
                let found = Self::read_meta(&connection, "binding")
                    .map_err(fail)?
                    .ok_or_else(|| damaged("it does not say what it belongs to".to_owned()))?;
                if found != binding.as_bytes() {
                    return Err(StateError::Foreign {
                        path: path.to_owned(),
                        found: String::from_utf8_lossy(&found).into_owned(),
                        expected: binding,
                    });
                }
            }
            found if found > FORMAT => {
                return Err(StateError::TooNew { path: path.to_owned(), found });
            }
            found => return Err(damaged(format!("its format is {found}"))),
        }
        let has_lists = connection.table_exists(None, "local_list").map_err(fail)?;
        connection.execute_batch(&format!("BEGIN IMMEDIATE; {YOUNGER_SCHEMA}")).map_err(fail)?;
        let meta = match Self::read_meta(&connection, "meta").map_err(fail)? {
            Some(bytes) => rmp_serde::from_slice(&bytes)
                .map_err(|error| damaged(format!("the meta row: {error}")))?,
            None => Meta::default(),
        };
        let totals = match Self::read_meta(&connection, "totals").map_err(fail)? {
            Some(bytes) => rmp_serde::from_slice(&bytes)
                .map_err(|error| damaged(format!("the totals: {error}")))?,
            None => Totals::default(),
        };
        let last: Option<i64> = connection
            .query_row("SELECT max(seq) FROM entry", [], |row| row.get(0))
            .map_err(fail)?;
        let trees = Self {
            path: path.to_owned(),
            connection,
            cache: RefCell::default(),
            totals,
            meta,
            next_seq: last.unwrap_or(0) + 1,
            in_transaction: false,
            is_unsynced: false,
            file: (metadata.dev(), metadata.ino()),
        };
        if format == FORMAT_OF_OTHER_KEYS {
            trees.rekey()?;
        }
        if !has_lists {
            trees.list_all()?;
        }
        // Checkpoints sync the log themselves.
        trees
            .connection
            .execute_batch("COMMIT; PRAGMA synchronous = NORMAL;")
            .map_err(|error| trees.fail(error))?;
        Ok((trees, format == 0))
    }

    /// Gives all entries the keys of this format.
    fn rekey(&self) -> Result<(), StateError> {
        let mut after = 0;
        loop {
            let rows: Vec<(i64, Vec<u8>)> = self
                .connection
                .prepare_cached("SELECT seq, data FROM entry WHERE seq > ?1 ORDER BY seq LIMIT ?2")
                .and_then(|mut select| {
                    let limit = row_limit(REKEYED_AT_A_TIME);
                    select
                        .query_map(params![after, limit], |row| Ok((row.get(0)?, row.get(1)?)))?
                        .collect()
                })
                .map_err(|error| self.fail(error))?;
            let Some((last, _)) = rows.last() else { break };
            after = *last;
            for (seq, data) in rows {
                let entry = decode(&data)
                    .map_err(|reason| self.damaged(format!("the entry {seq}: {reason}")))?;
                self.connection
                    .prepare_cached("UPDATE entry SET local_at = ?2, remote_at = ?3 WHERE seq = ?1")
                    .and_then(|mut update| {
                        update.execute(params![seq, local_at(&entry), remote_at(&entry)])
                    })
                    .map_err(|error| self.fail(error))?;
            }
        }
        self.connection
            .pragma_update(None, "user_version", FORMAT)
            .map_err(|error| self.fail(error))
    }

    /// Fills the table of larger files, which an earlier version did not keep.
    fn list_all(&self) -> Result<(), StateError> {
        for id in self.ids("SELECT id FROM entry WHERE listed ORDER BY seq", [])? {
            if let Some(list) = self.with(id, |_, entry| local_list(entry))? {
                self.set_list(id, None, Some(list))?;
            }
        }
        Ok(())
    }

    fn set_list(
        &self,
        id: NodeId,
        before: Option<ListId>,
        after: Option<ListId>,
    ) -> Result<(), StateError> {
        if before == after {
            return Ok(());
        }
        let statements = [
            (before, "DELETE FROM local_list WHERE list = ?1 AND node = ?2"),
            (after, "INSERT OR IGNORE INTO local_list VALUES (?1, ?2)"),
        ];
        for (list, sql) in statements {
            let Some(list) = list else { continue };
            self.connection
                .prepare_cached(sql)
                .and_then(|mut set| set.execute(params![list.as_bytes(), id.as_bytes()]))
                .map_err(|error| self.fail(error))?;
        }
        Ok(())
    }

    fn read_meta(connection: &Connection, key: &str) -> rusqlite::Result<Option<Vec<u8>>> {
        connection
            .prepare_cached("SELECT value FROM meta WHERE key = ?1")?
            .query_row(params![key], |row| row.get(0))
            .optional()
    }

    fn fail(&self, source: rusqlite::Error) -> StateError {
        StateError::Database { path: self.path.clone(), source }
    }

    fn damaged(&self, reason: String) -> StateError {
        StateError::Damaged { path: self.path.clone(), reason }
    }

    /// Begins the transaction of this checkpoint with its first write.
    fn begin(&mut self) -> Result<(), StateError> {
        if !self.in_transaction {
            self.connection
                .prepare_cached("BEGIN IMMEDIATE")
                .and_then(|mut begin| begin.execute([]))
                .map_err(|error| self.fail(error))?;
            self.in_transaction = true;
        }
        Ok(())
    }

    /// Hands the entry and its position to `look`, through the cache.
    fn with<R>(
        &self,
        id: NodeId,
        look: impl FnOnce(Option<i64>, &Entry) -> R,
    ) -> Result<R, StateError> {
        if let Some((seq, entry)) = self.cache.borrow_mut().get(id) {
            return Ok(look(*seq, entry));
        }
        let row: Option<(i64, Result<Entry, StateError>)> = self
            .connection
            .prepare_cached("SELECT seq, data FROM entry WHERE id = ?1")
            .and_then(|mut select| {
                select
                    .query_row(params![id.as_bytes()], |row| {
                        Ok((row.get(0)?, self.decoded(id, row.get_ref(1)?.as_blob()?)))
                    })
                    .optional()
            })
            .map_err(|error| self.fail(error))?;
        let (seq, entry) = match row {
            Some((seq, entry)) => (Some(seq), entry?),
            None => (None, Entry::default()),
        };
        let looked = look(seq, &entry);
        self.cache.borrow_mut().insert(id, seq, Box::new(entry));
        Ok(looked)
    }

    /// Returns the nodes with a key that are there, sorted. Their entries are in the cache then: whoever
    /// asks what is at a place goes on to ask what it is.
    fn at(
        &self,
        sql: &str,
        key: i64,
        is_there: impl Fn(&Entry) -> bool,
    ) -> Result<Vec<NodeId>, StateError> {
        let mut at = Vec::new();
        let mut select = self.connection.prepare_cached(sql).map_err(|error| self.fail(error))?;
        let mut rows = select.query(params![key]).map_err(|error| self.fail(error))?;
        while let Some(row) = rows.next().map_err(|error| self.fail(error))? {
            let id = row.get(0).map(NodeId::from_bytes).map_err(|error| self.fail(error))?;
            let mut cache = self.cache.borrow_mut();
            let found = match cache.get(id) {
                Some((_, entry)) => is_there(entry),
                None => {
                    let seq = row.get(1).map_err(|error| self.fail(error))?;
                    let data = row
                        .get_ref(2)
                        .and_then(|data| Ok(data.as_blob()?))
                        .map_err(|error| self.fail(error))?;
                    let entry = self.decoded(id, data)?;
                    let found = is_there(&entry);
                    cache.insert(id, Some(seq), Box::new(entry));
                    found
                }
            };
            if found {
                at.push(id);
            }
        }
        at.sort_unstable();
        Ok(at)
    }

    fn decoded(&self, id: NodeId, data: &[u8]) -> Result<Entry, StateError> {
        decode(data).map_err(|reason| self.damaged(format!("the entry of node {id}: {reason}")))
    }

    fn ids(&self, sql: &str, params: impl rusqlite::Params) -> Result<Vec<NodeId>, StateError> {
        let rows: Vec<[u8; 16]> = self
            .connection
            .prepare_cached(sql)
            .and_then(|mut select| select.query_map(params, |row| row.get(0))?.collect())
            .map_err(|error| self.fail(error))?;
        Ok(rows.into_iter().map(NodeId::from_bytes).collect())
    }

    /// Writes the row of a new entry; returns its position.
    fn insert(&self, id: NodeId, new: &Entry) -> Result<i64, StateError> {
        let data = encode(new).map_err(|reason| self.damaged(reason))?;
        let remote = remote_place(new);
        self.connection
            .prepare_cached(
                "INSERT INTO entry (seq, id, local_parent, local_at, ino, remote_parent,
                 remote_at, dirty, shared, listed, conflict, data)
                 VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12)",
            )
            .and_then(|mut insert| {
                insert.execute(params![
                    self.next_seq,
                    id.as_bytes(),
                    local_spot(new).map(|(parent, ..)| *parent.as_bytes()),
                    local_at(new),
                    ino_of(new),
                    remote.map(|place| *place.parent.as_bytes()),
                    remote_at(new),
                    new.is_dirty(),
                    is_shared(new),
                    is_listed(new),
                    is_conflict(new),
                    data
                ])
            })
            .map_err(|error| self.fail(error))?;
        Ok(self.next_seq)
    }

    /// Writes what differs: an index is touched only when its columns change, because SQLite
    /// rewrites every index of which a column is named in the update.
    fn update(&self, seq: i64, changed: Changed, new: &Entry) -> Result<(), StateError> {
        let data = encode(new).map_err(|reason| self.damaged(reason))?;
        let mut sql = "UPDATE entry SET data = ?, shared = ?".to_owned();
        let parts = [
            (changed.local, ", local_parent = ?, local_at = ?"),
            (changed.ino, ", ino = ?"),
            (changed.remote, ", remote_parent = ?, remote_at = ?"),
            (changed.dirty, ", dirty = ?"),
            (changed.listed, ", listed = ?"),
            (changed.conflict, ", conflict = ?"),
        ];
        for (is_changed, part) in parts {
            sql.push_str(if is_changed { part } else { "" });
        }
        sql.push_str(" WHERE seq = ?");
        let update = || {
            let mut update = self.connection.prepare_cached(&sql)?;
            let mut count = 0;
            let mut bind = |value: &dyn rusqlite::ToSql| {
                count += 1;
                update.raw_bind_parameter(count, value)
            };
            bind(&data)?;
            bind(&is_shared(new))?;
            if changed.local {
                bind(&local_spot(new).map(|(parent, ..)| *parent.as_bytes()))?;
                bind(&local_at(new))?;
            }
            if changed.ino {
                bind(&ino_of(new))?;
            }
            if changed.remote {
                bind(&remote_place(new).map(|place| *place.parent.as_bytes()))?;
                bind(&remote_at(new))?;
            }
            if changed.dirty {
                bind(&new.is_dirty())?;
            }
            if changed.listed {
                bind(&is_listed(new))?;
            }
            if changed.conflict {
                bind(&is_conflict(new))?;
            }
            bind(&seq)?;
            update.raw_execute()
        };
        update().map(drop).map_err(|error| self.fail(error))
    }

    /// Returns the content lists that some entry refers to, to drop the others.
    ///
    /// # Errors
    /// When the database cannot be read.
    pub fn lists_in_use(&self) -> Result<std::collections::HashSet<ListId>, StateError> {
        let mut lists = std::collections::HashSet::new();
        let ids = self.ids("SELECT id FROM entry WHERE listed ORDER BY seq", [])?;
        for id in ids {
            lists.extend(lists_of(&self.get(id)?));
        }
        Ok(lists)
    }

    /// Returns the nodes on this disk whose names are those of conflict copies, at most `limit`.
    ///
    /// # Errors
    /// When the database cannot be read.
    pub fn conflict_copies(&self, limit: usize) -> Result<Vec<NodeId>, StateError> {
        self.ids(
            "SELECT id FROM entry INDEXED BY entry_conflict WHERE conflict ORDER BY seq LIMIT ?1",
            params![row_limit(limit)],
        )
    }

    /// Returns how many conflict copies there are on this disk.
    ///
    /// # Errors
    /// When the database cannot be read.
    pub fn conflict_count(&self) -> Result<u64, StateError> {
        self.connection
            .prepare_cached("SELECT count(*) FROM entry INDEXED BY entry_conflict WHERE conflict")
            .and_then(|mut count| count.query_row([], |row| row.get::<_, i64>(0)))
            .map(i64::cast_unsigned)
            .map_err(|error| self.fail(error))
    }
}

/// The files of a database, by what is after its name.
const PARTS: [&str; 3] = ["", "-wal", "-shm"];

fn suffixed(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(suffix);
    name.into()
}

/// Returns the numbers of the databases that were set aside, in order.
fn damaged_numbers(path: &Path) -> Result<Vec<u32>, StateError> {
    let (Some(dir), Some(name)) = (path.parent(), path.file_name()) else {
        return Ok(Vec::new());
    };
    let fail = |source| StateError::Disk { path: dir.to_owned(), source };
    let mut numbers = Vec::new();
    let entries = match std::fs::read_dir(dir) {
        Ok(entries) => entries,
        // Gone with all that was in it.
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(numbers),
        Err(error) => return Err(fail(error)),
    };
    for entry in entries {
        let found = entry.map_err(fail)?.file_name();
        let number = found
            .as_bytes()
            .strip_prefix(name.as_bytes())
            .and_then(|rest| std::str::from_utf8(rest.strip_prefix(b".damaged-")?).ok())
            .map(|rest| rest.split('-').next().unwrap_or(rest))
            .and_then(|number| number.parse::<u32>().ok());
        numbers.extend(number);
    }
    numbers.sort_unstable();
    numbers.dedup();
    Ok(numbers)
}

/// Returns what sorts before every id after `after`: nothing, or the id itself.
fn after_bytes(after: Option<NodeId>) -> Vec<u8> {
    after.map_or_else(Vec::new, |id| id.as_bytes().to_vec())
}

fn row_limit(limit: usize) -> i64 {
    i64::try_from(limit).unwrap_or(i64::MAX)
}

impl Trees for SqliteTrees {
    type Error = StateError;

    fn get(&self, id: NodeId) -> Result<Entry, StateError> {
        self.look(id, Entry::clone)
    }

    fn look<R>(&self, id: NodeId, look: impl FnOnce(&Entry) -> R) -> Result<R, StateError> {
        self.with(id, |_, entry| look(entry))
    }

    fn made(&mut self, id: NodeId) {
        self.cache.borrow_mut().insert(id, None, Box::default());
    }

    fn put(&mut self, id: NodeId, entry: &Entry) -> Result<(), StateError> {
        let mut totals = self.totals;
        let found = self.with(id, |seq, old| {
            (old != entry).then(|| {
                totals.count(old, false);
                totals.count(entry, true);
                (seq, local_list(old), Changed::between(old, entry))
            })
        })?;
        let Some((seq, list, changed)) = found else {
            return Ok(());
        };
        self.begin()?;
        self.set_list(id, list, local_list(entry))?;
        let seq = match seq {
            Some(seq) if entry.is_empty() => {
                self.connection
                    .prepare_cached("DELETE FROM entry WHERE seq = ?1")
                    .and_then(|mut delete| delete.execute(params![seq]))
                    .map_err(|error| self.fail(error))?;
                None
            }
            Some(seq) => {
                self.update(seq, changed, entry)?;
                Some(seq)
            }
            None => {
                let seq = self.insert(id, entry)?;
                self.next_seq += 1;
                Some(seq)
            }
        };
        self.totals = totals;
        self.cache.borrow_mut().insert(id, seq, Box::new(entry.clone()));
        Ok(())
    }

    fn local_at(&self, parent: NodeId, disk_name: &Name) -> Result<Vec<NodeId>, StateError> {
        let sql = "SELECT id, seq, data FROM entry WHERE local_at = ?1";
        self.at(sql, at_key(parent, disk_name), |entry| {
            entry.local.as_ref().is_some_and(|local| {
                !local.parked && local.place.parent == parent && local.disk_name() == disk_name
            })
        })
    }

    fn remote_at(&self, parent: NodeId, name: &Name) -> Result<Vec<NodeId>, StateError> {
        let sql = "SELECT id, seq, data FROM entry WHERE remote_at = ?1";
        self.at(sql, at_key(parent, name), |entry| {
            entry.remote.as_ref().is_some_and(|remote| {
                remote.node.place.parent == parent && remote.node.place.name == *name
            })
        })
    }

    fn local_children(
        &self,
        parent: NodeId,
        after: Option<NodeId>,
        limit: usize,
    ) -> Result<Vec<NodeId>, StateError> {
        self.ids(
            "SELECT id FROM entry WHERE local_parent = ?1 AND id > ?2 ORDER BY id LIMIT ?3",
            params![parent.as_bytes(), after_bytes(after), row_limit(limit)],
        )
    }

    fn remote_children(
        &self,
        parent: NodeId,
        after: Option<NodeId>,
        limit: usize,
    ) -> Result<Vec<NodeId>, StateError> {
        self.ids(
            "SELECT id FROM entry WHERE remote_parent = ?1 AND id > ?2 ORDER BY id LIMIT ?3",
            params![parent.as_bytes(), after_bytes(after), row_limit(limit)],
        )
    }

    fn local_by_inode(&self, ino: u64) -> Result<Vec<NodeId>, StateError> {
        let mut ids =
            self.ids("SELECT id FROM entry WHERE ino = ?1", params![ino.cast_signed()])?;
        ids.sort_unstable();
        Ok(ids)
    }

    fn local_with_list(&self, list: ListId, limit: usize) -> Result<Vec<NodeId>, StateError> {
        let mut found = Vec::new();
        let listed = self.ids(
            "SELECT node FROM local_list WHERE list = ?1 ORDER BY node LIMIT ?2",
            params![list.as_bytes(), row_limit(limit)],
        )?;
        for id in listed {
            // An earlier version may have changed the entry and left the table as it was.
            let has = |entry: &Entry| local_list(entry) == Some(list);
            if self.look(id, has)? {
                found.push(id);
            }
        }
        Ok(found)
    }

    fn dirty(&self, after: u64, limit: usize) -> Result<Vec<(u64, NodeId)>, StateError> {
        let rows: Vec<(u64, [u8; 16])> = self
            .connection
            .prepare_cached(
                "SELECT seq, id FROM entry INDEXED BY entry_dirty
                 WHERE dirty AND seq > ?1 ORDER BY seq LIMIT ?2",
            )
            .and_then(|mut select| {
                let after = i64::try_from(after).unwrap_or(i64::MAX);
                select
                    .query_map(params![after, row_limit(limit)], |row| {
                        Ok((row.get::<_, i64>(0)?.cast_unsigned(), row.get(1)?))
                    })?
                    .collect()
            })
            .map_err(|error| self.fail(error))?;
        Ok(rows.into_iter().map(|(seq, id)| (seq, NodeId::from_bytes(id))).collect())
    }

    fn all(&self, after: Option<NodeId>, limit: usize) -> Result<Vec<NodeId>, StateError> {
        self.ids(
            "SELECT id FROM entry WHERE id > ?1 AND shared ORDER BY id LIMIT ?2",
            params![after_bytes(after), row_limit(limit)],
        )
    }

    fn totals(&self) -> Totals {
        self.totals
    }

    fn count_for(&mut self, flow: Flow) -> Result<(), StateError> {
        self.totals = counted_for(self, flow)?;
        Ok(())
    }

    fn meta(&self) -> Meta {
        self.meta
    }

    fn set_meta(&mut self, meta: Meta) -> Result<(), StateError> {
        if meta != self.meta {
            self.begin()?;
            self.meta = meta;
        }
        Ok(())
    }

    fn note_sent(&mut self, commit: u64, changes: &[Sent]) -> Result<(), StateError> {
        let changes =
            rmp_serde::to_vec_named(changes).map_err(|error| self.damaged(error.to_string()))?;
        self.begin()?;
        self.connection
            .prepare_cached("INSERT OR REPLACE INTO sent VALUES (?1, ?2)")
            .and_then(|mut insert| insert.execute(params![commit.cast_signed(), changes]))
            .map_err(|error| self.fail(error))?;
        Ok(())
    }

    fn forget_sent(&mut self, commit: u64) -> Result<(), StateError> {
        self.begin()?;
        self.connection
            .prepare_cached("DELETE FROM sent WHERE number = ?1")
            .and_then(|mut delete| delete.execute(params![commit.cast_signed()]))
            .map_err(|error| self.fail(error))?;
        Ok(())
    }

    fn sent(&self) -> Result<Vec<(u64, Vec<Sent>)>, StateError> {
        let rows: rusqlite::Result<Vec<(i64, Vec<u8>)>> = self
            .connection
            .prepare_cached("SELECT number, changes FROM sent ORDER BY number")
            .and_then(|mut select| {
                select.query_map([], |row| Ok((row.get(0)?, row.get(1)?)))?.collect()
            });
        rows.map_err(|error| self.fail(error))?
            .into_iter()
            .map(|(number, changes)| {
                let changes = rmp_serde::from_slice(&changes)
                    .map_err(|error| self.damaged(format!("a commit that was sent: {error}")))?;
                Ok((number.cast_unsigned(), changes))
            })
            .collect()
    }

    fn note_putting(&mut self, putting: &Putting) -> Result<(), StateError> {
        let data =
            rmp_serde::to_vec_named(putting).map_err(|error| self.damaged(error.to_string()))?;
        self.begin()?;
        self.connection
            .prepare_cached("INSERT OR REPLACE INTO putting VALUES (?1, ?2)")
            .and_then(|mut insert| insert.execute(params![putting.node.as_bytes(), data]))
            .map_err(|error| self.fail(error))?;
        Ok(())
    }

    fn forget_putting(&mut self, node: NodeId) -> Result<(), StateError> {
        self.begin()?;
        self.connection
            .prepare_cached("DELETE FROM putting WHERE node = ?1")
            .and_then(|mut delete| delete.execute(params![node.as_bytes()]))
            .map_err(|error| self.fail(error))?;
        Ok(())
    }

    fn puttings(&self) -> Result<Vec<Putting>, StateError> {
        let rows: rusqlite::Result<Vec<Vec<u8>>> = self
            .connection
            .prepare_cached("SELECT putting FROM putting ORDER BY node")
            .and_then(|mut select| select.query_map([], |row| row.get(0))?.collect());
        rows.map_err(|error| self.fail(error))?
            .iter()
            .map(|data| {
                rmp_serde::from_slice(data)
                    .map_err(|error| self.damaged(format!("what was being put here: {error}")))
            })
            .collect()
    }

    fn keep(&mut self) -> Result<(), StateError> {
        if !self.in_transaction {
            return Ok(());
        }
        let encoded = rmp_serde::to_vec_named(&self.meta)
            .and_then(|meta| Ok((meta, rmp_serde::to_vec_named(&self.totals)?)))
            .map_err(|error| self.damaged(error.to_string()));
        let (meta, totals) = encoded?;
        self.connection
            .prepare_cached("INSERT OR REPLACE INTO meta VALUES ('meta', ?1), ('totals', ?2)")
            .and_then(|mut insert| insert.execute(params![meta, totals]))
            .and_then(|_| self.connection.prepare_cached("COMMIT")?.execute([]))
            .map_err(|error| self.fail(error))?;
        self.in_transaction = false;
        self.is_unsynced = true;
        Ok(())
    }

    fn checkpoint(&mut self) -> Result<(), StateError> {
        self.keep()?;
        if !self.is_unsynced {
            return Ok(());
        }
        // A commit in this mode syncs the log, and with it all commits before; but only one that
        // writes something, which a number does that is never the same again. The mode cannot be
        // changed within a transaction, so the commits before are made in the other one.
        self.connection
            .execute_batch(
                "PRAGMA synchronous = FULL;
                 INSERT INTO meta VALUES ('checkpoint', 1)
                     ON CONFLICT (key) DO UPDATE SET value = value + 1;
                 PRAGMA synchronous = NORMAL;",
            )
            .map_err(|error| self.fail(error))?;
        self.is_unsynced = false;
        Ok(())
    }
}

#[cfg(test)]
mod tests;
