//! The program `picloud-server` as a person and as systemd use it.

#![allow(clippy::unwrap_used, reason = "a test ends where something fails")]

mod server_support;

use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};

use picloud::model::*;
use picloud::protocol::message::*;
use picloud::protocol::{Connection, Endpoint, Trust};
use server_support::*;

fn program(config: &Path) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_picloud-server"));
    command.arg("--config").arg(config).env("RUST_BACKTRACE", "0");
    command
}

fn write_config(dir: &Path, port: u16) -> std::path::PathBuf {
    let path = dir.join("server.toml");
    let text = format!(
        "[server]\nlisten = \"127.0.0.1:{port}\"\npublic = \"127.0.0.1:{port}\"\ndata_dir = \"data\"\n\
         [limits]\ndisk_free_min_mib = 0\n[log]\nfile = \"picloud.log\"\n"
    );
    std::fs::write(&path, text).unwrap();
    path
}

/// A port that was free a moment ago, for a server that must be found again after a restart.
fn free_port() -> u16 {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    listener.local_addr().unwrap().port()
}

fn run(mut command: Command) -> Output {
    command.stdin(Stdio::null()).output().unwrap()
}

fn text(bytes: &[u8]) -> &str {
    std::str::from_utf8(bytes).unwrap()
}

/// A running program; killed when a test fails.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        self.0.kill().unwrap_or_default();
        self.0.wait().ok();
    }
}

impl Running {
    /// Starts the program, and waits until it says that it listens.
    fn start(config: &Path) -> Self {
        let mut child = program(config).stderr(Stdio::piped()).spawn().unwrap();
        let mut log = BufReader::new(child.stderr.take().unwrap());
        let mut line = String::new();
        while !line.contains("listening") {
            line.clear();
            assert_ne!(log.read_line(&mut line).unwrap(), 0, "the server ended at once");
        }
        // Somebody has to read on, or the server would wait for room in the pipe.
        std::thread::spawn(move || std::io::copy(&mut log, &mut std::io::sink()));
        Self(child)
    }

    fn pid(&self) -> rustix::process::Pid {
        rustix::process::Pid::from_child(&self.0)
    }
}

#[tokio::test]
async fn an_invitation_is_the_link_alone_whether_the_server_runs_or_not() {
    let dir = tempfile::tempdir().unwrap();
    let config = write_config(dir.path(), free_port());
    let mut invite = program(&config);
    let before = run({
        invite.args(["invite", "alice"]);
        invite
    });
    assert_eq!(text(&before.stderr), "");
    let first = JoinLink::parse(text(&before.stdout)).unwrap();
    assert_eq!(text(&before.stdout), format!("{first}\n"));

    let mut server = Running::start(&config);
    let mut invite = program(&config);
    invite.args(["--json", "invite", "alice"]);
    let during: serde_json::Value = serde_json::from_slice(&run(invite).stdout).unwrap();
    let second = JoinLink::parse(during["link"].as_str().unwrap()).unwrap();
    assert_eq!(first.fingerprint, second.fingerprint);
    for link in [first, second] {
        let endpoint = Endpoint { address: link.address, trust: Trust::Pinned(link.fingerprint) };
        let (connection, _pushes) = Connection::open(&endpoint, "test").await.unwrap();
        let join = Join { secret: link.secret.to_vec(), device_name: "laptop".into() };
        connection.call(&join).await.unwrap();
    }
    rustix::process::kill_process(server.pid(), rustix::process::Signal::TERM).unwrap();
    assert!(server.0.wait().unwrap().success(), "SIGTERM ends it cleanly");
    let log = std::fs::read_to_string(dir.path().join("picloud.log")).unwrap();
    assert!(log.contains("alice") && log.contains("laptop") && log.contains("stopped"), "{log}");
}

