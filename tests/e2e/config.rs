//! Settings: errors with line and key, edits taken over while it runs, ignore rules, rate limits.

use std::fs;
use std::time::Instant;

use crate::support::{Device, Dice, Proxy, World, settle};

fn edit(device: &Device, change: impl FnOnce(String) -> String) {
    device.edit_config(change);
}

#[test]
fn a_bad_file_is_refused_with_line_and_key() {
    let world = World::without_server("[limits]\nno_such_key = 1\n");
    let stderr = world.picloud_server(&["run"]).fails(1);
    assert!(stderr.contains("line 6") && stderr.contains("no_such_key"), "{stderr}");
    world.write_server_config("[limits]\nmemory_max_mib = \"much\"\n");
    let stderr = world.picloud_server(&["run"]).fails(1);
    assert!(stderr.contains("line 6") && stderr.contains("memory_max_mib"), "{stderr}");

    let device = world.blank_device("a");
    fs::write(&device.config, "[scan]\n\ninterval_secs = 1\n").unwrap();
    let agent = std::process::Command::new(env!("CARGO_BIN_EXE_picloud-agent"))
        .arg("--config")
        .arg(&device.config)
        .output()
        .unwrap();
    let stderr = String::from_utf8_lossy(&agent.stderr);
    assert_eq!(agent.status.code(), Some(1), "{stderr}");
    assert!(stderr.contains("line 3") && stderr.contains("interval_secs"), "{stderr}");
    let stderr = device.picloud(&["status"]).fails(1);
    assert!(stderr.contains("line 3") && stderr.contains("interval_secs"), "{stderr}");
}

#[test]
fn a_mistyped_level_and_a_pattern_that_is_none_are_errors() {
    let world = World::without_server("[log]\nlevel = \"loud\"\n");
    let stderr = world.picloud_server(&["run"]).fails(1);
    assert!(stderr.contains("line 6, key \"level\"") && stderr.contains("loud"), "{stderr}");

    let world = World::new();
    let mut device = world.joined("ann", "a");
    let good = fs::read_to_string(&device.config).unwrap();
    for (from, to, told) in [
        ("level = \"info\"", "level = \"loud\"", "key \"level\""),
        ("\n[[folder]]", "\n[[folder]]\nignore = [\"*.o\",\n\"[a\"]", "key \"ignore\""),
    ] {
        edit(&device, |text| text.replace(from, to));
        let stderr = device.picloud(&["status"]).fails(1);
        assert!(stderr.contains(", line ") && stderr.contains(told), "{stderr}");
        edit(&device, |_| good.clone());
    }
    device.start();
    device.sync();
    edit(&device, |text| text.replace("level = \"info\"", "level = \"loud\""));
    let reason = device.wait_problem("");
    assert!(reason.contains("key \"level\""), "{reason}");
    edit(&device, |_| good.clone());
    device.wait_status("no problem", |status| status["state"] == "in-sync");
}

#[test]
fn a_line_of_a_pattern_file_that_is_no_pattern_is_told_with_path_and_line() {
    let world = World::new();
    let a = world.device("ann", "a");
    a.write("sub/.picloudignore", "# what is made\n*.o\n\n[a-\n*.tmp\n");
    let reason = a.wait_problem("sub/.picloudignore");
    assert!(reason.starts_with("Line 4: ") && reason.contains("\"[a-\""), "{reason}");
    assert_eq!(a.picloud(&["status"]).code, 3);
    // The other lines are in force.
    a.write("sub/x.tmp", "x");
    a.write("sub/x", "x");
    assert_eq!(a.picloud(&["sync", "--timeout", "90"]).code, 3);
    assert_eq!(a.picloud(&["ls", "sub"]).ok(), ".picloudignore\nx\n");
    a.write("sub/.picloudignore", "*.o\n");
    a.wait_status("no problem", |status| status["state"] == "in-sync");
    // One that is too long to be read is told too, and not looked at without an end.
    a.write("sub/.picloudignore", "x\n".repeat(200_000));
    let reason = a.wait_problem("sub/.picloudignore");
    assert!(reason.contains("not in force"), "{reason}");
    a.wait_status("rest", |status| status["state"] == "problem");
    // With the directory the problem goes.
    a.remove("sub");
    a.wait_status("no problem", |status| status["state"] == "in-sync");
}

