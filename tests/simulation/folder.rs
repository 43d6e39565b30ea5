//! The primitive operations of the engine's careful procedures, on a model disk. Before each of
//! them the agent may be killed, a person may act, or the disk may fail.

use std::collections::BTreeMap;

use picloud::engine::defect::Defect;
use picloud::engine::folder::{Fault, Folder, FolderGone, Own, Rename};
use picloud::engine::seam::{DirRef, Found, Hashed, Look, Seen, Spot, Stat};
use picloud::model::{Attrs, Content, Kind, Name, RelPath, Timestamp};

use super::disk::{Data, Disk, OWN, PARKED, ROOT, STAGING, Shared, TRASH, Trouble, content_of};

/// As in `agent::disk::hash`.
const RACY_NANOS: i128 = 20_000_000;

#[derive(Debug, Clone)]
pub struct ModelFolder(pub Shared);

fn gone() -> FolderGone {
    FolderGone { reason: "the agent was killed".into() }
}

fn nanos(time: Timestamp) -> i128 {
    i128::from(time.secs) * 1_000_000_000 + i128::from(time.nanos())
}

impl ModelFolder {
    /// What can come between two primitive operations.
    fn step(&self) -> Result<(), Fault> {
        self.intrude(|disk| &mut disk.intrusion);
        let mut disk = self.0.borrow_mut();
        if let Some(fuel) = &mut disk.fuel {
            if *fuel == 0 {
                return Err(Fault::Gone(gone()));
            }
            *fuel -= 1;
        }
        if disk.fails() {
            return Err(Fault::Other("Input/output error".into()));
        }
        Ok(())
    }

    fn intrude(&self, when: fn(&mut Disk) -> &mut Option<u32>) {
        let mut disk = self.0.borrow_mut();
        if let Some(left) = when(&mut disk) {
            if *left == 0 {
                *when(&mut disk) = None;
                disk.person_intrudes();
            } else {
                *left -= 1;
            }
        }
    }

    fn entry(disk: &Disk, dir: u64, name: &Name) -> Result<u64, Fault> {
        disk.at(dir, name).ok_or(Fault::NotFound)
    }

    fn free(disk: &Disk, dir: u64, name: &Name) -> Result<(), Fault> {
        disk.dir(dir).ok_or(Fault::NotFound)?;
        if disk.at(dir, name).is_some() { Err(Fault::Exists) } else { Ok(()) }
    }

    /// As [`ModelFolder::free`], for what needs room.
    fn room(disk: &Disk, dir: u64, name: &Name) -> Result<(), Fault> {
        Self::free(disk, dir, name)?;
        Self::may_change(disk, dir)?;
        match disk.trouble {
            Some(Trouble::Full) => Err(Fault::Other("No space left on device".into())),
            _ => Ok(()),
        }
    }

    /// As [`ModelFolder::step`], for what makes something durable.
    fn step_of_sync(&self) -> Result<(), Fault> {
        self.step()?;
        match self.0.borrow().trouble {
            Some(Trouble::Unsyncable) => Err(Fault::Other("Input/output error".into())),
            _ => Ok(()),
        }
    }

    fn may_change(disk: &Disk, dir: u64) -> Result<(), Fault> {
        if disk.denies(dir) { Err(Fault::Other("Permission denied".into())) } else { Ok(()) }
    }

    fn open(&self, path: &RelPath) -> Option<u64> {
        let disk = self.0.borrow();
        let ino = path.names().iter().try_fold(ROOT, |ino, name| disk.at(ino, name));
        ino.filter(|ino| disk.dir(*ino).is_some())
    }

    fn open_ref(&self, dir: &DirRef) -> Option<u64> {
        self.open(&dir.path).filter(|ino| *ino == dir.ino || dir.ino == 0)
    }

    /// As the agent's look: the watch, the names, then one stat after the other.
    pub fn look(&self, dir: &DirRef, names: Option<&[Name]>) -> Look {
        self.intrude(|disk| &mut disk.intrusion_at_look);
        let Some(ino) = self.open_ref(dir) else {
            return Look::Gone;
        };
        if self.0.borrow().denies(ino) || self.0.borrow_mut().fails() {
            return Look::Unreadable { reason: "Permission denied".into() };
        }
        let listed: Vec<Name> = match names {
            None => {
                let mut disk = self.0.borrow_mut();
                disk.watches.insert(ino, dir.id);
                disk.dir(ino).into_iter().flatten().map(|(name, _)| name.clone()).collect()
            }
            Some(names) => names.to_vec(),
        };
        let mut entries = Vec::new();
        for name in listed {
            self.intrude(|disk| &mut disk.intrusion_at_look);
            let found = self.find(ino, &name);
            if found.is_some() || names.is_some() {
                entries.push(Seen { name, found });
            }
        }
        let disk = self.0.borrow();
        if disk.dir(ino).is_none() {
            return Look::Gone;
        }
        Look::Entries { dir: disk.stat(ino), entries }
    }

