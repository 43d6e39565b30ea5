//! What is fuzzed: everything that reads bytes somebody else wrote.
//!
//! A target takes any bytes. It may refuse them; it must not panic, take long, or take more memory
//! than its bound; and what it accepts must survive being written and read again. Shared by the
//! coverage-guided runs (`fuzz/run`) and by the test that replays the kept corpus (`tests/fuzz.rs`).

use std::cell::{Cell, OnceCell};
use std::ffi::OsStr;
use std::future::Future;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use peak_alloc::PeakAlloc;
use picloud::agent::disk::{DiskFolder, Identity};
use picloud::agent::ignore::Ignore;
use picloud::content::{delta, pack, splice, unpack};
use picloud::engine::apply::Applier;
use picloud::engine::seam::Stat;
use picloud::model::*;
use picloud::protocol::message::*;
use picloud::protocol::{
    Connection, EncodedFrame, IncomingFrame, ServerConnection, control, limits,
};
use picloud::server::packs::{Location, PackWriter, Packs};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

/// Something that reads bytes.
pub struct Target {
    /// Its name, and that of its file of inputs in `fuzz/corpus`.
    pub name: &'static str,
    /// The longest input that is tried.
    pub len_max: usize,
    /// The most memory that one input may take at a time, in bytes.
    pub heap_max: usize,
    /// Words of the format, for changes that need luck otherwise. libFuzzer finds its own.
    #[cfg_attr(not(test), expect(dead_code, reason = "only the test changes inputs itself"))]
    pub words: &'static [&'static str],
    run: fn(&[u8]),
}

/// The longest time that one input may take: hundreds of times more than any takes, so that a busy
/// machine is not taken for a hang.
pub const TIME_MAX: Duration = Duration::from_secs(10);

const MIB: usize = 1024 * 1024;

const fn target(name: &'static str, len_max: usize, heap_max: usize, run: fn(&[u8])) -> Target {
    Target { name, len_max, heap_max, words: &[], run }
}

/// All targets.
pub const ALL: &[Target] = &[
    Target { words: MESSAGE_WORDS, ..target("messages", 64 * 1024, 8 * MIB, messages) },
    Target {
        words: MESSAGE_WORDS,
        ..target("frames_at_server", 64 * 1024, 8 * MIB, frames_at_server)
    },
    Target {
        words: MESSAGE_WORDS,
        ..target("frames_at_client", 64 * 1024, 16 * MIB, frames_at_client)
    },
    Target { words: MESSAGE_WORDS, ..target("handshake_server", 4096, 2 * MIB, handshake_server) },
    Target { words: MESSAGE_WORDS, ..target("handshake_client", 4096, 2 * MIB, handshake_client) },
    Target {
        words: &["picloud://", "/#", ".", ":46000", "[::1]"],
        ..target("join_link", 1024, MIB, join_link)
    },
    Target { words: CONFIG_WORDS, ..target("agent_config", 16 * 1024, 8 * MIB, agent_config) },
    Target { words: CONFIG_WORDS, ..target("server_config", 16 * 1024, 8 * MIB, server_config) },
    Target {
        words: &["**/", "/**", "!", "{a,b}", "[!a-z]", "\\", "*"],
        ..target("ignore", 4096, 64 * MIB, ignore)
    },
    target("content_list", 64 * 1024, MIB, content_list),
    target("splices", 64 * 1024, 16 * MIB, splices),
    target("deltas", 64 * 1024, 8 * MIB, deltas),
    Target { words: &["\u{28}\u{b5}/\u{fd}"], ..target("packing", 64 * 1024, 8 * MIB, packing) },
    Target {
        words: &[" (conflicted copy ", ")", "/", "..", " 2"],
        ..target("names", 4096, MIB, names)
    },
    Target {
        words: &["\0", ".where", "-", ".n", ".k", ".e"],
        ..target("leftovers", 4096, 4 * MIB, leftovers)
    },
    Target { words: &["PCR1", "PCP\r\n"], ..target("packs", 64 * 1024, 4 * MIB, packs) },
    Target { words: CONTROL_WORDS, ..target("control", 16 * 1024, 4 * MIB, control_messages) },
];