#[test]
fn an_edit_is_taken_over_and_a_bad_one_keeps_the_old_settings() {
    let world = World::new();
    let device = world.device("ann", "a");
    device.sync();
    edit(&device, |text| text.replace("interval_secs = 3600", "interval_secs = \"often\""));
    device.wait_status("word of the bad edit", |status| {
        let problems = status["problems"].as_array().into_iter().flatten();
        problems
            .into_iter()
            .any(|problem| problem["reason"].as_str().unwrap().contains("interval_secs"))
    });
    device.write("meanwhile", "x");
    let stderr = device.picloud(&["sync", "--timeout", "90"]).fails(3);
    assert!(stderr.starts_with("Error: A person is needed\n"), "{stderr}");
    assert!(stderr.contains("found \"often\", expected a whole number"), "{stderr}");
    let listed = fs::read_to_string(&device.config).unwrap();
    assert!(listed.contains("often"));

    edit(&device, |text| text.replace("\"often\"", "7200"));
    device.wait_status("end of the problem", |status| status["state"] == "in-sync");
    edit(&device, |text| text.replace("[log]", "[log]\nfile = \"picloud.log\""));
    let log = device.dir.join("picloud.log");
    crate::support::eventually("the log appears", || {
        device.write("logged", format!("{:?}", Instant::now()));
        device.sync();
        fs::read_to_string(&log).ok().filter(|text| text.contains("logged"))
    });
}

#[test]
fn another_control_socket_takes_effect_at_once_and_settings_that_are_gone_are_said_so() {
    let world = World::new();
    let mut device = world.device("ann", "a");
    device.sync();
    edit(&device, |text| text.replace("\nsocket = ", "\nsocket = \"other.sock\" #"));
    crate::support::eventually("it answers there", || {
        (device.picloud(&["status"]).code == 0).then_some(())
    });
    assert!(device.dir.join("other.sock").exists() && !device.dir.join("agent.sock").exists());
    // One that cannot be leaves the one before.
    edit(&device, |text| text.replace("other.sock", "agent.toml"));
    edit(&device, |text| text.replace("agent.toml", "agent.sock"));
    crate::support::eventually("it answers here again", || {
        (device.picloud(&["status"]).code == 0).then_some(())
    });
    // Moved away: the agent goes on, and says so; without one, it is not taken for a new machine.
    let away = device.dir.join("away.toml");
    fs::rename(&device.config, &away).unwrap();
    let reason = device.wait_problem("");
    assert!(reason.contains("Cannot read") && reason.contains("agent.toml"), "{reason}");
    device.stop();
    let stderr = device.picloud(&["status"]).fails(6);
    assert!(stderr.contains("agent.toml") && stderr.contains("missing"), "{stderr}");
    fs::rename(&away, &device.config).unwrap();
    device.start();
    device.sync();
}

#[test]
fn what_the_rules_leave_out_stays_here() {
    let world = World::new();
    let a = world.device("ann", "a");
    let b = world.device("ann", "b");
    a.write(".picloudignore", "*.tmp\n/build/\n!keep.tmp\n");
    a.sync();
    for path in ["x.tmp", "sub/y.tmp", "build/out", "keep.tmp", "sub/build/in", "plain"] {
        a.write(path, path);
    }
    a.sync();
    b.wait_text("plain", "plain");
    settle_but(&a, &b, &["x.tmp", "sub/y.tmp", "build"]);
    assert!(b.exists("keep.tmp") && b.exists("sub/build/in"));

    // By the settings of the folder, taken over without a restart.
    edit(&a, |text| text.replace("\n[[folder]]", "\n[[folder]]\nignore = [\"*.local\"]"));
    // A rule decides about new entries; the edit has been read once the status says so, which it
    // does not: so a marker is tried until it is left out.
    let mut round = 0;
    crate::support::eventually("the rule is in force", || {
        round += 1;
        let marker = format!("{round}.local");
        a.write(&marker, "x");
        a.write(format!("{round}.shared"), "x");
        a.sync();
        b.sync();
        b.wait_text(&format!("{round}.shared"), "x");
        (!b.exists(&marker)).then_some(())
    });
    // What is in the drive stays synced whatever a rule says.
    a.write(".picloudignore", "plain\n");
    a.sync();
    a.write("plain", "edited");
    b.wait_text("plain", "edited");
}

/// The folders are the same but for what is left out on a.
#[track_caller]
fn settle_but(a: &Device, b: &Device, left_out: &[&str]) {
    a.sync();
    b.sync();
    let mut tree = a.tree();
    for path in left_out {
        assert!(!b.exists(path), "{path}");
        let below = format!("{path}/");
        tree.0.retain(|found, _| found != path.as_bytes() && !found.starts_with(below.as_bytes()));
    }
    assert_eq!(tree.difference(&b.tree()), "");
}

