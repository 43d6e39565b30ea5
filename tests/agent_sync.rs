//! Two agents and a server: what is done in one folder comes about in the other.

#![allow(clippy::unwrap_used, reason = "a test ends where something fails")]

mod agent_support;
mod server_support;

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::time::{Duration, Instant};

use agent_support::*;
use picloud::protocol::control::State;
use server_support::Server;

async fn two() -> (Server, Machine, Machine) {
    let server = Server::start().await;
    let a = Machine::join(&server, "a").await;
    let b = Machine::join(&server, "b").await;
    (server, a, b)
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_dropped_edited_renamed_moved_and_deleted_follows() {
    let (_server, a, b) = two().await;
    a.write("notes.txt", "one");
    a.write("docs/deep/er/page", "p");
    a.write("empty", "");
    std::os::unix::fs::symlink("../nowhere", a.path("link")).unwrap();
    fs::create_dir(a.path("bare")).unwrap();
    // Without a command: by themselves.
    until_file(&b.path("notes.txt"), b"one").await;
    settle(&[&a, &b]).await;
    assert_eq!(b.tree().len(), 8);

    b.write("notes.txt", "two");
    until_file(&a.path("notes.txt"), b"two").await;
    fs::set_permissions(b.path("notes.txt"), fs::Permissions::from_mode(0o750)).unwrap();
    fs::rename(b.path("docs/deep"), b.path("moved")).unwrap();
    fs::rename(b.path("empty"), b.path("docs/empty too")).unwrap();
    settle(&[&a, &b]).await;
    assert_eq!(a.read("moved/er/page").unwrap(), b"p");

    fs::remove_dir_all(a.path("moved")).unwrap();
    fs::remove_file(a.path("link")).unwrap();
    settle(&[&a, &b]).await;
    assert_eq!(b.tree().len(), 4, "{:?}", b.tree());
    assert_eq!(b.status().state, State::InSync);
    assert_eq!(b.status().folders[0].agrees, Some(true));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_directory_of_many_files_comes_over_and_goes_again() {
    let (_server, a, b) = two().await;
    for number in 0_u32..2000 {
        a.write(&format!("many/{}/{number}", number % 20), format!("file {number}"));
    }
    settle(&[&a, &b]).await;
    assert_eq!(b.tree().len(), 2021);
    let before = b.status().folders[0].cursor;
    fs::rename(a.path("many"), a.path("more")).unwrap();
    settle(&[&a, &b]).await;
    let after = b.status().folders[0].cursor;
    assert_eq!(after - before, 1, "a rename of a directory is one change");
    assert_eq!(b.read("more/19/1999").unwrap(), b"file 1999");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_edit_in_the_middle_of_a_large_file_travels_as_a_piece() {
    let (_server, a, b) = two().await;
    let mut bytes = noise(1, 20 * 1024 * 1024);
    a.write("large", &bytes);
    a.write("holes", vec![0; 3 * 1024 * 1024]);
    a.write("medium", &bytes[..300_000]);
    settle(&[&a, &b]).await;
    for byte in &mut bytes[10_000_000..10_004_096] {
        *byte ^= 0x55;
    }
    a.write("large", &bytes);
    settle(&[&a, &b]).await;
    assert!(b.read("large").unwrap() == bytes);
    bytes.truncate(1_500_000);
    b.write("large", &bytes);
    settle(&[&a, &b]).await;
    assert!(a.read("large").unwrap() == bytes);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_device_that_was_off_catches_up_and_both_sides_of_a_conflict_are_kept() {
    let (_server, mut a, mut b) = two().await;
    a.write("both", "base");
    a.write("gone", "x");
    a.write("kept", "y");
    settle(&[&a, &b]).await;

    b.stop().await;
    a.write("new", "while b was off");
    a.write("both", "edit of a");
    fs::remove_file(a.path("gone")).unwrap();
    fs::remove_file(a.path("kept")).unwrap();
    a.sync().await;
    a.stop().await;
    b.write("both", "edit of b");
    b.write("kept", "edited against the deletion");
    a.start().await;
    b.start().await;
    settle(&[&a, &b]).await;

    assert_eq!(a.read("new").unwrap(), b"while b was off");
    assert_eq!(a.read("gone"), None);
    assert_eq!(a.read("kept").unwrap(), b"edited against the deletion");
    assert_eq!(a.read("both").unwrap(), b"edit of a");
    let copies: Vec<_> = a
        .tree()
        .into_keys()
        .filter(|path| path.to_string_lossy().starts_with("both (conflicted copy b "))
        .collect();
    assert_eq!(copies.len(), 1, "{:?}", a.tree());
    assert_eq!(a.read(copies[0].to_str().unwrap()).unwrap(), b"edit of b");
    assert_eq!(b.status().folders[0].conflicts, 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lost_state_is_a_union_and_deletes_nothing() {
    let (_server, a, mut b) = two().await;
    a.write("old", "o");
    a.write("dir/inside", "i");
    settle(&[&a, &b]).await;
    b.stop().await;
    fs::remove_file(b.path("old")).unwrap();
    b.write("only here", "h");
    fs::remove_dir_all(b.dir.path().join("state")).unwrap();
    b.start().await;
    settle(&[&a, &b]).await;
    assert_eq!(b.read("old").unwrap(), b"o", "absence without a base is no deletion");
    assert_eq!(a.read("only here").unwrap(), b"h");
    assert_eq!(a.tree().len(), 4);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_paused_agent_waits_also_after_a_restart() {
    let (_server, mut a, b) = two().await;
    let ask = |machine: &Machine, request: &str| {
        use std::io::{BufRead, Write};
        let mut stream = picloud::agent::control::connect(&machine.socket()).unwrap();
        stream.write_all(format!("{request}\n").as_bytes()).unwrap();
        let mut line = String::new();
        std::io::BufReader::new(stream).read_line(&mut line).unwrap();
        line
    };
    assert_eq!(ask(&a, r#"{"type":"pause"}"#), "{\"type\":\"ok\"}\n");
    a.until_state(State::Paused).await;
    a.stop().await;
    a.write("waits", "w");
    a.start().await;
    a.until("paused with one change waiting", |status| {
        status.state == State::Paused && status.folders[0].uploads == 1
    })
    .await;
    b.write("other", "o");
    b.sync().await;
    assert!(b.read("waits").is_none() && a.read("other").is_none());
    assert_eq!(ask(&a, r#"{"type":"resume"}"#), "{\"type\":\"ok\"}\n");
    settle(&[&a, &b]).await;
    assert_eq!(b.read("waits").unwrap(), b"w");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_revoked_device_stops_and_says_what_to_do() {
    let (server, a, b) = two().await;
    a.write("before", "x");
    settle(&[&a, &b]).await;
    let admin = picloud::server::admin::Admin::open(server.config.clone()).unwrap();
    admin.revoke("alice", "b").unwrap();
    b.until_state(State::Stopped).await;
    let problems = b.status().folders[0].problems.clone();
    assert_eq!(
        problems[0].reason,
        "This device was revoked, or its account removed; ask for an invitation, which gives a new \
         join link, run `picloud logout`, then join the folder again with it"
    );
    a.write("after", "y");
    a.sync().await;
    assert!(b.read("after").is_none());
    assert_eq!(b.read("before").unwrap(), b"x", "what is here stays");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_folder_that_is_gone_deletes_nothing_and_goes_on_when_it_is_back() {
    let (_server, a, b) = two().await;
    a.write("dear", "d");
    settle(&[&a, &b]).await;
    let away = a.dir.path().join("away");
    fs::rename(a.path(""), &away).unwrap();
    a.until_state(State::Stopped).await;
    b.write("meanwhile", "m");
    b.sync().await;
    fs::rename(&away, a.path("")).unwrap();
    a.until("back", |status| status.state == State::InSync).await;
    settle(&[&a, &b]).await;
    assert_eq!(b.read("dear").unwrap(), b"d");
    assert_eq!(a.read("meanwhile").unwrap(), b"m");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_edit_of_the_settings_takes_effect_and_a_bad_one_changes_nothing() {
    let (_server, a, b) = two().await;
    let text = fs::read_to_string(a.config()).unwrap();
    fs::write(a.config(), format!("uplaod = 1\n{text}")).unwrap();
    a.until("told of the bad edit", |status| !status.problems.is_empty()).await;
    let reason = a.status().problems[0].reason.clone();
    assert!(reason.contains("line 1, key \"uplaod\""), "{reason}");
    assert!(reason.ends_with("the settings before that edit stay in force"), "{reason}");
    a.write("still", "works");
    until_file(&b.path("still"), b"works").await;

    let log = a.dir.path().join("picloud.log");
    let text = text.replace("#file = \"picloud.log\"", "file = \"picloud.log\"");
    let text = text.replace("[[folder]]\nid", "[[folder]]\nignore = [\"*.skip\"]\nid");
    fs::write(a.config(), text).unwrap();
    a.until("mended", |status| status.problems.is_empty()).await;
    // The folder hears of its patterns a moment later.
    let start = Instant::now();
    for probe in (0..).map(|number| format!("{number}.skip")) {
        a.write(&probe, "p");
        a.sync().await;
        b.sync().await;
        let is_sent = b.path(&probe).exists();
        fs::remove_file(a.path(&probe)).unwrap();
        if !is_sent {
            break;
        }
        assert!(start.elapsed() < server_support::PATIENCE, "the patterns are not in force");
    }
    a.write("a.skip", "s");
    a.write("a.keep", "k");
    settle_but(&a, &b, "a.skip").await;
    let start = Instant::now();
    while !fs::read_to_string(&log).unwrap_or_default().contains("sent \"a.keep\"") {
        assert!(start.elapsed() < server_support::PATIENCE, "nothing in the log");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// Waits until both are the same but for a file that only `a` has.
async fn settle_but(a: &Machine, b: &Machine, but: &str) {
    a.sync().await;
    b.sync().await;
    let mut tree = a.tree();
    assert!(tree.remove(std::path::Path::new(but)).is_some());
    assert_eq!(tree, b.tree());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_second_agent_with_the_same_settings_does_not_start() {
    let server = Server::start().await;
    let a = Machine::join(&server, "a").await;
    let error = picloud::agent::start(picloud::agent::Options::new(a.config())).await.unwrap_err();
    assert_eq!(
        error.to_string(),
        format!("Another agent runs already with {:?}; stop it first", a.config())
    );
    // A socket that a dead agent left is replaced.
    let mut b = Machine::linked(&server, "b").await;
    drop(std::os::unix::net::UnixListener::bind(b.socket()).unwrap());
    b.start().await;
    b.until_state(State::InSync).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_comes_back_is_found_again() {
    let (server, a, b) = two().await;
    a.write("one", "1");
    settle(&[&a, &b]).await;
    let address = server.running.address();
    server.running.stop().await;
    a.until_state(State::Offline).await;
    a.write("two", "2");
    let mut config = server.config.clone();
    config.server.listen = address;
    let running = picloud::server::start(config).await.unwrap();
    settle(&[&a, &b]).await;
    assert_eq!(b.read("two").unwrap(), b"2");
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "a measurement: run with --release --ignored --nocapture"]
async fn how_long_a_drop_and_a_tree_take() {
    let (_server, mut a, mut b) = two().await;
    settle(&[&a, &b]).await;
    let mut times = Vec::new();
    for number in 0..100_u64 {
        let bytes = noise(number, 1024);
        let start = Instant::now();
        a.write(&format!("drop {number}"), &bytes);
        let path = b.path(&format!("drop {number}"));
        while fs::metadata(&path).map_or(true, |meta| meta.len() < 1024) {
            assert!(start.elapsed() < server_support::PATIENCE);
            tokio::time::sleep(Duration::from_micros(200)).await;
        }
        times.push(start.elapsed());
    }
    times.sort_unstable();
    println!("1 KiB drop: median {:?}, p90 {:?}, worst {:?}", times[50], times[90], times[99]);

    let bytes = noise(7, 8192 + 20_000);
    let aside = a.dir.path().join("aside");
    for number in 0..20_000_usize {
        let dir = aside.join((number / 200).to_string());
        fs::create_dir_all(&dir).unwrap();
        fs::write(dir.join(number.to_string()), &bytes[number..number + 8192]).unwrap();
    }
    rustix::fs::sync();
    let start = Instant::now();
    fs::rename(&aside, a.path("tree")).unwrap();
    let files = |machine: &Machine| machine.status().folders[0].files;
    while files(&b) < 20_100 || b.status().folders[0].downloads > 0 {
        assert!(start.elapsed() < Duration::from_secs(120), "{:#?}", b.status());
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    println!("20,000 x 8 KiB, from the rename until all is on b: {:?}", start.elapsed());
    settle(&[&a, &b]).await;
    // Before their folders go: else that would be a mass deletion.
    a.stop().await;
    b.stop().await;
}
