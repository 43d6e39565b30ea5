//! Making a folder of this machine a copy of a drive: by a link, or after a log-in.

use std::collections::VecDeque;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::fs::{Access, access};
use serde_json::json;

use super::agent::told;
use super::args;
use super::dial::{Answers, Server, admit};
use super::failure::{Exit, Failure};
use super::machine::{Machine, new_token, real_path};
use super::output::{Output, Tone, printable};
use super::prompt;
use crate::agent::config::{Config, FolderConfig, add_folder, machine_name};
use crate::agent::credentials;
use crate::agent::disk::{DiskFolder, FolderError, Identity, Kept};
use crate::client::Session;
use crate::model::{Flow, FolderId, JoinLink};

/// How long an agent that was told of a log-out may take to let go of the folder.
const LETTING_GO: Duration = Duration::from_secs(3);

/// How many entries are looked at for synced folders in the one that is joined: a second at most.
const WALK_MAX: u32 = 50_000;

/// What is to be joined.
#[derive(Debug)]
pub struct Plan {
    /// The folder, absolute.
    pub folder: PathBuf,
    /// What the device is called.
    pub device: String,
    /// Which way changes go, where a person said so.
    pub flow: Option<Flow>,
}

impl Plan {
    /// Checks what a person asked for before anything is sent, so that a mistake costs no link.
    ///
    /// # Errors
    /// When the folder cannot be synced.
    pub fn check(
        machine: &Machine,
        folder: Option<&Path>,
        device: Option<&str>,
    ) -> Result<Self, Failure> {
        machine.check_config()?;
        let folder = match folder {
            Some(path) => path.to_owned(),
            None => std::env::home_dir()
                .filter(|home| home.is_absolute())
                .map(|home| home.join("PiCloud"))
                .ok_or_else(|| {
                    Failure::failed("There is no home directory for ~/PiCloud")
                        .hint("name the folder with --folder PATH")
                })?,
        };
        let folder = std::path::absolute(&folder)
            .map_err(|error| Failure::file("Cannot use the folder", &folder, &error))?;
        // Without links in its way and dots, so that two folders can be compared by their names.
        let folder = real_path(&folder);
        let others = machine.config.iter().flat_map(|config| &config.folders);
        for other in others {
            let other = real_path(&other.path);
            if folder == other {
                return Err(synced_already(&folder, &machine.config_path));
            }
            if folder.starts_with(&other) || other.starts_with(&folder) {
                return Err(Failure::failed(format!(
                    "{folder:?} lies in or around {other:?}, which is synced already"
                ))
                .hint("choose another folder with --folder PATH"));
            }
        }
        match std::fs::metadata(&folder) {
            Ok(metadata) if !metadata.is_dir() => {
                return Err(Failure::failed(format!("{folder:?} is not a directory"))
                    .hint("choose another folder with --folder PATH"));
            }
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                return Err(Failure::file("Cannot use the folder", &folder, &error));
            }
            _ => check_writable(&folder)?,
        }
        check_not_linked(machine, &folder)?;
        check_not_within(machine, &folder)?;
        check_no_secrets_within(machine, &folder)?;
        check_none_within(machine, &folder)?;
        let device = match (device, &machine.config) {
            (Some(device), _) => device.to_owned(),
            (None, Some(config)) => config.device_name.clone(),
            (None, None) => machine_name(),
        };
        Ok(Self { folder, device, flow: None })
    }

    /// Binds the folder to the device that was just admitted, and writes it down. When that fails,
    /// the device is taken back, so that no ghost stays in the account.
    ///
    /// # Errors
    /// When the disk refuses, or the folder belongs to another drive.
    pub async fn finish(
        &self,
        machine: &Machine,
        server: &Server,
        session: &Session,
    ) -> Result<FolderConfig, Failure> {
        match self.write(machine, server, session) {
            Ok(folder) => Ok(folder),
            Err(failure) => {
                // The first failure is what the person must know; this is tidying up.
                drop(session.logout().await);
                Err(failure)
            }
        }
    }

    fn write(
        &self,
        machine: &Machine,
        server: &Server,
        session: &Session,
    ) -> Result<FolderConfig, Failure> {
        let failed =
            |error: &(dyn std::error::Error + 'static)| Failure::from_error(Exit::Failed, error);
        let admitted = session.admitted();
        let drive = session.drive().id;
        let token = new_token(session)?;
        // Again, and for good: others may have been here since the plan was checked.
        let id = match check_not_linked(machine, &self.folder)? {
            // It was joined before: what is in it is known to belong to this drive.
            Some(identity) if identity.drive == drive => identity.folder,
            Some(_) => {
                return Err(Failure::failed(format!(
                    "{:?} was synced with another drive before",
                    self.folder
                ))
                .hint(
                    "choose another folder, or remove its .picloud directory to sync its files \
                     with this drive",
                ));
            }
            None => {
                let mut bytes = [0; FolderId::LEN];
                getrandom::fill(&mut bytes).map_err(|error| {
                    Failure::failed("The system has no random numbers").caused_by(error.to_string())
                })?;
                FolderId::from_bytes(bytes)
            }
        };
        // How it was synced before somebody logged out: nothing that was left out may be sent now.
        let kept = Kept::find(&self.folder).map_err(|error| {
            let file = self.folder.join(".picloud/settings.toml");
            Failure::file("Cannot read", &file, &error)
                .hint("it holds the folder's settings of before; repair or remove it")
        })?;
        let folder = FolderConfig {
            id,
            path: self.folder.clone(),
            server: server.address.clone(),
            authority: server.authority,
            user: admitted.user_name.clone(),
            device: admitted.device,
            device_name: admitted.device_name.clone(),
            drive,
            ignore: kept.ignore,
            paused: kept.paused,
            flow: self.flow.unwrap_or(kept.direction),
        };
        std::fs::create_dir_all(&self.folder)
            .map_err(|error| Failure::file("Cannot create the folder", &self.folder, &error))?;
        let identity = Identity { folder: id, drive };
        DiskFolder::link(&self.folder, identity, Some(&machine.config_path))
            .map_err(|error| failed(&error))?;
        if let Some(dir) = machine.config_path.parent() {
            std::fs::create_dir_all(dir)
                .map_err(|error| Failure::file("Cannot create", dir, &error))?;
        }
        let secrets = credentials::path_beside(&machine.config_path);
        credentials::set_token(&secrets, id, &token).map_err(|error| failed(&error))?;
        // Last: from here on an agent takes the folder up.
        add_folder(&machine.config_path, &folder, Some(&self.device))
            .map_err(|error| failed(&error))?;
        // Left behind, it is overwritten when the folder is let go of.
        Kept::forget(&self.folder).unwrap_or_default();
        Ok(folder)
    }
}

