//! The careful procedures on a real disk: races, crashes at every step, unusual files.

use std::cell::Cell;
use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use tempfile::TempDir;

use super::*;
use crate::agent::ignore::Ignore;
use crate::content::{ChunkError, Chunker};
use crate::engine::apply::{Applier, GRACE, Job, Payload};
use crate::engine::folder::{Fault, Folder, FolderGone, Own, Rename};
use crate::engine::seam::{DirRef, DiskOp, Expected, Hashed, Look, Outcome, Spot, Stat};
use crate::model::{
    Attrs, Checked, Content, DriveId, Extent, FolderId, Kind, Name, NodeId, RelPath, Timestamp,
};

const TODAY: &str = "2026-11-23";
const IDENTITY: Identity =
    Identity { folder: FolderId::from_bytes([1; 16]), drive: DriveId::from_bytes([2; 16]) };
const NODE: NodeId = NodeId::from_bytes([7; 16]);
const MODE: Attrs = Attrs { mode: 0o644 };

struct World {
    dir: TempDir,
    folder: DiskFolder,
}

fn world() -> World {
    let dir = TempDir::new().unwrap();
    DiskFolder::link(dir.path(), IDENTITY, None).unwrap();
    let folder = DiskFolder::open(dir.path(), IDENTITY).unwrap();
    World { dir, folder }
}

fn name(text: &str) -> Name {
    Name::try_from(text).unwrap()
}

fn content(bytes: &[u8]) -> Content {
    Chunker::new().content_of(bytes).unwrap().content
}

fn time(secs: i64, nanos: u32) -> Timestamp {
    Timestamp::new(secs, nanos).unwrap()
}

impl World {
    fn path(&self, path: &str) -> PathBuf {
        self.dir.path().join(path)
    }

    fn write(&self, path: &str, bytes: &[u8]) {
        fs::write(self.path(path), bytes).unwrap();
    }

    fn read(&self, path: &str) -> String {
        fs::read_to_string(self.path(path)).unwrap()
    }

    fn at(&self, path: &str) -> Spot {
        let path = RelPath::parse(path.as_bytes()).unwrap();
        let (dir, name) = path.split_last().unwrap();
        let (_, stat) = self.folder.open_dir(&dir).unwrap();
        Spot {
            dir: DirRef { id: NodeId::ROOT, path: Arc::new(dir), ino: stat.ino },
            name: name.clone(),
        }
    }

    fn expected(&self, path: &str) -> Expected {
        let at = self.at(path);
        let (dir, _) = self.folder.open_dir(&at.dir.path).unwrap();
        let stat = self.folder.stat(&dir, &at.name).unwrap();
        let content =
            (stat.kind == Some(Kind::File)).then(|| self.folder.content(&dir, &at.name).unwrap().1);
        Expected { stat, content }
    }

    fn applier(&self) -> Applier<DiskFolder> {
        Applier::new(self.folder.clone(), "pi")
    }

    fn apply(&self, op: DiskOp, payload: Payload) -> Outcome {
        let mut applier = self.applier();
        apply_with(&mut applier, op, payload).unwrap()
    }

    /// All files outside `.picloud`, by path.
    fn files(&self) -> BTreeMap<String, Vec<u8>> {
        let mut files = BTreeMap::new();
        for entry in walkdir::WalkDir::new(self.dir.path()) {
            let entry = entry.unwrap();
            let path = entry.path().strip_prefix(self.dir.path()).unwrap();
            if path.starts_with(".picloud") || entry.file_type().is_dir() {
                continue;
            }
            let bytes = if entry.file_type().is_symlink() {
                fs::read_link(entry.path()).unwrap().into_os_string().into_vec()
            } else {
                fs::read(entry.path()).unwrap()
            };
            files.insert(path.display().to_string(), bytes);
        }
        files
    }

    fn leftovers(&self) -> Vec<PathBuf> {
        ["staging", "trash", "parked"]
            .iter()
            .flat_map(|own| fs::read_dir(self.path(".picloud").join(own)).unwrap())
            .map(|entry| entry.unwrap().path())
            .collect()
    }
}

fn apply_with<F: Folder>(
    applier: &mut Applier<F>,
    op: DiskOp,
    payload: Payload,
) -> Result<Outcome, FolderGone> {
    let job = Job { node: NODE, op, payload };
    let mut outcomes = applier.apply(&[job], TODAY, Duration::ZERO)?;
    assert_eq!(outcomes.len(), 1);
    Ok(outcomes.remove(0).1)
}

fn payload_of(bytes: &[u8]) -> Payload {
    if bytes.is_empty() { Payload::Empty } else { Payload::Chunk(Checked::of(bytes.to_vec())) }
}

fn write_op(at: Spot, bytes: &[u8], over: Option<Expected>, keep: bool) -> (DiskOp, Payload) {
    let op = DiskOp::Write {
        at,
        content: content(bytes),
        mtime: time(1_000_000_000, 5),
        attrs: MODE,
        over,
        keep,
    };
    (op, payload_of(bytes))
}

fn stat_done(outcome: &Outcome) -> Stat {
    match outcome {
        Outcome::Done { stat, .. } => *stat,
        other => panic!("{other:?}"),
    }
}

fn kept(outcome: &Outcome) -> String {
    match outcome {
        Outcome::Done { kept: Some(kept), .. } => kept.to_string(),
        other => panic!("{other:?}"),
    }
}

/// A folder that counts its operations, and stops for good before the one that is asked for (after
/// half of it, for the writing of a file), or does something just before a rename.
struct Watched<'a> {
    folder: DiskFolder,
    calls: Cell<u32>,
    stop_at: Option<u32>,
    /// Whether directories and everything cannot be made durable.
    fails_to_sync: bool,
    before_rename: Option<(u32, &'a dyn Fn())>,
    renames: Cell<u32>,
    before_list: Option<&'a dyn Fn()>,
    after_list: Option<&'a dyn Fn()>,
}

impl<'a> Watched<'a> {
    fn new(folder: &DiskFolder) -> Self {
        Self {
            folder: folder.clone(),
            calls: Cell::new(0),
            stop_at: None,
            fails_to_sync: false,
            before_rename: None,
            renames: Cell::new(0),
            before_list: None,
            after_list: None,
        }
    }

