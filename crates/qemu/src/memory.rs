//! The guest's memory as a file that the kernel holds: made for a boot, written out for a snapshot, taken in for a load.

use std::fs::File;
use std::io;
use std::os::fd::AsFd;
use std::os::unix::fs::{FileExt as _, MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use rustix::fs::{MemfdFlags, SealFlags, SeekFrom};

/// The name under which `/proc` shows it, to a person.
const NAME: &str = "banger-ram";
const PAGE: usize = 4096;
const PIECE: usize = 1 << 20;
const ZEROS: [u8; PAGE] = [0; PAGE];

/// A digest of memory, by which a file is known to belong to a state. It guards against mixing them up, not against
/// somebody who wants to.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub(crate) struct Sum(u64);

/// Where the memory's file gets a name for a moment, where there is no `/proc` to name a descriptor by.
const PLACE: &str = "/tmp";

/// Whether a descriptor can be named by a path here. In a jail without `/proc` it can't.
pub(crate) fn names_descriptors() -> bool {
    Path::new("/proc/self/fd").exists()
}

/// The memory's file, and the name that it has until QEMU has opened it, where it needs one.
#[derive(Debug)]
pub(crate) struct Held {
    file: File,
    name: Option<PathBuf>,
}

impl Held {
    fn unname(&mut self) {
        if let Some(name) = self.name.take() {
            // It was made here under a name that nobody else has.
            let _ = std::fs::remove_file(name);
        }
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        self.unname();
    }
}

/// Empty memory of `len` bytes; where it is the kernel's, it stays as long as it is.
fn create(len: u64) -> io::Result<Held> {
    if names_descriptors() {
        let fd = rustix::fs::memfd_create(NAME, MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING)?;
        rustix::fs::ftruncate(&fd, len)?;
        rustix::fs::fcntl_add_seals(&fd, SealFlags::GROW | SealFlags::SHRINK)?;
        return Ok(Held { file: fd.into(), name: None });
    }
    let mut bytes = [0; 8];
    crate::boot::random(&mut bytes)?;
    let name = Path::new(PLACE).join(format!("{NAME}-{:016x}", u64::from_le_bytes(bytes)));
    let file = File::options().read(true).write(true).create_new(true).mode(0o600).open(&name)?;
    let held = Held { file, name: Some(name) };
    held.file.set_len(len)?;
    Ok(held)
}

/// The guest's memory, and whose it is.
#[derive(Debug)]
pub(crate) enum Memory {
    /// A file of its own.
    Own(Held),
    /// A file that nobody can change any more, so that many may map it. What the guest writes is in QEMU's memory alone.
    Template(Held),
}

impl Memory {
    /// Empty memory of `len` bytes.
    ///
    /// # Errors
    /// What the kernel says.
    pub(crate) fn new(len: u64) -> io::Result<Self> {
        create(len).map(Self::Own)
    }

    /// A copy of what a file holds, and its sum; or the file itself, where it is one that can't be changed any more: a
    /// memory file sealed against writing, growing and shrinking.
    ///
    /// # Errors
    /// What reading says, or the kernel.
    pub(crate) fn of_file(file: &File, len: u64) -> io::Result<(Self, Option<Sum>)> {
        let fixed = SealFlags::WRITE | SealFlags::SHRINK | SealFlags::GROW;
        let is_fixed = rustix::fs::fcntl_get_seals(file).is_ok_and(|seals| seals.contains(fixed));
        if is_fixed && names_descriptors() {
            return Ok((Self::Template(Held { file: file.try_clone()?, name: None }), None));
        }
        let memory = create(len)?;
        let sum = copy(file, &memory.file, len)?;
        Ok((Self::Own(memory), Some(sum)))
    }

    /// The same, for a guest whose saved state has pages of its own: QEMU reads them only where the memory is not shared.
    ///
    /// # Errors
    /// What sealing says.
    pub(crate) fn into_template(self) -> io::Result<Self> {
        match self {
            Self::Own(held) => {
                // One with a name is nobody else's as soon as it has none.
                if held.name.is_none() {
                    rustix::fs::fcntl_add_seals(&held.file, SealFlags::WRITE)?;
                }
                Ok(Self::Template(held))
            }
            template @ Self::Template(_) => Ok(template),
        }
    }

    /// Whether QEMU's stream has the pages that the guest wrote.
    pub(crate) fn is_template(&self) -> bool {
        matches!(self, Self::Template(_))
    }

    pub(crate) fn file(&self) -> &File {
        match self {
            Self::Own(held) | Self::Template(held) => &held.file,
        }
    }

    /// Its name, where it has one.
    pub(crate) fn name(&self) -> Option<&Path> {
        match self {
            Self::Own(held) | Self::Template(held) => held.name.as_deref(),
        }
    }

    /// Takes its name away, once QEMU has opened it.
    pub(crate) fn unname(&mut self) {
        match self {
            Self::Own(held) | Self::Template(held) => held.unname(),
        }
    }

    /// Writes it out, with what `process`, QEMU's, has of it for itself.
    ///
    /// # Errors
    /// What reading and writing say.
    pub(crate) fn write(&self, to: &File, len: u64, process: i32) -> io::Result<Sum> {
        match self {
            Self::Own(held) => copy(&held.file, to, len),
            Self::Template(held) => {
                let whole = create(len)?;
                copy(&held.file, &whole.file, len)?;
                copy_private(process, &held.file, &whole.file, len)?;
                copy(&whole.file, to, len)
            }
        }
    }
}

/// Copies `len` bytes, but for pages of zeros: `to` has to be empty. Only what `from` holds is read.
///
/// # Errors
/// What reading and writing say.
fn copy(from: &File, to: &File, len: u64) -> io::Result<Sum> {
    rustix::fs::ftruncate(to, len)?;
    let mut sum = Sum::default();
    let mut piece = vec![0; PIECE];
    let mut at = 0;
    while let Some((begin, end)) = next_data(from, at, len)? {
        at = begin - begin % PAGE as u64;
        while at < end {
            let room = usize::try_from(len - at).unwrap_or(PIECE).min(PIECE);
            from.read_exact_at(&mut piece[..room], at)?;
            for run in runs(&piece[..room]) {
                to.write_all_at(&piece[run.clone()], at + run.start as u64)?;
                for page in run.clone().step_by(PAGE) {
                    sum.add(at + page as u64, &piece[page..run.end.min(page + PAGE)]);
                }
            }
            at += room as u64;
        }
    }
    Ok(sum)
}

/// Copies the pages that `process` has for itself, since it maps `memory_of` privately and has written to them, over
/// what is in `memory`.
///
/// # Errors
/// The process is gone or shows no such map, or what reading and writing say.
fn copy_private(process: i32, memory_of: &File, memory: &File, len: u64) -> io::Result<()> {
    let maps = std::fs::read_to_string(format!("/proc/{process}/maps"))?;
    let pages = File::open(format!("/proc/{process}/pagemap"))?;
    let space = File::open(format!("/proc/{process}/mem"))?;
    let mut piece = [0; PAGE];
    let mut found = 0;
    let seen = memory_of.metadata()?;
    for map in maps.lines().filter_map(|line| Map::parse(line, seen.dev(), seen.ino())) {
        found += map.end - map.begin;
        let count = usize::try_from((map.end - map.begin) / PAGE as u64).map_err(io::Error::other)?;
        let mut entries = vec![0; count * 8];
        pages.read_exact_at(&mut entries, map.begin / PAGE as u64 * 8)?;
        for (n, entry) in entries.chunks_exact(8).enumerate() {
            // Bits of /proc/PID/pagemap: 63 present, 62 swapped out, 61 a page of the file's own.
            let bits = entry[7] >> 5;
            if bits & 0b110 != 0 && bits & 1 == 0 {
                let at = (n * PAGE) as u64;
                space.read_exact_at(&mut piece, map.begin + at)?;
                memory.write_all_at(&piece, map.offset + at)?;
            }
        }
    }
    if found == len { Ok(()) } else { Err(io::Error::other("QEMU's map of the memory was not found")) }
}

/// A part of QEMU's private map of the memory.
struct Map {
    begin: u64,
    end: u64,
    offset: u64,
}

impl Map {
    /// Reads a line of `/proc/PID/maps`, if it is a private map of the file with this device and inode.
    fn parse(line: &str, device: u64, inode: u64) -> Option<Self> {
        let words: Vec<&str> = line.split_ascii_whitespace().take(5).collect();
        let [range, rights, offset, its_device, its_inode] = words[..] else { return None };
        let device = format!("{:02x}:{:02x}", rustix::fs::major(device), rustix::fs::minor(device));
        if !rights.ends_with('p') || its_device != device || its_inode.parse() != Ok(inode) {
            return None;
        }
        let hex = |text| u64::from_str_radix(text, 16).ok();
        let (begin, end) = range.split_once('-')?;
        Some(Self { begin: hex(begin)?, end: hex(end)?, offset: hex(offset)? })
    }
}

/// The number of bytes in a file.
pub(crate) fn length(file: impl AsFd) -> io::Result<u64> {
    let len = rustix::fs::fstat(file)?.st_size;
    Ok(u64::try_from(len).unwrap_or(0))
}

/// Where there is data at or behind `at`: from where to where.
fn next_data(file: &File, at: u64, len: u64) -> io::Result<Option<(u64, u64)>> {
    if at >= len {
        return Ok(None);
    }
    let begin = match rustix::fs::seek(file, SeekFrom::Data(at)) {
        Ok(begin) => begin,
        // Nothing but a hole is left.
        Err(rustix::io::Errno::NXIO) => return Ok(None),
        // A file system without holes.
        Err(rustix::io::Errno::INVAL) => return Ok(Some((at, len))),
        Err(error) => return Err(error.into()),
    };
    let end = rustix::fs::seek(file, SeekFrom::Hole(begin))?;
    Ok((begin < len).then_some((begin, end.min(len))))
}

/// The stretches of `piece` that have no page of zeros.
fn runs(piece: &[u8]) -> Vec<std::ops::Range<usize>> {
    let mut runs: Vec<std::ops::Range<usize>> = Vec::new();
    for (n, page) in piece.chunks(PAGE).enumerate() {
        let at = n * PAGE;
        if *page == ZEROS[..page.len()] {
            continue;
        }
        match runs.last_mut() {
            Some(run) if run.end == at => run.end = at + page.len(),
            _ => runs.push(at..at + page.len()),
        }
    }
    runs
}

impl Sum {
    /// Adds what is at `at`; in which order does not matter.
    pub(crate) fn add(&mut self, at: u64, page: &[u8]) {
        const ODD: u64 = 0x9e37_79b9_7f4a_7c15;
        let mut lanes = [at, 1, 2, 3];
        let mut mix = |lane: usize, word: u64| lanes[lane] = (lanes[lane].rotate_left(5) ^ word).wrapping_mul(ODD);
        let (words, rest) = page.as_chunks::<8>();
        for (n, word) in words.iter().enumerate() {
            mix(n % 4, u64::from_le_bytes(*word));
        }
        let mut last = [0; 8];
        last[..rest.len()].copy_from_slice(rest);
        mix(0, u64::from_le_bytes(last));
        let one = lanes.iter().fold(at, |one, lane| (one.rotate_left(17) ^ lane).wrapping_mul(ODD));
        self.0 = self.0.wrapping_add(one);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn temporary(len: u64) -> File {
        let file = tempfile::tempfile().expect("a file");
        file.set_len(len).expect("a length");
        file
    }

    #[test]
    fn a_copy_is_the_same_and_has_the_holes() {
        const LEN: u64 = 8 << 20;
        let from = temporary(LEN);
        for (at, byte) in [(0, 1), (4095, 2), (3 << 20, 3), (LEN - 1, 4)] {
            from.write_all_at(&[byte], at).expect("written");
        }
        let to = temporary(0);
        let sum = copy(&from, &to, LEN).expect("copied");
        let seen = to.metadata().expect("metadata");
        assert_eq!(seen.len(), LEN);
        assert!(seen.blocks() < 100, "{} blocks", seen.blocks());
        let mut bytes = [vec![0; LEN as usize], vec![0; LEN as usize]];
        from.read_exact_at(&mut bytes[0], 0).expect("read");
        to.read_exact_at(&mut bytes[1], 0).expect("read");
        assert!(bytes[0] == bytes[1]);
        assert_eq!(copy(&to, &temporary(0), LEN).expect("copied"), sum, "holes don't matter");
        to.write_all_at(&[9], 5000).expect("written");
        assert_ne!(copy(&to, &temporary(0), LEN).expect("copied"), sum);
        assert!(copy(&to, &temporary(0), LEN + 1).is_err(), "a file that is too short");
    }

    #[test]
    fn a_file_is_copied_unless_nobody_can_change_it() {
        let file = temporary(1 << 20);
        file.write_all_at(b"memory", 4096).expect("written");
        let (own, sum) = Memory::of_file(&file, 1 << 20).expect("taken in");
        assert!(sum.is_some() && matches!(own, Memory::Own(_)));
        own.file().write_all_at(b"x", 0).expect("the guest's");
        own.file().set_len(0).expect_err("as long as it is");
        rustix::fs::fcntl_add_seals(own.file(), SealFlags::WRITE).expect("sealed");
        let (template, sum) = Memory::of_file(own.file(), 1 << 20).expect("taken in");
        let inode = |memory: &Memory| memory.file().metadata().expect("metadata").ino();
        assert!(matches!(template, Memory::Template(_)));
        assert_eq!((inode(&template), sum), (inode(&own), None));
    }

    #[test]
    fn a_map_is_known_by_its_file_and_that_it_is_private() {
        let line = "7f0-7f8 rw-p 00001000 00:01 1035      /memfd:banger-ram (deleted)";
        let parse = |line: &str| Map::parse(line, rustix::fs::makedev(0, 1), 1035);
        let map = parse(line).expect("one");
        assert_eq!((map.begin, map.end, map.offset), (0x7f0, 0x7f8, 0x1000));
        let other = [("rw-p", "rw-s"), (" 1035 ", " 1036 "), ("00:01", "00:02"), ("7f0-7f8", "7f0"), (" 00:01", "")];
        for (from, to) in other {
            assert!(parse(&line.replace(from, to)).is_none(), "{to}");
        }
    }
}
