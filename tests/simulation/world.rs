//! The world: devices, their disks and engines, the server, the connections between them, and what
//! people do; every step drawn from one seed.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::fmt::Write as _;

use picloud::engine::memory::MemoryTrees;
use picloud::engine::seam::{Action, Committed, Event, Hashed, JournalPage, Outgoing, Uploaded};
use picloud::engine::trees::Trees as _;
use picloud::engine::{Engine, Now, Settings};
use picloud::model::{Content, IdSource, Name, Rev, Timestamp, Versioned};
use picloud::protocol::message::ChangeResult;

use super::disk::{Data, Disk, content_of};
use super::rng::Rng;
use super::server::Server;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// Connections break; what is under way is lost in either direction.
    Cut,
    /// An agent is killed; its trees go back to the last checkpoint.
    Crash,
    /// The watch does not tell.
    LostEvent,
    /// The state of a device is gone.
    LostState,
}

pub struct Device {
    pub disk: Disk,
    engine: Engine<MemoryTrees>,
    actions: Vec<Action>,
    events: Vec<Event>,
    online: bool,
    /// Commits on their way, in order.
    up: VecDeque<(u64, Vec<Outgoing>)>,
    /// Answers and pages on their way, in order.
    down: VecDeque<Event>,
    /// Up to where pages were sent on this connection.
    sent: Rev,
    /// Revs that commits of this connection got.
    own: BTreeSet<Rev>,
    incarnation: u8,
}

pub struct World {
    rng: Rng,
    seed: u64,
    clock_ms: u64,
    pub devices: Vec<Device>,
    pub server: Server,
    contents: BTreeMap<String, String>,
    tokens: usize,
    written: BTreeSet<String>,
    superseded: BTreeSet<String>,
    trace: String,
    /// Whether the server went back to an older state.
    restored: bool,
}

fn key(content: &Content) -> String {
    format!("{content:?}")
}

fn engine(seed: u64, device: usize, incarnation: u8, trees: MemoryTrees) -> Engine<MemoryTrees> {
    let mut key = [0; 32];
    key[..8].copy_from_slice(&seed.to_be_bytes());
    key[8] = u8::try_from(device).unwrap();
    key[9] = incarnation;
    let mut engine = Engine::new(trees, Settings::default(), IdSource::new(key)).unwrap();
    engine.handle(Now::default(), Event::Rescan).unwrap();
    engine
}

impl World {
    pub fn new(seed: u64, devices: usize) -> Self {
        let devices = (0..devices)
            .map(|n| Device {
                disk: Disk::new(["ann", "bob", "cy", "dee", "eve"][n]),
                engine: engine(seed, n, 0, MemoryTrees::new()),
                actions: Vec::new(),
                events: Vec::new(),
                online: false,
                up: VecDeque::new(),
                down: VecDeque::new(),
                sent: Rev::ZERO,
                own: BTreeSet::new(),
                incarnation: 0,
            })
            .collect();
        Self {
            rng: Rng::new(seed),
            seed,
            clock_ms: 0,
            devices,
            server: Server::default(),
            contents: BTreeMap::new(),
            tokens: 0,
            written: BTreeSet::new(),
            superseded: BTreeSet::new(),
            trace: String::new(),
            restored: false,
        }
    }

    pub fn trace(&self) -> &str {
        &self.trace
    }

    fn note(&mut self, line: impl AsRef<str>) {
        writeln!(self.trace, "{:6} {}", self.clock_ms, line.as_ref()).unwrap();
    }

    fn now(&self) -> Now {
        let secs = i64::try_from(self.clock_ms / 1000).unwrap();
        Now { ms: self.clock_ms, wall: Timestamp::new(1_000_000 + secs, 0).unwrap() }
    }

