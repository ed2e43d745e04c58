//! A worker that a hostile image has taken over, and images that are made to break one. The helper says what happened,
//! in bounded time and memory, and serves on.

#![allow(clippy::disallowed_methods, reason = "a test plays the attacker and the machine around the helper")]

mod common;
mod image_support;

use common::*;
use image_support::*;
use rustix::fs::FileType;
use serde_json::json;
use std::fs;
use std::os::unix::fs::{PermissionsExt, chown, symlink};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::{Duration, Instant};

const WRITE: &str = "priv.write_ext4_files";

/// Puts the hostile worker in the place of the real one, linked so.
fn install_hostile(linked: &str) {
    make_dir(BIN, 0, 0o755);
    let source = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/image_support/worker.c");
    output("cc", &["-O1", linked, "-o", "/mnt/o/worker", source]);
    install_as_worker(Path::new("/mnt/o/worker"));
}

/// A worker that has its job and says nothing, and the connection of who asked for it.
fn silent_worker(helper: &Helper) -> (String, UnixStream) {
    let request = json!({"method": WRITE, "params": write_params(IMAGE, &[("/silence", b"x", 0)])}).to_string();
    let mut stream = connect(OWNER);
    std::io::Write::write_all(&mut stream, request.as_bytes()).expect("sent");
    let mut pid = String::new();
    eventually("the worker runs", || {
        pid = child_of(helper.pid()).unwrap_or_default();
        let program = |pid: &str| fs::read_link(format!("/proc/{pid}/exe"));
        // It is itself, no longer the helper's child on its way there, and has its job.
        program(&pid).is_ok_and(|its| program(&helper.pid().to_string()).is_ok_and(|helpers| its != helpers))
            && fs::read_link(format!("/proc/{pid}/fd/6")).is_ok()
    });
    (pid, stream)
}

/// What a request to write that file answers; it must fail.
fn refused(helper: &Helper, path: &str) -> String {
    let (code, message) = helper.err(WRITE, &write_params(IMAGE, &[(path, b"x", 0)]));
    assert_eq!(code, "operation_failed", "{path}: {message}");
    message
}

isolated! {
    fn whatever_a_worker_does_is_an_error_that_says_what() {
        install_hostile("-pie");
        make_image(IMAGE, 8, &[]);
        let before = fs::read(IMAGE).expect("the image");
        let helper = helper_with("[limits]\nimage_seconds = 1");
        let fds = {
            refused(&helper, "/abort");
            helper.open_files()
        };
        for (path, told) in [
            ("/abort", "was ended by signal 6"),
            ("/status", "ended with status 3"),
            ("/silence", "gave no answer within 1 s (limits.image_seconds)"),
            ("/spin", "gave no answer within 1 s (limits.image_seconds)"),
            ("/nothing", "without a proper answer"),
            ("/noise", "without a proper answer"),
            ("/huge", "without a proper answer"),
            ("/more", "can't be used"),
            ("/beyond", "the log of changes is none"),
            ("/across", "the log of changes is none"),
            ("/wrap", "the log of changes is none"),
            ("/another", "the log of changes is none"),
            ("/crooked", "the log of changes is none"),
            // Its descriptor of the image is for reading alone.
            ("/image", "ended with status 4"),
        ] {
            let message = refused(&helper, path);
            assert!(message.contains(told), "{path}: {message}");
        }
        for path in ["/huge", "/written", "/abort"] {
            assert_eq!(read_error(&helper, IMAGE, path).0, "operation_failed", "{path}");
        }
        // What it fills for a read is memory, which it can't make more.
        let (_, message) = read_error(&helper, IMAGE, "/flood");
        assert!(message.contains("ended with status 6"), "{message}");
        assert!(fs::read(IMAGE).expect("the image") == before, "the image has changed");
        assert_eq!(logs(), Vec::<String>::new());
        // But for a worker that waits, which has two: a process and a socket.
        eventually("no descriptor is left", || helper.open_files() <= fds + 2);
        assert!(helper.status_kib("VmHWM") < 64 << 10);
        // What it may do: propose other bytes for that image.
        write(&helper, IMAGE, &[("/good", b"x", 0)]);
        let after = fs::read(IMAGE).expect("the image");
        assert!(after[512..].starts_with(b"overwritten") && after[1024..] == before[1024..]);
    }
}

