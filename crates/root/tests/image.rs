//! Files inside images, read and written through the helper, and read back by debugfs, e2fsck and a kernel mount.

#![allow(clippy::disallowed_methods, reason = "a test plays the owner and the machine around the helper")]

mod common;
mod image_support;

use common::*;
use image_support::trace::{trace, waiting_worker};
use image_support::*;
use serde_json::json;
use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

const METHOD: &str = "priv.write_ext4_files";

isolated! {
    fn written_files_are_there_for_debugfs_and_for_the_kernel() {
        install();
        make_image(IMAGE, 32, &[]);
        let before = fs::metadata(IMAGE).expect("the image");
        let helper = helper();
        let big: Vec<u8> = (0..300_000u32).flat_map(u32::to_le_bytes).collect();
        write(&helper, IMAGE, &[
            ("/etc/hostname", b"new\n", 0),
            ("/root/.ssh/authorized_keys", b"ssh-ed25519 A\n", 0o600),
            ("/opt/big", &big, 0o755),
            ("/opt/empty", b"", 0o4711),
        ]);
        assert_clean(IMAGE);
        for (path, want, mode) in [
            ("/etc/hostname", &b"new\n"[..], "0644"),
            ("/root/.ssh/authorized_keys", b"ssh-ed25519 A\n", "0600"),
            ("/opt/big", &big, "0755"),
            ("/opt/empty", b"", "0711"),
        ] {
            assert_eq!(inside(IMAGE, path).as_deref(), Some(want), "{path}");
            let stat = stat_inside(IMAGE, path);
            assert!(stat.contains(&format!("Mode:  {mode}")) && stat.contains("User:     0   Group:     0"), "{stat}");
            assert_eq!(read(&helper, IMAGE, path), want, "{path}");
        }
        assert!(stat_inside(IMAGE, "/root/.ssh").contains("Mode:  0755"));
        assert_eq!(inside(IMAGE, "/etc/motd"), Some(b"as it was\n".repeat(1000)));
        // The image is the same file, of the same owner, and no log is left.
        let after = fs::metadata(IMAGE).expect("the image");
        assert_eq!((before.ino(), before.uid(), before.len()), (after.ino(), after.uid(), after.len()));
        assert_eq!(logs(), Vec::<String>::new());

        make_dir("/mnt/mounted", 0, 0o755);
        output("mount", &["-o", "loop,ro", IMAGE, "/mnt/mounted"]);
        let seen = fs::read("/mnt/mounted/opt/big");
        output("umount", &["/mnt/mounted"]);
        assert_eq!(seen.expect("the kernel reads it"), big);
    }
}

isolated! {
    fn images_of_every_make() {
        install();
        let helper = helper();
        for (nth, options) in [
            &["-b", "1024"][..],
            &["-b", "4096"],
            &["-O", "^metadata_csum"],
            &["-O", "^64bit"],
            &["-O", "^extents,^64bit"],
            &["-O", "inline_data"],
            &["-O", "bigalloc"],
            &["-O", "^has_journal"],
            &["-O", "^metadata_csum,uninit_bg"],
            &["-I", "128"],
        ].iter().enumerate() {
            let image = format!("/mnt/s/images/{nth}.ext4");
            make_image(&image, 64, options);
            let long = b"0123456789abcdef".repeat(9000);
            write(&helper, &image, &[("/etc/hostname", b"x", 0), ("/a/b/c/d", &long, 0), ("/short", b"inline", 0)]);
            is_clean(&image).unwrap_or_else(|said| panic!("{options:?}: {said}"));
            assert_eq!(read(&helper, &image, "/a/b/c/d"), long, "{options:?}");
            assert_eq!(inside(&image, "/short").as_deref(), Some(&b"inline"[..]), "{options:?}");
        }
    }
}

isolated! {
    fn what_can_not_be_done_is_said_and_nothing_has_changed() {
        install();
        make_image(IMAGE, 8, &[]);
        let helper = helper();
        let before = fs::read(IMAGE).expect("the image");
        let failed = "operation_failed".to_owned();
        assert_eq!(read_error(&helper, IMAGE, "/none").0, failed);
        assert!(read_error(&helper, IMAGE, "/none").1.contains("no such file in the image"));
        assert_eq!(read_error(&helper, IMAGE, "/etc").0, failed);
        let large = vec![7; 9 << 20];
        for files in [
            &[("/etc", &b"x"[..], 0)][..],
            &[("/etc/hostname/x", b"x", 0)],
            &[("/etc/hostname", b"first", 0), ("/etc/big", &large, 0)],
        ] {
            let (code, message) = helper.err(METHOD, &write_params(IMAGE, files));
            assert_eq!(code, failed, "{message}");
        }
        assert!(helper.err(METHOD, &write_params(IMAGE, &[("/big", &large, 0)])).1.contains("room"));
        let missing = write_params("/mnt/s/images/none.ext4", &[("/x", b"x", 0)]);
        assert_eq!(helper.err(METHOD, &missing), (failed.clone(), "\"/mnt/s/images/none.ext4\" does not exist".into()));
        make_file("/mnt/s/images/text", b"no file system\n", OWNER, 0o644);
        assert_eq!(read_error(&helper, "/mnt/s/images/text", "/x").0, failed);
        assert_eq!(fs::read(IMAGE).expect("the image"), before);
        assert_eq!(logs(), Vec::<String>::new());
        // No files: that the image can be opened is all.
        assert_eq!(helper.ok(METHOD, &json!({"image_path": IMAGE, "files": null})), json!({}));
    }
}

