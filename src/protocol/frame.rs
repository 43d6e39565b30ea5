//! Frames: how a message lies on the wire.
//!
//! | offset | size | field                                                                  |
//! |-------:|-----:|------------------------------------------------------------------------|
//! |      0 |    4 | length of the body, u32 big-endian, at most the limit in force         |
//! |      4 |    1 | kind, [`Message::KIND`]                                                |
//! |      5 |    4 | request id, u32 big-endian; 0 for a push                               |
//! |      9 |    … | body: one MessagePack value, a map with named fields, nothing after it |
//!
//! A length is compared with the limit before anything is allocated for it, and an encoder refuses
//! what a decoder would refuse. A close between two frames is an end; a close inside one is an error.

use std::io;
use std::pin::pin;
use std::time::Duration;

use bytes::Bytes;
use rmp_serde::{Deserializer, decode};
use serde::Deserialize;
use serde::de::DeserializeOwned;
use tokio::io::{AsyncRead, AsyncReadExt};
use tokio::time::timeout;

use super::limits::{BATCH_LEN_MAX, DEPTH_MAX, HEADER_LEN};
use super::message::{KINDS, Message};

/// Why a frame could not be read, written or understood.
#[derive(Debug, thiserror::Error)]
pub enum FrameError {
    /// The body is longer than the limit in force.
    #[error("A frame body of {len} bytes is over the limit of {limit}")]
    TooLong {
        /// The length announced or needed.
        len: usize,
        /// The limit in force.
        limit: usize,
    },
    /// The connection was closed inside a frame.
    #[error("The connection was cut inside a frame")]
    Truncated,
    /// The connection failed.
    #[error("The connection failed")]
    Io(#[from] io::Error),
    /// Nothing came for too long.
    #[error("The other side was silent for {} seconds", .0.as_secs())]
    Silent(Duration),
    /// The body is not the message its kind says.
    #[error("A {kind} message is malformed: {reason}")]
    Malformed {
        /// The name of the kind.
        kind: &'static str,
        /// What is wrong with it.
        reason: String,
    },
    /// A message came that has no place here.
    #[error("Expected a {expected} message, found {found}")]
    Unexpected {
        /// What should have come.
        expected: &'static str,
        /// The name of what came.
        found: &'static str,
    },
}

impl FrameError {
    /// Returns whether the connection failed, rather than the other side broke the protocol.
    #[must_use]
    pub const fn is_outage(&self) -> bool {
        matches!(self, Self::Truncated | Self::Io(_) | Self::Silent(_))
    }
}

/// Returns the name of a kind, for logs and errors.
#[must_use]
pub fn kind_name(kind: u8) -> &'static str {
    KINDS
        .iter()
        .find_map(|(number, name)| (*number == kind).then_some(*name))
        .unwrap_or("an unknown kind")
}

/// A frame that was read: its body is not decoded yet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct IncomingFrame {
    /// The kind.
    pub kind: u8,
    /// The request it is, or answers; 0 for a push.
    pub request: u32,
    /// The encoded message.
    pub body: Vec<u8>,
}

impl IncomingFrame {
    /// Decodes the body as the message that the kind must announce.
    ///
    /// # Errors
    /// When the kind is another, the body is not such a message, or bytes follow it.
    pub fn decode<M: Message>(&self) -> Result<M, FrameError> {
        if self.kind != M::KIND {
            return Err(FrameError::Unexpected {
                expected: kind_name(M::KIND),
                found: kind_name(self.kind),
            });
        }
        let (message, is_all) = self.decode_value()?;
        if is_all { Ok(message) } else { Err(self.malformed("bytes follow it")) }
    }

    /// Decodes only those fields of the body that `V` has, whatever the kind, and keeps nothing of
    /// the others.
    ///
    /// # Errors
    /// When the body has no such fields.
    pub fn decode_fields<V: DeserializeOwned>(&self) -> Result<V, FrameError> {
        self.decode_value().map(|(value, _)| value)
    }

    /// Returns the value that the body begins with, and whether nothing follows it.
    fn decode_value<V: DeserializeOwned>(&self) -> Result<(V, bool), FrameError> {
        // From the slice, not through a reader, which would copy each byte string once more, also one
        // that is skipped.
        let mut decoder = Deserializer::from_read_ref(self.body.as_slice());
        decoder.set_max_depth(DEPTH_MAX);
        let value =
            V::deserialize(&mut decoder).map_err(|error| self.malformed(&error.to_string()))?;
        // What is no unit fails by its first byte, so an error of reading that byte is the end.
        let next = <()>::deserialize(&mut decoder);
        Ok((value, matches!(next, Err(decode::Error::InvalidMarkerRead(_)))))
    }