/// Passes when no agent syncs the folder, here or with other settings. Returns the identity that it
/// has from an earlier join.
fn check_not_linked(machine: &Machine, folder: &Path) -> Result<Option<Identity>, Failure> {
    let deadline = Instant::now() + LETTING_GO;
    let mut found = DiskFolder::linked_at(folder);
    while matches!(found, Err(FolderError::Busy { .. })) && Instant::now() < deadline {
        std::thread::sleep(Duration::from_millis(50));
        found = DiskFolder::linked_at(folder);
    }
    let linked = match found {
        Ok(Some(linked)) => linked,
        Ok(None) => return Ok(None),
        Err(error) => {
            return Err(Failure::from_error(Exit::Failed, &error)
                .hint("choose another folder with --folder PATH"));
        }
    };
    let identity = linked.identity;
    // Settings that are gone, or name no such folder any more, have let go of it.
    let config = linked.config.unwrap_or_else(|| machine.config_path.clone());
    if matches!(config.try_exists(), Ok(false)) {
        return Ok(Some(identity));
    }
    let listed = Config::load(&config).map_err(|error| {
        Failure::failed(format!("{folder:?} was joined with the settings {config:?}"))
            .because(&error)
            .hint("repair them, or choose another folder with --folder PATH")
    })?;
    match listed.folders.iter().find(|listed| listed.id == identity.folder) {
        None => Ok(Some(identity)),
        Some(listed) if real_path(&listed.path) == real_path(folder) => {
            Err(synced_already(folder, &config))
        }
        Some(listed) => Err(Failure::failed(format!(
            "{folder:?} is a copy of {:?}, which is synced already with the settings {config:?}",
            listed.path
        ))
        .hint("remove its .picloud directory to sync it as a folder of its own")),
    }
}

