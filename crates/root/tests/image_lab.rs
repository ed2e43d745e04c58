//! Files in snapshots, and the check of a snapshot's file system, over the kernel's device-mapper, in the lab:
//! `lab/test`.

#![allow(clippy::disallowed_methods, reason = "the bans are the helper's; a test sets its world up by paths")]

mod common;
mod image_support;
mod vm_support;
#[path = "disk/world.rs"]
mod world;

mod lab {
    use super::common::{Helper, eventually, make_dir, output};
    use super::image_support::{
        assert_clean, helper, helper_with, inside, install, make_image, read, read_error, write, write_params,
    };
    use super::vm_support::{request, with};
    use super::world::{BASE, CLEANUP, CREATE, OnDisk, make, new, node, nothing_is_left};
    use crate::isolated;
    use serde_json::json;
    use std::fs;
    use std::io::Write;
    use std::process::Command;
    use std::time::{Duration, Instant};

    const FSCK: &str = "priv.fsck_snapshot";
    const MIB: u64 = 1 << 20;

    fn fsck(helper: &Helper, id: &str) -> Result<(), String> {
        let request = json!({"method": FSCK, "params": {"dm_dev": node(id)}}).to_string();
        let reply = helper.call(&request);
        if reply["ok"] == true {
            Ok(())
        } else {
            Err(reply["error"]["message"].as_str().expect("a message").to_owned())
        }
    }

    isolated! {
        fn what_was_written_to_a_snapshot_is_there_for_a_mount_and_the_base_is_as_it_was() {
            let _state = OnDisk::state("image-write");
            install();
            make_image(BASE, 32, &[]);
            let base = fs::read(BASE).expect("the base");
            let helper = helper();
            let handles = make(&helper, "w", 16 * MIB);
            let big = b"through a snapshot\n".repeat(20_000);
            write(&helper, &node("w"), &[("/etc/hostname", b"copy\n", 0), ("/srv/big", &big, 0o600)]);
            assert_eq!(read(&helper, &node("w"), "/srv/big"), big);
            assert_eq!(read_error(&helper, &node("w"), "/none").0, "operation_failed");
            assert_clean(&node("w"));
            make_dir("/mnt/mounted", 0, 0o755);
            output("mount", &[&node("w"), "/mnt/mounted"]);
            let seen = (fs::read("/mnt/mounted/srv/big"), fs::read("/mnt/mounted/etc/hostname"));
            // Mounted it is neither written nor checked.
            let (code, message) = helper.err("priv.write_ext4_files", &write_params(&node("w"), &[("/x", b"x", 0)]));
            assert!(code == "operation_failed" && message.contains("/mnt/mounted"), "{message}");
            let message = fsck(&helper, "w").expect_err("it is mounted");
            assert!(message.contains("/mnt/mounted"), "{message}");
            output("umount", &["/mnt/mounted"]);
            assert_eq!((seen.0.expect("read"), seen.1.expect("read")), (big, b"copy\n".to_vec()));
            fsck(&helper, "w").expect("clean");
            assert!(fs::read(BASE).expect("the base") == base, "the base was written");
            helper.ok(CLEANUP, &handles);
            nothing_is_left();
        }
    }

    isolated! {
        fn a_file_system_is_repaired_or_the_error_says_why_not() {
            let _state = OnDisk::state("image-fsck");
            install();
            make_image(BASE, 32, &[]);
            let helper = helper();
            let handles = make(&helper, "f", 64 * MIB);
            fsck(&helper, "f").expect("clean");
            output("debugfs", &["-w", "-R", "set_inode_field /etc/motd links_count 9", &node("f")]);
            assert!(!Command::new("e2fsck").args(["-fn", &node("f")]).status().expect("e2fsck").success());
            fsck(&helper, "f").expect("repaired");
            assert_clean(&node("f"));
            assert_eq!(inside(&node("f"), "/etc/hostname").as_deref(), Some(&b"guest\n"[..]));

            let device = fs::File::options().write(true).open(node("f")).expect("the device");
            (&device).write_all(&vec![0; 30 << 20]).and_then(|()| device.sync_all()).expect("zeros");
            let message = fsck(&helper, "f").expect_err("somebody has it open");
            assert!(message.contains("process"), "{message}");
            drop(device);
            let message = fsck(&helper, "f").expect_err("nothing of it is left");
            assert!(message.contains("ended with status 8") && message.contains("uperblock"), "{message}");
            let missing = fsck(&helper, "none").expect_err("it is not there");
            assert!(missing.contains("there is no snapshot"), "{missing}");
            helper.ok(CLEANUP, &handles);
            nothing_is_left();
        }
    }

