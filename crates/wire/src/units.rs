//! Units that must not be mixed up.

use crate::code::shown;
use crate::name::Invalid;

/// A prefix's length, 8 to 30: what a bridge may have.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct PrefixLen(u8);

impl PrefixLen {
    /// Checks a length in decimal digits, without sign, blank or leading zero.
    pub fn new(text: &str) -> Result<PrefixLen, Invalid> {
        match text.parse::<u8>() {
            Ok(length @ 8..=30) if length.to_string() == text => Ok(PrefixLen(length)),
            _ => Err(Invalid::new(format!("prefix length {} must be 8 to 30", shown(text)))),
        }
    }

    /// The number of bits.
    pub fn get(self) -> u8 {
        self.0
    }

    /// The netmask.
    pub fn mask(self) -> u32 {
        u32::MAX << (32 - u32::from(self.0))
    }
}

impl std::fmt::Display for PrefixLen {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.0.fmt(f)
    }
}

/// Memory in units of 2^20 bytes; at least one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Mebibytes(pub u64);

impl Mebibytes {
    /// The number of bytes.
    pub fn bytes(self) -> u64 {
        self.0.saturating_mul(1 << 20)
    }
}

impl std::fmt::Display for Mebibytes {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} MiB", self.0)
    }
}
