//! The commands about the account: register, login, logout, whoami, devices, link, passwd, totp, and
//! mass deletions that wait for a person.

use std::path::Path;

use serde_json::json;

use super::agent::told;
use super::args::{DevicesCommand, LogIn, OfFolder, TotpCommand};
use super::dial::{Answers, Server, admit, get_to_know};
use super::failure::{Exit, Failure, os_text};
use super::join::{self, Plan, parse_link};
use super::machine::{Account, Machine};
use super::output::{Output, Tone, count, counted, moment, printable};
use super::{prompt, qr};
use crate::agent::config::{Authority, machine_name, remove_folder};
use crate::agent::disk::Kept;
use crate::agent::{credentials, left_out};
use crate::client::ClientError;
use crate::model::{DeviceId, Fingerprint};
use crate::protocol::message::{DeviceInfo, Held};

/// For the many calls whose refusal is the command's.
fn refused(error: ClientError) -> Failure {
    Failure::of_client(&error)
}

/// `picloud register` and `picloud login`.
///
/// # Errors
/// When the server cannot be reached, is not known, or refuses.
pub async fn log_in(
    machine: &Machine,
    output: Output,
    args: &LogIn,
    register: bool,
) -> Result<Exit, Failure> {
    let plan = match &args.folder {
        Some(folder) => Some(Plan::check(machine, Some(folder), args.device.as_deref())?),
        None => {
            machine.check_no_account()?;
            None
        }
    };
    let device_name = match (&args.device, &plan) {
        (Some(device), _) => device.clone(),
        (None, Some(plan)) => plan.device.clone(),
        (None, None) => machine_name(),
    };
    let (server, secret) = find_server(args).await?;
    let (user, password, mut answers) = credentials_of(args, register)?;
    let mut client = server.connect().await?;
    let first = if register {
        client.register(&user, &password, secret.as_ref(), &device_name).await
    } else {
        client.login(&user, &password, &device_name).await
    };
    let session = admit(&mut client, first, &mut answers).await?;
    let admitted = session.admitted();
    if let Some(plan) = plan {
        let folder = plan.finish(machine, &server, &session).await?;
        return join::report(machine, output, &folder);
    }
    if let Err(failure) = machine.keep_session(&server, &session) {
        // What cannot be kept must not stay in the account.
        drop(session.logout().await);
        return Err(failure);
    }
    if output.json() {
        told(output.object(&json!({
            "type": if register { "registered" } else { "logged-in" },
            "version": 1,
            "user": admitted.user_name,
            "device": admitted.device_name,
            "server": server.address,
        })))?;
    } else {
        told(output.line(&format!(
            "Logged in as {} at {}; this device is {}",
            printable(&admitted.user_name),
            server.address,
            printable(&admitted.device_name)
        )))?;
    }
    Ok(Exit::Done)
}

/// The server a person named, and the secret where a link did.
async fn find_server(args: &LogIn) -> Result<(Server, Option<[u8; 32]>), Failure> {
    if args.server.starts_with("picloud:") {
        let link = parse_link(&args.server)?;
        return Ok((Server::of_link(&link), Some(link.secret)));
    }
    let authority = match &args.fingerprint {
        Some(text) => Authority::Fingerprint(
            Fingerprint::try_from(text.clone())
                .map_err(|error| Failure::from_error(Exit::Usage, &error))?,
        ),
        None => get_to_know(&args.server).await?,
    };
    let server = Server { address: args.server.clone(), authority };
    Ok((server, None))
}

fn credentials_of(args: &LogIn, register: bool) -> Result<(String, String, Answers), Failure> {
    let stdin = Some(Path::new("-"));
    if let Some(file) = &args.id_file {
        let (user, password) = prompt::id_file(file)?;
        return Ok((user, password, answers_of(args.answer_file.as_deref())?));
    }
    let user = args.user.clone().ok_or_else(|| Failure::usage("--user or --id-file is needed"))?;
    if args.password_file.as_deref() == stdin && args.answer_file.as_deref() == stdin {
        // Both from one stream: the password is its first line.
        let mut lines = prompt::lines(Path::new("-"))?.into_iter();
        let password = lines.next().unwrap_or_default();
        return Ok((user, password, Answers::Lines(lines)));
    }
    let file = args.password_file.as_deref();
    let words = format!("Password of {}", printable(&user));
    let password = if register {
        prompt::new_secret(&words, file, "--password-file")?
    } else {
        prompt::secret(&words, file, "--password-file")?
    };
    Ok((user, password, answers_of(args.answer_file.as_deref())?))
}

