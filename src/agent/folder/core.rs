//! The thread that owns the engine: takes events in, hands actions out, makes the trees durable,
//! and shows how things stand. It reads the disk only through its database, and waits only for
//! events.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use tokio::runtime::Handle;
use tokio::sync::{mpsc, oneshot, watch};

use super::hands::{Hands, Task};
use super::pace::Pace;
use super::prepare::{Prepared, Preparer};
use super::resolve::seen;
use super::running::RunningNote;
use super::view::EngineView;
use super::{
    Context, Fetched, FoundConflict, Input, KeptFound, Live, Pair, View, WhyFound, commit, fetch,
    prefetch, upload,
};
use crate::agent::disk::ApplyPool;
use crate::agent::ignore::{self, Ignore};
use crate::agent::log::Happenings;
use crate::agent::state::{SqliteTrees, StateError};
use crate::agent::{clock, watch::Watcher};
use crate::engine::Engine;
use crate::engine::apply::{Job, Payload};
use crate::engine::folder::{Folder as _, Own};
use crate::engine::rest::{AtRest, Unrest};
use crate::engine::scope::Named;
use crate::engine::seam::{
    Action, Committed, DiskOp, Event, Outcome, Outgoing, Spot, Stat, Uploaded, Word,
};
use crate::engine::trees::{Totals, Trees as _};
use crate::heap;
use crate::model::{Change, ChangeOp, Content, Kind, Name, NodeId, RelPath, read_copy_name};
use crate::protocol::control::{
    Conflict, Direction, HeldDeletion, PathText, Problem, Transfer, Version,
};
use crate::protocol::message::{Coming, Held};

/// How many inputs are taken before the engine plans.
const INPUTS_PER_TURN: usize = 512;

/// How often the trees are made durable while there is work, in milliseconds.
const CHECKPOINT_MS: u64 = 50;

/// How often the view is brought up to date while there is work, in milliseconds.
const SHOW_MS: u64 = 200;

/// How often what costs more to find out is brought up to date, in milliseconds.
const SHOW_PROBLEMS_MS: u64 = 1000;

/// The thread turns at least this often, to show that it lives.
const TURN_MS: u64 = 1000;

/// How often to see whether the folder is still there, in milliseconds.
const CHECK_MS: u64 = 2000;

/// How often to see which of the directories that cannot be watched are still there, in
/// milliseconds; a complete look at everything tells it, too.
const POLLED_MS: u64 = 60_000;

/// How long to wait after a turn in which the engine did nothing, in milliseconds.
const IDLE_TURN_MS: u64 = 2;

/// How often unused content lists are dropped, in milliseconds.
const LISTS_MS: u64 = 3_600_000;

/// A folder in sync for so long gives memory back.
const REST_MS: u64 = 5_000;

/// The most conflict copies and problems told at once.
const TOLD_MAX: usize = 10_000;

/// The most paths told of those that differ and stay so.
const KEPT_TOLD_MAX: usize = 1_000;

/// The most files under way that are shown.
const TRANSFERS_SHOWN: usize = 10;

/// The most nodes of which it is remembered who changed them.
const MADE_BY_MAX: usize = 16 * 1024;

/// Why the core ended.
#[derive(Debug)]
pub(super) enum Ended {
    /// It was told to, and everything is durable.
    Stopped,
    /// The folder is gone; why, for a person.
    Gone(String),
    /// The state cannot be kept.
    State(StateError),
}

impl From<StateError> for Ended {
    fn from(error: StateError) -> Self {
        Self::State(error)
    }
}

/// What the core works with.
pub(super) struct Parts {
    pub cx: Arc<Context>,
    pub inputs: mpsc::Receiver<Input>,
    pub engine: Engine<SqliteTrees>,
    pub hands: Hands,
    pub preparer: Preparer,
    pub pool: ApplyPool,
    pub ignore: Arc<Ignore>,
    pub watcher: Arc<dyn Watcher>,
    pub view: watch::Sender<View>,
    pub happenings: Arc<Happenings>,
    pub scan_every_ms: u64,
    /// The time of the last turn, in milliseconds of the monotonic clock, for the watchdog.
    pub turned_at_ms: Arc<AtomicU64>,
    pub note: RunningNote,
}

/// A happening that is told once it has come about.
struct Told {
    event: &'static str,
    path: RelPath,
    /// Where it was before.
    from: Option<RelPath>,
}

/// How fast what is pending shrinks.
#[derive(Debug, Default)]
struct Paces {
    up: Pace,
    down: Pace,
}

/// A write whose content is being fetched.
struct Fetching {
    session: u64,
    op: DiskOp,
}

/// A removal that a person waits for.
struct Discarding {
    at: Spot,
    reply: oneshot::Sender<Outcome>,
}

