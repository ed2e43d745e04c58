//! From a path to a place in a directory, as the kernel of a guest would walk it: `..` and links lead nowhere but into
//! the image.

use crate::ext2fs::{Failed, Fs, code};
use crate::inode::{Inode, Kind, flag};
use crate::refuse::{Refusal, Result, While};
use crate::superblock::Superblock;
use wire::name::guest_path::{GuestPath, MAX_PART};
use wire::worker::reply::Why;

/// The root directory's inode.
const ROOT: u32 = 2;
/// How many links one path may lead through, as in the kernel.
const MAX_LINKS: u32 = 40;
/// The longest text of a link.
const MAX_LINK: u64 = 4095;
/// From so many names on a directory's count of them is no longer told.
const MAX_DIR_LINKS: u16 = 65_000;

/// What is done about a directory that is missing on the way.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Missing {
    /// There is no such file.
    Refuse,
    /// It is made: 0755, 0:0.
    Make,
}

/// Where a path leads.
pub struct Spot {
    /// The directory.
    pub dir: u32,
    /// The name in it: at the end of links another than the path's.
    pub name: Vec<u8>,
    /// The regular file there, if any.
    pub file: Option<(u32, Inode)>,
}

/// Walks a path to a regular file, or to a name that is not there yet.
///
/// # Errors
/// Where something else than a directory is on the way, or something else than a file at the end.
pub fn walk(fs: &Fs<'_>, superblock: &Superblock, path: &GuestPath, missing: Missing) -> Result<Spot> {
    let mut walk = Walk { fs, superblock, path, missing, links: 0, dir: ROOT, ahead: Vec::new() };
    walk.push(path.as_str().as_bytes());
    walk.run()
}

struct Walk<'a> {
    fs: &'a Fs<'a>,
    superblock: &'a Superblock,
    path: &'a GuestPath,
    missing: Missing,
    links: u32,
    dir: u32,
    /// The parts that are still to be walked, the next one last.
    ahead: Vec<Vec<u8>>,
}

