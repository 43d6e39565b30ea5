//! Seeded histories of several devices, a server and a network, on model disks: they converge, and no
//! version is lost.
//!
//! `PICLOUD_SEEDS=N` sets how many histories of each kind, `PICLOUD_SEED=S` plays one and prints its
//! trace. A history that fails is made as short as it goes, and printed with the command that plays
//! the short one.

use picloud::model::Flow;

use crate::disk::{Form, Habits};
use crate::shrink::{History, Kind};
use crate::steps::{Cast, Fault, Totals};

const CAST: Cast = Cast { devices: 2, rounds: 60, faults: &[], pace: 16, is_alone: false };
const BOTH: &[Flow] = &[Flow::Both];
const EXACT: &[Form] = &[Form::Exact];
const TREE: &str = "a=u1 b=u2 c/ c/a=u3 c/b=u4 c/e/ c/e/a=u5 d.txt/ d.txt/a=u6 d.txt/e/ e/ e/c=u7";
const KIND: Kind = Kind {
    name: "",
    cast: CAST,
    habits: Habits::ORDINARY,
    tree: "",
    forms: EXACT,
    quota: None,
    flows: BOTH,
};

fn number(name: &str) -> Option<u64> {
    std::env::var(name).ok().and_then(|text| text.parse().ok())
}

/// The seeds to play.
pub fn seeds(kind: &Kind) -> Vec<u64> {
    match (number("PICLOUD_SEED"), number("PICLOUD_SEEDS")) {
        (Some(seed), _) => vec![seed],
        (None, count) => {
            let from = number("PICLOUD_FIRST_SEED").unwrap_or(1);
            // The same number of devices' steps for each kind.
            let share = if kind.cast.devices > 3 || kind.cast.pace > 50 { 4 } else { 1 };
            (from..from + count.unwrap_or(100).div_ceil(share)).collect()
        }
    }
}

/// The history that the environment asks for, of a seed.
fn history(kind: &'static Kind, seed: u64) -> History {
    let mut history = History::draw(kind, seed, None);
    if let Some(devices) = number("PICLOUD_DEVICES").and_then(|n| usize::try_from(n).ok()) {
        history.devices = devices.clamp(1, history.devices);
        history.steps.retain(|step| step.device < history.devices);
    }
    if let Ok(steps) = std::env::var("PICLOUD_STEPS") {
        history.keep(&steps);
    }
    history
}

#[track_caller]
fn run(kind: &'static Kind) -> Totals {
    let mut failures = Vec::new();
    let mut totals = Totals::default();
    let seeds = seeds(kind);
    for seed in &seeds {
        let history = history(kind, *seed);
        let played = history.play();
        totals.add(&played.totals);
        if let [_] = seeds.as_slice() {
            println!("{}", played.trace);
        }
        let Err(failure) = played.result else { continue };
        if failures.is_empty() {
            println!("seed {seed}: {failure}");
            let short = history.shrink(failure.property);
            let again = short.play();
            println!("{} steps are enough:\n{}", short.steps.len(), again.trace);
            if let Err(failure) = again.result {
                println!("{failure}\n{}", short.command());
            }
        }
        let text = failure.to_string();
        failures.push(format!("{seed}: {}", text.lines().next().unwrap_or_default()));
    }
    println!("simulation {} {totals} failed {}", kind.name, failures.len());
    assert!(failures.is_empty(), "{} seeds failed: {failures:#?}", failures.len());
    totals
}

/// Kinds of histories, each with its test.
macro_rules! kinds {
    ($(fn $name:ident() $is:ident: $kind:expr;)*) => {
        $(pub static $is: Kind = Kind { name: stringify!($name), ..$kind };

        #[test]
        fn $name() {
            let _totals = run(&$is);
        })*
    };
}

use Fault::{
    BadDisk, Cut, EventStorm, Exclude, FullDisk, HalfOpen, Include, Intrusion, Kill, LostEvent,
    LostState, NoPermission, PowerCut, Redirect, ServerCrash, Undo,
};

