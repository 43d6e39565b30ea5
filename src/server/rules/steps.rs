//! Next versions of nodes that are one change, and whether the manifest is valid once all are made.
//!
//! What is asked of a step depends on the others: a name is free when its node leaves it, a
//! directory ends up empty when all that is in it goes. So they are kept by node, by the place they
//! come to and by the directory they leave, and checking all of them takes time for each, not for
//! each pair.

use std::collections::BTreeMap;

use super::{DEPTH_MAX, Defect, Manifest, Presence, Verdict, Version, check, illegal};
use crate::model::{Body, Name, Node, NodeId, Place, Refusal};

/// The next version of a node.
#[derive(Debug, Clone)]
pub(super) struct Step {
    pub(super) id: NodeId,
    pub(super) before: Option<Version>,
    pub(super) after: Option<Node>,
}

impl Step {
    /// Returns the node as it is, if it is alive.
    pub(super) fn node_before(&self) -> Option<&Node> {
        self.before.as_ref()?.node.as_ref()
    }
}

/// Steps of different nodes.
#[derive(Debug, Default)]
pub(super) struct Steps {
    by_id: BTreeMap<NodeId, Step>,
    /// Which nodes are to be where, by directory.
    coming: BTreeMap<NodeId, BTreeMap<Name, Vec<NodeId>>>,
    /// How many nodes are now in each directory.
    leaving: BTreeMap<NodeId, usize>,
}

impl Steps {
    /// Adds a step; returns whether there was none of its node.
    pub(super) fn add(&mut self, step: Step) -> bool {
        if self.by_id.contains_key(&step.id) {
            return false;
        }
        if let Some(node) = step.node_before() {
            *self.leaving.entry(node.place.parent).or_default() += 1;
        }
        if let Some(node) = &step.after {
            let names = self.coming.entry(node.place.parent).or_default();
            names.entry(node.place.name.clone()).or_default().push(step.id);
        }
        self.by_id.insert(step.id, step);
        true
    }

    /// Takes a step out again.
    pub(super) fn remove(&mut self, id: NodeId) -> Option<Step> {
        let step = self.by_id.remove(&id)?;
        if let Some(node) = step.node_before()
            && let Some(count) = self.leaving.get_mut(&node.place.parent)
        {
            *count = count.saturating_sub(1);
        }
        if let Some(Node { place, .. }) = &step.after
            && let Some(names) = self.coming.get_mut(&place.parent)
        {
            if let Some(ids) = names.get_mut(&place.name) {
                ids.retain(|other| *other != id);
                if ids.is_empty() {
                    names.remove(&place.name);
                }
            }
            if names.is_empty() {
                self.coming.remove(&place.parent);
            }
        }
        Some(step)
    }

    pub(super) fn get(&self, id: NodeId) -> Option<&Step> {
        self.by_id.get(&id)
    }

