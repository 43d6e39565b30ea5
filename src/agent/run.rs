//! The agent as a whole: its settings and their edits, its folders, its control socket.

use std::collections::BTreeMap;
use std::fmt;
use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use inotify::{Inotify, WatchMask};
use rustix::fs::FlockOperation;
use tokio::io::unix::AsyncFd;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::JoinHandle;

use super::about::About;
use super::authors::signed;
use super::config::{Config, ConfigError, FolderConfig};
use super::control::{Control, ControlError};
use super::folder::{
    FolderTask, Input, KeptFound, PROGRAM, Rates, Settings, View, exclude, include, list_left_out,
    resolve, standing,
};
use super::log::Happenings;
use super::rate::Rate;
use super::{clock, credentials, durable, left_out};
use crate::engine::kept::KeptPath;
use crate::model::{DriveId, Flow, FolderId, RelPath, Rev};
use crate::protocol::Connection;
use crate::protocol::control::{
    Conflict, FolderStatus, Keep, KeptLine, KeptPaths, LeftOut, Problem, Resolved, Standing, State,
    Status,
};
use crate::protocol::message::Commit;

/// How often the settings are looked at beside what the watch on them tells: a link to a file
/// elsewhere is not watched.
const LOOK_AT_CONFIG: Duration = Duration::from_secs(60);

/// An editor writes in several steps: the settings are read this long after the first.
const SETTLE: Duration = Duration::from_millis(50);

/// How long a folder that is being opened is waited for.
const OPEN_MAX: Duration = Duration::from_secs(10);

/// How long folders may take to stop.
const STOP_MAX: Duration = Duration::from_secs(20);

/// How long a folder's engine may be silent before the agent counts as stuck.
const SILENCE_MAX_MS: u64 = 60_000;

/// What is called with another level for the program's own log.
pub type LevelChanged = Arc<dyn Fn(&str) + Send + Sync>;

/// How the agent is started.
#[derive(Clone)]
pub struct Options {
    /// The settings, `agent.toml`.
    pub config: PathBuf,
    /// Called when the settings name another level for the program's own log.
    pub level_changed: Option<LevelChanged>,
}

impl fmt::Debug for Options {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Options").field("config", &self.config).finish_non_exhaustive()
    }
}

impl Options {
    /// Returns options for the settings at this path.
    #[must_use]
    pub fn new(config: impl Into<PathBuf>) -> Self {
        Self { config: config.into(), level_changed: None }
    }
}

/// Why the agent did not start.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StartError {
    /// The settings are wrong.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// Another agent runs with them.
    #[error("Another agent runs already with {config:?}; stop it first")]
    Running {
        /// The settings.
        config: PathBuf,
    },
    /// The state directory cannot be used.
    #[error("Cannot use the state directory {path:?}")]
    StateDir {
        /// The directory.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// There is no control socket.
    #[error(transparent)]
    Control(#[from] ControlError),
}

/// What all parts of the agent share.
pub(super) struct Shared {
    options: Options,
    config: Mutex<Config>,
    folders: Mutex<BTreeMap<FolderId, FolderTask>>,
    /// What their servers told, and when they were asked; nothing when they did not answer.
    about: Mutex<BTreeMap<FolderId, (Instant, Option<About>)>>,
    /// What is wrong with the agent itself, by what it is about.
    problems: Mutex<BTreeMap<&'static str, Problem>>,
    happenings: Arc<Happenings>,
    rates: Arc<Rates>,
    paused: AtomicBool,
    changed: watch::Sender<u64>,
    /// Where the control socket is to be.
    socket: watch::Sender<PathBuf>,
    /// Held while folders are stopped and started.
    taking_over: tokio::sync::Mutex<()>,
    /// Held while it is changed what is left out of a folder.
    scoping: tokio::sync::Mutex<()>,
    /// Held for as long as the agent lives.
    _lock: File,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // Nothing that holds one of these locks can panic between two steps of a change.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// An agent that runs within this process. Dropped, it goes on until the runtime ends; use
/// [`RunningAgent::stop`].
pub struct RunningAgent {
    shared: Arc<Shared>,
    stop: watch::Sender<bool>,
    task: JoinHandle<()>,
}

impl fmt::Debug for RunningAgent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RunningAgent")
            .field("options", &self.shared.options)
            .finish_non_exhaustive()
    }
}

