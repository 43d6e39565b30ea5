//! What a person can type.

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand, ValueEnum};

use crate::model::{BatchId, Flow};

/// Keeps ~/PiCloud the same on all your devices, through a server you own
#[derive(Debug, Parser)]
#[command(name = "picloud", version, max_term_width = 100, arg_required_else_help = true)]
pub struct Cli {
    /// The agent's configuration [default: ~/.config/picloud/agent.toml]
    #[arg(
        long,
        global = true,
        value_name = "FILE",
        allow_hyphen_values = true,
        env = "PICLOUD_CONFIG"
    )]
    pub config: Option<PathBuf>,

    /// Answer with one JSON object per line
    #[arg(long, global = true)]
    pub json: bool,

    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// The commands.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Start a server and sync ~/PiCloud, all on this machine, and show how to join the next device
    Up(Up),
    /// Set this device up with a link: join, show what will happen, start the agent for good
    Setup(Setup),
    /// Join this device to an account with a link, and nothing else
    Join(Join),
    /// Show how things stand
    Status {
        /// Go on showing each change
        #[arg(long)]
        watch: bool,
        /// Whole sentences, one a line, without symbols and bars: for screen readers
        #[arg(long)]
        plain: bool,
    },
    /// Wait until everything is on both sides
    Sync {
        /// Give up after this many seconds
        #[arg(long, value_name = "SECONDS")]
        timeout: Option<u64>,
        /// Whole sentences, one a line, without symbols and bars: for screen readers
        #[arg(long)]
        plain: bool,
    },
    /// Say why a path is not in sync, and what to do
    Why {
        /// A path in a synced folder; as `status` shows it, too
        path: PathBuf,
    },
    /// Leave directories out on this device: the server and the others keep them
    Exclude {
        /// Directories in a synced folder, here or in the drive [default: list what is left out]
        dirs: Vec<PathBuf>,
    },
    /// Bring directories back that are left out on this device
    Include {
        /// Which, as `picloud exclude` lists them
        #[arg(required = true)]
        dirs: Vec<PathBuf>,
    },
    /// In a folder that only receives: take back what was changed here, so that it is what the drive is
    Revert(OneWay),
    /// In a folder that only sends: take back in the drive what others changed, on all devices
    Override(OneWay),
    /// List the conflicts, with whose each version is
    Conflicts,
    /// Settle a conflict: keep one version, or both
    Resolve(Resolve),
    /// Check what commonly goes wrong, and say what to do
    Doctor,
    /// Stop transferring until `resume`
    Pause,
    /// Go on transferring
    Resume,
    /// Tell what happened to which file
    Log(Log),
    /// Put a file on the server
    Put {
        /// The file here; - for standard input
        file: PathBuf,
        /// Its path there [default: the file's name]; a directory when it ends with /
        remote: Option<PathBuf>,
    },
    /// Get a file from the server
    Get {
        /// Its path there
        remote: PathBuf,
        /// The file here [default: the same name in this directory]; - for standard output
        file: Option<PathBuf>,
    },
    /// List files on the server
    Ls {
        /// With permissions, size and time
        #[arg(short, long)]
        long: bool,
        /// A directory or file there [default: the whole top level]
        path: Option<PathBuf>,
    },
    /// List what devices changed, burst by burst, or take one burst back
    Undo(Undo),
    /// Make an account on a server, with a password
    Register(LogIn),
    /// Log in to an account with its password
    Login(LogIn),
    /// End this machine's access to the account; the files stay
    Logout(OfFolder),
    /// Show the account and device that this machine is
    Whoami(OfFolder),
    /// The devices of the account
    Devices {
        /// List them, or revoke one
        #[command(subcommand)]
        command: Option<DevicesCommand>,
    },
    /// Make a link that joins one more device
    Link {
        /// No QR code, the link alone
        #[arg(long)]
        plain: bool,
    },
    /// Set a new password
    Passwd {
        /// Read the present and the new password, one per line, from this file; - for standard input
        #[arg(long, value_name = "FILE", allow_hyphen_values = true)]
        password_file: Option<PathBuf>,
    },
    /// Codes of an authenticator app as a second question at log-in
    Totp {
        /// Turn them on or off
        #[command(subcommand)]
        command: TotpCommand,
    },
    /// List mass deletions that wait for a person
    Held,
    /// Let the mass deletion of a device pass
    Approve {
        /// The device's name or id
        device: String,
    },
    /// Refuse the mass deletion of a device: the files are put back there
    Reject {
        /// The device's name or id
        device: String,
    },
}

