//! `picloud conflicts` and `picloud resolve`: both versions of each conflict, and which to keep.

use std::fs::File;
use std::io::Read as _;
use std::path::{Path, PathBuf};

use serde_json::{Value, json};
use similar::TextDiff;

use super::agent::{Agent, told};
use super::args::{KeepWord, Resolve};
use super::control::unexpected;
use super::failure::{Exit, Failure};
use super::machine::Machine;
use super::output::{Output, Tone, bytes, moment, printable};
use super::prompt;
use crate::model::RelPath;
use crate::protocol::control::{Conflict, Keep, PathText, Reply, Request, Resolved, Side, Version};

/// The longest text that is compared, in bytes.
const DIFF_LEN_MAX: u64 = 4 * 1024 * 1024;

/// The most lines of a comparison that are shown.
const DIFF_LINES_MAX: usize = 400;

fn list(agent: &Agent) -> Result<Vec<Conflict>, Failure> {
    match agent.ask(&Request::Conflicts)?.only()? {
        Reply::Conflicts { conflicts } => Ok(conflicts),
        _ => Err(unexpected()),
    }
}

/// `picloud conflicts`.
///
/// # Errors
/// When the agent does not run or answers wrongly.
pub fn conflicts(machine: &Machine, output: Output) -> Result<Exit, Failure> {
    let conflicts = list(&machine.agent()?)?;
    for conflict in &conflicts {
        if output.json() {
            told(output.object(&conflict_json(conflict)))?;
        } else {
            told(output.line(&conflict_text(output, conflict)))?;
        }
    }
    if conflicts.is_empty() {
        if !output.json() {
            told(output.line("No conflict copies"))?;
        }
        return Ok(Exit::Done);
    }
    if !output.json() {
        let hint = "`picloud resolve PATH` settles one; with --diff it shows what differs";
        told(output.line(&output.paint(Tone::Faint, hint)))?;
    }
    Ok(Exit::Person)
}

fn conflict_json(conflict: &Conflict) -> Value {
    let version = |version: &Option<Version>| {
        version.as_ref().map(|version| {
            json!({
                "device": version.device,
                "here": version.here,
                "time": version.time,
                "bytes": version.bytes,
                "is_dir": version.is_dir,
            })
        })
    };
    json!({
        "type": "conflict",
        "version": 1,
        "folder": conflict.folder,
        "path": conflict.path,
        "original": conflict.original,
        "bytes": conflict.bytes,
        "copy_version": version(&conflict.copy_version),
        "original_version": version(&conflict.original_version),
        "mine": conflict.mine,
    })
}

/// What one of the two is called to a person, and by `--keep`.
const fn word(mine: Option<Side>, side: Side) -> &'static str {
    match (mine, side) {
        (Some(Side::Copy), Side::Copy) | (Some(Side::Original), Side::Original) => "mine",
        (Some(_), _) => "theirs",
        (None, Side::Copy) => "copy",
        (None, Side::Original) => "original",
    }
}

fn version_text(version: &Version) -> String {
    let device = match (&version.device, version.here) {
        (Some(device), true) => format!("{} (this device)", printable(device)),
        (Some(device), false) => printable(device),
        (None, _) => "another device".to_owned(),
    };
    let size = if version.is_dir { "a directory".to_owned() } else { bytes(version.bytes) };
    format!("{device}, {}, {size}", moment(version.time))
}

/// The two sides in the order in which they are told: mine first, else the original.
const fn sides(mine: Option<Side>) -> [Side; 2] {
    match mine {
        Some(Side::Copy) => [Side::Copy, Side::Original],
        Some(Side::Original) | None => [Side::Original, Side::Copy],
    }
}

fn of_side(conflict: &Conflict, side: Side) -> (&str, Option<&Version>) {
    match side {
        Side::Copy => (&conflict.path, conflict.copy_version.as_ref()),
        Side::Original => (&conflict.original, conflict.original_version.as_ref()),
    }
}

