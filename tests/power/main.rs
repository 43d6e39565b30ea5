//! The power is cut: the real server and two real agents at once, at many moments of one session.
//!
//! The session is recorded below the file system. The server's data, its packs, and each device's
//! state and folder are on ext4 file systems of their own, on loop devices over files that this
//! process serves ([`disk`]), so that each block written and each flush is known, in one order over
//! all of them. Each on its own, because a file system that syncs one file may make others durable
//! along with it; over two of them it does not, and an order that nobody asked for is not kept.
//!
//! The model of a disk: a volatile cache in front of stable storage. A block of 4096 bytes is written
//! whole or not at all. What was written before a flush that has returned is there; of what came
//! after it any blocks may be there, whatever their order. Nothing else is assumed, of the file system
//! neither: it is the kernel's, and repairs itself from its journal when it is mounted.
//!
//! For each cut the disks are made as they then may be: all that was flushed, and of the rest nothing,
//! everything, or blocks at random. Then the programs are started, without any help. It must hold:
//!
//! - What the server answered, or showed to another device, is there, with readable contents; its
//!   journal does not go back behind what a client was told.
//! - No content is visible, on the server or on a device, that nobody wrote: no part of a file, no
//!   mixture. One exception is a person's own: who saves a new file without making it durable may
//!   find it empty, unless another device or the server had it already.
//! - Nor does the cut leave such a file in a device's folder, but where its person did.
//! - All folders become the same, and agree with the server.
//! - What was deleted at most comes back: when the device where it was deleted lost that with its power.
//! - A conflict copy names a device at which the file was written. A device that only received it
//!   makes one at most of what arrived in the very moment ([`MOMENT`]): in place, not yet remembered,
//!   and no longer the newest.
//!
//! Beside these cuts the prefixes of the writes are gone through in their order, with a recovery that
//! costs less ([`prefixes`]).
//!
//! `PICLOUD_CUTS=N` sets how many cuts there are, `PICLOUD_SEED=S` which, `PICLOUD_PREFIXES=N` how many
//! prefixes, spread over all of them, and `PICLOUD_PREFIXES=all` takes every one. The session is
//! another each time it runs, so a seed does not replay a cut exactly. Takes root, for the mounts; without
//! it the test says so and passes.

#![allow(clippy::unwrap_used, reason = "a failed step of a test is a failed test")]

#[path = "../support/mod.rs"]
mod support;

mod disk;
mod ledger;
mod prefixes;

use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use picloud::client::{Client, Credentials, PutOptions, Session, Step};
use picloud::model::{Body, JoinLink, RelPath, Rev, Timestamp};
use picloud::protocol::{Endpoint, Trust};

use disk::Disks;
use ledger::{Arrived, Files, Ledger, Save, content};
use prefixes::Check;
use support::{Device, Dice, World, settle};

/// Set in the process that has mounts of its own.
const INSIDE: &str = "PICLOUD_POWER_INSIDE";

/// How long what was put in place may not be remembered durably: an agent makes its trees durable every
/// 50 milliseconds, but takes no more than a tenth of its time for it, and a flush is slow on a busy
/// machine.
const MOMENT: Duration = Duration::from_secs(3);

const TEST: &str = "what_was_acknowledged_outlives_a_power_cut_at_any_moment";

#[test]
fn what_was_acknowledged_outlives_a_power_cut_at_any_moment() {
    if std::env::var_os(INSIDE).is_some() {
        return cut_the_power();
    }
    let works = |program: &str, args: &[&str]| {
        Command::new(program).args(args).output().is_ok_and(|output| output.status.success())
    };
    let can_mount = rustix::process::geteuid().is_root()
        && ["/dev/fuse", "/dev/loop-control"].iter().all(|path| Path::new(path).exists())
        && works("mkfs.ext4", &["-V"])
        && works("unshare", &["--mount", "true"]);
    if !can_mount {
        eprintln!("skipped: it takes root, /dev/fuse, loop devices and mkfs.ext4 to make disks");
        return;
    }
    // In a mount namespace of its own all mounts go when the process does, however it ends. It is
    // held by one more process (`--fork`): a last process that serves a file system and is in the
    // namespace would, when it ends, wait for itself to write what the kernel still has for it.
    let status = Command::new("unshare")
        .args(["--mount", "--propagation", "private", "--fork", "--kill-child"])
        .arg(std::env::current_exe().unwrap())
        .args(["--exact", TEST, "--nocapture"])
        .env(INSIDE, "1")
        .status()
        .unwrap();
    assert!(status.success(), "see above");
}

fn number(name: &str, default: u64) -> u64 {
    std::env::var(name).map_or(default, |text| text.parse().unwrap())
}

