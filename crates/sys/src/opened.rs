//! Whether a file that was opened to be read is open anywhere else.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};

/// fcntl(2), include/uapi/asm-generic/fcntl.h; libc has none.
const F_SETSIG: libc::c_int = 10;

/// Whether anybody has the file open but by `file` itself: by a descriptor, one that is under way, or a mapping.
/// `file` must have been opened to be read alone. The kernel gives a lease for writing to the only one who has a file
/// open; it is given back at once.
///
/// # Errors
/// What the kernel says; EINVAL where the file's kind knows no leases.
pub fn is_elsewhere(file: impl AsFd) -> io::Result<bool> {
    let file = file.as_fd();
    // Who opens it in between makes the kernel send a signal: one that does nothing where nobody handles it.
    set(file, F_SETSIG, libc::SIGURG)?;
    match set(file, libc::F_SETLEASE, libc::F_WRLCK) {
        Ok(()) => set(file, libc::F_SETLEASE, libc::F_UNLCK).map(|()| false),
        Err(error) if error.raw_os_error() == Some(libc::EAGAIN) => Ok(true),
        Err(error) => Err(error),
    }
}

fn set(file: BorrowedFd<'_>, what: libc::c_int, value: libc::c_int) -> io::Result<()> {
    // SAFETY: these commands take a number, and no memory of ours.
    let done = unsafe { libc::fcntl(file.as_raw_fd(), what, value) };
    if done < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::File;
    use std::os::fd::OwnedFd;
    use std::os::unix::net::UnixStream;
    use std::process::{Command, Stdio};

    #[test]
    fn whoever_has_it_counts() {
        let memory = File::from(rustix::fs::memfd_create("x", rustix::fs::MemfdFlags::CLOEXEC).unwrap());
        memory.set_len(4096).unwrap();
        let again = |file: &File| File::open(format!("/proc/self/fd/{}", file.as_raw_fd())).unwrap();
        let file = again(&memory);
        drop(memory);
        assert!(!is_elsewhere(&file).unwrap());
        // Another process, that has it as its input and has closed nothing.
        let (ours, theirs) = UnixStream::pair().unwrap();
        let mut holder = Command::new("cat");
        holder.stdin(OwnedFd::from(theirs)).stdout(Stdio::null()).stderr(OwnedFd::from(again(&file)));
        let mut child = holder.spawn().unwrap();
        drop(holder);
        assert!(is_elsewhere(&file).unwrap());
        drop(ours);
        child.wait().unwrap();
        assert!(!is_elsewhere(&file).unwrap());
        drop(File::options().write(true).read(true).open(format!("/proc/self/fd/{}", file.as_raw_fd())).unwrap());
        assert!(!is_elsewhere(&file).unwrap());
    }
}
