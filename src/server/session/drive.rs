//! The requests about a drive as a whole: who wrote what, and how much room there is.

use super::reading::Answering;
use crate::protocol::limits::IDS_MAX;
use crate::protocol::message::{Author, Authors, FailureCode, GetAuthors, Space};
use crate::server::clock::timestamp;
use crate::server::packs::Packs;
use crate::server::store::StoreError;
use crate::server::store::metadata::{Metadata, Result};

impl Answering {
    pub(super) async fn get_authors(&self, drive: i64, asked: GetAuthors) -> Result<Authors> {
        if asked.nodes.len() > IDS_MAX {
            return Err(StoreError::request(
                FailureCode::TooLarge,
                format!("A request names at most {IDS_MAX} nodes"),
            ));
        }
        self.shared
            .store
            .read(move |metadata, _| {
                let mut authors = Vec::new();
                for node in asked.nodes {
                    if let Some((device, time_ms)) = metadata.author_of(drive, node)? {
                        authors.push(Author {
                            node,
                            device: device.id,
                            device_name: device.name,
                            time: timestamp(time_ms),
                        });
                    }
                }
                Ok(Authors { authors })
            })
            .await
    }

    pub(super) async fn get_space(&self, drive: i64) -> Result<Space> {
        let stored = match self.shared.stored_lately(drive) {
            Some(stored) => stored,
            None => {
                let stored =
                    self.shared.store.read(move |metadata, _| metadata.stored(drive)).await?;
                self.shared.note_stored(drive, stored);
                stored
            }
        };
        let (free, total) = self.shared.room()?;
        let default = self.shared.config.accounts.quota();
        let look = move |metadata: &mut dyn Metadata, _: &Packs| match metadata.drive(drive)? {
            Some(drive) => metadata.usage(drive.owner, default).map(Some),
            None => Ok(None),
        };
        let usage = self.shared.store.read(look).await?;
        let quota = usage.and_then(|usage| usage.quota);
        Ok(Space { stored, free, total, used: usage.map(|usage| usage.used), quota })
    }
}
