//! What comes between a device and its server: networks that break, freeze and crawl, files that are
//! replaced while they travel, servers that are restored from old backups, clocks that are wrong.
//!
//! `PICLOUD_LARGE_MIB` sets the size of the large files.

use std::fs;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use crate::support::{
    Device, Dice, LIMIT, Proxy, World, all_well, eventually, eventually_within, nothing_left,
    number, tree, wait_same,
};

/// The longest until a connection that is silently dead has to be noticed: the protocol's bound on
/// silence, and some time for a busy machine.
const NOTICED_WITHIN: Duration = Duration::from_secs(80);

/// What may be on the way, or in the buffers of either side, when a connection breaks: less than what
/// it would cost to begin anew.
const IN_FLIGHT_MAX: u64 = 9 << 20;

#[test]
fn connections_that_freeze_break_and_crawl_cost_time_and_nothing_else() {
    let world = World::new();
    let proxies = ["a", "b", "c"].map(|_| Proxy::to(&world.address()));
    let [a, b, mut c] = [("a", 0), ("b", 1), ("c", 2)]
        .map(|(name, at)| world.device_via(&proxies[at], "ann", name));
    a.write("before", "0");
    all_well(&[&a, &b, &c]);
    let mut dice = Dice::new(3);

    // To c the network is gone, in the middle of what it sends; nothing is closed.
    proxies[2].set_rate(4_000_000);
    let carried = proxies[2].carried();
    c.write("large of c", dice.bytes(6 << 20));
    eventually("c is sending", || (proxies[2].carried() > carried + (1 << 20)).then_some(()));
    proxies[2].freeze();
    let frozen = Instant::now();
    proxies[2].set_rate(0);

    // Between a and b meanwhile a large file goes one way and many small ones the other, each way
    // up and down, and the connections break and crawl.
    let len = number("PICLOUD_LARGE_MIB", 64) << 20;
    let mut small = 0;
    for index in 0..1_000 {
        let more = usize::try_from(dice.below(6_000)).unwrap();
        let bytes = dice.bytes(500 + more);
        small += bytes.len() as u64;
        a.write(format!("small/{}/{index}", index % 7), bytes);
    }
    let before: Vec<u64> = proxies.iter().map(Proxy::carried).collect();
    for proxy in &proxies[..2] {
        proxy.set_rate(len / 2);
    }
    b.write("large of b", dice.bytes(usize::try_from(len).unwrap()));
    let mut cuts = [0, 0];
    for part in 1..=3 {
        for device in [0, 1] {
            let wanted = before[device] + part * len / 4;
            eventually("the transfer goes on", || {
                (proxies[device].carried() >= wanted).then_some(())
            });
            proxies[device].cut_once();
            cuts[device] += 1;
        }
        for proxy in &proxies[..2] {
            proxy.set_rate(20_000);
        }
        std::thread::sleep(Duration::from_millis(300));
        for proxy in &proxies[..2] {
            proxy.set_rate(len / 2);
        }
    }
    for proxy in &proxies[..2] {
        proxy.set_rate(0);
    }
    all_well(&[&a, &b]);
    // What had arrived, in either direction, was not sent again. A frame takes some bytes of its own.
    for device in [0, 1] {
        let carried = proxies[device].carried() - before[device];
        let most = (len + small) * 11 / 10 + cuts[device] * IN_FLIGHT_MAX + (2 << 20);
        println!("{device} carried {carried} bytes of at most {most}");
        assert!(carried < most, "{device} carried {carried} bytes of at most {most}");
    }

    // The dead connection is noticed. Once the network is back, what it held back arrives late,
    // together with the new connections.
    c.write("from c", "while frozen");
    c.wait_status("notice", |status| status["state"] == "offline");
    assert!(frozen.elapsed() < NOTICED_WITHIN, "{:?}", frozen.elapsed());
    c.agent().assert_running();
    proxies[2].thaw();
    let tree = all_well(&[&a, &b, &c]);
    assert_eq!(tree.len(), 1 + 2 + 1_000 + 8 + 1, "{tree}");
    assert_eq!(b.read("from c").as_deref(), Some("while frozen"));
    nothing_left(&[&a, &b, &c]);
}

/// A large file each stretch of which says which version it is of.
struct Versions {
    len: u64,
}

/// The length of such a stretch.
const STRETCH: u64 = 64 * 1024;

impl Versions {
    fn new(mib: u64) -> Self {
        Self { len: mib << 20 }
    }

