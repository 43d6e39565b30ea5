//! The careful procedures that carry out a [`DiskOp`] over a [`Folder`].
//!
//! Every decision is here, in code a simulator can run: check, exchange, examine what came out,
//! put back, keep as a conflict copy, and what to do with what a crash left. The rules:
//!
//! - A new content is complete and durable in staging before it gets a person's name.
//! - A name is filled by a rename that replaces nothing, or by an exchange. What an exchange or a
//!   removal takes away lands in the trash under a name ([`Leftover`]) that says which contents
//!   may be dropped; anything else is a person's version and goes back to the folder. This needs
//!   no database, so it holds when the database is lost.
//! - What was taken away knowingly stays in the trash for a grace period: a descriptor still open
//!   on it may be writing. It is dropped only if it did not change meanwhile.
//! - Operations go in batches: one barrier for all staged contents, then the renames, then one
//!   barrier for the renames; only then is anything reported as done.

use std::collections::{HashMap, HashSet, VecDeque};
use std::fmt;
use std::time::Duration;

use super::folder::{Fault, Folder, FolderGone, Own, Rename};
use super::seam::{DirRef, DiskOp, Expected, Outcome, Spot, Stat};
use crate::model::{
    Attrs, ChunkId, Content, Kind, ListId, Name, NodeId, RelPath, Timestamp, conflict_name,
};

/// The directory at the root of a folder that is the agent's own.
pub const OWN_DIR: &[u8] = b".picloud";

/// How long a replaced or removed file stays in the trash.
pub const GRACE: Duration = Duration::from_secs(10);

/// From how many things to sync on one `sync_all` is cheaper than one call for each.
const SYNC_ALL_FROM: usize = 8;

/// Modified within this time before it was taken away, a file is hashed to tell whether it is what
/// was expected: within one tick of the file system's clock a modification may leave no trace.
const RACY_NANOS: i128 = 20_000_000;

/// The most discarded files waiting for the end of their grace (each some 500 bytes of memory); of
/// more the oldest go early.
const TRASH_MAX: usize = 50_000;

/// How many names are tried for a conflict copy.
const CONFLICT_NAMES_MAX: u32 = 1000;

/// The most bytes of a note on where a batch's leftovers came from.
const NOTE_LEN_MAX: usize = 16 * 1024 * 1024;

/// A file up to this size whose modification time is set is read once more afterwards: setting the
/// time hides an edit of the same moment.
const REREAD_LEN_MAX: u64 = 1024 * 1024;

/// The most open directory handles kept during a batch.
const DIRS_MAX: usize = 128;

/// The new content of a [`DiskOp::Write`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Payload {
    /// None: for every other operation.
    None,
    /// All the bytes, to be staged with the batch.
    Bytes(Vec<u8>),
    /// It is in staging already, complete, verified, with its attributes set.
    Staged {
        /// Its name in [`Own::Staging`].
        name: Name,
        /// Whether it is durable already.
        is_durable: bool,
    },
}

/// An operation to carry out.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Job {
    /// The node.
    pub node: NodeId,
    /// What to do.
    pub op: DiskOp,
    /// The content to write.
    pub payload: Payload,
}

/// What some bytes are, in the name of a leftover.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Token {
    /// Nothing: a removal brings no new content.
    Nothing,
    /// Nothing that may be dropped: the old version is to be kept, or is not known.
    Keep,
    Empty,
    Chunk(ChunkId),
    List(ListId),
    /// The BLAKE3 hash of a link's target.
    Target(ChunkId),
}

impl Token {
    const fn of_content(content: &Content) -> Self {
        match content {
            Content::Empty => Self::Empty,
            Content::Chunk { id, .. } => Self::Chunk(*id),
            Content::List { id, .. } => Self::List(*id),
        }
    }

    fn parse(text: &str) -> Option<Self> {
        let (kind, hex) = text.split_at_checked(1)?;
        match (kind, hex.is_empty()) {
            ("n", true) => Some(Self::Nothing),
            ("k", true) => Some(Self::Keep),
            ("e", true) => Some(Self::Empty),
            ("c", false) => ChunkId::from_hex(hex).ok().map(Self::Chunk),
            ("l", false) => ListId::from_hex(hex).ok().map(Self::List),
            ("t", false) => ChunkId::from_hex(hex).ok().map(Self::Target),
            _ => None,
        }
    }
}

impl fmt::Display for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Nothing => f.write_str("n"),
            Self::Keep => f.write_str("k"),
            Self::Empty => f.write_str("e"),
            Self::Chunk(id) => write!(f, "c{id}"),
            Self::List(id) => write!(f, "l{id}"),
            Self::Target(id) => write!(f, "t{id}"),
        }
    }
}

/// An entry of the trash, as its name tells:
/// `BATCH-INDEX.NODE.NEW.OLD`, at most 8 + 1 + 8 + 1 + 32 + 2 * 66 = 182 bytes of lower case.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Leftover {
    batch: u32,
    index: u32,
    node: NodeId,
    new: Token,
    old: Token,
}

impl Leftover {
    fn parse(name: &Name) -> Option<Self> {
        let text = std::str::from_utf8(name.as_bytes()).ok()?;
        let mut parts = text.split('.');
        let (batch, index) = parts.next()?.split_once('-')?;
        let leftover = Self {
            batch: u32::from_str_radix(batch, 16).ok()?,
            index: u32::from_str_radix(index, 16).ok()?,
            node: NodeId::from_hex(parts.next()?).ok()?,
            new: Token::parse(parts.next()?)?,
            old: Token::parse(parts.next()?)?,
        };
        parts.next().is_none().then_some(leftover)
    }

    fn name(&self) -> Name {
        ascii_name(format!(
            "{:x}-{:x}.{}.{}.{}",
            self.batch, self.index, self.node, self.new, self.old
        ))
    }

    /// Returns whether bytes like these may be dropped: either they came from the server and can
    /// come again, or whoever replaced them had seen them.
    fn may_drop(&self, token: Option<Token>) -> bool {
        token.is_some_and(|token| token == self.new || token == self.old)
    }
}

/// Wraps a name that this module made of ASCII letters, digits, dots and dashes.
fn ascii_name(text: String) -> Name {
    Name::new(text).unwrap_or_else(|error| unreachable!("a name of our own making: {error}"))
}

