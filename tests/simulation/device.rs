//! One device: a model disk, the real engine, the real careful procedures, and what lies between
//! them in the agent's driver: looks and reads, jobs for the disk, batches, checkpoints.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::rc::Rc;
use std::time::Duration;

use picloud::engine::apply::{Applier, Job, Payload, Placed};
use picloud::engine::folder::{FolderGone, Own};
use picloud::engine::memory::MemoryTrees;
use picloud::engine::seam::{Action, Committed, DiskOp, Event, Outcome, Outgoing};
use picloud::engine::trees::{Entry, Remote, Trees as _};
use picloud::engine::{Engine, Now, Settings};
use picloud::model::{
    Body, Change, ChangeOp, Content, Flow, IdSource, Name, Node, NodeId, Rev, Timestamp,
};

use super::disk::{Disk, Form, Shared, Trouble, content_of, name};
use super::flaws::Flaw;
use super::folder::ModelFolder;
use super::ledger::Ledger;
use super::rng::Rng;

pub const TODAY: &str = "2026-11-23";

/// A commit on its way to the server.
#[derive(Debug, Clone)]
pub struct Wire {
    pub batch: u64,
    pub changes: Vec<Change>,
    /// How many deletions are announced.
    pub deletions: u64,
    /// The small contents that travel inside.
    pub texts: Vec<String>,
    /// One per change the engine asked for; nothing yet for those in `changes`.
    pub results: Vec<Option<Committed>>,
}

/// What of a device survives.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Death {
    /// Its disk as it is, its trees as of the last checkpoint.
    Kill,
    /// What was durable of both.
    PowerCut,
    /// Its disk only.
    LostState,
}

pub struct Device {
    pub disk: Shared,
    pub folder: ModelFolder,
    pub engine: Engine<MemoryTrees>,
    applier: Applier<ModelFolder>,
    /// A batch that is carried out, and not durable yet.
    placed: Option<Placed<ModelFolder>>,
    jobs: VecDeque<Job>,
    pub actions: Vec<Action>,
    pub events: Vec<Event>,
    pub online: bool,
    /// Its connection is dead, and it has not noticed: what it sends goes nowhere.
    pub is_half_open: bool,
    /// Which of its connections this is.
    pub connection: u64,
    /// Commits on their way, in order.
    pub up: VecDeque<Wire>,
    /// Answers and pages on their way, in order.
    pub down: VecDeque<Event>,
    /// Up to where pages were sent on this connection.
    pub sent: Rev,
    /// Revs that commits of this connection got.
    pub own: BTreeSet<Rev>,
    seed: u64,
    incarnation: u8,
    staged: u32,
    /// The power went, and the first look at the disk since is not remembered yet.
    is_unclean: bool,
    /// What is being written, and where: in which directory, under which name.
    writing: BTreeMap<NodeId, (Content, u64, Name)>,
    /// What was told as done, and was not durable.
    pub untruth: Option<String>,
    /// How many operations on disk were carried out.
    pub operations: u64,
    /// A fault of the driver's: it takes a power cut for a kill.
    is_unsuspecting: bool,
    /// What a person leaves out here, in a file that nothing takes.
    pub left_out: BTreeSet<NodeId>,
    /// Which way changes go, by its settings.
    pub flow: Flow,
}

/// The agent was killed in the midst of something.
#[derive(Debug)]
pub struct Killed;

impl From<FolderGone> for Killed {
    fn from(_: FolderGone) -> Self {
        Self
    }
}

impl Device {
    pub fn new(device: &str, form: Form, seed: u64, ledger: Rc<RefCell<Ledger>>) -> Self {
        let disk = Rc::new(RefCell::new(Disk::new(device, form, seed, ledger)));
        let folder = ModelFolder(Rc::clone(&disk));
        Self {
            disk,
            applier: Applier::new(folder.clone(), device),
            folder,
            engine: engine(seed, 0, MemoryTrees::new(), Settings::default()),
            placed: None,
            jobs: VecDeque::new(),
            actions: Vec::new(),
            events: Vec::new(),
            online: false,
            is_half_open: false,
            operations: 0,
            writing: BTreeMap::new(),
            untruth: None,
            connection: 0,
            is_unsuspecting: false,
            left_out: BTreeSet::new(),
            flow: Flow::Both,
            up: VecDeque::new(),
            down: VecDeque::new(),
            sent: Rev::ZERO,
            own: BTreeSet::new(),
            seed,
            incarnation: 0,
            staged: 0,
            is_unclean: false,
        }
    }

    /// Lets this device have a fault.
    pub fn break_it(&mut self, flaw: Flaw) {
        match flaw {
            Flaw::Engine(defect) => {
                self.disk.borrow_mut().defect = Some(defect);
                let trees = MemoryTrees::new().with_defect(Some(defect));
                self.engine = engine(self.seed, 0, trees, Settings::default());
            }
            Flaw::PowerCutUnnoticed => self.is_unsuspecting = true,
            Flaw::Rules(_) | Flaw::AnswerBeforeDurable | Flaw::PagesOutOfOrder => {}
        }
    }

