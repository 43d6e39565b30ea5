//! What scripts rely on: states, exit codes, JSON, and no colour without a terminal.

use std::time::{Duration, Instant};

use crate::support::{Device, Proxy, World, wait_same};

#[test]
fn every_state_has_its_word_and_exit_code() {
    let mut world = World::new();
    let mut device = world.joined("ann", "a");
    let stopped = device.picloud(&["status", "--json"]);
    assert_eq!((stopped.code, &stopped.objects()[0]["state"]), (6, &"stopped".into()));
    device.picloud(&["sync"]).fails(6);
    device.picloud(&["pause"]).fails(6);

    device.start();
    device.sync();
    let quiet = device.picloud(&["status", "--json"]);
    assert_eq!((quiet.code, &quiet.objects()[0]["state"]), (0, &"in-sync".into()));

    device.picloud(&["pause"]).ok();
    assert_eq!(device.status()["state"], "paused");
    assert_eq!(device.picloud(&["status"]).code, 5);
    device.write("while paused", "x");
    assert_eq!(device.picloud(&["sync", "--timeout", "90"]).code, 5);
    assert_eq!(device.picloud(&["ls"]).ok(), "");
    // A pause outlasts a restart: a person said so.
    device.stop();
    device.start();
    assert_eq!(device.picloud(&["status"]).code, 5);
    device.picloud(&["resume"]).ok();
    device.sync();
    assert_eq!(device.picloud(&["ls"]).ok(), "while paused\n");

    world.stop_server();
    device.wait_status("offline", |status| status["state"] == "offline");
    assert_eq!(device.picloud(&["status"]).code, 4);
    device.picloud(&["sync", "--timeout", "90"]).fails(4);
    world.start_server();
    device.wait_status("return", |status| status["state"] == "in-sync");

    device.fifo("fifo");
    device.wait_problem("fifo");
    assert_eq!(device.picloud(&["status"]).code, 3);
    device.picloud(&["sync", "--timeout", "90"]).fails(3);
    device.remove("fifo");
    device.wait_status("no problem", |status| status["state"] == "in-sync");
}

#[test]
fn the_status_counts_what_is_there() {
    let world = World::new();
    let device = world.device("ann", "laptop");
    device.write("d/one", "12345");
    device.write("d/two", "1234567");
    device.link("link", "nowhere");
    device.sync();
    let status = device.status();
    assert_eq!(status["type"], "status");
    assert_eq!(status["version"], 1);
    assert_eq!(status["files"], 3);
    assert_eq!(status["dirs"], 1);
    assert_eq!(status["bytes"], 12);
    assert_eq!((&status["uploads"], &status["downloads"]), (&0.into(), &0.into()));
    assert_eq!(status["conflicts"], 0);
    assert_eq!(status["problems"].as_array().unwrap().len(), 0);
    assert!(status["last_sync"].as_i64().unwrap() > 1_700_000_000);
    let folder = &status["folders"][0];
    assert_eq!(folder["user"], "ann");
    assert_eq!(folder["device"], "laptop");
    assert_eq!(folder["server"], world.address());
    assert_eq!(folder["path"], device.folder.to_str().unwrap());
    device.wait_status("proof of agreement", |status| status["folders"][0]["agrees"] == true);
}

#[test]
fn a_sync_that_takes_longer_says_so_and_the_agent_goes_on() {
    let world = World::new();
    let proxy = Proxy::to(&world.address());
    let device = world.device_via(&proxy, "ann", "slow");
    device.sync();
    // Most of a minute for what is sent, so that a busy machine cannot be done with it too early.
    proxy.set_rate(20_000);
    device.write("big", crate::support::Dice::new(5).bytes(1_000_000));
    let begun = Instant::now();
    let run = device.picloud(&["sync", "--timeout", "1"]);
    run.fails(7);
    assert!(begun.elapsed() < Duration::from_secs(30));
    let status = device.status();
    assert_eq!(status["state"], "syncing");
    assert!(status["upload_bytes"].as_u64().unwrap() > 0, "{status}");
    proxy.set_rate(0);
    device.sync();
    assert_eq!(device.status()["upload_bytes"], 0);
}