    pub(super) fn len(&self) -> usize {
        self.by_id.len()
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = &Step> {
        self.by_id.values()
    }

    /// Returns by how many bytes all of them together make the files of the drive larger; 0 when they do not.
    pub(super) fn growth(&self) -> u64 {
        let len = |node: Option<&Node>| node.map_or(0, |node| i128::from(node.body.content_len()));
        let of = |step: &Step| len(step.after.as_ref()) - len(step.node_before());
        let growth: i128 = self.iter().map(of).sum();
        u64::try_from(growth.max(0)).unwrap_or(u64::MAX)
    }

    /// Returns another node that is to be at this place.
    fn comes_to(&self, place: &Place, but: NodeId) -> Option<NodeId> {
        let ids = self.coming.get(&place.parent)?.get(&place.name)?;
        ids.iter().copied().find(|id| *id != but)
    }

    /// Returns whether a step is valid in the manifest as it will be once all of these are done. A
    /// deletion has to pass the gate besides.
    pub(super) fn fits<M: Manifest>(
        &self,
        manifest: &mut M,
        step: &Step,
    ) -> Result<Verdict<()>, M::Error> {
        let before = step.node_before();
        let Some(after) = &step.after else {
            if before.is_some_and(Node::is_dir) {
                return self.becomes_empty(manifest, step.id);
            }
            return Ok(Ok(()));
        };
        if before.is_none_or(|before| before.place != after.place) {
            check!(self.place_is_free(manifest, step.id, &after.place)?);
        }
        // What is created alone cannot be above anything yet but, in a hostile change, itself.
        let may_be_above = match before {
            Some(before) => before.place.parent != after.place.parent,
            None => self.len() > 1 || after.place.parent == step.id,
        };
        if after.is_dir() && may_be_above {
            check!(self.no_cycle(manifest, step.id, after.place.parent)?);
        }
        if before.is_none_or(|before| !before.body.same_bytes(&after.body)) {
            check!(content_is_present(manifest, &after.body)?);
        }
        Ok(Ok(()))
    }

    /// Returns a node as it will be, nothing when it will not be.
    fn node_after<M: Manifest>(
        &self,
        manifest: &mut M,
        id: NodeId,
    ) -> Result<Option<Node>, M::Error> {
        if let Some(step) = self.get(id) {
            return Ok(step.after.clone());
        }
        Ok(manifest.current(id)?.and_then(|version| version.node))
    }

    /// Checks that nothing will be left in a directory.
    fn becomes_empty<M: Manifest>(
        &self,
        manifest: &mut M,
        dir: NodeId,
    ) -> Result<Verdict<()>, M::Error> {
        if manifest.has_defect(Defect::FullDirsDeleted) {
            return Ok(Ok(()));
        }
        if self.coming.contains_key(&dir) {
            return Ok(Err(Refusal::NotEmpty));
        }
        // Every step's node leaves, or it would come: what is more stays.
        let leaving = self.leaving.get(&dir).copied().unwrap_or_default();
        let children = manifest.children(dir, leaving + 1)?;
        let stays = children.iter().any(|child| self.get(*child).is_none());
        Ok(if stays { Err(Refusal::NotEmpty) } else { Ok(()) })
    }

    /// Checks that the parent will be a live directory and that the name in it will be free for this
    /// node.
    fn place_is_free<M: Manifest>(
        &self,
        manifest: &mut M,
        id: NodeId,
        place: &Place,
    ) -> Result<Verdict<()>, M::Error> {
        if place.parent != NodeId::ROOT
            && !self.node_after(manifest, place.parent)?.is_some_and(|node| node.is_dir())
        {
            return Ok(Err(Refusal::NoParent));
        }
        if let Some(by) = self.comes_to(place, id) {
            return Ok(Err(Refusal::NameTaken { by }));
        }
        if manifest.has_defect(Defect::NamesShared) {
            return Ok(Ok(()));
        }
        Ok(match manifest.child(place.parent, &place.name)? {
            // A step's own node leaves, or it would have been found above.
            Some(by) if by != id && self.get(by).is_none() => Err(Refusal::NameTaken { by }),
            _ => Ok(()),
        })
    }

    /// Checks that `dir` will not be at or above `parent`. Every ancestor of a live node is alive.
    fn no_cycle<M: Manifest>(
        &self,
        manifest: &mut M,
        dir: NodeId,
        parent: NodeId,
    ) -> Result<Verdict<()>, M::Error> {
        let mut at = parent;
        for _ in 0..DEPTH_MAX {
            if at == dir {
                let is_let = manifest.has_defect(Defect::CyclesAllowed);
                return Ok(if is_let { Ok(()) } else { Err(Refusal::Cycle) });
            }
            if at == NodeId::ROOT {
                return Ok(Ok(()));
            }
            match self.node_after(manifest, at)? {
                Some(node) => at = node.place.parent,
                None => return Ok(Err(Refusal::NoParent)),
            }
        }
        Ok(illegal(format!("the new place is more than {DEPTH_MAX} directories deep")))
    }
}

fn content_is_present<M: Manifest>(manifest: &mut M, body: &Body) -> Result<Verdict<()>, M::Error> {
    let Body::File { content, .. } = body else {
        return Ok(Ok(()));
    };
    if manifest.has_defect(Defect::ContentUnchecked) {
        return Ok(Ok(()));
    }
    Ok(match manifest.presence(content)? {
        Presence::Present => Ok(()),
        Presence::Missing(chunk) => Err(Refusal::MissingContent { chunk }),
        Presence::WrongLen => illegal("the content has another length than its parts"),
    })
}
