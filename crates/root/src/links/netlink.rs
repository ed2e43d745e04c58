//! Asks the kernel: sends requests, and puts each answer to the request that it answers.

use super::message::{self, ACK, Answer, DUMP, Requests, answers};
use std::fmt::{self, Display};
use std::io;
use std::sync::{Mutex, PoisonError};
use sys::netlink::{Family, Socket};

/// What the kernel refused, or that it could not be asked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Refused {
    /// The call as it was made.
    pub(crate) call: String,
    /// Its error's number; 0 where there was no answer that could be read.
    pub(crate) errno: i32,
    /// What the kernel says to it. It differs between kernels: only for the log.
    pub(crate) words: String,
}

impl Display for Refused {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Refused { call, errno, words } = self;
        match errno {
            0 => write!(f, "{call}: {words}"),
            _ => write!(f, "{call}: {} {words}", io::Error::from_raw_os_error(*errno)),
        }
    }
}

impl Refused {
    /// Whether the kernel gave this number.
    pub(crate) fn is(&self, errno: i32) -> bool {
        self.errno == errno
    }
}

/// What the kernel said to one request.
#[derive(Debug, Default)]
pub(crate) struct Said {
    /// The bodies of its answers, each with its family's header.
    pub(crate) bodies: Vec<Vec<u8>>,
    /// The number of its error; 0 for none.
    pub(crate) errno: i32,
    /// The kernel's words to it.
    words: String,
    ended: bool,
    interrupted: bool,
}

/// What a conversation goes over: the kernel's socket, or a test that says what it likes.
pub(crate) trait Wire {
    /// As [`Socket::send`].
    fn send(&self, messages: &[u8]) -> io::Result<()>;
    /// As [`Socket::receive`].
    fn receive(&self, buffer: &mut [u8]) -> io::Result<usize>;
}

impl Wire for Socket {
    fn send(&self, messages: &[u8]) -> io::Result<()> {
        Socket::send(self, messages)
    }

    fn receive(&self, buffer: &mut [u8]) -> io::Result<usize> {
        Socket::receive(self, buffer)
    }
}

/// A socket with what is needed to tell its answers apart.
#[derive(Debug)]
pub(crate) struct Conn<W: Wire = Socket> {
    socket: W,
    sequence: u32,
    buffer: Vec<u8>,
}

/// A dump that others changed meanwhile is asked for again so many times.
const AGAIN: u32 = 20;

impl Conn {
    /// Opens a socket in the network namespace of the helper.
    pub(crate) fn open(family: Family) -> Result<Conn, Refused> {
        let socket = Socket::open(family).map_err(|error| lost("socket(AF_NETLINK)", &error))?;
        Ok(Conn::over(socket))
    }

    /// The socket's number, by which the kernel tells others whose change it was.
    pub(crate) fn port(&self) -> Option<u32> {
        self.socket.port().ok()
    }
}

impl<W: Wire> Conn<W> {
    fn over(socket: W) -> Conn<W> {
        // A dump's datagram has at most 32 KiB, any other one page and what was asked.
        Conn { socket, sequence: 1, buffer: vec![0; 64 << 10] }
    }

    /// Sends all requests in one datagram, and gives what the kernel said to each, in their order. `call` is what an error
    /// calls them, written out only then.
    ///
    /// A dump that was interrupted by a change is asked again, whole. Answers to requests of before are thrown away.
    pub(crate) fn ask(&mut self, call: impl Display, requests: &mut Requests) -> Result<Vec<Said>, Refused> {
        // What was only asked can be asked again; whether a change was made is not known where its answer was lost.
        let is_question = requests.flags().iter().all(|&flags| asks(flags));
        for _ in 0..AGAIN {
            match self.once(requests) {
                Ok(said) if !said.iter().any(|said| said.interrupted) => return Ok(said),
                Ok(_) => {}
                Err(error) if is_question && error.raw_os_error() == Some(libc::ENOBUFS) => {}
                Err(error) if is_question && error.kind() == io::ErrorKind::FileTooLarge && self.grow() => {}
                Err(error) => return Err(lost(call, &error)),
            }
        }
        Err(lost(call, &"the list changed each time that it was read"))
    }

    /// Makes the buffer larger, up to what a socket holds.
    fn grow(&mut self) -> bool {
        let larger = self.buffer.len() * 2;
        let may = larger <= 1 << 20;
        if may {
            self.buffer.resize(larger, 0);
        }
        may
    }

    /// The same for one request: its answers, or the error.
    pub(crate) fn one(&mut self, call: impl Display, requests: &mut Requests) -> Result<Vec<Vec<u8>>, Refused> {
        let said = self.ask(&call, requests)?.pop().unwrap_or_default();
        said.good(call)
    }

    /// The same for requests whose answer is but a receipt: the first error.
    pub(crate) fn all(&mut self, call: impl Display, requests: &mut Requests) -> Result<(), Refused> {
        for said in self.ask(&call, requests)? {
            said.good(&call)?;
        }
        Ok(())
    }

    fn once(&mut self, requests: &mut Requests) -> io::Result<Vec<Said>> {
        let first = self.sequence;
        self.sequence = self.sequence.wrapping_add(requests.len() as u32);
        let flags = requests.flags();
        let mut said: Vec<Said> = flags.iter().map(|_| Said::default()).collect();
        self.socket.send(requests.numbered(first))?;
        while !done(&flags, &said) {
            let length = self.socket.receive(&mut self.buffer)?;
            for answer in answers(&self.buffer[..length]) {
                let nth = answer.sequence.wrapping_sub(first) as usize;
                if let (Some(said), Some(&flags)) = (said.get_mut(nth), flags.get(nth)) {
                    said.hear(&answer, flags);
                }
            }
        }
        Ok(said)
    }
}

