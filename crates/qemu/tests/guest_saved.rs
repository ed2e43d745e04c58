//! A Debian guest with banger's agent: paused, saved and loaded with its network and its vsock; its balloon and its
//! drive changed while it runs. `BANGER_TEST_KERNEL`, `BANGER_TEST_INITRD` and `BANGER_TEST_ROOT` name its files, as the
//! test script makes them; without them these tests say so and fail. As root, in network namespaces of their own.

mod support;

use std::io::{Read as _, Write as _};
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use agent::client::{Client, Program};
use support::{PATIENCE, Vmm, program};

const GUEST: &str = "172.16.0.2";

/// A network namespace with a tap that has the guest's way out.
struct Net {
    holder: Child,
}

impl Net {
    fn with_tap(tap: &str) -> Self {
        let holder = Command::new("unshare").args(["--net", "sleep", "3600"]).spawn().expect("unshare");
        let net = Self { holder };
        let own = std::fs::read_link("/proc/self/ns/net").expect("a namespace");
        let end = Instant::now() + PATIENCE;
        while std::fs::read_link(format!("/proc/{}/ns/net", net.holder.id())).is_ok_and(|there| there == own) {
            assert!(Instant::now() < end);
        }
        // With the header that a VMM wants, since a state is bound to it.
        net.run(&["ip", "tuntap", "add", tap, "mode", "tap", "vnet_hdr"]);
        net.run(&["ip", "addr", "add", "172.16.0.1/24", "dev", tap]);
        net.run(&["ip", "link", "set", tap, "up"]);
        net
    }

    fn enter(&self) -> Command {
        let mut command = Command::new("nsenter");
        command.arg(format!("--net=/proc/{}/ns/net", self.holder.id())).arg("--");
        command
    }

    fn run(&self, words: &[&str]) {
        assert!(self.enter().args(words).stdout(Stdio::null()).status().expect("nsenter").success(), "{words:?}");
    }

    /// A `banger-qemu` in here.
    fn vmm(&self) -> Vmm {
        let dir = tempfile::tempdir().expect("a directory");
        let mut command = self.enter();
        command.arg(program().get_program()).arg("--api-sock").arg(dir.path().join("api"));
        command.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::null());
        let child = command.spawn().expect("started");
        let vmm = Vmm { dir, child };
        let end = Instant::now() + PATIENCE;
        while UnixStream::connect(vmm.api()).is_err() {
            assert!(Instant::now() < end, "no API socket");
            std::thread::sleep(Duration::from_millis(5));
        }
        vmm
    }

    fn ping(&self) {
        self.run(&["ping", "-q", "-c", "2", "-i", "0.2", "-W", "10", GUEST]);
    }
}

impl Drop for Net {
    fn drop(&mut self) {
        let _ = self.holder.kill();
        let _ = self.holder.wait();
    }
}

fn named(variable: &str) -> String {
    std::env::var(variable).unwrap_or_else(|_| panic!("{variable} names a file for this test"))
}