fn conflict_text(output: Output, conflict: &Conflict) -> String {
    let full = format!("{}/{}", conflict.folder.trim_end_matches('/'), conflict.original);
    let mut text = printable(&full);
    for side in sides(conflict.mine) {
        let (path, version) = of_side(conflict, side);
        let what = version.map_or_else(|| "gone".to_owned(), version_text);
        text.push_str(&format!("\n  {}: {what}", word(conflict.mine, side)));
        if side == Side::Copy {
            let path = printable(path);
            text.push_str(&format!("\n    {}", output.paint(Tone::Faint, &format!("in {path}"))));
        }
    }
    text
}

/// `picloud resolve`.
///
/// # Errors
/// When there is no such conflict, one of the two has changed or is not in sync, or nobody says what
/// to keep.
pub fn resolve(machine: &Machine, output: Output, args: &Resolve) -> Result<Exit, Failure> {
    let agent = machine.agent()?;
    let conflict = find(machine, &agent, &args.path)?;
    let asks = args.keep.is_none() || args.diff;
    if asks && !output.json() {
        told(output.line(&conflict_text(output, &conflict)))?;
    }
    if args.diff && !output.json() {
        told(output.line(&diff(output, &conflict)?))?;
    }
    let keep = match (args.keep, prompt::interactive() && !output.json()) {
        (Some(keep), true) if args.diff && !args.yes => {
            let what = keep.name();
            let answer = prompt::ask(&format!("Keep {what}? [y/N]"))?;
            if !matches!(answer.trim(), "y" | "Y" | "yes") {
                return Err(Failure::new(Exit::Person, "Nothing is changed"));
            }
            keep
        }
        (Some(keep), _) => keep,
        (None, true) => ask(&conflict)?,
        (None, false) => {
            if output.json() {
                told(output.object(&conflict_json(&conflict)))?;
            }
            return Err(Failure::new(Exit::Person, "Nothing is changed: nobody says what to keep")
                .hint(match conflict.mine {
                    Some(_) => "say it with --keep mine, theirs or both",
                    None => "say it with --keep original, copy or both",
                }));
        }
    };
    let keep = side_of(&conflict, keep)?;
    let path = conflict.path_base64.clone().ok_or_else(unexpected)?;
    let request = Request::Resolve {
        folder: conflict.folder.clone(),
        path,
        keep,
        seen: conflict.seen.clone(),
    };
    let Reply::Resolved(resolved) = agent.ask(&request)?.only()? else {
        return Err(unexpected());
    };
    show(output, &conflict, keep, &resolved)?;
    Ok(Exit::Done)
}

/// Finds the conflict that a path is about: its copy, or what it is a copy of.
fn find(machine: &Machine, agent: &Agent, path: &Path) -> Result<Conflict, Failure> {
    let spot = machine.find(path)?.ok_or_else(|| {
        Failure::failed(format!("{path:?} is not in a synced folder"))
            .hint("`picloud conflicts` lists the conflict copies")
    })?;
    let is_at = |at: &Option<PathText>, path: &RelPath| at.as_ref().is_some_and(|at| at.0 == *path);
    let mut found: Vec<Conflict> = list(agent)?;
    found.retain(|conflict| conflict.folder == spot.folder);
    if let Some(index) = found.iter().position(|one| is_at(&one.path_base64, &spot.path)) {
        return Ok(found.swap_remove(index));
    }
    found.retain(|conflict| is_at(&conflict.original_base64, &spot.path));
    match found.len() {
        0 => Err(Failure::failed(format!("There is no conflict about {:?}", spot.path))
            .hint("`picloud conflicts` lists them")),
        1 => Ok(found.remove(0)),
        _ => {
            let mut failure =
                Failure::usage(format!("There are several conflict copies of {:?}", spot.path));
            for conflict in &found {
                failure = failure.caused_by(printable(&conflict.path));
            }
            Err(failure.hint("name the copy that is meant"))
        }
    }
}

fn ask(conflict: &Conflict) -> Result<KeepWord, Failure> {
    let [first, second] = sides(conflict.mine).map(|side| word(conflict.mine, side));
    let answer = prompt::ask(&format!("Keep {first}, {second} or both? [nothing changes]"))?;
    let answer = answer.trim();
    let words =
        [KeepWord::Mine, KeepWord::Theirs, KeepWord::Both, KeepWord::Copy, KeepWord::Original];
    let mut meant = words.into_iter().filter(|keep| keep.name() == answer);
    meant.next().ok_or_else(|| Failure::new(Exit::Person, "Nothing is changed"))
}

