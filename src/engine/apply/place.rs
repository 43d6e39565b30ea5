//! One operation, once its content is staged: check, rename, examine, put back or keep.

use super::leftover::{Leftover, Token, own_path, parked_name, parked_note_name, push_note};
use super::{Applier, Batch, Job, OWN_DIR, Staged, Stop, failed, stop};
use crate::engine::defect::Defect;
use crate::engine::folder::{Fault, Folder, Own, Rename};
use crate::engine::seam::{DirRef, DiskOp, Expected, Outcome, Spot, Stat};
use crate::model::{Attrs, ChunkId, Kind, Name, NodeId, RelPath, Timestamp, conflict_name};

/// Modified within this time before it was taken away, a file is hashed to tell whether it is what
/// was expected: within one tick of the file system's clock a modification may leave no trace.
const RACY_NANOS: i128 = 20_000_000;

/// How many names are tried for a conflict copy.
const CONFLICT_NAMES_MAX: u32 = 1000;

/// A file up to this size whose modification time is set is read once more afterwards: setting the
/// time hides an edit of the same moment.
const REREAD_LEN_MAX: u64 = 1024 * 1024;

/// The most open directory handles kept during a batch.
const DIRS_MAX: usize = 128;

impl<F: Folder> Applier<F> {
    /// Carries out one operation whose content is staged.
    pub(super) fn place(
        &self,
        batch: &mut Batch<F>,
        job: &Job,
        staged: &Staged,
        leftover: impl Fn(Token, Token) -> Leftover,
    ) -> Result<Outcome, Stop> {
        let result = match &job.op {
            DiskOp::MakeDir { at, attrs } => self.make_dir(batch, at, *attrs),
            DiskOp::Write { at, content, over, keep, .. } => {
                let new = Token::of_content(content);
                self.put(batch, at, staged, new, over.as_ref(), *keep, leftover)
            }
            DiskOp::Link { at, target, over, .. } if over.is_none() => {
                self.make_link(batch, at, target)
            }
            DiskOp::Link { at, target, over, keep } => {
                let new = Token::Target(ChunkId::of(target));
                self.put(batch, at, staged, new, over.as_ref(), *keep, leftover)
            }
            DiskOp::Move { from, to, expected } => {
                self.move_node(batch, job.node, from.as_ref(), to.as_ref(), expected)
            }
            DiskOp::SetAside { at, expected } => self.set_aside(batch, at, expected),
            DiskOp::Remove { at, expected } => {
                self.remove(batch, at, expected, |old| leftover(Token::Nothing, old))
            }
            DiskOp::SetAttrs { at, expected, attrs, mtime } => {
                self.set_attrs(batch, at, expected, *attrs, *mtime)
            }
        };
        if !matches!(result, Ok(Outcome::Done { .. }))
            && let Some((name, _)) = &staged.file
        {
            self.drop_staged(name)?;
        }
        result
    }

    /// Opens the directory of a spot, or returns why nothing can be done there.
    fn dir(&self, batch: &mut Batch<F>, dir: &DirRef) -> Result<F::Dir, Stop> {
        if let Some((handle, ino)) = batch.dirs.get(&*dir.path)
            && *ino == dir.ino
        {
            return Ok(handle.clone());
        }
        let (handle, stat) =
            self.folder.open_dir(&dir.path).map_err(|fault| stop(fault, &dir.path))?;
        if stat.ino != dir.ino {
            return Err(Outcome::Changed.into());
        }
        if batch.dirs.len() >= DIRS_MAX {
            batch.dirs.clear();
        }
        batch.dirs.insert((*dir.path).clone(), (handle.clone(), stat.ino));
        Ok(handle)
    }

    /// Opens the directory of a spot that is to be filled.
    fn dir_to_fill(&self, batch: &mut Batch<F>, at: &Spot) -> Result<F::Dir, Stop> {
        if at.name.as_bytes() == OWN_DIR {
            return Err(Outcome::NameImpossible {
                reason: "The name .picloud is the agent's own".into(),
            }
            .into());
        }
        if !self.folder.keeps_name(&at.name) {
            return Err(Outcome::NameImpossible {
                reason: format!("This disk would store the name otherwise: {}", at.path()),
            }
            .into());
        }
        self.dir(batch, &at.dir)
    }

