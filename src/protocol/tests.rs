//! Both ends of a connection against each other, and the server end against hostile bytes.

use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream, duplex};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;
use tokio::time::timeout;

use super::frame::{IncomingFrame, read_frame};
use super::message::*;
use super::*;
use crate::model::{DriveId, Fingerprint, Rev};

const LIMIT: Duration = Duration::from_secs(20);

async fn soon<T>(future: impl Future<Output = T>) -> T {
    timeout(LIMIT, future).await.expect("it comes in time")
}

/// Two ends, connected by a pipe.
async fn pair() -> (Connection, mpsc::Receiver<Push>, ServerConnection) {
    let (near, far) = duplex(64 * 1024);
    let (client, server) = soon(async {
        tokio::join!(
            Connection::over(near, "test/1", "pipe"),
            ServerConnection::over(far, "test/2")
        )
    })
    .await;
    let (connection, pushes) = client.unwrap();
    (connection, pushes, server.unwrap())
}

/// A server end, and the raw bytes towards it.
fn raw() -> (DuplexStream, tokio::task::JoinHandle<Result<ServerConnection, AcceptError>>) {
    let (near, far) = duplex(64 * 1024);
    let server = tokio::spawn(async move { ServerConnection::over(far, "test/2").await });
    (near, server)
}

/// What the server end says before it closes.
async fn all_frames(stream: &mut DuplexStream) -> Vec<IncomingFrame> {
    let mut frames = Vec::new();
    while let Some(frame) = soon(read_frame(stream, || 1 << 20, &LIMIT)).await.unwrap() {
        frames.push(frame);
    }
    frames
}

fn hello(protocol: u16) -> EncodedFrame {
    let hello = Hello { protocol, program: "raw".into(), features: vec![] };
    EncodedFrame::new(1, &hello, limits::BODY_LEN_MAX_GUEST).unwrap()
}

fn page(upto: u64) -> Page {
    Page {
        drive: DriveId::from_bytes([1; 16]),
        from: Rev::ZERO,
        upto: Rev(upto),
        head: Rev(upto),
        consistent: true,
        nodes: vec![],
        chunks: vec![],
        digest: None,
        devices: vec![],
        made_by: vec![],
    }
}

fn admitted() -> AuthReply {
    AuthReply {
        admitted: Some(Admitted {
            user: crate::model::UserId::from_bytes([0; 16]),
            user_name: "u".into(),
            device: crate::model::DeviceId::from_bytes([0; 16]),
            device_name: String::new(),
            token: None,
            drives: vec![],
        }),
        question: None,
    }
}

async fn next(server: &mut ServerConnection) -> IncomingFrame {
    soon(server.reader.next()).await.unwrap().expect("a frame")
}

#[tokio::test]
async fn requests_are_pipelined_and_may_be_answered_out_of_order() {
    let (connection, _pushes, mut server) = pair().await;
    let find = |byte| HasList {
        drive: DriveId::from_bytes([byte; 16]),
        list: crate::model::ListId::from_bytes([byte; 32]),
    };
    let first = connection.send(&find(1)).await.unwrap();
    let second = connection.send(&find(2)).await.unwrap();
    let third = connection.send(&find(3)).await.unwrap();
    let mut numbers = vec![];
    for byte in 1..=3 {
        let frame = next(&mut server).await;
        let request: HasList = frame.decode().unwrap();
        assert_eq!(request.drive.as_bytes()[0], byte, "in the order of sending");
        numbers.push(frame.request);
    }
    let sender = &server.sender;
    sender.reply(numbers[1], &Has { present: true }).await.unwrap();
    sender.reply(numbers[0], &Has { present: false }).await.unwrap();
    sender.fail(numbers[2], FailureCode::NotFound, "No such drive").await.unwrap();
    assert!(!soon(first.reply()).await.unwrap().present);
    assert!(soon(second.reply()).await.unwrap().present);
    let failed = soon(third.reply()).await.unwrap_err();
    assert_eq!(failed.to_string(), "No such drive");
}

