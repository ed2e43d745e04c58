//! Why no image or kernel came to be: what failed, why, and what to do.

use std::fmt;
use std::io;
use std::path::Path;

/// What kind of failure it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// The request itself can't be met: a name, a size, a suite.
    Request,
    /// A program is missing, or this machine doesn't let an ordinary user do what is needed.
    Machine,
    /// A program failed.
    Program,
    /// Debian's packages could not be had.
    Mirror,
    /// An archive, a kernel or an initrd that is damaged, hostile or of an unknown form.
    Input,
    /// No room on the disk, or none in the image.
    Room,
    /// A file of our own could not be read or written.
    File,
    /// It was to be stopped, and was.
    Interrupted,
}

impl Kind {
    /// Every kind.
    pub const ALL: [Kind; 8] = [
        Kind::Request,
        Kind::Machine,
        Kind::Program,
        Kind::Mirror,
        Kind::Input,
        Kind::Room,
        Kind::File,
        Kind::Interrupted,
    ];

    /// The stable code that callers see.
    #[must_use]
    pub fn code(self) -> &'static str {
        match self {
            Kind::Request => "usage",
            Kind::Machine => "machine",
            Kind::Program => "program_failed",
            Kind::Mirror => "no_mirror",
            Kind::Input => "bad_input",
            Kind::Room => "no_space",
            Kind::File => "file",
            Kind::Interrupted => "interrupted",
        }
    }
}

/// A failure, in words for a person. Text of others in it may hold control characters: who prints it escapes them.
#[derive(Debug)]
pub struct Error {
    /// Its kind.
    pub kind: Kind,
    /// What failed, in a line.
    pub what: String,
    /// Why; a failed program's last lines.
    pub why: Option<String>,
    /// What to do, the best first.
    pub fix: Vec<String>,
}

impl Error {
    pub(crate) fn new(kind: Kind, what: impl Into<String>) -> Error {
        Error { kind, what: what.into(), why: None, fix: Vec::new() }
    }

    pub(crate) fn why(mut self, why: impl fmt::Display) -> Error {
        self.why = Some(why.to_string());
        self
    }

    pub(crate) fn fix(mut self, fix: impl Into<String>) -> Error {
        self.fix.push(fix.into());
        self
    }

    /// Something about one of our own files; a full disk is told apart.
    pub(crate) fn file(doing: &str, path: &Path, cause: &io::Error) -> Error {
        let at = path.display();
        match cause.kind() {
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => {
                Error::new(Kind::Room, format!("the disk is full: can't {doing} {at}; nothing half-made is kept"))
                    .why(cause)
                    .fix("banger image rm NAME frees an image that isn't needed")
            }
            _ => Error::new(Kind::File, format!("can't {doing} {at}")).why(cause),
        }
    }

    pub(crate) fn input(what: impl Into<String>) -> Error {
        Error::new(Kind::Input, what)
    }

    pub(crate) fn interrupted() -> Error {
        Error::new(Kind::Interrupted, "interrupted; nothing half-made is kept")
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.what)?;
        match &self.why {
            Some(why) if why.contains('\n') => write!(f, ":\n{why}")?,
            Some(why) => write!(f, ": {why}")?,
            None => {}
        }
        self.fix.first().map_or(Ok(()), |fix| write!(f, "\n  fix: {fix}"))
    }
}

impl std::error::Error for Error {}
