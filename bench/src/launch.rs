//! What the helper adds to the start of a VM: against the same VMM started by hand with the same file, and in a jail
//! against jailers started by hand over a root made by hand. From the request, or the first act by hand, until the VM
//! runs; the guest is a kernel that halts.

use crate::by_hand::{Bare, InJail};
use crate::nat::{Caller, caller};
use crate::stats::{Times, compare, head};
use crate::world::{Helper, OWNER, beside, run};
use anyhow::{Context, Result, ensure};
use std::fs;
use std::os::unix::fs::{PermissionsExt, chown};
use std::time::{Duration, Instant};
use wire::code::Code;
use wire::image::Image;
use wire::name::addr::BridgeAddr;
use wire::name::link::{BridgeName, TapName};
use wire::name::vm_id::{DriveId, VmId};
use wire::net::{Bridge, NewTap};
use wire::path::{HostPath, ProgramPath, Root, Roots};
use wire::units::Mebibytes;
use wire::vm::{Boot, Drive, Jailer, Launch, Start};

/// Where the VMM and the jailers are: root alone writes there. The jail is called after the VMM's own name.
pub(crate) const VMM: &str = "/run/bin/banger-qemu";
const JAILER: &str = "/run/bin/banger-jailer";
const THEIRS: &str = "/run/bin/jailer";
/// Names Firecracker's own jailer.
const JAILER_VARIABLE: &str = "BANGER_TEST_JAILER";

pub(crate) const KERNEL: &str = "/var/lib/banger/vmlinux";
pub(crate) const DRIVE: &str = "/var/lib/banger/vms/root.ext4";
pub(crate) const LOG: &str = "/var/lib/banger/vmm.log";
pub(crate) const METRICS: &str = "/var/lib/banger/metrics";
pub(crate) const TAP: &str = "tap-fc-1";
pub(crate) const MIB: u64 = 64;
pub(crate) const ARGS: &str = "quiet";

/// Longer than anything takes here.
pub(crate) const PATIENCE: Duration = Duration::from_secs(30);

/// Launches one after the other, of which the first and the last ones are compared.
const MANY: usize = 100;
const SOME: usize = 10;
/// Launches of each way in a round.
const EACH: usize = 10;

/// Measures all of it.
pub(crate) fn measure(rounds: usize) -> Result<()> {
    set_up()?;
    let _helper = Helper::start(None)?;
    let client = caller();
    let bridge = Bridge { name: BridgeName::new("br-fc")?, addr: BridgeAddr::new("172.16.0.1", "24")? };
    client.create_tap(&NewTap { bridge, tap: TapName::new(TAP)? })?;
    let (plain, jailed) = (request(false)?, request(true)?);

    head("A VM's start, until it runs");
    let (mut ours, mut bare) = (Times::default(), Times::default());
    let (mut in_jail, mut by_hand, mut theirs) = (Times::default(), Times::default(), Times::default());
    let their_jailer = std::env::var_os(JAILER_VARIABLE).is_some();
    // The first of each finds cold caches.
    launch(&client, &plain, &mut Times::default())?;
    launch(&client, &jailed, &mut Times::default())?;
    for turn in 0..rounds * EACH {
        // Back and forth: whoever follows another finds what the kernel still clears away of him.
        let mut ways: [&mut dyn FnMut() -> Result<()>; 5] = [
            &mut || launch(&client, &plain, &mut ours),
            &mut || bare.take(Bare::start)?.end(),
            &mut || launch(&client, &jailed, &mut in_jail),
            &mut || by_hand.take(|| InJail::start(JAILER))?.end(),
            &mut || if their_jailer { theirs.take(|| InJail::start(THEIRS))?.end() } else { Ok(()) },
        ];
        if turn % 2 == 1 {
            ways.reverse();
        }
        ways.iter_mut().try_for_each(|way| way())?;
    }
    compare("launch_firecracker", &ours, &bare, "the same VMM by hand, same file");
    compare("launch_firecracker in a jail", &in_jail, &by_hand, "root and banger-jailer by hand");
    if their_jailer {
        compare("launch_firecracker in a jail", &in_jail, &theirs, "root and Firecracker's jailer by hand");
    }
    compare("launch_firecracker", &ours, &in_jail, "the same in a jail");

    let (mut first, mut last) = (Times::default(), Times::default());
    for nth in 0..MANY {
        let times = match nth {
            ..SOME => &mut first,
            _ if nth >= MANY - SOME => &mut last,
            _ => &mut Times::default(),
        };
        launch(&client, &jailed, times)?;
    }
    compare("in a jail, the 1st to 10th", &first, &last, "the 91st to 100th: so many times slower");
    println!();
    adds("the helper", &ours, &bare);
    adds("with a jail, the helper", &in_jail, &by_hand);
    match their_jailer {
        true => adds("with a jail, against Firecracker's jailer, the helper", &in_jail, &theirs),
        false => println!("not measured: Firecracker's jailer; {JAILER_VARIABLE} names none"),
    }
    run("ip link del br-fc")
}

/// By how much the one takes longer than the other.
fn adds(who: &str, ours: &Times, theirs: &Times) {
    let of = |part: f64| {
        let (ours, theirs) = (ours.at(part).as_secs_f64(), theirs.at(part).as_secs_f64());
        format!("{:+.1} ms, {:+.1} %", (ours - theirs) * 1e3, (ours / theirs - 1.0) * 1e2)
    };
    println!("{who} adds: {} (median), {} (fastest tenth)", of(0.5), of(0.1));
}