/// Whether everything was said: each request that gets an answer has it. A request without a receipt that is no
/// dump and no question (a batch's) has its answer only where it failed, and then nothing else may come.
fn done(flags: &[u16], said: &[Said]) -> bool {
    let silent = |&flags: &u16| flags & ACK == 0 && !asks(flags);
    let failed = |(flags, said): (&u16, &Said)| silent(flags) && said.errno != 0;
    let heard = |(flags, said): (&u16, &Said)| silent(flags) || said.ended;
    flags.iter().zip(said).any(failed) || flags.iter().zip(said).all(heard)
}

/// Whether a request changes nothing. One bit of a dump's flags alone means something else in a change (`NLM_F_EXCL`).
fn asks(flags: u16) -> bool {
    flags & DUMP == DUMP || flags & QUESTION != 0
}

/// A mark of ours on a request that is answered once: `NLM_F_ECHO`, which the kernel does not look at in a question.
pub(crate) const QUESTION: u16 = 0x8;

impl Said {
    fn hear(&mut self, answer: &Answer<'_>, asked: u16) {
        const MULTI: u16 = 0x2;
        const DUMP_INTERRUPTED: u16 = 0x10;
        self.interrupted |= asked & DUMP == DUMP && answer.flags & DUMP_INTERRUPTED != 0;
        match answer.kind {
            message::ERROR | message::DONE => {
                // One whose number is cut off says nothing good.
                let number = message::u32_at(answer.body, 0).map_or(-libc::EBADMSG, u32::cast_signed);
                if self.errno == 0 {
                    self.errno = number.saturating_neg();
                    self.words = words(answer);
                }
                self.ended = true;
            }
            _ => {
                self.bodies.push(answer.body.to_vec());
                self.ended |= asked & QUESTION != 0 && answer.flags & MULTI == 0;
            }
        }
    }

    /// Whether there is what was asked for.
    pub(crate) fn found(self, call: impl Display) -> Result<bool, Refused> {
        if self.errno == libc::ENOENT { Ok(false) } else { self.good(call).map(|_| true) }
    }

    /// The answers, or the error.
    pub(crate) fn good(self, call: impl Display) -> Result<Vec<Vec<u8>>, Refused> {
        match self.errno {
            0 => Ok(self.bodies),
            errno => Err(Refused { call: call.to_string(), errno, words: self.words }),
        }
    }
}

/// The kernel's own words: behind the error's number and the head of the request (`NLMSGERR_ATTR_MSG`).
fn words(answer: &Answer<'_>) -> String {
    const TLVS: u16 = 0x200;
    let behind = if answer.kind == message::ERROR { 20 } else { 4 };
    if answer.flags & TLVS == 0 {
        return String::new();
    }
    answer
        .body
        .get(behind..)
        .and_then(|attrs| message::attr(attrs, 1))
        .map(|text| format!("({})", message::text(text)))
        .unwrap_or_default()
}

fn lost(call: impl Display, error: &dyn Display) -> Refused {
    Refused { call: call.to_string(), errno: 0, words: error.to_string() }
}

/// Sockets that lie idle: a thread takes one for each conversation, so nobody waits for another's answer.
#[derive(Debug)]
pub(crate) struct Pool {
    family: Family,
    idle: Mutex<Vec<Conn>>,
}

/// More than that many idle sockets are closed.
const IDLE: usize = 8;

impl Pool {
    /// An empty one.
    pub(crate) fn new(family: Family) -> Pool {
        Pool { family, idle: Mutex::default() }
    }

    /// Speaks with the kernel. A socket whose conversation broke off is closed: late answers go with it.
    pub(crate) fn with<T>(&self, talk: impl FnOnce(&mut Conn) -> Result<T, Refused>) -> Result<T, Refused> {
        let idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner).pop();
        let mut conn = match idle {
            Some(conn) => conn,
            None => Conn::open(self.family)?,
        };
        let result = talk(&mut conn);
        if result.as_ref().err().is_none_or(|refused| refused.errno != 0) {
            let mut idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner);
            if idle.len() < IDLE {
                idle.push(conn);
            }
        }
        result
    }
}

#[cfg(test)]
#[path = "netlink_lies.rs"]
mod lies;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_batch_ends_with_its_receipt_or_its_first_error() {
        let flags = [1, 1, 1 | ACK, 1];
        let mut said: Vec<Said> = flags.iter().map(|_| Said::default()).collect();
        assert!(!done(&flags, &said));
        said[2].ended = true;
        assert!(done(&flags, &said));
        let mut said: Vec<Said> = flags.iter().map(|_| Said::default()).collect();
        said[0].errno = 85;
        assert!(done(&flags, &said), "the begin was refused, so nothing else will come");
        let flags = [1, 1 | message::CREATE | message::EXCL, 1 | message::CREATE | message::EXCL | ACK, 1];
        let mut said: Vec<Said> = flags.iter().map(|_| Said::default()).collect();
        said[2].ended = true;
        assert!(done(&flags, &said), "what must be new has no answer of its own");
        assert!(!asks(flags[1]) && asks(DUMP) && asks(QUESTION));
    }

    #[test]
    fn an_interrupted_dump_is_noticed() {
        let mut said = Said::default();
        said.hear(&Answer { kind: 16, flags: 0x12, sequence: 0, body: &[1] }, DUMP);
        assert!(said.interrupted && !said.ended && said.bodies.len() == 1);
        said.hear(&Answer { kind: message::DONE, flags: 0x2, sequence: 0, body: &[0; 4] }, DUMP);
        assert!(said.ended && said.errno == 0);
    }
}
