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

use ignore::gitignore::{Gitignore, GitignoreBuilder, Glob};

use crate::engine::seam::Stat;
use crate::model::{Name, RelPath};
use crate::protocol::control::RuleSource;

/// The name of the files with patterns.
pub const FILE_NAME: &[u8] = b".picloudignore";

/// The longest file with patterns that is read, in bytes.
pub const FILE_LEN_MAX: usize = 256 * 1024;

/// The longest pattern, in bytes: about the longest path.
const LINE_LEN_MAX: usize = 4096;

/// The deepest nesting of braces in a pattern.
const BRACES_MAX: usize = 16;

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
    // What `picloud get` has not finished yet.
    ".picloud-get-*",
];

/// The most directories of which it is remembered that they have no file with patterns.
const FILES_MAX: usize = 20_000;

/// The most directories remembered with the files that hold in them.
const CHAINS_MAX: usize = 4096;

/// A pattern is not gitignore syntax.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("The ignore pattern {pattern:?} is not valid: {reason}")]
pub struct PatternError {
    /// The pattern.
    pub pattern: String,
    /// What is wrong with it.
    pub reason: String,
}

impl PatternError {
    fn new(pattern: &str, reason: impl Into<String>) -> Self {
        Self { pattern: pattern.chars().take(200).collect(), reason: reason.into() }
    }
}

/// Checks one pattern of the config, which has to say something: an empty one or a comment is a
/// mistake there.
///
/// # Errors
/// When it is not gitignore syntax, or says nothing.
pub fn check_pattern(pattern: &str) -> Result<(), PatternError> {
    if pattern.contains('\n') {
        return Err(PatternError::new(pattern, "it has several lines"));
    }
    let mut builder = GitignoreBuilder::new("");
    add_line(&mut builder, pattern)?;
    match builder.build() {
        Ok(rules) if rules.is_empty() => Err(PatternError::new(pattern, "it names nothing")),
        Ok(_) => Ok(()),
        Err(error) => Err(PatternError::new(pattern, error.to_string())),
    }
}

/// Adds a line of gitignore syntax. What git would never match, and the library underneath takes
/// for something else, is an error too.
fn add_line(builder: &mut GitignoreBuilder, line: &str) -> Result<(), PatternError> {
    let pattern = line.trim_end();
    if pattern.is_empty() || pattern.starts_with('#') {
        return Ok(());
    }
    let named = pattern.strip_prefix('!').unwrap_or(pattern);
    if named.bytes().all(|byte| byte == b'/') {
        return Err(PatternError::new(line, "it names nothing"));
    }
    if has_open_class(named) {
        let reason = "`[` has no `]` (write `\\[` for the sign itself)";
        return Err(PatternError::new(line, reason));
    }
    check_costs(line)?;
    match builder.add_line(None, line) {
        Ok(_) => Ok(()),
        Err(error) => Err(PatternError::new(line, error.to_string())),
    }
}

/// Refuses a pattern that could take more to compile than any is worth: it comes from another device,
/// and the compiler goes down into braces by recursion.
fn check_costs(line: &str) -> Result<(), PatternError> {
    if line.len() > LINE_LEN_MAX {
        return Err(PatternError::new(line, format!("it has more than {LINE_LEN_MAX} bytes")));
    }
    let mut depth = 0_usize;
    for byte in line.bytes() {
        match byte {
            b'{' => depth += 1,
            b'}' => depth = depth.saturating_sub(1),
            _ => {}
        }
        if depth > BRACES_MAX {
            let reason = format!("its braces nest more than {BRACES_MAX} deep");
            return Err(PatternError::new(line, reason));
        }
    }
    Ok(())
}

/// Returns whether a class of characters begins that does not end.
fn has_open_class(pattern: &str) -> bool {
    let mut chars = pattern.chars();
    while let Some(next) = chars.next() {
        match next {
            '\\' => drop(chars.next()),
            '[' => {
                // A `]` that comes first belongs to the class.
                let rest = chars.as_str();
                let inside = rest.strip_prefix(['!', '^']).unwrap_or(rest);
                let first = inside.chars().next().map_or(0, char::len_utf8);
                let Some(end) = inside[first..].find(']') else { return true };
                chars = inside[first + end + 1..].chars();
            }
            _ => {}
        }
    }
    false
}

