//! What is kept of images while the helper runs.

use super::journal::Journal;
use super::uses::Uses;
use super::worker::Workers;
use crate::host::Host;
use sys::dir::Dir;

/// Who uses which image, logs of writes, workers.
pub(crate) struct Images {
    pub(super) uses: Uses,
    pub(super) journal: Journal,
    pub(super) workers: Workers,
}

impl Images {
    /// `lib_dir` is root's own, where logs of writes lie; `run_dir` too, where a root directory can be put together.
    pub(crate) fn new(lib_dir: Dir, run_dir: Dir) -> Images {
        Images { uses: Uses::default(), journal: Journal::new(lib_dir), workers: Workers::new(run_dir) }
    }

    /// Finishes what an earlier helper committed, and removes what it did not. To be called before there are requests.
    ///
    /// # Errors
    /// It can't be told what there is.
    pub(crate) fn recover(&self, host: &'static Host) -> Result<(), String> {
        self.workers.spares.arm(host);
        self.journal.recover(host)
    }
}
