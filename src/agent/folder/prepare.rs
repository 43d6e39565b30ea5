//! The thread between the core and the pool that writes to the folder: it unpacks small contents,
//! so that this goes on beside the writing, and waits in the core's place while the pool is busy.

use std::collections::VecDeque;
use std::sync::mpsc::SyncSender;
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread::JoinHandle;

use super::{Context, Input};
use crate::content::unpack;
use crate::engine::apply::{Job, Payload};
use crate::engine::seam::{DiskOp, Event, Outcome};
use crate::model::{Checked, ChunkData, NodeId};

/// A disk operation with where its content is.
#[derive(Debug)]
pub(super) enum Prepared {
    /// At hand.
    Ready(Job),
    /// Packed.
    Packed { node: NodeId, op: DiskOp, chunk: Arc<ChunkData> },
    /// Plain, shared with others.
    Shared { node: NodeId, op: DiskOp, bytes: Arc<Vec<u8>> },
}

#[derive(Debug, Default)]
struct Queue {
    /// As many as the engine has disk operations under way, at most.
    jobs: VecDeque<Prepared>,
    is_closed: bool,
}

#[derive(Debug, Default)]
struct Line {
    queue: Mutex<Queue>,
    filled: Condvar,
}

/// The thread, and the way to it.
#[derive(Debug)]
pub(super) struct Preparer {
    line: Arc<Line>,
    thread: Option<JoinHandle<()>>,
}

impl Preparer {
    /// Begins to hand operations to the pool.
    ///
    /// # Errors
    /// When there can be no further thread.
    pub(super) fn start(cx: Arc<Context>, pool: SyncSender<Job>) -> std::io::Result<Self> {
        let line = Arc::new(Line::default());
        let queue = Arc::clone(&line);
        let thread = std::thread::Builder::new()
            .name("picloud-prepare".into())
            .spawn(move || run(&cx, &queue, &pool))?;
        Ok(Self { line, thread: Some(thread) })
    }

    /// Hands an operation over; never waits.
    pub(super) fn push(&self, job: Prepared) {
        let mut queue = self.line.queue.lock().unwrap_or_else(PoisonError::into_inner);
        queue.jobs.push_back(job);
        drop(queue);
        self.line.filled.notify_one();
    }
}

impl Drop for Preparer {
    /// Drops what waits, and waits for what is being handed over.
    fn drop(&mut self) {
        let mut queue = self.line.queue.lock().unwrap_or_else(PoisonError::into_inner);
        queue.is_closed = true;
        queue.jobs.clear();
        drop(queue);
        self.line.filled.notify_all();
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            tracing::error!("the thread that prepares operations ended by a fault in the program");
        }
    }
}

fn run(cx: &Context, line: &Line, pool: &SyncSender<Job>) {
    loop {
        let next = {
            let mut queue = line.queue.lock().unwrap_or_else(PoisonError::into_inner);
            loop {
                if queue.is_closed {
                    return;
                }
                if let Some(next) = queue.jobs.pop_front() {
                    break next;
                }
                queue = line.filled.wait(queue).unwrap_or_else(PoisonError::into_inner);
            }
        };
        let job = match next {
            Prepared::Ready(job) => job,
            Prepared::Shared { node, op, bytes } => {
                Job { node, op, payload: Payload::Chunk(Checked::of(bytes.to_vec())) }
            }
            Prepared::Packed { node, op, chunk } => match unpack(&chunk).map(Checked::into_owned) {
                Ok(chunk) => Job { node, op, payload: Payload::Chunk(chunk) },
                Err(error) => {
                    // Damaged on its way: next time it is asked for.
                    cx.incoming.remove(chunk.id);
                    let outcome = Outcome::NoContent { reason: error.to_string() };
                    let event = Event::Applied { node, outcome };
                    if cx.inputs.blocking_send(Input::Event(event)).is_err() {
                        return;
                    }
                    continue;
                }
            },
        };
        if pool.send(job).is_err() {
            // The folder is gone; the pool tells.
            return;
        }
    }
}
