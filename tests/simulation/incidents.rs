//! How other synchronizers lost files, played with the real engines: the root causes of
//! `docs/reliability.md` where the order of what happens matters, and no other test plays them.

use picloud::model::BatchId;
use picloud::server::rules::undo::{self, How};

use crate::disk::{Trouble, content_of};
use crate::server::Server;
use crate::world::World;

#[track_caller]
fn settle(world: &mut World) {
    if let Err(failure) = world.settle() {
        panic!("{failure}\n{}", world.trace());
    }
}

#[track_caller]
fn assert_trees(world: &mut World, devices: usize, expected: &str) {
    for device in 0..devices {
        assert_eq!(world.tree(device), expected, "device {device}\n{}", world.trace());
    }
    assert_eq!(world.check(), Ok(()), "{}", world.trace());
}

/// R6: a directory is renamed on one device while something happens in it on the other, and its
/// sibling has a name that begins alike. Either may be heard first.
#[test]
fn r06_a_renamed_directory_takes_what_happens_in_it_along_and_its_sibling_is_left_alone() {
    for (mover, worker) in [(0, 1), (1, 0)] {
        let mut world = World::new(6, 2);
        world.build(0, "d/ d/e/ d/e/a=1 d/b=2 d2/ d2/a=3");
        settle(&mut world);
        world.script(mover, "mv d x");
        world.script(worker, "write d/e/a 4; write d/e/new 5; rm d/b; mkdir d/f; write d/f/g 6");
        world.script(worker, "write d2/a 7; write d2/new 8");
        for device in [mover, worker] {
            if let Err(failure) = world.settle_one(device) {
                panic!("{failure}\n{}", world.trace());
            }
        }
        settle(&mut world);
        assert_trees(&mut world, 2, "d2/ d2/a=7 d2/new=8 x/ x/e/ x/e/a=4 x/e/new=5 x/f/ x/f/g=6");
    }
}

/// R11: a directory is left out, the agent is killed at any moment of removing it, and then it is wanted
/// back at once, or stays left out. Nothing of it is deleted, and what was not sent is kept.
#[test]
fn r11_what_is_left_out_is_deleted_nowhere_whenever_the_agent_dies_and_what_is_wanted_then() {
    for turns in 0..10 {
        for is_wanted_back in [true, false] {
            let mut world = World::new(11, 2);
            world.build(0, "d/ d/a=1 d/b=2 d/e/ d/e/c=3 k=4");
            settle(&mut world);
            world.checkpoint(1);
            world.exclude_at(1, "d");
            world.script(1, "write d/new 6");
            let mut expected = "d/ d/a=1 d/b=2 d/e/ d/e/c=3 d/new=6 k=4";
            if !is_wanted_back {
                world.script(1, "write d/b 5");
                expected = "d/ d/a=1 d/b=5 d/e/ d/e/c=3 d/new=6 k=4";
            }
            world.go_on(turns);
            world.kill(1);
            if !is_wanted_back {
                settle(&mut world);
                assert_eq!(world.tree(1), "k=4", "{turns} turns\n{}", world.trace());
                assert_eq!(world.tree(0), expected, "{turns} turns\n{}", world.trace());
            }
            world.include_all(None);
            settle(&mut world);
            assert_trees(&mut world, 2, expected);
        }
    }
}

/// The server takes a batch back, asked by nobody's agent.
#[track_caller]
fn undo(world: &mut World, first: u64, asked_by: usize) -> undo::Outcome {
    let manifest = &mut world.server.manifest;
    let last = manifest.head;
    let batch = BatchId { first: picloud::model::Rev(first), last };
    let author = Server::device(asked_by);
    let how = How { author, is_dry_run: false, is_approved: true, date: "2026-11-24" };
    let Ok(outcome) = undo::undo(manifest, batch, how);
    outcome.unwrap()
}

