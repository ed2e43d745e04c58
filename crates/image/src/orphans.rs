//! Files that were deleted or cut while somebody had them open: the kernel writes them down, and finishes with them at
//! the next mount. So do we, before anything is written.
//!
//! They stand in a list through the inodes, or in a file of their own.
//! <https://docs.kernel.org/filesystems/ext4/orphan.html>

use crate::ext2fs::{Access, Fs};
use crate::inode::{Inode, Kind};
use crate::overlay::Overlay;
use crate::recover::{failed, now};
use crate::refuse::{Refusal, Result, While};
use crate::superblock::{self, For, Superblock};
use wire::worker::log::crc32c;
use wire::worker::reply::Why;

/// At the end of each block of the orphan file, before its checksum.
const MAGIC: u32 = 0x0b10_ca04;
const TAIL: usize = 8;

/// Frees what no name leads to, cuts what is behind a file's end.
///
/// # Errors
/// Where what is written down is nothing that the kernel writes.
pub fn clear(overlay: &Overlay<'_>, superblock: Superblock) -> Result<Superblock> {
    if !superblock.has_orphans() {
        return Ok(superblock);
    }
    let fs = Fs::open(overlay, &superblock, Access::Write).while_doing("opening the image")?;
    let orphans = Orphans { fs: &fs, superblock: &superblock };
    orphans.list()?;
    orphans.file()?;
    fs.close().while_doing("clearing what was deleted")?;
    let mut bytes = [0; superblock::LENGTH];
    overlay.read(superblock::AT, &mut bytes).map_err(failed)?;
    let cleared = Superblock::parse(bytes, overlay.size(), For::Writing)?.without_orphans();
    overlay.write(superblock::AT, &cleared).map_err(failed)?;
    Superblock::parse(cleared, overlay.size(), For::Writing)
}

fn damaged() -> Refusal {
    Refusal::new(Why::Damaged, "the list of deleted files is damaged: run fsck on the image")
}

struct Orphans<'a> {
    fs: &'a Fs<'a>,
    superblock: &'a Superblock,
}

impl Orphans<'_> {
    fn list(&self) -> Result<()> {
        let mut ino = self.superblock.first_orphan();
        for _ in 0..self.superblock.inodes() {
            if ino == 0 {
                return Ok(());
            }
            ino = self.finish(ino)?;
        }
        Err(damaged())
    }

    fn file(&self) -> Result<()> {
        let Some(ino) = self.superblock.orphan_file() else { return Ok(()) };
        let doing = "reading the file of deleted files";
        let mut inode = self.fs.inode(ino).while_doing(doing)?;
        if inode.kind() != Kind::File || !inode.maps_blocks() {
            return Err(damaged());
        }
        let block_size = self.superblock.block_size();
        let mut bytes = vec![0; block_size];
        for block in 0..inode.size() / block_size as u64 {
            let place = self.fs.map(ino, &mut inode, block).while_doing(doing)?.ok_or_else(damaged)?;
            let at = place * block_size as u64;
            self.fs.overlay().read(at, &mut bytes).map_err(failed)?;
            let (entries, tail) = bytes.split_at_mut(block_size - TAIL);
            if tail[..4] != MAGIC.to_le_bytes() {
                return Err(damaged());
            }
            if entries.iter().all(|byte| *byte == 0) {
                continue;
            }
            for entry in entries.chunks_exact(4) {
                match u32::from_le_bytes([entry[0], entry[1], entry[2], entry[3]]) {
                    0 => {}
                    orphan => _ = self.finish(orphan)?,
                }
            }
            entries.fill(0);
            if self.superblock.has_checksums() {
                let seed = crc32c(self.superblock.seed(), &ino.to_le_bytes());
                let sum = crc32c(crc32c(seed, &inode.generation().to_le_bytes()), &place.to_le_bytes());
                tail[4..].copy_from_slice(&crc32c(sum, entries).to_le_bytes());
            }
            self.fs.overlay().write(at, &bytes).map_err(failed)?;
        }
        Ok(())
    }

    /// Finishes with one, and returns the next of its list.
    fn finish(&self, ino: u32) -> Result<u32> {
        if ino < self.superblock.first_inode() {
            return Err(damaged());
        }
        let doing = "clearing what was deleted";
        let mut inode = self.fs.inode(ino).while_doing(doing)?;
        let next = inode.deleted();
        if inode.links() == 0 {
            free(self.fs, ino, &mut inode)?;
            return Ok(next);
        }
        inode.set_deleted(0);
        if inode.maps_blocks() {
            let first = inode.size().div_ceil(self.superblock.block_size() as u64);
            self.fs.punch(ino, &mut inode, first).while_doing(doing)?;
        }
        self.fs.set_inode(ino, &mut inode).while_doing(doing)?;
        Ok(next)
    }
}

/// Frees an inode that no name leads to any more, with all it has.
pub(crate) fn free(fs: &Fs<'_>, ino: u32, inode: &mut Inode) -> Result<()> {
    let doing = "freeing the file that is replaced";
    inode.set_links(0);
    inode.set_deleted(now());
    fs.set_inode(ino, inode).while_doing(doing)?;
    if inode.has_attributes() {
        fs.drop_attributes(ino).while_doing(doing)?;
        *inode = fs.inode(ino).while_doing(doing)?;
    }
    if inode.maps_blocks() {
        fs.punch(ino, inode, 0).while_doing(doing)?;
        fs.set_inode(ino, inode).while_doing(doing)?;
    }
    fs.give_inode(ino, inode.kind() == Kind::Directory);
    Ok(())
}
