//! Attacks on the jails of VMs, by their owner and from inside; and what the machine does at a bad moment.

#![allow(clippy::disallowed_methods, reason = "tests look at the machine in every way there is")]

mod common;
mod vm_support;

use common::*;
use rustix::mount::{MountPropagationFlags, mount_change};
use serde_json::json;
use vm_support::jail::*;
use vm_support::*;

isolated! {
    fn a_machine_that_shares_its_mounts_sees_none_of_a_jails() {
        jail_ground(1);
        // As systemd has them: all mounts are shared.
        mount_change("/", MountPropagationFlags::SHARED | MountPropagationFlags::REC).expect("shared mounts");
        let helper = Helper::start();
        let mounts = machine_mounts();
        let pid = pid_of(&helper.ok(LAUNCH, &jailed(1)));
        assert_eq!(machine_mounts(), mounts, "while it runs");
        // And the jail sees none of the machine's, made in its root or elsewhere.
        let inside = || std::fs::read_to_string(format!("/proc/{pid}/mountinfo")).expect("its mounts");
        let before = inside();
        let place = format!("{}/root/run", vm_dir(1));
        output("mount", &["-t", "tmpfs", "none", &place]);
        assert_eq!(inside(), before, "a mount in its root");
        output("umount", &[&place]);
        helper.ok("priv.kill_process", &json!({"pid": pid}));
        assert_gone(1, "killed");
        assert_eq!(machine_mounts(), mounts, "when it has ended");
    }
}
