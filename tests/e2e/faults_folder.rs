//! What befalls a folder and the machine it is on: disks that are unmounted, permissions that are
//! taken away, watches that run out, events that are lost, and kills of everything at once.
//!
//! What needs root, or a tool of the system, says so and passes where it is missing.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use rustix::process::Signal;

use crate::full_disk::SmallDisk;
use crate::support::{
    Device, Dice, Proxy, World, all_well, eventually, nothing_left, number, wait_same,
};

/// A directory of a disk, mounted at a place.
struct Mounted {
    from: PathBuf,
    at: PathBuf,
}

impl Mounted {
    fn mount(&self) {
        let mounted = Command::new("mount").arg("--bind").arg(&self.from).arg(&self.at).output();
        assert!(mounted.as_ref().unwrap().status.success(), "{mounted:?}");
    }

    fn unmount(&self) {
        // Lazily, as when a disk is pulled out: whoever has files open there keeps them.
        let gone = Command::new("umount").arg("--lazy").arg(&self.at).output();
        assert!(gone.as_ref().unwrap().status.success(), "{gone:?}");
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        Command::new("umount").arg("--lazy").arg(&self.at).output().ok();
    }
}

/// The reason for which a device does nothing at all.
fn wait_stopped(device: &Device) -> String {
    device.wait_status("stop", |status| status["state"] == "stopped");
    assert_eq!(device.picloud(&["status"]).code, 3);
    device.status()["problems"][0]["reason"].as_str().unwrap().to_owned()
}

/// A folder goes away while its agent is at work, by `goes`, and is back by `comes`.
fn goes_and_comes(a: &Device, b: &Device, round: &str, goes: impl Fn(), comes: impl Fn()) {
    println!("{round}");
    for index in 0..50 {
        a.write(format!("{round}/{index}"), format!("{index}"));
    }
    let whole = all_well(&[a, b]);
    // At work in both directions.
    for index in 0..20 {
        b.write(format!("{round}/of b {index}"), "b");
        a.write(format!("{round}/of a {index}"), "a");
    }
    goes();
    let reason = wait_stopped(a);
    assert!(reason.contains(a.folder.to_str().unwrap()), "{reason}");
    b.write(format!("{round}/1"), "edited on b while it was away");
    b.remove(format!("{round}/2"));
    b.sync();
    let there = b.tree();
    for path in whole.0.keys().filter(|path| !path.ends_with(b"/2")) {
        assert!(there.0.contains_key(path), "{} is deleted", path.escape_ascii());
    }
    comes();
    a.wait_text(&format!("{round}/1"), "edited on b while it was away");
    let tree = all_well(&[a, b]);
    assert_eq!(tree.len(), whole.len() + 40 - 1, "{tree}");
    let copies = b.conflict_copies(round);
    assert!(copies.is_empty(), "{copies:?}");
}

#[test]
fn a_folder_that_goes_away_while_the_agent_runs_deletes_nothing_and_comes_back() {
    let world = World::new();
    let b = world.device("ann", "b");
    let mut a = world.blank_device("a");
    let disk = SmallDisk::mount(&world.path().join("disk"), 64);
    let mounted = disk.as_ref().map(|disk| {
        let mounted = Mounted { from: disk.path.join("PiCloud"), at: a.folder.clone() };
        fs::create_dir(&mounted.from).unwrap();
        fs::create_dir(&mounted.at).unwrap();
        mounted.mount();
        mounted
    });
    a.join(&world.invite("ann")).ok();
    a.start();
    if let Some(mounted) = &mounted {
        goes_and_comes(
            &a,
            &b,
            "unmounted",
            || {
                mounted.unmount();
                // What is written to the mount point is not in the folder.
                fs::write(a.folder.join("written below"), "x").unwrap();
            },
            || mounted.mount(),
        );
        // A disk of which nothing but the mount point changes in the end.
        mounted.unmount();
        wait_stopped(&a);
        fs::remove_file(a.folder.join("written below")).unwrap();
        fs::remove_dir(&a.folder).unwrap();
        let moved = Command::new("cp").arg("-a").arg(&mounted.from).arg(&a.folder).status();
        assert!(moved.unwrap().success());
        // A copy of the whole folder is the folder, whatever disk it is on.
        a.wait_status("return", |status| status["state"] != "stopped");
        all_well(&[&a, &b]);
    }
    let aside = a.dir.join("aside");
    goes_and_comes(
        &a,
        &b,
        "moved aside",
        || fs::rename(&a.folder, &aside).unwrap(),
        || fs::rename(&aside, &a.folder).unwrap(),
    );
    // The folder is deleted, with all that is in it.
    let whole = all_well(&[&a, &b]);
    fs::remove_dir_all(&a.folder).unwrap();
    let reason = wait_stopped(&a);
    assert!(reason.contains("is not there"), "{reason}");
    b.write("after", "b");
    b.sync();
    let there = b.tree();
    assert_eq!(there.len(), whole.len() + 1, "{}", whole.difference(&there));
    a.agent().assert_running();
}