/// Which of several folders is meant.
#[derive(Debug, Args)]
pub struct OfFolder {
    /// The synced folder that is meant, when there are several
    #[arg(long, value_name = "PATH", allow_hyphen_values = true)]
    pub folder: Option<PathBuf>,
}

/// `picloud revert` and `picloud override`.
#[derive(Debug, Args)]
pub struct OneWay {
    /// A path in the folder, with all below it [default: the whole folder]
    pub path: Option<PathBuf>,
    /// Show what it is about, and do nothing
    #[arg(short = 'n', long)]
    pub dry_run: bool,
    /// Do not ask
    #[arg(short, long, conflicts_with = "dry_run")]
    pub yes: bool,
}

/// Which way changes go.
#[derive(Debug, Clone, Copy, ValueEnum)]
pub enum DirectionArg {
    /// Both ways
    Both,
    /// What is changed here stays here
    ReceiveOnly,
    /// What others change is not carried out here
    SendOnly,
}

impl From<DirectionArg> for Flow {
    fn from(arg: DirectionArg) -> Self {
        match arg {
            DirectionArg::Both => Self::Both,
            DirectionArg::ReceiveOnly => Self::ReceiveOnly,
            DirectionArg::SendOnly => Self::SendOnly,
        }
    }
}

/// What can be done with devices.
#[derive(Debug, Subcommand)]
pub enum DevicesCommand {
    /// List them
    List,
    /// End one: its token is void and its connections close at once
    Revoke {
        /// The device's name or id
        device: String,
    },
}

/// What can be done with TOTP.
#[derive(Debug, Subcommand)]
pub enum TotpCommand {
    /// Ask for a code at each log-in from now on
    Enable {
        /// Read the first code from this file; - for standard input
        #[arg(long, value_name = "FILE", allow_hyphen_values = true)]
        answer_file: Option<PathBuf>,
    },
    /// Ask for the password alone again
    Disable {
        /// Read the password from this file; - for standard input
        #[arg(long, value_name = "FILE", allow_hyphen_values = true)]
        password_file: Option<PathBuf>,
    },
}

/// `picloud join`.
#[derive(Debug, Args)]
pub struct Join {
    /// The link that `picloud up`, `picloud link` or `picloud-server invite` printed; - to read it
    /// from standard input
    pub link: String,
    /// The folder to sync [default: ~/PiCloud]
    #[arg(long, value_name = "PATH", allow_hyphen_values = true)]
    pub folder: Option<PathBuf>,
    /// What to call this device [default: the host name]
    #[arg(long, value_name = "NAME", allow_hyphen_values = true)]
    pub device: Option<String>,
    /// Which way changes go [default: both, or as it was when the folder was synced before]
    #[arg(long, value_enum)]
    pub direction: Option<DirectionArg>,
}

/// `picloud setup`.
#[derive(Debug, Args)]
pub struct Setup {
    /// The link that `picloud up`, `picloud link` or `picloud-server invite` printed; - to read it
    /// from standard input
    #[arg(required_unless_present = "undo")]
    pub link: Option<String>,
    /// The folder to sync [default: ~/PiCloud]
    #[arg(long, value_name = "PATH", allow_hyphen_values = true)]
    pub folder: Option<PathBuf>,
    /// What to call this device [default: the host name]
    #[arg(long, value_name = "NAME", allow_hyphen_values = true)]
    pub device: Option<String>,
    /// Which way changes go [default: both, or as it was when the folder was synced before]
    #[arg(long, value_enum)]
    pub direction: Option<DirectionArg>,
    /// Do not ask
    #[arg(short, long)]
    pub yes: bool,
    /// Take it back: this device leaves the account and the agent is stopped; the files stay
    #[arg(long, conflicts_with_all = ["link", "device"])]
    pub undo: bool,
    /// As root: set it up for this person, with an agent that the system runs
    #[arg(long, value_name = "NAME")]
    pub person: Option<String>,
    /// Leave it to you to run the agent
    #[arg(long)]
    pub no_unit: bool,
    /// Says nothing of what came of it: root, who does it for a person, goes on from there and does.
    #[arg(long, hide = true, requires = "no_unit")]
    pub no_report: bool,
}

