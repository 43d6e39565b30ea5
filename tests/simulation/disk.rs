//! A model file system: inodes, names, renames, what a power cut leaves, and one person who works on
//! it. [`super::folder`] lets the agent's careful procedures run on it, one primitive at a time.
//!
//! What is not synced can be lost by a power cut, in any combination that keeps the order of the
//! changes to each directory ([`Disk::power_cut`]): stricter than a journaling file system is.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;

use picloud::engine::defect::Defect;
use picloud::engine::seam::Stat;
use picloud::model::{Attrs, ChunkId, Content, Kind, Name, NodeId, RelPath, Timestamp};

use super::ledger::Ledger;
use super::rng::Rng;

#[derive(Debug, Clone)]
pub enum Data {
    Dir(BTreeMap<Name, u64>),
    File(String),
    Link(Vec<u8>),
}

#[derive(Debug, Clone)]
pub struct Inode {
    pub data: Data,
    pub mtime: Timestamp,
    pub ctime: Timestamp,
    pub birth: Timestamp,
    pub mode: u16,
}

/// A change that is not durable yet.
#[derive(Debug, Clone)]
enum Unsynced {
    /// An inode got these bytes (with `has_bytes`) or attributes.
    Inode { ino: u64, state: Inode, has_bytes: bool },
    /// Names of directories changed, all in one step.
    Names(Vec<(u64, Name, Option<u64>)>),
}

/// Which names a file system holds for the same.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Form {
    /// None but equal bytes.
    Exact,
    /// Those that differ in case only; kept as they were first written.
    CaseBlind,
    /// Those that differ in case or Unicode form only; kept as they were first written.
    UnicodeBlind,
    /// Those that differ in dots at the end only, which are dropped.
    DropsFinalDots,
}

impl Form {
    /// Returns how a new name is stored.
    pub fn stored(self, name: &Name) -> Name {
        match self {
            Self::Exact | Self::CaseBlind | Self::UnicodeBlind => name.clone(),
            Self::DropsFinalDots => Name::new(self.key(name)).unwrap_or_else(|_| name.clone()),
        }
    }

    /// Returns what two names have in common that are the same here.
    pub fn key(self, name: &Name) -> Vec<u8> {
        let bytes = name.as_bytes();
        match self {
            Self::Exact => bytes.to_vec(),
            Self::CaseBlind => bytes.to_ascii_lowercase(),
            // The one letter with two forms that persons here use.
            Self::UnicodeBlind => {
                let text = String::from_utf8_lossy(bytes).replace('\u{e9}', "e\u{301}");
                text.to_ascii_lowercase().into_bytes()
            }
            Self::DropsFinalDots => {
                let kept = bytes.iter().rposition(|byte| *byte != b'.');
                bytes[..kept.map_or(0, |last| last + 1)].to_vec()
            }
        }
    }
}

/// What is wrong with a disk for a while.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Trouble {
    /// So many primitive operations of a hundred fail.
    Errors(usize),
    /// Nothing new fits.
    Full,
    /// Nothing can be made durable.
    Unsyncable,
    /// This directory may neither be read nor changed.
    Denied(u64),
}

/// How the person at this disk behaves: how often each thing is done, out of their sum.
#[derive(Debug, Clone, Copy)]
pub struct Habits {
    pub write: usize,
    pub mkdir: usize,
    pub rename: usize,
    pub exchange: usize,
    pub remove: usize,
    pub symlink: usize,
    pub chmod: usize,
    pub hard_link: usize,
    /// Writes through a descriptor that was opened before.
    pub late_write: usize,
    /// Moves a directory.
    pub move_dir: usize,
    /// Swaps a directory with one that is in it: `mv d/e t; mv d t/d`.
    pub turn_out: usize,
    /// The names that are used.
    pub names: &'static [&'static str],
}

const NAMES: &[&str] = &["a", "b", "c", "d.txt", "e"];

impl Habits {
    pub const ORDINARY: Self = Self {
        write: 7,
        mkdir: 3,
        rename: 6,
        exchange: 1,
        remove: 2,
        symlink: 1,
        chmod: 1,
        hard_link: 1,
        late_write: 1,
        move_dir: 0,
        turn_out: 0,
        names: NAMES,
    };
    /// Edits the same few files all the time.
    pub const EDITS: Self = Self {
        write: 20,
        mkdir: 0,
        rename: 0,
        exchange: 0,
        remove: 0,
        symlink: 0,
        chmod: 1,
        hard_link: 0,
        late_write: 0,
        move_dir: 0,
        turn_out: 0,
        names: NAMES,
    };
    /// Names that some disks hold for the same.
    pub const CASES: Self = Self {
        names: &["a", "A", "b", "b.", "\u{e9}", "e\u{301}", "E\u{301}"],
        hard_link: 0,
        late_write: 0,
        ..Self::ORDINARY
    };
    /// Moves directories all the time, out of and into each other, and works in them.
    pub const MOVES: Self = Self {
        write: 4,
        mkdir: 2,
        rename: 2,
        move_dir: 8,
        turn_out: 4,
        remove: 1,
        ..Self::ORDINARY
    };
    /// Works on few files, often on the same one twice, with them open for long.
    pub const HASTY: Self = Self {
        write: 12,
        mkdir: 1,
        rename: 3,
        remove: 3,
        late_write: 5,
        names: &["a", "b"],
        ..Self::ORDINARY
    };
    /// Writes and deletes.
    pub const DELETING: Self = Self { write: 9, remove: 9, rename: 1, ..Self::HASTY };
    /// Renames all the time.
    pub const STORM: Self = Self {
        write: 1,
        mkdir: 0,
        rename: 10,
        exchange: 5,
        remove: 0,
        symlink: 0,
        chmod: 0,
        hard_link: 0,
        late_write: 0,
        move_dir: 0,
        turn_out: 0,
        names: NAMES,
    };
}