#[tokio::test]
async fn no_more_requests_are_under_way_than_the_server_reads() {
    let (connection, _pushes, mut server) = pair().await;
    let mut pending = vec![];
    for _ in 0..limits::IN_FLIGHT_MAX {
        pending.push(connection.send(&ListDevices {}).await.unwrap());
    }
    // Giving one up does not make room: the server still owes the reply.
    drop(pending.pop());
    let more = connection.clone();
    let mut more = tokio::spawn(async move { more.call(&ListDevices {}).await });
    let first = next(&mut server).await;
    assert!(timeout(Duration::from_millis(50), &mut more).await.is_err());
    let none = Devices { devices: vec![] };
    server.sender.reply(first.request, &none).await.unwrap();
    for _ in 0..limits::IN_FLIGHT_MAX {
        let frame = next(&mut server).await;
        server.sender.reply(frame.request, &none).await.unwrap();
    }
    soon(more).await.unwrap().unwrap();
}

#[tokio::test]
async fn a_cut_connection_fails_every_call_and_those_to_come() {
    let (connection, mut pushes, mut server) = pair().await;
    let pending = connection.send(&ListDevices {}).await.unwrap();
    next(&mut server).await;
    drop(server);
    let error = soon(pending.reply()).await.unwrap_err();
    assert!(matches!(error, CallError::Closed(_)), "{error}");
    let error = soon(connection.call(&Ping {})).await.unwrap_err();
    assert!(matches!(error, CallError::Closed(_)), "{error}");
    assert!(soon(pushes.recv()).await.is_none());
}

#[tokio::test]
async fn pushes_come_in_order_and_unknown_ones_are_ignored() {
    /// A message of some later version.
    #[derive(Debug, serde::Serialize, serde::Deserialize)]
    struct Later {}
    impl Message for Later {
        const KIND: u8 = 200;
    }
    let (_connection, mut pushes, server) = pair().await;
    server.sender.push(&page(1)).await.unwrap();
    server.sender.push(&Later {}).await.unwrap();
    server.sender.push(&page(2)).await.unwrap();
    for upto in 1..=2 {
        let Some(Push::Page(page)) = soon(pushes.recv()).await else {
            panic!("a page");
        };
        assert_eq!(page.upto, Rev(upto));
    }
}

#[tokio::test]
async fn a_revoked_device_is_told_and_cut_off_from_another_task() {
    let (near, far) = duplex(256);
    let (client, server) = tokio::join!(
        Connection::over(near, "test/1", "pipe"),
        ServerConnection::over(far, "test/2")
    );
    let ((connection, mut pushes), mut server) = (client.unwrap(), server.unwrap());
    let other_task = server.sender.clone();
    other_task.close(FailureCode::Revoked, "This device was revoked");
    assert!(soon(server.reader.next()).await.unwrap().is_none());
    assert!(other_task.push(&page(1)).await.is_err());
    let reason = soon(connection.closed()).await;
    assert_eq!(reason.code(), Some(FailureCode::Revoked));
    assert!(matches!(soon(pushes.recv()).await, Some(Push::Bye(_))));
    assert!(soon(pushes.recv()).await.is_none());
}

#[tokio::test(start_paused = true)]
async fn a_peer_that_never_reads_holds_no_memory_for_ever() {
    let (mut near, server) = raw();
    near.write_all(hello(1).as_bytes()).await.unwrap();
    let server = server.await.unwrap().unwrap();
    server.reader.authenticated();
    let mut big = page(1);
    big.chunks = vec![crate::model::ChunkData {
        id: crate::model::ChunkId::of(b""),
        plain_len: 1,
        codec: crate::model::Codec::Plain,
        data: vec![0; 1 << 20],
    }];
    let mut queued = 0;
    let error = loop {
        match server.sender.push(&big).await {
            Ok(()) => queued += 1,
            Err(error) => break error,
        }
    };
    assert!(queued <= 4, "{queued} megabytes were queued");
    assert!(matches!(error, SendError::Closed(CloseReason::Stalled)), "{error}");
    drop(near);
}

