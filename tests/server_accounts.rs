//! Who is let in, and who is let go.

#![allow(clippy::unwrap_used, reason = "a test ends where something fails")]

mod server_support;

use picloud::model::*;
use picloud::protocol::CallError;
use picloud::protocol::message::*;
use picloud::server::admin::Admin;
use picloud::server::config::Registration;
use picloud::server::gate::Decision;
use server_support::*;

fn login(user: &str, password: &str) -> Login {
    Login { user: user.into(), password: password.into(), device_name: "laptop".into() }
}

fn register(user: &str, secret: Option<&[u8]>) -> Register {
    Register {
        user: user.into(),
        password: "long enough".into(),
        secret: secret.map(<[u8]>::to_vec),
        device_name: "laptop".into(),
    }
}

async fn ask<R: Request<Reply = AuthReply>>(
    server: &Server,
    request: R,
) -> Result<AuthReply, CallError> {
    let (connection, _pushes) = server.connect().await;
    connection.call(&request).await
}

#[tokio::test]
async fn a_join_link_joins_one_device_once() {
    let server = Server::start().await;
    let link = server.running.invite("alice").await.unwrap();
    assert_eq!(link.address, server.running.address().to_string());
    let join = Join { secret: link.secret.to_vec(), device_name: "one".into() };
    assert!(ask(&server, join.clone()).await.unwrap().admitted.is_some());
    assert_eq!(code(ask(&server, join).await), FailureCode::Unauthenticated);
    let nobodys = Join { secret: vec![0; 32], device_name: "one".into() };
    assert_eq!(code(ask(&server, nobodys).await), FailureCode::Unauthenticated);
}

#[tokio::test]
async fn a_link_expires_and_joins_only_with_a_legal_device_name() {
    let server = Server::start_with(|config| config.accounts.link_expires_secs = 1).await;
    let link = server.running.invite("alice").await.unwrap();
    let join =
        |device_name: &str| Join { secret: link.secret.to_vec(), device_name: device_name.into() };
    assert_eq!(code(ask(&server, join("../x")).await), FailureCode::Malformed);
    // The server's clock is the system's: the link is over when it says so.
    let (connection, _pushes) = server.connect().await;
    let expired = std::time::Instant::now() + std::time::Duration::from_millis(1100);
    tokio::time::sleep_until(expired.into()).await;
    let refused = connection.call(&join("one")).await;
    assert_eq!(code(refused), FailureCode::Unauthenticated);
}

#[tokio::test]
async fn a_password_lets_in_and_guessing_has_to_wait() {
    let server = Server::start().await;
    let admin = Admin::open(server.config.clone()).unwrap();
    admin.add_user("alice", Some("correct horse")).unwrap();
    let admitted = ask(&server, login("ALICE", "correct horse")).await.unwrap();
    assert_eq!(admitted.admitted.unwrap().user_name, "alice");
    admin.add_user("bob", Some("battery staple")).unwrap();
    let link = admin.invite(Some("alice")).unwrap();
    for _ in 0..5 {
        let refused = ask(&server, login("alice", "wrong")).await;
        assert_eq!(code(refused), FailureCode::Unauthenticated);
    }
    let refused = ask(&server, login("alice", "correct horse")).await;
    assert_eq!(code(refused), FailureCode::Throttled, "even with the right one");
    // Others behind the same address are let in, and so is alice with a link.
    ask(&server, login("bob", "battery staple")).await.unwrap();
    let join = Join { secret: link.secret.to_vec(), device_name: "two".into() };
    ask(&server, join).await.unwrap();
    // A device that is not known any more and does not give up keeps nobody out.
    for _ in 0..120 {
        let token = vec![1; 32];
        let resume = Resume { device: DeviceId::from_bytes([9; 16]), token };
        assert_eq!(code(ask(&server, resume).await), FailureCode::Unauthenticated);
    }
    ask(&server, login("bob", "battery staple")).await.unwrap();
}

