//! From gathered parts, or a saved state, to a guest: QEMU is started with descriptors, greeted, given its state and
//! limits, and let go.

use std::fs::File;
use std::os::fd::{AsFd as _, AsRawFd as _, OwnedFd, RawFd};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use serde_json::json;
use wire::firecracker::{HostPath, MacAddr, PartUuid, VmState};

use crate::config::{Disk, Resources};
use crate::confine;
use crate::fault::Fault;
use crate::guest::{Guest, Saved};
use crate::launch::{self, Qemu};
use crate::machine::{self, Accelerator, Begin, DiskArgs, Machine, NicArgs};
use crate::memory::{self, Memory};
use crate::qmp::{AGREE, Qmp, QmpError};
use crate::snapshot::Header;
use crate::throttle;
use crate::vmm::{State, Vmm, store_micros};
use crate::vsock::{Greeting, Relay};

/// How long QEMU may take to make its machine.
const MACHINE_PATIENCE: Duration = Duration::from_secs(30);

/// What a start of QEMU is made of beside the parts.
pub(crate) struct Plan {
    pub(crate) accelerator: Accelerator,
    pub(crate) memory: Memory,
    pub(crate) macs: Vec<MacAddr>,
    /// A saved state and QEMU's stream of it; else the kernel of the parts is booted.
    pub(crate) saved: Option<(Header, File)>,
    /// Whether the guest runs at once.
    pub(crate) run: bool,
}

impl Vmm {
    /// Boots. Where that fails, the parts are as they were.
    pub(crate) fn start(&self, state: &mut State) -> Result<(), Fault> {
        let State::Before(parts) = state else { return Err(Fault::after_boot()) };
        let began = Instant::now();
        let failed = |error: String| Fault::new(format!("Start microvm error: {error}"));
        if parts.boot.is_none() {
            return Err(failed("Cannot start microvm without kernel configuration.".to_owned()));
        }
        let arguments = parts.boot.as_ref().and_then(|boot| boot.config.boot_args.as_ref());
        let accelerator = self.accelerator(machine::is_to_be_emulated(arguments));
        let memory = Memory::new(parts.machine.mem_size_mib << 20).map_err(|error| failed(error.to_string()))?;
        let given = |nic: &crate::config::Nic| nic.config.guest_mac.clone().map_or_else(random_mac, Ok);
        let macs = parts.nics.iter().map(given).collect::<Result<_, String>>().map_err(failed)?;
        let plan = Plan { accelerator, memory, macs, saved: None, run: true };
        let guest = self.launch(parts, plan).map_err(failed)?;
        // What is QEMU's now is closed here with the parts.
        *state = State::After(Box::new(guest));
        store_micros(&self.metrics.boot_us, began);
        self.log.info(&format!("The VM runs on QEMU ({accelerator:?})."));
        Ok(())
    }

    /// Starts QEMU and brings its guest to where it runs or is paused. Nothing is left of one that fails.
    pub(crate) fn launch(&self, parts: &mut Resources, mut plan: Plan) -> Result<Guest, String> {
        let program = launch::program()?;
        if let Some(layer) = parts.layer.as_ref().filter(|_| parts.disks.iter().all(|disk| disk.layer.is_none())) {
            return Err(format!("--disk-layer: there is no drive {}", layer.drive));
        }
        let ends = Ends::new(parts).map_err(|error| error.to_string())?;
        let order = assemble(parts, &plan, &ends)?;
        let rules = self.rules(&program, &plan, parts)?;
        let (ours, theirs) = ends.split();
        let qemu = launch::order(&self.main, &program, &order.arguments, order.keep, rules)
            .map_err(|error| format!("{}: {error}", program.display()))?;
        drop(theirs);
        let qmp = match self.bring_up(parts, &plan, ours, &program, &qemu) {
            Ok(qmp) => qmp,
            Err(error) => return Err(format!("{error}: {}", qemu.end())),
        };
        plan.memory.unname();
        Ok(Guest {
            qmp,
            process: qemu.pid,
            state: if plan.run { VmState::Running } else { VmState::Paused },
            config: parts.describe(),
            memory: plan.memory,
            macs: plan.macs,
            accelerator: plan.accelerator,
            program,
            changes: vec![0; parts.disks.len()],
            layered: parts.disks.iter().position(|disk| disk.layer.is_some()),
            saved: Saved::No,
            _vsock: parts.vsock.take().map(|(_, socket)| socket),
        })
    }

    /// The rules under which QEMU opens files; none where the kernel has none, which the log says.
    fn rules(&self, program: &Path, plan: &Plan, parts: &Resources) -> Result<Option<sys::landlock::Ruleset>, String> {
        let kernel = parts.boot.as_ref().map(|boot| &boot.kernel);
        let initrd = parts.boot.as_ref().and_then(|boot| boot.initrd.as_ref());
        let told: Vec<&OwnedFd> = kernel.into_iter().chain(initrd).collect();
        let named = plan.memory.name().map(|_| plan.memory.file());
        match confine::rules(program, plan.accelerator, &told, named) {
            Ok(rules) => Ok(Some(rules)),
            Err(error) if error.kind() == std::io::ErrorKind::Unsupported => {
                self.log.warn(&format!("This kernel has no Landlock ({error}): QEMU can open what its user can."));
                Ok(None)
            }
            Err(error) => Err(format!("Landlock: {error}")),
        }
    }

