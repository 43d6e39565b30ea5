//! `picloud why`: one sentence on how a path stands, and one on what to do about it.

use std::path::Path;

use serde_json::json;

use super::agent::told;
use super::failure::{Exit, Failure};
use super::machine::{Machine, Spot};
use super::output::{Output, Tone, bytes, counted, moment, printable};
use crate::model::{Difference, Flow};
use crate::protocol::control::{Direction, PathText, Reply, Request, RuleSource, Standing};

/// What is told of a path.
#[derive(Debug, PartialEq, Eq)]
struct Words {
    sentence: String,
    fix: Option<String>,
}

impl Words {
    fn new(sentence: impl Into<String>) -> Self {
        Self { sentence: sentence.into(), fix: None }
    }

    fn fix(mut self, fix: impl Into<String>) -> Self {
        self.fix = Some(fix.into());
        self
    }
}

/// `picloud why`.
///
/// # Errors
/// When the agent does not run or answers wrongly.
pub fn why(machine: &Machine, output: Output, path: &Path) -> Result<Exit, Failure> {
    let agent = machine.agent()?;
    let Some(Spot { folder, path: within }) = machine.find(path)? else {
        return outside(machine, output, path);
    };
    let request = Request::Why { folder: folder.clone(), path: PathText(within.clone()) };
    let Reply::Why { standing } = agent.ask(&request)?.only()? else {
        return Err(super::control::unexpected());
    };
    let shown = match within.is_root() {
        true => printable(&folder),
        false => printable(&within.to_string()),
    };
    let words = words(&shown, &standing);
    if output.json() {
        let mut object = json!({"type": "why", "version": 1, "folder": folder});
        object["path"] = within.to_string().into();
        let standing = serde_json::to_value(&standing)
            .map_err(|error| Failure::failed("Cannot write the answer").because(&error))?;
        if let (Some(object), serde_json::Value::Object(standing)) =
            (object.as_object_mut(), standing)
        {
            object.extend(standing);
        }
        object["sentence"] = words.sentence.into();
        object["fix"] = words.fix.into();
        told(output.object(&object))?;
    } else {
        show(output, &words)?;
    }
    Ok(exit_of(&standing))
}

fn outside(machine: &Machine, output: Output, path: &Path) -> Result<Exit, Failure> {
    let shown = path.to_string_lossy();
    let folders: Vec<String> =
        machine.folders().iter().map(|folder| printable(&folder.path.to_string_lossy())).collect();
    let words = Words::new(format!("{} is not in a synced folder", printable(&shown)))
        .fix(format!("move it into one to sync it: {}", folders.join(", ")));
    if output.json() {
        told(output.object(&json!({
            "type": "why",
            "version": 1,
            "folder": null,
            "path": shown,
            "standing": "outside",
            "sentence": words.sentence,
            "fix": words.fix,
        })))?;
    } else {
        show(output, &words)?;
    }
    Ok(Exit::Done)
}

fn show(output: Output, words: &Words) -> Result<(), Failure> {
    told(output.line(&words.sentence))?;
    if let Some(fix) = &words.fix {
        told(output.line(&format!("{} {fix}", output.paint(Tone::Faint, "What to do:"))))?;
    }
    Ok(())
}

/// What is left out, or is nowhere, stands as somebody wished.
fn exit_of(standing: &Standing) -> Exit {
    match standing {
        Standing::InSync
        | Standing::Ignored { .. }
        | Standing::LeftOut { .. }
        | Standing::Kept { .. }
        | Standing::Own
        | Standing::BeyondLink { .. }
        | Standing::Absent { .. } => Exit::Done,
        Standing::ConflictCopy { .. }
        | Standing::NameClash { .. }
        | Standing::InnerFolder { .. }
        | Standing::Special
        | Standing::Unreadable { .. }
        | Standing::Held { .. }
        | Standing::Problem { .. }
        | Standing::Problems { .. }
        | Standing::OverQuota { .. }
        | Standing::Stopped { .. }
        | Standing::WrongServer { .. } => Exit::Person,
        Standing::Offline { .. } => Exit::Offline,
        Standing::Paused { .. } => Exit::Paused,
        Standing::Busy
        | Standing::NotSeenYet
        | Standing::Moving { .. }
        | Standing::Waiting { .. }
        | Standing::After { .. }
        | Standing::Retry { .. }
        | Standing::PutOff
        | Standing::CatchingUp => Exit::Busy,
    }
}

