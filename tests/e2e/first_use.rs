//! `picloud up`: everything on one machine by one command, and the next device by the link it shows.

use std::fs;
use std::path::{Path, PathBuf};

use crate::support::{Process, Run, World, eventually, free_port};

struct Up {
    process: Process,
    log: PathBuf,
}

impl Up {
    fn start(world: &World, home: &Path, port: u16, more: &[&str]) -> Self {
        fs::create_dir_all(home).unwrap();
        let log = home.join("up.log");
        fs::remove_file(&log).ok();
        let mut command = world.command(env!("CARGO_BIN_EXE_picloud"));
        command.env("HOME", home).env("USER", "ann").arg("up");
        command.args(["--listen", &format!("127.0.0.1:{port}")]);
        command.args(["--public", &format!("127.0.0.1:{port}")]).args(more);
        let process = Process::spawn("up", command, &log);
        Self { process, log }
    }

    fn text(&self) -> String {
        fs::read_to_string(&self.log).unwrap()
    }

    /// The join link it shows.
    fn link(&mut self) -> String {
        eventually("up shows a join link", || {
            self.process.assert_running();
            let text = self.text();
            let line = text.split_whitespace().find(|word| word.starts_with("picloud://"))?;
            text.contains(&format!("{line}\n")).then(|| line.to_owned())
        })
    }
}

#[test]
fn one_command_starts_everything_and_its_link_joins_the_next_device() {
    let world = World::without_server("");
    let home = world.path().join("home");
    let port = free_port();
    let mut up = Up::start(&world, &home, port, &["--device", "desk"]);
    let link = up.link();
    let shown = up.text();
    assert!(!shown.contains('\x1b'), "{shown}");
    assert!(shown.contains("picloud join"), "{shown}");
    assert!(shown.contains('█') || shown.contains('▀'), "no QR code: {shown}");

    let mut b = world.blank_device("b");
    b.join(&link).ok();
    b.start();
    fs::write(home.join("PiCloud/hello.txt"), "from the first").unwrap();
    b.wait_text("hello.txt", "from the first");
    b.write("back.txt", "from the second");
    eventually("the first has it", || {
        fs::read_to_string(home.join("PiCloud/back.txt")).ok().filter(|t| t == "from the second")
    });
    // The other commands find what runs here.
    let status = world.picloud_at(&home, &["status", "--json"]);
    assert_eq!(status.objects()[0]["folders"][0]["device"], "desk");
    world.picloud_at(&home, &["sync", "--timeout", "90"]).ok();

    // A second `up` says that one runs already.
    let mut second = world.command(env!("CARGO_BIN_EXE_picloud"));
    second.env("HOME", &home).env("USER", "ann").arg("up");
    let second = crate::support::Run::of(&second.output().unwrap());
    let stderr = second.fails(1);
    assert!(stderr.contains("runs already") || stderr.contains("already running"), "{stderr}");
    up.process.terminate();

    // Again: it picks up where it was, and the second device needs nobody.
    fs::write(home.join("PiCloud/while down.txt"), "x").unwrap();
    let mut up = Up::start(&world, &home, port, &[]);
    up.link();
    b.wait_text("while down.txt", "x");
    let who = world.picloud_at(&home, &["whoami", "--json"]);
    assert_eq!(who.objects()[0]["user"], "ann");
    let devices = world.picloud_at(&home, &["devices", "--json"]).objects();
    assert_eq!(devices.len(), 2, "{devices:?}");
    up.process.terminate();
}

