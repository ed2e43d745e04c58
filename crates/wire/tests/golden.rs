//! Golden pairs: the bytes that clients and helpers exchange today, against what this crate reads and writes.
//!
//! The pairs lie in `conformance/golden`, a line each; `conformance/README.md` tells where they come from.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

use serde::Deserialize;
use std::cell::RefCell;
use std::io::{self, Read, Write};
use std::path::Path;
use std::rc::Rc;
use wire::client::{Client, Error};
use wire::frame::{Decoder, Frame};
use wire::path::Roots;
use wire::reply::Reply;
use wire::vm::Wanted;
use wire::{Code, Method, Refusal, Request};

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RequestPair {
    method: String,
    note: String,
    bytes: String,
    /// `request`, or the code of the refusal.
    is: String,
    /// What our client sends for the same values: absent where it is the same, null where it has no call for them.
    #[serde(default, deserialize_with = "present")]
    ours: Option<Option<String>>,
}

fn present<'de, D: serde::Deserializer<'de>>(deserializer: D) -> Result<Option<Option<String>>, D::Error> {
    Option::<String>::deserialize(deserializer).map(Some)
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct ReplyPair {
    method: String,
    note: String,
    bytes: String,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct ErrorPair {
    code: String,
    message: String,
    op_id: String,
    bytes: String,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct CodeRow {
    method: String,
    params: Option<String>,
    code: String,
    note: String,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct EnvelopeRow {
    bytes: String,
    code: String,
    note: String,
}

fn lines<T: for<'a> Deserialize<'a>>(file: &str) -> Vec<T> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../conformance/golden").join(file);
    let text = std::fs::read_to_string(&path).unwrap();
    text.lines().map(|line| serde_json::from_str(line).unwrap_or_else(|e| panic!("{file}: {e}: {line}"))).collect()
}

fn roots() -> Roots {
    Roots { state: "/var/lib/banger".into(), runtime: "/run/banger".into() }
}

fn frame(bytes: &str) -> Result<Frame, Refusal> {
    let mut decoder = Decoder::new(1 << 20);
    match decoder.push(bytes.as_bytes())? {
        Some(frame) => Ok(frame),
        None => Err(decoder.ended()),
    }
}

/// The request that the bytes are, and its id.
fn parsed(bytes: &str) -> Result<(Request, String), Refusal> {
    let frame = frame(bytes)?;
    let envelope = frame.envelope()?;
    let (parsed, op_id) = (Request::parse(&envelope, &roots()), envelope.op_id.into_owned());
    // A frame that is used up says the same.
    assert_eq!(Request::of(frame, &roots()), parsed);
    Ok((parsed?, op_id))
}

fn code<T>(result: Result<T, Refusal>) -> &'static str {
    result.map_or_else(|refusal| refusal.code.as_str(), |_| "ok")
}

/// A peer that keeps what it is sent and answers with one line.
struct Peer {
    sent: Rc<RefCell<Vec<u8>>>,
    answer: io::Cursor<Vec<u8>>,
}

impl Read for Peer {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        self.answer.read(into)
    }
}

impl Write for Peer {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.sent.borrow_mut().extend_from_slice(bytes);
        Ok(bytes.len())
    }
    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Makes the typed call that says `request` to a peer that answers `answer`: what was sent, and what came of it.
/// `None` where the request is to do nothing, for which there is no call.
fn called(request: Request, op_id: &str, answer: &str) -> Option<(String, Result<Reply, Error>)> {
    let sent = Rc::new(RefCell::new(Vec::new()));
    let client = Client::new(|| Ok(Peer { sent: sent.clone(), answer: io::Cursor::new(answer.as_bytes().to_vec()) }));
    let client = client.op_id(op_id);
    let result = match request {
        Request::EnsureBridge(bridge) => client.ensure_bridge(&bridge).map(|()| Reply::Done),
        Request::CreateTap(new) => client.create_tap(&new).map(|()| Reply::Done),
        Request::DeleteTap(tap) => client.delete_tap(&tap).map(|()| Reply::Done),
        Request::SyncResolverRouting(route) => client.sync_resolver_routing(&route?).map(|()| Reply::Done),
        Request::ClearResolverRouting(bridge) => client.clear_resolver_routing(&bridge?).map(|()| Reply::Done),
        Request::EnsureNat(nat) => client.ensure_nat(&nat).map(|()| Reply::Done),
        Request::CreateDmSnapshot(new) => client.create_dm_snapshot(&new).map(Reply::Handles),
        Request::CleanupDmSnapshot(handles) => client.cleanup_dm_snapshot(&handles).map(|()| Reply::Done),
        Request::RemoveDmSnapshot(name) => client.remove_dm_snapshot(&name).map(|()| Reply::Done),
        Request::FsckSnapshot(name) => client.fsck_snapshot(&name).map(|()| Reply::Done),
        Request::ReadExt4File(read) => client.read_ext4_file(&read).map(Reply::Data),
        Request::WriteExt4Files(write) => client.write_ext4_files(write).map(|()| Reply::Done),
        Request::ResolveFirecrackerBinary(wanted) => {
            let requested = match &wanted {
                Wanted::Name(name) => name.as_str(),
                Wanted::Path(path) => path.as_str(),
            };
            client.resolve_firecracker_binary(requested).map(Reply::Path)
        }
        Request::LaunchFirecracker(launch) | Request::RestoreFirecracker(launch) => {
            client.launch_firecracker(&launch).map(Reply::Pid)
        }
        Request::EnsureSocketAccess(access) => {
            // The label that was checked is the quoted one; a caller has the plain text.
            client.ensure_socket_access(&access.path, access.label.trim_matches('"')).map(|()| Reply::Done)
        }
        Request::FindFirecrackerPid(socket) => client.find_firecracker_pid(&socket).map(Reply::Pid),
        Request::KillProcess(pid) => client.kill_process(pid).map(|()| Reply::Done),
        Request::SignalProcess(kill) => client.signal_process(kill.pid, kill.signal.unwrap()).map(|()| Reply::Done),
        Request::ProcessRunning(running) => {
            client.process_running(running.pid.unwrap(), &running.api_sock).map(Reply::Running)
        }
        Request::CleanupJailerChroot(chroot) => client.cleanup_jailer_chroot(&chroot).map(|()| Reply::Done),
        Request::ListResources => client.list_resources().map(Reply::Resources),
        Request::DeleteTaps(taps) => client.delete_taps(&taps).map(|()| Reply::Done),
        Request::ProbeNetwork(probe) => client.probe_network(&probe).map(Reply::Probed),
    };
    let sent = String::from_utf8(sent.take()).unwrap();
    Some((sent, result))
}

#[test]
fn no_method_is_without_goldens() {
    let requests = lines::<RequestPair>("requests.jsonl");
    let replies = lines::<ReplyPair>("replies.jsonl");
    let codes = lines::<CodeRow>("codes.jsonl");
    for method in Method::ALL {
        let name = method.name();
        assert!(requests.iter().any(|pair| pair.method == name && pair.is == "request"), "no golden request of {name}");
        assert!(replies.iter().any(|pair| pair.method == name), "no golden reply of {name}");
        assert!(codes.iter().any(|row| row.method == name && row.code != "ok"), "no golden code of {name}");
    }
}

#[test]
fn requests_are_read_and_our_client_writes_the_same_bytes() {
    for pair in lines::<RequestPair>("requests.jsonl") {
        let RequestPair { method, note, bytes, is, ours } = pair;
        let request = match parsed(&bytes) {
            Ok(request) => request,
            Err(refusal) => {
                assert_eq!(refusal.code.as_str(), is, "{method}, {note}: {refusal}");
                continue;
            }
        };
        assert_eq!(is, "request", "{method}, {note}");
        let (request, op_id) = request;
        let want = ours.unwrap_or(Some(bytes));
        let sent = called(request.clone(), &op_id, "").map(|(sent, _)| sent);
        assert_eq!(sent, want, "{method}, {note}");
        // And what it writes means the same.
        if let Some(sent) = sent {
            assert_eq!(parsed(&sent).unwrap(), (request, op_id), "{method}, {note}");
        }
    }
}

#[test]
fn replies_are_written_and_our_client_reads_the_same() {
    let requests = lines::<RequestPair>("requests.jsonl");
    for ReplyPair { method, note, bytes } in lines::<ReplyPair>("replies.jsonl") {
        let asked = requests.iter().find(|pair| pair.method == method && pair.is == "request").unwrap();
        let (request, op_id) = parsed(&asked.bytes).unwrap();
        let (_, reply) = called(request, &op_id, &bytes).unwrap();
        let reply = reply.unwrap_or_else(|error| panic!("{method}, {note}: {error}"));
        let written = wire::reply::success(&reply, 1 << 20).unwrap();
        assert_eq!(String::from_utf8(written).unwrap(), bytes, "{method}, {note}");
    }
}

#[test]
fn errors_are_written_and_our_client_reads_the_same() {
    for ErrorPair { code, message, op_id, bytes } in lines::<ErrorPair>("errors.jsonl") {
        let known = Code::parse(&code).unwrap();
        assert_eq!(String::from_utf8(wire::reply::failure(known, &message, &op_id)).unwrap(), bytes);
        let (_, reply) = called(Request::ListResources, "", &bytes).unwrap();
        let Err(Error::Refused(refused)) = reply else { panic!("{bytes} is an error") };
        assert_eq!((refused.code, refused.message), (Some(known), message));
        assert_eq!(refused.op_id.unwrap_or_default(), op_id);
    }
}

#[test]
fn each_check_answers_with_its_code() {
    for CodeRow { method, params, code: want, note } in lines::<CodeRow>("codes.jsonl") {
        let params = params.map_or(String::new(), |params| format!(",\"params\":{params}"));
        let bytes = format!("{{\"version\":1,\"method\":\"{method}\"{params}}}");
        let got = parsed(&bytes);
        let said = got.as_ref().map_or_else(Refusal::to_string, |(request, _)| format!("{request:?}"));
        assert_eq!(code(got), want, "{method}, {note}: {bytes}: {said}");
    }
}

#[test]
fn envelopes_are_taken_or_refused() {
    for EnvelopeRow { bytes, code: want, note } in lines::<EnvelopeRow>("envelopes.jsonl") {
        let got = parsed(&bytes);
        let said = got.as_ref().map_or_else(Refusal::to_string, |(request, _)| format!("{request:?}"));
        assert_eq!(code(got), want, "{note}: {bytes}: {said}");
        // However it is cut.
        let mut decoder = Decoder::new(1 << 20);
        let mut found = None;
        for byte in bytes.as_bytes() {
            match decoder.push(&[*byte]) {
                Ok(None) => continue,
                Ok(Some(frame)) => found = Some(code(frame.envelope().and_then(|e| Request::parse(&e, &roots())))),
                Err(refusal) => found = Some(refusal.code.as_str()),
            }
            break;
        }
        assert_eq!(found.unwrap_or(decoder.ended().code.as_str()), want, "{note}, a byte at a time");
    }
}
