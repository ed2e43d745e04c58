//! Names of device-mapper snapshots and of loop devices.

use super::{Invalid, is_plain, name_text};
use crate::code::shown;

/// The longest name of a dm device: the kernel's `DM_NAME_LEN` less its NUL.
pub const MAX_DM: usize = 127;
const MAPPER: &str = "/dev/mapper/";

/// A snapshot of banger's: `fc-rootfs-` and something behind it.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct DmName(String);

name_text!(DmName);

impl DmName {
    /// Checks a snapshot's name.
    pub fn new(text: &str) -> Result<DmName, Invalid> {
        let rest = text.strip_prefix("fc-rootfs-");
        if rest.is_some_and(|rest| !rest.is_empty()) && text.len() <= MAX_DM && is_plain(text) {
            return Ok(DmName(text.to_owned()));
        }
        Err(Invalid::new(format!(
            "dm target {} is outside banger-managed naming: fc-rootfs-, then letters, digits, - _ . up to 127 in all",
            shown(text)
        )))
    }

    /// Checks a snapshot's node, `/dev/mapper/<name>`.
    pub fn from_device(text: &str) -> Result<DmName, Invalid> {
        match text.strip_prefix(MAPPER) {
            Some(name) => DmName::new(name),
            None => Err(Invalid::new(format!("dm device {} is not /dev/mapper/fc-rootfs-…", shown(text)))),
        }
    }

    /// Checks a name or a node.
    pub fn from_target(text: &str) -> Result<DmName, Invalid> {
        if text.starts_with(MAPPER) { DmName::from_device(text) } else { DmName::new(text) }
    }

    /// The path of its node.
    pub fn device(&self) -> String {
        format!("{MAPPER}{}", self.0)
    }
}

/// A loop device, by its number.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct LoopNumber(pub u32);

impl LoopNumber {
    /// Checks a loop device's path: `/dev/loop` and digits, without leading zeros.
    pub fn from_device(text: &str) -> Result<LoopNumber, Invalid> {
        let digits = text.strip_prefix("/dev/loop").unwrap_or("");
        // The kernel's minors have 20 bits.
        match digits.parse::<u32>() {
            Ok(number) if number < 1 << 20 && number.to_string() == digits => Ok(LoopNumber(number)),
            _ => Err(Invalid::new(format!("loop device {} is not /dev/loop and a number", shown(text)))),
        }
    }

    /// The path of its node.
    pub fn device(self) -> String {
        format!("/dev/loop{}", self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn names_nodes_and_targets() {
        let name = DmName::new("fc-rootfs-7f3c2a9e").unwrap();
        assert_eq!(DmName::from_device(&name.device()).unwrap(), name);
        assert_eq!(DmName::from_target(name.as_str()).unwrap(), name);
        for bad in [
            "fc-rootfs-",
            "fc-rootfs-x --table",
            "fc-rootfs-a/../../loop0",
            "/dev/mapper/fc-rootfs-a/../control",
            "/dev/mapper/",
            "cryptroot",
            "/dev/mapper//fc-rootfs-a",
            "/dev/sda",
            "",
        ] {
            assert!(DmName::from_target(bad).is_err(), "{bad}");
        }
        assert!(DmName::new(&format!("fc-rootfs-{}", "x".repeat(117))).is_ok());
        assert!(DmName::new(&format!("fc-rootfs-{}", "x".repeat(118))).is_err());
    }

    #[test]
    fn loops_by_number() {
        assert_eq!(LoopNumber::from_device("/dev/loop4"), Ok(LoopNumber(4)));
        for bad in [
            "/dev/loop",
            "/dev/loop04",
            "/dev/loop-1",
            "/dev/loop+1",
            "/dev/loop4 ",
            "/dev/loop4p1",
            "/dev/sda",
            "/dev/loop4294967296",
            "/dev/loop-control",
        ] {
            assert!(LoopNumber::from_device(bad).is_err(), "{bad}");
        }
    }

    proptest! {
        #[test]
        fn a_target_that_passes_has_no_path_in_it(text in "(/dev/mapper/)?(fc-rootfs-)?\\PC{0,20}") {
            if let Ok(name) = DmName::from_target(&text) {
                prop_assert!(!name.as_str().contains('/') && name.as_str().starts_with("fc-rootfs-"));
            }
        }
    }
}
