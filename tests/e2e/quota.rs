//! Quotas: what there is no room for on the server waits on its device and is told of, everything else goes
//! on, and what waits goes by itself as soon as there is room.

use std::fs;
use std::io::{Read as _, Write as _};
use std::net::TcpStream;

use crate::support::{Device, Dice, Run, World, all_well, eventually, free_port, wait_same};

const KIB: u64 = 1024;

/// Bytes that do not become fewer when they are packed.
fn noise(seed: u64, kib: u64) -> Vec<u8> {
    Dice::new(seed).bytes(usize::try_from(kib * KIB).unwrap())
}

/// What the server keeps of contents, in bytes.
fn packed(world: &World) -> u64 {
    let packs = fs::read_dir(world.server_data().join("packs")).unwrap();
    packs.map(|entry| entry.unwrap().metadata().unwrap().len()).sum()
}

/// How many changes the server has refused for lack of room.
fn refused(metrics: u16) -> u64 {
    let mut stream = TcpStream::connect(("127.0.0.1", metrics)).unwrap();
    stream.write_all(b"GET /metrics HTTP/1.1\r\nHost: here\r\n\r\n").unwrap();
    let mut text = String::new();
    stream.read_to_string(&mut text).unwrap();
    let name = "picloud_changes_refused_total{reason=\"over_quota\"} ";
    let line = text.lines().find_map(|line| line.strip_prefix(name));
    line.unwrap_or_else(|| panic!("{text}")).parse().unwrap()
}

fn quota(world: &World, words: &[&str]) -> Run {
    world.picloud_server(&[&["--json", "user", "quota", "ann"][..], words].concat())
}

/// Waits until a file is told to have no room, and lets a sync end.
#[track_caller]
fn wait_held(device: &Device, path: &str) {
    let reason = device.wait_problem(path);
    assert!(reason.starts_with("Over quota: it needs "), "{reason}");
    let run = device.picloud(&["sync", "--timeout", "60"]);
    assert_eq!(run.code, 3, "a person is needed: {run:?}");
}

#[track_caller]
fn wait_there(device: &Device, path: &str) {
    eventually(&format!("{path} is on {}", device.name), || device.exists(path).then_some(()));
}

#[test]
fn a_file_that_does_not_fit_waits_and_all_else_goes_on() {
    let metrics = free_port();
    let world = World::with_server_config(&format!(
        "[accounts]\nquota_mib = 1\n[metrics]\nlisten = \"127.0.0.1:{metrics}\"\n"
    ));
    let (laptop, desk) = (world.device("ann", "laptop"), world.device("ann", "desk"));
    laptop.write("fits", noise(1, 600));
    laptop.write("notes", "one");
    laptop.sync();
    let before = packed(&world);

    // Nothing of it is sent.
    laptop.write("large", noise(2, 700));
    laptop.write("sub/also large", noise(3, 500));
    wait_held(&laptop, "large");
    wait_held(&laptop, "sub/also large");
    laptop.rename("fits", "sub/moved");
    laptop.write("notes", "two");
    wait_there(&desk, "sub/moved");
    desk.wait_text("notes", "two");
    assert!(!desk.exists("large") && !desk.exists("sub/also large"));
    assert!(packed(&world) < before + 64 * KIB, "{} then {}", before, packed(&world));

    // It is told of, with the numbers.
    let used = 600 * KIB + 3;
    let why = laptop.picloud(&["why", "--json", "large"]).objects().remove(0);
    assert_eq!(why["standing"], "over-quota", "{why}");
    assert_eq!((&why["needs"], &why["left"]), (&(700 * KIB).into(), &(424 * KIB - 3).into()));
    let run = laptop.picloud(&["why", "large"]);
    let sentence = "large cannot be sent: over quota; it needs 700.0 KiB on the server, where \
                    423.9 KiB of the account's room are left";
    assert_eq!((run.stdout.lines().next(), run.code), (Some(sentence), 3), "{run:?}");
    laptop.wait_status("use", |status| {
        let space = &status["folders"][0]["space"];
        space["used"] == used && space["quota"] == 1024 * KIB
    });
    let shown = laptop.picloud(&["status"]).stdout;
    assert!(shown.contains("Server: 600.0 KiB of 1.0 MiB used"), "{shown}");
    let doctor = laptop.picloud(&["doctor"]).stdout;
    assert!(doctor.contains("600.0 KiB of 1.0 MiB used on the server"), "{doctor}");

    assert_eq!(refused(metrics), 0, "nothing that does not fit is asked for");

    // What is put by hand is refused: a large file before it is sent, a small one with its commit.
    let file = world.path().join("by hand");
    for (kib, needs) in [(2048, "2.0 MiB"), (500, "500.0 KiB")] {
        fs::write(&file, noise(4, kib)).unwrap();
        let error = laptop.picloud(&["put", file.to_str().unwrap(), "by hand"]).fails(1);
        let expected =
            format!("over quota: it needs {needs} on the server, where 423.9 KiB are left");
        assert!(error.contains(&expected), "{error}");
    }

    // Another device makes room; the file that fits goes, without anybody asking.
    desk.remove("sub/moved");
    wait_there(&desk, "sub/also large");
    wait_held(&laptop, "large");
    laptop.remove("sub/also large");
    wait_there(&desk, "large");
    all_well(&[&laptop, &desk]);
    assert_eq!(refused(metrics), 1, "the small one put by hand");
}

