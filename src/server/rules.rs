//! The rules by which a change is accepted: the one place where they are written.
//!
//! They stand over a few primitives ([`Manifest`]), so that SQLite, a later PostgreSQL and the
//! simulator's server accept exactly the same. The server never merges: a change that does not fit
//! the manifest as it is now is refused with the precise reason, and what becomes of it is the
//! device's planner's job alone.
//!
//! Changes can be joined: a run of them is accepted or refused as one, and only what they come to
//! together has to be valid. So names can be exchanged in one step, and no other device ever sees
//! the one between.
//!
//! Idempotent by state: a change sent twice finds that the manifest has it already, made by the
//! same device on the same base, and is answered with the rev it got the first time.

mod steps;
pub mod undo;

use crate::model::{
    Attrs, Body, Change, ChangeOp, ChunkId, Content, DeviceId, Name, Node, NodeId, Place, Refusal,
    Rev, Usage,
};
use crate::protocol::message::ChangeResult;
use steps::{Step, Steps};

/// One version of one node, as the journal keeps it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Version {
    /// The rev it was made with.
    pub rev: Rev,
    /// The device that made it.
    pub author: DeviceId,
    /// Its state; nothing when the version is a deletion.
    pub node: Option<Node>,
}

/// Whether a drive has what a file's content needs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Presence {
    /// All of it.
    Present,
    /// Not this; no chunk is named when a whole list is missing.
    Missing(Option<ChunkId>),
    /// It has it, but its length is not the one the content claims.
    WrongLen,
}

/// A fault that the simulator can put into the rules on purpose, to show that its checks find it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Defect {
    /// A change counts as made on the newest version, whatever its author had seen.
    BaseIgnored,
    /// A name may be taken twice.
    NamesShared,
    /// A directory may be moved into itself.
    CyclesAllowed,
    /// A directory may be deleted with what is in it.
    FullDirsDeleted,
    /// A drive may name contents it does not have.
    ContentUnchecked,
    /// A change sent twice is not known again.
    SentTwiceUnknown,
    /// The owner's files may be larger than the quota.
    QuotaIgnored,
}

/// What the rules need of one drive's manifest, within one transaction.
pub trait Manifest {
    /// Why a primitive can fail; it ends the whole transaction.
    type Error;

    /// Returns the newest version of a node, a deletion included.
    fn current(&mut self, id: NodeId) -> Result<Option<Version>, Self::Error>;
    /// Returns the version of a node that was made with exactly this rev.
    fn version(&mut self, id: NodeId, rev: Rev) -> Result<Option<Version>, Self::Error>;
    /// Returns the oldest version of a node that is newer than this rev.
    fn version_after(&mut self, id: NodeId, rev: Rev) -> Result<Option<Version>, Self::Error>;
    /// Returns the live node with this name in a directory.
    fn child(&mut self, parent: NodeId, name: &Name) -> Result<Option<NodeId>, Self::Error>;
    /// Returns at most `limit` live entries of a directory, in any order.
    fn children(&mut self, dir: NodeId, limit: usize) -> Result<Vec<NodeId>, Self::Error>;
    /// Returns whether the drive has a content.
    fn presence(&mut self, content: &Content) -> Result<Presence, Self::Error>;
    /// Returns how much of the room of the drive's owner is in use, with all that was put so far.
    fn usage(&mut self) -> Result<Usage, Self::Error>;
    /// Returns whether a deletion, legal otherwise, passes the mass-deletion gate; records it as
    /// held when it does not.
    fn admit_deletion(&mut self, author: DeviceId, id: NodeId) -> Result<bool, Self::Error>;
    /// Frees the name of a live node whose next version is about to be put, with those of others
    /// that may need it. `place` is where the node is.
    fn vacate(&mut self, id: NodeId, place: &Place) -> Result<(), Self::Error>;
    /// Makes the next version of a node, which takes the next rev of the drive. `before` is the
    /// version that [`Manifest::current`] returned.
    fn put(
        &mut self,
        id: NodeId,
        author: DeviceId,
        before: Option<&Version>,
        node: Option<Node>,
    ) -> Result<Rev, Self::Error>;

