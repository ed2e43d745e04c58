//! QEMU's argument vector, as a pure function of what was gathered: no file is opened, no clock is read.
//!
//! No text of a client stands in an argument that QEMU takes apart, but for ids and MAC addresses of checked alphabets;
//! files are descriptors, and the kernel's command line is an argument of its own, which QEMU passes on whole.

use std::os::fd::RawFd;

use wire::firecracker::{BootArgs, CacheType, MAX_BOOT_ARGS, MacAddr};

use crate::config::Backing;
use crate::fault::Fault;

/// Firecracker's own arguments for the kernel where the client gives none.
const DEFAULT_BOOT_ARGS: &str = "reboot=k panic=1 nomodule 8250.nr_uarts=0 i8042.noaux i8042.nomux i8042.dumbkbd \
                                 swiotlb=noforce";

/// Who executes the guest's instructions.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Accelerator {
    /// The CPU.
    Kvm,
    /// QEMU's emulation; the guest reads the host's counter, so its kernel is told the rate.
    Tcg { tsc_khz: Option<u64> },
}

/// All that the arguments depend on.
#[derive(Debug)]
pub(crate) struct Machine<'a> {
    pub(crate) accelerator: Accelerator,
    pub(crate) vcpus: u8,
    pub(crate) smt: bool,
    pub(crate) memory_mib: u64,
    pub(crate) kernel: RawFd,
    pub(crate) initrd: Option<RawFd>,
    pub(crate) command_line: &'a str,
    pub(crate) disks: Vec<DiskArgs>,
    pub(crate) nics: Vec<NicArgs<'a>>,
    pub(crate) qmp: RawFd,
    pub(crate) relay: Option<RawFd>,
}

#[derive(Debug)]
pub(crate) struct DiskArgs {
    pub(crate) fd: RawFd,
    pub(crate) backing: Backing,
    pub(crate) read_only: bool,
    pub(crate) cache: CacheType,
}

#[derive(Debug)]
pub(crate) struct NicArgs<'a> {
    pub(crate) fd: RawFd,
    pub(crate) mac: &'a MacAddr,
    pub(crate) mtu: Option<u16>,
}

/// The kernel's command line: the client's, what Firecracker adds for a root drive, and the counter's rate.
///
/// # Errors
/// It is longer than a kernel takes.
pub(crate) fn command_line(
    args: Option<&BootArgs>,
    root: Option<(Option<&str>, bool)>,
    accelerator: Accelerator,
) -> Result<String, Fault> {
    let given = args.map_or(DEFAULT_BOOT_ARGS, BootArgs::as_str).trim();
    // What follows ` -- ` is for the first process, so ours goes before it.
    let (kernel, init) = match end_of_kernels(given) {
        Some(at) => (given[..at].trim_end(), Some(&given[at + 3..])),
        None => (given, None),
    };
    let mut line = kernel.to_owned();
    let mut add = |word: &str| {
        if !line.is_empty() {
            line.push(' ');
        }
        line.push_str(word);
    };
    if let Some((partuuid, read_only)) = root {
        add(&partuuid.map_or("root=/dev/vda".to_owned(), |uuid| format!("root=PARTUUID={uuid}")));
        add(if read_only { "ro" } else { "rw" });
    }
    let told_already = kernel.split(' ').any(|word| word.starts_with("tsc_early_khz="));
    if let Accelerator::Tcg { tsc_khz: Some(khz) } = accelerator
        && !told_already
    {
        add(&format!("tsc_early_khz={khz}"));
    }
    if let Some(init) = init {
        add("--");
        add(init.trim_start());
    }
    if line.len() > MAX_BOOT_ARGS {
        return Err(Fault::new("Boot source error: The kernel command line is invalid: too long with what is added."));
    }
    Ok(line)
}

/// Where ` --` begins that stands alone outside double quotes: the kernel stops reading there.
fn end_of_kernels(line: &str) -> Option<usize> {
    let mut quoted = false;
    line.bytes().enumerate().find_map(|(at, byte)| {
        quoted ^= byte == b'"';
        (!quoted && line[at..].starts_with(" -- ")).then_some(at)
    })
}

