//! A tree becomes an ext4 image, without root: `mke2fs` makes an empty file system in a file of ours, `debugfs` puts the
//! tree into it by a script, `e2fsck` says that it is whole. The same tree gives the same image, to the byte.
//!
//! `mke2fs -d` would ask for a folder in which files have their owners, and only root can make that.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::process::Command;

use rustix::fs::{FallocateFlags, SeekFrom};
use rustix::io::Errno;
use sha2::{Digest, Sha256};

use super::error::{Error, Kind};
use super::program;
use super::progress::{Stage, Watch};
use super::tree::{Index, LOST_AND_FOUND, Node, ROOT, Tree, What};

/// A file system that is smaller has no room for a journal and for what a guest writes.
pub const SMALLEST: u64 = 64 << 20;
/// What ext4 can have with 4 KiB blocks is more; nobody's disk is.
pub const LARGEST: u64 = 64 << 40;
const BLOCK: u64 = 4096;
/// A file's bytes, for each of which `mke2fs` reserves an inode.
const BYTES_PER_INODE: u64 = 16_384;
/// Inodes that ext4 keeps for itself, `lost+found` among them.
const OWN_INODES: u64 = 11;
/// The time that ext4 writes where a file has none of its own: the first second of 2020, so that it tells nothing.
const TIME: &str = "1577836800";
/// The longest line that debugfs reads whole is 8191 bytes.
const LONGEST_LINE: usize = 8000;

/// Makes the image of a tree at `image`, a path that doesn't exist, `size` bytes long and sparse. `work` is a folder for
/// files on the way.
///
/// # Errors
/// The tree has no room in it, the disk is full, a program is missing or fails, the watcher stopped it.
pub fn make(tree: &Tree, image: &Path, size: u64, work: &Path, watch: &dyn Watch) -> Result<(), Error> {
    watch.begin(Stage::Pack, "");
    let size = size / BLOCK * BLOCK;
    if !(SMALLEST..=LARGEST).contains(&size) {
        return Err(Error::new(Kind::Request, format!("an image of {}M; 64M to 64T are possible", size >> 20)));
    }
    let script = Script::of(tree)?;
    let inodes = (size / BYTES_PER_INODE).max(2 * (script.inodes + OWN_INODES));
    let file = File::create_new(image).map_err(|cause| Error::file("make", image, &cause))?;
    file.set_len(size).map_err(|cause| Error::file("make", image, &cause))?;
    let uuid = script.uuid();
    let mut mke2fs = program::bound("mke2fs");
    // Tables are written now, not by the guest's kernel in the background.
    let wishes = format!("lazy_itable_init=0,lazy_journal_init=0,hash_seed={uuid}");
    mke2fs.env("E2FSPROGS_FAKE_TIME", TIME).args(["-q", "-F", "-t", "ext4", "-L", "root", "-m", "0", "-b", "4096"]);
    mke2fs.args(["-N", &inodes.to_string(), "-U", &uuid, "-E", &wishes]).arg(image);
    program::watched(&mut mke2fs, watch, |_| {})?;
    let free = Counts::of(&file, image)?;
    let needed = tree.bytes().div_ceil(BLOCK) + script.directories + script.inodes / 8;
    if needed > free.blocks {
        return Err(no_room(size, needed * BLOCK));
    }
    let path = work.join("script");
    fs::write(&path, &script.text).map_err(|cause| Error::file("write", &path, &cause))?;
    fill(tree, &path, image, watch)?;
    let used = free.inodes.checked_sub(Counts::of(&file, image)?.inodes);
    if used != Some(script.inodes) {
        let what = format!("debugfs wrote {used:?} files and directories, where {} are due", script.inodes);
        return Err(Error::new(Kind::Program, what));
    }
    let mut dig = program::bound("fallocate");
    program::watched(dig.arg("--dig-holes").arg(image), watch, |_| {})?;
    give_back(&file).map_err(|cause| Error::file("punch holes into", image, &cause))?;
    check(image, watch)?;
    file.sync_all().map_err(|cause| Error::file("write", image, &cause))
}