#[tokio::test(start_paused = true)]
async fn silence_ends_a_connection_and_pings_keep_one() {
    let (connection, _pushes, mut server) = pair().await;
    server.reader.authenticated();
    for _ in 0..10 {
        let frame = server.reader.next().await.unwrap().unwrap();
        frame.decode::<Ping>().unwrap();
        server.sender.reply(frame.request, &Done {}).await.unwrap();
    }
    assert!(connection.ended().is_none());
    // From now on the server is dumb.
    assert!(matches!(connection.closed().await, CloseReason::Frame(_)));
}

/// A server whose disk hangs, say: it is there, takes requests and answers none.
#[tokio::test(start_paused = true)]
async fn pings_alone_do_not_keep_a_request_waiting() {
    let (connection, _pushes, mut server) = pair().await;
    server.reader.authenticated();
    let sender = server.sender.clone();
    let (tell, mut told) = mpsc::channel(16);
    tokio::spawn(async move {
        while let Ok(Some(frame)) = server.reader.next().await {
            if frame.kind == Ping::KIND {
                server.sender.reply(frame.request, &Done {}).await.unwrap();
            } else {
                tell.send(frame.request).await.unwrap();
            }
        }
    });
    // One that is answered late, and one while others are: nothing is wrong with either.
    let slow = connection.send(&ListDevices {}).await.unwrap();
    let slow_number = told.recv().await.unwrap();
    for _ in 0..10 {
        let quick = connection.send(&ListDevices {}).await.unwrap();
        let number = told.recv().await.unwrap();
        tokio::time::sleep(Duration::from_secs(limits::ANSWER_SECS - 20)).await;
        sender.reply(number, &Devices { devices: vec![] }).await.unwrap();
        quick.reply().await.unwrap();
    }
    sender.reply(slow_number, &Devices { devices: vec![] }).await.unwrap();
    slow.reply().await.unwrap();
    assert_eq!(connection.answered(), 11);
    // An idle connection stays.
    tokio::time::sleep(Duration::from_secs(10 * limits::ANSWER_SECS)).await;
    assert!(connection.ended().is_none());
    let asked = tokio::time::Instant::now();
    let given_up = Duration::from_secs(10 * limits::ANSWER_SECS);
    let error = timeout(given_up, connection.call(&ListDevices {}))
        .await
        .expect("it is given up")
        .unwrap_err();
    assert_eq!(
        error.to_string(),
        "The connection to the server ended: The server answers no requests: one got nothing for 60 \
         seconds"
    );
    let waited = asked.elapsed().as_secs();
    let most = limits::KEEPALIVE_SECS + limits::ANSWER_SECS + limits::ANSWER_SECS / 6;
    assert!((limits::ANSWER_SECS..most).contains(&waited), "{waited} seconds");
}