pub(super) struct Core {
    cx: Arc<Context>,
    inputs: mpsc::Receiver<Input>,
    engine: Engine<SqliteTrees>,
    hands: Hands,
    /// What they are handed at the end of this turn.
    tasks: Vec<Task>,
    preparer: Preparer,
    /// What it is handed at the end of this turn.
    jobs: Vec<Prepared>,
    /// After the preparer, which hands it its work: fields are dropped in this order.
    _pool: ApplyPool,
    ignore: Arc<Ignore>,
    watcher: Arc<dyn Watcher>,
    view: watch::Sender<View>,
    happenings: Arc<Happenings>,
    turned_at_ms: Arc<AtomicU64>,
    note: RunningNote,
    folder_name: String,
    /// This device's name.
    device_name: Arc<str>,
    live: Option<Live>,
    paused: bool,
    fetching: HashMap<NodeId, Fetching>,
    applying: HashMap<NodeId, Told>,
    committing: HashMap<u64, Vec<Option<Told>>>,
    /// What a person wants gone, by its node.
    discarding: HashMap<NodeId, Discarding>,
    /// Who made what is not on this disk yet, as far as there was room to remember it.
    made_by: HashMap<NodeId, Arc<str>>,
    paces: Paces,
    /// The mass deletions of the drive that wait for a person, as the server last told.
    held: Vec<HeldDeletion>,
    /// Problems that were told of already.
    told_problems: HashSet<(String, String)>,
    scan_every_ms: u64,
    next_scan_ms: u64,
    /// How many complete looks at everything somebody waits for.
    scans_wanted: u64,
    ignore_generation: u64,
    checkpoint_at_ms: u64,
    is_unsaved: bool,
    show_at_ms: u64,
    problems_at_ms: u64,
    lists_at_ms: u64,
    /// When memory is given back; never once it is.
    rest_at_ms: u64,
    check_at_ms: u64,
    polled_at_ms: u64,
    /// How many complete looks at everything there were when that was done last.
    polled_at_rescan: u64,
    shown: EngineView,
    /// As of this turn.
    is_settled: bool,
}

impl Core {
    pub(super) fn new(parts: Parts) -> Self {
        let now = clock::now().ms;
        let device_name = Arc::from(parts.view.borrow().config.device_name.as_str());
        Self {
            folder_name: parts.cx.folder.path().to_string_lossy().into_owned(),
            cx: parts.cx,
            inputs: parts.inputs,
            engine: parts.engine,
            hands: parts.hands,
            tasks: Vec::new(),
            preparer: parts.preparer,
            jobs: Vec::new(),
            _pool: parts.pool,
            ignore_generation: parts.ignore.generation(),
            ignore: parts.ignore,
            watcher: parts.watcher,
            view: parts.view,
            happenings: parts.happenings,
            turned_at_ms: parts.turned_at_ms,
            note: parts.note,
            live: None,
            paused: false,
            fetching: HashMap::new(),
            applying: HashMap::new(),
            committing: HashMap::new(),
            discarding: HashMap::new(),
            made_by: HashMap::new(),
            paces: Paces::default(),
            device_name,
            held: Vec::new(),
            told_problems: HashSet::new(),
            scan_every_ms: parts.scan_every_ms,
            next_scan_ms: now + parts.scan_every_ms,
            scans_wanted: 0,
            checkpoint_at_ms: now,
            is_unsaved: false,
            show_at_ms: now,
            problems_at_ms: now,
            lists_at_ms: now + LISTS_MS,
            rest_at_ms: u64::MAX,
            check_at_ms: now + CHECK_MS,
            polled_at_ms: now + POLLED_MS,
            polled_at_rescan: 0,
            shown: EngineView::default(),
            is_settled: false,
        }
    }

    /// Runs until it is told to stop or cannot go on.
    pub(super) fn run(mut self, runtime: &Handle, paused: bool) -> Ended {
        let ended = match self.turns(runtime, paused) {
            Ok(ended) | Err(ended) => ended,
        };
        if !matches!(ended, Ended::State(_))
            && let Err(ended) = self.checkpoint()
        {
            return ended;
        }
        if matches!(ended, Ended::Stopped) {
            // What persons wrote shortly before must be durable as well before this counts as a clean
            // stop: the server may have it already, and the state remembers it.
            match self.cx.folder.sync_all() {
                Ok(()) => self.note.end(),
                Err(fault) => tracing::debug!(%fault, "the folder could not be made durable"),
            }
        }
        ended
    }

    fn turns(&mut self, runtime: &Handle, paused: bool) -> Result<Ended, Ended> {
        self.paused = paused;
        self.event(Event::Paused(paused))?;
        self.event(Event::Rescan)?;
        let mut actions = Vec::new();
        loop {
            let now = clock::now();
            self.turned_at_ms.store(now.ms, Ordering::Relaxed);
            self.timers(now.ms)?;
            self.engine.poll(now, &mut actions)?;
            let did_something = !actions.is_empty();
            for action in actions.drain(..) {
                self.dispatch(action)?;
            }
            self.hands.put(&mut self.tasks);
            self.preparer.put(&mut self.jobs);
            if self.engine.needs_resubscribe() {
                // The link sees that its way for acknowledgements is gone, and begins anew.
                self.live = None;
            }
            self.cx.applying.store(self.applying.len(), Ordering::Relaxed);
            self.is_settled = self.engine.is_settled();
            self.cx.partials.clear(self.is_settled && self.live.is_some());
            self.show(clock::now().ms)?;
            self.save(clock::now().ms)?;
            let first = self.wait(runtime, did_something);
            let mut next = first;
            for _ in 0..INPUTS_PER_TURN {
                let Some(input) = next else { break };
                if let Some(ended) = self.take(input)? {
                    return Ok(ended);
                }
                next = self.inputs.try_recv().ok();
            }
            if let Some(input) = next
                && let Some(ended) = self.take(input)?
            {
                return Ok(ended);
            }
        }
    }

