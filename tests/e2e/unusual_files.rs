//! Files as people really have them: every name, kind, mode and time that Unix allows.

use std::fs::{self, File};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileExt, MetadataExt};

use rustix::fs::{AtFlags, CWD, Timespec, Timestamps, utimensat};

use crate::support::{Device, World, name, settle};

fn two() -> (World, Device, Device) {
    let world = World::new();
    let a = world.device("ann", "a");
    let b = world.device("ann", "b");
    (world, a, b)
}

fn set_mtime(device: &Device, path: &str, secs: i64, nanos: i64) {
    let time = Timespec { tv_sec: secs, tv_nsec: nanos };
    let times = Timestamps { last_access: time, last_modification: time };
    utimensat(CWD, device.path(path), &times, AtFlags::SYMLINK_NOFOLLOW).unwrap();
}

#[test]
fn every_name_a_unix_file_can_have_travels() {
    let (_world, a, b) = two();
    let long = "x".repeat(255);
    let names: [Vec<u8>; 19] = [
        long.clone().into_bytes(),
        "é".repeat(127).into_bytes(),
        b"new\nline".to_vec(),
        b"quote\"and'".to_vec(),
        b"back\\slash".to_vec(),
        b" ".to_vec(),
        b"-rf".to_vec(),
        b"...".to_vec(),
        b"tab\tbell\x07".to_vec(),
        b"latin1 \xe9t\xe9".to_vec(),
        b"\xff\xfe\x80".to_vec(),
        "caf\u{e9}".into(),
        "cafe\u{301}".into(),
        b"Case".to_vec(),
        b"case".to_vec(),
        b"CON".to_vec(),
        b"a:b*c?d|e<f>".to_vec(),
        "\u{202e}gpj.exe".into(),
        "雪/深い/ところ".into(),
    ];
    for bytes in &names {
        a.write(name(bytes), bytes);
    }
    let deep = [long.as_str(); 10].join("/deep/");
    a.write(format!("deep/{deep}"), "at the bottom");
    a.mkdir(name(b"dir \xf0\x28"));
    let tree = settle(&[&a, &b]);
    for bytes in &names {
        assert!(tree.0.contains_key(bytes), "{}", bytes.escape_ascii());
        assert_eq!(fs::read(b.path(name(bytes))).unwrap(), *bytes);
    }
    // Renaming only the case, or only the Unicode form, is a rename like any other.
    b.rename("Case", "cASE");
    b.rename("cafe\u{301}", "cafe\u{301} renamed");
    settle(&[&a, &b]);
    assert!(a.exists("cASE") && a.exists("case") && !a.exists("Case"));
}

#[test]
fn modes_and_times_are_kept_to_the_bit_and_the_nanosecond() {
    let (_world, a, b) = two();
    for (index, mode) in [0o644, 0o600, 0o755, 0o444, 0o700, 0o777, 0o640].into_iter().enumerate() {
        let file = format!("f{index}");
        a.write(&file, "x");
        a.chmod(&file, mode);
        let dir = format!("d{index}");
        a.mkdir(&dir);
        a.chmod(&dir, mode | 0o700);
    }
    let times = [
        ("old", -1, 999_999_999),
        ("older", -2_000_000_000, 1),
        ("epoch", 0, 0),
        ("y2038", 2_147_483_648, 123_456_789),
        ("future", 15_000_000_000, 987_654_321),
    ];
    for (file, secs, nanos) in times {
        a.write(file, file);
        set_mtime(&a, file, secs, nanos);
    }
    settle(&[&a, &b]);
    for (file, secs, nanos) in times {
        let stat = fs::metadata(b.path(file)).unwrap();
        assert_eq!((stat.mtime(), stat.mtime_nsec()), (secs, nanos), "{file}");
    }
    assert_eq!(fs::metadata(b.path("f3")).unwrap().mode() & 0o7777, 0o444);
    // Changes of nothing but these are changes.
    b.chmod("f0", 0o755);
    b.chmod("d1", 0o711);
    set_mtime(&b, "epoch", 1, 1);
    settle(&[&a, &b]);
    assert_eq!(fs::metadata(a.path("f0")).unwrap().mode() & 0o777, 0o755);
    assert_eq!(fs::metadata(a.path("epoch")).unwrap().mtime(), 1);
}

