//! The command line of `picloud-server`.
//!
//! What it administers belongs to the owner of the data directory. Run by root, it becomes that
//! user first, so that it never leaves a file there that the running server cannot read.

use std::ffi::OsString;
use std::io::{IsTerminal, Read};
use std::num::NonZeroU64;
use std::os::unix::fs::MetadataExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use anyhow::{Context, bail};
use clap::{Args, CommandFactory as _, Parser, Subcommand};
use rustix::fs::{Access, access};
use serde_json::json;

use super::accounts::PASSWORD_LEN_MAX;
use super::admin::Admin;
use super::clock::timestamp;
use super::config::{Config, Registration};
use super::doctor::{self, Patient};
use super::gate::Decision;
use super::store::Layout;
use super::store::metadata::{Device, OwnQuota};
use super::{log, service};
use crate::checkup::{Summary, bytes, counted, without_numbers};
use crate::model::Usage;

/// The version of the `--json` objects.
const JSON_VERSION: u32 = 1;

/// The settings file that is read when none is named, if it is there.
const CONFIG_PATH: &str = "/etc/picloud/server.toml";

/// The PiCloud server: keeps people's files, and brings them to their devices
#[derive(Debug, Parser)]
#[command(name = "picloud-server", version)]
struct Cli {
    /// The settings [default: /etc/picloud/server.toml, if there is one]
    #[arg(
        long,
        global = true,
        value_name = "FILE",
        allow_hyphen_values = true,
        env = "PICLOUD_SERVER_CONFIG"
    )]
    config: Option<PathBuf>,
    /// Print one JSON object per line
    #[arg(long, global = true)]
    json: bool,
    #[command(subcommand)]
    command: Option<Command>,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run the server (the default)
    Run,
    /// Accounts
    #[command(subcommand)]
    User(UserCommand),
    /// Print a join link for one more device of a user, who is made if needed
    Invite {
        /// The user
        #[arg(required_unless_present = "register")]
        user: Option<String>,
        /// Instead, print a link with which a new user can register
        #[arg(long, conflicts_with = "user")]
        register: bool,
    },
    /// Check what commonly goes wrong, and say what to do; safe while the server runs
    Doctor {
        /// Read everything that is stored, and compare it with its hash: takes as long as reading the disk
        #[arg(long)]
        deep: bool,
    },
    /// List a user's devices
    Devices {
        /// The user
        user: String,
    },
    /// End a device: its connections are closed at once
    Revoke {
        /// The user
        user: String,
        /// The device's id, or its name
        device: String,
    },
    /// List a user's deletions that wait for approval
    Held {
        /// The user
        user: String,
    },
    /// Let a device's waiting deletions pass
    Approve {
        /// The user
        user: String,
        /// The device's id, or its name
        device: String,
    },
    /// Refuse a device's waiting deletions: it puts the files back
    Reject {
        /// The user
        user: String,
        /// The device's id, or its name
        device: String,
    },
}

#[derive(Debug, Subcommand)]
enum UserCommand {
    /// Add a user; without a password option it is asked for
    Add {
        /// The name: 1 to 64 letters, digits or . _ @ -
        name: String,
        #[command(flatten)]
        password: PasswordSource,
        /// Set no password: the user joins devices by links only
        #[arg(long, conflicts_with_all = ["password_stdin", "password_file"])]
        no_password: bool,
    },
    /// List the users
    List,
    /// Remove a user and all devices; the files stay in the data directory
    Remove {
        /// The user
        name: String,
    },
    /// Set a user's password
    Passwd {
        /// The user
        name: String,
        #[command(flatten)]
        password: PasswordSource,
    },
    /// Show or set how much a user's files may be together
    Quota {
        /// The user
        name: String,
        /// A size such as `50GiB` or `500MiB`; `none` for no limit, `default` for what the settings say
        #[arg(value_name = "SIZE|none|default")]
        quota: Option<QuotaWord>,
    },
    /// One-time codes at log-in
    Totp {
        /// The user
        name: String,
        /// Turn them off, for a user who lost the authenticator
        #[arg(long, required = true)]
        disable: bool,
    },
}

/// A quota as it is typed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct QuotaWord(OwnQuota);

impl FromStr for QuotaWord {
    type Err = String;