fn answers_of(file: Option<&Path>) -> Result<Answers, Failure> {
    Ok(match file {
        Some(file) => Answers::Lines(prompt::lines(file)?.into_iter()),
        None => Answers::Person,
    })
}

/// `picloud logout`.
///
/// # Errors
/// When the server cannot be reached: the device would stay in the account.
pub async fn log_out(machine: &Machine, output: Output, of: &OfFolder) -> Result<Exit, Failure> {
    let account = machine.account_of(of.folder.as_deref())?;
    account.end_access().await?;
    match &account.folder {
        Some(folder) => {
            let failed = |error: &(dyn std::error::Error + 'static)| {
                Failure::from_error(Exit::Failed, error)
            };
            // Before it is let go of: joined again, it is synced as it was.
            let kept = Kept {
                ignore: folder.ignore.clone(),
                paused: folder.paused,
                direction: folder.flow,
            };
            if let Err(error) = kept.leave(&folder.path)
                && kept != Kept::default()
            {
                eprintln!(
                    "Warning: the folder's settings cannot be kept in it ({}); it had ignore = \
                     {:?}, paused = {}",
                    os_text(&error),
                    kept.ignore,
                    kept.paused
                );
            }
            remove_folder(&machine.config_path, folder.id).map_err(|error| failed(&error))?;
            let secrets = credentials::path_beside(&machine.config_path);
            credentials::remove_token(&secrets, folder.id).map_err(|error| failed(&error))?;
            let file = left_out::path_beside(&machine.config_path, folder.id);
            left_out::forget(&file).map_err(|error| failed(&error))?;
        }
        None => machine.forget_session()?,
    }
    if output.json() {
        told(output.object(&json!({
            "type": "logged-out",
            "version": 1,
            "user": account.user,
            "device": account.device,
        })))?;
    } else {
        told(output.line(&match &account.folder {
            Some(folder) => format!(
                "Logged out: {} is not synced any more; its files stay",
                printable(&folder.path.to_string_lossy())
            ),
            None => "Logged out".to_owned(),
        }))?;
    }
    Ok(Exit::Done)
}

/// `picloud whoami`.
///
/// # Errors
/// When nobody is logged in, or the server cannot be reached or refuses.
pub async fn who_am_i(machine: &Machine, output: Output, of: &OfFolder) -> Result<Exit, Failure> {
    let account = machine.account_of(of.folder.as_deref())?;
    let session = account.connect().await?;
    let admitted = session.admitted();
    let folder = account.folder.as_ref().map(|folder| &folder.path);
    if output.json() {
        told(output.object(&json!({
            "type": "whoami",
            "version": 1,
            "user": admitted.user_name,
            "device": admitted.device_name,
            "device_id": admitted.device,
            "server": account.server.address,
            "folder": folder,
        })))?;
    } else {
        told(output.line(&format!(
            "{} at {}, as the device {}",
            printable(&admitted.user_name),
            account.server.address,
            printable(&admitted.device_name)
        )))?;
    }
    Ok(Exit::Done)
}

/// Finds a device by its id or its name.
fn find_device<'a>(
    devices: impl Iterator<Item = (DeviceId, &'a str)>,
    wanted: &str,
) -> Result<DeviceId, Failure> {
    let id = DeviceId::from_hex(wanted).ok();
    let mut found: Vec<DeviceId> = devices
        .filter(|(device, name)| Some(*device) == id || *name == wanted)
        .map(|(device, _)| device)
        .collect();
    match (found.pop(), found.is_empty()) {
        (Some(device), true) => Ok(device),
        (Some(_), false) => Err(Failure::failed(format!("Several devices are called {wanted:?}"))
            .hint("name it by its id: `picloud devices list --json` shows them")),
        (None, _) => Err(Failure::failed(format!("There is no device {wanted:?}"))
            .hint("`picloud devices list` shows them")),
    }
}