#[test]
fn what_is_pending_shrinks_while_one_large_file_travels() {
    let world = World::new();
    let proxy = Proxy::to(&world.address());
    let a = world.device_via(&proxy, "ann", "a");
    let b = world.device_via(&proxy, "ann", "b");
    a.sync();
    b.sync();
    let len = 40_000_000_u64;
    for (from, to, key) in [(&a, &b, "upload_bytes"), (&b, &a, "download_bytes")] {
        proxy.set_rate(0);
        if key == "download_bytes" {
            to.picloud(&["pause"]).ok();
        }
        // Some seconds for all of it.
        from.write(key, crate::support::Dice::new(9 + key.len() as u64).bytes(len as usize));
        if key == "download_bytes" {
            from.sync();
            to.picloud(&["resume"]).ok();
        }
        proxy.set_rate(6_000_000);
        let who = if key == "upload_bytes" { from } else { to };
        let mut seen = std::collections::BTreeSet::new();
        let direction = key.trim_end_matches("load_bytes");
        let mut is_told = false;
        who.wait_status("several steps of one file", |status| {
            let folder = &status["folders"][0];
            let transfer = &folder["transfers"][0];
            is_told |= transfer["path"] == key
                && transfer["direction"] == direction
                && transfer["bytes"] == len
                && status[key.replace("bytes", "rate")].as_u64() > Some(100_000)
                && folder["secs_left"].as_u64() > Some(0);
            if let Some(left) = status[key].as_u64().filter(|left| (1..len).contains(left)) {
                seen.insert(left);
            }
            seen.len() >= 2 && is_told
        });
        proxy.set_rate(0);
        who.sync();
        assert_eq!(who.status()[key], 0);
        to.sync();
    }
}

#[test]
fn the_status_tells_of_the_other_devices_and_of_room_on_the_server() {
    let world = World::new();
    let a = world.device("ann", "a");
    let mut b = world.device("ann", "b");
    a.write("f", crate::support::Dice::new(3).bytes(300_000));
    a.sync();
    let others = |status: &serde_json::Value| {
        let devices = status["folders"][0]["devices"].as_array().cloned().unwrap_or_default();
        devices.iter().find(|device| device["name"] == "b").cloned().unwrap_or_default()
    };
    a.wait_status("the other device", |status| others(status)["connected"] == true);
    // What was asked for before the file was there is shown until it is asked for again.
    a.wait_status("the room that the file takes", |status| {
        status["folders"][0]["space"]["stored"].as_u64() >= Some(300_000)
    });
    let status = a.status();
    let space = &status["folders"][0]["space"];
    assert!(space["total"].as_u64() >= space["free"].as_u64(), "{space}");
    assert!(space["free"].as_u64() > Some(0), "{space}");
    let text = a.picloud(&["status"]).ok();
    assert!(text.contains("\n  Devices: a (this one), b connected\n  Server: "), "{text}");
    b.stop();
    a.wait_status("its absence", |status| others(status)["connected"] == false);
    let plain = a.picloud(&["status", "--plain"]).ok();
    assert!(plain.contains("\nThe device b was last seen just now.\n"), "{plain}");
    assert!(plain.lines().all(|line| line.ends_with('.')), "{plain}");
}

#[test]
fn a_cut_connection_costs_time_and_nothing_else() {
    let world = World::new();
    let proxy = Proxy::to(&world.address());
    let a = world.device_via(&proxy, "ann", "a");
    let b = world.device("ann", "b");
    proxy.set_rate(3_000_000);
    for index in 0..8 {
        a.write(format!("f{index}"), crate::support::Dice::new(index + 1).bytes(700_000));
        b.write(format!("g{index}"), crate::support::Dice::new(index + 100).bytes(700_000));
        proxy.cut_once();
    }
    proxy.cut();
    a.wait_status("offline", |status| status["state"] == "offline");
    proxy.set_rate(0);
    proxy.mend();
    assert_eq!(wait_same(&[&a, &b]).len(), 16);
}