/// The bytes of a file with patterns, or why they cannot be had.
pub type Loaded = Result<Vec<u8>, String>;

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
    /// By directory: the files that hold in it.
    chains: HashMap<RelPath, Chain>,
    /// How often a file has come, changed or gone: a chain that was begun before is out of date.
    changes: u64,
    /// By directory: the first thing that is wrong with its file.
    problems: HashMap<RelPath, String>,
}

/// Files with patterns, from the root on: where the path relative to each one's directory begins.
type Chain = Arc<Vec<(usize, Arc<Gitignore>)>>;

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
    /// Whether the directory itself, or one above it, is left out: then all that is new in it is.
    is_left_out: bool,
    /// The directory's path with a slash after it, then the name asked about.
    path: Vec<u8>,
    dir_len: usize,
}

/// The rule that leaves something out.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rule {
    /// Where it stands.
    pub source: RuleSource,
    /// The directory of the file that it stands in.
    pub dir: Option<RelPath>,
    /// The line there, from 1.
    pub line: Option<u64>,
    /// The rule.
    pub pattern: String,
    /// What it names: the path asked about, or a directory above it.
    pub at: RelPath,
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
                chains: HashMap::new(),
                changes: 0,
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

    /// Returns the directories whose files have something wrong, and what.
    #[must_use]
    pub fn problems(&self) -> Vec<(RelPath, String)> {
        let state = self.lock();
        let mut problems: Vec<_> =
            state.problems.iter().map(|(dir, reason)| (dir.clone(), reason.clone())).collect();
        problems.sort_by(|a, b| a.0.cmp(&b.0));
        problems
    }

    /// Takes in what a look at a directory saw of its file with patterns: its stat, or that there
    /// is none. `load` reads the file.
    pub fn note(&self, dir: &RelPath, stat: Option<Stat>, load: impl FnOnce() -> Option<Loaded>) {
        {
            let state = self.lock();
            match (state.files.get(dir), stat) {
                (Some(Some(known)), Some(stat)) if known.stat == stat => return,
                (Some(None) | None, None) => return,
                _ => {}
            }
        }
        let file = stat.and_then(|stat| load().map(|loaded| (stat, loaded)));
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
        mut load: impl FnMut(&RelPath) -> Option<(Stat, Loaded)>,
    ) -> DirRules {
        let mut path = dir.to_bytes();
        if !path.is_empty() {
            path.push(b'/');
        }
        let files = self.chain(dir, &mut load).iter().rev().cloned().collect();
        let state = self.lock();
        let (config, defaults) = (state.config.clone(), state.defaults.clone());
        drop(state);
        let dir_len = path.len();
        let mut rules = DirRules { files, config, defaults, is_left_out: false, path, dir_len };
        rules.is_left_out = rules.is_in_what_is_left_out(dir);
        rules
    }

    /// Returns the rule that leaves a path out, if one does. `load` is as in [`Ignore::rules`]; it is
    /// asked for the file once more, to find the line.
    pub fn explain(
        &self,
        path: &RelPath,
        is_dir: bool,
        mut load: impl FnMut(&RelPath) -> Option<(Stat, Loaded)>,
    ) -> Option<Rule> {
        let (dir, name) = path.split_last()?;
        let mut rules = self.rules(&dir, &mut load);
        rules.path.extend_from_slice(name.as_bytes());
        let mut start = 0;
        let count = path.names().len();
        for (depth, name) in path.names().iter().enumerate() {
            let end = start + name.as_bytes().len();
            let is_dir = is_dir || depth + 1 < count;
            if let Some((place, pattern)) = rules.leaving_out(&rules.path[..end], start, is_dir) {
                let prefix = |count: usize| RelPath::from_names(path.names()[..count].to_vec());
                let (source, dir) = match place {
                    Place::File(at) => {
                        let above = rules.path[..at].iter().filter(|byte| **byte == b'/').count();
                        (RuleSource::File, Some(prefix(above)))
                    }
                    Place::Config => (RuleSource::Settings, None),
                    Place::Defaults => (RuleSource::Defaults, None),
                };
                let loaded = dir.as_ref().and_then(&mut load).and_then(|(_, loaded)| loaded.ok());
                let line = loaded.and_then(|bytes| line_of(&bytes, &pattern));
                return Some(Rule { source, dir, line, pattern, at: prefix(depth + 1) });
            }
            start = end + 1;
        }
        None
    }

    /// Returns the files that hold in a directory, from the root on. Each look asks for them: they are
    /// put together from those of the directory above, so that a deep tree costs no more than a wide
    /// one.
    fn chain(
        &self,
        dir: &RelPath,
        load: &mut impl FnMut(&RelPath) -> Option<(Stat, Loaded)>,
    ) -> Chain {
        let names = dir.names();
        let prefix = |depth: usize| RelPath::from_names(names[..depth].to_vec());
        let (mut chain, mut depth, changes) = {
            let state = self.lock();
            let known =
                |depth| state.chains.get(&prefix(depth)).map(|chain| (chain.clone(), depth + 1));
            let (chain, depth) = (0..=names.len()).rev().find_map(known).unwrap_or_default();
            (chain, depth, state.changes)
        };
        let len_of = |name: &Name| name.as_bytes().len() + 1;
        let mut start: usize = names[..depth.min(names.len())].iter().map(len_of).sum();
        while depth <= names.len() {
            let at = prefix(depth);
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
                Arc::make_mut(&mut chain).push((start, file.rules));
            }
            self.lock().keep_chain(at, &chain, changes);
            start += names.get(depth).map_or(0, len_of);
            depth += 1;
        }
        chain
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // The state is whole between any two statements under the lock.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn put(&mut self, dir: &RelPath, file: Option<(Stat, Loaded)>) -> Option<PatternFile> {
        self.problems.remove(dir);
        // One that cannot be read is remembered too: it is not looked at again until it changes.
        let file = file.map(|(stat, loaded)| {
            let (rules, wrong) = match loaded {
                Ok(bytes) => compile_file(&bytes),
                Err(reason) => (Gitignore::empty(), Some(format!("It is not in force: {reason}"))),
            };
            if let Some(wrong) = wrong {
                self.problems.insert(dir.clone(), wrong);
            }
            PatternFile { stat, rules: Arc::new(rules) }
        });
        if self.files.len() >= FILES_MAX {
            self.files.retain(|_, file| file.is_some());
        }
        let before = self.files.insert(dir.clone(), file.clone());
        if file.is_some() || before.flatten().is_some() {
            self.chains.clear();
            self.changes += 1;
        }
        file
    }

    /// Remembers the files that hold in a directory, unless one has changed since they were found.
    fn keep_chain(&mut self, dir: RelPath, chain: &Chain, changes: u64) {
        if self.changes == changes {
            if self.chains.len() >= CHAINS_MAX {
                self.chains.clear();
            }
            self.chains.insert(dir, Arc::clone(chain));
        }
    }
}

