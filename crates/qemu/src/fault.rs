//! A refusal, in the words that the client reads.

use std::fmt;

/// One sentence; where Firecracker has one for the same fault, it is Firecracker's.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Fault(String);

impl Fault {
    pub(crate) fn new(message: impl Into<String>) -> Self {
        Self(message.into())
    }

    /// Something that Firecracker has and we have not.
    pub(crate) fn not_supported(what: &str) -> Self {
        Self(format!("The requested operation is not supported: {what} (banger-qemu has it not)"))
    }

    pub(crate) fn before_boot() -> Self {
        Self::new("The requested operation is not supported before starting the microVM.")
    }

    pub(crate) fn after_boot() -> Self {
        Self::new("The requested operation is not supported after starting the microVM.")
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}
