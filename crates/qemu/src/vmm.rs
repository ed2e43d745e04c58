//! The VM's two lives: gathered parts before the boot, a guest after it.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::mpsc::Sender;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use sys::tsc::Sample;
use wire::firecracker::{API_VERSION, InstanceInfo, Logger, Metrics as MetricsConfig, VmConfig, VmState};

use crate::args::Layer;
use crate::config::Resources;
use crate::fault::Fault;
use crate::guest::Guest;
use crate::launch::Event;
use crate::log::Log;
use crate::metrics::Metrics;

/// The VM, and what its API needs.
#[derive(Debug)]
pub(crate) struct Vmm {
    id: String,
    pub(crate) log: Arc<Log>,
    pub(crate) metrics: Arc<Metrics>,
    /// Taken when the process began, so that the counter's rate is known without waiting by the time of the boot.
    pub(crate) counter: Sample,
    pub(crate) main: Sender<Event>,
    state: Mutex<State>,
}

/// Which of its lives.
#[derive(Debug)]
pub(crate) enum State {
    /// Gathered, not booted.
    Before(Box<Resources>),
    /// Booted.
    After(Box<Guest>),
}

impl Vmm {
    pub(crate) fn new(
        (id, layer): (&str, Option<Layer>),
        log: Arc<Log>,
        metrics: Arc<Metrics>,
        counter: Sample,
        main: Sender<Event>,
    ) -> Self {
        let parts = Resources { layer, ..Resources::default() };
        Self { id: id.to_owned(), log, metrics, counter, main, state: Mutex::new(State::Before(Box::new(parts))) }
    }

    pub(crate) fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn log(&self) -> &Log {
        &self.log
    }

    pub(crate) fn metrics(&self) -> &Metrics {
        &self.metrics
    }

    pub(crate) fn instance(&self, state: VmState) -> InstanceInfo {
        InstanceInfo {
            id: self.id.clone(),
            state,
            vmm_version: API_VERSION.to_owned(),
            app_name: "banger-qemu".to_owned(),
        }
    }

    pub(crate) fn set_logger(&self, parts: &mut Resources, config: Logger) -> Result<(), Fault> {
        self.log
            .update(&config)
            .map_err(|error| Fault::new(format!("Logger error: Failed to open target file: {error}")))?;
        parts.logger = Some(config);
        Ok(())
    }

    pub(crate) fn set_metrics(&self, parts: &mut Resources, config: MetricsConfig) -> Result<(), Fault> {
        self.metrics.init(&config, &self.id).map_err(|error| {
            Fault::new(format!("Metrics error: Cannot initialize the metrics system due to bad user input: {error}"))
        })?;
        parts.metrics = Some(config);
        Ok(())
    }

    pub(crate) fn flush_metrics(&self) -> Result<(), Fault> {
        self.metrics
            .flush()
            .map_err(|error| Fault::new(format!("Internal VMM error: Failed to flush metrics: {error}")))
    }

    /// Takes a whole configuration, in the order in which Firecracker does.
    pub(crate) fn configure(&self, config: VmConfig) -> Result<(), Fault> {
        let mut state = self.state();
        let State::Before(parts) = &mut *state else { return Err(Fault::after_boot()) };
        if let Some(logger) = config.logger {
            self.set_logger(parts, logger)?;
        }
        if let Some(metrics) = config.metrics {
            self.set_metrics(parts, metrics)?;
        }
        if let Some(machine) = config.machine_config {
            parts.set_machine(machine)?;
        }
        let boot = config.boot_source.ok_or_else(|| Fault::new("missing field `boot-source`"))?;
        parts.set_boot(boot)?;
        config.drives.into_iter().try_for_each(|drive| parts.set_drive(drive))?;
        config.network_interfaces.into_iter().try_for_each(|nic| parts.set_nic(nic))?;
        config.vsock.map_or(Ok(()), |vsock| parts.set_vsock(vsock))?;
        config.balloon.map_or(Ok(()), |balloon| parts.set_balloon(balloon))?;
        config.entropy.map_or(Ok(()), |entropy| parts.set_entropy(entropy))
    }

    pub(crate) fn pause(&self, guest: &mut Guest) -> Result<(), Fault> {
        let began = Instant::now();
        guest.pause()?;
        store_micros(&self.metrics.pause_us, began);
        Ok(())
    }

    pub(crate) fn resume(&self, guest: &mut Guest) -> Result<(), Fault> {
        let began = Instant::now();
        guest.resume()?;
        store_micros(&self.metrics.resume_us, began);
        Ok(())
    }

    /// Has the process end, for a reason that its log tells.
    pub(crate) fn give_up(&self, code: u8, why: &str) {
        // Without a main thread it is ending already.
        let _ = self.main.send(Event::GivenUp(code, why.to_owned()));
    }
}

/// Keeps how long something took.
pub(crate) fn store_micros(counter: &AtomicU64, began: Instant) {
    counter.store(u64::try_from(began.elapsed().as_micros()).unwrap_or(u64::MAX), Relaxed);
}
