//! The superblock: what an image says about itself, and whether we work on such a one.
//!
//! Read before libext2fs sees the image, because that library opens what it should not write: an image whose journal
//! is full, or one marked with errors. Pure; <https://docs.kernel.org/filesystems/ext4/globals.html>.

use crate::refuse::{Refusal, Result};
use wire::worker::log::crc32c;
use wire::worker::reply::Why;

/// Where it stands in the image.
pub const AT: u64 = 1024;
/// Its length.
pub const LENGTH: usize = 1024;

const MAGIC: u16 = 0xef53;
/// `s_state`: cleanly unmounted, and errors found.
const VALID: u16 = 1;
const ERRORS: u16 = 2;

/// A feature, and what may be done with an image that has it.
struct Feature(u32, &'static str, May);

#[derive(Clone, Copy, PartialEq, Eq)]
enum May {
    Write,
    Read,
    Neither,
}

use May::{Neither, Read, Write};

const COMPAT_JOURNAL: u32 = 4;
const COMPAT_ORPHAN_FILE: u32 = 0x1000;
const COMPAT: &[Feature] = &[
    Feature(1, "dir_prealloc", Write),
    Feature(2, "imagic_inodes", Read),
    Feature(COMPAT_JOURNAL, "has_journal", Write),
    Feature(8, "ext_attr", Write),
    Feature(0x10, "resize_inode", Write),
    Feature(0x20, "dir_index", Write),
    Feature(0x200, "sparse_super2", Write),
    Feature(0x400, "fast_commit", Write),
    Feature(0x800, "stable_inodes", Write),
    Feature(COMPAT_ORPHAN_FILE, "orphan_file", Write),
];
const INCOMPAT_RECOVER: u32 = 4;
const INCOMPAT_EXTENTS: u32 = 0x40;
const INCOMPAT_64BIT: u32 = 0x80;
const INCOMPAT_CSUM_SEED: u32 = 0x2000;
const INCOMPAT: &[Feature] = &[
    Feature(1, "compression", Neither),
    Feature(2, "filetype", Write),
    Feature(INCOMPAT_RECOVER, "needs_recovery", Write),
    Feature(8, "journal_dev", Neither),
    Feature(0x10, "meta_bg", Write),
    Feature(INCOMPAT_EXTENTS, "extents", Write),
    Feature(INCOMPAT_64BIT, "64bit", Write),
    // Two that write at once know of each other by a block that only the kernel and e2fsck look after.
    Feature(0x100, "mmp", Read),
    Feature(0x200, "flex_bg", Write),
    // A file that goes takes its large attributes with it, which libext2fs does not do.
    Feature(0x400, "ea_inode", Read),
    Feature(0x1000, "dirdata", Neither),
    Feature(INCOMPAT_CSUM_SEED, "metadata_csum_seed", Write),
    Feature(0x4000, "large_dir", Write),
    Feature(0x8000, "inline_data", Write),
    Feature(0x1_0000, "encrypt", Read),
    Feature(0x2_0000, "casefold", Read),
];
const RO_METADATA_CSUM: u32 = 0x400;
const RO_ORPHAN_PRESENT: u32 = 0x1_0000;
const RO_COMPAT: &[Feature] = &[
    Feature(1, "sparse_super", Write),
    Feature(2, "large_file", Write),
    Feature(8, "huge_file", Write),
    Feature(0x10, "uninit_bg", Write),
    Feature(0x20, "dir_nlink", Write),
    Feature(0x40, "extra_isize", Write),
    // What is used is counted for each user and project, which libext2fs does not do.
    Feature(0x100, "quota", Read),
    Feature(0x200, "bigalloc", Write),
    Feature(RO_METADATA_CSUM, "metadata_csum", Write),
    Feature(0x1000, "read-only", Read),
    Feature(0x2000, "project", Read),
    Feature(0x4000, "shared_blocks", Read),
    Feature(0x8000, "verity", Read),
    Feature(RO_ORPHAN_PRESENT, "orphan_present", Write),
];

/// What an image is opened for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum For {
    /// A file is read.
    Reading,
    /// Files are written.
    Writing,
}

/// A superblock that [`parse`](Superblock::parse) let pass.
#[derive(Clone)]
pub struct Superblock([u8; LENGTH]);

