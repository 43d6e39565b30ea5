//! Watching a drive: what changes below a path, with paths instead of node ids.

use std::collections::{HashMap, VecDeque};

use tokio::sync::mpsc;

use super::{ClientError, Result, Session};
use crate::model::{Node, NodeId, Place, RelPath, Rev, Versioned};
use crate::protocol::Push;
use crate::protocol::message::{Page, PageSeen, Subscribe};

/// Deeper than any tree the server accepts; a chain of parents longer than this is a loop.
const DEPTH_MAX: usize = 8192;

/// Something below the watched path changed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WatchEvent {
    /// The node.
    pub id: NodeId,
    /// The rev of the change.
    pub rev: Rev,
    /// Where it was; nothing when it is new below the path.
    pub before: Option<RelPath>,
    /// Where it is, and what it is; nothing when it is no longer below the path.
    pub now: Option<(RelPath, Node)>,
}

/// A stream of changes, from the moment at which it was asked for.
///
/// The places of all nodes of the drive are held in memory, to tell paths: about 100 bytes each.
/// When a directory moves, the event is the directory's alone. Changes that the watching session
/// itself makes are not told.
#[derive(Debug)]
pub struct Watch {
    session: Session,
    pushes: mpsc::Receiver<Push>,
    path: RelPath,
    places: HashMap<NodeId, Place>,
    events: VecDeque<WatchEvent>,
    /// Nodes that changed since the tree was last one that was.
    changed: Vec<Versioned>,
    /// Their places before.
    before: HashMap<NodeId, Option<RelPath>>,
    cursor: Rev,
    /// Up to here the journal tells what was there already.
    start: Rev,
}

impl Session {
    /// Watches everything below a path.
    ///
    /// # Errors
    /// When the session watches already, or the server cannot be asked.
    pub async fn watch(&self, path: &RelPath) -> Result<Watch> {
        let pushes = self.take_pushes()?;
        let request = Subscribe {
            drive: self.drive.id,
            cursor: Rev::ZERO,
            lineage: None,
            inline_len_max: 0,
            takes_over: false,
            coming: false,
        };
        let subscribed = self.connection.call(&request).await?;
        let mut watch = Watch {
            session: self.clone(),
            pushes,
            path: path.clone(),
            places: HashMap::new(),
            events: VecDeque::new(),
            changed: vec![],
            before: HashMap::new(),
            cursor: Rev::ZERO,
            start: subscribed.head,
        };
        while watch.cursor < watch.start || !watch.changed.is_empty() {
            if !watch.take_page().await? {
                return Err(watch.ended().await);
            }
        }
        Ok(watch)
    }
}

impl Watch {
    /// Waits for the next change.
    ///
    /// # Errors
    /// When the connection ends, with the reason.
    pub async fn next(&mut self) -> Result<WatchEvent> {
        loop {
            if let Some(event) = self.events.pop_front() {
                return Ok(event);
            }
            if !self.take_page().await? {
                return Err(self.ended().await);
            }
        }
    }

    async fn ended(&self) -> ClientError {
        let reason = self.session.connection.closed().await;
        ClientError::Call(crate::protocol::CallError::Closed(reason))
    }

    /// Takes a page in; returns whether there was one.
    async fn take_page(&mut self) -> Result<bool> {
        let page = loop {
            match self.pushes.recv().await {
                Some(Push::Page(page)) if page.drive == self.session.drive.id => break page,
                // A page of a drive that is no longer subscribed to.
                Some(Push::Page(_) | Push::Held(_) | Push::Usage(_) | Push::Coming(_)) => {}
                Some(Push::Bye(_)) | None => return Ok(false),
            }
        };
        let (drive, upto) = (page.drive, page.upto);
        self.take(page)?;
        let seen = PageSeen { drive, upto };
        self.session.connection.notify(&seen).await?;
        Ok(true)
    }

    fn take(&mut self, page: Page) -> Result<()> {
        if page.from != self.cursor || page.upto < page.from {
            return Err(ClientError::Nonsense("a page out of order"));
        }
        self.cursor = page.upto;
        for versioned in page.nodes {
            // What was there at the start is learnt, not told.
            if versioned.rev <= self.start {
                self.learn(&versioned);
                continue;
            }
            if !self.before.contains_key(&versioned.id) {
                let before = self.path_of(versioned.id);
                self.before.insert(versioned.id, before);
            }
            self.changed.push(versioned);
        }
        if page.consistent {
            self.tell();
        }
        Ok(())
    }

    fn learn(&mut self, versioned: &Versioned) {
        match &versioned.node {
            Some(node) => self.places.insert(versioned.id, node.place.clone()),
            None => self.places.remove(&versioned.id),
        };
    }

    /// Turns what changed into events: the tree is one that was.
    fn tell(&mut self) {
        let changed = std::mem::take(&mut self.changed);
        let mut before = std::mem::take(&mut self.before);
        for versioned in &changed {
            self.learn(versioned);
        }
        for versioned in changed {
            let was = before.remove(&versioned.id).flatten();
            let is = versioned.node.and_then(|node| {
                let path = self.path_of(versioned.id)?;
                Some((path, node))
            });
            if was.is_some() || is.is_some() {
                self.events.push_back(WatchEvent {
                    id: versioned.id,
                    rev: versioned.rev,
                    before: was,
                    now: is,
                });
            }
        }
    }

    /// Returns the path of a node that is at or below the watched one.
    fn path_of(&self, id: NodeId) -> Option<RelPath> {
        let mut names = vec![];
        let mut at = id;
        while at != NodeId::ROOT {
            let place = self.places.get(&at)?;
            names.push(place.name.clone());
            at = place.parent;
            if names.len() > DEPTH_MAX {
                return None;
            }
        }
        names.reverse();
        names.starts_with(self.path.names()).then(|| RelPath::from_names(names))
    }
}
