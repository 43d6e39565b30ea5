//! What both ends of a connection share: the queue of frames to send, the task that writes them,
//! and the one place where it is recorded that, and why, the connection has ended.
//!
//! The queue is bounded by bytes. Frames leave in the order in which they were queued; small ones
//! that wait together leave in one write. A peer that takes no bytes for
//! [`limits::STALL_SECS`] ends the connection, so it cannot hold the queue's memory for longer.

use std::fmt;
use std::io;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt, WriteHalf};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, watch};
use tokio::time::{Instant, timeout};

use super::frame::{EncodedFrame, FrameError, Patience};
use super::limits;
use super::message::{Bye, Failure, FailureCode, Message};

/// A stream that carries a connection: TLS over TCP, or a pipe in a test.
pub(super) trait Stream: AsyncRead + AsyncWrite + Send + Unpin + 'static {}

impl<S: AsyncRead + AsyncWrite + Send + Unpin + 'static> Stream for S {}

/// Why a connection has ended.
#[derive(Debug, Clone, thiserror::Error)]
pub enum CloseReason {
    /// This side let go of it.
    #[error("The connection was closed")]
    Dropped,
    /// The other side closed it between two frames.
    #[error("The other side closed the connection")]
    ClosedByPeer,
    /// The server said that it ends the connection, and why.
    #[error("{}", .0.message)]
    Bye(Bye),
    /// The server found the connection itself at fault.
    #[error("{0}")]
    Refused(Failure),
    /// This side ended it for this reason.
    #[error("{message}")]
    Ended {
        /// For a program.
        code: FailureCode,
        /// For a person.
        message: String,
    },
    /// The other side took no bytes for too long.
    #[error("The other side took no data for {} seconds", limits::STALL_SECS)]
    Stalled,
    /// The other side is there, but left a request without an answer for too long.
    #[error("The server answers no requests: one got nothing for {} seconds", .0.as_secs())]
    Unanswered(Duration),
    /// Reading or understanding what came failed.
    #[error("{0}")]
    Frame(Arc<FrameError>),
    /// Writing failed.
    #[error("The connection failed: {0}")]
    Write(Arc<io::Error>),
}

impl CloseReason {
    /// Returns the server's code, where it gave one: [`FailureCode::Revoked`] means that trying
    /// again is of no use.
    #[must_use]
    pub fn code(&self) -> Option<FailureCode> {
        match self {
            Self::Bye(bye) => Some(bye.code),
            Self::Refused(failure) => Some(failure.code),
            _ => None,
        }
    }
}

impl From<FrameError> for CloseReason {
    fn from(error: FrameError) -> Self {
        Self::Frame(Arc::new(error))
    }
}

/// Why a message could not be queued.
#[derive(Debug, thiserror::Error)]
pub enum SendError {
    /// The connection has ended.
    #[error(transparent)]
    Closed(CloseReason),
    /// The message is over the limit in force, or cannot be encoded.
    #[error(transparent)]
    Message(#[from] FrameError),
}

#[derive(Debug, Clone)]
struct End {
    reason: CloseReason,
    /// The last frame to write; what is queued is dropped.
    farewell: Option<EncodedFrame>,
}

enum Item {
    Frame {
        frame: EncodedFrame,
        /// Gives the queue its room back when the frame has been written.
        _room: OwnedSemaphorePermit,
    },
    /// Everything before this was sent: end for this reason.
    Finish(CloseReason),
}

/// The shared state of a connection.
pub(super) struct Line {
    queue: mpsc::Sender<Item>,
    room: Arc<Semaphore>,
    authenticated: AtomicBool,
    end: watch::Sender<Option<End>>,
    started: Instant,
    /// Milliseconds after `started` at which the peer last took part of a long frame.
    progress_ms: AtomicU64,
}

impl Line {
    /// Starts the writing task over this half of a stream.
    pub(super) fn start<S: Stream>(half: WriteHalf<S>) -> Arc<Self> {
        let (queue, items) = mpsc::channel(QUEUE_COUNT_MAX);
        let line = Arc::new(Self {
            queue,
            room: Arc::new(Semaphore::new(limits::QUEUE_LEN_MAX)),
            authenticated: AtomicBool::new(false),
            end: watch::Sender::new(None),
            started: Instant::now(),
            progress_ms: AtomicU64::new(0),
        });
        let writer = Writer { half, items, line: Arc::clone(&line) };
        tokio::spawn(writer.run());
        line
    }

