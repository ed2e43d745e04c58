//! VMs through the helper: their launch, their processes, their ends.

#![allow(clippy::disallowed_methods, reason = "a test plays the owner and the machine around the helper")]

mod common;
mod vm_support;

use common::*;
use serde_json::json;
use std::fs;
use std::os::unix::fs::MetadataExt;
use vm_support::*;

isolated! {
    fn a_vm_runs_as_the_owner_without_rights() {
        vmm("good");
        ground(1);
        let group = fs::read_to_string("/etc/group").unwrap();
        let kvm = group.lines().find_map(|line| line.strip_prefix("kvm:")?.split(':').nth(1)).unwrap_or_default();
        let helper = Helper::start();
        let pid = launch(&helper, 1);
        for (key, value) in [
            ("Uid", "5501\t5501\t5501\t5501"),
            ("Gid", "5501\t5501\t5501\t5501"),
            ("Groups", kvm),
            ("CapInh", "0000000000000000"),
            ("CapPrm", "0000000000000000"),
            ("CapEff", "0000000000000000"),
            ("CapBnd", "0000000000000000"),
            ("CapAmb", "0000000000000000"),
            ("NoNewPrivs", "1"),
            ("Umask", "0077"),
            ("SigBlk", "0000000000000000"),
            ("NSsid", &pid.to_string()),
        ] {
            let seen = status(pid, key);
            // In a PID namespace below another one, one number a namespace: the innermost is the last.
            assert_eq!(if key == "NSsid" { seen.rsplit('\t').next().unwrap() } else { &seen }, value, "{key}");
        }
        assert_eq!(fs::read(format!("/proc/{pid}/environ")).unwrap(), b"");
        assert_eq!(fs::read_link(format!("/proc/{pid}/cwd")).unwrap().to_str(), Some("/"));
        assert_eq!(fs::read_to_string(format!("/proc/{pid}/oom_score_adj")).unwrap(), "200\n");
        let limits = fs::read_to_string(format!("/proc/{pid}/limits")).unwrap();
        assert!(limits.lines().any(|l| l.starts_with("Max core file size        0                    0 ")), "{limits}");

        // Its descriptors: what it was given, itself as a script, its own two sockets.
        let mut held: Vec<String> = fs::read_dir(format!("/proc/{pid}/fd")).unwrap().flatten()
            .map(|fd| fs::read_link(fd.path()).unwrap().to_string_lossy().into_owned()).collect();
        held.sort_unstable();
        held.retain(|path| !path.starts_with("socket:") && path != VMM);
        assert_eq!(held, ["/dev/null", "/memfd:vm-config (deleted)", "/mnt/s/logs/1.log", "/mnt/s/logs/1.log"]);
        let ours: Vec<String> = fs::read_dir(format!("/proc/{}/fd", helper.pid())).unwrap().flatten()
            .map(|fd| fs::read_link(fd.path()).unwrap().to_string_lossy().into_owned()).collect();
        assert!(!ours.iter().any(|path| path.contains("memfd") || path.starts_with("/mnt/s/")), "{ours:?}");

        for path in [socket(1), vsock(1)] {
            let facts = fs::symlink_metadata(&path).unwrap();
            assert_eq!((facts.uid(), facts.gid(), facts.mode()), (OWNER, OWNER, 0o140_600), "{path}");
        }
        for path in [log(1), "/mnt/s/logs/1.metrics".into()] {
            let facts = fs::symlink_metadata(&path).unwrap();
            assert_eq!((facts.uid(), facts.mode()), (OWNER, 0o100_600), "{path}");
        }
        assert_eq!(fs::metadata("/mnt/s/images/1.ext4").unwrap().uid(), OWNER);
        let record = fs::metadata(format!("{RECORDS}/vm-vm-1.json")).unwrap();
        assert_eq!((record.uid(), record.mode() & 0o777), (0, 0o600));
        assert_eq!(fs::metadata(RECORDS).unwrap().mode() & 0o777, 0o700);
    }
}

