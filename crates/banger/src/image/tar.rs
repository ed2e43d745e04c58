//! Reads tar archives that anybody may have made: ustar, pax and GNU's long names, an entry at a time.
//!
//! The format is POSIX.1-2017's (`pax`, "ustar Interchange Format"), GNU's additions those of tar's manual ("Basic Tar
//! Format"). What isn't understood is refused, and so is an archive that ends before its end mark: a file of a wrong
//! length, or one that is missing, would be taken for the truth. Nothing here is larger in memory than the archive's
//! longest name may be, whatever sizes it gives.

use std::io::{self, Read};

use agent::tar::BLOCK;
use agent::tar::field::{self, decimal, number, record, text};

use super::error::Error;

/// The most bytes of extended headers that one entry may have: its names and attributes.
const MAX_EXTENDED: u64 = 1 << 20;
/// The most headers that may come before the entry that they describe.
const MAX_HEADERS: usize = 16;

/// Extended attributes: names and values.
pub(crate) type Attributes = Vec<(Vec<u8>, Vec<u8>)>;

/// What an entry is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// A file: so many bytes follow.
    File(u64),
    /// Another name of an entry that came before.
    HardLink(Vec<u8>),
    Symlink(Vec<u8>),
    /// Major and minor number.
    Character(u32, u32),
    /// Major and minor number.
    Block(u32, u32),
    Directory,
    Fifo,
}

/// An entry's header.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Entry {
    /// As the archive has it: nothing is known about it yet.
    pub(crate) path: Vec<u8>,
    pub(crate) kind: Kind,
    /// The permission bits, with set-id and sticky.
    pub(crate) mode: u32,
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    /// Seconds since 1970.
    pub(crate) mtime: i64,
    pub(crate) attributes: Attributes,
}

/// An archive. Reading from it reads the present entry's bytes.
pub(crate) struct Archive<R> {
    from: R,
    /// Bytes of the present entry that are not read yet.
    left: u64,
    /// Bytes behind them, up to the next block.
    padding: u64,
    ended: bool,
}

impl<R: Read> Archive<R> {
    pub(crate) fn new(from: R) -> Archive<R> {
        Archive { from, left: 0, padding: 0, ended: false }
    }

    /// The next entry; what was not read of the one before is skipped. `None` behind the end mark.
    pub(crate) fn next(&mut self) -> Result<Option<Entry>, Error> {
        let mut extended = Extended::default();
        for _ in 0..MAX_HEADERS {
            self.skip()?;
            let Some(header) = self.header()? else {
                return if extended.is_empty() { Ok(None) } else { Err(damaged("a header without its entry")) };
            };
            let size = number(&header[124..136]).ok_or_else(|| damaged("a size that is no number"))?;
            match header[156] {
                b'x' => extended.read_pax(&self.extended(size)?)?,
                b'L' => extended.path = Some(text(&self.extended(size)?).to_vec()),
                b'K' => extended.link = Some(text(&self.extended(size)?).to_vec()),
                // For all entries that follow: comments, in the archives that have it. What would matter is refused.
                b'g' => {
                    let mut global = Extended::default();
                    global.read_pax(&self.extended(size)?)?;
                    if !global.is_empty() {
                        return Err(Error::input("the archive sets names or sizes for all of its entries at once"));
                    }
                }
                // A volume's name.
                b'V' => self.set_left(size),
                _ => return self.entry(&header, size, extended).map(Some),
            }
        }
        Err(damaged("too many headers for one entry"))
    }

    /// The header's block; `None` at the end mark.
    fn header(&mut self) -> Result<Option<[u8; BLOCK]>, Error> {
        if self.ended {
            return Ok(None);
        }
        let mut block = [0; BLOCK];
        self.fill(&mut block)?;
        if block.iter().all(|byte| *byte == 0) {
            // One such block is enough for those who read; whoever writes makes two, and more to fill a record.
            self.ended = true;
            io::copy(&mut self.from, &mut io::sink()).map_err(|cause| unreadable(&cause))?;
            return Ok(None);
        }
        if !field::sum_is_right(&block) {
            return Err(damaged("a header whose checksum is wrong"));
        }
        Ok(Some(block))
    }

    fn extended(&mut self, size: u64) -> Result<Vec<u8>, Error> {
        if size > MAX_EXTENDED {
            return Err(Error::input(format!(
                "an entry's extended header has {size} bytes; {MAX_EXTENDED} are the most"
            )));
        }
        self.set_left(size);
        let mut bytes = vec![0; usize::try_from(size).unwrap_or(usize::MAX)];
        self.fill(&mut bytes)?;
        self.left = 0;
        Ok(bytes)
    }

