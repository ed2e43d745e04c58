//! The plain kernel (`vmlinux`) out of a `bzImage`: what a VMM starts directly, without the guest unpacking it first.
//!
//! The layout is the kernel's boot protocol (`Documentation/arch/x86/boot.rst`). The payload is one packed stream with
//! its unpacked size in the last four bytes. Debian packs with LZ4 (6.1 cloud), XZ (6.1) or zstd (6.12); the other
//! packers that the kernel knows are named in the error.

mod import;

use lz4_flex::block::decompress_into;
use thiserror::Error;

pub use import::{Kernel, fetch_debian, import, import_debian, initrd, modules, modules_of};

use super::elf::{self, le16, le32};
use super::xz_zstd;

/// No kernel is larger; more memory than this is never taken for one.
const LARGEST: usize = 512 << 20;
/// An LZ4 legacy frame is cut into blocks of this much unpacked data.
const LZ4_BLOCK: usize = 8 << 20;

const LZ4_LEGACY: [u8; 4] = [0x02, 0x21, 0x4c, 0x18];
const XZ: [u8; 6] = [0xfd, b'7', b'z', b'X', b'Z', 0];
const ZSTD: [u8; 4] = [0x28, 0xb5, 0x2f, 0xfd];
const OTHER_PACKERS: [(&[u8], &str); 4] =
    [(&[0x1f, 0x8b], "gzip"), (b"BZh", "bzip2"), (&[0x5d, 0, 0], "LZMA"), (&[0x89, b'L', b'Z', b'O'], "LZO")];

