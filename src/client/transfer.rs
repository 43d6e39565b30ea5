//! Moving the contents of files: the bulk half of every client, the agent's included.
//!
//! Uploading divides a source in one pass, asks which chunks the drive lacks, and puts only those;
//! downloading fetches what the target does not have already and checks every byte. Both are
//! pipelined, and hold a bounded number of bytes whatever the size of the file: about
//! `GROUP_LEN` × `GROUPS_MAX` on the way. Reading, hashing, packing and writing happen on
//! blocking threads.

use std::collections::{HashMap, HashSet, VecDeque};
use std::fmt;
use std::fs::File;
use std::future::Future;
use std::io::{self, Read};
use std::pin::Pin;
use std::sync::Arc;

use tokio::sync::{Mutex, mpsc};
use tokio::task::{JoinError, spawn_blocking};

use crate::content::{ChunkError, Chunked, Chunker, UnpackError, pack, unpack};
use crate::model::{
    ChunkData, ChunkId, Content, ContentList, ContentListError, DriveId, Extent, ListId,
};
use crate::protocol::limits::{BATCH_LEN_MAX, IDS_MAX, LIST_LEN_MAX, LIST_PART_LEN_MAX};
use crate::protocol::message::{
    Chunks, FindMissing, GetChunks, GetList, HasList, PutChunks, PutList,
};
use crate::protocol::{CallError, Connection, Pending};

/// Plain bytes that are asked for, or about, together: a reply then always fits its batch.
const GROUP_LEN: usize = BATCH_LEN_MAX;
/// Groups under way at once.
const GROUPS_MAX: usize = 6;
/// Chunks between the thread that reads and the task that sends, and the other way round.
const HANDOVER_MAX: usize = 2;

/// Why a content could not be moved.
#[derive(Debug, thiserror::Error)]
pub enum TransferError {
    /// The server refused, or the connection ended.
    #[error(transparent)]
    Call(#[from] CallError),
    /// Reading the source failed.
    #[error(transparent)]
    Chunk(#[from] ChunkError),
    /// Writing the target failed.
    #[error("Cannot write the content")]
    Target(#[source] io::Error),
    /// What the server sent is damaged.
    #[error(transparent)]
    Damaged(#[from] UnpackError),
    /// A list the server sent is damaged.
    #[error(transparent)]
    DamagedList(#[from] ContentListError),
    /// The server sent something else than was asked for.
    #[error("The server sent another content than it was asked for")]
    Wrong,
    /// The server does not have a chunk that it should have.
    #[error("The server lacks chunk {0}")]
    Absent(ChunkId),
    /// The source is not, or no longer, what it was to be.
    #[error("The file is not what it was when it was looked at")]
    Changed,
    /// A thread of ours failed.
    #[error("The transfer was abandoned")]
    Abandoned,
}

impl From<JoinError> for TransferError {
    fn from(_: JoinError) -> Self {
        Self::Abandoned
    }
}

type Result<T, E = TransferError> = std::result::Result<T, E>;

/// Watches transfers, and may slow them down.
pub trait Meter: Send + Sync {
    /// Waits until this many bytes may cross the network.
    fn pass(&self, bytes: u64) -> Pin<Box<dyn Future<Output = ()> + Send + '_>>;

    /// Counts bytes of a file that are on the other side now, whether they crossed or were there.
    fn moved(&self, bytes: u64);
}

/// Neither counts nor slows down.
#[derive(Debug, Clone, Copy, Default)]
pub struct NoMeter;

impl Meter for NoMeter {
    fn pass(&self, _bytes: u64) -> Pin<Box<dyn Future<Output = ()> + Send + '_>> {
        Box::pin(std::future::ready(()))
    }

    fn moved(&self, _bytes: u64) {}
}

/// Between where contents are moved.
#[derive(Clone)]
pub struct Bulk {
    connection: Connection,
    drive: DriveId,
    meter: Arc<dyn Meter>,
    /// Held while a list of several pieces is put: a connection can put only one at a time.
    putting_list: Arc<Mutex<()>>,
}

impl fmt::Debug for Bulk {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Bulk").field("drive", &self.drive).finish_non_exhaustive()
    }
}

/// What is uploaded.
pub enum Source {
    /// A file from its beginning; holes it has on disk are not read.
    File(File),
    /// A stream to its end.
    Reader(Box<dyn Read + Send>),
}

impl fmt::Debug for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::File(_) => "File",
            Self::Reader(_) => "Reader",
        })
    }
}