/// Gives back what is reserved for zeros: mke2fs has the kernel zero its tables and the journal, and that keeps the blocks.
fn give_back(image: &File) -> io::Result<()> {
    let length = image.metadata()?.len();
    let mut at = 0;
    while at < length {
        let hole = rustix::fs::seek(image, SeekFrom::Hole(at))?;
        let data = match rustix::fs::seek(image, SeekFrom::Data(hole)) {
            Ok(data) => data,
            Err(Errno::NXIO) => length,
            Err(cause) => return Err(cause.into()),
        };
        if data > hole {
            let punch = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
            rustix::fs::fallocate(image, punch, hole, data - hole)?;
        }
        at = data;
    }
    Ok(())
}

/// Runs the script. debugfs ends with 0 whatever failed, but says on its standard error what did.
fn fill(tree: &Tree, script: &Path, image: &Path, watch: &dyn Watch) -> Result<(), Error> {
    let mut said = Vec::new();
    let mut debugfs = program::bound("debugfs");
    // In the folder of the files' bytes, so that the script is the same wherever that is.
    debugfs.current_dir(tree.folder()).env("E2FSPROGS_FAKE_TIME", TIME).env("DEBUGFS_PAGER", "cat");
    debugfs.args(["-w", "-f"]).arg(script).arg(image);
    program::watched(&mut debugfs, watch, |line| {
        let banner = line.starts_with("debugfs 1.") && said.is_empty();
        if !banner && !line.is_empty() && said.len() < 8 {
            said.push(line.to_owned());
        }
    })?;
    if said.is_empty() {
        return Ok(());
    }
    let full = said.iter().any(|line| line.contains("allocate block") || line.contains("No space left"));
    let error = Error::new(if full { Kind::Room } else { Kind::Program }, "the files could not be put into the image")
        .why(program::indented(&said.join("\n"), 8));
    Err(if full { error.fix("--size gives the image more room") } else { error })
}

/// Checks an image without writing to it.
///
/// # Errors
/// `e2fsck` finds something, is missing, or was stopped.
pub fn check(image: &Path, watch: &dyn Watch) -> Result<(), Error> {
    watch.begin(Stage::Check, "");
    let mut fsck = program::bound("e2fsck");
    program::watched(fsck.args(["-f", "-n"]).arg(image), watch, |_| {}).map_err(|error| match error.kind {
        Kind::Program => {
            let found = program::output(Command::new("e2fsck").args(["-f", "-n"]).arg(image)).err();
            Error::new(Kind::Program, "the image's file system is not whole")
                .why(found.map_or(error.to_string(), |found| found.to_string()))
        }
        _ => error,
    })
}

fn no_room(size: u64, needed: u64) -> Error {
    let (size, more) = (size >> 20, (needed >> 20) + 64);
    Error::new(Kind::Room, format!("an image of {size}M has no room for {}M of files", needed >> 20))
        .fix(format!("--size {}M or more", more + more / 8 + 64))
}

/// What a file system's superblock counts as free.
struct Counts {
    blocks: u64,
    inodes: u64,
}

impl Counts {
    fn of(image: &File, path: &Path) -> Result<Counts, Error> {
        let mut block = [0; 1024];
        image.read_exact_at(&mut block, 1024).map_err(|cause| Error::file("read", path, &cause))?;
        let word =
            |at: usize| block.get(at..).and_then(|b| b.first_chunk()).map_or(0, |b| u64::from(u32::from_le_bytes(*b)));
        // s_free_blocks_count, low and high; s_free_inodes_count.
        Ok(Counts { blocks: word(0x0c) | word(0x158) << 32, inodes: word(0x10) })
    }
}

/// The script for debugfs, and what it makes.
struct Script {
    text: Vec<u8>,
    hash: Sha256,
    inodes: u64,
    directories: u64,
}

impl Script {
    fn of(tree: &Tree) -> Result<Script, Error> {
        let mut script = Script { text: Vec::new(), hash: Sha256::new(), inodes: 0, directories: 0 };
        script.rights(b"/", tree.node(ROOT))?;
        script.attributes(tree, ROOT, b"/")?;
        let mut first_names: BTreeMap<Index, Vec<u8>> = BTreeMap::new();
        // The directories that are entered: the path of each, and what is still to be made in it, the last first.
        let mut entered = vec![(Vec::new(), names(tree.node(ROOT)))];
        while let Some((above, names_left)) = entered.last_mut() {
            let Some((name, index)) = names_left.pop() else {
                entered.pop();
                if !entered.is_empty() {
                    script.line(&[b"cd", b".."])?;
                }
                continue;
            };
            let node = tree.node(index);
            let path = [&above[..], b"/", name].concat();
            if let Some(first) = first_names.get(&index) {
                script.line(&[b"ln", first, name])?;
                continue;
            }
            if node.links > 1 {
                first_names.insert(index, path.clone());
            }
            // Without this, `<2>` would be read as a number of an inode.
            let here = [b"./", name].concat();
            script.create(index, node, name, above.is_empty())?;
            script.rights(&here, node)?;
            script.attributes(tree, index, &here)?;
            if let What::Directory(_) = node.what {
                script.line(&[b"cd", &here])?;
                entered.push((path, names(node)));
            }
        }
        script.hash.update(&script.text);
        Ok(script)
    }

