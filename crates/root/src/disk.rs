//! Block devices over the owner's files, the snapshot methods; and files inside images.
//!
//! The kernel is the record of what exists. A dm device is ours by its UUID, a loop device by the inode behind it; names
//! and paths prove nothing. Locks are taken in the order snapshot, then inodes in the order of their names.

mod cleanup;
mod cow;
mod create;
mod device;
mod files;
mod fsck;
pub(crate) mod holders;
mod images;
mod journal;
mod list;
mod loops;
mod node;
pub(crate) mod snapshot;
mod uses;
mod watch;
mod worker;

use crate::fail::Fail;
use crate::host::Host;
use crate::locks::Held;
use std::time::{Duration, Instant};
use sys::dir::{CallError, Facts};

pub(crate) use cleanup::{cleanup as cleanup_dm_snapshot, remove as remove_dm_snapshot};
pub(crate) use create::create as create_dm_snapshot;
pub(crate) use files::{prepare, read, write};
pub(crate) use fsck::fsck;
pub(crate) use holders::is_under_no_device;
pub(crate) use images::Images;
pub(crate) use list::list;
pub(crate) use snapshot::open_drive;
pub(crate) use watch::{Disk, arm as watch};

/// How long something gets that the kernel, udev or a dying VMM is about to let go.
const PATIENCE: Duration = Duration::from_secs(5);

/// A file, whatever its names.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Inode {
    /// The device that it is on.
    pub(crate) dev: u64,
    /// Its number there.
    pub(crate) ino: u64,
}

impl Inode {
    /// The name of its lock: whoever writes the file, or makes a device of it, holds it.
    pub(crate) fn lock_name(self) -> String {
        format!("inode:{:x}:{:x}", self.dev, self.ino)
    }
}

impl From<&Facts> for Inode {
    fn from(facts: &Facts) -> Inode {
        Inode { dev: facts.dev, ino: facts.ino }
    }
}

/// Tries until it gives something, up to [`PATIENCE`]. Then `None`.
fn patiently<T>(mut attempt: impl FnMut() -> Result<Option<T>, Fail>) -> Result<Option<T>, Fail> {
    let end = Instant::now() + PATIENCE;
    let mut pause = Duration::from_millis(1);
    loop {
        if let Some(done) = attempt()? {
            return Ok(Some(done));
        }
        if Instant::now() >= end {
            return Ok(None);
        }
        std::thread::sleep(pause);
        pause = (pause * 2).min(Duration::from_millis(20));
    }
}

/// Holds a snapshot, or a file's inode, by the name of its lock. What has it may take minutes (a check), so the wait has
/// a bound, and its error says what runs.
fn hold<'a>(host: &'a Host, lock: String, told: &str, doing: &'static str) -> Result<Held<'a>, Fail> {
    let at_most = host.settings.limits.image_time();
    host.locks.hold_within(lock, at_most, doing).map_err(|work| {
        let seconds = at_most.as_secs();
        Fail::new(format!("{told} is in use by {work}; waited {seconds} s (limits.image_seconds), try again"))
    })
}

/// A call of the kernel's that failed where no better words are known.
fn refused(error: CallError) -> Fail {
    Fail::new("the kernel refused a call on a block device; the helper's log says which").because(error)
}
