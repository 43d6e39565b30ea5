//! Taking back what a device changed in one burst.
//!
//! `PICLOUD_KILLS` sets how often the server is killed while it undoes.

use std::time::Duration;

use serde_json::{Value, json};

use crate::support::{Device, Dice, World, all_well, number, today};

/// The newest batch of a device, as `picloud undo --json` lists it on another.
fn newest_of(asked: &Device, device: &str) -> Value {
    let listed = asked.picloud(&["undo", "--json"]);
    let batches = listed.objects();
    let found = batches.iter().find(|batch| batch["device"] == device);
    found.unwrap_or_else(|| panic!("{listed:?}")).clone()
}

fn id(batch: &Value) -> &str {
    batch["batch"].as_str().unwrap()
}

fn undone(asked: &Device, batch: &str) -> Value {
    let run = asked.picloud(&["undo", batch, "--yes", "--json"]);
    assert_eq!(run.code, 0, "{run:?}");
    run.objects().remove(0)
}

#[test]
fn a_tree_deleted_and_files_spoilt_on_one_device_are_brought_back_from_another() {
    let seed = number("PICLOUD_SEED", 1);
    println!("PICLOUD_SEED={seed}");
    let mut dice = Dice::new(seed);
    let mut world = World::new();
    let a = world.device("ann", "a");
    let b = world.device("ann", "b");
    let mut c = world.device("ann", "c");
    for index in 0..300 {
        a.write(format!("tree/{}/{index}", index % 7), format!("precious {index}"));
    }
    a.write("tree/large", dice.bytes(3 << 20));
    for index in 0..20 {
        a.write(format!("texts/{index}"), format!("text {index}"));
    }
    a.write("other", "other");
    let before = all_well(&[&a, &b, &c]);

    // On b a tree goes, and files are spoilt. c, which is off, works on with what it has.
    c.stop();
    b.remove("tree");
    for index in 0..20 {
        b.write(format!("texts/{index}"), "spoilt");
    }
    all_well(&[&a, &b]);
    c.write("tree/3/3", "edited on c");
    c.write("texts/4", "edited on c");
    c.write("other", "edited on c");

    let batch = newest_of(&a, "b");
    assert_eq!(batch["deleted"], 300 + 7 + 1 + 1, "{batch}");
    assert_eq!(batch["edited"], 20, "{batch}");
    assert_eq!((&batch["created"], &batch["moved"]), (&json!(0), &json!(0)), "{batch}");
    assert!(batch["examples"].as_array().unwrap().contains(&json!("tree")), "{batch}");

    // The server is killed while it undoes that, or undoes the undo: then all of it has happened, or
    // nothing.
    let (mut next, mut is_back) = (id(&batch).to_owned(), false);
    for _ in 0..number("PICLOUD_KILLS", 8) {
        let mut command = a.picloud_command(&["undo", &next, "--yes"]);
        let output = std::process::Stdio::null;
        let mut asking = command.stdout(output()).stderr(output()).spawn().unwrap();
        std::thread::sleep(Duration::from_millis(dice.below(160)));
        world.kill_server();
        asking.wait().unwrap();
        world.start_server();
        let listed = a.picloud(&["undo", "--json", "-n", "100"]).objects();
        let asked = listed.iter().find(|batch| id(batch) == next).unwrap();
        let undone_by = asked["undone_by"].as_str();
        println!("killed while it undoes {next}: undone by {undone_by:?}");
        if let Some(by) = undone_by {
            next = by.to_owned();
            is_back = !is_back;
        }
    }
    if !is_back {
        undone(&a, &next);
    }
    assert_eq!(all_well(&[&a, &b]).difference(&before), "", "all is back as it was");

    // And c has only its edits to tell.
    c.start();
    let after = all_well(&[&a, &b, &c]);
    for path in ["tree/3/3", "texts/4", "other"] {
        assert_eq!(a.read(path).as_deref(), Some("edited on c"), "{path}");
    }
    assert_eq!(after.paths(), before.paths(), "no conflict copies");
    assert_eq!(after.difference(&before).lines().count(), 3, "{}", after.difference(&before));
    assert_eq!(undone(&b, id(&batch))["done"], false, "it is undone already");
}

