//! Disks that are full, on the device and on the server: real file systems of a few megabytes, with
//! a file in the way that is then taken away. What cannot be done is said, the rest goes on, and once
//! there is room everything is finished by itself.
//!
//! Mounting needs root; without it these tests say so and pass.

use std::fs;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::support::{Device, Dice, World, eventually, settle, wait_same};

/// A file system in memory, unmounted when dropped.
pub struct SmallDisk {
    pub path: PathBuf,
}

impl SmallDisk {
    /// Mounts one; nothing where that is not allowed.
    pub fn mount(path: &Path, mib: u32) -> Option<Self> {
        if !rustix::process::geteuid().is_root() {
            eprintln!("skipped: only root can mount a small disk");
            return None;
        }
        fs::create_dir_all(path).unwrap();
        let size = format!("size={mib}m");
        let mounted = Command::new("mount")
            .args(["-t", "tmpfs", "-o", &size, "picloud-test"])
            .arg(path)
            .output()
            .unwrap();
        if !mounted.status.success() {
            eprintln!("skipped: {}", String::from_utf8_lossy(&mounted.stderr));
            return None;
        }
        Some(Self { path: path.to_owned() })
    }

    fn filler(&self) -> PathBuf {
        self.path.join("filler")
    }

    /// Takes what is free but for so many KiB.
    fn fill(&self, left_kib: u64) {
        let stat = rustix::fs::statvfs(&self.path).unwrap();
        let free = stat.f_bavail * stat.f_frsize;
        let mut file =
            fs::OpenOptions::new().create(true).append(true).open(self.filler()).unwrap();
        let mut left = free.saturating_sub(left_kib * 1024);
        let zeros = vec![0; 1 << 20];
        while left > 0 {
            let len = left.min(1 << 20);
            // The last piece may find less than was counted.
            if file.write_all(&zeros[..usize::try_from(len).unwrap()]).is_err() {
                return;
            }
            left -= len;
        }
    }

    fn make_room(&self) {
        fs::remove_file(self.filler()).unwrap();
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        // Also while a program that is about to be killed has files open there.
        Command::new("umount").arg("--lazy").arg(&self.path).status().ok();
    }
}

fn big(seed: u64) -> Vec<u8> {
    Dice::new(seed).bytes(3 << 20)
}

/// Waits until a problem speaks of room on a disk, and returns its path.
fn wait_no_room(device: &Device) -> String {
    let mut path = String::new();
    device.wait_status("word of the full disk", |status| {
        let problems = status["problems"].as_array().cloned().unwrap_or_default();
        let found = problems.iter().find(|problem| {
            let reason = problem["reason"].as_str().unwrap();
            reason.contains("disk is full")
        });
        if let Some(found) = found {
            found["path"].as_str().unwrap().clone_into(&mut path);
        }
        found.is_some()
    });
    path
}

#[test]
fn a_folder_on_a_full_disk_says_so_and_goes_on_with_the_rest() {
    let world = World::new();
    let b = world.device("ann", "b");
    let mut a = world.blank_device("a");
    let Some(disk) = SmallDisk::mount(&a.dir.join("disk"), 24) else { return };
    a.folder = disk.path.join("PiCloud");
    a.join(&world.invite("ann")).ok();
    a.start();
    a.write("small", "1");
    a.write("edited", "old");
    settle(&[&a, &b]);
    disk.fill(1024);
    for seed in 0..3 {
        b.write(format!("big {seed}"), big(seed));
    }
    b.sync();
    let path = wait_no_room(&a);
    assert!(path.starts_with("big "), "{path}");
    // The rest goes on, in both directions, and what is there stays whole.
    a.write("from a", "2");
    a.remove("small");
    b.write("from b", "3");
    b.write("edited", "new");
    b.wait_text("from a", "2");
    b.wait_gone("small");
    a.wait_text("from b", "3");
    a.wait_text("edited", "new");
    assert_eq!(a.picloud(&["status"]).code, 3);
    for seed in 0..3 {
        assert!(!a.exists(format!("big {seed}")), "a part of a file must never be seen");
    }
    disk.make_room();
    assert_eq!(wait_same(&[&a, &b]).len(), 6);
    a.wait_status("no problem", |status| status["state"] == "in-sync");
    a.stop();
}

