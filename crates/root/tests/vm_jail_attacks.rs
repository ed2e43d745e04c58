//! Attacks on the jails of VMs, by their owner and from inside; and what the machine does at a bad moment.

#![allow(clippy::disallowed_methods, reason = "tests look at the machine in every way there is")]

mod common;
mod vm_support;

use common::*;
use rustix::mount::{MountPropagationFlags, mount_change};
use serde_json::json;
use std::process::Command;
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

isolated! {
    fn a_vmm_that_forks_without_end_ends_whole() {
        jail_ground(1);
        let helper = Start::new().config("[limits]\nvm_processes = 48\n").start();
        // Not before the bound is seen to be there.
        let pid = pid_of(&helper.ok(LAUNCH, &jailed(1)));
        let group = helper.ok("priv.list_resources", &json!({}))["vms"][0]["control_group"].clone();
        let bound = format!("*/banger/{}/pids.max", group.as_str().expect("a name"));
        // Other tests' groups come and go under it: its status says nothing.
        let find = ["/sys/fs/cgroup", "-ignore_readdir_race", "-path", &bound, "-exec", "cat", "{}", ";"];
        let found = Command::new("find").args(find).output().expect("find").stdout;
        assert_eq!(String::from_utf8_lossy(&found), "48\n", "no bound for its processes");
        helper.ok("priv.kill_process", &json!({"pid": pid}));
        let pid = pid_of(&helper.ok(LAUNCH, &with(jailed(1), "kernel_args", json!("bomb"))));
        eventually("it has forked all that it may", || vmms().len() == 48);
        let before = std::time::Instant::now();
        helper.ok("priv.kill_process", &json!({"pid": pid}));
        println!("figure: ended after {:?}", before.elapsed());
        eventually("nothing is left", || left() == (vec![], vec![], vec![]));
        assert!(!log_text().contains("stays"), "{}", log_text());
        assert_gone(1, "killed");
    }
}

isolated! {
    fn what_can_not_be_removed_is_told_and_tried_again_by_the_next_helper() {
        jail_ground(1);
        let helper = Helper::start();
        let pid = pid_of(&helper.ok(LAUNCH, &jailed(1)));
        let kept = format!("{}/root/run", vm_dir(1));
        // Root alone can do that.
        output("chattr", &["+i", &kept]);
        helper.ok("priv.kill_process", &json!({"pid": pid}));
        eventually("it is told", || log_text().contains("vm jail stays"));
        assert_eq!(names(RECORDS), ["vm-vm-1.json"]);
        let (_, message) = helper.err(LAUNCH, &jailed(1));
        assert!(message.contains("an ended VM of that id left"), "{message}");
        assert_eq!(names(RECORDS), ["vm-vm-1.json"], "a launch that is refused changes nothing");
        drop(helper);
        output("chattr", &["-R", "-i", &vm_dir(1)]);
        let _helper = Helper::start();
        assert_gone(1, "the next helper");
    }
}

isolated! {
    fn a_jailer_or_vmm_killed_at_any_step_of_its_launch_leaves_nothing() {
        jail_ground(1);
        assert_left_by_no_killed_process(|| jailed(1));
    }
}

isolated! {
    fn a_launch_that_fails_keeps_its_record_where_its_jail_stays() {
        jail_ground(1);
        let helper = Start::new().config("fault = \"launch_firecracker.access:stop\"\n").start();
        let mut peer = connect(OWNER);
        let asked = json!({"method": LAUNCH, "params": jailed(1)}).to_string();
        std::io::Write::write_all(&mut peer, asked.as_bytes()).expect("sent");
        eventually("it stops", || status(helper.pid(), "State").starts_with('T'));
        let root = format!("{}/root", vm_dir(1));
        output("chattr", &["+i", &format!("{root}/run")]);
        std::fs::remove_file(format!("{root}/vsock.sock")).expect("its socket");
        helper.signal(rustix::process::Signal::CONT);
        let reply = reply(peer).to_string();
        assert!(reply.contains("jail could not be undone"), "{reply}");
        assert_eq!(names(RECORDS), ["vm-vm-1.json"]);
        drop(helper);
        output("chattr", &["-R", "-i", &vm_dir(1)]);
        let _helper = Helper::start();
        assert_gone(1, "the next helper");
    }
}

