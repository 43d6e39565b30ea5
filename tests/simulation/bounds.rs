//! What could go round in circles, and does not: rings of renames of any length, nodes that wait for each
//! other, names of the engine's making that somebody else wants, one inode with two names on two devices.

use picloud::engine::memory::MemoryTrees;
use picloud::engine::seam::{Event, Stat};
use picloud::engine::trees::{Entry, Local, LocalBody, Trees as _};
use picloud::engine::{Engine, Now, Settings};
use picloud::model::{Attrs, IdSource, Kind, Lineage, Name, NodeId, Place, Rev, Timestamp};

use crate::disk::{Form, Trouble};
use crate::world::World;

#[track_caller]
fn settle(world: &mut World) {
    if let Err(failure) = world.settle() {
        panic!("{failure}\n{}", world.trace());
    }
}

#[track_caller]
fn assert_in_sync(world: &mut World) {
    assert_eq!(world.check(), Ok(()), "{}", world.trace());
    assert_eq!(world.stays_quiet(), Ok(()), "{}", world.trace());
}

/// Two devices with so many files, each of which gets the next one's name on the first device; the last
/// one gets the first one's in a ring, else a new one.
fn rename_all(files: usize, is_ring: bool) -> World {
    let mut world = World::new(3, 2);
    for n in 0..files {
        world.script(0, &format!("write f{n} t{n}"));
    }
    settle(&mut world);
    let last = if is_ring { 0 } else { files };
    world.script(0, &format!("mv f{} t", files - 1));
    for n in (1..files).rev() {
        world.script(0, &format!("mv f{} f{n}", n - 1));
    }
    world.script(0, &format!("mv t f{last}"));
    settle(&mut world);
    for device in 0..2 {
        let tree = world.tree(device);
        for n in 0..files {
            let at = if n + 1 < files { n + 1 } else { last };
            assert!(tree.split(' ').any(|entry| entry == format!("f{at}=t{n}")), "{tree}");
        }
        assert_eq!(tree.split(' ').count(), files, "{tree}");
    }
    world
}

#[test]
fn a_ring_of_more_renames_than_a_server_takes_as_one_comes_undone() {
    for files in [2, 64, 65, 200] {
        let mut world = rename_all(files, true);
        let is_told_as_one = !world.trace().contains("(being renamed");
        assert_eq!(is_told_as_one, files <= 64, "{files} files");
        assert_in_sync(&mut world);
    }
}

#[test]
fn a_long_chain_of_renames_is_told_without_names_in_between() {
    let mut world = rename_all(300, false);
    assert!(!world.trace().contains("(being renamed"));
    assert_in_sync(&mut world);
}

/// A damaged state has each of two directories in the other one: neither can be told of.
#[test]
fn nodes_that_wait_for_each_other_are_put_off() {
    let id = |number: u8| NodeId::from_bytes([number; 16]);
    let mut trees = MemoryTrees::new();
    for (node, parent) in [(1, 2), (2, 1)] {
        let zero = Timestamp::default();
        let attrs = Attrs::from_mode(0o755);
        let (kind, ino) = (Some(Kind::Dir), u64::from(node) + 10);
        let stat = Stat { kind, ino, birth: zero, size: 0, mtime: zero, ctime: zero, attrs };
        let place = Place { parent: id(parent), name: Name::new("d").unwrap() };
        let (alias, body) = (None, LocalBody::Dir);
        let (racy, parked, stands_for) = (false, false, None);
        let local = Local { place, alias, stat, body, racy, parked, stands_for };
        let Ok(()) = trees.put(id(node), &Entry { local: Some(local), ..Entry::default() });
    }
    let Ok(mut engine) = Engine::new(trees, Settings::default(), IdSource::new([1; 32]));
    let mut now = Now { ms: 1, wall: Timestamp::new(1, 0).unwrap() };
    let (lineage, from, head) = (Lineage::from_bytes([1; 16]), Rev::ZERO, Rev::ZERO);
    let Ok(()) = engine.handle(now, Event::Online { lineage, from, head });
    let mut actions = Vec::new();
    // Ever more time passes between two polls that the engine asks for.
    for _ in 0..12 {
        let Ok(()) = engine.poll(now, &mut actions);
        let next = engine.wake_at_ms().unwrap();
        assert!(next > now.ms, "at {} ms: {}", now.ms, engine.describe_waits());
        now.ms = next;
    }
    assert!(now.ms > 10_000, "{now:?}");
}