#[derive(Debug)]
pub struct Disk {
    pub inodes: BTreeMap<u64, Inode>,
    durable: BTreeMap<u64, Inode>,
    unsynced: Vec<Unsynced>,
    pub device: String,
    pub ledger: Rc<RefCell<Ledger>>,
    /// Directories with a watch on them, and under which node.
    pub watches: BTreeMap<u64, NodeId>,
    /// What the watches told and nobody has taken yet: of a name, or of a whole directory.
    pub hints: Vec<(NodeId, Option<Name>)>,
    /// What they tell later.
    pub late_hints: Vec<(NodeId, Option<Name>)>,
    /// Which names are the same here.
    pub form: Form,
    /// The agent is killed after this many more primitive operations.
    pub fuel: Option<u32>,
    /// A person acts before this many more primitive operations are done.
    pub intrusion: Option<u32>,
    /// The same, before this many more looks.
    pub intrusion_at_look: Option<u32>,
    /// Inodes that had a name which they have no more.
    moved: BTreeSet<u64>,
    /// What the agent has just looked at: who intrudes, does so there.
    pub focus: Option<(u64, Name)>,
    /// What is wrong with it now.
    pub trouble: Option<Trouble>,
    /// A fault of the procedures that work on it.
    pub defect: Option<Defect>,
    pub habits: Habits,
    /// Files the person has open for writing.
    open: Vec<u64>,
    rng: Rng,
    /// File times go in ticks of this many nanoseconds.
    tick_ns: u64,
}

pub const ROOT: u64 = 1;
pub const OWN: u64 = 2;
pub const STAGING: u64 = 3;
pub const TRASH: u64 = 4;
pub const PARKED: u64 = 5;

pub type Shared = Rc<RefCell<Disk>>;

pub fn content_of(text: &str) -> Content {
    if text.is_empty() {
        return Content::Empty;
    }
    Content::Chunk { id: ChunkId::of(text.as_bytes()), len: u32::try_from(text.len()).unwrap() }
}

pub fn name(text: &str) -> Name {
    Name::try_from(text).unwrap()
}

pub fn describe(path: &[Name]) -> String {
    RelPath::from_names(path.to_vec()).to_string()
}

impl Disk {
    pub fn new(device: &str, form: Form, seed: u64, ledger: Rc<RefCell<Ledger>>) -> Self {
        let mut rng = Rng::new(seed);
        let tick_ns = if rng.chance(50) { 4_000_000 } else { 1 };
        let mut disk = Self {
            inodes: BTreeMap::new(),
            durable: BTreeMap::new(),
            unsynced: Vec::new(),
            device: device.to_owned(),
            ledger,
            watches: BTreeMap::new(),
            hints: Vec::new(),
            late_hints: Vec::new(),
            form,
            fuel: None,
            intrusion: None,
            intrusion_at_look: None,
            moved: BTreeSet::new(),
            focus: None,
            trouble: None,
            defect: None,
            habits: Habits::ORDINARY,
            open: Vec::new(),
            rng,
            tick_ns,
        };
        for (ino, at) in [
            (ROOT, None),
            (OWN, Some((ROOT, ".picloud"))),
            (STAGING, Some((OWN, "staging"))),
            (TRASH, Some((OWN, "trash"))),
            (PARKED, Some((OWN, "parked"))),
        ] {
            assert_eq!(disk.make(Data::Dir(BTreeMap::new()), 0o755), ino);
            if let Some((dir, entry)) = at {
                disk.set_names(vec![(dir, name(entry), Some(ino))]);
            }
        }
        disk.sync_all();
        disk
    }

    /// The time of the file system's clock.
    pub fn time(&mut self) -> Timestamp {
        let ns = self.ledger.borrow_mut().tick_ns();
        let ns = ns / self.tick_ns * self.tick_ns;
        let secs = i64::try_from(ns / 1_000_000_000).unwrap();
        Timestamp::new(1_000_000 + secs, u32::try_from(ns % 1_000_000_000).unwrap()).unwrap()
    }

