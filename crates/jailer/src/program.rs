//! Files and directories that root alone can have written.

use rustix::fd::OwnedFd;
use rustix::fs::FileType;
use sys::dir::{Dir, Facts};
use sys::mount;

/// The VMM's program, opened once.
#[derive(Debug)]
pub(crate) struct Program {
    /// The file.
    pub(crate) file: OwnedFd,
    /// What it is.
    pub(crate) facts: Facts,
}

impl Program {
    /// Opens it, where it is a program of root's that nobody else can change and that gives nobody more rights.
    pub(crate) fn open(path: &str) -> Result<Program, String> {
        let above = path.rsplit_once('/').map_or("", |(above, _)| above);
        dir(if above.is_empty() { "/" } else { above })?;
        // By its whole path, whose parts root alone can change: a starter may have mounted it there.
        let file = mount::open_read(path).map_err(|error| format!("--exec-file: {error}"))?;
        let facts = Facts::of(&file).map_err(|error| format!("--exec-file: {error}"))?;
        let why = if facts.kind != FileType::RegularFile {
            "is no regular file"
        } else if facts.uid != 0 || facts.is_writable_by_others() {
            "must be root's, and writable by nobody else"
        } else if facts.mode & 0o111 == 0 {
            "is not executable"
        } else if facts.mode & 0o6000 != 0 {
            "has a set-id bit"
        } else {
            return Ok(Program { file, facts });
        };
        Err(format!("--exec-file: {path} {why}"))
    }
}

/// Opens a directory that, with everything above it, is root's and nobody else can write.
pub(crate) fn dir(path: &str) -> Result<Dir, String> {
    let mut opened = checked("/")?;
    let ends = path.match_indices('/').map(|(at, _)| at).chain([path.len()]);
    for end in ends.filter(|end| *end > 0 && path != "/") {
        opened = checked(&path[..end])?;
    }
    Ok(opened)
}

fn checked(path: &str) -> Result<Dir, String> {
    let dir = Dir::open(path).map_err(|error| error.to_string())?;
    let facts = Facts::of(&dir).map_err(|error| error.to_string())?;
    if facts.uid != 0 || facts.is_writable_by_others() {
        return Err(format!("{path} must be root's, and writable by nobody else"));
    }
    Ok(dir)
}
