//! The journal of one drive, pushed to one connection, page by page.

use std::collections::{HashMap, HashSet, VecDeque};
use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::Semaphore;

use super::outbox::Outbox;
use super::own::OwnRevs;
use super::push::Push;
use super::shared::Shared;
use crate::model::{Body, ChunkId, Content, DriveId, Rev, Versioned};
use crate::protocol::EncodedFrame;
use crate::protocol::limits::{
    BATCH_COUNT_MAX, BATCH_LEN_MAX, BODY_LEN_MAX, INLINE_LEN_MAX, PAGES_IN_FLIGHT_MAX,
};
use crate::protocol::message::Page;
use crate::server::packs::{Packs, chunk_data};
use crate::server::store::StoreError;
use crate::server::store::metadata::{Metadata, Result};

/// A page costs about this much memory until it is handed over.
const PAGE_MEMORY: usize = 3 * 1024 * 1024;

/// Who asks for which drive.
#[derive(Debug, Clone)]
pub struct Wanted {
    /// The drive.
    pub drive: DriveId,
    /// Its number.
    pub num: i64,
    /// The number of the device: it is not sent contents of its own making.
    pub device: i64,
    /// Contents up to this length come with the page.
    pub inline_len_max: u32,
    /// Its turn, when it took over from others.
    pub turn: Option<u64>,
}

/// What the session and the pump share.
#[derive(Debug)]
struct Window {
    free: Semaphore,
    /// The ends of the pages that are on their way.
    sent: Mutex<VecDeque<Rev>>,
}

/// A running subscription; ends when it is dropped.
#[derive(Debug)]
pub struct Subscription {
    window: Arc<Window>,
    /// What the connection committed to the drive itself.
    pub own: Arc<OwnRevs>,
    _push: Push,
}

impl Subscription {
    /// Begins to push pages after `from`.
    pub fn start(
        shared: Arc<Shared>,
        memory: Arc<Semaphore>,
        outbox: Outbox,
        wanted: Wanted,
        from: Rev,
    ) -> Self {
        let window =
            Arc::new(Window { free: Semaphore::new(PAGES_IN_FLIGHT_MAX), sent: Mutex::default() });
        let own = Arc::new(OwnRevs::new(wanted.turn));
        let pump = Pump {
            shared,
            memory,
            outbox,
            wanted: Wanted { inline_len_max: wanted.inline_len_max.min(INLINE_LEN_MAX), ..wanted },
            window: Arc::clone(&window),
            own: Arc::clone(&own),
        };
        let outbox = pump.outbox.clone();
        let work = async move { pump.run(from).await };
        let push = Push::start(outbox, "the journal could not be read", work);
        Self { window, own, _push: push }
    }

    /// Takes note that the device has taken in the pages up to a rev.
    pub fn seen(&self, upto: Rev) {
        let mut sent = self.window.sent.lock().unwrap_or_else(PoisonError::into_inner);
        while sent.front().is_some_and(|end| *end <= upto) {
            sent.pop_front();
            self.window.free.add_permits(1);
        }
    }
}

struct Pump {
    shared: Arc<Shared>,
    memory: Arc<Semaphore>,
    outbox: Outbox,
    wanted: Wanted,
    window: Arc<Window>,
    own: Arc<OwnRevs>,
}

impl Pump {
    async fn run(&self, from: Rev) -> Result<()> {
        let mut head = self.shared.hub.listen(self.wanted.num);
        let mut cursor = from;
        // The first page goes out even when it is empty: it proves that both sides agree.
        let mut first = true;
        loop {
            let free = self.window.free.acquire().await.map_err(|_| StoreError::Closed)?;
            // Marked before the database is read, so that nothing is missed in between.
            head.mark_unchanged();
            let memory = self.shared.memory(&self.memory, PAGE_MEMORY).await?;
            let Some((frame, upto)) = self.page(cursor, first).await? else {
                drop((free, memory));
                head.changed().await.map_err(|_| StoreError::Closed)?;
                continue;
            };
            first = false;
            self.own.all_answered(upto).await;
            free.forget();
            self.window.sent.lock().unwrap_or_else(PoisonError::into_inner).push_back(upto);
            self.outbox.push(frame).await?;
            drop(memory);
            self.own.forget(upto);
            cursor = upto;
        }
    }

