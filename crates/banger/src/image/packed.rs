//! A file that may be packed, read unpacked: gzip, XZ and zstd, told by their first bytes.

use std::io::{self, BufReader, Chain, Cursor, Read};

use flate2::read::MultiGzDecoder;
use lzma_rust2::XzReader;
use ruzstd::decoding::StreamingDecoder;

use super::error::Error;
use super::tar::unreadable;
use super::xz_zstd::XZ_MEMORY_KIB;

/// The bytes that tell.
const MAGIC: usize = 6;

/// What comes out of `file`. How much that is, only the reader's end of it can bound.
pub(crate) fn unpacked<'a>(mut file: impl Read + 'a) -> Result<Box<dyn Read + 'a>, Error> {
    let mut magic = Vec::new();
    file.by_ref().take(MAGIC as u64).read_to_end(&mut magic).map_err(|cause| unreadable(&cause))?;
    let start = magic.clone();
    let file: BufReader<Chain<Cursor<Vec<u8>>, _>> =
        BufReader::with_capacity(256 << 10, Cursor::new(magic).chain(file));
    Ok(if start.starts_with(&[0x1f, 0x8b]) {
        Box::new(MultiGzDecoder::new(file))
    } else if start.starts_with(&[0xfd, b'7', b'z', b'X', b'Z', 0]) {
        Box::new(XzReader::new_mem_limit(file, true, XZ_MEMORY_KIB))
    } else if start.starts_with(&[0x28, 0xb5, 0x2f, 0xfd]) {
        Box::new(StreamingDecoder::new(file).map_err(|cause| unreadable(&io::Error::other(cause)))?)
    } else {
        Box::new(file)
    })
}
