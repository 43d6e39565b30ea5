//! Playing a history, and making one that fails as short as it goes.

use std::cell::Cell;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Once;

use picloud::model::Flow;

use super::disk::{Form, Habits};
use super::flaws::Flaw;
use super::steps::{Cast, Fault, Step, Totals, What, draw};
use super::world::{Failure, World};

/// The most histories played to make one shorter.
const PLAYS_MAX: usize = 3000;

/// A kind of histories, named as its test.
#[derive(Debug)]
pub struct Kind {
    pub name: &'static str,
    pub cast: Cast,
    pub habits: Habits,
    /// The tree there is at first.
    pub tree: &'static str,
    /// The devices' disks, in turn.
    pub forms: &'static [Form],
    /// How much the files may be together, until all is quiet; then it is lifted.
    pub quota: Option<u64>,
    /// Which way the devices' changes go, in turn.
    pub flows: &'static [Flow],
}

/// One history.
#[derive(Debug, Clone)]
pub struct History {
    pub kind: &'static Kind,
    pub seed: u64,
    pub flaw: Option<Flaw>,
    pub devices: usize,
    pub steps: Vec<Step>,
}

/// What a history came to.
pub struct Played {
    pub result: Result<(), Failure>,
    pub trace: String,
    pub totals: Totals,
}

impl History {
    pub fn draw(kind: &'static Kind, seed: u64, flaw: Option<Flaw>) -> Self {
        let steps = draw(seed, &kind.cast);
        Self { kind, seed, flaw, devices: kind.cast.devices, steps }
    }

    pub fn play(&self) -> Played {
        let mut world = World::with_forms(self.seed, self.devices, self.kind.forms);
        let result = quietly(|| self.play_in(&mut world));
        let result = result.unwrap_or_else(|text| Err(Failure::new("no panic", text)));
        Played { result, trace: world.trace(), totals: world.count() }
    }

    fn play_in(&self, world: &mut World) -> Result<(), Failure> {
        if let Some(flaw) = self.flaw {
            world.break_it(flaw);
        }
        if self.kind.quota.is_some() {
            world.set_quota(self.kind.quota);
        }
        world.set_flows(self.kind.flows);
        if !self.kind.tree.is_empty() {
            world.build(0, self.kind.tree);
            world.settle()?;
        }
        world.set_habits(self.kind.habits);
        world.play(&self.steps)?;
        world.settle()?;
        if self.kind.quota.is_some() {
            world.check_but_for_held()?;
            world.set_quota(None);
            world.settle()?;
        }
        if world.is_one_way() {
            world.check_one_way()?;
            world.stays_quiet()?;
            if self.kind.cast.faults.contains(&Fault::Redirect) {
                // Nothing that was kept is lost when it goes both ways again.
                world.set_flows(&[Flow::Both]);
                world.settle()?;
            } else {
                world.choose_sides()?;
            }
        }
        world.check()?;
        if let Some(spare) = world.who_leaves_out() {
            // One goes on without, then everybody has everything again.
            world.include_all(Some(spare));
            world.settle()?;
            world.check()?;
            world.stays_quiet()?;
            world.include_all(None);
            world.settle()?;
            world.check()?;
        }
        let copies = world.conflict_copies();
        if self.kind.cast.is_alone && !copies.is_empty() {
            return Err(Failure::new("no conflict with oneself", format!("{copies:?}")));
        }
        world.stays_quiet()
    }

    fn fails_as(&self, property: &str) -> bool {
        self.play().result.is_err_and(|failure| failure.property == property)
    }

    /// Keeps the steps that a command names: those of machines may be whole turns (`7t`), let one
    /// machine (`7a`) or all of them (`7r`) come to rest.
    pub fn keep(&mut self, steps: &str) {
        let named: Vec<(usize, Option<What>)> = steps
            .split(',')
            .filter_map(|text| {
                let what = match text.as_bytes().last() {
                    Some(b't') => Some(What::Turn),
                    Some(b'a') => Some(What::Alone),
                    Some(b'r') => Some(What::Rest),
                    _ => None,
                };
                Some((text.trim_end_matches(['t', 'a', 'r']).parse().ok()?, what))
            })
            .collect();
        self.steps.retain_mut(|step| {
            let found = named.iter().find(|(index, _)| *index == step.index);
            if let Some((_, Some(what))) = found {
                step.what = *what;
            }
            found.is_some()
        });
    }

