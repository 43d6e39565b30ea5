//! The table of conflicts, row by row: two devices in sync, each changed while the other does not
//! hear of it, then brought together.
//!
//! A tree is written `"a=1 d/ d/b=2 l->t"`. A change is `"write a 2"`, `"mkdir d"`, `"mv a b"`,
//! `"rm d"`, `"link l t"`, several with `;` between them. Ann is heard first, so where the server's
//! order decides, hers is the remote side and Bob's the local one.

use picloud::engine::trees::Trees as _;
use picloud::model::Flow;

use crate::disk::Form;
use crate::world::World;

#[track_caller]
fn check(before: &str, ann: &str, bob: &str, expected: &str) {
    let mut world = World::new(1, 2);
    world.build(0, before);
    world.settle().unwrap();
    world.script(0, ann);
    world.script(1, bob);
    // Ann's changes reach the server before Bob's, and before Bob hears of them.
    world.settle_one(0).unwrap();
    world.settle().unwrap();
    let result = world.check();
    let trees: Vec<String> = (0..2).map(|device| world.tree(device)).collect();
    assert_eq!(trees, [expected, expected], "{before:?}, ann {ann:?}, bob {bob:?}: {result:?}");
    assert_eq!(result, Ok(()), "{}", world.trace());
}

#[test]
fn what_only_one_side_changed_goes_to_the_other() {
    check("a=1", "write a 2", "", "a=2");
    check("a=1", "", "write a 2", "a=2");
    check("a=1", "rm a", "", "");
    check("a=1", "", "rm a", "");
    check("a=1", "mv a b", "", "b=1");
    check("d/ d/a=1", "", "mv d e", "e/ e/a=1");
    check("", "mkdir d; write d/a 1; link l t", "", "d/ d/a=1 l->t");
}

#[test]
fn the_same_change_on_both_sides_is_one() {
    check("a=1", "write a 2", "write a 2", "a=2");
    check("a=1", "rm a", "rm a", "");
    check("", "mkdir d; write d/a 1", "mkdir d; write d/a 1", "d/ d/a=1");
}

#[test]
fn of_two_edits_the_remote_keeps_the_name() {
    check(
        "a.txt=1",
        "write a.txt 2",
        "write a.txt 3",
        "a (conflicted copy bob 2026-11-23).txt=3 a.txt=2",
    );
}

#[test]
fn an_edit_beats_a_deletion() {
    check("a=1", "write a 2", "rm a", "a=2");
    check("a=1", "rm a", "write a 2", "a=2");
    check("d/ d/a=1", "rm d", "write d/a 2", "d/ d/a=2");
    check("d/ d/a=1", "write d/a 2", "rm d", "d/ d/a=2");
}

#[test]
fn of_two_moves_the_servers_order_wins() {
    check("a=1", "mv a b", "mv a c", "b=1");
    check("d/ d/a=1", "mv d e", "mv d f", "e/ e/a=1");
}

#[test]
fn an_edit_and_a_move_both_apply() {
    check("a=1", "write a 2", "mv a b", "b=2");
    check("a=1", "mv a b", "write a 2", "b=2");
    check("d/ d/a=1", "mv d e", "write d/a 2", "e/ e/a=2");
}

#[test]
fn a_deleted_directory_stays_with_what_is_new_or_edited_in_it() {
    check("d/ d/a=1 d/b=2", "rm d", "write d/c 3", "d/ d/c=3");
    check("d/ d/a=1 d/b=2", "write d/c 3", "rm d", "d/ d/c=3");
    check("d/ d/e/ d/e/a=1 d/b=2", "rm d", "write d/e/a 3", "d/ d/e/ d/e/a=3");
}

