//! Writes of images that were cut off, and what an owner makes of that; memory that many large reads take together.

#![allow(clippy::disallowed_methods, reason = "a test plays the attacker and the machine around the helper")]

mod common;
mod image_support;

use common::*;
use image_support::*;
use rustix::process::Signal;
use serde_json::json;
use std::fs;

const WRITE: &str = "priv.write_ext4_files";
/// Stops a write behind its commit: nothing of it is in the image.
const CUT_OFF: &str = "fault = \"write_ext4_files.apply:fail\"";

/// A write that is cut off: its log stays.
fn cut_off(helper: &Helper, image: &str) {
    let params = write_params(image, &[("/etc/hostname", b"after\n", 0), ("/srv/new", &[b'n'; 300_000], 0)]);
    let (_, message) = helper.err(WRITE, &params);
    assert!(message.contains("finishes it before the image is used next"), "{message}");
}

fn hostname(helper: &Helper, image: &str) -> Vec<u8> {
    read(helper, image, "/etc/hostname")
}

isolated! {
    fn a_log_ends_with_what_it_was_for() {
        install();
        let helper = helper_with(CUT_OFF);
        // An image that grew meanwhile has all its places.
        make_image(IMAGE, 16, &[]);
        cut_off(&helper, IMAGE);
        fs::File::options().write(true).open(IMAGE).and_then(|file| file.set_len(20 << 20)).expect("longer");
        assert_eq!(hostname(&helper, IMAGE), b"after\n");
        assert_clean(IMAGE);
        // One that was cut has not: it is nobody's any more, and holds up nothing.
        cut_off(&helper, IMAGE);
        fs::File::options().write(true).open(IMAGE).and_then(|file| file.set_len(1 << 20)).expect("shorter");
        let (_, message) = read_error(&helper, IMAGE, "/etc/hostname");
        assert!(!message.contains("earlier write"), "{message}");
        assert_eq!((logs(), fs::metadata(IMAGE).expect("it").len()), (vec![], 1 << 20));
        // An administrator takes a log away.
        fs::remove_file(IMAGE).expect("gone");
        make_image(IMAGE, 16, &[]);
        cut_off(&helper, IMAGE);
        fs::remove_file(format!("{LOGS}/{}", logs()[0])).expect("a log");
        assert_eq!(hostname(&helper, IMAGE), b"guest\n");
        assert_clean(IMAGE);
        // And the same where the next helper finds it.
        cut_off(&helper, IMAGE);
        fs::File::options().write(true).open(IMAGE).and_then(|file| file.set_len(1 << 20)).expect("shorter");
        helper.kill();
        let next = helper_with(CUT_OFF);
        assert_eq!(logs(), Vec::<String>::new());
        drop(next);
    }
}

isolated! {
    fn logs_that_can_not_be_finished_are_counted() {
        install();
        let helper = helper_with(&format!("{CUT_OFF}\n[limits]\nimage_logs = 2"));
        let images = [1, 2, 3].map(|nth| format!("/mnt/s/images/{nth}.ext4"));
        images.iter().for_each(|image| make_image(image, 16, &[]));
        cut_off(&helper, &images[0]);
        cut_off(&helper, &images[1]);
        let params = write_params(&images[2], &[("/etc/hostname", b"after\n", 0)]);
        let (_, message) = helper.err(WRITE, &params);
        assert!(message.contains("limits.image_logs") && message.contains("delete them"), "{message}");
        assert_eq!((logs().len(), inside(&images[2], "/etc/hostname")), (2, Some(b"guest\n".to_vec())));
        // Who deletes one makes room for another; who uses one too.
        fs::remove_file(&images[0]).expect("gone");
        cut_off(&helper, &images[2]);
        assert_eq!(hostname(&helper, &images[1]), b"after\n");
        cut_off(&helper, &images[1]);
        assert_eq!(logs().len(), 2);
    }
}

isolated! {
    fn an_image_that_somebody_has_is_not_changed_by_an_old_log() {
        install();
        make_image(IMAGE, 16, &[]);
        let helper = helper_with(CUT_OFF);
        cut_off(&helper, IMAGE);
        let device = output("losetup", &["--find", "--show", "--read-only", IMAGE]);
        let device = device.trim().to_owned();
        let before = fs::read(IMAGE).expect("the image");
        let told = read_error(&helper, IMAGE, "/etc/hostname").1;
        helper.kill();
        let next = helper_with(CUT_OFF);
        let unchanged = fs::read(IMAGE).expect("the image") == before;
        output("losetup", &["--detach", &device]);
        assert!(told.contains("earlier write") && told.contains(&device), "{told}");
        assert!(unchanged && logs().len() == 1, "{:?}", logs());
        eventually("the loop device is gone", || {
            let asked = json!({"method": "priv.read_ext4_file", "params": {"image_path": IMAGE, "guest_path": "/srv/new"}});
            next.call(&asked.to_string())["ok"] == true
        });
        assert_eq!(hostname(&next, IMAGE), b"after\n");
    }
}