    fn before_rename(folder: &DiskFolder, count: u32, hook: &'a dyn Fn()) -> Self {
        Self { before_rename: Some((count, hook)), ..Self::new(folder) }
    }

    fn call(&self) -> Result<(), Fault> {
        let call = self.calls.get();
        self.calls.set(call + 1);
        if self.stop_at.is_some_and(|at| call >= at) {
            return Err(Fault::Gone(FolderGone { reason: "crashed".into() }));
        }
        Ok(())
    }
}

impl Folder for Watched<'_> {
    type Dir = <DiskFolder as Folder>::Dir;

    fn check(&self) -> Result<(), FolderGone> {
        self.folder.check()
    }

    fn open_dir(&self, path: &RelPath) -> Result<(Self::Dir, Stat), Fault> {
        self.folder.open_dir(path)
    }

    fn own_dir(&self, own: Own) -> Self::Dir {
        self.folder.own_dir(own)
    }

    fn keeps_name(&self, name: &Name) -> bool {
        self.folder.keeps_name(name)
    }

    fn stat(&self, dir: &Self::Dir, name: &Name) -> Result<Stat, Fault> {
        self.call()?;
        self.folder.stat(dir, name)
    }

    fn list(&self, dir: &Self::Dir) -> Result<Vec<Name>, Fault> {
        self.before_list.into_iter().for_each(|hook| hook());
        let names = self.folder.list(dir);
        self.after_list.into_iter().for_each(|hook| hook());
        names
    }

    fn read_link(&self, dir: &Self::Dir, name: &Name) -> Result<Vec<u8>, Fault> {
        self.folder.read_link(dir, name)
    }

    fn content(&self, dir: &Self::Dir, name: &Name) -> Result<(Stat, Content), Fault> {
        self.folder.content(dir, name)
    }

    fn make_file(
        &self,
        dir: &Self::Dir,
        name: &Name,
        bytes: &[u8],
        attrs: Attrs,
        mtime: Option<Timestamp>,
    ) -> Result<(), Fault> {
        if let Err(fault) = self.call() {
            let half = &bytes[..bytes.len() / 2];
            self.folder.make_file(dir, name, half, attrs, mtime)?;
            return Err(fault);
        }
        self.folder.make_file(dir, name, bytes, attrs, mtime)
    }

    fn read_file(&self, dir: &Self::Dir, name: &Name, limit: usize) -> Result<Vec<u8>, Fault> {
        self.folder.read_file(dir, name, limit)
    }

    fn make_dir(&self, dir: &Self::Dir, name: &Name, attrs: Attrs) -> Result<(), Fault> {
        self.call()?;
        self.folder.make_dir(dir, name, attrs)
    }

    fn make_link(&self, dir: &Self::Dir, name: &Name, target: &[u8]) -> Result<(), Fault> {
        self.call()?;
        self.folder.make_link(dir, name, target)
    }

    fn rename(
        &self,
        from: (&Self::Dir, &Name),
        to: (&Self::Dir, &Name),
        how: Rename,
    ) -> Result<(), Fault> {
        self.call()?;
        let count = self.renames.get();
        self.renames.set(count + 1);
        if let Some((at, hook)) = self.before_rename
            && at == count
        {
            hook();
        }
        self.folder.rename(from, to, how)
    }

    fn unlink(&self, dir: &Self::Dir, name: &Name) -> Result<(), Fault> {
        self.call()?;
        self.folder.unlink(dir, name)
    }

    fn remove_dir(&self, dir: &Self::Dir, name: &Name) -> Result<(), Fault> {
        self.call()?;
        self.folder.remove_dir(dir, name)
    }

    fn set_attrs(
        &self,
        dir: &Self::Dir,
        name: &Name,
        expected: &Stat,
        attrs: Attrs,
        mtime: Option<Timestamp>,
    ) -> Result<(), Fault> {
        self.call()?;
        self.folder.set_attrs(dir, name, expected, attrs, mtime)
    }

    fn sync_all(&self) -> Result<(), Fault> {
        self.call()?;
        if self.fails_to_sync {
            Err(Fault::Other("The disk reports an error".into()))
        } else {
            Ok(())
        }
    }

    fn sync_entry(&self, _: &Self::Dir, _: &Name) -> Result<(), Fault> {
        self.call()
    }

    fn sync_dir(&self, _: &Self::Dir) -> Result<(), Fault> {
        self.sync_all()
    }
}

#[test]
fn what_is_not_durable_is_not_done_and_the_old_version_stays() {
    let world = world();
    world.write("a", b"old");
    let mut watched = Watched::new(&world.folder);
    watched.fails_to_sync = true;
    let mut applier = Applier::new(watched, "pi");
    let (op, payload) = write_op(world.at("a"), b"new", Some(world.expected("a")), false);
    let outcome = apply_with(&mut applier, op, payload).unwrap();
    assert!(matches!(outcome, Outcome::Failed { .. }), "{outcome:?}");
    applier.reap(TODAY, GRACE * 2, 10).unwrap();
    assert!(world.leftovers().iter().any(|path| fs::read(path).unwrap() == b"old"));
    world.applier().recover(TODAY, |_| false).unwrap();
    assert_eq!((world.read("a").as_str(), world.leftovers().len()), ("new", 0));
}

#[test]
fn a_file_gets_its_bytes_mode_and_time_to_the_nanosecond() {
    let world = world();
    for (index, (mtime, mode)) in [
        (time(-1_000_000_000, 123_456_789), 0o600),
        (time(13_000_000_000, 999_999_999), 0o777),
        (time(0, 0), 0o444),
        (time(1_700_000_000, 1), 0o000),
    ]
    .into_iter()
    .enumerate()
    {
        let path = format!("f{index}");
        let op = DiskOp::Write {
            at: world.at(&path),
            content: content(b"hello"),
            mtime,
            attrs: Attrs { mode },
            over: None,
            keep: false,
        };
        let outcome = world.apply(op, payload_of(b"hello"));
        let stat = stat_done(&outcome);
        assert_eq!((stat.mtime, stat.attrs.mode, stat.size), (mtime, mode, 5));
        assert_eq!(world.expected(&path).stat, stat);
    }
    // Bytes that are not those of the content are never placed.
    let (op, _) = write_op(world.at("bad"), b"right", None, false);
    let outcome = world.apply(op, payload_of(b"wrong"));
    assert!(matches!(outcome, Outcome::Failed { .. }), "{outcome:?}");
    assert!(!world.path("bad").exists());
    assert_eq!(world.leftovers(), Vec::<PathBuf>::new());
}

