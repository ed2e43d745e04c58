//! Every step of a write to an image file, failed and killed; every log that may be found at the next start. The image
//! is the old one or the new one, whole, and e2fsck finds nothing in it.

#![allow(clippy::disallowed_methods, reason = "a test plays the owner and the machine around the helper")]

mod common;
mod image_support;

use common::*;
use image_support::*;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::process::{Command, Stdio};

const METHOD: &str = "priv.write_ext4_files";
/// The steps, and whether the write is made once the step is behind it.
const STEPS: [(&str, bool); 9] = [
    ("request", false),
    ("log", false),
    ("worker", false),
    ("room", false),
    ("seal", false),
    ("commit", true),
    ("apply", true),
    ("sync", true),
    ("strike", true),
];

/// What a write puts into the image: more than one block, in more than one directory.
fn files() -> Vec<(&'static str, Vec<u8>, u32)> {
    vec![
        ("/etc/motd", b"as it is now\n".repeat(3000), 0),
        ("/srv/new/file", vec![b'n'; 70_000], 0o600),
        ("/etc/hostname", b"after\n".to_vec(), 0),
    ]
}

fn params() -> serde_json::Value {
    let files = files();
    let files: Vec<(&str, &[u8], u32)> = files.iter().map(|(path, data, mode)| (*path, &data[..], *mode)).collect();
    write_params(IMAGE, &files)
}

fn request() -> String {
    serde_json::json!({"method": METHOD, "params": params()}).to_string()
}

/// The state of the image: clean, and all of it old (`false`) or all new (`true`).
fn is_new() -> bool {
    assert_clean(IMAGE);
    let there: Vec<bool> = files().iter().map(|(path, data, _)| inside(IMAGE, path).as_ref() == Some(data)).collect();
    let old = inside(IMAGE, "/etc/hostname").as_deref() == Some(b"guest\n")
        && inside(IMAGE, "/srv/new/file").is_none()
        && inside(IMAGE, "/etc/motd") == Some(b"as it was\n".repeat(1000));
    let new = there.iter().all(|&there| there);
    assert!(old != new, "half of it: {there:?}");
    new
}

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
            assert_eq!(fs::read(IMAGE).ok(), seen, "{what}");
            assert_eq!(logs(), Vec::<String>::new(), "{what}");
            assert!(log_text().contains("write of an image dropped, it is gone"), "{what}");
            drop(next);
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

/// A file system of that kind, mounted over the state directory's images.
fn mount_images(kind: &str) {
    let (file, options): (_, &[&str]) = match kind {
        "xfs" => ("/mnt/o/xfs", &["-q", "-f"]),
        "btrfs" => ("/mnt/o/btrfs", &["-q", "-f"]),
        _ => ("/mnt/o/ext4", &["-q", "-F"]),
    };
    let _ = fs::remove_file(file);
    fs::File::create(file).expect(file).set_len(400 << 20).expect("room");
    output(&format!("mkfs.{kind}"), &[options, &[file]].concat());
    output("mount", &["-o", "loop", file, STATE]);
    make_dir(STATE, OWNER, 0o755);
    make_dir("/mnt/s/images", OWNER, 0o755);
}

/// Runs a write in a helper under strace, which kills it or its worker at its `nth` call of `call`. False where there
/// were not so many.
fn killed_at(call: &str, nth: u32) -> bool {
    fs::write(CONFIG, config("")).expect("a configuration");
    let program = env!("CARGO_BIN_EXE_bangerd-root");
    let inject = format!("inject={call}:signal=KILL:when={nth}");
    let mut strace = Command::new("strace");
    strace.args(["-f", "-qq", "-o", "/mnt/o/trace", "-e", &format!("trace={call}"), "-e", &inject, "--", program]);
    strace.args(["--socket", SOCKET, "--state-dir", STATE, "--runtime-dir", RUNTIME, "--install-meta", META]);
    let mut strace =
        strace.args(["--config", CONFIG]).stdout(Stdio::null()).stderr(Stdio::null()).spawn().expect("strace");
    let mut reply = String::new();
    let mut is_up = false;
    eventually("it serves or is dead", || {
        is_up = std::os::unix::net::UnixStream::connect(SOCKET).is_ok();
        is_up || strace.try_wait().expect("wait").is_some()
    });
    if is_up && let Ok(mut stream) = connect_to(OWNER, SOCKET) {
        let _ = std::io::Write::write_all(&mut stream, request().as_bytes());
        let _ = std::io::Read::read_to_string(&mut stream, &mut reply);
    }
    let has_died = fs::read_to_string("/mnt/o/trace").unwrap_or_default().contains("killed by SIGKILL");
    let _ = Command::new("pkill").args(["-KILL", "-P", &strace.id().to_string()]).status();
    let _ = strace.kill();
    let _ = strace.wait();
    let _ = fs::remove_file(SOCKET);
    has_died
}

/// At calls of the helper and of the worker, on a file system of that kind.
fn killed_at_calls(kind: &str, calls: &[&str], every: u32) {
    install();
    mount_images(kind);
    make_image("/mnt/s/images/pristine", 16, &[]);
    let mut tried = [0; 2];
    for call in calls {
        for nth in (1..400).step_by(every as usize) {
            fs::copy("/mnt/s/images/pristine", IMAGE).expect("a copy");
            std::os::unix::fs::chown(IMAGE, Some(OWNER), Some(OWNER)).expect("the owner's");
            let has_died = killed_at(call, nth);
            let next = helper();
            tried[usize::from(is_new())] += 1;
            assert_eq!(logs(), Vec::<String>::new(), "{call} {nth}");
            assert!(next.stop().success());
            if !has_died {
                break;
            }
        }
    }
    assert!(tried.iter().all(|&times| times > 0), "old and new: {tried:?}");
    output("umount", &["-l", STATE]);
}

/// The calls that change something, or hand something over.
const CHANGING: [&str; 5] = ["pwrite64", "fdatasync,fsync", "renameat2", "unlinkat", "fallocate"];

isolated! {
    fn killed_at_each_call_that_changes_something_on_ext4() {
        killed_at_calls("ext4", &CHANGING, 1);
    }
}

isolated! {
    fn killed_at_each_call_that_changes_something_on_xfs() {
        killed_at_calls("xfs", &CHANGING, 1);
    }
}

isolated! {
    #[ignore = "an hour: every system call; run it by hand"]
    fn killed_at_each_system_call() {
        killed_at_calls("ext4", &["all"], 1);
    }
}
