//! What joining a folder to a drive will come to: a comparison of both, in which nothing is changed.
//!
//! It follows the rules of a first pass: what is on one side only goes to the other, equal files meet, of
//! different ones both are kept, and nothing is deleted. What is decided in the end is decided by the
//! agent; between this look and that one a person may go on working.

use std::collections::HashMap;
use std::fs;
use std::io;
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};

use crate::agent::ignore::{FILE_LEN_MAX, FILE_NAME, Ignore, Loaded};
use crate::client::open_regular;
use crate::content::{ChunkError, Chunker};
use crate::engine::apply::OWN_DIR;
use crate::engine::seam::Stat;
use crate::model::{Attrs, Body, Kind, Name, Node, RelPath, Timestamp};

/// The most entries of the folder that are looked at.
const ENTRIES_MAX: u64 = 500_000;

/// The most conflicts that are named.
const NAMED_MAX: usize = 20;

/// Files, and their bytes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Amount {
    /// Files and links.
    pub files: u64,
    /// Bytes in them.
    pub bytes: u64,
}

impl Amount {
    fn add(&mut self, bytes: u64) {
        self.files += 1;
        self.bytes += bytes;
    }
}

/// What joining comes to.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Comparison {
    /// What comes from the server.
    pub receive: Amount,
    /// What goes to the server.
    pub send: Amount,
    /// What is the same already.
    pub same: Amount,
    /// How many paths hold something else on each side.
    pub conflict_count: u64,
    /// Some of them.
    pub conflicts: Vec<RelPath>,
    /// How many entries the ignore rules leave out; a directory counts once.
    pub ignored: u64,
    /// How many cannot be synced or read.
    pub problems: u64,
    /// Whether not all of the folder was looked at.
    pub is_partial: bool,
}

/// Compares a folder with what is in a drive. Blocks, and reads what may be equal.
///
/// # Errors
/// When the patterns are no rules.
pub fn compare(
    folder: &Path,
    mut drive: HashMap<RelPath, Node>,
    patterns: &[String],
) -> Result<Comparison, crate::agent::ignore::PatternError> {
    let ignore = Ignore::new(patterns)?;
    let mut walk = Walk { folder, ignore, found: Comparison::default(), chunker: Chunker::new() };
    let mut dirs = vec![RelPath::ROOT];
    let mut left = ENTRIES_MAX;
    while let Some(dir) = dirs.pop() {
        let entries = match fs::read_dir(walk.full(&dir)) {
            Ok(entries) => entries,
            // A folder that is to be made holds nothing.
            Err(error) if dir.is_root() && error.kind() == io::ErrorKind::NotFound => break,
            Err(_) => {
                walk.found.problems += 1;
                continue;
            }
        };
        for entry in entries {
            left -= 1;
            if left == 0 {
                walk.found.is_partial = true;
                dirs.clear();
                break;
            }
            let name = entry.and_then(|entry| {
                Name::new(entry.file_name().as_bytes()).map_err(io::Error::other)
            });
            match name {
                Ok(name) if name.as_bytes() == OWN_DIR => {}
                Ok(name) => {
                    let path = dir.join(&name);
                    let there = drive.remove(&path);
                    if walk.entry(&path, there.as_ref()) {
                        dirs.push(path);
                    }
                }
                Err(_) => walk.found.problems += 1,
            }
        }
    }
    for node in drive.values().filter(|node| !node.is_dir()) {
        walk.found.receive.add(node.body.content_len());
    }
    Ok(walk.found)
}

struct Walk<'a> {
    folder: &'a Path,
    ignore: Ignore,
    found: Comparison,
    chunker: Chunker,
}

