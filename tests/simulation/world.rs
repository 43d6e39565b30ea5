//! The world: devices, the server, the connections between them; every step drawn from one seed.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::fmt::Write as _;
use std::rc::Rc;

use picloud::engine::Now;
use picloud::engine::apply::{Job, Payload};
use picloud::engine::seam::{Action, Committed, DiskOp, Event, JournalPage, Outcome, Uploaded};
use picloud::engine::trees::{LocalBody, Trees as _};
use picloud::engine::why::{Step as Next, Why};
use picloud::model::{
    BatchId, Change, Checked, Content, Flow, Name, NodeId, RelPath, Rev, Timestamp, Usage,
    Versioned,
};
use picloud::protocol::message::ChangeResult;
use picloud::server::rules::undo::{self, History as _, How, Made};

use super::device::{Death, Device, Killed, TODAY, Wire};
use super::disk::{Data, Form, Habits, Trouble, content_of, describe};
use super::flaws::Flaw;
use super::invariants::Sound;
use super::ledger::Ledger;
use super::rng::Rng;
use super::server::Server;
use super::steps::{Fault, Step, Totals, What};
use super::stranger::Stranger;

/// What holds in each history.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Failure {
    /// Which property does not.
    pub property: &'static str,
    pub text: String,
}

impl Failure {
    pub fn new(property: &'static str, text: impl Into<String>) -> Self {
        Self { property, text: text.into() }
    }
}

impl std::fmt::Display for Failure {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}: {}", self.property, self.text)
    }
}

pub struct World {
    rng: Rng,
    seed: u64,
    ledger: Rc<RefCell<Ledger>>,
    pub devices: Vec<Device>,
    pub server: Server,
    /// The other drive of the same server.
    stranger: Stranger,
    contents: BTreeMap<String, String>,
    /// Commits of connections that are gone, still on their way.
    limbo: VecDeque<(usize, Wire)>,
    /// Whether the server went back to an older state.
    restored: bool,
    /// The most turns in which everything must become quiet.
    pub turns_max: u32,
    /// A fault of what delivers.
    pages_out_of_order: bool,
    /// What was deleted while everybody knew all, and must stay away.
    deleted: BTreeSet<String>,
    /// Where something was found wrong first.
    failure: Option<Failure>,
    /// How much the devices were last told to be in use.
    usage: Usage,
    /// What was last found sound.
    sound: Sound,
    pub totals: Totals,
}

/// What a machine can do.
#[derive(Debug, Clone, Copy)]
enum Act {
    Time,
    Poll,
    Do,
    Tell,
    Hints,
    Connect,
    Hear,
    Serve,
    Work,
    Checkpoint,
    Limbo,
    Sync,
}

/// What is there although nobody had reason for it.
#[derive(Debug, Default)]
pub struct Excess {
    /// Conflict copies of what somebody replaced who had seen it.
    pub copies: Vec<String>,
    /// Files that hold what another one holds, too.
    pub twice: Vec<String>,
    /// How many directories there are.
    pub dirs: usize,
}

fn key(content: &Content) -> String {
    format!("{content:?}")
}

impl World {
    pub fn new(seed: u64, devices: usize) -> Self {
        Self::with_forms(seed, devices, &[Form::Exact])
    }

    /// A world whose devices have disks of these kinds, in turn.
    pub fn with_forms(seed: u64, devices: usize, forms: &[Form]) -> Self {
        let ledger = Rc::new(RefCell::new(Ledger::default()));
        let devices = (0..devices)
            .map(|n| {
                let name = ["ann", "bob", "cy", "dee", "eve"][n];
                let form = forms[n % forms.len()];
                Device::new(name, form, seed * 8 + n as u64, Rc::clone(&ledger))
            })
            .collect();
        Self {
            rng: Rng::new(seed),
            seed,
            ledger,
            devices,
            server: Server::default(),
            stranger: Stranger::default(),
            contents: BTreeMap::new(),
            limbo: VecDeque::new(),
            restored: false,
            turns_max: 1500,
            pages_out_of_order: false,
            deleted: BTreeSet::new(),
            failure: None,
            usage: Usage::default(),
            sound: Sound::default(),
            totals: Totals::default(),
        }
    }

    /// How much the files in the drive may be together, from now on.
    pub fn set_quota(&mut self, quota: Option<u64>) {
        self.server.manifest.usage.quota = quota;
        self.sync_server();
    }

    /// Whether the devices are told how much is in use: where there is no quota, that would change nothing.
    fn tells_usage(&self) -> bool {
        self.usage.quota.is_some() || self.server.manifest.usage.quota.is_some()
    }

    /// Lets something in this world be wrong from the beginning.
    pub fn break_it(&mut self, flaw: Flaw) {
        for device in &mut self.devices {
            device.break_it(flaw);
        }
        match flaw {
            Flaw::Rules(defect) => {
                self.server.manifest.defect = Some(defect);
                self.stranger.manifest.defect = Some(defect);
            }
            Flaw::AnswerBeforeDurable => self.server.answers_early = true,
            Flaw::PagesOutOfOrder => self.pages_out_of_order = true,
            Flaw::Engine(_) | Flaw::PowerCutUnnoticed => {}
        }
    }

    pub fn trace(&self) -> String {
        self.ledger.borrow().trace.clone()
    }

    fn note(&self, line: impl AsRef<str>) {
        self.ledger.borrow_mut().note(line);
    }

    fn now(&self) -> Now {
        let ms = self.ledger.borrow().ms();
        let secs = i64::try_from(ms / 1000).unwrap();
        Now { ms, wall: Timestamp::new(1_000_000 + secs, 0).unwrap() }
    }

    pub fn set_habits(&mut self, habits: Habits) {
        for device in &self.devices {
            device.disk.borrow_mut().habits = habits;
        }
    }