/// What runs a program of ours without root's right to pass over permissions.
fn without_privileges(world: &World) -> Option<Vec<String>> {
    if !rustix::process::geteuid().is_root() {
        return Some(Vec::new());
    }
    let wrapper = ["setpriv", "--bounding-set=-all", "--inh-caps=-all"].map(str::to_owned).to_vec();
    let probe = world.path().join("probe");
    fs::create_dir(&probe).unwrap();
    set_mode(&probe, 0o000);
    let denied = Command::new(&wrapper[0]).args(&wrapper[1..]).args(["ls"]).arg(&probe).output();
    if denied.is_ok_and(|output| String::from_utf8_lossy(&output.stderr).contains("ermission")) {
        return Some(wrapper);
    }
    eprintln!("skipped: setpriv (of util-linux) cannot take root's rights away here");
    None
}

fn set_mode(path: &Path, mode: u32) {
    fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
}

#[test]
fn permissions_taken_away_are_problems_and_delete_nothing() {
    if !rustix::process::geteuid().is_root() {
        eprintln!("skipped: only root sees what is in closed directories on the other device");
        return;
    }
    let world = World::new();
    let Some(wrapper) = without_privileges(&world) else { return };
    let b = world.device("ann", "b");
    let mut a = world.joined("ann", "a");
    a.agent_wrapper = wrapper;
    a.start();
    for dir in ["closed", "closed/deep", "no list", "no entry"] {
        for index in 0..5 {
            a.write(format!("{dir}/{index}"), format!("{dir} {index}"));
        }
    }
    a.write("file", "1");
    let whole = all_well(&[&a, &b]);
    for (path, mode) in
        [("closed", 0o000), ("no list", 0o300), ("no entry", 0o600), ("file", 0o000)]
    {
        a.chmod(path, mode);
    }
    // Seen by what the watches tell, and by a look at everything, also of an agent that begins.
    for path in ["closed", "no list", "no entry"] {
        let reason = a.wait_problem(path);
        assert!(reason.contains("ermission"), "{path}: {reason}");
    }
    a.stop();
    a.start();
    a.wait_problem("closed");
    assert_eq!(a.picloud(&["sync", "--timeout", "60"]).code, 3);
    b.write("no entry/of b", "b");
    b.write("closed/of b", "b");
    b.write("beside", "goes on");
    b.sync();
    a.wait_text("beside", "goes on");
    let there = b.tree();
    for path in whole.0.keys() {
        assert!(there.0.contains_key(path), "{} is deleted", path.escape_ascii());
    }
    // The permissions travel; whoever may not look into a directory sees nothing of it.
    for path in ["closed", "no list", "no entry"] {
        set_mode(&a.path(path), 0o755);
    }
    set_mode(&a.path("file"), 0o644);
    let tree = all_well(&[&a, &b]);
    assert_eq!(tree.len(), whole.len() + 3, "{tree}");
    assert_eq!(a.read("closed/of b").as_deref(), Some("b"));
    assert_eq!(a.read("file").as_deref(), Some("1"));
}

