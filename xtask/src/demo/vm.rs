//! The demo's VM: its network, its launch, its end, all of it asked of the helper.

use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use wire::client::Client;
use wire::code::Code;
use wire::image::Image;
use wire::name::addr::{BridgeAddr, GuestAddr};
use wire::name::link::{BridgeName, TapName};
use wire::name::signal::Signal;
use wire::name::vm_id::{DriveId, VmId};
use wire::net::{Bridge, Nat, NewTap, Switch};
use wire::path::{HostPath, ProgramPath, Root, Roots};
use wire::units::Mebibytes;
use wire::vm::{Boot, Drive, Jailer, Launch, Pid, Start};

use super::helper::{Connect, Owner, PROGRAMS};
use super::place::{RUNTIME, STATE};
use crate::programs;

pub(crate) const GUEST: &str = "172.16.0.2";
/// Where the VMM logs, and writes what the guest writes to its console.
pub(crate) const LOG: &str = "/var/lib/banger/vmm.log";
const BRIDGE: &str = "br-fc";
const BRIDGE_IP: &str = "172.16.0.1";
pub(crate) const TAP: &str = "tap-fc-demo";
const CID: u32 = 3;
pub(crate) const MEMORY: Mebibytes = Mebibytes(256);
/// A VM that was asked to end has this long before it is killed.
const STOP: Duration = Duration::from_secs(10);

/// The kernel's arguments: a quick start, the guest's address, a program whose first word is `word`, and `more`.
pub(crate) fn kernel_args(word: &str, more: &str) -> String {
    format!(
        "console=ttyS0 reboot=k panic=-1 loglevel=1 cryptomgr.notests random.trust_cpu=on \
         ip={GUEST}::{BRIDGE_IP}:255.255.255.0:demo:eth0:off {more} banger.run=\"echo {word}\""
    )
}

/// Whether a VM runs in a jail.
#[derive(Clone, Copy)]
pub(crate) enum Jail {
    With,
    Without,
}

impl Jail {
    /// As the demo shows it.
    pub(crate) fn words(self) -> &'static str {
        match self {
            Jail::With => "in a jail",
            Jail::Without => "without a jail",
        }
    }
}

/// Calls of the helper on behalf of one VM.
pub(crate) struct Caller<F> {
    client: Client<F>,
    bridge: Bridge,
    tap: TapName,
    roots: Roots,
    uid: u32,
    gid: u32,
}

impl<F: Connect> Caller<F> {
    /// Checks the names; calls nothing yet.
    pub(crate) fn new(client: Client<F>, owner: &Owner) -> Result<Self> {
        let bridge = Bridge { name: BridgeName::new(BRIDGE)?, addr: BridgeAddr::new(BRIDGE_IP, "24")? };
        let roots = Roots { state: STATE.into(), runtime: RUNTIME.into() };
        Ok(Self { client, bridge, tap: TapName::new(TAP)?, roots, uid: owner.uid, gid: owner.gid })
    }

    /// Bridge, tap and way out, in the order in which a daemon asks for them; gives each call's time.
    pub(crate) fn network_up(&self) -> Result<Vec<(&'static str, Duration)>> {
        let tap = NewTap { bridge: self.bridge.clone(), tap: self.tap.clone() };
        Ok(vec![
            timed("priv.ensure_bridge", || self.client.ensure_bridge(&self.bridge))?,
            timed("priv.create_tap", || self.client.create_tap(&tap))?,
            timed("priv.ensure_nat", || self.client.ensure_nat(&self.nat(Switch::On)?))?,
        ])
    }

    /// The way back, in the opposite order.
    pub(crate) fn network_down(&self) -> Result<Vec<(&'static str, Duration)>> {
        Ok(vec![
            timed("priv.ensure_nat, off", || self.client.ensure_nat(&self.nat(Switch::Off)?))?,
            timed("priv.delete_tap", || self.client.delete_tap(&self.tap))?,
        ])
    }