#[tokio::test]
async fn registration_is_open_by_invitation_or_closed_as_the_settings_say() {
    let closed = Server::start_with(|c| c.accounts.registration = Registration::Closed).await;
    assert_eq!(code(ask(&closed, register("bob", None)).await), FailureCode::Forbidden);

    let open = Server::start_with(|c| c.accounts.registration = Registration::Open).await;
    let first = ask(&open, register("bob", None)).await.unwrap();
    assert_eq!(first.admitted.unwrap().drives.len(), 1);
    assert_eq!(code(ask(&open, register("Bob", None)).await), FailureCode::Exists);
    assert_eq!(code(ask(&open, register("b/b", None)).await), FailureCode::Malformed);
    let mut short = register("carol", None);
    short.password = "1234567".into();
    assert_eq!(code(ask(&open, short).await), FailureCode::Malformed);

    let invited = Server::start().await;
    let admin = Admin::open(invited.config.clone()).unwrap();
    assert_eq!(code(ask(&invited, register("bob", None)).await), FailureCode::Forbidden);
    let wrong = ask(&invited, register("bob", Some(&[1; 32]))).await;
    assert_eq!(code(wrong), FailureCode::Unauthenticated);
    // An invitation to register makes a user of any name, once.
    let link = admin.invite(None).unwrap();
    let join = Join { secret: link.secret.to_vec(), device_name: "laptop".into() };
    let told = ask(&invited, join).await.unwrap_err().to_string();
    assert!(told.contains("`picloud register` takes it"), "{told}");
    ask(&invited, register("bob", Some(&link.secret))).await.unwrap();
    let again = ask(&invited, register("carol", Some(&link.secret))).await;
    assert_eq!(code(again), FailureCode::Unauthenticated);
    // An invitation of a user sets that user's first password, and nobody else's.
    let link = admin.invite(Some("dave")).unwrap();
    let other = ask(&invited, register("erin", Some(&link.secret))).await;
    assert_eq!(code(other), FailureCode::Forbidden);
    ask(&invited, register("dave", Some(&link.secret))).await.unwrap();
    ask(&invited, login("dave", "long enough")).await.unwrap();
    let link = admin.invite(Some("dave")).unwrap();
    let again = ask(&invited, register("dave", Some(&link.secret))).await;
    assert_eq!(code(again), FailureCode::Exists, "a password is not overwritten");
}

#[tokio::test]
async fn a_code_is_asked_for_once_it_was_confirmed_and_counts_once() {
    let server = Server::start().await;
    let admin = Admin::open(server.config.clone()).unwrap();
    admin.add_user("alice", Some("correct horse")).unwrap();
    let (connection, _pushes) = server.connect().await;
    connection.call(&login("alice", "correct horse")).await.unwrap();
    let secret = connection.call(&TotpBegin {}).await.unwrap();
    let text = secret.uri.split(['=', '&']).nth(1).unwrap();
    let key = unbase32(text);
    let step = || {
        let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap();
        now.as_secs() / 30
    };
    let wrong = TotpConfirm { code: "00000".into() };
    assert_eq!(code(connection.call(&wrong).await), FailureCode::Unauthenticated);
    // Not confirmed: not asked for.
    assert!(ask(&server, login("alice", "correct horse")).await.unwrap().admitted.is_some());
    let used = step();
    let right = TotpConfirm { code: totp(&key, used) };
    connection.call(&right).await.unwrap();
    assert_eq!(code(connection.call(&TotpBegin {}).await), FailureCode::Exists);

    let (guest, _pushes) = server.connect().await;
    let asked = guest.call(&login("alice", "correct horse")).await.unwrap();
    assert!(asked.admitted.is_none() && asked.question.is_some());
    let answer = |answer: String| Answer { answer };
    let replayed = guest.call(&answer(totp(&key, used))).await;
    assert_eq!(code(replayed), FailureCode::Unauthenticated, "used already");
    // The next step is right as well, as clocks differ.
    let next = guest.call(&answer(totp(&key, used + 1))).await.unwrap();
    assert!(next.admitted.is_some());

    let disable = |password: &str| TotpDisable { password: password.into() };
    assert_eq!(code(connection.call(&disable("wrong")).await), FailureCode::Unauthenticated);
    connection.call(&disable("correct horse")).await.unwrap();
    assert!(ask(&server, login("alice", "correct horse")).await.unwrap().admitted.is_some());
}

fn unbase32(text: &str) -> Vec<u8> {
    let bits: String = text
        .bytes()
        .map(|c| if c.is_ascii_uppercase() { c - b'A' } else { c - b'2' + 26 })
        .map(|five| format!("{five:05b}"))
        .collect();
    bits.as_bytes()
        .chunks_exact(8)
        .map(|byte| u8::from_str_radix(std::str::from_utf8(byte).unwrap(), 2).unwrap())
        .collect()
}

