//! When a console's bytes came. Beside `console.log` lies `console.times`: 16 bytes for each time that the console was seen
//! to have grown, its length and when it was last written, little-endian, a length in bytes and milliseconds since 1970.
//!
//! A console is looked at when the kernel says that it was written, at most every [`REST`]. Records are only ever appended;
//! where there are too many, every second of the older ones goes. A record counts where it is later and longer than the one
//! before, so a file that was cut off in the middle of either is read as far as it makes sense.

use crate::daemon::log;
use rustix::fs::inotify::{self, CreateFlags, ReadFlags, Reader, WatchFlags};
use rustix::io::Errno;
use std::collections::{BTreeSet, HashMap};
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::mem::MaybeUninit;
use std::os::fd::OwnedFd;
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

/// A console that is written without a pause is looked at so often.
const REST: Duration = Duration::from_millis(50);
/// Bytes of a record.
const RECORD: usize = 16;
/// The most records of a console: 64 KiB of them.
const MOST: usize = 4096;
/// So many of the latest stay, where others go.
const LATEST: usize = 1024;

/// All consoles that are watched.
pub struct Stamps {
    inotify: Option<OwnedFd>,
    consoles: Mutex<HashMap<i32, PathBuf>>,
}

/// A console's length in bytes, and when it was so long, in milliseconds since 1970.
type Record = (u64, u64);

impl Stamps {
    /// Watches nothing yet; its thread lasts as long as the daemon. Where the kernel has nothing to watch with, lines of
    /// consoles have no times, and all else works.
    pub fn begin() -> Arc<Stamps> {
        let inotify = inotify::init(CreateFlags::CLOEXEC);
        if let Err(errno) = &inotify {
            log::say("WARN", &format!("consoles' lines will have no times: {errno}"), "");
        }
        let stamps = Arc::new(Stamps { inotify: inotify.ok(), consoles: Mutex::default() });
        let watching = Arc::clone(&stamps);
        if let Err(error) = std::thread::Builder::new().name("stamps".into()).spawn(move || watching.watch()) {
            log::say("WARN", &format!("consoles' lines will have no times: {error}"), "");
        }
        stamps
    }

    /// Watches a console from now on; one that is watched already stays so.
    pub fn add(&self, console: &Path) {
        let Some(inotify) = &self.inotify else { return };
        let made = OpenOptions::new().append(true).create(true).mode(0o600).open(times(console));
        if made.is_ok()
            && let Ok(watch) = inotify::add_watch(inotify, console, WatchFlags::MODIFY)
        {
            self.consoles.lock().unwrap_or_else(PoisonError::into_inner).insert(watch, console.to_owned());
            let _ = stamp(console);
        }
    }

    fn watch(&self) {
        let Some(inotify) = &self.inotify else { return };
        let mut buffer = [MaybeUninit::uninit(); 4096];
        let mut reader = Reader::new(inotify, &mut buffer);
        loop {
            let mut written = BTreeSet::new();
            // The first is waited for; what came with it is there already.
            while written.is_empty() || !reader.is_buffer_empty() {
                match reader.next() {
                    Ok(event) if event.events().contains(ReadFlags::IGNORED) => {
                        self.consoles.lock().unwrap_or_else(PoisonError::into_inner).remove(&event.wd());
                    }
                    Ok(event) => drop(written.insert(event.wd())),
                    Err(Errno::INTR) => {}
                    Err(_) => return,
                }
            }
            for watch in written {
                let console = self.consoles.lock().unwrap_or_else(PoisonError::into_inner).get(&watch).cloned();
                // One that can't be written, on a full disk say, is written the next time.
                let _ = console.map(|console| stamp(&console));
            }
            std::thread::sleep(REST);
        }
    }
}

fn times(console: &Path) -> PathBuf {
    console.with_extension("times")
}

/// Writes down how long the console is. The file of times is never made here: its VM may be about to go.
fn stamp(console: &Path) -> io::Result<()> {
    let facts = fs::metadata(console)?;
    let mut file = OpenOptions::new().read(true).append(true).open(times(console))?;
    let records = records(&file)?;
    let last = records.last().copied().unwrap_or_default();
    if facts.len() < last.0 {
        // Another console, that has begun anew.
        file.set_len(0)?;
    } else if facts.len() == last.0 {
        return Ok(());
    }
    let seconds = u64::try_from(facts.mtime()).unwrap_or(0);
    let written = seconds * 1000 + u64::try_from(facts.mtime_nsec()).unwrap_or(0) / 1_000_000;
    // A clock that was set back makes no byte older than those before.
    let record = bytes((facts.len(), if facts.len() < last.0 { written } else { written.max(last.1) }));
    if records.len() < MOST {
        let whole = file.metadata()?.len() / RECORD as u64 * RECORD as u64;
        file.set_len(whole)?;
        return file.write_all(&record);
    }
    let older = records[..MOST - LATEST].iter().step_by(2);
    let mut kept: Vec<u8> = older.chain(&records[MOST - LATEST..]).flat_map(|record| bytes(*record)).collect();
    kept.extend(record);
    // Not appended: what is written over stays in order whenever it ends, and what is behind no longer counts.
    let file = OpenOptions::new().write(true).open(times(console))?;
    file.write_all_at(&kept, 0)?;
    file.set_len(kept.len() as u64)
}

