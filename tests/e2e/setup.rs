//! `picloud setup`: what it says it will do is what it does, and it takes it back.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::process::Command;

use rustix::process::{Pid, Signal, kill_process};

use crate::support::{Device, Run, Tree, World, eventually};

/// A person's home on a fresh device, with a `systemctl` that does what ours is asked for: it runs the
/// agent, and notes what it was told.
struct Home {
    dir: PathBuf,
    path: String,
}

impl Home {
    fn new(world: &World, name: &str) -> Self {
        let dir = world.path().join(name);
        fs::create_dir_all(dir.join("bin")).unwrap();
        let script = format!(
            "#!/bin/sh\n\
             cd '{dir}' && echo \"$@\" >> told\n\
             case \"$*\" in\n\
             '--user cat picloud-agent.service') test ! -e no-unit;;\n\
             '--user enable --now picloud-agent.service')\n\
               '{agent}' < /dev/null > agent.log 2>&1 &\n\
               echo $! > pid;;\n\
             '--user is-enabled picloud-agent.service') test -e pid;;\n\
             '--user disable --now picloud-agent.service') kill $(cat pid) && rm pid;;\n\
             *) exit 1;;\n\
             esac\n",
            dir = dir.display(),
            agent = env!("CARGO_BIN_EXE_picloud-agent"),
        );
        fs::write(dir.join("bin/systemctl"), script).unwrap();
        let mode = fs::Permissions::from_mode(0o755);
        fs::set_permissions(dir.join("bin/systemctl"), mode).unwrap();
        let path = std::env::var("PATH").unwrap_or_default();
        let path = format!("{}:{path}", dir.join("bin").display());
        Self { dir, path }
    }

    fn picloud(&self, args: &[&str]) -> Run {
        let mut command = Command::new(env!("CARGO_BIN_EXE_picloud"));
        command
            .args(args)
            .env_clear()
            .env("PATH", &self.path)
            .env("HOME", &self.dir)
            .env("TZ", "UTC")
            .current_dir(&self.dir)
            .stdin(std::process::Stdio::null());
        Run::of(&command.output().unwrap())
    }

    fn folder(&self) -> PathBuf {
        self.dir.join("PiCloud")
    }

    fn write(&self, path: &str, text: &str) {
        let path = self.folder().join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    }

    fn has_settings(&self) -> bool {
        self.dir.join(".config/picloud/agent.toml").exists()
    }

    fn told(&self) -> String {
        fs::read_to_string(self.dir.join("told")).unwrap_or_default()
    }
}

impl Drop for Home {
    fn drop(&mut self) {
        let pid = fs::read_to_string(self.dir.join("pid")).ok();
        if let Some(pid) = pid.and_then(|pid| Pid::from_raw(pid.trim().parse().ok()?)) {
            kill_process(pid, Signal::KILL).ok();
        }
    }
}

fn link_of(device: &Device) -> String {
    device.picloud(&["link", "--plain"]).ok().trim().to_owned()
}

fn device_names(device: &Device) -> Vec<String> {
    let devices = device.picloud(&["devices", "--json"]).objects();
    devices.iter().map(|device| device["name"].as_str().unwrap().to_owned()).collect()
}

#[test]
fn a_fresh_device_says_what_will_happen_then_does_it_and_takes_it_back() {
    let world = World::new();
    let desk = world.device("ann", "desk");
    desk.write("same", "1");
    desk.write("other", "of desk");
    desk.write("d/there", "12345");
    desk.sync();
    let home = Home::new(&world, "home");
    home.write("same", "1");
    home.write("other", "of home!");
    home.write("mine/file", "123");
    home.write("mine/file~", "left out");

    // Nobody is there to ask: nothing is changed, and there is another link.
    let run = home.picloud(&["setup", &link_of(&desk), "--device", "home"]);
    assert_eq!(
        run.stdout,
        format!(
            "{} will sync with ann at {}; this device is home there\n  \
               to receive: 2 files, 12 B\n  \
               to send: 1 file, 3 B\n  \
               the same already: 1 file\n  \
               different on both sides: 1 file; both versions are kept, the one from here as a \
               conflict copy\n    \
                 other\n  \
               left out by ignore rules: 1\n  \
               Nothing is deleted, neither here nor there\n",
            home.folder().display(),
            world.address()
        )
    );
    let told = run.fails(3);
    assert!(!home.has_settings());
    assert_eq!(device_names(&desk), ["desk"]);
    let link = told.split_whitespace().find(|word| word.starts_with("picloud://")).unwrap();

    let run = home.picloud(&["setup", link, "--device", "home", "--yes"]);
    let out = run.ok();
    let set_up = format!("Set up: your files are in {}; the agent starts", home.folder().display());
    assert!(out.contains(&set_up), "{out}");
    assert!(home.told().contains("--user enable --now picloud-agent.service"), "{}", home.told());
    home.picloud(&["sync", "--timeout", "90"]).ok();
    desk.sync();
    home.picloud(&["sync", "--timeout", "90"]).ok();
    assert_eq!(desk.read("other").as_deref(), Some("of desk"));
    let copies = desk.conflict_copies("");
    assert_eq!(copies.len(), 1, "{copies:?}");
    assert_eq!(desk.read(&copies[0]).as_deref(), Some("of home!"));
    assert_eq!(desk.read("mine/file").as_deref(), Some("123"));
    assert!(home.folder().join("d/there").exists() && home.folder().join("mine/file~").exists());

    // Again it is set up already.
    home.picloud(&["setup", &link_of(&desk), "--yes"]).fails(1);

    let before = Tree::read(&home.folder());
    let out = home.picloud(&["setup", "--undo"]).ok();
    assert!(out.contains("its files stay\nThe agent is stopped"), "{out}");
    assert_eq!(device_names(&desk), ["desk"]);
    assert!(!home.dir.join("pid").exists());
    eventually("the agent has ended", || (home.picloud(&["status"]).code == 6).then_some(()));
    let difference = before.difference(&Tree::read(&home.folder()));
    assert!(difference.is_empty(), "{difference}");
}

#[test]
fn an_empty_folder_is_filled_without_a_question_and_without_a_unit_it_is_said_how() {
    let world = World::new();
    let desk = world.device("ann", "desk");
    desk.write("f", "1");
    desk.sync();
    let home = Home::new(&world, "home");
    let objects = home.picloud(&["setup", &link_of(&desk), "--json"]).objects();
    let kinds: Vec<_> = objects.iter().map(|object| object["type"].as_str().unwrap()).collect();
    assert_eq!(kinds, ["comparison", "set-up"]);
    assert_eq!((&objects[0]["receive"], &objects[1]["agent"]), (&1.into(), &"user-unit".into()));
    home.picloud(&["sync", "--timeout", "90"]).ok();
    assert!(home.folder().join("f").exists());

    let plain = Home::new(&world, "plain");
    fs::write(plain.dir.join("no-unit"), "").unwrap();
    let out = plain.picloud(&["setup", &link_of(&desk)]).ok();
    let expected = format!(
        "Set up: {} syncs as soon as the agent runs, which nobody starts by itself here (systemd \
         knows no picloud-agent.service for you): picloud-agent\n",
        plain.folder().display()
    );
    assert!(out.contains(&expected), "{out}");
    // A link that is no good changes nothing.
    let other = Home::new(&world, "other");
    other.picloud(&["setup", "picloud://nonsense"]).fails(2);
    assert!(!other.has_settings());
}
