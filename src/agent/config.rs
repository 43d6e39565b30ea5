//! The agent's settings: `agent.toml`, documented key by key in `config/agent.toml`.
//!
//! Every key of a section has a default, so an empty file is a legal one: an agent without folders.
//! An unknown key, a bad value or an unreadable file is an error that names the file, the line and
//! the key. Secrets are not here but in [`super::credentials`].

use std::ops::Range;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::Deserialize;
use toml::Spanned;

use super::durable;
use super::ignore;
use crate::model::{
    DeviceId, DriveId, Fingerprint, Flow, FolderId, Wrong, check_device_name, check_log_filter,
    is_host_and_port,
};

/// The documented defaults: what a new file begins as.
pub const DOCUMENTED: &str = include_str!("../../config/agent.toml");

/// What settings that are made on this machine begin with, if it is there: limits, for example, that
/// hold for everybody who joins here.
const SYSTEM_PATH: &str = "/etc/picloud/agent.toml";

/// Why the settings could not be read or written.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ConfigError {
    /// The file could not be read.
    #[error("Cannot read {path:?}")]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// The file could not be written.
    #[error("Cannot write {path:?}")]
    Write {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// A line of the file is wrong.
    #[error(
        "{path:?}, line {line}{}: {reason}",
        key.as_ref().map(|key| format!(", key {key:?}")).unwrap_or_default()
    )]
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
    /// A folder cannot be added.
    #[error("{path:?} lies in or around {other:?}, which is synced already: choose another folder")]
    Overlap {
        /// The new folder.
        path: PathBuf,
        /// The one that is there.
        other: PathBuf,
    },
    /// There is no home directory to look in.
    #[error("Neither XDG_CONFIG_HOME nor HOME is set: name the config with --config")]
    NoHome,
}

/// How the server of a folder is known to be the right one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Authority {
    /// By its certificate's fingerprint.
    Fingerprint(Fingerprint),
    /// By a public authority.
    Public,
}

/// Bounds on transfers, in KiB per second; 0 for none.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Limits {
    /// Out.
    pub upload_kib_per_s: u32,
    /// In.
    pub download_kib_per_s: u32,
}

/// A folder and what it is bound to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FolderConfig {
    /// Its own id.
    pub id: FolderId,
    /// Where it is.
    pub path: PathBuf,
    /// `HOST:PORT` of its server.
    pub server: String,
    /// How that is known.
    pub authority: Authority,
    /// The account.
    pub user: String,
    /// This device there.
    pub device: DeviceId,
    /// Its name there, as conflict copies show it.
    pub device_name: String,
    /// The drive.
    pub drive: DriveId,
    /// Patterns left out.
    pub ignore: Vec<String>,
    /// Whether it rests.
    pub paused: bool,
    /// Which way changes go.
    pub flow: Flow,
}

impl FolderConfig {
    /// Returns whether `other` is the same folder with settings that can change while it runs.
    #[must_use]
    pub fn same_binding(&self, other: &Self) -> bool {
        let bare = |folder: &Self| Self { ignore: Vec::new(), paused: false, ..folder.clone() };
        bare(self) == bare(other)
    }
}

/// All settings, with paths made absolute.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Config {
    /// What this device is called where a folder does not say otherwise.
    pub device_name: String,
    /// Bounds on transfers.
    pub limits: Limits,
    /// The file that tells what happened.
    pub log_file: Option<PathBuf>,
    /// The filter of the program's own log.
    pub log_level: String,
    /// How often folders are looked over.
    pub scan_interval: Duration,
    /// Where the databases are.
    pub state_dir: PathBuf,
    /// The control socket.
    pub socket: PathBuf,
    /// The folders.
    pub folders: Vec<FolderConfig>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct RawConfig {
    device: RawDevice,
    limits: Limits,
    log: RawLog,
    scan: RawScan,
    state: RawState,
    control: RawControl,
    folder: Vec<Spanned<RawFolder>>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct RawDevice {
    name: Option<Spanned<String>>,
}

#[derive(Debug, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct RawLog {
    file: Option<PathBuf>,
    level: Spanned<String>,
}

impl Default for RawLog {
    fn default() -> Self {
        Self { file: None, level: Spanned::new(0..0, "info".to_owned()) }
    }
}

