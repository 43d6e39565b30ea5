//! How a status looks: in a terminal of any width, where lines cannot change, read aloud, and as JSON.
//!
//! Nothing here asks anybody for anything: the same status, width and moment give the same text.

use serde_json::json;

use super::layout::{Lines, ago, bar, percent, shortened, span, width_of};
use super::output::{Output, Tone, bytes, count, counted, moment, printable};
use crate::model::Flow;
use crate::protocol::control::{
    DeviceStatus, Direction, FolderStatus, HeldDeletion, Problem, SpaceStatus, State, Status,
};

/// What the server told longer ago than this is said to be of then, in seconds.
const FRESH_SECS: i64 = 120;

/// The most devices named.
const DEVICES_SHOWN: usize = 12;

/// The most directories named that are left out.
const LEFT_OUT_SHOWN: usize = 5;

/// How wide a bar is at most.
const BAR_MAX: usize = 20;

/// How and when a status is shown.
#[derive(Debug, Clone, Copy)]
pub struct Look {
    /// Colours, or none.
    pub output: Output,
    /// How many columns there are; nothing where nobody counts them.
    pub width: Option<usize>,
    /// Whole sentences, without symbols and bars: for who listens.
    pub plain: bool,
    /// The time of day, in seconds since the Unix epoch.
    pub now: i64,
}

/// Returns the JSON of a status: the agent's own object, with the sums over all folders beside it.
#[must_use]
pub fn status_json(status: &Status) -> serde_json::Value {
    let sum = |of: fn(&FolderStatus) -> u64| status.folders.iter().map(of).sum::<u64>();
    let own = status
        .problems
        .iter()
        .map(|problem| json!({"folder": "", "path": problem.path, "reason": problem.reason}));
    let problems: Vec<_> = own
        .chain(status.folders.iter().flat_map(|folder| {
            folder.problems.iter().map(|problem| {
                json!({"folder": folder.path, "path": problem.path, "reason": problem.reason})
            })
        }))
        .collect();
    json!({
        "type": "status",
        "version": status.version,
        "state": status.state,
        "files": sum(|f| f.files),
        "dirs": sum(|f| f.dirs),
        "bytes": sum(|f| f.bytes),
        "left_out_files": sum(|f| f.left_out_files),
        "left_out_bytes": sum(|f| f.left_out_bytes),
        "kept": sum(|f| f.kept),
        "uploads": sum(|f| f.uploads),
        "upload_bytes": sum(|f| f.upload_bytes),
        "upload_rate": sum(|f| f.upload_rate),
        "downloads": sum(|f| f.downloads),
        "download_bytes": sum(|f| f.download_bytes),
        "download_rate": sum(|f| f.download_rate),
        "secs_left": secs_left(status),
        "conflicts": sum(|f| f.conflicts),
        "problem_count": sum(|f| f.problem_count) + status.problems.len() as u64,
        "problems": problems,
        // The oldest: since then all folders have been in agreement at least once.
        "last_sync": status.folders.iter().map(|f| f.last_sync).min().flatten(),
        "folders": status.folders,
    })
}

/// Returns how long the slowest folder takes, when each that is at work can tell.
fn secs_left(status: &Status) -> Option<u64> {
    let at_work = status.folders.iter().filter(|folder| folder.state == State::Syncing);
    at_work.map(|folder| folder.secs_left).collect::<Option<Vec<u64>>>()?.into_iter().max()
}

/// Returns all problems, those of folders first.
pub fn all_problems(status: &Status) -> impl Iterator<Item = &Problem> {
    status.folders.iter().flat_map(|folder| &folder.problems).chain(&status.problems)
}

/// Whether a problem is about a path, and not about a folder or the agent as a whole.
#[must_use]
pub fn is_about_paths(status: &Status) -> bool {
    all_problems(status).any(|problem| !problem.path.is_empty())
}

fn state_words(state: State, about_paths: bool) -> (&'static str, Tone) {
    match state {
        State::Problem if !about_paths => ("Something needs you", Tone::Bad),
        State::InSync => ("In sync", Tone::Good),
        State::Syncing => ("Syncing", Tone::Wait),
        State::Offline => ("Offline: the server cannot be reached", Tone::Wait),
        State::Paused => ("Paused", Tone::Wait),
        State::Problem => ("Some paths need you", Tone::Bad),
        State::Stopped => ("Stopped", Tone::Bad),
    }
}