#[test]
fn of_two_creations_directories_and_equal_files_merge_and_others_conflict() {
    check("", "mkdir d; write d/a 1", "mkdir d; write d/b 2", "d/ d/a=1 d/b=2");
    check("", "write a 1", "write a 1", "a=1");
    check("", "write a 1", "write a 2", "a=1 a (conflicted copy bob 2026-11-23)=2");
    check("", "link a x", "write a 2", "a->x a (conflicted copy bob 2026-11-23)=2");
    check(
        "",
        "write a 1",
        "mkdir a; write a/b 2",
        "a=1 a (conflicted copy bob 2026-11-23)/ a (conflicted copy bob 2026-11-23)/b=2",
    );
}

#[test]
fn a_file_where_a_directory_was_and_new_content_in_that_directory_both_live() {
    check(
        "d/ d/a=1",
        "rm d; write d 2",
        "write d/b 3",
        "d=2 d (conflicted copy bob 2026-11-23)/ d (conflicted copy bob 2026-11-23)/b=3",
    );
    check(
        "d/ d/a=1",
        "write d/b 3",
        "rm d; write d 2",
        "d/ d/b=3 d (conflicted copy bob 2026-11-23)=2",
    );
}

#[test]
fn of_two_directories_moved_into_each_other_the_second_is_undone() {
    check("x/ x/a=1 y/ y/b=2", "mv x y/x", "mv y x/y", "y/ y/b=2 y/x/ y/x/a=1");
}

#[test]
fn names_can_be_exchanged_in_one_go() {
    check("a=1 b=2", "mv a t; mv b a; mv t b", "", "a=2 b=1");
    check("a=1 b=2", "", "mv a t; mv b a; mv t b", "a=2 b=1");
    check("d/ d/e/ d/e/a=1", "mv d/e t; mv d t/d; mv t d", "", "d/ d/a=1 d/d/");
}

/// Ann's folder syncs both ways, Bob's one way only; then Bob's person ends what differs.
#[track_caller]
fn check_flow(
    flow: Flow,
    before: &str,
    then: [&str; 2],
    expected: [&str; 2],
    kept: u64,
    end: &str,
) {
    let mut world = World::new(1, 2);
    world.set_flows(&[Flow::Both, flow]);
    world.build(0, before);
    world.settle().unwrap();
    if flow == Flow::SendOnly {
        // It has what is there.
        world.set_flows(&[Flow::Both]);
        world.settle().unwrap();
        world.set_flows(&[Flow::Both, flow]);
    }
    world.script(0, then[0]);
    world.script(1, then[1]);
    world.settle_one(0).unwrap();
    world.settle().unwrap();
    let told = format!("{flow:?} {before:?}, {then:?}: {}", world.trace());
    assert_eq!([world.tree(0), world.tree(1)], expected, "{told}");
    assert_eq!(world.check_one_way(), Ok(()), "{told}");
    assert_eq!(world.devices[1].engine.trees().totals().kept, kept, "{told}");
    world.choose_sides().unwrap();
    let result = world.check();
    assert_eq!([world.tree(0), world.tree(1)], [end, end], "{}", world.trace());
    assert_eq!(result, Ok(()), "{}", world.trace());
}

