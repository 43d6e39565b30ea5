//! The note that a folder is being worked on: how a start tells that the power was cut.
//!
//! It holds the boot id of the machine, and is removed at a clean stop, once everything in the folder
//! is durable. Found with another boot id, the machine stopped in the midst of work: files may have
//! lost what was not durable. That stays so over further starts until the first look at the folder
//! is over and remembered ([`RunningNote::settle`]), so the note then says from what time on, too.

use std::io::ErrorKind;
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use crate::agent::durable;
use crate::model::Timestamp;

/// What was written so long before the last sign of life is on disk: Linux writes dirty pages out
/// after 30 seconds (`vm.dirty_expire_centisecs`), and a slow disk gets some more.
const DURABLE_AFTER: Duration = Duration::from_secs(600);

/// The note of a folder whose agent runs.
#[derive(Debug)]
pub(super) struct RunningNote {
    path: PathBuf,
    boot: String,
    /// Whether the note on disk says this boot.
    is_settled: bool,
}

impl RunningNote {
    /// Leaves the note in a state directory. Returns the time from which on files may have lost
    /// bytes, when the machine stopped uncleanly. To be called before the state database is opened,
    /// whose files tell when the agent was last alive.
    ///
    /// # Errors
    /// When the note cannot be read or written.
    pub(super) fn leave(dir: &Path) -> std::io::Result<(Self, Option<Timestamp>)> {
        std::fs::DirBuilder::new().recursive(true).mode(0o700).create(dir)?;
        let path = dir.join("running");
        let boot = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default();
        let mut note = Self { path, boot: boot.trim().to_owned(), is_settled: true };
        let found = match std::fs::read_to_string(&note.path) {
            Ok(found) => found,
            Err(error) if error.kind() == ErrorKind::NotFound => {
                note.write(&note.boot)?;
                return Ok((note, None));
            }
            Err(error) => return Err(error),
        };
        let mut lines = found.lines();
        let found_boot = lines.next().unwrap_or_default();
        // A machine that does not tell its boots apart gets the benefit of the doubt.
        if !note.boot.is_empty() && found_boot == note.boot {
            return Ok((note, None));
        }
        let since = match lines.next().and_then(|line| line.parse().ok()) {
            Some(secs) => secs,
            None => {
                let secs = last_alive(dir);
                note.write(&format!("{found_boot}\n{secs}"))?;
                secs
            }
        };
        note.is_settled = false;
        Ok((note, Timestamp::new(since, 0)))
    }

    /// The first look at the folder is over, and what it found is durable.
    ///
    /// # Errors
    /// When the note cannot be written; it is then tried again.
    pub(super) fn settle(&mut self) -> std::io::Result<()> {
        if !self.is_settled {
            self.write(&self.boot)?;
            self.is_settled = true;
        }
        Ok(())
    }

    /// The work has ended, and everything in the folder is durable.
    pub(super) fn end(&self) {
        if self.is_settled {
            // Left over, it only makes the next start more careful.
            std::fs::remove_file(&self.path).ok();
        }
    }

    fn write(&self, text: &str) -> std::io::Result<()> {
        durable::replace(&self.path, text.as_bytes(), 0o600)
    }
}

/// Returns the time, in seconds since the epoch by the file system's clock, before which everything
/// surely was durable when the agent last wrote to its state; 0 when nobody can tell.
fn last_alive(dir: &Path) -> i64 {
    let written = |name| std::fs::metadata(dir.join(name)).and_then(|found| found.modified()).ok();
    let newest = ["state.sqlite", "state.sqlite-wal"].into_iter().filter_map(written).max();
    newest
        .and_then(|at| at.checked_sub(DURABLE_AFTER))
        .and_then(|at| at.duration_since(SystemTime::UNIX_EPOCH).ok())
        .and_then(|at| i64::try_from(at.as_secs()).ok())
        .unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_unclean_stop_is_known_until_the_first_look_is_remembered() {
        let parent = tempfile::tempdir().unwrap();
        // A first start finds no directory.
        let dir = parent.path().join("state/folder");
        let marker = dir.join("running");
        let leave = || RunningNote::leave(&dir).unwrap();
        let (note, since) = leave();
        assert_eq!(since, None, "a first start");
        assert_eq!(leave().1, None, "a start after a kill");
        note.end();
        assert!(!marker.exists(), "a clean stop");
        // The machine stopped while the agent ran.
        durable::replace(&dir.join("state.sqlite"), b"", 0o600).unwrap();
        durable::replace(&marker, b"another boot", 0o600).unwrap();
        let (note, since) = leave();
        let since = since.expect("it was unclean");
        assert!(since.secs > 1_700_000_000, "{since:?}");
        note.end();
        assert!(marker.exists(), "a stop before the first look was over");
        std::fs::remove_file(dir.join("state.sqlite")).unwrap();
        let (mut note, again) = leave();
        assert_eq!(again, Some(since), "the first sign counts");
        note.settle().unwrap();
        assert_eq!(leave().1, None);
    }
}
