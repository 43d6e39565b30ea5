//! The server's settings: `server.toml`, documented key by key in `config/server.toml`.
//!
//! Every key has a default, so an empty file is a legal one. An unknown key, a bad value or an
//! unreadable file is an error that names the file, the line and the key.

use std::net::{Ipv6Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::Deserialize;

use super::gate::GateLimits;
use super::store::metadata::Bounds;
use crate::model::{Wrong, check_log_filter, is_host_and_port};

/// The documented defaults.
const DOCUMENTED: &str = include_str!("../../config/server.toml");

/// More connections than this take more memory and descriptors than a server has.
const CONNECTIONS_MAX: usize = 100_000;

/// Why the settings could not be read.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file could not be read.
    #[error("Cannot read {path:?}")]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// A line of the file is wrong.
    #[error("{path:?}, line {line}{}: {reason}", key.as_ref().map(|key| format!(", key {key:?}")).unwrap_or_default())]
    Line {
        /// The file.
        path: PathBuf,
        /// The line, from 1.
        line: usize,
        /// The key, where the line has one.
        key: Option<String>,
        /// What is wrong with it.
        reason: String,
    },
}

/// All settings.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// Where the server listens and keeps its data.
    pub server: ServerSection,
    /// Who gets an account.
    pub accounts: AccountsSection,
    /// Bounds.
    pub limits: LimitsSection,
    /// A certificate of a public authority.
    pub tls: TlsSection,
    /// Where events are told.
    pub log: LogSection,
    /// Where numbers are told.
    pub metrics: MetricsSection,
}

/// `[server]`
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ServerSection {
    /// The address and port to listen on.
    pub listen: SocketAddr,
    /// The `HOST:PORT` that join links name; the machine's name and the port when not set.
    pub public: Option<String>,
    /// Where everything is kept.
    pub data_dir: PathBuf,
}

impl Default for ServerSection {
    fn default() -> Self {
        Self {
            listen: SocketAddr::from((Ipv6Addr::UNSPECIFIED, 46000)),
            public: None,
            data_dir: PathBuf::from("/var/lib/picloud"),
        }
    }
}

/// Who may register from a device.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Registration {
    /// Everybody who reaches the server.
    Open,
    /// Who has the secret of an invitation.
    #[default]
    Invitation,
    /// Nobody.
    Closed,
}

/// `[accounts]`
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct AccountsSection {
    /// Who may register from a device.
    pub registration: Registration,
    /// For how long a join link can be used, in seconds.
    pub link_expires_secs: u64,
    /// How much the files of a user may be together who has no quota of their own, in MiB; 0 for no
    /// limit.
    pub quota_mib: u64,
}

impl Default for AccountsSection {
    fn default() -> Self {
        Self { registration: Registration::default(), link_expires_secs: 3600, quota_mib: 0 }
    }
}

impl AccountsSection {
    /// Returns the quota of a user who has none of their own, in bytes, if there is one.
    #[must_use]
    pub fn quota(&self) -> Option<u64> {
        (self.quota_mib > 0).then(|| self.quota_mib.saturating_mul(1024 * 1024))
    }
}

/// `[limits]`
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct LimitsSection {
    /// The most connections at once.
    pub connections_max: usize,
    /// The most connections at once from one address.
    pub connections_per_address_max: usize,
    /// The most connections at once of one user.
    pub connections_per_user_max: usize,
    /// The most memory for requests that are being worked on, in MiB.
    pub memory_max_mib: u32,
    /// Contents are refused when less than this is free on the disk of `data_dir`, in MiB.
    pub disk_free_min_mib: u64,
    /// The span in which deletions of one device count as one act, in seconds.
    pub mass_delete_window_secs: u64,
    /// An act of at most this many deletions is never held; 0 turns the gate off.
    pub mass_delete_min: u64,
    /// An act that deletes at most this share of the drive is never held, 0 to 1.
    pub mass_delete_share: f64,
}

impl Default for LimitsSection {
    fn default() -> Self {
        let gate = GateLimits::default();
        Self {
            connections_max: 1000,
            connections_per_address_max: 200,
            connections_per_user_max: 100,
            memory_max_mib: 128,
            disk_free_min_mib: 256,
            mass_delete_window_secs: gate.window.as_secs(),
            mass_delete_min: gate.count_min,
            mass_delete_share: gate.share,
        }
    }
}

impl LimitsSection {
    /// Returns when deletions are held.
    #[must_use]
    pub const fn gate(&self) -> GateLimits {
        GateLimits {
            window: Duration::from_secs(self.mass_delete_window_secs),
            count_min: self.mass_delete_min,
            share: self.mass_delete_share,
        }
    }
}