#[test]
fn a_read_only_directory_takes_what_comes_from_elsewhere_and_stays_read_only() {
    let world = World::new();
    let Some(wrapper) = without_privileges(&world) else { return };
    let b = world.device("ann", "b");
    let mut a = world.joined("ann", "a");
    a.agent_wrapper = wrapper;
    a.start();
    for name in ["kept", "edited", "deleted", "moved", "moved within", "sub/f"] {
        a.write(format!("fixed/{name}"), name);
    }
    a.write("from outside", "x");
    all_well(&[&a, &b]);
    a.chmod("fixed/sub", 0o555);
    a.chmod("fixed", 0o555);
    all_well(&[&a, &b]);
    // The other device runs as root, or as a person who opened the directory for a moment.
    let act = |act: &dyn Fn()| {
        set_mode(&b.path("fixed"), 0o755);
        set_mode(&b.path("fixed/sub"), 0o755);
        act();
        set_mode(&b.path("fixed/sub"), 0o555);
        set_mode(&b.path("fixed"), 0o555);
    };
    act(&|| {
        b.write("fixed/edited", "edited on b");
        b.write("fixed/made", "made on b");
        b.write("fixed/large", Dice::new(1).bytes(2 << 20));
        b.mkdir("fixed/directory");
        b.link("fixed/link", "kept");
        b.remove("fixed/deleted");
        b.rename("fixed/moved", "moved out");
        b.rename("fixed/moved within", "fixed/sub/moved");
        b.rename("from outside", "fixed/from outside");
        b.write("fixed/sub/made", "made on b");
    });
    all_well(&[&a, &b]);
    let before = a.status()["folders"][0]["cursor"].as_i64().unwrap();
    // A tree that is read-only throughout arrives whole where it is new, too, moves as a whole, and
    // goes away.
    b.write("new/of many/f", "1");
    for index in 0..200 {
        b.write(format!("new/of many/{index}"), format!("{index}"));
    }
    set_mode(&b.path("new/of many"), 0o555);
    set_mode(&b.path("new"), 0o555);
    all_well(&[&a, &b]);
    act(&|| {
        set_mode(&b.path("new"), 0o755);
        set_mode(&b.path("new/of many"), 0o755);
        b.rename("new/of many", "fixed/sub/many");
        set_mode(&b.path("fixed/sub/many"), 0o555);
        set_mode(&b.path("new"), 0o555);
    });
    all_well(&[&a, &b]);
    act(&|| {
        set_mode(&b.path("fixed/sub/many"), 0o755);
        b.remove("fixed/sub/many");
    });
    all_well(&[&a, &b]);
    // Killed in that moment, the agent finds its note when it begins.
    a.stop();
    let ino = fs::metadata(a.path("fixed/sub")).unwrap().ino();
    set_mode(&a.path("fixed/sub"), 0o755);
    let note = a.path(format!(".picloud/staging/lent-{ino:x}"));
    symlink(format!("555 {ino} fixed/sub"), note).unwrap();
    a.start();
    let tree = all_well(&[&a, &b]);
    // What a did for a moment was never taken for a person's change: all there is came from b.
    let database = world.server_data().join("picloud.db");
    let database = rusqlite::Connection::open(database).unwrap();
    let query = "SELECT count(*) FROM journal JOIN device ON device.num = journal.author
                 WHERE device.name = 'a' AND rev > ?1";
    let told: i64 = database.query_row(query, [before], |row| row.get(0)).unwrap();
    assert_eq!(told, 0, "{tree}");
    for dir in ["fixed", "fixed/sub", "new"] {
        for device in [&a, &b] {
            let mode = fs::metadata(device.path(dir)).unwrap().mode();
            assert_eq!(mode & 0o777, 0o555, "{}: {dir}\n{tree}", device.name);
        }
    }
    nothing_left(&[&a, &b]);
}

#[test]
fn an_exhausted_watch_limit_is_a_problem_with_its_cure_and_changes_are_found_by_looking() {
    let world = World::new();
    let limited = "echo 12 >/proc/sys/user/max_inotify_watches && exec \"$0\" \"$@\"";
    let wrapper = ["unshare", "--user", "--map-root-user", "sh", "-c", limited];
    let probe = Command::new(wrapper[0]).args(&wrapper[1..]).arg("true").output();
    if !probe.is_ok_and(|output| output.status.success()) {
        eprintln!("skipped: no user namespace with a limit of its own on watches here");
        return;
    }
    let b = world.device("ann", "b");
    let mut a = world.joined("ann", "a");
    a.agent_wrapper = wrapper.map(str::to_owned).to_vec();
    a.start();
    for index in 0..40 {
        a.write(format!("{index}/f"), format!("{index}"));
    }
    eventually("a word of the limit", || {
        let status = a.status();
        let reason = status["problems"][0]["reason"].as_str()?;
        reason.contains("sudo sysctl fs.inotify.max_user_watches=").then_some(())
    });
    a.picloud(&["sync", "--timeout", "60"]).fails(3);
    assert_eq!(wait_same(&[&a, &b]).len(), 80);
    // Changes in what is not watched, which `sync` asks to be looked for.
    for index in 0..40 {
        a.write(format!("{index}/f"), format!("{index} edited"));
        b.write(format!("{index}/of b"), "b");
    }
    a.remove("39");
    a.rename("38/f", "0/moved");
    b.sync();
    a.picloud(&["sync", "--timeout", "60"]).fails(3);
    let tree = wait_same(&[&a, &b]);
    for index in 0..38 {
        assert_eq!(b.read(format!("{index}/f")), Some(format!("{index} edited")), "{tree}");
    }
    assert!(b.exists("0/moved") && !b.exists("39/f"), "{tree}");
    // With fewer directories all is well again.
    for index in 5..40 {
        if a.exists(format!("{index}")) {
            a.remove(format!("{index}"));
        }
    }
    a.picloud(&["sync", "--timeout", "60"]);
    let tree = all_well(&[&a, &b]);
    assert!(tree.len() < 20, "{tree}");
    a.write("4/new", "seen at once");
    b.wait_text("4/new", "seen at once");
}

