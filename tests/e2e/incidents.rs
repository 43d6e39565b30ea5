//! How other synchronizers lost files, played with the real programs: the root causes R1 to R20 of
//! `docs/reliability.md`, where no other test plays them already.

use std::fs;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::PathBuf;
use std::time::Duration;

use crate::support::{Device, Dice, Run, World, all_well, eventually};

/// Nothing that was there is gone, whatever else came.
#[track_caller]
fn assert_nothing_gone(device: &Device, before: &crate::support::Tree) {
    let now = device.tree();
    for path in before.0.keys() {
        assert!(now.0.contains_key(path), "{}: {} is gone", device.name, path.escape_ascii());
    }
}

/// The reason for which a device does not go on.
fn problem(device: &Device) -> String {
    eventually("a word of what is wrong", || {
        device.status()["problems"][0]["reason"].as_str().map(str::to_owned)
    })
}

/// R2: the server runs while its storage is away, and says that there is nothing.
#[test]
fn r02_a_server_without_its_storage_says_so_and_no_device_takes_it_for_an_empty_one() {
    let mut world = World::new();
    let a = world.device("ann", "a");
    let mut b = world.device("ann", "b");
    for index in 0..40 {
        a.write(format!("d/{index}"), format!("{index}"));
    }
    a.write("large", Dice::new(1).bytes(3 << 20));
    let before = all_well(&[&a, &b]);
    let away = world.path().join("away");

    // The packs are on a disk that is not mounted: the server does not begin with none.
    world.stop_server();
    fs::rename(world.server_data().join("packs"), &away).unwrap();
    fs::create_dir(world.server_data().join("packs")).unwrap();
    // Its log goes to stderr as well.
    let Run { code, stderr, .. } = world.picloud_server(&["run"]);
    assert_eq!(code, 1, "{stderr}");
    assert!(stderr.contains("is not there") && stderr.contains("mounted"), "{stderr}");
    fs::remove_dir(world.server_data().join("packs")).unwrap();
    fs::rename(&away, world.server_data().join("packs")).unwrap();

    // All its data are: it begins anew, and is a server that no device knows.
    fs::rename(world.server_data(), &away).unwrap();
    world.start_server();
    a.write("while away", "a");
    for device in [&a, &b] {
        let reason = problem(device);
        assert!(reason.contains("another certificate"), "{reason}");
        assert_nothing_gone(device, &before);
        // Not "offline": no waiting mends it.
        let Run { code, stdout, .. } = device.picloud(&["status"]);
        assert!(code == 3 && stdout.contains("another certificate"), "{code}: {stdout}");
        assert_eq!(device.status()["state"], "problem");
        let stderr = device.picloud(&["sync"]).fails(3);
        assert!(stderr.contains("another certificate"), "{stderr}");
    }

    // The database alone is: it is the server of the certificate, and knows nobody.
    world.stop_server();
    fs::copy(away.join("identity.pem"), world.server_data().join("identity.pem")).unwrap();
    world.start_server();
    b.stop();
    b.start();
    let reason = eventually("the server knows it no more", || {
        Some(problem(&b)).filter(|reason| !reason.contains("another certificate"))
    });
    assert!(!reason.is_empty(), "{reason}");
    for device in [&a, &b] {
        assert_nothing_gone(device, &before);
    }

    // The disk is mounted again.
    world.stop_server();
    fs::remove_dir_all(world.server_data()).unwrap();
    fs::rename(&away, world.server_data()).unwrap();
    world.start_server();
    let mut a = a;
    for device in [&mut a, &mut b] {
        device.stop();
        device.start();
    }
    let tree = all_well(&[&a, &b]);
    assert_eq!(tree.len(), before.len() + 1, "{tree}");
}

