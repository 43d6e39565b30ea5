//! `GET /metrics` and `GET /healthz` over HTTP/1.1, for Prometheus and whoever watches the box.
//!
//! Off unless the settings name an address. One request per connection, no body, and bounds on everything:
//! connections, the length of a request, the time. That is all of HTTP that is needed here, and less to
//! trust than a library that speaks all of it.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Mutex, Semaphore};
use tokio::time::{sleep, timeout};

use super::metrics;
use super::session::Shared;
use super::store::StoreError;
use super::store::metadata::Metadata;
use crate::protocol::certificate::Validity;

/// Connections at once; who comes when there are more is hung up on.
const CONNECTIONS_MAX: usize = 16;

/// The longest request line with its headers.
const REQUEST_LEN_MAX: usize = 8 * 1024;

/// How long a connection may take, from its first byte to its last.
const PATIENCE: Duration = Duration::from_secs(15);

/// A server whose writer or disk takes longer is not well.
const HEALTHY_WITHIN: Duration = Duration::from_secs(5);

/// How long the listener rests when the system has no descriptors left.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// What is served.
#[derive(Debug)]
pub struct Web {
    shared: Arc<Shared>,
    validity: Option<Validity>,
    /// Held while the disk is tried: on one that hangs, the tries must not pile up.
    trying: Arc<Mutex<()>>,
}

struct Answer {
    status: &'static str,
    kind: &'static str,
    body: String,
}

impl Answer {
    fn text(status: &'static str, body: impl Into<String>) -> Self {
        let mut body = body.into();
        body.push('\n');
        Self { status, kind: "text/plain; charset=utf-8", body }
    }
}

impl Web {
    /// Serves these.
    #[must_use]
    pub fn new(shared: Arc<Shared>, validity: Option<Validity>) -> Self {
        Self { shared, validity, trying: Arc::default() }
    }

    /// Answers until the task is ended.
    pub async fn serve(self, listener: TcpListener) {
        let web = Arc::new(self);
        let seats = Arc::new(Semaphore::new(CONNECTIONS_MAX));
        loop {
            let (tcp, peer) = match listener.accept().await {
                Ok(accepted) => accepted,
                Err(error) => {
                    tracing::warn!(%error, "no connection for metrics could be accepted");
                    sleep(ACCEPT_PAUSE).await;
                    continue;
                }
            };
            let Ok(seat) = Arc::clone(&seats).try_acquire_owned() else {
                continue;
            };
            let web = Arc::clone(&web);
            tokio::spawn(async move {
                let _seat = seat;
                // Who went away or was too slow needs no answer.
                timeout(PATIENCE, web.converse(tcp, peer)).await.ok();
            });
        }
    }

    async fn converse(&self, mut tcp: TcpStream, peer: SocketAddr) -> std::io::Result<()> {
        let (answer, with_body) = match read_request(&mut tcp).await? {
            Request::Get(path) => (self.answer(&path).await, true),
            Request::Head(path) => (self.answer(&path).await, false),
            Request::Other(answer) => (answer, true),
        };
        if answer.status.starts_with('5') {
            tracing::warn!(%peer, status = answer.status, reason = answer.body.trim(), "not healthy");
        }
        let mut text = format!(
            "HTTP/1.1 {}\r\nContent-Type: {}\r\nContent-Length: {}\r\nCache-Control: no-store\r\n\
             Connection: close\r\n\r\n",
            answer.status,
            answer.kind,
            answer.body.len()
        );
        if with_body {
            text.push_str(&answer.body);
        }
        tcp.write_all(text.as_bytes()).await?;
        tcp.shutdown().await
    }

    async fn answer(&self, path: &str) -> Answer {
        match path.split('?').next() {
            Some("/metrics") => match metrics::render(&self.shared, self.validity).await {
                Ok(body) => Answer {
                    status: "200 OK",
                    kind: "text/plain; version=0.0.4; charset=utf-8",
                    body,
                },
                Err(error) => Answer::text("500 Internal Server Error", error.to_string()),
            },
            Some("/healthz") => match self.health().await {
                Ok(()) => Answer::text("200 OK", "ok"),
                Err(reason) => Answer::text("503 Service Unavailable", reason),
            },
            _ => Answer::text("404 Not Found", "there are /metrics and /healthz"),
        }
    }

    /// Finds out whether the writer is alive and the disk takes what it is given.
    async fn health(&self) -> Result<(), String> {
        let limit = HEALTHY_WITHIN.as_secs();
        let written = self.shared.store.write(|_: &mut dyn Metadata| Ok(()));
        match timeout(HEALTHY_WITHIN, written).await {
            Err(_) => return Err(format!("the writer did not answer within {limit} seconds")),
            Ok(Err(error)) => return Err(format!("the writer failed: {error}")),
            Ok(Ok(())) => {}
        }
        let Ok(held) = Arc::clone(&self.trying).try_lock_owned() else {
            return Err("the disk has not answered the last try yet".to_owned());
        };
        let shared = Arc::clone(&self.shared);
        let trying = tokio::task::spawn_blocking(move || {
            let _held = held;
            try_disk(&shared)
        });
        match timeout(HEALTHY_WITHIN, trying).await {
            Err(_) => Err(format!("the disk did not take a write within {limit} seconds")),
            Ok(Err(_)) => Err("the try of the disk failed".to_owned()),
            Ok(Ok(tried)) => tried.map_err(|error| crate::checkup::in_words(&error)),
        }
    }
}

/// Writes a file, makes it durable and removes it, as contents are; fails when they would be refused.
fn try_disk(shared: &Shared) -> Result<(), StoreError> {
    use std::io::Write as _;
    use std::os::unix::fs::OpenOptionsExt as _;
    if shared.room()?.0 == 0 {
        return Err(StoreError::DiskFull);
    }
    let path = shared.layout.dir().join("health.tmp");
    let write = || {
        let mut file = std::fs::OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(true)
            .mode(0o600)
            .open(&path)?;
        file.write_all(b"alive\n")?;
        file.sync_data()?;
        std::fs::remove_file(&path)
    };
    write().map_err(StoreError::file("write", &path))
}

enum Request {
    Get(String),
    Head(String),
    Other(Answer),
}

/// Reads a request up to the empty line that ends its headers.
async fn read_request(tcp: &mut TcpStream) -> std::io::Result<Request> {
    let mut bytes = Vec::with_capacity(1024);
    let mut piece = [0; 1024];
    while !bytes.windows(4).any(|end| end == b"\r\n\r\n") {
        if bytes.len() >= REQUEST_LEN_MAX {
            let status = "431 Request Header Fields Too Large";
            return Ok(Request::Other(Answer::text(status, "the request is too long")));
        }
        let read = tcp.read(&mut piece).await?;
        if read == 0 {
            return Err(std::io::ErrorKind::UnexpectedEof.into());
        }
        bytes.extend_from_slice(&piece[..read]);
    }
    let line = bytes.split(|byte| *byte == b'\r').next().unwrap_or_default();
    let words: Vec<&str> = std::str::from_utf8(line).unwrap_or_default().split(' ').collect();
    Ok(match words[..] {
        [method, path, "HTTP/1.1" | "HTTP/1.0"] if path.starts_with('/') => match method {
            "GET" => Request::Get(path.to_owned()),
            "HEAD" => Request::Head(path.to_owned()),
            _ => Request::Other(Answer::text("405 Method Not Allowed", "only GET is answered")),
        },
        _ => Request::Other(Answer::text("400 Bad Request", "that is no HTTP/1.1 request")),
    })
}
