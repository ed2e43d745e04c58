//! The image as it is to be: what was changed comes out of the log, everything else out of the image, which is open for
//! reading alone.

use crate::refuse::{Refusal, Result};
use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use wire::worker::log::{self, Change, From, SECTOR};
use wire::worker::reply::Why;

/// An image and what is changed of it.
pub struct Overlay<'a> {
    image: &'a File,
    size: u64,
    log: &'a File,
    /// The most bytes that are logged.
    limit: u64,
    state: RefCell<State>,
    /// Whether what is equal to what is there need not be logged.
    sparing: Cell<bool>,
}

/// So many bytes of the log, the first ones, are kept in memory until it is complete: most logs have no more, and then
/// are written by one call.
const HEAD: usize = 1 << 20;

#[derive(Default)]
struct State {
    /// The log's first bytes, and how many there may be.
    head: Vec<u8>,
    most_here: usize,
    /// Where a run of changed bytes begins in the image. Runs don't overlap.
    runs: BTreeMap<u64, Run>,
    /// The end of the log.
    end: u64,
    /// What first went wrong below libext2fs, which tells it with less words.
    trouble: Option<Refusal>,
}

#[derive(Clone, Copy)]
struct Run {
    length: u64,
    from: From,
}

impl Run {
    /// What is left of it behind its first `skip` bytes.
    fn behind(self, skip: u64) -> Run {
        let from = match self.from {
            From::Log { at } => From::Log { at: at + skip },
            From::File { nth, at, fresh } => From::File { nth, at: at + skip, fresh },
        };
        Run { length: self.length - skip, from }
    }

    /// Whether `next`, which stands behind it in the image, goes on with what it takes its bytes from.
    fn goes_on_with(self, next: From) -> bool {
        self.behind(self.length).from == next
    }
}

