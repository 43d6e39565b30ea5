//! The conversation on the control socket.

#![allow(clippy::unwrap_used, reason = "a test ends where something fails")]

mod agent_support;
mod server_support;

use std::io::{BufRead, BufReader, Write};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;

use agent_support::Machine;
use picloud::agent::control;
use picloud::protocol::control::{LogFilter, Reply, Request, State, Status};
use server_support::{PATIENCE, Server};

fn ask_raw(machine: &Machine, line: &str) -> BufReader<UnixStream> {
    let mut stream = control::connect(&machine.socket()).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    stream.write_all(line.as_bytes()).unwrap();
    stream.write_all(b"\n").unwrap();
    BufReader::new(stream)
}

fn ask(machine: &Machine, request: &Request) -> BufReader<UnixStream> {
    ask_raw(machine, &serde_json::to_string(request).unwrap())
}

fn next(replies: &mut BufReader<UnixStream>) -> Reply {
    let mut line = String::new();
    replies.read_line(&mut line).unwrap();
    serde_json::from_str(&line).unwrap_or_else(|error| panic!("{error}: {line:?}"))
}

fn sync(machine: &Machine) -> Status {
    let mut replies = ask(machine, &Request::Sync);
    loop {
        match next(&mut replies) {
            Reply::Progress(_) => {}
            Reply::Synced(status) => return status,
            other => panic!("{other:?}"),
        }
    }
}

/// Blocking on the socket must not block the agent, which is in this process too.
async fn off_to_the_side<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
    tokio::task::spawn_blocking(work).await.unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_person_asks_and_is_answered() {
    let server = Server::start().await;
    let a = Machine::join(&server, "a").await;
    let mode = std::fs::metadata(a.socket()).unwrap().permissions().mode() & 0o777;
    assert_eq!(mode, 0o600);
    a.write("one", "1");
    a.write("one (conflicted copy a 2026-01-02).txt", "22");
    off_to_the_side(move || {
        let status = sync(&a);
        assert_eq!((status.version, status.state), (1, State::InSync));
        let folder = &status.folders[0];
        assert_eq!((folder.files, folder.bytes, folder.conflicts), (2, 3, 1));
        assert_eq!((folder.user.as_str(), folder.device.as_str()), ("alice", "a"));

        let Reply::Conflicts { conflicts } = next(&mut ask(&a, &Request::Conflicts)) else {
            panic!("no conflicts");
        };
        assert_eq!(conflicts.len(), 1);
        assert_eq!((conflicts[0].original.as_str(), conflicts[0].bytes), ("one.txt", 2));

        let only = LogFilter::default();
        let mut log = ask(&a, &Request::Log { lines: 10, follow: true, only });
        for _ in 0..2 {
            let Reply::Log(line) = next(&mut log) else { panic!("no line") };
            assert_eq!(line.event, "sent");
        }
        let mut watch = ask(&a, &Request::Watch);
        assert!(matches!(next(&mut watch), Reply::Status(status) if status.state == State::InSync));
        assert_eq!(next(&mut ask(&a, &Request::Pause)), Reply::Ok);
        assert!(matches!(next(&mut watch), Reply::Status(status) if status.state == State::Paused));
        assert_eq!(sync(&a).state, State::Paused);
        assert_eq!(next(&mut ask(&a, &Request::Resume)), Reply::Ok);
        a.write("three", "3");
        let Reply::Log(line) = next(&mut log) else { panic!("no line") };
        assert_eq!((line.event.as_str(), line.path.as_str()), ("sent", "three"));

        for nonsense in ["{}", "", "{\"type\":\"destroy\"}", &"x".repeat(100_000)] {
            let mut line = String::new();
            // A line that is far too long may be cut off without an answer.
            if ask_raw_gently(&a, nonsense, &mut line) {
                assert!(line.contains("does not know this request"), "{line}");
            }
        }
        assert!(matches!(next(&mut ask(&a, &Request::Status)), Reply::Status(_)));
    })
    .await;
}

fn ask_raw_gently(machine: &Machine, line: &str, answer: &mut String) -> bool {
    let mut stream = control::connect(&machine.socket()).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    stream.write_all(line.as_bytes()).is_ok()
        && stream.write_all(b"\n").is_ok()
        && BufReader::new(stream).read_line(answer).is_ok()
        && !answer.is_empty()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_socket_may_lie_deeper_than_a_socket_address_is_long() {
    let server = Server::start().await;
    let mut a = Machine::linked(&server, "a").await;
    let deep = a.dir.path().join("d".repeat(100)).join("e".repeat(100));
    let config = std::fs::read_to_string(a.config()).unwrap();
    let socket = deep.join("agent.sock");
    let config = config.replace("\"agent.sock\"", &format!("{:?}", socket.to_str().unwrap()));
    std::fs::write(a.config(), config).unwrap();
    a.start().await;
    let answer = off_to_the_side(move || {
        let mut stream = control::connect(&socket).unwrap();
        stream.write_all(b"{\"type\":\"status\"}\n").unwrap();
        next(&mut BufReader::new(stream))
    })
    .await;
    assert!(matches!(answer, Reply::Status(_)));
}