const MESSAGE_WORDS: &[&str] = &[
    "drive",
    "nodes",
    "chunks",
    "node",
    "place",
    "parent",
    "name",
    "body",
    "File",
    "Link",
    "target",
    "content",
    "Chunk",
    "List",
    "mtime",
    "secs",
    "nanos",
    "attrs",
    "rev",
    "from",
    "upto",
    "head",
    "consistent",
    "digest",
    "id",
    "len",
    "plain_len",
    "codec",
    "data",
    "results",
    "Accepted",
    "Refused",
    "Illegal",
    "protocol",
    "program",
    "features",
    "changes",
    "op",
    "Create",
    "Update",
];

const CONFIG_WORDS: &[&str] = &[
    "[[folder]]",
    "[server]",
    "[limits]",
    "[log]",
    "[control]",
    "id = ",
    "path = ",
    "listen = ",
    "data_dir = ",
    "\"",
    "\\u0000",
    "true",
    "ignore = [",
    "18446744073709551616",
];

const CONTROL_WORDS: &[&str] = &[
    "\"type\":",
    "status",
    "watch",
    "log",
    "\"lines\":",
    "\"follow\":",
    "conflicts",
    "progress",
    "exclude",
    "include",
    "left-out",
    "kept",
    "receive-only",
    "\"folder\":",
    "\"path\":",
    "\"dirs\":",
];