    /// Returns what it means that a name is taken: by an entry of that name, or by one that this
    /// disk holds for the same.
    fn taken(&self, dir: &F::Dir, at: &Spot) -> Stop {
        let path = at.path();
        match self.folder.list(dir) {
            Ok(names) if names.contains(&at.name) => Outcome::Taken.into(),
            Ok(names) => match self.folder.stat(dir, &at.name) {
                // Only a listed name that leads to the same inode proves it: something may have
                // come and gone at this one meanwhile.
                Ok(there) if self.is_listed_as(dir, &names, &there) => Outcome::NameImpossible {
                    reason: format!(
                        "This disk holds the name for the same as another one there: {path}"
                    ),
                }
                .into(),
                Err(Fault::Gone(gone)) => gone.into(),
                Ok(_) | Err(_) => Outcome::Taken.into(),
            },
            Err(fault) => stop(fault, &path),
        }
    }

    /// Returns whether one of these names of a directory leads to this very inode.
    fn is_listed_as(&self, dir: &F::Dir, names: &[Name], there: &Stat) -> bool {
        names
            .iter()
            .any(|name| self.folder.stat(dir, name).is_ok_and(|stat| stat.same_inode(there)))
    }

    /// As [`stop`], for an operation that fills a name.
    fn stop_filling(&self, fault: Fault, dir: &F::Dir, at: &Spot) -> Stop {
        match fault {
            Fault::Exists => self.taken(dir, at),
            fault => stop(fault, &at.path()),
        }
    }

    fn make_dir(&self, batch: &mut Batch<F>, at: &Spot, attrs: Attrs) -> Result<Outcome, Stop> {
        let dir = self.dir_to_fill(batch, at)?;
        self.folder
            .make_dir(&dir, &at.name, attrs)
            .map_err(|fault| self.stop_filling(fault, &dir, at))?;
        batch.touch(&dir, at.dir.ino);
        self.done(&dir, at, Kind::Dir)
    }

    fn make_link(&self, batch: &mut Batch<F>, at: &Spot, target: &[u8]) -> Result<Outcome, Stop> {
        let dir = self.dir_to_fill(batch, at)?;
        self.folder
            .make_link(&dir, &at.name, target)
            .map_err(|fault| self.stop_filling(fault, &dir, at))?;
        batch.touch(&dir, at.dir.ino);
        self.done(&dir, at, Kind::Link)
    }

    fn done(&self, dir: &F::Dir, at: &Spot, made: Kind) -> Result<Outcome, Stop> {
        let stat = self.folder.stat(dir, &at.name).map_err(|fault| stop(fault, &at.path()))?;
        if stat.kind != Some(made) {
            // Somebody has moved it away already, and put something else there.
            return Ok(Outcome::Taken);
        }
        Ok(Outcome::Done { stat, kept: None })
    }

    /// Puts what is staged at a name: where nothing is, or in place of what is expected there.
    #[expect(clippy::too_many_arguments, reason = "the fields of two operations")]
    fn put(
        &self,
        batch: &mut Batch<F>,
        at: &Spot,
        staged: &Staged,
        new: Token,
        over: Option<&Expected>,
        keep: bool,
        leftover: impl Fn(Token, Token) -> Leftover,
    ) -> Result<Outcome, Stop> {
        let Some((part, stat)) = &staged.file else {
            return Err(failed("There is no staged content"));
        };
        let dir = self.dir_to_fill(batch, at)?;
        let staging = self.folder.own_dir(Own::Staging);
        let kept = match over {
            None => {
                self.folder
                    .rename((&staging, part), (&dir, &at.name), Rename::NoReplace)
                    .map_err(|fault| self.stop_filling(fault, &dir, at))?;
                batch.touch(&dir, at.dir.ino);
                None
            }
            Some(expected) => {
                self.check(&dir, at, expected)?;
                let old = if keep { Token::Keep } else { self.token_expected(&dir, at, expected)? };
                self.exchange(batch, &dir, at, part, expected, leftover(new, old))?
            }
        };
        // An edit since the rename must not pass for what was written: then the stat is told that
        // the file had before, and the next look sees the difference.
        let live = match self.folder.stat(&dir, &at.name) {
            Ok(live) if live.same_but_ctime(stat) => live,
            Err(Fault::Gone(gone)) => return Err(gone.into()),
            Ok(_) | Err(_) => *stat,
        };
        Ok(Outcome::Done { stat: live, kept })
    }

    /// Checks that a spot holds what is expected, to the last field.
    fn check(&self, dir: &F::Dir, at: &Spot, expected: &Expected) -> Result<(), Stop> {
        let stat = self.folder.stat(dir, &at.name).map_err(|fault| stop(fault, &at.path()))?;
        if stat.unchanged(&expected.stat) { Ok(()) } else { Err(Outcome::Changed.into()) }
    }

