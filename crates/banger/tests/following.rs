//! What goes on over time ends with its reader: `banger vm logs -f web | head -1`.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod stand_in;

use banger::api::conn::Conn;
use banger::api::{Attached, Event, Handed};
use serde_json::{Value, json};
use stand_in::{StandIn, vm};
use std::fs::File;
use std::io::{BufRead, BufReader};
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