/// What is pending in a folder, or nothing: `↑ 3 (1.2 MiB)  ↓ 1 (8 B)`.
#[must_use]
pub fn pending(folder: &FolderStatus) -> Option<String> {
    let part = |arrow, changes, size| {
        (changes > 0).then(|| format!("{arrow} {} ({})", count(changes), bytes(size)))
    };
    let parts: Vec<_> = [
        part("↑", folder.uploads, folder.upload_bytes),
        part("↓", folder.downloads, folder.download_bytes),
    ]
    .into_iter()
    .flatten()
    .collect();
    (!parts.is_empty()).then(|| parts.join("  "))
}

/// Returns one line for where lines cannot change.
#[must_use]
pub fn summary_line(status: &Status) -> String {
    let mut line = state_words(status.state, is_about_paths(status)).0.to_owned();
    for folder in &status.folders {
        line.push_str(&format!(
            "  {}: {}, {}",
            printable(&folder.path),
            counted(folder.files, "file", "files"),
            bytes(folder.bytes)
        ));
        if let Some(pending) = pending(folder) {
            line.push_str(&format!("  {pending}"));
        }
    }
    line
}

/// Returns the whole status for a person.
#[must_use]
pub fn status_text(look: Look, status: &Status) -> String {
    if look.plain {
        return super::spoken::status(status, look.now);
    }
    let mut lines = Lines::new(look.output, look.width);
    let (words, tone) = state_words(status.state, is_about_paths(status));
    let left = secs_left(status).map(|secs| format!(", about {} left", span(secs)));
    lines.add(0, Some(tone), &format!("{words}{}", left.unwrap_or_default()));
    problem_lines(&mut lines, &status.problems, status.problems.len() as u64);
    let mut devices_before: &[DeviceStatus] = &[];
    for folder in &status.folders {
        folder_lines(&mut lines, look, status, folder);
        let then = told_then(folder, look.now);
        if folder.devices != devices_before {
            devices_line(&mut lines, look, &folder.devices, &then);
            devices_before = &folder.devices;
        }
        if let Some(space) = &folder.space {
            let text = format!("Server: {}{then}", space_words(space));
            lines.add(2, Some(Tone::Faint), &text);
        }
    }
    lines.into_text()
}

fn folder_lines(lines: &mut Lines, look: Look, status: &Status, folder: &FolderStatus) {
    let who = format!(
        "{} at {} as {}",
        printable(&folder.user),
        printable(&folder.server),
        printable(&folder.device)
    );
    lines.add_pair(&printable(&folder.path), &who);
    if status.folders.len() > 1 || folder.state != status.state {
        let about_paths = folder.problems.iter().any(|problem| !problem.path.is_empty());
        let (words, tone) = state_words(folder.state, about_paths);
        lines.add(2, Some(tone), words);
    }
    if let Some(reason) = &folder.offline {
        lines.add(2, None, &printable(reason));
    }
    lines.add(
        2,
        None,
        &format!(
            "{} in {}, {}",
            counted(folder.files, "file", "files"),
            counted(folder.dirs, "directory", "directories"),
            bytes(folder.bytes)
        ),
    );
    if !folder.left_out.is_empty() {
        lines.add(2, None, &format!("Left out on this device: {}", left_out_words(folder)));
    }
    if let Some(words) = flow_words(folder) {
        lines.add(2, None, &words);
    }
    if let Some(last) = folder.last_sync.filter(|_| folder.state != State::InSync) {
        let text = format!("Last in sync {}", moment(last));
        lines.add(2, Some(Tone::Faint), &text);
    }
    for direction in [Direction::Up, Direction::Down] {
        direction_lines(lines, look, folder, direction);
    }
    if folder.conflicts > 0 {
        let what = counted(folder.conflicts, "conflict copy", "conflict copies");
        let text =
            format!("{what}: `picloud conflicts` shows whose, `picloud resolve` settles one");
        lines.add(2, Some(Tone::Wait), &text);
    }
    if folder.agrees == Some(false) {
        let words = "The tree here does not match the server's: it is being compared again";
        lines.add(2, Some(Tone::Bad), words);
    }
    problem_lines(lines, &folder.problems, folder.problem_count);
    // This device's own are among the problems.
    for held in folder.held.iter().filter(|held| !held.here) {
        lines.add(2, Some(Tone::Wait), &held_words(held));
    }
}