#[test]
fn a_quota_is_set_raised_and_lowered_while_everything_runs() {
    let world = World::new();
    let (mut laptop, desk) = (world.device("ann", "laptop"), world.device("ann", "desk"));
    laptop.write("a", noise(1, 800));
    laptop.sync();
    let set = quota(&world, &["1MiB"]).objects().remove(0);
    assert_eq!((&set["used"], &set["quota"]), (&(800 * KIB).into(), &(1024 * KIB).into()), "{set}");
    assert_eq!(set["default"], false, "{set}");
    laptop.wait_status("quota", |status| status["folders"][0]["space"]["quota"] == 1024 * KIB);

    // A version that does not fit waits; others have the one before, moved.
    let version = noise(2, 1100);
    laptop.write("a", &version);
    laptop.write("b", noise(3, 300));
    wait_held(&laptop, "a");
    wait_held(&laptop, "b");
    laptop.rename("a", "c");
    wait_there(&desk, "c");
    assert_eq!(fs::metadata(desk.path("c")).unwrap().len(), 800 * KIB);
    // Also after a restart.
    laptop.stop();
    laptop.start();
    wait_held(&laptop, "c");

    quota(&world, &["2MiB"]).ok();
    wait_there(&desk, "b");
    wait_same(&[&laptop, &desk]);
    all_well(&[&laptop, &desk]);

    // Who is over it can still tidy up, and nothing else.
    quota(&world, &["500KiB"]).ok();
    desk.write("c", noise(4, 1000));
    desk.rename("b", "d");
    desk.write("e", "new");
    wait_held(&desk, "e");
    wait_there(&laptop, "d");
    eventually("the smaller version is there", || {
        (fs::metadata(laptop.path("c")).unwrap().len() == 1000 * KIB).then_some(())
    });
    assert!(!laptop.exists("e"));
    let warned = desk.picloud(&["doctor"]).stdout;
    assert!(warned.contains("1.2 MiB of 500.0 KiB used on the server"), "{warned}");
    let listed = world.picloud_server(&["user", "list"]).ok();
    assert!(listed.contains("1.2 MiB of 500.0 KiB used"), "{listed}");
    quota(&world, &["default"]).ok();
    laptop.wait_text("e", "new");
    assert!(quota(&world, &[]).objects().remove(0)["quota"].is_null());
    let usage = quota(&world, &["1.5GiB"]);
    assert_eq!(usage.code, 2, "{usage:?}");
    all_well(&[&laptop, &desk]);
}

#[test]
fn an_undo_that_does_not_fit_is_refused_with_the_numbers() {
    let world = World::with_server_config("[accounts]\nquota_mib = 1\n");
    let laptop = world.device("ann", "laptop");
    laptop.write("a", noise(1, 800));
    laptop.sync();
    laptop.remove("a");
    laptop.sync();
    laptop.write("b", noise(2, 700));
    laptop.sync();
    // The second change of the drive was the deletion.
    let error = laptop.picloud(&["undo", "2-2", "--yes"]).fails(1);
    let expected =
        "Over quota: to undo it takes 800.0 KiB more on the server, where 324.0 KiB are left";
    assert!(error.contains(expected), "{error}");
    laptop.remove("b");
    laptop.sync();
    laptop.picloud(&["undo", "2-2", "--yes"]).ok();
    wait_there(&laptop, "a");
    all_well(&[&laptop]);
}