/// Megabytes on a slow line are no reason to give up: neither those before a request, which it has to
/// wait for, nor those of its answer.
#[tokio::test(start_paused = true)]
async fn a_slow_line_is_not_taken_for_a_server_that_does_not_answer() {
    /// Takes a frame as such a line brings it.
    async fn take_slowly(wire: &mut DuplexStream) -> (u8, u32) {
        let mut header = [0; limits::HEADER_LEN];
        wire.read_exact(&mut header).await.unwrap();
        let [l0, l1, l2, l3, kind, r0, r1, r2, r3] = header;
        let mut left = u32::from_be_bytes([l0, l1, l2, l3]) as usize;
        let mut piece = vec![0; 32 * 1024];
        while left > 0 {
            let len = piece.len().min(left);
            wire.read_exact(&mut piece[..len]).await.unwrap();
            left -= len;
            if len == piece.len() {
                tokio::time::sleep(Duration::from_secs(10)).await;
            }
        }
        (kind, u32::from_be_bytes([r0, r1, r2, r3]))
    }
    let (near, mut far) = duplex(64 * 1024);
    let server = tokio::spawn(async move {
        loop {
            let (kind, request) = take_slowly(&mut far).await;
            let limit = limits::BODY_LEN_MAX;
            let answer = match kind {
                Hello::KIND => {
                    let time = crate::model::Timestamp::default();
                    let program = "slow".to_owned();
                    let reply = HelloReply { protocol: PROTOCOL, program, features: vec![], time };
                    EncodedFrame::new(request, &reply, limit)
                }
                Resume::KIND => EncodedFrame::new(request, &admitted(), limit),
                ListDevices::KIND => {
                    let name = "d".repeat(100_000);
                    let id = crate::model::DeviceId::from_bytes([0; 16]);
                    let time = crate::model::Timestamp::default();
                    let (added, last_seen) = (time, None);
                    let devices = vec![DeviceInfo {
                        id,
                        name,
                        added,
                        last_seen,
                        connected: false,
                        this: true,
                    }];
                    EncodedFrame::new(request, &Devices { devices }, limit)
                }
                _ => EncodedFrame::new(request, &Done {}, limit),
            };
            for piece in answer.unwrap().as_bytes().chunks(10_000) {
                far.write_all(piece).await.unwrap();
                tokio::time::sleep(Duration::from_secs(if piece.len() < 10_000 { 0 } else { 30 }))
                    .await;
            }
        }
    });
    let (connection, _pushes) = Connection::over(near, "test/1", "pipe").await.unwrap();
    let device = crate::model::DeviceId::from_bytes([0; 16]);
    connection.call(&Resume { device, token: vec![] }).await.unwrap();
    let chunk = crate::model::ChunkData {
        id: crate::model::ChunkId::of(b""),
        plain_len: 1,
        codec: crate::model::Codec::Plain,
        data: vec![0; 1 << 20],
    };
    let put = PutChunks { drive: DriveId::from_bytes([1; 16]), chunks: vec![chunk] };
    let started = tokio::time::Instant::now();
    let put = connection.send(&put).await.unwrap();
    let list = connection.send(&ListDevices {}).await.unwrap();
    put.reply().await.unwrap();
    let sent = started.elapsed().as_secs();
    assert!(sent > 3 * limits::ANSWER_SECS, "{sent} seconds");
    list.reply().await.unwrap();
    let answered = started.elapsed().as_secs() - sent;
    assert!(answered > 3 * limits::ANSWER_SECS, "{answered} seconds");
    server.abort();
}

#[tokio::test]
async fn long_frames_pass_only_after_authentication() {
    let (connection, _pushes, mut server) = pair().await;
    let login =
        |len| Login { user: "u".repeat(len), password: String::new(), device_name: String::new() };
    let error = connection.call(&login(70_000)).await.unwrap_err();
    assert!(matches!(error, CallError::Message(FrameError::TooLong { .. })));
    let pending = connection.send(&login(1)).await.unwrap();
    let frame = next(&mut server).await;
    server.reader.authenticated();
    let mut reply = admitted();
    let admitted = reply.admitted.as_mut().unwrap();
    admitted.device_name = "d".into();
    server.sender.reply(frame.request, &reply).await.unwrap();
    soon(pending.reply()).await.unwrap();
    let pending = connection.send(&login(70_000)).await.unwrap();
    let login: Login = next(&mut server).await.decode().unwrap();
    assert_eq!(login.user.len(), 70_000);
    drop(pending);
}

