//! QEMU's argument vector, as a pure function of what was gathered: no file is opened, no clock is read.
//!
//! No text of a client stands in an argument that QEMU takes apart, but for ids and MAC addresses of checked alphabets;
//! files are descriptors, and the kernel's command line is an argument of its own, which QEMU passes on whole.

use std::os::fd::RawFd;

use wire::firecracker::{Balloon, BootArgs, CacheType, Entropy, MAX_BOOT_ARGS, MacAddr, TokenBucket};

use crate::config::Backing;
use crate::fault::Fault;

/// Firecracker's own arguments for the kernel where the client gives none.
const DEFAULT_BOOT_ARGS: &str = "reboot=k panic=1 nomodule 8250.nr_uarts=0 i8042.noaux i8042.nomux i8042.dumbkbd \
                                 swiotlb=noforce";

/// Who executes the guest's instructions.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Accelerator {
    /// The CPU, whose counter has this rate.
    Kvm { tsc_khz: Option<u64> },
    /// QEMU's emulation; the guest reads the host's counter, so its kernel is told the rate.
    Tcg { tsc_khz: Option<u64> },
}

/// QEMU's number of the first file below a layer: behind those of all drives, before those of changed ones.
const FIRST_BASE_SET: usize = 100;

/// How the guest begins.
#[derive(Debug)]
pub(crate) enum Begin<'a> {
    /// With a kernel, whose path is an argument of its own.
    Boot { kernel: String, initrd: Option<String>, command_line: &'a str },
    /// With a saved state, which is given later; its memory is there.
    Load,
}

/// All that the arguments depend on.
#[derive(Debug)]
pub(crate) struct Machine<'a> {
    pub(crate) accelerator: Accelerator,
    pub(crate) vcpus: u8,
    pub(crate) smt: bool,
    pub(crate) memory_mib: u64,
    /// A path of ours, without anything of a client's.
    pub(crate) memory: String,
    /// Whether others have the same memory, so that it must stay as it is.
    pub(crate) template: bool,
    pub(crate) begin: Begin<'a>,
    pub(crate) disks: Vec<DiskArgs>,
    pub(crate) nics: Vec<NicArgs<'a>>,
    pub(crate) balloon: Option<Balloon>,
    pub(crate) entropy: Option<Entropy>,
    /// Where the console goes; else to standard output.
    pub(crate) console: Option<RawFd>,
    pub(crate) qmp: RawFd,
    pub(crate) relay: Option<RawFd>,
}