fn synced_already(folder: &Path, config: &Path) -> Failure {
    Failure::failed(format!("{folder:?} is synced already, with the settings {config:?}")).hint(
        format!(
            "name another folder with --folder PATH; or `picloud --config {} logout --folder {}` ends \
             that, and it can be joined again",
            config.display(),
            folder.display()
        ),
    )
}

/// Passes when the folder, or the nearest directory above that is there, can be written to: else a link
/// would be used up for nothing.
fn check_writable(folder: &Path) -> Result<(), Failure> {
    let there = folder.ancestors().find(|path| path.is_dir()).unwrap_or(folder);
    if access(there, Access::READ_OK | Access::WRITE_OK | Access::EXEC_OK).is_ok() {
        return Ok(());
    }
    Err(Failure::failed(format!("{folder:?} cannot be synced: you may not write to {there:?}"))
        .hint("choose another folder with --folder PATH"))
}

/// Passes when no directory above is synced, by whatever agent: two that fill one another's folder
/// never come to an end.
fn check_not_within(machine: &Machine, folder: &Path) -> Result<(), Failure> {
    for above in folder.ancestors().skip(1) {
        let is_linked = matches!(above.join(".picloud/identity").try_exists(), Ok(true));
        if is_linked && check_not_linked(machine, above).is_err() {
            return Err(Failure::failed(format!(
                "{folder:?} lies in {above:?}, which is synced already"
            ))
            .hint("choose another folder with --folder PATH"));
        }
    }
    Ok(())
}

/// Passes when no directory below is a synced folder of its own, as far as a short walk tells: an
/// agent does not look into one, so what is in it would be missing on the other devices.
fn check_none_within(machine: &Machine, folder: &Path) -> Result<(), Failure> {
    // The upper levels first: that is where folders are.
    let mut dirs = VecDeque::from([folder.to_owned()]);
    let mut left = WALK_MAX;
    while let Some(dir) = dirs.pop_front() {
        // What cannot be read is told by the agent, as a problem.
        for entry in std::fs::read_dir(&dir).into_iter().flatten().flatten() {
            left -= 1;
            if left == 0 {
                return Ok(());
            }
            let is_dir = entry.file_type().is_ok_and(|kind| kind.is_dir());
            if !is_dir || (dir == folder && entry.file_name() == ".picloud") {
                continue;
            }
            let inner = entry.path();
            if !matches!(inner.join(".picloud/identity").try_exists(), Ok(true)) {
                dirs.push_back(inner);
            } else if check_not_linked(machine, &inner).is_err() {
                return Err(Failure::failed(format!(
                    "{folder:?} lies around {inner:?}, which is synced already"
                ))
                .hint("choose another folder with --folder PATH"));
            } else {
                return Err(Failure::failed(format!(
                    "{folder:?} lies around {inner:?}, which was a synced folder of its own"
                ))
                .hint(format!(
                    "remove {} to sync it with the rest, or choose another folder with --folder \
                     PATH",
                    inner.join(".picloud").display()
                )));
            }
        }
    }
    Ok(())
}

