//! The requests that are answered out of order: contents, looking around, the account.

use std::sync::Arc;

use super::guest::Member;
use super::outbox::Outbox;
use super::shared::Shared;
use super::{decode, deltas};
use crate::model::{DriveId, NodeId, Versioned};
use crate::protocol::IncomingFrame;
use crate::protocol::limits::{BATCH_COUNT_MAX, BATCH_LEN_MAX, IDS_MAX, LIST_PART_LEN_MAX};
use crate::protocol::message::{
    ApproveHeld, Chunks, Entries, FailureCode, FindMissing, Found, GetAuthors, GetChunks,
    GetDeltas, GetList, GetSpace, GetSplice, GetSums, Has, HasList, HeldList, ListBatches, ListDir,
    ListHeld, ListPart, Lookup, Message, Missing, RejectHeld, UndoBatch,
};
use crate::server::gate::Decision;
use crate::server::packs::chunk_data;
use crate::server::store::StoreError;
use crate::server::store::metadata::Result;

/// Deeper paths are not looked for; see `rules`.
const DEPTH_MAX: usize = 4096;

/// What answering a request needs.
pub struct Answering {
    pub shared: Arc<Shared>,
    pub outbox: Outbox,
    pub member: Arc<Member>,
    /// The drive that the request names.
    pub drive: Option<i64>,
}

/// Returns the drive that a request names, if it is of a kind that names one.
pub fn drive_of(frame: &IncomingFrame) -> Result<Option<DriveId>> {
    match frame.kind {
        FindMissing::KIND
        | HasList::KIND
        | GetList::KIND
        | GetChunks::KIND
        | GetSums::KIND
        | GetDeltas::KIND
        | GetSplice::KIND
        | Lookup::KIND
        | ListDir::KIND
        | ListHeld::KIND
        | ApproveHeld::KIND
        | RejectHeld::KIND
        | ListBatches::KIND
        | UndoBatch::KIND
        | GetAuthors::KIND
        | GetSpace::KIND => super::lane::decode_drive(frame).map(Some),
        _ => Ok(None),
    }
}

fn too_many() -> StoreError {
    StoreError::request(FailureCode::TooLarge, format!("A request names at most {IDS_MAX} chunks"))
}

impl Answering {
    /// Answers a request, or says why not.
    pub async fn answer(&self, frame: IncomingFrame) -> Result<()> {
        let request = frame.request;
        let Some(drive) = self.drive else {
            return self.answer_account(frame).await;
        };
        match frame.kind {
            FindMissing::KIND => {
                let reply = self.find_missing(drive, decode(&frame)?).await?;
                self.outbox.reply(request, &reply).await;
            }
            HasList::KIND => {
                let asked: HasList = decode(&frame)?;
                let found = self
                    .shared
                    .store
                    .read(move |metadata, _| metadata.list(drive, asked.list))
                    .await?;
                let present = found.is_some();
                self.outbox.reply(request, &Has { present }).await;
            }
            GetList::KIND => {
                let reply = self.get_list(drive, decode(&frame)?).await?;
                self.outbox.reply(request, &reply).await;
            }
            GetChunks::KIND => {
                let reply = self.get_chunks(drive, decode(&frame)?).await?;
                self.shared.metrics.sent(&reply.chunks);
                self.outbox.reply(request, &reply).await;
            }
            GetSums::KIND => {
                let reply = deltas::get_sums(&self.shared, drive, decode(&frame)?).await?;
                self.outbox.reply(request, &reply).await;
            }
            GetDeltas::KIND => {
                let reply = deltas::get_deltas(&self.shared, drive, decode(&frame)?).await?;
                self.shared.metrics.sent(&reply.chunks);
                self.shared.metrics.deltas_out.add(reply.deltas.len());
                self.outbox.reply(request, &reply).await;
            }
            GetSplice::KIND => {
                let reply = deltas::get_splice(&self.shared, drive, decode(&frame)?).await?;
                self.outbox.reply(request, &reply).await;
            }
            Lookup::KIND => {
                let reply = self.lookup(drive, decode(&frame)?).await?;
                self.outbox.reply(request, &reply).await;
            }
            ListDir::KIND => {
                let reply = self.list_dir(drive, decode(&frame)?).await?;
                self.outbox.reply(request, &reply).await;
            }
            ListHeld::KIND => {
                let held = super::held::list(&self.shared, drive).await?;
                self.outbox.reply(request, &HeldList { held }).await;
            }
            ListBatches::KIND => {
                let reply = self.list_batches(drive, decode(&frame)?).await?;
                self.outbox.reply(request, &reply).await;
            }
            UndoBatch::KIND => {
                let reply = self.undo_batch(drive, decode(&frame)?).await?;
                self.outbox.reply(request, &reply).await;
            }
            GetAuthors::KIND => {
                let reply = self.get_authors(drive, decode(&frame)?).await?;
                self.outbox.reply(request, &reply).await;
            }
            GetSpace::KIND => {
                let reply = self.get_space(drive).await?;
                self.outbox.reply(request, &reply).await;
            }
            ApproveHeld::KIND => {
                let asked: ApproveHeld = decode(&frame)?;
                self.decide_held(request, drive, asked.device, Decision::Approve).await?;
            }
            _ => {
                let asked: RejectHeld = decode(&frame)?;
                self.decide_held(request, drive, asked.device, Decision::Reject).await?;
            }
        }
        Ok(())
    }

