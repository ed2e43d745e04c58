//! Attacks by whoever holds the owner's account: on files, programs, sockets and processes around a launch. Each was
//! tried against a helper that fell for it, or against what it relies on.

#![allow(clippy::disallowed_methods, reason = "a test plays the attacker and the machine around the helper")]

mod common;
mod vm_support;

use common::*;
use rustix::mount::{MountFlags, mount, unmount};
use serde_json::json;
use std::fs;
use std::io::{BufRead, BufReader};
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixListener;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};
use vm_support::*;

/// A process of the attacker's; it ends with the test.
struct Attack(Child);

impl Attack {
    /// Perl's text, as the owner. Returns once it has said a line.
    fn start(script: &str, arguments: &[&str]) -> Attack {
        let become_owner =
            format!("$| = 1; $) = '{OWNER} {OWNER}'; $( = {OWNER}; $> = $< = {OWNER}; $> == {OWNER} or die;");
        let mut command = Command::new("perl");
        command.args(["-e", &format!("{become_owner}\n{script}")]).args(arguments);
        let mut child = command.stdin(Stdio::null()).stdout(Stdio::piped()).spawn().expect("perl");
        let mut said = String::new();
        BufReader::new(child.stdout.take().expect("a pipe")).read_line(&mut said).expect("a line");
        assert_eq!(said, "ready\n", "{script}");
        Attack(child)
    }

