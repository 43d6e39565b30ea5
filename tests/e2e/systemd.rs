//! The units: what systemd itself says of them.

use std::fs;
use std::path::Path;
use std::process::Command;

use crate::support::Run;

/// Runs `systemd-analyze` over copies of the units that name the programs built here; nothing where
/// there is no systemd.
fn analyze(args: &[&str], unit: &str) -> Option<Run> {
    let dir = tempfile::tempdir().unwrap();
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("systemd").join(unit);
    let text = fs::read_to_string(source).unwrap();
    let built = Path::new(env!("CARGO_BIN_EXE_picloud")).parent().unwrap();
    let programs = format!("{}/picloud-", built.display());
    let copy = dir.path().join(Path::new(unit).file_name().unwrap());
    fs::write(&copy, text.replace("/usr/bin/picloud-", &programs)).unwrap();
    // A user manager needs a place for its sockets, even to look at a unit.
    let mut command = Command::new("systemd-analyze");
    command.env("XDG_RUNTIME_DIR", dir.path()).args(args).arg(copy);
    match command.output() {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => None,
        output => Some(Run::of(&output.unwrap())),
    }
}

#[test]
fn the_units_are_clean() {
    for (args, unit) in [
        (&["verify", "--man=no"][..], "picloud-server.service"),
        (&["verify", "--man=no"], "picloud-agent.service"),
        (&["verify", "--man=no", "--user"], "user/picloud-agent.service"),
    ] {
        let Some(run) = analyze(args, unit) else { return };
        assert_eq!((run.code, run.stderr.as_str()), (0, ""), "{unit}: {run:?}");
    }
}

#[test]
fn the_server_is_shut_in_well() {
    // Below 5.0 is what systemd calls OK.
    let args = ["security", "--offline=true", "--threshold=49", "--no-pager"];
    let Some(run) = analyze(&args, "picloud-server.service") else { return };
    assert_eq!(run.code, 0, "{run:?}");
}

#[test]
fn the_agents_units_leave_it_its_system_calls() {
    // RestrictSUIDSGID takes openat2 away, and with it every path within a folder.
    for unit in ["picloud-agent.service", "user/picloud-agent.service"] {
        let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("systemd").join(unit);
        let text = fs::read_to_string(source).unwrap();
        assert!(!text.contains("\nRestrictSUIDSGID="), "{unit}");
    }
}
