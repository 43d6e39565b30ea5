//! The agent's state database, damaged or lost in every way, while files change on both sides:
//! nothing is lost, nothing is deleted, and what is equal on both sides merges without a trace.

use std::collections::BTreeSet;
use std::fs;
use std::io::{Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use crate::support::{Device, Dice, World, eventually, settle};

/// The state database of a device with one folder.
fn database(device: &Device) -> PathBuf {
    let state = device.dir.join("state");
    let found = fs::read_dir(&state).unwrap().flatten().map(|entry| entry.path());
    found.filter(|path| path.is_dir()).map(|dir| dir.join("state.sqlite")).next().unwrap()
}

fn beside(database: &Path, suffix: &str) -> PathBuf {
    database.with_file_name(format!("state.sqlite{suffix}"))
}

fn set_aside(device: &Device) -> BTreeSet<PathBuf> {
    let dir = database(device).parent().unwrap().to_owned();
    fs::read_dir(dir)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| {
            let name = path.file_name().unwrap().to_str().unwrap();
            name.contains(".damaged-") && !name.ends_with("-wal") && !name.ends_with("-shm")
        })
        .collect()
}

/// Overwrites a stretch with random bytes.
fn scribble(path: &Path, from: u64, len: usize) {
    let mut file = fs::OpenOptions::new().write(true).open(path).unwrap();
    file.seek(SeekFrom::Start(from)).unwrap();
    file.write_all(&Dice::new(from + 3).bytes(len)).unwrap();
}

fn cut(path: &Path, len: u64) {
    fs::OpenOptions::new().write(true).open(path).unwrap().set_len(len).unwrap();
}

/// What becomes of the database.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    /// It is as good as ever.
    Whole,
    /// It is what it was some time ago, perhaps empty.
    Older,
    /// It is gone, and there is nothing to set aside.
    Lost,
    /// It is damaged, and set aside.
    SetAside,
}

/// Something that is done to the database.
type Act = fn(&Path);

struct Case {
    what: &'static str,
    /// Whether the agent is killed before, so that there is a write-ahead log.
    killed: bool,
    act: Act,
    then: State,
}

const CASES: &[Case] = &[
    Case { what: "nothing", killed: false, act: |_| (), then: State::Whole },
    Case {
        what: "deleted",
        killed: false,
        act: |database| fs::remove_file(database).unwrap(),
        then: State::Lost,
    },
    Case {
        what: "deleted, its log left",
        killed: true,
        act: |database| fs::remove_file(database).unwrap(),
        then: State::Lost,
    },
    Case {
        what: "cut to half",
        killed: false,
        act: |database| cut(database, fs::metadata(database).unwrap().len() / 2),
        then: State::SetAside,
    },
    Case {
        what: "cut to an odd length",
        killed: false,
        act: |database| cut(database, fs::metadata(database).unwrap().len() / 2 + 77),
        then: State::SetAside,
    },
    Case {
        what: "cut to nothing",
        killed: false,
        act: |database| cut(database, 0),
        then: State::Lost,
    },
    Case {
        what: "scribbled over in the middle",
        killed: false,
        act: |database| scribble(database, fs::metadata(database).unwrap().len() / 2, 9000),
        then: State::SetAside,
    },
    Case {
        what: "scribbled over at its beginning",
        killed: false,
        act: |database| scribble(database, 0, 64),
        then: State::SetAside,
    },
    Case {
        what: "replaced by a text",
        killed: false,
        act: |database| fs::write(database, "no database\n".repeat(1000)).unwrap(),
        then: State::SetAside,
    },
    Case {
        what: "its log lost",
        killed: true,
        act: |database| fs::remove_file(beside(database, "-wal")).unwrap(),
        then: State::Older,
    },
    Case {
        what: "its log scribbled over",
        killed: true,
        act: |database| {
            let log = beside(database, "-wal");
            let len = fs::metadata(&log).unwrap().len();
            if len > 100 {
                scribble(&log, len / 2, usize::try_from(len / 4).unwrap());
            }
        },
        then: State::Older,
    },
];

