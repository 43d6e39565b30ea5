//! Every prefix of what was written, recovered in this process.
//!
//! A cut as [`crate::cut_the_power`] plays it takes seconds, because programs are started on all
//! disks. What the server promises can be seen with less: its two disks are mounted as a prefix of
//! their writes left them, its store is opened as the server opens it, and what it then holds is read
//! as the server reads it. Each of the two disks keeps what was flushed, or all that was written, so
//! rows without their bytes, and bytes without their rows, are among the states. Of the devices it is
//! seen that what came from elsewhere is whole or not there at all, and that the state can be read.

use std::fs;
use std::path::Path;

use picloud::content::unpack;
use picloud::model::{Body, ChunkId, Content, ContentList, Extent, NodeId, RelPath, Rev};
use picloud::server::packs::{Packs, chunk_data};
use picloud::server::store::metadata::Metadata;
use picloud::server::store::{Layout, Store, StoreError};
use tokio::runtime::Runtime;

use crate::disk::Disks;
use crate::ledger::{Arrived, Files, Ledger};
use crate::support::{Device, World};
use crate::{Person, files_of};

/// The disks of the server's data and of its packs, as they were mounted.
const SERVER: [usize; 2] = [0, 1];

/// The disks of each device's state and folder.
const DEVICES: [[usize; 2]; 2] = [[2, 3], [4, 5]];

/// What the disks of a session are looked at with.
pub struct Check<'a> {
    pub world: &'a World,
    pub devices: &'a [Device; 2],
    pub disks: &'a Disks,
    pub ledger: &'a Ledger,
    pub person: &'a Person,
    /// When the session began.
    pub first: usize,
}

impl Check<'_> {
    /// Recovers as many prefixes of each machine as asked for, spread over all there are, and says what
    /// is wrong.
    pub fn all(&self, runtime: &Runtime, count_max: usize) -> Vec<String> {
        let mut complaints =
            self.each("the server", SERVER, count_max, |cut| self.server(runtime, cut));
        for (device, disks) in self.devices.iter().zip(DEVICES) {
            complaints.extend(
                self.each(&device.name, disks, count_max / 3, |cut| self.device(device, cut)),
            );
        }
        complaints
    }

    /// Looks at a machine's disks, mounted as each of at most `count` prefixes left them; these are
    /// evenly spread, the last one among them.
    fn each(
        &self,
        name: &str,
        disks: [usize; 2],
        count: usize,
        look: impl Fn(usize) -> Vec<String>,
    ) -> Vec<String> {
        let prefixes = self.disks.prefixes(&disks, self.first);
        let step = prefixes.len().div_ceil(count.max(1)).max(1);
        let (mut complaints, mut recovered) = (Vec::new(), 0);
        for prefix in prefixes.iter().rev().step_by(step) {
            let wrong = self.disks.with_prefix(prefix, || look(prefix.cut));
            complaints
                .extend(wrong.into_iter().map(|wrong| format!("{prefix:?}, {name}: {wrong}")));
            recovered += 1;
        }
        println!("prefixes of {name}: {recovered} recovered of {}", prefixes.len());
        complaints
    }

    /// What came from elsewhere is whole or not there, and the state is no wreck.
    fn device(&self, device: &Device, cut: usize) -> Vec<String> {
        let mut wrong = self.ledger.torn(&files_of(device), device, cut);
        for entry in fs::read_dir(device.dir.join("state")).into_iter().flatten() {
            let state = entry.unwrap().path().join("state.sqlite");
            if !state.exists() {
                continue;
            }
            let check = || -> rusqlite::Result<String> {
                let database = rusqlite::Connection::open(&state)?;
                database.query_row("PRAGMA quick_check", [], |row| row.get(0))
            };
            match check() {
                Ok(text) if text == "ok" => {}
                Ok(text) => wrong.push(format!("its state is damaged: {text}")),
                Err(error) => wrong.push(format!("its state cannot be read: {error}")),
            }
        }
        wrong
    }

    fn server(&self, runtime: &Runtime, cut: usize) -> Vec<String> {
        let opened = runtime.block_on(recover(&self.world.server_data()));
        match opened {
            Ok((head, files)) => {
                let mut wrong = self.ledger.complaints(&files, &Arrived::new(), cut);
                let told = self.person.told_until(cut);
                if Some(head) < told {
                    wrong.push(format!("the journal is at {head:?}, but {told:?} was told"));
                }
                wrong
            }
            Err(error) => vec![format!("the store cannot be read: {error}")],
        }
    }
}

/// Opens the store as a server does after a crash, and returns the head of its drive and all files.
async fn recover(data: &Path) -> Result<(Rev, Files), StoreError> {
    let layout = Layout::create(data)?;
    let store = Store::open(&layout, 0)?;
    let found = store
        .read(|metadata, packs| {
            let mut files = Files::new();
            let mut head = Rev::ZERO;
            for user in metadata.users()? {
                for drive in metadata.drives(user.num)? {
                    head = drive.head;
                    read_dir(
                        metadata,
                        packs,
                        drive.num,
                        NodeId::ROOT,
                        &RelPath::default(),
                        &mut files,
                    )?;
                }
            }
            Ok((head, files))
        })
        .await;
    store.close().await;
    found
}

fn read_dir(
    metadata: &mut dyn Metadata,
    packs: &Packs,
    drive: i64,
    dir: NodeId,
    at: &RelPath,
    files: &mut Files,
) -> Result<(), StoreError> {
    for child in metadata.children(drive, dir, None, usize::from(u16::MAX))? {
        let Some(node) = child.node else { continue };
        let path = at.join(&node.place.name);
        match node.body {
            Body::Dir => read_dir(metadata, packs, drive, child.id, &path, files)?,
            Body::File { content, .. } => {
                files.insert(path.to_string(), read_content(metadata, packs, drive, &content)?);
            }
            Body::Link { .. } => {}
        }
    }
    Ok(())
}

fn read_content(
    metadata: &mut dyn Metadata,
    packs: &Packs,
    drive: i64,
    content: &Content,
) -> Result<Vec<u8>, StoreError> {
    match content {
        Content::Empty => Ok(Vec::new()),
        Content::Chunk { id, .. } => read_chunk(metadata, packs, drive, *id),
        Content::List { id, .. } => {
            let row = metadata.list(drive, *id)?.ok_or_else(|| damaged("a list is not there"))?;
            let list = ContentList::decode(&packs.read(row.at, id.as_bytes())?.data)
                .map_err(|error| damaged(&error.to_string()))?;
            let mut bytes = Vec::new();
            for extent in list.extents() {
                match extent {
                    Extent::Chunk { id, .. } => {
                        bytes.extend(read_chunk(metadata, packs, drive, *id)?);
                    }
                    Extent::Hole { len } => {
                        bytes.resize(bytes.len() + usize::try_from(*len).unwrap(), 0);
                    }
                }
            }
            Ok(bytes)
        }
    }
}

fn read_chunk(
    metadata: &mut dyn Metadata,
    packs: &Packs,
    drive: i64,
    id: ChunkId,
) -> Result<Vec<u8>, StoreError> {
    let row = metadata.chunk(drive, id)?.ok_or_else(|| damaged("a chunk is not there"))?;
    let record = packs.read(row.at, id.as_bytes())?;
    let chunk = chunk_data(record)?;
    let plain = unpack(&chunk).map_err(|error| damaged(&error.to_string()))?;
    Ok(plain.into_vec())
}

fn damaged(what: &str) -> StoreError {
    StoreError::Damaged(what.to_owned())
}
