//! The VM's control group: `PARENT/ID` below the hierarchy's root, with the values that were asked for.
//!
//! A component is made or entered by descriptor, never through a link. The kernel's file systems hold none; a folder
//! that somebody mounted over one could.

use rustix::fs::OFlags;
use std::fs::File;
use std::io::{Read as _, Write as _};
use sys::dir::Dir;

/// Which of the kernel's two interfaces.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Version {
    /// A hierarchy for each controller.
    One,
    /// One hierarchy.
    Two,
}

impl Version {
    pub(crate) fn parse(text: &str) -> Result<Version, String> {
        match text {
            "1" => Ok(Version::One),
            "2" => Ok(Version::Two),
            _ => Err(format!("--cgroup-version: {text:?} is neither 1 nor 2")),
        }
    }
}

/// A value for a file of the group: `memory.max=1000000`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Setting {
    controller: String,
    file: String,
    value: String,
}

impl Setting {
    pub(crate) fn parse(text: &str) -> Result<Setting, String> {
        let wrong = || format!("--cgroup: {text:?} is not CONTROLLER.NAME=VALUE");
        let (file, value) = text.split_once('=').ok_or_else(wrong)?;
        let (controller, name) = file.split_once('.').ok_or_else(wrong)?;
        let is_word = |word: &str| {
            !word.is_empty() && word.bytes().all(|byte| byte.is_ascii_lowercase() || matches!(byte, b'_' | b'.'))
        };
        let is_plain = |value: &str| !value.is_empty() && value.bytes().all(|byte| (b' '..=b'~').contains(&byte));
        if !is_word(controller) || !is_word(name) || !is_plain(value) {
            return Err(wrong());
        }
        Ok(Setting { controller: controller.to_owned(), file: file.to_owned(), value: value.to_owned() })
    }
}

/// What was asked for.
#[derive(Debug)]
pub(crate) struct Asked {
    /// Which interface.
    pub(crate) version: Version,
    /// Whether the group above was named.
    pub(crate) has_parent: bool,
    /// The group above, by its parts.
    pub(crate) parent: Vec<String>,
    /// The values.
    pub(crate) settings: Vec<Setting>,
}

/// The parts of `--parent-cgroup`.
pub(crate) fn parent(text: &str) -> Result<Vec<String>, String> {
    let parts: Vec<String> = text.split('/').map(str::to_owned).collect();
    let is_part = |part: &String| !matches!(part.as_str(), "" | "." | "..") && !part.contains('\0');
    if !parts.iter().all(is_part) {
        return Err(format!("--parent-cgroup: {text:?} must be a relative path without empty, . or .. parts"));
    }
    Ok(parts)
}

impl Asked {
    /// Makes the group of `id` and moves this process into it. Without values, and with a parent of the second version
    /// that exists, it moves into that one, as Firecracker's jailer does; without either it stays where it is.
    pub(crate) fn enter(&self, id: &str) -> Result<(), String> {
        let mounts = std::fs::read_to_string("/proc/self/mountinfo").map_err(|error| format!("mountinfo: {error}"))?;
        match (self.version, self.settings.is_empty()) {
            (Version::Two, true) if self.has_parent => self.enter_parent(&mounts),
            (_, true) => Ok(()),
            (Version::Two, false) => self.enter_two(&mounts, id),
            (Version::One, false) => self.enter_one(&mounts, id),
        }
    }

    fn enter_parent(&self, mounts: &str) -> Result<(), String> {
        let mut dir = unified(mounts)?;
        for part in &self.parent {
            dir = match dir.dir(part) {
                Ok(below) => below,
                Err(error) if error.is_missing() => return Ok(()),
                Err(error) => return Err(error.to_string()),
            };
        }
        join(&dir, "cgroup.procs")
    }

    fn enter_two(&self, mounts: &str, id: &str) -> Result<(), String> {
        let mut dir = unified(mounts)?;
        let mut controllers: Vec<&str> = self.settings.iter().map(|setting| setting.controller.as_str()).collect();
        controllers.retain(|controller| *controller != "cgroup");
        controllers.sort_unstable();
        controllers.dedup();
        for part in self.parent.iter().map(String::as_str).chain([id]) {
            for controller in &controllers {
                write(&dir, "cgroup.subtree_control", &format!("+{controller}"))?;
            }
            dir = make_or_enter(&dir, part)?;
        }
        for setting in &self.settings {
            write(&dir, &setting.file, &setting.value)?;
        }
        join(&dir, "cgroup.procs")
    }

    fn enter_one(&self, mounts: &str, id: &str) -> Result<(), String> {
        let mut controllers: Vec<&str> = self.settings.iter().map(|setting| setting.controller.as_str()).collect();
        controllers.sort_unstable();
        controllers.dedup();
        for controller in controllers {
            let mut dir = hierarchy(mounts, controller)?;
            for part in self.parent.iter().map(String::as_str).chain([id]) {
                let below = make_or_enter(&dir, part)?;
                if controller == "cpuset" {
                    inherit(&dir, &below)?;
                }
                dir = below;
            }
            for setting in self.settings.iter().filter(|setting| setting.controller == controller) {
                write(&dir, &setting.file, &setting.value)?;
            }
            join(&dir, "tasks")?;
        }
        Ok(())
    }
}

