//! The thread that carries out disk operations, in the order in which they were submitted.
//!
//! One thread for a folder: renames in one file system wait for one another anyway, and so the
//! order on the same and on nested paths is kept. What costs time, the barriers, is shared: by all
//! that gathered while the last one was under way, and by the contents of a batch and the renames of
//! the one before. A lone operation goes through at once.

use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, TryRecvError, sync_channel};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use super::folder::DiskFolder;
use crate::engine::apply::{Applier, Job, Payload, Placed};
use crate::engine::folder::FolderGone;
use crate::engine::seam::Outcome;
use crate::model::{NodeId, RelPath};

/// The most operations in a batch: what is reported late if the disk is slow.
const BATCH_MAX: usize = 512;

/// A batch is closed once it brings this many bytes.
const BATCH_LEN_MAX: usize = 8 * 1024 * 1024;

/// The most operations waiting. With contents of at most 64 KiB inside them that is 32 MiB; larger
/// ones are to be staged before.
const QUEUE_MAX: usize = 512;

/// How many discarded files are seen to between two batches.
const REAP_MAX: usize = 1024;

/// How long the thread waits when it has nothing to do.
const IDLE: Duration = Duration::from_secs(3600);

/// What the pool tells.
#[derive(Debug)]
pub enum Report {
    /// What an operation came to.
    Applied(NodeId, Outcome),
    /// A version that was written to after it was replaced went back to the folder.
    BroughtBack(RelPath),
    /// The folder is gone, and with it everything submitted. The pool has ended.
    Gone(FolderGone),
}

/// The pool has ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("The folder is closed")]
pub struct PoolClosed;

/// The thread, and the way to it.
#[derive(Debug)]
pub struct ApplyPool {
    jobs: Option<SyncSender<Job>>,
    thread: Option<JoinHandle<()>>,
}

impl ApplyPool {
    /// Begins with an applier that has recovered what the last run left. `report` may block; the
    /// pool then waits.
    ///
    /// # Errors
    /// When there can be no further thread.
    pub fn start(
        applier: Applier<DiskFolder>,
        report: impl FnMut(Report) + Send + 'static,
    ) -> std::io::Result<Self> {
        let (jobs, queue) = sync_channel(QUEUE_MAX);
        let thread = std::thread::Builder::new()
            .name("picloud-apply".into())
            .spawn(move || run(report, applier, queue))?;
        Ok(Self { jobs: Some(jobs), thread: Some(thread) })
    }

    /// Submits an operation; waits while too many are waiting.
    ///
    /// # Errors
    /// When the folder is gone.
    pub fn submit(&self, job: Job) -> Result<(), PoolClosed> {
        let jobs = self.jobs.as_ref().ok_or(PoolClosed)?;
        jobs.send(job).map_err(|_| PoolClosed)
    }

    /// Returns the way to the thread, for submitting from elsewhere; the pool ends only once all
    /// of these are dropped.
    #[must_use]
    pub fn submitter(&self) -> Option<SyncSender<Job>> {
        self.jobs.clone()
    }
}

impl Drop for ApplyPool {
    /// Waits for what was submitted.
    fn drop(&mut self) {
        self.jobs = None;
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            tracing::error!("The thread that writes to the folder ended by a fault in the program");
        }
    }
}

/// The queue is dropped before `report`: whoever hears nothing more cannot submit any more either.
#[expect(clippy::needless_pass_by_value, reason = "it ends with the thread")]
fn run(mut report: impl FnMut(Report), mut applier: Applier<DiskFolder>, queue: Receiver<Job>) {
    let start = Instant::now();
    let mut batch = Vec::new();
    let mut placed: Option<Placed<DiskFolder>> = None;
    let mut is_open = true;
    while is_open {
        // While a batch is not durable yet, only what is there already joins its barrier.
        if placed.is_none() {
            let now = start.elapsed();
            let wait = applier.reap_at().map_or(IDLE, |at| at.saturating_sub(now).min(IDLE));
            match queue.recv_timeout(wait) {
                Ok(job) => batch.push(job),
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => break,
            }
        }
        is_open = gather(&queue, &mut batch);
        let done = if batch.is_empty() {
            placed.take().map_or_else(|| Ok(Vec::new()), |placed| applier.finish(placed))
        } else {
            let next = applier.place_batch(&batch, placed.take(), &today(), start.elapsed());
            batch.clear();
            next.map(|(done, next)| {
                placed = Some(next);
                done
            })
        };
        match done {
            Ok(outcomes) => outcomes
                .into_iter()
                .for_each(|(node, outcome)| report(Report::Applied(node, outcome))),
            Err(gone) => return report(Report::Gone(gone)),
        }
        let now = start.elapsed();
        if applier.reap_at().is_some_and(|at| at <= now) {
            match applier.reap(&today(), now, REAP_MAX) {
                Ok(back) => back.into_iter().for_each(|path| report(Report::BroughtBack(path))),
                Err(gone) => return report(Report::Gone(gone)),
            }
        }
    }
    if let Some(placed) = placed {
        match applier.finish(placed) {
            Ok(outcomes) => outcomes
                .into_iter()
                .for_each(|(node, outcome)| report(Report::Applied(node, outcome))),
            Err(gone) => report(Report::Gone(gone)),
        }
    }
}

/// Takes what is waiting already; returns whether more may come.
fn gather(queue: &Receiver<Job>, batch: &mut Vec<Job>) -> bool {
    let len = |job: &Job| match &job.payload {
        Payload::Chunk(chunk) => chunk.len(),
        Payload::None | Payload::Empty | Payload::Staged { .. } => 0,
    };
    let mut total: usize = batch.iter().map(len).sum();
    while batch.len() < BATCH_MAX && total < BATCH_LEN_MAX {
        match queue.try_recv() {
            Ok(job) => {
                total += len(&job);
                batch.push(job);
            }
            Err(TryRecvError::Empty) => return true,
            Err(TryRecvError::Disconnected) => return false,
        }
    }
    true
}

/// Returns the date here, for the names of conflict copies.
fn today() -> String {
    jiff::Zoned::now().date().to_string()
}