    fn find(&self, dir: u64, name: &Name) -> Option<Found> {
        let disk = self.0.borrow();
        let child = *disk.dir(dir)?.get(name)?;
        if child == OWN {
            return None;
        }
        let target = match &disk.inodes[&child].data {
            Data::Link(target) => Some(target.clone()),
            _ => None,
        };
        Some(Found { stat: disk.stat(child), target, ignored: false, is_folder: false })
    }

    /// As the agent's reading of a file: open, stat, read, stat.
    pub fn hash(&self, at: &Spot, expected: &Stat) -> Hashed {
        let opened = self.open_ref(&at.dir).and_then(|dir| self.find(dir, &at.name));
        let Some(stat) = opened.map(|found| found.stat) else {
            return Hashed::Changed;
        };
        if stat.kind != Some(Kind::File) || !stat.same_inode(expected) {
            return Hashed::Changed;
        }
        if self.0.borrow_mut().fails() {
            return Hashed::Unreadable { reason: "Input/output error".into() };
        }
        let started = nanos(self.0.borrow_mut().time());
        let text = match self.0.borrow().inodes.get(&stat.ino).map(|inode| &inode.data) {
            Some(Data::File(text)) => text.clone(),
            _ => return Hashed::Changed,
        };
        self.intrude(|disk| &mut disk.intrusion_at_look);
        let disk = self.0.borrow();
        if !disk.inodes.contains_key(&stat.ino) || disk.stat(stat.ino) != stat {
            return Hashed::Changed;
        }
        let racy = (nanos(stat.ctime) - started).abs() <= RACY_NANOS;
        Hashed::Content { stat, content: content_of(&text), racy }
    }

    /// The bytes of a file, if it is what is expected.
    pub fn read(&self, at: &Spot, expected: &Stat) -> Option<String> {
        let dir = self.open_ref(&at.dir)?;
        let disk = self.0.borrow();
        let ino = disk.at(dir, &at.name)?;
        match &disk.inodes[&ino].data {
            Data::File(text) if disk.stat(ino).unchanged(expected) => Some(text.clone()),
            _ => None,
        }
    }
}

impl Folder for ModelFolder {
    type Dir = u64;

    fn check(&self) -> Result<(), FolderGone> {
        match self.0.borrow().fuel {
            Some(0) => Err(gone()),
            _ => Ok(()),
        }
    }

    fn open_dir(&self, path: &RelPath) -> Result<(u64, Stat), Fault> {
        self.step()?;
        let ino = self.open(path).ok_or(Fault::NotFound)?;
        Ok((ino, self.0.borrow().stat(ino)))
    }

    fn own_dir(&self, own: Own) -> u64 {
        match own {
            Own::Staging => STAGING,
            Own::Trash => TRASH,
            Own::Parked => PARKED,
        }
    }

    fn keeps_name(&self, name: &Name) -> bool {
        self.0.borrow().form.stored(name) == *name
    }

    fn stat(&self, dir: &u64, name: &Name) -> Result<Stat, Fault> {
        if ![STAGING, TRASH, PARKED].contains(dir) {
            self.0.borrow_mut().focus = Some((*dir, name.clone()));
        }
        self.step()?;
        let disk = self.0.borrow();
        let ino = Self::entry(&disk, *dir, name)?;
        Ok(disk.stat(ino))
    }

    fn list(&self, dir: &u64) -> Result<Vec<Name>, Fault> {
        self.step()?;
        let disk = self.0.borrow();
        let entries = disk.dir(*dir).ok_or(Fault::NotFound)?;
        Ok(entries.keys().cloned().collect())
    }

    fn read_link(&self, dir: &u64, name: &Name) -> Result<Vec<u8>, Fault> {
        self.step()?;
        let disk = self.0.borrow();
        match &disk.inodes[&Self::entry(&disk, *dir, name)?].data {
            Data::Link(target) => Ok(target.clone()),
            _ => Err(Fault::Changed),
        }
    }

    fn content(&self, dir: &u64, name: &Name) -> Result<(Stat, Content), Fault> {
        self.step()?;
        let disk = self.0.borrow();
        let ino = Self::entry(&disk, *dir, name)?;
        match &disk.inodes[&ino].data {
            Data::File(text) => Ok((disk.stat(ino), content_of(text))),
            _ => Err(Fault::Changed),
        }
    }

    fn make_file(
        &self,
        dir: &u64,
        name: &Name,
        bytes: &[u8],
        attrs: Attrs,
        mtime: Option<Timestamp>,
    ) -> Result<(), Fault> {
        self.step()?;
        let mut disk = self.0.borrow_mut();
        let text = String::from_utf8_lossy(bytes).into_owned();
        if let Err(fault) = Self::room(&disk, *dir, name) {
            // What fitted stays.
            if disk.trouble == Some(Trouble::Full) && Self::free(&disk, *dir, name).is_ok() {
                let half = text.get(..text.len() / 2).unwrap_or_default().to_owned();
                disk.create(*dir, name, Data::File(half), attrs.mode);
            }
            return Err(fault);
        }
        let ino = disk.create(*dir, name, Data::File(text), attrs.mode);
        if mtime.is_some() {
            disk.set_attrs(ino, attrs.mode, mtime);
        }
        Ok(())
    }

