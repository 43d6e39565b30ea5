//! The rules in a small notation. A script is a sequence of `DEVICE CHANGE => OUTCOME`:
//!
//! ```text
//! create N KIND PARENT/NAME [CONTENT]    update N@BASE [at PARENT/NAME] [holds CONTENT] [mode OCTAL]
//! delete N@BASE                          put CONTENT (the drive gets this chunk)
//! ```
//!
//! Changes with ` & ` between them are joined. `wait MS` lets time pass. `quota BYTES` is the owner's from then
//! on. `undo BATCH` is what it says, and
//! `batches` lists them, the newest first.
//!
//! Nodes are small numbers, 0 is the root; contents are words.

use super::memory::MemoryManifest;
use super::undo::{Batch, Counts, How, Left, Outcome};
use super::*;
use crate::model::{BatchId, Digest, DriveId, Lineage, ListId, Timestamp, UserId, Versioned};
use crate::server::gate::{Decision, GateLimits};
use crate::server::packs::Location;
use crate::server::store::metadata::{
    Access, Applied, Asked, Author, Bounds, ChunkRow, Database, Metadata, OwnQuota, UndoAsked,
};
use crate::server::store::sqlite::Sqlite;
use crate::server::store::transact;

fn node_id(text: &str) -> NodeId {
    let number: u8 = text.parse().expect("a node is a small number");
    NodeId::from_bytes([number; 16])
}

fn device(text: &str) -> DeviceId {
    DeviceId::from_bytes([text.as_bytes()[0]; 16])
}

fn place(text: &str) -> Place {
    let (parent, name) = text.split_once('/').expect("a place is PARENT/NAME");
    Place { parent: node_id(parent), name: Name::try_from(name).expect("a legal name") }
}

fn content(word: &str) -> Content {
    Content::Chunk {
        id: ChunkId::of(word.as_bytes()),
        len: u32::try_from(word.len()).expect("short"),
    }
}

fn file(word: &str) -> Body {
    Body::File { content: content(word), mtime: Timestamp::default() }
}

fn parse(change: &str) -> Change {
    let words: Vec<&str> = change.split(' ').collect();
    let (node, base) = words[1].split_once('@').unwrap_or((words[1], "0"));
    let base = Rev(base.parse().expect("a rev"));
    let op = match words[0] {
        "create" => ChangeOp::Create(Node {
            place: place(words[3]),
            body: match words[2] {
                "dir" => Body::Dir,
                "link" => Body::Link { target: words[4].into() },
                _ => file(words[4]),
            },
            attrs: Attrs::from_mode(0o644),
        }),
        "update" => {
            let (mut to, mut body, mut attrs) = (None, None, None);
            for pair in words[2..].chunks(2) {
                match pair[0] {
                    "at" => to = Some(place(pair[1])),
                    "holds" => body = Some(file(pair[1])),
                    "dir" => body = Some(Body::Dir),
                    _ => {
                        attrs =
                            Some(Attrs { mode: u16::from_str_radix(pair[1], 8).expect("octal") });
                    }
                }
            }
            ChangeOp::Update { place: to, body, attrs }
        }
        _ => ChangeOp::Delete,
    };
    Change::new(node_id(node), base, op)
}

fn show(result: &ChangeResult) -> String {
    match result {
        ChangeResult::Accepted { rev } => format!("rev {rev}"),
        ChangeResult::Refused(Refusal::Stale { current }) => format!("stale, now {current}"),
        ChangeResult::Refused(Refusal::NoParent) => "no parent".into(),
        ChangeResult::Refused(Refusal::NameTaken { by }) => {
            format!("taken by {}", by.as_bytes()[0])
        }
        ChangeResult::Refused(Refusal::Cycle) => "cycle".into(),
        ChangeResult::Refused(Refusal::NotEmpty) => "not empty".into(),
        ChangeResult::Refused(Refusal::MissingContent { .. }) => "missing".into(),
        ChangeResult::Refused(Refusal::Illegal { .. }) => "illegal".into(),
        ChangeResult::Refused(Refusal::NeedsApproval) => "held".into(),
        ChangeResult::Refused(Refusal::OverQuota) => "full".into(),
    }
}

const DATE: &str = "2026-11-24";

fn letter(device: DeviceId) -> char {
    char::from(device.as_bytes()[0])
}