#[test]
fn a_rate_limit_holds_in_both_directions() {
    let world = World::new();
    let proxy = Proxy::to(&world.address());
    let a = world.device_via(&proxy, "ann", "a");
    let b = world.device("ann", "b");
    settle(&[&a, &b]);
    edit(&a, |text| {
        text.replace("upload_kib_per_s = 0", "upload_kib_per_s = 500")
            .replace("download_kib_per_s = 0", "download_kib_per_s = 500")
    });
    // Two megabytes at half a megabyte per second, less what a bucket may let through at once.
    for (from, to, file) in [(&a, &b, "up"), (&b, &a, "down")] {
        // Until the agent has read the edit, a transfer is fast: then try again.
        let mut round = 0;
        crate::support::eventually("the limit holds", || {
            round += 1;
            let name = format!("{file} {round}");
            let begun = Instant::now();
            from.write(&name, Dice::new(round + 7).bytes(2_000_000));
            from.sync();
            to.sync();
            assert!(to.exists(&name));
            (begun.elapsed().as_secs_f64() > 2.0).then_some(())
        });
        assert!(round <= 3, "the limit came into force only in round {round}");
    }
}

#[test]
fn one_agent_syncs_several_folders() {
    let world = World::new();
    let mut a = world.joined("ann", "a");
    let second = a.dir.join("Second");
    let link = world.invite("bob");
    a.picloud(&["join", &link, "--folder", second.to_str().unwrap(), "--device", "a"]).ok();
    a.start();
    a.write("f", "of ann");
    fs::write(second.join("f"), "of bob").unwrap();
    a.sync();
    let ann = world.device("ann", "ann 2");
    let bob = world.device("bob", "bob 2");
    ann.wait_text("f", "of ann");
    bob.wait_text("f", "of bob");
    assert_eq!(a.status()["folders"].as_array().unwrap().len(), 2);
    // A folder in a folder would sync everything twice.
    let inner = a.folder.join("inner");
    let link = world.invite("ann");
    let run = a.picloud(&["join", &link, "--folder", inner.to_str().unwrap()]);
    run.fails(1);
    assert!(!inner.exists());
    // The link is still good: nothing was sent.
    world.blank_device("later").join(&link).ok();
}

#[test]
fn a_folder_joined_while_the_agent_runs_is_taken_up() {
    let world = World::new();
    let a = world.device("ann", "a");
    let second = a.dir.join("Second");
    let link = world.invite("bob");
    a.picloud(&["join", &link, "--folder", second.to_str().unwrap()]).ok();
    fs::write(second.join("f"), "of bob").unwrap();
    let bob = world.device("bob", "bob 2");
    bob.wait_text("f", "of bob");
}

#[test]
fn a_folder_that_is_let_go_of_while_it_is_opened_holds_nothing_up() {
    let world = World::new();
    let mut a = world.device("ann", "a");
    let second = a.dir.join("Second");
    let folder = second.to_str().unwrap();
    for _ in 0..8 {
        a.picloud(&["join", &world.invite("bob"), "--folder", folder]).ok();
        a.picloud(&["logout", "--folder", folder]).ok();
    }
    // Edits are still taken over, and it ends when it is told to.
    a.picloud(&["join", &world.invite("bob"), "--folder", folder]).ok();
    a.wait_status("the folder", |status| {
        status["folders"].as_array().is_some_and(|folders| folders.len() == 2)
    });
    a.sync();
    a.stop();
}

#[test]
fn a_folder_joined_this_moment_is_synced_by_the_next_sync() {
    let world = World::new();
    let mut a = world.joined("ann", "a");
    // Files that are on the server before the second folder is joined.
    let bob = world.device("bob", "bob 2");
    bob.write("f", "of bob");
    bob.sync();
    a.start();
    a.sync();
    let second = a.dir.join("Second");
    let link = world.invite("bob");
    a.picloud(&["join", &link, "--folder", second.to_str().unwrap()]).ok();
    a.sync();
    assert_eq!(fs::read_to_string(second.join("f")).unwrap(), "of bob");
    assert_eq!(a.status()["folders"].as_array().unwrap().len(), 2);
}

#[test]
fn resume_tells_which_folders_the_settings_keep_paused() {
    let world = World::new();
    let mut a = world.joined("ann", "a");
    edit(&a, |text| text.replace("\n[[folder]]", "\n[[folder]]\npaused = true"));
    a.start();
    a.write("f", "x");
    let stderr = a.picloud(&["resume"]).fails(5);
    assert!(stderr.contains(a.folder.to_str().unwrap()), "{stderr}");
    assert!(stderr.contains("paused = true"), "{stderr}");
    assert!(stderr.contains(a.config.to_str().unwrap()), "{stderr}");
    let object = &a.picloud(&["resume", "--json"]).objects()[0];
    assert_eq!(object["still_paused"][0], a.folder.to_str().unwrap());
    assert_eq!(a.status()["state"], "paused");
    edit(&a, |text| text.replace("paused = true", "paused = false"));
    a.sync();
    assert_eq!(a.picloud(&["resume"]).ok(), "Resumed\n");
}