    fn make(&mut self, data: Data, mode: u16) -> u64 {
        let now = self.time();
        // The lowest free number, as file systems do: numbers come again, birth times do not.
        let ino = (ROOT..)
            .find(|ino| !self.inodes.contains_key(ino) && !self.durable.contains_key(ino))
            .unwrap();
        let serial = self.ledger.borrow_mut().serial();
        let birth = Timestamp::new(now.secs, serial % 1_000_000_000).unwrap();
        let inode = Inode { data, mtime: now, ctime: now, birth, mode };
        let empty = match &inode.data {
            Data::File(_) => Inode { data: Data::File(String::new()), ..inode.clone() },
            _ => inode.clone(),
        };
        // A nameless inode is nothing; that it is durable at once only names it.
        self.durable.insert(ino, empty);
        self.inodes.insert(ino, inode.clone());
        self.moved.remove(&ino);
        if matches!(inode.data, Data::File(_)) {
            self.unsynced.push(Unsynced::Inode { ino, state: inode, has_bytes: true });
        }
        ino
    }

    pub fn dir(&self, ino: u64) -> Option<&BTreeMap<Name, u64>> {
        match &self.inodes.get(&ino)?.data {
            Data::Dir(entries) => Some(entries),
            _ => None,
        }
    }

    /// Returns what is at a name, and how that is written here.
    pub fn find(&self, dir: u64, name: &Name) -> Option<(Name, u64)> {
        let entries = self.dir(dir)?;
        if let Some(ino) = entries.get(name) {
            return Some((name.clone(), *ino));
        }
        if self.form == Form::Exact {
            return None;
        }
        let key = self.form.key(name);
        let mut all = entries.iter();
        all.find(|(there, _)| self.form.key(there) == key).map(|(name, ino)| (name.clone(), *ino))
    }

    /// Returns the inode at a name.
    pub fn at(&self, dir: u64, name: &Name) -> Option<u64> {
        self.find(dir, name).map(|(_, ino)| ino)
    }

    fn hint(&mut self, dir: u64, name: &Name) {
        if let Some(id) = self.watches.get(&dir) {
            self.hints.push((*id, Some(name.clone())));
        }
    }

    /// Hints at every name of an inode.
    fn hint_names_of(&mut self, ino: u64) {
        let dirs: Vec<u64> = self.watches.keys().copied().collect();
        for dir in dirs {
            let names: Vec<Name> = self
                .dir(dir)
                .into_iter()
                .flatten()
                .filter(|(_, there)| **there == ino)
                .map(|(name, _)| name.clone())
                .collect();
            names.iter().for_each(|name| self.hint(dir, name));
        }
    }

    /// Changes names of directories, all in one step; what has no name left is gone.
    pub fn set_names(&mut self, mut changes: Vec<(u64, Name, Option<u64>)>) {
        for (dir, name, ino) in &mut changes {
            *name = match self.find(*dir, name) {
                Some((there, _)) => there,
                None => self.form.stored(name),
            };
            let (dir, name, ino) = (&*dir, &*name, &*ino);
            self.moved.extend(self.at(*dir, name));
            let Data::Dir(entries) = &mut self.inodes.get_mut(dir).unwrap().data else {
                panic!("not a directory");
            };
            match ino {
                Some(ino) => entries.insert(name.clone(), *ino),
                None => entries.remove(name),
            };
        }
        for (dir, name, _) in &changes {
            self.hint(*dir, name);
        }
        self.unsynced.push(Unsynced::Names(changes));
        collect(&mut self.inodes);
        self.watches.retain(|ino, _| self.inodes.contains_key(ino));
        self.open.retain(|ino| self.inodes.contains_key(ino));
    }

    /// Notes that an inode is what it is now.
    fn touch(&mut self, ino: u64, has_bytes: bool) {
        let state = self.inodes[&ino].clone();
        self.unsynced.push(Unsynced::Inode { ino, state, has_bytes });
    }

    fn change_time(&mut self, ino: u64) {
        let now = self.time();
        self.inodes.get_mut(&ino).unwrap().ctime = now;
        self.touch(ino, false);
    }

    // What the primitive operations are made of.

    pub fn create(&mut self, dir: u64, name: &Name, data: Data, mode: u16) -> u64 {
        let ino = self.make(data, mode);
        self.set_names(vec![(dir, name.clone(), Some(ino))]);
        ino
    }

    pub fn set_bytes(&mut self, ino: u64, text: &str) -> Option<String> {
        let now = self.time();
        let inode = self.inodes.get_mut(&ino)?;
        let Data::File(old) = &mut inode.data else { return None };
        let old = std::mem::replace(old, text.to_owned());
        inode.mtime = now;
        inode.ctime = now;
        self.touch(ino, true);
        self.hint_names_of(ino);
        Some(old)
    }

    pub fn set_attrs(&mut self, ino: u64, mode: u16, mtime: Option<Timestamp>) {
        let now = self.time();
        let inode = self.inodes.get_mut(&ino).unwrap();
        inode.mode = mode;
        inode.ctime = now;
        if let Some(mtime) = mtime {
            inode.mtime = mtime;
        }
        self.touch(ino, false);
        self.hint_names_of(ino);
    }

    /// Moves a name, or exchanges two.
    pub fn move_name(&mut self, from: (u64, &Name), to: (u64, &Name)) {
        let ino = self.at(from.0, from.1).unwrap();
        self.change_time(ino);
        self.set_names(vec![(from.0, from.1.clone(), None), (to.0, to.1.clone(), Some(ino))]);
    }

