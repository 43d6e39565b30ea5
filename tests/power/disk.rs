//! Disks that remember everything written to them: loop devices over files that this process serves
//! through FUSE. What the kernel's file system sends to the block device arrives here, and so do its
//! flushes (`fsync` of the file). From that the state of a disk after a power cut can be made.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use fuser::{
    BackgroundSession, FileAttr, FileType, Filesystem, MountOption, ReplyAttr, ReplyData,
    ReplyEmpty, ReplyEntry, ReplyOpen, ReplyWrite, Request,
};
use rustix::io::Errno;

use crate::support::Dice;

/// What a disk writes whole or not at all.
const BLOCK: usize = 4096;

/// The length of each disk.
const DISK_LEN: u64 = 64 << 20;

/// The kernel's file system, with no care that programs did not ask for: bytes may come to the disk
/// after the names and lengths that tell of them, also where a file is renamed over another.
const MOUNT: &[&str] = &["-o", "loop,data=writeback,noauto_da_alloc"];

const TTL: Duration = Duration::from_secs(3600);

/// What arrived at a disk, and when.
type Log = Vec<(SystemTime, Event)>;

/// What arrived at a disk.
enum Event {
    Write {
        disk: usize,
        at: u64,
        bytes: Vec<u8>,
    },
    /// All writes to this disk before this are on stable storage.
    Flush {
        disk: usize,
    },
}

/// What becomes of the writes that were not flushed when the power went.
#[derive(Debug, Clone, Copy)]
pub enum Fate {
    Lost,
    Kept,
    /// Each block for itself, kept with this chance in a hundred.
    Mixed(u64),
}

/// All disks of a recording, and what happened to them, in one order.
pub struct Disks {
    log: Arc<Mutex<Log>>,
    dir: PathBuf,
    points: Vec<PathBuf>,
    /// Serves until it is dropped.
    _session: BackgroundSession,
}

impl Disks {
    /// Makes a fresh file system for each of these directories, and mounts it there.
    pub fn mount(dir: &Path, points: Vec<PathBuf>) -> Self {
        let blocks = dir.join("blocks");
        fs::create_dir_all(&blocks).unwrap();
        let log = Arc::new(Mutex::new(Vec::new()));
        // What is made again of the disks is in memory: hundreds of them are mounted, one after the other.
        fs::create_dir_all(images(dir)).unwrap();
        run("mount", &["-t", "tmpfs", "-o", "size=1g", "tmpfs"], &[&images(dir)]);
        let mut files = Vec::new();
        for index in 0..points.len() {
            let base = dir.join(format!("base {index}"));
            File::create(&base).unwrap().set_len(DISK_LEN).unwrap();
            let features = "lazy_itable_init=0,lazy_journal_init=0,nodiscard";
            run("mkfs.ext4", &["-q", "-F", "-b", "4096", "-J", "size=4", "-E", features], &[&base]);
            let live = dir.join(format!("live {index}"));
            run("cp", &["--sparse=always"], &[&base, &live]);
            files.push(File::options().read(true).write(true).open(live).unwrap());
        }
        let recorder = Recorder { files, log: Arc::clone(&log) };
        let name = [MountOption::FSName("picloud-test".to_owned())];
        let session = fuser::spawn_mount2(recorder, &blocks, &name).unwrap();
        let disks = Self { log, dir: dir.to_owned(), points, _session: session };
        for (index, point) in disks.points.iter().enumerate() {
            fs::create_dir_all(point).unwrap();
            run("mount", MOUNT, &[&blocks.join(index.to_string()), point]);
        }
        disks
    }