kinds! {
    fn two_devices_converge_and_lose_nothing() PLAIN: Kind { cast: Cast { rounds: 40, ..CAST }, ..KIND };

    fn three_devices_with_cuts_converge_and_lose_nothing() CUTS: Kind {
        cast: Cast { devices: 3, rounds: 80, faults: &[Cut], ..CAST }, ..KIND
    };

    fn three_devices_with_cuts_kills_and_lost_events_converge_and_lose_nothing() KILLS: Kind {
        cast: Cast { devices: 3, rounds: 100, faults: &[Cut, Kill, LostEvent], ..CAST }, ..KIND
    };

    fn devices_that_lose_their_state_lose_nothing() STATE: Kind {
        cast: Cast { faults: &[Cut, LostState], ..CAST }, ..KIND
    };

    fn a_person_in_the_midst_of_what_the_agent_does_loses_nothing() INTRUSION: Kind {
        cast: Cast { faults: &[Intrusion, Intrusion, Intrusion, Cut, Kill], ..CAST }, ..KIND
    };

    fn power_cuts_take_nothing_that_the_server_has() POWER: Kind {
        cast: Cast { faults: &[PowerCut, Cut], ..CAST }, ..KIND
    };

    fn power_cuts_and_moves_take_nothing() POWER_MOVES: Kind {
        cast: Cast { faults: &[PowerCut], ..EDITS.cast },
        habits: Habits { rename: 2, remove: 1, ..Habits::EDITS },
        ..EDITS
    };

    fn a_disk_that_fails_now_and_then_costs_time_and_nothing_else() DISK: Kind {
        cast: Cast { faults: &[BadDisk, Kill], ..CAST }, ..KIND
    };

    fn a_full_disk_and_forbidden_directories_cost_time_and_nothing_else() FULL: Kind {
        cast: Cast { faults: &[FullDisk, NoPermission, Kill], ..CAST }, ..KIND
    };

    fn connections_that_seem_to_be_there_and_a_server_that_crashes_lose_nothing() SERVER: Kind {
        cast: Cast { devices: 3, faults: &[HalfOpen, ServerCrash, ServerCrash, Cut, Kill], ..CAST },
        ..KIND
    };

    fn events_that_come_late_twice_or_not_at_all_lose_nothing() EVENTS: Kind {
        cast: Cast { faults: &[EventStorm, EventStorm, LostEvent, Kill], ..CAST }, ..KIND
    };

    fn five_devices_with_everything_going_wrong_lose_nothing() FIVE: Kind {
        cast: Cast {
            devices: 5,
            rounds: 100,
            faults: &[
                Cut, HalfOpen, ServerCrash, Kill, LostEvent, EventStorm, Intrusion, BadDisk,
                FullDisk, NoPermission,
            ],
            ..CAST
        },
        ..KIND
    };

    fn disks_that_hold_names_for_the_same_take_part() CASES: Kind {
        cast: Cast { devices: 4, rounds: 50, faults: &[Cut], ..CAST },
        habits: Habits::CASES,
        forms: &[Form::Exact, Form::CaseBlind, Form::UnicodeBlind, Form::DropsFinalDots],
        ..KIND
    };

    fn files_that_are_written_all_the_time_lose_nothing() HASTE: Kind {
        cast: Cast { faults: &[Intrusion, Intrusion, Intrusion, Kill, Cut], pace: 40, ..CAST },
        habits: Habits::HASTY,
        ..KIND
    };

    fn files_that_are_deleted_all_the_time_lose_nothing() REMOVALS: Kind {
        cast: Cast { faults: &[Intrusion, Intrusion, Intrusion, Cut], pace: 40, ..CAST },
        habits: Habits::DELETING,
        ..KIND
    };

    fn who_works_alone_has_no_conflict_with_oneself() ALONE: Kind {
        cast: Cast {
            faults: &[Cut, HalfOpen, ServerCrash, Kill, LostEvent, EventStorm],
            is_alone: true,
            ..CAST
        },
        ..KIND
    };

    fn undos_in_the_midst_of_everything_lose_nothing_that_was_not_seen() UNDOS: Kind {
        cast: Cast { devices: 3, rounds: 60, faults: &[Undo, Undo, Cut, Kill], ..CAST }, ..KIND
    };

    fn directories_left_out_on_some_devices_lose_nothing_and_are_deleted_nowhere() SCOPE: Kind {
        cast: Cast { devices: 3, rounds: 80, faults: &[Exclude, Exclude, Include, Cut, Kill], ..CAST },
        tree: TREE,
        ..KIND
    };

    fn directories_left_out_with_everything_going_wrong_lose_nothing() SCOPE_FAULTS: Kind {
        cast: Cast {
            devices: 3,
            rounds: 80,
            faults: &[
                Exclude, Exclude, Exclude, Include, Include, Kill, Kill, Cut, HalfOpen, LostEvent, Intrusion,
                LostState, PowerCut, BadDisk, Undo, ServerCrash,
            ],
            ..CAST
        },
        tree: TREE,
        ..KIND
    };

    fn directories_that_move_over_the_border_of_what_is_left_out_lose_nothing() SCOPE_MOVES: Kind {
        cast: Cast { devices: 3, faults: &[Exclude, Exclude, Include, Kill, Cut], ..CAST },
        habits: Habits::MOVES,
        tree: TREE,
        ..KIND
    };

    fn what_there_is_no_room_for_waits_and_nothing_is_lost() QUOTA: Kind {
        cast: Cast { devices: 3, faults: &[Cut, Kill], ..CAST }, quota: Some(30), ..KIND
    };

    fn what_there_is_no_room_for_waits_with_everything_going_wrong() QUOTA_FAULTS: Kind {
        cast: Cast {
            devices: 3,
            faults: &[Cut, HalfOpen, ServerCrash, Kill, LostEvent, Intrusion, Undo],
            ..CAST
        },
        quota: Some(40),
        ..KIND
    };

    fn folders_that_only_receive_or_only_send_keep_what_is_not_carried() ONE_WAY: Kind {
        cast: Cast { devices: 4, faults: &[Cut, Kill, LostEvent], ..CAST },
        tree: TREE,
        flows: &[Flow::Both, Flow::ReceiveOnly, Flow::SendOnly, Flow::Both],
        ..KIND
    };

    fn folders_that_only_receive_or_only_send_with_everything_going_wrong() ONE_WAY_FAULTS: Kind {
        cast: Cast {
            devices: 3,
            faults: &[
                Cut, HalfOpen, ServerCrash, Kill, LostEvent, EventStorm, Intrusion, BadDisk, LostState,
                PowerCut, Undo,
            ],
            ..CAST
        },
        tree: TREE,
        flows: &[Flow::Both, Flow::ReceiveOnly, Flow::SendOnly],
        ..KIND
    };

    fn folders_that_only_receive_or_only_send_where_directories_move() ONE_WAY_MOVES: Kind {
        cast: Cast { devices: 3, faults: &[Kill, Cut, Intrusion], ..CAST },
        habits: Habits::MOVES,
        tree: TREE,
        flows: &[Flow::Both, Flow::ReceiveOnly, Flow::SendOnly],
        ..KIND
    };

    fn folders_whose_direction_changes_lose_nothing() REDIRECTS: Kind {
        cast: Cast { devices: 3, faults: &[Redirect, Redirect, Cut, Kill, Intrusion], ..CAST },
        tree: TREE,
        ..KIND
    };

    fn a_storm_of_renames_settles() STORM: Kind { habits: Habits::STORM, tree: TREE, ..KIND };

    fn a_storm_of_renames_with_everything_going_wrong_settles() STORM_KILLS: Kind {
        cast: Cast { devices: 3, faults: &[Cut, Kill, Intrusion, LostEvent], ..CAST },
        habits: Habits::STORM,
        tree: TREE,
        ..KIND
    };

    fn directories_that_move_all_the_time_with_kills_lose_nothing() MOVES: Kind {
        cast: Cast { faults: &[Kill, Kill, Kill, Cut, Intrusion], ..CAST },
        habits: Habits::MOVES,
        tree: TREE,
        ..KIND
    };
}

