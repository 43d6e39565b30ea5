//! The engine's driver on a real machine.

pub mod cache;
mod clock;
pub mod config;
pub mod credentials;
mod durable;
pub mod lists;
pub mod log;
pub mod rate;
pub mod state;
