//! The engine's driver on a real machine.

pub mod disk;
pub mod ignore;
pub mod watch;
