//! What a jailed VM finds in its root, put there in a mount namespace of the launch's own: no mount is ever the
//! machine's, and all of them end with the VMM.
//!
//! Everything is a copy of a descriptor's mount, taken before that namespace is entered, and put on an empty file or
//! directory of root's. Nothing of the owner's is linked, copied, given away or changed; a file system of its own below
//! the helper's directory holds what is ours, and the jail is put there, so that no part of the path that the jailer is
//! given can be renamed by the owner.

use super::jail::{Jail, PROGRAM};
use crate::fail::Fail;
use rustix::fs::{AtFlags, FileType, Gid, Mode, OFlags, Uid, chownat, mknodat};
use std::fs::File;
use std::io::Write as _;
use std::os::fd::{AsFd, OwnedFd};
use sys::dir::{CallError, Dir};
use sys::mount::{self, Forbids, Tree};
use sys::spawn::Held;

/// Of the file system that holds the jail's path, the configuration, nodes of block devices.
const OURS_BYTES: u64 = 1 << 20;
/// Below the helper's own directory.
const PLACE: &str = "jail";
/// Where the VMM's program has the name that the jailer calls its jail after.
const PROGRAMS: &str = "exec";
/// The VM's configuration, seen from inside.
pub(super) const CONFIG: &str = "etc/firecracker.json";

/// Something that is to be seen in a jail.
pub(super) struct Piece {
    /// Where, below its root.
    at: String,
    what: What,
}

enum What {
    /// A file or a directory of the machine's.
    Copy { tree: Tree, is_dir: bool },
    /// A block device: a node of its own.
    Device { number: u64, writable: bool },
    /// A symlink.
    Link { target: String },
}

impl Piece {
    /// A file: nobody can execute it, nor write it where `read_only`.
    pub(super) fn file(at: &str, file: impl AsFd, read_only: bool) -> Result<Piece, CallError> {
        let tree = Tree::copy(file)?;
        tree.restrict(Forbids { writes: read_only, ..Forbids::ALL })?;
        Ok(Piece { at: at.to_owned(), what: What::Copy { tree, is_dir: false } })
    }

    /// A program or a directory of them, read-only.
    pub(super) fn programs(at: &str, file: impl AsFd, is_dir: bool) -> Result<Piece, CallError> {
        let tree = Tree::copy(file)?;
        tree.restrict(Forbids { writes: true, devices: true, programs: false })?;
        Ok(Piece { at: at.to_owned(), what: What::Copy { tree, is_dir } })
    }

    /// An empty directory in memory that is the VMM's user's.
    pub(super) fn memory(at: &str, bytes: u64, uid: u32, gid: u32) -> Result<Piece, CallError> {
        let tree = Tree::in_memory(bytes, 0o700, Forbids { programs: true, devices: true, writes: false })?;
        chownat(&tree, "", Some(Uid::from_raw(uid)), Some(Gid::from_raw(gid)), AtFlags::EMPTY_PATH)
            .map_err(|errno| CallError::new("fchownat(<tmpfs>)", errno))?;
        Ok(Piece { at: at.to_owned(), what: What::Copy { tree, is_dir: true } })
    }

    /// A symlink.
    pub(super) fn link(at: &str, target: &str) -> Piece {
        Piece { at: at.to_owned(), what: What::Link { target: target.to_owned() } }
    }

    /// A block device, by its number.
    pub(super) fn device(at: &str, number: u64, writable: bool) -> Piece {
        Piece { at: at.to_owned(), what: What::Device { number, writable } }
    }
}

/// All that goes into a jail.
pub(super) struct Stage {
    /// The helper's own directory.
    run_dir: String,
    vm_id: String,
    /// The VMM's user.
    gid: u32,
    root: Tree,
    program: Tree,
    pieces: Vec<Piece>,
    config: Option<Vec<u8>>,
}

/// The block devices' nodes of a jail that was built.
///
/// Whoever may look into the jail can keep hold of a node without opening it, longer than its device is there, and the next
/// device may get its number.
pub(super) struct Nodes {
    dir: Dir,
    names: Vec<String>,
}

impl Nodes {
    /// Makes them nobody's: what has one open keeps it, and nobody opens one again.
    pub(super) fn close(&self) -> Result<(), CallError> {
        self.names.iter().try_for_each(|name| {
            set_mode(&self.dir, name, 0)?;
            give(&self.dir, name, 0)
        })
    }
}

/// The path of the base that the jailer is told.
pub(super) fn base(run_dir: &str) -> String {
    format!("{run_dir}/{PLACE}")
}

/// The path of the program that the jailer is told.
pub(super) fn program(run_dir: &str) -> String {
    format!("{}/{PROGRAMS}/{PROGRAM}", base(run_dir))
}

impl Stage {
    /// Makes the places in a new jail, and copies the mounts.
    pub(super) fn prepare(
        run_dir: &Dir,
        vm_id: &str,
        gid: u32,
        jail: &Jail,
        program: &OwnedFd,
        pieces: Vec<Piece>,
        config: Option<Vec<u8>>,
    ) -> Result<Stage, CallError> {
        for piece in &pieces {
            match &piece.what {
                What::Copy { is_dir: true, .. } => jail.dir(&piece.at)?,
                What::Copy { is_dir: false, .. } | What::Device { .. } => jail.file(&piece.at)?,
                What::Link { target } => jail.link(target, &piece.at)?,
            }
        }
        if config.is_some() {
            jail.file(CONFIG)?;
        }
        run_dir.enter_or_make(PLACE, 0o700)?;
        let program = Tree::copy(program)?;
        program.restrict(Forbids { writes: true, devices: true, programs: false })?;
        Ok(Stage {
            run_dir: run_dir.path().to_owned(),
            vm_id: vm_id.to_owned(),
            gid,
            root: Tree::copy(jail.open()?)?,
            program,
            pieces,
            config,
        })
    }