/// QEMU's arguments, without the program's name.
pub(crate) fn arguments(machine: &Machine<'_>) -> Vec<String> {
    let mut args = Vec::new();
    let mut add = |words: &[&str]| args.extend(words.iter().map(|word| (*word).to_owned()));
    let mib = machine.memory_mib;
    add(&["-nodefaults", "-no-user-config", "-display", "none", "-no-reboot", "-S"]);
    add(&["-sandbox", "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny"]);
    // The RAM can be given out as a file from the first instruction on: a VM that runs can be saved.
    add(&["-object", &format!("memory-backend-memfd,id=ram,size={mib}M,share=on")]);
    add(&["-M", "microvm,acpi=on,pit=off,pic=off,rtc=on,isa-serial=on,memory-backend=ram"]);
    match machine.accelerator {
        Accelerator::Kvm => add(&["-accel", "kvm", "-cpu", "host"]),
        Accelerator::Tcg { .. } => add(&["-accel", "tcg,thread=multi", "-cpu", "max"]),
    }
    let vcpus = machine.vcpus;
    let threads = if machine.smt && vcpus > 1 { 2 } else { 1 };
    add(&["-smp", &format!("{vcpus},sockets=1,cores={},threads={threads}", vcpus / threads)]);
    add(&["-m", &format!("{mib}M")]);
    add(&["-kernel", &format!("/proc/self/fd/{}", machine.kernel)]);
    if let Some(initrd) = machine.initrd {
        add(&["-initrd", &format!("/proc/self/fd/{initrd}")]);
    }
    add(&["-append", machine.command_line]);
    // Firecracker has this keyboard controller too: `reboot=k` and Ctrl-Alt-Del are told by it.
    add(&["-device", "i8042"]);
    add(&["-chardev", "stdio,id=console,signal=off", "-serial", "chardev:console"]);
    add(&["-chardev", &format!("socket,id=qmp,fd={}", machine.qmp), "-mon", "chardev=qmp,mode=control"]);
    for (n, disk) in machine.disks.iter().enumerate() {
        add(&["-add-fd", &format!("fd={},set={n}", disk.fd)]);
        add(&["-blockdev", &blockdev(n, disk)]);
        // A write that fails is the guest's to know, as in Firecracker; QEMU would stop the VM on a full disk.
        add(&["-device", &format!("virtio-blk-device,drive=disk{n},werror=report,rerror=report")]);
    }
    for (n, nic) in machine.nics.iter().enumerate() {
        add(&["-netdev", &format!("tap,id=net{n},fd={},vhost=off", nic.fd)]);
        let mtu = nic.mtu.map_or(String::new(), |mtu| format!(",host_mtu={mtu}"));
        add(&["-device", &format!("virtio-net-device,netdev=net{n},mac={}{mtu}", nic.mac)]);
    }
    if let Some(relay) = machine.relay {
        add(&["-device", "virtio-serial-device,max_ports=4"]);
        add(&["-chardev", &format!("socket,id=relay,fd={relay}")]);
        add(&["-device", "virtserialport,id=agent,chardev=relay,name=banger.agent,nr=1"]);
    }
    args
}

fn blockdev(n: usize, disk: &DiskArgs) -> String {
    let driver = match disk.backing {
        Backing::File => "file",
        Backing::BlockDevice => "host_device",
    };
    let no_flush = disk.cache == CacheType::Unsafe;
    serde_json::json!({
        // Never guessed: a guest that writes another format's header into its raw disk changes nothing.
        "driver": "raw",
        "node-name": format!("disk{n}"),
        "read-only": disk.read_only,
        "cache": {"no-flush": no_flush},
        "file": {
            "driver": driver,
            "filename": format!("/dev/fdset/{n}"),
            "read-only": disk.read_only,
            "cache": {"no-flush": no_flush},
        },
    })
    .to_string()
}

#[cfg(test)]
#[path = "machine_tests.rs"]
mod tests;
