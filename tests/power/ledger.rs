//! What persons wrote, where and when, and what must be there of it after a power cut.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::io::Write as _;
use std::path::Path;

use crate::disk::Disks;
use crate::support::{Device, Dice, eventually};

/// How a person's program saves a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Save {
    /// Over the old one, nothing made durable: as `cp` does.
    Plain,
    /// Beside it, synced, renamed: as editors do.
    Careful,
}

/// A state of a file, at some place or nowhere any more.
struct Version {
    /// The place; of a deletion the one that it had.
    path: String,
    content: Option<Vec<u8>>,
    /// The device where it was made.
    by: String,
    save: Save,
    /// Before it was made.
    begun: usize,
    /// When it was first known to be on the server, by its answer or from another device.
    safe: Option<usize>,
}

/// All files and all their versions. Each has one author at a time.
#[derive(Default)]
pub struct Ledger(BTreeMap<String, Vec<Version>>);

/// The files of a tree, by path.
pub type Files = BTreeMap<String, Vec<u8>>;

/// Bytes of this version and of no other. A version's length differs from the one's before.
pub fn content(file: &str, version: usize, len: usize) -> Vec<u8> {
    let mut bytes = format!("{file} {version}\n").into_bytes();
    let seed =
        blake3::hash(&bytes).as_bytes().first_chunk().map(|first| u64::from_be_bytes(*first));
    bytes.extend(Dice::new(seed.unwrap()).bytes(len + version));
    bytes
}

/// The contents that each device had put in place in the very moment of the cut.
pub type Arrived = BTreeMap<String, Vec<Vec<u8>>>;

impl Ledger {
    fn push(&mut self, file: &str, version: Version) {
        self.0.entry(file.to_owned()).or_default().push(version);
    }

    /// The newest place and content of a file.
    fn newest(&self, file: &str) -> (String, Vec<u8>) {
        let newest = self.0[file].last().unwrap();
        (newest.path.clone(), newest.content.clone().expect("it is not deleted"))
    }

    /// A new version, at the place where the file is, or at its own name.
    pub fn write(&mut self, disks: &Disks, device: &Device, file: &str, len: usize, save: Save) {
        let number = self.0.get(file).map_or(0, Vec::len);
        let path = if number == 0 { file.to_owned() } else { self.newest(file).0 };
        let bytes = content(file, number, len);
        let begun = disks.now();
        let target = device.path(&path);
        fs::create_dir_all(target.parent().unwrap()).unwrap();
        match save {
            Save::Plain => fs::write(&target, &bytes).unwrap(),
            Save::Careful => {
                save_carefully(&device.folder.with_file_name("saving"), &target, &bytes)
            }
        }
        let by = device.name.clone();
        let content = Some(bytes);
        self.push(file, Version { path, content, by, save, begun, safe: None });
    }

    pub fn rename(&mut self, disks: &Disks, device: &Device, file: &str, to: &str) {
        let (from, content) = self.newest(file);
        let begun = disks.now();
        device.rename(from, to);
        let (path, content, by) = (to.to_owned(), Some(content), device.name.clone());
        self.push(file, Version { path, content, by, save: Save::Careful, begun, safe: None });
    }

    pub fn remove(&mut self, disks: &Disks, device: &Device, file: &str) {
        let (path, _) = self.newest(file);
        let begun = disks.now();
        device.remove(&path);
        let (content, by) = (None, device.name.clone());
        self.push(file, Version { path, content, by, save: Save::Careful, begun, safe: None });
    }

    /// What was put straight to the server, and answered.
    pub fn was_put(&mut self, file: &str, bytes: Vec<u8>, begun: usize, safe: usize) {
        let (path, content, by) = (file.to_owned(), Some(bytes), "client".to_owned());
        let (save, safe) = (Save::Careful, Some(safe));
        self.push(file, Version { path, content, by, save, begun, safe });
    }

    /// Waits until the newest versions of these files are on a device that did not write them.
    pub fn wait_seen(&mut self, disks: &Disks, device: &Device) {
        let last = |versions: &[Version]| versions.last().map(|last| (last.safe, last.by.clone()));
        let mut waiting: Vec<_> = self
            .0
            .iter()
            .filter(|(_, versions)| {
                last(versions).is_some_and(|(safe, by)| safe.is_none() && by != device.name)
            })
            .map(|(file, versions)| (file.clone(), versions.len() - 1))
            .collect();
        eventually(&format!("what others wrote is on {}", device.name), || {
            waiting.retain(|(file, index)| {
                let version = &mut self.0.get_mut(file).unwrap()[*index];
                let is_seen = fs::read(device.path(&version.path)).ok() == version.content;
                if is_seen {
                    version.safe = Some(disks.now());
                }
                !is_seen
            });
            waiting.is_empty().then_some(())
        });
    }

    /// The moments at which something became known to be safe.
    pub fn safe_moments(&self) -> Vec<usize> {
        let moments: BTreeSet<_> = self.0.values().flatten().filter_map(|v| v.safe).collect();
        moments.into_iter().collect()
    }

