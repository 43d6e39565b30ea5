//! `picloud setup`: from a link to a folder that syncs, and back.
//!
//! It joins as `join` does, but compares the folder with the drive first and says what will happen; then it
//! sees to it that the agent runs, now and later, and waits until it is at work. `--undo` takes all of that
//! back but the files.

use std::path::Path;
use std::time::{Duration, Instant};

use serde_json::json;

use super::account::log_out;
use super::agent::{look, status_of, told};
use super::args::{OfFolder, Setup};
use super::compare::{Comparison, compare};
use super::dial::{Answers, Server, admit};
use super::failure::{Exit, Failure};
use super::join::{Plan, link_of};
use super::machine::Machine;
use super::output::{Output, Tone, bytes, counted, printable};
use super::status::status_text;
use super::units::{self, Person, Runs};
use super::{prompt, wait};
use crate::agent::config::FolderConfig;
use crate::agent::disk::Kept;
use crate::client::Session;
use crate::model::Flow;
use crate::protocol::control::{State, Status};

/// The largest drive that is compared: more is held in memory by no one.
const COMPARED_MAX: usize = 1_000_000;

/// How long the agent may take until it is at work.
const BEGIN_MAX: Duration = Duration::from_secs(60);

/// `picloud setup`.
///
/// # Errors
/// When the link is not good, the server cannot be reached, the folder cannot be synced, or a person does
/// not agree.
pub fn setup(machine: &Machine, output: Output, args: &Setup) -> Result<Exit, Failure> {
    if let Some(person) = &args.person {
        return for_person(output, args, &Person::find(person)?);
    }
    if args.undo {
        return undo(machine, output, args);
    }
    let text = args.link.as_deref().ok_or_else(|| Failure::usage("A link is needed"))?;
    let link = link_of(text)?;
    let mut plan = Plan::check(machine, args.folder.as_deref(), args.device.as_deref())?;
    plan.flow = args.direction.map(Flow::from);
    let folder = wait(async {
        let server = Server::of_link(&link);
        let mut client = server.connect().await?;
        let first = client.join(&link.secret, &plan.device).await;
        let session = admit(&mut client, first, &mut Answers::Person).await?;
        let agreed = match compared(output, &plan, &server, &session).await {
            Ok(comparison) => agreed(output, args, &comparison).await,
            Err(failure) => Err(failure),
        };
        if let Err(failure) = agreed {
            return Err(give_back(&session, failure).await);
        }
        plan.finish(machine, &server, &session).await
    })?;
    if args.no_report {
        return Ok(Exit::Done);
    }
    // With the folder in its settings.
    let machine = Machine::read(Some(&machine.config_path))?;
    let runs = match args.no_unit {
        true if machine.is_agent_running() => Runs::Already,
        true => Runs::Nobody(String::new()),
        false => units::start_for_user(&machine),
    };
    report(&machine, output, &folder, &runs)
}

/// Compares, and says what will happen.
async fn compared(
    output: Output,
    plan: &Plan,
    server: &Server,
    session: &Session,
) -> Result<Option<Comparison>, Failure> {
    let drive = session.manifest(COMPARED_MAX).await.map_err(|error| Failure::of_client(&error))?;
    let kept = Kept::find(&plan.folder).unwrap_or_default();
    let flow = plan.flow.unwrap_or(kept.direction);
    let comparison = match drive {
        Some(drive) => {
            let folder = plan.folder.clone();
            let compared =
                tokio::task::spawn_blocking(move || compare(&folder, drive, &kept.ignore));
            let compared = compared
                .await
                .map_err(|error| Failure::failed("The comparison failed").because(&error))?;
            Some(compared.map_err(|error| Failure::from_error(Exit::Failed, &error))?)
        }
        None => None,
    };
    let admitted = session.admitted();
    if output.json() {
        told(output.object(&comparison_json(&plan.folder, flow, comparison.as_ref())))?;
    } else {
        told(output.line(&format!(
            "{} will {} {} at {}; this device is {} there",
            printable(&plan.folder.to_string_lossy()),
            match flow {
                Flow::Both => "sync with",
                Flow::ReceiveOnly => "receive from",
                Flow::SendOnly => "send to",
            },
            printable(&admitted.user_name),
            server.address,
            printable(&admitted.device_name)
        )))?;
        told(output.line(&comparison_text(output, flow, comparison.as_ref())))?;
    }
    Ok(comparison)
}

fn comparison_json(
    folder: &Path,
    flow: Flow,
    comparison: Option<&Comparison>,
) -> serde_json::Value {
    let Some(found) = comparison else {
        return json!({
            "type": "comparison",
            "version": 1,
            "folder": folder,
            "direction": flow,
            "compared": false,
        });
    };
    let conflicts: Vec<String> = found.conflicts.iter().map(ToString::to_string).collect();
    json!({
        "type": "comparison",
        "version": 1,
        "folder": folder,
        "direction": flow,
        "compared": !found.is_partial,
        "receive": found.receive.files,
        "receive_bytes": found.receive.bytes,
        "send": found.send.files,
        "send_bytes": found.send.bytes,
        "same": found.same.files,
        "conflict_count": found.conflict_count,
        "conflicts": conflicts,
        "ignored": found.ignored,
        "problems": found.problems,
    })
}