isolated! {
    fn a_vmm_is_told_all_by_one_file() {
        vmm("good");
        ground(1);
        make_file("/mnt/s/kernels/initrd", b"cpio", OWNER, 0o644);
        make_file("/mnt/s/images/more.img", &[0; 512], 0, 0o644);
        let helper = Helper::start();
        let mut request = with(request(1), "initrd_path", json!("/mnt/s/kernels/initrd"));
        let more = json!({"ID": "", "Path": "/mnt/s/images/more.img", "ReadOnly": true, "IsRoot": false});
        request["drives"].as_array_mut().unwrap().push(more);
        let pid = pid_of(&helper.ok(LAUNCH, &request));
        let said = fs::read_to_string(log(1)).unwrap();
        let mut config: serde_json::Value =
            serde_json::from_str(said.lines().next().unwrap().strip_prefix("config ").unwrap()).unwrap();
        let mac = config["network-interfaces"][0]["guest_mac"].take();
        assert!(mac.as_str().is_some_and(|mac| mac.starts_with("02:") && mac.len() == 17), "{mac}");
        assert_eq!(config["boot-source"], json!({
            "kernel_image_path": "/mnt/s/kernels/vmlinux", "initrd_path": "/mnt/s/kernels/initrd",
            "boot_args": "console=ttyS0",
        }));
        assert_eq!(config["machine-config"]["vcpu_count"], 2);
        assert_eq!(config["machine-config"]["mem_size_mib"], 64);
        assert_eq!(config["vsock"], json!({"guest_cid": 11, "uds_path": "/mnt/r/vm/1.vsock"}));
        assert_eq!(config["network-interfaces"][0]["iface_id"], "1");
        assert_eq!(config["network-interfaces"][0]["host_dev_name"], "tap-fc-1");
        assert_eq!(config["logger"]["log_path"], "/mnt/s/logs/1.log");
        assert_eq!(config["metrics"]["metrics_path"], "/mnt/s/logs/1.metrics");
        let drives = config["drives"].as_array().unwrap();
        let told: Vec<_> = drives.iter()
            .map(|d| (d["drive_id"].as_str().unwrap(), d["is_root_device"] == true, d["is_read_only"] == true)).collect();
        assert_eq!(told, [("root_fs", true, false), ("more_img", false, true)]);
        let line = fs::read_to_string(format!("/proc/{pid}/cmdline")).unwrap();
        assert!(line.contains("--api-sock\0/mnt/r/vm/1.sock\0--id\0vm-1\0--config-file\0/proc/self/fd/3\0"), "{line:?}");
    }
}

isolated! {
    fn found_asked_signalled_and_ended() {
        vmm("good");
        ground(1);
        ground(2);
        let helper = Helper::start();
        let (one, two) = (launch(&helper, 1), launch(&helper, 2));
        let find = |path: &str| helper.ok("priv.find_firecracker_pid", &json!({"api_sock": path}));
        assert_eq!((pid_of(&find(&socket(1))), pid_of(&find(&socket(2)))), (one, two));
        for nobody in [".", "/mnt/r/vm/", "/mnt/r/vm/1.soc", "/mnt/r/vm/1.vsock", "/mnt/r/vm/../vm/1.sock"] {
            let (code, _) = helper.err("priv.find_firecracker_pid", &json!({"api_sock": nobody}));
            assert_eq!(code, "operation_failed", "{nobody}");
        }
        assert!(running(&helper, one, &socket(1)) && running(&helper, one, ""));
        assert!(!running(&helper, one, &socket(2)) && !running(&helper, helper.pid(), "") && !running(&helper, 1, ""));

        // The pid is judged before the signal.
        let signal = |pid: i32, signal: &str| helper.err("priv.signal_process", &json!({"pid": pid, "signal": signal})).0;
        assert_eq!(signal(helper.pid(), "STOP"), "invalid_pid");
        assert_eq!(signal(one, "STOP"), "operation_failed");
        assert_eq!(helper.err("priv.kill_process", &json!({"pid": helper.pid()})).0, "invalid_pid");

        helper.ok("priv.signal_process", &json!({"pid": one, "signal": "term"}));
        eventually("the VM to end", || !running(&helper, one, ""));
        assert!(fs::read_to_string(log(1)).unwrap().ends_with("term\n"));
        helper.ok("priv.kill_process", &json!({"pid": two}));
        // The answer means that all of it is gone, and the first one's end is seen without a question.
        assert!(!exists(&socket(2)) && !exists(&vsock(2)));
        eventually("the first to be cleared", || names(RECORDS).is_empty());
        assert_nothing_left("both ended");
        assert_eq!(signal(one, "TERM"), "invalid_pid");
        assert_eq!(helper.err("priv.kill_process", &json!({"pid": two})).0, "invalid_pid");
    }
}