#[test]
fn users_are_added_listed_and_removed_and_errors_are_one_line() {
    let dir = tempfile::tempdir().unwrap();
    let config = write_config(dir.path(), 0);
    let with_input = |arguments: &[&str], input: &str| {
        let mut command = program(&config);
        command.args(arguments).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().unwrap();
        child.stdin.take().unwrap().write_all(input.as_bytes()).unwrap();
        child.wait_with_output().unwrap()
    };
    let added = with_input(&["user", "add", "alice", "--password-stdin"], "correct horse\n");
    assert_eq!((added.status.code(), text(&added.stdout)), (Some(0), "Added user alice\n"));
    let again = with_input(&["user", "add", "Alice", "--password-stdin"], "correct horse\n");
    assert_eq!(again.status.code(), Some(1));
    assert_eq!(text(&again.stderr), "Error: There is a user \"Alice\" already\n");
    let dash = with_input(&["user", "passwd", "alice", "--password-file", "-"], "battery staple\n");
    assert_eq!(text(&dash.stderr), "");
    assert_eq!(dash.status.code(), Some(0));
    let lacking = with_input(&["--json", "revoke", "alice"], "");
    assert!(text(&lacking.stdout).contains("not provided: <DEVICE>"), "{}", text(&lacking.stdout));
    let listed = with_input(&["user", "list", "--json"], "");
    let user: serde_json::Value = serde_json::from_slice(&listed.stdout).unwrap();
    assert_eq!((&user["name"], &user["has_password"]), (&"alice".into(), &true.into()));
    let short = with_input(&["user", "passwd", "alice", "--password-stdin"], "short\n");
    assert_eq!(text(&short.stderr), "Error: A password has 8 characters to 1024 bytes\n");
    for (arguments, code) in [
        (&["user", "totp", "alice", "--disable"][..], 0),
        (&["devices", "alice"], 0),
        (&["held", "alice"], 0),
        (&["revoke", "alice", "nothing"], 1),
        (&["approve", "alice", "nothing"], 1),
        (&["user", "remove", "alice"], 0),
        (&["user", "remove", "alice"], 1),
        (&["devices", "alice"], 1),
        (&["user"], 2),
        (&["invite"], 2),
        (&["nonsense"], 2),
        (&["--help"], 0),
    ] {
        let outcome = with_input(arguments, "");
        assert_eq!(outcome.status.code(), Some(code), "{arguments:?}");
        if code == 1 {
            assert_eq!(text(&outcome.stderr).lines().count(), 1, "{arguments:?}");
        }
    }
    let invited = with_input(&["invite", "--register"], "");
    assert_eq!((invited.status.code(), text(&invited.stderr)), (Some(0), ""));
    let open = std::fs::read_to_string(&config).unwrap();
    std::fs::write(&config, format!("{open}\n[accounts]\nregistration = \"closed\"\n")).unwrap();
    let warned = with_input(&["invite", "--register"], "");
    assert_eq!(warned.status.code(), Some(0));
    let expected = "Warning: the server takes no registrations";
    assert!(text(&warned.stderr).starts_with(expected), "{}", text(&warned.stderr));
    std::fs::write(&config, "[server]\nlisten = 5\n").unwrap();
    let outcome = with_input(&["user", "list"], "");
    assert!(text(&outcome.stderr).contains("server.toml\", line 2, key \"listen\""));
}

