//! Clients that break the protocol on purpose. Each gets an error or a closed connection, and a
//! well-behaved device beside them notices nothing.

#![allow(clippy::unwrap_used, reason = "a test ends where something fails")]

mod server_support;

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;

use picloud::model::*;
use picloud::protocol::message::*;
use picloud::protocol::{EncodedFrame, limits};
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{ClientConfig, DigitallySignedStruct, SignatureScheme};
use server_support::*;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

/// Trusts everybody: this client is the danger, not the server.
#[derive(Debug)]
struct Reckless;

impl ServerCertVerifier for Reckless {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn verify_tls13_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        rustls::crypto::ring::default_provider()
            .signature_verification_algorithms
            .supported_schemes()
    }
}

/// A raw TLS socket that speaks whatever it is told to.
struct Raw(TlsStream<TcpStream>);

impl Raw {
    async fn open(address: SocketAddr) -> Self {
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let mut config = ClientConfig::builder_with_provider(provider)
            .with_protocol_versions(&[&rustls::version::TLS13])
            .unwrap()
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(Reckless))
            .with_no_client_auth();
        config.alpn_protocols = vec![b"picloud/1".to_vec()];
        let tcp = TcpStream::connect(address).await.unwrap();
        let name = ServerName::try_from("localhost").unwrap();
        Self(TlsConnector::from(Arc::new(config)).connect(name, tcp).await.unwrap())
    }

    /// Says hello as an honest client does.
    async fn hello(address: SocketAddr) -> Self {
        let mut raw = Self::open(address).await;
        let hello = Hello { protocol: 1, program: "raw".into(), features: vec![] };
        raw.send(1, &hello).await;
        assert_eq!(raw.frame().await.unwrap().0, 64);
        raw
    }

    /// Comes in as a device that was admitted before.
    async fn resume(address: SocketAddr, device: &Device) -> Self {
        let mut raw = Self::hello(address).await;
        let resume = Resume { device: device.admitted.device, token: device.token.clone() };
        raw.send(2, &resume).await;
        assert_eq!(raw.frame().await.unwrap().0, 65);
        raw
    }

    async fn send<M: Message>(&mut self, request: u32, message: &M) {
        let frame = EncodedFrame::new(request, message, limits::BODY_LEN_MAX).unwrap();
        self.bytes(frame.as_bytes()).await;
    }

    /// Sends bytes; the server may have closed already, which is an answer too.
    async fn bytes(&mut self, bytes: &[u8]) {
        self.0.write_all(bytes).await.unwrap_or_default();
        self.0.flush().await.unwrap_or_default();
    }

    async fn raw_frame(&mut self, kind: u8, body: &[u8]) {
        let len = u32::try_from(body.len()).unwrap();
        let mut frame = len.to_be_bytes().to_vec();
        frame.push(kind);
        frame.extend_from_slice(&7_u32.to_be_bytes());
        frame.extend_from_slice(body);
        self.bytes(&frame).await;
    }

    /// Reads kind, request and body of the next frame; nothing at the end.
    async fn frame(&mut self) -> io::Result<(u8, u32, Vec<u8>)> {
        let reading = async {
            let mut header = [0; limits::HEADER_LEN];
            self.0.read_exact(&mut header).await?;
            let [a, b, c, d, kind, e, f, g, h] = header;
            let mut body = vec![0; u32::from_be_bytes([a, b, c, d]) as usize];
            self.0.read_exact(&mut body).await?;
            Ok((kind, u32::from_be_bytes([e, f, g, h]), body))
        };
        timeout(PATIENCE, reading).await.expect("an answer in time")
    }

    /// Reads the failure that answers.
    async fn failure(&mut self) -> FailureCode {
        let (kind, _, body) = self.frame().await.unwrap();
        assert_eq!(kind, 255, "a failure");
        rmp_serde::from_slice::<Failure>(&body).unwrap().code
    }

    /// Waits until the server closes, whatever it says before.
    async fn closed(&mut self) {
        while self.frame().await.is_ok() {}
    }
}

/// What a well-behaved device does beside all this.
struct Bystander(Device, usize);

