//! Support for the tests of jailed VMs: a jailer, a static stand-in VMM, requests with a jail.

use super::*;
use std::path::{Path, PathBuf};

pub(crate) const BASE: &str = "/mnt/s/jail";
pub(crate) const JAILER: &str = "/mnt/o/bin/jailer";
/// Names Firecracker's own jailer, where there is one: the same tests, over that one.
pub(crate) const REAL_JAILER: &str = "BANGER_TEST_JAILER";

/// Puts the jailer and a VMM where root alone writes, and makes what VM 1 needs.
pub(crate) fn jail_ground(machines: u32) {
    make_dir("/mnt/o/bin", 0, 0o755);
    let built = std::env::var_os(REAL_JAILER).map_or_else(
        || PathBuf::from(env!("CARGO_BIN_EXE_bangerd-root")).with_file_name("banger-jailer"),
        PathBuf::from,
    );
    assert!(built.exists(), "{built:?} is missing: cargo build -p jailer");
    make_file(JAILER, &fs::read(built).expect("the jailer"), 0, 0o755);
    let source = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/vm_support/vmm.c");
    output("cc", &["-static", "-O1", "-o", VMM, source]);
    fs::set_permissions(VMM, std::os::unix::fs::PermissionsExt::from_mode(0o755)).expect("mode");
    make_dir(BASE, OWNER, 0o755);
    for n in 1..=machines {
        ground(n);
    }
    make_file("/mnt/s/kernels/initrd", b"initrd", OWNER, 0o644);
    make_file("/mnt/s/images/data", &[b'd'; 4096], OWNER, 0o600);
}

/// Whether it is this project's jailer.
pub(crate) fn is_ours() -> bool {
    std::env::var_os(REAL_JAILER).is_none()
}

pub(crate) fn jailed(n: u32) -> Value {
    let jailer = json!({"binary": JAILER, "chroot_base_dir": BASE, "uid": OWNER, "gid": OWNER});
    with(request(n), "jailer", jailer)
}

pub(crate) fn vm_dir(n: u32) -> String {
    format!("{BASE}/firecracker/vm-{n}")
}

pub(crate) fn machine_mounts() -> String {
    fs::read_to_string("/proc/self/mountinfo").expect("mounts")
}

/// Nothing of VM `n` is there: process, record, link, jail.
pub(crate) fn assert_gone(n: u32, when: &str) {
    assert_nothing_left(when);
    assert!(!Path::new(&vm_dir(n)).exists(), "{when}: {}\n{}", vm_dir(n), log_text());
}