/// What an upload came to.
#[derive(Debug)]
pub struct Uploaded {
    /// What the source holds.
    pub chunked: Chunked,
    /// Its only chunk, when it is short enough to travel inside the commit: it was not put.
    pub inline: Option<ChunkData>,
    /// The file, when the source was one, to look at once more.
    pub file: Option<File>,
}

/// Where a content is written. Called on a blocking thread.
pub trait Target: Send + 'static {
    /// Writes those of these extents, which follow each other from offset 0, that this side has
    /// already (having checked them), and returns for each whether it is done. An empty answer
    /// means none.
    ///
    /// # Errors
    /// When writing fails. What cannot be read is simply not done.
    fn prefill(&mut self, extents: &[Extent]) -> io::Result<Vec<bool>> {
        let _ = extents;
        Ok(Vec::new())
    }

    /// Writes checked bytes. Offsets only grow, and the spans between are holes or prefilled.
    ///
    /// # Errors
    /// When writing fails.
    fn write(&mut self, offset: u64, plain: &[u8]) -> io::Result<()>;

    /// Makes sure that this span reads as zeros.
    ///
    /// # Errors
    /// When writing fails.
    fn hole(&mut self, offset: u64, len: u64) -> io::Result<()>;
}

impl Bulk {
    /// Moves contents over this connection, to and from this drive. All who upload over one
    /// connection must use clones of one value (or [`Bulk::on_drive`] of it), since long lists can
    /// only be put one after the other.
    #[must_use]
    pub fn new(connection: Connection, drive: DriveId) -> Self {
        Self { connection, drive, meter: Arc::new(NoMeter), putting_list: Arc::new(Mutex::new(())) }
    }

    /// Moves contents over the same connection, to and from another drive.
    #[must_use]
    pub fn on_drive(&self, drive: DriveId) -> Self {
        let mut bulk = self.clone();
        bulk.drive = drive;
        bulk
    }

    /// Counts and slows down with this meter.
    #[must_use]
    pub fn with_meter(mut self, meter: Arc<dyn Meter>) -> Self {
        self.meter = meter;
        self
    }

    /// Returns whether the drive has the whole content already.
    ///
    /// # Errors
    /// When the server cannot be asked.
    pub async fn is_present(&self, content: &Content) -> Result<bool> {
        match *content {
            Content::Empty => Ok(true),
            Content::Chunk { id, .. } => {
                let drive = self.drive;
                let chunks = vec![id];
                let missing = self.connection.call(&FindMissing { drive, chunks }).await?;
                Ok(missing.chunks.is_empty())
            }
            Content::List { id, .. } => {
                let drive = self.drive;
                let has = self.connection.call(&HasList { drive, list: id }).await?;
                Ok(has.present)
            }
        }
    }

    /// Uploads a source in one pass, so that a commit can name its content afterwards.
    ///
    /// A source that comes to a single chunk of at most `inline_len_max` bytes is not put but
    /// returned, to travel inside the commit.
    ///
    /// # Errors
    /// When the source cannot be read or the server cannot be reached; [`TransferError::Changed`]
    /// when the source is not what is `expected`.
    pub async fn upload(
        &self,
        source: Source,
        expected: Option<Content>,
        inline_len_max: u32,
    ) -> Result<Uploaded> {
        let (chunks, mut incoming) = mpsc::channel(HANDOVER_MAX);
        let reading = spawn_blocking(move || divide(source, &chunks));
        let mut upload = Upload {
            bulk: self,
            group: vec![],
            group_len: 0,
            asked: VecDeque::new(),
            batch: vec![],
            batch_len: 0,
            put: VecDeque::new(),
        };
        while let Some(piece) = incoming.recv().await {
            match piece {
                Piece::Chunk(id, plain) => upload.add(id, plain).await?,
                Piece::Hole(len) => self.meter.moved(len),
            }
        }
        let (chunked, file) = reading.await??;
        if expected.is_some_and(|expected| expected != chunked.content) {
            return Err(TransferError::Changed);
        }
        let inline = match chunked.content {
            Content::Chunk { id, len } if len <= inline_len_max => {
                let (_, plain) = upload.group.pop().ok_or(TransferError::Wrong)?;
                self.meter.moved(u64::from(len));
                Some(spawn_blocking(move || pack(id, plain)).await?)
            }
            _ => {
                upload.finish().await?;
                None
            }
        };
        if let Some(list) = &chunked.list {
            self.put_list(list).await?;
        }
        Ok(Uploaded { chunked, inline, file })
    }