isolated! {
    fn what_ends_by_itself_leaves_nothing_to_call_for() {
        vmm("good");
        ground(1);
        let helper = Helper::start();
        let waits = || fs::read_dir(format!("/proc/{}/task", helper.pid())).unwrap().flatten()
            .any(|task| fs::read_to_string(task.path().join("comm")).is_ok_and(|name| name == "vms\n"));
        let mut files = None;
        for _ in 0..3 {
            let pid = launch(&helper, 1);
            let listed = helper.ok("priv.list_resources", &json!({}));
            eventually("the thread that waits", waits);
            assert_eq!(listed["vms"][0]["pid"], pid);
            assert_eq!(listed["vms"][0]["vm_id"], "vm-1");
            output("kill", &["-9", &pid.to_string()]);
            eventually("the VM to be cleared", || left() == (vec![], vec![], vec![]));
            assert!(!exists(&format!("/proc/{pid}")), "a zombie");
            assert_eq!(helper.ok("priv.list_resources", &json!({}))["vms"], json!([]));
            // The first time brings what is kept, a socket to ask for links.
            let most = *files.get_or_insert_with(|| helper.open_files());
            eventually("no descriptor more than before", || helper.open_files() <= most);
        }
        eventually("no thread to wait for nothing", || !waits());
        // At once after a kill too, without a look in between.
        let pid = launch(&helper, 1);
        output("kill", &["-9", &pid.to_string()]);
        eventually("its end", || vmms().is_empty());
        launch(&helper, 1);
    }
}

isolated! {
    fn a_vm_outlives_its_helper_and_the_next_one_knows_it() {
        vmm("good");
        ground(1);
        let helper = Helper::start();
        let pid = launch(&helper, 1);
        assert!(helper.stop().success());
        let helper = Helper::start();
        assert!(running(&helper, pid, &socket(1)));
        helper.kill();
        assert!(exists(&format!("/proc/{pid}")));
        let helper = Helper::start();
        assert_eq!(pid_of(&helper.ok("priv.find_firecracker_pid", &json!({"api_sock": socket(1)}))), pid);
        // It still has all that is its own.
        let (_, message) = helper.err(LAUNCH, &request(1));
        assert!(message.contains("vm_id"), "{message}");
        helper.ok("priv.kill_process", &json!({"pid": pid}));
        eventually("all to be gone", || left() == (vec![], vec![], vec![]));
        let pid = launch(&helper, 1);
        // Ended while nobody looks.
        helper.kill();
        output("kill", &["-9", &pid.to_string()]);
        eventually("the VM to end", || vmms().is_empty());
        let helper = Helper::start();
        assert!(!running(&helper, pid, ""));
        assert_nothing_left("the start cleared it");
    }
}