impl Superblock {
    /// Looks at the 1,024 bytes of an image of `size` bytes.
    ///
    /// # Errors
    /// Where they are none, or one of an image that is longer than this one, is marked with errors, or has features
    /// that don't allow what is wanted.
    pub fn parse(bytes: [u8; LENGTH], size: u64, wanted: For) -> Result<Superblock> {
        let superblock = Superblock(bytes);
        superblock.is_one(size)?;
        superblock.allows(wanted)?;
        superblock.is_sound()?;
        Ok(superblock)
    }

    fn is_one(&self, size: u64) -> Result<()> {
        if self.u16(0x38) != MAGIC {
            return Err(Refusal::new(Why::NotSupported, "this is no ext4 image: it has no superblock"));
        }
        let damaged = |what: &str| Err(Refusal::new(Why::Damaged, format!("the superblock is damaged: {what}")));
        if self.u32(0x4c) > 1 {
            return Err(Refusal::new(Why::NotSupported, "the image's revision is not known"));
        }
        if self.u32(0x18) > 6 {
            return damaged("a block size of more than 64 KiB");
        }
        if self.has_checksums() && crc32c(!0, &self.0[..LENGTH - 4]) != self.u32(LENGTH - 4) {
            return damaged("its checksum is wrong");
        }
        match self.blocks().checked_mul(self.block_size() as u64) {
            Some(length) if length <= size => Ok(()),
            _ => damaged(&format!("it says {} blocks, and the image has only {size} bytes", self.blocks())),
        }
    }

    fn allows(&self, wanted: For) -> Result<()> {
        for (set, known, what) in [
            (self.compat(), COMPAT, "compatible"),
            (self.incompat(), INCOMPAT, "incompatible"),
            (self.u32(0x64), RO_COMPAT, "read-only compatible"),
        ] {
            let mut unknown = set;
            for Feature(bit, name, may) in known {
                unknown &= !bit;
                let allowed = *may == Write || (*may == Read && wanted == For::Reading);
                if set & bit != 0 && !allowed {
                    let verb = if wanted == For::Writing { "written to" } else { "read" };
                    return Err(Refusal::new(
                        Why::NotSupported,
                        format!("images with the feature {name} are not {verb}"),
                    ));
                }
            }
            if unknown != 0 && (what != "compatible" || wanted == For::Writing) {
                return Err(Refusal::new(Why::NotSupported, format!("{what} features {unknown:#x} are not known")));
            }
        }
        Ok(())
    }

    fn is_sound(&self) -> Result<()> {
        let state = self.u16(0x3a);
        if state & ERRORS != 0 {
            return Err(Refusal::new(Why::Damaged, "the image is marked with errors: run fsck on it"));
        }
        if state & VALID == 0 && self.compat() & COMPAT_JOURNAL == 0 {
            return Err(Refusal::new(Why::Damaged, "the image has no journal and was not unmounted: run fsck on it"));
        }
        Ok(())
    }

    /// Whether the journal holds what is not yet in its place.
    pub fn needs_recovery(&self) -> bool {
        self.incompat() & INCOMPAT_RECOVER != 0
    }

    /// The journal's inode.
    ///
    /// # Errors
    /// Where the journal is on another device, or there is none.
    pub fn journal_inode(&self) -> Result<u32> {
        let (inode, device) = (self.u32(0xe0), self.u32(0xe4));
        if device != 0 {
            return Err(Refusal::new(Why::NotSupported, "the image's journal is on another device"));
        }
        if self.compat() & COMPAT_JOURNAL == 0 || inode == 0 {
            return Err(Refusal::new(Why::Damaged, "the image needs its journal, and has none: run fsck on it"));
        }
        Ok(inode)
    }

    /// Whether files are written down that were deleted or cut while open.
    pub fn has_orphans(&self) -> bool {
        self.first_orphan() != 0 || self.u32(0x64) & RO_ORPHAN_PRESENT != 0
    }

    /// The inode of the file that holds them, where there is one and something may be in it.
    pub fn orphan_file(&self) -> Option<u32> {
        let present = self.u32(0x64) & RO_ORPHAN_PRESENT != 0 && self.compat() & COMPAT_ORPHAN_FILE != 0;
        present.then(|| self.u32(0x280))
    }

