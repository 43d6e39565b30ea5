//! Small files of the agent's own, replaced in one durable step.

use std::fs::{File, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::fs::{OpenOptionsExt as _, PermissionsExt as _};
use std::path::Path;

/// Replaces the file at `path`: after a crash it holds the old bytes or the new ones, and once this
/// returns, the new ones. A symbolic link there is followed, so that the file it names is replaced.
///
/// # Errors
/// When the disk refuses; the old file is then as it was.
pub(crate) fn replace(path: &Path, bytes: &[u8], mode: u32) -> io::Result<()> {
    let target = std::fs::canonicalize(path).unwrap_or_else(|_| path.to_owned());
    let dir = target.parent().filter(|dir| !dir.as_os_str().is_empty());
    let dir = dir.unwrap_or_else(|| Path::new("."));
    let mut name = target
        .file_name()
        .ok_or_else(|| io::Error::new(io::ErrorKind::InvalidInput, "the path names no file"))?
        .to_owned();
    name.push(format!(".new-{}", std::process::id()));
    let temporary = dir.join(name);
    let write = || {
        let mut file = OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(true)
            .mode(mode)
            .open(&temporary)?;
        // A leftover keeps the mode it was made with.
        file.set_permissions(std::fs::Permissions::from_mode(mode))?;
        file.write_all(bytes)?;
        file.sync_all()?;
        std::fs::rename(&temporary, &target)?;
        File::open(dir)?.sync_all()
    };
    write().inspect_err(|_| {
        // The error that matters is the one above.
        drop(std::fs::remove_file(&temporary));
    })
}
