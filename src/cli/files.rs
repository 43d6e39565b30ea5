//! One file at a time, straight to the server: put, get, ls.

use std::ffi::OsStr;
use std::io;
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use base64::Engine as _;
use serde_json::{Value, json};
use tokio::signal::unix::{SignalKind, signal};

use super::agent::told;
use super::failure::{Exit, Failure};
use super::machine::Machine;
use super::output::{Output, bytes, moment, printable};
use crate::client::{ClientError, Entry, PutOptions, Session};
use crate::model::{Body, RelPath, Timestamp};

/// Standard input or output in the place of a file.
const STREAM: &str = "-";

fn refused(error: ClientError) -> Failure {
    Failure::of_client(&error)
}

/// Reads a path of the drive. `/` in front is its root, as nearly everyone types it.
fn remote_path(path: &Path) -> Result<RelPath, Failure> {
    RelPath::parse(path.as_os_str().as_bytes()).map_err(|error| {
        Failure::usage(format!("{path:?} cannot be a path in the drive")).because(&error)
    })
}

/// `picloud put`.
///
/// # Errors
/// When the file cannot be read, or the server cannot be reached or refuses.
pub async fn put(
    machine: &Machine,
    output: Output,
    file: &Path,
    remote: Option<&Path>,
) -> Result<Exit, Failure> {
    let stream = file == Path::new(STREAM);
    let own_name = || {
        file.file_name()
            .filter(|_| !stream)
            .ok_or_else(|| Failure::usage(format!("{file:?} has no name: give its path there too")))
    };
    let remote = match remote {
        None => PathBuf::from(own_name()?),
        Some(dir) if dir.as_os_str().as_bytes().ends_with(b"/") => dir.join(own_name()?),
        Some(path) => path.to_owned(),
    };
    let mut remote = remote_path(&remote)?;
    if !stream {
        // What cannot be read is said before a server is asked for.
        let metadata =
            std::fs::metadata(file).map_err(|error| Failure::file("Cannot read", file, &error))?;
        if !metadata.is_file() {
            return Err(Failure::failed(format!("{file:?} is not a file"))
                .hint("put files one at a time, or sync a folder with `picloud join`"));
        }
    }
    let session = machine.account()?.connect().await?;
    // An existing directory as the target means a file in it.
    if remote.is_root() {
        remote = remote.join(&name_of(own_name()?)?);
    } else if let Some(entry) = session.stat(&remote).await.map_err(refused)?
        && entry.node.is_dir()
    {
        remote = remote.join(&name_of(own_name()?)?);
    }
    let stored = if stream {
        let options = PutOptions { mode: None, mtime: now() };
        session.put(io::stdin(), &remote, options).await
    } else {
        session.put_file(file, &remote).await
    };
    let stored = stored.map_err(refused)?;
    if output.json() {
        let mut object = json!({
            "type": "put",
            "version": 1,
            "size": stored.content.len(),
            "created": stored.created,
        });
        add_path(&mut object, &remote);
        told(output.object(&object))?;
    } else if output.live() {
        told(output.line(&format!(
            "{} {} ({})",
            if stored.created { "Put" } else { "Replaced" },
            shown(&remote),
            bytes(stored.content.len())
        )))?;
    }
    Ok(Exit::Done)
}

fn name_of(name: &OsStr) -> Result<crate::model::Name, Failure> {
    crate::model::Name::new(name.as_bytes())
        .map_err(|error| Failure::from_error(Exit::Failed, &error))
}

fn now() -> Timestamp {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    let secs = i64::try_from(since.as_secs()).unwrap_or_default();
    Timestamp::new(secs, since.subsec_nanos()).unwrap_or_default()
}

/// `picloud get`.
///
/// # Errors
/// When there is no such file, it cannot be written here, or the server cannot be reached.
pub async fn get(
    machine: &Machine,
    output: Output,
    remote: &Path,
    file: Option<&Path>,
) -> Result<Exit, Failure> {
    let path = remote_path(remote)?;
    let Some((_, name)) = path.split_last() else {
        return Err(Failure::usage("Name a file of the drive: its root is none"));
    };
    let name = PathBuf::from(OsStr::from_bytes(name.as_bytes()));
    let session = machine.account()?.connect().await?;
    if file == Some(Path::new(STREAM)) {
        let got = session.get(&path, io::BufWriter::new(io::stdout())).await;
        let (_, mut writer) = got.map_err(refused)?;
        told(io::Write::flush(&mut writer))?;
        return Ok(Exit::Done);
    }
    let target = match file {
        None => name,
        Some(dir) if dir.is_dir() => dir.join(name),
        Some(file) => file.to_owned(),
    };
    let target = regular_target(target)?;
    let entry = tokio::select! {
        got = session.get_file(&path, &target) => got.map_err(refused)?,
        // What is written so far goes away with the work.
        stopped = signalled() => return Err(stopped),
    };
    let size = entry.node.body.content_len();
    if output.json() {
        let mut object = json!({
            "type": "got",
            "version": 1,
            "size": size,
            "file": target,
        });
        add_path(&mut object, &path);
        told(output.object(&object))?;
    } else if output.live() {
        let target = printable(&target.to_string_lossy());
        told(output.line(&format!("Got {target} ({})", bytes(size))))?;
    }
    Ok(Exit::Done)
}

