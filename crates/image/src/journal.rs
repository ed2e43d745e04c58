//! A journal of the kernel's (jbd2), replayed: which blocks stand in it that have not yet come to their places.
//!
//! libext2fs can't do it (e2fsck has its own copy of the kernel's code), and an image whose journal is not replayed
//! loses what is written to it. Pure: blocks of the journal in, a plan out.
//!
//! The kernel reads the journal three times. Once is enough: a transaction's blocks count when its commit block has
//! been seen, and its revocations take away what it and those before it would have written.
//! <https://docs.kernel.org/filesystems/ext4/journal.html>

use std::collections::BTreeMap;
use wire::worker::log::crc32c;

const MAGIC: u32 = 0xc03b_3998;
const DESCRIPTOR: u32 = 1;
const COMMIT: u32 = 2;
const SUPERBLOCKS: [u32; 2] = [3, 4];
const REVOKE: u32 = 5;
/// Of all blocks of a journal: magic, type, sequence.
const HEADER: usize = 12;

const FEATURE_REVOKE: u32 = 1;
const FEATURE_64BIT: u32 = 2;
const FEATURE_CSUM_V2: u32 = 8;
const FEATURE_CSUM_V3: u32 = 0x10;
/// Without `async_commit`, where only a checksum tells that a transaction is whole, and without `fast_commit`.
const KNOWN: u32 = FEATURE_REVOKE | FEATURE_64BIT | FEATURE_CSUM_V2 | FEATURE_CSUM_V3;

const TAG_ESCAPED: u32 = 1;
const TAG_SAME_UUID: u32 = 2;
const TAG_LAST: u32 = 8;

/// Why a journal can't be replayed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Bad {
    /// It has features that this code doesn't know.
    Unknown(&'static str),
    /// It is damaged, or says that the kernel found an error.
    Damaged(&'static str),
    /// A block of it could not be read.
    Unread,
}

/// Where a block's newest content stands in the journal.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Place {
    /// The journal's block.
    pub block: u32,
    /// Whether its first four bytes were taken out, because they looked like the journal's own.
    pub escaped: bool,
}

/// What a journal holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Plan {
    /// Blocks of the image, by number.
    pub blocks: BTreeMap<u64, Place>,
    /// The journal's superblock once all of them are in their places.
    pub emptied: Vec<u8>,
}

/// The first bytes of an escaped block.
pub const ESCAPED: [u8; 4] = MAGIC.to_be_bytes();

/// Reads a journal of at most `length` blocks of `block_size` bytes; `read` puts a block of it into a buffer of that
/// size.
///
/// # Errors
/// Where it can't be replayed.
pub fn plan(block_size: usize, length: u32, read: impl FnMut(u32, &mut [u8]) -> Result<(), Bad>) -> Result<Plan, Bad> {
    let mut journal = Journal::open(block_size, length, read)?;
    let mut blocks = BTreeMap::new();
    let (mut sequence, mut at) = (journal.sequence, journal.start);
    // As many steps as there are blocks: a log that goes round more than once is none.
    journal.left = journal.end - journal.first;
    while at != 0 {
        let Some((transaction, next)) = journal.transaction(at, sequence)? else { break };
        blocks.extend(transaction.writes);
        for block in &transaction.revoked {
            blocks.remove(block);
        }
        sequence = sequence.wrapping_add(1);
        at = next;
    }
    // One more: the log may hold a piece of a transaction with the number that would come next.
    Ok(Plan { blocks, emptied: journal.emptied(sequence.wrapping_add(1)) })
}

struct Journal<R> {
    read: R,
    superblock: Vec<u8>,
    features: u32,
    /// Seed of all checksums.
    seed: u32,
    first: u32,
    end: u32,
    start: u32,
    sequence: u32,
    /// Blocks that may still be gone through.
    left: u32,
    block: Vec<u8>,
}