    fn end(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

impl Drop for Attack {
    fn drop(&mut self) {
        self.end();
    }
}

/// The CPU time that a process has taken, in clock ticks.
fn ticks(pid: i32) -> u64 {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).expect("the process");
    let fields = stat.rsplit(')').next().expect("fields").split_whitespace();
    fields.skip(11).take(2).map(|n| n.parse::<u64>().expect("ticks")).sum()
}

isolated! {
    fn a_lease_on_a_file_neither_holds_nor_heats_the_helper() {
        vmm("good");
        ground(1);
        make_file(&log(1), b"x", OWNER, 0o600);
        make_file("/mnt/s/logs/1.metrics", b"x", OWNER, 0o600);
        let helper = Helper::start();
        // Who breaks a lease waits lease-break-time (45 s), or asks again and again; renames bring fresh ones for ever.
        let lease = "$SIG{IO} = 'IGNORE'; open(my $f, '+<', $ARGV[0]) or die; fcntl($f, 1024, 1) or die \"lease: $!\"; print \"ready\\n\"; sleep 100";
        for (path, field) in [
            ("/mnt/s/kernels/vmlinux", "kernel_image_path"),
            ("/mnt/s/images/1.ext4", "drives"),
            ("/mnt/s/logs/1.log", "log_path"),
            ("/mnt/s/logs/1.metrics", "metrics_path"),
        ] {
            let mut attack = Attack::start(lease, &[path]);
            let (since, before) = (Instant::now(), ticks(helper.pid()));
            let (code, message) = helper.err(LAUNCH, &request(1));
            assert!(code == "operation_failed" && message.contains(field) && message.contains("lease"), "{message}");
            assert!(since.elapsed() < Duration::from_secs(5) && ticks(helper.pid()) < before + 50, "{path}");
            attack.end();
            assert_nothing_left(path);
        }
        launch(&helper, 1);
    }
}

isolated! {
    fn the_child_can_not_be_stopped_for_good_before_it_is_a_vmm() {
        vmm("good");
        ground(1);
        let helper = Start::new().config("[limits]\nlaunch_seconds = 2\n").start();
        // From its change of user to its execution the child is the owner's to signal, and its number is easily
        // guessed. The tracer makes that moment long; capset is the child's first call in it.
        let slow = ["-f", "-q", "-e", "trace=capset", "-e", "inject=capset:delay_enter=1000000", "-o", "/mnt/strace"];
        let mut strace = Command::new("strace");
        strace.args(slow).args(["-p", &helper.pid().to_string()]).stdin(Stdio::null());
        let mut strace = Attack(strace.spawn().expect("strace"));
        eventually("the tracer", || status(helper.pid(), "TracerPid") != "0");
        // Connected before: the thread that does so is for a moment the owner's as well.
        let mut stream = connect(OWNER);
        stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
        let stopper = "use POSIX; my $p = fork; if (!$p) { POSIX::_exit(0) } waitpid $p, 0; print \"ready\\n\";
            while (1) { kill('STOP', $p + $_) && exit for 1 .. 50 }";
        let mut attack = Attack::start(stopper, &[]);
        let request = json!({"method": LAUNCH, "params": request(1)}).to_string();
        std::io::Write::write_all(&mut stream, request.as_bytes()).unwrap();
        let reply = reply(stream);
        attack.end();
        strace.end();
        assert!(reply["error"]["message"].as_str().unwrap_or_default().contains("can't be executed"), "{reply}");
        assert!(log_text().contains("wait for the report"), "{}", log_text());
        assert_nothing_left("stopped on its way");
        launch(&helper, 1);
    }
}

isolated! {
    fn a_vmm_that_is_traced_leaves_no_zombie() {
        vmm("good");
        ground(1);
        ground(2);
        let helper = Start::new().config("[limits]\nvms = 2\n").start();
        let pid = launch(&helper, 1);
        // PTRACE_SEIZE: a dead tracee is its tracer's to reap, as long as he likes.
        let tracer = "my $p = 0 + $ARGV[0]; syscall(101, 0x4206, $p, 0, 0) == 0 or die \"ptrace: $!\"; print \"ready\\n\"; sleep 1000";
        let mut attack = Attack::start(tracer, &[&pid.to_string()]);
        let since = Instant::now();
        helper.ok("priv.kill_process", &json!({"pid": pid}));
        assert!(since.elapsed() < Duration::from_secs(5));
        assert!(!running(&helper, pid, "") && status(pid, "State").starts_with('Z'));
        // While it is held it counts.
        launch(&helper, 2);
        let (_, message) = helper.err(LAUNCH, &request(1));
        assert!(message.contains("limits.vms"), "{message}");
        attack.end();
        let again = launch(&helper, 1);
        assert!(!exists(&format!("/proc/{pid}")), "a zombie");
        helper.ok("priv.kill_process", &json!({"pid": again}));
        helper.kill();
    }
}

isolated! {
    fn a_file_system_of_a_users_makes_no_program_roots() {
        vmm("good");
        ground(1);
        let helper = Start::new().config("program_dirs = [\"/mnt/o/stick\", \"/mnt/o/bin\"]\n").start();
        let told = |path: &str| helper.err("priv.resolve_firecracker_binary", &json!({"requested": path})).1;
        // A stick or an image that the owner's desktop mounts for him: root's files, by its own account. And not plain
        // text, the mount point.
        make_dir("/mnt/o/stick", 0, 0o755);
        let odd = <std::ffi::OsStr as std::os::unix::ffi::OsStrExt>::from_bytes(b"/mnt/o/\xff");
        fs::create_dir(odd).unwrap();
        mount("tmpfs", odd, "tmpfs", MountFlags::NOSUID, None).unwrap();
        mount("tmpfs", "/mnt/o/stick", "tmpfs", MountFlags::NOSUID | MountFlags::NODEV, Some(c"mode=755")).unwrap();
        make_file("/mnt/o/stick/firecracker", b"#!/bin/sh\n", 0, 0o755);
        assert!(told("/mnt/o/stick/firecracker").contains("nosuid"), "{}", told("/mnt/o/stick/firecracker"));
        assert!(told("firecracker").contains("nosuid"));
        let (_, message) = helper.err(LAUNCH, &with(request(1), "binary_path", json!("/mnt/o/stick/firecracker")));
        assert!(message.contains("nosuid"), "{message}");
        unmount("/mnt/o/stick", rustix::mount::UnmountFlags::empty()).unwrap();
        mount("tmpfs", "/mnt/o/stick", "tmpfs", MountFlags::empty(), Some(c"mode=755")).unwrap();
        make_file("/mnt/o/stick/firecracker", b"#!/bin/sh\n", 0, 0o755);
        assert_eq!(helper.ok("priv.resolve_firecracker_binary", &json!({"requested": ""}))["path"], "/mnt/o/stick/firecracker");
    }
}

isolated! {
    fn a_file_system_that_never_answers_holds_nobody() {
        vmm("good");
        ground(1);
        let _helper = Helper::start();
        // FUSE without a word from its daemon, and root is let in (`user_allow_other`). Below the owner's directory,
        // and as one of root's: there the mount itself is what is refused.
        let mut held = Vec::new();
        for at in ["/mnt/s/fuse", "/mnt/o/fuse"] {
            make_dir(at, OWNER, 0o755);
            let device = fs::File::options().read(true).write(true).open("/dev/fuse").unwrap();
            let data = format!("fd={},rootmode=40000,user_id={OWNER},group_id={OWNER},allow_other", device.as_raw_fd());
            let data = std::ffi::CString::new(data).unwrap();
            mount("fuse", at, "fuse", MountFlags::NOSUID | MountFlags::NODEV, Some(data.as_c_str())).unwrap();
            held.push(device);
        }
        let at = |field: &str, path: &str| {
            let request = json!({"method": LAUNCH, "params": with(request(1), field, json!(path))}).to_string();
            let mut stream = connect(OWNER);
            stream.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
            std::io::Write::write_all(&mut stream, request.as_bytes()).unwrap();
            reply(stream)
        };
        for (field, path, why) in [
            ("binary_path", "/mnt/s/fuse/firecracker", "others than root can write"),
            ("binary_path", "/mnt/o/fuse/firecracker", "nosuid"),
            ("kernel_image_path", "/mnt/s/fuse/vmlinux", "crosses a mount"),
            ("log_path", "/mnt/s/fuse/log", "crosses a mount"),
        ] {
            let reply = at(field, path);
            let message = reply["error"]["message"].as_str().unwrap_or_default();
            assert!(message.contains(why), "{field} {path}: {reply}");
        }
        // The kernel answers who still waits when the connection ends.
        drop(held);
    }
}

isolated! {
    fn nobody_meets_root_at_a_socket_that_is_not_the_owners() {
        vmm("good");
        ground(1);
        let helper = Helper::start();
        // A service's socket that everybody may use, under a second name in the owner's directory (without
        // fs.protected_hardlinks): it would take who connects for root.
        let service = UnixListener::bind("/mnt/r/service").unwrap();
        service.set_nonblocking(true).unwrap();
        output("chmod", &["666", "/mnt/r/service"]);
        fs::hard_link("/mnt/r/service", socket(1)).unwrap();
        for step in ["root's", "the owner's"] {
            let (_, message) = helper.err(LAUNCH, &request(1));
            assert!(message.contains("socket_path") && message.contains("can't be tried"), "{step}: {message}");
            assert!(service.accept().is_err(), "{step}: root connected");
            output("chown", &[&OWNER.to_string(), "/mnt/r/service"]);
        }
    }
}
