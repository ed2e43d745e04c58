//! Which mount something lies on, and whether root alone can have said whose the files on it are.
//!
//! Asked of `/proc`, never of the file system: it may be a user's own, and answer when and what he likes.

use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use std::os::fd::{AsRawFd, OwnedFd};
use sys::dir::CallError;

/// The mounts that were met on the way to a file.
#[derive(Default)]
pub(super) struct Mounts {
    trusted: Vec<u64>,
}

/// Whether the owners of files on a mount may be of a user's choice.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Forgeable {
    Yes,
    No,
}

impl Mounts {
    /// Trusts the mount of `fd`: what the helper itself stands on.
    pub(super) fn trust(&mut self, fd: &OwnedFd) -> Result<(), CallError> {
        self.trusted.push(mount_of(fd)?);
        Ok(())
    }

    /// Whether `fd` lies on a mount where set-user-ID programs don't count: FUSE's, a stick's, an image's.
    pub(super) fn check(&mut self, fd: &OwnedFd) -> Result<Forgeable, CallError> {
        let id = mount_of(fd)?;
        if self.trusted.contains(&id) {
            return Ok(Forgeable::No);
        }
        let mounts = sys::mounts::table().map_err(|error| {
            let errno = error.raw_os_error().map_or(Errno::IO, Errno::from_raw_os_error);
            CallError::new("read of the table of mounts", errno)
        })?;
        // Gone meanwhile, or not in our namespace: then nobody can say.
        if options_of(&mounts, id).is_none_or(|options| options.split(',').any(|option| option == "nosuid")) {
            return Ok(Forgeable::Yes);
        }
        self.trusted.push(id);
        Ok(Forgeable::No)
    }
}

fn mount_of(fd: &OwnedFd) -> Result<u64, CallError> {
    let path = format!("/proc/self/fdinfo/{}", fd.as_raw_fd());
    let failed = |errno| CallError::new(format!("read({path:?})"), errno);
    let info = rustix::fs::open(&path, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty()).map_err(failed)?;
    // Four short lines, given in one piece: the third is the mount's.
    let mut text = [0u8; 512];
    let length = rustix::io::read(&info, &mut text[..]).map_err(failed)?;
    let mut lines = text[..length].split(|&byte| byte == b'\n');
    let id = lines.find_map(|line| std::str::from_utf8(line.strip_prefix(b"mnt_id:")?).ok()?.trim().parse().ok());
    id.ok_or_else(|| failed(Errno::IO))
}

/// The options of the mount `id` in a text as proc_pid_mountinfo(5) says: its id first, its options sixth.
fn options_of(mounts: &str, id: u64) -> Option<&str> {
    mounts.lines().find_map(|line| {
        let mut fields = line.split(' ');
        (fields.next()?.parse() == Ok(id)).then(|| fields.nth(4)).flatten()
    })
}

#[cfg(test)]
mod tests {
    use super::options_of;

    #[test]
    fn options_by_id() {
        let text = "22 1 0:20 / / rw,relatime shared:1 - ext4 /dev/a rw\n\
                    222 22 0:9 / /mnt/22 ro,nosuid,nodev - fuse x rw,user_id=1000\n";
        assert_eq!(options_of(text, 222), Some("ro,nosuid,nodev"));
        assert_eq!(options_of(text, 22), Some("rw,relatime"));
        assert_eq!(options_of(text, 2), None);
    }
}