impl Bystander {
    async fn new(server: &Server) -> Self {
        Self(server.join("bystander", "calm").await, 0)
    }

    async fn works(&mut self) {
        self.1 += 1;
        self.0.create(&format!("file {}", self.1), b"undisturbed").await;
    }
}

#[tokio::test]
async fn garbage_before_the_hello_closes_the_connection() {
    let server = Server::start().await;
    let mut bystander = Bystander::new(&server).await;
    let address = server.running.address();
    // Not even TLS.
    let mut plain = TcpStream::connect(address).await.unwrap();
    plain.write_all(b"GET / HTTP/1.1\r\n\r\n").await.unwrap();
    let mut rest = Vec::new();
    timeout(PATIENCE, plain.read_to_end(&mut rest)).await.unwrap().unwrap_or_default();
    for garbage in [
        &b"\xff\xff\xff\xff\x01\0\0\0\x01"[..],
        b"\0\0\0\x01\x01\0\0\0\x01\xc1",
        b"\0\0\0\x01\x07\0\0\0\x01\x80",
        &[0; 4096],
    ] {
        let mut raw = Raw::open(address).await;
        raw.bytes(garbage).await;
        raw.closed().await;
        bystander.works().await;
    }
}

#[tokio::test]
async fn a_guest_gets_nothing_but_a_log_in() {
    let server = Server::start().await;
    let mut bystander = Bystander::new(&server).await;
    let address = server.running.address();
    let mut raw = Raw::hello(address).await;
    let drive = bystander.0.drive;
    raw.send(3, &ListDevices {}).await;
    assert_eq!(raw.failure().await, FailureCode::Unauthenticated);
    raw.send(4, &HasList { drive, list: ListId::from_bytes([0; 32]) }).await;
    assert_eq!(raw.failure().await, FailureCode::Unauthenticated);
    raw.send(5, &Answer { answer: "000000".into() }).await;
    assert_eq!(raw.failure().await, FailureCode::Unauthenticated);
    let resume = Resume { device: bystander.0.admitted.device, token: vec![0; 32] };
    raw.send(6, &resume).await;
    assert_eq!(raw.failure().await, FailureCode::Unauthenticated);
    // A guest's frames are short.
    let mut raw = Raw::hello(address).await;
    let len = u32::try_from(limits::BODY_LEN_MAX_GUEST + 1).unwrap();
    raw.bytes(&[&len.to_be_bytes()[..], &[2, 0, 0, 0, 9]].concat()).await;
    raw.closed().await;
    // And so is its patience with wrong tries.
    let mut raw = Raw::hello(address).await;
    for _ in 0..20 {
        raw.send(3, &ListDevices {}).await;
    }
    raw.closed().await;
    bystander.works().await;
}

#[tokio::test]
async fn malformed_and_oversized_messages_of_a_member_are_answered_and_then_closed() {
    let server = Server::start().await;
    let mut bystander = Bystander::new(&server).await;
    let mallory = server.join("mallory", "bad").await;
    let address = server.running.address();
    let mut raw = Raw::resume(address, &mallory).await;
    raw.raw_frame(200, b"\x80").await;
    assert_eq!(raw.failure().await, FailureCode::Malformed, "a kind nobody knows");
    raw.raw_frame(10, b"\x80").await;
    assert_eq!(raw.failure().await, FailureCode::Malformed, "an empty commit");
    raw.send(9, &mallory_hello()).await;
    assert_eq!(raw.failure().await, FailureCode::Malformed, "a second hello");
    raw.send(9, &Resume { device: mallory.admitted.device, token: vec![] }).await;
    assert_eq!(raw.failure().await, FailureCode::Malformed, "a second log-in");
    // Path tricks: such a name cannot even be decoded.
    for bad in ["..", ".", "a/b", "", "a\0b"] {
        raw.raw_frame(10, &commit_with_name(&mallory, bad)).await;
        assert_eq!(raw.failure().await, FailureCode::Malformed, "{bad:?}");
    }
    raw.raw_frame(10, &commit_with_name(&mallory, "fine")).await;
    assert_eq!(raw.frame().await.unwrap().0, 68, "the trick was in the name alone");
    // A field that nobody knows, of lists in each other: they are not followed down.
    let deep = [&b"\x81\xa1x"[..], &[0x91; 50_000], b"\xc0"].concat();
    for kind in [10, 12, 16] {
        raw.raw_frame(kind, &deep).await;
        assert_eq!(raw.failure().await, FailureCode::Malformed, "kind {kind}");
    }
    for _ in 0..20 {
        raw.raw_frame(10, b"\xc1").await;
    }
    raw.closed().await;
    // A frame over the limit is not even read, and a cut one is an end.
    let mut raw = Raw::resume(address, &mallory).await;
    raw.bytes(b"\x7f\xff\xff\xff\x0a\0\0\0\x09").await;
    raw.closed().await;
    let mut raw = Raw::resume(address, &mallory).await;
    raw.bytes(b"\0\0\x10\0\x0a\0\0\0\x09half").await;
    raw.0.shutdown().await.unwrap();
    raw.closed().await;
    bystander.works().await;
}

