//! The careful procedures that carry out a [`DiskOp`] over a [`Folder`].
//!
//! Every decision is here, in code a simulator can run: check, exchange, examine what came out,
//! put back, keep as a conflict copy, and what to do with what a crash left. The rules:
//!
//! - A new content is complete and durable in staging before it gets a person's name.
//! - A name is filled by a rename that replaces nothing, or by an exchange. What an exchange or a
//!   removal takes away lands in the trash under a name (`Leftover`) that says which contents
//!   may be dropped; anything else is a person's version and goes back to the folder. This needs
//!   no database, so it holds when the database is lost.
//! - What was taken away knowingly stays in the trash for a grace period: a descriptor still open
//!   on it may be writing. It is dropped only if it did not change meanwhile.
//! - Operations go in batches: one barrier for all staged contents, then the renames, then one
//!   barrier for the renames; only then is anything reported as done.
mod leftover;
mod place;
mod recover;

use std::collections::{BTreeSet, HashMap, HashSet, VecDeque};
use std::fmt;
use std::time::Duration;

use self::leftover::{Leftover, ascii_name, note_name, own_path, push_note};
pub use self::recover::Recovered;
use super::defect::Defect;
use super::folder::{Fault, Folder, FolderGone, Own};
use super::seam::{DiskOp, Outcome, Spot, Stat};
use crate::model::{Attrs, Checked, Content, Kind, Name, NodeId, RelPath};

/// The directory at the root of a folder that is the agent's own.
pub const OWN_DIR: &[u8] = b".picloud";

/// How long a replaced or removed file stays in the trash.
pub const GRACE: Duration = Duration::from_secs(10);

/// From how many things to sync on one `sync_all` is cheaper than one call for each.
const SYNC_ALL_FROM: usize = 8;

/// The new content of a [`DiskOp::Write`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Payload {
    /// None: for every other operation.
    None,
    /// None either: the file is empty.
    Empty,
    /// All the bytes, to be staged with the batch.
    Chunk(Checked<'static>),
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
    /// Whether it is not certain that what took its place is durable: then that comes first.
    waits_for_sync: bool,
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
    /// Whether what the last run left may have lost bytes with the power.
    is_after_power_cut: bool,
}

/// What each operation of a batch came to, in the order of the batch.
pub type Outcomes = Vec<(NodeId, Outcome)>;

/// What a batch has open and has done so far.
struct Batch<F: Folder> {
    number: u32,
    today: String,
    now: Duration,
    dirs: HashMap<RelPath, (F::Dir, u64)>,
    touched: Vec<F::Dir>,
    touched_inos: HashSet<u64>,
    touched_own: BTreeSet<Own>,
    /// Entries whose attributes were set.
    entries: Vec<(F::Dir, Name)>,
    discarded: Vec<Discarded>,
    /// Nodes that are out of the way now.
    parked: HashSet<NodeId>,
}

/// A batch that is carried out, and not durable yet.
pub struct Placed<F: Folder> {
    batch: Batch<F>,
    outcomes: Outcomes,
    has_note: bool,
}

