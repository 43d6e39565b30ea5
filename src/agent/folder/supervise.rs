//! Opening a folder, and opening it again: when it went away and is back, when its state was
//! damaged, until it is told to stop.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, AtomicUsize};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use tokio::runtime::Handle;
use tokio::sync::{Notify, mpsc, oneshot, watch};
use tokio::task::JoinHandle;

use super::core::{Core, Ended, Parts};
use super::hands::Hands;
use super::link::Link;
use super::partial::Partials;
use super::prepare::Preparer;
use super::progress::Progress;
use super::running::RunningNote;
use super::view::LinkView;
use super::{Context, INCOMING_LEN_MAX, INPUTS_MAX, Input, OUTGOING_LEN_MAX, Rates, View};
use crate::agent::cache::Cache;
use crate::agent::clock;
use crate::agent::config::FolderConfig;
use crate::agent::credentials::{self, Token};
use crate::agent::disk::{ApplyPool, DiskFolder, Identity, Report};
use crate::agent::ignore::Ignore;
use crate::agent::left_out;
use crate::agent::lists::Lists;
use crate::agent::log::Happenings;
use crate::agent::state::SqliteTrees;
use crate::agent::watch::{Hint, InotifyWatcher, Watcher};
use crate::engine::apply::{Applier, Recovered};
use crate::engine::seam::Event;
use crate::engine::trees::Trees as _;
use crate::engine::{self, Engine};
use crate::model::{IdSource, NodeId, Timestamp};
use crate::protocol::Connection;

/// How long to wait before a folder that could not be opened is tried again.
const REOPEN: Duration = Duration::from_secs(3);

/// A state database that is damaged again so soon is begun anew only after a rest.
const SET_ASIDE_EVERY: Duration = Duration::from_secs(60);

/// Hints that wait to be handed on; more stay with the kernel.
const HINTS_MAX: usize = 1024;

/// What a folder's task is told when it is started.
#[derive(Debug, Clone)]
pub(in crate::agent) struct Settings {
    pub config: FolderConfig,
    /// Where its databases are.
    pub state_dir: PathBuf,
    pub credentials: PathBuf,
    /// The file that says what is left out.
    pub left_out: PathBuf,
    pub rates: Arc<Rates>,
    pub happenings: Arc<Happenings>,
}

/// What can change while a folder's task runs.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Wish {
    stop: bool,
    paused: bool,
    scan_every_ms: u64,
    ignore: Arc<Vec<String>>,
}

/// A folder's task, and the ways to it.
#[derive(Debug)]
pub(in crate::agent) struct FolderTask {
    pub settings: Settings,
    pub view: watch::Receiver<View>,
    /// Wakes it out of a pause.
    pub wake: Arc<Notify>,
    /// The connection for questions, while there is one.
    pub journal: watch::Receiver<Option<Connection>>,
    /// The time of the core's last turn, in milliseconds of the monotonic clock; `u64::MAX` while
    /// there is no core.
    pub turned_at_ms: Arc<AtomicU64>,
    /// The way to the engine, while the folder is open.
    pub inputs: watch::Receiver<Option<mpsc::Sender<Input>>>,
    wish: watch::Sender<Wish>,
    task: JoinHandle<()>,
}

impl FolderTask {
    pub(in crate::agent) fn start(settings: Settings, paused: bool, scan_every_ms: u64) -> Self {
        let view = View::new(settings.config.clone(), paused);
        let (view_sender, view) = watch::channel(view);
        let (journal_sender, journal) = watch::channel(None);
        let (wish, wished) = watch::channel(Wish {
            stop: false,
            paused,
            scan_every_ms,
            ignore: Arc::new(settings.config.ignore.clone()),
        });
        let wake = Arc::new(Notify::new());
        let (inputs_sender, inputs) = watch::channel(None);
        let turned_at_ms = Arc::new(AtomicU64::new(u64::MAX));
        let supervisor = Supervisor {
            settings: settings.clone(),
            view: view_sender,
            wake: Arc::clone(&wake),
            journal: journal_sender,
            turned_at_ms: Arc::clone(&turned_at_ms),
            inputs: inputs_sender,
            wished,
            last_session: 0,
            begun_anew: None,
        };
        Self {
            settings,
            view,
            wake,
            journal,
            turned_at_ms,
            inputs,
            wish,
            task: tokio::spawn(supervisor.run()),
        }
    }

    pub(in crate::agent) fn set(&self, paused: bool, scan_every_ms: u64, ignore: &[String]) {
        self.wish.send_if_modified(|wish| {
            let before = wish.clone();
            wish.paused = paused;
            wish.scan_every_ms = scan_every_ms;
            if *wish.ignore != ignore {
                wish.ignore = Arc::new(ignore.to_vec());
            }
            *wish != before
        });
    }