fn note_name(batch: u32) -> Name {
    ascii_name(format!("{batch:x}.where"))
}

fn parked_note_name(node: NodeId) -> Name {
    ascii_name(format!("{node}.where"))
}

fn parked_name(node: NodeId) -> Name {
    ascii_name(node.to_string())
}

/// A file in the trash.
#[derive(Debug, Clone)]
struct Discarded {
    leftover: Leftover,
    /// Its stat after it was moved there; none when it is not known to be what its name says.
    stat: Option<Stat>,
    /// Where it was.
    place: RelPath,
    /// When it may go.
    due: Duration,
}

/// What a crash left, and what became of it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Recovered {
    /// Versions of a person's that went back to the folder, by their paths now.
    pub brought_back: Vec<RelPath>,
    /// What could not be read or moved, by its path below `.picloud`, and why. It stays there.
    pub left: Vec<(RelPath, String)>,
}

/// Why a procedure ends early.
enum Stop {
    Outcome(Outcome),
    Gone(FolderGone),
}

impl From<Outcome> for Stop {
    fn from(outcome: Outcome) -> Self {
        Self::Outcome(outcome)
    }
}

impl From<FolderGone> for Stop {
    fn from(gone: FolderGone) -> Self {
        Self::Gone(gone)
    }
}

/// Returns how a fault at `path` ends a procedure that has done nothing so far.
fn stop(fault: Fault, path: &RelPath) -> Stop {
    Stop::Outcome(match fault {
        Fault::Gone(gone) => return Stop::Gone(gone),
        Fault::NotFound | Fault::Changed => Outcome::Changed,
        Fault::Exists => Outcome::Taken,
        Fault::NotEmpty => Outcome::NotEmpty,
        Fault::BadName => Outcome::NameImpossible { reason: Fault::BadName.about(path) },
        Fault::Other(reason) => Outcome::Failed { reason: Fault::Other(reason).about(path) },
    })
}

fn failed(reason: impl Into<String>) -> Stop {
    Stop::Outcome(Outcome::Failed { reason: reason.into() })
}

/// Carries out operations on one folder, one batch after the other.
#[derive(Debug)]
pub struct Applier<F: Folder> {
    folder: F,
    /// This device's name, for conflict copies.
    device: String,
    next_batch: u32,
    trash: VecDeque<Discarded>,
    /// How many entries of the trash each batch's note is still needed for.
    notes: HashMap<u32, usize>,
}

/// What a batch has open and has done so far.
struct Batch<F: Folder> {
    number: u32,
    today: String,
    now: Duration,
    dirs: HashMap<RelPath, (F::Dir, u64)>,
    touched: Vec<F::Dir>,
    touched_inos: HashSet<u64>,
    touched_own: HashSet<Own>,
    /// Entries whose attributes were set.
    entries: Vec<(F::Dir, Name)>,
    discarded: Vec<Discarded>,
}

/// A job whose content is staged.
struct Staged {
    /// Where it is in staging, and its stat there.
    file: Option<(Name, Stat)>,
}

impl<F: Folder> Applier<F> {
    /// Returns an applier over a folder in which [`Applier::recover`] is to be called before
    /// anything else.
    pub fn new(folder: F, device: impl Into<String>) -> Self {
        Self {
            folder,
            device: device.into(),
            next_batch: 1,
            trash: VecDeque::new(),
            notes: HashMap::new(),
        }
    }

    /// Returns the folder.
    pub const fn folder(&self) -> &F {
        &self.folder
    }

    /// Carries out operations in this order, and returns what each came to, once what was done is
    /// durable. `today` is `YYYY-MM-DD`, for conflict copies; `now` is a clock that never goes
    /// back, for the grace of what is discarded.
    ///
    /// # Errors
    /// When the folder is gone; nothing can be said of any of the operations then.
    pub fn apply(
        &mut self,
        jobs: &[Job],
        today: &str,
        now: Duration,
    ) -> Result<Vec<(NodeId, Outcome)>, FolderGone> {
        self.folder.check()?;
        let mut batch = Batch {
            number: self.next_batch,
            today: today.to_owned(),
            now,
            dirs: HashMap::new(),
            touched: Vec::new(),
            touched_inos: HashSet::new(),
            touched_own: HashSet::new(),
            entries: Vec::new(),
            discarded: Vec::new(),
        };
        self.next_batch = self.next_batch.wrapping_add(1);
        let has_note = self.write_note(&batch, jobs)?;
        let mut staged = Vec::with_capacity(jobs.len());
        for (index, job) in jobs.iter().enumerate() {
            staged.push(match self.stage(&batch, index, job) {
                Err(Stop::Gone(gone)) => return Err(gone),
                other => other,
            });
        }
        self.sync_staged(jobs, &mut staged)?;

        let mut outcomes = Vec::with_capacity(jobs.len());
        for (index, (job, staged)) in jobs.iter().zip(staged).enumerate() {
            let placed = staged.and_then(|staged| {
                let number = batch.number;
                let leftover = |new, old| Leftover {
                    batch: number,
                    index: u32::try_from(index).unwrap_or(u32::MAX),
                    node: job.node,
                    new,
                    old,
                };
                self.place(&mut batch, job, &staged, leftover)
            });
            outcomes.push((
                job.node,
                match placed {
                    Ok(outcome) | Err(Stop::Outcome(outcome)) => outcome,
                    Err(Stop::Gone(gone)) => return Err(gone),
                },
            ));
        }
        if let Err(reason) = self.sync_placed(&batch)? {
            for (_, outcome) in &mut outcomes {
                if matches!(outcome, Outcome::Done { .. }) {
                    *outcome = Outcome::Failed { reason: reason.clone() };
                }
            }
        }
        self.keep_in_trash(batch, has_note);
        Ok(outcomes)
    }

    /// Returns when [`Applier::reap`] has something to do, on the clock given to
    /// [`Applier::apply`].
    pub fn reap_at(&self) -> Option<Duration> {
        if self.trash.len() > TRASH_MAX {
            return Some(Duration::ZERO);
        }
        self.trash.front().map(|discarded| discarded.due)
    }

