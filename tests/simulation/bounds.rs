//! What could go round in circles, and does not: one inode with two names on two devices.

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

/// A file has two names on both devices, and gets a mode by one name here and by the other one there.
#[test]
fn modes_of_an_inode_with_two_names_are_not_told_back_and_forth() {
    for wait in 0..6 {
        let mut world = World::new(wait, 2);
        world.script(0, "write a 1; ln a b");
        settle(&mut world);
        world.script(1, "rm b; ln a b");
        settle(&mut world);
        let before = world.server.head().0;
        world.script(0, "chmod 755 a");
        world.script(1, "chmod 600 b");
        settle(&mut world);
        assert_in_sync(&mut world);
        let revs = world.server.head().0 - before;
        assert!(revs <= 8, "{revs} changes for two modes\n{}", world.trace());
    }
}
