//! The engines of several devices in one thread, on model disks, with a model server and network.
//!
//! [`table`] plays the rows of the conflict table; [`histories`] plays seeded random ones;
//! [`bounds`] what could go round in circles; [`gate`] the mass deletions that wait for a person, [`quota`] what waits for room, [`incidents`] how other synchronizers lost files;
//! [`defects`] shows that what is wrong is found.
//! `docs/simulator.md` tells what is modelled, and what must hold.

#![expect(clippy::unwrap_used, reason = "what cannot be in the model is a failing test")]

mod bounds;
mod defects;
mod device;
mod disk;
mod flaws;
mod folder;
mod gate;
mod histories;
mod incidents;
mod invariants;
mod ledger;
mod quota;
mod rng;
mod server;
mod shrink;
mod steps;
mod stranger;
mod table;
mod world;
