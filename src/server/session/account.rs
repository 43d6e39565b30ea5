//! The requests about the account and its devices, and about held deletions.

use super::decode;
use super::reading::Answering;
use crate::model::{DeviceId, JoinLink};
use crate::protocol::IncomingFrame;
use crate::protocol::message::{
    ChangePassword, DeviceInfo, Devices, Done, FailureCode, Invite, Invited, ListDevices, Logout,
    Message, RevokeDevice, TotpBegin, TotpConfirm, TotpDisable, TotpSecret,
};
use crate::server::accounts;
use crate::server::admin;
use crate::server::clock::{now_ms, timestamp};
use crate::server::gate::Decision;
use crate::server::store::StoreError;
use crate::server::store::metadata::{Result, User};
use crate::server::throttle::Try;

fn not_found(message: &str) -> StoreError {
    StoreError::request(FailureCode::NotFound, message)
}

impl Answering {
    /// Answers a request that names no drive.
    pub(super) async fn answer_account(&self, frame: IncomingFrame) -> Result<()> {
        let request = frame.request;
        match frame.kind {
            ListDevices::KIND => {
                decode::<ListDevices>(&frame)?;
                let reply = self.list_devices().await?;
                self.outbox.reply(request, &reply).await;
                return Ok(());
            }
            Invite::KIND => {
                decode::<Invite>(&frame)?;
                let reply = self.invite().await?;
                self.outbox.reply(request, &reply).await;
                return Ok(());
            }
            TotpBegin::KIND => {
                decode::<TotpBegin>(&frame)?;
                let reply = self.totp_begin().await?;
                self.outbox.reply(request, &reply).await;
                return Ok(());
            }
            RevokeDevice::KIND => return self.revoke(request, decode(&frame)?).await,
            Logout::KIND => {
                decode::<Logout>(&frame)?;
                let device = self.member.device.id;
                return self.revoke(request, RevokeDevice { device }).await;
            }
            ChangePassword::KIND => self.change_password(decode(&frame)?).await?,
            TotpConfirm::KIND => self.totp_confirm(decode(&frame)?).await?,
            TotpDisable::KIND => self.totp_disable(decode(&frame)?).await?,
            unknown => {
                return Err(StoreError::request(
                    FailureCode::Malformed,
                    format!("The server answers no request of kind {unknown} here"),
                ));
            }
        }
        self.outbox.reply(request, &Done {}).await;
        Ok(())
    }

    /// Returns the account as it is now.
    async fn user(&self) -> Result<User> {
        let num = self.member.user.num;
        self.shared
            .store
            .read(move |metadata, _| metadata.user(num))
            .await?
            .ok_or_else(|| StoreError::request(FailureCode::Revoked, "The account is gone"))
    }

    async fn list_devices(&self) -> Result<Devices> {
        let user = self.member.user.num;
        let devices = self.shared.store.read(move |metadata, _| metadata.devices(user)).await?;
        let connected = self.shared.hub.devices();
        let devices = devices
            .into_iter()
            .map(|device| DeviceInfo {
                id: device.id,
                added: timestamp(device.added_ms),
                last_seen: device.last_seen_ms.map(timestamp),
                connected: connected.binary_search(&device.id).is_ok(),
                this: device.id == self.member.device.id,
                name: device.name,
            })
            .collect();
        Ok(Devices { devices })
    }

    async fn revoke(&self, request: u32, asked: RevokeDevice) -> Result<()> {
        let user = self.member.user.num;
        self.shared
            .store
            .write(move |metadata| {
                let device = metadata
                    .device(asked.device)?
                    .filter(|device| device.user == user && !device.revoked)
                    .ok_or_else(|| not_found("The account has no such device"))?;
                metadata.revoke_device(device.num, now_ms())
            })
            .await?;
        tracing::info!(revoked = %asked.device, "device revoked");
        self.outbox.reply(request, &Done {}).await;
        if asked.device == self.member.device.id {
            // This very connection ends: not before it has its answer.
            self.outbox.finish().await;
        }
        self.shared.hub.end_device(asked.device);
        Ok(())
    }

