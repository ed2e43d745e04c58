//! The server over its socket: who may speak, what is no request, limits, the log, its end.

#![allow(clippy::disallowed_methods, reason = "tests make files and start programs by path, as a person does")]

mod common;

use common::*;
use rustix::process::Signal;
use serde_json::{Value, json};
use std::io::{ErrorKind, Read, Write};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

const ASK: &str = r#"{"version":1,"method":"priv.process_running","params":{"pid":0,"api_sock":""},"op_id":"op-1"}"#;

fn code(reply: &Value) -> &str {
    reply["error"]["code"].as_str().unwrap_or("none")
}

fn message(reply: &Value) -> &str {
    reply["error"]["message"].as_str().unwrap_or("")
}

/// The owner's next call is served.
fn serves() {
    assert_eq!(exchange(OWNER, ASK), json!({"ok": true, "result": {"running": false}}));
}

/// Sends as much as the helper takes, then reads its answer.
fn send_all(uid: u32, pieces: impl Iterator<Item = Vec<u8>>) -> Value {
    let mut stream = connect(uid);
    for piece in pieces {
        // It may have answered and closed long before the end.
        if stream.write_all(&piece).is_err() {
            break;
        }
    }
    let mut text = Vec::new();
    if let Err(error) = stream.read_to_end(&mut text) {
        assert_eq!(error.kind(), ErrorKind::ConnectionReset);
    }
    serde_json::from_slice(&text).expect("a reply")
}

isolated! {
    fn root_and_the_owner_pass_and_nobody_else() {
        let _helper = Helper::start();
        serves();
        assert_eq!(exchange(0, ASK)["ok"], true);
        // The socket keeps others out; where its mode was opened, they are told before they say anything.
        assert_eq!(connect_to(OTHER, SOCKET).unwrap_err().kind(), ErrorKind::PermissionDenied);
        std::fs::set_permissions(SOCKET, std::os::unix::fs::PermissionsExt::from_mode(0o666)).unwrap();
        let silent = reply(connect(OTHER));
        assert_eq!((code(&silent), silent["error"].get("op_id")), ("unauthorized", None));
        assert_eq!(message(&silent), "uid 5502 is not allowed to use the root helper");
        assert_eq!(code(&send_all(OTHER, std::iter::once(ASK.into()))), "unauthorized");
        let told = log_lines().into_iter().filter(|line| line["code"] == "unauthorized").count();
        assert_eq!(told, 2, "{}", log_text());
        serves();
    }
}

isolated! {
    fn a_request_ends_with_its_last_byte() {
        let _helper = Helper::start();
        // The client keeps its side open, and sends no newline.
        serves();
        let mut dripping = connect(OWNER);
        for byte in ASK.bytes() {
            dripping.write_all(&[byte]).unwrap();
            std::thread::sleep(Duration::from_millis(1));
        }
        assert_eq!(reply(dripping)["ok"], true);
        // What follows is not looked at.
        let two = format!("{ASK}{}", ASK.replace("process_running", "list_resources"));
        assert_eq!(send_all(OWNER, std::iter::once(two.into()))["result"], json!({"running": false}));
    }
}

