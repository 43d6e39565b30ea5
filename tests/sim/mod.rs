//! The simulator: a model disk, a model server, a model network, one thread, one seed.

pub mod disk;
pub mod rng;
pub mod server;
pub mod world;
