//! An edit costs what it changes, on the way to the server and on the way from it.

use std::fs::OpenOptions;
use std::io::{Seek, SeekFrom, Write};
use std::os::unix::fs::FileExt;

use crate::support::{Device, Dice, Proxy, World, all_well, number};

/// What an edit may cost beyond the bytes it changes, both ways together: block sums, and the edges
/// of blocks.
const BEYOND: u64 = 16 * 1024;

struct Measured {
    proxies: [Proxy; 2],
    devices: [Device; 2],
}

impl Measured {
    fn in_world(world: &World) -> Self {
        let proxies = ["a", "b"].map(|_| Proxy::to(&world.address()));
        let devices =
            [world.device_via(&proxies[0], "ann", "a"), world.device_via(&proxies[1], "ann", "b")];
        Self { proxies, devices }
    }

    /// Does something on the first device; returns how many bytes each of the two connections
    /// carried, both ways together, until both have it.
    fn cost(&self, what: impl FnOnce(&Device)) -> [u64; 2] {
        let before = self.proxies.each_ref().map(Proxy::carried);
        what(&self.devices[0]);
        let [a, b] = &self.devices;
        all_well(&[a, b]);
        let after = self.proxies.each_ref().map(Proxy::carried);
        [after[0] - before[0], after[1] - before[1]]
    }
}

/// `PICLOUD_DELTA_MIB=1024` for a larger file.
#[test]
fn an_edit_of_a_large_file_travels_as_what_it_changes() {
    let world = World::new();
    let measured = Measured::in_world(&world);
    let mut dice = Dice::new(1);
    let len = number("PICLOUD_DELTA_MIB", 48) * 1024 * 1024;
    let big = |device: &Device| {
        OpenOptions::new().read(true).write(true).open(device.path("big")).unwrap()
    };
    let first = measured.cost(|a| a.write("big", dice.bytes(len as usize)));
    assert!(first.iter().all(|carried| *carried > len), "{first:?}");

    let within = |what: &str, cost: [u64; 2], changed: u64| {
        println!("{what}: {cost:?} bytes for {changed} changed");
        assert!(cost.iter().all(|cost| *cost < changed + BEYOND), "{what}: {cost:?}");
    };
    let bytes = dice.bytes(4096);
    let cost = measured.cost(|a| big(a).write_all_at(&bytes, len / 2 + 777).unwrap());
    within("4 KiB overwritten in the middle", cost, 4096);

    let cost = measured.cost(|a| {
        let whole = std::fs::read(a.path("big")).unwrap();
        let mut file = big(a);
        file.write_all(b"x").unwrap();
        file.write_all(&whole).unwrap();
    });
    within("one byte inserted at the start, in place", cost, 1);

    let more = dice.bytes(1024 * 1024);
    let cost = measured.cost(|a| {
        let mut file = big(a);
        file.seek(SeekFrom::End(0)).unwrap();
        file.write_all(&more).unwrap();
    });
    within("1 MiB appended", cost, 1024 * 1024);

    let cost = measured.cost(|a| {
        let whole = std::fs::read(a.path("big")).unwrap();
        let changed = [&whole[..5_000_000], &whole[5_100_000..]].concat();
        // Written elsewhere, so that it is not sent before it has its name.
        let aside = a.folder.with_file_name("big.aside");
        std::fs::write(&aside, changed).unwrap();
        std::fs::rename(&aside, a.path("big")).unwrap();
    });
    // The sums of some five chunks.
    within("100 kB cut out, and put in place by a rename", cost, 8 * 1024);

    let scattered: Vec<u64> = (0..20).map(|_| dice.below(len - 10)).collect();
    let cost = measured.cost(|a| {
        let file = big(a);
        for at in &scattered {
            file.write_all_at(b"some words", *at).unwrap();
        }
    });
    // Each place costs its block and the sums of about two chunks.
    within("20 places", cost, 20 * 9 * 1024);

    let cost = measured.cost(|a| std::fs::copy(a.path("big"), a.path("copy")).map(drop).unwrap());
    println!("a copy: {cost:?}");
    assert!(cost[0] < 8 * 1024, "a copy is sent as its name: {cost:?}");
}

/// A document of a single chunk.
#[test]
fn an_edit_of_a_file_of_one_chunk_travels_as_what_it_changes() {
    let world = World::new();
    let measured = Measured::in_world(&world);
    let mut dice = Dice::new(2);
    let mut document = dice.bytes(200 * 1024);
    measured.cost(|a| a.write("document", &document));
    document.splice(1000..1010, *b"other words");
    let cost = measured.cost(|a| a.write("document", &document));
    assert!(cost.iter().all(|cost| *cost < BEYOND), "{cost:?}");
    document.extend(dice.bytes(1024 * 1024));
    let cost = measured.cost(|a| a.write("document", &document));
    assert!(cost.iter().all(|cost| *cost < 1024 * 1024 + BEYOND), "it becomes a list: {cost:?}");
    document.truncate(150 * 1024);
    let cost = measured.cost(|a| a.write("document", &document));
    assert!(cost.iter().all(|cost| *cost < BEYOND), "and a chunk again: {cost:?}");
}
