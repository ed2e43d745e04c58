//! Ids of VMs and of drives.

use super::{Invalid, name_text};
use crate::code::shown;

/// The longest id.
pub const MAX_ID: usize = 64;

/// Names that a chroot uses itself, so that no drive may have one.
const RESERVED: [&str; 18] = [
    "bin",
    "dev",
    "etc",
    "firecracker",
    "firecracker.pid",
    "firecracker.socket",
    "initrd",
    "lib",
    "lib32",
    "lib64",
    "opt",
    "proc",
    "run",
    "sys",
    "tmp",
    "usr",
    "vmlinux",
    "vsock.sock",
];

/// A VM's id: 1 to 64 letters, digits and `-`.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct VmId(String);

/// A drive's id and its name in a chroot.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct DriveId(String);

name_text!(VmId);
name_text!(DriveId);

impl VmId {
    /// Checks a VM's id.
    pub fn new(text: &str) -> Result<VmId, Invalid> {
        let plain = text.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-');
        if plain && (1..=MAX_ID).contains(&text.len()) {
            return Ok(VmId(text.to_owned()));
        }
        Err(Invalid::new(format!("vm_id {} must be 1 to 64 letters, digits and -", shown(text))))
    }

    /// The MAC address of its guest: the same for the same VM, locally administered, of no group.
    pub fn mac(&self) -> String {
        // FNV-1a, 64 bits: what is wanted is a spread over the 40 bits that are left, not secrecy.
        let hash = self
            .0
            .bytes()
            .fold(0xcbf2_9ce4_8422_2325u64, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3));
        let [a, b, c, d, e, f, g, h] = hash.to_be_bytes();
        format!("02:{:02x}:{:02x}:{:02x}:{:02x}:{:02x}", a ^ f, b ^ g, c ^ h, d, e)
    }
}

impl DriveId {
    /// Checks an id that was given: 1 to 64 letters, digits, `_` and `-`.
    pub fn new(text: &str) -> Result<DriveId, Invalid> {
        let plain = text.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_'));
        if !plain || !(1..=MAX_ID).contains(&text.len()) {
            return Err(Invalid::new(format!("drive id {} must be 1 to 64 letters, digits, _ and -", shown(text))));
        }
        DriveId::unreserved(text)
    }

    /// The name of a drive without an id: the last part of its path, in which `.` may stand too.
    pub fn from_path(path: &str) -> Result<DriveId, Invalid> {
        let last = path.rsplit('/').next().unwrap_or("");
        if !super::is_plain(last) || !(1..=MAX_ID).contains(&last.len()) || last.starts_with('.') {
            return Err(Invalid::new(format!(
                "a drive without an id is named after its file, and {} is no name: give it an id",
                shown(last)
            )));
        }
        DriveId::unreserved(last)
    }

    fn unreserved(text: &str) -> Result<DriveId, Invalid> {
        if RESERVED.contains(&text) {
            return Err(Invalid::new(format!("a drive can't be called {}: the chroot uses that name", shown(text))));
        }
        Ok(DriveId(text.to_owned()))
    }

    /// The id that Firecracker is given: it takes letters, digits and `_`.
    pub fn for_firecracker(&self) -> String {
        self.0.replace(['-', '.'], "_")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn ids() {
        assert!(VmId::new("7f3c2a9e4b1d").is_ok() && VmId::new(&"a".repeat(64)).is_ok());
        for bad in ["", "a_b", "../../o/x", "a.b", "a b", "é"] {
            assert!(VmId::new(bad).is_err(), "{bad}");
        }
        assert!(VmId::new(&"a".repeat(65)).is_err());
        assert_eq!(DriveId::from_path("/s/vms/root.ext4").unwrap().for_firecracker(), "root_ext4");
        for bad in ["", "vmlinux", "firecracker", "a.b", "../x", "dev"] {
            assert!(DriveId::new(bad).is_err(), "{bad}");
        }
        assert!(DriveId::from_path("/s/vsock.sock").is_err() && DriveId::from_path("/s/.x").is_err());
    }

    proptest! {
        #[test]
        fn an_id_is_one_part_of_a_path(text in "\\PC{0,70}") {
            if VmId::new(&text).is_ok() || DriveId::new(&text).is_ok() {
                prop_assert!(!text.contains(['/', '.', '\0']) && text.len() <= 64);
            }
        }
    }

    #[test]
    fn addresses_are_stable_local_and_differ() {
        let address = |id: &str| VmId::new(id).unwrap().mac();
        assert_eq!(address("vm1"), address("vm1"));
        let all: std::collections::HashSet<String> = (0..2000).map(|n| address(&format!("vm{n}"))).collect();
        assert_eq!(all.len(), 2000);
        for address in &all {
            let is_taken = crate::firecracker::MacAddr::new(address.as_str()).is_ok();
            assert!(address.starts_with("02:") && is_taken, "{address}");
        }
    }
}
