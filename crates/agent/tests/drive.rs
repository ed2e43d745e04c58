//! The host's driver, against the agent's program: the caller's three descriptors, orders, limits.

// A test's helpers are tests too; clippy's setting knows only the functions marked so.
#![allow(clippy::unwrap_used)]

mod support;

use std::io::{Read, Write};
use std::time::{Duration, Instant};

use agent::host::{Failure, Stage};
use agent::protocol::{Exit, ExitSignal, SignalName};
use support::{OK, code, program, run, sh, start};

#[test]
fn three_streams_and_a_status() {
    let mut running = start(sh("cat; echo err >&2; exit 3"), None);
    running.stdin.take().unwrap().write_all(b"through\n").unwrap();
    let whole = running.whole();
    assert_eq!((whole.exit(), whole.text(), &*whole.stderr), (code(3), "through\n", &b"err\n"[..]));
}

#[test]
fn an_input_that_never_ends_holds_up_nothing() {
    let begin = Instant::now();
    assert_eq!(start(program(&["/bin/true"]), None).whole().exit(), OK);
    assert!(begin.elapsed() < Duration::from_secs(5), "{:?}", begin.elapsed());
}

#[test]
fn a_reader_that_goes_ends_the_writer() {
    let mut running = start(sh("yes; echo $? >&2"), None);
    let mut some = [0; 100];
    running.stdout.as_mut().unwrap().read_exact(&mut some).unwrap();
    running.stdout = None;
    let whole = running.whole();
    // 141: the shell's word for a child that SIGPIPE ended.
    assert_eq!((whole.exit(), &*whole.stderr), (OK, &b"141\n"[..]));
}

#[test]
fn signals_reach_the_group_and_early_ones_wait() {
    for early in [true, false] {
        let running = start(sh("trap 'echo got; exit 7' USR1; echo ready; while :; do sleep 0.05; done"), None);
        if !early {
            running.wait_started();
        }
        // Until the trap is there USR1 ends the shell: either way it arrived.
        running.signal(SignalName::Usr1);
        let whole = running.whole();
        let killed = Exit::Signal(ExitSignal { signal: 10, core: false, oom: false });
        assert!(whole.exit() == killed || (whole.exit() == code(7) && whole.text().ends_with("got\n")), "{whole:?}");
    }
}

#[test]
fn time_that_is_over_ends_the_program() {
    let begin = Instant::now();
    let whole = start(program(&["/bin/sleep", "60"]), Some(Duration::from_millis(200))).whole();
    let ended = whole.ended.unwrap();
    assert_eq!(ended.exit, Exit::Signal(ExitSignal { signal: 15, core: false, oom: false }));
    assert!(ended.timed_out && begin.elapsed() < Duration::from_secs(5));
}

#[test]
fn a_call_that_is_given_up_has_no_status() {
    let running = start(program(&["/bin/sleep", "60"]), None);
    running.wait_started();
    running.control.abandon().unwrap();
    assert!(matches!(running.whole().ended, Err(Failure::Abandoned)));
}

#[test]
fn an_agent_that_dies_is_lost_with_what_it_said_passed_on() {
    let mut running = start(sh("echo said; sleep 60"), None);
    let mut said = [0; 5];
    running.stdout.as_mut().unwrap().read_exact(&mut said).unwrap();
    let begin = Instant::now();
    running.agent.as_mut().unwrap().kill().unwrap();
    let whole = running.whole();
    assert!(matches!(whole.ended, Err(Failure::Lost(Stage::Running))), "{whole:?}");
    assert!(begin.elapsed() < Duration::from_secs(2) && said == *b"said\n");
}

#[test]
fn what_can_t_be_started_has_a_shell_s_status() {
    for (path, status) in [("/nowhere/at/all", 127), ("no-such-program-here", 127), ("/etc", 126), ("/etc/passwd", 126)]
    {
        assert_eq!(run(program(&[path])).ended.unwrap_err().status(), status, "{path}");
    }
}
