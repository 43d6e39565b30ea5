//! `picloud doctor` with the real programs: what it finds, with and without an agent.

use std::fs;
use std::os::unix::fs::PermissionsExt;

use serde_json::Value;

use crate::support::{Device, Run, World, eventually};

/// The verdict, the text and the fix of a check.
#[track_caller]
fn found(run: &Run, check: &str) -> (String, String, String) {
    let objects = run.objects();
    let finding = objects
        .iter()
        .find(|object| object["check"] == check)
        .unwrap_or_else(|| panic!("no check {check:?}: {run:?}"));
    let text = |key: &str| finding[key].as_str().unwrap_or_default().to_owned();
    (text("verdict"), text("text"), text("fix"))
}

fn doctor(device: &Device) -> Run {
    device.picloud(&["doctor", "--json"])
}

#[test]
fn a_machine_in_order_has_nothing_wrong_and_the_doctor_leaves_no_trace() {
    let world = World::new();
    let mut a = world.device("ann", "a");
    a.write("a file", "x");
    a.sync();
    let run = doctor(&a);
    assert_eq!(run.code, 0, "{run:?}");
    let objects = run.objects();
    assert!(objects.iter().all(|object| object["version"] == 1), "{run:?}");
    let last = objects.last().unwrap();
    assert_eq!((&last["type"], &last["problems"]), (&Value::from("doctor"), &Value::from(0)));
    for check in [
        "settings",
        "permissions",
        "agent",
        "other agents",
        "file system",
        "contents",
        "names",
        "server",
        "certificate",
        "clock",
        "log-in",
    ] {
        assert_eq!(found(&run, check).0, "ok", "{check}: {run:?}");
    }
    // The settings are not where the units read them.
    assert_eq!(found(&run, "unit").0, "skipped");
    let text = a.picloud(&["doctor"]).ok();
    assert!(text.lines().any(|line| line.starts_with("ok       server: ")), "{text}");
    assert!(!text.contains('\x1b'), "no colour without a terminal: {text}");
    // The same without the agent, but for the agent.
    a.stop();
    let run = doctor(&a);
    assert_eq!(run.code, 3, "{run:?}");
    let (verdict, text, fix) = found(&run, "agent");
    assert_eq!(verdict, "problem");
    assert!(text.contains("is not running") && fix.contains("picloud-agent"), "{text} {fix}");
    assert_eq!(found(&run, "file system").0, "ok", "tried out: {run:?}");
    assert_eq!(found(&run, "log-in").0, "ok");
    let left: Vec<_> = fs::read_dir(a.folder.join(".picloud/staging")).unwrap().collect();
    assert!(left.is_empty(), "{left:?}");
}

#[test]
fn what_is_wrong_is_told_with_what_to_do() {
    let mut world = World::new();
    let a = world.joined("ann", "a");
    // Secrets that others can read, names for one system only.
    let credentials = a.config.with_file_name("credentials.toml");
    fs::set_permissions(&credentials, fs::Permissions::from_mode(0o644)).unwrap();
    for name in ["aux.txt", "ends.", "Twice", "twice", "\u{e9}", "e\u{301}"] {
        a.write(name, name);
    }
    a.write("d/con", "");
    let run = doctor(&a);
    assert_eq!(run.code, 3);
    let (verdict, text, fix) = found(&run, "permissions");
    assert_eq!(verdict, "problem");
    assert!(text.contains("credentials.toml") && fix.contains("chmod 600"), "{text} {fix}");
    let (verdict, text, _) = found(&run, "names");
    assert_eq!(verdict, "warning");
    assert!(text.contains("3 that not every system can hold"), "{text}");
    assert!(text.contains("2 that differ from another by case or Unicode form only"), "{text}");
    fs::set_permissions(&credentials, fs::Permissions::from_mode(0o600)).unwrap();

    // A server that is not there.
    world.stop_server();
    let run = doctor(&a);
    let (verdict, text, fix) = found(&run, "server");
    assert_eq!(verdict, "problem");
    assert!(text.contains(&world.address()) && text.contains("refused"), "{text}");
    assert!(fix.contains("picloud-server"), "{fix}");
    // One that is another: its certificate was lost.
    fs::remove_file(world.server_data().join("identity.pem")).unwrap();
    world.start_server();
    let (verdict, text, _) = found(&doctor(&a), "server");
    assert!(verdict == "problem" && text.contains("fingerprint"), "{text}");

    // A folder that is gone, and settings with a slip.
    fs::rename(&a.folder, a.folder.with_extension("aside")).unwrap();
    let (verdict, text, _) = found(&doctor(&a), "folder");
    assert!(verdict == "problem" && text.contains("is not there"), "{text}");
    a.edit_config(|text| text.replace("user = ", "usr = "));
    let run = doctor(&a);
    assert_eq!(run.code, 3);
    let (verdict, text, _) = found(&run, "settings");
    assert!(verdict == "problem" && text.contains("line "), "{text}");
    assert_eq!(found(&run, "server").0, "skipped");
    // A machine without anything.
    let home = world.path().join("nobody");
    let run = world.picloud_at(&home, &["doctor"]);
    assert_eq!(run.code, 3);
    assert!(run.stdout.contains("-> picloud setup LINK"), "{run:?}");
}

#[test]
fn a_revoked_device_and_an_agent_of_other_settings_are_told() {
    let world = World::new();
    let mut a = world.device("ann", "a");
    world.picloud_server(&["revoke", "ann", "a"]).ok();
    let (verdict, text, fix) = found(&doctor(&a), "log-in");
    assert_eq!(verdict, "problem");
    assert!(text.contains("was removed from the account") && fix.contains("join"), "{text} {fix}");
    // The same folder by copied settings: whose agent has it is told, and nobody is disturbed.
    let mut copy = world.blank_device("copy");
    for file in ["agent.toml", "credentials.toml"] {
        fs::copy(a.dir.join(file), copy.dir.join(file)).unwrap();
    }
    copy.start();
    let run = eventually("the other agent is told", || {
        let run = doctor(&copy);
        (found(&run, "other agents").0 != "ok").then_some(run)
    });
    let (verdict, text, _) = found(&run, "other agents");
    let names_it = verdict == "problem" && text.contains("picloud-agent --config");
    // Where the system tells no process numbers, what the folder says of itself remains.
    assert!(names_it || verdict == "warning", "{text}");
    copy.stop();
    a.stop();
}
