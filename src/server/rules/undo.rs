//! Batches: what one device changed in one burst, and taking one back as one change.
//!
//! A batch is a run of changes of one device in the journal, each less than [`QUIET_MS`] after the
//! one before; what other devices did in between does not end it. What one undo made is a batch of
//! its own, so it can be undone as well. A batch is named by its first and last rev, so a name means
//! the same for ever, however the burst went on.
//!
//! Undoing gives each node the state that it had before the device's last unbroken run of changes of
//! it within the batch. What was changed by anybody afterwards is left alone, and so is what does not
//! fit the drive as it is now: the rules are those of every other change, asked of all that is to be
//! changed together. A deleted node comes back under its own id, so a device that had not heard of
//! the deletion has nothing to do, and an edit made there meanwhile is an edit and no conflict.
//! Where its name is taken, it comes back beside it.
//!
//! Doing it twice does it once: what was undone has a newer rev than the batch gave it.

use std::collections::{BTreeMap, HashMap};

use super::steps::{Step, Steps};
use super::{Manifest, Version, lack_of_room, vacate};
use crate::model::{
    BatchId, DeviceId, Name, Node, NodeId, Place, Refusal, RelPath, Rev, byte_count, restored_name,
};

/// A pause of a device this long, in milliseconds, ends its batch. A deletion of many files, or an
/// upload of them, goes on without such a pause, and a person at work makes one between two
/// thoughts.
pub const QUIET_MS: i64 = 10_000;

/// The most changes in one batch: taking it back is one transaction, for which everybody else's
/// changes wait, and takes about half a kilobyte of memory for each.
pub const BATCH_MAX: usize = 50_000;

/// How many changes are looked through for batches.
const LOOK_MAX: usize = 200_000;

/// Changes read from the journal at once.
const READ_MAX: usize = 1_000;

/// The most batches listed.
pub const LIST_MAX: usize = 100;

/// The most paths told of an undo, of each sort.
pub const PATHS_MAX: usize = 100;

/// The most paths told of a batch in a list.
const EXAMPLES_MAX: usize = 3;

/// The longest path told, in bytes; of a longer one its end is.
const PATH_LEN_MAX: usize = 1024;

/// How many names are tried for what comes back where its own is taken.
const NAMES_MAX: u32 = 100;

/// How often what does not fit is taken out and the rest looked at again. Each time, all that depends
/// on what was taken out goes with it, as parents are looked at before their children.
const PASSES_MAX: usize = 64;

/// A change as the journal keeps it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Made {
    /// Its rev.
    pub rev: Rev,
    /// The node that it changed.
    pub node: NodeId,
    /// The rev of the node before it; zero when it made the node.
    pub prev: Rev,
    /// The device that made it.
    pub author: DeviceId,
    /// When, in milliseconds of the server's clock.
    pub time_ms: i64,
}

/// That a batch was undone.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Undo {
    /// The batch.
    pub of: BatchId,
    /// The changes that undid it.
    pub by: BatchId,
}

/// What batches need of one drive's manifest, within one transaction.
pub trait History: Manifest {
    /// Returns at most `limit` changes with revs from `first` to `last`, the newest first.
    fn made(&mut self, first: Rev, last: Rev, limit: usize) -> Result<Vec<Made>, Self::Error>;
    /// Returns the newest version of a node that is older than this rev.
    fn version_before(&mut self, id: NodeId, rev: Rev) -> Result<Option<Version>, Self::Error>;
    /// Returns the newest undo of exactly this batch.
    fn undo_of(&mut self, batch: BatchId) -> Result<Option<Undo>, Self::Error>;
    /// Returns the newest undo that began at or before this rev.
    fn undo_upto(&mut self, rev: Rev) -> Result<Option<Undo>, Self::Error>;
    /// Takes note of an undo.
    fn add_undo(&mut self, undo: Undo) -> Result<(), Self::Error>;
    /// Returns whether so many deletions at once pass the mass-deletion gate, and counts them when
    /// they do, unless they are only `tried`.
    fn admit_at_once(
        &mut self,
        author: DeviceId,
        count: u64,
        tried: bool,
    ) -> Result<bool, Self::Error>;
}

