//! A server on port 0 with its data in a directory that goes with it, and devices that speak to it.

#![allow(dead_code, reason = "each test binary uses its own part of this")]
#![allow(clippy::unwrap_used, reason = "a test ends where something fails")]

use std::path::Path;
use std::time::Duration;

use picloud::model::*;
use picloud::protocol::message::*;
use picloud::protocol::{CallError, Connection, Endpoint, Push, Trust};
use picloud::server::config::Config;
use picloud::server::{self, RunningServer};
use tokio::sync::mpsc;
use tokio::time::timeout;

/// The longest wait for anything; only a failing test takes it.
pub const PATIENCE: Duration = Duration::from_secs(30);

pub struct Server {
    pub dir: tempfile::TempDir,
    pub running: RunningServer,
    pub config: Config,
}

/// The settings of a test server with its data in `dir`.
pub fn config(dir: &Path) -> Config {
    let mut config = Config::default();
    config.server.listen = "127.0.0.1:0".parse().unwrap();
    config.server.data_dir = dir.to_owned();
    config.limits.disk_free_min_mib = 0;
    config
}

impl Server {
    pub async fn start() -> Self {
        Self::start_with(|_| ()).await
    }

    pub async fn start_with(change: impl FnOnce(&mut Config)) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let mut config = config(dir.path());
        change(&mut config);
        let running = server::start(config.clone()).await.unwrap();
        Self { dir, running, config }
    }

    pub async fn restart(self) -> Self {
        self.running.stop().await;
        Self {
            running: server::start(self.config.clone()).await.unwrap(),
            dir: self.dir,
            config: self.config,
        }
    }

    pub fn endpoint(&self) -> Endpoint {
        Endpoint {
            address: self.running.address().to_string(),
            trust: Trust::Pinned(self.running.fingerprint()),
        }
    }

    pub async fn connect(&self) -> (Connection, mpsc::Receiver<Push>) {
        Connection::open(&self.endpoint(), "test/1").await.unwrap()
    }

    /// Joins a new device by a link.
    pub async fn join(&self, user: &str, device: &str) -> Device {
        let link = self.running.invite(user).await.unwrap();
        let (connection, pushes) = self.connect().await;
        let join = Join { secret: link.secret.to_vec(), device_name: device.into() };
        let admitted = connection.call(&join).await.unwrap().admitted.unwrap();
        Device {
            drive: admitted.drives[0].id,
            token: admitted.token.clone().unwrap(),
            admitted,
            connection,
            pushes,
            next: 0,
        }
    }
}

/// A device with one connection.
pub struct Device {
    pub connection: Connection,
    pub pushes: mpsc::Receiver<Push>,
    pub admitted: Admitted,
    pub token: Vec<u8>,
    pub drive: DriveId,
    next: u8,
}

pub fn name(text: &str) -> Name {
    Name::try_from(text).unwrap()
}

pub fn chunk(bytes: &[u8]) -> ChunkData {
    ChunkData {
        id: ChunkId::of(bytes),
        plain_len: u32::try_from(bytes.len()).unwrap(),
        codec: Codec::Plain,
        data: bytes.to_vec(),
    }
}

pub fn file(parent: NodeId, at: &str, bytes: &[u8]) -> Node {
    let content =
        Content::Chunk { id: ChunkId::of(bytes), len: u32::try_from(bytes.len()).unwrap() };
    Node {
        place: Place { parent, name: name(at) },
        body: Body::File { content, mtime: Timestamp::new(1_700_000_000, 123_456_789).unwrap() },
        attrs: Attrs::from_mode(0o644),
    }
}

pub fn dir(parent: NodeId, at: &str) -> Node {
    Node {
        place: Place { parent, name: name(at) },
        body: Body::Dir,
        attrs: Attrs::from_mode(0o755),
    }
}

pub fn create(node: NodeId, state: Node) -> Change {
    Change::new(node, Rev::ZERO, ChangeOp::Create(state))
}

pub fn delete(node: NodeId, base: Rev) -> Change {
    Change::new(node, base, ChangeOp::Delete)
}

pub fn rename(node: NodeId, base: Rev, parent: NodeId, to: &str) -> Change {
    let place = Some(Place { parent, name: name(to) });
    Change::new(node, base, ChangeOp::Update { place, body: None, attrs: None })
}

/// Returns the revs of changes that were all accepted.
#[track_caller]
pub fn revs(committed: &Committed) -> Vec<u64> {
    let results = committed.results.iter();
    results
        .map(|result| match result {
            ChangeResult::Accepted { rev } => rev.0,
            ChangeResult::Refused(refusal) => panic!("refused: {refusal}"),
        })
        .collect()
}