#[test]
fn a_large_file_is_staged_in_any_order_and_holes_stay_holes() {
    let world = world();
    let mut bytes = vec![0_u8; 6 << 20];
    for (index, byte) in bytes[..3 << 20].iter_mut().enumerate() {
        *byte = ((index * index) >> 7) as u8 | 1;
    }
    bytes[5 << 20] = 1;
    let mut chunks = Vec::new();
    let chunked = Chunker::new()
        .read(&mut &*bytes, |extent, chunk: &[u8]| {
            if matches!(extent, Extent::Chunk { .. }) {
                chunks.push(chunk.to_vec());
            }
            Ok::<_, ChunkError>(())
        })
        .unwrap();
    let list = chunked.list.unwrap();
    let begin = || StagedFile::begin(&world.folder, &chunked.content, Some(&list)).unwrap();
    // Dropped unfinished, it leaves nothing; unfinished, it cannot be finished.
    assert!(begin().finish(MODE, time(1, 1)).is_err());
    assert_eq!(world.leftovers(), Vec::<PathBuf>::new());

    world.write("old", &bytes[..3 << 20]);
    let old = world.expected("old").stat;
    let old = world.folder.open_file(&world.at("old"), &old).unwrap();
    let mut staged = begin();
    let extents: Vec<_> = staged.extents().collect();
    let mut from_old = 0;
    for (index, (offset, extent)) in extents.iter().enumerate().rev() {
        let Extent::Chunk { .. } = extent else {
            continue;
        };
        let chunk = chunks.pop().unwrap();
        assert!(staged.write(index, &Checked::of(b"other bytes")).is_err());
        if staged.copy(index, &old, *offset).unwrap() {
            from_old += 1;
        } else {
            staged.write(index, &Checked::of(chunk)).unwrap();
        }
    }
    assert!(from_old > 2, "{from_old}");
    let payload = staged.finish(MODE, time(77, 7)).unwrap();
    let op = DiskOp::Write {
        at: world.at("new"),
        content: chunked.content,
        mtime: time(77, 7),
        attrs: MODE,
        over: None,
        keep: false,
    };
    assert_eq!(stat_done(&world.apply(op, payload)).mtime, time(77, 7));
    assert!(fs::read(world.path("new")).unwrap() == bytes);
    let on_disk = world.path("new").metadata().unwrap().blocks() * 512;
    assert!(on_disk < 4 << 20, "{on_disk}");

    let stat = world.expected("new").stat;
    let read = world.folder.hash(&world.at("new"), &stat, &mut Chunker::new(), |_, _| ());
    assert_eq!(read.list, Some(list));
    assert!(read.small.is_none());
}

#[test]
fn a_name_that_is_taken_is_left_alone() {
    let world = world();
    world.write("a", b"mine");
    let (op, payload) = write_op(world.at("a"), b"theirs", None, false);
    assert_eq!(world.apply(op, payload), Outcome::Taken);
    let make = |path: &str| DiskOp::MakeDir { at: world.at(path), attrs: MODE };
    assert_eq!(world.apply(make("a"), Payload::None), Outcome::Taken);
    let link = DiskOp::Link { at: world.at("a"), target: b"x".to_vec(), over: None, keep: false };
    assert_eq!(world.apply(link, Payload::None), Outcome::Taken);
    assert_eq!(world.read("a"), "mine");
    for op in [make(".picloud"), write_op(world.at(".picloud"), b"x", None, false).0] {
        let outcome = world.apply(op, payload_of(b"x"));
        assert!(matches!(outcome, Outcome::NameImpossible { .. }), "{outcome:?}");
    }
    assert_eq!(world.leftovers(), Vec::<PathBuf>::new());
}

/// In a storm of renames a file had another name for good on one device, and nobody was told.
#[test]
fn what_comes_and_goes_at_a_name_does_not_make_it_an_impossible_one() {
    let world = world();
    world.write("a", b"mine");
    world.write("twin", b"other");
    let (from, to) = (world.path("a"), world.path("b"));
    let (away, back) = (|| fs::rename(&from, &to).unwrap(), || fs::rename(&to, &from).unwrap());
    let mut watched = Watched::new(&world.folder);
    watched.before_list = Some(&away);
    watched.after_list = Some(&back);
    let make = DiskOp::MakeDir { at: world.at("a"), attrs: MODE };
    let outcome = apply_with(&mut Applier::new(watched, "pi"), make, Payload::None);
    assert_eq!(outcome.unwrap(), Outcome::Taken);
    assert_eq!(world.read("a"), "mine");
}

#[test]
fn an_edit_between_the_look_and_the_apply_stops_it() {
    let world = world();
    world.write("a", b"old");
    let seen = world.expected("a");
    world.write("a", b"own");
    let at = world.at("a");
    let (op, payload) = write_op(at.clone(), b"new", Some(seen), false);
    assert_eq!(world.apply(op, payload), Outcome::Changed);
    let remove = DiskOp::Remove { at: at.clone(), expected: seen };
    assert_eq!(world.apply(remove, Payload::None), Outcome::Changed);
    assert_eq!(world.read("a"), "own");
    // A directory that is another one now.
    let mut elsewhere = at;
    elsewhere.dir.path = Arc::new(RelPath::parse(b"d").unwrap());
    fs::create_dir(world.path("d")).unwrap();
    let (op, payload) = write_op(elsewhere, b"new", None, false);
    assert_eq!(world.apply(op, payload), Outcome::Changed);
    assert_eq!(world.files().len(), 1);
    assert_eq!(world.leftovers(), Vec::<PathBuf>::new());
}

