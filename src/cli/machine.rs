//! What this machine is: its settings, and the device that commands speak as.
//!
//! Commands that ask the server speak as the device of the first folder of the settings, or else as the
//! device of a log-in without a folder, kept in `session.toml` beside the settings, mode 0600.

use std::io;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Component, Path, PathBuf};

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde::{Deserialize, Serialize};
use zeroize::Zeroizing;

use super::agent::{Agent, status_of};
use super::dial::Server;
use super::failure::{Exit, Failure};
use crate::agent::config::{Authority, Config, ConfigError, FolderConfig};
use crate::agent::control::connect;
use crate::agent::{credentials, durable};
use crate::client::ClientError;
use crate::client::Session;
use crate::model::{DeviceId, DriveId, Fingerprint, RelPath};
use crate::protocol::CallError;
use crate::protocol::message::FailureCode;

/// The newest format of `session.toml`.
const SESSION_VERSION: u32 = 1;

/// The settings of this machine.
#[derive(Debug)]
pub struct Machine {
    /// Where the settings are.
    pub config_path: PathBuf,
    /// The settings; nothing when there are none yet, or bad ones.
    pub config: Option<Config>,
    /// What is wrong with the settings. A running agent goes on with the ones it had, so what is
    /// asked of it must work all the same.
    wrong: Option<ConfigError>,
}

/// A path in a synced folder.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Spot {
    /// The folder, as the settings name it.
    pub folder: String,
    /// The path within it.
    pub path: RelPath,
}

/// The device that commands speak as.
#[derive(Debug)]
pub struct Account {
    /// Its server.
    pub server: Server,
    /// The account's name.
    pub user: String,
    /// The device.
    pub device: DeviceId,
    /// Its drive.
    pub drive: DriveId,
    /// The folder it belongs to; nothing for a log-in without one.
    pub folder: Option<FolderConfig>,
    token: credentials::Token,
}

#[derive(Serialize, Deserialize)]
struct Stored {
    version: u32,
    server: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    fingerprint: Option<Fingerprint>,
    user: String,
    device: DeviceId,
    drive: DriveId,
    token: String,
}

impl Machine {
    /// Reads the settings. What is wrong with them is told by what needs them.
    ///
    /// # Errors
    /// When nobody can say where they are.
    pub fn read(config: Option<&Path>) -> Result<Self, Failure> {
        let config_path = match config {
            Some(path) => std::path::absolute(path)
                .map_err(|error| Failure::file("Cannot use", path, &error))?,
            None => {
                Config::default_path().map_err(|error| Failure::from_error(Exit::Failed, &error))?
            }
        };
        let mut machine = Self { config_path, config: None, wrong: None };
        if !matches!(machine.config_path.try_exists(), Ok(false)) {
            match Config::load(&machine.config_path) {
                Ok(config) => machine.config = Some(config),
                Err(error) => machine.wrong = Some(error),
            }
        }
        Ok(machine)
    }

    /// Passes when there are settings, or none yet.
    ///
    /// # Errors
    /// When they are wrong.
    pub fn check_config(&self) -> Result<(), Failure> {
        match &self.wrong {
            Some(error) => Err(Failure::from_error(Exit::Failed, error)),
            None => Ok(()),
        }
    }

    /// Returns the agent of this machine.
    ///
    /// # Errors
    /// When there are no settings: then there is no agent either.
    pub fn agent(&self) -> Result<Agent, Failure> {
        let socket = match (&self.config, &self.wrong) {
            (Some(config), _) => config.socket.clone(),
            (None, Some(error)) => {
                let socket = self.socket_of_bad_config();
                // Nobody there: then what is wrong with the settings is what must be known.
                if connect(&socket).is_err() {
                    return Err(Failure::from_error(Exit::Failed, error));
                }
                socket
            }
            (None, None) => {
                // An agent whose settings were moved away goes on.
                let socket = self.config_path.with_file_name("agent.sock");
                if connect(&socket).is_ok() {
                    return Ok(Agent { config: self.config_path.clone(), socket });
                }
                if credentials::path_beside(&self.config_path).exists() {
                    return Err(Failure::new(
                        Exit::NoAgent,
                        format!(
                            "No agent is running: its settings {:?} are missing",
                            self.config_path
                        ),
                    )
                    .hint(
                        "bring the file back, or join the folder again; what is in the folder \
                         stays either way",
                    ));
                }
                return Err(Failure::new(
                    Exit::NoAgent,
                    "No agent is running: this machine is not joined yet",
                )
                .hint("`picloud setup LINK` joins it to a server; `picloud up` starts one here"));
            }
        };
        Ok(Agent { config: self.config_path.clone(), socket })
    }