isolated! {
    fn a_worker_has_nothing() {
        has_nothing("-pie", &["dev", "lib", "lib64"]);
    }
}

isolated! {
    fn a_static_worker_has_nothing() {
        has_nothing("-static-pie", &[]);
    }
}

fn has_nothing(linked: &str, root: &[&str]) {
    install_hostile(linked);
    make_image(IMAGE, 8, &[]);
    let helper = helper_with("[limits]\nimage_seconds = 20");
    assert!(refused(&helper, "/names").contains("ended with status 20 "), "{}", refused(&helper, "/names"));
    let (pid, _asker) = silent_worker(&helper);
    let status = fs::read_to_string(format!("/proc/{pid}/status")).expect("its status");
    let field = |key: &str| {
        let line = status.lines().find(|line| line.starts_with(key)).unwrap_or_default();
        line.split_once(':').map_or(String::new(), |(_, value)| value.split_whitespace().collect::<Vec<_>>().join(" "))
    };
    let id = field("Uid").split(' ').next().expect("a uid").parse::<u32>().expect("a number");
    assert!((61_184..=65_519).contains(&id), "{id}");
    assert_eq!(field("Uid"), [id; 4].map(|id| id.to_string()).join(" "));
    assert_eq!((field("Gid"), field("Groups")), (field("Uid"), String::new()));
    for key in ["CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb", "SigBlk", "SigIgn"] {
        assert_eq!(field(key), "0000000000000000", "{key}");
    }
    assert_eq!(field("NoNewPrivs"), "1");
    for kind in ["mnt", "net", "ipc", "uts"] {
        let of = |pid: &str| fs::read_link(format!("/proc/{pid}/ns/{kind}")).expect("a namespace");
        assert_ne!(of(&pid), of(&helper.pid().to_string()), "{kind}");
    }
    let mut found = names(&format!("/proc/{pid}/root"));
    found.sort_unstable();
    assert_eq!(found, root);
    // And it can't be filled.
    let made = fs::create_dir(format!("/proc/{pid}/root/new")).expect_err("a directory");
    assert_eq!(made.kind(), std::io::ErrorKind::ReadOnlyFilesystem);
    for dir in root {
        let is_of_libraries = |name: &String| *dir != "dev" && (name.contains(".so") || name == "x86_64-linux-gnu");
        assert!(names(&format!("/proc/{pid}/root/{dir}")).iter().all(is_of_libraries), "{dir}");
    }
    let mut fds = names(&format!("/proc/{pid}/fd"));
    fds.sort_unstable();
    assert_eq!(fds, ["0", "1", "2", "3", "4", "5", "6"]);
    assert_eq!(fs::read(format!("/proc/{pid}/environ")).expect("its environment"), b"");
    helper.kill();
    eventually("the worker ends with its helper", || !Path::new(&format!("/proc/{pid}")).exists());
    assert_eq!(inside(IMAGE, "/etc/hostname").as_deref(), Some(&b"guest\n"[..]));
}

fn child_of(pid: i32) -> Option<String> {
    let tasks = fs::read_dir(format!("/proc/{pid}/task")).ok()?.flatten();
    tasks.into_iter().find_map(|task| {
        let children = fs::read_to_string(task.path().join("children")).ok()?;
        children.split_whitespace().next().map(str::to_owned)
    })
}

fn names(dir: &str) -> Vec<String> {
    fs::read_dir(dir)
        .expect(dir)
        .map(|entry| entry.expect("an entry").file_name().into_string().expect("text"))
        .collect()
}

