//! The map of a file with holes, as it comes: decimal numbers, a line each, padded to a block (GNU tar's manual, "Storing
//! Sparse Files": PAX format, version 1.0).

use super::{BLOCK, Extent, MAX_EXTENTS, TarError};

/// The most bytes of one: each number has 19 digits at most, and a line's end.
const MAX: u64 = (1 + 2 * MAX_EXTENTS as u64) * 20;

/// A map on its way.
#[derive(Debug, Default)]
pub(super) struct Map {
    /// How many bytes of it have come.
    came: u64,
    /// The digits of the number that is under way.
    number: Option<u64>,
    /// All before it: how many extents, then beginning and length of each.
    numbers: Vec<u64>,
}

impl Map {
    /// Takes a first part of `bytes`, which it shortens; `true`: the map is whole, with its padding.
    pub(super) fn take(&mut self, bytes: &mut &[u8]) -> Result<bool, TarError> {
        while !(self.is_whole() && self.came.is_multiple_of(BLOCK as u64)) {
            let Some((first, rest)) = bytes.split_first() else { return Ok(false) };
            *bytes = rest;
            self.came += 1;
            if self.came > MAX.next_multiple_of(BLOCK as u64) {
                return Err(TarError::Sparse);
            }
            if !self.is_whole() {
                self.byte(*first)?;
            }
        }
        Ok(true)
    }

    fn is_whole(&self) -> bool {
        self.numbers.first().is_some_and(|count| self.numbers.len() as u64 == 1 + 2 * count)
    }

    fn byte(&mut self, byte: u8) -> Result<(), TarError> {
        match (byte, self.number) {
            (b'0'..=b'9', number) => {
                let more = number.unwrap_or(0).checked_mul(10).and_then(|n| n.checked_add(u64::from(byte - b'0')));
                self.number = Some(more.filter(|n| *n < 1 << 62).ok_or(TarError::Sparse)?);
            }
            (b'\n', Some(number)) => {
                if self.numbers.is_empty() && number > MAX_EXTENTS as u64 {
                    return Err(TarError::Sparse);
                }
                self.numbers.push(number);
                self.number = None;
            }
            _ => return Err(TarError::Sparse),
        }
        Ok(())
    }

    /// The extents, and how many bytes the map took, where they are those of a file of `size` bytes of which `stored` are in
    /// the archive, the map's among them.
    pub(super) fn extents(&self, size: u64, stored: u64) -> Result<(Vec<Extent>, u64), TarError> {
        let (mut end, mut sum) = (0u64, self.came);
        let mut extents = Vec::new();
        let mut is_broken = false;
        for pair in self.numbers.get(1..).unwrap_or_default().chunks_exact(2) {
            let extent = Extent { at: pair[0], length: pair[1] };
            // Some readers begin each extent with a block, others don't: where that differs nobody knows what is meant.
            if extent.at < end || (is_broken && extent.length > 0) {
                return Err(TarError::Sparse);
            }
            is_broken |= !extent.length.is_multiple_of(BLOCK as u64);
            // Each is below 2^62, and so is every sum that was let through.
            end = extent.at + extent.length;
            sum += extent.length;
            if end > size || sum > stored {
                return Err(TarError::Sparse);
            }
            extents.push(extent);
        }
        if sum == stored { Ok((extents, self.came)) } else { Err(TarError::Sparse) }
    }
}