/// R20: a deletion that everybody has followed is taken back, or is taken back while some have not
/// heard of it, and some have gone on with what they had.
#[test]
fn r20_a_deletion_is_taken_back_whoever_has_heard_of_it() {
    const TREE: &str = "d/ d/a=1 d/b=2 d/e/ d/e/c=3 k=4";
    for heard in [&[1, 2][..], &[1], &[2], &[]] {
        let mut world = World::new(20, 3);
        world.build(0, TREE);
        settle(&mut world);
        let first = world.server.head().0 + 1;
        world.script(0, "rm d; write k 5");
        for device in [&[0][..], heard].concat() {
            if let Err(failure) = world.settle_one(device) {
                panic!("{failure}\n{}", world.trace());
            }
        }
        let outcome = undo(&mut world, first, 1);
        assert_eq!((outcome.counts.created, outcome.counts.edited), (5, 1), "{outcome:?}");
        assert_eq!(outcome.left_count, 0);
        // One that had not heard of the deletion goes on with what it has.
        let works = !heard.contains(&2);
        if works {
            world.script(2, "write d/a 6; mv d/b d/f; write d/e/new 7");
        }
        settle(&mut world);
        let expected = if works { "d/ d/a=6 d/e/ d/e/c=3 d/e/new=7 d/f=2 k=4" } else { TREE };
        for device in 0..3 {
            assert_eq!(world.tree(device), expected, "heard {heard:?}\n{}", world.trace());
        }
        // And a deletion is one again.
        world.script(1, "rm d");
        settle(&mut world);
        assert_eq!([0, 1, 2].map(|device| world.tree(device)), ["k=4"; 3]);
    }
}

/// A file is moved over one and then over another. Its own node is deleted then, and so is the first of
/// those; but whenever that is found, the server always has its bytes.
#[test]
fn what_is_moved_over_other_files_is_on_the_server_at_any_moment() {
    let moved = format!("{:?}", content_of("moved"));
    for (turns, is_read_slowly) in (0..40).flat_map(|turns| [(turns, false), (turns, true)]) {
        let mut world = World::new(30, 2);
        world.build(0, "c=1 d/ d/e=2 f/ f/b=moved");
        settle(&mut world);
        world.script(0, "mv f/b c");
        world.go_on(turns);
        world.script(0, "mv c d/e");
        for _ in 0..80 {
            if is_read_slowly {
                world.pass_ms(300);
            }
            world.go_on(1);
            let is_there = world.server.contents().contains(&moved);
            assert!(is_there, "{turns} turns\n{}", world.trace());
        }
        settle(&mut world);
        assert_trees(&mut world, 2, "d/ d/e=moved f/");
    }
}

/// A directory that is left out, and is just going, is moved to where another one is, and that into it; while
/// somebody else moves it into that. Each of the two is in the other's way.
#[test]
fn a_directory_that_is_left_out_makes_way_for_the_one_that_was_moved_into_it() {
    let mut world = World::new(31, 2);
    world.build(0, "e/ e/a=1 x/ x/b=2 x/y/");
    settle(&mut world);
    world.script(0, "mv e x/y/e");
    world.exclude_at(1, "e");
    world.script(1, "mv e t; mv x t/g; mv t x");
    if let Err(failure) = world.settle_one(0) {
        panic!("{failure}\n{}", world.trace());
    }
    settle(&mut world);
    assert_eq!(world.tree(1), "x/ x/b=2 x/y/", "{}", world.trace());
    world.include_all(None);
    settle(&mut world);
    assert_trees(&mut world, 2, "x/ x/b=2 x/y/ x/y/e/ x/y/e/a=1");
}

/// A file gets another name that no look has found when the agent dies, and changes places with a directory
/// that was moved just before: what was moved is settled once all is known, and all is known although that
/// name has to wait for what is parked.
#[test]
fn what_is_parked_comes_back_although_it_has_a_name_that_was_not_known() {
    for turns in 0..12 {
        let mut world = World::new(32, 2);
        world.build(0, "a=1 e/ x/ x/b=2");
        settle(&mut world);
        world.script(1, "mv x c");
        settle(&mut world);
        world.script(1, "mv a t; mv c a; mv t c");
        world.go_on(turns);
        if !world.tree(0).contains("a=1") {
            break;
        }
        world.script(0, "ln a e/d");
        world.kill(0);
        settle(&mut world);
        assert_trees(&mut world, 2, "a/ a/b=2 c=1 e/ e/d=1");
    }
}

/// What was left out is removed, the agent dies before it knows, and a person makes another file there: that is
/// no edit of the one that the others have.
#[test]
fn what_is_made_where_something_was_left_out_replaces_nothing_after_a_kill() {
    for (seed, turns) in (0..10).flat_map(|seed| (0..12).map(move |turns| (seed, turns))) {
        let mut world = World::new(seed, 2);
        world.build(0, "d/ d/a=1 k=4");
        settle(&mut world);
        world.checkpoint(1);
        world.exclude_at(1, "d");
        world.go_on(turns);
        if !world.tree(1).contains("d/a=1") {
            world.kill(1);
            if world.tree(1).contains("d/") {
                world.script(1, "write d/a 5");
            } else {
                world.script(1, "mkdir d; write d/a 5");
            }
        }
        settle(&mut world);
        let tree = world.tree(0);
        assert!(tree.contains("d/a=1"), "{seed} {turns}: {tree}\n{}", world.trace());
    }
}