isolated! {
    fn workers_are_bounded_and_each_has_a_user_of_its_own() {
        install_hostile("-pie");
        let helper = helper_with("[limits]\nimage_workers = 2\nimage_seconds = 3");
        let images: Vec<String> = (0..3).map(|nth| format!("/mnt/s/images/{nth}.ext4")).collect();
        images.iter().for_each(|image| make_image(image, 8, &[]));
        let mut streams = Vec::new();
        for image in &images {
            let mut stream = connect(OWNER);
            let params = write_params(image, &[("/silence", b"x", 0)]);
            let request = json!({"method": WRITE, "params": params}).to_string();
            std::io::Write::write_all(&mut stream, request.as_bytes()).expect("sent");
            streams.push(stream);
        }
        let mut users = Vec::new();
        eventually("two run", || {
            users = workers(helper.pid());
            users.len() == 2
        });
        assert_ne!(users[0], users[1]);
        let replies: Vec<String> = streams.into_iter().map(|stream| reply(stream).to_string()).collect();
        assert!(replies.iter().all(|reply| reply.contains("operation_failed")), "{replies:?}");
        eventually("they have ended", || workers(helper.pid()).is_empty());
    }
}

isolated! {
    fn an_image_in_use_is_refused_without_a_worker() {
        install_hostile("-pie");
        make_image(IMAGE, 8, &[]);
        let taken = "/mnt/s/images/taken.ext4";
        make_image(taken, 8, &[]);
        let helper = helper_with("[limits]\nimage_workers = 1\nimage_seconds = 30");
        let (pid, _asker) = silent_worker(&helper);
        let device = output("losetup", &["--find", "--show", taken]);
        let began = Instant::now();
        let (code, message) = helper.err(WRITE, &write_params(taken, &[("/x", b"x", 0)]));
        let took = began.elapsed();
        output("losetup", &["--detach", device.trim()]);
        assert!(code == "operation_failed" && message.contains(device.trim()), "{message}");
        assert!(took < Duration::from_secs(10), "{took:?}");
        assert!(Path::new(&format!("/proc/{pid}")).exists(), "nobody has the only turn");
    }
}

/// The users of a helper's workers.
fn workers(pid: i32) -> Vec<u32> {
    let tasks = fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().flatten();
    let children: Vec<String> =
        tasks.map(|task| fs::read_to_string(task.path().join("children")).unwrap_or_default()).collect();
    let uid = |child: &str| {
        let status = fs::read_to_string(format!("/proc/{child}/status")).ok()?;
        let line = status.lines().find(|line| line.starts_with("Uid:"))?.to_owned();
        line.split_whitespace().nth(1)?.parse().ok().filter(|&uid| uid != 0)
    };
    children.iter().flat_map(|list| list.split_whitespace()).filter_map(uid).collect()
}

isolated! {
    fn a_worker_that_is_not_there_or_not_roots_is_an_error_that_says_so() {
        make_image(IMAGE, 8, &[]);
        make_dir(BIN, 0, 0o755);
        let copy = "/mnt/o/bangerd-root";
        fs::copy(env!("CARGO_BIN_EXE_bangerd-root"), copy).expect("a helper without a worker beside it");
        fs::write(CONFIG, config("")).expect("a configuration");
        let mut child = std::process::Command::new(copy)
            .args(["--socket", SOCKET, "--state-dir", STATE, "--runtime-dir", RUNTIME, "--install-meta", META])
            .args(["--config", CONFIG])
            .stderr(std::process::Stdio::null())
            .spawn()
            .expect("the helper");
        eventually("it serves", || std::os::unix::net::UnixStream::connect(SOCKET).is_ok());
        let ask = || {
            let params = json!({"image_path": IMAGE, "guest_path": "/etc/hostname"});
            exchange(OWNER, &json!({"method": "priv.read_ext4_file", "params": params}).to_string()).to_string()
        };
        assert!(ask().contains("need banger-image, and there is none in /mnt/bin"), "{}", ask());
        make_file("/mnt/bin/banger-image", b"\x7fELF", OWNER, 0o755);
        assert!(ask().contains("must be root-owned"), "{}", ask());
        let _ = child.kill();
        let _ = child.wait();
    }
}

