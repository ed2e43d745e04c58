//! Tests of the relay's host end against a guest that is hostile or slow, spoken to in frames.

use std::io::{Read as _, Write as _};
use std::os::unix::net::{UnixListener, UnixStream};
use std::sync::atomic::Ordering::Relaxed;
use std::time::{Duration, Instant};

use agent::relay::{Event, HEADER_LEN, Header, Kind, MAX_DATA, MAX_STREAMS, Mux, NONCE_LEN, WINDOW, encode};

use super::tests::{ECHO, Vsock};

/// The host's SYNC, echoed; a later one has zeros before it, to end any half frame.
fn greeted(port: &mut UnixStream, first: bool) {
    let zeros = if first { 0 } else { MAX_DATA + 2 * HEADER_LEN };
    let mut bytes = vec![0; zeros + HEADER_LEN + NONCE_LEN];
    port.read_exact(&mut bytes).expect("a SYNC");
    assert_eq!(bytes[zeros + 4], Kind::Sync as u8);
    port.write_all(&bytes[zeros..]).expect("the echo");
}

fn frame(stream: u32, kind: Kind, payload: &[u8]) -> Vec<u8> {
    [&encode(Header { stream, kind, len: payload.len() as u32 })[..], payload].concat()
}

/// Streams that are filled and given up, to a host that reads none of it: each has its last words kept for a moment.
#[test]
fn streams_that_the_guest_gives_up_do_not_pile_up() {
    let vsock = Vsock::start();
    let listener = UnixListener::bind(vsock.dir.path().join("v_1023")).expect("bound");
    rustix::net::listen(&listener, 4096).expect("a long queue");
    let mut port = vsock.guest.try_clone().expect("a copy");
    greeted(&mut port, true);
    let mut answers = port.try_clone().expect("a copy");
    std::thread::spawn(move || while answers.read(&mut [0; 65536]).is_ok_and(|got| got > 0) {});
    let data = frame(0, Kind::Data, &[b'x'; MAX_DATA]);
    let mut most = 0;
    for number in 1..1250 {
        let stream = 2 * number;
        let mut all = frame(stream, Kind::Open, &1023u32.to_le_bytes());
        if number > 950 {
            for _ in 0..WINDOW / MAX_DATA as u32 {
                all.extend_from_slice(&stream.to_le_bytes());
                all.extend_from_slice(&data[4..]);
            }
            all.extend_from_slice(&frame(stream, Kind::Rst, &[]));
        }
        port.write_all(&all).expect("taken");
        let removed = vsock.metrics.conns_removed.load(Relaxed);
        most = most.max(vsock.metrics.conns_added.load(Relaxed) - removed);
    }
    assert!((900..=MAX_STREAMS as u64).contains(&most), "{most} connections are kept");
}

/// Uploads to a guest that reads nothing for a while fill all the room there is; a call is then late, not refused.
#[test]
fn a_call_is_possible_while_others_have_filled_the_way_to_the_guest() {
    let vsock = Vsock::start();
    let mut port = vsock.guest.try_clone().expect("a copy");
    greeted(&mut port, true);
    let mut mux = Mux::guest();
    let mut uploads = Vec::new();
    for stream in [1, 3, 5, 7] {
        uploads.push(vsock.connect(&format!("CONNECT {ECHO}\n")));
        port.read_exact(&mut [0; HEADER_LEN + 4]).expect("an OPEN");
        port.write_all(&frame(stream, Kind::Ok, &[])).expect("taken");
    }
    for upload in &mut uploads {
        let mut ok = [0; 3];
        upload.read_exact(&mut ok).expect("an answer");
        upload.set_write_timeout(Some(Duration::from_millis(100))).expect("a limit");
        let _ = upload.write_all(&[b'!'; 1 << 20]);
    }
    let mut call = vsock.connect("CONNECT 7\n");
    call.set_read_timeout(Some(Duration::from_millis(300))).expect("a limit");
    let error = call.read(&mut [0; 16]).expect_err("an answer, or the end, of a guest that has read nothing");
    assert_eq!(error.kind(), std::io::ErrorKind::WouldBlock);
    // Now it reads: what comes are four streams' bytes, and the call.
    mux.receive(&frame(0, Kind::Sync, &[9; NONCE_LEN])).expect("never fails");
    for _ in 0..4 {
        mux.receive(&frame(1 + 2 * mux.streams() as u32, Kind::Open, &ECHO.to_le_bytes())).expect("never fails");
    }
    let streams: Vec<_> = mux.events().collect();
    for event in streams {
        if let Event::Opened { stream, .. } = event {
            mux.accept(stream);
        }
    }
    let mut piece = [0; 65536];
    let end = Instant::now() + Duration::from_secs(20);
    loop {
        assert!(Instant::now() < end, "no call came");
        let got = port.read(&mut piece).expect("read");
        mux.receive(&piece[..got]).expect("never fails");
        if mux.events().any(|event| matches!(event, Event::Opened { port: 7, .. })) {
            return;
        }
    }
}