fn cut_the_power() {
    let (cuts, seed) = (number("PICLOUD_CUTS", 20), number("PICLOUD_SEED", 1));
    let prefixes = match std::env::var("PICLOUD_PREFIXES") {
        Ok(text) if text == "all" => usize::MAX,
        _ => usize::try_from(number("PICLOUD_PREFIXES", 60)).unwrap(),
    };
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let mut world = World::without_server("[limits]\ndisk_free_min_mib = 1\n");
    let mut devices = ["a", "b"].map(|name| world.blank_device(name));
    let mut points = vec![world.server_data(), world.server_data().join("packs")];
    for device in &mut devices {
        let disk = device.dir.join("disk");
        points.extend([device.dir.clone(), disk.clone()]);
        device.folder = disk.join("PiCloud");
    }
    let disks = Disks::mount(&world.path().join("disks"), points);
    world.start_server();
    let mut person = runtime.block_on(Person::join(&world));
    for device in &mut devices {
        device.join(&world.invite("ann")).ok();
        device.start();
    }
    let first = disks.now();
    let mut ledger = Ledger::default();
    runtime.block_on(session(&disks, &mut ledger, &devices, &mut person));
    for device in &mut devices {
        device.kill();
    }
    world.kill_server();
    let last = disks.now();
    disks.unmount();
    println!(
        "{} writes and flushes ({} of these), cut {cuts} times, PICLOUD_SEED={seed}",
        last - first,
        disks.flushes()
    );
    let check = Check {
        world: &world,
        devices: &devices,
        disks: &disks,
        ledger: &ledger,
        person: &person,
        first,
    };
    let mut complaints = check.all(&runtime, prefixes);
    for complaint in &complaints {
        println!("  {complaint}");
    }
    let mut dice = Dice::new(seed);
    let safe = ledger.safe_moments();
    for number in 0..cuts {
        // Just after something became safe is when most is at stake.
        let cut = if number % 2 == 0 {
            safe[usize::try_from(dice.below(safe.len() as u64)).unwrap()]
        } else {
            first + usize::try_from(dice.below((last - first) as u64 + 1)).unwrap()
        };
        let fates = disks.mount_after_cut(cut, &mut dice);
        println!("cut {number} after {cut} of {last}: {fates:?}");
        let mut arrived = Arrived::default();
        for device in &devices {
            let since = disks.time_of(cut) - MOMENT;
            arrived.insert(device.name.clone(), files_changed_since(device, since));
            for torn in ledger.torn(&files_of(device), device, cut) {
                println!("  on the disk of {}: {torn}", device.name);
                complaints.push(format!("cut {number}, on the disk of {}: {torn}", device.name));
            }
            say_another_boot(&device.dir.join("state"));
        }
        world.start_server();
        let found = runtime.block_on(person.all_files(&world, cut));
        let mut complain = |of: &str, found: &Files| {
            for complaint in ledger.complaints(found, &arrived, cut) {
                println!("  {of}: {complaint}");
                complaints.push(format!("cut {number}, {of}: {complaint}"));
            }
        };
        complain("the server", &found);
        for device in &mut devices {
            device.start();
        }
        let [a, b] = &devices;
        settle(&[a, b]);
        for device in &devices {
            complain(&device.name, &files_of(device));
            device.wait_status("agreement", |status| status["folders"][0]["agrees"] == true);
        }
        let on_server = runtime.block_on(person.all_files(&world, cut));
        assert!(on_server == files_of(a), "the server and the folders differ");
        for device in &mut devices {
            device.kill();
        }
        world.kill_server();
        disks.unmount();
    }
    assert!(complaints.is_empty(), "{}", complaints.join("\n"));
}

/// Makes the notes that an agent was running those of another boot: the machine has started anew.
fn say_another_boot(state: &Path) {
    for folder in fs::read_dir(state).into_iter().flatten() {
        let note = folder.unwrap().path().join("running");
        if let Ok(text) = fs::read_to_string(&note) {
            let rest = text.split_once('\n').map_or(String::new(), |(_, rest)| format!("\n{rest}"));
            fs::write(note, format!("another boot{rest}")).unwrap();
        }
    }
}

