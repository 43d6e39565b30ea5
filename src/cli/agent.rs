//! The commands that ask the running agent: status, sync, conflicts, pause, resume, log.

use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressStyle};
use serde_json::json;

use super::control::{Conversation, Next, stopped, unexpected};
use super::failure::{Exit, Failure};
use super::output::{Output, Tone, bytes, count, counted, moment, printable};
use crate::protocol::control::{FolderStatus, LogLine, Problem, Reply, Request, State, Status};

/// The agent of one config.
#[derive(Debug)]
pub struct Agent {
    /// Its config.
    pub config: PathBuf,
    /// Where it listens.
    pub socket: PathBuf,
}

impl Agent {
    fn ask(&self, request: &Request) -> Result<Conversation, Failure> {
        Conversation::open(&self.socket, &self.config, request)
    }

    /// `picloud status`.
    ///
    /// # Errors
    /// When the agent does not run or answers wrongly.
    pub fn status(&self, output: Output) -> Result<Exit, Failure> {
        let reply = match self.ask(&Request::Status).and_then(Conversation::only) {
            Err(failure) if failure.exit() == Exit::NoAgent && output.json() => {
                // A script that reads the state gets one, and the exit code says the rest.
                told(output.object(&status_json(&no_agent_status())))?;
                return Err(failure);
            }
            other => other?,
        };
        let Reply::Status(status) = reply else {
            return Err(unexpected());
        };
        show_status(output, &status)?;
        Ok(Exit::from_state(status.state))
    }

    /// `picloud status --watch`.
    ///
    /// # Errors
    /// When the agent does not run, stops, or answers wrongly.
    pub fn watch(&self, output: Output) -> Result<Exit, Failure> {
        let mut conversation = self.ask(&Request::Watch)?;
        let mut area = LiveArea::new(output);
        loop {
            match conversation.next(None)? {
                Next::Reply(Reply::Status(status)) => {
                    if output.json() {
                        told(output.object(&status_json(&status)))?;
                    } else if output.live() {
                        area.show(&status_text(output, &status));
                    } else {
                        told(output.line(&summary_line(&status)))?;
                    }
                }
                Next::Reply(_) => return Err(unexpected()),
                Next::Closed | Next::TimeUp => return Err(stopped()),
            }
        }
    }

    /// `picloud sync`.
    ///
    /// # Errors
    /// When the agent does not run, stops, or answers wrongly.
    pub fn sync(&self, output: Output, timeout: Option<Duration>) -> Result<Exit, Failure> {
        let deadline = timeout.map(|timeout| Instant::now() + timeout);
        let mut conversation = self.ask(&Request::Sync)?;
        let mut progress = SyncProgress::new(output);
        loop {
            let left = deadline.map(|deadline| deadline.saturating_duration_since(Instant::now()));
            match conversation.next(left)? {
                Next::Reply(Reply::Progress(status)) => progress.show(&status)?,
                Next::Reply(Reply::Synced(status)) => {
                    progress.clear();
                    return finish_sync(output, &status);
                }
                Next::Reply(_) => return Err(unexpected()),
                Next::Closed => return Err(stopped()),
                Next::TimeUp => {
                    progress.clear();
                    let secs = timeout.unwrap_or_default().as_secs();
                    return Err(Failure::new(
                        Exit::Busy,
                        format!("Still at work after {}", counted(secs, "second", "seconds")),
                    )
                    .hint("the agent goes on; `picloud status` shows how far it is"));
                }
            }
        }
    }

