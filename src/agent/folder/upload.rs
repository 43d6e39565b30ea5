//! Bringing larger contents to the server before the change that needs them.
//!
//! A file is read again by its extents, each checked against its hash, so that what was hashed is
//! what is sent, whoever writes to the file meanwhile. Only chunks that the drive lacks travel.

use std::collections::HashSet;
use std::sync::Arc;

use tokio::sync::{Mutex, Semaphore, mpsc};
use tokio::task::JoinSet;

use super::{Context, Input, Session};
use crate::agent::disk::OpenFile;
use crate::content::{Chunker, pack};
use crate::engine::folder::Fault;
use crate::engine::seam::{Expected, Spot, Uploaded};
use crate::model::{ChunkData, ChunkId, Content, ContentList, Extent, ListId, NodeId};
use crate::protocol::CallError;
use crate::protocol::limits::{BATCH_LEN_MAX, IDS_MAX, LIST_PART_LEN_MAX};
use crate::protocol::message::{FailureCode, FindMissing, HasList, PutChunks, PutList};

/// Uploads that wait: more than the engine has under way.
pub(super) const JOBS_MAX: usize = 64;

/// Files uploaded at once.
const FILES_MAX: usize = 8;

/// Batches of chunks read, packed or under way at once, of all files together; each at most 2 MiB.
const BATCHES_MAX: usize = 6;

/// An upload of the engine's.
#[derive(Debug)]
pub(in crate::agent) struct Job {
    pub node: NodeId,
    pub at: Spot,
    pub expected: Expected,
}

/// Why an upload ended early.
enum Stop {
    Uploaded(Uploaded),
    Call(CallError),
}

impl From<CallError> for Stop {
    fn from(error: CallError) -> Self {
        Self::Call(error)
    }
}

impl From<Fault> for Stop {
    fn from(fault: Fault) -> Self {
        Self::Uploaded(match fault {
            Fault::NotFound | Fault::Changed | Fault::Gone(_) => Uploaded::Changed,
            fault => Uploaded::Later { reason: fault.to_string() },
        })
    }
}

/// Serves the uploads of a session until it ends.
pub(super) async fn run(cx: Arc<Context>, session: Session, mut jobs: mpsc::Receiver<Job>) {
    let batches = Arc::new(Semaphore::new(BATCHES_MAX));
    let list_turn = Arc::new(Mutex::new(()));
    let mut files = JoinSet::new();
    loop {
        tokio::select! {
            job = jobs.recv(), if files.len() < FILES_MAX => {
                let Some(job) = job else { return };
                let upload = Upload {
                    cx: Arc::clone(&cx),
                    session: session.clone(),
                    batches: Arc::clone(&batches),
                    list_turn: Arc::clone(&list_turn),
                };
                files.spawn(upload.run(job));
            }
            Some(_) = files.join_next() => {}
        }
    }
}

#[derive(Clone)]
struct Upload {
    cx: Arc<Context>,
    session: Session,
    batches: Arc<Semaphore>,
    /// Held while a list is put: the pieces of two would mix on the connection.
    list_turn: Arc<Mutex<()>>,
}

impl Upload {
    async fn run(self, job: Job) {
        let uploaded = match self.upload(&job).await {
            Ok(()) => Uploaded::Done,
            Err(Stop::Uploaded(uploaded)) => uploaded,
            Err(Stop::Call(CallError::Failed(failure)))
                if failure.code != FailureCode::Malformed =>
            {
                Uploaded::Later { reason: failure.message }
            }
            Err(Stop::Call(error)) => {
                // The engine hears of it by the connection's end.
                tracing::debug!(%error, "an upload broke off");
                self.session.bulk.close();
                return;
            }
        };
        let input = Input::Uploaded { session: self.session.number, node: job.node, uploaded };
        // The core ended, and the session with it.
        self.cx.inputs.send(input).await.ok();
    }

    async fn upload(&self, job: &Job) -> Result<(), Stop> {
        let changed = || Stop::Uploaded(Uploaded::Changed);
        let open = {
            let (cx, at, stat) = (Arc::clone(&self.cx), job.at.clone(), job.expected.stat);
            blocking(move || cx.folder.open_file(&at, &stat)).await??
        };
        let file = Arc::new(open);
        match job.expected.content {
            None => Err(changed()),
            Some(Content::Empty) => Ok(()),
            Some(Content::Chunk { id, len }) => self.put_missing(&file, vec![(0, id, len)]).await,
            Some(Content::List { id, .. }) => {
                let drive = self.cx.drive;
                let has = self.session.bulk.call(&HasList { drive, list: id }).await?;
                if has.present {
                    return Ok(());
                }
                let list = self.list(id, job).await?.ok_or_else(changed)?;
                self.put_list_chunks(&file, &list).await?;
                self.put_list(id, &list).await
            }
        }
    }