/// Returns which version a person's word means.
fn side_of(conflict: &Conflict, keep: KeepWord) -> Result<Keep, Failure> {
    let is_mine = match keep {
        KeepWord::Both => return Ok(Keep::Both),
        KeepWord::Copy => return Ok(Keep::Copy),
        KeepWord::Original => return Ok(Keep::Original),
        KeepWord::Mine => true,
        KeepWord::Theirs => false,
    };
    match (conflict.mine, is_mine) {
        (Some(Side::Copy), true) | (Some(Side::Original), false) => Ok(Keep::Copy),
        (Some(Side::Original), true) | (Some(Side::Copy), false) => Ok(Keep::Original),
        (None, _) => {
            let mut failure = Failure::new(
                Exit::Person,
                "It is not known that just one of the two versions is this device's: nothing is \
                 changed",
            );
            for side in [Side::Original, Side::Copy] {
                let (path, version) = of_side(conflict, side);
                let what = version.map_or_else(|| "gone".to_owned(), version_text);
                let name = word(None, side);
                failure = failure.caused_by(format!("{name}: {what}, in {}", printable(path)));
            }
            Err(failure.hint("say --keep original, --keep copy or --keep both"))
        }
    }
}

fn show(
    output: Output,
    conflict: &Conflict,
    keep: Keep,
    resolved: &Resolved,
) -> Result<(), Failure> {
    if output.json() {
        return told(output.object(&json!({
            "type": "resolved",
            "version": 1,
            "folder": conflict.folder,
            "path": conflict.path,
            "original": conflict.original,
            "keep": keep,
            "kept": resolved.kept,
            "removed": resolved.removed,
        })));
    }
    let side = match keep {
        Keep::Copy => Side::Copy,
        Keep::Original => Side::Original,
        Keep::Both => {
            let kept: Vec<String> = resolved.kept.iter().map(|path| printable(path)).collect();
            return told(output.line(&format!("Both are kept: {}", kept.join(" and "))));
        }
    };
    let (_, version) = of_side(conflict, side);
    let version = version.map(version_text).unwrap_or_default();
    let kept = resolved.kept.first().map(|path| printable(path)).unwrap_or_default();
    told(output.line(&format!("{kept} holds the version of {version}")))?;
    if resolved.removed {
        let hint = "The other one goes the way of any deletion: `picloud undo` lists it once that \
                    has reached the server, and takes it back";
        told(output.line(&output.paint(Tone::Faint, hint)))?;
    }
    Ok(())
}

/// Returns what differs between the two, as a unified diff from the one that is not this device's.
fn diff(output: Output, conflict: &Conflict) -> Result<String, Failure> {
    let [new, old] = sides(conflict.mine);
    let (new, old) = if conflict.mine.is_some() { (new, old) } else { (old, new) };
    let read = |side| {
        let (shown, version) = of_side(conflict, side);
        let path = match side {
            Side::Copy => &conflict.path_base64,
            Side::Original => &conflict.original_base64,
        };
        let within = path.as_ref().map(|path| path.0.to_bytes()).unwrap_or_default();
        let within: &std::ffi::OsStr = std::os::unix::ffi::OsStrExt::from_bytes(within.as_slice());
        let path = PathBuf::from(&conflict.folder).join(within);
        let what = version.map(version_text).unwrap_or_default();
        let label = format!("{}: {what}, {}", word(conflict.mine, side), printable(shown));
        text_of(&path, version).map(|text| (label, text))
    };
    let ((old_label, old), (new_label, new)) = (read(old)?, read(new)?);
    let (Some(old), Some(new)) = (old, new) else {
        return Ok(output.paint(
            Tone::Faint,
            "They cannot be shown side by side: one is no text, is a directory or is too long",
        ));
    };
    if old == new {
        return Ok("Both hold the same".to_owned());
    }
    let diff = TextDiff::from_lines(&old, &new);
    let unified = diff.unified_diff().context_radius(3).header(&old_label, &new_label).to_string();
    Ok(painted(output, &unified))
}

