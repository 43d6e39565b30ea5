//! The device's end of a connection.
//!
//! Two tasks serve a [`Connection`]: one reads, hands replies to whoever waits for them and pushes
//! to the one channel, and keeps the connection alive; the other writes. Both end with the
//! connection, which ends when its last clone is dropped. Everything that then still waits for a
//! reply fails with the same reason.
//!
//! A server that is alive and answers no requests is given up as well. How long a request may travel
//! nobody knows, with megabytes before it on a slow line. But the server answers a ping only after it
//! has read what was sent before: from a pong on, those requests count as arrived, and when nothing
//! of any answer comes for [`limits::ANSWER_SECS`] then, the connection ends.

use std::collections::HashMap;
use std::fmt;
use std::io;
use std::marker::PhantomData;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use rustls::pki_types::ServerName;
use tokio::io::{AsyncRead, AsyncWrite, ReadHalf};
use tokio::net::TcpStream;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, oneshot};
use tokio::time::{Instant, MissedTickBehavior, interval, interval_at, timeout};

use super::certificate::{self, Validity};
use super::frame::{FrameError, IncomingFrame, Patience, kind_name, read_frame};
use super::limits;
use super::line::{CloseReason, Line, SendError, Stream};
use super::message::{
    AuthReply, Bye, Coming, Failure, GetSplice, HeldNow, Hello, HelloReply, ListBatches, Message,
    PROTOCOL, Page, Ping, PutList, PutSplice, Request, UndoBatch, UsageNow,
};
use super::tls::{ALPN, TlsError, Trust, WrongFingerprint, connector};
use crate::model::Fingerprint;

/// Where a server is, and how it is known to be the right one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Endpoint {
    /// `HOST:PORT`; an IPv6 address in brackets.
    pub address: String,
    /// How it is known.
    pub trust: Trust,
}

impl Endpoint {
    fn host_and_port(&self) -> Option<(&str, u16)> {
        let (host, port) = self.address.rsplit_once(':')?;
        let inner = host.strip_prefix('[').and_then(|rest| rest.strip_suffix(']'));
        let host = inner.unwrap_or(host);
        (!host.is_empty()).then_some((host, port.parse().ok()?))
    }
}

/// Why no connection came about.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    /// The address is not one.
    #[error("{address:?} is not HOST:PORT")]
    Address {
        /// What was given.
        address: String,
    },
    /// The server cannot be reached.
    #[error("Cannot reach the server at {address}")]
    Unreachable {
        /// Its address.
        address: String,
        /// Why.
        source: io::Error,
    },
    /// The server was too slow.
    #[error("The server at {address} did not answer within {} seconds", limits::HANDSHAKE_SECS)]
    Timeout {
        /// Its address.
        address: String,
    },
    /// The server is another one, or somebody sits in between.
    #[error(
        "The server at {address} shows another certificate than the join link names: \
         expected {expected}, found {found}"
    )]
    WrongFingerprint {
        /// Its address.
        address: String,
        /// The certificate pinned.
        expected: Fingerprint,
        /// The certificate shown.
        found: Fingerprint,
    },
    /// No encrypted connection to the server came about.
    #[error("Cannot make an encrypted connection to {address}")]
    Tls {
        /// Its address.
        address: String,
        /// Why.
        source: io::Error,
    },
    /// TLS cannot be set up on this machine.
    #[error(transparent)]
    Setup(#[from] TlsError),
    /// What answers is not a PiCloud server.
    #[error("What answers at {address} is not a PiCloud server")]
    NotPicloud {
        /// Its address.
        address: String,
    },
    /// The two speak no common protocol.
    #[error("The server speaks protocol {theirs}, this program {PROTOCOL}: upgrade this program")]
    Version {
        /// What the server chose.
        theirs: u16,
    },
    /// The server answered the hello with a refusal.
    #[error(transparent)]
    Refused(Failure),
    /// The connection ended during the hello.
    #[error("The server at {address} ended the connection: {reason}")]
    Closed {
        /// Its address.
        address: String,
        /// Why.
        reason: CloseReason,
    },
}

