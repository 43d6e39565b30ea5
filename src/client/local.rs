//! Files of this machine: reading only regular ones, and making a new one that appears whole or
//! not at all.

use std::fs::{File, OpenOptions, Permissions};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, CWD, OFlags, Timespec, Timestamps};

use crate::model::{Attrs, Timestamp};

/// Opens a regular file for reading. Anything else is refused before it can block or act.
pub(crate) fn open_regular(path: &Path) -> io::Result<File> {
    let flags = OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
    let flags = i32::try_from(flags.bits()).map_err(io::Error::other)?;
    // Looked at before it is opened, since opening a device can do something; and after, since it
    // may have been replaced between.
    let check = |meta: std::fs::Metadata| {
        if meta.is_file() {
            Ok(())
        } else if meta.is_dir() {
            Err(io::ErrorKind::IsADirectory.into())
        } else {
            Err(io::Error::new(io::ErrorKind::InvalidInput, "it is not a regular file"))
        }
    };
    check(std::fs::metadata(path)?)?;
    let file = OpenOptions::new().read(true).custom_flags(flags).open(path)?;
    check(file.metadata()?)?;
    Ok(file)
}

/// What the names of files begin with that are not whole yet. The agent leaves such names alone.
const TEMPORARY_PREFIX: &str = ".picloud-get-";

/// A file that is made beside its place, and put there once it is whole; dropped before, it leaves
/// nothing behind.
///
/// Where the file system can, it has no name until it is whole, so that nothing is left when this
/// process is killed, either.
#[derive(Debug)]
pub(super) struct NewFile {
    file: File,
    /// Its name for now, if it has one.
    temporary: Option<PathBuf>,
    path: PathBuf,
}

impl NewFile {
    /// Makes an empty file of this length beside `path`.
    pub(super) fn create(path: &Path, len: u64) -> io::Result<Self> {
        if path.is_dir() {
            return Err(io::ErrorKind::IsADirectory.into());
        }
        if path.file_name().is_none() {
            return Err(io::ErrorKind::InvalidFilename.into());
        }
        match Self::unnamed(path) {
            Some(new) => Self::sized(new, len),
            None => Self::sized(Self::named(path)?, len),
        }
    }

    fn sized(new: Self, len: u64) -> io::Result<Self> {
        new.file.set_len(len)?;
        Ok(new)
    }

    /// Makes one without a name; none where that cannot be, whatever the reason: with a name it
    /// works, or fails for the reason to be told.
    fn unnamed(path: &Path) -> Option<Self> {
        let flags = i32::try_from(OFlags::TMPFILE.bits()).ok()?;
        let mut options = OpenOptions::new();
        let file = options.write(true).mode(0o600).custom_flags(flags).open(parent(path)).ok()?;
        // What gives it its name in the end.
        std::fs::metadata(open_name(&file)).ok()?;
        Some(Self { file, temporary: None, path: path.to_owned() })
    }

    fn named(path: &Path) -> io::Result<Self> {
        let temporary = temporary_name(path)?;
        let file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&temporary)?;
        Ok(Self { file, temporary: Some(temporary), path: path.to_owned() })
    }

    pub(super) fn write_at(&self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        self.file.write_all_at(bytes, offset)
    }

    /// Makes it durable and puts it in its place.
    pub(super) fn finish(mut self, attrs: Attrs, mtime: Timestamp) -> io::Result<()> {
        let mode = Permissions::from_mode(u32::from(attrs.mode));
        self.file.set_permissions(mode)?;
        let mtime = Timespec { tv_sec: mtime.secs, tv_nsec: i64::from(mtime.nanos()) };
        let times = Timestamps {
            last_access: Timespec { tv_sec: 0, tv_nsec: rustix::fs::UTIME_NOW },
            last_modification: mtime,
        };
        rustix::fs::futimens(&self.file, &times)?;
        self.file.sync_all()?;
        let temporary = match self.temporary.take() {
            Some(temporary) => temporary,
            None => {
                // A link replaces nothing, so it takes a name that the rename can replace with.
                let temporary = temporary_name(&self.path)?;
                let unnamed = open_name(&self.file);
                rustix::fs::linkat(CWD, &unnamed, CWD, &temporary, AtFlags::SYMLINK_FOLLOW)?;
                temporary
            }
        };
        if let Err(error) = std::fs::rename(&temporary, &self.path) {
            self.temporary = Some(temporary);
            return Err(error);
        }
        File::open(parent(&self.path))?.sync_all()
    }
}

impl Drop for NewFile {
    fn drop(&mut self) {
        if let Some(temporary) = &self.temporary {
            // Nobody is left to tell; the name says whose it is.
            std::fs::remove_file(temporary).ok();
        }
    }
}

/// Returns the path by which an open file can be linked.
fn open_name(file: &File) -> PathBuf {
    PathBuf::from(format!("/proc/self/fd/{}", file.as_raw_fd()))
}

/// Returns a name beside `path` that nobody else has.
fn temporary_name(path: &Path) -> io::Result<PathBuf> {
    let mut random = [0; 8];
    getrandom::fill(&mut random).map_err(io::Error::other)?;
    let name = format!("{TEMPORARY_PREFIX}{:016x}", u64::from_be_bytes(random));
    Ok(parent(path).join(name))
}

fn parent(path: &Path) -> &Path {
    match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(dir: &Path) -> Vec<String> {
        let entries = std::fs::read_dir(dir).unwrap();
        entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect()
    }

    #[test]
    fn a_file_that_is_not_finished_leaves_nothing_and_a_finished_one_replaces() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("file");
        for make in [NewFile::named, |path: &Path| Ok(NewFile::unnamed(path).unwrap())] {
            std::fs::write(&path, "old").unwrap();
            let new = make(&path).unwrap();
            new.write_at(0, b"half").unwrap();
            drop(new);
            assert_eq!(names(dir.path()), ["file"]);
            assert_eq!(std::fs::read(&path).unwrap(), b"old");

            let new = make(&path).unwrap();
            new.write_at(0, b"whole").unwrap();
            new.finish(Attrs::from_mode(0o640), Timestamp::default()).unwrap();
            assert_eq!(names(dir.path()), ["file"]);
            assert_eq!(std::fs::read(&path).unwrap(), b"whole");
            assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o640);

            // A place that cannot be taken in the end.
            let new = make(&path).unwrap();
            std::fs::remove_file(&path).unwrap();
            std::fs::create_dir(&path).unwrap();
            new.finish(Attrs::from_mode(0o640), Timestamp::default()).unwrap_err();
            assert_eq!(names(dir.path()), ["file"]);
            std::fs::remove_dir(&path).unwrap();
        }
    }

    #[test]
    fn a_kill_leaves_nothing_where_files_need_no_name() {
        let dir = tempfile::tempdir().unwrap();
        let new = NewFile::create(&dir.path().join("file"), 1 << 20).unwrap();
        assert_eq!(names(dir.path()), Vec::<String>::new());
        drop(new);
    }
}