    isolated! {
        fn e2fsck_has_nothing_but_its_device() {
            let _state = OnDisk::state("image-rights");
            install();
            make_image(BASE, 256, &["-N", "200000"]);
            let helper = helper_with("worker_uid = 61300");
            let handles = make(&helper, "r", 16 * MIB);
            let mut seen = None;
            std::thread::scope(|scope| {
                let check = scope.spawn(|| (0..20).try_for_each(|_| fsck(&helper, "r")));
                eventually("e2fsck is seen", || {
                    seen = seen.take().or_else(|| look("e2fsck"));
                    seen.is_some() || check.is_finished()
                });
                check.join().expect("the thread").expect("clean");
            });
            let (status, root, dev) = seen.expect("e2fsck was seen");
            for line in ["Uid:\t61300\t61300\t61300\t61300", "CapEff:\t0000000000000000", "CapBnd:\t0000000000000000"] {
                assert!(status.contains(line), "{line}: {status}");
            }
            for line in ["Seccomp:\t2", "NoNewPrivs:\t1", "Groups:\t \n"] {
                assert!(status.contains(line), "{line}: {status}");
            }
            assert_eq!((root, dev), (vec!["dev".into(), "lib".into(), "lib64".into()], vec!["snapshot".to_owned()]));
            helper.ok(CLEANUP, &handles);
            nothing_is_left();
        }
    }

    isolated! {
        fn who_waits_for_a_check_is_told_so_before_it_ends() {
            let _state = OnDisk::state("image-wait");
            install();
            make_image(BASE, 256, &["-N", "200000"]);
            let helper = helper_with("[limits]\nimage_seconds = 2");
            let handles = make(&helper, "h", 16 * MIB);
            let drives = json!([{"ID": "root-fs", "Path": node("h"), "ReadOnly": false, "IsRoot": true}]);
            let launch = with(request(1), "drives", drives);
            std::thread::scope(|scope| {
                let check = scope.spawn(|| (0..20).try_for_each(|_| fsck(&helper, "h")));
                // As long as a check of a large disk takes.
                let mut stopped = None;
                eventually("e2fsck is stopped", || {
                    stopped = stopped.take().or_else(stop_e2fsck);
                    stopped.is_some() || check.is_finished()
                });
                let stopped = stopped.expect("e2fsck was seen");
                let told: Vec<(Duration, String, String)> = [
                    ("priv.remove_dm_snapshot", json!({"target": node("h")})),
                    (CLEANUP, handles.clone()),
                    (CREATE, new("h")),
                    ("priv.launch_firecracker", launch),
                    ("priv.write_ext4_files", write_params(&node("h"), &[("/x", b"x", 0)])),
                ]
                .map(|(method, params)| {
                    let begun = Instant::now();
                    let reply = helper.call(&json!({"method": method, "params": params}).to_string());
                    (begun.elapsed(), method.to_owned(), reply["error"]["message"].as_str().unwrap_or("done").to_owned())
                })
                .into();
                rustix::process::kill_process(stopped, rustix::process::Signal::CONT).expect("it goes on");
                check.join().expect("the thread").expect("clean");
                for (took, method, message) in told {
                    assert!(message.contains("in use by fsck_snapshot, for "), "{method}: {message}");
                    assert!(message.contains("limits.image_seconds"), "{method}: {message}");
                    assert!(took >= Duration::from_secs(2) && took < Duration::from_secs(6), "{method}: {took:?}");
                }
            });
            helper.ok(CLEANUP, &handles);
            nothing_is_left();
        }
    }