    /// Plays a history, and checks what must hold after each of its steps.
    pub fn play(&mut self, steps: &[Step]) -> Result<(), Failure> {
        for step in steps {
            let Step { device, what, seed, .. } = *step;
            self.rng = Rng::new(seed);
            self.devices[device].disk.borrow_mut().reseed(seed ^ 0x5eed);
            match what {
                What::Machine => self.machine_step(device),
                What::Turn => {
                    self.turn(device);
                    self.ledger.borrow_mut().pass_ms(10);
                }
                What::Alone => self.settle_one(device)?,
                What::Rest => self.settle()?,
                What::Person => {
                    self.devices[device].disk.borrow_mut().person_acts();
                    self.note_unseen(device);
                }
                What::Fault(fault) => {
                    self.totals.fault(fault);
                    self.fault(device, fault);
                }
                What::Stranger => {
                    let known = self.contents.values().cloned().collect::<Vec<_>>();
                    let result = self.stranger.acts(&mut self.rng, &known);
                    self.note_failure(result);
                }
                What::QuietRemoval => self.remove_while_quiet(device)?,
            }
            self.check_step(device)?;
        }
        self.totals.steps += steps.len() as u64;
        Ok(())
    }

    /// Somebody deletes something while everybody knows all and nobody else does anything: it must
    /// not come back, whatever goes wrong from here on.
    fn remove_while_quiet(&mut self, device: usize) -> Result<(), Failure> {
        self.settle()?;
        if self.tells_usage() && self.devices.iter().any(|device| device.engine.problem_count() > 0)
        {
            // What waits for room is known to one device only.
            return self.check_but_for_held();
        }
        if self.is_one_way() {
            return self.check_one_way();
        }
        self.check()?;
        // Within a moment the driver makes durable what is known.
        self.devices.iter_mut().for_each(Device::checkpoint);
        self.deleted = self.devices[device].disk.borrow_mut().person_removes_for_good();
        // What the person could not see was not deleted.
        let unseen = self.left_out_texts(device);
        self.deleted.retain(|text| !unseen.contains(text));
        Ok(())
    }

    fn note_failure(&mut self, result: Result<(), Failure>) {
        if let Err(failure) = result {
            self.failure.get_or_insert(failure);
        }
    }

    /// Returns what was found wrong when something was told.
    fn check_told(&mut self) -> Result<(), Failure> {
        if let Some(failure) = self.failure.take() {
            return Err(failure);
        }
        match self.devices.iter_mut().find_map(|device| device.untruth.take()) {
            Some(untruth) => Err(Failure::new("what is told is true", untruth)),
            None => Ok(()),
        }
    }

    /// Checks what must hold at any moment.
    fn check_step(&mut self, device: usize) -> Result<(), Failure> {
        self.check_told()?;
        if self.restored {
            return Ok(());
        }
        self.sound.check_manifest(&self.server)?;
        let trees = self.devices[device].engine.trees();
        self.sound.check_trees(device, trees, &mut self.server)
    }

    /// Everything works from now on: returns when nothing is left to do, or that it never ends.
    pub fn settle(&mut self) -> Result<(), Failure> {
        self.rng = Rng::new(self.seed);
        let all: Vec<usize> = (0..self.devices.len()).collect();
        self.settle_some(&all)?;
        // What failed is tried again after a while.
        for _ in 0..3 {
            if self.devices.iter().all(|device| device.engine.problem_count() == 0) {
                break;
            }
            self.ledger.borrow_mut().pass_ms(61_000);
            self.settle_some(&all)?;
        }
        // What was taken away is dropped after its grace, or comes back if somebody wrote to it.
        for _ in 0..20 {
            let due = self.devices.iter().filter_map(Device::reap_at_ms).max();
            let Some(due) = due else { return Ok(()) };
            let now = self.now().ms;
            self.ledger.borrow_mut().pass_ms(due.saturating_sub(now) + 1);
            for n in &all {
                self.work(*n);
            }
            self.settle_some(&all)?;
        }
        Ok(())
    }

    /// As [`World::settle`], for one device, while the others hear and say nothing.
    pub fn settle_one(&mut self, device: usize) -> Result<(), Failure> {
        self.settle_some(&[device])
    }

    /// Time passes in which no machine does anything.
    pub fn pass_ms(&mut self, ms: u64) {
        self.ledger.borrow_mut().pass_ms(ms);
    }

    /// All devices do all they can so many times, in turn. Other than when they come to rest, they look
    /// at what the watch has told and no further.
    pub fn go_on(&mut self, turns: usize) {
        for _ in 0..turns {
            for n in 0..self.devices.len() {
                self.turn(n);
            }
            self.sync_server();
            self.ledger.borrow_mut().pass_ms(10);
        }
    }

    fn settle_some(&mut self, some: &[usize]) -> Result<(), Failure> {
        for &n in some {
            let mut disk = self.devices[n].disk.borrow_mut();
            (disk.fuel, disk.trouble) = (None, None);
            (disk.intrusion, disk.intrusion_at_look) = (None, None);
            let late = std::mem::take(&mut disk.late_hints);
            disk.hints.extend(late);
            drop(disk);
            self.send(n, Event::Rescan);
        }
        for turn in 0..self.turns_max {
            // What connections that are gone left comes late, but it comes.
            if turn == 3 {
                while self.limbo_arrives() {}
            }
            for &n in some {
                self.turn(n);
            }
            self.sync_server();
            self.check_told()?;
            self.ledger.borrow_mut().pass_ms(10);
            let head = self.server.head();
            let is_quiet =
                |n: &usize| self.devices[*n].is_at_rest() && self.devices[*n].sent == head;
            if self.limbo.is_empty() && !self.server.has_waiting() && some.iter().all(is_quiet) {
                return Ok(());
            }
        }
        Err(Failure::new("quiet in bounded steps", self.describe_unrest()))
    }

    /// A device does everything it can do now.
    fn turn(&mut self, n: usize) {
        if self.devices[n].is_half_open {
            self.cut(n, true);
        }
        self.connect(n);
        self.serve(n);
        self.sync_server();
        while let Some(event) = self.devices[n].down.pop_front() {
            self.send(n, event);
        }
        for event in std::mem::take(&mut self.devices[n].events) {
            self.send(n, event);
        }
        self.take_hints(n);
        self.poll(n);
        for action in std::mem::take(&mut self.devices[n].actions) {
            self.act(n, action);
        }
        while self.devices[n].has_jobs() {
            self.work(n);
        }
    }

    fn describe_unrest(&self) -> String {
        let mut failure = "never quiet".to_owned();
        for device in &self.devices {
            let trees = device.engine.trees();
            write!(failure, "\n  {}: {:?} {:?}", device.name(), trees.totals(), trees.meta())
                .unwrap();
            for (id, entry) in trees.entries().filter(|(_, e)| e.is_dirty()) {
                write!(failure, "\n    {id}: {entry:?}").unwrap();
            }
            write!(failure, "\n    problems {:?}", device.engine.problems()).unwrap();
            if !device.engine.is_settled() {
                write!(failure, "\n    waits {}", device.engine.describe_waits()).unwrap();
            }
            write!(failure, "\n    {:#?}", device.disk.borrow().render()).unwrap();
        }
        failure
    }