impl ConnectError {
    /// Returns whether the server could just not be reached, so that trying again later may help
    /// without anyone doing anything.
    #[must_use]
    pub fn is_offline(&self) -> bool {
        match self {
            Self::Unreachable { .. } | Self::Timeout { .. } | Self::Closed { .. } => true,
            // Cut off in the midst of it. What is wrong with what came is invalid data.
            Self::Tls { source, .. } => source.kind() != io::ErrorKind::InvalidData,
            _ => false,
        }
    }
}

/// Why a request has no reply.
#[derive(Debug, thiserror::Error)]
pub enum CallError {
    /// The server refused it.
    #[error(transparent)]
    Failed(#[from] Failure),
    /// The connection ended first: the request may have been carried out or not.
    #[error("The connection to the server ended: {0}")]
    Closed(CloseReason),
    /// The request cannot be sent, or its reply cannot be understood.
    #[error(transparent)]
    Message(#[from] FrameError),
}

impl From<SendError> for CallError {
    fn from(error: SendError) -> Self {
        match error {
            SendError::Closed(reason) => Self::Closed(reason),
            SendError::Message(error) => Self::Message(error),
        }
    }
}

/// What the server says unasked.
#[derive(Debug)]
pub enum Push {
    /// A piece of a journal.
    Page(Page),
    /// The mass deletions of a drive that wait for a person.
    Held(HeldNow),
    /// How much of the room of a drive's owner is in use now.
    Usage(UsageNow),
    /// Another device is sending a content.
    Coming(Coming),
    /// The server ends the connection; nothing follows.
    Bye(Bye),
}

/// A connection to a server; clones share it.
#[derive(Clone)]
pub struct Connection {
    handle: Arc<Handle>,
}

struct Handle {
    shared: Arc<Shared>,
    hello: HelloReply,
    certificate: Option<Validity>,
    _owner: LineOwner,
}

/// Ends the connection when it is dropped: with the last clone of a [`Connection`], or with an
/// opening that failed or that nobody waits for any more. The task that writes holds the socket,
/// and ends for nothing else.
struct LineOwner(Arc<Line>);

impl Drop for LineOwner {
    fn drop(&mut self) {
        self.0.end(CloseReason::Dropped, None);
    }
}

struct Shared {
    line: Arc<Line>,
    calls: Mutex<Calls>,
    in_flight: Arc<Semaphore>,
}

/// The requests that wait for their replies.
#[derive(Default)]
struct Calls {
    last: u32,
    waiting: HashMap<u32, Call>,
    /// How many calls there were.
    made: u64,
    /// How many of those that are no pings were answered.
    answered: u64,
    /// When something of an answer to one that is no ping came last.
    heard: Option<Instant>,
    /// Set once, when nothing more can be answered.
    over: Option<CloseReason>,
}

struct Call {
    reply: oneshot::Sender<Result<IncomingFrame, CloseReason>>,
    /// How many calls were made before this one.
    order: u64,
    /// How long it may wait once it has arrived; a ping is not waited for.
    patience: Option<Duration>,
    /// From when on the server is known to have it.
    arrived: Option<Instant>,
    /// Held until the server has answered, even if nobody waits any more.
    _permit: Option<OwnedSemaphorePermit>,
}

impl Calls {
    /// Enters a call under a number that is not in use. Numbers are at most a few dozen, so the
    /// loop ends at once.
    fn enter(
        &mut self,
        reply: oneshot::Sender<Result<IncomingFrame, CloseReason>>,
        patience: Option<Duration>,
        permit: Option<OwnedSemaphorePermit>,
    ) -> u32 {
        let order = self.made;
        self.made += 1;
        let call = Call { reply, order, patience, arrived: None, _permit: permit };
        loop {
            self.last = self.last.wrapping_add(1);
            if self.last != 0 && !self.waiting.contains_key(&self.last) {
                self.waiting.insert(self.last, call);
                return self.last;
            }
        }
    }

    /// A pong came: the server has read what was sent before its ping.
    fn arrived(&mut self, ping: &Call) {
        let now = Instant::now();
        for call in self.waiting.values_mut().filter(|call| call.order < ping.order) {
            call.arrived.get_or_insert(now);
        }
    }

    /// Returns how long a call may wait that has waited longer.
    fn overdue(&self) -> Option<Duration> {
        self.waiting.values().find_map(|call| {
            let since = call.arrived?.max(self.heard.unwrap_or(call.arrived?));
            call.patience.filter(|patience| since.elapsed() > *patience)
        })
    }
}

/// How long a request may wait when nothing of any answer comes.
const fn patience(kind: u8) -> Duration {
    Duration::from_secs(match kind {
        ListBatches::KIND | UndoBatch::KIND | PutList::KIND | PutSplice::KIND | GetSplice::KIND => {
            limits::LONG_ANSWER_SECS
        }
        _ => limits::ANSWER_SECS,
    })
}

impl Shared {
    fn calls(&self) -> MutexGuard<'_, Calls> {
        // No code that holds the lock can panic half-way through a change.
        self.calls.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Connection {
    /// Connects, checks that the server is the right one, and says hello.
    ///
    /// `program` is the program's name and version, for the server's log.
    ///
    /// # Errors
    /// See [`ConnectError`].
    pub async fn open(
        endpoint: &Endpoint,
        program: &str,
    ) -> Result<(Self, mpsc::Receiver<Push>), ConnectError> {
        let limit = Duration::from_secs(limits::HANDSHAKE_SECS);
        let opening = Box::pin(Self::open_patiently(endpoint, program));
        timeout(limit, opening)
            .await
            .unwrap_or_else(|_| Err(ConnectError::Timeout { address: endpoint.address.clone() }))
    }

    async fn open_patiently(
        endpoint: &Endpoint,
        program: &str,
    ) -> Result<(Self, mpsc::Receiver<Push>), ConnectError> {
        let address = || endpoint.address.clone();
        let not_an_address = || ConnectError::Address { address: address() };
        let (host, port) = endpoint.host_and_port().ok_or_else(not_an_address)?;
        let name = ServerName::try_from(host.to_owned()).map_err(|_| not_an_address())?;
        let connector = connector(endpoint.trust)?;
        let unreachable = |source| ConnectError::Unreachable { address: address(), source };
        let tcp = TcpStream::connect((host, port)).await.map_err(unreachable)?;
        tcp.set_nodelay(true).map_err(unreachable)?;
        let tls =
            connector.connect(name, tcp).await.map_err(
                |source| match WrongFingerprint::find_in(&source) {
                    Some(WrongFingerprint { expected, found }) => {
                        ConnectError::WrongFingerprint { address: address(), expected, found }
                    }
                    None => ConnectError::Tls { address: address(), source },
                },
            )?;
        if tls.get_ref().1.alpn_protocol() != Some(ALPN) {
            return Err(ConnectError::NotPicloud { address: address() });
        }
        let shown = tls.get_ref().1.peer_certificates().and_then(<[_]>::first);
        let validity = shown.and_then(|own| certificate::validity(own));
        Self::over_showing(tls, program, &endpoint.address, validity).await
    }

    /// Says hello over a stream that is connected and encrypted already, or needs no encryption.
    /// `address` is what errors call the server; the caller bounds the time.
    ///
    /// # Errors
    /// See [`ConnectError`].
    pub async fn over<S>(
        stream: S,
        program: &str,
        address: &str,
    ) -> Result<(Self, mpsc::Receiver<Push>), ConnectError>
    where
        S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
    {
        Self::over_showing(stream, program, address, None).await
    }

    async fn over_showing<S>(
        stream: S,
        program: &str,
        address: &str,
        certificate: Option<Validity>,
    ) -> Result<(Self, mpsc::Receiver<Push>), ConnectError>
    where
        S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
    {
        let (mut read, write) = tokio::io::split(stream);
        let owner = LineOwner(Line::start(write));
        let line = &owner.0;
        let closed = |reason| ConnectError::Closed { address: address.to_owned(), reason };
        let hello = Hello { protocol: PROTOCOL, program: program.to_owned(), features: vec![] };
        let sending = line.encode(1, &hello).map_err(SendError::from);
        let sent = match sending {
            Ok(frame) => line.send(frame).await,
            Err(error) => Err(error),
        };
        sent.map_err(|error| match error {
            SendError::Closed(reason) => closed(reason),
            SendError::Message(error) => closed(error.into()),
        })?;
        let answer = read_frame(&mut read, || line.body_len_max(), &**line).await;
        let frame = match answer {
            Ok(Some(frame)) => frame,
            Ok(None) => return Err(closed(CloseReason::ClosedByPeer)),
            Err(error) => return Err(closed(error.into())),
        };
        if let Ok(failure) = frame.decode::<Failure>() {
            return Err(ConnectError::Refused(failure));
        }
        if let Ok(bye) = frame.decode::<Bye>() {
            return Err(closed(CloseReason::Bye(bye)));
        }
        let hello = frame.decode::<HelloReply>().map_err(|error| closed(error.into()))?;
        if hello.protocol != PROTOCOL {
            return Err(ConnectError::Version { theirs: hello.protocol });
        }
        let shared = Arc::new(Shared {
            line: Arc::clone(line),
            calls: Mutex::new(Calls { last: 1, ..Calls::default() }),
            in_flight: Arc::new(Semaphore::new(limits::IN_FLIGHT_MAX)),
        });
        let handle =
            Arc::new(Handle { shared: Arc::clone(&shared), hello, certificate, _owner: owner });
        let (pushes, receiver) = mpsc::channel(limits::PUSHES_MAX);
        tokio::spawn(serve(read, shared, pushes));
        Ok((Self { handle }, receiver))
    }

    /// Returns what the server said in its hello.
    #[must_use]
    pub fn hello(&self) -> &HelloReply {
        &self.handle.hello
    }

    /// Returns when the server's certificate is valid, as far as it says so. Where the certificate is
    /// pinned its dates do not matter.
    #[must_use]
    pub fn certificate(&self) -> Option<Validity> {
        self.handle.certificate
    }

    /// Sends a request and waits for its reply.
    ///
    /// # Errors
    /// See [`CallError`].
    pub async fn call<R: Request>(&self, request: &R) -> Result<R::Reply, CallError> {
        self.send(request).await?.reply().await
    }

    /// Sends a request; its reply can be waited for later. Requests that one task sends one after
    /// the other arrive in that order. Waits while [`limits::IN_FLIGHT_MAX`] are unanswered.
    ///
    /// # Errors
    /// When the request is over a limit, or the connection has ended.
    pub async fn send<R: Request>(&self, request: &R) -> Result<Pending<R>, CallError> {
        let shared = &self.handle.shared;
        let permit = tokio::select! {
            permit = Arc::clone(&shared.in_flight).acquire_owned() => permit.ok(),
            reason = shared.line.closed() => return Err(CallError::Closed(reason)),
        };
        let (reply, outcome) = oneshot::channel();
        let number = {
            let mut calls = shared.calls();
            if let Some(reason) = &calls.over {
                return Err(CallError::Closed(reason.clone()));
            }
            calls.enter(reply, Some(patience(R::KIND)), permit)
        };
        // Until the frame is queued, giving up must take the number back: no reply will come.
        let mut entered = Entered { shared, number: Some(number) };
        let frame = shared.line.encode(number, request)?;
        shared.line.send(frame).await?;
        entered.number = None;
        Ok(Pending { outcome, connection: self.clone(), request: PhantomData })
    }

    /// Sends a message that has no reply.
    ///
    /// # Errors
    /// When the message is over a limit, or the connection has ended.
    pub async fn notify<M: Message>(&self, message: &M) -> Result<(), CallError> {
        let line = &self.handle.shared.line;
        Ok(line.send(line.encode(0, message)?).await?)
    }

    /// Waits until the connection has ended, and returns why.
    pub async fn closed(&self) -> CloseReason {
        self.handle.shared.line.closed().await
    }

    /// Returns why the connection has ended, when it has.
    #[must_use]
    pub fn ended(&self) -> Option<CloseReason> {
        self.handle.shared.line.ended()
    }

    /// Returns how many requests were answered.
    #[must_use]
    pub fn answered(&self) -> u64 {
        self.handle.shared.calls().answered
    }

    /// Ends the connection once what has been sent is on its way.
    pub fn close(&self) {
        self.handle.shared.line.finish(CloseReason::Dropped);
    }
}

impl fmt::Debug for Connection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Connection").field("line", &self.handle.shared.line).finish_non_exhaustive()
    }
}

/// A call whose frame is not queued yet.
struct Entered<'a> {
    shared: &'a Shared,
    number: Option<u32>,
}

