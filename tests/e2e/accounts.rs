//! Accounts: registration in its three kinds, log-in with questions, devices, passwords.

use std::fs;

use crate::support::{Device, Run, World, eventually};

fn fingerprint(world: &World) -> String {
    let link = world.invite("someone");
    let (_, fragment) = link.split_once("/#").unwrap();
    fragment.split_once('.').unwrap().0.to_owned()
}

/// `picloud COMMAND --server … --fingerprint … MORE` on a machine of its own.
fn at(world: &World, machine: &str, command: &str, more: &[&str], input: &str) -> Run {
    let address = world.address();
    let fingerprint = fingerprint(world);
    let mut args = vec![command, "--server", &address, "--fingerprint", &fingerprint];
    args.extend_from_slice(more);
    world.picloud_typing(&world.path().join(machine), &args, input)
}

const PASSWORD: &str = "correct horse battery";

#[test]
fn an_open_server_takes_whoever_registers() {
    let world = World::with_server_config("[accounts]\nregistration = \"open\"\n");
    let more = ["--user", "ann", "--password-file", "-", "--device", "m1"];
    at(&world, "m1", "register", &more, PASSWORD).ok();
    let home = world.path().join("m1");
    let who = world.picloud_at(&home, &["whoami", "--json"]);
    let object = &who.objects()[0];
    assert_eq!((&object["user"], &object["device"]), (&"ann".into(), &"m1".into()));
    // A second registration of the name does not take the account over.
    at(&world, "m2", "register", &more, "another password").fails(1);
    at(&world, "m2", "login", &more, "another password").fails(1);
    world.picloud_at(&home, &["logout"]).ok();
    world.picloud_at(&home, &["whoami"]).fails(1);
}

#[test]
fn an_id_file_of_2015_registers_and_logs_in() {
    let world = World::with_server_config("[accounts]\nregistration = \"open\"\n");
    let file = world.path().join("alice.id");
    fs::write(&file, "wonder land\n").unwrap();
    let id = ["--id-file", file.to_str().unwrap()];
    at(&world, "m1", "register", &id, "").ok();
    at(&world, "m2", "login", &id, "").ok();
    let typed = ["--user", "alice", "--password-file", "-"];
    at(&world, "m3", "login", &typed, "wonder land").ok();
    at(&world, "m4", "login", &typed, "wonder land ").fails(1);
}

#[test]
fn registration_needs_an_invitation_unless_the_server_says_otherwise() {
    let world = World::new();
    let more = ["--user", "ann", "--password-file", "-"];
    let stderr = at(&world, "m1", "register", &more, PASSWORD).fails(1);
    assert!(stderr.contains("invit"), "{stderr}");
    let link = world.invite("ann");
    let home = world.path().join("m1");
    let args = ["register", "--server", &link, "--user", "ann", "--password-file", "-"];
    world.picloud_typing(&home, &args, PASSWORD).ok();
    at(&world, "m2", "login", &more, PASSWORD).ok();

    let closed = World::with_server_config("[accounts]\nregistration = \"closed\"\n");
    let stderr = at(&closed, "m1", "register", &more, PASSWORD).fails(1);
    assert!(stderr.contains("no registrations"), "{stderr}");
}

#[test]
fn an_unknown_server_is_not_trusted_without_a_person() {
    let world = World::with_server_config("[accounts]\nregistration = \"open\"\n");
    let address = world.address();
    let home = world.path().join("m1");
    let args = ["register", "--server", &address, "--user", "ann", "--password-file", "-"];
    let stderr = world.picloud_typing(&home, &args, PASSWORD).fails(1);
    assert!(stderr.contains("--fingerprint"), "{stderr}");
    let wrong = "A".repeat(43);
    let mut args = args.to_vec();
    args.extend_from_slice(&["--fingerprint", &wrong]);
    world.picloud_typing(&home, &args, PASSWORD).fails(1);
    assert!(
        at(&world, "m1", "login", &["--user", "ann", "--password-file", "-"], PASSWORD).code == 1
    );
}

#[test]
fn a_revoked_device_is_out_at_once() {
    let world = World::new();
    let a = world.device("ann", "a");
    let b = world.device("ann", "b");
    a.write("before", "1");
    b.wait_text("before", "1");
    let listed = a.picloud(&["devices", "list", "--json"]);
    let names: Vec<_> =
        listed.objects().iter().map(|device| device["name"].as_str().unwrap().to_owned()).collect();
    assert_eq!(names, ["a", "b"]);
    a.picloud(&["devices", "revoke", "b"]).ok();
    b.wait_status("word of it", |status| {
        status["state"] != "in-sync" && status["state"] != "syncing"
    });
    a.write("after", "2");
    a.sync();
    assert!(!b.exists("after"));
    assert_eq!(b.read("before").unwrap(), "1");
    a.picloud(&["devices", "revoke", "nobody"]).fails(1);
}

