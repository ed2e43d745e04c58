//! Images and kernels come in: a root file system in a tar archive, whoever made it; a kernel from a file, or Debian's.

use super::check_name;
use super::show::release;
use crate::api::asset::Asset as Shown;
use crate::api::{Fault, StageState};
use crate::daemon::Daemon;
use crate::daemon::error::exit;
use crate::daemon::serve::{Caller, Woken};
use crate::daemon::store::assets::{self, Asset, Kind};
use crate::image::build::{self, Origin};
use crate::image::error::Error;
use crate::image::kernel;
use crate::image::progress::{Stage, Watch};
use crate::image::store::Stored;
use crate::time::unix_now;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use std::cell::{Cell, RefCell};
use std::fs::File;
use std::io::{self, Read};
use std::os::fd::OwnedFd;
use std::sync::{MutexGuard, TryLockError};
use std::time::Duration;

/// How often a caller is listened to while something else is waited for.
const PULSE: Duration = Duration::from_millis(200);

/// What comes in, and under which name.
#[derive(Clone, Debug)]
pub(crate) struct Incoming {
    /// Its name.
    pub(crate) name: String,
    /// Where it is from, for a person.
    pub(crate) source: String,
    /// Whether the name is taken from what has it.
    pub(crate) force: bool,
}

/// Makes an image of the archives whose descriptors the caller sends.
pub(crate) fn import(
    daemon: &Daemon,
    caller: &mut Caller,
    incoming: &Incoming,
    size: Option<u64>,
    origin: Origin,
    archives: u8,
) -> Result<Shown, Fault> {
    is_free(daemon, Kind::Image, incoming)?;
    let archives = (0..archives).map(|_| caller.input()).collect::<Result<Vec<OwnedFd>, Fault>>()?;
    let told = Told::new(caller, &incoming.name);
    let turn = told.turn(daemon)?;
    is_free(daemon, Kind::Image, incoming)?;
    let work = daemon.images.store.work(0)?;
    let size = size.unwrap_or(build::DEFAULT_SIZE);
    let archives = archives.into_iter().map(|from| Polled { from, told: &told });
    let image = build::import(archives, size, origin, &work, &told).map_err(told.fault())?;
    let stored = daemon.images.store.keep_image(&work, &image, &told).map_err(told.fault())?;
    drop((work, turn));
    told.end();
    keep(daemon, Kind::Image, incoming, &stored, None, origin == Origin::Built)
}

/// Makes a kernel of Debian's package, or of the files whose descriptors the caller sends.
pub(crate) fn import_kernel(
    daemon: &Daemon,
    caller: &mut Caller,
    name: Option<&str>,
    from: &KernelFrom,
    force: bool,
) -> Result<Shown, Fault> {
    let mut incoming = Incoming { name: name.unwrap_or_default().to_owned(), source: String::new(), force };
    match (name, from) {
        (Some(_), KernelFrom::Debian(_)) => is_free(daemon, Kind::Kernel, &incoming)?,
        // What takes no time may turn out to be what has the name already.
        (Some(name), KernelFrom::Files { .. }) => check_name(Kind::Kernel, name)?,
        (None, _) => {}
    }
    let kernel = match from {
        KernelFrom::Debian(version) => {
            let told = Told::new(caller, name.unwrap_or("kernel"));
            let turn = told.turn(daemon)?;
            let work = daemon.images.store.work(KERNEL_ROOM)?;
            let kernel = kernel::import_debian(work.path(), version.as_deref(), &told).map_err(told.fault())?;
            drop((work, turn));
            told.end();
            kernel
        }
        KernelFrom::Files { source, with_initrd } => {
            let file = File::from(caller.input()?);
            let initrd = if *with_initrd { Some(File::from(caller.input()?)) } else { None };
            kernel::import(file, source, initrd)?
        }
    };
    if name.is_none() {
        let version = if kernel.version.is_empty() { "unknown" } else { &kernel.version };
        let prefix = if matches!(from, KernelFrom::Debian(_)) { "debian" } else { "linux" };
        let name = format!("{prefix}-{version}").to_ascii_lowercase().replace(['+', '~'], "-");
        incoming.name = name.chars().take(64).collect();
    }
    incoming.source.clone_from(&kernel.source);
    let stored = daemon.images.store.keep_kernel(&kernel)?;
    let version = Some(kernel.version).filter(|version| !version.is_empty());
    keep(daemon, Kind::Kernel, &incoming, &stored, version, matches!(from, KernelFrom::Debian(_)))
}

/// Room that Debian's kernel takes on the way: lists, the package, what it unpacks to.
const KERNEL_ROOM: u64 = 600 << 20;

/// Where a kernel comes from.
pub(crate) enum KernelFrom {
    /// Debian's package of that version, or the current one.
    Debian(Option<String>),
    /// Files; their name, for a person.
    Files { source: String, with_initrd: bool },
}

