//! What one node needs, from its three states alone: the table of design section 4 as a function.
//!
//! Pure. Neighbours (a parent that is not there yet, a name that is taken) are the planner's part.

use super::trees::{Aspects, Entry, Local};
use crate::model::{Body, Flow, Node};

/// What a node needs next. One thing at a time: when it is done, the node is decided on again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Need {
    /// Nothing: the three states are equal.
    Rest,
    /// Both sides let go of it: forget it.
    Forget,
    /// Its bytes are not known yet.
    Hash,
    /// The merge base is to become the local state, so that what differs comes from the server:
    /// two equal nodes met, or both sides changed an aspect in which the server's order wins.
    TakeLocalAsBase,
    /// The merge base is to become the server's state: what still differs was changed here, and stays
    /// here.
    TakeRemoteAsBase,
    /// The base is void: the node was deleted here, but changed there, and the change wins.
    DropBase,
    /// It was deleted there, but changed here, and the change wins: it goes on under a new id. What is out
    /// of the way comes back into the folder first.
    Revive,
    /// Tell the server of it.
    PushCreate,
    /// Tell the server what changed.
    PushUpdate(Aspects),
    /// Tell the server that it is gone.
    PushDelete,
    /// Put it on disk.
    PullCreate,
    /// Move it on disk.
    PullPlace,
    /// Put the server's bytes on disk; with `keep`, what is there becomes a conflict copy.
    PullBody {
        /// Whether what is there is somebody's version.
        keep: bool,
    },
    /// Set permissions and modification time on disk.
    PullAttrs,
    /// Take it from disk.
    PullDelete,
    /// Take it from disk, because it is left out on this device; the server keeps it.
    LeaveOut,
    /// Nothing: it differs, in a way that this folder does not carry to the other side.
    Keep,
}

/// The side from which one aspect has to go to the other.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Side {
    Same,
    Push,
    Pull,
    Both,
}

fn side<V: PartialEq>(base: &V, local: &V, remote: &V) -> Side {
    if local == remote {
        Side::Same
    } else if remote == base {
        Side::Push
    } else if local == base {
        Side::Pull
    } else {
        Side::Both
    }
}

/// Returns what a node needs next in a folder of this direction.
pub(crate) fn decide(entry: &Entry, flow: Flow) -> Need {
    let need = decide_both_ways(entry);
    let need = match flow {
        Flow::Both => need,
        Flow::ReceiveOnly => receive(entry, need),
        Flow::SendOnly => send(entry, need),
    };
    let is_parked = entry.local.as_ref().is_some_and(|local| local.parked);
    match need {
        // Such things are done with what is at a place in the folder.
        Need::PushCreate
        | Need::PushUpdate(_)
        | Need::PullBody { .. }
        | Need::PullAttrs
        | Need::Keep
            if is_parked =>
        {
            Need::Revive
        }
        need => need,
    }
}

/// What was changed here stays here, once all that the server has is here.
fn receive(entry: &Entry, need: Need) -> Need {
    match need {
        Need::PushCreate | Need::PushDelete => Need::Keep,
        Need::PushUpdate(_) => match (&entry.remote, &entry.synced) {
            (Some(remote), Some(base)) if remote.node != *base && !entry.left_out => {
                Need::TakeRemoteAsBase
            }
            _ => Need::Keep,
        },
        need => need,
    }
}

/// What was changed there stays there. What was changed here is told of each aspect by itself, where the
/// server has it as both last agreed.
fn send(entry: &Entry, need: Need) -> Need {
    let Some(local) = &entry.local else {
        // What is wanted again after it was left out is nothing that was deleted here either.
        return match need {
            Need::PullCreate | Need::DropBase if !entry.left_out => Need::Keep,
            need => need,
        };
    };
    if entry.left_out {
        return need;
    }
    match need {
        // Out of the way of something since an earlier time, in which it received: back with it.
        Need::PullPlace if local.parked => Need::Revive,
        Need::PullDelete if local.parked => need,
        Need::PullPlace | Need::PullBody { .. } | Need::PullAttrs => {
            match (local.node(), &entry.remote, &entry.synced) {
                (Some(here), Some(remote), Some(base)) => {
                    let push = changed_here(&here, &remote.node, base);
                    if push == Aspects::default() { Need::Keep } else { Need::PushUpdate(push) }
                }
                _ => Need::Keep,
            }
        }
        Need::PullDelete => Need::Keep,
        // Two that met: what else differs is as it is here.
        Need::TakeLocalAsBase if entry.synced.is_none() => Need::TakeRemoteAsBase,
        need => need,
    }
}

