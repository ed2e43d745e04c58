//! A root file system in the making: names, owners and rights in memory, the files' bytes as numbered files of a folder.
//!
//! The names come from archives that anybody may have made. None of them ever is a path on this machine: a name is a key
//! of a map, a symbolic link is followed inside the tree or not at all, a device is two numbers.

mod name;

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io::{Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use sha2::{Digest, Sha256};

use super::error::{Error, Kind as Failure};
use super::program::plain;
use super::progress::Watch;
use super::tar::{self, Archive, Attributes, Entry};
use name::{MAX_PATH, checked_name, checked_target, kept, numbers, parts};

/// The most files, directories and links of a tree.
const MAX_NODES: usize = 1 << 20;
/// The most links that are followed on the way to a name, as in the kernel.
const MAX_FOLLOWED: usize = 40;
/// What ext4 has of its own in each root directory.
pub(super) const LOST_AND_FOUND: &[u8] = b"lost+found";

/// What the names of a layer begin with that take something of a lower layer away.
const WHITEOUT: &[u8] = b".wh.";

/// The number of a node.
pub(super) type Index = usize;
/// The root directory.
pub(super) const ROOT: Index = 0;

/// A file, a directory, or what else has rights and an owner.
#[derive(Debug)]
pub(super) struct Node {
    pub(super) what: What,
    pub(super) mode: u32,
    pub(super) uid: u32,
    pub(super) gid: u32,
    pub(super) mtime: i64,
    pub(super) attributes: Attributes,
    /// Names that lead here; a directory has one.
    pub(super) links: u32,
}

/// What a node is.
#[derive(Debug)]
pub(super) enum What {
    Directory(BTreeMap<Vec<u8>, Index>),
    File { bytes: u64, digest: [u8; 32] },
    Symlink(Vec<u8>),
    Character(u32, u32),
    Block(u32, u32),
    Fifo,
}

/// The tree.
#[derive(Debug)]
pub struct Tree {
    nodes: Vec<Node>,
    folder: PathBuf,
    /// Bytes of files that the tree may have, and has.
    room: u64,
    bytes: u64,
}

impl Tree {
    /// An empty tree, whose files' bytes, at most `room` of them, are kept in an empty folder.
    #[must_use]
    pub fn new(folder: &Path, room: u64) -> Tree {
        let root = Node::directory();
        Tree { nodes: vec![root], folder: folder.to_owned(), room, bytes: 0 }
    }

    /// Puts all of an archive's entries into the tree, the later ones in the place of the earlier.
    ///
    /// # Errors
    /// Whatever is wrong with the archive, with the entry's name; the tree is then of no use.
    pub fn unpack(&mut self, archive: impl Read, watch: &dyn Watch) -> Result<(), Error> {
        self.each(archive, watch, |tree, entry, bytes| tree.add(entry, bytes).map(drop))
    }

    /// Puts a layer of an OCI image over what is there: as [`Tree::unpack`], but that a file `.wh.NAME` takes NAME away and
    /// `.wh..wh..opq` all that lower layers have in its directory. What is the layer's own stays, wherever in it that is.
    ///
    /// # Errors
    /// As there.
    pub fn layer(&mut self, archive: impl Read, watch: &dyn Watch) -> Result<(), Error> {
        let mut own = BTreeSet::new();
        self.each(archive, watch, |tree, entry, bytes| {
            let path = parts(&entry.path)?;
            match path.split_last() {
                Some((name, above)) if name.starts_with(WHITEOUT) => tree.white_out(above, name, &own),
                _ => tree.add(entry, bytes).map(|index| own.extend(index)),
            }
        })
    }

    fn each<R: Read>(
        &mut self,
        archive: R,
        watch: &dyn Watch,
        mut act: impl FnMut(&mut Tree, Entry, &mut Archive<R>) -> Result<(), Error>,
    ) -> Result<(), Error> {
        let mut archive = Archive::new(archive);
        while let Some(entry) = archive.next()? {
            if watch.is_stopped() {
                return Err(Error::interrupted());
            }
            let name = String::from_utf8_lossy(&entry.path).into_owned();
            act(self, entry, &mut archive).map_err(|error| Error {
                what: format!("{}: {}", plain(&name.chars().take(200).collect::<String>()), error.what),
                ..error
            })?;
        }
        Ok(())
    }

    fn white_out(&mut self, above: &[&[u8]], name: &[u8], own: &BTreeSet<Index>) -> Result<(), Error> {
        // What isn't there needs no taking away.
        let Some(directory) = self.walk(above, Missing::Leave)? else { return Ok(()) };
        let What::Directory(entries) = &self.nodes[directory].what else { return Ok(()) };
        let gone: Vec<Vec<u8>> = match name.strip_prefix(WHITEOUT).unwrap_or_default() {
            b".wh..opq" => entries.iter().filter(|(_, index)| !own.contains(index)).map(|(n, _)| n.clone()).collect(),
            // Notes of the file system that the image was made with.
            other if other.starts_with(WHITEOUT) => Vec::new(),
            b"" | b"." | b".." => return Err(Error::input("a whiteout of nothing")),
            other => {
                entries.get(other).filter(|index| !own.contains(index)).map(|_| other.to_vec()).into_iter().collect()
            }
        };
        gone.iter().try_for_each(|name| self.remove(directory, name))
    }

    /// Bytes of all files.
    pub(super) fn bytes(&self) -> u64 {
        self.bytes
    }

    pub(super) fn node(&self, index: Index) -> &Node {
        &self.nodes[index]
    }

    /// The folder of the files' bytes.
    pub(super) fn folder(&self) -> &Path {
        &self.folder
    }

    /// The name in that folder of a file's bytes.
    pub(super) fn file_name(index: Index) -> String {
        index.to_string()
    }

    /// Keeps other bytes in that folder; gives their name there.
    pub(super) fn keep(&self, name: &str, bytes: &[u8]) -> Result<String, Error> {
        let path = self.folder.join(name);
        std::fs::write(&path, bytes).map_err(|cause| Error::file("write", &path, &cause))?;
        Ok(name.to_owned())
    }

    /// Makes a file of root's in the place of whatever has its name.
    pub(super) fn put(&mut self, path: &[u8], mode: u32, text: &[u8]) -> Result<(), Error> {
        let kind = tar::Kind::File(text.len() as u64);
        let entry = Entry { path: path.to_vec(), kind, mode, uid: 0, gid: 0, mtime: 0, attributes: Vec::new() };
        self.add(entry, &mut &text[..]).map(drop)
    }

    /// Takes away what is in a directory and has such a name. A directory that isn't there has nothing.
    pub(super) fn take(&mut self, directory: &[u8], is: impl Fn(&[u8]) -> bool) -> Result<(), Error> {
        let Some(at) = self.found(directory)? else { return Ok(()) };
        let What::Directory(entries) = &self.nodes[at].what else { return Ok(()) };
        let names: Vec<Vec<u8>> = entries.keys().filter(|name| is(name)).cloned().collect();
        names.iter().try_for_each(|name| self.remove(at, name))
    }

    /// Adds an entry; the node that it became.
    fn add(&mut self, entry: Entry, bytes: &mut impl Read) -> Result<Option<Index>, Error> {
        let mut parts = parts(&entry.path)?;
        let attributes = kept(entry.attributes)?;
        let Entry { mode, uid, gid, mtime, .. } = entry;
        let Some(name) = parts.pop() else {
            // The root itself.
            return match entry.kind {
                tar::Kind::Directory => {
                    let root = &mut self.nodes[ROOT];
                    (root.mode, root.uid, root.gid, root.mtime, root.attributes) = (mode, uid, gid, mtime, attributes);
                    Ok(Some(ROOT))
                }
                _ => Err(Error::input("the root can only be a directory")),
            };
        };
        let parent = self.made(&parts)?;
        if parent == ROOT && name == LOST_AND_FOUND && entry.kind != tar::Kind::Directory {
            return Err(Error::input("ext4 has a directory of this name"));
        }
        let what = match entry.kind {
            tar::Kind::HardLink(target) => return self.link(parent, name, &target).map(Some),
            tar::Kind::Directory => What::Directory(BTreeMap::new()),
            tar::Kind::File(size) => What::File { bytes: size, digest: [0; 32] },
            tar::Kind::Symlink(target) => What::Symlink(checked_target(target)?),
            tar::Kind::Character(major, minor) => numbers(major, minor).map(|()| What::Character(major, minor))?,
            tar::Kind::Block(major, minor) => numbers(major, minor).map(|()| What::Block(major, minor))?,
            tar::Kind::Fifo => What::Fifo,
        };
        let mut node = Node { what, mode, uid, gid, mtime, attributes, links: 1 };
        // A directory that is there already keeps what is in it.
        if let (What::Directory(_), Some(there)) = (&node.what, self.entry(parent, name))
            && let What::Directory(entries) = &mut self.nodes[there].what
        {
            node.what = What::Directory(std::mem::take(entries));
            self.nodes[there] = node;
            return Ok(Some(there));
        }
        if self.entry(parent, name).is_some() {
            self.remove(parent, name)?;
        }
        let index = self.nodes.len();
        if index >= MAX_NODES {
            return Err(Error::input(format!("more than {MAX_NODES} files, directories and links")));
        }
        if let What::File { bytes: size, digest } = &mut node.what {
            *digest = self.store(index, *size, bytes)?;
        }
        self.nodes.push(node);
        self.insert(parent, name, index);
        Ok(Some(index))
    }

    /// Keeps the bytes of a file, with holes where they are zeros, and gives their digest.
    fn store(&mut self, index: Index, size: u64, from: &mut impl Read) -> Result<[u8; 32], Error> {
        self.bytes = self.bytes.checked_add(size).filter(|bytes| *bytes <= self.room).ok_or_else(|| {
            let room = self.room >> 20;
            Error::new(
                Failure::Room,
                format!("with this file there are more than {room}M of files, too many for the image"),
            )
            .fix("--size gives it more room, if the files are what they should be")
        })?;
        let path = self.folder.join(Tree::file_name(index));
        let failed = |cause| Error::file("write", &path, &cause);
        let mut file = File::create_new(&path).map_err(failed)?;
        let mut hash = Sha256::new();
        let mut buffer = vec![0; 64 << 10];
        let mut left = size;
        while left > 0 {
            let most = usize::try_from(left).unwrap_or(usize::MAX).min(buffer.len());
            let piece = &mut buffer[..most];
            from.read_exact(piece).map_err(|cause| tar::unreadable(&cause))?;
            hash.update(&*piece);
            if piece.iter().all(|byte| *byte == 0) {
                file.seek(SeekFrom::Current(piece.len() as i64)).map_err(failed)?;
            } else {
                file.write_all(piece).map_err(failed)?;
            }
            left -= piece.len() as u64;
        }
        file.set_len(size).map_err(failed)?;
        Ok(hash.finalize().into())
    }

    fn link(&mut self, parent: Index, name: &[u8], target: &[u8]) -> Result<Index, Error> {
        let shown = || plain(&String::from_utf8_lossy(target));
        let mut parts = parts(target)?;
        let last = parts.pop();
        let found = match (last, self.walk(&parts, Missing::Leave)?) {
            (Some(last), Some(directory)) => self.entry(directory, last),
            _ => None,
        };
        let found = found.ok_or_else(|| Error::input(format!("a second name of {}, which is not there", shown())))?;
        if matches!(self.nodes[found].what, What::Directory(_)) {
            return Err(Error::input(format!("a second name of the directory {}", shown())));
        }
        match self.entry(parent, name) {
            Some(there) if there == found => return Ok(found),
            Some(_) => self.remove(parent, name)?,
            None => {}
        }
        let links = &mut self.nodes[found].links;
        *links = links
            .checked_add(1)
            .filter(|links| *links <= 65_000)
            .ok_or_else(|| Error::input("more than 65000 names of one file"))?;
        self.insert(parent, name, found);
        Ok(found)
    }

    fn entry(&self, directory: Index, name: &[u8]) -> Option<Index> {
        match &self.nodes[directory].what {
            What::Directory(entries) => entries.get(name).copied(),
            _ => None,
        }
    }

    fn insert(&mut self, directory: Index, name: &[u8], index: Index) {
        if let What::Directory(entries) = &mut self.nodes[directory].what {
            entries.insert(name.to_vec(), index);
        }
    }

    /// Takes a name away, and all that has no other.
    fn remove(&mut self, directory: Index, name: &[u8]) -> Result<(), Error> {
        let What::Directory(entries) = &mut self.nodes[directory].what else { return Ok(()) };
        let mut gone: Vec<Index> = entries.remove(name).into_iter().collect();
        while let Some(index) = gone.pop() {
            let path = self.folder.join(Tree::file_name(index));
            let node = &mut self.nodes[index];
            node.links -= 1;
            match &mut node.what {
                What::Directory(entries) => gone.extend(std::mem::take(entries).into_values()),
                What::File { bytes, .. } if node.links == 0 => {
                    self.bytes -= *bytes;
                    std::fs::remove_file(&path).map_err(|cause| Error::file("remove", &path, &cause))?;
                }
                _ => {}
            }
        }
        Ok(())
    }

    /// The directory of that path, if there is one.
    fn found(&self, path: &[u8]) -> Result<Option<Index>, Error> {
        let mut at = ROOT;
        for part in parts(path)? {
            match self.entry(at, part) {
                Some(next) if matches!(self.nodes[next].what, What::Directory(_)) => at = next,
                _ => return Ok(None),
            }
        }
        Ok(Some(at))
    }

    /// The directory of that path, made where it is missing.
    fn made(&mut self, path: &[&[u8]]) -> Result<Index, Error> {
        self.walk(path, Missing::Make)?.ok_or_else(|| Error::input("it lies in no directory"))
    }

    /// Goes down from the root, following links as a guest would: inside the tree.
    fn walk(&mut self, path: &[&[u8]], missing: Missing) -> Result<Option<Index>, Error> {
        // What is still to go, the next part last; the way that was come, to go back on.
        let mut ahead: Vec<Vec<u8>> = path.iter().rev().map(|part| part.to_vec()).collect();
        let mut way = vec![ROOT];
        let mut followed = 0;
        while let Some(part) = ahead.pop() {
            let at = way.last().copied().unwrap_or(ROOT);
            match &part[..] {
                b".." => {
                    // The root's parent is the root.
                    if way.len() > 1 {
                        way.pop();
                    }
                    continue;
                }
                b"" | b"." => continue,
                _ => {}
            }
            let next = match self.entry(at, &part) {
                Some(next) => next,
                None if missing == Missing::Leave => return Ok(None),
                None if self.nodes.len() >= MAX_NODES => {
                    return Err(Error::input(format!("more than {MAX_NODES} files, directories and links")));
                }
                None => {
                    checked_name(&part)?;
                    self.nodes.push(Node::directory());
                    self.insert(at, &part, self.nodes.len() - 1);
                    self.nodes.len() - 1
                }
            };
            match &self.nodes[next].what {
                What::Directory(_) => way.push(next),
                What::Symlink(target) => {
                    followed += 1;
                    if followed > MAX_FOLLOWED || ahead.len() > MAX_PATH {
                        return Err(Error::input("the links on the way to it have no end"));
                    }
                    if target.starts_with(b"/") {
                        way.truncate(1);
                    }
                    ahead.extend(target.split(|byte| *byte == b'/').rev().map(<[u8]>::to_vec));
                }
                _ => return Err(Error::input("it lies below something that is no directory")),
            }
        }
        Ok(way.last().copied())
    }
}

/// What becomes of a directory that isn't there.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Missing {
    Make,
    Leave,
}

impl Node {
    fn directory() -> Node {
        let what = What::Directory(BTreeMap::new());
        Node { what, mode: 0o755, uid: 0, gid: 0, mtime: 0, attributes: Vec::new(), links: 1 }
    }
}

#[cfg(test)]
mod tests;