    /// Returns whether the agent of these settings answers.
    #[must_use]
    pub fn is_agent_running(&self) -> bool {
        self.agent().is_ok_and(|agent| status_of(&agent.socket, &agent.config).is_some())
    }

    /// Returns the command that runs the agent of these settings.
    #[must_use]
    pub fn agent_command(&self) -> String {
        if Config::default_path().is_ok_and(|path| path == self.config_path) {
            "picloud-agent".to_owned()
        } else {
            format!("picloud-agent --config {}", self.config_path.display())
        }
    }

    /// The control socket, as far as settings with a fault elsewhere tell it.
    fn socket_of_bad_config(&self) -> PathBuf {
        let named = || {
            let text = std::fs::read_to_string(&self.config_path).ok()?;
            let document: toml_edit::DocumentMut = text.parse().ok()?;
            Some(document.get("control")?.get("socket")?.as_str()?.to_owned())
        };
        let socket = named().map_or_else(|| PathBuf::from("agent.sock"), PathBuf::from);
        self.config_path.with_file_name(socket)
    }

    fn session_path(&self) -> PathBuf {
        self.config_path.with_file_name("session.toml")
    }

    /// Returns the folders of the settings.
    #[must_use]
    pub fn folders(&self) -> &[FolderConfig] {
        self.config.as_ref().map_or(&[], |config| &config.folders)
    }

    /// Finds a path that a person typed in the synced folders: from the working directory, or else
    /// from the top of the folder, as other commands show it. Nothing when it is in none.
    ///
    /// # Errors
    /// When it is no path, or could be in several folders.
    pub fn find(&self, typed: &Path) -> Result<Option<Spot>, Failure> {
        let absolute = std::path::absolute(typed)
            .map_err(|error| Failure::file("Cannot use", typed, &error))?;
        let is_plain = |path: &Path| !path.components().any(|part| part == Component::ParentDir);
        // First by its names alone: a link on the way must not lead out of the folder unseen.
        let mut candidates = Vec::new();
        if is_plain(&absolute) {
            candidates.push(absolute.clone());
        }
        candidates.push(match (absolute.parent(), absolute.file_name()) {
            // The path itself may be a link, which is synced as one.
            (Some(parent), Some(name)) => real_path(parent).join(name),
            _ => real_path(&absolute),
        });
        candidates.push(real_path(&absolute));
        for path in &candidates {
            for folder in self.folders() {
                if let Ok(within) = path.strip_prefix(&folder.path) {
                    return self.spot(&folder.path, within).map(Some);
                }
            }
        }
        if typed.is_absolute() || !is_plain(typed) {
            return Ok(None);
        }
        let is_there = |folder: &&FolderConfig| folder.path.join(typed).symlink_metadata().is_ok();
        let mut found: Vec<&FolderConfig> = self.folders().iter().filter(is_there).collect();
        if found.is_empty() && self.folders().len() == 1 && absolute.symlink_metadata().is_err() {
            found.extend(self.folders());
        }
        match found.as_slice() {
            [] => Ok(None),
            [folder] => self.spot(&folder.path, typed).map(Some),
            [..] => Err(Failure::usage(format!("{typed:?} is in several synced folders"))
                .hint("name it by its whole path")),
        }
    }

