//! The helper and its worker killed at their system calls while they write to an image file. At its next use the image is
//! the old one or the new one, whole, and e2fsck finds nothing in it.

#![allow(clippy::disallowed_methods, reason = "a test plays the owner and the machine around the helper")]

mod common;
mod image_support;

use common::*;
use image_support::trace::{trace, waiting_worker};
use image_support::write::{is_new, request};
use image_support::*;
use std::collections::BTreeMap;
use std::fs;

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

/// Who is killed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Whom {
    /// The helper, at a call of any of its threads.
    Helper,
    /// The worker, which has waited for the request.
    Worker,
}

/// Does the write while strace looks at somebody from the request on, as `how` says. Whether he was killed by it, and the
/// reply.
fn traced(whom: Whom, how: &[&str]) -> (bool, String) {
    let helper = helper_with("waiting_worker = true\n");
    let worker = waiting_worker(&helper);
    let (target, threads) = match whom {
        Whom::Helper => (helper.pid().to_string(), Some("-f")),
        Whom::Worker => (worker, None),
    };
    let mut strace = trace(&target, &[&["-o", TRACE], how].concat(), threads);
    let mut reply = String::new();
    if let Ok(mut stream) = connect_to(OWNER, SOCKET) {
        let _ = std::io::Write::write_all(&mut stream, request().as_bytes());
        let _ = std::io::Read::read_to_string(&mut stream, &mut reply);
    }
    helper.kill();
    // It ends with those that it looks at.
    let _ = strace.wait();
    let has_died = match whom {
        Whom::Helper => !reply.contains("\"ok\":"),
        Whom::Worker => fs::read_to_string(TRACE).expect("a trace").contains("killed by SIGKILL"),
    };
    (has_died, reply)
}

/// The same, and he is killed at his `nth` call of this kind: of each thread's, the first one that comes to it.
fn killed_at(whom: Whom, call: &str, nth: u32) -> (bool, String) {
    let inject = format!("inject={call}:signal=KILL:when={nth}");
    traced(whom, &["-e", &format!("trace={call}"), "-e", &inject])
}

/// All kinds of calls that somebody makes for a write, and how many of each a thread makes at the most.
fn calls_of(whom: Whom) -> Vec<(String, u32)> {
    traced(whom, &[]);
    let text = fs::read_to_string(TRACE).expect("a trace");
    let mut counts: BTreeMap<(&str, &str), u32> = BTreeMap::new();
    for line in text.lines() {
        // The thread comes first where there are many.
        let (thread, rest) = match whom {
            Whom::Helper => line.split_once(' ').unwrap_or_default(),
            Whom::Worker => ("", line),
        };
        if let Some((name, _)) = rest.trim_start().split_once('(')
            && !name.contains(' ')
        {
            *counts.entry((thread, name)).or_default() += 1;
        }
    }
    let mut most: BTreeMap<String, u32> = BTreeMap::new();
    for ((_, name), count) in counts {
        let most = most.entry(name.to_owned()).or_default();
        *most = count.max(*most);
    }
    most.into_iter().collect()
}

const TRACE: &str = "/mnt/o/trace";

/// At every so many calls of each kind, the first one of each among them, of the helper and of the worker, on a file
/// system of that kind. Without kinds: at those of all kinds that there are.
fn killed_at_calls(kind: &str, calls: &[&str], every: u32) {
    install();
    mount_images(kind);
    make_image("/mnt/s/images/pristine", 16, &[]);
    let mut tried = [0; 2];
    for whom in [Whom::Helper, Whom::Worker] {
        renew();
        let mut plan: Vec<(String, u32)> = calls.iter().map(|call| ((*call).to_owned(), u32::MAX)).collect();
        if plan.is_empty() {
            plan = calls_of(whom);
        }
        let (mut times, kinds) = (0, plan.len());
        for (call, most) in plan {
            for nth in (1..=most).filter(|nth| *nth == 1 || nth.is_multiple_of(every)) {
                renew();
                let (has_died, reply) = killed_at(whom, &call, nth);
                let next = helper();
                let is_new = is_new();
                tried[usize::from(is_new)] += 1;
                assert_eq!(logs(), Vec::<String>::new(), "{whom:?} {call} {nth}");
                assert!(next.stop().success());
                assert!(has_died || is_new, "{whom:?} {call} {nth}: it was answered and is not there: {reply}");
                times += u32::from(has_died);
                if !has_died && most == u32::MAX {
                    break;
                }
            }
        }
        println!("figure: {whom:?} on {kind}: killed {times} times, at calls of {kinds} kinds");
        assert!(times > 0, "{whom:?} was never killed");
    }
    println!("figure: the old image {} times, the new one {}", tried[0], tried[1]);
    assert!(tried.iter().all(|&times| times > 0), "old and new: {tried:?}");
    output("umount", &["-l", STATE]);
}

/// The image is as it was.
fn renew() {
    fs::copy("/mnt/s/images/pristine", IMAGE).expect("a copy");
    std::os::unix::fs::chown(IMAGE, Some(OWNER), Some(OWNER)).expect("the owner's");
}

/// The calls that change something, or hand something over.
const CHANGING: [&str; 6] = ["pwrite64", "fdatasync,fsync", "renameat2", "unlinkat", "fallocate", "sendmsg"];
/// All others come in between: some of them in the suite, each of them by hand.
const SOME: u32 = 11;

isolated! {
    fn a_log_that_was_left_is_on_the_disk_before_it_is_put_into_its_image() {
        install();
        make_image("/mnt/s/images/pristine", 16, &[]);
        renew();
        // Its log had its name, and that was not on the disk yet.
        assert!(killed_at(Whom::Helper, "fsync", 1).0);
        let (log, old) = (logs(), fs::read(IMAGE).expect("the image"));
        assert_eq!(log.len(), 1, "{log:?}");
        let failing = ["-f", "-qq", "-o", TRACE, "-e", "trace=fsync", "-e", "inject=fsync:error=EIO"];
        let why = Start::new().config(&config("")).under("strace", &failing).fails();
        assert!(why.contains("lib_dir") && why.contains("fsync"), "{why}");
        assert!(logs() == log && fs::read(IMAGE).expect("the image") == old);
        let next = helper();
        assert!(is_new() && logs().is_empty());
        assert!(next.stop().success());
    }
}

isolated! {
    fn killed_at_each_call_that_changes_something_on_ext4() {
        killed_at_calls("ext4", &CHANGING, 1);
    }
}

isolated! {
    fn killed_at_calls_that_change_something_on_xfs() {
        killed_at_calls("xfs", &CHANGING, 6);
    }
}

isolated! {
    fn killed_at_calls_that_change_something_on_btrfs() {
        killed_at_calls("btrfs", &CHANGING, 6);
    }
}

isolated! {
    fn killed_at_some_system_calls() {
        killed_at_calls("ext4", &[], SOME);
    }
}

isolated! {
    #[ignore = "minutes: run it by hand"]
    fn killed_at_each_system_call_on_ext4() {
        killed_at_calls("ext4", &[], 1);
    }
}

isolated! {
    #[ignore = "minutes: run it by hand"]
    fn killed_at_each_system_call_on_xfs() {
        killed_at_calls("xfs", &[], 1);
    }
}

isolated! {
    #[ignore = "minutes: run it by hand"]
    fn killed_at_each_system_call_on_btrfs() {
        killed_at_calls("btrfs", &[], 1);
    }
}
