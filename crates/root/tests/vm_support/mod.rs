//! Support for the tests of VMs: a stand-in VMM that behaves as badly as it is told, and what a launch needs.

#![allow(dead_code, reason = "each test file uses a part")]

pub(crate) mod guest;
pub(crate) mod jail;

use crate::common::*;
use serde_json::{Value, json};
use std::fs;

/// The stand-in's place: a directory that root alone writes.
pub(crate) const VMM: &str = "/mnt/o/bin/firecracker";
pub(crate) const RECORDS: &str = "/run/banger-root/records";
pub(crate) const LAUNCH: &str = "priv.launch_firecracker";

/// Puts the stand-in there, with that behaviour: `good`, or one of the modes in `vmm.pl`.
pub(crate) fn vmm(mode: &str) {
    make_dir("/mnt/o/bin", 0, 0o755);
    make_file(VMM, include_str!("vmm.pl").replace("@MODE@", mode).as_bytes(), 0, 0o755);
}

/// All that VM `n` needs: tap, kernel, drive.
pub(crate) fn ground(n: u32) {
    if n == 1 {
        output("ip", &["link", "add", "br-fc", "type", "bridge"]);
        make_file("/mnt/s/kernels/vmlinux", b"\x7fELF and so on", OWNER, 0o644);
    }
    tap(&format!("tap-fc-{n}"), OWNER);
    make_file(&format!("/mnt/s/images/{n}.ext4"), &[0; 4096], OWNER, 0o600);
}

/// A tap like `create_tap`'s.
pub(crate) fn tap(name: &str, owner: u32) {
    let owner = owner.to_string();
    output("ip", &["tuntap", "add", name, "mode", "tap", "user", &owner, "group", &owner, "vnet_hdr"]);
    output("ip", &["link", "set", name, "alias", MARK, "master", "br-fc", "up"]);
}

/// The mark of a tap of banger's.
pub(crate) const MARK: &str = "banger tap";

/// The request for VM `n`.
pub(crate) fn request(n: u32) -> Value {
    json!({
        "binary_path": VMM, "vm_id": format!("vm-{n}"),
        "socket_path": socket(n), "vsock_path": vsock(n),
        "log_path": log(n), "metrics_path": format!("/mnt/s/logs/{n}.metrics"),
        "kernel_image_path": "/mnt/s/kernels/vmlinux", "kernel_args": "console=ttyS0",
        "drives": [{"ID": "root-fs", "Path": format!("/mnt/s/images/{n}.ext4"), "ReadOnly": false, "IsRoot": true}],
        "tap_device": format!("tap-fc-{n}"), "vsock_cid": 10 + n, "vcpu_count": 2, "memory_mib": 64,
        "network": {"bridge_name": "br-fc", "bridge_ip": "172.16.0.1", "cidr": "24"},
    })
}

/// The same with one field changed.
pub(crate) fn with(mut request: Value, field: &str, value: Value) -> Value {
    request[field] = value;
    request
}

pub(crate) fn socket(n: u32) -> String {
    format!("/mnt/r/vm/{n}.sock")
}

pub(crate) fn vsock(n: u32) -> String {
    format!("/mnt/r/vm/{n}.vsock")
}

pub(crate) fn log(n: u32) -> String {
    format!("/mnt/s/logs/{n}.log")
}

/// Launches VM `n` and gives its pid.
pub(crate) fn launch(helper: &Helper, n: u32) -> i32 {
    pid_of(&helper.ok(LAUNCH, &request(n)))
}

pub(crate) fn pid_of(result: &Value) -> i32 {
    i32::try_from(result["pid"].as_i64().expect("a pid")).expect("a pid")
}

/// Whether the helper says that this process runs.
pub(crate) fn running(helper: &Helper, pid: i32, api_sock: &str) -> bool {
    let result = helper.ok("priv.process_running", &json!({"pid": pid, "api_sock": api_sock}));
    result["running"].as_bool().expect("a bool")
}

/// A line of a process's `status`.
pub(crate) fn status(pid: i32, key: &str) -> String {
    let text = fs::read_to_string(format!("/proc/{pid}/status")).expect("the process");
    let line = text.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix(':'));
    line.expect(key).trim().to_owned()
}

/// The processes of the owner's, and of root's that bear a VMM's name.
pub(crate) fn vmms() -> Vec<i32> {
    let mut found = Vec::new();
    for entry in fs::read_dir("/proc").expect("/proc").flatten() {
        let Ok(pid) = entry.file_name().to_string_lossy().parse::<i32>() else { continue };
        let text = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
        let line = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        // What has ended and was left to the namespace's first process is that one's to reap.
        if text.contains("\nState:\tZ") && text.contains("\nPPid:\t1\n") {
            continue;
        }
        if text.contains(&format!("\nUid:\t{OWNER}\t")) || String::from_utf8_lossy(&line).contains("--api-sock") {
            found.push(pid);
        }
    }
    found
}

/// The names in a directory.
pub(crate) fn names(dir: &str) -> Vec<String> {
    let entries = fs::read_dir(dir).expect(dir).flatten();
    let mut names: Vec<String> = entries.map(|entry| entry.file_name().to_string_lossy().into_owned()).collect();
    names.sort_unstable();
    names
}

/// All that a VM leaves where its launch or its end is not clean: processes, sockets, records.
pub(crate) fn left() -> (Vec<i32>, Vec<String>, Vec<String>) {
    (vmms(), names("/mnt/r/vm"), names(RECORDS))
}

/// Nothing of any VM is there.
pub(crate) fn assert_nothing_left(when: &str) {
    assert_eq!(left(), (vec![], vec![], vec![]), "{when}\n{}", log_text());
}