/// How often the agent's own log says that a state was lost.
fn told_in_log(device: &Device) -> usize {
    let log = fs::read_to_string(device.log()).unwrap();
    log.matches("both sides are compared anew").count()
}

fn tells_of_state(line: &serde_json::Value) -> bool {
    line["event"] == "problem" && line["detail"].as_str().unwrap().contains("state database")
}

/// Files that nobody touches meanwhile.
const QUIET: usize = 60;

#[test]
fn whatever_becomes_of_the_state_no_file_is_lost_and_equal_ones_merge() {
    let world = World::new();
    let mut a = world.device("ann", "a");
    let b = world.device("ann", "b");
    for (round, case) in CASES.iter().enumerate() {
        let dir = format!("round {round}");
        let what = format!("{}, {dir}", case.what);
        println!("{what}");
        let at = |name: &str| format!("{dir}/{name}");
        for index in 0..QUIET {
            a.write(at(&format!("quiet/{}/{index}", index % 5)), format!("{index} of {dir}"));
        }
        a.write(at("quiet/large"), Dice::new(7 + round as u64).bytes(1_500_000));
        for name in ["edited here", "edited there", "edited on both", "deleted here"] {
            a.write(at(name), format!("old {name}"));
        }
        for name in ["deleted there", "moved here", "moved there"] {
            a.write(at(name), format!("old {name}"));
        }
        settle(&[&a, &b]);
        let told_before = told_in_log(&a);

        if case.killed {
            a.kill();
        } else {
            a.stop();
        }
        let aside_before = set_aside(&a);
        (case.act)(&database(&a));
        for (device, here, there) in [(&a, "here", "a"), (&b, "there", "b")] {
            device.write(at(&format!("edited {here}")), format!("new on {there}"));
            device.write(at("edited on both"), format!("new on {there}"));
            device.write(at(&format!("made on {there}")), format!("made on {there}"));
            device.write(at("made the same"), "the same");
            device.remove(at(&format!("deleted {here}")));
            device.rename(at(&format!("moved {here}")), at(&format!("moved {here} away")));
        }
        b.sync();
        a.start();
        let tree = settle(&[&a, &b]);

        // Every version that somebody wrote and nobody replaced knowingly is there.
        let all = contents(&b, &dir);
        for content in ["new on a", "new on b", "made on a", "made on b", "the same"] {
            assert!(all.contains(content), "{what}: {content:?} is lost\n{tree}");
        }
        for name in ["moved here", "moved there"] {
            assert!(all.contains(&format!("old {name}")), "{what}: {name:?} is lost\n{tree}");
        }
        for index in 0..QUIET {
            let path = at(&format!("quiet/{}/{index}", index % 5));
            assert_eq!(b.read(&path), Some(format!("{index} of {dir}")), "{what}: {path}");
        }
        // Equal files merged: nothing is doubled but what differs.
        for sub in ["quiet", "quiet/0", "quiet/4"] {
            assert_eq!(b.conflict_copies(&at(sub)), [""; 0], "{what}\n{tree}");
        }
        let copies = b.conflict_copies(&dir);
        assert!(copies.iter().any(|name| name.starts_with("edited on both")), "{what}: {copies:?}");
        for copy in &copies {
            assert!(copy.starts_with("edited "), "{what}: {copy}");
        }
        assert_eq!(a.status()["state"], "in-sync", "{what}");
        let aside = set_aside(&a);
        assert!(aside.len() <= 3, "{what}: {aside:?}");
        let was_set_aside = aside.difference(&aside_before).count() == 1;
        assert_eq!(was_set_aside, case.then == State::SetAside, "{what}: {aside:?}");
        if case.then == State::Older {
            // How old it is depends on when the disk was written to last.
            continue;
        }
        let is_new = case.then != State::Whole;
        for name in ["deleted here", "deleted there"] {
            // Without the state a deletion cannot be told from a file that was not here yet.
            assert_eq!(b.exists(at(name)), is_new, "{what}: {name}\n{tree}");
        }

        // In the log of the program, and for a person in what happened.
        let told = told_in_log(&a) - told_before;
        assert_eq!(told, usize::from(is_new), "{what}");
        let lines = a.picloud(&["log", "-n", "1000", "--json"]).objects();
        assert!(!is_new || lines.iter().any(tells_of_state), "{what}: {lines:#?}");
    }
}

