//! The virtio-serial port to the host.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

use agent::relay::Mux;
use rustix::event::PollFlags;
use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;

/// The port's name, on the VMM's command line and in sysfs.
const NAME: &str = "banger.agent";
/// Without a host the port is always ready and gives nothing: it is asked again after this time.
const ABSENT: Duration = Duration::from_millis(20);

/// The port and the relay's end of it.
#[derive(Debug)]
pub(super) struct Port {
    file: OwnedFd,
    pub(super) mux: Mux,
    absent_until: Option<Instant>,
}

impl Port {
    /// Looks for the port; `None` where it isn't there (yet).
    pub(super) fn find() -> Option<Self> {
        for entry in std::fs::read_dir("/sys/class/virtio-ports").ok()?.flatten() {
            let name = std::fs::read_to_string(entry.path().join("name")).unwrap_or_default();
            if name.trim_end() == NAME {
                let device = std::path::Path::new("/dev").join(entry.file_name());
                let flags = OFlags::RDWR | OFlags::NONBLOCK | OFlags::CLOEXEC | OFlags::NOCTTY;
                let file = rustix::fs::open(&device, flags, Mode::empty()).ok()?;
                return Some(Self { file, mux: Mux::guest(), absent_until: None });
            }
        }
        None
    }

    /// Whether this kernel has such ports at all.
    pub(super) fn is_possible() -> bool {
        std::path::Path::new("/sys/class/virtio-ports").exists()
    }

    pub(super) fn file(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }

    /// What to wait for now, and until when it isn't worth asking.
    pub(super) fn wants(&self, now: Instant) -> (PollFlags, Option<Instant>) {
        if let Some(until) = self.absent_until.filter(|until| *until > now) {
            return (PollFlags::empty(), Some(until));
        }
        let mut wants = PollFlags::IN;
        wants.set(PollFlags::OUT, !self.mux.output().is_empty());
        (wants, None)
    }

    /// Reads once. The events are in the relay then.
    pub(super) fn read(&mut self, buffer: &mut [u8]) {
        self.absent_until = None;
        match rustix::io::read(&self.file, &mut *buffer) {
            Ok(0) => self.absent_until = Some(Instant::now() + ABSENT),
            // A guest's relay never fails: what isn't its protocol ends the streams.
            Ok(n) => drop(self.mux.receive(&buffer[..n])),
            Err(Errno::AGAIN | Errno::INTR) => {}
            Err(_) => self.absent_until = Some(Instant::now() + ABSENT),
        }
    }

    /// Writes what it can.
    pub(super) fn write(&mut self) {
        while !self.mux.output().is_empty() {
            match rustix::io::write(&self.file, self.mux.output()) {
                Ok(0) | Err(Errno::AGAIN) => return,
                Ok(n) => self.mux.wrote(n),
                Err(Errno::INTR) => {}
                Err(_) => {
                    self.absent_until = Some(Instant::now() + ABSENT);
                    return;
                }
            }
        }
    }
}
