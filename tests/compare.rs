//! `benches/compare`, small: it measures all that a small folder can show, leaves nothing, and says so when a
//! system spoils what it carries.

#![allow(clippy::unwrap_used, reason = "a failed step of a test is a failed test")]

use std::fs;
use std::os::unix::fs::{PermissionsExt as _, symlink};
use std::path::Path;
use std::process::{Command, Output};

const PROGRAMS: [(&str, &str); 3] = [
    ("picloud", env!("CARGO_BIN_EXE_picloud")),
    ("picloud-agent", env!("CARGO_BIN_EXE_picloud-agent")),
    ("picloud-server", env!("CARGO_BIN_EXE_picloud-server")),
];

/// Runs the benchmark in `dir`, on loopback or in namespaces of its own.
fn compare(dir: &Path, programs: &Path, workloads: &str) -> (Output, serde_json::Value) {
    let work = dir.join("work");
    fs::create_dir(&work).unwrap();
    let figures = dir.join("figures.json");
    let output = Command::new(concat!(env!("CARGO_MANIFEST_DIR"), "/benches/compare"))
        .args(["--no-build", "--no-image", "--scale", "0.002", "--runs", "1"])
        .args(["--workloads", workloads])
        .args(["--systems", &format!("picloud@{},cp", programs.display())])
        .args([Path::new("--dir"), &work, Path::new("--json"), &figures])
        .output()
        .unwrap();
    assert_eq!(fs::read_dir(&work).unwrap().count(), 0, "it left something: {output:?}");
    (output, serde_json::from_slice(&fs::read(figures).unwrap()).unwrap())
}

fn link_programs(to: &Path, names: &[&str]) {
    fs::create_dir_all(to).unwrap();
    for (name, program) in PROGRAMS {
        if names.contains(&name) {
            symlink(program, to.join(name)).unwrap();
        }
    }
}

#[test]
fn each_workload_is_measured() {
    let dir = tempfile::tempdir().unwrap();
    let programs = dir.path().join("programs");
    link_programs(&programs, &["picloud", "picloud-agent", "picloud-server"]);
    let (output, figures) = compare(dir.path(), &programs, "1,2,3,4,5,9");
    assert!(output.status.success(), "{output:?}");
    assert_eq!(figures["is_complete"], true);
    let results = figures["results"].as_array().unwrap();
    for workload in [1, 2, 3, 4, 5, 9] {
        let measured = results.iter().any(|result| {
            result["workload"] == workload
                && result["system"].as_str().unwrap().starts_with("picloud@")
                && (result["secs"].is_f64() || result["median_ms"].is_f64())
        });
        assert!(measured, "workload {workload}: {output:?}");
    }
}

#[test]
fn a_system_that_spoils_what_it_carries_fails() {
    let dir = tempfile::tempdir().unwrap();
    let programs = dir.path().join("programs");
    link_programs(&programs, &["picloud", "picloud-server"]);
    // On B it overwrites a file as soon as that has come, and A gets the same then.
    let agent = programs.join("picloud-agent");
    let wrapper = format!(
        "#!/bin/sh\n\
         case \"$2\" in */b/agent.toml) folder=\"${{2%/agent.toml}}/PiCloud\"\n\
           (for i in $(seq 3000); do\n\
             f=$(find \"$folder/data\" -name 'f*1' 2>/dev/null | head -1)\n\
             if [ -n \"$f\" ]; then echo gone > \"$f\"; exit; fi; sleep 0.01\n\
           done) & ;;\n\
         esac\n\
         exec {} \"$@\"\n",
        PROGRAMS[1].1
    );
    fs::write(&agent, wrapper).unwrap();
    fs::set_permissions(&agent, fs::Permissions::from_mode(0o755)).unwrap();
    let (output, figures) = compare(dir.path(), &programs, "1");
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    let results = figures["results"].as_array().unwrap();
    let of = |name: &str| {
        results.iter().find(|result| result["system"].as_str().unwrap().starts_with(name)).unwrap()
    };
    assert!(of("picloud@")["failed"].is_string(), "{output:?}");
    assert!(of("cp")["secs"].is_f64(), "the others go on: {output:?}");
}