    /// Waits for an input, or for the time of the next thing to do.
    fn wait(&mut self, runtime: &Handle, did_something: bool) -> Option<Input> {
        if let Ok(input) = self.inputs.try_recv() {
            return Some(input);
        }
        let now = clock::now().ms;
        let mut until = now + TURN_MS;
        until = until.min(self.engine.wake_at_ms().unwrap_or(u64::MAX));
        if self.is_unsaved {
            until = until.min(self.checkpoint_at_ms);
        }
        if self.is_view_old() {
            until = until.min(self.show_at_ms);
        }
        if until <= now {
            if did_something {
                return None;
            }
            // An engine that wants its turn and has nothing to do in it waits for an input.
            until = now + IDLE_TURN_MS;
        }
        let inputs = &mut self.inputs;
        runtime.block_on(async {
            tokio::time::timeout(Duration::from_millis(until - now), inputs.recv())
                .await
                .ok()
                .flatten()
        })
    }

    fn timers(&mut self, now: u64) -> Result<(), Ended> {
        let is_wanted = self.engine.rescans_done() < self.scans_wanted && self.is_settled;
        if now >= self.next_scan_ms || is_wanted {
            self.event(Event::Rescan)?;
        }
        if self.ignore.generation() != self.ignore_generation {
            self.ignore_generation = self.ignore.generation();
            self.event(Event::Rescan)?;
        }
        if now >= self.check_at_ms {
            self.check_at_ms = now + CHECK_MS;
            self.tasks.push(Task::Check);
            if !self.engine.trees().is_in_place() {
                return Err(Ended::State(self.engine.trees().gone()));
            }
        }
        let rescan = self.engine.rescans_done();
        if now >= self.polled_at_ms || rescan != self.polled_at_rescan {
            self.polled_at_ms = now + POLLED_MS;
            self.polled_at_rescan = rescan;
            self.forget_polled();
        }
        if now >= self.rest_at_ms && self.is_settled {
            self.rest_at_ms = u64::MAX;
            self.engine.trees().rest();
            heap::give_back();
        }
        if now >= self.lists_at_ms && self.is_settled {
            self.lists_at_ms = now + LISTS_MS;
            let used = self.engine.trees().lists_in_use()?;
            self.cx.lists.drop_unused(&used);
        }
        Ok(())
    }

    /// Forgets directories beyond the limit of watches that were deleted: the kernel, which tells of
    /// the end of a watch, knows nothing of them.
    fn forget_polled(&self) {
        let trees = self.engine.trees();
        // What cannot be read counts as there.
        self.watcher
            .keep_polled(&mut |dir| trees.get(dir).map_or(true, |entry| entry.local.is_some()));
    }

    fn event(&mut self, event: Event) -> Result<(), Ended> {
        let now = clock::now();
        if event == Event::Rescan {
            self.next_scan_ms = now.ms + self.scan_every_ms;
        }
        self.is_unsaved = true;
        Ok(self.engine.handle(now, event)?)
    }

    fn is_live(&self, session: u64) -> bool {
        self.live.as_ref().is_some_and(|live| live.session.number == session)
    }

