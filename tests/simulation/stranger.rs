//! Another drive of the same server, whose only member knows the hash of everything in the first,
//! and tries to get its bytes.

use std::collections::BTreeSet;

use picloud::model::{
    Attrs, Body, Change, ChangeOp, Content, DeviceId, Name, Node, NodeId, Place, Rev, Timestamp,
};
use picloud::protocol::message::ChangeResult;
use picloud::server::rules;
use picloud::server::rules::memory::MemoryManifest;

use super::disk::content_of;
use super::rng::Rng;
use super::world::Failure;

#[derive(Debug, Default)]
pub struct Stranger {
    pub manifest: MemoryManifest,
    /// What its member brought.
    brought: BTreeSet<String>,
    nodes: u8,
}

impl Stranger {
    /// Names a content of the first drive, or one of its own, brought or not, in its own drive.
    pub fn acts(&mut self, rng: &mut Rng, known: &[String]) -> Result<(), Failure> {
        let own = format!("s{:05}", rng.below(4));
        let text = if rng.chance(70) { rng.pick(known).cloned().unwrap_or(own) } else { own };
        // Bytes it has it may bring; those of the others it does not have.
        let content = content_of(&text);
        if !known.contains(&text) && rng.chance(50) {
            if let Content::Chunk { id, len } = content {
                self.manifest.add_chunk(id, len);
            }
            self.brought.insert(text.clone());
        }
        self.nodes = self.nodes.wrapping_add(1);
        let name = Name::try_from(format!("f{}", self.nodes).as_str()).unwrap();
        let node = Node {
            place: Place { parent: NodeId::ROOT, name },
            body: Body::File { content, mtime: Timestamp::default() },
            attrs: Attrs::from_mode(0o644),
        };
        let id = NodeId::from_bytes([self.nodes; 16]);
        let change = Change::new(id, Rev::ZERO, ChangeOp::Create(node));
        let Ok(results) =
            rules::apply(&mut self.manifest, DeviceId::from_bytes([0xff; 16]), &[change]);
        let is_accepted = matches!(results.as_slice(), [ChangeResult::Accepted { .. }]);
        if is_accepted != self.brought.contains(&text) {
            return Err(Failure::new("no bytes cross drives", format!("{text}: {results:?}")));
        }
        Ok(())
    }

    /// What the drive names, it has, and only by its own member.
    pub fn check(&self) -> Result<(), Failure> {
        let own: BTreeSet<String> =
            self.brought.iter().map(|text| format!("{:?}", content_of(text))).collect();
        for (id, version) in self.manifest.nodes() {
            if let Some(Node { body: Body::File { content, .. }, .. }) = &version.node
                && !own.contains(&format!("{content:?}"))
            {
                return Err(Failure::new("no bytes cross drives", format!("{id}: {content:?}")));
            }
        }
        Ok(())
    }
}
