//! Mounts by descriptor: a piece of the tree is copied or made without a place, gets its restrictions, and is put at its
//! place last. What was never put anywhere goes with its descriptor.

use crate::dir::CallError;
use rustix::fd::{AsFd, AsRawFd, OwnedFd};
use rustix::fs::{CWD, Mode, OFlags, ResolveFlags, openat2};
use rustix::io::Errno;
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, MountPropagationFlags, MoveMountFlags, OpenTreeFlags, UnmountFlags,
    fsconfig_create, fsconfig_set_string, fsmount, fsopen, mount_change, move_mount, open_tree, unmount,
};
use rustix::thread::{UnshareFlags, unshare_unsafe};

/// What is forbidden on a mount, whatever the file system says.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Forbids {
    /// Nothing can be written.
    pub writes: bool,
    /// No program can be executed.
    pub programs: bool,
    /// No device can be opened.
    pub devices: bool,
}

impl Forbids {
    /// All three.
    pub const ALL: Forbids = Forbids { writes: true, programs: true, devices: true };

    fn flags(self) -> MountAttrFlags {
        // Set-user-ID has no place on a mount of ours.
        let mut flags = MountAttrFlags::MOUNT_ATTR_NOSUID;
        flags.set(MountAttrFlags::MOUNT_ATTR_RDONLY, self.writes);
        flags.set(MountAttrFlags::MOUNT_ATTR_NOEXEC, self.programs);
        flags.set(MountAttrFlags::MOUNT_ATTR_NODEV, self.devices);
        flags
    }
}

/// A mount that has no place yet. It goes with its descriptor unless it is put somewhere.
#[derive(Debug)]
pub struct Tree {
    fd: OwnedFd,
}

impl Tree {
    /// What `file` is, a file or a directory without the mounts below it, once more. `file`'s mount has to belong to this
    /// thread's mount namespace: so it is copied before that namespace is left. The copy is private: what is mounted on
    /// it is seen nowhere else, and nothing that is mounted on the original is seen here.
    ///
    /// # Errors
    /// `open_tree(2)`; `EINVAL` where the mount is another namespace's. `mount_setattr(2)`: Linux 5.12 and later have it.
    pub fn copy(file: impl AsFd) -> Result<Tree, CallError> {
        Tree::clone_with(file, OpenTreeFlags::empty())
    }

    /// The same, with the mounts below it.
    ///
    /// # Errors
    /// As [`Tree::copy`].
    pub fn copy_whole(dir: impl AsFd) -> Result<Tree, CallError> {
        Tree::clone_with(dir, OpenTreeFlags::AT_RECURSIVE)
    }

    fn clone_with(file: impl AsFd, more: OpenTreeFlags) -> Result<Tree, CallError> {
        let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC | OpenTreeFlags::AT_EMPTY_PATH;
        let fd = open_tree(file, "", flags | more).map_err(|errno| CallError::new("open_tree(<fd>, clone)", errno))?;
        let tree = Tree { fd };
        // A copy of a shared mount is its peer: what is put on the one would appear on the other, out of every namespace.
        let whole = if more.is_empty() { 0 } else { libc::AT_RECURSIVE };
        tree.set_attributes(MountAttrFlags::empty(), MountPropagationFlags::PRIVATE, whole)?;
        Ok(tree)
    }

    /// A new file system in memory, of at most `bytes` bytes, whose root has that mode and is root's. Who maps a file of it
    /// and asks for huge pages gets them, where the kernel has any.
    ///
    /// # Errors
    /// The call of the new mount interface that failed.
    pub fn in_memory(bytes: u64, mode: u32, forbids: Forbids) -> Result<Tree, CallError> {
        let failed = |call: &'static str| move |errno| CallError::new(call, errno);
        let context = fsopen("tmpfs", FsOpenFlags::FSOPEN_CLOEXEC).map_err(failed("fsopen(tmpfs)"))?;
        for (key, value) in [("size", bytes.to_string()), ("mode", format!("{mode:o}"))] {
            fsconfig_set_string(context.as_fd(), key, value).map_err(failed("fsconfig(tmpfs)"))?;
        }
        // Refused, without any effect, by a kernel that has no huge pages.
        let _ = fsconfig_set_string(context.as_fd(), "huge", "advise");
        fsconfig_create(context.as_fd()).map_err(failed("fsconfig(tmpfs, create)"))?;
        let fd = fsmount(context.as_fd(), FsMountFlags::FSMOUNT_CLOEXEC, forbids.flags());
        Ok(Tree { fd: fd.map_err(failed("fsmount(tmpfs)"))? })
    }