/// Somebody gives a name that a device has made for a node whose own it cannot hold; or one that is the
/// same as that there.
#[test]
fn a_made_name_gives_way_to_who_has_it_by_right() {
    for is_upper in [false, true] {
        let mut world = World::with_forms(4, 2, &[Form::Exact, Form::CaseBlind]);
        world.script(0, "write a 1; write A 2");
        settle(&mut world);
        let (_, made) = world.devices[1].aliases().into_keys().next().unwrap();
        let made = made.to_string();
        let wanted = if is_upper { made.to_uppercase() } else { made };
        let wanted = Name::new(wanted.as_bytes()).unwrap();
        assert!(world.devices[0].disk.borrow_mut().mkdir(std::slice::from_ref(&wanted)));
        settle(&mut world);
        assert_in_sync(&mut world);
        let tree = world.tree(1);
        assert!(tree.contains("=1") && tree.contains("=2"), "{tree}");
        // Where only their case differs, either may be the one with a made name.
        assert!(is_upper || tree.contains(&format!("{wanted}/")), "{tree}");
    }
}

/// A file with two names loses its bytes with the power, and is an empty one of two names then: that its
/// modes may differ elsewhere stays so.
#[test]
fn a_file_with_two_names_that_lost_its_bytes_is_still_one_of_two_names() {
    for seed in 0..40 {
        let mut world = World::new(seed, 2);
        world.script(0, "write a 1");
        settle(&mut world);
        world.script(0, "write a 2; ln a b; chmod 755 b");
        world.power_cut(0);
        world.script(1, "chmod 600 a");
        settle(&mut world);
        assert_in_sync(&mut world);
    }
}

/// A file has two names on both devices, and gets a mode by one name here and by the other one there. Each
/// device tells of that one name only, before it has looked at the other one, or of both.
#[test]
fn modes_of_an_inode_with_two_names_are_not_told_back_and_forth() {
    for (seed, is_one_told) in [(0, false), (1, false), (0, true), (1, true)] {
        let mut world = World::new(seed, 2);
        world.script(0, "write a 1; ln a b");
        settle(&mut world);
        world.script(1, "rm b; ln a b");
        settle(&mut world);
        let before = world.server.head().0;
        world.script(0, "chmod 755 a");
        world.script(1, "chmod 600 b");
        if is_one_told {
            for (device, name) in [(0, "a"), (1, "b")] {
                let mut disk = world.devices[device].disk.borrow_mut();
                let all = disk.hints.len();
                disk.hints.retain(|(_, hint)| {
                    hint.as_ref().is_some_and(|at| at.as_bytes() == name.as_bytes())
                });
                assert!(disk.hints.len() < all);
            }
            world.go_on(200);
        }
        settle(&mut world);
        assert_in_sync(&mut world);
        let revs = world.server.head().0 - before;
        assert!(revs <= 8, "{revs} changes for two modes\n{}", world.trace());
    }
}

/// What was done on disk and could not be made durable is no person's doing, and nothing of it stays out
/// of sight.
#[test]
fn what_could_not_be_made_durable_is_found_where_it_is() {
    for (before, received) in [
        ("b->t d/ d/a=1", "mv b x; mv d b; mv x d"),
        ("a=1 b=2", "mv a x; mv b a; mv x b"),
        ("d/ d/e/ d/e/a=1", "mv d/e x; mv d x/d; mv x d"),
        ("a=1 b=2", "rm a"),
        ("a=1 b=2", "write a 3"),
        ("a=1 b=2", "mv a c"),
    ] {
        let mut world = World::new(1, 2);
        world.build(0, before);
        settle(&mut world);
        world.script(0, received);
        world.settle_one(0).unwrap();
        let expected = world.tree(0);
        world.devices[1].disk.borrow_mut().trouble = Some(Trouble::Unsyncable);
        world.go_on(40);
        settle(&mut world);
        assert_in_sync(&mut world);
        assert_eq!(world.tree(1), expected, "{received}: {}", world.trace());
    }
}