/// A group without CPUs or memory nodes takes no process.
fn inherit(above: &Dir, below: &Dir) -> Result<(), String> {
    for file in ["cpuset.cpus", "cpuset.mems"] {
        if read(below, file)?.trim().is_empty() {
            write(below, file, read(above, file)?.trim())?;
        }
    }
    Ok(())
}

fn make_or_enter(above: &Dir, name: &str) -> Result<Dir, String> {
    match above.dir(name) {
        Err(error) if error.is_missing() => {}
        other => return other.map_err(|error| error.to_string()),
    }
    match above.make_dir(name, 0o755) {
        // Another jailer was faster.
        Err(error) if error.errno() == rustix::io::Errno::EXIST => above.dir(name),
        other => other,
    }
    .map_err(|error| error.to_string())
}

/// This process, by 0: whatever its number is in whichever namespace.
fn join(dir: &Dir, file: &str) -> Result<(), String> {
    write(dir, file, "0")
}

fn write(dir: &Dir, file: &str, value: &str) -> Result<(), String> {
    let open = dir.open_at(file, OFlags::WRONLY, 0).map_err(|error| error.to_string())?;
    let told = |error| format!("write({}/{file}, {value:?}): {error}", dir.path());
    // In one call: the kernel takes a value whole.
    File::from(open).write_all(value.as_bytes()).map_err(told)
}

fn read(dir: &Dir, file: &str) -> Result<String, String> {
    let open = dir.open_at(file, OFlags::RDONLY, 0).map_err(|error| error.to_string())?;
    let mut text = String::new();
    let read = File::from(open).take(1 << 16).read_to_string(&mut text);
    read.map(|_| text).map_err(|error| format!("read({}/{file}): {error}", dir.path()))
}

fn unified(mounts: &str) -> Result<Dir, String> {
    let at = find(mounts, |kind, _| kind == "cgroup2")
        .ok_or("no cgroup2 hierarchy is mounted here: --cgroup-version 1, perhaps")?;
    Dir::open(&at).map_err(|error| error.to_string())
}

fn hierarchy(mounts: &str, controller: &str) -> Result<Dir, String> {
    let has = |kind: &str, options: &str| kind == "cgroup" && options.split(',').any(|option| option == controller);
    let at = find(mounts, has)
        .ok_or_else(|| format!("no cgroup hierarchy of {controller} is mounted here: --cgroup-version 2, perhaps"))?;
    Dir::open(&at).map_err(|error| error.to_string())
}

/// Where the first mount is that `fits` its file system and its super block's options; proc_pid_mountinfo(5).
fn find(mounts: &str, fits: impl Fn(&str, &str) -> bool) -> Option<String> {
    mounts.lines().find_map(|line| {
        let (mount, system) = line.split_once(" - ")?;
        let mut system = system.split(' ');
        let (kind, options) = (system.next()?, system.nth(1)?);
        let at = mount.split(' ').nth(4)?;
        fits(kind, options).then(|| plain(at))
    })
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn settings_name_a_file_of_their_controller() {
        let good = Setting::parse("cpuset.cpu_exclusive=1").unwrap();
        assert_eq!(
            (good.controller.as_str(), good.file.as_str(), good.value.as_str()),
            ("cpuset", "cpuset.cpu_exclusive", "1")
        );
        assert_eq!(Setting::parse("io.max=8:16 rbps=1").unwrap().value, "8:16 rbps=1");
        for bad in ["", "memory=1", "memory.max", "memory.max=", ".max=1", "a/b.c=1", "../x.y=1", "m.x=a\nb", "M.x=1"] {
            assert!(Setting::parse(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn parents_stay_below() {
        assert_eq!(parent("a/b").unwrap(), ["a", "b"]);
        for bad in ["", "/", "/a", "a/", "a//b", "..", "a/../b", ".", "a\0"] {
            assert!(parent(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn hierarchies_are_found_by_the_kernels_table() {
        let mounts = "\
            30 29 0:26 / /sys/fs/cgroup/cpu\\040set rw,relatime - cgroup cgroup rw,cpuset\n\
            31 29 0:27 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw\n\
            32 29 0:28 / /sys/fs/cgroup/memory rw shared:9 - cgroup cgroup rw,memory\n";
        assert_eq!(find(mounts, |kind, _| kind == "cgroup2").unwrap(), "/sys/fs/cgroup/unified");
        assert_eq!(find(mounts, |_, options| options.contains("cpuset")).unwrap(), "/sys/fs/cgroup/cpu set");
        assert!(find(mounts, |kind, _| kind == "ext4").is_none());
        assert_eq!(plain("a\\"), "a\\");
    }
}
