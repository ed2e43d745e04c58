//! Where programs without rights are started: namespaces of their own, made once, and a root directory that holds the
//! libraries which such a program is linked with, and nothing else; for a static one it is empty.
//!
//! The namespaces are entered (`setns`), not made for each start: to make and to end a network and a mount namespace
//! takes longer than a small program's whole work.

use crate::dir::{CallError, Dir};
use rustix::fs::{AtFlags, FileType, Gid, Mode, OFlags, Uid};
use rustix::io::Errno;
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, MountFlags, MountPropagationFlags, MoveMountFlags, OpenTreeFlags,
    UnmountFlags, fsconfig_create, fsconfig_set_string, fsmount, fsopen, mount_change, mount_remount, move_mount,
    open_tree, unmount,
};
use rustix::process::pivot_root;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

/// Namespaces of programs without rights. Their network has no device that is up, their root directory no file but
/// the given ones, and nothing in it can be written.
#[derive(Debug)]
pub struct Ground {
    pub(crate) namespaces: [OwnedFd; 4],
}

/// In the order in which they are entered: the mounts last, no other needs what they hide.
const KINDS: [&str; 4] = ["net", "ipc", "uts", "mnt"];

/// A file that is to be in the root directory.
#[derive(Debug)]
pub struct Shown<'a> {
    /// The file.
    pub file: BorrowedFd<'a>,
    /// Its name there, without a slash. It lies in `/lib`, which is `/lib64` too: where loaders look.
    pub name: &'a str,
}

impl Ground {
    /// Makes the namespaces. `at` is an existing directory in this process's mount namespace; nothing is mounted on it
    /// there. Without `files` the root directory is empty.
    ///
    /// # Errors
    /// The call that failed. `EPERM` without the right to administer the system.
    pub fn make(at: &Dir, files: &[Shown<'_>]) -> Result<Ground, CallError> {
        // A thread's namespaces are its own, and go with it.
        let made = std::thread::scope(|scope| scope.spawn(|| build(at, files)).join());
        made.unwrap_or_else(|_| Err(CallError::new("thread of the ground", Errno::NOTRECOVERABLE)))
    }
}

fn failed(call: &str) -> impl Fn(Errno) -> CallError + '_ {
    move |errno| CallError::new(call, errno)
}