    /// Checks what must hold once everything is quiet, but for what there is no room for: all is the same
    /// everywhere else, and nothing is held that there is room for.
    pub fn check_but_for_held(&mut self) -> Result<(), Failure> {
        let usage = self.server.usage();
        let mut held = BTreeSet::new();
        for device in &self.devices {
            let name = device.name();
            for (path, reason) in device.engine.problems() {
                let why = device.engine.why(&path);
                let Ok(Why::Known(known)) = why else {
                    return Err(Failure::new("no problems", format!("{name}: {path} {reason}")));
                };
                match known.step {
                    Next::OverQuota(lack)
                        if lack.needs > lack.left && usage.left() == Some(lack.left) => {}
                    step => {
                        let text = format!("{name}: {path} {reason}, but {step:?}, {usage:?}");
                        return Err(Failure::new("only what does not fit is held", text));
                    }
                }
                held.insert(path.to_string());
            }
        }
        let is_held = |line: &String| {
            let path = line.split_once(" = ").map_or(line.as_str(), |(path, _)| path);
            held.contains(path)
        };
        let mut all = self.devices.iter().map(|device| {
            let mut lines = shown(device);
            lines.retain(|line| !is_held(line));
            (device.name(), lines)
        });
        let Some((first, lines)) = all.next() else { return Ok(()) };
        for (name, others) in all {
            if others != lines {
                let text = format!(
                    "{first} and {name} differ in what is not held:\n{lines:#?}\n{others:#?}\n{held:?}"
                );
                return Err(Failure::new("convergence but for what is held", text));
            }
        }
        self.totals.held += held.len() as u64;
        Ok(())
    }

    /// Checks what must hold once everything is quiet.
    pub fn check(&mut self) -> Result<(), Failure> {
        if !self.restored {
            // A tree with a ring in it has no paths that could be shown.
            self.sound.check_manifest(&self.server)?;
        }
        let shown: Vec<Vec<String>> = self.devices.iter().map(shown).collect();
        let first = &shown[0];
        for (device, other) in self.devices.iter().zip(&shown) {
            let name = device.name();
            let wanted = self.wanted_by(device, first);
            if *other != wanted {
                let who = self.devices[0].name();
                let text = format!(
                    "{who} and {name} differ:\n{wanted:#?}\n{other:#?}\nleft out {:?}",
                    device.left_out
                );
                let server = self.server.render();
                return Err(Failure::new("convergence", format!("{text}\nserver {server:#?}")));
            }
            let hidden = device.disk.borrow().hidden();
            if !hidden.is_empty() {
                return Err(Failure::new("nothing stays hidden", format!("{name} has {hidden:?}")));
            }
            if device.engine.agrees() == Some(false) {
                return Err(Failure::new("convergence", format!("{name}: the digests differ")));
            }
            let is_exact = device.disk.borrow().form == Form::Exact;
            let problems = device.engine.problems();
            if problems.iter().any(|(_, why)| is_exact || !why.contains("for the same as")) {
                return Err(Failure::new("no problems", format!("{name}: {problems:?}")));
            }
        }
        if self.server.render().len() != first.len() {
            let server = self.server.render();
            let text = format!("the server differs:\n{first:#?}\n{server:#?}");
            return Err(Failure::new("convergence", text));
        }
        let texts = self.devices[0].disk.borrow().texts();
        let ledger = self.ledger.borrow();
        let lost: Vec<_> =
            ledger.written.difference(&ledger.superseded).filter(|t| !texts.contains(*t)).collect();
        self.totals.lost += lost.len() as u64;
        if !lost.is_empty() {
            return Err(Failure::new("no version lost", format!("{lost:?}:\n{first:#?}")));
        }
        if let Some(text) = texts.iter().find(|text| !ledger.written.contains(*text)) {
            return Err(Failure::new("nothing nobody wrote", text));
        }
        if let Some(text) = self.deleted.intersection(&texts).next() {
            let text = format!("{text} is there again:\n{first:#?}");
            return Err(Failure::new("deleted stays deleted", text));
        }
        if let Some(missing) = self.server.missing()
            && !self.restored
        {
            return Err(Failure::new("acknowledged stays acknowledged", missing));
        }
        self.stranger.check()?;
        if let Some(between) = first.iter().find(|line| line.contains(".picloud-moving")) {
            return Err(Failure::new("no in-between name stays", between));
        }
        Ok(())
    }

    /// What one device knows, there is nothing to do for any, however much time passes.
    pub fn stays_quiet(&mut self) -> Result<(), Failure> {
        let head = self.server.head();
        let done: Vec<u64> = self.devices.iter().map(|device| device.operations).collect();
        for _ in 0..3 {
            self.ledger.borrow_mut().pass_ms(45_000);
            self.settle()?;
        }
        let now: Vec<u64> = self.devices.iter().map(|device| device.operations).collect();
        if head == self.server.head() && done == now {
            return Ok(());
        }
        let text =
            format!("head {head:?} then {:?}, work {done:?} then {now:?}", self.server.head());
        Err(Failure::new("no work once in sync", text))
    }

    /// Counts what this history came to.
    pub fn count(&mut self) -> Totals {
        let ledger = self.ledger.borrow();
        self.totals.histories = 1;
        self.totals.needless = self.excess().copies.len() as u64;
        self.totals.written = ledger.written.len() as u64;
        self.totals.revs = self.server.head().0;
        self.totals.clone()
    }

    /// The conflict copies that there are.
    pub fn conflict_copies(&self) -> Vec<String> {
        let shown = shown(&self.devices[0]);
        shown.into_iter().filter(|line| line.contains("(conflicted copy")).collect()
    }

