//! What happened to which file: the last thousand happenings in memory, each told to whoever
//! follows, kept in the state directory over restarts, and a line each in `picloud.log` when the
//! settings name one.
//!
//! What is kept is a help for a person and nothing else: it is never waited for, and what cannot be
//! read or written of it is left out.
//!
//! A line of `picloud.log` is the time in UTC, the event, and the path in quotes with anything unprintable escaped,
//! so that one happening is one line whatever a file is called:
//! `2026-11-23T02:05:29Z received "Photos/été.jpg" by "laptop"`.

use std::collections::VecDeque;
use std::fs::{File, OpenOptions};
use std::io::{BufWriter, Read as _, Write as _};
use std::os::unix::fs::{FileExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

use tokio::sync::broadcast;

use super::clock;
use crate::protocol::control::{LogFilter, LogLine};

/// How many happenings are remembered.
const RING_LEN: usize = 1000;

/// How many lines a follower may be behind before it misses some.
const FOLLOW_LEN: usize = 1024;

/// At this length the file is renamed and begun anew, in bytes.
const FILE_LEN_MAX: u64 = 16 * 1024 * 1024;

/// At this length what is kept is renamed and begun anew, in bytes: so at most twice as much is kept.
const KEPT_LEN_MAX: u64 = 1024 * 1024;

/// The most lines told at once: more than what is kept can hold.
const KEPT_LINES_MAX: usize = 100_000;

/// What waits to be written to what is kept, in bytes; what is told beyond that while the disk does
/// not take it is not kept.
const WAITING_LEN_MAX: usize = 256 * 1024;

/// Happenings, as they are told. Shared by all folders of an agent.
#[derive(Debug)]
pub struct Happenings {
    told: Mutex<Told>,
    follow: broadcast::Sender<LogLine>,
}

#[derive(Debug, Default)]
struct Told {
    ring: VecDeque<LogLine>,
    file: Option<LogFile>,
    kept: Option<Kept>,
}

/// The happenings of the last weeks or so: `activity.jsonl` and, before that, `activity.jsonl.1`,
/// one JSON object per line.
#[derive(Debug)]
struct Kept {
    path: PathBuf,
    waiting: Vec<u8>,
    /// Whether the disk did not take it last time, and so may hold a part of a line.
    is_torn: bool,
}

impl Kept {
    fn older(&self) -> PathBuf {
        let mut older = self.path.as_os_str().to_owned();
        older.push(".1");
        older.into()
    }

    /// Returns the last lines that pass, at most `count`, oldest first. What is no line of ours, a torn
    /// one say, is left out.
    fn read(&self, count: usize, only: &LogFilter) -> VecDeque<LogLine> {
        let mut ring = VecDeque::new();
        for path in [self.older(), self.path.clone()] {
            // A file that somebody made longer is not read to its end.
            let mut bytes = Vec::new();
            let read =
                File::open(path).and_then(|f| f.take(2 * KEPT_LEN_MAX).read_to_end(&mut bytes));
            if read.is_err() {
                continue;
            }
            for line in bytes.split(|&byte| byte == b'\n') {
                if let Some(line) = serde_json::from_slice(line).ok().filter(|one| only.passes(one))
                {
                    if ring.len() >= count {
                        ring.pop_front();
                    }
                    ring.push_back(line);
                }
            }
        }
        ring
    }

    fn add(&mut self, line: &LogLine) {
        if let Ok(text) = serde_json::to_vec(line)
            && self.waiting.len() + text.len() < WAITING_LEN_MAX
        {
            self.waiting.extend_from_slice(&text);
            self.waiting.push(b'\n');
        }
    }

    /// Brings what waits to the disk; what that does not take waits on.
    fn flush(&mut self) {
        if self.waiting.is_empty() {
            return;
        }
        match self.write() {
            Ok(()) => {
                self.waiting.clear();
                self.is_torn = false;
            }
            Err(error) => {
                if !self.is_torn {
                    tracing::warn!(%error, path = ?self.path, "cannot keep what happened");
                }
                self.is_torn = true;
            }
        }
    }

    fn write(&self) -> std::io::Result<()> {
        let mut file = OpenOptions::new().create(true).append(true).mode(0o600).open(&self.path)?;
        if self.is_torn || !ends_with_a_line(&self.path)? {
            file.write_all(b"\n")?;
        }
        file.write_all(&self.waiting)?;
        if file.metadata()?.len() >= KEPT_LEN_MAX {
            std::fs::rename(&self.path, self.older())?;
        }
        Ok(())
    }
}

/// Returns whether nothing is in the file, or its last byte ends a line.
fn ends_with_a_line(path: &Path) -> std::io::Result<bool> {
    let file = File::open(path)?;
    let Some(last) = file.metadata()?.len().checked_sub(1) else { return Ok(true) };
    let mut byte = [0];
    file.read_exact_at(&mut byte, last)?;
    Ok(byte == *b"\n")
}

#[derive(Debug)]
struct LogFile {
    path: PathBuf,
    writer: BufWriter<File>,
    len: u64,
}

impl LogFile {
    fn open(path: &Path) -> std::io::Result<Self> {
        let file = OpenOptions::new().create(true).append(true).open(path)?;
        let len = file.metadata()?.len();
        Ok(Self { path: path.to_owned(), writer: BufWriter::new(file), len })
    }

    fn write(&mut self, text: &str) -> std::io::Result<()> {
        if self.len > FILE_LEN_MAX {
            self.writer.flush()?;
            let mut old = self.path.as_os_str().to_owned();
            old.push(".1");
            std::fs::rename(&self.path, &old)?;
            *self = Self::open(&self.path)?;
        }
        self.writer.write_all(text.as_bytes())?;
        self.len += text.len() as u64;
        Ok(())
    }
}

impl Default for Happenings {
    fn default() -> Self {
        Self { told: Mutex::default(), follow: broadcast::channel(FOLLOW_LEN).0 }
    }
}

impl Happenings {
    fn told(&self) -> MutexGuard<'_, Told> {
        self.told.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Keeps what happens in this directory from now on, and takes in what earlier runs kept there.
    pub fn keep_in(&self, dir: &Path) {
        let path = dir.join("activity.jsonl");
        let kept = Kept { path, waiting: Vec::new(), is_torn: false };
        let mut told = self.told();
        told.ring = kept.read(RING_LEN, &LogFilter::default());
        told.kept = Some(kept);
    }

    /// Writes to this file from now on, or to none.
    ///
    /// # Errors
    /// When the file cannot be opened; what was written to before is then kept.
    pub fn set_file(&self, path: Option<&Path>) -> std::io::Result<()> {
        let mut told = self.told();
        if told.file.as_ref().map(|file| file.path.as_path()) == path {
            return Ok(());
        }
        let file = path.map(LogFile::open).transpose()?;
        told.file = file;
        Ok(())
    }

    /// Tells of something.
    pub fn tell(
        &self,
        folder: &str,
        event: &str,
        path: String,
        detail: String,
        device: Option<String>,
    ) {
        let line = LogLine {
            time: clock::wall().secs,
            folder: folder.to_owned(),
            event: event.to_owned(),
            path,
            detail,
            device,
        };
        let mut told = self.told();
        if let Some(file) = &mut told.file
            && let Err(error) = file.write(&render(&line))
        {
            tracing::warn!(%error, path = ?file.path, "cannot write the log of files; it is closed");
            told.file = None;
        }
        if let Some(kept) = &mut told.kept {
            kept.add(&line);
        }
        if told.ring.len() >= RING_LEN {
            told.ring.pop_front();
        }
        // Under the lock, so that a follower that begins now sees each line once. Nobody may follow.
        self.follow.send(line.clone()).ok();
        told.ring.push_back(line);
    }

    /// Returns the last `count` happenings that pass, oldest first, and what follows them. Where those
    /// in memory are not enough, it reads what is kept: a file of some megabytes at most.
    #[must_use]
    pub fn last(
        &self,
        count: usize,
        only: &LogFilter,
    ) -> (Vec<LogLine>, broadcast::Receiver<LogLine>) {
        let mut told = self.told();
        let follow = self.follow.subscribe();
        let mut lines: Vec<LogLine> =
            told.ring.iter().rev().filter(|line| only.passes(line)).take(count).cloned().collect();
        lines.reverse();
        let is_all = told.ring.len() < RING_LEN
            || only.since.zip(told.ring.front()).is_some_and(|(since, first)| first.time < since);
        if lines.len() >= count || is_all {
            return (lines, follow);
        }
        let Some(kept) = &mut told.kept else {
            return (lines, follow);
        };
        kept.flush();
        if !kept.waiting.is_empty() {
            // The disk does not take it: what is in memory is newer than what is kept.
            return (lines, follow);
        }
        (kept.read(count.min(KEPT_LINES_MAX), only).into(), follow)
    }

    /// Returns what last happened to a path of a folder, as far as it is remembered.
    #[must_use]
    pub fn last_of(&self, folder: &str, path: &str) -> Option<LogLine> {
        let told = self.told();
        told.ring.iter().rev().find(|line| line.folder == folder && line.path == path).cloned()
    }

    /// Brings what was told to the files. Called every second, and at the end.
    pub fn flush(&self) {
        let mut told = self.told();
        if let Some(kept) = &mut told.kept {
            kept.flush();
        }
        if let Some(file) = &mut told.file
            && let Err(error) = file.writer.flush()
        {
            tracing::warn!(%error, path = ?file.path, "cannot write the log of files; it is closed");
            told.file = None;
        }
    }
}

fn render(line: &LogLine) -> String {
    let time = jiff::Timestamp::from_second(line.time).unwrap_or_default();
    let path = line.path.escape_debug();
    let mut text = format!("{time} {} \"{path}\"", line.event);
    if !line.detail.is_empty() {
        text.push_str(" (");
        text.extend(line.detail.chars().filter(|c| !c.is_control()));
        text.push(')');
    }
    if let Some(device) = &line.device {
        text.push_str(" by \"");
        text.extend(device.escape_debug());
        text.push('"');
    }
    text.push('\n');
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn all() -> LogFilter {
        LogFilter::default()
    }

    #[test]
    fn a_happening_is_one_line_whatever_the_file_is_called() {
        let line = LogLine {
            time: 1_795_399_529,
            folder: "/home/a/PiCloud".into(),
            event: "received".into(),
            path: "new\nline \"été\"".into(),
            detail: "from\nphone".into(),
            device: Some("my \"pi\"".into()),
        };
        assert_eq!(
            render(&line),
            "2026-11-23T02:05:29Z received \"new\\nline \\\"été\\\"\" (fromphone) by \"my \\\"pi\\\"\"\n"
        );
    }

    #[test]
    fn the_last_ones_are_remembered_and_the_file_is_turned_over() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("picloud.log");
        let happenings = Happenings::default();
        happenings.set_file(Some(&path)).unwrap();
        for number in 0..RING_LEN + 5 {
            happenings.tell("/f", "sent", number.to_string(), String::new(), None);
        }
        let (lines, _) = happenings.last(3, &all());
        let paths: Vec<&str> = lines.iter().map(|line| line.path.as_str()).collect();
        assert_eq!(paths, ["1002", "1003", "1004"]);
        assert_eq!(happenings.last(RING_LEN, &all()).0.len(), RING_LEN);
        happenings.flush();
        let text = std::fs::read_to_string(&path).unwrap();
        assert_eq!(text.lines().count(), RING_LEN + 5);
        happenings.told().file.as_mut().unwrap().len = FILE_LEN_MAX + 1;
        happenings.tell("/f", "sent", "after".into(), String::new(), None);
        happenings.flush();
        assert_eq!(std::fs::read_to_string(&path).unwrap().lines().count(), 1);
        assert_eq!(std::fs::read_to_string(dir.path().join("picloud.log.1")).unwrap(), text);
    }

    #[test]
    fn what_happened_before_a_restart_is_still_told_and_a_torn_line_costs_nothing_else() {
        let dir = tempfile::tempdir().unwrap();
        let run = || {
            let happenings = Happenings::default();
            happenings.keep_in(dir.path());
            happenings
        };
        let paths = |happenings: &Happenings| -> Vec<String> {
            happenings.last(usize::MAX, &all()).0.into_iter().map(|line| line.path).collect()
        };
        let first = run();
        first.tell("/f", "sent", "one\n\"".into(), String::new(), None);
        first.flush();
        first.tell("/f", "sent", "lost".into(), String::new(), None);
        // Killed before its next flush, in the middle of a line.
        let path = dir.path().join("activity.jsonl");
        let mut file = OpenOptions::new().append(true).open(&path).unwrap();
        file.write_all(b"{\"time\":5,\"fol").unwrap();
        let second = run();
        assert_eq!(paths(&second), ["one\n\""]);
        second.tell("/f", "received", "two".into(), "more".into(), Some("b".into()));
        second.flush();
        let third = run();
        assert_eq!(paths(&third), ["one\n\"", "two"]);
        assert_eq!(third.last(1, &all()).0[0].detail, "more");
    }

    #[test]
    fn what_is_kept_is_bounded_and_waits_for_a_disk_that_takes_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let state = dir.path().join("state");
        let happenings = Happenings::default();
        happenings.keep_in(&state);
        // There is no directory: as good as a full disk, and it goes by.
        for number in 0..10_000 {
            happenings.tell("/f", "sent", format!("early {number}"), "x".repeat(100), None);
            happenings.flush();
        }
        assert!(happenings.told().kept.as_ref().unwrap().waiting.len() < WAITING_LEN_MAX);
        std::fs::create_dir(&state).unwrap();
        happenings.flush();
        for number in 0..20_000 {
            happenings.tell("/f", "sent", number.to_string(), "x".repeat(200), None);
            if number % 100 == 0 {
                happenings.flush();
            }
        }
        happenings.flush();
        let mut total = 0;
        for entry in std::fs::read_dir(&state).unwrap() {
            total += entry.unwrap().metadata().unwrap().len();
        }
        assert!(total <= 2 * (KEPT_LEN_MAX + WAITING_LEN_MAX as u64), "{total}");
        let again = Happenings::default();
        again.keep_in(&state);
        let (lines, _) = again.last(RING_LEN, &all());
        assert_eq!(lines.len(), RING_LEN);
        // What memory does not hold is read again, however far back.
        let (lines, _) = again.last(usize::MAX, &all());
        assert!(lines.len() > 3 * RING_LEN, "{}", lines.len());
        let one = LogFilter { path: Some("17500".into()), ..all() };
        assert_eq!(again.last(5, &one).0.len(), 1);
        assert_eq!(lines.last().unwrap().path, "19999");
    }
}
