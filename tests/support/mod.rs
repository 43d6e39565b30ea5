//! Worlds of real binaries for the end-to-end tests: a server and devices, each in a directory of
//! its own under one temporary directory, on loopback, killed when dropped.
//!
//! Nothing here waits for a guessed time: every wait is for a condition and has a limit.

#![allow(dead_code, reason = "each test binary uses its part")]
#![allow(clippy::unwrap_used, reason = "a failed step of the set-up is a failed test")]

mod process;
mod proxy;
pub mod tree;

use std::ffi::OsStr;
use std::fmt::Write as _;
use std::fs;
use std::net::TcpListener;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::Mutex;
use std::sync::atomic::{AtomicU16, Ordering};
use std::time::{Duration, Instant};

pub use process::Process;
pub use proxy::Proxy;
pub use tree::Tree;

/// How long anything may take before the test fails: generous, for busy machines.
pub const LIMIT: Duration = Duration::from_secs(90);

/// Waits until `ready` returns something.
#[track_caller]
pub fn eventually<T>(what: &str, ready: impl FnMut() -> Option<T>) -> T {
    eventually_within(LIMIT, what, ready)
}

/// As [`eventually`], for what is made larger and takes longer then.
#[track_caller]
pub fn eventually_within<T>(
    limit: Duration,
    what: &str,
    mut ready: impl FnMut() -> Option<T>,
) -> T {
    let deadline = Instant::now() + limit;
    loop {
        if let Some(value) = ready() {
            return value;
        }
        assert!(Instant::now() < deadline, "still waiting after {limit:?}: {what}");
        std::thread::sleep(Duration::from_millis(15));
    }
}

/// A port that nothing listens on, outside the range from which the kernel picks ports of its own,
/// so that it is still free when a server is started again. Each is this process's until it ends: a
/// lock keeps those of other test runs away, also while no server listens.
pub fn free_port() -> u16 {
    static NEXT: AtomicU16 = AtomicU16::new(0);
    static LOCKS: Mutex<Vec<fs::File>> = Mutex::new(Vec::new());
    let first = u16::try_from(std::process::id() % 10_000).unwrap();
    for _ in 0..10_000 {
        let port = 20_000 + (first + NEXT.fetch_add(1, Ordering::Relaxed) % 10_000) % 10_000;
        let lock = std::env::temp_dir().join(format!("picloud-test-port-{port}.lock"));
        // Another user's lock cannot be opened, and is as good as held.
        let Ok(lock) = fs::File::options().create(true).append(true).open(lock) else { continue };
        if lock.try_lock().is_ok() && TcpListener::bind(("127.0.0.1", port)).is_ok() {
            LOCKS.lock().unwrap().push(lock);
            return port;
        }
    }
    panic!("no free port");
}

/// What a command did.
#[derive(Debug)]
pub struct Run {
    pub code: i32,
    pub stdout: String,
    pub stderr: String,
}

impl Run {
    pub fn of(output: &Output) -> Self {
        Self {
            code: output.status.code().unwrap_or(-1),
            stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
            stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
        }
    }

    /// Checks that it succeeded, and returns what it wrote.
    #[track_caller]
    pub fn ok(self) -> String {
        assert_eq!(self.code, 0, "{self:?}");
        self.stdout
    }

    /// Checks that it failed with this exit code and one clear line, and returns all of stderr.
    #[track_caller]
    pub fn fails(self, code: i32) -> String {
        assert_eq!(self.code, code, "{self:?}");
        assert!(self.stderr.starts_with("Error: "), "{self:?}");
        for word in ["panicked", "RUST_BACKTRACE", "os error"] {
            assert!(!self.stderr.contains(word), "{self:?}");
        }
        self.stderr
    }

    /// The objects of a `--json` answer.
    #[track_caller]
    pub fn objects(&self) -> Vec<serde_json::Value> {
        self.stdout
            .lines()
            .map(|line| serde_json::from_str(line).unwrap_or_else(|e| panic!("{e}: {line}")))
            .collect()
    }
}

/// A server with its data, in a temporary directory that holds the devices as well.
pub struct World {
    dir: tempfile::TempDir,
    pub port: u16,
    /// For the server's environment.
    pub server_env: Vec<(&'static str, PathBuf)>,
    server: Option<Process>,
}

impl World {
    /// A world with a running server.
    pub fn new() -> Self {
        Self::with_server_config("")
    }

    /// A world whose server's config has `more` at its end.
    pub fn with_server_config(more: &str) -> Self {
        let mut world = Self::without_server(more);
        world.start_server();
        world
    }

