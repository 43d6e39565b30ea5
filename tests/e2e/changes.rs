//! Drop, edit, rename, move, delete; devices that were off; and the table of conflicts.

use std::time::{Duration, Instant};

use serde_json::json;

use crate::support::{Device, Tree, World, settle, today, wait_same};

/// Two devices that hold `base` already.
fn two(base: &[(&str, &str)]) -> (World, Device, Device) {
    let world = World::new();
    let a = world.device("ann", "a");
    for (path, text) in base {
        a.write(path, text);
    }
    a.sync();
    let b = world.device("ann", "b");
    settle(&[&a, &b]);
    (world, a, b)
}

/// Plays `here` on a and `there` on b while neither knows of the other, b's changes reaching the
/// server first, and lets them settle.
fn apart(
    base: &[(&str, &str)],
    here: impl FnOnce(&Device),
    there: impl FnOnce(&Device),
) -> Outcome {
    let (world, mut a, b) = two(base);
    a.stop();
    there(&b);
    b.sync();
    here(&a);
    a.start();
    settle(&[&a, &b]);
    Outcome { _world: world, a, b }
}

struct Outcome {
    _world: World,
    a: Device,
    b: Device,
}

impl Outcome {
    #[track_caller]
    fn holds(&self, path: &str, text: &str) {
        for device in [&self.a, &self.b] {
            assert_eq!(device.read(path).as_deref(), Some(text), "{}\n{}", path, device.tree());
        }
    }

    #[track_caller]
    fn paths(&self, expected: &[&str]) {
        assert_eq!(self.b.tree().paths(), expected);
    }
}

fn copy_of(stem: &str, device: &str, ext: &str) -> String {
    format!("{stem} (conflicted copy {device} {}){ext}", today())
}

#[test]
fn what_one_does_the_other_follows_by_itself() {
    let (_world, a, b) = two(&[]);
    a.write("hello.txt", "one");
    b.wait_text("hello.txt", "one");
    b.write("hello.txt", "two");
    a.wait_text("hello.txt", "two");
    a.rename("hello.txt", "sub/dir/renamed.txt");
    b.wait_text("sub/dir/renamed.txt", "two");
    b.wait_gone("hello.txt");
    b.rename("sub/dir", "moved");
    a.wait_text("moved/renamed.txt", "two");
    a.mkdir("empty");
    a.link("link", "moved/renamed.txt");
    a.chmod("moved/renamed.txt", 0o750);
    wait_same(&[&a, &b]);
    b.remove("moved");
    a.wait_gone("moved");
    a.remove("link");
    a.remove("empty");
    a.remove("sub");
    wait_same(&[&a, &b]);
    assert_eq!(settle(&[&a, &b]).len(), 0);
}

#[test]
fn an_editors_save_by_rename_is_an_edit() {
    let (_world, a, b) = two(&[("notes.txt", "one")]);
    a.write(".notes.txt.swp", "two");
    a.rename(".notes.txt.swp", "notes.txt");
    b.wait_text("notes.txt", "two");
    settle(&[&a, &b]);
    assert_eq!(b.tree().paths(), ["notes.txt"]);
}

#[test]
fn a_directory_of_many_files_is_renamed_by_one_change() {
    let (_world, a, b) = two(&[]);
    for index in 0..2_000 {
        a.write(format!("many/{}/{index}", index % 20), format!("file {index}"));
    }
    settle(&[&a, &b]);
    let before = a.status()["folders"][0]["cursor"].as_u64().unwrap();
    a.rename("many", "deeper/down/lots");
    settle(&[&a, &b]);
    let after = a.status()["folders"][0]["cursor"].as_u64().unwrap();
    // deeper, deeper/down, and the one move.
    assert_eq!(after - before, 3);
    assert!(!b.exists("many"));
    assert_eq!(b.read("deeper/down/lots/7/1987").unwrap(), "file 1987");
}

#[test]
fn devices_that_were_off_catch_up() {
    let (_world, mut a, mut b) = two(&[("gone", "x"), ("old/deep/file", "y"), ("edited", "1")]);
    b.stop();
    a.remove("gone");
    a.rename("old/deep", "new");
    a.write("edited", "2");
    a.write("added", "z");
    a.sync();
    a.stop();
    b.write("while off", "from b");
    b.rename("edited", "edited and moved");
    b.start();
    a.start();
    settle(&[&a, &b]);
    assert_eq!(a.read("while off").unwrap(), "from b");
    assert_eq!(b.read("edited and moved").unwrap(), "2");
    assert_eq!(b.read("new/file").unwrap(), "y");
    assert_eq!(
        b.tree().paths(),
        ["added", "edited and moved", "new", "new/file", "old", "while off"]
    );
}

