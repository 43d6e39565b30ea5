//! The database against the trees in memory: whatever is written, both answer the same.

use super::*;
use crate::engine::memory::MemoryTrees;
use crate::engine::seam::Stat;
use crate::model::{Attrs, ChunkId, Digest, Kind, Lineage, Rev, Timestamp};

const FOLDER: FolderId = FolderId::from_bytes([1; 16]);
const DRIVE: DriveId = DriveId::from_bytes([2; 16]);

fn open(path: &Path) -> SqliteTrees {
    let opened = SqliteTrees::open(path, FOLDER, DRIVE).unwrap();
    assert_eq!(opened.set_aside, None);
    opened.trees
}

/// A small generator: the same seed, the same story.
struct Dice(u64);

impl Dice {
    fn roll(&mut self, sides: u64) -> u64 {
        self.0 =
            self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % sides
    }

    fn id(&mut self) -> NodeId {
        let mut bytes = [0; 16];
        bytes[3] = u8::try_from(self.roll(24)).unwrap();
        NodeId::from_bytes(bytes)
    }

    fn name(&mut self) -> Name {
        match self.roll(7) {
            6 => Name::try_from("n (conflicted copy pi 2026-11-23)").unwrap(),
            number => Name::new(format!("n{number}")).unwrap(),
        }
    }

    fn content(&mut self) -> Content {
        match self.roll(4) {
            0 => Content::Empty,
            1 => Content::List {
                id: ListId::from_bytes([u8::try_from(self.roll(3)).unwrap(); 32]),
                len: 3_000_000 + self.roll(2),
            },
            _ => Content::Chunk {
                id: ChunkId::from_bytes([u8::try_from(self.roll(3)).unwrap(); 32]),
                len: 1 + u32::try_from(self.roll(9)).unwrap(),
            },
        }
    }

    fn time(&mut self) -> Timestamp {
        Timestamp::new(i64::try_from(self.roll(3)).unwrap() - 1, 7).unwrap()
    }

    fn node(&mut self) -> Node {
        Node {
            place: Place { parent: self.id(), name: self.name() },
            body: match self.roll(4) {
                0 => Body::Dir,
                1 => Body::Link { target: vec![0xff, b'x'] },
                _ => Body::File { content: self.content(), mtime: self.time() },
            },
            attrs: Attrs::from_mode(0o644),
        }
    }

    fn local(&mut self, node: &Node) -> Local {
        let (body, kind, mtime) = match &node.body {
            Body::Dir => (LocalBody::Dir, Kind::Dir, self.time()),
            Body::Link { target } => (LocalBody::Link(target.clone()), Kind::Link, self.time()),
            Body::File { content, mtime } => {
                (LocalBody::File((self.roll(3) > 0).then_some(*content)), Kind::File, *mtime)
            }
        };
        Local {
            place: node.place.clone(),
            alias: (self.roll(5) == 0).then(|| self.name()),
            stat: Stat {
                kind: Some(kind),
                ino: [7, 8, u64::MAX, 1 << 63][usize::try_from(self.roll(4)).unwrap()],
                birth: self.time(),
                size: node.body.content_len(),
                mtime,
                ctime: self.time(),
                attrs: node.attrs,
            },
            body,
            racy: self.roll(2) == 0,
            parked: self.roll(6) == 0,
            stands_for: (self.roll(6) == 0)
                .then(|| StandsFor { mtime: self.time(), attrs: Attrs::from_mode(0o755) }),
        }
    }

    /// Mostly entries whose states are related, as they are in life.
    fn entry(&mut self) -> Entry {
        let node = self.node();
        let other = if self.roll(2) == 0 { node.clone() } else { self.node() };
        let local = self.local(&node);
        Entry {
            local: (self.roll(4) > 0).then_some(local),
            remote: (self.roll(4) > 0)
                .then(|| Remote { rev: Rev(self.roll(1000)), node: node.clone() }),
            synced: (self.roll(4) > 0).then_some(other),
        }
    }
}