    /// Says what is wrong with these files after a cut at this moment; empty when nothing is.
    pub fn complaints(&self, found: &Files, arrived: &Arrived, cut: usize) -> Vec<String> {
        let mut complaints = Vec::new();
        // Which versions each file was found in, and where.
        let mut seen: BTreeMap<&str, Vec<(&str, usize)>> = BTreeMap::new();
        for (path, bytes) in found {
            match self.version_of(bytes) {
                Some((file, index)) => seen.entry(file).or_default().push((path, index)),
                None if self.may_be_torn(path, bytes, cut) => {}
                None => complaints.push(format!(
                    "{path} holds {} bytes that nobody wrote: {:?}…",
                    bytes.len(),
                    String::from_utf8_lossy(&bytes[..bytes.len().min(40)])
                )),
            }
        }
        for (file, versions) in &self.0 {
            let begun = versions.iter().take_while(|version| version.begun < cut).count();
            let seen = seen.get(file.as_str()).map(Vec::as_slice).unwrap_or_default();
            complaints.extend(
                complaints_of(&versions[..begun], seen, cut, found, arrived)
                    .into_iter()
                    .map(|complaint| format!("{file}: {complaint}")),
            );
        }
        complaints
    }

    /// Says which files on a device's disk hold what nobody wrote, as the cut left it: none that came
    /// from elsewhere may.
    pub fn torn(&self, found: &Files, device: &Device, cut: usize) -> Vec<String> {
        let is_own = |path: &str| {
            self.0.values().flatten().any(|version| {
                let is_plain = version.save == Save::Plain && version.by == device.name;
                is_plain && version.begun < cut && version.path == path
            })
        };
        let torn = found.iter().filter(|(path, bytes)| {
            let is_copy = path.contains("(conflicted copy ");
            self.version_of(bytes).is_none() && !is_own(path) && !is_copy
        });
        torn.map(|(path, bytes)| format!("{path} is torn: {} bytes", bytes.len())).collect()
    }

    fn version_of(&self, bytes: &[u8]) -> Option<(&str, usize)> {
        let header = bytes.split(|byte| *byte == b'\n').next()?;
        let (file, _) = std::str::from_utf8(header).ok()?.rsplit_once(' ')?;
        let (file, versions) = self.0.get_key_value(file)?;
        let index = versions.iter().position(|v| v.content.as_deref() == Some(bytes))?;
        Some((file, index))
    }

    /// Who saves a file without making it durable may find anything in it after a power cut: where it
    /// is, if nobody else had it; else in a conflict copy of that device, but none of nothing.
    fn may_be_torn(&self, path: &str, bytes: &[u8], cut: usize) -> bool {
        self.0.iter().any(|(file, versions)| {
            let begun = versions.iter().filter(|version| version.begun < cut);
            let mut plain = begun.into_iter().filter(|version| version.save == Save::Plain);
            let nobody_had_it = !versions.iter().any(|version| is_safe(version, cut));
            plain.any(|version| {
                let copy_of = |name: &str| format!("{name} (conflicted copy {}", version.by);
                path == version.path && nobody_had_it
                    || !bytes.is_empty()
                        && [file, "recovered"].iter().any(|name| path.starts_with(&copy_of(name)))
            })
        })
    }
}

fn is_safe(version: &Version, cut: usize) -> bool {
    version.safe.is_some_and(|safe| safe <= cut)
}

fn complaints_of(
    versions: &[Version],
    seen: &[(&str, usize)],
    cut: usize,
    found: &Files,
    arrived: &Arrived,
) -> Vec<String> {
    let mut complaints = Vec::new();
    // What was safe, and all that came after it, may be what is there.
    let safe = versions.iter().rposition(|version| is_safe(version, cut));
    // A deletion may come undone with the disk of the device where it was made: then the version
    // before is there again.
    let first = safe.unwrap_or(0);
    let possible = &versions[first - usize::from(first > 0 && versions[first].content.is_none())..];
    let is_possible = |path: &str, index: usize| {
        let content = &versions[index].content;
        possible.iter().any(|version| version.content == *content)
            && possible.iter().any(|version| version.path == path)
    };
    let is_copy_of_arrival = |path: &str, index: usize| {
        arrived.iter().any(|(device, contents)| {
            path.contains(&format!("(conflicted copy {device} "))
                && contents.iter().any(|bytes| versions[index].content.as_ref() == Some(bytes))
        })
    };
    let mut is_there = false;
    for &(path, index) in seen {
        if index >= versions.len() {
            complaints.push(format!("{path} holds version {index}, which is of later"));
        } else if is_possible(path, index) {
            is_there = true;
        } else if !is_copy_of_author(path, versions) && !is_copy_of_arrival(path, index) {
            complaints.push(format!(
                "{path} holds version {index}, but {:?} of {} was safe",
                safe,
                versions.len()
            ));
        }
    }
    let may_be_gone = safe.is_none() || possible.iter().any(|version| version.content.is_none());
    if !is_there && !may_be_gone {
        let at: Vec<_> = possible
            .iter()
            .map(|version| (&version.path, found.get(&version.path).map(Vec::len)))
            .collect();
        complaints.push(format!("version {safe:?} was safe and is lost; found {seen:?}, {at:?}"));
    }
    complaints
}

/// A conflict copy is for what the disk of a device whose person wrote the file still had.
fn is_copy_of_author(path: &str, versions: &[Version]) -> bool {
    versions.iter().any(|version| path.contains(&format!("(conflicted copy {} ", version.by)))
}

/// `temporary` is beside the folder, so that what a cut leaves of it is no file of the drive.
fn save_carefully(temporary: &Path, target: &Path, bytes: &[u8]) {
    let mut file = File::create(temporary).unwrap();
    file.write_all(bytes).unwrap();
    file.sync_all().unwrap();
    fs::rename(temporary, target).unwrap();
}