    /// Returns whether the rules over this manifest have a fault on purpose; only the simulator's do,
    /// for the others this is a constant that leaves nothing behind.
    fn has_defect(&self, _defect: Defect) -> bool {
        false
    }
}

/// How many directories up a move is followed to see that it makes no cycle. Deeper trees than this
/// do not exist on a disk (`PATH_MAX` ends at 2048 one-letter names); a hostile one must not keep the
/// writer busy.
const DEPTH_MAX: usize = 4096;

/// How many changes can be one: a ring of nodes that wait for each other's names is seldom longer than
/// two.
pub const JOINED_MAX: usize = 64;

/// Applies changes in order, each or each run of joined ones ([`Change::with_next`]) by itself, and
/// says of each what became of it.
///
/// # Errors
/// Only those of the manifest's primitives.
pub fn apply<M: Manifest>(
    manifest: &mut M,
    author: DeviceId,
    changes: &[Change],
) -> Result<Vec<ChangeResult>, M::Error> {
    let mut results = Vec::with_capacity(changes.len());
    for joined in changes.chunk_by(|change, _| change.with_next) {
        match apply_joined(manifest, author, joined)? {
            Ok(revs) => results.extend(revs.into_iter().map(|rev| ChangeResult::Accepted { rev })),
            // Each of them is refused for the reason of the one that does not fit.
            Err(refusal) => {
                results.extend(joined.iter().map(|_| ChangeResult::Refused(refusal.clone())))
            }
        }
    }
    Ok(results)
}

type Verdict<T> = Result<T, Refusal>;

/// Returns early with a refusal from a function that returns `Result<Verdict<_>, _>`.
macro_rules! check {
    ($verdict:expr) => {
        match $verdict {
            Ok(value) => value,
            Err(refusal) => return Ok(Err(refusal)),
        }
    };
}
use check;

fn illegal<T>(reason: impl Into<String>) -> Verdict<T> {
    Err(Refusal::Illegal { reason: reason.into() })
}

/// What a change comes to, as far as its own node tells.
#[expect(clippy::large_enum_variant, reason = "nearly all are the large one, and none lives long")]
enum Intent {
    /// Nothing is left to do: the manifest has it since this rev.
    Done(Rev),
    /// The node's next version.
    Put(Step),
}

fn apply_joined<M: Manifest>(
    manifest: &mut M,
    author: DeviceId,
    joined: &[Change],
) -> Result<Verdict<Vec<Rev>>, M::Error> {
    if joined.len() > JOINED_MAX {
        return Ok(illegal(format!("more than {JOINED_MAX} changes are joined")));
    }
    let mut steps = Steps::default();
    // In the order of the changes; what is done already has its rev.
    let mut order = Vec::with_capacity(joined.len());
    for (index, change) in joined.iter().enumerate() {
        if joined[..index].iter().any(|other| other.node == change.node) {
            return Ok(illegal("joined changes are of different nodes"));
        }
        order.push(match check!(intend(manifest, author, change)?) {
            Intent::Done(rev) => (change.node, Some(rev)),
            Intent::Put(step) => {
                steps.add(step);
                (change.node, None)
            }
        });
    }
    for step in order.iter().filter_map(|(id, _)| steps.get(*id)) {
        check!(steps.fits(manifest, step)?);
    }
    if lack_of_room(manifest, &steps)?.is_some() {
        return Ok(Err(Refusal::OverQuota));
    }
    for (id, _) in &order {
        if steps.get(*id).is_some_and(|step| step.after.is_none())
            && !manifest.admit_deletion(author, *id)?
        {
            return Ok(Err(Refusal::NeedsApproval));
        }
    }
    if steps.len() > 1 {
        vacate(manifest, &steps)?;
    }
    let mut revs = Vec::with_capacity(order.len());
    for (id, done) in order {
        let step = steps.remove(id);
        revs.push(match (done, step) {
            (None, Some(Step { id, before, after })) => {
                manifest.put(id, author, before.as_ref(), after)?
            }
            (done, _) => done.unwrap_or_default(),
        });
    }
    Ok(Ok(revs))
}