isolated! {
    fn a_record_is_believed_only_where_the_kernel_agrees() {
        vmm("good");
        ground(1);
        let helper = Helper::start();
        let pid = launch(&helper, 1);
        helper.kill();
        let path = format!("{RECORDS}/vm-vm-1.json");
        let mut record: serde_json::Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
        let start = record["process"]["start_time"].as_u64().unwrap();
        record["process"]["start_time"] = json!(start + 1);
        // What is in a VM's own group is the VM's.
        record["control_group"] = json!("vm-1.1.1");
        fs::write(&path, record.to_string()).unwrap();
        fs::write(format!("{RECORDS}/vm-junk.json"), "{").unwrap();
        let helper = Helper::start();
        assert!(!running(&helper, pid, ""));
        assert_eq!(helper.err("priv.kill_process", &json!({"pid": pid})).0, "invalid_pid");
        assert!(exists(&format!("/proc/{pid}")), "another's process was ended");
        assert_eq!(names(RECORDS), Vec::<String>::new());
    }
}

isolated! {
    fn of_eight_launches_of_the_same_vm_one_succeeds() {
        vmm("good");
        ground(1);
        let helper = Helper::start();
        for _ in 0..3 {
            let replies: Vec<_> = std::thread::scope(|scope| {
                let all: Vec<_> = (0..8).map(|_| scope.spawn(|| {
                    helper.call(&json!({"method": LAUNCH, "params": request(1)}).to_string())
                })).collect();
                all.into_iter().map(|one| one.join().unwrap()).collect()
            });
            let good: Vec<_> = replies.iter().filter(|reply| reply["ok"] == true).collect();
            assert_eq!(good.len(), 1, "{replies:?}");
            for reply in replies.iter().filter(|reply| reply["ok"] == false) {
                assert_eq!(reply["error"]["code"], "operation_failed", "{reply}");
            }
            let pid = pid_of(&good[0]["result"]);
            assert_eq!(vmms(), [pid]);
            helper.ok("priv.kill_process", &json!({"pid": pid}));
            assert_nothing_left("after the race");
        }
    }
}

isolated! {
    fn eight_vms_start_at_once() {
        vmm("good");
        for n in 1..=8 {
            ground(n);
        }
        let helper = Helper::start();
        let pids: Vec<i32> = std::thread::scope(|scope| {
            let helper = &helper;
            let all: Vec<_> = (1..=8).map(|n| scope.spawn(move || launch(helper, n))).collect();
            all.into_iter().map(|one| one.join().unwrap()).collect()
        });
        assert_eq!(helper.ok("priv.list_resources", &json!({}))["vms"].as_array().unwrap().len(), 8);
        for pid in pids {
            helper.ok("priv.kill_process", &json!({"pid": pid}));
        }
        assert_nothing_left("all ended");
    }
}

isolated! {
    fn no_two_vms_share_what_is_one_vms() {
        vmm("good");
        ground(1);
        ground(2);
        let helper = Helper::start();
        let pid = launch(&helper, 1);
        let drive = |read_only| json!([
            {"ID": "a", "Path": "/mnt/s/images/2.ext4", "ReadOnly": false, "IsRoot": true},
            {"ID": "b", "Path": "/mnt/s/images/1.ext4", "ReadOnly": read_only, "IsRoot": false},
        ]);
        for (field, value) in [
            ("vm_id", json!("vm-1")),
            ("socket_path", json!(socket(1))),
            ("socket_path", json!(vsock(1))),
            ("vsock_path", json!(socket(1))),
            ("tap_device", json!("tap-fc-1")),
            ("vsock_cid", json!(11)),
            ("drives", drive(false)),
            ("drives", drive(true)),
        ] {
            let (code, message) = helper.err(LAUNCH, &with(request(2), field, value));
            assert!(code == "operation_failed" && message.starts_with(field), "{field}: {message}");
            assert_eq!(vmms(), [pid]);
        }
        assert!(!exists(&socket(2)) && !exists(&log(2)));
        launch(&helper, 2);
    }
}

