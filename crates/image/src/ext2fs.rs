//! libext2fs, as far as it is used here: declarations written by hand, and an open file system that is safe to use.
//!
//! All unsafe code beside `sys` stands here. What the library does with a hostile image, no wrapper can make safe: that
//! is why it runs in a process without rights. What is kept here is our side: pointers that live as long as they are
//! used, buffers that are as long as it is told.
//!
//! `ext2fs.h` of e2fsprogs 1.46 and later (soname `libext2fs.so.2`).
#![allow(unsafe_code)]

pub mod code;

pub use code::Failed;

use crate::inode::Inode;
use crate::overlay::Overlay;
use crate::superblock::Superblock;
use std::cell::Cell;
use std::ffi::{CStr, CString, c_char, c_int, c_long, c_ulong, c_void};
use std::fmt;
use std::ptr;

impl fmt::Display for Failed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // SAFETY: adds a table of constant texts to a list; a second time it does nothing.
        unsafe { initialize_ext2_error_table() };
        // SAFETY: takes any number.
        let text = unsafe { error_message(self.0) };
        // SAFETY: it ends with NUL, and stays until the next such call; there is one thread.
        let text = unsafe { CStr::from_ptr(text) };
        f.write_str(&text.to_string_lossy())
    }
}

type Result<T> = std::result::Result<T, Failed>;

/// `struct_ext2_filsys`; only the library looks into it.
#[repr(C)]
struct Filsys {
    _hidden: [u8; 0],
}

/// `ext2_extent_handle`.
#[repr(C)]
struct Extents {
    _hidden: [u8; 0],
}

/// The last argument is a `va_list`, which is passed by a pointer.
type Complaint = unsafe extern "C" fn(*const c_char, c_long, *const c_char, *mut c_void);
/// A block was taken (1) or given back (-1).
type Counted = unsafe extern "C" fn(*mut Filsys, u64, c_int);
type DirFunction = unsafe extern "C" fn(u32, c_int, *mut u8, c_int, c_int, *mut u8, *mut c_void) -> c_int;

#[link(name = "ext2fs")]
unsafe extern "C" {
    fn initialize_ext2_error_table();
    fn ext2fs_open2(
        name: *const c_char,
        options: *const c_char,
        flags: c_int,
        superblock: c_int,
        block_size: u32,
        manager: *const Manager,
        fs: *mut *mut Filsys,
    ) -> c_long;
    fn ext2fs_close_free(fs: *mut *mut Filsys) -> c_long;
    fn ext2fs_free(fs: *mut Filsys);
    fn ext2fs_read_bitmaps(fs: *mut Filsys) -> c_long;
    fn ext2fs_read_inode(fs: *mut Filsys, ino: u32, inode: *mut Inode) -> c_long;
    fn ext2fs_write_inode(fs: *mut Filsys, ino: u32, inode: *mut Inode) -> c_long;
    fn ext2fs_write_new_inode(fs: *mut Filsys, ino: u32, inode: *mut Inode) -> c_long;
    fn ext2fs_new_inode(fs: *mut Filsys, dir: u32, mode: c_int, map: *mut c_void, ino: *mut u32) -> c_long;
    fn ext2fs_inode_alloc_stats2(fs: *mut Filsys, ino: u32, inuse: c_int, isdir: c_int);
    fn ext2fs_bmap2(
        fs: *mut Filsys,
        ino: u32,
        inode: *mut Inode,
        buffer: *mut u8,
        flags: c_int,
        block: u64,
        ret_flags: *mut c_int,
        physical: *mut u64,
    ) -> c_long;
    fn ext2fs_fallocate(
        fs: *mut Filsys,
        flags: c_int,
        ino: u32,
        inode: *mut Inode,
        goal: u64,
        start: u64,
        length: u64,
    ) -> c_long;
    fn ext2fs_punch(fs: *mut Filsys, ino: u32, inode: *mut Inode, buffer: *mut u8, start: u64, end: u64) -> c_long;
    fn ext2fs_extent_open2(fs: *mut Filsys, ino: u32, inode: *mut Inode, handle: *mut *mut Extents) -> c_long;
    fn ext2fs_extent_free(handle: *mut Extents);
    fn ext2fs_free_ext_attr(fs: *mut Filsys, ino: u32, inode: *mut c_void) -> c_long;
    fn ext2fs_inline_data_size(fs: *mut Filsys, ino: u32, size: *mut usize) -> c_long;
    fn ext2fs_inline_data_get(fs: *mut Filsys, ino: u32, inode: *mut Inode, data: *mut u8, size: *mut usize) -> c_long;
    fn ext2fs_mkdir(fs: *mut Filsys, parent: u32, ino: u32, name: *const c_char) -> c_long;
    fn ext2fs_link(fs: *mut Filsys, dir: u32, name: *const c_char, ino: u32, flags: c_int) -> c_long;
    fn ext2fs_expand_dir(fs: *mut Filsys, dir: u32) -> c_long;
    fn ext2fs_dir_iterate2(
        fs: *mut Filsys,
        dir: u32,
        flags: c_int,
        buffer: *mut u8,
        function: DirFunction,
        private: *mut c_void,
    ) -> c_long;
    fn ext2fs_set_block_alloc_stats_callback(fs: *mut Filsys, function: Counted, old: *mut Option<Counted>);
    fn ext2fs_bg_free_blocks_count(fs: *mut Filsys, group: u32) -> u32;
    fn ext2fs_bg_free_inodes_count(fs: *mut Filsys, group: u32) -> u32;
}

