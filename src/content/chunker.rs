//! Where a file is cut into extents: a function of its bytes alone.
//!
//! 1. The file is divided into blocks of [`BLOCK_LEN`] bytes from its beginning, the last one
//!    perhaps shorter. A block of only zeros is part of a hole, whether the disk has a hole there
//!    or not. Each longest run of such blocks is one [`Extent::Hole`].
//! 2. Each longest run of other blocks is cut by itself with FastCDC (the 2020 variant, gear table
//!    seed 0, normalisation level 1) into chunks of [`MIN_LEN`] to [`MAX_LEN`] bytes, about
//!    [`AVG_LEN`] on average; the last of a run may be shorter.
//!
//! So a sparse file stays sparse, and an edit changes the chunks around it only. The buffer is
//! reused for every chunk and file; memory does not grow with a file but for its list of extents.

use std::fs::File;
use std::io::{self, Read};
use std::os::unix::fs::{FileExt, MetadataExt};

use fastcdc::v2020::FastCDC;
use rustix::fs::SeekFrom;

use crate::model::{ChunkId, Content, ContentList, Extent};

/// The length of the blocks that are a hole when all zero.
pub const BLOCK_LEN: usize = 64 * 1024;
/// The shortest chunk, but for the last of a run. Even, as FastCDC needs it.
pub const MIN_LEN: usize = 64 * 1024;
/// About the average chunk.
pub const AVG_LEN: usize = 256 * 1024;
/// The longest chunk.
pub const MAX_LEN: usize = Content::CHUNK_LEN_MAX as usize;

/// The most extents of one file: as many chunks as an encoded list of 64 MiB can name.
pub const EXTENTS_MAX: usize = 64 * 1024 * 1024 / 37;

/// Room for a chunk that is not cut yet, and for reading on without moving it often.
const BUFFER_LEN: usize = 4 * MAX_LEN;
/// What is enough for most files.
const BUFFER_LEN_FIRST: usize = 2 * BLOCK_LEN;

/// Why a file could not be divided.
#[derive(Debug, thiserror::Error)]
pub enum ChunkError {
    /// Reading failed.
    #[error(transparent)]
    Read(#[from] io::Error),
    /// The file has more extents than a list may have.
    #[error(
        "The file has more than {EXTENTS_MAX} pieces of data, which is more than a content can hold"
    )]
    TooManyExtents,
}

/// What a file holds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Chunked {
    /// The content, for its node.
    pub content: Content,
    /// The list, when the content is one.
    pub list: Option<ContentList>,
}

/// Divides files, one after the other.
#[derive(Debug, Default)]
pub struct Chunker {
    buffer: Vec<u8>,
}

impl Chunker {
    /// Returns a chunker that has no buffer yet.
    #[must_use]
    pub const fn new() -> Self {
        Self { buffer: Vec::new() }
    }

    /// Reads `source` to its end and hands each extent to `sink`, with its bytes when it is a chunk.
    ///
    /// # Errors
    /// When reading fails, the sink does, or there are too many extents.
    pub fn read<E: From<ChunkError>>(
        &mut self,
        source: &mut impl Read,
        sink: impl FnMut(Extent, &[u8]) -> Result<(), E>,
    ) -> Result<Chunked, E> {
        self.run(&mut Stream(source), sink)
    }

    /// As [`Chunker::read`], from the beginning of a file, without reading the holes it has on disk.
    /// The file's own position is not used.
    ///
    /// # Errors
    /// When reading fails, the sink does, or there are too many extents.
    pub fn read_file<E: From<ChunkError>>(
        &mut self,
        file: &File,
        sink: impl FnMut(Extent, &[u8]) -> Result<(), E>,
    ) -> Result<Chunked, E> {
        let meta = file.metadata().map_err(ChunkError::Read)?;
        // A file with all its blocks has no holes worth asking for.
        let may_have_holes =
            meta.size() >= BLOCK_LEN as u64 && meta.blocks().saturating_mul(512) < meta.size();
        let data_until = if may_have_holes { 0 } else { u64::MAX };
        self.run(&mut Sparse { file, data_until }, sink)
    }