/// How many events one file makes in the storm below, at least.
const EVENTS_EACH: u64 = 5;

#[test]
fn a_storm_that_overflows_the_queue_of_events_is_in_sync_afterwards() {
    let limit = fs::read_to_string("/proc/sys/fs/inotify/max_queued_events").unwrap();
    let limit: u64 = limit.trim().parse().unwrap();
    let files = number("PICLOUD_STORM", limit / EVENTS_EACH + 500);
    if files > 40_000 && std::env::var_os("PICLOUD_STORM").is_none() {
        eprintln!("skipped: the queue of events here is of {limit}");
        return;
    }
    let world = World::new();
    let mut a = world.device("ann", "a");
    let b = world.device("ann", "b");
    for dir in 0..4 {
        a.write(format!("{dir}/kept"), "1");
        a.write(format!("{dir}/edited"), "1");
        a.write(format!("{dir}/deleted"), "1");
        a.write(format!("{dir}/moved"), "1");
    }
    all_well(&[&a, &b]);
    a.agent().signal(Signal::STOP);
    for index in 0..files {
        let dir = index % 4;
        let (new, renamed) = (a.path(format!("{dir}/new")), a.path(format!("{dir}/{index}")));
        fs::write(&new, format!("{index}")).unwrap();
        fs::rename(&new, &renamed).unwrap();
        if index % 50 != 0 {
            fs::remove_file(&renamed).unwrap();
        }
    }
    // These come last: their events are the ones that are lost.
    for dir in 0..4 {
        a.write(format!("{dir}/edited"), "2");
        a.remove(format!("{dir}/deleted"));
        a.rename(format!("{dir}/moved"), format!("{}/moved from {dir}", (dir + 1) % 4));
        a.write(format!("made {dir}/below/f"), "made");
    }
    a.agent().signal(Signal::CONT);
    // Without asking for a look: the overflow itself must lead to one.
    let tree = wait_same(&[&a, &b]);
    b.wait_text("3/edited", "2");
    all_well(&[&a, &b]);
    let here = files.div_ceil(50);
    assert_eq!(tree.len() as u64, here + 4 + 4 * 3 + 4 * 3, "{tree}");
}

#[test]
fn a_file_that_is_saved_all_the_time_is_only_ever_seen_as_it_was_saved() {
    let world = World::new();
    let a = world.device("ann", "a");
    let b = world.device("ann", "b");
    let stop = Arc::new(AtomicBool::new(false));
    let content = |version: u64| {
        let line = format!("version {version}\n");
        let len = usize::try_from(Dice::new(version + 1).below(300_000)).unwrap();
        let mut text = line.repeat(1 + len / line.len());
        text.push_str("end");
        text
    };
    let writer = std::thread::spawn({
        let (dir, folder, stop) = (a.dir.clone(), a.folder.clone(), Arc::clone(&stop));
        move || {
            let mut version = 0;
            while !stop.load(Ordering::SeqCst) {
                fs::write(dir.join("new"), content(version)).unwrap();
                fs::rename(dir.join("new"), folder.join("doc")).unwrap();
                version += 1;
                std::thread::sleep(Duration::from_millis(4));
            }
            version - 1
        }
    });
    let end = Instant::now() + Duration::from_secs(3);
    let mut seen = std::collections::BTreeSet::new();
    while Instant::now() < end {
        if let Some(text) = b.read("doc") {
            let first = text.lines().next().unwrap_or_default();
            let version = first.strip_prefix("version ").and_then(|number| number.parse().ok());
            let Some(version) = version else { panic!("{first:?}") };
            assert!(text == content(version), "version {version} is not as it was saved");
            assert!(seen.last().is_none_or(|last| *last <= version), "{version} after {seen:?}");
            seen.insert(version);
        }
        std::thread::sleep(Duration::from_millis(3));
    }
    stop.store(true, Ordering::SeqCst);
    let last = writer.join().unwrap();
    b.wait_text("doc", &content(last));
    assert_eq!(all_well(&[&a, &b]).paths(), ["doc"]);
    assert!(seen.len() > 1, "{seen:?}");
}