#[test]
fn a_refused_device_keeps_no_socket_and_says_it_once_for_each_try() {
    let world = World::new();
    let a = world.device("ann", "a");
    let mut b = world.device("ann", "b");
    let refusals = |device: &Device| {
        let log = std::fs::read_to_string(device.log()).unwrap();
        log.lines().filter(|line| line.contains("ERROR") && line.contains("refused")).count()
    };
    a.picloud(&["devices", "revoke", "b"]).ok();
    eventually("the refusal", || (refusals(&b) > 0).then_some(()));
    let fds = format!("/proc/{}/fd", b.agent().id());
    // Descriptors come and go while they are looked at.
    let sockets = || {
        let links = std::fs::read_dir(&fds).unwrap().flatten();
        let targets = links.filter_map(|fd| std::fs::read_link(fd.path()).ok());
        targets.filter(|target| target.to_string_lossy().starts_with("socket:")).count()
    };
    let (sockets_before, refusals_before) = (sockets(), refusals(&b));
    let edits = 8;
    for _ in 0..edits {
        let refused = refusals(&b);
        // An edit has it try again.
        b.edit_config(|text| text + "\n");
        eventually("another try", || (refusals(&b) > refused).then_some(()));
    }
    eventually("no socket of a refused try", || (sockets() <= sockets_before).then_some(()));
    // The settings are looked at once a minute as well.
    let tries = refusals(&b) - refusals_before;
    assert!(tries <= edits + edits / 2, "{tries} for {edits} edits");
}

#[test]
fn of_several_folders_the_one_that_is_meant_is_named() {
    let world = World::new();
    let a = world.joined("ann", "a");
    let second = a.dir.join("Second");
    let (first, second) = (a.folder.to_str().unwrap(), second.to_str().unwrap());
    a.picloud(&["join", &world.invite("bob"), "--folder", second]).ok();
    for command in ["whoami", "logout"] {
        let stderr = a.picloud(&[command]).fails(2);
        for told in [first, second, "--folder"] {
            assert!(stderr.contains(told), "{stderr}");
        }
        let stderr = a.picloud(&[command, "--folder", "Third"]).fails(1);
        assert!(stderr.contains("Third") && stderr.contains(first), "{stderr}");
    }
    let who = |folder: &str| {
        let run = a.picloud(&["whoami", "--folder", folder, "--json"]);
        run.objects()[0]["user"].as_str().unwrap().to_owned()
    };
    assert_eq!((who(first).as_str(), who("Second/").as_str()), ("ann", "bob"));
    a.picloud(&["logout", "--folder", second]).ok();
    // The other one is still there, and is the only one now.
    assert!(a.picloud(&["whoami"]).ok().contains("ann"));
    assert!(!world.picloud_server(&["devices", "bob"]).ok().contains("  a\n"));
    assert!(world.picloud_server(&["devices", "ann"]).ok().contains("  a\n"));
    a.picloud(&["logout"]).ok();
    a.picloud(&["whoami"]).fails(1);
}

#[test]
fn a_device_can_invite_the_next_one() {
    let world = World::new();
    let a = world.device("ann", "a");
    a.write("f", "1");
    let link = a.picloud(&["link", "--plain"]).ok();
    assert_eq!(link.lines().count(), 1);
    let mut b = world.blank_device("b");
    b.join(link.trim()).ok();
    b.start();
    b.wait_text("f", "1");
    let object = &a.picloud(&["link", "--json"]).objects()[0];
    assert!(object["link"].as_str().unwrap().starts_with("picloud://"));
}

