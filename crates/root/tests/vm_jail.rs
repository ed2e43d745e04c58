//! VMs in a jail: launched by this project's jailer over a stand-in VMM, looked at from inside by that, and from outside
//! by `/proc`; ended, cut off and cleared away.

#![allow(clippy::disallowed_methods, reason = "tests look at the machine in every way there is")]

mod common;
mod vm_support;

use common::*;
use serde_json::json;
use std::fs;
use std::os::unix::fs::{MetadataExt, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;
use vm_support::jail::*;
use vm_support::*;

/// Groups of VMs of this test's: their names begin with the VM's.
fn groups(pid: i32) -> Vec<PathBuf> {
    let text = fs::read_to_string(format!("/proc/{pid}/cgroup")).expect("its groups");
    let mounts = fs::read_to_string("/proc/self/mountinfo").expect("mounts");
    let at = |controller: &str| {
        let line = mounts.lines().find(|line| match controller {
            "" => line.contains(" - cgroup2 "),
            name => line.contains(" - cgroup ") && line.rsplit(',').any(|option| option == name),
        });
        line.and_then(|line| line.split(' ').nth(4)).map(PathBuf::from)
    };
    let ours = text.lines().filter(|line| line.contains("/banger/vm-"));
    ours.filter_map(|line| {
        let mut fields = line.splitn(3, ':').skip(1);
        let (controller, path) = (fields.next()?, fields.next()?);
        Some(at(controller)?.join(path.trim_start_matches('/')))
    })
    .collect()
}

isolated! {
    fn what_a_jailed_vm_is() {
        jail_ground(1);
        let helper = Helper::start();
        let drives = json!([
            {"ID": "root-fs", "Path": "/mnt/s/images/1.ext4", "ReadOnly": false, "IsRoot": true},
            {"Path": "/mnt/s/images/data", "ReadOnly": true, "IsRoot": false},
        ]);
        let asked = with(with(jailed(1), "drives", drives), "initrd_path", json!("/mnt/s/kernels/initrd"));
        let kernel = fs::metadata("/mnt/s/kernels/vmlinux").expect("kernel");
        let mounts = machine_mounts();
        let pid = pid_of(&helper.ok(LAUNCH, &asked));
        assert_eq!(machine_mounts(), mounts, "the machine's mounts");

        let own = OWNER.to_string();
        assert_eq!(status(pid, "Uid").split_whitespace().collect::<Vec<_>>(), [&own, &own, &own, &own]);
        for (key, value) in [("CapEff", "0000000000000000"), ("CapBnd", "0000000000000000"), ("NoNewPrivs", "1"),
            ("Groups", "")]
        {
            // Firecracker's jailer leaves the bounding set as it was.
            assert!(status(pid, key) == value || key == "CapBnd" && !is_ours(), "{key} {}", status(pid, key));
        }
        let said = fs::read_to_string(log(1)).expect("its log");
        for line in [
            "/vmlinux: 14 bytes, begins ELF and , write Permission denied",
            "/initrd: 6 bytes, begins initrd, write Permission denied",
            "/root-fs: 4096 bytes, begins , write allowed",
            "/data: 4096 bytes, begins dddddddd, write Read-only file system",
        ] {
            let line = if line.contains("Permission") { line.replace("Permission denied", "Read-only file system") } else { line.into() };
            assert!(said.contains(&line), "{line}\n{said}");
        }
        assert!(said.contains("config /etc/firecracker.json {"), "{said}");
        for part in [r#""path_on_host":"/root-fs""#, r#""kernel_image_path":"/vmlinux""#, r#""uds_path":"/vsock.sock""#] {
            assert!(said.contains(part), "{part}\n{said}");
        }
        assert!(!said.contains("metrics") && !said.contains("logger"), "{said}");
        // The drive itself was written, and nothing of the owner's has changed hands or names.
        assert!(fs::read("/mnt/s/images/1.ext4").expect("the drive").starts_with(b"written in the jail"));
        let after = fs::metadata("/mnt/s/kernels/vmlinux").expect("kernel");
        assert_eq!((after.uid(), after.nlink(), after.mode()), (kernel.uid(), kernel.nlink(), kernel.mode()));

        // From outside: names of root's without anything in them, in a directory that is root's.
        let dir = vm_dir(1);
        let facts = fs::metadata(&dir).expect("its directory");
        assert_eq!((facts.uid(), facts.mode() & 0o7777), (0, 0o711));
        let root = format!("{dir}/root");
        assert_eq!(names(&root), ["data", "dev", "etc", "firecracker", "firecracker.pid", "firecracker.socket",
            "initrd", "root-fs", "run", "vmlinux", "vsock.sock"]);
        // Firecracker's jailer copies the program.
        let program = is_ours().then_some("firecracker");
        for empty in ["vmlinux", "initrd", "root-fs", "data", "etc/firecracker.json"].into_iter().chain(program) {
            assert_eq!(fs::metadata(format!("{root}/{empty}")).expect(empty).len(), 0, "{empty}");
        }
        assert_eq!(fs::read_to_string(format!("{root}/firecracker.pid")).expect("pid"), pid.to_string());
        for (link, name) in [(socket(1), "firecracker.socket"), (vsock(1), "vsock.sock")] {
            assert_eq!(fs::read_link(&link).expect("a link"), Path::new(&root).join(name));
            let facts = fs::metadata(&link).expect("a socket");
            assert_eq!((facts.uid(), facts.mode() & 0o7777), (OWNER, 0o600), "{name}");
        }
        assert!(!Path::new("/mnt/s/logs/1.metrics").exists());

        // Known by its link and by its socket.
        for path in [socket(1), format!("{root}/firecracker.socket")] {
            assert_eq!(helper.ok("priv.find_firecracker_pid", &json!({"api_sock": path}))["pid"], pid);
            assert!(running(&helper, pid, &path));
        }
        let groups = groups(pid);
        assert!(!groups.is_empty() && groups.iter().all(|group| group.exists()), "{groups:?}");
        let listed = &helper.ok("priv.list_resources", &json!({}))["vms"][0];
        assert_eq!(listed["jail"], dir);
        let group = listed["control_group"].as_str().expect("a name");
        assert!(groups.iter().all(|path| path.ends_with(group)), "{group} {groups:?}");
        // While it runs its jail stays.
        for path in [&dir, &root] {
            let (code, message) = helper.err("priv.cleanup_jailer_chroot", &json!({"chroot_root": path}));
            assert!(code == "operation_failed" && message.contains("runs"), "{message}");
        }
        helper.ok("priv.kill_process", &json!({"pid": pid}));
        assert_gone(1, "killed");
        assert!(groups.iter().all(|group| !group.exists()), "{groups:?}");
        helper.ok("priv.cleanup_jailer_chroot", &json!({"chroot_root": root}));
    }
}

isolated! {
    fn what_a_jailed_vmm_forked_ends_with_it() {
        jail_ground(1);
        let helper = Helper::start();
        let pid = pid_of(&helper.ok(LAUNCH, &with(jailed(1), "kernel_args", json!("fork"))));
        assert_eq!(vmms().len(), 2, "it and its child");
        helper.ok("priv.signal_process", &json!({"pid": pid, "signal": "TERM"}));
        eventually("nothing is left", || left() == (vec![], vec![], vec![]));
    }
}

isolated! {
    fn a_failed_launch_leaves_no_jail() {
        jail_ground(1);
        let helper = Helper::start();
        let (code, message) = helper.err(LAUNCH, &with(jailed(1), "kernel_args", json!("die")));
        assert!(code == "operation_failed" && message.contains("boom: no such kernel"), "{message}");
        assert_gone(1, "a VMM that dies");
        // A jailer that is none: of a name that is allowed.
        make_file("/mnt/o/bin/banger-jailer", b"#!/bin/sh\necho no jail today\nexit 7\n", 0, 0o755);
        let mut asked = jailed(1);
        asked["jailer"]["binary"] = json!("/mnt/o/bin/banger-jailer");
        let (_, message) = helper.err(LAUNCH, &asked);
        assert!(message.contains("no jail today"), "{message}");
        assert_gone(1, "a jailer that fails");
        make_dir("/mnt/s/roots", 0, 0o755);
        for (field, value, told) in [
            ("uid", json!(0), "registered owner"),
            ("gid", json!(OTHER), "registered owner"),
            ("binary", json!("/bin/sh"), "is not one of jailer, banger-jailer"),
            ("chroot_base_dir", json!("/mnt/o"), "outside"),
            ("chroot_base_dir", json!("/mnt/s/roots"), "can't be written by the owner"),
        ] {
            let mut asked = jailed(1);
            asked["jailer"][field] = value;
            let (code, message) = helper.err(LAUNCH, &asked);
            assert!(code == "operation_failed" && message.contains(told), "{field}: {message}");
            assert_gone(1, field);
        }
        // One that a jailer has made, as root, is a base.
        make_dir("/mnt/s/roots/firecracker", 0, 0o755);
        let mut asked = jailed(1);
        asked["jailer"]["chroot_base_dir"] = json!("/mnt/s/roots");
        let pid = pid_of(&helper.ok(LAUNCH, &asked));
        helper.ok("priv.kill_process", &json!({"pid": pid}));
        // A base that is missing is made, the owner's.
        let mut asked = jailed(1);
        asked["jailer"]["chroot_base_dir"] = json!("/mnt/r/a/b");
        let pid = pid_of(&helper.ok(LAUNCH, &asked));
        assert_eq!(fs::metadata("/mnt/r/a/b").expect("the base").uid(), OWNER);
        helper.ok("priv.kill_process", &json!({"pid": pid}));
        assert!(!Path::new("/mnt/r/a/b/firecracker/vm-1").exists());
    }
}

isolated! {
    fn what_was_planted_in_a_jails_way_is_refused() {
        jail_ground(1);
        let helper = Helper::start();
        make_dir("/mnt/o/keep", 0, 0o755);
        make_dir(&format!("{BASE}/firecracker"), OWNER, 0o755);
        let root = format!("{}/root", vm_dir(1));
        let plant = |link: &str| {
            make_dir(&vm_dir(1), OWNER, 0o755);
            if link != root {
                make_dir(&root, OWNER, 0o755);
            }
            symlink("/mnt/o/keep", link).expect("planted");
        };
        for link in [root.clone(), format!("{root}/dev"), format!("{root}/vmlinux"), format!("{root}/firecracker.pid")] {
            plant(&link);
            let (_, message) = helper.err(LAUNCH, &jailed(1));
            assert!(message.contains("priv.cleanup_jailer_chroot"), "{message}");
            assert_eq!(names("/mnt/o/keep"), Vec::<String>::new(), "{link}");
            helper.ok("priv.cleanup_jailer_chroot", &json!({"chroot_root": vm_dir(1)}));
            assert_gone(1, &link);
        }
        fs::remove_dir(format!("{BASE}/firecracker")).expect("empty");
        symlink("/mnt/o/keep", format!("{BASE}/firecracker")).expect("planted");
        helper.err(LAUNCH, &jailed(1));
        assert_eq!(names("/mnt/o/keep"), Vec::<String>::new());
        fs::remove_file(format!("{BASE}/firecracker")).expect("the link");
        // An empty directory, as an older daemon made it, is in nobody's way.
        make_dir(&format!("{}/root", vm_dir(1)), OWNER, 0o755);
        let pid = pid_of(&helper.ok(LAUNCH, &jailed(1)));
        helper.ok("priv.kill_process", &json!({"pid": pid}));
        assert_gone(1, "launched");
    }
}

isolated! {
    fn what_is_somebody_elses_is_no_jail_and_none_is_made_in_it() {
        jail_ground(1);
        let helper = Helper::start();
        let above = format!("{BASE}/firecracker");
        let is_as_it_was = |dir: &str, within: &[&str]| {
            let facts = fs::metadata(dir).expect("there");
            assert_eq!((facts.uid(), facts.mode() & 0o7777, names(dir)), (OTHER, 0o755, within.iter().map(|name| (*name).to_owned()).collect()));
        };
        // A name that the owner may have given it.
        make_dir(&above, OTHER, 0o755);
        let (_, message) = helper.err(LAUNCH, &jailed(1));
        assert!(message.contains("its firecracker is somebody else's"), "{message}");
        is_as_it_was(&above, &[]);
        fs::remove_dir(&above).expect("empty");
        make_dir(&above, OWNER, 0o755);
        make_dir(&vm_dir(1), OTHER, 0o755);
        make_dir(&format!("{}/root", vm_dir(1)), OTHER, 0o755);
        helper.err(LAUNCH, &jailed(1));
        for path in [vm_dir(1), format!("{}/root", vm_dir(1))] {
            let (code, message) = helper.err("priv.cleanup_jailer_chroot", &json!({"chroot_root": path}));
            assert!(code == "invalid_path" && message.contains("it belongs to uid"), "{code} {message}");
        }
        is_as_it_was(&vm_dir(1), &["root"]);
        // Within one of his own.
        std::os::unix::fs::chown(vm_dir(1), Some(OWNER), Some(OWNER)).expect("his");
        make_file(&format!("{}/root/theirs", vm_dir(1)), b"kept", OTHER, 0o600);
        for path in [vm_dir(1), format!("{}/root", vm_dir(1))] {
            let (code, message) = helper.err("priv.cleanup_jailer_chroot", &json!({"chroot_root": path}));
            assert!(code == "invalid_path" && message.contains("it belongs to uid"), "{code} {message}");
        }
        is_as_it_was(&format!("{}/root", vm_dir(1)), &["theirs"]);
        assert_nothing_left("refused");
    }
}

isolated! {
    fn an_older_bangers_chroot_is_cleaned_up() {
        jail_ground(0);
        let helper = Helper::start();
        let root = format!("{BASE}/firecracker/old/root");
        make_dir(&format!("{root}/usr/lib"), 0, 0o755);
        make_dir(&format!("{root}/dev/net"), 0, 0o755);
        fs::hard_link("/mnt/s/kernels/initrd", format!("{root}/vmlinux")).expect("a second name");
        make_dir("/mnt/o/keep", 0, 0o755);
        make_file("/mnt/o/keep/f", b"kept", 0, 0o644);
        output("mount", &["--bind", "/mnt/o/keep", &format!("{root}/usr/lib")]);
        output("mount", &["-t", "tmpfs", "none", &format!("{root}/dev")]);
        output("mknod", &[&format!("{root}/null"), "c", "1", "3"]);
        symlink("/mnt/o/keep", format!("{root}/out")).expect("a link");
        let before = machine_mounts();
        helper.ok("priv.cleanup_jailer_chroot", &json!({"chroot_root": root}));
        assert!(!Path::new(&root).exists() && Path::new(&format!("{BASE}/firecracker/old")).exists());
        assert_eq!(machine_mounts().lines().count() + 2, before.lines().count());
        assert_eq!(fs::read("/mnt/o/keep/f").expect("kept"), b"kept");
        assert_eq!(fs::read("/mnt/s/kernels/initrd").expect("kept"), b"initrd");
        helper.ok("priv.cleanup_jailer_chroot", &json!({"chroot_root": root}));
        helper.ok("priv.cleanup_jailer_chroot", &json!({"chroot_root": format!("{BASE}/firecracker/old")}));
        assert!(!Path::new(&format!("{BASE}/firecracker/old")).exists());
    }
}

/// The steps of a jailed launch, in their order.
const STEPS: [&str; 15] = [
    "log",
    "socket_room",
    "vsock_room",
    "intent",
    "jail",
    "links",
    "control_group",
    "stage",
    "fork",
    "record",
    "port",
    "start",
    "answer",
    "nodes",
    "access",
];

isolated! {
    fn a_launch_that_fails_or_is_cut_off_at_any_step_leaves_nothing() {
        jail_ground(1);
        assert_left_by_no_step(LAUNCH, &STEPS, || jailed(1), |_| {});
    }
}

isolated! {
    fn a_jailed_vm_outlives_its_helper() {
        jail_ground(1);
        let helper = Helper::start();
        let pid = pid_of(&helper.ok(LAUNCH, &jailed(1)));
        drop(helper);
        assert!(Path::new(&format!("/proc/{pid}")).exists());
        let helper = Helper::start();
        assert_eq!(helper.ok("priv.find_firecracker_pid", &json!({"api_sock": socket(1)}))["pid"], pid);
        helper.ok("priv.kill_process", &json!({"pid": pid}));
        assert_gone(1, "ended by the next helper");
    }
}

isolated! {
    fn twenty_vms_at_once_ten_times_over() {
        const MACHINES: u32 = 20;
        jail_ground(MACHINES);
        let helper = Helper::start();
        let mounts = machine_mounts();
        let groups_before = every_group();
        let links = output("ip", &["-o", "link"]).lines().count();
        let mut half = (0, 0);
        for round in 0..10 {
            let pids: Vec<i32> = std::thread::scope(|scope| {
                let all: Vec<_> = (1..=MACHINES).map(|n| {
                    let helper = &helper;
                    scope.spawn(move || pid_of(&helper.ok(LAUNCH, &jailed(n))))
                }).collect();
                all.into_iter().map(|one| one.join().expect("launched")).collect()
            });
            for pid in pids {
                helper.ok("priv.kill_process", &json!({"pid": pid}));
            }
            eventually(&format!("round {round}: nothing is left"), || left() == (vec![], vec![], vec![]));
            eventually("no jail is left", || names(&format!("{BASE}/firecracker")).is_empty());
            eventually("no control group is left", || every_group() == groups_before);
            // By then the allocator has its arenas, one a worker.
            if round == 4 {
                half = (helper.open_files(), helper.status_kib("VmRSS"));
            }
        }
        eventually("no descriptor is left", || helper.open_files() <= half.0);
        let grown = helper.status_kib("VmRSS").saturating_sub(half.1);
        println!("figure: {grown} KiB more after ten rounds than after five ({} KiB)", half.1);
        assert!(grown < 512, "{grown} KiB");
        assert_eq!(output("ip", &["-o", "link"]).lines().count(), links);
        assert_eq!(machine_mounts(), mounts);
    }
}

/// Control groups of VMs of this test's: other tests' have other VMs.
fn every_group() -> Vec<String> {
    let found = Command::new("find").args(["/sys/fs/cgroup", "-path", "*/banger/vm-*", "-type", "d"]).output();
    let text = String::from_utf8(found.expect("find").stdout).expect("text");
    // By the time in the name: a VM of another test's lives in another PID namespace, but its group is seen here.
    let mut all: Vec<String> =
        text.lines().filter(|line| line.rsplit('/').next().is_some_and(is_of_here)).map(str::to_owned).collect();
    all.sort_unstable();
    all
}

fn is_of_here(name: &str) -> bool {
    name.splitn(3, '.').nth(2).is_some_and(|start| start.parse::<u64>().is_ok_and(|start| start >= born()))
        && name.starts_with("vm-")
        && name.split(['-', '.']).nth(1).is_some_and(|n| n.parse().is_ok_and(|n: u32| n > 8))
}

/// When this process started, in nanoseconds since the boot.
fn born() -> u64 {
    let stat = fs::read_to_string("/proc/self/stat").expect("stat");
    let ticks: Option<u64> =
        stat.rsplit(')').next().and_then(|rest| rest.split_whitespace().nth(19)).and_then(|n| n.parse().ok());
    ticks.expect("a time") * 10_000_000
}
