//! Mass deletions, which the server holds until a person decides: the engines with the real rules.

use std::time::Duration;

use picloud::engine::seam::{Event, Word};
use picloud::server::gate::{Decision, GateLimits};

use super::server::Server;
use super::world::World;

/// Two devices in sync; the server holds what is more than 20 nodes and a quarter of the drive.
fn world(files: usize) -> (World, String) {
    let mut world = World::new(1, 2);
    world.server.manifest.gate_limits =
        Some(GateLimits { window: Duration::from_secs(600), count_min: 20, share: 0.25 });
    world.script(0, "mkdir kept; write kept/a k; mkdir d; mkdir d/e");
    for n in 0..files {
        let dir = if n % 2 == 0 { "d" } else { "d/e" };
        world.script(0, &format!("write {dir}/{n} t{n}"));
    }
    settle(&mut world);
    let tree = world.tree(0);
    assert_eq!(world.tree(1), tree);
    (world, tree)
}

#[track_caller]
fn settle(world: &mut World) {
    if let Err(failure) = world.settle() {
        panic!("{failure}\n{}", world.trace());
    }
}

/// A person decides, and the device is told.
fn decide(world: &mut World, decision: Decision) {
    world.server.manifest.decide(Server::device(0), decision);
    let word = match decision {
        Decision::Approve => Word::Open,
        Decision::Reject => Word::Rejected,
    };
    world.hear(0, Event::Deletions(word));
}

/// The deletion of `d` by the first device is held whole.
#[track_caller]
fn assert_held(world: &World, tree: &str, deletions: u64) {
    assert!(world.is_held(0));
    let held: Vec<_> = world.server.manifest.held().collect();
    assert_eq!(held, [(Server::device(0), deletions)]);
    assert_eq!(world.tree(0), "kept/ kept/a=k");
    assert_eq!(world.tree(1), tree, "nothing is deleted elsewhere");
}

#[test]
fn a_mass_deletion_is_held_whole_and_happens_once_it_is_approved() {
    // With more than one commit holds, too.
    for files in [40, 1500] {
        let (mut world, tree) = world(files);
        world.script(0, "rm d");
        settle(&mut world);
        assert_held(&world, &tree, files as u64 + 2);
        // What is no deletion goes on meanwhile.
        world.script(0, "write kept/a k2");
        settle(&mut world);
        assert!(world.tree(1).contains("kept/a=k2"), "{}", world.tree(1));
        decide(&mut world, Decision::Approve);
        settle(&mut world);
        assert_eq!(world.check(), Ok(()), "{}", world.trace());
        assert_eq!(world.tree(1), "kept/ kept/a=k2");
        assert!(!world.is_held(0) && world.server.manifest.held().count() == 0);
    }
}

#[test]
fn a_rejected_mass_deletion_is_undone_where_it_was_made() {
    let (mut world, tree) = world(200);
    world.script(0, "rm d");
    settle(&mut world);
    assert_held(&world, &tree, 202);
    decide(&mut world, Decision::Reject);
    settle(&mut world);
    assert_eq!([world.tree(0), world.tree(1)], [tree.clone(), tree], "{}", world.trace());
    assert_eq!(world.check(), Ok(()));
    assert_eq!(world.server.manifest.held().count(), 0, "the device has told that it is over");
    // From then on it is a device like any other.
    world.script(0, "rm d/0; rm kept");
    settle(&mut world);
    assert!(!world.is_held(0) && !world.tree(1).contains("kept"), "{}", world.tree(1));
    assert_eq!(world.check(), Ok(()));
}

/// A device that starts anew after a crash hears of the rejection before it has looked at its disk.
#[test]
fn a_rejection_counts_for_deletions_that_are_not_found_yet() {
    let (mut world, tree) = world(200);
    decide(&mut world, Decision::Reject);
    world.script(0, "rm d");
    settle(&mut world);
    assert_eq!([world.tree(0), world.tree(1)], [tree.clone(), tree], "{}", world.trace());
    assert_eq!(world.check(), Ok(()));
    assert!(!world.is_held(0) && world.server.manifest.held().count() == 0);
}

#[test]
fn what_is_put_back_is_not_held_any_more_and_what_was_edited_elsewhere_comes_back() {
    let (mut world, tree) = world(60);
    world.script(0, "rm d");
    settle(&mut world);
    assert_held(&world, &tree, 62);
    // An edit beats a deletion, a held one as well.
    world.script(1, "write d/0 new");
    settle(&mut world);
    assert!(world.tree(0).contains("d/0=new"), "{}", world.tree(0));
    assert!(world.is_held(0));
    world.script(0, "mkdir d/e");
    for n in 1..60 {
        let dir = if n % 2 == 0 { "d" } else { "d/e" };
        world.script(0, &format!("write {dir}/{n} t{n}"));
    }
    settle(&mut world);
    assert_eq!(world.check(), Ok(()), "{}", world.trace());
    assert!(!world.is_held(0) && world.server.manifest.held().count() == 0);
}
