//! Before a connection speaks for somebody: joining, logging in, registering, resuming.

use std::net::IpAddr;
use std::sync::Arc;

use super::shared::Shared;
use crate::model::{DeviceId, free_device_name};
use crate::protocol::message::{
    Admitted, AuthReply, DriveInfo, FailureCode, Join, Login, Question, Register, Resume,
};
use crate::server::accounts::{
    self, DEVICES_MAX, check_device_name, check_user_name, hash_secret, random, same_hash,
};
use crate::server::admin;
use crate::server::clock::now_ms;
use crate::server::config::Registration;
use crate::server::store::StoreError;
use crate::server::store::metadata::{Device, Drive, Metadata, Result, User};
use crate::server::throttle::Try;

/// Wrong answers to one question before the log-in has to begin anew.
const ANSWERS_MAX: u32 = 3;

/// Who was let in.
#[derive(Debug, Clone)]
pub struct Member {
    /// The account.
    pub user: User,
    /// The device.
    pub device: Device,
    /// The drives it may use.
    pub drives: Vec<Drive>,
}

/// What became of a request to be let in.
pub enum Outcome {
    /// The device is in; the reply says so.
    In(Box<Member>, AuthReply),
    /// The reply asks one more thing.
    Asked(AuthReply),
}

/// A log-in that waits for an answer.
struct Waiting {
    user: User,
    device_name: String,
    wrong: u32,
}

/// A connection that nobody is known of yet.
pub struct Guest {
    shared: Arc<Shared>,
    address: IpAddr,
    waiting: Option<Waiting>,
}

fn wrong(message: &str) -> StoreError {
    StoreError::request(FailureCode::Unauthenticated, message)
}

fn is_wrong(error: &StoreError) -> bool {
    matches!(error, StoreError::Request(failure)
        if matches!(failure.code, FailureCode::Unauthenticated | FailureCode::Revoked))
}

impl Guest {
    pub fn new(shared: Arc<Shared>, address: IpAddr) -> Self {
        Self { shared, address, waiting: None }
    }

    /// Returns whether a question waits for its answer.
    pub const fn was_asked(&self) -> bool {
        self.waiting.is_some()
    }

    /// Counts what came of a try.
    fn count<T>(&self, who: Try<'_>, outcome: Result<T>) -> Result<T> {
        match &outcome {
            Ok(_) => self.shared.count_try(who, true),
            Err(error) if is_wrong(error) => self.shared.count_try(who, false),
            Err(_) => {}
        }
        outcome
    }

    /// Continues as a known device. Failures are not counted: nobody guesses 32 random bytes, and a
    /// device that was forgotten in a drawer tries again for months.
    pub async fn resume(&mut self, request: Resume) -> Result<Outcome> {
        let token = hash_secret(&request.token);
        let id = request.device;
        let found = self
            .shared
            .store
            .read(move |metadata, _| {
                let Some(device) = metadata.device(id)? else {
                    return Ok(None);
                };
                let Some(user) = metadata.user(device.user)? else {
                    return Ok(Some((device, None)));
                };
                let drives = metadata.drives(user.num)?;
                Ok(Some((device, Some((user, drives)))))
            })
            .await?;
        match found {
            Some((device, owner)) if same_hash(&device.token, &token) => match owner {
                Some((user, drives)) if !device.revoked => {
                    let member = Member { user, device, drives };
                    Ok(member.admitted(None))
                }
                _ => Err(StoreError::request(
                    FailureCode::Revoked,
                    "This device was removed from the account: join it again to use it",
                )),
            },
            _ => Err(wrong("The server does not know this device, or its token is wrong")),
        }
    }

