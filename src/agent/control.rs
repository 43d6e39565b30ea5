//! The control socket: where `picloud` asks the running agent and tells it what to do.
//!
//! The words are in [`crate::protocol::control`]. The socket is mode 0600 and lies where only this
//! user can put one; a socket left by an agent that is gone is replaced, which is safe because the
//! agent holds the lock of its state directory by then.

use std::io;
use std::os::fd::AsRawFd as _;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::{Semaphore, broadcast, mpsc};
use tokio::task::JoinSet;
use tokio::time::{Instant, timeout};

use super::clock;
use super::run::Shared;
use crate::protocol::control::{LogFilter, LogLine, Reply, Request};

/// The longest request line in bytes: two paths of 4096 bytes each, escaped or in base64, and more.
const LINE_LEN_MAX: u64 = 64 * 1024;

/// How many conversations go on at once.
const CONVERSATIONS_MAX: usize = 64;

/// How long a client may take to say what it wants, or to take an answer.
const PATIENCE: Duration = Duration::from_secs(30);

/// How often a watcher or a waiting sync is told at most.
const TELL_EVERY: Duration = Duration::from_millis(250);

/// What the server tells of devices and room is asked for at most so often, and only when somebody
/// wants to know.
const ASK_EVERY: Duration = Duration::from_secs(5);
const ASK_EVERY_WATCHING: Duration = Duration::from_secs(20);

/// The longest path a socket address holds, in bytes: `sun_path` without its NUL.
const SOCKET_PATH_MAX: usize = 107;

/// Why there is no control socket.
#[derive(Debug, thiserror::Error)]
#[error("Cannot listen on the control socket {path:?}")]
pub struct ControlError {
    path: PathBuf,
    source: io::Error,
}

/// A directory handle that must stay open while its short path is used, and that path.
struct ShortPath {
    _dir: Option<std::fs::File>,
    path: PathBuf,
}

/// Returns a path to the socket that fits a socket address: a long one goes through the handle of
/// its directory.
fn short_path(path: &Path) -> io::Result<ShortPath> {
    use std::os::unix::ffi::OsStrExt as _;
    if path.as_os_str().as_bytes().len() <= SOCKET_PATH_MAX {
        return Ok(ShortPath { _dir: None, path: path.to_owned() });
    }
    let (Some(dir), Some(name)) = (path.parent(), path.file_name()) else {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "the path names no file"));
    };
    let dir = std::fs::File::open(dir)?;
    let path = Path::new("/proc/self/fd").join(dir.as_raw_fd().to_string()).join(name);
    Ok(ShortPath { _dir: Some(dir), path })
}

/// Connects to the control socket at `path`, however long that is.
///
/// # Errors
/// When nobody listens there.
pub fn connect(path: &Path) -> io::Result<std::os::unix::net::UnixStream> {
    let short = short_path(path)?;
    std::os::unix::net::UnixStream::connect(&short.path)
}

/// A control socket that is listened on. The file goes with it.
#[derive(Debug)]
pub(super) struct Control {
    listener: UnixListener,
    path: PathBuf,
}