#[tokio::test]
async fn a_first_frame_that_is_no_hello_is_refused_with_a_reason() {
    let ping = EncodedFrame::new(1, &Ping {}, 100).unwrap();
    let cases: [(&[u8], &str); 4] = [
        (ping.as_bytes(), "Expected a Hello message, found Ping"),
        (b"GET / HTTP/1.1\r\nHost: picloud\r\n\r\n", "over the limit of 65536"),
        (b"\xff\xff\xff\xff\x01\0\0\0\x01", "over the limit of 65536"),
        (b"\0\0\0\x01\x01\0\0\0\x01\xc1", "A Hello message is malformed"),
    ];
    for (bytes, expected) in cases {
        let (mut near, server) = raw();
        near.write_all(bytes).await.unwrap();
        let frames = all_frames(&mut near).await;
        let failure: Failure = frames.last().expect("a failure").decode().unwrap();
        assert_eq!((frames[0].request, failure.code), (0, FailureCode::Malformed));
        assert!(failure.message.contains(expected), "{}", failure.message);
        assert!(soon(server).await.unwrap().is_err());
    }
}

#[tokio::test]
async fn a_truncated_hello_and_silence_are_errors_of_their_own() {
    let (mut near, server) = raw();
    near.write_all(&hello(1).as_bytes()[..12]).await.unwrap();
    near.shutdown().await.unwrap();
    let error = soon(server).await.unwrap().unwrap_err();
    assert!(matches!(error, AcceptError::Hello(FrameError::Truncated)), "{error}");
    let (near, server) = raw();
    drop(near);
    let error = soon(server).await.unwrap().unwrap_err();
    assert!(matches!(error, AcceptError::Closed), "{error}");
}

#[tokio::test(start_paused = true)]
async fn a_guest_who_says_nothing_is_not_waited_for() {
    let (near, server) = raw();
    assert!(matches!(server.await.unwrap(), Err(AcceptError::Timeout)));
    drop(near);
    let (mut near, server) = raw();
    near.write_all(hello(1).as_bytes()).await.unwrap();
    let mut server = server.await.unwrap().unwrap();
    let sender = server.sender.clone();
    let reading = tokio::spawn(async move { server.reader.next().await });
    // Pings do not make a guest a device.
    let ping = EncodedFrame::new(2, &Ping {}, 100).unwrap();
    near.write_all(&ping.as_bytes()[..5]).await.unwrap();
    assert!(reading.await.unwrap().is_err());
    drop(sender);
}

#[tokio::test]
async fn a_version_mismatch_names_both_versions_on_both_sides() {
    let (mut near, server) = raw();
    near.write_all(hello(0).as_bytes()).await.unwrap();
    let frames = all_frames(&mut near).await;
    let failure: Failure = frames[0].decode().unwrap();
    assert_eq!(failure.code, FailureCode::Version);
    assert_eq!(
        failure.message,
        "This server speaks protocol 1 to 1, your program 0: upgrade your program"
    );
    assert!(soon(server).await.unwrap().is_err());

    // A device of a later version speaks ours.
    let (mut near, server) = raw();
    near.write_all(hello(9).as_bytes()).await.unwrap();
    let frame = soon(read_frame(&mut near, || 1000, &LIMIT)).await.unwrap().unwrap();
    assert_eq!(frame.decode::<HelloReply>().unwrap().protocol, 1);
    assert_eq!(soon(server).await.unwrap().unwrap().hello.protocol, 9);

    // A server that chose a protocol we do not speak.
    let (near, mut far) = duplex(1000);
    let client = tokio::spawn(async move { Connection::over(near, "t", "pipe").await });
    let frame = soon(read_frame(&mut far, || 1000, &LIMIT)).await.unwrap().unwrap();
    let reply = HelloReply {
        protocol: 7,
        program: "later".into(),
        features: vec![],
        time: crate::model::Timestamp::default(),
    };
    let reply = EncodedFrame::new(frame.request, &reply, 1000).unwrap();
    far.write_all(reply.as_bytes()).await.unwrap();
    let error = soon(client).await.unwrap().unwrap_err();
    assert_eq!(
        error.to_string(),
        "The server speaks protocol 7, this program 1: upgrade this program"
    );
}

#[tokio::test]
async fn a_reply_to_nothing_ends_the_connection() {
    let (connection, _pushes, server) = pair().await;
    server.sender.reply(77, &Done {}).await.unwrap();
    assert!(matches!(soon(connection.closed()).await, CloseReason::Frame(_)));
}

