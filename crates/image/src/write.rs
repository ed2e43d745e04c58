//! Files, into an image. Whatever fails, fails before the helper has anything to apply.

use crate::ext2fs::{Access, Fs};
use crate::inode::{Inode, flag};
use crate::orphans::{self, free};
use crate::overlay::Overlay;
use crate::read::run;
use crate::recover::{failed, prepare};
use crate::refuse::{Refusal, Result, While};
use crate::superblock::{self, For, Superblock};
use crate::walk::{Missing, Spot, touch, walk, with_room};
use wire::worker::ask::Put;
use wire::worker::log::MAX_DATA;
use wire::worker::reply::{Reply, Why};

/// Puts the files into the image that the overlay shows.
///
/// # Errors
/// Where the image is none that is written to, or one of the files can't be put there. Nothing is to be applied then.
pub fn write(overlay: &Overlay<'_>, files: &[Put]) -> Result<Reply> {
    let superblock = prepare(overlay, For::Writing)?;
    if files.is_empty() {
        return Ok(Reply::Written { log: 0, changes: 0, free_blocks: superblock.free_blocks() });
    }
    // What is replaced may make room, so this is not yet the last word: the allocations are.
    let bytes = files.iter().fold(0_u64, |sum, file| sum.saturating_add(file.length));
    if bytes > overlay.size() {
        return Err(Refusal::new(Why::NoSpace, format!("{bytes} bytes are more than the whole image has")));
    }
    if bytes > MAX_DATA {
        return Err(Refusal::new(Why::TooLarge, format!("{bytes} bytes are more than is written at once")));
    }
    let superblock = orphans::clear(overlay, superblock)?;
    let is_as_it_was = overlay.is_untouched();
    let fs = Fs::open(overlay, &superblock, Access::Write).while_doing("opening the image")?;
    let release = if has_room(&superblock, files) { Release::AtTheEnd } else { Release::First };
    let mut writer = Writer { fs: &fs, superblock: &superblock, is_as_it_was, release, replaced: Vec::new() };
    for (nth, file) in files.iter().enumerate() {
        writer.put(nth, file).map_err(|refusal| explained(refusal, file, &fs, &superblock))?;
    }
    writer.end()?;
    overlay.spare_what_is_equal();
    fs.close().while_doing("writing bitmaps and superblock")?;
    let mut bytes = [0; superblock::LENGTH];
    overlay.read(superblock::AT, &mut bytes).map_err(failed)?;
    let free_blocks = Superblock::parse(bytes, overlay.size(), For::Writing)?.free_blocks();
    let (log, changes) = overlay.finish()?;
    Ok(Reply::Written { log, changes, free_blocks })
}

/// When what is replaced gives back what it has.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Release {
    /// Before its successor takes anything: it needs the room.
    First,
    /// When all others have what they need: so that they take what is free now, and may be written there at once.
    AtTheEnd,
}

/// Whether there is room for the files beside those that they replace, with all that may have to be made for them:
/// blocks that map their blocks, directories, blocks of directories.
fn has_room(superblock: &Superblock, files: &[Put]) -> bool {
    let block_size = superblock.block_size() as u64;
    let (mut blocks, mut inodes) = (0_u64, 0_u64);
    for file in files {
        let own = file.length.div_ceil(block_size);
        let parts = file.path.as_str().split('/').count() as u64;
        blocks = blocks.saturating_add(own + own / 64 + (8 + 2 * parts) * superblock.cluster_blocks());
        inodes = inodes.saturating_add(parts);
    }
    blocks <= superblock.free_blocks() && inodes <= u64::from(superblock.free_inodes())
}

struct Writer<'a> {
    fs: &'a Fs<'a>,
    superblock: &'a Superblock,
    /// Whether no journal was replayed and nothing cleared, so that what is free here is free in the image itself.
    is_as_it_was: bool,
    release: Release,
    /// Inodes that are to be released.
    replaced: Vec<u32>,
}

impl Writer<'_> {
    fn put(&mut self, nth: usize, file: &Put) -> Result<()> {
        let fs = self.fs;
        let Spot { dir, name, file: there } = walk(fs, self.superblock, &file.path, Missing::Make)?;
        let parent = fs.inode(dir).while_doing("reading a directory")?;
        let refuse =
            |what: &str| Refusal::new(Why::Protected, format!("{:?} in the image: {what}", file.path.as_str()));
        if parent.has(flag::IMMUTABLE) || (parent.has(flag::APPEND) && there.is_some()) {
            return Err(refuse("its directory is immutable or append-only"));
        }
        match there {
            Some((_, inode)) if inode.has(flag::IMMUTABLE | flag::APPEND) => {
                return Err(refuse("it is immutable or append-only"));
            }
            Some((ino, _)) => {
                if self.release == Release::First {
                    release(fs, ino)?;
                } else {
                    self.replaced.push(ino);
                }
                let new = self.create(dir, nth, file)?;
                fs.repoint(dir, &name, new).while_doing("replacing the file")?;
            }
            None => {
                let new = self.create(dir, nth, file)?;
                with_room(fs, dir, "naming the file", || fs.link(dir, &name, new))?;
            }
        }
        touch(fs, dir)
    }

    /// A new inode with the file's bytes, which has no name yet.
    fn create(&self, dir: u32, nth: usize, file: &Put) -> Result<u32> {
        let (fs, superblock) = (self.fs, self.superblock);
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
        // All that was taken so far was free in the image as it is, if nothing was given back before.
        let fresh = self.is_as_it_was && !fs.has_given_back();
        let nth = u32::try_from(nth).map_err(|_| Refusal::new(Why::TooLarge, "more files than are written at once"))?;
        let mut block = 0;
        while block < blocks {
            let Some((to, count)) = run(fs, ino, &mut inode, block, blocks, u64::MAX)? else {
                return Err(Refusal::new(Why::Damaged, "a block that was just given to the file is not its"));
            };
            fs.overlay()
                .put_file(to * block_size, count * block_size, nth, block * block_size, fresh)
                .map_err(|_| Refusal::new(Why::Damaged, "the image has blocks behind its end: run fsck on it"))?;
            block += count;
        }
        Ok(ino)
    }

    /// Releases what was replaced.
    fn end(self) -> Result<()> {
        self.replaced.into_iter().try_for_each(|ino| release(self.fs, ino))
    }
}

/// Takes one name from a file. What it has is given back with the last one.
fn release(fs: &Fs<'_>, ino: u32) -> Result<()> {
    let doing = "replacing the file";
    let mut inode = fs.inode(ino).while_doing(doing)?;
    if inode.links() > 1 {
        inode.set_links(inode.links() - 1);
        return fs.set_inode(ino, &mut inode).while_doing(doing);
    }
    free(fs, ino, &mut inode)
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