#[test]
fn an_edit_in_the_last_moment_is_kept_as_a_conflict_copy() {
    type Edit = fn(&Path);
    let edits: [(&str, Edit); 4] = [
        ("in place", |path| fs::write(path, b"EDIT").unwrap()),
        ("same size", |path| fs::write(path, b"EDI").unwrap()),
        ("by rename", |path| {
            fs::write(path.with_extension("tmp"), b"EDIT").unwrap();
            fs::rename(path.with_extension("tmp"), path).unwrap();
        }),
        ("to a directory", |path| {
            fs::remove_file(path).unwrap();
            fs::create_dir(path).unwrap();
            fs::write(path.join("EDI"), b"EDI").unwrap();
        }),
    ];
    for (what, edit) in edits {
        let world = world();
        world.write("a.txt", b"old");
        // As fresh as possible, so that times alone do not tell.
        let seen = world.expected("a.txt");
        let path = world.path("a.txt");
        let hook = move || edit(&path);
        // The first rename is into the trash, the second the exchange.
        let mut applier = Applier::new(Watched::before_rename(&world.folder, 1, &hook), "pi");
        let (op, payload) = write_op(world.at("a.txt"), b"new", Some(seen), false);
        let outcome = apply_with(&mut applier, op, payload).unwrap();
        assert_eq!(kept(&outcome), "a (conflicted copy pi 2026-11-23).txt", "{what}");
        assert_eq!(world.read("a.txt"), "new", "{what}");
        let edited = world.files().into_iter().any(|(path, bytes)| {
            path.starts_with("a (conflicted copy pi 2026-11-23).txt") && bytes.starts_with(b"EDI")
        });
        assert!(edited, "{what}: {:?}", world.files());
        assert_eq!(world.leftovers(), Vec::<PathBuf>::new(), "{what}");
    }
}

#[test]
fn an_edit_in_the_last_moment_undoes_a_removal_and_a_move() {
    let world = world();
    for op in ["remove", "move", "aside", "park"] {
        world.write("a", b"old");
        let expected = world.expected("a");
        let path = world.path("a");
        let hook = || fs::write(&path, b"EDIT").unwrap();
        let mut applier = Applier::new(Watched::before_rename(&world.folder, 0, &hook), "pi");
        let at = world.at("a");
        let op = match op {
            "remove" => DiskOp::Remove { at, expected },
            "aside" => DiskOp::SetAside { at, expected },
            to => {
                DiskOp::Move { from: Some(at), to: (to == "move").then(|| world.at("b")), expected }
            }
        };
        let outcome = apply_with(&mut applier, op, Payload::None).unwrap();
        assert_eq!(outcome, Outcome::Changed);
        assert_eq!(world.read("a"), "EDIT");
        assert_eq!(world.files().len(), 1);
        fs::remove_file(world.path("a")).unwrap();
    }
}

#[test]
fn what_is_to_be_kept_is_kept_under_the_first_free_name() {
    let world = world();
    world.write("a", b"old");
    world.write("a (conflicted copy pi 2026-11-23)", b"taken");
    let seen = world.expected("a");
    let (op, payload) = write_op(world.at("a"), b"new", Some(seen), true);
    let outcome = world.apply(op, payload);
    assert_eq!(kept(&outcome), "a (conflicted copy pi 2026-11-23 2)");
    assert_eq!(stat_done(&outcome), world.expected("a").stat);
    assert_eq!(world.read("a (conflicted copy pi 2026-11-23 2)"), "old");
    let aside = DiskOp::SetAside { at: world.at("a"), expected: world.expected("a") };
    let outcome = world.apply(aside, Payload::None);
    assert_eq!(kept(&outcome), "a (conflicted copy pi 2026-11-23 3)");
    assert_eq!(world.leftovers(), Vec::<PathBuf>::new());
}

#[test]
fn a_replaced_file_that_is_still_written_to_comes_back() {
    let world = world();
    let mut applier = world.applier();
    world.write("quiet", b"old");
    world.write("busy", b"old");
    world.write("removed", b"old");
    let descriptor = fs::OpenOptions::new().write(true).open(world.path("busy")).unwrap();
    for path in ["quiet", "busy"] {
        let over = world.expected(path);
        let (op, payload) = write_op(world.at(path), b"new", Some(over), false);
        stat_done(&apply_with(&mut applier, op, payload).unwrap());
    }
    let remove = DiskOp::Remove { at: world.at("removed"), expected: world.expected("removed") };
    stat_done(&apply_with(&mut applier, remove, Payload::None).unwrap());
    descriptor.write_all_at(b"late", 0).unwrap();

    let early = GRACE - Duration::from_millis(1);
    assert_eq!(applier.reap(TODAY, early, 100).unwrap(), []);
    assert_eq!(world.leftovers().len(), 6, "three files and three notes");
    assert_eq!(applier.reap_at(), Some(GRACE));
    let back = applier.reap(TODAY, GRACE, 100).unwrap();
    assert_eq!(back.len(), 1);
    assert_eq!(back[0].to_string(), "busy (conflicted copy pi 2026-11-23)");
    assert_eq!(world.read("busy (conflicted copy pi 2026-11-23)"), "late");
    assert_eq!(world.read("busy"), "new");
    assert_eq!(world.files().len(), 3);
    assert_eq!(world.leftovers(), Vec::<PathBuf>::new());
    assert_eq!(applier.reap_at(), None);
}

#[test]
fn links_and_directories_are_made_replaced_and_removed() {
    let world = world();
    let link = |target: &[u8], over| DiskOp::Link {
        at: world.at("l"),
        target: target.to_vec(),
        over,
        keep: false,
    };
    let stat = stat_done(&world.apply(link(b"../out side\n", None), Payload::None));
    assert_eq!((stat.kind, stat.attrs.mode), (Some(Kind::Link), 0));
    let outcome = world.apply(link(b"\xff", Some(world.expected("l"))), Payload::None);
    assert_eq!(stat_done(&outcome), world.expected("l").stat);
    assert_eq!(fs::read_link(world.path("l")).unwrap().as_os_str().as_bytes(), b"\xff");
    let dir = |mode| DiskOp::MakeDir { at: world.at("d"), attrs: Attrs { mode } };
    let stat = stat_done(&world.apply(dir(0o777), Payload::None));
    assert_eq!(stat.attrs.mode, 0o777, "whatever the umask");
    world.write("d/x", b"x");
    let remove = |path: &str| DiskOp::Remove { at: world.at(path), expected: world.expected(path) };
    assert_eq!(world.apply(remove("d"), Payload::None), Outcome::NotEmpty);
    fs::remove_file(world.path("d/x")).unwrap();
    stat_done(&world.apply(remove("d"), Payload::None));
    stat_done(&world.apply(remove("l"), Payload::None));
    assert!(world.files().is_empty() && !world.path("d").exists());
    world.applier().recover(TODAY, |_| false).unwrap();
    assert_eq!(world.leftovers(), Vec::<PathBuf>::new());
}