#[test]
fn a_folder_that_only_receives_keeps_what_was_changed_in_it() {
    let check = |before, ann, bob, expected, kept, end| {
        check_flow(Flow::ReceiveOnly, before, [ann, bob], expected, kept, end);
    };
    check("a=1", "write a 2", "", ["a=2", "a=2"], 0, "a=2");
    check("a=1", "", "write a 2", ["a=1", "a=2"], 1, "a=1");
    check("a=1", "", "rm a", ["a=1", ""], 1, "a=1");
    check("a=1", "", "mv a b", ["a=1", "b=1"], 1, "a=1");
    check("", "", "mkdir d; write d/a 1", ["", "d/ d/a=1"], 2, "");
    // Both did something: the rules of the table hold here alone.
    let copy = "a=2 a (conflicted copy bob 2026-11-23)=3";
    check("a=1", "write a 2", "write a 3", ["a=2", copy], 1, "a=2");
    check("a=1", "rm a", "write a 2", ["", "a=2"], 1, "");
    check("a=1", "write a 2", "rm a", ["a=2", "a=2"], 0, "a=2");
    check("a=1", "mv a b", "write a 2", ["b=1", "b=2"], 1, "b=1");
    check("a=1", "write a 2", "mv a b", ["a=2", "b=2"], 1, "a=2");
    check("a=1", "mv a b", "mv a c", ["b=1", "b=1"], 0, "b=1");
    check("", "write a 1", "write a 1", ["a=1", "a=1"], 0, "a=1");
    check("d/ d/a=1 d/b=2", "rm d", "write d/c 3", ["", "d/ d/c=3"], 2, "");
    check("d/ d/a=1", "write d/b 2", "rm d", ["d/ d/a=1 d/b=2", "d/ d/b=2"], 1, "d/ d/a=1 d/b=2");
    let moved = "y/ y/b=2 y/x/ y/x/a=1";
    check("x/ x/a=1 y/ y/b=2", "mv x y/x", "mv y x/y", [moved, moved], 0, moved);
    check("a=1 b=2", "", "mv a t; mv b a; mv t b", ["a=1 b=2", "a=2 b=1"], 2, "a=1 b=2");
}

#[test]
fn a_folder_that_only_sends_leaves_what_was_changed_elsewhere_there() {
    let check = |before, ann, bob, expected, kept, end| {
        check_flow(Flow::SendOnly, before, [ann, bob], expected, kept, end);
    };
    check("a=1", "", "write a 2", ["a=2", "a=2"], 0, "a=2");
    check("a=1", "write a 2", "", ["a=2", "a=1"], 1, "a=1");
    check("a=1", "rm a", "", ["", "a=1"], 1, "a=1");
    check("a=1", "mv a b", "", ["b=1", "a=1"], 1, "a=1");
    check("a=1", "mkdir d; write d/b 2", "", ["a=1 d/ d/b=2", "a=1"], 2, "a=1");
    // Both did something: each aspect by itself, and neither side overwrites the other.
    check("a=1", "write a 2", "write a 3", ["a=2", "a=3"], 1, "a=3");
    check("a=1", "rm a", "write a 2", ["a=2", "a=2"], 0, "a=2");
    check("a=1", "write a 2", "rm a", ["a=2", ""], 1, "");
    check("a=1", "mv a b", "write a 2", ["b=2", "a=2"], 1, "a=2");
    check("a=1", "write a 2", "mv a b", ["b=2", "b=1"], 1, "b=1");
    check("a=1", "write a 2", "chmod 600 a", ["a=2", "a=1"], 1, "a=1");
    check("", "write a 1", "write a 1", ["a=1", "a=1"], 0, "a=1");
    check("", "write a 1", "write a 2", ["a=1", "a=2"], 1, "a=2");
    check(
        "",
        "mkdir d; write d/a 1",
        "mkdir d; write d/b 2",
        ["d/ d/a=1 d/b=2", "d/ d/b=2"],
        1,
        "d/ d/b=2",
    );
    check(
        "d/ d/a=1 d/b=2",
        "rm d",
        "write d/c 3",
        ["d/ d/c=3", "d/ d/a=1 d/b=2 d/c=3"],
        2,
        "d/ d/a=1 d/b=2 d/c=3",
    );
    check("a=1 b=2", "mv a t; mv b a; mv t b", "", ["a=2 b=1", "a=1 b=2"], 2, "a=1 b=2");
    // A name that is taken there by what does not come here, and a directory with something in it.
    check("a=1 b=2", "mv a c", "mv b c", ["b=2 c=1", "a=1 c=2"], 1, "a=1 c=2");
    check("d/ d/a=1", "write d/b 2", "rm d", ["d/ d/b=2", ""], 1, "");
}