    /// A world whose server is not started yet.
    pub fn without_server(more: &str) -> Self {
        let dir = tempfile::Builder::new().prefix("picloud-e2e-").tempdir().unwrap();
        let port = free_port();
        let world = Self { dir, port, server_env: Vec::new(), server: None };
        world.write_server_config(more);
        world
    }

    pub fn write_server_config(&self, more: &str) {
        let text = format!(
            "[server]\nlisten = \"127.0.0.1:{port}\"\npublic = \"127.0.0.1:{port}\"\n\
             data_dir = {data:?}\n{more}",
            port = self.port,
            data = self.server_data(),
        );
        fs::write(self.server_config(), text).unwrap();
    }

    pub fn path(&self) -> &Path {
        self.dir.path()
    }

    pub fn server_config(&self) -> PathBuf {
        self.path().join("server.toml")
    }

    pub fn server_data(&self) -> PathBuf {
        self.path().join("server-data")
    }

    pub fn address(&self) -> String {
        format!("127.0.0.1:{}", self.port)
    }

    /// A command of one of our programs, with an environment in which nothing of this machine's is.
    pub fn command(&self, program: &str) -> Command {
        let mut command = Command::new(program);
        command
            .env_clear()
            .env("PATH", std::env::var_os("PATH").unwrap_or_default())
            .env("HOME", self.path())
            .env("TZ", "UTC")
            .env("RUST_LOG", std::env::var("PICLOUD_TEST_LOG").unwrap_or("info".into()))
            .current_dir(self.path())
            .stdin(Stdio::null());
        command
    }

    #[track_caller]
    pub fn start_server(&mut self) {
        let mut command = self.command(env!("CARGO_BIN_EXE_picloud-server"));
        command.arg("--config").arg(self.server_config()).arg("run").envs(self.server_env.clone());
        let mut server = Process::spawn("server", command, &self.path().join("server.log"));
        let address = self.address();
        eventually("the server listens", || {
            server.assert_running();
            std::net::TcpStream::connect(&address).ok()
        });
        self.server = Some(server);
    }

    pub fn server(&mut self) -> &mut Process {
        self.server.as_mut().expect("the server runs")
    }

    /// SIGKILL.
    pub fn kill_server(&mut self) {
        self.server.take().expect("the server runs").kill();
    }

    /// SIGTERM; it must end cleanly.
    #[track_caller]
    pub fn stop_server(&mut self) {
        self.server.take().expect("the server runs").terminate();
    }

    /// `picloud-server --config … ARGS`.
    pub fn picloud_server(&self, args: &[&str]) -> Run {
        let mut command = self.command(env!("CARGO_BIN_EXE_picloud-server"));
        command.arg("--config").arg(self.server_config()).args(args).envs(self.server_env.clone());
        Run::of(&command.output().unwrap())
    }

    /// `picloud ARGS` on a machine with nothing on it but what is in `home`.
    pub fn picloud_at(&self, home: &Path, args: &[&str]) -> Run {
        self.picloud_typing(home, args, "")
    }

    /// As [`World::picloud_at`], with something on standard input.
    pub fn picloud_typing(&self, home: &Path, args: &[&str], input: &str) -> Run {
        fs::create_dir_all(home).unwrap();
        let input_file = home.join(".stdin");
        fs::write(&input_file, input).unwrap();
        let mut command = self.command(env!("CARGO_BIN_EXE_picloud"));
        command
            .env("HOME", home)
            .current_dir(home)
            .args(args)
            .stdin(fs::File::open(&input_file).unwrap());
        let run = Run::of(&command.output().unwrap());
        fs::remove_file(input_file).unwrap();
        run
    }

    /// A join link for an account, which is made if needed.
    #[track_caller]
    pub fn invite(&self, user: &str) -> String {
        self.picloud_server(&["invite", user]).ok().trim().to_owned()
    }

    /// A device that is not joined yet.
    pub fn blank_device(&self, name: &str) -> Device {
        let dir = self.path().join(name);
        fs::create_dir_all(&dir).unwrap();
        Device {
            name: name.to_owned(),
            folder: dir.join("PiCloud"),
            config: dir.join("agent.toml"),
            dir,
            agent_env: Vec::new(),
            agent_wrapper: Vec::new(),
            home: self.path().to_owned(),
            agent: None,
        }
    }

    /// A joined device whose agent does not run yet.
    #[track_caller]
    pub fn joined(&self, user: &str, name: &str) -> Device {
        let device = self.blank_device(name);
        device.join(&self.invite(user)).ok();
        device
    }

