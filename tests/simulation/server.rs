//! The server of the simulation: the real rules over a manifest in memory, and its journal.

use std::collections::BTreeSet;

use picloud::model::{Body, Change, Content, DeviceId, Lineage, Node, NodeId, Rev, Versioned};
use picloud::protocol::message::ChangeResult;
use picloud::server::rules;
use picloud::server::rules::memory::MemoryManifest;

#[derive(Debug, Clone, Default)]
pub struct Server {
    pub manifest: MemoryManifest,
}

impl Server {
    pub fn lineage() -> Lineage {
        Lineage::from_bytes([9; 16])
    }

    pub fn head(&self) -> Rev {
        self.manifest.head
    }

    /// Takes a content in.
    pub fn put(&mut self, content: &Content) {
        match content {
            Content::Empty => {}
            Content::Chunk { id, len } => self.manifest.add_chunk(*id, *len),
            Content::List { id, len } => self.manifest.add_list(*id, *len),
        }
    }

    pub fn device(number: usize) -> DeviceId {
        DeviceId::from_bytes([u8::try_from(number).unwrap(); 16])
    }

    pub fn commit(&mut self, author: usize, changes: &[Change]) -> Vec<ChangeResult> {
        let Ok(results) = rules::apply(&mut self.manifest, Self::device(author), changes);
        results
    }

    /// The page after `cursor` with at most `limit` nodes: its end, whether it is consistent, nodes.
    pub fn page(&self, cursor: Rev, limit: usize) -> (Rev, bool, Vec<Versioned>) {
        let mut changed: Vec<Versioned> = self
            .manifest
            .nodes()
            .filter(|(_, version)| version.rev > cursor)
            .map(|(id, version)| Versioned { id, rev: version.rev, node: version.node.clone() })
            .collect();
        changed.sort_by_key(|versioned| versioned.rev);
        let all = changed.len() <= limit;
        changed.truncate(limit);
        let upto = if all { self.head() } else { changed.last().map_or(self.head(), |v| v.rev) };
        let consistent = self.manifest.nodes().all(|(id, version)| {
            version.rev <= upto || self.manifest.created(id).is_some_and(|created| created > upto)
        });
        (upto, consistent, changed)
    }

    /// The contents of all live files.
    pub fn contents(&self) -> BTreeSet<String> {
        let nodes = self.manifest.nodes().filter_map(|(_, version)| version.node.as_ref());
        nodes
            .filter_map(|node| match &node.body {
                Body::File { content, .. } => Some(format!("{content:?}")),
                _ => None,
            })
            .collect()
    }

    /// What the journal says of a node now.
    pub fn truth(&self, id: NodeId) -> Option<(Rev, Option<Node>)> {
        let mut nodes = self.manifest.nodes();
        nodes.find(|(node, _)| *node == id).map(|(_, version)| (version.rev, version.node.clone()))
    }

    /// The tree as text.
    pub fn render(&self) -> Vec<String> {
        let path = |node: &Node| {
            let mut path = vec![node.place.name.to_string()];
            let mut at = node.place.parent;
            while at != NodeId::ROOT {
                let parent = self.truth(at).and_then(|(_, node)| node).unwrap();
                path.push(parent.place.name.to_string());
                at = parent.place.parent;
            }
            path.reverse();
            path
        };
        let mut lines: Vec<(Vec<String>, String)> = self
            .manifest
            .nodes()
            .filter_map(|(_, version)| version.node.as_ref())
            .map(|node| {
                let names = path(node);
                let text = names.join("/");
                let line = match &node.body {
                    Body::Dir => format!("{text}/"),
                    Body::File { content, .. } => {
                        format!("{text} = {content:?} {:o}", node.attrs.mode)
                    }
                    Body::Link { target } => {
                        format!("{text} -> {}", String::from_utf8_lossy(target))
                    }
                };
                (names, line)
            })
            .collect();
        lines.sort();
        lines.into_iter().map(|(_, line)| line).collect()
    }
}