fn show_counts(counts: &Counts) -> String {
    let Counts { created, edited, moved, deleted } = counts;
    format!("+{created} ~{edited} >{moved} -{deleted}")
}

/// `BY COUNTS`, then what comes beside another, what is left alone, and how much is the same.
fn show_outcome(outcome: &Outcome) -> String {
    if let Some(by) = outcome.undone_by {
        return format!("{} {by}", if outcome.is_redone { "redone by" } else { "undone by" });
    }
    let by = outcome.by.map_or("nothing".to_owned(), |by| by.to_string());
    let mut shown = format!("{by} {}", show_counts(&outcome.counts));
    for (path, name) in &outcome.beside {
        shown += &format!("; {path} as {name}");
    }
    for (path, why) in &outcome.left {
        let why = match why {
            Left::Changed(by) => format!("changed by {}", letter(*by)),
            why => format!("{why:?}"),
        };
        shown += &format!("; {path} {why}");
    }
    if outcome.same > 0 {
        shown += &format!("; {} the same", outcome.same);
    }
    shown
}

fn show_batch(batch: &Batch) -> String {
    let paths: Vec<String> = batch.examples.iter().map(ToString::to_string).collect();
    let (id, author, counts) = (batch.id, letter(batch.author), show_counts(&batch.counts));
    let undoes = batch.undoes.map_or(String::new(), |of| format!(" undoes {of}"));
    let undone = batch.undone_by.map_or(String::new(), |by| format!(" undone by {by}"));
    format!("{id} {author} {counts} {}{undoes}{undone}", paths.join(" "))
}

/// The same drive in SQLite.
struct Stored {
    metadata: Box<dyn Metadata>,
    drive: i64,
    now_ms: i64,
    user: i64,
    devices: Vec<Author>,
    _dir: tempfile::TempDir,
}

impl Stored {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let database = Sqlite::open(&dir.path().join("db")).unwrap();
        let mut metadata = database.connect(Access::Write).unwrap();
        let (drive, user, devices) = transact(&mut *metadata, |metadata| {
            let id = |byte| UserId::from_bytes([byte; 16]);
            let lineage = Lineage::from_bytes([1; 16]);
            let user = metadata.add_user(id(1), "u", DriveId::from_bytes([1; 16]), lineage, 0)?;
            let mut devices = Vec::new();
            for name in ["A", "B"] {
                let added = metadata.add_device(device(name), user.num, name, &[0; 32], 0)?;
                devices.push(Author { num: added.num, id: added.id });
            }
            Ok((metadata.drives(user.num)?[0].num, user.num, devices))
        })
        .unwrap();
        Self { metadata, drive, now_ms: 0, user, devices, _dir: dir }
    }

    fn put(&mut self, word: &str) {
        let row = ChunkRow {
            id: ChunkId::of(word.as_bytes()),
            plain_len: u32::try_from(word.len()).expect("short"),
            at: Location { pack: 1, offset: 32, stored_len: 1 },
        };
        transact(&mut *self.metadata, |metadata| metadata.add_chunk(self.drive, &row)).unwrap();
    }

    fn apply(&mut self, author: &str, changes: &[Change]) -> Vec<ChangeResult> {
        self.commit(author, changes, None, &Bounds::default()).results
    }

    fn commit(
        &mut self,
        author: &str,
        changes: &[Change],
        deletions: Option<u64>,
        bounds: &Bounds,
    ) -> Applied {
        let author = *self.devices.iter().find(|one| one.id == device(author)).expect("A or B");
        let asked = Asked { changes, deletions, now_ms: self.now_ms };
        let drive = self.drive;
        transact(&mut *self.metadata, |metadata| metadata.apply(drive, author, &asked, bounds))
            .unwrap()
    }

    fn undo(&mut self, author: &str, batch: BatchId, is_dry_run: bool) -> Result<Outcome, String> {
        let author = *self.devices.iter().find(|one| one.id == device(author)).expect("A or B");
        let (drive, now_ms, date) = (self.drive, self.now_ms, DATE);
        let asked = UndoAsked { batch, is_dry_run, is_approved: false, now_ms, date };
        let bounds = Bounds::default();
        transact(&mut *self.metadata, |metadata| {
            metadata.undo_batch(drive, author, &asked, &bounds)
        })
        .map(|undone| undone.outcome)
        .map_err(|error| error.to_string())
    }

    fn batches(&mut self) -> Vec<Batch> {
        let drive = self.drive;
        transact(&mut *self.metadata, |metadata| metadata.batches(drive, None, 10)).unwrap().0
    }

    /// Compares the newest versions, head, digest and count with those in memory.
    #[track_caller]
    fn assert_same(&mut self, manifest: &MemoryManifest) {
        let drive = self.drive;
        let rows = transact(&mut *self.metadata, |metadata| metadata.page(drive, Rev::ZERO, 1000))
            .unwrap();
        let stored: Vec<_> = rows.nodes.into_iter().map(|row| row.node).collect();
        let mut expected: Vec<_> = manifest
            .nodes()
            .map(|(id, version)| Versioned { id, rev: version.rev, node: version.node.clone() })
            .collect();
        expected.sort_by_key(|node| node.rev);
        assert_eq!(stored, expected);
        assert_eq!(rows.drive.head, manifest.head);
        assert_eq!(rows.drive.digest, manifest.digest);
        let live = expected.iter().filter(|node| node.node.is_some()).count();
        assert_eq!(rows.drive.live, live as u64);
        let files = expected.iter().filter_map(|node| node.node.as_ref());
        let bytes: u64 = files.map(|node| node.body.content_len()).sum();
        assert_eq!((rows.drive.bytes, manifest.usage.used), (bytes, bytes));
    }
}