    fn malformed(&self, reason: &str) -> FrameError {
        FrameError::Malformed { kind: kind_name(self.kind), reason: reason.to_owned() }
    }
}

/// A whole frame ready to be sent, cheap to clone: one page goes to many devices encoded once.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EncodedFrame(Bytes);

impl EncodedFrame {
    /// Encodes a message whose body may have at most `limit` bytes.
    ///
    /// # Errors
    /// When it has more.
    pub fn new<M: Message>(request: u32, message: &M, limit: usize) -> Result<Self, FrameError> {
        let mut sink = BoundedBody { frame: vec![0; HEADER_LEN], limit, len: 0 };
        if let Err(error) = rmp_serde::encode::write_named(&mut sink, message) {
            return Err(if sink.len > limit {
                FrameError::TooLong { len: sink.len, limit }
            } else {
                FrameError::Malformed { kind: kind_name(M::KIND), reason: error.to_string() }
            });
        }
        let mut frame = sink.frame;
        let len = u32::try_from(frame.len() - HEADER_LEN)
            .map_err(|_| FrameError::TooLong { len: frame.len() - HEADER_LEN, limit })?;
        frame[..4].copy_from_slice(&len.to_be_bytes());
        frame[4] = M::KIND;
        frame[5..HEADER_LEN].copy_from_slice(&request.to_be_bytes());
        Ok(Self(frame.into()))
    }

    /// Returns the bytes to write: header and body.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }
}

/// A byte string of this length is a chunk of a larger file.
const LONG_BYTES: usize = 32 * 1024;

/// Room for a batch of chunks: they end with the one that reaches the length.
const BATCH_ROOM: usize = 2 * BATCH_LEN_MAX;

/// Collects a body behind room for its header, and stops at the limit.
struct BoundedBody {
    frame: Vec<u8>,
    limit: usize,
    /// What was wanted so far; over the limit once it was reached.
    len: usize,
}

impl io::Write for BoundedBody {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.len += bytes.len();
        if self.len > self.limit {
            return Err(io::ErrorKind::FileTooLarge.into());
        }
        if bytes.len() >= LONG_BYTES && self.frame.capacity() - self.frame.len() < bytes.len() {
            // More such will follow. Room that is not touched takes no memory; growing step by step
            // would copy what is there each time.
            self.frame.reserve(bytes.len().max(BATCH_ROOM.min(self.limit)));
        }
        self.frame.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// How long a reader waits for the next byte.
pub(super) trait Patience {
    /// The longest wait.
    fn limit(&self) -> Duration;
    /// Whether the other side has shown itself alive meanwhile in another way.
    fn extend(&self) -> bool;
    /// Told that something of the body of a frame with this request id has come.
    fn came(&self, _request: u32) {}
}

/// Waits for so long, whatever else happens.
impl Patience for Duration {
    fn limit(&self) -> Duration {
        *self
    }