/// R4: a full folder is linked to a server that has nothing.
#[test]
fn r04_a_full_folder_linked_to_an_empty_server_keeps_everything() {
    let first = World::new();
    let second = World::new();
    let mut a = first.device("ann", "a");
    for index in 0..60 {
        a.write(format!("d/{}/{index}", index % 3), format!("{index}"));
    }
    let before = all_well(&[&a]);
    a.stop();
    a.picloud(&["logout"]).ok();
    let stderr = a.join(&second.invite("ann")).fails(1);
    assert!(stderr.contains("was synced with another drive before"), "{stderr}");
    fs::remove_dir_all(a.path(".picloud")).unwrap();
    a.join(&second.invite("ann")).ok();
    a.start();
    let b = second.device("ann", "b");
    let after = all_well(&[&a, &b]);
    assert_eq!(after.difference(&before), "");
}

/// R5: the power went, and files are empty under their old names and times.
#[test]
fn r05_files_that_lost_their_bytes_with_the_power_are_fetched_again_and_never_sent() {
    let world = World::new();
    let mut a = world.device("ann", "a");
    let b = world.device("ann", "b");
    for index in 0..30 {
        a.write(format!("d/{index}"), format!("precious {index}"));
    }
    a.write("large", Dice::new(5).bytes(2 << 20));
    let before = all_well(&[&a, &b]);
    a.kill();
    let paths = (0..30).map(|index| format!("d/{index}")).chain(["large".to_owned()]);
    for path in paths.filter(|path| path != "d/7") {
        let file = fs::OpenOptions::new().write(true).open(a.path(&path)).unwrap();
        let mtime = file.metadata().unwrap().modified().unwrap();
        file.set_len(0).unwrap();
        file.set_modified(mtime).unwrap();
    }
    // What tells the agent that it was the power: the note of its last run is of another boot.
    let notes: Vec<PathBuf> = walkdir::WalkDir::new(a.dir.join("state"))
        .into_iter()
        .flatten()
        .map(|entry| entry.path().to_owned())
        .filter(|path| path.ends_with("running"))
        .collect();
    let [note] = notes.as_slice() else { panic!("{notes:?}") };
    fs::write(note, "another boot").unwrap();
    a.start();
    let after = all_well(&[&a, &b]);
    assert_eq!(after.difference(&before), "");
}

/// R8: an edit that leaves size and modification time as they were.
#[test]
fn r08_an_edit_of_the_same_size_and_time_is_seen() {
    let world = World::new();
    let mut a = world.device("ann", "a");
    let b = world.device("ann", "b");
    a.write("watched", "one");
    a.write("while off", "one");
    all_well(&[&a, &b]);
    let edit = |device: &Device, path: &str| {
        let before = fs::metadata(device.path(path)).unwrap();
        let file = fs::OpenOptions::new().write(true).open(device.path(path)).unwrap();
        file.write_all_at(b"two", 0).unwrap();
        file.set_modified(before.modified().unwrap()).unwrap();
        let after = file.metadata().unwrap();
        assert_eq!(
            (after.size(), after.mtime(), after.mtime_nsec(), after.ino()),
            (before.size(), before.mtime(), before.mtime_nsec(), before.ino())
        );
    };
    edit(&a, "watched");
    b.wait_text("watched", "two");
    a.stop();
    edit(&a, "while off");
    a.start();
    b.wait_text("while off", "two");
    all_well(&[&a, &b]);
}

/// R9: names that differ in case alone.
#[test]
fn r09_a_rename_of_case_alone_is_one_move_and_names_that_differ_in_case_are_two() {
    let world = World::new();
    let mut a = world.device("ann", "a");
    let b = world.device("ann", "b");
    a.write("Photos/Beach.JPG", "beach");
    a.write("notes.txt", "notes");
    a.write("twin", "small");
    a.write("TWIN", "large");
    all_well(&[&a, &b]);
    let cursor = || a.status()["folders"][0]["cursor"].as_u64().unwrap();
    let before = cursor();
    a.rename("Photos", "photos");
    a.rename("photos/Beach.JPG", "photos/beach.jpg");
    a.rename("notes.txt", "Notes.txt");
    let tree = all_well(&[&a, &b]);
    assert_eq!(tree.paths(), ["Notes.txt", "TWIN", "photos", "photos/beach.jpg", "twin"]);
    assert_eq!(cursor(), before + 3, "a move each");
    // On one device back, on the other, which is off, in another way, and edited.
    a.stop();
    a.rename("Notes.txt", "NOTES.txt");
    a.write("NOTES.txt", "edited");
    b.rename("Notes.txt", "notes.txt");
    b.sync();
    a.start();
    let tree = all_well(&[&a, &b]);
    assert_eq!(tree.paths(), ["TWIN", "notes.txt", "photos", "photos/beach.jpg", "twin"]);
    assert_eq!(b.read("notes.txt").as_deref(), Some("edited"));
    assert_eq!(
        (b.read("twin").unwrap(), b.read("TWIN").unwrap()),
        ("small".into(), "large".into())
    );
}