fn mallory_hello() -> Hello {
    Hello { protocol: 1, program: String::new(), features: vec![] }
}

/// A commit of one directory, with a name that our own types would not let us write.
fn commit_with_name(device: &Device, bad: &str) -> Vec<u8> {
    let placeholder = "fine";
    let mut bytes = *device.admitted.device.as_bytes();
    bytes[0] = 1;
    let commit = Commit {
        drive: device.drive,
        changes: vec![create(NodeId::from_bytes(bytes), dir(NodeId::ROOT, placeholder))],
        chunks: vec![],
        deletions: None,
    };
    let wire = rmp_serde::to_vec_named(&commit).unwrap();
    let name = [&b"\xc4\x04"[..], placeholder.as_bytes()].concat();
    let at = wire.windows(name.len()).position(|window| window == name).unwrap();
    let len = u8::try_from(bad.len()).unwrap();
    let tricky = [&[0xc4, len], bad.as_bytes()].concat();
    [&wire[..at], &tricky, &wire[at + name.len()..]].concat()
}

#[tokio::test]
async fn a_drive_of_another_user_is_not_there_whatever_is_asked() {
    let server = Server::start().await;
    let mut bystander = Bystander::new(&server).await;
    bystander.works().await;
    let mut mallory = server.join("mallory", "bad").await;
    let drive = bystander.0.drive;
    let connection = mallory.connection.clone();
    let list = ListId::from_bytes([1; 32]);
    let known = ChunkId::of(b"undisturbed");
    let batch = BatchId { first: Rev(1), last: Rev(1) };
    let node = create(mallory.id(), dir(NodeId::ROOT, "x"));
    macro_rules! refused {
        ($($request:expr),* $(,)?) => {
            $(assert_eq!(code(connection.call(&$request).await), FailureCode::NotFound);)*
        };
    }
    refused!(
        Subscribe {
            drive,
            cursor: Rev(0),
            lineage: None,
            inline_len_max: 0,
            takes_over: false,
            coming: false,
        },
        Commit { drive, changes: vec![node], chunks: vec![], deletions: None },
        FindMissing { drive, chunks: vec![known] },
        PutChunks { drive, chunks: vec![] },
        PutList { drive, list, offset: 0, last: true, data: vec![] },
        HasList { drive, list },
        GetList { drive, list, offset: 0 },
        GetChunks { drive, chunks: vec![known] },
        GetSums { drive, bases: vec![vec![known]] },
        GetDeltas { drive, wanted: vec![WantedDelta { chunk: known, base: vec![] }] },
        PutDeltas { drive, deltas: vec![] },
        GetSplice { drive, list, base: list },
        PutSplice { drive, list, base: list, splice: vec![] },
        Lookup { drive, path: RelPath::parse(b"file 1").unwrap() },
        ListDir { drive, dir: NodeId::ROOT, after: None },
        ListHeld { drive },
        ApproveHeld { drive, device: bystander.0.admitted.device },
        RejectHeld { drive, device: bystander.0.admitted.device },
        ListBatches { drive, upto: None, count: 100 },
        UndoBatch { drive, batch, dry_run: false, approved: true },
    );
    bystander.works().await;
}