    fn create(&mut self, index: Index, node: &Node, name: &[u8], in_root: bool) -> Result<(), Error> {
        if in_root && name == LOST_AND_FOUND {
            return Ok(());
        }
        self.inodes += 1;
        match &node.what {
            What::Directory(_) => {
                self.directories += 1;
                self.line(&[b"mkdir", name])
            }
            What::File { digest, .. } => {
                self.hash.update(digest);
                self.line(&[b"write", Tree::file_name(index).as_bytes(), name])
            }
            What::Symlink(target) => self.line(&[b"symlink", name, target]),
            What::Character(major, minor) => self.device(name, b"c", *major, *minor),
            What::Block(major, minor) => self.device(name, b"b", *major, *minor),
            What::Fifo => self.line(&[b"mknod", name, b"p"]),
        }
    }

    fn device(&mut self, name: &[u8], kind: &[u8], major: u32, minor: u32) -> Result<(), Error> {
        self.line(&[b"mknod", name, kind, major.to_string().as_bytes(), minor.to_string().as_bytes()])
    }

    fn rights(&mut self, path: &[u8], node: &Node) -> Result<(), Error> {
        let (kind, counted) = match &node.what {
            What::Directory(_) => (0o040_000, false),
            What::File { .. } => (0o100_000, true),
            What::Symlink(_) => (0o120_000, true),
            What::Character(..) => (0o020_000, true),
            What::Block(..) => (0o060_000, true),
            What::Fifo => (0o010_000, true),
        };
        let mut set = |field: &str, value: String| self.line(&[b"sif", path, field.as_bytes(), value.as_bytes()]);
        set("mode", format!("0{:o}", kind | node.mode))?;
        set("mtime", format!("@{}", node.mtime.clamp(0, i64::from(i32::MAX))))?;
        if node.uid != 0 {
            set("uid", node.uid.to_string())?;
        }
        if node.gid != 0 {
            set("gid", node.gid.to_string())?;
        }
        if counted && node.links > 1 {
            set("links_count", node.links.to_string())?;
        }
        Ok(())
    }

    fn attributes(&mut self, tree: &Tree, index: Index, path: &[u8]) -> Result<(), Error> {
        for (n, (name, value)) in tree.node(index).attributes.iter().enumerate() {
            let file = tree.keep(&format!("{}.{n}", Tree::file_name(index)), value)?;
            self.hash.update(value);
            self.line(&[b"ea_set", b"-f", file.as_bytes(), path, name])?;
        }
        Ok(())
    }

    /// Words as debugfs splits them: each in quotes, a quote within twice.
    fn line(&mut self, words: &[&[u8]]) -> Result<(), Error> {
        let start = self.text.len();
        for word in words {
            self.text.push(b'"');
            for byte in *word {
                self.text.extend_from_slice(if *byte == b'"' { b"\"\"" } else { std::slice::from_ref(byte) });
            }
            self.text.extend_from_slice(b"\" ");
        }
        if self.text.len() - start > LONGEST_LINE {
            return Err(Error::input("a path, or what a symbolic link names, is too long to be put into an image"));
        }
        self.text.push(b'\n');
        Ok(())
    }

    /// A version 4 UUID out of all that the image holds.
    fn uuid(&self) -> String {
        let digest = self.hash.clone().finalize();
        let hex: String = digest.iter().take(16).map(|byte| format!("{byte:02x}")).collect();
        format!("{}-{}-4{}-8{}-{}", &hex[..8], &hex[8..12], &hex[13..16], &hex[17..20], &hex[20..32])
    }
}

/// The names in a directory, the first one last.
fn names(node: &Node) -> Vec<(&[u8], Index)> {
    match &node.what {
        What::Directory(entries) => entries.iter().rev().map(|(name, index)| (&name[..], *index)).collect(),
        _ => Vec::new(),
    }
}

#[cfg(test)]
mod tests;