/// What differs in a folder whose changes go one way only.
fn kept(path: &str, flow: Flow, what: Difference) -> Words {
    let done = match what {
        Difference::New => "made",
        Difference::Gone => "deleted",
        Difference::Moved => "moved",
        Difference::Edited | Difference::Both => "edited",
        Difference::Touched => "changed in its permissions or time",
    };
    match flow {
        Flow::SendOnly if what == Difference::Both => Words::new(format!(
            "{path} was edited here and in the drive: each side keeps its own, and what is here is not \
             in the drive"
        ))
        .fix(format!("`picloud override {}` puts what is here there", quoted(path))),
        Flow::SendOnly => Words::new(format!(
            "{path} was {done} in the drive, which stays there: this folder only sends"
        ))
        .fix(format!("`picloud override {}` takes that back in the drive", quoted(path))),
        Flow::ReceiveOnly | Flow::Both => Words::new(format!(
            "{path} was {done} here, which stays here: this folder only receives"
        ))
        .fix(format!("nothing, or `picloud revert {}` to take that back", quoted(path))),
    }
}

/// What has not happened yet: "is not on the server yet", say.
fn not_yet(direction: Direction) -> &'static str {
    match direction {
        Direction::Up => "has a change that is not on the server yet",
        Direction::Down => "has a change on the server that is not here yet",
    }
}