    /// Drops at most `limit` of what is in the trash for longer than its grace. What changed there
    /// meanwhile is brought back as a conflict copy; returns the paths of those.
    ///
    /// # Errors
    /// When the folder is gone.
    pub fn reap(
        &mut self,
        today: &str,
        now: Duration,
        limit: usize,
    ) -> Result<Vec<RelPath>, FolderGone> {
        self.folder.check()?;
        let mut brought_back = Vec::new();
        for _ in 0..limit {
            let is_due = self.reap_at().is_some_and(|at| at <= now);
            let Some(mut discarded) = self.trash.pop_front_if(|_| is_due) else {
                break;
            };
            match self.reap_one(&discarded, today) {
                Ok(back) => {
                    brought_back.extend(back);
                    self.release_note(discarded.leftover.batch);
                }
                Err(Fault::Gone(gone)) => return Err(gone),
                // Not now (it is being written to, or cannot be read): it stays until it can be.
                Err(_) => {
                    discarded.due = now + GRACE;
                    discarded.stat = None;
                    self.trash.push_back(discarded);
                }
            }
        }
        Ok(brought_back)
    }

    /// Goes through what a crash left in staging, trash and parked. `is_parked` tells of a node
    /// whether the engine knows that it is parked.
    ///
    /// # Errors
    /// When the folder is gone, or the directories below `.picloud` cannot be listed.
    pub fn recover(
        &mut self,
        today: &str,
        mut is_parked: impl FnMut(NodeId) -> bool,
    ) -> Result<Recovered, Fault> {
        self.folder.check().map_err(Fault::Gone)?;
        let mut recovered = Recovered::default();
        let staging = self.folder.own_dir(Own::Staging);
        for name in self.folder.list(&staging)? {
            if let Err(fault) = self.folder.unlink(&staging, &name) {
                recovered.leave("staging", &name, fault)?;
            }
        }
        self.recover_trash(today, &mut recovered)?;
        self.recover_parked(today, &mut is_parked, &mut recovered)?;
        self.folder.sync_all()?;
        Ok(recovered)
    }

    fn recover_trash(&mut self, today: &str, recovered: &mut Recovered) -> Result<(), Fault> {
        let trash = self.folder.own_dir(Own::Trash);
        let names = self.folder.list(&trash)?;
        let mut places = HashMap::new();
        let mut notes = Vec::new();
        let mut newest = 0;
        for name in &names {
            let Some(batch) = note_batch(name) else {
                continue;
            };
            newest = newest.max(batch);
            notes.push((batch, name));
            // A note that cannot be read costs only the names; the bytes are safe without.
            if let Ok(note) = self.folder.read_file(&trash, name, NOTE_LEN_MAX) {
                for (index, place) in parse_note(&note) {
                    places.insert((batch, index), place);
                }
            }
        }
        let mut left = HashSet::new();
        for name in names.iter().filter(|name| note_batch(name).is_none()) {
            let Some(leftover) = Leftover::parse(name) else {
                recovered
                    .left
                    .push((own_path("trash", name), "It is not of the agent's making".into()));
                continue;
            };
            newest = newest.max(leftover.batch);
            let place = places
                .get(&(leftover.batch, leftover.index))
                .cloned()
                .unwrap_or_else(|| RelPath::from_names(vec![ascii_name("recovered".into())]));
            match self.resolve(&trash, name, &leftover, &place, today) {
                Ok(back) => recovered.brought_back.extend(back),
                Err(fault) => {
                    left.insert(leftover.batch);
                    recovered.leave("trash", name, fault)?;
                }
            }
        }
        // What went back must be durable before what tells where it belongs is removed.
        if !recovered.brought_back.is_empty() {
            self.folder.sync_all()?;
        }
        for (batch, name) in notes {
            if !left.contains(&batch) {
                ignore_unless_gone(self.folder.unlink(&trash, name))?;
            }
        }
        self.next_batch = newest.wrapping_add(1);
        Ok(())
    }

    fn recover_parked(
        &mut self,
        today: &str,
        is_parked: &mut impl FnMut(NodeId) -> bool,
        recovered: &mut Recovered,
    ) -> Result<(), Fault> {
        let parked = self.folder.own_dir(Own::Parked);
        for name in self.folder.list(&parked)? {
            let Some(node) = parse_node(name.as_bytes()) else {
                continue;
            };
            if is_parked(node) {
                continue;
            }
            let note = parked_note_name(node);
            let place = self
                .folder
                .read_file(&parked, &note, NOTE_LEN_MAX)
                .ok()
                .and_then(|bytes| parse_note(&bytes).pop())
                .map_or_else(
                    || RelPath::from_names(vec![ascii_name("recovered".into())]),
                    |(_, place)| place,
                );
            match self.bring_back(&parked, &name, &place, today, true) {
                Ok(path) => recovered.brought_back.push(path),
                Err(fault) => recovered.leave("parked", &name, fault)?,
            }
        }
        // Notes whose node is not there any more.
        let names: HashSet<Name> = self.folder.list(&parked)?.into_iter().collect();
        for name in &names {
            let node = name.as_bytes().strip_suffix(b".where").and_then(parse_node);
            if node.is_some_and(|node| !names.contains(&parked_name(node))) {
                ignore_unless_gone(self.folder.unlink(&parked, name))?;
            }
        }
        Ok(())
    }

    /// Writes down where what this batch takes away comes from, before it does.
    fn write_note(&self, batch: &Batch<F>, jobs: &[Job]) -> Result<bool, FolderGone> {
        let mut note = Vec::new();
        for (index, job) in jobs.iter().enumerate() {
            let at = match &job.op {
                DiskOp::Write { at, over: Some(_), .. }
                | DiskOp::Link { at, over: Some(_), .. } => at,
                DiskOp::Remove { at, expected } if expected.stat.kind != Some(Kind::Dir) => at,
                _ => continue,
            };
            push_note(&mut note, index, &at.path());
        }
        if note.is_empty() {
            return Ok(false);
        }
        let trash = self.folder.own_dir(Own::Trash);
        let name = note_name(batch.number);
        match self.folder.make_file(&trash, &name, &note, Attrs::from_mode(0o600), None) {
            Ok(()) => Ok(true),
            Err(Fault::Gone(gone)) => Err(gone),
            // The note only helps to find the old name; the full disk is told by what follows.
            Err(_) => Ok(true),
        }
    }

