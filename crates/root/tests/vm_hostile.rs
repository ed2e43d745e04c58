//! Launches that must fail: broken and hostile VMMs, requests for what can't be, each step of a launch failing.

#![allow(clippy::disallowed_methods, reason = "a test plays the owner and the machine around the helper")]

mod common;
mod vm_support;

use common::*;
use serde_json::json;
use std::fs;
use std::os::unix::net::UnixListener;
use vm_support::*;

/// Every step of a launch, in its order.
const STEPS: [&str; 13] = [
    "log",
    "metrics",
    "socket_room",
    "vsock_room",
    "intent",
    "control_group",
    "fork",
    "record",
    "port",
    "start",
    "answer",
    "access",
    "commit",
];

fn fault(step: &str, kind: &str) -> Start {
    Start::new().config(&format!("fault = \"launch_firecracker.{step}:{kind}\"\n"))
}

isolated! {
    fn a_vmm_that_does_not_run_its_vm_is_ended_and_quoted() {
        ground(1);
        let outside = UnixListener::bind("/mnt/o/other.sock").unwrap();
        outside.set_nonblocking(true).unwrap();
        let helper = Start::new().config("[limits]\nlaunch_seconds = 1\n").start();
        for (mode, told) in [
            ("dies", "firecracker ended with status 3 before its VM ran; its last words: second | third | boom: no such kernel?[31m | last"),
            ("silent", "firecracker ended with status 4 before its VM ran; its last words: config"),
            ("hangs", "waited 1 s (limits.launch_seconds) for its API socket"),
            ("killed", "was ended by signal 9 before its VM ran"),
            ("mute", "waited 1 s (limits.launch_seconds) for its API's answer"),
            ("hangs-up", "its API hung up"),
            ("garbage", "its API does not answer in HTTP"),
            ("endless", "its API answers without end"),
            ("refuses", "its API refuses to tell its state"),
            ("not-started", "waited 1 s (limits.launch_seconds) for its VM to run"),
            ("no-vsock", "the VMM's socket \"1.vsock\" is not there"),
            ("not-its-own", "its API socket is another process's"),
            ("link", "firecracker: its API socket can't be used"),
            ("file", "firecracker: its API socket can't be used"),
        ] {
            vmm(mode);
            let (code, message) = helper.err(LAUNCH, &request(1));
            assert!(code == "operation_failed" && message.contains(told), "{mode}: {message}");
            // What is no socket was not made by a VMM of ours, and is the owner's to remove.
            if matches!(mode, "link" | "file") {
                fs::remove_file(socket(1)).unwrap();
            }
            assert_nothing_left(mode);
            assert!(outside.accept().is_err(), "{mode}: a link was followed");
            // Its words stay, an empty file does not.
            assert!(exists(&log(1)) && !exists("/mnt/s/logs/1.metrics"), "{mode}");
        }
        vmm("good");
        launch(&helper, 1);
    }
}

#[test]
fn the_list_of_steps_is_whole() {
    let source = include_str!("../src/vm/launch.rs");
    let named = ["steps.act(\"", "self.output(steps, \""].into_iter().flat_map(|call| source.split(call).skip(1));
    let mut named: Vec<&str> = named.map(|rest| rest.split('"').next().unwrap()).collect();
    // A jail's are vm_jail's, those of a saved VM vm_restore's.
    let mut listed = [&STEPS[..], &["jail", "links", "stage", "fork", "nodes"], &["layer", "memory", "load"]].concat();
    named.sort_unstable();
    listed.sort_unstable();
    assert_eq!(named, listed);
}