/// Returns the aspects that changed here and not there.
fn changed_here(here: &Node, there: &Node, base: &Node) -> Aspects {
    let is_pushed = |side| side == Side::Push;
    let body = body_side(&base.body, &here.body, &there.body);
    Aspects {
        place: is_pushed(side(&base.place, &here.place, &there.place)),
        body: is_pushed(body) || has_own_time(body, here, there, base),
        attrs: is_pushed(side(&base.attrs, &here.attrs, &there.attrs)),
    }
}

/// Returns what a node needs next where changes go both ways.
fn decide_both_ways(entry: &Entry) -> Need {
    if !entry.is_dirty() {
        return Need::Rest;
    }
    let remote = entry.remote.as_ref().map(|remote| &remote.node);
    let Some(local) = &entry.local else {
        return match (remote, &entry.synced) {
            (None, _) => Need::Forget,
            (Some(_), Some(_)) if entry.left_out => Need::DropBase,
            (Some(_), None) => Need::PullCreate,
            (Some(remote), Some(base)) if remote == base => Need::PushDelete,
            (Some(_), Some(_)) => Need::DropBase,
        };
    };
    let Some(here) = local.node() else {
        return Need::Hash;
    };
    match (remote, &entry.synced) {
        (Some(there), base) if entry.left_out => leave_out(local, &here, there, base.as_ref()),
        (None, None) => Need::PushCreate,
        (None, Some(base)) if unchanged_since(&here, base) => Need::PullDelete,
        (None, Some(_)) => Need::Revive,
        (Some(there), None) if here.body.same_bytes(&there.body) => Need::TakeLocalAsBase,
        (Some(there), None) if here.body.kind() != there.body.kind() => Need::Revive,
        (Some(there), None) => {
            Need::PullBody { keep: !here.body.holds_nothing_against(&there.body) }
        }
        (Some(there), Some(base)) => three_way(local, &here, there, base),
    }
}

/// A directory's permissions alone do not keep it alive.
fn unchanged_since(here: &Node, base: &Node) -> bool {
    here == base || (here.is_dir() && here.place == base.place)
}

fn three_way(local: &Local, here: &Node, there: &Node, base: &Node) -> Need {
    let place = side(&base.place, &here.place, &there.place);
    let attrs = side(&base.attrs, &here.attrs, &there.attrs);
    let body = body_side(&base.body, &here.body, &there.body);
    // The order on disk: first where it is, then what it holds, then its attributes.
    if local.parked || matches!(place, Side::Pull | Side::Both) {
        return Need::PullPlace;
    }
    match body {
        Side::Pull => return Need::PullBody { keep: false },
        Side::Both => return Need::PullBody { keep: true },
        Side::Same | Side::Push => {}
    }
    if matches!(attrs, Side::Pull | Side::Both) || needs_time(here, there, base) {
        return Need::PullAttrs;
    }
    // Now nothing there is unknown here: what still differs was changed here.
    let push = changed_here(here, there, base);
    if push == Aspects::default() {
        // Both sides came to the same by themselves.
        Need::TakeLocalAsBase
    } else {
        Need::PushUpdate(push)
    }
}

