//! The VMM's program: a file that root alone can have written.

use rustix::fd::OwnedFd;
use rustix::fs::FileType;
use sys::dir::Facts;
use sys::{mount, trusted};

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
        trusted::dir(if above.is_empty() { "/" } else { above })?;
        // By its whole path, whose parts root alone can change: a starter may have mounted it there.
        let file = mount::open_read(path).map_err(|error| format!("--exec-file: {error}"))?;
        let facts = Facts::of(&file).map_err(|error| format!("--exec-file: {error}"))?;
        trusted::roots_alone(path, &facts).map_err(|why| format!("--exec-file: {why}"))?;
        let why = if facts.kind != FileType::RegularFile {
            "is no regular file"
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