    /// Returns what is there although nobody had reason for it, by the ledger's account.
    pub fn excess(&self) -> Excess {
        let disk = self.devices[0].disk.borrow();
        let ledger = self.ledger.borrow();
        let mut excess = Excess::default();
        let mut seen = BTreeSet::new();
        for (path, ino) in disk.walk() {
            let text = match &disk.inodes[&ino].data {
                Data::Dir(_) => {
                    excess.dirs += 1;
                    continue;
                }
                Data::File(text)
                    if !(text.is_empty()
                        || ledger.linked.contains(text)
                        || ledger.unseen.contains(text)) =>
                {
                    text
                }
                Data::File(_) | Data::Link(_) => continue,
            };
            let name = path.last().map(ToString::to_string).unwrap_or_default();
            let is_again = !seen.insert(text.clone());
            if name.contains("(conflicted copy") && ledger.superseded.contains(text) {
                excess.copies.push(format!("{} = {text}", describe(&path)));
            } else if is_again {
                excess.twice.push(format!("{} = {text}", describe(&path)));
            }
        }
        excess
    }

    /// Makes a tree on one device: `"a=1 d/ d/b=2 l->t"`.
    pub fn build(&mut self, device: usize, tree: &str) {
        for entry in tree.split_whitespace() {
            let command = if let Some((path, text)) = entry.split_once('=') {
                format!("write {path} {text}")
            } else if let Some((path, target)) = entry.split_once("->") {
                format!("link {path} {target}")
            } else {
                format!("mkdir {}", entry.trim_end_matches('/'))
            };
            self.script(device, &command);
        }
    }

    /// Lets the person at a device do these things, one after the other.
    pub fn script(&mut self, device: usize, commands: &str) {
        let path = |text: &str| -> Vec<Name> {
            text.split('/').map(|name| Name::try_from(name).unwrap()).collect()
        };
        for command in commands.split(';').map(str::trim).filter(|command| !command.is_empty()) {
            let words: Vec<&str> = command.split_whitespace().collect();
            let mut disk = self.devices[device].disk.borrow_mut();
            let superseded: Vec<String> = match words.as_slice() {
                ["write", at, text] => {
                    self.ledger.borrow_mut().written.insert((*text).to_owned());
                    disk.write(&path(at), text).unwrap().into_iter().collect()
                }
                ["mkdir", at] => {
                    assert!(disk.mkdir(&path(at)));
                    vec![]
                }
                ["link", at, target] => {
                    assert!(disk.symlink(&path(at), target));
                    vec![]
                }
                ["mv", from, to] => {
                    disk.rename(&path(from), &path(to)).unwrap().into_iter().collect()
                }
                ["rm", at] => disk.remove(&path(at)).unwrap(),
                ["ln", from, to] => {
                    assert!(disk.link_hard(&path(from), &path(to)));
                    vec![]
                }
                ["chmod", mode, at] => {
                    assert!(disk.chmod(&path(at), u16::from_str_radix(mode, 8).unwrap()));
                    vec![]
                }
                other => panic!("no such command: {other:?}"),
            };
            // What is written again by somebody is not lost by being replaced before.
            self.ledger.borrow_mut().superseded.extend(superseded);
        }
    }

    /// The tree of a device, as [`World::build`] reads it, names with spaces included.
    pub fn tree(&self, device: usize) -> String {
        let disk = self.devices[device].disk.borrow();
        let entries: Vec<String> = disk
            .walk()
            .iter()
            .map(|(path, ino)| {
                let path = describe(path);
                match &disk.inodes[ino].data {
                    Data::Dir(_) => format!("{path}/"),
                    Data::File(text) => format!("{path}={text}"),
                    Data::Link(target) => format!("{path}->{}", String::from_utf8_lossy(target)),
                }
            })
            .collect();
        entries.join(" ")
    }

    /// The server goes back to an older state of itself, and every connection breaks.
    pub fn restore(&mut self, older: Server) {
        for n in 0..self.devices.len() {
            self.cut(n, true);
        }
        self.server = older;
        self.restored = true;
    }

    /// A device hears something from the server that is neither an answer nor a page.
    pub fn hear(&mut self, device: usize, event: Event) {
        self.devices[device].down.push_back(event);
    }

    /// Whether the deletions of a device are held, as far as it knows.
    pub fn is_held(&self, device: usize) -> bool {
        self.devices[device].engine.are_deletions_held()
    }

    fn fault(&mut self, n: usize, fault: Fault) {
        self.note(format!("{}: {fault:?}", self.devices[n].name()));
        let in_midst = self.rng.chance(60).then(|| 1 + u32::try_from(self.rng.below(25)).unwrap());
        match fault {
            Fault::Cut => self.cut(n, true),
            Fault::HalfOpen => self.half_open(n),
            Fault::ServerCrash => self.server_crashes(),
            Fault::LostEvent => self.devices[n].disk.borrow_mut().hints.clear(),
            Fault::EventStorm => self.garble_events(n),
            Fault::Intrusion => {
                let mut disk = self.devices[n].disk.borrow_mut();
                if self.rng.chance(30) {
                    disk.intrusion_at_look = Some(in_midst.unwrap_or(0) / 4);
                } else {
                    disk.intrusion = Some(in_midst.unwrap_or(0) / 2);
                }
            }
            Fault::Undo => self.undo(n),
            Fault::Exclude => self.exclude(n),
            Fault::Include => self.include(n),
            Fault::Redirect if n > 0 => {
                let flows = [Flow::Both, Flow::ReceiveOnly, Flow::SendOnly];
                let flow = *self.rng.pick(&flows).unwrap();
                self.redirect(n, flow);
            }
            Fault::Redirect => {}
            Fault::BadDisk => {
                let mut disk = self.devices[n].disk.borrow_mut();
                disk.trouble = self.rng.chance(50).then_some(Trouble::Errors(20));
            }
            Fault::FullDisk => {
                let mut disk = self.devices[n].disk.borrow_mut();
                disk.trouble = self.rng.chance(60).then_some(Trouble::Full);
            }
            Fault::NoPermission => {
                let mut disk = self.devices[n].disk.borrow_mut();
                let dir = disk.some_dir();
                disk.trouble = self.rng.chance(60).then_some(Trouble::Denied(dir));
            }
            Fault::Kill | Fault::PowerCut | Fault::LostState => {
                let death = match fault {
                    Fault::Kill => Death::Kill,
                    Fault::PowerCut => Death::PowerCut,
                    _ => Death::LostState,
                };
                // In the midst of an operation, if there is one.
                if let Some(fuel) = in_midst
                    && self.devices[n].has_jobs()
                {
                    self.devices[n].disk.borrow_mut().fuel = Some(fuel);
                    for _ in 0..4 {
                        if self.devices[n].work(&mut self.rng).is_err() {
                            break;
                        }
                    }
                }
                self.die(n, death);
            }
        }
    }

