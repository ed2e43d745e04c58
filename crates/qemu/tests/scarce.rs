//! `banger-qemu` where threads are scarce (a limit of the user's, of a container's): a boot that fails for that, at
//! whatever step, leaves nothing behind, and can be tried again.
//!
//! Run as root: the limit counts a user's threads on the whole machine, so the user is one that nobody else is.

mod support;

use std::os::unix::fs::chown;
use std::os::unix::net::UnixStream;
use std::process::{Command, Stdio};
use std::time::Instant;

use support::{PATIENCE, Vmm, children, tiny_kernel};

fn start(user: u32) -> Vmm {
    let dir = tempfile::tempdir().expect("a directory");
    chown(dir.path(), Some(user), Some(user)).expect("root's right");
    // The user may have no way to where the program was built.
    let program = dir.path().join("banger-qemu");
    std::fs::copy(env!("CARGO_BIN_EXE_banger-qemu"), &program).expect("copied");
    let mut command = command(user);
    command.arg(program).arg("--api-sock").arg(dir.path().join("api"));
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null());
    let child = command.spawn().expect("started");
    let vmm = Vmm { dir, child };
    let end = Instant::now() + PATIENCE;
    while UnixStream::connect(vmm.api()).is_err() {
        assert!(Instant::now() < end, "no API socket");
        std::thread::sleep(std::time::Duration::from_millis(5));
    }
    vmm
}

/// A command of that user's.
fn command(user: u32) -> Command {
    let mut command = Command::new("setpriv");
    command.args([format!("--reuid={user}"), format!("--regid={user}"), "--clear-groups".to_owned()]);
    command
}

fn limit(user: u32, vmm: &Vmm, threads: u32) {
    let pid = vmm.child.id().to_string();
    let status = command(user).args(["prlimit", "--pid", &pid, &format!("--nproc={threads}:")]).status();
    assert!(status.expect("prlimit").success());
}

#[test]
fn a_boot_without_threads_leaves_nothing() {
    let (mut failed, mut booted) = (0, 0);
    for threads in 4..40 {
        // Another one each time: the last one's QEMU may still be ending.
        let user = 3_000_000_000 + std::process::id() * 64 + threads;
        let mut vmm = start(user);
        let kernel = tiny_kernel(vmm.dir.path(), "hello from the guest\n");
        let uds = vmm.dir.path().join("v");
        vmm.done("PUT", "/machine-config", r#"{"vcpu_count":1,"mem_size_mib":32}"#);
        vmm.done("PUT", "/boot-source", &serde_json::json!({"kernel_image_path": kernel}).to_string());
        vmm.done("PUT", "/vsock", &serde_json::json!({"guest_cid": 3, "uds_path": uds}).to_string());
        // A connection that is there already, so that the API's own thread is.
        let mut client = UnixStream::connect(vmm.api()).expect("connected");
        support::exchange(&mut client, "GET", "/", "");
        limit(user, &vmm, threads);
        let (status, answer) = support::exchange(&mut client, "PUT", "/actions", r#"{"action_type":"InstanceStart"}"#);
        limit(user, &vmm, 1000);
        if status != 204 {
            assert_eq!(status, 400, "{threads} threads: {answer}");
            assert_eq!(children(vmm.child.id()), Vec::<i32>::new(), "{threads} threads: {answer}");
            assert_eq!(vmm.get("/")["state"], "Not started", "{threads} threads: {answer}");
            assert_eq!(vmm.get("/vm/config")["vsock"]["guest_cid"], 3, "{threads} threads: {answer}");
            assert!(uds.exists());
            vmm.done("PUT", "/actions", r#"{"action_type":"InstanceStart"}"#);
            failed += 1;
        } else {
            booted += 1;
        }
        vmm.wait_for_word("hello from the guest");
        if booted == 3 {
            break;
        }
    }
    assert!(failed > 2 && booted > 0, "{failed} failed, {booted} booted");
}