/// One person at one device, whose files are nobody else's.
struct Person {
    dice: Dice,
    /// What each file must hold in the end.
    files: std::collections::BTreeMap<String, String>,
    serial: u64,
}

impl Person {
    fn act(&mut self, device: &Device) {
        let own = format!("of {}", device.name);
        let path = format!("{own}/{}/{}", self.dice.below(4), self.dice.below(8));
        match self.dice.below(8) {
            0 => {
                if self.files.remove(&path).is_some() {
                    device.remove(&path);
                }
            }
            1 => {
                self.serial += 1;
                let to = format!("{own}/{}/moved {}", self.dice.below(4), self.serial);
                if let Some(content) = self.files.remove(&path) {
                    device.rename(&path, &to);
                    self.files.insert(to, content);
                }
            }
            kind => {
                self.serial += 1;
                let filler = self.dice.below(if kind == 2 { 900_000 } else { 5_000 });
                let filler = "x".repeat(usize::try_from(filler).unwrap());
                let content = format!("{} of {}{filler}", self.serial, device.name);
                device.write(&path, &content);
                self.files.insert(path, content);
            }
        }
    }
}

#[test]
fn kills_of_everything_at_once_mixed_with_cuts_lose_nothing() {
    let rounds = number("PICLOUD_KILLS", 8);
    let seed = number("PICLOUD_SEED", 1);
    println!("PICLOUD_KILLS={rounds} PICLOUD_SEED={seed}");
    let mut dice = Dice::new(seed);
    let mut world = World::new();
    let proxy = Proxy::to(&world.address());
    let mut devices = [world.device_via(&proxy, "ann", "a"), world.device("ann", "b")];
    let mut persons = [1, 2].map(|number| Person {
        dice: Dice::new(seed * 10 + number),
        files: std::collections::BTreeMap::new(),
        serial: 0,
    });
    let mut killed = 0;
    for _ in 0..rounds {
        let mut waiting = devices[0].picloud_command(&["sync", "--timeout", "60"]);
        let mut waiting = waiting.stderr(Stdio::null()).stdout(Stdio::null()).spawn().unwrap();
        let moment = Instant::now() + Duration::from_millis(50 + dice.below(400));
        while Instant::now() < moment {
            for (device, person) in devices.iter().zip(&mut persons) {
                person.act(device);
            }
            std::thread::sleep(Duration::from_millis(dice.below(8)));
        }
        match dice.below(4) {
            0 => proxy.cut_once(),
            1 => proxy.freeze(),
            _ => {}
        }
        // All at once, in any order, with what each was doing.
        let mut what: Vec<u64> = (0..3).filter(|_| dice.below(4) > 0).collect();
        if dice.below(2) == 0 {
            what.reverse();
        }
        killed += what.len();
        for &which in &what {
            match which {
                2 => world.kill_server(),
                device => devices[usize::try_from(device).unwrap()].kill(),
            }
        }
        if dice.below(2) == 0 {
            waiting.kill().unwrap();
        }
        for (device, person) in devices.iter().zip(&mut persons) {
            for _ in 0..5 {
                person.act(device);
            }
        }
        for which in what {
            match which {
                2 => world.start_server(),
                device => devices[usize::try_from(device).unwrap()].start_without_waiting(),
            }
        }
        proxy.thaw();
        waiting.kill().ok();
        waiting.wait().unwrap();
    }
    for device in &devices {
        device.wait_status("agent", |status| {
            status["folders"].as_array().is_some_and(|folders| !folders.is_empty())
        });
    }
    let tree = all_well(&[&devices[0], &devices[1]]);
    for (index, person) in persons.iter().enumerate() {
        // Each reads what the other wrote: under its name, or as a conflict copy, which a kill may
        // leave of a version that nobody knows to be on the server already.
        let other = &devices[1 - index];
        let all: std::collections::BTreeSet<String> =
            tree.paths().iter().filter_map(|path| other.read(path)).collect();
        for (path, content) in &person.files {
            assert!(
                all.contains(content),
                "{:?} of {path} is lost; seed {seed}\n{tree}",
                &content[..content.len().min(20)],
            );
        }
    }
    nothing_left(&[&devices[0], &devices[1]]);
    println!("kills {killed} survived");
}
