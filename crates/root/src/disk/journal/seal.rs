//! A log's seal: for which file it is.

use std::fs::File;
use std::os::unix::fs::FileExt;
use sys::dir::Facts;
use sys::handle::Handle;
use wire::worker::log::crc32c;

const MAGIC: [u8; 8] = *b"bngr-for";
/// Behind path and handle: their lengths, the handle's kind, the worker's log's length, a checksum, the magic.
const SEAL_END: usize = 2 + 2 + 4 + 8 + 4 + 8;

/// The name of an image's log: the same whatever the image is called.
pub(super) fn log_name(Handle { kind, bytes }: &Handle) -> String {
    // A name has 255 bytes.
    let hex: String = bytes.iter().take(96).map(|byte| format!("{byte:02x}")).collect();
    format!("write-{kind:x}-{hex}.log")
}

/// What stands behind the worker's part of a log.
pub(super) fn seal(log: u64, path: &str, handle: &Handle) -> Vec<u8> {
    let mut bytes = path.as_bytes().to_vec();
    bytes.extend(&handle.bytes);
    let length = |length: usize| u16::try_from(length).unwrap_or(u16::MAX).to_le_bytes();
    bytes.extend(length(path.len()));
    bytes.extend(length(handle.bytes.len()));
    bytes.extend(handle.kind.to_le_bytes());
    bytes.extend(log.to_le_bytes());
    let sum = crc32c(!0, &bytes);
    bytes.extend(sum.to_le_bytes());
    bytes.extend(MAGIC);
    bytes
}

/// For which file a log is: its path, its handle, and the length of the worker's part.
pub(super) type Sealed = (String, Handle, u64);

/// Reads a log's seal; `None` where it isn't whole.
pub(super) fn read_seal(file: &File) -> Option<Sealed> {
    let size = Facts::of(file).ok()?.size;
    let at = |length: usize| size.checked_sub(length as u64);
    let mut end = [0; SEAL_END];
    file.read_exact_at(&mut end, at(SEAL_END)?).ok()?;
    let (path, rest) = end.split_first_chunk::<2>()?;
    let (handle, _) = rest.split_first_chunk::<2>()?;
    let (path, handle) = (usize::from(u16::from_le_bytes(*path)), usize::from(u16::from_le_bytes(*handle)));
    let mut whole = vec![0; path + handle + SEAL_END];
    let log = at(whole.len())?;
    file.read_exact_at(&mut whole, log).ok()?;
    let text = std::str::from_utf8(whole.get(..path)?).ok()?.to_owned();
    let kind = i32::from_le_bytes(*whole.get(path + handle + 4..)?.first_chunk()?);
    let handle = Handle { kind, bytes: whole.get(path..path + handle)?.to_vec() };
    // Made again: so each of its bytes is as it must be.
    (seal(log, &text, &handle) == whole).then_some((text, handle, log))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_seal_is_whole_or_none() {
        let dir = tempfile::tempdir().unwrap();
        let file =
            File::options().read(true).write(true).create(true).truncate(true).open(dir.path().join("log")).unwrap();
        let handle = Handle { kind: 1, bytes: vec![1, 2, 3, 4, 5, 6, 7, 8] };
        let sealed = seal(100, "/var/lib/banger/a.ext4", &handle);
        file.write_all_at(&sealed, 100).unwrap();
        assert_eq!(read_seal(&file), Some(("/var/lib/banger/a.ext4".to_owned(), handle, 100)));
        for at in 0..sealed.len() {
            let mut bad = sealed.clone();
            bad[at] ^= 1;
            file.write_all_at(&bad, 100).unwrap();
            assert_eq!(read_seal(&file), None, "byte {at}");
        }
        file.write_all_at(&sealed, 100).unwrap();
        file.set_len(100 + sealed.len() as u64 + 1).unwrap();
        assert_eq!(read_seal(&file), None);
        file.set_len(9).unwrap();
        assert_eq!(read_seal(&file), None);
    }
}
