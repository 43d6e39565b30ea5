//! A status for who listens to it: one sentence a line, no symbols, no bars, nothing that is only told by
//! its place.

use super::layout::{ago, percent, span};
use super::output::{bytes, count, counted, moment, printable};
use super::status::{flow_words, held_words, left_out_words};
use crate::protocol::control::{Direction, FolderStatus, Problem, State, Status};

/// Returns the sentences.
#[must_use]
pub fn status(status: &Status, now: i64) -> String {
    let mut lines = vec![format!("PiCloud {}.", state_words(status.state))];
    problems(&mut lines, "", &status.problems, status.problems.len() as u64);
    for folder in &status.folders {
        folder_sentences(&mut lines, folder, now);
    }
    lines.join("\n")
}

/// Returns one sentence for where each change is told.
#[must_use]
pub fn summary(status: &Status) -> String {
    let sum = |of: fn(&FolderStatus) -> u64| status.folders.iter().map(of).sum::<u64>();
    let (up, down) = (sum(|folder| folder.uploads), sum(|folder| folder.downloads));
    let mut line = format!("PiCloud {}", state_words(status.state));
    if up + down > 0 {
        let (up, down) = (counted(up, "change", "changes"), counted(down, "change", "changes"));
        line.push_str(&format!(", with {up} to be sent and {down} to be received"));
    }
    format!("{line}.")
}

const fn state_words(state: State) -> &'static str {
    match state {
        State::InSync => "is in sync",
        State::Syncing => "is syncing",
        State::Offline => "is offline: the server cannot be reached",
        State::Paused => "is paused",
        State::Problem => "needs you",
        State::Stopped => "has stopped",
    }
}

/// The unit of a rate is spoken as well.
fn per_second(rate: u64) -> String {
    format!("{} per second", bytes(rate))
}

fn folder_sentences(lines: &mut Vec<String>, folder: &FolderStatus, now: i64) {
    lines.push(format!(
        "The folder {} {}; it belongs to {} at {}, and this device is called {}.",
        printable(&folder.path),
        state_words(folder.state),
        printable(&folder.user),
        printable(&folder.server),
        printable(&folder.device)
    ));
    if let Some(reason) = &folder.offline {
        lines.push(format!("{}.", printable(reason)));
    }
    lines.push(format!(
        "It holds {} in {}, {}.",
        counted(folder.files, "file", "files"),
        counted(folder.dirs, "directory", "directories"),
        bytes(folder.bytes)
    ));
    if !folder.left_out.is_empty() {
        lines.push(format!("Left out on this device is {}.", left_out_words(folder)));
    }
    if let Some(words) = flow_words(folder) {
        lines.push(format!("{words}."));
    }
    if let Some(last) = folder.last_sync.filter(|_| folder.state != State::InSync) {
        lines.push(format!("It was last in sync at {}.", moment(last)));
    }
    let up = (folder.uploads, "sent", folder.upload_bytes, folder.upload_rate);
    let down = (folder.downloads, "received", folder.download_bytes, folder.download_rate);
    for (changes, done, left, rate) in [up, down] {
        if changes > 0 {
            let mut line = format!(
                "{} {} to be {done}, {}",
                counted(changes, "change", "changes"),
                if changes == 1 { "waits" } else { "wait" },
                bytes(left)
            );
            if rate > 0 {
                line.push_str(&format!(", at {}", per_second(rate)));
            }
            lines.push(format!("{line}."));
        }
    }
    for transfer in &folder.transfers {
        let doing = match transfer.direction {
            Direction::Up => "being sent",
            Direction::Down => "being received",
        };
        let done = percent(transfer.bytes_done, transfer.bytes);
        lines.push(format!("{} is {doing}, {done} percent done.", printable(&transfer.path)));
    }
    if let Some(secs) = folder.secs_left {
        lines.push(format!("That takes about {}.", span(secs)));
    }
    if folder.conflicts > 0 {
        let what = counted(folder.conflicts, "conflict copy", "conflict copies");
        let verb = if folder.conflicts == 1 { "waits" } else { "wait" };
        lines.push(format!(
            "{what} {verb} for you: the command picloud conflicts lists them, picloud resolve \
             settles one."
        ));
    }
    if folder.agrees == Some(false) {
        lines.push(
            "The tree here does not match the server's: it is being compared again.".to_owned(),
        );
    }
    problems(lines, "Problem with ", &folder.problems, folder.problem_count);
    for held in folder.held.iter().filter(|held| !held.here) {
        lines.push(format!("{}.", held_words(held).replace('`', "")));
    }
    for device in folder.devices.iter().filter(|device| !device.this) {
        let name = printable(&device.name);
        lines.push(match (device.connected, device.last_seen) {
            (true, _) => format!("The device {name} is connected."),
            (false, Some(seen)) => format!("The device {name} was last seen {}.", ago(now, seen)),
            (false, None) => format!("The device {name} was never seen."),
        });
    }
    if let Some(space) = &folder.space {
        if let (Some(used), Some(quota)) = (space.used, space.quota) {
            lines.push(format!("You have used {} of your {}.", bytes(used), bytes(quota)));
        }
        lines.push(format!(
            "On the server this takes {}, earlier versions included; {} of {} are free there.",
            bytes(space.stored),
            bytes(space.free),
            bytes(space.total)
        ));
    }
    if let Some(told_at) = folder.told_at.filter(|_| folder.state == State::Offline) {
        lines.push(format!("The server told of devices and room at {}.", moment(told_at)));
    }
}

fn problems(lines: &mut Vec<String>, before: &str, problems: &[Problem], total: u64) {
    for problem in problems {
        let reason = printable(&problem.reason).replace('`', "");
        lines.push(match problem.path.as_str() {
            "" => format!("{reason}."),
            path => format!("{before}{}: {reason}.", printable(path)),
        });
    }
    let more = total.saturating_sub(problems.len() as u64);
    if more > 0 {
        let what = if more == 1 { "path has a problem" } else { "paths have problems" };
        lines.push(format!("{} more {what}.", count(more)));
    }
}

#[cfg(test)]
mod tests {
    use super::super::status::tests::{NOW, busy};
    use super::*;

    #[test]
    fn each_line_is_a_sentence() {
        let text = status(&busy(), NOW);
        assert_eq!(
            text,
            "PiCloud is syncing.\n\
             The folder /home/ann/PiCloud is syncing; it belongs to ann at box:46000, and this \
             device is called laptop.\n\
             It holds 1,204 files in 1 directory, 3.1 GiB.\n\
             3 changes wait to be sent, 1.1 GiB, at 2.0 MiB per second.\n\
             1 change waits to be received, 8 B.\n\
             Photos/2026/Summer in the mountains/IMG_2312.mov is being sent, 42 percent done.\n\
             That takes about 10 minutes.\n\
             2 conflict copies wait for you: the command picloud conflicts lists them, picloud \
             resolve settles one.\n\
             Problem with a\\nb: It cannot be read: Permission denied.\n\
             2 more paths have problems.\n\
             The device desk is connected.\n\
             The device phone was last seen 3 hours ago.\n\
             On the server this takes 3.7 GiB, earlier versions included; 210.3 GiB of 931.5 GiB \
             are free there."
        );
        assert!(text.lines().all(|line| line.ends_with('.')));
    }
}
