//! Seeded histories of several devices, a server and a network, on a model disk: convergence, and no
//! version lost. `PICLOUD_SEEDS=N` sets how many histories, `PICLOUD_SEED=S` replays one.

use crate::disk::Habits;
use crate::world::{Excess, Fault, World};

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

/// What is there in the end although nobody had reason for it, over all histories.
#[derive(Debug, Default)]
struct Sum {
    histories: usize,
    copies: usize,
    dirs: usize,
    twice: usize,
    /// The first few, by their seeds.
    examples: Vec<String>,
}

fn run_with(devices: usize, steps: usize, habits: Habits, faults: &[Fault]) -> Sum {
    let mut failures = Vec::new();
    let mut sum = Sum::default();
    let mut seeds = seeds();
    // As much work for each kind, however much happens in one history.
    seeds.truncate((seeds.len() * Habits::ORDINARY.pace / habits.pace).max(1));
    for seed in seeds {
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
            Ok(Ok(())) => {
                sum.add(seed, &world.excess());
                continue;
            }
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
    println!("{sum:?}");
    sum
}

impl Sum {
    fn add(&mut self, seed: u64, excess: &Excess) {
        self.histories += 1;
        self.copies += excess.copies.len();
        self.twice += excess.twice.len();
        self.dirs += excess.dirs;
        if !excess.copies.is_empty() && self.examples.len() < 10 {
            self.examples.push(format!("{seed}: {:?}", excess.copies));
        }
    }
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

#[test]
fn cuts_make_no_conflict_copies_of_what_nobody_edited() {
    let sum = run_with(3, 60, Habits::EDITS, &[Fault::Cut]);
    assert_eq!(sum.copies, 0, "{sum:?}");
}

/// But for one: an agent that is killed again before anything it has found since the last time is
/// recorded cannot tell on top of what was edited meanwhile.
#[test]
fn kills_make_next_to_no_conflict_copies_of_what_nobody_edited() {
    for (devices, faults) in [(2, &[Fault::Kill][..]), (3, &[Fault::Kill, Fault::Cut])] {
        let sum = run_with(devices, 60, Habits::EDITS, faults);
        assert!(sum.copies * 100 <= sum.histories + 100, "{sum:?}");
    }
}

#[test]
fn power_cuts_and_moves_take_nothing() {
    let habits = Habits { rename: 2, remove: 1, ..Habits::EDITS };
    run_with(2, 60, habits, &[Fault::PowerCut]);
}
