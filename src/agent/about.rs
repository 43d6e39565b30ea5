//! What the server tells of the account and its room, for who looks at the status.

use std::time::Duration;

use super::clock;
use crate::model::DriveId;
use crate::protocol::Connection;
use crate::protocol::control::{DeviceStatus, FolderStatus, SpaceStatus};
use crate::protocol::message::{GetSpace, ListDevices};

/// How long the server may take to say; a person waits.
const PATIENCE: Duration = Duration::from_secs(2);

/// What a server told.
#[derive(Debug, Clone)]
pub(super) struct About {
    devices: Vec<DeviceStatus>,
    space: Option<SpaceStatus>,
    told_at: i64,
}

impl About {
    /// Asks; nothing when there is no answer in time.
    pub(super) async fn ask(connection: &Connection, drive: DriveId) -> Option<Self> {
        let asked = async {
            let devices = connection.call(&ListDevices {}).await.ok()?.devices;
            // A server of an earlier version does not know this one.
            let space = connection.call(&GetSpace { drive }).await.ok();
            Some(Self {
                devices: devices
                    .into_iter()
                    .map(|device| DeviceStatus {
                        name: device.name,
                        this: device.this,
                        connected: device.connected,
                        last_seen: device.last_seen.map(|seen| seen.secs),
                    })
                    .collect(),
                space: space.map(|space| SpaceStatus {
                    stored: space.stored,
                    free: space.free,
                    total: space.total,
                    used: space.used,
                    quota: space.quota,
                }),
                told_at: clock::wall().secs,
            })
        };
        tokio::time::timeout(PATIENCE, Box::pin(asked)).await.ok().flatten()
    }

    /// Puts it into a folder's part of a status.
    pub(super) fn fill_in(&self, status: &mut FolderStatus) {
        status.devices.clone_from(&self.devices);
        status.space = self.space;
        status.told_at = Some(self.told_at);
    }
}