#[test]
fn links_are_carried_and_never_followed() {
    let (world, a, b) = two();
    let outside = world.path().join("outside");
    fs::create_dir(&outside).unwrap();
    fs::write(outside.join("secret"), "not for sync").unwrap();
    a.write("target", "t");
    a.link("to file", "target");
    a.link("dangling", "no/such/place");
    a.link("loop", "loop");
    a.link("absolute", &outside);
    a.link("out", "../../outside");
    a.link("odd", name(b"\xff\n"));
    a.link("long", "l".repeat(4095));
    let tree = settle(&[&a, &b]);
    assert_eq!(tree.len(), 8);
    assert_eq!(fs::read_link(b.path("odd")).unwrap().as_os_str().as_bytes(), b"\xff\n");
    // A directory of mine replaced by a link outside takes nothing out there with it.
    a.write("d/secret", "mine");
    settle(&[&a, &b]);
    a.remove("d");
    a.link("d", &outside);
    settle(&[&a, &b]);
    b.remove("d");
    b.write("d/secret", "mine again");
    settle(&[&a, &b]);
    assert_eq!(fs::read_to_string(outside.join("secret")).unwrap(), "not for sync");
    a.link("relinked", "1");
    settle(&[&a, &b]);
    b.remove("relinked");
    b.link("relinked", "2");
    settle(&[&a, &b]);
    assert_eq!(fs::read_link(a.path("relinked")).unwrap().to_str(), Some("2"));
}

#[test]
fn what_cannot_be_synced_is_a_problem_and_everything_else_goes_on() {
    let (_world, a, b) = two();
    a.fifo("fifo");
    let _socket = std::os::unix::net::UnixListener::bind(a.path("socket")).unwrap();
    a.write("dir/plain", "goes on");
    let reasons = [a.wait_problem("fifo"), a.wait_problem("socket")];
    assert!(reasons.iter().all(|reason| !reason.is_empty()), "{reasons:?}");
    b.wait_text("dir/plain", "goes on");
    assert!(!b.exists("fifo") && !b.exists("socket"));
    a.remove("fifo");
    a.write("fifo", "a file now");
    a.remove("socket");
    b.wait_text("fifo", "a file now");
    settle(&[&a, &b]);
}

#[test]
fn a_synced_folder_in_another_is_a_problem_and_not_looked_into() {
    let world = World::new();
    let mut outer = world.device("ann", "outer");
    let other = world.device("ann", "other");
    let mut inner = world.joined("bob", "inner");
    inner.write("of bob", "1");
    inner.start();
    inner.sync();
    // It is moved into the other folder while both agents are at work; and there is a directory that
    // is known to the other folder before it becomes one of its own.
    inner.stop();
    let moved = outer.path("sub/inner");
    outer.mkdir("sub");
    fs::rename(&inner.folder, &moved).unwrap();
    inner.edit_config(|text| text.replace(inner.folder.to_str().unwrap(), moved.to_str().unwrap()));
    inner.start();
    outer.write("known/file", "1");
    other.wait_text("known/file", "1");
    fs::create_dir(outer.path("known/.picloud")).unwrap();
    fs::copy(moved.join(".picloud/identity"), outer.path("known/.picloud/identity")).unwrap();
    for path in ["sub/inner", "known"] {
        let reason = outer.wait_problem(path);
        assert!(reason.contains("a synced folder of its own"), "{path}: {reason}");
    }
    // Nothing of either goes over, and what is gone there was not deleted.
    fs::write(moved.join("of bob 2"), "2").unwrap();
    outer.remove("known/file");
    outer.write("known/another", "2");
    outer.write("plain", "goes on");
    outer.picloud(&["sync", "--timeout", "90"]).fails(3);
    other.wait_text("plain", "goes on");
    other.sync();
    assert_eq!(other.tree().paths(), ["known", "known/file", "plain", "sub"]);
    // Nothing that comes from elsewhere is put into them, and nothing waits for that.
    other.write("sub/inner/from elsewhere", "3");
    other.write("known/from elsewhere", "3");
    other.sync();
    outer.picloud(&["sync", "--timeout", "90"]).fails(3);
    inner.sync();
    for path in ["sub/inner/from elsewhere", "known/from elsewhere"] {
        assert!(!outer.exists(path), "{path}");
    }
    let there = world.device("bob", "bob 2");
    there.sync();
    assert_eq!(there.tree().paths(), ["of bob", "of bob 2"]);
    // Moved out again, it is no matter any more, and both go on; also over a restart.
    outer.stop();
    outer.start();
    outer.wait_problem("sub/inner");
    inner.stop();
    fs::rename(&moved, &inner.folder).unwrap();
    inner.edit_config(|text| text.replace(moved.to_str().unwrap(), inner.folder.to_str().unwrap()));
    outer.remove("known/.picloud");
    outer.remove("known/another");
    outer.wait_text("sub/inner/from elsewhere", "3");
    outer.wait_text("known/from elsewhere", "3");
    settle(&[&outer, &other]);
    inner.start();
    inner.sync();
    assert_eq!(inner.tree().paths(), ["of bob", "of bob 2"]);
}

