//! An error with two faces: a code and one line for the client, the whole chain for the log.

use std::fmt;
use wire::{Code, Refusal};

/// Why an operation failed.
#[derive(Debug)]
pub(crate) struct Fail {
    /// The reply's code.
    pub(crate) code: Code,
    /// One line for the client, that names what to do. It holds nothing that the client may not know.
    pub(crate) message: String,
    /// What was tried and what it answered, the outermost first; for the log alone.
    pub(crate) causes: Vec<String>,
}

impl Fail {
    /// `operation_failed`.
    pub(crate) fn new(message: impl Into<String>) -> Fail {
        Fail { code: Code::OperationFailed, message: message.into(), causes: Vec::new() }
    }

    /// The same with another code.
    pub(crate) fn code(mut self, code: Code) -> Fail {
        self.code = code;
        self
    }

    /// Adds what lies behind it: the failed call as it was made, with its error.
    pub(crate) fn because(mut self, cause: impl fmt::Display) -> Fail {
        self.causes.push(cause.to_string());
        self
    }

    /// Adds an undo that failed: the client learns that something stayed, the log why.
    pub(crate) fn left_behind(mut self, what: &str, undo: Fail) -> Fail {
        self.message.push_str(&format!(" ({what} could not be undone)"));
        self.causes.push(format!("undo of {what}: {}", undo.message));
        self.causes.extend(undo.causes);
        self
    }
}

impl From<Refusal> for Fail {
    fn from(refusal: Refusal) -> Fail {
        Fail { code: refusal.code, message: refusal.to_string(), causes: Vec::new() }
    }
}
