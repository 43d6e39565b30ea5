//! What a folder keeps of its settings while no agent syncs it: `.picloud/settings.toml`, written when
//! the folder is let go of, and read when it is joined again.

use std::io::{self, ErrorKind, Read as _};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::agent::durable;
use crate::model::Flow;

/// The longest file that is read.
const LEN_MAX: u64 = 1024 * 1024;

/// The settings of a folder that say how it is synced, not with what.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Kept {
    /// Patterns left out.
    pub ignore: Vec<String>,
    /// Whether it rests.
    pub paused: bool,
    /// Which way changes go.
    pub direction: Flow,
}

impl Kept {
    /// Leaves the settings in a folder; nothing when they are the defaults.
    ///
    /// # Errors
    /// When the folder is not there, or the disk refuses.
    pub fn leave(&self, folder: &Path) -> io::Result<()> {
        if *self == Self::default() {
            return Self::forget(folder);
        }
        let text = toml::to_string(self).map_err(io::Error::other)?;
        durable::replace(&path(folder), text.as_bytes(), 0o600)
    }

    /// Returns what a folder has kept.
    ///
    /// # Errors
    /// When that cannot be read or understood.
    pub fn find(folder: &Path) -> io::Result<Self> {
        let file = match std::fs::File::open(path(folder)) {
            Ok(file) => file,
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(Self::default()),
            Err(error) => return Err(error),
        };
        let mut text = String::new();
        file.take(LEN_MAX).read_to_string(&mut text)?;
        toml::from_str(&text)
            .map_err(|error| io::Error::new(ErrorKind::InvalidData, error.message().to_owned()))
    }

    /// Forgets what a folder has kept.
    ///
    /// # Errors
    /// When the disk refuses.
    pub fn forget(folder: &Path) -> io::Result<()> {
        match std::fs::remove_file(path(folder)) {
            Err(error) if error.kind() != ErrorKind::NotFound => Err(error),
            _ => Ok(()),
        }
    }
}

fn path(folder: &Path) -> PathBuf {
    folder.join(".picloud/settings.toml")
}