    async fn invite(&self) -> Result<Invited> {
        let user = self.member.user.num;
        let expires_secs = self.shared.config.accounts.link_expires_secs;
        let invitation = self
            .shared
            .store
            .write(move |metadata| admin::add_invitation(metadata, Some(user), expires_secs))
            .await?;
        let link = JoinLink {
            address: self.shared.public.clone(),
            fingerprint: self.shared.fingerprint,
            secret: invitation.secret,
        };
        tracing::info!("join link made");
        Ok(Invited { link: link.to_string(), expires: timestamp(invitation.expires_ms) })
    }

    /// Checks the account's password, as slowly as at a log-in.
    async fn check_password(&self, user: &User, password: String) -> Result<()> {
        let Some(hash) = user.password.clone() else {
            // The account was made by an invitation: its devices are all that proves it.
            return Ok(());
        };
        let who = Try::SignedIn(&user.name);
        self.shared.check_tries(who)?;
        let right = self.shared.verify_password(password, Some(hash)).await?;
        self.shared.count_try(who, right);
        if right {
            return Ok(());
        }
        Err(StoreError::request(FailureCode::Unauthenticated, "The password is wrong"))
    }

    async fn change_password(&self, asked: ChangePassword) -> Result<()> {
        accounts::check_password(&asked.new)?;
        let user = self.user().await?;
        self.check_password(&user, asked.old).await?;
        let hash = self.shared.hash_password(asked.new).await?;
        self.shared.store.write(move |metadata| metadata.set_password(user.num, &hash)).await?;
        tracing::info!("password changed");
        Ok(())
    }

    async fn totp_begin(&self) -> Result<TotpSecret> {
        let user = self.user().await?;
        if user.totp.is_some() {
            return Err(StoreError::request(
                FailureCode::Exists,
                "The account asks for codes already: turn that off first",
            ));
        }
        // 160 bits, as RFC 4226 advises.
        let secret: [u8; 20] = accounts::random()?;
        let uri = accounts::totp_uri(&user.name, &secret);
        self.shared
            .store
            .write(move |metadata| metadata.set_totp_pending(user.num, Some(&secret)))
            .await?;
        Ok(TotpSecret { uri })
    }

    async fn totp_confirm(&self, asked: TotpConfirm) -> Result<()> {
        let num = self.member.user.num;
        self.shared
            .store
            .write(move |metadata| {
                let wrong = |message| StoreError::request(FailureCode::Unauthenticated, message);
                let user = metadata.user(num)?.ok_or_else(|| wrong("The account is gone"))?;
                let secret = user
                    .totp_pending
                    .ok_or_else(|| not_found("No new secret waits for its code"))?;
                let step = accounts::totp_step(&secret, &asked.code, now_ms().div_euclid(1000))
                    .ok_or_else(|| {
                        wrong("The code is wrong: look at the clocks of both devices")
                    })?;
                metadata.set_totp(num, Some(&secret))?;
                metadata.use_totp_step(num, step)?;
                Ok(())
            })
            .await?;
        tracing::info!("TOTP turned on");
        Ok(())
    }

    async fn totp_disable(&self, asked: TotpDisable) -> Result<()> {
        let user = self.user().await?;
        self.check_password(&user, asked.password).await?;
        self.shared.store.write(move |metadata| metadata.set_totp(user.num, None)).await?;
        tracing::info!("TOTP turned off");
        Ok(())
    }

    pub(super) async fn decide_held(
        &self,
        request: u32,
        drive: i64,
        device: DeviceId,
        decision: Decision,
    ) -> Result<()> {
        self.shared
            .store
            .write(move |metadata| {
                let held = metadata.held(drive)?;
                let row = held
                    .into_iter()
                    .find(|row| row.device.id == device)
                    .ok_or_else(|| not_found("No deletions of this device are held"))?;
                metadata.decide_held(drive, row.device.num, decision, now_ms())
            })
            .await?;
        tracing::info!(of = %device, ?decision, "held deletions decided on");
        self.shared.hub.publish_held(drive);
        self.outbox.reply(request, &Done {}).await;
        Ok(())
    }
}