isolated! {
    fn a_snapshot_is_made_of_a_whole_image() {
        install();
        make_image(IMAGE, 16, &[]);
        fs::File::create("/mnt/s/images/a.cow").and_then(|file| file.set_len(1 << 20)).expect("a store");
        std::os::unix::fs::chown("/mnt/s/images/a.cow", Some(OWNER), Some(OWNER)).expect("the owner's");
        let helper = helper_with(CUT_OFF);
        cut_off(&helper, IMAGE);
        // Whether this kernel has device-mapper or not: the image is whole before anything is made of it.
        let params = json!({"rootfs_path": IMAGE, "cow_path": "/mnt/s/images/a.cow", "dm_name": "fc-rootfs-attack"});
        helper.call(&json!({"method": "priv.create_dm_snapshot", "params": params}).to_string());
        let is_new = inside(IMAGE, "/etc/hostname");
        helper.call(&json!({"method": "priv.remove_dm_snapshot", "params": {"target": "fc-rootfs-attack"}}).to_string());
        assert_eq!((is_new, logs()), (Some(b"after\n".to_vec()), vec![]));
        assert_clean(IMAGE);
    }
}

isolated! {
    fn who_takes_the_images_room_away_has_it_back_when_there_is_room() {
        install();
        output("mount", &["-t", "tmpfs", "-o", "size=24m", "none", STATE]);
        make_dir(STATE, OWNER, 0o755);
        make_dir("/mnt/s/images", OWNER, 0o755);
        make_image(IMAGE, 16, &[]);
        let helper = helper_with("fault = \"write_ext4_files.apply:stop\"");
        let params = write_params(IMAGE, &[("/etc/hostname", b"after\n", 0), ("/srv/new", &[b'n'; 300_000], 0)]);
        let request = json!({"method": WRITE, "params": params}).to_string();
        let reply = std::thread::scope(|scope| {
            let asked = scope.spawn(|| helper.call(&request));
            let stat = format!("/proc/{}/stat", helper.pid());
            eventually("the helper stops", || fs::read_to_string(&stat).expect("stat").contains(") T "));
            // All that the file system gave back is somebody else's now; what was in the image is kept aside.
            fs::copy(IMAGE, "/mnt/o/aside").expect("a copy");
            output("fallocate", &["--punch-hole", "--offset", "0", "--length", "16MiB", IMAGE]);
            let _ = fs::write("/mnt/s/images/filler", vec![1; 30 << 20]);
            helper.signal(Signal::CONT);
            asked.join().expect("an answer")
        });
        assert_eq!(reply["ok"], false, "{reply}");
        assert_eq!(logs().len(), 1);
        let (_, message) = read_error(&helper, IMAGE, "/etc/hostname");
        assert!(message.contains("no room for it: make some, or delete the image"), "{message}");
        fs::remove_file("/mnt/s/images/filler").expect("room");
        // He puts back what he took, in place; the log is put into it.
        let aside = fs::read("/mnt/o/aside").expect("the copy");
        let image = fs::File::options().write(true).open(IMAGE).expect("the image");
        std::os::unix::fs::FileExt::write_all_at(&image, &aside, 0).expect("back");
        assert_eq!(hostname(&helper, IMAGE), b"after\n");
        assert_eq!(logs(), Vec::<String>::new());
        assert_clean(IMAGE);
    }
}

isolated! {
    fn roots_own_directory_is_full() {
        install();
        make_image(IMAGE, 16, &[]);
        output("mount", &["-t", "tmpfs", "-o", "size=128k,mode=700", "none", LOGS]);
        let before = fs::read(IMAGE).expect("the image");
        let helper = helper();
        let (_, message) = helper.err(WRITE, &write_params(IMAGE, &[("/srv/new", &[b'n'; 200_000], 0)]));
        assert!(message.contains("room"), "{message}");
        assert!(fs::read(IMAGE).expect("the image") == before, "the image has changed");
        assert_eq!(logs(), Vec::<String>::new());
        write(&helper, IMAGE, &[("/etc/hostname", b"after\n", 0)]);
        assert_clean(IMAGE);
    }
}

isolated! {
    fn large_reads_together_have_a_bound() {
        install();
        make_image(IMAGE, 128, &[]);
        output("debugfs", &["-w", "-R", "write /mnt/big /big", IMAGE].map(|word| {
            if word.starts_with("write") { fs::write("/mnt/big", vec![b'x'; 40 << 20]).expect("a file"); }
            word
        }));
        let helper = helper_with("[limits]\nreply_bytes_together = 60000000");
        let request = json!({"method": "priv.read_ext4_file", "params": {"image_path": IMAGE, "guest_path": "/big"}});
        let request = request.to_string();
        let replies: Vec<serde_json::Value> = std::thread::scope(|scope| {
            let asked: Vec<_> = (0..12).map(|_| scope.spawn(|| helper.call(&request))).collect();
            asked.into_iter().map(|one| one.join().expect("an answer")).collect()
        });
        let (done, refused): (Vec<_>, Vec<_>) = replies.iter().partition(|reply| reply["ok"] == true);
        assert!(!done.is_empty() && !refused.is_empty(), "{} done", done.len());
        for reply in refused {
            let message = reply["error"]["message"].as_str().expect("a message");
            assert!(message.contains("limits.reply_bytes_together"), "{message}");
        }
        // One file and its reply, once: 40 MiB and 54 MiB.
        let most = helper.status_kib("VmHWM") >> 10;
        println!("figure: {most} MiB for twelve reads of 40 MiB");
        assert!(most < 150, "{most} MiB");
    }
}