/// `picloud devices`.
///
/// # Errors
/// When the server cannot be reached or refuses, or there is no such device.
pub async fn devices(
    machine: &Machine,
    output: Output,
    command: Option<&DevicesCommand>,
) -> Result<Exit, Failure> {
    let account = machine.account()?;
    let session = account.connect().await?;
    let devices = session.devices().await.map_err(refused)?;
    match command {
        None | Some(DevicesCommand::List) => {
            for device in &devices {
                told(show_device(output, device))?;
            }
        }
        Some(DevicesCommand::Revoke { device: wanted }) => {
            let names = devices.iter().map(|info| (info.id, info.name.as_str()));
            let device = find_device(names, wanted)?;
            session.revoke(device).await.map_err(refused)?;
            if output.json() {
                let object = json!({"type": "revoked", "version": 1, "device_id": device});
                told(output.object(&object))?;
            } else {
                told(output.line(&format!(
                    "Revoked: {} is out of the account; its files stay on it",
                    printable(wanted)
                )))?;
            }
        }
    }
    Ok(Exit::Done)
}

fn show_device(output: Output, device: &DeviceInfo) -> std::io::Result<()> {
    if output.json() {
        return output.object(&json!({
            "type": "device",
            "version": 1,
            "id": device.id,
            "name": device.name,
            "added": device.added.secs,
            "last_seen": device.last_seen.map(|seen| seen.secs),
            "connected": device.connected,
            "this": device.this,
        }));
    }
    let seen = match (device.connected, device.last_seen) {
        (true, _) => output.paint(Tone::Good, "connected"),
        (false, Some(seen)) => format!("last seen {}", moment(seen.secs)),
        (false, None) => "never seen".to_owned(),
    };
    let this = if device.this { "  (this one)" } else { "" };
    output.line(&format!(
        "{:<20} {seen}{}",
        printable(&device.name),
        output.paint(Tone::Faint, this)
    ))
}

/// `picloud link`.
///
/// # Errors
/// When the server cannot be reached or refuses.
pub async fn link(machine: &Machine, output: Output, plain: bool) -> Result<Exit, Failure> {
    let session = machine.account()?.connect().await?;
    let invited = session.invite().await.map_err(refused)?;
    if output.json() {
        told(output.object(&json!({
            "type": "link",
            "version": 1,
            "link": invited.link,
            "expires": invited.expires.secs,
        })))?;
    } else if plain || !output.live() {
        told(output.line(&invited.link))?;
    } else {
        let text = how_to_join(output, &invited.link, Some(invited.expires.secs));
        told(output.line(&text))?;
    }
    Ok(Exit::Done)
}

/// The link for a person: what to type on the other device, and the QR code.
pub(super) fn how_to_join(output: Output, link: &str, expires: Option<i64>) -> String {
    let until = expires.map_or(String::new(), |expires| format!(", until {}", moment(expires)));
    let mut text = format!(
        "To join the next device, run there (it works once{until}):\n\n  picloud join {link}\n"
    );
    if let Some(code) = qr::draw(link, output.live()) {
        text.push('\n');
        text.push_str(&code);
    }
    text
}

/// `picloud passwd`.
///
/// # Errors
/// When the server cannot be reached or refuses.
pub async fn change_password(
    machine: &Machine,
    output: Output,
    file: Option<&Path>,
) -> Result<Exit, Failure> {
    let account = machine.account()?;
    let (old, new) = match file {
        Some(file) => {
            let mut lines = prompt::lines(file)?.into_iter();
            let (Some(old), Some(new)) = (lines.next(), lines.next()) else {
                return Err(Failure::failed(
                    "The present and the new password are needed, each on a line of its own",
                ));
            };
            (old, new)
        }
        None => (
            prompt::secret("Present password", None, "--password-file")?,
            prompt::new_secret("New password", None, "--password-file")?,
        ),
    };
    let session = account.connect().await?;
    session.change_password(&old, &new).await.map_err(refused)?;
    done(output, "The password is changed")
}

