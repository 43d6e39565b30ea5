//! What becomes of what was taken away: the trash after its grace, and what a crash left.

use std::collections::{HashMap, HashSet};
use std::time::Duration;

use super::leftover::{
    Leftover, Token, ascii_name, note_batch, own_path, parked_name, parked_note_name, parse_node,
    parse_note,
};
use super::{Applier, Discarded, GRACE};
use crate::engine::defect::Defect;
use crate::engine::folder::{Fault, Folder, FolderGone, Own, Rename};
use crate::model::{ChunkId, Kind, Name, NodeId, RelPath};

/// The most discarded files waiting for the end of their grace (each some 500 bytes of memory); of
/// more the oldest go early.
const TRASH_MAX: usize = 50_000;

/// The most bytes of a note on where a batch's leftovers came from.
const NOTE_LEN_MAX: usize = 16 * 1024 * 1024;

/// What a crash left, and what became of it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Recovered {
    /// Versions of a person's that went back to the folder, by their paths now.
    pub brought_back: Vec<RelPath>,
    /// What could not be read or moved, by its path below `.picloud`, and why. It stays there.
    pub left: Vec<(RelPath, String)>,
}

impl<F: Folder> Applier<F> {
    /// Returns when [`Applier::reap`] has something to do, on the clock given to
    /// [`Applier::apply`].
    pub fn reap_at(&self) -> Option<Duration> {
        if self.trash.len() > TRASH_MAX {
            return Some(Duration::ZERO);
        }
        self.trash.front().map(|discarded| discarded.due)
    }

    /// Drops at most `limit` of what is in the trash for longer than its grace. What changed there
    /// meanwhile is brought back as a conflict copy; returns the paths of those.
    ///
    /// # Errors
    /// When the folder is gone.
    pub fn reap(
        &mut self,
        today: &str,
        now: Duration,
        limit: usize,
    ) -> Result<Vec<RelPath>, FolderGone> {
        self.folder.check()?;
        let mut brought_back = Vec::new();
        for _ in 0..limit {
            let is_due = self.reap_at().is_some_and(|at| at <= now);
            let Some(mut discarded) = self.trash.pop_front_if(|_| is_due) else {
                break;
            };
            match self.settle_trash(&mut discarded).and_then(|()| self.reap_one(&discarded, today))
            {
                Ok(back) => {
                    brought_back.extend(back);
                    self.release_note(discarded.leftover.batch);
                }
                Err(Fault::Gone(gone)) => return Err(gone),
                // Not now (it is being written to, or cannot be read): it stays until it can be.
                Err(_) => {
                    discarded.due = now + GRACE;
                    discarded.stat = None;
                    self.trash.push_back(discarded);
                }
            }
        }
        Ok(brought_back)
    }

    /// Goes through what a crash left in staging, trash and parked. `is_parked` tells of a node
    /// whether the engine knows that it is parked.
    ///
    /// # Errors
    /// When the folder is gone, or the directories below `.picloud` cannot be listed.
    pub fn recover(
        &mut self,
        today: &str,
        mut is_parked: impl FnMut(NodeId) -> bool,
    ) -> Result<Recovered, Fault> {
        self.folder.check().map_err(Fault::Gone)?;
        let mut recovered = Recovered::default();
        let staging = self.folder.own_dir(Own::Staging);
        for name in self.folder.list(&staging)? {
            if let Err(fault) = self.folder.unlink(&staging, &name) {
                recovered.leave("staging", &name, fault)?;
            }
        }
        self.recover_trash(today, &mut recovered)?;
        self.recover_parked(today, &mut is_parked, &mut recovered)?;
        self.folder.sync_all()?;
        Ok(recovered)
    }

