//! One relayed stream on its way to a program's vsock socket in this guest.

use std::collections::VecDeque;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use agent::relay::{Mux, Stream};
use rustix::event::PollFlags;
use rustix::io::Errno;
use rustix::net::{Shutdown, sockopt::socket_error};

/// Whether a pump goes on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Next {
    Stay,
    Drop,
}

/// The socket and what waits for it; never more than the stream's credit.
#[derive(Debug)]
pub(super) struct Pump {
    socket: OwnedFd,
    connecting: bool,
    to_guest: VecDeque<u8>,
    host_finished: bool,
    guest_finished: bool,
}

impl Pump {
    /// Begins the connection; `None` where nobody listens.
    pub(super) fn connect(port: u32) -> Option<Self> {
        let to = sys::vsock::Address { cid: sys::vsock::CID_LOCAL, port };
        let socket = sys::vsock::connect(to).ok()?;
        let (host_finished, guest_finished) = (false, false);
        Some(Self { socket, connecting: true, to_guest: VecDeque::new(), host_finished, guest_finished })
    }

    pub(super) fn socket(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }

    /// What to wait for; empty where it waits for the host alone.
    pub(super) fn wants(&self, mux: &Mux, stream: Stream) -> PollFlags {
        let mut wants = PollFlags::empty();
        if self.connecting {
            return PollFlags::OUT;
        }
        wants.set(PollFlags::OUT, !self.to_guest.is_empty());
        wants.set(PollFlags::IN, !self.guest_finished && mux.sendable(stream) > 0);
        wants
    }

    /// The socket can be read or written.
    pub(super) fn ready(&mut self, got: PollFlags, mux: &mut Mux, stream: Stream) -> Next {
        if self.connecting {
            if !matches!(socket_error(&self.socket), Ok(Ok(()))) {
                mux.refuse(stream);
                return Next::Drop;
            }
            self.connecting = false;
            mux.accept(stream);
            return self.write(mux, stream);
        }
        if got.intersects(PollFlags::IN | PollFlags::HUP | PollFlags::ERR) && self.read(mux, stream) == Next::Drop {
            return Next::Drop;
        }
        self.write(mux, stream)
    }

    /// Bytes from the host.
    pub(super) fn take(&mut self, bytes: &[u8], mux: &mut Mux, stream: Stream) -> Next {
        self.to_guest.extend(bytes);
        if self.connecting { Next::Stay } else { self.write(mux, stream) }
    }

    /// The host sends no more.
    pub(super) fn finished(&mut self, mux: &mut Mux, stream: Stream) -> Next {
        self.host_finished = true;
        if self.connecting { Next::Stay } else { self.write(mux, stream) }
    }

    fn read(&mut self, mux: &mut Mux, stream: Stream) -> Next {
        let mut bytes = [0; 16 * 1024];
        let most = mux.sendable(stream).min(bytes.len());
        if self.guest_finished || most == 0 {
            return Next::Stay;
        }
        match rustix::io::read(&self.socket, &mut bytes[..most]) {
            Ok(0) => {
                self.guest_finished = true;
                mux.finish(stream);
                Next::Stay
            }
            Ok(n) => {
                mux.send(stream, &bytes[..n]);
                Next::Stay
            }
            Err(Errno::AGAIN | Errno::INTR) => Next::Stay,
            Err(_) => {
                mux.reset(stream);
                Next::Drop
            }
        }
    }

    fn write(&mut self, mux: &mut Mux, stream: Stream) -> Next {
        while !self.to_guest.is_empty() {
            let flags = rustix::net::SendFlags::NOSIGNAL;
            match rustix::net::send(&self.socket, self.to_guest.as_slices().0, flags) {
                Ok(n) => {
                    self.to_guest.drain(..n);
                    mux.consumed(stream, n);
                }
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => return Next::Stay,
                Err(_) => {
                    mux.reset(stream);
                    return Next::Drop;
                }
            }
        }
        if !self.host_finished {
            return Next::Stay;
        }
        if self.guest_finished {
            return Next::Drop;
        }
        // Done before, or the program is gone: the next read says so.
        let _ = rustix::net::shutdown(&self.socket, Shutdown::Write);
        Next::Stay
    }
}
