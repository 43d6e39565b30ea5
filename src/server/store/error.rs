//! What can go wrong below a session.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::protocol::message::{Failure, FailureCode};

/// Why the store could not do something.
///
/// Cheap to clone, since one failed group commit answers many requests.
#[derive(Debug, Clone, thiserror::Error)]
pub enum StoreError {
    /// A file operation failed.
    #[error("Cannot {verb} {path:?}")]
    File {
        /// What was to be done.
        verb: &'static str,
        /// With which file.
        path: PathBuf,
        /// Why it failed.
        #[source]
        source: Arc<io::Error>,
    },
    /// There is no room for more contents.
    #[error(
        "The server's disk is full: it needs more room, then it goes on by itself. Deleting synced \
         files frees none, since every version is kept"
    )]
    DiskFull,
    /// The database failed.
    #[error("The database failed")]
    Database(#[source] Arc<rusqlite::Error>),
    /// The database holds something that this program never writes.
    #[error("The database is damaged: {0}")]
    Damaged(String),
    /// The data was written by a newer program.
    #[error(
        "{path:?} has format {found}, but this version reads up to {known}: upgrade picloud-server"
    )]
    TooNew {
        /// The file.
        path: PathBuf,
        /// Its format.
        found: i64,
        /// The newest one known here.
        known: i64,
    },
    /// What the database names is not there.
    #[error(
        "{path:?} is not there, and the database names contents in it: is its disk mounted? Bring it \
         back, or restore a backup of the whole data directory"
    )]
    PackMissing {
        /// The pack.
        path: PathBuf,
    },
    /// Another server runs on the same data.
    #[error("Another picloud-server uses {path:?}")]
    InUse {
        /// The data directory.
        path: PathBuf,
    },
    /// The server is stopping.
    #[error("The server is shutting down")]
    Closed,
    /// The request cannot be granted; the store is well.
    #[error(transparent)]
    Request(Failure),
}

impl StoreError {
    /// Wraps what a file operation failed with.
    pub fn file(verb: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Self {
        move |source| {
            if matches!(source.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded) {
                return Self::DiskFull;
            }
            Self::File { verb, path: path.to_owned(), source: Arc::new(source) }
        }
    }

    /// Makes the error of a request that cannot be granted.
    pub fn request(code: FailureCode, message: impl Into<String>) -> Self {
        Self::Request(Failure { code, message: message.into() })
    }

    /// Returns what the device is told: details of the server's disk stay in the server's log.
    #[must_use]
    pub fn to_failure(&self) -> Failure {
        let (code, message) = match self {
            Self::Request(failure) => return failure.clone(),
            Self::DiskFull => (FailureCode::DiskFull, self.to_string()),
            Self::Closed => (FailureCode::Unavailable, self.to_string()),
            Self::Database(error) if is_busy(error) => {
                (FailureCode::Unavailable, "The server's database is busy".to_owned())
            }
            _ => (FailureCode::Internal, "The server failed; its log says more".to_owned()),
        };
        Failure { code, message }
    }

    /// Returns whether a person should look at the server.
    #[must_use]
    pub const fn is_fault(&self) -> bool {
        !matches!(self, Self::Request(_) | Self::Closed)
    }
}

fn is_busy(error: &rusqlite::Error) -> bool {
    error.sqlite_error_code() == Some(rusqlite::ErrorCode::DatabaseBusy)
}

impl From<rusqlite::Error> for StoreError {
    fn from(error: rusqlite::Error) -> Self {
        // The memory that connections share is a file too, and has to grow.
        let is_unshared = error
            .sqlite_error()
            .is_some_and(|error| error.extended_code == rusqlite::ffi::SQLITE_IOERR_SHMSIZE);
        match error.sqlite_error_code() {
            Some(rusqlite::ErrorCode::DiskFull) => Self::DiskFull,
            _ if is_unshared => Self::DiskFull,
            _ => Self::Database(Arc::new(error)),
        }
    }
}