    /// Changes go these ways on the devices, in turn, from now on.
    pub fn set_flows(&mut self, flows: &[Flow]) {
        for n in 0..self.devices.len() {
            self.redirect(n, flows[n % flows.len()]);
        }
    }

    /// Another direction in the settings of a device: its agent starts the folder anew.
    fn redirect(&mut self, n: usize, flow: Flow) {
        if self.devices[n].flow != flow {
            self.note(format!("{}: {flow:?}", self.devices[n].name()));
            self.devices[n].flow = flow;
            self.devices[n].checkpoint();
            self.die(n, Death::Kill);
        }
    }

    /// Whether the changes of some device go one way only, or did.
    pub fn is_one_way(&self) -> bool {
        self.devices.iter().any(|device| device.flow != Flow::Both)
    }

    /// Checks what must hold once everything is quiet where the changes of some devices go one way only:
    /// those that sync both ways are the same, and nothing is lost, wherever it may be.
    pub fn check_one_way(&mut self) -> Result<(), Failure> {
        let all = shown(&self.devices[0]);
        for device in &self.devices {
            let name = device.name();
            let problems = device.engine.problems();
            let is_meant = |(_, why): &(_, String)| {
                device.flow == Flow::SendOnly && why.contains("picloud override")
            };
            if !problems.iter().all(is_meant) {
                return Err(Failure::new("no problems", format!("{name}: {problems:?}")));
            }
            let (lines, hidden) = (shown(device), device.disk.borrow().hidden());
            if device.flow == Flow::Both && lines != all {
                let text = format!("{name}:\n{all:#?}\n{lines:#?}");
                return Err(Failure::new("convergence", text));
            }
            if !hidden.is_empty() {
                return Err(Failure::new("nothing stays hidden", format!("{name} has {hidden:?}")));
            }
        }
        if self.server.render().len() != all.len() {
            let text = format!("the server differs:\n{all:#?}\n{:#?}", self.server.render());
            return Err(Failure::new("convergence", text));
        }
        let texts: BTreeSet<String> =
            self.devices.iter().flat_map(|device| device.disk.borrow().texts()).collect();
        let ledger = self.ledger.borrow();
        let gone: Vec<_> =
            ledger.written.difference(&ledger.superseded).filter(|t| !texts.contains(*t)).collect();
        if !gone.is_empty() {
            return Err(Failure::new("no version lost", format!("{gone:?}:\n{all:#?}")));
        }
        Ok(())
    }

    /// The persons end what differs: first who only sends makes the drive what that disk is, then who
    /// only receives makes that disk what the drive is.
    pub fn choose_sides(&mut self) -> Result<(), Failure> {
        for flow in [Flow::SendOnly, Flow::ReceiveOnly] {
            for n in 0..self.devices.len() {
                if self.devices[n].flow != flow {
                    continue;
                }
                let mut rounds = 0;
                while self.devices[n].engine.trees().totals().kept > 0 {
                    rounds += 1;
                    if rounds > 5 {
                        return Err(Failure::new(
                            "a choice of side ends it",
                            self.describe_unrest(),
                        ));
                    }
                    let here = self.devices[n].disk.borrow().texts();
                    let there = self.devices[0].disk.borrow().texts();
                    let taken_back: Vec<String> = match flow {
                        Flow::SendOnly => there.difference(&here).cloned().collect(),
                        Flow::ReceiveOnly | Flow::Both => {
                            here.difference(&there).cloned().collect()
                        }
                    };
                    self.note(format!("{} ends what differs", self.devices[n].name()));
                    self.ledger.borrow_mut().superseded.extend(taken_back);
                    self.devices[n].engine.settle(&RelPath::ROOT).unwrap();
                    self.settle()?;
                }
            }
        }
        Ok(())
    }

    /// A person leaves a directory out at a device. The first one has all, so that it can be compared.
    fn exclude(&mut self, n: usize) {
        let dirs = self.devices[n].dirs_there();
        if let Some(dir) = self.rng.pick(&dirs).copied().filter(|_| n > 0) {
            let mut left_out = self.devices[n].left_out.clone();
            left_out.insert(dir);
            self.leave_out(n, left_out);
        }
    }

    /// A person wants one back.
    fn include(&mut self, n: usize) {
        let mut left_out = self.devices[n].left_out.clone();
        let all: Vec<NodeId> = left_out.iter().copied().collect();
        if let Some(dir) = self.rng.pick(&all) {
            left_out.remove(dir);
            self.leave_out(n, left_out);
        }
    }

    fn leave_out(&mut self, n: usize, left_out: BTreeSet<NodeId>) {
        self.note(format!("{} leaves out {left_out:?}", self.devices[n].name()));
        self.devices[n].leave_out(left_out);
    }

    /// A device leaves out the directory at a path of the drive.
    pub fn exclude_at(&mut self, n: usize, path: &str) {
        let ids: Vec<NodeId> = self.server.manifest.nodes().map(|(id, _)| id).collect();
        let dir = ids.into_iter().find(|id| self.server.path_of(*id).as_deref() == Some(path));
        self.leave_out(n, BTreeSet::from([dir.unwrap()]));
    }

    /// Everybody wants everything back; with `spare`, that device does not.
    pub fn include_all(&mut self, spare: Option<usize>) {
        for n in (0..self.devices.len()).filter(|n| Some(*n) != spare) {
            if !self.devices[n].left_out.is_empty() {
                self.leave_out(n, BTreeSet::new());
            }
        }
    }

    /// A device on which something is left out.
    pub fn who_leaves_out(&self) -> Option<usize> {
        self.devices.iter().position(|device| !device.left_out.is_empty())
    }

    /// What the files hold that a device leaves out, by the disk of the first.
    fn left_out_texts(&self, device: usize) -> BTreeSet<String> {
        let ids = self.devices[device].left_out.iter();
        let paths: Vec<String> =
            ids.filter_map(|id| self.server.path_of(*id)).map(|path| format!("{path}/")).collect();
        let disk = self.devices[0].disk.borrow();
        let all = disk.walk().into_iter().filter_map(|(path, ino)| {
            let path = describe(&path);
            let Data::File(text) = &disk.inodes[&ino].data else { return None };
            paths.iter().any(|dir| path.starts_with(dir)).then(|| text.clone())
        });
        all.collect()
    }

