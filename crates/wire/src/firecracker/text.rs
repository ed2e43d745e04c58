//! Texts in Firecracker's bodies, each checked in one place.

use std::fmt;

use serde::{Deserialize, Serialize};

/// The most bytes of a kernel command line, without its final NUL.
pub const MAX_BOOT_ARGS: usize = 2047;
/// The most bytes of a path, without its final NUL.
pub const MAX_PATH: usize = 4095;
/// The most bytes of a resource's id.
pub const MAX_ID: usize = 64;
/// Why a text is none of these.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Invalid(&'static str);

impl Invalid {
    pub(super) const fn new(reason: &'static str) -> Self {
        Self(reason)
    }
}

impl fmt::Display for Invalid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.0)
    }
}

impl std::error::Error for Invalid {}

macro_rules! checked_text {
    ($(#[$doc:meta])* $name:ident, $check:expr) => {
        $(#[$doc])*
        #[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[serde(try_from = "String", into = "String")]
        pub struct $name(String);

        impl $name {
            /// Checks the text.
            ///
            /// # Errors
            /// Says what is wrong with it, without repeating it.
            pub fn new(text: impl Into<String>) -> Result<Self, Invalid> {
                let text = text.into();
                let check: fn(&str) -> Result<(), Invalid> = $check;
                check(&text)?;
                Ok(Self(text))
            }

            /// The text.
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl TryFrom<String> for $name {
            type Error = Invalid;
            fn try_from(text: String) -> Result<Self, Invalid> {
                Self::new(text)
            }
        }

        impl From<$name> for String {
            fn from(text: $name) -> String {
                text.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }
    };
}

checked_text!(
    /// The id of a drive or a network interface: 1 to 64 ASCII letters, digits and `_`.
    ResourceId,
    |text| match text.len() {
        0 => Err(Invalid("The ID cannot be empty.")),
        len if len > MAX_ID => Err(Invalid("An ID has at most 64 characters.")),
        _ if text.bytes().all(|byte| byte == b'_' || byte.is_ascii_alphanumeric()) => Ok(()),
        _ => Err(Invalid("API Resource IDs can only contain alphanumeric characters and underscores.")),
    }
);

checked_text!(
    /// The id of a VM: 1 to 64 ASCII letters, digits and `-`.
    InstanceId,
    |text| match text.len() {
        0 => Err(Invalid("the instance id is empty: 1 to 64 letters, digits and '-'")),
        len if len > MAX_ID => Err(Invalid("the instance id has more than 64 characters")),
        _ if text.bytes().all(|byte| byte == b'-' || byte.is_ascii_alphanumeric()) => Ok(()),
        _ => Err(Invalid("the instance id may have letters, digits and '-' only")),
    }
);

checked_text!(
    /// A path on the host: 1 to 4,095 bytes without NUL.
    HostPath,
    |text| match text.len() {
        0 => Err(Invalid("a path cannot be empty")),
        len if len > MAX_PATH => Err(Invalid("a path has at most 4095 bytes")),
        _ if text.contains('\0') => Err(Invalid("a path cannot contain NUL")),
        _ => Ok(()),
    }
);

checked_text!(
    /// A kernel command line: at most 2,047 printable ASCII characters.
    BootArgs,
    |text| match text.len() {
        len if len > MAX_BOOT_ARGS => Err(Invalid("boot_args have at most 2047 characters")),
        _ if text.bytes().all(|byte| (b' '..=b'~').contains(&byte)) => Ok(()),
        _ => Err(Invalid("boot_args may have printable ASCII characters only")),
    }
);

checked_text!(
    /// The name of a host's network interface: 1 to 15 printable ASCII characters other than `/`, `:`, `%` and blanks
    /// (the kernel would make a number of a `%d`), neither `.` nor `..`.
    HostDevName,
    |text| match text.len() {
        0 => Err(Invalid("host_dev_name cannot be empty")),
        len if len > 15 => Err(Invalid("host_dev_name has at most 15 characters")),
        _ if matches!(text, "." | "..") => Err(Invalid("host_dev_name cannot be '.' or '..'")),
        _ if text.bytes().all(|byte| byte.is_ascii_graphic() && !b"/:%".contains(&byte)) => Ok(()),
        _ => Err(Invalid("host_dev_name may have printable characters other than '/', ':' and '%' only")),
    }
);

checked_text!(
    /// A guest's MAC address: six pairs of hexadecimal digits with `:` between, no group address.
    MacAddr,
    |text| {
        let pairs: Vec<&str> = text.split(':').collect();
        let hex = |pair: &&str| pair.len() == 2 && pair.bytes().all(|byte| byte.is_ascii_hexdigit());
        if text.len() != 17 || pairs.len() != 6 || !pairs.iter().all(hex) {
            return Err(Invalid("guest_mac is not a MAC address like 02:fc:00:00:00:01"));
        }
        match u8::from_str_radix(pairs[0], 16) {
            Ok(first) if first & 1 == 0 => Ok(()),
            _ => Err(Invalid("guest_mac is a group address; the second digit has to be even")),
        }
    }
);

checked_text!(
    /// The unique id of a partition: 1 to 64 hexadecimal digits and `-`.
    PartUuid,
    |text| {
        let good = |byte: u8| byte == b'-' || byte.is_ascii_hexdigit();
        if (1..=MAX_ID).contains(&text.len()) && text.bytes().all(good) {
            Ok(())
        } else {
            Err(Invalid("partuuid is not a partition's unique id"))
        }
    }
);