    /// Returns the token for what is expected at a spot that was just checked.
    fn token_expected(&self, dir: &F::Dir, at: &Spot, expected: &Expected) -> Result<Token, Stop> {
        if expected.stat.kind == Some(Kind::Link) {
            let target =
                self.folder.read_link(dir, &at.name).map_err(|fault| stop(fault, &at.path()))?;
            return Ok(Token::Target(ChunkId::of(&target)));
        }
        Ok(expected.content.as_ref().map_or(Token::Keep, Token::of_content))
    }

    /// Exchanges what is staged with what is at a spot, and sees to what comes out.
    fn exchange(
        &self,
        batch: &mut Batch<F>,
        dir: &F::Dir,
        at: &Spot,
        part: &Name,
        expected: &Expected,
        leftover: Leftover,
    ) -> Result<Option<Name>, Stop> {
        let staging = self.folder.own_dir(Own::Staging);
        let trash = self.folder.own_dir(Own::Trash);
        let name = leftover.name();
        self.folder
            .rename((&staging, part), (&trash, &name), Rename::NoReplace)
            .map_err(|fault| stop(fault, &own_path("trash", &name)))?;
        batch.touched_own.insert(Own::Trash);
        if let Err(fault) = self.folder.rename((&trash, &name), (dir, &at.name), Rename::Exchange) {
            // Whatever is under that name now is told by its content, later.
            batch.discard(leftover, None, at);
            return Err(stop(fault, &at.path()));
        }
        batch.touch(dir, at.dir.ino);
        let is_kept = leftover.old == Token::Keep;
        match self.came_out(&trash, &name, expected) {
            Ok((stat, false)) if self.folder.has_defect(Defect::ExchangeUnexamined) => {
                batch.discard(leftover, Some(stat), at);
                Ok(None)
            }
            Ok((stat, true)) if !is_kept => {
                batch.discard(leftover, Some(stat), at);
                Ok(None)
            }
            Err(Fault::Gone(gone)) => Err(gone.into()),
            // A person's version, or one that cannot be told from it.
            _ => match self.keep_beside(&trash, &name, dir, &at.name, &batch.today) {
                Ok(kept) => Ok(Some(kept)),
                Err(Fault::Gone(gone)) => Err(gone.into()),
                // It is safe where it is; the reaper tries again to bring it back.
                Err(_) => {
                    batch.discard(leftover, None, at);
                    Ok(None)
                }
            },
        }
    }

    /// Examines what a rename took away: its stat now, and whether it is what was expected.
    fn came_out(
        &self,
        dir: &F::Dir,
        name: &Name,
        expected: &Expected,
    ) -> Result<(Stat, bool), Fault> {
        let stat = self.folder.stat(dir, name)?;
        let is_expected = match stat.kind {
            // A link's target never changes; a directory's entries are no part of it.
            Some(Kind::Link | Kind::Dir) => stat.same_inode(&expected.stat),
            Some(Kind::File) if stat.same_but_ctime(&expected.stat) && !is_racy(&stat) => true,
            Some(Kind::File) if expected.stat.kind == Some(Kind::File) => match &expected.content {
                Some(content) => match self.folder.content(dir, name) {
                    Ok((stat, found)) => return Ok((stat, found == *content)),
                    Err(Fault::Changed) => false,
                    Err(fault) => return Err(fault),
                },
                None => false,
            },
            Some(Kind::File) | None => false,
        };
        Ok((stat, is_expected))
    }

    /// Renames to the first free conflict copy name.
    pub(super) fn keep_beside(
        &self,
        from: &F::Dir,
        from_name: &Name,
        dir: &F::Dir,
        name: &Name,
        today: &str,
    ) -> Result<Name, Fault> {
        for attempt in 1..=CONFLICT_NAMES_MAX {
            let copy = conflict_name(name, &self.device, today, attempt);
            match self.folder.rename((from, from_name), (dir, &copy), Rename::NoReplace) {
                Ok(()) => return Ok(copy),
                Err(Fault::Exists) => {}
                Err(fault) => return Err(fault),
            }
        }
        Err(Fault::Exists)
    }

