//! XZ and zstd streams, unpacked with a limit on what comes out and on the memory that the stream may ask for.

use std::io::{self, Read};

use lzma_rust2::XzReader;
use ruzstd::decoding::StreamingDecoder;

/// Largest dictionary that an XZ stream may ask for, in KiB: the kernel's own build uses 128 MiB at most.
pub(super) const XZ_MEMORY_KIB: u32 = 192 * 1024;

/// Unpacks an XZ stream that holds at most `limit` bytes.
pub(super) fn xz(packed: &[u8], limit: usize) -> io::Result<Vec<u8>> {
    bounded(XzReader::new_mem_limit(packed, false, XZ_MEMORY_KIB), limit)
}

/// Unpacks a zstd frame that holds at most `limit` bytes. A window above 128 MiB is refused by the decoder.
pub(super) fn zstd(packed: &[u8], limit: usize) -> io::Result<Vec<u8>> {
    bounded(StreamingDecoder::new(packed).map_err(io::Error::other)?, limit)
}

fn bounded(stream: impl Read, limit: usize) -> io::Result<Vec<u8>> {
    let mut out = Vec::new();
    stream.take(limit as u64 + 1).read_to_end(&mut out)?;
    if out.len() > limit {
        return Err(io::Error::new(io::ErrorKind::InvalidData, format!("more than {limit} bytes come out of it")));
    }
    Ok(out)
}
