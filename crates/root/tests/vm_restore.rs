//! VMs that go on from a saved one: over a stand-in VMM what it is given, and what is left where it fails or is cut off;
//! over `banger-qemu` a Debian that is launched, saved, and goes on twice at once.
//!
//! The second kind needs the files of `vm_debian`.

#![allow(clippy::disallowed_methods, reason = "tests look at the machine in every way there is")]

mod common;
#[path = "vm_support/debian.rs"]
mod debian;
#[path = "net/world.rs"]
mod network;
mod vm_support;

use common::*;
use debian::{STATE, *};
use serde_json::{Value, json};
use std::fs;
use std::io::Write as _;
use std::os::unix::fs::{FileExt as _, MetadataExt as _, PermissionsExt as _, chown};
use std::path::Path;
use std::time::{Duration, Instant};
use vm_support::jail::*;
use vm_support::*;

const QEMU: &str = "/mnt/o/bin/banger-qemu";
/// Under its own name: only that one leaves a VMM what it is passed.
const OUR_JAILER: &str = "/mnt/o/bin/banger-jailer";
const OURS: Programs = Programs { vmm: QEMU, jailer: OUR_JAILER };

fn layer(n: u32) -> String {
    format!("/mnt/s/images/{n}.layer")
}

/// VM `n` from the saved one, over a new layer.
fn restored(n: u32, mib: u64) -> Value {
    make_file(&layer(n), b"", OWNER, 0o600);
    let mut asked = going_on(OURS, n, mib, BASE_DISK);
    asked["snapshot"]["layer_path"] = json!(layer(n));
    asked
}

/// What stands for a state.
fn state() -> Vec<u8> {
    [&b"a state"[..], &[0; 1024]].concat()
}

/// A stand-in for `banger-qemu`, and files that stand for a saved VM of 64 MiB.
fn stand_in(machines: u32) {
    jail_ground(machines);
    for (from, to) in [(VMM, QEMU), (JAILER, OUR_JAILER)] {
        make_file(to, &fs::read(from).expect(from), 0, 0o755);
    }
    make_file(STATE, &state(), OWNER, 0o600);
    make_file(BASE_DISK, &[b'b'; 8192], OWNER, 0o644);
    make_file(MEMORY, b"memory", OWNER, 0o600);
    fs::File::options().write(true).open(MEMORY).and_then(|file| file.set_len(64 << 20)).expect("holes");
}

isolated! {
    fn what_a_vm_that_goes_on_is_given() {
        stand_in(2);
        let helper = Helper::start();
        let pid = pid_of(&helper.ok(RESTORE, &restored(1, 64)));
        // The layer's first bytes are in it.
        let said = String::from_utf8_lossy(&fs::read(log(1)).expect("its log")).into_owned();
        for line in [
            "/etc/snapshot/state: 1031 bytes, begins a state, write Read-only file system",
            "/etc/snapshot/layer: 262144 bytes, begins QFI",
            // F_SEAL_SEAL, SHRINK, GROW, WRITE.
            "passed: 67108864 bytes, seals 0xf, write Operation not permitted",
            "pid 1",
            r#""backend_path":"/proc/self/fd/3""#,
            r#""host_dev_name":"tap-fc-1""#,
            r#""snapshot_path":"/etc/snapshot/state""#,
        ] {
            assert!(said.contains(line), "{line}\n{said}");
        }
        assert!(!said.contains("/etc/snapshot/memory: ") && !said.contains("/etc/firecracker.json: "), "{said}");
        let root = format!("{}/root", vm_dir(1));
        assert_eq!(fs::read_to_string(format!("{root}/firecracker.pid")).expect("pid"), pid.to_string());
        // Nobody writes what it goes on from, as long as it runs.
        for (field, value) in [("ID", STATE), ("ID", MEMORY), ("ID", BASE_DISK)] {
            let drives = json!([{"ID": "rootfs", "Path": value, "ReadOnly": false, "IsRoot": true}]);
            let (_, message) = helper.err(LAUNCH, &with(jailed(2), "drives", drives));
            assert!(message.contains("drives: VM \"vm-1\" has it"), "{field} {value}: {message}");
        }
        // A second one shares its memory, by inode.
        let second = pid_of(&helper.ok(RESTORE, &restored(2, 64)));
        let inode = |pid: i32| fs::metadata(format!("/proc/{pid}/fd/3")).expect("passed").ino();
        assert_eq!(inode(pid), inode(second));
        // One whose file has changed since doesn't.
        helper.ok("priv.kill_process", &json!({"pid": second}));
        let before = inode(pid);
        fs::File::options().write(true).open(MEMORY).and_then(|mut file| file.write_all(b"MEM")).expect("written");
        let second = pid_of(&helper.ok(RESTORE, &restored(2, 64)));
        assert_ne!(inode(second), before);
        for pid in [pid, second] {
            helper.ok("priv.kill_process", &json!({"pid": pid}));
        }
        assert_gone(1, "killed");
        assert_gone(2, "killed");
    }
}

