//! Snapshots over the kernel's device-mapper, in the lab: `lab/test`. Read back by dmsetup and losetup.

#![allow(clippy::disallowed_methods, reason = "the bans are the helper's; a test sets its world up by paths")]

mod common;
#[path = "disk/world.rs"]
mod world;

mod lab {
    use super::common::{self, Helper, OWNER, Start, eventually, log_lines, output};
    use super::world::{
        BASE, BLOCK, CLEANUP, CREATE, Losetup, OnDisk, REMOVE, base, block, devices, loops, loops_on, make, new, node,
        nodes, nothing_is_left, read_blocks, sparse, store, target, write_block,
    };
    use crate::isolated;
    use serde_json::{Value, json};
    use std::fs::{self, File};
    use std::path::Path;
    use std::time::{Duration, Instant};

    const MIB: u64 = 1 << 20;

    /// dmsetup, which does not wait for udev: that one would answer in another IPC namespace than the test's.
    fn dmsetup(arguments: &[&str]) -> String {
        output("dmsetup", &[arguments, &["--noudevsync"]].concat())
    }

    fn listed(helper: &Helper) -> Vec<Value> {
        helper.ok("priv.list_resources", &json!({}))["snapshots"].as_array().expect("a list").clone()
    }

    isolated! {
        fn two_hundred_snapshots_over_one_base() {
            const MANY: usize = 200;
            let _state = OnDisk::state("many");
            let base_bytes = base(64);
            let helper = Helper::start();
            let id = |n: usize| format!("many-{n}");
            let handles: Vec<Value> = (0..MANY).map(|n| make(&helper, &id(n), MIB)).collect();
            assert_eq!((devices().len(), nodes().len(), listed(&helper).len()), (MANY, MANY, MANY));
            // One loop device under all of them, as the method makes it.
            let on_base = loops_on(BASE);
            assert_eq!((on_base.len(), loops().len()), (1, MANY + 1));
            assert!(on_base[0]["ro"] == true && on_base[0]["autoclear"] == true && on_base[0]["dio"] == true, "{on_base:?}");
            for (n, handles) in handles.iter().enumerate() {
                write_block(&node(&id(n)), n % 64, &block(&format!("snapshot {n} ")));
                assert_eq!(handles["BaseLoop"], on_base[0]["name"]);
            }
            for n in 0..MANY {
                let mut wanted = base_bytes.clone();
                wanted[n % 64 * BLOCK..][..BLOCK].copy_from_slice(&block(&format!("snapshot {n} ")));
                assert!(read_blocks(&node(&id(n)), 0, 64) == wanted, "snapshot {n}");
            }
            assert!(fs::read(BASE).unwrap() == base_bytes, "the base was written");
            for handles in &handles[1..] {
                helper.ok(CLEANUP, handles);
            }
            assert_eq!((devices().len(), loops().len()), (1, 2));
            helper.ok(CLEANUP, &handles[0]);
            assert!(devices().is_empty() && nodes().is_empty() && loops().is_empty(), "{:?} {:?}", nodes(), loops());
            assert!(fs::read(BASE).unwrap() == base_bytes, "the base was written");
        }
    }

    isolated! {
        fn made_marked_asked_for_again_and_taken_up_again() {
            let _state = OnDisk::state("again");
            let base_bytes = base(16);
            let helper = Helper::start();
            let made = make(&helper, "a", MIB);
            let minor = |key: &str| made[key].as_str().unwrap().trim_start_matches("/dev/loop").to_owned();
            let table = format!("0 128 snapshot 7:{} 7:{} P 8", minor("BaseLoop"), minor("COWLoop"));
            assert_eq!(output("dmsetup", &["table", "fc-rootfs-a"]).trim(), table);
            let uuid = output("dmsetup", &["info", "-c", "--noheadings", "-o", "uuid", "fc-rootfs-a"]);
            assert!(uuid.starts_with("BANGER-"), "{uuid}");
            assert_eq!(made["DMDev"], node("a"));
            assert_eq!(made["DMName"], "fc-rootfs-a");

            // Asked for again it is what it was.
            assert_eq!(helper.ok(CREATE, &new("a")), made);
            write_block(&node("a"), 3, &block("changed "));
            let told = listed(&helper).remove(0);
            assert_eq!((&told["rootfs"], &told["cow"], &told["state"]), (&json!(BASE), &json!(store("a")), &json!("ready")));
            assert!(told["used_bytes"].as_u64().unwrap() >= 3 * BLOCK as u64 && told["cow_bytes"] == MIB, "{told}");

            // Removed by its node; made anew over the same store, the change is there.
            helper.ok(REMOVE, &json!({"target": node("a")}));
            assert!(devices().is_empty() && nodes().is_empty());
            eventually("the loop devices clear themselves", || loops().is_empty());
            helper.ok(REMOVE, &target("a"));
            let again = helper.ok(CREATE, &new("a"));
            assert_eq!(read_blocks(&node("a"), 3, 1), block("changed "));
            assert_eq!(read_blocks(&node("a"), 4, 1), base_bytes[4 * BLOCK..][..BLOCK]);
            helper.ok(CLEANUP, &again);
            helper.ok(CLEANUP, &again);
            assert!(devices().is_empty() && nodes().is_empty() && loops().is_empty());
        }
    }

