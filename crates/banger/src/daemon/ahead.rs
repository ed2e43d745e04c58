//! What the next VM needs, made before anybody asks for it: taps on the bridge, and, where disks are copies, copies of the
//! image that was used last.
//!
//! One thread makes them, with the lowest priority, when a VM comes up, and gives all of it back when none did for a while. Before
//! that it looks at what a first VM's template is compared with.
//! Nothing of it has a row: of what an earlier daemon left the next one's start sweeps the taps; a copy, which has
//! its name when it is whole, is used as long as the image is the one that its name tells.

use super::store::vms::Vm;
use super::vm::disk;
use super::{Daemon, addresses, log, serve};
use crate::api::Fault;
use crate::image::store::{sync, taken};
use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use wire::name::link::TapName;
use wire::net::NewTap;

/// So long after the last VM came up everything is given back.
const UNUSED: Duration = Duration::from_secs(600);
/// A copy takes no more than this part of the room that its file system has left.
const PART: u64 = 8;
/// A copy that is not whole yet.
const DRAFT: &str = "draft";
/// Behind the part of a copy's name that tells the image.
const END: char = '.';
/// The lowest priority that a thread can have.
const LOWEST: i32 = 19;

/// How much is made ahead.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Amount {
    /// Taps.
    pub taps: usize,
    /// Copies of the image that was used last.
    pub disks: usize,
}

/// What is there for the next VM.
#[derive(Debug)]
pub struct Ahead {
    amount: Amount,
    /// The directory of copies.
    dir: PathBuf,
    state: Mutex<State>,
    /// Held while a tap is made: who gives them back then gives back that one too.
    making: Mutex<()>,
    wake: Sender<()>,
}

#[derive(Debug, Default)]
struct State {
    /// Nothing more is made.
    closed: bool,
    /// Taps that nobody has yet.
    taps: Vec<TapName>,
    /// All taps that were made here and are not deleted yet, whoever has them.
    made: BTreeSet<String>,
    /// What the copies are of.
    source: Option<Source>,
    disks: Vec<PathBuf>,
    /// Copies of an earlier daemon's, until it is known what image is wanted.
    left: Vec<PathBuf>,
}

/// An image as it is when it is copied: another one in its place is told from it.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Source {
    path: PathBuf,
    inode: (u64, u64),
    bytes: u64,
    changed: (i64, i64),
}

impl Source {
    fn of(path: &Path) -> io::Result<Source> {
        let facts = fs::metadata(path)?;
        let (inode, changed) = ((facts.dev(), facts.ino()), (facts.ctime(), facts.ctime_nsec()));
        Ok(Source { path: path.to_owned(), inode, bytes: facts.len(), changed })
    }

    /// What the names of its copies begin with.
    fn key(&self) -> String {
        let ((dev, ino), (seconds, nanoseconds)) = (self.inode, self.changed);
        format!("{dev:x}-{ino:x}-{:x}-{seconds:x}-{nanoseconds:x}{END}", self.bytes)
    }
}