    pub fn name(&self) -> String {
        self.disk.borrow().device.clone()
    }

    pub fn is_at_rest(&self) -> bool {
        self.engine.is_settled()
            && self.jobs.is_empty()
            && self.placed.is_none()
            && self.up.is_empty()
            && self.down.is_empty()
            && self.events.is_empty()
            && self.actions.is_empty()
            && self.disk.borrow().hints.is_empty()
            && self.disk.borrow().late_hints.is_empty()
    }

    /// The drive's names for what has another one on this disk: by directory and name there.
    pub fn aliases(&self) -> BTreeMap<(u64, Name), Name> {
        let trees = self.engine.trees();
        let aliases = trees.entries().filter_map(|(_, entry)| {
            let local = entry.local.as_ref()?;
            let alias = local.alias.clone()?;
            let dir = match local.place.parent {
                NodeId::ROOT => super::disk::ROOT,
                parent => {
                    let Ok(parent) = trees.get(parent);
                    parent.local?.stat.ino
                }
            };
            Some(((dir, alias), local.place.name.clone()))
        });
        aliases.collect()
    }

    pub fn has_jobs(&self) -> bool {
        !self.jobs.is_empty() || self.placed.is_some()
    }

    /// The agent dies, and a new one is started.
    pub fn die(&mut self, death: Death) {
        self.incarnation += 1;
        self.actions.clear();
        self.events.clear();
        self.jobs.clear();
        self.writing.clear();
        self.placed = None;
        {
            let mut disk = self.disk.borrow_mut();
            if death == Death::PowerCut {
                disk.power_cut();
            }
            disk.forget_watches();
        }
        let mut trees = match death {
            Death::LostState => MemoryTrees::new().with_defect(self.disk.borrow().defect),
            Death::Kill | Death::PowerCut => self.engine.trees().clone(),
        };
        let is_kept = death != Death::PowerCut || self.disk.borrow_mut().chance(50);
        if is_kept {
            trees.crash()
        } else {
            trees.lose_power()
        }
        let device = self.name();
        self.is_unclean |= death == Death::PowerCut && !self.is_unsuspecting;
        self.applier =
            Applier::new(self.folder.clone(), device.clone()).after_power_cut(self.is_unclean);
        let is_parked = |node| trees.get(node).is_ok_and(|e| e.local.is_some_and(|l| l.parked));
        let recovered = self.applier.recover(TODAY, is_parked);
        let suspect_since = self.is_unclean.then(Timestamp::default);
        let left_out = self.left_out.clone();
        let flow = self.flow;
        let settings = Settings { suspect_since, left_out, flow, ..Settings::default() };
        self.engine = engine(self.seed, self.incarnation, trees, settings);
        let line = format!("{device} starts again after {death:?}: {recovered:?}");
        self.disk.borrow().ledger.borrow_mut().note(line);
    }

    /// The directories of the drive that this device knows of.
    pub fn dirs_there(&self) -> Vec<NodeId> {
        let entries = self.engine.trees().entries();
        let is_dir = |entry: &Entry| entry.remote.as_ref().is_some_and(|there| there.node.is_dir());
        entries.filter(|(_, entry)| is_dir(entry)).map(|(id, _)| id).collect()
    }

    /// Leaves out these directories, and no others.
    pub fn leave_out(&mut self, left_out: BTreeSet<NodeId>) {
        self.left_out.clone_from(&left_out);
        self.engine.leave_out(left_out).unwrap();
    }

    /// What the trees hold becomes durable.
    pub fn checkpoint(&mut self) {
        self.engine.trees_mut().checkpoint().unwrap();
        if self.engine.has_looked() {
            self.is_unclean = false;
        }
    }

    /// Hands an operation over to the disk, with its content.
    pub fn submit(&mut self, rng: &mut Rng, job: Job) {
        let Job { node, op, payload } = job;
        if let DiskOp::Write { content, at, .. } = &op {
            self.writing.insert(node, (*content, at.dir.ino, at.name.clone()));
        }
        let payload = match (&op, payload) {
            // Larger contents come to staging before, by a way of their own.
            (DiskOp::Write { attrs, mtime, .. }, Payload::Chunk(chunk)) if rng.chance(30) => {
                self.staged += 1;
                let part = name(&format!("w{}-{}.part", self.incarnation, self.staged));
                let staging = {
                    use picloud::engine::folder::Folder as _;
                    self.folder.own_dir(Own::Staging)
                };
                let text = String::from_utf8(chunk.into_vec()).unwrap();
                let mut disk = self.disk.borrow_mut();
                if disk.trouble == Some(Trouble::Full) {
                    drop(disk);
                    let reason = "No space left on device".to_owned();
                    return self.applied(node, Outcome::Failed { reason });
                }
                let data = super::disk::Data::File(text);
                let ino = disk.create(staging, &part, data, attrs.mode);
                disk.set_attrs(ino, attrs.mode, Some(*mtime));
                let is_durable = rng.chance(50);
                if is_durable {
                    disk.sync_inode(ino);
                }
                Payload::Staged { name: part, is_durable }
            }
            (_, payload) => payload,
        };
        self.jobs.push_back(Job { node, op, payload });
    }