    /// `picloud conflicts`.
    ///
    /// # Errors
    /// When the agent does not run or answers wrongly.
    pub fn conflicts(&self, output: Output) -> Result<Exit, Failure> {
        let Reply::Conflicts { conflicts } = self.ask(&Request::Conflicts)?.only()? else {
            return Err(unexpected());
        };
        for conflict in &conflicts {
            if output.json() {
                told(output.object(&json!({
                    "type": "conflict",
                    "version": 1,
                    "folder": conflict.folder,
                    "path": conflict.path,
                    "original": conflict.original,
                    "bytes": conflict.bytes,
                })))?;
            } else {
                told(output.line(&format!(
                    "{}  {}",
                    printable(&full_path(&conflict.folder, &conflict.path)),
                    output.paint(Tone::Faint, &bytes(conflict.bytes)),
                )))?;
            }
        }
        if conflicts.is_empty() {
            if !output.json() {
                told(output.line("No conflict copies"))?;
            }
            return Ok(Exit::Done);
        }
        if !output.json() {
            told(output.line(&output.paint(
                Tone::Faint,
                "Compare each with its original, keep what you want, and delete or rename the copy.",
            )))?;
        }
        Ok(Exit::Person)
    }

    /// `picloud pause` and `picloud resume`.
    ///
    /// # Errors
    /// When the agent does not run or answers wrongly.
    pub fn set_paused(&self, output: Output, paused: bool) -> Result<Exit, Failure> {
        let request = if paused { Request::Pause } else { Request::Resume };
        let still = match self.ask(&request)?.only()? {
            Reply::Ok => Vec::new(),
            Reply::StillPaused { folders } => folders,
            _ => return Err(unexpected()),
        };
        if output.json() {
            let object = match paused {
                true => json!({"type": "paused", "version": 1}),
                false => json!({"type": "resumed", "version": 1, "still_paused": still}),
            };
            told(output.object(&object))?;
        } else if paused {
            told(output.line("Paused: nothing is transferred until `picloud resume`"))?;
        } else if still.is_empty() {
            told(output.line("Resumed"))?;
        }
        if still.is_empty() {
            return Ok(Exit::Done);
        }
        let mut failure = Failure::new(Exit::Paused, "The settings keep folders paused");
        for folder in &still {
            failure = failure.caused_by(format!("{} has `paused = true`", printable(folder)));
        }
        Err(failure.hint(format!("edit {}; all other folders go on", self.config.display())))
    }

    /// `picloud log`.
    ///
    /// # Errors
    /// When the agent does not run or answers wrongly.
    pub fn log(&self, output: Output, lines: u32, follow: bool) -> Result<Exit, Failure> {
        let mut conversation = self.ask(&Request::Log { lines, follow })?;
        loop {
            match conversation.next(None)? {
                Next::Reply(Reply::Log(line)) => told(show_log_line(output, &line))?,
                Next::Reply(Reply::Ok) => return Ok(Exit::Done),
                Next::Reply(_) => return Err(unexpected()),
                Next::Closed | Next::TimeUp => return Err(stopped()),
            }
        }
    }
}

/// Asks the agent at `socket` for its status without saying anything; nothing when it cannot tell.
#[must_use]
pub fn status_of(socket: &Path, config: &Path) -> Option<Status> {
    let mut conversation = Conversation::open(socket, config, &Request::Status).ok()?;
    match conversation.next(Some(Duration::from_secs(10))) {
        Ok(Next::Reply(Reply::Status(status))) => Some(status),
        _ => None,
    }
}

/// A pipe that nobody reads any more ends the command quietly, as with other tools.
pub(super) fn told(written: io::Result<()>) -> Result<(), Failure> {
    match written {
        Ok(()) => Ok(()),
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => std::process::exit(0),
        Err(error) => Err(Failure::failed("Cannot write the answer").because(&error)),
    }
}

fn no_agent_status() -> Status {
    Status {
        version: 1,
        state: State::Stopped,
        folders: Vec::new(),
        problems: vec![Problem { path: String::new(), reason: "The agent is not running".into() }],
    }
}

fn show_status(output: Output, status: &Status) -> Result<(), Failure> {
    if output.json() {
        told(output.object(&status_json(status)))
    } else {
        told(output.line(&status_text(output, status)))
    }
}