/// Returns by how much these steps together make the owner's files larger, and for how much there is still
/// room, if that is less. What shrinks them, or leaves them as large as they are, is always let pass.
fn lack_of_room<M: Manifest>(
    manifest: &mut M,
    steps: &Steps,
) -> Result<Option<(u64, u64)>, M::Error> {
    let growth = steps.growth();
    if growth == 0 || manifest.has_defect(Defect::QuotaIgnored) {
        return Ok(None);
    }
    let usage = manifest.usage()?;
    let left = || usage.left().unwrap_or_else(|| Usage::USED_MAX.saturating_sub(usage.used));
    Ok((!usage.has_room_for(growth)).then(|| (growth, left())))
}

/// Frees the names of all nodes of which a next version is about to be put.
fn vacate<M: Manifest>(manifest: &mut M, steps: &Steps) -> Result<(), M::Error> {
    for step in steps.iter() {
        if let Some(node) = step.node_before() {
            manifest.vacate(step.id, &node.place)?;
        }
    }
    Ok(())
}

/// Returns what a change comes to, or why it cannot, from its own node's history alone.
fn intend<M: Manifest>(
    manifest: &mut M,
    author: DeviceId,
    change: &Change,
) -> Result<Verdict<Intent>, M::Error> {
    if change.node == NodeId::ROOT {
        return Ok(illegal("the root of a drive never changes"));
    }
    match &change.op {
        ChangeOp::Create(node) => create(manifest, author, change, node),
        ChangeOp::Update { place, body, attrs } => {
            let wanted = Wanted { place: place.as_ref(), body: body.as_ref(), attrs: *attrs };
            update(manifest, author, change, &wanted)
        }
        ChangeOp::Delete => delete(manifest, author, change),
    }
}

fn create<M: Manifest>(
    manifest: &mut M,
    author: DeviceId,
    change: &Change,
    node: &Node,
) -> Result<Verdict<Intent>, M::Error> {
    if change.base != Rev::ZERO {
        return Ok(illegal("a creation has no base"));
    }
    check!(legal(Some(&node.place), Some(&node.body), Some(node.attrs)));
    if let Some(current) = manifest.current(change.node)? {
        let first = manifest.version_after(change.node, Rev::ZERO)?;
        return Ok(match first {
            Some(first)
                if first.author == author
                    && first.node.as_ref() == Some(node)
                    && !manifest.has_defect(Defect::SentTwiceUnknown) =>
            {
                Ok(Intent::Done(first.rev))
            }
            _ => Err(Refusal::Stale { current: current.rev }),
        });
    }
    let after = Some(node.clone());
    Ok(Ok(Intent::Put(Step { id: change.node, before: None, after })))
}

/// What an update asks for.
struct Wanted<'a> {
    place: Option<&'a Place>,
    body: Option<&'a Body>,
    attrs: Option<Attrs>,
}

impl Wanted<'_> {
    fn of(&self, node: &Node) -> Node {
        Node {
            place: self.place.unwrap_or(&node.place).clone(),
            body: self.body.unwrap_or(&node.body).clone(),
            attrs: self.attrs.unwrap_or(node.attrs),
        }
    }
}

fn update<M: Manifest>(
    manifest: &mut M,
    author: DeviceId,
    change: &Change,
    wanted: &Wanted<'_>,
) -> Result<Verdict<Intent>, M::Error> {
    if wanted.place.is_none() && wanted.body.is_none() && wanted.attrs.is_none() {
        return Ok(illegal("an update must change something"));
    }
    check!(legal(wanted.place, wanted.body, wanted.attrs));
    let current = match check!(current_at_base(manifest, change)?) {
        AtBase::Current(version) => version,
        AtBase::Superseded { now, base, next } => {
            let same = base.node.map(|node| wanted.of(&node));
            let is_ours = next.author == author && !manifest.has_defect(Defect::SentTwiceUnknown);
            return Ok(if is_ours && same.is_some() && next.node == same {
                Ok(Intent::Done(next.rev))
            } else {
                Err(Refusal::Stale { current: now })
            });
        }
    };
    let Some(before) = &current.node else {
        return Ok(illegal("the node is deleted"));
    };
    let after = wanted.of(before);
    if after.body.kind() != before.body.kind() {
        return Ok(illegal("a node never changes its kind"));
    }
    // From here on the author's base is the newest version.
    Ok(Ok(if after == *before {
        Intent::Done(current.rev)
    } else {
        Intent::Put(Step { id: change.node, before: Some(current), after: Some(after) })
    }))
}