isolated! {
    fn what_is_no_request_is_told_so() {
        let _helper = Helper::start();
        for (bytes, wanted) in [
            (&b"hello\n"[..], "bad_request"),
            (b"[1,\"priv.process_running\",null]", "bad_request"),
            (b"{\"method\":\"priv.process_running\",\"method\":\"priv.kill_process\"}", "bad_request"),
            (b"{\"method\":\"priv.process_running\",\"op_id\":\"\xff\"}", "bad_request"),
            (b"{\"method\":\"priv.process_running\",\"op_id\":\"\\ud800\"}", "bad_request"),
            (b"{\"method\":7}", "bad_request"),
            (b"{\"method\":\"priv.run_shell\",\"op_id\":\"op-7\"}", "unknown_method"),
            (b"{}", "unknown_method"),
            (b"{\"method\":\"priv.kill_process\",\"params\":{\"pid\":\"1\"}}", "bad_params"),
            (b"{\"method\":\"priv.delete_tap\",\"params\":{\"tap_name\":\"tap-fc-1\",\"force\":true}}", "bad_params"),
        ] {
            let reply = send_all(OWNER, std::iter::once(bytes.to_vec()));
            assert_eq!(code(&reply), wanted, "{}", String::from_utf8_lossy(bytes));
        }
        let unknown = exchange(OWNER, r#"{"method":"priv.run_shell","op_id":"op-7"}"#);
        assert_eq!(unknown["error"], json!({"code": "unknown_method", "message": "priv.run_shell", "op_id": "op-7"}));
        serves();
    }
}

isolated! {
    fn half_a_request_then_the_end() {
        let _helper = Helper::start();
        for part in ["", "{\"method\":\"priv.ensure_br"] {
            let mut stream = connect(OWNER);
            stream.write_all(part.as_bytes()).unwrap();
            no_more(&stream);
            assert_eq!(code(&reply(stream)), "bad_request");
            drop(connect(OWNER).write_all(part.as_bytes()));
        }
        serves();
    }
}

isolated! {
    fn sixty_four_mebibytes_of_brackets() {
        let helper = Helper::start();
        let brackets = || std::iter::repeat_n(vec![b'['; 1 << 20], 64);
        assert_eq!(code(&send_all(OWNER, brackets())), "bad_request");
        // Inside a string nothing ends them but the limit.
        let text = std::iter::once(b"{\"method\":\"".to_vec()).chain(brackets());
        let reply = send_all(OWNER, text);
        assert_eq!(code(&reply), "bad_request");
        assert!(message(&reply).contains("33554432 bytes"), "{reply}");
        assert!(helper.status_kib("VmHWM") < 100 << 10, "{} KiB", helper.status_kib("VmHWM"));
        eventually("the memory comes back", || helper.status_kib("RssAnon") < 3 << 10);
        serves();
    }
}

isolated! {
    fn a_thousand_connections_and_the_next_caller_is_served() {
        // None of them is given up before the end, however long it takes to make them.
        let helper = Start::new().config("[limits]\nrequest_seconds = 3600\n").start();
        // The socket can be connected to before the helper has opened all that it keeps open; who is served comes later.
        serves();
        let before = helper.open_files();
        let idle = connect_many(OWNER, 1000);
        serves();
        assert!(helper.open_files() >= before + 999, "they are there");
        assert!(helper.status_kib("VmRSS") < 16 << 10, "{} KiB", helper.status_kib("VmRSS"));
        drop(idle);
        eventually("the descriptors are closed", || helper.open_files() <= before);
    }
}

isolated! {
    fn a_thousand_callers_at_once_are_all_answered() {
        let _helper = Helper::start();
        let mut streams = connect_many(OWNER, 1000);
        for stream in &mut streams {
            stream.write_all(ASK.as_bytes()).unwrap();
        }
        for stream in streams {
            assert_eq!(reply(stream)["ok"], true);
        }
    }
}

isolated! {
    fn a_limit_that_is_reached_is_named_and_root_has_a_place() {
        let _helper = Start::new().config("[limits]\nconnections = 5\nrequest_seconds = 2\nrequest_bytes = 4096\n").start();
        eventually("the starter's connection is gone", || exchange(OWNER, ASK)["ok"] == true);
        let idle: Vec<UnixStream> = (0..5).map(|_| connect(OWNER)).collect();
        let full = reply(connect(OWNER));
        assert_eq!(code(&full), "operation_failed");
        assert!(message(&full).contains("limits.connections"), "{full}");
        assert_eq!(exchange(0, ASK)["ok"], true);
        for stream in idle {
            let late = reply(stream);
            assert_eq!(code(&late), "bad_request");
            assert!(message(&late).contains("limits.request_seconds"), "{late}");
        }
        serves();
        let long = format!("{{\"method\":\"{}\"}}", "x".repeat(5000));
        let reply = send_all(OWNER, std::iter::once(long.into()));
        assert!(code(&reply) == "bad_request" && message(&reply).contains("4096"), "{reply}");
    }
}

isolated! {
    fn requests_together_have_a_bound() {
        let helper = Start::new().config("[limits]\nrequest_bytes_together = 4194304\n").start();
        let begin = |size: usize| {
            let mut stream = connect(OWNER);
            let text = format!("{{\"op_id\":\"{}", "x".repeat(size));
            (stream.write_all(text.as_bytes()).is_ok(), stream)
        };
        let held: Vec<_> = (0..4).map(|_| begin(900 << 10)).collect();
        assert!(held.iter().all(|(sent, _)| *sent));
        let (_, stream) = begin(2 << 20);
        let mut text = Vec::new();
        let _ = { stream }.read_to_end(&mut text);
        let reply: Value = serde_json::from_slice(&text).unwrap();
        assert_eq!(code(&reply), "operation_failed");
        assert!(message(&reply).contains("limits.request_bytes_together"), "{reply}");
        // Small ones pass.
        serves();
        drop(held);
        eventually("there is room again", || helper.status_kib("RssAnon") < 3 << 10);
    }
}

isolated! {
    fn one_that_never_reads_holds_nobody() {
        let helper = Start::new().config("[limits]\nworkers = 1\nreply_seconds = 2\n").start();
        // A method's name is repeated in the error, so with long op_ids a reply outgrows a socket's buffer.
        let request = format!("{{\"method\":\"priv.none\",\"op_id\":\"{}\"}}", "x".repeat(2 << 20));
        serves();
        let before = helper.open_files();
        let mut deaf: Vec<UnixStream> = (0..8).map(|_| connect(OWNER)).collect();
        for stream in &mut deaf {
            stream.write_all(request.as_bytes()).unwrap();
        }
        serves();
        eventually("they are given up", || helper.open_files() <= before);
        assert!(log_text().contains("reply given up") && log_text().contains("limits.reply_seconds"));
        eventually("their memory comes back", || helper.status_kib("RssAnon") < 3 << 10);
    }
}

isolated! {
    fn the_log_is_the_contracts_and_nobody_forges_it() {
        let _helper = Start::new().args(&["--log-level", "debug"]).start();
        serves();
        let forged = r#"priv.x\n{\"time\":\"2026-01-01T00:00:00Z\",\"level\":\"INFO\",\"msg\":\"forged\"}"#;
        let op_id = format!(r"\u001b]0;pwn\u0007\u009b2J\u202e\u2028{}", "y".repeat(10_000));
        exchange(OWNER, &format!("{{\"method\":\"{forged}\",\"op_id\":\"{op_id}\"}}"));
        exchange(OWNER, r#"{"method":"priv.create_tap","params":{"tap_name":"eth0\u001b[2J\n"}}"#);
        send_all(OWNER, std::iter::once(b"no json\n".to_vec()));

        let text = log_text();
        assert!(!text.chars().any(|c| (c.is_control() && c != '\n') || matches!(c, '\u{2028}' | '\u{202e}')), "{text}");
        let lines = log_lines();
        assert!(!lines.iter().any(|line| line["msg"] == "forged"));
        let of_op = |msg: &str| lines.iter().find(|line| line["msg"] == msg && line["op_id"] == "op-1").unwrap();
        let keys = |line: &Value| line.as_object().unwrap().keys().cloned().collect::<Vec<_>>();
        assert_eq!(keys(of_op("helper rpc")), ["level", "method", "msg", "op_id", "time"]);
        let completed = of_op("helper rpc completed");
        assert_eq!(keys(completed), ["duration_ms", "level", "method", "msg", "op_id", "time"]);
        assert!(completed["duration_ms"].is_u64() && completed["level"] == "INFO");
        let failed: Vec<_> = lines.iter().filter(|line| line["msg"] == "helper rpc failed").collect();
        let codes: Vec<_> = failed.iter().map(|line| line["code"].as_str().unwrap()).collect();
        // The first is the starter's, that connected and said nothing.
        assert_eq!(codes[codes.len() - 3..], ["unknown_method", "operation_failed", "bad_request"]);
        assert!(failed.iter().all(|line| line["level"] == "ERROR" && line["method"].is_string() && line["op_id"].is_string()));
        assert_eq!(failed.last().unwrap()["method"], "");
    }
}

isolated! {
    fn log_lines_have_a_rate_and_what_was_dropped_is_told() {
        let begun = Instant::now();
        let _helper = Start::new().config("[limits]\nlog_lines_per_second = 1\n").start();
        // Until a line says that lines were dropped: on a slow machine that takes fewer calls.
        let (mut calls, mut dropped) = (0, None);
        while dropped.is_none() {
            serves();
            calls += 1;
            dropped = log_lines().iter().find_map(|line| (line["msg"] == "log lines dropped").then(|| line["lines"].as_u64()));
            assert!(calls < 100_000, "nothing is dropped");
        }
        let dropped = dropped.flatten().expect("a number");
        let written = log_lines().iter().filter(|line| line["msg"] == "helper rpc completed").count() as u64;
        // Each call is in the log or in the count.
        assert_eq!(written + dropped, calls);
        // Four seconds' worth, and one for each second since before the start.
        assert!(written <= 5 + begun.elapsed().as_secs(), "{written}");
    }
}

isolated! {
    fn the_socket_goes_with_the_helper() {
        for signal in [Signal::TERM, Signal::INT] {
            let mut helper = Helper::start();
            let idle = connect(OWNER);
            serves();
            helper.signal(signal);
            let refused = reply(idle);
            assert_eq!(code(&refused), "operation_failed");
            assert!(message(&refused).contains("stopping"), "{refused}");
            assert!(helper.wait().success());
            assert!(!exists(SOCKET));
        }
    }
}

isolated! {
    fn what_it_keeps_of_its_starter() {
        let helper = Helper::start();
        let proc = format!("/proc/{}", helper.pid());
        let status = std::fs::read_to_string(format!("{proc}/status")).unwrap();
        let line = |key: &str| status.lines().find_map(|line| line.strip_prefix(key)).unwrap().trim().to_owned();
        assert_eq!(line("Umask:"), "0077");
        assert_eq!(line("NoNewPrivs:"), "1");
        assert_eq!(line("Groups:"), "");
        // CHOWN, DAC_OVERRIDE, FOWNER, KILL, SETGID, SETUID, SETPCAP, NET_ADMIN, SYS_CHROOT, SYS_PTRACE, SYS_ADMIN,
        // MKNOD.
        let kept: u64 = [0, 1, 3, 5, 6, 7, 8, 12, 18, 19, 21, 27].iter().map(|bit| 1_u64 << bit).sum();
        // NET_RAW is for iptables-legacy, and in effect here never.
        for (set, aside) in [("CapPrm:", 1 << 13), ("CapEff:", 0), ("CapBnd:", 1 << 13)] {
            let has = u64::from_str_radix(&line(set), 16).unwrap();
            assert_eq!(has & !(kept | aside), 0, "{set} {has:x}");
        }
        assert_eq!(u64::from_str_radix(&line("CapInh:"), 16).unwrap(), 0);
        let limits = std::fs::read_to_string(format!("{proc}/limits")).unwrap();
        assert!(limits.lines().any(|line| line.starts_with("Max core file size") && line.contains(" 0 ")));
        assert_eq!(std::fs::read_link(format!("{proc}/cwd")).unwrap().to_str(), Some("/"));
    }
}

/// A request that takes a while to be read, once it is here: five million escapes in a field.
fn long_request(op_id: &str) -> Vec<u8> {
    let head =
        format!("{{\"method\":\"priv.launch_firecracker\",\"op_id\":\"{op_id}\",\"params\":{{\"kernel_args\":\"");
    [head.into_bytes(), b"\\u0041".repeat(5 << 20), b"\"}}".to_vec()].concat()
}

/// Sends it, and waits until somebody works on it.
fn begin(op_id: &str) -> UnixStream {
    let mut stream = connect(OWNER);
    stream.write_all(&long_request(op_id)).expect("sent");
    let entered = format!("\"msg\":\"helper rpc\",\"method\":\"priv.launch_firecracker\",\"op_id\":\"{op_id}\"");
    eventually("it is worked on", || log_text().contains(&entered));
    stream
}

isolated! {
    fn what_runs_is_ended_and_what_is_new_is_refused() {
        let mut helper = Start::new().config("log_level = \"debug\"\n[limits]\nrequest_seconds = 3600\n").start();
        let running = begin("op-long");
        let asking = connect(OWNER);
        helper.signal(Signal::TERM);
        assert!(message(&reply(asking)).contains("stopping"));
        eventually("the socket goes at once", || !exists(SOCKET));
        // Its own answer, not that of the stop.
        let answer = reply(running);
        assert_eq!((code(&answer), &answer["error"]["op_id"]), ("operation_failed", &json!("op-long")));
        assert!(!message(&answer).contains("stopping"), "{answer}");
        assert!(helper.wait().success());
    }
}

isolated! {
    fn workers_and_what_waits_for_them_have_bounds() {
        let config = "log_level = \"debug\"\n[limits]\nworkers = 1\nqueued = 1\nrequest_seconds = 3600\n";
        let _helper = Start::new().config(config).start();
        let running = begin("op-1st");
        let mut waiting = connect(OWNER);
        waiting.write_all(ASK.replace("op-1", "op-2nd").as_bytes()).unwrap();
        // It is seen before the next one, or after it; one of both waits, the other is told so.
        let mut third = connect(OWNER);
        third.write_all(ASK.replace("op-1", "op-3rd").as_bytes()).unwrap();
        assert_eq!(exchange(0, ASK)["ok"], true, "root has a place");
        let (second, third) = (reply(waiting), reply(third));
        let refused = [&second, &third].into_iter().find(|reply| reply["ok"] == false).expect("one is refused");
        assert!(message(refused).contains("limits.queued"), "{refused}");
        assert!([&second, &third].into_iter().any(|reply| reply["ok"] == true));
        assert_eq!(code(&reply(running)), "operation_failed");
        serves();
    }
}

isolated! {
    fn a_client_that_goes_away_does_not_end_its_operation() {
        let _helper = Start::new().config("log_level = \"debug\"\n[limits]\nrequest_seconds = 3600\n").start();
        drop(begin("op-gone"));
        eventually("it is done all the same", || {
            log_lines().iter().any(|line| line["msg"] == "helper rpc failed" && line["op_id"] == "op-gone")
        });
        serves();
    }
}

isolated! {
    fn an_idle_helper_is_small() {
        let helper = Helper::start();
        serves();
        // How many pages of the program's file are mapped is the page cache's to say, and a debug build has many.
        let private = helper.status_kib("RssAnon");
        assert!(private < 2 << 10, "{private} KiB");
        // One more for each call that found none at the door goes again when it was idle for some seconds.
        let threads = || std::fs::read_dir(format!("/proc/{}/task", helper.pid())).unwrap().count();
        eventually_within(std::time::Duration::from_secs(60), "an idle helper to have few threads", || threads() <= 3);
    }
}

isolated! {
    fn a_log_that_nobody_reads_holds_nobody() {
        let (read, write) = std::io::pipe().unwrap();
        let _helper = Start::new().args(&["--log-level", "debug"]).log_to(write).start();
        // Far more than a pipe holds.
        for _ in 0..2000 {
            serves();
        }
        drop(read);
        serves();
    }
}

isolated! {
    fn what_the_owner_may_not_reach_is_not_reached_for_him() {
        let helper = Helper::start();
        make_dir("/mnt/r/vm/locked", 0, 0o700);
        let _socket = std::os::unix::net::UnixListener::bind("/mnt/r/vm/locked/s").unwrap();
        let params = json!({"socket_path": "/mnt/r/vm/locked/s", "label": "api"});
        let (_, message) = helper.err("priv.ensure_socket_access", &params);
        assert!(message.contains("the owner may not open"), "{message}");
        let log = log_text();
        assert!(log.contains("openat2(</mnt/r>, \\\"vm/locked/s\\\", O_PATH, beneath): Permission denied (EACCES)"), "{log}");
        // The thread has its own rights again: a bridge is root's business.
        let bridge = json!({"bridge_name": "br-fc", "bridge_ip": "172.16.0.1", "cidr": "24"});
        for _ in 0..4 {
            helper.err("priv.ensure_socket_access", &params);
            helper.ok("priv.ensure_bridge", &bridge);
        }
    }
}
