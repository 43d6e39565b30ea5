//! A history as a list of steps, drawn from one seed before anything happens.
//!
//! Each step has a seed of its own, from which all that is random in it follows. So a step stays what
//! it is when others are left out, and a history can be made shorter ([`super::shrink`]).

use std::collections::BTreeMap;

use super::rng::Rng;

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Fault {
    /// Connections break; what is under way is lost in either direction, or comes late.
    Cut,
    /// A connection is dead, and the device does not know.
    HalfOpen,
    /// The server dies, and keeps what it made durable.
    ServerCrash,
    /// An agent is killed, perhaps in the midst of an operation.
    Kill,
    /// The power of a device goes, perhaps in the midst of an operation.
    PowerCut,
    /// The watch does not tell.
    LostEvent,
    /// The watch tells late, twice, inexactly, or that there was too much to tell.
    EventStorm,
    /// The state of a device is gone.
    LostState,
    /// A person acts in the midst of what the agent does.
    Intrusion,
    /// Some operations on the disk fail for a while.
    BadDisk,
    /// Nothing new fits on the disk for a while; half of it may.
    FullDisk,
    /// A directory may neither be read nor changed for a while.
    NoPermission,
    /// A person takes back what some device changed lately.
    Undo,
    /// A person leaves a directory of the drive out on a device; never on the first, which has all.
    Exclude,
    /// A person wants one back.
    Include,
    /// A person changes which way changes go on a device; the first one's go both ways.
    Redirect,
}

impl Fault {
    /// Returns whether nothing a person deleted may come back because of it.
    const fn is_harmless_to_deletions(self) -> bool {
        match self {
            Self::Cut
            | Self::HalfOpen
            | Self::ServerCrash
            | Self::Kill
            | Self::LostEvent
            | Self::EventStorm
            | Self::BadDisk
            | Self::FullDisk
            | Self::NoPermission => true,
            // Where both sides agreed is forgotten, or the deletion itself; or somebody acts.
            Self::LostState | Self::PowerCut | Self::Intrusion | Self::Undo => false,
            // What was deleted in it and not told yet comes back with the directory.
            Self::Exclude | Self::Include => false,
            // What was deleted where nothing is told is there until it is.
            Self::Redirect => false,
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum What {
    /// A machine does one thing it can do.
    Machine,
    /// A machine does everything it can do now.
    Turn,
    /// A machine comes to rest, while the others do nothing.
    Alone,
    /// Everything comes to rest.
    Rest,
    /// A person does one thing.
    Person,
    Fault(Fault),
    /// A member of another drive tries to get at this one's bytes.
    Stranger,
    /// Everything comes to rest, then one person deletes something and nobody does anything else.
    QuietRemoval,
}

#[derive(Debug, Clone, Copy)]
pub struct Step {
    /// Which step of the history as it was drawn.
    pub index: usize,
    pub device: usize,
    pub what: What,
    pub seed: u64,
}

/// What a history is drawn from.
#[derive(Debug, Clone, Copy)]
pub struct Cast {
    pub devices: usize,
    /// How many things persons do.
    pub rounds: usize,
    pub faults: &'static [Fault],
    /// At most so many things machines do between them.
    pub pace: usize,
    /// Only the first device's person does anything.
    pub is_alone: bool,
}

/// Draws a history.
pub fn draw(seed: u64, cast: &Cast) -> Vec<Step> {
    let mut rng = Rng::new(seed);
    let mut steps = Vec::new();
    let mut add = |rng: &mut Rng, device, what| {
        steps.push(Step { index: steps.len(), device, what, seed: rng.next() });
    };
    for _ in 0..cast.rounds {
        for _ in 0..rng.below(cast.pace) {
            let device = rng.below(cast.devices);
            add(&mut rng, device, What::Machine);
        }
        let device = if cast.is_alone { 0 } else { rng.below(cast.devices) };
        add(&mut rng, device, What::Person);
        if let Some(fault) = rng.pick(cast.faults).copied()
            && rng.chance(15)
        {
            let device = if cast.is_alone { rng.below(cast.devices) } else { device };
            add(&mut rng, device, What::Fault(fault));
        }
        if rng.chance(4) {
            add(&mut rng, 0, What::Stranger);
        }
    }
    let device = rng.below(cast.devices);
    add(&mut rng, device, What::QuietRemoval);
    let faults: Vec<Fault> =
        cast.faults.iter().copied().filter(|fault| fault.is_harmless_to_deletions()).collect();
    for _ in 0..30 {
        let device = rng.below(cast.devices);
        let fault = rng.pick(&faults).copied().filter(|_| rng.chance(10));
        add(&mut rng, device, fault.map_or(What::Machine, What::Fault));
    }
    steps
}

/// What histories came to.
#[derive(Debug, Clone, Default)]
pub struct Totals {
    pub histories: u64,
    pub steps: u64,
    pub faults: BTreeMap<Fault, u64>,
    pub written: u64,
    pub lost: u64,
    /// Conflict copies of what somebody replaced who had seen it.
    pub needless: u64,
    /// Files that waited for room at the end.
    pub held: u64,
    pub revs: u64,
}

impl Totals {
    pub fn fault(&mut self, fault: Fault) {
        *self.faults.entry(fault).or_default() += 1;
    }

    pub fn add(&mut self, more: &Self) {
        self.histories += more.histories;
        self.steps += more.steps;
        self.written += more.written;
        self.lost += more.lost;
        self.needless += more.needless;
        self.held += more.held;
        self.revs += more.revs;
        for (fault, count) in &more.faults {
            *self.faults.entry(*fault).or_default() += count;
        }
    }
}

impl std::fmt::Display for Totals {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { histories, steps, written, lost, needless, held, revs, faults } = self;
        write!(
            f,
            "histories {histories} steps {steps} written {written} lost {lost} needless {needless} held {held} revs {revs}"
        )?;
        write!(f, " faults {}", faults.values().sum::<u64>())?;
        faults.iter().try_for_each(|(fault, count)| write!(f, " {fault:?} {count}"))
    }
}
