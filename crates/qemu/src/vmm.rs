//! The VM's two lives: gathered parts before the boot, a guest after it.

use std::os::fd::{AsRawFd as _, OwnedFd, RawFd};
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::mpsc::Sender;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use sys::tsc::Sample;
use wire::firecracker::{
    API_VERSION, InstanceInfo, Logger, MacAddr, Metrics as MetricsConfig, PartUuid, VmConfig, VmState,
};

use crate::config::Resources;
use crate::fault::Fault;
use crate::launch::{self, Event};
use crate::log::Log;
use crate::machine::{self, Accelerator, DiskArgs, Machine, NicArgs};
use crate::metrics::Metrics;
use crate::qmp::{Qmp, QmpError};
use crate::socket::OwnSocket;
use crate::vsock::Relay;

/// How long QEMU may take to make its machine.
const MACHINE_PATIENCE: Duration = Duration::from_secs(30);

/// The VM, and what its API needs.
#[derive(Debug)]
pub(crate) struct Vmm {
    id: String,
    log: Arc<Log>,
    metrics: Arc<Metrics>,
    /// Taken when the process began, so that the counter's rate is known without waiting by the time of the boot.
    counter: Sample,
    main: Sender<Event>,
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

/// A booted VM.
#[derive(Debug)]
pub(crate) struct Guest {
    qmp: Qmp,
    state: VmState,
    config: VmConfig,
    /// Its name is to be there for as long as the guest is.
    _vsock: Option<OwnSocket>,
}

impl Vmm {
    pub(crate) fn new(id: &str, log: Arc<Log>, metrics: Arc<Metrics>, counter: Sample, main: Sender<Event>) -> Self {
        Self { id: id.to_owned(), log, metrics, counter, main, state: Mutex::new(State::Before(Box::default())) }
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
        config.vsock.map_or(Ok(()), |vsock| parts.set_vsock(vsock))
    }

    /// Boots. Where that fails, the parts are as they were.
    pub(crate) fn start(&self, state: &mut State) -> Result<(), Fault> {
        let State::Before(parts) = state else { return Err(Fault::after_boot()) };
        let began = Instant::now();
        let failed = |error: String| Fault::new(format!("Start microvm error: {error}"));
        let accelerator = self.accelerator();
        let (ours, theirs) = pair().map_err(|error| failed(error.to_string()))?;
        let relay = parts.vsock.is_some().then(pair).transpose().map_err(|error| failed(error.to_string()))?;
        let (relay_ours, relay_theirs) = relay.unzip();
        let order = assemble(parts, accelerator, &theirs, relay_theirs.as_ref())?;
        let program = launch::program().map_err(failed)?;
        let qemu = launch::order(&self.main, &program, &order.arguments, order.keep)
            .map_err(|error| failed(format!("{}: {error}", program.display())))?;
        drop((theirs, relay_theirs));
        let (qmp, config) = match self.greet(parts, ours, relay_ours) {
            // It stands still until here, so that a guest that ends at once ends as one that ran.
            Ok(mut qmp) if qemu.is_running() => match qmp.run(&serde_json::json!({"execute": "cont"})) {
                Ok(_) | Err(QmpError::Gone) => (qmp, parts.describe()),
                Err(error) => return Err(failed(format!("{error}: {}", qemu.end()))),
            },
            Ok(_) => return Err(failed(qemu.end())),
            Err(error) => return Err(failed(format!("{error}: {}", qemu.end()))),
        };
        let vsock = parts.vsock.take().map(|(_, socket)| socket);
        // What is QEMU's now is closed here with the parts.
        *state = State::After(Box::new(Guest { qmp, state: VmState::Running, config, _vsock: vsock }));
        store_micros(&self.metrics.boot_us, began);
        self.log.info(&format!("The VM runs on QEMU ({accelerator:?})."));
        Ok(())
    }

    /// The connections to a QEMU that was started. Nothing of them is left where one fails and QEMU ends.
    fn greet(&self, parts: &Resources, monitor: UnixStream, relay: Option<UnixStream>) -> Result<Qmp, String> {
        let (opened, opened_far) = UnixStream::pair().map_err(|error| error.to_string())?;
        let opened_far = relay.is_some().then_some(opened_far);
        let qmp = Qmp::greet(monitor, opened_far, MACHINE_PATIENCE).map_err(|error| error.to_string())?;
        if let (Some((_, socket)), Some(port)) = (&parts.vsock, relay) {
            Relay::start(socket, port, opened, Arc::clone(&self.log), Arc::clone(&self.metrics))
                .map_err(|error| format!("vsock: {error}"))?;
        }
        Ok(qmp)
    }

    /// KVM where a guest runs on it, emulation elsewhere; says in the log which and why.
    fn accelerator(&self) -> Accelerator {
        match sys::kvm::runs_guests() {
            Ok(()) => Accelerator::Kvm,
            Err(error) => {
                let tsc_khz = self.counter.khz_since();
                self.log.info(&format!("/dev/kvm runs no guest ({error}): QEMU emulates the CPU."));
                if tsc_khz.is_none() {
                    self.log.warn("The rate of the time stamp counter is unknown; the guest's kernel may stop early.");
                }
                Accelerator::Tcg { tsc_khz }
            }
        }
    }

