//! The engine's driver on a real machine.

mod about;
pub mod args;
mod authors;
pub mod cache;
pub mod checkup;
mod clock;
pub mod config;
pub mod control;
pub mod credentials;
pub mod disk;
pub(crate) mod durable;
mod folder;
pub mod ignore;
pub mod left_out;
pub mod lists;
pub mod log;
pub mod rate;
mod run;
pub mod state;
pub mod watch;

pub use run::{LevelChanged, Options, RunningAgent, StartError, start};