/// R11: a rule leaves out what is in the drive, and the agent is killed right then.
#[test]
fn r11_a_rule_that_leaves_out_what_is_synced_deletes_nothing_anywhere() {
    let world = World::new();
    let mut a = world.device("ann", "a");
    let b = world.device("ann", "b");
    for index in 0..50 {
        a.write(format!("photos/{index}"), format!("{index}"));
    }
    let before = all_well(&[&a, &b]);
    let rules = "photos/\n*\n!.picloudignore\n";
    for round in 0..4 {
        // By either way in which a rule can come, with a kill in the midst of it.
        if round % 2 == 0 {
            a.write(".picloudignore", rules);
        } else {
            let text = fs::read_to_string(&a.config).unwrap();
            let text = text.replace("\n[[folder]]\n", "\n[[folder]]\nignore = [\"photos/\"]\n");
            fs::write(&a.config, text).unwrap();
        }
        std::thread::sleep(Duration::from_millis(40 * round));
        a.kill();
        a.start();
        a.sync();
        b.sync();
        for device in [&a, &b] {
            assert_nothing_gone(device, &before);
        }
        if round % 2 == 1 {
            let text = fs::read_to_string(&a.config).unwrap();
            fs::write(&a.config, text.replace("ignore = [\"photos/\"]\n", "")).unwrap();
            a.remove(".picloudignore");
        }
    }
    b.wait_gone(".picloudignore");
    assert_eq!(all_well(&[&a, &b]).difference(&before), "");
}

/// R12: the folder at the path is another one, of another drive.
#[test]
fn r12_another_folder_or_server_in_the_place_of_the_known_one_is_not_synced() {
    let world = World::new();
    let mut a = world.device("ann", "a");
    let mut b = world.device("bob", "b");
    a.write("of ann", "ann");
    b.write("of bob", "bob");
    let (of_ann, of_bob) = (all_well(&[&a]), all_well(&[&b]));
    a.stop();
    b.stop();
    let exchange = || {
        let aside = a.dir.join("aside");
        fs::rename(&a.folder, &aside).unwrap();
        fs::rename(&b.folder, &a.folder).unwrap();
        fs::rename(&aside, &b.folder).unwrap();
    };
    exchange();
    a.start_without_waiting();
    b.start_without_waiting();
    for device in [&a, &b] {
        device.wait_status("stop", |status| status["state"] == "stopped");
        let reason = device.status()["problems"][0]["reason"].as_str().unwrap().to_owned();
        assert!(reason.contains("belongs to another drive"), "{reason}");
    }
    assert_eq!((a.tree(), b.tree()), (of_bob.clone(), of_ann.clone()));
    a.stop();
    b.stop();
    let aside = a.dir.join("aside");
    fs::rename(&a.folder, &aside).unwrap();
    fs::rename(&b.folder, &a.folder).unwrap();
    fs::rename(&aside, &b.folder).unwrap();
    a.start();
    b.start();
    assert_eq!((all_well(&[&a]), all_well(&[&b])), (of_ann, of_bob));
}