    /// Takes an input; returns why that ends the core, if it does.
    fn take(&mut self, input: Input) -> Result<Option<Ended>, Ended> {
        match input {
            Input::Event(Event::Applied { node, outcome }) => {
                // Operations of one node come back in the order in which they were handed out.
                match self.discarding.remove(&node) {
                    Some(discarding) => self.discarded(discarding, outcome)?,
                    None => self.applied(node, outcome)?,
                }
            }
            Input::Event(event) => self.event(event)?,
            Input::Online { live, lineage, from, head, usage } => {
                self.disconnect()?;
                self.live = Some(*live);
                self.event(Event::Online { lineage, from, head })?;
                if let Some(usage) = usage {
                    self.event(Event::Usage(usage))?;
                }
            }
            Input::Offline { session } => {
                if self.live.is_none() || self.is_live(session) {
                    self.disconnect()?;
                }
            }
            Input::Page { session, page, made_by } => {
                if self.is_live(session) {
                    for (node, device) in made_by {
                        if self.made_by.len() < MADE_BY_MAX || self.made_by.contains_key(&node) {
                            self.made_by.insert(node, device);
                        }
                    }
                    let upto = page.upto;
                    self.event(Event::Page(page))?;
                    if let Some(live) = &self.live
                        && live.seen.try_send(upto).is_err()
                    {
                        tracing::debug!("the server sends more pages than it may");
                        self.live = None;
                    }
                }
            }
            Input::Usage { session, usage } => {
                if self.is_live(session) {
                    self.event(Event::Usage(usage))?;
                }
            }
            Input::Committed { session, batch, results, head, usage } => {
                if self.is_live(session) {
                    self.tell_committed(batch, &results);
                    if let Some(usage) = usage {
                        self.event(Event::Usage(usage))?;
                    }
                    self.event(Event::Committed { batch, results, head })?;
                }
            }
            Input::Held { session, held } => {
                if self.is_live(session) {
                    self.held(held)?;
                }
            }
            Input::Coming { session, note } => {
                if self.is_live(session) {
                    self.coming(note)?;
                }
            }
            Input::Uploaded { session, node, uploaded } => {
                if self.is_live(session) {
                    self.event(Event::Uploaded { node, uploaded })?;
                }
            }
            Input::Fetched { session, node, fetched } => self.fetched(session, node, fetched)?,
            Input::BroughtBack(path) => self.tell("conflict", path, String::new()),
            Input::Gone(reason) => return Ok(Some(Ended::Gone(reason))),
            Input::Sync(reply) => {
                // A look at everything that is under way may have passed what changed just now;
                // the one that is wanted here comes after it.
                let under_way = u64::from(!self.engine.is_settled());
                self.event(Event::Rescan)?;
                self.engine.retry_now();
                self.show_at_ms = 0;
                let wanted = self.engine.rescans_done() + 1 + under_way;
                self.scans_wanted = wanted;
                // Whoever asked may be gone.
                reply.send(wanted).ok();
            }
            Input::Position(reply) => {
                let meta = self.engine.trees().meta();
                reply.send((meta.cursor, meta.lineage)).ok();
            }
            Input::Conflicts(reply) => {
                reply.send(self.conflicts()?).ok();
            }
            Input::Pair(path, reply) => {
                reply.send(self.pair(&path)?).ok();
            }
            Input::Discard(node, reply) => self.discard(node, reply),
            Input::Why(path, reply) => {
                let totals = self.engine.trees().totals();
                let found = WhyFound {
                    why: self.engine.why(&path)?,
                    cx: Arc::clone(&self.cx),
                    ignore: Arc::clone(&self.ignore),
                    pending: totals.uploads + totals.downloads,
                };
                reply.send(found).ok();
            }
            Input::Named(path, reply) => {
                let named = self.engine.named(&path)?;
                let in_drive = match named {
                    Named::Dir(dir) => self.engine.path_in_drive(dir)?,
                    Named::NoDir | Named::NotSent | Named::Nothing => path,
                };
                reply.send((named, in_drive)).ok();
            }
            Input::LeftOut(reply) => {
                reply.send(self.engine.left_out()?).ok();
            }
            Input::LeaveOut(dirs, reply) => {
                self.engine.leave_out(dirs)?;
                self.is_unsaved = true;
                self.show_at_ms = 0;
                self.problems_at_ms = 0;
                reply.send(()).ok();
            }
            Input::Kept(path, is_ended, reply) => {
                let (count, paths) = self.engine.kept(&path, KEPT_TOLD_MAX)?;
                if is_ended && count > 0 {
                    self.engine.settle(&path)?;
                    // What was acknowledged outlives the agent.
                    self.checkpoint()?;
                    self.show_at_ms = 0;
                }
                reply.send(KeptFound { flow: self.engine.flow(), count, paths }).ok();
            }
            Input::Paused(paused) => {
                self.paused = paused;
                if paused {
                    self.note(prefetch::Note::Stop);
                }
                self.event(Event::Paused(paused))?;
            }
            Input::Ignore(patterns) => match self.ignore.set_patterns(&patterns) {
                Ok(()) => self.cx.no_trouble(&RelPath::ROOT),
                Err(error) => self.cx.trouble(&RelPath::ROOT, error.to_string()),
            },
            Input::ScanEvery(ms) => {
                self.scan_every_ms = ms;
                self.next_scan_ms = self.next_scan_ms.min(clock::now().ms + ms);
            }
            Input::Stop => return Ok(Some(Ended::Stopped)),
        }
        Ok(None)
    }

    /// Lets go of the session: what was asked on it will not be answered.
    fn disconnect(&mut self) -> Result<(), Ended> {
        self.live = None;
        self.committing.clear();
        self.held.clear();
        self.event(Event::Offline)?;
        for (node, _) in std::mem::take(&mut self.fetching) {
            self.applied(node, no_connection())?;
        }
        Ok(())
    }

    /// Takes in which mass deletions are held: what is this device's own is the engine's to know.
    fn held(&mut self, held: Vec<Held>) -> Result<(), Ended> {
        let own = held.iter().find(|held| held.device == self.cx.device);
        let word = match own {
            None => Word::Open,
            Some(own) if own.rejected => Word::Rejected,
            Some(_) => Word::Held,
        };
        // What is rejected waits for no person any more.
        self.held = held
            .into_iter()
            .filter(|held| !held.rejected)
            .map(|held| HeldDeletion {
                here: held.device == self.cx.device,
                device: held.device_name,
                deletions: held.deletions,
                earlier: held.earlier,
                since: held.since.secs,
            })
            .collect();
        self.event(Event::Deletions(word))
    }

