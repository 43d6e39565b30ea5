//! What is left out of the sync: gitignore syntax, from the config and from `.picloudignore` files.
//!
//! Rules decide about new entries only; what is in the drive stays synced. The nearest file that
//! says something of an entry decides, then the config, then the defaults. The files are read when
//! a look needs them and kept until a look sees that they changed; [`Ignore::generation`] then goes
//! up, and the driver looks at everything again, since what was left out may be wanted now.

use std::collections::HashMap;
use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use ignore::Match;
use ignore::gitignore::{Gitignore, GitignoreBuilder};

use crate::engine::seam::Stat;
use crate::model::RelPath;

/// The name of the files with patterns.
pub const FILE_NAME: &[u8] = b".picloudignore";

/// The longest file with patterns that is read, in bytes.
pub const FILE_LEN_MAX: usize = 256 * 1024;

/// What nobody wants on another device: locks, swap files and what a desktop leaves behind. Each is
/// a name that programs make for themselves. A config or file may take one back with `!`.
pub const DEFAULTS: &[&str] = &[
    // Editors: vim's swap files, backup copies, Emacs' locks and auto-saves, Kate's swap files.
    ".*.sw[a-p]",
    "*~",
    ".#*",
    "\\#*\\#",
    ".*.kate-swp",
    // Office programs' lock files.
    ".~lock.*#",
    "~$*",
    // What desktops and file systems leave.
    ".DS_Store",
    "Thumbs.db",
    ".directory.lock",
    ".Trash-*/",
    "/lost+found/",
    ".fuse_hidden*",
    ".nfs[0-9a-f][0-9a-f][0-9a-f][0-9a-f]*",
    ".goutputstream-*",
    ".xdp-*",
];

/// The most directories of which it is remembered that they have no file with patterns.
const FILES_MAX: usize = 20_000;

/// A pattern is not gitignore syntax.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("The ignore pattern {pattern:?} is not valid: {reason}")]
pub struct PatternError {
    /// The pattern.
    pub pattern: String,
    /// What is wrong with it.
    pub reason: String,
}

/// The ignore rules of one folder.
#[derive(Debug)]
pub struct Ignore {
    state: Mutex<State>,
    generation: AtomicU64,
}

#[derive(Debug)]
struct State {
    config: Arc<Gitignore>,
    defaults: Arc<Gitignore>,
    /// By directory: its file, or that it has none.
    files: HashMap<RelPath, Option<PatternFile>>,
    problems: HashMap<RelPath, PatternError>,
}

#[derive(Debug, Clone)]
struct PatternFile {
    stat: Stat,
    rules: Arc<Gitignore>,
}

/// The rules that hold in one directory.
#[derive(Debug)]
pub struct DirRules {
    /// From the nearest to the root: where the path relative to that file's directory begins.
    files: Vec<(usize, Arc<Gitignore>)>,
    config: Arc<Gitignore>,
    defaults: Arc<Gitignore>,
    /// The directory's path with a slash after it, then the name asked about.
    path: Vec<u8>,
    dir_len: usize,
}

impl Ignore {
    /// Returns rules with these patterns of the config.
    ///
    /// # Errors
    /// When one of them is not gitignore syntax.
    pub fn new(patterns: &[String]) -> Result<Self, PatternError> {
        Ok(Self {
            state: Mutex::new(State {
                config: compile(patterns)?,
                defaults: compile(DEFAULTS)?,
                files: HashMap::new(),
                problems: HashMap::new(),
            }),
            generation: AtomicU64::new(0),
        })
    }

    /// Takes other patterns of the config over.
    ///
    /// # Errors
    /// When one of them is not gitignore syntax; the old ones then stay.
    pub fn set_patterns(&self, patterns: &[String]) -> Result<(), PatternError> {
        let config = compile(patterns)?;
        self.lock().config = config;
        self.generation.fetch_add(1, Ordering::Release);
        Ok(())
    }

    /// Returns a number that goes up when the rules changed.
    #[must_use]
    pub fn generation(&self) -> u64 {
        self.generation.load(Ordering::Acquire)
    }

    /// Returns which files have a line that is no pattern, and which line.
    #[must_use]
    pub fn problems(&self) -> Vec<(RelPath, PatternError)> {
        let state = self.lock();
        let mut problems: Vec<_> =
            state.problems.iter().map(|(dir, error)| (dir.clone(), error.clone())).collect();
        problems.sort_by(|a, b| a.0.cmp(&b.0));
        problems
    }

