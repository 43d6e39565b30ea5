//! The PiCloud protocol: frames and messages over TLS on TCP port 46000, and the control socket.
//!
//! A connection is opened by the device. Each side then sends frames (`frame`): the device a
//! [`message::Hello`] first, the server its reply; after that the device's requests, each answered
//! by one reply or one failure with the same request id, and the server's pushes with request id 0.
//! A close between two frames is an ordinary end: whatever was not answered may have been done or
//! not, and may be asked again, since every request can be sent twice. A kind that the server does
//! not know is answered with a failure; a push that the device does not know is ignored; so is a
//! field of a message that either does not know.
//!
//! [`Connection`] is the device's end, [`ServerConnection`] the server's. Specified, for other
//! clients, in `docs/protocol.md`. Every bound is in [`limits`].

pub mod control;
pub mod limits;
pub mod message;

pub mod certificate;
mod connection;
mod frame;
mod line;
mod server_end;
mod tls;

#[cfg(test)]
mod tests;

pub use connection::{CallError, ConnectError, Connection, Endpoint, Pending, Push};
pub use frame::{EncodedFrame, FrameError, IncomingFrame, kind_name};
pub use line::{CloseReason, SendError};
pub use server_end::{AcceptError, FrameReader, FrameSender, ServerConnection};
pub use tls::{ALPN, ServerIdentity, TlsError, Trust, WrongFingerprint, generate_certificate};
