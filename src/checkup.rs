//! What `picloud doctor` and `picloud-server doctor` share: findings, and the looks at a machine that
//! both take.
//!
//! Nothing here prints or changes anything, and nothing takes a lock that a program at work may want.

pub use crate::model::byte_count as bytes;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use serde_json::{Value, json};

/// The version of the `--json` objects.
const JSON_VERSION: u32 = 1;

/// How wide the words of [`Verdict::word`] are.
const WORD_WIDTH: usize = 7;

/// What a check came to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// As it should be.
    Good,
    /// It works, but a person should look.
    Warning,
    /// It does not work, or will lose something.
    Problem,
    /// It could not be looked at, or does not apply here.
    Skipped,
}

impl Verdict {
    /// Returns the word for it.
    #[must_use]
    pub const fn word(self) -> &'static str {
        match self {
            Self::Good => "ok",
            Self::Warning => "warning",
            Self::Problem => "problem",
            Self::Skipped => "skipped",
        }
    }
}

/// What one check found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Finding {
    /// What was checked, in a word or two.
    pub check: &'static str,
    /// What it came to.
    pub verdict: Verdict,
    /// What was found: one line, file names quoted.
    pub text: String,
    /// What to do about it.
    pub fix: Option<String>,
}

impl Finding {
    /// It is as it should be.
    #[must_use]
    pub fn good(check: &'static str, text: impl Into<String>) -> Self {
        Self { check, verdict: Verdict::Good, text: text.into(), fix: None }
    }

    /// A person should look.
    #[must_use]
    pub fn warning(
        check: &'static str,
        text: impl Into<String>,
        fix: impl Into<Option<String>>,
    ) -> Self {
        Self { check, verdict: Verdict::Warning, text: text.into(), fix: fix.into() }
    }

    /// It does not work.
    #[must_use]
    pub fn problem(
        check: &'static str,
        text: impl Into<String>,
        fix: impl Into<Option<String>>,
    ) -> Self {
        Self { check, verdict: Verdict::Problem, text: text.into(), fix: fix.into() }
    }

    /// It was not checked, for this reason.
    #[must_use]
    pub fn skipped(check: &'static str, text: impl Into<String>) -> Self {
        Self { check, verdict: Verdict::Skipped, text: text.into(), fix: None }
    }

    /// Returns the lines for a person; `paint` may colour the word of the verdict.
    #[must_use]
    pub fn to_text(&self, paint: impl Fn(Verdict, &str) -> String) -> String {
        let word = format!("{:WORD_WIDTH$}", self.verdict.word());
        let mut text = format!("{}  {}: {}", paint(self.verdict, &word), self.check, self.text);
        if let Some(fix) = &self.fix {
            text.push_str(&format!("\n{:WORD_WIDTH$}  -> {fix}", ""));
        }
        text
    }

    /// Returns the object of `--json`.
    #[must_use]
    pub fn to_json(&self) -> Value {
        json!({
            "type": "check",
            "version": JSON_VERSION,
            "check": self.check,
            "verdict": self.verdict.word(),
            "text": self.text,
            "fix": self.fix,
        })
    }
}

/// How many findings of each kind there were.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Summary {
    /// Things that do not work.
    pub problems: u64,
    /// Things a person should look at.
    pub warnings: u64,
}

impl Summary {
    /// Counts one more.
    pub fn add(&mut self, finding: &Finding) {
        match finding.verdict {
            Verdict::Problem => self.problems += 1,
            Verdict::Warning => self.warnings += 1,
            Verdict::Good | Verdict::Skipped => {}
        }
    }

    /// Returns the last line for a person.
    #[must_use]
    pub fn to_text(self) -> String {
        match (self.problems, self.warnings) {
            (0, 0) => "Nothing is wrong".to_owned(),
            (problems, warnings) => format!(
                "{}, {}",
                counted(problems, "problem", "problems"),
                counted(warnings, "warning", "warnings")
            ),
        }
    }

    /// Returns the last object of `--json`.
    #[must_use]
    pub fn to_json(self) -> Value {
        json!({
            "type": "doctor",
            "version": JSON_VERSION,
            "problems": self.problems,
            "warnings": self.warnings,
        })
    }
}

/// Returns an error with its causes, each once, and without the numbers of the operating system, which
/// help nobody.
#[must_use]
pub fn in_words(error: &(dyn std::error::Error + 'static)) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        let cause_text = cause.to_string();
        if !text.contains(&cause_text) {
            text.push_str(": ");
            text.push_str(&cause_text);
        }
        source = cause.source();
    }
    without_numbers(&text)
}

/// Takes the numbers of the operating system's errors out of a text.
#[must_use]
pub fn without_numbers(text: &str) -> String {
    let mut parts = text.split(" (os error ");
    let mut plain = parts.next().unwrap_or_default().to_owned();
    for part in parts {
        plain.push_str(part.split_once(')').map_or(part, |(_, rest)| rest));
    }
    plain
}