    /// Puts a list whose chunks the drive has.
    ///
    /// # Errors
    /// When the server refuses it or cannot be reached.
    pub async fn put_list(&self, list: &ContentList) -> Result<()> {
        let encoded = list.encode();
        let id = ContentList::id_of_encoded(&encoded);
        let _turn = if encoded.len() > LIST_PART_LEN_MAX {
            Some(self.putting_list.lock().await)
        } else {
            None
        };
        let mut under_way = VecDeque::new();
        for (index, part) in encoded.chunks(LIST_PART_LEN_MAX).enumerate() {
            let offset = index * LIST_PART_LEN_MAX;
            let request = PutList {
                drive: self.drive,
                list: id,
                offset: offset as u64,
                last: offset + part.len() == encoded.len(),
                data: part.to_vec(),
            };
            self.meter.pass(part.len() as u64).await;
            under_way.push_back(self.connection.send(&request).await?);
            if under_way.len() > GROUPS_MAX
                && let Some(first) = under_way.pop_front()
            {
                first.reply().await?;
            }
        }
        for pending in under_way {
            pending.reply().await?;
        }
        Ok(())
    }

    /// Fetches a content list and checks it.
    ///
    /// # Errors
    /// When the server does not have it, it is damaged, or the server cannot be reached.
    pub async fn fetch_list(&self, list: ListId) -> Result<ContentList> {
        let drive = self.drive;
        let mut encoded: Vec<u8> = Vec::new();
        loop {
            let offset = encoded.len() as u64;
            let request = GetList { drive, list, offset };
            let part = self.connection.call(&request).await?;
            self.meter.pass(part.data.len() as u64).await;
            let total = usize::try_from(part.total).unwrap_or(usize::MAX);
            let is_over = total > LIST_LEN_MAX || encoded.len() + part.data.len() > total;
            if part.data.is_empty() || is_over {
                return Err(TransferError::Wrong);
            }
            encoded.extend_from_slice(&part.data);
            if encoded.len() == total {
                break;
            }
        }
        if ContentList::id_of_encoded(&encoded) != list {
            return Err(TransferError::Wrong);
        }
        Ok(ContentList::decode(&encoded)?)
    }

    /// Fetches the list of a content, where it has one, and checks its length.
    async fn list_of(&self, content: &Content) -> Result<Vec<Extent>> {
        match *content {
            Content::Empty => Ok(vec![]),
            Content::Chunk { id, len } => Ok(vec![Extent::Chunk { id, len }]),
            Content::List { id, len } => {
                let list = self.fetch_list(id).await?;
                if list.len() != len {
                    return Err(TransferError::Wrong);
                }
                Ok(list.extents().to_vec())
            }
        }
    }

    /// Fetches a content into a target, and returns the target once all is written to it. Nothing
    /// is made durable.
    ///
    /// # Errors
    /// When the server does not have it, it is damaged, the target fails, or the server cannot be
    /// reached. The target is dropped then.
    pub async fn download<T: Target>(&self, content: &Content, target: T) -> Result<T> {
        let extents = self.list_of(content).await?;
        self.download_extents(extents, target).await
    }

    /// As [`Bulk::download`], for extents that are known already.
    ///
    /// # Errors
    /// As there.
    pub async fn download_extents<T: Target>(
        &self,
        extents: Vec<Extent>,
        mut target: T,
    ) -> Result<T> {
        let (extents, done, target) = spawn_blocking(move || {
            let done = target.prefill(&extents).map_err(TransferError::Target)?;
            Ok::<_, TransferError>((extents, done, target))
        })
        .await??;
        let (pieces, incoming) = mpsc::channel(HANDOVER_MAX);
        let writing = spawn_blocking(move || write_all(target, incoming));
        let mut download =
            Download { bulk: self, pieces, group: vec![], group_len: 0, asked: VecDeque::new() };
        let outcome = download.run(&extents, &done).await;
        drop(download);
        // When the writing failed, that is why the pieces could not be handed over.
        let target = writing.await??;
        outcome?;
        Ok(target)
    }
}

enum Piece {
    Chunk(ChunkId, Vec<u8>),
    Hole(u64),
}