#[test]
fn an_unreadable_file_is_a_problem_until_it_can_be_read() {
    if rustix::process::geteuid().is_root() {
        // Nothing is unreadable to root; the rest of this file runs all the same.
        return;
    }
    let (_world, a, b) = two();
    a.write("locked", "x");
    a.chmod("locked", 0o000);
    a.write("open", "y");
    b.wait_text("open", "y");
    a.wait_problem("locked");
    a.chmod("locked", 0o600);
    b.wait_text("locked", "x");
}

#[test]
fn hard_links_are_files_of_their_own_elsewhere() {
    let (_world, a, b) = two();
    a.write("one", "shared");
    fs::hard_link(a.path("one"), a.path("two")).unwrap();
    settle(&[&a, &b]);
    b.write("one", "apart now");
    settle(&[&a, &b]);
    assert_eq!(a.read("one").unwrap(), "apart now");
    assert_eq!(a.read("two").unwrap(), "shared");
}

#[test]
fn a_sparse_file_stays_sparse() {
    let (_world, a, b) = two();
    let file = File::create(a.path("sparse")).unwrap();
    file.set_len(1 << 30).unwrap();
    file.write_all_at(b"begin", 0).unwrap();
    file.write_all_at(b"middle", 500_000_003).unwrap();
    file.write_all_at(b"end", (1 << 30) - 3).unwrap();
    drop(file);
    let all_hole = File::create(a.path("all hole")).unwrap();
    all_hole.set_len(1 << 30).unwrap();
    drop(all_hole);
    settle(&[&a, &b]);
    let stat = fs::metadata(b.path("sparse")).unwrap();
    assert_eq!(stat.len(), 1 << 30);
    assert!(stat.blocks() * 512 < 4 << 20, "{} blocks", stat.blocks());
    assert!(fs::metadata(b.path("all hole")).unwrap().blocks() * 512 < 1 << 20);
    let mut middle = [0; 6];
    File::open(b.path("sparse")).unwrap().read_exact_at(&mut middle, 500_000_003).unwrap();
    assert_eq!(&middle, b"middle");
}

#[test]
fn files_become_directories_and_links_and_back() {
    let (_world, a, b) = two();
    a.write("x", "file");
    a.write("y/inside", "in a directory");
    a.mkdir("empty dir");
    a.write("empty file", "");
    settle(&[&a, &b]);
    a.remove("x");
    a.write("x/now/deep", "dir");
    a.remove("y");
    a.write("y", "file");
    settle(&[&a, &b]);
    assert_eq!(b.read("y").unwrap(), "file");
    b.remove("x");
    b.link("x", "y");
    b.remove("y");
    b.mkdir("y");
    b.remove("empty dir");
    b.write("empty dir", "");
    settle(&[&a, &b]);
    assert_eq!(fs::read_link(a.path("x")).unwrap().to_str(), Some("y"));
    assert_eq!(a.read("empty dir").unwrap(), "");
    // Two swap their names.
    a.rename("empty file", "swap");
    a.rename("y", "empty file");
    a.rename("swap", "y");
    let tree = settle(&[&a, &b]);
    assert_eq!(tree.paths(), ["empty dir", "empty file", "x", "y"]);
}

#[test]
fn a_file_that_is_written_all_the_time_arrives_whole_in_the_end() {
    let (_world, a, b) = two();
    let path = a.path("growing.log");
    let mut file = fs::OpenOptions::new().create(true).append(true).open(&path).unwrap();
    let mut expected = String::new();
    let mut seen = 0;
    for index in 0..400 {
        let line = format!("line {index}\n");
        std::io::Write::write_all(&mut file, line.as_bytes()).unwrap();
        expected.push_str(&line);
        if let Some(there) = b.read("growing.log") {
            // Whatever has arrived is a beginning of it: nothing torn, nothing mixed.
            assert!(expected.starts_with(&there), "{there:?}");
            seen = seen.max(there.len());
        }
        std::thread::sleep(std::time::Duration::from_millis(5));
    }
    b.wait_text("growing.log", &expected);
    settle(&[&a, &b]);
}
