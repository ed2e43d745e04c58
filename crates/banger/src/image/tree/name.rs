//! What an entry of an archive may be called and what may be said of it, checked in one place.

use std::collections::BTreeMap;

use crate::image::error::Error;
use crate::image::tar::Attributes;

/// The longest path and the longest target of a link, in bytes: Linux's `PATH_MAX`, without its zero.
pub(super) const MAX_PATH: usize = 4095;
/// The longest name, in bytes.
const MAX_NAME: usize = 255;
/// The most bytes of extended attributes of one file: what fits into ext4's block for them, with their names.
const MAX_ATTRIBUTES: usize = 3000;
/// The highest device number that can be written into an image.
const MAX_DEVICE: u32 = 65_535;

/// The names of a path. An absolute one begins at the tree's root, as any other does.
pub(super) fn parts(path: &[u8]) -> Result<Vec<&[u8]>, Error> {
    if path.is_empty() || path.len() > MAX_PATH {
        return Err(Error::input(format!("a path of {} bytes; 1 to {MAX_PATH} are possible", path.len())));
    }
    let parts: Vec<&[u8]> = path.split(|byte| *byte == b'/').filter(|part| !matches!(*part, b"" | b".")).collect();
    parts.iter().try_for_each(|part| checked_name(part))?;
    Ok(parts)
}

pub(super) fn checked_name(name: &[u8]) -> Result<(), Error> {
    if name == b".." {
        return Err(Error::input("a path with .. in it"));
    }
    if name.len() > MAX_NAME {
        return Err(Error::input(format!("a name of {} bytes; {MAX_NAME} are the most", name.len())));
    }
    if name.iter().any(u8::is_ascii_control) {
        return Err(Error::input("a name with control characters"));
    }
    Ok(())
}

pub(super) fn checked_target(target: Vec<u8>) -> Result<Vec<u8>, Error> {
    if target.is_empty() || target.len() > MAX_PATH || target.iter().any(u8::is_ascii_control) {
        return Err(Error::input("a symbolic link to nothing, to a path that is too long, or with control characters"));
    }
    Ok(target)
}

pub(super) fn numbers(major: u32, minor: u32) -> Result<(), Error> {
    if major > MAX_DEVICE || minor > MAX_DEVICE {
        return Err(Error::input(format!("the device {major}:{minor}; neither number can be above {MAX_DEVICE}")));
    }
    Ok(())
}

/// Capabilities and users' own attributes. Labels of this machine's security modules mean nothing in a guest.
pub(super) fn kept(attributes: Attributes) -> Result<Attributes, Error> {
    let kept = |name: &[u8]| name == b"security.capability" || name.starts_with(b"user.");
    let kept: BTreeMap<Vec<u8>, Vec<u8>> = attributes.into_iter().filter(|(name, _)| kept(name)).collect();
    let bytes: usize = kept.iter().map(|(name, value)| name.len() + value.len() + 32).sum();
    let odd = |name: &[u8]| name.len() > MAX_NAME || name.iter().any(|byte| byte.is_ascii_control() || *byte == b' ');
    if bytes > MAX_ATTRIBUTES || kept.keys().any(|name| odd(name)) {
        return Err(Error::input("extended attributes that ext4 has no room or no name for"));
    }
    Ok(kept.into_iter().collect())
}