#[tokio::test]
async fn knowing_a_hash_gives_no_right_to_the_bytes() {
    let server = Server::start().await;
    let mut bystander = Bystander::new(&server).await;
    bystander.works().await;
    let mut mallory = server.join("mallory", "bad").await;
    let known = ChunkId::of(b"undisturbed");
    let drive = mallory.drive;
    let find = FindMissing { drive, chunks: vec![known] };
    assert_eq!(mallory.connection.call(&find).await.unwrap().chunks, [known]);
    let get = GetChunks { drive, chunks: vec![known] };
    let got = mallory.connection.call(&get).await.unwrap();
    assert!(got.chunks.is_empty() && got.absent == [known]);
    let sums = mallory.connection.call(&GetSums { drive, bases: vec![vec![known]] }).await.unwrap();
    assert_eq!(sums.sums, [BlockSums::NONE]);
    let mine = PutChunks { drive, chunks: vec![chunk(b"my own")] };
    mallory.connection.call(&mine).await.unwrap();
    let wanted = |chunk, base| vec![WantedDelta { chunk, base: vec![base] }];
    let get = GetDeltas { drive, wanted: wanted(known, ChunkId::of(b"my own")) };
    let got = mallory.connection.call(&get).await.unwrap();
    assert!(got.chunks.is_empty() && got.deltas.is_empty() && got.absent == [known]);
    // A delta that copies all of the base would make it the drive's own.
    let steps = [&1_u32.to_be_bytes()[..], &[0; 4], &11_u32.to_be_bytes(), &[0; 4]].concat();
    let delta = ChunkDelta { id: known, plain_len: 11, base: vec![known], steps: chunk(&steps) };
    let put = PutDeltas { drive, deltas: vec![delta.clone()] };
    assert_eq!(code(mallory.connection.call(&put).await), FailureCode::NotFound);
    // Where the drive has the base, the same delta is as good as the chunk.
    let its_own = PutDeltas { drive: bystander.0.drive, deltas: vec![delta] };
    bystander.0.connection.call(&its_own).await.unwrap();
    let id = mallory.id();
    let stolen = create(id, file(NodeId::ROOT, "stolen", b"undisturbed"));
    let committed = mallory.commit(vec![stolen.clone()], vec![]).await;
    let missing = Refusal::MissingContent { chunk: Some(known) };
    assert_eq!(committed.results, [ChangeResult::Refused(missing)]);
    // Whoever has the bytes may of course put them.
    let committed = mallory.commit(vec![stolen], vec![chunk(b"undisturbed")]).await;
    assert_eq!(revs(&committed), [1]);
}