#[test]
fn attributes_are_set_on_what_is_expected_only() {
    let world = world();
    world.write("a", b"x");
    fs::create_dir(world.path("d")).unwrap();
    let op = |path: &str, mode| DiskOp::SetAttrs {
        at: world.at(path),
        expected: world.expected(path),
        attrs: Attrs { mode },
        mtime: Some(time(5, 6)),
    };
    let stale = op("a", 0o640);
    world.write("a", b"yy");
    assert_eq!(world.apply(stale, Payload::None), Outcome::Changed);
    let stat = stat_done(&world.apply(op("a", 0o640), Payload::None));
    assert_eq!((stat.attrs.mode, stat.mtime), (0o640, time(5, 6)));
    assert_eq!(stat, world.expected("a").stat);
    let stat = stat_done(&world.apply(op("d", 0o500), Payload::None));
    assert_eq!(stat.attrs.mode, 0o500);
    let file = fs::metadata(world.path("a")).unwrap();
    assert_eq!(file.permissions().mode() & 0o7777, 0o640);
}

#[test]
fn a_parked_directory_can_be_worked_in_and_comes_out_again() {
    let world = world();
    fs::create_dir_all(world.path("d/e")).unwrap();
    let park = DiskOp::Move { from: Some(world.at("d")), to: None, expected: world.expected("d") };
    let stat = stat_done(&world.apply(park, Payload::None));
    let inside = format!(".picloud/parked/{NODE}");
    let at = Spot {
        dir: DirRef {
            id: NODE,
            path: Arc::new(RelPath::parse(inside.as_bytes()).unwrap()),
            ino: stat.ino,
        },
        name: name("f"),
    };
    let (op, payload) = write_op(at, b"inside", None, false);
    stat_done(&world.apply(op, payload));
    // The engine knows of it: it stays where it is.
    let recovered = world.applier().recover(TODAY, |node| node == NODE).unwrap();
    assert_eq!(recovered.brought_back, []);
    let unpark = DiskOp::Move {
        from: None,
        to: Some(world.at("b")),
        expected: Expected { stat, content: None },
    };
    stat_done(&world.apply(unpark, Payload::None));
    assert_eq!(world.read("b/f"), "inside");
    assert_eq!(world.leftovers(), Vec::<PathBuf>::new());
}

type Files = BTreeMap<String, Vec<u8>>;

/// What a stopped run left is brought to an end, and each version is where it must be.
fn check_crashes(
    what: &str,
    make: &dyn Fn(&World) -> (DiskOp, Payload),
    edit: Option<u32>,
    check: &dyn Fn(&Files) -> bool,
) {
    for stop_at in 0.. {
        let world = world();
        world.write("a", b"old");
        fs::create_dir(world.path("d")).unwrap();
        world.write("d/b", b"other");
        let (op, payload) = make(&world);
        let path = world.path("a");
        let is_edited = Cell::new(false);
        let hook = || {
            is_edited.set(true);
            fs::write(&path, b"EDIT").unwrap();
        };
        let mut watched = match edit {
            Some(rename) => Watched::before_rename(&world.folder, rename, &hook),
            None => Watched::new(&world.folder),
        };
        watched.stop_at = Some(stop_at);
        let mut applier = Applier::new(watched, "pi");
        let outcome = apply_with(&mut applier, op, payload);
        drop(applier);
        // And the recovery stops at every step, too.
        for stop_at in 0..30 {
            let mut watched = Watched::new(&world.folder);
            watched.stop_at = Some(stop_at);
            if Applier::new(watched, "pi").recover(TODAY, |_| false).is_ok() {
                break;
            }
        }
        world.applier().recover(TODAY, |_| false).unwrap();
        assert_eq!(world.leftovers(), Vec::<PathBuf>::new(), "{what} at {stop_at}");
        let files = world.files();
        let known: [&[u8]; 4] = [b"old", b"new", b"EDIT", b"other"];
        for (path, bytes) in &files {
            assert!(
                known.contains(&bytes.as_slice()),
                "{what} at {stop_at}: {path} is torn: {bytes:?}"
            );
        }
        let contents: BTreeSet<&[u8]> = files.values().map(Vec::as_slice).collect();
        assert!(contents.contains(&b"other"[..]), "{what} at {stop_at}");
        if is_edited.get() {
            assert!(contents.contains(&b"EDIT"[..]), "{what} at {stop_at}: {files:?}");
        } else {
            assert!(check(&files), "{what} at {stop_at}: {files:?}");
        }
        if outcome.is_ok() {
            assert!(stop_at > 2, "{what}: nothing was tried");
            break;
        }
    }
}