/// Returns how a path stands in words. `path` is as it may be shown.
fn words(path: &str, standing: &Standing) -> Words {
    let waits = |direction: &Direction, why: &str| {
        Words::new(format!("{path} {}: {why}", not_yet(*direction)))
    };
    match standing {
        Standing::InSync => Words::new(format!("{path} is in sync")),
        Standing::ConflictCopy { original } => Words::new(format!(
            "{path} is in sync; it is a conflict copy of {}",
            printable(original)
        ))
        .fix(format!("see both with `picloud resolve --diff {}`, then keep one", quoted(path))),
        Standing::NameClash { drive_name, here } => Words::new(format!(
            "{} is in sync; in the drive its name is \"{}\", which this disk cannot hold, or holds \
             for the same as another's there",
            printable(here),
            printable(drive_name)
        ))
        .fix("rename it, here or on another device"),
        Standing::Ignored { source, file, line, pattern, at } => {
            ignored(path, *source, file.as_deref().map(|file| (file, *line)), pattern, at)
        }
        Standing::LeftOut { with, is_here } => {
            let with = printable(with);
            let what = if with == path { String::new() } else { format!(", with {with}") };
            let then = if *is_here { "; it goes from here in a moment" } else { "" };
            Words::new(format!("{path} is left out on this device{what}{then}"))
                .fix(format!("`picloud include {}` brings it back", quoted(&with)))
        }
        Standing::Kept { flow, what } => kept(path, *flow, *what),
        Standing::Own => Words::new(format!(
            "{path} is not synced: .picloud is the agent's own directory, and no file of that name \
             is synced anywhere"
        )),
        Standing::BeyondLink { link } => Words::new(format!(
            "{path} is not synced: {} is a symbolic link, which is synced as a link, without what \
             it points to",
            printable(link)
        ))
        .fix("put the files themselves into the folder"),
        Standing::InnerFolder { at } => Words::new(format!(
            "{path} is not synced from here: {} is a synced folder of its own",
            printable(at)
        ))
        .fix(
            "move it out of this folder; or if no agent syncs it, remove the .picloud directory \
             in it",
        ),
        Standing::Special => Words::new(format!(
            "{path} is not synced: it is a socket, FIFO or device"
        ))
        .fix("remove it, or add it to .picloudignore"),
        Standing::Unreadable { at, reason } => {
            let at = printable(at);
            let what = if at == path { "it" } else { at.as_str() };
            Words::new(format!("{path} cannot be synced: {what} cannot be read ({})", plain(reason)))
                .fix(format!("let the agent's user read it, or add it to .picloudignore: ls -ld {}", quoted(&at)))
        }
        Standing::Busy => Words::new(format!(
            "{path} is not sent yet: it is being written to, and changed each time it was read"
        ))
        .fix("nothing; it is sent as soon as it is quiet"),
        Standing::NotSeenYet => Words::new(format!(
            "{path} has just changed here, and is looked at in a moment"
        ))
        .fix("`picloud sync` looks at everything now, and waits until it is done"),
        Standing::Moving { direction: Direction::Up } => {
            Words::new(format!("{path} is being sent to the server"))
        }
        Standing::Moving { direction: Direction::Down } => {
            Words::new(format!("{path} is being received from the server"))
        }
        Standing::Waiting { direction, pending } => waits(
            direction,
            &format!("it waits for its turn, among {}", counted(*pending, "change", "changes")),
        )
        .fix("nothing; `picloud status --watch` shows how far it is"),
        Standing::After { direction, blocker } => {
            waits(direction, &format!("{} comes first", printable(blocker)))
                .fix(format!("`picloud why {}` says what that one waits for", quoted(&printable(blocker))))
        }
        Standing::Retry { direction, secs } => waits(
            direction,
            &format!("the last try came to nothing; the next one is in {}", counted(*secs, "second", "seconds")),
        )
        .fix("`picloud sync` tries at once"),
        Standing::PutOff => Words::new(format!(
            "{path} was deleted here; the server is told once it is certain that it was not moved"
        ))
        .fix("nothing; that takes some seconds"),
        Standing::Held { device } => Words::new(format!(
            "{path} was deleted here, by a mass deletion that waits for a person"
        ))
        .fix(format!(
            "`picloud approve {0}` lets it happen everywhere, `picloud reject {0}` puts the files back",
            quoted(&printable(device))
        )),
        Standing::Problem { direction, reason } => waits(direction, &plain(reason))
            .fix("see to that; the agent tries again by itself, and `picloud sync` at once"),
        Standing::OverQuota { needs, left } => Words::new(format!(
            "{path} cannot be sent: over quota; it needs {} on the server, where {} of the account's \
             room are left",
            bytes(*needs),
            bytes(*left)
        ))
        .fix("delete what is not needed, or ask who runs the server for more"),
        Standing::Offline { direction } => waits(direction, "the server cannot be reached")
            .fix("nothing if the server comes back; else see that it runs and can be reached"),
        Standing::Paused { by_settings: false } => {
            Words::new(format!("{path} is not synced now: PiCloud is paused")).fix("`picloud resume`")
        }
        Standing::Paused { by_settings: true } => Words::new(format!(
            "{path} is not synced now: the settings have `paused = true` for its folder"
        ))
        .fix("remove that line from the agent's settings"),
        Standing::CatchingUp => Words::new(format!(
            "{path} is not synced yet: the agent is still comparing the folder with the server"
        ))
        .fix("nothing; `picloud status --watch` shows how far it is"),
        Standing::Stopped { reason } => {
            Words::new(format!("{path} is not synced: {}", plain(reason)))
                .fix("see to that; `picloud status` shows when it is over")
        }
        Standing::WrongServer { reason } => Words::new(format!(
            "{path} is not synced: what answers is not the right server ({})",
            plain(reason)
        ))
        .fix("ask who runs the server"),
        Standing::Problems { count } => Words::new(format!(
            "{path} is in sync but for {}",
            counted(*count, "path that needs you", "paths that need you")
        ))
        .fix("`picloud status` shows them"),
        Standing::Absent { last: Some(last) } => Words::new(format!(
            "There is no {path}, neither here nor on the server; last, at {}: {}",
            moment(last.time),
            last.event
        ))
        .fix("`picloud undo` lists what was changed, and brings back what was deleted"),
        Standing::Absent { last: None } => {
            Words::new(format!("There is no {path}, neither here nor on the server"))
                .fix("look for a slip in the name; `picloud undo` lists what was deleted")
        }
    }
}

