//! Files in memory, which a worker is given.

use crate::fail::Fail;
use rustix::fs::{MemfdFlags, SealFlags};
use std::fs::File;
use sys::dir::CallError;

/// A file in memory.
pub(in crate::disk) fn memory_file(name: &str) -> Result<File, Fail> {
    rustix::fs::memfd_create(name, MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING)
        .map(File::from)
        .map_err(|errno| Fail::new("a file in memory can't be made").because(CallError::new("memfd_create", errno)))
}

/// A file in memory, all of it a hole, that nobody can make larger: it is nobody's until it is read.
pub(in crate::disk) fn bounded_file(name: &str, size: u64) -> Result<File, Fail> {
    let file = memory_file(name)?;
    let failed = |call, errno| Fail::new("a file in memory can't be made").because(CallError::new(call, errno));
    rustix::fs::ftruncate(&file, size).map_err(|errno| failed("ftruncate", errno))?;
    let seals = SealFlags::SEAL | SealFlags::SHRINK | SealFlags::GROW;
    rustix::fs::fcntl_add_seals(&file, seals).map_err(|errno| failed("F_ADD_SEALS", errno))?;
    Ok(file)
}

/// Nobody writes it any more, whoever holds it.
pub(in crate::disk) fn seal(file: &File) -> Result<(), Fail> {
    let seals = SealFlags::SEAL | SealFlags::SHRINK | SealFlags::GROW | SealFlags::WRITE;
    rustix::fs::fcntl_add_seals(file, seals)
        .map_err(|errno| Fail::new("a file in memory can't be sealed").because(CallError::new("F_ADD_SEALS", errno)))
}
