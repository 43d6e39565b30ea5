//! The client library against a real server.

#![allow(clippy::unwrap_used, reason = "a test ends where something fails")]

mod server_support;

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{SystemTime, UNIX_EPOCH};

use picloud::client::transfer::{Meter, Source, Target};
use picloud::client::{Client, ClientError, PutOptions, Session, Step, TransferError};
use picloud::model::*;
use picloud::protocol::message::{ChangeResult, Commit, FailureCode};
use server_support::{PATIENCE, Server};
use tokio::time::timeout;

async fn session(server: &Server, device: &str) -> Session {
    let link = server.running.invite("alice").await.unwrap();
    let mut client = Client::connect(&server.endpoint()).await.unwrap();
    match client.join(&link.secret, device).await.unwrap() {
        Step::Admitted(session) => session,
        Step::Question(question) => panic!("asked {question:?}"),
    }
}

fn path(text: &str) -> RelPath {
    RelPath::parse(text.as_bytes()).unwrap()
}

fn noise(seed: u8, len: usize) -> Vec<u8> {
    let mut bytes = vec![0; len];
    let mut hasher = blake3::Hasher::new();
    hasher.update(&[seed]);
    hasher.finalize_xof().fill(&mut bytes);
    bytes
}

async fn names(session: &Session, dir: &str) -> Vec<String> {
    let mut listing = session.list(&path(dir)).await.unwrap();
    let mut names = vec![];
    while let Some(entry) = listing.next().await.unwrap() {
        names.push(entry.path.to_string());
    }
    names
}

fn left_behind(dir: &Path) -> Vec<String> {
    let entries = fs::read_dir(dir).unwrap().map(|entry| entry.unwrap());
    entries.map(|entry| entry.file_name().into_string().unwrap()).collect()
}

#[tokio::test]
async fn files_of_every_size_come_back_as_they_were() {
    let server = Server::start().await;
    let session = session(&server, "laptop").await;
    let dir = tempfile::tempdir().unwrap();
    let sizes = [0, 1, 65_536, 65_537, 300_000, 1 << 20, 9_000_001];
    for (seed, size) in sizes.into_iter().enumerate() {
        let bytes = noise(u8::try_from(seed).unwrap(), size);
        let local = dir.path().join("in");
        fs::write(&local, &bytes).unwrap();
        fs::set_permissions(&local, fs::Permissions::from_mode(0o741)).unwrap();
        let times = rustix::fs::Timestamps {
            last_access: rustix::fs::Timespec { tv_sec: 1, tv_nsec: 1 },
            last_modification: rustix::fs::Timespec { tv_sec: -77, tv_nsec: 123_456_789 },
        };
        rustix::fs::futimens(File::options().write(true).open(&local).unwrap(), &times).unwrap();
        let remote = path(&format!("a/b {size}/file"));
        let stored = session.put_file(&local, &remote).await.unwrap();
        assert!(stored.created);
        assert_eq!(stored.content.len(), size as u64);

        let copy = dir.path().join("out");
        let entry = session.get_file(&remote, &copy).await.unwrap();
        assert_eq!(entry.id, stored.id);
        assert!(fs::read(&copy).unwrap() == bytes, "{size} bytes");
        let meta = fs::metadata(&copy).unwrap();
        assert_eq!((meta.mtime(), meta.mtime_nsec()), (-77, 123_456_789));
        assert_eq!(meta.mode() & 0o7777, 0o741);
        let (_, streamed) = session.get(&remote, vec![]).await.unwrap();
        assert!(streamed == bytes, "{size} bytes streamed");
    }
    assert_eq!(left_behind(dir.path()).len(), 2, "nothing but in and out");
    assert_eq!(names(&session, "").await, ["a"]);
    assert_eq!(names(&session, "a").await.len(), sizes.len());
}

#[tokio::test]
async fn a_sparse_file_crosses_without_its_holes() {
    let server = Server::start().await;
    let session = session(&server, "laptop").await;
    let dir = tempfile::tempdir().unwrap();
    let local = dir.path().join("sparse");
    let file = File::create(&local).unwrap();
    file.set_len(40 << 30).unwrap();
    file.write_at(b"in the middle", 20 << 30).unwrap();
    let remote = path("sparse");
    session.put_file(&local, &remote).await.unwrap();
    let copy = dir.path().join("copy");
    session.get_file(&remote, &copy).await.unwrap();
    let meta = fs::metadata(&copy).unwrap();
    assert_eq!(meta.size(), 40 << 30);
    assert!(meta.blocks() * 512 < 1 << 20, "{} blocks", meta.blocks());
    let mut there = [0; 13];
    File::open(&copy).unwrap().read_exact_at(&mut there, 20 << 30).unwrap();
    assert_eq!(&there, b"in the middle");
}

