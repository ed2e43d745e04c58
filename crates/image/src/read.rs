//! A file's bytes, out of an image.

use crate::ext2fs::{Access, Fs};
use crate::inode::{Inode, flag};
use crate::overlay::Overlay;
use crate::recover::{failed, prepare};
use crate::refuse::{Refusal, Result, While};
use crate::superblock::{For, Superblock};
use crate::walk::{Missing, walk};
use std::fs::File;
use std::os::unix::fs::FileExt;
use wire::name::guest_path::GuestPath;
use wire::worker::MAX_READ;
use wire::worker::reply::{Reply, Why};

/// How much is copied at once: a multiple of every block size.
const PIECE: usize = 256 << 10;

/// Puts a file's bytes into `out`, from its beginning.
///
/// # Errors
/// Where the image is none that is read, or has no such regular file of at most [`MAX_READ`] bytes.
pub fn read(overlay: &Overlay<'_>, path: &GuestPath, out: &File) -> Result<Reply> {
    let superblock = prepare(overlay, For::Reading)?;
    let fs = Fs::open(overlay, &superblock, Access::Read).while_doing("opening the image")?;
    let spot = walk(&fs, &superblock, path, Missing::Refuse)?;
    let refuse = |why, what: String| Refusal::new(why, format!("{:?} in the image: {what}", path.as_str()));
    let Some((ino, inode)) = spot.file else {
        return Err(refuse(Why::NotFound, "there is no such file".to_owned()));
    };
    let size = inode.size();
    if size > MAX_READ {
        let what = format!("it has {size} bytes, and files of at most {MAX_READ} are read");
        return Err(refuse(Why::TooLarge, what));
    }
    if inode.has(flag::INLINE) {
        let data = fs.inline_data(ino).while_doing("reading the file")?;
        let data = usize::try_from(size).ok().and_then(|size| data.get(..size));
        let data = data.ok_or_else(|| refuse(Why::Damaged, "it has less bytes than it says".to_owned()))?;
        out.write_all_at(data, 0).map_err(failed)?;
    } else {
        copy(&fs, &superblock, ino, inode, out)?;
    }
    Ok(Reply::Read { size })
}

fn copy(fs: &Fs<'_>, superblock: &Superblock, ino: u32, mut inode: Inode, out: &File) -> Result<()> {
    let block_size = superblock.block_size() as u64;
    let size = inode.size();
    let blocks = size.div_ceil(block_size);
    let mut buffer = vec![0; PIECE];
    let mut block = 0;
    while block < blocks {
        let Some((from, count)) = run(fs, ino, &mut inode, block, blocks, PIECE as u64 / block_size)? else {
            block += 1;
            continue;
        };
        let at = block * block_size;
        let length = (count * block_size).min(size - at) as usize;
        // Whole blocks, as the image has them; what is behind the file's end is not told.
        let whole = &mut buffer[..(count * block_size) as usize];
        fs.overlay()
            .read(from * block_size, whole)
            .map_err(|_| Refusal::new(Why::Damaged, "the file has blocks outside of the image: run fsck on it"))?;
        out.write_all_at(&whole[..length], at).map_err(failed)?;
        block += count;
    }
    // A hole at the end leaves no bytes: the last one makes the file as long as it is.
    let mut last = [0];
    if size > 0 && out.read_at(&mut last, size - 1).map_err(failed)? == 0 {
        out.write_all_at(&last, size - 1).map_err(failed)?;
    }
    Ok(())
}

/// Where a file's block stands, and how many of the next ones, `most` at the most, stand behind it.
pub(crate) fn run(
    fs: &Fs<'_>,
    ino: u32,
    inode: &mut Inode,
    block: u64,
    end: u64,
    most: u64,
) -> Result<Option<(u64, u64)>> {
    let doing = "reading where a file's blocks are";
    let Some(first) = fs.map(ino, inode, block).while_doing(doing)? else { return Ok(None) };
    let mut count = 1;
    while count < most
        && block + count < end
        && fs.map(ino, inode, block + count).while_doing(doing)? == Some(first + count)
    {
        count += 1;
    }
    Ok(Some((first, count)))
}