    isolated! {
        fn a_write_that_the_store_can_not_take_leaves_the_snapshot_as_it_was() {
            let _state = OnDisk::state("image-full");
            install();
            make_image(BASE, 32, &[]);
            let helper = helper();
            let handles = make(&helper, "s", 2 * MIB);
            write(&helper, &node("s"), &[("/etc/hostname", b"kept\n", 0)]);
            let params = write_params(&node("s"), &[("/srv/big", &vec![b'b'; 4 << 20], 0)]);
            let (_, message) = helper.err("priv.write_ext4_files", &params);
            let status = output("dmsetup", &["status", "fc-rootfs-s"]);
            assert!(message.contains("nothing was written") && !status.contains("Invalid"), "{message}: {status}");
            assert_clean(&node("s"));
            assert_eq!(read(&helper, &node("s"), "/etc/hostname"), b"kept\n");
            write(&helper, &node("s"), &[("/srv/small", &[b's'; 100_000], 0)]);
            assert_eq!(read(&helper, &node("s"), "/srv/small"), [b's'; 100_000]);
            helper.ok(CLEANUP, &handles);
            nothing_is_left();
        }
    }

    /// Stops an e2fsck that works.
    fn stop_e2fsck() -> Option<rustix::process::Pid> {
        fs::read_dir("/proc").ok()?.flatten().find_map(|entry| {
            let is_it = fs::read_to_string(entry.path().join("comm")).is_ok_and(|comm| comm.trim_end() == "e2fsck");
            let pid = is_it.then(|| entry.file_name().to_str()?.parse().ok()).flatten()?;
            let pid = rustix::process::Pid::from_raw(pid)?;
            rustix::process::kill_process(pid, rustix::process::Signal::STOP).is_ok().then_some(pid)
        })
    }

    isolated! {
        fn a_snapshot_stands_on_a_whole_image() {
            let _state = OnDisk::state("image-cut-off");
            install();
            make_image(BASE, 16, &[]);
            let helper = helper_with("fault = \"write_ext4_files.apply:fail\"");
            let (_, message) = helper.err("priv.write_ext4_files", &write_params(BASE, &[("/etc/hostname", b"new\n", 0)]));
            assert!(message.contains("finishes it before the image is used next"), "{message}");
            let handles = make(&helper, "c", 16 * MIB);
            let base = fs::read(BASE).expect("the base");
            assert_eq!(inside(&node("c"), "/etc/hostname").as_deref(), Some(&b"new\n"[..]));
            assert_eq!(read(&helper, BASE, "/etc/hostname"), b"new\n");
            assert!(fs::read(BASE).expect("the base") == base, "the base was written under its snapshot");
            assert_clean(&node("c"));
            helper.ok(CLEANUP, &handles);
            nothing_is_left();
        }
    }

    /// A process of that name: its status, the names in its root directory and in its `/dev`.
    fn look(name: &str) -> Option<(String, Vec<String>, Vec<String>)> {
        fs::read_dir("/proc").ok()?.flatten().find_map(|entry| {
            let process = entry.path();
            let is_it = fs::read_to_string(process.join("comm")).is_ok_and(|comm| comm.trim_end() == name);
            let names = |below: &str| -> Option<Vec<String>> {
                let entries = fs::read_dir(process.join(below)).ok()?.flatten();
                let mut names: Vec<String> = entries.map(|e| e.file_name().to_string_lossy().into_owned()).collect();
                names.sort_unstable();
                Some(names)
            };
            let status = is_it.then(|| fs::read_to_string(process.join("status")).ok())??;
            // The names of a process that has just begun are still the helper's.
            let (root, dev) = (names("root")?, names("root/dev")?);
            status.contains("Seccomp:\t2").then_some((status, root, dev))
        })
    }
}