isolated! {
    fn a_step_that_fails_leaves_nothing() {
        vmm("good");
        ground(1);
        for step in STEPS {
            let helper = fault(step, "fail").start();
            let (code, message) = helper.err(LAUNCH, &request(1));
            assert!(code == "operation_failed" && message.contains(&format!("launch_firecracker.{step} failed")), "{message}");
            assert!(!message.contains("could not be undone"), "{message}");
            assert_nothing_left(step);
            assert!(!exists("/mnt/s/logs/1.metrics"), "{step}");
            let _ = fs::remove_file(log(1));
            let free = Helper::ok(&helper, "priv.process_running", &json!({"pid": 1}));
            assert_eq!(free["running"], false);
        }
        let helper = Helper::start();
        launch(&helper, 1);
    }
}

isolated! {
    fn a_helper_killed_at_any_step_leaves_what_the_next_one_clears() {
        vmm("good");
        ground(1);
        for step in STEPS {
            let mut helper = fault(step, "kill").start();
            let mut peer = connect(OWNER);
            std::io::Write::write_all(&mut peer, json!({"method": LAUNCH, "params": request(1)}).to_string().as_bytes()).unwrap();
            assert_eq!(std::os::unix::process::ExitStatusExt::signal(&helper.wait()), Some(9), "{step}");
            drop(helper);
            if matches!(step, "log" | "metrics" | "socket_room" | "vsock_room" | "fork") {
                // Nothing was written down yet, and nothing may need it.
                eventually("the child to end with its helper", || vmms().is_empty());
            }
            let helper = Helper::start();
            if step == "commit" {
                let pid = pid_of(&helper.ok("priv.find_firecracker_pid", &json!({"api_sock": socket(1)})));
                helper.ok("priv.kill_process", &json!({"pid": pid}));
            }
            assert_nothing_left(step);
            let pid = launch(&helper, 1);
            helper.ok("priv.kill_process", &json!({"pid": pid}));
            assert_nothing_left(step);
        }
    }
}

isolated! {
    fn a_vmm_killed_at_any_step_of_its_launch_leaves_nothing() {
        vmm("good");
        ground(1);
        jail::assert_left_by_no_killed_process(|| request(1));
    }
}

