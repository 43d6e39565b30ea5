//! Sending commits: in order, several under way, small contents inside.
//!
//! A frame is built on a blocking thread (reading, checking, packing) while the one before it is on
//! its way; frames leave in the order of the commits. The replies are taken in order too, and by the
//! task that takes the pages ([`Answers`]): the server sends a page over our own changes only after
//! it answered them, and the engine must hear both in that order.

use std::collections::{HashSet, VecDeque};
use std::future::poll_fn;
use std::pin::Pin;
use std::sync::Arc;
use std::task::Poll;

use tokio::sync::{Mutex, mpsc};
use tokio::task::JoinHandle;

use super::{Context, Input, Session};
use crate::content::pack;
use crate::engine::folder::Fault;
use crate::engine::seam::{Committed, Expected, Outgoing, Spot};
use crate::model::{ChunkData, Content, Rev, Usage};
use crate::protocol::message::{self, ChangeResult, Commit, FailureCode};
use crate::protocol::{CallError, Pending};

/// Commits that wait to be built: more than the engine has under way.
pub(super) const JOBS_MAX: usize = 16;

/// Commits that are built ahead of the one being sent.
const BUILT_MAX: usize = 2;

/// A commit of the engine's: with at most 512 changes and little over 1 MiB of contents, it is one
/// frame.
#[derive(Debug)]
pub(in crate::agent) struct Job {
    pub batch: u64,
    pub changes: Vec<Outgoing>,
    /// How many deletions are pending, as the server is to be told.
    pub deletions: u64,
}

/// A commit ready to be sent.
struct Built {
    batch: u64,
    /// Whether it is sent without a change, too: for what it says of deletions.
    is_announcement: bool,
    commit: Commit,
    /// Which change of the job each change of the frame is.
    indexes: Vec<usize>,
    /// Which of these bring contents along.
    bring: Vec<bool>,
    /// One per change of the job; nothing yet for those in the frame.
    results: Vec<Option<Committed>>,
}

/// A commit that was sent.
struct Sent {
    batch: u64,
    indexes: Vec<usize>,
    bring: Vec<bool>,
    results: Vec<Option<Committed>>,
    /// None when nothing was left to send.
    reply: Option<ReplyFuture>,
}

type ReplyFuture =
    Pin<Box<dyn Future<Output = Result<message::Committed, CallError>> + Send + 'static>>;

/// Serves the commits of a session until it ends; what was sent goes to `sent`.
pub(super) async fn run(
    cx: Arc<Context>,
    session: Session,
    mut jobs: mpsc::Receiver<Job>,
    sent: SentWay,
) {
    let (built_sender, mut built) = mpsc::channel::<JoinHandle<Built>>(BUILT_MAX);
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
            let Ok(built) = handle.await else { return session.journal.close() };
            if let Err(error) = send(&cx, &session, built, &sent).await {
                tracing::debug!(%error, "a commit could not be sent");
                return session.journal.close();
            }
        }
    };
    // When one of them ends, the session is over.
    tokio::select! {
        () = building => {}
        () = sending => {}
    }
}

async fn send(
    cx: &Context,
    session: &Session,
    built: Built,
    sent: &SentWay,
) -> Result<(), CallError> {
    let Built { batch, is_announcement, commit, indexes, bring, results } = built;
    let len: usize = commit.chunks.iter().map(|chunk| chunk.data.len() + 64).sum();
    cx.rates.up.pass(len as u64).await;
    let _sending = sent.sending.lock().await;
    let mut reply: Option<ReplyFuture> = None;
    if is_announcement || !commit.changes.is_empty() {
        let pending: Pending<Commit> = session.journal.send(&commit).await?;
        reply = Some(Box::pin(pending.reply()));
    }
    // There is always room: the engine has fewer commits under way.
    if sent.way.try_send(Sent { batch, indexes, bring, results, reply }).is_err() {
        session.journal.close();
    }
    Ok(())
}

/// The way of what was sent to [`Answers`].
pub(super) struct SentWay {
    way: mpsc::Sender<Sent>,
    /// Held from before a frame is sent until it is known to [`Answers`].
    sending: Arc<Mutex<()>>,
}

/// The replies that are still to come, in the order of the commits.
pub(super) struct Answers {
    sent: mpsc::Receiver<Sent>,
    sending: Arc<Mutex<()>>,
    waiting: VecDeque<Sent>,
}

impl Answers {
    pub(super) fn new() -> (SentWay, Self) {
        let (way, sent) = mpsc::channel(JOBS_MAX);
        let sending = Arc::new(Mutex::new(()));
        let answers = Self { sent, sending: Arc::clone(&sending), waiting: VecDeque::new() };
        (SentWay { way, sending }, answers)
    }