    isolated! {
        fn a_kernel_mounts_it_and_writes_there() {
            let _state = OnDisk::state("mount");
            sparse(BASE, 16 * MIB);
            output("mke2fs", &["-q", "-F", "-t", "ext4", BASE]);
            let before = fs::read(BASE).unwrap();
            let helper = Helper::start();
            let made = make(&helper, "m", 8 * MIB);
            fs::create_dir("/mnt/m").unwrap();
            output("mount", &[&node("m"), "/mnt/m"]);
            fs::write("/mnt/m/file", "from the host\n").unwrap();
            // In use: it is said by whom, and nothing is changed.
            let begun = Instant::now();
            let (code, message) = helper.err(CLEANUP, &made);
            assert!(code == "operation_failed" && message.contains("a mount at \"/mnt/m\""), "{message}");
            assert!(begun.elapsed() >= Duration::from_secs(5));
            assert_eq!(fs::read_to_string("/mnt/m/file").unwrap(), "from the host\n");
            output("umount", &["/mnt/m"]);
            output("e2fsck", &["-fn", &node("m")]);
            helper.ok(CLEANUP, &made);
            assert!(fs::read(BASE).unwrap() == before, "the base was written");
            nothing_is_left();
        }
    }

    isolated! {
        fn who_has_it_open_is_waited_for_and_then_named() {
            let _state = OnDisk::state("busy");
            base(16);
            let helper = Helper::start();
            make(&helper, "b", MIB);
            let held = File::open(node("b")).unwrap();
            let (_, message) = helper.err(REMOVE, &target("b"));
            assert!(message.contains(&format!("process {} (", std::process::id())), "{message}");
            // A device on it.
            drop(held);
            dmsetup(&["create", "banger-test-above", "--table", &format!("0 128 linear {} 0", node("b"))]);
            let (_, message) = helper.err(REMOVE, &target("b"));
            dmsetup(&["remove", "--retry", "banger-test-above"]);
            assert!(message.contains("the device banger-test-above"), "{message}");
            // One that lets go late, as a VMM that was killed.
            let late = File::open(node("b")).unwrap();
            let other = make(&helper, "other", MIB);
            let thread = std::thread::spawn(move || {
                std::thread::sleep(Duration::from_secs(1));
                drop(late);
            });
            helper.ok(REMOVE, &target("b"));
            thread.join().unwrap();
            helper.ok(CLEANUP, &other);
            nothing_is_left();
        }
    }