    /// Returns what these bytes would be as a file.
    ///
    /// # Errors
    /// When there are too many extents.
    pub fn content_of(&mut self, bytes: &[u8]) -> Result<Chunked, ChunkError> {
        self.read(&mut &*bytes, |_, _| Ok::<_, ChunkError>(()))
    }

    fn run<E, F>(&mut self, source: &mut impl Source, sink: F) -> Result<Chunked, E>
    where
        E: From<ChunkError>,
        F: FnMut(Extent, &[u8]) -> Result<(), E>,
    {
        let mut cutter = Cutter { extents: Vec::new(), hole_len: 0, sink };
        // buffer[start..seen] is data of the present run that is not cut yet; buffer[seen..filled]
        // has been read but not looked at. `offset` is the file offset of `filled`, and the offset
        // of `seen` is always a multiple of BLOCK_LEN.
        let (mut start, mut seen, mut filled, mut offset) = (0, 0, 0, 0_u64);
        loop {
            if seen == filled {
                let hole = source.hole_at(offset).map_err(ChunkError::Read)?;
                if hole > 0 {
                    cutter.data(&self.buffer[start..filled], true)?;
                    (start, seen, filled) = (0, 0, 0);
                    cutter.hole(hole)?;
                    offset += hole;
                }
            }
            if self.buffer.len() - filled < BLOCK_LEN {
                self.make_room(&mut start, &mut seen, &mut filled);
            }
            let count = match source.read(&mut self.buffer[filled..], offset) {
                Ok(count) => count,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => return Err(ChunkError::Read(error).into()),
            };
            filled += count;
            offset += count as u64;
            let at_end = count == 0;
            while filled - seen >= BLOCK_LEN || (at_end && seen < filled) {
                let end = filled.min(seen + BLOCK_LEN);
                if is_zero(&self.buffer[seen..end]) {
                    cutter.data(&self.buffer[start..seen], true)?;
                    cutter.hole((end - seen) as u64)?;
                    start = end;
                } else {
                    cutter.end_hole()?;
                }
                seen = end;
            }
            start += cutter.data(&self.buffer[start..seen], at_end)?;
            if at_end {
                cutter.end_hole()?;
                return finish(cutter.extents).map_err(E::from);
            }
        }
    }

    /// Moves what is not cut yet to the front, and grows the buffer when that is not enough.
    fn make_room(&mut self, start: &mut usize, seen: &mut usize, filled: &mut usize) {
        self.buffer.copy_within(*start..*filled, 0);
        (*seen, *filled) = (*seen - *start, *filled - *start);
        *start = 0;
        if self.buffer.is_empty() {
            self.buffer.resize(BUFFER_LEN_FIRST, 0);
        } else if self.buffer.len() - *filled < BLOCK_LEN {
            self.buffer.resize(BUFFER_LEN, 0);
        }
    }
}

fn finish(extents: Vec<Extent>) -> Result<Chunked, ChunkError> {
    let plain = |content| Chunked { content, list: None };
    match extents.as_slice() {
        [] => Ok(plain(Content::Empty)),
        [Extent::Chunk { id, len }] => Ok(plain(Content::Chunk { id: *id, len: *len })),
        _ => {
            let list = ContentList::new(extents)
                .map_err(|error| ChunkError::Read(io::Error::other(error)))?;
            let content = Content::List { id: list.id(), len: list.len() };
            Ok(Chunked { content, list: Some(list) })
        }
    }
}

/// Cuts runs, joins holes, and keeps the list.
struct Cutter<F> {
    extents: Vec<Extent>,
    /// Of the hole that has not ended yet.
    hole_len: u64,
    sink: F,
}

impl<F> Cutter<F> {
    /// Cuts as much of a run as can be cut without its rest, all of it when this is its end.
    /// Returns how much that was.
    fn data<E>(&mut self, run: &[u8], is_end: bool) -> Result<usize, E>
    where
        E: From<ChunkError>,
        F: FnMut(Extent, &[u8]) -> Result<(), E>,
    {
        let mut done = 0;
        // A cut depends on at most MAX_LEN bytes from the chunk's beginning.
        while run.len() - done >= MAX_LEN || (is_end && done < run.len()) {
            let window = &run[done..run.len().min(done + MAX_LEN)];
            let cdc = FastCDC::new(window, MIN_LEN, AVG_LEN, MAX_LEN);
            let (_, len) = cdc.cut(0, window.len());
            let bytes = &window[..len];
            let extent = Extent::Chunk {
                id: ChunkId::of(bytes),
                len: u32::try_from(len).unwrap_or(Content::CHUNK_LEN_MAX),
            };
            self.push(extent, bytes)?;
            done += len;
        }
        Ok(done)
    }