#[test]
fn nothing_is_coloured_without_a_terminal() {
    let world = World::new();
    let device = world.device("ann", "a");
    device.write("f", "1");
    device.sync();
    for args in [&["status"][..], &["sync"], &["conflicts"], &["log"], &["ls", "-l"], &["whoami"]] {
        let out = device.picloud(args).ok();
        assert!(!out.contains('\x1b'), "{args:?}: {out:?}");
    }
}

#[test]
fn the_log_tells_what_happened_to_which_file() {
    let world = World::new();
    let mut a = world.device("ann", "a");
    let mut b = world.device("ann", "b");
    a.write("dir/file", "1");
    b.wait_text("dir/file", "1");
    b.sync();
    let told = |device: &Device| {
        let objects = device.picloud(&["log", "--json"]).objects();
        let line = objects.iter().find(|line| line["path"] == "dir/file").cloned();
        line.unwrap_or_else(|| panic!("{}: {objects:?}", device.name))
    };
    let before = [told(&a), told(&b)];
    // Also after a restart, and after the next thing that happens.
    for device in [&mut a, &mut b] {
        device.stop();
        device.start();
    }
    a.write("later", "2");
    b.wait_text("later", "2");
    b.sync();
    assert_eq!([told(&a), told(&b)], before);
}

#[test]
fn the_log_says_who_did_what_and_can_be_asked_for_a_part_of_it() {
    let world = World::new();
    let a = world.device("ann", "a");
    let b = world.device("ann", "b");
    let c = world.device("ann", "c");
    a.write("dir/one", "1");
    c.wait_text("dir/one", "1");
    b.write("two", "2");
    c.wait_text("two", "2");
    c.sync();
    b.sync();
    b.rename("two", "dir/two");
    c.wait_text("dir/two", "2");
    a.sync();
    a.remove("dir/one");
    c.wait_gone("dir/one");
    c.write("three", "3");
    c.sync();
    let log = |args: &[&str]| -> Vec<String> {
        let out = c.picloud(&[&["log"], args].concat()).ok();
        out.lines().map(|line| line.split_once("  ").unwrap().1.to_owned()).collect()
    };
    assert_eq!(
        log(&[]),
        [
            "received dir from a",
            "received dir/one from a",
            "received two from b",
            "moved two to dir/two, as on b",
            "deleted dir/one here, as on a",
            "sent three"
        ]
    );
    assert_eq!(log(&["-n", "1"]), ["sent three"]);
    assert_eq!(log(&["--device", "b"]), ["received two from b", "moved two to dir/two, as on b"]);
    assert_eq!(log(&["two"]), ["received two from b", "moved two to dir/two, as on b"]);
    assert_eq!(log(&["dir", "--device", "a"]).len(), 3);
    assert_eq!(log(&["--since", "1h", "--until", "1 minute"]), [""; 0]);
    assert_eq!(log(&["--since", "1h"]).len(), 6);
    assert_eq!(c.picloud(&["log", "--since", "soon"]).code, 2);
    // Followed up to a time that is over: it ends by itself.
    assert_eq!(log(&["-f", "--until", "2026-01-01"]), [""; 0]);
    let object = &c.picloud(&["log", "--json", "--device", "b"]).objects()[1];
    assert_eq!(
        (&object["event"], &object["path"], &object["detail"], &object["device"]),
        (&"moved here".into(), &"dir/two".into(), &"two".into(), &"b".into())
    );
}

#[test]
fn wrong_usage_is_exit_code_two() {
    let world = World::without_server("");
    let home = world.path().join("home");
    for args in
        [&["nonsense"][..], &["sync", "--timeout", "soon"], &["join"], &["--no-such-option"]]
    {
        assert_eq!(world.picloud_at(&home, args).code, 2, "{args:?}");
        let args = [&["--json"], args].concat();
        let run = world.picloud_at(&home, &args);
        let error = &run.objects()[0];
        assert_eq!((&error["type"], &error["exit"]), (&"error".into(), &2.into()), "{args:?}");
    }
}