isolated! {
    fn what_can_not_be_is_refused_before_anything_changes() {
        vmm("good");
        ground(1);
        make_file("/mnt/s/images/empty", b"", OWNER, 0o600);
        make_file("/mnt/s/images/small", b"x", OWNER, 0o600);
        make_file("/mnt/s/images/roots", &[0; 4096], 0, 0o644);
        make_file("/mnt/s/images/secret", &[0; 4096], 0, 0o600);
        make_file("/mnt/s/kernels/text", b"hello", OWNER, 0o644);
        make_file("/mnt/r/vm/file", b"x", OWNER, 0o644);
        make_file("/mnt/s/logs/roots", b"x", 0, 0o644);
        let _daemon = UnixListener::bind("/mnt/r/bangerd.sock").unwrap();
        let _other = UnixListener::bind("/mnt/r/vm/live").unwrap();
        output("chown", &[&OWNER.to_string(), "/mnt/r/vm/live", "/mnt/r/bangerd.sock"]);
        output("mkfifo", &["-m", "666", "/mnt/s/logs/fifo"]);
        std::os::unix::fs::symlink("/mnt/o/made", "/mnt/s/logs/link").unwrap();
        output("ip", &["tuntap", "add", "tap-fc-nobr", "mode", "tap", "user", "5501"]);
        output("ip", &["link", "set", "tap-fc-nobr", "alias", MARK]);
        output("ip", &["tuntap", "add", "tap-fc-nomark", "mode", "tap", "user", "5501"]);
        tap("tap-fc-other", OTHER);
        output("ip", &["link", "add", "tap-fc-bridge", "alias", MARK, "type", "bridge"]);
        let helper = Helper::start();
        let drive = |path: &str, read_only: bool| json!([{"ID": "r", "Path": path, "ReadOnly": read_only, "IsRoot": true}]);
        let twice = json!([
            {"ID": "a", "Path": "/mnt/s/images/1.ext4", "ReadOnly": true, "IsRoot": true},
            {"ID": "b", "Path": "/mnt/s/images/1.ext4", "ReadOnly": false, "IsRoot": false},
        ]);
        let jailer = json!({"binary": "/mnt/o/bin/jailer", "chroot_base_dir": "/mnt/s/jail", "uid": OWNER, "gid": OWNER});
        let before = (output("ip", &["-j", "addr"]), left(), names("/mnt/s/logs"));
        for (field, value, told) in [
            ("socket_path", json!("/mnt/r/bangerd.sock"), "banger's own"),
            ("vsock_path", json!("/mnt/r/bangerd.sock"), "banger's own"),
            ("socket_path", json!("/mnt/r/vm/file"), "is a regular file already"),
            ("vsock_path", json!("/mnt/r/vm/file"), "is a regular file already"),
            ("socket_path", json!("/mnt/r/vm/live"), "something listens on"),
            ("socket_path", json!(format!("/mnt/r/vm/{}", "x".repeat(100))), "longer than the 107 bytes"),
            ("socket_path", json!("/mnt/r/none/a.sock"), "does not exist"),
            ("log_path", json!("/mnt/s/logs/fifo"), "not a regular file"),
            ("log_path", json!("/mnt/s/logs/link"), "symlink"),
            ("log_path", json!("/mnt/s/logs/roots"), "the owner may not"),
            ("metrics_path", json!("/mnt/s/none/m"), "does not exist"),
            ("log_path", json!("/mnt/s/images/1.ext4"), "a drive of the VM's"),
            ("metrics_path", json!("/mnt/s/kernels/vmlinux"), "what its guest begins with"),
            ("kernel_image_path", json!("/mnt/s/kernels/text"), "is no kernel"),
            ("kernel_image_path", json!("/mnt/s/images/empty"), "is no kernel"),
            ("kernel_image_path", json!("/mnt/s/kernels/none"), "does not exist"),
            ("initrd_path", json!("/mnt/s/images/empty"), "is empty"),
            ("drives", drive("/mnt/s/images/empty", true), "is empty"),
            ("drives", drive("/mnt/s/images/small", true), "smaller than a sector"),
            ("drives", drive("/mnt/s/images/roots", false), "the owner may not"),
            ("drives", drive("/mnt/s/images/secret", true), "the owner may not"),
            ("drives", drive("/mnt/s/images", true), "is a directory"),
            ("drives", drive("/dev/mapper/fc-rootfs-1", true), "there is no snapshot"),
            ("drives", twice, "one is writable"),
            ("memory_mib", json!(1 << 30), "that this machine has"),
            ("tap_device", json!("tap-fc-none"), "is not there"),
            ("tap_device", json!("tap-fc-nobr"), "on no bridge"),
            ("tap_device", json!("tap-fc-nomark"), "is not banger's"),
            ("tap_device", json!("tap-fc-other"), "another user"),
            ("tap_device", json!("tap-fc-bridge"), "is not a tap"),
            ("jailer", jailer, "there is no program"),
            ("binary_path", json!("/mnt/o/bin/none"), "is not one of firecracker, banger-qemu"),
            ("binary_path", json!("/mnt/o/firecracker"), "there is no program"),
        ] {
            let (code, message) = helper.err(LAUNCH, &with(request(1), field, value.clone()));
            assert!(code == "operation_failed" && message.contains(told), "{field} {value}: {message}");
            let after = (output("ip", &["-j", "addr"]), left(), names("/mnt/s/logs"));
            assert_eq!(after, before, "{field} {value}");
        }
        launch(&helper, 1);
    }
}