fn totp(key: &[u8], step: u64) -> String {
    let key = ring::hmac::Key::new(ring::hmac::HMAC_SHA1_FOR_LEGACY_USE_ONLY, key);
    let tag = ring::hmac::sign(&key, &step.to_be_bytes());
    let at = usize::from(tag.as_ref()[19] & 15);
    let word = u32::from_be_bytes(tag.as_ref()[at..at + 4].try_into().unwrap());
    format!("{:06}", (word & 0x7fff_ffff) % 1_000_000)
}

#[tokio::test]
async fn a_password_is_changed_with_the_old_one_only() {
    let server = Server::start().await;
    let admin = Admin::open(server.config.clone()).unwrap();
    admin.add_user("alice", Some("correct horse")).unwrap();
    let (connection, _pushes) = server.connect().await;
    connection.call(&login("alice", "correct horse")).await.unwrap();
    let change = |old: &str, new: &str| ChangePassword { old: old.into(), new: new.into() };
    let refused = connection.call(&change("wrong", "battery staple")).await;
    assert_eq!(code(refused), FailureCode::Unauthenticated);
    connection.call(&change("correct horse", "battery staple")).await.unwrap();
    assert!(ask(&server, login("alice", "battery staple")).await.is_ok());
    assert!(ask(&server, login("alice", "correct horse")).await.is_err());
}

#[tokio::test]
async fn a_revoked_device_is_disconnected_at_once_and_its_token_is_void() {
    let server = Server::start().await;
    let one = server.join("alice", "one").await;
    let mut two = server.join("alice", "two").await;
    let listed = one.connection.call(&ListDevices {}).await.unwrap().devices;
    let seen: Vec<_> = listed.iter().map(|d| (d.name.as_str(), d.connected, d.this)).collect();
    assert_eq!(seen, [("one", true, true), ("two", true, false)]);
    let revoke = |device| RevokeDevice { device };
    one.connection.call(&revoke(two.admitted.device)).await.unwrap();
    assert_eq!(two.ended().await, FailureCode::Revoked);
    assert_eq!(code(two.resume(&server).await), FailureCode::Revoked);
    let again = one.connection.call(&revoke(two.admitted.device)).await;
    assert_eq!(code(again), FailureCode::NotFound);
    // Logging out is the same, with an answer first.
    let mut three = server.join("alice", "three").await;
    three.connection.call(&Logout {}).await.unwrap();
    assert_eq!(code(three.resume(&server).await), FailureCode::Revoked);
    // A device of somebody else is none of ours.
    let mut four = server.join("bob", "four").await;
    let other = one.connection.call(&revoke(four.admitted.device)).await;
    assert_eq!(code(other), FailureCode::NotFound);
    four.create("still here", b"x").await;
    three.pushes.close();
}

#[tokio::test]
async fn what_another_process_revokes_or_removes_ends_open_connections_too() {
    let server = Server::start().await;
    let mut one = server.join("alice", "one").await;
    let mut two = server.join("alice", "two").await;
    let admin = Admin::open(server.config.clone()).unwrap();
    admin.revoke("alice", "one").unwrap();
    assert_eq!(one.ended().await, FailureCode::Revoked);
    admin.remove_user("alice").unwrap();
    assert_eq!(two.ended().await, FailureCode::Revoked);
    assert_eq!(code(two.resume(&server).await), FailureCode::Revoked);
    assert!(!server.running.user_exists("alice").await.unwrap());
    // The name is free; the new user has a drive of its own.
    let new = server.join("alice", "new").await;
    assert_ne!(new.drive, one.drive);
}

/// A server that holds more than 4 deletions of more than half of a drive, and two devices on it,
/// with ten files.
async fn gated() -> (Server, Device, Device, Vec<Change>) {
    let server = Server::start_with(|config| {
        config.limits.mass_delete_min = 4;
        config.limits.mass_delete_share = 0.5;
    })
    .await;
    let mut one = server.join("alice", "one").await;
    let two = server.join("alice", "two").await;
    let mut deletions = Vec::new();
    for index in 0..10 {
        let (id, rev) = one.create(&format!("{index}"), b"x").await;
        deletions.push(delete(id, rev));
    }
    (server, one, two, deletions)
}

