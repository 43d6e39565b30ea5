//! Everything in a drive at once.

use std::collections::HashMap;

use super::{ClientError, Result, Session};
use crate::model::{Node, NodeId, RelPath, Rev};
use crate::protocol::Push;
use crate::protocol::message::{PageSeen, Subscribe};

/// Deeper nodes are left out: an honest server has none.
const DEPTH_MAX: usize = 4096;

impl Session {
    /// Returns what is in the drive, by path; nothing when that is more than `count_max` files and
    /// directories. The session's pushes are used up by it.
    ///
    /// # Errors
    /// When the session watches already, or the connection ends.
    pub async fn manifest(&self, count_max: usize) -> Result<Option<HashMap<RelPath, Node>>> {
        let mut pushes = self.take_pushes()?;
        let drive = self.drive.id;
        let subscribe = Subscribe {
            drive,
            cursor: Rev::ZERO,
            lineage: None,
            inline_len_max: 0,
            takes_over: false,
            coming: false,
        };
        let head = self.connection.call(&subscribe).await?.head;
        let mut nodes: HashMap<NodeId, Node> = HashMap::new();
        let mut cursor = Rev::ZERO;
        let mut is_whole = false;
        while cursor < head || !is_whole {
            let page = match pushes.recv().await {
                Some(Push::Page(page)) if page.drive == drive => page,
                Some(Push::Page(_) | Push::Held(_) | Push::Usage(_) | Push::Coming(_)) => continue,
                Some(Push::Bye(_)) | None => {
                    let reason = self.connection.closed().await;
                    return Err(ClientError::Call(crate::protocol::CallError::Closed(reason)));
                }
            };
            if page.from != cursor || page.upto < page.from {
                return Err(ClientError::Nonsense("a page out of order"));
            }
            (cursor, is_whole) = (page.upto, page.consistent);
            for versioned in page.nodes {
                match versioned.node {
                    Some(node) => nodes.insert(versioned.id, node),
                    None => nodes.remove(&versioned.id),
                };
            }
            if nodes.len() > count_max {
                return Ok(None);
            }
            self.connection.notify(&PageSeen { drive, upto: cursor }).await?;
        }
        let paths: Vec<(NodeId, RelPath)> =
            nodes.keys().filter_map(|id| Some((*id, path_of(&nodes, *id)?))).collect();
        let mut placed = |(id, path)| Some((path, nodes.remove(&id)?));
        Ok(Some(paths.into_iter().filter_map(&mut placed).collect()))
    }
}

fn path_of(nodes: &HashMap<NodeId, Node>, id: NodeId) -> Option<RelPath> {
    let mut names = Vec::new();
    let mut at = id;
    while at != NodeId::ROOT {
        let place = &nodes.get(&at)?.place;
        names.push(place.name.clone());
        at = place.parent;
        if names.len() > DEPTH_MAX {
            return None;
        }
    }
    names.reverse();
    Some(RelPath::from_names(names))
}