isolated! {
    fn a_memory_goes_when_nobody_has_used_it_for_a_while() {
        stand_in(1);
        let helper = Start::new().config("[limits]\nmemory_seconds = 1\nmemory_mebibytes = 1\n").start();
        let held = || {
            let names = fs::read_dir(format!("/proc/{}/fd", helper.pid())).expect("its descriptors").flatten();
            let links = names.filter_map(|name| fs::read_link(name.path()).ok());
            links.filter(|link| link.to_string_lossy().contains("memfd:vm-memory")).count()
        };
        let pid = pid_of(&helper.ok(RESTORE, &restored(1, 64)));
        assert_eq!(held(), 1);
        helper.ok("priv.kill_process", &json!({"pid": pid}));
        eventually("nobody uses it", || held() == 0);
        // As much as may be held, and no more.
        fs::write(MEMORY, vec![7; 64 << 20]).expect("written");
        let (_, message) = helper.err(RESTORE, &restored(1, 64));
        assert!(message.contains("limits.memory_mebibytes"), "{message}");
        assert_eq!((held(), fs::metadata(layer(1)).expect("the layer").len()), (0, 0));
        assert_gone(1, "refused");
    }
}

isolated! {
    fn a_memory_counts_as_long_as_anybody_has_it() {
        stand_in(1);
        let helper = Start::new().config("[limits]\nmemories = 1\n").start();
        let pid = pid_of(&helper.ok(RESTORE, &restored(1, 64)));
        // What a VMM was passed is its owner's to pass on, as a descriptor or a mapping.
        let passed_on = fs::File::open(format!("/proc/{pid}/fd/3")).expect("passed");
        helper.ok("priv.kill_process", &json!({"pid": pid}));
        assert_gone(1, "killed");
        fs::File::options().write(true).open(MEMORY).and_then(|mut file| file.write_all(b"MEM")).expect("written");
        let (_, message) = helper.err(RESTORE, &restored(1, 64));
        assert!(message.contains("limits.memories"), "{message}");
        assert_gone(1, "refused");
        drop(passed_on);
        let pid = pid_of(&helper.ok(RESTORE, &restored(1, 64)));
        helper.ok("priv.kill_process", &json!({"pid": pid}));
        assert_gone(1, "killed");
    }
}