#[derive(Debug, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct RawScan {
    interval_secs: Spanned<u64>,
}

impl Default for RawScan {
    fn default() -> Self {
        Self { interval_secs: Spanned::new(0..0, 3600) }
    }
}

#[derive(Debug, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct RawState {
    dir: PathBuf,
}

impl Default for RawState {
    fn default() -> Self {
        Self { dir: PathBuf::from("state") }
    }
}

#[derive(Debug, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct RawControl {
    socket: PathBuf,
}

impl Default for RawControl {
    fn default() -> Self {
        Self { socket: PathBuf::from("agent.sock") }
    }
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct RawFolder {
    id: Spanned<FolderId>,
    path: Spanned<PathBuf>,
    server: Spanned<String>,
    fingerprint: Option<Spanned<Fingerprint>>,
    authority: Option<Spanned<RawAuthority>>,
    user: String,
    device: DeviceId,
    device_name: Option<Spanned<String>>,
    drive: DriveId,
    #[serde(default)]
    ignore: Vec<Spanned<String>>,
    #[serde(default)]
    paused: bool,
    #[serde(default)]
    direction: Flow,
}

#[derive(Debug, Clone, Copy, Deserialize)]
#[serde(rename_all = "kebab-case")]
enum RawAuthority {
    Public,
}

/// What [`Config::parse`] found wrong: where in the text, and what.
type Found = (usize, String);

impl Config {
    /// Returns where the settings are when nobody says otherwise.
    ///
    /// # Errors
    /// When there is no home directory.
    pub fn default_path() -> Result<PathBuf, ConfigError> {
        let named =
            |name| std::env::var_os(name).map(PathBuf::from).filter(|path| path.is_absolute());
        named("XDG_CONFIG_HOME")
            .or_else(|| named("HOME").map(|home| home.join(".config")))
            .map(|dir| dir.join("picloud/agent.toml"))
            .ok_or(ConfigError::NoHome)
    }

    /// Reads the settings.
    ///
    /// # Errors
    /// When the file cannot be read, or a line of it is wrong.
    pub fn load(path: &Path) -> Result<Self, ConfigError> {
        let text = std::fs::read_to_string(path)
            .map_err(|source| ConfigError::Read { path: path.to_owned(), source })?;
        Self::parse(&text, path)
    }

    /// Parses the text of the file at `path`.
    ///
    /// # Errors
    /// When a line of it is wrong.
    pub fn parse(text: &str, path: &Path) -> Result<Self, ConfigError> {
        let raw: RawConfig = toml::from_str(text)
            .map_err(|error| toml_error(text, path, error.span(), error.message()))?;
        Self::check(raw, path)
            .map_err(|(start, reason)| line_error(path, Wrong::at(text, start, &reason)))
    }

    /// Checks what the types alone do not say, and fills in what follows from the machine.
    fn check(raw: RawConfig, path: &Path) -> Result<Self, Found> {
        let dir = std::path::absolute(path)
            .ok()
            .and_then(|path| path.parent().map(Path::to_owned))
            .unwrap_or_default();
        let device_name = match raw.device.name {
            Some(name) => legal_device_name(name)?,
            None => machine_name(),
        };
        check_log_filter(raw.log.level.get_ref())
            .map_err(|reason| (raw.log.level.span().start, reason))?;
        let interval_secs = *raw.scan.interval_secs.get_ref();
        if !(60..=31_536_000).contains(&interval_secs) {
            let reason = "must be 60 to 31536000, a year";
            return Err((raw.scan.interval_secs.span().start, reason.to_owned()));
        }
        let mut folders: Vec<FolderConfig> = Vec::with_capacity(raw.folder.len());
        for folder in raw.folder {
            let start = folder.span().start;
            let name = &device_name;
            folders.push(Self::check_folder(start, folder.into_inner(), name, &dir, &folders)?);
        }
        Ok(Self {
            device_name,
            limits: raw.limits,
            log_file: raw.log.file.map(|file| dir.join(expand(&file))),
            log_level: raw.log.level.into_inner(),
            scan_interval: Duration::from_secs(interval_secs),
            state_dir: dir.join(expand(&raw.state.dir)),
            socket: dir.join(expand(&raw.control.socket)),
            folders,
        })
    }

