//! The mass deletions of one drive that wait for a person, pushed to one connection.
//!
//! Told when the subscription begins, unless there are none, and whenever they change: so the device
//! whose deletions were held goes on as soon as a person has decided, and every other one can show
//! that a decision is wanted.

use std::sync::Arc;

use super::outbox::Outbox;
use super::push::Push;
use super::shared::Shared;
use crate::model::DriveId;
use crate::protocol::EncodedFrame;
use crate::protocol::limits::BODY_LEN_MAX;
use crate::protocol::message::{Held, HeldNow};
use crate::server::clock::timestamp;
use crate::server::store::StoreError;
use crate::server::store::metadata::{HeldRow, Result};

/// Begins to push what is held in a drive, whose number is `num`.
pub fn start(shared: Arc<Shared>, outbox: Outbox, drive: DriveId, num: i64) -> Push {
    Push::start(outbox.clone(), "what is held could not be read", async move {
        push(&shared, &outbox, drive, num).await
    })
}

async fn push(shared: &Shared, outbox: &Outbox, drive: DriveId, num: i64) -> Result<()> {
    let mut changes = shared.hub.listen_held(num);
    let mut told = Vec::new();
    loop {
        // Marked before the database is read, so that nothing is missed in between.
        changes.mark_unchanged();
        let held = list(shared, num).await?;
        if held != told {
            let message = HeldNow { drive, held: held.clone() };
            let frame = EncodedFrame::new(0, &message, BODY_LEN_MAX)
                .map_err(|error| StoreError::Damaged(error.to_string()))?;
            outbox.push(frame).await?;
            told = held;
        }
        changes.changed().await.map_err(|_| StoreError::Closed)?;
    }
}

/// Returns the mass deletions of a drive that are held now.
pub async fn list(shared: &Shared, drive: i64) -> Result<Vec<Held>> {
    let rows = shared.store.read(move |metadata, _| metadata.held(drive)).await?;
    Ok(rows.into_iter().map(held).collect())
}

fn held(row: HeldRow) -> Held {
    Held {
        device: row.device.id,
        device_name: row.device.name,
        deletions: row.deletions,
        earlier: row.earlier,
        since: timestamp(row.since_ms),
        rejected: row.rejected,
        examples: row.examples,
    }
}