/// Starts an agent: reads the settings, takes the lock, listens on the control socket and begins
/// with the folders. To be called within a multi-threaded tokio runtime.
///
/// # Errors
/// When the settings are wrong, another agent runs with them, or the disk refuses. Nothing that is
/// wrong with a folder or a server is an error here: that shows in the status.
pub async fn start(options: Options) -> Result<RunningAgent, StartError> {
    let config = Config::load(&options.config)?;
    let lock_file = take_lock(&config.state_dir, &options.config)?;
    let control = Control::listen(&config.socket)?;
    let is_paused = config.state_dir.join("paused").exists();
    let shared = Arc::new(Shared {
        happenings: Arc::new(Happenings::default()),
        rates: Arc::new(Rates {
            up: Rate::new(config.limits.upload_kib_per_s),
            down: Rate::new(config.limits.download_kib_per_s),
        }),
        config: Mutex::new(config.clone()),
        folders: Mutex::default(),
        about: Mutex::default(),
        problems: Mutex::default(),
        paused: AtomicBool::new(is_paused),
        changed: watch::channel(0).0,
        socket: watch::channel(config.socket.clone()).0,
        taking_over: tokio::sync::Mutex::default(),
        scoping: tokio::sync::Mutex::default(),
        _lock: lock_file,
        options,
    });
    shared.happenings.keep_in(&config.state_dir);
    shared.take_over(&config).await;
    let (stop, stopped) = watch::channel(false);
    let task = tokio::spawn(run(Arc::clone(&shared), control, stopped));
    Ok(RunningAgent { shared, stop, task })
}

fn take_lock(state_dir: &Path, config: &Path) -> Result<File, StartError> {
    let fail = |source| StartError::StateDir { path: state_dir.to_owned(), source };
    std::fs::create_dir_all(state_dir).map_err(fail)?;
    let file = File::options()
        .create(true)
        .truncate(false)
        .write(true)
        .open(state_dir.join("agent.lock"))
        .map_err(fail)?;
    match rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok(file),
        Err(rustix::io::Errno::WOULDBLOCK) => {
            Err(StartError::Running { config: config.to_owned() })
        }
        Err(error) => Err(fail(error.into())),
    }
}

/// Serves the control socket and follows the settings until it is stopped.
async fn run(shared: Arc<Shared>, control: Control, mut stopped: watch::Receiver<bool>) {
    let mut socket = shared.socket.subscribe();
    let (moves, moved) = mpsc::channel(1);
    let serving = tokio::spawn(control.serve(Arc::clone(&shared), moved));
    let (edits_sender, mut edits) = mpsc::channel(1);
    let watching = tokio::spawn(watch_config(shared.options.config.clone(), edits_sender));
    let mut flushes = tokio::time::interval(Duration::from_secs(1));
    flushes.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            _ = stopped.changed() => break,
            // The watch lives as long as its task, which ends with this one.
            Some(()) = edits.recv() => shared.reload().await,
            Ok(()) = socket.changed() => {
                let wanted = socket.borrow_and_update().clone();
                shared.move_socket(&wanted, &moves).await;
            }
            _ = flushes.tick() => shared.happenings.flush(),
        }
    }
    watching.abort();
    let folders = std::mem::take(&mut *lock(&shared.folders));
    let stopping = async {
        let mut tasks = tokio::task::JoinSet::new();
        for folder in folders.into_values() {
            tasks.spawn(folder.stop());
        }
        tasks.join_all().await;
    };
    if tokio::time::timeout(STOP_MAX, stopping).await.is_err() {
        tracing::warn!(
            "a folder did not stop in time; what it did is found again at the next start"
        );
    }
    serving.abort();
    // Only now is the socket's file gone, and the next agent free to make its own.
    serving.await.ok();
    shared.happenings.flush();
}

