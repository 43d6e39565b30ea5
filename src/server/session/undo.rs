//! The requests about batches of changes: which there are, and taking one back.

use std::collections::HashMap;

use super::reading::Answering;
use crate::model::DeviceId;
use crate::protocol::message::{
    Batch, BatchCounts, Batches, FailureCode, ListBatches, UndoAct, UndoBatch, UndoBeside,
    UndoLeft, Undone,
};
use crate::server::clock::{now_ms, timestamp};
use crate::server::rules::undo::{Act, Counts, LIST_MAX, Left, Outcome};
use crate::server::store::StoreError;
use crate::server::store::metadata::{self, Author, Metadata, Result, UndoAsked};

/// Names of devices, those that are revoked included.
#[derive(Default)]
struct Names(HashMap<DeviceId, String>);

impl Names {
    fn of(&mut self, metadata: &mut dyn Metadata, id: DeviceId) -> Result<String> {
        if let Some(name) = self.0.get(&id) {
            return Ok(name.clone());
        }
        let device = metadata.device(id)?;
        let name = device.map_or_else(|| id.to_string(), |device| device.name);
        self.0.insert(id, name.clone());
        Ok(name)
    }
}

impl Answering {
    pub(super) async fn list_batches(&self, drive: i64, asked: ListBatches) -> Result<Batches> {
        let count = usize::try_from(asked.count).unwrap_or(usize::MAX);
        if count > LIST_MAX {
            return Err(StoreError::request(
                FailureCode::TooLarge,
                format!("At most {LIST_MAX} batches are listed"),
            ));
        }
        self.shared
            .store
            .read(move |metadata, _| {
                let (found, more) = metadata.batches(drive, asked.upto, count)?;
                let mut names = Names::default();
                let mut batches = Vec::new();
                for batch in found {
                    batches.push(Batch {
                        id: batch.id,
                        device: batch.author,
                        device_name: names.of(metadata, batch.author)?,
                        began: timestamp(batch.began_ms),
                        ended: timestamp(batch.ended_ms),
                        counts: counts(batch.counts),
                        examples: batch.examples,
                        undoes: batch.undoes,
                        undone_by: batch.undone_by,
                    });
                }
                Ok(Batches { batches, more })
            })
            .await
    }

    pub(super) async fn undo_batch(&self, drive: i64, asked: UndoBatch) -> Result<Undone> {
        if !asked.batch.is_legal() {
            return Err(StoreError::request(
                FailureCode::Malformed,
                "A batch ends before it begins",
            ));
        }
        let author = Author { num: self.member.device.num, id: self.member.device.id };
        let bounds = self.shared.config.bounds();
        let work = move |metadata: &mut dyn Metadata| {
            let now_ms = now_ms();
            let undo = UndoAsked {
                batch: asked.batch,
                is_dry_run: asked.dry_run,
                is_approved: asked.approved,
                now_ms,
                date: &date(now_ms),
            };
            let undone = metadata.undo_batch(drive, author, &undo, &bounds)?;
            let told = told(metadata, &undone.outcome)?;
            Ok((told, undone))
        };
        if asked.dry_run {
            return Ok(self.shared.store.read(move |metadata, _| work(metadata)).await?.0);
        }
        let hub = std::sync::Arc::clone(&self.shared.hub);
        // Told on the writer's thread, as every change is: also when nobody waits for it any more.
        let done = move |outcome: std::result::Result<&(Undone, metadata::Undone), &StoreError>| {
            if let Ok((_, undone)) = outcome
                && undone.head > undone.before
            {
                hub.publish(drive, undone.head);
                if undone.spent.is_new {
                    hub.publish_usage(undone.spent.owner, undone.spent.usage);
                }
            }
        };
        let contents = crate::server::store::Contents::default();
        let reply = self.shared.store.submit(contents, work, done).await?;
        let (told, _) = reply.await.map_err(|_| StoreError::Closed)??;
        if let Some(by) = told.undo {
            tracing::info!(batch = %asked.batch, %by, left = told.left_count, "a batch was undone");
        }
        Ok(told)
    }
}

/// The day of a moment, in UTC.
fn date(now_ms: i64) -> String {
    jiff::Timestamp::from_millisecond(now_ms)
        .map_or_else(|_| "1970-01-01".to_owned(), |now| now.strftime("%Y-%m-%d").to_string())
}

const fn counts(counts: Counts) -> BatchCounts {
    let Counts { created, edited, moved, deleted } = counts;
    BatchCounts { created, edited, moved, deleted }
}

fn told(metadata: &mut dyn Metadata, outcome: &Outcome) -> Result<Undone> {
    let mut names = Names::default();
    let mut left = Vec::new();
    for (path, why) in &outcome.left {
        let reason = match why {
            Left::Changed(by) => format!("was changed since, by {}", names.of(metadata, *by)?),
            Left::NoParent => "the directory that it was in is gone".to_owned(),
            Left::NameTaken => "another has the name that it had".to_owned(),
            Left::NotEmpty => "there is something in it that came otherwise".to_owned(),
            Left::Cycle => "it would be in itself".to_owned(),
            Left::NoContent => "the server has not got its content any more".to_owned(),
        };
        left.push(UndoLeft { path: path.clone(), reason });
    }
    let act = |act: &Act| match act {
        Act::Restore => "restore",
        Act::Move => "move",
        Act::Delete => "delete",
    };
    let acts = outcome
        .acts
        .iter()
        .map(|(path, what)| UndoAct { path: path.clone(), act: act(what).to_owned() });
    let beside = outcome
        .beside
        .iter()
        .map(|(path, name)| UndoBeside { path: path.clone(), name: name.clone() });
    Ok(Undone {
        device: outcome.author,
        device_name: names.of(metadata, outcome.author)?,
        counts: counts(outcome.counts),
        same: outcome.same,
        undo: outcome.by,
        undone_by: outcome.undone_by,
        redone: outcome.is_redone,
        needs_approval: outcome.needs_approval,
        acts: acts.collect(),
        act_count: outcome.act_count,
        beside: beside.collect(),
        beside_count: outcome.beside_count,
        left,
        left_count: outcome.left_count,
    })
}