    /// Returns the longest body in force, for both directions.
    pub(super) fn body_len_max(&self) -> usize {
        if self.authenticated.load(Ordering::Acquire) {
            limits::BODY_LEN_MAX
        } else {
            limits::BODY_LEN_MAX_GUEST
        }
    }

    /// From now on the limits of an authenticated device hold.
    pub(super) fn set_authenticated(&self) {
        self.authenticated.store(true, Ordering::Release);
    }

    pub(super) fn is_authenticated(&self) -> bool {
        self.authenticated.load(Ordering::Acquire)
    }

    pub(super) fn encode<M: Message>(
        &self,
        request: u32,
        message: &M,
    ) -> Result<EncodedFrame, FrameError> {
        EncodedFrame::new(request, message, self.body_len_max())
    }

    /// Queues a frame once there is room for it.
    pub(super) async fn send(&self, frame: EncodedFrame) -> Result<(), SendError> {
        let room = Arc::clone(&self.room);
        match room.acquire_many_owned(cost(&frame)).await {
            Ok(room) => self.queue(Item::Frame { frame, _room: room }),
            Err(_) => Err(SendError::Closed(self.reason())),
        }
    }

    /// Queues a frame if there is room for it now; returns whether there was.
    pub(super) fn try_send(&self, frame: EncodedFrame) -> bool {
        let room = Arc::clone(&self.room);
        match room.try_acquire_many_owned(cost(&frame)) {
            Ok(room) => self.queue(Item::Frame { frame, _room: room }).is_ok(),
            Err(_) => false,
        }
    }

    /// Ends the connection once what is queued has been sent.
    pub(super) fn finish(&self, reason: CloseReason) {
        if let Err(error) = self.queue.try_send(Item::Finish(reason.clone())) {
            // Ended already; or so often asked to that the queue is full of it.
            drop(error);
            self.end(reason, None);
        }
    }

    /// Never waits: frames in the queue have their room, and there is a place for each that has.
    fn queue(&self, item: Item) -> Result<(), SendError> {
        self.queue.try_send(item).map_err(|_| SendError::Closed(self.reason()))
    }

    /// Ends the connection now. Only the first reason counts.
    pub(super) fn end(&self, reason: CloseReason, farewell: Option<EncodedFrame>) {
        self.end.send_if_modified(|end| {
            let first = end.is_none();
            if first {
                *end = Some(End { reason, farewell });
            }
            first
        });
        self.room.close();
    }

    /// Returns why the connection has ended, when it has.
    pub(super) fn ended(&self) -> Option<CloseReason> {
        self.end.borrow().as_ref().map(|end| end.reason.clone())
    }

    /// Waits for the end, and returns its reason.
    pub(super) async fn closed(&self) -> CloseReason {
        self.until_end().await.reason
    }

    async fn until_end(&self) -> End {
        let mut end = self.end.subscribe();
        let ended = match end.wait_for(Option::is_some).await {
            Ok(end) => end.clone(),
            Err(_) => None,
        };
        ended.unwrap_or(End { reason: CloseReason::Dropped, farewell: None })
    }

    fn reason(&self) -> CloseReason {
        self.ended().unwrap_or(CloseReason::Dropped)
    }

    fn now_ms(&self) -> u64 {
        u64::try_from(self.started.elapsed().as_millis()).unwrap_or(u64::MAX)
    }
}

impl fmt::Debug for Line {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Line").field("ended", &self.ended()).finish_non_exhaustive()
    }
}

/// A reader is patient with a peer that is busy taking a long frame from us.
impl Patience for Line {
    fn limit(&self) -> Duration {
        Duration::from_secs(3 * limits::KEEPALIVE_SECS)
    }

    fn extend(&self) -> bool {
        let progress = self.progress_ms.load(Ordering::Relaxed);
        let age = self.now_ms().saturating_sub(progress);
        progress > 0 && u128::from(age) < self.limit().as_millis()
    }
}