    pub fn exchange_names(&mut self, from: (u64, &Name), to: (u64, &Name)) {
        let one = self.at(from.0, from.1).unwrap();
        let other = self.at(to.0, to.1).unwrap();
        self.change_time(one);
        self.change_time(other);
        self.set_names(vec![
            (from.0, from.1.clone(), Some(other)),
            (to.0, to.1.clone(), Some(one)),
        ]);
    }

    /// Returns whether `dir` is `ino` or below it.
    pub fn is_below(&self, dir: u64, ino: u64) -> bool {
        let mut stack = vec![ino];
        while let Some(at) = stack.pop() {
            if at == dir {
                return true;
            }
            stack.extend(self.dir(at).into_iter().flatten().map(|(_, child)| *child));
        }
        false
    }

    pub fn stat(&self, ino: u64) -> Stat {
        let inode = &self.inodes[&ino];
        let (kind, size) = match &inode.data {
            Data::Dir(_) => (Kind::Dir, 0),
            Data::File(text) => (Kind::File, text.len() as u64),
            Data::Link(target) => (Kind::Link, target.len() as u64),
        };
        Stat {
            kind: Some(kind),
            ino,
            birth: inode.birth,
            size,
            mtime: inode.mtime,
            ctime: inode.ctime,
            // Links have no permissions of their own.
            attrs: Attrs { mode: if kind == Kind::Link { 0 } else { inode.mode } },
        }
    }

    // Durability.

    pub fn sync_all(&mut self) {
        self.durable = self.inodes.clone();
        self.unsynced.clear();
    }

    /// What was done to these directories becomes durable, and whatever was done before to the
    /// directories that those changes also touched.
    pub fn sync_dir(&mut self, dir: u64) {
        let mut dirs = BTreeSet::from([dir]);
        let mut chosen = BTreeSet::new();
        for (index, change) in self.unsynced.iter().enumerate().rev() {
            if let Unsynced::Names(changes) = change
                && changes.iter().any(|(at, _, _)| dirs.contains(at))
            {
                dirs.extend(changes.iter().map(|(at, _, _)| *at));
                chosen.insert(index);
            }
        }
        self.make_durable(&chosen);
    }

    pub fn sync_inode(&mut self, ino: u64) {
        let chosen = self
            .unsynced
            .iter()
            .enumerate()
            .filter(|(_, change)| matches!(change, Unsynced::Inode { ino: at, .. } if *at == ino))
            .map(|(index, _)| index)
            .collect();
        self.make_durable(&chosen);
        if self.dir(ino).is_some() {
            self.sync_dir(ino);
        }
    }

    fn make_durable(&mut self, chosen: &BTreeSet<usize>) {
        let all = std::mem::take(&mut self.unsynced);
        for (index, change) in all.into_iter().enumerate() {
            if chosen.contains(&index) {
                replay(&mut self.durable, &change);
            } else {
                self.unsynced.push(change);
            }
        }
    }

    /// The power goes: what was not synced is there in part. A file whose bytes were not is empty,
    /// old or new. Persons lose what only this disk had and was not durable.
    pub fn power_cut(&mut self) {
        let before = self.all_texts();
        let linked = self.linked_inodes();
        let keep = self.rng.below(101);
        let mut broken_dirs = BTreeSet::new();
        let mut broken_inodes = BTreeSet::new();
        for mut change in std::mem::take(&mut self.unsynced) {
            let is_kept = self.rng.chance(keep);
            match &mut change {
                Unsynced::Names(changes) => {
                    if !is_kept || changes.iter().any(|(dir, _, _)| broken_dirs.contains(dir)) {
                        broken_dirs.extend(changes.iter().map(|(dir, _, _)| *dir));
                        continue;
                    }
                }
                Unsynced::Inode { ino, state, has_bytes } => {
                    if !is_kept || broken_inodes.contains(ino) {
                        broken_inodes.insert(*ino);
                        continue;
                    }
                    if *has_bytes && self.rng.chance(30) {
                        state.data = Data::File(String::new());
                    }
                }
            }
            replay(&mut self.durable, &change);
        }
        collect(&mut self.durable);
        self.inodes = self.durable.clone();
        self.moved = self.inodes.keys().copied().collect();
        self.watches.clear();
        self.hints.clear();
        self.late_hints.clear();
        self.open.clear();
        let after = self.all_texts();
        let still_linked = linked.iter().filter_map(|ino| self.text(*ino).cloned());
        let still_linked: Vec<String> = still_linked.collect();
        let mut ledger = self.ledger.borrow_mut();
        // What it holds now is other bytes, perhaps none; it has or had several names all the same.
        ledger.linked.extend(still_linked);
        ledger.written.insert(String::new());
        ledger.superseded.insert(String::new());
        for text in before.difference(&after) {
            ledger.lost_by_power(text);
        }
        // An older version that was replaced, but not durably, is there again.
        for text in after.difference(&before) {
            ledger.note(format!("{}: {text:?} is there again", self.device));
        }
    }

