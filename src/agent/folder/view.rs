//! What can be seen of a folder from outside, and the state that follows from it.

use crate::agent::config::FolderConfig;
use crate::engine::trees::{Meta, Totals};
use crate::protocol::control::{FolderStatus, HeldDeletion, Problem, State, Transfer};

/// The most problems shown with their paths.
const PROBLEMS_SHOWN: usize = 100;

/// What the core last told of its engine.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(in crate::agent) struct EngineView {
    pub totals: Totals,
    pub meta: Meta,
    pub conflicts: u64,
    pub problem_count: u64,
    pub problems: Vec<Problem>,
    pub agrees: Option<bool>,
    pub held: Vec<HeldDeletion>,
    /// Where the directories are in the drive that are left out here.
    pub left_out: Vec<String>,
    pub is_settled: bool,
    pub rescans_done: u64,
    /// Bytes per second, in both directions.
    pub upload_rate: u64,
    pub download_rate: u64,
    pub transfers: Vec<Transfer>,
}

/// How the connection stands.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(in crate::agent) enum LinkView {
    /// The first try is under way.
    #[default]
    Connecting,
    /// There is a session.
    Online,
    /// There is a session, but in the last one the server left a request without an answer, for this
    /// reason, and in this one it has not answered any yet.
    Doubtful(String),
    /// The server cannot be reached, for this reason, and waiting may help.
    Offline(String),
    /// What answers is not right: another server, say, or one of another version. It is tried
    /// again, but a person should look.
    Wrong(String),
    /// The server does not want this device; trying again will not help.
    Refused(String),
}

/// A folder as seen from outside.
#[derive(Debug, Clone)]
pub(in crate::agent) struct View {
    pub config: FolderConfig,
    pub paused: bool,
    /// Why nothing is done at all.
    pub stopped: Option<String>,
    /// Whether the folder is open.
    pub is_open: bool,
    pub link: LinkView,
    /// How many tries to open the folder or to connect have failed.
    pub failed_tries: u64,
    pub engine: EngineView,
}

impl View {
    pub(super) fn new(config: FolderConfig, paused: bool) -> Self {
        Self {
            config,
            paused,
            stopped: None,
            is_open: false,
            link: LinkView::default(),
            failed_tries: 0,
            engine: EngineView::default(),
        }
    }

    /// Returns whether the server does not want this device.
    pub(in crate::agent) const fn is_refused(&self) -> bool {
        matches!(self.link, LinkView::Refused(_))
    }

    /// Returns whether what answers is not right.
    pub(in crate::agent) const fn is_wrong(&self) -> bool {
        matches!(self.link, LinkView::Wrong(_))
    }

    /// Returns the worst of what is the case.
    pub(in crate::agent) fn state(&self) -> State {
        if self.stopped.is_some() || matches!(self.link, LinkView::Refused(_)) {
            return State::Stopped;
        }
        if self.paused {
            return State::Paused;
        }
        match &self.link {
            LinkView::Offline(_) => State::Offline,
            LinkView::Wrong(_) => State::Problem,
            LinkView::Connecting => State::Syncing,
            // What waits for it waits for a server that may not be there.
            LinkView::Doubtful(_) if !self.engine.is_settled => State::Offline,
            _ if !self.engine.is_settled => State::Syncing,
            _ if self.engine.problem_count > 0 => State::Problem,
            _ => State::InSync,
        }
    }

    /// Returns the folder's part of a status.
    pub(in crate::agent) fn status(&self) -> FolderStatus {
        let engine = &self.engine;
        let of_folder = |reason: &String| Problem { path: String::new(), reason: reason.clone() };
        let link = match &self.link {
            LinkView::Wrong(reason) | LinkView::Refused(reason) => Some(reason),
            _ => None,
        };
        let state = self.state();
        let offline = match &self.link {
            LinkView::Offline(reason) | LinkView::Doubtful(reason) if state == State::Offline => {
                Some(reason.clone())
            }
            _ => None,
        };
        let mut problems: Vec<Problem> = self.stopped.iter().chain(link).map(of_folder).collect();
        let problem_count = engine.problem_count + problems.len() as u64;
        problems.extend(engine.problems.iter().take(PROBLEMS_SHOWN).cloned());
        let is_moving = self.state() == State::Syncing;
        FolderStatus {
            path: self.config.path.to_string_lossy().into_owned(),
            server: self.config.server.clone(),
            user: self.config.user.clone(),
            device: self.config.device_name.clone(),
            state,
            offline,
            files: engine.totals.files,
            dirs: engine.totals.dirs,
            bytes: engine.totals.bytes,
            uploads: engine.totals.uploads,
            upload_bytes: engine.totals.upload_bytes,
            downloads: engine.totals.downloads,
            download_bytes: engine.totals.download_bytes,
            conflicts: engine.conflicts,
            problem_count,
            problems,
            last_sync: engine.meta.last_sync.map(|time| time.secs),
            cursor: engine.meta.cursor.0,
            agrees: engine.agrees,
            held: engine.held.clone(),
            left_out: engine.left_out.clone(),
            left_out_files: engine.totals.left_out_files,
            left_out_bytes: engine.totals.left_out_bytes,
            direction: self.config.flow,
            kept: engine.totals.kept,
            upload_rate: if is_moving { engine.upload_rate } else { 0 },
            download_rate: if is_moving { engine.download_rate } else { 0 },
            secs_left: self.secs_left().filter(|_| is_moving),
            transfers: if is_moving { engine.transfers.clone() } else { Vec::new() },
            devices: Vec::new(),
            space: None,
            told_at: None,
        }
    }

    /// Returns how long what is pending takes, when that can be told: both directions go on beside
    /// each other.
    fn secs_left(&self) -> Option<u64> {
        let EngineView { totals, upload_rate, download_rate, .. } = &self.engine;
        let of = |left: u64, rate: u64| match (left, rate) {
            (0, _) => Some(0),
            (_, 0) => None,
            (left, rate) => Some(left.div_ceil(rate)),
        };
        let up = of(totals.upload_bytes, *upload_rate)?;
        let down = of(totals.download_bytes, *download_rate)?;
        Some(up.max(down)).filter(|secs| *secs > 0)
    }
}