    fn from_str(word: &str) -> Result<Self, String> {
        const USE: &str = "name a size such as 50GiB or 500MiB, or none, or default";
        let quota = match word {
            "none" => OwnQuota::None,
            "default" => OwnQuota::Default,
            _ => {
                let end = word.find(|c: char| !c.is_ascii_digit()).unwrap_or(word.len());
                let (digits, unit) = word.split_at(end);
                let shift = match unit {
                    "KiB" => 10,
                    "MiB" => 20,
                    "GiB" => 30,
                    "TiB" => 40,
                    _ => return Err(USE.to_owned()),
                };
                let count: u64 = digits.parse().map_err(|_| USE.to_owned())?;
                let bytes = count.checked_mul(1 << shift).filter(|it| *it <= Usage::USED_MAX);
                let bytes = bytes.ok_or("that is more than any disk holds: say none")?;
                let none = "for no limit say none; to let nothing in any more, say 1KiB";
                OwnQuota::Bytes(NonZeroU64::new(bytes).ok_or(none)?)
            }
        };
        Ok(Self(quota))
    }
}

/// Says how much of a user's room is in use.
fn usage_words(usage: &Usage) -> String {
    match usage.quota {
        Some(quota) => format!("{} of {} used", bytes(usage.used), bytes(quota)),
        None => format!("{} used", bytes(usage.used)),
    }
}

/// Where a password comes from. Never an argument: those are seen by everybody on the machine.
#[derive(Debug, Args)]
struct PasswordSource {
    /// Read the password from standard input
    #[arg(long)]
    password_stdin: bool,
    /// Read the password from a file (`-`: standard input)
    #[arg(
        long,
        value_name = "FILE",
        allow_hyphen_values = true,
        conflicts_with = "password_stdin"
    )]
    password_file: Option<PathBuf>,
}

impl PasswordSource {
    fn read(&self) -> anyhow::Result<String> {
        let stdin = std::io::stdin();
        let is_dash = |path: &PathBuf| path == Path::new("-");
        if self.password_stdin || self.password_file.as_ref().is_some_and(is_dash) {
            return first_line(stdin.lock()).context("Cannot read standard input");
        }
        if let Some(path) = &self.password_file {
            let file =
                std::fs::File::open(path).with_context(|| format!("Cannot read {path:?}"))?;
            return first_line(file).with_context(|| format!("Cannot read {path:?}"));
        }
        if !stdin.is_terminal() {
            bail!(
                "There is no terminal to ask for a password: give it with --password-stdin or \
                 --password-file FILE"
            );
        }
        let first =
            rpassword::prompt_password("Password: ").context("Cannot ask for a password")?;
        let again = rpassword::prompt_password("Again: ").context("Cannot ask for a password")?;
        if first != again {
            bail!("The two passwords differ");
        }
        Ok(first)
    }
}

fn first_line(source: impl Read) -> anyhow::Result<String> {
    let mut text = String::new();
    let limit = PASSWORD_LEN_MAX as u64 + 2;
    source.take(limit).read_to_string(&mut text)?;
    Ok(text.lines().next().unwrap_or_default().to_owned())
}

/// Returns what is wrong with a command line as one line, from the text for a person: what follows
/// its first paragraph is advice.
#[must_use]
pub fn usage_text(text: &str) -> String {
    let lines = text.trim_start_matches("error: ").lines().map(str::trim);
    lines.take_while(|line| !line.is_empty()).collect::<Vec<_>>().join(" ")
}

/// What the program is to print, and how it ends: 0 done, 1 failed, 2 wrong usage, 3 the
/// doctor has found a problem.
#[derive(Debug, PartialEq, Eq)]
pub struct Outcome {
    /// The exit code.
    pub code: u8,
    /// For standard output.
    pub stdout: String,
    /// For standard error.
    pub stderr: String,
}

impl Outcome {
    /// Tells a failure as an object as well, where that is wanted.
    fn add_json(&mut self, json: bool, message: &str) {
        if json {
            let object = json!({
                "type": "error",
                "version": JSON_VERSION,
                "exit": self.code,
                "message": message,
            });
            self.stdout = format!("{object}\n");
        }
    }
}

/// Returns what can be typed, for man pages and completions.
#[must_use]
pub fn parser() -> clap::Command {
    Cli::command()
}