/// Passes when the agent's own settings, with its token and its state, are not in the folder: they
/// would go to the server and to all devices, and change with everything that is synced.
fn check_no_secrets_within(machine: &Machine, folder: &Path) -> Result<(), Failure> {
    let state = machine.config.as_ref().map(|config| &config.state_dir);
    for own in [Some(&machine.config_path), state].into_iter().flatten() {
        if real_path(own).starts_with(folder) {
            return Err(Failure::failed(format!(
                "{folder:?} holds the agent's own files ({own:?}), which must not be synced"
            ))
            .hint(
                "choose another folder with --folder PATH, or other settings with --config FILE",
            ));
        }
    }
    Ok(())
}

/// `picloud join`.
///
/// # Errors
/// When the link is not good, the server cannot be reached, or the folder cannot be synced.
pub async fn join(machine: &Machine, output: Output, args: &args::Join) -> Result<Exit, Failure> {
    let link = link_of(&args.link)?;
    let mut plan = Plan::check(machine, args.folder.as_deref(), args.device.as_deref())?;
    plan.flow = args.direction.map(Flow::from);
    let folder = join_with(machine, &link, &plan).await?;
    report(machine, output, &folder)
}

/// Takes the join link that was typed, or that comes on standard input where that is `-`.
///
/// # Errors
/// Exit code 2 when it is none.
pub fn link_of(typed: &str) -> Result<JoinLink, Failure> {
    if typed == "-" {
        return parse_link(&prompt::lines(Path::new("-"))?.into_iter().next().unwrap_or_default());
    }
    parse_link(typed)
}

/// Reads a join link.
///
/// # Errors
/// Exit code 2 when it is none.
pub fn parse_link(text: &str) -> Result<JoinLink, Failure> {
    JoinLink::parse(text).map_err(|error| {
        Failure::from_error(Exit::Usage, &error)
            .hint("`picloud link` on a joined device prints one, or `picloud-server invite USER`")
    })
}

/// Joins with a link.
///
/// # Errors
/// As [`join`].
pub async fn join_with(
    machine: &Machine,
    link: &JoinLink,
    plan: &Plan,
) -> Result<FolderConfig, Failure> {
    let server = Server::of_link(link);
    let mut client = server.connect().await?;
    let first = client.join(&link.secret, &plan.device).await;
    let session = admit(&mut client, first, &mut Answers::Person).await?;
    plan.finish(machine, &server, &session).await
}

/// Says that a folder is joined, and what comes next.
///
/// # Errors
/// When nobody reads it.
pub fn report(machine: &Machine, output: Output, folder: &FolderConfig) -> Result<Exit, Failure> {
    if output.json() {
        told(output.object(&json!({
            "type": "joined",
            "version": 1,
            "user": folder.user,
            "server": folder.server,
            "device": folder.device_name,
            "folder": folder.path,
            "ignore": folder.ignore,
            "paused": folder.paused,
            "direction": folder.flow,
            "config": machine.config_path,
        })))?;
        return Ok(Exit::Done);
    }
    told(output.line(&format!(
        "Joined: {} {} {} at {}, as {}",
        printable(&folder.path.to_string_lossy()),
        match folder.flow {
            Flow::Both => "syncs with",
            Flow::ReceiveOnly => "receives from",
            Flow::SendOnly => "sends to",
        },
        printable(&folder.user),
        folder.server,
        printable(&folder.device_name),
    )))?;
    if !folder.ignore.is_empty() || folder.paused {
        let mut settings = Vec::new();
        if folder.paused {
            settings.push("it is paused".to_owned());
        }
        if !folder.ignore.is_empty() {
            settings.push(format!("it ignores {}", printable(&folder.ignore.join(" "))));
        }
        told(output.line(&format!(
            "Its settings of before are in force again: {}. See {}",
            settings.join(", and "),
            machine.config_path.display()
        )))?;
    }
    if !Machine::read(Some(&machine.config_path)).is_ok_and(|machine| machine.is_agent_running()) {
        let command = machine.agent_command();
        told(output.line(
            &output.paint(Tone::Faint, &format!("It begins when the agent runs: {command}")),
        ))?;
    }
    Ok(Exit::Done)
}