    /// Waits for the next reply, and returns what the core is to be told. Nothing when there will
    /// be none any more. To give up waiting loses nothing.
    pub(super) async fn next(&mut self, session: u64) -> Option<Result<Input, CallError>> {
        poll_fn(|context| {
            while let Poll::Ready(one) = self.sent.poll_recv(context) {
                match one {
                    Some(one) => self.waiting.push_back(one),
                    None if self.waiting.is_empty() => return Poll::Ready(None),
                    None => break,
                }
            }
            let Some(first) = self.waiting.front_mut() else { return Poll::Pending };
            let reply = match &mut first.reply {
                None => Ok(None),
                Some(reply) => match reply.as_mut().poll(context) {
                    Poll::Ready(Ok(reply)) => Ok(Some(reply)),
                    Poll::Ready(Err(CallError::Failed(failure)))
                        if failure.code == FailureCode::DiskFull =>
                    {
                        Err(failure.message)
                    }
                    Poll::Ready(Err(error)) => return Poll::Ready(Some(Err(error))),
                    Poll::Pending => return Poll::Pending,
                },
            };
            let first = self.waiting.pop_front();
            Poll::Ready(first.map(|first| {
                Ok(match reply {
                    Ok(reply) => first.answered(session, reply),
                    Err(reason) => first.found_no_room(session, &reason),
                })
            }))
        })
        .await
    }

    /// Returns the next reply if it has arrived already, also when its commit is just being sent.
    pub(super) async fn arrived(&mut self, session: u64) -> Option<Result<Input, CallError>> {
        drop(self.sending.lock().await);
        tokio::select! {
            biased;
            answered = self.next(session) => answered,
            () = std::future::ready(()) => None,
        }
    }
}

impl Sent {
    fn answered(mut self, session: u64, reply: Option<message::Committed>) -> Input {
        let (mut head, mut usage) = (Rev::ZERO, None);
        if let Some(reply) = reply {
            (head, usage) = (reply.head, reply.usage);
            for (index, result) in self.indexes.iter().zip(reply.results) {
                self.results[*index] = Some(match result {
                    ChangeResult::Accepted { rev } => Committed::Accepted { rev },
                    ChangeResult::Refused(refusal) => Committed::Refused(refusal),
                });
            }
        }
        self.told(session, head, usage)
    }

    /// The server's disk is full. What brings contents waits until a person has made room; the rest
    /// of the commit was refused with it, and is tried again alone.
    fn found_no_room(mut self, session: u64, reason: &str) -> Input {
        let is_alone = !self.bring.contains(&true);
        for (index, brings) in self.indexes.iter().zip(&self.bring) {
            if *brings || is_alone {
                self.results[*index] = Some(Committed::Unreadable { reason: reason.to_owned() });
            }
        }
        self.told(session, Rev::ZERO, None)
    }

    fn told(self, session: u64, head: Rev, usage: Option<Usage>) -> Input {
        // A server that answers too little has its changes looked at again.
        let results =
            self.results.into_iter().map(|result| result.unwrap_or(Committed::Changed)).collect();
        Input::Committed { session, batch: self.batch, results, head, usage }
    }
}

/// Reads and packs what the changes need. Blocks on the disk.
fn build(cx: &Context, job: Job) -> Built {
    let mut built = Built {
        batch: job.batch,
        is_announcement: job.changes.is_empty(),
        commit: Commit {
            drive: cx.drive,
            changes: Vec::new(),
            chunks: Vec::new(),
            deletions: Some(job.deletions),
        },
        indexes: Vec::new(),
        bring: Vec::new(),
        results: Vec::new(),
    };
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
        built.bring.push(chunk.is_some());
        if let Some(chunk) = chunk
            && inside.insert(chunk.id)
        {
            built.commit.chunks.push(chunk);
        }
        built.commit.changes.push(outgoing.change);
        built.indexes.push(index);
    }
    built
}

/// Returns the chunk that goes with a change: as it was read for hashing, or as it is read again.
fn attach(cx: &Context, at: &Spot, expected: &Expected) -> Result<Option<ChunkData>, Committed> {
    let Some(Content::Chunk { id, len }) = expected.content else {
        return Ok(None);
    };
    if let Some(bytes) = cx.outgoing.get(id) {
        return Ok(Some(pack(id, bytes.as_slice())));
    }
    let read =
        cx.folder.open_file(at, &expected.stat).and_then(|file| file.read_chunk_at(0, &id, len));
    match read {
        Ok(Some(chunk)) => Ok(Some(pack(id, chunk.into_vec()))),
        Ok(None) | Err(Fault::NotFound | Fault::Changed | Fault::Gone(_)) => {
            Err(Committed::Changed)
        }
        Err(fault) => Err(Committed::Unreadable { reason: fault.to_string() }),
    }
}
