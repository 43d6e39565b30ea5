//! The server as a service: signals, readiness, watchdog.

use std::path::Path;
use std::time::Duration;

use sd_notify::NotifyState;
use tokio::signal::unix::{SignalKind, signal};
use tokio::time::{MissedTickBehavior, interval};

use super::config::Config;
use super::{ServerError, start};

/// How often the server looks after itself when no watchdog asks for more.
const CHECK_PERIOD: Duration = Duration::from_secs(30);

/// Runs a server until SIGTERM or SIGINT, telling the service manager what it does. At SIGHUP it
/// tells whether the settings at `path` are still those it runs with.
///
/// # Errors
/// When it cannot start, or a part of it fails.
pub async fn run(config: Config, path: Option<&Path>) -> Result<(), ServerError> {
    let no_signals = |_| ServerError::Failed("it cannot listen to signals");
    let mut terminate = signal(SignalKind::terminate()).map_err(no_signals)?;
    let mut interrupt = signal(SignalKind::interrupt()).map_err(no_signals)?;
    let mut hang_up = signal(SignalKind::hangup()).map_err(no_signals)?;
    tracing::info!(
        settings = path.map_or("the defaults".into(), |path| path.display().to_string()),
        data_dir = ?config.server.data_dir,
        registration = ?config.accounts.registration,
        "starting"
    );
    let server = start(config.clone()).await?;
    let status = format!("Listening on {}", server.address());
    tell(&[NotifyState::Ready, NotifyState::Status(&status)]);
    let period = sd_notify::watchdog_enabled().map_or(CHECK_PERIOD, |limit| limit / 3);
    let mut checks = interval(period.max(Duration::from_millis(100)));
    checks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let outcome = loop {
        tokio::select! {
            _ = terminate.recv() => break Ok(()),
            _ = interrupt.recv() => break Ok(()),
            _ = hang_up.recv() => compare(&config, path),
            // The watchdog is fed only by a server that can still write.
            _ = checks.tick() => match server.check().await {
                Ok(()) => tell(&[NotifyState::Watchdog]),
                Err(error) => break Err(error),
            },
        }
    };
    tell(&[NotifyState::Stopping]);
    server.stop().await;
    outcome
}

/// Tells whether the settings were edited since the server was started.
fn compare(config: &Config, path: Option<&Path>) {
    let Some(path) = path else {
        return tracing::info!("there is no file of settings: the server runs with the defaults");
    };
    match Config::load(path) {
        Ok(now) if now == *config => tracing::info!(?path, "the settings are those in force"),
        Ok(now) => tracing::warn!(
            ?path,
            "[{}] of the settings was edited: that takes effect when the server is started again",
            config.differs_in(&now).join("], [")
        ),
        Err(error) => {
            let cause = std::error::Error::source(&error).map(ToString::to_string);
            let cause = cause.unwrap_or_default();
            tracing::error!(%error, cause, "the server would not start with these settings");
        }
    }
}

/// Does nothing when no service manager listens.
fn tell(state: &[NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(state) {
        tracing::warn!(%error, "the service manager could not be told");
    }
}