/// Returns once this process is asked to end.
async fn signalled() -> Failure {
    let listen = || Ok((signal(SignalKind::interrupt())?, signal(SignalKind::terminate())?));
    let (mut interrupt, mut terminate) = match listen() {
        Ok(both) => both,
        Err(error) => {
            let error: io::Error = error;
            return Failure::failed("Cannot listen to signals").because(&error);
        }
    };
    tokio::select! {
        _ = interrupt.recv() => {}
        _ = terminate.recv() => {}
    }
    Failure::failed("Interrupted")
}

/// Returns the file that is to be written: what a link leads to, and never something that only looks
/// like a file (a device, a FIFO), which would be replaced by one.
fn regular_target(target: PathBuf) -> Result<PathBuf, Failure> {
    match std::fs::metadata(&target) {
        Ok(there) if there.is_dir() => {
            Err(Failure::failed(format!("{target:?} is a directory")).hint("name a file to write"))
        }
        Ok(there) if !there.is_file() => {
            Err(Failure::failed(format!("{target:?} is no regular file"))
                .hint("name a file to write, or - for the standard output"))
        }
        Ok(_) => std::fs::canonicalize(&target)
            .map_err(|error| Failure::file("Cannot use", &target, &error)),
        // Nothing is there yet, or what is in the way is told when it is written.
        Err(_) => Ok(target),
    }
}

/// `picloud ls`.
///
/// # Errors
/// When there is no such path, or the server cannot be reached.
pub async fn list(
    machine: &Machine,
    output: Output,
    long: bool,
    path: Option<&Path>,
) -> Result<Exit, Failure> {
    let path = path.map_or(Ok(RelPath::ROOT), remote_path)?;
    let session = machine.account()?.connect().await?;
    if !path.is_root() {
        let entry = session.stat(&path).await.map_err(refused)?;
        let entry = entry.ok_or_else(|| refused(ClientError::NotFound { path: path.clone() }))?;
        if !entry.node.is_dir() {
            show(output, long, &entry)?;
            return Ok(Exit::Done);
        }
    }
    show_all(&session, output, long, &path).await?;
    Ok(Exit::Done)
}

async fn show_all(
    session: &Session,
    output: Output,
    long: bool,
    path: &RelPath,
) -> Result<(), Failure> {
    let mut listing = session.list(path).await.map_err(refused)?;
    while let Some(entry) = listing.next().await.map_err(refused)? {
        show(output, long, &entry)?;
    }
    Ok(())
}

fn show(output: Output, long: bool, entry: &Entry) -> Result<(), Failure> {
    if output.json() {
        return told(output.object(&entry_json(entry)));
    }
    told(output.line(&entry_line(long, entry)))
}

/// `rwxr-x---     3000000  2026-11-22 14:02:11  name`, directories with `/` behind.
fn entry_line(long: bool, entry: &Entry) -> String {
    let (_, name) = match entry.path.split_last() {
        Some(split) => split,
        None => return "/".to_owned(),
    };
    let mut shown = printable(&String::from_utf8_lossy(name.as_bytes()));
    if entry.node.is_dir() {
        shown.push('/');
    }
    if !long {
        return shown;
    }
    let (kind, mode, size, time) = match &entry.node.body {
        Body::Dir => ('d', mode_text(entry.node.attrs.mode), String::new(), String::new()),
        Body::File { content, mtime } => {
            ('-', mode_text(entry.node.attrs.mode), content.len().to_string(), moment(mtime.secs))
        }
        Body::Link { target } => {
            shown.push_str(" -> ");
            shown.push_str(&printable(&String::from_utf8_lossy(target)));
            ('l', mode_text(0o777), String::new(), String::new())
        }
    };
    format!("{kind}{mode}  {size:>12}  {time:<19}  {shown}")
}

fn mode_text(mode: u16) -> String {
    (0..9)
        .rev()
        .map(|bit| match (mode >> bit & 1, bit % 3) {
            (0, _) => '-',
            (_, 2) => 'r',
            (_, 1) => 'w',
            _ => 'x',
        })
        .collect()
}

fn entry_json(entry: &Entry) -> Value {
    let kind = match &entry.node.body {
        Body::Dir => "directory",
        Body::File { .. } => "file",
        Body::Link { .. } => "link",
    };
    let mut object = json!({
        "type": "entry",
        "version": 1,
        "kind": kind,
        "mode": entry.node.attrs.mode,
        "rev": entry.rev,
    });
    match &entry.node.body {
        Body::File { content, mtime } => {
            object["size"] = content.len().into();
            object["mtime"] = mtime.secs.into();
            object["mtime_nanos"] = mtime.nanos().into();
        }
        Body::Link { target } => {
            object["target"] = String::from_utf8_lossy(target).into();
        }
        Body::Dir => {}
    }
    add_path(&mut object, &entry.path);
    object
}

/// Adds a path as text, and where it is none, its bytes as well.
fn add_path(object: &mut Value, path: &RelPath) {
    let raw = path.to_bytes();
    let name = path.names().last().map(|name| name.as_bytes());
    object["path"] = String::from_utf8_lossy(&raw).into();
    object["name"] = String::from_utf8_lossy(name.unwrap_or_default()).into();
    if std::str::from_utf8(&raw).is_err() {
        let text = base64::engine::general_purpose::STANDARD.encode(&raw);
        object["path_base64"] = text.into();
    }
}

fn shown(path: &RelPath) -> String {
    printable(&String::from_utf8_lossy(&path.to_bytes()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn permissions_read_as_in_a_directory_listing() {
        assert_eq!(mode_text(0o751), "rwxr-x--x");
        assert_eq!(mode_text(0o604), "rw----r--");
    }
}
