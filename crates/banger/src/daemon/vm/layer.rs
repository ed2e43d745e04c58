//! The layer of a VM that was restored, made a disk of its own: what it holds, over a copy of what it lay on.
//!
//! A guest may have taken its VMM over, and that VMM wrote the layer. So it is read as a stranger's, in a few lines that
//! can do nothing else: each place is below the file's end and named once, which bounds reads, time and what is written; a
//! name in it is never looked at. What lies below is said by the caller.

use super::disk;
use crate::image::store::sync;
use rustix::fs::{FallocateFlags, OFlags};
use rustix::io::Errno;
use std::ffi::OsString;
use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use wire::qcow2::{self, BY_ENTRY, Bad, CLUSTER, Entry};

/// The longest layer: places that are taken are remembered, a bit each, in 16 MiB at most. One that is twice as long as
/// its disk has lost clusters again and again, or was not written by a VMM in its senses.
const MOST: u64 = 2 * qcow2::MOST;

/// What is not as below, in order; all of it within the disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Piece {
    /// Zeros.
    Zeros {
        /// Where on the disk.
        at: u64,
        /// Bytes, of one cluster at most.
        length: u64,
    },
    /// What the layer has there.
    Data {
        /// Where in the layer.
        from: u64,
        /// Where on the disk.
        at: u64,
        /// Bytes, of one cluster at most.
        length: u64,
    },
}

/// Makes `to`, a raw disk, of a layer and the raw disk that it lay on; how that one was copied. Nobody may write to either.
/// `to` is whole or not there (or what it was before): until this has come back, the layer is the truth.
///
/// # Errors
/// The layer is not one, before anything is made; or a file's. Then nothing is left, but what a kill leaves: `to` with
/// `.part` behind, which goes at the next try.
pub fn flatten(layer: &Path, base: &Path, to: &Path) -> io::Result<&'static str> {
    let flags = OFlags::NOFOLLOW | OFlags::NONBLOCK;
    let layer = OpenOptions::new().read(true).custom_flags(flags.bits().cast_signed()).open(layer)?;
    if !layer.metadata()?.is_file() {
        return Err(wrong(Bad::Header));
    }
    each(&layer, fs::metadata(base)?.len(), |_| Ok(()))?;
    let part = part(to);
    remove(&part)?;
    let made = make(&layer, base, &part).and_then(|how| fs::rename(&part, to).map(|()| how));
    let how = made.inspect_err(|_| drop(remove(&part)))?;
    let dir = to.parent().filter(|dir| !dir.as_os_str().is_empty()).unwrap_or(Path::new("."));
    sync(dir)?;
    Ok(how)
}

/// Where it is while it is made.
fn part(to: &Path) -> PathBuf {
    let mut name: OsString = to.into();
    name.push(".part");
    name.into()
}

fn remove(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

fn make(layer: &File, base: &Path, part: &Path) -> io::Result<&'static str> {
    let how = disk::copy(base, part)?;
    let disk = OpenOptions::new().write(true).open(part)?;
    let mut bytes = vec![0; CLUSTER as usize];
    each(layer, disk.metadata()?.len(), |piece| match piece {
        Piece::Zeros { at, length } => clear(&disk, at, length),
        Piece::Data { from, at, length } => {
            let bytes = &mut bytes[..length as usize];
            read(layer, from, bytes)?;
            disk.write_all_at(bytes, at)
        }
    })?;
    disk.sync_all()?;
    Ok(how)
}

/// Makes a hole, or zeros where the file system has no holes.
fn clear(disk: &File, at: u64, length: u64) -> io::Result<()> {
    match rustix::fs::fallocate(disk, FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE, at, length) {
        Err(Errno::OPNOTSUPP) => disk.write_all_at(&vec![0; length as usize], at),
        done => Ok(done?),
    }
}

fn each(layer: &File, size: u64, act: impl FnMut(Piece) -> io::Result<()>) -> io::Result<()> {
    pieces(size, layer.metadata()?.len(), |at, bytes| layer.read_exact_at(bytes, at), act)
}

/// Reads a cluster; what is behind the file's end is zeros, as it was for the guest.
fn read(layer: &File, from: u64, bytes: &mut [u8]) -> io::Result<()> {
    let mut done = 0;
    while done < bytes.len() {
        match layer.read_at(&mut bytes[done..], from + done as u64) {
            Ok(0) => break,
            Ok(more) => done += more,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    bytes[done..].fill(0);
    Ok(())
}

/// What a layer of `length` bytes, read by `read`, has of a disk of `size` bytes. It reads the header and the tables, each
/// once, and nothing behind the layer's end.
///
/// # Errors
/// `InvalidData` with what is wrong with the layer; what `read` and `act` fail with.
pub fn pieces(
    size: u64,
    length: u64,
    mut read: impl FnMut(u64, &mut [u8]) -> io::Result<()>,
    mut act: impl FnMut(Piece) -> io::Result<()>,
) -> io::Result<()> {
    if size > qcow2::MOST || !size.is_multiple_of(qcow2::SECTOR) || length > MOST {
        return Err(wrong(Bad::Size));
    }
    if length < CLUSTER {
        return Err(wrong(Bad::Header));
    }
    let mut taken = Taken::of(length);
    let mut header = [0; qcow2::HEADER];
    read(taken.take(0)?, &mut header)?;
    let outer_at = taken.take(qcow2::table(&header, size).map_err(wrong)?)?;
    let mut outer = vec![0; size.div_ceil(BY_ENTRY) as usize * 8];
    let mut inner = vec![0; CLUSTER as usize];
    read(outer_at, &mut outer)?;
    for (entry, begin) in entries(&outer).zip((0..size).step_by(BY_ENTRY as usize)) {
        let Some(inner_at) = qcow2::outer(entry).map_err(wrong)? else { continue };
        read(taken.take(inner_at)?, &mut inner)?;
        for (entry, at) in entries(&inner).zip((begin..size).step_by(CLUSTER as usize)) {
            let length = CLUSTER.min(size - at);
            match qcow2::inner(entry).map_err(wrong)? {
                Entry::Below => {}
                Entry::Zeros => act(Piece::Zeros { at, length })?,
                Entry::At(from) => act(Piece::Data { from: taken.take(from)?, at, length })?,
            }
        }
    }
    Ok(())
}

fn entries(table: &[u8]) -> impl Iterator<Item = u64> {
    table.as_chunks().0.iter().map(|bytes| u64::from_be_bytes(*bytes))
}

/// Which clusters of a layer have been named: none is named twice, so what a layer makes is no more than it has.
struct Taken {
    clusters: u64,
    bits: Vec<u64>,
}

impl Taken {
    fn of(length: u64) -> Taken {
        let clusters = length.div_ceil(CLUSTER);
        Taken { clusters, bits: vec![0; clusters.div_ceil(64) as usize] }
    }

    /// The place, if a cluster is there that was not named before.
    fn take(&mut self, at: u64) -> io::Result<u64> {
        let cluster = at / CLUSTER;
        if !at.is_multiple_of(CLUSTER) || cluster >= self.clusters {
            return Err(wrong(Bad::Place));
        }
        let (bits, bit) = (&mut self.bits[(cluster / 64) as usize], 1 << (cluster % 64));
        if *bits & bit != 0 {
            return Err(wrong(Bad::Overlap));
        }
        *bits |= bit;
        Ok(at)
    }
}

fn wrong(bad: Bad) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, bad)
}

#[cfg(test)]
mod tests;