    /// Brings the new content or link of a job to staging.
    fn stage(&self, batch: &Batch<F>, index: usize, job: &Job) -> Result<Staged, Stop> {
        let staging = self.folder.own_dir(Own::Staging);
        let fresh = || ascii_name(format!("{:x}-{index:x}.part", batch.number));
        let name = match (&job.op, &job.payload) {
            (DiskOp::Write { at, content, mtime, attrs, .. }, Payload::Bytes(bytes)) => {
                if !holds(content, bytes) {
                    return Err(failed(format!(
                        "The bytes received for {} are not those of its content",
                        at.path()
                    )));
                }
                let name = fresh();
                if let Err(fault) =
                    self.folder.make_file(&staging, &name, bytes, *attrs, Some(*mtime))
                {
                    self.drop_staged(&name)?;
                    return Err(match fault {
                        Fault::Gone(gone) => gone.into(),
                        fault => failed(fault.about(&at.path())),
                    });
                }
                name
            }
            (DiskOp::Write { .. }, Payload::Staged { name, .. }) => name.clone(),
            (DiskOp::Write { at, .. }, Payload::None) => {
                return Err(Outcome::NoContent {
                    reason: format!("The content of {} is not here", at.path()),
                }
                .into());
            }
            (DiskOp::Link { at, target, over: Some(_), .. }, _) => {
                let name = fresh();
                self.folder
                    .make_link(&staging, &name, target)
                    .map_err(|fault| stop(fault, &at.path()))?;
                name
            }
            _ => return Ok(Staged { file: None }),
        };
        match self.folder.stat(&staging, &name) {
            Ok(stat) => Ok(Staged { file: Some((name, stat)) }),
            Err(Fault::Gone(gone)) => Err(gone.into()),
            Err(fault) => Err(failed(fault.about(&own_path("staging", &name)))),
        }
    }

    /// The first barrier: what is staged becomes durable.
    fn sync_staged(
        &self,
        jobs: &[Job],
        staged: &mut [Result<Staged, Stop>],
    ) -> Result<(), FolderGone> {
        let staging = self.folder.own_dir(Own::Staging);
        let waiting: Vec<usize> = jobs
            .iter()
            .zip(staged.iter())
            .enumerate()
            .filter(|(_, (job, staged))| {
                let is_durable = match &job.payload {
                    Payload::Staged { is_durable, .. } => *is_durable,
                    Payload::Bytes(_) => false,
                    // A link is all metadata, and its rename cannot become durable before it.
                    Payload::None => true,
                };
                !is_durable && matches!(staged, Ok(Staged { file: Some(_) }))
            })
            .map(|(index, _)| index)
            .collect();
        let all = (waiting.len() >= SYNC_ALL_FROM).then(|| self.folder.sync_all());
        for index in waiting {
            let Ok(Staged { file: Some((name, _)) }) = &staged[index] else {
                continue;
            };
            let synced = match &all {
                Some(all) => all.clone(),
                None => self.folder.sync_entry(&staging, name),
            };
            match synced {
                Ok(()) => {}
                Err(Fault::Gone(gone)) => return Err(gone),
                Err(fault) => {
                    let reason = fault.about(&own_path("staging", name));
                    if let Err(Stop::Gone(gone)) = self.drop_staged(name) {
                        return Err(gone);
                    }
                    staged[index] = Err(failed(reason));
                }
            }
        }
        Ok(())
    }

    /// The second barrier: the renames become durable. The inner error is for the outcomes.
    fn sync_placed(&self, batch: &Batch<F>) -> Result<Result<(), String>, FolderGone> {
        let count = batch.touched.len() + batch.touched_own.len() + batch.entries.len();
        let synced = if count >= SYNC_ALL_FROM {
            self.folder.sync_all()
        } else {
            let entries = batch.entries.iter().map(|(dir, name)| self.folder.sync_entry(dir, name));
            let dirs = batch.touched.iter().map(|dir| self.folder.sync_dir(dir));
            let own = batch
                .touched_own
                .iter()
                .map(|own| self.folder.sync_dir(&self.folder.own_dir(*own)));
            match entries.chain(dirs).chain(own).collect() {
                // An entry that is gone again, or that may not be opened: ask for everything.
                Err(Fault::Gone(gone)) => Err(Fault::Gone(gone)),
                Err(_) => self.folder.sync_all(),
                Ok(()) => Ok(()),
            }
        };
        match synced {
            Ok(()) => Ok(Ok(())),
            Err(Fault::Gone(gone)) => Err(gone),
            Err(fault) => Ok(Err(format!(
                "What was written could not be made durable ({fault}); check the disk"
            ))),
        }
    }

    fn keep_in_trash(&mut self, batch: Batch<F>, has_note: bool) {
        if has_note {
            if batch.discarded.is_empty() {
                self.unlink_note(batch.number);
            } else {
                self.notes.insert(batch.number, batch.discarded.len());
            }
        }
        self.trash.extend(batch.discarded);
    }

    fn release_note(&mut self, batch: u32) {
        if let Some(count) = self.notes.get_mut(&batch) {
            *count -= 1;
            if *count == 0 {
                self.notes.remove(&batch);
                self.unlink_note(batch);
            }
        }
    }

    fn unlink_note(&self, batch: u32) {
        // A note that stays is removed by the next recovery; it is no harm.
        let trash = self.folder.own_dir(Own::Trash);
        drop(self.folder.unlink(&trash, &note_name(batch)));
    }

    fn drop_staged(&self, name: &Name) -> Result<(), Stop> {
        // What stays in staging is removed by the next recovery.
        match self.folder.unlink(&self.folder.own_dir(Own::Staging), name) {
            Err(Fault::Gone(gone)) => Err(gone.into()),
            _ => Ok(()),
        }
    }