    fn nat(&self, switch: Switch) -> Result<Nat, wire::client::Error> {
        let guest = GuestAddr::new(GUEST).map_err(|e| wire::client::Error::Reply(e.to_string()))?;
        Ok(Nat { guest, tap: self.tap.clone(), switch })
    }

    /// Where the helper finds a VMM of this name.
    pub(crate) fn resolve(&self, name: &str) -> Result<String> {
        self.client.resolve_firecracker_binary(name).context("priv.resolve_firecracker_binary")
    }

    /// Launches the VM; it runs when this returns.
    pub(crate) fn launch(&self, program: &str, jail: Jail, kernel_args: &str) -> Result<Pid> {
        let image = format!("{STATE}/images/root.ext4");
        let root = Image::new(&image, &self.roots, Code::InvalidPath, "drives")?;
        let jailer = match jail {
            Jail::Without => None,
            Jail::With => Some(Jailer {
                program: ProgramPath::new(&format!("{PROGRAMS}/banger-jailer"))?,
                chroot_base: self.path(Root::State, "jail")?,
                uid: self.uid.into(),
                gid: self.gid.into(),
            }),
        };
        let launch = Launch {
            program: ProgramPath::new(program)?,
            vm_id: VmId::new("demo")?,
            socket: self.path(Root::Runtime, "demo.sock")?,
            log: self.path(Root::State, "vmm.log")?,
            metrics: self.path(Root::State, "metrics")?,
            start: Start::Boot(Boot {
                kernel: self.path(Root::State, "images/vmlinux")?,
                initrd: Some(self.path(Root::State, "images/initrd")?),
                kernel_args: kernel_args.to_owned(),
            }),
            drives: vec![Drive { id: DriveId::new("rootfs")?, image: root, read_only: false, is_root: true }],
            tap: self.tap.clone(),
            vsock: self.path(Root::Runtime, "demo.vsock")?,
            cid: CID,
            vcpus: 1,
            memory: MEMORY,
            jailer,
        };
        self.client.launch_firecracker(&launch).context("priv.launch_firecracker")
    }

    /// Asks the VM to end and waits until it has; one that doesn't is killed, and that is an error.
    pub(crate) fn stop(&self, pid: Pid) -> Result<Duration> {
        let asked = Instant::now();
        self.client.signal_process(pid, Signal::Term).context("priv.signal_process")?;
        while self.runs(pid)? {
            if asked.elapsed() > STOP {
                self.client.kill_process(pid).context("priv.kill_process")?;
                bail!("the VMM, process {pid}, still ran {} s after TERM and was killed", STOP.as_secs());
            }
            sleep(Duration::from_millis(5));
        }
        Ok(asked.elapsed())
    }

    /// Whether the VM runs, and is the one whose API socket is ours.
    pub(crate) fn runs(&self, pid: Pid) -> Result<bool> {
        self.client.process_running(pid, &format!("{RUNTIME}/demo.sock")).context("priv.process_running")
    }

    /// Takes the bridge away, which the helper keeps for the next VM: no method of the contract removes one.
    pub(crate) fn bridge_down(&self) -> Result<()> {
        programs::output("ip", ["link", "delete", BRIDGE]).map(drop)
    }

    /// What of banger's the helper still finds in the kernel: bridges, taps, guests, VMs.
    pub(crate) fn left(&self) -> Result<usize> {
        let found = self.client.list_resources().context("priv.list_resources")?;
        Ok(found.bridges.len() + found.taps.len() + found.guests.len() + found.vms.len())
    }

    fn path(&self, root: Root, name: &str) -> Result<HostPath> {
        let directory = if root == Root::State { STATE } else { RUNTIME };
        Ok(HostPath::new(&format!("{directory}/{name}"), &[root], &self.roots, Code::InvalidPath, "path")?)
    }
}

fn timed(
    method: &'static str,
    call: impl FnOnce() -> Result<(), wire::client::Error>,
) -> Result<(&'static str, Duration)> {
    let start = Instant::now();
    call().context(method)?;
    Ok((method, start.elapsed()))
}