/// `[tls]`
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct TlsSection {
    /// A PEM file with the certificate chain; the server makes its own when not set.
    pub certificate: Option<PathBuf>,
    /// The PEM file with its private key.
    pub key: Option<PathBuf>,
}

/// `[log]`
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct LogSection {
    /// The file that gets one line per event, beside standard error or the journal.
    pub file: Option<PathBuf>,
    /// What is told: `error`, `warn`, `info`, `debug`, `trace`, or directives by module.
    pub level: String,
}

impl Default for LogSection {
    fn default() -> Self {
        Self { file: None, level: "info".to_owned() }
    }
}

/// `[metrics]`
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct MetricsSection {
    /// The address and port at which `/metrics` and `/healthz` are answered; not at all when not set.
    pub listen: Option<SocketAddr>,
    /// Whether that may be an address that others reach.
    pub allow_others: bool,
}

impl Config {
    /// Returns what changes are judged by.
    #[must_use]
    pub fn bounds(&self) -> Bounds {
        Bounds { gate: self.limits.gate(), quota: self.accounts.quota() }
    }

    /// Reads a file. Relative paths in it are relative to the file's directory.
    ///
    /// # Errors
    /// When the file cannot be read, or a line of it is wrong.
    pub fn load(path: &Path) -> Result<Self, ConfigError> {
        let text = std::fs::read_to_string(path)
            .map_err(|source| ConfigError::Read { path: path.to_owned(), source })?;
        let mut config = Self::parse(&text, path)?;
        let dir = path.parent().unwrap_or_else(|| Path::new(""));
        let paths = [
            Some(&mut config.server.data_dir),
            config.tls.certificate.as_mut(),
            config.tls.key.as_mut(),
            config.log.file.as_mut(),
        ];
        for path in paths.into_iter().flatten() {
            *path = dir.join(&*path);
        }
        Ok(config)
    }

    /// Parses the text of the file at `path`.
    ///
    /// # Errors
    /// When a line of it is wrong.
    pub fn parse(text: &str, path: &Path) -> Result<Self, ConfigError> {
        let config: Self = toml::from_str(text).map_err(|error| {
            let start = error.span().map_or(0, |span| span.start);
            line_error(path, Wrong::of_toml(text, start, error.message(), DOCUMENTED))
        })?;
        config
            .check()
            .map_err(|(key, reason)| line_error(path, Wrong::at_key(text, key, &reason)))?;
        Ok(config)
    }

    /// Tells that what a key names cannot be used, with where the file at `path` sets it.
    #[must_use]
    pub fn cannot_use(path: Option<&Path>, key: &str, reason: &str) -> ConfigError {
        let path = path.unwrap_or_else(|| Path::new("the default settings"));
        let text = std::fs::read_to_string(path).unwrap_or_default();
        let mut wrong = Wrong::at_key(&text, key, reason);
        // Where it is not set, it is the default that is meant.
        wrong.key = Some(key.to_owned());
        line_error(path, wrong)
    }

    /// Returns the names of the sections in which two settings differ.
    #[must_use]
    pub fn differs_in(&self, other: &Self) -> Vec<&'static str> {
        [
            ("server", self.server != other.server),
            ("accounts", self.accounts != other.accounts),
            ("limits", self.limits != other.limits),
            ("tls", self.tls != other.tls),
            ("log", self.log != other.log),
            ("metrics", self.metrics != other.metrics),
        ]
        .into_iter()
        .filter_map(|(name, differs)| differs.then_some(name))
        .collect()
    }

    /// What the types alone do not say. Returns the key and what is wrong with its value.
    fn check(&self) -> Result<(), (&'static str, String)> {
        if self.server.data_dir.as_os_str().is_empty() {
            return Err(("data_dir", "must name a directory".to_owned()));
        }
        let limits = &self.limits;
        let positive = [
            ("connections_max", limits.connections_max),
            ("connections_per_address_max", limits.connections_per_address_max),
            ("connections_per_user_max", limits.connections_per_user_max),
        ];
        for (key, value) in positive {
            if !(1..=CONNECTIONS_MAX).contains(&value) {
                return Err((key, format!("must be 1 to {CONNECTIONS_MAX}")));
            }
        }
        if !(16..=1 << 20).contains(&limits.memory_max_mib) {
            return Err(("memory_max_mib", "must be 16 to 1048576".to_owned()));
        }
        if limits.disk_free_min_mib > 1 << 30 {
            return Err(("disk_free_min_mib", "must be at most 1073741824".to_owned()));
        }
        if !(0.0..=1.0).contains(&limits.mass_delete_share) {
            return Err(("mass_delete_share", "must be 0 to 1".to_owned()));
        }
        if limits.mass_delete_window_secs > 31_536_000 {
            return Err(("mass_delete_window_secs", "must be at most 31536000, a year".to_owned()));
        }
        if !(1..=31_536_000).contains(&self.accounts.link_expires_secs) {
            return Err(("link_expires_secs", "must be 1 to 31536000, a year".to_owned()));
        }
        if self.accounts.quota_mib > 1 << 40 {
            return Err(("quota_mib", "must be at most 1099511627776".to_owned()));
        }
        if self.tls.certificate.is_some() != self.tls.key.is_some() {
            let key = if self.tls.key.is_some() { "key" } else { "certificate" };
            return Err((key, "certificate and key must be set both or neither".to_owned()));
        }
        if let Some(listen) = self.metrics.listen
            && !listen.ip().to_canonical().is_loopback()
            && !self.metrics.allow_others
        {
            let reason = format!(
                "{listen} can be reached by others, who need no password there: name a loopback \
                 address, or set allow_others = true as well"
            );
            return Err(("metrics.listen", reason));
        }
        check_log_filter(&self.log.level).map_err(|reason| ("level", reason))?;
        if self.server.public.as_deref().is_some_and(|public| !is_host_and_port(public)) {
            return Err(("public", "must be HOST:PORT, an IPv6 address in brackets".to_owned()));
        }
        Ok(())
    }
}

