//! The metrics: a line of JSON at each flush and at the end, under Firecracker's names where it has them.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Write as _};
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::{SystemTime, UNIX_EPOCH};

use wire::firecracker;

use crate::log::open_append;

/// What is counted, since the start of the process.
#[derive(Debug, Default)]
pub(crate) struct Metrics {
    pub(crate) api_requests: AtomicU64,
    pub(crate) api_refused: AtomicU64,
    pub(crate) boot_us: AtomicU64,
    pub(crate) save_us: AtomicU64,
    pub(crate) load_us: AtomicU64,
    pub(crate) pause_us: AtomicU64,
    pub(crate) resume_us: AtomicU64,
    pub(crate) conns_added: AtomicU64,
    pub(crate) conns_removed: AtomicU64,
    target: Mutex<Option<Target>>,
}

#[derive(Debug)]
struct Target {
    file: File,
    id: Option<String>,
    properties: Option<BTreeMap<String, String>>,
}

impl Metrics {
    /// Names the file or FIFO, once.
    ///
    /// # Errors
    /// It can't be opened, or one is named already.
    pub(crate) fn init(&self, config: &firecracker::Metrics, id: &str) -> Result<(), String> {
        let mut target = self.target.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        if target.is_some() {
            return Err("Reinitialization of metrics not allowed.".to_owned());
        }
        let file = open_append(config.metrics_path.as_str().as_ref()).map_err(|error| error.to_string())?;
        *target =
            Some(Target { file, id: config.emit_id.then(|| id.to_owned()), properties: config.properties.clone() });
        Ok(())
    }

    /// Appends a line, where a file was named.
    ///
    /// # Errors
    /// What writing says.
    pub(crate) fn flush(&self) -> io::Result<()> {
        let mut target = self.target.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        let Some(target) = target.as_mut() else { return Ok(()) };
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let read = |counter: &AtomicU64| counter.load(Relaxed);
        let mut line = serde_json::json!({
            "utc_timestamp_ms": u64::try_from(now.as_millis()).unwrap_or(u64::MAX),
            "api_server": {"requests": read(&self.api_requests), "refused": read(&self.api_refused)},
            "latencies_us": {
                "boot_vm": read(&self.boot_us),
                "full_create_snapshot": read(&self.save_us),
                "load_snapshot": read(&self.load_us),
                "pause_vm": read(&self.pause_us),
                "resume_vm": read(&self.resume_us),
            },
            "vsock": {"conns_added": read(&self.conns_added), "conns_removed": read(&self.conns_removed)},
        });
        if let Some(id) = &target.id {
            line["id"] = id.as_str().into();
        }
        if let Some(properties) = &target.properties {
            line["properties"] = serde_json::json!(properties);
        }
        target.file.write_all(format!("{line}\n").as_bytes())
    }
}
