//! What the library answers, from `ext2_err.et`.

use std::ffi::{c_int, c_long};
/// Below this a code is an errno.
pub const BASE: c_long = 2_133_571_328;
pub(super) const SHORT_READ: c_long = BASE + 36;
pub(super) const SHORT_WRITE: c_long = BASE + 37;
/// A directory has no room for a name.
pub const DIR_NO_SPACE: c_long = BASE + 38;
/// Features that the library doesn't know.
pub const UNSUPP_FEATURE: c_long = BASE + 67;
/// Features that it doesn't know how to write.
pub const RO_UNSUPP_FEATURE: c_long = BASE + 68;
/// No memory.
pub const NO_MEMORY: c_long = BASE + 70;
/// No free block.
pub const BLOCK_ALLOC_FAIL: c_long = BASE + 72;
/// No free inode.
pub const INODE_ALLOC_FAIL: c_long = BASE + 73;
/// More blocks than a file can have.
pub const FILE_TOO_BIG: c_long = BASE + 82;
/// A directory's index of a kind that is not known.
pub const DIRHASH_UNSUPP: c_long = BASE + 89;
pub(super) const FILESYSTEM_CORRUPTED: c_long = BASE + 174;
pub(super) const MAGIC_IO_CHANNEL: c_long = BASE + 5;
pub(super) const MAGIC_IO_MANAGER: c_long = BASE + 7;

// Flags of calls and of answers.
pub(super) const FLAG_RW: c_int = 1;
pub(super) const FLAG_64BITS: c_int = 0x2_0000;
pub(super) const FALLOCATE_FORCE_INIT: c_int = 2;
pub(super) const FALLOCATE_INIT_BEYOND_EOF: c_int = 8;
pub(super) const BMAP_RET_UNINIT: c_int = 1;
pub(super) const DIRENT_CHANGED: c_int = 1;
pub(super) const DIRENT_ABORT: c_int = 2;
pub(super) const FT_REG_FILE: c_int = 1;

/// A code of the library's, not 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Failed(pub c_long);
