//! A refusal, in the words that the client reads.

use std::fmt;

/// One sentence; where Firecracker has one for the same fault, it is Firecracker's.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Fault {
    message: String,
    /// Whether the process ends once the client has been told, as Firecracker's does after a load that failed.
    pub(crate) ends: bool,
}

impl Fault {
    pub(crate) fn new(message: impl Into<String>) -> Self {
        Self { message: message.into(), ends: false }
    }

    /// A refusal after which the process ends.
    pub(crate) fn ending(message: impl Into<String>) -> Self {
        Self { message: message.into(), ends: true }
    }

    /// Something that Firecracker has and we have not.
    pub(crate) fn not_supported(what: &str) -> Self {
        Self::new(format!("The requested operation is not supported: {what} (banger-qemu has it not)"))
    }

    pub(crate) fn before_boot() -> Self {
        Self::new("The requested operation is not supported before starting the microVM.")
    }

    pub(crate) fn after_boot() -> Self {
        Self::new("The requested operation is not supported after starting the microVM.")
    }

    /// Of a device that is to be added to or taken from a VM that runs.
    pub(crate) fn no_hot_plug() -> Self {
        Self::new("PCI is not enabled")
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}