    fn recover_trash(&mut self, today: &str, recovered: &mut Recovered) -> Result<(), Fault> {
        let trash = self.folder.own_dir(Own::Trash);
        let names = self.folder.list(&trash)?;
        let mut places = HashMap::new();
        let mut notes = Vec::new();
        let mut newest = 0;
        for name in &names {
            let Some(batch) = note_batch(name) else {
                continue;
            };
            newest = newest.max(batch);
            notes.push((batch, name));
            // A note that cannot be read costs only the names; the bytes are safe without.
            if let Ok(note) = self.folder.read_file(&trash, name, NOTE_LEN_MAX) {
                for (index, place) in parse_note(&note) {
                    places.insert((batch, index), place);
                }
            }
        }
        let mut left = HashSet::new();
        for name in names.iter().filter(|name| note_batch(name).is_none()) {
            let Some(leftover) = Leftover::parse(name) else {
                recovered
                    .left
                    .push((own_path("trash", name), "It is not of the agent's making".into()));
                continue;
            };
            newest = newest.max(leftover.batch);
            let place = places
                .get(&(leftover.batch, leftover.index))
                .cloned()
                .unwrap_or_else(|| RelPath::from_names(vec![ascii_name("recovered".into())]));
            let resolved = match self.drop_if_emptied(&trash, name) {
                Ok(true) => continue,
                Ok(false) => self.resolve(&trash, name, &leftover, &place, today),
                Err(fault) => Err(fault),
            };
            match resolved {
                Ok(back) => recovered.brought_back.extend(back),
                Err(fault) => {
                    left.insert(leftover.batch);
                    recovered.leave("trash", name, fault)?;
                }
            }
        }
        // What went back must be durable before what tells where it belongs is removed.
        if !recovered.brought_back.is_empty() {
            self.folder.sync_all()?;
        }
        for (batch, name) in notes {
            if !left.contains(&batch) {
                ignore_unless_gone(self.folder.unlink(&trash, name))?;
            }
        }
        self.next_batch = newest.wrapping_add(1);
        Ok(())
    }

    fn recover_parked(
        &mut self,
        today: &str,
        is_parked: &mut impl FnMut(NodeId) -> bool,
        recovered: &mut Recovered,
    ) -> Result<(), Fault> {
        let parked = self.folder.own_dir(Own::Parked);
        for name in self.folder.list(&parked)? {
            let Some(node) = parse_node(name.as_bytes()) else {
                continue;
            };
            if is_parked(node) || self.folder.has_defect(Defect::ParkedForgotten) {
                continue;
            }
            let note = parked_note_name(node);
            let place = self
                .folder
                .read_file(&parked, &note, NOTE_LEN_MAX)
                .ok()
                .and_then(|bytes| parse_note(&bytes).pop())
                .map_or_else(
                    || RelPath::from_names(vec![ascii_name("recovered".into())]),
                    |(_, place)| place,
                );
            match self.bring_back(&parked, &name, &place, today, true) {
                Ok(path) => recovered.brought_back.push(path),
                Err(fault) => recovered.leave("parked", &name, fault)?,
            }
        }
        // Notes whose node is not there any more.
        let names: HashSet<Name> = self.folder.list(&parked)?.into_iter().collect();
        for name in &names {
            let node = name.as_bytes().strip_suffix(b".where").and_then(parse_node);
            if node.is_some_and(|node| !names.contains(&parked_name(node))) {
                ignore_unless_gone(self.folder.unlink(&parked, name))?;
            }
        }
        Ok(())
    }

    /// Drops a file whose bytes went with the power: it is no version, and nobody can be writing to it
    /// any more. Returns whether it was one.
    fn drop_if_emptied(&self, trash: &F::Dir, name: &Name) -> Result<bool, Fault> {
        if !self.is_after_power_cut {
            return Ok(false);
        }
        let stat = self.folder.stat(trash, name)?;
        let is_emptied = stat.kind == Some(Kind::File) && stat.size == 0;
        if is_emptied {
            self.folder.unlink(trash, name)?;
        }
        Ok(is_emptied)
    }