impl DirRules {
    /// Returns whether an entry of this directory is left out.
    pub fn is_ignored(&mut self, name: &[u8], is_dir: bool) -> bool {
        if self.is_left_out {
            return true;
        }
        self.path.truncate(self.dir_len);
        self.path.extend_from_slice(name);
        self.leaves_out(&self.path, self.dir_len, is_dir)
    }

    /// As with git: below a directory that is left out no pattern counts any more. One that was
    /// synced before it was left out stays so, with what is in it.
    fn is_in_what_is_left_out(&self, dir: &RelPath) -> bool {
        let mut start = 0;
        dir.names().iter().any(|name| {
            let end = start + name.as_bytes().len();
            let is_left_out = self.leaves_out(&self.path[..end], start, true);
            start = end + 1;
            is_left_out
        })
    }

    /// Returns whether the rules leave out what is at a path, whose last name begins at `name_at`.
    fn leaves_out(&self, path: &[u8], name_at: usize, is_dir: bool) -> bool {
        self.deciding(path, name_at, is_dir).is_some_and(|(_, glob)| !glob.is_whitelist())
    }

    /// Returns the pattern that leaves a path out, and where it stands.
    fn leaving_out(&self, path: &[u8], name_at: usize, is_dir: bool) -> Option<(Place, String)> {
        let (place, glob) = self.deciding(path, name_at, is_dir)?;
        (!glob.is_whitelist()).then(|| (place, glob.original().to_owned()))
    }