isolated! {
    fn a_memory_counts_by_its_pages() {
        // Blocks of 1 KiB: a quarter of a page each, and a page of the copy's.
        output("mkfs.ext4", &["-q", "-b", "1024", "-E", "root_owner=0:0", "/mnt/o/small.ext4", "96m"]);
        output("mount", &["-o", "loop", "/mnt/o/small.ext4", "/mnt/s"]);
        for dir in ["", "images", "kernels", "logs"] {
            make_dir(&format!("/mnt/s/{dir}"), OWNER, 0o755);
        }
        stand_in(1);
        let file = fs::File::options().write(true).open(MEMORY).expect("the memory");
        for at in (0..16 << 20).step_by(4096) {
            file.write_all_at(&[1; 1024], at).expect("written");
        }
        file.sync_all().expect("written");
        assert!(file.metadata().expect("its blocks").blocks() * 512 < 5 << 20);
        let helper = Start::new().config("[limits]\nmemory_mebibytes = 8\n").start();
        let (_, message) = helper.err(RESTORE, &restored(1, 64));
        assert!(message.contains("limits.memory_mebibytes"), "{message}");
        assert_gone(1, "refused");
        drop(helper);
        let helper = Start::new().config("[limits]\nmemory_mebibytes = 17\n").start();
        let pid = pid_of(&helper.ok(RESTORE, &restored(1, 64)));
        helper.ok("priv.kill_process", &json!({"pid": pid}));
    }
}

isolated! {
    fn what_can_not_be_gone_on_from_is_refused_and_nothing_is_changed() {
        stand_in(1);
        let helper = Helper::start();
        let mut running = None;
        type Change = fn(&mut Value);
        let cases: [(&str, Change); 14] = [
            ("a restore needs a jail", |asked| asked["jailer"] = Value::Null),
            ("64 MiB", |_| fs::File::options().write(true).open(MEMORY).and_then(|f| f.set_len(63 << 20)).expect("cut")),
            ("chmod go-w", |_| fs::set_permissions(STATE, fs::Permissions::from_mode(0o620)).expect("mode")),
            ("chmod go-w", |_| fs::set_permissions(BASE_DISK, fs::Permissions::from_mode(0o646)).expect("mode")),
            ("must be the owner's", |_| {
                chown(MEMORY, Some(OTHER), None).expect("owner");
                fs::set_permissions(MEMORY, fs::Permissions::from_mode(0o644)).expect("mode");
            }),
            ("is empty", |_| fs::write(STATE, "").expect("emptied")),
            ("is not empty", |asked| fs::write(asked["snapshot"]["layer_path"].as_str().expect("a path"), "x").expect("x")),
            ("does not exist", |asked| asked["snapshot"]["layer_path"] = json!("/mnt/s/images/none")),
            ("does not exist", |asked| asked["snapshot"]["mem_path"] = json!("/mnt/s/images/none")),
            ("outside", |asked| asked["snapshot"]["state_path"] = json!("/mnt/o/state")),
            ("state_path and mem_path are the same", |asked| asked["snapshot"]["mem_path"] = json!(STATE)),
            ("symlink", |asked| {
                std::os::unix::fs::symlink(STATE, "/mnt/s/images/link").expect("a link");
                asked["snapshot"]["state_path"] = json!("/mnt/s/images/link");
            }),
            ("Firecracker knows no layers", |asked| asked["binary_path"] = json!(VMM)),
            ("can't be written, so it needs none", |asked| asked["drives"][0]["ReadOnly"] = json!(true)),
        ];
        for (told, change) in cases {
            make_file(STATE, &state(), OWNER, 0o600);
            make_file(BASE_DISK, &[b'b'; 8192], OWNER, 0o644);
            make_file(MEMORY, b"memory", OWNER, 0o600);
            fs::File::options().write(true).open(MEMORY).and_then(|file| file.set_len(64 << 20)).expect("holes");
            let mut asked = restored(1, 64);
            change(&mut asked);
            let (code, message) = helper.err(RESTORE, &asked);
            assert!(code == "operation_failed" && message.contains(told), "{told}: {code} {message}");
            assert_gone(1, told);
            if told != "is not empty" {
                assert_eq!(fs::metadata(layer(1)).expect("the layer").len(), 0, "{told}");
            }
        }
        // A VM that writes its disk is in the way.
        let drives = json!([{"ID": "rootfs", "Path": BASE_DISK, "ReadOnly": false, "IsRoot": true}]);
        ground(2);
        running.replace(pid_of(&helper.ok(LAUNCH, &with(jailed(2), "drives", drives))));
        let (_, message) = helper.err(RESTORE, &restored(1, 64));
        assert!(message.contains("drives: VM \"vm-2\" has it"), "{message}");
    }
}