impl<F: Folder> fmt::Debug for Placed<F> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Placed").field("outcomes", &self.outcomes).finish_non_exhaustive()
    }
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
            is_after_power_cut: false,
        }
    }

    /// Says that the machine stopped uncleanly, so that what the last run left may have lost bytes.
    #[must_use]
    pub fn after_power_cut(mut self, is_after_power_cut: bool) -> Self {
        self.is_after_power_cut = is_after_power_cut;
        self
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
    ) -> Result<Outcomes, FolderGone> {
        let (_, placed) = self.place_batch(jobs, None, today, now)?;
        self.finish(placed)
    }

    /// Carries out operations without making them durable, in one go with making those of the batch
    /// before durable, whose outcomes it returns: so each barrier serves two batches.
    ///
    /// # Errors
    /// As [`Applier::apply`].
    pub fn place_batch(
        &mut self,
        jobs: &[Job],
        before: Option<Placed<F>>,
        today: &str,
        now: Duration,
    ) -> Result<(Outcomes, Placed<F>), FolderGone> {
        self.folder.check()?;
        let mut batch = Batch::new(self.next_batch, today, now);
        self.next_batch = self.next_batch.wrapping_add(1);
        let has_note = self.write_note(&batch, jobs)?;
        let mut staged = Vec::with_capacity(jobs.len());
        for (index, job) in jobs.iter().enumerate() {
            staged.push(match self.stage(&batch, index, job) {
                Err(Stop::Gone(gone)) => return Err(gone),
                other => other,
            });
        }
        let mut waiting = waiting_for_sync(jobs, &staged);
        if self.folder.has_defect(Defect::DoneBeforeDurable) {
            waiting.clear();
        }
        let count = waiting.len() + before.as_ref().map_or(0, |placed| placed.batch.sync_count());
        let all = (count >= SYNC_ALL_FROM).then(|| self.folder.sync_all());
        self.sync_staged(&waiting, &mut staged, all.as_ref())?;
        let told = match before {
            Some(before) => self.finish_with(before, all)?,
            None => Vec::new(),
        };

        let mut outcomes = Vec::with_capacity(jobs.len());
        for (index, (job, staged)) in jobs.iter().zip(staged).enumerate() {
            let number = batch.number;
            let leftover = |new, old| Leftover {
                batch: number,
                index: u32::try_from(index).unwrap_or(u32::MAX),
                node: job.node,
                new,
                old,
            };
            let placed = staged.and_then(|staged| self.place(&mut batch, job, &staged, leftover));
            match placed {
                Ok(outcome) | Err(Stop::Outcome(outcome)) => outcomes.push((job.node, outcome)),
                Err(Stop::Gone(gone)) => return Err(gone),
            }
        }
        Ok((told, Placed { batch, outcomes, has_note }))
    }

    /// Makes a batch durable, and returns what its operations came to.
    ///
    /// # Errors
    /// As [`Applier::apply`].
    pub fn finish(&mut self, placed: Placed<F>) -> Result<Outcomes, FolderGone> {
        let all = (placed.batch.sync_count() >= SYNC_ALL_FROM).then(|| self.folder.sync_all());
        self.finish_with(placed, all)
    }

    fn finish_with(
        &mut self,
        placed: Placed<F>,
        all: Option<Result<(), Fault>>,
    ) -> Result<Outcomes, FolderGone> {
        let Placed { mut batch, mut outcomes, has_note } = placed;
        let synced = match all {
            _ if self.folder.has_defect(Defect::DoneBeforeDurable) => Ok(()),
            Some(synced) => synced,
            None => self.sync_placed(&batch),
        };
        match synced {
            Ok(()) => {}
            Err(Fault::Gone(gone)) => return Err(gone),
            // What was taken away stays in the trash until a sync succeeds: what took its place may not
            // be there after a power cut.
            Err(fault) => {
                batch.discarded.iter_mut().for_each(|discarded| discarded.waits_for_sync = true);
                let reason =
                    format!("What was written could not be made durable ({fault}); check the disk");
                for (node, outcome) in &mut outcomes {
                    // What is parked no look at the folder can find: unless that is told, it would pass
                    // for deleted. Where it is after a power cut tells the recovery.
                    if matches!(outcome, Outcome::Done { .. }) && !batch.parked.contains(node) {
                        *outcome = Outcome::Failed { reason: reason.clone() };
                    }
                }
            }
        }
        self.keep_in_trash(batch, has_note);
        Ok(outcomes)
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
            (
                DiskOp::Write { at, content, mtime, attrs, .. },
                payload @ (Payload::Empty | Payload::Chunk(_)),
            ) => {
                let Some(bytes) = bytes_of(content, payload) else {
                    return Err(failed(format!(
                        "The bytes received for {} are not those of its content",
                        at.path()
                    )));
                };
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

    /// The first barrier: what is staged becomes durable, each by itself unless all was synced.
    fn sync_staged(
        &self,
        waiting: &[usize],
        staged: &mut [Result<Staged, Stop>],
        all: Option<&Result<(), Fault>>,
    ) -> Result<(), FolderGone> {
        let staging = self.folder.own_dir(Own::Staging);
        for index in waiting {
            let Ok(Staged { file: Some((name, _)) }) = &staged[*index] else {
                continue;
            };
            let synced = match all {
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
                    staged[*index] = Err(failed(reason));
                }
            }
        }
        Ok(())
    }

    /// The second barrier, for few things: the renames become durable.
    fn sync_placed(&self, batch: &Batch<F>) -> Result<(), Fault> {
        let entries = batch.entries.iter().map(|(dir, name)| self.folder.sync_entry(dir, name));
        let dirs = batch.touched.iter().map(|dir| self.folder.sync_dir(dir));
        let own =
            batch.touched_own.iter().map(|own| self.folder.sync_dir(&self.folder.own_dir(*own)));
        match entries.chain(dirs).chain(own).collect() {
            // An entry that is gone again, or that may not be opened: ask for everything.
            Err(Fault::NotFound | Fault::Other(_)) => self.folder.sync_all(),
            other => other,
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
}

impl<F: Folder> Batch<F> {
    fn new(number: u32, today: &str, now: Duration) -> Self {
        Self {
            number,
            today: today.to_owned(),
            now,
            dirs: HashMap::new(),
            touched: Vec::new(),
            touched_inos: HashSet::new(),
            touched_own: BTreeSet::new(),
            entries: Vec::new(),
            discarded: Vec::new(),
            parked: HashSet::new(),
        }
    }

    /// Returns how many things there are to sync.
    fn sync_count(&self) -> usize {
        self.touched.len() + self.touched_own.len() + self.entries.len()
    }

    fn touch(&mut self, dir: &F::Dir, ino: u64) {
        if self.touched_inos.insert(ino) && self.touched.len() < SYNC_ALL_FROM {
            self.touched.push(dir.clone());
        }
    }

    fn discard(&mut self, leftover: Leftover, stat: Option<Stat>, at: &Spot) {
        let (place, due) = (at.path(), self.now + GRACE);
        self.discarded.push(Discarded { leftover, stat, place, due, waits_for_sync: false });
    }
}

/// Returns which jobs have something in staging that is not durable yet.
fn waiting_for_sync(jobs: &[Job], staged: &[Result<Staged, Stop>]) -> Vec<usize> {
    let is_waiting = |job: &Job, staged: &Result<Staged, Stop>| {
        let is_durable = match &job.payload {
            Payload::Staged { is_durable, .. } => *is_durable,
            Payload::Empty | Payload::Chunk(_) => false,
            // A link is all metadata, and its rename cannot become durable before it.
            Payload::None => true,
        };
        !is_durable && matches!(staged, Ok(Staged { file: Some(_) }))
    };
    let all = jobs.iter().zip(staged).enumerate();
    all.filter(|(_, (job, staged))| is_waiting(job, staged)).map(|(index, _)| index).collect()
}

/// Returns the bytes of a payload, if they are all that a content has. (A list never travels whole; it is
/// staged by extents.)
fn bytes_of<'bytes>(content: &Content, payload: &'bytes Payload) -> Option<&'bytes [u8]> {
    match (content, payload) {
        (Content::Empty, Payload::Empty) => Some(&[]),
        (Content::Chunk { id, len }, Payload::Chunk(chunk)) => {
            (chunk.id() == *id && chunk.len() == *len as usize).then_some(chunk)
        }
        _ => None,
    }
}
