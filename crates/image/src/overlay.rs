//! The image as it is to be: what was changed comes out of the log, everything else out of the image, which is open for
//! reading alone.

use crate::refuse::{Refusal, Result};
use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use wire::worker::log::{self, SECTOR};
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

#[derive(Default)]
struct State {
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
    /// Where it lies in the log.
    at: u64,
}

impl<'a> Overlay<'a> {
    /// An image of `size` bytes, and an empty log that takes `limit` of them.
    pub fn new(image: &'a File, size: u64, log: &'a File, limit: u64) -> Overlay<'a> {
        Overlay { image, size, log, limit, state: RefCell::default(), sparing: Cell::new(false) }
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
                Some(position) => self.log.read_exact_at(into, position),
                None => self.image.read_exact_at(into, at),
            }?;
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
            let position = run.unwrap_or(state.end);
            if run.is_none() && state.end + length as u64 > self.limit {
                return Err(io::Error::new(
                    io::ErrorKind::StorageFull,
                    format!("more than {} MiB would be changed", self.limit >> 20),
                ));
            }
            self.log.write_all_at(&bytes[done..done + length], position)?;
            if run.is_none() {
                state.append(at, length as u64);
            }
            done += length;
        }
        Ok(())
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
        let mut changes: Vec<(u64, u64, u64)> =
            state.runs.iter().map(|(offset, run)| (run.at, *offset, run.length)).collect();
        changes.sort_unstable();
        let changes: Vec<(u64, u64)> = changes.into_iter().map(|(_, offset, length)| (offset, length)).collect();
        let end = log::finish(&changes, self.size).ok_or_else(|| {
            Refusal::new(Why::TooLarge, format!("{} changes are more than a log holds", changes.len()))
        })?;
        self.log
            .write_all_at(&end, state.end)
            .map_err(|error| Refusal::new(Why::Failed, format!("the changes could not be logged: {error}")))?;
        let count = u32::try_from(changes.len()).unwrap_or(u32::MAX);
        Ok((state.end + end.len() as u64, count))
    }
}

impl State {
    /// How many of the next `most` bytes lie together, and where in the log if they were changed.
    fn part(&self, at: u64, most: usize) -> (Option<u64>, usize) {
        let cut = |end: u64| usize::try_from(end - at).unwrap_or(most).min(most);
        if let Some((start, run)) = self.runs.range(..=at).next_back()
            && at < start + run.length
        {
            return (Some(run.at + (at - start)), cut(start + run.length));
        }
        match self.runs.range(at..).next() {
            Some((start, _)) => (None, cut(*start)),
            None => (None, most),
        }
    }

    /// Bytes that were put at the end of the log.
    fn append(&mut self, offset: u64, length: u64) {
        let end = self.end;
        self.end += length;
        if let Some((start, run)) = self.runs.range_mut(..offset).next_back()
            && start + run.length == offset
            && run.at + run.length == end
        {
            run.length += length;
            return;
        }
        self.runs.insert(offset, Run { length, at: end });
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
    fn applied(image: &[u8], log: &File, length: u64) -> Vec<u8> {
        let mut bytes = image.to_vec();
        let mut end = [0; log::TRAILER];
        log.read_exact_at(&mut end, length - log::TRAILER as u64).unwrap();
        let trailer = log::Trailer::decode(&end, length, image.len() as u64).unwrap();
        let mut index = vec![0; trailer.index_length()];
        log.read_exact_at(&mut index, trailer.index_at()).unwrap();
        for change in trailer.changes(&index).unwrap() {
            let to = &mut bytes[change.offset as usize..][..change.length as usize];
            log.read_exact_at(to, change.at).unwrap();
        }
        bytes
    }

    proptest! {
        #[test]
        fn it_reads_what_was_written_and_the_log_makes_the_image_so(
            writes in proptest::collection::vec((0_usize..16, 1_usize..6, 1_u8..), 0..30),
            sparing in any::<bool>(),
        ) {
            const UNIT: usize = SECTOR as usize;
            let image = vec![0_u8; 20 * UNIT];
            let (from, log) = files(&image);
            let overlay = Overlay::new(&from, image.len() as u64, &log, 1 << 20);
            if sparing {
                overlay.spare_what_is_equal();
            }
            let mut model = image.clone();
            for (at, length, byte) in writes {
                let length = length.min(20 - at);
                model[at * UNIT..(at + length) * UNIT].fill(byte);
                overlay.write((at * UNIT) as u64, &vec![byte; length * UNIT]).unwrap();
                let mut now = vec![9; model.len()];
                overlay.read(0, &mut now).unwrap();
                prop_assert!(now == model);
            }
            match overlay.finish().unwrap() {
                (0, 0) => prop_assert!(model == image),
                (length, _) => prop_assert!(applied(&image, &log, length) == model),
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
