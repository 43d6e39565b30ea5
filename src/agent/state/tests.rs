//! The database against the trees in memory: whatever is written, both answer the same.

use super::*;
use crate::engine::memory::MemoryTrees;
use crate::engine::seam::Stat;
use crate::engine::trees::Aspects;
use crate::model::{Attrs, ChunkId, Content, Digest, Kind, Lineage, Rev, Timestamp};

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
        let local = (self.roll(4) > 0).then_some(local);
        let remote =
            (self.roll(4) > 0).then(|| Remote { rev: Rev(self.roll(1000)), node: node.clone() });
        let synced = (self.roll(4) > 0).then_some(other);
        let left_out = remote.is_some() && self.roll(4) == 0;
        Entry { local, remote, synced, left_out }
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
    for number in 0..3 {
        let list = ListId::from_bytes([number; 32]);
        let found = trees.local_with_list(list, limit).unwrap();
        assert_eq!(found, model.local_with_list(list, limit).unwrap());
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
    assert_eq!(trees.sent().unwrap(), model.sent().unwrap());
    assert_eq!(trees.puttings().unwrap(), model.puttings().unwrap());
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
                // A crash: everything since the last was kept is gone, from both alike.
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
                9 => {
                    let after = (dice.roll(2) == 0).then(|| dice.node());
                    let told = Aspects { place: true, body: false, attrs: true };
                    let sent = [Sent { node: dice.id(), after, base: Some(Rev(step)), told }];
                    let commit = dice.roll(4);
                    trees.note_sent(commit, &sent).unwrap();
                    model.note_sent(commit, &sent).unwrap();
                }
                10 => {
                    let commit = dice.roll(4);
                    trees.forget_sent(commit).unwrap();
                    model.forget_sent(commit).unwrap();
                }
                11 => {
                    trees.keep().unwrap();
                    model.keep().unwrap();
                }
                12 => {
                    let (here, base) = (dice.node(), dice.node());
                    let alias = (dice.roll(4) == 0).then(|| base.place.name.clone());
                    let putting = Putting {
                        node: dice.id(),
                        rev: Rev(step),
                        here,
                        alias,
                        base,
                        is_move: dice.roll(2) == 0,
                    };
                    trees.note_putting(&putting).unwrap();
                    model.note_putting(&putting).unwrap();
                }
                13 => {
                    let id = dice.id();
                    trees.forget_putting(id).unwrap();
                    model.forget_putting(id).unwrap();
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
            entry.local.as_ref().is_some_and(|l| !l.parked && original_of(l.disk_name()).is_some())
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

/// Makes a database with this many nodes in one directory.
fn filled(path: &Path, count: u64) -> SqliteTrees {
    let mut trees = open(path);
    let mut dice = Dice(1);
    for number in 0..count {
        let mut bytes = [0; 16];
        bytes[..8].copy_from_slice(&number.to_be_bytes());
        let mut node = dice.node();
        node.place.parent = NodeId::ROOT;
        node.place.name = Name::new(format!("file number {number}")).unwrap();
        let remote = Some(Remote { rev: Rev(number), node: node.clone() });
        let local = Some(dice.local(&node));
        let entry = Entry { local, remote, synced: Some(node), left_out: false };
        trees.put(NodeId::from_bytes(bytes), &entry).unwrap();
    }
    trees.set_meta(Meta { linked: true, ..Meta::default() }).unwrap();
    trees.checkpoint().unwrap();
    trees
}

#[test]
fn a_database_of_the_first_format_is_brought_up_to_date() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("state.sqlite");
    let trees = filled(&path, 2500);
    let ids = trees.all(None, 10_000).unwrap();
    let entries: Vec<Entry> = ids.iter().map(|id| trees.get(*id).unwrap()).collect();
    // The keys were others, of which none is one of today's.
    trees
        .connection
        .execute_batch(
            "UPDATE entry SET local_at = seq WHERE local_at IS NOT NULL;
             UPDATE entry SET remote_at = -seq WHERE remote_at IS NOT NULL;
             PRAGMA user_version = 1;",
        )
        .unwrap();
    drop(trees);
    for _ in 0..2 {
        let trees = open(&path);
        assert!(trees.meta().linked);
        for (id, entry) in ids.iter().zip(&entries) {
            assert_eq!(trees.get(*id).unwrap(), *entry);
            let local = entry.local.as_ref().unwrap();
            let there = trees.local_at(local.place.parent, local.disk_name()).unwrap();
            assert_eq!(there.contains(id), !local.parked);
            let place = &entry.remote.as_ref().unwrap().node.place;
            assert_eq!(trees.remote_at(place.parent, &place.name).unwrap(), [*id]);
        }
    }
    let connection = Connection::open(&path).unwrap();
    let format: i32 = connection.query_row("PRAGMA user_version", [], |row| row.get(0)).unwrap();
    assert_eq!(format, FORMAT);
    // One that is damaged is set aside by that, as ever.
    connection
        .execute_batch("UPDATE entry SET data = x'00' WHERE seq = 1234; PRAGMA user_version = 1;")
        .unwrap();
    drop(connection);
    assert!(SqliteTrees::open(&path, FOLDER, DRIVE).unwrap().set_aside.is_some());
}

#[test]
fn damage_in_any_page_is_found_before_it_does_harm() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("state.sqlite");
    let trees = filled(&path, 300);
    let ids = trees.all(None, 1000).unwrap();
    let entries: Vec<Entry> = ids.iter().map(|id| trees.get(*id).unwrap()).collect();
    drop(trees);
    let whole = std::fs::read(&path).unwrap();
    let mut found = 0;
    for page in 0..whole.len() / 4096 {
        let mut spoilt = whole.clone();
        for byte in &mut spoilt[page * 4096 + 2000..page * 4096 + 2040] {
            *byte ^= 0x5a;
        }
        std::fs::write(&path, &spoilt).unwrap();
        let opened = SqliteTrees::open(&path, FOLDER, DRIVE).unwrap();
        if opened.set_aside.is_some() {
            assert!(!opened.trees.meta().linked, "page {page}: the first pass must be a union");
            found += 1;
            continue;
        }
        // What is read is what was written, or an error that says it is damage.
        for (id, entry) in ids.iter().zip(&entries) {
            match opened.trees.get(*id) {
                Ok(read) => assert!(read == *entry || read.is_empty(), "page {page}: {read:?}"),
                Err(error) => {
                    assert!(error.is_damage(), "page {page}: {error}");
                    found += 1;
                    break;
                }
            }
        }
    }
    assert!(found > 10, "{found} of {}", whole.len() / 4096);
    assert_eq!(damaged_numbers(&path).unwrap().len(), SET_ASIDE_MAX);
}

