//! Times the parts that every change passes through, each alone: `cargo bench --bench parts`.
//!
//! What goes in is the same on every machine and in every run. The whole is measured by
//! `benches/compare`; these tell which part of it became slower.

use std::collections::HashSet;
use std::convert::Infallible;
use std::path::Path;
use std::sync::Arc;

use divan::Bencher;
use divan::counter::{BytesCount, ItemsCount};
use picloud::agent::disk::{DiskFolder, Identity};
use picloud::agent::ignore::Ignore;
use picloud::content::{ChunkError, Chunker, pack};
use picloud::engine::memory::MemoryTrees;
use picloud::engine::seam::{
    Action, Committed, DirRef, Event, Found, Hashed, JournalPage, Look, Seen, Stat,
};
use picloud::engine::{Engine, Now, Settings};
use picloud::model::{
    Attrs, Body, Change, ChangeOp, ChunkId, Content, DeviceId, Digest, DriveId, FolderId, IdSource,
    Kind, Lineage, Name, Node, NodeId, Place, RelPath, Rev, Timestamp, Versioned,
};
use picloud::protocol::limits::{BATCH_COUNT_MAX, BODY_LEN_MAX, HEADER_LEN};
use picloud::protocol::message::{Message, Page};
use picloud::protocol::{EncodedFrame, IncomingFrame};
use picloud::server::admin;
use picloud::server::packs::{Record, RecordKind};
use picloud::server::store::metadata::{Asked, Author, Bounds, Metadata};
use picloud::server::store::{Contents, Layout, Store};
use tokio::runtime::Runtime;

const BUFFER_LEN: usize = 64 * 1024 * 1024;
const SMALL_LEN: usize = 8 * 1024;
/// As many changes as two full commits that reach the server together.
const COMMITTED: usize = 1000;
const FILES: u32 = 10_000;
const FILES_PER_DIR: u32 = 100;

fn main() {
    divan::main();
}

/// Bytes that do not shrink, and are the same every time (xorshift64).
fn noise(seed: u64, len: usize) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let words = std::iter::repeat_with(|| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state.to_be_bytes()
    });
    words.flatten().take(len).collect()
}

fn name(number: u32) -> Name {
    Name::new(format!("file {number:06}.txt")).expect("a legal name")
}

fn file_node(number: u32, content: Content) -> Node {
    Node {
        place: Place { parent: NodeId::ROOT, name: name(number) },
        body: Body::File { content, mtime: Timestamp::default() },
        attrs: Attrs { mode: 0o644 },
    }
}

/// The content of a small file, and its chunk as it travels.
fn small_content(number: u32) -> (Content, Vec<u8>) {
    let plain = noise(u64::from(number) + 1, SMALL_LEN);
    let len = u32::try_from(plain.len()).expect("it is small");
    (Content::Chunk { id: ChunkId::of(&plain), len }, plain)
}

/// Cutting and hashing, as every byte that is read is.
#[divan::bench(sample_count = 20)]
fn chunk_and_hash(bencher: Bencher) {
    let bytes = noise(1, BUFFER_LEN);
    let mut chunker = Chunker::new();
    bencher.counter(BytesCount::new(BUFFER_LEN)).bench_local(|| {
        let mut chunks = 0_usize;
        chunker
            .read(&mut bytes.as_slice(), |_, _| {
                chunks += 1;
                Ok::<_, ChunkError>(())
            })
            .map(|chunked| (chunked, chunks))
    });
}

/// A full page of the journal: as many nodes as fit, and a mebibyte of small contents.
fn page() -> Page {
    let mut chunks = Vec::new();
    let nodes = (0..BATCH_COUNT_MAX as u32).map(|number| {
        let (content, plain) = small_content(number);
        if let Content::Chunk { id, .. } = content
            && number < 128
        {
            chunks.push(pack(id, &plain));
        }
        let mut ids = IdSource::new([7; 32]);
        let id = ids.node_id(u64::from(number));
        Versioned { id, rev: Rev(u64::from(number) + 1), node: Some(file_node(number, content)) }
    });
    let nodes: Vec<Versioned> = nodes.collect();
    let head = Rev(nodes.len() as u64);
    let made_by = vec![0; nodes.len()];
    Page {
        drive: DriveId::from_bytes([1; 16]),
        from: Rev(0),
        upto: head,
        head,
        consistent: true,
        nodes,
        chunks,
        digest: Some(Digest::default()),
        devices: vec!["laptop".to_owned()],
        made_by,
    }
}

#[divan::bench]
fn frame_encode(bencher: Bencher) {
    let page = page();
    let len = EncodedFrame::new(0, &page, BODY_LEN_MAX).map_or(0, |frame| frame.as_bytes().len());
    bencher
        .counter(BytesCount::new(len))
        .bench_local(|| EncodedFrame::new(0, divan::black_box(&page), BODY_LEN_MAX));
}

