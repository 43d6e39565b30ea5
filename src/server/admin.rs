//! What the person who runs the server does: accounts, quotas, invitations, devices, held deletions.
//!
//! All of it works on the database alone, so that it is the same whether a server runs or not; a
//! running one notices within a second what concerns its connections. Nothing here prints.

use std::path::Path;
use std::sync::Arc;

use super::accounts::{check_password, check_user_name, hash_password, hash_secret, random};
use super::clock::now_ms;
use super::config::Config;
use super::gate::Decision;
use super::store::metadata::{
    Access, Database, Device, Drive, HeldRow, Metadata, OwnQuota, Result, User,
};
use super::store::{Layout, StoreError, transact};
use crate::model::{DeviceId, DriveId, JoinLink, Lineage, Usage, UserId};
use crate::protocol::message::FailureCode;
use crate::protocol::{ServerIdentity, TlsError, generate_certificate};

/// Makes an account with its personal drive; the password is a hash.
///
/// # Errors
/// When the name is not legal or taken.
pub fn add_user(metadata: &mut dyn Metadata, name: &str, password: Option<&str>) -> Result<User> {
    check_user_name(name)?;
    if metadata.user_by_name(name)?.is_some() {
        return Err(StoreError::request(
            FailureCode::Exists,
            format!("There is a user {name:?} already"),
        ));
    }
    let mut user = metadata.add_user(
        UserId::from_bytes(random()?),
        name,
        DriveId::from_bytes(random()?),
        Lineage::from_bytes(random()?),
        now_ms(),
    )?;
    if let Some(hash) = password {
        metadata.set_password(user.num, hash)?;
        user.password = Some(hash.to_owned());
    }
    Ok(user)
}

/// A one-time secret and until when it can be used, in milliseconds.
#[derive(Clone, Copy)]
pub struct Invitation {
    /// The secret.
    pub secret: [u8; 32],
    /// When it expires.
    pub expires_ms: i64,
}

impl std::fmt::Debug for Invitation {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Invitation").field("expires_ms", &self.expires_ms).finish_non_exhaustive()
    }
}

/// Makes an invitation for one more device of a user, or without a user one to register.
///
/// # Errors
/// When the database fails.
pub fn add_invitation(
    metadata: &mut dyn Metadata,
    user: Option<i64>,
    expires_secs: u64,
) -> Result<Invitation> {
    let secret = random()?;
    let now = now_ms();
    let life_ms = i64::try_from(expires_secs.saturating_mul(1000)).unwrap_or(i64::MAX);
    let expires_ms = now.saturating_add(life_ms);
    metadata.add_invitation(&hash_secret(&secret), user, expires_ms, now)?;
    Ok(Invitation { secret, expires_ms })
}

fn unknown_user(name: &str) -> StoreError {
    StoreError::request(FailureCode::NotFound, format!("There is no user {name:?}"))
}

/// Reads the server's certificate: the configured one, or its own, made when there is none.
///
/// # Errors
/// When a file cannot be read or made, or is no certificate.
pub fn identity(
    config: &Config,
    layout: &Layout,
) -> std::result::Result<ServerIdentity, IdentityError> {
    if let Some(identity) = existing_identity(config, layout)? {
        return Ok(identity);
    }
    let mut names = vec![public_host(config), "localhost".to_owned()];
    names.dedup();
    let (certificate, key) = generate_certificate(&names)?;
    let path = layout.identity();
    create_once(&path, &format!("{certificate}{key}"))?;
    // Another process may have been first.
    let pem = std::fs::read_to_string(&path).map_err(StoreError::file("read", &path))?;
    Ok(ServerIdentity::from_pem(&pem, &pem)?)
}

/// Reads the server's certificate; nothing when it is to have its own and there is none yet.
///
/// # Errors
/// When a file cannot be read, or is no certificate.
pub fn existing_identity(
    config: &Config,
    layout: &Layout,
) -> std::result::Result<Option<ServerIdentity>, IdentityError> {
    let read = |path: &Path| std::fs::read_to_string(path).map_err(StoreError::file("read", path));
    if let (Some(certificate), Some(key)) = (&config.tls.certificate, &config.tls.key) {
        return Ok(Some(ServerIdentity::from_pem(&read(certificate)?, &read(key)?)?));
    }
    let path = layout.identity();
    if !path.exists() {
        return Ok(None);
    }
    let pem = read(&path)?;
    Ok(Some(ServerIdentity::from_pem(&pem, &pem)?))
}

/// Returns the host of the address that join links name, without brackets.
#[must_use]
pub fn public_host(config: &Config) -> String {
    let public = public_address(config, config.server.listen.port());
    let host = public.rsplit_once(':').map_or(public.as_str(), |(host, _)| host);
    host.trim_start_matches('[').trim_end_matches(']').to_owned()
}

