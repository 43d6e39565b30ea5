//! The server of the simulation: the real rules over a manifest in memory, and its journal.

use std::collections::{BTreeMap, BTreeSet};

use picloud::engine::seam::Event;
use picloud::model::{
    Body, Change, Content, DeviceId, Digest, Lineage, Node, NodeId, Rev, Usage, Versioned,
};
use picloud::protocol::message::ChangeResult;
use picloud::server::rules::memory::MemoryManifest;
use picloud::server::rules::{self, Manifest as _};

/// An answer that waits until what it says is durable.
#[derive(Debug, Clone)]
struct Waiting {
    device: usize,
    connection: u64,
    answer: Event,
    accepted: Vec<(NodeId, Rev, Option<Node>)>,
}

#[derive(Debug, Clone, Default)]
pub struct Server {
    /// With everything that was asked for so far.
    pub manifest: MemoryManifest,
    /// What a crash leaves, and what is told.
    durable: MemoryManifest,
    waiting: Vec<Waiting>,
    /// All that was ever answered with yes.
    acknowledged: BTreeMap<(NodeId, Rev), Option<Node>>,
    /// A fault: it answers before it has made anything durable.
    pub answers_early: bool,
}

impl Server {
    pub fn lineage() -> Lineage {
        Lineage::from_bytes([9; 16])
    }

    /// The newest rev that is told.
    pub fn head(&self) -> Rev {
        self.durable.head
    }

    /// How much is in use by what is told.
    pub fn usage(&self) -> Usage {
        self.durable.usage
    }

    pub fn digest(&self) -> Digest {
        self.durable.digest
    }

    /// Keeps an answer back until [`Server::sync`].
    pub fn answer_later(
        &mut self,
        device: usize,
        connection: u64,
        answer: Event,
        accepted: Vec<(NodeId, Rev, Option<Node>)>,
    ) {
        self.waiting.push(Waiting { device, connection, answer, accepted });
    }

    /// Makes everything durable; returns the answers that may go out now, with whose they are.
    pub fn sync(&mut self) -> Vec<(usize, u64, Event)> {
        self.durable = self.manifest.clone();
        self.release()
    }

    /// Lets the answers go that wait.
    pub fn release(&mut self) -> Vec<(usize, u64, Event)> {
        let waiting = std::mem::take(&mut self.waiting);
        waiting
            .into_iter()
            .map(|Waiting { device, connection, answer, accepted }| {
                let accepted = accepted.into_iter().map(|(id, rev, node)| ((id, rev), node));
                self.acknowledged.extend(accepted);
                (device, connection, answer)
            })
            .collect()
    }

    pub fn has_waiting(&self) -> bool {
        !self.waiting.is_empty()
    }

    /// What is not durable is gone.
    pub fn crash(&mut self) {
        self.manifest = self.durable.clone();
        self.waiting.clear();
    }

    /// What was acknowledged and is not there.
    pub fn missing(&mut self) -> Option<String> {
        self.acknowledged.iter().find_map(|((id, rev), node)| {
            let Ok(version) = self.manifest.version(*id, *rev);
            let is_there = version.is_some_and(|version| version.node == *node);
            (!is_there).then(|| format!("{id} at {rev:?}: {node:?}"))
        })
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
            .durable
            .nodes()
            .filter(|(_, version)| version.rev > cursor)
            .map(|(id, version)| Versioned { id, rev: version.rev, node: version.node.clone() })
            .collect();
        changed.sort_by_key(|versioned| versioned.rev);
        let all = changed.len() <= limit;
        changed.truncate(limit);
        let upto = if all { self.head() } else { changed.last().map_or(self.head(), |v| v.rev) };
        let consistent = self.durable.nodes().all(|(id, version)| {
            version.rev <= upto || self.durable.created(id).is_some_and(|created| created > upto)
        });
        (upto, consistent, changed)
    }

    /// The contents of all live files.
    pub fn contents(&self) -> BTreeSet<String> {
        let nodes = self.durable.nodes().filter_map(|(_, version)| version.node.as_ref());
        nodes
            .filter_map(|node| match &node.body {
                Body::File { content, .. } => Some(format!("{content:?}")),
                _ => None,
            })
            .collect()
    }

    /// A version that was made just now.
    pub fn version(&mut self, id: NodeId, rev: Rev) -> Option<(NodeId, Rev, Option<Node>)> {
        let Ok(version) = self.manifest.version(id, rev);
        version.map(|version| (id, rev, version.node))
    }

    /// What the journal says of a node now.
    pub fn truth(&self, id: NodeId) -> Option<(Rev, Option<Node>)> {
        let mut nodes = self.manifest.nodes();
        nodes.find(|(node, _)| *node == id).map(|(_, version)| (version.rev, version.node.clone()))
    }

    /// Where a node is; nothing when it is not there.
    pub fn path_of(&self, id: NodeId) -> Option<String> {
        let mut names = Vec::new();
        let mut at = id;
        while at != NodeId::ROOT {
            let (_, node) = self.truth(at)?;
            let place = node?.place;
            names.push(place.name.to_string());
            at = place.parent;
        }
        names.reverse();
        Some(names.join("/"))
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