#[test]
fn a_crash_at_any_step_loses_and_tears_nothing() {
    let is = |files: &Files, path: &str, bytes: &[u8]| {
        files.get(path).is_some_and(|found| found == bytes)
    };
    let over =
        |world: &World, keep| write_op(world.at("a"), b"new", Some(world.expected("a")), keep);
    let old_or_new = |files: &Files| is(files, "a", b"old") || is(files, "a", b"new");
    check_crashes("write", &|world| write_op(world.at("n"), b"new", None, false), None, &|files| {
        is(files, "a", b"old")
    });
    for edit in [None, Some(1)] {
        check_crashes("replace", &|world| over(world, false), edit, &old_or_new);
    }
    check_crashes("replace and keep", &|world| over(world, true), None, &|files| {
        old_or_new(files) && files.values().any(|bytes| bytes == b"old")
    });
    let link = |world: &World| DiskOp::Link {
        at: world.at("a"),
        target: b"new".to_vec(),
        over: Some(world.expected("a")),
        keep: false,
    };
    check_crashes("link", &|w| (link(w), Payload::None), None, &old_or_new);
    for edit in [None, Some(0)] {
        let remove =
            |world: &World| DiskOp::Remove { at: world.at("a"), expected: world.expected("a") };
        let both = |_: &Files| true;
        check_crashes("remove", &|w| (remove(w), Payload::None), edit, &both);
        for to in ["d/c", ""] {
            let moved = |world: &World| DiskOp::Move {
                from: Some(world.at("a")),
                to: (!to.is_empty()).then(|| world.at(to)),
                expected: world.expected("a"),
            };
            check_crashes("move", &|w| (moved(w), Payload::None), edit, &|files| {
                is(files, "a", b"old") || is(files, "d/c", b"old")
            });
        }
    }
}

#[test]
fn what_a_crash_left_goes_back_to_its_directory_or_the_root() {
    for has_dir in [true, false] {
        let world = world();
        fs::create_dir(world.path("d")).unwrap();
        world.write("d/a.txt", b"old");
        let path = world.path("d/a.txt");
        let hook = || fs::write(&path, b"EDIT").unwrap();
        let over = world.expected("d/a.txt");
        let (op, payload) = write_op(world.at("d/a.txt"), b"new", Some(over), false);
        let mut watched = Watched::before_rename(&world.folder, 1, &hook);
        // Note, file, stat, barrier, check, rename, exchange: stopped before it is examined.
        watched.stop_at = Some(7);
        apply_with(&mut Applier::new(watched, "pi"), op, payload).unwrap_err();
        assert_eq!(world.read("d/a.txt"), "new");
        if !has_dir {
            fs::remove_dir_all(world.path("d")).unwrap();
        }
        let recovered = world.applier().recover(TODAY, |_| false).unwrap();
        let copy = "a (conflicted copy pi 2026-11-23).txt";
        let copy = if has_dir { format!("d/{copy}") } else { copy.into() };
        assert_eq!(recovered.brought_back[0].to_string(), copy);
        assert_eq!(world.read(&copy), "EDIT");
        assert_eq!(world.leftovers(), Vec::<PathBuf>::new());
    }
}

#[test]
fn what_lost_its_bytes_with_the_power_is_no_version() {
    for is_after_power_cut in [true, false] {
        let world = world();
        world.write("a", b"old");
        let path = world.path("a");
        let hook = || fs::write(&path, b"").unwrap();
        let over = world.expected("a");
        let (op, payload) = write_op(world.at("a"), b"new", Some(over), false);
        let mut watched = Watched::before_rename(&world.folder, 1, &hook);
        // As in the test before: stopped before what came out is examined.
        watched.stop_at = Some(7);
        apply_with(&mut Applier::new(watched, "pi"), op, payload).unwrap_err();
        assert_eq!(world.read("a"), "new");
        let mut applier = world.applier().after_power_cut(is_after_power_cut);
        let recovered = applier.recover(TODAY, |_| false).unwrap();
        // Without a power cut it was a person who emptied it.
        assert_eq!(recovered.brought_back.is_empty(), is_after_power_cut);
        assert_eq!(world.leftovers(), Vec::<PathBuf>::new());
    }
}

#[test]
fn a_link_swapped_in_for_a_directory_leads_nowhere() {
    let world = world();
    let outside = TempDir::new().unwrap();
    fs::create_dir(world.path("d")).unwrap();
    symlink(outside.path(), world.path("other")).unwrap();
    let at = world.at("d/x");
    let stop = Arc::new(AtomicBool::new(false));
    let swapper = std::thread::spawn({
        let (stop, root) = (stop.clone(), world.dir.path().to_owned());
        move || {
            while !stop.load(Ordering::Relaxed) {
                rustix::fs::renameat_with(
                    rustix::fs::CWD,
                    root.join("d"),
                    rustix::fs::CWD,
                    root.join("other"),
                    rustix::fs::RenameFlags::EXCHANGE,
                )
                .unwrap();
            }
        }
    });
    let (mut placed, mut refused) = (0, 0);
    for index in 0..10_000 {
        if placed > 50 && refused > 50 {
            break;
        }
        let mut at = at.clone();
        at.name = name(&format!("f{index}"));
        let op = DiskOp::MakeDir { at, attrs: MODE };
        match world.apply(op, Payload::None) {
            Outcome::Done { .. } => placed += 1,
            Outcome::Changed => refused += 1,
            other => panic!("{other:?}"),
        }
    }
    stop.store(true, Ordering::Relaxed);
    swapper.join().unwrap();
    assert!(placed > 0 && refused > 0, "{placed} {refused}");
    assert_eq!(fs::read_dir(outside.path()).unwrap().count(), 0);
}

#[test]
fn any_name_and_any_depth_is_written_and_looked_at() {
    let world = world();
    let names = [
        Name::new(vec![b'x'; 255]).unwrap(),
        Name::new(vec![0xff, 0xfe]).unwrap(),
        name("new\nline"),
        name("\u{e9}"),
        name("e\u{301}"),
        name(" '\"\\ "),
    ];
    for name in &names {
        let mut at = world.at("x");
        at.name = name.clone();
        let (op, payload) = write_op(at, b"x", None, false);
        stat_done(&world.apply(op, payload));
    }
    let ignore = Ignore::new(&[]).unwrap();
    let mut root = world.at("x").dir;
    let Look::Entries { entries, .. } = world.folder.look(&root, None, &ignore).unwrap() else {
        panic!("the root cannot be looked at");
    };
    let found: BTreeSet<_> = entries.into_iter().map(|seen| seen.name).collect();
    assert_eq!(found, names.into_iter().collect());

    // Deeper than any path the kernel takes at once.
    let mut path = RelPath::ROOT;
    for _ in 0..20 {
        let at = Spot {
            dir: DirRef {
                id: NODE,
                ino: world.folder.open_dir(&path).unwrap().1.ino,
                path: Arc::new(path.clone()),
            },
            name: Name::new(vec![b'd'; 250]).unwrap(),
        };
        path = at.path();
        let op = DiskOp::MakeDir { at, attrs: Attrs { mode: 0o755 } };
        stat_done(&world.apply(op, Payload::None));
    }
    assert!(path.to_bytes().len() > 5000);
    root.ino = world.folder.open_dir(&path).unwrap().1.ino;
    root.path = Arc::new(path);
    let look = world.folder.look(&root, None, &ignore).unwrap();
    assert!(matches!(look, Look::Entries { entries, .. } if entries.is_empty()));
}