/// Returns a unified diff as it may be shown.
fn painted(output: Output, unified: &str) -> String {
    let mut lines: Vec<String> = unified
        .lines()
        .take(DIFF_LINES_MAX)
        .map(|line| {
            let shown = printable(&line.replace('\t', "    "));
            match line.as_bytes().first() {
                Some(b'+') => output.paint(Tone::Good, &shown),
                Some(b'-') => output.paint(Tone::Bad, &shown),
                Some(b'@') => output.paint(Tone::Faint, &shown),
                _ => shown,
            }
        })
        .collect();
    let more = unified.lines().count().saturating_sub(DIFF_LINES_MAX);
    if more > 0 {
        lines.push(output.paint(Tone::Faint, &format!("and {more} more lines")));
    }
    lines.join("\n")
}

/// Reads a file as text; nothing when it is none.
fn text_of(path: &Path, version: Option<&Version>) -> Result<Option<String>, Failure> {
    if version.is_none_or(|version| version.is_dir || version.bytes > DIFF_LEN_MAX) {
        return Ok(None);
    }
    if !path.symlink_metadata().is_ok_and(|metadata| metadata.is_file()) {
        return Ok(None);
    }
    let mut bytes = Vec::new();
    File::open(path)
        .and_then(|file| file.take(DIFF_LEN_MAX + 1).read_to_end(&mut bytes))
        .map_err(|error| Failure::file("Cannot read", path, &error))?;
    let is_text = bytes.len() as u64 <= DIFF_LEN_MAX && !bytes.contains(&0);
    Ok(is_text.then(|| String::from_utf8(bytes).ok()).flatten())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn version(device: Option<&str>, here: bool) -> Option<Version> {
        let device = device.map(str::to_owned);
        Some(Version { device, here, time: 1_795_399_529, bytes: 1536, is_dir: false })
    }

    fn conflict(mine: Option<Side>) -> Conflict {
        Conflict {
            folder: "/home/ann/PiCloud".into(),
            path: "a (conflicted copy pi 2026-11-23).txt".into(),
            original: "a.txt".into(),
            bytes: 1536,
            path_base64: None,
            original_base64: None,
            copy_version: version(Some("pi"), mine == Some(Side::Copy)),
            original_version: version(Some("desk"), mine == Some(Side::Original)),
            mine,
            seen: String::new(),
        }
    }

    #[test]
    fn whose_a_version_is_is_said_before_anything_is_decided() {
        let text = conflict_text(Output::PLAIN, &conflict(Some(Side::Copy)));
        let at = moment(1_795_399_529);
        assert_eq!(
            text,
            format!(
                "/home/ann/PiCloud/a.txt\n  \
                   mine: pi (this device), {at}, 1.5 KiB\n    \
                     in a (conflicted copy pi 2026-11-23).txt\n  \
                   theirs: desk, {at}, 1.5 KiB"
            )
        );
        let unknown = conflict_text(Output::PLAIN, &conflict(None));
        assert!(unknown.contains("\n  original: desk, ") && unknown.contains("\n  copy: pi, "));
    }

    #[test]
    fn a_word_means_one_version_or_is_asked_about() {
        let copy = conflict(Some(Side::Copy));
        assert_eq!(side_of(&copy, KeepWord::Mine).unwrap(), Keep::Copy);
        assert_eq!(side_of(&copy, KeepWord::Theirs).unwrap(), Keep::Original);
        let original = conflict(Some(Side::Original));
        assert_eq!(side_of(&original, KeepWord::Mine).unwrap(), Keep::Original);
        assert_eq!(side_of(&original, KeepWord::Theirs).unwrap(), Keep::Copy);
        let neither = conflict(None);
        assert_eq!(side_of(&neither, KeepWord::Mine).unwrap_err().exit(), Exit::Person);
        assert_eq!(side_of(&neither, KeepWord::Original).unwrap(), Keep::Original);
    }
}