/// The guest is slower than any of eight uploads; each of them still gets its share, and so does a word that comes
/// right behind a later line.
#[test]
fn the_way_to_the_guest_is_shared() {
    let vsock = Vsock::start();
    let mut port = vsock.guest.try_clone().expect("a copy");
    let mut mux = Mux::guest();
    let mut piece = [0; 4096];
    let mut got = [0usize; 9];
    let mut late = None;
    let begin = std::sync::Barrier::new(9);
    std::thread::scope(|threads| {
        for _ in 0..8 {
            threads.spawn(|| {
                let mut upload = vsock.connect(&format!("CONNECT {ECHO}\n"));
                begin.wait();
                while upload.write(&[b'!'; 65536]).is_ok_and(|sent| sent > 0) {}
            });
        }
        begin.wait();
        while got.iter().sum::<usize>() < 16 << 20 {
            while !mux.output().is_empty() {
                let written = port.write(mux.output()).expect("taken");
                mux.wrote(written);
            }
            if late.is_none() && got.iter().sum::<usize>() > 4 << 20 {
                late = Some(vsock.connect(&format!("CONNECT {ECHO}\nword")));
            }
            let len = port.read(&mut piece).expect("read");
            mux.receive(&piece[..len]).expect("never fails");
            while let Some(event) = mux.next_event() {
                match event {
                    Event::Opened { stream, .. } => mux.accept(stream),
                    Event::Data(stream, bytes) => {
                        mux.consumed(stream, bytes.len());
                        got[stream.number() as usize / 2] += bytes.len();
                    }
                    _ => {}
                }
            }
        }
        // QEMU's end: the relay goes, and the uploads with it.
        port.shutdown(std::net::Shutdown::Both).expect("shut");
    });
    let (uploads, word) = (&got[..8], got[8]);
    let (least, most) = (uploads.iter().min().expect("eight"), uploads.iter().max().expect("eight"));
    assert!(*least > most / 4, "{got:?}");
    assert_eq!(word, 4, "{got:?}");
}

/// Nonsense, a new greeting, nonsense …: the log says so a few times, and not as often as the guest likes.
#[test]
fn a_guest_does_not_fill_the_log() {
    let vsock = Vsock::start();
    let path = vsock.dir.path().join("log");
    let config = serde_json::json!({"log_path": path, "level": "Info"});
    vsock.log.update(&serde_json::from_value(config).expect("a logger")).expect("opened");
    let mut port = vsock.guest.try_clone().expect("a copy");
    for round in 0..500 {
        greeted(&mut port, round == 0);
        port.write_all(&[0xFF; HEADER_LEN]).expect("taken");
    }
    let lines = std::fs::read_to_string(&path).expect("the log").lines().count();
    assert!((1..=50).contains(&lines), "{lines} lines");
}

/// A fault of the guest's while the process has no descriptor left: the relay goes on.
#[test]
fn a_new_greeting_needs_no_descriptor() {
    let vsock = Vsock::start();
    let mut port = vsock.guest.try_clone().expect("a copy");
    port.set_read_timeout(Some(Duration::from_secs(20))).expect("a limit");
    greeted(&mut port, true);
    let resource = rustix::process::Resource::Nofile;
    let before = rustix::process::getrlimit(resource);
    let none = rustix::process::Rlimit { current: Some(3), maximum: before.maximum };
    rustix::process::setrlimit(resource, none).expect("a limit");
    port.write_all(&[0xFF; HEADER_LEN]).expect("taken");
    greeted(&mut port, false);
    rustix::process::setrlimit(resource, before).expect("the limit of before");
}

/// Each place can be taken, no more, and a place that is free again can be taken again.
#[test]
fn there_are_1023_places() {
    let resource = rustix::process::Resource::Nofile;
    let most = rustix::process::getrlimit(resource).maximum;
    rustix::process::setrlimit(resource, rustix::process::Rlimit { current: most, maximum: most }).expect("a limit");
    let vsock = Vsock::with_guest();
    let mut calls: Vec<UnixStream> = (0..MAX_STREAMS).map(|_| vsock.open(ECHO)).collect();
    let mut more = vsock.connect(&format!("CONNECT {ECHO}\n"));
    assert!(matches!(more.read(&mut [0]), Ok(0) | Err(_)));
    let last = calls.last_mut().expect("the last");
    last.write_all(b"x").expect("written");
    last.read_exact(&mut [0]).expect("echoed");
    drop(calls);
    let end = Instant::now() + Duration::from_secs(20);
    loop {
        let mut call = vsock.connect(&format!("CONNECT {ECHO}\n"));
        if call.read(&mut [0]).is_ok_and(|got| got == 1) {
            return;
        }
        assert!(Instant::now() < end, "the places stay taken");
    }
}
