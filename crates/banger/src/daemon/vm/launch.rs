//! The launch of a VM's VMM, and its load of a template: what the helper is told.

use super::disk;
use super::work::Work;
use crate::api::Fault;
use crate::daemon::error::exit;
use crate::daemon::image::template::Files;
use crate::daemon::store::vms::Vm;
use crate::daemon::vmm::{self, Accel, Choice, Missing};
use rustix::process::{getgid, getuid};
use std::path::Path;
use wire::image::Image;
use wire::name::vm_id::DriveId;
use wire::path::{ProgramPath, Root};
use wire::units::Mebibytes;
use wire::vm::{Boot, Drive, Jailer, Launch, Saved, Start};

/// A quick start; the guest's own settings are in its disk.
pub(crate) const KERNEL_ARGS: &str = "console=ttyS0 reboot=k panic=-1 loglevel=1 cryptomgr.notests random.trust_cpu=on";
/// Has the agent tell its stages on the console.
const STAGES: &str = "banger.stages=1";
/// Has the agent make the file system as long as the disk.
const GROW: &str = "banger.grow=1";
/// Has the agent make the image's init the first process. No login is to be offered on the console, which nobody writes to.
const INIT: &str = "banger.init=1 systemd.getty_auto=0";
/// Has `banger-qemu` emulate the CPU without a trial of its own: it is one decision for both.
const EMULATED: &str = "banger.accel=emulation";
/// Where a jailer may be, beside the VMM's own directory; the contract's directories.
const DIRECTORIES: [&str; 3] = ["/usr/libexec/banger", "/usr/local/bin", "/usr/bin"];

/// Launches it; the VMM's process.
pub(super) fn launch(work: &Work<'_>, vm: &mut Vm) -> Result<i32, Fault> {
    let choice = chosen(work, vm)?;
    let places = work.places(vm);
    let method = vm.disk_method.as_deref().ok_or_else(|| Fault::bug("a launch without a disk"))?;
    let state = Root::State;
    // Where the image is gone by now, an earlier boot has done it.
    let longer = disk::is_longer(vm).unwrap_or(false);
    let emulated = choice.accel == Accel::Emulation;
    let words = [(work.stages, STAGES), (longer, GROW), (vm.init, INIT), (emulated, EMULATED)];
    let wanted = words.into_iter().filter(|(wanted, _)| *wanted);
    let kernel_args = wanted.fold(KERNEL_ARGS.to_owned(), |args, (_, word)| format!("{args} {word}"));
    let start = Start::Boot(Boot {
        kernel: places.host(&vm.base.vmlinux, state)?,
        initrd: Some(places.host(&vm.base.initrd, state)?),
        kernel_args,
    });
    let image = places.image(method)?;
    let launch = asked(work, vm, &choice, start, image)?;
    let pid = work.helper().launch_firecracker(&launch).map_err(|error| work.refused("the launch", error))?;
    Ok(pid.0)
}

/// Has it go on from a template, over its empty layer or with the disk that was made of the template's; the VMM's process.
pub(super) fn restore(work: &Work<'_>, vm: &mut Vm, template: &Files) -> Result<i32, Fault> {
    let choice = chosen(work, vm)?;
    let places = work.places(vm);
    let below = |path: &Path| places.host(path, Root::State);
    let (layer, image) = match vm.disk_method.as_deref() {
        Some(disk::LAYER) => (Some(below(&places.layer())?), Image::File(below(&template.disk())?)),
        Some(method) => (None, places.image(method)?),
        None => return Err(Fault::bug("a launch without a disk")),
    };
    let (state, memory) = (below(&template.state())?, below(&template.memory())?);
    let start = Start::Restore(Saved { state, memory, layer });
    let launch = asked(work, vm, &choice, start, image)?;
    let pid = work.helper().launch_firecracker(&launch);
    Ok(pid.map_err(|error| work.refused("going on from the template", error))?.0)
}

