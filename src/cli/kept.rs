//! `picloud revert` and `picloud override`: ending what differs in a folder whose changes go one way only.

use std::path::Path;

use serde_json::{Value, json};

use super::agent::told;
use super::args::OneWay;
use super::control::unexpected;
use super::failure::{Exit, Failure};
use super::machine::{Machine, Spot};
use super::output::{Output, Tone, count, counted, printable};
use super::prompt;
use crate::model::{Difference, Flow, RelPath};
use crate::protocol::control::{KeptPaths, PathText, Reply, Request};

/// So many paths are shown before the question.
const SHOWN: usize = 20;

/// What a person wants.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Wish {
    /// This device becomes what the drive is.
    Revert,
    /// The drive becomes what this device is.
    Override,
}

impl Wish {
    const fn name(self) -> &'static str {
        match self {
            Self::Revert => "revert",
            Self::Override => "override",
        }
    }

    /// In which folders it can be had.
    const fn flow(self) -> Flow {
        match self {
            Self::Revert => Flow::ReceiveOnly,
            Self::Override => Flow::SendOnly,
        }
    }
}

/// Carries a wish out, once a person has seen what it is about, or said `--yes`.
///
/// # Errors
/// When the agent does not run, the folder is of another direction, or a person does not agree.
pub fn end(machine: &Machine, output: Output, wish: Wish, args: &OneWay) -> Result<Exit, Failure> {
    let Spot { folder, path } = spot(machine, wish, args.path.as_deref())?;
    let ask = |is_ended: bool| {
        let (folder, path) = (folder.clone(), PathText(path.clone()));
        match machine.agent()?.ask(&Request::Kept { folder, path, end: is_ended })?.only()? {
            Reply::Kept(kept) => Ok(kept),
            _ => Err(unexpected()),
        }
    };
    let kept = ask(false)?;
    if kept.direction != wish.flow() {
        return Err(of_another_direction(wish, &folder, kept.direction));
    }
    if kept.count == 0 {
        return match output.json() {
            true => told(output.object(&object(wish, &folder, &path, &kept, false))),
            false => told(output.line(nothing(wish))),
        }
        .map(|()| Exit::Done);
    }
    if !args.yes {
        if output.json() {
            told(output.object(&object(wish, &folder, &path, &kept, false)))?;
        } else {
            told(output.line(&text(output, wish, &kept)))?;
        }
        if args.dry_run {
            return Ok(Exit::Done);
        }
        if !prompt::interactive() {
            return Err(Failure::new(Exit::Person, "Nothing is done: nobody is there to ask")
                .hint("`--yes` does it without a question"));
        }
        let answer = prompt::ask(question(wish))?;
        if !matches!(answer.trim(), "y" | "Y" | "yes") {
            return Err(Failure::new(Exit::Person, "Nothing is done"));
        }
    }
    let ended = ask(true)?;
    if output.json() {
        told(output.object(&object(wish, &folder, &path, &ended, true)))?;
    } else {
        let side = match wish {
            Wish::Revert => "here",
            Wish::Override => "in the drive",
        };
        told(output.line(&format!(
            "Taking back {} {side}; `picloud sync` waits until it is done",
            changes(ended.count)
        )))?;
    }
    Ok(Exit::Done)
}

/// Returns what a path names, or the one folder that there is.
fn spot(machine: &Machine, wish: Wish, path: Option<&Path>) -> Result<Spot, Failure> {
    if let Some(path) = path {
        return machine.find(path)?.ok_or_else(|| {
            Failure::usage(format!("{path:?} is not in a synced folder"))
                .hint(format!("`picloud {}` alone is about the whole folder", wish.name()))
        });
    }
    let one_way: Vec<_> =
        machine.folders().iter().filter(|folder| folder.flow == wish.flow()).collect();
    match one_way.as_slice() {
        [folder] => {
            Ok(Spot { folder: folder.path.to_string_lossy().into_owned(), path: RelPath::ROOT })
        }
        [] => {
            machine.check_config()?;
            match machine.folders() {
                [folder] => {
                    let shown = folder.path.to_string_lossy();
                    Err(of_another_direction(wish, &shown, folder.flow))
                }
                _ => Err(Failure::usage(format!(
                    "No folder here has `direction = \"{}\"`",
                    wish.flow().as_str()
                ))),
            }
        }
        [..] => Err(Failure::usage("There are several such folders")
            .hint(format!("name which: `picloud {} PATH`", wish.name()))),
    }
}

fn of_another_direction(wish: Wish, folder: &str, flow: Flow) -> Failure {
    let folder = printable(folder);
    let failure = match flow {
        Flow::Both => {
            Failure::failed(format!("{folder} syncs both ways: nothing in it differs for long"))
        }
        Flow::ReceiveOnly => Failure::failed(format!("{folder} only receives")),
        Flow::SendOnly => Failure::failed(format!("{folder} only sends")),
    };
    match (wish, flow) {
        (_, Flow::Both) => failure.hint(
            "`picloud undo` takes changes back everywhere; a folder goes one way with `direction` in \
             the agent's settings",
        ),
        (Wish::Revert, _) => {
            failure.hint("`picloud override` makes the drive what this device has")
        }
        (Wish::Override, _) => failure.hint("`picloud revert` makes it what the drive is"),
    }
}

const fn nothing(wish: Wish) -> &'static str {
    match wish {
        Wish::Revert => "Nothing here differs from the drive",
        Wish::Override => "Nothing in the drive differs from what this device has",
    }
}

const fn question(wish: Wish) -> &'static str {
    match wish {
        Wish::Revert => "Take this back here? What is only here is gone then. [y/N]",
        Wish::Override => "Take this back in the drive, on all devices? [y/N]",
    }
}

fn changes(number: u64) -> String {
    counted(number, "change", "changes")
}

fn text(output: Output, wish: Wish, kept: &KeptPaths) -> String {
    let mut text = match wish {
        Wish::Revert => format!("{} here, which the drive does not have:", changes(kept.count)),
        Wish::Override => {
            format!("{} in the drive, which this device does not have:", changes(kept.count))
        }
    };
    for one in kept.paths.iter().take(SHOWN) {
        let what = output.paint(Tone::Faint, words(one.what));
        text.push_str(&format!("\n  {what} {}", printable(&one.path)));
    }
    let shown = kept.paths.len().min(SHOWN) as u64;
    if kept.count > shown {
        text.push_str(&format!("\n  and {} more", count(kept.count - shown)));
    }
    text
}

/// In one width.
const fn words(what: Difference) -> &'static str {
    match what {
        Difference::New => "new    ",
        Difference::Gone => "deleted",
        Difference::Moved => "moved  ",
        Difference::Edited => "edited ",
        Difference::Both => "both   ",
        Difference::Touched => "touched",
    }
}

fn object(wish: Wish, folder: &str, path: &RelPath, kept: &KeptPaths, done: bool) -> Value {
    json!({
        "type": wish.name(),
        "version": 1,
        "folder": folder,
        "path": path.to_string(),
        "done": done,
        "count": kept.count,
        "paths": kept.paths,
    })
}
