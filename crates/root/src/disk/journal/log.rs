//! A log's bytes: what a worker proposes, and what is made of it that needs the request no more.

use super::no_log;
use super::proposal::{Proposal, bytes_of};
use super::seal::Body;
use crate::fail::Fail;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use wire::image::NewFile;
use wire::worker::Malformed;
use wire::worker::log::{Change, From, TRAILER, Trailer, crc32c, finish};

/// Bytes that are copied at once.
const PIECE: usize = 128 << 10;

/// A log that is being written, or that counts already.
pub(in crate::disk) struct Log {
    /// Open for reading and writing. A worker writes its own.
    pub(in crate::disk) file: File,
    /// Where its first byte is.
    pub(super) begin: u64,
}

impl Log {
    /// What is proposed to change in an image of `size` bytes; `log` is the log's length.
    pub(in crate::disk) fn proposal(&self, log: u64, size: u64, files: &[NewFile]) -> Result<Proposal, Fail> {
        let read = |at: u64, length: usize| -> Result<Vec<u8>, String> {
            let mut bytes = vec![0; length];
            self.file.read_exact_at(&mut bytes, self.begin + at).map_err(|error| error.to_string())?;
            Ok(bytes)
        };
        let bad = |malformed: Malformed| malformed.to_string();
        let proposal = || -> Result<Proposal, String> {
            let start = log.checked_sub(TRAILER as u64).ok_or("shorter than a trailer")?;
            let trailer: [u8; TRAILER] = read(start, TRAILER)?.try_into().map_err(|_| "short read")?;
            let trailer = Trailer::decode(&trailer, log, size).map_err(bad)?;
            let lengths: Vec<u64> = files.iter().map(|file| file.data.len() as u64).collect();
            let changes = trailer.changes(&read(trailer.index_at(), trailer.index_length())?, &lengths).map_err(bad)?;
            Ok(Proposal { changes })
        };
        proposal().map_err(|cause| Fail::new("the log of changes is none").because(cause))
    }

    /// The size of the image that the changes are for, as the log says. `log` is its length.
    pub(super) fn image_size(&self, log: u64) -> Result<u64, Fail> {
        let mut trailer = [0; TRAILER];
        let start = log.checked_sub(TRAILER as u64).ok_or_else(|| no_log(&"shorter than a trailer"))?;
        self.file.read_exact_at(&mut trailer, self.begin + start).map_err(|error| no_log(&error))?;
        Ok(Trailer::image(&trailer))
    }

    /// Puts changes into `image`.
    pub(in crate::disk) fn put_into(&self, image: &File, changes: &[Change], files: &[NewFile]) -> io::Result<()> {
        let logged = changes.iter().filter(|change| matches!(change.from, From::Log { .. }));
        let largest = logged.map(|change| change.length).max().unwrap_or(0);
        // Most writes change some blocks, and to make room for more takes longer than to copy them.
        let mut piece = vec![0; usize::try_from(largest).unwrap_or(PIECE).min(PIECE)];
        for change in changes {
            let at = match change.from {
                From::Log { at } => self.begin + at,
                From::File { nth, at, .. } => {
                    let [bytes, zeros] = bytes_of(files.get(nth as usize), at, change.length)?;
                    image.write_all_at(bytes, change.offset)?;
                    image.write_all_at(zeros, change.offset + bytes.len() as u64)?;
                    continue;
                }
            };
            let mut done = 0;
            while done < change.length {
                let length = usize::try_from(change.length - done).unwrap_or(PIECE).min(PIECE);
                self.file.read_exact_at(&mut piece[..length], at + done)?;
                image.write_all_at(&piece[..length], change.offset + done)?;
                done += length as u64;
            }
        }
        Ok(())
    }

    /// Makes this a log of these changes, of an image of `size` bytes, that needs neither the worker's log nor the
    /// request: all bytes, one change's behind the other's, index, trailer. Returns the changes as they are here.
    pub(super) fn complete(
        &self,
        written: &Log,
        mut changes: Vec<Change>,
        files: &[NewFile],
        size: u64,
    ) -> Result<(Vec<Change>, Body), Fail> {
        let failed = |error: io::Error| match error.raw_os_error() {
            Some(libc::ENOSPC | libc::EDQUOT) => {
                Fail::new("the helper's own directory (lib_dir) has no room for the changes").because(error)
            }
            _ => no_log(&error),
        };
        let mut sink = Sink { log: self, buffer: Vec::new(), length: 0, sum: !0 };
        for change in &mut changes {
            let at = sink.length + sink.buffer.len() as u64;
            match change.from {
                From::Log { at } => sink.copy(written, at, change.length),
                From::File { nth, at, .. } => bytes_of(files.get(nth as usize), at, change.length)
                    .and_then(|parts| parts.into_iter().try_for_each(|bytes| sink.take(bytes))),
            }
            .map_err(failed)?;
            change.from = From::Log { at };
        }
        // What stands together in the log and in the image is put there at once.
        changes.dedup_by(|next, last| {
            let (From::Log { at: next_at }, From::Log { at }) = (next.from, last.from) else { return false };
            let meets = (last.offset + last.length, at + last.length) == (next.offset, next_at);
            last.length += if meets { next.length } else { 0 };
            meets
        });
        let too_much = || Fail::new("the write changes more of the image than is taken at once");
        let data = sink.length + sink.buffer.len() as u64;
        sink.take(&finish(&changes, data, size).ok_or_else(too_much)?).map_err(failed)?;
        sink.flush().map_err(failed)?;
        Ok((changes, Body { length: sink.length, sum: sink.sum }))
    }
}

/// Takes a log's bytes one after the other, by few calls, and sums them.
struct Sink<'a> {
    log: &'a Log,
    buffer: Vec<u8>,
    /// What is written: how much, its checksum.
    length: u64,
    sum: u32,
}

impl Sink<'_> {
    fn take(&mut self, mut bytes: &[u8]) -> io::Result<()> {
        while !bytes.is_empty() {
            let (now, rest) = bytes.split_at(self.room(bytes.len())?);
            self.buffer.extend(now);
            bytes = rest;
        }
        Ok(())
    }

    fn copy(&mut self, from: &Log, at: u64, length: u64) -> io::Result<()> {
        let mut done = 0;
        while done < length {
            let now = self.room(usize::try_from(length - done).unwrap_or(PIECE))?;
            let start = self.buffer.len();
            self.buffer.resize(start + now, 0);
            from.file.read_exact_at(&mut self.buffer[start..], from.begin + at + done)?;
            done += now as u64;
        }
        Ok(())
    }

    /// How many of the next `most` bytes the buffer takes; at least one of them.
    fn room(&mut self, most: usize) -> io::Result<usize> {
        if self.buffer.len() >= PIECE {
            self.flush()?;
        }
        Ok(most.min(PIECE - self.buffer.len()))
    }

    fn flush(&mut self) -> io::Result<()> {
        self.log.file.write_all_at(&self.buffer, self.log.begin + self.length)?;
        self.sum = crc32c(self.sum, &self.buffer);
        self.length += self.buffer.len() as u64;
        self.buffer.clear();
        Ok(())
    }
}
