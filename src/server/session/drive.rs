//! The requests about a drive as a whole: who wrote what, and how much room there is.

use super::reading::Answering;
use crate::protocol::limits::IDS_MAX;
use crate::protocol::message::{Author, Authors, FailureCode, GetAuthors, Space};
use crate::server::clock::timestamp;
use crate::server::store::StoreError;
use crate::server::store::metadata::Result;

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
        Ok(Space { stored, free, total, quota: None })
    }
}
