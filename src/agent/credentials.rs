//! The secrets of this machine's devices: `credentials.toml` beside the settings, mode 0600.
//!
//! One section per folder, named by the folder's id, with the token the server gave. A file that
//! others can read is refused, so that a careless copy is noticed.

use std::collections::BTreeMap;
use std::fmt;
use std::io;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use zeroize::Zeroizing;

use super::durable;
use crate::model::FolderId;

/// Why the credentials cannot be read or written.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CredentialsError {
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
    /// Others can read it.
    #[error("Others can read {path:?} (mode {mode:03o}): run chmod 600 on it")]
    Open {
        /// The file.
        path: PathBuf,
        /// Its permissions.
        mode: u32,
    },
    /// It is not what this program writes. What is wrong is not told: the line may hold a secret.
    #[error("{path:?} is damaged: remove it and join the folders again")]
    Damaged {
        /// The file.
        path: PathBuf,
    },
    /// It has nothing for a folder.
    #[error("{path:?} has no token for folder {folder}: join it again")]
    Missing {
        /// The file.
        path: PathBuf,
        /// The folder.
        folder: FolderId,
    },
}

/// A device's token.
#[derive(Clone, PartialEq, Eq)]
pub struct Token(Zeroizing<Vec<u8>>);

impl Token {
    /// Wraps the bytes the server gave.
    #[must_use]
    pub fn new(bytes: Vec<u8>) -> Self {
        Self(Zeroizing::new(bytes))
    }

    /// Returns the bytes.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }
}

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Token")
    }
}

#[derive(Default, Serialize, Deserialize)]
struct Stored {
    #[serde(flatten)]
    folders: BTreeMap<String, StoredFolder>,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct StoredFolder {
    token: String,
}

/// Returns where the credentials for the settings at `config` are.
#[must_use]
pub fn path_beside(config: &Path) -> PathBuf {
    config.with_file_name("credentials.toml")
}

fn load(path: &Path) -> Result<Stored, CredentialsError> {
    let read = || -> io::Result<Option<(u32, Zeroizing<String>)>> {
        match std::fs::metadata(path) {
            Ok(metadata) => {
                let mode = metadata.permissions().mode() & 0o777;
                Ok(Some((mode, Zeroizing::new(std::fs::read_to_string(path)?))))
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
        }
    };
    let found =
        read().map_err(|source| CredentialsError::Read { path: path.to_owned(), source })?;
    let Some((mode, text)) = found else {
        return Ok(Stored::default());
    };
    if mode & 0o077 != 0 {
        return Err(CredentialsError::Open { path: path.to_owned(), mode });
    }
    toml::from_str(&text).map_err(|_| CredentialsError::Damaged { path: path.to_owned() })
}

fn store(path: &Path, stored: &Stored) -> Result<(), CredentialsError> {
    let text = toml::to_string(stored)
        .map(Zeroizing::new)
        .map_err(|_| CredentialsError::Damaged { path: path.to_owned() })?;
    durable::replace(path, text.as_bytes(), 0o600)
        .map_err(|source| CredentialsError::Write { path: path.to_owned(), source })
}

/// Returns the token of a folder from the file at `path`.
///
/// # Errors
/// When the file cannot be read, others can read it, or it has none.
pub fn token(path: &Path, folder: FolderId) -> Result<Token, CredentialsError> {
    use base64::Engine as _;
    let stored = load(path)?;
    let found = stored
        .folders
        .get(&folder.to_string())
        .ok_or_else(|| CredentialsError::Missing { path: path.to_owned(), folder })?;
    base64::engine::general_purpose::URL_SAFE_NO_PAD
        .decode(&found.token)
        .map(Token::new)
        .map_err(|_| CredentialsError::Damaged { path: path.to_owned() })
}

/// Keeps the token of a folder in the file at `path`.
///
/// # Errors
/// When the file cannot be read or written.
pub fn set_token(path: &Path, folder: FolderId, token: &Token) -> Result<(), CredentialsError> {
    use base64::Engine as _;
    let mut stored = load(path)?;
    let token = base64::engine::general_purpose::URL_SAFE_NO_PAD.encode(token.as_bytes());
    stored.folders.insert(folder.to_string(), StoredFolder { token });
    store(path, &stored)
}

/// Forgets the token of a folder in the file at `path`.
///
/// # Errors
/// When the file cannot be read or written.
pub fn remove_token(path: &Path, folder: FolderId) -> Result<(), CredentialsError> {
    let mut stored = load(path)?;
    if stored.folders.remove(&folder.to_string()).is_some() {
        store(path, &stored)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_is_kept_where_only_this_user_can_read_it() {
        let dir = tempfile::tempdir().unwrap();
        let path = path_beside(&dir.path().join("agent.toml"));
        let (one, two) = (FolderId::from_bytes([1; 16]), FolderId::from_bytes([2; 16]));
        let missing = token(&path, one).unwrap_err();
        assert!(matches!(missing, CredentialsError::Missing { .. }), "{missing}");
        set_token(&path, one, &Token::new(vec![7; 32])).unwrap();
        set_token(&path, two, &Token::new(vec![8; 32])).unwrap();
        assert_eq!(token(&path, one).unwrap().as_bytes(), [7; 32]);
        let mode = std::fs::metadata(&path).unwrap().permissions().mode() & 0o777;
        assert_eq!(mode, 0o600);
        remove_token(&path, one).unwrap();
        assert!(token(&path, one).is_err());
        assert_eq!(token(&path, two).unwrap().as_bytes(), [8; 32]);
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o644)).unwrap();
        assert_eq!(
            token(&path, two).unwrap_err().to_string(),
            format!("Others can read {path:?} (mode 644): run chmod 600 on it")
        );
    }
}