    /// Returns the next page and its end, or nothing when there is nothing new.
    async fn page(&self, from: Rev, even_empty: bool) -> Result<Option<(EncodedFrame, Rev)>> {
        let (wanted, own) = (self.wanted.clone(), Arc::clone(&self.own));
        let shared = Arc::clone(&self.shared);
        self.shared
            .store
            .read(move |metadata, packs| {
                let page = make_page(metadata, packs, &wanted, &own, from)?;
                if page.upto == from && !even_empty {
                    return Ok(None);
                }
                let upto = page.upto;
                let frame = EncodedFrame::new(0, &page, BODY_LEN_MAX)
                    .map_err(|error| StoreError::Damaged(error.to_string()))?;
                shared.metrics.paged(frame.as_bytes().len());
                shared.metrics.sent(&page.chunks);
                Ok(Some((frame, upto)))
            })
            .await
    }
}

fn make_page(
    metadata: &mut dyn Metadata,
    packs: &Packs,
    wanted: &Wanted,
    own: &OwnRevs,
    from: Rev,
) -> Result<Page> {
    let rows = metadata.page(wanted.num, from, BATCH_COUNT_MAX)?;
    let mut page = Page {
        drive: wanted.drive,
        from,
        upto: rows.drive.head,
        head: rows.drive.head,
        consistent: true,
        nodes: Vec::with_capacity(rows.nodes.len()),
        chunks: Vec::new(),
        digest: None,
        devices: Vec::new(),
        made_by: Vec::with_capacity(rows.nodes.len()),
    };
    let mut names = HashMap::new();
    let mut sent = HashSet::new();
    let mut len = 0;
    let mut last = from;
    let mut cut = rows.more;
    for row in rows.nodes {
        if len >= BATCH_LEN_MAX {
            cut = true;
            break;
        }
        last = row.node.rev;
        if own.contains(last) {
            continue;
        }
        if row.author != wanted.device
            && let Some(id) = small_content(&row.node, wanted.inline_len_max)
            && sent.insert(id)
        {
            let record = match packs.recent_chunk(id) {
                Some(record) => Some(record),
                None => match metadata.chunk(wanted.num, id)? {
                    Some(chunk) => Some(packs.read(chunk.at, id.as_bytes())?),
                    None => None,
                },
            };
            if let Some(record) = record {
                len += record.data.len();
                page.chunks.push(chunk_data(record)?);
            }
        }
        let device = match names.get(&row.author) {
            Some(device) => *device,
            None => {
                let device = u32::try_from(page.devices.len()).unwrap_or(u32::MAX);
                page.devices.push(metadata.device_name(row.author)?.unwrap_or_default());
                names.insert(row.author, device);
                device
            }
        };
        page.made_by.push(device);
        page.nodes.push(row.node);
    }
    if cut {
        page.upto = last;
    }
    if page.upto == page.head {
        page.digest = Some(rows.drive.digest);
    } else {
        page.consistent = metadata.consistent_at(wanted.num, page.upto)?;
    }
    Ok(page)
}