    /// Sees to it that what took the place of something in the trash is durable.
    fn settle_trash(&mut self, discarded: &mut Discarded) -> Result<(), Fault> {
        if discarded.waits_for_sync {
            self.folder.sync_all()?;
            discarded.waits_for_sync = false;
            self.trash.iter_mut().for_each(|other| other.waits_for_sync = false);
        }
        Ok(())
    }

    /// Drops what is in the trash if it did not change there, else sees to it by its content.
    fn reap_one(&self, discarded: &Discarded, today: &str) -> Result<Option<RelPath>, Fault> {
        let trash = self.folder.own_dir(Own::Trash);
        let name = discarded.leftover.name();
        let now = match self.folder.stat(&trash, &name) {
            Ok(stat) => stat,
            Err(Fault::NotFound) => return Ok(None),
            Err(fault) => return Err(fault),
        };
        let is_same = discarded.stat.is_some_and(|stat| stat == now);
        if is_same || self.folder.has_defect(Defect::TrashUnexamined) {
            self.folder.unlink(&trash, &name)?;
            return Ok(None);
        }
        self.resolve(&trash, &name, &discarded.leftover, &discarded.place, today)
    }

    /// Drops a leftover whose content may be dropped, and brings anything else back; returns where
    /// to.
    fn resolve(
        &self,
        trash: &F::Dir,
        name: &Name,
        leftover: &Leftover,
        place: &RelPath,
        today: &str,
    ) -> Result<Option<RelPath>, Fault> {
        let token = match self.folder.stat(trash, name)?.kind {
            Some(Kind::File) => Some(Token::of_content(&self.folder.content(trash, name)?.1)),
            Some(Kind::Link) => {
                Some(Token::Target(ChunkId::of(&self.folder.read_link(trash, name)?)))
            }
            Some(Kind::Dir) | None => None,
        };
        if leftover.may_drop(token) || self.folder.has_defect(Defect::LeftoversDropped) {
            self.folder.unlink(trash, name)?;
            return Ok(None);
        }
        // What a removal took away has its name still free, more likely than not.
        let has_old_name = leftover.new == Token::Nothing;
        self.bring_back(trash, name, place, today, has_old_name).map(Some)
    }

    /// Brings something back to where it was (or the root, if its directory is gone): under its
    /// own name, if `has_old_name` and that is free, else as a conflict copy.
    fn bring_back(
        &self,
        from: &F::Dir,
        from_name: &Name,
        place: &RelPath,
        today: &str,
        has_old_name: bool,
    ) -> Result<RelPath, Fault> {
        let Some((parent, name)) = place.split_last() else {
            return Err(Fault::Other("It has no name to go back to".into()));
        };
        let (parent, dir) = match self.folder.open_dir(&parent) {
            Ok((dir, _)) => (parent, dir),
            Err(Fault::Gone(gone)) => return Err(Fault::Gone(gone)),
            Err(_) => (RelPath::ROOT, self.folder.open_dir(&RelPath::ROOT)?.0),
        };
        if has_old_name {
            match self.folder.rename((from, from_name), (&dir, name), Rename::NoReplace) {
                Ok(()) => return Ok(parent.join(name)),
                Err(Fault::Exists) => {}
                Err(fault) => return Err(fault),
            }
        }
        self.keep_beside(from, from_name, &dir, name, today).map(|copy| parent.join(&copy))
    }
}

impl Recovered {
    fn leave(&mut self, own: &str, name: &Name, fault: Fault) -> Result<(), Fault> {
        if let Fault::Gone(gone) = fault {
            return Err(Fault::Gone(gone));
        }
        self.left.push((own_path(own, name), fault.to_string()));
        Ok(())
    }
}

fn ignore_unless_gone(result: Result<(), Fault>) -> Result<(), Fault> {
    match result {
        Err(Fault::Gone(gone)) => Err(Fault::Gone(gone)),
        _ => Ok(()),
    }
}