    isolated! {
        fn files_that_are_in_use_are_refused() {
            let _state = OnDisk::state("inuse");
            base(16);
            let helper = Helper::start();
            let made = make(&helper, "a", MIB);
            let refused = |rootfs: &str, cow: &str, told: &str| {
                let params = json!({"rootfs_path": rootfs, "cow_path": cow, "dm_name": "fc-rootfs-x"});
                let (code, message) = helper.err(CREATE, &params);
                assert!(code == "operation_failed" && message.contains(told), "{rootfs} {cow}: {message}");
            };
            sparse(&store("x"), MIB);
            // Another's store, under its name and under another one; as the base; the base as a store.
            refused(BASE, &store("a"), "in use by the snapshot \"fc-rootfs-a\"");
            fs::hard_link(store("a"), store("linked")).unwrap();
            refused(BASE, &store("linked"), "in use by the snapshot \"fc-rootfs-a\"");
            refused(&store("a"), &store("x"), "rootfs_path: the file is in use by /dev/loop");
            let empty = "/mnt/s/images/empty.img";
            sparse(empty, MIB);
            let over_empty = json!({"rootfs_path": empty, "cow_path": store("x"), "dm_name": "fc-rootfs-x"});
            let second = helper.ok(CREATE, &over_empty);
            let params = json!({"rootfs_path": BASE, "cow_path": empty, "dm_name": "fc-rootfs-y"});
            let (_, message) = helper.err(CREATE, &params);
            assert!(message.contains("cow_path: the file is in use by /dev/loop"), "{message}");
            // A name that is there over other files.
            sparse(&store("y"), MIB);
            let params = json!({"rootfs_path": BASE, "cow_path": store("y"), "dm_name": "fc-rootfs-a"});
            let (_, message) = helper.err(CREATE, &params);
            assert!(message.contains("over other files"), "{message}");
            helper.ok(CLEANUP, &second);
            // Somebody writes the base.
            let writer = Losetup::bind(&[], empty);
            let (_, message) = helper.err(CREATE, &over_empty);
            assert!(message.contains(&format!("in use by {}", writer.0)), "{message}");
            drop(writer);
            helper.ok(CLEANUP, &made);
            nothing_is_left();
        }
    }

    isolated! {
        fn devices_that_are_not_ours_stay() {
            let _state = OnDisk::state("foreign");
            base(16);
            sparse(&store("f"), MIB);
            let helper = Helper::start();
            for file in ["/mnt/o/base", "/mnt/o/cow"] {
                sparse(file, MIB);
            }
            let outside = (Losetup::bind(&["-r"], "/mnt/o/base"), Losetup::bind(&[], "/mnt/o/cow"));
            let table = format!("0 128 snapshot {} {} P 8", outside.0.0, outside.1.0);
            dmsetup(&["create", "fc-rootfs-f", "--table", &table]);
            for (method, params) in [
                (CREATE, new("f")),
                (REMOVE, target("f")),
                (CLEANUP, json!({"DMName": "fc-rootfs-f"})),
                (CLEANUP, json!({"DMDev": node("f")})),
            ] {
                let (code, message) = helper.err(method, &params);
                assert!(code == "operation_failed" && message.contains("not banger's"), "{method}: {message}");
            }
            assert!(listed(&helper).is_empty());
            assert_eq!(devices().into_iter().collect::<Vec<_>>(), ["fc-rootfs-f"]);
            dmsetup(&["remove", "--retry", "fc-rootfs-f"]);

            // What an older banger left: no mark, but both files are ours.
            let older = (Losetup::bind(&["-r"], BASE), Losetup::bind(&[], &store("f")));
            let table = format!("0 128 snapshot {} {} P 8", older.0.0, older.1.0);
            dmsetup(&["create", "fc-rootfs-f", "--table", &table]);
            assert_eq!(listed(&helper)[0]["cow"], store("f"));
            helper.ok(CLEANUP, &json!({
                "BaseLoop": older.0.0, "COWLoop": older.1.0, "DMName": "fc-rootfs-f", "DMDev": node("f")
            }));
            assert!(!older.0.is_bound() && !older.1.is_bound());
            nothing_is_left();
        }
    }

    isolated! {
        fn a_store_that_fills_up_is_warned_of_and_a_full_one_is_invalid() {
            let _state = OnDisk::state("full");
            base(64);
            let helper = Helper::start();
            let made = make(&helper, "full", 128 << 10);
            for n in 0..26 {
                write_block(&node("full"), n, &block("x"));
            }
            let told = |message: &str| log_lines().iter().any(|line| {
                line["msg"].as_str().is_some_and(|text| text.starts_with(message)) && line["name"] == "fc-rootfs-full"
            });
            let patience = Duration::from_secs(30);
            common::eventually_within(patience, "it is warned of", || told("a snapshot's store fills up"));
            assert_eq!(listed(&helper)[0]["state"], "ready");
            let file = File::options().write(true).open(node("full")).unwrap();
            for n in 26..64 {
                use std::os::unix::fs::FileExt;
                let _ = file.write_all_at(&block("y"), (n * BLOCK) as u64).and_then(|()| file.sync_all());
            }
            drop(file);
            assert_eq!(listed(&helper)[0]["state"], "invalid");
            common::eventually_within(patience, "it is told", || told("a snapshot is invalid"));
            let (_, message) = helper.err(CREATE, &new("full"));
            assert!(message.contains("was full"), "{message}");
            helper.ok(CLEANUP, &made);
            let (_, message) = helper.err(CREATE, &new("full"));
            assert!(message.contains("was full"), "{message}");
            nothing_is_left();
        }
    }

