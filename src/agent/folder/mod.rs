//! One synced folder at work.
//!
//! A thread of its own owns the engine ([`core`]): events come to it through one bounded queue, and
//! it never waits for anyone else. What it hands out is bounded by the engine's window, so the ways
//! to the others never fill up: looks and hashes go to [`hands`], disk operations through
//! [`prepare`] to the pool of `disk`, and what needs the server to the tasks of the session, which
//! [`link`] keeps up ([`commit`], [`upload`] with [`announce`], [`fetch`] with [`prefetch`]). [`supervise`] opens all that, and opens
//! it again when the folder went away or the state is damaged.

mod announce;
mod commit;
mod core;
mod fetch;
mod hands;
mod line;
mod link;
mod pace;
mod partial;
mod prefetch;
mod prepare;
mod progress;
mod resolve;
mod running;
mod scope;
mod supervise;
mod upload;
mod view;
mod why;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::AtomicUsize;
use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::{Notify, mpsc, oneshot, watch};

pub(super) use self::link::PROGRAM;
use self::partial::Partials;
use self::progress::Progress;
pub(super) use self::resolve::{Pair, resolve};
pub(super) use self::scope::{exclude, include, list as list_left_out};
pub(super) use self::supervise::{FolderTask, Settings};
pub(super) use self::view::View;
pub(super) use self::why::{WhyFound, standing};
use super::cache::Cache;
use super::disk::DiskFolder;
use super::lists::Lists;
use super::rate::Rate;
use crate::engine::apply::Payload;
use crate::engine::kept::KeptPath;
use crate::engine::rest::AtRest;
use crate::engine::scope::{LeftOut, Named};
use crate::engine::seam::{Committed, Event, JournalPage, Outcome, Uploaded};
use crate::model::{ChunkData, DeviceId, DriveId, Flow, Lineage, NodeId, RelPath, Rev, Usage};
use crate::protocol::Connection;
use crate::protocol::control::Conflict;
use crate::protocol::message::{Coming, Held};

/// Small contents that came inside pages and are not applied yet, in bytes as packed.
const INCOMING_LEN_MAX: usize = 16 * 1024 * 1024;

/// Small contents that were read for hashing and are not committed yet, in bytes.
const OUTGOING_LEN_MAX: usize = 16 * 1024 * 1024;

/// Events that wait for the engine.
const INPUTS_MAX: usize = 1024;

/// Shorter chunks travel whole: a delta is not worth the question.
const DELTA_FROM: u32 = 8 * 1024;

/// So many requests in a row that led to no delta, and the rest of a file is taken to be all new.
const FRUITLESS_MAX: u32 = 4;

/// How much trouble is remembered.
const TROUBLES_MAX: usize = 100;

/// Both directions' bounds, for all folders together.
#[derive(Debug)]
pub(super) struct Rates {
    pub up: Rate,
    pub down: Rate,
}

/// What everyone who works on an open folder has at hand.
#[derive(Debug)]
pub(super) struct Context {
    pub folder: DiskFolder,
    pub drive: DriveId,
    /// This device, by the server's name for it.
    pub device: DeviceId,
    pub lists: Lists,
    pub rates: Arc<Rates>,
    pub incoming: Cache<Arc<ChunkData>>,
    /// How many disk operations are under way.
    pub applying: AtomicUsize,
    pub outgoing: Cache<Arc<Vec<u8>>>,
    pub partials: Partials,
    /// How far uploads are.
    pub up: Progress,
    /// How far downloads are.
    pub down: Progress,
    pub inputs: mpsc::Sender<Input>,
    /// Wakes the link out of its back-off.
    pub reconnect: Arc<Notify>,
    /// The connection for questions, while there is one.
    pub journal: watch::Sender<Option<Connection>>,
    /// What is wrong beside what the engine knows, by path; at most [`TROUBLES_MAX`].
    troubles: Mutex<BTreeMap<RelPath, String>>,
}

impl Context {
    /// Remembers what a person should know of a path.
    fn trouble(&self, path: &RelPath, reason: String) {
        let mut troubles = self.troubles.lock().unwrap_or_else(PoisonError::into_inner);
        if troubles.len() < TROUBLES_MAX || troubles.contains_key(path) {
            troubles.insert(path.clone(), reason);
        }
    }

    /// Forgets it.
    fn no_trouble(&self, path: &RelPath) {
        let mut troubles = self.troubles.lock().unwrap_or_else(PoisonError::into_inner);
        troubles.remove(path);
    }