impl Control {
    /// Listens at `path`. The caller holds the agent's lock, so whatever is there is dead.
    pub(super) fn listen(path: &Path) -> Result<Self, ControlError> {
        let listen = || {
            if let Some(dir) = path.parent() {
                std::fs::create_dir_all(dir)?;
            }
            match std::fs::symlink_metadata(path) {
                Ok(found) if std::os::unix::fs::FileTypeExt::is_socket(&found.file_type()) => {
                    std::fs::remove_file(path)?;
                }
                Ok(_) => {
                    return Err(io::Error::new(
                        io::ErrorKind::AlreadyExists,
                        "a file is there that is no socket: name another as [control] socket",
                    ));
                }
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) => return Err(error),
            }
            let short = short_path(path)?;
            let listener = UnixListener::bind(&short.path)?;
            // RACE: between these two calls others may connect as far as the umask lets them; they
            // could at worst ask for a status. The directory is the user's own.
            std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600))?;
            Ok(listener)
        };
        listen()
            .map(|listener| Self { listener, path: path.to_owned() })
            .map_err(|source| ControlError { path: path.to_owned(), source })
    }

    /// Serves until it is dropped; goes on at another socket when it is given one, with the
    /// conversations that are under way.
    pub(super) async fn serve(mut self, shared: Arc<Shared>, mut moves: mpsc::Receiver<Self>) {
        let conversations = Arc::new(Semaphore::new(CONVERSATIONS_MAX));
        let mut tasks = JoinSet::new();
        loop {
            while tasks.try_join_next().is_some() {}
            let Ok(permit) = Arc::clone(&conversations).acquire_owned().await else {
                return;
            };
            let accepted = tokio::select! {
                accepted = self.listener.accept() => accepted,
                Some(moved) = moves.recv() => {
                    self = moved;
                    continue;
                }
            };
            match accepted {
                Ok((stream, _)) => {
                    let shared = Arc::clone(&shared);
                    tasks.spawn(async move {
                        // A client that went away is no news.
                        converse(stream, &shared).await.ok();
                        drop(permit);
                    });
                }
                Err(error) => {
                    tracing::warn!(%error, "cannot accept on the control socket");
                    tokio::time::sleep(Duration::from_millis(200)).await;
                }
            }
        }
    }
}

impl Drop for Control {
    fn drop(&mut self) {
        // What is left over is replaced by the next agent.
        drop(std::fs::remove_file(&self.path));
    }
}

struct Client {
    write: OwnedWriteHalf,
}

impl Client {
    async fn tell(&mut self, reply: &Reply) -> io::Result<()> {
        let mut line = serde_json::to_vec(reply)?;
        line.push(b'\n');
        timeout(PATIENCE, self.write.write_all(&line)).await?
    }
}

/// Returns when the client has closed its end (or says more, which no request calls for).
async fn gone(read: &mut BufReader<OwnedReadHalf>) {
    let mut byte = [0];
    // Whatever comes, the conversation is over.
    read.read_exact(&mut byte).await.ok();
}