#[test]
fn a_device_works_on_while_the_server_is_away() {
    let (mut world, a, b) = two(&[("f", "1")]);
    world.stop_server();
    a.wait_status("offline", |status| status["state"] == "offline");
    assert_eq!(a.picloud(&["status"]).code, 4);
    a.write("f", "2");
    a.write("dir/new", "n");
    world.start_server();
    b.wait_text("f", "2");
    b.wait_text("dir/new", "n");
    settle(&[&a, &b]);
}

#[test]
fn a_big_file_arrives_whole_and_an_edit_of_it_too() {
    let (_world, a, b) = two(&[]);
    let mut bytes = crate::support::Dice::new(1).bytes(12 * 1024 * 1024 + 5);
    a.write("big", &bytes);
    settle(&[&a, &b]);
    bytes.splice(6_000_000..6_000_010, *b"an insertion in the middle");
    b.write("big", &bytes);
    settle(&[&a, &b]);
    assert!(std::fs::read(a.path("big")).unwrap() == bytes);
}

#[test]
fn different_edits_keep_both_and_the_servers_keeps_the_name() {
    let o =
        apart(&[("doc.txt", "0")], |a| a.write("doc.txt", "of a"), |b| b.write("doc.txt", "of b"));
    o.holds("doc.txt", "of b");
    o.holds(&copy_of("doc", "a", ".txt"), "of a");
    o.paths(&[&copy_of("doc", "a", ".txt"), "doc.txt"]);
    let listed = o.a.picloud(&["conflicts", "--json"]);
    assert_eq!(listed.code, 3);
    let object = &listed.objects()[0];
    assert_eq!(object["path"], copy_of("doc", "a", ".txt"));
    assert_eq!(object["original"], "doc.txt");
}

#[test]
fn the_same_edit_on_both_is_no_conflict() {
    let o = apart(&[("doc.txt", "0")], |a| a.write("doc.txt", "1"), |b| b.write("doc.txt", "1"));
    o.holds("doc.txt", "1");
    o.paths(&["doc.txt"]);
}

#[test]
fn an_edit_wins_against_a_deletion() {
    let o = apart(&[("d/f", "0")], |a| a.write("d/f", "edited"), |b| b.remove("d"));
    o.holds("d/f", "edited");
    let o = apart(&[("d/f", "0")], |a| a.remove("d/f"), |b| b.write("d/f", "edited"));
    o.holds("d/f", "edited");
}

#[test]
fn two_moves_end_as_the_servers() {
    let o = apart(&[("f", "0")], |a| a.rename("f", "from a"), |b| b.rename("f", "from b"));
    o.holds("from b", "0");
    o.paths(&["from b"]);
}

#[test]
fn an_edit_and_a_move_both_apply() {
    let o = apart(&[("f", "0")], |a| a.write("f", "1"), |b| b.rename("f", "g"));
    o.holds("g", "1");
    o.paths(&["g"]);
    let o = apart(&[("f", "0")], |a| a.rename("f", "g"), |b| b.write("f", "1"));
    o.holds("g", "1");
    o.paths(&["g"]);
}

#[test]
fn a_deleted_directory_stays_with_what_is_new_in_it() {
    let base = [("d/old", "0"), ("d/edited", "0")];
    let o = apart(
        &base,
        |a| a.remove("d"),
        |b| {
            b.write("d/new", "n");
            b.write("d/edited", "1");
        },
    );
    o.holds("d/new", "n");
    o.holds("d/edited", "1");
    o.paths(&["d", "d/edited", "d/new"]);
}

#[test]
fn two_creations_at_one_place_merge_or_both_live() {
    let o = apart(
        &[],
        |a| {
            a.write("d/same", "s");
            a.write("d/from a", "a");
            a.write("d/differ", "of a");
        },
        |b| {
            b.write("d/same", "s");
            b.write("d/from b", "b");
            b.write("d/differ", "of b");
        },
    );
    o.holds("d/differ", "of b");
    let copy = format!("d/{}", copy_of("differ", "a", ""));
    o.holds(&copy, "of a");
    o.paths(&["d", "d/differ", &copy, "d/from a", "d/from b", "d/same"]);
}

#[test]
fn a_file_where_a_directory_got_something_new_and_both_live() {
    let o = apart(
        &[("d/f", "0")],
        |a| {
            a.remove("d");
            a.write("d", "now a file");
        },
        |b| b.write("d/new", "n"),
    );
    o.holds("d/new", "n");
    o.holds(&copy_of("d", "a", ""), "now a file");
}