/// Returns what is left out on this device, and how much that is.
#[must_use]
pub fn left_out_words(folder: &FolderStatus) -> String {
    let mut names: Vec<String> =
        folder.left_out.iter().take(LEFT_OUT_SHOWN).map(|path| printable(path)).collect();
    let more = folder.left_out.len().saturating_sub(names.len());
    if more > 0 {
        names.push(format!("{more} more"));
    }
    let files = counted(folder.left_out_files, "file", "files");
    format!("{} ({files}, {})", names.join(", "), bytes(folder.left_out_bytes))
}

/// Returns which way changes go, where that is one way only, and what differs because of it.
#[must_use]
pub fn flow_words(folder: &FolderStatus) -> Option<String> {
    let changes = |what: &str| match folder.kept {
        0 => String::new(),
        kept => format!(": {} {what}", counted(kept, "change", "changes")),
    };
    match folder.direction {
        Flow::Both => None,
        Flow::ReceiveOnly => Some(format!(
            "Receives only{}",
            changes("made and kept here; `picloud revert` takes back what was changed")
        )),
        Flow::SendOnly => Some(format!(
            "Sends only{}",
            changes(
                "in the drive, not carried out here; `picloud override` takes back what was changed there"
            )
        )),
    }
}

/// What is under way in one direction.
fn direction_lines(lines: &mut Lines, look: Look, folder: &FolderStatus, direction: Direction) {
    let (arrow, what, changes, left, rate) = match direction {
        Direction::Up => ("↑", "to send", folder.uploads, folder.upload_bytes, folder.upload_rate),
        Direction::Down => {
            ("↓", "to receive", folder.downloads, folder.download_bytes, folder.download_rate)
        }
    };
    if changes == 0 {
        return;
    }
    let mut text = format!("{arrow} {} {what}, {}", count(changes), bytes(left));
    if rate > 0 {
        text.push_str(&format!(" at {}/s", bytes(rate)));
        if left > 0 {
            text.push_str(&format!(", about {} left", span(left.div_ceil(rate))));
        }
    }
    lines.add(2, Some(Tone::Wait), &text);
    for transfer in folder.transfers.iter().filter(|one| one.direction == direction) {
        let done = percent(transfer.bytes_done, transfer.bytes);
        let bar_width = (lines.width() / 4).min(BAR_MAX);
        let mut line = match look.output.live() {
            true => format!("    {} ", bar(transfer.bytes_done, transfer.bytes, bar_width)),
            false => "    ".to_owned(),
        };
        line.push_str(&format!("{done:>2} %  "));
        let room = lines.width().saturating_sub(width_of(&line)).max(8);
        line.push_str(&shortened(&printable(&transfer.path), room));
        lines.push(line);
    }
}

fn problem_lines(lines: &mut Lines, problems: &[Problem], total: u64) {
    for problem in problems {
        let path = match problem.path.as_str() {
            "" => String::new(),
            path => format!("{}: ", printable(path)),
        };
        lines.add(2, Some(Tone::Bad), &format!("{path}{}", printable(&problem.reason)));
    }
    let more = total.saturating_sub(problems.len() as u64);
    if more > 0 {
        lines.add(2, None, &format!("and {} more", count(more)));
    }
}

/// Returns what another device's held deletion is, and what to do.
#[must_use]
pub fn held_words(held: &HeldDeletion) -> String {
    format!(
        "{} wants to delete {} everywhere, since {}: see `picloud held`, then `picloud approve` or \
         `picloud reject`",
        printable(&held.device),
        counted(held.deletions, "file or directory", "files and directories"),
        moment(held.since)
    )
}

/// Returns how a device is.
#[must_use]
pub fn device_words(device: &DeviceStatus, now: i64) -> String {
    let name = printable(&device.name);
    match (device.this, device.connected, device.last_seen) {
        (true, ..) => format!("{name} (this one)"),
        (false, true, _) => format!("{name} connected"),
        (false, false, Some(seen)) => format!("{name} seen {}", ago(now, seen)),
        (false, false, None) => format!("{name} never seen"),
    }
}

