//! What lies in the machine, by its own lists: compared before and after, so that "nothing is left" is seen, not said.
//!
//! Others may make and remove links, mounts and VMs meanwhile. What goes again by itself is no remains; and a control
//! group that has processes is somebody's whose VM runs: those of ours ended with their namespace.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

/// What goes by itself has gone by then.
const SETTLE: Duration = Duration::from_secs(1);

/// Links, loop devices, mounts, and the control groups of VMs.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Remains(BTreeSet<String>);

impl Remains {
    /// Looks at the namespaces of this process.
    pub(super) fn look() -> Remains {
        let mut all = BTreeSet::new();
        all.extend(names("/sys/class/net").map(|name| format!("link {name}")));
        for name in names("/sys/block").filter(|name| name.starts_with("loop")) {
            if let Ok(file) = fs::read_to_string(format!("/sys/block/{name}/loop/backing_file")) {
                all.insert(format!("loop device {name} over {}", file.trim_end()));
            }
        }
        let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
        // Where it is; its number and its parent's may be given anew.
        all.extend(mounts.lines().filter_map(|line| Some(format!("mount on {}", line.split(' ').nth(4)?))));
        // One in each of the hierarchies, where there are several.
        for above in std::iter::once("/sys/fs/cgroup".into()).chain(below("/sys/fs/cgroup")) {
            let banger = format!("{above}/banger");
            all.extend(below(&banger).filter(|group| is_empty(group)).map(|group| format!("control group {group}")));
        }
        Remains(all)
    }

    /// What is there and was not before, and stays.
    pub(super) fn since(before: &Remains) -> Vec<String> {
        let end = Instant::now() + SETTLE;
        let mut left = Remains::look();
        loop {
            left.0.retain(|what| !before.0.contains(what));
            if left.0.is_empty() || Instant::now() > end {
                return left.0.into_iter().collect();
            }
            std::thread::sleep(Duration::from_millis(20));
            let now = Remains::look();
            left.0.retain(|what| now.0.contains(what));
        }
    }
}

/// Whether no process is in a control group; one that goes meanwhile has none.
fn is_empty(group: &str) -> bool {
    fs::read_to_string(format!("{group}/cgroup.procs")).map_or(true, |processes| processes.is_empty())
}

fn names(directory: &str) -> impl Iterator<Item = String> + use<> {
    let entries = fs::read_dir(directory).into_iter().flatten().flatten();
    entries.map(|entry| entry.file_name().to_string_lossy().into_owned())
}

/// The directories in a directory, links left out.
fn below(directory: &str) -> impl Iterator<Item = String> + use<> {
    let entries = fs::read_dir(directory).into_iter().flatten().flatten();
    let directories = entries.filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()));
    directories.map(|entry| entry.path().to_string_lossy().into_owned())
}

/// The bytes that a directory's files take on disk.
pub(super) fn size(directory: &Path) -> u64 {
    use std::os::unix::fs::MetadataExt as _;
    let mut bytes = 0;
    let mut folders = vec![directory.to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
            let Ok(facts) = entry.metadata() else { continue };
            bytes += facts.blocks() * 512;
            if facts.is_dir() {
                folders.push(entry.path());
            }
        }
    }
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_new_and_stays_is_named() {
        let now = Remains::look();
        assert!(now.0.contains("link lo") && now.0.contains("mount on /"), "{now:?}");
        let mut before = now;
        assert!(before.0.remove("link lo"));
        // Others of this machine may bring and take theirs.
        assert!(Remains::since(&before).contains(&"link lo".to_owned()));
    }

    #[test]
    fn a_directory_is_as_large_as_its_files() {
        let folder = tempfile::tempdir().unwrap();
        fs::create_dir(folder.path().join("a")).unwrap();
        fs::write(folder.path().join("a/b"), vec![1; 100_000]).unwrap();
        std::os::unix::fs::symlink("/usr", folder.path().join("link")).unwrap();
        assert!((100_000..200_000).contains(&size(folder.path())));
        assert_eq!(size(Path::new("/nonexistent")), 0);
    }
}