    /// A joined device with a running agent.
    #[track_caller]
    pub fn device(&self, user: &str, name: &str) -> Device {
        let mut device = self.joined(user, name);
        device.start();
        device
    }

    /// As [`World::device`], connected through a proxy.
    #[track_caller]
    pub fn device_via(&self, proxy: &Proxy, user: &str, name: &str) -> Device {
        let mut device = self.blank_device(name);
        let link = self.invite(user).replace(&self.address(), &proxy.address());
        device.join(&link).ok();
        device.start();
        device
    }
}

impl Drop for World {
    fn drop(&mut self) {
        if std::thread::panicking() {
            print_log("server", &self.path().join("server.log"));
            if std::env::var_os("PICLOUD_TEST_KEEP").is_some() {
                eprintln!("kept: {}", self.path().display());
                self.dir.disable_cleanup(true);
            }
        }
    }
}

fn print_log(name: &str, log: &Path) {
    let text = fs::read_to_string(log).unwrap_or_default();
    let lines: Vec<_> = text.lines().collect();
    eprintln!("--- the end of the log of {name}:");
    for line in lines.iter().skip(lines.len().saturating_sub(40)) {
        eprintln!("{line}");
    }
}

/// A device: a folder, a config, and perhaps a running agent.
pub struct Device {
    pub name: String,
    pub dir: PathBuf,
    pub folder: PathBuf,
    pub config: PathBuf,
    /// For the agent's environment.
    pub agent_env: Vec<(&'static str, PathBuf)>,
    /// A command that runs the agent, which is given as its last arguments.
    pub agent_wrapper: Vec<String>,
    home: PathBuf,
    agent: Option<Process>,
}

impl Device {
    /// `picloud --config … join LINK --folder … --device …`.
    pub fn join(&self, link: &str) -> Run {
        let folder = self.folder.to_str().unwrap();
        self.picloud(&["join", link, "--folder", folder, "--device", &self.name])
    }

    fn command(&self, program: &str) -> Command {
        self.command_in(&[], program)
    }

    fn command_in(&self, wrapper: &[String], program: &str) -> Command {
        let mut words = wrapper.iter().map(String::as_str).chain([program]);
        let mut command = Command::new(words.next().unwrap());
        command
            .args(words)
            .env_clear()
            .env("PATH", std::env::var_os("PATH").unwrap_or_default())
            .env("HOME", &self.home)
            .env("TZ", "UTC")
            .env("RUST_LOG", std::env::var("PICLOUD_TEST_LOG").unwrap_or("info".into()))
            .current_dir(&self.dir)
            .stdin(Stdio::null())
            .arg("--config")
            .arg(&self.config);
        command
    }

    /// Edits the settings as editors do it: whole or not at all.
    pub fn edit_config(&self, change: impl FnOnce(String) -> String) {
        let edited = change(fs::read_to_string(&self.config).unwrap());
        let temporary = self.config.with_extension("new");
        fs::write(&temporary, edited).unwrap();
        fs::rename(temporary, &self.config).unwrap();
    }

    /// `picloud --config … ARGS`.
    pub fn picloud(&self, args: &[&str]) -> Run {
        Run::of(&self.picloud_command(args).output().unwrap())
    }

    pub fn picloud_command(&self, args: &[&str]) -> Command {
        let mut command = self.command(env!("CARGO_BIN_EXE_picloud"));
        command.args(args);
        command
    }

    pub fn log(&self) -> PathBuf {
        self.dir.join("agent.log")
    }

    /// Starts the agent and waits until it answers.
    #[track_caller]
    pub fn start(&mut self) {
        self.start_without_waiting();
        eventually("the agent answers", || {
            self.agent().assert_running();
            (self.picloud(&["status"]).code != 6).then_some(())
        });
    }

    pub fn start_without_waiting(&mut self) {
        assert!(self.agent.is_none(), "the agent of {} runs already", self.name);
        let program = env!("CARGO_BIN_EXE_picloud-agent");
        let mut command = self.command_in(&self.agent_wrapper, program);
        command.envs(self.agent_env.clone());
        self.agent = Some(Process::spawn(&self.name, command, &self.log()));
    }

    pub fn agent(&mut self) -> &mut Process {
        self.agent.as_mut().expect("the agent runs")
    }

    /// SIGTERM; it must end cleanly.
    #[track_caller]
    pub fn stop(&mut self) {
        self.agent.take().expect("the agent runs").terminate();
    }

