//! Why a path is as it is: the branch the planner takes for it now, told without changing anything.
//!
//! What is told is for a person and no base for any decision: it is of the moment it was asked in.

use super::decide::Need;
use super::kept::difference;
use super::seam::Stat;
use super::trees::{Entry, Local, Trees};
use super::{Engine, Flight, Lack, Subject};
use crate::model::{Difference, Name, NodeId, RelPath};

/// What the trees know of a path.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Why {
    /// Nothing: no node is there, on neither side.
    Unknown {
        /// What is wrong with what lies at that name and is no node, or with the directory it is in.
        problem: Option<Obstacle>,
        /// Whether the agent is about to look there.
        is_looked_at: bool,
    },
    /// A node.
    Known(Known),
}

/// Something wrong that is told of a name or of a directory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Obstacle {
    /// Where: the path itself or one above it.
    pub at: RelPath,
    /// What.
    pub reason: String,
    /// Whether that is a directory that cannot be read, rather than something that cannot be synced.
    pub is_listing: bool,
}

/// A node at the path.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Known {
    /// Whether it is on this disk, as far as the agent knows.
    pub is_here: bool,
    /// Whether it is on the server.
    pub is_there: bool,
    /// Where it is on this disk, when that is not where it was asked for.
    pub elsewhere: Option<RelPath>,
    /// Its name in the drive, when this disk could not hold that.
    pub drive_name: Option<Name>,
    /// What was last seen of it on this disk.
    pub stat: Option<Stat>,
    /// Whether what there is to do brings something here, rather than to the server.
    pub comes_here: bool,
    /// A directory above that cannot be read.
    pub unreadable: Option<Obstacle>,
    /// What it waits for.
    pub step: Step,
}

/// What is next for a node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Step {
    /// Nothing: it is the same on both sides.
    Rest,
    /// It is left out on this device, with this directory of the drive; what is here of it goes.
    LeftOut(RelPath),
    /// Its bytes are being read.
    Reading,
    /// Its content is on the way to the server, or the server is being told.
    Sending,
    /// It is being written, moved or removed here.
    Writing,
    /// Something is wrong with it that a person should know.
    Problem {
        /// What.
        reason: String,
        /// Whether its bytes could not be read.
        is_reading: bool,
    },
    /// It makes more of the account's room used than there is left, in bytes.
    OverQuota(Lack),
    /// Each time it was read it had changed meanwhile.
    Busy,
    /// It differs and stays so: this folder carries changes one way only.
    Kept(Difference),
    /// There is no connection.
    Offline,
    /// Transfers are paused.
    Paused,
    /// The journal, or the first look at the folder, is not complete yet.
    CatchingUp,
    /// It was deleted here, as part of a mass deletion that waits for a person.
    Held,
    /// It was deleted here, and it is not certain yet that it was not moved.
    PutOff,
    /// Another node comes first.
    After(RelPath),
    /// It is looked at on disk first.
    Looking,
    /// The last try failed; the next one comes after so many milliseconds.
    Retry(u64),
    /// It is its turn soon.
    Turn,
}

impl<T: Trees> Engine<T> {
    /// Returns how a path stands; its names are those on this disk, or else those in the drive.
    ///
    /// # Errors
    /// When the trees cannot be read.
    pub fn why(&self, path: &RelPath) -> Result<Why, T::Error> {
        let mut dir = NodeId::ROOT;
        let mut listing = None;
        let Some((_, last)) = path.split_last() else {
            return Ok(Why::Unknown { problem: None, is_looked_at: false });
        };
        for (depth, name) in path.names().iter().enumerate() {
            let upto = |count: usize| RelPath::from_names(path.names()[..count].to_vec());
            if let Some(reason) = self.problems.get(&Subject::Listing(dir)) {
                let reason = reason.clone();
                listing = Some(Obstacle { at: upto(depth), reason, is_listing: true });
            }
            let Some(id) = self.node_at(dir, name)? else {
                let spot = self.problems.get(&Subject::Spot(dir, name.clone())).cloned();
                let at = upto(depth + 1);
                let spot = spot.map(|reason| Obstacle { at, reason, is_listing: false });
                let is_looked_at = self.looks.is_pending(dir, name);
                return Ok(Why::Unknown { problem: spot.or(listing), is_looked_at });
            };
            dir = id;
        }
        let entry = self.trees.get(dir)?;
        let step = self.step_of(dir, &entry)?;
        Ok(Why::Known(self.known(dir, &entry, (path, last), listing, step)))
    }

