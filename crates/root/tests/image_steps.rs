//! Every step of a write to an image file, failed and killed; every log that may be found at the next start. The image
//! is the old one or the new one, whole, and e2fsck finds nothing in it.

#![allow(clippy::disallowed_methods, reason = "a test plays the owner and the machine around the helper")]

mod common;
mod image_support;

use common::*;
use image_support::trace::{now_waiting, waiting_worker};
use image_support::write::{METHOD, is_new, params, request};
use image_support::*;
use std::fs;
use std::os::unix::fs::PermissionsExt;

/// Another name for the image.
const MOVED: &str = "/mnt/s/images/moved.ext4";
/// The steps, and whether the write is made once the step is behind it.
const STEPS: [(&str, bool); 10] = [
    ("request", false),
    ("log", false),
    ("worker", false),
    ("room", false),
    ("data", false),
    ("seal", false),
    ("commit", true),
    ("apply", true),
    ("sync", true),
    ("strike", true),
];

isolated! {
    fn a_step_that_fails_leaves_the_old_image_or_is_finished_later() {
        install();
        make_image("/mnt/s/images/pristine", 16, &[]);
        for (step, made) in STEPS {
            fs::copy("/mnt/s/images/pristine", IMAGE).expect("a copy");
            std::os::unix::fs::chown(IMAGE, Some(OWNER), Some(OWNER)).expect("the owner's");
            // `fail` does not take the step: what counts is whether the one before has committed.
            let is_committed = made && step != "commit";
            let helper = helper_with(&format!("fault = \"write_ext4_files.{step}:fail\""));
            let (code, message) = helper.err(METHOD, &params());
            assert_eq!(code, "operation_failed", "{message}");
            assert_eq!(message.contains("finishes it before the image is used next"), is_committed, "{step}: {message}");
            assert_eq!(logs().len(), usize::from(is_committed), "{step}");
            // The next use finishes it; the same helper, and no fault is in that way.
            let text = read(&helper, IMAGE, "/etc/hostname");
            assert_eq!(text == b"after\n", is_committed, "{step}");
            assert_eq!(is_new(), is_committed, "{step}");
            assert_eq!(logs(), Vec::<String>::new(), "{step}");
            assert!(helper.stop().success());
        }
    }
}

isolated! {
    fn a_request_that_is_refused_leaves_a_worker_waiting_too() {
        install();
        make_image(IMAGE, 16, &[]);
        let helper = helper_with("waiting_worker = true\nfault = \"write_ext4_files.request:fail\"");
        let first = waiting_worker(&helper);
        assert!(helper.err(METHOD, &params()).1.contains("request failed"));
        eventually("another one waits", || now_waiting(&helper).is_some_and(|worker| worker != first));
        assert!(!exists(&format!("/proc/{first}")), "the first has ended");
    }
}

isolated! {
    fn a_helper_killed_at_a_step_is_followed_by_one_that_finishes() {
        install();
        make_image("/mnt/s/images/pristine", 16, &["-b", "1024"]);
        for (step, made) in STEPS {
            fs::copy("/mnt/s/images/pristine", IMAGE).expect("a copy");
            std::os::unix::fs::chown(IMAGE, Some(OWNER), Some(OWNER)).expect("the owner's");
            let mut helper = helper_with(&format!("fault = \"write_ext4_files.{step}:kill\""));
            let mut stream = connect(OWNER);
            std::io::Write::write_all(&mut stream, request().as_bytes()).expect("sent");
            helper.wait();
            drop(helper);
            let next = crate::helper();
            assert_eq!(is_new(), made, "{step}");
            assert_eq!(logs(), Vec::<String>::new(), "{step}");
            write(&next, IMAGE, &[("/etc/hostname", b"and on\n", 0)]);
            assert_clean(IMAGE);
            assert!(next.stop().success());
        }
    }
}

