//! The snapshot methods where no device-mapper is needed: what is refused before, and loop devices taken away.
//! With device-mapper: `disk_snapshots.rs`, in the lab.

#![allow(clippy::disallowed_methods, reason = "the bans are the helper's; a test sets its world up by paths")]

mod common;
#[path = "disk/world.rs"]
mod world;

use common::{Helper, OTHER, STATE, exists, make_file, output};
use serde_json::{Value, json};
use std::fs::{self, File};
use std::os::unix::fs::{FileExt, symlink};
use world::{BASE, CLEANUP, CREATE, Losetup, REMOVE, base, loops, new, sparse, store, target};

/// Hides device-mapper where the machine has it.
fn without_device_mapper() {
    if exists("/dev/mapper") {
        output("mount", &["-t", "tmpfs", "none", "/dev/mapper"]);
    }
}

fn handles(base: &str, cow: &str) -> Value {
    json!({"BaseLoop": base, "COWLoop": cow, "DMName": "", "DMDev": ""})
}

isolated! {
    fn a_kernel_without_device_mapper_is_told_what_to_load() {
        without_device_mapper();
        let helper = Helper::start();
        base(4);
        sparse(&store("a"), 1 << 20);
        let (code, message) = helper.err(CREATE, &new("a"));
        assert_eq!(code, "operation_failed");
        assert!(message.contains("modprobe dm-mod dm-snapshot"), "{message}");
        assert!(loops().is_empty());
        // There is nothing to take away either.
        helper.ok(REMOVE, &target("a"));
        helper.ok(CLEANUP, &json!({"DMName": "fc-rootfs-a", "DMDev": "/dev/mapper/fc-rootfs-a"}));
        assert_eq!(helper.ok("priv.list_resources", &json!({}))["snapshots"], json!([]));
    }
}

isolated! {
    fn files_that_can_be_no_snapshot_are_refused() {
        without_device_mapper();
        let helper = Helper::start();
        base(4);
        sparse(&store("a"), 1 << 20);
        let refused = |rootfs: &str, cow: &str, code: &str, told: &str| {
            let params = json!({"rootfs_path": rootfs, "cow_path": cow, "dm_name": "fc-rootfs-a"});
            let (was, message) = helper.err(CREATE, &params);
            assert!(was == code && message.contains(told), "{rootfs} {cow}: {was} {message}");
        };
        let image = |name: &str| format!("{STATE}/images/{name}");
        sparse(&image("empty"), 0);
        sparse(&image("odd"), 1000);
        make_file(&image("roots"), &[1; 4096], 0, 0o600);
        fs::create_dir(image("dir")).unwrap();
        symlink(BASE, image("link")).unwrap();
        let failed = "operation_failed";
        refused(&image("none"), &store("a"), failed, "does not exist");
        refused(&image("empty"), &store("a"), failed, "rootfs_path");
        refused(&image("odd"), &store("a"), failed, "1000 bytes");
        refused(&image("roots"), &store("a"), failed, "may not open");
        refused(&image("dir"), &store("a"), "bad_params", "directory");
        refused(&image("link"), &store("a"), "bad_params", "symlink");

        sparse(&store("small"), 12 << 10);
        make_file(&store("garbage"), &[7; 1 << 16], common::OWNER, 0o600);
        make_file(&store("others"), &[0; 1 << 16], OTHER, 0o666);
        sparse(&store("full"), 1 << 20);
        let header: Vec<u8> = [0x7041_6e53_u32, 0, 1, 8].iter().flat_map(|word| word.to_le_bytes()).collect();
        File::options().write(true).open(store("full")).unwrap().write_all_at(&header, 0).unwrap();
        fs::hard_link(BASE, store("hard")).unwrap();
        refused(BASE, &store("none"), failed, "does not exist");
        refused(BASE, &store("small"), failed, "16384");
        refused(BASE, &store("garbage"), failed, "no snapshot's changes");
        refused(BASE, &store("others"), failed, "not to the owner");
        refused(BASE, &store("full"), failed, "was full");
        refused(BASE, BASE, failed, "rootfs_path names");
        refused(BASE, &store("hard"), failed, "rootfs_path names");
        // An image with zeros at its beginning is not taken for an empty store: it would be written over.
        let ext4 = image("ext4");
        sparse(&ext4, 1 << 20);
        output("mke2fs", &["-q", "-F", "-t", "ext4", &ext4]);
        let before = fs::read(&ext4).unwrap();
        refused(BASE, &ext4, failed, "no snapshot's changes");
        assert_eq!(fs::read(&ext4).unwrap(), before);
        assert!(loops().is_empty());
    }
}

