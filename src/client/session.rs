//! A device's session: who it is, and what concerns its account.

use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{SystemTime, UNIX_EPOCH};

use tokio::sync::mpsc;

use super::transfer::{Bulk, Meter};
use super::{ClientError, Result};
use crate::model::{BatchId, DeviceId, DriveId, IdSource, NodeId, Rev};
use crate::protocol::message::{
    Admitted, ApproveHeld, Batches, ChangePassword, DeviceInfo, DriveInfo, GetSpace, Held, Invite,
    Invited, ListBatches, ListDevices, ListHeld, Logout, RejectHeld, RevokeDevice, Space,
    TotpBegin, TotpConfirm, TotpDisable, UndoBatch, Undone,
};
use crate::protocol::{Connection, Push};

/// What a device needs to come back: to be kept like a password.
#[derive(Clone, PartialEq, Eq)]
pub struct Credentials {
    /// The device.
    pub device: DeviceId,
    /// Its token.
    pub token: Vec<u8>,
}

/// Leaves the token out, so that none gets into a log.
impl fmt::Debug for Credentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Credentials").field("device", &self.device).finish_non_exhaustive()
    }
}

/// A connection that speaks for a device of a user, and works on one drive of theirs.
///
/// Clones share the connection; it is closed when the last one is dropped.
#[derive(Clone)]
pub struct Session {
    pub(super) connection: Connection,
    admitted: Arc<Admitted>,
    pub(super) drive: DriveInfo,
    pub(super) bulk: Bulk,
    ids: Arc<Mutex<IdSource>>,
    pushes: Arc<Mutex<Option<mpsc::Receiver<Push>>>>,
}

impl fmt::Debug for Session {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Session")
            .field("user", &self.admitted.user_name)
            .field("device", &self.admitted.device_name)
            .field("drive", &self.drive.id)
            .finish_non_exhaustive()
    }
}

impl Session {
    pub(super) fn new(
        connection: Connection,
        pushes: Option<mpsc::Receiver<Push>>,
        admitted: Admitted,
    ) -> Result<Self> {
        let drive = admitted
            .drives
            .first()
            .cloned()
            .ok_or(ClientError::Nonsense("an account without a drive"))?;
        let mut seed = [0; 32];
        getrandom::fill(&mut seed).map_err(|error| ClientError::Local {
            action: "draw random numbers from",
            path: "/dev/urandom".into(),
            source: std::io::Error::other(error),
        })?;
        Ok(Self {
            bulk: Bulk::new(connection.clone(), drive.id),
            connection,
            admitted: Arc::new(admitted),
            drive,
            ids: Arc::new(Mutex::new(IdSource::new(seed))),
            pushes: Arc::new(Mutex::new(pushes)),
        })
    }

    /// Returns who the session speaks for.
    #[must_use]
    pub fn admitted(&self) -> &Admitted {
        &self.admitted
    }

    /// Returns what a new device must keep to come back; nothing after a resume.
    #[must_use]
    pub fn credentials(&self) -> Option<Credentials> {
        let token = self.admitted.token.clone()?;
        Some(Credentials { device: self.admitted.device, token })
    }

    /// Returns the drive that the session works on: the user's own, unless another was chosen.
    #[must_use]
    pub const fn drive(&self) -> &DriveInfo {
        &self.drive
    }

    /// Returns a session on another of the user's drives, over the same connection.
    ///
    /// # Errors
    /// When there is no such drive.
    pub fn on_drive(&self, drive: DriveId) -> Result<Self> {
        let found = self.admitted.drives.iter().find(|info| info.id == drive);
        let info = found.ok_or(ClientError::Nonsense("no such drive of this user"))?;
        let mut session = self.clone();
        session.drive = info.clone();
        session.bulk = self.bulk.on_drive(drive);
        Ok(session)
    }

    /// Counts, or slows down, the contents that this session moves from now on.
    #[must_use]
    pub fn with_meter(mut self, meter: Arc<dyn Meter>) -> Self {
        self.bulk = self.bulk.with_meter(meter);
        self
    }

    /// Returns what moves the contents of files to and from the drive.
    #[must_use]
    pub const fn bulk(&self) -> &Bulk {
        &self.bulk
    }

    /// Returns the connection.
    #[must_use]
    pub const fn connection(&self) -> &Connection {
        &self.connection
    }

    /// Takes the pushes of the connection, which only one can.
    pub(super) fn take_pushes(&self) -> Result<mpsc::Receiver<Push>> {
        let mut pushes = self.pushes.lock().unwrap_or_else(PoisonError::into_inner);
        pushes.take().ok_or(ClientError::Watching)
    }

    pub(super) fn fresh_id(&self) -> NodeId {
        let since = SystemTime::now().duration_since(UNIX_EPOCH);
        let ms = u64::try_from(since.unwrap_or_default().as_millis()).unwrap_or(u64::MAX);
        let mut ids = self.ids.lock().unwrap_or_else(PoisonError::into_inner);
        ids.node_id(ms)
    }

