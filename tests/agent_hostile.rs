//! A hostile server, and races with symbolic links: whatever the agent is told and whatever is
//! swapped under its hands, nothing outside its folder is touched, its memory stays bounded, it
//! comes to rest, and it works with an honest server afterwards.

#![allow(clippy::unwrap_used, reason = "a test ends where something fails")]

mod agent_support;
#[path = "support/process.rs"]
#[allow(dead_code, reason = "each test binary uses its own part of this")]
mod process;
mod server_support;

use std::collections::BTreeMap;
use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::net::SocketAddr;
use std::os::unix::fs::{MetadataExt, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use agent_support::{Machine, settle};
use picloud::model::*;
use picloud::protocol::control::{Reply, State, Status};
use picloud::protocol::message::*;
use picloud::protocol::{ALPN, EncodedFrame, ServerIdentity, limits};
use process::Process;
use serde::{Deserialize, Serialize};
use serde_bytes::ByteBuf;
use server_support::{PATIENCE, Server};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{mpsc, watch};
use tokio_rustls::TlsAcceptor;

/// The most memory that an agent may ever have taken, in KiB: its caches full, and all pages that may
/// wait. At rest it takes about a twentieth.
const AGENT_KIB_MAX: u64 = 384 * 1024;

// Messages as no honest program can write them.

#[derive(Clone, Debug, Serialize, Deserialize)]
struct LoosePage {
    drive: DriveId,
    from: u64,
    upto: u64,
    head: u64,
    consistent: bool,
    nodes: Vec<LooseVersioned>,
    chunks: Vec<ChunkData>,
}

impl Message for LoosePage {
    const KIND: u8 = Page::KIND;
}

#[derive(Clone, Debug, Serialize, Deserialize)]
struct LooseVersioned {
    id: NodeId,
    rev: u64,
    node: Option<LooseNode>,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
struct LooseNode {
    place: LoosePlace,
    body: LooseBody,
    attrs: u16,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
struct LoosePlace {
    parent: NodeId,
    name: ByteBuf,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
enum LooseBody {
    Dir,
    File { content: LooseContent, mtime: Timestamp },
    Link { target: ByteBuf },
}

#[derive(Clone, Debug, Serialize, Deserialize)]
enum LooseContent {
    Empty,
    Chunk { id: ChunkId, len: u64 },
    List { id: ListId, len: u64 },
}

fn id(number: u8) -> NodeId {
    NodeId::from_bytes([number; 16])
}

fn node(parent: NodeId, name: &[u8], body: LooseBody) -> LooseNode {
    let attrs = if matches!(body, LooseBody::Dir) { 0o755 } else { 0o644 };
    let attrs = if matches!(body, LooseBody::Link { .. }) { 0 } else { attrs };
    LooseNode { place: LoosePlace { parent, name: ByteBuf::from(name) }, body, attrs }
}

fn link(target: &[u8]) -> LooseBody {
    LooseBody::Link { target: ByteBuf::from(target) }
}

fn holding(content: LooseContent) -> LooseBody {
    LooseBody::File { content, mtime: Timestamp::default() }
}

fn text(bytes: &[u8]) -> LooseBody {
    holding(LooseContent::Chunk { id: ChunkId::of(bytes), len: bytes.len() as u64 })
}

/// A page with these nodes, each under the id and rev of its place in the list.
fn page(drive: DriveId, nodes: Vec<LooseNode>) -> LoosePage {
    let head = nodes.len() as u64;
    let nodes = (1..).zip(nodes).map(|(rev, node)| LooseVersioned {
        id: id(u8::try_from(rev).unwrap()),
        rev,
        node: Some(node),
    });
    let nodes = nodes.collect();
    LoosePage { drive, from: 0, upto: head, head, consistent: true, nodes, chunks: vec![] }
}

fn encode<M: Message>(request: u32, message: &M) -> Vec<u8> {
    EncodedFrame::new(request, message, usize::MAX).unwrap().as_bytes().to_vec()
}

fn raw_frame(kind: u8, request: u32, body: &[u8]) -> Vec<u8> {
    let len = u32::try_from(body.len()).unwrap();
    [&len.to_be_bytes()[..], &[kind], &request.to_be_bytes(), body].concat()
}

// The hostile server.

/// What it says once the device has subscribed, and what it answers.
#[derive(Clone)]
struct Script {
    lineage: Lineage,
    head: u64,
    /// Sent one after the other after `Subscribed`.
    says: Arc<Vec<Vec<u8>>>,
    /// Sent again and again after that, as often as the device takes it, from the second on with
    /// the next revs.
    endless: Option<fn(DriveId, u64) -> Vec<u8>>,
    /// Whether that waits for the device to take pages in, as it must.
    is_patient: bool,
    /// The answer to a request; none for `Failure` `Unavailable`.
    answers: fn(u8, u32, &[u8]) -> Option<Vec<u8>>,
}

#[derive(Default)]
struct Counts {
    subscribed: AtomicU64,
    /// Connections with a subscription that the device has ended.
    ended: AtomicU64,
    asked: AtomicU64,
    pushed: AtomicU64,
}

struct Hostile {
    script: Arc<Mutex<Script>>,
    counts: Arc<Counts>,
    /// Ends every connection when it changes.
    round: watch::Sender<u64>,
    task: tokio::task::JoinHandle<()>,
}

async fn read_frame(wire: &mut (impl AsyncRead + Unpin)) -> std::io::Result<(u8, u32, Vec<u8>)> {
    let mut header = [0; limits::HEADER_LEN];
    wire.read_exact(&mut header).await?;
    let [a, b, c, d, kind, e, f, g, h] = header;
    let mut body = vec![0; u32::from_be_bytes([a, b, c, d]) as usize];
    wire.read_exact(&mut body).await?;
    Ok((kind, u32::from_be_bytes([e, f, g, h]), body))
}

impl Hostile {
    /// Takes the place of an honest server: its address, its certificate, its drive.
    async fn start(place: &Spot) -> Self {
        let pem = fs::read_to_string(&place.identity).unwrap();
        let acceptor = ServerIdentity::from_pem(&pem, &pem).unwrap().acceptor(&[ALPN]).unwrap();
        let listener = TcpListener::bind(place.address).await.unwrap();
        let script = Script {
            lineage: Lineage::from_bytes([9; 16]),
            head: 0,
            says: Arc::default(),
            endless: None,
            is_patient: false,
            answers: |_, _, _| None,
        };
        let script = Arc::new(Mutex::new(script));
        let counts = Arc::<Counts>::default();
        let (drive, device) = (place.drive, place.device);
        let (to_serve, counted) = (Arc::clone(&script), Arc::clone(&counts));
        let round = watch::Sender::new(0);
        let rounds = round.clone();
        let task = tokio::spawn(async move {
            let mut conversations = tokio::task::JoinSet::new();
            loop {
                let Ok((tcp, _)) = listener.accept().await else { return };
                let (acceptor, script) = (acceptor.clone(), Arc::clone(&to_serve));
                let counts = Arc::clone(&counted);
                let mut round = rounds.subscribe();
                conversations.spawn(async move {
                    let subscribed = Arc::new(AtomicBool::new(false));
                    let talk =
                        converse(tcp, acceptor, &script, &counts, drive, device, &subscribed);
                    // However it ends: the device has had enough of it, or another round begins.
                    tokio::select! {
                        _ = talk => {}
                        _ = round.changed() => return,
                    }
                    if subscribed.load(Ordering::SeqCst) {
                        counts.ended.fetch_add(1, Ordering::SeqCst);
                    }
                });
            }
        });
        Self { script, counts, round, task }
    }

    /// Frees its address.
    async fn stop(self) {
        self.task.abort();
        self.task.await.unwrap_or_default();
    }

    fn set(&self, change: impl FnOnce(&mut Script)) {
        change(&mut self.script.lock().unwrap());
    }

    /// Ends all connections, and waits until the device is back.
    async fn next_round(&self, stage: &mut Stage, what: &str) {
        let before = self.counts.subscribed.load(Ordering::SeqCst);
        self.round.send_modify(|round| *round += 1);
        stage.until_over(&self.counts.subscribed, before, what).await;
    }
}

async fn converse(
    tcp: TcpStream,
    acceptor: TlsAcceptor,
    script: &Mutex<Script>,
    counts: &Counts,
    drive: DriveId,
    device: DeviceId,
    subscribed: &AtomicBool,
) -> std::io::Result<()> {
    let (mut read, mut wire) = tokio::io::split(acceptor.accept(tcp).await?);
    let (heard, mut frames) = mpsc::channel(64);
    let hearing = async {
        loop {
            let frame = read_frame(&mut read).await?;
            heard.send(frame).await.map_err(std::io::Error::other)?;
        }
    };
    let talking = async {
        let mut next = 1;
        let (mut endless, mut unseen, mut is_patient) = (None, 0_usize, false);
        loop {
            let frame = match endless {
                None => frames.recv().await,
                Some(_) if is_patient && unseen == limits::PAGES_IN_FLIGHT_MAX => {
                    frames.recv().await
                }
                Some(make) => {
                    let make: fn(DriveId, u64) -> Vec<u8> = make;
                    wire.write_all(&make(drive, next)).await?;
                    next += 1;
                    unseen += 1;
                    counts.pushed.fetch_add(1, Ordering::SeqCst);
                    // What the device says meanwhile is heard, but not waited for.
                    match frames.try_recv() {
                        Ok(frame) => Some(frame),
                        Err(_) => continue,
                    }
                }
            };
            let Some((kind, request, body)) = frame else { return Ok(()) };
            let now = script.lock().unwrap().clone();
            let answer = match kind {
                Hello::KIND => {
                    let time = Timestamp::default();
                    let program = "hostile".to_owned();
                    Some(encode(
                        request,
                        &HelloReply { protocol: 1, program, features: vec![], time },
                    ))
                }
                Resume::KIND => {
                    let drives = vec![DriveInfo {
                        id: drive,
                        name: "alice".into(),
                        lineage: now.lineage,
                        head: Rev(now.head),
                    }];
                    let admitted = Admitted {
                        user: UserId::from_bytes([1; 16]),
                        user_name: "alice".into(),
                        device,
                        device_name: "a".into(),
                        token: None,
                        drives,
                    };
                    Some(encode(request, &AuthReply { admitted: Some(admitted), question: None }))
                }
                Ping::KIND => Some(encode(request, &Done {})),
                PageSeen::KIND => {
                    unseen = unseen.saturating_sub(1);
                    None
                }
                Subscribe::KIND => {
                    let told = Subscribed {
                        lineage: now.lineage,
                        from: Rev::ZERO,
                        head: Rev(now.head),
                        usage: None,
                    };
                    wire.write_all(&encode(request, &told)).await?;
                    subscribed.store(true, Ordering::SeqCst);
                    counts.subscribed.fetch_add(1, Ordering::SeqCst);
                    for bytes in now.says.iter() {
                        wire.write_all(bytes).await?;
                    }
                    (endless, is_patient) = (now.endless, now.is_patient);
                    None
                }
                _ => {
                    counts.asked.fetch_add(1, Ordering::SeqCst);
                    let refusal =
                        Failure { code: FailureCode::Unavailable, message: "Not now".to_owned() };
                    (now.answers)(kind, request, &body).or_else(|| Some(encode(request, &refusal)))
                }
            };
            if let Some(answer) = answer {
                wire.write_all(&answer).await?;
            }
            wire.flush().await?;
        }
    };
    tokio::select! {
        ended = hearing => ended,
        ended = talking => ended,
    }
}

// The stage: an agent in a process of its own, a canary beside its folder.

/// Where the honest server was.
struct Spot {
    address: SocketAddr,
    identity: PathBuf,
    drive: DriveId,
    device: DeviceId,
}

struct Stage {
    machine: Machine,
    agent: Process,
    place: Spot,
    server_dir: Option<tempfile::TempDir>,
    config: picloud::server::config::Config,
    canary: BTreeMap<PathBuf, String>,
}

/// Everything about what is below a directory that anything done to it would change.
fn picture(root: &Path) -> BTreeMap<PathBuf, String> {
    let mut picture = BTreeMap::new();
    for entry in walkdir::WalkDir::new(root) {
        let entry = entry.unwrap();
        let meta = fs::symlink_metadata(entry.path()).unwrap();
        let bytes = if meta.is_file() { fs::read(entry.path()).unwrap() } else { vec![] };
        let what = format!(
            "{:o} {} {}.{} {}.{} {}",
            meta.mode(),
            meta.ino(),
            meta.mtime(),
            meta.mtime_nsec(),
            meta.ctime(),
            meta.ctime_nsec(),
            blake3::hash(&bytes).to_hex()
        );
        picture.insert(entry.path().to_owned(), what);
    }
    picture
}

/// Files with the names that the agent works with.
fn make_canary(root: &Path) {
    fs::create_dir_all(root.join("sub")).unwrap();
    for name in ["a", "b", "inside", "sub/a", "identity"] {
        fs::write(root.join(name), "SECRET of the canary").unwrap();
    }
}

impl Stage {
    /// An agent that has synced a file with an honest server, which is gone now.
    async fn set() -> Self {
        let server = Server::start().await;
        let machine = Machine::linked(&server, "a").await;
        make_canary(&machine.dir.path().join("canary"));
        let mut command = Command::new(env!("CARGO_BIN_EXE_picloud-agent"));
        command.arg("--config").arg(machine.config());
        command.env_remove("NOTIFY_SOCKET").env_remove("WATCHDOG_USEC");
        let agent = Process::spawn("the agent", command, &machine.dir.path().join("output"));
        let identity = picloud::agent::config::Config::load(&machine.config()).unwrap();
        let place = Spot {
            address: server.running.address(),
            identity: server.dir.path().join("identity.pem"),
            drive: identity.folders[0].drive,
            device: machine.device,
        };
        machine.write("mine", "a person's");
        let mut config = server.config.clone();
        config.server.listen = place.address;
        let mut stage = Self {
            canary: picture(&machine.dir.path().join("canary")),
            machine,
            agent,
            place,
            server_dir: Some(server.dir),
            config,
        };
        stage
            .until("in sync", |status| {
                status.state == State::InSync && status.folders[0].files == 1
            })
            .await;
        server.running.stop().await;
        stage
    }

    /// Asks the agent; the last line of its answer.
    fn ask(&self, request: &str, patience: Duration) -> Option<Reply> {
        let mut stream = picloud::agent::control::connect(&self.machine.socket()).ok()?;
        stream.set_read_timeout(Some(patience)).unwrap();
        stream.write_all(format!("{request}\n").as_bytes()).ok()?;
        let mut line = String::new();
        BufReader::new(stream).read_line(&mut line).ok()?;
        serde_json::from_str(&line).ok()
    }

    fn status(&self) -> Option<Status> {
        match self.ask(r#"{"type":"status"}"#, PATIENCE) {
            Some(Reply::Status(status)) => Some(status),
            _ => None,
        }
    }

    /// Cuts short whatever pause the agent makes before it connects again.
    fn connect_now(&self) {
        // Heard at once, answered when it is done: nobody waits for that.
        self.ask(r#"{"type":"sync"}"#, Duration::from_millis(20));
    }

    async fn until(&mut self, what: &str, is_so: impl Fn(&Status) -> bool) {
        let started = Instant::now();
        loop {
            self.agent.assert_running();
            let status = self.status();
            if status.as_ref().is_some_and(&is_so) {
                return;
            }
            if started.elapsed() > PATIENCE {
                let output = fs::read_to_string(self.machine.dir.path().join("output"));
                panic!("the agent is not {what}: {status:#?}\n{}", output.unwrap_or_default());
            }
            self.connect_now();
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    /// Waits until a count goes past a number, and has the agent connect meanwhile.
    async fn until_over(&mut self, count: &AtomicU64, number: u64, what: &str) {
        let started = Instant::now();
        while count.load(Ordering::SeqCst) <= number {
            self.agent.assert_running();
            assert!(started.elapsed() < PATIENCE, "it does not come to this: {what}");
            self.connect_now();
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// Seconds of processor time that the agent has taken.
    fn cpu(&self) -> f64 {
        let stat = fs::read_to_string(format!("/proc/{}/stat", self.agent.id())).unwrap();
        let fields: Vec<_> = stat.rsplit(") ").next().unwrap().split(' ').collect();
        let ticks = fields[11].parse::<f64>().unwrap() + fields[12].parse::<f64>().unwrap();
        ticks / 100.0
    }

    /// Waits until the agent does next to nothing.
    async fn until_calm(&mut self, what: &str) {
        let started = Instant::now();
        loop {
            let before = self.cpu();
            tokio::time::sleep(Duration::from_millis(500)).await;
            self.agent.assert_running();
            if self.cpu() - before < 0.15 {
                return;
            }
            assert!(started.elapsed() < PATIENCE, "the agent does not come to rest: {what}");
        }
    }

    fn assert_safe(&mut self, what: &str) {
        self.agent.assert_running();
        let root = self.machine.dir.path();
        assert_eq!(picture(&root.join("canary")), self.canary, "the canary is touched: {what}");
        let known = ["PiCloud", "canary", "output"];
        for entry in fs::read_dir(root).unwrap() {
            let name = entry.unwrap().file_name().into_string().unwrap();
            let is_ours =
                name.starts_with("agent.") || name.starts_with("credentials") || name == "state";
            assert!(is_ours || known.contains(&name.as_str()), "{name:?} appeared: {what}");
        }
        assert_eq!(self.machine.read("mine").unwrap(), b"a person's", "{what}");
        let status = fs::read_to_string(format!("/proc/{}/status", self.agent.id())).unwrap();
        let peak = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
        let peak: u64 = peak.trim().trim_end_matches(" kB").parse().unwrap();
        assert!(peak < AGENT_KIB_MAX, "the agent took {peak} KiB: {what}");
        println!("{peak:>8} KiB at most so far: {what}");
    }

    /// The honest server comes back: what is made on another device arrives, and nothing of a
    /// person's is gone.
    async fn assert_works(mut self) {
        let running = picloud::server::start(self.config.clone()).await.unwrap();
        let dir = self.server_dir.take().unwrap();
        let server = Server { dir, running, config: self.config.clone() };
        let mut other = server.join("alice", "other").await;
        other.create("from another device", b"all is well").await;
        let path = self.machine.path("from another device");
        let started = Instant::now();
        while fs::read(&path).ok().as_deref() != Some(b"all is well") {
            self.agent.assert_running();
            self.connect_now();
            assert!(
                started.elapsed() < PATIENCE,
                "the honest server is not heard: {:#?}",
                self.status()
            );
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        let root = self.machine.dir.path();
        assert_eq!(picture(&root.join("canary")), self.canary);
        assert_eq!(self.machine.read("mine").unwrap(), b"a person's");
        self.agent.terminate();
        server.running.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_no_honest_server_says_ends_the_connection_and_does_nothing() {
    let mut stage = Stage::set().await;
    let hostile = Hostile::start(&stage.place).await;
    let drive = stage.place.drive;
    let one = |node| encode(0, &page(drive, vec![node]));
    let changed = |change: &dyn Fn(&mut LoosePage)| {
        let mut page = page(drive, vec![node(NodeId::ROOT, b"x", LooseBody::Dir)]);
        change(&mut page);
        encode(0, &page)
    };
    let with_mode = |mode| one(LooseNode { attrs: mode, ..node(NodeId::ROOT, b"x", text(b"x")) });
    let mut deep = vec![0x81, 0xa1, b'x'];
    deep.extend([0x91].repeat(1 << 20));
    let mut lies: Vec<(&str, Vec<u8>)> = vec![
        ("the name ..", one(node(NodeId::ROOT, b"..", LooseBody::Dir))),
        ("the name .", one(node(NodeId::ROOT, b".", LooseBody::Dir))),
        ("no name", one(node(NodeId::ROOT, b"", LooseBody::Dir))),
        ("a name with slashes", one(node(NodeId::ROOT, b"../canary/new", text(b"x")))),
        ("an absolute name", one(node(NodeId::ROOT, b"/tmp/x", text(b"x")))),
        ("a name with NUL", one(node(NodeId::ROOT, b"a\0b", text(b"x")))),
        ("a long name", one(node(NodeId::ROOT, &[b'a'; 256], text(b"x")))),
        ("a set-user-id bit", with_mode(0o4755)),
        ("a file type in the mode", with_mode(0o120_777)),
        ("an empty link", one(node(NodeId::ROOT, b"x", link(b"")))),
        ("a link with NUL", one(node(NodeId::ROOT, b"x", link(b"a\0b")))),
        ("a long link", one(node(NodeId::ROOT, b"x", link(&[b'a'; 4096])))),
        ("a node in itself", one(node(id(1), b"x", LooseBody::Dir))),
        ("the root moved", changed(&|page| page.nodes[0].id = NodeId::ROOT)),
        (
            "the root deleted",
            changed(&|page| {
                page.nodes[0] = LooseVersioned { id: NodeId::ROOT, rev: 1, node: None };
            }),
        ),
        ("a rev past the page", changed(&|page| page.nodes[0].rev = 2)),
        ("the rev 0", changed(&|page| page.nodes[0].rev = 0)),
        (
            "revs that go back",
            changed(&|page| {
                page.nodes =
                    [2, 1].map(|rev| LooseVersioned { rev, ..page.nodes[0].clone() }).into();
                (page.upto, page.head) = (2, 2);
            }),
        ),
        ("an end before the beginning", changed(&|page| (page.from, page.upto) = (2, 1))),
        ("an end past the head", changed(&|page| page.head = 0)),
        (
            "a rev that overflows",
            changed(&|page| {
                (page.upto, page.head, page.nodes[0].rev) = (u64::MAX, u64::MAX, u64::MAX);
            }),
        ),
        (
            "a hole in the journal",
            changed(&|page| {
                (page.from, page.upto, page.head, page.nodes[0].rev) = (5, 6, 6, 6);
            }),
        ),
        ("another drive", changed(&|page| page.drive = DriveId::from_bytes([7; 16]))),
        (
            "more nodes than a page has",
            changed(&|page| {
                let nodes = (1..=10_000).map(|rev| LooseVersioned { rev, ..page.nodes[0].clone() });
                page.nodes = nodes.collect();
                (page.upto, page.head) = (10_000, 10_000);
            }),
        ),
        // Ten million nodes take more than a frame may: the header is enough.
        ("a frame over the limit", raw_frame(128, 0, b"")),
        ("a map without end", raw_frame(128, 0, b"\xdf\xff\xff\xff\xff\xa1")),
        ("a million lists in each other", raw_frame(128, 0, &deep)),
        ("a reply that nobody asked for", encode(77, &Done {})),
        (
            "a failure of the connection",
            encode(
                0,
                &Failure { code: FailureCode::Malformed, message: "\u{1b}[2Jno".repeat(1000) },
            ),
        ),
    ];
    let over = lies.iter_mut().find(|(what, _)| *what == "a frame over the limit").unwrap();
    over.1[..4].copy_from_slice(&330_000_000_u32.to_be_bytes());
    for (number, len) in [1 << 20 | 1, 0, u64::from(u32::MAX) + 1].into_iter().enumerate() {
        let content = LooseContent::Chunk { id: ChunkId::of(b"x"), len };
        let what = ["a chunk too long", "an empty chunk", "a chunk of gigabytes"][number];
        lies.push((what, one(node(NodeId::ROOT, b"x", holding(content)))));
    }
    for len in [0, 1 << 63] {
        let content = LooseContent::List { id: ListId::from_bytes([1; 32]), len };
        lies.push((
            "a list of an impossible length",
            one(node(NodeId::ROOT, b"x", holding(content))),
        ));
    }
    for (what, lie) in lies {
        let ended = hostile.counts.ended.load(Ordering::SeqCst);
        hostile.set(|script| {
            script.head = 10;
            script.says = Arc::new(vec![lie]);
        });
        // Once more than by the script before, which may be under way still.
        stage.until_over(&hostile.counts.ended, ended + 1, what).await;
        stage.assert_safe(what);
        assert_eq!(stage.machine.tree().len(), 1, "{what}: {:?}", stage.machine.tree());
    }
    hostile.stop().await;
    stage.assert_works().await;
}

/// Trees that cannot be, in pages that are well-formed each by itself.
fn impossible_trees(drive: DriveId, canary: &Path) -> Vec<(&'static str, Vec<LoosePage>)> {
    use std::os::unix::ffi::OsStrExt;
    let dir = |parent: u8, name: &str| {
        let parent = if parent == 0 { NodeId::ROOT } else { id(parent) };
        node(parent, name.as_bytes(), LooseBody::Dir)
    };
    let file = |parent: u8, name: &str| {
        let parent = if parent == 0 { NodeId::ROOT } else { id(parent) };
        node(parent, name.as_bytes(), holding(LooseContent::Empty))
    };
    let to = |target: &[u8], name: &str| node(NodeId::ROOT, name.as_bytes(), link(target));
    let absolute = canary.as_os_str().as_bytes();
    let one = |nodes| vec![page(drive, nodes)];
    // A directory with a file in it; then the directory turns into a link, and the file is edited.
    let mut turned = page(drive, vec![dir(0, "turns"), file(1, "a")]);
    turned.nodes[0].rev = 3;
    turned.nodes[0].node = Some(to(absolute, "turns"));
    turned.nodes[1].rev = 4;
    turned.nodes[1].node = Some(node(id(1), b"b", holding(LooseContent::Empty)));
    (turned.from, turned.upto, turned.head) = (2, 4, 4);
    let mut honest = page(drive, vec![dir(0, "turns"), file(1, "a")]);
    honest.head = 4;
    honest.consistent = true;
    vec![
        (
            "PiCloud's own directory",
            one(vec![dir(0, ".picloud"), file(1, "identity"), dir(1, "trash"), file(3, "a")]),
        ),
        (
            "a file as a parent",
            one(vec![file(0, "file"), file(1, "inside"), dir(1, "sub"), file(3, "a")]),
        ),
        ("unknown parents", one(vec![file(200, "a"), dir(201, "b"), file(2, "c")])),
        ("a cycle", one(vec![dir(2, "one"), dir(1, "two"), file(2, "a")])),
        ("a long cycle", one((1..=100).map(|n| dir(n % 100 + 1, "round")).collect())),
        (
            "two nodes of one name",
            one(vec![
                dir(0, "same"),
                file(0, "same"),
                to(b"x", "same"),
                file(1, "a"),
                file(2, "a"),
            ]),
        ),
        (
            "things inside a link up",
            one(vec![to(b"../canary", "up"), file(1, "inside"), dir(1, "sub"), file(3, "a")]),
        ),
        (
            "things inside an absolute link",
            one(vec![to(absolute, "out"), file(1, "inside"), dir(1, "new")]),
        ),
        (
            "a link to the root of all",
            one(vec![to(b"/", "all"), dir(1, "tmp"), file(2, "picloud-hostile")]),
        ),
        ("a directory that turns into a link", vec![honest, turned]),
        ("a name for a terminal", one(vec![file(0, "\u{1b}[2J\r\n\u{202e}txt")])),
    ]
}

#[tokio::test(flavor = "multi_thread")]
async fn impossible_trees_touch_nothing_outside_and_come_to_rest() {
    let mut stage = Stage::set().await;
    let hostile = Hostile::start(&stage.place).await;
    let trees = impossible_trees(stage.place.drive, &stage.machine.dir.path().join("canary"));
    for (number, (what, pages)) in (1..).zip(trees) {
        hostile.set(|script| {
            // A history of its own each time: the agent compares everything anew.
            script.lineage = Lineage::from_bytes([number; 16]);
            script.head = pages.last().unwrap().head;
            script.says = Arc::new(pages.iter().map(|page| encode(0, page)).collect());
        });
        hostile.next_round(&mut stage, what).await;
        stage.until_calm(what).await;
        stage.assert_safe(what);
        assert!(!Path::new("/tmp/picloud-hostile").exists());
    }
    hostile.stop().await;
    stage.assert_works().await;
}

/// What the agent asks for and does not get, or gets otherwise.
#[tokio::test(flavor = "multi_thread")]
async fn contents_that_are_not_what_they_claim_are_never_put_in_place() {
    let mut stage = Stage::set().await;
    let hostile = Hostile::start(&stage.place).await;
    let drive = stage.place.drive;
    let wanted = |content| vec![node(NodeId::ROOT, b"lie", holding(content))];
    let chunk = |len| LooseContent::Chunk { id: ChunkId::of(b"true"), len };
    let whole = ContentList::new(vec![Extent::Hole { len: Content::LEN_MAX }]).unwrap();
    let list = |len| LooseContent::List { id: ListId::from_bytes([5; 32]), len };
    type Answers = fn(u8, u32, &[u8]) -> Option<Vec<u8>>;
    let other_bytes: Answers = |kind, request, body| {
        let asked: GetChunks = rmp_serde::from_slice(body).ok()?;
        let lie = |id: &ChunkId| ChunkData {
            id: *id,
            plain_len: 4,
            codec: Codec::Plain,
            data: b"lies".to_vec(),
        };
        let chunks = asked.chunks.iter().map(lie).collect();
        (kind == GetChunks::KIND).then(|| encode(request, &Chunks { chunks, absent: vec![] }))
    };
    let bombs: Answers = |kind, request, body| {
        let asked: GetChunks = rmp_serde::from_slice(body).ok()?;
        let data = zstd::bulk::compress(&vec![0; 256 << 20], 1).unwrap();
        let bomb = |id: &ChunkId| ChunkData {
            id: *id,
            plain_len: 1 << 20,
            codec: Codec::Zstd,
            data: data.clone(),
        };
        let chunks = asked.chunks.iter().map(bomb).collect();
        (kind == GetChunks::KIND).then(|| encode(request, &Chunks { chunks, absent: vec![] }))
    };
    let unasked: Answers = |kind, request, _| {
        let bytes = b"unasked".to_vec();
        let chunk =
            ChunkData { id: ChunkId::of(&bytes), plain_len: 7, codec: Codec::Plain, data: bytes };
        let chunks = vec![chunk; 1000];
        (kind == GetChunks::KIND).then(|| encode(request, &Chunks { chunks, absent: vec![] }))
    };
    let other_kind: Answers = |_, request, _| Some(encode(request, &Done {}));
    let gigabytes: Answers = |kind, request, _| {
        let part = ListPart { total: u64::MAX, data: vec![0; 1 << 20] };
        (kind == GetList::KIND).then(|| encode(request, &part))
    };
    let nothing: Answers = |kind, request, _| {
        let part = ListPart { total: 1 << 20, data: vec![] };
        (kind == GetList::KIND).then(|| encode(request, &part))
    };
    // As long as a list may be, but of another id: all of it is read, and then refused.
    let other_list: Answers = |kind, request, body| {
        let asked: GetList = rmp_serde::from_slice(body).ok()?;
        let part = ListPart { total: limits::LIST_LEN_MAX as u64, data: vec![1; 1 << 20] };
        (kind == GetList::KIND && asked.offset < limits::LIST_LEN_MAX as u64)
            .then(|| encode(request, &part))
    };
    let holes: Answers = |kind, request, _| {
        let whole = ContentList::new(vec![Extent::Hole { len: Content::LEN_MAX }]).unwrap();
        let data = whole.encode();
        let part = ListPart { total: data.len() as u64, data };
        (kind == GetList::KIND).then(|| encode(request, &part))
    };
    let cases: [(&str, LooseContent, Answers); 9] = [
        ("other bytes", chunk(4), other_bytes),
        ("other bytes of a larger file", chunk(1 << 20), other_bytes),
        ("a bomb", chunk(1 << 20), bombs),
        ("chunks that nobody asked for", chunk(4), unasked),
        ("another kind of answer", chunk(4), other_kind),
        ("a list without end", list(1 << 40), gigabytes),
        ("a list of nothing", list(1 << 40), nothing),
        ("another list", list(1 << 40), other_list),
        (
            "a file of eight exbibytes",
            LooseContent::List { id: whole.id(), len: Content::LEN_MAX },
            holes,
        ),
    ];
    for (number, (what, content, answers)) in (1..).zip(cases) {
        let asked = hostile.counts.asked.load(Ordering::SeqCst);
        hostile.set(|script| {
            script.lineage = Lineage::from_bytes([number; 16]);
            script.head = 1;
            script.says = Arc::new(vec![encode(0, &page(drive, wanted(content)))]);
            script.answers = answers;
        });
        hostile.next_round(&mut stage, what).await;
        stage.until_over(&hostile.counts.asked, asked, what).await;
        stage.until_calm(what).await;
        stage.assert_safe(what);
        if number < 9 {
            assert_eq!(stage.machine.read("lie"), None, "{what}");
        }
    }
    // Whether a disk can hold eight exbibytes of nothing is its own affair; it need not read them.
    fs::remove_file(stage.machine.path("lie")).ok();
    hostile.stop().await;
    stage.assert_works().await;
}

/// A page of 512 nodes, or the like, that follows the one before.
fn endless_page(drive: DriveId, number: u64) -> Vec<u8> {
    let first = (number - 1) * 512;
    let nodes = (first + 1..=first + 512).map(|rev| {
        let mut bytes = [0xee; 16];
        bytes[8..].copy_from_slice(&rev.to_be_bytes());
        let name = format!("{rev:0>200}");
        let node = node(id(200), name.as_bytes(), text(b"never asked for"));
        LooseVersioned { id: NodeId::from_bytes(bytes), rev, node: Some(node) }
    });
    let noise = agent_support::noise(number, 1 << 20);
    let chunk =
        ChunkData { id: ChunkId::of(&noise), plain_len: 1 << 20, codec: Codec::Plain, data: noise };
    let page = LoosePage {
        drive,
        from: first,
        upto: first + 512,
        head: 1 << 40,
        consistent: false,
        nodes: nodes.collect(),
        chunks: vec![chunk],
    };
    encode(0, &page)
}

#[tokio::test(flavor = "multi_thread")]
async fn an_endless_journal_is_taken_in_bounded_memory() {
    let mut stage = Stage::set().await;
    let hostile = Hostile::start(&stage.place).await;
    hostile.set(|script| {
        script.head = 1 << 40;
        script.endless = Some(endless_page);
    });
    hostile.next_round(&mut stage, "an endless journal").await;
    stage.until_over(&hostile.counts.pushed, 150, "an endless journal").await;
    stage.assert_safe("150 pages of an endless journal");
    hostile.set(|script| script.is_patient = true);
    let pushed = hostile.counts.pushed.load(Ordering::SeqCst);
    hostile.next_round(&mut stage, "an endless journal, page by page").await;
    stage
        .until_over(&hostile.counts.pushed, pushed + 200, "an endless journal, page by page")
        .await;
    stage.assert_safe("200 more, page by page");
    let status = stage.status().unwrap();
    assert_ne!(status.state, State::InSync, "{status:#?}");
    hostile.stop().await;
    stage.assert_works().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_says_nothing_is_given_up() {
    let mut stage = Stage::set().await;
    let listener = TcpListener::bind(stage.place.address).await.unwrap();
    stage.connect_now();
    let (mut silent, _) =
        tokio::time::timeout(PATIENCE, listener.accept()).await.expect("the agent comes").unwrap();
    // What the agent says is heard, up to its end.
    let mut heard = Vec::new();
    let hearing = silent.read_to_end(&mut heard);
    tokio::time::timeout(PATIENCE, hearing).await.expect("the agent gives up").unwrap();
    stage.assert_safe("a silent server");
    drop((silent, listener));
    stage.assert_works().await;
}

/// A server whose disk hangs, say: it lets devices in, answers pings and tells its journal, and leaves
/// every other request without an answer. Neither the agent nor a command waits for it for ever.
#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_answers_pings_and_nothing_else_is_given_up() {
    let mut stage = Stage::set().await;
    let hostile = Hostile::start(&stage.place).await;
    hostile.set(|script| script.answers = |_, _, _| Some(Vec::new()));
    let subscribed = &hostile.counts.subscribed;
    stage.until_over(subscribed, 0, "a session with a server that answers nothing").await;
    let before = subscribed.load(Ordering::SeqCst);
    stage.machine.write("more", "to be sent");
    let mut command = Command::new(env!("CARGO_BIN_EXE_picloud"));
    command.arg("--config").arg(stage.machine.config()).arg("ls");
    let started = Instant::now();
    let listing = tokio::task::spawn_blocking(move || command.output().unwrap());
    // Until a request has arrived for certain, until it has waited for long enough, and some more.
    let most = Duration::from_secs(2 * limits::KEEPALIVE_SECS + limits::ANSWER_SECS) + PATIENCE;
    let why = "The server answers no requests: one got nothing for 60 seconds";
    loop {
        let status = stage.status().unwrap();
        let folder = &status.folders[0];
        if status.state == State::Offline && folder.offline.as_deref() == Some(why) {
            break;
        }
        assert!(started.elapsed() < most, "the agent waits for ever: {status:#?}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    let listed = listing.await.unwrap();
    assert!(started.elapsed() < most);
    let stderr = String::from_utf8_lossy(&listed.stderr);
    assert_eq!(listed.status.code(), Some(4), "{stderr}");
    assert!(stderr.contains(why), "{stderr}");
    // It tries again, and tells no more than it knows: nothing was answered yet.
    stage.until_over(subscribed, before, "another try").await;
    let status = stage.status().unwrap();
    assert_eq!(status.state, State::Offline, "{status:#?}");
    stage.assert_safe("a server that answers pings");
    hostile.stop().await;
    stage.assert_works().await;
}

/// Swaps a directory for a link out of the folder and back, as fast as it can, while another device
/// creates, edits and deletes in it.
#[tokio::test(flavor = "multi_thread")]
async fn no_race_with_a_link_leads_out_of_the_folder() {
    let server = Server::start().await;
    let a = Machine::join(&server, "a").await;
    let b = Machine::join(&server, "b").await;
    let canary = b.dir.path().join("canary");
    make_canary(&canary);
    let before = picture(&canary);
    for number in 0..20 {
        a.write(&format!("swapped/sub/{number}"), format!("first {number}"));
    }
    a.write("swapped/a", "first a");
    settle(&[&a, &b]).await;

    let (dir, aside) = (b.path("swapped"), b.dir.path().join("aside"));
    symlink(&canary, &aside).unwrap();
    let exchange = {
        let (dir, aside) = (dir.clone(), aside.clone());
        move || {
            use rustix::fs::{CWD, RenameFlags, renameat_with};
            renameat_with(CWD, &dir, CWD, &aside, RenameFlags::EXCHANGE).is_ok()
        }
    };
    let stop = Arc::new(AtomicBool::new(false));
    let stopped = Arc::clone(&stop);
    let swapping = std::thread::spawn(move || {
        let mut swaps = 0_u64;
        let mut is_out = false;
        while !stopped.load(Ordering::Relaxed) || is_out {
            if exchange() {
                is_out = !is_out;
                swaps += 1;
            }
            if swaps.is_multiple_of(64) {
                std::thread::sleep(Duration::from_micros(300));
            }
        }
        swaps
    });
    for round in 0..12 {
        for number in 0..20 {
            let at = a.path(&format!("swapped/sub/{number}"));
            match (round + number) % 3 {
                0 => drop(fs::remove_file(at)),
                _ => a.write(&format!("swapped/sub/{number}"), format!("{round} {number}")),
            }
            a.write(&format!("swapped/new {round} {number}"), "n");
        }
        // The names that the canary has, too.
        for name in ["a", "b", "inside", "sub/a", "identity"] {
            a.write(&format!("swapped/{name}"), format!("{round} of a"));
        }
        if round % 4 == 3 {
            for name in ["a", "b", "inside", "sub/a", "identity"] {
                drop(fs::remove_file(a.path(&format!("swapped/{name}"))));
            }
        }
        a.sync().await;
        tokio::time::timeout(Duration::from_millis(700), b.agent.as_ref().unwrap().sync())
            .await
            .ok();
        assert_eq!(picture(&canary), before, "round {round}");
    }
    stop.store(true, Ordering::Relaxed);
    let swaps = swapping.join().unwrap();
    assert!(swaps > 1000, "only {swaps} swaps");
    settle(&[&a, &b]).await;
    assert_eq!(picture(&canary), before);
    // Nor was anything read from there: no file of any device has the canary's bytes.
    for machine in [&a, &b] {
        let secret = blake3::hash(b"SECRET of the canary").to_hex().to_string();
        let leaked: Vec<_> =
            machine.tree().into_iter().filter(|(_, what)| what.contains(&secret)).collect();
        assert_eq!(leaked, [], "{} has read the canary", machine.name);
    }
    println!("{swaps} swaps");
}