impl Drop for Entered<'_> {
    fn drop(&mut self) {
        if let Some(number) = self.number {
            self.shared.calls().waiting.remove(&number);
        }
    }
}

/// A request that was sent and whose reply has not been looked at. Dropping it gives up the reply,
/// not the request.
#[must_use = "the reply tells whether the request was carried out"]
pub struct Pending<R> {
    outcome: oneshot::Receiver<Result<IncomingFrame, CloseReason>>,
    connection: Connection,
    request: PhantomData<fn() -> R>,
}

impl<R: Request> Pending<R> {
    /// Waits for the reply.
    ///
    /// # Errors
    /// See [`CallError`].
    pub async fn reply(self) -> Result<R::Reply, CallError> {
        let line = &self.connection.handle.shared.line;
        let frame = match self.outcome.await {
            Ok(Ok(frame)) => frame,
            Ok(Err(reason)) => return Err(CallError::Closed(reason)),
            Err(_) => return Err(CallError::Closed(line.closed().await)),
        };
        if frame.kind == Failure::KIND {
            return Err(CallError::Failed(frame.decode()?));
        }
        Ok(frame.decode()?)
    }
}

impl<R> fmt::Debug for Pending<R> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Pending").finish_non_exhaustive()
    }
}

/// Reads until the connection ends, then fails what still waits.
async fn serve<S: Stream>(mut read: ReadHalf<S>, shared: Arc<Shared>, pushes: mpsc::Sender<Push>) {
    let line = &shared.line;
    let reason = tokio::select! {
        biased;
        reason = line.closed() => reason,
        reason = receive(&mut read, &shared, &pushes) => reason,
        reason = keep_alive(&shared) => reason,
        reason = until_overdue(&shared) => reason,
    };
    line.end(reason.clone(), None);
    let waiting = {
        let mut calls = shared.calls();
        calls.over = Some(reason.clone());
        std::mem::take(&mut calls.waiting)
    };
    for call in waiting.into_values() {
        // Whoever gave up waiting does not need to know.
        call.reply.send(Err(reason.clone())).ok();
    }
}