/// What became of nodes: how many of each. One that was moved and edited counts twice.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Counts {
    /// Nodes that were not there, or came back.
    pub created: u64,
    /// Nodes with another content, mode or time.
    pub edited: u64,
    /// Nodes that are elsewhere.
    pub moved: u64,
    /// Nodes that went.
    pub deleted: u64,
}

impl Counts {
    fn add(&mut self, before: Option<&Node>, after: Option<&Node>) {
        match (before, after) {
            (None, Some(_)) => self.created += 1,
            (Some(_), None) => self.deleted += 1,
            (Some(before), Some(after)) => {
                self.moved += u64::from(before.place != after.place);
                let is_edited = before.body != after.body || before.attrs != after.attrs;
                self.edited += u64::from(is_edited);
            }
            (None, None) => {}
        }
    }
}

/// A batch in a list.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Batch {
    /// Its name.
    pub id: BatchId,
    /// The device that made it.
    pub author: DeviceId,
    /// When its first change was made.
    pub began_ms: i64,
    /// When its last change was made.
    pub ended_ms: i64,
    /// What it came to.
    pub counts: Counts,
    /// Some of the paths, those first that are in no other changed directory.
    pub examples: Vec<RelPath>,
    /// The batch that it undid.
    pub undoes: Option<BatchId>,
    /// The batch that undid it.
    pub undone_by: Option<BatchId>,
}

/// What an undo did, or would do, to a node.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Act {
    /// It comes back, or its content does.
    Restore,
    /// It goes back to where it was.
    Move,
    /// It goes: the batch had made it.
    Delete,
}

/// Why a node is left alone.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Left {
    /// This device changed it since.
    Changed(DeviceId),
    /// The directory that it was in is gone.
    NoParent,
    /// The name that it had is taken.
    NameTaken,
    /// There is something in the directory that was not made by the batch.
    NotEmpty,
    /// It would be in itself.
    Cycle,
    /// The server has not got its content any more.
    NoContent,
}

/// What an undo did, or would do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Outcome {
    /// The device that made the batch.
    pub author: DeviceId,
    /// The last of the undos that undid the batch, undid that, and so on: nothing is done then.
    pub undone_by: Option<BatchId>,
    /// Whether the batch is back in force, as its undo was undone.
    pub is_redone: bool,
    /// The undo's own batch, when it did something.
    pub by: Option<BatchId>,
    /// What it comes to.
    pub counts: Counts,
    /// How many nodes are as they were before the batch already.
    pub same: u64,
    /// What happens to which path, at most [`PATHS_MAX`].
    pub acts: Vec<(RelPath, Act)>,
    /// To how many something does.
    pub act_count: u64,
    /// What comes back under another name, at most [`PATHS_MAX`]: where it was, and its name now.
    pub beside: Vec<(RelPath, Name)>,
    /// How many do.
    pub beside_count: u64,
    /// What is left alone, at most [`PATHS_MAX`].
    pub left: Vec<(RelPath, Left)>,
    /// How much is.
    pub left_count: u64,
    /// Whether it deletes so much that a person has to approve it; nothing is done before.
    pub needs_approval: bool,
}

/// Why a batch cannot be undone.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum UndoError {
    /// There is no such change, or the first is of another device than the last.
    #[error("There is no such batch: `picloud undo` lists them")]
    NoBatch,
    /// It has more than [`BATCH_MAX`] changes.
    #[error("A batch has at most {BATCH_MAX} changes: undo it in parts, the newest first")]
    TooLarge,
    /// What is left alone depends on each other without an end.
    #[error("The batch is too entangled with what was changed since to be undone as one")]
    Entangled,
    /// What comes back is larger than what there is room for.
    #[error(
        "Over quota: to undo it takes {} more on the server, where {} are left; delete something, or ask \
         whoever runs the server for more",
        byte_count(*needs),
        byte_count(*left)
    )]
    OverQuota {
        /// By how much the owner's files would become larger, in bytes.
        needs: u64,
        /// How much they may.
        left: u64,
    },
}

