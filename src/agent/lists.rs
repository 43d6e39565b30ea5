//! The content lists of files that this device has: a cache, in a database of its own.
//!
//! A list tells which chunks of an old version a new one shares, so that only the others travel.
//! Losing lists costs a look at the file or a question to the server, so this database is never
//! waited for; it is apart from the trees because those hold a write transaction open.

use std::collections::HashSet;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

use rusqlite::{Connection, OptionalExtension as _, params};

use crate::model::{ContentList, ListId};

/// Lists younger than this stay whether somebody refers to them or not: the engine may not have
/// heard of them yet.
const GRACE_SECS: i64 = 600;

/// A store of content lists. Faults of its disk are logged and otherwise count as "not here".
#[derive(Debug)]
pub struct Lists {
    connection: Mutex<Connection>,
}

impl Lists {
    /// Opens the store at `path`, or makes it; one that cannot be read is begun anew.
    ///
    /// # Errors
    /// When the disk refuses.
    pub fn open(path: &Path) -> rusqlite::Result<Self> {
        Self::open_as_is(path).or_else(|error| {
            tracing::warn!(%error, ?path, "the cache of content lists is begun anew");
            for suffix in ["", "-wal", "-shm"] {
                let mut name = path.as_os_str().to_owned();
                name.push(suffix);
                drop(std::fs::remove_file(PathBuf::from(name)));
            }
            Self::open_as_is(path)
        })
    }

    fn open_as_is(path: &Path) -> rusqlite::Result<Self> {
        let connection = Connection::open(path)?;
        connection.execute_batch(
            "PRAGMA journal_mode = WAL;
             PRAGMA synchronous = NORMAL;
             PRAGMA busy_timeout = 5000;
             CREATE TABLE IF NOT EXISTS list
                 (id BLOB PRIMARY KEY, added INTEGER NOT NULL, data BLOB NOT NULL);",
        )?;
        Ok(Self { connection: Mutex::new(connection) })
    }

    fn connection(&self) -> MutexGuard<'_, Connection> {
        self.connection.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Returns a list, if it is here and whole.
    #[must_use]
    pub fn get(&self, id: ListId) -> Option<ContentList> {
        let data: Option<Vec<u8>> = self
            .connection()
            .prepare_cached("SELECT data FROM list WHERE id = ?1")
            .and_then(|mut select| {
                select.query_row(params![id.as_bytes()], |row| row.get(0)).optional()
            })
            .unwrap_or_else(|error| {
                tracing::warn!(%error, "cannot read the cache of content lists");
                None
            });
        let data = data?;
        (ContentList::id_of_encoded(&data) == id).then(|| ContentList::decode(&data).ok()).flatten()
    }

    /// Keeps a list.
    pub fn put(&self, id: ListId, list: &ContentList) {
        let kept = self
            .connection()
            .prepare_cached(
                "INSERT INTO list VALUES (?1, ?2, ?3)
                 ON CONFLICT (id) DO UPDATE SET added = excluded.added",
            )
            .and_then(|mut insert| {
                insert.execute(params![id.as_bytes(), now_secs(), list.encode()])
            });
        if let Err(error) = kept {
            tracing::warn!(%error, "cannot write the cache of content lists");
        }
    }

    /// Drops what is not in `used` and not new. Returns how many that were.
    pub fn drop_unused(&self, used: &HashSet<ListId>) -> usize {
        self.drop_older(used, now_secs() - GRACE_SECS)
    }

    fn drop_older(&self, used: &HashSet<ListId>, added_before: i64) -> usize {
        let connection = self.connection();
        let dropping = || -> rusqlite::Result<usize> {
            let old: Vec<[u8; 32]> = connection
                .prepare_cached("SELECT id FROM list WHERE added < ?1")?
                .query_map(params![added_before], |row| row.get(0))?
                .collect::<rusqlite::Result<_>>()?;
            let mut dropped = 0;
            for id in old {
                if !used.contains(&ListId::from_bytes(id)) {
                    dropped += connection
                        .prepare_cached("DELETE FROM list WHERE id = ?1")?
                        .execute(params![id])?;
                }
            }
            Ok(dropped)
        };
        dropping().unwrap_or_else(|error| {
            tracing::warn!(%error, "cannot clean the cache of content lists");
            0
        })
    }
}

fn now_secs() -> i64 {
    super::clock::wall().secs
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{ChunkId, Extent};

    #[test]
    fn lists_nobody_refers_to_go_and_a_damaged_one_does_not_count() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("lists.sqlite");
        std::fs::write(&path, "no database").unwrap();
        let lists = Lists::open(&path).unwrap();
        let list = |byte: u8| {
            let id = ChunkId::from_bytes([byte; 32]);
            ContentList::new(vec![Extent::Chunk { id, len: 9 }, Extent::Hole { len: 5 }]).unwrap()
        };
        let (one, two) = (list(1), list(2));
        lists.put(one.id(), &one);
        lists.put(two.id(), &two);
        assert_eq!(lists.drop_unused(&HashSet::new()), 0, "both are new");
        assert_eq!(lists.drop_older(&HashSet::from([one.id()]), i64::MAX), 1);
        assert_eq!(lists.get(one.id()), Some(one.clone()));
        assert_eq!(lists.get(two.id()), None);
        let sql = "UPDATE list SET data = substr(data, 1, 37)";
        lists.connection().execute(sql, []).unwrap();
        assert_eq!(lists.get(one.id()), None);
    }
}