    fn remove(
        &self,
        batch: &mut Batch<F>,
        at: &Spot,
        expected: &Expected,
        leftover: impl Fn(Token) -> Leftover,
    ) -> Result<Outcome, Stop> {
        let dir = self.dir(batch, &at.dir)?;
        self.check(&dir, at, expected)?;
        let done = Outcome::Done { stat: expected.stat, kept: None };
        if expected.stat.kind == Some(Kind::Dir) {
            self.folder.remove_dir(&dir, &at.name).map_err(|fault| stop(fault, &at.path()))?;
            batch.dirs.clear();
            batch.touch(&dir, at.dir.ino);
            return Ok(done);
        }
        let leftover = leftover(self.token_expected(&dir, at, expected)?);
        let trash = self.folder.own_dir(Own::Trash);
        let name = leftover.name();
        self.folder
            .rename((&dir, &at.name), (&trash, &name), Rename::NoReplace)
            .map_err(|fault| stop(fault, &at.path()))?;
        batch.touch(&dir, at.dir.ino);
        batch.touched_own.insert(Own::Trash);
        match self.came_out(&trash, &name, expected) {
            Ok((stat, true)) => {
                batch.discard(leftover, Some(stat), at);
                return Ok(done);
            }
            Err(Fault::Gone(gone)) => return Err(gone.into()),
            Ok((_, false)) | Err(_) => {}
        }
        let back = self.folder.rename((&trash, &name), (&dir, &at.name), Rename::NoReplace);
        let back = match back {
            Err(Fault::Exists) => {
                self.keep_beside(&trash, &name, &dir, &at.name, &batch.today).map(drop)
            }
            other => other,
        };
        match back {
            Ok(()) => {}
            Err(Fault::Gone(gone)) => return Err(gone.into()),
            Err(_) => batch.discard(leftover, None, at),
        }
        Ok(Outcome::Changed)
    }

    fn move_node(
        &self,
        batch: &mut Batch<F>,
        node: NodeId,
        from: Option<&Spot>,
        to: Option<&Spot>,
        expected: &Expected,
    ) -> Result<Outcome, Stop> {
        let parked = self.folder.own_dir(Own::Parked);
        let parked_name = parked_name(node);
        let parked_path = own_path("parked", &parked_name);
        let (from_dir, from_name, from_path) = match from {
            Some(at) => (self.dir(batch, &at.dir)?, &at.name, at.path()),
            None => (parked.clone(), &parked_name, parked_path.clone()),
        };
        let (to_dir, to_name, to_path) = match to {
            Some(at) => match self.dir_to_fill(batch, at) {
                Ok(dir) => (dir, &at.name, at.path()),
                // `Changed` tells of what is to be moved, and nothing else.
                Err(Stop::Outcome(Outcome::Changed)) => return Err(Outcome::Taken.into()),
                Err(stop) => return Err(stop),
            },
            None => (parked.clone(), &parked_name, parked_path),
        };
        let stat =
            self.folder.stat(&from_dir, from_name).map_err(|fault| stop(fault, &from_path))?;
        // What is parked goes back to the folder whatever became of it: nobody can see it there.
        if from.is_some() && !stat.unchanged(&expected.stat) {
            return Err(Outcome::Changed.into());
        }
        if to.is_none() {
            self.note_parked(&parked, node, &from_path)?;
        }
        self.folder.rename((&from_dir, from_name), (&to_dir, to_name), Rename::NoReplace).map_err(
            |fault| match (to, fault) {
                // It was there a moment ago, so it is the place that is gone.
                (Some(_), Fault::NotFound) => Outcome::Taken.into(),
                (Some(at), fault) => self.stop_filling(fault, &to_dir, at),
                (None, fault) => stop(fault, &to_path),
            },
        )?;
        // Paths of open directories may now be other ones'.
        if stat.kind == Some(Kind::Dir) {
            batch.dirs.clear();
        }
        for (dir, at) in [(&from_dir, from), (&to_dir, to)] {
            match at {
                Some(at) => batch.touch(dir, at.dir.ino),
                None => {
                    batch.touched_own.insert(Own::Parked);
                }
            }
        }
        let came = match from {
            Some(_) => self.came_out(&to_dir, to_name, expected),
            None => Ok((self.folder.stat(&to_dir, to_name).unwrap_or(stat), true)),
        };
        match came {
            Ok((stat, true)) => {
                if from.is_none() {
                    let note = parked_note_name(node);
                    if let Err(Fault::Gone(gone)) = self.folder.unlink(&parked, &note) {
                        return Err(gone.into());
                    }
                }
                if to.is_none() {
                    batch.parked.insert(node);
                }
                Ok(Outcome::Done { stat, kept: None })
            }
            Err(Fault::Gone(gone)) => Err(gone.into()),
            // Something else, or an edit: it goes back where it was. If that is taken meanwhile it
            // stays; either way the next look finds it, unless it is in `.picloud`.
            Ok((_, false)) | Err(_) => {
                let back = self.folder.rename(
                    (&to_dir, to_name),
                    (&from_dir, from_name),
                    Rename::NoReplace,
                );
                match (back, to) {
                    (Err(Fault::Gone(gone)), _) => return Err(gone.into()),
                    (Err(_), None) => {
                        match self.keep_beside(&to_dir, to_name, &from_dir, from_name, &batch.today)
                        {
                            Ok(_) => {}
                            Err(Fault::Gone(gone)) => return Err(gone.into()),
                            // Then it is parked, whatever it is: it comes back to the folder from there.
                            Err(_) => {
                                batch.parked.insert(node);
                                return Ok(Outcome::Done { stat, kept: None });
                            }
                        }
                    }
                    _ => {}
                }
                Ok(Outcome::Changed)
            }
        }
    }

