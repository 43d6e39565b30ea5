//! The engine's driver on a real machine.

pub mod config;
pub mod credentials;
pub(crate) mod durable;
pub mod state;
pub mod disk;
pub mod ignore;
pub mod watch;