    /// The files that have or had several names.
    fn linked_inodes(&self) -> Vec<u64> {
        let ledger = self.ledger.borrow();
        let is_linked = |inode: &Inode| match &inode.data {
            Data::File(text) => ledger.linked.contains(text),
            Data::Dir(_) | Data::Link(_) => false,
        };
        let all = self.inodes.iter().filter(|(_, inode)| is_linked(inode));
        all.map(|(ino, _)| *ino).collect()
    }

    /// Returns the text of a file that was never anywhere but at this path.
    pub fn text_ever_at(&self, path: &[Name]) -> Option<&String> {
        let mut ino = ROOT;
        for name in path {
            ino = self.at(ino, name)?;
            if self.moved.contains(&ino) {
                return None;
            }
        }
        self.text(ino)
    }

    /// Returns whether a power cut would leave this content of an inode, under some name; what a
    /// person has done to it since, or put in its place, does not count.
    pub fn holds_durably(&self, ino: u64, content: &Content, at: (u64, &Name)) -> bool {
        if self.at(at.0, at.1) != Some(ino) {
            return true;
        }
        let is_whole = |inodes: &BTreeMap<u64, Inode>| {
            let text = inodes.get(&ino).and_then(|inode| match &inode.data {
                Data::File(text) => Some(text),
                _ => None,
            });
            let has_name = inodes.values().any(|inode| match &inode.data {
                Data::Dir(entries) => entries.values().any(|child| *child == ino),
                _ => false,
            });
            has_name && text.is_some_and(|text| content_of(text) == *content)
        };
        !is_whole(&self.inodes) || is_whole(&self.durable)
    }

    // What one sees.

    /// All paths with their inodes, the root not included, `.picloud` neither.
    pub fn walk(&self) -> Vec<(Vec<Name>, u64)> {
        self.walk_named(&BTreeMap::new())
    }

    /// As [`Disk::walk`], with other names for those at these places (directory and name).
    fn walk_named(&self, names: &BTreeMap<(u64, Name), Name>) -> Vec<(Vec<Name>, u64)> {
        let mut found = Vec::new();
        let mut stack = vec![(Vec::new(), ROOT)];
        while let Some((path, ino)) = stack.pop() {
            for (name, child) in self.dir(ino).unwrap() {
                if *child == OWN {
                    continue;
                }
                let mut path = path.clone();
                path.push(names.get(&(ino, name.clone())).unwrap_or(name).clone());
                if self.dir(*child).is_some() {
                    stack.push((path.clone(), *child));
                }
                found.push((path, *child));
            }
        }
        found.sort();
        found
    }

    /// The tree as text, one line per entry.
    pub fn render(&self) -> Vec<String> {
        self.render_named(&BTreeMap::new())
    }

    /// As [`Disk::render`], with the drive's names for those at these places.
    pub fn render_named(&self, names: &BTreeMap<(u64, Name), Name>) -> Vec<String> {
        self.walk_named(names)
            .iter()
            .map(|(path, ino)| {
                let path = describe(path);
                let inode = &self.inodes[ino];
                match &inode.data {
                    Data::Dir(_) => format!("{path}/"),
                    // An inode has one mode for all its names, which are files of their own elsewhere.
                    Data::File(text) if self.ledger.borrow().linked.contains(text) => {
                        format!("{path} = {text} (linked)")
                    }
                    Data::File(text) => format!("{path} = {text} {:o}", inode.mode),
                    Data::Link(target) => format!("{path} -> {}", String::from_utf8_lossy(target)),
                }
            })
            .collect()
    }

    pub fn texts(&self) -> BTreeSet<String> {
        self.walk()
            .iter()
            .filter_map(|(_, ino)| match &self.inodes[ino].data {
                Data::File(text) => Some(text.clone()),
                _ => None,
            })
            .collect()
    }

    /// The same with what the agent is moving just now: a version in its trash, on its way to become a
    /// conflict copy, can have lost its bytes as well as one in the folder.
    fn all_texts(&self) -> BTreeSet<String> {
        let mut texts = self.texts();
        let mut stack = vec![TRASH, PARKED];
        while let Some(ino) = stack.pop() {
            match self.inodes.get(&ino).map(|inode| &inode.data) {
                Some(Data::Dir(entries)) => stack.extend(entries.values()),
                Some(Data::File(text)) => drop(texts.insert(text.clone())),
                Some(Data::Link(_)) | None => {}
            }
        }
        texts
    }

    /// What the agent keeps aside in its own directories.
    pub fn hidden(&self) -> Vec<String> {
        // Staging is cleared at each start; a disk that fails may leave something until then. So may
        // the note on where something was that could not be parked after all.
        let is_note = |name: &Name| name.as_bytes().ends_with(b".where");
        [("trash", TRASH), ("parked", PARKED)]
            .iter()
            .flat_map(|(own, ino)| {
                let names = self.dir(*ino).unwrap().keys().filter(|name| !is_note(name));
                names.map(move |name| format!("{own}/{name}"))
            })
            .collect()
    }

    // What a person does.

    pub fn resolve(&self, path: &[Name]) -> Option<u64> {
        path.iter().try_fold(ROOT, |ino, name| self.at(ino, name))
    }

