//! A booted VM: what can be asked of it and changed while it runs.

use std::fs::File;
use std::os::fd::AsFd as _;
use std::path::PathBuf;

use serde_json::{Value, json};
use wire::firecracker::{
    Balloon, BalloonStats, BalloonStatsUpdate, BalloonUpdate, DriveUpdate, MacAddr, NetworkUpdate, VmConfig, VmState,
};

use crate::config::{open_disk, refuse_network_limits};
use crate::fault::Fault;
use crate::machine::{Accelerator, DiskArgs, file_node, raw_node};
use crate::memory::Memory;
use crate::qmp::{Qmp, QmpError};
use crate::socket::OwnSocket;
use crate::throttle;

/// What Firecracker says of a device that a VM doesn't have.
pub(crate) const NO_DEVICE: &str = "Failed perform action on device: Device not found";
/// QEMU's number of the first file that a drive is changed to.
const FIRST_CHANGED_SET: usize = 1000;

/// Whether QEMU's stream of this very moment is there: it gives one only once between two stretches of running.
#[derive(Debug)]
pub(crate) enum Saved {
    No,
    As(File),
    /// There was one, and something was changed since.
    Outdated,
}

/// A VM.
#[derive(Debug)]
pub(crate) struct Guest {
    pub(crate) qmp: Qmp,
    /// QEMU's process.
    pub(crate) process: i32,
    pub(crate) state: VmState,
    pub(crate) config: VmConfig,
    pub(crate) memory: Memory,
    pub(crate) macs: Vec<MacAddr>,
    pub(crate) accelerator: Accelerator,
    /// QEMU's program.
    pub(crate) program: PathBuf,
    /// How often the file behind each drive was changed.
    pub(crate) changes: Vec<usize>,
    /// The drive that has a layer.
    pub(crate) layered: Option<usize>,
    pub(crate) saved: Saved,
    /// Its name is to be there for as long as the guest is.
    pub(crate) _vsock: Option<OwnSocket>,
}

impl Guest {
    pub(crate) fn state(&self) -> VmState {
        self.state
    }

    pub(crate) fn config(&self) -> &VmConfig {
        &self.config
    }

    /// MiB of memory.
    pub(crate) fn memory_mib(&self) -> u64 {
        self.config.machine_config.as_ref().map_or(0, |machine| machine.mem_size_mib)
    }

    pub(crate) fn pause(&mut self) -> Result<(), Fault> {
        self.run("stop", json!({}))?;
        self.state = VmState::Paused;
        Ok(())
    }

    pub(crate) fn resume(&mut self) -> Result<(), Fault> {
        self.run("cont", json!({}))?;
        self.state = VmState::Running;
        self.saved = Saved::No;
        Ok(())
    }

    /// Presses the three keys on the keyboard controller that Firecracker's guests have as well.
    pub(crate) fn ctrl_alt_del(&mut self) -> Result<(), Fault> {
        let key = |name: &str| json!({"type": "qcode", "data": name});
        self.run("send-key", json!({"keys": [key("ctrl"), key("alt"), key("delete")]}))
    }

    pub(crate) fn balloon(&self) -> Result<&Balloon, Fault> {
        self.config.balloon.as_ref().ok_or_else(|| Fault::new(format!("Internal VMM error: {NO_DEVICE}")))
    }

    /// Asks the guest for more memory, or gives some back.
    pub(crate) fn update_balloon(&mut self, update: BalloonUpdate) -> Result<(), Fault> {
        let fault = |why: &str| Fault::new(format!("Balloon update error: {why}"));
        let mib = self.memory_mib();
        if self.config.balloon.is_none() {
            return Err(fault(NO_DEVICE));
        }
        if u64::from(update.amount_mib) > mib {
            return Err(fault(&format!("Balloon: Requested memory should be less than {mib}MiB")));
        }
        self.outdate();
        self.run("balloon", balloon_target(mib, update.amount_mib))?;
        if let Some(balloon) = &mut self.config.balloon {
            balloon.amount_mib = update.amount_mib;
        }
        Ok(())
    }