isolated! {
    fn mounts_upon_mounts_in_a_chroot_are_all_taken_off() {
        jail_ground(1);
        let helper = Helper::start();
        let root = format!("{BASE}/firecracker/old/root");
        make_dir(&format!("{root}/a/b"), OWNER, 0o755);
        let before = machine_mounts();
        for _ in 0..3 {
            for place in [format!("{root}/a/b"), format!("{root}/a")] {
                make_dir(&place, OWNER, 0o755);
                output("mount", &["-t", "tmpfs", "none", &place]);
            }
        }
        helper.ok("priv.cleanup_jailer_chroot", &json!({"chroot_root": root}));
        assert_eq!(machine_mounts(), before);
        assert!(!exists(&root));
        // And over a VM's own root, while it runs.
        let pid = pid_of(&helper.ok(LAUNCH, &jailed(1)));
        for _ in 0..3 {
            output("mount", &["-t", "tmpfs", "none", &format!("{}/root", vm_dir(1))]);
        }
        helper.ok("priv.kill_process", &json!({"pid": pid}));
        assert_gone(1, "killed");
        assert_eq!(machine_mounts(), before);
    }
}

isolated! {
    fn a_chroot_that_is_filled_while_it_is_emptied_holds_up_nobody() {
        use std::sync::atomic::{AtomicBool, Ordering};
        jail_ground(1);
        let helper = Helper::start();
        let root = format!("{BASE}/firecracker/old/root");
        let fill = |n: usize| {
            let dir = format!("{root}/{n}");
            let _ = std::fs::create_dir(&dir);
            (0..500).for_each(|file| drop(std::fs::File::create(format!("{dir}/{file}"))));
        };
        make_dir(&root, OWNER, 0o755);
        // A second's work and more: what others ask takes a fraction of it.
        (0..200).for_each(fill);
        let is_enough = AtomicBool::new(false);
        std::thread::scope(|scope| {
            let filler = scope.spawn(|| (0..200).cycle().take_while(|_| !is_enough.load(Ordering::Relaxed)).for_each(fill));
            let cleanup = scope.spawn(|| helper.ok("priv.cleanup_jailer_chroot", &json!({"chroot_root": root})));
            eventually("it is being emptied", || !exists(&format!("{root}/0/0")) || !exists(&format!("{root}/199/0")));
            let pid = pid_of(&helper.ok(LAUNCH, &jailed(1)));
            helper.ok("priv.kill_process", &json!({"pid": pid}));
            assert_gone(1, "killed");
            assert!(!cleanup.is_finished(), "too few files to tell anything");
            is_enough.store(true, Ordering::Relaxed);
            filler.join().expect("the filler");
            cleanup.join().expect("the cleanup");
        });
        helper.ok("priv.cleanup_jailer_chroot", &json!({"chroot_root": root}));
        assert!(!exists(&root));
    }
}

isolated! {
    fn a_guest_that_prints_without_an_end_fills_no_disk() {
        use std::os::unix::fs::MetadataExt;
        const MEBIBYTE: usize = 1 << 20;
        jail_ground(1);
        let start = || Start::new().config("[limits]\nvm_log_mebibytes = 1\n").start();
        let helper = start();
        let pid = pid_of(&helper.ok(LAUNCH, &jailed(1)));
        let path = jailed(1)["log_path"].as_str().expect("a path").to_owned();
        let prints = || {
            // As its VMM does, by the descriptor that it has.
            let output = std::fs::OpenOptions::new().append(true).open(format!("/proc/{pid}/fd/1"));
            std::io::Write::write_all(&mut output.expect("its output"), &vec![b'x'; 8 * MEBIBYTE]).expect("written");
        };
        let is_bounded = || std::fs::metadata(&path).expect("the log").blocks() * 512 <= 5 * MEBIBYTE as u64 / 4;
        prints();
        eventually("what is old is given back", is_bounded);
        // By a helper that has taken the VM over, too.
        drop(helper);
        let helper = start();
        prints();
        eventually("what is old is given back by the next helper", is_bounded);
        assert!(std::fs::metadata(&path).expect("the log").len() >= 16 * MEBIBYTE as u64);
        // What is no longer its output is nobody's to change.
        std::fs::rename(&path, format!("{path}.kept")).expect("renamed");
        std::fs::write(&path, vec![b'y'; 8 * MEBIBYTE]).expect("another file");
        rustix::fs::chown(&path, Some(rustix::fs::Uid::from_raw(OWNER)), None).expect("the owner's");
        eventually("it is told", || log_text().contains("vm output has no bound"));
        assert!(!is_bounded(), "another file has a hole");
        helper.ok("priv.kill_process", &json!({"pid": pid}));
        assert_gone(1, "killed");
    }
}