/// The JSON of a status: the agent's own object, with the sums over all folders beside it.
fn status_json(status: &Status) -> serde_json::Value {
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
        "uploads": sum(|f| f.uploads),
        "upload_bytes": sum(|f| f.upload_bytes),
        "downloads": sum(|f| f.downloads),
        "download_bytes": sum(|f| f.download_bytes),
        "conflicts": sum(|f| f.conflicts),
        "problem_count": sum(|f| f.problem_count) + status.problems.len() as u64,
        "problems": problems,
        // The oldest: since then all folders have been in agreement at least once.
        "last_sync": status.folders.iter().map(|f| f.last_sync).min().flatten(),
        "folders": status.folders,
    })
}

fn all_problems(status: &Status) -> impl Iterator<Item = &Problem> {
    status.folders.iter().flat_map(|folder| &folder.problems).chain(&status.problems)
}

/// Whether a problem is about a path, and not about a folder or the agent as a whole.
fn is_about_paths(status: &Status) -> bool {
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
fn pending(folder: &FolderStatus) -> Option<String> {
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

/// One line for where lines cannot change.
pub(super) fn summary_line(status: &Status) -> String {
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

/// The whole status for a person.
pub(super) fn status_text(output: Output, status: &Status) -> String {
    let (words, tone) = state_words(status.state, is_about_paths(status));
    let mut lines = vec![output.paint(tone, words)];
    problem_lines(output, &mut lines, &status.problems, status.problems.len() as u64);
    for folder in &status.folders {
        lines.push(format!(
            "{}  {}",
            printable(&folder.path),
            output.paint(
                Tone::Faint,
                &format!(
                    "{} at {} as {}",
                    printable(&folder.user),
                    printable(&folder.server),
                    printable(&folder.device)
                )
            )
        ));
        if status.folders.len() > 1 || folder.state != status.state {
            let about_paths = folder.problems.iter().any(|problem| !problem.path.is_empty());
            let (words, tone) = state_words(folder.state, about_paths);
            lines.push(format!("  {}", output.paint(tone, words)));
        }
        if let Some(reason) = &folder.offline {
            lines.push(format!("  {}", printable(reason)));
        }
        let mut sizes = format!(
            "  {} in {}, {}",
            counted(folder.files, "file", "files"),
            counted(folder.dirs, "directory", "directories"),
            bytes(folder.bytes)
        );
        if let Some(last) = folder.last_sync
            && folder.state != State::InSync
        {
            sizes.push_str(&output.paint(Tone::Faint, &format!("; last in sync {}", moment(last))));
        }
        lines.push(sizes);
        if let Some(pending) = pending(folder) {
            lines.push(format!("  {}", output.paint(Tone::Wait, &pending)));
        }
        if folder.conflicts > 0 {
            lines.push(format!(
                "  {}: see `picloud conflicts`",
                output.paint(
                    Tone::Wait,
                    &counted(folder.conflicts, "conflict copy", "conflict copies")
                )
            ));
        }
        if folder.agrees == Some(false) {
            let words = "The tree here does not match the server's: it is being compared again";
            lines.push(format!("  {}", output.paint(Tone::Bad, words)));
        }
        problem_lines(output, &mut lines, &folder.problems, folder.problem_count);
        // This device's own are among the problems.
        for held in folder.held.iter().filter(|held| !held.here) {
            let what = format!(
                "{} wants to delete {} everywhere, since {}",
                printable(&held.device),
                counted(held.deletions, "file or directory", "files and directories"),
                moment(held.since)
            );
            lines.push(format!(
                "  {}: see `picloud held`, then `picloud approve` or `picloud reject`",
                output.paint(Tone::Wait, &what)
            ));
        }
    }
    lines.join("\n")
}

fn problem_lines(output: Output, lines: &mut Vec<String>, problems: &[Problem], total: u64) {
    for problem in problems {
        let path = match problem.path.as_str() {
            "" => String::new(),
            path => format!("{}: ", printable(path)),
        };
        let reason = printable(&problem.reason);
        lines.push(format!("  {}{reason}", output.paint(Tone::Bad, &path)));
    }
    let more = total.saturating_sub(problems.len() as u64);
    if more > 0 {
        lines.push(format!("  and {} more", count(more)));
    }
}

fn finish_sync(output: Output, status: &Status) -> Result<Exit, Failure> {
    let exit = match Exit::from_state(status.state) {
        // The agent says it is done with what was there at the call; newer work may be under way.
        Exit::Busy => Exit::Done,
        other => other,
    };
    if output.json() {
        let mut object = status_json(status);
        object["type"] = "synced".into();
        told(output.object(&object))?;
    } else if exit == Exit::Done {
        told(
            output.line(&status_text(output, &Status { state: State::InSync, ..status.clone() })),
        )?;
    }
    let failure = match exit {
        Exit::Offline => Failure::new(exit, "The server cannot be reached")
            .hint("the agent keeps trying; changes here are kept until then"),
        Exit::Paused => Failure::new(exit, "Syncing is paused")
            .hint("`picloud resume` lets it go on, or says what keeps a folder paused"),
        Exit::Person => {
            let mut failure = Failure::new(
                exit,
                match status.state {
                    State::Stopped => "Syncing has stopped",
                    _ if is_about_paths(status) => "Some paths could not be synced",
                    _ => "A person is needed",
                },
            );
            for problem in all_problems(status).take(10) {
                failure = failure.caused_by(match problem.path.as_str() {
                    "" => printable(&problem.reason),
                    path => format!("{}: {}", printable(path), printable(&problem.reason)),
                });
            }
            failure.hint("`picloud status` shows all of them")
        }
        _ => return Ok(exit),
    };
    Err(failure)
}

fn full_path(folder: &str, path: &str) -> String {
    format!("{}/{path}", folder.trim_end_matches('/'))
}

fn show_log_line(output: Output, line: &LogLine) -> io::Result<()> {
    if output.json() {
        return output.object(&json!({
            "type": "log",
            "version": 1,
            "time": line.time,
            "folder": line.folder,
            "event": line.event,
            "path": line.path,
            "detail": line.detail,
        }));
    }
    let mut text = format!(
        "{}  {:<13} {}",
        output.paint(Tone::Faint, &moment(line.time)),
        line.event,
        printable(&full_path(&line.folder, &line.path)),
    );
    if !line.detail.is_empty() {
        text.push_str(&format!("  {}", output.paint(Tone::Faint, &printable(&line.detail))));
    }
    output.line(&text)
}

/// A few lines at the bottom of the terminal that are drawn again at each change.
#[derive(Debug)]
pub(super) struct LiveArea {
    bar: Option<ProgressBar>,
    shown: String,
}

impl LiveArea {
    pub(super) fn new(output: Output) -> Self {
        let bar = output.live().then(|| {
            let bar = ProgressBar::new_spinner();
            bar.set_draw_target(indicatif::ProgressDrawTarget::stdout());
            bar.set_style(message_style());
            bar
        });
        Self { bar, shown: String::new() }
    }

    pub(super) fn show(&mut self, text: &str) {
        if let Some(bar) = &self.bar
            && self.shown != text
        {
            text.clone_into(&mut self.shown);
            bar.set_message(self.shown.clone());
            bar.tick();
        }
    }
}

impl Drop for LiveArea {
    /// Leaves the last state where it stands, and what comes next below it.
    fn drop(&mut self) {
        if let Some(bar) = self.bar.take() {
            bar.abandon();
            println!();
        }
    }
}

fn message_style() -> ProgressStyle {
    ProgressStyle::with_template("{msg}").unwrap_or_else(|_| ProgressStyle::default_spinner())
}

/// How `sync` shows its progress: a bar over bytes on a terminal, else a line now and then.
struct SyncProgress {
    output: Output,
    bar: Option<ProgressBar>,
    /// The most work seen pending at once: what is done is what is missing from it.
    most: u64,
    said: Option<Instant>,
}

impl SyncProgress {
    /// How often a line is written where no bar can be.
    const LINE_EVERY: Duration = Duration::from_secs(10);

    fn new(output: Output) -> Self {
        Self { output, bar: None, most: 0, said: None }
    }

    fn show(&mut self, status: &Status) -> Result<(), Failure> {
        let left: u64 = status
            .folders
            .iter()
            // A change without content is work too.
            .map(|f| f.upload_bytes + f.download_bytes + 1024 * (f.uploads + f.downloads))
            .sum();
        self.most = self.most.max(left);
        if self.output.json() {
            let mut object = status_json(status);
            object["type"] = "progress".into();
            return told(self.output.object(&object));
        }
        if self.output.live() {
            let bar = self.bar.get_or_insert_with(|| {
                let bar = ProgressBar::new(0);
                bar.set_draw_target(indicatif::ProgressDrawTarget::stdout());
                let style = ProgressStyle::with_template("{bar:30} {percent:>3} %  {msg}");
                if let Ok(style) = style {
                    bar.set_style(style.progress_chars("━╸ "));
                }
                bar
            });
            bar.set_length(self.most.max(1));
            bar.set_position(self.most - left);
            bar.set_message(
                status.folders.iter().filter_map(pending).collect::<Vec<_>>().join("  "),
            );
            return Ok(());
        }
        let now = Instant::now();
        // The first line only after a while: a short sync needs none.
        let said = *self.said.get_or_insert(now);
        if now.duration_since(said) >= Self::LINE_EVERY {
            self.said = Some(now);
            told(self.output.line(&summary_line(status)))?;
        }
        Ok(())
    }

    fn clear(&mut self) {
        if let Some(bar) = self.bar.take() {
            bar.finish_and_clear();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn folder() -> FolderStatus {
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
        }
    }

    #[test]
    fn a_status_reads_well() {
        let status = Status {
            version: 1,
            state: State::Problem,
            folders: vec![FolderStatus {
                state: State::Problem,
                uploads: 2,
                upload_bytes: 1536,
                conflicts: 1,
                problem_count: 3,
                problems: vec![Problem {
                    path: "a\nb".into(),
                    reason: "It cannot be read: Permission denied".into(),
                }],
                ..folder()
            }],
            problems: Vec::new(),
        };
        assert_eq!(
            status_text(Output::PLAIN, &status),
            "Some paths need you\n\
             /home/ann/PiCloud  ann at box:46000 as laptop\n  \
               1,204 files in 1 directory, 3.1 GiB\n  \
               ↑ 2 (1.5 KiB)\n  \
               1 conflict copy: see `picloud conflicts`\n  \
               a\\nb: It cannot be read: Permission denied\n  \
               and 2 more"
        );
    }

    #[test]
    fn the_json_of_a_status_keeps_its_contract() {
        let status = Status {
            version: 1,
            state: State::InSync,
            folders: vec![folder()],
            problems: Vec::new(),
        };
        let object = status_json(&status);
        assert_eq!(object["type"], "status");
        assert_eq!(object["version"], 1);
        assert_eq!(object["state"], "in-sync");
        for key in [
            "files",
            "dirs",
            "bytes",
            "uploads",
            "upload_bytes",
            "downloads",
            "download_bytes",
            "conflicts",
            "problem_count",
            "problems",
            "last_sync",
            "folders",
        ] {
            assert!(object.get(key).is_some(), "{key}");
        }
        assert_eq!(object["folders"][0]["user"], "ann");
    }

    #[test]
    fn every_state_has_its_exit_code() {
        let codes: Vec<u8> = [
            State::InSync,
            State::Problem,
            State::Stopped,
            State::Offline,
            State::Paused,
            State::Syncing,
        ]
        .map(|state| Exit::from_state(state).code())
        .into();
        assert_eq!(codes, [0, 3, 3, 4, 5, 7]);
    }
}