/// Everything that a member can do in its own drive with what is another's: nodes, lists, devices.
#[tokio::test]
async fn another_drive_is_of_no_use_in_ones_own() {
    let server = Server::start().await;
    let mut bystander = Bystander::new(&server).await;
    let (theirs, their_rev) = bystander.0.create("theirs", b"undisturbed").await;
    let their_chunk = ChunkId::of(b"undisturbed");
    let extents = vec![Extent::Chunk { id: their_chunk, len: 11 }, Extent::Hole { len: 1 << 20 }];
    let their_list = ContentList::new(extents).unwrap();
    let (list, encoded) = (their_list.id(), their_list.encode());
    let their_drive = bystander.0.drive;
    let put = PutList { drive: their_drive, list, offset: 0, last: true, data: encoded.clone() };
    bystander.0.connection.call(&put).await.unwrap();

    let mut mallory = server.join("mallory", "bad").await;
    let (drive, connection) = (mallory.drive, mallory.connection.clone());
    // Their list: not there, not to be read, and not to be put without its chunks.
    assert!(!connection.call(&HasList { drive, list }).await.unwrap().present);
    let get = GetList { drive, list, offset: 0 };
    assert_eq!(code(connection.call(&get).await), FailureCode::NotFound);
    let put = PutList { drive, list, offset: 0, last: true, data: encoded };
    assert_eq!(code(connection.call(&put).await), FailureCode::NotFound);
    let mut stolen = file(NodeId::ROOT, "stolen", b"x");
    let content = Content::List { id: list, len: their_list.len() };
    stolen.body = Body::File { content, mtime: Timestamp::default() };
    let (a, b, c) = (mallory.id(), mallory.id(), mallory.id());
    let refused = |refusal| ChangeResult::Refused(refusal);
    // Their nodes: no parents, nothing to change, and their ids say nothing of them.
    let changes = vec![
        create(a, stolen),
        create(b, dir(theirs, "inside")),
        rename(theirs, their_rev, NodeId::ROOT, "renamed"),
        delete(theirs, their_rev),
        create(c, dir(NodeId::ROOT, "fine")),
    ];
    let committed = mallory.commit(changes, vec![]).await;
    let unknown = Refusal::Stale { current: Rev::ZERO };
    assert_eq!(
        committed.results,
        [
            refused(Refusal::MissingContent { chunk: None }),
            refused(Refusal::NoParent),
            refused(unknown.clone()),
            refused(unknown),
            ChangeResult::Accepted { rev: Rev(1) },
        ]
    );
    let entries = ListDir { drive, dir: theirs, after: None };
    match connection.call(&entries).await {
        Ok(reply) => assert_eq!(reply.entries, []),
        Err(error) => assert_eq!(code::<()>(Err(error)), FailureCode::NotFound),
    }
    let device = bystander.0.admitted.device;
    assert_eq!(code(connection.call(&RevokeDevice { device }).await), FailureCode::NotFound);
    let devices = connection.call(&ListDevices {}).await.unwrap().devices;
    assert!(devices.iter().all(|other| other.id != device));
    // A node of the same id is another node: theirs stays as it is.
    let same = create(theirs, file(NodeId::ROOT, "same id", b"undisturbed"));
    mallory.commit(vec![same], vec![chunk(b"undisturbed")]).await;
    let lookup = Lookup { drive: their_drive, path: RelPath::parse(b"theirs").unwrap() };
    let found = bystander.0.connection.call(&lookup).await.unwrap().node.unwrap();
    assert_eq!((found.id, found.rev), (theirs, their_rev));
    assert_eq!(found.node.unwrap(), file(NodeId::ROOT, "theirs", b"undisturbed"));
    // What has no reply ends the connection.
    connection.notify(&PageSeen { drive: their_drive, upto: Rev::MAX }).await.unwrap();
    let end = timeout(PATIENCE, connection.closed()).await.unwrap();
    assert_eq!(end.code(), Some(FailureCode::NotFound));
    bystander.works().await;
}

