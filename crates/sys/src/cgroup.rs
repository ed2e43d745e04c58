//! Control groups: where their hierarchies are mounted, and the small files in them, by descriptor.

use crate::dir::{CallError, Dir};
use crate::mounts;
use rustix::fs::OFlags;
use rustix::io::Errno;
use std::fs::File;
use std::io::{Read as _, Write as _};
use std::sync::Arc;

/// The longest file of a group that is read, in bytes: a number for each of many processes.
const LONGEST: u64 = 1 << 20;

/// Where the kernel's hierarchies are, as this process sees them.
#[derive(Debug)]
pub struct Mounts(Arc<str>);

impl Mounts {
    /// Looks into the kernel's table; proc_pid_mountinfo(5).
    ///
    /// # Errors
    /// Where it can't be read.
    pub fn read() -> std::io::Result<Mounts> {
        mounts::table().map(Mounts)
    }

    /// The mount point of the one hierarchy of the second version.
    pub fn unified(&self) -> Option<String> {
        self.find(|kind, _| kind == "cgroup2")
    }

    /// The mount point of a controller's hierarchy of the first version.
    pub fn of_controller(&self, controller: &str) -> Option<String> {
        self.find(|kind, options| kind == "cgroup" && options.split(',').any(|option| option == controller))
    }

    /// Where the first mount is that `fits` its file system and its super block's options.
    fn find(&self, fits: impl Fn(&str, &str) -> bool) -> Option<String> {
        self.0.lines().find_map(|line| {
            let (mount, system) = line.split_once(" - ")?;
            let mut system = system.split(' ');
            let (kind, options) = (system.next()?, system.nth(1)?);
            let at = mount.split(' ').nth(4)?;
            fits(kind, options).then(|| plain(at))
        })
    }
}

/// A mount point's name as it is: blanks and the like are told in octal.
fn plain(escaped: &str) -> String {
    let mut parts = escaped.split('\\');
    let mut text = parts.next().unwrap_or_default().to_owned();
    for part in parts {
        match part.get(..3).and_then(|octal| u8::from_str_radix(octal, 8).ok()) {
            Some(byte) => {
                text.push(char::from(byte));
                text.push_str(&part[3..]);
            }
            None => {
                text.push('\\');
                text.push_str(part);
            }
        }
    }
    text
}

/// Writes a value into a group's file. In one call: the kernel takes it whole.
///
/// # Errors
/// The call as it was made.
pub fn write(group: &Dir, file: &str, value: &str) -> Result<(), CallError> {
    let open = group.open_at(file, OFlags::WRONLY, 0)?;
    let written = File::from(open).write_all(value.as_bytes());
    written.map_err(|error| failed(&format!("write({}/{file}, {value:?})", group.path()), &error))
}

/// Reads a group's file.
///
/// # Errors
/// The call as it was made.
pub fn read(group: &Dir, file: &str) -> Result<String, CallError> {
    let open = group.open_at(file, OFlags::RDONLY, 0)?;
    let mut text = String::new();
    let read = File::from(open).take(LONGEST).read_to_string(&mut text);
    read.map(|_| text).map_err(|error| failed(&format!("read({}/{file})", group.path()), &error))
}

fn failed(call: &str, error: &std::io::Error) -> CallError {
    CallError::new(call, error.raw_os_error().map_or(Errno::IO, Errno::from_raw_os_error))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hierarchies_are_found_by_the_kernels_table() {
        let mounts = Mounts(
            "30 29 0:26 / /sys/fs/cgroup/cpu\\040set rw,relatime - cgroup cgroup rw,cpuset\n\
             31 29 0:27 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw\n\
             32 29 0:28 / /sys/fs/cgroup/memory rw shared:9 - cgroup cgroup rw,memory\n"
                .into(),
        );
        assert_eq!(mounts.unified().unwrap(), "/sys/fs/cgroup/unified");
        assert_eq!(mounts.of_controller("cpuset").unwrap(), "/sys/fs/cgroup/cpu set");
        assert_eq!(mounts.of_controller("memory").unwrap(), "/sys/fs/cgroup/memory");
        assert!(mounts.of_controller("cpu").is_none());
        assert_eq!(plain("a\\"), "a\\");
    }
}
