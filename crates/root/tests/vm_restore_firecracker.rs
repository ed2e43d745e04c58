//! Firecracker itself going on from a VM that it saved, through the helper: in the nested lab, where
//! `BANGER_TEST_FIRECRACKER` and `BANGER_TEST_JAILER` name its programs (`docs/lab.md`).

#![allow(clippy::disallowed_methods, reason = "tests look at the machine in every way there is")]

mod common;
#[path = "vm_support/debian.rs"]
mod debian;
#[path = "net/world.rs"]
mod network;
mod vm_support;

use common::*;
use debian::{STATE, *};
use serde_json::{Value, json};
use std::fs;
use std::os::unix::fs::chown;
use std::path::PathBuf;
use std::time::Instant;
use vm_support::*;

/// Less than elsewhere: all of it lies in the lab's memory.
const MIB: u64 = 128;
const FORKS: [u32; 2] = [2, 3];

mod lab {
    mod nested {
        mod firecracker {
            use crate::debian::built;
            use crate::vm_support::jail::REAL_JAILER;
            use crate::{isolated, named, two_go_on};

            isolated! {
                fn two_go_on_at_once_from_a_debian_that_was_saved() {
                    two_go_on("/mnt/o/bin/banger-jailer", &built("banger-jailer"));
                }
            }

            isolated! {
                fn two_go_on_at_once_in_firecrackers_jail() {
                    two_go_on("/mnt/o/bin/jailer", &named(REAL_JAILER));
                }
            }
        }
    }
}

fn named(variable: &str) -> PathBuf {
    std::env::var_os(variable).unwrap_or_else(|| panic!("{variable} names a file for this test")).into()
}

/// The disk of VM `n` alone.
fn disk(n: u32) -> String {
    format!("/mnt/s/images/{n}.ext4")
}

/// Saved once, and gone on from twice side by side: each with its own copy of the disk, tap and vsock.
fn two_go_on(jailer: &'static str, from: &std::path::Path) {
    let programs = Programs { vmm: VMM, jailer };
    put(&named("BANGER_TEST_FIRECRACKER"), VMM);
    put(from, jailer);
    let helper = save(programs, MIB);
    for n in FORKS {
        output("cp", &["--sparse=always", BASE_DISK, &disk(n)]);
        chown(disk(n), Some(OWNER), Some(OWNER)).expect("the owner's");
    }
    let before = output("sha256sum", &[STATE, MEMORY]);
    let asked = |n: u32| going_on(programs, n, MIB, &disk(n));
    refused(&helper, &asked(2));

    let begin = Instant::now();
    let pids: Vec<i32> = std::thread::scope(|scope| {
        let go_on = |n: u32| {
            let (helper, asked) = (&helper, asked(n));
            scope.spawn(move || pid_of(&helper.ok(RESTORE, &asked)))
        };
        let all = FORKS.map(go_on);
        all.into_iter().map(|one| one.join().expect("restored")).collect()
    });
    println!("figure: two restored after {:?}", begin.elapsed());
    for n in FORKS {
        start(n);
        println!("figure: fork {n} has its name after {:?}", begin.elapsed());
        let script = format!("hostname; echo {n} >/kept; sync; cat /kept /dev/shm/of_before");
        assert_eq!(sh(n, &script), format!("fork-{n}\n{n}\n41\n"));
        output("ping", &["-q", "-c", "2", "-i", "0.2", "-W", "10", &format!("172.16.0.{n}")]);
    }
    assert_eq!(sh(2, "cat /kept /dev/shm/of_before"), "2\n41\n", "the other one's disk is another");
    // Both map the one file for themselves.
    let maps: Vec<Vec<String>> = pids.iter().map(|&pid| maps_of_memory(pid)).collect();
    assert!(!maps[0].is_empty() && maps[0] == maps[1], "{maps:?}");
    assert!(maps[0].iter().all(|map| map.starts_with("rw-p ")), "{maps:?}");

    let mut taken = going_on(programs, 1, MIB, BASE_DISK);
    taken["tap_device"] = json!("tap-fc-2");
    let (_, message) = helper.err(RESTORE, &taken);
    assert!(message.contains("VM \"vm-2\" has it"), "{message}");

    for (n, pid) in FORKS.into_iter().zip(pids) {
        helper.ok("priv.signal_process", &json!({"pid": pid, "signal": "TERM"}));
        eventually_within(PATIENCE, "it has ended", || !running(&helper, pid, &socket(n)));
        assert_wrote(&disk(n), &format!("{n}\n"));
    }
    eventually("nothing of them is left", || FORKS.iter().all(|&n| is_gone(n)));
    assert_eq!(output("sha256sum", &[STATE, MEMORY]), before, "what they went on from");
    assert_eq!(output("debugfs", &["-R", "cat /kept", BASE_DISK]), "");
}

/// What Firecracker can't go on from, or the helper has no way to: each with its reason, and nothing is left.
fn refused(helper: &Helper, asked: &Value) {
    let is_refused = |asked: &Value, told: &str| {
        let (_, message) = helper.err(RESTORE, asked);
        assert!(message.contains(told), "{told}: {message}");
        assert!(is_gone(2), "{told}\n{}", log_text());
    };
    let taken = sys::tapfd::attach("tap-fc-2").expect("the tap");
    is_refused(asked, "is in use");
    drop(taken);
    let mut layered = asked.clone();
    make_file("/mnt/s/images/2.layer", b"", OWNER, 0o600);
    layered["snapshot"]["layer_path"] = json!("/mnt/s/images/2.layer");
    is_refused(&layered, "Firecracker knows no layers");
    let state = fs::read(STATE).expect("the state");
    make_file("/mnt/s/images/half", &state[..state.len() / 2], OWNER, 0o600);
    let mut cut = asked.clone();
    cut["snapshot"]["state_path"] = json!("/mnt/s/images/half");
    is_refused(&cut, "it loads no such state: ");
}

/// The saved memory in the map of a VMM: rights, offset, device, inode and name of each piece.
fn maps_of_memory(vmm: i32) -> Vec<String> {
    let maps = fs::read_to_string(format!("/proc/{vmm}/maps")).expect("its maps");
    let of_memory = maps.lines().filter(|line| line.ends_with("/memory"));
    of_memory.filter_map(|line| line.split_once(' ')).map(|(_, rest)| rest.to_owned()).collect()
}
