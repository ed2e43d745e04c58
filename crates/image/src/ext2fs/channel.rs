//! The library's input and output: an `io_manager` over the overlay. `ext2_io.h`.

use super::code;
use crate::overlay::Overlay;
use std::cell::Cell;
use std::ffi::{CStr, c_char, c_int, c_long, c_ulong, c_void};
use std::ptr;

/// `struct_io_manager`: how the library reads and writes. Calls that are not set it does without.
#[repr(C)]
pub(super) struct Manager {
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
pub(super) struct Channel {
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

pub(super) static NAME: &CStr = c"image";

pub(super) static MANAGER: Manager = Manager {
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
pub(super) fn offer(overlay: &Overlay<'_>) {
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
