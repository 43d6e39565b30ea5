//! The writes of one connection, in the order in which they were sent.
//!
//! Contents are unpacked and verified on several threads at once, ahead of their turn; then the lane
//! hands each write to the writer in its turn and waits for the answers aside. So a hundred commits
//! are on their way at once, and are applied in order all the same.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::sync::Arc;

use tokio::sync::mpsc;
use tokio::task::{JoinHandle, JoinSet};

use super::deltas;
use super::outbox::Outbox;
use super::own::OwnRevs;
use super::shared::Shared;
use super::{Permit, log_fault};
use crate::content;
use crate::model::{ChunkData, ChunkId, ContentList, DriveId, Extent, ListId};
use crate::protocol::IncomingFrame;
use crate::protocol::limits::{BATCH_COUNT_MAX, IDS_MAX, LIST_LEN_MAX, LIST_PART_LEN_MAX};
use crate::protocol::message::{
    ChangeResult, Commit, Committed, Done, FailureCode, Message, PutChunks, PutDeltas, PutList,
    PutSplice,
};
use crate::server::accounts;
use crate::server::clock::now_ms;
use crate::server::packs::{Record, RecordKind};
use crate::server::store::metadata::{Asked, Author, Result};
use crate::server::store::{Contents, StoreError};

/// One write request that waits for its turn.
pub struct Write {
    /// The request's id.
    pub request: u32,
    /// The drive's number.
    pub drive: i64,
    /// What it is, being verified.
    pub prepared: JoinHandle<Result<Prepared>>,
    /// Where the revs of a commit are noted, when the connection is subscribed to the drive.
    pub own: Option<Arc<OwnRevs>>,
    /// Held until it is answered.
    pub permit: Permit,
}

/// A write whose contents are what they claim to be.
pub enum Prepared {
    Commit(Commit, Vec<Record>),
    Chunks(Vec<Record>),
    List(PutList),
    /// A list that was put as a splice: its id and its encoding.
    Spliced(ListId, Vec<u8>),
}

/// Returns the drive that a write request is for, without keeping what it brings.
pub fn decode_drive(frame: &IncomingFrame) -> Result<DriveId> {
    /// Any of them: unknown fields are skipped.
    #[derive(serde::Deserialize)]
    struct Head {
        drive: DriveId,
    }
    frame
        .decode_fields::<Head>()
        .map(|head| head.drive)
        .map_err(|error| malformed(error.to_string()))
}

pub fn malformed(reason: impl Into<String>) -> StoreError {
    StoreError::request(FailureCode::Malformed, reason)
}

/// Decodes and verifies a write request on a blocking thread.
pub fn prepare(
    shared: &Arc<Shared>,
    drive: i64,
    frame: IncomingFrame,
) -> JoinHandle<Result<Prepared>> {
    let shared = Arc::clone(shared);
    tokio::spawn(async move {
        let _permit = shared.verifying.acquire().await.map_err(|_| StoreError::Closed)?;
        match frame.kind {
            PutDeltas::KIND => return deltas::undo(&shared, drive, super::decode(&frame)?).await,
            PutSplice::KIND => {
                return deltas::unsplice(&shared, drive, super::decode(&frame)?).await;
            }
            _ => {}
        }
        let work = move || match frame.kind {
            Commit::KIND => {
                let mut commit: Commit = super::decode(&frame)?;
                if commit.changes.len() > BATCH_COUNT_MAX {
                    return Err(StoreError::request(
                        FailureCode::TooLarge,
                        format!("A commit has at most {BATCH_COUNT_MAX} changes"),
                    ));
                }
                let chunks = verify(std::mem::take(&mut commit.chunks))?;
                Ok(Prepared::Commit(commit, chunks))
            }
            PutChunks::KIND => {
                let put: PutChunks = super::decode(&frame)?;
                verify(put.chunks).map(Prepared::Chunks)
            }
            _ => {
                let put: PutList = super::decode(&frame)?;
                if put.data.len() > LIST_PART_LEN_MAX {
                    return Err(StoreError::request(
                        FailureCode::TooLarge,
                        format!("A piece of a list has at most {LIST_PART_LEN_MAX} bytes"),
                    ));
                }
                Ok(Prepared::List(put))
            }
        };
        tokio::task::spawn_blocking(work).await.map_err(|_| StoreError::Closed)?
    })
}