#[test]
fn a_look_tells_what_is_there_and_opens_nothing_special() {
    let world = world();
    world.write("file", b"12345");
    world.write("file~", b"x");
    symlink("/etc/passwd", world.path("link")).unwrap();
    fs::create_dir(world.path("dir")).unwrap();
    let fifo = world.path("fifo");
    let mode = rustix::fs::Mode::from_raw_mode(0o600);
    rustix::fs::mkfifoat(rustix::fs::CWD, &fifo, mode).unwrap();
    let _socket = std::os::unix::net::UnixListener::bind(world.path("socket")).unwrap();
    let ignore = Ignore::new(&[]).unwrap();
    let root = world.at("x").dir;
    let Look::Entries { dir, mut entries } = world.folder.look(&root, None, &ignore).unwrap()
    else {
        panic!("the root cannot be looked at");
    };
    assert_eq!((dir.kind, dir.ino), (Some(Kind::Dir), root.ino));
    entries.sort_by(|a, b| a.name.cmp(&b.name));
    let told: Vec<_> = entries
        .iter()
        .map(|seen| {
            let found = seen.found.as_ref().unwrap();
            (seen.name.to_string(), found.stat.kind, found.ignored)
        })
        .collect();
    let expected = [
        ("dir", Some(Kind::Dir), false),
        ("fifo", None, false),
        ("file", Some(Kind::File), false),
        ("file~", Some(Kind::File), true),
        ("link", Some(Kind::Link), false),
        ("socket", None, false),
    ];
    assert_eq!(told, expected.map(|(n, k, i)| (n.to_owned(), k, i)));
    let link = entries[4].found.as_ref().unwrap();
    assert_eq!(link.target.as_deref(), Some(&b"/etc/passwd"[..]));

    let names = [name("file"), name("none"), name(".picloud")];
    let look = world.folder.look(&root, Some(&names), &ignore).unwrap();
    let Look::Entries { entries, .. } = look else {
        panic!("the names cannot be looked at");
    };
    let there: Vec<_> = entries.iter().map(|seen| seen.found.is_some()).collect();
    assert_eq!(there, [true, false, false]);

    for special in ["fifo", "link", "dir"] {
        let stat = world.expected(special).stat;
        let read = world.folder.hash(&world.at(special), &stat, &mut Chunker::new(), |_, _| ());
        assert_eq!(read.hashed, Hashed::Changed, "{special}");
    }
    let mut gone = root.clone();
    gone.path = Arc::new(RelPath::parse(b"link").unwrap());
    assert_eq!(world.folder.look(&gone, None, &ignore).unwrap(), Look::Gone);
    gone.path = Arc::new(RelPath::parse(b"dir").unwrap());
    assert_eq!(world.folder.look(&gone, None, &ignore).unwrap(), Look::Gone);
    gone.path = Arc::new(RelPath::parse(b".picloud/trash").unwrap());
    assert_eq!(world.folder.look(&gone, None, &ignore).unwrap(), Look::Gone);
}

#[test]
fn a_file_that_changes_while_it_is_read_is_not_told() {
    let world = world();
    let path = world.path("a");
    let mut chunker = Chunker::new();
    let limit = std::time::Instant::now() + Duration::from_secs(10);
    let (at, stat) = loop {
        world.write("a", b"one");
        let (at, stat) = (world.at("a"), world.expected("a").stat);
        let fresh = world.folder.hash(&at, &stat, &mut chunker, |_, _| ());
        assert_eq!(fresh.small.as_deref(), Some(&b"one"[..]));
        match fresh.hashed {
            Hashed::Content { racy: true, content: c, .. } if c == content(b"one") => {
                break (at, stat);
            }
            // A busy machine may have read it late.
            hashed => assert!(std::time::Instant::now() < limit, "{hashed:?}"),
        }
    };
    loop {
        let settled = world.folder.hash(&at, &stat, &mut chunker, |_, _| ());
        if matches!(settled.hashed, Hashed::Content { racy: false, .. }) {
            break;
        }
        assert!(std::time::Instant::now() < limit, "it stays racy");
    }
    let edited = world.folder.hash(&at, &stat, &mut chunker, |_, _| {
        fs::write(&path, b"two").unwrap();
    });
    assert_eq!(edited.hashed, Hashed::Changed);
    fs::remove_file(&path).unwrap();
    let gone = world.folder.hash(&at, &stat, &mut chunker, |_, _| ());
    assert_eq!(gone.hashed, Hashed::Changed);
}

#[test]
fn without_its_identity_the_folder_is_gone_not_empty() {
    let world = world();
    let ignore = Ignore::new(&[]).unwrap();
    let root = world.at("x").dir;
    let (op, payload) = write_op(world.at("x"), b"x", None, false);
    let identity = world.path(".picloud/identity");
    let aside = world.path("identity");
    fs::rename(&identity, &aside).unwrap();
    assert!(world.folder.look(&root, None, &ignore).is_err());
    assert!(apply_with(&mut world.applier(), op.clone(), payload.clone()).is_err());
    // A copy of it, from a backup say, is as good; another folder's is not.
    fs::copy(&aside, &identity).unwrap();
    assert!(world.folder.look(&root, None, &ignore).is_ok());
    let text = fs::read_to_string(&aside).unwrap();
    fs::write(&aside, text.replace("0101", "0303")).unwrap();
    fs::rename(&aside, &identity).unwrap();
    assert!(world.folder.look(&root, None, &ignore).is_err());
    // Another directory in the folder's place, as an unmounted disk leaves it.
    let parent = TempDir::new().unwrap();
    let path = parent.path().join("folder");
    DiskFolder::link(&path, IDENTITY, None).unwrap();
    let folder = DiskFolder::open(&path, IDENTITY).unwrap();
    assert!(matches!(DiskFolder::open(&path, IDENTITY), Err(FolderError::Busy { .. })));
    fs::rename(&path, parent.path().join("moved")).unwrap();
    assert!(folder.check().is_err());
    fs::create_dir(&path).unwrap();
    assert!(folder.check().is_err());
    assert!(matches!(DiskFolder::open(&path, IDENTITY), Err(FolderError::NotLinked { .. })));
    DiskFolder::link(&path, IDENTITY, None).unwrap();
    assert!(folder.check().is_err(), "the same identity elsewhere");
    let other = Identity { folder: FolderId::from_bytes([9; 16]), ..IDENTITY };
    assert!(matches!(DiskFolder::link(&path, other, None), Err(FolderError::OtherIdentity { .. })));
}

