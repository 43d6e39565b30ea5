//! `picloud exclude` and `picloud include`: which directories of the drive are on this device.

use std::path::{Path, PathBuf};

use serde_json::{Value, json};

use super::agent::told;
use super::control::unexpected;
use super::failure::{Exit, Failure};
use super::machine::{Machine, Spot};
use super::output::{Output, Tone, printable};
use crate::protocol::control::{LeftOut, PathText, Reply, Request};

/// `picloud exclude` without a directory: lists what is left out.
///
/// # Errors
/// When the agent does not run or answers wrongly.
pub fn list(machine: &Machine, output: Output) -> Result<Exit, Failure> {
    let dirs = ask(machine, &Request::LeftOut)?;
    if output.json() {
        dirs.iter().try_for_each(|dir| told(output.object(&object("left-out", dir))))?;
        return Ok(Exit::Done);
    }
    for dir in &dirs {
        let gone = if dir.in_drive { "" } else { "  (not in the drive now)" };
        let full = format!("{}/{}", dir.folder.trim_end_matches('/'), dir.path);
        told(output.line(&format!("{}{}", printable(&full), output.paint(Tone::Faint, gone))))?;
    }
    if dirs.is_empty() {
        told(output.line("Nothing is left out on this device"))?;
    }
    Ok(Exit::Done)
}

/// `picloud exclude DIR...`.
///
/// # Errors
/// When the agent does not run, or one of them cannot be left out; those before it are then.
pub fn exclude(machine: &Machine, output: Output, dirs: &[PathBuf]) -> Result<Exit, Failure> {
    for dir in dirs {
        let Spot { folder, path } = find(machine, dir)?;
        for dir in ask(machine, &Request::Exclude { folder, path: PathText(path) })? {
            if output.json() {
                told(output.object(&object("excluded", &dir)))?;
            } else {
                told(output.line(&format!(
                    "{} is left out on this device; what is here of it goes once the server has it",
                    printable(&dir.path)
                )))?;
            }
        }
    }
    Ok(Exit::Done)
}

/// `picloud include DIR...`.
///
/// # Errors
/// When the agent does not run, or one of them is not left out; those before it come back then.
pub fn include(machine: &Machine, output: Output, dirs: &[PathBuf]) -> Result<Exit, Failure> {
    for dir in dirs {
        let Spot { folder, path } = find(machine, dir)?;
        for dir in ask(machine, &Request::Include { folder, path: PathText(path) })? {
            if output.json() {
                told(output.object(&object("included", &dir)))?;
                continue;
            }
            let path = printable(&dir.path);
            told(output.line(&match dir.in_drive {
                true => format!("{path} comes back; `picloud sync` waits until it is here"),
                false => format!("{path} is left out no more; it is not in the drive now"),
            }))?;
        }
    }
    Ok(Exit::Done)
}

fn find(machine: &Machine, dir: &Path) -> Result<Spot, Failure> {
    machine.find(dir)?.ok_or_else(|| {
        Failure::usage(format!("{dir:?} is not in a synced folder"))
            .hint("name it by its whole path, or as `picloud exclude` lists it")
    })
}

fn ask(machine: &Machine, request: &Request) -> Result<Vec<LeftOut>, Failure> {
    match machine.agent()?.ask(request)?.only()? {
        Reply::LeftOut { dirs } => Ok(dirs),
        _ => Err(unexpected()),
    }
}

fn object(kind: &str, dir: &LeftOut) -> Value {
    json!({
        "type": kind,
        "version": 1,
        "folder": dir.folder,
        "path": dir.path,
        "in_drive": dir.in_drive,
    })
}
