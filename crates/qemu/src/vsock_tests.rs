//! Tests of the relay's host end against the guest end of the same frames, over a socket in place of QEMU's port.

use std::io::{Read as _, Write as _};
use std::os::unix::net::{UnixListener, UnixStream};
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use agent::relay::{Event, Mux, Stream};

use super::Relay;
use crate::log::Log;
use crate::metrics::Metrics;
use crate::socket::OwnSocket;

/// What the guest's ports do: one echoes, one takes nothing, one sends and closes.
pub(super) const ECHO: u32 = 5000;
const STALLED: u32 = 5001;
const SENDER: u32 = 5002;
const SENT: usize = 1 << 20;

pub(super) struct Vsock {
    pub(super) dir: tempfile::TempDir,
    pub(super) guest: UnixStream,
    opened: UnixStream,
    pub(super) log: Arc<Log>,
    pub(super) metrics: Arc<Metrics>,
    _socket: OwnSocket,
}

impl Vsock {
    pub(super) fn start() -> Self {
        let dir = tempfile::tempdir().expect("a directory");
        let socket = OwnSocket::bind(&dir.path().join("v")).expect("bound");
        let (port, guest) = UnixStream::pair().expect("a pair");
        let (opened_near, opened) = UnixStream::pair().expect("a pair");
        let log = Log::new("test");
        log.update(&serde_json::from_str(r#"{"level":"Off"}"#).expect("a logger")).expect("quiet");
        let metrics = Arc::new(Metrics::default());
        let log = Arc::new(log);
        Relay::start(&socket, port, opened_near, super::Greeting::Booted, Arc::clone(&log), Arc::clone(&metrics))
            .expect("started");
        Self { dir, guest, opened, log, metrics, _socket: socket }
    }

    pub(super) fn with_guest() -> Self {
        let vsock = Self::start();
        let port = vsock.guest.try_clone().expect("a copy");
        std::thread::spawn(move || guest(port, None));
        vsock
    }

    pub(super) fn connect(&self, line: &str) -> UnixStream {
        let mut socket = UnixStream::connect(self.dir.path().join("v")).expect("connected");
        socket.set_read_timeout(Some(Duration::from_secs(20))).expect("a limit");
        socket.write_all(line.as_bytes()).expect("written");
        socket
    }

    pub(super) fn open(&self, port: u32) -> UnixStream {
        let mut socket = self.connect(&format!("CONNECT {port}\n"));
        let line = read_line(&mut socket);
        let number = line.strip_prefix("OK ").and_then(|text| text.parse::<u32>().ok()).expect(&line);
        assert!(number >= 1 << 30, "{line}");
        socket
    }
}

fn read_line(socket: &mut UnixStream) -> String {
    let mut line = Vec::new();
    let mut byte = [0];
    while socket.read(&mut byte).expect("an answer") == 1 && byte[0] != b'\n' {
        line.push(byte[0]);
    }
    String::from_utf8(line).expect("text")
}

/// The guest's end; `dial` is a port of the host's to connect to and to say "ring" to.
fn guest(mut port: UnixStream, dial: Option<u32>) {
    let mut mux = Mux::guest();
    let mut piece = [0; 64 * 1024];
    let mut waiting: Vec<(Stream, usize)> = Vec::new();
    loop {
        while !mux.output().is_empty() {
            let Ok(written) = port.write(mux.output()) else { return };
            mux.wrote(written);
        }
        let Ok(got @ 1..) = port.read(&mut piece) else { return };
        mux.receive(&piece[..got]).expect("a guest never fails");
        while let Some(event) = mux.next_event() {
            match event {
                Event::Synced => {
                    if let Some(dial) = dial {
                        let stream = mux.open(dial).expect("opened");
                        mux.send(stream, b"ring");
                        mux.finish(stream);
                    }
                }
                Event::Opened { stream, port: ECHO | STALLED } => mux.accept(stream),
                Event::Opened { stream, port: SENDER } => {
                    mux.accept(stream);
                    waiting.push((stream, SENT));
                }
                Event::Opened { stream, .. } => mux.refuse(stream),
                Event::Data(stream, bytes) if bytes[0] != b'!' => {
                    assert_eq!(mux.send(stream, &bytes), bytes.len());
                    mux.consumed(stream, bytes.len());
                }
                Event::Data(..) | Event::Credit(_) | Event::Reset(_) | Event::Connected(_) => {}
                Event::Finished(stream) => mux.finish(stream),
            }
        }
        for (stream, left) in &mut waiting {
            let sent = mux.send(*stream, &vec![b'x'; *left]);
            *left -= sent;
            if *left == 0 {
                mux.finish(*stream);
            }
        }
        waiting.retain(|(_, left)| *left > 0);
    }
}

#[test]
fn a_call_goes_there_and_back() {
    let vsock = Vsock::with_guest();
    let mut one = vsock.open(ECHO);
    let mut two = vsock.open(ECHO);
    for text in [&b"hello"[..], &[b'x'; 100_000], b"bye"] {
        for socket in [&mut one, &mut two] {
            socket.write_all(text).expect("written");
            let mut back = vec![0; text.len()];
            socket.read_exact(&mut back).expect("echoed");
            assert_eq!(back, text);
        }
    }
    one.shutdown(std::net::Shutdown::Write).expect("half closed");
    assert_eq!(one.read(&mut [0]).expect("the guest's end"), 0);
}

#[test]
fn bytes_behind_the_line_arrive() {
    let vsock = Vsock::with_guest();
    let mut socket = vsock.connect(&format!("connect {ECHO}\nearly"));
    assert!(read_line(&mut socket).starts_with("OK "));
    let mut back = [0; 5];
    socket.read_exact(&mut back).expect("echoed");
    assert_eq!(&back, b"early");
}

#[test]
fn a_port_without_a_listener_closes_without_an_answer() {
    let vsock = Vsock::with_guest();
    for line in ["CONNECT 1\n", "CONNECT 99999999999\n", "HELLO 52\n", "\n", &"x".repeat(100)] {
        let mut socket = vsock.connect(line);
        // Unread bytes in a socket that is closed make the end a reset; no answer comes in either case.
        assert!(matches!(socket.read(&mut [0; 16]), Ok(0) | Err(_)), "{line:?}");
    }
}

#[test]
fn a_call_before_the_guest_is_there_is_held() {
    let vsock = Vsock::start();
    let mut socket = vsock.connect(&format!("CONNECT {ECHO}\n"));
    std::thread::sleep(Duration::from_millis(100));
    let port = vsock.guest.try_clone().expect("a copy");
    std::thread::spawn(move || guest(port, None));
    assert!(read_line(&mut socket).starts_with("OK "));
}

#[test]
fn a_host_that_does_not_read_holds_up_nobody() {
    let vsock = Vsock::with_guest();
    let mut stalled = vsock.open(SENDER);
    let mut full = vsock.open(STALLED);
    full.set_write_timeout(Some(Duration::from_millis(200))).expect("a limit");
    let sent = std::iter::from_fn(|| full.write(&[b'!'; 65536]).ok()).sum::<usize>();
    assert!(sent < 2 << 20, "{sent} bytes went to a guest that reads none");
    let mut echo = vsock.open(ECHO);
    echo.write_all(b"still there").expect("written");
    echo.read_exact(&mut [0; 11]).expect("echoed");
    let mut all = Vec::new();
    stalled.read_to_end(&mut all).expect("all of it");
    assert_eq!(all.len(), SENT);
}

#[test]
fn the_guest_rings_where_somebody_listens() {
    let vsock = Vsock::start();
    let listener = UnixListener::bind(vsock.dir.path().join("v_1023")).expect("bound");
    let port = vsock.guest.try_clone().expect("a copy");
    std::thread::spawn(move || guest(port, Some(1023)));
    let (mut socket, _) = listener.accept().expect("a ring");
    let mut said = String::new();
    socket.read_to_string(&mut said).expect("read");
    assert_eq!(said, "ring");
}

#[test]
fn clients_that_go_leave_nothing() {
    let vsock = Vsock::with_guest();
    for _ in 0..200 {
        drop(vsock.open(ECHO));
        drop(vsock.connect(&format!("CONNECT {ECHO}\n")));
        drop(vsock.connect("CONN"));
    }
    let mut echo = vsock.open(ECHO);
    echo.write_all(b"x").expect("written");
    echo.read_exact(&mut [0]).expect("echoed");
    for _ in 0..100 {
        let (added, removed) = (vsock.metrics.conns_added.load(Relaxed), vsock.metrics.conns_removed.load(Relaxed));
        if added == removed + 1 {
            return;
        }
        std::thread::sleep(Duration::from_millis(50));
    }
    panic!("connections are left: {:?}", vsock.metrics);
}

#[test]
fn a_guest_that_talks_nonsense_or_opens_again_is_greeted_anew() {
    let vsock = Vsock::start();
    let mut opened = vsock.opened.try_clone().expect("a copy");
    opened.write_all(&[1]).expect("told");
    let port = vsock.guest.try_clone().expect("a copy");
    std::thread::spawn(move || guest(port, None));
    let mut before = vsock.open(ECHO);
    (&vsock.guest).write_all(&[0xFF; 64]).expect("nonsense");
    assert_eq!(before.read(&mut [0]).expect("the end"), 0);
    let mut before = vsock.open(ECHO);
    opened.write_all(&[1]).expect("told");
    assert_eq!(before.read(&mut [0]).expect("the end"), 0);
    vsock.open(ECHO);
}