    /// What is shown where everything is, without what a device leaves out.
    fn wanted_by(&self, device: &Device, all: &[String]) -> Vec<String> {
        let paths = device.left_out.iter().filter_map(|id| self.server.path_of(*id));
        let paths: Vec<String> = paths.map(|path| format!("{path}/")).collect();
        let is_wanted = |line: &&String| !paths.iter().any(|path| line.starts_with(path));
        all.iter().filter(is_wanted).cloned().collect()
    }

    /// Takes back some of the last changes of a device, asked by the person at another one.
    fn undo(&mut self, n: usize) {
        self.sync_server();
        let head = self.server.head();
        let made = self.server.manifest.made(Rev::ZERO.next(), head, 60);
        let made: Vec<Made> = made.unwrap_or_default();
        let Some(last) = self.rng.pick(&made).copied() else { return };
        let own = |one: &&Made| one.author == last.author && one.rev <= last.rev;
        let firsts: Vec<Rev> = made.iter().filter(own).map(|one| one.rev).collect();
        let Some(first) = self.rng.pick(&firsts).copied() else { return };
        let batch = BatchId { first, last: last.rev };
        let before = self.server.contents();
        let (author, date) = (Server::device(n), TODAY);
        let how = How { author, is_dry_run: false, is_approved: true, date };
        let Ok(outcome) = undo::undo(&mut self.server.manifest, batch, how);
        self.sync_server();
        self.note(format!("{} undoes {batch}: {outcome:?}", self.devices[n].name()));
        // What the server has no longer was seen by the person, and is in the history.
        let now = self.server.contents();
        let gone = self.contents.iter().filter(|(key, _)| before.contains(*key));
        let gone = gone.filter(|(key, _)| !now.contains(*key)).map(|(_, text)| text.clone());
        self.ledger.borrow_mut().superseded.extend(gone);
    }

    /// Notes which versions somebody replaced on a device whose agent knows neither of those nor of
    /// what took their place: what was edited there, nobody can tell any more.
    fn note_unseen(&self, n: usize) {
        let texts = self.devices[n].disk.borrow().texts();
        let trees = self.devices[n].engine.trees();
        let known: BTreeSet<String> = trees
            .entries()
            .filter_map(|(_, entry)| match entry.local.as_ref()?.body {
                LocalBody::File(content) => Some(key(&content?)),
                LocalBody::Dir | LocalBody::Link(_) => None,
            })
            .collect();
        let is_known = |text: &String| known.contains(&key(&content_of(text)));
        let mut ledger = self.ledger.borrow_mut();
        for text in texts.iter().filter(|text| !is_known(text)) {
            let old = ledger.replaced.get(text).filter(|old| !is_known(old)).cloned();
            ledger.unseen.extend(old);
        }
    }

    /// What a device knows becomes durable.
    pub fn checkpoint(&mut self, device: usize) {
        self.devices[device].checkpoint();
    }

    /// The agent of a device is killed, and started again.
    pub fn kill(&mut self, device: usize) {
        self.die(device, Death::Kill);
    }

    /// The power of a device goes, and comes back.
    pub fn power_cut(&mut self, device: usize) {
        self.die(device, Death::PowerCut);
    }

    fn die(&mut self, n: usize, death: Death) {
        self.cut(n, false);
        self.devices[n].disk.borrow_mut().trouble = None;
        self.devices[n].die(death);
        self.note_unseen(n);
    }

    fn work(&mut self, n: usize) {
        if let Err(Killed) = self.devices[n].work(&mut self.rng) {
            self.die(n, Death::Kill);
        }
    }

    /// The connection is dead, and only the server knows.
    fn half_open(&mut self, n: usize) {
        let device = &mut self.devices[n];
        if !device.online || device.is_half_open {
            return;
        }
        device.is_half_open = true;
        device.down.clear();
        let arrive = self.rng.below(device.up.len() + 1);
        let up = std::mem::take(&mut device.up);
        self.limbo.extend(up.into_iter().take(arrive).map(|wire| (n, wire)));
    }

    /// The server dies, and comes back with what was durable.
    fn server_crashes(&mut self) {
        for n in 0..self.devices.len() {
            // What was on its way to it is lost.
            self.devices[n].up.clear();
            self.cut(n, true);
        }
        self.limbo.clear();
        self.server.crash();
        if let Some(missing) = self.server.missing() {
            let failure = Failure::new("acknowledged stays acknowledged", missing);
            self.failure.get_or_insert(failure);
        }
    }

    /// Events come late, twice, or as one for a whole directory; or so many that all are dropped,
    /// which is told.
    fn garble_events(&mut self, n: usize) {
        let dice = self.rng.below(4);
        let mut disk = self.devices[n].disk.borrow_mut();
        match dice {
            0 => {
                let late = std::mem::take(&mut disk.hints);
                disk.late_hints.extend(late);
            }
            1 => {
                let twice = disk.hints.clone();
                disk.hints.extend(twice);
            }
            2 => disk.hints.iter_mut().for_each(|(_, name)| *name = None),
            _ => {
                disk.hints.clear();
                drop(disk);
                self.send(n, Event::Rescan);
            }
        }
    }

    fn cut(&mut self, n: usize, tell: bool) {
        let device = &mut self.devices[n];
        if !device.online {
            return;
        }
        device.online = false;
        device.is_half_open = false;
        // Any number of commits on their way still arrive, now or later; their answers do not.
        let arrive = self.rng.below(device.up.len() + 1);
        let mut up = std::mem::take(&mut device.up);
        up.truncate(arrive);
        self.limbo.extend(up.into_iter().map(|wire| (n, wire)));
        if self.rng.chance(50) {
            while self.limbo_arrives() {}
        }
        let device = &mut self.devices[n];
        device.down.clear();
        // An upload that was cut is answered with that.
        device
            .actions
            .retain(|action| !matches!(action, Action::Commit { .. } | Action::Upload { .. }));
        device.events.retain(|event| !matches!(event, Event::Uploaded { .. }));
        if tell {
            self.send(n, Event::Offline);
        }
    }

    /// The next commit of a connection that is gone arrives.
    fn limbo_arrives(&mut self) -> bool {
        let Some((n, wire)) = self.limbo.pop_front() else { return false };
        self.commit(n, wire, None);
        true
    }