#[track_caller]
fn assert_alike(trees: &SqliteTrees, model: &MemoryTrees, dice: &mut Dice) {
    let after = (dice.roll(2) == 0).then(|| dice.id());
    let limit = usize::try_from(1 + dice.roll(9)).unwrap();
    let (id, name) = (dice.id(), dice.name());
    assert_eq!(trees.get(id).unwrap(), model.get(id).unwrap());
    let local_at = trees.local_at(id, &name).unwrap();
    assert_eq!(local_at, model.local_at(id, &name).unwrap());
    let remote_at = trees.remote_at(id, &name).unwrap();
    assert_eq!(remote_at, model.remote_at(id, &name).unwrap());
    let children = trees.local_children(id, after, limit).unwrap();
    assert_eq!(children, model.local_children(id, after, limit).unwrap());
    let children = trees.remote_children(id, after, limit).unwrap();
    assert_eq!(children, model.remote_children(id, after, limit).unwrap());
    for ino in [7, u64::MAX, 1 << 63] {
        let found = trees.local_by_inode(ino).unwrap();
        assert_eq!(found, model.local_by_inode(ino).unwrap());
    }
    let order = |found: Vec<(u64, NodeId)>| found.into_iter().map(|(_, id)| id).collect::<Vec<_>>();
    let all_dirty = trees.dirty(0, 1000).unwrap();
    assert_eq!(order(all_dirty.clone()), order(model.dirty(0, 1000).unwrap()));
    if let Some((position, _)) = all_dirty.first() {
        let rest = trees.dirty(*position, 1000).unwrap();
        assert_eq!(rest, all_dirty[1..]);
    }
    assert_eq!(trees.all(after, limit).unwrap(), model.all(after, limit).unwrap());
    assert_eq!(trees.totals(), model.totals());
    assert_eq!(trees.meta(), model.meta());
}

#[test]
fn the_database_answers_as_the_trees_in_memory_do() {
    for seed in 0..12 {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("state/state.sqlite");
        let mut dice = Dice(seed);
        let mut trees = open(&path);
        let mut model = MemoryTrees::new();
        for step in 0..400 {
            match dice.roll(20) {
                0 => {
                    trees.checkpoint().unwrap();
                    model.checkpoint().unwrap();
                }
                // A crash: everything since the last checkpoint is gone, from both alike.
                1 => {
                    drop(trees);
                    trees = open(&path);
                    model.crash();
                }
                2 => {
                    let meta = Meta {
                        lineage: Some(Lineage::from_bytes([3; 16])),
                        cursor: Rev(step),
                        consistent: true,
                        digest: Digest::default(),
                        linked: true,
                        last_sync: Some(dice.time()),
                    };
                    trees.set_meta(meta).unwrap();
                    model.set_meta(meta).unwrap();
                }
                3..=5 => {
                    let id = dice.id();
                    trees.put(id, &Entry::default()).unwrap();
                    model.put(id, &Entry::default()).unwrap();
                }
                6..=8 => {
                    // One state of three changes, as in life.
                    let id = dice.id();
                    let mut entry = trees.get(id).unwrap();
                    let fresh = dice.entry();
                    match dice.roll(3) {
                        0 => entry.local = fresh.local,
                        1 => entry.remote = fresh.remote,
                        _ => entry.synced = entry.remote.as_ref().map(|r| r.node.clone()),
                    }
                    trees.put(id, &entry).unwrap();
                    model.put(id, &entry).unwrap();
                }
                _ => {
                    let (id, entry) = (dice.id(), dice.entry());
                    trees.put(id, &entry).unwrap();
                    model.put(id, &entry).unwrap();
                }
            }
            assert_alike(&trees, &model, &mut dice);
        }
        let lists: std::collections::HashSet<ListId> =
            model.entries().flat_map(|(_, entry)| lists_of(entry).collect::<Vec<_>>()).collect();
        assert_eq!(trees.lists_in_use().unwrap(), lists);
        let is_copy = |entry: &Entry| {
            entry
                .local
                .as_ref()
                .is_some_and(|l| !l.parked && conflicts::original_of(l.disk_name()).is_some())
        };
        let copies = model.entries().filter(|(_, entry)| is_copy(entry)).count();
        assert_eq!(trees.conflict_count().unwrap(), copies as u64);
        assert_eq!(trees.conflict_copies(1000).unwrap().len(), copies);
    }
}