    /// Writes down where a node was that is about to be parked.
    fn note_parked(&self, parked: &F::Dir, node: NodeId, from: &RelPath) -> Result<(), Stop> {
        let name = parked_note_name(node);
        let mut note = Vec::new();
        push_note(&mut note, 0, from);
        let attrs = Attrs::from_mode(0o600);
        let mut made = self.folder.make_file(parked, &name, &note, attrs, None);
        if made == Err(Fault::Exists) {
            self.folder
                .unlink(parked, &name)
                .map_err(|fault| stop(fault, &own_path("parked", &name)))?;
            made = self.folder.make_file(parked, &name, &note, attrs, None);
        }
        made.map_err(|fault| match fault {
            Fault::Gone(gone) => gone.into(),
            fault => failed(fault.about(&own_path("parked", &name))),
        })
    }

    fn set_aside(
        &self,
        batch: &mut Batch<F>,
        at: &Spot,
        expected: &Expected,
    ) -> Result<Outcome, Stop> {
        let dir = self.dir(batch, &at.dir)?;
        self.check(&dir, at, expected)?;
        let copy = self
            .keep_beside(&dir, &at.name, &dir, &at.name, &batch.today)
            .map_err(|fault| stop(fault, &at.path()))?;
        if expected.stat.kind == Some(Kind::Dir) {
            batch.dirs.clear();
        }
        batch.touch(&dir, at.dir.ino);
        match self.came_out(&dir, &copy, expected) {
            Ok((stat, true)) => Ok(Outcome::Done { stat, kept: Some(copy) }),
            Err(Fault::Gone(gone)) => Err(gone.into()),
            Ok((_, false)) | Err(_) => {
                // If its name is taken meanwhile it stays aside, and the next look finds it.
                if let Err(Fault::Gone(gone)) =
                    self.folder.rename((&dir, &copy), (&dir, &at.name), Rename::NoReplace)
                {
                    return Err(gone.into());
                }
                Ok(Outcome::Changed)
            }
        }
    }

    fn set_attrs(
        &self,
        batch: &mut Batch<F>,
        at: &Spot,
        expected: &Expected,
        attrs: Attrs,
        mtime: Option<Timestamp>,
    ) -> Result<Outcome, Stop> {
        let dir = self.dir(batch, &at.dir)?;
        self.check(&dir, at, expected)?;
        if expected.stat.kind == Some(Kind::Link) {
            return self.done(&dir, at, Kind::Link);
        }
        self.folder
            .set_attrs(&dir, &at.name, &expected.stat, attrs, mtime)
            .map_err(|fault| stop(fault, &at.path()))?;
        batch.entries.push((dir.clone(), at.name.clone()));
        let mut stat = self.folder.stat(&dir, &at.name).map_err(|fault| stop(fault, &at.path()))?;
        // RACE: an edit of the same size between the check and the setting of the time leaves its
        // trace only in the change time, which is ours. Small files are read again; in a larger
        // one the edit waits for the next edit or the slow re-read.
        if mtime.is_some() && stat.kind == Some(Kind::File) && stat.size <= REREAD_LEN_MAX {
            match (&expected.content, self.folder.content(&dir, &at.name)) {
                (_, Err(Fault::Gone(gone))) => return Err(gone.into()),
                (Some(content), Ok((now, found))) if found == *content => stat = now,
                _ => return Ok(Outcome::Changed),
            }
        }
        // A person's version, which may have come with other attributes than those just set.
        if !stat.same_inode(&expected.stat) || stat.size != expected.stat.size {
            return Ok(Outcome::Changed);
        }
        Ok(Outcome::Done { stat, kept: None })
    }
}

/// Returns whether two stats tell of the same version of the same inode; a rename alone changes
/// the change time.
/// Returns whether a file was modified so shortly before its last change (the rename that took it
/// away) that another modification may have left no trace.
fn is_racy(stat: &Stat) -> bool {
    let nanos = |time: Timestamp| i128::from(time.secs) * 1_000_000_000 + i128::from(time.nanos());
    (nanos(stat.ctime) - nanos(stat.mtime)).abs() <= RACY_NANOS
}