    /// Joins with the secret of a link.
    pub async fn join(&mut self, request: Join) -> Result<Outcome> {
        let who = Try::Secret(self.address);
        self.shared.check_tries(who)?;
        check_device_name(&request.device_name)?;
        let secret = hash_secret(&request.secret);
        let outcome = self
            .admit_new(request.device_name, move |metadata| {
                let no_link =
                    || wrong("The join link was used already or has expired: ask for a new one");
                let invited = metadata.invitation(&secret, now_ms())?.ok_or_else(no_link)?;
                let user = invited.ok_or_else(|| {
                    wrong(
                        "The link is an invitation to make an account: `picloud register` takes it",
                    )
                })?;
                metadata.end_invitation(&secret)?;
                metadata.user(user)?.ok_or_else(no_link)
            })
            .await;
        self.count(who, outcome)
    }

    /// Adds a device by password, after a question where TOTP is in force.
    pub async fn login(&mut self, request: Login) -> Result<Outcome> {
        let name = request.user;
        let who = Try::Account(self.address, &name);
        self.shared.check_tries(who)?;
        check_device_name(&request.device_name)?;
        self.waiting = None;
        let wanted = name.clone();
        let user =
            self.shared.store.read(move |metadata, _| metadata.user_by_name(&wanted)).await?;
        let hash = user.as_ref().and_then(|user| user.password.clone());
        let right = self.shared.verify_password(request.password, hash).await?;
        let user = match user {
            Some(user) if right => user,
            _ => {
                let refused = Err(wrong("The user or the password is wrong"));
                return self.count(who, refused);
            }
        };
        if user.totp.is_some() {
            self.waiting = Some(Waiting { user, device_name: request.device_name, wrong: 0 });
            return Ok(Outcome::Asked(AuthReply {
                admitted: None,
                question: Some(Question {
                    text: "Six-digit code of your authenticator app".to_owned(),
                    secret: false,
                }),
            }));
        }
        let outcome = self.admit_user(request.device_name, user).await;
        self.count(who, outcome)
    }

    /// Takes the answer to the last question.
    pub async fn answer(&mut self, answer: String) -> Result<Outcome> {
        let no_question = || wrong("No question was asked");
        let name = self.waiting.as_ref().ok_or_else(no_question)?.user.name.clone();
        let who = Try::Account(self.address, &name);
        self.shared.check_tries(who)?;
        let mut waiting = self.waiting.take().ok_or_else(no_question)?;
        let secret = waiting.user.totp.clone().unwrap_or_default();
        let step = accounts::totp_step(&secret, &answer, now_ms().div_euclid(1000));
        let num = waiting.user.num;
        let right = match step {
            Some(step) => {
                self.shared.store.write(move |metadata| metadata.use_totp_step(num, step)).await?
            }
            None => false,
        };
        if !right {
            waiting.wrong += 1;
            if waiting.wrong < ANSWERS_MAX {
                self.waiting = Some(waiting);
            }
            let refused = Err(wrong("The code is wrong or was used already"));
            return self.count(who, refused);
        }
        let outcome = self.admit_user(waiting.device_name, waiting.user).await;
        self.count(who, outcome)
    }