    /// Carries out one operation whose content is staged.
    fn place(
        &self,
        batch: &mut Batch<F>,
        job: &Job,
        staged: &Staged,
        leftover: impl Fn(Token, Token) -> Leftover,
    ) -> Result<Outcome, Stop> {
        let result = match &job.op {
            DiskOp::MakeDir { at, attrs } => self.make_dir(batch, at, *attrs),
            DiskOp::Write { at, content, over, keep, .. } => {
                let new = Token::of_content(content);
                self.put(batch, at, staged, new, over.as_ref(), *keep, leftover)
            }
            DiskOp::Link { at, target, over, .. } if over.is_none() => {
                self.make_link(batch, at, target)
            }
            DiskOp::Link { at, target, over, keep } => {
                let new = Token::Target(ChunkId::of(target));
                self.put(batch, at, staged, new, over.as_ref(), *keep, leftover)
            }
            DiskOp::Move { from, to, expected } => {
                self.move_node(batch, job.node, from.as_ref(), to.as_ref(), expected)
            }
            DiskOp::SetAside { at, expected } => self.set_aside(batch, at, expected),
            DiskOp::Remove { at, expected } => {
                self.remove(batch, at, expected, |old| leftover(Token::Nothing, old))
            }
            DiskOp::SetAttrs { at, expected, attrs, mtime } => {
                self.set_attrs(batch, at, expected, *attrs, *mtime)
            }
        };
        if !matches!(result, Ok(Outcome::Done { .. }))
            && let Some((name, _)) = &staged.file
        {
            self.drop_staged(name)?;
        }
        result
    }

    /// Opens the directory of a spot, or returns why nothing can be done there.
    fn dir(&self, batch: &mut Batch<F>, dir: &DirRef) -> Result<F::Dir, Stop> {
        if let Some((handle, ino)) = batch.dirs.get(&*dir.path)
            && *ino == dir.ino
        {
            return Ok(handle.clone());
        }
        let (handle, stat) =
            self.folder.open_dir(&dir.path).map_err(|fault| stop(fault, &dir.path))?;
        if stat.ino != dir.ino {
            return Err(Outcome::Changed.into());
        }
        if batch.dirs.len() >= DIRS_MAX {
            batch.dirs.clear();
        }
        batch.dirs.insert((*dir.path).clone(), (handle.clone(), stat.ino));
        Ok(handle)
    }

    /// Opens the directory of a spot that is to be filled.
    fn dir_to_fill(&self, batch: &mut Batch<F>, at: &Spot) -> Result<F::Dir, Stop> {
        if at.dir.path.is_root() && at.name.as_bytes() == OWN_DIR {
            return Err(Outcome::NameImpossible {
                reason: "The name .picloud at the root of a folder is the agent's own".into(),
            }
            .into());
        }
        self.dir(batch, &at.dir)
    }

    /// Returns what it means that a name is taken: by an entry of that name, or by one that this
    /// disk holds for the same.
    fn taken(&self, dir: &F::Dir, at: &Spot) -> Stop {
        let path = at.path();
        match self.folder.list(dir) {
            Ok(names) if names.contains(&at.name) => Outcome::Taken.into(),
            Ok(_) => match self.folder.stat(dir, &at.name) {
                Ok(_) => Outcome::NameImpossible {
                    reason: format!(
                        "This disk holds the name for the same as another one there: {path}"
                    ),
                }
                .into(),
                Err(Fault::Gone(gone)) => gone.into(),
                Err(_) => Outcome::Taken.into(),
            },
            Err(fault) => stop(fault, &path),
        }
    }

    /// As [`stop`], for an operation that fills a name.
    fn stop_filling(&self, fault: Fault, dir: &F::Dir, at: &Spot) -> Stop {
        match fault {
            Fault::Exists => self.taken(dir, at),
            fault => stop(fault, &at.path()),
        }
    }

    fn make_dir(&self, batch: &mut Batch<F>, at: &Spot, attrs: Attrs) -> Result<Outcome, Stop> {
        let dir = self.dir_to_fill(batch, at)?;
        self.folder
            .make_dir(&dir, &at.name, attrs)
            .map_err(|fault| self.stop_filling(fault, &dir, at))?;
        batch.touch(&dir, at.dir.ino);
        self.done(&dir, at)
    }

    fn make_link(&self, batch: &mut Batch<F>, at: &Spot, target: &[u8]) -> Result<Outcome, Stop> {
        let dir = self.dir_to_fill(batch, at)?;
        self.folder
            .make_link(&dir, &at.name, target)
            .map_err(|fault| self.stop_filling(fault, &dir, at))?;
        batch.touch(&dir, at.dir.ino);
        self.done(&dir, at)
    }

    fn done(&self, dir: &F::Dir, at: &Spot) -> Result<Outcome, Stop> {
        let stat = self.folder.stat(dir, &at.name).map_err(|fault| stop(fault, &at.path()))?;
        Ok(Outcome::Done { stat, kept: None })
    }

    /// Puts what is staged at a name: where nothing is, or in place of what is expected there.
    #[expect(clippy::too_many_arguments, reason = "the fields of two operations")]
    fn put(
        &self,
        batch: &mut Batch<F>,
        at: &Spot,
        staged: &Staged,
        new: Token,
        over: Option<&Expected>,
        keep: bool,
        leftover: impl Fn(Token, Token) -> Leftover,
    ) -> Result<Outcome, Stop> {
        let Some((part, stat)) = &staged.file else {
            return Err(failed("There is no staged content"));
        };
        let dir = self.dir_to_fill(batch, at)?;
        let staging = self.folder.own_dir(Own::Staging);
        let kept = match over {
            None => {
                self.folder
                    .rename((&staging, part), (&dir, &at.name), Rename::NoReplace)
                    .map_err(|fault| self.stop_filling(fault, &dir, at))?;
                batch.touch(&dir, at.dir.ino);
                None
            }
            Some(expected) => {
                self.check(&dir, at, expected)?;
                let old = if keep { Token::Keep } else { self.token_expected(&dir, at, expected)? };
                self.exchange(batch, &dir, at, part, expected, leftover(new, old))?
            }
        };
        // An edit since the rename must not pass for what was written: then the stat is told that
        // the file had before, and the next look sees the difference.
        let live = match self.folder.stat(&dir, &at.name) {
            Ok(live) if same_but_ctime(&live, stat) => live,
            Err(Fault::Gone(gone)) => return Err(gone.into()),
            Ok(_) | Err(_) => *stat,
        };
        Ok(Outcome::Done { stat: live, kept })
    }

    /// Checks that a spot holds what is expected, to the last field.
    fn check(&self, dir: &F::Dir, at: &Spot, expected: &Expected) -> Result<(), Stop> {
        let stat = self.folder.stat(dir, &at.name).map_err(|fault| stop(fault, &at.path()))?;
        if stat.unchanged(&expected.stat) { Ok(()) } else { Err(Outcome::Changed.into()) }
    }