/// How to undo.
#[derive(Debug, Clone, Copy)]
pub struct How<'a> {
    /// The device that asks.
    pub author: DeviceId,
    /// Whether only to say what would happen.
    pub is_dry_run: bool,
    /// Whether a person has approved a mass deletion.
    pub is_approved: bool,
    /// Today, as names that are taken say it.
    pub date: &'a str,
}

/// What a batch did to one node.
#[derive(Debug, Clone, Copy)]
struct Touched {
    /// The rev of the version that it came to.
    last: Rev,
    /// The rev of the version before the device's last unbroken run of changes; zero when there was
    /// none.
    base: Rev,
}

/// Returns what changes of one device, the newest first, did to each node.
fn touched(made: &[Made]) -> BTreeMap<NodeId, Touched> {
    let mut nodes: BTreeMap<NodeId, Touched> = BTreeMap::new();
    for one in made {
        let node = nodes.entry(one.node).or_insert(Touched { last: one.rev, base: one.rev });
        // Otherwise somebody else changed it in between, and what came before is theirs.
        if node.base == one.rev {
            node.base = one.prev;
        }
    }
    nodes
}

fn state_at<H: History>(history: &mut H, id: NodeId, rev: Rev) -> Result<Option<Node>, H::Error> {
    Ok(history.version(id, rev)?.and_then(|version| version.node))
}

/// Returns the path of a place: through directories that are gone, as it last was; of a very long one
/// its end.
fn path_of<H: History>(history: &mut H, place: &Place) -> Result<RelPath, H::Error> {
    let mut names = vec![place.name.clone()];
    let mut len = place.name.as_bytes().len();
    let mut at = place.parent;
    while at != NodeId::ROOT {
        let Some(current) = history.current(at)? else { break };
        let rev = current.rev;
        let node = match current.node {
            None => history.version_before(at, rev)?.and_then(|version| version.node),
            alive => alive,
        };
        let Some(node) = node else { break };
        len += node.place.name.as_bytes().len() + 1;
        if len > PATH_LEN_MAX {
            break;
        }
        at = node.place.parent;
        names.push(node.place.name);
    }
    names.reverse();
    Ok(RelPath::from_names(names))
}

/// A batch while it is gathered, the newest change first.
struct Gathering {
    newest: Made,
    oldest: Made,
    undo: Option<Undo>,
    made: Vec<Made>,
    is_whole: bool,
}

impl Gathering {
    fn takes(&self, one: &Made, undo: Option<Undo>) -> bool {
        // A clock that was set back in between does not end a batch.
        !self.is_whole
            && self.newest.author == one.author
            && self.undo == undo
            && self.made.len() < BATCH_MAX
            && !self.ended_before(one)
    }

    /// Returns whether the device had paused by the time of an older change, anybody's.
    fn ended_before(&self, one: &Made) -> bool {
        self.oldest.time_ms.saturating_sub(one.time_ms) >= QUIET_MS
    }
}