/// The power takes what a file held, and a directory cannot be read when all is looked at afterwards.
#[test]
fn what_the_power_takes_of_a_directory_that_cannot_be_read_at_first_is_no_edit() {
    for seed in 0..60 {
        let mut world = World::new(seed, 2);
        world.build(0, "a=1 d/ d/b=2 d/e/ d/e/c=3");
        settle(&mut world);
        world.script(1, "write a 4; write d/b 5; write d/e/c 6");
        world.go_on(40);
        world.power_cut(1);
        world.devices[1].disk.borrow_mut().trouble = Some(Trouble::Errors(70));
        world.go_on(4);
        settle(&mut world);
        let tree = world.tree(0);
        let is_there = ["a=4", "d/b=5", "d/e/c=6"].iter().all(|text| tree.contains(text));
        assert!(is_there, "{seed}: {tree}\n{}", world.trace());
    }
}

/// The power goes while a file is parked, and takes its bytes, which the server has.
#[test]
fn what_the_power_takes_of_a_parked_file_is_no_edit() {
    for (seed, turns) in (0..40).flat_map(|seed| (0..16).map(move |turns| (seed, turns))) {
        let mut world = World::new(seed, 2);
        world.build(0, "a=1 b=2");
        settle(&mut world);
        world.script(0, "mv a t; mv b a; mv t b");
        world.go_on(turns);
        world.power_cut(1);
        settle(&mut world);
        // Whose the versions on a disk that lost power are is not known: there may be conflict copies.
        for n in 0..2 {
            let tree = world.tree(n);
            let is_right = tree.starts_with("a=2 ") && tree.contains(" b=1");
            assert!(is_right, "{seed} {turns}: {tree}\n{}", world.trace());
        }
    }
}

/// The power goes while a directory is parked, and takes a file in it that the server has. No look goes
/// there afterwards before the directory is back in the folder.
#[test]
fn what_the_power_takes_of_a_parked_directory_is_deleted_nowhere() {
    for (seed, turns) in (0..40).flat_map(|seed| (0..16).map(move |turns| (seed, turns))) {
        let mut world = World::new(seed, 2);
        world.build(0, "c/ c/a=1 c/e/");
        settle(&mut world);
        world.script(1, "write c/new 2");
        settle(&mut world);
        world.script(0, "mv c/e t; mv c t/x; mv t c");
        world.go_on(turns);
        world.power_cut(1);
        settle(&mut world);
        assert_trees(&mut world, 2, "c/ c/x/ c/x/a=1 c/x/new=2");
    }
}

/// Where a file is moved to, a person puts another name of it: that one does not wait for the file, which waits
/// for its place.
#[test]
fn another_name_of_a_file_does_not_bar_its_way() {
    for (seed, turns) in (0..40).flat_map(|seed| (0..12).map(move |turns| (seed, turns))) {
        let mut world = World::new(seed, 2);
        world.build(0, "b=1 d/ d/e/");
        settle(&mut world);
        world.script(0, "mv b t; mv d/e b; mv t d/e");
        world.go_on(turns);
        let tree = world.tree(1);
        if !(tree.starts_with("b=1 ") && tree.contains("d/e/")) {
            continue;
        }
        world.script(1, "rm d/e; ln b d/e");
        settle(&mut world);
    }
}

/// The agent dies before it knows that two directories that it parked are back in the folder, and a person
/// deletes one of them meanwhile, of which something is moved away elsewhere.
#[test]
fn what_was_parked_in_an_earlier_life_and_is_gone_is_not_waited_for() {
    for (seed, turns) in (0..40).flat_map(|seed| (0..16).map(move |turns| (seed, turns))) {
        let mut world = World::new(seed, 2);
        world.build(0, "c/ c/a=1 c/e/ c/e/a=2 d/ d/e/ d/e/b=3 e/ k=5");
        settle(&mut world);
        world.script(0, "mv d/e t; mv c d/e; mv t c");
        world.go_on(turns);
        world.kill(1);
        if world.tree(1).contains("d/e/a=1") {
            world.script(0, "mv d/e/e e/b; write e/b/a 4");
            world.script(1, "rm d/e; rm k");
        }
        settle(&mut world);
    }
}