    /// Returns the token for what is expected at a spot that was just checked.
    fn token_expected(&self, dir: &F::Dir, at: &Spot, expected: &Expected) -> Result<Token, Stop> {
        if expected.stat.kind == Some(Kind::Link) {
            let target =
                self.folder.read_link(dir, &at.name).map_err(|fault| stop(fault, &at.path()))?;
            return Ok(Token::Target(ChunkId::of(&target)));
        }
        Ok(expected.content.as_ref().map_or(Token::Keep, Token::of_content))
    }

    /// Exchanges what is staged with what is at a spot, and sees to what comes out.
    fn exchange(
        &self,
        batch: &mut Batch<F>,
        dir: &F::Dir,
        at: &Spot,
        part: &Name,
        expected: &Expected,
        leftover: Leftover,
    ) -> Result<Option<Name>, Stop> {
        let staging = self.folder.own_dir(Own::Staging);
        let trash = self.folder.own_dir(Own::Trash);
        let name = leftover.name();
        self.folder
            .rename((&staging, part), (&trash, &name), Rename::NoReplace)
            .map_err(|fault| stop(fault, &own_path("trash", &name)))?;
        batch.touched_own.insert(Own::Trash);
        if let Err(fault) = self.folder.rename((&trash, &name), (dir, &at.name), Rename::Exchange) {
            // Whatever is under that name now is told by its content, later.
            batch.discard(leftover, None, at);
            return Err(stop(fault, &at.path()));
        }
        batch.touch(dir, at.dir.ino);
        let is_kept = leftover.old == Token::Keep;
        match self.came_out(&trash, &name, expected) {
            Ok((stat, true)) if !is_kept => {
                batch.discard(leftover, Some(stat), at);
                Ok(None)
            }
            Err(Fault::Gone(gone)) => Err(gone.into()),
            // A person's version, or one that cannot be told from it.
            _ => match self.keep_beside(&trash, &name, dir, &at.name, &batch.today) {
                Ok(kept) => Ok(Some(kept)),
                Err(Fault::Gone(gone)) => Err(gone.into()),
                // It is safe where it is; the reaper tries again to bring it back.
                Err(_) => {
                    batch.discard(leftover, None, at);
                    Ok(None)
                }
            },
        }
    }

    /// Examines what a rename took away: its stat now, and whether it is what was expected.
    fn came_out(
        &self,
        dir: &F::Dir,
        name: &Name,
        expected: &Expected,
    ) -> Result<(Stat, bool), Fault> {
        let stat = self.folder.stat(dir, name)?;
        let is_expected = match stat.kind {
            // A link's target never changes; a directory's entries are no part of it.
            Some(Kind::Link | Kind::Dir) => stat.same_inode(&expected.stat),
            Some(Kind::File) if same_but_ctime(&stat, &expected.stat) && !is_racy(&stat) => true,
            Some(Kind::File) if expected.stat.kind == Some(Kind::File) => match &expected.content {
                Some(content) => match self.folder.content(dir, name) {
                    Ok((stat, found)) => return Ok((stat, found == *content)),
                    Err(Fault::Changed) => false,
                    Err(fault) => return Err(fault),
                },
                None => false,
            },
            Some(Kind::File) | None => false,
        };
        Ok((stat, is_expected))
    }

    /// Renames to the first free conflict copy name.
    fn keep_beside(
        &self,
        from: &F::Dir,
        from_name: &Name,
        dir: &F::Dir,
        name: &Name,
        today: &str,
    ) -> Result<Name, Fault> {
        for attempt in 1..=CONFLICT_NAMES_MAX {
            let copy = conflict_name(name, &self.device, today, attempt);
            match self.folder.rename((from, from_name), (dir, &copy), Rename::NoReplace) {
                Ok(()) => return Ok(copy),
                Err(Fault::Exists) => {}
                Err(fault) => return Err(fault),
            }
        }
        Err(Fault::Exists)
    }

    fn remove(
        &self,
        batch: &mut Batch<F>,
        at: &Spot,
        expected: &Expected,
        leftover: impl Fn(Token) -> Leftover,
    ) -> Result<Outcome, Stop> {
        let dir = self.dir(batch, &at.dir)?;
        self.check(&dir, at, expected)?;
        let done = Outcome::Done { stat: expected.stat, kept: None };
        if expected.stat.kind == Some(Kind::Dir) {
            self.folder.remove_dir(&dir, &at.name).map_err(|fault| stop(fault, &at.path()))?;
            batch.dirs.clear();
            batch.touch(&dir, at.dir.ino);
            return Ok(done);
        }
        let leftover = leftover(self.token_expected(&dir, at, expected)?);
        let trash = self.folder.own_dir(Own::Trash);
        let name = leftover.name();
        self.folder
            .rename((&dir, &at.name), (&trash, &name), Rename::NoReplace)
            .map_err(|fault| stop(fault, &at.path()))?;
        batch.touch(&dir, at.dir.ino);
        batch.touched_own.insert(Own::Trash);
        match self.came_out(&trash, &name, expected) {
            Ok((stat, true)) => {
                batch.discard(leftover, Some(stat), at);
                return Ok(done);
            }
            Err(Fault::Gone(gone)) => return Err(gone.into()),
            Ok((_, false)) | Err(_) => {}
        }
        let back = self.folder.rename((&trash, &name), (&dir, &at.name), Rename::NoReplace);
        let back = match back {
            Err(Fault::Exists) => {
                self.keep_beside(&trash, &name, &dir, &at.name, &batch.today).map(drop)
            }
            other => other,
        };
        match back {
            Ok(()) => {}
            Err(Fault::Gone(gone)) => return Err(gone.into()),
            Err(_) => batch.discard(leftover, None, at),
        }
        Ok(Outcome::Changed)
    }

