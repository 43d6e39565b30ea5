//! Sending commits: in order, several under way, small contents inside.
//!
//! A frame is built on a blocking thread (reading, checking, packing) while the one before it is on
//! its way; frames leave in the order of the commits, and replies are taken in that order too.

use std::collections::HashSet;
use std::sync::Arc;

use tokio::sync::mpsc;
use tokio::task::JoinHandle;

use super::{Context, Input, Session};
use crate::content::pack;
use crate::engine::folder::Fault;
use crate::engine::seam::{Committed, Expected, Outgoing, Spot};
use crate::model::{ChunkData, Content, Rev};
use crate::protocol::limits::{BATCH_COUNT_MAX, BATCH_LEN_MAX};
use crate::protocol::message::{ChangeResult, Commit};
use crate::protocol::{CallError, Pending};

/// Commits that wait to be built: more than the engine has under way.
pub(super) const JOBS_MAX: usize = 16;

/// Commits that are built ahead of the one being sent.
const BUILT_MAX: usize = 2;

/// Commits that are sent and not answered.
const SENT_MAX: usize = 8;

/// A commit of the engine's.
#[derive(Debug)]
pub(in crate::agent) struct Job {
    pub batch: u64,
    pub changes: Vec<Outgoing>,
}

/// A commit ready to be sent.
struct Built {
    batch: u64,
    frames: Vec<Frame>,
    /// One per change of the job; nothing yet for those in a frame.
    results: Vec<Option<Committed>>,
}

struct Frame {
    commit: Commit,
    /// Which change of the job each change of the frame is.
    indexes: Vec<usize>,
}

struct Sent {
    batch: u64,
    replies: Vec<(Vec<usize>, Pending<Commit>)>,
    results: Vec<Option<Committed>>,
}

/// Serves the commits of a session until it ends.
pub(super) async fn run(cx: Arc<Context>, session: Session, mut jobs: mpsc::Receiver<Job>) {
    let (built_sender, mut built) = mpsc::channel::<JoinHandle<Built>>(BUILT_MAX);
    let (sent_sender, mut sent) = mpsc::channel::<Sent>(SENT_MAX);
    let building = async {
        while let Some(job) = jobs.recv().await {
            let cx = Arc::clone(&cx);
            let handle = tokio::task::spawn_blocking(move || build(&cx, job));
            if built_sender.send(handle).await.is_err() {
                return;
            }
        }
    };
    let sending = async {
        while let Some(handle) = built.recv().await {
            let Ok(built) = handle.await else { return };
            match send(&cx, &session, built).await {
                Ok(sent) => {
                    if sent_sender.send(sent).await.is_err() {
                        return;
                    }
                }
                Err(error) => return give_up(&session, &error),
            }
        }
    };
    let answering = async {
        while let Some(sent) = sent.recv().await {
            match answer(sent).await {
                Ok((batch, results, head)) => {
                    let input = Input::Committed { session: session.number, batch, results, head };
                    if cx.inputs.send(input).await.is_err() {
                        return;
                    }
                }
                Err(error) => return give_up(&session, &error),
            }
        }
    };
    // When one of them ends, the session is over.
    tokio::select! {
        () = building => {}
        () = sending => {}
        () = answering => {}
    }
}

/// Ends the connection, so that what is in doubt is planned again on the next one.
fn give_up(session: &Session, error: &CallError) {
    if let CallError::Failed(failure) = error {
        tracing::warn!(%failure, "the server did not take a commit; connecting anew");
    }
    session.journal.close();
}

async fn send(cx: &Context, session: &Session, built: Built) -> Result<Sent, CallError> {
    let mut replies = Vec::with_capacity(built.frames.len());
    for frame in built.frames {
        let len: usize = frame.commit.chunks.iter().map(|c| c.data.len() + 64).sum();
        cx.rates.up.pass(len as u64).await;
        let pending = session.journal.send(&frame.commit).await?;
        replies.push((frame.indexes, pending));
    }
    Ok(Sent { batch: built.batch, replies, results: built.results })
}

async fn answer(mut sent: Sent) -> Result<(u64, Vec<Committed>, Rev), CallError> {
    let mut head = Rev::ZERO;
    for (indexes, pending) in sent.replies {
        let reply = pending.reply().await?;
        head = head.max(reply.head);
        for (index, result) in indexes.into_iter().zip(reply.results) {
            sent.results[index] = Some(match result {
                ChangeResult::Accepted { rev } => Committed::Accepted { rev },
                ChangeResult::Refused(refusal) => Committed::Refused(refusal),
            });
        }
    }
    // A server that answers too little has its changes looked at again.
    let results =
        sent.results.into_iter().map(|result| result.unwrap_or(Committed::Changed)).collect();
    Ok((sent.batch, results, head))
}

/// Reads and packs what the changes need, and divides them into frames. Blocks on the disk.
fn build(cx: &Context, job: Job) -> Built {
    let mut built = Built {
        batch: job.batch,
        frames: Vec::new(),
        results: Vec::with_capacity(job.changes.len()),
    };
    let empty = || Frame {
        commit: Commit { drive: cx.drive, changes: Vec::new(), chunks: Vec::new() },
        indexes: Vec::new(),
    };
    let mut frame = empty();
    let mut frame_len = 0;
    let mut inside = HashSet::new();
    for (index, outgoing) in job.changes.into_iter().enumerate() {
        let chunk = match &outgoing.attach {
            None => None,
            Some((at, expected)) => match attach(cx, at, expected) {
                Ok(chunk) => chunk,
                Err(result) => {
                    built.results.push(Some(result));
                    continue;
                }
            },
        };
        built.results.push(None);
        if frame.indexes.len() >= BATCH_COUNT_MAX || frame_len >= BATCH_LEN_MAX {
            built.frames.push(std::mem::replace(&mut frame, empty()));
            frame_len = 0;
            inside.clear();
        }
        if let Some(chunk) = chunk
            && inside.insert(chunk.id)
        {
            frame_len += chunk.data.len();
            frame.commit.chunks.push(chunk);
        }
        frame.commit.changes.push(outgoing.change);
        frame.indexes.push(index);
    }
    if !frame.indexes.is_empty() {
        built.frames.push(frame);
    }
    built
}

/// Returns the chunk that goes with a change: as it was read for hashing, or as it is read again.
fn attach(cx: &Context, at: &Spot, expected: &Expected) -> Result<Option<ChunkData>, Committed> {
    let Some(Content::Chunk { id, len }) = expected.content else {
        return Ok(None);
    };
    if let Some(bytes) = cx.outgoing.get(id) {
        return Ok(Some(pack(id, &bytes)));
    }
    let read =
        cx.folder.open_file(at, &expected.stat).and_then(|file| file.read_chunk_at(0, &id, len));
    match read {
        Ok(Some(bytes)) => Ok(Some(pack(id, &bytes))),
        Ok(None) | Err(Fault::NotFound | Fault::Changed | Fault::Gone(_)) => {
            Err(Committed::Changed)
        }
        Err(fault) => Err(Committed::Unreadable { reason: fault.to_string() }),
    }
}