#[derive(Default)]
struct Transaction {
    writes: Vec<(u64, Place)>,
    revoked: Vec<u64>,
    /// A checksum in it was wrong: it must not have a commit block.
    torn: bool,
}

fn be32(bytes: &[u8], at: usize) -> u32 {
    bytes.get(at..at + 4).map_or(0, |bytes| u32::from_be_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]))
}

impl<R: FnMut(u32, &mut [u8]) -> Result<(), Bad>> Journal<R> {
    fn open(block_size: usize, length: u32, mut read: R) -> Result<Journal<R>, Bad> {
        let mut block = vec![0; block_size];
        read(0, &mut block)?;
        let superblock = block.get(..1024).ok_or(Bad::Damaged("its blocks are too small"))?.to_vec();
        let field = |at: usize| be32(&superblock, at);
        if field(0) != MAGIC || !SUPERBLOCKS.contains(&field(4)) {
            return Err(Bad::Damaged("it has no superblock"));
        }
        // The first version has neither features nor checksums.
        let features = if field(4) == SUPERBLOCKS[1] { field(0x28) } else { 0 };
        if features & !KNOWN != 0 {
            return Err(Bad::Unknown("it has features that are not known"));
        }
        let checksums = features & (FEATURE_CSUM_V2 | FEATURE_CSUM_V3) != 0;
        if checksums {
            let mut sealed = superblock.clone();
            sealed[0xfc..0x100].fill(0);
            if superblock[0x50] != 4 || crc32c(!0, &sealed) != field(0xfc) {
                return Err(Bad::Damaged("its superblock's checksum is wrong"));
            }
        }
        if field(0x20) != 0 {
            return Err(Bad::Damaged("the kernel found an error while it was mounted"));
        }
        let (first, end, start) = (field(0x14), field(0x10), field(0x1c));
        let sound = field(0xc) as usize == block_size && first >= 1 && first < end && end <= length;
        if !sound || (start != 0 && !(first..end).contains(&start)) {
            return Err(Bad::Damaged("its superblock contradicts itself"));
        }
        let seed = crc32c(!0, &superblock[0x30..0x40]);
        let sequence = field(0x18);
        Ok(Journal { read, superblock, features, seed, first, end, start, sequence, left: 0, block })
    }

    fn has_checksums(&self) -> bool {
        self.features & (FEATURE_CSUM_V2 | FEATURE_CSUM_V3) != 0
    }

    /// The transaction that begins there with that number, if it is whole, and where the next one would begin.
    fn transaction(&mut self, mut at: u32, sequence: u32) -> Result<Option<(Transaction, u32)>, Bad> {
        let mut transaction = Transaction::default();
        loop {
            if self.left == 0 {
                return Ok(None);
            }
            self.left -= 1;
            (self.read)(at, &mut self.block)?;
            if be32(&self.block, 0) != MAGIC || be32(&self.block, 8) != sequence {
                return Ok(None);
            }
            let kind = be32(&self.block, 4);
            at = self.after(at);
            match kind {
                DESCRIPTOR => {
                    transaction.torn |= !self.tail_is_right();
                    match self.descriptor(at, sequence, &mut transaction)? {
                        Some(next) => at = next,
                        None => return Ok(None),
                    }
                }
                REVOKE => {
                    transaction.torn |= !self.tail_is_right();
                    self.revocations(&mut transaction)?;
                }
                COMMIT => {
                    if transaction.torn || !self.commit_is_right() {
                        return Err(Bad::Damaged("a transaction's checksum is wrong"));
                    }
                    return Ok(Some((transaction, at)));
                }
                _ => return Ok(None),
            }
        }
    }

    fn after(&self, at: u32) -> u32 {
        if at + 1 >= self.end { self.first } else { at + 1 }
    }

