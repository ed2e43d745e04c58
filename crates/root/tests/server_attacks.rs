//! The server under attack by whoever holds the owner's account: places, memory, the end, the log.

#![allow(clippy::disallowed_methods, reason = "tests make files and start programs by path, as a person does")]

mod common;

use common::*;
use rustix::process::Signal;
use serde_json::Value;
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

const ASK: &str = r#"{"method":"priv.process_running","params":{"pid":0},"op_id":"op-1"}"#;

fn code(reply: &Value) -> &str {
    reply["error"]["code"].as_str().unwrap_or("none")
}

fn message(reply: &Value) -> &str {
    reply["error"]["message"].as_str().unwrap_or("")
}

/// A request that takes a while once it is here: millions of escapes in a field.
fn long_request(op_id: &str) -> Vec<u8> {
    let head =
        format!("{{\"method\":\"priv.launch_firecracker\",\"op_id\":\"{op_id}\",\"params\":{{\"kernel_args\":\"");
    [head.into_bytes(), b"\\u0041".repeat(5 << 20), b"\"}}".to_vec()].concat()
}

isolated! {
    fn roots_place_is_not_had_for_what_the_owner_queued() {
        let _helper = Start::new().config("log_level = \"debug\"\n[limits]\nworkers = 1\nrequest_seconds = 3600\n").start();
        let mut running = connect(OWNER);
        running.write_all(&long_request("op-long")).unwrap();
        eventually("it is worked on", || log_text().contains("\"op_id\":\"op-long\""));
        let mut queued = connect(OWNER);
        queued.write_all(ASK.replace("op-1", "op-queued").as_bytes()).unwrap();
        // Each of these frees root's place, in front of a queue that is the owner's.
        for _ in 0..20 {
            assert_eq!(exchange(0, ASK)["ok"], true);
        }
        assert_eq!((code(&reply(running)), &reply(queued)["ok"]), ("operation_failed", &true.into()));
        // The owner has one place, so his second request began when his first was done, and no sooner.
        let lines = log_lines();
        let at = |op_id: &str, msg: &str| lines.iter().position(|line| line["op_id"] == op_id && line["msg"] == msg);
        let (done, begun) = (at("op-long", "helper rpc failed"), at("op-queued", "helper rpc"));
        assert!(done.is_some() && done < begun, "{}", log_text());
    }
}

isolated! {
    fn an_error_is_no_bigger_than_a_reply_may_be() {
        let helper = Start::new().config("[limits]\nreply_bytes_together = 4194304\nreply_seconds = 3600\n").start();
        let ask = |op_id: &str| exchange(OWNER, &format!("{{\"method\":\"priv.none\",\"op_id\":\"{op_id}\"}}"));
        let long = "x".repeat(1 << 20);
        assert_eq!(ask(&long)["error"]["op_id"], long.as_str());
        // Escaped, a `<` has six bytes: this one would have twelve million.
        let longer = ask(&"<".repeat(2 << 20));
        assert_eq!((code(&longer), longer["error"].get("op_id")), ("unknown_method", None));
        let deaf: Vec<UnixStream> = (0..40).map(|_| {
            let mut stream = connect(OWNER);
            let text = format!("{{\"method\":\"priv.none\",\"op_id\":\"{}\"}}", "<".repeat(500 << 10));
            stream.write_all(text.as_bytes()).unwrap();
            stream
        }).collect();
        eventually("all are answered", || log_text().matches("\"message\":\"priv.none\"").count() == 42);
        // Nobody reads them, and nobody is given up yet: 40 replies of three million bytes are not kept.
        eventually("one of them at most is kept whole", || helper.status_kib("VmRSS") < 16 << 10);
        drop(deaf);
        // Nor does a message repeat more than a line of what was sent.
        let pid = format!("{{\"method\":\"priv.kill_process\",\"params\":{{\"pid\":\"{}\"}}}}", "y".repeat(1 << 20));
        let reply = exchange(OWNER, &pid);
        assert!(code(&reply) == "bad_params" && message(&reply).len() < 1100, "{}", message(&reply).len());
        assert!(message(&reply).contains("expected i64"), "{reply}");
    }
}

isolated! {
    fn who_connects_without_end_does_not_hold_the_stop() {
        let mut helper = Start::new().config("[limits]\nstop_seconds = 5\n").start();
        // The socket's inode, which has a name as long as this descriptor is open.
        const O_PATH: i32 = 0o10_000_000;
        let inode = std::fs::File::options().read(true).custom_flags(O_PATH).open(SOCKET).unwrap();
        let by_inode = format!("/proc/{}/fd/{}", std::process::id(), std::os::fd::AsRawFd::as_raw_fd(&inode));
        assert!(UnixStream::connect(&by_inode).is_ok());
        let over = Arc::new(AtomicBool::new(false));
        let flood: Vec<_> = (0..4).map(|_| {
            let (over, path) = (over.clone(), by_inode.clone());
            std::thread::spawn(move || while !over.load(Ordering::Relaxed) {
                drop(UnixStream::connect(&path));
            })
        }).collect();
        helper.signal(Signal::TERM);
        let status = helper.wait();
        over.store(true, Ordering::Relaxed);
        flood.into_iter().for_each(|thread| thread.join().unwrap());
        assert!(status.success());
    }
}

