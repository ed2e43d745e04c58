//! Support for the tests of jailed VMs: a jailer, a static stand-in VMM, requests with a jail.

use super::*;
use std::path::{Path, PathBuf};

pub(crate) const BASE: &str = "/mnt/s/jail";
pub(crate) const JAILER: &str = "/mnt/o/bin/jailer";
/// Names Firecracker's own jailer, where there is one: the same tests, over that one.
pub(crate) const REAL_JAILER: &str = "BANGER_TEST_JAILER";

/// Puts the jailer and a VMM where root alone writes, and makes what VM 1 needs.
pub(crate) fn jail_ground(machines: u32) {
    make_dir("/mnt/o/bin", 0, 0o755);
    let built = std::env::var_os(REAL_JAILER).map_or_else(
        || PathBuf::from(env!("CARGO_BIN_EXE_bangerd-root")).with_file_name("banger-jailer"),
        PathBuf::from,
    );
    assert!(built.exists(), "{built:?} is missing: cargo build -p jailer");
    make_file(JAILER, &fs::read(built).expect("the jailer"), 0, 0o755);
    let source = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/vm_support/vmm.c");
    output("cc", &["-static", "-O1", "-o", VMM, source]);
    fs::set_permissions(VMM, std::os::unix::fs::PermissionsExt::from_mode(0o755)).expect("mode");
    make_dir(BASE, OWNER, 0o755);
    for n in 1..=machines {
        ground(n);
    }
    make_file("/mnt/s/kernels/initrd", b"initrd", OWNER, 0o644);
    make_file("/mnt/s/images/data", &[b'd'; 4096], OWNER, 0o600);
}

/// Whether it is this project's jailer.
pub(crate) fn is_ours() -> bool {
    std::env::var_os(REAL_JAILER).is_none()
}

pub(crate) fn jailed(n: u32) -> Value {
    let jailer = json!({"binary": JAILER, "chroot_base_dir": BASE, "uid": OWNER, "gid": OWNER});
    with(request(n), "jailer", jailer)
}

pub(crate) fn vm_dir(n: u32) -> String {
    format!("{BASE}/firecracker/vm-{n}")
}

pub(crate) fn machine_mounts() -> String {
    fs::read_to_string("/proc/self/mountinfo").expect("mounts")
}

/// Nothing of VM `n` is there: process, record, link, jail.
pub(crate) fn assert_gone(n: u32, when: &str) {
    assert_nothing_left(when);
    assert!(!Path::new(&vm_dir(n)).exists(), "{when}: {}\n{}", vm_dir(n), log_text());
}

/// A start of VM 1 that fails, or whose helper is killed, at any of its steps leaves nothing, and the next one brings the
/// VM. `asked` makes each request and what it needs anew; `failed` looks at more where a step has failed.
pub(crate) fn assert_left_by_no_step(method: &str, steps: &[&str], asked: impl Fn() -> Value, failed: impl Fn(&str)) {
    let operation = method.trim_start_matches("priv.");
    let faulty = |step: &str, fault| Start::new().config(&format!("fault = \"{operation}.{step}:{fault}\"\n")).start();
    for step in steps.iter().chain(&["commit"]) {
        let helper = faulty(step, "fail");
        let mounts = machine_mounts();
        let (_, message) = helper.err(method, &asked());
        assert!(message.contains(step), "{message}");
        assert_gone(1, &format!("{step} failed"));
        assert_eq!(machine_mounts(), mounts);
        failed(step);
    }
    for step in steps {
        let mut helper = faulty(step, "kill");
        let mut peer = connect(OWNER);
        let request = json!({"method": method, "params": asked()}).to_string();
        std::io::Write::write_all(&mut peer, request.as_bytes()).expect("sent");
        assert_eq!(std::os::unix::process::ExitStatusExt::signal(&helper.wait()), Some(9), "{step}");
        drop(helper);
        let helper = Helper::start();
        let gone = || left() == (vec![], vec![], vec![]) && !Path::new(&vm_dir(1)).exists();
        eventually(&format!("{step}: nothing is left"), gone);
        let pid = pid_of(&helper.ok(method, &asked()));
        helper.ok("priv.kill_process", &json!({"pid": pid}));
        assert_gone(1, step);
    }
}

/// A launch of VM 1 whose process is killed at any step from its fork on leaves nothing: it waits to be let go, then it is
/// the jailer or the VMM.
pub(crate) fn assert_left_by_no_killed_process(asked: impl Fn() -> Value) {
    let mounts = machine_mounts();
    for step in ["record", "port", "start", "answer", "access", "commit"] {
        let helper = Start::new().config(&format!("fault = \"launch_firecracker.{step}:stop\"\n")).start();
        let mut peer = connect(OWNER);
        let request = json!({"method": LAUNCH, "params": asked()}).to_string();
        std::io::Write::write_all(&mut peer, request.as_bytes()).expect("sent");
        eventually("it stops", || status(helper.pid(), "State").starts_with('T'));
        let child = children(helper.pid());
        let [child] = child[..] else { panic!("{step}: {child:?}") };
        let child = rustix::process::Pid::from_raw(child).expect("a pid");
        rustix::process::kill_process(child, rustix::process::Signal::KILL).expect("killed");
        helper.signal(rustix::process::Signal::CONT);
        let reply = reply(peer);
        // Behind its own answer it has run.
        assert_eq!(reply["ok"], matches!(step, "access" | "commit"), "killed before {step}: {reply}");
        let gone = || left() == (vec![], vec![], vec![]) && !Path::new(&vm_dir(1)).exists();
        eventually(&format!("killed before {step}: nothing is left"), gone);
        assert!(children(helper.pid()).is_empty(), "{step}: it is waited for");
        assert_eq!(machine_mounts(), mounts, "{step}");
    }
}

/// The processes that a process has started and not waited for.
fn children(of: i32) -> Vec<i32> {
    let parent = of.to_string();
    // One that has ended meanwhile has no status.
    let status = |pid: i32| std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let all = names("/proc").into_iter().filter_map(|name| name.parse().ok());
    all.filter(|&pid| status(pid).lines().any(|line| line.strip_prefix("PPid:\t") == Some(&parent))).collect()
}