#[link(name = "com_err")]
unsafe extern "C" {
    fn error_message(code: c_long) -> *const c_char;
    fn set_com_err_hook(hook: Complaint) -> Option<Complaint>;
}

fn answer(code: c_long) -> Result<()> {
    if code == 0 { Ok(()) } else { Err(Failed(code)) }
}

/// No path or name of ours has a NUL; one out of an image is cut there by nobody else either.
fn c_string(text: &[u8]) -> Result<CString> {
    const EINVAL: c_long = 22;
    CString::new(text).map_err(|_| Failed(EINVAL))
}

/// Whether a file system is opened for its files to be read or changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// Nothing is written.
    Read,
    /// Blocks and inodes can be allocated; the bitmaps are read.
    Write,
}

/// An open file system. What is written goes to the overlay; without [`close`](Fs::close) it is not complete.
pub struct Fs<'a> {
    raw: *mut Filsys,
    /// The channel inside `raw` points to it.
    overlay: &'a Overlay<'a>,
    groups: u32,
}

impl<'a> Fs<'a> {
    /// Opens what the overlay shows. What the library has to say about it is kept from standard error.
    ///
    /// # Errors
    /// What the library answers.
    pub fn open(overlay: &'a Overlay<'a>, superblock: &Superblock, access: Access) -> Result<Fs<'a>> {
        let mut raw = ptr::null_mut();
        let flags = code::FLAG_64BITS | if access == Access::Write { code::FLAG_RW } else { 0 };
        let (name, manager) = (NAME.as_ptr(), &raw const MANAGER);
        offer(overlay);
        // SAFETY: `complained` is what the library calls, and stays.
        unsafe { set_com_err_hook(complained) };
        // SAFETY: name and manager are static; the channel made meanwhile points to `overlay`, which outlives `Fs`.
        answer(unsafe { ext2fs_open2(name, ptr::null(), flags, 0, 0, manager, &raw mut raw) })?;
        let fs = Fs { raw, overlay, groups: superblock.groups() };
        if access == Access::Write {
            // SAFETY: `raw` is open.
            answer(unsafe { ext2fs_read_bitmaps(fs.raw) })?;
            GIVEN_BACK.set(false);
            // SAFETY: `raw` is open, and `counted` stays; who was told before isn't asked for.
            unsafe { ext2fs_set_block_alloc_stats_callback(fs.raw, counted, ptr::null_mut()) };
        }
        Ok(fs)
    }

    /// Writes what is still in memory: bitmaps, groups, superblock.
    ///
    /// # Errors
    /// What the library answers, and `FILESYSTEM_CORRUPTED` where it said something and went on: of blocks, for
    /// example, that are to be freed and aren't there.
    pub fn close(mut self) -> Result<()> {
        if COMPLAINTS.get() {
            return Err(Failed(code::FILESYSTEM_CORRUPTED));
        }
        // SAFETY: `raw` is open, and set to null by the call, so that `drop` does not free it again.
        answer(unsafe { ext2fs_close_free(&raw mut self.raw) })
    }

    /// What it is opened over.
    pub fn overlay(&self) -> &'a Overlay<'a> {
        self.overlay
    }

    /// Reads an inode.
    ///
    /// # Errors
    /// What the library answers, also where there is no such number.
    pub fn inode(&self, ino: u32) -> Result<Inode> {
        let mut inode = Inode::empty();
        // SAFETY: `inode` has the 128 bytes that the call fills.
        answer(unsafe { ext2fs_read_inode(self.raw, ino, &raw mut inode) })?;
        Ok(inode)
    }

    /// Writes the part of an inode that is ours; what a larger one has behind it stays.
    ///
    /// # Errors
    /// What the library answers.
    pub fn set_inode(&self, ino: u32, inode: &mut Inode) -> Result<()> {
        // SAFETY: `inode` has the 128 bytes that the call reads.
        answer(unsafe { ext2fs_write_inode(self.raw, ino, inode) })
    }

    /// Writes an inode that is new: its times become now, what is behind the 128 bytes is cleared.
    ///
    /// # Errors
    /// What the library answers.
    pub fn set_new_inode(&self, ino: u32, inode: &mut Inode) -> Result<()> {
        // SAFETY: `inode` has the 128 bytes that the call reads and in which it sets times.
        answer(unsafe { ext2fs_write_new_inode(self.raw, ino, inode) })
    }

    /// A free inode near a directory, not yet counted.
    ///
    /// # Errors
    /// `INODE_ALLOC_FAIL` where none is free.
    pub fn free_inode(&self, near: u32) -> Result<u32> {
        let mut ino = 0;
        // SAFETY: without a map the call takes the file system's; `ino` takes its answer.
        answer(unsafe { ext2fs_new_inode(self.raw, near, 0, ptr::null_mut(), &raw mut ino) })?;
        Ok(ino)
    }

    /// Counts an inode as used.
    pub fn take_inode(&self, ino: u32) {
        // SAFETY: changes bitmaps and counters of the open file system; a number that it hasn't is ignored.
        unsafe { ext2fs_inode_alloc_stats2(self.raw, ino, 1, 0) };
    }

    /// Counts an inode as free.
    pub fn give_inode(&self, ino: u32, directory: bool) {
        // SAFETY: as above.
        unsafe { ext2fs_inode_alloc_stats2(self.raw, ino, -1, c_int::from(directory)) };
    }

    /// Makes an empty inode one whose blocks are mapped by extents.
    ///
    /// # Errors
    /// `INODE_NOT_EXTENT` or what else the library answers.
    pub fn use_extents(&self, ino: u32, inode: &mut Inode) -> Result<()> {
        let mut handle = ptr::null_mut();
        // SAFETY: `inode` outlives the handle, which is freed at once.
        answer(unsafe { ext2fs_extent_open2(self.raw, ino, inode, &raw mut handle) })?;
        // SAFETY: the call above made it.
        unsafe { ext2fs_extent_free(handle) };
        Ok(())
    }

    /// The block of the image where a file's block stands; `None` for a hole, or one that was never written.
    ///
    /// # Errors
    /// What the library answers.
    pub fn map(&self, ino: u32, inode: &mut Inode, block: u64) -> Result<Option<u64>> {
        let (mut physical, mut flags) = (0, 0);
        let (flags_at, to) = (&raw mut flags, &raw mut physical);
        // SAFETY: `inode` and both answers are ours for the call; without a buffer the library takes its own.
        answer(unsafe { ext2fs_bmap2(self.raw, ino, inode, ptr::null_mut(), 0, block, flags_at, to) })?;
        Ok((physical != 0 && flags & code::BMAP_RET_UNINIT == 0).then_some(physical))
    }

    /// Gives a file its first `blocks` blocks, as written ones: their bytes are to be put there by the caller.
    ///
    /// # Errors
    /// `BLOCK_ALLOC_FAIL` where not enough are free.
    pub fn allocate(&self, ino: u32, inode: &mut Inode, blocks: u64) -> Result<()> {
        let flags = code::FALLOCATE_FORCE_INIT | code::FALLOCATE_INIT_BEYOND_EOF;
        // SAFETY: `inode` is ours for the call; a goal of all ones lets the library choose.
        answer(unsafe { ext2fs_fallocate(self.raw, flags, ino, inode, u64::MAX, 0, blocks) })
    }

    /// Whether a block was given back since it was opened. While none was, what is taken was free in the image.
    pub fn has_given_back(&self) -> bool {
        GIVEN_BACK.get()
    }

    /// Frees a file's blocks from `start` on.
    ///
    /// # Errors
    /// What the library answers.
    pub fn punch(&self, ino: u32, inode: &mut Inode, start: u64) -> Result<()> {
        // SAFETY: `inode` is ours for the call; without a buffer the library takes its own.
        answer(unsafe { ext2fs_punch(self.raw, ino, inode, ptr::null_mut(), start, u64::MAX) })
    }

    /// Takes the block of extended attributes from an inode, and frees it when it was the last.
    ///
    /// # Errors
    /// What the library answers.
    pub fn drop_attributes(&self, ino: u32) -> Result<()> {
        // SAFETY: without an inode the call reads and writes it itself.
        answer(unsafe { ext2fs_free_ext_attr(self.raw, ino, ptr::null_mut()) })
    }

    /// The content of a file that stands in its inode.
    ///
    /// # Errors
    /// What the library answers.
    pub fn inline_data(&self, ino: u32) -> Result<Vec<u8>> {
        let mut length = 0;
        // SAFETY: `length` takes the answer.
        answer(unsafe { ext2fs_inline_data_size(self.raw, ino, &raw mut length) })?;
        let mut data = vec![0; length];
        // SAFETY: `data` has as many bytes as the library said it will put there; nothing changed meanwhile.
        answer(unsafe { ext2fs_inline_data_get(self.raw, ino, ptr::null_mut(), data.as_mut_ptr(), &raw mut length) })?;
        data.truncate(length);
        Ok(data)
    }

    /// Makes a directory (0755, 0:0).
    ///
    /// # Errors
    /// `DIR_NO_SPACE` where the parent has to be [expanded](Fs::expand), and what else the library answers.
    pub fn make_dir(&self, parent: u32, name: &[u8]) -> Result<()> {
        let name = c_string(name)?;
        // SAFETY: `name` ends with NUL and lives for the call; 0 lets the library choose an inode.
        answer(unsafe { ext2fs_mkdir(self.raw, parent, 0, name.as_ptr()) })
    }

    /// Gives a regular file a name.
    ///
    /// # Errors
    /// `DIR_NO_SPACE` where the directory has to be [expanded](Fs::expand), and what else the library answers.
    pub fn link(&self, dir: u32, name: &[u8], ino: u32) -> Result<()> {
        let name = c_string(name)?;
        // SAFETY: `name` ends with NUL and lives for the call.
        answer(unsafe { ext2fs_link(self.raw, dir, name.as_ptr(), ino, code::FT_REG_FILE) })
    }

    /// Gives a directory one more block.
    ///
    /// # Errors
    /// What the library answers.
    pub fn expand(&self, dir: u32) -> Result<()> {
        // SAFETY: the file system is open.
        answer(unsafe { ext2fs_expand_dir(self.raw, dir) })
    }

    /// The inode that a directory has under a name.
    ///
    /// # Errors
    /// What the library answers.
    pub fn find(&self, dir: u32, name: &[u8]) -> Result<Option<u32>> {
        self.search(&mut Search { name, found: None, becomes: None }, dir)
    }

    /// Makes a name that a directory has that of another inode. Returns the inode it had.
    ///
    /// # Errors
    /// What the library answers.
    pub fn repoint(&self, dir: u32, name: &[u8], ino: u32) -> Result<Option<u32>> {
        self.search(&mut Search { name, found: None, becomes: Some(ino) }, dir)
    }

    fn search(&self, search: &mut Search<'_>, dir: u32) -> Result<Option<u32>> {
        let private = (&raw mut *search).cast();
        // SAFETY: `one_entry` gets `private` back, which is our `Search`, during the call alone.
        answer(unsafe { ext2fs_dir_iterate2(self.raw, dir, 0, ptr::null_mut(), one_entry, private) })?;
        Ok(search.found)
    }

    /// Free clusters and inodes, as the groups' descriptors count them.
    pub fn free_in_groups(&self) -> (u64, u64) {
        (0..self.groups).fold((0, 0), |(clusters, inodes), group| {
            // SAFETY: the library made its table of groups from the same fields as `groups`.
            let more = unsafe { ext2fs_bg_free_blocks_count(self.raw, group) };
            // SAFETY: as above.
            let more_inodes = unsafe { ext2fs_bg_free_inodes_count(self.raw, group) };
            (clusters + u64::from(more), inodes + u64::from(more_inodes))
        })
    }
}