/// The machine's VMM, which is this VM's from here on.
fn chosen(work: &Work<'_>, vm: &mut Vm) -> Result<Choice, Fault> {
    let choice = choice(work)?;
    (vm.vmm, vm.accel) = (Some(choice.name.to_owned()), Some(choice.accel.name().to_owned()));
    Ok(choice)
}

/// What both ask for.
fn asked(work: &Work<'_>, vm: &Vm, choice: &Choice, start: Start, image: Image) -> Result<Launch, Fault> {
    let (state, runtime) = (Root::State, Root::Runtime);
    let places = work.places(vm);
    let drive = Drive { id: DriveId::new("rootfs").map_err(Fault::bug)?, image, read_only: false, is_root: true };
    let jailer = Jailer {
        program: jailer(work, choice)?,
        chroot_base: places.host(&places.jails(), state)?,
        uid: getuid().as_raw().into(),
        gid: getgid().as_raw().into(),
    };
    Ok(Launch {
        program: ProgramPath::new(&choice.program).map_err(Fault::bug)?,
        vm_id: places.vm_id()?,
        socket: places.host(&places.api(), runtime)?,
        log: places.host(&places.console(), state)?,
        metrics: places.host(&places.dir().join("metrics"), state)?,
        start,
        drives: vec![drive],
        tap: places.tap()?,
        vsock: places.host(&places.vsock(), runtime)?,
        cid: vm.cid,
        vcpus: vm.cpus,
        memory: Mebibytes(vm.memory_mib),
        jailer: Some(jailer),
    })
}

/// The machine's VMM, looked for once.
pub(crate) fn choice(work: &Work<'_>) -> Result<Choice, Fault> {
    let resolve = |name: &str| work.helper().resolve_firecracker_binary(name);
    if let Some(known) = work.daemon.vmm.get() {
        return Ok(known.clone());
    }
    let wanted = &work.daemon.settings.vmm;
    let found = vmm::choose(resolve, wanted).map_err(|missing| match missing {
        Missing::Kvm(error) => {
            Fault::new("no_vmm", exit::MACHINE, "accel = \"kvm\" is configured, and KVM runs no guests here")
                .why(vmm::no_kvm(&error))
                .fix("banger doctor --only kvm says more; accel = \"auto\" emulates")
        }
        Missing::Program(wire::client::Error::Refused(refused)) if wanted.firecracker.is_some() => Fault::new(
            "no_vmm",
            exit::MACHINE,
            "a VMM that is wanted is not there, or the root helper doesn't start it",
        )
        .why(refused.message)
        .fix("firecracker_bin names a program of root's in one of the root helper's program_dirs"),
        Missing::Program(wire::client::Error::Refused(refused)) => {
            Fault::new("no_vmm", exit::MACHINE, "this machine can't start a VM: no KVM that runs guests, and no QEMU")
                .why(refused.message)
                .fix("install banger-qemu in one of the root helper's program_dirs; sudo apt install qemu-system-x86")
        }
        Missing::Program(error) => work.refused("looking for a VMM", error),
    })?;
    Ok(work.daemon.vmm.get_or_init(|| found).clone())
}

/// The jailer that is configured, else the one beside the VMM, or in one of the contract's directories.
fn jailer(work: &Work<'_>, choice: &Choice) -> Result<ProgramPath, Fault> {
    let beside = Path::new(&choice.program).parent().map(Path::to_path_buf);
    let dirs = beside.into_iter().chain(DIRECTORIES.map(Into::into));
    let names = ["banger-jailer", "jailer"];
    let usual = dirs.flat_map(|dir| names.map(|name| dir.join(name)));
    let found = work.daemon.settings.jailer.clone().into_iter().chain(usual).find(|path| path.is_file());
    let found = found.ok_or_else(|| {
        Fault::new("no_jailer", exit::MACHINE, "there is no jailer, and no VM runs without one")
            .why(format!("neither banger-jailer nor jailer lies beside {}", choice.program))
            .fix("install banger-jailer there")
    })?;
    ProgramPath::new(&found.to_string_lossy()).map_err(Fault::bug)
}
