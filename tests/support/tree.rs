//! What is in a folder, as values that can be compared and printed.

use std::collections::BTreeMap;
use std::fmt;
use std::fs;
use std::io::{self, Read};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

/// A folder's entries by path, without `.picloud` and without sockets, FIFOs and devices.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Tree(pub BTreeMap<Vec<u8>, Entry>);

/// An entry. Directories' modification times are not carried, nor are links' own.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Entry {
    Dir { mode: u32 },
    File { mode: u32, size: u64, mtime: (i64, i64), hash: blake3::Hash },
    Link { target: Vec<u8> },
}

impl fmt::Display for Entry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Dir { mode } => write!(f, "directory {mode:03o}"),
            Self::File { mode, size, mtime: (secs, nanos), hash } => {
                let hash = hash.to_hex();
                write!(f, "file {mode:03o}, {size} bytes, {}, mtime {secs}.{nanos:09}", &hash[..12])
            }
            Self::Link { target } => write!(f, "link to {:?}", String::from_utf8_lossy(target)),
        }
    }
}

impl fmt::Display for Tree {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (path, entry) in &self.0 {
            writeln!(f, "  {}: {entry}", path.escape_ascii())?;
        }
        Ok(())
    }
}

impl Tree {
    /// Reads a folder. What goes away meanwhile is left out.
    pub fn read(folder: &Path) -> Self {
        let mut tree = Self::default();
        tree.read_dir(folder, b"");
        tree
    }

    fn read_dir(&mut self, dir: &Path, prefix: &[u8]) {
        let Ok(entries) = fs::read_dir(dir) else {
            return;
        };
        for entry in entries.flatten() {
            let name = entry.file_name();
            if prefix.is_empty() && name == ".picloud" {
                continue;
            }
            let mut path = prefix.to_vec();
            if !prefix.is_empty() {
                path.push(b'/');
            }
            path.extend_from_slice(name.as_bytes());
            let Ok(found) = read_entry(&entry.path()) else {
                continue;
            };
            let Some(found) = found else { continue };
            let is_dir = matches!(found, Entry::Dir { .. });
            self.0.insert(path.clone(), found);
            if is_dir {
                self.read_dir(&entry.path(), &path);
            }
        }
    }

    /// One line per difference; empty when both are the same.
    pub fn difference(&self, other: &Self) -> String {
        let paths: std::collections::BTreeSet<_> = self.0.keys().chain(other.0.keys()).collect();
        let shown = |entry: Option<&Entry>| entry.map_or("nothing".to_owned(), Entry::to_string);
        paths
            .into_iter()
            .filter(|path| self.0.get(*path) != other.0.get(*path))
            .take(30)
            .map(|path| {
                format!(
                    "  {}: {} against {}\n",
                    path.escape_ascii(),
                    shown(self.0.get(path)),
                    shown(other.0.get(path))
                )
            })
            .collect()
    }

    /// The paths of all entries, as text.
    pub fn paths(&self) -> Vec<String> {
        self.0.keys().map(|path| path.escape_ascii().to_string()).collect()
    }

    pub fn len(&self) -> usize {
        self.0.len()
    }
}

fn read_entry(path: &Path) -> io::Result<Option<Entry>> {
    let stat = fs::symlink_metadata(path)?;
    let mode = stat.mode() & 0o777;
    Ok(if stat.is_dir() {
        Some(Entry::Dir { mode })
    } else if stat.is_symlink() {
        let target = fs::read_link(path)?.as_os_str().as_bytes().to_vec();
        Some(Entry::Link { target })
    } else if stat.is_file() {
        let mut hasher = blake3::Hasher::new();
        let mut file = fs::File::open(path)?;
        let mut buffer = vec![0; 64 * 1024];
        loop {
            let read = file.read(&mut buffer)?;
            if read == 0 {
                break;
            }
            hasher.update(&buffer[..read]);
        }
        Some(Entry::File {
            mode,
            size: stat.size(),
            mtime: (stat.mtime(), stat.mtime_nsec()),
            hash: hasher.finalize(),
        })
    } else {
        None
    })
}
