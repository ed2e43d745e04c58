//! What the lab's two ends say to each other over one virtio-serial port.
//!
//! A frame is a kind, one byte, the length of its body, four bytes, little-endian, and the body. The host asks, the lab
//! answers; one command runs at a time, but for one that looks at another that hangs.
//!
//! | kind | from | body |
//! |---|---|---|
//! | 1 wake | host | the time in nanoseconds since 1970, 8 bytes; 64 random bytes |
//! | 2 awake | lab | the first 16 of those bytes |
//! | 3 attach | host | texts: mount the second disk at `/lab`; then pairs of a link and what it points to |
//! | 4 attached | lab | none |
//! | 5 run | host | texts: see [`Command`] |
//! | 6 input | host | bytes for the command; none: no more will come |
//! | 7 output, 8 errors | lab | bytes of its standard output, of its standard error |
//! | 9 ended | lab | its exit status as a shell would say it, 4 bytes |
//! | 10 failed | lab | a text: why the last request could not be done |
//! | 11 poke | host | none |
//! | 12 poked | lab | none |
//!
//! Texts are bytes without a NUL, each with a NUL behind it.

use std::io::{self, Read, Write};

/// No frame has a longer body.
pub const LONGEST: usize = 1 << 20;
/// The most bytes of a stream in one frame.
pub const CHUNK: usize = 32 << 10;
/// The port's name in the guest.
pub const PORT: &str = "banger.lab";
/// Bytes of a wake.
pub const WAKE_LEN: usize = 40;

/// What a frame is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Kind {
    /// Set the clock, stir the random numbers, and answer.
    Wake = 1,
    /// The answer.
    Awake = 2,
    /// Mount the second disk.
    Attach = 3,
    /// It is mounted.
    Attached = 4,
    /// Start a command.
    Run = 5,
    /// Bytes for its standard input.
    Input = 6,
    /// Bytes of its standard output.
    Output = 7,
    /// Bytes of its standard error.
    Errors = 8,
    /// It has ended.
    Ended = 9,
    /// A request could not be done.
    Failed = 10,
    /// Nothing: that it comes is an interrupt.
    Poke = 11,
    /// It came.
    Poked = 12,
}

const KINDS: [Kind; 12] = [
    Kind::Wake,
    Kind::Awake,
    Kind::Attach,
    Kind::Attached,
    Kind::Run,
    Kind::Input,
    Kind::Output,
    Kind::Errors,
    Kind::Ended,
    Kind::Failed,
    Kind::Poke,
    Kind::Poked,
];

/// Writes one frame, in one write.
///
/// # Errors
/// The port's; a body that is too long.
pub fn send(to: &mut impl Write, kind: Kind, body: &[u8]) -> io::Result<()> {
    if body.len() > LONGEST {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "too much for one request to the lab"));
    }
    let mut frame = Vec::with_capacity(5 + body.len());
    frame.push(kind as u8);
    frame.extend_from_slice(&(body.len() as u32).to_le_bytes());
    frame.extend_from_slice(body);
    to.write_all(&frame)
}

/// Reads one frame.
///
/// # Errors
/// The port's; `UnexpectedEof` where the other end is gone; bytes that are no frame.
pub fn receive(from: &mut impl Read) -> io::Result<(Kind, Vec<u8>)> {
    let mut head = [0; 5];
    from.read_exact(&mut head)?;
    let [kind, length @ ..] = head;
    let length = u32::from_le_bytes(length) as usize;
    let kind = KINDS.into_iter().find(|k| *k as u8 == kind).filter(|_| length <= LONGEST);
    let kind = kind.ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, "no frame of the lab's"))?;
    let mut body = vec![0; length];
    from.read_exact(&mut body)?;
    Ok((kind, body))
}

/// Texts as a body.
pub fn join<T: AsRef<[u8]>>(texts: impl IntoIterator<Item = T>) -> Vec<u8> {
    let mut body = Vec::new();
    for text in texts {
        body.extend(text.as_ref().iter().filter(|b| **b != 0));
        body.push(0);
    }
    body
}

/// The texts of a body.
pub fn split(body: &[u8]) -> Vec<&[u8]> {
    let mut texts: Vec<&[u8]> = body.split(|b| *b == 0).collect();
    texts.pop();
    texts
}

/// A command: its texts are the folder to run it in, the number of its words, the words, and `NAME=VALUE` for each
/// variable of its environment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Command<'a> {
    /// Where it runs.
    pub folder: &'a [u8],
    /// The program and its arguments; one at least.
    pub words: Vec<&'a [u8]>,
    /// The whole environment.
    pub environment: Vec<&'a [u8]>,
}

impl<'a> Command<'a> {
    /// As a body.
    pub fn to_body(&self) -> Vec<u8> {
        let count = self.words.len().to_string();
        let texts = [self.folder, count.as_bytes()].into_iter();
        join(texts.chain(self.words.iter().copied()).chain(self.environment.iter().copied()))
    }

    /// Out of a body; nothing where it is none.
    pub fn from_body(body: &'a [u8]) -> Option<Self> {
        let texts = split(body);
        let (&folder, rest) = texts.split_first()?;
        let (&count, rest) = rest.split_first()?;
        let count = std::str::from_utf8(count).ok()?.parse().ok().filter(|n| (1..=rest.len()).contains(n))?;
        let (words, environment) = rest.split_at(count);
        Some(Self { folder, words: words.to_vec(), environment: environment.to_vec() })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn a_frame_comes_out_as_it_went_in(kind in 0..KINDS.len(), body in proptest::collection::vec(any::<u8>(), 0..300)) {
            let mut pipe = Vec::new();
            send(&mut pipe, KINDS[kind], &body).unwrap();
            prop_assert_eq!(receive(&mut &pipe[..]).unwrap(), (KINDS[kind], body));
            pipe.pop();
            prop_assert_eq!(receive(&mut &pipe[..]).unwrap_err().kind(), io::ErrorKind::UnexpectedEof);
        }

        #[test]
        fn any_bytes_are_a_frame_or_an_error(bytes in proptest::collection::vec(any::<u8>(), 0..60)) {
            let mut rest = &bytes[..];
            while let Ok((_, body)) = receive(&mut rest) {
                let _ = Command::from_body(&body);
            }
        }

        #[test]
        fn a_command_comes_out_as_it_went_in(
            folder in "[a-z/]{0,9}",
            words in proptest::collection::vec("[^\0]{0,9}", 1..5),
            environment in proptest::collection::vec("[^\0]{0,9}", 0..5),
        ) {
            let bytes = |texts: &'_ [String]| texts.iter().map(|t| t.clone().into_bytes()).collect::<Vec<_>>();
            let (words, environment) = (bytes(&words), bytes(&environment));
            let command = Command {
                folder: folder.as_bytes(),
                words: words.iter().map(Vec::as_slice).collect(),
                environment: environment.iter().map(Vec::as_slice).collect(),
            };
            let body = command.to_body();
            prop_assert_eq!(Command::from_body(&body), Some(command));
        }
    }

    #[test]
    fn a_command_without_words_is_none() {
        for body in [&b""[..], b"/\0", b"/\x000\0", b"/\x002\0true\0", b"/\0x\0true\0"] {
            assert_eq!(Command::from_body(body), None, "{body:?}");
        }
    }
}