    fn check_folder(
        start: usize,
        raw: RawFolder,
        device_name: &str,
        dir: &Path,
        others: &[FolderConfig],
    ) -> Result<FolderConfig, Found> {
        let authority = match (raw.fingerprint, raw.authority) {
            (Some(fingerprint), None) => Authority::Fingerprint(fingerprint.into_inner()),
            (None, Some(_)) => Authority::Public,
            (Some(_), Some(authority)) => {
                let reason = "stands beside a fingerprint: keep one of the two";
                return Err((authority.span().start, reason.to_owned()));
            }
            (None, None) => {
                let reason = "a folder needs a fingerprint, or authority = \"public\"";
                return Err((start, reason.to_owned()));
            }
        };
        if !is_host_and_port(raw.server.get_ref()) {
            let reason = "must be HOST:PORT, an IPv6 address in brackets";
            return Err((raw.server.span().start, reason.to_owned()));
        }
        let path = dir.join(expand(raw.path.get_ref()));
        for other in others {
            if other.id == *raw.id.get_ref() {
                let reason = format!("is the id of {:?} already", other.path);
                return Err((raw.id.span().start, reason));
            }
            if path.starts_with(&other.path) || other.path.starts_with(&path) {
                let reason = format!("lies in or around {:?}, which is synced already", other.path);
                return Err((raw.path.span().start, reason));
            }
        }
        for pattern in &raw.ignore {
            ignore::check_pattern(pattern.get_ref())
                .map_err(|error| (pattern.span().start, error.to_string()))?;
        }
        Ok(FolderConfig {
            id: raw.id.into_inner(),
            path,
            server: raw.server.into_inner(),
            authority,
            user: raw.user,
            device: raw.device,
            device_name: match raw.device_name {
                Some(name) => legal_device_name(name)?,
                None => device_name.to_owned(),
            },
            drive: raw.drive,
            ignore: raw.ignore.into_iter().map(Spanned::into_inner).collect(),
            paused: raw.paused,
            flow: raw.direction,
        })
    }

    /// Returns where the state of a folder is kept.
    #[must_use]
    pub fn folder_state_dir(&self, folder: FolderId) -> PathBuf {
        self.state_dir.join(folder.to_string())
    }
}

fn legal_device_name(name: Spanned<String>) -> Result<String, Found> {
    match check_device_name(name.get_ref()) {
        Ok(()) => Ok(name.into_inner()),
        Err(reason) => Err((name.span().start, reason.to_owned())),
    }
}

/// Returns the text that new settings begin with: the machine's, at `system`, or else the documented
/// defaults.
fn first_text(system: &Path) -> Result<String, ConfigError> {
    let text = match std::fs::read_to_string(system) {
        Ok(text) => text,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            return Ok(DOCUMENTED.to_owned());
        }
        Err(source) => return Err(ConfigError::Read { path: system.to_owned(), source }),
    };
    // What is wrong is told of the file that it is in.
    let config = Config::parse(&text, system)?;
    if !config.folders.is_empty() {
        let reason =
            "a folder belongs to one person: `picloud join` adds it to that person's settings";
        return Err(line_error(system, Wrong::at_key(&text, "[[folder", reason)));
    }
    Ok(text)
}

