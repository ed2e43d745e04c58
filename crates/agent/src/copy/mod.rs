//! Files into a tar and out of one, at either end of a copy: [`Pack`] reads a tree, [`Unpack`] makes one. Both do their work
//! in pieces, when they are called, and wait for nothing but the disk.

mod look;
mod pack;
#[cfg(test)]
mod tests;
mod unpack;

use std::fmt;
use std::fmt::Write as _;

use rustix::io::Errno;
use serde::{Deserialize, Serialize};

use crate::tar::TarError;

pub use look::Look;
pub use pack::{Pack, Source};
pub use unpack::{Rules, Unpack};

/// The most entries of a copy.
pub const MAX_ENTRIES: u64 = 1_000_000;
/// How deep a tree may be: a descriptor for each level is open while it is read.
pub const MAX_DEPTH: usize = 128;
/// So much of what is left out is named.
pub const MAX_LISTED: usize = 32;
/// The most bytes of a name that is shown.
const SHOWN: usize = 256;

/// What was copied: REPLY to `put` and `get`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Copied {
    /// Files, directories and links.
    pub entries: u64,
    /// Those of them that are no directories, where this end has counted them: they don't travel.
    #[serde(skip)]
    pub files: u64,
    /// Bytes of the files.
    pub bytes: u64,
    /// What couldn't be taken along: devices, FIFOs, sockets, what vanished or was there already.
    pub left_out: u64,
    /// Set-id bits that were taken away.
    pub stripped: u64,
    /// Of all of the archive's bytes, as 64 hexadecimal digits.
    pub sha256: String,
    /// The first of what was left out.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub listed: Vec<LeftOut>,
}

/// Something that was left out.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LeftOut {
    /// Its name in the archive, with what is not ASCII or printable escaped; the first 256 bytes of it.
    pub path: String,
    /// Why.
    pub why: Why,
}

/// Why something was left out.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Why {
    /// No archive of a copy has devices, FIFOs or sockets.
    NoFile,
    /// It went away while it was to be read, or is a link that leads nowhere.
    Gone,
    /// There is something of that name already.
    IsThere,
    /// One of its extended attributes, at least: too long, none that may be set, or the file system has none.
    Attribute,
}

impl fmt::Display for Why {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::NoFile => "no file, directory or link",
            Self::Gone => "gone, or a link that leads nowhere",
            Self::IsThere => "there already",
            Self::Attribute => "an extended attribute alone",
        })
    }
}

impl Copied {
    /// Counts something that is left out, and names it where there is room for that.
    fn leave_out(&mut self, name: &[u8], why: Why) {
        self.left_out += 1;
        if self.listed.len() < MAX_LISTED {
            self.listed.push(LeftOut { path: shown(name), why });
        }
    }
}

impl Copied {
    /// Shortens what is named to so many bytes, escaped as JSON.
    pub fn list_at_most(&mut self, mut bytes: usize) {
        // Each byte may be escaped by another, and the rest of such an object takes less than 64.
        let fits = |it: &LeftOut| {
            let left = bytes.checked_sub(it.path.len() * 2 + 64);
            bytes = left.unwrap_or(0);
            left.is_some()
        };
        let named = self.listed.iter().map(fits).take_while(|fits| *fits).count();
        self.listed.truncate(named);
    }
}

/// Why a copy ends.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum CopyError {
    /// The archive, and the last name in it.
    Tar(TarError, Vec<u8>),
    /// What was tried, with which name, and what the kernel said.
    File(&'static str, Vec<u8>, Errno),
    /// More than a million entries.
    TooMany,
    /// More bytes than there may be, or than there is room for.
    TooMuch,
    /// A tree of more than 128 levels.
    TooDeep(Vec<u8>),
}

impl CopyError {
    /// The errno, 0 where there was none.
    pub fn errno(&self) -> i32 {
        match self {
            Self::File(.., errno) => errno.raw_os_error(),
            _ => 0,
        }
    }
}

impl fmt::Display for CopyError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tar(error, name) if name.is_empty() => error.fmt(f),
            Self::Tar(error, name) => write!(f, "{error}: {}", shown(name)),
            Self::File(step, name, errno) => write!(f, "{step} {}: {errno}", shown(name)),
            Self::TooMany => write!(f, "more than {MAX_ENTRIES} entries"),
            Self::TooMuch => f.write_str("more than there is room for"),
            Self::TooDeep(name) => write!(f, "deeper than {MAX_DEPTH} levels: {}", shown(name)),
        }
    }
}

impl std::error::Error for CopyError {}

/// A name for a person: it may be a guest's.
fn shown(name: &[u8]) -> String {
    name[..name.len().min(SHOWN)].escape_ascii().to_string()
}

fn hex(digest: &[u8]) -> String {
    digest.iter().fold(String::new(), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}
