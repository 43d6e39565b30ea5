//! A large file is fetched while another device is still sending it, and no trace is left of what
//! comes to nothing.

use crate::support::{Device, Dice, Proxy, World, all_well, eventually, nothing_left};

const MIB: u64 = 1 << 20;

/// Of the file, in all tests.
const LEN: u64 = 32 * MIB;

/// Bytes per second of each way of a link.
const RATE: u64 = 4_000_000;

/// What of the bytes that A sent the server may not have confirmed yet, or A not have told of.
const UNTOLD: u64 = 4 * MIB;

/// So slow that the rest of a file takes longer than a test, while notes and answers still pass.
const CRAWL: u64 = 20_000;

/// Two devices of one user, each behind a slow link of its own.
struct Far {
    world: World,
    up: Proxy,
    down: Proxy,
    a: Device,
    b: Device,
}

impl Far {
    fn new() -> Self {
        let world = World::new();
        let (up, down) = (Proxy::to(&world.address()), Proxy::to(&world.address()));
        let a = world.device_via(&up, "ann", "a");
        let b = world.device_via(&down, "ann", "b");
        a.write("before", "0");
        all_well(&[&a, &b]);
        up.set_rate(RATE);
        down.set_rate(RATE);
        Self { world, up, down, a, b }
    }

    /// A writes a file; returns once so much of it has come to B, ahead of the commit, and A's link is
    /// crawls before all of it has left A.
    fn begin(&self, bytes: &[u8], until: u64) -> u64 {
        let before = self.down.carried();
        let sent = self.up.carried();
        self.a.write("large", bytes);
        eventually("a sends", || (self.up.carried() >= sent + until + UNTOLD).then_some(()));
        self.up.set_rate(CRAWL);
        assert!(self.up.carried() < sent + LEN, "all of it was sent before the link crawled");
        eventually("b fetches", || (self.down.carried() >= before + until).then_some(()));
        assert!(!self.b.exists("large"), "it is seen before it is committed");
        before
    }
}

fn staged(device: &Device) -> usize {
    std::fs::read_dir(device.folder.join(".picloud/staging")).unwrap().count()
}

#[test]
fn most_of_a_large_file_is_there_before_it_is_committed() {
    let far = Far::new();
    let bytes = Dice::new(1).bytes(usize::try_from(LEN).unwrap());
    // The server can have no more than this, so no commit.
    let before = far.begin(&bytes, LEN * 3 / 4);
    // What may yet come to nothing keeps nobody waiting.
    far.b.sync();
    assert_eq!(far.b.status()["state"], "in-sync");
    far.up.set_rate(RATE);
    all_well(&[&far.a, &far.b]);
    assert_eq!(std::fs::read(far.b.path("large")).unwrap(), bytes);
    let carried = far.down.carried() - before;
    assert!(carried < LEN * 11 / 10, "{carried} bytes came to b for {LEN}");
    nothing_left(&[&far.a, &far.b]);
}

#[test]
fn what_was_fetched_of_a_file_that_was_replaced_meanwhile_is_dropped() {
    let far = Far::new();
    let mut dice = Dice::new(2);
    far.begin(&dice.bytes(usize::try_from(LEN).unwrap()), LEN / 4);
    let newer = dice.bytes(usize::try_from(LEN).unwrap());
    far.a.write("newer", &newer);
    far.a.rename("newer", "large");
    far.up.set_rate(0);
    far.down.set_rate(0);
    all_well(&[&far.a, &far.b]);
    assert!(std::fs::read(far.b.path("large")).unwrap() == newer);
    nothing_left(&[&far.a, &far.b]);
}

#[test]
fn what_is_never_committed_is_dropped_and_a_pause_drops_it_at_once() {
    let mut far = Far::new();
    let bytes = Dice::new(3).bytes(usize::try_from(LEN).unwrap());
    far.begin(&bytes, LEN / 4);
    assert_eq!(staged(&far.b), 1);
    far.a.kill();
    far.up.cut();
    far.up.set_rate(RATE);
    eventually("what nobody will commit is dropped", || (staged(&far.b) == 0).then_some(()));
    assert_eq!(far.b.tree().paths(), ["before"]);

    // It goes on where it was, and what is on the server already is told of again.
    far.up.mend();
    let before = far.down.carried();
    far.a.start();
    eventually("b fetches again", || (far.down.carried() > before + 2 * MIB).then_some(()));
    far.up.set_rate(CRAWL);
    assert_eq!(staged(&far.b), 1);
    far.b.picloud(&["pause"]).ok();
    eventually("nothing is fetched in a pause", || (staged(&far.b) == 0).then_some(()));
    far.b.picloud(&["resume"]).ok();
    far.up.set_rate(0);
    far.down.set_rate(0);
    all_well(&[&far.a, &far.b]);
    assert!(std::fs::read(far.b.path("large")).unwrap() == bytes);
    nothing_left(&[&far.a, &far.b]);
}

#[test]
fn a_cut_keeps_what_was_fetched_and_a_kill_leaves_nothing_behind() {
    let mut far = Far::new();
    let bytes = Dice::new(4).bytes(usize::try_from(LEN).unwrap());
    let before = far.begin(&bytes, LEN / 2);
    far.down.cut_once();
    far.b.wait_status("new connection", |status| status["state"] == "in-sync");
    far.up.set_rate(RATE);
    all_well(&[&far.a, &far.b]);
    let carried = far.down.carried() - before;
    assert!(carried < LEN * 5 / 4, "{carried} bytes came to b for {LEN}");

    let newer = Dice::new(5).bytes(usize::try_from(LEN).unwrap());
    let before = far.down.carried();
    far.a.write("large", &newer);
    eventually("b fetches", || (far.down.carried() >= before + LEN / 4).then_some(()));
    far.up.set_rate(CRAWL);
    far.b.kill();
    assert_eq!(staged(&far.b), 1, "killed too late");
    far.down.cut();
    far.b.start();
    eventually("what the kill left is gone", || (staged(&far.b) == 0).then_some(()));
    far.down.mend();
    far.up.set_rate(0);
    far.down.set_rate(0);
    all_well(&[&far.a, &far.b]);
    assert!(std::fs::read(far.b.path("large")).unwrap() == newer);
    nothing_left(&[&far.a, &far.b]);
    drop(far.world);
}
