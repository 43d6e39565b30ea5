//! `picloud why`: for each reason a path is not in sync, the sentence that says so.

use std::io::{Seek, Write};
use std::sync::atomic::{AtomicBool, Ordering};

use serde_json::Value;

use crate::support::{Device, Proxy, World, eventually};

fn why(device: &Device, path: &str) -> Value {
    let run = device.picloud(&["why", "--json", path]);
    let mut objects = run.objects();
    assert_eq!(objects.len(), 1, "{run:?}");
    objects.remove(0)
}

/// Waits until a path stands so, and returns what is told.
#[track_caller]
fn wait_why(device: &Device, path: &str, standing: &str) -> Value {
    let mut last = Value::Null;
    eventually(&format!("{path} is {standing}"), || {
        last = why(device, path);
        (last["standing"] == standing).then(|| last.clone())
    })
}

#[track_caller]
fn check(device: &Device, path: &str, code: i32, sentence: &str) {
    let run = device.picloud(&["why", path]);
    assert_eq!((run.stdout.lines().next().unwrap_or(""), run.code), (sentence, code), "{run:?}");
}

#[test]
fn each_reason_has_its_sentence() {
    let mut world = World::new();
    let mut device = world.device("ann", "a");
    device.write("plain", "1");
    device.write("sub/x.o", "obj");
    device.write("out/deep/file", "left out");
    device.write(".picloudignore", "# comment\n*.o\nout/\n");
    device.write("notes~", "backup");
    device.link("link", "sub");
    device.sync();

    check(&device, "plain", 0, "plain is in sync");
    // From elsewhere, by the whole path, and as a link.
    let whole = device.path("plain");
    check(&device, whole.to_str().unwrap(), 0, "plain is in sync");
    check(&device, "link", 0, "link is in sync");
    let rule = "sub/x.o is not synced: the rule `*.o` (line 2 of .picloudignore) leaves it out";
    check(&device, "sub/x.o", 0, rule);
    let told = why(&device, "out/deep/file");
    assert_eq!((&told["line"], &told["at"]), (&3.into(), &"out".into()), "{told}");
    let default = "notes~ is not synced: the rule `*~` (one of the defaults) leaves it out";
    check(&device, "notes~", 0, default);
    let linked = "link/x.o is not synced: link is a symbolic link, which is synced as a link, \
                  without what it points to";
    check(&device, "link/x.o", 0, linked);
    let absent = "There is no nowhere, neither here nor on the server";
    check(&device, "nowhere", 0, absent);
    check(&device, "/etc/hostname", 0, "/etc/hostname is not in a synced folder");
    assert_eq!(why(&device, ".picloud/identity")["standing"], "own");
    assert_eq!(why(&device, device.folder.to_str().unwrap())["standing"], "in-sync");

    device.fifo("fifo");
    device.wait_problem("fifo");
    check(&device, "fifo", 3, "fifo is not synced: it is a socket, FIFO or device");
    device.remove("fifo");

    std::fs::create_dir_all(device.path("inner/.picloud")).unwrap();
    std::fs::copy(device.path(".picloud/identity"), device.path("inner/.picloud/identity"))
        .unwrap();
    device.write("inner/file", "1");
    device.wait_problem("inner");
    assert_eq!(wait_why(&device, "inner/file", "inner-folder")["at"], "inner");
    device.remove("inner");

    device.write("a (conflicted copy b 2026-01-02).txt", "2");
    device.sync();
    let copy = why(&device, "a (conflicted copy b 2026-01-02).txt");
    assert_eq!((&copy["standing"], &copy["original"]), (&"conflict-copy".into(), &"a.txt".into()));

    device.remove("plain");
    device.sync();
    assert_eq!(why(&device, "plain")["last"]["event"], "deleted");

    device.picloud(&["pause"]).ok();
    device.write("later", "x");
    let paused = wait_why(&device, "later", "paused");
    assert_eq!(paused["fix"], "`picloud resume`");
    assert_eq!(device.picloud(&["why", "later"]).code, 5);
    device.picloud(&["resume"]).ok();
    device.sync();
    check(&device, "later", 0, "later is in sync");

    world.stop_server();
    device.wait_status("offline", |status| status["state"] == "offline");
    device.write("later", "changed");
    wait_why(&device, "later", "offline");
    let sentence = "later has a change that is not on the server yet: the server cannot be reached";
    check(&device, "later", 4, sentence);
    world.start_server();
    device.sync();

    // Where a folder is gone, nothing in it is called deleted.
    device.stop();
    device.picloud(&["why", "later"]).fails(6);
}

#[test]
fn what_is_busy_unreadable_or_held_says_so() {
    let world =
        World::with_server_config("[limits]\nmass_delete_min = 3\nmass_delete_share = 0.01\n");
    let device = world.device("ann", "a");
    for index in 0..40 {
        device.write(format!("many/{index}"), index.to_string());
    }
    device.write("secret/in", "1");
    device.sync();
    if !rustix::process::geteuid().is_root() {
        device.chmod("secret", 0);
        let told = wait_why(&device, "secret/in", "unreadable");
        assert_eq!(told["at"], "secret");
        device.chmod("secret", 0o755);
    }

    // Written to without a pause: never sent before it is quiet.
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let mut file = std::fs::File::create(device.path("busy")).unwrap();
            while !stop.load(Ordering::Relaxed) {
                file.seek(std::io::SeekFrom::Start(0)).unwrap();
                file.write_all(&vec![b'x'; 1 << 20]).unwrap();
            }
        });
        let mut seen = None;
        let told = eventually("the busy file is told as not sent", || {
            let told = why(&device, "busy");
            let standing = told["standing"].as_str().unwrap().to_owned();
            seen = Some(told);
            matches!(standing.as_str(), "busy" | "not-seen-yet" | "moving").then_some(standing)
        });
        stop.store(true, Ordering::Relaxed);
        assert!(!told.is_empty(), "{seen:?}");
    });
    device.sync();
    check(&device, "busy", 0, "busy is in sync");

    device.remove("many");
    let held = wait_why(&device, "many/7", "held");
    assert!(held["fix"].as_str().unwrap().contains("picloud approve a"), "{held}");
    assert_eq!(device.picloud(&["why", "many/7"]).code, 3);
}

#[test]
fn what_travels_and_what_waits_for_it_says_so() {
    let world = World::new();
    let proxy = Proxy::to(&world.address());
    let a = world.device_via(&proxy, "ann", "a");
    let b = world.device_via(&proxy, "ann", "b");
    a.sync();
    b.sync();
    proxy.set_rate(100_000);
    a.write("big", crate::support::Dice::new(7).bytes(3_000_000));
    let told = wait_why(&a, "big", "moving");
    assert_eq!((&told["direction"], a.picloud(&["why", "big"]).code), (&"up".into(), 7));
    proxy.set_rate(0);
    a.sync();
    proxy.set_rate(100_000);
    b.picloud(&["sync", "--timeout", "0"]);
    b.wait_status("the download", |status| status["downloads"] != 0 || b.exists("big"));
    if !b.exists("big") {
        assert_eq!(wait_why(&b, "big", "moving")["direction"], "down");
    }
    proxy.set_rate(0);
    b.sync();
    check(&b, "big", 0, "big is in sync");
}