/// Tells of each edit of the settings or credentials.
async fn watch_config(config: PathBuf, edits: mpsc::Sender<()>) {
    let watch = || -> io::Result<AsyncFd<Inotify>> {
        let inotify = Inotify::init()?;
        let dir = config
            .parent()
            .filter(|dir| !dir.as_os_str().is_empty())
            .unwrap_or_else(|| Path::new("."));
        let mask = WatchMask::CLOSE_WRITE | WatchMask::MOVED_TO | WatchMask::DELETE;
        inotify.watches().add(dir, mask)?;
        #[expect(
            deprecated,
            reason = "the only constructor without `unsafe`; an Inotify owns its one descriptor \
                      for as long as it lives, which is all that the other asks for"
        )]
        AsyncFd::new(inotify)
    };
    let mut watched = watch().inspect_err(|error| {
        tracing::warn!(%error, "the settings cannot be watched; they are read once a minute");
    });
    let names = [
        config.file_name().map(std::ffi::OsStr::to_owned),
        credentials::path_beside(&config).file_name().map(std::ffi::OsStr::to_owned),
    ];
    let mut buffer = vec![0; 4096];
    loop {
        let touched = async {
            let Ok(fd) = &mut watched else {
                return std::future::pending().await;
            };
            loop {
                let Ok(mut ready) = fd.readable_mut().await else {
                    return std::future::pending().await;
                };
                match ready.try_io(|fd| {
                    let events = fd.get_mut().read_events(&mut buffer)?;
                    Ok(events
                        .filter_map(|event| event.name)
                        .any(|name| names.iter().flatten().any(|ours| ours == name)))
                }) {
                    Ok(Ok(true)) => return,
                    Ok(Ok(false)) | Err(_) => {}
                    Ok(Err(_)) => return std::future::pending().await,
                }
            }
        };
        tokio::select! {
            () = touched => tokio::time::sleep(SETTLE).await,
            () = tokio::time::sleep(LOOK_AT_CONFIG) => {}
        }
        if edits.send(()).await.is_err() {
            return;
        }
    }
}

impl RunningAgent {
    /// Returns how the agent stands.
    #[must_use]
    pub fn status(&self) -> Status {
        self.shared.status()
    }

    /// Returns a receiver that is told of each change of the status.
    #[must_use]
    pub fn changes(&self) -> watch::Receiver<u64> {
        self.shared.changes()
    }

    /// Waits until everything that is on both sides now is on both sides, or until a folder stands
    /// still for the reason that its state tells.
    pub async fn sync(&self) {
        self.shared.sync().await;
    }

    /// Reads the settings again, as after an edit.
    pub async fn reload(&self) {
        self.shared.reload().await;
    }

    /// Waits until each folder is open or shows why it is not.
    pub fn opened(&self) -> impl Future<Output = ()> + Send + use<> {
        let views: Vec<watch::Receiver<View>> =
            lock(&self.shared.folders).values().map(|folder| folder.view.clone()).collect();
        async move {
            for mut view in views {
                // A folder that was taken out meanwhile is not waited for.
                view.wait_for(|view| view.is_open || view.stopped.is_some()).await.ok();
            }
        }
    }

    /// Returns whether every folder's engine has shown a sign of life lately.
    #[must_use]
    pub fn is_alive(&self) -> bool {
        let now = clock::now().ms;
        lock(&self.shared.folders).values().all(|folder| {
            let turned = folder.turned_at_ms.load(Ordering::Relaxed);
            turned == u64::MAX || now.saturating_sub(turned) < SILENCE_MAX_MS
        })
    }