    /// SIGKILL.
    pub fn kill(&mut self) {
        self.agent.take().expect("the agent runs").kill();
    }

    pub fn is_running(&self) -> bool {
        self.agent.is_some()
    }

    /// `picloud sync` must succeed.
    #[track_caller]
    pub fn sync(&self) {
        let secs = LIMIT.as_secs().to_string();
        self.picloud(&["sync", "--timeout", &secs]).ok();
    }

    /// The object of `picloud status --json`.
    #[track_caller]
    pub fn status(&self) -> serde_json::Value {
        let run = self.picloud(&["status", "--json"]);
        let mut objects = run.objects();
        assert!(!objects.is_empty(), "{run:?}");
        objects.remove(0)
    }

    /// Waits until the status fulfils something.
    #[track_caller]
    pub fn wait_status(&self, what: &str, mut holds: impl FnMut(&serde_json::Value) -> bool) {
        let mut last = serde_json::Value::Null;
        let deadline = Instant::now() + LIMIT;
        while !holds(&last) {
            assert!(Instant::now() < deadline, "{}: no {what}: {last:#}", self.name);
            std::thread::sleep(Duration::from_millis(50));
            last = self.status();
        }
    }

    /// Waits until a problem with this path is shown, and returns its reason.
    #[track_caller]
    pub fn wait_problem(&self, path: &str) -> String {
        let mut reason = String::new();
        self.wait_status(&format!("problem of {path:?}"), |status| {
            let problems = status["problems"].as_array().cloned().unwrap_or_default();
            let found = problems.iter().find(|problem| problem["path"] == path);
            if let Some(found) = found {
                reason = found["reason"].as_str().unwrap().to_owned();
            }
            found.is_some()
        });
        reason
    }

    pub fn path(&self, path: impl AsRef<OsStr>) -> PathBuf {
        self.folder.join(path.as_ref())
    }