    /// Returns whether the folder is to rest, which its view shows once its engine was told.
    pub(in crate::agent) fn wants_pause(&self) -> impl Fn() -> bool + Send + use<> {
        let wished = self.wish.subscribe();
        move || wished.borrow().paused
    }

    /// Stops it, and waits until everything is durable and closed.
    pub(in crate::agent) async fn stop(self) {
        self.wish.send_modify(|wish| wish.stop = true);
        if self.task.await.is_err() {
            tracing::error!("the task of a folder ended by a fault in the program");
        }
    }
}

struct Supervisor {
    settings: Settings,
    view: watch::Sender<View>,
    wake: Arc<Notify>,
    journal: watch::Sender<Option<Connection>>,
    turned_at_ms: Arc<AtomicU64>,
    inputs: watch::Sender<Option<mpsc::Sender<Input>>>,
    wished: watch::Receiver<Wish>,
    last_session: u64,
    /// What became of a state database that was found damaged at work, until that is told.
    begun_anew: Option<String>,
}

/// What is opened before the threads begin.
struct Opened {
    folder: DiskFolder,
    trees: SqliteTrees,
    lists: Lists,
    applier: Applier<DiskFolder>,
    recovered: Recovered,
    ignore: Ignore,
    token: Token,
    left_out: BTreeSet<NodeId>,
    note: RunningNote,
    suspect_since: Option<Timestamp>,
    /// What became of the state database before this one, for a person.
    begun_anew: Option<String>,
}

impl Supervisor {
    async fn run(mut self) {
        let mut set_aside_at = None;
        while !self.wished.borrow().stop {
            let mut settings = self.settings.clone();
            settings.config.ignore = self.wished.borrow().ignore.to_vec();
            let opened = tokio::task::spawn_blocking(move || open(&settings))
                .await
                .unwrap_or_else(|error| Err(format!("A fault in the program: {error}")));
            let ended = match opened {
                Ok(opened) => self.work(opened).await,
                Err(reason) => Err(reason),
            };
            match ended {
                Ok(Ended::Stopped) => return,
                Ok(Ended::Gone(reason)) => self.rest(reason).await,
                Ok(Ended::State(error)) if error.is_damage() => {
                    if set_aside_at.is_some_and(|at: Instant| at.elapsed() < SET_ASIDE_EVERY) {
                        // A disk that damages whatever is written to it.
                        self.rest(with_cause(&error)).await;
                    }
                    set_aside_at = Some(Instant::now());
                    tracing::error!(%error, "the state database is set aside and begun anew");
                    let path = self.settings.state_dir.join("state.sqlite");
                    let aside =
                        tokio::task::spawn_blocking(move || SqliteTrees::set_aside(&path)).await;
                    match aside {
                        Ok(Ok(aside)) => self.begun_anew = Some(begun_anew(aside.as_deref())),
                        Ok(Err(error)) => self.rest(with_cause(&error)).await,
                        Err(_) => self.rest(with_cause(&error)).await,
                    }
                }
                Ok(Ended::State(error)) => self.rest(with_cause(&error)).await,
                Err(reason) => self.rest(reason).await,
            }
        }
    }

    /// Shows why nothing is done, and waits before the next try.
    async fn rest(&mut self, reason: String) {
        tracing::warn!(folder = ?self.settings.config.path, %reason, "stopped");
        let path = self.settings.config.path.to_string_lossy().into_owned();
        let is_news = self.view.borrow().stopped.as_ref() != Some(&reason);
        if is_news {
            self.settings.happenings.tell(&path, "problem", String::new(), reason.clone(), None);
        }
        self.view.send_modify(|view| {
            view.stopped = Some(reason);
            view.is_open = false;
            view.failed_tries += 1;
        });
        tokio::select! {
            () = tokio::time::sleep(REOPEN) => {}
            () = self.wake.notified() => {}
            // An agent that is gone stops everything.
            changed = self.wished.changed() => {
                if changed.is_err() {
                    tokio::time::sleep(REOPEN).await;
                }
            }
        }
    }