fn ignored(
    path: &str,
    source: RuleSource,
    file: Option<(&str, Option<u64>)>,
    pattern: &str,
    at: &str,
) -> Words {
    let (pattern, at) = (printable(pattern), printable(at));
    let place = match (source, &file) {
        (RuleSource::File, Some((file, Some(line)))) => {
            format!("line {line} of {}", printable(file))
        }
        (RuleSource::File, Some((file, None))) => printable(file),
        (RuleSource::File, None) => ".picloudignore".to_owned(),
        (RuleSource::Settings, _) => "`ignore` in the agent's settings".to_owned(),
        (RuleSource::Defaults, _) => "one of the defaults".to_owned(),
    };
    let what = if at == path { "it".to_owned() } else { format!("{at}, which it is in,") };
    let words = Words::new(format!(
        "{path} is not synced: the rule `{pattern}` ({place}) leaves {what} out"
    ));
    let take_back = format!("!{}", pattern.trim_start_matches('!'));
    words.fix(match source {
        RuleSource::File => "if it is to be synced, remove that rule".to_owned(),
        RuleSource::Settings => {
            "if it is to be synced, remove that rule from the settings".to_owned()
        }
        RuleSource::Defaults => {
            format!("if it is to be synced, add the line `{take_back}` to .picloudignore")
        }
    })
}

/// Returns a reason without what would end a sentence twice.
fn plain(reason: &str) -> String {
    printable(reason.trim_end_matches('.'))
}

/// Returns a path as it can be typed in a shell.
fn quoted(path: &str) -> String {
    let is_plain = |c: char| c.is_alphanumeric() || "/._-+,@%=:".contains(c);
    if !path.is_empty() && path.chars().all(is_plain) && !path.starts_with('-') {
        path.to_owned()
    } else {
        format!("'{}'", path.replace('\'', r"'\''"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(standing: &Standing, sentence: &str, fix: &str) {
        let found = words("a/b c.txt", standing);
        assert_eq!((found.sentence.as_str(), found.fix.as_deref().unwrap_or("")), (sentence, fix));
    }

    #[test]
    fn each_standing_is_a_sentence_and_a_fix() {
        check(&Standing::InSync, "a/b c.txt is in sync", "");
        check(
            &Standing::Ignored {
                source: RuleSource::File,
                file: Some(".picloudignore".into()),
                line: Some(3),
                pattern: "a/".into(),
                at: "a".into(),
            },
            "a/b c.txt is not synced: the rule `a/` (line 3 of .picloudignore) leaves a, which it \
             is in, out",
            "if it is to be synced, remove that rule",
        );
        check(
            &Standing::Ignored {
                source: RuleSource::Defaults,
                file: None,
                line: None,
                pattern: "*~".into(),
                at: "a/b c.txt".into(),
            },
            "a/b c.txt is not synced: the rule `*~` (one of the defaults) leaves it out",
            "if it is to be synced, add the line `!*~` to .picloudignore",
        );
        check(
            &Standing::LeftOut { with: "a".into(), is_here: false },
            "a/b c.txt is left out on this device, with a",
            "`picloud include a` brings it back",
        );
        check(
            &Standing::Offline { direction: Direction::Up },
            "a/b c.txt has a change that is not on the server yet: the server cannot be reached",
            "nothing if the server comes back; else see that it runs and can be reached",
        );
        check(
            &Standing::ConflictCopy { original: "a/b.txt".into() },
            "a/b c.txt is in sync; it is a conflict copy of a/b.txt",
            "see both with `picloud resolve --diff 'a/b c.txt'`, then keep one",
        );
        check(
            &Standing::Held { device: "my pi".into() },
            "a/b c.txt was deleted here, by a mass deletion that waits for a person",
            "`picloud approve 'my pi'` lets it happen everywhere, `picloud reject 'my pi'` puts the \
             files back",
        );
        check(
            &Standing::Unreadable { at: "a".into(), reason: "Permission denied".into() },
            "a/b c.txt cannot be synced: a cannot be read (Permission denied)",
            "let the agent's user read it, or add it to .picloudignore: ls -ld a",
        );
    }
}