#[test]
fn an_undo_is_shown_first_is_done_once_and_can_itself_be_undone() {
    let world = World::new();
    let a = world.device("ann", "a");
    let b = world.device("ann", "b");
    for name in ["d/edited", "d/deleted", "d/moved", "d/later", "name"] {
        a.write(name, format!("old {name}"));
    }
    let before = all_well(&[&a, &b]);
    b.write("d/edited", "new");
    b.remove("d/deleted");
    b.rename("d/moved", "moved away");
    b.write("d/later", "new");
    b.remove("name");
    b.write("made/new", "new");
    all_well(&[&a, &b]);
    // Changed since, and a name that is in use again.
    a.write("d/later", "even newer");
    a.write("name", "another");
    let spoilt = all_well(&[&a, &b]);

    let batch = newest_of(&a, "b");
    let shown = a.picloud(&["undo"]).ok();
    assert!(shown.contains("2 created, 2 edited, 1 moved, 2 deleted"), "{shown}");
    // Without a person and without a word of agreement, it is only shown.
    let asked = a.picloud(&["undo", id(&batch)]);
    assert!(asked.stdout.contains("restore d/deleted"), "{asked:?}");
    assert!(asked.stdout.contains("d/later: was changed since, by a"), "{asked:?}");
    let refused = asked.fails(3);
    assert!(refused.contains("Hint: `--yes` does it without a question"), "{refused}");
    assert_eq!(all_well(&[&a, &b]).difference(&spoilt), "", "nothing happened");

    let did = undone(&a, id(&batch));
    assert_eq!(
        (&did["restored"], &did["reverted"], &did["moved"], &did["deleted"]),
        (&json!(2), &json!(1), &json!(1), &json!(2)),
        "{did}"
    );
    assert_eq!(did["left"][0]["path"], "d/later", "{did}");
    let beside = format!("name (restored {})", today());
    assert_eq!(did["beside"], json!([{"path": "name", "name": beside}]), "{did}");
    let after = all_well(&[&a, &b]);
    assert_eq!(b.read(&beside).as_deref(), Some("old name"));
    assert_eq!(b.read("name").as_deref(), Some("another"));
    assert_eq!(b.read("d/later").as_deref(), Some("even newer"));
    let expected: Vec<String> = before.paths().into_iter().chain([beside.clone()]).collect();
    assert_eq!(after.paths(), expected);

    // Once more it is done no more, and says so.
    let again = a.picloud(&["undo", id(&batch), "--yes"]).ok();
    let undo = did["undo"].as_str().unwrap();
    let expected =
        format!("{} is undone already: `picloud undo {undo}` would take that back\n", id(&batch));
    assert_eq!(again, expected);
    // The undo is a batch, and can be undone.
    let redone = undone(&b, undo);
    assert_eq!(redone["left_count"], 0, "{redone}");
    assert_eq!(all_well(&[&a, &b]).difference(&spoilt), "");
    // Where there is nothing to undo, nobody needs to be asked.
    a.write("short", "lived");
    all_well(&[&a, &b]);
    let made = newest_of(&b, "a");
    a.remove("short");
    all_well(&[&a, &b]);
    let none = a.picloud(&["undo", id(&made)]).ok();
    assert!(none.starts_with(&format!("There is nothing to undo of {}", id(&made))), "{none}");
    assert_eq!(a.picloud(&["undo", "1-2-3"]).code, 2);
    let none = a.picloud(&["undo", "999999", "--yes"]).fails(1);
    assert!(none.starts_with("Error: There is no such batch: `picloud undo` lists them"), "{none}");
}

#[test]
fn an_undo_that_deletes_very_much_has_to_be_meant() {
    let world =
        World::with_server_config("[limits]\nmass_delete_min = 20\nmass_delete_share = 0.1\n");
    let a = world.device("ann", "a");
    let b = world.device("ann", "b");
    a.write("other", "other");
    let before = all_well(&[&a, &b]);
    for index in 0..40 {
        b.write(format!("many/{index}"), "x");
    }
    let whole = all_well(&[&a, &b]);
    let batch = newest_of(&a, "b");
    let refused = a.picloud(&["undo", id(&batch), "--yes"]).fails(3);
    assert_eq!(
        refused,
        "Error: Nothing is undone: that would delete 41 files and directories, which needs a person's \
         approval\nHint: `--approve` says that it is meant\n"
    );
    assert_eq!(all_well(&[&a, &b]).difference(&whole), "");
    a.picloud(&["undo", id(&batch), "--yes", "--approve"]).ok();
    assert_eq!(all_well(&[&a, &b]).difference(&before), "");
    assert_eq!(a.picloud(&["held"]).code, 0, "nothing waits");
}