    /// `/proc` of this process's PID namespace, with nothing but its processes, to be read only.
    ///
    /// # Errors
    /// The call of the new mount interface that failed; Linux 5.8 and later have `subset=pid`.
    pub fn processes() -> Result<Tree, CallError> {
        let failed = |call: &'static str| move |errno| CallError::new(call, errno);
        let context = fsopen("proc", FsOpenFlags::FSOPEN_CLOEXEC).map_err(failed("fsopen(proc)"))?;
        fsconfig_set_string(context.as_fd(), "subset", "pid").map_err(failed("fsconfig(proc, subset=pid)"))?;
        fsconfig_create(context.as_fd()).map_err(failed("fsconfig(proc, create)"))?;
        let fd = fsmount(context.as_fd(), FsMountFlags::FSMOUNT_CLOEXEC, Forbids::ALL.flags());
        Ok(Tree { fd: fd.map_err(failed("fsmount(proc)"))? })
    }

    /// Adds restrictions. They can't be taken back by who has no rights over this mount.
    ///
    /// # Errors
    /// `mount_setattr(2)`: Linux 5.12 and later have it.
    pub fn restrict(&self, forbids: Forbids) -> Result<(), CallError> {
        self.set_attributes(forbids.flags(), MountPropagationFlags::empty(), 0)
    }

    fn set_attributes(
        &self,
        set: MountAttrFlags,
        propagation: MountPropagationFlags,
        flags: i32,
    ) -> Result<(), CallError> {
        // The kernel's struct mount_attr: what to set, what to clear, propagation, user namespace.
        let attributes = [u64::from(set.bits()), 0, u64::from(propagation.bits()), 0];
        // SAFETY: the path is an empty C string, the structure lives across the call and its size is told.
        let answer = unsafe {
            libc::syscall(
                libc::SYS_mount_setattr,
                self.fd.as_raw_fd(),
                c"".as_ptr(),
                libc::AT_EMPTY_PATH | flags,
                attributes.as_ptr(),
                size_of_val(&attributes),
            )
        };
        match answer {
            0 => Ok(()),
            _ => {
                let errno = std::io::Error::last_os_error().raw_os_error().map_or(Errno::IO, Errno::from_raw_os_error);
                Err(CallError::new(format!("mount_setattr({set:?}, {propagation:?})"), errno))
            }
        }
    }

    /// Puts it over what `place` is: a directory over a directory, anything else over a file. A symlink is not followed:
    /// a descriptor has none.
    ///
    /// # Errors
    /// `move_mount(2)`.
    pub fn put_on(&self, place: impl AsFd) -> Result<(), CallError> {
        let flags = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH | MoveMountFlags::MOVE_MOUNT_T_EMPTY_PATH;
        move_mount(&self.fd, "", place, "", flags).map_err(|errno| CallError::new("move_mount(<tree>, <fd>)", errno))
    }
}

