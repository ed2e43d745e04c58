//! The worker itself: what it needs, and that it gives up what it can before the image's first byte.
#![allow(clippy::unwrap_used, reason = "what a test needs is there, or the test fails")]

mod common;

use common::{Image, file, request, run};
use std::fs;
use std::os::unix::process::ExitStatusExt;
use wire::name::guest_path::GuestPath;
use wire::worker::ask;

const PROGRAM: &str = env!("CARGO_BIN_EXE_banger-image");

/// Runs the worker by this command line of the shell, in which `$1` is the image's folder and `$2` the program.
fn shell(image: &Image, script: &str) -> std::process::Output {
    let dir = image.dir.path();
    fs::write(dir.join("asked"), ask::read(&GuestPath::new("/x").unwrap())).unwrap();
    run("sh", &["-c", &format!("cd \"$1\"; : > out; {script}"), "sh", dir.to_str().unwrap(), PROGRAM])
}

const USER: &str = "setpriv --reuid 61184 --regid 61184 --clear-groups";
const GIVEN: &str = "3<image 4>reply 5<asked 6<>out";

#[test]
fn it_says_what_it_is_and_what_it_lacks() {
    let image = Image::new("8M", &[]);
    let says = |script: &str, code: i32, what: &str| {
        let out = shell(&image, script);
        let text = String::from_utf8_lossy(&[out.stdout, out.stderr].concat()).into_owned();
        assert!(out.status.code() == Some(code) && text.contains(what), "{script}: {} {text}", out.status);
    };
    says("\"$2\" --version", 0, "banger-image ");
    says("\"$2\" read", 2, "started by bangerd-root");
    says("\"$2\" 3<&- 4<&- 5<&- 6<&-", 1, "descriptors 3 to 6 are needed");
    says(&format!("\"$2\" {GIVEN}"), 1, "does not run as root");
    says(&format!("{USER} \"$2\" 3<image 5<asked 6<>out 4>reply 3<&-"), 1, "descriptors 3 to 6");
    says(&format!("echo no > asked; {USER} \"$2\" {GIVEN}"), 1, "the request");
    // Its helper has gone: the reader of the reply is there no more.
    let gone = "mkfifo f; (exec 9<f; read never <&9) & exec 4>f; kill $!; wait $! || :";
    says(&format!("{gone}; {USER} \"$2\" 3<image 5<asked 6<>out"), 1, "nobody waits for the reply");
}

#[test]
fn it_is_confined_before_it_reads_the_image() {
    let image = Image::new("8M", &["-O", "^metadata_csum"]);
    let dir = image.dir.path();
    let trace = dir.join("trace");
    let ended = shell(&image, &format!("exec strace -o trace -s 0 {USER} \"$2\" {GIVEN}"));
    assert!(ended.status.success(), "{ended:?}");
    let text = fs::read_to_string(trace).unwrap();
    // setpriv's own calls come first.
    let text = &text[text.rfind("execve(").unwrap()..];
    let at = |what: &str| {
        text.lines().position(|line| line.starts_with(what)).unwrap_or_else(|| panic!("no {what} in\n{text}"))
    };
    let order = [
        "prctl(PR_SET_PDEATHSIG, SIGKILL",
        "capset(",
        "prctl(PR_SET_NO_NEW_PRIVS, 1",
        "prctl(PR_SET_DUMPABLE, SUID_DUMP_DISABLE",
        "prlimit64(0, RLIMIT_AS, {",
        "prlimit64(0, RLIMIT_CPU, {",
        "prlimit64(0, RLIMIT_NOFILE, {",
        "seccomp(SECCOMP_SET_MODE_FILTER",
        "pread64(5, ",
        "pread64(3, ",
    ];
    let places = order.map(at);
    assert!(places.is_sorted(), "{order:?} come at {places:?}");
    let seccomp = places[7];
    let left = [
        "pread64(",
        "pwrite64(",
        "write(4",
        "mmap(",
        "munmap(",
        "mremap(",
        "brk(",
        "sigaltstack(",
        "exit_group(",
        "+++",
    ];
    for line in text.lines().skip(seccomp + 1) {
        assert!(left.iter().any(|call| line.starts_with(call)), "{line}");
        assert!(!line.contains("PROT_EXEC"), "{line}");
    }
}

#[test]
fn the_image_is_never_written_and_memory_is_bounded() {
    let image = Image::new("64M", &["-b", "1024"]);
    let put = request(&[file("/big", &common::bytes(10 << 20, 1), 0o644)]);
    fs::write(image.dir.path().join("put"), &put).unwrap();
    let out = shell(
        &image,
        &format!("chmod 444 image; exec {USER} /usr/bin/env -i \"$2\" 3<image 4>reply 5<put 6<>out; echo"),
    );
    assert!(out.status.success() && out.status.signal().is_none(), "{out:?}");
    // Its address space is held to 256 MiB by itself; this is what 10 MiB take of it.
    let limited = format!("ulimit -v 32768; exec {USER} \"$2\" 3<image 4>reply 5<put 6<>out");
    let out = shell(&image, &limited);
    assert!(out.status.success(), "{out:?}");
    let reply = wire::worker::reply::Reply::decode(&fs::read(image.dir.path().join("reply")).unwrap());
    assert!(matches!(reply, Ok(wire::worker::reply::Reply::Written { .. })), "{reply:?}");
}
