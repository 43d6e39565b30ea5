//! The thread between the core and the pool that writes to the folder: it unpacks small contents,
//! so that this goes on beside the writing, and waits in the core's place while the pool is busy.

use std::sync::Arc;
use std::sync::mpsc::SyncSender;
use std::thread::JoinHandle;

use super::line::Line;
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

/// The thread, and the way to it.
#[derive(Debug)]
pub(super) struct Preparer {
    /// As many as the engine has disk operations under way, at most.
    line: Arc<Line<Prepared>>,
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

    /// Hands operations over; never waits.
    pub(super) fn put(&self, jobs: &mut Vec<Prepared>) {
        self.line.put(jobs);
    }
}

impl Drop for Preparer {
    /// Drops what waits, and waits for what is being handed over.
    fn drop(&mut self) {
        self.line.close();
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            tracing::error!("the thread that prepares operations ended by a fault in the program");
        }
    }
}

fn run(cx: &Context, line: &Line<Prepared>, pool: &SyncSender<Job>) {
    while let Some(next) = line.next(|_| true, || ()) {
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
