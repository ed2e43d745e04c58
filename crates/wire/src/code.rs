//! The codes of an error reply, and a refusal: what a check says when it fails.

use std::fmt;

/// The error codes that the contract knows. There are no others.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Code {
    /// The peer is neither root nor the owner.
    Unauthorized,
    /// The bytes are no request.
    BadRequest,
    /// The request is one, but its parameters are not.
    BadParams,
    /// A path that is not one of banger's.
    InvalidPath,
    /// A pid that is no VM's.
    InvalidPid,
    /// The operation could not be done; nothing was changed, or the message says what.
    OperationFailed,
    /// The result could not be written as JSON.
    MarshalFailed,
    /// No method of that name.
    UnknownMethod,
}

impl Code {
    /// Every code, in the contract's order.
    pub const ALL: [Code; 8] = [
        Code::Unauthorized,
        Code::BadRequest,
        Code::BadParams,
        Code::InvalidPath,
        Code::InvalidPid,
        Code::OperationFailed,
        Code::MarshalFailed,
        Code::UnknownMethod,
    ];

    /// The code as the wire spells it.
    pub const fn as_str(self) -> &'static str {
        match self {
            Code::Unauthorized => "unauthorized",
            Code::BadRequest => "bad_request",
            Code::BadParams => "bad_params",
            Code::InvalidPath => "invalid_path",
            Code::InvalidPid => "invalid_pid",
            Code::OperationFailed => "operation_failed",
            Code::MarshalFailed => "marshal_failed",
            Code::UnknownMethod => "unknown_method",
        }
    }

    /// The code that `text` spells, if it is one.
    pub fn parse(text: &str) -> Option<Code> {
        Code::ALL.into_iter().find(|code| code.as_str() == text)
    }
}

impl fmt::Display for Code {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// Why a request was refused: the code, the field that it is about, and one line that says what to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refusal {
    /// The code of the reply.
    pub code: Code,
    /// The field of `params` that was refused; empty where no single one was.
    pub field: &'static str,
    /// One line for the client. It repeats nothing that the client did not send.
    pub message: String,
}

impl Refusal {
    /// A refusal of `field`.
    pub fn new(code: Code, field: &'static str, message: impl Into<String>) -> Refusal {
        Refusal { code, field, message: message.into() }
    }
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.field.is_empty() { f.write_str(&self.message) } else { write!(f, "{}: {}", self.field, self.message) }
    }
}

impl std::error::Error for Refusal {}

/// `text` as a message may show it: quoted, escaped, and cut after 64 characters.
pub fn shown(text: &str) -> String {
    const LONGEST: usize = 64;
    let mut out = String::from("\"");
    for (index, c) in text.chars().enumerate() {
        if index == LONGEST {
            out.push('…');
            break;
        }
        if c == '"' || c == '\\' || c.is_control() || is_invisible(c) {
            out.extend(c.escape_default());
        } else {
            out.push(c);
        }
    }
    out.push('"');
    out
}

/// Characters that move or hide other text where they are printed: bidirectional controls, separators, joiners.
fn is_invisible(c: char) -> bool {
    matches!(c, '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{206f}' | '\u{feff}')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_code_reads_back_as_itself() {
        for code in Code::ALL {
            assert_eq!(Code::parse(code.as_str()), Some(code));
        }
        assert_eq!(Code::parse("Unauthorized"), None);
    }

    #[test]
    fn shown_text_holds_no_control_and_has_an_end() {
        let shown = shown(&format!("a\u{1b}[2J\n\u{202e}{}", "x".repeat(1000)));
        assert!(!shown.chars().any(char::is_control));
        assert!(shown.starts_with("\"a\\u{1b}[2J\\n\\u{202e}xxx"));
        assert!(shown.chars().count() < 110);
    }
}