    pub(crate) fn pause(&self, guest: &mut Guest) -> Result<(), Fault> {
        let began = Instant::now();
        guest.run(&serde_json::json!({"execute": "stop"}))?;
        guest.state = VmState::Paused;
        store_micros(&self.metrics.pause_us, began);
        Ok(())
    }

    pub(crate) fn resume(&self, guest: &mut Guest) -> Result<(), Fault> {
        let began = Instant::now();
        guest.run(&serde_json::json!({"execute": "cont"}))?;
        guest.state = VmState::Running;
        store_micros(&self.metrics.resume_us, began);
        Ok(())
    }
}

impl Guest {
    pub(crate) fn state(&self) -> VmState {
        self.state
    }

    pub(crate) fn config(&self) -> &VmConfig {
        &self.config
    }

    /// Presses the three keys on the keyboard controller that Firecracker's guests have as well.
    pub(crate) fn ctrl_alt_del(&mut self) -> Result<(), Fault> {
        let key = |name: &str| serde_json::json!({"type": "qcode", "data": name});
        self.run(&serde_json::json!({
            "execute": "send-key",
            "arguments": {"keys": [key("ctrl"), key("alt"), key("delete")]},
        }))
    }

    fn run(&mut self, command: &serde_json::Value) -> Result<(), Fault> {
        match self.qmp.run(command) {
            Ok(_) => Ok(()),
            Err(error) => Err(Fault::new(format!("Internal VMM error: {error}"))),
        }
    }
}

fn store_micros(counter: &AtomicU64, began: Instant) {
    counter.store(u64::try_from(began.elapsed().as_micros()).unwrap_or(u64::MAX), Relaxed);
}

fn pair() -> std::io::Result<(UnixStream, OwnedFd)> {
    let (ours, theirs) = UnixStream::pair()?;
    Ok((ours, theirs.into()))
}

/// QEMU's arguments, and the descriptors that they name.
struct Assembled {
    arguments: Vec<String>,
    keep: Vec<OwnedFd>,
}

/// Copies descriptors for QEMU, so that a boot that fails leaves the parts as they were.
#[derive(Default)]
struct Given(Vec<OwnedFd>);

impl Given {
    fn copy(&mut self, fd: &OwnedFd) -> Result<RawFd, Fault> {
        let copy = fd.try_clone().map_err(|error| Fault::new(format!("Start microvm error: {error}")))?;
        let number = copy.as_raw_fd();
        self.0.push(copy);
        Ok(number)
    }
}

fn assemble(
    parts: &Resources,
    accelerator: Accelerator,
    qmp: &OwnedFd,
    relay: Option<&OwnedFd>,
) -> Result<Assembled, Fault> {
    let boot = parts
        .boot
        .as_ref()
        .ok_or_else(|| Fault::new("Start microvm error: Cannot start microvm without kernel configuration."))?;
    let mut given = Given::default();
    let mut disks = Vec::new();
    for disk in &parts.disks {
        disks.push(DiskArgs {
            fd: given.copy(&disk.file)?,
            backing: disk.backing,
            read_only: disk.config.is_read_only.unwrap_or(false),
            cache: disk.config.cache_type,
        });
    }
    let macs = parts.nics.iter().map(|nic| nic.config.guest_mac.clone().map_or_else(random_mac, Ok));
    let macs: Vec<MacAddr> = macs.collect::<Result<_, Fault>>()?;
    let mut nics = Vec::new();
    for (nic, mac) in parts.nics.iter().zip(&macs) {
        nics.push(NicArgs { fd: given.copy(&nic.tap)?, mac, mtu: nic.config.mtu });
    }
    let root = parts.disks.first().filter(|disk| disk.config.is_root_device);
    let root = root
        .map(|disk| (disk.config.partuuid.as_ref().map(PartUuid::as_str), disk.config.is_read_only.unwrap_or(false)));
    let machine = Machine {
        accelerator,
        vcpus: parts.machine.vcpu_count,
        smt: parts.machine.smt,
        memory_mib: parts.machine.mem_size_mib,
        kernel: given.copy(&boot.kernel)?,
        initrd: boot.initrd.as_ref().map(|initrd| given.copy(initrd)).transpose()?,
        command_line: &machine::command_line(boot.config.boot_args.as_ref(), root, accelerator)?,
        disks,
        nics,
        qmp: given.copy(qmp)?,
        relay: relay.map(|relay| given.copy(relay)).transpose()?,
    };
    Ok(Assembled { arguments: machine::arguments(&machine), keep: given.0 })
}

/// An address for an interface that was given none: QEMU's own default is the same in every VM.
fn random_mac() -> Result<MacAddr, Fault> {
    let mut bytes = [0; 6];
    random(&mut bytes).map_err(|error| Fault::new(format!("Start microvm error: {error}")))?;
    bytes[0] = 0x02;
    let text: Vec<String> = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
    MacAddr::new(text.join(":")).map_err(|error| Fault::new(error.to_string()))
}

/// Fills `bytes` from the kernel, without a descriptor: there may be none left.
pub(crate) fn random(bytes: &mut [u8]) -> std::io::Result<()> {
    let got = rustix::rand::getrandom(&mut *bytes, rustix::rand::GetRandomFlags::empty())?;
    // So few come whole, or not at all.
    if got == bytes.len() { Ok(()) } else { Err(std::io::ErrorKind::UnexpectedEof.into()) }
}