/// R3 of the ways in which others lost files: a backup of the server is restored.
#[test]
fn a_server_that_goes_back_to_an_older_backup_takes_nothing_from_the_devices() {
    for others_first in [false, true] {
        let mut world = World::new(1, 2);
        world.build(0, "a=1 d/ d/b=2");
        if let Err(failure) = world.settle() {
            panic!("{failure} {}", world.trace());
        }
        let backup = world.server.clone();
        world.script(0, "write new 3; write d/newer 4; write a 5");
        if let Err(failure) = world.settle() {
            panic!("{failure} {}", world.trace());
        }
        world.restore(backup);
        if others_first {
            // The journal grows past the other device's cursor before that hears of anything.
            world.script(0, "mkdir e; write e/1 6; write e/2 7; write e/3 8; write e/4 9");
            if let Err(failure) = world.settle_one(0) {
                panic!("{failure} {}", world.trace());
            }
        }
        if let Err(failure) = world.settle() {
            panic!("{failure} {}", world.trace());
        }
        let trees: Vec<String> = (0..2).map(|device| world.tree(device)).collect();
        assert_eq!(trees[0], trees[1], "{}", world.trace());
        for token in ["new=3", "d/newer=4", "=5"] {
            assert!(trees[0].contains(token), "{token} is lost: {}", trees[0]);
        }
    }
}

/// The newer version that all devices hold is kept once, not once for each of them.
#[test]
fn what_a_restored_server_does_not_know_becomes_one_conflict_copy() {
    for (first, copies_max) in [(Some(0), 1), (Some(2), 1), (None, 3)] {
        let mut world = World::new(1, 3);
        world.build(0, "a.txt=1 d/ d/b=2");
        world.settle().unwrap();
        let backup = world.server.clone();
        world.script(0, "write a.txt 5; write d/b 6");
        world.settle().unwrap();
        world.restore(backup);
        if let Some(first) = first {
            world.settle_one(first).unwrap();
        }
        world.settle().unwrap();
        let result = world.check();
        let tree = world.tree(0);
        assert_eq!(result, Ok(()), "{}", world.trace());
        assert_eq!(world.stays_quiet(), Ok(()), "{}", world.trace());
        for (original, token) in [("a.txt=1", "=5"), ("d/b=2", "=6")] {
            let copies = tree.matches(token).count();
            let is_right = tree.contains(original) && (1..=copies_max).contains(&copies);
            assert!(is_right, "{first:?} {tree}\n{}", world.trace());
        }
    }
}

/// Ann's disk knows every name, Bob's holds those for the same that differ in case only.
#[track_caller]
fn check_case_blind(before: &str, then: &[(usize, &str)], ann: &str, bob: &str) {
    check_form(Form::CaseBlind, before, then, ann, bob);
}

/// Ann's disk knows every name, Bob's is of this form.
#[track_caller]
fn check_form(form: Form, before: &str, then: &[(usize, &str)], ann: &str, bob: &str) {
    let mut world = World::with_forms(1, 2, &[Form::Exact, form]);
    world.build(0, before);
    world.settle().unwrap();
    for (device, commands) in then {
        world.script(*device, commands);
        if let Err(failure) = world.settle() {
            panic!("{failure} {}", world.trace());
        }
    }
    assert_eq!(world.check(), Ok(()), "{}", world.trace());
    let alias = |tree: String| {
        let mut parts = tree.split(" (name clash ");
        let first = parts.next().unwrap_or_default().to_owned();
        parts.fold(first, |tree, part| tree + " (name clash)" + &part[9..])
    };
    assert_eq!([alias(world.tree(0)), alias(world.tree(1))], [ann, bob], "{}", world.trace());
}