#[test]
fn the_account_is_named_after_the_login_even_without_an_environment() {
    // `World::command` clears the environment: there is neither USER nor LOGNAME.
    let world = World::without_server("");
    let asked = std::process::Command::new("id").arg("-un").output().unwrap();
    let login = String::from_utf8(asked.stdout).unwrap();
    let up = |home: &Path, more: &[&str]| {
        let mut command = world.command(env!("CARGO_BIN_EXE_picloud"));
        let listen = format!("127.0.0.1:{}", free_port());
        command
            .env("HOME", home)
            .env("RUST_LOG", "error")
            .args(["up", "--listen", &listen, "--public", &listen]);
        command.args(more);
        command
    };
    let home = world.path().join("home");
    let log = world.path().join("up.log");
    let mut running = Process::spawn("up", up(&home, &[]), &log);
    let who = eventually("the account is there", || {
        running.assert_running();
        world
            .picloud_at(&home, &["whoami", "--json"])
            .objects()
            .into_iter()
            .next()
            .filter(|object| object["type"] == "whoami")
    });
    assert_eq!(who["user"], login.trim());
    running.terminate();

    // What the system cannot tell, and what cannot be an account's name, is asked for.
    let nobody = world.path().join("nobody");
    for (variable, value, told) in
        [("PATH", "/nonexistent", "cannot be found out"), ("USER", "été", "\"été\"")]
    {
        let mut command = up(&world.path().join(variable), &[]);
        command.env(variable, value);
        let stderr = crate::support::Run::of(&command.output().unwrap()).fails(1);
        assert!(stderr.contains(told) && stderr.contains("--user"), "{stderr}");
    }
    let mut command = up(&nobody, &["--user", "someone"]);
    command.env("PATH", "/nonexistent");
    let mut running = Process::spawn("up", command, &log);
    eventually("the account is there", || {
        running.assert_running();
        let run = world.picloud_at(&nobody, &["whoami", "--json"]);
        (run.code == 0).then(|| assert_eq!(run.objects()[0]["user"], "someone"))
    });
    running.terminate();
}

#[test]
fn a_port_that_is_taken_is_said_so() {
    let world = World::new();
    let home = world.path().join("home");
    let mut command = world.command(env!("CARGO_BIN_EXE_picloud"));
    command.env("HOME", &home).env("USER", "ann").arg("up");
    command.args(["--listen", &world.address()]);
    let run = crate::support::Run::of(&command.output().unwrap());
    let stderr = run.fails(1);
    assert!(stderr.contains(&world.port.to_string()), "{stderr}");
    // Nothing is left behind: neither by that, nor by options that cannot be used.
    let refused = |more: &[&str]| {
        let mut command = world.command(env!("CARGO_BIN_EXE_picloud"));
        let listen = format!("127.0.0.1:{}", free_port());
        command.env("HOME", &home).env("USER", "ann").args(["up", "--listen", &listen]).args(more);
        crate::support::Run::of(&command.output().unwrap()).fails(2)
    };
    for more in [["--user", "é"], ["--device", "a/b"], ["--public", "nonsense"]] {
        refused(&more);
    }
    let left: Vec<_> = walkdir::WalkDir::new(&home).into_iter().flatten().collect();
    assert!(left.iter().all(|entry| !entry.file_type().is_file()), "{left:?}");
    // The same with another port is a first start still.
    let mut up = Up::start(&world, &home, free_port(), &["--device", "desk"]);
    up.link();
    up.process.terminate();
    // What is set up stays so, and options that say otherwise are refused.
    for more in [["--user", "bob"], ["--device", "other"], ["--folder", "/tmp/elsewhere"]] {
        let mut command = world.command(env!("CARGO_BIN_EXE_picloud"));
        command.env("HOME", &home).env("USER", "ann").env("RUST_LOG", "error");
        command.arg("up").args(more);
        let stderr = crate::support::Run::of(&command.output().unwrap()).fails(2);
        assert!(stderr.contains("set up already, for ann as desk"), "{stderr}");
    }
}

/// SQLite does not wait for everything: of forty new servers one did not start, and five invitations failed.
#[test]
fn a_server_that_starts_for_the_first_time_can_be_asked_at_once() {
    for _ in 0..10 {
        let mut world = World::without_server("");
        std::thread::scope(|scope| {
            let config = world.server_config();
            let commands: Vec<_> = (0..3)
                .map(|_| {
                    let mut command = world.command(env!("CARGO_BIN_EXE_picloud-server"));
                    command.arg("--config").arg(&config).args(["invite", "ann"]);
                    scope.spawn(move || Run::of(&command.output().unwrap()))
                })
                .collect();
            world.start_server();
            for command in commands {
                command.join().unwrap().ok();
            }
        });
    }
}