#[tokio::test]
async fn a_put_over_a_file_is_a_new_version_of_the_same_node() {
    let server = Server::start().await;
    let session = session(&server, "laptop").await;
    let put = async |bytes: &'static [u8], mode| {
        let options = PutOptions { mode, mtime: Timestamp::default() };
        session.put(bytes, &path("x/y"), options).await.unwrap()
    };
    let first = put(b"first", Some(0o600)).await;
    let second = put(b"second", None).await;
    assert!(first.created && !second.created);
    assert_eq!(first.id, second.id);
    assert!(second.rev > first.rev);
    let (entry, bytes) = session.get(&path("x/y"), vec![]).await.unwrap();
    assert_eq!(bytes, b"second");
    assert_eq!(entry.node.attrs.mode, 0o600, "kept");
}

#[tokio::test]
async fn what_is_no_file_is_refused_and_nothing_is_left_behind() {
    let server = Server::start().await;
    let session = session(&server, "laptop").await;
    let dir = tempfile::tempdir().unwrap();
    let options = PutOptions { mode: None, mtime: Timestamp::default() };
    session.put(&b"x"[..], &path("dir/file"), options).await.unwrap();

    let target = dir.path().join("target");
    let error = session.get_file(&path("dir/none"), &target).await.unwrap_err();
    assert_eq!(error.to_string(), "There is no \"dir/none\" in the drive");
    let error = session.get_file(&path("dir"), &target).await.unwrap_err();
    assert_eq!(error.to_string(), "\"dir\" is a directory");
    assert!(left_behind(dir.path()).is_empty());
    let error = session.get_file(&path("dir/file"), dir.path()).await.unwrap_err();
    assert!(matches!(error, ClientError::Local { .. }), "{error}");
    let nowhere = dir.path().join("no/such/dir");
    let error = session.get_file(&path("dir/file"), &nowhere).await.unwrap_err();
    assert!(matches!(error, ClientError::Local { .. }), "{error}");
    assert!(left_behind(dir.path()).is_empty());

    let put = async |at: &str| session.put(&b"x"[..], &path(at), options).await.unwrap_err();
    assert!(matches!(put("dir").await, ClientError::IsDirectory { .. }));
    assert!(matches!(put("dir/file/below").await, ClientError::NotADirectory { .. }));
    assert!(matches!(put("").await, ClientError::Root));
    let error = session.list(&path("dir/file")).await.unwrap_err();
    assert!(matches!(error, ClientError::NotADirectory { .. }));
    let error = session.put_file(dir.path(), &path("z")).await.unwrap_err();
    assert!(matches!(error, ClientError::Local { .. }), "{error}");
    // A FIFO would block whoever opens it.
    let fifo = dir.path().join("fifo");
    let mode = rustix::fs::Mode::from_raw_mode(0o600);
    rustix::fs::mknodat(rustix::fs::CWD, &fifo, rustix::fs::FileType::Fifo, mode, 0).unwrap();
    let error = timeout(PATIENCE, session.put_file(&fifo, &path("z"))).await.unwrap();
    assert!(matches!(error.unwrap_err(), ClientError::Local { .. }));
    assert_eq!(names(&session, "").await, ["dir"]);
}

#[tokio::test]
async fn two_who_put_below_the_same_new_directory_both_succeed() {
    let server = Server::start().await;
    let (one, two) = (session(&server, "one").await, session(&server, "two").await);
    for round in 0..10 {
        let options = PutOptions { mode: None, mtime: Timestamp::default() };
        let at = |who: &str| path(&format!("new {round}/deep/{who}"));
        let (first, second) = (at("one"), at("two"));
        let (a, b) =
            tokio::join!(one.put(&b"1"[..], &first, options), two.put(&b"2"[..], &second, options));
        a.unwrap();
        b.unwrap();
        let dir = format!("new {round}/deep");
        assert_eq!(names(&one, &dir).await, [first.to_string(), second.to_string()]);
    }
}