/// One launch, and its end, which is not timed.
fn launch(client: &Caller, request: &Launch, times: &mut Times) -> Result<()> {
    let pid = times.take(|| client.launch_firecracker(request))?;
    client.kill_process(pid)?;
    tap_is_free()
}

/// Waits until no VMM has the tap open: QEMU ends a moment after its front-end.
pub(crate) fn tap_is_free() -> Result<()> {
    let begin = Instant::now();
    while fs::read_to_string(format!("/sys/class/net/{TAP}/carrier"))?.trim() != "0" {
        ensure!(begin.elapsed() < PATIENCE, "{TAP} stays in use");
        std::thread::sleep(Duration::from_millis(1));
    }
    Ok(())
}

/// The launch of a VM that halts.
pub(crate) fn request(jailed: bool) -> Result<Launch> {
    let roots = Roots { state: "/var/lib/banger".into(), runtime: "/run/banger".into() };
    let path = |path: &str, root: Root| -> Result<HostPath> {
        Ok(HostPath::new(path, &[root], &roots, Code::InvalidPath, "a path")?)
    };
    let image = Image::new(DRIVE, &roots, Code::InvalidPath, "drives")?;
    let jailer = || -> Result<Jailer> {
        let chroot_base = path("/var/lib/banger/jail", Root::State)?;
        Ok(Jailer { program: ProgramPath::new(JAILER)?, chroot_base, uid: OWNER.into(), gid: OWNER.into() })
    };
    Ok(Launch {
        program: ProgramPath::new(VMM)?,
        vm_id: VmId::new("bench")?,
        socket: path("/run/banger/bench.sock", Root::Runtime)?,
        log: path(LOG, Root::State)?,
        metrics: path(METRICS, Root::State)?,
        start: Start::Boot(Boot { kernel: path(KERNEL, Root::State)?, initrd: None, kernel_args: ARGS.to_owned() }),
        drives: vec![Drive { id: DriveId::new("rootfs")?, image, read_only: false, is_root: true }],
        tap: TapName::new(TAP)?,
        vsock: path("/run/banger/bench.vsock", Root::Runtime)?,
        cid: 3,
        vcpus: 1,
        memory: Mebibytes(MIB),
        jailer: jailed.then(jailer).transpose()?,
    })
}

/// Programs, a kernel, a drive, a tap device that the owner may open.
pub(crate) fn set_up() -> Result<()> {
    programs()?;
    // A jailer names its jail after the program: this is how the helper stages it, too.
    fs::create_dir_all("/run/exec")?;
    fs::copy(VMM, crate::by_hand::PROGRAM)?;
    fs::write(KERNEL, kernel())?;
    fs::write(DRIVE, vec![0; 1 << 20])?;
    for path in [KERNEL, DRIVE] {
        chown(path, Some(OWNER), Some(OWNER))?;
    }
    open_tun()
}

/// The VMM and the jailers, where the helper takes them from.
pub(crate) fn programs() -> Result<()> {
    fs::create_dir_all("/run/bin")?;
    let jailer = std::env::var_os(JAILER_VARIABLE);
    let theirs = jailer.as_ref().map(|path| (path.into(), THEIRS));
    let ours = [(beside("banger-qemu")?, VMM), (beside("banger-jailer")?, JAILER)];
    for (from, to) in ours.into_iter().chain(theirs) {
        fs::copy(&from, to).with_context(|| from.display().to_string())?;
        fs::set_permissions(to, fs::Permissions::from_mode(0o755))?;
    }
    Ok(())
}

/// Has the owner open the tap device; once for all parts.
pub(crate) fn open_tun() -> Result<()> {
    const TUN: &str = "/run/tun";
    if fs::exists(TUN)? {
        return Ok(());
    }
    run(&format!("mknod -m 0666 {TUN} c 10 200"))?;
    run(&format!("mount --bind {TUN} /dev/net/tun"))
}

/// A kernel that a PVH loader takes and that halts: an ELF file of 64 bits with a loaded part and the note
/// XEN_ELFNOTE_PHYS32_ENTRY (18), which says where a 32-bit CPU begins.
fn kernel() -> Vec<u8> {
    const AT: u64 = 0x10_0000;
    const HALT: [u8; 4] = [0xfa, 0xf4, 0xeb, 0xfd];
    const NOTE_AT: u64 = 0x200;
    const IMAGE_AT: u64 = 0x1000;
    let mut file = b"\x7fELF\x02\x01\x01\0\0\0\0\0\0\0\0\0\x02\0\x3e\0\x01\0\0\0".to_vec();
    file.extend([AT, 64, 0].iter().flat_map(|long| long.to_le_bytes()));
    file.extend([0u16, 0, 64, 56, 2, 64, 0, 0].iter().flat_map(|half| half.to_le_bytes()));
    let note: Vec<u8> =
        [&4u32.to_le_bytes()[..], &8u32.to_le_bytes(), &18u32.to_le_bytes(), b"Xen\0", &AT.to_le_bytes()].concat();
    let (note_size, image_size) = (note.len() as u64, HALT.len() as u64);
    for (kind, flags, rest) in [
        (1u32, 7u32, [IMAGE_AT, AT, AT, image_size, image_size, 0x1000]),
        (4, 4, [NOTE_AT, 0, 0, note_size, note_size, 4]),
    ] {
        file.extend([kind, flags].iter().flat_map(|word| word.to_le_bytes()));
        file.extend(rest.iter().flat_map(|long| long.to_le_bytes()));
    }
    file.resize(NOTE_AT as usize, 0);
    file.extend(note);
    file.resize(IMAGE_AT as usize, 0);
    file.extend(HALT);
    file
}