    fn entry(&mut self, header: &[u8; BLOCK], size: u64, extended: Extended) -> Result<Entry, Error> {
        let path = extended.path.unwrap_or_else(|| field::name(header));
        let link = || extended.link.clone().unwrap_or_else(|| text(&header[157..257]).to_vec());
        let size = extended.size.unwrap_or(size);
        let field =
            |range: std::ops::Range<usize>, what: &'static str| number(&header[range]).ok_or_else(|| damaged(what));
        let id = |said: Option<u64>, range, what: &'static str| {
            u32::try_from(said.map_or_else(|| field(range, what), Ok)?).map_err(|_| damaged(what))
        };
        let device = || -> Result<(u32, u32), Error> {
            let half =
                |range| u32::try_from(field(range, "a device's number")?).map_err(|_| damaged("a device's number"));
            Ok((half(329..337)?, half(337..345)?))
        };
        let kind = match header[156] {
            // Before 1988 a directory was a file whose name ends so.
            b'0' | b'7' | 0 if path.ends_with(b"/") && size == 0 => Kind::Directory,
            b'0' | b'7' | 0 => Kind::File(size),
            b'1' => Kind::HardLink(link()),
            b'2' => Kind::Symlink(link()),
            b'3' => device().map(|(major, minor)| Kind::Character(major, minor))?,
            b'4' => device().map(|(major, minor)| Kind::Block(major, minor))?,
            b'5' => Kind::Directory,
            b'6' => Kind::Fifo,
            b'S' => return Err(sparse()),
            other => return Err(Error::input(format!("an entry of the unknown type {:?}", char::from(other)))),
        };
        match kind {
            Kind::File(size) => self.set_left(size),
            // Who reads them as bytes, and who doesn't, would see different archives.
            _ if size != 0 => return Err(damaged("an entry that is no file and says that it has bytes")),
            _ => {}
        }
        Ok(Entry {
            path,
            kind,
            mode: (field(100..108, "a mode")? & 0o7777) as u32,
            uid: id(extended.uid, 108..116, "a user's number")?,
            gid: id(extended.gid, 116..124, "a group's number")?,
            // A time before 1970 or behind the format's end is nobody's reason to refuse a file.
            mtime: extended.mtime.or_else(|| number(&header[136..148])?.try_into().ok()).unwrap_or(0),
            attributes: extended.attributes,
        })
    }

    fn set_left(&mut self, size: u64) {
        self.left = size;
        self.padding = size.wrapping_neg() % BLOCK as u64;
    }

    fn skip(&mut self) -> Result<(), Error> {
        // Too long to be summed up is too long to be there.
        let length = self.left.saturating_add(self.padding);
        let skipped = io::copy(&mut (&mut self.from).take(length), &mut io::sink());
        if skipped.map_err(|cause| unreadable(&cause))? != length {
            return Err(cut_off());
        }
        (self.left, self.padding) = (0, 0);
        Ok(())
    }

    fn fill(&mut self, bytes: &mut [u8]) -> Result<(), Error> {
        self.from.read_exact(bytes).map_err(|cause| match cause.kind() {
            io::ErrorKind::UnexpectedEof => cut_off(),
            _ => unreadable(&cause),
        })
    }
}

/// The present entry's bytes. An archive that ends within them is an error, not an end.
impl<R: Read> Read for Archive<R> {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        let most = usize::try_from(self.left).unwrap_or(usize::MAX).min(into.len());
        let read = self.from.read(&mut into[..most])?;
        if read == 0 && most > 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        self.left -= read as u64;
        Ok(read)
    }
}

/// What headers before an entry say of it.
#[derive(Default)]
struct Extended {
    path: Option<Vec<u8>>,
    link: Option<Vec<u8>>,
    size: Option<u64>,
    uid: Option<u64>,
    gid: Option<u64>,
    mtime: Option<i64>,
    attributes: Attributes,
}

impl Extended {
    fn is_empty(&self) -> bool {
        let Extended { path, link, size, uid, gid, mtime, attributes } = self;
        path.is_none()
            && link.is_none()
            && (size, uid, gid) == (&None, &None, &None)
            && mtime.is_none()
            && attributes.is_empty()
    }

    /// Records of the form `LENGTH KEY=VALUE\n`, whose length counts itself.
    fn read_pax(&mut self, mut records: &[u8]) -> Result<(), Error> {
        let wrong = || damaged("an extended header that makes no sense");
        while !records.is_empty() {
            let (key, value) = record(&mut records).ok_or_else(wrong)?;
            self.set(key, value).ok_or_else(wrong)?;
            if key.starts_with(b"GNU.sparse.") {
                return Err(sparse());
            }
        }
        Ok(())
    }

    fn set(&mut self, key: &[u8], value: &[u8]) -> Option<()> {
        match key {
            b"path" => self.path = Some(value.to_vec()),
            b"linkpath" => self.link = Some(value.to_vec()),
            b"size" => self.size = Some(decimal(value)?),
            b"uid" => self.uid = Some(decimal(value)?),
            b"gid" => self.gid = Some(decimal(value)?),
            b"mtime" => self.mtime = Some(seconds(value)?),
            _ => {
                if let Some(name) = key.strip_prefix(b"SCHILY.xattr.") {
                    self.attributes.push((name.to_vec(), value.to_vec()));
                }
            }
        }
        Some(())
    }
}

/// Whole seconds of a pax time, which may have a sign and a fraction.
fn seconds(value: &[u8]) -> Option<i64> {
    let text = std::str::from_utf8(value).ok()?;
    text.split('.').next()?.parse().ok()
}

fn damaged(what: &str) -> Error {
    Error::input(format!("the archive is damaged: {what}")).fix("make or fetch it again")
}

fn cut_off() -> Error {
    Error::input("the archive is cut off: it ends before its end mark").fix("make or fetch it again")
}

fn sparse() -> Error {
    Error::input("the archive has files in GNU's sparse form").fix("make it without tar's --sparse")
}

pub(crate) fn unreadable(cause: &io::Error) -> Error {
    match cause.kind() {
        io::ErrorKind::UnexpectedEof => cut_off(),
        _ => Error::input("the archive can't be read or unpacked").why(cause),
    }
}

#[cfg(test)]
pub(super) mod tests;
