//! Files, into an image. Whatever fails, fails before the helper has anything to apply.

use crate::ext2fs::{Access, Fs};
use crate::inode::{Inode, flag};
use crate::orphans::{self, free};
use crate::overlay::Overlay;
use crate::read::{PIECE, run};
use crate::recover::{failed, prepare};
use crate::refuse::{Refusal, Result, While};
use crate::superblock::{self, For, Superblock};
use crate::walk::{Missing, Spot, touch, walk, with_room};
use std::fs::File;
use std::os::unix::fs::FileExt;
use wire::worker::ask::Put;
use wire::worker::log::MAX_DATA;
use wire::worker::reply::{Reply, Why};

/// Puts the files into the image that the overlay shows; `request` holds their bytes.
///
/// # Errors
/// Where the image is none that is written to, or one of the files can't be put there. Nothing is to be applied then.
pub fn write(overlay: &Overlay<'_>, request: &File, files: &[Put]) -> Result<Reply> {
    let superblock = prepare(overlay, For::Writing)?;
    if files.is_empty() {
        return Ok(Reply::Written { log: 0, changes: 0, free_blocks: superblock.free_blocks() });
    }
    // What is replaced is freed first, so this is not yet the last word: the allocations are.
    let bytes = files.iter().fold(0_u64, |sum, file| sum.saturating_add(file.length));
    if bytes > overlay.size() {
        return Err(Refusal::new(Why::NoSpace, format!("{bytes} bytes are more than the whole image has")));
    }
    if bytes > MAX_DATA {
        return Err(Refusal::new(Why::TooLarge, format!("{bytes} bytes are more than is written at once")));
    }
    let superblock = orphans::clear(overlay, superblock)?;
    let fs = Fs::open(overlay, &superblock, Access::Write).while_doing("opening the image")?;
    for file in files {
        put(&fs, &superblock, request, file).map_err(|refusal| explained(refusal, file, &fs, &superblock))?;
    }
    overlay.spare_what_is_equal();
    fs.close().while_doing("writing bitmaps and superblock")?;
    let mut bytes = [0; superblock::LENGTH];
    overlay.read(superblock::AT, &mut bytes).map_err(failed)?;
    let free_blocks = Superblock::parse(bytes, overlay.size(), For::Writing)?.free_blocks();
    let (log, changes) = overlay.finish()?;
    Ok(Reply::Written { log, changes, free_blocks })
}

fn put(fs: &Fs<'_>, superblock: &Superblock, request: &File, file: &Put) -> Result<()> {
    let Spot { dir, name, file: there } = walk(fs, superblock, &file.path, Missing::Make)?;
    let parent = fs.inode(dir).while_doing("reading a directory")?;
    let refuse = |what: &str| Refusal::new(Why::Protected, format!("{:?} in the image: {what}", file.path.as_str()));
    if parent.has(flag::IMMUTABLE) || (parent.has(flag::APPEND) && there.is_some()) {
        return Err(refuse("its directory is immutable or append-only"));
    }
    match there {
        Some((_, inode)) if inode.has(flag::IMMUTABLE | flag::APPEND) => {
            return Err(refuse("it is immutable or append-only"));
        }
        Some((ino, inode)) => {
            // Freed first, so that its blocks can be used; other names of it keep it.
            release(fs, ino, inode)?;
            let new = create(fs, superblock, dir, request, file)?;
            fs.repoint(dir, &name, new).while_doing("replacing the file")?;
        }
        None => {
            let new = create(fs, superblock, dir, request, file)?;
            with_room(fs, dir, "naming the file", || fs.link(dir, &name, new))?;
        }
    }
    touch(fs, dir)
}

fn release(fs: &Fs<'_>, ino: u32, mut inode: Inode) -> Result<()> {
    if inode.links() > 1 {
        inode.set_links(inode.links() - 1);
        return fs.set_inode(ino, &mut inode).while_doing("replacing the file");
    }
    free(fs, ino, &mut inode)
}

/// A new inode with the file's bytes, which has no name yet.
fn create(fs: &Fs<'_>, superblock: &Superblock, dir: u32, request: &File, file: &Put) -> Result<u32> {
    let doing = "making the file";
    let ino = fs.free_inode(dir).while_doing(doing)?;
    fs.take_inode(ino);
    let mut inode = Inode::file(file.mode, file.length);
    if superblock.has_extents() {
        fs.use_extents(ino, &mut inode).while_doing(doing)?;
    }
    fs.set_new_inode(ino, &mut inode).while_doing(doing)?;
    let block_size = superblock.block_size() as u64;
    let blocks = file.length.div_ceil(block_size);
    fs.allocate(ino, &mut inode, blocks).while_doing(doing)?;
    fs.set_inode(ino, &mut inode).while_doing(doing)?;
    let mut buffer = vec![0; PIECE.min(usize::try_from(blocks * block_size).unwrap_or(PIECE))];
    let mut block = 0;
    while block < blocks {
        let most = PIECE as u64 / block_size;
        let Some((to, count)) = run(fs, ino, &mut inode, block, blocks, most)? else {
            return Err(Refusal::new(Why::Damaged, "a block that was just given to the file is not its"));
        };
        let at = block * block_size;
        let length = (count * block_size).min(file.length - at) as usize;
        let whole = &mut buffer[..(count * block_size) as usize];
        request.read_exact_at(&mut whole[..length], file.at + at).map_err(failed)?;
        whole[length..].fill(0);
        fs.overlay().write(to * block_size, whole).map_err(failed)?;
        block += count;
    }
    Ok(ino)
}

/// Says which file it was, and what there was of space.
fn explained(refusal: Refusal, file: &Put, fs: &Fs<'_>, superblock: &Superblock) -> Refusal {
    let path = file.path.as_str();
    if let Some(trouble) = fs.overlay().take_trouble() {
        return trouble;
    }
    match refusal.why {
        Why::NoSpace => {
            let text = format!(
                "no room for {path:?} ({} bytes): the image has {} free blocks of {} bytes and {} free inodes",
                file.length,
                superblock.free_blocks(),
                superblock.block_size(),
                superblock.free_inodes(),
            );
            Refusal::new(Why::NoSpace, text)
        }
        _ if refusal.text.contains(path) => refusal,
        why => Refusal::new(why, format!("{path:?}: {}", refusal.text)),
    }
}