    fn move_node(
        &self,
        batch: &mut Batch<F>,
        node: NodeId,
        from: Option<&Spot>,
        to: Option<&Spot>,
        expected: &Expected,
    ) -> Result<Outcome, Stop> {
        let parked = self.folder.own_dir(Own::Parked);
        let parked_name = parked_name(node);
        let parked_path = own_path("parked", &parked_name);
        let (from_dir, from_name, from_path) = match from {
            Some(at) => (self.dir(batch, &at.dir)?, &at.name, at.path()),
            None => (parked.clone(), &parked_name, parked_path.clone()),
        };
        let (to_dir, to_name, to_path) = match to {
            Some(at) => (self.dir_to_fill(batch, at)?, &at.name, at.path()),
            None => (parked.clone(), &parked_name, parked_path),
        };
        let stat =
            self.folder.stat(&from_dir, from_name).map_err(|fault| stop(fault, &from_path))?;
        if !stat.unchanged(&expected.stat) {
            return Err(Outcome::Changed.into());
        }
        if to.is_none() {
            self.note_parked(&parked, node, &from_path)?;
        }
        self.folder.rename((&from_dir, from_name), (&to_dir, to_name), Rename::NoReplace).map_err(
            |fault| match to {
                Some(at) => self.stop_filling(fault, &to_dir, at),
                None => stop(fault, &to_path),
            },
        )?;
        // Paths of open directories may now be other ones'.
        if stat.kind == Some(Kind::Dir) {
            batch.dirs.clear();
        }
        for (dir, at) in [(&from_dir, from), (&to_dir, to)] {
            match at {
                Some(at) => batch.touch(dir, at.dir.ino),
                None => {
                    batch.touched_own.insert(Own::Parked);
                }
            }
        }
        let came = self.came_out(&to_dir, to_name, expected);
        match came {
            Ok((stat, true)) => {
                if from.is_none() {
                    let note = parked_note_name(node);
                    if let Err(Fault::Gone(gone)) = self.folder.unlink(&parked, &note) {
                        return Err(gone.into());
                    }
                }
                Ok(Outcome::Done { stat, kept: None })
            }
            Err(Fault::Gone(gone)) => Err(gone.into()),
            // Something else, or an edit: it goes back where it was. If that is taken meanwhile it
            // stays; either way the next look finds it, unless it is in `.picloud`.
            Ok((_, false)) | Err(_) => {
                let back = self.folder.rename(
                    (&to_dir, to_name),
                    (&from_dir, from_name),
                    Rename::NoReplace,
                );
                match (back, to) {
                    (Err(Fault::Gone(gone)), _) => return Err(gone.into()),
                    (Err(_), None) => {
                        // Else it stays parked under its id until the next recovery.
                        let beside =
                            self.keep_beside(&to_dir, to_name, &from_dir, from_name, &batch.today);
                        if let Err(Fault::Gone(gone)) = beside {
                            return Err(gone.into());
                        }
                    }
                    _ => {}
                }
                Ok(Outcome::Changed)
            }
        }
    }

    /// Writes down where a node was that is about to be parked.
    fn note_parked(&self, parked: &F::Dir, node: NodeId, from: &RelPath) -> Result<(), Stop> {
        let name = parked_note_name(node);
        let mut note = Vec::new();
        push_note(&mut note, 0, from);
        let attrs = Attrs::from_mode(0o600);
        let mut made = self.folder.make_file(parked, &name, &note, attrs, None);
        if made == Err(Fault::Exists) {
            self.folder
                .unlink(parked, &name)
                .map_err(|fault| stop(fault, &own_path("parked", &name)))?;
            made = self.folder.make_file(parked, &name, &note, attrs, None);
        }
        made.map_err(|fault| match fault {
            Fault::Gone(gone) => gone.into(),
            fault => failed(fault.about(&own_path("parked", &name))),
        })
    }

    fn set_aside(
        &self,
        batch: &mut Batch<F>,
        at: &Spot,
        expected: &Expected,
    ) -> Result<Outcome, Stop> {
        let dir = self.dir(batch, &at.dir)?;
        self.check(&dir, at, expected)?;
        let copy = self
            .keep_beside(&dir, &at.name, &dir, &at.name, &batch.today)
            .map_err(|fault| stop(fault, &at.path()))?;
        if expected.stat.kind == Some(Kind::Dir) {
            batch.dirs.clear();
        }
        batch.touch(&dir, at.dir.ino);
        match self.came_out(&dir, &copy, expected) {
            Ok((stat, true)) => Ok(Outcome::Done { stat, kept: Some(copy) }),
            Err(Fault::Gone(gone)) => Err(gone.into()),
            Ok((_, false)) | Err(_) => {
                // If its name is taken meanwhile it stays aside, and the next look finds it.
                if let Err(Fault::Gone(gone)) =
                    self.folder.rename((&dir, &copy), (&dir, &at.name), Rename::NoReplace)
                {
                    return Err(gone.into());
                }
                Ok(Outcome::Changed)
            }
        }
    }

    fn set_attrs(
        &self,
        batch: &mut Batch<F>,
        at: &Spot,
        expected: &Expected,
        attrs: Attrs,
        mtime: Option<Timestamp>,
    ) -> Result<Outcome, Stop> {
        let dir = self.dir(batch, &at.dir)?;
        self.check(&dir, at, expected)?;
        if expected.stat.kind == Some(Kind::Link) {
            return self.done(&dir, at);
        }
        self.folder
            .set_attrs(&dir, &at.name, &expected.stat, attrs, mtime)
            .map_err(|fault| stop(fault, &at.path()))?;
        batch.entries.push((dir.clone(), at.name.clone()));
        let mut stat = self.folder.stat(&dir, &at.name).map_err(|fault| stop(fault, &at.path()))?;
        // RACE: an edit of the same size between the check and the setting of the time leaves its
        // trace only in the change time, which is ours. Small files are read again; in a larger
        // one the edit waits for the next edit or the slow re-read.
        if mtime.is_some() && stat.kind == Some(Kind::File) && stat.size <= REREAD_LEN_MAX {
            match (&expected.content, self.folder.content(&dir, &at.name)) {
                (_, Err(Fault::Gone(gone))) => return Err(gone.into()),
                (Some(content), Ok((now, found))) if found == *content => stat = now,
                // The stat that was expected is told, so that the next look sees a difference.
                _ => stat = expected.stat,
            }
        }
        if !stat.same_inode(&expected.stat) || stat.size != expected.stat.size {
            stat = expected.stat;
        }
        Ok(Outcome::Done { stat, kept: None })
    }