/// One edits, and another one, and nobody the same at the same time but for what was not seen yet.
const EDITS: Kind =
    Kind { cast: Cast { pace: 60, ..CAST }, habits: Habits::EDITS, tree: TREE, ..KIND };
static EDITS_CUTS: Kind = Kind {
    name: "cuts_make_no_conflict_copies_of_what_nobody_edited",
    cast: Cast { devices: 3, faults: &[Cut], ..EDITS.cast },
    ..EDITS
};
static EDITS_KILLS: [Kind; 2] = [
    Kind {
        name: "kills_make_next_to_no_conflict_copies_of_what_nobody_edited",
        cast: Cast { faults: &[Kill], ..EDITS.cast },
        ..EDITS
    },
    Kind {
        name: "kills_make_next_to_no_conflict_copies_of_what_nobody_edited",
        cast: Cast { devices: 3, faults: &[Kill, Cut], ..EDITS.cast },
        ..EDITS
    },
];

#[test]
fn cuts_make_no_conflict_copies_of_what_nobody_edited() {
    let totals = run(&EDITS_CUTS);
    assert_eq!(totals.needless, 0, "{totals}");
}

/// But for one: an agent that is killed again before anything it has found since the last time is
/// recorded cannot tell on top of what was edited meanwhile.
#[test]
fn kills_make_next_to_no_conflict_copies_of_what_nobody_edited() {
    for kind in &EDITS_KILLS {
        let totals = run(kind);
        assert!(totals.needless * 100 <= totals.histories + 100, "{totals}");
    }
}