    /// Stops the agent, and waits until everything is durable and closed.
    pub async fn stop(self) {
        self.stop.send_replace(true);
        if self.task.await.is_err() {
            tracing::error!("the agent ended by a fault in the program");
        }
    }
}

impl Shared {
    pub(super) fn happenings(&self) -> &Happenings {
        &self.happenings
    }

    pub(super) fn changes(&self) -> watch::Receiver<u64> {
        self.changed.subscribe()
    }

    fn bump(&self) {
        self.changed.send_modify(|count| *count = count.wrapping_add(1));
    }

    fn set_problem(&self, about: &'static str, reason: Option<String>) {
        let mut problems = lock(&self.problems);
        match reason {
            Some(reason) => {
                tracing::warn!(%reason, "a problem with the agent");
                let path = String::new();
                problems.insert(about, Problem { path, reason });
            }
            None => {
                problems.remove(about);
            }
        }
        drop(problems);
        self.bump();
    }

    pub(super) fn status(&self) -> Status {
        let order: Vec<FolderId> = lock(&self.config).folders.iter().map(|f| f.id).collect();
        let folders = lock(&self.folders);
        let folders: Vec<FolderStatus> = order
            .iter()
            .filter_map(|id| Some((id, folders.get(id)?)))
            .map(|(id, folder)| {
                let mut status = folder.view.borrow().status();
                if let Some((_, Some(about))) = lock(&self.about).get(id) {
                    about.fill_in(&mut status);
                }
                status
            })
            .collect();
        let mut problems: Vec<Problem> = lock(&self.problems).values().cloned().collect();
        if order.is_empty() {
            problems.push(Problem {
                path: String::new(),
                reason: "No folder is synced yet; join one with: picloud join LINK".to_owned(),
            });
        }
        let mut state = folders.iter().map(|folder| folder.state).min().unwrap_or(State::InSync);
        if !problems.is_empty() {
            state = state.min(State::Problem);
        }
        Status { version: 1, program: PROGRAM.to_owned(), state, folders, problems }
    }

    /// Asks the servers what they know of devices and room, unless they were asked so short a time ago.
    pub(super) async fn ask_servers(&self, every: Duration) {
        let connected: Vec<(FolderId, DriveId, Connection)> = lock(&self.folders)
            .iter()
            .filter_map(|(id, task)| {
                let connection = task.journal.borrow().clone()?;
                Some((*id, task.settings.config.drive, connection))
            })
            .collect();
        let mut questions = tokio::task::JoinSet::new();
        {
            let folders = lock(&self.folders);
            let mut about = lock(&self.about);
            about.retain(|id, _| folders.contains_key(id));
            for (id, drive, connection) in connected {
                if about.get(&id).is_some_and(|(at, _)| at.elapsed() < every) {
                    continue;
                }
                let known = about.remove(&id).and_then(|(_, known)| known);
                about.insert(id, (Instant::now(), known));
                questions.spawn(async move { (id, About::ask(&connection, drive).await) });
            }
        }
        for (id, told) in questions.join_all().await {
            if let (Some(told), Some((_, known))) = (told, lock(&self.about).get_mut(&id)) {
                *known = Some(told);
            }
        }
    }

    /// Pauses or resumes all folders, also over restarts. Returns the folders that the settings
    /// keep paused whatever is said here.
    pub(super) fn pause(&self, paused: bool) -> Result<Vec<String>, String> {
        let config = lock(&self.config).clone();
        let marker = config.state_dir.join("paused");
        let written = if paused {
            durable::replace(&marker, b"", 0o600)
        } else {
            match std::fs::remove_file(&marker) {
                Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
                other => other,
            }
        };
        written.map_err(|error| format!("Cannot note the pause in {marker:?}: {error}"))?;
        self.paused.store(paused, Ordering::Relaxed);
        self.set_folders(&config);
        self.bump();
        let kept = config.folders.iter().filter(|folder| folder.paused);
        Ok(kept.map(|folder| folder.path.to_string_lossy().into_owned()).collect())
    }