    /// Returns the pattern that decides about a path.
    fn deciding(&self, path: &[u8], name_at: usize, is_dir: bool) -> Option<(Place, &Glob)> {
        let name = &path[name_at..];
        // A file within the path's directory or above it; those further down say nothing of it.
        for (start, rules) in self.files.iter().filter(|(start, _)| *start <= name_at) {
            let path = Path::new(OsStr::from_bytes(&path[*start..]));
            if let Some(glob) = rules.matched(path, is_dir).inner().copied() {
                return Some((Place::File(*start), glob));
            }
        }
        let path = Path::new(OsStr::from_bytes(path));
        if let Some(glob) = self.config.matched(path, is_dir).inner().copied() {
            return Some((Place::Config, glob));
        }
        if !may_be_default(name) {
            return None;
        }
        self.defaults.matched(path, is_dir).inner().map(|glob| (Place::Defaults, *glob))
    }
}

/// Where a pattern stands.
enum Place {
    /// In the file of the directory whose path, with its slash, is so long.
    File(usize),
    Config,
    Defaults,
}

/// Returns the last line of a file, from 1, that is this pattern: the last one that matches decides.
fn line_of(bytes: &[u8], pattern: &str) -> Option<u64> {
    let bytes = bytes.strip_prefix("\u{feff}".as_bytes()).unwrap_or(bytes);
    let lines = bytes.split(|&byte| byte == b'\n').enumerate();
    let is_it = |line: &[u8]| {
        std::str::from_utf8(line).is_ok_and(|line| line.trim_end() == pattern.trim_end())
    };
    let (index, _) = lines.filter(|(_, line)| is_it(line)).last()?;
    u64::try_from(index + 1).ok()
}

/// Returns whether one of [`DEFAULTS`] may match: a look asks it of every entry, and of nearly all
/// the answer is no.
fn may_be_default(name: &[u8]) -> bool {
    matches!(name, [b'.' | b'#' | b'~', ..] | [.., b'~'] | b"Thumbs.db" | b"lost+found")
}

/// Compiles what a file holds, and says what is wrong with the first line that is no pattern; the
/// others are in force.
fn compile_file(bytes: &[u8]) -> (Gitignore, Option<String>) {
    let mut builder = GitignoreBuilder::new("");
    let mut wrong = None;
    let bytes = bytes.strip_prefix("\u{feff}".as_bytes()).unwrap_or(bytes);
    for (index, line) in bytes.split(|&byte| byte == b'\n').enumerate() {
        let added = match std::str::from_utf8(line.strip_suffix(b"\r").unwrap_or(line)) {
            Ok(line) => add_line(&mut builder, line),
            Err(_) => Err(PatternError::new(&String::from_utf8_lossy(line), "it is not UTF-8")),
        };
        if let Err(error) = added {
            wrong.get_or_insert_with(|| {
                format!("Line {}: {error}; its other lines are in force", index + 1)
            });
        }
    }
    match builder.build() {
        Ok(rules) => (rules, wrong),
        Err(error) => (Gitignore::empty(), Some(format!("It is not in force: {error}"))),
    }
}

