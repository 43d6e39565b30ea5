//! What `picloud` and a running agent say to each other over the agent's Unix socket.
//!
//! One JSON object per line each way. A request is answered by one or more reply lines, of which
//! only the last is not a [`Reply::Progress`] or [`Reply::Log`] line; `watch` and `log --follow` go
//! on until one side closes. The socket is mode 0600: whoever can open it is the agent's user.

mod conflict;
mod standing;

pub use conflict::{Conflict, Keep, Resolved, Side, Version};
pub use standing::{Direction, PathText, RuleSource, Standing};

use serde::{Deserialize, Serialize};

use crate::model::{Difference, Flow};

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
    /// Settle a conflict: one [`Reply::Resolved`].
    Resolve {
        /// The folder, as the settings name it.
        folder: String,
        /// The path of the conflict copy.
        path: PathText,
        /// What to keep.
        keep: Keep,
        /// As in [`Conflict::seen`].
        seen: String,
    },
    /// Why a path is as it is: one [`Reply::Why`].
    Why {
        /// The folder that it is in, as the settings name it.
        folder: String,
        /// The path within that folder.
        path: PathText,
    },
    /// Leave a directory out on this device: one [`Reply::LeftOut`], which names it.
    Exclude {
        /// The folder that it is in, as the settings name it.
        folder: String,
        /// Its path within that folder, here or in the drive.
        path: PathText,
    },
    /// Bring back a directory that is left out: one [`Reply::LeftOut`], which names it.
    Include {
        /// The folder that it is in, as the settings name it.
        folder: String,
        /// Its path in the drive.
        path: PathText,
    },
    /// What is left out of all folders: one [`Reply::LeftOut`].
    LeftOut,
    /// What differs and stays so in a folder whose changes go one way only: one [`Reply::Kept`].
    Kept {
        /// The folder, as the settings name it.
        folder: String,
        /// The path within it at and below which.
        path: PathText,
        /// Whether to end it: a folder that only receives becomes what the drive is, of one that only
        /// sends the drive becomes what it is.
        end: bool,
    },
    /// What happened to which file: the last `lines` [`Reply::Log`] lines, then, with `follow`, each
    /// as it happens; else a [`Reply::Ok`].
    Log {
        /// How many lines of the past.
        lines: u32,
        /// Whether to go on.
        follow: bool,
        /// Which lines.
        #[serde(default)]
        only: LogFilter,
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
    /// A conflict is settled.
    Resolved(Resolved),
    /// Directories that are left out, or were until now.
    LeftOut {
        /// Each of them.
        dirs: Vec<LeftOut>,
    },
    /// What differs and stays so, or did until now.
    Kept(KeptPaths),
    /// How a path stands.
    Why {
        /// How.
        standing: Standing,
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
    /// The agent's program and version; empty of one that does not say.
    #[serde(default)]
    pub program: String,
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
    /// The directories of the drive that are left out on this device, with what is not UTF-8 replaced.
    #[serde(default)]
    pub left_out: Vec<String>,
    /// Files and links in them; they count in `files`, too.
    #[serde(default)]
    pub left_out_files: u64,
    /// Bytes in those files; they count in `bytes`, too.
    #[serde(default)]
    pub left_out_bytes: u64,
    /// Which way changes go.
    #[serde(default)]
    pub direction: Flow,
    /// How many changes differ and stay so, because they are not carried in that direction.
    #[serde(default)]
    pub kept: u64,
    /// Bytes that went to the server per second lately, as they are in the files.
    #[serde(default)]
    pub upload_rate: u64,
    /// Bytes that came from the server per second lately.
    #[serde(default)]
    pub download_rate: u64,
    /// How long what is pending takes at these rates, in seconds; nothing while that cannot be told.
    #[serde(default)]
    pub secs_left: Option<u64>,
    /// The larger files that are under way, at most ten.
    #[serde(default)]
    pub transfers: Vec<Transfer>,
    /// The devices of the account, as the server last told.
    #[serde(default)]
    pub devices: Vec<DeviceStatus>,
    /// The room on the server, as it last told.
    #[serde(default)]
    pub space: Option<SpaceStatus>,
    /// When the server told of devices and room: seconds since the Unix epoch.
    #[serde(default)]
    pub told_at: Option<i64>,
}

/// A directory that is left out on this device.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LeftOut {
    /// The folder, as the settings name it.
    pub folder: String,
    /// Where the directory is in the drive, or was last; what is not UTF-8 is replaced.
    pub path: String,
    /// Whether it is in the drive, as far as this device has heard.
    pub in_drive: bool,
}

