//! What a process does to itself before it listens to anybody: environment, descriptors, memory.

use rustix::fd::{AsFd, OwnedFd};
use std::io;
use std::os::fd::{FromRawFd, RawFd};
use std::sync::atomic::{AtomicBool, Ordering};

/// Removes every variable of the environment. To be called before there is another thread.
///
/// # Errors
/// Where the C library can't.
pub fn clear_environment() -> io::Result<()> {
    // SAFETY: no other thread runs that could hold a pointer into the environment; the caller is bound to that.
    if unsafe { libc::clearenv() } == 0 { Ok(()) } else { Err(io::Error::other("clearenv failed")) }
}

/// Takes the `count` descriptors that were passed from number 3 on, and closes everything behind them. Can be done
/// once in a process, before it opens anything.
///
/// # Errors
/// `EBADF` where one of them is not open, `AlreadyExists` the second time.
pub fn take_passed(count: u32) -> io::Result<Vec<OwnedFd>> {
    static TAKEN: AtomicBool = AtomicBool::new(false);
    if TAKEN.swap(true, Ordering::Relaxed) {
        return Err(io::ErrorKind::AlreadyExists.into());
    }
    let end = 3_u32.saturating_add(count);
    // SAFETY: nothing of this process is behind them yet, so nobody's descriptor is taken away.
    if unsafe { libc::syscall(libc::SYS_close_range, end, u32::MAX, 0) } != 0 {
        return Err(io::Error::last_os_error());
    }
    (3..end).map(|number| take(number.cast_signed())).collect()
}

fn take(number: RawFd) -> io::Result<OwnedFd> {
    // SAFETY: sets a flag of a descriptor that nobody in this process owns yet; one that is not open is told.
    if unsafe { libc::fcntl(number, libc::F_SETFD, libc::FD_CLOEXEC) } < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: it is open, as the call above showed, and `take_passed` runs once, so nobody else owns it.
    Ok(unsafe { OwnedFd::from_raw_fd(number) })
}

/// Makes the C library give buffers of 16 KiB and more back as soon as they are freed, and keep few heaps for many
/// threads: what a thousand half requests took is not kept.
pub fn bound_allocator() {
    #[cfg(target_env = "gnu")]
    for (parameter, value) in
        [(libc::M_MMAP_THRESHOLD, 16 << 10), (libc::M_TRIM_THRESHOLD, 256 << 10), (libc::M_ARENA_MAX, 2)]
    {
        // SAFETY: sets a parameter of the allocator; an unknown one is answered by 0.
        unsafe { libc::mallopt(parameter, value) };
    }
}

/// The uid of whoever connected a Unix socket, as it was at that moment.
///
/// By hand because a peer in a PID namespace that this process can't see has the pid 0, which other bindings don't
/// allow for.
///
/// # Errors
/// Where the descriptor is no connected Unix socket.
pub fn peer_uid(socket: impl AsFd) -> io::Result<u32> {
    use std::os::fd::AsRawFd;
    let mut who = libc::ucred { pid: 0, uid: u32::MAX, gid: u32::MAX };
    let mut length = libc::socklen_t::try_from(size_of::<libc::ucred>()).map_err(io::Error::other)?;
    let (fd, into) = (socket.as_fd().as_raw_fd(), (&raw mut who).cast());
    // SAFETY: `into` points to a `ucred` and `length` says its size; the descriptor is borrowed for the call.
    let answer = unsafe { libc::getsockopt(fd, libc::SOL_SOCKET, libc::SO_PEERCRED, into, &raw mut length) };
    // An unconnected socket has nobody's ids, which the kernel spells -1.
    match answer {
        0 if who.uid != u32::MAX => Ok(who.uid),
        0 => Err(io::ErrorKind::NotConnected.into()),
        _ => Err(io::Error::last_os_error()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::net::{UnixListener, UnixStream};

    #[test]
    fn the_peer_is_who_connected() {
        let (ours, _theirs) = UnixStream::pair().unwrap();
        assert_eq!(peer_uid(&ours).unwrap(), rustix::process::geteuid().as_raw());
        let temp = tempfile::tempdir().unwrap();
        let nobody_yet = UnixListener::bind(temp.path().join("s")).unwrap();
        assert!(peer_uid(nobody_yet).is_ok_and(|uid| uid == rustix::process::geteuid().as_raw()));
        let unconnected = rustix::net::socket(rustix::net::AddressFamily::UNIX, rustix::net::SocketType::STREAM, None);
        assert!(peer_uid(unconnected.unwrap()).is_err());
    }
}
