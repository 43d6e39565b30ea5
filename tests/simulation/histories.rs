//! Seeded histories of several devices, a server and a network, on a model disk: convergence, and no
//! version lost. `PICLOUD_SEEDS=N` sets how many histories, `PICLOUD_SEED=S` replays one.

use crate::world::{Fault, World};

fn seeds() -> Vec<u64> {
    let var = |name: &str| std::env::var(name).ok().and_then(|text| text.parse::<u64>().ok());
    match (var("PICLOUD_SEED"), var("PICLOUD_SEEDS")) {
        (Some(seed), _) => vec![seed],
        (None, count) => (1..=count.unwrap_or(400)).collect(),
    }
}

fn run(devices: usize, steps: usize, faults: &[Fault]) {
    let mut failures = Vec::new();
    for seed in seeds() {
        let mut world = World::new(seed, devices);
        let result = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            world.live(steps, faults);
            world.settle()?;
            world.check()
        }));
        let failure = match result {
            Ok(Ok(())) => continue,
            Ok(Err(failure)) => failure,
            Err(panic) => panic
                .downcast_ref::<String>()
                .cloned()
                .or_else(|| panic.downcast_ref::<&str>().map(|text| (*text).to_owned()))
                .unwrap_or_else(|| "a panic".to_owned()),
        };
        if failures.is_empty() {
            println!("seed {seed}: {failure}\n{}", world.trace());
        }
        failures.push(format!("{seed}: {}", failure.lines().next().unwrap_or_default()));
    }
    assert!(failures.is_empty(), "{} seeds failed: {failures:#?}", failures.len());
}

#[test]
fn two_devices_converge_and_lose_nothing() {
    run(2, 40, &[]);
}

#[test]
fn three_devices_with_cuts_converge_and_lose_nothing() {
    run(3, 80, &[Fault::Cut]);
}

#[test]
fn three_devices_with_cuts_crashes_and_lost_events_converge_and_lose_nothing() {
    run(3, 120, &[Fault::Cut, Fault::Crash, Fault::LostEvent]);
}

#[test]
fn devices_that_lose_their_state_lose_nothing() {
    run(2, 60, &[Fault::Cut, Fault::LostState]);
}
