//! `picloud conflicts` and `picloud resolve`: whose each version is, and that nothing is lost whichever is
//! kept.

use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;

use serde_json::{Value, json};

use crate::support::{Device, World, all_well, eventually, settle};

/// Makes a conflict: `loser` edits while the others do not see it, and comes second.
fn clash(winner: &Device, loser: &Device, file: &str) {
    // From something that neither of them writes.
    winner.write(file, "same\n");
    settle(&[winner, loser]);
    loser.picloud(&["pause"]).ok();
    winner.write(file, format!("same\nof {}\n", winner.name));
    loser.write(file, format!("same\nof {}\n", loser.name));
    winner.sync();
    loser.picloud(&["resume"]).ok();
    loser.sync();
}

fn only_conflict(device: &Device) -> Value {
    let run = device.picloud(&["conflicts", "--json"]);
    assert_eq!(run.code, 3, "{run:?}");
    let mut objects = run.objects();
    assert_eq!(objects.len(), 1, "{objects:?}");
    objects.remove(0)
}

/// A request to the agent itself, and its answer.
fn ask(device: &Device, request: &Value) -> Value {
    let mut stream = UnixStream::connect(device.config.with_file_name("agent.sock")).unwrap();
    writeln!(stream, "{request}").unwrap();
    let mut line = String::new();
    BufReader::new(stream).read_line(&mut line).unwrap();
    serde_json::from_str(&line).unwrap()
}

#[test]
fn each_version_is_told_and_what_is_not_kept_can_be_brought_back() {
    let world = World::new();
    let a = world.device("ann", "a");
    let b = world.device("ann", "b");
    let c = world.device("ann", "c");
    let all = [&a, &b, &c];
    a.write("d/notes.txt", "same\n");
    settle(&all);

    clash(&a, &b, "d/notes.txt");
    settle(&all);
    let told = only_conflict(&b);
    let sides = |told: &Value, side: &str| {
        let version = &told[side];
        (version["device"].clone(), version["here"].clone(), version["bytes"].clone())
    };
    assert_eq!(sides(&told, "copy_version"), ("b".into(), true.into(), 10.into()));
    assert_eq!(sides(&told, "original_version"), ("a".into(), false.into(), 10.into()));
    assert_eq!((&told["mine"], &only_conflict(&a)["mine"]), (&"copy".into(), &"original".into()));
    assert_eq!(only_conflict(&c)["mine"], Value::Null);

    // Nobody says what to keep, or says it so that it could be either: nothing happens.
    b.picloud(&["resolve", "d/notes.txt"]).fails(3);
    c.picloud(&["resolve", "d/notes.txt", "--keep", "mine"]).fails(3);
    let shown = b.picloud(&["resolve", "d/notes.txt", "--diff"]);
    assert!(shown.stdout.contains("\n-of a\n+of b\n"), "{shown:?}");
    assert!(shown.stdout.contains("mine: b (this device), 20"), "{shown:?}");
    only_conflict(&b);

    // Mine, which is the copy here.
    let run = b.picloud(&["resolve", "d/notes.txt", "--keep", "mine"]).ok();
    assert!(run.starts_with("d/notes.txt holds the version of b (this device)"), "{run}");
    let tree = all_well(&all);
    assert_eq!(b.read("d/notes.txt").as_deref(), Some("same\nof b\n"), "{tree}");
    assert_eq!(b.conflict_copies("d"), [""; 0]);
    assert_eq!(b.picloud(&["conflicts"]).code, 0);
    // What was not kept is one undo away.
    let batches = b.picloud(&["undo", "--json"]).objects();
    let batch = batches[0]["batch"].as_str().unwrap();
    b.picloud(&["undo", batch, "--yes"]).ok();
    all_well(&all);
    let texts: Vec<_> = std::fs::read_dir(b.path("d"))
        .unwrap()
        .map(|entry| std::fs::read_to_string(entry.unwrap().path()).unwrap())
        .collect();
    assert!(texts.iter().any(|text| text == "same\nof a\n"), "{texts:?}");
}

#[test]
fn theirs_both_and_a_device_that_wrote_neither() {
    let world = World::new();
    let a = world.device("ann", "a");
    let b = world.device("ann", "b");
    let c = world.device("ann", "c");
    let all = [&a, &b, &c];
    a.write("n", "same\n");
    settle(&all);

    clash(&a, &b, "n");
    settle(&all);
    let copy = b.conflict_copies("").remove(0);
    b.picloud(&["resolve", &copy, "--keep", "theirs"]).ok();
    all_well(&all);
    assert_eq!((b.read("n").as_deref(), b.conflict_copies("").len()), (Some("same\nof a\n"), 0));

    clash(&a, &b, "n");
    settle(&all);
    a.picloud(&["resolve", "n", "--keep", "both"]).ok();
    all_well(&all);
    let kept = format!("n (b {})", crate::support::today());
    assert_eq!(a.read(&kept).as_deref(), Some("same\nof b\n"), "{}", a.tree());
    assert_eq!((a.read("n").as_deref(), a.conflict_copies("").len()), (Some("same\nof a\n"), 0));

    clash(&a, &b, "n");
    settle(&all);
    c.picloud(&["resolve", "n", "--keep", "copy"]).ok();
    all_well(&all);
    assert_eq!((a.read("n").as_deref(), a.conflict_copies("").len()), (Some("same\nof b\n"), 0));
    a.picloud(&["resolve", "n", "--keep", "copy"]).fails(1);
}

#[test]
fn what_changed_since_it_was_seen_is_left_alone() {
    let world = World::new();
    let a = world.device("ann", "a");
    let b = world.device("ann", "b");
    a.write("n", "same\n");
    settle(&[&a, &b]);
    clash(&a, &b, "n");
    settle(&[&a, &b]);
    let conflict = ask(&b, &json!({"type": "conflicts"}))["conflicts"][0].clone();
    let resolve = |keep: &str| {
        let folder = b.folder.to_str().unwrap();
        let (path, seen) = (&conflict["path_base64"], &conflict["seen"]);
        let request = json!({
            "type": "resolve", "folder": folder, "path": path, "keep": keep, "seen": seen,
        });
        ask(&b, &request)
    };
    b.write("n", "a person wrote on\n");
    let message = resolve("copy")["message"].as_str().unwrap().to_owned();
    assert!(message.contains("nothing was done"), "{message}");
    b.sync();
    let message = resolve("original")["message"].as_str().unwrap().to_owned();
    assert!(message.contains("has changed since it was shown"), "{message}");
    assert_eq!(b.read("n").as_deref(), Some("a person wrote on\n"));
    assert_eq!(b.conflict_copies("").len(), 1);

    // What an application still writes to the version that goes is a person's.
    let mut open = std::fs::OpenOptions::new().append(true).open(b.path("n")).unwrap();
    b.picloud(&["resolve", "n", "--keep", "copy"]).ok();
    assert_eq!(b.read("n").as_deref(), Some("same\nof b\n"));
    open.write_all(b"and on\n").unwrap();
    drop(open);
    eventually("what was written on is back", || {
        let copies = b.conflict_copies("");
        let mut texts = copies.iter().filter_map(|name| b.read(name));
        texts.any(|text| text == "a person wrote on\nand on\n").then_some(())
    });
    all_well(&[&a, &b]);
}