/// Returns the newest batches up to a rev, at most `count`, and whether there are older ones. Of a
/// batch that is in the midst of others for very long, what is older than that is another one.
///
/// # Errors
/// Only those of the manifest's primitives.
pub fn batches<H: History>(
    history: &mut H,
    upto: Rev,
    count: usize,
) -> Result<(Vec<Batch>, bool), H::Error> {
    let mut found: Vec<Gathering> = Vec::new();
    // Where the batch of each device is that is not whole yet.
    let mut open: HashMap<DeviceId, usize> = HashMap::new();
    let (mut upto, mut looked, mut more) = (upto, 0, false);
    // The newest undo that the change looked at may be part of.
    let mut undo = history.undo_upto(upto)?;
    'looking: while upto > Rev::ZERO && looked < LOOK_MAX {
        let page = history.made(Rev::ZERO.next(), upto, READ_MAX)?;
        let Some(oldest) = page.last() else { break };
        upto = Rev(oldest.rev.0 - 1);
        looked += page.len();
        for one in page {
            if undo.is_some_and(|undo| one.rev < undo.by.first) {
                undo = history.undo_upto(one.rev)?;
            }
            let own = undo.filter(|undo| one.rev <= undo.by.last);
            open.retain(|_, at| {
                let batch = &mut found[*at];
                batch.is_whole = batch.ended_before(&one);
                !batch.is_whole
            });
            if let Some(at) = open.get(&one.author)
                && let Some(batch) = found.get_mut(*at).filter(|batch| batch.takes(&one, own))
            {
                batch.oldest = one;
                batch.made.push(one);
                continue;
            }
            if let Some(at) = open.remove(&one.author) {
                found[at].is_whole = true;
            }
            if found.len() < count {
                open.insert(one.author, found.len());
                found.push(Gathering {
                    newest: one,
                    oldest: one,
                    undo: own,
                    made: vec![one],
                    is_whole: false,
                });
                continue;
            }
            more = true;
            if open.is_empty() {
                break 'looking;
            }
        }
    }
    more |= upto > Rev::ZERO;
    let batches = found.iter().map(|gathering| described(history, gathering));
    Ok((batches.collect::<Result<_, _>>()?, more))
}

fn described<H: History>(history: &mut H, found: &Gathering) -> Result<Batch, H::Error> {
    let id = BatchId { first: found.oldest.rev, last: found.newest.rev };
    let nodes = touched(&found.made);
    let mut counts = Counts::default();
    let (mut tops, mut others) = (Vec::new(), Vec::new());
    for (node, touch) in &nodes {
        let before = state_at(history, *node, touch.base)?;
        let after = state_at(history, *node, touch.last)?;
        counts.add(before.as_ref(), after.as_ref());
        if before != after
            && let Some(Node { place, .. }) = after.or(before)
        {
            let is_top = !nodes.contains_key(&place.parent);
            let examples = if is_top { &mut tops } else { &mut others };
            if examples.len() < EXAMPLES_MAX {
                examples.push(place);
            }
        }
    }
    tops.append(&mut others);
    tops.truncate(EXAMPLES_MAX);
    let mut examples = Vec::new();
    for place in &tops {
        examples.push(path_of(history, place)?);
    }
    Ok(Batch {
        id,
        author: found.newest.author,
        began_ms: found.oldest.time_ms,
        ended_ms: found.newest.time_ms,
        counts,
        examples,
        undoes: found.undo.map(|undo| undo.of),
        undone_by: history.undo_of(id)?.map(|undo| undo.by),
    })
}

