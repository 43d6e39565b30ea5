//! The three trees in memory: for tests and the simulator.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::convert::Infallible;

use super::defect::Defect;
use super::trees::{Entry, Local, Meta, Putting, Sent, Totals, Trees, counted_for};
use crate::model::{Flow, ListId, Name, NodeId};

/// Trees in maps; what was kept and what is durable is remembered, so that a crash can go back to it.
#[derive(Debug, Clone, Default)]
pub struct MemoryTrees {
    now: State,
    kept: Option<Box<State>>,
    durable: Option<Box<State>>,
    defect: Option<Defect>,
}

#[derive(Debug, Clone, Default)]
struct State {
    entries: BTreeMap<NodeId, (u64, Entry)>,
    local: BTreeMap<(NodeId, Name), BTreeSet<NodeId>>,
    local_in: BTreeMap<NodeId, BTreeSet<NodeId>>,
    remote: BTreeMap<(NodeId, Name), BTreeSet<NodeId>>,
    remote_in: BTreeMap<NodeId, BTreeSet<NodeId>>,
    inodes: HashMap<u64, BTreeSet<NodeId>>,
    dirty: BTreeMap<u64, NodeId>,
    totals: Totals,
    meta: Meta,
    sent: BTreeMap<u64, Vec<Sent>>,
    puttings: BTreeMap<NodeId, Putting>,
    seq: u64,
}

impl MemoryTrees {
    /// Returns empty trees.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Lets the engine over these trees have a fault.
    #[must_use]
    pub fn with_defect(mut self, defect: Option<Defect>) -> Self {
        self.defect = defect;
        self
    }

    /// Goes back to what was last kept, as the end of the process would.
    pub fn crash(&mut self) {
        self.now = self.kept.as_deref().cloned().unwrap_or_default();
    }

    /// Goes back to the last checkpoint, as a power cut may.
    pub fn lose_power(&mut self) {
        self.kept.clone_from(&self.durable);
        self.crash();
    }

    /// Returns all entries in the order of their ids.
    pub fn entries(&self) -> impl Iterator<Item = (NodeId, &Entry)> {
        self.now.entries.iter().map(|(id, (_, entry))| (*id, entry))
    }
}

impl State {
    fn index(&mut self, id: NodeId, seq: u64, entry: &Entry, add: bool) {
        fn change<K: Ord>(map: &mut BTreeMap<K, BTreeSet<NodeId>>, key: K, id: NodeId, add: bool) {
            if add {
                map.entry(key).or_default().insert(id);
            } else if let Some(set) = map.get_mut(&key) {
                set.remove(&id);
                if set.is_empty() {
                    map.remove(&key);
                }
            }
        }
        if let Some(local) = &entry.local {
            let parent = local.place.parent;
            if !local.parked {
                change(&mut self.local, (parent, local.disk_name().clone()), id, add);
            }
            change(&mut self.local_in, parent, id, add);
            let same = self.inodes.entry(local.stat.ino).or_default();
            if add {
                same.insert(id);
            } else {
                same.remove(&id);
                if same.is_empty() {
                    self.inodes.remove(&local.stat.ino);
                }
            }
        }
        if let Some(remote) = &entry.remote {
            let place = &remote.node.place;
            change(&mut self.remote, (place.parent, place.name.clone()), id, add);
            change(&mut self.remote_in, place.parent, id, add);
        }
        if entry.is_dirty() {
            if add {
                self.dirty.insert(seq, id);
            } else {
                self.dirty.remove(&seq);
            }
        }
        self.totals.count(entry, add);
    }
}

fn page(set: Option<&BTreeSet<NodeId>>, after: Option<NodeId>, limit: usize) -> Vec<NodeId> {
    use std::ops::Bound::{Excluded, Unbounded};
    let from = after.map_or(Unbounded, Excluded);
    set.map(|set| set.range((from, Unbounded)).take(limit).copied().collect()).unwrap_or_default()
}

impl Trees for MemoryTrees {
    type Error = Infallible;

    fn get(&self, id: NodeId) -> Result<Entry, Infallible> {
        Ok(self.now.entries.get(&id).map(|(_, entry)| entry.clone()).unwrap_or_default())
    }

    fn put(&mut self, id: NodeId, entry: &Entry) -> Result<(), Infallible> {
        let state = &mut self.now;
        let seq = match state.entries.remove(&id) {
            Some((seq, old)) => {
                state.index(id, seq, &old, false);
                seq
            }
            None => {
                state.seq += 1;
                state.seq
            }
        };
        if !entry.is_empty() {
            state.index(id, seq, entry, true);
            state.entries.insert(id, (seq, entry.clone()));
        }
        Ok(())
    }

