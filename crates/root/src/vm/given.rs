//! What every VMM's process is given, and every jailer's.

use rustix::fs::{Mode, OFlags};
use std::ffi::CString;
use std::os::fd::OwnedFd;
use sys::dir::CallError;

/// What a VMM's descriptors are bounded by: each drive, tap and connection takes some.
const OPEN_FILES: u64 = 4096;
/// A VMM goes before the services of its host where memory runs out.
pub(super) const OOM_SCORE_ADJ: &std::ffi::CStr = c"200";

/// Words as a program is given them.
pub(super) fn arguments(words: &[&str]) -> Result<Vec<CString>, String> {
    words.iter().map(|word| CString::new(*word).map_err(|error| error.to_string())).collect()
}

/// What it reads from.
pub(super) fn null() -> Result<OwnedFd, String> {
    rustix::fs::open("/dev/null", OFlags::RDWR | OFlags::CLOEXEC, Mode::empty())
        .map_err(|errno| CallError::new("open(/dev/null)", errno).to_string())
}

/// As many as we may hold ourselves, where that is less.
pub(super) fn open_files() -> u64 {
    let limit = rustix::process::getrlimit(rustix::process::Resource::Nofile);
    limit.maximum.unwrap_or(OPEN_FILES).min(OPEN_FILES)
}

/// The group that may use `/dev/kvm`, where this machine has one.
pub(super) fn kvm_group() -> Option<u32> {
    let groups = std::fs::read_to_string("/etc/group").ok()?;
    groups.lines().find_map(|line| line.strip_prefix("kvm:")?.split(':').nth(1)?.parse().ok())
}