fn comparison_text(output: Output, flow: Flow, comparison: Option<&Comparison>) -> String {
    let never = "Nothing is deleted, neither here nor there";
    let Some(found) = comparison else {
        let what = match flow {
            Flow::Both => {
                "what is on one side only goes to the other, and where both differ both versions are kept"
            }
            Flow::ReceiveOnly => {
                "what is in the drive only comes here, what is here only stays here, and where both \
                 differ both versions are kept here"
            }
            Flow::SendOnly => {
                "what is here only is sent, and what is in the drive only, or differs, stays as it is"
            }
        };
        return format!("  The drive is too large to be compared beforehand: {what}\n  {never}");
    };
    let files = |number| counted(number, "file", "files");
    let (receive, send) = match flow {
        Flow::Both => ("to receive", "to send"),
        Flow::ReceiveOnly => ("to receive", "only here, where it stays"),
        Flow::SendOnly => ("only in the drive, where it stays", "to send"),
    };
    let mut lines = vec![
        format!("{receive}: {}, {}", files(found.receive.files), bytes(found.receive.bytes)),
        format!("{send}: {}, {}", files(found.send.files), bytes(found.send.bytes)),
    ];
    if found.same.files > 0 {
        lines.push(format!("the same already: {}", files(found.same.files)));
    }
    if found.conflict_count > 0 {
        let what = match flow {
            Flow::SendOnly => "each side keeps its own",
            Flow::Both | Flow::ReceiveOnly => {
                "both versions are kept, the one from here as a conflict copy"
            }
        };
        lines.push(format!("different on both sides: {}; {what}", files(found.conflict_count)));
        lines.extend(found.conflicts.iter().map(|path| {
            let path = printable(&path.to_string());
            format!("  {}", output.paint(Tone::Wait, &path))
        }));
        let more = found.conflict_count - found.conflicts.len() as u64;
        if more > 0 {
            lines.push(format!("  and {more} more"));
        }
    }
    if found.ignored > 0 {
        lines.push(format!("left out by ignore rules: {}", found.ignored));
    }
    if found.problems > 0 {
        lines.push(format!("cannot be read or synced: {}", found.problems));
    }
    if found.is_partial {
        lines.push("and more: the folder was not looked at to its end".to_owned());
    }
    lines.push(never.to_owned());
    lines.iter().map(|line| format!("  {line}")).collect::<Vec<_>>().join("\n")
}

/// Asks the person, where there is anything to be asked: an empty folder is filled without a question.
async fn agreed(
    output: Output,
    args: &Setup,
    comparison: &Option<Comparison>,
) -> Result<(), Failure> {
    let is_plain = comparison.as_ref().is_some_and(|found| {
        found.send.files == 0 && found.conflict_count == 0 && !found.is_partial
    });
    if args.yes || is_plain {
        return Ok(());
    }
    if !prompt::interactive() || output.json() {
        return Err(Failure::new(Exit::Person, "Nothing is changed: nobody is there to ask")
            .hint("`--yes` does it without a question"));
    }
    let asked = tokio::task::spawn_blocking(|| prompt::ask("Go on? [Y/n]"));
    let answer = tokio::select! {
        answer = asked => answer.map_err(|error| Failure::failed("Nothing was typed").because(&error))??,
        interrupted = tokio::signal::ctrl_c() => {
            drop(interrupted);
            return Err(Failure::new(Exit::Person, INTERRUPTED));
        }
    };
    match answer.trim() {
        "" | "y" | "Y" | "yes" => Ok(()),
        _ => Err(Failure::new(Exit::Person, "Nothing is changed")),
    }
}

const INTERRUPTED: &str = "Interrupted: nothing is changed";

/// Takes the device back, so that no ghost stays in the account; the link was used up by it, so there
/// is another one.
async fn give_back(session: &Session, failure: Failure) -> Failure {
    let invited = session.invite().await;
    // The failure is what the person must know; this is tidying up.
    drop(session.logout().await);
    let is_interrupted = failure.to_string() == INTERRUPTED;
    let failure = match invited {
        Ok(invited) => failure.caused_by(format!(
            "the link worked once and is used up; this one can be used instead: {}",
            invited.link
        )),
        Err(_) => failure.caused_by("the link worked once and is used up: ask for another one"),
    };
    if is_interrupted {
        // Somebody is still being asked, and would be waited for.
        eprint!("{}", failure.render());
        std::process::exit(130);
    }
    failure
}