    fn known(
        &self,
        id: NodeId,
        entry: &Entry,
        (path, last): (&RelPath, &Name),
        unreadable: Option<Obstacle>,
        step: Step,
    ) -> Known {
        let local = entry.local.as_ref();
        let here = local.map(|_| self.trees.path_of(id)).filter(|here| here != path);
        let drive_name = local.filter(|local| local.alias.is_some());
        Known {
            is_here: local.is_some(),
            is_there: entry.remote.is_some(),
            // By its own name it is found too, wherever the disk put it.
            elsewhere: here,
            drive_name: drive_name.map(|local| local.place.name.clone()).or_else(|| {
                let asked_for = local.filter(|local| local.disk_name() != last);
                asked_for.and(entry.remote.as_ref()).map(|remote| remote.node.place.name.clone())
            }),
            stat: local.map(|local| local.stat),
            comes_here: entry.comes_here(),
            unreadable,
            step,
        }
    }

    /// Returns what is next for a node: the questions of `plan`, in its order.
    fn step_of(&self, id: NodeId, entry: &Entry) -> Result<Step, T::Error> {
        match self.flights.get(&id) {
            Some(Flight::Hash) => return Ok(Step::Reading),
            Some(Flight::Upload { .. } | Flight::Commit { .. }) => return Ok(Step::Sending),
            Some(Flight::Apply(_)) => return Ok(Step::Writing),
            None => {}
        }
        let need = self.decide(entry);
        if need == Need::Rest && entry.left_out {
            return self.left_out_step(id);
        }
        if need == Need::Rest {
            return Ok(match &entry.local {
                Some(local) if self.is_looked_at(local) => Step::Looking,
                _ => Step::Rest,
            });
        }
        if let Some(lack) = self.quota.lack_of(id).filter(|_| self.link.online) {
            let left = self.quota.left().unwrap_or(lack.left);
            return Ok(Step::OverQuota(Lack { left, ..lack }));
        }
        if let Some(reason) = self.problems.get(&Subject::Node(id)) {
            let is_reading = need == Need::Hash;
            return Ok(Step::Problem { reason: reason.clone(), is_reading });
        }
        if need == Need::Keep {
            return Ok(Step::Kept(difference(entry, self.settings.flow)));
        }
        if need == Need::Hash && self.agenda.has_failed(id) {
            return Ok(Step::Busy);
        }
        // One that is still to be read waits for the same: reading does not run ahead of sending.
        if !self.link.online {
            return Ok(Step::Offline);
        }
        if self.link.paused {
            return Ok(Step::Paused);
        }
        if !self.trees.meta().consistent
            || self.is_after_unclean_stop()
            || self.looks.rescans_done == 0
        {
            return Ok(Step::CatchingUp);
        }
        if matches!(need, Need::LeaveOut | Need::TakeLocalAsBase | Need::DropBase) && entry.left_out
        {
            return self.left_out_step(id);
        }
        if entry.is_deletion() {
            return Ok(match self.are_deletions_held() {
                true => Step::Held,
                false if self.looks.may_find_deletions() => Step::PutOff,
                false => self.turn_of(id),
            });
        }
        Ok(self.turn_of(id))
    }

    fn left_out_step(&self, id: NodeId) -> Result<Step, T::Error> {
        let with = self.left_out_with(id)?.unwrap_or(id);
        Ok(Step::LeftOut(self.path_in_drive(with)?))
    }

    fn is_looked_at(&self, local: &Local) -> bool {
        self.looks.is_pending(local.place.parent, local.disk_name())
    }

    fn turn_of(&self, id: NodeId) -> Step {
        if let Some(blocker) = self.agenda.blocker_of(id) {
            return Step::After(self.trees.path_of(blocker));
        }
        match self.agenda.waits_ms(id, self.now.ms) {
            Some(ms) => Step::Retry(ms),
            None => Step::Turn,
        }
    }
}
