//! A folder's identity: `.picloud/identity`, which tells a folder from a missing one.

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::model::{DriveId, FolderId};

/// The newest format of what is in `.picloud`.
const VERSION: u32 = 1;

/// The longest identity file that is read.
pub(super) const LEN_MAX: usize = 4096;

/// The longest path of settings that is noted: half of what is read, whatever has to be escaped.
const CONFIG_LEN_MAX: usize = 1024;

const HEADER: &str = "\
# PiCloud made this when the folder was linked. It tells the folder from a missing one (an unmounted
# disk, say): without it nothing is synced, and nothing is deleted anywhere.
";

/// Which folder this is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Identity {
    /// The folder; drawn when it was linked.
    pub folder: FolderId,
    /// The drive it is a copy of.
    pub drive: DriveId,
}

/// What a folder says of itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Linked {
    /// Which folder it is.
    pub identity: Identity,
    /// The settings it was linked for, as far as it tells: those of another agent keep it from being
    /// linked a second time.
    pub config: Option<PathBuf>,
}

#[derive(Serialize, Deserialize)]
struct File {
    version: u32,
    folder: FolderId,
    drive: DriveId,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    config: Option<String>,
}

/// Why a folder could not be linked or opened.
#[derive(Debug, thiserror::Error)]
pub enum FolderError {
    /// The folder does not exist.
    #[error(
        "The folder {path} is not there; mount it or bring it back, or end it with `picloud logout`"
    )]
    Missing {
        /// Where it should be.
        path: PathBuf,
    },
    /// The folder has no identity.
    #[error(
        "The folder {path} is not the one that was linked (it has no .picloud/identity); is its \
         disk mounted? If it is to be linked anew, join it again"
    )]
    NotLinked {
        /// The folder.
        path: PathBuf,
    },
    /// The folder has another identity than it should have.
    #[error(
        "The folder {path} belongs to another drive; end it there with `picloud logout`, or choose another folder"
    )]
    OtherIdentity {
        /// The folder.
        path: PathBuf,
    },
    /// The identity cannot be understood.
    #[error("The file {path}/.picloud/identity cannot be read: {reason}")]
    BadIdentity {
        /// The folder.
        path: PathBuf,
        /// Why.
        reason: String,
    },
    /// Another agent has the folder open.
    #[error("Another agent syncs the folder {path}; stop it first")]
    Busy {
        /// The folder.
        path: PathBuf,
    },
    /// The file system lacks what careful replacing needs.
    #[error(
        "The file system of {path} cannot exchange two files in one step, so a file there could be \
         lost in a crash; choose a folder on ext4, XFS, Btrfs or the like"
    )]
    Unsupported {
        /// The folder.
        path: PathBuf,
    },
    /// The file system gives files other names than they are given.
    #[error(
        "The file system of {path} changes the names of files (their case or Unicode form), so they would \
         be renamed on all devices; choose a folder on ext4, XFS, Btrfs or the like"
    )]
    RewritesNames {
        /// The folder.
        path: PathBuf,
    },
    /// Anything else.
    #[error("The folder {path} cannot be used: {reason}")]
    Io {
        /// The folder.
        path: PathBuf,
        /// Why.
        reason: String,
    },
}

impl Linked {
    /// Binds a folder to its settings. A path that is not text, or very long, is not noted: then
    /// only a running agent keeps others away.
    pub(super) fn new(identity: Identity, config: Option<&Path>) -> Self {
        let is_noted =
            |path: &&Path| path.to_str().is_some_and(|text| text.len() <= CONFIG_LEN_MAX);
        Self { identity, config: config.filter(is_noted).map(Path::to_owned) }
    }

    pub(super) fn to_text(&self) -> String {
        let file = File {
            version: VERSION,
            folder: self.identity.folder,
            drive: self.identity.drive,
            config: self.config.as_ref().and_then(|path| path.to_str()).map(str::to_owned),
        };
        // Two ids, a number and a text always have one; the header alone would be refused when read.
        let body = toml::to_string(&file).unwrap_or_default();
        format!("{HEADER}{body}")
    }

    pub(super) fn parse(bytes: &[u8]) -> Result<Self, String> {
        let text = std::str::from_utf8(bytes).map_err(|_| "It is not text".to_owned())?;
        let file: File = toml::from_str(text).map_err(|error| error.message().to_owned())?;
        if file.version > VERSION {
            return Err(format!(
                "It has version {}, this program knows up to {VERSION}; update the program",
                file.version
            ));
        }
        Ok(Self {
            identity: Identity { folder: file.folder, drive: file.drive },
            config: file.config.map(PathBuf::from),
        })
    }
}
