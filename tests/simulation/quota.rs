//! Quotas: files that there is no room for wait, everything else goes on, and what waits goes as soon as there
//! is room.

use super::world::World;

#[track_caller]
fn settle(world: &mut World) {
    if let Err(failure) = world.settle() {
        panic!("{failure}\n{}", world.trace());
    }
    assert_eq!(world.check_but_for_held(), Ok(()), "{}", world.trace());
}

/// Two devices and room for ten bytes.
fn world(tree: &str) -> World {
    let mut world = World::new(1, 2);
    world.set_quota(Some(10));
    world.build(0, tree);
    settle(&mut world);
    world
}

#[test]
fn what_fits_goes_and_what_does_not_goes_once_a_deletion_has_made_room() {
    let mut world = world("a=1234 d/ d/e=12345");
    world.script(0, "write b 123456789; write c 123456");
    settle(&mut world);
    assert_eq!(world.tree(1), "a=1234 d/ d/e=12345");
    // Moves, permissions and smaller versions pass, and so do deletions.
    world.script(0, "mv a d/a; write d/e 1; chmod 600 d/e");
    settle(&mut world);
    assert_eq!(world.tree(1), "d/ d/a=1234 d/e=1");
    // Another device makes room: for the smaller one.
    world.script(1, "rm d/a");
    settle(&mut world);
    assert_eq!(world.tree(1), "c=123456 d/ d/e=1");
    world.set_quota(None);
    settle(&mut world);
    assert_eq!(world.tree(1), "b=123456789 c=123456 d/ d/e=1");
    assert_eq!(world.check(), Ok(()), "{}", world.trace());
}

#[test]
fn a_version_that_does_not_fit_waits_while_its_file_is_moved() {
    let mut world = world("a=1234 b=123456");
    world.script(0, "write a 12345; mv a c; chmod 600 c");
    settle(&mut world);
    assert_eq!(world.tree(1), "b=123456 c=1234", "{}", world.trace());
    // One that is no larger than the last one everybody has passes.
    world.script(0, "write c 4321");
    settle(&mut world);
    assert_eq!(world.tree(1), "b=123456 c=4321", "{}", world.trace());
    assert_eq!(world.check(), Ok(()), "{}", world.trace());
}

#[test]
fn what_waits_is_not_lost_when_others_change_the_same() {
    let mut world = world("a=1234 d/ d/e=1 b=12345");
    // An edit that does not fit, and one that does; a new file in a directory that is deleted elsewhere.
    world.script(0, "write a 12345; write d/new 67");
    world.script(1, "write a 4321; rm d");
    settle(&mut world);
    world.set_quota(None);
    settle(&mut world);
    assert_eq!(world.check(), Ok(()), "{}", world.trace());
    for text in ["=4321", "=12345", "d/new=67"] {
        assert!(world.tree(1).contains(text), "{text}: {}", world.tree(1));
    }
}

#[test]
fn who_is_over_a_lowered_quota_can_still_tidy_up() {
    let mut world = world("a=1234 b=12345");
    world.set_quota(Some(3));
    world.script(0, "write a 123; mkdir d; mv b d/b; write c 1");
    settle(&mut world);
    assert_eq!(world.tree(1), "a=123 d/ d/b=12345");
    world.script(0, "rm d/b");
    settle(&mut world);
    assert_eq!(world.tree(1), "a=123 d/", "three are used");
    world.script(0, "write a 12");
    settle(&mut world);
    assert_eq!(world.tree(1), "a=12 c=1 d/");
    assert_eq!(world.check(), Ok(()), "{}", world.trace());
}
