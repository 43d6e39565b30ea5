//! How a path stands: what the engine knows of it, and what lies on disk now, put together.

use std::sync::Arc;

use tokio::sync::{mpsc, oneshot};

use super::view::LinkView;
use super::{Context, Input, View};
use crate::agent::ignore::{FILE_LEN_MAX, FILE_NAME, Ignore, Loaded, Rule};
use crate::engine::Lack;
use crate::engine::apply::OWN_DIR;
use crate::engine::folder::{Fault, Folder as _};
use crate::engine::seam::{INNER_FOLDER, Stat};
use crate::engine::why::{Known, Obstacle, Step, Why};
use crate::model::{Kind, Name, RelPath, original_of};
use crate::protocol::control::{Direction, Standing, State};

/// What the core answers.
#[derive(Debug)]
pub(in crate::agent) struct WhyFound {
    pub why: Why,
    pub cx: Arc<Context>,
    pub ignore: Arc<Ignore>,
    /// How many changes are pending in all.
    pub pending: u64,
}

/// What lies on disk at a path.
#[derive(Debug)]
enum OnDisk {
    Nothing,
    /// A directory in the way of it is a symbolic link.
    BeyondLink(RelPath),
    Unreadable(RelPath, String),
    /// Something, and the rule that leaves it out.
    Entry(Stat, Option<Rule>),
}

/// Returns how a path of a folder stands; nothing is said of what happened to it before.
pub(in crate::agent) async fn standing(
    view: View,
    inputs: Option<mpsc::Sender<Input>>,
    path: RelPath,
) -> Standing {
    if path.names().iter().any(|name| name.as_bytes() == OWN_DIR) {
        return Standing::Own;
    }
    if path.is_root() {
        return of_folder(&view);
    }
    match (&view.stopped, &view.link) {
        (Some(reason), _) | (None, LinkView::Refused(reason)) => {
            return Standing::Stopped { reason: reason.clone() };
        }
        _ => {}
    }
    let Some(inputs) = inputs else {
        return Standing::CatchingUp;
    };
    let (reply, found) = oneshot::channel();
    if inputs.send(Input::Why(path.clone(), reply)).await.is_err() {
        return Standing::CatchingUp;
    }
    let Ok(found) = found.await else {
        return Standing::CatchingUp;
    };
    let (cx, ignore, at) = (found.cx, found.ignore, path.clone());
    let looked = tokio::task::spawn_blocking(move || on_disk(&cx, &ignore, &at)).await;
    let disk = looked.unwrap_or_else(|error| OnDisk::Unreadable(path.clone(), error.to_string()));
    match found.why {
        Why::Unknown { problem, .. } => of_unknown(problem, disk),
        Why::Known(known) => of_known(&view, &path, known, &disk, found.pending),
    }
}

fn of_folder(view: &View) -> Standing {
    let reason = match (&view.stopped, &view.link) {
        (Some(reason), _) => reason.clone(),
        (None, LinkView::Refused(reason) | LinkView::Wrong(reason)) => reason.clone(),
        (
            None,
            LinkView::Connecting | LinkView::Online | LinkView::Offline(_) | LinkView::Doubtful(_),
        ) => String::new(),
    };
    let totals = &view.engine.totals;
    let direction = if totals.uploads > 0 { Direction::Up } else { Direction::Down };
    match view.state() {
        State::Stopped => Standing::Stopped { reason },
        State::Paused => Standing::Paused { by_settings: view.config.paused },
        State::Offline => Standing::Offline { direction },
        State::Problem if view.is_wrong() => Standing::WrongServer { reason },
        State::Problem => Standing::Problems { count: view.engine.problem_count },
        State::Syncing if totals.uploads + totals.downloads > 0 => {
            Standing::Waiting { direction, pending: totals.uploads + totals.downloads }
        }
        State::Syncing => Standing::CatchingUp,
        State::InSync => Standing::InSync,
    }
}

fn of_obstacle(obstacle: Obstacle) -> Standing {
    let at = obstacle.at.to_string();
    if obstacle.reason == INNER_FOLDER {
        Standing::InnerFolder { at }
    } else if obstacle.is_listing {
        Standing::Unreadable { at, reason: obstacle.reason }
    } else {
        Standing::Special
    }
}

fn of_unknown(problem: Option<Obstacle>, disk: OnDisk) -> Standing {
    match disk {
        OnDisk::Nothing => match problem {
            // What is in a directory that cannot be read is not known.
            Some(problem) => of_obstacle(problem),
            None => Standing::Absent { last: None },
        },
        OnDisk::BeyondLink(link) => Standing::BeyondLink { link: link.to_string() },
        OnDisk::Unreadable(at, reason) => match problem {
            Some(problem) => of_obstacle(problem),
            None => Standing::Unreadable { at: at.to_string(), reason },
        },
        OnDisk::Entry(stat, rule) => match (problem, rule) {
            (Some(problem), _) => of_obstacle(problem),
            (None, Some(rule)) => ignored(&rule),
            (None, None) if stat.kind.is_none() => Standing::Special,
            (None, None) => Standing::NotSeenYet,
        },
    }
}

