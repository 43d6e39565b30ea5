//! Directories left out on one device: they go there and nowhere else, whatever happens meanwhile, and
//! come back whole.

use std::path::PathBuf;

use crate::support::{Device, Proxy, World, all_well, eventually, nothing_left};

const DIRS: usize = 6;
const FILES: usize = 50;

fn left_out(device: &Device) -> Vec<String> {
    let status = device.status();
    let list = status["folders"][0]["left_out"].as_array().unwrap().clone();
    list.iter().map(|path| path.as_str().unwrap().to_owned()).collect()
}

/// A's photos, some hundred files.
fn fill(device: &Device) {
    for dir in 0..DIRS {
        for file in 0..FILES {
            device.write(format!("photos/{dir}/{file}"), format!("photo {dir} {file}"));
        }
    }
    device.write("keep/x", "x");
}

fn database(device: &Device) -> PathBuf {
    let found = std::fs::read_dir(device.dir.join("state")).unwrap().flatten();
    found.map(|entry| entry.path()).find(|path| path.is_dir()).unwrap().join("state.sqlite")
}

#[test]
fn a_directory_left_out_goes_here_is_deleted_nowhere_and_comes_back() {
    let world = World::new();
    let proxy = Proxy::to(&world.address());
    let a = world.device("ann", "a");
    let mut b = world.device_via(&proxy, "ann", "b");
    fill(&a);
    all_well(&[&a, &b]);

    // What the server does not have stays here until it has.
    proxy.cut();
    b.write("photos/0/0", "edited on b");
    b.write("photos/new/on b", "new on b");
    let told = b.picloud(&["exclude", "photos"]).ok();
    assert_eq!(
        told.trim_end(),
        "photos is left out on this device; what is here of it goes once the server has it"
    );
    a.write("photos/1/1", "edited on a");
    a.remove("photos/2/2");
    a.write("photos/3/new", "new on a");
    a.sync();
    b.wait_status("offline", |status| status["state"] == "offline");
    assert_eq!(b.read("photos/0/0").as_deref(), Some("edited on b"));
    proxy.mend();
    b.sync();
    assert!(!b.exists("photos"), "{}", b.tree());
    a.sync();
    assert_eq!(a.read("photos/0/0").as_deref(), Some("edited on b"));
    assert_eq!(a.read("photos/new/on b").as_deref(), Some("new on b"));
    assert_eq!(b.tree().paths(), ["keep", "keep/x"]);
    let on_a = DIRS * FILES + 1;
    assert_eq!(
        a.tree().paths().iter().filter(|path| path.starts_with("photos/")).count(),
        on_a + DIRS + 1
    );

    // It is told, and nothing is wrong or pending.
    let status = b.status();
    assert_eq!(status["state"], "in-sync", "{status}");
    let folder = &status["folders"][0];
    assert_eq!(folder["left_out_files"], on_a, "{folder}");
    assert_eq!((&folder["agrees"], &folder["held"]), (&true.into(), &serde_json::json!([])));
    assert_eq!(left_out(&b), ["photos"]);
    let shown = b.picloud(&["status"]).ok();
    assert!(shown.contains(&format!("Left out on this device: photos ({on_a} files, ")), "{shown}");
    let spoken = b.picloud(&["status", "--plain"]).ok();
    assert!(spoken.contains("Left out on this device is photos ("), "{spoken}");
    let why = b.picloud(&["why", "photos/0/0"]);
    assert_eq!(why.code, 0);
    assert_eq!(
        why.stdout,
        "photos/0/0 is left out on this device, with photos\nWhat to do: `picloud include photos` brings it back\n"
    );
    let listed = b.picloud(&["exclude", "--json"]).objects();
    assert_eq!((&listed[0]["path"], &listed[0]["in_drive"]), (&"photos".into(), &true.into()));

    // It outlives the agent, and the loss of its state.
    b.kill();
    b.start();
    a.write("photos/1/1", "again");
    a.sync();
    b.sync();
    assert_eq!(b.tree().paths(), ["keep", "keep/x"]);
    b.stop();
    std::fs::remove_file(database(&b)).unwrap();
    b.start();
    b.sync();
    assert_eq!(b.tree().paths(), ["keep", "keep/x"]);
    assert_eq!(left_out(&b), ["photos"]);

    // Moved elsewhere it is still the same directory; what leaves it comes, what enters it goes.
    a.rename("photos", "keep/pictures");
    a.rename("keep/pictures/5", "five");
    a.rename("keep/x", "keep/pictures/x");
    a.sync();
    b.sync();
    assert_eq!(b.tree().paths().len(), 2 + FILES, "{}", b.tree());
    assert!(b.exists("keep") && b.exists("five/49") && !b.exists("keep/pictures"));
    assert_eq!(left_out(&b), ["keep/pictures"]);

    // What is made in its place is something else.
    // With what is in it at once: a directory there gets its other name within milliseconds.
    let made = b.dir.join("made");
    std::fs::create_dir(&made).unwrap();
    std::fs::write(made.join("mine"), "b's own").unwrap();
    std::fs::rename(&made, b.path("keep/pictures")).unwrap();
    b.sync();
    let copies = b.conflict_copies("keep");
    assert_eq!(copies.len(), 1, "{}", b.tree());
    a.sync();
    assert_eq!(a.read(format!("keep/{}/mine", copies[0])).as_deref(), Some("b's own"));
    assert!(!a.exists("keep/pictures/mine"));

    // Who deletes what it is in deletes nothing of it.
    b.remove("keep");
    b.sync();
    a.sync();
    assert!(a.exists("keep/pictures/0/0") && !a.exists(format!("keep/{}", copies[0])));
    assert_eq!(b.tree().paths().iter().filter(|path| path.starts_with("keep")).count(), 1);

    b.picloud(&["include", "keep/pictures"]).ok();
    let tree = all_well(&[&a, &b]);
    assert_eq!(b.read("keep/pictures/0/0").as_deref(), Some("edited on b"));
    assert_eq!(
        tree.paths().iter().filter(|path| path.starts_with("keep/pictures/1/")).count(),
        FILES
    );
    assert!(left_out(&b).is_empty());
    assert_eq!(b.picloud(&["exclude"]).ok(), "Nothing is left out on this device\n");
    nothing_left(&[&a, &b]);
}

