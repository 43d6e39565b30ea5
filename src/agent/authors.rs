//! Who wrote the two versions of a conflict: the server knows, as long as it can be asked.

use std::collections::HashMap;
use std::time::Duration;

use super::config::FolderConfig;
use super::folder::FoundConflict;
use crate::model::NodeId;
use crate::protocol::Connection;
use crate::protocol::control::{Conflict, Side, Version};
use crate::protocol::limits::IDS_MAX;
use crate::protocol::message::{Author, GetAuthors};

/// How long the server may take to say; a person waits.
const PATIENCE: Duration = Duration::from_secs(5);

/// Returns the conflicts with who wrote what in them.
pub(super) async fn signed(
    found: Vec<FoundConflict>,
    connection: Option<&Connection>,
    config: &FolderConfig,
) -> Vec<Conflict> {
    let nodes: Vec<NodeId> =
        found.iter().flat_map(|one| std::iter::once(one.copy).chain(one.original)).collect();
    let authors = match connection {
        Some(connection) => {
            let asked = ask(connection, config, &nodes);
            // Without an answer it is told as if there were no connection.
            tokio::time::timeout(PATIENCE, Box::pin(asked)).await.unwrap_or_default()
        }
        None => HashMap::new(),
    };
    found
        .into_iter()
        .map(|FoundConflict { mut conflict, copy, original }| {
            sign(conflict.copy_version.as_mut(), authors.get(&copy), config);
            let author = original.and_then(|original| authors.get(&original));
            sign(conflict.original_version.as_mut(), author, config);
            conflict.mine = mine(&conflict);
            conflict
        })
        .collect()
}

async fn ask(
    connection: &Connection,
    config: &FolderConfig,
    nodes: &[NodeId],
) -> HashMap<NodeId, Author> {
    let mut authors = HashMap::new();
    for nodes in nodes.chunks(IDS_MAX) {
        let question = GetAuthors { drive: config.drive, nodes: nodes.to_vec() };
        match connection.call(&question).await {
            Ok(reply) => authors.extend(reply.authors.into_iter().map(|one| (one.node, one))),
            // A server of an earlier version, say.
            Err(error) => {
                tracing::debug!(%error, "the server does not tell who wrote what");
                break;
            }
        }
    }
    authors
}

fn sign(version: Option<&mut Version>, author: Option<&Author>, config: &FolderConfig) {
    let Some(version) = version else { return };
    if let Some(Author { device, device_name, .. }) = author {
        version.device = Some(device_name.clone());
        version.here = *device == config.device;
    } else {
        version.here = version.device.as_ref() == Some(&config.device_name);
    }
}

/// Returns which of the two is this device's, when the other one is not.
fn mine(conflict: &Conflict) -> Option<Side> {
    let copy = conflict.copy_version.as_ref()?.here;
    let original = conflict.original_version.as_ref().is_some_and(|version| version.here);
    match (copy, original) {
        (true, false) => Some(Side::Copy),
        (false, true) => Some(Side::Original),
        (true, true) | (false, false) => None,
    }
}