#[tokio::test]
async fn lying_contents_are_refused_and_store_nothing() {
    let server = Server::start().await;
    let mut bystander = Bystander::new(&server).await;
    let mut mallory = server.join("mallory", "bad").await;
    let drive = mallory.drive;
    let honest = chunk(b"honest");
    let mut wrong_id = honest.clone();
    wrong_id.id = ChunkId::of(b"other");
    let mut wrong_len = honest.clone();
    wrong_len.plain_len = 7;
    let mut no_zstd = honest.clone();
    no_zstd.codec = Codec::Zstd;
    let zeros = vec![0; 1024 * 1024];
    let bomb = ChunkData {
        id: ChunkId::of(&zeros),
        plain_len: 1000,
        codec: Codec::Zstd,
        data: zstd::bulk::compress(&zeros, 1).unwrap(),
    };
    let huge = ChunkData { plain_len: u32::MAX, ..bomb.clone() };
    for lie in [wrong_id, wrong_len, no_zstd, bomb, huge] {
        let chunks = vec![honest.clone(), lie];
        let refused = mallory.connection.call(&PutChunks { drive, chunks }).await;
        assert_eq!(code(refused), FailureCode::Malformed);
    }
    let find = FindMissing { drive, chunks: vec![honest.id] };
    assert_eq!(mallory.connection.call(&find).await.unwrap().chunks, [honest.id]);
    // Lists: not the one named, not canonical, out of order, too long a piece.
    let put = |offset, last, data: Vec<u8>| PutList {
        drive,
        list: ContentList::id_of_encoded(b"\x01\0\0\0\0\0\0\0\x01"),
        offset,
        last,
        data,
    };
    for lie in [
        put(0, true, b"\x01\0\0\0\0\0\0\0\x02".to_vec()),
        put(5, true, b"\0\0\0\x01".to_vec()),
        put(1, false, vec![1]),
    ] {
        let refused = mallory.connection.call(&lie).await;
        assert_eq!(code(refused), FailureCode::Malformed);
    }
    let long = put(0, true, vec![0; limits::LIST_PART_LEN_MAX + 1]);
    assert_eq!(code(mallory.connection.call(&long).await), FailureCode::TooLarge);
    let fine = put(0, true, b"\x01\0\0\0\0\0\0\0\x01".to_vec());
    mallory.connection.call(&fine).await.unwrap();
    // Illegal changes are refused one by one; a mode that no file may carry cannot be decoded.
    let committed = mallory.commit(vec![delete(NodeId::ROOT, Rev(0))], vec![]).await;
    let illegal =
        |result: &ChangeResult| matches!(result, ChangeResult::Refused(Refusal::Illegal { .. }));
    assert!(committed.results.iter().all(illegal));
    let mut state = dir(NodeId::ROOT, "x");
    state.attrs = Attrs { mode: 0o4755 };
    let commit = Commit {
        drive,
        changes: vec![create(mallory.id(), state)],
        chunks: vec![],
        deletions: None,
    };
    assert_eq!(code(mallory.connection.call(&commit).await), FailureCode::Malformed);
    bystander.works().await;
}

#[tokio::test]
async fn floods_are_bounded_and_disturb_nobody() {
    let server = Server::start_with(|config| {
        config.limits.connections_per_address_max = 30;
        config.limits.connections_per_user_max = 5;
        config.limits.memory_max_mib = 16;
    })
    .await;
    let mut bystander = Bystander::new(&server).await;
    let mallory = server.join("mallory", "bad").await;
    let address = server.running.address();
    // More connections than a user may have.
    let mut raws = Vec::new();
    for _ in 0..4 {
        raws.push(Raw::resume(address, &mallory).await);
    }
    let (one_more, _pushes) = server.connect().await;
    let resume = Resume { device: mallory.admitted.device, token: mallory.token.clone() };
    assert_eq!(code(one_more.call(&resume).await), FailureCode::Unavailable);
    // More requests than may be in flight, megabytes of them, and no answer is read.
    let zeros = vec![7; 1024 * 1024];
    let put = PutChunks { drive: mallory.drive, chunks: vec![chunk(&zeros)] };
    let frame = EncodedFrame::new(5, &put, limits::BODY_LEN_MAX).unwrap();
    let get = GetChunks { drive: mallory.drive, chunks: vec![ChunkId::of(&zeros)] };
    let asking = EncodedFrame::new(6, &get, limits::BODY_LEN_MAX).unwrap();
    let mut floods = tokio::task::JoinSet::new();
    for mut raw in raws {
        let (frame, asking) = (frame.clone(), asking.clone());
        floods.spawn(async move {
            for _ in 0..30 {
                raw.bytes(frame.as_bytes()).await;
                for _ in 0..30 {
                    raw.bytes(asking.as_bytes()).await;
                }
            }
            raw
        });
    }
    for _ in 0..20 {
        let started = std::time::Instant::now();
        bystander.works().await;
        assert!(started.elapsed() < PATIENCE / 3, "a calm device waits too long");
    }
    floods.shutdown().await;
    // More connections than an address may have: the rest is closed without a word.
    let mut idle = Vec::new();
    for _ in 0..40 {
        idle.push(TcpStream::connect(address).await.unwrap());
    }
    let mut byte = [0];
    let closed = timeout(PATIENCE, idle[39].read(&mut byte)).await.unwrap();
    assert!(matches!(closed, Ok(0) | Err(_)));
    bystander.works().await;
}
