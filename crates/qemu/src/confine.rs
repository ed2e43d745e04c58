//! What QEMU may open by a path: its program, libraries and firmware, and of its VM's files those that it is told as a
//! path of `/proc/self/fd`. Everything else it gets as a descriptor.

use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;

use rustix::fs::OFlags;
use sys::landlock::{Access, Ruleset};

use crate::machine::Accelerator;

/// Where programs and libraries lie. `/lib` may be a directory of its own or `/usr/lib`.
const PROGRAMS: [&str; 4] = ["/lib", "/lib64", "/usr/lib", "/usr/lib64"];
/// Firmware, the loader's list of libraries, and how large a huge page is.
const DATA: [&str; 5] = [
    "/usr/share/qemu",
    "/usr/share/seabios",
    "/usr/share/ipxe",
    "/etc/ld.so.cache",
    "/sys/kernel/mm/transparent_hugepage",
];

/// The rules for `program`, the files of `told`, and the memory's file where QEMU opens it by a name.
///
/// # Errors
/// `Unsupported` where the kernel has no Landlock; else what opening or the kernel says.
pub(crate) fn rules(
    program: &Path,
    accelerator: Accelerator,
    told: &[&OwnedFd],
    memory: Option<&File>,
) -> io::Result<Ruleset> {
    let rules = Ruleset::new()?;
    rules.allow(name(program)?, Access::Execute)?;
    if let Some(beside) = program.parent().filter(|dir| *dir != Path::new("/usr/bin")) {
        rules.allow(name(beside)?, Access::Read)?;
    }
    // QEMU tries on /dev/null how files are locked.
    let devices: &[&str] = match accelerator {
        Accelerator::Kvm { .. } => &["/dev/null", "/dev/kvm"],
        Accelerator::Tcg { .. } => &["/dev/null"],
    };
    for (paths, access) in [(&PROGRAMS[..], Access::Execute), (&DATA, Access::Read), (devices, Access::Device)] {
        for path in paths {
            match name(Path::new(path)) {
                Ok(file) => rules.allow(file, access)?,
                // What isn't there needs no right.
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) => return Err(error),
            }
        }
    }
    memory.map_or(Ok(()), |file| rules.allow(file, Access::Write))?;
    told.iter().try_for_each(|file| rules.allow(file, Access::Read))?;
    Ok(rules)
}

/// A descriptor that only names it.
fn name(path: &Path) -> io::Result<File> {
    let flags = i32::try_from(OFlags::PATH.bits()).unwrap_or(0);
    File::options().read(true).custom_flags(flags).open(path)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::fd::AsFd as _;
    use std::process::{Command, Stdio};

    /// Where the kernel has no Landlock this can't be shown, and says so.
    #[test]
    fn a_program_under_the_rules_opens_what_it_is_told_and_nothing_of_its_users() {
        let dir = tempfile::tempdir().expect("a directory");
        let told = dir.path().join("told");
        std::fs::write(&told, "told").expect("written");
        let file = OwnedFd::from(File::open(&told).expect("open"));
        let accelerator = Accelerator::Tcg { tsc_khz: None };
        let rules = match rules(Path::new("/bin/sh"), accelerator, &[&file], None) {
            Ok(rules) => rules,
            Err(error) if error.kind() == io::ErrorKind::Unsupported => {
                eprintln!("not run: this kernel has no Landlock ({error})");
                return;
            }
            Err(error) => panic!("{error}"),
        };
        let number = std::os::fd::AsRawFd::as_raw_fd(&file);
        let script = format!(
            "read x </proc/self/fd/{number}; echo \"$x\"; for f in /etc/passwd /dev/tty {0}/new /proc/version; do \
             (: <$f) 2>/dev/null && echo \"$f read\"; (: >$f) 2>/dev/null && echo \"$f written\"; done; : </dev/null",
            dir.path().display()
        );
        let mut command = Command::new("/bin/sh");
        command.args(["-c", &script]).stdout(Stdio::piped()).stderr(Stdio::inherit());
        let child = sys::child::spawn_confined(&mut command, &[file.as_fd()], Some(&rules)).expect("started");
        let output = child.wait_with_output().expect("ended");
        assert_eq!(String::from_utf8_lossy(&output.stdout), "told\n");
        assert!(output.status.success());
    }
}