    /// Works on the open folder until that ends.
    async fn work(&mut self, mut opened: Opened) -> Result<Ended, String> {
        let begun_anew = self.begun_anew.take();
        opened.begun_anew = opened.begun_anew.or(begun_anew);
        let (inputs, receiver) = mpsc::channel(INPUTS_MAX);
        let wish = self.wished.borrow_and_update().clone();
        let token = opened.token.clone();
        let (core, cx) = self
            .assemble(opened, inputs.clone(), receiver, &wish)
            .map_err(|error| format!("The folder cannot be worked on: {error}"))?;
        let link = Link {
            cx,
            config: self.settings.config.clone(),
            token,
            view: self.view.clone(),
            last_session: self.last_session,
            doubt: None,
        };
        let (report, ended) = oneshot::channel();
        let runtime = Handle::current();
        let paused = wish.paused;
        let thread = std::thread::Builder::new()
            .name("picloud-engine".into())
            .spawn(move || {
                // Dropping the core waits for its threads; only then is it over.
                let ended = core.run(&runtime, paused);
                report.send(ended).ok();
            })
            .map_err(|error| format!("The folder cannot be worked on: {error}"))?;
        self.inputs.send_replace(Some(inputs.clone()));
        self.view.send_modify(|view| {
            view.stopped = None;
            view.is_open = true;
            view.link = LinkView::Connecting;
            view.engine.is_settled = false;
            view.engine.rescans_done = 0;
            view.paused = paused;
        });
        let link = tokio::spawn(link.run());
        let ended = self.until_ended(&inputs, ended, wish).await;
        self.inputs.send_replace(None);
        self.turned_at_ms.store(u64::MAX, std::sync::atomic::Ordering::Relaxed);
        link.abort();
        self.journal.send_replace(None);
        // Sessions of different lives of the folder must not be taken for one another.
        self.last_session += 1_000_000;
        let joined = tokio::task::spawn_blocking(move || thread.join().is_ok()).await;
        if !joined.unwrap_or(false) {
            return Err("The folder's engine ended by a fault in the program".to_owned());
        }
        ended
    }

    async fn until_ended(
        &mut self,
        inputs: &mpsc::Sender<Input>,
        mut ended: oneshot::Receiver<Ended>,
        mut wish: Wish,
    ) -> Result<Ended, String> {
        if wish.stop {
            // Said while the folder was being opened: no change will tell of it.
            inputs.send(Input::Stop).await.ok();
        }
        loop {
            tokio::select! {
                ended = &mut ended => {
                    return ended.map_err(|_| {
                        "The folder's engine ended by a fault in the program".to_owned()
                    });
                }
                changed = self.wished.changed() => {
                    let new = self.wished.borrow_and_update().clone();
                    // A core that is gone is heard of above.
                    if changed.is_err() || new.stop {
                        inputs.send(Input::Stop).await.ok();
                        return ended.await.map_err(|_| {
                            "The folder's engine ended by a fault in the program".to_owned()
                        });
                    }
                    if new.paused != wish.paused {
                        inputs.send(Input::Paused(new.paused)).await.ok();
                        self.view.send_modify(|view| view.paused = new.paused);
                    }
                    if new.scan_every_ms != wish.scan_every_ms {
                        inputs.send(Input::ScanEvery(new.scan_every_ms)).await.ok();
                    }
                    if new.ignore != wish.ignore {
                        inputs.send(Input::Ignore(Arc::clone(&new.ignore))).await.ok();
                    }
                    wish = new;
                }
            }
        }
    }

    /// Starts the threads around the engine.
    fn assemble(
        &self,
        opened: Opened,
        inputs: mpsc::Sender<Input>,
        receiver: mpsc::Receiver<Input>,
        wish: &Wish,
    ) -> std::io::Result<(Core, Arc<Context>)> {
        let cx = Arc::new(Context {
            device: self.settings.config.device,
            folder: opened.folder,
            drive: self.settings.config.drive,
            lists: opened.lists,
            rates: Arc::clone(&self.settings.rates),
            incoming: Cache::new(INCOMING_LEN_MAX),
            applying: AtomicUsize::new(0),
            outgoing: Cache::new(OUTGOING_LEN_MAX),
            partials: Partials::default(),
            up: Progress::default(),
            down: Progress::default(),
            inputs: inputs.clone(),
            reconnect: Arc::clone(&self.wake),
            journal: self.journal.clone(),
            troubles: Mutex::new(BTreeMap::new()),
        });
        self.tell_recovered(&cx, &opened.recovered, opened.begun_anew);
        let mut seed = [0; 32];
        getrandom::fill(&mut seed).map_err(std::io::Error::other)?;
        let engine_settings = engine::Settings {
            suspect_since: opened.suspect_since,
            left_out: opened.left_out,
            flow: self.settings.config.flow,
            ..engine::Settings::default()
        };
        let engine = Engine::new(opened.trees, engine_settings, IdSource::new(seed))
            .map_err(std::io::Error::other)?;
        let (hints, hinted) = mpsc::channel(HINTS_MAX);
        let watcher: Arc<dyn Watcher> = Arc::new(InotifyWatcher::start(hints)?);
        tokio::spawn(hand_on(hinted, inputs.clone()));
        let ignore = Arc::new(opened.ignore);
        let pool = ApplyPool::start(opened.applier, move |report| {
            let input = match report {
                Report::Applied(node, outcome) => Input::Event(Event::Applied { node, outcome }),
                Report::BroughtBack(path) => Input::BroughtBack(path.to_string()),
                Report::Gone(gone) => Input::Gone(gone.to_string()),
            };
            // The core ended.
            inputs.blocking_send(input).ok();
        })?;
        let submitter =
            pool.submitter().ok_or_else(|| std::io::Error::other("the pool is closed"))?;
        let preparer = Preparer::start(Arc::clone(&cx), submitter)?;
        let hands = Hands::start(&cx, &ignore, &watcher)?;
        let core = Core::new(Parts {
            cx: Arc::clone(&cx),
            inputs: receiver,
            engine,
            hands,
            preparer,
            pool,
            ignore,
            watcher,
            view: self.view.clone(),
            happenings: Arc::clone(&self.settings.happenings),
            scan_every_ms: wish.scan_every_ms,
            turned_at_ms: Arc::clone(&self.turned_at_ms),
            note: opened.note,
        });
        Ok((core, cx))
    }