fn compile<S: AsRef<str>>(patterns: &[S]) -> Result<Arc<Gitignore>, PatternError> {
    let mut builder = GitignoreBuilder::new("");
    for pattern in patterns.iter().map(AsRef::as_ref) {
        add_line(&mut builder, pattern)?;
    }
    let all = || patterns.iter().map(AsRef::as_ref).collect::<Vec<_>>().join(" ");
    builder.build().map(Arc::new).map_err(|error| PatternError::new(&all(), error.to_string()))
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

    /// A file with patterns comes from other devices, perhaps from a hostile server.
    #[test]
    fn a_hostile_file_takes_neither_all_of_the_stack_nor_for_ever() {
        let half = FILE_LEN_MAX / 2 - 8;
        let lines = |line: &dyn Fn(usize) -> String| {
            let mut text = String::new();
            for number in 0.. {
                let line = line(number);
                if text.len() + line.len() > FILE_LEN_MAX {
                    return text;
                }
                text.push_str(&line);
            }
            text
        };
        let files = [
            format!("{}a{}", "{".repeat(half), "}".repeat(half)),
            "{a,".repeat(FILE_LEN_MAX / 3),
            "[a-z]*?".repeat(FILE_LEN_MAX / 7),
            lines(&|number| format!("*a*{number}*b*\n")),
            lines(&|number| format!("{{a,b}}{{c,d}}?{number}\n")),
            lines(&|_| "*\n".to_owned()),
        ];
        for file in files {
            let start = file[..30].to_owned();
            let trying = std::thread::Builder::new().stack_size(2 << 20).spawn(move || {
                let ignore = Ignore::new(&[]).unwrap();
                let load = |_: &RelPath| Some((stat(1), Ok(file.clone().into_bytes())));
                let mut rules = ignore.rules(&RelPath::ROOT, load);
                rules.is_ignored(&[b'a'; 255], false);
                // All that this thread has taken, of the processor: a busy machine does not count.
                let time = rustix::time::clock_gettime(rustix::time::ClockId::ThreadCPUTime);
                (time.tv_sec, ignore.problems().len())
            });
            let (secs, _problems) = trying.unwrap().join().unwrap();
            assert!(secs < 10, "{secs} seconds for {start:?}");
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
                .map(|(_, text)| (stat(1), Ok(text.as_bytes().to_vec())))
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
            ("build/a", true),
            ("build/keep~", true),
            ("build/deep/er/a", true),
            ("x/build/a", false),
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
        ignore.note(&RelPath::ROOT, Some(stat(2)), || Some(Ok(b"*.a\n{b\n\xff\n".to_vec())));
        assert_eq!(ignore.generation(), 1);
        check(&ignore, &[], "a.o", false);
        check(&ignore, &[], "a.a", true);
        let [(dir, reason)] = &ignore.problems()[..] else { panic!("{:?}", ignore.problems()) };
        assert!(dir.is_root());
        assert!(
            reason.starts_with("Line 2: The ignore pattern \"{b\" is not valid: ")
                && reason.ends_with("; its other lines are in force"),
            "{reason}"
        );
        ignore.note(&RelPath::ROOT, None, || None);
        assert_eq!(ignore.generation(), 2);
        check(&ignore, &[], "a.a", false);
        assert!(ignore.problems().is_empty());
    }

    #[test]
    fn a_file_that_cannot_be_read_is_told_once_and_not_looked_at_for_ever() {
        let ignore = Ignore::new(&[]).unwrap();
        ignore.note(&RelPath::ROOT, None, || None);
        check(&ignore, &[], "a.o", false);
        let too_long = || Some(Err("The file is longer than it can be".to_owned()));
        ignore.note(&RelPath::ROOT, Some(stat(1)), too_long);
        let generation = ignore.generation();
        ignore.note(&RelPath::ROOT, Some(stat(1)), || panic!("it did not change"));
        assert_eq!(ignore.generation(), generation);
        let problem = "It is not in force: The file is longer than it can be".to_owned();
        assert_eq!(ignore.problems(), [(RelPath::ROOT, problem)]);
    }

    #[test]
    fn what_would_never_match_is_no_pattern() {
        for bad in ["a{b", "[a", "a[!]", "a[^]b", "x\\", "!", "/", "!//", "", "# a", "a\nb", "  "] {
            assert!(check_pattern(bad).is_err(), "{bad:?}");
        }
        for good in ["[a]", "[]a]", "[!]]", "\\[a", "*.o", "!/a/", "a\\ ", "été", "**/x", "{a,b}"]
        {
            assert_eq!(check_pattern(good), Ok(()), "{good:?}");
        }
    }

    #[test]
    fn a_bad_pattern_of_the_config_is_refused() {
        let error = Ignore::new(&["a{b".into()]).err().unwrap();
        assert_eq!(error.pattern, "a{b");
    }
}
