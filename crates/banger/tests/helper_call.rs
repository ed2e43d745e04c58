//! `banger helper call` and `list` against a peer on a socket: what is sent, what is printed, which status.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

use std::io::{Read, Write};
use std::os::unix::net::UnixListener;
use std::process::{Command, Output, Stdio};
use std::thread;

/// Runs the program against a peer that answers with `reply`; what it printed, and what the peer was sent.
fn against(reply: &[u8], arguments: &[&str], stdin: &str) -> (Output, String) {
    let dir = tempfile::tempdir().unwrap();
    let socket = dir.path().join("helper.sock");
    let listener = UnixListener::bind(&socket).unwrap();
    let reply = reply.to_vec();
    let peer = thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        let mut got = Vec::new();
        let mut byte = [0];
        while got.last() != Some(&b'\n') && stream.read(&mut byte).unwrap() == 1 {
            got.push(byte[0]);
        }
        stream.write_all(&reply).unwrap();
        String::from_utf8(got).unwrap()
    });
    let out = run(&[arguments, &["--socket", socket.to_str().unwrap(), "--timeout", "20s"]].concat(), stdin);
    (out, peer.join().unwrap())
}

fn run(arguments: &[&str], stdin: &str) -> Output {
    let mut child = Command::new(env!("CARGO_BIN_EXE_banger"))
        .args(arguments)
        .env_remove("BANGER_OP_ID")
        .env_remove("BANGER_HELPER_SOCKET")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    child.stdin.take().unwrap().write_all(stdin.as_bytes()).unwrap();
    child.wait_with_output().unwrap()
}

fn text(bytes: &[u8]) -> &str {
    std::str::from_utf8(bytes).unwrap()
}

#[test]
fn a_result_is_printed_and_nothing_else() {
    let params = r#"{"pid":7,"api_sock":"<&>"}"#;
    let (out, sent) = against(
        b"{\"ok\":true,\"result\":{\"running\":false}}\n",
        &["helper", "call", "priv.process_running", params, "--op-id", "op-1"],
        "",
    );
    assert_eq!(
        sent,
        format!("{{\"version\":1,\"method\":\"priv.process_running\",\"params\":{params},\"op_id\":\"op-1\"}}\n")
    );
    assert_eq!((out.status.code(), text(&out.stdout), text(&out.stderr)), (Some(0), "{\"running\":false}\n", ""));
}

#[test]
fn parameters_come_from_standard_input_where_asked() {
    let (out, sent) = against(
        b"{\"ok\":true,\"result\":{}}\n",
        &["helper", "call", "priv.delete_tap", "-"],
        "{\"tap_name\":\"tap-fc-1\"}",
    );
    assert_eq!(sent, "{\"version\":1,\"method\":\"priv.delete_tap\",\"params\":{\"tap_name\":\"tap-fc-1\"}}\n");
    assert_eq!((out.status.code(), text(&out.stdout)), (Some(0), "{}\n"));
}

#[test]
fn an_error_keeps_its_code_and_can_not_write_to_the_terminal() {
    let reply = b"{\"ok\":false,\"error\":{\"code\":\"operation_failed\",\"message\":\"\\u001b[31mno\\nerror[x]: y\",\"op_id\":\"op-1\"}}\n";
    let (out, _) = against(reply, &["helper", "call", "priv.delete_tap", "{}"], "");
    assert_eq!((out.status.code(), text(&out.stdout)), (Some(1), ""));
    let said = text(&out.stderr);
    assert!(
        said.starts_with("error[operation_failed]: \\u{1b}[31mno\\nerror[x]: y\n") && said.contains("op-1"),
        "{said}"
    );
}

#[test]
fn a_result_holds_no_bare_control_character() {
    let reply = "{\"ok\":true,\"result\":{\"path\":\"a\u{7f}\u{9b}\u{202e}é\"}}\n";
    let (out, _) = against(reply.as_bytes(), &["helper", "call", "priv.resolve_firecracker_binary"], "");
    assert_eq!(text(&out.stdout), "{\"path\":\"a\\u007f\\u009b\\u202eé\"}\n");
}

