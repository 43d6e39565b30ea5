//! The engine: three trees, the planner, the conflict rules. Sans-IO.
//!
//! It knows only `model`: no tokio, no clock, no randomness, no file system. Events come in, actions
//! go out ([`seam`]); time and the seed for node ids are passed in; the trees live behind a trait
//! ([`trees`]).

pub mod seam;
pub mod trees;