    /// Returns the devices of the account, oldest first.
    ///
    /// # Errors
    /// When the server cannot be asked.
    pub async fn devices(&self) -> Result<Vec<DeviceInfo>> {
        Ok(self.connection.call(&ListDevices {}).await?.devices)
    }

    /// Ends a device of the account, and its connections at once.
    ///
    /// # Errors
    /// When there is no such device.
    pub async fn revoke(&self, device: DeviceId) -> Result<()> {
        self.connection.call(&RevokeDevice { device }).await?;
        Ok(())
    }

    /// Makes a join link for one more device of this account.
    ///
    /// # Errors
    /// When the server does not allow it.
    pub async fn invite(&self) -> Result<Invited> {
        Ok(self.connection.call(&Invite {}).await?)
    }

    /// Ends this device: its token is void afterwards.
    ///
    /// # Errors
    /// When the server cannot be reached.
    pub async fn logout(&self) -> Result<()> {
        self.connection.call(&Logout {}).await?;
        Ok(())
    }

    /// Sets a new password.
    ///
    /// # Errors
    /// When the old one is wrong or the new one too short.
    pub async fn change_password(&self, old: &str, new: &str) -> Result<()> {
        let (old, new) = (old.to_owned(), new.to_owned());
        self.connection.call(&ChangePassword { old, new }).await?;
        Ok(())
    }

    /// Begins to set up TOTP: returns the `otpauth` URI for an authenticator app. It counts once
    /// [`Session::totp_confirm`] has shown that the app has it.
    ///
    /// # Errors
    /// When TOTP is in force already.
    pub async fn totp_begin(&self) -> Result<String> {
        Ok(self.connection.call(&TotpBegin {}).await?.uri)
    }

    /// Puts TOTP in force.
    ///
    /// # Errors
    /// When the code is wrong.
    pub async fn totp_confirm(&self, code: &str) -> Result<()> {
        let code = code.to_owned();
        self.connection.call(&TotpConfirm { code }).await?;
        Ok(())
    }

    /// Ends TOTP for the account.
    ///
    /// # Errors
    /// When the password is wrong.
    pub async fn totp_disable(&self, password: &str) -> Result<()> {
        let password = password.to_owned();
        self.connection.call(&TotpDisable { password }).await?;
        Ok(())
    }

    /// Returns how much room there is on the server, and how much of the account's is in use.
    ///
    /// # Errors
    /// When the server cannot be asked.
    pub async fn space(&self) -> Result<Space> {
        let drive = self.drive.id;
        Ok(self.connection.call(&GetSpace { drive }).await?)
    }

    /// Returns the mass deletions of the drive that wait for a person.
    ///
    /// # Errors
    /// When the server cannot be asked.
    pub async fn held(&self) -> Result<Vec<Held>> {
        let drive = self.drive.id;
        Ok(self.connection.call(&ListHeld { drive }).await?.held)
    }

    /// Lets a device's held deletions pass when it asks again.
    ///
    /// # Errors
    /// When there are none.
    pub async fn approve(&self, device: DeviceId) -> Result<()> {
        let drive = self.drive.id;
        self.connection.call(&ApproveHeld { drive, device }).await?;
        Ok(())
    }

    /// Refuses a device's held deletions: the device puts the files back.
    ///
    /// # Errors
    /// When there are none.
    pub async fn reject(&self, device: DeviceId) -> Result<()> {
        let drive = self.drive.id;
        self.connection.call(&RejectHeld { drive, device }).await?;
        Ok(())
    }

    /// Returns the newest batches of the drive: what devices changed in one burst each. At most
    /// `count`, with changes up to a rev only when one is named.
    ///
    /// # Errors
    /// When the server cannot be asked.
    pub async fn batches(&self, upto: Option<Rev>, count: u32) -> Result<Batches> {
        let drive = self.drive.id;
        Ok(self.connection.call(&ListBatches { drive, upto, count }).await?)
    }

    /// Says what it would come to to take a batch back.
    ///
    /// # Errors
    /// When there is no such batch.
    pub async fn preview_undo(&self, batch: BatchId) -> Result<Undone> {
        let drive = self.drive.id;
        let asked = UndoBatch { drive, batch, dry_run: true, approved: false };
        Ok(self.connection.call(&asked).await?)
    }

    /// Takes a batch back as one change; where that is a mass deletion, only if it is `approved`.
    ///
    /// # Errors
    /// When there is no such batch.
    pub async fn undo(&self, batch: BatchId, approved: bool) -> Result<Undone> {
        let drive = self.drive.id;
        let asked = UndoBatch { drive, batch, dry_run: false, approved };
        Ok(self.connection.call(&asked).await?)
    }
}