    /// What the checksums of inodes and directories begin with.
    pub fn seed(&self) -> u32 {
        if self.incompat() & INCOMPAT_CSUM_SEED != 0 { self.u32(0x270) } else { crc32c(!0, &self.0[0x68..0x78]) }
    }

    /// The first inode of the list of those that were deleted or cut while still open; 0 for none.
    pub fn first_orphan(&self) -> u32 {
        self.u32(0xe8)
    }

    /// The image as one whose journal has been replayed, with what its groups have free.
    pub fn recovered(mut self, free_blocks: u64, free_inodes: u32) -> [u8; LENGTH] {
        self.set_u32(0x60, self.incompat() & !INCOMPAT_RECOVER);
        self.set_u32(0xc, free_blocks as u32);
        if self.incompat() & INCOMPAT_64BIT != 0 {
            self.set_u32(0x158, (free_blocks >> 32) as u32);
        }
        self.set_u32(0x10, free_inodes);
        self.sealed()
    }

    /// The image with nothing written down of deleted files.
    pub fn without_orphans(mut self) -> [u8; LENGTH] {
        self.set_u32(0xe8, 0);
        self.set_u32(0x64, self.u32(0x64) & !RO_ORPHAN_PRESENT);
        self.sealed()
    }

    fn sealed(mut self) -> [u8; LENGTH] {
        if self.has_checksums() {
            self.set_u32(LENGTH - 4, crc32c(!0, &self.0[..LENGTH - 4]));
        }
        self.0
    }

    /// Whether new files map their blocks by extents.
    pub fn has_extents(&self) -> bool {
        self.incompat() & INCOMPAT_EXTENTS != 0
    }

    /// Bytes of a block.
    pub fn block_size(&self) -> usize {
        1024 << self.u32(0x18).min(6)
    }

    /// Blocks that are allocated together.
    pub fn cluster_blocks(&self) -> u64 {
        1 << self.u32(0x1c).saturating_sub(self.u32(0x18)).min(20)
    }

    /// Blocks of the image.
    pub fn blocks(&self) -> u64 {
        self.wide(4, 0x150)
    }

    /// Free blocks, as the superblock counts them.
    pub fn free_blocks(&self) -> u64 {
        self.wide(0xc, 0x158)
    }

    /// Free inodes, as the superblock counts them.
    pub fn free_inodes(&self) -> u32 {
        self.u32(0x10)
    }

    /// Inodes of the image.
    pub fn inodes(&self) -> u32 {
        self.u32(0)
    }

    /// The first inode that isn't reserved.
    pub fn first_inode(&self) -> u32 {
        if self.u32(0x4c) == 0 { 11 } else { self.u32(0x54).max(11) }
    }

    /// Groups of the image; 0 where a group would have no blocks.
    pub fn groups(&self) -> u32 {
        let blocks = self.blocks().saturating_sub(u64::from(self.u32(0x14)));
        let groups = blocks.checked_add(u64::from(self.u32(0x20)).saturating_sub(1));
        let groups = groups.and_then(|blocks| blocks.checked_div(u64::from(self.u32(0x20))));
        groups.and_then(|groups| u32::try_from(groups).ok()).unwrap_or(0)
    }

    /// Whether metadata have checksums.
    pub fn has_checksums(&self) -> bool {
        self.u32(0x64) & RO_METADATA_CSUM != 0
    }

    fn compat(&self) -> u32 {
        self.u32(0x5c)
    }

    fn incompat(&self) -> u32 {
        self.u32(0x60)
    }

    fn wide(&self, low: usize, high: usize) -> u64 {
        let high = if self.incompat() & INCOMPAT_64BIT != 0 { self.u32(high) } else { 0 };
        u64::from(self.u32(low)) | u64::from(high) << 32
    }

    fn u16(&self, at: usize) -> u16 {
        u16::from_le_bytes([self.0[at], self.0[at + 1]])
    }

    fn u32(&self, at: usize) -> u32 {
        u32::from(self.u16(at)) | u32::from(self.u16(at + 2)) << 16
    }

    fn set_u32(&mut self, at: usize, value: u32) {
        self.0[at..at + 4].copy_from_slice(&value.to_le_bytes());
    }
}
