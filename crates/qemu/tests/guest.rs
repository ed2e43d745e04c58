//! `banger-qemu` with a real QEMU and a real guest: a kernel of a few bytes that prints, echoes and resets.

mod support;

use std::io::{Read as _, Write as _};
use std::time::Duration;

use support::{Vmm, children, kill, program, tiny_kernel, wait_for, wait_until_gone};

const HELLO: &str = "hello from the guest\n";

fn config(dir: &std::path::Path, more: serde_json::Value) -> std::path::PathBuf {
    let mut config = serde_json::json!({
        "boot-source": {"kernel_image_path": tiny_kernel(dir, HELLO), "boot_args": "a -drive file=/etc/passwd,if=none"},
        "machine-config": {"vcpu_count": 1, "mem_size_mib": 32},
    });
    for (key, value) in more.as_object().expect("an object") {
        config[key] = value.clone();
    }
    let path = dir.join("config.json");
    std::fs::write(&path, config.to_string()).expect("written");
    path
}

/// A guest from a configuration file, up to its word.
fn boot(more: serde_json::Value) -> Vmm {
    let dir = tempfile::tempdir().expect("a directory");
    let path = config(dir.path(), more);
    let mut vmm = Vmm::start_in(dir, &["--config-file", path.to_str().expect("text"), "--id", "vm-7"]);
    vmm.wait_for_word("hello from the guest");
    vmm
}