#[divan::bench]
fn frame_decode(bencher: Bencher) {
    let frame = EncodedFrame::new(0, &page(), BODY_LEN_MAX).expect("a page fits a frame");
    let body = frame.as_bytes()[HEADER_LEN..].to_vec();
    let len = body.len();
    let frame = IncomingFrame { kind: Page::KIND, request: 0, body };
    bencher.counter(BytesCount::new(len)).bench_local(|| divan::black_box(&frame).decode::<Page>());
}

/// A server's store in a directory that is removed afterwards, with one account.
struct Shop {
    runtime: Runtime,
    store: Arc<Store>,
    drive: i64,
    author: Author,
    ids: IdSource,
    made: u32,
    _dir: tempfile::TempDir,
}

impl Shop {
    fn open() -> Self {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let layout = Layout::create(dir.path()).expect("a store can be made");
        let store = Store::open(&layout, 0).expect("the store opens");
        let runtime = Runtime::new().expect("a runtime");
        let (drive, author) = runtime
            .block_on(store.write(|metadata| {
                let user = admin::add_user(metadata, "bench", None)?;
                let id = DeviceId::from_bytes([1; 16]);
                let device = metadata.add_device(id, user.num, "bench", &[1; 32], 0)?;
                let drive = metadata.drives(user.num)?[0].num;
                Ok((drive, Author { num: device.num, id }))
            }))
            .expect("an account");
        let ids = IdSource::new([3; 32]);
        Self { runtime, store, drive, author, ids, made: 0, _dir: dir }
    }

    /// New files with their small contents, as the server has them once they are checked.
    fn creations(&mut self, count: usize) -> (Vec<Change>, Contents) {
        let mut contents = Contents { drive: self.drive, chunks: Vec::new(), list: None };
        let mut changes = Vec::new();
        for _ in 0..count {
            self.made += 1;
            let (content, plain) = small_content(self.made);
            if let Content::Chunk { id, len } = content {
                contents.chunks.push(Record {
                    kind: RecordKind::Chunk,
                    codec: 0,
                    plain_len: len,
                    id: *id.as_bytes(),
                    data: plain.into(),
                });
            }
            let node = self.ids.node_id(u64::from(self.made));
            let op = ChangeOp::Create(file_node(self.made, content));
            changes.push(Change::new(node, Rev(0), op));
        }
        (changes, contents)
    }

    /// Commits, and returns once it is durable, as for a device that waits for the answer.
    fn commit(&self, (changes, contents): (Vec<Change>, Contents)) {
        let (drive, author) = (self.drive, self.author);
        let work = move |metadata: &mut dyn Metadata| {
            let mut accepted = 0;
            for changes in changes.chunks(BATCH_COUNT_MAX) {
                let asked = Asked { changes, deletions: None, now_ms: 0 };
                let bounds = Bounds::default();
                accepted += metadata.apply(drive, author, &asked, &bounds)?.head.0;
            }
            Ok(accepted)
        };
        let done = self.runtime.block_on(async {
            let receiver = self.store.submit(contents, work, |_| ()).await?;
            receiver.await.unwrap_or_else(|_| Ok(0))
        });
        assert!(done.is_ok_and(|head| head > 0), "the store refused a commit");
    }
}

impl Drop for Shop {
    fn drop(&mut self) {
        self.runtime.block_on(self.store.close());
    }
}

/// A thousand new files of 8 KiB: packs, rules, rows, all durable. The drive grows from sample to
/// sample, as drives do.
#[divan::bench(sample_count = 20, sample_size = 1)]
fn manifest_commit(bencher: Bencher) {
    let shop = std::cell::RefCell::new(Shop::open());
    bencher
        .counter(ItemsCount::new(COMMITTED))
        .with_inputs(|| shop.borrow_mut().creations(COMMITTED))
        .bench_local_values(|changes| shop.borrow().commit(changes));
}

/// What a full page is made of, as the server reads it for each device that catches up.
#[divan::bench]
fn journal_page(bencher: Bencher) {
    let mut shop = Shop::open();
    let changes = shop.creations(2 * BATCH_COUNT_MAX);
    shop.commit(changes);
    let drive = shop.drive;
    let read = || {
        shop.runtime.block_on(
            shop.store.read(move |metadata, _| metadata.page(drive, Rev(0), BATCH_COUNT_MAX)),
        )
    };
    assert!(read().is_ok_and(|page| page.more && page.nodes.len() == BATCH_COUNT_MAX));
    bencher.counter(ItemsCount::new(BATCH_COUNT_MAX)).bench_local(read);
}

fn stat(kind: Kind, ino: u64, size: u64) -> Stat {
    Stat {
        kind: Some(kind),
        ino,
        birth: Timestamp::default(),
        size,
        mtime: Timestamp::default(),
        ctime: Timestamp::default(),
        attrs: Attrs { mode: if kind == Kind::Dir { 0o755 } else { 0o644 } },
    }
}