    /// Hands a note of a content on its way on, when the engine would have that fetched.
    fn coming(&mut self, note: Coming) -> Result<(), Ended> {
        let Coming { node, list, len, extents, upto, .. } = note;
        let upto = usize::try_from(upto).unwrap_or(usize::MAX);
        if self.paused {
            return Ok(());
        }
        let note = match extents {
            None => prefetch::Note::Goes { node, list, upto },
            Some(extents) => {
                let content = Content::List { id: list, len };
                let Some(awaited) = self.engine.awaits(node, &content)? else {
                    return Ok(());
                };
                prefetch::Note::Begins {
                    node,
                    list,
                    len,
                    extents,
                    upto,
                    old: awaited.old.map(Box::new),
                }
            }
        };
        self.note(note);
        Ok(())
    }

    fn note(&self, note: prefetch::Note) {
        if let Some(live) = &self.live
            && live.notes.try_send(note).is_err()
        {
            tracing::debug!("a note of a content on its way is dropped");
        }
    }

    fn applied(&mut self, node: NodeId, outcome: Outcome) -> Result<(), Ended> {
        self.tell_applied(node, &outcome);
        self.event(Event::Applied { node, outcome })
    }

    fn fetched(&mut self, session: u64, node: NodeId, fetched: Fetched) -> Result<(), Ended> {
        let is_wanted =
            self.fetching.get(&node).is_some_and(|fetching| fetching.session == session);
        let fetching = is_wanted.then(|| self.fetching.remove(&node)).flatten();
        match (fetching, fetched) {
            (Some(Fetching { op, .. }), Fetched::Payload(payload)) => {
                self.jobs.push(Prepared::Ready(Job { node, op, payload }));
            }
            (Some(_), Fetched::Outcome(outcome)) => self.applied(node, outcome)?,
            (None, Fetched::Payload(Payload::Staged { name, .. })) => {
                // Too late: nobody will put it in place. A failure leaves it for the next start.
                let staging = self.cx.folder.own_dir(Own::Staging);
                self.cx.folder.unlink(&staging, &name).ok();
            }
            (None, _) => {}
        }
        Ok(())
    }

    fn dispatch(&mut self, action: Action) -> Result<(), Ended> {
        match action {
            Action::Look { dir, names } => self.tasks.push(Task::Look { dir, names }),
            Action::Hash { node, at, stat } => self.tasks.push(Task::Hash { node, at, stat }),
            Action::Upload { node, at, expected, base } => {
                let job = upload::Job { node, at, expected, base };
                let taken =
                    self.live.as_ref().is_some_and(|live| live.uploads.try_send(job).is_ok());
                if !taken {
                    let reason = no_connection_text();
                    let uploaded = Uploaded::Later { reason };
                    self.event(Event::Uploaded { node, uploaded })?;
                }
            }
            Action::Commit { batch, changes } => {
                self.checkpoint()?;
                let told = changes.iter().map(|outgoing| self.sent(outgoing)).collect();
                self.committing.insert(batch, told);
                let deletions = self.engine.deletions_pending(batch);
                let job = commit::Job { batch, changes, deletions };
                let taken =
                    self.live.as_ref().is_some_and(|live| live.commits.try_send(job).is_ok());
                if !taken {
                    // The session has ended; that is told in a moment, and answers the commit.
                    self.committing.remove(&batch);
                }
            }
            Action::Apply { node, op } => self.apply(node, op)?,
        }
        Ok(())
    }

    fn apply(&mut self, node: NodeId, op: DiskOp) -> Result<(), Ended> {
        self.engine.trees_mut().keep()?;
        let told = match &op {
            DiskOp::Remove { at, .. }
                if self.engine.trees().look(node, |entry| entry.left_out)? =>
            {
                Told { event: "left out", path: at.path(), from: None }
            }
            op => told_of(op),
        };
        self.applying.insert(node, told);
        let DiskOp::Write { at: _, content, mtime, attrs, over, .. } = &op else {
            let payload = Payload::None;
            self.jobs.push(Prepared::Ready(Job { node, op, payload }));
            return Ok(());
        };
        match content {
            Content::Empty => {
                let payload = Payload::Empty;
                self.jobs.push(Prepared::Ready(Job { node, op, payload }));
                return Ok(());
            }
            Content::Chunk { id, .. } => {
                if let Some(chunk) = self.cx.incoming.get(*id) {
                    self.jobs.push(Prepared::Packed { node, op, chunk });
                    return Ok(());
                }
                if let Some(bytes) = self.cx.outgoing.get(*id) {
                    self.jobs.push(Prepared::Shared { node, op, bytes });
                    return Ok(());
                }
            }
            Content::List { .. } => {}
        }
        let old = match (&op, over) {
            (DiskOp::Write { at, .. }, Some(over)) => Some((at.clone(), *over)),
            _ => None,
        };
        let content = *content;
        let old = self.engine.source_of(&content)?.or(old);
        let job = fetch::Job { node, content, attrs: *attrs, mtime: *mtime, old };
        let taken = self
            .live
            .as_ref()
            .and_then(|live| live.fetches.try_send(job).ok().map(|()| live.session.number));
        match taken {
            Some(session) => {
                self.fetching.insert(node, Fetching { session, op });
                Ok(())
            }
            None => self.applied(node, no_connection()),
        }
    }