#[test]
fn a_directory_can_be_left_out_before_it_comes_and_by_a_mass_of_files_nothing_is_held() {
    let world = World::new();
    let a = world.device("ann", "a");
    let mut b = world.device("ann", "b");
    a.write("seen", "1");
    all_well(&[&a, &b]);
    // It hears of it, and cannot have it yet.
    b.picloud(&["pause"]).ok();
    fill(&a);
    a.sync();
    eventually("b has heard of it", || b.picloud(&["exclude", "photos"]).code.eq(&0).then_some(()));
    b.picloud(&["resume"]).ok();
    b.sync();
    assert_eq!(b.tree().paths(), ["keep", "keep/x", "seen"]);
    b.picloud(&["include", "photos"]).ok();
    all_well(&[&a, &b]);
    // A kill in the midst of it, and another mind at once.
    for round in 0..4 {
        b.picloud(&["exclude", "photos"]).ok();
        if round % 2 == 0 {
            std::thread::sleep(std::time::Duration::from_millis(30));
        }
        b.kill();
        b.start();
        b.picloud(&["include", "photos"]).ok();
    }
    all_well(&[&a, &b]);
    assert_eq!(a.status()["folders"][0]["held"], serde_json::json!([]));
    assert_eq!(a.tree().paths().len(), DIRS * (FILES + 1) + 4);
    let log = a.picloud(&["log", "--json", "-n", "10000"]).objects();
    assert!(!log.iter().any(|line| line["event"] == "deleted here"), "{log:#?}");
}

#[test]
fn what_is_not_in_the_drive_keeps_a_directory_here_and_wrong_names_are_told() {
    let world = World::new();
    let a = world.device("ann", "a");
    let b = world.device("ann", "b");
    a.write("d/sub/file", "1");
    a.write("d/other", "2");
    a.write("file", "3");
    a.write("top/d/file", "4");
    all_well(&[&a, &b]);
    b.write(".picloudignore", "*.o\n");
    b.sync();
    b.write("d/sub/x.o", "an object");
    b.picloud(&["exclude", "d"]).ok();
    let reason = b.wait_problem("d/sub");
    assert!(
        reason.starts_with("It is left out on this device, but there is something in it"),
        "{reason}"
    );
    assert_eq!(
        b.tree().paths(),
        [".picloudignore", "d", "d/sub", "d/sub/x.o", "file", "top", "top/d", "top/d/file"]
    );
    b.remove("d/sub/x.o");
    b.sync();
    assert!(!b.exists("d"));

    let fails = |args: &[&str], words: &str| {
        let told = b.picloud(args).fails(1);
        assert!(told.contains(words), "{args:?}: {told}");
    };
    fails(&["exclude", "file"], "is no directory");
    fails(
        &["exclude", "nowhere"],
        "There is no directory \"nowhere\", neither here nor in the drive",
    );
    fails(&["exclude", b.folder.to_str().unwrap()], "The folder itself cannot be left out");
    fails(&["include", "top"], "is not left out here");
    fails(&["include", "d/sub"], "is left out with \"d\", and comes back only with all of that");
    // In one that is left out another can be, and stays so.
    b.picloud(&["exclude", "d/sub"]).ok();
    b.picloud(&["include", "d"]).ok();
    b.sync();
    assert!(b.exists("d/other") && !b.exists("d/sub"));
    // Deleted elsewhere it is forgotten, and stands in nobody's way.
    a.sync();
    a.remove("d");
    a.sync();
    b.sync();
    assert!(!b.exists("d"));
    assert_eq!(b.picloud(&["exclude", "--json"]).objects()[0]["in_drive"], false);
    b.picloud(&["include", "d/sub"]).ok();
    all_well(&[&a, &b]);
}
