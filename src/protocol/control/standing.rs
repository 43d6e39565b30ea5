//! How one path stands, and why: what `picloud why` tells.

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::LogLine;
use crate::model::{Difference, Flow, RelPath};

/// A path within a folder, byte for byte: base64 in JSON, which has no other way for bytes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PathText(pub RelPath);

impl Serialize for PathText {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        URL_SAFE_NO_PAD.encode(self.0.to_bytes()).serialize(serializer)
    }
}

impl<'de> Deserialize<'de> for PathText {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        let bytes = URL_SAFE_NO_PAD.decode(text).map_err(serde::de::Error::custom)?;
        RelPath::parse(&bytes).map(Self).map_err(serde::de::Error::custom)
    }
}

/// Which way a change goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Direction {
    /// From this device to the server.
    Up,
    /// From the server to this device.
    Down,
}

/// Where an ignore rule stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum RuleSource {
    /// In a `.picloudignore` file.
    File,
    /// In the folder's `ignore` in the settings.
    Settings,
    /// Among the defaults.
    Defaults,
}

/// How a path stands. Paths in it are within the folder, with what is not UTF-8 replaced.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "standing", rename_all = "kebab-case")]
pub enum Standing {
    /// The same on both sides.
    InSync,
    /// In sync, and a conflict copy.
    ConflictCopy {
        /// What it is a copy of.
        original: String,
    },
    /// In sync, under another name here than in the drive.
    NameClash {
        /// The name in the drive.
        drive_name: String,
        /// Where it is here.
        here: String,
    },
    /// Left out by an ignore rule.
    Ignored {
        /// Where the rule stands.
        source: RuleSource,
        /// The file that it stands in, within the folder.
        #[serde(default)]
        file: Option<String>,
        /// The line there, from 1.
        #[serde(default)]
        line: Option<u64>,
        /// The rule.
        pattern: String,
        /// What the rule names: the path or a directory above it.
        at: String,
    },
    /// In a directory of the drive that is left out on this device, or that directory.
    LeftOut {
        /// The directory that brings it back.
        with: String,
        /// Whether it is still on this disk.
        is_here: bool,
    },
    /// Changed on one side, in a folder that does not carry that to the other.
    Kept {
        /// Which way changes go.
        flow: Flow,
        /// How it differs.
        what: Difference,
    },
    /// The agent's own.
    Own,
    /// Beyond a symbolic link, which is synced as a link.
    BeyondLink {
        /// The link.
        link: String,
    },
    /// A synced folder of its own, or within one.
    InnerFolder {
        /// That folder.
        at: String,
    },
    /// A socket, FIFO or device.
    Special,
    /// It, or a directory that it is in, cannot be read.
    Unreadable {
        /// Which.
        at: String,
        /// Why.
        reason: String,
    },
    /// Each time it was read it had changed meanwhile.
    Busy,
    /// What is on disk is newer than what the agent has looked at.
    NotSeenYet,
    /// It is under way.
    Moving {
        /// Where to.
        direction: Direction,
    },
    /// It waits for its turn.
    Waiting {
        /// Where to.
        direction: Direction,
        /// How many changes wait in all.
        pending: u64,
    },
    /// Another path comes first.
    After {
        /// Where to.
        direction: Direction,
        /// Which.
        blocker: String,
    },
    /// The last try failed.
    Retry {
        /// Where to.
        direction: Direction,
        /// When the next one comes, in seconds.
        secs: u64,
    },
    /// Deleted here, and it is not certain yet that it was not moved.
    PutOff,
    /// Deleted here, by a mass deletion that waits for a person.
    Held {
        /// This device.
        device: String,
    },
    /// Something is wrong with it.
    Problem {
        /// Where to.
        direction: Direction,
        /// What.
        reason: String,
    },
    /// The server has no more room for it in this account.
    OverQuota {
        /// How many bytes more it would make used.
        #[serde(default)]
        needs: u64,
        /// How many are left.
        #[serde(default)]
        left: u64,
    },
    /// The server cannot be reached.
    Offline {
        /// Where to.
        direction: Direction,
    },
    /// The folder is paused.
    Paused {
        /// Whether the settings say so, rather than `picloud pause`.
        by_settings: bool,
    },
    /// The first look at the folder, or at the journal, is not complete yet.
    CatchingUp,
    /// The folder has stopped.
    Stopped {
        /// Why.
        reason: String,
    },
    /// What answers is not the right server.
    WrongServer {
        /// What is wrong.
        reason: String,
    },
    /// Some paths in the folder have problems; told of the folder itself only.
    Problems {
        /// How many.
        count: u64,
    },
    /// Nothing is there, on neither side.
    Absent {
        /// What last happened to the path, as far as that is remembered.
        #[serde(default)]
        last: Option<LogLine>,
    },
}