    /// Makes the trees durable when it is time. Not more than a tenth of the time goes into that.
    fn save(&mut self, now: u64) -> Result<(), Ended> {
        if self.is_unsaved && now >= self.checkpoint_at_ms {
            self.checkpoint()?;
            let after = clock::now().ms;
            self.checkpoint_at_ms = after + CHECKPOINT_MS.max((after - now) * 10);
        }
        Ok(())
    }

    fn checkpoint(&mut self) -> Result<(), Ended> {
        self.engine.trees_mut().checkpoint()?;
        self.is_unsaved = false;
        if self.engine.has_looked()
            && let Err(error) = self.note.settle()
        {
            tracing::debug!(%error, "the note of the unclean stop stays for now");
        }
        Ok(())
    }

    /// Returns what the trees hold, with what is over of the larger contents under way taken off what is
    /// pending.
    fn totals(&self) -> Totals {
        let mut totals = self.engine.trees().totals();
        totals.upload_bytes = totals.upload_bytes.saturating_sub(self.cx.up.sum());
        totals.download_bytes = totals.download_bytes.saturating_sub(self.cx.down.sum());
        totals
    }

    fn is_view_old(&self) -> bool {
        let trees = self.engine.trees();
        self.shown.totals != self.totals()
            || self.shown.meta != trees.meta()
            || self.shown.rescans_done != self.engine.rescans_done()
            || self.shown.is_settled != self.is_settled
            || self.shown.agrees != self.engine.agrees()
            || self.shown.held != self.held
    }

    /// Brings the view up to date: at once when work begins or ends, else now and then.
    fn show(&mut self, now: u64) -> Result<(), Ended> {
        let turns = self.shown.is_settled != self.is_settled;
        let is_due = now >= self.show_at_ms && (self.is_view_old() || now >= self.problems_at_ms);
        if !turns && !is_due {
            return Ok(());
        }
        self.show_at_ms = now + SHOW_MS;
        if turns && self.is_settled {
            // Memory follows the work: what is dropped too early is read or fetched again.
            self.cx.incoming.clear();
            self.cx.outgoing.clear();
            self.made_by = HashMap::new();
            self.rest_at_ms = now + REST_MS;
        }
        let trees = self.engine.trees();
        for progress in [&self.cx.up, &self.cx.down] {
            // What cannot be read counts as pending.
            progress.retain(|node| trees.get(node).map_or(true, |entry| entry.is_dirty()));
        }
        let mut shown = EngineView {
            totals: self.totals(),
            meta: trees.meta(),
            conflicts: trees.conflict_count()?,
            problem_count: self.shown.problem_count,
            problems: Vec::new(),
            agrees: self.engine.agrees(),
            held: self.held.clone(),
            left_out: self.left_out()?,
            is_settled: self.is_settled,
            rescans_done: self.engine.rescans_done(),
            upload_rate: 0,
            download_rate: 0,
            transfers: self.transfers()?,
        };
        self.paces.up.note(now, shown.totals.upload_bytes);
        self.paces.down.note(now, shown.totals.download_bytes);
        shown.upload_rate = self.paces.up.per_s(now);
        shown.download_rate = self.paces.down.per_s(now);
        if turns || now >= self.problems_at_ms {
            self.problems_at_ms = now + SHOW_PROBLEMS_MS;
            shown.problems = self.problems()?;
            shown.problem_count = shown.problems.len() as u64;
        } else {
            shown.problems.clone_from(&self.shown.problems);
        }
        if shown != self.shown {
            self.shown = shown.clone();
            self.view.send_modify(|view| view.engine = shown);
        }
        Ok(())
    }

    /// Returns where what is left out is in the drive.
    fn left_out(&self) -> Result<Vec<String>, Ended> {
        let dirs = self.engine.left_out()?;
        let mut paths: Vec<String> =
            dirs.into_iter().filter_map(|dir| Some(dir.path?.to_string())).collect();
        paths.sort_unstable();
        Ok(paths)
    }

    /// Returns the larger files under way, those with the most left first.
    fn transfers(&self) -> Result<Vec<Transfer>, Ended> {
        let mut transfers = Vec::new();
        for (direction, progress) in
            [(Direction::Up, &self.cx.up), (Direction::Down, &self.cx.down)]
        {
            for (node, bytes_done) in progress.list() {
                let entry = self.engine.trees().get(node)?;
                let bytes = match direction {
                    Direction::Up => entry.local.as_ref().map(|local| local.stat.size),
                    Direction::Down => entry.remote.as_ref().map(|r| r.node.body.content_len()),
                };
                let Some(bytes) = bytes.filter(|bytes| *bytes > bytes_done) else { continue };
                transfers
                    .push((node, Transfer { path: String::new(), direction, bytes_done, bytes }));
            }
        }
        transfers.sort_by_key(|(_, one)| std::cmp::Reverse(one.bytes - one.bytes_done));
        transfers.truncate(TRANSFERS_SHOWN);
        let named = transfers.into_iter().map(|(node, one)| {
            let path = self.engine.path_for_people(node).to_string();
            Transfer { path, ..one }
        });
        Ok(named.collect())
    }

