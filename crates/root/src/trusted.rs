//! Files and directories that root alone can have written.

use rustix::fd::OwnedFd;
use rustix::fs::{FileType, OFlags};
use std::io::Read as _;
use sys::dir::{Dir, Facts};
use sys::trusted::roots_alone;

pub(crate) use sys::trusted::dir;

/// A configuration is a page or two.
const LONGEST: u64 = 1 << 20;

/// Reads a file that root alone can have written. `None` where it, or a directory above it, is not there.
pub(crate) fn read(path: &str) -> Result<Option<String>, String> {
    let Some(file) = file(path)? else { return Ok(None) };
    let mut text = String::new();
    let mut bounded = std::fs::File::from(file).take(LONGEST + 1);
    bounded.read_to_string(&mut text).map_err(|error| format!("{path}: {error}"))?;
    if text.len() as u64 > LONGEST {
        return Err(format!("{path} has more than {LONGEST} bytes"));
    }
    Ok(Some(text))
}

/// Opens a file that root alone can have written, to be read or run by its descriptor. `None` where it, or a directory
/// above it, is not there.
pub(crate) fn file(path: &str) -> Result<Option<OwnedFd>, String> {
    let (above, name) = split(path);
    if Dir::open(above).is_err_and(|error| error.is_missing()) {
        return Ok(None);
    }
    let file = match dir(above)?.open_at(name, OFlags::RDONLY, 0) {
        Ok(file) => file,
        Err(error) if error.is_missing() => return Ok(None),
        Err(error) if error.is_symlink() => return Err(format!("{path} is a symlink; put the file itself there")),
        Err(error) => return Err(error.to_string()),
    };
    let facts = Facts::of(&file).map_err(|error| format!("{path}: {error}"))?;
    if facts.kind != FileType::RegularFile {
        return Err(format!("{path} is {}, not a regular file", crate::places::kind_name(facts.kind)));
    }
    roots_alone(path, &facts)?;
    Ok(Some(file))
}

/// The directory and the name of an absolute path.
pub(crate) fn split(path: &str) -> (&str, &str) {
    match path.rsplit_once('/') {
        Some(("", name)) => ("/", name),
        Some(parts) => parts,
        None => ("/", path),
    }
}

/// A mistake in a TOML text, on one line, with the line that it stands in.
pub(crate) fn in_line(path: &str, text: &str, error: &toml::de::Error) -> String {
    let at = error.span().map_or(0, |span| span.start.min(text.len()));
    let line = 1 + text.as_bytes()[..at].iter().filter(|&&byte| byte == b'\n').count();
    format!("{path}, line {line}: {}", error.message().replace('\n', " "))
}