#[test]
fn a_guest_boots_by_the_api_pauses_resumes_and_ends() {
    let mut vmm = Vmm::start(&[]);
    let kernel = tiny_kernel(vmm.dir.path(), HELLO);
    let metrics = vmm.dir.path().join("metrics");
    vmm.done("PUT", "/machine-config", r#"{"vcpu_count":1,"mem_size_mib":32}"#);
    vmm.done("PUT", "/boot-source", &serde_json::json!({"kernel_image_path": kernel}).to_string());
    vmm.done("PUT", "/metrics", &serde_json::json!({"metrics_path": metrics, "emit_id": true}).to_string());
    vmm.done("PUT", "/actions", r#"{"action_type":"InstanceStart"}"#);
    assert_eq!(vmm.get("/")["state"], "Running");
    vmm.wait_for_word("hello from the guest");
    let said = vmm.refused("PUT", "/actions", r#"{"action_type":"InstanceStart"}"#);
    assert_eq!(said, "The requested operation is not supported after starting the microVM.");
    vmm.refused("PUT", "/machine-config", r#"{"vcpu_count":2,"mem_size_mib":32}"#);
    vmm.done("PUT", "/actions", r#"{"action_type":"FlushMetrics"}"#);

    vmm.done("PATCH", "/vm", r#"{"state":"Paused"}"#);
    assert_eq!(vmm.get("/")["state"], "Paused");
    let mut stdin = vmm.stdin();
    stdin.write_all(b"x").expect("written");
    let mut out = vmm.child.stdout.take().expect("a pipe");
    let echo = std::thread::spawn(move || {
        let mut byte = [0];
        out.read_exact(&mut byte).expect("an echo");
        (byte, out)
    });
    std::thread::sleep(Duration::from_millis(300));
    assert!(!echo.is_finished(), "a paused guest answers");
    vmm.done("PATCH", "/vm", r#"{"state":"Paused"}"#);
    vmm.done("PATCH", "/vm", r#"{"state":"Resumed"}"#);
    assert_eq!(echo.join().expect("the echo").0, *b"x");
    assert_eq!(vmm.get("/")["state"], "Running");

    stdin.write_all(b"r").expect("written");
    assert!(vmm.ended().success(), "a guest's reset is an orderly end");
    assert!(!vmm.api().exists());
    let lines = std::fs::read_to_string(metrics).expect("metrics");
    let lines: Vec<serde_json::Value> = lines.lines().map(|line| serde_json::from_str(line).expect("JSON")).collect();
    assert_eq!(lines.len(), 2);
    assert_eq!(lines[1]["id"], "anonymous-instance");
    assert!(lines[1]["latencies_us"]["pause_vm"].as_u64() > Some(0), "{lines:?}");
}

#[test]
fn a_configuration_file_boots_at_once_and_is_told_back() {
    let vmm = boot(serde_json::json!({}));
    let told = vmm.get("/vm/config");
    assert_eq!(told["boot-source"]["boot_args"], "a -drive file=/etc/passwd,if=none");
    assert_eq!(told["machine-config"]["mem_size_mib"], 32);
    assert_eq!(vmm.get("/")["id"], "vm-7");
}

#[test]
fn without_an_api_there_is_no_socket() {
    let dir = tempfile::tempdir().expect("a directory");
    let path = config(dir.path(), serde_json::json!({}));
    let mut child = program().args(["--no-api", "--config-file"]).arg(&path).spawn().expect("started");
    child.stdin.take().expect("a pipe").write_all(b"r").expect("written");
    assert!(wait_for(&mut child).success());
    let mut said = String::new();
    child.stdout.take().expect("a pipe").read_to_string(&mut said).expect("read");
    assert!(said.contains("hello from the guest"), "{said}");
}

#[test]
fn qemu_dies_with_its_front_end() {
    let mut vmm = boot(serde_json::json!({}));
    let qemu = vmm.qemu().expect("QEMU");
    vmm.signal("KILL");
    vmm.ended();
    wait_until_gone(qemu);
}

#[test]
fn the_front_end_ends_with_qemu() {
    let mut vmm = boot(serde_json::json!({}));
    kill("KILL", vmm.qemu().expect("QEMU"));
    assert_eq!(vmm.ended().code(), Some(1));
    assert!(!vmm.api().exists());
}

#[test]
fn a_signal_ends_both_and_takes_the_sockets_away() {
    for (signal, code, state) in [("TERM", 143, "Resumed"), ("INT", 130, "Paused")] {
        let dir = tempfile::tempdir().expect("a directory");
        let vsock = dir.path().join("v.sock");
        let mut vmm = boot(serde_json::json!({"vsock": {"guest_cid": 3, "uds_path": vsock}}));
        vmm.done("PATCH", "/vm", &format!(r#"{{"state":"{state}"}}"#));
        assert!(vsock.exists());
        let qemu = vmm.qemu().expect("QEMU");
        vmm.signal(signal);
        assert_eq!(vmm.ended().code(), Some(code));
        wait_until_gone(qemu);
        assert!(!vsock.exists() && !vmm.api().exists());
    }
}

/// What QEMU holds: no environment, no new rights, no directory, and of files only those of its VM.
#[test]
fn qemu_holds_only_what_it_is_given() {
    let dir = tempfile::tempdir().expect("a directory");
    let disk = dir.path().join("disk,readonly=off,if=none");
    std::fs::write(&disk, vec![0; 1 << 20]).expect("written");
    let mut vmm = boot(serde_json::json!({"drives": [{
        "drive_id": "root", "is_root_device": true, "is_read_only": true, "path_on_host": disk,
    }]}));
    let qemu = vmm.qemu().expect("QEMU");
    let proc = std::path::PathBuf::from(format!("/proc/{qemu}"));
    assert_eq!(std::fs::read(proc.join("environ")).expect("environ"), b"");
    assert_eq!(std::fs::read_link(proc.join("cwd")).expect("cwd").to_str(), Some("/"));
    let status = std::fs::read_to_string(proc.join("status")).expect("status");
    for line in ["NoNewPrivs:\t1", "Seccomp:\t2"] {
        assert!(status.contains(line), "{line} is not in {status}");
    }
    let mut files = Vec::new();
    for entry in std::fs::read_dir(proc.join("fd")).expect("fd").flatten() {
        let target = std::fs::read_link(entry.path()).unwrap_or_default().to_string_lossy().into_owned();
        if target.starts_with('/') && !target.starts_with("/memfd:") && !target.starts_with("/dev/null") {
            let fdinfo = std::fs::read_to_string(proc.join("fdinfo").join(entry.file_name())).unwrap_or_default();
            let writable = fdinfo.lines().any(|line| line.starts_with("flags:") && !line.ends_with('0'));
            files.push((target, writable));
        }
    }
    let kernel = vmm.dir.path().join("kernel").display().to_string();
    for (file, writable) in &files {
        assert!(*file == kernel || *file == disk.display().to_string(), "{files:?}");
        assert!(!writable, "{files:?}");
    }
    let arguments = std::fs::read_to_string(proc.join("cmdline")).expect("cmdline");
    assert!(!arguments.contains("readonly=off"), "{arguments:?}");
    assert_eq!(arguments.split('\0').filter(|argument| argument.contains("/etc/passwd")).count(), 1);
    vmm.signal("TERM");
    vmm.ended();
}

/// Of its blocks, that is, which are all advised to have some (`hg`) unless that is refused. One that is shorter than a huge page,
/// as the end of a longer one with other rights is, has none in any case.
#[test]
fn qemu_has_huge_pages_only_where_they_are_of_use() {
    let vmm = boot(serde_json::json!({}));
    let [qemu] = children(vmm.child.id())[..] else { panic!("one child") };
    let maps = std::fs::read_to_string(format!("/proc/{qemu}/smaps")).expect("readable");
    let mut size = 0;
    let mut advised = Vec::new();
    for line in maps.lines() {
        if let Some(told) = line.strip_prefix("Size:") {
            size = told.trim().trim_end_matches(" kB").parse::<u64>().expect("a number");
        } else if line.starts_with("VmFlags:") && line.split(' ').any(|flag| flag == "hg") {
            advised.push(size);
        }
    }
    assert!(!advised.iter().any(|kib| (2 << 10..4 << 10).contains(kib)), "{advised:?} KiB");
    let kernel_has_some = std::path::Path::new("/sys/kernel/mm/transparent_hugepage").exists();
    assert_eq!(advised.contains(&(32 << 10)), kernel_has_some, "the guest's memory: {advised:?} KiB");
}

#[test]
fn a_boot_that_fails_is_told_and_can_be_tried_again() {
    let mut vmm = Vmm::start(&[]);
    let said = vmm.refused("PUT", "/actions", r#"{"action_type":"InstanceStart"}"#);
    assert!(said.contains("without kernel configuration"), "{said}");
    let bad = vmm.dir.path().join("bad");
    std::fs::write(&bad, [&b"\x7fELF\x02\x01\x01"[..], &[0; 4096]].concat()).expect("written");
    vmm.done("PUT", "/machine-config", r#"{"vcpu_count":1,"mem_size_mib":32}"#);
    vmm.done("PUT", "/boot-source", &serde_json::json!({"kernel_image_path": bad}).to_string());
    let said = vmm.refused("PUT", "/actions", r#"{"action_type":"InstanceStart"}"#);
    assert!(said.starts_with("Start microvm error: QEMU"), "{said}");
    assert_eq!(vmm.get("/")["state"], "Not started");
    assert_eq!(children(vmm.child.id()), Vec::<i32>::new());
    let kernel = tiny_kernel(vmm.dir.path(), HELLO);
    vmm.done("PUT", "/boot-source", &serde_json::json!({"kernel_image_path": kernel}).to_string());
    vmm.done("PUT", "/actions", r#"{"action_type":"InstanceStart"}"#);
    vmm.wait_for_word("hello from the guest");
}

/// A drive that two would write is refused to the second: QEMU locks it, also where it opens nothing by a path.
#[test]
fn a_drive_has_one_writer() {
    let dir = tempfile::tempdir().expect("a directory");
    let disk = dir.path().join("disk");
    std::fs::write(&disk, vec![0; 1 << 20]).expect("written");
    let drive = serde_json::json!({"drive_id": "d", "is_root_device": false, "path_on_host": disk});
    let _first = boot(serde_json::json!({"drives": [drive]}));
    let second = Vmm::start(&[]);
    let kernel = tiny_kernel(second.dir.path(), HELLO);
    second.done("PUT", "/boot-source", &serde_json::json!({"kernel_image_path": kernel}).to_string());
    second.done("PUT", "/drives/d", &drive.to_string());
    let said = second.refused("PUT", "/actions", r#"{"action_type":"InstanceStart"}"#);
    assert!(said.contains("lock"), "{said}");
}

#[test]
fn the_console_goes_to_the_file_that_is_named() {
    let vmm = Vmm::start(&[]);
    let kernel = tiny_kernel(vmm.dir.path(), HELLO);
    let console = vmm.dir.path().join("console");
    let limit = serde_json::json!({"size": 5, "refill_time": 3_600_000});
    assert!(vmm.refused("PUT", "/serial", &serde_json::json!({"rate_limiter": limit}).to_string()).contains("serial"));
    let serial = serde_json::json!({"serial_out_path": console, "rate_limiter": limit});
    vmm.done("PUT", "/serial", &serial.to_string());
    vmm.done("PUT", "/boot-source", &serde_json::json!({"kernel_image_path": kernel}).to_string());
    vmm.done("PUT", "/machine-config", r#"{"vcpu_count":1,"mem_size_mib":32}"#);
    vmm.done("PUT", "/actions", r#"{"action_type":"InstanceStart"}"#);
    let end = std::time::Instant::now() + support::PATIENCE;
    while std::fs::read(&console).expect("a file").len() < 5 {
        assert!(std::time::Instant::now() < end, "nothing came");
    }
    std::thread::sleep(Duration::from_millis(200));
    assert_eq!(std::fs::read_to_string(&console).expect("text"), "hello", "what is beyond the limit is dropped");
    assert_eq!(vmm.get("/")["state"], "Running");
}

/// What Firecracker says of a VM that runs and has none of these.
#[test]
fn a_running_vm_says_what_it_has_not() {
    let vmm = boot(serde_json::json!({}));
    let after = "The requested operation is not supported after starting the microVM.";
    let none = "Failed perform action on device: Device not found";
    for (method, path, body, said) in [
        ("PUT", "/drives/a", r#"{"drive_id":"a","is_root_device":false,"path_on_host":"/x"}"#, "PCI is not enabled"),
        ("DELETE", "/drives/a", "", "PCI is not enabled"),
        ("PUT", "/balloon", r#"{"amount_mib":1,"deflate_on_oom":true}"#, after),
        ("PUT", "/entropy", "{}", after),
        ("PUT", "/serial", "{}", after),
        ("PUT", "/cpu-config", "{}", after),
        ("PUT", "/mmds/config", "{}", after),
        ("GET", "/balloon", "", &format!("Internal VMM error: {none}")),
        ("GET", "/balloon/statistics", "", &format!("Internal VMM error: {none}")),
        ("PATCH", "/balloon", r#"{"amount_mib":1}"#, &format!("Balloon update error: {none}")),
        ("GET", "/balloon/hinting/status", "", &format!("Balloon update error: {none}")),
        ("GET", "/hotplug/memory", "", &format!("Internal VMM error: {none}")),
        (
            "PATCH",
            "/network-interfaces/a",
            r#"{"iface_id":"a"}"#,
            &format!("Network config error: Unable to update the net device: {none}"),
        ),
    ] {
        assert_eq!(vmm.refused(method, path, body), said, "{method} {path}");
    }
}