fn verify(chunks: Vec<ChunkData>) -> Result<Vec<Record>> {
    if chunks.len() > IDS_MAX {
        return Err(StoreError::request(
            FailureCode::TooLarge,
            format!("A request brings at most {IDS_MAX} chunks"),
        ));
    }
    chunks
        .into_iter()
        .map(|chunk| {
            content::unpack(&chunk).map_err(|error| malformed(error.to_string()))?;
            Ok(record(chunk))
        })
        .collect()
}

/// Returns what is stored of a chunk that was verified.
pub fn record(chunk: ChunkData) -> Record {
    Record {
        kind: RecordKind::Chunk,
        codec: chunk.codec.into(),
        plain_len: chunk.plain_len,
        id: *chunk.id.as_bytes(),
        data: Arc::new(chunk.data),
    }
}

/// A content list of several pieces on its way in, kept in a file that has no name.
struct ListUpload {
    drive: i64,
    list: ListId,
    file: File,
    len: u64,
}

/// Works off the writes of one connection until the queue ends.
pub async fn run(
    shared: Arc<Shared>,
    outbox: Outbox,
    author: Author,
    mut queue: mpsc::Receiver<Write>,
) {
    let mut lane = Lane { shared, outbox, author, answers: JoinSet::new(), upload: None };
    while let Some(write) = queue.recv().await {
        // Finished answers are dropped as we go, so that the set stays small.
        while lane.answers.try_join_next().is_some() {}
        let (request, permit) = (write.request, write.permit);
        let outcome = match write.prepared.await {
            Ok(Ok(prepared)) => {
                let turn = Turn { request, drive: write.drive, own: write.own, permit };
                lane.take(turn, prepared).await
            }
            Ok(Err(error)) => Err((error, permit)),
            Err(_) => Err((StoreError::Closed, permit)),
        };
        if let Err((error, _permit)) = outcome {
            log_fault(&error);
            lane.outbox.fail(request, &error).await;
        }
    }
    // What was handed to the writer is answered, or at least settled, before the connection ends.
    while lane.answers.join_next().await.is_some() {}
}

struct Lane {
    shared: Arc<Shared>,
    outbox: Outbox,
    author: Author,
    answers: JoinSet<()>,
    upload: Option<ListUpload>,
}

struct Turn {
    request: u32,
    drive: i64,
    own: Option<Arc<OwnRevs>>,
    permit: Permit,
}

type Failed = (StoreError, Permit);

impl Lane {
    async fn take(&mut self, turn: Turn, prepared: Prepared) -> std::result::Result<(), Failed> {
        match prepared {
            Prepared::Commit(commit, chunks) => self.commit(turn, commit, chunks).await,
            Prepared::Chunks(chunks) => {
                let contents = Contents { drive: turn.drive, chunks, list: None };
                self.put(turn, contents).await
            }
            Prepared::List(put) => match self.gather(turn.drive, put).await {
                Ok(Some(whole)) => self.put_list(turn, whole).await,
                Ok(None) => {
                    self.outbox.reply(turn.request, &Done {}).await;
                    Ok(())
                }
                Err(error) => Err((error, turn.permit)),
            },
            Prepared::Spliced(list, bytes) => {
                self.put_list(turn, Whole { list, part: Part::Bytes(bytes) }).await
            }
        }
    }