/// Adds a folder to the settings at `path`, which are made when they do not exist; what a person
/// wrote there, comments too, stays as it is. A running agent takes the folder up by itself.
///
/// `device_name` is written when the file names no device yet.
///
/// # Errors
/// When the file is wrong as it is, the folder overlaps another, or the disk refuses.
pub fn add_folder(
    path: &Path,
    folder: &FolderConfig,
    device_name: Option<&str>,
) -> Result<(), ConfigError> {
    let text = match std::fs::read_to_string(path) {
        Ok(text) => text,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            first_text(Path::new(SYSTEM_PATH))?
        }
        Err(source) => {
            return Err(ConfigError::Read { path: path.to_owned(), source });
        }
    };
    let config = Config::parse(&text, path)?;
    for other in &config.folders {
        let apart = !folder.path.starts_with(&other.path) && !other.path.starts_with(&folder.path);
        if !apart || other.id == folder.id {
            return Err(ConfigError::Overlap {
                path: folder.path.clone(),
                other: other.path.clone(),
            });
        }
    }
    let mut document: toml_edit::DocumentMut =
        text.parse().map_err(|error: toml_edit::TomlError| {
            toml_error(&text, path, error.span(), error.message())
        })?;
    if let Some(name) = device_name {
        let device = document.entry("device").or_insert_with(toml_edit::table).as_table_like_mut();
        if let Some(device) = device
            && !device.contains_key("name")
        {
            device.insert("name", toml_edit::value(name));
        }
    }
    let mut table = toml_edit::Table::new();
    let folder_path = folder.path.to_str().ok_or_else(|| ConfigError::Write {
        path: path.to_owned(),
        source: std::io::Error::new(
            std::io::ErrorKind::InvalidInput,
            format!("the folder's path {:?} is not UTF-8", folder.path),
        ),
    })?;
    table.insert("id", toml_edit::value(folder.id.to_string()));
    table.insert("path", toml_edit::value(folder_path));
    table.insert("server", toml_edit::value(folder.server.as_str()));
    match folder.authority {
        Authority::Fingerprint(fingerprint) => {
            table.insert("fingerprint", toml_edit::value(fingerprint.to_string()));
        }
        Authority::Public => {
            table.insert("authority", toml_edit::value("public"));
        }
    }
    table.insert("user", toml_edit::value(folder.user.as_str()));
    table.insert("device", toml_edit::value(folder.device.to_string()));
    table.insert("device_name", toml_edit::value(folder.device_name.as_str()));
    table.insert("drive", toml_edit::value(folder.drive.to_string()));
    if !folder.ignore.is_empty() {
        let patterns: toml_edit::Array = folder.ignore.iter().map(String::as_str).collect();
        table.insert("ignore", toml_edit::value(patterns));
    }
    if folder.paused {
        table.insert("paused", toml_edit::value(true));
    }
    if folder.flow != Flow::Both {
        table.insert("direction", toml_edit::value(folder.flow.as_str()));
    }
    let folders = document
        .entry("folder")
        .or_insert_with(|| toml_edit::Item::ArrayOfTables(toml_edit::ArrayOfTables::new()));
    if let Some(folders) = folders.as_array_of_tables_mut() {
        folders.push(table);
    } else {
        let wrong = Wrong::at(&text, 0, "folder must be sections [[folder]]");
        return Err(line_error(path, wrong));
    }
    write_checked(path, &document.to_string())
}

/// Takes a folder out of the settings at `path`. Its files stay; a running agent lets go of it.
/// Returns whether it was there.
///
/// # Errors
/// When the file is wrong as it is, or the disk refuses.
pub fn remove_folder(path: &Path, folder: FolderId) -> Result<bool, ConfigError> {
    let text = std::fs::read_to_string(path)
        .map_err(|source| ConfigError::Read { path: path.to_owned(), source })?;
    Config::parse(&text, path)?;
    let mut document: toml_edit::DocumentMut =
        text.parse().map_err(|error: toml_edit::TomlError| {
            toml_error(&text, path, error.span(), error.message())
        })?;
    let id = folder.to_string();
    let mut is_removed = false;
    if let Some(folders) =
        document.get_mut("folder").and_then(toml_edit::Item::as_array_of_tables_mut)
    {
        let before = folders.len();
        folders.retain(|table| table.get("id").and_then(toml_edit::Item::as_str) != Some(&id));
        is_removed = folders.len() < before;
    }
    if is_removed {
        write_checked(path, &document.to_string())?;
    }
    Ok(is_removed)
}

/// Never leaves settings behind that cannot be read again.
fn write_checked(path: &Path, text: &str) -> Result<(), ConfigError> {
    Config::parse(text, path)?;
    let write = || {
        if let Some(dir) = path.parent() {
            std::fs::create_dir_all(dir)?;
        }
        durable::replace(path, text.as_bytes(), 0o644)
    };
    write().map_err(|source| ConfigError::Write { path: path.to_owned(), source })
}

/// Replaces a leading `~` by the home directory.
fn expand(path: &Path) -> PathBuf {
    match (path.strip_prefix("~"), std::env::var_os("HOME")) {
        (Ok(rest), Some(home)) => Path::new(&home).join(rest),
        _ => path.to_owned(),
    }
}