    fn parent(&self, path: &[Name]) -> Option<(u64, Name)> {
        let (name, parent) = path.split_last()?;
        let ino = self.resolve(parent)?;
        self.dir(ino)?;
        Some((ino, name.clone()))
    }

    fn text(&self, ino: u64) -> Option<&String> {
        match &self.inodes.get(&ino)?.data {
            Data::File(text) => Some(text),
            _ => None,
        }
    }

    /// Writes a file: in place where there is one. Returns the text that was there.
    pub fn write(&mut self, path: &[Name], text: &str) -> Option<Option<String>> {
        let (dir, name) = self.parent(path)?;
        match self.at(dir, &name) {
            Some(ino) => Some(Some(self.set_bytes(ino, text)?)),
            None => {
                self.create(dir, &name, Data::File(text.to_owned()), 0o644);
                Some(None)
            }
        }
    }

    /// Writes a file as editors do: a new one, renamed over the old.
    pub fn save_by_rename(&mut self, path: &[Name], text: &str) -> Option<Option<String>> {
        let (dir, name) = self.parent(path)?;
        let old = match self.at(dir, &name) {
            Some(ino) => Some(self.text(ino)?.clone()),
            None => None,
        };
        self.create(dir, &name, Data::File(text.to_owned()), 0o644);
        Some(old)
    }

    fn free_place(&self, path: &[Name]) -> Option<(u64, Name)> {
        let (dir, name) = self.parent(path)?;
        self.at(dir, &name).is_none().then_some((dir, name))
    }

    pub fn mkdir(&mut self, path: &[Name]) -> bool {
        let Some((dir, name)) = self.free_place(path) else { return false };
        self.create(dir, &name, Data::Dir(BTreeMap::new()), 0o755);
        true
    }

    pub fn symlink(&mut self, path: &[Name], target: &str) -> bool {
        let Some((dir, name)) = self.free_place(path) else { return false };
        self.create(dir, &name, Data::Link(target.as_bytes().to_vec()), 0o777);
        true
    }

    pub fn chmod(&mut self, path: &[Name], mode: u16) -> bool {
        let Some(ino) = self.resolve(path) else { return false };
        self.set_attrs(ino, mode, None);
        true
    }

    /// Removes what is at a path, and everything in it; returns the texts.
    pub fn remove(&mut self, path: &[Name]) -> Option<Vec<String>> {
        let (dir, name) = self.parent(path)?;
        let mut stack = vec![self.at(dir, &name)?];
        let mut texts = Vec::new();
        while let Some(ino) = stack.pop() {
            match &self.inodes[&ino].data {
                Data::Dir(entries) => stack.extend(entries.values()),
                Data::File(text) => texts.push(text.clone()),
                Data::Link(_) => {}
            }
        }
        self.set_names(vec![(dir, name, None)]);
        Some(texts)
    }

    /// Renames; over an existing file if there is one, whose text is returned.
    pub fn rename(&mut self, from: &[Name], to: &[Name]) -> Option<Option<String>> {
        if to.starts_with(from) {
            return None;
        }
        let (from_dir, from_name) = self.parent(from)?;
        let (to_dir, to_name) = self.parent(to)?;
        let (from_name, ino) = self.find(from_dir, &from_name)?;
        // On some disks the old path is another spelling of the new one.
        if self.is_below(to_dir, ino) {
            return None;
        }
        let old = match self.at(to_dir, &to_name) {
            // Another spelling of its own name.
            Some(there) if there == ino && from_dir == to_dir && from_name != to_name => None,
            Some(there) if there == ino => return None,
            Some(there) => match (&self.inodes[&there].data, &self.inodes[&ino].data) {
                (Data::File(old), Data::File(_)) => Some(old.clone()),
                _ => return None,
            },
            None => None,
        };
        self.move_name((from_dir, &from_name), (to_dir, &to_name));
        Some(old)
    }

    /// Lets two entries change places.
    pub fn exchange(&mut self, one: &[Name], other: &[Name]) -> bool {
        if one.starts_with(other) || other.starts_with(one) {
            return false;
        }
        let (Some(from), Some(to)) = (self.parent(one), self.parent(other)) else { return false };
        if self.resolve(one).is_none() || self.resolve(other).is_none() {
            return false;
        }
        self.exchange_names((from.0, &from.1), (to.0, &to.1));
        true
    }

    fn random_name(&mut self) -> Name {
        name(self.rng.pick(self.habits.names).copied().unwrap())
    }

    /// A path that exists, or nothing.
    fn some_path(&mut self, only: fn(&Data) -> bool) -> Option<Vec<Name>> {
        let mut paths = self.walk();
        paths.retain(|(_, ino)| only(&self.inodes[ino].data));
        self.rng.pick(&paths).map(|(path, _)| path.clone())
    }

    fn some_file(&mut self) -> Option<Vec<Name>> {
        self.some_path(|data| matches!(data, Data::File(_)))
    }

    /// A path in an existing directory that may or may not exist itself.
    fn any_path(&mut self) -> Vec<Name> {
        let mut path = if self.rng.chance(60) {
            self.some_path(|data| matches!(data, Data::Dir(_))).unwrap_or_default()
        } else {
            Vec::new()
        };
        path.push(self.random_name());
        path
    }

