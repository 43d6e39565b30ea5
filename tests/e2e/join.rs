//! Join links: one-time, expiring, pinned to one server, and nothing written when joining fails.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use crate::support::{Device, Run, World, free_port};

#[test]
fn a_joined_device_syncs_and_its_credentials_are_its_users_alone() {
    let world = World::new();
    let device = world.device("ann", "laptop");
    device.sync();
    assert_eq!(device.status()["state"], "in-sync");
    assert!(device.folder.is_dir());
    let mut secret_files = 0;
    for entry in fs::read_dir(&device.dir).unwrap() {
        let path = entry.unwrap().path();
        if path.file_name().unwrap().to_string_lossy().contains("credentials") {
            secret_files += 1;
            for path in walkdir::WalkDir::new(&path).into_iter().flatten() {
                let mode = path.metadata().unwrap().permissions().mode() & 0o077;
                assert_eq!(mode, 0, "{}", path.path().display());
            }
        }
    }
    assert!(secret_files > 0);
}

#[test]
fn a_link_works_once() {
    let world = World::new();
    let link = world.invite("ann");
    world.blank_device("a").join(&link).ok();
    let second = world.blank_device("b");
    let stderr = second.join(&link).fails(1);
    assert!(stderr.contains("link"), "{stderr}");
    assert!(stderr.contains("used") || stderr.contains("expired"), "{stderr}");
    assert!(!second.config.exists() && !second.folder.exists());
}

#[test]
fn a_link_expires() {
    let world = World::with_server_config("[accounts]\nlink_expires_secs = 1\n");
    let device = world.blank_device("a");
    let link = world.invite("ann");
    // The one wait that is for time itself: the link's second, and a little for the clock's.
    std::thread::sleep(std::time::Duration::from_millis(2_100));
    let stderr = device.join(&link).fails(1);
    assert!(stderr.contains("expired"), "{stderr}");
    assert!(!device.config.exists());
}

#[test]
fn a_server_that_is_not_the_one_of_the_link_is_refused() {
    let mine = World::new();
    let other = World::new();
    let link = mine.invite("ann").replace(&mine.address(), &other.address());
    let device = mine.blank_device("a");
    let stderr = device.join(&link).fails(1);
    assert!(stderr.contains("fingerprint"), "{stderr}");
    assert!(!device.config.exists() && !device.folder.exists());
    // The link is not used up by it: its secret was never sent.
    device.join(&link.replace(&other.address(), &mine.address())).ok();
}

#[test]
fn a_server_that_cannot_be_reached_is_said_so() {
    let mut world = World::new();
    let link = world.invite("ann");
    world.stop_server();
    let device = world.blank_device("a");
    let stderr = device.join(&link).fails(4);
    assert!(stderr.contains(&world.address()), "{stderr}");
    assert!(!device.config.exists() && !device.folder.exists());
}

#[test]
fn a_damaged_link_is_refused_before_anything_is_asked() {
    let world = World::without_server("");
    let device = world.blank_device("a");
    let port = free_port();
    let cases = [
        "https://example.org/".to_owned(),
        format!("picloud://127.0.0.1:{port}/"),
        format!("picloud://127.0.0.1:{port}/#abc.def"),
        "picloud://127.0.0.1/#x.y".to_owned(),
    ];
    for link in cases {
        device.join(&link).fails(2);
        assert!(!device.config.exists() && !device.folder.exists(), "{link}");
    }
}

#[test]
fn invite_prints_the_link_alone_whether_the_server_runs_or_not() {
    let mut world = World::new();
    let while_running = world.picloud_server(&["invite", "ann"]).ok();
    world.stop_server();
    let while_stopped = world.picloud_server(&["invite", "bob"]).ok();
    world.start_server();
    for (output, name) in [(while_running, "a"), (while_stopped, "b")] {
        assert_eq!(output.lines().count(), 1, "{output:?}");
        assert!(output.starts_with(&format!("picloud://{}/#", world.address())), "{output}");
        world.blank_device(name).join(output.trim()).ok();
    }
}