    /// Writes a version as programs do that save carefully.
    fn save(&self, device: &Device, path: &str, version: u64) {
        // Long enough that no two stretches of a chunk's length are the same; of each version's own, so
        // that all of it has to travel.
        let noise = Dice::new(8 + version).bytes(4 << 20);
        let temporary = device.dir.join("being saved");
        let file = fs::File::create(&temporary).unwrap();
        for number in 0..self.len / STRETCH {
            let mut bytes = [version.to_be_bytes(), number.to_be_bytes()].concat();
            let from = (number * 7919 + version * 104_729) % (noise.len() as u64 - STRETCH);
            let noise = &noise[usize::try_from(from).unwrap()..];
            bytes.extend_from_slice(&noise[..usize::try_from(STRETCH).unwrap() - bytes.len()]);
            file.write_all_at(&bytes, number * STRETCH).unwrap();
        }
        fs::rename(&temporary, device.path(path)).unwrap();
    }

    /// Returns which version is whole at a path, if anything is there.
    fn whole(&self, device: &Device, path: &str) -> Option<u64> {
        let file = fs::File::open(device.path(path)).ok()?;
        assert_eq!(file.metadata().unwrap().len(), self.len, "a part of a file is seen");
        let mut versions = (0..self.len / STRETCH).map(|number| {
            let mut head = [0; 16];
            file.read_exact_at(&mut head, number * STRETCH).unwrap();
            assert_eq!(head[8..], number.to_be_bytes(), "stretches have changed places");
            u64::from_be_bytes(head[..8].try_into().unwrap())
        });
        let first = versions.next().unwrap();
        assert!(versions.all(|version| version == first), "versions are mixed");
        Some(first)
    }
}

#[test]
fn a_large_file_replaced_while_it_travels_is_only_ever_seen_whole() {
    let world = World::new();
    let (up, down) = (Proxy::to(&world.address()), Proxy::to(&world.address()));
    let a = world.device_via(&up, "ann", "a");
    let b = world.device_via(&down, "ann", "b");
    let mib = number("PICLOUD_LARGE_MIB", 64);
    let versions = Versions::new(mib);
    let part = (mib << 20) / 8;
    // A second for each MiB beyond the usual size: the programs are not optimised here.
    let limit = LIMIT + Duration::from_secs(mib.saturating_sub(64));
    let mut last = 0;
    let mut look = |device: &Device| {
        if let Some(version) = versions.whole(device, "large") {
            assert!(version >= last, "version {version} is back after {last}");
            last = version;
        }
    };
    let wait = |proxy: &Proxy, what: &str, look: &mut dyn FnMut()| {
        let until = proxy.carried() + part;
        eventually_within(limit, what, || {
            look();
            (proxy.carried() >= until).then_some(())
        });
    };
    // Slow enough that the next version comes in between.
    up.set_rate(mib << 19);
    down.set_rate(mib << 19);
    versions.save(&a, "large", 1);
    wait(&up, "a sends the first", &mut || look(&b));
    versions.save(&a, "large", 2);
    wait(&up, "a sends the second", &mut || look(&b));
    up.set_rate(0);
    wait(&down, "b gets the second", &mut || look(&b));
    versions.save(&a, "large", 3);
    wait(&down, "b gets the third", &mut || look(&b));
    versions.save(&a, "large", 4);
    down.set_rate(0);
    eventually_within(limit, "the last version is there", || {
        look(&b);
        (versions.whole(&b, "large") == Some(4)).then_some(())
    });
    let tree = all_well(&[&a, &b]);
    assert_eq!(tree.paths(), ["large"]);
}

fn copy_dir(from: &Path, to: &Path) {
    for entry in walkdir::WalkDir::new(from) {
        let entry = entry.unwrap();
        let target = to.join(entry.path().strip_prefix(from).unwrap());
        if entry.file_type().is_dir() {
            fs::create_dir_all(&target).unwrap();
            let mode = entry.metadata().unwrap().permissions();
            fs::set_permissions(&target, mode).unwrap();
        } else {
            fs::copy(entry.path(), &target).unwrap();
        }
    }
}

/// Stops the server and keeps its data as a backup does, then goes on.
fn back_up(world: &mut World) -> PathBuf {
    let backup = world.path().join("backup");
    world.stop_server();
    copy_dir(&world.server_data(), &backup);
    world.start_server();
    backup
}

/// Puts a backup back in place of what the server has; it does not run yet.
fn restore(world: &mut World, backup: &Path) {
    world.stop_server();
    fs::remove_dir_all(world.server_data()).unwrap();
    copy_dir(backup, &world.server_data());
}