    /// Greets a QEMU that was started, which stands still, and gives it all that is not told by its arguments.
    fn bring_up(&self, parts: &Resources, plan: &Plan, ours: Ours, program: &Path, qemu: &Qemu) -> Result<Qmp, String> {
        let (opened, opened_far) = UnixStream::pair().map_err(|error| error.to_string())?;
        let opened_far = ours.relay.is_some().then_some(opened_far);
        let mut qmp = Qmp::greet(ours.monitor, opened_far, MACHINE_PATIENCE).map_err(|error| error.to_string())?;
        if let (Some(console), Some(guest)) = (&parts.console, ours.console) {
            console.follow(guest).map_err(|error| format!("console: {error}"))?;
        }
        match &plan.saved {
            Some((header, stream)) => crate::load::incoming(&mut qmp, header, stream, program, plan.accelerator)?,
            None => drop(qmp.run(&json!({"execute": AGREE})).map_err(|error| error.to_string())?),
        }
        for (n, disk) in parts.disks.iter().enumerate() {
            if disk.config.rate_limiter.is_some_and(|limiter| limiter.limits()) {
                let limit = throttle::arguments(&format!("drive{n}"), disk.config.rate_limiter.as_ref());
                run(&mut qmp, "block_set_io_throttle", limit)?;
            }
        }
        if let Some(balloon) = &parts.balloon {
            // A loaded one knows how large it is to be.
            if plan.saved.is_none() {
                run(&mut qmp, "balloon", crate::guest::balloon_target(parts.machine.mem_size_mib, balloon.amount_mib))?;
            }
            if balloon.stats_polling_interval_s > 0 {
                run(&mut qmp, "qom-set", crate::guest::balloon_polling(balloon.stats_polling_interval_s))?;
            }
        }
        if let (Some((_, socket)), Some(port)) = (&parts.vsock, ours.relay) {
            let greeting = if plan.saved.is_some() { Greeting::Loaded } else { Greeting::Booted };
            Relay::start(socket, port, opened, greeting, Arc::clone(&self.log), Arc::clone(&self.metrics))
                .map_err(|error| format!("vsock: {error}"))?;
        }
        // It stands still until here, so that a guest that ends at once ends as one that ran.
        if !qemu.is_running() {
            return Err("it ended".to_owned());
        }
        if plan.run {
            match qmp.run(&json!({"execute": "cont"})) {
                Ok(_) | Err(QmpError::Gone) => {}
                Err(error) => return Err(error.to_string()),
            }
        }
        Ok(qmp)
    }

    /// KVM where a guest runs on it and `emulated` is not asked for, emulation elsewhere; says in the log which and why.
    pub(crate) fn accelerator(&self, emulated: bool) -> Accelerator {
        // A trial takes some milliseconds, most of them to take its VM down.
        let why = match emulated {
            true => Err("it is asked for".to_owned()),
            false => sys::kvm::runs_guests().map_err(|error| format!("/dev/kvm runs no guest ({error})")),
        };
        let tsc_khz = self.counter.khz_since();
        match why {
            Ok(()) => Accelerator::Kvm { tsc_khz },
            Err(why) => {
                self.log.info(&format!("QEMU emulates the CPU: {why}."));
                if tsc_khz.is_none() {
                    self.log.warn("The rate of the time stamp counter is unknown; the guest's kernel may stop early.");
                }
                Accelerator::Tcg { tsc_khz }
            }
        }
    }
}

/// Runs a command for its effect.
///
/// # Errors
/// What QEMU says.
pub(crate) fn run(qmp: &mut Qmp, command: &str, arguments: serde_json::Value) -> Result<(), String> {
    match qmp.run(&json!({"execute": command, "arguments": arguments})) {
        Ok(_) => Ok(()),
        Err(error) => Err(format!("{command}: {error}")),
    }
}

/// Pairs of sockets, one end of each for QEMU.
struct Ends {
    monitor: (UnixStream, OwnedFd),
    relay: Option<(UnixStream, OwnedFd)>,
    console: Option<(UnixStream, OwnedFd)>,
}

/// Our ends of them.
struct Ours {
    monitor: UnixStream,
    relay: Option<UnixStream>,
    console: Option<UnixStream>,
}

impl Ends {
    fn new(parts: &Resources) -> std::io::Result<Self> {
        let pair = || UnixStream::pair().map(|(ours, theirs)| (ours, OwnedFd::from(theirs)));
        Ok(Self {
            monitor: pair()?,
            relay: parts.vsock.is_some().then(pair).transpose()?,
            console: parts.console.is_some().then(pair).transpose()?,
        })
    }