impl<'a> Overlay<'a> {
    /// An image of `size` bytes, and an empty log that takes `limit` of them.
    pub fn new(image: &'a File, size: u64, log: &'a File, limit: u64) -> Overlay<'a> {
        let state = RefCell::new(State { most_here: HEAD, ..State::default() });
        Overlay { image, size, log, limit, state, sparing: Cell::new(false) }
    }

    /// The image's length in bytes.
    pub fn size(&self) -> u64 {
        self.size
    }

    /// From now on a write that changes nothing is not logged. It costs a read, so it is for the end, when libext2fs
    /// writes the bitmaps of all groups.
    pub fn spare_what_is_equal(&self) {
        self.sparing.set(true);
    }

    /// Reads into the whole buffer.
    ///
    /// # Errors
    /// `UnexpectedEof` beyond the image's end.
    pub fn read(&self, offset: u64, into: &mut [u8]) -> io::Result<()> {
        self.within(offset, into.len())?;
        let state = self.state.borrow();
        let mut done = 0;
        while done < into.len() {
            let at = offset + done as u64;
            let rest = into.len() - done;
            let (run, length) = state.part(at, rest);
            let into = &mut into[done..done + length];
            match run {
                Some(From::Log { at }) => state.read_log(self.log, into, at)?,
                // What a file has is never the file system's own, unless a block has two owners.
                Some(From::File { .. }) => return Err(io::ErrorKind::InvalidData.into()),
                None => self.image.read_exact_at(into, at)?,
            }
            done += length;
        }
        Ok(())
    }

    /// Puts bytes at a place of the image.
    ///
    /// # Errors
    /// Where it is outside of the image, or the log is full or can't be written.
    pub fn write(&self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        let answer = self.put(offset, bytes);
        if let Err(error) = &answer {
            self.trouble(match error.kind() {
                io::ErrorKind::StorageFull if error.raw_os_error().is_some() => {
                    Refusal::new(Why::Failed, "the helper's own directory (lib_dir) has no room for the changes")
                }
                io::ErrorKind::StorageFull => Refusal::new(Why::TooLarge, error.to_string()),
                io::ErrorKind::UnexpectedEof => {
                    Refusal::new(Why::Damaged, "the image has blocks behind its end: run fsck on it")
                }
                io::ErrorKind::InvalidData => {
                    Refusal::new(Why::Damaged, "the image has blocks with two uses: run fsck on it")
                }
                _ => Refusal::new(Why::Failed, format!("the changes could not be logged: {error}")),
            });
        }
        answer
    }

    fn put(&self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        self.within(offset, bytes.len())?;
        if !offset.is_multiple_of(SECTOR) || !(bytes.len() as u64).is_multiple_of(SECTOR) {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        if self.sparing.get() {
            let mut there = vec![0; bytes.len()];
            self.read(offset, &mut there)?;
            if there == bytes {
                return Ok(());
            }
        }
        let mut state = self.state.borrow_mut();
        let mut done = 0;
        while done < bytes.len() {
            let at = offset + done as u64;
            let (run, length) = state.part(at, bytes.len() - done);
            let piece = &bytes[done..done + length];
            if let Some(From::Log { at }) = run {
                state.write_log(self.log, piece, at)?;
            } else {
                if state.end + length as u64 > self.limit {
                    return Err(io::Error::new(
                        io::ErrorKind::StorageFull,
                        format!("more than {} MiB would be changed", self.limit >> 20),
                    ));
                }
                let end = state.end;
                state.write_log(self.log, piece, end)?;
                state.put(at, Run { length: length as u64, from: From::Log { at: end } });
                state.end += length as u64;
            }
            done += length;
        }
        Ok(())
    }

    /// Puts bytes of a file of the request's, from its byte `at` on, at a place of the image. They are `fresh` where
    /// nothing that counts stands there in the image as it is.
    ///
    /// # Errors
    /// `UnexpectedEof` beyond the image's end.
    pub fn put_file(&self, offset: u64, length: u64, nth: u32, at: u64, fresh: bool) -> io::Result<()> {
        self.within(offset, usize::try_from(length).map_err(io::Error::other)?)?;
        self.state.borrow_mut().put(offset, Run { length, from: From::File { nth, at, fresh } });
        Ok(())
    }

    /// Whether nothing is changed yet.
    pub fn is_untouched(&self) -> bool {
        self.state.borrow().runs.is_empty()
    }

    fn within(&self, offset: u64, length: usize) -> io::Result<()> {
        match offset.checked_add(length as u64) {
            Some(end) if end <= self.size => Ok(()),
            _ => Err(io::ErrorKind::UnexpectedEof.into()),
        }
    }

    /// Keeps the first thing that went wrong.
    pub fn trouble(&self, refusal: Refusal) {
        self.state.borrow_mut().trouble.get_or_insert(refusal);
    }

    /// The first thing that went wrong, if anything did.
    pub fn take_trouble(&self) -> Option<Refusal> {
        self.state.borrow_mut().trouble.take()
    }

    /// Completes the log. Returns its length and the number of changes; both are 0 where there are none.
    ///
    /// # Errors
    /// Where something went wrong before, or the log can't be written.
    pub fn finish(&self) -> Result<(u64, u32)> {
        if let Some(refusal) = self.take_trouble() {
            return Err(refusal);
        }
        let state = self.state.borrow();
        if state.runs.is_empty() {
            return Ok((0, 0));
        }
        let change = |(offset, run): (&u64, &Run)| Change { offset: *offset, length: run.length, from: run.from };
        let changes: Vec<Change> = state.runs.iter().map(change).collect();
        let end = log::finish(&changes, state.end, self.size).ok_or_else(|| {
            Refusal::new(Why::TooLarge, format!("{} changes are more than a log holds", changes.len()))
        })?;
        // In one call, where all of it is here.
        let written = if state.head.len() as u64 == state.end {
            self.log.write_all_at(&[&state.head[..], &end].concat(), 0)
        } else {
            self.log.write_all_at(&state.head, 0).and_then(|()| self.log.write_all_at(&end, state.end))
        };
        written.map_err(|error| Refusal::new(Why::Failed, format!("the changes could not be logged: {error}")))?;
        let count = u32::try_from(changes.len()).unwrap_or(u32::MAX);
        Ok((state.end + end.len() as u64, count))
    }
}