    fn read_file(&self, dir: &u64, name: &Name, _limit: usize) -> Result<Vec<u8>, Fault> {
        self.step()?;
        let disk = self.0.borrow();
        match &disk.inodes[&Self::entry(&disk, *dir, name)?].data {
            Data::File(text) => Ok(text.clone().into_bytes()),
            _ => Err(Fault::Changed),
        }
    }

    fn make_dir(&self, dir: &u64, name: &Name, attrs: Attrs) -> Result<(), Fault> {
        self.step()?;
        let mut disk = self.0.borrow_mut();
        Self::room(&disk, *dir, name)?;
        disk.create(*dir, name, Data::Dir(BTreeMap::new()), attrs.mode);
        Ok(())
    }

    fn make_link(&self, dir: &u64, name: &Name, target: &[u8]) -> Result<(), Fault> {
        self.step()?;
        let mut disk = self.0.borrow_mut();
        Self::room(&disk, *dir, name)?;
        disk.create(*dir, name, Data::Link(target.to_vec()), 0o777);
        Ok(())
    }

    fn rename(&self, from: (&u64, &Name), to: (&u64, &Name), how: Rename) -> Result<(), Fault> {
        self.step()?;
        let mut disk = self.0.borrow_mut();
        let ino = Self::entry(&disk, *from.0, from.1)?;
        let there = Self::entry(&disk, *to.0, to.1);
        if disk.dir(*to.0).is_none() {
            return Err(Fault::NotFound);
        }
        Self::may_change(&disk, *from.0)?;
        Self::may_change(&disk, *to.0)?;
        if disk.is_below(*to.0, ino) {
            return Err(Fault::Other("Invalid argument".into()));
        }
        match (how, there) {
            (Rename::NoReplace, Ok(_)) => Err(Fault::Exists),
            (Rename::NoReplace, Err(_)) => {
                disk.move_name((*from.0, from.1), (*to.0, to.1));
                Ok(())
            }
            (Rename::Exchange, Ok(other)) => {
                if disk.is_below(*from.0, other) {
                    return Err(Fault::Other("Invalid argument".into()));
                }
                disk.exchange_names((*from.0, from.1), (*to.0, to.1));
                Ok(())
            }
            (Rename::Exchange, Err(fault)) => Err(fault),
        }
    }

    fn unlink(&self, dir: &u64, name: &Name) -> Result<(), Fault> {
        self.step()?;
        let mut disk = self.0.borrow_mut();
        Self::may_change(&disk, *dir)?;
        let ino = Self::entry(&disk, *dir, name)?;
        if disk.dir(ino).is_some() {
            return Err(Fault::Other("Is a directory".into()));
        }
        disk.set_names(vec![(*dir, name.clone(), None)]);
        Ok(())
    }

    fn remove_dir(&self, dir: &u64, name: &Name) -> Result<(), Fault> {
        self.step()?;
        let mut disk = self.0.borrow_mut();
        Self::may_change(&disk, *dir)?;
        let ino = Self::entry(&disk, *dir, name)?;
        match disk.dir(ino) {
            None => return Err(Fault::Other("Not a directory".into())),
            Some(entries) if !entries.is_empty() => return Err(Fault::NotEmpty),
            Some(_) => {}
        }
        disk.set_names(vec![(*dir, name.clone(), None)]);
        Ok(())
    }

    fn set_attrs(
        &self,
        dir: &u64,
        name: &Name,
        expected: &Stat,
        attrs: Attrs,
        mtime: Option<Timestamp>,
    ) -> Result<(), Fault> {
        self.step()?;
        let mut disk = self.0.borrow_mut();
        let ino = Self::entry(&disk, *dir, name)?;
        if !disk.stat(ino).unchanged(expected) {
            return Err(Fault::Changed);
        }
        disk.set_attrs(ino, attrs.mode, mtime);
        Ok(())
    }

    fn sync_all(&self) -> Result<(), Fault> {
        self.step_of_sync()?;
        self.0.borrow_mut().sync_all();
        Ok(())
    }

    fn sync_entry(&self, dir: &u64, name: &Name) -> Result<(), Fault> {
        self.step_of_sync()?;
        let mut disk = self.0.borrow_mut();
        let ino = Self::entry(&disk, *dir, name)?;
        disk.sync_inode(ino);
        Ok(())
    }

    fn sync_dir(&self, dir: &u64) -> Result<(), Fault> {
        self.step_of_sync()?;
        self.0.borrow_mut().sync_dir(*dir);
        Ok(())
    }

    fn has_defect(&self, defect: Defect) -> bool {
        self.0.borrow().defect == Some(defect)
    }
}
