//! What goes on over time: it ends with its reader (`banger vm logs -f web | head -1`), and a stage's line is one.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod stand_in;

use banger::api::conn::Conn;
use banger::api::{Attached, Event, Handed, Stage, StageState};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use serde_json::{Value, json};
use stand_in::{StandIn, vm};
use std::fs::File;
use std::io::{BufRead, BufReader, Read};
use std::os::fd::AsFd;
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// A daemon with a VM that runs, and whose console has that text and gets no more.
fn with_console(socket: &Path, text: &'static str) {
    let listener = UnixListener::bind(socket).unwrap();
    let console = socket.with_extension("console");
    std::fs::write(&console, text).unwrap();
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let mut conn = Conn::new(stream.unwrap());
            let call: Value = serde_json::from_slice(&conn.line().unwrap().unwrap()).unwrap();
            let mut web = vm("web");
            web["state"] = "running".into();
            let done = match call["op"].as_str().unwrap() {
                "vm.log.times" => json!({"times": []}),
                "vm.logs" => {
                    let (vm, what, accel) = ("web".into(), Handed::Console, "kvm".into());
                    let attached = Event::Attached(Attached { vm, what, accel, workspace: None });
                    conn.send(&attached, Some(File::open(&console).unwrap().as_fd())).unwrap();
                    web
                }
                _ => web,
            };
            let _ = conn.send(&Event::Done(done), None);
        }
    });
}

fn begin(words: &str, socket: &Path) -> Child {
    let mut command = Command::new(env!("CARGO_BIN_EXE_banger"));
    command.args(words.split(' ')).env("BANGER_SOCKET", socket).env("BANGER_CONFIG", "/dev/null");
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
}

/// It ends soon and in peace, now that nobody reads what it writes.
fn ends(mut child: Child, words: &str) {
    drop(child.stdout.take());
    let until = Instant::now() + Duration::from_secs(30);
    while child.try_wait().unwrap().is_none() {
        if Instant::now() > until {
            child.kill().unwrap();
            panic!("{words} goes on without a reader");
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    let out = child.wait_with_output().unwrap();
    assert_eq!((out.status.code(), String::from_utf8(out.stderr).unwrap()), (Some(0), String::new()), "{words}");
}

#[test]
fn a_console_that_is_followed() {
    let dir = tempfile::tempdir().unwrap();
    let socket = dir.path().join("s");
    with_console(&socket, "hello\n");
    for words in ["vm logs -f web", "vm logs -f --source console web", "vm logs --follow --tail 1 web"] {
        let mut child = begin(words, &socket);
        let mut line = String::new();
        BufReader::new(child.stdout.as_mut().unwrap()).read_line(&mut line).unwrap();
        assert_eq!(line, "hello\n", "{words}");
        ends(child, words);
    }
}

#[test]
fn figures_that_are_watched() {
    let daemon = StandIn::with_vms(&["web"]);
    for words in ["vm stats --watch=1h --json", "vm stats --watch=1h"] {
        ends(begin(words, &daemon.socket()), words);
    }
}

/// A daemon whose starts boot for ever, and usually take two seconds.
fn that_boots(socket: &Path) {
    let listener = UnixListener::bind(socket).unwrap();
    std::thread::spawn(move || {
        let mut kept = Vec::new();
        for stream in listener.incoming() {
            let mut conn = Conn::new(stream.unwrap());
            conn.line().unwrap();
            let (name, about, note) = ("boot".into(), "web".into(), String::new());
            let usual_us = Some(2_000_000);
            let stage = Stage { name, state: StageState::Begun, at_us: 0, about, note, usual_us };
            conn.send(&Event::Stage(stage), None).unwrap();
            kept.push(conn);
        }
    });
}

#[test]
fn a_stage_that_is_late_says_where_to_look_and_its_line_goes_before_other_words() {
    let dir = tempfile::tempdir().unwrap();
    let socket = dir.path().join("s");
    that_boots(&socket);
    let line = format!("stty cols 120; exec {} vm run --image i --kernel k -- true", env!("CARGO_BIN_EXE_banger"));
    let mut script = Command::new("script");
    script.args(["-qec", &line, "/dev/null"]).env("BANGER_SOCKET", &socket).env("BANGER_CONFIG", "/dev/null");
    script.env_remove("CI").env("TERM", "xterm").stdin(Stdio::null()).stdout(Stdio::piped());
    let mut child = script.spawn().unwrap();
    let mut shown = child.stdout.take().unwrap();
    let mut text = String::new();
    let mut until = |word: &str| {
        let (mut byte, end) = ([0], Instant::now() + Duration::from_secs(60));
        while !text.contains(word) {
            let left = end.saturating_duration_since(Instant::now());
            let left = Timespec { tv_sec: left.as_secs().cast_signed(), tv_nsec: left.subsec_nanos().into() };
            let ready = poll(&mut [PollFd::new(&shown, PollFlags::IN)], Some(&left)).unwrap();
            assert!(ready > 0, "{word:?} did not come in time: {text:?}");
            assert_eq!(shown.read(&mut byte).unwrap(), 1, "{word:?} did not come: {text:?}");
            text.push(byte[0].into());
        }
    };
    until("\rweb  boot  0.");
    until("  (usually 2.0)\x1b[K");
    until("  (usually 2.0)  banger vm logs -f web shows the console\x1b[K");
    let pids = std::fs::read_to_string(format!("/proc/{0}/task/{0}/children", child.id())).unwrap();
    for _ in 0..2 {
        assert!(Command::new("kill").args(["-INT", pids.trim()]).status().unwrap().success());
        // Two at once are one.
        std::thread::sleep(Duration::from_millis(200));
    }
    until("\r\x1b[Kbangerd goes on undoing");
    assert_eq!(child.wait().unwrap().code(), Some(130));
}
