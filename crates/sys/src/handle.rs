//! Which file a descriptor is of, told so that a later file of the same inode number is another one, and that a boot
//! which numbers the devices anew changes nothing.

use crate::dir::{CallError, Facts};
use rustix::io::Errno;
use std::os::fd::{AsFd, AsRawFd};

/// What name_to_handle_at(2) gives: the inode and its generation, most often.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Handle {
    /// What kind of handle it is, the file system's own number; -1 where it has none and the inode alone is told.
    pub kind: i32,
    /// At most [`LONGEST`] bytes.
    pub bytes: Vec<u8>,
}

/// The longest handle, the kernel's `MAX_HANDLE_SZ`.
pub const LONGEST: usize = 128;
/// For what can't be opened by it (Linux 6.5): file systems that have no other handle, overlayfs among them.
const AT_HANDLE_FID: i32 = 0x200;

#[repr(C)]
struct Asked {
    length: u32,
    kind: i32,
    bytes: [u8; LONGEST],
}

/// Asks for the handle of an open file.
///
/// # Errors
/// What the kernel says, but for a file system without handles.
pub fn of(file: impl AsFd) -> Result<Handle, CallError> {
    let file = file.as_fd();
    for flags in [libc::AT_EMPTY_PATH, libc::AT_EMPTY_PATH | AT_HANDLE_FID] {
        let mut asked = Asked { length: LONGEST as u32, kind: 0, bytes: [0; LONGEST] };
        let mut mount = 0;
        let (fd, empty) = (file.as_raw_fd(), c"".as_ptr());
        // SAFETY: `asked` begins as a `file_handle` does and has the room behind it that its length says.
        let answer =
            unsafe { libc::syscall(libc::SYS_name_to_handle_at, fd, empty, &raw mut asked, &raw mut mount, flags) };
        if answer == 0 {
            let length = usize::try_from(asked.length).unwrap_or(LONGEST).min(LONGEST);
            return Ok(Handle { kind: asked.kind, bytes: asked.bytes[..length].to_vec() });
        }
        match std::io::Error::last_os_error().raw_os_error() {
            // EINVAL: the flag is not known.
            Some(libc::EOPNOTSUPP | libc::EINVAL) => {}
            other => {
                let errno = other.map_or(Errno::IO, Errno::from_raw_os_error);
                return Err(CallError::new("name_to_handle_at(<file>, AT_EMPTY_PATH)", errno));
            }
        }
    }
    Ok(Handle { kind: -1, bytes: Facts::of(file)?.ino.to_le_bytes().to_vec() })
}

#[cfg(test)]
mod tests {
    use super::of;
    use std::fs::File;

    #[test]
    fn a_file_keeps_its_handle_and_another_has_another() {
        let dir = tempfile::tempdir().unwrap();
        let (one, two) = (File::create(dir.path().join("one")).unwrap(), File::create(dir.path().join("two")).unwrap());
        let before = of(&one).unwrap();
        std::fs::rename(dir.path().join("one"), dir.path().join("three")).unwrap();
        assert_eq!(of(File::open(dir.path().join("three")).unwrap()).unwrap(), before);
        assert_ne!(of(&two).unwrap(), before);
    }

    #[test]
    fn a_later_file_of_the_same_inode_has_another() {
        let dir = tempfile::tempdir().unwrap();
        let mut seen: Vec<(u64, super::Handle)> = Vec::new();
        for turn in 0..64 {
            let path = dir.path().join("again");
            let file = File::create(&path).unwrap();
            let now = (crate::dir::Facts::of(&file).unwrap().ino, of(&file).unwrap());
            if turn > 0 && now.1.kind != -1 {
                assert!(seen.iter().all(|(_, handle)| *handle != now.1), "{now:?}");
            }
            seen.push(now);
            std::fs::remove_file(path).unwrap();
        }
    }
}