    fn split(self) -> (Ours, [Option<OwnedFd>; 3]) {
        let (relay, relay_theirs) = self.relay.unzip();
        let (console, console_theirs) = self.console.unzip();
        let (monitor, theirs) = self.monitor;
        (Ours { monitor, relay, console }, [Some(theirs), relay_theirs, console_theirs])
    }
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
    fn copy(&mut self, fd: &OwnedFd) -> Result<RawFd, String> {
        self.take(fd.try_clone())
    }

    /// A path by which QEMU opens a file that is open here: of the descriptor, or its own where that can't be.
    fn told(&mut self, fd: &OwnedFd, path: &HostPath) -> Result<String, String> {
        if memory::names_descriptors() {
            return self.copy(fd).map(path_of);
        }
        let path = std::path::absolute(path.as_str()).map_err(|error| error.to_string())?;
        Ok(path.display().to_string())
    }

    fn take(&mut self, copy: std::io::Result<OwnedFd>) -> Result<RawFd, String> {
        let copy = copy.map_err(|error| error.to_string())?;
        let number = copy.as_raw_fd();
        self.0.push(copy);
        Ok(number)
    }
}

fn path_of(fd: RawFd) -> String {
    format!("/proc/self/fd/{fd}")
}

fn assemble(parts: &Resources, plan: &Plan, ends: &Ends) -> Result<Assembled, String> {
    let mut given = Given::default();
    let mut disks = Vec::new();
    for disk in &parts.disks {
        let layer = disk.layer.as_ref().map(|layer| given.copy(layer)).transpose()?;
        disks.push(disk_args(given.copy(&disk.file)?, layer, disk));
    }
    let mut nics = Vec::new();
    for (nic, mac) in parts.nics.iter().zip(&plan.macs) {
        nics.push(NicArgs { fd: given.copy(&nic.tap)?, mac, mtu: nic.config.mtu });
    }
    let root = parts.disks.first().filter(|disk| disk.config.is_root_device);
    let root = root
        .map(|disk| (disk.config.partuuid.as_ref().map(PartUuid::as_str), disk.config.is_read_only.unwrap_or(false)));
    let line;
    let begin = match (&plan.saved, &parts.boot) {
        (None, Some(boot)) => {
            line = machine::command_line(boot.config.boot_args.as_ref(), root, plan.accelerator)
                .map_err(|fault| fault.to_string())?;
            let initrd = boot.initrd.as_ref().zip(boot.config.initrd_path.as_ref());
            Begin::Boot {
                kernel: given.told(&boot.kernel, &boot.config.kernel_image_path)?,
                initrd: initrd.map(|(file, path)| given.told(file, path)).transpose()?,
                command_line: &line,
            }
        }
        _ => Begin::Load,
    };
    let machine = Machine {
        accelerator: plan.accelerator,
        vcpus: parts.machine.vcpu_count,
        smt: parts.machine.smt,
        memory_mib: parts.machine.mem_size_mib,
        memory: match plan.memory.name() {
            Some(name) => name.display().to_string(),
            None => path_of(given.take(plan.memory.file().as_fd().try_clone_to_owned())?),
        },
        template: plan.memory.is_template(),
        begin,
        disks,
        nics,
        balloon: parts.balloon,
        entropy: parts.entropy,
        console: ends.console.as_ref().map(|(_, theirs)| given.copy(theirs)).transpose()?,
        qmp: given.copy(&ends.monitor.1)?,
        relay: ends.relay.as_ref().map(|(_, theirs)| given.copy(theirs)).transpose()?,
    };
    Ok(Assembled { arguments: machine::arguments(&machine), keep: given.0 })
}

fn disk_args(fd: RawFd, layer: Option<RawFd>, disk: &Disk) -> DiskArgs {
    DiskArgs {
        fd,
        layer,
        backing: disk.backing,
        read_only: disk.config.is_read_only.unwrap_or(false),
        cache: disk.config.cache_type,
    }
}

/// An address for an interface that was given none: QEMU's own default is the same in every VM.
fn random_mac() -> Result<MacAddr, String> {
    let mut bytes = [0; 6];
    random(&mut bytes).map_err(|error| error.to_string())?;
    bytes[0] = 0x02;
    let text: Vec<String> = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
    MacAddr::new(text.join(":")).map_err(|error| error.to_string())
}

/// Fills `bytes` from the kernel, without a descriptor: there may be none left.
pub(crate) fn random(bytes: &mut [u8]) -> std::io::Result<()> {
    let got = rustix::rand::getrandom(&mut *bytes, rustix::rand::GetRandomFlags::empty())?;
    // So few come whole, or not at all.
    if got == bytes.len() { Ok(()) } else { Err(std::io::ErrorKind::UnexpectedEof.into()) }
}