impl Ahead {
    /// Nothing yet but the copies that an earlier daemon left in `dir`. `wake` is [`begin`]'s.
    ///
    /// # Errors
    /// What the kernel says of the directory.
    pub(crate) fn new(amount: Amount, dir: PathBuf, wake: Sender<()>) -> Result<Ahead, Fault> {
        let left = left_in(&dir, amount.disks).map_err(|error| Fault::file("emptying", &dir, &error))?;
        let state = Mutex::new(State { left, ..State::default() });
        Ok(Ahead { amount, dir, state, making: Mutex::default(), wake })
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // Each change is whole before the next can fail.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Moves a copy of the image to `to`; `false` where there is none.
    pub(crate) fn take_disk(&self, image: &Path, to: &Path) -> bool {
        let Ok(source) = Source::of(image) else { return false };
        let mut state = self.lock();
        state.adopt(&source);
        if state.source.as_ref() != Some(&source) {
            return false;
        }
        std::iter::from_fn(|| state.disks.pop()).any(|disk| fs::rename(disk, to).is_ok())
    }

    /// A tap that is there already. It has to be made sure of: a tap is anybody's to delete who may.
    pub(crate) fn take_tap(&self) -> Option<TapName> {
        self.lock().taps.pop()
    }

    /// Whether the tap is one of here, so that somebody knows of it.
    pub(crate) fn has_made(&self, tap: &str) -> bool {
        self.lock().made.contains(tap)
    }

    /// The tap was deleted.
    pub(crate) fn tap_is_gone(&self, tap: &TapName) {
        self.lock().made.remove(tap.as_str());
    }

    /// A VM comes up: the next one is likely to be as it.
    pub(crate) fn came_up(&self, vm: &Vm) {
        if vm.disk_method.as_deref() == Some(disk::COPY) {
            let source = Source::of(&vm.base.root).ok();
            let mut state = self.lock();
            if state.source != source {
                discard(&mut state.disks);
                state.source = source;
            }
        }
        // Its reader lives as long as the daemon.
        let _ = self.wake.send(());
    }

    /// An image is gone: so are the copies, where it was theirs.
    pub(crate) fn forget_gone(&self) {
        let mut state = self.lock();
        // Nobody knows whose these are.
        discard(&mut state.left);
        if state.source.as_ref().is_some_and(|source| Source::of(&source.path).ok().as_ref() != Some(source)) {
            state.source = None;
            discard(&mut state.disks);
        }
    }

    /// Nothing more is made: this daemon ends.
    pub(crate) fn close(&self) {
        self.lock().closed = true;
    }

    /// Whether one more tap is to be made.
    fn wants_tap(&self) -> bool {
        let state = self.lock();
        !state.closed && state.taps.len() < self.amount.taps
    }

    /// Of what one more copy is to be made.
    fn wants_disk(&self) -> Option<Source> {
        let state = self.lock();
        state.source.clone().filter(|_| !state.closed && state.disks.len() < self.amount.disks)
    }

    fn is_empty(&self) -> bool {
        let state = self.lock();
        state.taps.is_empty() && state.disks.is_empty() && state.left.is_empty()
    }

    fn top_up(&self, daemon: &Daemon) -> Result<(), Fault> {
        while self.make_tap(daemon)? {}
        while let Some(source) = self.wants_disk() {
            if !self.has_room(&source)? {
                return Ok(());
            }
            self.make_disk(&source)?;
        }
        Ok(())
    }

    /// Makes one, where one is missing; `false` where not.
    fn make_tap(&self, daemon: &Daemon) -> Result<bool, Fault> {
        let _making = self.making.lock().unwrap_or_else(PoisonError::into_inner);
        if !self.wants_tap() {
            return Ok(false);
        }
        let id = addresses::id()?;
        let tap = TapName::new(&format!("tap-fc-{}", &id[..8])).map_err(Fault::bug)?;
        // Known before it is there: whoever looks for what nobody knows finds it known.
        self.lock().made.insert(tap.to_string());
        let op_id = serve::new_op_id();
        let new = NewTap { bridge: daemon.settings.bridge.clone(), tap: tap.clone() };
        match daemon.helper(&op_id).create_tap(&new) {
            Ok(()) => {
                self.lock().taps.push(tap);
                Ok(true)
            }
            Err(error) => {
                self.tap_is_gone(&tap);
                Err(Fault::helper("making a tap ahead", &daemon.settings.helper, error))
            }
        }
    }

    fn has_room(&self, source: &Source) -> Result<bool, Fault> {
        let failed = |path: &Path, error: io::Error| Fault::file("looking at", path, &error);
        let room = rustix::fs::statvfs(&self.dir).map_err(|errno| failed(&self.dir, errno.into()))?;
        let takes = taken(&source.path).map_err(|error| failed(&source.path, error))?;
        Ok(takes <= room.f_bavail * room.f_frsize / PART)
    }

    fn make_disk(&self, source: &Source) -> Result<(), Fault> {
        let (draft, to) = (self.dir.join(DRAFT), self.dir.join(source.key() + &addresses::id()?));
        // On the disk before it is asked for: who writes into it and syncs has then little to wait for.
        let made = disk::copy(&source.path, &draft).and_then(|how| {
            sync(&draft)?;
            fs::rename(&draft, &to).map(|()| how)
        });
        let mut state = self.lock();
        let is_wanted = state.source.as_ref() == Some(source);
        match made {
            Ok(disk::COPY) if is_wanted => state.disks.push(to),
            made => {
                discard(&mut vec![draft, to.clone()]);
                if is_wanted {
                    // What is quick or can't be is not worth another try.
                    state.source = None;
                }
                made.map_err(|error| Fault::file("copying an image ahead to", &to, &error))?;
            }
        }
        Ok(())
    }

    fn give_back(&self, daemon: &Daemon) -> Result<(), Fault> {
        {
            let mut state = self.lock();
            state.source = None;
            discard(&mut state.disks);
            discard(&mut state.left);
        }
        self.give_taps_back(daemon)
    }

    /// The taps alone: copies are the next daemon's too.
    pub(crate) fn give_taps_back(&self, daemon: &Daemon) -> Result<(), Fault> {
        let _making = self.making.lock().unwrap_or_else(PoisonError::into_inner);
        let taps = std::mem::take(&mut self.lock().taps);
        if taps.is_empty() {
            return Ok(());
        }
        let deleted = daemon.helper(&serve::new_op_id()).delete_taps(&taps);
        if let Err(error) = deleted {
            self.lock().taps.extend(taps);
            return Err(Fault::helper("giving taps back", &daemon.settings.helper, error));
        }
        taps.iter().for_each(|tap| self.tap_is_gone(tap));
        Ok(())
    }
}

impl State {
    /// Of what an earlier daemon left, what is of this image is its copies; nobody wants the rest.
    fn adopt(&mut self, source: &Source) {
        let key = source.key();
        let is_its =
            |path: &PathBuf| path.file_name().is_some_and(|name| name.as_encoded_bytes().starts_with(key.as_bytes()));
        let (its, mut others): (Vec<_>, Vec<_>) = self.left.drain(..).partition(is_its);
        discard(&mut others);
        if !its.is_empty() {
            (self.source, self.disks) = (Some(source.clone()), its);
        }
    }
}

/// The whole copies in the directory, at most so many; all else in it is removed.
fn left_in(dir: &Path, most: usize) -> io::Result<Vec<PathBuf>> {
    match fs::create_dir(dir) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error),
        _ => {}
    }
    let mut left = Vec::new();
    for entry in fs::read_dir(dir)? {
        let path = entry?.path();
        let is_copy = path.file_name().and_then(|name| name.to_str()).is_some_and(|name| name.contains(END));
        if is_copy && left.len() < most { left.push(path) } else { fs::remove_file(path)? }
    }
    Ok(left)
}