/// Runs a script in memory and in SQLite, and compares every outcome; returns the manifest in
/// memory for more questions.
#[track_caller]
fn run(script: &str) -> MemoryManifest {
    let mut manifest = MemoryManifest::default();
    let mut stored = Stored::new();
    for line in script.lines().map(str::trim).filter(|line| !line.is_empty()) {
        if let Some(word) = line.strip_prefix("put ") {
            let len = u32::try_from(word.len()).expect("short");
            manifest.add_chunk(ChunkId::of(word.as_bytes()), len);
            stored.put(word);
            continue;
        }
        if let Some(ms) = line.strip_prefix("wait ") {
            let ms: i64 = ms.parse().expect("milliseconds");
            manifest.now_ms += ms;
            stored.now_ms += ms;
            continue;
        }
        if let Some(bytes) = line.strip_prefix("quota ") {
            let bytes: u64 = bytes.parse().expect("bytes");
            manifest.usage.quota = Some(bytes);
            let (user, own) = (stored.user, OwnQuota::Bytes(bytes.try_into().expect("some")));
            transact(&mut *stored.metadata, |metadata| metadata.set_quota(user, own)).unwrap();
            continue;
        }
        let (asked, expected) = line.split_once(" => ").expect("a line has an outcome");
        if asked == "batches" {
            let head = manifest.head;
            let Ok((found, more)) = undo::batches(&mut manifest, head, 10);
            assert!(!more);
            let shown: Vec<String> = found.iter().map(show_batch).collect();
            assert_eq!(shown.join(", "), expected);
            assert_eq!(stored.batches(), found, "in SQLite");
            continue;
        }
        if let Some((author, batch)) = asked.split_once(" undo ") {
            let batch: BatchId = batch.parse().expect("a batch");
            for is_dry_run in [true, false] {
                let author_id = device(author);
                let how = How { author: author_id, is_dry_run, is_approved: false, date: DATE };
                let Ok(outcome) = undo::undo(&mut manifest, batch, how);
                let outcome = outcome.map_err(|error| error.to_string());
                assert_eq!(stored.undo(author, batch, is_dry_run), outcome, "in SQLite: {line}");
                let shown = outcome.map_or_else(|error| error, |found| show_outcome(&found));
                if !is_dry_run {
                    assert_eq!(shown, expected, "{line}");
                } else if let Some((_, rest)) = expected.split_once(" +") {
                    assert_eq!(shown, format!("nothing +{rest}"), "asked first: {line}");
                }
            }
            continue;
        }
        let (author, joined) = asked.split_once(' ').expect("a line has an author");
        let mut changes: Vec<Change> = joined.split(" & ").map(parse).collect();
        let last = changes.len() - 1;
        changes[..last].iter_mut().for_each(|change| change.with_next = true);
        let Ok(results) = apply(&mut manifest, device(author), &changes);
        let shown: Vec<String> = results.iter().map(show).collect();
        assert_eq!(shown.join(", "), expected, "{line}");
        assert_eq!(stored.apply(author, &changes), results, "in SQLite: {line}");
    }
    stored.assert_same(&manifest);
    let mut digest = Digest::default();
    for (id, version) in manifest.nodes() {
        if let Some(node) = &version.node {
            digest.add(id, version.rev, node);
        }
    }
    assert_eq!(digest, manifest.digest, "the kept digest is the counted one");
    manifest
}

