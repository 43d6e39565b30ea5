//! Seeded histories of several devices, a server and a network, on a model disk: convergence, and no
//! version lost. `PICLOUD_SEEDS=N` sets how many histories, `PICLOUD_SEED=S` replays one.

use crate::disk::Habits;
use crate::world::{Fault, World};

fn seeds() -> Vec<u64> {
    let var = |name: &str| std::env::var(name).ok().and_then(|text| text.parse::<u64>().ok());
    match (var("PICLOUD_SEED"), var("PICLOUD_SEEDS")) {
        (Some(seed), _) => vec![seed],
        (None, count) => (1..=count.unwrap_or(400)).collect(),
    }
}

fn run(devices: usize, steps: usize, faults: &[Fault]) {
    run_with(devices, steps, Habits::ORDINARY, faults);
}

fn run_with(devices: usize, steps: usize, habits: Habits, faults: &[Fault]) {
    let mut failures = Vec::new();
    for seed in seeds() {
        let mut world = World::new(seed, devices);
        let result = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            if habits.mkdir == 0 {
                let tree =
                    "a=u1 b=u2 c/ c/a=u3 c/b=u4 c/e/ c/e/a=u5 d.txt/ d.txt/a=u6 d.txt/e/ e/ e/c=u7";
                world.build(0, tree);
                world.settle()?;
            }
            world.set_habits(habits);
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
fn three_devices_with_cuts_kills_and_lost_events_converge_and_lose_nothing() {
    run(3, 120, &[Fault::Cut, Fault::Kill, Fault::LostEvent]);
}

#[test]
fn devices_that_lose_their_state_lose_nothing() {
    run(2, 60, &[Fault::Cut, Fault::LostState]);
}

#[test]
fn a_person_in_the_midst_of_what_the_agent_does_loses_nothing() {
    run(2, 60, &[Fault::Intrusion, Fault::Intrusion, Fault::Intrusion, Fault::Cut, Fault::Kill]);
}

#[test]
fn power_cuts_take_nothing_that_the_server_has() {
    run(2, 60, &[Fault::PowerCut, Fault::Cut]);
}

#[test]
fn a_disk_that_fails_now_and_then_costs_time_and_nothing_else() {
    run(2, 60, &[Fault::BadDisk, Fault::Kill]);
}

#[test]
fn undos_in_the_midst_of_everything_lose_nothing_that_was_not_seen() {
    run(3, 80, &[Fault::Undo, Fault::Undo, Fault::Cut, Fault::Kill]);
}

#[test]
fn a_storm_of_renames_settles() {
    run_with(2, 60, Habits::STORM, &[]);
}

#[test]
fn a_storm_of_renames_with_everything_going_wrong_settles() {
    run_with(3, 60, Habits::STORM, &[Fault::Cut, Fault::Kill, Fault::Intrusion, Fault::LostEvent]);
}