isolated! {
    fn who_was_in_the_backlog_at_the_stop_is_answered() {
        for _ in 0..5 {
            let mut helper = Helper::start();
            helper.signal(Signal::STOP);
            let mut streams = connect_many(OWNER, 50);
            streams.iter_mut().take(25).for_each(|stream| stream.write_all(ASK.as_bytes()).unwrap());
            helper.signal(Signal::TERM);
            helper.signal(Signal::CONT);
            for stream in streams {
                let reply = reply(stream);
                assert!(reply["ok"] == true || message(&reply).contains("stopping"), "{reply}");
            }
            assert!(helper.wait().success());
        }
    }
}

isolated! {
    fn two_helpers_at_one_instant_are_one() {
        make_dir("/mnt/other-root", 0, 0o711);
        make_file("/mnt/e/other.toml", b"run_dir = \"/mnt/other-root\"\n", 0, 0o644);
        for round in 0..50 {
            let spawn = |more: &[&str]| {
                let args = ["--socket", SOCKET, "--state-dir", STATE, "--runtime-dir", RUNTIME, "--install-meta", META];
                let program = env!("CARGO_BIN_EXE_bangerd-root");
                let stderr = std::fs::File::options().create(true).append(true).open("/mnt/log").unwrap();
                std::process::Command::new(program).args(args).args(more).stderr(stderr).spawn().unwrap()
            };
            // On directories of their own, and on the same ones.
            let apart: &[&str] = if round % 2 == 0 { &["--config", "/mnt/e/other.toml"] } else { &[] };
            let mut both = [spawn(&[]), spawn(apart)];
            let mut lost = None;
            eventually("one gives up", || {
                lost = (0..2).find(|&index| both[index].try_wait().unwrap().is_some());
                lost.is_some()
            });
            let winner = &mut both[1 - lost.unwrap()];
            assert_eq!(exchange(OWNER, ASK)["ok"], true, "round {round}: the one that stays is deaf");
            assert!(winner.try_wait().unwrap().is_none());
            let _ = winner.kill();
            let _ = winner.wait();
        }
    }
}

isolated! {
    fn a_terminal_that_stands_still_holds_nobody() {
        let program = env!("CARGO_BIN_EXE_bangerd-root");
        let script = format!(
            "import pty, subprocess\n\
             master, slave = pty.openpty()\n\
             subprocess.run(['{program}', '--socket', '{SOCKET}', '--state-dir', '{STATE}', '--runtime-dir', '{RUNTIME}',\n\
               '--install-meta', '{META}', '--log-level', 'debug'], stderr=slave, stdin=subprocess.DEVNULL)\n"
        );
        let mut terminal = std::process::Command::new("python3").args(["-c", &script]).spawn().expect("python3");
        eventually("it serves", || connect_to(OWNER, SOCKET).is_ok());
        // Far more than a terminal holds.
        for _ in 0..2000 {
            assert_eq!(exchange(OWNER, ASK)["ok"], true);
        }
        let _ = terminal.kill();
        let _ = terminal.wait();
    }
}

isolated! {
    fn urgent_bytes_and_passed_descriptors_are_nothing() {
        let helper = Helper::start();
        assert_eq!(exchange(OWNER, ASK)["ok"], true);
        let before = helper.open_files();
        let script = format!(
            "import os, socket, array\n\
             os.setgroups([]); os.setgid({OWNER}); os.setuid({OWNER})\n\
             ask = b'{ASK}'\n\
             for first in range(0, len(ask), 7):\n\
             \x20 s = socket.socket(socket.AF_UNIX); s.connect('{SOCKET}')\n\
             \x20 s.send(ask[:first])\n\
             \x20 fds = array.array('i', [0] * 100)\n\
             \x20 s.sendmsg([ask[first:first + 1]], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, fds)])\n\
             \x20 s.send(ask[first + 1:])\n\
             \x20 assert b'\"ok\":true' in s.recv(4096), first\n\
             s = socket.socket(socket.AF_UNIX); s.connect('{SOCKET}')\n\
             try: s.send(b'x', socket.MSG_OOB)\n\
             except OSError: pass\n\
             s.send(ask)\n\
             assert s.recv(4096)\n"
        );
        assert!(std::process::Command::new("python3").args(["-c", &script]).status().expect("python3").success());
        eventually("nothing of it stays open", || helper.open_files() <= before);
        assert_eq!(exchange(OWNER, ASK)["ok"], true);
    }
}

isolated! {
    fn a_thousand_half_requests_leave_nothing_behind() {
        let helper = Start::new().config("[limits]\nrequest_seconds = 3600\n").start();
        let mut halves = connect_many(OWNER, 1000);
        let half = format!("{{\"op_id\":\"{}", "z".repeat(60_000));
        halves.iter_mut().for_each(|stream| stream.write_all(half.as_bytes()).unwrap());
        eventually("they are read", || helper.status_kib("VmRSS") > 40 << 10);
        assert!(helper.status_kib("VmRSS") < 160 << 10, "{} KiB", helper.status_kib("VmRSS"));
        assert_eq!(exchange(OWNER, ASK)["ok"], true);
        drop(halves);
        eventually("their memory is given back", || helper.status_kib("RssAnon") < 4 << 10);
    }
}