    fn connect(&mut self, n: usize) {
        if self.devices[n].online {
            return;
        }
        self.note(format!("{} connects", self.devices[n].name()));
        // From a device that has a newer connection the server takes nothing on an older one, and
        // what it took is durable before it tells where the journal is.
        self.limbo.retain(|(of, _)| *of != n);
        self.sync_server();
        let meta = self.devices[n].engine.trees().meta();
        let head = self.server.head();
        // A cursor past the head is answered with the journal from the beginning.
        let from = if meta.cursor > head { Rev::ZERO } else { meta.cursor };
        let tells_usage = self.tells_usage();
        let device = &mut self.devices[n];
        device.online = true;
        device.connection += 1;
        device.own.clear();
        device.sent = from;
        device.down.push_back(Event::Online { lineage: Server::lineage(), from, head });
        if tells_usage {
            device.down.push_back(Event::Usage(self.server.usage()));
        }
        // A first page always comes.
        let digest = (from == head).then_some(self.server.digest());
        if from == head {
            device.down.push_back(Event::Page(JournalPage {
                upto: head,
                head,
                consistent: true,
                nodes: vec![],
                digest,
            }));
        }
    }

    /// One thing that a machine does, at random: of those that would do something.
    fn machine_step(&mut self, n: usize) {
        let device = &self.devices[n];
        let hears = device.online && !device.down.is_empty();
        let asks = !device.up.is_empty() || device.sent < self.server.head();
        let all = [
            (2, Act::Time),
            (3, Act::Poll),
            (4 * usize::from(!device.actions.is_empty()), Act::Do),
            (4 * usize::from(!device.events.is_empty()), Act::Tell),
            (3 * usize::from(!device.disk.borrow().hints.is_empty()), Act::Hints),
            (2 * usize::from(!device.online || device.is_half_open), Act::Connect),
            (4 * usize::from(hears), Act::Hear),
            (4 * usize::from(device.online && asks), Act::Serve),
            (4 * usize::from(device.has_jobs()), Act::Work),
            (1, Act::Checkpoint),
            (usize::from(!self.limbo.is_empty()), Act::Limbo),
            (3 * usize::from(self.server.has_waiting()), Act::Sync),
        ];
        let mut dice = self.rng.below(all.iter().map(|(weight, _)| weight).sum());
        let act = all.iter().find(|(weight, _)| {
            let hit = dice < *weight;
            dice = dice.saturating_sub(*weight);
            hit
        });
        let Some((_, act)) = act else { return };
        match act {
            Act::Time => {
                let ms = 7 + self.rng.below(100) as u64;
                self.ledger.borrow_mut().pass_ms(ms);
            }
            Act::Poll => self.poll(n),
            Act::Do => {
                let device = &mut self.devices[n];
                let at = self.rng.below(device.actions.len().min(4));
                // Operations on disk keep their order; what only reads does not.
                let is_apply = matches!(device.actions[at], Action::Apply { .. });
                let action = device.actions.remove(if is_apply { 0 } else { at });
                self.act(n, action);
            }
            Act::Tell => {
                let at = self.rng.below(self.devices[n].events.len());
                let event = self.devices[n].events.remove(at);
                self.send(n, event);
            }
            Act::Hints => self.take_hints(n),
            // At last it is noticed.
            Act::Connect if self.devices[n].is_half_open => self.cut(n, true),
            Act::Connect => self.connect(n),
            Act::Hear => {
                if let Some(event) = self.devices[n].down.pop_front() {
                    self.send(n, event);
                }
            }
            Act::Serve => self.serve(n),
            Act::Work => self.work(n),
            Act::Checkpoint => self.devices[n].checkpoint(),
            Act::Limbo => drop(self.limbo_arrives()),
            Act::Sync => self.sync_server(),
        }
    }

    fn send(&mut self, n: usize, event: Event) {
        let now = self.now();
        self.devices[n].send(now, event);
    }

    fn poll(&mut self, n: usize) {
        let now = self.now();
        let device = &mut self.devices[n];
        device.engine.poll(now, &mut device.actions).unwrap();
        if device.engine.needs_resubscribe() {
            if self.restored {
                self.cut(n, true);
                return;
            }
            let mut diff = String::new();
            for (id, entry) in device.engine.trees().entries() {
                let known = entry.remote.as_ref().map(|r| (r.rev, Some(r.node.clone())));
                let real = self.server.truth(id);
                if known != real
                    && !(known.is_none() && real.as_ref().is_none_or(|r| r.1.is_none()))
                {
                    writeln!(diff, "{id}: {known:?}\n     is {real:?}").unwrap();
                }
            }
            let text = format!("{}: the digests differ\n{diff}", device.name());
            self.failure.get_or_insert(Failure::new("the journal is one", text));
        }
    }

    fn take_hints(&mut self, n: usize) {
        let mut hints = std::mem::take(&mut self.devices[n].disk.borrow_mut().hints);
        if self.rng.chance(10) {
            hints.append(&mut self.devices[n].disk.borrow_mut().late_hints);
        }
        for (dir, name) in hints {
            self.send(n, Event::Touched { dir, name });
        }
    }

    fn act(&mut self, n: usize, action: Action) {
        match action {
            Action::Look { dir, names } => {
                let look = self.devices[n].folder.look(&dir, names.as_deref());
                self.devices[n].events.push(Event::Looked { dir: dir.id, names, look });
            }
            Action::Hash { node, at, stat } => {
                let hashed = self.devices[n].folder.hash(&at, &stat);
                self.devices[n].events.push(Event::Hashed { node, hashed });
            }
            Action::Upload { node, at, expected, .. } => {
                if !self.devices[n].online || self.devices[n].is_half_open {
                    return;
                }
                let uploaded = match self.devices[n].folder.read(&at, &expected.stat) {
                    Some(text) if Some(content_of(&text)) == expected.content => {
                        self.take_in(text);
                        self.sync_server();
                        Uploaded::Done
                    }
                    _ => Uploaded::Changed,
                };
                self.devices[n].events.push(Event::Uploaded { node, uploaded });
            }
            Action::Commit { batch, changes } => {
                if self.devices[n].online {
                    self.devices[n].checkpoint();
                    let wire = self.devices[n].build(batch, changes);
                    self.devices[n].up.push_back(wire);
                }
            }
            Action::Apply { node, op } => {
                self.devices[n].engine.trees_mut().keep().unwrap();
                self.apply(n, node, op);
            }
        }
    }