    /// Writes a file, with its parent directories.
    #[track_caller]
    pub fn write(&self, path: impl AsRef<OsStr>, content: impl AsRef<[u8]>) {
        let path = self.path(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(&path, content).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    }

    #[track_caller]
    pub fn mkdir(&self, path: impl AsRef<OsStr>) {
        fs::create_dir_all(self.path(path)).unwrap();
    }

    #[track_caller]
    pub fn link(&self, path: impl AsRef<OsStr>, target: impl AsRef<OsStr>) {
        symlink(target.as_ref(), self.path(path)).unwrap();
    }

    #[track_caller]
    pub fn fifo(&self, path: impl AsRef<OsStr>) {
        use rustix::fs::{CWD, FileType, Mode, mknodat};
        mknodat(CWD, self.path(path), FileType::Fifo, Mode::from_raw_mode(0o600), 0).unwrap();
    }

    #[track_caller]
    pub fn chmod(&self, path: impl AsRef<OsStr>, mode: u32) {
        fs::set_permissions(self.path(path), fs::Permissions::from_mode(mode)).unwrap();
    }

    #[track_caller]
    pub fn rename(&self, from: impl AsRef<OsStr>, to: impl AsRef<OsStr>) {
        let to = self.path(to);
        fs::create_dir_all(to.parent().unwrap()).unwrap();
        fs::rename(self.path(from), to).unwrap();
    }

    #[track_caller]
    pub fn remove(&self, path: impl AsRef<OsStr>) {
        let path = self.path(path);
        if fs::symlink_metadata(&path).unwrap().is_dir() {
            fs::remove_dir_all(path).unwrap();
        } else {
            fs::remove_file(path).unwrap();
        }
    }

    /// The content of a file as text, or nothing when there is none.
    pub fn read(&self, path: impl AsRef<OsStr>) -> Option<String> {
        let bytes = fs::read(self.path(path)).ok()?;
        Some(String::from_utf8_lossy(&bytes).into_owned())
    }

    pub fn exists(&self, path: impl AsRef<OsStr>) -> bool {
        fs::symlink_metadata(self.path(path)).is_ok()
    }

    /// Waits until a file holds this text.
    #[track_caller]
    pub fn wait_text(&self, path: &str, text: &str) {
        let deadline = Instant::now() + LIMIT;
        loop {
            let found = self.read(path);
            if found.as_deref() == Some(text) {
                return;
            }
            if Instant::now() > deadline {
                panic!(
                    "{}: {path} holds {found:?}, not {text:?}; the tree is\n{}",
                    self.name,
                    self.tree()
                );
            }
            std::thread::sleep(Duration::from_millis(15));
        }
    }

    /// Waits until nothing is at a path.
    #[track_caller]
    pub fn wait_gone(&self, path: &str) {
        eventually(&format!("{path} is gone on {}", self.name), || {
            (!self.exists(path)).then_some(())
        });
    }

    /// What is in the folder now.
    pub fn tree(&self) -> Tree {
        Tree::read(&self.folder)
    }

    /// The names in a directory of the folder that are conflict copies, sorted.
    pub fn conflict_copies(&self, dir: &str) -> Vec<String> {
        let mut names: Vec<_> = fs::read_dir(self.path(dir))
            .unwrap()
            .map(|entry| entry.unwrap().file_name().to_string_lossy().into_owned())
            .filter(|name| name.contains("(conflicted copy "))
            .collect();
        names.sort();
        names
    }

    /// What is left in the directories of the agent's own.
    pub fn leftovers(&self) -> Vec<PathBuf> {
        self.leftovers_in(&["staging", "trash", "parked"])
    }

    fn leftovers_in(&self, dirs: &[&str]) -> Vec<PathBuf> {
        dirs.iter()
            .filter_map(|dir| fs::read_dir(self.folder.join(".picloud").join(dir)).ok())
            .flatten()
            .map(|entry| entry.unwrap().path())
            .collect()
    }
}

impl Drop for Device {
    fn drop(&mut self) {
        if std::thread::panicking() {
            print_log(&self.name, &self.log());
        }
    }
}

/// Waits until all folders hold the same, without asking anyone to sync.
#[track_caller]
pub fn wait_same(devices: &[&Device]) -> Tree {
    let deadline = Instant::now() + LIMIT;
    loop {
        let first = devices[0].tree();
        let mut differences = String::new();
        for other in &devices[1..] {
            let found = first.difference(&other.tree());
            if !found.is_empty() {
                let _ = write!(differences, "{} and {}:\n{found}", devices[0].name, other.name);
            }
        }
        if differences.is_empty() {
            return first;
        }
        assert!(Instant::now() < deadline, "the folders differ:\n{differences}");
        std::thread::sleep(Duration::from_millis(50));
    }
}

/// Lets all devices sync until nothing changes any more; their folders must then be the same.
#[track_caller]
pub fn settle(devices: &[&Device]) -> Tree {
    // A conflict found by the last makes work for the first; each round settles one such step.
    let mut before: Option<Tree> = None;
    for _ in 0..10 {
        for device in devices {
            device.sync();
        }
        let tree = wait_same(devices);
        if before.as_ref().is_some_and(|before| before.difference(&tree).is_empty()) {
            return tree;
        }
        before = Some(tree);
    }
    panic!("the folders do not come to rest");
}

/// As [`settle`]; then each device must say that all is well, and the server that both agree, and
/// nothing half done may be left. What was replaced may stay in the trash for a little.
#[track_caller]
pub fn all_well(devices: &[&Device]) -> Tree {
    let tree = settle(devices);
    for device in devices {
        device.wait_status("end in sync", |status| {
            status["state"] == "in-sync" && status["folders"][0]["agrees"] == true
        });
        eventually("nothing half done is left", || {
            device.leftovers_in(&["staging", "parked"]).is_empty().then_some(())
        });
    }
    tree
}

/// Waits until even the trash of all devices is empty.
#[track_caller]
pub fn nothing_left(devices: &[&Device]) {
    for device in devices {
        eventually(&format!("nothing is left on {}", device.name), || {
            device.leftovers().is_empty().then_some(())
        });
    }
}

/// A number from the environment, for a test that can be made larger.
pub fn number(variable: &str, default: u64) -> u64 {
    std::env::var(variable).map_or(default, |text| text.parse().unwrap())
}

/// A name from bytes.
pub fn name(bytes: &[u8]) -> &OsStr {
    OsStr::from_bytes(bytes)
}

/// Today as conflict copies say it.
pub fn today() -> String {
    jiff::Zoned::now().with_time_zone(jiff::tz::TimeZone::UTC).strftime("%Y-%m-%d").to_string()
}

/// A small generator for tests that play at random: xorshift, its seed printed by the caller.
#[derive(Debug, Clone)]
pub struct Dice(u64);

impl Dice {
    pub fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    /// A number below `bound`.
    pub fn below(&mut self, bound: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 11) % bound
    }

    /// Bytes that do not compress.
    pub fn bytes(&mut self, len: usize) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(len + 8);
        while bytes.len() < len {
            self.below(2);
            bytes.extend_from_slice(&self.0.to_be_bytes());
        }
        bytes.truncate(len);
        bytes
    }
}
