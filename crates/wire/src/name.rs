//! Names that the wire may carry, one kind a file. A value of these types is valid: nothing is checked again.

pub mod addr;
pub mod dm;
pub mod guest_path;
pub mod link;
pub mod signal;
pub mod vm_id;

use crate::code::{Code, Refusal};

/// Why a text is no valid name: one line.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Invalid(pub(crate) String);

impl Invalid {
    pub(crate) fn new(message: impl Into<String>) -> Invalid {
        Invalid(message.into())
    }

    /// The refusal of `field` with `code`: which one is the method's to say.
    pub fn refuse(self, code: Code, field: &'static str) -> Refusal {
        Refusal::new(code, field, self.0)
    }
}

impl std::fmt::Display for Invalid {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Invalid {}

/// Letters, digits, `-`, `_`, `.`: what the kernel, nftables, udev and a shell all read the same way.
pub(crate) fn is_plain(text: &str) -> bool {
    text.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.'))
}

/// A name's reading forms: as text, and shown.
macro_rules! name_text {
    ($name:ident) => {
        impl $name {
            /// The name.
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }
        impl std::fmt::Display for $name {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str(&self.0)
            }
        }
    };
}
pub(crate) use name_text;