/// The least that a frame takes of the queue's room: about what it costs to hold.
const COST_MIN: usize = 256;

/// Places in the queue: for as many frames as have room, and some requests to finish.
const QUEUE_COUNT_MAX: usize = limits::QUEUE_LEN_MAX / COST_MIN + 64;

/// What a frame takes of the queue's room.
fn cost(frame: &EncodedFrame) -> u32 {
    let cost = frame.as_bytes().len().clamp(COST_MIN, limits::QUEUE_LEN_MAX);
    u32::try_from(cost).unwrap_or(u32::MAX)
}

/// For the rest of a frame, the farewell, and the shutdown, each.
const FAREWELL: Duration = Duration::from_secs(2);

/// The task that writes.
struct Writer<S> {
    half: WriteHalf<S>,
    items: mpsc::Receiver<Item>,
    line: Arc<Line>,
}

impl<S: Stream> Writer<S> {
    /// A frame of at least this many bytes is written by itself, not copied to join others.
    const LONG: usize = 16 * 1024;
    /// How much is handed over at once, and must be taken within the stall limit.
    const PIECE: usize = 64 * 1024;
    async fn run(mut self) {
        if let Err(error) = self.write_until_end().await {
            let reason = match error.kind() {
                io::ErrorKind::TimedOut => CloseReason::Stalled,
                _ => CloseReason::Write(Arc::new(error)),
            };
            self.line.end(reason, None);
        }
        // Whoever still holds the line must not hold the frames that will never be sent.
        self.items.close();
        while self.items.try_recv().is_ok() {}
        if let Some(farewell) = self.line.until_end().await.farewell {
            let half = &mut self.half;
            let writing = async {
                half.write_all(farewell.as_bytes()).await?;
                half.flush().await
            };
            // The peer may be gone already: the farewell is a courtesy.
            timeout(FAREWELL, writing).await.ok();
        }
        timeout(FAREWELL, self.half.shutdown()).await.ok();
    }

    /// Returns when the line has ended, after a whole frame or with an error.
    async fn write_until_end(&mut self) -> io::Result<()> {
        let mut together = Vec::new();
        loop {
            let line = Arc::clone(&self.line);
            let first = tokio::select! {
                biased;
                _ = line.until_end() => return Ok(()),
                item = self.items.recv() => item,
            };
            let mut held = Vec::new();
            let mut next = first;
            let mut finish = None;
            while let Some(item) = next {
                match item {
                    Item::Finish(reason) => {
                        finish = Some(reason);
                        break;
                    }
                    Item::Frame { frame, _room } if frame.as_bytes().len() < Self::LONG => {
                        together.extend_from_slice(frame.as_bytes());
                        held.push(_room);
                    }
                    Item::Frame { frame, _room } => {
                        self.write(&together).await?;
                        together.clear();
                        held.clear();
                        self.write(frame.as_bytes()).await?;
                    }
                }
                if together.len() >= Self::PIECE {
                    self.write(&together).await?;
                    together.clear();
                    held.clear();
                }
                if self.line.ended().is_some() {
                    return Ok(());
                }
                next = self.items.try_recv().ok();
            }
            self.write(&together).await?;
            unless_stalled(&self.line, self.half.flush()).await?;
            drop(held);
            // Nothing is kept for an idle connection.
            together = Vec::new();
            if let Some(reason) = finish {
                self.line.end(reason, None);
                return Ok(());
            }
        }
    }

    async fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        for piece in bytes.chunks(Self::PIECE) {
            unless_stalled(&self.line, self.half.write_all(piece)).await?;
            if bytes.len() >= Self::PIECE {
                let now = self.line.now_ms().max(1);
                self.line.progress_ms.store(now, Ordering::Relaxed);
            }
        }
        Ok(())
    }
}

/// Runs one step of writing to its end, but for no longer than a peer may stall, and for no longer
/// than a farewell may take once the line has ended.
async fn unless_stalled(line: &Line, step: impl Future<Output = io::Result<()>>) -> io::Result<()> {
    let mut step = pin!(timeout(Duration::from_secs(limits::STALL_SECS), step));
    tokio::select! {
        biased;
        done = &mut step => return done?,
        _ = line.until_end() => {}
    }
    timeout(FAREWELL, step).await??
}
