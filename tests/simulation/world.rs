//! The world: devices, the server, the connections between them; every step drawn from one seed.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::fmt::Write as _;
use std::rc::Rc;

use picloud::engine::Now;
use picloud::engine::apply::{Job, Payload};
use picloud::engine::seam::{Action, Committed, DiskOp, Event, JournalPage, Outcome, Uploaded};
use picloud::engine::trees::{LocalBody, Trees as _};
use picloud::model::{BatchId, Content, Name, NodeId, Rev, Timestamp, Versioned};
use picloud::protocol::message::ChangeResult;
use picloud::server::rules::undo::{self, History as _, How, Made};

use super::device::{Death, Device, Killed, TODAY, Wire};
use super::disk::{Data, Habits, content_of, describe};
use super::ledger::Ledger;
use super::rng::Rng;
use super::server::Server;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// Connections break; what is under way is lost in either direction, or comes late.
    Cut,
    /// An agent is killed, perhaps in the midst of an operation.
    Kill,
    /// The power of a device goes, perhaps in the midst of an operation.
    PowerCut,
    /// The watch does not tell.
    LostEvent,
    /// The state of a device is gone.
    LostState,
    /// A person acts in the midst of what the agent does.
    Intrusion,
    /// Some operations on the disk fail for a while.
    BadDisk,
    /// A person takes back what some device changed lately.
    Undo,
}

pub struct World {
    rng: Rng,
    ledger: Rc<RefCell<Ledger>>,
    pub devices: Vec<Device>,
    pub server: Server,
    contents: BTreeMap<String, String>,
    /// Commits of connections that are gone, still on their way.
    limbo: VecDeque<(usize, Wire)>,
    /// Whether the server went back to an older state.
    restored: bool,
    /// Up to how many things machines do between two of a person's.
    pub pace: usize,
    /// The most turns in which everything must become quiet.
    pub turns_max: u32,
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
        let ledger = Rc::new(RefCell::new(Ledger::default()));
        let devices = (0..devices)
            .map(|n| {
                let name = ["ann", "bob", "cy", "dee", "eve"][n];
                Device::new(name, seed * 8 + n as u64, Rc::clone(&ledger))
            })
            .collect();
        Self {
            rng: Rng::new(seed),
            ledger,
            devices,
            server: Server::default(),
            contents: BTreeMap::new(),
            limbo: VecDeque::new(),
            restored: false,
            pace: 12,
            turns_max: 1500,
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
        self.pace = habits.pace;
    }

    /// Lets people and machines act at random.
    pub fn live(&mut self, steps: usize, faults: &[Fault]) {
        for _ in 0..steps {
            for _ in 0..self.rng.below(self.pace) {
                self.machine_step();
            }
            let device = self.rng.below(self.devices.len());
            self.devices[device].disk.borrow_mut().person_acts();
            self.note_unseen(device);
            if let Some(fault) = self.rng.pick(faults).copied()
                && self.rng.chance(15)
            {
                self.fault(device, fault);
            }
        }
    }