    fn troubles(&self) -> Vec<(RelPath, String)> {
        let troubles = self.troubles.lock().unwrap_or_else(PoisonError::into_inner);
        troubles.iter().map(|(path, reason)| (path.clone(), reason.clone())).collect()
    }
}

/// A connection that is up, with the drive subscribed. Each has a number of its own, so that
/// answers of an earlier one can be told apart.
#[derive(Debug, Clone)]
pub(super) struct Session {
    pub number: u64,
    /// For the journal, commits and questions.
    pub journal: Connection,
    /// For the bulk of contents.
    pub bulk: Connection,
}

/// The ways to the tasks of a session.
#[derive(Debug)]
pub(super) struct Live {
    pub session: Session,
    pub commits: mpsc::Sender<commit::Job>,
    pub uploads: mpsc::Sender<upload::Job>,
    pub fetches: mpsc::Sender<fetch::Job>,
    pub notes: mpsc::Sender<prefetch::Note>,
    pub seen: mpsc::Sender<Rev>,
}

/// What a fetch came to.
#[derive(Debug)]
pub(super) enum Fetched {
    /// Here it is.
    Payload(Payload),
    /// It cannot be had: what the engine is to hear of the operation.
    Outcome(Outcome),
}

/// A conflict copy, with the nodes of both versions.
#[derive(Debug)]
pub(super) struct FoundConflict {
    pub conflict: Conflict,
    pub copy: NodeId,
    pub original: Option<NodeId>,
}

/// What differs and stays so, because changes of the folder go one way only.
#[derive(Debug)]
pub(super) struct KeptFound {
    /// Which way.
    pub flow: Flow,
    /// How many paths.
    pub count: u64,
    /// The first of them.
    pub paths: Vec<KeptPath>,
}

/// What the core is told.
#[derive(Debug)]
pub(super) enum Input {
    /// For the engine, whatever the connection.
    Event(Event),
    /// A connection is up.
    Online { live: Box<Live>, lineage: Lineage, from: Rev, head: Rev, usage: Option<Usage> },
    /// The connection is gone.
    Offline { session: u64 },
    /// A page of the journal came, with the names of the devices that made what is in it.
    Page { session: u64, page: JournalPage, made_by: Vec<(NodeId, Arc<str>)> },
    /// The mass deletions of the drive that are held now.
    Held { session: u64, held: Vec<Held> },
    /// Another device is sending a content.
    Coming { session: u64, note: Coming },
    /// How much of the account's room is in use now.
    Usage { session: u64, usage: Usage },
    /// What became of a commit, and how much of the account's room is in use after it.
    Committed { session: u64, batch: u64, results: Vec<Committed>, head: Rev, usage: Option<Usage> },
    /// What became of an upload.
    Uploaded { session: u64, node: NodeId, uploaded: Uploaded },
    /// What became of a fetch.
    Fetched { session: u64, node: NodeId, fetched: Fetched },
    /// A version that was written to after it was replaced is back, by its path.
    BroughtBack(String),
    /// The folder is gone.
    Gone(String),
    /// The number of rescans after which everything that is on disk now has been seen is wanted.
    Sync(oneshot::Sender<u64>),
    /// The rev and lineage up to which the journal is known are wanted.
    Position(oneshot::Sender<(Rev, Option<Lineage>)>),
    /// The conflict copies are wanted.
    Conflicts(oneshot::Sender<Vec<FoundConflict>>),
    /// Both versions of a conflict are wanted, by the path of the copy, in sync; else why they are not
    /// to be had, for a person.
    Pair(RelPath, oneshot::Sender<Result<Pair, String>>),
    /// A person wants this gone.
    Discard(AtRest, oneshot::Sender<Outcome>),
    /// How a path stands is wanted.
    Why(RelPath, oneshot::Sender<WhyFound>),
    /// What a path names is wanted, with where that is in the drive.
    Named(RelPath, oneshot::Sender<(Named, RelPath)>),
    /// What is left out is wanted.
    LeftOut(oneshot::Sender<Vec<LeftOut>>),
    /// These directories are to be left out from now on, and no others.
    LeaveOut(BTreeSet<NodeId>, oneshot::Sender<()>),
    /// What differs and stays so is wanted, at and below this path; it is to be ended first where that is
    /// asked for.
    Kept(RelPath, bool, oneshot::Sender<KeptFound>),
    /// A person paused or resumed.
    Paused(bool),
    /// Other patterns of the settings for what is left out.
    Ignore(Arc<Vec<String>>),
    /// How often to look over everything, in milliseconds.
    ScanEvery(u64),
    /// End.
    Stop,
}
