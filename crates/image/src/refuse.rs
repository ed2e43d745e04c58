//! Why something was not done: a kind for the helper, a line for its client.

use crate::ext2fs::Failed;
use std::ffi::c_long;
use wire::worker::reply::{Reply, Why};

/// A request that was not done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refusal {
    /// The kind.
    pub why: Why,
    /// One line.
    pub text: String,
}

/// What was done, or why not.
pub type Result<T> = std::result::Result<T, Refusal>;

impl Refusal {
    /// A refusal of this kind.
    pub fn new(why: Why, text: impl Into<String>) -> Refusal {
        Refusal { why, text: text.into() }
    }

    /// What libext2fs answered while it did something.
    pub fn from_library(doing: &str, failed: &Failed) -> Refusal {
        use crate::ext2fs::code;
        const EIO: c_long = 5;
        const ENOMEM: c_long = 12;
        let why = match failed.0 {
            code::BLOCK_ALLOC_FAIL | code::INODE_ALLOC_FAIL | code::DIR_NO_SPACE => Why::NoSpace,
            code::UNSUPP_FEATURE | code::RO_UNSUPP_FEATURE | code::DIRHASH_UNSUPP | code::FILE_TOO_BIG => {
                Why::NotSupported
            }
            code::NO_MEMORY | ENOMEM | EIO => Why::Failed,
            _ => Why::Damaged,
        };
        Refusal::new(why, format!("{doing}: {failed}"))
    }
}

impl From<Refusal> for Reply {
    fn from(refusal: Refusal) -> Reply {
        Reply::Refused { why: refusal.why, text: refusal.text }
    }
}

/// Says what was being done when libext2fs failed.
pub trait While<T> {
    /// The refusal that names it.
    fn while_doing(self, doing: &str) -> Result<T>;
}

impl<T> While<T> for std::result::Result<T, Failed> {
    fn while_doing(self, doing: &str) -> Result<T> {
        self.map_err(|failed| Refusal::from_library(doing, &failed))
    }
}
