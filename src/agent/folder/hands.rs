//! The threads that look at the disk and read files for the engine.

use std::os::fd::AsFd as _;
use std::sync::Arc;
use std::thread::JoinHandle;

use super::line::Line;
use super::{Context, Input};
use crate::agent::disk::LastDir;
use crate::agent::ignore::Ignore;
use crate::agent::watch::{Watched, Watcher};
use crate::content::Chunker;
use crate::engine::folder::{Folder as _, FolderGone};
use crate::engine::seam::{DirRef, Event, Hashed, Look, Spot, Stat};
use crate::model::{Content, Name, NodeId};

/// How many there are. Only the first reads large files, so that a look never waits for one.
const HANDS: usize = 2;

/// What counts as large, in bytes.
const LARGE_LEN: u64 = 4 * 1024 * 1024;

/// What there is to do.
#[derive(Debug)]
pub(super) enum Task {
    Look {
        dir: DirRef,
        names: Option<Vec<Name>>,
    },
    Hash {
        node: NodeId,
        at: Spot,
        stat: Stat,
    },
    /// See whether the folder is still there.
    Check,
}

impl Task {
    const fn is_large(&self) -> bool {
        matches!(self, Self::Hash { stat, .. } if stat.size > LARGE_LEN)
    }
}

/// The threads, and the way to them.
#[derive(Debug)]
pub(super) struct Hands {
    /// As many as the engine has looks and hashes under way, at most.
    line: Arc<Line<Task>>,
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
                dir: LastDir::default(),
            };
            let thread = std::thread::Builder::new()
                .name("picloud-look".into())
                .spawn(move || worker.run())?;
            hands.threads.push(thread);
        }
        Ok(hands)
    }

    /// Hands tasks over; never waits.
    pub(super) fn put(&self, tasks: &mut Vec<Task>) {
        self.line.put(tasks);
    }
}

impl Drop for Hands {
    /// Drops what waits, and waits for what is being done.
    fn drop(&mut self) {
        self.line.close();
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
    line: Arc<Line<Task>>,
    takes_large: bool,
    chunker: Chunker,
    /// Where it read last.
    dir: LastDir,
}

impl Worker {
    fn run(mut self) {
        while let Some(task) = self.next() {
            let input = match task {
                Task::Look { dir, names } => match self.look(&dir, names.as_deref()) {
                    Ok(look) => Input::Event(Event::Looked { dir: dir.id, names, look }),
                    Err(gone) => Input::Gone(gone.to_string()),
                },
                Task::Check => match self.cx.folder.check() {
                    Ok(()) => continue,
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

    fn next(&mut self) -> Option<Task> {
        let takes_large = self.takes_large;
        // What nobody reads in may be unmounted.
        self.line.next(|task| takes_large || !task.is_large(), || self.dir.close())
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
        let read = self.cx.folder.hash_in(&mut self.dir, at, stat, &mut self.chunker, |_, _| {});
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
