//! Files inside ext4 images. This crate alone parses what a guest has written, in a process that has the image and
//! nothing else; `docs/image.md` says what it does and where it stops.
//!
//! Start reading in [`write`]: an image is looked at ([`superblock`]), its journal replayed ([`journal`]), and changed
//! through libext2fs ([`ext2fs`]), all over an [`overlay`] that never touches the image itself.

pub mod ext2fs;
pub mod inode;
pub mod journal;
pub mod orphans;
pub mod overlay;
pub mod read;
pub mod recover;
pub mod refuse;
pub mod superblock;
pub mod walk;
pub mod write;
