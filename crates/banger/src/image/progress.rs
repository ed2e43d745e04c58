//! What the making of an image tells while it lasts, and how it is stopped.

/// The parts of making an image, in their order. An import has no `Fetch` and no `Configure`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Stage {
    /// Packages, or an image, come over the network.
    Fetch,
    /// Archives are unpacked.
    Unpack,
    /// Packages are set up.
    Configure,
    /// The file system is made.
    Pack,
    /// It is checked, and its digest taken.
    Check,
}

impl Stage {
    /// Its name for people and for JSON.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Stage::Fetch => "fetch",
            Stage::Unpack => "unpack",
            Stage::Configure => "configure",
            Stage::Pack => "pack",
            Stage::Check => "check",
        }
    }
}

/// Who watches the making.
pub trait Watch {
    /// A stage begins; the one before it is over. The note is for a person, and may be empty.
    fn begin(&self, stage: Stage, note: &str);

    /// Whether the making is to be given up. Asked a few times a second.
    fn is_stopped(&self) -> bool;
}

/// Nobody.
#[derive(Debug)]
pub struct Unwatched;

impl Watch for Unwatched {
    fn begin(&self, _: Stage, _: &str) {}

    fn is_stopped(&self) -> bool {
        false
    }
}