#[tokio::test]
async fn what_was_acknowledged_survives_a_kill_at_any_moment() {
    let dir = tempfile::tempdir().unwrap();
    let config = write_config(dir.path(), free_port());
    let mut invite = program(&config);
    invite.args(["invite", "alice"]);
    let link = JoinLink::parse(text(&run(invite).stdout)).unwrap();
    let endpoint =
        Endpoint { address: link.address.clone(), trust: Trust::Pinned(link.fingerprint) };
    let mut server = Running::start(&config);
    let (connection, _pushes) = Connection::open(&endpoint, "test").await.unwrap();
    let join = Join { secret: link.secret.to_vec(), device_name: "laptop".into() };
    let admitted = connection.call(&join).await.unwrap().admitted.unwrap();
    let drive = admitted.drives[0].id;
    let resume = Resume { device: admitted.device, token: admitted.token.unwrap() };
    drop(connection);
    let mut acknowledged = Vec::new();
    let mut number = 0_u32;
    for round in 0..8_u64 {
        let (connection, _pushes) = Connection::open(&endpoint, "test").await.unwrap();
        connection.call(&resume).await.unwrap();
        let pid = server.pid();
        let killer = std::thread::spawn(move || {
            std::thread::sleep(std::time::Duration::from_millis(20 + 17 * round));
            rustix::process::kill_process(pid, rustix::process::Signal::KILL).unwrap();
        });
        // Commits as fast as they are answered, until there is no answer any more.
        loop {
            number += 1;
            let mut id = [1; 16];
            id[..4].copy_from_slice(&number.to_be_bytes());
            let bytes = number.to_string().repeat(500).into_bytes();
            let at = number.to_string();
            let commit = Commit {
                drive,
                changes: vec![create(NodeId::from_bytes(id), file(NodeId::ROOT, &at, &bytes))],
                chunks: vec![chunk(&bytes)],
                deletions: None,
            };
            match connection.call(&commit).await {
                Ok(committed) => acknowledged.push((number, revs(&committed)[0])),
                Err(_) => break,
            }
        }
        killer.join().unwrap();
        server.0.wait().unwrap();
        server = Running::start(&config);
    }
    assert!(acknowledged.len() > 20, "only {} commits", acknowledged.len());
    let (connection, _pushes) = Connection::open(&endpoint, "test").await.unwrap();
    connection.call(&resume).await.unwrap();
    for (number, rev) in acknowledged {
        let lookup = Lookup { drive, path: RelPath::parse(number.to_string().as_bytes()).unwrap() };
        let node = connection.call(&lookup).await.unwrap().node.unwrap();
        assert_eq!(node.rev, Rev(rev));
        let bytes = number.to_string().repeat(500).into_bytes();
        let get = GetChunks { drive, chunks: vec![ChunkId::of(&bytes)] };
        assert_eq!(connection.call(&get).await.unwrap().chunks[0].data, bytes);
    }
}

/// Runs the doctor, and returns its exit code and the verdict and text of each check.
fn doctor(config: &Path, more: &[&str]) -> (Option<i32>, Vec<(String, String, String)>) {
    let mut command = program(config);
    command.args(["--json", "doctor"]).args(more);
    let output = run(command);
    assert_eq!(text(&output.stderr), "");
    let objects: Vec<serde_json::Value> =
        text(&output.stdout).lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(objects.last().unwrap()["type"], "doctor");
    let word = |object: &serde_json::Value, key: &str| object[key].as_str().unwrap().to_owned();
    let checks = objects.iter().filter(|object| object["type"] == "check");
    let checks = checks.map(|o| (word(o, "check"), word(o, "verdict"), word(o, "text")));
    (output.status.code(), checks.collect())
}

#[track_caller]
fn verdict<'a>(checks: &'a [(String, String, String)], check: &str) -> (&'a str, &'a str) {
    let found = checks.iter().find(|found| found.0 == check);
    let (_, verdict, text) = found.unwrap_or_else(|| panic!("no {check}: {checks:?}"));
    (verdict, text)
}

