//! Debian's kernel, an initrd with banger's agent and an ext4 root, launched on a bridge and a tap of the helper's, up to
//! programs in the guest that answer over vsock and over the network.
//!
//! `BANGER_TEST_KERNEL`, `BANGER_TEST_INITRD` and `BANGER_TEST_ROOT` name the files, as the test script makes them;
//! without them these tests say so and fail. Here the VMM is `banger-qemu`, the jailer this project's, or the one that
//! `BANGER_TEST_JAILER` names. In the lab the same is done with Firecracker itself and either jailer, where
//! `BANGER_TEST_FIRECRACKER` and `BANGER_TEST_JAILER` name them; where not, `lab/test` says which did not run.

#![allow(clippy::disallowed_methods, reason = "the bans are the helper's; a test sets its world up by paths")]

mod common;
#[path = "disk/world.rs"]
mod disk;
#[path = "net/world.rs"]
mod network;
mod vm_support;

use common::{Helper, OWNER, eventually_within, make_dir, make_file, output};
use disk::{BASE as ROOT, CLEANUP, OnDisk};
use serde_json::{Value, json};
use std::fs;
use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::os::unix::fs::chown;
use std::path::PathBuf;
use std::time::Instant;
use vm_support::guest::{PATIENCE, assert_wrote, sh};
use vm_support::jail::{BASE, JAILER, REAL_JAILER, vm_dir};
use vm_support::{LAUNCH, pid_of, request, socket, with};

/// Firecracker itself, where there is one.
const FIRECRACKER: &str = "BANGER_TEST_FIRECRACKER";
const GUEST: &str = "172.16.0.2";
/// Where a program in the guest listens.
const PORT: u16 = 7000;

#[derive(Clone, Copy)]
enum Vmm {
    Qemu,
    Firecracker,
}

#[derive(Clone, Copy)]
enum Jail {
    None,
    Ours,
    Firecrackers,
}

