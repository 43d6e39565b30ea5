//! Faults put in on purpose: each must be found by some property, in few histories.

use picloud::engine::defect::Defect;
use picloud::server::rules;

use crate::flaws::Flaw;
use crate::histories::{
    ALONE, CUTS, FULL, HASTE, KILLS, ONE_WAY, PLAIN, POWER, QUOTA, SCOPE, SCOPE_MOVES, SERVER,
    STORM_KILLS,
};
use crate::shrink::{History, Kind};

/// Each with the kinds of histories that should show it.
const FLAWS: &[(Flaw, &[&Kind])] = &[
    (Flaw::Engine(Defect::UnreadableIsEmpty), &[&FULL]),
    (Flaw::Engine(Defect::RenameHidesEdit), &[&CUTS]),
    (Flaw::Engine(Defect::DeletionBeatsEdit), &[&HASTE]),
    (Flaw::Engine(Defect::ConflictDropped), &[&PLAIN]),
    (Flaw::Engine(Defect::SentForgotten), &[&ALONE]),
    (Flaw::Engine(Defect::AnswerCoversLaterEdit), &[&PLAIN]),
    (Flaw::Engine(Defect::ExchangeUnexamined), &[&HASTE]),
    (Flaw::Engine(Defect::DoneBeforeDurable), &[&POWER]),
    (Flaw::Engine(Defect::TrashUnexamined), &[&HASTE]),
    (Flaw::Engine(Defect::LeftoversDropped), &[&HASTE]),
    (Flaw::Engine(Defect::ParkedForgotten), &[&STORM_KILLS]),
    (Flaw::Engine(Defect::CursorAheadOfNodes), &[&KILLS]),
    (Flaw::Engine(Defect::LeftOutIsDeleted), &[&SCOPE]),
    (Flaw::Engine(Defect::BaseOutlivesLeavingOut), &[&SCOPE_MOVES]),
    (Flaw::Engine(Defect::ReceiverDeletes), &[&ONE_WAY]),
    (Flaw::Engine(Defect::UntoldIsAgreedOn), &[&ONE_WAY, &SCOPE]),
    (Flaw::Rules(rules::Defect::BaseIgnored), &[&CUTS]),
    (Flaw::Rules(rules::Defect::NamesShared), &[&PLAIN]),
    (Flaw::Rules(rules::Defect::CyclesAllowed), &[&STORM_KILLS]),
    (Flaw::Rules(rules::Defect::FullDirsDeleted), &[&CUTS]),
    (Flaw::Rules(rules::Defect::ContentUnchecked), &[&PLAIN]),
    (Flaw::Rules(rules::Defect::SentTwiceUnknown), &[&PLAIN]),
    (Flaw::Rules(rules::Defect::QuotaIgnored), &[&QUOTA]),
    (Flaw::AnswerBeforeDurable, &[&SERVER]),
    (Flaw::PagesOutOfOrder, &[&CUTS]),
    (Flaw::PowerCutUnnoticed, &[&POWER]),
];

/// The most histories of each kind.
const HISTORIES_MAX: u64 = 400;

#[test]
fn every_fault_put_in_on_purpose_is_found() {
    let mut missed = Vec::new();
    for (flaw, kinds) in FLAWS {
        let tries =
            (1..=HISTORIES_MAX).flat_map(|seed| kinds.iter().map(move |kind| (seed, *kind)));
        let found = tries.enumerate().find_map(|(before, (seed, kind))| {
            let failure = History::draw(kind, seed, Some(*flaw)).play().result.err()?;
            // What fails anyhow shows nothing.
            History::draw(kind, seed, None).play().result.ok()?;
            Some((before + 1, seed, kind.name, failure.property))
        });
        match found {
            Some((count, seed, kind, property)) => {
                println!(
                    "defect {flaw:?}: \"{property}\" fails in history {count} ({kind}, {seed})"
                );
            }
            None => missed.push(flaw),
        }
    }
    println!("defects {} found {}", FLAWS.len(), FLAWS.len() - missed.len());
    assert!(missed.is_empty(), "not found: {missed:?}");
}

#[test]
fn a_history_that_fails_is_made_short() {
    for flaw in [Flaw::Engine(Defect::DeletionBeatsEdit), Flaw::Rules(rules::Defect::BaseIgnored)] {
        let (_, kinds) = FLAWS.iter().find(|(other, _)| *other == flaw).unwrap();
        let (history, failure) = (1..=HISTORIES_MAX)
            .find_map(|seed| {
                let history = History::draw(kinds[0], seed, Some(flaw));
                let failure = history.play().result.err()?;
                Some((history, failure))
            })
            .unwrap();
        let short = history.shrink(failure.property);
        let again = short.play();
        println!("{flaw:?}: {} steps, then {}", history.steps.len(), short.steps.len());
        println!("{}\n{}\n{}", failure, again.trace, short.command());
        assert_eq!(again.result.unwrap_err().property, failure.property);
        assert!(short.steps.len() < 15, "{} steps are left", short.steps.len());
    }
}