/// All there is in the files below a directory, as a set of short texts.
fn contents(device: &Device, dir: &str) -> BTreeSet<String> {
    walkdir::WalkDir::new(device.path(dir))
        .into_iter()
        .flatten()
        .filter(|entry| entry.file_type().is_file())
        .filter(|entry| entry.metadata().unwrap().len() < 100)
        .map(|entry| fs::read_to_string(entry.path()).unwrap())
        .collect()
}

#[test]
fn a_state_that_is_removed_or_spoilt_under_a_running_agent_is_begun_anew() {
    let world = World::new();
    let a = world.device("ann", "a");
    let b = world.device("ann", "b");
    let acts: [(&str, Act); 3] = [
        ("removed", |database| {
            for suffix in ["", "-wal", "-shm"] {
                fs::remove_file(beside(database, suffix)).ok();
            }
        }),
        ("its directory removed", |database| {
            fs::remove_dir_all(database.parent().unwrap()).unwrap();
        }),
        ("another put in its place", |database| {
            fs::write(beside(database, ".new"), "no database\n".repeat(1000)).unwrap();
            fs::rename(beside(database, ".new"), database).unwrap();
        }),
    ];
    for (round, (what, act)) in acts.into_iter().enumerate() {
        println!("{what}");
        for index in 0..30 {
            a.write(format!("{round}/quiet {index}"), format!("{index}"));
        }
        a.write(format!("{round}/deleted after"), "x");
        settle(&[&a, &b]);
        let told_before = told_in_log(&a);
        let database = database(&a);
        act(&database);
        a.write(format!("{round}/on a"), "on a");
        b.write(format!("{round}/on b"), "on b");
        eventually("the agent says so", || {
            (told_in_log(&a) > told_before).then_some(())?;
            let lines = a.picloud(&["log", "--json"]).objects();
            lines.iter().any(tells_of_state).then_some(())?;
            database.exists().then_some(())
        });
        let tree = settle(&[&a, &b]);
        assert_eq!(b.read(format!("{round}/on a")).as_deref(), Some("on a"), "{what}\n{tree}");
        assert_eq!(a.read(format!("{round}/on b")).as_deref(), Some("on b"), "{what}\n{tree}");
        assert_eq!(a.conflict_copies(&round.to_string()), [""; 0], "{what}\n{tree}");
        // And from here on it knows what it has: a deletion is one.
        a.remove(format!("{round}/deleted after"));
        b.wait_gone(&format!("{round}/deleted after"));
        settle(&[&a, &b]);
    }
}

#[test]
fn a_state_of_a_newer_format_is_left_alone_and_said_so() {
    let world = World::new();
    let mut a = world.device("ann", "a");
    a.write("f", "1");
    a.sync();
    a.stop();
    let database = database(&a);
    let version = |number: i32| {
        let connection = rusqlite::Connection::open(&database).unwrap();
        let before: i32 =
            connection.query_row("PRAGMA user_version", [], |row| row.get(0)).unwrap();
        connection.pragma_update(None, "user_version", number).unwrap();
        before
    };
    let ours = version(99);
    a.start();
    a.wait_status("word of it", |status| status["state"] == "stopped");
    let stderr = a.picloud(&["sync", "--timeout", "90"]).fails(3);
    assert!(stderr.contains("format 99") && stderr.contains("upgrade picloud"), "{stderr}");
    a.stop();
    assert_eq!(version(ours), 99);
    assert_eq!(set_aside(&a).len(), 0);
    a.start();
    a.sync();
    assert_eq!(a.status()["files"], 1);
}