    /// Returns the shortest history found in which the same property fails.
    pub fn shrink(&self, property: &str) -> Self {
        let mut best = self.clone();
        let mut plays = 0;
        let mut is_worse = |shorter: &Self| {
            plays += 1;
            plays > PLAYS_MAX || !shorter.fails_as(property)
        };
        best.drop_devices(&mut is_worse);
        // What a fine interleaving does, rests and whole turns often do, too.
        for what in [What::Rest, What::Alone, What::Turn] {
            let coarse = best.coarse(what);
            if coarse.steps.len() < best.steps.len() && !is_worse(&coarse) {
                best = coarse;
            }
        }
        loop {
            let before = best.steps.len();
            best.drop_steps(&mut is_worse);
            best.coarsen(&mut is_worse);
            best.drop_devices(&mut is_worse);
            if best.steps.len() == before {
                return best;
            }
        }
    }

    fn drop_devices(&mut self, is_worse: &mut impl FnMut(&Self) -> bool) {
        while self.devices > 1 {
            let mut fewer = self.clone();
            fewer.devices -= 1;
            fewer.steps.retain(|step| step.device < fewer.devices);
            if is_worse(&fewer) {
                return;
            }
            *self = fewer;
        }
    }

    /// Leaves out halves, quarters, …, single steps, from the end (Zeller's ddmin).
    fn drop_steps(&mut self, is_worse: &mut impl FnMut(&Self) -> bool) {
        let mut size = self.steps.len().div_ceil(2);
        while size > 0 {
            let mut end = self.steps.len();
            while end > 0 {
                let start = end.saturating_sub(size);
                let mut shorter = self.clone();
                shorter.steps.drain(start..end);
                if !is_worse(&shorter) {
                    *self = shorter;
                }
                end = start;
            }
            size /= 2;
        }
    }

    /// Returns this history with one such step in place of each run of machines' steps.
    fn coarse(&self, what: What) -> Self {
        let mut coarse = self.clone();
        coarse.steps.dedup_by(|step, before| {
            let both = [&*step, &*before].iter().all(|step| step.what == What::Machine);
            both && (what == What::Rest || step.device == before.device)
        });
        for step in &mut coarse.steps {
            if step.what == What::Machine {
                step.what = what;
            }
        }
        coarse
    }

    /// Puts one rest or turn in place of several steps of machines, where that does it.
    fn coarsen(&mut self, is_worse: &mut impl FnMut(&Self) -> bool) {
        let is_machine =
            |step: &Step| matches!(step.what, What::Machine | What::Turn | What::Alone);
        let mut at = 0;
        while at < self.steps.len() {
            let run = self.steps[at..].iter().take_while(|step| is_machine(step)).count();
            let shortest = if run > 0 && self.steps[at].what == What::Machine { 1 } else { 2 };
            for len in (shortest..=run).rev() {
                let better = [What::Rest, What::Alone, What::Turn].into_iter().find_map(|what| {
                    let mut coarse = self.clone();
                    coarse.steps.drain(at + 1..at + len);
                    coarse.steps[at].what = what;
                    (!is_worse(&coarse)).then_some(coarse)
                });
                if let Some(better) = better {
                    *self = better;
                    break;
                }
            }
            at += 1;
        }
    }

    /// The command that plays this very history.
    pub fn command(&self) -> String {
        let told = |step: &Step| match step.what {
            What::Turn => format!("{}t", step.index),
            What::Alone => format!("{}a", step.index),
            What::Rest => format!("{}r", step.index),
            _ => step.index.to_string(),
        };
        let steps: Vec<String> = self.steps.iter().map(told).collect();
        let (seed, devices, steps) = (self.seed, self.devices, steps.join(","));
        let name = self.kind.name;
        format!(
            "PICLOUD_SEED={seed} PICLOUD_DEVICES={devices} PICLOUD_STEPS={steps} cargo test --test simulation {name}"
        )
    }
}

thread_local! {
    static QUIET: Cell<bool> = const { Cell::new(false) };
}

/// Runs something; a panic comes back as its text, and is not printed.
fn quietly<V>(run: impl FnOnce() -> V) -> Result<V, String> {
    static HOOK: Once = Once::new();
    HOOK.call_once(|| {
        let before = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |info| {
            if !QUIET.get() {
                before(info);
            }
        }));
    });
    QUIET.set(true);
    let result = catch_unwind(AssertUnwindSafe(run));
    QUIET.set(false);
    result.map_err(|panic| {
        panic
            .downcast_ref::<String>()
            .cloned()
            .or_else(|| panic.downcast_ref::<&str>().map(|text| (*text).to_owned()))
            .unwrap_or_else(|| "a panic".to_owned())
    })
}
