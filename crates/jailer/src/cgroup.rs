//! The VM's control group: `PARENT/ID` below the hierarchy's root, with the values that were asked for.
//!
//! A component is made or entered by descriptor, never through a link. The kernel's file systems hold none; a folder
//! that somebody mounted over one could.

use sys::cgroup::{self, Mounts};
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
        let mounts = || Mounts::read().map_err(|error| format!("mountinfo: {error}"));
        match (self.version, self.settings.is_empty()) {
            (Version::Two, true) if self.has_parent => self.enter_parent(&mounts()?),
            (_, true) => Ok(()),
            (Version::Two, false) => self.enter_two(&mounts()?, id),
            (Version::One, false) => self.enter_one(&mounts()?, id),
        }
    }

    fn enter_parent(&self, mounts: &Mounts) -> Result<(), String> {
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

    fn enter_two(&self, mounts: &Mounts, id: &str) -> Result<(), String> {
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

    fn enter_one(&self, mounts: &Mounts, id: &str) -> Result<(), String> {
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

/// This process, by 0: whatever its number is in whichever namespace.
fn join(dir: &Dir, file: &str) -> Result<(), String> {
    write(dir, file, "0")
}

fn write(dir: &Dir, file: &str, value: &str) -> Result<(), String> {
    cgroup::write(dir, file, value).map_err(|error| error.to_string())
}

fn read(dir: &Dir, file: &str) -> Result<String, String> {
    cgroup::read(dir, file).map_err(|error| error.to_string())
}

fn make_or_enter(above: &Dir, name: &str) -> Result<Dir, String> {
    above.enter_or_make(name, 0o755).map_err(|error| error.to_string())
}

fn unified(mounts: &Mounts) -> Result<Dir, String> {
    let at = mounts.unified().ok_or("no cgroup2 hierarchy is mounted here: --cgroup-version 1, perhaps")?;
    Dir::open(&at).map_err(|error| error.to_string())
}

fn hierarchy(mounts: &Mounts, controller: &str) -> Result<Dir, String> {
    let at = mounts
        .of_controller(controller)
        .ok_or_else(|| format!("no cgroup hierarchy of {controller} is mounted here: --cgroup-version 2, perhaps"))?;
    Dir::open(&at).map_err(|error| error.to_string())
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
}
