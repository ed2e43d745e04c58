//! A saved VM's state file: a line that says what it is, the length of a header, the header in JSON, QEMU's stream.
//! Beside it the memory's file, which is the memory and nothing else. The two are one set.

use std::fs::File;
use std::io::{self, Read, Write as _};
use std::os::unix::fs::FileExt as _;

use serde::{Deserialize, Serialize};
use wire::firecracker::{MacAddr, VmConfig};

use crate::host::Host;
use crate::memory::Sum;

/// The format's version, which is the number in the first bytes.
pub(crate) const VERSION: &str = "1.0.0";
/// The first bytes; the number changes with the format.
const MAGIC: &[u8] = b"banger-qemu snapshot 1\n";
/// The longest header.
const MAX_HEADER: u32 = 1 << 20;

/// What a load has to know before QEMU can read its stream.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Header {
    /// What it is bound to.
    pub(crate) host: Host,
    /// The VM, as `GET /vm/config` told it, without what belongs to the process: boot source, log, metrics.
    pub(crate) config: VmConfig,
    /// The addresses of the interfaces, those that the client gave none included.
    pub(crate) macs: Vec<MacAddr>,
    /// Of the memory's file.
    pub(crate) memory: Sum,
    /// Whether QEMU's stream has pages of the memory too, as that of a VM has whose memory is a template.
    pub(crate) pages: bool,
    /// Of QEMU's stream.
    stream: Sum,
    stream_len: u64,
}

impl Header {
    /// One for `stream`, whose sum is taken here.
    ///
    /// # Errors
    /// What reading says.
    pub(crate) fn new(
        host: Host,
        config: VmConfig,
        macs: Vec<MacAddr>,
        (memory, pages): (Sum, bool),
        stream: &File,
    ) -> io::Result<Self> {
        let stream_len = crate::memory::length(stream)?;
        let mut sum = Sum::default();
        pieces(stream, 0, stream_len, |at, piece| {
            sum.add(at, piece);
            Ok(())
        })?;
        Ok(Self { host, config, macs, memory, pages, stream: sum, stream_len })
    }

    /// Writes the whole file.
    ///
    /// # Errors
    /// What reading and writing say.
    pub(crate) fn write(&self, mut to: &File, stream: &File) -> io::Result<()> {
        let header = serde_json::to_vec(self)?;
        let length = u32::try_from(header.len()).map_err(io::Error::other)?;
        to.write_all(&[MAGIC, &length.to_le_bytes(), &header].concat())?;
        pieces(stream, 0, self.stream_len, |_, piece| to.write_all(piece))
    }

    /// Reads a whole file: the header, and the stream into a file of its own, both checked.
    ///
    /// # Errors
    /// Says what is wrong with it.
    pub(crate) fn read(mut file: &File) -> Result<(Self, File), String> {
        read_magic(file)?;
        let mut length = [0; 4];
        file.read_exact(&mut length).map_err(failed)?;
        let length = u32::from_le_bytes(length);
        if length > MAX_HEADER {
            return Err("its header is longer than 1 MiB".to_owned());
        }
        let mut header = Vec::new();
        file.take(u64::from(length)).read_to_end(&mut header).map_err(failed)?;
        let header: Self = serde_json::from_slice(&header).map_err(|error| format!("its header: {error}"))?;
        let at = (MAGIC.len() + 4) as u64 + u64::from(length);
        let there = crate::memory::length(file).map_err(failed)?;
        if at.checked_add(header.stream_len) != Some(there) {
            return Err(format!("it has {there} bytes, and its header says another number"));
        }
        let stream = stream_file().map_err(failed)?;
        let mut sum = Sum::default();
        pieces(file, at, header.stream_len, |begin, piece| {
            sum.add(begin, piece);
            (&stream).write_all(piece)
        })
        .map_err(failed)?;
        if sum != header.stream {
            return Err("its bytes are not those that were written".to_owned());
        }
        Ok((header, stream))
    }
}

