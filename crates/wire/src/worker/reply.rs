//! The reply: one short frame, then the end of the stream.

use super::{Bytes, MAX_READ, Malformed};

const MAGIC: [u8; 8] = *b"bngr-rep";
/// The longest text of a refusal, in bytes.
pub const MAX_TEXT: usize = 512;
/// The longest reply: below `PIPE_BUF`, so it arrives in one piece.
pub const MAX_REPLY: usize = 8 + 4 + 3 * 8 + 2 + MAX_TEXT;

/// What the worker says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Reply {
    /// The file's bytes are in [`fd::OUT`](super::fd::OUT), from its beginning.
    Read {
        /// How many they are, at most [`MAX_READ`].
        size: u64,
    },
    /// The log is whole.
    Written {
        /// The length of the log, in bytes; 0 where nothing is to be changed.
        log: u64,
        /// How many changes it holds.
        changes: u32,
        /// The blocks that are free once they are applied.
        free_blocks: u64,
    },
    /// Not done, and nothing is to be changed.
    Refused {
        /// What kind of reason it is.
        why: Why,
        /// The reason in one line, without control characters. Text out of the image may stand in it.
        text: String,
    },
}

/// Why something was refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum Why {
    /// The image is none, or has features that are not known or not written.
    NotSupported = 1,
    /// The image is marked with errors, or what was read is damaged: `fsck` first.
    Damaged = 2,
    /// The file to be read is not in the image.
    NotFound = 3,
    /// There is something else than a regular file, or than a directory above one.
    WrongType = 4,
    /// Too many symlinks after each other.
    Loop = 5,
    /// The file is larger than what is read, or the changes are more than what is logged.
    TooLarge = 6,
    /// Not enough free blocks or inodes.
    NoSpace = 7,
    /// The image's own flags forbid it: immutable, append-only.
    Protected = 8,
    /// The worker could not read, write or get memory.
    Failed = 9,
}

impl Why {
    const ALL: [Why; 9] = [
        Why::NotSupported,
        Why::Damaged,
        Why::NotFound,
        Why::WrongType,
        Why::Loop,
        Why::TooLarge,
        Why::NoSpace,
        Why::Protected,
        Why::Failed,
    ];
}

const READ: u32 = 101;
const WRITTEN: u32 = 102;

impl Reply {
    /// The frame. A text is made to fit: control characters become `?`, what is too long is cut.
    pub fn encode(&self) -> Vec<u8> {
        let (kind, numbers, text) = match self {
            Reply::Read { size } => (READ, [*size, 0, 0], String::new()),
            Reply::Written { log, changes, free_blocks } => {
                (WRITTEN, [*log, u64::from(*changes), *free_blocks], String::new())
            }
            Reply::Refused { why, text } => (*why as u32, [0; 3], fitting(text)),
        };
        let mut bytes = MAGIC.to_vec();
        bytes.extend(kind.to_le_bytes());
        numbers.iter().for_each(|number| bytes.extend(number.to_le_bytes()));
        bytes.extend(u16::try_from(text.len()).unwrap_or(0).to_le_bytes());
        bytes.extend(text.as_bytes());
        bytes
    }

    /// Reads a frame, which is all that came.
    ///
    /// # Errors
    /// Where it is not exactly what [`encode`](Self::encode) makes.
    pub fn decode(bytes: &[u8]) -> Result<Reply, Malformed> {
        let mut bytes = Bytes(bytes);
        if bytes.array()? != MAGIC {
            return Err(Malformed("no reply"));
        }
        let kind = bytes.u32()?;
        let numbers = [bytes.u64()?, bytes.u64()?, bytes.u64()?];
        let length = usize::from(bytes.u16()?);
        let text = std::str::from_utf8(bytes.take(length)?).map_err(|_| Malformed("the text"))?;
        bytes.end()?;
        if length > MAX_TEXT || text.chars().any(char::is_control) {
            return Err(Malformed("the text"));
        }
        match (kind, numbers, text) {
            (READ, [size @ ..=MAX_READ, 0, 0], "") => Ok(Reply::Read { size }),
            (WRITTEN, [log, changes, free_blocks], "") => {
                let changes = u32::try_from(changes).map_err(|_| Malformed("the changes"))?;
                Ok(Reply::Written { log, changes, free_blocks })
            }
            (_, [0, 0, 0], _) => {
                let why = Why::ALL.into_iter().find(|why| *why as u32 == kind).ok_or(Malformed("the kind"))?;
                Ok(Reply::Refused { why, text: text.to_owned() })
            }
            _ => Err(Malformed("the kind")),
        }
    }
}

fn fitting(text: &str) -> String {
    let mut text: String = text.chars().map(|c| if c.is_control() { '?' } else { c }).collect();
    text.truncate(text.floor_char_boundary(MAX_TEXT));
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn reply() -> impl Strategy<Value = Reply> {
        prop_oneof![
            (0..=MAX_READ).prop_map(|size| Reply::Read { size }),
            any::<(u64, u32, u64)>().prop_map(|(log, changes, free_blocks)| Reply::Written {
                log,
                changes,
                free_blocks
            }),
            ("\\PC{0,99}", 0..Why::ALL.len()).prop_map(|(text, i)| Reply::Refused { why: Why::ALL[i], text }),
        ]
    }

    proptest! {
        #[test]
        fn replies_come_back(reply in reply()) {
            let bytes = reply.encode();
            prop_assert!(bytes.len() <= MAX_REPLY);
            prop_assert_eq!(Reply::decode(&bytes), Ok(reply));
        }

        #[test]
        fn a_changed_reply_is_refused_or_another(reply in reply(), at in any::<usize>(), byte in any::<u8>()) {
            let mut bytes = reply.encode();
            let at = at % bytes.len();
            bytes[at] = byte;
            if let Ok(other) = Reply::decode(&bytes) {
                prop_assert_eq!(other.encode(), bytes.clone());
            }
            prop_assert!(Reply::decode(&bytes[..at]).is_err());
        }

        #[test]
        fn any_text_is_made_to_fit(text in ".{0,900}") {
            let bytes = Reply::Refused { why: Why::Failed, text }.encode();
            prop_assert!(bytes.len() <= MAX_REPLY && Reply::decode(&bytes).is_ok());
        }
    }

    #[test]
    fn a_read_of_more_than_is_read_is_no_reply() {
        let bytes = Reply::Read { size: MAX_READ + 1 }.encode();
        assert!(Reply::decode(&bytes).is_err());
    }
}