/// Returns the chunk that is the content of a file, when it is one that is no longer than this.
fn small_content(node: &Versioned, len_max: u32) -> Option<ChunkId> {
    match &node.node.as_ref()?.body {
        Body::File { content: Content::Chunk { id, len }, .. } if *len <= len_max => Some(*id),
        Body::File { .. } | Body::Dir | Body::Link { .. } => None,
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream};
    use tokio::time::timeout;

    use super::*;
    use crate::model::{
        Attrs, Body, Change, ChangeOp, DeviceId, Fingerprint, Name, Node, NodeId, Place,
    };
    use crate::protocol::ServerConnection;
    use crate::protocol::limits::HEADER_LEN;
    use crate::protocol::message::{Hello, Message};
    use crate::server::admin;
    use crate::server::config::Config;
    use crate::server::hub::{ConnectionLimits, Hub};
    use crate::server::store::metadata::{Asked, Author};
    use crate::server::store::{Layout, Store};

    const PATIENCE: Duration = Duration::from_secs(30);

    /// Reads the end of the next page from the device's end of the wire.
    async fn next_page(device: &mut DuplexStream) -> Rev {
        let mut header = [0; HEADER_LEN];
        device.read_exact(&mut header).await.unwrap();
        let len = u32::from_be_bytes([header[0], header[1], header[2], header[3]]);
        let mut body = vec![0; len as usize];
        device.read_exact(&mut body).await.unwrap();
        assert_eq!(header[4], Page::KIND);
        rmp_serde::from_slice::<Page>(&body).unwrap().upto
    }

    async fn connect() -> (DuplexStream, ServerConnection) {
        let (mut device, server) = tokio::io::duplex(1 << 20);
        let hello = Hello { protocol: 1, program: "test".into(), features: vec![] };
        let frame = EncodedFrame::new(1, &hello, BODY_LEN_MAX).unwrap();
        device.write_all(frame.as_bytes()).await.unwrap();
        let connection = ServerConnection::over(server, "test").await.unwrap();
        connection.reader.authenticated();
        let mut header = [0; HEADER_LEN];
        device.read_exact(&mut header).await.unwrap();
        let len = u32::from_be_bytes([header[0], header[1], header[2], header[3]]);
        device.read_exact(&mut vec![0; len as usize]).await.unwrap();
        (device, connection)
    }

    #[tokio::test]
    async fn no_page_reaches_over_an_own_commit_that_is_not_answered_yet() {
        let dir = tempfile::tempdir().unwrap();
        let layout = Layout::create(dir.path()).unwrap();
        let store = Store::open(&layout, 0).unwrap();
        let hub = Hub::new(ConnectionLimits { all: 1, per_address: 1, per_user: 1 });
        let config = Config::default();
        let pin = Fingerprint([0; 32]);
        let shared = Shared::new(config, layout, store, hub, pin, "h:1".into()).unwrap();
        let shared = Arc::new(shared);
        let id = DeviceId::from_bytes([1; 16]);
        let (drive, author) = shared
            .store
            .write(move |metadata| {
                let user = admin::add_user(metadata, "alice", None)?;
                let device = metadata.add_device(id, user.num, "one", &[0; 32], 0)?;
                let author = Author { num: device.num, id };
                Ok((metadata.drives(user.num)?.remove(0), author))
            })
            .await
            .unwrap();
        let (mut device, connection) = connect().await;
        let wanted = Wanted {
            drive: drive.id,
            num: drive.num,
            device: author.num,
            inline_len_max: 0,
            turn: None,
        };
        let memory = shared.memory_of(1);
        let outbox = Outbox::new(connection.sender.clone());
        let subscription =
            Subscription::start(Arc::clone(&shared), memory, outbox, wanted, Rev::ZERO);
        assert_eq!(next_page(&mut device).await, Rev::ZERO, "the first one is empty");

        let node = Node {
            place: Place { parent: NodeId::ROOT, name: Name::try_from("d").unwrap() },
            body: Body::Dir,
            attrs: Attrs::from_mode(0o755),
        };
        let id = NodeId::from_bytes([2; 16]);
        let change = Change::new(id, Rev::ZERO, ChangeOp::Create(node));
        let own = Arc::clone(&subscription.own);
        let bounds = shared.config.bounds();
        let work = move |metadata: &mut dyn Metadata| {
            let asked = Asked { changes: &[change], deletions: None, now_ms: 0 };
            let applied = metadata.apply(drive.num, author, &asked, &bounds)?;
            own.add(applied.before, applied.head);
            Ok(applied)
        };
        let applied = shared.store.write(work).await.unwrap();
        shared.hub.publish(drive.num, applied.head);
        // A page that came too early would be here long before this is over.
        let early = timeout(Duration::from_millis(200), next_page(&mut device)).await;
        assert!(early.is_err(), "a page came before the reply");
        subscription.own.answered(applied.before);
        let late = timeout(PATIENCE, next_page(&mut device)).await.unwrap();
        assert_eq!(late, applied.head);
    }
}