    fn tell_recovered(&self, cx: &Context, recovered: &Recovered, begun_anew: Option<String>) {
        let folder = self.settings.config.path.to_string_lossy();
        let happenings = &self.settings.happenings;
        if let Some(detail) = begun_anew {
            happenings.tell(&folder, "problem", String::new(), detail, None);
        }
        for path in &recovered.brought_back {
            let detail = "brought back after an unclean stop".to_owned();
            happenings.tell(&folder, "conflict", path.to_string(), detail, None);
        }
        for (path, reason) in &recovered.left {
            cx.trouble(path, reason.clone());
        }
    }
}

/// Hands hints of the watcher on to the core.
async fn hand_on(mut hints: mpsc::Receiver<Hint>, inputs: mpsc::Sender<Input>) {
    loop {
        let hint = tokio::select! {
            hint = hints.recv() => hint,
            () = inputs.closed() => None,
        };
        let event = match hint {
            Some(Hint::Touched { dir, name }) => Event::Touched { dir, name },
            Some(Hint::Rescan) => Event::Rescan,
            None => return,
        };
        if inputs.send(Input::Event(event)).await.is_err() {
            return;
        }
    }
}

/// Opens the folder and everything of it on this disk. Blocks. An error is for a person.
fn open(settings: &Settings) -> Result<Opened, String> {
    let config = &settings.config;
    let identity = Identity { folder: config.id, drive: config.drive };
    let token =
        credentials::token(&settings.credentials, config.id).map_err(|error| with_cause(&error))?;
    let ignore = Ignore::new(&settings.config.ignore).map_err(|error| with_cause(&error))?;
    let left_out = left_out::load(&settings.left_out).map_err(|error| with_cause(&error))?;
    let left_out = left_out.into_iter().map(|dir| dir.node).collect();
    let folder = DiskFolder::open(&config.path, identity).map_err(|error| with_cause(&error))?;
    let dir = &settings.state_dir;
    let (note, suspect_since) = RunningNote::leave(dir).map_err(|error| {
        let reason = match error.kind() {
            std::io::ErrorKind::StorageFull => "the disk is full; make room".to_owned(),
            _ => error.to_string(),
        };
        format!("Cannot write in {dir:?}: {reason}")
    })?;
    // A folder that was at work before has this cache; the state must then be there too.
    let was_here = dir.join("lists.sqlite").exists();
    let state = SqliteTrees::open(&dir.join("state.sqlite"), config.id, config.drive)
        .map_err(|error| with_cause(&error))?;
    let is_lost = state.set_aside.is_some() || (was_here && state.is_new);
    let begun_anew = is_lost.then(|| begun_anew(state.set_aside.as_deref()));
    let lists = Lists::open(&dir.join("lists.sqlite"))
        .map_err(|error| format!("The cache of content lists cannot be used: {error}"))?;
    let trees = state.trees;
    let mut applier = Applier::new(folder.clone(), config.device_name.clone())
        .after_power_cut(suspect_since.is_some());
    let recovered = applier
        .recover(&clock::today(), |node| {
            // What cannot be read counts as parked: it then stays where it is.
            trees.get(node).map_or(true, |entry| entry.local.is_some_and(|local| local.parked))
        })
        .map_err(|fault| format!("What the last run left cannot be gone through: {fault}"))?;
    Ok(Opened {
        folder,
        trees,
        lists,
        applier,
        recovered,
        ignore,
        token,
        left_out,
        note,
        suspect_since,
        begun_anew,
    })
}

/// Says what became of the state database, for a person.
fn begun_anew(set_aside: Option<&Path>) -> String {
    let what = match set_aside {
        Some(path) => format!("was damaged and lies in {} now", path.to_string_lossy()),
        None => "was lost".to_owned(),
    };
    tracing::error!("the state database {what}; both sides are compared anew");
    format!("the state database {what}; both sides are compared anew, and nothing is deleted")
}

fn with_cause(error: &dyn std::error::Error) -> String {
    match error.source() {
        Some(cause) => format!("{error}: {cause}"),
        None => error.to_string(),
    }
}