impl Jail {
    /// The one that these tests are asked for.
    fn asked() -> Jail {
        if std::env::var_os(REAL_JAILER).is_some() { Jail::Firecrackers } else { Jail::Ours }
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Drive {
    File,
    Snapshot,
}

isolated! {
    fn a_debian_vm_answers() {
        answers("debian", Vmm::Qemu, Jail::None, Drive::File);
    }
}

isolated! {
    fn a_debian_vm_answers_from_a_jail() {
        answers("debian-jail", Vmm::Qemu, Jail::asked(), Drive::File);
    }
}

mod lab {
    mod nested {
        mod firecracker {
            use crate::{Drive, Jail, Vmm, answers, isolated};

            isolated! {
                fn a_debian_vm_answers() {
                    answers("debian", Vmm::Firecracker, Jail::None, Drive::File);
                }
            }

            isolated! {
                fn a_debian_vm_answers_from_a_jail() {
                    answers("debian-jail", Vmm::Firecracker, Jail::Ours, Drive::File);
                }
            }

            isolated! {
                fn a_debian_vm_answers_from_firecrackers_jail() {
                    answers("debian-jail", Vmm::Firecracker, Jail::Firecrackers, Drive::File);
                }
            }

            isolated! {
                fn a_debian_vm_answers_from_a_snapshot() {
                    answers("debian-snapshot", Vmm::Firecracker, Jail::None, Drive::Snapshot);
                }
            }

            isolated! {
                fn a_debian_vm_answers_from_a_snapshot_in_a_jail() {
                    answers("debian-snapshot", Vmm::Firecracker, Jail::Ours, Drive::Snapshot);
                }
            }

            isolated! {
                fn a_debian_vm_answers_from_a_snapshot_in_firecrackers_jail() {
                    answers("debian-snapshot", Vmm::Firecracker, Jail::Firecrackers, Drive::Snapshot);
                }
            }
        }
    }
}

/// Whether this kernel has huge pages for who asks for them, in files in memory too.
fn gives_huge_pages() -> bool {
    let says_no = |file: &str, word: &str| {
        let path = format!("/sys/kernel/mm/transparent_hugepage/{file}");
        fs::read_to_string(path).map_or(true, |text| text.contains(word))
    };
    !says_no("enabled", "[never]") && !says_no("shmem_enabled", "[deny]")
}

/// Whether a VMM's child, QEMU, has some of a file in memory mapped by huge pages.
fn has_huge_pages(vmm: i32) -> bool {
    let tasks = fs::read_dir(format!("/proc/{vmm}/task")).expect("tasks").flatten();
    let children = tasks.filter_map(|task| fs::read_to_string(task.path().join("children")).ok()).collect::<String>();
    children.split_whitespace().any(|child| {
        let maps = fs::read_to_string(format!("/proc/{child}/smaps")).expect("the child's memory");
        let sizes = maps.lines().filter_map(|line| line.strip_prefix("ShmemPmdMapped:"));
        sizes.filter_map(|size| size.trim().strip_suffix(" kB")?.parse::<u64>().ok()).any(|kib| kib > 0)
    })
}

/// A guest is launched, answers, writes to its root, and ends; its root has what it wrote, and nothing else is left.
fn answers(name: &str, vmm: Vmm, jail: Jail, drive: Drive) {
    let _state = OnDisk::state(name);
    let program = ground(vmm, jail);
    let helper = Helper::start();
    helper.ok("priv.ensure_bridge", &network::bridge("br-fc", "172.16.0.1"));
    helper.ok("priv.create_tap", &network::tap("tap-fc-1"));
    helper.ok("priv.ensure_nat", &network::nat(GUEST, "tap-fc-1", true));
    let snapshot = (drive == Drive::Snapshot).then(|| disk::make(&helper, "v", 64 << 20));
    let root = if snapshot.is_some() { disk::node("v") } else { ROOT.to_owned() };
    let base = fs::metadata(ROOT).and_then(|facts| facts.modified()).expect(ROOT);

    let before = vm_support::left();
    let begin = Instant::now();
    let pid = pid_of(&helper.ok(LAUNCH, &asked(&program, jail, &root)));
    let launched = begin.elapsed();
    assert_eq!(sh(1, "echo up"), "up\n");
    println!("figure: {name}: launched after {launched:?}, a program answered after {:?}", begin.elapsed());
    if !matches!((vmm, jail), (_, Jail::None) | (Vmm::Firecracker, _)) && gives_huge_pages() {
        assert!(has_huge_pages(pid), "the guest's memory is of small pages");
    }
    over_the_network();
    assert_eq!(sh(1, "cat /proc/mounts | grep -c ' / ext4 rw'; echo kept >/kept; sync; nproc"), "1\n1\n");

    helper.ok("priv.signal_process", &json!({"pid": pid, "signal": "TERM"}));
    eventually_within(PATIENCE, "it has ended", || !vm_support::running(&helper, pid, &socket(1)));
    common::eventually("nothing of it is left", || vm_support::left() == before && !common::exists(&vm_dir(1)));
    assert_wrote(&root, "kept\n");
    if let Some(handles) = snapshot {
        helper.ok(CLEANUP, &handles);
        disk::nothing_is_left();
        // Not by its sum: that takes a minute under emulation.
        assert_eq!(fs::metadata(ROOT).and_then(|facts| facts.modified()).expect(ROOT), base, "the base was written");
        assert_eq!(output("debugfs", &["-R", "cat /kept", ROOT]), "");
    }
}

/// Programs where root alone writes them, the guest's files where the owner does, an uplink. Gives the VMM's path.
fn ground(vmm: Vmm, jail: Jail) -> String {
    let beside = |name: &str| PathBuf::from(env!("CARGO_BIN_EXE_bangerd-root")).with_file_name(name);
    let (name, from) = match vmm {
        Vmm::Qemu => ("banger-qemu", beside("banger-qemu")),
        Vmm::Firecracker => ("firecracker", named(FIRECRACKER)),
    };
    let jailer = match jail {
        Jail::None => None,
        Jail::Ours => Some(beside("banger-jailer")),
        Jail::Firecrackers => Some(named(REAL_JAILER)),
    };
    let program = format!("/mnt/o/bin/{name}");
    make_dir("/mnt/o/bin", 0, 0o755);
    make_dir(BASE, OWNER, 0o755);
    for (from, to) in [(from, program.as_str())].into_iter().chain(jailer.map(|from| (from, JAILER))) {
        let bytes = fs::read(&from).unwrap_or_else(|error| panic!("{from:?}: {error}: cargo build --workspace"));
        make_file(to, &bytes, 0, 0o755);
    }
    for (variable, to) in [
        ("BANGER_TEST_KERNEL", "/mnt/s/kernels/vmlinux"),
        ("BANGER_TEST_INITRD", "/mnt/s/kernels/initrd"),
        ("BANGER_TEST_ROOT", ROOT),
    ] {
        let from = named(variable);
        output("cp", &["--reflink=auto", "--sparse=always", from.to_str().expect("text"), to]);
        chown(to, Some(OWNER), Some(OWNER)).expect(to);
    }
    // Where no udev has opened the tap device to all users, a VMM without a jail can't open its own tap.
    output("mknod", &["-m", "0666", "/mnt/tun", "c", "10", "200"]);
    output("mount", &["--bind", "/mnt/tun", "/dev/net/tun"]);
    network::uplink();
    program
}

fn named(variable: &str) -> PathBuf {
    std::env::var_os(variable).unwrap_or_else(|| panic!("{variable} names a file for this test")).into()
}

fn asked(program: &str, jail: Jail, root: &str) -> Value {
    let arguments = format!(
        "console=ttyS0 reboot=k panic=-1 loglevel=1 cryptomgr.notests random.trust_cpu=on \
         ip={GUEST}::172.16.0.1:255.255.255.0:test:eth0:off"
    );
    let drives = json!([{"ID": "rootfs", "Path": root, "ReadOnly": false, "IsRoot": true}]);
    let mut asked = with(with(request(1), "kernel_args", json!(arguments)), "drives", drives);
    asked["binary_path"] = json!(program);
    asked["initrd_path"] = json!("/mnt/s/kernels/initrd");
    asked["vcpu_count"] = json!(1);
    asked["memory_mib"] = json!(256);
    if !matches!(jail, Jail::None) {
        asked["jailer"] = json!({"binary": JAILER, "chroot_base_dir": BASE, "uid": OWNER, "gid": OWNER});
    }
    asked
}

/// The guest answers a ping, and a program in it whoever connects to it, from the bridge's side.
fn over_the_network() {
    output("ping", &["-q", "-c", "2", "-i", "0.2", "-W", "10", GUEST]);
    let program = format!(
        "use IO::Socket::INET; my $l = IO::Socket::INET->new(LocalPort => {PORT}, Listen => 1) or die; \
         while (my $c = $l->accept) {{ my $said = <$c>; print $c \"the guest heard $said\"; close $c }}"
    );
    assert_eq!(sh(1, &format!("perl -e '{program}' </dev/null >/dev/null 2>&1 & echo begun")), "begun\n");
    let mut answer = String::new();
    eventually_within(PATIENCE, "the guest's program listens", || {
        answer.clear();
        TcpStream::connect((GUEST, PORT))
            .and_then(|mut stream| {
                stream.set_read_timeout(Some(PATIENCE))?;
                stream.write_all(b"hello\n")?;
                stream.read_to_string(&mut answer)
            })
            .is_ok()
    });
    assert_eq!(answer, "the guest heard hello\n");
}