#[test]
fn every_refusal_has_its_reason() {
    run("put x
         A create 1 dir 0/d => rev 1
         A create 2 file 1/f x => rev 2
         A create 3 file 1/f x => taken by 2
         A create 3 file 9/g x => no parent
         A create 3 file 2/g x => no parent
         A create 3 file 1/g unheard => missing
         A create 3@1 file 1/g x => illegal
         A create 0 dir 0/root => illegal
         A create 3 link 1/l target => rev 3
         B create 3 dir 0/other => stale, now 3
         B update 2@1 mode 600 => stale, now 2
         B update 8@1 mode 600 => stale, now 0
         B update 2@2 => illegal
         B update 2@2 mode 4755 => illegal
         B update 2@2 dir => illegal
         B update 1@1 holds x => illegal
         B update 2@2 holds unheard => missing
         B update 2@2 at 0/d => taken by 1
         B update 2@2 at 3/f => no parent
         B delete 1@1 => not empty
         B delete 0@0 => illegal
         B delete 2@1 => stale, now 2
         B delete 8@1 => stale, now 0");
}

#[test]
fn joined_changes_are_one() {
    run("A create 1 dir 0/a => rev 1
         A create 2 dir 0/b => rev 2
         A create 3 dir 1/c => rev 3
         A create 4 dir 3/d => rev 4
         A update 1@1 at 0/b & update 2@2 at 0/a => rev 5, rev 6
         A update 1@1 at 0/b & update 2@2 at 0/a => rev 5, rev 6
         B update 1@5 at 0/a & update 2@2 at 0/b => stale, now 6, stale, now 6
         B update 1@5 at 0/x & update 2@6 at 0/x => taken by 2, taken by 2
         B update 1@5 at 0/a & update 2@6 at 9/b => no parent, no parent
         B update 1@5 at 2/a & update 2@6 at 1/b => cycle, cycle
         B update 1@5 at 0/z & update 1@5 at 0/y => illegal, illegal
         B update 3@3 at 0/b & delete 1@5 => rev 7, rev 8
         B update 4@4 at 0/b & update 3@7 at 4/in => rev 9, rev 10
         B update 3@10 at 0/e & delete 4@9 & create 5 dir 0/b => rev 11, rev 12, rev 13
         A create 6 dir 0/top & update 5@13 at 6/b => rev 14, rev 15
         A delete 6@14 & update 5@15 at 6/c => not empty, not empty
         A delete 6@14 & delete 5@15 => rev 16, rev 17");
}

#[test]
fn a_directory_never_goes_into_itself() {
    run("A create 1 dir 0/a => rev 1
         A create 2 dir 1/b => rev 2
         A create 3 dir 2/c => rev 3
         A update 1@1 at 3/a => cycle
         A update 1@1 at 1/a => cycle
         A update 3@3 at 0/c => rev 4
         A update 1@1 at 3/a => rev 5
         A update 3@4 at 2/c => cycle");
}

#[test]
fn a_name_is_free_again_when_its_node_went() {
    run("A create 1 dir 0/a => rev 1
         A delete 1@1 => rev 2
         A create 2 dir 0/a => rev 3
         A create 1 dir 0/b => stale, now 2
         A create 3 dir 1/x => no parent
         A update 1@2 at 0/b => illegal
         A update 2@3 at 0/b => rev 4
         B create 4 dir 0/a => rev 5");
}

#[test]
fn a_change_sent_twice_is_answered_twice_and_applied_once() {
    let manifest = run("put x
         put y
         A create 1 file 0/a x => rev 1
         A create 1 file 0/a x => rev 1
         B create 1 file 0/a x => stale, now 1
         A create 1 file 0/b x => stale, now 1
         A update 1@1 holds y => rev 2
         A update 1@1 holds y => rev 2
         B update 1@1 holds y => stale, now 2
         A update 1@1 holds y mode 600 => stale, now 2
         A create 1 file 0/a x => rev 1
         B update 1@2 at 0/b => rev 3
         A update 1@1 holds y => rev 2
         A delete 1@3 => rev 4
         A delete 1@3 => rev 4
         B delete 1@3 => stale, now 4
         B delete 1@4 => rev 4");
    assert_eq!(manifest.head, Rev(4));
}

#[test]
fn what_alters_nothing_makes_no_rev() {
    run("put x
         A create 1 file 0/a x => rev 1
         B update 1@1 holds x => rev 1
         B update 1@1 at 0/a mode 644 => rev 1
         B update 1@1 mode 600 => rev 2");
}

#[test]
fn a_content_must_have_the_length_it_claims() {
    let mut manifest = run("put x");
    let mut change = parse("create 1 file 0/a x");
    if let ChangeOp::Create(node) = &mut change.op {
        node.body = Body::File {
            content: Content::Chunk { id: ChunkId::of(b"x"), len: 2 },
            mtime: Timestamp::default(),
        };
    }
    let Ok(results) = apply(&mut manifest, device("A"), &[change]);
    assert_eq!(show(&results[0]), "illegal");
}

#[test]
fn what_makes_more_used_than_the_quota_is_refused_and_all_else_passes() {
    // Contents are as long as their words.
    run("put four
         put three
         put elevenbytes
         put x
         quota 10
         A create 1 dir 0/d => rev 1
         A create 2 file 1/f four => rev 2
         A create 3 file 1/g elevenbytes => full
         A create 3 file 1/g three => rev 3
         B create 4 file 0/h three => full
         B create 4 file 0/h x => rev 4
         B update 4@4 holds x mode 600 => rev 5
         B update 4@5 holds four => full
         B update 4@5 at 1/h holds four => full
         B update 4@5 at 1/h => rev 6
         A create 5 link 0/l elevenbytes => rev 7
         A create 6 file 0/i three & delete 3@3 => rev 8, rev 9
         A create 7 file 0/j three & update 6@8 holds x => full, full
         A create 7 file 0/j four & update 6@8 holds x => rev 10, rev 11
         quota 3
         A create 8 file 0/k x => full
         A update 7@10 holds three => full
         A update 7@10 mode 600 => rev 12
         A update 7@12 holds x => rev 13
         A update 2@2 at 0/f => rev 14
         A create 8 dir 0/k => rev 15
         A delete 7@13 => rev 16
         B delete 4@6 => rev 17");
}

#[test]
fn an_undo_is_judged_by_what_all_of_it_comes_to() {
    run("put four
         put three
         A create 1 file 0/a four => rev 1
         A create 2 file 0/b three => rev 2
         wait 20000
         A delete 1@1 => rev 3
         A delete 2@2 => rev 4
         quota 8
         B undo 3-4 => Over quota: to undo it takes 9 B more on the server, where 8 B are left; delete something, or ask whoever runs the server for more
         quota 9
         B undo 3-4 => 5-6 +2 ~0 >0 -0
         B undo 1-2 => nothing +0 ~0 >0 -0; a changed by B; b changed by B");
}

#[test]
fn without_a_quota_what_is_used_never_becomes_more_than_can_be_counted() {
    const LEN: u64 = 1000;
    let mut manifest = MemoryManifest::default();
    let list = |number: u8| ListId::from_bytes([number; 32]);
    let create = |number: u8| {
        let content = Content::List { id: list(number), len: LEN };
        let body = Body::File { content, mtime: Timestamp::default() };
        let name = Name::new([b'a' + number]).unwrap();
        let place = Place { parent: NodeId::ROOT, name };
        let node = Node { place, body, attrs: Attrs::from_mode(0o644) };
        Change::new(NodeId::from_bytes([number; 16]), Rev::ZERO, ChangeOp::Create(node))
    };
    manifest.add_list(list(1), LEN);
    manifest.usage.used = Usage::USED_MAX - LEN + 1;
    let Ok(results) = apply(&mut manifest, device("A"), &[create(1)]);
    assert_eq!(show(&results[0]), "full");
    manifest.usage.used -= 1;
    let Ok(results) = apply(&mut manifest, device("A"), &[create(1)]);
    assert_eq!(show(&results[0]), "rev 1");
}

#[test]
fn held_deletions_pass_once_approved() {
    let mut manifest = run("A create 1 dir 0/a => rev 1
         A create 2 dir 0/b => rev 2");
    manifest.gate_limits = Some(GateLimits { count_min: 1, ..Default::default() });
    let ask = |manifest: &mut MemoryManifest, change| {
        let Ok(results) = apply(manifest, device("A"), &[parse(change)]);
        show(&results[0])
    };
    assert_eq!(ask(&mut manifest, "delete 1@1"), "rev 3");
    assert_eq!(ask(&mut manifest, "delete 2@2"), "held");
    assert_eq!(manifest.held().collect::<Vec<_>>(), [(device("A"), 1)]);
    manifest.decide(device("A"), Decision::Approve);
    assert_eq!(ask(&mut manifest, "delete 2@2"), "rev 4");
}

#[test]
fn announced_deletions_are_held_whole_in_memory_and_in_sqlite() {
    let script = "A create 1 dir 0/a => rev 1
         A create 2 dir 0/b => rev 2
         A create 3 dir 0/c => rev 3";
    let mut manifest = run(script);
    let mut stored = Stored::new();
    for line in script.lines() {
        let (asked, _) = line.trim().split_once(" => ").unwrap();
        stored.apply("A", &[parse(asked.split_once(' ').unwrap().1)]);
    }
    let limits = GateLimits { count_min: 1, ..GateLimits::default() };
    manifest.gate_limits = Some(limits);
    let mut commit = |pending, changes: &[&str]| {
        let changes: Vec<Change> = changes.iter().map(|change| parse(change)).collect();
        manifest.announce(device("A"), pending, changes.is_empty());
        let Ok(results) = apply(&mut manifest, device("A"), &changes);
        let bounds = Bounds { gate: limits, quota: None };
        let applied = stored.commit("A", &changes, pending, &bounds);
        assert_eq!(applied.results, results, "in SQLite");
        let (drive, held) = (stored.drive, manifest.held().collect::<Vec<_>>());
        let rows = transact(&mut *stored.metadata, |metadata| metadata.held(drive)).unwrap();
        let rows: Vec<_> = rows.iter().map(|row| (row.device.id, row.deletions)).collect();
        assert_eq!(rows, held);
        let shown: Vec<String> = results.iter().map(show).collect();
        (shown.join(" "), held.first().map(|(_, count)| *count), applied.held_changed)
    };
    let told = |results: &str, held, changed| (results.to_owned(), held, changed);
    assert_eq!(commit(Some(2), &["delete 1@1"]), told("held", Some(2), true));
    assert_eq!(commit(None, &["delete 1@1"]), told("held", Some(2), false));
    assert_eq!(commit(Some(3), &["update 3@3 mode 600"]), told("rev 4", Some(3), true));
    assert_eq!(commit(Some(0), &[]), told("", None, true), "all put back");
    assert_eq!(commit(Some(1), &["delete 1@1"]), told("rev 5", None, false));
    assert_eq!(commit(Some(1), &["delete 2@2"]), told("held", Some(1), true));
    assert_eq!(commit(None, &["delete 3@4"]), told("held", Some(1), false));
    stored.assert_same(&manifest);
}

#[test]
fn a_batch_is_taken_back_as_one_change_and_so_is_that() {
    run("put x
         put y
         A create 1 dir 0/d => rev 1
         A create 2 dir 1/e => rev 2
         A create 3 file 2/f x => rev 3
         A create 4 file 0/g x => rev 4
         A create 5 file 0/h x => rev 5
         wait 20000
         A delete 3@3 => rev 6
         A delete 2@2 => rev 7
         A delete 1@1 => rev 8
         A update 4@4 holds y mode 600 => rev 9
         A update 5@5 at 0/i => rev 10
         A create 6 file 0/new y => rev 11
         wait 20000
         batches => 6-11 A +1 ~1 >1 -3 d g i, 1-5 A +5 ~0 >0 -0 d g h
         B undo 6-11 => 12-17 +3 ~1 >1 -1
         B undo 6-11 => undone by 12-17
         A update 3@15 holds y => stale, now 16
         batches => 12-17 B +3 ~1 >1 -1 d g h undoes 6-11, 6-11 A +1 ~1 >1 -3 d g i undone by 12-17, 1-5 A +5 ~0 >0 -0 d g h
         A undo 12-17 => 18-23 +1 ~1 >1 -3
         B undo 6-11 => redone by 18-23
         B undo 12-17 => undone by 18-23
         B undo 18-23 => 24-29 +3 ~1 >1 -1
         A undo 1-5 => nothing +0 ~0 >0 -0; d changed by B; d/e changed by B; d/e/f changed by B; g changed by B; h changed by B
         A undo 1-3 => nothing +0 ~0 >0 -0; d changed by B; d/e changed by B; d/e/f changed by B");
}

#[test]
fn what_was_changed_since_is_left_alone_and_what_finds_its_name_taken_comes_beside() {
    run("put x
         put y
         put z
         A create 1 dir 0/d => rev 1
         A create 2 file 1/a.txt x => rev 2
         A create 3 file 0/b x => rev 3
         A create 4 dir 0/made => rev 4
         A create 5 file 0/c x => rev 5
         A create 13 file 0/e x => rev 6
         wait 20000
         A delete 2@2 => rev 7
         A delete 1@1 => rev 8
         A update 3@3 holds y => rev 9
         A update 4@4 at 0/moved => rev 10
         A create 6 dir 0/new => rev 11
         A create 7 file 6/in x => rev 12
         A update 5@5 holds y mode 600 at 0/c2 => rev 13
         wait 1000
         B update 3@9 holds z => rev 14
         B create 8 dir 0/d => rev 15
         B create 9 file 8/a.txt z => rev 16
         B create 10 file 6/other z => rev 17
         B create 11 dir 0/made => rev 18
         B create 12 file 0/c z => rev 19
         B undo 7-13 => 20-23 +2 ~1 >0 -1; d as d (restored 2026-11-24); b changed by B; c NameTaken; new NotEmpty; made NameTaken
         B undo 7-13 => undone by 20-23
         B delete 3@14 => rev 24
         B undo 9 => nothing +0 ~0 >0 -0; b changed by B");
}

#[test]
fn an_undo_takes_back_the_last_unbroken_run_of_changes() {
    run("put x
         put y
         put z
         A create 1 file 0/a x => rev 1
         A update 1@1 holds y => rev 2
         B update 1@2 holds z => rev 3
         A update 1@3 holds x => rev 4
         A update 1@4 holds y => rev 5
         A create 2 file 0/b x => rev 6
         A delete 2@6 => rev 7
         batches => 1-7 A +0 ~1 >0 -0 a, 3 B +0 ~1 >0 -0 a
         A undo 1-7 => 8 +0 ~1 >0 -0; 1 the same
         A undo 3 => nothing +0 ~0 >0 -0; a changed by A
         A undo 2-3 => There is no such batch: `picloud undo` lists them
         A undo 9 => There is no such batch: `picloud undo` lists them");
}

#[test]
fn names_that_were_exchanged_go_back_and_a_tree_turned_inside_out_too() {
    run("A create 1 dir 0/a => rev 1
         A create 2 dir 0/b => rev 2
         A create 3 dir 0/x => rev 3
         A create 4 dir 3/y => rev 4
         wait 20000
         A update 1@1 at 0/b & update 2@2 at 0/a => rev 5, rev 6
         A update 4@4 at 0/y => rev 7
         A update 3@3 at 4/x => rev 8
         B undo 5-8 => 9-12 +0 ~0 >4 -0
         wait 20000
         A update 4@9 at 0/y => stale, now 10
         batches => 9-12 B +0 ~0 >4 -0 a b x undoes 5-8, 5-8 A +0 ~0 >4 -0 b a y undone by 9-12, 1-4 A +4 ~0 >0 -0 a b x");
}

#[test]
fn an_undo_that_deletes_very_much_needs_a_person() {
    let mut manifest = MemoryManifest::default();
    let limits = GateLimits { count_min: 2, share: 0.5, ..GateLimits::default() };
    manifest.gate_limits = Some(limits);
    let make: Vec<Change> = (1..=4).map(|id| parse(&format!("create {id} dir 0/d{id}"))).collect();
    let Ok(_) = apply(&mut manifest, device("A"), &make);
    let batch: BatchId = "1-4".parse().unwrap();
    let how = How { author: device("B"), is_dry_run: false, is_approved: false, date: DATE };
    let Ok(Ok(refused)) = undo::undo(&mut manifest, batch, how) else { panic!() };
    assert!(refused.needs_approval && refused.by.is_none(), "{refused:?}");
    assert_eq!((manifest.head, manifest.held().count()), (Rev(4), 0), "nothing happened");
    let how = How { is_approved: true, ..how };
    let Ok(Ok(done)) = undo::undo(&mut manifest, batch, how) else { panic!() };
    assert_eq!((done.counts.deleted, done.by), (4, Some("5-8".parse().unwrap())));
}

proptest::proptest! {
    /// Random changes of two devices, many of them joined, most of them wrong, and undos: whatever is
    /// accepted, the manifest stays a tree with unique names, of joined changes all are accepted or
    /// none, asking for everything a second time changes nothing, and an undo undone leaves the tree as
    /// it was before.
    #[test]
    fn the_manifest_stays_a_tree(
        asked in proptest::collection::vec(
            (0..2_u8, proptest::collection::vec((0..3_u8, 1..6_u8, 0..6_u8, 0..3_u8), 1..4)),
            1..60,
        ),
        undos in proptest::collection::vec((0..60_usize, 0..2_u8, 0..10_usize), 0..10),
    ) {
        let mut manifest = MemoryManifest::default();
        for (turn, (author, joined)) in asked.into_iter().enumerate() {
            manifest.now_ms += 4_000;
            for (_, by, which) in undos.iter().filter(|(at, _, _)| *at == turn) {
                let head = manifest.head;
                let Ok((found, _)) = undo::batches(&mut manifest, head, 10);
                let Some(batch) = found.get(*which) else { continue };
                let author = device(if *by == 0 { "A" } else { "B" });
                let how = How { author, is_dry_run: false, is_approved: true, date: DATE };
                let tree = |manifest: &MemoryManifest| -> Vec<_> {
                    manifest.nodes().map(|(id, version)| (id, version.node.clone())).collect()
                };
                let before = tree(&manifest);
                let Ok(done) = undo::undo(&mut manifest, batch.id, how);
                let after = manifest.head;
                let Ok(again) = undo::undo(&mut manifest, batch.id, how);
                proptest::prop_assert_eq!(after, manifest.head, "{:?}", again);
                if let Some(by) = done.unwrap().by {
                    let Ok(back) = undo::undo(&mut manifest, by, how);
                    proptest::prop_assert_eq!(back.unwrap().left_count, 0);
                    proptest::prop_assert_eq!(tree(&manifest), before);
                }
            }
            let author = if author == 0 { "A" } else { "B" };
            let mut changes = Vec::new();
            for (op, id, parent, name) in joined {
                let Ok(current) = manifest.current(node_id(&id.to_string()));
                let base = current.map_or(Rev::ZERO, |version| version.rev);
                changes.push(parse(&match op {
                    0 => format!("create {id} dir {parent}/{name}"),
                    1 => format!("update {id}@{base} at {parent}/{name}"),
                    _ => format!("delete {id}@{base}"),
                }));
            }
            let last = changes.len() - 1;
            changes[..last].iter_mut().for_each(|change| change.with_next = true);
            let Ok(first) = apply(&mut manifest, device(author), &changes);
            let head = manifest.head;
            let accepted = first.iter().filter(|r| matches!(r, ChangeResult::Accepted { .. }));
            match accepted.count() {
                0 => {}
                count => {
                    proptest::prop_assert_eq!(count, changes.len(), "{:?}", changes);
                    let Ok(second) = apply(&mut manifest, device(author), &changes);
                    proptest::prop_assert_eq!(&first, &second, "{:?}", changes);
                    proptest::prop_assert_eq!(head, manifest.head);
                }
            }
            let live: std::collections::BTreeMap<NodeId, Place> = manifest
                .nodes()
                .filter_map(|(id, version)| Some((id, version.node.clone()?.place)))
                .collect();
            let places: std::collections::BTreeSet<&Place> = live.values().collect();
            proptest::prop_assert_eq!(places.len(), live.len(), "names are unique");
            for id in live.keys() {
                let mut at = *id;
                for _ in 0..=live.len() {
                    if at != NodeId::ROOT {
                        at = live[&at].parent;
                    }
                }
                proptest::prop_assert_eq!(at, NodeId::ROOT, "every node hangs on the root");
            }
        }
    }
}
