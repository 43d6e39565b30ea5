//! Folders whose changes go one way only: what is not carried stays where it is, is told, and ends when a
//! person says so.

use crate::support::{Device, World, all_well};

/// A device whose folder was joined with this direction; its agent runs.
fn joined(world: &World, name: &str, direction: &str, before: &[(&str, &str)]) -> Device {
    let mut device = world.blank_device(name);
    for (path, text) in before {
        device.write(path, text);
    }
    let link = world.invite("ann");
    let (folder, name) = (device.folder.to_str().unwrap().to_owned(), name.to_owned());
    let args = ["join", &link, "--folder", &folder, "--device", &name, "--direction", direction];
    device.picloud(&args).ok();
    device.start();
    device
}

fn kept(device: &Device) -> (String, u64) {
    let status = device.status();
    let folder = &status["folders"][0];
    assert_eq!(status["state"], "in-sync", "{status}");
    assert_eq!((&folder["uploads"], &folder["downloads"]), (&0.into(), &0.into()), "{folder}");
    (folder["direction"].as_str().unwrap().to_owned(), folder["kept"].as_u64().unwrap())
}

fn differs(run: &[serde_json::Value]) -> Vec<(String, String)> {
    let paths = run[0]["paths"].as_array().unwrap();
    let text = |value: &serde_json::Value| value.as_str().unwrap().to_owned();
    let mut all: Vec<_> =
        paths.iter().map(|one| (text(&one["what"]), text(&one["path"]))).collect();
    all.sort();
    all
}

fn pairs(all: &[(&str, &str)]) -> Vec<(String, String)> {
    all.iter().map(|(what, path)| ((*what).to_owned(), (*path).to_owned())).collect()
}

#[test]
fn what_is_changed_where_it_only_receives_stays_there_until_it_is_taken_back() {
    let world = World::new();
    let a = world.device("ann", "a");
    for path in ["same", "edited", "moved", "deleted", "d/1", "d/2", "both"] {
        a.write(path, path);
    }
    a.sync();
    // What is there already when it is joined: equal, different, only here.
    let before = [("same", "same"), ("both", "of b"), ("mine", "of b")];
    let mut b = joined(&world, "b", "receive-only", &before);
    b.sync();
    assert_eq!(kept(&b), ("receive-only".to_owned(), 2), "{}", b.tree());
    let copies = b.conflict_copies("");
    assert_eq!((copies.len(), b.read("both").as_deref()), (1, Some("both")), "{}", b.tree());
    assert_eq!(b.read(&copies[0]).as_deref(), Some("of b"));

    b.write("edited", "of b");
    b.write("new/file", "of b");
    b.rename("moved", "elsewhere");
    b.remove("deleted");
    b.remove("d");
    b.sync();
    a.write("edited-too", "of a");
    a.write("d/1", "edited by a");
    a.sync();
    b.sync();
    // What came is here, what was changed here is not there.
    assert_eq!(b.read("edited-too").as_deref(), Some("of a"));
    assert_eq!(b.read("d/1").as_deref(), Some("edited by a"), "{}", b.tree());
    assert!(b.exists("elsewhere") && !b.exists("moved") && !b.exists("deleted"));
    assert!(!b.exists("d/2"));
    assert_eq!(
        a.tree().paths(),
        ["both", "d", "d/1", "d/2", "deleted", "edited", "edited-too", "moved", "same"]
    );
    assert_eq!(a.read("edited").as_deref(), Some("edited"));
    assert_eq!(kept(&b), ("receive-only".to_owned(), 8), "{}", b.tree());
    let shown = b.picloud(&["status"]).ok();
    let line =
        "Receives only: 8 changes made and kept here; `picloud revert` takes back what was changed";
    assert!(shown.contains(line), "{shown}");
    let why = b.picloud(&["why", "new/file"]);
    assert_eq!(why.code, 0);
    assert_eq!(
        why.stdout,
        "new/file was made here, which stays here: this folder only receives\n\
         What to do: nothing, or `picloud revert new/file` to take that back\n"
    );

    // Edited there as well: a conflict copy, here alone.
    a.write("edited", "again by a");
    a.sync();
    b.sync();
    assert_eq!(b.read("edited").as_deref(), Some("again by a"));
    assert_eq!(b.conflict_copies("").len(), 2, "{}", b.tree());
    assert_eq!(a.conflict_copies("").len(), 0);

    // It outlives the agent and its state.
    b.kill();
    b.start();
    b.sync();
    assert_eq!(kept(&b).1, 8);

    // One path, then everything; nobody is asked, so it must be said.
    let listed = b.picloud(&["revert", "--dry-run", "--json"]).objects();
    let copies: Vec<String> = b.conflict_copies("");
    let mut expected = pairs(&[
        ("gone", "d/2"),
        ("gone", "deleted"),
        ("moved", "elsewhere"),
        ("new", "mine"),
        ("new", "new"),
        ("new", "new/file"),
    ]);
    expected.extend(copies.iter().map(|copy| ("new".to_owned(), copy.clone())));
    expected.sort();
    assert_eq!(differs(&listed), expected);
    let refused = b.picloud(&["revert"]).fails(3);
    assert!(refused.contains("nobody is there to ask"), "{refused}");
    assert_eq!(kept(&b).1, 8);
    b.picloud(&["revert", "--yes", "new"]).ok();
    b.sync();
    assert!(!b.exists("new"), "{}", b.tree());
    assert!(b.exists("mine"));
    assert_eq!(kept(&b).1, 6);
    let wrong = b.picloud(&["override", "--yes"]).fails(1);
    assert!(wrong.contains("only receives"), "{wrong}");
    let wrong = b.picloud(&["resolve", &copies[0], "--keep", "both"]).fails(1);
    assert!(wrong.contains("go one way only"), "{wrong}");
    // What stays here keeps the directory that it is in, which is told.
    b.write("d/kept", "of b");
    b.picloud(&["exclude", "d"]).ok();
    let told = b.wait_problem("d");
    assert!(told.contains("picloud revert"), "{told}");
    b.picloud(&["revert", "--yes", "d"]).ok();
    b.wait_gone("d");
    b.picloud(&["include", "d"]).ok();
    b.sync();
    b.picloud(&["revert", "--yes"]).ok();
    b.sync();
    assert_eq!(kept(&b), ("receive-only".to_owned(), 0));
    assert_eq!(b.picloud(&["revert"]).ok().trim_end(), "Nothing here differs from the drive");
    all_well(&[&a, &b]);

    // Both ways again, by an edit of the settings alone: what is changed here goes there from then on.
    b.write("mine", "again of b");
    b.sync();
    assert!(!a.exists("mine"));
    b.edit_config(|text| text.replace("direction = \"receive-only\"", ""));
    a.wait_text("mine", "again of b");
    all_well(&[&a, &b]);
}