    /// Returns what a person should know, and tells of what is new.
    fn problems(&mut self) -> Result<Vec<Problem>, Ended> {
        let mut found = self.engine.problems();
        found.extend(self.own_held().map(|reason| (RelPath::ROOT, reason)));
        found.extend(self.cx.troubles());
        for (dir, reason) in self.ignore.problems() {
            if let Some(path) = self.pattern_file(&dir)? {
                found.push((path, reason));
            }
        }
        found.extend(self.watcher.problem().map(|reason| (RelPath::ROOT, reason)));
        found.truncate(TOLD_MAX);
        let problems: Vec<Problem> = found
            .into_iter()
            .map(|(path, reason)| Problem { path: path.to_string(), reason })
            .collect();
        let pairs: HashSet<(String, String)> =
            problems.iter().map(|problem| (problem.path.clone(), problem.reason.clone())).collect();
        for (path, reason) in &pairs {
            if !self.told_problems.contains(&(path.clone(), reason.clone())) {
                self.tell("problem", path.clone(), reason.clone());
            }
        }
        self.told_problems = pairs;
        Ok(problems)
    }

    /// Returns the path of the file with patterns of a directory; nothing when there is no such
    /// directory any more.
    fn pattern_file(&self, dir: &RelPath) -> Result<Option<RelPath>, Ended> {
        let mut at = NodeId::ROOT;
        for name in dir.names() {
            match self.engine.trees().local_at(at, name)?.first() {
                Some(id) => at = *id,
                None => return Ok(None),
            }
        }
        // Always a legal name.
        Ok(Name::new(ignore::FILE_NAME).ok().map(|name| dir.join(&name)))
    }

    /// Returns what a person should know of this device's own deletions, when they are held.
    fn own_held(&self) -> Option<String> {
        if !self.engine.are_deletions_held() {
            return None;
        }
        let own = self.held.iter().find(|held| held.here);
        let since = own.and_then(|own| jiff::Timestamp::from_second(own.since).ok());
        let since = since.map_or_else(String::new, |since| {
            let zone = jiff::tz::TimeZone::system();
            format!(", since {}", since.to_zoned(zone).strftime("%Y-%m-%d %H:%M"))
        });
        let earlier = own.map_or(0, |own| own.earlier);
        let earlier = match earlier {
            0 => String::new(),
            earlier => format!("; {earlier} deleted shortly before count as well"),
        };
        let device = own.map_or_else(|| "DEVICE".to_owned(), |own| format!("{:?}", own.device));
        Some(format!(
            "A mass deletion here ({} files and directories{earlier}) waits for a person{since}: `picloud \
             held` shows it, `picloud approve {device}` lets it happen everywhere, `picloud reject \
             {device}` puts the files back",
            self.engine.trees().totals().deletions
        ))
    }

    fn conflicts(&self) -> Result<Vec<FoundConflict>, Ended> {
        let trees = self.engine.trees();
        let mut copies = Vec::new();
        for id in trees.conflict_copies(TOLD_MAX)? {
            let Some(local) = trees.get(id)?.local else {
                continue;
            };
            let path = trees.path_of(id);
            let Some((dir, read)) =
                path.split_last().and_then(|(dir, name)| Some((dir, read_copy_name(name)?)))
            else {
                continue;
            };
            let original = trees.local_at(local.place.parent, &read.original)?.first().copied();
            let there = match original {
                Some(original) => trees.get(original)?.local,
                None => None,
            };
            let original_path = dir.join(&read.original);
            copies.push(FoundConflict {
                copy: id,
                original,
                conflict: Conflict {
                    folder: self.folder_name.clone(),
                    path: path.to_string(),
                    original: original_path.to_string(),
                    bytes: local.stat.size,
                    path_base64: Some(PathText(path)),
                    original_base64: Some(PathText(original_path)),
                    // Whose version was set aside is in its name; who wrote the other, the server knows.
                    copy_version: Some(version(&local.stat, Some(read.device))),
                    original_version: there.as_ref().map(|there| version(&there.stat, None)),
                    mine: None,
                    seen: seen(&local.stat, there.as_ref().map(|there| &there.stat)),
                },
            });
        }
        copies.sort_by(|a, b| a.conflict.path.cmp(&b.conflict.path));
        Ok(copies)
    }

    /// Returns both versions of a conflict, when both are in sync.
    fn pair(&mut self, path: &RelPath) -> Result<Result<Pair, String>, Ended> {
        let read = path.split_last().and_then(|(dir, name)| Some((dir, read_copy_name(name)?)));
        let Some((dir, read)) = read else {
            return Ok(Err(format!("{path:?} is no conflict copy")));
        };
        let original = dir.join(&read.original);
        let refused = |path: &RelPath, unrest| match unrest {
            Unrest::Waits => format!(
                "{path:?} is not in sync yet, so what is not kept might be nowhere else: nothing was \
                 done (`picloud why` says what it waits for)"
            ),
            Unrest::Kept => format!(
                "{path:?} is not the same in the drive, and stays so, for changes of this folder go one \
                 way only: remove or rename yourself what you do not want (`picloud why` says more)"
            ),
        };
        let copy = match self.engine.at_rest(path)? {
            Ok(Some(copy)) => copy,
            Ok(None) => return Ok(Err(format!("There is no {path:?} any more"))),
            Err(unrest) => return Ok(Err(refused(path, unrest))),
        };
        Ok(match self.engine.at_rest(&original)? {
            Ok(original) => Ok(Pair { copy, original, cx: Arc::clone(&self.cx) }),
            Err(unrest) => Err(refused(&original, unrest)),
        })
    }

