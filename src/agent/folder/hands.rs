//! The threads that look at the disk and read files for the engine.

use std::collections::VecDeque;
use std::os::fd::AsFd as _;
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread::JoinHandle;

use super::{Context, Input};
use crate::agent::ignore::Ignore;
use crate::agent::watch::{Watched, Watcher};
use crate::content::Chunker;
use crate::engine::folder::FolderGone;
use crate::engine::seam::{DirRef, Event, Hashed, Look, Spot, Stat};
use crate::model::{Content, Name, NodeId};

/// How many there are. Only the first reads large files, so that a look never waits for one.
const HANDS: usize = 2;

/// What counts as large, in bytes.
const LARGE_LEN: u64 = 4 * 1024 * 1024;

/// What there is to do.
#[derive(Debug)]
pub(super) enum Task {
    Look { dir: DirRef, names: Option<Vec<Name>> },
    Hash { node: NodeId, at: Spot, stat: Stat },
}

impl Task {
    const fn is_large(&self) -> bool {
        matches!(self, Self::Hash { stat, .. } if stat.size > LARGE_LEN)
    }
}

#[derive(Debug, Default)]
struct Queue {
    /// As many as the engine has looks and hashes under way, at most.
    tasks: VecDeque<Task>,
    is_closed: bool,
}

#[derive(Debug, Default)]
struct Line {
    queue: Mutex<Queue>,
    filled: Condvar,
}

/// The threads, and the way to them.
#[derive(Debug)]
pub(super) struct Hands {
    line: Arc<Line>,
    threads: Vec<JoinHandle<()>>,
}

impl Hands {
    /// Begins.
    ///
    /// # Errors
    /// When there can be no further thread.
    pub(super) fn start(
        cx: &Arc<Context>,
        ignore: &Arc<Ignore>,
        watcher: &Arc<dyn Watcher>,
    ) -> std::io::Result<Self> {
        let mut hands = Self { line: Arc::new(Line::default()), threads: Vec::new() };
        for index in 0..HANDS {
            let worker = Worker {
                cx: Arc::clone(cx),
                ignore: Arc::clone(ignore),
                watcher: Arc::clone(watcher),
                line: Arc::clone(&hands.line),
                takes_large: index == 0,
                chunker: Chunker::new(),
            };
            let thread = std::thread::Builder::new()
                .name("picloud-look".into())
                .spawn(move || worker.run())?;
            hands.threads.push(thread);
        }
        Ok(hands)
    }

    /// Hands a task over; never waits.
    pub(super) fn push(&self, task: Task) {
        let mut queue = self.line.queue.lock().unwrap_or_else(PoisonError::into_inner);
        queue.tasks.push_back(task);
        drop(queue);
        // All: the one that wakes may not be the one that takes large files.
        self.line.filled.notify_all();
    }
}

impl Drop for Hands {
    /// Drops what waits, and waits for what is being done.
    fn drop(&mut self) {
        let mut queue = self.line.queue.lock().unwrap_or_else(PoisonError::into_inner);
        queue.is_closed = true;
        queue.tasks.clear();
        drop(queue);
        self.line.filled.notify_all();
        for thread in self.threads.drain(..) {
            if thread.join().is_err() {
                tracing::error!("a thread that reads the folder ended by a fault in the program");
            }
        }
    }
}

struct Worker {
    cx: Arc<Context>,
    ignore: Arc<Ignore>,
    watcher: Arc<dyn Watcher>,
    line: Arc<Line>,
    takes_large: bool,
    chunker: Chunker,
}

impl Worker {
    fn run(mut self) {
        while let Some(task) = self.next() {
            let input = match task {
                Task::Look { dir, names } => match self.look(&dir, names.as_deref()) {
                    Ok(look) => Input::Event(Event::Looked { dir: dir.id, names, look }),
                    Err(gone) => Input::Gone(gone.to_string()),
                },
                Task::Hash { node, at, stat } => {
                    Input::Event(Event::Hashed { node, hashed: self.hash(&at, &stat) })
                }
            };
            if self.cx.inputs.blocking_send(input).is_err() {
                return;
            }
        }
    }

    fn next(&self) -> Option<Task> {
        let mut queue = self.line.queue.lock().unwrap_or_else(PoisonError::into_inner);
        loop {
            if queue.is_closed {
                return None;
            }
            let found = if self.takes_large {
                (!queue.tasks.is_empty()).then_some(0)
            } else {
                queue.tasks.iter().position(|task| !task.is_large())
            };
            if let Some(task) = found.and_then(|index| queue.tasks.remove(index)) {
                return Some(task);
            }
            queue = self.line.filled.wait(queue).unwrap_or_else(PoisonError::into_inner);
        }
    }

    fn look(&self, dir: &DirRef, names: Option<&[Name]>) -> Result<Look, FolderGone> {
        match self.cx.folder.open_for_look(dir)? {
            Ok(open) => {
                if names.is_none() {
                    // Before the listing, so that nothing can come in between unnoticed.
                    match self.watcher.watch(dir.id, open.as_fd()) {
                        Watched::Yes | Watched::Polled => self.cx.no_trouble(&dir.path),
                        Watched::No(reason) => self.cx.trouble(
                            &dir.path,
                            format!("This directory cannot be watched, only looked at now and then: {reason}"),
                        ),
                    }
                }
                open.look(names, &self.ignore)
            }
            Err(look) => Ok(look),
        }
    }

    fn hash(&mut self, at: &Spot, stat: &Stat) -> Hashed {
        let read = self.cx.folder.hash(at, stat, &mut self.chunker, |_, _| {});
        if let Some(list) = &read.list {
            self.cx.lists.put(list.id(), list);
        }
        if let (Hashed::Content { content, .. }, Some(bytes)) = (&read.hashed, read.small)
            && let Content::Chunk { id, .. } = content
        {
            self.cx.outgoing.put(*id, bytes.len(), Arc::new(bytes));
        }
        read.hashed
    }
}