#[test]
fn another_database_in_its_place_is_damage_too() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("state.sqlite");
    for format in [-3, 0, 1, 2] {
        let connection = Connection::open(&path).unwrap();
        connection.execute_batch("CREATE TABLE meta (other)").unwrap();
        connection.pragma_update(None, "user_version", format).unwrap();
        drop(connection);
        let opened = SqliteTrees::open(&path, FOLDER, DRIVE).unwrap();
        assert!(opened.set_aside.is_some(), "format {format}");
        drop(opened);
        std::fs::remove_file(&path).unwrap();
    }
}

#[test]
fn a_database_that_is_removed_under_our_hands_is_noticed() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("state.sqlite");
    let trees = filled(&path, 3);
    assert!(trees.is_in_place());
    std::fs::rename(&path, dir.path().join("elsewhere")).unwrap();
    assert!(!trees.is_in_place());
    std::fs::write(&path, "").unwrap();
    assert!(!trees.is_in_place());
    assert!(trees.gone().is_damage());
}

#[test]
#[ignore = "a measurement: run with --ignored --nocapture"]
fn opening_a_hundred_thousand_nodes() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("state.sqlite");
    drop(filled(&path, 100_000));
    let bytes = std::fs::metadata(&path).unwrap().len();
    for _ in 0..3 {
        let started = std::time::Instant::now();
        let trees = open(&path);
        let opened = started.elapsed();
        let started = std::time::Instant::now();
        let check = |pragma: &str| {
            trees.connection.query_row(pragma, [], |row| row.get::<_, String>(0)).unwrap()
        };
        assert_eq!(check("PRAGMA quick_check(1)"), "ok");
        let quick = started.elapsed();
        let started = std::time::Instant::now();
        assert_eq!(check("PRAGMA integrity_check(1)"), "ok");
        let whole = started.elapsed();
        println!(
            "{bytes} bytes: open {opened:?}, of it quick_check {quick:?}; integrity_check {whole:?}"
        );
    }
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
            "The state database {path:?} has format 9, but this version reads up to 2: \
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
        left_out: false,
    };
    let hex: String = encode(&entry).unwrap().iter().map(|byte| format!("{byte:02x}")).collect();
    // Another text here is another format: raise FORMAT and read the old one too.
    let golden = concat!(
        "9397c0c4016197a446696c650692070503920405920805cd01a481a446696c65a5456d707479c2c3",
        "92920905cd0180920a9392c41001010101010101010101010101010101c4016e81a446696c659281",
        "a54368756e6b92c42002020202020202020202020202020202020202020202020202020202020202",
        "0203920405cd01a4a8417352656d6f7465",
        "4dc21a905d497f77",
    );
    assert_eq!(hex, golden);
    let bytes = encode(&entry).unwrap();
    assert_eq!(decode(&bytes).unwrap(), entry);
    // Early versions wrote no check.
    assert_eq!(decode(&bytes[..bytes.len() - CHECK_LEN]).unwrap(), entry);
    for index in 0..bytes.len() {
        let mut spoilt = bytes.clone();
        spoilt[index] ^= 0x10;
        assert!(decode(&spoilt).is_err(), "byte {index}");
    }
    // What is left out has one more part.
    let left_out = Entry { local: None, synced: None, left_out: true, ..entry };
    let bytes = encode(&left_out).unwrap();
    assert_eq!((bytes[0], bytes[bytes.len() - CHECK_LEN - 1]), (0x94, 0xc3));
    assert_eq!(decode(&bytes).unwrap(), left_out);
}