async fn converse(stream: UnixStream, shared: &Arc<Shared>) -> io::Result<()> {
    let (read, write) = stream.into_split();
    let mut client = Client { write };
    let mut read = BufReader::new(read);
    let mut line = String::new();
    let mut limited = (&mut read).take(LINE_LEN_MAX);
    timeout(PATIENCE, limited.read_line(&mut line)).await??;
    let request = match serde_json::from_str(&line) {
        Ok(request) => request,
        Err(error) => {
            let message = format!("The agent does not know this request: {error}");
            return client.tell(&Reply::Error { message }).await;
        }
    };
    match request {
        Request::Status => {
            shared.ask_servers(ASK_EVERY).await;
            client.tell(&Reply::Status(shared.status())).await
        }
        Request::Watch => tokio::select! {
            () = gone(&mut read) => Ok(()),
            told = watch(&mut client, shared) => told,
        },
        Request::Sync => tokio::select! {
            () = gone(&mut read) => Ok(()),
            told = sync(&mut client, shared) => told,
        },
        Request::Pause | Request::Resume => {
            let paused = request == Request::Pause;
            let reply = match shared.pause(paused) {
                Ok(still) if paused || still.is_empty() => Reply::Ok,
                Ok(folders) => Reply::StillPaused { folders },
                Err(message) => Reply::Error { message },
            };
            client.tell(&reply).await
        }
        Request::Conflicts => {
            let conflicts = shared.conflicts().await;
            client.tell(&Reply::Conflicts { conflicts }).await
        }
        Request::Resolve { folder, path, keep, seen } => {
            let reply = match shared.resolve(&folder, path.0, keep, seen).await {
                Ok(resolved) => Reply::Resolved(resolved),
                Err(message) => Reply::Error { message },
            };
            client.tell(&reply).await
        }
        Request::Why { folder, path } => {
            let reply = match shared.why(&folder, path.0).await {
                Ok(standing) => Reply::Why { standing },
                Err(message) => Reply::Error { message },
            };
            client.tell(&reply).await
        }
        Request::Exclude { folder, path } => {
            let reply = match shared.exclude(&folder, path.0).await {
                Ok(dir) => Reply::LeftOut { dirs: vec![dir] },
                Err(message) => Reply::Error { message },
            };
            client.tell(&reply).await
        }
        Request::Include { folder, path } => {
            let reply = match shared.include(&folder, path.0).await {
                Ok(dir) => Reply::LeftOut { dirs: vec![dir] },
                Err(message) => Reply::Error { message },
            };
            client.tell(&reply).await
        }
        Request::Kept { folder, path, end } => {
            let reply = match shared.kept(&folder, path.0, end).await {
                Ok(kept) => Reply::Kept(kept),
                Err(message) => Reply::Error { message },
            };
            client.tell(&reply).await
        }
        Request::LeftOut => {
            let reply = match shared.left_out().await {
                Ok(dirs) => Reply::LeftOut { dirs },
                Err(message) => Reply::Error { message },
            };
            client.tell(&reply).await
        }
        Request::Log { lines, follow, only } => {
            let count = usize::try_from(lines).unwrap_or(usize::MAX);
            let happenings = Arc::clone(shared);
            let (past, coming, only) = tokio::task::spawn_blocking(move || {
                let (past, coming) = happenings.happenings().last(count, &only);
                (past, coming, only)
            })
            .await?;
            for line in past {
                client.tell(&Reply::Log(line)).await?;
            }
            if !follow {
                return client.tell(&Reply::Ok).await;
            }
            tokio::select! {
                () = gone(&mut read) => Ok(()),
                told = follow_log(&mut client, coming, &only) => told,
            }
        }
    }
}

async fn watch(client: &mut Client, shared: &Shared) -> io::Result<()> {
    let mut changes = shared.changes();
    let mut last = None;
    loop {
        changes.borrow_and_update();
        shared.ask_servers(ASK_EVERY_WATCHING).await;
        let status = shared.status();
        if last.as_ref() != Some(&status) {
            client.tell(&Reply::Status(status.clone())).await?;
            last = Some(status);
        }
        // Devices come and go without a change here.
        if let Ok(Err(_)) = timeout(ASK_EVERY_WATCHING, changes.changed()).await {
            return Ok(());
        }
        tokio::time::sleep(TELL_EVERY).await;
    }
}

async fn sync(client: &mut Client, shared: &Arc<Shared>) -> io::Result<()> {
    let mut changes = shared.changes();
    let complete = shared.sync();
    tokio::pin!(complete);
    let mut told_at = None::<Instant>;
    loop {
        tokio::select! {
            biased;
            () = &mut complete => {
                return client.tell(&Reply::Synced(shared.status())).await;
            }
            changed = changes.changed() => {
                if changed.is_err() {
                    return Ok(());
                }
                if told_at.is_none_or(|at| at.elapsed() >= TELL_EVERY) {
                    client.tell(&Reply::Progress(shared.status())).await?;
                    told_at = Some(Instant::now());
                }
            }
        }
    }
}

async fn follow_log(
    client: &mut Client,
    mut coming: broadcast::Receiver<LogLine>,
    only: &LogFilter,
) -> io::Result<()> {
    while !only.is_over(clock::wall().secs) {
        match coming.recv().await {
            Ok(line) if !only.passes(&line) => {}
            Ok(line) => client.tell(&Reply::Log(line)).await?,
            // It was too slow; it goes on with what is next.
            Err(broadcast::error::RecvError::Lagged(_)) => {}
            Err(broadcast::error::RecvError::Closed) => return Ok(()),
        }
    }
    client.tell(&Reply::Ok).await
}