/// Runs a target on some bytes, and checks the time and the memory that it takes.
///
/// # Panics
/// When something is wrong: that is the point.
pub fn check(target: &Target, bytes: &[u8], heap: &PeakAlloc) {
    // What is made once and kept (a runtime, a directory) counts for no input.
    thread_local!(static WARM: Cell<Option<&'static str>> = const { Cell::new(None) });
    if WARM.replace(Some(target.name)) != Some(target.name) {
        (target.run)(b"");
    }
    let bytes = &bytes[..bytes.len().min(target.len_max)];
    heap.reset_peak_usage();
    let (before, started) = (heap.current_usage(), Instant::now());
    (target.run)(bytes);
    let taken = heap.peak_usage().saturating_sub(before);
    assert!(
        taken <= target.heap_max,
        "{} took {taken} bytes of memory for {} bytes of input, over its bound of {}",
        target.name,
        bytes.len(),
        target.heap_max
    );
    let time = started.elapsed();
    assert!(time <= TIME_MAX, "{} took {time:?} for {} bytes", target.name, bytes.len());
}

// Messages and frames.

/// Decodes a body as this message; what is a message must stay the same when it is sent on.
fn decode<M: Message>(body: &[u8]) {
    let frame = |body: &[u8]| IncomingFrame { kind: M::KIND, request: 1, body: body.to_vec() };
    let Ok(message) = frame(body).decode::<M>() else { return };
    // A message may be a little longer in our own words than in those it came in.
    let Ok(ours) = EncodedFrame::new(1, &message, limits::BODY_LEN_MAX) else { return };
    let body = &ours.as_bytes()[limits::HEADER_LEN..];
    let again: M = frame(body).decode().expect("what we encode can be decoded");
    let again = EncodedFrame::new(1, &again, limits::BODY_LEN_MAX).expect("it is as long");
    assert_eq!(ours, again, "a message changes when it is sent on");
}

macro_rules! decoders {
    ($($name:ident)*) => {
        /// The decoder of every kind.
        pub const DECODERS: &[(u8, fn(&[u8]))] = &[$(($name::KIND, decode::<$name>)),*];
    };
}

decoders! {
    Hello Join Login Register Answer Resume Ping Subscribe PageSeen Commit FindMissing PutChunks
    PutList HasList GetList GetChunks Lookup ListDir ListDevices RevokeDevice Invite Logout
    ChangePassword TotpBegin TotpConfirm TotpDisable ListHeld ApproveHeld RejectHeld
    ListBatches UndoBatch GetAuthors GetSpace Authors Space HelloReply AuthReply
    Done Subscribed Committed Missing Has ListPart Chunks Found Entries Devices Invited TotpSecret
    HeldList Batches Undone HeldNow UsageNow Coming Page Bye Failure GetSums Sums PutDeltas GetDeltas Deltas PutSplice GetSplice
    Splice
}

/// A kind, then a body.
fn messages(bytes: &[u8]) {
    let Some((kind, body)) = bytes.split_first() else { return };
    // Kinds that nobody uses are taken for others, so that no input is wasted.
    let known = DECODERS.iter().find(|(known, _)| known == kind);
    let (_, decode) = known.unwrap_or(&DECODERS[usize::from(*kind) % DECODERS.len()]);
    decode(body);
}

thread_local! {
    static RUNTIME: OnceCell<tokio::runtime::Runtime> = const { OnceCell::new() };
}

/// Runs to the end with a clock that jumps over every wait.
fn block_on<T>(future: impl Future<Output = T>) -> T {
    RUNTIME.with(|runtime| {
        let runtime = runtime.get_or_init(|| {
            tokio::runtime::Builder::new_current_thread()
                .enable_time()
                .start_paused(true)
                .build()
                .expect("a runtime")
        });
        runtime.block_on(future)
    })
}

fn frame<M: Message>(request: u32, message: &M) -> Vec<u8> {
    EncodedFrame::new(request, message, limits::BODY_LEN_MAX)
        .expect("a short message")
        .as_bytes()
        .to_vec()
}

/// A server end that is told these bytes, and nothing after them; reads all its frames.
async fn serve(bytes: &[u8], is_member: bool) {
    let (mut near, far) = tokio::io::duplex(64 * 1024);
    let server = async {
        let Ok(mut server) = ServerConnection::over(far, "fuzz/1").await else { return };
        if is_member {
            server.reader.authenticated();
        }
        loop {
            match server.reader.next().await {
                Ok(Some(frame)) => {
                    let found = DECODERS.iter().find(|(kind, _)| *kind == frame.kind);
                    if let Some((_, decode)) = found {
                        decode(&frame.body);
                    }
                }
                Ok(None) => break,
                Err(error) => {
                    server.sender.refuse(FailureCode::Malformed, &error.to_string());
                    break;
                }
            }
        }
        drop(server.reader);
        server.sender.closed().await;
    };
    let device = async {
        // The server may have closed: it has heard enough.
        near.write_all(bytes).await.ok();
        near.shutdown().await.ok();
        let mut answer = Vec::new();
        (&mut near).take(1 << 20).read_to_end(&mut answer).await.ok();
    };
    tokio::join!(server, device);
}

/// The bytes that a member sends after its hello.
fn frames_at_server(bytes: &[u8]) {
    let hello = frame(1, &Hello { protocol: 1, program: "fuzz".into(), features: vec![] });
    block_on(serve(&[&hello[..], bytes].concat(), true));
}

/// The first bytes that a server hears.
fn handshake_server(bytes: &[u8]) {
    block_on(serve(bytes, false));
}

/// A client end that is told these bytes by its server, and nothing after them.
async fn call(bytes: &[u8]) {
    let (near, mut far) = tokio::io::duplex(64 * 1024);
    let device = async {
        let Ok((connection, mut pushes)) = Connection::over(near, "fuzz/1", "pipe").await else {
            return;
        };
        let drive = DriveId::from_bytes([1; 16]);
        let asked = async {
            let subscribe = Subscribe {
                drive,
                cursor: Rev::ZERO,
                lineage: None,
                inline_len_max: 0,
                takes_over: false,
                coming: false,
            };
            let resume = Resume { device: DeviceId::from_bytes([1; 16]), token: vec![0; 32] };
            // Requests 2 to 5.
            connection.call(&resume).await.map(drop).ok();
            connection.call(&subscribe).await.map(drop).ok();
            connection.call(&GetChunks { drive, chunks: vec![] }).await.map(drop).ok();
            connection
                .call(&Commit { drive, changes: vec![], chunks: vec![], deletions: None })
                .await
                .map(drop)
                .ok();
        };
        let heard = async { while pushes.recv().await.is_some() {} };
        tokio::join!(asked, heard);
        connection.closed().await;
    };
    let server = async {
        far.write_all(bytes).await.ok();
        far.shutdown().await.ok();
        let mut asked = Vec::new();
        (&mut far).take(1 << 20).read_to_end(&mut asked).await.ok();
    };
    tokio::join!(device, server);
}

/// The bytes that a server sends after its hello.
fn frames_at_client(bytes: &[u8]) {
    let time = Timestamp::default();
    let hello = HelloReply { protocol: 1, program: "fuzz".into(), features: vec![], time };
    block_on(call(&[&frame(1, &hello)[..], bytes].concat()));
}

/// The first bytes that a device hears.
fn handshake_client(bytes: &[u8]) {
    block_on(call(bytes));
}

// Texts.

fn join_link(bytes: &[u8]) {
    let Ok(text) = std::str::from_utf8(bytes) else { return };
    if let Ok(link) = JoinLink::parse(text) {
        assert_eq!(JoinLink::parse(&link.to_string()).as_ref(), Ok(&link));
    }
}

fn agent_config(bytes: &[u8]) {
    let Ok(text) = std::str::from_utf8(bytes) else { return };
    match picloud::agent::config::Config::parse(text, Path::new("/a/agent.toml")) {
        Ok(config) => drop(format!("{config:?}")),
        Err(error) => drop(error.to_string()),
    }
}

fn server_config(bytes: &[u8]) {
    let Ok(text) = std::str::from_utf8(bytes) else { return };
    match picloud::server::config::Config::parse(text, Path::new("/a/server.toml")) {
        Ok(config) => drop(format!("{config:?}")),
        Err(error) => drop(error.to_string()),
    }
}

/// A line for the settings, then a file with patterns; each decides about some paths.
fn ignore(bytes: &[u8]) {
    let (line, file) = bytes.split_at(bytes.iter().position(|b| *b == b'\n').unwrap_or(0));
    let patterns = vec![String::from_utf8_lossy(line).into_owned()];
    let Ok(ignore) = Ignore::new(&patterns).or_else(|_| Ignore::new(&[])) else {
        panic!("no patterns are no pattern that is wrong")
    };
    let stat = Stat {
        kind: Some(Kind::File),
        ino: 1,
        birth: Timestamp::default(),
        size: file.len() as u64,
        mtime: Timestamp::default(),
        ctime: Timestamp::default(),
        attrs: Attrs::from_mode(0o644),
    };
    let dir = RelPath::parse(b"some/where").expect("a path");
    let mut rules = ignore.rules(&dir, |_| Some((stat, Ok(file.to_vec()))));
    for name in [&b"a"[..], b"notes.txt", b".a.swp", b"\xff{a,b}", &[b'a'; 255]] {
        let verdicts = [true, false].map(|is_dir| rules.is_ignored(name, is_dir));
        assert_eq!(verdicts, [true, false].map(|is_dir| rules.is_ignored(name, is_dir)));
    }
    drop(ignore.problems());
}

fn names(bytes: &[u8]) {
    if let Ok(path) = RelPath::parse(bytes) {
        assert_eq!(RelPath::parse(&path.to_bytes()).as_ref(), Ok(&path));
        for name in path.names() {
            assert!(Name::new(name.as_bytes()).is_ok());
        }
        assert!(path.names().iter().all(|name| !matches!(name.as_bytes(), b"." | b"..")));
        let wire = rmp_serde::to_vec_named(&path).expect("a path can be sent");
        assert_eq!(rmp_serde::from_slice::<RelPath>(&wire).as_ref().ok(), Some(&path));
    }
    let Ok(name) = Name::new(bytes) else { return };
    assert!(!name.as_bytes().contains(&b'/') && !name.as_bytes().contains(&0));
    for (device, attempt) in [("laptop", 1), ("d\u{e9}vice / \0 with ) odd (name", 17)] {
        let copy = conflict_name(&name, device, "2026-01-31", attempt);
        assert_ne!(copy, name, "a conflict copy has a name of its own");
        assert!(Path::new(OsStr::from_bytes(copy.as_bytes())).components().count() == 1);
    }
}

fn control_messages(bytes: &[u8]) {
    if let Ok(request) = serde_json::from_slice::<control::Request>(bytes) {
        let text = serde_json::to_string(&request).expect("a request can be sent");
        assert_eq!(serde_json::from_str::<control::Request>(&text).expect("and read"), request);
    }
    if let Ok(reply) = serde_json::from_slice::<control::Reply>(bytes) {
        let text = serde_json::to_string(&reply).expect("a reply can be sent");
        assert_eq!(serde_json::from_str::<control::Reply>(&text).expect("and read"), reply);
    }
}

// Contents.

fn content_list(bytes: &[u8]) {
    if let Ok(list) = ContentList::decode(bytes) {
        assert_eq!(list.encode(), bytes, "there is one encoding of a list");
        assert_eq!(list.len(), list.extents().iter().map(Extent::len).sum::<u64>());
        assert!(list.len() <= Content::LEN_MAX);
        assert_eq!(ContentList::new(list.extents().to_vec()).as_ref(), Ok(&list));
    }
}

/// How many extents the old list has, then a splice, which may also be a list of its own.
fn splices(bytes: &[u8]) {
    let Some((&count, bytes)) = bytes.split_first() else { return };
    let extent = |number: u8| match number % 5 {
        4 => Extent::Hole { len: 1 + u64::from(number) },
        _ => Extent::Chunk { id: ChunkId::of(&[number]), len: 1 + u32::from(number) },
    };
    let Ok(old) = ContentList::new((0..count).map(extent).collect()) else { return };
    if let Ok(new) = splice::unsplice(&old, bytes) {
        assert!(new.encoded_len() <= splice::SPLICED_LEN_MAX);
        if let Some(splice) = splice::splice(&old, &new) {
            assert_eq!(splice::unsplice(&old, &splice).expect("a splice can be undone"), new);
        }
        for chunk in splice::new_chunks(old.extents(), new.extents()) {
            assert!(chunk.base.len() <= delta::BASE_CHUNKS_MAX);
        }
    }
}

/// Where the base ends and the rest begins: steps, sums, or a new chunk.
fn deltas(bytes: &[u8]) {
    let Some((&[a, b, c, d], bytes)) = bytes.split_first_chunk::<4>() else { return };
    let (base, rest) = bytes.split_at(usize::from(u16::from_be_bytes([a, b])).min(bytes.len()));
    if rest.is_empty() {
        return;
    }
    let id = ChunkId::of(rest);
    let plain_len = u32::from(u16::from_be_bytes([c, d]));
    let lie = ChunkDelta { id, plain_len, base: vec![], steps: pack(id, rest) };
    if let Ok(plain) = delta::apply(&lie, base) {
        assert_eq!((ChunkId::of(&plain), plain.len()), (id, plain_len as usize));
    }
    let sums = BlockSums { block_len: 512 * (u32::from(c) + 1), sums: base.to_vec() };
    drop(delta::make(id, rest, &[], &sums));
    if let Some(delta) = delta::make(id, rest, &[], &BlockSums::of(base)) {
        assert_eq!(*delta::apply(&delta, base).expect("a delta can be applied"), *rest);
    }
}

/// How the id is to be made, the stated length, the codec, then packed bytes.
fn packing(bytes: &[u8]) {
    let Some((&[how, a, b, c, d], data)) = bytes.split_first_chunk::<5>() else { return };
    let stated = u32::from_be_bytes([a, b, c, d]) % (2 * Content::CHUNK_LEN_MAX);
    let codec = if how & 1 == 0 { Codec::Plain } else { Codec::Zstd };
    let lie = ChunkData { id: ChunkId::of(data), plain_len: stated, codec, data: data.to_vec() };
    if let Ok(plain) = unpack(&lie) {
        assert_eq!((ChunkId::of(&plain), plain.len()), (lie.id, lie.plain_len as usize));
    }
    if !data.is_empty() {
        // What we pack can be opened, and lies about it are found out.
        let packed = pack(ChunkId::of(data), data);
        assert_eq!(*unpack(&packed).expect("what is packed can be opened"), *data);
        let mut lie = packed.clone();
        lie.plain_len = lie.plain_len.wrapping_add(stated | 1);
        assert!(unpack(&lie).is_err());
    }
}

// What lies on disks.

/// A directory in memory where there is one: thousands of inputs a second are written to it.
fn scratch() -> tempfile::TempDir {
    let shm = Path::new("/dev/shm");
    let dir = if shm.is_dir() { tempfile::tempdir_in(shm) } else { tempfile::tempdir() };
    dir.expect("a directory")
}

struct Trash {
    _dir: tempfile::TempDir,
    folder: DiskFolder,
    path: PathBuf,
}

thread_local! {
    static TRASH: OnceCell<Trash> = const { OnceCell::new() };
    static PACKS: OnceCell<tempfile::TempDir> = const { OnceCell::new() };
}

impl Trash {
    fn new() -> Self {
        let dir = scratch();
        let path = dir.path().join("folder");
        let identity =
            Identity { folder: FolderId::from_bytes([1; 16]), drive: DriveId::from_bytes([2; 16]) };
        DiskFolder::link(&path, identity, None).expect("a folder can be linked");
        let folder = DiskFolder::open(&path, identity).expect("a linked folder can be opened");
        Self { _dir: dir, folder, path }
    }

    fn recover(&self, entries: &[(&str, &[u8], &[u8])]) {
        let own = self.path.join(".picloud");
        let beside = self.path.parent().expect("a parent").join("canary");
        std::fs::write(&beside, "untouched").expect("a canary");
        for (place, name, bytes) in entries {
            if let Ok(name) = Name::new(*name) {
                let at = own.join(place).join(OsStr::from_bytes(name.as_bytes()));
                std::fs::write(at, bytes).expect("a file below .picloud");
            }
        }
        // Whatever lies there: each version is somewhere afterwards, or was one of the server's.
        let mut applier = Applier::new(self.folder.clone(), "fuzz");
        let recovered = applier.recover("2026-01-31", |_| false).expect("the folder is there");
        for path in &recovered.brought_back {
            let at = self.path.join(OsStr::from_bytes(&path.to_bytes()));
            assert!(at.symlink_metadata().is_ok(), "{path} is not where it was brought back to");
        }
        let dropped = applier.reap("2026-01-31", Duration::from_secs(1_000_000), 100);
        drop(dropped.expect("the folder is there"));
        assert_eq!(std::fs::read(&beside).expect("the canary"), b"untouched");
        assert_eq!(std::fs::read_dir(beside.parent().expect("a parent")).expect("it").count(), 2);
        for entry in std::fs::read_dir(&self.path).expect("the folder").flatten() {
            if entry.file_name() != ".picloud" {
                clear(&entry.path());
            }
        }
        for place in ["staging", "trash", "parked"] {
            for entry in std::fs::read_dir(own.join(place)).expect("ours").flatten() {
                clear(&entry.path());
            }
        }
    }
}

fn clear(path: &Path) {
    if path.symlink_metadata().is_ok_and(|meta| meta.is_dir()) {
        std::fs::remove_dir_all(path).expect("a directory goes");
    } else {
        std::fs::remove_file(path).expect("a file goes");
    }
}

/// Names and contents of what a crash left below `.picloud`, with NUL NUL between them: a name in
/// the trash and its bytes, a second one (a note, say) and its bytes, a name among the parked.
fn leftovers(bytes: &[u8]) {
    let mut parts = Vec::new();
    let mut rest = bytes;
    while let Some(at) = rest.windows(2).position(|two| two == [0, 0]) {
        parts.push(&rest[..at]);
        rest = &rest[at + 2..];
    }
    parts.push(rest);
    let part = |index: usize| parts.get(index).copied().unwrap_or_default();
    let entries = [
        ("trash", part(0), part(1)),
        ("trash", part(2), part(3)),
        ("parked", part(4), part(5)),
        ("parked", part(6), part(7)),
        ("staging", part(0), part(5)),
    ];
    TRASH.with(|trash| trash.get_or_init(Trash::new).recover(&entries));
}

/// A pack file as it lies on a server's disk after anything: it is opened for appending, and every
/// offset that says it begins a record is read.
fn packs(bytes: &[u8]) {
    PACKS.with(|dir| {
        let dir = dir.get_or_init(scratch).path();
        std::fs::create_dir_all(dir).expect("a directory");
        let path = dir.join("0000000001.pack");
        std::fs::write(&path, bytes).expect("a pack");
        let packs = Arc::new(Packs::open(dir).expect("the directory is there"));
        drop(PackWriter::open(Arc::clone(&packs), 0));
        let begins = bytes.windows(4).enumerate().filter(|(_, four)| four == b"PCR1");
        for (offset, _) in begins.take(16) {
            let u32_at = |at: usize| {
                let at = bytes.get(offset + at..).and_then(|rest| rest.first_chunk::<4>());
                u32::from_be_bytes(at.copied().unwrap_or_default())
            };
            // The index says how much is there, not the pack.
            let stored_len = u32_at(12).min(2 * MIB as u32);
            let at = Location { pack: 1, offset: offset as u64, stored_len };
            let id = bytes.get(offset + 16..).and_then(|rest| rest.first_chunk::<32>());
            let id = id.copied().unwrap_or_default();
            if let Ok(record) = packs.read(at, &id) {
                assert_eq!((record.id, record.data.len()), (id, stored_len as usize));
            }
            drop(packs.read_part(at, u64::from(u32_at(8)), 1024));
        }
        assert_eq!(std::fs::read(&path).expect("the pack"), bytes, "nothing is repaired away");
    });
}