#[tokio::test]
async fn dropping_the_last_clone_closes_the_connection() {
    let (connection, pushes, mut server) = pair().await;
    drop(pushes);
    let clone = connection.clone();
    drop(connection);
    assert!(clone.ended().is_none());
    drop(clone);
    assert!(soon(server.reader.next()).await.unwrap().is_none());
}

#[tokio::test]
async fn an_opening_that_nobody_waits_for_closes_its_connection() {
    let (near, mut far) = duplex(64 * 1024);
    let opening = tokio::spawn(async move { Connection::over(near, "test/1", "pipe").await });
    soon(read_frame(&mut far, || 1 << 20, &LIMIT)).await.unwrap().unwrap();
    opening.abort();
    soon(far.read_to_end(&mut Vec::new())).await.unwrap();
}

/// A TLS server on a free port, whose connections are kept open until they end.
async fn tls_server(identity: &ServerIdentity, alpn: &[u8]) -> String {
    let acceptor = identity.acceptor(&[alpn]).unwrap();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap().to_string();
    tokio::spawn(async move {
        while let Ok((tcp, _)) = listener.accept().await {
            let acceptor = acceptor.clone();
            tokio::spawn(async move {
                if let Ok(mut server) = ServerConnection::accept(tcp, &acceptor, "test/2").await {
                    while let Ok(Some(frame)) = server.reader.next().await {
                        server.sender.reply(frame.request, &Done {}).await.ok();
                    }
                }
            });
        }
    });
    address
}

fn identity() -> ServerIdentity {
    let (certificate, key) =
        generate_certificate(&["localhost".into(), "127.0.0.1".into()]).unwrap();
    ServerIdentity::from_pem(&certificate, &key).unwrap()
}

#[tokio::test]
async fn only_the_pinned_certificate_is_accepted() {
    let (right, other) = (identity(), identity());
    let address = tls_server(&right, ALPN).await;
    let endpoint =
        |fingerprint| Endpoint { address: address.clone(), trust: Trust::Pinned(fingerprint) };
    let (connection, _pushes) =
        soon(Connection::open(&endpoint(right.fingerprint()), "t")).await.unwrap();
    soon(connection.call(&Ping {})).await.unwrap();
    assert_eq!(connection.hello().program, "test/2");

    let error = soon(Connection::open(&endpoint(other.fingerprint()), "t")).await.unwrap_err();
    let expected = format!(
        "The server at {address} shows another certificate than the join link names: \
         expected {}, found {}",
        other.fingerprint(),
        right.fingerprint()
    );
    assert_eq!(error.to_string(), expected);
    assert!(!error.is_offline());

    let public = Endpoint { address: address.clone(), trust: Trust::PublicAuthority };
    let error = soon(Connection::open(&public, "t")).await.unwrap_err();
    assert!(matches!(error, ConnectError::Tls { .. } | ConnectError::Setup(_)), "{error:?}");
}

#[tokio::test]
async fn a_stolen_certificate_without_its_key_is_of_no_use() {
    let (certificate, _) = generate_certificate(&["localhost".into()]).unwrap();
    let (_, key) = generate_certificate(&["localhost".into()]).unwrap();
    let thief = ServerIdentity::from_pem(&certificate, &key).unwrap();
    assert!(matches!(thief.acceptor(&[ALPN]), Err(TlsError::Rustls(_))));
}

#[tokio::test]
async fn what_is_no_picloud_server_is_told_apart_from_no_server() {
    let address = tls_server(&identity(), b"h2").await;
    let endpoint = |address: &str| Endpoint {
        address: address.to_owned(),
        trust: Trust::Pinned(Fingerprint([0; 32])),
    };
    let error = soon(Connection::open(&endpoint(&address), "t")).await.unwrap_err();
    assert!(matches!(error, ConnectError::Tls { .. }), "{error:?}");
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let closed = listener.local_addr().unwrap().to_string();
    drop(listener);
    let error = soon(Connection::open(&endpoint(&closed), "t")).await.unwrap_err();
    assert!(error.is_offline(), "{error:?}");
    for bad in ["host", "host:", ":46000", "host:99999", "ho st:1"] {
        let error = soon(Connection::open(&endpoint(bad), "t")).await.unwrap_err();
        assert!(matches!(error, ConnectError::Address { .. }), "{bad}: {error:?}");
    }
}