/// Runs the program.
#[must_use]
pub fn execute(arguments: &[OsString]) -> Outcome {
    let mut outcome = Outcome { code: 0, stdout: String::new(), stderr: String::new() };
    // Also where the command line cannot be understood.
    let json = arguments.iter().skip(1).take_while(|word| *word != "--").any(|w| w == "--json");
    match Cli::try_parse_from(arguments) {
        Ok(cli) => match run(cli, arguments) {
            Ok(Printed { code, stdout, stderr }) => {
                outcome.code = code;
                outcome.stdout = stdout;
                outcome.stderr = stderr;
            }
            Err(error) => {
                // One line, the causes after the event.
                let text = without_numbers(&format!("{error:#}").replace('\n', " "));
                outcome.stderr = format!("Error: {text}\n");
                outcome.code = 1;
                outcome.add_json(json, &text);
            }
        },
        Err(error) if error.use_stderr() => {
            outcome.stderr = error.to_string();
            outcome.code = 2;
            outcome.add_json(json, &usage_text(&error.to_string()));
        }
        Err(help) => outcome.stdout = help.to_string(),
    }
    outcome
}

/// What a command that worked prints.
#[derive(Default)]
struct Printed {
    code: u8,
    stdout: String,
    stderr: String,
}

/// Returns what a person should know beside what a command does.
fn warning(command: &Command, config: &Config) -> String {
    let closed = config.accounts.registration == Registration::Closed;
    if closed && matches!(command, Command::Invite { user: None, .. }) {
        return "Warning: the server takes no registrations, so the link is of no use: the setting \
                `registration` in [accounts] is \"closed\"\n"
            .to_owned();
    }
    String::new()
}

fn run(cli: Cli, arguments: &[OsString]) -> anyhow::Result<Printed> {
    let path = match &cli.config {
        Some(path) => Some(path.as_path()),
        None => Some(Path::new(CONFIG_PATH)).filter(|path| path.exists()),
    };
    let loaded = path.map_or_else(|| Ok(Config::default()), Config::load);
    if let Some(Command::Doctor { deep }) = cli.command {
        if let Ok(config) = &loaded {
            become_owner(&config.server.data_dir, arguments)?;
        }
        return Ok(doctor(&Patient { config: loaded, path, deep }, cli.json));
    }
    let config = loaded?;
    become_owner(&config.server.data_dir, arguments)?;
    let data_dir = &config.server.data_dir;
    if let Ok(metadata) = std::fs::metadata(data_dir)
        && access(data_dir, Access::READ_OK | Access::WRITE_OK | Access::EXEC_OK).is_err()
    {
        bail!(
            "{data_dir:?} is its owner's only, user {}: run this as that user, or with sudo",
            metadata.uid()
        );
    }
    if let Err(error) = Layout::create(data_dir) {
        let reason = format!("{data_dir:?} cannot be used: {:#}", anyhow::Error::from(error));
        return Err(Config::cannot_use(path, "data_dir", &reason).into());
    }
    let command = cli.command.unwrap_or(Command::Run);
    if let Command::Run = command {
        log::start(&config.log)?;
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .enable_all()
            .build()
            .context("Cannot start the runtime")?;
        runtime.block_on(service::run(config, path))?;
        return Ok(Printed::default());
    }
    let stderr = warning(&command, &config);
    let stdout = administer(&Admin::open(config)?, command, cli.json)?;
    Ok(Printed { code: 0, stdout, stderr })
}

fn doctor(patient: &Patient<'_>, json: bool) -> Printed {
    let mut summary = Summary::default();
    let mut stdout = String::new();
    doctor::examine(patient, &mut |finding| {
        summary.add(&finding);
        let line = match json {
            true => finding.to_json().to_string(),
            false => finding.to_text(|_, word| word.to_owned()),
        };
        stdout.push_str(&line);
        stdout.push('\n');
    });
    let last = if json { summary.to_json().to_string() } else { summary.to_text() };
    stdout.push_str(&last);
    stdout.push('\n');
    Printed { code: if summary.problems > 0 { 3 } else { 0 }, stdout, stderr: String::new() }
}