/// The steps of a restore, in their order.
const STEPS: [&str; 18] = [
    "log",
    "socket_room",
    "vsock_room",
    "intent",
    "jail",
    "links",
    "control_group",
    "layer",
    "memory",
    "stage",
    "fork",
    "record",
    "port",
    "start",
    "load",
    "answer",
    "nodes",
    "access",
];

isolated! {
    fn a_restore_that_fails_or_is_cut_off_at_any_step_leaves_nothing() {
        stand_in(1);
        for step in STEPS.iter().chain(&["commit"]) {
            let helper = Start::new().config(&format!("fault = \"restore_firecracker.{step}:fail\"\n")).start();
            let mounts = machine_mounts();
            let (_, message) = helper.err(RESTORE, &restored(1, 64));
            assert!(message.contains(step), "{message}");
            assert_gone(1, &format!("{step} failed"));
            assert_eq!(machine_mounts(), mounts);
            assert_eq!(fs::metadata(layer(1)).expect("the layer").len(), 0, "{step}");
        }
        for step in STEPS {
            let mut helper = Start::new().config(&format!("fault = \"restore_firecracker.{step}:kill\"\n")).start();
            let mut peer = connect(OWNER);
            let asked = json!({"method": RESTORE, "params": restored(1, 64)}).to_string();
            peer.write_all(asked.as_bytes()).expect("sent");
            assert_eq!(std::os::unix::process::ExitStatusExt::signal(&helper.wait()), Some(9), "{step}");
            drop(helper);
            let helper = Helper::start();
            let gone = || left() == (vec![], vec![], vec![]) && !Path::new(&vm_dir(1)).exists();
            eventually(&format!("{step}: nothing is left"), gone);
            let pid = pid_of(&helper.ok(RESTORE, &restored(1, 64)));
            helper.ok("priv.kill_process", &json!({"pid": pid}));
            assert_gone(1, step);
        }
    }
}

isolated! {
    fn a_vmm_in_a_pid_namespace_of_its_own_where_the_settings_say_so() {
        jail_ground(1);
        make_file(OUR_JAILER, &fs::read(JAILER).expect("the jailer"), 0, 0o755);
        let helper = Start::new().config("vm_pid_namespace = true\n").start();
        let mut asked = jailed(1);
        asked["jailer"]["binary"] = json!(OUR_JAILER);
        let pid = pid_of(&helper.ok(LAUNCH, &with(asked, "kernel_args", json!("fork"))));
        assert!(status(pid, "NSpid").ends_with("\t1"), "{}", status(pid, "NSpid"));
        assert_eq!(fs::read_to_string(format!("{}/root/firecracker.pid", vm_dir(1))).expect("pid"), pid.to_string());
        assert_eq!(helper.ok("priv.find_firecracker_pid", &json!({"api_sock": socket(1)}))["pid"], pid);
        helper.ok("priv.kill_process", &json!({"pid": pid}));
        assert_gone(1, "killed, and what it forked with it");
        vmm("good");
        let pid = launch(&helper, 1);
        assert!(status(pid, "NSpid").ends_with("\t1"), "without a jail");
        helper.ok("priv.signal_process", &json!({"pid": pid, "signal": "KILL"}));
        eventually("nothing is left", || left() == (vec![], vec![], vec![]));
    }
}