    isolated! {
        fn of_many_at_once_each_is_whole_or_refused() {
            let _state = OnDisk::state("race");
            base(16);
            let helper = Helper::start();
            let at_once = |requests: Vec<(&str, Value)>| -> Vec<bool> {
                std::thread::scope(|scope| {
                    let ask = |(method, params): (&str, Value)| {
                        let request = json!({"method": method, "params": params}).to_string();
                        scope.spawn(move || common::exchange(OWNER, &request)["ok"] == true)
                    };
                    let threads: Vec<_> = requests.into_iter().map(ask).collect();
                    threads.into_iter().map(|thread| thread.join().unwrap()).collect()
                })
            };
            // One store, eight names: one wins.
            sparse(&store("one"), MIB);
            let named = |n: usize| json!({"rootfs_path": BASE, "cow_path": store("one"), "dm_name": format!("fc-rootfs-{n}")});
            let won = at_once((0..8).map(|n| (CREATE, named(n))).collect());
            assert_eq!((won.iter().filter(|won| **won).count(), devices().len(), loops().len()), (1, 1, 2), "{won:?}");
            let winner = won.iter().position(|won| *won).unwrap();
            // The same request eight times: all succeed, there is one.
            let won = at_once((0..8).map(|_| (CREATE, named(winner))).collect());
            assert!(won.iter().all(|won| *won) && devices().len() == 1, "{won:?}");
            helper.ok(REMOVE, &target(&winner.to_string()));
            nothing_is_left();
            // The base's loop device comes and goes under those who want it.
            let id = |n: usize| format!("r{n}");
            for n in 0..8 {
                sparse(&store(&id(n)), MIB);
            }
            for round in 0..2 {
                let won = at_once((0..8).map(|n| (CREATE, new(&id(n)))).collect());
                assert!(won.iter().all(|won| *won), "round {round}: {won:?}");
                assert_eq!((loops_on(BASE).len(), loops().len()), (1, 9));
                let mixed = (0..8).map(|n| if n % 2 == 0 { (REMOVE, target(&id(n))) } else { (CREATE, new(&id(n))) });
                assert!(at_once(mixed.collect()).iter().all(|won| *won));
                assert_eq!((devices().len(), loops_on(BASE).len()), (4, 1));
                assert!(at_once((0..8).map(|n| (REMOVE, target(&id(n)))).collect()).iter().all(|won| *won));
                nothing_is_left();
            }
        }
    }

    isolated! {
        fn the_limit_is_named() {
            base(16);
            let helper = Start::new().config("[limits]\nsnapshots = 1\n").start();
            make(&helper, "a", MIB);
            sparse(&store("b"), MIB);
            let (_, message) = helper.err(CREATE, &new("b"));
            assert!(message.contains("limits.snapshots"), "{message}");
            assert_eq!(devices().len(), 1);
            helper.ok(REMOVE, &target("a"));
            nothing_is_left();
        }
    }

    #[test]
    fn without_udev_the_helper_makes_the_same_link() {
        let _udev = is_outside().then(|| Udev::without("stop"));
        common::isolate(module_path!(), "without_udev_the_helper_makes_the_same_link", || {
            base(16);
            let helper = Helper::start();
            assert!(!Path::new("/run/udev/control").exists());
            let made = make(&helper, "u", MIB);
            let leads_to = fs::read_link(node("u")).unwrap().to_string_lossy().into_owned();
            assert!(leads_to.starts_with("../dm-"), "{leads_to}, and udev would make another");
            write_block(&node("u"), 1, &block("u"));
            // A link of before, to another's device.
            fs::remove_file(node("u")).unwrap();
            std::os::unix::fs::symlink("../loop0", node("u")).unwrap();
            helper.ok(CREATE, &new("u"));
            assert_eq!(read_blocks(&node("u"), 1, 1), block("u"));
            helper.ok(CLEANUP, &made);
            assert!(nodes().is_empty() && devices().is_empty() && loops().is_empty());
            std::os::unix::fs::symlink("../dm-7", node("u")).unwrap();
            helper.ok(REMOVE, &target("u"));
            assert!(nodes().is_empty());
        });
    }