impl Drop for Fs<'_> {
    fn drop(&mut self) {
        if !self.raw.is_null() {
            // SAFETY: it is open, and nothing uses it after this.
            unsafe { ext2fs_free(self.raw) };
        }
    }
}

thread_local! {
    /// Whether the library has complained.
    static COMPLAINTS: Cell<bool> = const { Cell::new(false) };
    /// Whether a block was given back.
    static GIVEN_BACK: Cell<bool> = const { Cell::new(false) };
}

unsafe extern "C" fn counted(_fs: *mut Filsys, _block: u64, taken: c_int) {
    if taken < 0 {
        GIVEN_BACK.set(true);
    }
}

unsafe extern "C" fn complained(_who: *const c_char, _code: c_long, _format: *const c_char, _values: *mut c_void) {
    COMPLAINTS.set(true);
}

struct Search<'a> {
    name: &'a [u8],
    found: Option<u32>,
    becomes: Option<u32>,
}

/// `struct ext2_dir_entry`: inode, length of the entry, length of the name, type, name.
unsafe extern "C" fn one_entry(
    _dir: u32,
    _which: c_int,
    entry: *mut u8,
    _offset: c_int,
    _length: c_int,
    _block: *mut u8,
    private: *mut c_void,
) -> c_int {
    // SAFETY: `search` gave it, and holds no other reference during the walk.
    let search = unsafe { &mut *private.cast::<Search<'_>>() };
    // SAFETY: the library has checked that an entry has its eight bytes, in its block.
    let head = unsafe { std::slice::from_raw_parts_mut(entry, 8) };
    let length = usize::from(head[6]);
    // SAFETY: the name stands behind them, in the same block.
    let name = unsafe { entry.add(8) };
    // SAFETY: the library has checked that it ends inside the entry.
    let name = unsafe { std::slice::from_raw_parts(name.cast_const(), length) };
    if name != search.name {
        return 0;
    }
    search.found = Some(u32::from_le_bytes([head[0], head[1], head[2], head[3]]));
    match search.becomes {
        None => code::DIRENT_ABORT,
        Some(ino) => {
            head[..4].copy_from_slice(&ino.to_le_bytes());
            code::DIRENT_ABORT | code::DIRENT_CHANGED
        }
    }
}

// The library's input and output: an `io_manager` over the overlay. `ext2_io.h`.

/// `struct_io_manager`: how the library reads and writes. Calls that are not set it does without.
#[repr(C)]
struct Manager {
    magic: c_long,
    name: *const c_char,
    open: unsafe extern "C" fn(*const c_char, c_int, *mut *mut Channel) -> c_long,
    close: unsafe extern "C" fn(*mut Channel) -> c_long,
    set_block_size: unsafe extern "C" fn(*mut Channel, c_int) -> c_long,
    read: unsafe extern "C" fn(*mut Channel, c_ulong, c_int, *mut u8) -> c_long,
    write: unsafe extern "C" fn(*mut Channel, c_ulong, c_int, *const u8) -> c_long,
    flush: unsafe extern "C" fn(*mut Channel) -> c_long,
    write_byte: Unset,
    set_option: Unset,
    get_stats: Unset,
    read64: unsafe extern "C" fn(*mut Channel, c_ulong, c_int, *mut u8) -> c_long,
    write64: unsafe extern "C" fn(*mut Channel, c_ulong, c_int, *const u8) -> c_long,
    discard: Unset,
    readahead: Unset,
    zeroout: Unset,
    reserved: [c_long; 14],
}

type Unset = Option<unsafe extern "C" fn() -> c_long>;

/// `struct_io_channel`.
#[repr(C)]
struct Channel {
    magic: c_long,
    manager: *const Manager,
    name: *const c_char,
    block_size: c_int,
    read_error: Unset,
    write_error: Unset,
    references: c_int,
    flags: c_int,
    reserved: [c_long; 14],
    overlay: *const Overlay<'static>,
    application: *mut c_void,
    align: c_int,
}

const _: () = assert!(size_of::<Manager>() == 240 && size_of::<Channel>() == 192, "ext2_io.h on 64 bits");

// SAFETY: never changed, and its pointers are to what is static.
unsafe impl Sync for Manager {}

static NAME: &CStr = c"image";

static MANAGER: Manager = Manager {
    magic: code::MAGIC_IO_MANAGER,
    name: NAME.as_ptr(),
    open: channel_open,
    close: channel_close,
    set_block_size: channel_set_block_size,
    read: channel_read,
    write: channel_write,
    flush: channel_flush,
    write_byte: None,
    set_option: None,
    get_stats: None,
    read64: channel_read,
    write64: channel_write,
    discard: None,
    readahead: None,
    zeroout: None,
    reserved: [0; 14],
};

thread_local! {
    /// What the channel that is opened next is to show: the library passes on a name and nothing else.
    static OFFERED: Cell<*const Overlay<'static>> = const { Cell::new(ptr::null()) };
}

/// Offers an overlay to the channel that this thread opens next. It must live as long as that channel.
fn offer(overlay: &Overlay<'_>) {
    OFFERED.set(ptr::from_ref(overlay).cast());
}

unsafe extern "C" fn channel_open(_name: *const c_char, _flags: c_int, into: *mut *mut Channel) -> c_long {
    let channel = Box::new(Channel {
        magic: code::MAGIC_IO_CHANNEL,
        manager: &raw const MANAGER,
        name: NAME.as_ptr(),
        block_size: 1024,
        read_error: None,
        write_error: None,
        references: 1,
        flags: 0,
        reserved: [0; 14],
        overlay: OFFERED.get(),
        application: ptr::null_mut(),
        align: 0,
    });
    // SAFETY: the library gave a place for it, and gives it back to `channel_close`.
    unsafe { *into = Box::into_raw(channel) };
    0
}

unsafe extern "C" fn channel_close(channel: *mut Channel) -> c_long {
    // SAFETY: the library passes a channel of ours that is open, and uses it nowhere else meanwhile.
    let open = unsafe { &mut *channel };
    open.references -= 1;
    if open.references == 0 {
        // SAFETY: `channel_open` made it by `Box::into_raw`, and its last user gives it back.
        drop(unsafe { Box::from_raw(channel) });
    }
    0
}

unsafe extern "C" fn channel_set_block_size(channel: *mut Channel, size: c_int) -> c_long {
    // SAFETY: the library passes a channel of ours that is open.
    unsafe { (*channel).block_size = size };
    0
}

unsafe extern "C" fn channel_flush(_channel: *mut Channel) -> c_long {
    0
}

unsafe extern "C" fn channel_read(channel: *mut Channel, block: c_ulong, count: c_int, into: *mut u8) -> c_long {
    // SAFETY: the library passes a channel of ours that is open.
    let channel = unsafe { &*channel };
    // SAFETY: the overlay outlives the `Fs` whose channel this is.
    let overlay = unsafe { &*channel.overlay };
    let Some((offset, length)) = channel.span(block, count) else { return code::SHORT_READ };
    // SAFETY: the library's buffer has room for what it asks: `count` blocks, or that many bytes where it is negative.
    let into = unsafe { std::slice::from_raw_parts_mut(into, length) };
    into.fill(0);
    if overlay.read(offset, into).is_ok() { 0 } else { code::SHORT_READ }
}

unsafe extern "C" fn channel_write(channel: *mut Channel, block: c_ulong, count: c_int, from: *const u8) -> c_long {
    // SAFETY: the library passes a channel of ours that is open.
    let channel = unsafe { &*channel };
    // SAFETY: the overlay outlives the `Fs` whose channel this is.
    let overlay = unsafe { &*channel.overlay };
    let Some((offset, length)) = channel.span(block, count) else { return code::SHORT_WRITE };
    // SAFETY: the library's buffer holds what it wants to be written: `count` blocks, or that many bytes.
    let from = unsafe { std::slice::from_raw_parts(from, length) };
    if overlay.write(offset, from).is_ok() { 0 } else { code::SHORT_WRITE }
}

impl Channel {
    /// Where `count` blocks from `block` on begin, and how many bytes they are. A negative count is one of bytes.
    fn span(&self, block: c_ulong, count: c_int) -> Option<(u64, usize)> {
        let block_size = usize::try_from(self.block_size).ok()?;
        let length = match usize::try_from(count) {
            Ok(blocks) => blocks.checked_mul(block_size)?,
            Err(_) => usize::try_from(count.unsigned_abs()).ok()?,
        };
        let offset = block.checked_mul(u64::try_from(block_size).ok()?)?;
        Some((offset, length))
    }
}