    /// Changes how often the guest reports; whether it does was settled before the boot.
    pub(crate) fn update_balloon_polling(&mut self, update: BalloonStatsUpdate) -> Result<(), Fault> {
        let fault = |why: &str| Fault::new(format!("Balloon update error: {why}"));
        let now = self.config.balloon.ok_or_else(|| fault(NO_DEVICE))?.stats_polling_interval_s;
        if (now == 0) != (update.stats_polling_interval_s == 0) {
            return Err(fault("Balloon: Statistics cannot be enabled/disabled after activation."));
        }
        if now == update.stats_polling_interval_s {
            return Ok(());
        }
        self.run("qom-set", balloon_polling(update.stats_polling_interval_s))?;
        if let Some(balloon) = &mut self.config.balloon {
            balloon.stats_polling_interval_s = update.stats_polling_interval_s;
        }
        Ok(())
    }

    /// What the guest reported last.
    pub(crate) fn balloon_stats(&mut self) -> Result<BalloonStats, Fault> {
        let balloon = *self.balloon()?;
        if balloon.stats_polling_interval_s == 0 {
            return Err(Fault::new("Internal VMM error: Balloon: Received stats query when stats are disabled."));
        }
        let asked = json!({"path": "/machine/peripheral/balloon", "property": "guest-stats"});
        let told = self.ask("qom-get", asked)?;
        let left = self.ask("query-balloon", json!({}))?["actual"].as_u64().unwrap_or(0);
        let stat = |name: &str| told["stats"][name].as_u64().filter(|value| *value != u64::MAX);
        let taken = (self.memory_mib() << 20).saturating_sub(left);
        let small = |value: u64| u32::try_from(value).unwrap_or(u32::MAX);
        Ok(BalloonStats {
            target_pages: small(u64::from(balloon.amount_mib) * 256),
            actual_pages: small(taken >> 12),
            target_mib: balloon.amount_mib,
            actual_mib: small(taken >> 20),
            swap_in: stat("stat-swap-in"),
            swap_out: stat("stat-swap-out"),
            major_faults: stat("stat-major-faults"),
            minor_faults: stat("stat-minor-faults"),
            free_memory: stat("stat-free-memory"),
            total_memory: stat("stat-total-memory"),
            available_memory: stat("stat-available-memory"),
            disk_caches: stat("stat-disk-caches"),
            hugetlb_allocations: stat("stat-htlb-pgalloc"),
            hugetlb_failures: stat("stat-htlb-pgfail"),
        })
    }

    /// Changes what is behind a drive, or its limit.
    pub(crate) fn update_drive(&mut self, update: &DriveUpdate) -> Result<(), Fault> {
        let fault = |why: &str| {
            let why = format!("Unable to patch the block device: {why} Please verify the request arguments.");
            Fault::new(format!("Drive config error: {why}"))
        };
        let at = self.config.drives.iter().position(|drive| drive.drive_id == update.drive_id);
        let at = at.ok_or_else(|| fault(NO_DEVICE))?;
        if update.path_on_host.is_none() && update.rate_limiter.is_none() {
            // What this asks of Firecracker is for a drive of another kind.
            return Err(fault("Block: Running method expected different backend."));
        }
        if let Some(path) = &update.path_on_host {
            self.change_file(at, path.as_str()).map_err(|error| fault(&format!("Block: {error}: {path}.")))?;
            self.config.drives[at].path_on_host = Some(path.clone());
        }
        if let Some(limiter) = update.rate_limiter {
            let now = self.config.drives[at].rate_limiter.unwrap_or_default().updated(limiter);
            self.run("block_set_io_throttle", throttle::arguments(&format!("drive{at}"), Some(&now)))?;
            self.config.drives[at].rate_limiter = Some(now).filter(|limiter| limiter.limits());
        }
        Ok(())
    }

