//! The server's end of a connection: it checks the first frame, then hands out frames as they come
//! and takes replies and pushes to send.
//!
//! Until [`FrameReader::authenticated`] is called the limits of a guest hold: short frames, and
//! [`limits::GUEST_SECS`] in all. What the frames mean is the server's business, not this module's.

use std::fmt;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use tokio::io::{AsyncRead, AsyncWrite, ReadHalf};
use tokio::net::TcpStream;
use tokio::time::{Instant, timeout, timeout_at};
use tokio_rustls::TlsAcceptor;

use super::frame::{EncodedFrame, FrameError, IncomingFrame, read_frame};
use super::limits;
use super::line::{CloseReason, Line, SendError, Stream};
use super::message::{Bye, COMING, Failure, FailureCode, Hello, HelloReply, Message, PROTOCOL};
use super::tls::ALPN;
use crate::model::Timestamp;

/// The oldest protocol that is still spoken.
const PROTOCOL_MIN: u16 = 1;

/// The longest message text that is sent to a peer; a longer one is cut.
const TEXT_LEN_MAX: usize = 2000;

/// Why a connection was not accepted.
#[derive(Debug, thiserror::Error)]
pub enum AcceptError {
    /// TLS failed: not TLS at all, an old version, no common ALPN name.
    #[error("The TLS handshake failed: {0}")]
    Tls(std::io::Error),
    /// The handshake took too long.
    #[error("The handshake took more than {} seconds", limits::HANDSHAKE_SECS)]
    Timeout,
    /// The peer speaks something else than this protocol.
    #[error("The peer did not choose the protocol picloud/1")]
    Alpn,
    /// The peer closed before its hello.
    #[error("The peer closed before its hello")]
    Closed,
    /// The first frame was no hello.
    #[error("The first frame is no hello: {0}")]
    Hello(#[from] FrameError),
    /// No common protocol.
    #[error("The peer speaks protocol {theirs}, this server {PROTOCOL_MIN} to {PROTOCOL}")]
    Version {
        /// The newest that the peer speaks.
        theirs: u16,
    },
}

/// An accepted connection: TLS and hello are done.
#[derive(Debug)]
pub struct ServerConnection {
    /// What the device said of itself.
    pub hello: Hello,
    /// Hands out its frames.
    pub reader: FrameReader,
    /// Takes what is to be sent.
    pub sender: FrameSender,
}

impl ServerConnection {
    /// Does the TLS handshake and the hello on a TCP connection.
    ///
    /// `program` is the server's name and version, for the hello.
    ///
    /// # Errors
    /// See [`AcceptError`]; the peer has been told where that is possible.
    pub async fn accept(
        tcp: TcpStream,
        acceptor: &TlsAcceptor,
        program: &str,
    ) -> Result<Self, AcceptError> {
        let accepting = Box::pin(async {
            tcp.set_nodelay(true).map_err(AcceptError::Tls)?;
            let tls = acceptor.accept(tcp).await.map_err(AcceptError::Tls)?;
            if tls.get_ref().1.alpn_protocol() != Some(ALPN) {
                return Err(AcceptError::Alpn);
            }
            Self::hello(tls, program).await
        });
        timeout(Duration::from_secs(limits::HANDSHAKE_SECS), accepting)
            .await
            .unwrap_or(Err(AcceptError::Timeout))
    }

    /// Does the hello on a stream that is encrypted already, or needs no encryption.
    ///
    /// # Errors
    /// See [`AcceptError`].
    pub async fn over<S>(stream: S, program: &str) -> Result<Self, AcceptError>
    where
        S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
    {
        let limit = Duration::from_secs(limits::HANDSHAKE_SECS);
        timeout(limit, Self::hello(stream, program)).await.unwrap_or(Err(AcceptError::Timeout))
    }