#[test]
fn a_server_restored_from_an_old_backup_loses_nobodys_newer_files() {
    let mut world = World::new();
    let a = world.device("ann", "a");
    let b = world.device("ann", "b");
    for index in 0..40 {
        a.write(format!("d/{index}"), format!("{index}"));
    }
    a.write("large", Dice::new(1).bytes(3 << 20));
    all_well(&[&a, &b]);
    let backup = back_up(&mut world);
    a.write("made on a", "a");
    a.write("made/on a", "a");
    a.write("large made on a", Dice::new(2).bytes(3 << 20));
    b.write("d/1", "edited on b");
    b.rename("d/2", "moved on b");
    a.remove("d/3");
    let newest = all_well(&[&a, &b]);
    restore(&mut world, &backup);
    // Written while the server is away.
    a.write("d/4", "edited on a while it was away");
    world.start_server();
    let tree = all_well(&[&a, &b]);
    // What the server has keeps the name, the newer version is beside it.
    let kept: Vec<&tree::Entry> = tree.0.values().collect();
    for (path, entry) in &newest.0 {
        assert!(path == b"d/4" || kept.contains(&entry), "{}\n{tree}", path.escape_ascii());
    }
    for (content, path) in [("edited on b", "1"), ("edited on a while it was away", "4")] {
        let all = b.conflict_copies("d").into_iter().chain([path.to_owned()]);
        let mut all = all.map(|name| b.read(format!("d/{name}")));
        assert!(all.any(|found| found.as_deref() == Some(content)), "{content}\n{tree}");
    }
    // And from here on all goes on as ever: a deletion is one.
    a.remove("made on a");
    b.wait_gone("made on a");
    all_well(&[&a, &b]);
}

#[test]
fn a_device_that_comes_back_after_others_wrote_to_the_restored_server_loses_nothing() {
    let mut world = World::new();
    let mut a = world.device("ann", "a");
    let mut b = world.device("ann", "b");
    for name in ["edited on both", "edited here", "edited here, deleted there", "moved here"] {
        a.write(name, format!("old {name}"));
    }
    all_well(&[&a, &b]);
    b.stop();
    let backup = back_up(&mut world);
    for name in ["edited on both", "edited here", "edited here, deleted there"] {
        a.write(name, format!("new on a: {name}"));
    }
    a.rename("moved here", "moved on a");
    a.write("made on a", "made on a");
    all_well(&[&a]);
    a.stop();
    restore(&mut world, &backup);
    world.start_server();
    // The other was off all the time, and knows only the past that the server went back to. It
    // takes the server's journal past what a knew, and only then touches what a has edited; and goes on
    // so far that a hears of it in many pages, of which only the last can tell that something is amiss.
    b.start();
    for index in 0..30 {
        b.write(format!("past/{index}"), format!("{index}"));
    }
    all_well(&[&b]);
    b.write("edited on both", "new on b");
    b.remove("edited here, deleted there");
    all_well(&[&b]);
    for index in 0..3_000 {
        b.write(format!("many/{}/{index}", index % 10), format!("{index}"));
    }
    all_well(&[&b]);
    a.start();
    let tree = all_well(&[&a, &b]);
    assert_eq!(b.read("edited on both").as_deref(), Some("new on b"), "{tree}");
    let all: Vec<_> = tree.paths().iter().filter_map(|path| b.read(path)).collect();
    for name in ["edited on both", "edited here", "edited here, deleted there"] {
        assert!(all.contains(&format!("new on a: {name}")), "{name:?} of a is lost\n{tree}");
    }
    assert!(all.contains(&"old moved here".to_owned()), "{tree}");
    assert_eq!(b.read("made on a").as_deref(), Some("made on a"), "{tree}");
}

/// Shifts the time of day of programs that are started with it, by seconds that can be changed
/// while they run: a library that is loaded before the C library.
struct WrongClock {
    library: PathBuf,
    shift: PathBuf,
}

const SHIFTED_CLOCK: &str = r#"
#define _GNU_SOURCE
#include <fcntl.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

static volatile unsigned char *shift;

__attribute__((constructor)) static void begin(void) {
    int file = open(getenv("PICLOUD_TEST_CLOCK"), O_RDONLY | O_CLOEXEC);
    void *map = mmap(0, 8, PROT_READ, MAP_SHARED, file, 0);
    if (map != MAP_FAILED)
        shift = map;
    close(file);
}