fn line_error(path: &Path, Wrong { line, key, reason }: Wrong) -> ConfigError {
    ConfigError::Line { path: path.to_owned(), line, key, reason }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<Config, String> {
        Config::parse(text, Path::new("server.toml")).map_err(|error| error.to_string())
    }

    #[test]
    fn the_documented_defaults_are_the_real_ones() {
        assert_eq!(parse(DOCUMENTED), Ok(Config::default()));
        // Every key is shown there, in force or behind a comment sign.
        let shown = DOCUMENTED
            .lines()
            .map(|line| {
                line.strip_prefix("#public").map_or(line.to_owned(), |rest| format!("public{rest}"))
            })
            .map(|line| {
                line.strip_prefix("#certificate")
                    .map_or(line.clone(), |rest| format!("certificate{rest}"))
            })
            .map(|line| line.strip_prefix("#key").map_or(line.clone(), |rest| format!("key{rest}")))
            .map(|line| {
                line.strip_prefix("#file").map_or(line.clone(), |rest| format!("file{rest}"))
            })
            .collect::<Vec<_>>()
            .join("\n");
        let shown = shown.replace("\n#listen", "\nlisten");
        let all = parse(&shown).unwrap();
        assert_eq!(all.metrics.listen.unwrap().port(), 46001);
        assert!(all.server.public.is_some() && all.tls.key.is_some() && all.log.file.is_some());
        for key in [
            "listen",
            "data_dir",
            "registration",
            "link_expires_secs",
            "quota_mib",
            "connections_max",
            "connections_per_address_max",
            "connections_per_user_max",
            "memory_max_mib",
            "disk_free_min_mib",
            "mass_delete_window_secs",
            "mass_delete_min",
            "mass_delete_share",
            "level",
            "allow_others",
        ] {
            let set = format!("\n{key} = ");
            assert!(DOCUMENTED.contains(&set), "{key} is not documented");
        }
    }

    #[test]
    fn an_error_names_file_line_and_key() {
        let error = |text| parse(text).unwrap_err();
        let unknown = error("[server]\n\nlistten = \"[::]:1\"\n");
        assert!(
            unknown.starts_with("\"server.toml\", line 3, key \"listten\": there is no key"),
            "{unknown}"
        );
        let wrong = error("[limits]\nconnections_max = \"many\"\n");
        assert!(wrong.starts_with("\"server.toml\", line 2, key \"connections_max\": "), "{wrong}");
        assert_eq!(
            error("[limits]\nmass_delete_min = 1\nmass_delete_share = 2.0"),
            "\"server.toml\", line 3, key \"mass_delete_share\": must be 0 to 1"
        );
        let metrics = "[server]\nlisten = \"[::]:1\"\n[metrics]\nlisten = \"192.0.2.1:46001\"\n";
        assert_eq!(
            error(metrics),
            "\"server.toml\", line 4, key \"listen\": 192.0.2.1:46001 can be reached by others, who need \
             no password there: name a loopback address, or set allow_others = true as well"
        );
        assert!(parse(&format!("{metrics}allow_others = true\n")).is_ok());
        assert!(error("[server]\nlisten = 5 5").starts_with("\"server.toml\", line 2"));
        assert!(
            error("[accounts]\nregistration = \"maybe\"").contains("line 2, key \"registration\"")
        );
    }
}
