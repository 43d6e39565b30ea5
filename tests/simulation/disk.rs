//! A model file system: inodes, directories, renames; the operations a person does, and the ones the
//! engine asks for, each atomic.

use std::collections::{BTreeMap, BTreeSet};

use picloud::engine::seam::{DirRef, DiskOp, Expected, Found, Look, Outcome, Seen, Spot, Stat};
use picloud::model::{
    Attrs, ChunkId, Content, Kind, Name, NodeId, RelPath, Timestamp, conflict_name,
};

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

#[derive(Debug, Clone)]
pub struct Disk {
    pub inodes: BTreeMap<u64, Inode>,
    next_ino: u64,
    ticks: i64,
    pub device: String,
    /// Directories with a watch on them, and under which node.
    pub watches: BTreeMap<u64, NodeId>,
    /// What the watches told and nobody has taken yet.
    pub hints: Vec<(NodeId, Name)>,
    parked: BTreeMap<NodeId, u64>,
}

pub const ROOT: u64 = 1;

pub fn content_of(text: &str) -> Content {
    if text.is_empty() {
        return Content::Empty;
    }
    Content::Chunk { id: ChunkId::of(text.as_bytes()), len: u32::try_from(text.len()).unwrap() }
}

impl Disk {
    pub fn new(device: &str) -> Self {
        let mut disk = Self {
            inodes: BTreeMap::new(),
            next_ino: ROOT,
            ticks: 1000,
            device: device.to_owned(),
            watches: BTreeMap::new(),
            hints: Vec::new(),
            parked: BTreeMap::new(),
        };
        disk.make(Data::Dir(BTreeMap::new()), 0o755);
        disk
    }

    fn tick(&mut self) -> Timestamp {
        self.ticks += 1;
        Timestamp::new(self.ticks, 0).unwrap()
    }

    fn make(&mut self, data: Data, mode: u16) -> u64 {
        let now = self.tick();
        let ino = self.next_ino;
        self.next_ino += 1;
        self.inodes.insert(ino, Inode { data, mtime: now, ctime: now, birth: now, mode });
        ino
    }

    fn dir(&self, ino: u64) -> Option<&BTreeMap<Name, u64>> {
        match &self.inodes.get(&ino)?.data {
            Data::Dir(entries) => Some(entries),
            _ => None,
        }
    }

    fn dir_mut(&mut self, ino: u64) -> &mut BTreeMap<Name, u64> {
        match &mut self.inodes.get_mut(&ino).unwrap().data {
            Data::Dir(entries) => entries,
            _ => panic!("not a directory"),
        }
    }

    fn hint(&mut self, dir: u64, name: &Name) {
        if let Some(id) = self.watches.get(&dir) {
            self.hints.push((*id, name.clone()));
        }
    }

    fn put_entry(&mut self, dir: u64, name: &Name, ino: u64) {
        self.dir_mut(dir).insert(name.clone(), ino);
        self.hint(dir, name);
    }

    fn take_entry(&mut self, dir: u64, name: &Name) -> Option<u64> {
        let ino = self.dir_mut(dir).remove(name)?;
        self.hint(dir, name);
        Some(ino)
    }

