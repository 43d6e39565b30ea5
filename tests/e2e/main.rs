//! End-to-end tests: the real programs, as a person and a script use them.
//!
//! One binary, so that worlds that do not know of each other run side by side.

#![allow(clippy::unwrap_used, reason = "a failed step of a test is a failed test")]

#[path = "../support/mod.rs"]
mod support;

mod accounts;
mod changes;
mod config;
mod conflicts;
mod crash;
mod deltas;
mod direction;
mod doctor;
mod faults_folder;
mod faults_server;
mod first_use;
mod full_disk;
mod incidents;
mod join;
mod lost_state;
mod prefetch;
mod put_get;
mod quota;
mod selective;
mod setup;
mod status;
mod systemd;
mod undo;
mod unusual_files;
mod why;
