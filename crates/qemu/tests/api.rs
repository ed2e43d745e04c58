//! `banger-qemu` without a boot: its command line, its API's words, and clients that behave badly.

mod support;

use std::io::{Read as _, Write as _};
use std::os::unix::net::UnixStream;

use support::{PATIENCE, Vmm, program, wait_for};

#[test]
fn the_description_is_firecrackers() {
    let vmm = Vmm::start(&["--id", "vm-1"]);
    let told = vmm.get("/");
    assert_eq!((&told["id"], &told["state"]), (&"vm-1".into(), &"Not started".into()));
    assert!(vmm.get("/version")["firecracker_version"].as_str().expect("text").starts_with("1."));
    let machine = vmm.get("/machine-config");
    assert_eq!((&machine["vcpu_count"], &machine["mem_size_mib"]), (&1.into(), &128.into()));
    assert_eq!(vmm.get("/vm/config")["drives"], serde_json::json!([]));
}

#[test]
fn what_is_put_is_told_back() {
    let vmm = Vmm::start(&[]);
    let disk = vmm.dir.path().join("d,format=qcow2");
    std::fs::write(&disk, "disk").expect("written");
    let drive = serde_json::json!({"drive_id": "a", "is_root_device": true, "path_on_host": disk});
    vmm.done("PUT", "/drives/a", &drive.to_string());
    vmm.done("PATCH", "/machine-config", r#"{"vcpu_count":2,"smt":true}"#);
    let uds = vmm.dir.path().join("v");
    vmm.done("PUT", "/vsock", &serde_json::json!({"guest_cid": 3, "uds_path": uds}).to_string());
    let told = vmm.get("/vm/config");
    assert_eq!(told["drives"][0]["path_on_host"], serde_json::json!(disk));
    assert_eq!(told["machine-config"]["vcpu_count"], 2);
    assert_eq!(told["vsock"]["guest_cid"], 3);
    assert!(uds.exists());
}

#[test]
fn before_the_boot_there_is_nothing_to_pause() {
    let vmm = Vmm::start(&[]);
    let expected = "The requested operation is not supported before starting the microVM.";
    assert_eq!(vmm.refused("PATCH", "/vm", r#"{"state":"Paused"}"#), expected);
    assert_eq!(vmm.refused("PUT", "/actions", r#"{"action_type":"FlushMetrics"}"#), expected);
    assert_eq!(vmm.refused("PUT", "/actions", r#"{"action_type":"SendCtrlAltDel"}"#), expected);
    let files = r#"{"snapshot_path":"/s","mem_file_path":"/m"}"#;
    assert_eq!(vmm.refused("PUT", "/snapshot/create", files), expected);
    assert_eq!(vmm.refused("PATCH", "/balloon", r#"{"amount_mib":1}"#), expected);
    assert_eq!(vmm.refused("GET", "/balloon/statistics", ""), expected);
    assert_eq!(vmm.refused("PATCH", "/drives/a", r#"{"drive_id":"a"}"#), expected);
    assert_eq!(vmm.refused("DELETE", "/drives/a", ""), expected);
    assert_eq!(vmm.refused("GET", "/balloon", ""), "Balloon config error: No balloon device found.");
    assert!(vmm.refused("PUT", "/cpu-config", "{}").contains("not supported"));
    assert!(vmm.refused("PUT", "/nothing", "{}").starts_with("Invalid request method and/or path: PUT"));
}

#[test]
fn bad_requests_are_answered_and_the_next_client_is_served() {
    let vmm = Vmm::start(&["--http-api-max-payload-size", "1000"]);
    let deep = "[".repeat(900);
    let huge = "PUT /vsock HTTP/1.1\r\nContent-Length: 67108864\r\n\r\n".to_owned() + &"[".repeat(1 << 20);
    let head = format!("GET /{} HTTP/1.1\r\n\r\n", "x".repeat(1 << 20));
    for (bytes, expected) in [
        (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n".to_vec(), 400),
        (b"POST / HTTP/1.1\r\n\r\n".to_vec(), 400),
        (format!("PUT /vsock HTTP/1.1\r\nConnection: close\r\nContent-Length: 900\r\n\r\n{deep}").into_bytes(), 400),
        (b"PUT /vsock HTTP/1.1\r\nConnection: close\r\nContent-Length: 2\r\n\r\n\xff\xfe".to_vec(), 400),
        (huge.into_bytes(), 413),
        (head.into_bytes(), 431),
    ] {
        let (status, body) = vmm.raw(&bytes);
        assert_eq!(status, expected, "{body}");
        assert!(body.starts_with(r#"{"fault_message":""#), "{body}");
        vmm.get("/");
    }
}

#[test]
fn slow_and_silent_clients_hold_up_nobody() {
    let vmm = Vmm::start(&[]);
    let connect = || UnixStream::connect(vmm.api()).expect("connected");
    let silent: Vec<UnixStream> = (0..10).map(|_| connect()).collect();
    let mut half = connect();
    half.write_all(b"PUT /vsock HTTP/1.1\r\nContent-Length: 100\r\n\r\n{").expect("written");
    let mut bytewise = connect();
    for byte in b"GET /version HTTP/1.1\r\n\r\n" {
        bytewise.write_all(&[*byte]).expect("written");
        vmm.get("/");
    }
    let mut answer = [0; 15];
    bytewise.read_exact(&mut answer).expect("an answer");
    assert_eq!(&answer, b"HTTP/1.1 200 OK");
    drop(silent);
}

#[test]
fn more_clients_than_there_is_room_for_are_told_so() {
    let vmm = Vmm::start(&[]);
    let connect = || UnixStream::connect(vmm.api()).expect("connected");
    let mut held: Vec<UnixStream> = (0..32).map(|_| connect()).collect();
    for socket in &mut held {
        socket.write_all(b"GET / HTTP/1.1\r\n\r\n").expect("written");
        socket.read_exact(&mut [0; 15]).expect("an answer");
    }
    assert_eq!(vmm.ask("GET", "/", "").0, 503);
    drop(held);
    let end = std::time::Instant::now() + PATIENCE;
    while vmm.ask("GET", "/", "").0 != 200 {
        assert!(std::time::Instant::now() < end);
    }
}

#[test]
fn one_connection_carries_many_requests() {
    let vmm = Vmm::start(&[]);
    let mut socket = UnixStream::connect(vmm.api()).expect("connected");
    socket.set_read_timeout(Some(PATIENCE)).expect("a limit");
    let body = r#"{"vcpu_count":2}"#;
    let one = format!("PATCH /machine-config HTTP/1.1\r\nContent-Length: {}\r\n\r\n{body}", body.len());
    let mut last = "GET /machine-config HTTP/1.1\r\nConnection: close\r\n\r\n".to_owned();
    last.insert_str(0, &one.repeat(20));
    socket.write_all(last.as_bytes()).expect("written");
    let mut answer = String::new();
    socket.read_to_string(&mut answer).expect("answers");
    assert_eq!(answer.matches("HTTP/1.1 204").count(), 20);
    assert!(answer.contains(r#""vcpu_count":2"#));
}

#[test]
fn a_socket_that_is_there_is_not_taken() {
    let vmm = Vmm::start(&[]);
    let mut second = program().arg("--api-sock").arg(vmm.api()).spawn().expect("started");
    assert_eq!(wait_for(&mut second).code(), Some(1));
    vmm.get("/");
    let file = vmm.dir.path().join("file");
    std::fs::write(&file, "mine").expect("written");
    let mut third = program().arg("--api-sock").arg(&file).spawn().expect("started");
    assert_eq!(wait_for(&mut third).code(), Some(1));
    assert_eq!(std::fs::read_to_string(&file).expect("still there"), "mine");
}

#[test]
fn a_signal_before_the_boot_takes_the_socket_away() {
    let mut vmm = Vmm::start(&[]);
    vmm.signal("TERM");
    assert_eq!(vmm.ended().code(), Some(143));
    assert!(!vmm.api().exists());
}

#[test]
fn bad_starts_have_firecrackers_codes_and_a_reason() {
    let dir = tempfile::tempdir().expect("a directory");
    let file = |text: &str| {
        let path = dir.path().join("c");
        std::fs::write(&path, text).expect("written");
        path.to_str().expect("text").to_owned()
    };
    let api = dir.path().join("api").to_str().expect("text").to_owned();
    for (config, said) in [
        ("", "object"),
        ("[]", "object"),
        ("{", "EOF"),
        ("{}", "boot-source"),
        (r#"{"boot-source":{"kernel_image_path":"/none"}}"#, "kernel file"),
        (r#"{"boot-source":{"kernel_image_path":"/none"},"devices":[]}"#, "devices"),
        (r#"{"boot-source":{"kernel_image_path":"/none"},"mmds-config":{"network_interfaces":[]}}"#, "not supported"),
    ] {
        let output = program().args(["--api-sock", &api, "--config-file", &file(config)]).output().expect("run");
        let words = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(152), "{config}: {words}");
        assert!(words.contains(said), "{config}: {words}");
        assert!(!dir.path().join("api").exists());
    }
    let output = program().arg("--frob").output().expect("run");
    assert_eq!(output.status.code(), Some(153));
    assert!(String::from_utf8_lossy(&output.stderr).contains("frob"));
    let output = program().arg("--version").output().expect("run");
    assert!(output.status.success() && output.stdout.starts_with(b"Firecracker v1."));
}

#[test]
fn log_and_metrics_go_where_they_are_sent() {
    let vmm = Vmm::start(&[]);
    let (log, metrics) = (vmm.dir.path().join("log"), vmm.dir.path().join("metrics"));
    vmm.done("PUT", "/logger", &serde_json::json!({"log_path": log, "level": "Info"}).to_string());
    vmm.done("PUT", "/metrics", &serde_json::json!({"metrics_path": metrics}).to_string());
    vmm.refused("PUT", "/metrics", &serde_json::json!({"metrics_path": metrics}).to_string());
    vmm.refused("PUT", "/logger", r#"{"log_path":"/no/such/directory/log"}"#);
    vmm.get("/version");
    let text = std::fs::read_to_string(&log).expect("the log");
    assert!(text.contains(r#"Get request on "/version""#), "{text}");
}