/// Returns a count with thousands set apart: `1,204`.
#[must_use]
pub fn count(number: u64) -> String {
    let digits = number.to_string();
    let mut text = String::new();
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

/// Returns `1 file`, `2 files`.
#[must_use]
pub fn counted(number: u64, one: &str, many: &str) -> String {
    format!("{} {}", count(number), if number == 1 { one } else { many })
}

/// Room on a file system, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Space {
    /// What this user can still write.
    pub free: u64,
    /// All of it.
    pub total: u64,
}

/// Returns the room on the file system of a path.
///
/// # Errors
/// When the path is not there.
pub fn space(path: &Path) -> io::Result<Space> {
    let stat = rustix::fs::statvfs(path)?;
    let of = |blocks: u64| blocks.saturating_mul(stat.f_frsize);
    Ok(Space { free: of(stat.f_bavail), total: of(stat.f_blocks) })
}

/// Returns which process holds the lock of a file, by its number; 0 where the system does not tell
/// which. The lock itself is not touched: a program that starts at this moment must get it.
///
/// # Errors
/// When the file cannot be looked at.
pub fn lock_holder(path: &Path) -> io::Result<Option<u32>> {
    let metadata = std::fs::metadata(path)?;
    let device = (rustix::fs::major(metadata.dev()), rustix::fs::minor(metadata.dev()));
    let locks = std::fs::read_to_string("/proc/locks")?;
    let mut holders = locks.lines().filter_map(|line| {
        let lock = Lock::parse(line)?;
        // On some file systems the kernel names another device here than a look at the file does; then
        // the holder has to be one of our programs.
        let is_it = lock.inode == metadata.ino() && (lock.device == device || is_ours(lock.pid));
        is_it.then_some(lock.pid)
    });
    Ok(holders.next())
}

/// A held lock, of the kind that `flock` takes, as `/proc/locks` has it.
#[derive(Debug, PartialEq, Eq)]
struct Lock {
    pid: u32,
    device: (u32, u32),
    inode: u64,
}

impl Lock {
    fn parse(line: &str) -> Option<Self> {
        // 1: FLOCK  ADVISORY  WRITE 4711 08:01:131074 0 EOF; who waits has `->` before the kind.
        let words: Vec<&str> = line.split_ascii_whitespace().collect();
        let [_, "FLOCK", _, _, pid, file, ..] = words[..] else {
            return None;
        };
        let mut parts = file.split(':');
        let mut hex = || u32::from_str_radix(parts.next()?, 16).ok();
        let device = (hex()?, hex()?);
        Some(Self { pid: pid.parse().unwrap_or(0), device, inode: parts.next()?.parse().ok()? })
    }
}

fn is_ours(pid: u32) -> bool {
    let name = std::fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
    name.starts_with("picloud")
}

/// Returns a process as a person finds it: its number, and the command line where that is told.
#[must_use]
pub fn process(pid: u32) -> String {
    let line = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
    let words: Vec<_> = line
        .split(|byte| *byte == 0)
        .filter(|word| !word.is_empty())
        .map(String::from_utf8_lossy)
        .collect();
    match (pid, words.is_empty()) {
        (0, _) => "another process".to_owned(),
        (_, true) => format!("process {pid}"),
        (_, false) => format!("process {pid} ({})", words.join(" ").escape_debug()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_holder_of_a_lock_is_found_without_touching_the_lock() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("lock");
        let file = std::fs::File::create(&path).unwrap();
        assert_eq!(lock_holder(&path).unwrap(), None);
        file.try_lock().unwrap();
        // In a container the number may not be told.
        let holder = lock_holder(&path).unwrap();
        if holder.is_none() {
            // A file system whose device the kernel names otherwise; this is no program of ours.
            return;
        }
        assert!([Some(0), Some(std::process::id())].contains(&holder), "{holder:?}");
        drop(file);
        assert_eq!(lock_holder(&path).unwrap(), None);
    }

    #[test]
    fn locks_of_other_kinds_and_who_waits_are_no_holders() {
        let parse = Lock::parse;
        assert_eq!(
            parse("1: FLOCK  ADVISORY  WRITE 4711 08:1f:131074 0 EOF"),
            Some(Lock { pid: 4711, device: (8, 31), inode: 131_074 })
        );
        for line in [
            "1: -> FLOCK  ADVISORY  WRITE 4712 08:01:131074 0 EOF",
            "2: POSIX  ADVISORY  WRITE 4711 08:01:131074 0 EOF",
            "3: FLOCK  ADVISORY  WRITE",
            "",
        ] {
            assert_eq!(parse(line), None, "{line}");
        }
    }

    #[test]
    fn a_finding_is_one_line_with_the_fix_under_it() {
        let finding = Finding::warning("clock", "two hours off", "set it".to_owned());
        assert_eq!(
            finding.to_text(|_, word| word.to_owned()),
            "warning  clock: two hours off\n         -> set it"
        );
        let mut summary = Summary::default();
        assert_eq!(summary.to_text(), "Nothing is wrong");
        summary.add(&finding);
        assert_eq!(summary.to_text(), "0 problems, 1 warning");
    }
}
