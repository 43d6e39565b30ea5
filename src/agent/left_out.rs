//! What is left out of a folder on this device: `left-out-FOLDER.toml` beside the settings.
//!
//! One section per directory of the drive, named by its node, which is the same wherever it is moved
//! to; the path is for people, and of the time when it was left out. No file: nothing is left out. A file
//! that cannot be read is an error: to take it for an empty one would bring everything back.

use std::io;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::durable;
use crate::model::{FolderId, NodeId};

/// The most directories that can be left out of one folder.
pub const DIRS_MAX: usize = 1000;

/// Why what is left out cannot be read or written.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum LeftOutError {
    /// The file could not be read.
    #[error("Cannot read {path:?}")]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The file could not be written.
    #[error("Cannot write {path:?}")]
    Write {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// It is not what this program writes.
    #[error(
        "{path:?} says what is left out of the folder, and is damaged: mend it, or remove it to have \
         everything here: {reason}"
    )]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
}

/// A directory that is left out.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LeftOutDir {
    /// The directory.
    pub node: NodeId,
    /// Where it was in the drive when it was left out, with what is not UTF-8 replaced.
    pub path: String,
}

#[derive(Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Stored {
    #[serde(default)]
    directory: Vec<LeftOutDir>,
}

/// Returns where that is kept of a folder, for the settings at `config`.
#[must_use]
pub fn path_beside(config: &Path, folder: FolderId) -> PathBuf {
    config.with_file_name(format!("left-out-{folder}.toml"))
}

/// Returns what is left out by the file at `path`.
///
/// # Errors
/// When there is one and it cannot be read.
pub fn load(path: &Path) -> Result<Vec<LeftOutDir>, LeftOutError> {
    let text = match std::fs::read_to_string(path) {
        Ok(text) => text,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(source) => return Err(LeftOutError::Read { path: path.to_owned(), source }),
    };
    let damaged = |reason: String| LeftOutError::Damaged { path: path.to_owned(), reason };
    let stored: Stored =
        toml::from_str(&text).map_err(|error| damaged(error.message().to_owned()))?;
    if stored.directory.len() > DIRS_MAX {
        return Err(damaged(format!("more than {DIRS_MAX} directories")));
    }
    Ok(stored.directory)
}

/// Has exactly these directories left out by the file at `path`, durably.
///
/// # Errors
/// When it cannot be written; the file is then as it was.
pub fn store(path: &Path, dirs: &[LeftOutDir]) -> Result<(), LeftOutError> {
    let stored = Stored { directory: dirs.to_vec() };
    let write = || {
        let text = toml::to_string(&stored).map_err(io::Error::other)?;
        durable::replace(path, text.as_bytes(), 0o600)
    };
    write().map_err(|source| LeftOutError::Write { path: path.to_owned(), source })
}

/// Forgets what is left out by the file at `path`.
///
/// # Errors
/// When there is one and it cannot be removed.
pub fn forget(path: &Path) -> Result<(), LeftOutError> {
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Err(LeftOutError::Write { path: path.to_owned(), source: error })
        }
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_left_out_is_kept_and_a_damaged_file_is_no_empty_one() {
        let dir = tempfile::tempdir().unwrap();
        let path = path_beside(&dir.path().join("agent.toml"), FolderId::from_bytes([1; 16]));
        assert_eq!(load(&path).unwrap(), []);
        let dirs = [("a \"b\"/\u{e4}\n", 2), ("c", 3)].map(|(path, number)| LeftOutDir {
            node: NodeId::from_bytes([number; 16]),
            path: path.to_owned(),
        });
        store(&path, &dirs).unwrap();
        assert_eq!(load(&path).unwrap(), dirs);
        store(&path, &[]).unwrap();
        assert_eq!(load(&path).unwrap(), []);
        for damaged in ["directory", "[[directory]]\nnode = \"00\"\npath = \"a\"\n", "[other]\n"] {
            std::fs::write(&path, damaged).unwrap();
            let error = load(&path).unwrap_err().to_string();
            assert!(error.contains("is damaged: mend it"), "{error}");
        }
        forget(&path).unwrap();
        forget(&path).unwrap();
        assert_eq!(load(&path).unwrap(), []);
    }
}