    /// Lets people and machines act at random.
    pub fn live(&mut self, steps: usize, faults: &[Fault]) {
        for _ in 0..steps {
            for _ in 0..self.rng.below(12) {
                self.machine_step();
            }
            let device = self.rng.below(self.devices.len());
            self.person_step(device);
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
        self.settle_some(&all)
    }

    fn settle_some(&mut self, some: &[usize]) -> Result<(), String> {
        for &n in some {
            self.send(n, Event::Rescan);
        }
        for _ in 0..900 {
            for &n in some {
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
            }
            self.clock_ms += 10;
            let quiet = some.iter().map(|n| &self.devices[*n]).all(|device| {
                device.engine.is_settled()
                    && device.up.is_empty()
                    && device.down.is_empty()
                    && device.events.is_empty()
                    && device.actions.is_empty()
                    && device.disk.hints.is_empty()
                    && device.sent == self.server.head()
            });
            if quiet {
                return Ok(());
            }
        }
        let mut failure = "never quiet".to_owned();
        for device in &self.devices {
            write!(failure, "\n  {}: {:?}", device.disk.device, device.engine.trees().totals())
                .unwrap();
            for (id, entry) in device.engine.trees().entries().filter(|(_, e)| e.is_dirty()) {
                write!(failure, "\n    {id}: {entry:?}").unwrap();
            }
            write!(failure, "\n    problems {:?}", device.engine.problems()).unwrap();
            if !device.engine.is_settled() {
                write!(failure, "\n    waits {}", device.engine.describe_waits()).unwrap();
            }
        }
        Err(failure)
    }

    /// Checks what must hold once everything is quiet.
    pub fn check(&self) -> Result<(), String> {
        let first = self.devices[0].disk.render();
        for device in &self.devices[1..] {
            let other = device.disk.render();
            if other != first {
                return Err(format!(
                    "{} and {} differ:\n{first:#?}\n{other:#?}\nserver {:#?}",
                    self.devices[0].disk.device,
                    device.disk.device,
                    self.server.render()
                ));
            }
        }
        if self.server.render().len() != first.len() {
            return Err(format!("the server differs:\n{first:#?}\n{:#?}", self.server.render()));
        }
        for device in &self.devices {
            if device.engine.agrees() == Some(false) {
                return Err(format!("{}: the digests differ", device.disk.device));
            }
            if !device.engine.problems().is_empty() {
                return Err(format!("problems: {:?}", device.engine.problems()));
            }
        }
        let texts = self.devices[0].disk.texts();
        for token in self.written.difference(&self.superseded) {
            if !texts.contains(token) {
                return Err(format!("{token} is lost:\n{first:#?}"));
            }
        }
        for text in &texts {
            if !self.written.contains(text) {
                return Err(format!("nobody wrote {text}"));
            }
        }
        Ok(())
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
            let disk = &mut self.devices[device].disk;
            let superseded: Vec<String> = match words.as_slice() {
                ["write", at, text] => {
                    self.written.insert((*text).to_owned());
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
            self.superseded.extend(superseded);
        }
    }

    /// The tree of a device, as [`World::build`] reads it, names with spaces included.
    pub fn tree(&self, device: usize) -> String {
        let disk = &self.devices[device].disk;
        let entries: Vec<String> = disk
            .walk()
            .iter()
            .map(|(path, ino)| {
                let path = Disk::describe(path);
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

    /// As [`World::settle`], for one device, while the others hear and say nothing.
    pub fn settle_one(&mut self, device: usize) -> Result<(), String> {
        self.settle_some(&[device])
    }

    fn random_name(&mut self) -> Name {
        let names = ["a", "b", "c", "d.txt", "e"];
        Name::try_from(*self.rng.pick(&names).unwrap()).unwrap()
    }

    /// A path that exists, or nothing.
    fn some_path(&mut self, device: usize, only: fn(&Data) -> bool) -> Option<Vec<Name>> {
        let disk = &self.devices[device].disk;
        let paths: Vec<_> = disk
            .walk()
            .into_iter()
            .filter(|(_, ino)| only(&disk.inodes[ino].data))
            .map(|(path, _)| path)
            .collect();
        self.rng.pick(&paths).cloned()
    }

    /// A path in an existing directory that may or may not exist itself.
    fn any_path(&mut self, device: usize) -> Vec<Name> {
        let mut path = if self.rng.chance(60) {
            self.some_path(device, |data| matches!(data, Data::Dir(_))).unwrap_or_default()
        } else {
            Vec::new()
        };
        path.push(self.random_name());
        path
    }

    fn supersede(&mut self, texts: impl IntoIterator<Item = String>) {
        self.superseded.extend(texts);
    }

    fn person_step(&mut self, device: usize) {
        let who = self.devices[device].disk.device.clone();
        match self.rng.below(20) {
            0..=6 => {
                let existing = self.rng.chance(50);
                let path = match self.some_path(device, |data| matches!(data, Data::File(_))) {
                    Some(path) if existing => path,
                    _ => self.any_path(device),
                };
                self.tokens += 1;
                let token = format!("t{}", self.tokens);
                let rename = self.rng.chance(40);
                let disk = &mut self.devices[device].disk;
                let old = if rename {
                    disk.save_by_rename(&path, &token)
                } else {
                    disk.write(&path, &token)
                };
                if let Some(old) = old {
                    self.note(format!(
                        "{who} writes {token} to {} (was {old:?})",
                        Disk::describe(&path)
                    ));
                    self.written.insert(token);
                    self.supersede(old);
                }
            }
            7..=9 => {
                let path = self.any_path(device);
                if self.devices[device].disk.mkdir(&path) {
                    self.note(format!("{who} makes directory {}", Disk::describe(&path)));
                }
            }
            10..=15 => {
                let Some(from) = self.some_path(device, |_| true) else {
                    return;
                };
                let to = self.any_path(device);
                if let Some(old) = self.devices[device].disk.rename(&from, &to) {
                    self.note(format!(
                        "{who} renames {} to {} (was {old:?})",
                        Disk::describe(&from),
                        Disk::describe(&to)
                    ));
                    self.supersede(old);
                }
            }
            16 | 17 => {
                let Some(path) = self.some_path(device, |_| true) else {
                    return;
                };
                if let Some(texts) = self.devices[device].disk.remove(&path) {
                    self.note(format!("{who} removes {} ({texts:?})", Disk::describe(&path)));
                    self.supersede(texts);
                }
            }
            18 => {
                let path = self.any_path(device);
                if self.devices[device].disk.symlink(&path, "../elsewhere") {
                    self.note(format!("{who} links {}", Disk::describe(&path)));
                }
            }
            _ => {
                let Some(path) = self.some_path(device, |data| matches!(data, Data::File(_)))
                else {
                    return;
                };
                let mode = if self.rng.chance(50) { 0o755 } else { 0o600 };
                self.devices[device].disk.chmod(&path, mode);
                self.note(format!("{who} sets {} to {mode:o}", Disk::describe(&path)));
            }
        }
    }

    fn fault(&mut self, n: usize, fault: Fault) {
        self.note(format!("{}: {fault:?}", self.devices[n].disk.device));
        match fault {
            Fault::Cut => self.cut(n, true),
            Fault::LostEvent => {
                self.devices[n].disk.hints.clear();
            }
            Fault::Crash | Fault::LostState => {
                self.cut(n, false);
                let device = &mut self.devices[n];
                device.incarnation += 1;
                device.actions.clear();
                device.events.clear();
                device.disk.recover();
                let trees = if fault == Fault::Crash {
                    let mut trees = device.engine.trees().clone();
                    trees.crash();
                    trees
                } else {
                    MemoryTrees::new()
                };
                device.engine = engine(self.seed, n, device.incarnation, trees);
            }
        }
    }

    fn cut(&mut self, n: usize, tell: bool) {
        let device = &mut self.devices[n];
        if !device.online {
            return;
        }
        device.online = false;
        // Any number of commits on their way may still arrive; their answers do not.
        let arrive = self.rng.below(self.devices[n].up.len() + 1);
        for _ in 0..arrive {
            if let Some((batch, changes)) = self.devices[n].up.pop_front() {
                self.commit(n, batch, &changes);
            }
        }
        let device = &mut self.devices[n];
        device.up.clear();
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

    fn connect(&mut self, n: usize) {
        if self.devices[n].online {
            return;
        }
        self.note(format!("{} connects", self.devices[n].disk.device));
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
        match self.rng.below(10) {
            0 => self.clock_ms += 7 + self.rng.below(100) as u64,
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
            _ => {
                if self.rng.chance(30) {
                    self.devices[n].engine.trees_mut().checkpoint().unwrap();
                }
                self.serve(n);
            }
        }
    }

    fn send(&mut self, n: usize, event: Event) {
        let now = self.now();
        self.devices[n].engine.handle(now, event).unwrap();
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
            panic!("{}: the digests differ\n{diff}", device.disk.device);
        }
    }

    fn take_hints(&mut self, n: usize) {
        for (dir, name) in std::mem::take(&mut self.devices[n].disk.hints) {
            self.send(n, Event::Touched { dir, name: Some(name) });
        }
    }

    fn act(&mut self, n: usize, action: Action) {
        match action {
            Action::Look { dir, names } => {
                let look = self.devices[n].disk.look(&dir, names.as_deref());
                self.devices[n].events.push(Event::Looked { dir: dir.id, names, look });
            }
            Action::Hash { node, at, stat: _ } => {
                let hashed = match self.devices[n].disk.read(&at) {
                    Some((stat, text)) => {
                        Hashed::Content { stat, content: content_of(&text), racy: false }
                    }
                    None => Hashed::Changed,
                };
                self.devices[n].events.push(Event::Hashed { node, hashed });
            }
            Action::Upload { node, at, expected } => {
                if !self.devices[n].online {
                    return;
                }
                let uploaded = match self.devices[n].disk.read(&at) {
                    Some((_, text)) if Some(content_of(&text)) == expected.content => {
                        self.take_in(text);
                        Uploaded::Done
                    }
                    _ => Uploaded::Changed,
                };
                self.devices[n].events.push(Event::Uploaded { node, uploaded });
            }
            Action::Commit { batch, changes } => {
                if self.devices[n].online {
                    self.devices[n].up.push_back((batch, changes));
                }
            }
            Action::Apply { node, op } => {
                let contents = &self.contents;
                let texts = |content: &Content| match content {
                    Content::Empty => Some(String::new()),
                    other => contents.get(&key(other)).cloned(),
                };
                let outcome = self.devices[n].disk.apply(node, &op, &texts);
                let who = self.devices[n].disk.device.clone();
                self.note(format!("{who} does {op:?}: {outcome:?}"));
                self.devices[n].events.push(Event::Applied { node, outcome });
            }
        }
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
        if let Some((batch, changes)) = self.devices[n].up.pop_front() {
            let answer = self.commit(n, batch, &changes);
            self.devices[n].down.push_back(answer);
        }
        let sent = self.devices[n].sent;
        if sent < self.server.head() {
            let limit = 1 + self.rng.below(5);
            let (upto, consistent, nodes) = self.server.page(sent, limit);
            let nodes: Vec<Versioned> =
                nodes.into_iter().filter(|node| !self.devices[n].own.contains(&node.rev)).collect();
            let head = self.server.head();
            let digest = (upto == head).then_some(self.server.manifest.digest);
            self.devices[n].sent = upto;
            let page = JournalPage { upto, head, consistent, nodes, digest };
            self.devices[n].down.push_back(Event::Page(page));
        }
    }

    fn commit(&mut self, n: usize, batch: u64, changes: &[Outgoing]) -> Event {
        let pending = self.devices[n].engine.deletions_pending(batch);
        let alone = changes.is_empty();
        self.server.manifest.announce(Server::device(n), Some(pending), alone);
        let mut results = Vec::new();
        for outgoing in changes {
            if let Some((at, expected)) = &outgoing.attach {
                match self.devices[n].disk.read(at) {
                    Some((_, text)) if Some(content_of(&text)) == expected.content => {
                        self.take_in(text);
                    }
                    _ => {
                        results.push(Committed::Changed);
                        continue;
                    }
                }
            }
            let change = &outgoing.change;
            let result = self.server.commit(n, change);
            let who = self.devices[n].disk.device.clone();
            self.note(format!("{who} commits {change:?}: {result:?}"));
            results.push(match result {
                ChangeResult::Accepted { rev } => {
                    self.devices[n].own.insert(rev);
                    Committed::Accepted { rev }
                }
                ChangeResult::Refused(refusal) => Committed::Refused(refusal),
            });
        }
        Event::Committed { batch, results, head: self.server.head() }
    }
}