    /// All paths with their inodes, the root not included, `.picloud` neither.
    pub fn walk(&self) -> Vec<(Vec<Name>, u64)> {
        let mut found = Vec::new();
        let mut stack = vec![(Vec::new(), ROOT)];
        while let Some((path, ino)) = stack.pop() {
            for (name, child) in self.dir(ino).unwrap() {
                let mut path = path.clone();
                path.push(name.clone());
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
        self.walk()
            .iter()
            .map(|(path, ino)| {
                let path: Vec<_> = path.iter().map(ToString::to_string).collect();
                let path = path.join("/");
                let inode = &self.inodes[ino];
                match &inode.data {
                    Data::Dir(_) => format!("{path}/"),
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

    // What a person does.

    pub fn resolve(&self, path: &[Name]) -> Option<u64> {
        path.iter().try_fold(ROOT, |ino, name| self.dir(ino)?.get(name).copied())
    }

    fn parent(&self, path: &[Name]) -> Option<(u64, Name)> {
        let (name, parent) = path.split_last()?;
        let ino = self.resolve(parent)?;
        self.dir(ino)?;
        Some((ino, name.clone()))
    }

    /// Writes a file: in place where there is one. Returns the text that was there.
    pub fn write(&mut self, path: &[Name], text: &str) -> Option<Option<String>> {
        let (dir, name) = self.parent(path)?;
        let now = self.tick();
        match self.dir(dir)?.get(&name).copied() {
            Some(ino) => {
                let inode = self.inodes.get_mut(&ino)?;
                let Data::File(old) = &mut inode.data else {
                    return None;
                };
                let old = std::mem::replace(old, text.to_owned());
                inode.mtime = now;
                inode.ctime = now;
                self.hint(dir, &name);
                Some(Some(old))
            }
            None => {
                let ino = self.make(Data::File(text.to_owned()), 0o644);
                self.put_entry(dir, &name, ino);
                Some(None)
            }
        }
    }

    /// Writes a file as editors do: a new one, renamed over the old.
    pub fn save_by_rename(&mut self, path: &[Name], text: &str) -> Option<Option<String>> {
        let (dir, name) = self.parent(path)?;
        let old = match self.dir(dir)?.get(&name) {
            Some(ino) => match &self.inodes[ino].data {
                Data::File(old) => Some(old.clone()),
                _ => return None,
            },
            None => None,
        };
        let ino = self.make(Data::File(text.to_owned()), 0o644);
        self.put_entry(dir, &name, ino);
        Some(old)
    }

    pub fn mkdir(&mut self, path: &[Name]) -> bool {
        let Some((dir, name)) = self.parent(path) else {
            return false;
        };
        if self.dir(dir).unwrap().contains_key(&name) {
            return false;
        }
        let ino = self.make(Data::Dir(BTreeMap::new()), 0o755);
        self.put_entry(dir, &name, ino);
        true
    }

    pub fn symlink(&mut self, path: &[Name], target: &str) -> bool {
        let Some((dir, name)) = self.parent(path) else {
            return false;
        };
        if self.dir(dir).unwrap().contains_key(&name) {
            return false;
        }
        let ino = self.make(Data::Link(target.as_bytes().to_vec()), 0o777);
        self.put_entry(dir, &name, ino);
        true
    }

    pub fn chmod(&mut self, path: &[Name], mode: u16) -> bool {
        let Some((dir, name)) = self.parent(path) else {
            return false;
        };
        let Some(ino) = self.dir(dir).unwrap().get(&name).copied() else {
            return false;
        };
        let now = self.tick();
        let inode = self.inodes.get_mut(&ino).unwrap();
        inode.mode = mode;
        inode.ctime = now;
        self.hint(dir, &name);
        true
    }

    /// Removes what is at a path, and everything in it; returns the texts.
    pub fn remove(&mut self, path: &[Name]) -> Option<Vec<String>> {
        let (dir, name) = self.parent(path)?;
        let ino = self.take_entry(dir, &name)?;
        let mut texts = Vec::new();
        let mut stack = vec![ino];
        while let Some(ino) = stack.pop() {
            self.watches.remove(&ino);
            match self.inodes.remove(&ino).unwrap().data {
                Data::Dir(entries) => stack.extend(entries.into_values()),
                Data::File(text) => texts.push(text),
                Data::Link(_) => {}
            }
        }
        Some(texts)
    }

    /// Renames; over an existing file if there is one, whose text is returned.
    pub fn rename(&mut self, from: &[Name], to: &[Name]) -> Option<Option<String>> {
        if to.starts_with(from) {
            return None;
        }
        let (from_dir, from_name) = self.parent(from)?;
        let (to_dir, to_name) = self.parent(to)?;
        let ino = *self.dir(from_dir)?.get(&from_name)?;
        let old = match self.dir(to_dir)?.get(&to_name) {
            Some(there) => match (&self.inodes[there].data, &self.inodes[&ino].data) {
                (Data::File(old), Data::File(_)) => Some(old.clone()),
                _ => return None,
            },
            None => None,
        };
        self.take_entry(from_dir, &from_name);
        let now = self.tick();
        self.inodes.get_mut(&ino)?.ctime = now;
        self.put_entry(to_dir, &to_name, ino);
        Some(old)
    }

    // What the engine asks for.

    fn stat(&self, ino: u64) -> Stat {
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
            attrs: Attrs { mode: inode.mode },
        }
    }

    fn open(&self, dir: &DirRef) -> Option<u64> {
        let names = dir.path.names();
        let (ino, rest) = if names.first().is_some_and(|name| name.as_bytes() == b".picloud") {
            let id = NodeId::from_hex(&names[2].to_string()).unwrap();
            (*self.parked.get(&id)?, &names[3..])
        } else {
            (ROOT, names)
        };
        let ino = rest.iter().try_fold(ino, |ino, name| self.dir(ino)?.get(name).copied())?;
        self.dir(ino)?;
        (ino == dir.ino || dir.id == NodeId::ROOT).then_some(ino)
    }

    pub fn look(&mut self, dir: &DirRef, names: Option<&[Name]>) -> Look {
        let Some(ino) = self.open(dir) else {
            return Look::Gone;
        };
        let found = |disk: &Self, child: u64| Found {
            stat: disk.stat(child),
            target: match &disk.inodes[&child].data {
                Data::Link(target) => Some(target.clone()),
                _ => None,
            },
            ignored: false,
        };
        let entries = match names {
            None => {
                self.watches.insert(ino, dir.id);
                self.dir(ino)
                    .unwrap()
                    .iter()
                    .map(|(name, child)| Seen {
                        name: name.clone(),
                        found: Some(found(self, *child)),
                    })
                    .collect()
            }
            Some(names) => names
                .iter()
                .map(|name| Seen {
                    name: name.clone(),
                    found: self.dir(ino).unwrap().get(name).map(|child| found(self, *child)),
                })
                .collect(),
        };
        Look::Entries { dir: self.stat(ino), entries }
    }

    /// Reads a file: its stat and content, when it is the one asked for.
    pub fn read(&self, at: &Spot) -> Option<(Stat, String)> {
        let ino = *self.dir(self.open(&at.dir)?)?.get(&at.name)?;
        match &self.inodes[&ino].data {
            Data::File(text) => Some((self.stat(ino), text.clone())),
            _ => None,
        }
    }

    fn is_expected(&self, ino: u64, expected: &Expected) -> bool {
        let stat = self.stat(ino);
        if stat.kind == Some(Kind::Dir) {
            return stat.same_inode(&expected.stat);
        }
        let mut wanted = expected.stat;
        if stat.kind == Some(Kind::Link) {
            wanted.attrs = stat.attrs;
        }
        stat == wanted
    }

    fn first_free(&self, dir: u64, name: &Name) -> Name {
        (1..)
            .map(|n| conflict_name(name, &self.device, "2026-11-23", n))
            .find(|name| !self.dir(dir).unwrap().contains_key(name))
            .unwrap()
    }

    pub fn apply(
        &mut self,
        node: NodeId,
        op: &DiskOp,
        texts: &dyn Fn(&Content) -> Option<String>,
    ) -> Outcome {
        let done = |disk: &Self, ino: u64, kept| Outcome::Done { stat: disk.stat(ino), kept };
        match op {
            DiskOp::MakeDir { at, attrs } => {
                let Some(dir) = self.open(&at.dir) else {
                    return Outcome::Changed;
                };
                if self.dir(dir).unwrap().contains_key(&at.name) {
                    return Outcome::Taken;
                }
                let ino = self.make(Data::Dir(BTreeMap::new()), attrs.mode);
                self.put_entry(dir, &at.name, ino);
                done(self, ino, None)
            }
            DiskOp::Write { at, content, mtime, attrs, over, keep } => {
                let Some(text) = texts(content) else {
                    return Outcome::NoContent { reason: "not on the server".into() };
                };
                self.place(at, Data::File(text), Some(*mtime), attrs.mode, over.as_ref(), *keep)
            }
            DiskOp::Link { at, target, over, keep } => {
                self.place(at, Data::Link(target.clone()), None, 0o777, over.as_ref(), *keep)
            }
            DiskOp::Move { from, to, expected } => {
                let source = match from {
                    Some(at) => {
                        let Some(dir) = self.open(&at.dir) else {
                            return Outcome::Changed;
                        };
                        let Some(ino) = self.dir(dir).unwrap().get(&at.name).copied() else {
                            return Outcome::Changed;
                        };
                        Some((dir, at.name.clone(), ino))
                    }
                    None => None,
                };
                let ino = match &source {
                    Some((_, _, ino)) => *ino,
                    None => match self.parked.get(&node) {
                        Some(ino) => *ino,
                        None => return Outcome::Changed,
                    },
                };
                if !self.is_expected(ino, expected) {
                    return Outcome::Changed;
                }
                let target = match to {
                    Some(at) => {
                        let Some(dir) = self.open(&at.dir) else {
                            return Outcome::Changed;
                        };
                        if self.dir(dir).unwrap().contains_key(&at.name) {
                            return Outcome::Taken;
                        }
                        Some((dir, at.name.clone()))
                    }
                    None => None,
                };
                match source {
                    Some((dir, name, _)) => {
                        self.take_entry(dir, &name);
                    }
                    None => {
                        self.parked.remove(&node);
                    }
                }
                let now = self.tick();
                self.inodes.get_mut(&ino).unwrap().ctime = now;
                match target {
                    Some((dir, name)) => self.put_entry(dir, &name, ino),
                    None => {
                        self.parked.insert(node, ino);
                    }
                }
                done(self, ino, None)
            }
            DiskOp::SetAside { at, expected } => {
                let Some(dir) = self.open(&at.dir) else {
                    return Outcome::Changed;
                };
                let Some(ino) = self.dir(dir).unwrap().get(&at.name).copied() else {
                    return Outcome::Changed;
                };
                if !self.is_expected(ino, expected) {
                    return Outcome::Changed;
                }
                let name = self.first_free(dir, &at.name);
                self.take_entry(dir, &at.name);
                let now = self.tick();
                self.inodes.get_mut(&ino).unwrap().ctime = now;
                self.put_entry(dir, &name, ino);
                done(self, ino, Some(name))
            }
            DiskOp::Remove { at, expected } => {
                let Some(dir) = self.open(&at.dir) else {
                    return Outcome::Changed;
                };
                let Some(ino) = self.dir(dir).unwrap().get(&at.name).copied() else {
                    return Outcome::Changed;
                };
                if !self.is_expected(ino, expected) {
                    return Outcome::Changed;
                }
                if self.dir(ino).is_some_and(|entries| !entries.is_empty()) {
                    return Outcome::NotEmpty;
                }
                let stat = self.stat(ino);
                self.take_entry(dir, &at.name);
                self.inodes.remove(&ino);
                self.watches.remove(&ino);
                Outcome::Done { stat, kept: None }
            }
            DiskOp::SetAttrs { at, expected, attrs, mtime } => {
                let Some(dir) = self.open(&at.dir) else {
                    return Outcome::Changed;
                };
                let Some(ino) = self.dir(dir).unwrap().get(&at.name).copied() else {
                    return Outcome::Changed;
                };
                if !self.is_expected(ino, expected) {
                    return Outcome::Changed;
                }
                let now = self.tick();
                let inode = self.inodes.get_mut(&ino).unwrap();
                inode.mode = attrs.mode;
                inode.ctime = now;
                if let Some(mtime) = mtime {
                    inode.mtime = *mtime;
                }
                done(self, ino, None)
            }
        }
    }

    fn place(
        &mut self,
        at: &Spot,
        data: Data,
        mtime: Option<Timestamp>,
        mode: u16,
        over: Option<&Expected>,
        keep: bool,
    ) -> Outcome {
        let Some(dir) = self.open(&at.dir) else {
            return Outcome::Changed;
        };
        let there = self.dir(dir).unwrap().get(&at.name).copied();
        match (there, over) {
            (Some(_), None) => return Outcome::Taken,
            (None, Some(_)) => return Outcome::Changed,
            _ => {}
        }
        if let Some(old) = there
            && matches!(self.inodes[&old].data, Data::Dir(_))
        {
            return Outcome::Changed;
        }
        let ino = self.make(data, mode);
        if let Some(mtime) = mtime {
            self.inodes.get_mut(&ino).unwrap().mtime = mtime;
        }
        self.put_entry(dir, &at.name, ino);
        let mut kept = None;
        if let (Some(old), Some(over)) = (there, over) {
            if keep || !self.is_expected(old, over) {
                let name = self.first_free(dir, &at.name);
                self.put_entry(dir, &name, old);
                kept = Some(name);
            } else {
                self.inodes.remove(&old);
            }
        }
        Outcome::Done { stat: self.stat(ino), kept }
    }

    /// After a crash or the loss of the state: what is parked comes back into the folder.
    pub fn recover(&mut self) {
        for (id, ino) in std::mem::take(&mut self.parked) {
            let name = Name::new(format!("recovered {id}").into_bytes()).unwrap();
            self.put_entry(ROOT, &name, ino);
        }
        self.watches.clear();
        self.hints.clear();
    }

    pub fn describe(path: &[Name]) -> String {
        RelPath::from_names(path.to_vec()).to_string()
    }
}