isolated! {
    fn two_go_on_at_once_from_a_debian_that_was_saved() {
        for (name, to) in [("banger-qemu", QEMU), ("banger-jailer", OUR_JAILER)] {
            put(&built(name), to);
        }
        let helper = save(OURS, 256);
        let before = output("sha256sum", &[STATE, MEMORY, BASE_DISK]);
        let pids: Vec<i32> = std::thread::scope(|scope| {
            let go_on = |n: u32| {
                let (helper, asked) = (&helper, restored(n, 256));
                scope.spawn(move || {
                    let begin = Instant::now();
                    let pid = pid_of(&helper.ok(RESTORE, &asked));
                    println!("figure: restored after {:?}", begin.elapsed());
                    pid
                })
            };
            let all = [2, 3].map(go_on);
            all.into_iter().map(|one| one.join().expect("restored")).collect()
        });
        for n in [2, 3] {
            let begin = Instant::now();
            start(n);
            println!("figure: fork {n} has its name after {:?}", begin.elapsed());
            let script = format!("hostname; echo {n} >/kept; sync; cat /kept /dev/shm/of_before");
            assert_eq!(sh(n, &script), format!("fork-{n}\n{n}\n41\n"));
            output("ping", &["-q", "-c", "2", "-i", "0.2", "-W", "10", &format!("172.16.0.{n}")]);
        }
        assert_eq!(sh(2, "cat /kept"), "2\n", "the other one's disk is another");
        // One memory, that each maps for itself.
        let maps: Vec<String> = pids.iter().map(|&pid| map_of_memory(pid)).collect();
        let inode = |map: &String| map.split_whitespace().nth(4).map(str::to_owned);
        assert_eq!(inode(&maps[0]), inode(&maps[1]));
        assert!(maps.iter().all(|map| map.contains(" rw-p ")), "{maps:?}");
        for (n, pid) in [2, 3].into_iter().zip(pids) {
            helper.ok("priv.signal_process", &json!({"pid": pid, "signal": "TERM"}));
            eventually_within(PATIENCE, "it has ended", || !running(&helper, pid, &socket(n)));
            assert_layer(n);
        }
        eventually("nothing of them is left", || is_gone(2) && is_gone(3));
        assert_eq!(output("sha256sum", &[STATE, MEMORY, BASE_DISK]), before, "what they went on from");

        // What doesn't belong together is refused, in a moment, with the VMM's own reason.
        let memory = fs::read(MEMORY).expect("the memory");
        let state = fs::read(STATE).expect("the state");
        for (path, bytes, told) in [
            (STATE, &state[..state.len() / 2], "snapshot"),
            (STATE, &b"garbage"[..], "snapshot"),
        ] {
            make_file(path, bytes, OWNER, 0o600);
            let begin = Instant::now();
            let (_, message) = helper.err(RESTORE, &restored(2, 256));
            assert!(message.contains("it loads no such state: ") && message.contains(told), "{message}");
            assert!(begin.elapsed() < Duration::from_secs(20), "{:?}", begin.elapsed());
            assert!(is_gone(2), "{}", log_text());
            assert_eq!(fs::metadata(layer(2)).expect("the layer").len(), 0);
        }
        make_file(STATE, &state, OWNER, 0o600);
        make_file(MEMORY, &memory[..memory.len() / 2], OWNER, 0o600);
        let (_, message) = helper.err(RESTORE, &restored(2, 256));
        assert!(message.contains("memory_mib says 256 MiB"), "{message}");
        assert!(is_gone(2), "{}", log_text());
    }
}

/// The line of the map of the memory in the QEMU of a VMM.
fn map_of_memory(vmm: i32) -> String {
    let children = fs::read_to_string(format!("/proc/{vmm}/task/{vmm}/children")).expect("its children");
    let qemu = children.split_whitespace().next().expect("QEMU");
    let maps = fs::read_to_string(format!("/proc/{qemu}/maps")).expect("its maps");
    maps.lines().find(|line| line.contains("memfd:vm-memory")).expect("the memory").to_owned()
}

/// A layer is whole, and what the guest wrote is there over its base, by QEMU's own tool and e2fsprogs.
fn assert_layer(n: u32) {
    let layer = layer(n);
    output("qemu-img", &["check", "-q", &layer]);
    let raw = format!("/mnt/s/images/{n}.raw");
    let from = format!("driver=qcow2,file.filename={layer},backing.driver=raw,backing.file.filename={BASE_DISK}");
    output("qemu-img", &["convert", "-q", "--image-opts", &from, "-O", "raw", &raw]);
    assert_wrote(&raw, &format!("{n}\n"));
    fs::remove_file(raw).expect("removed");
}
