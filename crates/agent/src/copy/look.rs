//! An archive that passes by: counted, and nothing of it is made here.

use sha2::{Digest, Sha256};

use super::{Copied, CopyError, MAX_ENTRIES, hex};
use crate::tar::{Item, Kind, Reader, TarError, parts};

/// What an archive holds, while it goes on to somebody else.
#[derive(Debug, Default)]
pub struct Look {
    reader: Reader,
    /// The last name, for errors.
    name: Vec<u8>,
    copied: Copied,
    has_holes: bool,
    sum: Sha256,
}

impl Look {
    /// Looks at the archive's next bytes.
    ///
    /// # Errors
    /// [`CopyError`] for what is no archive, or has a name that leads out of its place: these bytes are not to go on.
    pub fn take(&mut self, mut bytes: &[u8]) -> Result<(), CopyError> {
        self.sum.update(bytes);
        while let Some(item) = self.reader.take(&mut bytes).map_err(|e| CopyError::Tar(e, self.name.clone()))? {
            let Item::Entry(entry) = item else { continue };
            self.name.clone_from(&entry.name);
            let wrong = |error| CopyError::Tar(error, entry.name.clone());
            parts(&entry.name).map_err(wrong)?;
            match &entry.kind {
                Kind::File(_) => self.copied.bytes = self.copied.bytes.saturating_add(entry.stored()),
                Kind::Hardlink(first) => drop(parts(first).map_err(wrong)?),
                Kind::Directory | Kind::Symlink(_) | Kind::Other => {}
            }
            self.has_holes |= entry.extra.extents.is_some();
            self.copied.entries += 1;
            self.copied.files += u64::from(entry.kind != Kind::Directory);
            if self.copied.entries > MAX_ENTRIES {
                return Err(CopyError::TooMany);
            }
        }
        Ok(())
    }

    /// Whether one of its files has holes: not every agent reads those.
    pub fn has_holes(&self) -> bool {
        self.has_holes
    }

    /// Whether the archive's end has come.
    pub fn has_ended(&self) -> bool {
        self.reader.has_ended()
    }

    /// What it held, once all of it has come.
    ///
    /// # Errors
    /// [`TarError::Cut`], where it has not.
    pub fn end(self) -> Result<Copied, CopyError> {
        if !self.reader.has_ended() {
            return Err(CopyError::Tar(TarError::Cut, self.name));
        }
        Ok(Copied { sha256: hex(&self.sum.finalize()), ..self.copied })
    }
}
