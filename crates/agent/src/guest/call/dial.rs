//! A connection to a port of this guest's, for the host.

use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use agent::protocol::{Dial, ErrorBody, Frame, Grant, Kind, ProtocolError, Started, encode_json, stream};
use rustix::event::PollFlags;
use rustix::io::Errno;
use rustix::net::{AddressFamily, Shutdown, SocketFlags, SocketType, sockopt};

use super::job::Outcome;
use super::pipes::{Input, Output};
use super::{Pipe, failed};

/// A connection that is made, or under way.
#[derive(Debug)]
pub(super) struct Dialling {
    id: String,
    socket: OwnedFd,
    /// `None`: not connected yet.
    streams: Option<(Input, Output)>,
    shut: bool,
    failed: Option<ErrorBody>,
}

impl Dialling {
    /// Begins the connection.
    pub(super) fn new(id: String, dial: &Dial) -> Result<Self, ErrorBody> {
        let address = SocketAddr::new(dial.addr, dial.port);
        if dial.net != "tcp" {
            return Err(failed("unsupported", "net", 0));
        }
        if !is_own(dial.addr) {
            return Err(failed("failed", "address", Errno::ADDRNOTAVAIL.raw_os_error()));
        }
        let family = if address.is_ipv4() { AddressFamily::INET } else { AddressFamily::INET6 };
        let refused = |errno: Errno| failed("failed", "connect", errno.raw_os_error());
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let socket = rustix::net::socket_with(family, SocketType::STREAM, flags, None).map_err(refused)?;
        match rustix::net::connect(&socket, &address) {
            Ok(()) | Err(Errno::INPROGRESS) => {}
            Err(errno) => return Err(refused(errno)),
        }
        Ok(Self { id, socket, streams: None, shut: false, failed: None })
    }

    pub(super) fn frame(&mut self, frame: &Frame, out: &mut Vec<u8>) -> Result<(), ProtocolError> {
        let Some((input, output)) = &mut self.streams else { return Err(ProtocolError::OutOfPlace) };
        match (frame.kind, frame.stream) {
            (Kind::Data, stream::IN) => input.take(&frame.payload, out)?,
            (Kind::End, stream::IN) => input.end(out)?,
            (Kind::Grant, stream::OUT) => output.grant(frame.json::<Grant>()?.bytes)?,
            (Kind::Gone, stream::OUT) => output.is_unwanted(),
            _ => return Err(ProtocolError::OutOfPlace),
        }
        self.shut_if_done();
        Ok(())
    }

    pub(super) fn pipes(&self, waiting: usize) -> Vec<(Pipe, BorrowedFd<'_>, PollFlags)> {
        let Some((input, output)) = &self.streams else {
            let connecting = self.failed.is_none().then(|| (Pipe::In, self.socket.as_fd(), PollFlags::OUT));
            return connecting.into_iter().collect();
        };
        // A socket tells of its end for ever, wanted or not; there it is the read that hears of it.
        let input = input.wants().filter(|(_, flags)| !flags.is_empty()).map(|(fd, flags)| (Pipe::In, fd, flags));
        let output = output.wants(waiting).map(|(fd, flags)| (Pipe::Out(0), fd, flags));
        input.into_iter().chain(output).collect()
    }

    pub(super) fn ready(&mut self, pipe: Pipe, got: PollFlags, out: &mut Vec<u8>) {
        match (&mut self.streams, pipe) {
            (None, _) => self.connected(out),
            (Some((input, _)), Pipe::In) => input.ready(got, out),
            (Some((_, output)), Pipe::Out(_)) => output.pass_on(out),
        }
        self.shut_if_done();
    }

    fn connected(&mut self, out: &mut Vec<u8>) {
        let ends = sockopt::socket_error(&self.socket).and_then(|done| done);
        let ends = ends.and_then(|()| Ok((fd_again(&self.socket)?, fd_again(&self.socket)?)));
        match ends {
            Ok((input, output)) => {
                encode_json(out, Kind::Started, 0, &Started { id: self.id.clone(), pid: 0 });
                let output = Output::new(stream::OUT, output, false, false);
                self.streams = Some((Input::new(Some(input), false), output));
            }
            Err(errno) => self.failed = Some(failed("failed", "connect", errno.raw_os_error())),
        }
    }

    /// The host's end of the input is the connection's half-close.
    fn shut_if_done(&mut self) {
        if let Some((input, _)) = &self.streams
            && input.pipe.is_none()
            && !std::mem::replace(&mut self.shut, true)
        {
            // It may be closed from the other side already.
            let _ = rustix::net::shutdown(&self.socket, Shutdown::Write);
        }
    }

    pub(super) fn outcome(&mut self) -> Option<Outcome> {
        if let Some(body) = self.failed.take() {
            return Some(Outcome::Failed(body));
        }
        let done = self.streams.as_ref().is_some_and(|(input, output)| input.pipe.is_none() && output.is_done());
        done.then_some(Outcome::Closed)
    }
}

fn fd_again(socket: &OwnedFd) -> rustix::io::Result<OwnedFd> {
    rustix::io::fcntl_dupfd_cloexec(socket, 3)
}

/// An address of this machine's: one that a socket of its own can have.
fn is_own(address: IpAddr) -> bool {
    !address.is_unspecified() && !address.is_multicast() && UdpSocket::bind((address, 0)).is_ok()
}