/// The version of a state file.
///
/// # Errors
/// Says why it is none.
pub(crate) fn version_of(path: &std::path::Path) -> Result<&'static str, String> {
    let file = File::open(path).map_err(|error| error.to_string())?;
    read_magic(&file).map(|()| VERSION)
}

fn read_magic(mut file: &File) -> Result<(), String> {
    let mut begin = [0; MAGIC.len()];
    file.read_exact(&mut begin).map_err(failed)?;
    if begin != *MAGIC {
        return Err("it is no snapshot of banger-qemu's, or one of another version".to_owned());
    }
    Ok(())
}

fn failed(error: io::Error) -> String {
    match error.kind() {
        io::ErrorKind::UnexpectedEof => "it ends too early".to_owned(),
        _ => error.to_string(),
    }
}

/// An empty file for QEMU's stream that is nowhere but in memory.
///
/// # Errors
/// What the kernel says.
pub(crate) fn stream_file() -> io::Result<File> {
    Ok(rustix::fs::memfd_create("banger-state", rustix::fs::MemfdFlags::CLOEXEC)?.into())
}

/// Reads `len` bytes from `at` on, in pieces, each with its place counted from there.
fn pieces(file: &File, at: u64, len: u64, mut each: impl FnMut(u64, &[u8]) -> io::Result<()>) -> io::Result<()> {
    let mut piece = [0; 64 * 1024];
    let mut done = 0;
    while done < len {
        let room = usize::try_from(len - done).unwrap_or(piece.len()).min(piece.len());
        file.read_exact_at(&mut piece[..room], at + done)?;
        each(done, &piece[..room])?;
        done += room as u64;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::machine::Accelerator;
    use std::io::{Seek as _, SeekFrom};

    fn written(stream: &[u8]) -> Vec<u8> {
        let host = Host::here("7", "/proc/self/exe".as_ref(), Accelerator::Tcg { tsc_khz: None }).expect("a host");
        let mut source = stream_file().expect("a file");
        source.write_all(stream).expect("written");
        let config = crate::config::Resources::default().describe();
        let header = Header::new(host, config, Vec::new(), (Sum::default(), false), &source).expect("a header");
        let mut file = tempfile::tempfile().expect("a file");
        header.write(&file, &source).expect("written");
        let mut bytes = Vec::new();
        file.seek(SeekFrom::Start(0)).expect("the beginning");
        file.read_to_end(&mut bytes).expect("read");
        bytes
    }

    fn read(bytes: &[u8]) -> Result<Vec<u8>, String> {
        let mut file = tempfile::tempfile().expect("a file");
        file.write_all(bytes).expect("written");
        file.seek(SeekFrom::Start(0)).expect("the beginning");
        let (_, mut stream) = Header::read(&file)?;
        let mut got = Vec::new();
        stream.seek(SeekFrom::Start(0)).expect("the beginning");
        stream.read_to_end(&mut got).expect("read");
        Ok(got)
    }

    #[test]
    fn what_is_written_is_read() {
        for stream in [&b""[..], b"QEVM", &vec![7; 200_000]] {
            assert_eq!(read(&written(stream)).expect("read"), stream);
        }
    }

    /// Every byte but those of JSON's own freedom counts: no file that was cut or changed is taken.
    #[test]
    fn a_file_that_was_cut_or_changed_is_refused() {
        let good = written(b"QEVM and more");
        for end in 0..good.len() {
            read(&good[..end]).expect_err("cut");
        }
        let in_stream = good.len() - 5;
        for at in [0, MAGIC.len(), MAGIC.len() + 3, in_stream] {
            let mut bad = good.clone();
            bad[at] ^= 0x80;
            read(&bad).expect_err("changed");
        }
        read(&[&good[..], b"x"].concat()).expect_err("longer");
        read(&vec![0xff; 4096]).expect_err("garbage");
    }
}