/// Takes a batch back as one change, or says what that would come to.
///
/// # Errors
/// Only those of the manifest's primitives.
pub fn undo<H: History>(
    history: &mut H,
    batch: BatchId,
    how: How<'_>,
) -> Result<Result<Outcome, UndoError>, H::Error> {
    let mut made = history.made(batch.last, batch.last, 1)?;
    let Some(author) = made.pop().map(|last| last.author) else {
        return Ok(Err(UndoError::NoBatch));
    };
    let (mut upto, mut looked) = (batch.last, 0);
    loop {
        let page = history.made(batch.first, upto, READ_MAX)?;
        looked += page.len();
        let oldest = page.last().copied();
        made.extend(page.into_iter().filter(|one| one.author == author));
        if made.len() > BATCH_MAX || looked > LOOK_MAX {
            return Ok(Err(UndoError::TooLarge));
        }
        match oldest {
            Some(oldest) if oldest.rev > batch.first => upto = Rev(oldest.rev.0 - 1),
            _ => break,
        }
    }
    if made.last().is_none_or(|first| first.rev != batch.first) {
        return Ok(Err(UndoError::NoBatch));
    }
    let mut outcome = Outcome {
        author,
        undone_by: None,
        is_redone: false,
        by: None,
        counts: Counts::default(),
        same: 0,
        acts: Vec::new(),
        act_count: 0,
        beside: Vec::new(),
        beside_count: 0,
        left: Vec::new(),
        left_count: 0,
        needs_approval: false,
    };
    let mut at = batch;
    while let Some(Undo { by, .. }) = history.undo_of(at)? {
        outcome.is_redone = outcome.undone_by.is_some() && !outcome.is_redone;
        outcome.undone_by = Some(by);
        at = by;
    }
    if outcome.undone_by.is_some() {
        return Ok(Ok(outcome));
    }
    let mut planning = Planning { outcome, steps: Steps::default(), order: Vec::new() };
    planning.gather(history, &touched(&made))?;
    if !planning.settle(history, how.date)? {
        return Ok(Err(UndoError::Entangled));
    }
    if let Some((needs, left)) = lack_of_room(history, &planning.steps)? {
        return Ok(Err(UndoError::OverQuota { needs, left }));
    }
    planning.carry_out(history, batch, how).map(Ok)
}

/// An undo while it is planned.
struct Planning {
    outcome: Outcome,
    steps: Steps,
    /// The nodes of the steps, by the revs that the batch gave them, the newest first: of what it
    /// deleted, directories come before what was in them; of what it made, after.
    order: Vec<NodeId>,
}

impl Planning {
    /// Wants each node as it was before, where nobody changed it since.
    fn gather<H: History>(
        &mut self,
        history: &mut H,
        nodes: &BTreeMap<NodeId, Touched>,
    ) -> Result<(), H::Error> {
        let mut newest: Vec<(Rev, NodeId)> = Vec::new();
        for (id, touch) in nodes {
            let Some(current) = history.current(*id)? else { continue };
            let after = state_at(history, *id, touch.base)?;
            if current.node == after {
                self.outcome.same += 1;
                continue;
            }
            if current.rev != touch.last {
                let place = current.node.as_ref().or(after.as_ref()).map(|node| node.place.clone());
                self.leave(history, place.as_ref(), Left::Changed(current.author))?;
                continue;
            }
            newest.push((touch.last, *id));
            self.steps.add(Step { id: *id, before: Some(current), after });
        }
        newest.sort_unstable_by(|a, b| b.cmp(a));
        self.order = newest.into_iter().map(|(_, id)| id).collect();
        Ok(())
    }

    fn leave<H: History>(
        &mut self,
        history: &mut H,
        place: Option<&Place>,
        why: Left,
    ) -> Result<(), H::Error> {
        self.outcome.left_count += 1;
        if self.outcome.left.len() < PATHS_MAX
            && let Some(place) = place
        {
            let path = path_of(history, place)?;
            self.outcome.left.push((path, why));
        }
        Ok(())
    }