/// Reads and divides a source, on a blocking thread.
fn divide(source: Source, chunks: &mpsc::Sender<Piece>) -> Result<(Chunked, Option<File>)> {
    let mut chunker = Chunker::new();
    let mut sink = |extent, plain: &[u8]| {
        let piece = match extent {
            Extent::Chunk { id, .. } => Piece::Chunk(id, plain.to_vec()),
            Extent::Hole { len } => Piece::Hole(len),
        };
        chunks.blocking_send(piece).map_err(|_| TransferError::Abandoned)
    };
    match source {
        Source::File(file) => {
            let chunked = chunker.read_file(&file, &mut sink)?;
            Ok((chunked, Some(file)))
        }
        Source::Reader(mut reader) => Ok((chunker.read(&mut reader, &mut sink)?, None)),
    }
}

/// A chunk with its plain bytes.
type PlainChunk = (ChunkId, Vec<u8>);

/// An extent with its offset.
type Placed = (u64, Extent);

/// An upload under way.
struct Upload<'a> {
    bulk: &'a Bulk,
    /// Chunks that are about to be asked about.
    group: Vec<PlainChunk>,
    group_len: usize,
    /// Groups that were asked about.
    asked: VecDeque<(Pending<FindMissing>, Vec<PlainChunk>)>,
    /// Packed chunks that are about to be put.
    batch: Vec<ChunkData>,
    batch_len: usize,
    /// Batches that were put and are not on stable storage yet.
    put: VecDeque<Pending<PutChunks>>,
}

impl Upload<'_> {
    async fn add(&mut self, id: ChunkId, plain: Vec<u8>) -> Result<()> {
        // A full group is asked about when another chunk follows it: a source of one chunk stays.
        if self.group_len >= GROUP_LEN || self.group.len() >= IDS_MAX {
            self.ask().await?;
        }
        self.group_len += plain.len();
        self.group.push((id, plain));
        Ok(())
    }

    async fn ask(&mut self) -> Result<()> {
        let group = std::mem::take(&mut self.group);
        self.group_len = 0;
        let request = FindMissing {
            drive: self.bulk.drive,
            chunks: group.iter().map(|(id, _)| *id).collect(),
        };
        let pending = self.bulk.connection.send(&request).await?;
        self.asked.push_back((pending, group));
        if self.asked.len() >= GROUPS_MAX {
            self.settle().await?;
        }
        Ok(())
    }

    /// Learns what of the oldest group is missing, and packs it.
    async fn settle(&mut self) -> Result<()> {
        let Some((pending, group)) = self.asked.pop_front() else {
            return Ok(());
        };
        let mut missing: HashSet<_> = pending.reply().await?.chunks.into_iter().collect();
        let (lacking, present): (Vec<_>, Vec<_>) =
            group.into_iter().partition(|(id, _)| missing.remove(id));
        let present_len: usize = present.iter().map(|(_, plain)| plain.len()).sum();
        self.bulk.meter.moved(present_len as u64);
        if lacking.is_empty() {
            return Ok(());
        }
        let packed = spawn_blocking(move || {
            let packed = lacking.iter().map(|(id, plain)| pack(*id, plain));
            packed.collect::<Vec<_>>()
        })
        .await?;
        for chunk in packed {
            self.batch_len += chunk.data.len();
            self.batch.push(chunk);
            if self.batch_len >= BATCH_LEN_MAX {
                self.put().await?;
            }
        }
        Ok(())
    }

    async fn put(&mut self) -> Result<()> {
        let request = PutChunks { drive: self.bulk.drive, chunks: std::mem::take(&mut self.batch) };
        self.bulk.meter.pass(self.batch_len as u64).await;
        self.batch_len = 0;
        let plain_len: u64 = request.chunks.iter().map(|c| u64::from(c.plain_len)).sum();
        self.put.push_back(self.bulk.connection.send(&request).await?);
        self.bulk.meter.moved(plain_len);
        if self.put.len() > GROUPS_MAX
            && let Some(oldest) = self.put.pop_front()
        {
            oldest.reply().await?;
        }
        Ok(())
    }

    /// Returns when every chunk is on the server's stable storage.
    async fn finish(&mut self) -> Result<()> {
        if !self.group.is_empty() {
            self.ask().await?;
        }
        while !self.asked.is_empty() {
            self.settle().await?;
        }
        if !self.batch.is_empty() {
            self.put().await?;
        }
        for pending in self.put.drain(..) {
            pending.reply().await?;
        }
        Ok(())
    }
}

/// What the writing thread is told to do.
enum Write {
    Chunk(u64, Arc<ChunkData>),
    Hole(u64, u64),
}

