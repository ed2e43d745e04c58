//! What a new VM is to be: checked, completed with defaults, given a name, an address and a CID, and written down.

use super::publish::{self, Listening};
use super::work::Work;
use super::{memory, name, pool};
use crate::api::Fault;
use crate::api::vm::{Machine, Published};
use crate::daemon::error::exit;
use crate::daemon::store::ports;
use crate::daemon::store::vms::{self, Process, State, Vm};
use crate::daemon::vmm::Accel;
use crate::daemon::{addresses, image};
use crate::time::unix_now;
use rusqlite::Transaction;
use std::collections::BTreeSet;
use wire::vm::MAX_VCPUS;

/// The longest disk that ext4 of 4 KiB blocks has without more than 32 bits for their numbers.
const MOST_DISK: u64 = 16 << 40;

/// Where a VM comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum From {
    /// From nothing.
    New,
    /// From nothing, to wait in the pool.
    ForPool,
    /// Out of the pool, where one there is as it is to be. It is `launched` then.
    Pool,
}

/// What a new VM would be: nothing is written down, and its ports are held as long as this is.
pub(crate) struct Draft {
    pub(crate) vm: Vm,
    listening: Vec<Listening>,
}

impl Draft {
    /// Its ports on this machine.
    pub(crate) fn ports(&self) -> Vec<Published> {
        let ports = self.listening.iter().map(|one| one.port);
        ports.map(|it| Published { address: it.address, port: it.port, guest_port: it.guest, open: false }).collect()
    }
}

/// Plans it. One that is not kept goes with its caller, who is remembered beyond this daemon's own end.
pub(crate) fn plan(
    work: &Work<'_>,
    machine: &Machine,
    kept: bool,
    caller: Option<Process>,
    from: From,
) -> Result<Vm, Fault> {
    check_name(machine)?;
    planned(work, machine, kept, caller, from)
}

/// The same of a VM in the making of a template; its name is one that no other VM may have.
pub(crate) fn of_template(work: &Work<'_>, machine: &Machine, id: &str) -> Result<Vm, Fault> {
    let machine = Machine { name: Some(name::of_template(id)), ..machine.clone() };
    planned(work, &machine, false, None, From::New)
}

/// What [`plan`] would plan.
pub(crate) fn draft(work: &Work<'_>, machine: &Machine, kept: bool) -> Result<Draft, Fault> {
    check_name(machine)?;
    drafted(work, machine, kept, From::New, |_, _, _| Ok(()))
}

fn check_name(machine: &Machine) -> Result<(), Fault> {
    machine.name.as_deref().map_or(Ok(()), name::check)
}

fn planned(work: &Work<'_>, machine: &Machine, kept: bool, caller: Option<Process>, from: From) -> Result<Vm, Fault> {
    let caller = caller.filter(|_| !kept);
    let Draft { vm, listening } = drafted(work, machine, kept, from, |t, vm, listening| {
        vm.caller = caller;
        vms::save(t, vm)?;
        listening.iter().try_for_each(|one| ports::add(t, &vm.id, &one.port))
    })?;
    work.daemon.published.hold(&vm.id, listening);
    Ok(vm)
}

/// Completes it; `keep` is done in the same transaction as the look at which names and addresses are taken.
fn drafted(
    work: &Work<'_>,
    machine: &Machine,
    kept: bool,
    from: From,
    keep: impl FnOnce(&Transaction<'_>, &mut Vm, &[Listening]) -> Result<(), Fault>,
) -> Result<Draft, Fault> {
    let choice = super::launch::choice(work)?;
    let cpus = cpus(machine.cpus, choice.accel)?;
    let memory_mib = memory::of_new(machine.memory_mib)?;
    let mut base = image::base(work.daemon, machine.image.as_deref(), machine.kernel.as_deref())?;
    base.bytes = disk(machine.disk_mib, base.bytes)?;
    let id = addresses::id()?;
    // Taken before anything is made, and held until it runs.
    let listening = publish::take(&machine.ports)?;
    let seed = u32::from_str_radix(&id[..8], 16).unwrap_or(0);
    let vm = work.daemon.store.change(|transaction| {
        let all = vms::all(transaction)?;
        let is_taken = |name: &str| all.iter().any(|vm| vm.name == name);
        let name = match &machine.name {
            Some(name) => match all.iter().find(|vm| vm.name == *name) {
                Some(there) => return Err(name_taken(there)),
                None => name.clone(),
            },
            None if from == From::ForPool => pool::name(&id),
            None => name::made_up(seed, is_taken).unwrap_or_else(|| format!("vm-{id}")),
        };
        let addresses: BTreeSet<_> = all.iter().map(|vm| vm.address).collect();
        let cids: BTreeSet<_> = all.iter().map(|vm| vm.cid).collect();
        let vm = Vm {
            id: id.clone(),
            name,
            kept,
            caller: None,
            state: State::Planned,
            base: base.clone(),
            cpus,
            memory_mib,
            nat: !machine.no_nat,
            init: machine.init,
            disk_method: None,
            template: None,
            address: addresses::address(&work.daemon.settings.bridge.addr, &addresses)?,
            tap: None,
            cid: addresses::cid(&cids),
            vmm: None,
            vmm_version: None,
            mac: None,
            accel: None,
            pid: None,
            boot_id: None,
            agent: None,
            created_at: unix_now(),
            started_at: None,
            ready_ms: None,
            last_error: None,
        };
        let pooled = if from == From::Pool { work.daemon.pool.fitting(&all, &vm) } else { None };
        let mut vm = pooled.map_or(vm.clone(), |pooled| pool::given_out(pooled, vm));
        keep(transaction, &mut vm, &listening)?;
        Ok(vm)
    })?;
    Ok(Draft { vm, listening })
}

fn cpus(asked: Option<u8>, accel: Accel) -> Result<u8, Fault> {
    match asked {
        Some(cpus) if (1..=MAX_VCPUS).contains(&cpus) => Ok(cpus),
        Some(cpus) => Err(Fault::new("bad_cpus", exit::USAGE, format!("{cpus} vCPUs: 1 to {MAX_VCPUS} are possible"))),
        // Emulated, a second one makes every start slower.
        None if accel == Accel::Emulation => Ok(1),
        None => {
            let all = std::thread::available_parallelism().map_or(1, usize::from);
            Ok(u8::try_from((all / 4).clamp(1, 4)).unwrap_or(1))
        }
    }
}

/// How long the disk is: the image's length, or more.
fn disk(asked: Option<u64>, image: u64) -> Result<u64, Fault> {
    match asked {
        None => Ok(image),
        Some(mib) if (image..=MOST_DISK).contains(&mib.saturating_mul(1 << 20)) => Ok(mib << 20),
        Some(mib) => {
            let (least, most) = (image.div_ceil(1 << 20), MOST_DISK >> 20);
            let message = format!("a disk of {mib} MiB: {least} (the image's) to {most} are possible");
            Err(Fault::new("bad_disk", exit::USAGE, message)
                .fix("a shorter one needs a shorter image: banger image build NAME --size S"))
        }
    }
}

fn name_taken(there: &Vm) -> Fault {
    let (name, state) = (&there.name, there.state.shown());
    let old = crate::time::age(unix_now().saturating_sub(there.created_at));
    let message = format!("there is a VM named {name} already ({state}, {old} old)");
    Fault::new("name_taken", exit::STATE, message)
        .fix(format!("banger vm start {name} | banger vm rm {name} | another name, as {name:.60}-2"))
}
