//! The tar that carries files between host and guest: POSIX ustar headers with pax records (pax(1), "ustar Interchange
//! Format"), as much of it as a copy needs. [`Reader`] takes bytes as they come and believes nothing of them; [`header`]
//! writes.
//!
//! Names are the danger: [`parts`] is the one way from a name to the parts that may be used.

pub mod field;
mod map;
mod reader;
#[cfg(test)]
mod tests;
mod writer;

use std::fmt;

pub use reader::{Item, Reader};
pub use writer::{fits, header, padding, trailer};

/// Bytes of a header, and what all content is padded to.
pub const BLOCK: usize = 512;
/// The most bytes of a name, a link's target included (linux/limits.h: PATH_MAX).
pub const MAX_NAME: usize = 4096;
/// The most bytes of a part of a name (linux/limits.h: NAME_MAX).
pub const MAX_PART: usize = 255;
/// The most bytes of one entry's pax records.
pub const MAX_PAX: usize = 128 * 1024;
/// The most extended attributes of an entry.
pub const MAX_ATTRIBUTES: usize = 64;
/// The most bytes of an entry's attributes, names and values.
pub const MAX_ATTRIBUTE_BYTES: usize = 32 * 1024;
/// The most extents of a file with holes.
pub const MAX_EXTENTS: usize = 8192;

/// What an entry is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Kind {
    /// A file of so many bytes. They follow, or of one with holes its extents ([`Extra::extents`]).
    File(u64),
    /// A directory.
    Directory,
    /// A symbolic link, and where it leads: any text.
    Symlink(Vec<u8>),
    /// Another name of an entry before it.
    Hardlink(Vec<u8>),
    /// A device, a FIFO, or whatever else has no content.
    Other,
}

/// One entry's head.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// Its name, as it came.
    pub name: Vec<u8>,
    /// What it is.
    pub kind: Kind,
    /// Permissions and set-id bits: 12 bits.
    pub mode: u32,
    /// Seconds since 1970.
    pub mtime: u64,
    /// What not every copy has.
    pub extra: Extra,
}

impl Entry {
    /// How many bytes of content follow its head.
    pub fn stored(&self) -> u64 {
        match (&self.kind, &self.extra.extents) {
            (Kind::File(_), Some(extents)) => extents.iter().map(|extent| extent.length).sum(),
            (Kind::File(size), None) => *size,
            _ => 0,
        }
    }
}

/// What not every copy has.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Extra {
    /// User and group, as numbers.
    pub owner: (u32, u32),
    /// Extended attributes: names with their class, `user.mime_type`, and values.
    pub attributes: Vec<(Vec<u8>, Vec<u8>)>,
    /// Where a file has data; between is nothing but zeros. Each begins where the one before ends, or behind, and all but
    /// the last with data are whole blocks. `None`: it has no holes.
    pub extents: Option<Vec<Extent>>,
}

/// A part of a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Extent {
    /// Where it begins.
    pub at: u64,
    /// Its bytes.
    pub length: u64,
}

/// Why an archive can't be read on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TarError {
    /// A header whose sum or form is wrong.
    Header,
    /// A kind of entry that no copy has.
    Kind,
    /// Pax records that aren't, or too many.
    Pax,
    /// A file with holes, in another form than GNU's 1.0, or whose map makes no sense.
    Sparse,
    /// Something behind the archive's end.
    AfterEnd,
    /// It stops before its end.
    Cut,
    /// A name that leads out of its place, or is too long.
    Name,
}

impl fmt::Display for TarError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Header => "a header that is none",
            Self::Kind => "an entry of an unknown kind",
            Self::Pax => "records that are none, or too long",
            Self::Sparse => "a file with holes that can't be read (tar --format=posix makes one that can)",
            Self::AfterEnd => "something behind the archive's end",
            Self::Cut => "an archive that stops before its end",
            Self::Name => "a name that leads out of its place, or is too long",
        })
    }
}

impl std::error::Error for TarError {}

/// A name's parts below the place that it is for; none of them is empty, `.` or `..`. No parts: the place itself.
///
/// # Errors
/// [`TarError::Name`] for one that begins with `/`, has `..`, an empty part or a NUL, or is too long.
pub fn parts(name: &[u8]) -> Result<Vec<&[u8]>, TarError> {
    let name = name.strip_suffix(b"/").unwrap_or(name);
    let name = if name == b"." { b"" } else { name.strip_prefix(b"./").unwrap_or(name) };
    if name.len() > MAX_NAME || name.contains(&0) {
        return Err(TarError::Name);
    }
    if name.is_empty() {
        return Ok(Vec::new());
    }
    let parts: Vec<&[u8]> = name.split(|byte| *byte == b'/').collect();
    let good = |part: &&[u8]| !matches!(*part, b"" | b"." | b"..") && part.len() <= MAX_PART;
    if parts.iter().all(good) { Ok(parts) } else { Err(TarError::Name) }
}