    /// Removes what a person does not want, as the plan would, in the same queue.
    fn discard(&mut self, node: AtRest, reply: oneshot::Sender<Outcome>) {
        if self.engine.is_applying(node.id) || self.discarding.contains_key(&node.id) {
            reply.send(Outcome::Changed).ok();
            return;
        }
        self.discarding.insert(node.id, Discarding { at: node.at.clone(), reply });
        let op = DiskOp::Remove { at: node.at, expected: node.expected };
        self.jobs.push(Prepared::Ready(Job { node: node.id, op, payload: Payload::None }));
    }

    /// Takes the end of a removal that a person wished for.
    fn discarded(&mut self, discarding: Discarding, outcome: Outcome) -> Result<(), Ended> {
        let Discarding { at, reply } = discarding;
        if matches!(outcome, Outcome::Done { .. }) {
            self.tell("resolved", at.path().to_string(), String::new());
        }
        self.event(Event::Touched { dir: at.dir.id, name: Some(at.name) })?;
        reply.send(outcome).ok();
        Ok(())
    }

    /// Tells of something that this device did, or found.
    fn tell(&self, event: &str, path: String, detail: String) {
        let device = Some(self.device_name.to_string());
        self.happenings.tell(&self.folder_name, event, path, detail, device);
    }

    /// Returns what is to be told once a change is accepted.
    fn sent(&self, outgoing: &Outgoing) -> Option<Told> {
        let Change { node, op, .. } = &outgoing.change;
        let event = match op {
            ChangeOp::Create(_) => "sent",
            ChangeOp::Delete => "deleted",
            ChangeOp::Update { place: Some(_), .. } => "moved",
            ChangeOp::Update { .. } => "sent",
        };
        let from = match op {
            ChangeOp::Update { place: Some(_), .. } => self.engine.path_in_drive(*node).ok(),
            _ => None,
        };
        let path = match &outgoing.attach {
            Some((at, _)) => at.path(),
            None => self.engine.trees().path_of(*node),
        };
        Some(Told { event, path, from })
    }

    fn tell_committed(&mut self, batch: u64, results: &[Committed]) {
        let told = self.committing.remove(&batch).unwrap_or_default();
        for (told, result) in told.into_iter().zip(results) {
            if let (Some(told), Committed::Accepted { .. }) = (told, result) {
                let from = told.from.filter(|from| *from != told.path);
                let from = from.map(|from| from.to_string()).unwrap_or_default();
                self.tell(told.event, told.path.to_string(), from);
            }
        }
    }

    fn tell_applied(&mut self, node: NodeId, outcome: &Outcome) {
        let Some(told) = self.applying.remove(&node) else {
            return;
        };
        let Outcome::Done { kept, .. } = outcome else {
            return;
        };
        if let Some(kept) = kept {
            let dir = told.path.split_last().map(|(dir, _)| dir);
            let copy = dir.unwrap_or_default().join(kept);
            self.tell("conflict", copy.to_string(), told.path.to_string());
        }
        if told.event != "conflict" {
            let device = self.made_by.remove(&node).map(|device| device.to_string());
            let from = told.from.map(|from| from.to_string()).unwrap_or_default();
            let path = told.path.to_string();
            self.happenings.tell(&self.folder_name, told.event, path, from, device);
        }
    }
}

fn version(stat: &Stat, device: Option<String>) -> Version {
    Version {
        device,
        here: false,
        time: stat.mtime.secs,
        bytes: stat.size,
        is_dir: stat.kind == Some(Kind::Dir),
    }
}

fn no_connection_text() -> String {
    "There is no connection to the server".to_owned()
}

fn no_connection() -> Outcome {
    Outcome::NoContent { reason: no_connection_text() }
}

fn told_of(op: &DiskOp) -> Told {
    let told = |event, spot: &Spot| Told { event, path: spot.path(), from: None };
    match op {
        DiskOp::MakeDir { at, .. }
        | DiskOp::Write { at, .. }
        | DiskOp::Link { at, .. }
        | DiskOp::SetAttrs { at, .. } => told("received", at),
        DiskOp::Move { from, to, .. } => match (to, from) {
            (Some(spot), from) => {
                Told { from: from.as_ref().map(Spot::path), ..told("moved here", spot) }
            }
            (None, Some(spot)) => told("moved aside", spot),
            (None, None) => Told { event: "moved aside", path: RelPath::ROOT, from: None },
        },
        DiskOp::SetAside { at, .. } => told("conflict", at),
        DiskOp::Remove { at, .. } => told("deleted here", at),
    }
}
