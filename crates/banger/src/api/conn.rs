//! A connection between `banger` and `bangerd`: lines of JSON, and descriptors beside them.

use super::MAX_LINE;
use rustix::io::Errno;
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage, SendFlags,
    recvmsg, sendmsg,
};
use serde::Serialize;
use std::collections::VecDeque;
use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;

/// The most descriptors that are held: a call hands over one.
const MAX_HELD: usize = 4;

/// One end of a call's connection.
#[derive(Debug)]
pub struct Conn {
    stream: UnixStream,
    held: Vec<u8>,
    /// Descriptors that came, in their order.
    descriptors: VecDeque<OwnedFd>,
}

impl Conn {
    /// Takes a connected socket.
    pub fn new(stream: UnixStream) -> Conn {
        Conn { stream, held: Vec::new(), descriptors: VecDeque::new() }
    }

    /// The socket, for its timeouts.
    pub fn stream(&self) -> &UnixStream {
        &self.stream
    }

    /// Writes one line; `descriptor` goes with its first byte.
    ///
    /// # Errors
    /// What the socket says; a peer that is gone is `BrokenPipe`.
    pub fn send(&self, line: &impl Serialize, descriptor: Option<BorrowedFd<'_>>) -> io::Result<()> {
        let mut text = serde_json::to_vec(line)?;
        text.push(b'\n');
        let mut left = text.as_slice();
        let given = descriptor.map(|fd| [fd]);
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut with = SendAncillaryBuffer::new(&mut space);
        if let Some(given) = &given {
            with.push(SendAncillaryMessage::ScmRights(given));
        }
        while !left.is_empty() {
            match sendmsg(&self.stream, &[IoSlice::new(left)], &mut with, SendFlags::NOSIGNAL) {
                Ok(sent) => left = &left[sent..],
                Err(Errno::INTR) => continue,
                Err(errno) => return Err(errno.into()),
            }
            with.clear();
        }
        Ok(())
    }

    /// The next whole line, without its newline; waits as long as the socket's read timeout. `None` at the end.
    ///
    /// # Errors
    /// What the socket says, `WouldBlock` where its time is over; `InvalidData` for a line that is too long, and
    /// `UnexpectedEof` for one that is cut off.
    pub fn line(&mut self) -> io::Result<Option<Vec<u8>>> {
        loop {
            if let Some(line) = self.held_line() {
                return Ok(Some(line));
            }
            if self.held.len() > MAX_LINE {
                return Err(io::Error::new(io::ErrorKind::InvalidData, "a line of more than 1 MiB"));
            }
            if self.fill(RecvFlags::CMSG_CLOEXEC)? == 0 {
                return if self.held.is_empty() { Ok(None) } else { Err(io::ErrorKind::UnexpectedEof.into()) };
            }
        }
    }

    /// A line that has come already, without waiting: `Ok(None)` where there is none yet.
    ///
    /// # Errors
    /// As [`Conn::line`]; `UnexpectedEof` where the peer is gone.
    pub fn line_now(&mut self) -> io::Result<Option<Vec<u8>>> {
        loop {
            if let Some(line) = self.held_line() {
                return Ok(Some(line));
            }
            match self.fill(RecvFlags::CMSG_CLOEXEC | RecvFlags::DONTWAIT) {
                Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
                Ok(_) if self.held.len() > MAX_LINE => return Err(io::ErrorKind::InvalidData.into()),
                Ok(_) => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(None),
                Err(error) => return Err(error),
            }
        }
    }

    /// The next descriptor that came.
    pub fn descriptor(&mut self) -> Option<OwnedFd> {
        self.descriptors.pop_front()
    }

    fn held_line(&mut self) -> Option<Vec<u8>> {
        let end = self.held.iter().position(|byte| *byte == b'\n')?;
        let mut line: Vec<u8> = self.held.drain(..=end).collect();
        line.pop();
        Some(line)
    }

    fn fill(&mut self, flags: RecvFlags) -> io::Result<usize> {
        let mut bytes = [0; 16 << 10];
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_HELD))];
        let mut with = RecvAncillaryBuffer::new(&mut space);
        let got = loop {
            match recvmsg(&self.stream, &mut [IoSliceMut::new(&mut bytes)], &mut with, flags) {
                Err(Errno::INTR) => {}
                Err(Errno::CONNRESET) => break 0,
                other => break other?.bytes,
            }
        };
        for message in with.drain() {
            if let RecvAncillaryMessage::ScmRights(given) = message {
                self.descriptors.extend(given);
            }
        }
        // Nobody is owed more than was agreed; what is dropped is closed.
        self.descriptors.truncate(MAX_HELD);
        self.held.extend_from_slice(&bytes[..got]);
        Ok(got)
    }
}

impl AsFd for Conn {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.stream.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;
    use std::io::{Read, Write};

    #[test]
    fn a_descriptor_comes_with_its_line() {
        let (ours, theirs) = UnixStream::pair().unwrap();
        let (near, mut far) = UnixStream::pair().unwrap();
        let sender = Conn::new(ours);
        sender.send(&json!({"a": 1}), None).unwrap();
        sender.send(&json!({"b": 2}), Some(near.as_fd())).unwrap();
        drop((sender, near));
        let mut conn = Conn::new(theirs);
        assert_eq!(conn.line().unwrap().unwrap(), br#"{"a":1}"#);
        assert_eq!(conn.line().unwrap().unwrap(), br#"{"b":2}"#);
        let mut got = UnixStream::from(conn.descriptor().unwrap());
        assert_eq!(conn.line().unwrap(), None);
        far.write_all(b"x").unwrap();
        let mut byte = [0];
        got.read_exact(&mut byte).unwrap();
        assert_eq!(&byte, b"x");
    }

    #[test]
    fn lines_have_an_end() {
        let (ours, theirs) = UnixStream::pair().unwrap();
        let writer = std::thread::spawn(move || {
            let mut ours = ours;
            while ours.write_all(&[b'x'; 4096]).is_ok() {}
        });
        let mut conn = Conn::new(theirs);
        assert_eq!(conn.line().unwrap_err().kind(), io::ErrorKind::InvalidData);
        drop(conn);
        writer.join().unwrap();
        let (mut ours, theirs) = UnixStream::pair().unwrap();
        ours.write_all(b"half").unwrap();
        drop(ours);
        assert_eq!(Conn::new(theirs).line().unwrap_err().kind(), io::ErrorKind::UnexpectedEof);
    }
}
