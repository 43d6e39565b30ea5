//! One file at a time, straight to the server.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::process::Command;

use crate::support::{Dice, World, name};

#[test]
fn a_machine_without_a_folder_puts_lists_and_gets() {
    let world = World::with_server_config("[accounts]\nregistration = \"open\"\n");
    let home = world.path().join("terminal");
    let link = world.invite("ann");
    let args = ["register", "--server", &link, "--user", "ann", "--password-file", "-"];
    world.picloud_typing(&home, &args, "correct horse battery").ok();
    let run = |args: &[&str]| world.picloud_at(&home, args);

    let big = Dice::new(3).bytes(3_000_000);
    fs::write(home.join("big.bin"), &big).unwrap();
    fs::set_permissions(home.join("big.bin"), fs::Permissions::from_mode(0o751)).unwrap();
    fs::write(home.join("empty"), "").unwrap();
    run(&["put", "big.bin"]).ok();
    run(&["put", "empty", "some/dir/renamed"]).ok();
    run(&["put", "empty", "some/"]).ok();
    assert_eq!(run(&["ls"]).ok(), "big.bin\nsome/\n");
    assert_eq!(run(&["ls", "some"]).ok(), "dir/\nempty\n");
    let listed = run(&["ls", "--json", "big.bin"]).objects();
    assert_eq!(listed[0]["size"], 3_000_000);
    assert_eq!(listed[0]["kind"], "file");
    let long = run(&["ls", "-l"]).ok();
    assert!(long.contains("rwxr-x--x") && long.contains("3000000"), "{long}");

    run(&["get", "big.bin", "back"]).ok();
    assert!(fs::read(home.join("back")).unwrap() == big);
    let stat = |name: &str| {
        let stat = fs::metadata(home.join(name)).unwrap();
        (stat.mode(), stat.mtime(), stat.mtime_nsec())
    };
    assert_eq!(stat("back"), stat("big.bin"));

    // Putting again replaces, and a synced device sees all of it.
    fs::write(home.join("big.bin"), "small now").unwrap();
    run(&["put", "big.bin"]).ok();
    let device = world.device("ann", "synced");
    device.wait_text("big.bin", "small now");
    device.write("from the folder", "here");
    device.sync();
    assert_eq!(run(&["get", "from the folder", "-"]).ok(), "here");
    // The commands of a machine with a folder need no other log-in.
    assert_eq!(device.picloud(&["get", "big.bin", "-"]).ok(), "small now");
}

#[test]
fn what_is_missing_is_said_and_leaves_nothing_behind() {
    let world = World::new();
    let device = world.joined("ann", "a");
    fs::write(device.dir.join("old"), "old").unwrap();
    let stderr = device.picloud(&["get", "no/such", "old"]).fails(1);
    assert!(stderr.contains("no/such"), "{stderr}");
    assert_eq!(fs::read_to_string(device.dir.join("old")).unwrap(), "old");
    let before: Vec<_> = fs::read_dir(&device.dir).unwrap().count_names();
    device.picloud(&["get", "no-such"]).fails(1);
    let stderr = device.picloud(&["put", "no-such-file"]).fails(1);
    assert!(stderr.contains("no-such-file"), "{stderr}");
    device.picloud(&["ls", "nowhere"]).fails(1);
    device.picloud(&["put", "old", "../escape"]).fails(2);
    device.picloud(&["put", "."]).fails(2);
    assert_eq!(fs::read_dir(&device.dir).unwrap().count_names(), before);
    assert_eq!(device.picloud(&["ls"]).ok(), "");
}

/// Devices and FIFOs were replaced by files, and so were links.
#[test]
fn what_is_no_regular_file_is_never_replaced_by_one() {
    let world = World::new();
    let device = world.joined("ann", "a");
    fs::write(device.dir.join("file"), "got").unwrap();
    device.picloud(&["put", "file"]).ok();
    let fifo = device.dir.join("fifo");
    assert!(Command::new("mkfifo").arg(&fifo).status().unwrap().success());
    let stderr = device.picloud(&["get", "file", fifo.to_str().unwrap()]).fails(1);
    assert!(stderr.contains("is no regular file"), "{stderr}");
    assert!(!fs::symlink_metadata(&fifo).unwrap().is_file());
    fs::write(device.dir.join("target"), "old").unwrap();
    let link = device.dir.join("link");
    std::os::unix::fs::symlink("target", &link).unwrap();
    device.picloud(&["get", "file", link.to_str().unwrap()]).ok();
    assert!(fs::symlink_metadata(&link).unwrap().is_symlink());
    assert_eq!(fs::read_to_string(device.dir.join("target")).unwrap(), "got");
}

trait CountNames {
    fn count_names(self) -> Vec<std::ffi::OsString>;
}

impl CountNames for fs::ReadDir {
    fn count_names(self) -> Vec<std::ffi::OsString> {
        let mut names: Vec<_> = self.map(|entry| entry.unwrap().file_name()).collect();
        names.sort();
        names
    }
}

#[test]
fn a_name_that_is_no_text_can_be_put_listed_and_got() {
    let world = World::new();
    let device = world.joined("ann", "a");
    let odd = name(b"odd\xff\n\x1b[31mname");
    fs::write(device.dir.join(odd), "odd").unwrap();
    let put = device.picloud_command(&["put"]).arg(odd).output().unwrap();
    assert!(put.status.success(), "{put:?}");
    let shown = device.picloud(&["ls"]).ok();
    assert_eq!(shown.lines().count(), 1, "{shown:?}");
    assert!(!shown.contains('\x1b'));
    let got = device.picloud_command(&["get"]).arg(odd).arg("-").output().unwrap();
    assert_eq!(got.stdout, b"odd");
}

#[test]
fn a_machine_that_never_logged_in_is_told_how_to() {
    let world = World::without_server("");
    let home = world.path().join("fresh");
    let stderr = world.picloud_at(&home, &["ls"]).fails(1);
    assert!(stderr.contains("picloud join") && stderr.contains("picloud login"), "{stderr}");
}