impl State {
    /// Puts bytes into the log, over some that are there or behind the last.
    fn write_log(&mut self, log: &File, bytes: &[u8], at: u64) -> io::Result<()> {
        let start = usize::try_from(at).unwrap_or(usize::MAX);
        let end = start.saturating_add(bytes.len());
        if at == self.end && start == self.head.len() && end <= self.most_here {
            self.head.extend(bytes);
            return Ok(());
        }
        // A run may begin in memory and end in the file.
        let here = self.head.len().saturating_sub(start).min(bytes.len());
        let (head, rest) = bytes.split_at(here);
        if here > 0 {
            self.head[start..start + here].copy_from_slice(head);
        }
        if rest.is_empty() { Ok(()) } else { log.write_all_at(rest, at + here as u64) }
    }

    fn read_log(&self, log: &File, into: &mut [u8], at: u64) -> io::Result<()> {
        let start = usize::try_from(at).unwrap_or(usize::MAX);
        let here = self.head.len().saturating_sub(start).min(into.len());
        let (head, rest) = into.split_at_mut(here);
        if here > 0 {
            head.copy_from_slice(&self.head[start..start + here]);
        }
        if rest.is_empty() { Ok(()) } else { log.read_exact_at(rest, at + here as u64) }
    }

    /// How many of the next `most` bytes lie together, and where they are if they were changed.
    fn part(&self, at: u64, most: usize) -> (Option<From>, usize) {
        let cut = |end: u64| usize::try_from(end - at).unwrap_or(most).min(most);
        if let Some((start, run)) = self.runs.range(..=at).next_back()
            && at < start + run.length
        {
            return (Some(run.behind(at - start).from), cut(start + run.length));
        }
        match self.runs.range(at..).next() {
            Some((start, _)) => (None, cut(*start)),
            None => (None, most),
        }
    }