/// `picloud totp`.
///
/// # Errors
/// When the server cannot be reached or refuses, or the code is wrong.
pub async fn totp(
    machine: &Machine,
    output: Output,
    command: &TotpCommand,
) -> Result<Exit, Failure> {
    let account = machine.account()?;
    let session = account.connect().await?;
    match command {
        TotpCommand::Enable { answer_file } => {
            let uri = session.totp_begin().await.map_err(refused)?;
            if output.json() {
                told(output.object(&json!({
                    "type": "totp-secret",
                    "version": 1,
                    "uri": uri,
                })))?;
            } else {
                told(output.line("Add this to your authenticator app:"))?;
                told(output.line(&format!("\n  {}\n", printable(&uri))))?;
                if let Some(code) = qr::draw(&uri, output.live()).filter(|_| output.live()) {
                    told(output.line(&code))?;
                }
            }
            let code = match answer_file.as_deref() {
                Some(file) => prompt::secret("Code", Some(file), "--answer-file")?,
                None if prompt::interactive() => prompt::ask("Six-digit code it shows")?,
                None => prompt::secret("six-digit code", None, "--answer-file")?,
            };
            session.totp_confirm(code.trim()).await.map_err(refused)?;
            done(output, "Log-ins are asked for a code from now on")
        }
        TotpCommand::Disable { password_file } => {
            let file = password_file.as_deref();
            let password = prompt::secret("Password", file, "--password-file")?;
            session.totp_disable(&password).await.map_err(refused)?;
            done(output, "Log-ins are asked for the password alone")
        }
    }
}

fn done(output: Output, words: &str) -> Result<Exit, Failure> {
    if output.json() {
        told(output.object(&json!({"type": "done", "version": 1})))?;
    } else {
        told(output.line(words))?;
    }
    Ok(Exit::Done)
}

/// `picloud held`.
///
/// # Errors
/// When the server cannot be reached or refuses.
pub async fn held(machine: &Machine, output: Output) -> Result<Exit, Failure> {
    let account = machine.account()?;
    let session = account.connect().await?;
    let held = session.held().await.map_err(refused)?;
    for held in &held {
        if output.json() {
            let examples: Vec<String> = held.examples.iter().map(ToString::to_string).collect();
            told(output.object(&json!({
                "type": "held",
                "version": 1,
                "device": held.device_name,
                "device_id": held.device,
                "deletions": held.deletions,
                "earlier": held.earlier,
                "since": held.since.secs,
                "rejected": held.rejected,
                "examples": examples,
            })))?;
        } else {
            told(output.line(&held_text(output, held)))?;
        }
    }
    if held.is_empty() {
        if !output.json() {
            told(output.line("Nothing waits"))?;
        }
        return Ok(Exit::Done);
    }
    if held.iter().all(|held| held.rejected) {
        return Ok(Exit::Done);
    }
    if !output.json() {
        let hint = "`picloud approve DEVICE` lets it happen everywhere; `picloud reject DEVICE` \
                    puts the files back on that device";
        told(output.line(&output.paint(Tone::Faint, hint)))?;
    }
    Ok(Exit::Person)
}

fn held_text(output: Output, held: &Held) -> String {
    let mut text = format!(
        "{} wants to delete {}, since {}",
        printable(&held.device_name),
        counted(held.deletions, "file or directory", "files and directories"),
        moment(held.since.secs)
    );
    if held.earlier > 0 {
        let earlier = count(held.earlier);
        text.push_str(&format!("; {earlier} that it deleted shortly before count as well"));
    }
    if held.rejected {
        text.push_str("; rejected: it puts them back when it is connected");
    }
    for example in &held.examples {
        let path = printable(&example.to_string());
        text.push_str(&format!("\n  {}", output.paint(Tone::Faint, &path)));
    }
    if !held.examples.is_empty() && held.deletions > held.examples.len() as u64 {
        let more = held.deletions - held.examples.len() as u64;
        text.push_str(&format!("\n  and {} more", count(more)));
    }
    text
}

/// `picloud approve` and `picloud reject`.
///
/// # Errors
/// When the server cannot be reached or refuses, or nothing of that device waits.
pub async fn decide(
    machine: &Machine,
    output: Output,
    wanted: &str,
    approve: bool,
) -> Result<Exit, Failure> {
    let account: Account = machine.account()?;
    let session = account.connect().await?;
    let held = session.held().await.map_err(refused)?;
    let names = held.iter().map(|held| (held.device, held.device_name.as_str()));
    let device = find_device(names, wanted).map_err(|failure| {
        if held.iter().any(|held| held.device_name == wanted) {
            failure
        } else {
            Failure::failed(format!("No deletion of a device {wanted:?} waits"))
                .hint("`picloud held` shows what does")
        }
    })?;
    if approve {
        session.approve(device).await.map_err(refused)?;
        done(output, "Approved: the deletion goes on as soon as the device is connected")
    } else {
        session.reject(device).await.map_err(refused)?;
        done(output, "Rejected: the files are put back as soon as the device is connected")
    }
}