/// What is left out goes once nothing of it is here alone. So it is [`Need::LeaveOut`] only where what
/// is here is the merge base: who finds it missing later, after a kill, knows by that what it was.
/// Nothing of the server's is fetched for what is to go.
fn leave_out(local: &Local, here: &Node, there: &Node, base: Option<&Node>) -> Need {
    let Some(base) = base else {
        let is_there = here.body.same_bytes(&there.body);
        return if is_there || here.body.holds_nothing_against(&there.body) {
            Need::TakeLocalAsBase
        } else {
            Need::Revive
        };
    };
    if here == base || local.parked {
        return Need::LeaveOut;
    }
    let body = body_side(&base.body, &here.body, &there.body);
    if body == Side::Both {
        return Need::Revive;
    }
    let push = changed_here(here, there, base);
    // In what else differs the server's order wins.
    if push == Aspects::default() { Need::TakeLocalAsBase } else { Need::PushUpdate(push) }
}

/// Returns whether equal bytes have another modification time here, and only here it changed.
fn has_own_time(body: Side, here: &Node, there: &Node, base: &Node) -> bool {
    body == Side::Same && here.body != there.body && there.body == base.body
}

/// Bytes decide; modification times alone are no conflict.
fn body_side(base: &Body, here: &Body, there: &Body) -> Side {
    if here.same_bytes(there) {
        Side::Same
    } else if there.same_bytes(base) {
        Side::Push
    } else if here.same_bytes(base) {
        Side::Pull
    } else {
        Side::Both
    }
}

/// Returns whether equal bytes have another modification time there than here, and it is the
/// server's that counts: it changed there.
fn needs_time(here: &Node, there: &Node, base: &Node) -> bool {
    here.body.same_bytes(&there.body) && here.body != there.body && there.body != base.body
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::seam::Stat;
    use crate::engine::trees::{LocalBody, Remote};
    use crate::model::{Attrs, ChunkId, Content, Kind, Name, NodeId, Place, Rev, Timestamp};

    fn content(byte: u8) -> Content {
        Content::Chunk { id: ChunkId::from_bytes([byte; 32]), len: 1 }
    }

    fn node(name: &str, body: Body) -> Node {
        let place = Place { parent: NodeId::ROOT, name: Name::new(name).unwrap() };
        Node { place, body, attrs: Attrs::from_mode(0o644) }
    }

    /// What is out of the way is at no place at which anything could be done with it but to bring it back.
    #[test]
    fn what_is_parked_comes_back_before_anything_else_is_done_with_it() {
        let zero = Timestamp::default();
        let file = |byte| Body::File { content: content(byte), mtime: zero };
        let nodes: Vec<Option<Node>> = [None, Some(Body::Dir)]
            .into_iter()
            .chain((1..4).map(|byte| Some(file(byte))))
            .flat_map(|body| ["a", "b"].map(|name| body.clone().map(|body| node(name, body))))
            .collect();
        let attrs = Attrs::from_mode(0o644);
        let (kind, size) = (Some(Kind::File), 1);
        let stat = Stat { kind, ino: 9, birth: zero, size, mtime: zero, ctime: zero, attrs };
        let local = Local {
            place: node("a", Body::Dir).place,
            alias: None,
            stat,
            body: LocalBody::File(Some(content(1))),
            racy: false,
            parked: true,
            stands_for: None,
        };
        for flow in [Flow::Both, Flow::ReceiveOnly, Flow::SendOnly] {
            for (remote, synced) in nodes.iter().flat_map(|r| nodes.iter().map(move |s| (r, s))) {
                for left_out in [false, true] {
                    let remote = remote.clone().map(|node| Remote { rev: Rev(1), node });
                    let entry = Entry {
                        local: Some(local.clone()),
                        remote,
                        synced: synced.clone(),
                        left_out,
                    };
                    let need = decide(&entry, flow);
                    assert!(
                        matches!(
                            need,
                            Need::TakeLocalAsBase
                                | Need::TakeRemoteAsBase
                                | Need::Revive
                                | Need::PullPlace
                                | Need::PullDelete
                                | Need::LeaveOut
                        ),
                        "{flow:?} {need:?} {entry:?}"
                    );
                }
            }
        }
    }
}