    /// Has `fork` make the jailer, with all of it before his eyes.
    pub(super) fn hold(self, fork: impl FnOnce() -> Result<Held, String> + Send) -> Result<(Held, Nodes), Fail> {
        // A thread of its own, because a namespace is entered for good. The child has it, and keeps it alive.
        let held = std::thread::scope(|scope| {
            let entered =
                std::thread::Builder::new().name("stage".into()).stack_size(128 << 10).spawn_scoped(scope, || {
                    let built = mount::own_namespace().and_then(|()| self.build());
                    let nodes = built.map_err(|error| error.to_string())?;
                    Ok((fork()?, nodes))
                });
            match entered.map(std::thread::ScopedJoinHandle::join) {
                Ok(Ok(held)) => held,
                Ok(Err(_)) => Err("the thread panicked".to_owned()),
                Err(error) => Err(format!("a thread: {error}")),
            }
        });
        held.map_err(|error| Fail::new("the VM's jail can't be furnished").because(error))
    }

    /// Puts everything at its place, inside this thread's own namespace.
    fn build(&self) -> Result<Nodes, CallError> {
        let base = base(&self.run_dir);
        let ours = Tree::in_memory(OURS_BYTES, 0o755, Forbids { programs: true, ..Forbids::default() })?;
        ours.put_on(mount::place(&base)?)?;
        let ours = Dir::open(&base)?;
        let programs = ours.make_dir(PROGRAMS, 0o755)?;
        programs.open_at(PROGRAM, OFlags::RDONLY | OFlags::CREATE | OFlags::EXCL, 0o444)?;
        self.program.put_on(programs.open_at(PROGRAM, OFlags::PATH, 0)?)?;

        ours.make_dir(PROGRAM, 0o711)?.make_dir(&self.vm_id, 0o711)?.make_dir("root", 0o700)?;
        let root = format!("{base}/{PROGRAM}/{}/root", self.vm_id);
        self.root.put_on(mount::place(&root)?)?;
        // Behind what was put there.
        let root = Dir::open(&root)?;
        let nodes = ours.make_dir("nodes", 0o700)?;
        let mut names = Vec::new();
        for (number, piece) in self.pieces.iter().enumerate() {
            let place = || root.open_at(&piece.at, OFlags::PATH, 0);
            match &piece.what {
                What::Link { .. } => {}
                What::Copy { tree, .. } => tree.put_on(place()?)?,
                What::Device { number: device, writable } => {
                    let name = number.to_string();
                    self.node(&nodes, &name, *device, *writable)?.put_on(place()?)?;
                    names.push(name);
                }
            }
        }
        self.config.as_ref().map_or(Ok(()), |text| put_config(text, &nodes, &root))?;
        Ok(Nodes { dir: nodes, names })
    }

    /// A device's node. It stays root's, so that the VMM, who is in its group, can't give himself more rights to it.
    fn node(&self, nodes: &Dir, name: &str, device: u64, writable: bool) -> Result<Tree, CallError> {
        let mode = if writable { 0o660 } else { 0o440 };
        mknodat(nodes, name, FileType::BlockDevice, Mode::from_raw_mode(mode), device)
            .map_err(|errno| CallError::new("mknodat(<node>)", errno))?;
        give(nodes, name, self.gid)?;
        set_mode(nodes, name, mode)?;
        Tree::copy(nodes.open_at(name, OFlags::PATH, 0)?)
    }
}

/// The VM's configuration, in a file of ours.
fn put_config(text: &[u8], nodes: &Dir, root: &Dir) -> Result<(), CallError> {
    let mut config = File::from(nodes.open_at("config", OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL, 0o444)?);
    let written = config.write_all(text);
    written.map_err(|error| {
        let errno = error.raw_os_error().map_or(rustix::io::Errno::IO, rustix::io::Errno::from_raw_os_error);
        CallError::new("write(the VM's configuration)", errno)
    })?;
    let config = nodes.open_at("config", OFlags::PATH, 0)?;
    // The umask is the VMM's: it reads this as somebody else.
    set_mode(nodes, "config", 0o444)?;
    let config = Tree::copy(config)?;
    config.restrict(Forbids::ALL)?;
    config.put_on(root.open_at(CONFIG, OFlags::PATH, 0)?)
}

/// Gives a node to a group; it is root's.
fn give(nodes: &Dir, name: &str, gid: u32) -> Result<(), CallError> {
    let (uid, gid) = (Uid::from_raw(0), Gid::from_raw(gid));
    chownat(nodes, name, Some(uid), Some(gid), AtFlags::SYMLINK_NOFOLLOW)
        .map_err(|errno| CallError::new("fchownat(<node>)", errno))
}

/// Of what was just made in a directory that root alone can enter.
fn set_mode(dir: &Dir, name: &str, mode: u32) -> Result<(), CallError> {
    rustix::fs::chmodat(dir, name, Mode::from_raw_mode(mode), AtFlags::empty())
        .map_err(|errno| CallError::new(format!("fchmodat(<{}>, {name:?}, {mode:#o})", dir.path()), errno))
}