/// Why the server has no certificate.
#[derive(Debug, thiserror::Error)]
pub enum IdentityError {
    /// A file cannot be read or made.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// It is no certificate.
    #[error(transparent)]
    Tls(#[from] TlsError),
}

/// Makes a file for its owner only, whole or not at all, and durable; leaves one that is there.
fn create_once(path: &Path, text: &str) -> Result<()> {
    use std::io::Write;
    use std::os::unix::fs::OpenOptionsExt;
    let suffix: [u8; 8] = random()?;
    let temporary = path.with_extension(format!("{:016x}.tmp", u64::from_be_bytes(suffix)));
    let written = std::fs::OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(&temporary)
        .and_then(|mut file| {
            file.write_all(text.as_bytes())?;
            file.sync_all()
        })
        .and_then(|()| match std::fs::hard_link(&temporary, path) {
            Err(error) if error.kind() != std::io::ErrorKind::AlreadyExists => Err(error),
            _ => Ok(()),
        })
        .map_err(StoreError::file("create", path));
    std::fs::remove_file(&temporary).unwrap_or_default();
    written?;
    let dir = path.parent().unwrap_or_else(|| Path::new("."));
    std::fs::File::open(dir).and_then(|dir| dir.sync_all()).map_err(StoreError::file("sync", dir))
}

/// Returns the `HOST:PORT` that join links name, for a server listening on this port.
#[must_use]
pub fn public_address(config: &Config, port: u16) -> String {
    if let Some(public) = &config.server.public {
        return public.clone();
    }
    let ip = config.server.listen.ip();
    if !ip.is_unspecified() {
        return std::net::SocketAddr::new(ip, port).to_string();
    }
    let uname = rustix::system::uname();
    let host = uname.nodename().to_str().unwrap_or_default();
    let host = if host.is_empty() { "localhost" } else { host };
    format!("{host}:{port}")
}

/// A user as `user list` shows it.
#[derive(Debug, Clone)]
pub struct UserSummary {
    /// The account.
    pub user: User,
    /// Its personal drive.
    pub drive: Option<Drive>,
    /// How many devices it has.
    pub devices: usize,
    /// How much of its room is in use.
    pub usage: Usage,
}

/// The administration of one data directory.
pub struct Admin {
    config: Config,
    layout: Layout,
    database: Arc<dyn Database>,
}

impl std::fmt::Debug for Admin {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Admin").field("layout", &self.layout).finish_non_exhaustive()
    }
}

impl Admin {
    /// Opens the data directory of this configuration; makes it if there is none.
    ///
    /// # Errors
    /// When it cannot be opened, or is of a newer format.
    pub fn open(config: Config) -> Result<Self> {
        let layout = Layout::create(&config.server.data_dir)?;
        Ok(Self { database: layout.open_database()?, config, layout })
    }

    fn write<T>(&self, work: impl FnOnce(&mut dyn Metadata) -> Result<T>) -> Result<T> {
        transact(&mut *self.database.connect(Access::Write)?, work)
    }

    fn with_user<T>(
        &self,
        name: &str,
        work: impl FnOnce(&mut dyn Metadata, User) -> Result<T>,
    ) -> Result<T> {
        self.write(|metadata| {
            let user = metadata.user_by_name(name)?.ok_or_else(|| unknown_user(name))?;
            work(metadata, user)
        })
    }

    /// Makes an account; without a password it can be used through join links only.
    ///
    /// # Errors
    /// When the name or password is not legal, or the name is taken.
    pub fn add_user(&self, name: &str, password: Option<&str>) -> Result<User> {
        let hash = password.map(Self::hash).transpose()?;
        self.write(|metadata| add_user(metadata, name, hash.as_deref()))
    }

    fn hash(password: &str) -> Result<String> {
        check_password(password)?;
        hash_password(password)
    }

    /// Returns all accounts, by name.
    ///
    /// # Errors
    /// When the database fails.
    pub fn users(&self) -> Result<Vec<UserSummary>> {
        let default = self.config.accounts.quota();
        self.write(|metadata| {
            metadata
                .users()?
                .into_iter()
                .map(|user| {
                    Ok(UserSummary {
                        usage: metadata.usage(user.num, default)?,
                        drive: metadata.drives(user.num)?.into_iter().next(),
                        devices: metadata.devices(user.num)?.len(),
                        user,
                    })
                })
                .collect()
        })
    }

    /// Returns whether there is such an account.
    ///
    /// # Errors
    /// When the database fails.
    pub fn user_exists(&self, name: &str) -> Result<bool> {
        self.write(|metadata| Ok(metadata.user_by_name(name)?.is_some()))
    }

    /// Ends an account and all its devices. Its files stay in the data directory.
    ///
    /// # Errors
    /// When there is no such user.
    pub fn remove_user(&self, name: &str) -> Result<()> {
        self.with_user(name, |metadata, user| metadata.remove_user(user.num, now_ms()))
    }

