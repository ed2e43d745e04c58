//! `PUT /snapshot/create`: a paused VM becomes two files, each of which gets its name when both are whole.

use std::fs::File;
use std::io::Seek as _;
use std::os::fd::AsFd as _;
use std::path::Path;
use std::time::{Duration, Instant};

use serde_json::json;
use wire::firecracker::{SnapshotCreate, SnapshotType, VmConfig, VmState};

use crate::boot::run;
use crate::draft::Draft;
use crate::fault::Fault;
use crate::guest::{Guest, Saved};
use crate::host::Host;
use crate::qmp::{Command, Qmp};
use crate::snapshot::{Header, stream_file};
use crate::vmm::{Vmm, store_micros};

/// How long QEMU may take to write its stream; that of a loaded VM holds what it wrote to its memory.
const PATIENCE: Duration = Duration::from_secs(120);
/// Bytes a second: all that there are.
const NO_LIMIT: u64 = 100_000_000_000;

impl Vmm {
    /// Saves a paused VM. The VM can go on afterwards, and be saved again.
    pub(crate) fn save(&self, guest: &mut Guest, asked: &SnapshotCreate) -> Result<(), Fault> {
        let began = Instant::now();
        if asked.snapshot_type == SnapshotType::Diff {
            return Err(Fault::not_supported("diff snapshots"));
        }
        let failed = |why: String| Fault::new(format!("Create snapshot error: {why}"));
        if guest.state != VmState::Paused {
            let why = "Operation not allowed: save/restore unavailable while running";
            return Err(failed(format!("Cannot save the microVM state: {why}")));
        }
        if asked.snapshot_path == asked.mem_file_path {
            return Err(failed("snapshot_path and mem_file_path are the same".to_owned()));
        }
        let begin = |path: &str, what: &str| {
            Draft::begin(Path::new(path))
                .map_err(|error| failed(format!("Cannot perform open on the {what} backing file: {error}")))
        };
        let state = begin(asked.snapshot_path.as_str(), "snapshot")?;
        let memory = begin(asked.mem_file_path.as_str(), "memory")?;
        guest
            .write(&state.file, &memory.file)
            .map_err(|why| failed(format!("Cannot save the microVM state: {why}")))?;
        let on_disk = [&memory, &state].into_iter().try_for_each(Draft::sync);
        // The memory first: a state whose memory isn't there yet is refused, by its sum.
        on_disk
            .and_then(|()| memory.name())
            .and_then(|()| state.name())
            .map_err(|error| failed(format!("Cannot perform sync_all on the snapshot backing file: {error}")))?;
        store_micros(&self.metrics.save_us, began);
        self.log.info(&format!("The VM was saved in {} ms.", began.elapsed().as_millis()));
        Ok(())
    }
}

impl Guest {
    fn write(&mut self, state: &File, memory: &File) -> Result<(), String> {
        if matches!(self.saved, Saved::Outdated) {
            return Err("it was saved and then changed: resume it first".to_owned());
        }
        if matches!(self.saved, Saved::No) {
            let stream = stream_file().map_err(|error| error.to_string())?;
            outgoing(&mut self.qmp, &stream)?;
            self.saved = Saved::As(stream);
        }
        let Saved::As(stream) = &self.saved else { return Err("there is no state".to_owned()) };
        let text = |error: std::io::Error| error.to_string();
        let len = self.memory_mib() << 20;
        let sum = self.memory.write(memory, len, self.process).map_err(text)?;
        let host = Host::here(self.qmp.version(), &self.program, self.accelerator).map_err(text)?;
        let config = VmConfig { boot_source: None, logger: None, metrics: None, ..self.config.clone() };
        let header =
            Header::new(host, config, self.macs.clone(), (sum, self.memory.is_template()), stream).map_err(text)?;
        header.write(state, stream).map_err(text)
    }
}

/// Has QEMU write its stream into an empty file, without memory that is a file.
fn outgoing(qmp: &mut Qmp, stream: &File) -> Result<(), String> {
    let all = ("migrate-set-parameters", json!({"max-bandwidth": NO_LIMIT}), None);
    qmp.run_in_a_row(&[without_memory(), all, state(stream)?])?;
    run(qmp, "migrate", json!({"uri": "fd:state"}))?;
    let until = Instant::now() + PATIENCE;
    loop {
        let told = qmp.run(&json!({"execute": "query-migrate"})).map_err(|error| error.to_string())?;
        match told["status"].as_str() {
            Some("completed") => return Ok(()),
            Some("failed" | "cancelled") => {
                return Err(format!("QEMU: {}", told["error-desc"].as_str().unwrap_or("the state can't be saved")));
            }
            _ if Instant::now() > until => {
                // It goes on, or is in doubt; the client is told either way.
                let _ = qmp.run(&json!({"execute": "migrate_cancel"}));
                return Err("QEMU took too long".to_owned());
            }
            _ => std::thread::sleep(Duration::from_millis(1)),
        }
    }
}

/// Has QEMU's stream leave out memory that is a file.
pub(crate) fn without_memory<'a>() -> Command<'a> {
    ("migrate-set-capabilities", json!({"capabilities": [{"capability": "x-ignore-shared", "state": true}]}), None)
}

/// Gives QEMU a file under the name `state`, to be read or written from its beginning.
///
/// # Errors
/// The file can't be rewound.
pub(crate) fn state(mut stream: &File) -> Result<Command<'_>, String> {
    stream.rewind().map_err(|error| error.to_string())?;
    Ok(("getfd", json!({"fdname": "state"}), Some(stream.as_fd())))
}
