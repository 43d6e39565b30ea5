//! What must hold of the three trees and of the manifest at any moment, worked out anew from all
//! that they hold: no index, total or digest of theirs is believed.

use std::collections::{BTreeMap, BTreeSet};

use picloud::engine::memory::MemoryTrees;
use picloud::engine::trees::{Totals, Trees as _};
use picloud::model::{Digest, Name, Node, NodeId, Rev};

use super::server::Server;
use super::world::Failure;

/// What was found sound last, so that only what changed since is looked at again.
#[derive(Debug, Default)]
pub struct Sound {
    head: Rev,
    /// Per device.
    digests: BTreeMap<usize, Digest>,
}

impl Sound {
    /// Every live node has a live directory above it and a name of its own in that, and nothing is
    /// inside itself; no rev is given twice; the digest is that of the nodes, and so is what is in use, which
    /// is no more than the quota.
    pub fn check_manifest(&mut self, server: &Server) -> Result<(), Failure> {
        let manifest = &server.manifest;
        if manifest.head == self.head {
            return Ok(());
        }
        let wrong = |text: String| Err(Failure::new("the manifest is sound", text));
        let mut digest = Digest::default();
        let mut names: BTreeSet<(NodeId, &Name)> = BTreeSet::new();
        let mut revs = BTreeSet::new();
        let mut live: BTreeMap<NodeId, &Node> = BTreeMap::new();
        for (id, version) in manifest.nodes() {
            if version.rev > manifest.head || !revs.insert(version.rev) {
                return wrong(format!("{id} has the rev {:?}", version.rev));
            }
            if let Some(node) = &version.node {
                digest.add(id, version.rev, node);
                live.insert(id, node);
                if !names.insert((node.place.parent, &node.place.name)) {
                    return wrong(format!("{} is there twice", node.place.name));
                }
            }
        }
        if digest != manifest.digest {
            return wrong("the digest is another".to_owned());
        }
        let used: u64 = live.values().map(|node| node.body.content_len()).sum();
        if used != manifest.usage.used {
            return wrong(format!("{used} bytes are in use, {:?} are counted", manifest.usage));
        }
        if manifest.usage.quota.is_some_and(|quota| used > quota) {
            return Err(Failure::new("the quota holds", format!("{:?}", manifest.usage)));
        }
        for (id, node) in &live {
            let mut at = node.place.parent;
            let mut depth = 0;
            while at != NodeId::ROOT {
                let Some(dir) = live.get(&at).filter(|dir| dir.is_dir()) else {
                    return wrong(format!("{id} is in {at}, which is no directory"));
                };
                depth += 1;
                if depth > live.len() {
                    return wrong(format!("{id} is inside itself"));
                }
                at = dir.place.parent;
            }
        }
        self.head = manifest.head;
        Ok(())
    }

    /// What the remote tree holds are versions that the server told, and their digest is the one
    /// kept; the totals and the list of dirty nodes are those of the entries.
    pub fn check_trees(
        &mut self,
        device: usize,
        trees: &MemoryTrees,
        server: &mut Server,
    ) -> Result<(), Failure> {
        let wrong = |text: String| Err(Failure::new("the trees are sound", text));
        let mut totals = Totals::default();
        totals.begin_pending(trees.totals().flow);
        let mut dirty = 0;
        for (_, entry) in trees.entries() {
            totals.count(entry, true);
            dirty += usize::from(entry.is_dirty());
        }
        if totals != trees.totals() {
            return wrong(format!("totals {:?}, but {totals:?}", trees.totals()));
        }
        let Ok(listed) = trees.dirty(0, usize::MAX);
        if dirty != listed.len() {
            return wrong(format!("{dirty} nodes are dirty, {} are listed", listed.len()));
        }
        let meta = trees.meta();
        if meta.cursor > server.manifest.head {
            return wrong(format!("the cursor {:?} is past the head", meta.cursor));
        }
        if self.digests.get(&device) == Some(&meta.digest) {
            return Ok(());
        }
        let mut digest = Digest::default();
        for (id, entry) in trees.entries() {
            if let Some(remote) = &entry.remote {
                digest.add(id, remote.rev, &remote.node);
                let told = server.version(id, remote.rev).and_then(|(_, _, node)| node);
                if told.as_ref() != Some(&remote.node) {
                    return wrong(format!("{id} is not what the server told: {remote:?}"));
                }
            }
        }
        if digest != meta.digest {
            return wrong("the digest is another than the remote tree's".to_owned());
        }
        self.digests.insert(device, digest);
        Ok(())
    }
}
