//! A program with a terminal.

// A test's helpers are tests too; clippy's setting knows only the functions marked so.
#![allow(clippy::unwrap_used)]

mod support;

use std::io::{Read, Write};
use std::time::{Duration, Instant};

use agent::host::Program;
use agent::protocol::{Exit, ExitSignal, SignalName, TtySize};
use support::{OK, Running, code, run, sh, start};

const SIZE: TtySize = TtySize { rows: 40, cols: 120 };

fn tty(script: &str) -> Program {
    Program { tty: Some(SIZE), ..sh(script) }
}

/// Reads until the text is there.
fn read_until(running: &mut Running, text: &str) -> String {
    let mut got = Vec::new();
    let mut byte = [0];
    while !String::from_utf8_lossy(&got).contains(text) {
        assert_eq!(running.stdout.as_mut().unwrap().read(&mut byte).unwrap(), 1, "{}", String::from_utf8_lossy(&got));
        got.push(byte[0]);
    }
    String::from_utf8(got).unwrap()
}

#[test]
fn the_size_is_there_before_the_program() {
    let whole = run(tty("stty size; tty; ps -o sid=,pid=,tpgid= -p $$; exit 4"));
    let lines: Vec<&str> = whole.text().lines().map(str::trim).collect();
    assert_eq!((whole.exit(), lines[0]), (code(4), "40 120"));
    assert!(lines[1].starts_with("/dev/pts/"), "{lines:?}");
    let ids: Vec<&str> = lines[2].split_whitespace().collect();
    assert!(ids[0] == ids[1] && ids[1] == ids[2], "leader of session and foreground group: {ids:?}");
    assert!(whole.stderr.is_empty());
}

#[test]
fn a_new_size_is_seen_and_an_early_one_comes_first() {
    let running = start(tty("trap 'stty size' WINCH; echo ready; while :; do sleep 0.05; done"), None);
    running.control.resize(TtySize { rows: 5, cols: 6 }).unwrap();
    let mut running = running;
    read_until(&mut running, "ready");
    running.control.resize(TtySize { rows: 50, cols: 60 }).unwrap();
    read_until(&mut running, "50 60");
    running.signal(SignalName::Kill);
    let killed = Exit::Signal(ExitSignal { signal: 9, core: false, oom: false });
    assert_eq!(running.whole().exit(), killed);
}

#[test]
fn the_end_of_input_is_seen_also_in_the_middle_of_a_line() {
    for (input, count) in [("", 0), ("a line\n", 7), ("half", 4)] {
        let mut running = start(tty("stty -echo; echo ready; wc -c"), None);
        read_until(&mut running, "ready");
        running.stdin.take().unwrap().write_all(input.as_bytes()).unwrap();
        let whole = running.whole();
        assert_eq!((whole.exit(), whole.text().trim()), (OK, &*count.to_string()), "{input:?}");
    }
}

#[test]
fn keys_are_the_guest_s() {
    let mut running = start(tty("trap 'echo got it; exit 5' INT; echo ready; while :; do sleep 0.05; done"), None);
    read_until(&mut running, "ready");
    running.stdin.as_mut().unwrap().write_all(b"\x03").unwrap();
    let whole = running.whole();
    assert_eq!(whole.exit(), code(5));
    assert!(whole.text().contains("got it"));
}

#[test]
fn a_background_child_delays_nothing_quiet_or_not() {
    // Each of them ends by itself, some time after the call.
    for background in ["sleep 8", "timeout 8 yes", "timeout 8 sh -c 'while :; do echo x; sleep 0.005; done'"] {
        let begin = Instant::now();
        let whole = run(tty(&format!("trap '' HUP; {background} & printf end-of-it")));
        assert_eq!(whole.exit(), OK);
        assert!(whole.text().contains("end-of-it"), "{background}");
        assert!(begin.elapsed() < Duration::from_secs(5), "{background}: {:?}", begin.elapsed());
    }
}
