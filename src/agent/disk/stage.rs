//! Writing a content to staging, chunk by chunk as they arrive, in any order.

use std::collections::VecDeque;
use std::fs::File;
use std::num::NonZeroU64;
use std::os::unix::fs::FileExt;

use rustix::fs::Advice;

use super::folder::{DiskFolder, create, io_fault, set_on};
use super::hash::OpenFile;
use crate::engine::apply::Payload;
use crate::engine::folder::{Fault, Folder, Own};
use crate::model::{Attrs, Checked, Content, ContentList, Extent, Name, Timestamp};

/// A file from this length on is made durable by its writer, so that the pool, which places small
/// files too, need not wait for it.
const SYNC_SELF_FROM: u64 = 1024 * 1024;

/// The disk is asked to take so much at once.
const ASK_EARLY_LEN: u64 = 8 * 1024 * 1024;

/// So many pieces later the memory that a piece took is asked back: by then it is on the disk.
const GIVE_BACK_AFTER: usize = 8;

/// What was written and the disk was not yet asked to take: so many bytes, all of them between two offsets.
#[derive(Debug)]
struct Unasked {
    len: u64,
    begin: u64,
    end: u64,
}

impl Default for Unasked {
    fn default() -> Self {
        Self { len: 0, begin: u64::MAX, end: 0 }
    }
}

/// A file in staging that is being written. Dropped before it is finished, it is removed.
#[derive(Debug)]
pub struct StagedFile {
    folder: DiskFolder,
    name: Name,
    file: File,
    extents: Vec<Extent>,
    offsets: Vec<u64>,
    is_written: Vec<bool>,
    missing: usize,
    len: u64,
    unasked: Unasked,
    /// The last pieces that the disk was asked to take: offset and length.
    asked: VecDeque<(u64, Option<NonZeroU64>)>,
    is_finished: bool,
}

impl StagedFile {
    /// Begins a file with this content; `list` is its list when it has one.
    ///
    /// # Errors
    /// When staging cannot be written, or the list is another content's.
    pub fn begin(
        folder: &DiskFolder,
        content: &Content,
        list: Option<&ContentList>,
    ) -> Result<Self, Fault> {
        let extents = match (content, list) {
            (Content::Empty, _) => Vec::new(),
            (Content::Chunk { id, len }, _) => vec![Extent::Chunk { id: *id, len: *len }],
            (Content::List { id, len }, Some(list)) if list.len() == *len && list.id() == *id => {
                list.extents().to_vec()
            }
            (Content::List { .. }, _) => {
                return Err(Fault::Other("The list is not the one of this content".into()));
            }
        };
        let mut end = 0;
        let offsets = extents
            .iter()
            .map(|extent| {
                let offset = end;
                end += extent.len();
                offset
            })
            .collect();
        // Holes need no bytes: the file's length makes them.
        let is_written: Vec<bool> =
            extents.iter().map(|extent| matches!(extent, Extent::Hole { .. })).collect();
        let name = folder.fresh_staged_name()?;
        let file = create(std::os::fd::AsFd::as_fd(&*folder.own_dir(Own::Staging)), &name)?;
        Ok(Self {
            folder: folder.clone(),
            name,
            file,
            missing: is_written.iter().filter(|is_written| !**is_written).count(),
            extents,
            offsets,
            is_written,
            len: content.len(),
            unasked: Unasked::default(),
            asked: VecDeque::new(),
            is_finished: false,
        })
    }

    /// Returns the extents with their offsets, in the order of the file.
    pub fn extents(&self) -> impl Iterator<Item = (u64, Extent)> {
        self.offsets.iter().copied().zip(self.extents.iter().copied())
    }

    /// Returns whether the extent at this index is written (or a hole).
    #[must_use]
    pub fn is_written(&self, index: usize) -> bool {
        self.is_written.get(index).copied().unwrap_or(false)
    }

    /// Returns whether nothing is missing.
    #[must_use]
    pub const fn is_complete(&self) -> bool {
        self.missing == 0
    }