    /// Drops what is in the trash if it did not change there, else sees to it by its content.
    fn reap_one(&self, discarded: &Discarded, today: &str) -> Result<Option<RelPath>, Fault> {
        let trash = self.folder.own_dir(Own::Trash);
        let name = discarded.leftover.name();
        let now = match self.folder.stat(&trash, &name) {
            Ok(stat) => stat,
            Err(Fault::NotFound) => return Ok(None),
            Err(fault) => return Err(fault),
        };
        if discarded.stat.is_some_and(|stat| stat == now) {
            self.folder.unlink(&trash, &name)?;
            return Ok(None);
        }
        self.resolve(&trash, &name, &discarded.leftover, &discarded.place, today)
    }

    /// Drops a leftover whose content may be dropped, and brings anything else back; returns where
    /// to.
    fn resolve(
        &self,
        trash: &F::Dir,
        name: &Name,
        leftover: &Leftover,
        place: &RelPath,
        today: &str,
    ) -> Result<Option<RelPath>, Fault> {
        let token = match self.folder.stat(trash, name)?.kind {
            Some(Kind::File) => Some(Token::of_content(&self.folder.content(trash, name)?.1)),
            Some(Kind::Link) => {
                Some(Token::Target(ChunkId::of(&self.folder.read_link(trash, name)?)))
            }
            Some(Kind::Dir) | None => None,
        };
        if leftover.may_drop(token) {
            self.folder.unlink(trash, name)?;
            return Ok(None);
        }
        // What a removal took away has its name still free, more likely than not.
        let has_old_name = leftover.new == Token::Nothing;
        self.bring_back(trash, name, place, today, has_old_name).map(Some)
    }

    /// Brings something back to where it was (or the root, if its directory is gone): under its
    /// own name, if `has_old_name` and that is free, else as a conflict copy.
    fn bring_back(
        &self,
        from: &F::Dir,
        from_name: &Name,
        place: &RelPath,
        today: &str,
        has_old_name: bool,
    ) -> Result<RelPath, Fault> {
        let Some((parent, name)) = place.split_last() else {
            return Err(Fault::Other("It has no name to go back to".into()));
        };
        let (parent, dir) = match self.folder.open_dir(&parent) {
            Ok((dir, _)) => (parent, dir),
            Err(Fault::Gone(gone)) => return Err(Fault::Gone(gone)),
            Err(_) => (RelPath::ROOT, self.folder.open_dir(&RelPath::ROOT)?.0),
        };
        if has_old_name {
            match self.folder.rename((from, from_name), (&dir, name), Rename::NoReplace) {
                Ok(()) => return Ok(parent.join(name)),
                Err(Fault::Exists) => {}
                Err(fault) => return Err(fault),
            }
        }
        self.keep_beside(from, from_name, &dir, name, today).map(|copy| parent.join(&copy))
    }
}

impl<F: Folder> Batch<F> {
    fn touch(&mut self, dir: &F::Dir, ino: u64) {
        if self.touched_inos.insert(ino) && self.touched.len() < SYNC_ALL_FROM {
            self.touched.push(dir.clone());
        }
    }

    fn discard(&mut self, leftover: Leftover, stat: Option<Stat>, at: &Spot) {
        self.discarded.push(Discarded { leftover, stat, place: at.path(), due: self.now + GRACE });
    }
}

impl Recovered {
    fn leave(&mut self, own: &str, name: &Name, fault: Fault) -> Result<(), Fault> {
        if let Fault::Gone(gone) = fault {
            return Err(Fault::Gone(gone));
        }
        self.left.push((own_path(own, name), fault.to_string()));
        Ok(())
    }
}

fn ignore_unless_gone(result: Result<(), Fault>) -> Result<(), Fault> {
    match result {
        Err(Fault::Gone(gone)) => Err(Fault::Gone(gone)),
        _ => Ok(()),
    }
}

/// Returns a path below `.picloud`, for people.
fn own_path(own: &str, name: &Name) -> RelPath {
    RelPath::parse(OWN_DIR).unwrap_or_default().join(&ascii_name(own.into())).join(name)
}

fn parse_node(bytes: &[u8]) -> Option<NodeId> {
    NodeId::from_hex(std::str::from_utf8(bytes).ok()?).ok()
}

fn note_batch(name: &Name) -> Option<u32> {
    let text = std::str::from_utf8(name.as_bytes()).ok()?;
    u32::from_str_radix(text.strip_suffix(".where")?, 16).ok()
}

/// Appends `INDEX PATH NUL`.
fn push_note(note: &mut Vec<u8>, index: usize, path: &RelPath) {
    note.extend_from_slice(format!("{index:x} ").as_bytes());
    note.extend_from_slice(&path.to_bytes());
    note.push(0);
}

/// Reads a note as far as it is legible: after a power cut its end may be missing.
fn parse_note(note: &[u8]) -> Vec<(u32, RelPath)> {
    let complete = note.iter().rposition(|byte| *byte == 0).unwrap_or(0);
    note[..complete]
        .split(|byte| *byte == 0)
        .filter_map(|line| {
            let space = line.iter().position(|byte| *byte == b' ')?;
            let index = u32::from_str_radix(std::str::from_utf8(&line[..space]).ok()?, 16).ok()?;
            let path = RelPath::parse(&line[space + 1..]).ok()?;
            (!path.is_root()).then_some((index, path))
        })
        .collect()
}

/// Returns whether these are all the bytes of a content.
fn holds(content: &Content, bytes: &[u8]) -> bool {
    match content {
        Content::Empty => bytes.is_empty(),
        Content::Chunk { id, len } => bytes.len() == *len as usize && ChunkId::of(bytes) == *id,
        // A list never travels whole; it is staged by extents.
        Content::List { .. } => false,
    }
}

/// Returns whether two stats tell of the same version of the same inode; a rename alone changes
/// the change time.
fn same_but_ctime(a: &Stat, b: &Stat) -> bool {
    a.same_inode(b) && a.size == b.size && a.mtime == b.mtime && a.attrs == b.attrs
}

/// Returns whether a file was modified so shortly before its last change (the rename that took it
/// away) that another modification may have left no trace.
fn is_racy(stat: &Stat) -> bool {
    let nanos = |time: Timestamp| i128::from(time.secs) * 1_000_000_000 + i128::from(time.nanos());
    (nanos(stat.ctime) - nanos(stat.mtime)).abs() <= RACY_NANOS
}