#[test]
fn a_folder_with_files_in_it_can_be_joined_and_loses_nothing() {
    let world = World::new();
    let first = world.device("ann", "first");
    first.write("same.txt", "same");
    first.write("both.txt", "of the first");
    first.sync();
    let mut second = world.blank_device("second");
    second.write("same.txt", "same");
    second.write("both.txt", "of the second");
    second.write("own/deep.txt", "own");
    second.join(&world.invite("ann")).ok();
    second.start();
    crate::support::settle(&[&first, &second]);
    assert_eq!(first.read("own/deep.txt").unwrap(), "own");
    assert_eq!(second.read("both.txt").unwrap(), "of the first");
    let copies = first.conflict_copies("");
    assert_eq!(copies.len(), 1, "{copies:?}");
    assert_eq!(first.read(&copies[0]).unwrap(), "of the second");
}

/// A second config beside the first one of a device.
fn second_config(device: &Device, link: &str, folder: &Path) -> Run {
    let config = device.dir.join("second/agent.toml");
    let (config, folder) = (config.to_str().unwrap(), folder.to_str().unwrap());
    let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_picloud"));
    command.args(["--config", config, "join", link, "--folder", folder, "--device", "second"]);
    Run::of(&command.env_clear().env("HOME", &device.dir).output().unwrap())
}

#[test]
fn a_folder_that_holds_another_or_the_agents_own_files_is_refused() {
    let world = World::new();
    let a = world.joined("ann", "a");
    let link = world.invite("ann");
    let within = a.folder.join("sub");
    let stderr = second_config(&a, &link, &within).fails(1);
    assert!(stderr.contains("lies in") && stderr.contains("synced already"), "{stderr}");
    // Around one, some levels above.
    let around = world.path().join("around");
    let mut other = world.blank_device("other");
    other.folder = around.join("deep/PiCloud");
    other.join(&world.invite("ann")).ok();
    let stderr = second_config(&a, &link, &around).fails(1);
    assert!(stderr.contains("lies around") && stderr.contains("synced already"), "{stderr}");
    // The settings, the token and the state of the agent that is to sync it are below.
    let home = world.path().join("home");
    let run = |folder: &Path| {
        world.picloud_at(&home, &["join", &link, "--folder", folder.to_str().unwrap()])
    };
    for folder in [home.as_path(), Path::new("/")] {
        let stderr = run(folder).fails(1);
        assert!(stderr.contains("the agent's own files"), "{stderr}");
        assert!(!folder.join(".picloud").exists(), "{folder:?}");
    }
    // None of these used the link up.
    run(&home.join("PiCloud")).ok();
}

#[test]
fn a_folder_is_joined_by_one_agent_only() {
    let world = World::new();
    let mut a = world.joined("ann", "a");
    let link = world.invite("ann");
    // Its agent does not run: the folder itself tells.
    let stderr = second_config(&a, &link, &a.folder).fails(1);
    assert!(stderr.contains("synced already"), "{stderr}");
    assert!(stderr.contains(a.config.to_str().unwrap()), "{stderr}");
    let stderr = a.join(&link).fails(1);
    assert!(stderr.contains("synced already"), "{stderr}");
    // By another way there.
    let way = a.dir.join("way");
    std::os::unix::fs::symlink(&a.folder, &way).unwrap();
    second_config(&a, &link, &way).fails(1);
    // It runs: the lock tells as well, whatever the settings say.
    a.start();
    a.sync();
    let moved = a.dir.join("moved.toml");
    fs::rename(&a.config, &moved).unwrap();
    let stderr = second_config(&a, &link, &a.folder).fails(1);
    assert!(stderr.contains("Another agent"), "{stderr}");
    fs::rename(&moved, &a.config).unwrap();
    // A copy of the folder is not that folder.
    let copy = a.dir.join("Copy");
    fs::create_dir_all(copy.join(".picloud")).unwrap();
    fs::copy(a.folder.join(".picloud/identity"), copy.join(".picloud/identity")).unwrap();
    for run in [
        second_config(&a, &link, &copy),
        a.picloud(&["join", &link, "--folder", copy.to_str().unwrap()]),
    ] {
        let stderr = run.fails(1);
        assert!(stderr.contains("is a copy of"), "{stderr}");
    }
    fs::remove_dir_all(copy.join(".picloud")).unwrap();
    fs::write(copy.join("f"), "of the copy").unwrap();
    a.stop();

    // Nothing was sent so far. Whoever let go of a folder gives it to the next.
    a.picloud(&["logout"]).ok();
    second_config(&a, &link, &a.folder).ok();
    a.join(&world.invite("ann")).fails(1);
    fs::remove_dir_all(a.dir.join("second")).unwrap();
    a.join(&world.invite("ann")).ok();
    second_config(&a, &world.invite("ann"), &copy).ok();
}