/// Boots Debian from a root that nobody writes, up to the agent's answer.
fn debian(net: &Net, tap: &str, more: &[(&str, serde_json::Value)]) -> Vmm {
    let vmm = net.vmm();
    let boot = serde_json::json!({
        "kernel_image_path": named("BANGER_TEST_KERNEL"),
        "initrd_path": named("BANGER_TEST_INITRD"),
        "boot_args": format!(
            "console=ttyS0 reboot=k panic=-1 loglevel=1 cryptomgr.notests random.trust_cpu=on \
             ip={GUEST}::172.16.0.1:255.255.255.0:test:eth0:off"
        ),
    });
    let root = serde_json::json!({
        "drive_id": "rootfs", "is_root_device": true, "is_read_only": true,
        "path_on_host": named("BANGER_TEST_ROOT"),
    });
    let uds = vmm.dir.path().join("v");
    vmm.done("PUT", "/machine-config", r#"{"vcpu_count":1,"mem_size_mib":256}"#);
    vmm.done("PUT", "/boot-source", &boot.to_string());
    vmm.done("PUT", "/drives/rootfs", &root.to_string());
    let nic = serde_json::json!({"iface_id": "eth0", "host_dev_name": tap, "guest_mac": "02:fc:00:00:00:01"});
    vmm.done("PUT", "/network-interfaces/eth0", &nic.to_string());
    vmm.done("PUT", "/vsock", &serde_json::json!({"guest_cid": 3, "uds_path": uds}).to_string());
    for (path, body) in more {
        vmm.done("PUT", path, &body.to_string());
    }
    vmm.done("PUT", "/actions", r#"{"action_type":"InstanceStart"}"#);
    assert_eq!(sh(&uds, "echo up"), "up\n");
    vmm
}

/// Runs a script in the guest by its agent; the call is held while it boots.
fn sh(uds: &Path, script: &str) -> String {
    let end = Instant::now() + 2 * PATIENCE;
    let socket = loop {
        let mut socket = UnixStream::connect(uds).expect("connected");
        socket.set_read_timeout(Some(2 * PATIENCE)).expect("a limit");
        socket.write_all(b"CONNECT 1023\n").expect("written");
        let mut line = Vec::new();
        let mut byte = [0];
        while socket.read(&mut byte).is_ok_and(|got| got == 1) && byte != *b"\n" {
            line.push(byte[0]);
        }
        if line.starts_with(b"OK ") {
            break socket;
        }
        assert!(Instant::now() < end, "the agent does not answer");
    };
    let args = ["/bin/sh", "-c", script];
    let program = Program { args: &args, env: &[], user: "root", cwd: "/", most: 1 << 20 };
    let output = Client::new(socket).and_then(|client| client.exec(program)).expect("run");
    String::from_utf8(output.stdout).expect("text")
}

fn snapshot(dir: &Path) -> serde_json::Value {
    serde_json::json!({"snapshot_path": dir.join("state"), "mem_file_path": dir.join("memory")})
}

fn load(net: &Net, tap: &str, saved: &Path, memory: &str) -> Vmm {
    let vmm = net.vmm();
    let body = serde_json::json!({
        "snapshot_path": saved.join("state"),
        "mem_backend": {"backend_type": "File", "backend_path": memory},
        "network_overrides": [{"iface_id": "eth0", "host_dev_name": tap}],
        "vsock_override": {"uds_path": vmm.dir.path().join("v")},
        "resume_vm": true,
    });
    let begin = Instant::now();
    vmm.done("PUT", "/snapshot/load", &body.to_string());
    let loaded = begin.elapsed();
    assert_eq!(sh(&vmm.dir.path().join("v"), "echo back"), "back\n");
    println!("loaded after {loaded:?}, answered after {:?}", begin.elapsed());
    vmm
}

/// A copy of a file in memory that nobody can change.
fn sealed(file: &Path) -> OwnedFd {
    use rustix::fs::{MemfdFlags, SealFlags, fcntl_add_seals, memfd_create};
    let copy = memfd_create("template", MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING).expect("a memory file");
    let mut copy = std::fs::File::from(copy);
    std::io::copy(&mut std::fs::File::open(file).expect("open"), &mut copy).expect("copied");
    fcntl_add_seals(&copy, SealFlags::WRITE | SealFlags::SHRINK | SealFlags::GROW).expect("sealed");
    copy.into()
}

#[test]
fn a_guest_is_saved_and_two_go_on_from_it_with_network_and_vsock() {
    let (first_net, second_net, third_net) = (Net::with_tap("tap0"), Net::with_tap("two"), Net::with_tap("three"));
    let first = debian(&first_net, "tap0", &[]);
    first_net.ping();
    let uds = first.dir.path().join("v");
    sh(&uds, "echo 41 >/dev/shm/kept; sync; (while :; do sleep 1; done) & true");
    let saved = tempfile::tempdir().expect("a directory");
    // A connection that is open while the VM is saved must not confuse the loaded one.
    let mut open = UnixStream::connect(&uds).expect("connected");
    open.write_all(b"CONNECT 1023\n").expect("written");
    open.read_exact(&mut [0; 3]).expect("an answer");
    first.done("PATCH", "/vm", r#"{"state":"Paused"}"#);
    let begin = Instant::now();
    first.done("PUT", "/snapshot/create", &snapshot(saved.path()).to_string());
    println!("saved in {:?}", begin.elapsed());
    // One from the file; one from a copy that nobody can change, as one who starts many holds it.
    let file = saved.path().join("memory");
    let template = sealed(&file);
    let shared = format!("/proc/{}/fd/{}", std::process::id(), template.as_raw_fd());
    let loaded = std::thread::scope(|threads| {
        let second = threads.spawn(|| load(&second_net, "two", saved.path(), &shared));
        let third = threads.spawn(|| load(&third_net, "three", saved.path(), file.to_str().expect("text")));
        (second.join().expect("loaded"), third.join().expect("loaded"))
    });
    let all = [(&first_net, &first), (&second_net, &loaded.0), (&third_net, &loaded.1)];
    first.done("PATCH", "/vm", r#"{"state":"Resumed"}"#);
    for (n, (net, vmm)) in all.iter().enumerate() {
        net.ping();
        let script = format!("cat /dev/shm/kept; echo {n} >/dev/shm/kept");
        assert_eq!(sh(&vmm.dir.path().join("v"), &script), "41\n", "what one writes, the others don't see");
    }
    // And on: what was loaded is saved with what it wrote.
    let again = tempfile::tempdir().expect("a directory");
    loaded.0.done("PATCH", "/vm", r#"{"state":"Paused"}"#);
    loaded.0.done("PUT", "/snapshot/create", &snapshot(again.path()).to_string());
    drop(loaded);
    let fourth = load(&third_net, "three", again.path(), again.path().join("memory").to_str().expect("text"));
    assert_eq!(sh(&fourth.dir.path().join("v"), "cat /dev/shm/kept"), "1\n");
    third_net.ping();
}

#[test]
fn a_pause_is_time_that_the_guest_does_not_live() {
    let net = Net::with_tap("tap0");
    let vmm = debian(&net, "tap0", &[]);
    let uds = vmm.dir.path().join("v");
    let uptime = || -> f64 {
        let told = sh(&uds, "cat /proc/uptime");
        told.split(' ').next().and_then(|text| text.parse().ok()).expect("seconds")
    };
    let (begin, before) = (Instant::now(), uptime());
    vmm.done("PATCH", "/vm", r#"{"state":"Paused"}"#);
    let mut call = UnixStream::connect(&uds).expect("connected");
    call.write_all(b"CONNECT 1023\n").expect("written");
    call.set_read_timeout(Some(Duration::from_secs(3))).expect("a limit");
    call.read(&mut [0]).expect_err("a paused guest answers");
    vmm.done("PATCH", "/vm", r#"{"state":"Resumed"}"#);
    call.set_read_timeout(Some(PATIENCE)).expect("a limit");
    assert_eq!(call.read(&mut [0]).expect("answered once it goes on"), 1);
    let (lived, passed) = (uptime() - before, begin.elapsed().as_secs_f64());
    assert!(lived < passed - 2.5, "{lived} s of {passed} s");
}

#[test]
fn a_drive_and_the_balloon_change_while_the_guest_runs() {
    let net = Net::with_tap("tap0");
    let dir = tempfile::tempdir().expect("a directory");
    let file = |name: &str, size: usize| {
        let path = dir.path().join(name);
        let mut content = vec![0; size];
        content[..name.len()].copy_from_slice(name.as_bytes());
        std::fs::write(&path, content).expect("written");
        path
    };
    let (one, two, three) = (file("one", 1 << 20), file("two", 2 << 20), file("three", 3 << 20));
    let limit = serde_json::json!({"bandwidth": {"size": 262_144, "refill_time": 1000}});
    let drive =
        serde_json::json!({"drive_id": "data", "is_root_device": false, "path_on_host": one, "rate_limiter": limit});
    let balloon = serde_json::json!({"amount_mib": 0, "deflate_on_oom": true, "stats_polling_interval_s": 1});
    let vmm =
        debian(&net, "tap0", &[("/drives/data", drive), ("/balloon", balloon), ("/entropy", serde_json::json!({}))]);
    let uds = vmm.dir.path().join("v");
    let read = || sh(&uds, "blockdev --flushbufs /dev/vdb; head -c 5 /dev/vdb | tr -d '\\0'; cat /sys/block/vdb/size");
    assert_eq!(read(), "one2048\n");
    // 1 MiB at 256 KiB a second, of which the first 256 KiB may come at once.
    let copy = "dd if=/dev/vdb of=/dev/null bs=64k count=16 iflag=direct 2>/dev/null";
    let timed = || {
        let begin = Instant::now();
        sh(&uds, copy);
        begin.elapsed()
    };
    let slow = timed();
    assert!(slow > Duration::from_millis(2500), "{slow:?}");
    let none = serde_json::json!({"drive_id": "data", "rate_limiter": {"bandwidth": {"size": 0, "refill_time": 0}}});
    vmm.done("PATCH", "/drives/data", &none.to_string());
    let fast = timed();
    assert!(fast < slow / 2, "{fast:?} without a limit, {slow:?} with one");
    for (path, said) in [(&two, "two4096\n"), (&three, "three6144\n"), (&one, "one2048\n")] {
        let change = serde_json::json!({"drive_id": "data", "path_on_host": path});
        vmm.done("PATCH", "/drives/data", &change.to_string());
        assert_eq!(read(), said);
        assert_eq!(vmm.get("/vm/config")["drives"][1]["path_on_host"], serde_json::json!(path));
    }
    sh(&uds, "printf guest | dd of=/dev/vdb conv=notrunc,fsync 2>/dev/null");
    assert_eq!(&std::fs::read(&one).expect("read")[..5], b"guest");
    assert_eq!(&std::fs::read(&two).expect("read")[..3], b"two");
    let missing = serde_json::json!({"drive_id": "data", "path_on_host": "/no/such/file"});
    vmm.refused("PATCH", "/drives/data", &missing.to_string());
    assert_eq!(sh(&uds, "head -c 5 /dev/vdb"), "guest", "as it was");
    let said = vmm.refused("PATCH", "/drives/other", r#"{"drive_id":"other","path_on_host":"/x"}"#);
    assert!(said.contains("Device not found"), "{said}");

    vmm.done("PATCH", "/balloon/statistics", r#"{"stats_polling_interval_s":2}"#);
    let said = vmm.refused("PATCH", "/balloon/statistics", r#"{"stats_polling_interval_s":0}"#);
    assert!(said.ends_with("Statistics cannot be enabled/disabled after activation."), "{said}");
    vmm.done("PATCH", "/balloon", r#"{"amount_mib":64}"#);
    let modules = sh(&uds, "ls /sys/bus/virtio/drivers");
    println!("drivers: {modules:?}; statistics: {}", vmm.get("/balloon/statistics"));
    assert_eq!(vmm.get("/balloon")["amount_mib"], 64);
    vmm.refused("PATCH", "/balloon", r#"{"amount_mib":257}"#);
    vmm.done("PATCH", "/network-interfaces/eth0", r#"{"iface_id":"eth0"}"#);
    let limited = r#"{"iface_id":"eth0","rx_rate_limiter":{"ops":{"size":1,"refill_time":1}}}"#;
    assert!(vmm.refused("PATCH", "/network-interfaces/eth0", limited).contains("not supported"));
}