#[test]
fn a_password_can_be_changed_and_codes_asked_for() {
    let world = World::with_server_config("[accounts]\nregistration = \"open\"\n");
    let user = ["--user", "ann", "--password-file", "-"];
    at(&world, "m1", "register", &user, PASSWORD).ok();
    let home = world.path().join("m1");
    let pair = format!("{PASSWORD}\nnew and better\n");
    world.picloud_typing(&home, &["passwd", "--password-file", "-"], &pair).ok();
    at(&world, "m2", "login", &user, PASSWORD).fails(1);
    at(&world, "m2", "login", &user, "new and better").ok();

    // TOTP: the secret is shown, a code of it turns it on, and then log-in asks for one.
    let mut enable = std::process::Command::new(env!("CARGO_BIN_EXE_picloud"))
        .args(["totp", "enable", "--answer-file", "-", "--json"])
        .env_clear()
        .env("HOME", &home)
        .stdin(std::process::Stdio::piped())
        .stdout(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = std::io::BufReader::new(enable.stdout.take().unwrap());
    let mut line = String::new();
    std::io::BufRead::read_line(&mut lines, &mut line).unwrap();
    let object: serde_json::Value = serde_json::from_str(&line).unwrap();
    let uri = object["uri"].as_str().unwrap().to_owned();
    let mut stdin = enable.stdin.take().unwrap();
    std::io::Write::write_all(&mut stdin, format!("{}\n", code(&uri)).as_bytes()).unwrap();
    drop(stdin);
    assert!(enable.wait().unwrap().success());

    let password = home.join("password");
    fs::write(&password, "new and better").unwrap();
    let asked = ["--user", "ann", "--password-file", password.to_str().unwrap()];
    let stderr = at(&world, "m3", "login", &asked, "").fails(1);
    assert!(stderr.contains("ode"), "{stderr}");
    let mut answered = asked.to_vec();
    answered.extend_from_slice(&["--answer-file", "-"]);
    at(&world, "m3", "login", &answered, "000000\n").fails(1);
    // A code counts once: the one that turned TOTP on is spent, the next comes within 30 seconds.
    eventually("a fresh code is taken", || {
        let run = at(&world, "m3", "login", &answered, &format!("{}\n", code(&uri)));
        if run.code != 0 {
            std::thread::sleep(std::time::Duration::from_secs(3));
        }
        (run.code == 0).then_some(())
    });
    let args = ["totp", "disable", "--password-file", "-"];
    world.picloud_typing(&home, &args, "new and better").ok();
    at(&world, "m4", "login", &asked, "").ok();
}

/// The code of an `otpauth://` secret now, by an implementation of its own.
fn code(uri: &str) -> String {
    let query = uri.split_once('?').unwrap().1;
    let secret = query.split('&').find_map(|pair| pair.strip_prefix("secret=")).unwrap();
    let mut bits = String::new();
    for c in secret.trim_end_matches('=').chars() {
        let value = match c {
            'A'..='Z' => c as u8 - b'A',
            _ => c as u8 - b'2' + 26,
        };
        bits.push_str(&format!("{value:05b}"));
    }
    let key: Vec<u8> = (0..bits.len() / 8)
        .map(|i| u8::from_str_radix(&bits[8 * i..8 * i + 8], 2).unwrap())
        .collect();
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap();
    let counter = (now.as_secs() / 30).to_be_bytes();
    let key = ring::hmac::Key::new(ring::hmac::HMAC_SHA1_FOR_LEGACY_USE_ONLY, &key);
    let tag = ring::hmac::sign(&key, &counter);
    let tag = tag.as_ref();
    let at = usize::from(tag[19] & 15);
    let number = u32::from_be_bytes(tag[at..at + 4].try_into().unwrap()) & 0x7fff_ffff;
    format!("{:06}", number % 1_000_000)
}

#[test]
fn the_server_lists_adds_and_removes_users() {
    let world = World::new();
    let users = |world: &World| world.picloud_server(&["user", "list"]).ok();
    let stderr = world.picloud_server(&["user", "add", "ann"]).fails(1);
    assert!(stderr.contains("--password-stdin"), "{stderr}");
    let run = world.picloud_server(&["user", "add", "ann", "--json"]);
    let error = &run.objects()[0];
    assert_eq!((&error["type"], &error["exit"]), (&"error".into(), &1.into()));
    assert!(error["message"].as_str().unwrap().contains("--password-stdin"), "{error}");
    world.picloud_server(&["user", "add", "ann", "--no-password"]).ok();
    assert!(users(&world).contains("ann"));
    let device = world.device("ann", "a");
    device.write("f", "1");
    device.sync();
    world.picloud_server(&["user", "remove", "ann"]).ok();
    assert!(!users(&world).contains("ann"));
    device.wait_status("word of it", |status| {
        status["state"] != "in-sync" && status["state"] != "syncing"
    });
    let reason = device.wait_problem("");
    assert!(reason.contains("account removed") && reason.contains("new join link"), "{reason}");
    assert_eq!(device.read("f").unwrap(), "1");
    world.picloud_server(&["user", "remove", "ann"]).fails(1);
}