#[test]
fn two_directories_moved_into_each_other_end_as_the_servers() {
    let base = [("x/fx", "x"), ("y/fy", "y")];
    let o = apart(&base, |a| a.rename("x", "y/x"), |b| b.rename("y", "x/y"));
    o.holds("x/fx", "x");
    o.holds("x/y/fy", "y");
    o.paths(&["x", "x/fx", "x/y", "x/y/fy"]);
}

#[test]
fn a_copy_name_that_is_taken_gets_a_number_and_a_long_one_is_cut_at_a_character() {
    let long = "é".repeat(126);
    let taken = copy_of("f", "a", ".txt");
    let o = apart(
        &[("f.txt", "0"), (&taken, "taken"), (&long, "0")],
        |a| {
            a.write("f.txt", "of a");
            a.write(&long, "long of a");
        },
        |b| {
            b.write("f.txt", "of b");
            b.write(&long, "long of b");
        },
    );
    o.holds("f.txt", "of b");
    o.holds(&taken, "taken");
    o.holds(&format!("f (conflicted copy a {} 2).txt", today()), "of a");
    let copies = o.b.conflict_copies("");
    let cut = copies.iter().find(|name| name.starts_with('é')).unwrap();
    assert!(cut.len() <= 255 && !cut.contains('\u{fffd}'), "{cut}");
    o.holds(cut, "long of a");
}

/// A device has deleted 1,500 of 1,501 files; it waits for a person, and both devices say so.
#[track_caller]
fn wait_held(a: &Device, b: &Device, whole: &Tree) {
    a.wait_status("held deletion", |status| status["state"] == "problem");
    b.wait_status("deletion held elsewhere", |status| {
        status["folders"][0]["held"][0]["deletions"] == 1501
    });
    let status = a.status();
    assert_eq!(status["problem_count"], 1, "{status:#}");
    let reason = status["problems"][0]["reason"].as_str().unwrap();
    assert!(reason.starts_with("A mass deletion here (1501 files and directories)"), "{reason}");
    let stderr = a.picloud(&["sync", "--timeout", "60"]).fails(3);
    assert!(
        stderr.contains("picloud approve \"a\"") && stderr.contains("picloud reject"),
        "{stderr}"
    );
    // Nothing is gone elsewhere, and the other device is at work as ever.
    b.sync();
    assert!(whole.difference(&b.tree()).is_empty(), "{}", whole.difference(&b.tree()));
    let text = b.picloud(&["status"]).ok();
    assert!(text.contains("a wants to delete 1,501 files and directories everywhere"), "{text}");
    let held = b.picloud(&["held"]);
    assert_eq!(held.code, 3, "{held:?}");
    let lines: Vec<&str> = held.stdout.lines().collect();
    assert!(
        lines[0].starts_with("a wants to delete 1,501 files and directories, since "),
        "{held:?}"
    );
    assert!(lines[1].starts_with("  precious/") && lines[6] == "  and 1,496 more", "{held:?}");
    let held = b.picloud(&["held", "--json"]);
    let held = &held.objects()[0];
    assert_eq!((held["device"].as_str(), held["deletions"].as_u64()), (Some("a"), Some(1501)));
    assert!(held["examples"][0].as_str().unwrap().starts_with("precious/"), "{held}");
}

#[test]
fn a_mass_deletion_waits_as_a_whole_until_a_person_has_decided() {
    let world = World::new();
    let a = world.device("ann", "a");
    let b = world.device("ann", "b");
    a.write("other", "x");
    for index in 0..1500 {
        a.write(format!("precious/{index}"), format!("{index}"));
    }
    let whole = settle(&[&a, &b]);

    a.remove("precious");
    wait_held(&a, &b, &whole);
    b.picloud(&["reject", "nobody"]).fails(1);
    b.picloud(&["reject", "a"]).ok();
    assert_eq!(settle(&[&a, &b]).difference(&whole), "", "all is back");
    assert_eq!(b.picloud(&["held"]).code, 0);

    a.remove("precious");
    wait_held(&a, &b, &whole);
    // What else is done there goes on.
    a.write("other", "y");
    b.wait_text("other", "y");
    b.picloud(&["approve", "nobody"]).fails(1);
    let decided = Instant::now();
    b.picloud(&["approve", "a"]).ok();
    b.wait_gone("precious/0");
    assert!(decided.elapsed() < Duration::from_secs(20), "the device was not woken");
    b.wait_gone("precious");
    settle(&[&a, &b]);
    assert_eq!(b.tree().paths(), ["other"]);
    assert_eq!(b.picloud(&["held"]).code, 0);
}