#[test]
fn what_others_change_stays_in_the_drive_where_it_only_sends_until_it_is_taken_back() {
    let world = World::new();
    let a = world.device("ann", "a");
    for path in ["same", "both", "theirs", "d/1"] {
        a.write(path, path);
    }
    a.sync();
    let before = [("same", "same"), ("both", "of b"), ("mine", "of b"), ("d/2", "of b")];
    let mut b = joined(&world, "b", "send-only", &before);
    b.sync();
    a.wait_text("mine", "of b");
    a.wait_text("d/2", "of b");
    assert_eq!(b.tree().paths(), ["both", "d", "d/2", "mine", "same"]);
    assert_eq!(
        (a.read("both").as_deref(), b.read("both").as_deref()),
        (Some("both"), Some("of b"))
    );
    assert_eq!(kept(&b), ("send-only".to_owned(), 3));

    // Edited, deleted and moved there: nothing of it is done here.
    a.write("mine", "edited by a");
    a.remove("same");
    a.rename("d/2", "moved");
    a.sync();
    b.write("new", "of b");
    b.sync();
    a.wait_text("new", "of b");
    assert_eq!(b.tree().paths(), ["both", "d", "d/2", "mine", "new", "same"]);
    assert_eq!(b.read("mine").as_deref(), Some("of b"));
    assert_eq!(kept(&b).1, 6);
    let shown = b.picloud(&["status", "--plain"]).ok();
    let line = "Sends only: 6 changes in the drive, not carried out here; `picloud override` takes back what was changed there.";
    assert!(shown.contains(line), "{shown}");
    let why = b.picloud(&["why", "theirs"]);
    assert_eq!(
        (why.code, why.stdout.as_str()),
        (
            0,
            "theirs was made in the drive, which stays there: this folder only sends\n\
             What to do: `picloud override theirs` takes that back in the drive\n"
        )
    );
    let why = b.picloud(&["why", "both"]).ok();
    assert!(why.contains("each side keeps its own, and what is here is not in the drive"), "{why}");
    // What was edited here and not there is told, and leaves what was edited there as it is.
    b.write("d/2", "again of b");
    b.sync();
    a.wait_text("moved", "again of b");

    b.kill();
    b.start();
    b.sync();
    assert_eq!(kept(&b).1, 6);
    let listed = b.picloud(&["override", "--dry-run", "--json"]).objects();
    let expected = [
        ("both", "both"),
        ("edited", "mine"),
        ("gone", "same"),
        ("moved", "d/2"),
        ("new", "d/1"),
        ("new", "theirs"),
    ];
    assert_eq!(differs(&listed), pairs(&expected));
    let wrong = b.picloud(&["include", "d"]).fails(1);
    assert!(wrong.contains("only sends"), "{wrong}");
    b.picloud(&["override", "--yes", "theirs"]).ok();
    a.wait_gone("theirs");
    b.picloud(&["override", "--yes"]).ok();
    b.sync();
    a.sync();
    assert_eq!(kept(&b), ("send-only".to_owned(), 0));
    assert_eq!(a.tree().paths(), ["both", "d", "d/2", "mine", "new", "same"]);
    assert_eq!(a.read("mine").as_deref(), Some("of b"));
    all_well(&[&a, &b]);

    // The settings that `join` wrote say so.
    let settings = std::fs::read_to_string(&b.config).unwrap();
    assert!(settings.contains("direction = \"send-only\""), "{settings}");
}

#[test]
fn a_wrong_direction_is_told_with_the_line_and_joining_again_keeps_it() {
    let world = World::new();
    let mut b = joined(&world, "b", "receive-only", &[("mine", "of b")]);
    b.sync();
    b.edit_config(|text| text.replace("\"receive-only\"", "\"receive\""));
    let mut told = String::new();
    b.wait_status("a problem", |status| {
        let all = status["problems"].as_array().cloned().unwrap_or_default();
        told = all.iter().map(|one| one["reason"].to_string()).collect();
        told.contains("direction")
    });
    assert!(told.contains("receive-only") && told.contains("line "), "{told}");
    b.edit_config(|text| text.replace("\"receive\"", "\"receive-only\""));
    b.wait_status("in sync", |status| status["state"] == "in-sync");
    // Who logs out and joins again does not send by mistake what was meant to stay.
    b.picloud(&["logout"]).ok();
    let joined = b.join(&world.invite("ann")).ok();
    assert!(joined.contains("receives from"), "{joined}");
    b.stop();
    b.start();
    b.sync();
    assert_eq!(kept(&b), ("receive-only".to_owned(), 1));
}
