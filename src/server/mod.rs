//! The server: listener, sessions, accounts, manifests, chunk store, fan-out.

pub mod config;
pub mod gate;
pub mod packs;
pub mod rules;
pub mod store;