    async fn commit(
        &mut self,
        turn: Turn,
        commit: Commit,
        chunks: Vec<Record>,
    ) -> std::result::Result<(), Failed> {
        let Turn { request, drive, own, permit } = turn;
        let contents = Contents { drive, chunks, list: None };
        self.count_received(&contents);
        let (author, bounds) = (self.author, self.shared.config.bounds());
        // Set by the work, read when it is done: both on the writer's thread.
        let before = Arc::new(std::sync::OnceLock::new());
        let (before_in_work, before_in_done) = (Arc::clone(&before), before);
        let (own_in_work, own_in_done) = (own.clone(), own.clone());
        let hub = Arc::clone(&self.shared.hub);
        let hub_in_work = Arc::clone(&hub);
        let submitted = self
            .shared
            .store
            .submit(
                contents,
                move |metadata| {
                    if let Some(turn) = own_in_work.as_ref().and_then(|own| own.turn)
                        && !hub_in_work.has_turn(author.num, drive, turn)
                    {
                        let reason = "A newer connection of this device has taken over";
                        return Err(StoreError::request(FailureCode::Unavailable, reason));
                    }
                    let asked = Asked {
                        changes: &commit.changes,
                        deletions: commit.deletions,
                        now_ms: now_ms(),
                    };
                    let applied = metadata.apply(drive, author, &asked, &bounds)?;
                    if applied.head > applied.before
                        && let Some(own) = own_in_work
                    {
                        own.add(applied.before, applied.head);
                        before_in_work.set(applied.before).unwrap_or_default();
                    }
                    Ok(applied)
                },
                move |outcome| match outcome {
                    Ok(applied) => {
                        if applied.head > applied.before {
                            hub.publish(drive, applied.head);
                        }
                        if applied.held_changed {
                            hub.publish_held(drive);
                        }
                        if applied.spent.is_new {
                            hub.publish_usage(applied.spent.owner, applied.spent.usage);
                        }
                    }
                    Err(_) => {
                        if let (Some(own), Some(before)) = (own_in_done, before_in_done.get()) {
                            own.remove(*before);
                        }
                    }
                },
            )
            .await;
        let reply = match submitted {
            Ok(reply) => reply,
            Err(error) => return Err((error, permit)),
        };
        let outbox = self.outbox.clone();
        let shared = Arc::clone(&self.shared);
        self.answers.spawn(async move {
            let _permit = permit;
            let applied = match reply.await.unwrap_or(Err(StoreError::Closed)) {
                Ok(applied) => applied,
                Err(error) => {
                    log_fault(&error);
                    shared.metrics.committed(Err(()));
                    return outbox.fail(request, &error).await;
                }
            };
            let revs = applied.head.0.saturating_sub(applied.before.0);
            shared.metrics.committed(Ok((&applied.results, revs)));
            log_refusals(&applied.results);
            if applied.held_changed {
                tracing::info!("what is held of this device's deletions has changed");
            }
            let usage = Some(applied.spent.usage);
            let committed = Committed { results: applied.results, head: applied.head, usage };
            outbox.reply(request, &committed).await;
            if let Some(own) = own.filter(|_| applied.head > applied.before) {
                own.answered(applied.before);
            }
        });
        Ok(())
    }

    fn count_received(&self, contents: &Contents) {
        let len = contents.chunks.iter().map(|chunk| chunk.data.len()).sum();
        self.shared.metrics.received(contents.chunks.len(), len);
    }

    async fn put(&mut self, turn: Turn, contents: Contents) -> std::result::Result<(), Failed> {
        self.count_received(&contents);
        let submitted = self.shared.store.submit(contents, |_| Ok(()), |_| ()).await;
        let reply = match submitted {
            Ok(reply) => reply,
            Err(error) => return Err((error, turn.permit)),
        };
        let outbox = self.outbox.clone();
        self.answers.spawn(async move {
            let _permit = turn.permit;
            match reply.await.unwrap_or(Err(StoreError::Closed)) {
                Ok(()) => outbox.reply(turn.request, &Done {}).await,
                Err(error) => {
                    log_fault(&error);
                    outbox.fail(turn.request, &error).await;
                }
            }
        });
        Ok(())
    }

    async fn put_list(&mut self, turn: Turn, whole: Whole) -> std::result::Result<(), Failed> {
        let drive = turn.drive;
        // The chunks that were sent before the list must be in the drive when it is checked.
        while self.answers.join_next().await.is_some() {}
        match self.check_list(drive, whole).await {
            Ok((record, file_len)) => {
                let contents =
                    Contents { drive, chunks: Vec::new(), list: Some((record, file_len)) };
                self.put(turn, contents).await
            }
            Err(error) => Err((error, turn.permit)),
        }
    }

    /// Adds a piece; returns the whole once the last one is there.
    async fn gather(&mut self, drive: i64, put: PutList) -> Result<Option<Whole>> {
        if put.offset == 0 {
            self.upload = None;
            if put.last {
                return Ok(Some(Whole { list: put.list, part: Part::Bytes(put.data) }));
            }
            self.upload = Some(ListUpload {
                drive,
                list: put.list,
                file: self.nameless_file().await?,
                len: 0,
            });
        }
        let upload = self
            .upload
            .take()
            .filter(|upload| {
                (upload.drive, upload.list, upload.len) == (drive, put.list, put.offset)
            })
            .ok_or_else(|| malformed("A piece of a list does not follow the one before it"))?;
        let len = upload.len + put.data.len() as u64;
        if len > LIST_LEN_MAX as u64 {
            return Err(StoreError::request(
                FailureCode::TooLarge,
                format!("A content list has at most {LIST_LEN_MAX} bytes"),
            ));
        }
        let dir = self.shared.layout.dir().to_owned();
        let write = move || {
            upload
                .file
                .write_all_at(&put.data, upload.len)
                .map_err(StoreError::file("write a content list in", &dir))?;
            Ok::<_, StoreError>(ListUpload { len, ..upload })
        };
        let upload = tokio::task::spawn_blocking(write).await.map_err(|_| StoreError::Closed)??;
        if put.last {
            let ListUpload { list, file, .. } = upload;
            let part = Part::File(file, len);
            return Ok(Some(Whole { list, part }));
        }
        self.upload = Some(upload);
        Ok(None)
    }