#[test]
fn a_device_whose_whole_disk_is_full_loses_nothing_and_goes_on_later() {
    let world = World::new();
    let b = world.device("ann", "b");
    let mut a = world.blank_device("a");
    let Some(disk) = SmallDisk::mount(&a.dir, 32) else { return };
    a.join(&world.invite("ann")).ok();
    a.start();
    for index in 0..50 {
        a.write(format!("d/{index}"), format!("{index}"));
    }
    a.write("kept", "of a");
    settle(&[&a, &b]);
    disk.fill(0);
    // Deletions and moves need no room in the folder, only in the state.
    a.remove("d/0");
    a.rename("kept", "d/kept");
    for index in 1..50 {
        b.write(format!("d/{index}"), format!("{index} of b"));
    }
    b.write("big", big(1));
    b.sync();
    a.wait_status("word of the full disk", |status| {
        status["state"] != "in-sync" && status["problems"].to_string().contains("disk is full")
    });
    a.agent().assert_running();
    disk.make_room();
    let tree = wait_same(&[&a, &b]);
    settle(&[&a, &b]);
    assert_eq!(a.read("d/kept").as_deref(), Some("of a"), "{tree}");
    assert_eq!(a.read("d/49").as_deref(), Some("49 of b"), "{tree}");
    assert!(!b.exists("d/0") && !b.exists("kept") && b.exists("big"), "{tree}");
    assert!(a.conflict_copies("d").is_empty(), "{tree}");
    a.stop();
}

/// A world whose server keeps its data on a small disk.
fn small_server(mib: u32, free_min_mib: u32) -> Option<(World, SmallDisk)> {
    let mut world =
        World::without_server(&format!("[limits]\ndisk_free_min_mib = {free_min_mib}\n"));
    let disk = SmallDisk::mount(&world.server_data(), mib)?;
    world.start_server();
    Some((world, disk))
}

#[test]
fn a_server_whose_disk_is_full_refuses_contents_and_lets_everything_else_pass() {
    let Some((mut world, disk)) = small_server(96, 16) else { return };
    let a = world.device("ann", "a");
    let b = world.device("ann", "b");
    for name in ["deleted", "moved", "edited", "kept"] {
        a.write(name, name);
    }
    settle(&[&a, &b]);
    disk.fill(17 * 1024);
    a.write("big", big(1));
    wait_no_room(&a);
    for index in 0..20 {
        a.write(format!("small {index}"), format!("{index}").repeat(10_000));
    }
    a.write("edited", "edited on a");
    disk.fill(12 * 1024);
    b.write("from b", "x".repeat(60_000));
    wait_no_room(&b);
    // Everything else passes, also in one breath with what does not.
    a.remove("deleted");
    a.rename("moved", "moved away");
    a.mkdir("made");
    b.wait_gone("deleted");
    b.wait_text("moved away", "moved");
    eventually("the directory is there", || b.exists("made").then_some(()));
    let status = a.status();
    assert_ne!(status["state"], "offline", "{status:#}");
    assert!(!status["problems"].as_array().unwrap().is_empty(), "{status:#}");
    world.server().assert_running();
    assert_eq!(a.picloud(&["put", "kept", "put"]).code, 1);
    assert_eq!(a.picloud(&["get", "kept", "-"]).ok(), "kept");
    disk.make_room();
    let tree = wait_same(&[&a, &b]);
    assert_eq!(tree.len(), 26, "{tree}");
    for device in [&a, &b] {
        device.wait_status("no problem", |status| status["state"] == "in-sync");
    }
    // What was acknowledged is there after a crash, for whoever comes.
    world.kill_server();
    world.start_server();
    let c = world.device("ann", "c");
    assert_eq!(wait_same(&[&a, &c]).difference(&tree), "");
    world.stop_server();
}

#[test]
fn a_server_without_any_room_at_all_stays_up_and_goes_on_later() {
    let Some((mut world, disk)) = small_server(64, 0) else { return };
    let a = world.device("ann", "a");
    let b = world.device("ann", "b");
    for index in 0..20 {
        a.write(format!("d/{index}"), format!("{index}"));
    }
    settle(&[&a, &b]);
    disk.fill(0);
    for index in 0..2000 {
        a.write(format!("e/{index}"), format!("{index} of a"));
    }
    a.write("big", big(1));
    a.remove("d/0");
    b.write("d/1", "of b");
    wait_no_room(&a);
    wait_no_room(&b);
    // Whoever comes now is told so, and the rest can be read.
    let mut c = world.blank_device("c");
    assert_eq!(a.picloud(&["get", "d/2", "-"]).ok(), "2");
    world.server().assert_running();
    // In the midst of it the server is killed, and starts on the full disk.
    world.kill_server();
    disk.make_room();
    world.start_server();
    let tree = wait_same(&[&a, &b]);
    assert_eq!(a.read("d/1").as_deref(), Some("of b"), "{tree}");
    assert!(!b.exists("d/0"), "{tree}");
    for device in [&a, &b] {
        device.wait_status("no problem", |status| status["state"] == "in-sync");
    }
    c.join(&world.invite("ann")).ok();
    c.start();
    wait_same(&[&a, &b, &c]);
    world.stop_server();
}
