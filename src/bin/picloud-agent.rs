//! `picloud-agent`: the arguments, the log, the signals, and the service manager's protocol.

use std::error::Error;
use std::io::IsTerminal;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use clap::Parser as _;
use picloud::agent::args::Args;
use picloud::agent::config::{Config, ConfigError};
use picloud::agent::{self, LevelChanged, Options, RunningAgent};
use sd_notify::NotifyState;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{EnvFilter, Layer, fmt, reload};

fn main() -> ExitCode {
    match run(Args::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            let mut text = format!("picloud-agent: {error}");
            let mut cause = error.source();
            while let Some(error) = cause {
                text.push_str(&format!(": {error}"));
                cause = error.source();
            }
            if is_not_there(&*error) {
                text.push_str(
                    "\nHint: `picloud setup LINK` writes these settings, and starts the agent",
                );
            }
            eprintln!("{text}");
            ExitCode::FAILURE
        }
    }
}

/// Whether it failed because there are no settings.
fn is_not_there(error: &(dyn Error + 'static)) -> bool {
    matches!(error.downcast_ref(), Some(ConfigError::Read { source, .. })
        if source.kind() == std::io::ErrorKind::NotFound)
}

fn run(args: Args) -> Result<(), Box<dyn Error>> {
    let path = match args.config {
        Some(path) => std::path::absolute(path)?,
        None => Config::default_path()?,
    };
    let config = Config::load(&path)?;
    let mut options = Options::new(path);
    options.level_changed = Some(start_log(&config.log_level)?);
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .thread_name("picloud-agent")
        .build()?;
    let served = runtime.block_on(serve(options));
    // What still blocks on a disk that hangs must not keep the program from ending.
    runtime.shutdown_timeout(Duration::from_secs(2));
    served
}

/// Sends events to stderr, which under systemd is the journal. Returns how to change the level.
fn start_log(level: &str) -> Result<LevelChanged, Box<dyn Error>> {
    let (filter, handle) = reload::Layer::new(EnvFilter::try_new(level)?);
    // The journal has its own clock and colours.
    let in_journal = std::env::var_os("JOURNAL_STREAM").is_some();
    let to_stderr = fmt::layer()
        .with_writer(std::io::stderr)
        .with_ansi(std::io::stderr().is_terminal() && std::env::var_os("NO_COLOR").is_none())
        .with_target(false);
    let to_stderr = if in_journal { to_stderr.without_time().boxed() } else { to_stderr.boxed() };
    tracing_subscriber::registry().with(to_stderr).with(filter).try_init()?;
    Ok(Arc::new(move |level| {
        // The settings have checked it; a log that cannot be changed goes on as it was.
        if let Ok(filter) = EnvFilter::try_new(level)
            && let Err(error) = handle.reload(filter)
        {
            tracing::warn!(%error, "the level of the log stays as it was");
        }
    }))
}

async fn serve(options: Options) -> Result<(), Box<dyn Error>> {
    // Before anything begins, so that no signal ends the program in the middle.
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut hang_up = signal(SignalKind::hangup())?;
    let agent = agent::start(options).await?;
    let mut beats = tokio::time::interval(beat());
    beats.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let opened = agent.opened();
    tokio::pin!(opened);
    let mut is_ready = false;
    loop {
        tokio::select! {
            () = &mut opened, if !is_ready => {
                is_ready = true;
                tell(&[NotifyState::Ready]);
            }
            () = ended(&mut terminate, &mut interrupt) => break,
            _ = hang_up.recv() => agent.reload().await,
            _ = beats.tick() => watch_over(&agent),
        }
    }
    tell(&[NotifyState::Stopping]);
    agent.stop().await;
    Ok(())
}

async fn ended(terminate: &mut Signal, interrupt: &mut Signal) {
    tokio::select! {
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
    }
}

/// How often the service manager is told that all is well: thrice as often as it wants to hear it.
fn beat() -> Duration {
    sd_notify::watchdog_enabled().map_or(Duration::from_secs(20), |limit| limit / 3)
}

fn watch_over(agent: &RunningAgent) {
    if agent.is_alive() {
        tell(&[NotifyState::Watchdog]);
    } else {
        tracing::error!("a folder's engine has been silent for a minute");
    }
}

/// Tells the service manager, if there is one.
fn tell(state: &[NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(state) {
        tracing::warn!(%error, "cannot talk to the service manager");
    }
}