    async fn hello<S: Stream>(stream: S, program: &str) -> Result<Self, AcceptError> {
        let (read, write) = tokio::io::split(Box::new(stream) as Box<dyn Stream>);
        let line = Line::start(write);
        let sender = FrameSender { line: Arc::clone(&line) };
        let mut reader = FrameReader {
            half: read,
            line: LineOwner(line),
            guest_until: Instant::now() + Duration::from_secs(limits::GUEST_SECS),
        };
        let frame = reader.next().await.and_then(|frame| match frame {
            None => Ok(None),
            Some(frame) => Ok(Some((frame.request, frame.decode::<Hello>()?))),
        });
        let (request, hello) = match frame {
            Ok(Some((request, hello))) if request != 0 => (request, hello),
            Ok(Some(_)) => {
                let error = FrameError::Unexpected {
                    expected: "Hello",
                    found: "Hello without a request id",
                };
                sender.refuse(FailureCode::Malformed, &error.to_string());
                return Err(error.into());
            }
            Ok(None) => return Err(AcceptError::Closed),
            Err(error) => {
                sender.refuse(FailureCode::Malformed, &error.to_string());
                return Err(error.into());
            }
        };
        if hello.protocol < PROTOCOL_MIN {
            let error = AcceptError::Version { theirs: hello.protocol };
            let text = format!(
                "This server speaks protocol {PROTOCOL_MIN} to {PROTOCOL}, your program {}: \
                 upgrade your program",
                hello.protocol
            );
            sender.refuse(FailureCode::Version, &text);
            return Err(error);
        }
        let reply = HelloReply {
            protocol: hello.protocol.min(PROTOCOL),
            program: program.to_owned(),
            features: vec![COMING.to_owned()],
            time: now(),
        };
        match sender.reply(request, &reply).await {
            Ok(()) => Ok(Self { hello, reader, sender }),
            Err(SendError::Message(error)) => Err(error.into()),
            Err(SendError::Closed(_)) => Err(AcceptError::Closed),
        }
    }
}

fn now() -> Timestamp {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    let secs = i64::try_from(since.as_secs()).unwrap_or(i64::MAX);
    Timestamp::new(secs, since.subsec_nanos()).unwrap_or_default()
}

/// Hands out a connection's frames in the order in which they came. Dropping it ends the connection
/// once what is queued has been sent.
pub struct FrameReader {
    half: ReadHalf<Box<dyn Stream>>,
    line: LineOwner,
    guest_until: Instant,
}

struct LineOwner(Arc<Line>);

impl Drop for LineOwner {
    fn drop(&mut self) {
        self.0.finish(CloseReason::Dropped);
    }
}

impl FrameReader {
    /// Reads the next frame; nothing when the connection has ended, by the peer between two frames
    /// or by [`FrameSender::close`].
    ///
    /// Not safe to cancel. The server should not call it while it owes
    /// [`limits::IN_FLIGHT_MAX`] replies.
    ///
    /// # Errors
    /// When what came is no frame, too long, cut short, or nothing came for too long. The
    /// connection is of no further use: tell the peer with [`FrameSender::refuse`].
    pub async fn next(&mut self) -> Result<Option<IncomingFrame>, FrameError> {
        let line = &self.line.0;
        let reading = read_frame(&mut self.half, || line.body_len_max(), &**line);
        let in_time = async {
            if line.is_authenticated() {
                return reading.await;
            }
            let silent = FrameError::Silent(Duration::from_secs(limits::GUEST_SECS));
            timeout_at(self.guest_until, reading).await.unwrap_or(Err(silent))
        };
        tokio::select! {
            biased;
            _ = line.closed() => Ok(None),
            frame = in_time => frame,
        }
    }

    /// From now on the limits of an authenticated device hold, in both directions. To be called
    /// before the reply that tells the device so.
    pub fn authenticated(&self) {
        self.line.0.set_authenticated();
    }
}

impl fmt::Debug for FrameReader {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("FrameReader").field("line", &self.line.0).finish_non_exhaustive()
    }
}

/// Takes what is to be sent on a connection; clones share it.
#[derive(Debug, Clone)]
pub struct FrameSender {
    line: Arc<Line>,
}

impl FrameSender {
    /// Answers a request. Waits while the queue is full, and fails once the connection has ended,
    /// which happens when the peer takes nothing for too long.
    ///
    /// # Errors
    /// When the connection has ended or the reply is over the limit.
    pub async fn reply<M: Message>(&self, request: u32, reply: &M) -> Result<(), SendError> {
        let frame = self.line.encode(request, reply)?;
        self.line.send(frame).await
    }

    /// Answers a request with a failure.
    ///
    /// # Errors
    /// When the connection has ended.
    pub async fn fail(
        &self,
        request: u32,
        code: FailureCode,
        message: &str,
    ) -> Result<(), SendError> {
        let message = cut(message);
        self.reply(request, &Failure { code, message }).await
    }

    /// Says something unasked.
    ///
    /// # Errors
    /// When the connection has ended or the message is over the limit.
    pub async fn push<M: Message>(&self, message: &M) -> Result<(), SendError> {
        self.reply(0, message).await
    }

    /// Sends a frame that was encoded before, perhaps for several connections: with request id 0
    /// and [`limits::BODY_LEN_MAX`].
    ///
    /// # Errors
    /// When the connection has ended.
    pub async fn push_encoded(&self, frame: EncodedFrame) -> Result<(), SendError> {
        self.line.send(frame).await
    }

    /// Sends a frame as [`FrameSender::push_encoded`] does if there is room for it now; returns whether
    /// there was.
    #[must_use]
    pub fn try_push_encoded(&self, frame: EncodedFrame) -> bool {
        self.line.try_send(frame)
    }

    /// Ends the connection at once, from whichever task: what is queued is not sent, the peer is
    /// told why, and [`FrameReader::next`] returns nothing.
    pub fn close(&self, code: FailureCode, message: &str) {
        let message = cut(message);
        let bye = self.line.encode(0, &Bye { code, message: message.clone() });
        self.line.end(CloseReason::Ended { code, message }, bye.ok());
    }

    /// As [`FrameSender::close`], but as the connection's failure: the peer broke the protocol.
    pub fn refuse(&self, code: FailureCode, message: &str) {
        let message = cut(message);
        let failure = Failure { code, message: message.clone() };
        let failure = self.line.encode(0, &failure);
        self.line.end(CloseReason::Ended { code, message }, failure.ok());
    }

    /// Ends the connection once what is queued has been sent.
    pub fn finish(&self) {
        self.line.finish(CloseReason::Dropped);
    }

    /// Waits until the connection has ended, and returns why.
    pub async fn closed(&self) -> CloseReason {
        self.line.closed().await
    }

    /// Returns why the connection has ended, when it has.
    #[must_use]
    pub fn ended(&self) -> Option<CloseReason> {
        self.line.ended()
    }
}

fn cut(text: &str) -> String {
    let end = text.floor_char_boundary(TEXT_LEN_MAX);
    text[..end].to_owned()
}
