//! The request: what is to be read or written. Of files that are to be written, where and how long they are: their bytes
//! stay with the helper, and the [`log`](super::log) says which of them go where.

use super::{Bytes, Malformed};
use crate::image::NewFile;
use crate::name::guest_path::GuestPath;

const MAGIC: [u8; 8] = *b"bngr-ask";
const READ: u32 = 1;
const WRITE: u32 = 2;
/// Magic, operation, number of files, length of the request with this.
pub const PREFIX: usize = 20;
/// The longest request: far more than the helper's largest can bring about.
pub const MAX_REQUEST: usize = 32 << 20;

/// What is asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Ask {
    /// The bytes of a file.
    Read(GuestPath),
    /// Files to be written, in this order.
    Write(Vec<Put>),
}

/// A file as it is to be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Put {
    /// Where in the image.
    pub path: GuestPath,
    /// The nine permission bits, none other set.
    pub mode: u16,
    /// How many bytes it has.
    pub length: u64,
}

/// The whole request for one file's bytes.
pub fn read(path: &GuestPath) -> Vec<u8> {
    encode(READ, &[(path, 0, 0)])
}

/// The whole request to write these files.
pub fn write(files: &[NewFile]) -> Vec<u8> {
    let entries: Vec<_> = files.iter().map(|file| (&file.path, file.mode, file.data.len() as u64)).collect();
    encode(WRITE, &entries)
}

fn encode(operation: u32, entries: &[(&GuestPath, u16, u64)]) -> Vec<u8> {
    let mut bytes = MAGIC.to_vec();
    bytes.extend(operation.to_le_bytes());
    bytes.extend(u32::try_from(entries.len()).unwrap_or(u32::MAX).to_le_bytes());
    bytes.extend([0; 4]);
    for (path, mode, length) in entries {
        let text = path.as_str().as_bytes();
        bytes.extend(u16::try_from(text.len()).unwrap_or(u16::MAX).to_le_bytes());
        bytes.extend(mode.to_le_bytes());
        bytes.extend(length.to_le_bytes());
        bytes.extend(text);
    }
    // What does not fit is refused by whoever reads it.
    let length = u32::try_from(bytes.len()).unwrap_or(u32::MAX);
    bytes[PREFIX - 4..PREFIX].copy_from_slice(&length.to_le_bytes());
    bytes
}

/// Reads a request.
///
/// # Errors
/// Where it is not exactly what [`read`] or [`write`] makes.
pub fn decode(request: &[u8]) -> Result<Ask, Malformed> {
    let mut bytes = Bytes(request);
    if bytes.array()? != MAGIC {
        return Err(Malformed("no request"));
    }
    let (operation, count, length) = (bytes.u32()?, bytes.u32()?, bytes.u32()?);
    if usize::try_from(length) != Ok(request.len()) || request.len() > MAX_REQUEST {
        return Err(Malformed("the request's length"));
    }
    let mut files = Vec::new();
    for _ in 0..count {
        let (text, mode, length) = (bytes.u16()?, bytes.u16()?, bytes.u64()?);
        let text = std::str::from_utf8(bytes.take(usize::from(text))?).map_err(|_| Malformed("a path"))?;
        let path = GuestPath::new(text).map_err(|_| Malformed("a path"))?;
        if mode & !0o777 != 0 {
            return Err(Malformed("a mode"));
        }
        files.push(Put { path, mode, length });
    }
    bytes.end()?;
    match (operation, files.as_slice()) {
        (READ, [Put { path, mode: 0, length: 0, .. }]) => Ok(Ask::Read(path.clone())),
        (WRITE, _) => Ok(Ask::Write(files)),
        _ => Err(Malformed("the operation")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn file() -> impl Strategy<Value = NewFile> {
        ("(/[a-z.]{1,9}x){1,3}", proptest::collection::vec(any::<u8>(), 0..9), 0_u16..0o1000)
            .prop_map(|(path, data, mode)| NewFile { path: GuestPath::new(&path).unwrap(), data, mode })
    }

    proptest! {
        #[test]
        fn files_come_back(files in proptest::collection::vec(file(), 0..5)) {
            let bytes = write(&files);
            let Ok(Ask::Write(puts)) = decode(&bytes) else { panic!("{bytes:?}") };
            prop_assert_eq!(puts.len(), files.len());
            for (put, file) in puts.iter().zip(&files) {
                let length = file.data.len() as u64;
                prop_assert_eq!(put, &Put { path: file.path.clone(), mode: file.mode, length });
            }
        }

        #[test]
        fn what_is_cut_or_longer_is_refused(files in proptest::collection::vec(file(), 0..3), cut in any::<usize>()) {
            let bytes = write(&files);
            prop_assert!(decode(&bytes[..cut % bytes.len()]).is_err());
            let mut more = bytes.clone();
            more.push(0);
            prop_assert!(decode(&more).is_err());
        }

        #[test]
        fn any_bytes_are_safe(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let mut bytes = bytes;
            let _ = decode(&bytes);
            let length = bytes.len() as u32;
            bytes.splice(0..bytes.len().min(8), MAGIC);
            if let Some(field) = bytes.get_mut(16..20) {
                field.copy_from_slice(&length.to_le_bytes());
            }
            let _ = decode(&bytes);
        }
    }

    #[test]
    fn a_read_is_one_path() {
        let path = GuestPath::new("/etc/hostname").unwrap();
        let bytes = read(&path);
        assert_eq!(decode(&bytes), Ok(Ask::Read(path)));
        let mut other = bytes.clone();
        other[8] = 3;
        assert!(decode(&other).is_err());
        other[8] = 1;
        other[PREFIX + 3] = 0x10;
        assert!(decode(&other).is_err(), "a mode beyond the nine bits");
    }
}