/// Removes copies. What can't be removed is when the directory is emptied.
fn discard(disks: &mut Vec<PathBuf>) {
    for disk in disks.drain(..) {
        let _ = fs::remove_file(disk);
    }
}

/// Gives this thread the lowest priority; else it goes on as everybody else.
pub(crate) fn step_back() {
    let _ = rustix::process::setpriority_process(Some(rustix::thread::gettid()), LOWEST);
}

/// Makes what is missing whenever a VM comes up, on a thread of its own.
pub(crate) fn begin(daemon: &Arc<Daemon>, woken: Receiver<()>) -> Result<(), Fault> {
    let daemon = Arc::clone(daemon);
    let work = move || {
        // Before it steps back: a VM that is started meanwhile waits for this.
        daemon.images.templates.look_ahead();
        step_back();
        loop {
            let ahead = &daemon.ahead;
            let came = match ahead.is_empty() {
                true => woken.recv().map_err(|_| RecvTimeoutError::Disconnected),
                false => woken.recv_timeout(UNUSED),
            };
            let done = match came {
                Ok(()) => ahead.top_up(&daemon),
                Err(RecvTimeoutError::Timeout) => ahead.give_back(&daemon),
                Err(RecvTimeoutError::Disconnected) => return,
            };
            if let Err(fault) = done {
                // Who needs it makes it himself, and hears of what is wrong.
                log::fault("ahead", "", &fault);
            }
        }
    };
    std::thread::Builder::new().name("ahead".into()).spawn(work).map(drop).map_err(Fault::bug)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::daemon::store::vms::tests::planned;
    use std::fs::File;
    use std::os::unix::fs::FileExt;
    use std::sync::mpsc;

    #[test]
    fn a_copy_is_of_the_image_as_it_is_now_and_goes_with_it() {
        let dir = tempfile::tempdir().unwrap();
        let (image, to) = (dir.path().join("image"), dir.path().join("to"));
        fs::write(&image, "one").unwrap();
        fs::create_dir(dir.path().join("ahead")).unwrap();
        fs::write(dir.path().join("ahead/left"), "").unwrap();
        let (wake, woken) = mpsc::channel();
        let amount = Amount { taps: 0, disks: 2 };
        let ahead = Ahead::new(amount, dir.path().join("ahead"), wake).unwrap();
        let there = || fs::read_dir(dir.path().join("ahead")).unwrap().count();
        assert_eq!(there(), 0, "what was left is gone");

        let mut vm = planned(2);
        vm.base.root = image.clone();
        ahead.came_up(&vm);
        assert_eq!(ahead.lock().source, None, "its disk is no copy");
        vm.disk_method = Some(disk::COPY.into());
        ahead.came_up(&vm);
        assert_eq!(woken.try_iter().count(), 2);
        let source = ahead.lock().source.clone().unwrap();
        assert!(!ahead.take_disk(&image, &to), "none is there yet");
        ahead.make_disk(&source).unwrap();
        if ahead.lock().source.is_none() {
            assert_eq!(there(), 0, "a reflink is quick enough");
            return;
        }
        ahead.make_disk(&source).unwrap();
        assert!(ahead.take_disk(&image, &to));
        assert_eq!((fs::read_to_string(&to).unwrap().as_str(), there()), ("one", 1));

        File::options().write(true).open(&image).unwrap().write_all_at(b"two", 0).unwrap();
        assert!(!ahead.take_disk(&image, &to), "it is another one now");
        ahead.make_disk(&source).unwrap();
        ahead.came_up(&vm);
        assert_eq!(there(), 0, "nobody wants the old one's copies");
        let source = ahead.lock().source.clone().unwrap();
        ahead.make_disk(&source).unwrap();
        ahead.forget_gone();
        assert_eq!(there(), 1);

        // The next daemon has it too, and no other one's; what is not whole is gone.
        fs::write(dir.path().join("ahead").join(DRAFT), "").unwrap();
        let next = |disks| {
            let (wake, _) = mpsc::channel();
            Ahead::new(Amount { taps: 0, disks }, dir.path().join("ahead"), wake).unwrap()
        };
        let ahead = next(2);
        assert_eq!((there(), ahead.is_empty()), (1, false));
        assert!(ahead.take_disk(&image, &to));
        assert_eq!((fs::read_to_string(&to).unwrap().as_str(), there()), ("two", 0));
        ahead.came_up(&vm);
        ahead.make_disk(&source).unwrap();
        File::options().write(true).open(&image).unwrap().write_all_at(b"six", 0).unwrap();
        assert!(!next(2).take_disk(&image, &to), "it is another one now");
        assert_eq!(there(), 0);
        ahead.came_up(&vm);
        let source = ahead.lock().source.clone().unwrap();
        ahead.make_disk(&source).unwrap();
        assert!(next(0).is_empty() && there() == 0, "none is wanted");
        ahead.lock().disks.clear();
        ahead.make_disk(&source).unwrap();
        fs::remove_file(&image).unwrap();
        ahead.forget_gone();
        assert_eq!((there(), ahead.take_disk(&image, &to)), (0, false));
        assert!(ahead.make_disk(&source).is_err() && there() == 0, "there is nothing to be copied");
    }
}