isolated! {
    fn the_owners_rights_decide_over_the_image() {
        install();
        make_image(IMAGE, 8, &[]);
        let helper = helper();
        fs::set_permissions(IMAGE, fs::Permissions::from_mode(0o444)).expect("mode");
        assert_eq!(read(&helper, IMAGE, "/etc/hostname"), b"guest\n");
        let (code, message) = helper.err(METHOD, &write_params(IMAGE, &[("/x", b"x", 0)]));
        assert!(code == "operation_failed" && message.contains("the owner may not open"), "{message}");
        std::os::unix::fs::chown(IMAGE, Some(0), Some(0)).expect("root's");
        fs::set_permissions(IMAGE, fs::Permissions::from_mode(0o600)).expect("mode");
        assert!(read_error(&helper, IMAGE, "/etc/hostname").1.contains("the owner may not open"));
    }
}

isolated! {
    fn what_somebody_has_in_use_is_not_written() {
        install();
        make_image(IMAGE, 8, &[]);
        let helper = helper();
        let device = output("losetup", &["--find", "--show", IMAGE]);
        let device = device.trim();
        let (code, message) = helper.err(METHOD, &write_params(IMAGE, &[("/x", b"x", 0)]));
        output("losetup", &["--detach", device]);
        assert!(code == "operation_failed" && message.contains(device), "{message}");
        assert_eq!(inside(IMAGE, "/x"), None);
        eventually("the loop device is gone", || {
            helper.call(&json!({"method": METHOD, "params": write_params(IMAGE, &[("/x", b"x", 0)])}).to_string())["ok"]
                == true
        });
        assert_clean(IMAGE);
    }
}

isolated! {
    fn writers_of_one_image_come_one_after_the_other() {
        install();
        make_image(IMAGE, 16, &[]);
        let helper = helper();
        std::thread::scope(|scope| {
            for nth in 0..12 {
                let helper = &helper;
                scope.spawn(move || {
                    let path = format!("/d/{nth}");
                    let text = path.repeat(1000);
                    write(helper, IMAGE, &[(path.as_str(), text.as_bytes(), 0)]);
                });
            }
        });
        assert_clean(IMAGE);
        for nth in 0..12 {
            let path = format!("/d/{nth}");
            assert_eq!(read(&helper, IMAGE, &path), path.repeat(1000).into_bytes());
        }
    }
}

isolated! {
    fn the_worker_that_ships_finds_an_empty_root_directory() {
        install();
        make_image(IMAGE, 8, &[]);
        let helper = helper_with("waiting_worker = true\n");
        let root = fs::read_dir(format!("/proc/{}/root", waiting_worker(&helper))).expect("its root directory");
        // One that cargo links by itself needs libraries.
        assert_eq!(root.count() == 0, shipped().is_some());
    }
}

isolated! {
    fn ten_mebibytes_take_less_than_sixty_four() {
        install();
        make_image(IMAGE, 64, &[]);
        let helper = helper_with("waiting_worker = true\n");
        let worker = waiting_worker(&helper);
        // Its end takes so long that what it has had by then can be read: other programs may have the processors.
        let slowly = ["-e", "trace=exit_group", "-e", "inject=exit_group:delay_enter=5s", "-o", "/dev/null"];
        let mut strace = trace(&worker, &slowly, None);
        let data = vec![b'x'; 10 << 20];
        let params = write_params(IMAGE, &[("/big", &data, 0)]).to_string();
        let request = format!("{{\"method\":\"{METHOD}\",\"params\":{params}}}");
        let done = AtomicBool::new(false);
        let mut most = 0;
        std::thread::scope(|scope| {
            scope.spawn(|| {
                assert_eq!(helper.call(&request)["ok"], true);
                done.store(true, Ordering::SeqCst);
            });
            while !done.load(Ordering::SeqCst) {
                most = most.max(peak_kib(&worker).unwrap_or(0));
                std::thread::sleep(Duration::from_millis(10));
            }
        });
        let _ = strace.wait();
        let together = helper.status_kib("VmHWM") + most;
        assert!(most > 0 && together < 64 << 10, "{together} KiB, {most} of them the worker's");
        assert_clean(IMAGE);
    }
}

/// The most memory that a process has had, in KiB.
fn peak_kib(pid: &str) -> Option<u64> {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    status.lines().find_map(|line| line.strip_prefix("VmHWM:")?.trim().strip_suffix(" kB")?.parse().ok())
}