/// `picloud register` and `picloud login`.
#[derive(Debug, Args)]
pub struct LogIn {
    /// The server: HOST:PORT, or a join link
    #[arg(long, value_name = "HOST:PORT")]
    pub server: String,
    /// The fingerprint of the server's certificate, the part of a join link between `#` and `.`
    #[arg(long, value_name = "FINGERPRINT", allow_hyphen_values = true)]
    pub fingerprint: Option<String>,
    /// The account
    #[arg(
        long,
        value_name = "NAME",
        allow_hyphen_values = true,
        required_unless_present = "id_file"
    )]
    pub user: Option<String>,
    /// Read the password from this file; - for standard input
    #[arg(long, value_name = "FILE", allow_hyphen_values = true, conflicts_with = "id_file")]
    pub password_file: Option<PathBuf>,
    /// A file whose name without its extension is the account and whose content is the password
    #[arg(long, value_name = "FILE", allow_hyphen_values = true, conflicts_with = "user")]
    pub id_file: Option<PathBuf>,
    /// Read answers to the server's questions from this file, one per line; - for standard input
    #[arg(long, value_name = "FILE", allow_hyphen_values = true)]
    pub answer_file: Option<PathBuf>,
    /// Sync this folder too, as `join` does
    #[arg(long, value_name = "PATH", allow_hyphen_values = true)]
    pub folder: Option<PathBuf>,
    /// What to call this device [default: the host name]
    #[arg(long, value_name = "NAME", allow_hyphen_values = true)]
    pub device: Option<String>,
}

/// `picloud log`.
#[derive(Debug, Args)]
pub struct Log {
    /// Only what happened to this path, or in this directory
    pub path: Option<PathBuf>,
    /// Go on telling
    #[arg(short, long)]
    pub follow: bool,
    /// How many lines of the past [default: 20; with --since all]
    #[arg(short = 'n', long, value_name = "N")]
    pub lines: Option<u32>,
    /// Only from this time on: so long ago (2h, 3d), or 2026-11-24, 2026-11-24T10:30, 10:30
    #[arg(long, value_name = "TIME")]
    pub since: Option<String>,
    /// Only up to this time
    #[arg(long, value_name = "TIME")]
    pub until: Option<String>,
    /// Only what this device did, by its name
    #[arg(long, value_name = "NAME", allow_hyphen_values = true)]
    pub device: Option<String>,
}

/// `picloud resolve`.
#[derive(Debug, Args)]
pub struct Resolve {
    /// The conflict copy, or what it is a copy of
    pub path: PathBuf,
    /// What to keep [default: ask]; what is not kept is removed, as any deletion is
    #[arg(long, value_enum, value_name = "WHICH")]
    pub keep: Option<KeepWord>,
    /// Show what differs, for text
    #[arg(long)]
    pub diff: bool,
    /// Do not ask
    #[arg(short, long, requires = "keep")]
    pub yes: bool,
}

/// Which versions of a conflict to keep.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum KeepWord {
    /// What this device wrote
    Mine,
    /// What another device wrote
    Theirs,
    /// Both, the copy under a name of its own
    Both,
    /// The conflict copy, whoever wrote it
    Copy,
    /// What has the name now, whoever wrote it
    Original,
}

impl KeepWord {
    /// Returns it as it is typed.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Mine => "mine",
            Self::Theirs => "theirs",
            Self::Both => "both",
            Self::Copy => "copy",
            Self::Original => "original",
        }
    }
}

/// `picloud undo`.
#[derive(Debug, Args)]
pub struct Undo {
    /// What to take back, as the list names it [default: list the newest]
    pub batch: Option<BatchId>,
    /// Do not ask
    #[arg(short, long, requires = "batch")]
    pub yes: bool,
    /// Do it also when that deletes so much that it needs a person's approval
    #[arg(long, requires = "batch")]
    pub approve: bool,
    /// How many to list
    #[arg(short = 'n', long, value_name = "N", default_value_t = 10, conflicts_with = "batch",
          value_parser = clap::value_parser!(u32).range(1..=100))]
    pub lines: u32,
    /// List only what was changed before this batch
    #[arg(long, value_name = "BATCH", conflicts_with = "batch")]
    pub before: Option<BatchId>,
    /// The synced folder that is meant, when there are several
    #[arg(long, value_name = "PATH", allow_hyphen_values = true)]
    pub folder: Option<PathBuf>,
}