    async fn find_missing(&self, drive: i64, asked: FindMissing) -> Result<Missing> {
        if asked.chunks.len() > IDS_MAX {
            return Err(too_many());
        }
        self.shared
            .store
            .read(move |metadata, _| {
                let mut chunks = Vec::new();
                for id in asked.chunks {
                    if metadata.chunk(drive, id)?.is_none() {
                        chunks.push(id);
                    }
                }
                Ok(Missing { chunks })
            })
            .await
    }

    async fn get_list(&self, drive: i64, asked: GetList) -> Result<ListPart> {
        self.shared
            .store
            .read(move |metadata, packs| {
                let list = metadata.list(drive, asked.list)?.ok_or_else(|| {
                    StoreError::request(FailureCode::NotFound, "The drive has no such list")
                })?;
                Ok(ListPart {
                    total: u64::from(list.at.stored_len),
                    data: packs.read_part(list.at, asked.offset, LIST_PART_LEN_MAX)?,
                })
            })
            .await
    }

    async fn get_chunks(&self, drive: i64, asked: GetChunks) -> Result<Chunks> {
        if asked.chunks.len() > IDS_MAX {
            return Err(too_many());
        }
        self.shared
            .store
            .read(move |metadata, packs| {
                let mut reply = Chunks { chunks: Vec::new(), absent: Vec::new() };
                let mut len = 0;
                for id in asked.chunks {
                    let Some(chunk) = metadata.chunk(drive, id)? else {
                        reply.absent.push(id);
                        continue;
                    };
                    let next = chunk.at.stored_len as usize;
                    if !reply.chunks.is_empty() && len + next > BATCH_LEN_MAX {
                        break;
                    }
                    len += next;
                    reply.chunks.push(chunk_data(packs.read(chunk.at, id.as_bytes())?)?);
                }
                Ok(reply)
            })
            .await
    }

    async fn lookup(&self, drive: i64, asked: Lookup) -> Result<Found> {
        if asked.path.is_root() || asked.path.names().len() > DEPTH_MAX {
            return Ok(Found { node: None });
        }
        self.shared
            .store
            .read(move |metadata, _| {
                let mut parent = NodeId::ROOT;
                let mut node = None;
                for name in asked.path.names() {
                    node = metadata.child(drive, parent, name)?;
                    match &node {
                        Some(found) => parent = found.id,
                        None => break,
                    }
                }
                Ok(Found { node })
            })
            .await
    }

    async fn list_dir(&self, drive: i64, asked: ListDir) -> Result<Entries> {
        self.shared
            .store
            .read(move |metadata, _| {
                let is_dir = |found: Option<Versioned>| {
                    found.and_then(|found| found.node).is_some_and(|node| node.is_dir())
                };
                if asked.dir != NodeId::ROOT && !is_dir(metadata.node(drive, asked.dir)?) {
                    return Err(StoreError::request(
                        FailureCode::NotFound,
                        "There is no such directory",
                    ));
                }
                let after = asked.after.as_ref();
                let mut entries =
                    metadata.children(drive, asked.dir, after, BATCH_COUNT_MAX + 1)?;
                let more = entries.len() > BATCH_COUNT_MAX;
                entries.truncate(BATCH_COUNT_MAX);
                Ok(Entries { entries, more })
            })
            .await
    }
}