    fn local_at(&self, parent: NodeId, disk_name: &Name) -> Result<Vec<NodeId>, Infallible> {
        let set = self.now.local.get(&(parent, disk_name.clone()));
        Ok(page(set, None, usize::MAX))
    }

    fn remote_at(&self, parent: NodeId, name: &Name) -> Result<Vec<NodeId>, Infallible> {
        let set = self.now.remote.get(&(parent, name.clone()));
        Ok(page(set, None, usize::MAX))
    }

    fn local_children(
        &self,
        parent: NodeId,
        after: Option<NodeId>,
        limit: usize,
    ) -> Result<Vec<NodeId>, Infallible> {
        Ok(page(self.now.local_in.get(&parent), after, limit))
    }

    fn remote_children(
        &self,
        parent: NodeId,
        after: Option<NodeId>,
        limit: usize,
    ) -> Result<Vec<NodeId>, Infallible> {
        Ok(page(self.now.remote_in.get(&parent), after, limit))
    }

    fn local_by_inode(&self, ino: u64) -> Result<Vec<NodeId>, Infallible> {
        Ok(page(self.now.inodes.get(&ino), None, usize::MAX))
    }

    fn local_with_list(&self, list: ListId, limit: usize) -> Result<Vec<NodeId>, Infallible> {
        let has = |entry: &Entry| entry.local.as_ref().and_then(Local::list) == Some(list);
        let all = self.now.entries.iter();
        Ok(all.filter(|(_, (_, entry))| has(entry)).take(limit).map(|(id, _)| *id).collect())
    }

    fn dirty(&self, after: u64, limit: usize) -> Result<Vec<(u64, NodeId)>, Infallible> {
        let range = self.now.dirty.range(after.saturating_add(1)..);
        Ok(range.take(limit).map(|(seq, id)| (*seq, *id)).collect())
    }

    fn all(&self, after: Option<NodeId>, limit: usize) -> Result<Vec<NodeId>, Infallible> {
        use std::ops::Bound::{Excluded, Unbounded};
        let range = self.now.entries.range((after.map_or(Unbounded, Excluded), Unbounded));
        Ok(range
            .filter(|(_, (_, entry))| entry.remote.is_some() || entry.synced.is_some())
            .take(limit)
            .map(|(id, _)| *id)
            .collect())
    }

    fn totals(&self) -> Totals {
        self.now.totals
    }

    fn count_for(&mut self, flow: Flow) -> Result<(), Infallible> {
        self.now.totals = counted_for(self, flow)?;
        Ok(())
    }

    fn meta(&self) -> Meta {
        self.now.meta
    }

    fn set_meta(&mut self, meta: Meta) -> Result<(), Infallible> {
        self.now.meta = meta;
        Ok(())
    }

    fn note_sent(&mut self, commit: u64, changes: &[Sent]) -> Result<(), Infallible> {
        self.now.sent.insert(commit, changes.to_vec());
        Ok(())
    }

    fn forget_sent(&mut self, commit: u64) -> Result<(), Infallible> {
        self.now.sent.remove(&commit);
        Ok(())
    }

    fn sent(&self) -> Result<Vec<(u64, Vec<Sent>)>, Infallible> {
        Ok(self.now.sent.iter().map(|(commit, sent)| (*commit, sent.clone())).collect())
    }

    fn note_putting(&mut self, putting: &Putting) -> Result<(), Infallible> {
        self.now.puttings.insert(putting.node, putting.clone());
        Ok(())
    }

    fn forget_putting(&mut self, node: NodeId) -> Result<(), Infallible> {
        self.now.puttings.remove(&node);
        Ok(())
    }

    fn puttings(&self) -> Result<Vec<Putting>, Infallible> {
        Ok(self.now.puttings.values().cloned().collect())
    }

    fn keep(&mut self) -> Result<(), Infallible> {
        match &mut self.kept {
            Some(kept) if self.defect == Some(Defect::CursorAheadOfNodes) => {
                kept.meta.cursor = self.now.meta.cursor;
            }
            kept => *kept = Some(Box::new(self.now.clone())),
        }
        Ok(())
    }

    fn checkpoint(&mut self) -> Result<(), Infallible> {
        self.keep()?;
        self.durable.clone_from(&self.kept);
        Ok(())
    }

    fn has_defect(&self, defect: Defect) -> bool {
        self.defect == Some(defect)
    }
}