    /// The thread that writes does its next batch.
    pub fn work(&mut self, rng: &mut Rng) -> Result<(), Killed> {
        let count = 1 + rng.below(4);
        let batch: Vec<Job> = (0..count).filter_map(|_| self.jobs.pop_front()).collect();
        let now = Duration::from_millis(self.disk.borrow().ledger.borrow().ms());
        let placed = self.placed.take();
        let done = if batch.is_empty() {
            match placed {
                Some(placed) => self.applier.finish(placed)?,
                None => Vec::new(),
            }
        } else {
            let (done, next) = self.applier.place_batch(&batch, placed, TODAY, now)?;
            self.placed = Some(next);
            done
        };
        for (node, outcome) in done {
            self.applied(node, outcome);
        }
        if self.applier.reap_at().is_some_and(|at| at <= now) {
            self.applier.reap(TODAY, now, 1024)?;
        }
        Ok(())
    }

    /// Returns when the trash is to be looked at again, in milliseconds.
    pub fn reap_at_ms(&self) -> Option<u64> {
        self.applier.reap_at().map(|at| u64::try_from(at.as_millis()).unwrap())
    }

    pub fn applied(&mut self, node: NodeId, outcome: Outcome) {
        self.operations += 1;
        if let (Some((content, dir, name)), Outcome::Done { stat, .. }) =
            (self.writing.remove(&node), &outcome)
            && !self.disk.borrow().holds_durably(stat.ino, &content, (dir, &name))
        {
            self.untruth = Some(format!("{} told {node} as done, and it is not", self.name()));
        }
        let line = format!("{} did {node}: {outcome:?}", self.name());
        self.disk.borrow().ledger.borrow_mut().note(line);
        self.events.push(Event::Applied { node, outcome });
    }

    /// Reads the small contents that travel inside a commit, as the driver does before it sends.
    pub fn build(&mut self, batch: u64, outgoing: Vec<Outgoing>) -> Wire {
        let deletions = self.engine.deletions_pending(batch);
        let mut wire = Wire { batch, changes: vec![], deletions, texts: vec![], results: vec![] };
        for Outgoing { change, attach } in outgoing {
            if change.op == ChangeOp::Delete {
                self.check_deletion(change.node);
            }
            if let Some((at, expected)) = attach {
                match self.folder.read(&at, &expected.stat) {
                    Some(text) if Some(content_of(&text)) == expected.content => {
                        wire.texts.push(text);
                    }
                    _ => {
                        wire.results.push(Some(Committed::Changed));
                        continue;
                    }
                }
            }
            wire.results.push(None);
            wire.changes.push(change);
        }
        wire
    }

    /// A file that is here as it was agreed on is not to be deleted elsewhere.
    fn check_deletion(&mut self, node: NodeId) {
        let trees = self.engine.trees();
        let Ok(entry) = trees.get(node);
        let Some(Remote { node: Node { place, body: Body::File { content, .. }, .. }, .. }) =
            &entry.remote
        else {
            return;
        };
        let mut path = vec![place.name.clone()];
        let mut at = place.parent;
        while at != NodeId::ROOT {
            let Ok(above) = trees.get(at);
            // A server with a fault may tell of a directory that is inside itself.
            let Some(above) = above.remote.filter(|_| path.len() < 1000) else { return };
            path.push(above.node.place.name);
            at = above.node.place.parent;
        }
        path.reverse();
        let disk = self.disk.borrow();
        if let Some(text) = disk.text_ever_at(&path)
            && content_of(text) == *content
        {
            let line = format!("{} deletes {text} everywhere, which is there", disk.device);
            drop(disk);
            self.untruth = Some(line);
        }
    }

    pub fn send(&mut self, now: Now, event: Event) {
        self.engine.handle(now, event).unwrap();
    }
}

fn engine(
    seed: u64,
    incarnation: u8,
    trees: MemoryTrees,
    settings: Settings,
) -> Engine<MemoryTrees> {
    let mut key = [0; 32];
    key[..8].copy_from_slice(&seed.to_be_bytes());
    key[8] = incarnation;
    let mut engine = Engine::new(trees, settings, IdSource::new(key)).unwrap();
    engine.handle(Now::default(), Event::Rescan).unwrap();
    engine
}