    /// Gets the content an operation needs, and hands it over.
    fn apply(&mut self, n: usize, node: NodeId, op: DiskOp) {
        self.note(format!("{} is to do {node} {op:?}", self.devices[n].name()));
        // What was out of the way when that began comes back.
        let is_return = matches!(op, DiskOp::Move { from: None, .. });
        if self.devices[n].flow == Flow::SendOnly && !is_return {
            let text = format!("{}: {op:?}", self.devices[n].name());
            self.failure.get_or_insert(Failure::new("who only sends is left alone", text));
        }
        let payload = match &op {
            DiskOp::Write { content: Content::Empty, .. } => Payload::Empty,
            DiskOp::Write { content, .. } => match self.contents.get(&key(content)) {
                Some(text) if self.devices[n].online && !self.devices[n].is_half_open => {
                    Payload::Chunk(Checked::of(text.clone().into_bytes()))
                }
                _ => {
                    let reason = "no connection".to_owned();
                    return self.devices[n].applied(node, Outcome::NoContent { reason });
                }
            },
            _ => Payload::None,
        };
        self.devices[n].submit(&mut self.rng, Job { node, op, payload });
    }

    /// The server has these bytes from now on.
    fn take_in(&mut self, text: String) {
        let content = content_of(&text);
        self.server.put(&content);
        self.contents.insert(key(&content), text);
    }

    /// The server takes the next commit of a device, or sends it the next page.
    fn serve(&mut self, n: usize) {
        if !self.devices[n].online {
            return;
        }
        if self.devices[n].is_half_open {
            self.devices[n].up.clear();
            return;
        }
        if let Some(wire) = self.devices[n].up.pop_front() {
            let own_from = self.server.manifest.head;
            self.commit(n, wire, Some(self.devices[n].connection));
            let own_to = self.server.manifest.head;
            let own = &mut self.devices[n].own;
            let mut rev = own_from;
            while rev < own_to {
                rev = rev.next();
                own.insert(rev);
            }
        }
        let sent = self.devices[n].sent;
        if sent < self.server.head() {
            let limit = 1 + self.rng.below(5);
            let (upto, consistent, nodes) = self.server.page(sent, limit);
            let own: &BTreeSet<Rev> = &self.devices[n].own;
            let nodes: Vec<Versioned> =
                nodes.into_iter().filter(|node| !own.contains(&node.rev)).collect();
            let head = self.server.head();
            let digest = (upto == head).then_some(self.server.digest());
            self.devices[n].sent = upto;
            let page = JournalPage { upto, head, consistent, nodes, digest };
            self.devices[n].down.push_back(Event::Page(page));
            let down = &mut self.devices[n].down;
            if self.pages_out_of_order && down.len() > 1 {
                let last = down.len() - 1;
                down.swap(last, last - 1);
            }
        }
    }

    /// Everything the server was asked becomes durable, and is answered.
    fn sync_server(&mut self) {
        let answers = self.server.sync();
        self.send_answers(answers);
        let usage = self.server.usage();
        if self.tells_usage() && usage != self.usage {
            for device in self.devices.iter_mut().filter(|device| device.online) {
                if !device.is_half_open {
                    device.down.push_back(Event::Usage(usage));
                }
            }
        }
        self.usage = usage;
        let live = self.server.contents();
        let known = self.contents.iter().filter(|(key, _)| live.contains(*key));
        self.ledger.borrow_mut().acknowledged = known.map(|(_, text)| text.clone()).collect();
    }

    fn send_answers(&mut self, answers: Vec<(usize, u64, Event)>) {
        for (n, connection, answer) in answers {
            let device = &mut self.devices[n];
            if device.online && !device.is_half_open && device.connection == connection {
                device.down.push_back(answer);
            }
        }
    }

    /// The server takes a commit; who sent it on a connection that is still there gets an answer.
    fn commit(&mut self, n: usize, wire: Wire, connection: Option<u64>) {
        let Wire { batch, changes, deletions, texts, results } = wire;
        let alone = results.is_empty();
        if connection.is_some() && self.devices[n].flow == Flow::ReceiveOnly && !changes.is_empty()
        {
            let text = format!("{}: {changes:?}", self.devices[n].name());
            self.failure.get_or_insert(Failure::new("who only receives tells nothing", text));
        }
        self.server.manifest.announce(Server::device(n), Some(deletions), alone);
        for text in texts {
            self.take_in(text);
        }
        let said = self.server.commit(n, &changes);
        if self.rng.chance(15) && self.server.manifest.gate_limits.is_none() {
            // It comes twice. What was refused may be possible by now, and is no matter of this.
            let is_done = |result: &&ChangeResult| matches!(result, ChangeResult::Accepted { .. });
            let done: Vec<ChangeResult> = said.iter().filter(is_done).cloned().collect();
            let made = changes.iter().zip(&said).filter(|(_, result)| is_done(result));
            let made: Vec<Change> = made.map(|(change, _)| change.clone()).collect();
            let again = self.server.commit(n, &made);
            if again != done {
                let text = format!("{made:?}\nfirst {done:?}\nthen {again:?}");
                self.failure.get_or_insert(Failure::new("sent twice is done once", text));
            }
        }
        let mut accepted = Vec::new();
        let mut answers = Vec::new();
        for (change, result) in changes.iter().zip(said) {
            let who = self.devices[n].name();
            self.note(format!("{who} commits {change:?}: {result:?}"));
            answers.push(match result {
                ChangeResult::Accepted { rev } => {
                    accepted.extend(self.server.version(change.node, rev));
                    Committed::Accepted { rev }
                }
                ChangeResult::Refused(refusal) => Committed::Refused(refusal),
            });
        }
        let mut answers = answers.into_iter();
        let results = results
            .into_iter()
            .map(|result| result.unwrap_or_else(|| answers.next().unwrap()))
            .collect();
        let answer = Event::Committed { batch, results, head: self.server.manifest.head };
        if let Some(connection) = connection {
            if self.tells_usage() {
                let usage = Event::Usage(self.server.manifest.usage);
                self.server.answer_later(n, connection, usage, vec![]);
            }
            self.server.answer_later(n, connection, answer, accepted);
        }
        if self.server.answers_early {
            let answers = self.server.release();
            self.send_answers(answers);
        }
    }
}

/// The tree of a device with the drive's names.
fn shown(device: &Device) -> Vec<String> {
    let mut lines = device.disk.borrow().render_named(&device.aliases());
    lines.sort();
    lines
}
