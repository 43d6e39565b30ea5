//! The agent's unit: starting and stopping it for good, where there is a systemd that knows it.

use std::io::{self, Read as _};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use super::failure::Failure;
use super::machine::Machine;
use crate::agent::config::Config;

/// The unit of one person.
const UNIT: &str = "picloud-agent.service";

/// What a package puts beside the system's unit: it names the person.
const NAME_PERSON: &str = "picloud-agent-user";

/// How long a command may take: an agent that has much to bring up to date takes its time.
const PATIENCE: Duration = Duration::from_secs(120);

/// Who runs the agent from now on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Runs {
    /// One that runs already, whoever started it.
    Already,
    /// The person's own service manager.
    User,
    /// The system's.
    System(String),
    /// Nobody yet: why, for a person.
    Nobody(String),
}

/// Starts the person's own unit, now and at each log-in.
#[must_use]
pub fn start_for_user(machine: &Machine) -> Runs {
    if machine.is_agent_running() {
        return Runs::Already;
    }
    if !is_default(&machine.config_path) {
        return Runs::Nobody("the unit reads the settings at their usual place only".to_owned());
    }
    match systemctl(&["--user", "cat", UNIT]) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            return Runs::Nobody("there is no systemd here".to_owned());
        }
        Ok(Ok(())) => {}
        Err(_) | Ok(Err(_)) => {
            return Runs::Nobody(format!("systemd knows no {UNIT} for you"));
        }
    }
    match systemctl(&["--user", "enable", "--now", UNIT]) {
        Ok(Ok(())) => Runs::User,
        Ok(Err(reason)) => Runs::Nobody(format!("systemd does not start {UNIT}: {reason}")),
        Err(error) => Runs::Nobody(format!("systemd does not start {UNIT}: {error}")),
    }
}

/// Stops the person's own unit for good. Returns whether there was one to stop.
#[must_use]
pub fn stop_for_user(machine: &Machine) -> bool {
    is_default(&machine.config_path)
        && matches!(systemctl(&["--user", "is-enabled", UNIT]), Ok(Ok(())))
        && matches!(systemctl(&["--user", "disable", "--now", UNIT]), Ok(Ok(())))
}

/// Names the person of the system's unit and starts it; only root can.
#[must_use]
pub fn start_for(person: &str) -> Runs {
    match run(NAME_PERSON, &[person]) {
        Ok(Ok(())) => {}
        Ok(Err(reason)) => return Runs::Nobody(format!("{NAME_PERSON} failed: {reason}")),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            return Runs::Nobody(format!("the package's {NAME_PERSON} is not here"));
        }
        Err(error) => return Runs::Nobody(format!("{NAME_PERSON} does not run: {error}")),
    }
    match systemctl(&["enable", "--now", UNIT]) {
        Ok(Ok(())) => Runs::System(UNIT.to_owned()),
        Ok(Err(reason)) => Runs::Nobody(format!("systemd does not start {UNIT}: {reason}")),
        Err(error) => Runs::Nobody(format!("systemd does not start {UNIT}: {error}")),
    }
}

/// Stops the system's unit for good, when it is this person's. Returns whether there was one to stop.
#[must_use]
pub fn stop_for(person: &str) -> bool {
    let named = Command::new(NAME_PERSON).stdin(Stdio::null()).output();
    named.is_ok_and(|named| named.stdout.trim_ascii() == person.as_bytes())
        && matches!(systemctl(&["is-enabled", UNIT]), Ok(Ok(())))
        && matches!(systemctl(&["disable", "--now", UNIT]), Ok(Ok(())))
}

/// Whether a unit starts the agent after the next start of the machine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Enabled {
    /// The person's own; at log-in only, unless the person's services linger.
    User {
        /// Whether they do.
        lingers: bool,
    },
    /// The system's, of this name.
    System(String),
    /// None does.
    No,
    /// Units do not come into it: why.
    Unknown(&'static str),
}

