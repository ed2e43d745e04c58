//! An inode, as far as every ext4 has it: the first 128 bytes.
//!
//! <https://docs.kernel.org/filesystems/ext4/dynamic.html#index-nodes>

/// Bits of `i_flags`.
pub mod flag {
    /// Nothing of it may be changed.
    pub const IMMUTABLE: u32 = 0x10;
    /// It may only grow at its end.
    pub const APPEND: u32 = 0x20;
    /// Its content or names are encrypted.
    pub const ENCRYPT: u32 = 0x800;
    /// A directory with an index.
    pub const INDEX: u32 = 0x1000;
    /// Its blocks are mapped by extents.
    pub const EXTENTS: u32 = 0x8_0000;
    /// Its content stands in the inode itself.
    pub const INLINE: u32 = 0x1000_0000;
}

/// What an inode is of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A regular file.
    File,
    /// A directory.
    Directory,
    /// A symbolic link.
    Link,
    /// A device, FIFO or socket, or what no kernel knows.
    Other,
}

/// The first 128 bytes of an inode.
#[derive(Clone)]
#[repr(C, align(4))]
pub struct Inode(pub(crate) [u8; 128]);

impl Inode {
    /// All zero.
    pub fn empty() -> Inode {
        Inode([0; 128])
    }

    /// An empty regular file of 0:0 with one name, and these permission bits.
    pub fn file(permissions: u16, size: u64) -> Inode {
        let mut inode = Inode::empty();
        inode.set_u16(0, 0o100_000 | (permissions & 0o777));
        inode.set_links(1);
        inode.set_u32(4, size as u32);
        inode.set_u32(0x6c, (size >> 32) as u32);
        inode
    }

    fn u16(&self, at: usize) -> u16 {
        u16::from_le_bytes([self.0[at], self.0[at + 1]])
    }

    fn u32(&self, at: usize) -> u32 {
        u32::from(self.u16(at)) | u32::from(self.u16(at + 2)) << 16
    }

    fn set_u16(&mut self, at: usize, value: u16) {
        self.0[at..at + 2].copy_from_slice(&value.to_le_bytes());
    }

    fn set_u32(&mut self, at: usize, value: u32) {
        self.0[at..at + 4].copy_from_slice(&value.to_le_bytes());
    }

    /// What it is of.
    pub fn kind(&self) -> Kind {
        match self.u16(0) >> 12 {
            0o10 => Kind::File,
            0o4 => Kind::Directory,
            0o12 => Kind::Link,
            _ => Kind::Other,
        }
    }

    /// Bytes of its content.
    pub fn size(&self) -> u64 {
        u64::from(self.u32(4)) | u64::from(self.u32(0x6c)) << 32
    }

    /// How many names it has.
    pub fn links(&self) -> u16 {
        self.u16(0x1a)
    }

    /// Sets how many names it has.
    pub fn set_links(&mut self, links: u16) {
        self.set_u16(0x1a, links);
    }

    /// When it was deleted; the next one's number in the list of orphans.
    pub fn deleted(&self) -> u32 {
        self.u32(0x14)
    }

    /// Sets when it was deleted, in seconds.
    pub fn set_deleted(&mut self, when: u32) {
        self.set_u32(0x14, when);
    }

    /// Sets when it was last changed, content and inode, in seconds.
    pub fn set_changed(&mut self, when: u32) {
        self.set_u32(0xc, when);
        self.set_u32(0x10, when);
    }

    /// Whether it has this bit of [`flag`].
    pub fn has(&self, flag: u32) -> bool {
        self.u32(0x20) & flag != 0
    }

    /// Which of the inode's uses this is; part of its checksums.
    pub fn generation(&self) -> u32 {
        self.u32(0x64)
    }

    /// Whether a block of extended attributes belongs to it.
    pub fn has_attributes(&self) -> bool {
        self.u32(0x68) != 0 || self.u16(0x76) != 0
    }

    /// Where its blocks or its short content stand.
    pub fn map(&self) -> &[u8] {
        &self.0[0x28..0x64]
    }

    /// Whether `map` is the content of a link, and not its blocks.
    pub fn is_short_link(&self) -> bool {
        self.kind() == Kind::Link && self.size() < 60
    }

    /// Whether blocks may be mapped by it.
    pub fn maps_blocks(&self) -> bool {
        !self.has(flag::INLINE)
            && !self.is_short_link()
            && matches!(self.kind(), Kind::File | Kind::Directory | Kind::Link)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_new_file() {
        let file = Inode::file(0o7644, 5 << 32 | 7);
        assert_eq!((file.kind(), file.size(), file.links()), (Kind::File, 5 << 32 | 7, 1));
        assert_eq!(file.u16(0), 0o100_644, "nine bits of the mode");
        assert!(file.maps_blocks() && !file.has(flag::EXTENTS));
        assert_eq!(size_of::<Inode>(), 128);
    }
}
