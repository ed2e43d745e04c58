//! The request: what is to be read or written. A head with the paths, then the files' bytes one after the other, so
//! that neither side needs a second copy of them.

use super::{Bytes, Malformed};
use crate::image::NewFile;
use crate::name::guest_path::GuestPath;

const MAGIC: [u8; 8] = *b"bngr-ask";
const READ: u32 = 1;
const WRITE: u32 = 2;
/// Magic, operation, number of files, length of the head with this.
pub const PREFIX: usize = 20;
/// The longest head: far more than the helper's largest request can bring about.
pub const MAX_HEAD: usize = 32 << 20;

/// What is asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Ask {
    /// The bytes of a file.
    Read(GuestPath),
    /// Files to be written, in this order.
    Write(Vec<Put>),
}

/// A file as it is to be, and where in the request its bytes lie.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Put {
    /// Where in the image.
    pub path: GuestPath,
    /// The nine permission bits, none other set.
    pub mode: u16,
    /// The first byte's place in the request.
    pub at: u64,
    /// How many bytes there are.
    pub length: u64,
}

/// The whole request for one file's bytes.
pub fn read(path: &GuestPath) -> Vec<u8> {
    head(READ, &[(path, 0, 0)])
}

/// The head of a request to write these files. Behind it come the `data` of each, in order, and nothing else.
pub fn write_head(files: &[NewFile]) -> Vec<u8> {
    let entries: Vec<_> = files.iter().map(|file| (&file.path, file.mode, file.data.len() as u64)).collect();
    head(WRITE, &entries)
}

fn head(operation: u32, entries: &[(&GuestPath, u16, u64)]) -> Vec<u8> {
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

/// How long the head is that begins with these bytes.
///
/// # Errors
/// Where they begin no request, or one with a head longer than [`MAX_HEAD`].
pub fn head_length(prefix: &[u8; PREFIX]) -> Result<usize, Malformed> {
    let mut bytes = Bytes(prefix);
    if bytes.array()? != MAGIC {
        return Err(Malformed("no request"));
    }
    bytes.take(8)?;
    let length = usize::try_from(bytes.u32()?).map_err(|_| Malformed("head too long"))?;
    if (PREFIX..=MAX_HEAD).contains(&length) { Ok(length) } else { Err(Malformed("head too long")) }
}

/// Reads a head; `total` is the length of the whole request.
///
/// # Errors
/// Where it is not exactly what [`read`] or [`write_head`] makes, or the request has not exactly the bytes it names.
pub fn decode(head: &[u8], total: u64) -> Result<Ask, Malformed> {
    let mut bytes = Bytes(head);
    if bytes.array()? != MAGIC {
        return Err(Malformed("no request"));
    }
    let (operation, count, length) = (bytes.u32()?, bytes.u32()?, bytes.u32()?);
    if usize::try_from(length) != Ok(head.len()) || head.len() > MAX_HEAD {
        return Err(Malformed("the head's length"));
    }
    let mut at = u64::from(length);
    let mut files = Vec::new();
    for _ in 0..count {
        let (text, mode, length) = (bytes.u16()?, bytes.u16()?, bytes.u64()?);
        let text = std::str::from_utf8(bytes.take(usize::from(text))?).map_err(|_| Malformed("a path"))?;
        let path = GuestPath::new(text).map_err(|_| Malformed("a path"))?;
        if mode & !0o777 != 0 {
            return Err(Malformed("a mode"));
        }
        files.push(Put { path, mode, at, length });
        at = at.checked_add(length).ok_or(Malformed("a length"))?;
    }
    bytes.end()?;
    if at != total {
        return Err(Malformed("the request's length"));
    }
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

    fn whole(files: &[NewFile]) -> (Vec<u8>, usize) {
        let mut bytes = write_head(files);
        let head = bytes.len();
        files.iter().for_each(|file| bytes.extend(&file.data));
        (bytes, head)
    }

    proptest! {
        #[test]
        fn files_come_back(files in proptest::collection::vec(file(), 0..5)) {
            let (bytes, head) = whole(&files);
            prop_assert_eq!(head_length(bytes[..PREFIX].try_into().unwrap()), Ok(head));
            let Ok(Ask::Write(puts)) = decode(&bytes[..head], bytes.len() as u64) else { panic!("{bytes:?}") };
            let back: Vec<NewFile> = puts
                .into_iter()
                .map(|Put { path, mode, at, length }| {
                    NewFile { path, mode, data: bytes[at as usize..][..length as usize].to_vec() }
                })
                .collect();
            prop_assert_eq!(back, files);
        }

        #[test]
        fn what_is_cut_or_longer_is_refused(files in proptest::collection::vec(file(), 0..3), cut in any::<usize>()) {
            let (bytes, head) = whole(&files);
            prop_assert!(decode(&bytes[..cut % head], bytes.len() as u64).is_err());
            prop_assert!(decode(&bytes[..head], bytes.len() as u64 + 1).is_err());
            let mut more = bytes[..head].to_vec();
            more.push(0);
            prop_assert!(decode(&more, bytes.len() as u64 + 1).is_err());
        }

        #[test]
        fn any_bytes_are_safe(bytes in proptest::collection::vec(any::<u8>(), 0..200), total in any::<u64>()) {
            let mut bytes = bytes;
            let _ = decode(&bytes, total);
            let length = bytes.len() as u32;
            bytes.splice(0..bytes.len().min(8), MAGIC);
            if let Some(field) = bytes.get_mut(16..20) {
                field.copy_from_slice(&length.to_le_bytes());
            }
            let _ = decode(&bytes, total);
        }
    }

    #[test]
    fn a_read_is_one_path() {
        let path = GuestPath::new("/etc/hostname").unwrap();
        let bytes = read(&path);
        assert_eq!(decode(&bytes, bytes.len() as u64), Ok(Ask::Read(path)));
        let mut other = bytes.clone();
        other[8] = 3;
        assert!(decode(&other, bytes.len() as u64).is_err());
        other[8] = 1;
        other[PREFIX + 3] = 0x10;
        assert!(decode(&other, bytes.len() as u64).is_err(), "a mode beyond the nine bits");
    }
}
