//! Leaving directories out of a folder on this device, and bringing them back, as a person asks.
//!
//! What is left out is written to its file before the engine hears of it: an agent that dies in between
//! reads it there. Who calls sees to it that only one of these goes on in an agent at a time.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use tokio::sync::{mpsc, oneshot};

use super::Input;
use crate::agent::left_out::{self, DIRS_MAX, LeftOutDir, LeftOutError};
use crate::engine::scope::{LeftOut, Named};
use crate::model::{NodeId, RelPath};

fn closed() -> String {
    "The folder is being closed: nothing was done".to_owned()
}

/// Asks the core, and waits for the answer.
async fn ask<R>(
    inputs: &mpsc::Sender<Input>,
    question: impl FnOnce(oneshot::Sender<R>) -> Input,
) -> Result<R, String> {
    let (reply, answer) = oneshot::channel();
    inputs.send(question(reply)).await.map_err(|_| closed())?;
    answer.await.map_err(|_| closed())
}

/// Works on the file, which blocks.
async fn on_file<R: Send + 'static>(
    file: &Path,
    work: impl FnOnce(&Path) -> Result<R, LeftOutError> + Send + 'static,
) -> Result<R, String> {
    let file = file.to_owned();
    let done = tokio::task::spawn_blocking(move || work(&file)).await;
    done.map_err(|error| format!("A fault in the program: {error}"))?.map_err(|error| {
        match std::error::Error::source(&error) {
            Some(cause) => format!("{error}: {cause}"),
            None => error.to_string(),
        }
    })
}

/// Returns what is left out, with where it is in the drive now; of what is not there, where it was.
async fn listed(
    inputs: &mpsc::Sender<Input>,
    file: &Path,
) -> Result<Vec<(LeftOutDir, Option<RelPath>)>, String> {
    let dirs = on_file(file, left_out::load).await?;
    let known: Vec<LeftOut> = ask(inputs, Input::LeftOut).await?;
    let path_of = |node: NodeId| known.iter().find(|dir| dir.id == node)?.path.clone();
    Ok(dirs
        .into_iter()
        .map(|dir| {
            let path = path_of(dir.node);
            let shown = path.as_ref().map_or(dir.path, ToString::to_string);
            (LeftOutDir { path: shown, ..dir }, path)
        })
        .collect())
}

/// Returns where what is left out is in the drive, and whether it is there.
pub(in crate::agent) async fn list(
    inputs: mpsc::Sender<Input>,
    file: PathBuf,
) -> Result<Vec<(String, bool)>, String> {
    let listed = listed(&inputs, &file).await?;
    Ok(listed.into_iter().map(|(dir, path)| (dir.path, path.is_some())).collect())
}

/// Has the engine leave out what the file says from now on.
async fn leave_out(
    inputs: &mpsc::Sender<Input>,
    file: &Path,
    dirs: Vec<LeftOutDir>,
) -> Result<(), String> {
    let nodes: BTreeSet<NodeId> = dirs.iter().map(|dir| dir.node).collect();
    on_file(file, move |file| left_out::store(file, &dirs)).await?;
    ask(inputs, |reply| Input::LeaveOut(nodes, reply)).await
}

/// Leaves a directory out; returns where it is in the drive. An error is for a person.
pub(in crate::agent) async fn exclude(
    inputs: mpsc::Sender<Input>,
    file: PathBuf,
    path: RelPath,
) -> Result<String, String> {
    if path.is_root() {
        return Err(
            "The folder itself cannot be left out: name directories in it (`picloud logout` \
                    ends its sync, and the files stay)"
                .to_owned(),
        );
    }
    let asked = path.clone();
    let (named, in_drive) = ask(&inputs, |reply| Input::Named(asked, reply)).await?;
    let node = match named {
        Named::Dir(node) => node,
        Named::NoDir => {
            return Err(format!("{path:?} is no directory: only directories can be left out"));
        }
        Named::NotSent => {
            return Err(format!(
                "{path:?} is not in the drive yet, so it would be nowhere: `picloud why` says what it \
                 waits for"
            ));
        }
        Named::Nothing => {
            return Err(format!("There is no directory {path:?}, neither here nor in the drive"));
        }
    };
    let shown = in_drive.to_string();
    let mut dirs: Vec<LeftOutDir> =
        listed(&inputs, &file).await?.into_iter().map(|(dir, _)| dir).collect();
    if dirs.iter().any(|dir| dir.node == node) {
        return Ok(shown);
    }
    if dirs.len() >= DIRS_MAX {
        return Err(format!(
            "{DIRS_MAX} directories are left out already, which is the most: leave out one that holds \
             several of them"
        ));
    }
    dirs.push(LeftOutDir { node, path: shown.clone() });
    leave_out(&inputs, &file, dirs).await?;
    Ok(shown)
}

/// Brings a directory back; returns where it is in the drive, or was, and whether it is there. An error
/// is for a person.
pub(in crate::agent) async fn include(
    inputs: mpsc::Sender<Input>,
    file: PathBuf,
    path: RelPath,
) -> Result<(String, bool), String> {
    let text = path.to_string();
    let listed = listed(&inputs, &file).await?;
    // By where it is; else by where it was, of what is not in the drive any more.
    let is_it = |(dir, now): &(LeftOutDir, Option<RelPath>)| match now {
        Some(now) => *now == path,
        None => dir.path == text,
    };
    let Some(at) = listed.iter().position(is_it) else {
        let is_below = |dir: &&LeftOutDir| {
            text.strip_prefix(dir.path.as_str()).is_some_and(|rest| rest.starts_with('/'))
        };
        let above = listed.iter().map(|(dir, _)| dir).find(is_below);
        return Err(match above {
            Some(above) => format!(
                "{path:?} is left out with {:?}, and comes back only with all of that: `picloud include \
                 {}`",
                above.path, above.path
            ),
            None => format!("{path:?} is not left out here: `picloud exclude` lists what is"),
        });
    };
    let is_there = listed[at].1.is_some();
    let mut dirs: Vec<LeftOutDir> = listed.into_iter().map(|(dir, _)| dir).collect();
    let back = dirs.remove(at);
    leave_out(&inputs, &file, dirs).await?;
    Ok((back.path, is_there))
}