    /// The person does one thing at random.
    pub fn person_acts(&mut self) {
        let habits = self.habits;
        let all = [
            habits.write,
            habits.mkdir,
            habits.rename,
            habits.exchange,
            habits.remove,
            habits.symlink,
            habits.chmod,
            habits.hard_link,
            habits.late_write,
            habits.move_dir,
            habits.turn_out,
        ];
        let mut dice = self.rng.below(all.iter().sum());
        let what = all.iter().position(|weight| {
            let hit = dice < *weight;
            dice = dice.saturating_sub(*weight);
            hit
        });
        let is_full = self.trouble == Some(Trouble::Full);
        let told = match what {
            Some(0 | 1 | 5 | 7 | 8) if is_full => None,
            Some(0) => self.person_writes(),
            Some(1) => {
                let path = self.any_path();
                self.mkdir(&path).then(|| format!("makes directory {}", describe(&path)))
            }
            Some(2) => self.person_renames(),
            Some(3) => self.person_exchanges(),
            Some(4) => self.person_removes(),
            Some(5) => {
                let path = self.any_path();
                self.symlink(&path, "../elsewhere").then(|| format!("links {}", describe(&path)))
            }
            Some(6) => self.some_file().map(|path| {
                let mode = if self.rng.chance(50) { 0o755 } else { 0o600 };
                self.chmod(&path, mode);
                format!("sets {} to {mode:o}", describe(&path))
            }),
            Some(7) => self.person_links_hard(),
            Some(9) => self.person_moves_dir(),
            Some(10) => self.person_turns_out(),
            _ => self.person_writes_late(),
        };
        if let Some(told) = told {
            let line = format!("{} {told}", self.device);
            self.ledger.borrow_mut().note(line);
        }
    }

    /// A person does something to what the agent is at work on.
    pub fn person_intrudes(&mut self) {
        let at = self.focus.clone().filter(|_| self.rng.chance(70));
        let path = at.and_then(|(dir, name)| {
            let mut paths = self.walk();
            paths.push((Vec::new(), ROOT));
            let (mut path, _) = paths.into_iter().find(|(_, ino)| *ino == dir)?;
            path.push(name);
            self.resolve(&path).map(|_| path)
        });
        let Some(path) = path else { return self.person_acts() };
        let told = match self.rng.below(6) {
            0..=2 => self.person_writes_to(&path),
            3 => {
                let to = self.any_path();
                self.person_renames_to(&path, &to)
            }
            4 => {
                let from = self.some_path(|_| true).unwrap_or_default();
                self.person_renames_to(&from, &path)
            }
            _ => self.person_removes_at(&path),
        };
        if let Some(told) = told {
            let line = format!("{} {told} in the midst", self.device);
            self.ledger.borrow_mut().note(line);
        }
    }

    fn person_writes(&mut self) -> Option<String> {
        let existing = self.rng.chance(50);
        let path = match self.some_file() {
            Some(path) if existing => path,
            _ => self.any_path(),
        };
        self.person_writes_to(&path)
    }

    fn person_writes_to(&mut self, path: &[Name]) -> Option<String> {
        let token = self.ledger.borrow_mut().token();
        let old = if self.rng.chance(40) {
            self.save_by_rename(path, &token)
        } else {
            self.write(path, &token)
        }?;
        if self.rng.chance(20) {
            self.open.extend(self.resolve(path));
        }
        let told = format!("writes {token} to {} (was {old:?})", describe(path));
        self.ledger.borrow_mut().wrote(token, old);
        Some(told)
    }

    fn person_renames(&mut self) -> Option<String> {
        let from = self.some_path(|_| true)?;
        let to = self.any_path();
        self.person_renames_to(&from, &to)
    }

    fn person_renames_to(&mut self, from: &[Name], to: &[Name]) -> Option<String> {
        let old = self.rename(from, to)?;
        let told = format!("renames {} to {} (was {old:?})", describe(from), describe(to));
        self.ledger.borrow_mut().superseded.extend(old);
        Some(told)
    }

    fn person_moves_dir(&mut self) -> Option<String> {
        let from = self.some_path(|data| matches!(data, Data::Dir(_)))?;
        let to = self.any_path();
        self.rename(&from, &to)?;
        Some(format!("moves {} to {}", describe(&from), describe(&to)))
    }

    /// What was inside is outside then, and the other way round.
    fn person_turns_out(&mut self) -> Option<String> {
        let outer = self.some_path(|data| matches!(data, Data::Dir(_)))?;
        let ino = self.resolve(&outer)?;
        let entries = self.dir(ino)?;
        let mut dirs = entries.iter().filter(|(_, child)| self.dir(**child).is_some());
        let inner = dirs.next()?.0.clone();
        let between = self.any_path();
        if between.starts_with(&outer) || self.resolve(&between).is_some() {
            return None;
        }
        let inside = [outer.as_slice(), std::slice::from_ref(&inner)].concat();
        self.rename(&inside, &between)?;
        let last = self.random_name();
        let within = [between.as_slice(), &[last]].concat();
        let is_done = self.rename(&outer, &within).is_some();
        Some(format!(
            "moves {} to {}{}",
            describe(&inside),
            describe(&between),
            if is_done {
                format!(", {} to {}", describe(&outer), describe(&within))
            } else {
                String::new()
            }
        ))
    }