    fn hole<E: From<ChunkError>>(&mut self, len: u64) -> Result<(), E> {
        self.hole_len = self
            .hole_len
            .checked_add(len)
            .ok_or_else(|| ChunkError::Read(io::ErrorKind::FileTooLarge.into()))?;
        Ok(())
    }

    fn end_hole<E>(&mut self) -> Result<(), E>
    where
        E: From<ChunkError>,
        F: FnMut(Extent, &[u8]) -> Result<(), E>,
    {
        match std::mem::take(&mut self.hole_len) {
            0 => Ok(()),
            len => self.push(Extent::Hole { len }, &[]),
        }
    }

    fn push<E>(&mut self, extent: Extent, bytes: &[u8]) -> Result<(), E>
    where
        E: From<ChunkError>,
        F: FnMut(Extent, &[u8]) -> Result<(), E>,
    {
        if self.extents.len() == EXTENTS_MAX {
            return Err(ChunkError::TooManyExtents.into());
        }
        self.extents.push(extent);
        (self.sink)(extent, bytes)
    }
}

fn is_zero(bytes: &[u8]) -> bool {
    const ZEROS: [u8; 4096] = [0; 4096];
    // The first word tells nearly always.
    bytes.chunks(ZEROS.len()).all(|part| part[0] == 0 && part == &ZEROS[..part.len()])
}

/// Where the bytes come from.
trait Source {
    /// Reads the bytes at `offset`, which is where the last read or hole ended; 0 at the end.
    fn read(&mut self, buffer: &mut [u8], offset: u64) -> io::Result<usize>;

    /// Returns how many bytes from `offset` on are known to be zeros without reading them: whole
    /// blocks, or up to the end of the file. `offset` is a multiple of [`BLOCK_LEN`].
    fn hole_at(&mut self, offset: u64) -> io::Result<u64>;
}

struct Stream<'a, R>(&'a mut R);

impl<R: Read> Source for Stream<'_, R> {
    fn read(&mut self, buffer: &mut [u8], _offset: u64) -> io::Result<usize> {
        self.0.read(buffer)
    }

    fn hole_at(&mut self, _offset: u64) -> io::Result<u64> {
        Ok(0)
    }
}

/// A file that may have holes on disk.
struct Sparse<'a> {
    file: &'a File,
    /// Up to here, from where we are, there is no hole worth knowing; a multiple of BLOCK_LEN.
    data_until: u64,
}