/// What differs and stays so in a folder.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct KeptPaths {
    /// Which way changes go in it.
    pub direction: Flow,
    /// How many paths.
    pub count: u64,
    /// The first thousand of them.
    pub paths: Vec<KeptLine>,
}

/// A path that differs and stays so.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct KeptLine {
    /// The path within the folder; what is not UTF-8 is replaced.
    pub path: String,
    /// How.
    pub what: Difference,
}

/// A file that is under way.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Transfer {
    /// Its path within the folder.
    pub path: String,
    /// Where to.
    pub direction: Direction,
    /// How much of it is over.
    pub bytes_done: u64,
    /// Its size.
    pub bytes: u64,
}

/// A device of the account.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DeviceStatus {
    /// Its name.
    pub name: String,
    /// Whether it is this one.
    pub this: bool,
    /// Whether it is connected.
    pub connected: bool,
    /// When it last was, by the server's clock: seconds since the Unix epoch.
    #[serde(default)]
    pub last_seen: Option<i64>,
}

/// The room on the server, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct SpaceStatus {
    /// What the drive takes there, earlier versions included, as packed.
    pub stored: u64,
    /// What the server can still take.
    pub free: u64,
    /// The size of its disk.
    pub total: u64,
    /// The sum of the sizes of the files in all drives of this drive's owner, as they are now; a server
    /// of an earlier version does not say.
    #[serde(default)]
    pub used: Option<u64>,
    /// How much that may be, where it is limited.
    #[serde(default)]
    pub quota: Option<u64>,
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

/// Which happenings are wanted: those that pass all of it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct LogFilter {
    /// In this folder, as the settings name it.
    #[serde(default)]
    pub folder: Option<String>,
    /// To this path within it, or to something in it; what is not UTF-8 replaced.
    #[serde(default)]
    pub path: Option<String>,
    /// At this time or later: seconds since the Unix epoch.
    #[serde(default)]
    pub since: Option<i64>,
    /// At this time or earlier.
    #[serde(default)]
    pub until: Option<i64>,
    /// By this device.
    #[serde(default)]
    pub device: Option<String>,
}

impl LogFilter {
    /// Returns whether a happening is wanted.
    #[must_use]
    pub fn passes(&self, line: &LogLine) -> bool {
        let is_in = |path: &String| {
            path.is_empty()
                || line.path == *path
                || line.path.strip_prefix(path.as_str()).is_some_and(|rest| rest.starts_with('/'))
        };
        // A conflict and a move name two paths.
        let from = |path: &String| !path.is_empty() && line.detail == *path;
        self.folder.as_ref().is_none_or(|folder| line.folder == *folder)
            && self.path.as_ref().is_none_or(|path| is_in(path) || from(path))
            && self.since.is_none_or(|since| line.time >= since)
            && self.until.is_none_or(|until| line.time <= until)
            && self.device.as_ref().is_none_or(|device| line.device.as_ref() == Some(device))
    }

    /// Returns whether nothing later can pass.
    #[must_use]
    pub fn is_over(&self, now: i64) -> bool {
        self.until.is_some_and(|until| until < now)
    }
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
    /// More, where there is more to tell: where it was before, of what it is a copy, or why.
    #[serde(default)]
    pub detail: String,
    /// The device that did it, where that is known.
    #[serde(default)]
    pub device: Option<String>,
}