#[derive(Default)]
struct Count {
    passed: AtomicU64,
    moved: AtomicU64,
}

impl Meter for Count {
    fn pass(&self, bytes: u64) -> std::pin::Pin<Box<dyn Future<Output = ()> + Send + '_>> {
        self.passed.fetch_add(bytes, Ordering::Relaxed);
        Box::pin(std::future::ready(()))
    }

    fn moved(&self, bytes: u64) {
        self.moved.fetch_add(bytes, Ordering::Relaxed);
    }
}

#[tokio::test]
async fn what_the_other_side_has_does_not_travel_again() {
    struct Memory(Vec<u8>, Vec<u8>);
    impl Target for Memory {
        fn prefill(&mut self, extents: &[Extent]) -> io::Result<Vec<bool>> {
            // Everything but the first extent is here already.
            self.0.extend_from_slice(&self.1);
            Ok((0..extents.len()).map(|index| index > 0).collect())
        }
        fn write(&mut self, offset: u64, plain: &[u8]) -> io::Result<()> {
            let at = usize::try_from(offset).unwrap();
            self.0[at..at + plain.len()].copy_from_slice(plain);
            Ok(())
        }
        fn hole(&mut self, _offset: u64, _len: u64) -> io::Result<()> {
            panic!("no holes here")
        }
    }

    let server = Server::start().await;
    let session = session(&server, "laptop").await;
    let bytes = noise(1, 8 << 20);
    let upload = async |bytes: &[u8], expected| {
        let count = Arc::new(Count::default());
        let bulk = session.bulk().clone().with_meter(Arc::clone(&count) as Arc<dyn Meter>);
        let source = Source::Reader(Box::new(io::Cursor::new(bytes.to_vec())));
        let uploaded = bulk.upload(source, expected, 0).await;
        let passed = count.passed.load(Ordering::Relaxed);
        (bulk, uploaded, passed, count.moved.load(Ordering::Relaxed))
    };
    let (bulk, uploaded, passed, moved) = upload(&bytes, None).await;
    let content = uploaded.unwrap().chunked.content;
    assert!(passed >= 8 << 20, "noise does not shrink: {passed}");
    assert_eq!(moved, 8 << 20);
    assert!(bulk.is_present(&content).await.unwrap());

    let (_, uploaded, passed, moved) = upload(&bytes, Some(content)).await;
    uploaded.unwrap();
    assert!(passed < 10_000, "only the list: {passed}");
    assert_eq!(moved, 8 << 20);

    let mut edited = bytes.clone();
    edited[4 << 20] ^= 1;
    let (bulk, uploaded, passed, _) = upload(&edited, None).await;
    let edited_content = uploaded.unwrap().chunked.content;
    assert!(passed < 2_100_000, "a chunk or two: {passed}");
    let (_, uploaded, ..) = upload(&edited, Some(content)).await;
    assert!(matches!(uploaded, Err(TransferError::Changed)));

    let mut damaged = edited.clone();
    damaged[0] ^= 1;
    let target = Memory(vec![], damaged);
    let Memory(fetched, _) = bulk.download(&edited_content, target).await.unwrap();
    assert!(fetched == edited);
}

#[tokio::test]
async fn a_download_that_fails_says_why_and_leaves_nothing() {
    struct Full;
    impl io::Write for Full {
        fn write(&mut self, _bytes: &[u8]) -> io::Result<usize> {
            Err(io::ErrorKind::StorageFull.into())
        }
        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }
    let server = Server::start().await;
    let session = session(&server, "laptop").await;
    let options = PutOptions { mode: None, mtime: Timestamp::default() };
    let big = io::Cursor::new(noise(3, 20 << 20));
    session.put(big, &path("big"), options).await.unwrap();
    let error = timeout(PATIENCE, session.get(&path("big"), Full)).await.unwrap();
    let Err(ClientError::Transfer(TransferError::Target(error))) = error else {
        panic!("another error");
    };
    assert_eq!(error.kind(), io::ErrorKind::StorageFull);
    // What another drive has is not to be had here, whoever knows its name.
    let absent = Content::Chunk { id: ChunkId::of(b"not here"), len: 8 };
    let bulk = session.bulk().clone();
    struct Nowhere;
    impl Target for Nowhere {
        fn write(&mut self, _offset: u64, _plain: &[u8]) -> io::Result<()> {
            panic!("nothing to write")
        }
        fn hole(&mut self, _offset: u64, _len: u64) -> io::Result<()> {
            panic!("nothing to write")
        }
    }
    let outcome = bulk.download(&absent, Nowhere).await;
    assert!(matches!(outcome, Err(TransferError::Absent(_))));
}