    /// Tells the folders what can change while they run.
    fn set_folders(&self, config: &Config) {
        let paused = self.paused.load(Ordering::Relaxed);
        let folders = lock(&self.folders);
        for folder in &config.folders {
            if let Some(task) = folders.get(&folder.id) {
                task.set(paused || folder.paused, scan_every_ms(config), &folder.ignore);
            }
        }
    }

    /// Reads the settings after an edit. Wrong ones change nothing, and show as a problem.
    pub(super) async fn reload(self: &Arc<Self>) {
        // Read and taken over in one turn: else an older reading could be taken over last.
        let _taking_over = self.taking_over.lock().await;
        let path = self.options.config.clone();
        let loaded = tokio::task::spawn_blocking(move || Config::load(&path)).await;
        match loaded {
            Ok(Ok(config)) => {
                self.set_problem("config", None);
                let old = lock(&self.config).clone();
                if config != old {
                    tracing::info!("the settings were edited");
                }
                self.take_over(&config).await;
            }
            Ok(Err(error)) => {
                let cause = std::error::Error::source(&error).map(ToString::to_string);
                let cause = cause.map(|cause| format!(" ({cause})")).unwrap_or_default();
                self.set_problem(
                    "config",
                    Some(format!("{error}{cause}; the settings before that edit stay in force")),
                );
            }
            Err(error) => tracing::error!(%error, "reading the settings failed"),
        }
    }

    /// Listens at another control socket. Where that cannot be, the one before stays.
    async fn move_socket(&self, wanted: &Path, moves: &mpsc::Sender<Control>) {
        let current = lock(&self.config).socket.clone();
        if *wanted == current {
            return self.set_problem("socket", None);
        }
        match Control::listen(wanted) {
            Ok(control) => {
                lock(&self.config).socket = wanted.to_owned();
                self.set_problem("socket", None);
                // It is served for as long as the agent runs.
                moves.send(control).await.ok();
            }
            Err(error) => {
                let cause = std::error::Error::source(&error).map(ToString::to_string);
                let cause = cause.unwrap_or_default();
                let reason = format!("{error} ({cause}); the agent listens on {current:?} still");
                self.set_problem("socket", Some(reason));
            }
        }
    }

    /// Brings everything in line with the settings. Called under [`Shared::taking_over`], or before
    /// anyone else can.
    async fn take_over(self: &Arc<Self>, config: &Config) {
        let old = {
            let mut current = lock(&self.config);
            let old = current.clone();
            *current = Config {
                state_dir: old.state_dir.clone(),
                socket: old.socket.clone(),
                ..config.clone()
            };
            old
        };
        let has_moved = config.state_dir != old.state_dir;
        self.set_problem(
            "moved",
            has_moved.then(|| {
                format!(
                    "The settings name another state directory, which takes effect when the agent \
                     is started again; until then it is {:?}",
                    old.state_dir
                )
            }),
        );
        self.socket.send_replace(config.socket.clone());
        self.rates.up.set(config.limits.upload_kib_per_s);
        self.rates.down.set(config.limits.download_kib_per_s);
        let opened = self.happenings.set_file(config.log_file.as_deref());
        self.set_problem(
            "log",
            opened.err().map(|error| {
                let file = config.log_file.as_deref().unwrap_or(Path::new(""));
                format!("Cannot write the log {file:?}: {error}")
            }),
        );
        if let Some(changed) = &self.options.level_changed
            && config.log_level != old.log_level
        {
            changed(&config.log_level);
        }
        let config = lock(&self.config).clone();
        self.stop_outdated(&config).await;
        // Whatever was waiting may be possible now. Those that are started below do not wait: a
        // word to them would only make them try a second time at once.
        for folder in lock(&self.folders).values() {
            folder.wake.notify_one();
        }
        for folder in &config.folders {
            self.start_missing(folder, &config);
        }
        self.set_folders(&config);
        self.bump();
    }