#[tokio::test]
async fn the_doctor_finds_nothing_wrong_beside_a_running_server_and_then_each_damage() {
    use std::os::unix::fs::PermissionsExt;
    let dir = tempfile::tempdir().unwrap();
    let port = free_port();
    let config = write_config(dir.path(), port);
    let data = dir.path().join("data");
    // Before the first start: nothing is made by looking.
    let (code, checks) = doctor(&config, &[]);
    assert_eq!((code, verdict(&checks, "data directory").0), (Some(0), "skipped"), "{checks:?}");
    assert!(!data.exists());

    let server = Running::start(&config);
    let mut invite = program(&config);
    invite.args(["invite", "alice"]);
    let link = JoinLink::parse(text(&run(invite).stdout)).unwrap();
    let endpoint = Endpoint { address: link.address, trust: Trust::Pinned(link.fingerprint) };
    let (connection, _pushes) = Connection::open(&endpoint, "test").await.unwrap();
    let join = Join { secret: link.secret.to_vec(), device_name: "laptop".into() };
    let admitted = connection.call(&join).await.unwrap().admitted.unwrap();
    let plain = vec![7; 100_000];
    let id = ChunkId::of(&plain);
    let put = PutChunks {
        drive: admitted.drives[0].id,
        chunks: vec![picloud::content::pack(id, &plain)],
    };
    connection.call(&put).await.unwrap();
    let (code, checks) = doctor(&config, &["--deep"]);
    for check in ["data directory", "database", "packs", "contents", "certificate", "server"] {
        assert_eq!(verdict(&checks, check).0, "ok", "{checks:?}");
    }
    assert_eq!(verdict(&checks, "public address").0, "ok");
    assert_eq!(code, Some(0));
    assert!(verdict(&checks, "contents").1.starts_with("1 record is as"), "{checks:?}");
    drop(server);

    // Not running is a warning; another program at the port is a problem.
    let (code, checks) = doctor(&config, &[]);
    assert_eq!((code, verdict(&checks, "server").0), (Some(0), "warning"), "{checks:?}");
    let stranger = std::net::TcpListener::bind(("127.0.0.1", port)).unwrap();
    std::thread::spawn(move || {
        while let Ok((socket, _)) = stranger.accept() {
            drop(socket)
        }
    });
    let (code, checks) = doctor(&config, &[]);
    let (found, told) = verdict(&checks, "server");
    assert!(
        code == Some(3) && found == "problem" && told.contains("another program"),
        "{checks:?}"
    );

    // One changed bit: found when everything is read.
    let pack = data.join("packs/0000000001.pack");
    let whole = std::fs::read(&pack).unwrap();
    let mut damaged = whole.clone();
    *damaged.last_mut().unwrap() ^= 1;
    std::fs::write(&pack, &damaged).unwrap();
    assert_eq!(verdict(&doctor(&config, &[]).1, "packs").0, "ok");
    assert_eq!(verdict(&doctor(&config, &["--deep"]).1, "contents").0, "problem");
    // A pack that is cut, and one that is gone: found at once.
    std::fs::write(&pack, &whole[..whole.len() - 1]).unwrap();
    let told = doctor(&config, &[]).1;
    assert!(verdict(&told, "packs").1.contains("names some up to"), "{told:?}");
    std::fs::remove_file(&pack).unwrap();
    assert!(verdict(&doctor(&config, &[]).1, "packs").1.contains("is not there"));
    std::fs::write(&pack, &whole).unwrap();

    // A database that is not one, a directory open to others, a certificate without its key.
    let database = data.join("picloud.db");
    let kept = std::fs::read(&database).unwrap();
    std::fs::write(&database, [b'x'; 8192]).unwrap();
    assert_eq!(verdict(&doctor(&config, &[]).1, "database").0, "problem");
    std::fs::write(&database, kept).unwrap();
    std::fs::set_permissions(&data, std::fs::Permissions::from_mode(0o755)).unwrap();
    let (code, checks) = doctor(&config, &[]);
    assert_eq!((code, verdict(&checks, "data directory").0), (Some(3), "problem"));
    let settings = std::fs::read_to_string(&config).unwrap();
    let tls = "[tls]\ncertificate = \"missing.pem\"\nkey = \"missing.key\"\n";
    std::fs::write(&config, format!("{settings}{tls}")).unwrap();
    assert_eq!(verdict(&doctor(&config, &[]).1, "certificate").0, "problem");
    // Settings with a slip are told, not failed at.
    std::fs::write(&config, "[server]\nlistten = 1\n").unwrap();
    let (code, checks) = doctor(&config, &[]);
    assert_eq!((code, verdict(&checks, "settings").0), (Some(3), "problem"));
}

/// Asks with `curl`, and returns the status and the body.
fn curl(arguments: &[&str]) -> (u16, String) {
    let mut command = Command::new("curl");
    command.args([
        "--silent",
        "--max-time",
        "30",
        "--noproxy",
        "*",
        "--write-out",
        "\n%{http_code}",
    ]);
    let output = run({
        command.args(arguments);
        command
    });
    assert!(output.status.success(), "{arguments:?}: {output:?}");
    let all = text(&output.stdout);
    let (body, code) = all.rsplit_once('\n').unwrap();
    (code.parse().unwrap(), body.to_owned())
}

