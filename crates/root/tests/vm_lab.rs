//! VMs whose root drive is a snapshot, over the kernel's device-mapper, in the lab: `lab/test a_vms_root_drive`.

#![allow(clippy::disallowed_methods, reason = "the bans are the helper's; a test sets its world up by paths")]

mod common;
mod vm_support;
#[path = "disk/world.rs"]
mod world;

mod lab {
    use super::common::{Helper, OWNER, Start, make_file, output};
    use super::vm_support::{LAUNCH, assert_nothing_left, ground, launch, log, pid_of, request, vmm, with};
    use super::world::{BASE, CLEANUP, OnDisk, make, node, nothing_is_left};
    use crate::isolated;
    use serde_json::json;
    use std::fs;
    use std::os::unix::fs::MetadataExt;

    const MIB: u64 = 1 << 20;

    isolated! {
        fn a_vms_root_drive_is_a_snapshot() {
            let _state = OnDisk::state("vm-drive");
            vmm("drives");
            ground(1);
            ground(2);
            make_file(BASE, &[b'b'; 8 << 20], OWNER, 0o644);
            let base = fs::read(BASE).expect("the base");
            let helper = Helper::start();
            let handles = make(&helper, "v", 16 * MIB);
            let drive = json!([{"ID": "root", "Path": node("v"), "ReadOnly": false, "IsRoot": true}]);
            let pid = pid_of(&helper.ok(LAUNCH, &with(request(1), "drives", drive.clone())));
            assert!(fs::read_to_string(log(1)).expect("its log").contains(&format!("wrote {}", node("v"))));
            // No other VM gets it, nobody checks or removes it.
            for (method, params) in [
                (LAUNCH, with(request(2), "drives", drive.clone())),
                ("priv.fsck_snapshot", json!({"dm_dev": node("v")})),
                ("priv.remove_dm_snapshot", json!({"target": node("v")})),
            ] {
                let (code, message) = helper.err(method, &params);
                assert_eq!(code, "operation_failed", "{method}: {message}");
            }
            helper.ok("priv.kill_process", &json!({"pid": pid}));
            assert_nothing_left("killed");
            let mut start = [0; 17];
            std::io::Read::read_exact(&mut fs::File::open(node("v")).expect("the device"), &mut start).expect("read");
            assert_eq!(&start, b"written by the VM");
            assert!(fs::read(BASE).expect("the base") == base, "the base was written");
            // Nor does a VM get the files under it to write.
            for file in ["/mnt/s/images/base.ext4".to_owned(), super::world::store("v")] {
                let under = json!([{"ID": "root", "Path": file, "ReadOnly": false, "IsRoot": true}]);
                let (_, message) = helper.err(LAUNCH, &with(request(1), "drives", under));
                assert!(message.starts_with("drives: the file is in use: /dev/loop"), "{message}");
                assert_nothing_left(&file);
            }
            // One that somebody has mounted or open is no VM's.
            let open = fs::File::options().write(true).open(node("v")).expect("the device");
            let (_, message) = helper.err(LAUNCH, &with(request(1), "drives", drive.clone()));
            assert!(message.contains("drives") && message.contains("in use"), "{message}");
            drop(open);
            assert_nothing_left("refused");
            // A launch that fails gives the device back.
            let owner = fs::metadata(format!("/dev/{}", kernel_name("v"))).expect("the node").uid();
            assert_eq!(owner, OWNER, "as the last launch left it");
            output("chown", &["0:0", &format!("/dev/{}", kernel_name("v"))]);
            drop(helper);
            let helper = Start::new().config("fault = \"launch_firecracker.answer:fail\"\n").start();
            helper.err(LAUNCH, &with(request(1), "drives", drive));
            assert_eq!(fs::metadata(format!("/dev/{}", kernel_name("v"))).expect("the node").uid(), 0);
            drop(helper);
            let helper = Helper::start();
            vmm("good");
            let pid = launch(&helper, 2);
            helper.ok("priv.kill_process", &json!({"pid": pid}));
            helper.ok(CLEANUP, &handles);
            nothing_is_left();
        }
    }

    isolated! {
        fn a_vms_bounds_are_its_control_groups() {
            vmm("good");
            ground(1);
            let helper = Helper::start();
            let pid = launch(&helper, 1);
            let listed = &helper.ok("priv.list_resources", &json!({}))["vms"][0];
            let group = format!("/sys/fs/cgroup/banger/{}", listed["control_group"].as_str().expect("a name"));
            let read = |file: &str| fs::read_to_string(format!("{group}/{file}")).expect(file).trim().to_owned();
            // 64 MiB and 2 CPUs were asked for; the rest is the VMM's own (`vm/cgroup.rs`).
            for (file, value) in [
                ("memory.max", ((64 + 64 / 8 + 640) << 20).to_string()),
                ("pids.max", "1024".to_owned()),
                ("cpu.weight", "200".to_owned()),
                ("cgroup.procs", pid.to_string()),
            ] {
                assert_eq!(read(file), value, "{file}");
            }
            assert!(!crate::common::log_text().contains("no control group"), "{}", crate::common::log_text());
            helper.ok("priv.kill_process", &json!({"pid": pid}));
            assert_nothing_left("killed");
            assert!(!crate::common::exists(&group), "{group}");
        }
    }

    fn kernel_name(id: &str) -> String {
        let target = fs::canonicalize(node(id)).expect("the node");
        let text = output("stat", &["-c", "%Hr:%Lr", target.to_str().expect("text")]);
        format!("dm-{}", text.trim().rsplit(':').next().expect("a minor"))
    }
}
