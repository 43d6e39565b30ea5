//! How much of the room of a drive's owner is in use, pushed to one connection.
//!
//! The subscription's reply says it first. From then on whoever changes it tells the hub, and where there is a
//! quota the device is told: not of each change, but of what they came to after a short while. So a device
//! that holds a file back hears soon that there is room, and a busy account costs a few dozen bytes in a
//! second.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;

use super::outbox::Outbox;
use super::push::Push;
use crate::model::{DriveId, Usage};
use crate::protocol::EncodedFrame;
use crate::protocol::limits::BODY_LEN_MAX;
use crate::protocol::message::UsageNow;
use crate::server::hub::Hub;
use crate::server::store::metadata::Result;
use crate::server::store::{Contents, Store, StoreError};

/// What happens within this time is told as one. By then the answers to the commits that changed it are
/// mostly on their way: a device that hears of its own change twice takes it for two until then.
const GATHER: Duration = Duration::from_millis(200);

/// Changes of what is in use that a connection listens to.
pub struct Listening(watch::Receiver<Option<Usage>>);

impl Listening {
    /// Begins to listen: before the database is asked what the device is told first, so that nothing is
    /// missed in between.
    pub fn begin(hub: &Hub, owner: i64) -> Self {
        Self(hub.listen_usage(owner))
    }
}

/// Begins to push what changes from what the device was `told`.
pub fn start(outbox: Outbox, drive: DriveId, listening: Listening, told: Usage) -> Push {
    Push::start(outbox.clone(), "what is in use could not be told", async move {
        push(&outbox, drive, listening, told).await
    })
}

async fn push(
    outbox: &Outbox,
    drive: DriveId,
    Listening(mut changes): Listening,
    mut told: Usage,
) -> Result<()> {
    loop {
        changes.changed().await.map_err(|_| StoreError::Closed)?;
        tokio::time::sleep(GATHER).await;
        let Some(usage) = *changes.borrow_and_update() else { continue };
        // Without a quota nothing waits for room.
        let matters = usage.quota.is_some() || told.quota.is_some();
        if matters && usage != told {
            let frame = EncodedFrame::new(0, &UsageNow { drive, usage }, BODY_LEN_MAX)
                .map_err(|error| StoreError::Damaged(error.to_string()))?;
            outbox.push(frame).await?;
        }
        told = usage;
    }
}

/// Tells the hub anew how much of each listener's room is in use: another process may have set a quota.
/// It goes through the writer, so that it comes in the order of the changes.
pub async fn publish_all(hub: &Arc<Hub>, store: &Store, default: Option<u64>) -> Result<()> {
    let users = hub.usage_users();
    if users.is_empty() {
        return Ok(());
    }
    let hub = Arc::clone(hub);
    let reply = store
        .submit(
            Contents::default(),
            move |metadata| {
                let of = |user| Ok((user, metadata.usage(user, default)?));
                users.into_iter().map(of).collect::<Result<Vec<(i64, Usage)>>>()
            },
            move |outcome| {
                for (user, usage) in outcome.into_iter().flatten() {
                    hub.publish_usage(*user, *usage);
                }
            },
        )
        .await?;
    reply.await.map_err(|_| StoreError::Closed)?.map(drop)
}