    #[test]
    fn a_udev_that_hangs_is_not_waited_for_for_ever() {
        let _udev = is_outside().then(|| Udev::without("STOP"));
        common::isolate(module_path!(), "a_udev_that_hangs_is_not_waited_for_for_ever", || {
            base(16);
            let helper = Helper::start();
            let made = make(&helper, "h", MIB);
            write_block(&node("h"), 1, &block("h"));
            helper.ok(CLEANUP, &made);
            assert!(nodes().is_empty() && devices().is_empty());
            nothing_is_left();
        });
    }

    isolated! {
        fn udev_leaves_alone_what_the_rule_names() {
            const RULE: &str = "/run/udev/rules.d/56-banger.rules";
            base(16);
            output("mkfs.ext4", &["-q", "-F", "-L", "a-guests", BASE, "8M"]);
            let helper = Helper::start();
            // Made again by hand it is shown to udev as any other device is; udev has looked at it when it says so.
            let seen = |id: &str| {
                make(&helper, id, MIB);
                let name = format!("fc-rootfs-{id}");
                dmsetup(&["suspend", &name]);
                dmsetup(&["resume", &name]);
                let told = || output("udevadm", &["info", "--query=property", "--name", &node(id)]);
                eventually("udev has looked", || told().contains("DM_ACTIVATION=1"));
                told()
            };
            let told = seen("shown");
            assert!(told.contains("ID_FS_LABEL=a-guests") && told.contains("SYSTEMD_READY=1"), "{told}");
            fs::create_dir_all("/run/udev/rules.d").unwrap();
            let _rule = Rule(RULE);
            fs::write(RULE, include_str!("../../../dist/udev/56-banger.rules")).unwrap();
            output("udevadm", &["control", "--reload"]);
            let told = seen("left");
            assert!(told.contains("UDISKS_IGNORE=1") && told.contains("SYSTEMD_READY=0"), "{told}");
            assert!(!told.contains("ID_FS_") && !told.contains("by-label") && !told.contains("by-uuid"), "{told}");
            // Its node is udev's work as before.
            assert!(told.contains("DEVLINKS=/dev/mapper/fc-rootfs-left\n"), "{told}");
            helper.ok(REMOVE, &target("shown"));
            helper.ok(REMOVE, &target("left"));
            nothing_is_left();
        }
    }

    /// A rule of udev's, until this is dropped.
    struct Rule(&'static str);

    impl Drop for Rule {
        fn drop(&mut self) {
            let _ = fs::remove_file(self.0);
            output("udevadm", &["control", "--reload"]);
        }
    }

    /// Whether this is the test as it was started, and not yet in its namespaces.
    fn is_outside() -> bool {
        std::env::var_os("BANGER_TEST_INSIDE").is_none()
    }

    /// udev, which does not do its work until this is dropped.
    struct Udev(&'static str);

    impl Udev {
        fn without(how: &'static str) -> Udev {
            let udev = Udev(how);
            udev.tell(how);
            udev
        }

        fn tell(&self, what: &str) {
            const UNITS: [&str; 3] =
                ["systemd-udevd-control.socket", "systemd-udevd-kernel.socket", "systemd-udevd.service"];
            match what {
                "stop" | "start" => output("systemctl", &[&[what][..], &UNITS].concat()),
                signal => output("systemctl", &["kill", &format!("--signal={signal}"), UNITS[2]]),
            };
        }
    }

    impl Drop for Udev {
        fn drop(&mut self) {
            self.tell(if self.0 == "stop" { "start" } else { "CONT" });
            output("udevadm", &["settle", "--timeout=60"]);
        }
    }

    isolated! {
        fn a_kernel_without_the_target_is_told_what_to_load() {
            base(16);
            sparse(&store("a"), MIB);
            let helper = Helper::start();
            let modprobe = fs::read_to_string("/proc/sys/kernel/modprobe").unwrap();
            let _ = std::process::Command::new("modprobe").args(["-r", "dm-snapshot"]).output();
            fs::write("/proc/sys/kernel/modprobe", "/bin/false").unwrap();
            let answer = helper.call(&json!({"method": CREATE, "params": new("a")}).to_string());
            fs::write("/proc/sys/kernel/modprobe", modprobe.trim()).unwrap();
            assert!(answer["error"]["message"].as_str().unwrap().contains("modprobe dm-snapshot"), "{answer}");
            nothing_is_left();
            // The kernel loads it by itself where it may.
            helper.ok(CREATE, &new("a"));
            helper.ok(REMOVE, &target("a"));
            nothing_is_left();
        }
    }
}