    /// Makes an account where the settings allow it.
    pub async fn register(&mut self, request: Register) -> Result<Outcome> {
        let who = match request.secret {
            Some(_) => Try::Secret(self.address),
            None => Try::Registration(self.address),
        };
        self.shared.check_tries(who)?;
        check_user_name(&request.user)?;
        check_device_name(&request.device_name)?;
        let secret = match (self.shared.config.accounts.registration, request.secret) {
            (Registration::Closed, _) => {
                return Err(StoreError::request(
                    FailureCode::Forbidden,
                    "This server takes no registrations: ask its owner for an account",
                ));
            }
            (Registration::Open, secret) => secret.map(|secret| hash_secret(&secret)),
            (Registration::Invitation, Some(secret)) => Some(hash_secret(&secret)),
            (Registration::Invitation, None) => {
                return Err(StoreError::request(
                    FailureCode::Forbidden,
                    "This server takes registrations by invitation only: ask its owner for a link",
                ));
            }
        };
        if let Some(secret) = secret {
            // Before a costly hash is made for anybody: is it an invitation at all?
            let known = self
                .shared
                .store
                .read(move |metadata, _| metadata.invitation(&secret, now_ms()))
                .await?;
            if known.is_none() {
                return self.count(who, Err(no_invitation()));
            }
        } else {
            // Open registration makes accounts as fast as this lets it: each counts as a try.
            self.shared.count_try(who, false);
        }
        let hash = self.shared.hash_password(request.password).await?;
        let name = request.user;
        let outcome = self
            .admit_new(request.device_name, move |metadata| {
                let Some(secret) = secret else {
                    return admin::add_user(metadata, &name, Some(&hash));
                };
                let invited = metadata.invitation(&secret, now_ms())?.ok_or_else(no_invitation)?;
                metadata.end_invitation(&secret)?;
                let Some(user) = invited else {
                    return admin::add_user(metadata, &name, Some(&hash));
                };
                // The invitation is for a user who exists: it sets the first password.
                let mut user = metadata.user(user)?.ok_or_else(no_invitation)?;
                if !user.name.eq_ignore_ascii_case(&name) {
                    return Err(StoreError::request(
                        FailureCode::Forbidden,
                        format!("The invitation is for the user {:?}", user.name),
                    ));
                }
                if user.password.is_some() {
                    return Err(StoreError::request(
                        FailureCode::Exists,
                        "The account has a password already: log in, or join with the link",
                    ));
                }
                metadata.set_password(user.num, &hash)?;
                user.password = Some(hash);
                Ok(user)
            })
            .await;
        if secret.is_some() { self.count(who, outcome) } else { outcome }
    }

    async fn admit_user(&self, device_name: String, user: User) -> Result<Outcome> {
        // The account may have been removed, or its password changed, since it was looked at.
        self.admit_new(device_name, move |metadata| {
            metadata
                .user(user.num)?
                .filter(|now| now.password == user.password && now.totp == user.totp)
                .ok_or_else(|| wrong("The account was changed meanwhile: log in again"))
        })
        .await
    }

    /// Adds a device to the user that `find` returns, all in one transaction.
    async fn admit_new(
        &self,
        device_name: String,
        find: impl FnOnce(&mut dyn Metadata) -> Result<User> + Send + 'static,
    ) -> Result<Outcome> {
        let token: [u8; 32] = random()?;
        let id = DeviceId::from_bytes(random()?);
        let member = self
            .shared
            .store
            .write(move |metadata| {
                let user = find(metadata)?;
                let others = metadata.devices(user.num)?;
                if others.len() >= DEVICES_MAX {
                    return Err(StoreError::request(
                        FailureCode::TooLarge,
                        format!("The account has {DEVICES_MAX} devices: remove some first"),
                    ));
                }
                let hash = hash_secret(&token);
                // Conflict copies and commands name a device: two of an account are never the same.
                let is_taken = |name: &str| others.iter().any(|other| other.name == name);
                let name = free_device_name(&device_name, is_taken);
                let device = metadata.add_device(id, user.num, &name, &hash, now_ms())?;
                let drives = metadata.drives(user.num)?;
                Ok(Member { user, device, drives })
            })
            .await?;
        tracing::info!(user = member.user.name, device = member.device.name, "device added");
        Ok(member.admitted(Some(token.to_vec())))
    }
}

fn no_invitation() -> StoreError {
    wrong("The invitation was used already or has expired: ask for a new one")
}

impl Member {
    fn admitted(self, token: Option<Vec<u8>>) -> Outcome {
        let drives = self.drives.iter().map(|drive| DriveInfo {
            id: drive.id,
            name: drive.name.clone(),
            lineage: drive.lineage,
            head: drive.head,
        });
        let admitted = Admitted {
            user: self.user.id,
            user_name: self.user.name.clone(),
            device: self.device.id,
            device_name: self.device.name.clone(),
            token,
            drives: drives.collect(),
        };
        let reply = AuthReply { admitted: Some(admitted), question: None };
        Outcome::In(Box::new(self), reply)
    }
}