/// Says when the server told of devices and room, if that was not just now.
fn told_then(folder: &FolderStatus, now: i64) -> String {
    let is_old = |at: &i64| folder.state == State::Offline || now > at + FRESH_SECS;
    let told_at = folder.told_at.filter(is_old);
    told_at.map(|at| format!(" (as of {})", moment(at))).unwrap_or_default()
}

fn devices_line(lines: &mut Lines, look: Look, devices: &[DeviceStatus], then: &str) {
    let mut words: Vec<String> =
        devices.iter().take(DEVICES_SHOWN).map(|one| device_words(one, look.now)).collect();
    if devices.len() > DEVICES_SHOWN {
        words.push(format!("{} more", devices.len() - DEVICES_SHOWN));
    }
    if !words.is_empty() {
        lines.add(2, Some(Tone::Faint), &format!("Devices: {}{then}", words.join(", ")));
    }
}

/// Returns how much room there is.
#[must_use]
pub fn space_words(space: &SpaceStatus) -> String {
    let stored = bytes(space.stored);
    let free = format!("{} of {} free", bytes(space.free), bytes(space.total));
    match (space.used, space.quota) {
        (Some(used), Some(quota)) => format!("{} of {} used", bytes(used), bytes(quota)),
        _ => format!("{stored} taken, earlier versions included; {free}"),
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use crate::protocol::control::Transfer;

    pub(in crate::cli) const NOW: i64 = 1_795_399_529;

    pub(in crate::cli) fn folder() -> FolderStatus {
        FolderStatus {
            path: "/home/ann/PiCloud".into(),
            server: "box:46000".into(),
            user: "ann".into(),
            device: "laptop".into(),
            state: State::InSync,
            offline: None,
            files: 1204,
            dirs: 1,
            bytes: 3_340_000_000,
            uploads: 0,
            upload_bytes: 0,
            downloads: 0,
            download_bytes: 0,
            conflicts: 0,
            problem_count: 0,
            problems: Vec::new(),
            last_sync: None,
            cursor: 7,
            agrees: Some(true),
            held: Vec::new(),
            left_out: Vec::new(),
            left_out_files: 0,
            left_out_bytes: 0,
            direction: Flow::Both,
            kept: 0,
            upload_rate: 0,
            download_rate: 0,
            secs_left: None,
            transfers: Vec::new(),
            devices: Vec::new(),
            space: None,
            told_at: None,
        }
    }

    /// A folder in which everything is going on.
    pub(in crate::cli) fn busy() -> Status {
        let device = |name: &str, this, connected, last_seen| DeviceStatus {
            name: name.into(),
            this,
            connected,
            last_seen,
        };
        Status {
            program: String::new(),
            version: 1,
            state: State::Syncing,
            folders: vec![FolderStatus {
                state: State::Syncing,
                uploads: 3,
                upload_bytes: 1_200_000_000,
                upload_rate: 2_200_000,
                downloads: 1,
                download_bytes: 8,
                secs_left: Some(546),
                transfers: vec![Transfer {
                    path: "Photos/2026/Summer in the mountains/IMG_2312.mov".into(),
                    direction: Direction::Up,
                    bytes_done: 420,
                    bytes: 1000,
                }],
                conflicts: 2,
                problem_count: 3,
                problems: vec![Problem {
                    path: "a\nb".into(),
                    reason: "It cannot be read: Permission denied".into(),
                }],
                devices: vec![
                    device("laptop", true, true, Some(NOW)),
                    device("desk", false, true, Some(NOW)),
                    device("phone", false, false, Some(NOW - 3 * 3600 - 5)),
                ],
                space: Some(SpaceStatus {
                    stored: 4_000_000_000,
                    free: 225_900_000_000,
                    total: 1_000_200_000_000,
                    used: Some(3_340_000_000),
                    quota: None,
                }),
                told_at: Some(NOW - 3),
                ..folder()
            }],
            problems: Vec::new(),
        }
    }

    #[track_caller]
    fn check(width: Option<usize>, live: bool, status: &Status, expected: &str) {
        let output = if live { Output::COLOURLESS } else { Output::PLAIN };
        let look = Look { output, width, plain: false, now: NOW };
        let text = status_text(look, status);
        assert_eq!(text, expected, "\n{text}\n");
        for line in text.lines().filter(|_| width.is_some()) {
            assert!(width_of(line) <= width.unwrap_or(0), "{line:?}");
        }
    }

    #[test]
    fn a_quiet_folder_is_two_lines() {
        let status = Status {
            version: 1,
            program: String::new(),
            state: State::InSync,
            folders: vec![folder()],
            problems: vec![],
        };
        let expected = "In sync\n\
                        /home/ann/PiCloud  ann at box:46000 as laptop\n  \
                          1,204 files in 1 directory, 3.1 GiB";
        check(None, false, &status, expected);
        check(Some(80), true, &status, expected);
    }

    #[test]
    fn a_busy_folder_in_80_columns() {
        check(
            Some(80),
            true,
            &busy(),
            "Syncing, about 10 minutes left\n\
             /home/ann/PiCloud  ann at box:46000 as laptop\n  \
               1,204 files in 1 directory, 3.1 GiB\n  \
               ↑ 3 to send, 1.1 GiB at 2.0 MiB/s, about 10 minutes left\n    \
                 ████████░░░░░░░░░░░░ 42 %  Photos/2026/Summer in the mountains/IMG_2312.mov\n  \
               ↓ 1 to receive, 8 B\n  \
               2 conflict copies: `picloud conflicts` shows whose, `picloud resolve` settles\n    \
                 one\n  \
               a\\nb: It cannot be read: Permission denied\n  \
               and 2 more\n  \
               Devices: laptop (this one), desk connected, phone seen 3 hours ago\n  \
               Server: 3.7 GiB taken, earlier versions included; 210.3 GiB of 931.5 GiB free",
        );
    }

    #[test]
    fn a_busy_folder_in_40_columns() {
        check(
            Some(40),
            true,
            &busy(),
            "Syncing, about 10 minutes left\n\
             /home/ann/PiCloud\n  \
               ann at box:46000 as laptop\n  \
               1,204 files in 1 directory, 3.1 GiB\n  \
               ↑ 3 to send, 1.1 GiB at 2.0 MiB/s,\n    \
                 about 10 minutes left\n    \
                 ████░░░░░░ 42 %  …tains/IMG_2312.mov\n  \
               ↓ 1 to receive, 8 B\n  \
               2 conflict copies: `picloud conflicts`\n    \
                 shows whose, `picloud resolve`\n    \
                 settles one\n  \
               a\\nb: It cannot be read: Permission\n    \
                 denied\n  \
               and 2 more\n  \
               Devices: laptop (this one), desk\n    \
                 connected, phone seen 3 hours ago\n  \
               Server: 3.7 GiB taken, earlier\n    \
                 versions included; 210.3 GiB of\n    \
                 931.5 GiB free",
        );
    }

    #[test]
    fn what_the_server_told_before_it_went_away_is_said_to_be_of_then() {
        let mut status = busy();
        status.folders[0].state = State::Offline;
        let look = Look { output: Output::PLAIN, width: None, plain: false, now: NOW };
        let text = status_text(look, &status);
        let then = format!("seen 3 hours ago (as of {})\n", moment(NOW - 3));
        assert!(text.contains(&then), "{text}");
    }

    #[test]
    fn the_json_of_a_status_keeps_its_contract() {
        let object = status_json(&busy());
        assert_eq!(object["type"], "status");
        assert_eq!(object["version"], 1);
        assert_eq!(object["state"], "syncing");
        let keys: Vec<&str> = object
            .as_object()
            .map(|map| map.keys().map(String::as_str).collect())
            .unwrap_or_default();
        let expected = "bytes conflicts dirs download_bytes download_rate downloads files folders \
                        kept last_sync left_out_bytes left_out_files problem_count problems secs_left state type \
                        upload_bytes upload_rate uploads version";
        assert_eq!(keys.join(" "), expected);
        let folder = &object["folders"][0];
        let keys: Vec<&str> = folder
            .as_object()
            .map(|map| map.keys().map(String::as_str).collect())
            .unwrap_or_default();
        let expected = "agrees bytes conflicts cursor device devices direction dirs download_bytes \
                        download_rate downloads files held kept last_sync left_out left_out_bytes \
                        left_out_files offline path problem_count problems secs_left server space \
                        state told_at transfers upload_bytes upload_rate uploads user";
        assert_eq!(keys.join(" "), expected);
        assert_eq!(folder["transfers"][0]["direction"], "up");
    }
}