/// Finds out which unit starts the agent of these settings, without changing anything.
#[must_use]
pub fn enabled(machine: &Machine) -> Enabled {
    if !is_default(&machine.config_path) {
        return Enabled::Unknown("the units read the settings at their usual place only");
    }
    // What `sd_booted` looks for.
    if !Path::new("/run/systemd/system").is_dir() {
        return Enabled::Unknown("this system does not run systemd");
    }
    let name = std::env::var("USER").unwrap_or_default();
    let is_enabled = |args: &[&str]| matches!(systemctl(args), Ok(Ok(())));
    if is_enabled(&["--user", "is-enabled", UNIT]) {
        let lingers =
            !name.contains('/') && Path::new("/var/lib/systemd/linger").join(&name).exists();
        return Enabled::User { lingers: lingers && !name.is_empty() };
    }
    let own = format!("picloud-agent@{name}.service");
    let systems = [own.as_str(), UNIT];
    match systems.into_iter().find(|unit| is_enabled(&["is-enabled", unit])) {
        Some(unit) => Enabled::System(unit.to_owned()),
        None => Enabled::No,
    }
}

fn is_default(config: &Path) -> bool {
    Config::default_path().is_ok_and(|path| path == config)
}

/// Runs `systemctl`. The inner error is what it says of its failure.
fn systemctl(args: &[&str]) -> io::Result<Result<(), String>> {
    run("systemctl", args)
}

fn run(program: &str, args: &[&str]) -> io::Result<Result<(), String>> {
    let mut child = Command::new(program)
        .args(args)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()?;
    let deadline = Instant::now() + PATIENCE;
    let status = loop {
        if let Some(status) = child.try_wait()? {
            break status;
        }
        if Instant::now() >= deadline {
            child.kill()?;
            child.wait()?;
            return Ok(Err(format!("no answer within {} seconds", PATIENCE.as_secs())));
        }
        std::thread::sleep(Duration::from_millis(20));
    };
    if status.success() {
        return Ok(Ok(()));
    }
    let mut said = Vec::new();
    if let Some(stderr) = child.stderr.take() {
        stderr.take(4096).read_to_end(&mut said)?;
    }
    let said = String::from_utf8_lossy(&said);
    let first = said.lines().find(|line| !line.trim().is_empty()).unwrap_or("it says nothing");
    Ok(Err(first.trim().to_owned()))
}

/// A person of this machine.
#[derive(Debug)]
pub struct Person {
    /// The log-in name.
    pub name: String,
    /// The home directory.
    pub home: PathBuf,
}

impl Person {
    /// Looks a person up; only for root, who acts for others.
    ///
    /// # Errors
    /// When it is not root who asks, or there is no such person.
    pub fn find(name: &str) -> Result<Self, Failure> {
        if !rustix::process::geteuid().is_root() {
            return Err(Failure::failed("Only root can set up another person's folder")
                .hint("run it with sudo; or as that person, without --person"));
        }
        let nobody = || Failure::failed(format!("There is no person {name:?} on this machine"));
        if name.starts_with('-') {
            return Err(nobody());
        }
        let found = Command::new("getent")
            .args(["passwd", name])
            .stdin(Stdio::null())
            .output()
            .map_err(|error| Failure::failed("Cannot run getent").because(&error))?;
        let line = String::from_utf8_lossy(&found.stdout).into_owned();
        let mut fields = line.trim_end().split(':');
        let (Some(name), Some(home)) = (fields.next(), fields.nth(4)) else {
            return Err(nobody());
        };
        if !home.starts_with('/') {
            return Err(nobody());
        }
        Ok(Self { name: name.to_owned(), home: PathBuf::from(home) })
    }

    /// Returns where the person's settings are.
    #[must_use]
    pub fn config(&self) -> PathBuf {
        self.home.join(".config/picloud/agent.toml")
    }

    /// Runs this very program as the person, with this terminal, and returns its exit code.
    ///
    /// # Errors
    /// When it cannot be run.
    pub fn run(&self, args: &[String]) -> Result<u8, Failure> {
        let failed = |error: &io::Error| {
            Failure::failed(format!("Cannot act as {:?}", self.name)).because(error)
        };
        let program = std::env::current_exe().map_err(|error| failed(&error))?;
        let status = Command::new("runuser")
            .args(["-u", &self.name, "--"])
            .arg(program)
            .args(args)
            .env("HOME", &self.home)
            .env("USER", &self.name)
            .env("LOGNAME", &self.name)
            .env_remove("XDG_CONFIG_HOME")
            .env_remove("PICLOUD_CONFIG")
            .current_dir(&self.home)
            .status()
            .map_err(|error| failed(&error))?;
        Ok(status.code().and_then(|code| u8::try_from(code).ok()).unwrap_or(1))
    }
}