    /// Takes out, or changes, what does not fit, until all does; returns whether it came to an end.
    fn settle<H: History>(&mut self, history: &mut H, date: &str) -> Result<bool, H::Error> {
        for _ in 0..PASSES_MAX {
            let mut all_fit = true;
            for id in self.order.clone() {
                let Some(step) = self.steps.get(id) else { continue };
                if let Err(refusal) = self.steps.fits(history, step)? {
                    all_fit = false;
                    self.give_way(history, id, &refusal, date)?;
                }
            }
            if all_fit {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// Settles a step that does not fit: what comes back gets another name, what was moved stays
    /// where it is, and all else is left alone.
    fn give_way<H: History>(
        &mut self,
        history: &mut H,
        id: NodeId,
        refusal: &Refusal,
        date: &str,
    ) -> Result<(), H::Error> {
        let Some(step) = self.steps.remove(id) else { return Ok(()) };
        let why = match refusal {
            Refusal::NameTaken { .. } => Left::NameTaken,
            Refusal::NotEmpty => Left::NotEmpty,
            Refusal::Cycle => Left::Cycle,
            Refusal::NoParent => Left::NoParent,
            _ => Left::NoContent,
        };
        let is_about_place = matches!(why, Left::NameTaken | Left::Cycle | Left::NoParent);
        let place = step.after.as_ref().or(step.node_before()).map(|node| node.place.clone());
        match (step.node_before(), &step.after) {
            (None, Some(after)) if why == Left::NameTaken => {
                for attempt in 1..=NAMES_MAX {
                    let mut after = after.clone();
                    after.place.name = restored_name(&after.place.name, date, attempt);
                    let step = Step { after: Some(after), ..step.clone() };
                    self.steps.add(step.clone());
                    if self.steps.fits(history, &step)?.is_ok() {
                        self.came_beside(history, place.as_ref(), &step)?;
                        return Ok(());
                    }
                    self.steps.remove(id);
                }
            }
            (Some(before), Some(after)) if is_about_place && before.place != after.place => {
                let after = Node { place: before.place.clone(), ..after.clone() };
                if after != *before {
                    self.steps.add(Step { after: Some(after), ..step.clone() });
                }
            }
            _ => {}
        }
        self.leave(history, place.as_ref(), why)
    }

    fn came_beside<H: History>(
        &mut self,
        history: &mut H,
        place: Option<&Place>,
        step: &Step,
    ) -> Result<(), H::Error> {
        self.outcome.beside_count += 1;
        if self.outcome.beside.len() < PATHS_MAX
            && let (Some(place), Some(after)) = (place, &step.after)
        {
            let path = path_of(history, place)?;
            self.outcome.beside.push((path, after.place.name.clone()));
        }
        Ok(())
    }

    fn carry_out<H: History>(
        mut self,
        history: &mut H,
        batch: BatchId,
        how: How<'_>,
    ) -> Result<Outcome, H::Error> {
        let order: Vec<NodeId> = std::mem::take(&mut self.order);
        for id in &order {
            let Some(step) = self.steps.get(*id) else { continue };
            let (before, after) = (step.node_before(), step.after.as_ref());
            self.outcome.counts.add(before, after);
            self.outcome.act_count += 1;
            let act = match (before, after) {
                (_, None) => Act::Delete,
                (Some(before), Some(after))
                    if before.body == after.body && before.attrs == after.attrs =>
                {
                    Act::Move
                }
                _ => Act::Restore,
            };
            if self.outcome.acts.len() < PATHS_MAX
                && let Some(Node { place, .. }) = after.or(before)
            {
                let path = path_of(history, place)?;
                self.outcome.acts.push((path, act));
            }
        }
        let deletions = self.outcome.counts.deleted;
        self.outcome.needs_approval = deletions > 0
            && !how.is_approved
            && !history.admit_at_once(how.author, deletions, how.is_dry_run)?;
        if how.is_dry_run || self.outcome.needs_approval {
            return Ok(self.outcome);
        }
        vacate(history, &self.steps)?;
        // What comes back or stays first, so that the journal, read in its order, has a directory
        // before what is in it; what goes last.
        let goes = |id: &NodeId| self.steps.get(*id).is_some_and(|step| step.after.is_none());
        let (going, staying): (Vec<NodeId>, Vec<NodeId>) = order.into_iter().partition(goes);
        let mut revs: Option<BatchId> = None;
        for id in staying.into_iter().chain(going) {
            let Some(Step { before, after, .. }) = self.steps.remove(id) else { continue };
            let rev = history.put(id, how.author, before.as_ref(), after)?;
            revs = Some(BatchId { first: revs.map_or(rev, |revs| revs.first), last: rev });
        }
        if let Some(by) = revs {
            history.add_undo(Undo { of: batch, by })?;
        }
        self.outcome.by = revs;
        Ok(self.outcome)
    }
}
