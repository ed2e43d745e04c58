//! What root alone can have put where it is.

use crate::dir::{Dir, Facts};

/// Opens the directory of an absolute path that, with everything above it, is root's and nobody else can write.
///
/// # Errors
/// One line that names the part which is missing, a symlink, another's, or writable by others, and what to do.
pub fn dir(path: &str) -> Result<Dir, String> {
    let mut opened = checked("/")?;
    for (at, _) in path.match_indices('/').skip(1) {
        opened = checked(&path[..at])?;
    }
    if path != "/" {
        opened = checked(path)?;
    }
    Ok(opened)
}

fn checked(path: &str) -> Result<Dir, String> {
    let dir = Dir::open(path).map_err(|error| match error {
        error if error.is_missing() => format!("{path}: there is no such directory"),
        error if error.is_symlink() => format!("{path} is a symlink, or behind one; name the real directory"),
        error => error.to_string(),
    })?;
    let facts = Facts::of(&dir).map_err(|error| format!("{path}: {error}"))?;
    roots_alone(path, &facts)?;
    Ok(dir)
}

/// Refuses what is not root's, or can be written by others.
///
/// # Errors
/// One line that names `path` and what to do.
pub fn roots_alone(path: &str, facts: &Facts) -> Result<(), String> {
    if facts.uid != 0 {
        return Err(format!("{path} belongs to uid {}; it must be root's (chown root {path})", facts.uid));
    }
    if facts.is_writable_by_others() {
        return Err(format!("{path} can be written by others than root (chmod go-w {path})"));
    }
    Ok(())
}
