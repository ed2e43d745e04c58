//! `banger-qemu` where descriptors are scarce: a boot that fails for that, at whatever step, leaves nothing behind.

mod support;

use std::os::unix::net::UnixStream;
use std::process::{Command, Stdio};
use std::time::Instant;

use support::{PATIENCE, Vmm, children, tiny_kernel, wait_until_gone};

/// A `banger-qemu` that can have so many descriptors; `None` where that is too few for its API.
fn start(descriptors: u32) -> Option<Vmm> {
    let dir = tempfile::tempdir().expect("a directory");
    let mut command = Command::new("prlimit");
    command.arg(format!("--nofile={descriptors}:{descriptors}")).arg(env!("CARGO_BIN_EXE_banger-qemu"));
    command.arg("--api-sock").arg(dir.path().join("api"));
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null());
    let child = command.spawn().expect("started");
    let mut vmm = Vmm { dir, child };
    let end = Instant::now() + PATIENCE;
    while UnixStream::connect(vmm.api()).is_err() {
        assert!(Instant::now() < end, "no API socket");
        if vmm.child.try_wait().expect("a status").is_some() {
            return None;
        }
        std::thread::sleep(std::time::Duration::from_millis(5));
    }
    Some(vmm)
}

#[test]
fn a_boot_without_descriptors_leaves_nothing() {
    let (mut failed, mut booted) = (0, 0);
    for descriptors in 10..40 {
        let Some(mut vmm) = start(descriptors) else { continue };
        let kernel = tiny_kernel(vmm.dir.path(), "hello from the guest\n");
        let uds = vmm.dir.path().join("v");
        vmm.done("PUT", "/machine-config", r#"{"vcpu_count":1,"mem_size_mib":32}"#);
        vmm.done("PUT", "/boot-source", &serde_json::json!({"kernel_image_path": kernel}).to_string());
        vmm.done("PUT", "/vsock", &serde_json::json!({"guest_cid": 3, "uds_path": uds}).to_string());
        let (status, answer) = vmm.ask("PUT", "/actions", r#"{"action_type":"InstanceStart"}"#);
        if status == 204 {
            vmm.wait_for_word("hello from the guest");
            booted += 1;
            if booted == 3 {
                break;
            }
            continue;
        }
        assert_eq!(status, 400, "{descriptors} descriptors: {answer}");
        assert_eq!(children(vmm.child.id()), Vec::<i32>::new(), "{descriptors} descriptors: {answer}");
        assert_eq!(vmm.get("/")["state"], "Not started");
        assert_eq!(vmm.get("/vm/config")["vsock"]["guest_cid"], 3, "{descriptors} descriptors: {answer}");
        assert!(uds.exists());
        failed += 1;
        vmm.signal("TERM");
        vmm.ended();
        wait_until_gone(i32::try_from(vmm.child.id()).expect("a number"));
    }
    assert!(failed > 2 && booted > 0, "{failed} failed, {booted} booted");
}
