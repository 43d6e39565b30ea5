//! The server: listener, sessions, accounts, manifests, chunk store, fan-out.

pub mod accounts;
pub mod admin;
pub mod clock;
pub mod config;
pub mod gate;
pub mod hub;
pub mod packs;
pub mod rules;
pub mod session;
pub mod store;
pub mod throttle;
