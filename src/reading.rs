//! Reading parts of files into memory that nobody has filled with zeros first: for gigabytes that costs as much
//! as the reading.

use std::fs::File;
use std::io;

use rustix::buffer::spare_capacity;
use rustix::io::Errno;

/// Reads `len` bytes at `offset`.
///
/// # Errors
/// [`io::ErrorKind::UnexpectedEof`] when there are not as many, or what the disk says.
pub(crate) fn read_at(file: &File, offset: u64, len: usize) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::with_capacity(len);
    while bytes.len() < len {
        let at = offset + bytes.len() as u64;
        match rustix::io::pread(file, spare_capacity(&mut bytes), at) {
            Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(_) | Err(Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
    // There may be room for more than was asked for.
    bytes.truncate(len);
    Ok(bytes)
}