isolated! {
    fn a_log_is_put_into_no_other_file_than_its_own() {
        install();
        let strike = "fault = \"write_ext4_files.apply:fail\"";
        for (what, change) in [
            ("exchanged", (|| {
                make_image("/mnt/s/images/other", 16, &[]);
                fs::rename("/mnt/s/images/other", IMAGE).expect("exchanged");
            }) as fn()),
            ("gone", || fs::remove_file(IMAGE).expect("gone")),
            ("a link", || {
                fs::rename(IMAGE, "/mnt/o/a.ext4").expect("moved");
                std::os::unix::fs::symlink("/mnt/o/a.ext4", IMAGE).expect("a link");
            }),
        ] {
            let _ = fs::remove_file(IMAGE);
            make_image(IMAGE, 16, &[]);
            let helper = helper_with(strike);
            helper.err(METHOD, &params());
            assert_eq!(logs().len(), 1, "{what}");
            helper.kill();
            change();
            let seen = fs::read(IMAGE).ok();
            let next = crate::helper();
            let _ = next.call(&serde_json::json!({"method": "priv.read_ext4_file", "params": {"image_path": IMAGE, "guest_path": "/x"}}).to_string());
            assert!(fs::read(IMAGE).ok() == seen, "{what}");
            // It waits for an image that may have another name by now.
            assert_eq!(logs().len(), 1, "{what}");
            assert!(log_text().contains("an image with half a write is not where it was"), "{what}");
            drop(next);
            fs::remove_file(format!("{LOGS}/{}", logs()[0])).expect("a log");
        }
    }
}

isolated! {
    fn an_image_that_was_renamed_behind_a_crash_is_whole_at_its_next_use() {
        install();
        for (use_it, is_new) in [
            (&(|helper: &Helper| assert_eq!(read(helper, MOVED, "/etc/hostname"), b"after\n")) as &dyn Fn(&Helper), true),
            (&|helper| write(helper, MOVED, &[("/etc/hostname", b"after\n", 0)]), true),
            // Another image has its name meanwhile.
            (&|helper| {
                make_image(IMAGE, 16, &[]);
                assert_eq!(read(helper, IMAGE, "/etc/hostname"), b"guest\n");
            }, false),
        ] {
            make_image(IMAGE, 16, &[]);
            // Nothing of it is in its place but what goes to free blocks.
            let mut helper = helper_with("fault = \"write_ext4_files.commit:kill\"");
            let mut stream = connect(OWNER);
            std::io::Write::write_all(&mut stream, request().as_bytes()).expect("sent");
            helper.wait();
            drop(helper);
            fs::rename(IMAGE, MOVED).expect("renamed");
            let next = crate::helper();
            use_it(&next);
            assert_eq!(logs().len(), usize::from(!is_new));
            assert_eq!(read(&next, MOVED, "/etc/hostname"), b"after\n");
            assert_eq!(logs(), Vec::<String>::new());
            assert_clean(MOVED);
            assert_eq!(inside(MOVED, "/srv/new/large"), Some(vec![b'l'; 700_000]));
            assert!(next.stop().success());
        }
    }
}

isolated! {
    fn a_log_that_can_not_be_finished_now_is_kept() {
        install();
        make_image(IMAGE, 16, &[]);
        let helper = helper_with("fault = \"write_ext4_files.apply:fail\"");
        helper.err(METHOD, &params());
        helper.kill();
        fs::set_permissions(IMAGE, fs::Permissions::from_mode(0o400)).expect("mode");
        let next = crate::helper();
        assert_eq!(logs().len(), 1);
        assert!(read_error(&next, IMAGE, "/etc/hostname").1.contains("the owner may not open"));
        fs::set_permissions(IMAGE, fs::Permissions::from_mode(0o600)).expect("mode");
        assert_eq!(read(&next, IMAGE, "/etc/hostname"), b"after\n");
        assert!(is_new());
        assert_eq!(logs(), Vec::<String>::new());
    }
}

isolated! {
    fn what_is_no_log_is_put_nowhere() {
        install();
        make_image(IMAGE, 16, &[]);
        let helper = helper_with("fault = \"write_ext4_files.apply:fail\"");
        helper.err(METHOD, &params());
        helper.kill();
        let name = format!("{LOGS}/{}", logs()[0]);
        let whole = fs::read(&name).expect("the log");
        let before = fs::read(IMAGE).expect("the image");
        // Cut, spoilt near its end, and one that was not committed.
        for (at, text) in [
            (&name, whole[..whole.len() - 1].to_vec()),
            (&name, [&whole[..whole.len() - 9], &whole[whole.len() - 8..]].concat()),
            (&format!("{LOGS}/.{}.new", &name[LOGS.len() + 1..]), whole.clone()),
        ] {
            fs::remove_file(&name).ok();
            fs::write(at, text).expect("a log");
            let next = crate::helper();
            assert_eq!(logs(), Vec::<String>::new());
            assert!(fs::read(IMAGE).expect("the image") == before);
            drop(next);
        }
        fs::write(&name, whole).expect("a log");
        drop(crate::helper());
        assert!(is_new());
    }
}
