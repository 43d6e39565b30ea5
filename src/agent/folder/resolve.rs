//! Settling a conflict as a person wished.
//!
//! Both versions must be in sync, so that what is not kept is in the server's history, and still be what
//! the person saw. Nothing is ever replaced: the two change places in one step, and what is not kept is
//! removed by the careful procedure that carries out every removal, which puts back what it did not
//! expect. So a kill at any moment leaves both.

use std::sync::Arc;

use tokio::sync::{mpsc, oneshot};

use super::{Context, Input};
use crate::engine::folder::{Fault, Folder as _, Rename};
use crate::engine::rest::AtRest;
use crate::engine::seam::{Expected, Outcome, Spot, Stat};
use crate::model::{Kind, Name, RelPath, kept_name, read_copy_name};
use crate::protocol::control::{Keep, Resolved};

/// So many names are tried for a copy that is kept.
const NAMES_MAX: u32 = 1000;

/// Both versions, as the engine knows them.
#[derive(Debug)]
pub(in crate::agent) struct Pair {
    pub copy: AtRest,
    pub original: Option<AtRest>,
    pub cx: Arc<Context>,
}

/// Returns what is told of two versions to whoever may want to settle their conflict.
pub(in crate::agent) fn seen(copy: &Stat, original: Option<&Stat>) -> String {
    let one = |stat: &Stat| {
        let (mtime, ctime) = (stat.mtime, stat.ctime);
        let nanos = (mtime.nanos(), ctime.nanos());
        format!("{}:{}:{}.{}:{}.{}", stat.ino, stat.size, mtime.secs, nanos.0, ctime.secs, nanos.1)
    };
    format!("{} {}", one(copy), original.map_or_else(|| "none".to_owned(), one))
}

const CHANGED: &str = "One of the two has changed since it was shown: nothing was done";

/// Settles a conflict. An error is for a person.
pub(in crate::agent) async fn resolve(
    inputs: mpsc::Sender<Input>,
    path: RelPath,
    keep: Keep,
    was_seen: String,
) -> Result<Resolved, String> {
    let closed = || "The folder is being closed: nothing was done".to_owned();
    let (reply, found) = oneshot::channel();
    inputs.send(Input::Pair(path, reply)).await.map_err(|_| closed())?;
    let pair = found.await.map_err(|_| closed())??;
    let original = pair.original.as_ref();
    if was_seen != seen(&pair.copy.expected.stat, original.map(|node| &node.expected.stat)) {
        return Err(CHANGED.to_owned());
    }
    let doomed = match keep {
        Keep::Copy => original,
        Keep::Original => Some(&pair.copy),
        Keep::Both => None,
    };
    if doomed.is_some_and(|node| node.expected.stat.kind == Some(Kind::Dir)) {
        return Err("What would go is a directory: look into it, and delete what is not wanted; \
                    `--keep both` gives the copy a name of its own"
            .to_owned());
    }
    match keep {
        Keep::Original => {
            if original.is_none() {
                return Err(
                    "There is nothing at the original's path any more: keep the copy".to_owned()
                );
            }
            let kept = original.map(|node| node.at.path().to_string());
            discard(&inputs, pair.copy.clone()).await?;
            Ok(Resolved { kept: kept.into_iter().collect(), removed: true })
        }
        Keep::Copy | Keep::Both => {
            let (placed, pair) = tokio::task::spawn_blocking(move || (place(&pair, keep), pair))
                .await
                .map_err(|error| format!("A fault in the program: {error}"))?;
            let kept = placed?;
            let Some(original) = pair.original.filter(|_| keep == Keep::Copy) else {
                return Ok(Resolved { kept, removed: false });
            };
            // It is where the copy was, under the same bytes.
            let doomed = AtRest { at: pair.copy.at.clone(), ..original };
            let stat = pair
                .cx
                .folder
                .open_dir(&doomed.at.dir.path)
                .and_then(|(dir, _)| pair.cx.folder.stat(&dir, &doomed.at.name));
            let stat = stat.map_err(|fault| half_done(&doomed.at, &fault.to_string()))?;
            if !stat.same_but_ctime(&doomed.expected.stat) {
                return Err(half_done(&doomed.at, "it has changed meanwhile"));
            }
            let expected = Expected { stat, ..doomed.expected };
            discard(&inputs, AtRest { expected, ..doomed.clone() })
                .await
                .map_err(|reason| half_done(&doomed.at, &reason))?;
            Ok(Resolved { kept, removed: true })
        }
    }
}

fn half_done(at: &Spot, reason: &str) -> String {
    format!(
        "What was kept has the name now, but the other version, at {:?}, was not removed: {reason}",
        at.path()
    )
}

/// Gives the copy the name that it is to have; returns what is kept, and where. Blocks.
fn place(pair: &Pair, keep: Keep) -> Result<Vec<String>, String> {
    let folder = &pair.cx.folder;
    let copy = &pair.copy.at;
    let told = |fault: Fault| match fault {
        Fault::NotFound | Fault::Changed => CHANGED.to_owned(),
        fault => format!("{fault}: nothing was done"),
    };
    let (dir, _) = folder.open_dir(&copy.dir.path).map_err(told)?;
    let is_still = |name: &Name, stat: &Stat| {
        folder.stat(&dir, name).is_ok_and(|found| found.same_but_ctime(stat))
    };
    if !is_still(&copy.name, &pair.copy.expected.stat) {
        return Err(CHANGED.to_owned());
    }
    let read = read_copy_name(&copy.name).ok_or_else(|| CHANGED.to_owned())?;
    let path_of = |name: &Name| copy.dir.path.join(name).to_string();
    let renamed = |to: &Name| folder.rename((&dir, &copy.name), (&dir, to), Rename::NoReplace);
    let placed = match (&pair.original, keep) {
        (None, _) => {
            renamed(&read.original).map_err(told)?;
            vec![path_of(&read.original)]
        }
        (Some(original), Keep::Both) => {
            let mut attempt = 1;
            let name = loop {
                let name = kept_name(&read.original, &read.device, &read.date, attempt);
                match renamed(&name) {
                    Ok(()) => break name,
                    Err(Fault::Exists) if attempt < NAMES_MAX => attempt += 1,
                    Err(fault) => return Err(told(fault)),
                }
            };
            vec![original.at.path().to_string(), path_of(&name)]
        }
        (Some(original), _) => {
            let name = &original.at.name;
            let exchange = || folder.rename((&dir, &copy.name), (&dir, name), Rename::Exchange);
            exchange().map_err(told)?;
            let is_as_seen = is_still(name, &pair.copy.expected.stat)
                && is_still(&copy.name, &original.expected.stat);
            if !is_as_seen {
                // RACE: whoever replaced one of them may do so once more in between; both are still
                // there then, and which has which name is no more than what they made of it.
                exchange().map_err(told)?;
                return Err(CHANGED.to_owned());
            }
            vec![original.at.path().to_string()]
        }
    };
    folder
        .sync_dir(&dir)
        .map_err(|fault| format!("It is done, but may not outlast a power cut: {fault}"))?;
    Ok(placed)
}

/// Removes what is not kept, if it is still what is expected.
async fn discard(inputs: &mpsc::Sender<Input>, node: AtRest) -> Result<(), String> {
    let closed = || "the folder is being closed".to_owned();
    let (reply, outcome) = oneshot::channel();
    inputs.send(Input::Discard(node, reply)).await.map_err(|_| closed())?;
    match outcome.await.map_err(|_| closed())? {
        Outcome::Done { .. } => Ok(()),
        Outcome::Failed { reason } => Err(reason),
        _ => Err(CHANGED.to_owned()),
    }
}
