//! Conflict copies, and what a person does about one.

use serde::{Deserialize, Serialize};

use super::PathText;

/// A conflict copy.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Conflict {
    /// The folder it is in.
    pub folder: String,
    /// The path of the copy.
    pub path: String,
    /// The path it is a copy of.
    pub original: String,
    /// Its size in bytes.
    pub bytes: u64,
    /// The path of the copy, byte for byte.
    #[serde(default)]
    pub path_base64: Option<PathText>,
    /// The path that it is a copy of, byte for byte.
    #[serde(default)]
    pub original_base64: Option<PathText>,
    /// What the copy holds.
    #[serde(default)]
    pub copy_version: Option<Version>,
    /// What is at the original's path; nothing when there is nothing any more.
    #[serde(default)]
    pub original_version: Option<Version>,
    /// Which of the two this device wrote, where it is one and not the other: *mine*.
    #[serde(default)]
    pub mine: Option<Side>,
    /// What was seen of both: to be given back with what is to be done, which is done only if both
    /// are still so.
    #[serde(default)]
    pub seen: String,
}

/// One of the two versions of a conflict.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Version {
    /// The device that wrote it, where that is known.
    pub device: Option<String>,
    /// Whether that is this one.
    pub here: bool,
    /// When it was last modified: seconds since the Unix epoch.
    pub time: i64,
    /// Its size in bytes.
    pub bytes: u64,
    /// Whether it is a directory.
    #[serde(default)]
    pub is_dir: bool,
}

/// Which of the two.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Side {
    /// The conflict copy.
    Copy,
    /// What has the name.
    Original,
}

/// What is to be kept of a conflict.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Keep {
    /// The conflict copy, under the name of the original.
    Copy,
    /// The original.
    Original,
    /// Both, the copy under a name that is none of a conflict copy.
    Both,
}

/// What was done about a conflict.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Resolved {
    /// Where what was kept is.
    pub kept: Vec<String>,
    /// Whether something was removed.
    pub removed: bool,
}