fn write_all<T: Target>(mut target: T, mut incoming: mpsc::Receiver<Write>) -> Result<T> {
    while let Some(write) = incoming.blocking_recv() {
        let written = match write {
            Write::Chunk(offset, chunk) => target.write(offset, &unpack(&chunk)?),
            Write::Hole(offset, len) => target.hole(offset, len),
        };
        written.map_err(TransferError::Target)?;
    }
    Ok(target)
}

/// A download under way.
struct Download<'a> {
    bulk: &'a Bulk,
    pieces: mpsc::Sender<Write>,
    /// Extents that are about to be asked for, with their offsets.
    group: Vec<Placed>,
    group_len: u64,
    /// Groups that were asked for; without a request when they are only holes.
    asked: VecDeque<(Option<Pending<GetChunks>>, Vec<Placed>)>,
}

impl Download<'_> {
    async fn run(&mut self, extents: &[Extent], done: &[bool]) -> Result<()> {
        let mut offset = 0;
        for (index, extent) in extents.iter().enumerate() {
            if done.get(index).copied().unwrap_or(false) {
                self.bulk.meter.moved(extent.len());
            } else {
                let weight = match extent {
                    Extent::Chunk { len, .. } => u64::from(*len),
                    Extent::Hole { .. } => 0,
                };
                let is_full = self.group_len + weight > GROUP_LEN as u64;
                if is_full || self.group.len() >= IDS_MAX {
                    self.ask().await?;
                }
                self.group_len += weight;
                self.group.push((offset, *extent));
            }
            offset += extent.len();
        }
        self.ask().await?;
        while !self.asked.is_empty() {
            self.settle().await?;
        }
        Ok(())
    }

    async fn ask(&mut self) -> Result<()> {
        let group = std::mem::take(&mut self.group);
        self.group_len = 0;
        let mut seen = HashSet::new();
        let chunks: Vec<_> = group
            .iter()
            .filter_map(|(_, extent)| match extent {
                Extent::Chunk { id, .. } => seen.insert(*id).then_some(*id),
                Extent::Hole { .. } => None,
            })
            .collect();
        let pending = if chunks.is_empty() {
            None
        } else {
            let drive = self.bulk.drive;
            let request = GetChunks { drive, chunks };
            Some(self.bulk.connection.send(&request).await?)
        };
        self.asked.push_back((pending, group));
        if self.asked.len() >= GROUPS_MAX {
            self.settle().await?;
        }
        Ok(())
    }

    /// Hands the oldest group to the writing thread.
    async fn settle(&mut self) -> Result<()> {
        let Some((pending, group)) = self.asked.pop_front() else {
            return Ok(());
        };
        let mut chunks = HashMap::new();
        if let Some(pending) = pending {
            let reply = pending.reply().await?;
            self.take(reply, &mut chunks).await?;
        }
        for (offset, extent) in group {
            let piece = match extent {
                Extent::Hole { len } => Write::Hole(offset, len),
                Extent::Chunk { id, len } => {
                    if !chunks.contains_key(&id) {
                        // The server sends as many as fit; ask again for those it left out.
                        self.fetch_one(id, &mut chunks).await?;
                    }
                    let chunk: &Arc<ChunkData> = chunks.get(&id).ok_or(TransferError::Wrong)?;
                    if chunk.plain_len != len {
                        return Err(TransferError::Wrong);
                    }
                    Write::Chunk(offset, Arc::clone(chunk))
                }
            };
            self.pieces.send(piece).await.map_err(|_| TransferError::Abandoned)?;
            self.bulk.meter.moved(extent.len());
        }
        Ok(())
    }

    async fn fetch_one(
        &self,
        id: ChunkId,
        chunks: &mut HashMap<ChunkId, Arc<ChunkData>>,
    ) -> Result<()> {
        let request = GetChunks { drive: self.bulk.drive, chunks: vec![id] };
        let reply = self.bulk.connection.call(&request).await?;
        self.take(reply, chunks).await
    }

    async fn take(
        &self,
        reply: Chunks,
        chunks: &mut HashMap<ChunkId, Arc<ChunkData>>,
    ) -> Result<()> {
        if let Some(absent) = reply.absent.first() {
            return Err(TransferError::Absent(*absent));
        }
        let len: usize = reply.chunks.iter().map(|chunk| chunk.data.len()).sum();
        self.bulk.meter.pass(len as u64).await;
        chunks.extend(reply.chunks.into_iter().map(|c| (c.id, Arc::new(c))));
        Ok(())
    }
}