    /// Opens another file and puts it behind the drive; where that fails the drive is as it was.
    fn change_file(&mut self, at: usize, path: &str) -> Result<(), String> {
        if !matches!(self.saved, Saved::No) {
            return Err("the VM was saved and has to be resumed before its drives can change".to_owned());
        }
        if self.layered == Some(at) {
            return Err("the drive has a layer (--disk-layer) over the file that it began with".to_owned());
        }
        let drive = &self.config.drives[at];
        let read_only = drive.is_read_only.unwrap_or(false);
        let (file, backing) = open_disk(path, read_only).map_err(|error| error.to_string())?;
        let size = rustix::fs::seek(&file, rustix::fs::SeekFrom::End(0)).map_err(|error| error.to_string())?;
        let args = DiskArgs { fd: -1, layer: None, backing, read_only, cache: drive.cache_type };
        let change = self.changes[at] + 1;
        let (old, new) = (format!("disk{at}_{}", change - 1), format!("disk{at}_{change}"));
        // Numbers that no other change of any drive has.
        let set_of = |change: usize| if change == 0 { at } else { FIRST_CHANGED_SET * change + at };
        let added = json!({"execute": "add-fd", "arguments": {"fdset-id": set_of(change)}});
        self.qmp.run_with(&added, Some(file.as_fd())).map_err(|error| error.to_string())?;
        let undo = |guest: &mut Self, node: &str, set: usize| {
            // What isn't there any more needs no undoing: a node that was part of another goes with it.
            let _ = guest.ask("blockdev-del", json!({"node-name": node}));
            let _ = guest.ask("remove-fd", json!({"fdset-id": set}));
        };
        let reopened = self
            .ask("blockdev-add", file_node(&new, set_of(change), &args))
            .and_then(|_| self.ask("blockdev-reopen", json!({"options": [raw_node(at, &args, new.as_str().into())]})));
        if let Err(error) = reopened {
            undo(self, &new, set_of(change));
            return Err(error.to_string());
        }
        undo(self, &old, set_of(change - 1));
        self.changes[at] = change;
        if !read_only {
            // Changes nothing in the file, and tells the guest how large its drive is now.
            self.ask("block_resize", json!({"node-name": format!("disk{at}"), "size": size}))
                .map_err(|error| error.to_string())?;
        }
        Ok(())
    }

    /// There is nothing of an interface's that can be changed, but limits to none.
    pub(crate) fn update_network(&mut self, update: &NetworkUpdate) -> Result<(), Fault> {
        if !self.config.network_interfaces.iter().any(|nic| nic.iface_id == update.iface_id) {
            let why = format!("Unable to update the net device: {NO_DEVICE}");
            return Err(Fault::new(format!("Network config error: {why}")));
        }
        refuse_network_limits([update.rx_rate_limiter.as_ref(), update.tx_rate_limiter.as_ref()])
    }

    /// A device is about to change: a stream of before is no longer the VM's.
    fn outdate(&mut self) {
        if matches!(self.saved, Saved::As(_)) {
            self.saved = Saved::Outdated;
        }
    }

    fn run(&mut self, command: &str, arguments: Value) -> Result<(), Fault> {
        self.ask(command, arguments).map(drop)
    }

    pub(crate) fn ask(&mut self, command: &str, arguments: Value) -> Result<Value, Fault> {
        self.qmp
            .run(&json!({"execute": command, "arguments": arguments}))
            .map_err(|error: QmpError| Fault::new(format!("Internal VMM error: {error}")))
    }
}

/// The argument of `balloon`: what is left to the guest.
pub(crate) fn balloon_target(memory_mib: u64, amount_mib: u32) -> Value {
    let left = memory_mib.saturating_sub(u64::from(amount_mib)) << 20;
    // QEMU takes no 0 for a size.
    json!({"value": left.max(1)})
}

/// The arguments of `qom-set` for how often the guest reports, in seconds.
pub(crate) fn balloon_polling(interval_s: u16) -> Value {
    json!({"path": "/machine/peripheral/balloon", "property": "guest-stats-polling-interval", "value": interval_s})
}