impl Walk<'_> {
    /// What stands before all that is ahead already.
    fn push(&mut self, text: &[u8]) {
        let parts = text.split(|byte| *byte == b'/').filter(|part| !matches!(part, [] | [b'.']));
        self.ahead.extend(parts.rev().map(<[u8]>::to_vec));
    }

    fn refuse(&self, why: Why, what: &str) -> Refusal {
        Refusal::new(why, format!("{:?} in the image: {what}", self.path.as_str()))
    }

    fn run(mut self) -> Result<Spot> {
        while let Some(name) = self.ahead.pop() {
            if name.len() > MAX_PART {
                return Err(self.refuse(Why::NotFound, "a link on the way has a name of more than 255 bytes"));
            }
            let found = self.fs.find(self.dir, &name).while_doing("reading a directory")?;
            let Some(ino) = found else {
                if self.ahead.is_empty() {
                    return Ok(Spot { dir: self.dir, name, file: None });
                }
                self.dir = self.make(&name)?;
                continue;
            };
            let inode = self.inode(ino)?;
            match inode.kind() {
                Kind::Directory => self.dir = ino,
                Kind::Link => self.follow(ino, inode)?,
                Kind::File if self.ahead.is_empty() => {
                    return Ok(Spot { dir: self.dir, name, file: Some((ino, inode)) });
                }
                Kind::File | Kind::Other if !self.ahead.is_empty() => {
                    return Err(self.refuse(Why::WrongType, "something on the way is no directory"));
                }
                _ => return Err(self.refuse(Why::WrongType, "it is a device, a FIFO or a socket")),
            }
        }
        Err(self.refuse(Why::WrongType, "it is a directory"))
    }

    fn inode(&self, ino: u32) -> Result<Inode> {
        if ino != ROOT && ino < self.superblock.first_inode() {
            return Err(self.refuse(Why::Damaged, "a name leads to one of ext4's own inodes"));
        }
        let inode = self.fs.inode(ino).while_doing("reading an inode")?;
        if inode.links() == 0 {
            return Err(self.refuse(Why::Damaged, "a name leads to a deleted inode"));
        }
        if inode.has(flag::ENCRYPT) {
            return Err(self.refuse(Why::NotSupported, "something on the way is encrypted"));
        }
        Ok(inode)
    }

    fn follow(&mut self, ino: u32, mut inode: Inode) -> Result<()> {
        self.links += 1;
        if self.links > MAX_LINKS {
            return Err(self.refuse(Why::Loop, "more than 40 links follow each other"));
        }
        let size = inode.size();
        if size == 0 || size > MAX_LINK {
            return Err(self.refuse(Why::Damaged, "a link with a text of no such length"));
        }
        let text = if inode.is_short_link() {
            inode.map().to_vec()
        } else if inode.has(flag::INLINE) {
            self.fs.inline_data(ino).while_doing("reading a link")?
        } else {
            let block = self.fs.map(ino, &mut inode, 0).while_doing("reading a link")?;
            let mut text = vec![0; self.superblock.block_size()];
            let at = block.ok_or_else(|| self.refuse(Why::Damaged, "a link without text"))? * text.len() as u64;
            self.fs.overlay().read(at, &mut text).map_err(crate::recover::failed)?;
            text
        };
        let text = usize::try_from(size).ok().and_then(|size| text.get(..size));
        let text = text.ok_or_else(|| self.refuse(Why::Damaged, "a link's text is shorter than it says"))?;
        if text.contains(&0) {
            return Err(self.refuse(Why::Damaged, "a link's text has a NUL"));
        }
        if text.starts_with(b"/") {
            self.dir = ROOT;
        }
        self.push(text);
        Ok(())
    }

    fn make(&mut self, name: &[u8]) -> Result<u32> {
        if self.missing == Missing::Refuse {
            return Err(self.refuse(Why::NotFound, "there is no such file"));
        }
        let parent = self.may_change(self.dir)?;
        // Beyond it the number stands still at 1, which libext2fs doesn't know.
        if parent.links() == 1 || parent.links() >= MAX_DIR_LINKS - 1 {
            return Err(self.refuse(Why::NoSpace, "a directory on the way has too many directories in it"));
        }
        let doing = "making a directory";
        with_room(self.fs, self.dir, doing, || self.fs.make_dir(self.dir, name))?;
        touch(self.fs, self.dir)?;
        self.fs.find(self.dir, name).while_doing(doing)?.ok_or_else(|| self.refuse(Why::Damaged, doing))
    }

    fn may_change(&self, dir: u32) -> Result<Inode> {
        let inode = self.inode(dir)?;
        if inode.has(flag::IMMUTABLE) {
            return Err(self.refuse(Why::Protected, "its directory is immutable"));
        }
        Ok(inode)
    }
}

/// Adds a name to a directory by `add`; where it has no room, gives it a block and tries again.
pub(crate) fn with_room(
    fs: &Fs<'_>,
    dir: u32,
    doing: &str,
    add: impl Fn() -> std::result::Result<(), Failed>,
) -> Result<()> {
    // A directory in its inode becomes one block first, and that may have no room either.
    for _ in 0..2 {
        match add() {
            Err(Failed(code::DIR_NO_SPACE)) => {}
            done => return done.while_doing(doing),
        }
        // The library makes room in an index itself; a block behind it would belong to no part of it.
        if fs.inode(dir).while_doing(doing)?.has(flag::INDEX) {
            break;
        }
        fs.expand(dir).while_doing(doing)?;
    }
    add().while_doing(doing)
}

/// A directory has been changed now.
pub(crate) fn touch(fs: &Fs<'_>, dir: u32) -> Result<()> {
    let mut inode = fs.inode(dir).while_doing("changing a directory")?;
    inode.set_changed(crate::recover::now());
    fs.set_inode(dir, &mut inode).while_doing("changing a directory")
}