#[test]
fn the_name_of_a_device_is_the_same_everywhere() {
    let world = World::new();
    let first = world.device("ann", "laptop");
    first.write("f", "1");
    first.sync();
    // Another machine of the same name is numbered, and knows.
    let mut second = world.blank_device("elsewhere");
    second.name = "laptop".into();
    let told = second.join(&world.invite("ann")).ok();
    assert!(told.contains(", as laptop 2\n"), "{told}");
    // So does an agent's second folder, which may have a name of its own.
    let more = second.dir.join("More");
    let more = more.to_str().unwrap();
    second.picloud(&["join", &world.invite("bob"), "--folder", more, "--device", "work"]).ok();
    second.write("f", "2");
    second.start();
    second.sync();
    let folders = second.status()["folders"].clone();
    assert_eq!(
        (&folders[0]["device"], &folders[1]["device"]),
        (&"laptop 2".into(), &"work".into())
    );
    let names: Vec<_> = first.picloud(&["devices", "--json"]).objects();
    let names: Vec<_> = names.iter().map(|device| device["name"].as_str().unwrap()).collect();
    assert_eq!(names, ["laptop", "laptop 2"]);
    let who = second.picloud(&["whoami", "--folder", more, "--json"]).objects();
    assert_eq!(who[0]["device"], "work");
    first.sync();
    let copies = first.conflict_copies("");
    assert_eq!(copies.len(), 1, "{copies:?}");
    assert!(copies[0].contains("(conflicted copy laptop 2 "), "{copies:?}");
}

#[test]
fn the_settings_of_a_folder_outlast_a_logout() {
    let world = World::new();
    let mut a = world.device("ann", "a");
    let b = world.device("ann", "b");
    a.edit_config(|text| text.replace("\n[[folder]]", "\n[[folder]]\nignore = [\"*.secret\"]"));
    a.stop();
    // Its access is revoked: joining says what comes first.
    b.picloud(&["devices", "revoke", "a"]).ok();
    let stderr = a.join(&world.invite("ann")).fails(1);
    assert!(stderr.contains("synced already") && stderr.contains("logout --folder"), "{stderr}");
    a.picloud(&["logout"]).ok();
    a.write("x.secret", "not for others");
    a.write("plain", "x");
    let told = a.join(&world.invite("ann")).ok();
    assert!(told.contains("ignores *.secret"), "{told}");
    a.start();
    b.wait_text("plain", "x");
    a.sync();
    b.sync();
    assert!(!b.exists("x.secret"));
    assert!(fs::read_to_string(&a.config).unwrap().contains("*.secret"));
    assert!(!a.path(".picloud/settings.toml").exists());
}

/// A folder that is copied into another one brings its `.picloud` with it, sooner or later than its files.
#[test]
fn the_directory_of_the_agents_own_travels_from_nowhere_in_a_folder() {
    let world = World::new();
    let (a, b) = (world.device("ann", "a"), world.device("ann", "b"));
    a.write("copied/file", "f");
    b.wait_text("copied/file", "f");
    let identity = std::fs::read(a.path(".picloud/identity")).unwrap();
    a.write("copied/.picloud/identity", &identity);
    a.write("copied/.picloud/other", "other");
    a.write("after", "a");
    b.wait_text("after", "a");
    assert!(!b.exists("copied/.picloud"));
    std::fs::remove_dir_all(a.path("copied")).unwrap();
    b.wait_gone("copied");
    for device in [&a, &b] {
        device.wait_status("nothing to be said", |status| {
            status["state"] == "in-sync" && status["problems"].as_array().is_some_and(Vec::is_empty)
        });
    }
    // Nor does a person put one there.
    let stderr = a.picloud(&["put", a.path("after").to_str().unwrap(), "d/.picloud"]).fails(1);
    assert!(stderr.contains(".picloud is PiCloud's own"), "{stderr}");
}