async fn receive<S: Stream>(
    read: &mut ReadHalf<S>,
    shared: &Shared,
    pushes: &mpsc::Sender<Push>,
) -> CloseReason {
    let line = &shared.line;
    loop {
        let frame = match read_frame(read, || line.body_len_max(), shared).await {
            Ok(Some(frame)) => frame,
            Ok(None) => return CloseReason::ClosedByPeer,
            Err(error) => return error.into(),
        };
        match dispatch(frame, shared, pushes).await {
            Ok(None) => {}
            Ok(Some(reason)) => return reason,
            Err(error) => return error.into(),
        }
    }
}

/// Hands a frame to whom it is for; returns why it ends the connection, if it does.
async fn dispatch(
    frame: IncomingFrame,
    shared: &Shared,
    pushes: &mpsc::Sender<Push>,
) -> Result<Option<CloseReason>, FrameError> {
    if frame.request != 0 {
        let call = {
            let mut calls = shared.calls();
            let call = calls.waiting.remove(&frame.request);
            match &call {
                Some(call) if call.patience.is_some() => calls.answered += 1,
                Some(ping) => calls.arrived(ping),
                None => {}
            }
            call
        };
        let Some(call) = call else {
            return Err(FrameError::Unexpected {
                expected: "the reply to a request",
                found: kind_name(frame.kind),
            });
        };
        // Here, and not where the reply is awaited, so that the limit is right for the next frame.
        if frame.kind == AuthReply::KIND && frame.decode::<AuthReply>()?.admitted.is_some() {
            shared.line.set_authenticated();
        }
        call.reply.send(Ok(frame)).ok();
        return Ok(None);
    }
    match frame.kind {
        // A receiver that was dropped wants no pushes.
        Page::KIND => {
            let page: Page = frame.decode()?;
            // Here, before it waits with others to be taken: a few megabytes of a page can become
            // dozens in memory.
            page.check()
                .map_err(|reason| FrameError::Malformed { kind: kind_name(Page::KIND), reason })?;
            pushes.send(Push::Page(page)).await.ok();
            Ok(None)
        }
        HeldNow::KIND => {
            pushes.send(Push::Held(frame.decode()?)).await.ok();
            Ok(None)
        }
        UsageNow::KIND => {
            pushes.send(Push::Usage(frame.decode()?)).await.ok();
            Ok(None)
        }
        Coming::KIND => {
            let note: Coming = frame.decode()?;
            note.check().map_err(|reason| FrameError::Malformed {
                kind: kind_name(Coming::KIND),
                reason,
            })?;
            // A hint: not worth that replies behind it wait.
            pushes.try_send(Push::Coming(note)).ok();
            Ok(None)
        }
        Bye::KIND => {
            let bye: Bye = frame.decode()?;
            pushes.try_send(Push::Bye(bye.clone())).ok();
            Ok(Some(CloseReason::Bye(bye)))
        }
        Failure::KIND => Ok(Some(CloseReason::Refused(frame.decode()?))),
        // A push of a newer server's, which it may send although we did not ask for its feature.
        _ => Ok(None),
    }
}

