//! Looking for a few known bytes in a stream that comes in pieces.

/// The longest pattern: a whole SYNC frame.
const MOST: usize = super::HEADER_LEN + super::NONCE_LEN;

/// A search that never looks back (Knuth, Morris, Pratt), so nothing of what is skipped is kept.
#[derive(Debug)]
pub(super) struct Hunt {
    pattern: [u8; MOST],
    len: usize,
    /// For each length of a match: how much of it still matches when the next byte doesn't.
    back: [u8; MOST],
    matched: usize,
}

impl Hunt {
    /// Takes up to 28 bytes of `pattern`.
    pub(super) fn new(pattern: &[u8]) -> Self {
        let len = pattern.len().min(MOST);
        let mut hunt = Self { pattern: [0; MOST], len, back: [0; MOST], matched: 0 };
        hunt.pattern[..len].copy_from_slice(&pattern[..len]);
        for (at, byte) in pattern.iter().enumerate().take(len).skip(1) {
            hunt.take(*byte);
            hunt.back[at] = hunt.matched as u8;
        }
        hunt.matched = 0;
        hunt
    }

    /// Skips `bytes` up to the end of the pattern; says how many it took and whether the pattern was there.
    pub(super) fn feed(&mut self, bytes: &[u8]) -> (usize, bool) {
        for (at, byte) in bytes.iter().enumerate() {
            self.take(*byte);
            if self.matched == self.len {
                self.matched = 0;
                return (at + 1, true);
            }
        }
        (bytes.len(), false)
    }

    fn take(&mut self, byte: u8) {
        while self.matched > 0 && self.pattern[self.matched] != byte {
            self.matched = usize::from(self.back[self.matched - 1]);
        }
        if self.pattern[self.matched] == byte {
            self.matched += 1;
        }
    }
}