    /// Stops folders that are gone from the settings, have others, or were refused.
    async fn stop_outdated(&self, config: &Config) {
        let outdated: Vec<FolderTask> = {
            let mut folders = lock(&self.folders);
            let ids: Vec<FolderId> = folders
                .iter()
                .filter(|(id, task)| {
                    let wanted = config.folders.iter().find(|folder| folder.id == **id);
                    let is_same =
                        wanted.is_some_and(|wanted| wanted.same_binding(&task.settings.config));
                    !is_same || task.view.borrow().is_refused()
                })
                .map(|(id, _)| *id)
                .collect();
            ids.iter().filter_map(|id| folders.remove(id)).collect()
        };
        for task in outdated {
            task.stop().await;
        }
    }

    fn start_missing(self: &Arc<Self>, folder: &FolderConfig, config: &Config) {
        let mut folders = lock(&self.folders);
        if folders.contains_key(&folder.id) {
            return;
        }
        let settings = Settings {
            config: folder.clone(),
            state_dir: config.folder_state_dir(folder.id),
            credentials: credentials::path_beside(&self.options.config),
            left_out: left_out::path_beside(&self.options.config, folder.id),
            rates: Arc::clone(&self.rates),
            happenings: Arc::clone(&self.happenings),
        };
        let paused = self.paused.load(Ordering::Relaxed) || folder.paused;
        let task = FolderTask::start(settings, paused, scan_every_ms(config));
        let mut view = task.view.clone();
        let shared = Arc::downgrade(self);
        tokio::spawn(async move {
            while view.changed().await.is_ok() {
                let Some(shared) = shared.upgrade() else {
                    return;
                };
                shared.bump();
            }
        });
        folders.insert(folder.id, task);
    }

    /// Returns the conflict copies of all folders, with who wrote what as far as that can be known.
    pub(super) async fn conflicts(&self) -> Vec<Conflict> {
        let open: Vec<_> = lock(&self.folders)
            .values()
            .filter_map(|folder| {
                let inputs = folder.inputs.borrow().clone()?;
                let config = folder.settings.config.clone();
                Some((inputs, folder.journal.borrow().clone(), config))
            })
            .collect();
        let mut conflicts = Vec::new();
        for (inputs, connection, config) in open {
            let (reply, found) = oneshot::channel();
            if inputs.send(Input::Conflicts(reply)).await.is_ok()
                && let Ok(found) = found.await
            {
                conflicts.append(&mut signed(found, connection.as_ref(), &config).await);
            }
        }
        conflicts
    }

    /// Settles a conflict of a folder, named as the settings name it. An error is for a person.
    pub(super) async fn resolve(
        &self,
        folder: &str,
        path: RelPath,
        keep: Keep,
        seen: String,
    ) -> Result<Resolved, String> {
        let inputs = self.task_of(folder, |task| task.inputs.borrow().clone())?;
        let inputs = inputs.ok_or_else(|| format!("The folder {folder:?} is not open"))?;
        resolve(inputs, path, keep, seen).await
    }

    /// Returns the way to the engine of a folder, named as the settings name it, and the file that says
    /// what is left out of it. One that is being opened is waited for.
    async fn way_to_scope(&self, folder: &str) -> Result<(mpsc::Sender<Input>, PathBuf), String> {
        let (mut inputs, file) =
            self.task_of(folder, |task| (task.inputs.clone(), task.settings.left_out.clone()))?;
        let open = tokio::time::timeout(OPEN_MAX, inputs.wait_for(Option::is_some)).await;
        let inputs = open.ok().and_then(|open| open.ok()?.clone());
        let inputs = inputs.ok_or_else(|| {
            format!("The folder {folder:?} is not open: `picloud status` says why")
        })?;
        Ok((inputs, file))
    }