/// Returns the machine's name up to its first dot.
#[must_use]
pub fn machine_name() -> String {
    let name = rustix::system::uname().nodename().to_string_lossy().into_owned();
    let short: String = name
        .split('.')
        .next()
        .unwrap_or_default()
        .chars()
        .filter(|c| !c.is_control())
        .take(40)
        .collect();
    if check_device_name(&short).is_ok() { short } else { "device".to_owned() }
}

fn line_error(path: &Path, Wrong { line, key, reason }: Wrong) -> ConfigError {
    ConfigError::Line { path: path.to_owned(), line, key, reason }
}

fn toml_error(text: &str, path: &Path, span: Option<Range<usize>>, message: &str) -> ConfigError {
    let start = span.map_or(0, |span| span.start);
    line_error(path, Wrong::of_toml(text, start, message, DOCUMENTED))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<Config, String> {
        Config::parse(text, Path::new("/etc/agent.toml")).map_err(|error| error.to_string())
    }

    fn error(text: &str) -> String {
        parse(text).unwrap_err()
    }

    /// The documented file with its commented keys in force.
    fn all_shown() -> String {
        DOCUMENTED
            .lines()
            .map(|line| match line.strip_prefix('#') {
                Some(shown) if !shown.starts_with(' ') => format!("{shown}\n"),
                _ => format!("{line}\n"),
            })
            .collect()
    }

    #[test]
    fn the_documented_defaults_are_the_real_ones() {
        assert_eq!(parse(DOCUMENTED), parse(""));
        let all = parse(&all_shown()).unwrap();
        assert_eq!(all.device_name, "laptop");
        assert_eq!(all.log_file.as_deref(), Some(Path::new("/etc/picloud.log")));
        assert_eq!(all.state_dir, Path::new("/etc/state"));
        assert_eq!(all.socket, Path::new("/etc/agent.sock"));
        let [folder] = all.folders.as_slice() else {
            panic!("one folder is shown, not {:?}", all.folders);
        };
        assert!(folder.ignore.is_empty() && !folder.paused);
        // The last two keys of a folder are shown with their defaults: without them it is the same.
        let shown = all_shown();
        let needed: String = shown
            .lines()
            .filter(|line| !line.starts_with("ignore") && !line.starts_with("paused"))
            .map(|line| format!("{line}\n"))
            .collect();
        assert_eq!(parse(&needed).unwrap(), all);
    }

    #[test]
    fn an_error_names_file_line_and_key_and_says_what_would_be_right() {
        assert_eq!(
            error("[limits]\n\nupload = 5\n"),
            "\"/etc/agent.toml\", line 3, key \"upload\": there is no key or section `upload` \
             here; there are `upload_kib_per_s`, `download_kib_per_s`"
        );
        assert_eq!(
            error("[limits]\nupload_kib_per_s = \"fast\"\n"),
            "\"/etc/agent.toml\", line 2, key \"upload_kib_per_s\": \
             found \"fast\", expected a whole number from 0 to 4294967295, \
             as in: upload_kib_per_s = 0"
        );
        assert_eq!(
            error("[scan]\ninterval_secs = 1"),
            "\"/etc/agent.toml\", line 2, key \"interval_secs\": must be 60 to 31536000, a year"
        );
        assert_eq!(
            error("[device]\nname = \"\""),
            "\"/etc/agent.toml\", line 2, key \"name\": a device name has 1 to 64 bytes, \
             no slashes or control characters, and no space at its ends"
        );
        assert!(
            error("[log]\nlevel = 5 5").starts_with("\"/etc/agent.toml\", line 2, key \"level\"")
        );
        let all = all_shown();
        let line = all.lines().position(|line| line.starts_with("server")).unwrap() + 1;
        assert_eq!(
            error(&all.replace("home.example:46000", "home.example")),
            format!(
                "\"/etc/agent.toml\", line {line}, key \"server\": \
                 must be HOST:PORT, an IPv6 address in brackets"
            )
        );
        assert!(
            error(&all.replace("AAAAAAA", "A"))
                .ends_with("The server fingerprint is missing or damaged: copy the whole link"),
        );
        assert_eq!(
            error("[log]\nlevel = \"loud\""),
            "\"/etc/agent.toml\", line 2, key \"level\": \"loud\" is none of error, warn, info, \
             debug and trace, nor one of them by module, such as \"picloud=debug\""
        );
        let line = all.lines().position(|line| line.starts_with("ignore")).unwrap() + 1;
        assert_eq!(
            error(&all.replace("ignore = []", "ignore = [\"*.o\", \"[a-\"]")),
            format!(
                "\"/etc/agent.toml\", line {line}, key \"ignore\": The ignore pattern \"[a-\" is \
                 not valid: `[` has no `]` (write `\\[` for the sign itself)"
            )
        );
        assert_eq!(
            error(&all.replace("ignore = []", "ignore = [\n  \"x=y\",\n  \"!/\",\n]")),
            format!(
                "\"/etc/agent.toml\", line {}, key \"ignore\": The ignore pattern \"!/\" is not \
                 valid: it names nothing",
                line + 2
            )
        );
        let both = all.replace("user = ", "authority = \"public\"\nuser = ");
        assert!(
            error(&both)
                .ends_with("key \"authority\": stands beside a fingerprint: keep one of the two")
        );
    }

    #[test]
    fn a_folder_is_added_and_removed_without_touching_what_a_person_wrote() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("new/agent.toml");
        let folder = |number: u8, at: &str| FolderConfig {
            id: FolderId::from_bytes([number; 16]),
            path: dir.path().join(at),
            server: "[::1]:46000".to_owned(),
            authority: if number == 1 {
                Authority::Fingerprint(Fingerprint([4; 32]))
            } else {
                Authority::Public
            },
            user: "alice \"a\"".to_owned(),
            device: DeviceId::from_bytes([5; 16]),
            device_name: format!("pi {number}"),
            drive: DriveId::from_bytes([6; 16]),
            ignore: vec!["*.tmp".to_owned()],
            paused: number == 2,
            flow: if number == 2 { Flow::ReceiveOnly } else { Flow::Both },
        };
        add_folder(&path, &folder(1, "one"), Some("pi")).unwrap();
        add_folder(&path, &folder(2, "two"), Some("other name")).unwrap();
        let config = Config::load(&path).unwrap();
        assert_eq!(config.folders, [folder(1, "one"), folder(2, "two")]);
        assert_eq!(config.device_name, "pi", "a name that is there stays");
        let text = std::fs::read_to_string(&path).unwrap();
        for line in DOCUMENTED.lines().filter(|line| line.starts_with("# ")) {
            assert!(text.contains(line), "lost: {line}");
        }
        for inside in ["one", "one/deeper", ""] {
            let error = add_folder(&path, &folder(3, inside), None).unwrap_err();
            assert!(matches!(error, ConfigError::Overlap { .. }), "{error}");
        }
        add_folder(&path, &folder(3, "one-more"), None).unwrap();
        assert!(remove_folder(&path, folder(1, "").id).unwrap());
        assert!(!remove_folder(&path, folder(1, "").id).unwrap());
        let left = Config::load(&path).unwrap().folders;
        assert_eq!(left, [folder(2, "two"), folder(3, "one-more")]);
    }

    #[test]
    fn new_settings_begin_with_the_machines_own() {
        let dir = tempfile::tempdir().unwrap();
        let system = dir.path().join("agent.toml");
        assert_eq!(first_text(&system).unwrap(), DOCUMENTED);
        let ours = "# of this machine\n[limits]\nupload_kib_per_s = 7\n";
        std::fs::write(&system, ours).unwrap();
        assert_eq!(first_text(&system).unwrap(), ours);
        // What is wrong is told of that file, not of the person's.
        for (wrong, line) in [("[limits]\nuploads = 7\n", 2), ("\n\n[[folder]]\n", 3)] {
            std::fs::write(&system, wrong).unwrap();
            let told = first_text(&system).unwrap_err().to_string();
            assert!(told.starts_with(&format!("{system:?}, line {line}")), "{told}");
        }
        let folder = all_shown();
        std::fs::write(&system, &folder).unwrap();
        let told = first_text(&system).unwrap_err().to_string();
        assert!(told.ends_with("adds it to that person's settings"), "{told}");
    }
}
