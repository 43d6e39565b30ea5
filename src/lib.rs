//! PiCloud keeps folders the same on all of a person's devices, through a server they own.
//!
//! The folder names are the architecture, and arrows point downwards only; see
//! `docs/architecture.md`.

pub mod agent;
pub mod checkup;
pub mod cli;
pub mod client;
pub mod content;
pub mod engine;
mod heap;
pub mod model;
pub mod protocol;
mod reading;
pub mod server;