#[test]
fn a_directory_that_goes_away_between_opening_and_listing_is_gone_not_unreadable() {
    let world = world();
    let ignore = Ignore::new(&[]).unwrap();
    fs::create_dir(world.path("d")).unwrap();
    let ino = fs::metadata(world.path("d")).unwrap().ino();
    let path = Arc::new(RelPath::parse(b"d").unwrap());
    let dir = DirRef { id: NODE, path, ino };
    let open = world.folder.open_for_look(&dir).unwrap().unwrap();
    fs::remove_dir(world.path("d")).unwrap();
    assert_eq!(open.look(None, &ignore).unwrap(), Look::Gone);
    fs::create_dir(world.path("other")).unwrap();
    fs::rename(world.path("other"), world.path("d")).unwrap();
    assert_eq!(open.look(None, &ignore).unwrap(), Look::Gone);
}

#[test]
fn the_pool_keeps_the_order_and_reports_every_operation() {
    let world = world();
    let (sender, reports) = std::sync::mpsc::channel();
    let pool =
        ApplyPool::start(world.applier(), move |report| sender.send(report).unwrap()).unwrap();
    let node = |index: u8| NodeId::from_bytes([index; 16]);
    let at = |path: &str| Spot { dir: world.at("x").dir, name: name(path) };
    for index in 0..200_u8 {
        let op = if index == 0 {
            DiskOp::MakeDir { at: at("d0"), attrs: MODE }
        } else {
            let (op, _) = write_op(at(&format!("f{index}")), &[index], None, false);
            op
        };
        pool.submit(Job { node: node(index), op, payload: payload_of(&[index]) }).unwrap();
    }
    drop(pool);
    let told: Vec<_> = reports
        .iter()
        .map(|report| match report {
            Report::Applied(node, Outcome::Done { .. }) => node,
            other => panic!("{other:?}"),
        })
        .collect();
    assert_eq!(told, (0..200).map(node).collect::<Vec<_>>());
    assert_eq!(world.files().len(), 199);
    assert_eq!(world.leftovers(), Vec::<PathBuf>::new());
}

#[test]
fn a_gone_folder_ends_the_pool() {
    let world = world();
    let (sender, reports) = std::sync::mpsc::channel();
    let pool =
        ApplyPool::start(world.applier(), move |report| sender.send(report).unwrap()).unwrap();
    let (op, payload) = write_op(world.at("x"), b"x", None, false);
    fs::remove_file(world.path(".picloud/identity")).unwrap();
    let job = Job { node: NODE, op, payload };
    pool.submit(job.clone()).unwrap();
    assert!(matches!(reports.recv().unwrap(), Report::Gone(_)));
    assert!(reports.recv().is_err(), "nothing after that");
    assert_eq!(pool.submit(job), Err(PoolClosed));
}

/// Numbers for a person: `cargo test --release --lib disk::tests::speed -- --ignored --nocapture`.
#[test]
#[ignore = "a measurement"]
fn speed() {
    let world = world();
    let (sender, reports) = std::sync::mpsc::channel();
    let pool =
        ApplyPool::start(world.applier(), move |report| sender.send(report).unwrap()).unwrap();
    let begin = std::time::Instant::now();
    let root = world.at("x").dir;
    let job = |index: u32, bytes: &[u8]| {
        let at = Spot { dir: root.clone(), name: name(&format!("f{index}")) };
        let (op, payload) = write_op(at, bytes, None, false);
        Job { node: NODE, op, payload }
    };
    for index in 0..5 {
        let start = std::time::Instant::now();
        pool.submit(job(index, &[1; 1024])).unwrap();
        reports.recv().unwrap();
        println!("one file of 1 KiB: {:?} until durable", start.elapsed());
    }
    let count = 20_000;
    let start = std::time::Instant::now();
    for index in 0..count {
        pool.submit(job(index + 10, &index.to_be_bytes().repeat(256))).unwrap();
    }
    for _ in 0..count {
        reports.recv().unwrap();
    }
    let rate = f64::from(count) / start.elapsed().as_secs_f64();
    println!("{count} files of 1 KiB: {rate:.0} a second");
    let ignore = Ignore::new(&[]).unwrap();
    // By the processor's time, which other work on the machine does not change.
    let processor = || {
        let time = rustix::time::clock_gettime(rustix::time::ClockId::ThreadCPUTime);
        Duration::new(time.tv_sec.unsigned_abs(), 0)
            + Duration::from_nanos(time.tv_nsec.unsigned_abs())
    };
    let start = processor();
    for _ in 0..10 {
        world.folder.look(&root, None, &ignore).unwrap();
    }
    let rate = f64::from(count * 10) / (processor() - start).as_secs_f64();
    println!("look: {rate:.0} entries a second");
    let start = processor();
    let mut chunker = Chunker::new();
    let Look::Entries { entries, .. } = world.folder.look(&root, None, &ignore).unwrap() else {
        panic!("the root cannot be looked at");
    };
    for seen in &entries {
        let at = Spot { dir: root.clone(), name: seen.name.clone() };
        let stat = seen.found.as_ref().unwrap().stat;
        world.folder.hash(&at, &stat, &mut chunker, |_, _| ());
    }
    let rate = f64::from(count) / (processor() - start).as_secs_f64();
    println!("hash: {rate:.0} files of 1 KiB a second");
    println!("in all {:?}", begin.elapsed());
}
