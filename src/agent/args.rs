//! What `picloud-agent` can be told on its command line. Here, not beside its `main`, so that man page
//! and completions are written from it.

use std::path::PathBuf;

use clap::{CommandFactory as _, Parser};

/// Keeps the folders of this device the same as on your other devices
#[derive(Debug, Parser)]
#[command(name = "picloud-agent", version)]
pub struct Args {
    /// The settings; by default $XDG_CONFIG_HOME/picloud/agent.toml or ~/.config/picloud/agent.toml
    #[arg(long, value_name = "FILE", allow_hyphen_values = true)]
    pub config: Option<PathBuf>,
}

/// Returns what can be typed, for man pages and completions.
#[must_use]
pub fn parser() -> clap::Command {
    Args::command()
}