/// Run by root, continues as the owner of the data directory.
fn become_owner(data_dir: &Path, arguments: &[OsString]) -> anyhow::Result<()> {
    if !rustix::process::geteuid().is_root() {
        return Ok(());
    }
    let Ok(metadata) = std::fs::metadata(data_dir) else {
        return Ok(());
    };
    if metadata.uid() == 0 {
        return Ok(());
    }
    let error = std::process::Command::new("/proc/self/exe")
        .args(arguments.iter().skip(1))
        .uid(metadata.uid())
        .gid(metadata.gid())
        .exec();
    Err(error)
        .with_context(|| format!("Cannot become user {}, who owns {data_dir:?}", metadata.uid()))
}

/// Does what is asked, and returns what to print.
fn administer(admin: &Admin, command: Command, json: bool) -> anyhow::Result<String> {
    let mut out = Lines { json, text: String::new() };
    match command {
        Command::Run | Command::Doctor { .. } => {}
        Command::User(command) => return user(admin, command, json),
        Command::Invite { user, .. } => {
            let link = admin.invite(user.as_deref())?.to_string();
            out.line(&link, &json!({"type": "invitation", "link": link}));
        }
        Command::Devices { user } => {
            for device in admin.devices(&user)? {
                out.device(&device);
            }
        }
        Command::Revoke { user, device } => {
            let device = admin.revoke(&user, &device)?;
            let text = format!("Revoked {} ({})", device.name, device.id);
            out.line(&text, &json!({"type": "revoked", "device": device.id.to_string()}));
        }
        Command::Held { user } => {
            for held in admin.held(&user)? {
                let mut text = format!(
                    "{}  {} deletions{} since {}{}  {}",
                    held.device.id,
                    held.deletions,
                    if held.earlier > 0 {
                        format!(" (and {} shortly before, which passed)", held.earlier)
                    } else {
                        String::new()
                    },
                    time(held.since_ms),
                    if held.rejected { ", rejected" } else { "" },
                    held.device.name
                );
                let examples: Vec<String> = held.examples.iter().map(ToString::to_string).collect();
                for example in &held.examples {
                    text.push_str(&format!("\n  {example:?}"));
                }
                out.line(
                    &text,
                    &json!({
                        "type": "held",
                        "device": held.device.id.to_string(),
                        "device_name": held.device.name,
                        "deletions": held.deletions,
                        "earlier": held.earlier,
                        "since": time(held.since_ms),
                        "rejected": held.rejected,
                        "examples": examples,
                    }),
                );
            }
        }
        Command::Approve { user, device } => {
            let device = admin.decide_held(&user, &device, Decision::Approve)?;
            let text = format!("The deletions of {} will pass", device.name);
            out.line(&text, &json!({"type": "approved", "device": device.id.to_string()}));
        }
        Command::Reject { user, device } => {
            let device = admin.decide_held(&user, &device, Decision::Reject)?;
            let text =
                format!("The deletions of {} are refused; it puts the files back", device.name);
            out.line(&text, &json!({"type": "rejected", "device": device.id.to_string()}));
        }
    }
    Ok(out.text)
}

fn user(admin: &Admin, command: UserCommand, json: bool) -> anyhow::Result<String> {
    let mut out = Lines { json, text: String::new() };
    match command {
        UserCommand::Add { name, password, no_password } => {
            super::accounts::check_user_name(&name)?;
            let password = if no_password { None } else { Some(password.read()?) };
            let user = admin.add_user(&name, password.as_deref())?;
            let text = format!("Added user {}", user.name);
            out.line(&text, &json!({"type": "user-added", "name": user.name}));
        }
        UserCommand::List => {
            for found in admin.users()? {
                let (name, drive) = (&found.user.name, found.drive.as_ref());
                let live = drive.map_or(0, |drive| drive.live);
                let text = format!(
                    "{name}  {}  {}  {}{}{}",
                    counted(found.devices as u64, "device", "devices"),
                    counted(live, "file or directory", "files and directories"),
                    usage_words(&found.usage),
                    if found.user.password.is_some() { "" } else { "  no password" },
                    if found.user.totp.is_some() { "  TOTP" } else { "" },
                );
                out.line(
                    &text,
                    &json!({
                        "type": "user",
                        "name": name,
                        "id": found.user.id.to_string(),
                        "created": time(found.user.created_ms),
                        "devices": found.devices,
                        "nodes": live,
                        "used": found.usage.used,
                        "quota": found.usage.quota,
                        "has_password": found.user.password.is_some(),
                        "totp": found.user.totp.is_some(),
                    }),
                );
            }
        }
        UserCommand::Remove { name } => {
            admin.remove_user(&name)?;
            out.line(
                &format!("Removed user {name}"),
                &json!({"type": "user-removed", "name": name}),
            );
        }
        UserCommand::Passwd { name, password } => {
            if !admin.user_exists(&name)? {
                bail!("There is no user {name:?}");
            }
            admin.set_password(&name, &password.read()?)?;
            let text = format!("Set the password of {name}");
            out.line(&text, &json!({"type": "password-set", "name": name}));
        }
        UserCommand::Quota { name, quota } => {
            let (own, usage) = admin.quota(&name, quota.map(|QuotaWord(quota)| quota))?;
            let whose = match own {
                OwnQuota::Default => "by the settings",
                OwnQuota::None | OwnQuota::Bytes(_) => "set for this user",
            };
            let limit = if usage.quota.is_none() { ", no limit" } else { "" };
            let text = format!("{name}: {}{limit} ({whose})", usage_words(&usage));
            out.line(
                &text,
                &json!({
                    "type": "quota",
                    "name": name,
                    "used": usage.used,
                    "quota": usage.quota,
                    "default": own == OwnQuota::Default,
                }),
            );
        }
        UserCommand::Totp { name, .. } => {
            admin.disable_totp(&name)?;
            let text = format!("{name} logs in without a code from now on");
            out.line(&text, &json!({"type": "totp-disabled", "name": name}));
        }
    }
    Ok(out.text)
}