int clock_gettime(clockid_t clock, struct timespec *time) {
    int result = syscall(SYS_clock_gettime, clock, time);
    if (result == 0 && shift && (clock == CLOCK_REALTIME || clock == CLOCK_REALTIME_COARSE)) {
        unsigned long long by = 0;
        for (int i = 0; i < 8; i++)
            by = by << 8 | shift[i];
        time->tv_sec += (long long)by;
    }
    return result;
}
"#;

impl WrongClock {
    /// Nothing where there is no C compiler, or where what it makes has no effect.
    fn new(dir: &Path, name: &str) -> Option<Self> {
        let source = dir.join("clock.c");
        let library = dir.join("clock.so");
        fs::write(&source, SHIFTED_CLOCK).unwrap();
        let made =
            Command::new("cc").args(["-shared", "-fPIC", "-o"]).args([&library, &source]).output();
        if !made.is_ok_and(|made| made.status.success()) {
            eprintln!("skipped: there is no C compiler to make a wrong clock with");
            return None;
        }
        let clock = Self { library, shift: dir.join(format!("{name}.clock")) };
        fs::write(&clock.shift, [0; 8]).unwrap();
        Some(clock)
    }

    fn env(&self) -> Vec<(&'static str, PathBuf)> {
        vec![("LD_PRELOAD", self.library.clone()), ("PICLOUD_TEST_CLOCK", self.shift.clone())]
    }

    fn set(&self, years: i64) {
        let file = fs::OpenOptions::new().write(true).open(&self.shift).unwrap();
        file.write_all_at(&(years * 31_557_600).to_be_bytes(), 0).unwrap();
    }
}

#[test]
fn clocks_that_are_wrong_by_years_and_jump_do_no_harm() {
    let mut world = World::without_server("");
    let Some(of_server) = WrongClock::new(world.path(), "server") else { return };
    let of_a = WrongClock::new(world.path(), "a").unwrap();
    world.server_env = of_server.env();
    of_server.set(20);
    of_a.set(-40);
    world.start_server();
    let mut a = world.joined("ann", "a");
    a.agent_env = of_a.env();
    a.start();
    let mut b = world.device("ann", "b");
    a.write("d/f", "1");
    a.write("large", Dice::new(1).bytes(2 << 20));
    b.write("of b", "b");
    all_well(&[&a, &b]);
    let mtime = |device: &Device, path: &str| {
        let stat = fs::metadata(device.path(path)).unwrap();
        (stat.mtime(), stat.mtime_nsec())
    };
    // The jump comes in the midst of it, in both directions.
    let mut written = Vec::new();
    for (round, (server, here)) in
        [(-30, 10), (0, -3), (15, 40), (2, 0), (-1, -40)].into_iter().enumerate()
    {
        of_server.set(server);
        a.write("d/f", format!("{round} of a"));
        of_a.set(here);
        for index in 0..10 {
            let path = format!("{round}/{index}");
            b.write(&path, format!("{round} {index}"));
            a.write(format!("{path} of a"), format!("{round} {index}"));
            written.push(path);
        }
        b.wait_text("d/f", &format!("{round} of a"));
    }
    let tree = all_well(&[&a, &b]);
    assert_eq!(mtime(&a, "1/3"), mtime(&b, "1/3"));
    assert!(written.iter().all(|path| a.exists(path)), "{tree}");
    assert_eq!(a.conflict_copies("d"), [""; 0], "{tree}");

    // A conflict copy has the date that the device believes in, and is one.
    a.stop();
    of_a.set(-20);
    b.write("d/f", "of b");
    b.sync();
    a.write("d/f", "of a");
    a.start();
    let tree = all_well(&[&a, &b]);
    let copies = b.conflict_copies("d");
    assert_eq!(copies.len(), 1, "{tree}");
    assert!(copies[0].starts_with("f (conflicted copy a 20"), "{copies:?}");
    assert_eq!(b.read(format!("d/{}", copies[0])).as_deref(), Some("of a"), "{tree}");

    // An invitation ends by the server's clock, and says so.
    let link = world.invite("ann");
    of_server.set(10);
    let late = world.blank_device("late");
    let stderr = late.join(&link).fails(1);
    assert!(stderr.contains("expired") && stderr.contains("new one"), "{stderr}");
    // The devices that were here before are still.
    b.stop();
    b.start();
    b.write("last", "of b");
    all_well(&[&a, &b]);
    assert_eq!(wait_same(&[&a, &b]).0.len(), tree.0.len() + 1);
    for device in [&mut a, &mut b] {
        device.stop();
    }
    world.stop_server();
}
