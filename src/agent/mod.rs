//! The engine's driver on a real machine.

pub mod state;
