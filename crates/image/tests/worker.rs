//! The worker itself: what it needs, and that it gives up what it can before the image's first byte.
#![allow(clippy::unwrap_used, reason = "what a test needs is there, or the test fails")]

mod common;

use common::{Ended, Image, file, request, run, run_worker};
use std::fs;
use std::process::Command;
use wire::name::guest_path::GuestPath;
use wire::worker::ask;
use wire::worker::reply::Reply;

const PROGRAM: &str = env!("CARGO_BIN_EXE_banger-image");
const USER: &str = "setpriv --reuid 61184 --regid 61184 --clear-groups";

/// The worker that cargo links, and the static one that ships, which `scripts/test` names.
fn programs() -> Vec<String> {
    [PROGRAM.to_owned()].into_iter().chain(std::env::var("BANGER_TEST_IMAGE")).collect()
}

/// Runs a line of the shell that executes the worker, `$1`, and gives it a job.
fn given(program: &str, image: &Image, script: &str, request: &[u8]) -> Ended {
    let mut command = Command::new("/bin/sh");
    command.current_dir(image.dir.path()).args(["-c", &format!("{script} 3<&0 </dev/null"), "sh", program]);
    run_worker(command, &image.path(), image.dir.path(), request)
}

#[test]
fn it_says_what_it_is_and_what_it_lacks() {
    programs().iter().for_each(|program| says_what_it_is(program));
}

fn says_what_it_is(program: &str) {
    let image = Image::new("8M", &[]);
    let says = |script: &str, code: i32, what: &str| {
        let out = run("sh", &["-c", script, "sh", program]);
        let text = String::from_utf8_lossy(&[out.stdout, out.stderr].concat()).into_owned();
        assert!(out.status.code() == Some(code) && text.contains(what), "{script}: {} {text}", out.status);
    };
    says("\"$1\" --version", 0, "banger-image ");
    says("\"$1\" read", 2, "started by bangerd-root");
    says("\"$1\" 3<&-", 1, "descriptor 3 is needed");
    says(&format!("{USER} \"$1\" 3</dev/null"), 1, "the job: recvmsg");
    // Its helper has gone.
    let (ours, theirs) = std::os::unix::net::UnixStream::pair().unwrap();
    drop(ours);
    let mut gone = Command::new("sh");
    gone.args(["-c", &format!("{USER} \"$1\" 3<&0"), "sh", program]).stdin(std::os::fd::OwnedFd::from(theirs));
    let said = String::from_utf8_lossy(&gone.output().unwrap().stderr).into_owned();
    assert!(said.contains("nobody is there to ask it"), "{said}");
    let asked = ask::read(&GuestPath::new("/x").unwrap());
    for (script, request, what) in [
        ("exec \"$1\"".to_owned(), &asked[..], "does not run as root"),
        (format!("exec {USER} \"$1\""), b"no", "the request"),
    ] {
        let refused = given(program, &image, &script, request).reply.unwrap_err();
        assert!(refused.starts_with("status 1:") && refused.contains(what), "{script}: {refused}");
    }
}

#[test]
fn it_is_confined_before_it_reads_the_image() {
    programs().iter().for_each(|program| is_confined(program));
}

fn is_confined(program: &str) {
    let image = Image::new("8M", &["-O", "^metadata_csum"]);
    let dir = image.dir.path();
    let trace = dir.join("trace");
    let asked = ask::read(&GuestPath::new("/x").unwrap());
    let ended = given(program, &image, &format!("exec strace -o trace -s 0 {USER} \"$1\""), &asked);
    assert!(ended.reply.is_ok(), "{ended:?}");
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
        "recvmsg(3, ",
        "prlimit64(0, RLIMIT_NOFILE, {",
        "seccomp(SECCOMP_SET_MODE_FILTER",
        "pread64(6, ",
        "pread64(5, ",
    ];
    let places = order.map(at);
    assert!(places.is_sorted(), "{order:?} come at {places:?}");
    let seccomp = places[8];
    let left = [
        "pread64(",
        "pwrite64(",
        "write(3",
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
fn memory_is_bounded() {
    programs().iter().for_each(|program| keeps_to_its_memory(program));
}

fn keeps_to_its_memory(program: &str) {
    let image = Image::new("64M", &["-b", "1024"]);
    let put = request(&[file("/big", &common::bytes(10 << 20, 1), 0o644)]);
    // Its address space is held to 256 MiB by itself; this is what 10 MiB take of it.
    let limited = format!("ulimit -v 32768; exec {USER} \"$1\"");
    let reply = given(program, &image, &limited, &put).reply;
    assert!(matches!(reply, Ok(Reply::Written { .. })), "{reply:?}");
}