/// Reads Prometheus' text format strictly: each family with help and type before its lines, each once, each
/// line a legal name, legal labels and a number, buckets cumulative and ending with the count.
fn families(body: &str) -> std::collections::BTreeMap<String, f64> {
    let is_name = |name: &str| {
        !name.is_empty()
            && !name.starts_with(|c: char| c.is_ascii_digit())
            && name.chars().all(|c| c.is_ascii_alphanumeric() || "_:".contains(c))
    };
    assert!(body.ends_with('\n'));
    let mut values = std::collections::BTreeMap::new();
    let mut seen = std::collections::BTreeSet::new();
    let (mut family, mut kind, mut helped) = (String::new(), String::new(), String::new());
    let mut bucket = 0.0;
    for line in body.lines() {
        if let Some(rest) = line.strip_prefix("# HELP ") {
            let (name, help) = rest.split_once(' ').unwrap();
            assert!(is_name(name) && !help.is_empty(), "{line}");
            assert!(seen.insert(name.to_owned()), "twice: {line}");
            helped = name.to_owned();
            continue;
        }
        if let Some(rest) = line.strip_prefix("# TYPE ") {
            let (name, of) = rest.split_once(' ').unwrap();
            assert!(name == helped && ["counter", "gauge", "histogram"].contains(&of), "{line}");
            (family, kind, bucket) = (name.to_owned(), of.to_owned(), 0.0);
            continue;
        }
        let (series, value) = line.rsplit_once(' ').unwrap();
        let value: f64 = value.parse().unwrap_or_else(|_| panic!("{line}"));
        let (name, labels) = series.split_once('{').unwrap_or((series, ""));
        assert!(is_name(name), "{line}");
        if !labels.is_empty() {
            let (label, of) = labels.strip_suffix("\"}").unwrap().split_once("=\"").unwrap();
            assert!(is_name(label) && !of.contains(['"', '\\', '\n']), "{line}");
        }
        match kind.as_str() {
            "histogram" if name == format!("{family}_bucket") => {
                assert!(value >= bucket, "{line}");
                bucket = value;
            }
            "histogram" if name == format!("{family}_count") => assert_eq!(value, bucket, "{line}"),
            "histogram" => assert_eq!(name, format!("{family}_sum"), "{line}"),
            of => {
                assert_eq!(name, family, "{line}");
                let is_total = name.ends_with("_total");
                assert_eq!(is_total, of == "counter", "{line}");
            }
        }
        assert!(values.insert(series.to_owned(), value).is_none(), "twice: {line}");
    }
    values
}