#[test]
fn r18_a_name_that_one_disk_cannot_hold_is_kept_and_gets_its_own_once_it_can() {
    check_case_blind("a=1 A=2", &[], "A=2 a=1", "A=2 a (name clash)=1");
    check_case_blind("a=1 A=2", &[(0, "mv a c")], "A=2 c=1", "A=2 c=1");
    check_case_blind("a=1 A=2", &[(1, "write A 3")], "A=3 a=1", "A=3 a (name clash)=1");
    // Another spelling of its own name is in nobody's way.
    check_case_blind("d/ d/a=1", &[(0, "mv d/a d/A")], "d/ d/A=1", "d/ d/A=1");
    check_case_blind("d/ d/a=1", &[(0, "mv d D")], "D/ D/a=1", "D/ D/a=1");
}

#[test]
fn r18_a_name_that_a_disk_would_store_otherwise_is_no_rename() {
    let check = |before, then, ann, bob| check_form(Form::DropsFinalDots, before, then, ann, bob);
    check("a.=1", &[], "a.=1", "a (name clash)=1");
    check("a.=1 a=2", &[], "a=2 a.=1", "a=2 a (name clash)=1");
    check(
        "d./ d./a=1",
        &[(1, "write b 2")],
        "b=2 d./ d./a=1",
        "b=2 d (name clash)/ d (name clash)/a=1",
    );
    check("a.=1", &[(0, "mv a. a")], "a=1", "a=1");
    check("a=1", &[(0, "mv a a..")], "a..=1", "a (name clash)=1");
}

#[test]
fn a_name_that_stands_for_something_with_another_one_here_is_a_conflict() {
    check_case_blind(
        "a=1 A=2",
        &[(0, "rm A"), (1, "write a 3")],
        "a=1 a (conflicted copy bob 2026-11-23)=3",
        "a (conflicted copy bob 2026-11-23)=3 a (name clash)=1",
    );
}

/// What was put in place or moved shortly before a kill is a version of the server's, nobody's edit.
#[test]
fn what_was_put_in_place_before_a_kill_is_no_edit() {
    for (before, received, after, expected) in [
        ("a=1", "write a 2", "write a 3", "a=3"),
        ("a=1", "write b 2", "write b 3", "a=1 b=3"),
        ("a=1", "write b 2", "mv b c", "a=1 c=2"),
        ("a=1", "write b 2", "rm b", "a=1"),
        ("a=1", "write a 2", "mv a b; write b 3", "b=3"),
        ("a=1", "write a 2", "rm a", ""),
        ("a=1", "mkdir d", "mv d e", "a=1 e/"),
        ("a=1", "mkdir d; write d/b 2", "mv d e; write e/b 3", "a=1 e/ e/b=3"),
        ("a=1", "mkdir d; write d/b 2", "rm d", "a=1"),
        ("a=1", "link l t", "mv l m", "a=1 m->t"),
        ("a=1", "link l t", "rm l", "a=1"),
        ("a=1", "mv a b", "mv b a", "a=1"),
        ("a=1", "mv a b", "mv b a; mkdir b", "a=1 b/"),
        ("a=1", "mv a b", "mv b a; write b 2", "a=1 b=2"),
        ("a=1", "mv a b", "rm b", ""),
        ("a=1 d/", "mv a d/b", "mv d/b a", "a=1 d/"),
        ("d/ d/a=1", "mv d e", "mv e d; write d/a 2", "d/ d/a=2"),
        ("d/ d/a=1", "mv d e", "rm e", ""),
        ("l->t", "mv l m", "rm m", ""),
        ("l->t", "mv l m", "mv m l; mkdir m", "l->t m/"),
    ] {
        let mut world = World::new(1, 2);
        world.build(0, before);
        world.settle().unwrap();
        world.checkpoint(1);
        world.script(0, received);
        world.settle().unwrap();
        world.kill(1);
        world.script(0, after);
        world.settle_one(0).unwrap();
        world.settle().unwrap();
        let trees: Vec<String> = (0..2).map(|device| world.tree(device)).collect();
        assert_eq!(trees, [expected, expected], "{received:?} {after:?}: {}", world.trace());
    }
}
