//! What happened to which file: the last thousand happenings in memory, each told to whoever
//! follows, and a line each in `picloud.log` when the settings name one.
//!
//! A line is the time in UTC, the event, and the path in quotes with anything unprintable escaped,
//! so that one happening is one line whatever a file is called:
//! `2026-11-23T02:05:29Z received "Photos/été.jpg"`.

use std::collections::VecDeque;
use std::fs::{File, OpenOptions};
use std::io::{BufWriter, Write as _};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

use tokio::sync::broadcast;

use super::clock;
use crate::protocol::control::LogLine;

/// How many happenings are remembered.
const RING_LEN: usize = 1000;

/// How many lines a follower may be behind before it misses some.
const FOLLOW_LEN: usize = 1024;

/// At this length the file is renamed and begun anew, in bytes.
const FILE_LEN_MAX: u64 = 16 * 1024 * 1024;

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
    pub fn tell(&self, folder: &str, event: &str, path: String, detail: String) {
        let line = LogLine {
            time: clock::wall().secs,
            folder: folder.to_owned(),
            event: event.to_owned(),
            path,
            detail,
        };
        let mut told = self.told();
        if let Some(file) = &mut told.file
            && let Err(error) = file.write(&render(&line))
        {
            tracing::warn!(%error, path = ?file.path, "cannot write the log of files; it is closed");
            told.file = None;
        }
        if told.ring.len() >= RING_LEN {
            told.ring.pop_front();
        }
        // Under the lock, so that a follower that begins now sees each line once. Nobody may follow.
        self.follow.send(line.clone()).ok();
        told.ring.push_back(line);
    }

    /// Returns the last `count` happenings, oldest first, and what follows them.
    #[must_use]
    pub fn last(&self, count: usize) -> (Vec<LogLine>, broadcast::Receiver<LogLine>) {
        let told = self.told();
        let skip = told.ring.len().saturating_sub(count);
        let lines = told.ring.iter().skip(skip).cloned().collect();
        (lines, self.follow.subscribe())
    }

    /// Brings what was told to the file. Called every second, and at the end.
    pub fn flush(&self) {
        let mut told = self.told();
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
    text.push('\n');
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_happening_is_one_line_whatever_the_file_is_called() {
        let line = LogLine {
            time: 1_795_399_529,
            folder: "/home/a/PiCloud".into(),
            event: "received".into(),
            path: "new\nline \"été\"".into(),
            detail: "from\nphone".into(),
        };
        assert_eq!(
            render(&line),
            "2026-11-23T02:05:29Z received \"new\\nline \\\"été\\\"\" (fromphone)\n"
        );
    }

    #[test]
    fn the_last_ones_are_remembered_and_the_file_is_turned_over() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("picloud.log");
        let happenings = Happenings::default();
        happenings.set_file(Some(&path)).unwrap();
        for number in 0..RING_LEN + 5 {
            happenings.tell("/f", "sent", number.to_string(), String::new());
        }
        let (lines, _) = happenings.last(3);
        let paths: Vec<&str> = lines.iter().map(|line| line.path.as_str()).collect();
        assert_eq!(paths, ["1002", "1003", "1004"]);
        assert_eq!(happenings.last(usize::MAX).0.len(), RING_LEN);
        happenings.flush();
        let text = std::fs::read_to_string(&path).unwrap();
        assert_eq!(text.lines().count(), RING_LEN + 5);
        happenings.told().file.as_mut().unwrap().len = FILE_LEN_MAX + 1;
        happenings.tell("/f", "sent", "after".into(), String::new());
        happenings.flush();
        assert_eq!(std::fs::read_to_string(&path).unwrap().lines().count(), 1);
        assert_eq!(std::fs::read_to_string(dir.path().join("picloud.log.1")).unwrap(), text);
    }
}