/// Why no kernel came out of a file.
#[derive(Debug, Error)]
pub enum KernelError {
    /// Neither a `bzImage` nor an ELF file.
    #[error("not a Linux kernel for x86: neither a bzImage nor an ELF file; give /boot/vmlinuz-… or a vmlinux")]
    NotAKernel,
    /// The boot protocol is from before 2.6.26 and doesn't say where the payload is.
    #[error("boot protocol {}.{:02} is too old: 2.08 or newer is needed", .0 >> 8, .0 & 0xff)]
    OldProtocol(u16),
    /// The header points outside the file.
    #[error("the kernel is cut off or damaged: its payload should be bytes {start} to {end} of {file}; fetch it again")]
    Outside {
        /// First byte of the payload.
        start: u64,
        /// The byte after the payload.
        end: u64,
        /// Bytes in the file.
        file: usize,
    },
    /// A size that no kernel has.
    #[error("the kernel says that it unpacks to {0} bytes, which no kernel does; fetch it again")]
    Size(u64),
    /// Packed in a way that isn't read here.
    #[error("the kernel is packed with {0}; LZ4, XZ and zstd are read here. The bzImage itself boots too")]
    Packer(&'static str),
    /// The packed stream is damaged.
    #[error("the kernel's {packer} stream is damaged: {cause}; fetch it again")]
    Damaged {
        /// The packer's name.
        packer: &'static str,
        /// What the unpacker found.
        cause: String,
    },
    /// What came out isn't a kernel that can be entered without its boot code.
    #[error("the unpacked kernel can't be started directly: {0}")]
    NotBootable(&'static str),
}

/// Unpacks the kernel of a `bzImage` and checks it; an ELF kernel is checked and comes back as it is.
///
/// The result is an ELF64 file for x86-64 with the PVH note, which QEMU, Firecracker and Cloud Hypervisor start directly.
///
/// # Errors
/// Anything that isn't such a kernel, down to a single byte that is missing; see [`KernelError`].
pub fn vmlinux(image: &[u8]) -> Result<Vec<u8>, KernelError> {
    let kernel = if image.starts_with(b"\x7fELF") { image.to_vec() } else { unpack(payload(image)?)? };
    check_elf(&kernel)?;
    Ok(kernel)
}

/// The packed kernel inside a `bzImage`, with the size at its end.
fn payload(image: &[u8]) -> Result<&[u8], KernelError> {
    if le16(image, 0x1fe) != Some(0xaa55) || image.get(0x202..0x206) != Some(b"HdrS") {
        return Err(KernelError::NotAKernel);
    }
    let protocol = le16(image, 0x206).ok_or(KernelError::NotAKernel)?;
    if protocol < 0x208 {
        return Err(KernelError::OldProtocol(protocol));
    }
    let (Some(offset), Some(length)) = (le32(image, 0x248), le32(image, 0x24c)) else {
        return Err(KernelError::NotAKernel);
    };
    // Zero means four: sectors of real-mode code, after the boot sector.
    let setup_sectors = match image[0x1f1] {
        0 => 4,
        n => u64::from(n),
    };
    let start = (setup_sectors + 1) * 512 + u64::from(offset);
    let end = start + u64::from(length);
    let outside = KernelError::Outside { start, end, file: image.len() };
    let (Ok(from), Ok(to)) = (usize::try_from(start), usize::try_from(end)) else { return Err(outside) };
    image.get(from..to).ok_or(outside)
}

/// Unpacks a payload to exactly the size that its last four bytes give.
fn unpack(payload: &[u8]) -> Result<Vec<u8>, KernelError> {
    let (packed, size) = payload.split_last_chunk::<4>().ok_or(KernelError::Size(0))?;
    let size = u32::from_le_bytes(*size) as usize;
    if !(64..=LARGEST).contains(&size) {
        return Err(KernelError::Size(size as u64));
    }
    let (packer, out) = if packed.starts_with(&LZ4_LEGACY) {
        ("LZ4", lz4_legacy(&packed[4..], size))
    } else if packed.starts_with(&XZ) {
        ("XZ", xz_zstd::xz(packed, size).map_err(|e| e.to_string()))
    } else if packed.starts_with(&ZSTD) {
        ("zstd", xz_zstd::zstd(packed, size).map_err(|e| e.to_string()))
    } else {
        let known = OTHER_PACKERS.iter().find(|(magic, _)| packed.starts_with(magic));
        return Err(KernelError::Packer(known.map_or("an unknown packer", |(_, name)| name)));
    };
    let out = out.map_err(|cause| KernelError::Damaged { packer, cause })?;
    if out.len() != size {
        let cause = format!("{} bytes came out where {size} are due", out.len());
        return Err(KernelError::Damaged { packer, cause });
    }
    Ok(out)
}

/// LZ4's legacy frame behind its magic number: blocks, each with its packed length before it, none of them marked as last.
fn lz4_legacy(mut blocks: &[u8], size: usize) -> Result<Vec<u8>, String> {
    let mut out = vec![0; size];
    let mut filled = 0;
    while !blocks.is_empty() {
        let (length, rest) = blocks.split_first_chunk::<4>().ok_or("a block's length is cut off")?;
        let length = u32::from_le_bytes(*length) as usize;
        let block = rest.get(..length).ok_or("a block is cut off")?;
        let room = LZ4_BLOCK.min(size - filled);
        filled += decompress_into(block, &mut out[filled..filled + room]).map_err(|e| e.to_string())?;
        blocks = &rest[length..];
    }
    out.truncate(filled);
    Ok(out)
}

/// An ELF64 file for x86-64, whole, with a PVH entry.
fn check_elf(elf: &[u8]) -> Result<(), KernelError> {
    let bad = |why| Err(KernelError::NotBootable(why));
    if !elf::is_x86_64(elf) {
        return bad("it is no 64-bit ELF file for x86-64");
    }
    let Some(segments) = elf::segments(elf) else { return bad("it is cut off or damaged; fetch it again") };
    if !segments.iter().any(|(kind, _)| *kind == elf::PT_LOAD) {
        return bad("it has nothing to load");
    }
    if !segments.iter().any(|(kind, bytes)| *kind == elf::PT_NOTE && has_pvh_note(bytes)) {
        return bad("it has no PVH entry (CONFIG_PVH=y); use a newer or a distribution's kernel");
    }
    Ok(())
}

/// `XEN_ELFNOTE_PHYS32_ENTRY`, the type of the note that holds the PVH entry.
const PVH_ENTRY: u32 = 18;

/// Goes through the notes of one segment. A damaged note ends the search.
fn has_pvh_note(mut notes: &[u8]) -> bool {
    while let (Some(name), Some(description), Some(kind)) = (le32(notes, 0), le32(notes, 4), le32(notes, 8)) {
        if kind == PVH_ENTRY && name == 4 && description >= 4 && notes.get(12..16) == Some(b"Xen\0") {
            return true;
        }
        let padded = |n: u32| (n as usize).next_multiple_of(4);
        match notes.get(12 + padded(name) + padded(description)..) {
            Some(rest) => notes = rest,
            None => return false,
        }
    }
    false
}

#[cfg(test)]
mod tests;