/// What a look at a folder with so many new files finds.
fn discovery() -> Vec<Seen> {
    let seen = |number: u32| Seen {
        name: name(number),
        found: Some(Found {
            stat: stat(Kind::File, u64::from(number) + 2, SMALL_LEN as u64),
            target: None,
            ignored: false,
            is_folder: false,
        }),
    };
    (0..FILES).map(seen).collect()
}

/// Answers whatever the engine asks for, at once, until it is settled; returns how many nodes the
/// server took.
fn play(entries: Vec<Seen>) -> Result<usize, Infallible> {
    let ids = IdSource::new([5; 32]);
    let mut engine = Engine::new(MemoryTrees::new(), Settings::default(), ids)?;
    let mut now = Now::default();
    let lineage = Lineage::from_bytes([9; 16]);
    engine.handle(now, Event::Online { lineage, from: Rev(0), head: Rev(0) })?;
    let first = JournalPage {
        upto: Rev(0),
        head: Rev(0),
        consistent: true,
        nodes: Vec::new(),
        digest: Some(Digest::default()),
    };
    engine.handle(now, Event::Page(first))?;
    engine.handle(now, Event::Rescan)?;
    let mut entries = Some(entries);
    let (mut head, mut taken) = (0, HashSet::new());
    let mut actions = Vec::new();
    loop {
        engine.poll(now, &mut actions)?;
        if actions.is_empty() {
            match engine.wake_at_ms() {
                Some(at) if taken.len() < FILES as usize => {
                    now.ms = at.max(now.ms + 1);
                    continue;
                }
                _ => return Ok(taken.len()),
            }
        }
        for action in actions.drain(..) {
            let event = match action {
                Action::Look { dir, names } => {
                    let entries = entries.take().unwrap_or_default();
                    let look = Look::Entries { dir: stat(Kind::Dir, 1, 0), entries };
                    Event::Looked { dir: dir.id, names, look }
                }
                Action::Hash { node, stat, .. } => {
                    let id = ChunkId::from_bytes(
                        [stat.ino.to_be_bytes(); 4].concat().try_into().unwrap_or([0; 32]),
                    );
                    let content = Content::Chunk { id, len: SMALL_LEN as u32 };
                    let hashed = Hashed::Content { stat, content, racy: false };
                    Event::Hashed { node, hashed }
                }
                Action::Commit { batch, changes } => {
                    let results = changes.iter().map(|outgoing| {
                        head += 1;
                        taken.insert(outgoing.change.node);
                        Committed::Accepted { rev: Rev(head) }
                    });
                    Event::Committed { batch, results: results.collect(), head: Rev(head) }
                }
                Action::Upload { .. } | Action::Apply { .. } => continue,
            };
            engine.handle(now, event)?;
        }
    }
}

/// From a look that finds ten thousand new files to the commits that bring them to the server.
#[divan::bench(sample_count = 20)]
fn plan_new_files(bencher: Bencher) {
    assert_eq!(play(discovery()), Ok(FILES as usize), "the engine did not send all files");
    bencher.counter(ItemsCount::new(FILES)).with_inputs(discovery).bench_local_values(play);
}

/// Ten thousand files in a hundred directories, in a linked folder.
fn folder(path: &Path) -> (DiskFolder, Vec<DirRef>) {
    let identity =
        Identity { folder: FolderId::from_bytes([1; 16]), drive: DriveId::from_bytes([1; 16]) };
    DiskFolder::link(path, identity, None).expect("the folder can be linked");
    let folder = DiskFolder::open(path, identity).expect("the folder opens");
    let mut ids = IdSource::new([1; 32]);
    let dirs = (0..FILES / FILES_PER_DIR).map(|number| {
        let name = format!("dir {number:03}");
        let dir = path.join(&name);
        std::fs::create_dir(&dir).expect("a directory");
        for file in 0..FILES_PER_DIR {
            let file = dir.join(format!("file {file:03}"));
            std::fs::File::create(file).expect("a file");
        }
        let ino = std::os::unix::fs::MetadataExt::ino(&dir.metadata().expect("it is there"));
        let path = Arc::new(RelPath::parse(name.as_bytes()).expect("a legal path"));
        DirRef { id: ids.node_id(u64::from(number)), path, ino }
    });
    let dirs = dirs.collect();
    (folder, dirs)
}

/// Looks at all of a folder: each directory listed, each entry asked for its stat, by the rules.
#[divan::bench(sample_count = 20)]
fn scan(bencher: Bencher) {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let (folder, dirs) = folder(&dir.path().join("folder"));
    let ignore = Ignore::new(&[]).expect("no patterns");
    let look = || {
        dirs.iter()
            .map(|dir| match folder.look(dir, None, &ignore) {
                Ok(Look::Entries { entries, .. }) => entries.len(),
                _ => 0,
            })
            .sum::<usize>()
    };
    assert_eq!(look(), FILES as usize, "not all files were found");
    bencher.counter(ItemsCount::new(FILES)).bench_local(look);
}
