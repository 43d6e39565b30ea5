//! A look at the database from outside a server: read only, so that it is safe while one runs.
//!
//! Only `picloud-server doctor` looks so. Everything is asked in short transactions: a long one would keep
//! the running server from writing its log back.

use std::path::Path;
use std::time::Duration;

use rusqlite::{Connection, OpenFlags, params};

use super::error::StoreError;
use super::metadata::Result;
use super::sqlite::FORMAT;
use crate::server::packs::{Location, RecordKind};

/// How long the writer is waited for.
const BUSY: Duration = Duration::from_secs(10);

/// The first format that keeps how large the files of each drive are together.
const FORMAT_WITH_SUMS: i64 = 4;

/// The most faults of the database that are told.
const FAULTS_MAX: u32 = 5;

/// A row that says where a chunk or list lies.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Placed {
    /// What it is.
    pub kind: RecordKind,
    /// The number of its drive.
    pub drive: i64,
    /// Its id.
    pub id: [u8; 32],
    /// Where it lies.
    pub at: Location,
}

/// The open database.
#[derive(Debug)]
pub struct Examination {
    connection: Connection,
}

impl Examination {
    /// Opens a database that is there.
    ///
    /// # Errors
    /// When it cannot be opened, or has a format that this program does not know.
    pub fn open(path: &Path) -> Result<Self> {
        let flags = OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX;
        let connection = Connection::open_with_flags(path, flags)?;
        connection.busy_timeout(BUSY)?;
        connection.pragma_update(None, "trusted_schema", false)?;
        let found: i64 = connection.query_row("PRAGMA user_version", [], |row| row.get(0))?;
        if found > FORMAT {
            return Err(StoreError::TooNew { path: path.to_owned(), found, known: FORMAT });
        }
        Ok(Self { connection })
    }

    /// Returns the format found.
    ///
    /// # Errors
    /// When the database fails.
    pub fn format(&self) -> Result<i64> {
        Ok(self.connection.query_row("PRAGMA user_version", [], |row| row.get(0))?)
    }

    /// Lets SQLite look through its pages, and with `deep` compare indexes with their tables. Returns
    /// what is wrong.
    ///
    /// # Errors
    /// When the database fails.
    pub fn faults(&self, deep: bool) -> Result<Vec<String>> {
        let pragma = if deep { "integrity_check" } else { "quick_check" };
        let mut statement = self.connection.prepare(&format!("PRAGMA {pragma}({FAULTS_MAX})"))?;
        let told = statement.query_map([], |row| row.get::<_, String>(0))?;
        let told: Vec<String> = told.collect::<std::result::Result<_, _>>()?;
        Ok(told.into_iter().filter(|line| line != "ok").collect())
    }

    /// Returns of each drive whose sum of the sizes of its files is not what is kept of it: its number, what
    /// is kept, and what it is.
    ///
    /// # Errors
    /// When the database fails.
    pub fn wrong_sums(&self) -> Result<Vec<(i64, i64, i64)>> {
        if self.format()? < FORMAT_WITH_SUMS {
            return Ok(Vec::new());
        }
        // As the migration that began to keep it has it: no sum of many lengths is too large for a number.
        let mut statement = self.connection.prepare(
            "WITH half AS (
                 SELECT drive, coalesce(sum(len >> 32), 0) AS high,
                        coalesce(sum(len & 4294967295), 0) AS low
                 FROM node WHERE parent IS NOT NULL GROUP BY drive),
             real AS (
                 SELECT drive, CASE WHEN high + (low >> 32) < 2147483647 THEN (high << 32) + low
                                    ELSE 9223372036854775807 END AS bytes
                 FROM half)
             SELECT num, drive.bytes, coalesce(real.bytes, 0)
             FROM drive LEFT JOIN real ON real.drive = num
             WHERE drive.bytes <> coalesce(real.bytes, 0) ORDER BY num LIMIT ?1",
        )?;
        let rows =
            statement.query_map([FAULTS_MAX], |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?)))?;
        Ok(rows.collect::<std::result::Result<_, _>>()?)
    }

    /// Returns for each pack that rows point into where its last record begins, and how long that is.
    ///
    /// # Errors
    /// When the database fails.
    pub fn ends(&self) -> Result<Vec<Location>> {
        let mut statement = self.connection.prepare(
            "SELECT pack, max(offset), stored_len FROM
                 (SELECT pack, offset, stored_len FROM chunk
                  UNION ALL SELECT pack, offset, stored_len FROM list)
             GROUP BY pack ORDER BY pack",
        )?;
        let rows = statement.query_map([], |row| location(row, 0))?;
        Ok(rows.collect::<std::result::Result<_, _>>()?)
    }

    /// Returns the next rows after one, at most `count`, chunks first; to begin with, without one.
    ///
    /// # Errors
    /// When the database fails.
    pub fn placed(&self, after: Option<&Placed>, count: usize) -> Result<Vec<Placed>> {
        let kind = after.map_or(RecordKind::Chunk, |after| after.kind);
        let rows = self.placed_in(kind, after, count)?;
        match kind {
            RecordKind::Chunk if rows.is_empty() => self.placed_in(RecordKind::List, None, count),
            _ => Ok(rows),
        }
    }

    fn placed_in(
        &self,
        kind: RecordKind,
        after: Option<&Placed>,
        count: usize,
    ) -> Result<Vec<Placed>> {
        let table = match kind {
            RecordKind::Chunk => "chunk",
            RecordKind::List => "list",
        };
        let mut statement = self.connection.prepare(&format!(
            "SELECT drive, id, pack, offset, stored_len FROM {table}
             WHERE (drive, id) > (?1, ?2) ORDER BY drive, id LIMIT ?3"
        ))?;
        let (drive, id) = after.map_or((i64::MIN, &[][..]), |after| (after.drive, &after.id[..]));
        let count = i64::try_from(count).unwrap_or(i64::MAX);
        let rows = statement.query_map(params![drive, id, count], |row| {
            Ok(Placed { kind, drive: row.get(0)?, id: row.get(1)?, at: location(row, 2)? })
        })?;
        Ok(rows.collect::<std::result::Result<_, _>>()?)
    }

    /// Returns whether a row is still as it was read.
    ///
    /// # Errors
    /// When the database fails.
    pub fn is_still(&self, placed: &Placed) -> Result<bool> {
        let table = match placed.kind {
            RecordKind::Chunk => "chunk",
            RecordKind::List => "list",
        };
        let sql =
            format!("SELECT pack, offset, stored_len FROM {table} WHERE drive = ?1 AND id = ?2");
        let mut statement = self.connection.prepare(&sql)?;
        let mut rows = statement.query(params![placed.drive, placed.id])?;
        Ok(match rows.next()? {
            Some(row) => location(row, 0)? == placed.at,
            None => false,
        })
    }
}

fn location(row: &rusqlite::Row<'_>, at: usize) -> rusqlite::Result<Location> {
    // A negative one lies behind the end of every pack, and is told as such.
    let offset = row.get::<_, i64>(at + 1)?.cast_unsigned();
    Ok(Location { pack: row.get(at)?, offset, stored_len: row.get(at + 2)? })
}