#[tokio::test]
async fn a_watch_tells_paths_of_what_others_do() {
    let server = Server::start().await;
    let (watcher, other) = (session(&server, "one").await, session(&server, "two").await);
    let options = PutOptions { mode: None, mtime: Timestamp::default() };
    let put = async |at: &str| other.put(&b"x"[..], &path(at), options).await.unwrap();
    put("in/old").await;
    put("out/side").await;
    let mut watch = watcher.watch(&path("in")).await.unwrap();
    assert!(matches!(watcher.watch(&path("")).await, Err(ClientError::Watching)));
    put("out/more").await;
    let new = put("in/new").await;
    let event = timeout(PATIENCE, watch.next()).await.unwrap().unwrap();
    assert_eq!((event.id, event.before), (new.id, None));
    assert_eq!(event.now.unwrap().0, path("in/new"));

    let dir = other.stat(&path("out")).await.unwrap().unwrap();
    let change = async |op| {
        let base = other.stat(&path("in/new")).await.unwrap().unwrap().rev;
        let change = Change::new(new.id, base, op);
        let drive = other.drive().id;
        let commit = Commit { drive, changes: vec![change], chunks: vec![], deletions: None };
        let results = other.connection().call(&commit).await.unwrap().results;
        assert!(matches!(results[0], ChangeResult::Accepted { .. }), "{results:?}");
    };
    let place = Some(Place { parent: dir.id, name: Name::try_from("away").unwrap() });
    change(ChangeOp::Update { place, body: None, attrs: None }).await;
    let event = timeout(PATIENCE, watch.next()).await.unwrap().unwrap();
    assert_eq!((event.before, event.now), (Some(path("in/new")), None));
}

#[tokio::test]
async fn the_account_is_in_its_owners_hands() {
    let server = Server::start().await;
    let first = session(&server, "first").await;
    let second = session(&server, "second").await;
    let credentials = second.credentials().unwrap();
    let devices = first.devices().await.unwrap();
    let listed: Vec<_> = devices.iter().map(|d| (d.name.as_str(), d.this)).collect();
    assert_eq!(listed, [("first", true), ("second", false)]);

    let link = JoinLink::parse(&first.invite().await.unwrap().link).unwrap();
    assert_eq!(link.fingerprint, server.running.fingerprint());
    let mut client = Client::connect(&server.endpoint()).await.unwrap();
    let Step::Admitted(third) = client.join(&link.secret, "third").await.unwrap() else {
        panic!("asked");
    };
    third.logout().await.unwrap();
    let again = Client::connect(&server.endpoint()).await.unwrap().join(&link.secret, "x").await;
    assert_eq!(again.unwrap_err().code(), Some(FailureCode::Unauthenticated));

    let mut client = Client::connect(&server.endpoint()).await.unwrap();
    let wrong = client.resume(credentials.device, &[0; 32]).await.unwrap_err();
    assert_eq!(wrong.code(), Some(FailureCode::Unauthenticated));
    let resumed = client.resume(credentials.device, &credentials.token).await.unwrap();
    assert!(resumed.credentials().is_none());

    first.revoke(credentials.device).await.unwrap();
    for revoked in [&second, &resumed] {
        let reason = timeout(PATIENCE, revoked.connection().closed()).await.unwrap();
        assert_eq!(reason.code(), Some(FailureCode::Revoked));
    }
    let mut client = Client::connect(&server.endpoint()).await.unwrap();
    let refused = client.resume(credentials.device, &credentials.token).await.unwrap_err();
    assert_eq!(refused.code(), Some(FailureCode::Revoked));
    assert!(!refused.is_offline());
}

