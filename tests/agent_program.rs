//! The program as a service manager and a person meet it.

#![allow(clippy::unwrap_used, reason = "a test ends where something fails")]

use std::fs;
use std::os::unix::net::UnixDatagram;
use std::process::{Command, Stdio};
use std::time::Duration;

fn agent() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_picloud-agent"));
    command.env_remove("NOTIFY_SOCKET").env_remove("WATCHDOG_USEC").stdin(Stdio::null());
    command
}

#[test]
fn a_wrong_config_is_one_clear_line_and_exit_code_1() {
    let dir = tempfile::tempdir().unwrap();
    let config = dir.path().join("agent.toml");
    fs::write(&config, "[limits]\nuploads = 5\n").unwrap();
    let told = agent().arg("--config").arg(&config).output().unwrap();
    assert_eq!(told.status.code(), Some(1));
    assert_eq!(
        String::from_utf8(told.stderr).unwrap(),
        format!(
            "picloud-agent: {config:?}, line 2, key \"uploads\": there is no key or section \
             `uploads` here; there are `upload_kib_per_s`, `download_kib_per_s`\n"
        )
    );
    let missing = dir.path().join("none.toml");
    let told = agent().arg("--config").arg(&missing).output().unwrap();
    assert_eq!(
        String::from_utf8(told.stderr).unwrap(),
        format!(
            "picloud-agent: Cannot read {missing:?}: No such file or directory (os error 2)\n\
             Hint: `picloud setup LINK` writes these settings, and starts the agent\n"
        )
    );
    assert_eq!(agent().arg("--nonsense").output().unwrap().status.code(), Some(2));
}

#[test]
fn the_service_manager_hears_when_it_is_ready_and_when_it_stops() {
    let dir = tempfile::tempdir().unwrap();
    let config = dir.path().join("agent.toml");
    fs::write(&config, "").unwrap();
    let notify = dir.path().join("notify");
    let manager = UnixDatagram::bind(&notify).unwrap();
    manager.set_read_timeout(Some(Duration::from_secs(30))).unwrap();
    let mut child = agent()
        .arg("--config")
        .arg(&config)
        .env("NOTIFY_SOCKET", &notify)
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let hear = |wanted: &str| {
        let mut buffer = [0; 256];
        loop {
            let len = manager.recv(&mut buffer).unwrap();
            if buffer[..len].starts_with(wanted.as_bytes()) {
                return;
            }
        }
    };
    hear("READY=1");
    assert!(dir.path().join("agent.sock").exists());
    let id = rustix::process::Pid::from_child(&child);
    rustix::process::kill_process(id, rustix::process::Signal::TERM).unwrap();
    hear("STOPPING=1");
    assert!(child.wait().unwrap().success());
    assert!(!dir.path().join("agent.sock").exists());
}