    fn extend(&self) -> bool {
        false
    }
}

/// Reads the next frame; nothing when the other side closed between two frames.
///
/// Holds no buffer while it waits for a header. `limit` is asked once the header is there.
pub(super) async fn read_frame<R: AsyncRead + Unpin>(
    reader: &mut R,
    limit: impl Fn() -> usize,
    patience: &impl Patience,
) -> Result<Option<IncomingFrame>, FrameError> {
    let mut header = [0; HEADER_LEN];
    let mut filled = 0;
    while filled < HEADER_LEN {
        let count = wait(patience, reader.read(&mut header[filled..])).await?;
        match (count, filled) {
            (0, 0) => return Ok(None),
            (0, _) => return Err(FrameError::Truncated),
            _ => filled += count,
        }
    }
    let [l0, l1, l2, l3, kind, r0, r1, r2, r3] = header;
    let len = u32::from_be_bytes([l0, l1, l2, l3]) as usize;
    let limit = limit();
    if len > limit {
        return Err(FrameError::TooLong { len, limit });
    }
    let request = u32::from_be_bytes([r0, r1, r2, r3]);
    let mut body = Vec::with_capacity(len);
    while body.len() < len {
        let left = (len - body.len()) as u64;
        let mut rest = (&mut *reader).take(left);
        let count = wait(patience, rest.read_buf(&mut body)).await?;
        if count == 0 {
            return Err(FrameError::Truncated);
        }
        patience.came(request);
    }
    Ok(Some(IncomingFrame { kind, request, body }))
}

/// Waits for one read for as long as patience lasts.
async fn wait(
    patience: &impl Patience,
    read: impl Future<Output = io::Result<usize>>,
) -> Result<usize, FrameError> {
    let mut read = pin!(read);
    loop {
        match timeout(patience.limit(), &mut read).await {
            Ok(Ok(count)) => return Ok(count),
            // A peer that goes away without TLS's farewell is cut off, not an error of its own.
            Ok(Err(error)) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(0),
            Ok(Err(error)) => return Err(error.into()),
            Err(_) if patience.extend() => {}
            Err(_) => return Err(FrameError::Silent(patience.limit())),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::protocol::message::{Done, Hello, Ping};

    const PATIENCE: Duration = Duration::from_secs(10);

    async fn read(bytes: &[u8], limit: usize) -> Result<Option<IncomingFrame>, FrameError> {
        let mut rest = bytes;
        read_frame(&mut rest, || limit, &PATIENCE).await
    }

    #[test]
    fn the_header_never_changes() {
        let frame = EncodedFrame::new(0x0102_0304, &Ping {}, 100).unwrap();
        assert_eq!(frame.as_bytes(), b"\0\0\0\x01\x07\x01\x02\x03\x04\x80");
    }

    #[tokio::test]
    async fn a_cut_inside_a_frame_is_not_an_end() {
        let hello = Hello { protocol: 1, program: "p".into(), features: vec![] };
        let frame = EncodedFrame::new(7, &hello, 100).unwrap();
        let bytes = frame.as_bytes();
        let whole = read(bytes, 100).await.unwrap().unwrap();
        assert_eq!(whole.decode::<Hello>().unwrap(), hello);
        assert_eq!(whole.request, 7);
        assert!(matches!(read(&[], 100).await, Ok(None)));
        for cut in 1..bytes.len() {
            let outcome = read(&bytes[..cut], 100).await;
            assert!(matches!(outcome, Err(FrameError::Truncated)), "cut at {cut}");
        }
    }

    #[tokio::test]
    async fn both_sides_refuse_a_body_over_the_limit() {
        let hello = Hello { protocol: 1, program: "p".repeat(100), features: vec![] };
        let len = EncodedFrame::new(1, &hello, 1000).unwrap().as_bytes().len() - HEADER_LEN;
        assert!(EncodedFrame::new(1, &hello, len).is_ok());
        let refused = EncodedFrame::new(1, &hello, len - 1);
        assert!(matches!(refused, Err(FrameError::TooLong { .. })));
        // Four gigabytes announced, and nothing behind it: refused by the header alone.
        let outcome = read(b"\xff\xff\xff\xff\x01\0\0\0\x01", 64 * 1024).await;
        let message = outcome.unwrap_err().to_string();
        assert_eq!(message, "A frame body of 4294967295 bytes is over the limit of 65536");
    }

    /// A field that nobody knows is skipped; a thousand lists in each other took all of a stack.
    #[test]
    fn a_body_of_many_lists_in_each_other_takes_no_stack() {
        for opener in [&b"\x91"[..], b"\x81\xa1x", b"\xdd\0\0\0\x01"] {
            let body = [&b"\x81\xa1x"[..], &opener.repeat(10_000), b"\xc0"].concat();
            let frame = IncomingFrame { kind: 66, request: 1, body };
            let decoding = std::thread::Builder::new()
                .stack_size(512 * 1024)
                .spawn(move || (frame.decode::<Done>(), frame.decode_fields::<Done>()));
            let (whole, fields) = decoding.unwrap().join().unwrap();
            assert!(matches!(whole, Err(FrameError::Malformed { .. })));
            assert!(matches!(fields, Err(FrameError::Malformed { .. })));
        }
    }

    #[test]
    fn a_body_is_one_value_of_its_kind_and_nothing_after_it() {
        let frame = |kind, body: &[u8]| IncomingFrame { kind, request: 1, body: body.to_vec() };
        assert!(frame(66, b"\x80").decode::<Done>().is_ok());
        assert!(matches!(frame(7, b"\x80").decode::<Done>(), Err(FrameError::Unexpected { .. })));
        let after: [&[u8]; 6] =
            [b"\x80\x80", b"\x80\xc0", b"\x80\x91", b"\x80\xc1", b"\x80\xc4", b"\x80\xd9"];
        for bad in after.into_iter().chain([&b""[..], b"\xc1", b"\xdf\xff\xff\xff\xff", b"\x81"]) {
            let outcome = frame(66, bad).decode::<Done>();
            assert!(matches!(outcome, Err(FrameError::Malformed { .. })), "{bad:?}");
        }
    }
}