fn build(at: &Dir, files: &[Shown<'_>]) -> Result<Ground, CallError> {
    // Here these files' mounts are still this thread's own, which is what the kernel copies.
    let clone = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC | OpenTreeFlags::AT_EMPTY_PATH;
    let copies = files.iter().map(|shown| open_tree(shown.file, "", clone).map_err(failed("open_tree(<library>)")));
    let copies = copies.collect::<Result<Vec<OwnedFd>, _>>()?;
    unshare_all().map_err(failed("unshare(mnt, net, ipc, uts)"))?;
    // This thread's own by now, as its root directory is.
    rustix::process::umask(Mode::from_raw_mode(0o022));
    let opened = |kind: &str| {
        let path = format!("/proc/thread-self/ns/{kind}");
        rustix::fs::open(&path, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())
            .map_err(|errno| CallError::new(format!("open({path})"), errno))
    };
    let [net, ipc, uts, mnt] = KINDS;
    let namespaces = [opened(net)?, opened(ipc)?, opened(uts)?, opened(mnt)?];

    mount_change("/", MountPropagationFlags::PRIVATE | MountPropagationFlags::REC)
        .map_err(failed("mount(/, MS_PRIVATE|MS_REC)"))?;
    let root = memory_file_system("64k", MountAttrFlags::MOUNT_ATTR_NODEV)?;
    if !files.is_empty() {
        make_places(&root)?;
    }
    let onto = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH | MoveMountFlags::MOVE_MOUNT_T_EMPTY_PATH;
    // The directory as this thread's namespace has it, which is not the one that was opened.
    let here = Dir::open(at.path())?;
    move_mount(&root, "", &here, "", onto).map_err(failed("move_mount(<new root>)"))?;
    rustix::process::fchdir(&root).map_err(failed("fchdir(<new root>)"))?;
    for (copy, shown) in copies.iter().zip(files) {
        let path = format!("lib/{}", shown.name);
        let make = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC;
        rustix::fs::openat(&root, &path, make, Mode::from_raw_mode(0o644)).map_err(failed("openat(<mount point>)"))?;
        move_mount(copy, "", &root, &path, MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH)
            .map_err(failed("move_mount(<library>)"))?;
        only_read(&path, MountFlags::empty())?;
    }
    pivot_root(".", ".").map_err(failed("pivot_root(<new root>)"))?;
    unmount(".", UnmountFlags::DETACH).map_err(failed("umount2(<old root>)"))?;
    only_read("/", MountFlags::NOEXEC)?;
    Ok(Ground { namespaces })
}

/// Where the files of a root directory lie, and a device.
fn make_places(root: &OwnedFd) -> Result<(), CallError> {
    for dir in ["lib", "dev"] {
        rustix::fs::mkdirat(root, dir, Mode::from_raw_mode(0o755)).map_err(failed("mkdirat(<new root>)"))?;
    }
    // The second is where Debian's loader looks first: it would try some fifty other names before it looks into `/lib`.
    for (to, name) in [("lib", "lib64"), (".", "lib/x86_64-linux-gnu")] {
        rustix::fs::symlinkat(to, root, name).map_err(failed("symlinkat(<new root>)"))?;
    }
    Ok(())
}

fn only_read(path: &str, more: MountFlags) -> Result<(), CallError> {
    let flags = MountFlags::BIND | MountFlags::RDONLY | MountFlags::NOSUID | MountFlags::NODEV;
    mount_remount(path, flags | more, c"").map_err(failed("mount(MS_REMOUNT|MS_BIND|MS_RDONLY)"))
}

fn unshare_all() -> rustix::io::Result<()> {
    use rustix::thread::UnshareFlags;
    let flags = UnshareFlags::NEWNS | UnshareFlags::NEWNET | UnshareFlags::NEWIPC | UnshareFlags::NEWUTS;
    // SAFETY: no descriptor table is unshared; the mounts, root and directory are this thread's own from here on, and
    // the thread ends with `build`.
    unsafe { rustix::thread::unshare_unsafe(flags) }
}

/// A file system in memory that is mounted nowhere yet.
fn memory_file_system(size: &str, attributes: MountAttrFlags) -> Result<OwnedFd, CallError> {
    let new = fsopen("tmpfs", FsOpenFlags::FSOPEN_CLOEXEC).map_err(failed("fsopen(tmpfs)"))?;
    for (key, value) in [("mode", "0755"), ("size", size), ("nr_inodes", "64")] {
        fsconfig_set_string(new.as_fd(), key, value).map_err(failed("fsconfig(tmpfs)"))?;
    }
    fsconfig_create(new.as_fd()).map_err(failed("fsconfig(tmpfs, FSCONFIG_CMD_CREATE)"))?;
    let attributes = attributes | MountAttrFlags::MOUNT_ATTR_NOSUID | MountAttrFlags::MOUNT_ATTR_NOEXEC;
    fsmount(new.as_fd(), FsMountFlags::FSMOUNT_CLOEXEC, attributes).map_err(failed("fsmount(tmpfs)"))
}

/// A directory `/dev` with one block device in it, `/dev/NAME`, that belongs to `id` and nobody else can open: to be
/// given to one program (`stripped::Start::devices`).
///
/// # Errors
/// The call that failed. `EPERM` without the right to make device nodes.
pub fn one_device(name: &str, rdev: u64, id: u32) -> Result<OwnedFd, CallError> {
    let dev = memory_file_system("4k", MountAttrFlags::empty())?;
    rustix::fs::mknodat(&dev, name, FileType::BlockDevice, Mode::from_raw_mode(0o600), rdev)
        .map_err(failed("mknodat(<new /dev>)"))?;
    let (uid, gid) = (Uid::from_raw(id), Gid::from_raw(id));
    rustix::fs::chownat(&dev, name, Some(uid), Some(gid), AtFlags::SYMLINK_NOFOLLOW)
        .map_err(failed("fchownat(<new /dev>)"))?;
    Ok(dev)
}