/// `picloud up`.
#[derive(Debug, Args)]
pub struct Up {
    /// The folder to sync [default: ~/PiCloud]
    #[arg(long, value_name = "PATH", allow_hyphen_values = true)]
    pub folder: Option<PathBuf>,
    /// Where the server keeps its data [default: ~/.local/share/picloud/server]
    #[arg(long, value_name = "DIR", allow_hyphen_values = true)]
    pub data_dir: Option<PathBuf>,
    /// Where the server listens [default: [::]:46000, every address of this machine]
    #[arg(long, value_name = "ADDRESS:PORT")]
    pub listen: Option<String>,
    /// The HOST:PORT that join links name [default: this machine's address]
    #[arg(long, value_name = "HOST:PORT")]
    pub public: Option<String>,
    /// What to call this device [default: the host name]
    #[arg(long, value_name = "NAME", allow_hyphen_values = true)]
    pub device: Option<String>,
    /// The account [default: your login name]
    #[arg(long, value_name = "NAME", allow_hyphen_values = true)]
    pub user: Option<String>,
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Parses a command line, and returns what came of it as text.
    #[track_caller]
    fn parsed(words: &[&str]) -> String {
        let words = std::iter::once("picloud").chain(words.iter().copied());
        format!("{:?}", Cli::try_parse_from(words).unwrap_or_else(|error| panic!("{error}")))
    }

    #[test]
    fn a_value_may_begin_with_a_dash() {
        // A fingerprint is base64url: one in 64 begins so. Names and paths may as well.
        let log_in = ["--server", "box:46000", "--fingerprint", "-J6P", "--device", "-d"];
        for command in ["login", "register"] {
            for more in [
                &["--user", "-u", "--password-file", "-p", "--answer-file", "-a"][..],
                &["--user", "-u", "--folder", "-f"],
                &["--id-file", "-i"],
            ] {
                let words: Vec<_> = [&[command], &log_in[..], more].concat();
                let found = parsed(&words);
                for value in words.iter().filter(|word| word.len() < 5 && word.starts_with('-')) {
                    assert!(found.contains(&format!("{value:?}")), "{words:?}: {found}");
                }
            }
        }
        for (words, value) in [
            (&["--config", "-c", "status"][..], "-c"),
            (&["status", "--config", "-c"], "-c"),
            (&["join", "picloud://x", "--folder", "-f"], "-f"),
            (&["join", "picloud://x", "--device", "--d"], "--d"),
            (&["join", "-"], "-"),
            (&["up", "--folder", "-f"], "-f"),
            (&["up", "--data-dir", "-d"], "-d"),
            (&["up", "--device", "-d"], "-d"),
            (&["up", "--user", "-u"], "-u"),
            (&["passwd", "--password-file", "-p"], "-p"),
            (&["logout", "--folder", "-f"], "-f"),
            (&["whoami", "--folder", "-f"], "-f"),
            (&["undo", "1-2", "--folder", "-f"], "-f"),
            (&["totp", "enable", "--answer-file", "-a"], "-a"),
            (&["totp", "disable", "--password-file", "-p"], "-p"),
        ] {
            let found = parsed(words);
            assert!(found.contains(&format!("{value:?}")), "{words:?}: {found}");
        }
    }

    #[test]
    fn after_two_dashes_everything_is_a_name() {
        for words in [
            &["put", "--", "-n", "--json"][..],
            &["put", "--", "--help"],
            &["get", "--", "-n", "-h"],
            &["ls", "--", "-l"],
            &["devices", "revoke", "--", "-d"],
            &["approve", "--", "-d"],
            &["join", "--", "-l"],
        ] {
            let found = parsed(words);
            let names = words.iter().skip_while(|word| **word != "--").skip(1);
            for name in names {
                assert!(found.contains(&format!("{name:?}")), "{words:?}: {found}");
            }
            assert!(!found.contains("json: true") && !found.contains("long: true"), "{found}");
        }
        // Without them a mistyped option is told, not taken for a file.
        assert!(Cli::try_parse_from(["picloud", "put", "--jsno"]).is_err());
        // `-` alone is standard input or output.
        assert!(parsed(&["put", "-", "there"]).contains("\"-\""));
        assert!(parsed(&["get", "there", "-"]).contains("\"-\""));
    }
}