#[tokio::test]
async fn what_the_server_counts_is_told_to_prometheus_and_nobody_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let (port, metrics) = (free_port(), free_port());
    let config = write_config(dir.path(), port);
    let settings = std::fs::read_to_string(&config).unwrap();
    let with = format!("{settings}[metrics]\nlisten = \"127.0.0.1:{metrics}\"\n");
    std::fs::write(&config, with).unwrap();
    let server = Running::start(&config);
    let url = |path: &str| format!("http://127.0.0.1:{metrics}{path}");
    assert_eq!(curl(&[&url("/healthz")]), (200, "ok\n".to_owned()));
    let before = families(&curl(&[&url("/metrics")]).1);

    let mut invite = program(&config);
    invite.args(["invite", "secretname"]);
    let link = JoinLink::parse(text(&run(invite).stdout)).unwrap();
    let endpoint = Endpoint { address: link.address, trust: Trust::Pinned(link.fingerprint) };
    let (connection, _pushes) = Connection::open(&endpoint, "picloud-agent/0").await.unwrap();
    let join = Join { secret: link.secret.to_vec(), device_name: "secretdevice".into() };
    let admitted = connection.call(&join).await.unwrap().admitted.unwrap();
    let drive = admitted.drives[0].id;
    let plain = vec![7; 100_000];
    let id = ChunkId::of(&plain);
    let put = PutChunks { drive, chunks: vec![picloud::content::pack(id, &plain)] };
    connection.call(&put).await.unwrap();
    connection.call(&GetChunks { drive, chunks: vec![id] }).await.unwrap();
    let node = |name: &str| Node {
        place: Place { parent: NodeId::ROOT, name: Name::try_from(name).unwrap() },
        body: Body::Dir,
        attrs: Attrs::from_mode(0o755),
    };
    let create = |id: u8, name| {
        Change::new(NodeId::from_bytes([id; 16]), Rev::ZERO, ChangeOp::Create(node(name)))
    };
    let changes = vec![create(1, "secretdir"), create(2, "secretdir")];
    connection.call(&Commit { drive, changes, chunks: vec![], deletions: None }).await.unwrap();
    // Somebody with a link that is no link.
    let (stranger, _pushes) = Connection::open(&endpoint, "x").await.unwrap();
    stranger.call(&join).await.unwrap_err();

    let body = curl(&[&url("/metrics")]).1;
    assert!(!body.contains("secret"), "{body}");
    let after = families(&body);
    let grown = |series: &str| after[series] - before.get(series).copied().unwrap_or(0.0);
    for (series, expected) in [
        ("picloud_users", 1.0),
        ("picloud_devices", 1.0),
        ("picloud_devices_connected", 1.0),
        ("picloud_nodes", 1.0),
        ("picloud_connections", 2.0),
        ("picloud_connections_accepted_total", 2.0),
        ("picloud_sessions{kind=\"agent\"}", 1.0),
        ("picloud_sessions_total{kind=\"agent\"}", 1.0),
        ("picloud_admissions_total{way=\"join\"}", 1.0),
        ("picloud_denials_total{reason=\"wrong\"}", 1.0),
        ("picloud_commits_total", 1.0),
        ("picloud_changes_accepted_total", 1.0),
        ("picloud_changes_refused_total{reason=\"name_taken\"}", 1.0),
        ("picloud_revs_total", 1.0),
        ("picloud_chunks_received_total", 1.0),
        ("picloud_chunks_sent_total", 1.0),
        ("picloud_stored_records_total", 1.0),
        ("picloud_held_deletions", 0.0),
    ] {
        assert_eq!(grown(series), expected, "{series}\n{body}");
    }
    assert!(after["picloud_pack_bytes"] > 0.0 && after["picloud_disk_free_bytes"] > 0.0);
    assert!(grown("picloud_writer_commit_seconds_count") >= 3.0, "{body}");
    assert!(after.contains_key("picloud_certificate_expiry_timestamp_seconds"));
    drop(connection);
    // Only what is said to be answered is answered.
    assert_eq!(curl(&[&url("/")]).0, 404);
    assert_eq!(curl(&["--request", "POST", "--data", "x", &url("/metrics")]).0, 405);
    assert_eq!(curl(&["--head", &url("/healthz")]).0, 200);
    drop(server);

    // Where others could look, it has to be said twice.
    let open = format!("{settings}[metrics]\nlisten = \"0.0.0.0:{metrics}\"\n");
    std::fs::write(&config, open).unwrap();
    let refused = run(program(&config));
    assert_eq!(refused.status.code(), Some(1));
    assert!(text(&refused.stderr).contains("allow_others = true"), "{refused:?}");
}

#[test]
fn a_server_that_can_take_nothing_more_is_not_healthy_and_strangers_are_bounded() {
    use std::io::Read;
    let dir = tempfile::tempdir().unwrap();
    let (port, metrics) = (free_port(), free_port());
    let config = write_config(dir.path(), port);
    let settings = std::fs::read_to_string(&config).unwrap();
    // More than any disk has.
    let settings = settings.replace("disk_free_min_mib = 0", "disk_free_min_mib = 1073741824");
    let with = format!("{settings}[metrics]\nlisten = \"127.0.0.1:{metrics}\"\n");
    std::fs::write(&config, with).unwrap();
    let _server = Running::start(&config);
    let (code, body) = curl(&[&format!("http://127.0.0.1:{metrics}/healthz")]);
    assert!(code == 503 && body.contains("disk is full"), "{code} {body}");
    let connect = || std::net::TcpStream::connect(("127.0.0.1", metrics)).unwrap();
    // What is no request, and one without an end.
    for bytes in [b"\x16\x03\x01 hello\r\n\r\n".to_vec(), vec![b'x'; 8 * 1024]] {
        let mut tcp = connect();
        tcp.write_all(&bytes).unwrap();
        let mut answer = String::new();
        tcp.read_to_string(&mut answer).unwrap();
        assert!(answer.starts_with("HTTP/1.1 4"), "{answer}");
    }
    // Who holds connections open gets no more than sixteen of them; the rest are hung up on at once.
    let mut held: Vec<_> = (0..24).map(|_| connect()).collect();
    let hung_up = held.split_off(16).into_iter().all(|mut tcp| {
        tcp.set_read_timeout(Some(std::time::Duration::from_secs(10))).unwrap();
        matches!(tcp.read(&mut [0]), Ok(0)) || tcp.take_error().is_ok_and(|error| error.is_some())
    });
    assert!(hung_up);
}
