//! A guest whose first process is its distribution's own init: systemd.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test may panic")]

#[allow(dead_code, reason = "each file of tests needs a part of it")]
mod world;

use rustix::process::Signal;
use std::process::Command;
use std::time::{Duration, Instant};
use sys::pidfd;
use world::*;

#[test]
fn systemd_is_the_first_process_and_ends_the_machine() {
    isolated_with_packages("systemd_is_the_first_process_and_ends_the_machine", |_| {
        ok(&["vm", "create", "web", "--init", "--memory", "512M"]);
        ok(&["vm", "start", "web"]);
        assert_eq!(ok(&["vm", "exec", "web", "cat", "/proc/1/comm"]), "systemd\n");
        until("all is up", || ok_or_not(&["systemctl", "is-system-running", "--wait"]) == "running\n");
        assert_eq!(ok(&["vm", "exec", "web", "systemctl", "is-active", "dbus", "ssh"]), "active\nactive\n");
        assert_eq!(ok(&["vm", "exec", "web", "hostname"]), "web\n");
        // A service is stopped in order: what it does then is on the disk.
        let unit = "printf '[Service]\\nType=oneshot\\nRemainAfterExit=yes\\nExecStart=true\\nExecStop=touch /root/stopped\\n' \
            >/etc/systemd/system/last.service && systemctl start last";
        ok(&["vm", "exec", "web", "sh", "-c", unit]);
        // What a command has left behind holds nothing up.
        ok(&["vm", "exec", "web", "sh", "-c", "setsid sleep 1000 >/dev/null 2>&1 &"]);

        // Two seconds where the machine has nothing else to do. Where it has, that is waited for.
        let is_emulated = field("web", "/vmm/accel") != "kvm";
        let (out, took) = beside_others(|| {
            let begun = Instant::now();
            (run(&["vm", "stop", "web"]), begun.elapsed())
        });
        assert!(!is_emulated || took > Duration::from_secs(10), "{took:?}");
        let console = ok(&["vm", "logs", "web"]);
        assert_eq!(text(&out.stderr), "", "it ended by itself: {console}");
        assert!(console.contains("reboot: Restarting system"), "by its init: {console}");
        assert!(!console.contains("in its time"), "and not by the agent: {console}");
        let disk = format!("/var/lib/banger/vms/{}/root.ext4", field("web", "/id").as_str().unwrap());
        let said = |program: &str, arguments: &[&str]| {
            let out = Command::new(program).args(arguments).arg(&disk).output().expect(program);
            assert!(out.status.success(), "{}", text(&out.stdout));
            text(&out.stdout).to_owned()
        };
        assert!(!said("e2fsck", &["-fn"]).contains("journal"), "whole, with nothing to be put right");
        assert!(said("debugfs", &["-R", "stat /root/stopped"]).contains("Type: regular"));

        ok(&["vm", "rm", "-f", "web"]);
        assert_eq!(left(), Vec::<String>::new());
    });
}

/// Does something while QEMU has a twentieth of the processor at first, for longer than a VM without an init has to end.
fn beside_others<T>(act: impl FnOnce() -> T) -> T {
    let [vmm] = vmms()[..] else { panic!("one VMM") };
    let children = std::fs::read_to_string(format!("/proc/{vmm}/task/{vmm}/children")).unwrap();
    let qemu = pidfd::open(children.split_whitespace().next().unwrap().parse().unwrap()).unwrap();
    std::thread::scope(|scope| {
        scope.spawn(|| {
            for _ in 0..6 {
                // A guest that KVM runs may have ended by then.
                if qemu.wait_end(Duration::from_millis(100)) {
                    return;
                }
                let _ = qemu.send_signal(Signal::STOP.as_raw());
                std::thread::sleep(Duration::from_secs(2));
                let _ = qemu.send_signal(Signal::CONT.as_raw());
            }
        });
        act()
    })
}

/// What a command in the guest says, however it ends: on a busy machine systemd may not answer yet.
fn ok_or_not(command: &[&str]) -> String {
    text(&run(&[&["vm", "exec", "web"], command].concat()).stdout).to_owned()
}

#[test]
fn an_image_without_an_init_says_so() {
    isolated("an_image_without_an_init_says_so", |_| {
        let out = run(&["vm", "run", "--init", "--memory", "256M", "--", "true"]);
        assert_eq!(out.status.code(), Some(125));
        let said = text(&out.stderr);
        assert!(said.starts_with("error[boot_failed]") && said.contains("no /sbin/init in this image"), "{said}");
        assert!(said.contains("--include systemd-sysv"), "{said}");
        assert_eq!(left(), Vec::<String>::new());
    });
}