    /// Removes something, and returns what nobody has any more.
    pub fn person_removes_for_good(&mut self) -> BTreeSet<String> {
        let before = self.texts();
        let told = self.person_removes();
        let line = format!("{} {}", self.device, told.unwrap_or_default());
        self.ledger.borrow_mut().note(line);
        before.difference(&self.texts()).cloned().collect()
    }

    fn person_exchanges(&mut self) -> Option<String> {
        let one = self.some_path(|_| true)?;
        let other = self.some_path(|_| true)?;
        self.exchange(&one, &other)
            .then(|| format!("exchanges {} and {}", describe(&one), describe(&other)))
    }

    fn person_removes(&mut self) -> Option<String> {
        let path = self.some_path(|_| true)?;
        self.person_removes_at(&path)
    }

    fn person_removes_at(&mut self, path: &[Name]) -> Option<String> {
        let texts = self.remove(path)?;
        let told = format!("removes {} ({texts:?})", describe(path));
        self.ledger.borrow_mut().superseded.extend(texts);
        Some(told)
    }

    fn person_links_hard(&mut self) -> Option<String> {
        let from = self.some_file()?;
        let to = self.any_path();
        self.link_hard(&from, &to)
            .then(|| format!("links {} hard as {}", describe(&from), describe(&to)))
    }

    /// Gives a file one more name.
    pub fn link_hard(&mut self, from: &[Name], to: &[Name]) -> bool {
        let (Some(ino), Some((dir, entry))) = (self.resolve(from), self.free_place(to)) else {
            return false;
        };
        let Some(text) = self.text(ino).cloned() else { return false };
        self.ledger.borrow_mut().linked.insert(text);
        self.change_time(ino);
        self.set_names(vec![(dir, entry, Some(ino))]);
        true
    }

    /// Through a descriptor opened before, whatever became of the file's name since.
    fn person_writes_late(&mut self) -> Option<String> {
        let open = self.open.clone();
        let ino = *self.rng.pick(&open)?;
        let token = self.ledger.borrow_mut().token();
        let old = self.set_bytes(ino, &token)?;
        let told = format!("writes {token} late (was {old:?}, inode {ino})");
        self.ledger.borrow_mut().wrote(token, Some(old));
        Some(told)
    }

    /// True `percent` times of a hundred.
    pub fn chance(&mut self, percent: usize) -> bool {
        self.rng.chance(percent)
    }

    /// Returns whether the next primitive operation is to fail.
    pub fn fails(&mut self) -> bool {
        match self.trouble {
            Some(Trouble::Errors(percent)) => self.rng.chance(percent),
            _ => false,
        }
    }

    /// Returns whether nothing can be done in this directory now.
    pub fn denies(&self, dir: u64) -> bool {
        self.trouble == Some(Trouble::Denied(dir))
    }

    /// A directory of the person's.
    pub fn some_dir(&mut self) -> u64 {
        let path = self.some_path(|data| matches!(data, Data::Dir(_))).unwrap_or_default();
        self.resolve(&path).unwrap_or(ROOT)
    }

    /// Whatever is random from here on follows from this alone.
    pub fn reseed(&mut self, seed: u64) {
        self.rng = Rng::new(seed);
    }

    /// A new life of the agent begins: it has no watches yet.
    pub fn forget_watches(&mut self) {
        self.watches.clear();
        self.hints.clear();
        self.late_hints.clear();
        self.fuel = None;
    }
}

/// Drops inodes without a name.
fn collect(inodes: &mut BTreeMap<u64, Inode>) {
    let mut named = BTreeSet::new();
    let mut stack = vec![ROOT];
    while let Some(ino) = stack.pop() {
        if named.insert(ino)
            && let Some(Inode { data: Data::Dir(entries), .. }) = inodes.get(&ino)
        {
            stack.extend(entries.values());
        }
    }
    inodes.retain(|ino, _| named.contains(ino));
}

/// Does a change to what is durable; what it needs may be missing there.
fn replay(durable: &mut BTreeMap<u64, Inode>, change: &Unsynced) {
    match change {
        Unsynced::Inode { ino, state, has_bytes } => {
            let Some(there) = durable.get_mut(ino) else { return };
            if there.birth != state.birth {
                return;
            }
            if *has_bytes {
                there.data = state.data.clone();
            }
            (there.mtime, there.ctime, there.mode) = (state.mtime, state.ctime, state.mode);
        }
        Unsynced::Names(changes) => {
            for (dir, name, ino) in changes {
                if let Some(ino) = ino
                    && !durable.contains_key(ino)
                {
                    continue;
                }
                let Some(Inode { data: Data::Dir(entries), .. }) = durable.get_mut(dir) else {
                    continue;
                };
                match ino {
                    Some(ino) => entries.insert(name.clone(), *ino),
                    None => entries.remove(name),
                };
            }
        }
    }
}
