//! What a person can type.

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand};

/// Keeps ~/PiCloud the same on all your devices, through a server you own
#[derive(Debug, Parser)]
#[command(name = "picloud", version, max_term_width = 100, arg_required_else_help = true)]
pub struct Cli {
    /// The agent's configuration [default: ~/.config/picloud/agent.toml]
    #[arg(long, global = true, value_name = "FILE", env = "PICLOUD_CONFIG")]
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
    /// Join this device to an account with a link
    Join(Join),
    /// Show how things stand
    Status {
        /// Go on showing each change
        #[arg(long)]
        watch: bool,
    },
    /// Wait until everything is on both sides
    Sync {
        /// Give up after this many seconds
        #[arg(long, value_name = "SECONDS")]
        timeout: Option<u64>,
    },
    /// List the conflict copies
    Conflicts,
    /// Stop transferring until `resume`
    Pause,
    /// Go on transferring
    Resume,
    /// Tell what happened to which file
    Log {
        /// Go on telling
        #[arg(short, long)]
        follow: bool,
        /// How many lines of the past
        #[arg(short = 'n', long, value_name = "N", default_value_t = 20)]
        lines: u32,
    },
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
    /// Make an account on a server, with a password
    Register(LogIn),
    /// Log in to an account with its password
    Login(LogIn),
    /// End this machine's access to the account
    Logout,
    /// Show the account and device that this machine is
    Whoami,
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
        #[arg(long, value_name = "FILE")]
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
        #[arg(long, value_name = "FILE")]
        answer_file: Option<PathBuf>,
    },
    /// Ask for the password alone again
    Disable {
        /// Read the password from this file; - for standard input
        #[arg(long, value_name = "FILE")]
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
    #[arg(long, value_name = "PATH")]
    pub folder: Option<PathBuf>,
    /// What to call this device [default: the host name]
    #[arg(long, value_name = "NAME")]
    pub device: Option<String>,
}

/// `picloud register` and `picloud login`.
#[derive(Debug, Args)]
pub struct LogIn {
    /// The server: HOST:PORT, or a join link
    #[arg(long, value_name = "HOST:PORT")]
    pub server: String,
    /// The fingerprint of the server's certificate, the part of a join link between `#` and `.`
    #[arg(long, value_name = "FINGERPRINT")]
    pub fingerprint: Option<String>,
    /// The account
    #[arg(long, value_name = "NAME", required_unless_present = "id_file")]
    pub user: Option<String>,
    /// Read the password from this file; - for standard input
    #[arg(long, value_name = "FILE", conflicts_with = "id_file")]
    pub password_file: Option<PathBuf>,
    /// A file whose name without its extension is the account and whose content is the password
    #[arg(long, value_name = "FILE", conflicts_with = "user")]
    pub id_file: Option<PathBuf>,
    /// Read answers to the server's questions from this file, one per line; - for standard input
    #[arg(long, value_name = "FILE")]
    pub answer_file: Option<PathBuf>,
    /// Sync this folder too, as `join` does
    #[arg(long, value_name = "PATH")]
    pub folder: Option<PathBuf>,
    /// What to call this device [default: the host name]
    #[arg(long, value_name = "NAME")]
    pub device: Option<String>,
}

/// `picloud up`.
#[derive(Debug, Args)]
pub struct Up {
    /// The folder to sync [default: ~/PiCloud]
    #[arg(long, value_name = "PATH")]
    pub folder: Option<PathBuf>,
    /// Where the server keeps its data [default: ~/.local/share/picloud/server]
    #[arg(long, value_name = "DIR")]
    pub data_dir: Option<PathBuf>,
    /// Where the server listens [default: 0.0.0.0:46000]
    #[arg(long, value_name = "ADDRESS:PORT")]
    pub listen: Option<String>,
    /// The HOST:PORT that join links name [default: this machine's address]
    #[arg(long, value_name = "HOST:PORT")]
    pub public: Option<String>,
    /// What to call this device [default: the host name]
    #[arg(long, value_name = "NAME")]
    pub device: Option<String>,
    /// The account [default: your login name]
    #[arg(long, value_name = "NAME")]
    pub user: Option<String>,
}
