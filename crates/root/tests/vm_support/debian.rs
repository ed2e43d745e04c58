//! A Debian with banger's agent that is launched through the helper in a jail, saved there, and gone on from.
//!
//! `BANGER_TEST_KERNEL`, `BANGER_TEST_INITRD` and `BANGER_TEST_ROOT` name its files.

use super::common::*;
use super::network;
pub(crate) use super::vm_support::guest::*;
use super::vm_support::jail::*;
use super::vm_support::*;
use agent::client::{entropy, unix_ns};
use agent::protocol::{Interface, Start};
use serde_json::{Value, json};
use std::fs;
use std::io::{Read as _, Write as _};
use std::os::unix::fs::chown;
use std::path::{Path, PathBuf};

pub(crate) const RESTORE: &str = "priv.restore_firecracker";
pub(crate) const STATE: &str = "/mnt/s/images/state";
pub(crate) const MEMORY: &str = "/mnt/s/images/memory";
pub(crate) const BASE_DISK: &str = "/mnt/s/images/base.ext4";

/// What a VM is started by: both are there already, where root alone writes.
#[derive(Clone, Copy)]
pub(crate) struct Programs {
    pub(crate) vmm: &'static str,
    pub(crate) jailer: &'static str,
}

/// A program of the workspace.
pub(crate) fn built(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_BIN_EXE_bangerd-root")).with_file_name(name)
}

/// Puts a program where root alone writes.
pub(crate) fn put(from: &Path, to: &str) {
    make_dir("/mnt/o/bin", 0, 0o755);
    let bytes = fs::read(from).unwrap_or_else(|error| panic!("{from:?}: {error}: cargo build --workspace"));
    make_file(to, &bytes, 0, 0o755);
}

/// VM `n` from the saved one, over that disk.
pub(crate) fn going_on(programs: Programs, n: u32, mib: u64, disk: &str) -> Value {
    let mut asked = jailed(n);
    for kernels in ["kernel_image_path", "kernel_args"] {
        asked.as_object_mut().expect("an object").remove(kernels);
    }
    asked["snapshot"] = json!({"state_path": STATE, "mem_path": MEMORY});
    of(asked, programs, mib, disk)
}

fn of(mut asked: Value, programs: Programs, mib: u64, disk: &str) -> Value {
    asked["binary_path"] = json!(programs.vmm);
    asked["jailer"]["binary"] = json!(programs.jailer);
    asked["drives"] = json!([{"ID": "rootfs", "Path": disk, "ReadOnly": false, "IsRoot": true}]);
    asked["vcpu_count"] = json!(1);
    asked["memory_mib"] = json!(mib);
    asked
}

/// Nothing of VM `n` is there: process, record, link, jail. Guests' records are others'.
pub(crate) fn is_gone(n: u32) -> bool {
    let vms = names(RECORDS).iter().any(|name| name.contains("vm-"));
    vmms().is_empty() && !vms && names("/mnt/r/vm").is_empty() && !Path::new(&vm_dir(n)).exists()
}

/// Launches a Debian, lets it come up to its agent, arms that, saves it beside its disk and ends it. There are taps for
/// VMs 1 to 3, and a way out for the last two.
pub(crate) fn save(programs: Programs, mib: u64) -> Helper {
    make_dir(BASE, OWNER, 0o755);
    for (variable, to) in [
        ("BANGER_TEST_KERNEL", "/mnt/s/kernels/vmlinux"),
        ("BANGER_TEST_INITRD", "/mnt/s/kernels/initrd"),
        ("BANGER_TEST_ROOT", BASE_DISK),
    ] {
        let from = std::env::var(variable).unwrap_or_else(|_| panic!("{variable} names a file for this test"));
        output("cp", &["--reflink=auto", "--sparse=always", &from, to]);
        chown(to, Some(OWNER), Some(OWNER)).expect(to);
    }
    output("mknod", &["-m", "0666", "/mnt/tun", "c", "10", "200"]);
    output("mount", &["--bind", "/mnt/tun", "/dev/net/tun"]);
    network::uplink();
    let helper = Helper::start();
    helper.ok("priv.ensure_bridge", &network::bridge("br-fc", "172.16.0.1"));
    for n in 1..=3 {
        let tap = format!("tap-fc-{n}");
        helper.ok("priv.create_tap", &network::tap(&tap));
        if n > 1 {
            helper.ok("priv.ensure_nat", &network::nat(&format!("172.16.0.{n}"), &tap, true));
        }
    }
    let arguments = "console=ttyS0 reboot=k panic=-1 loglevel=1 cryptomgr.notests random.trust_cpu=on";
    let mut asked = of(with(jailed(1), "kernel_args", json!(arguments)), programs, mib, BASE_DISK);
    asked["initrd_path"] = json!("/mnt/s/kernels/initrd");
    let pid = pid_of(&helper.ok(LAUNCH, &asked));
    assert_eq!(sh(1, "echo 41 >/dev/shm/of_before; sync; echo 1 >/proc/sys/vm/drop_caches; echo up"), "up\n");
    client(1).arm(&[]).expect("armed");
    api(1, "PATCH", "/vm", &json!({"state": "Paused"}));
    api(1, "PUT", "/snapshot/create", &json!({"snapshot_path": "/run/state", "mem_file_path": "/run/memory"}));
    for (name, to) in [("state", STATE), ("memory", MEMORY)] {
        fs::rename(format!("{}/root/run/{name}", vm_dir(1)), to).expect(to);
    }
    helper.ok("priv.kill_process", &json!({"pid": pid}));
    assert!(is_gone(1), "{}", log_text());
    helper
}

/// Makes a request of a VMM's API that must be done.
fn api(n: u32, method: &str, path: &str, body: &Value) {
    let mut stream = connect_to(OWNER, &socket(n)).expect("its API");
    stream.set_read_timeout(Some(PATIENCE)).expect("a limit");
    let body = body.to_string();
    let request = format!(
        "{method} {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: {}\r\n\r\n{body}",
        body.len()
    );
    stream.write_all(request.as_bytes()).expect("asked");
    let mut answer = [0; 12];
    stream.read_exact(&mut answer).expect("an answer");
    assert_eq!(&answer, b"HTTP/1.1 204", "{method} {path}");
}

/// Gives VM `n` its name, address and randomness.
pub(crate) fn start(n: u32) {
    let agent = client(n);
    let identity = Start {
        v: 0,
        unix_ns: unix_ns(),
        entropy: entropy().expect("randomness"),
        hostname: Some(format!("fork-{n}")),
        machine_id: Some(format!("{n:032x}")),
        network: Some(Interface {
            device: "eth0".into(),
            mac: Some(format!("06:00:ac:10:00:{n:02x}")),
            address: format!("172.16.0.{n}/24"),
            gateway: Some([172, 16, 0, 1].into()),
        }),
        resolver: vec![],
        files: vec![],
        exec: None,
    };
    agent.start(identity).expect("started");
}
