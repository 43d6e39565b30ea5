//! The PiCloud protocol: frames and messages over TLS on TCP port 46000, and the control socket.
//!
//! Specified in `docs/protocol.md`.

pub mod control;
pub mod limits;
pub mod message;