    /// Returns what differs and stays so at and below a path of a folder, and ends that where it is asked
    /// for. An error is for a person.
    pub(super) async fn kept(
        &self,
        folder: &str,
        path: RelPath,
        is_ended: bool,
    ) -> Result<KeptPaths, String> {
        let (inputs, _) = self.way_to_scope(folder).await?;
        let (reply, found) = oneshot::channel();
        let closed = || format!("The folder {folder:?} is being closed: nothing was done");
        inputs.send(Input::Kept(path, is_ended, reply)).await.map_err(|_| closed())?;
        let KeptFound { flow, count, paths } = found.await.map_err(|_| closed())?;
        let told = |one: KeptPath| KeptLine { path: one.path.to_string(), what: one.what };
        Ok(KeptPaths { direction: flow, count, paths: paths.into_iter().map(told).collect() })
    }

    /// Leaves a directory of a folder out on this device. An error is for a person.
    pub(super) async fn exclude(&self, folder: &str, path: RelPath) -> Result<LeftOut, String> {
        let _scoping = self.scoping.lock().await;
        let (inputs, file) = self.way_to_scope(folder).await?;
        let path = exclude(inputs, file, path).await?;
        Ok(LeftOut { folder: folder.to_owned(), path, in_drive: true })
    }

    /// Brings a directory of a folder back. An error is for a person.
    pub(super) async fn include(&self, folder: &str, path: RelPath) -> Result<LeftOut, String> {
        let _scoping = self.scoping.lock().await;
        if self.task_of(folder, |task| task.settings.config.flow)? == Flow::SendOnly {
            return Err(format!(
                "{folder:?} only sends, so nothing would come back: change `direction` in the agent's \
                 settings first"
            ));
        }
        let (inputs, file) = self.way_to_scope(folder).await?;
        let (path, in_drive) = include(inputs, file, path).await?;
        Ok(LeftOut { folder: folder.to_owned(), path, in_drive })
    }

    /// Returns what is left out of all folders that are open.
    pub(super) async fn left_out(&self) -> Result<Vec<LeftOut>, String> {
        let open: Vec<_> = lock(&self.folders)
            .values()
            .filter_map(|task| {
                let inputs = task.inputs.borrow().clone()?;
                let folder = task.settings.config.path.to_string_lossy().into_owned();
                Some((folder, inputs, task.settings.left_out.clone()))
            })
            .collect();
        let mut all = Vec::new();
        for (folder, inputs, file) in open {
            let dirs = list_left_out(inputs, file).await?;
            all.extend(dirs.into_iter().map(|(path, in_drive)| LeftOut {
                folder: folder.clone(),
                path,
                in_drive,
            }));
        }
        Ok(all)
    }

    /// Returns something of the task of a folder, named as the settings name it.
    fn task_of<T>(&self, folder: &str, of: impl FnOnce(&FolderTask) -> T) -> Result<T, String> {
        let folders = lock(&self.folders);
        let mut all = folders.values();
        all.find(|task| task.settings.config.path.to_string_lossy() == folder)
            .map(of)
            .ok_or_else(|| format!("The agent does not sync the folder {folder:?}"))
    }

    /// Returns how a path of a folder, named as the settings name it, stands.
    pub(super) async fn why(&self, folder: &str, path: RelPath) -> Result<Standing, String> {
        let (view, inputs) = self
            .task_of(folder, |task| (task.view.borrow().clone(), task.inputs.borrow().clone()))?;
        let mut standing = standing(view, inputs, path.clone()).await;
        if let Standing::Absent { last } = &mut standing {
            *last = self.happenings.last_of(folder, &path.to_string());
        }
        Ok(standing)
    }

    /// Waits until everything that is on disk and on the server now is on both, or until a folder
    /// stands still for the reason that its state tells.
    pub(super) async fn sync(self: &Arc<Self>) {
        self.take_up_edit().await;
        let mut waits = tokio::task::JoinSet::new();
        let ids: Vec<FolderId> = lock(&self.config).folders.iter().map(|f| f.id).collect();
        for id in ids {
            let shared = Arc::clone(self);
            waits.spawn(async move {
                // Once more when an edit of the settings started the folder anew meanwhile.
                while let Some(waiting) = shared.waiting(id).await
                    && !sync_folder(waiting).await
                {}
            });
        }
        waits.join_all().await;
        self.bump();
    }

