//! What `picloud` and a running agent say to each other over the agent's Unix socket.
//!
//! One JSON object per line each way. A request is answered by one or more reply lines, of which
//! only the last is not a [`Reply::Progress`] or [`Reply::Log`] line; `watch` and `log --follow` go
//! on until one side closes. The socket is mode 0600: whoever can open it is the agent's user.

use serde::{Deserialize, Serialize};

/// What a person's command asks of the agent.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "kebab-case")]
pub enum Request {
    /// One [`Reply::Status`].
    Status,
    /// A [`Reply::Status`] now and at each change, at most four a second.
    Watch,
    /// Look at the whole disk and the journal's head now; [`Reply::Progress`] lines, then
    /// [`Reply::Synced`] once everything that was there at the call is on both sides.
    Sync,
    /// Stop transferring, keep watching.
    Pause,
    /// Go on: [`Reply::Ok`], or [`Reply::StillPaused`].
    Resume,
    /// The conflict copies in the folders: one [`Reply::Conflicts`].
    Conflicts,
    /// What happened to which file: the last `lines` [`Reply::Log`] lines, then, with `follow`, each
    /// as it happens; else a [`Reply::Ok`].
    Log {
        /// How many lines of the past.
        lines: u32,
        /// Whether to go on.
        follow: bool,
    },
}

/// What the agent answers.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "kebab-case")]
pub enum Reply {
    /// Done, nothing to tell.
    Ok,
    /// Going on, but for folders that the settings keep paused.
    StillPaused {
        /// Where these folders are.
        folders: Vec<String>,
    },
    /// How things stand.
    Status(Status),
    /// How far a sync is.
    Progress(Status),
    /// A sync is complete, or stands still for the reason its state tells.
    Synced(Status),
    /// The conflict copies.
    Conflicts {
        /// One entry per copy.
        conflicts: Vec<Conflict>,
    },
    /// Something that happened.
    Log(LogLine),
    /// The request failed.
    Error {
        /// For a person.
        message: String,
    },
}

/// The state of an agent or of one folder, worst first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum State {
    /// The folder is gone or is not the one it was; nothing is done until a person has looked.
    Stopped,
    /// In sync but for some paths that need a person, or what answers is not the right server.
    Problem,
    /// A person said so.
    Paused,
    /// The server cannot be reached.
    Offline,
    /// At work.
    Syncing,
    /// Everything is on both sides.
    InSync,
}

/// How an agent stands. `version` counts incompatible changes of this object; it is 1.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Status {
    /// 1.
    pub version: u32,
    /// The worst state of all folders.
    pub state: State,
    /// Each folder.
    pub folders: Vec<FolderStatus>,
    /// What is wrong with the agent as a whole: a bad edit of its config, say.
    #[serde(default)]
    pub problems: Vec<Problem>,
}

/// How one folder stands.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct FolderStatus {
    /// Where it is on this device.
    pub path: String,
    /// The server, `HOST:PORT`.
    pub server: String,
    /// The account.
    pub user: String,
    /// The name of this device there.
    pub device: String,
    /// How it stands.
    pub state: State,
    /// Why the server cannot be reached, when that is the state.
    #[serde(default)]
    pub offline: Option<String>,
    /// Files and links in the drive.
    pub files: u64,
    /// Directories in the drive.
    pub dirs: u64,
    /// Bytes in the drive's files.
    pub bytes: u64,
    /// Changes here that the server does not have yet.
    pub uploads: u64,
    /// Bytes of content among them.
    pub upload_bytes: u64,
    /// Changes there that this disk does not have yet.
    pub downloads: u64,
    /// Bytes of content among them.
    pub download_bytes: u64,
    /// Conflict copies in the folder.
    pub conflicts: u64,
    /// How many paths need a person; `problems` names the first hundred.
    pub problem_count: u64,
    /// What a person should know, with its path.
    pub problems: Vec<Problem>,
    /// When both sides last agreed: seconds since the Unix epoch.
    #[serde(default)]
    pub last_sync: Option<i64>,
    /// The rev up to which the journal is known.
    pub cursor: u64,
    /// Whether the digest over all nodes was equal to the server's at `cursor`; nothing when not
    /// compared yet.
    #[serde(default)]
    pub agrees: Option<bool>,
    /// The mass deletions of the drive that wait for a person, whichever device asked for them.
    #[serde(default)]
    pub held: Vec<HeldDeletion>,
}

/// A mass deletion that waits for a person.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct HeldDeletion {
    /// The name of the device that asked for it.
    pub device: String,
    /// Whether that is this device; it is then one of `problems` too.
    pub here: bool,
    /// How many files and directories it is about.
    pub deletions: u64,
    /// How many were deleted shortly before, which count as the same act.
    #[serde(default)]
    pub earlier: u64,
    /// Since when, in seconds since the Unix epoch by the server's clock.
    pub since: i64,
}

/// Something a person should know.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Problem {
    /// The path within the folder, with what is not UTF-8 replaced; empty for the folder itself.
    pub path: String,
    /// What is wrong, and what to do: a sentence without a full stop.
    pub reason: String,
}

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
}

/// Something that happened to a file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LogLine {
    /// Seconds since the Unix epoch.
    pub time: i64,
    /// The folder.
    pub folder: String,
    /// What: `sent`, `received`, `moved here`, `deleted here`, `conflict`, `problem` …
    pub event: String,
    /// The path within the folder.
    pub path: String,
    /// More, where there is more to tell.
    #[serde(default)]
    pub detail: String,
}