isolated! {
    fn an_older_bangers_vm_is_known_by_its_shape() {
        // No record: started by hand, as an older helper's would be. Not a script: its executable has to be its own.
        make_dir("/mnt/o/bin", 0, 0o755);
        make_dir("/mnt/s/bin", OWNER, 0o755);
        for (path, uid) in [(VMM, 0), ("/mnt/o/bin/other", 0), ("/mnt/s/bin/firecracker", OWNER)] {
            fs::copy("/bin/bash", path).unwrap();
            output("chown", &[&uid.to_string(), path]);
        }
        output("mkfifo", &["-m", "666", "/mnt/o/wait"]);
        let start = |program: &str, uid: u32, socket: &str| {
            let mut command = std::process::Command::new(program);
            std::os::unix::process::CommandExt::uid(&mut command, uid);
            // It forks nothing: for a moment that would be another of the same shape.
            command.args(["-c", "exec 3<>/mnt/o/wait; read x <&3", "x", "--api-sock", socket]);
            command.stdin(std::process::Stdio::null()).spawn().unwrap()
        };
        let helper = Helper::start();
        let mut vm = start(VMM, OWNER, "/mnt/r/vm/old.sock");
        let pid = vm.id().cast_signed();
        let mut others = [
            start("/mnt/o/bin/other", OWNER, "/mnt/r/vm/x.sock"),
            start("/mnt/s/bin/firecracker", OWNER, "/mnt/r/vm/x.sock"),
            start(VMM, OTHER, "/mnt/r/vm/x.sock"),
            start(VMM, 0, "/mnt/r/vm/x.sock"),
        ];
        eventually("it to be found", || running(&helper, pid, "/mnt/r/vm/old.sock"));
        assert_eq!(pid_of(&helper.ok("priv.find_firecracker_pid", &json!({"api_sock": "/mnt/r/vm/old.sock"}))), pid);
        assert!(running(&helper, pid, "") && !running(&helper, pid, "/mnt/r/vm/x.sock"));
        for other in &others {
            assert!(!running(&helper, other.id().cast_signed(), ""));
            assert_eq!(helper.err("priv.kill_process", &json!({"pid": other.id()})).0, "invalid_pid");
        }
        assert_eq!(helper.err("priv.find_firecracker_pid", &json!({"api_sock": "/mnt/r/vm/x.sock"})).0, "operation_failed");
        helper.ok("priv.kill_process", &json!({"pid": pid}));
        assert!(vm.wait().unwrap().code().is_none());
        for other in &mut others {
            assert_eq!(other.try_wait().unwrap(), None);
            other.kill().unwrap();
            other.wait().unwrap();
        }
    }
}

isolated! {
    fn a_port_is_fresh_for_its_next_vm() {
        vmm("good");
        make_file("/mnt/s/kernels/vmlinux", b"\x7fELF and so on", OWNER, 0o644);
        make_file("/mnt/s/images/1.ext4", &[0; 4096], OWNER, 0o600);
        let helper = Start::new().config("own_tables = false\n").start();
        let tap = json!({"bridge_name": "br-fc", "bridge_ip": "172.16.0.1", "cidr": "24", "tap_name": "tap-fc-1"});
        helper.ok("priv.create_tap", &tap);
        // What the bridge learns from a guest's first frame.
        let mac = "02:00:00:00:00:09";
        for (set, element) in [("stations", format!("tap-fc-1 . {mac}")), ("has_mac", "tap-fc-1".into()), ("macs", mac.into())] {
            output("nft", &["add", "element", "bridge", "banger", set, "{", &element, "}"]);
        }
        launch(&helper, 1);
        for set in ["stations", "has_mac", "macs"] {
            let now = output("nft", &["list", "set", "bridge", "banger", set]);
            let learned = if set == "has_mac" { "tap-fc-1" } else { mac };
            assert!(!now.contains(learned), "{now}");
        }
    }
}
