//! `PUT /snapshot/load`: two files become a VM. What they say is checked before QEMU sees any of it.

use std::fs::File;
use std::path::Path;
use std::time::{Duration, Instant};

use serde_json::json;
use wire::firecracker::{
    LoadHugePages, MemoryBackend, MemoryBackendType, NetworkInterface, SnapshotLoad, VmConfig, Vsock,
};

use crate::boot::Plan;
use crate::config::{Resources, open_regular};
use crate::fault::Fault;
use crate::host::Host;
use crate::machine::Accelerator;
use crate::memory::{self, Memory};
use crate::qmp::{AGREE, Qmp};
use crate::save::{state, without_memory};
use crate::snapshot::Header;
use crate::vmm::{State, Vmm, store_micros};

/// How long QEMU may take to read its stream.
const PATIENCE: Duration = Duration::from_secs(60);

impl Vmm {
    /// Loads a saved VM, which then runs or is paused as asked. As with Firecracker, a load that fails ends the process,
    /// but for one that is refused before it is tried.
    pub(crate) fn load(&self, state: &mut State, asked: &SnapshotLoad, memory: &MemoryBackend) -> Result<(), Fault> {
        let State::Before(parts) = state else { return Err(Fault::after_boot()) };
        let began = Instant::now();
        if parts.touched {
            let why = "Loading a microVM snapshot not allowed after configuring boot-specific resources.";
            return Err(Fault::new(format!("Load snapshot error: {why}")));
        }
        let refused = [
            (memory.backend_type == MemoryBackendType::Uffd, "a memory backend of the type Uffd"),
            (asked.clock_realtime, "clock_realtime"),
            (!matches!(asked.huge_pages, LoadHugePages::Snapshot | LoadHugePages::None), "huge_pages"),
        ];
        if let Some((_, what)) = refused.iter().find(|(is_asked, _)| *is_asked) {
            return Err(Fault::not_supported(what));
        }
        let failed =
            |why: String| Fault::ending(format!("Load snapshot error: Failed to restore from snapshot: {why}"));
        let plan = self.plan(parts, asked, memory).map_err(failed)?;
        let guest =
            self.launch(parts, plan).map_err(|why| failed(format!("Failed to build microVM from snapshot: {why}")))?;
        *state = State::After(Box::new(guest));
        store_micros(&self.metrics.load_us, began);
        self.log.info(&format!("The VM was loaded in {} ms.", began.elapsed().as_millis()));
        Ok(())
    }

    /// Reads the files and gathers the parts that they name.
    fn plan(&self, parts: &mut Resources, asked: &SnapshotLoad, backend: &MemoryBackend) -> Result<Plan, String> {
        let of_state = |why: &str| format!("Failed to get snapshot state from file: {why}");
        let file = open_regular(asked.snapshot_path.as_str())
            .map_err(|error| of_state(&format!("Failed to open snapshot file: {error}")))?;
        let (header, stream) =
            Header::read(&file).map_err(|why| of_state(&format!("Failed to load snapshot state from file: {why}")))?;
        let config = overridden(header.config.clone(), asked).map_err(of_state)?;
        gather(parts, config).map_err(|fault| format!("Failed to build microVM from snapshot: {fault}"))?;
        if header.macs.len() != parts.nics.len() {
            return Err(of_state("Failed to load snapshot state from file: it has an address too few or too many"));
        }
        let of_memory =
            |why: String| format!("Failed to load guest memory: Error creating guest memory from file: {why}");
        let file = open_regular(backend.backend_path.as_str()).map_err(|error| of_memory(error.to_string()))?;
        let len = parts.machine.mem_size_mib << 20;
        let there = memory::length(&file).map_err(|error| of_memory(error.to_string()))?;
        if there != len {
            return Err(of_memory(format!("the file has {there} bytes and the guest {len}")));
        }
        let (memory, sum) = Memory::of_file(&file, len).map_err(|error| of_memory(error.to_string()))?;
        if sum.is_some_and(|sum| sum != header.memory) {
            return Err(of_memory("it is not the memory that was saved with this state".to_owned()));
        }
        let memory = if header.pages { memory.into_template() } else { Ok(memory) };
        let memory = memory.map_err(|error| of_memory(error.to_string()))?;
        Ok(Plan {
            // What was emulated goes on so, on a host with KVM too.
            accelerator: self.accelerator(header.host.is_emulated()),
            memory,
            macs: header.macs.clone(),
            saved: Some((header, stream)),
            run: asked.resume_vm,
        })
    }
}

/// The saved configuration with the taps and the socket that the client names.
fn overridden(mut config: VmConfig, asked: &SnapshotLoad) -> Result<VmConfig, &'static str> {
    for over in &asked.network_overrides {
        let nics: &mut Vec<NetworkInterface> = &mut config.network_interfaces;
        let nic = nics.iter_mut().find(|nic| nic.iface_id == over.iface_id).ok_or("Unknown Network Device.")?;
        nic.host_dev_name = over.host_dev_name.clone();
    }
    if let Some(over) = &asked.vsock_override {
        let vsock: &mut Vsock = config.vsock.as_mut().ok_or("Unknown Vsock Device.")?;
        vsock.uds_path = over.uds_path.clone();
    }
    Ok(config)
}

/// Opens all that the configuration names, as if a client had.
fn gather(parts: &mut Resources, config: VmConfig) -> Result<(), Fault> {
    parts.set_machine(config.machine_config.unwrap_or_default())?;
    config.drives.into_iter().try_for_each(|drive| parts.set_drive(drive))?;
    config.network_interfaces.into_iter().try_for_each(|nic| parts.set_nic(nic))?;
    config.vsock.map_or(Ok(()), |vsock| parts.set_vsock(vsock))?;
    config.balloon.map_or(Ok(()), |balloon| parts.set_balloon(balloon))?;
    config.entropy.map_or(Ok(()), |entropy| parts.set_entropy(entropy))
}

/// Gives QEMU, which waits for it, the stream of a saved state, once it is sure that this QEMU on this host can read it.
///
/// # Errors
/// What differs, or what QEMU says. One that can't read the stream ends.
pub(crate) fn incoming(
    qmp: &mut Qmp,
    header: &Header,
    stream: &File,
    program: &Path,
    accelerator: Accelerator,
) -> Result<(), String> {
    let here = Host::here(qmp.version(), program, accelerator).map_err(|error| error.to_string())?;
    here.takes(&header.host)?;
    let load = ("migrate-incoming", json!({"uri": "fd:state"}), None);
    qmp.run_in_a_row(&[(AGREE, json!({}), None), without_memory(), state(stream)?, load])?;
    let until = Instant::now() + PATIENCE;
    loop {
        let told = qmp.run(&json!({"execute": "query-status"})).map_err(|error| error.to_string())?;
        match told["status"].as_str() {
            Some("inmigrate") if Instant::now() < until => std::thread::sleep(Duration::from_millis(1)),
            Some("paused" | "prelaunch" | "postmigrate") => return Ok(()),
            other => return Err(format!("the state was not loaded ({})", other.unwrap_or("no status"))),
        }
    }
}
