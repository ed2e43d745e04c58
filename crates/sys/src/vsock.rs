//! AF_VSOCK sockets (vsock(7)): listen, accept, connect, and the machine's own CID. All of them don't block.

use std::io;
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};

use rustix::net::{AddressFamily, SocketFlags, SocketType};

/// Any CID, to listen on.
pub const CID_ANY: u32 = libc::VMADDR_CID_ANY;
/// This machine itself, by the loopback transport.
pub const CID_LOCAL: u32 = libc::VMADDR_CID_LOCAL;
/// The host of this guest.
pub const CID_HOST: u32 = libc::VMADDR_CID_HOST;

/// An end of a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Address {
    /// The machine.
    pub cid: u32,
    /// The port.
    pub port: u32,
}

/// Listens on `port`, for any CID.
///
/// # Errors
/// EACCES for a port below 1024 without rights, EADDRINUSE, EAFNOSUPPORT where the kernel has no vsock.
pub fn listen(port: u32, backlog: i32) -> io::Result<OwnedFd> {
    let socket = socket()?;
    let address = raw(Address { cid: CID_ANY, port });
    // SAFETY: the address is a whole `sockaddr_vm` that lives through the call, and the length is its own.
    let answer = unsafe { libc::bind(socket.as_raw_fd(), (&raw const address).cast(), LEN) };
    check(answer)?;
    rustix::net::listen(&socket, backlog)?;
    Ok(socket)
}

/// Takes the next connection.
///
/// # Errors
/// `WouldBlock` where there is none.
pub fn accept(listener: impl AsFd) -> io::Result<(OwnedFd, Address)> {
    let mut address = raw(Address { cid: 0, port: 0 });
    let mut len = LEN;
    let (flags, from) = (libc::SOCK_CLOEXEC | libc::SOCK_NONBLOCK, listener.as_fd().as_raw_fd());
    // SAFETY: the kernel writes at most `len` bytes, which is the size of `address`.
    let fd = unsafe { libc::accept4(from, (&raw mut address).cast(), &raw mut len, flags) };
    check(fd)?;
    // SAFETY: the kernel has just given us this descriptor, nobody else has it.
    let socket = unsafe { OwnedFd::from_raw_fd(fd) };
    Ok((socket, Address { cid: address.svm_cid, port: address.svm_port }))
}

/// Begins a connection. It is there, or has failed (`SO_ERROR`), when the socket can be written.
///
/// # Errors
/// Where the failure is known at once.
pub fn connect(to: Address) -> io::Result<OwnedFd> {
    let socket = socket()?;
    let address = raw(to);
    // SAFETY: as in `listen`.
    let answer = unsafe { libc::connect(socket.as_raw_fd(), (&raw const address).cast(), LEN) };
    match check(answer) {
        Err(error) if error.raw_os_error() != Some(libc::EINPROGRESS) => Err(error),
        _ => Ok(socket),
    }
}

/// The CID that the host gave this machine.
///
/// # Errors
/// Where there is no /dev/vsock, or no transport behind it.
pub fn local_cid() -> io::Result<u32> {
    /// `_IO(7, 0xb9)`, include/uapi/linux/vm_sockets.h.
    const IOCTL_VM_SOCKETS_GET_LOCAL_CID: libc::c_ulong = 0x7b9;
    let device = std::fs::File::open("/dev/vsock")?;
    let mut cid = 0u32;
    // SAFETY: this request writes one u32, at the address that we give.
    let answer = unsafe { libc::ioctl(device.as_raw_fd(), IOCTL_VM_SOCKETS_GET_LOCAL_CID, &raw mut cid) };
    check(answer)?;
    Ok(cid)
}

const LEN: libc::socklen_t = size_of::<libc::sockaddr_vm>() as libc::socklen_t;

fn socket() -> io::Result<OwnedFd> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    Ok(rustix::net::socket_with(AddressFamily::VSOCK, SocketType::STREAM, flags, None)?)
}

fn raw(address: Address) -> libc::sockaddr_vm {
    libc::sockaddr_vm {
        svm_family: libc::AF_VSOCK as libc::sa_family_t,
        svm_reserved1: 0,
        svm_port: address.port,
        svm_cid: address.cid,
        svm_zero: [0; 4],
    }
}

fn check(answer: libc::c_int) -> io::Result<()> {
    if answer < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}
