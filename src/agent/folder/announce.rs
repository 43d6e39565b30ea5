//! Telling the other devices of a large file while it is being uploaded, so that they fetch what the
//! server has of it already: how far the upload is, now and then.

use std::collections::HashSet;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::{sleep, timeout};

use super::Session;
use crate::content::splice::NewChunk;
use crate::model::{ChunkId, ContentList, DriveId, Extent, ListId, NodeId};
use crate::protocol::Connection;
use crate::protocol::limits::LIST_PART_LEN_MAX;
use crate::protocol::message::{COMING, Coming};

/// Of less than this, nobody is told: it is there before it would be worth while.
const MISSING_MIN: u64 = 8 * 1024 * 1024;

/// Nobody is told of a file of which the drive lacks less than one part in so many: a device that
/// begins with it copies the rest from what it has, for nothing if no commit follows.
const MISSING_SHARE: u64 = 8;

/// The least time between two notes of one file, of some sixty bytes each: what the others are behind for it
/// when the upload ends.
const NOTE_EVERY: Duration = Duration::from_millis(50);

/// A note goes out this often even when nothing was stored: the upload is slow, not over.
const SIGN_EVERY: Duration = Duration::from_secs(10);

/// An upload that others may hear of. When it is dropped they are told once more how far it came.
#[derive(Debug)]
pub(super) struct Announcer {
    connection: Connection,
    first: Coming,
    extents: Vec<Extent>,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    /// The chunks that are not known to be in the drive.
    waits: HashSet<ChunkId>,
    /// How many extents, from the first on, wait for none.
    upto: u32,
    /// Bytes that the drive was asked about, and those of them that it lacked.
    asked_len: u64,
    missing_len: u64,
    /// The way to the task that sends the notes, once there is one.
    told: Option<watch::Sender<u32>>,
}

impl Announcer {
    /// Returns nothing when nobody can be told of this content, or it is not worth while.
    pub(super) fn new(
        session: &Session,
        drive: DriveId,
        node: NodeId,
        id: ListId,
        list: &ContentList,
    ) -> Option<Self> {
        let features = &session.journal.hello().features;
        if list.len() < MISSING_MIN || !features.iter().any(|feature| feature == COMING) {
            return None;
        }
        let encoded = list.encode();
        if encoded.len() > LIST_PART_LEN_MAX {
            return None;
        }
        let first =
            Coming { drive, node, list: id, len: list.len(), extents: Some(encoded), upto: 0 };
        Some(Self {
            connection: session.journal.clone(),
            first,
            extents: list.extents().to_vec(),
            state: Mutex::default(),
        })
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // Nothing that holds it can panic.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// These are the chunks that the drive may lack.
    pub(super) fn begin(&self, chunks: &[NewChunk]) {
        let mut state = self.lock();
        state.waits = chunks.iter().map(|chunk| chunk.id).collect();
        (state.upto, state.asked_len, state.missing_len) = (0, 0, 0);
    }

    /// The drive was asked about these chunks, and lacks those.
    pub(super) fn asked(&self, chunks: &[NewChunk], missing: &HashSet<ChunkId>) {
        let mut state = self.lock();
        for chunk in chunks {
            state.asked_len += u64::from(chunk.len);
            if missing.contains(&chunk.id) {
                state.missing_len += u64::from(chunk.len);
            } else {
                state.waits.remove(&chunk.id);
            }
        }
        let is_worth_it = state.missing_len >= MISSING_MIN
            && state.missing_len >= state.asked_len / MISSING_SHARE;
        self.advance(&mut state);
        if is_worth_it && state.told.is_none() {
            let (told, notes) = watch::channel(state.upto);
            state.told = Some(told);
            tokio::spawn(tell(self.connection.clone(), self.first.clone(), notes));
        }
    }

    /// The drive has these chunks now.
    pub(super) fn stored(&self, chunks: impl IntoIterator<Item = ChunkId>) {
        let mut state = self.lock();
        for id in chunks {
            state.waits.remove(&id);
        }
        self.advance(&mut state);
    }

    fn advance(&self, state: &mut State) {
        let rest = self.extents.get(state.upto as usize..).unwrap_or_default();
        let is_there = |extent: &&Extent| match extent {
            Extent::Chunk { id, .. } => !state.waits.contains(id),
            Extent::Hole { .. } => true,
        };
        let more = rest.iter().take_while(is_there).count();
        // A list that fits one part has far fewer extents.
        state.upto = state.upto.saturating_add(u32::try_from(more).unwrap_or(u32::MAX));
        if let Some(told) = &state.told {
            told.send_if_modified(|upto| std::mem::replace(upto, state.upto) != state.upto);
        }
    }
}

/// Sends the first note with the list, then how far it is, until the upload is over.
async fn tell(connection: Connection, first: Coming, mut upto: watch::Receiver<u32>) {
    let mut note = first;
    loop {
        note.upto = *upto.borrow_and_update();
        if connection.notify(&note).await.is_err() {
            // The upload notices by itself.
            return;
        }
        note.extents = None;
        sleep(NOTE_EVERY).await;
        // Over: what came last must still be told.
        if let Ok(Err(_)) = timeout(SIGN_EVERY, upto.changed()).await
            && *upto.borrow() == note.upto
        {
            return;
        }
    }
}