fn delete<M: Manifest>(
    manifest: &mut M,
    author: DeviceId,
    change: &Change,
) -> Result<Verdict<Intent>, M::Error> {
    Ok(match check!(current_at_base(manifest, change)?) {
        AtBase::Superseded { now, next, .. } => {
            let is_ours = next.author == author && !manifest.has_defect(Defect::SentTwiceUnknown);
            if is_ours && next.node.is_none() {
                Ok(Intent::Done(next.rev))
            } else {
                Err(Refusal::Stale { current: now })
            }
        }
        AtBase::Current(current) if current.node.is_none() => Ok(Intent::Done(current.rev)),
        AtBase::Current(current) => {
            Ok(Intent::Put(Step { id: change.node, before: Some(current), after: None }))
        }
    })
}

/// How the author's base relates to the journal.
enum AtBase {
    /// It is the newest version.
    Current(Version),
    /// It was followed by `next`; the newest rev is `now`.
    Superseded { now: Rev, base: Version, next: Version },
}

fn current_at_base<M: Manifest>(
    manifest: &mut M,
    change: &Change,
) -> Result<Verdict<AtBase>, M::Error> {
    let Some(current) = manifest.current(change.node)? else {
        return Ok(Err(Refusal::Stale { current: Rev::ZERO }));
    };
    if current.rev == change.base || manifest.has_defect(Defect::BaseIgnored) {
        return Ok(Ok(AtBase::Current(current)));
    }
    let stale = Refusal::Stale { current: current.rev };
    let Some(base) = manifest.version(change.node, change.base)? else {
        return Ok(Err(stale));
    };
    let Some(next) = manifest.version_after(change.node, change.base)? else {
        return Ok(Err(stale));
    };
    Ok(Ok(AtBase::Superseded { now: current.rev, base, next }))
}

/// The name of each device's own directory in a folder: it is on no other device.
const RESERVED: &[u8] = b".picloud";

fn legal(place: Option<&Place>, body: Option<&Body>, attrs: Option<Attrs>) -> Verdict<()> {
    if place.is_some_and(|place| place.name.as_bytes() == RESERVED) {
        return illegal("the name .picloud is PiCloud's own");
    }
    if body.is_some_and(|body| !body.is_legal()) {
        return illegal("a length or a link target is out of range");
    }
    if attrs.is_some_and(|attrs| !attrs.is_legal()) {
        return illegal("the mode has bits that are not carried");
    }
    Ok(())
}

pub mod memory {
    //! A manifest in memory: for tests of the rules, and for a server in a simulation.

    use std::collections::{BTreeMap, BTreeSet, HashMap};
    use std::convert::Infallible;

    use super::undo::{History, Made, Undo};
    use super::{Defect, Manifest, Presence, Version};
    use crate::model::{
        BatchId, ChunkId, Content, DeviceId, Digest, ListId, Name, Node, NodeId, Place, Rev, Usage,
    };
    use crate::server::gate::{Decision, Gate, GateLimits};

    /// One drive, with all its versions.
    #[derive(Debug, Clone, Default)]
    pub struct MemoryManifest {
        /// The newest rev.
        pub head: Rev,
        /// The digest over the live nodes.
        pub digest: Digest,
        /// The server's clock in milliseconds, set by whoever owns this.
        pub now_ms: i64,
        /// When deletions are held; none for never.
        pub gate_limits: Option<GateLimits>,
        /// How much of its owner's room is in use: all of it by this drive.
        pub usage: Usage,
        /// A fault of the rules over this manifest.
        pub defect: Option<Defect>,
        versions: BTreeMap<NodeId, Vec<Version>>,
        children: BTreeMap<(NodeId, Name), NodeId>,
        chunks: HashMap<ChunkId, u32>,
        lists: HashMap<ListId, u64>,
        gates: BTreeMap<DeviceId, Gate>,
        held: BTreeMap<DeviceId, BTreeSet<NodeId>>,
        /// Every change, in the order of the revs.
        made: Vec<Made>,
        undos: Vec<Undo>,
    }

