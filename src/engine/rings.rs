//! Rings of nodes, each of which waits for the next.
//!
//! A ring has to be opened, or told of in one step; a mere chain must not be, and comes undone from its
//! end. Which one it is takes a walk over what waits, so what a walk found is remembered until an entry
//! changes: a chain of thousands (photos numbered anew) is walked once, not once for each of its nodes.

use std::collections::{HashMap, HashSet};

use crate::model::NodeId;

/// The most nodes of a walk, and of all those of a poll together.
const WALK_MAX: usize = 32 * 1024;

/// What is known of one graph of nodes that wait for others.
#[derive(Debug, Default)]
pub(super) struct Rings {
    /// Nodes that were walked over, with the ring they are in, if there is one.
    known: HashMap<NodeId, Option<usize>>,
    rings: Vec<Vec<NodeId>>,
    walked: usize,
}

/// What a walk from a node found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Ring {
    /// It is in no ring.
    No,
    /// The ring it is in: all nodes that wait for it, over others, and for which it waits.
    Of(Vec<NodeId>),
    /// It waits for more than can be walked over now.
    Unknown,
}

/// A node whose blockers are being walked over.
struct Open {
    node: NodeId,
    left: Vec<NodeId>,
    number: usize,
    /// The lowest number that is reached from here.
    lowest: usize,
    waits_for_itself: bool,
}

impl Rings {
    /// An entry changed.
    pub(super) fn forget(&mut self) {
        if !self.known.is_empty() {
            self.known.clear();
            self.rings.clear();
        }
    }

    /// A poll begins: nothing is known, and there may be as many steps again.
    pub(super) fn renew(&mut self) {
        self.forget();
        self.walked = 0;
    }

    /// Returns the ring a node is in (Tarjan's strongly connected components, without recursion).
    pub(super) fn of<E>(
        &mut self,
        id: NodeId,
        blockers: impl Fn(NodeId) -> Result<Vec<NodeId>, E>,
    ) -> Result<Ring, E> {
        if let Some(known) = self.known.get(&id) {
            return Ok(known.map_or(Ring::No, |ring| Ring::Of(self.rings[ring].clone())));
        }
        let mut lowest_of: HashMap<NodeId, usize> = HashMap::new();
        let mut unsettled: Vec<NodeId> = Vec::new();
        let mut path: Vec<Open> = Vec::new();
        let mut next = Some(id);
        loop {
            if let Some(node) = next.take() {
                if self.walked >= WALK_MAX {
                    return Ok(Ring::Unknown);
                }
                self.walked += 1;
                let number = lowest_of.len();
                lowest_of.insert(node, number);
                unsettled.push(node);
                let left = blockers(node)?;
                path.push(Open { node, left, number, lowest: number, waits_for_itself: false });
            }
            let Some(at) = path.last_mut() else { break };
            if let Some(blocker) = at.left.pop() {
                at.waits_for_itself |= blocker == at.node;
                match lowest_of.get(&blocker) {
                    _ if self.known.contains_key(&blocker) => {}
                    Some(number) => at.lowest = at.lowest.min(*number),
                    None => next = Some(blocker),
                }
                continue;
            }
            let Some(done) = path.pop() else { break };
            if let Some(above) = path.last_mut() {
                above.lowest = above.lowest.min(done.lowest);
            }
            if done.lowest == done.number {
                let first = unsettled.iter().rposition(|node| *node == done.node).unwrap_or(0);
                self.settle(unsettled.split_off(first), done.waits_for_itself);
            }
        }
        Ok(match self.known.get(&id) {
            Some(Some(ring)) => Ring::Of(self.rings[*ring].clone()),
            _ => Ring::No,
        })
    }

    fn settle(&mut self, nodes: Vec<NodeId>, waits_for_itself: bool) {
        let ring = (nodes.len() > 1 || waits_for_itself).then_some(self.rings.len());
        self.known.extend(nodes.iter().map(|node| (*node, ring)));
        if ring.is_some() {
            self.rings.push(nodes);
        }
    }
}

/// Returns a node and all that it waits for, over others; nothing when that is more than `limit`.
pub(super) fn reached_from<E>(
    id: NodeId,
    limit: usize,
    blockers: impl Fn(NodeId) -> Result<Vec<NodeId>, E>,
) -> Result<Option<Vec<NodeId>>, E> {
    let mut all = vec![id];
    let mut seen = HashSet::from([id]);
    let mut next = 0;
    while let Some(&at) = all.get(next) {
        next += 1;
        all.extend(blockers(at)?.into_iter().filter(|blocker| seen.insert(*blocker)));
        if all.len() > limit {
            return Ok(None);
        }
    }
    Ok(Some(all))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::convert::Infallible;

    use super::*;

    fn id(number: u32) -> NodeId {
        let mut bytes = [0; 16];
        bytes[..4].copy_from_slice(&number.to_be_bytes());
        NodeId::from_bytes(bytes)
    }

    fn number(id: NodeId) -> u32 {
        let bytes = id.as_bytes();
        u32::from_be_bytes([bytes[0], bytes[1], bytes[2], bytes[3]])
    }

    fn ring(rings: &mut Rings, from: u32, blockers: impl Fn(u32) -> Vec<u32>) -> Ring {
        let blockers = |node| -> Result<Vec<NodeId>, Infallible> {
            Ok(blockers(number(node)).into_iter().map(id).collect())
        };
        let Ok(ring) = rings.of(id(from), blockers);
        ring
    }

    /// All graphs of four nodes, against the definition.
    #[test]
    fn a_node_is_in_a_ring_with_those_that_it_waits_for_and_that_wait_for_it() {
        for graph in 0..1u32 << 16 {
            let blockers = |node: u32| -> Vec<u32> {
                (0..4).filter(|other| graph >> (node * 4 + other) & 1 == 1).collect()
            };
            let reach = |from: u32| -> BTreeSet<u32> {
                let mut found = BTreeSet::new();
                let mut open = blockers(from);
                while let Some(at) = open.pop() {
                    if found.insert(at) {
                        open.extend(blockers(at));
                    }
                }
                found
            };
            let mut rings = Rings::default();
            for node in 0..4 {
                let expected: BTreeSet<u32> = if reach(node).contains(&node) {
                    (0..4)
                        .filter(|o| reach(node).contains(o) && reach(*o).contains(&node))
                        .collect()
                } else {
                    BTreeSet::new()
                };
                let found = match ring(&mut rings, node, blockers) {
                    Ring::Of(ring) => ring.into_iter().map(number).collect(),
                    Ring::No => BTreeSet::new(),
                    Ring::Unknown => panic!("four nodes are not too many"),
                };
                assert_eq!(found, expected, "node {node} of {graph:x}");
            }
        }
    }

    #[test]
    fn a_long_chain_is_walked_once_and_one_too_long_is_not_walked_to_its_end() {
        let mut rings = Rings::default();
        for from in 0..10_000 {
            let chain = |node| if node < 10_000 { vec![node + 1] } else { vec![] };
            assert_eq!(ring(&mut rings, from, chain), Ring::No);
        }
        assert_eq!(rings.walked, 10_001);
        rings.renew();
        assert_eq!(ring(&mut rings, 0, |node| vec![node + 1]), Ring::Unknown);
        rings.renew();
        let ring_of_20_000 = |node| vec![(node + 1) % 20_000];
        let Ring::Of(found) = ring(&mut rings, 7, ring_of_20_000) else { panic!("no ring") };
        assert_eq!(found.len(), 20_000);
    }
}