/// Returns the code of a call that failed.
#[track_caller]
pub fn code<T>(outcome: Result<T, CallError>) -> FailureCode {
    match outcome {
        Err(CallError::Failed(failure)) => failure.code,
        Err(other) => panic!("it failed otherwise: {other:?}"),
        Ok(_) => panic!("it did not fail"),
    }
}

impl Device {
    /// Returns an id that no other node of this device has.
    pub fn id(&mut self) -> NodeId {
        self.next += 1;
        let mut bytes = *self.admitted.device.as_bytes();
        bytes[0] = self.next;
        NodeId::from_bytes(bytes)
    }

    /// Connects once more as the same device.
    pub async fn resume(&self, server: &Server) -> Result<Device, CallError> {
        let (connection, pushes) = server.connect().await;
        let resume = Resume { device: self.admitted.device, token: self.token.clone() };
        let admitted = connection.call(&resume).await?.admitted.unwrap();
        Ok(Device {
            connection,
            pushes,
            admitted,
            token: self.token.clone(),
            drive: self.drive,
            next: self.next,
        })
    }

    pub async fn commit(&self, changes: Vec<Change>, chunks: Vec<ChunkData>) -> Committed {
        let commit = Commit { drive: self.drive, changes, chunks, deletions: None };
        self.connection.call(&commit).await.unwrap()
    }

    /// Commits changes, and announces how many deletions are pending in all.
    pub async fn announce(&self, deletions: u64, changes: Vec<Change>) -> Committed {
        let (drive, chunks, deletions) = (self.drive, vec![], Some(deletions));
        self.connection.call(&Commit { drive, changes, chunks, deletions }).await.unwrap()
    }

    /// Creates a small file in the root.
    pub async fn create(&mut self, at: &str, bytes: &[u8]) -> (NodeId, Rev) {
        let id = self.id();
        let state = file(NodeId::ROOT, at, bytes);
        let committed = self.commit(vec![create(id, state)], vec![chunk(bytes)]).await;
        (id, Rev(revs(&committed)[0]))
    }

    pub async fn subscribe(&self, cursor: Rev, lineage: Option<Lineage>) -> Subscribed {
        let subscribe = Subscribe {
            drive: self.drive,
            cursor,
            lineage,
            inline_len_max: 64 * 1024,
            takes_over: true,
            coming: false,
        };
        self.connection.call(&subscribe).await.unwrap()
    }

    /// Takes in the next page.
    pub async fn page(&mut self) -> Page {
        let page = self.unseen_page().await;
        self.seen(page.upto).await;
        page
    }

    pub async fn seen(&self, upto: Rev) {
        let seen = PageSeen { drive: self.drive, upto };
        self.connection.notify(&seen).await.unwrap();
    }

    /// Gets the next page without telling so.
    pub async fn unseen_page(&mut self) -> Page {
        match timeout(PATIENCE, self.pushes.recv()).await.expect("a page in time") {
            Some(Push::Page(page)) => page,
            other => panic!("{other:?} came instead of a page"),
        }
    }

    /// Waits until the server tells what is held; returns that.
    pub async fn held(&mut self) -> Vec<Held> {
        loop {
            match timeout(PATIENCE, self.pushes.recv()).await.expect("a push in time") {
                Some(Push::Held(now)) => return now.held,
                Some(Push::Page(page)) => self.seen(page.upto).await,
                other => panic!("{other:?} came instead of what is held"),
            }
        }
    }

    /// Takes in pages until one ends at this rev; returns all their nodes and chunks.
    pub async fn pages_upto(&mut self, upto: Rev) -> (Vec<Versioned>, Vec<ChunkData>, Page) {
        let (mut nodes, mut chunks) = (Vec::new(), Vec::new());
        loop {
            let mut page = self.page().await;
            nodes.append(&mut page.nodes);
            chunks.append(&mut page.chunks);
            if page.upto >= upto {
                return (nodes, chunks, page);
            }
        }
    }

    /// Waits until the server ends the connection; returns why.
    pub async fn ended(&mut self) -> FailureCode {
        loop {
            match timeout(PATIENCE, self.pushes.recv()).await.expect("an end in time") {
                Some(Push::Page(_) | Push::Held(_) | Push::Usage(_) | Push::Coming(_)) => {}
                Some(Push::Bye(bye)) => return bye.code,
                None => panic!("the connection ended without a reason"),
            }
        }
    }
}