/// What was approved was put back before the device came on again: nothing else passes by that word.
#[test]
fn an_approval_of_what_is_not_deleted_any_more_lets_nothing_else_pass() {
    let world =
        World::with_server_config("[limits]\nmass_delete_min = 20\nmass_delete_share = 0.1\n");
    let mut a = world.device("ann", "a");
    let b = world.device("ann", "b");
    let fill = |device: &Device| {
        for index in 0..60 {
            device.write(format!("precious/{index}"), "x");
        }
    };
    fill(&a);
    a.write("other/file", "y");
    let whole = settle(&[&a, &b]);
    a.remove("precious");
    a.wait_status("held deletion", |status| status["state"] == "problem");
    a.kill();
    b.picloud(&["approve", "a"]).ok();
    fill(&a);
    a.start();
    settle(&[&a, &b]);
    for dir in ["precious", "other"] {
        a.remove(dir);
    }
    a.wait_status("held deletion", |status| status["state"] == "problem");
    assert_eq!(b.tree().paths(), whole.paths());
}

#[test]
fn a_decision_counts_for_a_device_that_was_off_and_can_be_made_on_the_server() {
    let world =
        World::with_server_config("[limits]\nmass_delete_min = 20\nmass_delete_share = 0.1\n");
    let mut a = world.device("ann", "a");
    let b = world.device("ann", "b");
    for index in 0..60 {
        a.write(format!("precious/{index}"), "x");
    }
    let whole = settle(&[&a, &b]);
    a.remove("precious");
    a.wait_status("held deletion", |status| status["state"] == "problem");
    a.kill();
    world.picloud_server(&["reject", "ann", "a"]).ok();
    b.wait_status("nothing to wait for", |status| status["folders"][0]["held"] == json!([]));
    a.start();
    assert_eq!(settle(&[&a, &b]).difference(&whole), "", "all is back");
    // Put back by hand, it is over as well.
    let aside = a.dir.join("aside");
    std::fs::rename(a.path("precious"), &aside).unwrap();
    a.wait_status("held deletion", |status| status["state"] == "problem");
    std::fs::rename(&aside, a.path("precious")).unwrap();
    b.wait_status("nothing to wait for", |status| status["folders"][0]["held"] == json!([]));
    assert_eq!(settle(&[&a, &b]).difference(&whole), "", "nothing is lost");
    a.remove("precious");
    a.wait_status("held deletion", |status| status["state"] == "problem");
    let held = world.picloud_server(&["held", "ann"]).ok();
    assert!(held.contains("61 deletions since") && held.contains("\"precious/"), "{held}");
    world.picloud_server(&["approve", "ann", "a"]).ok();
    b.wait_gone("precious");
    settle(&[&a, &b]);
}

#[test]
fn a_missing_folder_is_not_an_empty_one() {
    let (_world, mut a, b) = two(&[("f", "1")]);
    a.stop();
    let aside = a.dir.join("unmounted");
    std::fs::rename(&a.folder, &aside).unwrap();
    a.start();
    a.wait_status("stop", |status| status["state"] == "stopped");
    assert_eq!(a.picloud(&["status"]).code, 3);
    // An empty directory in its place, as an unmounted disk leaves it, is no folder either.
    std::fs::create_dir(&a.folder).unwrap();
    b.write("g", "2");
    b.sync();
    assert_eq!(a.status()["state"], "stopped");
    assert_eq!(b.read("f").unwrap(), "1");
    assert_eq!(a.tree().len(), 0);
    std::fs::remove_dir(&a.folder).unwrap();
    std::fs::rename(&aside, &a.folder).unwrap();
    a.wait_text("g", "2");
    settle(&[&a, &b]);
}

#[test]
fn a_lost_state_database_deletes_nothing() {
    let (_world, mut a, b) = two(&[("kept", "1"), ("deleted by b", "2")]);
    a.stop();
    b.remove("deleted by b");
    b.write("kept", "edited by b");
    b.sync();
    for entry in std::fs::read_dir(&a.dir).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_name().unwrap().to_string_lossy().into_owned();
        if path.is_file() && (name.ends_with(".db") || name.contains("sqlite")) {
            std::fs::remove_file(path).unwrap();
        }
    }
    a.start();
    settle(&[&a, &b]);
    assert_eq!(b.read("kept").unwrap(), "edited by b");
}