/// A part of a long answer is a sign of work as well.
impl Patience for Shared {
    fn limit(&self) -> Duration {
        self.line.limit()
    }

    fn extend(&self) -> bool {
        self.line.extend()
    }

    fn came(&self, request: u32) {
        let mut calls = self.calls();
        if calls.waiting.get(&request).is_some_and(|call| call.patience.is_some()) {
            calls.heard = Some(Instant::now());
        }
    }
}

/// Returns when a request has waited for too long.
async fn until_overdue(shared: &Shared) -> CloseReason {
    let mut looks = interval(Duration::from_secs(limits::ANSWER_SECS / 12));
    loop {
        looks.tick().await;
        if let Some(waited) = shared.calls().overdue() {
            return CloseReason::Unanswered(waited);
        }
    }
}

/// Pings at intervals, so that the server hears something, and something comes back to be heard.
async fn keep_alive(shared: &Shared) -> CloseReason {
    let period = Duration::from_secs(limits::KEEPALIVE_SECS);
    let mut ticks = interval_at(Instant::now() + period, period);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut last: Option<oneshot::Receiver<_>> = None;
    loop {
        ticks.tick().await;
        // One at a time: a server that owes us a pong will not owe us more.
        if let Some(pong) = &mut last
            && matches!(pong.try_recv(), Err(oneshot::error::TryRecvError::Empty))
        {
            continue;
        }
        let (reply, pong) = oneshot::channel();
        let number = shared.calls().enter(reply, None, None);
        match shared.line.encode(number, &Ping {}) {
            Ok(frame) => {
                if shared.line.try_send(frame) {
                    last = Some(pong);
                } else {
                    // No room: the writer is at work, which is sign of life enough, or it stalls.
                    shared.calls().waiting.remove(&number);
                }
            }
            Err(error) => return error.into(),
        }
    }
}
