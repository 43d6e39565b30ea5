//! The engines of several devices in one thread, on model disks, with a model server and network.
//!
//! [`table`] plays the rows of the conflict table; [`histories`] plays seeded random ones;
//! [`gate`] the mass deletions that wait for a person, [`incidents`] how other synchronizers lost files.

#![expect(clippy::unwrap_used, reason = "what cannot be in the model is a failing test")]

mod device;
mod disk;
mod folder;
mod gate;
mod histories;
mod incidents;
mod ledger;
mod rng;
mod server;
mod table;
mod world;