impl Source for Sparse<'_> {
    fn read(&mut self, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
        // Stop where the next hole may begin, so that it is asked for.
        let most = self.data_until.saturating_sub(offset).max(1);
        let len = usize::try_from(most).map_or(buffer.len(), |most| most.min(buffer.len()));
        self.file.read_at(&mut buffer[..len], offset)
    }

    fn hole_at(&mut self, offset: u64) -> io::Result<u64> {
        const BLOCK: u64 = BLOCK_LEN as u64;
        if offset < self.data_until {
            return Ok(0);
        }
        let data = match rustix::fs::seek(self.file, SeekFrom::Data(offset)) {
            Ok(data) => data,
            // No data behind here: a hole up to the end, or the end itself.
            Err(rustix::io::Errno::NXIO) => {
                let end = rustix::fs::seek(self.file, SeekFrom::End(0))?;
                self.data_until = u64::MAX;
                return Ok(end.saturating_sub(offset));
            }
            // A file system that cannot tell: read everything.
            Err(rustix::io::Errno::INVAL | rustix::io::Errno::OPNOTSUPP) => {
                self.data_until = u64::MAX;
                return Ok(0);
            }
            Err(error) => return Err(error.into()),
        };
        let hole = (data - offset) / BLOCK * BLOCK;
        if hole > 0 {
            self.data_until = offset + hole + BLOCK;
            return Ok(hole);
        }
        let end = rustix::fs::seek(self.file, SeekFrom::Hole(data))?;
        self.data_until = end.max(offset + 1).next_multiple_of(BLOCK);
        Ok(0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::io::{Seek, Write};

    /// Bytes that look random and are a function of the seed.
    fn noise(seed: u64, len: usize) -> Vec<u8> {
        let mut bytes = vec![0; len];
        let mut hasher = blake3::Hasher::new();
        hasher.update(&seed.to_be_bytes());
        hasher.finalize_xof().fill(&mut bytes);
        bytes
    }

    /// The definition, said plainly over the whole file.
    fn plainly(bytes: &[u8]) -> Vec<Extent> {
        let mut extents: Vec<Extent> = vec![];
        let mut run: Vec<u8> = vec![];
        let cut = |run: &mut Vec<u8>, extents: &mut Vec<Extent>| {
            for chunk in FastCDC::new(run, MIN_LEN, AVG_LEN, MAX_LEN) {
                let bytes = &run[chunk.offset..chunk.offset + chunk.length];
                extents.push(Extent::Chunk {
                    id: ChunkId::of(bytes),
                    len: u32::try_from(chunk.length).unwrap(),
                });
            }
            run.clear();
        };
        for block in bytes.chunks(BLOCK_LEN) {
            if block.iter().any(|byte| *byte != 0) {
                run.extend_from_slice(block);
                continue;
            }
            cut(&mut run, &mut extents);
            match extents.last_mut() {
                Some(Extent::Hole { len }) => *len += block.len() as u64,
                _ => extents.push(Extent::Hole { len: block.len() as u64 }),
            }
        }
        cut(&mut run, &mut extents);
        extents
    }

    /// Hands out what it has in pieces of these lengths.
    struct Pieces<'a>(&'a [u8], Vec<usize>);

    impl Read for Pieces<'_> {
        fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
            let len = self.1.pop().unwrap_or(usize::MAX);
            if len == 0 {
                return Err(io::ErrorKind::Interrupted.into());
            }
            let len = len.min(buffer.len()).min(self.0.len());
            buffer[..len].copy_from_slice(&self.0[..len]);
            self.0 = &self.0[len..];
            Ok(len)
        }
    }

    /// Divides, and checks that the extents handed out are the bytes and the list.
    fn divide(
        chunker: &mut Chunker,
        original: &[u8],
        run: impl FnOnce(
            &mut Chunker,
            &mut dyn FnMut(Extent, &[u8]) -> Result<(), ChunkError>,
        ) -> Result<Chunked, ChunkError>,
    ) -> Vec<Extent> {
        let (mut extents, mut bytes) = (vec![], vec![]);
        let chunked = run(chunker, &mut |extent, plain| {
            extents.push(extent);
            bytes.extend_from_slice(plain);
            if let Extent::Hole { len } = extent {
                bytes.resize(bytes.len() + usize::try_from(len).unwrap(), 0);
            }
            Ok(())
        })
        .unwrap();
        assert!(bytes == original, "the extents are the file");
        assert_eq!(chunked.content.len(), original.len() as u64);
        match chunked.content {
            Content::Empty => assert_eq!(extents, []),
            Content::Chunk { id, len } => assert_eq!(extents, [Extent::Chunk { id, len }]),
            Content::List { id, .. } => {
                let list = chunked.list.unwrap();
                assert_eq!(list.id(), id);
                assert_eq!(list.extents(), extents);
            }
        }
        extents
    }

    fn parts() -> impl Strategy<Value = Vec<(bool, usize)>> {
        let len = prop_oneof![
            1..5_usize,
            (1..5_usize).prop_map(|blocks| blocks * BLOCK_LEN),
            1..3 * BLOCK_LEN,
            MAX_LEN - 3..2 * MAX_LEN,
        ];
        proptest::collection::vec((any::<bool>(), len), 0..7)
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 48, ..ProptestConfig::default() })]

        #[test]
        fn the_division_is_a_function_of_the_bytes(
            parts in parts(),
            reads in proptest::collection::vec(
                prop_oneof![0..3_usize, 1..BLOCK_LEN, BLOCK_LEN - 1..3 * MAX_LEN], 0..40),
        ) {
            let mut bytes = vec![];
            let mut file = tempfile::tempfile().unwrap();
            for (seed, (is_data, len)) in parts.into_iter().enumerate() {
                if is_data {
                    let part = noise(seed as u64, len);
                    file.write_all(&part).unwrap();
                    bytes.extend_from_slice(&part);
                } else {
                    file.seek_relative(len as i64).unwrap();
                    bytes.resize(bytes.len() + len, 0);
                }
            }
            file.set_len(bytes.len() as u64).unwrap();
            let expected = plainly(&bytes);
            let mut chunker = Chunker::new();
            let whole = divide(&mut chunker, &bytes, |c, sink| c.read(&mut &*bytes, sink));
            prop_assert_eq!(&whole, &expected);
            let cut = divide(&mut chunker, &bytes, |c, sink| c.read(&mut Pieces(&bytes, reads), sink));
            prop_assert_eq!(&cut, &expected);
            let sparse = divide(&mut chunker, &bytes, |c, sink| c.read_file(&file, sink));
            prop_assert_eq!(&sparse, &expected);
        }
    }

    /// These numbers are stored on every device and server: they may never change.
    #[test]
    fn cut_points_never_change() {
        let extents = plainly(&noise(2026, 4 << 20));
        let lens: Vec<u64> = extents.iter().map(Extent::len).collect();
        assert_eq!(lens, GOLDEN_LENS);
        let chunked = Chunker::new().content_of(&noise(2026, 4 << 20)).unwrap();
        let Content::List { id, .. } = chunked.content else {
            panic!("a list");
        };
        assert_eq!(id.to_string(), GOLDEN_LIST);
    }

    const GOLDEN_LENS: &[u64] = &[
        398985, 329846, 205175, 307491, 343800, 302868, 73935, 159365, 327501, 214506, 359122,
        393242, 454328, 324140,
    ];
    const GOLDEN_LIST: &str = "7279092c20580c0fbe6defd32b411734919f030a815eb0fbebe17a4396f621c2";

    #[test]
    fn the_holes_of_a_huge_file_are_not_read() {
        let file = tempfile::tempfile().unwrap();
        file.set_len(1 << 42).unwrap();
        file.write_at(b"x", (1 << 41) + 5).unwrap();
        let chunked = Chunker::new().read_file(&file, |_, _| Ok::<_, ChunkError>(())).unwrap();
        let lens: Vec<u64> = chunked.list.unwrap().extents().iter().map(Extent::len).collect();
        assert_eq!(lens, [1 << 41, 65536, (1 << 42) - (1 << 41) - 65536]);
    }

    #[test]
    fn what_is_short_is_one_chunk_and_what_is_zero_is_none() {
        let mut chunker = Chunker::new();
        assert_eq!(chunker.content_of(b"").unwrap().content, Content::Empty);
        let short = chunker.content_of(&noise(1, MIN_LEN)).unwrap();
        assert!(matches!(short.content, Content::Chunk { len: 65536, .. }));
        let zeros = chunker.content_of(&[0; 5]).unwrap();
        assert_eq!(zeros.list.unwrap().extents(), [Extent::Hole { len: 5 }]);
    }

    #[test]
    fn a_sink_that_fails_stops_the_reading() {
        let mut count = 0;
        let outcome = Chunker::new().read(&mut &*noise(1, 8 << 20), |_, _| {
            count += 1;
            Err(ChunkError::TooManyExtents)
        });
        assert!(outcome.is_err());
        assert_eq!(count, 1);
    }

    /// Run by hand: `cargo test --release --lib chunker_speed -- --ignored --nocapture`.
    #[test]
    #[ignore = "a measurement, not a test"]
    fn chunker_speed() {
        let bytes = noise(1, 256 << 20);
        let mut chunker = Chunker::new();
        for _ in 0..3 {
            let start = std::time::Instant::now();
            chunker.content_of(&bytes).unwrap();
            let secs = start.elapsed().as_secs_f64();
            eprintln!("{:.2} GB/s", bytes.len() as f64 / secs / 1e9);
        }
    }
}