    /// Reads the settings again if their folders are not the ones at work: one that was joined a
    /// moment ago counts, whether the watch has told of it yet or not.
    async fn take_up_edit(self: &Arc<Self>) {
        let path = self.options.config.clone();
        let loaded = tokio::task::spawn_blocking(move || Config::load(&path)).await;
        let is_edited = match loaded {
            Ok(Ok(config)) => config.folders != lock(&self.config).folders,
            Ok(Err(_)) | Err(_) => true,
        };
        if is_edited {
            self.reload().await;
        }
    }

    async fn waiting(&self, id: FolderId) -> Option<Waiting> {
        let _taking_over = self.taking_over.lock().await;
        let folders = lock(&self.folders);
        let folder = folders.get(&id)?;
        folder.wake.notify_one();
        Some(Waiting {
            view: folder.view.clone(),
            journal: folder.journal.clone(),
            drive: folder.settings.config.drive,
            inputs: folder.inputs.clone(),
            wants_pause: Box::new(folder.wants_pause()),
        })
    }
}

/// What waiting for a folder takes.
struct Waiting {
    view: watch::Receiver<View>,
    journal: watch::Receiver<Option<Connection>>,
    drive: crate::model::DriveId,
    inputs: watch::Receiver<Option<mpsc::Sender<Input>>>,
    wants_pause: Box<dyn Fn() -> bool + Send>,
}

/// Returns whether it came to an end, and not just the folder's task.
async fn sync_folder(mut sync: Waiting) -> bool {
    let tries = sync.view.borrow().failed_tries;
    let mut scans = None;
    let mut head: Option<Rev> = None;
    loop {
        let inputs = sync.inputs.borrow_and_update().clone();
        if scans.is_none()
            && let Some(inputs) = inputs
        {
            let (reply, wanted) = oneshot::channel();
            if inputs.send(Input::Sync(reply)).await.is_ok() {
                scans = wanted.await.ok();
            }
        }
        let connection = sync.journal.borrow_and_update().clone();
        if head.is_none()
            && let Some(connection) = connection
        {
            // A commit of nothing: its answer tells the newest rev.
            let question = Commit {
                drive: sync.drive,
                changes: Vec::new(),
                chunks: Vec::new(),
                deletions: None,
            };
            head = connection.call(&question).await.ok().map(|reply| reply.head);
        }
        {
            let view = sync.view.borrow_and_update();
            let engine = &view.engine;
            let is_done = scans.is_some_and(|scans| engine.rescans_done >= scans)
                && head.is_some_and(|head| engine.meta.cursor >= head)
                && engine.is_settled;
            let stands_still = match view.state() {
                // One that was resumed a moment ago shows its pause until its engine was told.
                State::Paused => (sync.wants_pause)(),
                State::Stopped => view.is_refused() || view.failed_tries > tries,
                State::Offline => view.failed_tries > tries,
                State::Problem if view.is_wrong() => view.failed_tries > tries,
                State::Problem | State::Syncing | State::InSync => false,
            };
            if is_done || stands_still {
                return true;
            }
        }
        tokio::select! {
            changed = sync.view.changed() => {
                if changed.is_err() {
                    return false;
                }
            }
            changed = sync.inputs.changed() => {
                if changed.is_err() {
                    return false;
                }
                // Opened again: that engine counts anew.
                scans = None;
            }
            changed = sync.journal.changed(), if head.is_none() => {
                if changed.is_err() {
                    return false;
                }
            }
        }
    }
}

fn scan_every_ms(config: &Config) -> u64 {
    u64::try_from(config.scan_interval.as_millis()).unwrap_or(u64::MAX / 2)
}
