//! An image as the kernel would have it after a mount: its journal replayed, its orphans cleared away.

use crate::ext2fs::{Access, Fs};
use crate::inode::{Kind, flag};
use crate::journal::{self, Bad, ESCAPED};
use crate::overlay::Overlay;
use crate::refuse::{Refusal, Result, While};
use crate::superblock::{self, For, Superblock};
use std::io;
use std::time::SystemTime;
use wire::worker::reply::Why;

/// Looks at the image, and replays its journal where that has to be.
///
/// # Errors
/// Where it is no image that is worked on.
pub fn prepare(overlay: &Overlay<'_>, wanted: For) -> Result<Superblock> {
    let superblock = look(overlay, wanted)?;
    if !superblock.needs_recovery() {
        return Ok(superblock);
    }
    replay(overlay, &superblock)?;
    // It may have been in the journal itself, with an error that the kernel found later.
    let superblock = look(overlay, wanted)?;
    let fs =
        Fs::open(overlay, &superblock, Access::Read).while_doing("opening the image after its journal's replay")?;
    // While it is mounted the kernel keeps these two numbers for itself.
    let (clusters, inodes) = fs.free_in_groups();
    drop(fs);
    let blocks = clusters.saturating_mul(superblock.cluster_blocks());
    let bytes = superblock.recovered(blocks, u32::try_from(inodes).unwrap_or(u32::MAX));
    overlay.write(superblock::AT, &bytes).map_err(failed)?;
    look(overlay, wanted)
}

fn look(overlay: &Overlay<'_>, wanted: For) -> Result<Superblock> {
    let mut bytes = [0; superblock::LENGTH];
    overlay.read(superblock::AT, &mut bytes).map_err(|error| match error.kind() {
        io::ErrorKind::UnexpectedEof => Refusal::new(Why::NotSupported, "this is no ext4 image: it is too short"),
        _ => failed(error),
    })?;
    Superblock::parse(bytes, overlay.size(), wanted)
}

fn replay(overlay: &Overlay<'_>, superblock: &Superblock) -> Result<()> {
    let fs = Fs::open(overlay, superblock, Access::Read).while_doing("opening the image")?;
    let ino = superblock.journal_inode()?;
    let mut inode = fs.inode(ino).while_doing("reading the journal's inode")?;
    if inode.kind() != Kind::File || inode.has(flag::INLINE) {
        return Err(Refusal::new(Why::Damaged, "the image's journal is none: run fsck on it"));
    }
    let block_size = superblock.block_size();
    let length = u32::try_from(inode.size() / block_size as u64).unwrap_or(u32::MAX);
    let mut place = |block: u32| match fs.map(ino, &mut inode, u64::from(block)) {
        Ok(Some(physical)) => Ok(physical * block_size as u64),
        _ => Err(Bad::Unread),
    };
    let plan =
        journal::plan(block_size, length, |block, into| overlay.read(place(block)?, into).map_err(|_| Bad::Unread))
            .map_err(|bad| bad_journal(&bad))?;
    let mut block = vec![0; block_size];
    for (to, from) in &plan.blocks {
        let at = place(from.block).map_err(|bad| bad_journal(&bad))?;
        overlay.read(at, &mut block).map_err(failed)?;
        if from.escaped {
            block[..4].copy_from_slice(&ESCAPED);
        }
        let outside = || Refusal::new(Why::Damaged, "the journal has blocks outside of the image: run fsck on it");
        let to = to.checked_mul(block_size as u64).filter(|_| *to < superblock.blocks()).ok_or_else(outside)?;
        overlay.write(to, &block).map_err(failed)?;
    }
    let at = place(0).map_err(|bad| bad_journal(&bad))?;
    overlay.write(at, &plan.emptied).map_err(failed)
}

fn bad_journal(bad: &Bad) -> Refusal {
    match bad {
        Bad::Unknown(what) => Refusal::new(Why::NotSupported, format!("the journal can't be replayed: {what}")),
        Bad::Damaged(what) => Refusal::new(Why::Damaged, format!("the journal can't be replayed: {what}; run fsck")),
        Bad::Unread => Refusal::new(Why::Damaged, "the journal can't be replayed: it can't be read; run fsck"),
    }
}

pub(crate) fn failed(error: io::Error) -> Refusal {
    Refusal::new(Why::Failed, format!("the image can't be read or its changes written: {error}"))
}

/// Seconds since 1970, as far as an old inode counts them.
pub(crate) fn now() -> u32 {
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).map_or(0, |since| since.as_secs());
    u32::try_from(now).unwrap_or(u32::MAX)
}