    impl MemoryManifest {
        /// Records that the drive has a chunk of this length.
        pub fn add_chunk(&mut self, id: ChunkId, len: u32) {
            self.chunks.insert(id, len);
        }

        /// Records that the drive has a list, of a file of this length, and all its chunks.
        pub fn add_list(&mut self, id: ListId, len: u64) {
            self.lists.insert(id, len);
        }

        /// Returns whether the drive has a chunk.
        #[must_use]
        pub fn has_chunk(&self, id: &ChunkId) -> bool {
            self.chunks.contains_key(id)
        }

        /// Returns whether the drive has a list.
        #[must_use]
        pub fn has_list(&self, id: &ListId) -> bool {
            self.lists.contains_key(id)
        }

        /// Returns every node's newest version, deletions included.
        pub fn nodes(&self) -> impl Iterator<Item = (NodeId, &Version)> {
            self.versions.iter().filter_map(|(id, versions)| Some((*id, versions.last()?)))
        }

        /// Returns the rev of a node's first version.
        #[must_use]
        pub fn created(&self, id: NodeId) -> Option<Rev> {
            self.versions.get(&id)?.first().map(|first| first.rev)
        }

        /// Begins a commit of a device, as [`Gate::announce`] says.
        pub fn announce(&mut self, device: DeviceId, pending: Option<u64>, alone: bool) {
            self.gates.entry(device).or_default().announce(pending, alone);
            self.held.retain(|device, _| self.gates[device].held_since_ms.is_some());
        }

        /// Returns the devices with held deletions, and how many each has.
        pub fn held(&self) -> impl Iterator<Item = (DeviceId, u64)> {
            self.held.iter().map(|(device, nodes)| {
                let announced = self.gates.get(device).and_then(|gate| gate.announced);
                (*device, announced.unwrap_or(nodes.len() as u64))
            })
        }

        /// Takes in what a person decides about a device's held deletions.
        pub fn decide(&mut self, device: DeviceId, decision: Decision) {
            self.gates.entry(device).or_default().decide(decision, self.now_ms);
            if decision == Decision::Approve {
                self.held.remove(&device);
            }
        }
    }

    impl Manifest for MemoryManifest {
        type Error = Infallible;

        fn current(&mut self, id: NodeId) -> Result<Option<Version>, Infallible> {
            Ok(self.versions.get(&id).and_then(|all| all.last()).cloned())
        }

        fn version(&mut self, id: NodeId, rev: Rev) -> Result<Option<Version>, Infallible> {
            let all = self.versions.get(&id).into_iter().flatten();
            Ok(all.clone().find(|version| version.rev == rev).cloned())
        }

        fn version_after(&mut self, id: NodeId, rev: Rev) -> Result<Option<Version>, Infallible> {
            let all = self.versions.get(&id).into_iter().flatten();
            Ok(all.clone().find(|version| version.rev > rev).cloned())
        }

        fn child(&mut self, parent: NodeId, name: &Name) -> Result<Option<NodeId>, Infallible> {
            Ok(self.children.get(&(parent, name.clone())).copied())
        }

        fn children(&mut self, dir: NodeId, limit: usize) -> Result<Vec<NodeId>, Infallible> {
            // No name sorts before this one: names are not empty, and NUL is not in them.
            let first = Name::new([1]).map(|name| (dir, name));
            let from = match &first {
                Ok(key) => self.children.range(key..),
                Err(_) => self.children.range::<(NodeId, Name), _>(..),
            };
            let inside = from.take_while(|((parent, _), _)| *parent == dir);
            Ok(inside.take(limit).map(|(_, id)| *id).collect())
        }