    /// The blocks that a descriptor names stand behind it, in its order. `None` where they would be more than the log.
    fn descriptor(&mut self, mut at: u32, sequence: u32, into: &mut Transaction) -> Result<Option<u32>, Bad> {
        let descriptor = std::mem::take(&mut self.block);
        let mut data = vec![0; descriptor.len()];
        let tags = descriptor.len() - if self.has_checksums() { 4 } else { 0 };
        let mut tag_at = HEADER;
        let mut next = None;
        while tag_at + self.tag_length() <= tags {
            let tag = self.tag(&descriptor[tag_at..]);
            if self.left == 0 {
                break;
            }
            self.left -= 1;
            if self.has_checksums() {
                (self.read)(at, &mut data)?;
                let sum = crc32c(crc32c(self.seed, &sequence.to_be_bytes()), &data);
                let mask = if self.features & FEATURE_CSUM_V3 != 0 { u32::MAX } else { 0xffff };
                into.torn |= sum & mask != tag.checksum;
            }
            into.writes.push((tag.block, Place { block: at, escaped: tag.flags & TAG_ESCAPED != 0 }));
            at = self.after(at);
            next = Some(at);
            if tag.flags & TAG_LAST != 0 {
                break;
            }
            tag_at += self.tag_length() + if tag.flags & TAG_SAME_UUID != 0 { 0 } else { 16 };
        }
        self.block = descriptor;
        Ok(next)
    }

    fn tag_length(&self) -> usize {
        if self.features & FEATURE_CSUM_V3 != 0 {
            return 16;
        }
        let checksum = if self.features & FEATURE_CSUM_V2 != 0 { 2 } else { 0 };
        let high = if self.features & FEATURE_64BIT != 0 { 4 } else { 0 };
        8 + checksum + high
    }

    fn tag(&self, bytes: &[u8]) -> Tag {
        let v3 = self.features & FEATURE_CSUM_V3 != 0;
        let second = be32(bytes, 4);
        let (flags, checksum) = if v3 { (second, be32(bytes, 12)) } else { (second & 0xffff, second >> 16) };
        let high = if self.features & FEATURE_64BIT != 0 { be32(bytes, 8) } else { 0 };
        Tag { block: u64::from(high) << 32 | u64::from(be32(bytes, 0)), flags, checksum }
    }

    fn revocations(&self, into: &mut Transaction) -> Result<(), Bad> {
        let limit = self.block.len() - if self.has_checksums() { 4 } else { 0 };
        let end = be32(&self.block, HEADER) as usize;
        let wide = self.features & FEATURE_64BIT != 0;
        let length = if wide { 8 } else { 4 };
        let Some(list) = self.block.get(HEADER + 4..end).filter(|_| end <= limit) else {
            into.torn = true;
            return Ok(());
        };
        into.revoked.extend(list.chunks_exact(length).map(|entry| {
            let first = u64::from(be32(entry, 0));
            if wide { first << 32 | u64::from(be32(entry, 4)) } else { first }
        }));
        Ok(())
    }

    /// Whether the checksum at the end of a descriptor or of revocations is right.
    fn tail_is_right(&self) -> bool {
        let at = self.block.len() - 4;
        !self.has_checksums() || self.sum_without(at) == be32(&self.block, at)
    }

    fn commit_is_right(&self) -> bool {
        !self.has_checksums() || self.sum_without(16) == be32(&self.block, 16)
    }

    fn sum_without(&self, at: usize) -> u32 {
        let sum = crc32c(crc32c(self.seed, &self.block[..at]), &[0; 4]);
        crc32c(sum, &self.block[at + 4..])
    }

    fn emptied(self, sequence: u32) -> Vec<u8> {
        let checksums = self.has_checksums();
        let mut bytes = self.superblock;
        bytes[0x18..0x1c].copy_from_slice(&sequence.to_be_bytes());
        bytes[0x1c..0x20].fill(0);
        if checksums {
            bytes[0xfc..0x100].fill(0);
            let sum = crc32c(!0, &bytes);
            bytes[0xfc..0x100].copy_from_slice(&sum.to_be_bytes());
        }
        bytes
    }
}

struct Tag {
    block: u64,
    flags: u32,
    checksum: u32,
}