    fn log(&self) -> MutexGuard<'_, Log> {
        self.log.lock().unwrap()
    }

    /// How much has happened until now: a moment at which the power can be cut.
    pub fn now(&self) -> usize {
        self.log().len()
    }

    /// When the power went, for a cut at this moment.
    pub fn time_of(&self, cut: usize) -> SystemTime {
        self.log()[cut - 1].0
    }

    pub fn flushes(&self) -> usize {
        self.log().iter().filter(|(_, event)| matches!(event, Event::Flush { .. })).count()
    }

    pub fn unmount(&self) {
        self.unmount_some(0..self.points.len());
    }

    /// Unmounts some of the disks; one that is mounted within another comes after it.
    fn unmount_some(&self, disks: impl DoubleEndedIterator<Item = usize>) {
        for disk in disks.rev() {
            run("umount", &[], &[&self.points[disk]]);
        }
    }

    /// Mounts all disks as they are when the power is cut at this moment.
    pub fn mount_after_cut(&self, cut: usize, dice: &mut Dice) -> Vec<Fate> {
        let fates: Vec<_> = self.points.iter().map(|_| any_fate(dice)).collect();
        for (disk, fate) in fates.iter().enumerate() {
            let log = self.log();
            let is_flush =
                |(_, event): &(_, Event)| matches!(event, Event::Flush { disk: of } if *of == disk);
            let flushed = log[..cut].iter().rposition(is_flush).unwrap_or(0);
            drop(log);
            self.mount_image(disk, cut, |index| {
                index < flushed
                    || match fate {
                        Fate::Lost => false,
                        Fate::Kept => true,
                        Fate::Mixed(chance) => dice.below(100) < *chance,
                    }
            });
        }
        fates
    }

    /// Every state of these disks that a cut after `first` can leave when each of them keeps either
    /// what was flushed or all that was written, in the order of the cuts. Each stands for the last
    /// moment at which it can be found, when most has been acknowledged.
    pub fn prefixes(&self, disks: &[usize], first: usize) -> Vec<Prefix> {
        let log = self.log();
        let mut written = vec![0; disks.len()];
        let mut flushed = written.clone();
        let mut found = BTreeMap::new();
        for (index, event) in log.iter().map(|(_, event)| Some(event)).chain([None]).enumerate() {
            if index >= first {
                for which in 0..1 << disks.len() {
                    let kept = |at: usize| {
                        if which >> at & 1 == 0 { flushed[at] } else { written[at] }
                    };
                    found.insert((0..disks.len()).map(kept).collect::<Vec<usize>>(), index);
                }
            }
            let place = |of: usize| disks.iter().position(|disk| *disk == of);
            match event {
                Some(Event::Write { disk, .. }) => {
                    if let Some(at) = place(*disk) {
                        written[at] += 1;
                    }
                }
                Some(Event::Flush { disk }) => {
                    if let Some(at) = place(*disk) {
                        flushed[at] = written[at];
                    }
                }
                None => {}
            }
        }
        let mut prefixes: Vec<_> = found
            .into_iter()
            .map(|(kept, cut)| Prefix { cut, kept: disks.iter().copied().zip(kept).collect() })
            .collect();
        prefixes.sort_by_key(|prefix| prefix.cut);
        prefixes
    }

    /// Mounts the disks of a prefix as it says, for as long as `look` takes.
    pub fn with_prefix<T>(&self, prefix: &Prefix, look: impl FnOnce() -> T) -> T {
        for (disk, kept) in &prefix.kept {
            let mut seen = 0;
            let mut last = None;
            self.mount_image(*disk, prefix.cut, |index| {
                if last.replace(index) != Some(index) {
                    seen += 1;
                }
                seen <= *kept
            });
        }
        let found = look();
        self.unmount_some(prefix.kept.iter().map(|(disk, _)| *disk));
        found
    }

    /// Mounts a disk with those blocks of what was written to it before the cut that are kept, by the
    /// numbers of the events that wrote them.
    fn mount_image(&self, disk: usize, cut: usize, mut is_kept: impl FnMut(usize) -> bool) {
        let base = self.dir.join(format!("base {disk}"));
        let image = images(&self.dir).join(disk.to_string());
        run("cp", &["--sparse=always"], &[&base, &image]);
        let file = File::options().write(true).open(&image).unwrap();
        for (index, (_, event)) in self.log()[..cut].iter().enumerate() {
            let Event::Write { disk: of, at, bytes } = event else { continue };
            if *of != disk {
                continue;
            }
            for (number, block) in bytes.chunks(BLOCK).enumerate() {
                if is_kept(index) {
                    file.write_all_at(block, at + (number * BLOCK) as u64).unwrap();
                }
            }
        }
        run("mount", MOUNT, &[&image, &self.points[disk]]);
    }
}

impl Drop for Disks {
    fn drop(&mut self) {
        // Left, it goes with the mount namespace.
        Command::new("umount").arg("--lazy").arg(images(&self.dir)).status().ok();
    }
}