isolated! {
    fn a_worker_that_was_changed_is_looked_at_again() {
        install();
        make_image(IMAGE, 8, &[]);
        let (helper, program) = (helper(), "/mnt/bin/banger-image");
        let ask = || {
            let params = json!({"image_path": IMAGE, "guest_path": "/etc/hostname"});
            helper.call(&json!({"method": "priv.read_ext4_file", "params": params}).to_string()).to_string()
        };
        let mode = |mode| fs::set_permissions(program, fs::Permissions::from_mode(mode)).expect("mode");
        let is_good = |answer: &str| answer.contains("Z3Vlc3QK");
        assert!(is_good(&ask()) && is_good(&ask()), "{}", ask());
        mode(0o777);
        assert!(ask().contains("must not be writable by group or others"), "{}", ask());
        mode(0o755);
        assert!(is_good(&ask()), "{}", ask());
        chown(program, Some(OWNER), Some(OWNER)).expect("the owner's");
        assert!(ask().contains("must be root-owned"), "{}", ask());
        chown(program, Some(0), Some(0)).expect("root's");
        assert!(is_good(&ask()), "{}", ask());
        // Another one in its place, as an upgrade puts it there. It ends before its job came, or behind that.
        make_file("/mnt/bin/new", &fs::read("/bin/false").expect("a program"), 0, 0o755);
        fs::rename("/mnt/bin/new", program).expect("exchanged");
        let answer = ask();
        assert!(["can't be started", "ended with status 1"].iter().any(|told| answer.contains(told)), "{answer}");
        fs::remove_file(program).expect("removed");
        install();
        assert!(is_good(&ask()), "{}", ask());
    }
}

isolated! {
    fn images_that_are_none_or_are_made_to_break_it() {
        install();
        let helper = helper();
        make_image("/mnt/s/images/good", 8, &["-O", "^metadata_csum"]);
        let good = fs::read("/mnt/s/images/good").expect("the image");
        let poke = |at: usize, bytes: &[u8]| {
            let mut bad = good.clone();
            bad[at..at + bytes.len()].copy_from_slice(bytes);
            bad
        };
        let began = Instant::now();
        for (name, bytes) in [
            ("empty", vec![]),
            ("cut", good[..4096].to_vec()),
            ("half", good[..good.len() / 2].to_vec()),
            ("zeros", vec![0; 1 << 20]),
            ("block size", poke(1048, &[0xff, 0, 0, 0])),
            ("no inodes", poke(1064, &[0; 4])),
            ("inode size", poke(1112, &[0xff, 0xff])),
            ("blocks", poke(1028, &[0xff; 4])),
            ("first block", poke(1044, &[0xff; 4])),
            ("blocks per group", poke(1056, &[1, 0, 0, 0])),
            ("groups", poke(2048, &[0xff; 64])),
        ] {
            make_file(IMAGE, &bytes, OWNER, 0o644);
            for _ in 0..2 {
                let call = json!({"method": WRITE, "params": write_params(IMAGE, &[("/x", b"x", 0)])}).to_string();
                let answer = helper.call(&call);
                assert!(answer["ok"] == true || answer["error"]["code"] == "operation_failed", "{name}: {answer}");
                let read = json!({"method": "priv.read_ext4_file", "params": {"image_path": IMAGE, "guest_path": "/etc/motd"}});
                helper.call(&read.to_string());
            }
        }
        assert!(began.elapsed() < Duration::from_secs(60));
        assert!(helper.status_kib("VmHWM") < 64 << 10);
        assert_eq!(logs(), Vec::<String>::new());
    }
}

isolated! {
    fn a_path_that_is_no_image_of_the_owners() {
        install();
        make_image("/mnt/o/victim", 8, &[]);
        chown("/mnt/o/victim", Some(0), Some(0)).expect("root's");
        fs::set_permissions("/mnt/o/victim", fs::Permissions::from_mode(0o644)).expect("mode");
        let before = fs::read("/mnt/o/victim").expect("the image");
        symlink("/mnt/o/victim", "/mnt/s/images/link").expect("a link");
        fs::hard_link("/mnt/o/victim", "/mnt/s/images/second").expect("a second name");
        rustix::fs::mknodat(rustix::fs::CWD, "/mnt/s/images/fifo", FileType::Fifo, 0o666.into(), 0).expect("a FIFO");
        let helper = helper();
        for name in ["link", "second", "fifo"] {
            let image = format!("/mnt/s/images/{name}");
            let answer = helper.err(WRITE, &write_params(&image, &[("/x", b"x", 0)]));
            assert!(["bad_params", "operation_failed"].contains(&answer.0.as_str()), "{name}: {answer:?}");
        }
        assert!(fs::read("/mnt/o/victim").expect("the image") == before);
    }
}