#[tokio::test]
async fn a_plain_tcp_client_gets_nothing_out_of_the_port() {
    let address = tls_server(&identity(), ALPN).await;
    let mut tcp = TcpStream::connect(&address).await.unwrap();
    tcp.write_all(b"\0\0\0\x01\x07\0\0\0\x01\x80 and more that is not TLS").await.unwrap();
    let mut answer = Vec::new();
    soon(tcp.read_to_end(&mut answer)).await.ok();
    assert!(answer.len() < 16, "a TLS alert at most");
}
/// The examples of `docs/protocol.md`, byte for byte.
#[test]
fn values_lie_on_the_wire_as_documented() {
    use crate::model::{
        Attrs, Body, Change, ChangeOp, ChunkId, Content, Digest, NodeId, Refusal, Timestamp,
    };
    fn wire(value: impl serde::Serialize) -> Vec<u8> {
        rmp_serde::to_vec_named(&value).unwrap()
    }
    assert_eq!(wire(Rev(3)), b"\x03");
    assert_eq!(wire(Attrs::from_mode(0o644)), b"\xcd\x01\xa4");
    assert_eq!(wire(NodeId::from_bytes([7; 16])), [&b"\xc4\x10"[..], &[7; 16]].concat());
    assert_eq!(wire(Timestamp::new(-1, 5)), b"\x82\xa4secs\xff\xa5nanos\x05");
    assert_eq!(wire(Digest::default()), b"\x94\0\0\0\0");
    assert_eq!(wire(crate::model::Codec::Zstd), b"\x01");
    assert_eq!(wire(Content::Empty), b"\xa5Empty");
    let chunk = Content::Chunk { id: ChunkId::from_bytes([9; 32]), len: 1 };
    let expected = [b"\x81\xa5Chunk\x82\xa2id\xc4\x20", &[9; 32][..], b"\xa3len\x01"].concat();
    assert_eq!(wire(chunk), expected);
    assert_eq!(wire(Body::Dir), b"\xa3Dir");
    let target = b"t".to_vec();
    assert_eq!(wire(Body::Link { target }), b"\x81\xa4Link\x81\xa6target\xc4\x01t");
    let delete = Change::new(NodeId::from_bytes([1; 16]), Rev(9), ChangeOp::Delete);
    let expected = [b"\x83\xa4node\xc4\x10", &[1; 16][..], b"\xa4base\x09\xa2op\xa6Delete"];
    assert_eq!(wire(delete), expected.concat());
    let accepted = ChangeResult::Accepted { rev: Rev(3) };
    assert_eq!(wire(accepted), b"\x81\xa8Accepted\x81\xa3rev\x03");
    let refused = ChangeResult::Refused(Refusal::NotEmpty);
    assert_eq!(wire(refused), b"\x81\xa7Refused\xa8NotEmpty");
    let refused = ChangeResult::Refused(Refusal::Stale { current: Rev(1) });
    assert_eq!(wire(refused), b"\x81\xa7Refused\x81\xa5Stale\x81\xa7current\x01");
    let failure = Failure { code: FailureCode::NotFound, message: "x".into() };
    assert_eq!(wire(failure), b"\x82\xa4code\x06\xa7message\xa1x");
}

#[test]
fn every_message_is_in_the_specification_under_its_number() {
    let specification = include_str!("../../docs/protocol.md");
    for (kind, name) in KINDS {
        let heading = format!("| {kind} | `{name}` |");
        assert!(specification.contains(&heading), "no row {heading:?}");
    }
}