fn ignored(rule: &Rule) -> Standing {
    let file = |dir: &RelPath| Name::new(FILE_NAME).ok().map(|name| dir.join(&name).to_string());
    Standing::Ignored {
        source: rule.source,
        file: rule.dir.as_ref().and_then(file),
        line: rule.line,
        pattern: rule.pattern.clone(),
        at: rule.at.to_string(),
    }
}

fn of_known(view: &View, path: &RelPath, known: Known, disk: &OnDisk, pending: u64) -> Standing {
    let direction = if known.comes_here { Direction::Down } else { Direction::Up };
    match known.step {
        Step::Rest => of_rest(path, known, disk),
        Step::LeftOut(with) => Standing::LeftOut { with: with.to_string(), is_here: known.is_here },
        Step::Kept(what) => Standing::Kept { flow: view.config.flow, what },
        Step::Reading | Step::Sending => Standing::Moving { direction: Direction::Up },
        Step::Writing => Standing::Moving { direction: Direction::Down },
        Step::Problem { reason, is_reading: true } => {
            Standing::Unreadable { at: path.to_string(), reason }
        }
        Step::OverQuota(Lack { needs, left }) => Standing::OverQuota { needs, left },
        Step::Problem { reason, .. } => Standing::Problem { direction, reason },
        Step::Busy => Standing::Busy,
        Step::Offline => match &view.link {
            LinkView::Wrong(reason) => Standing::WrongServer { reason: reason.clone() },
            LinkView::Connecting => Standing::CatchingUp,
            _ => Standing::Offline { direction },
        },
        Step::Paused => Standing::Paused { by_settings: view.config.paused },
        Step::CatchingUp => Standing::CatchingUp,
        Step::Held => Standing::Held { device: view.config.device_name.clone() },
        Step::PutOff => Standing::PutOff,
        Step::After(blocker) => Standing::After { direction, blocker: blocker.to_string() },
        Step::Looking => Standing::NotSeenYet,
        Step::Retry(ms) => Standing::Retry { direction, secs: ms.div_ceil(1000) },
        Step::Turn => Standing::Waiting { direction, pending },
    }
}

fn of_rest(path: &RelPath, known: Known, disk: &OnDisk) -> Standing {
    if let Some(obstacle) = known.unreadable {
        return of_obstacle(obstacle);
    }
    if let (Some(here), Some(name)) = (&known.elsewhere, &known.drive_name) {
        return Standing::NameClash { drive_name: name.to_string(), here: here.to_string() };
    }
    let is_as_seen = match (disk, &known.stat) {
        (OnDisk::Entry(found, _), Some(seen)) => {
            let mut found = *found;
            // As the engine keeps it.
            if found.kind == Some(Kind::Link) {
                found.attrs.mode = 0;
            }
            found.unchanged(seen)
        }
        _ => false,
    };
    if !is_as_seen {
        return Standing::NotSeenYet;
    }
    if let Some(name) = known.drive_name {
        let (drive_name, here) = (name.to_string(), path.to_string());
        return Standing::NameClash { drive_name, here };
    }
    match path.split_last().and_then(|(dir, name)| Some((dir, original_of(name)?))) {
        Some((dir, name)) => Standing::ConflictCopy { original: dir.join(&name).to_string() },
        None => Standing::InSync,
    }
}

/// Looks at what is on disk, one directory after the other. Blocks.
fn on_disk(cx: &Context, ignore: &Ignore, path: &RelPath) -> OnDisk {
    let names = path.names();
    for (depth, name) in names.iter().enumerate() {
        let dir = RelPath::from_names(names[..depth].to_vec());
        let found =
            cx.folder.open_dir(&dir).map_err(|fault| (dir.clone(), fault)).and_then(|(open, _)| {
                cx.folder.stat(&open, name).map_err(|fault| (dir.join(name), fault))
            });
        let stat = match found {
            Ok(stat) => stat,
            Err((_, Fault::NotFound | Fault::BadName)) => return OnDisk::Nothing,
            Err((at, fault)) => return OnDisk::Unreadable(at, fault.to_string()),
        };
        if depth + 1 == names.len() {
            let is_dir = stat.kind == Some(Kind::Dir);
            return OnDisk::Entry(stat, ignore.explain(path, is_dir, |dir| load(cx, dir)));
        }
        match stat.kind {
            Some(Kind::Dir) => {}
            Some(Kind::Link) => return OnDisk::BeyondLink(dir.join(name)),
            Some(Kind::File) | None => return OnDisk::Nothing,
        }
    }
    OnDisk::Nothing
}

/// Reads the file with patterns of a directory.
fn load(cx: &Context, dir: &RelPath) -> Option<(Stat, Loaded)> {
    let (open, _) = cx.folder.open_dir(dir).ok()?;
    let name = Name::new(FILE_NAME).ok()?;
    let stat = cx.folder.stat(&open, &name).ok().filter(|stat| stat.kind == Some(Kind::File))?;
    let read = cx.folder.read_file(&open, &name, FILE_LEN_MAX);
    Some((stat, read.map_err(|fault| fault.to_string())))
}