/// R14: bytes on the server are damaged; what is good elsewhere stays.
#[test]
fn r14_damage_on_the_server_is_never_written_over_good_bytes() {
    let mut world = World::new();
    let mut a = world.device("ann", "a");
    let bytes = Dice::new(4).bytes(300_000);
    a.write("damaged", &bytes);
    a.write("good", "good");
    let before = all_well(&[&a]);
    world.stop_server();
    let packs = fs::read_dir(world.server_data().join("packs")).unwrap();
    for pack in packs.map(|entry| entry.unwrap().path()) {
        let content = fs::read(&pack).unwrap();
        let at = content.windows(64).position(|window| window == &bytes[1000..1064]).unwrap();
        let pack = fs::OpenOptions::new().write(true).open(pack).unwrap();
        pack.write_all_at(&[!bytes[1000]], at as u64).unwrap();
    }
    world.start_server();
    let b = world.device("ann", "b");
    b.wait_text("good", "good");
    let reason = b.wait_problem("damaged");
    assert!(!reason.is_empty());
    assert!(!b.exists("damaged"), "nothing that nobody wrote is seen");
    // The device that has it keeps it, whatever it looks at anew.
    a.stop();
    a.start();
    a.sync();
    assert_eq!(a.tree(), before);
    // Any other content of the file is one that everybody gets.
    a.write("damaged", "written anew");
    b.wait_text("damaged", "written anew");
    all_well(&[&a, &b]);
}

/// R15: a laptop that was off for long brings nothing back that was deleted meanwhile.
#[test]
fn r15_a_device_that_was_off_for_long_revives_nothing_and_loses_nothing() {
    let world = World::with_server_config("[limits]\nmass_delete_min = 0\n");
    let a = world.device("ann", "a");
    let mut b = world.device("ann", "b");
    for index in 0..40 {
        a.write(format!("old/{index}"), format!("{index}"));
    }
    all_well(&[&a, &b]);
    b.stop();
    a.remove("old");
    all_well(&[&a]);
    // Far more than one page of the journal, most of it gone again.
    for round in 0..3 {
        for index in 0..700 {
            a.write(format!("new/{index}"), format!("{round} {index}"));
        }
        a.sync();
    }
    a.remove("new");
    a.write("last", "a");
    all_well(&[&a]);
    b.write("old/3", "edited while it was off");
    b.write("old/own", "made while it was off");
    b.start();
    let tree = all_well(&[&a, &b]);
    assert_eq!(tree.paths(), ["last", "old", "old/3", "old/own"], "{tree}");
    assert_eq!(a.read("old/3").as_deref(), Some("edited while it was off"));
}

/// R17: a database that somebody else holds is busy, not gone.
#[test]
fn r17_a_busy_database_is_waited_for_on_either_side_and_nothing_is_begun_anew() {
    let world = World::new();
    let mut a = world.device("ann", "a");
    let b = world.device("ann", "b");
    a.write("before", "x");
    let before = all_well(&[&a, &b]);
    // The server's, for longer than it waits for it.
    let server = rusqlite::Connection::open(world.server_data().join("picloud.db")).unwrap();
    server.execute_batch("BEGIN IMMEDIATE").unwrap();
    a.write("while busy", "a");
    std::thread::sleep(Duration::from_secs(12));
    for device in [&a, &b] {
        assert_nothing_gone(device, &before);
    }
    server.execute_batch("ROLLBACK").unwrap();
    b.wait_text("while busy", "a");
    let tree = all_well(&[&a, &b]);
    assert_eq!(tree.len(), 2, "{tree}");

    // The agent's, when it begins.
    a.stop();
    let state = walkdir::WalkDir::new(a.dir.join("state")).into_iter().flatten();
    let mut files = state.map(|entry| entry.path().to_owned());
    let database = files.find(|path| path.ends_with("state.sqlite")).unwrap();
    let held = rusqlite::Connection::open(&database).unwrap();
    held.execute_batch("PRAGMA locking_mode = EXCLUSIVE; BEGIN EXCLUSIVE").unwrap();
    a.start_without_waiting();
    std::thread::sleep(Duration::from_secs(8));
    held.execute_batch("ROLLBACK").unwrap();
    drop(held);
    a.write("after", "a");
    b.wait_text("after", "a");
    assert_eq!(all_well(&[&a, &b]).len(), 3);
    let beside = fs::read_dir(database.parent().unwrap()).unwrap();
    let names: Vec<String> =
        beside.map(|entry| entry.unwrap().file_name().to_str().unwrap().to_owned()).collect();
    assert!(!names.iter().any(|name| name.contains("damaged")), "{names:?}");
}