    /// Returns the list of the file, reading the file once more if it is not at hand.
    async fn list(&self, id: ListId, job: &Job) -> Result<Option<ContentList>, Stop> {
        let (cx, at, stat) = (Arc::clone(&self.cx), job.at.clone(), job.expected.stat);
        blocking(move || {
            cx.lists.get(id).or_else(|| {
                let read = cx.folder.hash(&at, &stat, &mut Chunker::new(), |_, _| {});
                let list = read.list.filter(|list| list.id() == id)?;
                cx.lists.put(id, &list);
                Some(list)
            })
        })
        .await
    }

    async fn put_list_chunks(&self, file: &Arc<OpenFile>, list: &ContentList) -> Result<(), Stop> {
        let mut asked = HashSet::new();
        let mut wanted = Vec::new();
        let mut offset = 0;
        for extent in list.extents() {
            if let Extent::Chunk { id, len } = extent
                && asked.insert(*id)
            {
                wanted.push((offset, *id, *len));
                if wanted.len() == IDS_MAX {
                    self.put_missing(file, std::mem::take(&mut wanted)).await?;
                }
            }
            offset += extent.len();
        }
        self.put_missing(file, wanted).await
    }

    /// Puts those of the chunks, given with their offsets, that the drive lacks.
    async fn put_missing(
        &self,
        file: &Arc<OpenFile>,
        chunks: Vec<(u64, ChunkId, u32)>,
    ) -> Result<(), Stop> {
        if chunks.is_empty() {
            return Ok(());
        }
        let find = FindMissing {
            drive: self.cx.drive,
            chunks: chunks.iter().map(|(_, id, _)| *id).collect(),
        };
        let missing: HashSet<ChunkId> =
            self.session.bulk.call(&find).await?.chunks.into_iter().collect();
        let mut puts = JoinSet::new();
        let mut batch = Vec::new();
        let mut len = 0;
        for chunk in chunks.into_iter().filter(|(_, id, _)| missing.contains(id)) {
            len += chunk.2 as usize;
            batch.push(chunk);
            if len >= BATCH_LEN_MAX {
                len = 0;
                self.put(file, std::mem::take(&mut batch), &mut puts).await?;
            }
        }
        if !batch.is_empty() {
            self.put(file, batch, &mut puts).await?;
        }
        while let Some(put) = puts.join_next().await {
            finished(put)?;
        }
        Ok(())
    }

    /// Begins to put a batch, once there is room for one more; takes in what became of earlier ones.
    async fn put(
        &self,
        file: &Arc<OpenFile>,
        batch: Vec<(u64, ChunkId, u32)>,
        puts: &mut JoinSet<Result<(), Stop>>,
    ) -> Result<(), Stop> {
        while let Some(put) = puts.try_join_next() {
            finished(put)?;
        }
        let Ok(permit) = Arc::clone(&self.batches).acquire_owned().await else {
            return Ok(());
        };
        let (this, file) = (self.clone(), Arc::clone(file));
        puts.spawn(async move {
            let _permit = permit;
            let chunks = blocking(move || read(&file, &batch)).await??;
            let len: usize = chunks.iter().map(|chunk| chunk.data.len()).sum();
            this.cx.rates.up.pass(len as u64).await;
            let drive = this.cx.drive;
            this.session.bulk.call(&PutChunks { drive, chunks }).await?;
            Ok(())
        });
        Ok(())
    }

    async fn put_list(&self, id: ListId, list: &ContentList) -> Result<(), Stop> {
        let encoded = list.encode();
        let _turn = self.list_turn.lock().await;
        let parts = encoded.chunks(LIST_PART_LEN_MAX);
        let count = parts.len();
        let mut replies = Vec::with_capacity(count);
        let mut offset = 0;
        for (index, part) in parts.enumerate() {
            let piece = PutList {
                drive: self.cx.drive,
                list: id,
                offset,
                last: index + 1 == count,
                data: part.to_vec(),
            };
            self.cx.rates.up.pass(part.len() as u64).await;
            offset += part.len() as u64;
            replies.push(self.session.bulk.send(&piece).await?);
            if replies.len() >= 4 {
                replies.remove(0).reply().await?;
            }
        }
        for reply in replies {
            reply.reply().await?;
        }
        Ok(())
    }
}

fn finished(put: Result<Result<(), Stop>, tokio::task::JoinError>) -> Result<(), Stop> {
    put.unwrap_or_else(|error| {
        Err(Stop::Uploaded(Uploaded::Later {
            reason: format!("An upload ended by a fault in the program: {error}"),
        }))
    })
}

/// Reads and packs chunks. Blocks on the disk.
fn read(file: &OpenFile, batch: &[(u64, ChunkId, u32)]) -> Result<Vec<ChunkData>, Stop> {
    batch
        .iter()
        .map(|(offset, id, len)| {
            let bytes = file.read_chunk_at(*offset, id, *len)?;
            let bytes = bytes.ok_or(Stop::Uploaded(Uploaded::Changed))?;
            Ok(pack(*id, &bytes))
        })
        .collect()
}

async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> Result<T, Stop> {
    tokio::task::spawn_blocking(work).await.map_err(|error| {
        Stop::Uploaded(Uploaded::Later {
            reason: format!("An upload ended by a fault in the program: {error}"),
        })
    })
}