    fn spot(&self, folder: &Path, within: &Path) -> Result<Spot, Failure> {
        let bytes = std::os::unix::ffi::OsStrExt::as_bytes(within.as_os_str());
        // As with `./a`.
        let bytes = bytes.strip_prefix(b"./").unwrap_or(bytes);
        let path = RelPath::parse(bytes).map_err(|error| {
            Failure::usage(format!("{within:?} cannot be a path in a synced folder"))
                .because(&error)
        })?;
        Ok(Spot { folder: folder.to_string_lossy().into_owned(), path })
    }

    /// Returns the device of this folder; without one, of the only folder there is, or of the
    /// log-in.
    ///
    /// # Errors
    /// When it is not synced, several could be meant, or its credentials cannot be read.
    pub fn account_of(&self, folder: Option<&Path>) -> Result<Account, Failure> {
        self.check_config()?;
        let named = |folders: &[FolderConfig]| {
            let paths = folders.iter().map(|folder| folder.path.display().to_string());
            paths.collect::<Vec<_>>().join(", ")
        };
        match (folder, self.folders()) {
            (None, [] | [_]) => self.account(),
            (None, folders) => Err(Failure::usage("Several folders are synced here")
                .caused_by(named(folders))
                .hint("say which is meant with --folder PATH")),
            (Some(path), folders) => {
                let absolute = std::path::absolute(path)
                    .map_err(|error| Failure::file("Cannot use", path, &error))?;
                let wanted = real_path(&absolute);
                match folders.iter().find(|folder| real_path(&folder.path) == wanted) {
                    Some(folder) => self.account_with(folder),
                    None if folders.is_empty() => {
                        Err(Failure::failed(format!("{path:?} is not synced; no folder is")))
                    }
                    None => Err(Failure::failed(format!("{path:?} is not a synced folder"))
                        .hint(format!("these are: {}", named(folders)))),
                }
            }
        }
    }

    fn account_with(&self, folder: &FolderConfig) -> Result<Account, Failure> {
        let path = credentials::path_beside(&self.config_path);
        let token = credentials::token(&path, folder.id)
            .map_err(|error| Failure::from_error(Exit::Failed, &error))?;
        Ok(Account {
            server: Server { address: folder.server.clone(), authority: folder.authority },
            user: folder.user.clone(),
            device: folder.device,
            drive: folder.drive,
            folder: Some(folder.clone()),
            token,
        })
    }

    /// Returns the device that commands speak as.
    ///
    /// # Errors
    /// When there is none, or its credentials cannot be read.
    pub fn account(&self) -> Result<Account, Failure> {
        self.check_config()?;
        if let Some(folder) = self.folders().first() {
            return self.account_with(folder);
        }
        self.session()?.ok_or_else(|| {
            Failure::failed("This machine is not joined to an account").hint(
                "`picloud join LINK` syncs a folder; `picloud login --server HOST:PORT --user NAME` \
                 logs in without one",
            )
        })
    }

    fn session(&self) -> Result<Option<Account>, Failure> {
        let path = self.session_path();
        let text = match std::fs::metadata(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Ok(metadata) if metadata.permissions().mode() & 0o077 != 0 => {
                return Err(Failure::failed(format!("Others can read {path:?}"))
                    .hint(format!("run chmod 600 {}", path.display())));
            }
            _ => std::fs::read_to_string(&path)
                .map(Zeroizing::new)
                .map_err(|error| Failure::file("Cannot read", &path, &error))?,
        };
        // What is wrong with it is not told: the line may hold the token.
        let damaged = || {
            Failure::failed(format!("{path:?} is damaged"))
                .hint("remove it and log in again with `picloud login`")
        };
        let session: Stored = toml::from_str(&text).map_err(|_| damaged())?;
        if session.version > SESSION_VERSION {
            return Err(Failure::failed(format!(
                "{path:?} has format {}, but this version reads up to {SESSION_VERSION}",
                session.version
            ))
            .hint("upgrade picloud on this device"));
        }
        let token = URL_SAFE_NO_PAD.decode(&session.token).map_err(|_| damaged())?;
        Ok(Some(Account {
            server: Server {
                address: session.server,
                authority: session.fingerprint.map_or(Authority::Public, Authority::Fingerprint),
            },
            user: session.user,
            device: session.device,
            drive: session.drive,
            folder: None,
            token: credentials::Token::new(token),
        }))
    }