/// Where the images of disks after a cut are.
fn images(dir: &Path) -> PathBuf {
    dir.join("images")
}

/// Disks that keep so many of the writes to them, from the first on.
#[derive(Debug)]
pub struct Prefix {
    /// The moment of the cut.
    pub cut: usize,
    /// Which disk, and how many of its writes it keeps.
    kept: Vec<(usize, usize)>,
}

fn any_fate(dice: &mut Dice) -> Fate {
    match dice.below(6) {
        0..3 => Fate::Lost,
        3 => Fate::Kept,
        _ => Fate::Mixed(10 + dice.below(81)),
    }
}

#[track_caller]
fn run(program: &str, args: &[&str], paths: &[&Path]) {
    let output = Command::new(program).args(args).args(paths).output().unwrap();
    assert!(
        output.status.success(),
        "{program} {args:?} {paths:?}: {}",
        String::from_utf8_lossy(&output.stderr)
    );
}

/// A directory with the files `0`, `1`, …, one per disk.
struct Recorder {
    files: Vec<File>,
    log: Arc<Mutex<Log>>,
}

/// The root is inode 1, disk N inode N + 2.
fn disk_of(ino: u64) -> usize {
    usize::try_from(ino).unwrap() - 2
}

fn attr(ino: u64) -> FileAttr {
    let is_dir = ino == 1;
    FileAttr {
        ino,
        size: if is_dir { 0 } else { DISK_LEN },
        blocks: DISK_LEN / 512,
        atime: UNIX_EPOCH,
        mtime: UNIX_EPOCH,
        ctime: UNIX_EPOCH,
        crtime: UNIX_EPOCH,
        kind: if is_dir { FileType::Directory } else { FileType::RegularFile },
        perm: if is_dir { 0o700 } else { 0o600 },
        nlink: 1,
        uid: 0,
        gid: 0,
        rdev: 0,
        blksize: 4096,
        flags: 0,
    }
}

impl Filesystem for Recorder {
    fn lookup(&mut self, _: &Request<'_>, _: u64, name: &OsStr, reply: ReplyEntry) {
        let disk = name.to_str().and_then(|name| name.parse::<usize>().ok());
        match disk.filter(|disk| *disk < self.files.len()) {
            Some(disk) => reply.entry(&TTL, &attr(disk as u64 + 2), 0),
            None => reply.error(Errno::NOENT.raw_os_error()),
        }
    }

    fn getattr(&mut self, _: &Request<'_>, ino: u64, _: Option<u64>, reply: ReplyAttr) {
        reply.attr(&TTL, &attr(ino));
    }

    fn open(&mut self, _: &Request<'_>, _: u64, _: i32, reply: ReplyOpen) {
        reply.opened(0, 0);
    }

    fn read(
        &mut self,
        _: &Request<'_>,
        ino: u64,
        _: u64,
        offset: i64,
        size: u32,
        _: i32,
        _: Option<u64>,
        reply: ReplyData,
    ) {
        let at = u64::try_from(offset).unwrap().min(DISK_LEN);
        let mut bytes = vec![0; usize::try_from(u64::from(size).min(DISK_LEN - at)).unwrap()];
        match self.files[disk_of(ino)].read_exact_at(&mut bytes, at) {
            Ok(()) => reply.data(&bytes),
            Err(_) => reply.error(Errno::IO.raw_os_error()),
        }
    }

    fn write(
        &mut self,
        _: &Request<'_>,
        ino: u64,
        _: u64,
        offset: i64,
        data: &[u8],
        _: u32,
        _: i32,
        _: Option<u64>,
        reply: ReplyWrite,
    ) {
        let (disk, at) = (disk_of(ino), u64::try_from(offset).unwrap());
        let event = Event::Write { disk, at, bytes: data.to_vec() };
        self.log.lock().unwrap().push((SystemTime::now(), event));
        match self.files[disk].write_all_at(data, at) {
            Ok(()) => reply.written(u32::try_from(data.len()).unwrap()),
            Err(_) => reply.error(Errno::IO.raw_os_error()),
        }
    }

    fn fsync(&mut self, _: &Request<'_>, ino: u64, _: u64, _: bool, reply: ReplyEmpty) {
        self.log.lock().unwrap().push((SystemTime::now(), Event::Flush { disk: disk_of(ino) }));
        reply.ok();
    }
}