/// Gives what was made its name. What had it, and nothing else needs, is removed; the very same thing keeps its name.
pub(super) fn keep(
    daemon: &Daemon,
    kind: Kind,
    incoming: &Incoming,
    stored: &Stored,
    version: Option<String>,
    is_debians: bool,
) -> Result<Shown, Fault> {
    let asset = Asset {
        kind,
        name: incoming.name.clone(),
        digest: stored.digest.clone(),
        size_bytes: stored.size_bytes,
        version,
        source: incoming.source.clone(),
        is_debians,
        created_at: unix_now(),
    };
    let named = daemon.store.change(|t| {
        let before = assets::by_name(t, kind, &asset.name)?.map(|before| before.digest);
        match &before {
            Some(digest) if *digest == asset.digest => {}
            Some(_) if !incoming.force => return Err(taken(kind, &asset.name)),
            _ => assets::save(t, &asset)?,
        }
        Ok(before)
    });
    // What got no name is nobody's.
    let old = match &named {
        Ok(before) => before.clone().filter(|digest| *digest != asset.digest),
        Err(_) => Some(asset.digest.clone()),
    };
    if let Some(digest) = old {
        release(daemon, kind, &digest)?;
    }
    named?;
    super::one(daemon, kind, &asset.name)
}

pub(super) fn is_free(daemon: &Daemon, kind: Kind, incoming: &Incoming) -> Result<(), Fault> {
    check_name(kind, &incoming.name)?;
    let there = daemon.store.change(|t| assets::by_name(t, kind, &incoming.name))?;
    if there.is_some() && !incoming.force { Err(taken(kind, &incoming.name)) } else { Ok(()) }
}

fn taken(kind: Kind, name: &str) -> Fault {
    let what = kind.name();
    Fault::new(
        "name_taken",
        exit::STATE,
        format!("there is a {what} named {name} already").replace("a image", "an image"),
    )
    .fix("--force gives it the name; VMs that were made of the old one keep that")
    .fix(format!("banger {what} rm {name}"))
}

/// A caller who is told of stages and listened to.
pub(super) struct Told<'a> {
    caller: RefCell<&'a mut Caller>,
    about: &'a str,
    stage: Cell<Option<Stage>>,
}

impl<'a> Told<'a> {
    pub(super) fn new(caller: &'a mut Caller, about: &'a str) -> Told<'a> {
        Told { caller: RefCell::new(caller), about, stage: Cell::new(None) }
    }

    /// Waits until nobody else makes an image.
    pub(super) fn turn<'d>(&self, daemon: &'d Daemon) -> Result<MutexGuard<'d, ()>, Fault> {
        loop {
            match daemon.images.turn.try_lock() {
                Ok(turn) => return Ok(turn),
                Err(TryLockError::Poisoned(turn)) => return Ok(turn.into_inner()),
                Err(TryLockError::WouldBlock) => {}
            }
            self.begin(Stage::Unpack, "waits for another image that is being made");
            std::thread::sleep(PULSE);
            if self.is_stopped() {
                return Err(Error::interrupted().into());
            }
        }
    }

    /// The last stage is over.
    pub(super) fn end(&self) {
        if let Some(stage) = self.stage.take() {
            self.caller.borrow_mut().stage(stage.name(), StageState::Ended, self.about, "");
        }
    }

    /// A failure, with the stage in which it came.
    pub(super) fn fault(&self) -> impl Fn(Error) -> Fault + '_ {
        |error| {
            let fault = Fault::from(error);
            self.stage.get().map_or_else(|| fault.clone(), |stage| fault.clone().at(stage.name()))
        }
    }
}

impl Watch for Told<'_> {
    fn begin(&self, stage: Stage, note: &str) {
        if self.stage.get() == Some(stage) {
            return;
        }
        self.end();
        self.stage.set(Some(stage));
        self.caller.borrow_mut().stage(stage.name(), StageState::Begun, self.about, note);
    }

    fn is_stopped(&self) -> bool {
        matches!(self.caller.borrow_mut().heard(), Woken::Cancel | Woken::Gone)
    }
}

/// A descriptor of the caller's, which may be a pipe that nobody ever writes to.
struct Polled<'a, 'c> {
    from: OwnedFd,
    told: &'a Told<'c>,
}

impl Read for Polled<'_, '_> {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        let pulse = Timespec { tv_sec: 0, tv_nsec: i64::from(PULSE.subsec_nanos()) };
        loop {
            if poll(&mut [PollFd::new(&self.from, PollFlags::IN)], Some(&pulse))? > 0 {
                return Ok(rustix::io::read(&self.from, &mut *into)?);
            }
            if self.told.is_stopped() {
                return Err(io::Error::other("the caller has gone"));
            }
        }
    }
}