    /// Sets an account's password.
    ///
    /// # Errors
    /// When there is no such user, or the password is not legal.
    pub fn set_password(&self, name: &str, password: &str) -> Result<()> {
        let hash = Self::hash(password)?;
        self.with_user(name, |metadata, user| metadata.set_password(user.num, &hash))
    }

    /// Sets how much room a user has, if that is to change; returns what it is, and how much is in use.
    ///
    /// # Errors
    /// When there is no such user.
    pub fn quota(&self, name: &str, quota: Option<OwnQuota>) -> Result<(OwnQuota, Usage)> {
        let default = self.config.accounts.quota();
        self.with_user(name, |metadata, user| {
            if let Some(quota) = quota {
                metadata.set_quota(user.num, quota)?;
            }
            Ok((quota.unwrap_or(user.quota), metadata.usage(user.num, default)?))
        })
    }

    /// Ends TOTP for an account whose owner lost the authenticator.
    ///
    /// # Errors
    /// When there is no such user.
    pub fn disable_totp(&self, name: &str) -> Result<()> {
        self.with_user(name, |metadata, user| metadata.set_totp(user.num, None))
    }

    /// Makes a join link for one more device of a user, who is made if needed; without a user, a
    /// link with which a new user can register.
    ///
    /// # Errors
    /// When the name is not legal, or the certificate cannot be read or made.
    pub fn invite(&self, name: Option<&str>) -> std::result::Result<JoinLink, IdentityError> {
        let identity = identity(&self.config, &self.layout)?;
        let invitation = self.write(|metadata| {
            let user = match name {
                None => None,
                Some(name) => Some(match metadata.user_by_name(name)? {
                    Some(user) => user.num,
                    None => add_user(metadata, name, None)?.num,
                }),
            };
            add_invitation(metadata, user, self.config.accounts.link_expires_secs)
        })?;
        Ok(JoinLink {
            address: public_address(&self.config, self.config.server.listen.port()),
            fingerprint: identity.fingerprint(),
            secret: invitation.secret,
        })
    }

    /// Returns a user's devices that are not revoked, oldest first.
    ///
    /// # Errors
    /// When there is no such user.
    pub fn devices(&self, name: &str) -> Result<Vec<Device>> {
        self.with_user(name, |metadata, user| metadata.devices(user.num))
    }

    /// Revokes a user's device, named by its id or by its name where only one has it.
    ///
    /// # Errors
    /// When there is no such user or device, or several devices have that name.
    pub fn revoke(&self, name: &str, device: &str) -> Result<Device> {
        self.with_user(name, |metadata, user| {
            let devices = metadata.devices(user.num)?;
            let device = find_device(&devices, device)?.clone();
            metadata.revoke_device(device.num, now_ms())?;
            Ok(device)
        })
    }

    /// Returns the held deletions of a user's drives.
    ///
    /// # Errors
    /// When there is no such user.
    pub fn held(&self, name: &str) -> Result<Vec<HeldRow>> {
        self.with_user(name, |metadata, user| {
            let mut held = Vec::new();
            for drive in metadata.drives(user.num)? {
                held.extend(metadata.held(drive.num)?);
            }
            Ok(held)
        })
    }

    /// Takes in what is decided about the held deletions of a user's device.
    ///
    /// # Errors
    /// When there is no such user or device, or nothing of it is held.
    pub fn decide_held(&self, name: &str, device: &str, decision: Decision) -> Result<Device> {
        self.with_user(name, |metadata, user| {
            let mut decided = None;
            for drive in metadata.drives(user.num)? {
                let held = metadata.held(drive.num)?;
                let devices: Vec<Device> = held.into_iter().map(|held| held.device).collect();
                if let Ok(device) = find_device(&devices, device) {
                    metadata.decide_held(drive.num, device.num, decision, now_ms())?;
                    decided = Some(device.clone());
                }
            }
            decided.ok_or_else(|| {
                StoreError::request(
                    FailureCode::NotFound,
                    format!("No deletions of a device {device:?} are held"),
                )
            })
        })
    }
}

fn find_device<'a>(devices: &'a [Device], wanted: &str) -> Result<&'a Device> {
    let id = DeviceId::from_hex(wanted).ok();
    let mut found = devices.iter().filter(|device| Some(device.id) == id || device.name == wanted);
    let fail = |code, message: String| Err(StoreError::request(code, message));
    match (found.next(), found.next()) {
        (Some(device), None) => Ok(device),
        (None, _) => fail(FailureCode::NotFound, format!("There is no device {wanted:?}")),
        _ => fail(
            FailureCode::Exists,
            format!("Several devices are called {wanted:?}: name it by its id"),
        ),
    }
}
