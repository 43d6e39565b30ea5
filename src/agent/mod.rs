//! The engine's driver on a real machine.

pub mod config;
pub mod credentials;
mod durable;
pub mod state;
