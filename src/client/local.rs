//! Files of this machine: reading only regular ones, and making a new one that appears whole or
//! not at all.

use std::fs::{File, OpenOptions, Permissions};
use std::io;
use std::os::unix::fs::{FileExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use rustix::fs::{OFlags, Timespec, Timestamps};

use crate::model::{Attrs, Timestamp};

/// Opens a regular file for reading. Anything else is refused before it can block or act.
pub(super) fn open_regular(path: &Path) -> io::Result<File> {
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

/// A file that is made beside its place, and put there once it is whole; dropped before, it leaves
/// nothing behind.
#[derive(Debug)]
pub(super) struct NewFile {
    file: File,
    temporary: PathBuf,
    path: PathBuf,
    is_done: bool,
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
        let mut random = [0; 8];
        getrandom::fill(&mut random).map_err(io::Error::other)?;
        let name = format!(".picloud-get-{:016x}", u64::from_be_bytes(random));
        let temporary = parent(path).join(name);
        let file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&temporary)?;
        let new = Self { file, temporary, path: path.to_owned(), is_done: false };
        new.file.set_len(len)?;
        Ok(new)
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
        std::fs::rename(&self.temporary, &self.path)?;
        self.is_done = true;
        File::open(parent(&self.path))?.sync_all()
    }
}

impl Drop for NewFile {
    fn drop(&mut self) {
        if !self.is_done {
            // Nobody is left to tell; the name says whose it is.
            std::fs::remove_file(&self.temporary).ok();
        }
    }
}

fn parent(path: &Path) -> &Path {
    match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    }
}
