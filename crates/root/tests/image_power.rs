//! The power is cut before each step of a write to an image file, and behind the answer: what the disk has of it in that
//! moment is all that there is. The image is the old one or the new one, whole, and behind the answer no log is left that
//! could undo what a guest writes since.

#![allow(clippy::disallowed_methods, reason = "a test plays the owner and the machine around the helper")]

mod common;
mod image_support;

use common::*;
use image_support::write::{METHOD, is_new, request};
use image_support::*;
use rustix::process::Signal;
use std::fs;

const DISK: &str = "/mnt/o/disk";
/// What was on it when the power was cut.
const CUT: &str = "/mnt/o/cut";
const OTHER: &str = "/mnt/s/images/other";
/// The steps, and whether the write is made before they are taken; at last, the answer.
const BEFORE: [(&str, bool); 11] = [
    ("request", false),
    ("log", false),
    ("worker", false),
    ("room", false),
    ("data", false),
    ("seal", false),
    ("commit", false),
    ("apply", true),
    ("sync", true),
    ("strike", true),
    ("", true),
];

/// A disk with the owner's images and root's logs.
fn plug_in(disk: &str) {
    make_dir("/mnt/disk", 0, 0o755);
    output("mount", &["-o", "loop", disk, "/mnt/disk"]);
    for (below, at, owner, mode) in [("state", STATE, OWNER, 0o755), ("logs", LOGS, 0, 0o700)] {
        let below = format!("/mnt/disk/{below}");
        make_dir(&below, owner, mode);
        output("mount", &["--bind", &below, at]);
    }
    make_dir("/mnt/s/images", OWNER, 0o755);
}

fn pull_out() {
    for at in [STATE, LOGS, "/mnt/disk"] {
        output("umount", &[at]);
    }
}

/// Asks for a write. The helper stops once on its way, if it is to: then `meanwhile` comes, and what it gives says whether
/// the helper goes on.
fn ask(helper: &Helper, request: &str, stops: bool, meanwhile: impl FnOnce() -> bool) {
    std::thread::scope(|scope| {
        let asked = scope.spawn(|| {
            let mut stream = connect(OWNER);
            std::io::Write::write_all(&mut stream, request.as_bytes()).expect("sent");
            let mut reply = String::new();
            let _ = std::io::Read::read_to_string(&mut stream, &mut reply);
            reply
        });
        let mut goes_on = true;
        if stops {
            let stat = format!("/proc/{}/stat", helper.pid());
            eventually("the helper stops", || fs::read_to_string(&stat).expect("stat").contains(") T "));
            goes_on = meanwhile();
            helper.signal(if goes_on { Signal::CONT } else { Signal::KILL });
        }
        let reply = asked.join().expect("a reply");
        assert_eq!(reply.contains("\"ok\":true"), goes_on, "{reply}");
    });
}

/// On file systems of this kind; behind so many writes to another image, so that a log's file is new or a kept one.
fn cut_at_each_step(mkfs: &[&str], earlier: usize) {
    install();
    for (step, made) in BEFORE {
        let _ = fs::remove_file(DISK);
        fs::File::create(DISK).expect(DISK).set_len(400 << 20).expect("room");
        output(mkfs[0], &[&mkfs[1..], &[DISK]].concat());
        plug_in(DISK);
        make_image(IMAGE, 16, &[]);
        make_image(OTHER, 16, &[]);
        output("sync", &["--file-system", STATE]);
        let stops = !step.is_empty();
        let fault = if stops { format!("fault = \"write_ext4_files.{step}:stop\"") } else { String::new() };
        let helper = helper_with(&fault);
        let params = write_params(OTHER, &[("/srv/other", &[b'o'; 100_000], 0)]);
        for _ in 0..earlier {
            ask(&helper, &serde_json::json!({"method": METHOD, "params": params}).to_string(), stops, || true);
        }
        let cut = || fs::copy(DISK, CUT).expect("a copy");
        ask(&helper, &request(), stops, || {
            cut();
            false
        });
        if !stops {
            cut();
        }
        helper.kill();
        pull_out();
        plug_in(CUT);
        if !stops {
            assert_eq!(logs(), Vec::<String>::new(), "behind the answer");
        }
        let next = crate::helper();
        assert_eq!(is_new(), made, "before {step:?}");
        assert_eq!(logs(), Vec::<String>::new(), "before {step:?}");
        assert!(next.stop().success());
        pull_out();
    }
}

isolated! {
    fn cut_on_ext4() {
        cut_at_each_step(&["mkfs.ext4", "-q", "-F"], 0);
    }
}

isolated! {
    fn cut_where_a_log_is_kept() {
        cut_at_each_step(&["mkfs.ext4", "-q", "-F"], 2);
    }
}

isolated! {
    fn cut_on_xfs() {
        cut_at_each_step(&["mkfs.xfs", "-q", "-f"], 1);
    }
}

isolated! {
    fn cut_on_btrfs() {
        cut_at_each_step(&["mkfs.btrfs", "-q", "-f"], 1);
    }
}