    /// Takes in what a look at a directory saw of its file with patterns: its stat, or that there
    /// is none. `load` reads the file.
    pub fn note(&self, dir: &RelPath, stat: Option<Stat>, load: impl FnOnce() -> Option<Vec<u8>>) {
        {
            let state = self.lock();
            match (state.files.get(dir), stat) {
                (Some(Some(known)), Some(stat)) if known.stat == stat => return,
                (Some(None) | None, None) => return,
                _ => {}
            }
        }
        let file = stat.and_then(|stat| load().map(|bytes| (stat, bytes)));
        let mut state = self.lock();
        let was_known = state.files.contains_key(dir);
        state.put(dir, file);
        if was_known {
            self.generation.fetch_add(1, Ordering::Release);
        }
    }

    /// Returns the rules that hold in a directory. `load` reads the file of a directory that was
    /// not seen yet, with its stat.
    pub fn rules(
        &self,
        dir: &RelPath,
        mut load: impl FnMut(&RelPath) -> Option<(Stat, Vec<u8>)>,
    ) -> DirRules {
        let mut path = dir.to_bytes();
        if !path.is_empty() {
            path.push(b'/');
        }
        let mut files = Vec::new();
        let mut start = 0;
        for depth in 0..=dir.names().len() {
            let at = RelPath::from_names(dir.names()[..depth].to_vec());
            let known = self.lock().files.get(&at).cloned();
            let file = match known {
                Some(file) => file,
                None => {
                    let loaded = load(&at);
                    self.lock().put(&at, loaded)
                }
            };
            if let Some(file) = file
                && !file.rules.is_empty()
            {
                files.push((start, file.rules));
            }
            start += dir.names().get(depth).map_or(0, |name| name.as_bytes().len() + 1);
        }
        files.reverse();
        let state = self.lock();
        DirRules {
            files,
            config: state.config.clone(),
            defaults: state.defaults.clone(),
            dir_len: path.len(),
            path,
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // The state is whole between any two statements under the lock.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn put(&mut self, dir: &RelPath, file: Option<(Stat, Vec<u8>)>) -> Option<PatternFile> {
        self.problems.remove(dir);
        let file = file.map(|(stat, bytes)| {
            let mut builder = GitignoreBuilder::new("");
            let text = String::from_utf8_lossy(&bytes);
            for line in text.lines() {
                if let Err(error) = builder.add_line(None, line) {
                    self.problems.insert(
                        dir.clone(),
                        PatternError {
                            pattern: line.chars().take(200).collect(),
                            reason: error.to_string(),
                        },
                    );
                }
            }
            PatternFile {
                stat,
                rules: Arc::new(builder.build().unwrap_or_else(|_| Gitignore::empty())),
            }
        });
        if self.files.len() >= FILES_MAX {
            self.files.retain(|_, file| file.is_some());
        }
        self.files.insert(dir.clone(), file.clone());
        file
    }
}

impl DirRules {
    /// Returns whether an entry of this directory is left out.
    pub fn is_ignored(&mut self, name: &[u8], is_dir: bool) -> bool {
        self.path.truncate(self.dir_len);
        self.path.extend_from_slice(name);
        for (start, rules) in &self.files {
            let path = Path::new(OsStr::from_bytes(&self.path[*start..]));
            match rules.matched(path, is_dir) {
                Match::None => {}
                Match::Ignore(_) => return true,
                Match::Whitelist(_) => return false,
            }
        }
        let path = Path::new(OsStr::from_bytes(&self.path));
        match self.config.matched(path, is_dir) {
            Match::None => {}
            Match::Ignore(_) => return true,
            Match::Whitelist(_) => return false,
        }
        may_be_default(name) && self.defaults.matched(path, is_dir).is_ignore()
    }
}

/// Returns whether one of [`DEFAULTS`] may match: a look asks it of every entry, and of nearly all
/// the answer is no.
fn may_be_default(name: &[u8]) -> bool {
    matches!(name, [b'.' | b'#' | b'~', ..] | [.., b'~'] | b"Thumbs.db" | b"lost+found")
}

fn compile<S: AsRef<str>>(patterns: &[S]) -> Result<Arc<Gitignore>, PatternError> {
    let mut builder = GitignoreBuilder::new("");
    for pattern in patterns.iter().map(AsRef::as_ref) {
        builder.add_line(None, pattern).map_err(|error| PatternError {
            pattern: pattern.to_owned(),
            reason: error.to_string(),
        })?;
    }
    let all = || patterns.iter().map(AsRef::as_ref).collect::<Vec<_>>();
    builder
        .build()
        .map(Arc::new)
        .map_err(|error| PatternError { pattern: all().join(" "), reason: error.to_string() })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{Attrs, Kind, Timestamp};

    fn stat(size: u64) -> Stat {
        Stat {
            kind: Some(Kind::File),
            ino: 1,
            birth: Timestamp::default(),
            size,
            mtime: Timestamp::default(),
            ctime: Timestamp::default(),
            attrs: Attrs { mode: 0o644 },
        }
    }

    #[track_caller]
    fn check(ignore: &Ignore, files: &[(&str, &str)], path: &str, is_ignored: bool) {
        let (dir, name) = path.rsplit_once('/').unwrap_or(("", path));
        let (name, is_dir) = name.strip_suffix('!').map_or((name, false), |n| (n, true));
        let dir = RelPath::parse(dir.as_bytes()).unwrap();
        let mut rules = ignore.rules(&dir, |at| {
            files
                .iter()
                .find(|(dir, _)| RelPath::parse(dir.as_bytes()).unwrap() == *at)
                .map(|(_, text)| (stat(1), text.as_bytes().to_vec()))
        });
        assert_eq!(rules.is_ignored(name.as_bytes(), is_dir), is_ignored, "{path}");
    }

    #[test]
    fn the_nearest_file_decides_then_the_config_then_the_defaults() {
        let ignore = Ignore::new(&["*.log".into(), "!keep~".into(), "/top".into()]).unwrap();
        let files = [("", "*.o\n/build/\n!a.log"), ("src/deep", "!*.o\n*.txt")];
        for (path, is_ignored) in [
            ("a.txt~", true),
            ("keep~", false),
            (".a.swp", true),
            ("a.swp", false),
            ("#a#", true),
            ("#a", false),
            ("b.log", true),
            ("a.log", false),
            ("x/a.log", false),
            ("top", true),
            ("x/top", false),
            ("a.o", true),
            ("src/a.o", true),
            ("src/deep/a.o", false),
            ("src/deep/er/a.txt", true),
            ("a.txt", false),
            ("build!", true),
            ("build", false),
            ("x/build!", false),
            ("lost+found!", true),
            ("x/lost+found!", false),
            ("Makefile.part", false),
        ] {
            check(&ignore, &files, path, is_ignored);
        }
    }

    #[test]
    fn every_default_passes_the_quick_test() {
        for pattern in DEFAULTS {
            let name = pattern
                .trim_matches('/')
                .replace("[a-p]", "p")
                .replace("[0-9a-f]", "0")
                .replace('\\', "")
                .replace('*', "x");
            let ignore = Ignore::new(&[]).unwrap();
            check(&ignore, &[], &format!("{name}!"), true);
        }
    }

    #[test]
    fn a_changed_file_is_read_again_and_told() {
        let ignore = Ignore::new(&[]).unwrap();
        check(&ignore, &[("", "*.o")], "a.o", true);
        assert_eq!(ignore.generation(), 0);
        ignore.note(&RelPath::ROOT, Some(stat(1)), || panic!("it did not change"));
        ignore.note(&RelPath::ROOT, Some(stat(2)), || Some(b"*.a\n{b".to_vec()));
        assert_eq!(ignore.generation(), 1);
        check(&ignore, &[], "a.o", false);
        check(&ignore, &[], "a.a", true);
        assert_eq!(ignore.problems().len(), 1);
        ignore.note(&RelPath::ROOT, None, || None);
        assert_eq!(ignore.generation(), 2);
        check(&ignore, &[], "a.a", false);
        assert!(ignore.problems().is_empty());
    }

    #[test]
    fn a_bad_pattern_of_the_config_is_refused() {
        let error = Ignore::new(&["a{b".into()]).err().unwrap();
        assert_eq!(error.pattern, "a{b");
    }
}
