//! What the VMM's process is bounded by.

use rustix::process::{Resource, Rlimit, setrlimit};

/// `--resource-limit`, with Firecracker's defaults.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Limits {
    /// Bytes of a file that it writes; no bound where none is asked for.
    pub(crate) file_size: Option<u64>,
    /// One more than the highest number that a descriptor may have.
    pub(crate) open_files: u64,
}

impl Default for Limits {
    fn default() -> Limits {
        Limits { file_size: None, open_files: 2048 }
    }
}

impl Limits {
    /// Takes one `NAME=NUMBER`.
    pub(crate) fn set(&mut self, text: &str) -> Result<(), String> {
        let wrong = || format!("--resource-limit: {text:?} is neither fsize=BYTES nor no-file=NUMBER");
        let (name, number) = text.split_once('=').ok_or_else(wrong)?;
        let number: u64 = number.parse().map_err(|_| wrong())?;
        match name {
            "fsize" => self.file_size = Some(number),
            "no-file" => self.open_files = number,
            _ => return Err(wrong()),
        }
        Ok(())
    }

    /// Sets them, and that no core is left: a guest's memory would lie in it.
    pub(crate) fn apply(self) -> Result<(), String> {
        let set = |what, resource, most| {
            setrlimit(resource, Rlimit { current: Some(most), maximum: Some(most) })
                .map_err(|errno| format!("setrlimit({what}, {most}): {errno}"))
        };
        if let Some(bytes) = self.file_size {
            set("fsize", Resource::Fsize, bytes)?;
        }
        set("no-file", Resource::Nofile, self.open_files)?;
        set("core", Resource::Core, 0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_numbers() {
        let mut limits = Limits::default();
        limits.set("fsize=7").unwrap();
        limits.set("no-file=8").unwrap();
        assert_eq!(limits, Limits { file_size: Some(7), open_files: 8 });
        for bad in ["", "fsize", "fsize=", "fsize=-1", "fsize=1 ", "core=1", "=1"] {
            assert!(limits.set(bad).is_err(), "{bad}");
        }
    }
}