/// RFC 6238 with SHA-1, six digits, thirty seconds: what an authenticator app does.
fn totp(uri: &str, secs: u64) -> String {
    let secret = uri.split("secret=").nth(1).unwrap().split('&').next().unwrap();
    let mut bits = (0_u64, 0);
    let mut key = vec![];
    for digit in secret.bytes() {
        let value = b"ABCDEFGHIJKLMNOPQRSTUVWXYZ234567".iter().position(|b| *b == digit);
        bits = ((bits.0 << 5 | value.unwrap() as u64) & 0xffff, bits.1 + 5);
        if bits.1 >= 8 {
            bits.1 -= 8;
            key.push(u8::try_from(bits.0 >> bits.1 & 0xff).unwrap());
        }
    }
    let key = ring::hmac::Key::new(ring::hmac::HMAC_SHA1_FOR_LEGACY_USE_ONLY, &key);
    let tag = ring::hmac::sign(&key, &(secs / 30).to_be_bytes());
    let at = usize::from(tag.as_ref()[19] & 15);
    let number = u32::from_be_bytes(tag.as_ref()[at..at + 4].try_into().unwrap()) & 0x7fff_ffff;
    format!("{:06}", number % 1_000_000)
}

#[tokio::test]
async fn a_second_question_is_asked_once_totp_is_in_force() {
    let server = Server::start_with(|config| {
        config.accounts.registration = picloud::server::config::Registration::Open;
    })
    .await;
    let password = "correct horse battery";
    let mut client = Client::connect(&server.endpoint()).await.unwrap();
    let step = client.register("bob", password, None, "first").await.unwrap();
    let Step::Admitted(bob) = step else {
        panic!("asked");
    };
    let uri = bob.totp_begin().await.unwrap();
    let now = || SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs();
    assert!(bob.totp_confirm("000").await.is_err());
    bob.totp_confirm(&totp(&uri, now())).await.unwrap();

    let mut client = Client::connect(&server.endpoint()).await.unwrap();
    let wrong = client.login("bob", "wrong", "second").await.unwrap_err();
    assert_eq!(wrong.code(), Some(FailureCode::Unauthenticated));
    let Step::Question(question) = client.login("bob", password, "second").await.unwrap() else {
        panic!("not asked");
    };
    assert!(!question.text.is_empty());
    assert!(client.answer("12").await.is_err());
    // The next period's code: the one that confirmed may count as used.
    let Step::Admitted(second) = client.answer(&totp(&uri, now() + 30)).await.unwrap() else {
        panic!("asked again");
    };
    assert_eq!(second.admitted().user_name, "bob");
    bob.totp_disable(password).await.unwrap();
    bob.change_password(password, "another long password").await.unwrap();
    let mut client = Client::connect(&server.endpoint()).await.unwrap();
    let step = client.login("bob", "another long password", "third").await.unwrap();
    assert!(matches!(step, Step::Admitted(_)));
}

/// Writes to a file while it is uploaded, a number of times.
struct Scribble {
    file: File,
    times: AtomicU64,
}

impl Meter for Scribble {
    fn pass(&self, _bytes: u64) -> std::pin::Pin<Box<dyn Future<Output = ()> + Send + '_>> {
        Box::pin(std::future::ready(()))
    }

    fn moved(&self, _bytes: u64) {
        let left = self.times.load(Ordering::Relaxed);
        if left > 0 {
            self.times.store(left - 1, Ordering::Relaxed);
            let byte = u8::try_from(left % 251).unwrap();
            self.file.write_all_at(&[byte], 3_000_000).unwrap();
        }
    }
}

#[tokio::test]
async fn a_file_that_is_written_to_while_it_is_read_does_not_go_up_torn() {
    let server = Server::start().await;
    let session = session(&server, "laptop").await;
    let dir = tempfile::tempdir().unwrap();
    let local = dir.path().join("busy");
    fs::write(&local, noise(1, 3 << 20)).unwrap();
    let put = async |times| {
        let scribble = Scribble {
            file: File::options().write(true).open(&local).unwrap(),
            times: AtomicU64::new(times),
        };
        let session = session.clone().with_meter(Arc::new(scribble));
        session.put_file(&local, &path("busy")).await
    };
    let outcome = put(u64::MAX).await;
    assert!(matches!(outcome, Err(ClientError::Unquiet { .. })), "{outcome:?}");
    assert!(session.stat(&path("busy")).await.unwrap().is_none());
    put(1).await.unwrap();
    let (_, bytes) = session.get(&path("busy"), vec![]).await.unwrap();
    assert!(bytes == fs::read(&local).unwrap(), "the version after the writing");
}