isolated! {
    fn what_an_ended_vm_left_makes_room() {
        vmm("good");
        ground(1);
        drop(UnixListener::bind(socket(1)).unwrap());
        std::os::unix::fs::symlink("/mnt/s/jail/firecracker/vm-1/root/vsock.sock", vsock(1)).unwrap();
        fs::write(log(1), "before\n").unwrap();
        output("chown", &["-h", &OWNER.to_string(), &socket(1), &vsock(1), &log(1)]);
        let helper = Helper::start();
        let pid = launch(&helper, 1);
        assert!(fs::read_to_string(log(1)).unwrap().starts_with("before\nconfig "));
        helper.ok("priv.kill_process", &json!({"pid": pid}));
        assert_nothing_left("ended");
        // Another link is somebody's.
        std::os::unix::fs::symlink("/mnt/o/x", socket(1)).unwrap();
        let (_, message) = helper.err(LAUNCH, &request(1));
        assert!(message.contains("is a symlink already"), "{message}");
    }
}

isolated! {
    fn a_program_is_roots_alone() {
        vmm("good");
        let helper = Start::new().config("program_dirs = [\"/mnt/o/bin\", \"/mnt/o/more\"]\n").start();
        let resolve = |requested: &str| helper.call(
            &json!({"method": "priv.resolve_firecracker_binary", "params": {"requested": requested}}).to_string());
        let good = |requested: &str| resolve(requested)["result"]["path"].as_str().map(str::to_owned);
        let told = |requested: &str| {
            let reply = resolve(requested);
            assert_eq!(reply["error"]["code"], "operation_failed", "{reply}");
            reply["error"]["message"].as_str().unwrap().to_owned()
        };
        assert_eq!(good("").as_deref(), Some(VMM));
        assert_eq!(good("firecracker").as_deref(), Some(VMM));
        assert_eq!(good(VMM).as_deref(), Some(VMM));
        assert!(told("banger-qemu").contains("there is no \"banger-qemu\" in /mnt/o/bin, /mnt/o/more"));
        assert!(told("sleep").contains("is not one of") && told("/bin/sh").contains("is not one of"));

        let at = "/mnt/o/more/firecracker";
        make_dir("/mnt/o/more", 0, 0o755);
        for (uid, mode, why) in [
            (OWNER, 0o755, "must be root-owned"),
            (0, 0o775, "writable"),
            (0, 0o757, "writable"),
            (0, 0o644, "not executable"),
            (0, 0o4755, "set-id"),
            (0, 0o2755, "set-id"),
        ] {
            make_file(at, b"#!/bin/sh\n", uid, mode);
            assert!(told(at).contains(why), "{uid} {mode:o}: {}", told(at));
        }
        make_file(at, b"#!/bin/sh\n", 0, 0o755);
        output("setcap", &["cap_net_admin+ep", at]);
        assert!(told(at).contains("file capabilities"));
        fs::remove_file(at).unwrap();
        std::os::unix::fs::symlink(VMM, at).unwrap();
        assert!(told(at).contains("is a symlink"));
        fs::remove_file(at).unwrap();
        make_dir(at, 0, 0o755);
        assert!(told(at).contains("not a regular file"));

        // A directory above it that others can write, or a link of somebody else's; root's own link is fine.
        make_dir("/mnt/o/open", 0, 0o1777);
        make_dir("/mnt/o/open/bin", 0, 0o755);
        make_file("/mnt/o/open/bin/firecracker", b"#!/bin/sh\n", 0, 0o755);
        assert!(told("/mnt/o/open/bin/firecracker").contains("others than root can write"));
        std::os::unix::fs::symlink("open", "/mnt/o/to-open").unwrap();
        assert!(told("/mnt/o/to-open/bin/firecracker").contains("others than root can write"));
        std::os::unix::fs::symlink("../o/bin", "/mnt/o/to-bin").unwrap();
        assert_eq!(good("/mnt/o/to-bin/firecracker").as_deref(), Some("/mnt/o/to-bin/firecracker"));
        std::os::unix::fs::symlink("/mnt/o/round", "/mnt/o/round").unwrap();
        assert!(told("/mnt/o/round/firecracker").contains("can't be reached"));
        make_file("/mnt/s/firecracker", b"#!/bin/sh\n", 0, 0o755);
        assert!(told("/mnt/s/firecracker").contains("others than root can write"));

        // Where there is no firecracker, what does without KVM is named.
        fs::remove_file(VMM).unwrap();
        fs::remove_dir(at).unwrap();
        make_file("/mnt/o/more/banger-qemu", b"#!/bin/sh\n", 0, 0o755);
        assert!(told("").contains("/mnt/o/more/banger-qemu"), "{}", told(""));
    }
}