fn held_in(outcome: &Committed) -> usize {
    let held = ChangeResult::Refused(Refusal::NeedsApproval);
    outcome.results.iter().filter(|result| **result == held).count()
}

#[tokio::test]
async fn a_mass_deletion_waits_until_another_device_approves_it() {
    let (_server, one, two, deletions) = gated().await;
    // Not announced: what is within the limits passes.
    assert_eq!(held_in(&one.commit(deletions.clone(), vec![]).await), 5);
    // Asking again (a device is patient) does not make it more.
    one.commit(deletions.clone(), vec![]).await;
    let drive = two.drive;
    let listed = two.connection.call(&ListHeld { drive }).await.unwrap().held;
    assert_eq!(listed.len(), 1);
    assert_eq!((listed[0].device, listed[0].deletions), (one.admitted.device, 5));
    assert_eq!(listed[0].earlier, 5, "what passed before counts");
    let approve = ApproveHeld { drive, device: one.admitted.device };
    two.connection.call(&approve).await.unwrap();
    assert_eq!(revs(&one.commit(deletions, vec![]).await).len(), 10);
    assert!(two.connection.call(&ListHeld { drive }).await.unwrap().held.is_empty());
    assert_eq!(code(two.connection.call(&approve).await), FailureCode::NotFound);
}

#[tokio::test]
async fn an_announced_mass_deletion_is_told_to_all_devices_at_once_and_so_is_the_decision() {
    let (server, mut one, mut two, deletions) = gated().await;
    let (drive, device) = (two.drive, one.admitted.device);
    for subscriber in [&mut one, &mut two] {
        subscriber.subscribe(Rev::ZERO, None).await;
        subscriber.pages_upto(Rev(10)).await;
    }
    // None passes, and each device hears of the whole.
    assert_eq!(held_in(&one.announce(10, deletions[..3].to_vec()).await), 3);
    for subscriber in [&mut one, &mut two] {
        let held = subscriber.held().await;
        let [only] = held.as_slice() else { panic!("{held:?}") };
        assert_eq!((only.device, only.device_name.as_str()), (device, "one"));
        assert_eq!((only.deletions, only.earlier, only.rejected), (10, 0, false));
        let paths: Vec<String> = only.examples.iter().map(ToString::to_string).collect();
        assert_eq!(paths, ["0", "1", "2"]);
    }
    // Whoever subscribes later hears of it too.
    let mut late = two.resume(&server).await.unwrap();
    late.subscribe(Rev(10), None).await;
    assert_eq!(late.held().await.len(), 1);
    // A rejection lasts until the device has nothing pending.
    two.connection.call(&RejectHeld { drive, device }).await.unwrap();
    assert!(one.held().await[0].rejected && two.held().await[0].rejected);
    assert_eq!(held_in(&one.announce(1, deletions[..1].to_vec()).await), 1);
    one.announce(1, vec![]).await;
    assert_eq!(one.held().await[0].deletions, 1);
    one.announce(0, vec![]).await;
    assert_eq!(one.held().await, []);
    assert_eq!(revs(&one.announce(1, deletions[..1].to_vec()).await).len(), 1);
    // Approved by the command line, which is another process.
    assert_eq!(held_in(&one.announce(9, deletions[1..].to_vec()).await), 9);
    assert_eq!(one.held().await[0].deletions, 9);
    let admin = Admin::open(server.config.clone()).unwrap();
    admin.decide_held("alice", "one", Decision::Approve).unwrap();
    assert_eq!(one.held().await, []);
    assert_eq!(revs(&one.announce(9, deletions[1..].to_vec()).await).len(), 9);
}

#[tokio::test]
async fn an_invitation_from_a_device_and_one_from_the_command_line_both_join() {
    let server = Server::start_with(|config| config.server.public = Some("home:1".into())).await;
    let one = server.join("alice", "one").await;
    let invited = one.connection.call(&Invite {}).await.unwrap();
    let admin = Admin::open(server.config.clone()).unwrap();
    for link in [JoinLink::parse(&invited.link).unwrap(), admin.invite(Some("alice")).unwrap()] {
        assert_eq!(link.address, "home:1");
        assert_eq!(link.fingerprint, server.running.fingerprint());
        let join = Join { secret: link.secret.to_vec(), device_name: "next".into() };
        let admitted = ask(&server, join).await.unwrap().admitted.unwrap();
        assert_eq!(admitted.drives[0].id, one.drive);
    }
}