impl Walk<'_> {
    fn full(&self, path: &RelPath) -> PathBuf {
        self.folder.join(std::ffi::OsStr::from_bytes(&path.to_bytes()))
    }

    /// Counts an entry; returns whether it is a directory to be looked into.
    fn entry(&mut self, path: &RelPath, there: Option<&Node>) -> bool {
        let full = self.full(path);
        let Ok(metadata) = fs::symlink_metadata(&full) else {
            // It went away meanwhile.
            return false;
        };
        let is_dir = metadata.is_dir();
        let folder = self.folder;
        let load = |dir: &RelPath| load(&folder.join(std::ffi::OsStr::from_bytes(&dir.to_bytes())));
        if there.is_none() && self.ignore.explain(path, is_dir, load).is_some() {
            self.found.ignored += 1;
            return false;
        }
        if is_dir {
            if let Some(there) = there.filter(|node| !node.is_dir()) {
                self.found.receive.add(there.body.content_len());
                self.conflict(path);
            }
            return true;
        }
        let is_file = metadata.is_file();
        if !is_file && !metadata.is_symlink() {
            self.found.problems += 1;
            return false;
        }
        let len = if is_file { metadata.len() } else { 0 };
        let Some(there) = there else {
            self.found.send.add(len);
            return false;
        };
        // Files of different lengths need not be read.
        let differs = is_file && (there.is_dir() || there.body.content_len() != len);
        match if differs { Ok(None) } else { self.body(&full, is_file) } {
            Ok(Some(here)) if here.same_bytes(&there.body) => self.found.same.add(len),
            Ok(_) if is_file && len == 0 && there.body.content_len() > 0 => {
                self.found.receive.add(there.body.content_len());
            }
            Ok(_) => {
                if !there.is_dir() {
                    self.found.receive.add(there.body.content_len());
                }
                self.conflict(path);
            }
            Err(_) => self.found.problems += 1,
        }
        false
    }

    fn conflict(&mut self, path: &RelPath) {
        self.found.conflict_count += 1;
        if self.found.conflicts.len() < NAMED_MAX {
            self.found.conflicts.push(path.clone());
        }
    }

    fn body(&mut self, full: &Path, is_file: bool) -> io::Result<Option<Body>> {
        if !is_file {
            let target = fs::read_link(full)?.into_os_string();
            return Ok(Some(Body::Link { target: target.as_bytes().to_vec() }));
        }
        let file = open_regular(full)?;
        let read = self.chunker.read_file(&file, |_, _| Ok::<_, ChunkError>(()));
        let content = read.map_err(io::Error::other)?.content;
        Ok(Some(Body::File { content, mtime: Timestamp::default() }))
    }
}

/// Reads the file with patterns of a directory.
fn load(dir: &Path) -> Option<(Stat, Loaded)> {
    let path = dir.join(std::ffi::OsStr::from_bytes(FILE_NAME));
    let metadata = fs::symlink_metadata(&path).ok().filter(fs::Metadata::is_file)?;
    // Nothing here lives long enough to see it change.
    let stat = Stat {
        kind: Some(Kind::File),
        ino: 0,
        birth: Timestamp::default(),
        size: metadata.len(),
        mtime: Timestamp::default(),
        ctime: Timestamp::default(),
        attrs: Attrs::from_mode(0),
    };
    let loaded = match usize::try_from(metadata.len()) {
        Ok(len) if len <= FILE_LEN_MAX => fs::read(&path).map_err(|error| error.to_string()),
        _ => Err("it is too long".to_owned()),
    };
    Some((stat, loaded))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{NodeId, Place};

    fn node(body: Body) -> Node {
        let place = Place { parent: NodeId::ROOT, name: Name::try_from("x").unwrap() };
        Node { place, body, attrs: Attrs::from_mode(0o644) }
    }

    fn file(bytes: &[u8]) -> Node {
        let content = Chunker::new().content_of(bytes).unwrap().content;
        node(Body::File { content, mtime: Timestamp::default() })
    }

    #[test]
    fn a_folder_and_a_drive_are_told_apart_and_nothing_is_touched() {
        let dir = tempfile::tempdir().unwrap();
        let put = |path: &str, text: &str| {
            let path = dir.path().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        };
        put("same", "1");
        put("other", "here");
        put("only/here", "123");
        put("only/left.o", "out");
        put(".picloudignore", "*.o\n");
        put("empty", "");
        put(".picloud/identity", "own");
        put("dir/in", "x");
        std::os::unix::fs::symlink("same", dir.path().join("link")).unwrap();
        let drive = [
            ("same", file(b"1")),
            ("other", file(b"ther")),
            ("there", file(b"12345")),
            ("empty", file(b"full")),
            ("dir", file(b"a file")),
            ("link", node(Body::Link { target: b"same".to_vec() })),
            ("d", node(Body::Dir)),
        ];
        let drive = drive.map(|(path, node)| (RelPath::parse(path.as_bytes()).unwrap(), node));
        let mut found = compare(dir.path(), HashMap::from(drive), &[]).unwrap();
        found.conflicts.sort();
        let path = |text: &str| RelPath::parse(text.as_bytes()).unwrap();
        assert_eq!(
            found,
            Comparison {
                receive: Amount { files: 4, bytes: 4 + 5 + 4 + 6 },
                send: Amount { files: 3, bytes: 3 + 4 + 1 },
                same: Amount { files: 2, bytes: 1 },
                conflict_count: 2,
                conflicts: vec![path("dir"), path("other")],
                ignored: 1,
                problems: 0,
                is_partial: false,
            }
        );
        let missing = compare(&dir.path().join("none"), HashMap::new(), &[]).unwrap();
        assert_eq!(missing, Comparison::default());
    }
}