    /// Puts a run in its place. What of others is there goes.
    fn put(&mut self, offset: u64, new: Run) {
        let end = offset + new.length;
        let overlapping = |(start, run): &(&u64, &Run)| *start + run.length > offset;
        let others: Vec<(u64, Run)> =
            self.runs.range(..end).rev().take_while(overlapping).map(|(start, run)| (*start, *run)).collect();
        for (start, run) in others {
            self.runs.remove(&start);
            if start < offset {
                self.runs.insert(start, Run { length: offset - start, ..run });
            }
            if start + run.length > end {
                self.runs.insert(end, run.behind(end - start));
            }
        }
        if let Some((start, run)) = self.runs.range_mut(..offset).next_back()
            && start + run.length == offset
            && run.goes_on_with(new.from)
        {
            run.length += new.length;
            return;
        }
        self.runs.insert(offset, new);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn files(image: &[u8]) -> (File, File) {
        let (from, log) = (tempfile::tempfile().unwrap(), tempfile::tempfile().unwrap());
        from.write_all_at(image, 0).unwrap();
        (from, log)
    }

    /// The image with the log's changes put in, by the reader that the helper has.
    fn applied(image: &[u8], log: &File, length: u64, files: &[Vec<u8>]) -> Vec<u8> {
        let mut bytes = image.to_vec();
        let mut end = [0; log::TRAILER];
        log.read_exact_at(&mut end, length - log::TRAILER as u64).unwrap();
        let trailer = log::Trailer::decode(&end, length, image.len() as u64).unwrap();
        let mut index = vec![0; trailer.index_length()];
        log.read_exact_at(&mut index, trailer.index_at()).unwrap();
        let lengths: Vec<u64> = files.iter().map(|file| file.len() as u64).collect();
        for change in trailer.changes(&index, &lengths).unwrap() {
            let to = &mut bytes[change.offset as usize..][..change.length as usize];
            match change.from {
                From::Log { at } => log.read_exact_at(to, at).unwrap(),
                From::File { nth, at, .. } => to.copy_from_slice(&files[nth as usize][at as usize..][..to.len()]),
            }
        }
        bytes
    }

    proptest! {
        #[test]
        fn it_reads_what_was_written_and_the_log_makes_the_image_so(
            writes in proptest::collection::vec((0_usize..16, 1_usize..6, 1_u8.., any::<bool>()), 0..30),
            sparing in any::<bool>(),
            head in 0_usize..20,
        ) {
            const UNIT: usize = SECTOR as usize;
            let image = vec![0_u8; 20 * UNIT];
            let file: Vec<u8> = (0..20 * UNIT).map(|at| (at / UNIT) as u8 | 0x80).collect();
            let (from, log) = files(&image);
            let overlay = Overlay::new(&from, image.len() as u64, &log, 1 << 20);
            if sparing {
                overlay.spare_what_is_equal();
            }
            overlay.state.borrow_mut().most_here = head * UNIT;
            let (mut model, mut a_files) = (image.clone(), [false; 20]);
            for (at, length, byte, of_file) in writes {
                let length = length.min(20 - at);
                let place = at * UNIT..(at + length) * UNIT;
                if of_file {
                    let (offset, length, from) = (place.start as u64, place.len() as u64, usize::from(byte) % 10 * UNIT);
                    overlay.put_file(offset, length, 0, from as u64, byte > 9).unwrap();
                    model[place.clone()].copy_from_slice(&file[from..][..place.len()]);
                } else {
                    model[place.clone()].fill(byte);
                    match overlay.write(place.start as u64, &vec![byte; place.len()]) {
                        Ok(()) => {}
                        // It can't be compared with a file's.
                        Err(_) if sparing && a_files[at..at + length].contains(&true) => return Ok(()),
                        Err(error) => panic!("{error}"),
                    }
                }
                a_files[at..at + length].fill(of_file);
                for (unit, a_files) in a_files.iter().enumerate() {
                    let mut now = vec![9; UNIT];
                    match overlay.read((unit * UNIT) as u64, &mut now) {
                        Ok(()) => prop_assert!(!a_files && now == model[unit * UNIT..][..UNIT]),
                        Err(_) => prop_assert!(a_files),
                    }
                }
            }
            match overlay.finish().unwrap() {
                (0, 0) => prop_assert!(model == image),
                (length, _) => prop_assert!(applied(&image, &log, length, &[file]) == model),
            }
        }
    }

    #[test]
    fn it_ends_where_the_image_ends_and_the_log_is_full() {
        let (image, log) = files(&[0; 4096]);
        let overlay = Overlay::new(&image, 4096, &log, 1024);
        assert!(overlay.read(4095, &mut [0; 2]).is_err());
        assert!(overlay.read(u64::MAX, &mut [0; 2]).is_err());
        overlay.write(0, &[1; 1024]).unwrap();
        overlay.write(512, &[2; 512]).unwrap();
        assert_eq!(overlay.write(2048, &[1; 512]).unwrap_err().kind(), io::ErrorKind::StorageFull);
        assert_eq!(overlay.finish().unwrap_err().why, Why::TooLarge);
        let overlay = Overlay::new(&image, 4096, &log, 1 << 20);
        assert!(overlay.write(4096 - 512, &[1; 1024]).is_err());
        assert!(overlay.write(1, &[1; 512]).is_err());
    }

    #[test]
    fn nothing_changed_is_no_log() {
        let (image, log) = files(&[7; 4096]);
        let overlay = Overlay::new(&image, 4096, &log, 1 << 20);
        overlay.spare_what_is_equal();
        overlay.write(1024, &[7; 1024]).unwrap();
        assert_eq!(overlay.finish(), Ok((0, 0)));
    }
}