    /// Everything works from now on: returns when nothing is left to do, or that it never ends.
    pub fn settle(&mut self) -> Result<(), String> {
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
    pub fn settle_one(&mut self, device: usize) -> Result<(), String> {
        self.settle_some(&[device])
    }

    fn settle_some(&mut self, some: &[usize]) -> Result<(), String> {
        for &n in some {
            let mut disk = self.devices[n].disk.borrow_mut();
            (disk.fuel, disk.intrusion, disk.failing) = (None, None, 0);
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
            self.ledger.borrow_mut().pass_ms(10);
            let head = self.server.head();
            let is_quiet =
                |n: &usize| self.devices[*n].is_at_rest() && self.devices[*n].sent == head;
            if self.limbo.is_empty() && some.iter().all(is_quiet) {
                return Ok(());
            }
        }
        Err(self.describe_unrest())
    }

    /// A device does everything it can do now.
    fn turn(&mut self, n: usize) {
        self.connect(n);
        self.serve(n);
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

    /// Checks what must hold once everything is quiet.
    pub fn check(&self) -> Result<(), String> {
        let first = self.devices[0].disk.borrow().render();
        for device in &self.devices {
            let other = device.disk.borrow().render();
            if other != first {
                return Err(format!(
                    "{} and {} differ:\n{first:#?}\n{other:#?}\nserver {:#?}",
                    self.devices[0].name(),
                    device.name(),
                    self.server.render()
                ));
            }
            let hidden = device.disk.borrow().hidden();
            if !hidden.is_empty() {
                return Err(format!("{} hides {hidden:?}", device.name()));
            }
            if device.engine.agrees() == Some(false) {
                return Err(format!("{}: the digests differ", device.name()));
            }
            if !device.engine.problems().is_empty() {
                return Err(format!("problems: {:?}", device.engine.problems()));
            }
        }
        if self.server.render().len() != first.len() {
            return Err(format!("the server differs:\n{first:#?}\n{:#?}", self.server.render()));
        }
        let texts = self.devices[0].disk.borrow().texts();
        let ledger = self.ledger.borrow();
        for token in ledger.written.difference(&ledger.superseded) {
            if !texts.contains(token) {
                return Err(format!("{token} is lost:\n{first:#?}"));
            }
        }
        for text in &texts {
            if !ledger.written.contains(text) {
                return Err(format!("nobody wrote {text}"));
            }
        }
        if let Some(between) = first.iter().find(|line| line.contains(".picloud-moving")) {
            return Err(format!("an in-between name stayed: {between}"));
        }
        Ok(())
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
            Fault::LostEvent => self.devices[n].disk.borrow_mut().hints.clear(),
            Fault::Intrusion => {
                self.devices[n].disk.borrow_mut().intrusion = Some(in_midst.unwrap_or(0));
            }
            Fault::Undo => self.undo(n),
            Fault::BadDisk => {
                let failing = if self.rng.chance(50) { 20 } else { 0 };
                self.devices[n].disk.borrow_mut().failing = failing;
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

    /// Takes back some of the last changes of a device, asked by the person at another one.
    fn undo(&mut self, n: usize) {
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

    fn die(&mut self, n: usize, death: Death) {
        self.cut(n, false);
        self.devices[n].disk.borrow_mut().failing = 0;
        self.devices[n].die(death);
        self.note_unseen(n);
    }

    fn work(&mut self, n: usize) {
        if let Err(Killed) = self.devices[n].work(&mut self.rng) {
            self.die(n, Death::Kill);
        }
    }

    fn cut(&mut self, n: usize, tell: bool) {
        let device = &mut self.devices[n];
        if !device.online {
            return;
        }
        device.online = false;
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
        self.commit(n, wire);
        true
    }

    fn connect(&mut self, n: usize) {
        if self.devices[n].online {
            return;
        }
        self.note(format!("{} connects", self.devices[n].name()));
        // From a device that has a newer connection the server takes nothing on an older one.
        self.limbo.retain(|(of, _)| *of != n);
        let meta = self.devices[n].engine.trees().meta();
        let head = self.server.head();
        // A cursor past the head is answered with the journal from the beginning.
        let from = if meta.cursor > head { Rev::ZERO } else { meta.cursor };
        let device = &mut self.devices[n];
        device.online = true;
        device.own.clear();
        device.sent = from;
        device.down.push_back(Event::Online { lineage: Server::lineage(), from, head });
        // A first page always comes.
        let digest = (from == head).then_some(self.server.manifest.digest);
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

    /// One thing that a machine does, at random.
    fn machine_step(&mut self) {
        let n = self.rng.below(self.devices.len());
        match self.rng.below(12) {
            0 => {
                let ms = 7 + self.rng.below(100) as u64;
                self.ledger.borrow_mut().pass_ms(ms);
            }
            1 | 2 => self.poll(n),
            3 | 4 => {
                let count = self.devices[n].actions.len();
                if count > 0 {
                    let at = self.rng.below(count.min(4));
                    // Operations on disk keep their order; what only reads does not.
                    let at = if matches!(self.devices[n].actions[at], Action::Apply { .. }) {
                        0
                    } else {
                        at
                    };
                    let action = self.devices[n].actions.remove(at);
                    self.act(n, action);
                }
            }
            5 | 6 => {
                let count = self.devices[n].events.len();
                if count > 0 {
                    let at = self.rng.below(count);
                    let event = self.devices[n].events.remove(at);
                    self.send(n, event);
                }
            }
            7 => self.take_hints(n),
            8 => {
                if !self.devices[n].online {
                    if self.rng.chance(30) {
                        self.connect(n);
                    }
                } else if let Some(event) = self.devices[n].down.pop_front() {
                    self.send(n, event);
                } else {
                    self.serve(n);
                }
            }
            9 | 10 => self.work(n),
            _ => {
                if self.rng.chance(30) {
                    self.devices[n].checkpoint();
                }
                if self.rng.chance(20) {
                    self.limbo_arrives();
                }
                self.serve(n);
            }
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
            panic!("{}: the digests differ\n{diff}", device.name());
        }
    }

    fn take_hints(&mut self, n: usize) {
        let hints = std::mem::take(&mut self.devices[n].disk.borrow_mut().hints);
        for (dir, name) in hints {
            self.send(n, Event::Touched { dir, name: Some(name) });
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
                if !self.devices[n].online {
                    return;
                }
                let uploaded = match self.devices[n].folder.read(&at, &expected.stat) {
                    Some(text) if Some(content_of(&text)) == expected.content => {
                        self.take_in(text);
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
        let payload = match &op {
            DiskOp::Write { content: Content::Empty, .. } => Payload::Bytes(Vec::new()),
            DiskOp::Write { content, .. } => match self.contents.get(&key(content)) {
                Some(text) if self.devices[n].online => Payload::Bytes(text.clone().into_bytes()),
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
        if let Some(wire) = self.devices[n].up.pop_front() {
            let own_from = self.server.head();
            let answer = self.commit(n, wire);
            let own_to = self.server.head();
            let own = &mut self.devices[n].own;
            let mut rev = own_from;
            while rev < own_to {
                rev = rev.next();
                own.insert(rev);
            }
            self.devices[n].down.push_back(answer);
        }
        let sent = self.devices[n].sent;
        if sent < self.server.head() {
            let limit = 1 + self.rng.below(5);
            let (upto, consistent, nodes) = self.server.page(sent, limit);
            let own: &BTreeSet<Rev> = &self.devices[n].own;
            let nodes: Vec<Versioned> =
                nodes.into_iter().filter(|node| !own.contains(&node.rev)).collect();
            let head = self.server.head();
            let digest = (upto == head).then_some(self.server.manifest.digest);
            self.devices[n].sent = upto;
            let page = JournalPage { upto, head, consistent, nodes, digest };
            self.devices[n].down.push_back(Event::Page(page));
        }
    }

    fn commit(&mut self, n: usize, wire: Wire) -> Event {
        let Wire { batch, changes, deletions, texts, results } = wire;
        let alone = results.is_empty();
        self.server.manifest.announce(Server::device(n), Some(deletions), alone);
        for text in texts {
            self.take_in(text);
        }
        let mut answers = Vec::new();
        for (change, result) in changes.iter().zip(self.server.commit(n, &changes)) {
            let who = self.devices[n].name();
            self.note(format!("{who} commits {change:?}: {result:?}"));
            answers.push(match result {
                ChangeResult::Accepted { rev } => Committed::Accepted { rev },
                ChangeResult::Refused(refusal) => Committed::Refused(refusal),
            });
        }
        let mut answers = answers.into_iter();
        let results = results
            .into_iter()
            .map(|result| result.unwrap_or_else(|| answers.next().unwrap()))
            .collect();
        let live = self.server.contents();
        let mut ledger = self.ledger.borrow_mut();
        ledger.acknowledged = self
            .contents
            .iter()
            .filter(|(key, _)| live.contains(*key))
            .map(|(_, text)| text.clone())
            .collect();
        Event::Committed { batch, results, head: self.server.head() }
    }
}