#[test]
fn a_database_that_is_no_database_is_set_aside_and_begun_anew() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("state.sqlite");
    std::fs::write(&path, vec![b'x'; 8192]).unwrap();
    let opened = SqliteTrees::open(&path, FOLDER, DRIVE).unwrap();
    assert!(!opened.trees.meta().linked, "the first pass must be a union");
    let kept = opened.set_aside.unwrap();
    assert_eq!(std::fs::read(&kept).unwrap(), vec![b'x'; 8192]);
    drop(opened.trees);
    std::fs::write(&path, vec![b'y'; 8192]).unwrap();
    let again = SqliteTrees::open(&path, FOLDER, DRIVE).unwrap();
    assert_ne!(again.set_aside.unwrap(), kept, "a second one does not replace the first");
    assert!(kept.exists());
}

#[test]
fn a_newer_or_foreign_database_is_refused_and_left_alone() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("state.sqlite");
    drop(open(&path));
    let other = DriveId::from_bytes([9; 16]);
    let error = SqliteTrees::open(&path, FOLDER, other).unwrap_err();
    assert!(matches!(error, StateError::Foreign { .. }), "{error}");
    let connection = Connection::open(&path).unwrap();
    connection.pragma_update(None, "user_version", 9).unwrap();
    drop(connection);
    let error = SqliteTrees::open(&path, FOLDER, DRIVE).unwrap_err();
    assert_eq!(
        error.to_string(),
        format!(
            "The state database {path:?} has format 9, but this version reads up to 1: \
             upgrade picloud on this device"
        )
    );
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1);
}

#[test]
#[ignore = "a measurement: run with --release --ignored --nocapture"]
fn twenty_thousand_creations_and_their_commits() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("state.sqlite");
    let mut trees = open(&path);
    let mut dice = Dice(1);
    let started = std::time::Instant::now();
    for number in 0_u64..20_000 {
        let mut bytes = [0; 16];
        bytes[..8].copy_from_slice(&number.to_be_bytes());
        let id = NodeId::from_bytes(bytes);
        let mut node = dice.node();
        node.place.parent = NodeId::ROOT;
        node.place.name = Name::new(format!("file number {number}")).unwrap();
        assert!(trees.local_at(NodeId::ROOT, &node.place.name).unwrap().is_empty());
        let mut entry = trees.get(id).unwrap();
        let mut local = dice.local(&node);
        local.stat.ino = number;
        entry.local = Some(local);
        trees.put(id, &entry).unwrap();
        entry.remote = Some(Remote { rev: Rev(number), node: node.clone() });
        entry.synced = Some(node);
        trees.put(id, &entry).unwrap();
        if number % 2000 == 0 {
            trees.checkpoint().unwrap();
        }
    }
    trees.checkpoint().unwrap();
    let took = started.elapsed();
    let bytes = std::fs::metadata(&path).unwrap().len();
    println!("20,000 x (local_at, get, put, put): {took:?}, {} bytes a node", bytes / 20_000);
}

#[test]
fn an_entry_on_disk_stays_what_it_is() {
    let time = |secs| Timestamp::new(secs, 5).unwrap();
    let node = Node {
        place: Place { parent: NodeId::from_bytes([1; 16]), name: Name::try_from("n").unwrap() },
        body: Body::File {
            content: Content::Chunk { id: ChunkId::from_bytes([2; 32]), len: 3 },
            mtime: time(4),
        },
        attrs: Attrs::from_mode(0o644),
    };
    let entry = Entry {
        local: Some(Local {
            place: node.place.clone(),
            alias: Some(Name::try_from("a").unwrap()),
            stat: Stat {
                kind: Some(Kind::File),
                ino: 6,
                birth: time(7),
                size: 3,
                mtime: time(4),
                ctime: time(8),
                attrs: node.attrs,
            },
            body: LocalBody::File(Some(Content::Empty)),
            racy: false,
            parked: true,
            stands_for: Some(StandsFor { mtime: time(9), attrs: Attrs::from_mode(0o600) }),
        }),
        remote: Some(Remote { rev: Rev(10), node: node.clone() }),
        synced: Some(node),
    };
    let hex: String = encode(&entry).unwrap().iter().map(|byte| format!("{byte:02x}")).collect();
    // Another text here is another format: raise FORMAT and read the old one too.
    assert_eq!(hex, "GOLDEN");
}
