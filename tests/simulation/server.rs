//! A model server: the manifest's rules over maps.

use std::collections::BTreeMap;

use picloud::model::{
    Body, Change, ChangeOp, Digest, Lineage, Node, NodeId, Place, Refusal, Rev, Versioned,
};

#[derive(Debug, Clone, Default)]
pub struct Server {
    pub nodes: BTreeMap<NodeId, (Rev, usize, Option<Node>)>,
    pub created: BTreeMap<NodeId, Rev>,
    /// Every version, with its author.
    pub versions: BTreeMap<(NodeId, Rev), (usize, Option<Node>)>,
    pub head: Rev,
    pub digest: Digest,
}

impl Server {
    pub fn lineage() -> Lineage {
        Lineage::from_bytes([9; 16])
    }

    fn live(&self, id: NodeId) -> Option<&Node> {
        self.nodes.get(&id)?.2.as_ref()
    }

    fn at(&self, place: &Place) -> Option<NodeId> {
        self.nodes
            .iter()
            .find(|(_, (_, _, node))| node.as_ref().is_some_and(|node| node.place == *place))
            .map(|(id, _)| *id)
    }

    fn check_place(&self, id: NodeId, place: &Place) -> Result<(), Refusal> {
        if place.parent != NodeId::ROOT && !self.live(place.parent).is_some_and(Node::is_dir) {
            return Err(Refusal::NoParent);
        }
        if let Some(by) = self.at(place).filter(|by| *by != id) {
            return Err(Refusal::NameTaken { by });
        }
        let mut at = place.parent;
        while at != NodeId::ROOT {
            if at == id {
                return Err(Refusal::Cycle);
            }
            at = self.live(at).unwrap().place.parent;
        }
        Ok(())
    }

    pub fn commit(&mut self, author: usize, change: &Change) -> Result<Rev, Refusal> {
        let id = change.node;
        let current = self.nodes.get(&id).cloned();
        let after = match &change.op {
            ChangeOp::Create(node) => Some(node.clone()),
            ChangeOp::Update { place, body, attrs } => {
                let base = self.versions.get(&(id, change.base)).and_then(|(_, node)| node.clone());
                let Some(mut node) = base else {
                    return Err(Refusal::Stale { current: Rev::ZERO });
                };
                node.place = place.clone().unwrap_or(node.place);
                node.body = body.clone().unwrap_or(node.body);
                node.attrs = attrs.unwrap_or(node.attrs);
                Some(node)
            }
            ChangeOp::Delete => None,
        };
        let rev_now = current.as_ref().map_or(Rev::ZERO, |(rev, _, _)| *rev);
        if rev_now != change.base {
            let next = self.versions.range((id, change.base.next())..).next();
            return match next {
                Some(((node, rev), (by, state)))
                    if *node == id && *by == author && *state == after =>
                {
                    Ok(*rev)
                }
                _ => Err(Refusal::Stale { current: rev_now }),
            };
        }
        if change.base != Rev::ZERO && self.live(id).is_none() {
            return Err(Refusal::Stale { current: rev_now });
        }
        match &after {
            Some(node) => self.check_place(id, &node.place)?,
            None => {
                if self
                    .nodes
                    .values()
                    .any(|(_, _, node)| node.as_ref().is_some_and(|node| node.place.parent == id))
                {
                    return Err(Refusal::NotEmpty);
                }
            }
        }
        self.head = self.head.next();
        if let Some((rev, _, Some(old))) = &current {
            self.digest.remove(id, *rev, old);
        }
        if let Some(node) = &after {
            self.digest.add(id, self.head, node);
        }
        self.created.entry(id).or_insert(self.head);
        self.versions.insert((id, self.head), (author, after.clone()));
        self.nodes.insert(id, (self.head, author, after));
        Ok(self.head)
    }

    /// The page after `cursor` with at most `limit` nodes: its end, whether it is consistent, nodes.
    pub fn page(&self, cursor: Rev, limit: usize) -> (Rev, bool, Vec<Versioned>) {
        let mut changed: Vec<Versioned> = self
            .nodes
            .iter()
            .filter(|(_, (rev, _, _))| *rev > cursor)
            .map(|(id, (rev, _, node))| Versioned { id: *id, rev: *rev, node: node.clone() })
            .collect();
        changed.sort_by_key(|versioned| versioned.rev);
        let all = changed.len() <= limit;
        changed.truncate(limit);
        let upto = if all { self.head } else { changed.last().map_or(self.head, |v| v.rev) };
        let consistent =
            self.nodes.iter().all(|(id, (rev, _, _))| *rev <= upto || self.created[id] > upto);
        (upto, consistent, changed)
    }

    /// The tree as text.
    pub fn render(&self) -> Vec<String> {
        let mut lines: Vec<(Vec<String>, String)> = self
            .nodes
            .values()
            .filter_map(|(_, _, node)| node.as_ref())
            .map(|node| {
                let mut path = vec![node.place.name.to_string()];
                let mut at = node.place.parent;
                while at != NodeId::ROOT {
                    let parent = self.live(at).unwrap();
                    path.push(parent.place.name.to_string());
                    at = parent.place.parent;
                }
                path.reverse();
                let text = path.join("/");
                let line = match &node.body {
                    Body::Dir => format!("{text}/"),
                    Body::File { content, .. } => {
                        format!("{text} = {content:?} {:o}", node.attrs.mode)
                    }
                    Body::Link { target } => {
                        format!("{text} -> {}", String::from_utf8_lossy(target))
                    }
                };
                (path, line)
            })
            .collect();
        lines.sort();
        lines.into_iter().map(|(_, line)| line).collect()
    }
}