fn time(ms: i64) -> String {
    let moment = timestamp(ms);
    jiff::Timestamp::new(moment.secs, i32::try_from(moment.nanos()).unwrap_or(0))
        .map_or_else(|_| format!("{ms} ms"), |time| time.to_string())
}

/// What will be printed: text for a person, or JSON lines for a program.
struct Lines {
    json: bool,
    text: String,
}

impl Lines {
    fn line(&mut self, text: &str, object: &serde_json::Value) {
        if self.json {
            let mut object = object.clone();
            object["version"] = JSON_VERSION.into();
            self.text.push_str(&object.to_string());
        } else {
            self.text.push_str(text);
        }
        self.text.push('\n');
    }

    fn device(&mut self, device: &Device) {
        let seen = device.last_seen_ms.map(time);
        let text = format!(
            "{}  added {}  last seen {}  {}",
            device.id,
            time(device.added_ms),
            seen.as_deref().unwrap_or("never"),
            device.name
        );
        self.line(
            &text,
            &json!({
                "type": "device",
                "id": device.id.to_string(),
                "name": device.name,
                "added": time(device.added_ms),
                "last_seen": seen,
            }),
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_value_may_begin_with_a_dash() {
        for words in [
            &["--config", "-c", "user", "list"][..],
            &["user", "add", "ann", "--password-file", "-p"],
            &["user", "passwd", "ann", "--password-file", "-p"],
            &["user", "add", "--no-password", "--", "-ann"],
            &["revoke", "ann", "--", "-d"],
            &["approve", "ann", "--", "-d"],
        ] {
            let all = std::iter::once("picloud-server").chain(words.iter().copied());
            let found = format!("{:?}", Cli::try_parse_from(all).unwrap());
            let value = words.iter().rfind(|word| word.starts_with('-') && word.len() < 6).unwrap();
            let value = if *value == "--" { "-d" } else { value };
            assert!(found.contains(&format!("{value:?}")), "{words:?}: {found}");
        }
    }

    #[test]
    fn a_quota_is_a_size_or_a_word() {
        let read = |word: &str| word.parse().map(|QuotaWord(quota)| quota);
        let bytes = |count| Ok(OwnQuota::Bytes(NonZeroU64::new(count).unwrap()));
        assert_eq!(read("50GiB"), bytes(50 << 30));
        assert_eq!(read("500MiB"), bytes(500 << 20));
        assert_eq!((read("none"), read("default")), (Ok(OwnQuota::None), Ok(OwnQuota::Default)));
        for bad in ["", "50", "GiB", "50 GiB", "-1GiB", "1.5GiB", "50GB", "0MiB", "9000000TiB"] {
            assert!(read(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_usage_error_names_what_is_missing() {
        let text = "error: the following required arguments were not provided:\n  <A>\n  <B>\n\n\
                    Usage: x <A> <B>\n";
        assert_eq!(usage_text(text), "the following required arguments were not provided: <A> <B>");
    }
}