isolated! {
    fn loops_of_ours_are_let_go_and_others_stay() {
        without_device_mapper();
        let helper = Helper::start();
        base(4);
        sparse(&store("a"), 1 << 20);
        make_file("/mnt/o/other.img", &[0; 1 << 16], 0, 0o644);
        // As an older banger bound them: for good.
        let (base_loop, cow_loop) = (Losetup::bind(&["-r"], BASE), Losetup::bind(&[], &store("a")));
        let other = Losetup::bind(&[], "/mnt/o/other.img");

        // One that is not ours, and nothing is changed.
        for params in [handles(&other.0, &cow_loop.0), handles(&base_loop.0, &other.0), handles("", &other.0)] {
            let (code, message) = helper.err(CLEANUP, &params);
            assert!(code == "operation_failed" && message.contains("not banger's"), "{message}");
        }
        assert!(base_loop.is_bound() && cow_loop.is_bound() && other.is_bound());
        // A name that says that it is ours proves nothing, nor does a file that was put where ours was.
        let impostor = format!("{STATE}/images/impostor");
        sparse(&impostor, 1 << 16);
        let bound = Losetup::bind(&[], &impostor);
        fs::rename(&impostor, format!("{impostor}.away")).unwrap();
        fs::remove_file(format!("{impostor}.away")).unwrap();
        sparse(&impostor, 1 << 16);
        helper.err(CLEANUP, &handles("", &bound.0));
        assert!(bound.is_bound());

        helper.ok(CLEANUP, &handles(&base_loop.0, &cow_loop.0));
        assert!(!base_loop.is_bound() && !cow_loop.is_bound() && other.is_bound());
        // Gone already, and never there.
        helper.ok(CLEANUP, &handles(&base_loop.0, &cow_loop.0));
        helper.ok(CLEANUP, &handles("/dev/loop1048575", ""));
        helper.ok(CLEANUP, &json!({}));
    }
}

isolated! {
    fn a_base_that_is_mounted_stays_and_a_store_that_is_held_is_named() {
        without_device_mapper();
        let helper = Helper::start();
        sparse(BASE, 4 << 20);
        output("mke2fs", &["-q", "-F", "-t", "ext4", BASE]);
        let base_loop = Losetup::bind(&["-r"], BASE);
        fs::create_dir("/mnt/m").unwrap();
        output("mount", &["-o", "ro", &base_loop.0, "/mnt/m"]);
        helper.ok(CLEANUP, &handles(&base_loop.0, ""));
        assert!(base_loop.is_bound() && exists("/mnt/m/lost+found"));
        output("umount", &["/mnt/m"]);
        common::eventually("its last user is gone, and so is it", || !base_loop.is_bound());

        sparse(&store("a"), 1 << 20);
        let cow_loop = Losetup::bind(&[], &store("a"));
        let held = File::open(&cow_loop.0).unwrap();
        let (_, message) = helper.err(CLEANUP, &handles("", &cow_loop.0));
        let own = format!("process {}", std::process::id());
        assert!(message.contains(&own) && message.contains(&cow_loop.0), "{message}");
        drop(held);
        common::eventually("it ends with the last close", || !cow_loop.is_bound());
        helper.ok(CLEANUP, &handles("", &cow_loop.0));
    }
}