#[test]
fn what_is_no_reply_is_said_to_be_none() {
    for reply in [
        &b"HTTP/1.1 400 Bad Request\r\n\r\n"[..],
        b"",
        b"{}\n",
        b"{\"ok\":true}\n",
        b"\xff\n",
        b"{\"ok\":true,\"result\":{}",
    ] {
        let (out, _) = against(reply, &["helper", "list"], "");
        assert_eq!((out.status.code(), text(&out.stdout)), (Some(1), ""));
        assert!(text(&out.stderr).starts_with("error[bad_reply]: "), "{}", text(&out.stderr));
    }
}

#[test]
fn a_list_is_tab_separated_where_no_terminal_is() {
    let result = r#"{"bridges":[{"name":"br-fc","addresses":["172.16.0.1/24"],"up":true,"ports":1}],"taps":[{"name":"tap-fc-1","bridge":"br-fc","up":true,"carrier":false}],"guests":[{"address":"172.16.0.2","bridge":"br-fc","tap":"tap-fc-1"}],"vms":[{"vm_id":"a","pid":7,"program":"/usr/bin/firecracker","socket":"/run/banger/a.sock","tap":"tap-fc-1","cid":3}],"new":1}"#;
    let reply = format!("{{\"ok\":true,\"result\":{result}}}\n");
    let (out, sent) = against(reply.as_bytes(), &["helper", "list"], "");
    assert!(sent.contains("\"method\":\"priv.list_resources\""), "{sent}");
    assert_eq!(
        text(&out.stdout),
        "bridge\tbr-fc\t-\tup\t172.16.0.1/24, ports: 1\ntap\ttap-fc-1\tbr-fc\tup\tfree\n\
         guest\t172.16.0.2\tbr-fc\tway out\ttap-fc-1\nvm\ta\ttap-fc-1\truns\tpid 7, cid 3, /usr/bin/firecracker, /run/banger/a.sock\n"
    );
    let (out, _) = against(reply.as_bytes(), &["helper", "list", "--json"], "");
    assert_eq!(text(&out.stdout), format!("{result}\n"), "what a newer helper adds stays");
}

#[test]
fn a_helper_that_is_not_there_is_named_with_what_to_do() {
    let out = run(&["helper", "list", "--socket", "/nonexistent/helper.sock"], "");
    assert_eq!((out.status.code(), text(&out.stdout)), (Some(1), ""));
    let said = text(&out.stderr);
    assert!(
        said.starts_with("error[helper_down]: banger's root helper doesn't answer on /nonexistent/helper.sock\n"),
        "{said}"
    );
    assert!(said.contains("\n  fix: sudo bangerd-root"), "{said}");
}

#[test]
fn mistakes_of_the_command_line_are_status_2() {
    for arguments in [
        &["helper", "call", "priv.delete_tap", "{"][..],
        &["helper", "call", "priv.delete_tap", "{} {}"],
        &["helper", "call"],
        &["helper", "cal"],
        &["helper", "list", "--timeout", "0"],
        &["helper", "list", "--nope"],
        &["helper", "init"],
        &[],
    ] {
        let out = run(arguments, "");
        assert_eq!((out.status.code(), text(&out.stdout)), (Some(2), ""), "{arguments:?}: {}", text(&out.stderr));
        assert!(!out.stderr.is_empty());
    }
}

#[test]
fn a_reader_that_goes_away_is_no_failure() {
    let status = Command::new("sh")
        .args([
            "-c",
            &format!(
                "{} --help | true; exec {} version >/dev/full",
                env!("CARGO_BIN_EXE_banger"),
                env!("CARGO_BIN_EXE_banger")
            ),
        ])
        .stderr(Stdio::piped())
        .output()
        .unwrap();
    assert_eq!(status.status.code(), Some(1));
    assert!(text(&status.stderr).starts_with("error[output]: "), "{}", text(&status.stderr));
}
