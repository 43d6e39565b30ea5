//! Agents in this process, each with settings, state and a folder of its own in one directory that
//! goes with them, against a server in this process.

#![allow(dead_code, reason = "each test binary uses its own part of this")]
#![allow(clippy::unwrap_used, reason = "a test ends where something fails")]

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use picloud::agent::config::{self, Authority, FolderConfig};
use picloud::agent::credentials::{self, Token};
use picloud::agent::disk::{DiskFolder, Identity};
use picloud::agent::{self, Options, RunningAgent};
use picloud::model::{DeviceId, Flow, FolderId};
use picloud::protocol::control::{State, Status};

use crate::server_support::{PATIENCE, Server};

/// A device with its own directory: settings, state and folder.
pub struct Machine {
    pub dir: tempfile::TempDir,
    pub name: String,
    pub device: DeviceId,
    pub agent: Option<RunningAgent>,
}

impl Machine {
    /// Joins a new device and starts its agent.
    pub async fn join(server: &Server, name: &str) -> Self {
        let mut machine = Self::linked(server, name).await;
        machine.start().await;
        machine
    }

    /// Joins a new device; its agent does not run yet.
    pub async fn linked(server: &Server, name: &str) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let device = server.join("alice", name).await;
        let mut id = [0; 16];
        getrandom::fill(&mut id).unwrap();
        let id = FolderId::from_bytes(id);
        let folder = dir.path().join("PiCloud");
        let identity = Identity { folder: id, drive: device.drive };
        DiskFolder::link(&folder, identity, None).unwrap();
        let config = dir.path().join("agent.toml");
        let folder = FolderConfig {
            id,
            path: folder,
            server: server.running.address().to_string(),
            authority: Authority::Fingerprint(server.running.fingerprint()),
            user: "alice".into(),
            device: device.admitted.device,
            device_name: device.admitted.device_name.clone(),
            drive: device.drive,
            ignore: vec![],
            paused: false,
            flow: Flow::Both,
        };
        let token = Token::new(device.token.clone());
        credentials::set_token(&credentials::path_beside(&config), id, &token).unwrap();
        config::add_folder(&config, &folder, Some(name)).unwrap();
        Self { dir, name: name.into(), device: device.admitted.device, agent: None }
    }

    pub fn config(&self) -> PathBuf {
        self.dir.path().join("agent.toml")
    }

    pub fn socket(&self) -> PathBuf {
        self.dir.path().join("agent.sock")
    }

    pub async fn start(&mut self) {
        let agent = agent::start(Options::new(self.config())).await.unwrap();
        self.agent = Some(agent);
    }

    pub async fn stop(&mut self) {
        self.agent.take().unwrap().stop().await;
    }

    pub fn status(&self) -> Status {
        self.agent.as_ref().unwrap().status()
    }

    pub fn path(&self, at: &str) -> PathBuf {
        self.dir.path().join("PiCloud").join(at)
    }

    pub fn write(&self, at: &str, bytes: impl AsRef<[u8]>) {
        let path = self.path(at);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, bytes).unwrap();
    }

    pub fn read(&self, at: &str) -> Option<Vec<u8>> {
        fs::read(self.path(at)).ok()
    }

    pub async fn sync(&self) {
        let syncing = self.agent.as_ref().unwrap().sync();
        if tokio::time::timeout(PATIENCE, syncing).await.is_err() {
            panic!("{} does not come to rest: {:#?}", self.name, self.status());
        }
    }

    /// Waits for a state.
    pub async fn until(&self, what: &str, is_so: impl Fn(&Status) -> bool) {
        let agent = self.agent.as_ref().unwrap();
        let mut changes = agent.changes();
        let waiting = async {
            while !is_so(&agent.status()) {
                changes.changed().await.unwrap();
            }
        };
        if tokio::time::timeout(PATIENCE, waiting).await.is_err() {
            panic!("{} is not {what}: {:#?}", self.name, agent.status());
        }
    }

    pub async fn until_state(&self, state: State) {
        self.until(&format!("{state:?}"), |status| status.state == state).await;
    }

    /// Everything in the folder, but for what is the agent's own.
    pub fn tree(&self) -> BTreeMap<PathBuf, String> {
        let root = self.path("");
        let mut tree = BTreeMap::new();
        for entry in walkdir::WalkDir::new(&root).min_depth(1) {
            // An entry may go while the tree is walked: the tree is then not at rest.
            let Ok(entry) = entry else { continue };
            let path = entry.path().strip_prefix(&root).unwrap().to_owned();
            if path.starts_with(".picloud") {
                continue;
            }
            let Ok(meta) = fs::symlink_metadata(entry.path()) else {
                continue;
            };
            let mode = meta.mode() & 0o777;
            let what = if meta.is_dir() {
                format!("dir {mode:o}")
            } else if meta.is_symlink() {
                let target = fs::read_link(entry.path()).unwrap_or_default();
                format!("link {:?}", target.as_os_str().as_bytes())
            } else {
                let bytes = fs::read(entry.path()).unwrap_or_default();
                let hash = blake3::hash(&bytes).to_hex();
                let (secs, nanos) = (meta.mtime(), meta.mtime_nsec());
                format!("file {mode:o} {secs}.{nanos:09} {} {hash}", bytes.len())
            };
            tree.insert(path, what);
        }
        tree
    }

    /// What lies in the agent's own directories within the folder and should not stay there.
    pub fn leftovers(&self) -> Vec<PathBuf> {
        ["staging", "parked"]
            .iter()
            .flat_map(|dir| fs::read_dir(self.path(".picloud").join(dir)).into_iter().flatten())
            .map(|entry| entry.unwrap().path())
            .collect()
    }
}

/// Syncs all machines until their folders are the same.
pub async fn settle(machines: &[&Machine]) {
    let start = Instant::now();
    loop {
        for machine in machines {
            machine.sync().await;
        }
        let first = machines[0].tree();
        let others: Vec<_> = machines[1..].iter().map(|machine| machine.tree()).collect();
        if others.iter().all(|tree| *tree == first) {
            for machine in machines {
                assert_eq!(machine.leftovers(), Vec::<PathBuf>::new(), "{}", machine.name);
            }
            return;
        }
        if start.elapsed() > PATIENCE {
            for (machine, tree) in machines[1..].iter().zip(&others) {
                let differs = |(path, what): &(&PathBuf, &String)| first.get(*path) != Some(*what);
                let here: Vec<_> = tree.iter().filter(differs).take(20).collect();
                let differs = |(path, what): &(&PathBuf, &String)| tree.get(*path) != Some(*what);
                let there: Vec<_> = first.iter().filter(differs).take(20).collect();
                eprintln!("{} only: {here:#?}", machine.name);
                eprintln!("{} only: {there:#?}", machines[0].name);
                eprintln!("{:#?}", machine.status());
            }
            panic!("the folders stay different");
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// Waits until a file has these bytes.
pub async fn until_file(path: &Path, bytes: &[u8]) {
    let start = Instant::now();
    while fs::read(path).ok().as_deref() != Some(bytes) {
        assert!(start.elapsed() < PATIENCE, "{path:?} does not come");
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
}

/// Bytes that do not compress, the same for the same seed.
pub fn noise(seed: u64, len: usize) -> Vec<u8> {
    let mut bytes = vec![0; len];
    blake3::Hasher::new().update(&seed.to_be_bytes()).finalize_xof().fill(&mut bytes);
    bytes
}
