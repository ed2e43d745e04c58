//! What a jailed VMM finds beside itself: the kernel, the initial RAM disk, the drives; for a dynamic program its
//! libraries, and for QEMU's front-end QEMU.

use super::checks::{Checked, OpenStart, Opened};
use super::jail;
use super::stage::Piece;
use crate::fail::Fail;
use std::fs::File;
use std::os::fd::{AsFd, OwnedFd};
use sys::creds::Identity;
use sys::dir::{CallError, Dir};
use sys::mount;
use wire::path::ProgramPath;
use wire::vm::{Jailer, Launch, Start};

/// Where libraries and the loader of programs are, whether by itself or by a link into `/usr`.
const LIBRARIES: [&str; 6] = ["usr/lib", "usr/lib32", "usr/lib64", "lib", "lib32", "lib64"];
/// What the loader of programs looks up first.
const LOADER_CACHE: &str = "etc/ld.so.cache";
/// QEMU's program, where its front-end looks for it, and what it reads at its start.
const QEMU: [&str; 4] =
    ["usr/libexec/banger/qemu-system-x86_64", "usr/bin/qemu-system-x86_64", "usr/share/qemu", "usr/share/seabios"];
/// The program that needs them.
const QEMUS_FRONT_END: &str = "banger-qemu";

/// Where QEMU's front-end makes the file that is the guest's memory, where it has no `/proc` to name a descriptor by.
const MEMORY: &str = "tmp";

/// A saved VM, in the jail of one that goes on from it: state, memory where it is not passed, layer.
pub(super) const STATE: &str = "etc/snapshot/state";
pub(super) const SAVED_MEMORY: &str = "etc/snapshot/memory";
pub(super) const LAYER: &str = "etc/snapshot/layer";

/// All of it, copied from the mounts that it is on.
pub(super) fn pieces(asked: &Launch, checked: &Checked, owner: &Identity) -> Result<Vec<Piece>, Fail> {
    let failed = |error: CallError| Fail::new("the VM's jail can't be furnished").because(error);
    let mut pieces = Vec::new();
    let mut add = |at: &str, file: &File, read_only| {
        Piece::file(at, file, read_only).map(|piece| pieces.push(piece)).map_err(failed)
    };
    match &checked.start {
        OpenStart::Boot { kernel, initrd } => {
            add("vmlinux", kernel, true)?;
            initrd.as_ref().map_or(Ok(()), |initrd| add("initrd", initrd, true))?;
        }
        OpenStart::Restore(saved) => {
            add(STATE, &saved.state, true)?;
            if !takes_memory(asked) {
                add(SAVED_MEMORY, &saved.memory, true)?;
            }
            saved.layer.as_ref().map_or(Ok(()), |layer| add(LAYER, &layer.file, false))?;
        }
    }
    for ((drive, record), opened) in asked.drives.iter().zip(&checked.drives).zip(&checked.opened) {
        pieces.push(match opened {
            Opened::File(file) => Piece::file(drive.id.as_str(), file, record.read_only).map_err(failed)?,
            Opened::Device(device) => Piece::device(drive.id.as_str(), device.number, !drive.read_only),
        });
    }
    let is_front_end = is_qemus(&asked.program);
    if is_front_end || is_dynamic(&checked.program.file) {
        let root = Dir::open("/").map_err(failed)?;
        for path in LIBRARIES {
            pieces.extend(of_the_machine(&root, path).map_err(failed)?);
        }
        pieces.extend(of_the_machine(&root, LOADER_CACHE).map_err(failed)?);
        if is_front_end {
            for path in QEMU {
                pieces.extend(of_the_machine(&root, path).map_err(failed)?);
            }
            // What else lies there takes no place of the guest's.
            let bytes = (asked.memory.0 + 16) << 20;
            pieces.push(Piece::memory(MEMORY, bytes, owner.uid, owner.gid).map_err(failed)?);
        }
    }
    Ok(pieces)
}

/// Whether a VM that goes on from a saved one is passed its memory: by a jailer that leaves it a descriptor, to a VMM that
/// maps one. Others read the file.
pub(super) fn takes_memory(asked: &Launch) -> bool {
    let is_ours = |jailer: &Jailer| jailer.program.as_str().rsplit('/').next() == Some(jail::OUR_JAILER);
    matches!(asked.start, Start::Restore(_)) && is_qemus(&asked.program) && asked.jailer.as_ref().is_some_and(is_ours)
}

/// Whether that VMM is QEMU behind its front-end.
pub(super) fn is_qemus(program: &ProgramPath) -> bool {
    program.as_str().rsplit('/').next() == Some(QEMUS_FRONT_END)
}

/// A program, a directory or a link of the machine's under its own path; `None` where it has none.
fn of_the_machine(root: &Dir, path: &str) -> Result<Option<Piece>, CallError> {
    // Root's directories, with whatever is mounted on the way: by the whole path.
    let place = match mount::place(&format!("/{path}")) {
        Ok(place) => place,
        Err(error) if error.is_missing() => return Ok(None),
        Err(error) if error.is_symlink() => return link(root, path),
        Err(error) => return Err(error),
    };
    let is_dir = sys::dir::Facts::of(&place)?.kind == rustix::fs::FileType::Directory;
    Piece::programs(path, &place, is_dir).map(Some)
}

/// `/lib` and the like, which lead into `/usr`. Of a link deeper down the loader has no need.
fn link(root: &Dir, name: &str) -> Result<Option<Piece>, CallError> {
    let failed = |errno| CallError::new(format!("readlinkat(/, {name:?})"), errno);
    if name.contains('/') {
        return Ok(None);
    }
    let target = rustix::fs::readlinkat(root.as_fd(), name, Vec::new()).map_err(failed)?;
    Ok(target.to_str().ok().map(|target| Piece::link(name, target)))
}

/// Whether the kernel starts it by an interpreter: an ELF file of 64 bits with a PT_INTERP; elf(5).
fn is_dynamic(program: &OwnedFd) -> bool {
    const HEADER: usize = 64;
    const INTERPRETER: u32 = 3;
    let mut header = [0u8; HEADER];
    if rustix::io::pread(program, &mut header, 0) != Ok(HEADER) || !header.starts_with(b"\x7fELF\x02\x01") {
        return false;
    }
    let half = |at: usize| u16::from_le_bytes([header[at], header[at + 1]]);
    let mut offset = [0u8; 8];
    offset.copy_from_slice(&header[32..40]);
    let (offset, size, count) = (u64::from_le_bytes(offset), u64::from(half(54)), u64::from(half(56)));
    (0..count.min(64)).any(|nth| {
        let mut kind = [0u8; 4];
        let at = offset.saturating_add(nth * size);
        rustix::io::pread(program, &mut kind, at) == Ok(4) && u32::from_le_bytes(kind) == INTERPRETER
    })
}

/// Opens a directory of the helper's own.
pub(super) fn run_dir(path: &str) -> Result<Dir, Fail> {
    Dir::open(path).map_err(|error| Fail::new("the helper's own directory can't be opened").because(error))
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::fs::{Mode, OFlags};

    #[test]
    fn programs_that_need_a_loader() {
        let open = |path: &str| rustix::fs::open(path, OFlags::RDONLY, Mode::empty()).unwrap();
        assert!(is_dynamic(&open("/bin/sh")));
        assert!(!is_dynamic(&open("/etc/passwd")));
        let own = std::env::current_exe().unwrap();
        assert!(is_dynamic(&open(own.to_str().unwrap())));
    }
}