        fn vacate(&mut self, id: NodeId, place: &Place) -> Result<(), Infallible> {
            let key = (place.parent, place.name.clone());
            if self.children.get(&key) == Some(&id) {
                self.children.remove(&key);
            }
            Ok(())
        }

        fn presence(&mut self, content: &Content) -> Result<Presence, Infallible> {
            let (found, missing) = match content {
                Content::Empty => return Ok(Presence::Present),
                Content::Chunk { id, .. } => {
                    (self.chunks.get(id).map(|len| u64::from(*len)), Presence::Missing(Some(*id)))
                }
                Content::List { id, .. } => (self.lists.get(id).copied(), Presence::Missing(None)),
            };
            Ok(match found {
                None => missing,
                Some(len) if len == content.len() => Presence::Present,
                Some(_) => Presence::WrongLen,
            })
        }

        fn usage(&mut self) -> Result<Usage, Infallible> {
            Ok(self.usage)
        }

        fn admit_deletion(&mut self, author: DeviceId, id: NodeId) -> Result<bool, Infallible> {
            let Some(limits) = self.gate_limits else {
                return Ok(true);
            };
            let live = self.children.len() as u64;
            let gate = self.gates.entry(author).or_default();
            let passes = gate.admit(self.now_ms, live, &limits);
            if !passes {
                self.held.entry(author).or_default().insert(id);
            }
            Ok(passes)
        }

        fn put(
            &mut self,
            id: NodeId,
            author: DeviceId,
            before: Option<&Version>,
            node: Option<Node>,
        ) -> Result<Rev, Infallible> {
            let rev = self.head.next();
            self.head = rev;
            if let Some(Version { rev, node: Some(node), .. }) = before {
                self.digest.remove(id, *rev, node);
                self.usage.used = self.usage.used.saturating_sub(node.body.content_len());
                self.vacate(id, &node.place)?;
            }
            if let Some(node) = &node {
                self.usage.used = self.usage.used.saturating_add(node.body.content_len());
                self.digest.add(id, rev, node);
                self.children.insert((node.place.parent, node.place.name.clone()), id);
            }
            let version = Version { rev, author, node };
            self.versions.entry(id).or_default().push(version);
            let prev = before.map_or(Rev::ZERO, |version| version.rev);
            self.made.push(Made { rev, node: id, prev, author, time_ms: self.now_ms });
            Ok(rev)
        }

        fn has_defect(&self, defect: Defect) -> bool {
            self.defect == Some(defect)
        }
    }

    impl History for MemoryManifest {
        fn made(&mut self, first: Rev, last: Rev, limit: usize) -> Result<Vec<Made>, Infallible> {
            let newest_first = self.made.iter().rev();
            let found = newest_first.filter(|one| first <= one.rev && one.rev <= last);
            Ok(found.take(limit).copied().collect())
        }

        fn version_before(&mut self, id: NodeId, rev: Rev) -> Result<Option<Version>, Infallible> {
            let all = self.versions.get(&id).into_iter().flatten();
            Ok(all.rev().find(|version| version.rev < rev).cloned())
        }

        fn undo_of(&mut self, batch: BatchId) -> Result<Option<Undo>, Infallible> {
            Ok(self.undos.iter().rev().find(|undo| undo.of == batch).copied())
        }

        fn undo_upto(&mut self, rev: Rev) -> Result<Option<Undo>, Infallible> {
            Ok(self.undos.iter().rev().find(|undo| undo.by.first <= rev).copied())
        }

        fn add_undo(&mut self, undo: Undo) -> Result<(), Infallible> {
            self.undos.push(undo);
            Ok(())
        }

        fn admit_at_once(
            &mut self,
            author: DeviceId,
            count: u64,
            tried: bool,
        ) -> Result<bool, Infallible> {
            let Some(limits) = self.gate_limits else {
                return Ok(true);
            };
            let live = self.children.len() as u64;
            let gate = self.gates.entry(author).or_default();
            let mut after = *gate;
            let passes = after.admit_at_once(self.now_ms, live, &limits, count);
            if !tried {
                *gate = after;
            }
            Ok(passes)
        }
    }
}

#[cfg(test)]
mod tests;