    /// Writes the chunk at this index of the extents.
    ///
    /// # Errors
    /// When these are not its bytes, or the disk does not take them.
    pub fn write(&mut self, index: usize, bytes: &Checked<'_>) -> Result<(), Fault> {
        let (Some(Extent::Chunk { id, len }), Some(offset)) =
            (self.extents.get(index), self.offsets.get(index))
        else {
            return Err(Fault::Other(format!("There is no chunk {index} in this content")));
        };
        if bytes.len() != *len as usize || bytes.id() != *id {
            return Err(Fault::Other(format!("Bytes received are not those of chunk {id}")));
        }
        self.file.write_all_at(bytes, *offset).map_err(io_fault)?;
        self.ask_early(*offset, bytes.len() as u64);
        if !self.is_written[index] {
            self.is_written[index] = true;
            self.missing -= 1;
        }
        Ok(())
    }

    /// Has the system begin to write to the disk what has come, in long pieces, and give back the memory of
    /// what it has written. Left alone it would wait until gigabytes are in memory, and the sync at the end
    /// for all of them; and take ever new memory for them from everything else on the machine. (In a virtual
    /// machine that costs most of all: 2.6 s of CPU for 2 GiB instead of 0.6.)
    fn ask_early(&mut self, offset: u64, len: u64) {
        let unasked = &mut self.unasked;
        unasked.len += len;
        unasked.begin = unasked.begin.min(offset);
        unasked.end = unasked.end.max(offset + len);
        if unasked.len < ASK_EARLY_LEN {
            return;
        }
        let Unasked { begin, end, .. } = std::mem::take(unasked);
        let piece = (begin, NonZeroU64::new(end.saturating_sub(begin)));
        // Only advice: whatever comes of it, the sync at the end counts. It begins to write what is not
        // written, and gives back what is.
        let advise = |(begin, len)| {
            let _ = rustix::fs::fadvise(&self.file, begin, len, Advice::DontNeed);
        };
        advise(piece);
        self.asked.push_back(piece);
        if self.asked.len() > GIVE_BACK_AFTER
            && let Some(written) = self.asked.pop_front()
        {
            advise(written);
        }
    }

    /// Takes the chunk at this index from an older version on this disk, where it is believed to be
    /// at `offset`; returns whether it was there.
    ///
    /// # Errors
    /// When the old file cannot be read, or the disk does not take the bytes.
    pub fn copy(&mut self, index: usize, old: &OpenFile, offset: u64) -> Result<bool, Fault> {
        let Some(Extent::Chunk { id, len }) = self.extents.get(index).copied() else {
            return Ok(false);
        };
        match old.read_chunk_at(offset, &id, len)? {
            Some(bytes) => self.write(index, &bytes).map(|()| true),
            None => Ok(false),
        }
    }

    /// Completes the file, for [`Payload::Staged`] of the job that puts it in place.
    ///
    /// # Errors
    /// When chunks are missing, or the disk does not take it.
    pub fn finish(mut self, attrs: Attrs, mtime: Timestamp) -> Result<Payload, Fault> {
        if self.missing > 0 {
            return Err(Fault::Other(format!("{} chunks are missing", self.missing)));
        }
        if matches!(self.extents.last(), Some(Extent::Hole { .. })) {
            self.file.set_len(self.len).map_err(io_fault)?;
        }
        set_on(&self.file, attrs, Some(mtime))?;
        let is_durable = self.len >= SYNC_SELF_FROM;
        if is_durable {
            self.file.sync_all().map_err(io_fault)?;
        }
        self.is_finished = true;
        Ok(Payload::Staged { name: self.name.clone(), is_durable })
    }
}

impl Drop for StagedFile {
    fn drop(&mut self) {
        if !self.is_finished {
            // What stays is removed by the next recovery.
            drop(self.folder.unlink(&self.folder.own_dir(Own::Staging), &self.name));
        }
    }
}