    /// Refuses a log-in where commands speak as a folder's device already, or as an earlier log-in's.
    ///
    /// # Errors
    /// Says which.
    pub fn check_no_account(&self) -> Result<(), Failure> {
        self.check_config()?;
        if let Some(folder) = self.folders().first() {
            return Err(Failure::failed(format!(
                "This machine speaks as {:?} already, through its folder {:?}",
                folder.user, folder.path
            ))
            .hint("`picloud logout` ends that; --folder PATH adds another folder"));
        }
        if let Some(session) = self.session()? {
            return Err(Failure::failed(format!(
                "This machine is logged in as {:?} at {} already",
                session.user, session.server.address
            ))
            .hint("`picloud logout` ends that"));
        }
        Ok(())
    }

    /// Keeps a log-in without a folder.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub fn keep_session(&self, server: &Server, session: &Session) -> Result<(), Failure> {
        let path = self.session_path();
        let admitted = session.admitted();
        let stored = Stored {
            version: SESSION_VERSION,
            server: server.address.clone(),
            fingerprint: match server.authority {
                Authority::Fingerprint(fingerprint) => Some(fingerprint),
                Authority::Public => None,
            },
            user: admitted.user_name.clone(),
            device: admitted.device,
            drive: session.drive().id,
            token: URL_SAFE_NO_PAD.encode(new_token(session)?.as_bytes()),
        };
        let text = toml::to_string(&stored)
            .map(Zeroizing::new)
            .map_err(|error| Failure::failed(format!("Cannot write {path:?}")).because(&error))?;
        let write = || {
            if let Some(dir) = path.parent() {
                std::fs::create_dir_all(dir)?;
            }
            durable::replace(&path, text.as_bytes(), 0o600)
        };
        write().map_err(|error| Failure::file("Cannot write", &path, &error))
    }

    /// Forgets a log-in without a folder.
    ///
    /// # Errors
    /// When the file cannot be removed.
    pub fn forget_session(&self) -> Result<(), Failure> {
        let path = self.session_path();
        match std::fs::remove_file(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                Err(Failure::file("Cannot remove", &path, &error))
            }
            _ => Ok(()),
        }
    }
}

impl Account {
    /// Connects and continues as this device, on its drive.
    ///
    /// # Errors
    /// When the server cannot be reached, or refuses the device.
    pub async fn connect(&self) -> Result<Session, Failure> {
        let mut client = self.server.connect().await?;
        let resumed = client.resume(self.device, self.token.as_bytes()).await;
        resumed
            .and_then(|session| session.on_drive(self.drive))
            .map_err(|error| Failure::of_client(&error))
    }

    /// Ends this device's access; one that was revoked has none any more, and that is as good.
    ///
    /// # Errors
    /// When the server cannot be reached or does not agree: the device would stay in the account.
    pub async fn end_access(&self) -> Result<(), Failure> {
        let mut client = self.server.connect().await?;
        let ended = match client.resume(self.device, self.token.as_bytes()).await {
            Ok(session) => session.logout().await,
            Err(error) => Err(error),
        };
        match ended {
            Err(ClientError::Call(CallError::Failed(failure)))
                if failure.code == FailureCode::Revoked =>
            {
                Ok(())
            }
            ended => ended.map_err(|error| Failure::of_client(&error)),
        }
    }
}

/// Returns the token of a device that is new.
///
/// # Errors
/// When the server gave none.
pub fn new_token(session: &Session) -> Result<credentials::Token, Failure> {
    session
        .credentials()
        .map(|kept| credentials::Token::new(kept.token))
        .ok_or_else(|| Failure::failed("The server gave this device no token"))
}

/// The path with links resolved as far as it exists, so that folders can be compared.
#[must_use]
pub fn real_path(path: &Path) -> PathBuf {
    if let Ok(real) = path.canonicalize() {
        return real;
    }
    match (path.parent(), path.file_name()) {
        (Some(parent), Some(name)) => real_path(parent).join(name),
        _ => path.to_owned(),
    }
}