/// Waits until the folder's first sync is under way, and says where it is.
fn report(
    machine: &Machine,
    output: Output,
    folder: &FolderConfig,
    runs: &Runs,
) -> Result<Exit, Failure> {
    let status = match runs {
        Runs::Nobody(_) => None,
        Runs::Already | Runs::User | Runs::System(_) => first_sync(machine, folder),
    };
    let path = printable(&folder.path.to_string_lossy());
    if output.json() {
        let (unit, reason) = match runs {
            Runs::Already => ("running", None),
            Runs::User => ("user-unit", None),
            Runs::System(_) => ("system-unit", None),
            Runs::Nobody(reason) => ("none", Some(reason)),
        };
        told(output.object(&json!({
            "type": "set-up",
            "version": 1,
            "user": folder.user,
            "server": folder.server,
            "device": folder.device_name,
            "folder": folder.path,
            "config": machine.config_path,
            "agent": unit,
            "reason": reason,
            "state": status.as_ref().map(|status| status.state),
        })))?;
        return Ok(Exit::Done);
    }
    match (runs, &status) {
        (Runs::Nobody(reason), _) => {
            let why = if reason.is_empty() { String::new() } else { format!(" ({reason})") };
            told(output.line(&format!(
                "Set up: {path} syncs as soon as the agent runs, which nobody starts by itself \
                 here{why}: {}",
                machine.agent_command()
            )))?;
        }
        (_, None) => {
            told(output.line(&format!(
                "Set up: {path} is to sync, but the agent does not say so yet: see `picloud status`"
            )))?;
            return Ok(Exit::Busy);
        }
        (_, Some(status)) => {
            let service = match runs {
                Runs::User => "; the agent starts whenever you log in",
                Runs::System(_) => "; the agent starts with the machine",
                Runs::Already | Runs::Nobody(_) => "",
            };
            told(output.line(&format!("Set up: your files are in {path}{service}")))?;
            told(output.line(&status_text(look(output, false), status)))?;
        }
    }
    let hint =
        "`picloud status --watch` follows it; `picloud setup --undo` ends it and keeps the files";
    told(output.line(&output.paint(Tone::Faint, hint)))?;
    Ok(Exit::Done)
}

/// Returns the status once the folder is at work or in sync, or says why it is not; nothing when the
/// agent does not tell in time.
fn first_sync(machine: &Machine, folder: &FolderConfig) -> Option<Status> {
    let agent = machine.agent().ok()?;
    let deadline = Instant::now() + BEGIN_MAX;
    let wanted = folder.path.to_string_lossy();
    loop {
        let status = status_of(&agent.socket, &agent.config);
        let of_folder = status
            .as_ref()
            .and_then(|status| status.folders.iter().find(|folder| folder.path == wanted));
        let is_begun = of_folder.is_some_and(|folder| match folder.state {
            State::Syncing => folder.uploads + folder.downloads > 0,
            State::InSync | State::Problem | State::Paused | State::Stopped => true,
            // It may be the first try that is under way.
            State::Offline => Instant::now() + BEGIN_MAX / 2 > deadline,
        });
        if is_begun {
            return status;
        }
        if Instant::now() >= deadline {
            return of_folder.is_some().then_some(status).flatten();
        }
        std::thread::sleep(Duration::from_millis(100));
    }
}

/// `picloud setup --undo`.
fn undo(machine: &Machine, output: Output, args: &Setup) -> Result<Exit, Failure> {
    let of = OfFolder { folder: args.folder.clone() };
    let exit = wait(log_out(machine, output, &of))?;
    let machine = Machine::read(Some(&machine.config_path))?;
    if machine.folders().is_empty() && !args.no_unit && units::stop_for_user(&machine) {
        agent_stopped(output)?;
    }
    Ok(exit)
}

fn agent_stopped(output: Output) -> Result<(), Failure> {
    match output.json() {
        true => Ok(()),
        false => told(output.line("The agent is stopped, and does not start by itself any more")),
    }
}

/// Does it as another person, and the part of it that only root can.
fn for_person(output: Output, args: &Setup, person: &Person) -> Result<Exit, Failure> {
    let mut words = vec!["setup".to_owned(), "--no-unit".to_owned()];
    if output.json() {
        words.push("--json".to_owned());
    }
    if args.yes {
        words.push("--yes".to_owned());
    }
    if args.undo {
        words.push("--undo".to_owned());
    }
    if !args.undo && !args.no_unit {
        words.push("--no-report".to_owned());
    }
    if let Some(folder) = &args.folder {
        words.push(format!("--folder={}", folder.display()));
    }
    if let Some(device) = &args.device {
        words.push(format!("--device={device}"));
    }
    if let Some(direction) = args.direction {
        words.push(format!("--direction={}", Flow::from(direction).as_str()));
    }
    words.extend(args.link.clone());
    let code = person.run(&words)?;
    if code != Exit::Done.code() {
        return Err(Failure::new(Exit::of_code(code), "It is not set up"));
    }
    let machine = Machine::read(Some(&person.config()))?;
    if args.undo {
        if machine.folders().is_empty() && units::stop_for(&person.name) {
            agent_stopped(output)?;
        }
        return Ok(Exit::Done);
    }
    let Some(folder) = machine.folders().last() else {
        return Err(Failure::failed("The settings name no folder"));
    };
    if args.no_unit {
        return Ok(Exit::Done);
    }
    report(&machine, output, folder, &units::start_for(&person.name))
}