#[derive(Debug, Clone, Copy)]
pub(crate) struct DiskArgs {
    pub(crate) fd: RawFd,
    /// The qcow2 file over it.
    pub(crate) layer: Option<RawFd>,
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
    let is_told = |what| kernel.split(' ').any(|word| word.starts_with(what));
    if let Accelerator::Tcg { tsc_khz: Some(khz) } = accelerator {
        if !is_told("tsc_early_khz=") {
            add(&format!("tsc_early_khz={khz}"));
        }
        // The kernel would check the counter against its ticks, which a busy machine loses, and keep the ticks.
        if !is_told("tsc=") {
            add("tsc=reliable");
        }
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

/// Whether the client asks for emulation where KVM runs guests too: by a word of the kernel's arguments, since Firecracker's
/// API has none for it. The kernel makes nothing of it.
pub(crate) fn is_to_be_emulated(args: Option<&BootArgs>) -> bool {
    let given = args.map_or("", BootArgs::as_str);
    let kernels = end_of_kernels(given).map_or(given, |at| &given[..at]);
    kernels.split(' ').any(|word| word == "banger.accel=emulation")
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
    // The memory is a file of ours from the first instruction on, so that a VM that runs can be saved.
    let share = if machine.template { "off" } else { "on" };
    let path = &machine.memory;
    // Huge pages, which QEMU asks for, need a place that begins with one.
    add(&["-object", &format!("memory-backend-file,id=ram,size={mib}M,mem-path={path},share={share},align=2M")]);
    add(&["-M", "microvm,acpi=on,pit=off,pic=off,rtc=on,isa-serial=on,memory-backend=ram"]);
    match machine.accelerator {
        Accelerator::Kvm { .. } => add(&["-accel", "kvm", "-cpu", "host"]),
        Accelerator::Tcg { .. } => add(&["-accel", "tcg,thread=multi", "-cpu", "max"]),
    }
    let vcpus = machine.vcpus;
    let threads = if machine.smt && vcpus > 1 { 2 } else { 1 };
    add(&["-smp", &format!("{vcpus},sockets=1,cores={},threads={threads}", vcpus / threads)]);
    add(&["-m", &format!("{mib}M")]);
    match &machine.begin {
        Begin::Boot { kernel, initrd, command_line } => {
            add(&["-kernel", kernel]);
            if let Some(initrd) = initrd {
                add(&["-initrd", initrd]);
            }
            add(&["-append", command_line]);
        }
        // It would announce an address that is the command line's and not the guest's.
        Begin::Load => add(&["-incoming", "defer", "-global", "migration.announce-rounds=0"]),
    }
    // Firecracker has this keyboard controller too: `reboot=k` and Ctrl-Alt-Del are told by it.
    add(&["-device", "i8042"]);
    match machine.console {
        Some(console) => add(&["-chardev", &format!("socket,id=console,fd={console}")]),
        None => add(&["-chardev", "stdio,id=console,signal=off"]),
    }
    add(&["-serial", "chardev:console"]);
    add(&["-chardev", &format!("socket,id=qmp,fd={}", machine.qmp), "-mon", "chardev=qmp,mode=control"]);
    for (n, disk) in machine.disks.iter().enumerate() {
        match disk.layer {
            None => add(&["-add-fd", &format!("fd={},set={n}", disk.fd)]),
            Some(layer) => {
                add(&["-add-fd", &format!("fd={layer},set={n}")]);
                add(&["-add-fd", &format!("fd={},set={}", disk.fd, FIRST_BASE_SET + n)]);
            }
        }
        add(&["-blockdev", &blockdev(n, disk)]);
        // A write that fails is the guest's to know, as in Firecracker; QEMU would stop the VM on a full disk.
        add(&["-device", &format!("virtio-blk-device,id=drive{n},drive=disk{n},werror=report,rerror=report")]);
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
    if let Some(balloon) = &machine.balloon {
        let on = |value| if value { "on" } else { "off" };
        let (deflate, report) = (on(balloon.deflate_on_oom), on(balloon.free_page_reporting));
        let options = format!("deflate-on-oom={deflate},free-page-reporting={report}");
        add(&["-device", &format!("virtio-balloon-device,id=balloon,{options}")]);
    }
    if let Some(entropy) = &machine.entropy {
        add(&["-object", "rng-builtin,id=rng"]);
        let limit = entropy.rate_limiter.and_then(|limiter| limiter.bandwidth).filter(TokenBucket::limits);
        let limit =
            limit.map_or(String::new(), |limit| format!(",max-bytes={},period={}", limit.size, limit.refill_time));
        add(&["-device", &format!("virtio-rng-device,rng=rng{limit}")]);
    }
    args
}

fn blockdev(n: usize, disk: &DiskArgs) -> String {
    let file = file_node(&format!("disk{n}_0"), n, disk);
    if disk.layer.is_none() {
        return raw_node(n, disk, file).to_string();
    }
    let base = DiskArgs { read_only: true, ..*disk };
    let layer = DiskArgs { backing: Backing::File, ..*disk };
    layered_node(n, &layer, &file_node(&format!("base{n}_0"), FIRST_BASE_SET + n, &base)).to_string()
}

/// A drive's node with a layer. What is below is told here, formats and all: a name or a format in the layer's own header
/// counts for nothing, and nothing is guessed.
fn layered_node(n: usize, layer: &DiskArgs, base: &serde_json::Value) -> serde_json::Value {
    let cache = serde_json::json!({"no-flush": layer.cache == CacheType::Unsafe});
    serde_json::json!({
        "driver": "qcow2",
        "node-name": format!("disk{n}"),
        "read-only": false,
        "cache": cache,
        "file": file_node(&format!("disk{n}_0"), n, layer),
        "backing": {"driver": "raw", "node-name": format!("base{n}"), "read-only": true, "cache": cache, "file": base},
    })
}

/// A drive's node with what is behind it: a node's name, or a node. Never guessed to be another format than raw: a guest
/// that writes another one's header into its disk changes nothing.
pub(crate) fn raw_node(n: usize, disk: &DiskArgs, file: serde_json::Value) -> serde_json::Value {
    serde_json::json!({
        "driver": "raw",
        "node-name": format!("disk{n}"),
        "read-only": disk.read_only,
        "cache": {"no-flush": disk.cache == CacheType::Unsafe},
        "file": file,
    })
}

/// The node of the file that is number `set` of QEMU's.
pub(crate) fn file_node(name: &str, set: usize, disk: &DiskArgs) -> serde_json::Value {
    let driver = match disk.backing {
        Backing::File => "file",
        Backing::BlockDevice => "host_device",
    };
    serde_json::json!({
        "driver": driver,
        "node-name": name,
        "filename": format!("/dev/fdset/{set}"),
        "read-only": disk.read_only,
        "cache": {"no-flush": disk.cache == CacheType::Unsafe},
    })
}

#[cfg(test)]
#[path = "machine_tests.rs"]
mod tests;
