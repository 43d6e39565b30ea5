//! Where events go: to standard error (under systemd that is the journal), and to a file when the
//! settings name one.

use std::fs::OpenOptions;
use std::io::IsTerminal;
use std::os::unix::fs::OpenOptionsExt;
use std::sync::Mutex;

use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{EnvFilter, Layer, fmt};

use super::config::LogSection;
use super::store::StoreError;

/// Sends this process's events where the settings say; to be called once, by the program.
///
/// # Errors
/// When the file cannot be opened.
pub fn start(settings: &LogSection) -> Result<(), StoreError> {
    let filter = EnvFilter::try_new(&settings.level).unwrap_or_else(|_| EnvFilter::new("info"));
    // The journal has its own clock and colours.
    let in_journal = std::env::var_os("JOURNAL_STREAM").is_some();
    let to_stderr = fmt::layer()
        .with_writer(std::io::stderr)
        .with_ansi(std::io::stderr().is_terminal() && std::env::var_os("NO_COLOR").is_none())
        .with_target(false);
    let to_stderr = if in_journal { to_stderr.without_time().boxed() } else { to_stderr.boxed() };
    let to_file = match &settings.file {
        None => None,
        Some(path) => {
            let file = OpenOptions::new()
                .create(true)
                .append(true)
                .mode(0o640)
                .open(path)
                .map_err(StoreError::file("open the log", path))?;
            Some(fmt::layer().with_writer(Mutex::new(file)).with_ansi(false).with_target(false))
        }
    };
    tracing_subscriber::registry()
        .with(to_stderr)
        .with(to_file)
        .with(filter)
        .try_init()
        .map_err(|error| StoreError::Damaged(format!("the log was started twice: {error}")))
}