    async fn nameless_file(&self) -> Result<File> {
        let dir = self.shared.layout.dir().to_owned();
        let open = move || {
            let suffix: [u8; 8] = accounts::random()?;
            let path = dir.join(format!("upload-{:016x}.tmp", u64::from_be_bytes(suffix)));
            let file = File::options()
                .read(true)
                .write(true)
                .create_new(true)
                .open(&path)
                .map_err(StoreError::file("create", &path))?;
            std::fs::remove_file(&path).map_err(StoreError::file("remove", &path))?;
            Ok(file)
        };
        tokio::task::spawn_blocking(open).await.map_err(|_| StoreError::Closed)?
    }

    /// Checks that a list is what its id says, and that the drive has all its chunks, with the
    /// lengths that the list claims.
    async fn check_list(&self, drive: i64, whole: Whole) -> Result<(Record, u64)> {
        let len = match &whole.part {
            Part::Bytes(bytes) => bytes.len() as u64,
            Part::File(_, len) => *len,
        };
        // A long list and its decoded form take a hundred megabytes or more: one at a time. Not out of
        // the users' memory, which requests that wait behind this one may hold.
        let _permit = if len > LIST_PART_LEN_MAX as u64 {
            let permit = self.shared.long_lists.acquire().await;
            Some(permit.map_err(|_| StoreError::Closed)?)
        } else {
            None
        };
        self.shared
            .store
            .read(move |metadata, _| {
                let encoded = match whole.part {
                    Part::Bytes(bytes) => bytes,
                    Part::File(file, len) => {
                        let mut bytes = vec![0; usize::try_from(len).unwrap_or(0)];
                        let path = std::path::Path::new("a content list");
                        file.read_exact_at(&mut bytes, 0)
                            .map_err(StoreError::file("read back", path))?;
                        bytes
                    }
                };
                if ContentList::id_of_encoded(&encoded) != whole.list {
                    return Err(malformed("A content list is not the one its id names"));
                }
                let list =
                    ContentList::decode(&encoded).map_err(|error| malformed(error.to_string()))?;
                let mut last: Option<(ChunkId, u32)> = None;
                for extent in list.extents() {
                    let Extent::Chunk { id, len } = extent else {
                        continue;
                    };
                    if last == Some((*id, *len)) {
                        continue;
                    }
                    match metadata.chunk(drive, *id)? {
                        Some(chunk) if chunk.plain_len == *len => last = Some((*id, *len)),
                        Some(_) => {
                            return Err(malformed(format!(
                                "A content list claims a wrong length of chunk {id}"
                            )));
                        }
                        None => {
                            return Err(StoreError::request(
                                FailureCode::NotFound,
                                format!("The drive lacks chunk {id} of a content list"),
                            ));
                        }
                    }
                }
                let plain_len = u32::try_from(encoded.len())
                    .map_err(|_| malformed("A content list is too long"))?;
                let record = Record {
                    kind: RecordKind::List,
                    codec: 0,
                    plain_len,
                    id: *whole.list.as_bytes(),
                    data: Arc::new(encoded),
                };
                Ok((record, list.len()))
            })
            .await
    }
}

struct Whole {
    list: ListId,
    part: Part,
}

enum Part {
    Bytes(Vec<u8>),
    File(File, u64),
}

/// Illegal changes are never asked for by an honest device: they are told once per commit.
fn log_refusals(results: &[ChangeResult]) {
    let mut illegal = results.iter().filter_map(|result| match result {
        ChangeResult::Refused(refusal @ crate::model::Refusal::Illegal { .. }) => Some(refusal),
        _ => None,
    });
    if let Some(first) = illegal.next() {
        tracing::warn!(count = illegal.count() + 1, first = %first, "illegal changes refused");
    }
}