isolated! {
    fn access_to_a_socket() {
        let helper = Helper::start();
        let ask = |path: &str| helper.call(
            &json!({"method": "priv.ensure_socket_access", "params": {"socket_path": path, "label": "api"}}).to_string());
        let _socket = UnixListener::bind("/mnt/r/vm/a").unwrap();
        output("chmod", &["666", "/mnt/r/vm/a"]);
        assert_eq!(ask("/mnt/r/vm/a")["ok"], true);
        assert_eq!(output("stat", &["-c", "%a %u %g", "/mnt/r/vm/a"]), "600 5501 5501\n");
        let code = |path: &str| ask(path)["error"]["code"].as_str().unwrap_or("ok").to_owned();
        std::os::unix::fs::symlink("a", "/mnt/r/vm/link").unwrap();
        std::os::unix::fs::symlink("vm", "/mnt/r/dir").unwrap();
        make_file("/mnt/r/vm/file", b"", OWNER, 0o644);
        for (path, want) in [
            ("/mnt/r/vm/none", "invalid_path"),
            ("/mnt/r/vm/link", "invalid_path"),
            ("/mnt/r/dir/a", "invalid_path"),
            ("/mnt/r/vm/file", "operation_failed"),
            ("/mnt/r/vm", "operation_failed"),
            ("/mnt/s/a", "invalid_path"),
        ] {
            assert_eq!(code(path), want, "{path}");
        }
        fs::hard_link("/mnt/r/vm/a", "/mnt/r/vm/second").unwrap();
        assert_eq!(code("/mnt/r/vm/a"), "operation_failed");
        let _other = UnixListener::bind("/mnt/r/vm/other").unwrap();
        output("chown", &[&OTHER.to_string(), "/mnt/r/vm/other"]);
        assert_eq!(code("/mnt/r/vm/other"), "operation_failed");
        assert_eq!(output("stat", &["-c", "%u", "/mnt/r/vm/other"]), "5502\n");
    }
}

isolated! {
    fn only_a_chroot_is_removed_and_through_no_link() {
        let helper = Helper::start();
        let code = |path: &str| {
            let params = json!({"chroot_root": path});
            let reply = helper.call(&json!({"method": "priv.cleanup_jailer_chroot", "params": params}).to_string());
            reply["error"]["code"].as_str().unwrap_or("ok").to_owned()
        };
        assert_eq!(code("/mnt/s/jail/firecracker/vm-1/root"), "ok");
        assert_eq!(code("/mnt/s/jail/firecracker/vm-1"), "ok");
        make_dir("/mnt/s/jail/firecracker/vm-1/root", OWNER, 0o755);
        assert_eq!(code("/mnt/s/jail/firecracker/vm-1/root"), "ok");
        assert!(!exists("/mnt/s/jail/firecracker/vm-1/root") && exists("/mnt/s/jail/firecracker/vm-1"));
        make_dir("/mnt/s/jail/firecracker/vm-2", OWNER, 0o755);
        std::os::unix::fs::symlink("/mnt/o", "/mnt/s/jail/firecracker/vm-2/root").unwrap();
        std::os::unix::fs::symlink("/mnt/o", "/mnt/s/jail/firecracker/vm-3").unwrap();
        assert_eq!(code("/mnt/s/jail/firecracker/vm-2/root"), "invalid_path");
        assert_eq!(code("/mnt/s/jail/firecracker/vm-3"), "invalid_path");
        assert_eq!(code("/mnt/s/jail"), "invalid_path");
    }
}
