//! What every operation is given: the settings, whose helper this is, the places, the kernel's objects.

use crate::disk::Disk;
use crate::fail::Fail;
use crate::locks::Locks;
use crate::log::Log;
use crate::net::Net;
use crate::places::Place;
use crate::settings::Settings;
use crate::steps::Faults;
use crate::vm::{Memories, Vms};
use sys::creds::Identity;

/// The machine as the operations see it. One for the process, shared by all connections.
pub(crate) struct Host {
    /// Limits, directories, programs.
    pub(crate) settings: Settings,
    /// The owner: uid, gid, all groups.
    pub(crate) owner: Identity,
    /// The state directory; the owner writes it.
    pub(crate) state: Place,
    /// The runtime directory; the owner writes it.
    pub(crate) runtime: Place,
    /// Records that only root reads and writes (0700).
    pub(crate) records: Place,
    /// Who works on which file and which snapshot.
    pub(crate) locks: Locks,
    /// Snapshots.
    pub(crate) disk: Disk,
    /// Links and rules.
    pub(crate) net: Net,
    /// VMs that were launched.
    pub(crate) vms: Vms,
    /// The memory of saved VMs.
    pub(crate) memories: Memories,
    /// Files inside images.
    pub(crate) images: crate::disk::Images,
    /// The log.
    pub(crate) log: Log,
    /// A fault that a test asked for.
    pub(crate) faults: Faults,
}

impl Host {
    /// Runs `act` with the owner's rights, so that all it looks at costs one change of them. Nothing of root's is opened
    /// in it, and no thread or process is started.
    pub(crate) fn as_owner<T>(&self, act: impl FnOnce() -> Result<T, Fail>) -> Result<T, Fail> {
        let done = self.owner.run_as(act);
        done.map_err(|error| Fail::new("the owner's rights can't be taken on").because(error))?
    }
}