impl AsFd for Tree {
    fn as_fd(&self) -> rustix::fd::BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

/// Gives this thread a mount namespace of its own, out of which nothing is told to any other. What the machine mounts
/// and unmounts later is still seen here, so that nothing of it is held up.
///
/// The thread's working directory and umask become its own, too.
///
/// # Errors
/// `unshare(2)` or `mount(2)`.
pub fn own_namespace() -> Result<(), CallError> {
    // SAFETY: neither flag takes descriptors away from other threads (CLONE_FILES does): memory safety does not depend
    // on which mounts a thread sees, nor on its working directory.
    unsafe { unshare_unsafe(UnshareFlags::NEWNS | UnshareFlags::FS) }
        .map_err(|errno| CallError::new("unshare(CLONE_NEWNS|CLONE_FS)", errno))?;
    mount_change("/", MountPropagationFlags::DOWNSTREAM | MountPropagationFlags::REC)
        .map_err(|errno| CallError::new("mount(/, MS_SLAVE|MS_REC)", errno))
}

/// Makes `root`, which must be a mount of this thread's own namespace, its `/`, and lets go of everything that was
/// mounted before. The working directory is the new root behind it.
///
/// # Errors
/// `fchdir(2)`, `pivot_root(2)` (`EINVAL` where `/` is the initial RAM disk's), `umount2(2)`.
pub fn enter(root: &Tree) -> Result<(), CallError> {
    rustix::process::fchdir(&root.fd).map_err(|errno| CallError::new("fchdir(<root>)", errno))?;
    // Both the same: the old root lies over the new one, and is taken off again. No directory is made for it.
    rustix::process::pivot_root(".", ".").map_err(|errno| CallError::new("pivot_root(., .)", errno))?;
    unmount(".", UnmountFlags::DETACH).map_err(|errno| CallError::new("umount2(., MNT_DETACH)", errno))?;
    rustix::process::chdir("/").map_err(|errno| CallError::new("chdir(/)", errno))
}

/// Opens the directory or file of that absolute path, whatever it is, only to stand for it.
///
/// # Errors
/// The call as it was made; a symlink in any part is `ELOOP`.
pub fn place(path: &str) -> Result<OwnedFd, CallError> {
    open_with(path, OFlags::PATH)
}

/// Opens it to be read, without waiting for anything; a namespace's file, for one.
///
/// # Errors
/// As [`place`].
pub fn open_read(path: &str) -> Result<OwnedFd, CallError> {
    open_with(path, OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOCTTY)
}

fn open_with(path: &str, flags: OFlags) -> Result<OwnedFd, CallError> {
    let resolve = ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS;
    openat2(CWD, path, flags | OFlags::CLOEXEC, Mode::empty(), resolve)
        .map_err(|errno| CallError::new(format!("openat2({path:?}, {flags:?}, no symlinks)"), errno))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dir::Dir;
    use std::io::Read;

    /// In a thread, because it keeps its mount namespace.
    fn apart(body: impl FnOnce() + Send) {
        assert!(rustix::process::geteuid().is_root(), "this test needs root");
        std::thread::scope(|scope| {
            scope.spawn(|| {
                own_namespace().unwrap();
                body();
            });
        });
    }

    fn read(path: &str) -> String {
        let mut text = String::new();
        std::fs::File::open(path).unwrap().read_to_string(&mut text).unwrap();
        text
    }

    #[test]
    fn a_copy_is_read_only_where_it_is_put_and_the_machine_never_has_it() {
        let temp = tempfile::tempdir().unwrap();
        let at = |name: &str| temp.path().join(name).to_str().unwrap().to_owned();
        std::fs::write(at("file"), "words").unwrap();
        std::fs::write(at("place"), "").unwrap();
        let tree = Tree::copy(std::fs::File::open(at("file")).unwrap()).unwrap();
        tree.restrict(Forbids::ALL).unwrap();
        apart(|| {
            tree.put_on(place(&at("place")).unwrap()).unwrap();
            assert_eq!(read(&at("place")), "words");
            let denied = std::fs::OpenOptions::new().write(true).open(at("place")).unwrap_err();
            assert_eq!(denied.kind(), std::io::ErrorKind::ReadOnlyFilesystem);
        });
        assert_eq!(read(&at("place")), "");
        std::fs::write(at("file"), "others").unwrap();
    }

    #[test]
    fn a_copy_comes_from_this_namespace_alone() {
        let temp = tempfile::tempdir().unwrap();
        let file = std::fs::File::create(temp.path().join("file")).unwrap();
        apart(|| assert_eq!(Tree::copy(&file).unwrap_err().errno(), Errno::INVAL));
    }

    #[test]
    fn a_file_system_in_memory_becomes_the_root() {
        apart(|| {
            let tree = Tree::in_memory(1 << 20, 0o711, Forbids { devices: true, ..Forbids::default() }).unwrap();
            tree.put_on(place("/mnt").unwrap()).unwrap();
            if std::path::Path::new("/sys/kernel/mm/transparent_hugepage").exists() {
                assert!(read("/proc/thread-self/mountinfo").lines().any(|line| line.contains("huge=advise")));
            }
            std::fs::write("/mnt/inside", "here").unwrap();
            enter(&tree).unwrap();
            assert_eq!(Dir::open("/").unwrap().names().unwrap(), ["inside"]);
            let full = std::fs::write("/big", vec![0; 2 << 20]).unwrap_err();
            assert_eq!(full.kind(), std::io::ErrorKind::StorageFull);
        });
        assert!(!std::path::Path::new("/mnt/inside").exists());
    }

    #[test]
    fn a_place_is_behind_no_link() {
        let temp = tempfile::tempdir().unwrap();
        std::os::unix::fs::symlink("/etc", temp.path().join("link")).unwrap();
        let error = place(temp.path().join("link").to_str().unwrap()).unwrap_err();
        assert!(error.is_symlink(), "{error}");
    }
}