fn bytes((length, time): Record) -> [u8; RECORD] {
    let mut out = [0; RECORD];
    out[..8].copy_from_slice(&length.to_le_bytes());
    out[8..].copy_from_slice(&time.to_le_bytes());
    out
}

/// When that console had grown to which length, the earliest first; none where nobody knows.
pub(crate) fn read(console: &Path) -> Vec<Record> {
    File::open(times(console)).and_then(|file| records(&file)).unwrap_or_default()
}

fn records(file: &File) -> io::Result<Vec<Record>> {
    let mut bytes = Vec::new();
    file.take(2 * (MOST * RECORD) as u64).read_to_end(&mut bytes)?;
    let number = |bytes: &[u8]| bytes.try_into().map_or(0, u64::from_le_bytes);
    let mut records: Vec<Record> = Vec::new();
    for (length, time) in bytes.chunks_exact(RECORD).map(|one| (number(&one[..8]), number(&one[8..]))) {
        let (before, earlier) = records.last().copied().unwrap_or_default();
        if length > before && time >= earlier {
            records.push((length, time));
        }
    }
    Ok(records)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::{Instant, SystemTime, UNIX_EPOCH};

    fn now() -> u64 {
        u64::try_from(SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_millis()).unwrap()
    }

    fn until(what: &str, is_so: impl Fn() -> bool) {
        let end = Instant::now() + Duration::from_secs(30);
        while !is_so() {
            assert!(Instant::now() < end, "{what}");
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    #[test]
    fn a_console_that_grows_is_noted_when_it_does() {
        let dir = tempfile::tempdir().unwrap();
        let console = dir.path().join("console.log");
        fs::write(&console, "before\n").unwrap();
        let stamps = Stamps::begin();
        stamps.add(&console);
        assert_eq!(read(&console).len(), 1);
        let begun = now();
        OpenOptions::new().append(true).open(&console).unwrap().write_all(b"later\n").unwrap();
        until("no time came", || read(&console).len() == 2);
        let [(7, _), (13, at)] = read(&console)[..] else { panic!("{:?}", read(&console)) };
        // A file's time is the kernel's last tick.
        assert!(at + 20 >= begun && at <= now(), "{begun} {at}");
        // Again, after another daemon's absence.
        OpenOptions::new().append(true).open(&console).unwrap().write_all(b"!").unwrap();
        Stamps::begin().add(&console);
        assert_eq!(read(&console).last().unwrap().0, 14);
        fs::remove_dir_all(dir.path()).unwrap();
        until("a console that is gone is watched", || stamps.consoles.lock().unwrap().is_empty());
    }

    #[test]
    fn what_was_cut_off_or_makes_no_sense_is_left_out() {
        let dir = tempfile::tempdir().unwrap();
        let console = dir.path().join("console.log");
        fs::write(&console, "0123456789").unwrap();
        let all: Vec<u8> = [(3, 100), (2, 200), (5, 90), (0, 0), (6, 300)].into_iter().flat_map(bytes).collect();
        fs::write(times(&console), [&all[..], b"half"].concat()).unwrap();
        assert_eq!(read(&console), [(3, 100), (6, 300)]);
        stamp(&console).unwrap();
        assert_eq!(read(&console).iter().map(|record| record.0).collect::<Vec<_>>(), [3, 6, 10]);
        fs::write(&console, "anew").unwrap();
        stamp(&console).unwrap();
        assert_eq!(read(&console).iter().map(|record| record.0).collect::<Vec<_>>(), [4]);
        fs::remove_file(times(&console)).unwrap();
        assert!(stamp(&console).is_err() && !times(&console).exists(), "a VM that goes gets no file");
    }

    #[test]
    fn there_are_only_so_many() {
        let dir = tempfile::tempdir().unwrap();
        let console = dir.path().join("console.log");
        let most = u64::try_from(MOST).unwrap();
        File::create(&console).unwrap().set_len(10 * most).unwrap();
        let all: Vec<u8> = (1..=most).flat_map(|n| bytes((n, n))).collect();
        fs::write(times(&console), &all).unwrap();
        stamp(&console).unwrap();
        let left = read(&console);
        assert_eq!(left.len(), (MOST - LATEST) / 2 + LATEST + 1);
        assert_eq!((left[0], left[1], left.last().unwrap().0), ((1, 1), (3, 3), 10 * most));
        // Cut off between the two writes: what is behind counts where it goes on.
        let kept: Vec<u8> = left.iter().flat_map(|record| bytes(*record)).collect();
        fs::write(times(&console), [&kept[..], &all[kept.len()..]].concat()).unwrap();
        assert_eq!(read(&console), left);
    }
}