/// What persons do: each device writes files of its own, then takes turns at those of the other.
async fn session(disks: &Disks, ledger: &mut Ledger, devices: &[Device; 2], person: &mut Person) {
    let [a, b] = devices;
    for round in 0..3 {
        for (device, other) in [(a, b), (b, a)] {
            let name = |index: usize| format!("{}/{round} {index}", device.name);
            for index in 0..[6, 12, 24][round] {
                let save = if index % 2 == 0 { Save::Plain } else { Save::Careful };
                ledger.write(disks, device, &name(index), 100 * index * index, save);
            }
            let large = format!("large {} {round}", device.name);
            ledger.write(disks, device, &large, 700_000 * (round + 1), Save::Plain);
            person
                .put(disks, ledger, &format!("put/{} {round}", device.name), 30_000 * round)
                .await;
            ledger.wait_seen(disks, other);
            // The other one goes on with what it has now, while the author still does.
            for index in 0..3 {
                ledger.write(disks, other, &name(index), 2_000, Save::Careful);
                ledger.write(disks, device, &name(index + 3), 50_000, Save::Careful);
                ledger.write(disks, device, &name(index + 3), 10, Save::Careful);
            }
            ledger.write(disks, other, &large, 800_000, Save::Careful);
            ledger.wait_seen(disks, device);
            ledger.rename(disks, device, &name(0), &format!("moved/{} {round}", device.name));
            ledger.remove(disks, device, &name(1));
            ledger.remove(disks, other, &name(2));
            person.put(disks, ledger, &format!("put/{} {round}", device.name), 300_000).await;
        }
        ledger.wait_seen(disks, a);
        ledger.wait_seen(disks, b);
    }
}

fn files_of(device: &Device) -> Files {
    let tree = device.tree();
    let paths = tree.paths().into_iter().filter(|path| device.path(path).is_file());
    paths.map(|path| (path.clone(), fs::read(device.path(&path)).unwrap())).collect()
}

/// The contents of those files of a device that came to where they are since then.
fn files_changed_since(device: &Device, since: SystemTime) -> Vec<Vec<u8>> {
    let changed = |path: &str| {
        let found = fs::metadata(device.path(path)).unwrap();
        let at = (found.ctime().cast_unsigned(), found.ctime_nsec().cast_unsigned());
        UNIX_EPOCH + Duration::from_secs(at.0) + Duration::from_nanos(at.1) >= since
    };
    files_of(device).into_iter().filter(|(path, _)| changed(path)).map(|(_, bytes)| bytes).collect()
}

/// Someone who talks straight to the server, and remembers what was answered.
struct Person {
    endpoint: Endpoint,
    credentials: Credentials,
    session: Session,
    /// When the server had told of which rev.
    told: Vec<(usize, Rev)>,
}

impl Person {
    async fn join(world: &World) -> Self {
        let link = JoinLink::parse(&world.invite("ann")).unwrap();
        let endpoint =
            Endpoint { address: link.address.clone(), trust: Trust::Pinned(link.fingerprint) };
        let mut client = Client::connect(&endpoint).await.unwrap();
        let Step::Admitted(session) = client.join(&link.secret, "client").await.unwrap() else {
            panic!("asked a question");
        };
        let credentials = session.credentials().unwrap();
        Self { endpoint, credentials, session, told: Vec::new() }
    }

    async fn put(&mut self, disks: &Disks, ledger: &mut Ledger, file: &str, len: usize) {
        let (bytes, begun) = (content(file, len, len), disks.now());
        let options = PutOptions { mode: None, mtime: Timestamp::default() };
        let reader = std::io::Cursor::new(bytes.clone());
        let stored = self.session.put(reader, &path(file), options).await.unwrap();
        let now = disks.now();
        self.told.push((now, stored.rev));
        ledger.was_put(file, bytes, begun, now);
    }

    /// The newest rev that the server had told of at this moment.
    fn told_until(&self, cut: usize) -> Option<Rev> {
        self.told.iter().filter(|(at, _)| *at <= cut).map(|(_, rev)| *rev).max()
    }

    /// All files on a server that was started after a cut, each read and checked.
    async fn all_files(&mut self, world: &World, cut: usize) -> Files {
        let mut client = Client::connect(&self.endpoint).await.unwrap();
        let Credentials { device, token } = &self.credentials;
        let session = client.resume(*device, token).await.unwrap();
        let told = self.told_until(cut);
        let rev = session.drive().head;
        assert!(Some(rev) >= told, "the journal is at {rev:?}, but {told:?} was told");
        let mut files = Files::new();
        let mut dirs = vec![path("")];
        while let Some(dir) = dirs.pop() {
            let mut listing = session.list(&dir).await.unwrap();
            while let Some(entry) = listing.next().await.unwrap() {
                if matches!(entry.node.body, Body::Dir) {
                    dirs.push(entry.path);
                } else {
                    let (_, bytes) =
                        session.get(&entry.path, Vec::new()).await.unwrap_or_else(|error| {
                            panic!("{}: {error} in {}", entry.path, world.path().display())
                        });
                    files.insert(entry.path.to_string(), bytes);
                }
            }
        }
        files
    }
}

fn path(text: &str) -> RelPath {
    RelPath::parse(text.as_bytes()).unwrap()
}
