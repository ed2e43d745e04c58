//! One agent and many calls: calls that outlive their connection, calls above the limit, orphans.

// A test's helpers are tests too; clippy's setting knows only the functions marked so.
#![allow(clippy::unwrap_used)]

mod support;

use std::io::Write;
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use agent::client::Client;
use agent::host::{Event, Exec, Failure, Limits, Program};
use agent::protocol::{ExitCode, stream};
use support::{OK, Service, code, run_on, sh};

/// A call by hand, whose connection can be dropped at any point.
struct Hand {
    exec: Exec,
    socket: UnixStream,
    id: String,
    out: Vec<u8>,
    exit: Option<Result<agent::protocol::Exit, Failure>>,
}

impl Hand {
    fn new(service: &Service, exec: Exec) -> Self {
        let socket = service.connect();
        socket.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
        Self { exec, socket, id: String::new(), out: Vec::new(), exit: None }
    }

    /// Goes on until it has so many bytes of output, or its end; nothing is granted beyond.
    fn until(&mut self, bytes: usize) {
        let mut buffer = [0; 4096];
        loop {
            while let Some(event) = self.exec.next_event() {
                match event {
                    Event::Started(started) => self.id = started.id,
                    Event::Ended(exit) => self.exit = Some(Ok(exit)),
                    Event::Failed(failure) => self.exit = Some(Err(failure)),
                    Event::Greeted(_) | Event::Gone | Event::Replied(_) => {}
                }
            }
            while !self.exec.pending(stream::OUT).is_empty() {
                let pending = self.exec.pending(stream::OUT);
                self.out.extend_from_slice(pending);
                self.exec.passed_on(stream::OUT, pending.len());
            }
            while !self.exec.output().is_empty() {
                let n = self.socket.write(self.exec.output()).unwrap();
                self.exec.sent(n);
            }
            if self.exit.is_some() || (!self.id.is_empty() && self.out.len() >= bytes) {
                return;
            }
            match std::io::Read::read(&mut self.socket, &mut buffer).unwrap() {
                0 => self.exec.closed(),
                n => self.exec.receive(&buffer[..n], Instant::now()),
            }
        }
    }
}

fn lingering(script: &str, linger_s: u32) -> Program {
    Program { linger_s, stdin: false, ..sh(script) }
}

fn exec(program: &Program) -> Exec {
    Exec::new(program, Limits::EMULATED, Instant::now()).unwrap()
}

fn attached(id: &str, out: u64) -> Exec {
    Exec::attached(id, [out, 0], Limits::EMULATED, Instant::now())
}

#[test]
fn a_call_is_taken_up_again_without_a_gap() {
    let service = Service::start();
    let want: Vec<u8> = (1..=300_000).flat_map(|n| format!("{n}\n").into_bytes()).collect();
    let mut hand = Hand::new(&service, exec(&lingering("seq 1 300000; exit 9", 60)));
    let (mut got, mut times) = (Vec::new(), 0);
    // Each connection ends after some bytes, and some of those that were under way are lost. Not the last ones: with
    // them the exit status would be under way, and who loses that is not told again.
    loop {
        let rest = want.len() - got.len();
        hand.until(if rest < 600_000 { usize::MAX } else { 150_000 });
        let (id, exit) = (hand.id.clone(), hand.exit.take());
        got.append(&mut hand.out);
        if let Some(exit) = exit {
            assert_eq!(exit.unwrap(), code(9));
            break;
        }
        hand = Hand::new(&service, attached(&id, got.len() as u64));
        times += 1;
    }
    assert!(got == want && times > 5, "{} bytes of {}, {times} connections", got.len(), want.len());
}

#[test]
fn an_end_without_a_host_is_told_to_the_next_one() {
    let service = Service::start();
    let mut hand = Hand::new(&service, exec(&lingering("echo before; sleep 0.3; echo after; exit 5", 60)));
    hand.until(7);
    let id = hand.id.clone();
    drop(hand);
    std::thread::sleep(Duration::from_millis(600));
    let mut hand = Hand::new(&service, attached(&id, 7));
    hand.until(usize::MAX);
    assert_eq!((hand.out.as_slice(), hand.exit.unwrap().unwrap()), (&b"after\n"[..], code(5)));
    // Once told it is over.
    let mut hand = Hand::new(&service, attached(&id, 13));
    hand.until(usize::MAX);
    assert!(matches!(hand.exit, Some(Err(Failure::Refused(body))) if body.code == "no_call"));
}

#[test]
fn an_offset_that_is_gone_is_an_error_and_the_call_stays() {
    let service = Service::start();
    let mut hand = Hand::new(&service, exec(&lingering("head -c 600000 /dev/zero; sleep 0.1; exit 4", 60)));
    hand.until(600_000);
    let id = hand.id.clone();
    drop(hand);
    for wrong in [0, 1 << 40] {
        let mut hand = Hand::new(&service, attached(&id, wrong));
        hand.until(usize::MAX);
        assert!(matches!(hand.exit, Some(Err(Failure::Refused(body))) if body.step == "offset"));
    }
    let mut hand = Hand::new(&service, attached(&id, 600_000));
    hand.until(usize::MAX);
    assert_eq!(hand.exit.unwrap().unwrap(), code(4));
}

#[test]
fn nobody_lingers_for_ever() {
    let service = Service::start();
    let mut hand = Hand::new(&service, exec(&lingering("trap 'exit 1' HUP; echo $$; while :; do sleep 0.05; done", 1)));
    hand.until(1);
    let pid = String::from_utf8(hand.out.clone()).unwrap();
    let begin = Instant::now();
    drop(hand);
    let alive = || std::path::Path::new(&format!("/proc/{}", pid.trim())).exists();
    while alive() {
        assert!(begin.elapsed() < Duration::from_secs(10));
        std::thread::sleep(Duration::from_millis(20));
    }
    assert!(begin.elapsed() > Duration::from_millis(900), "it had a second");
}

#[test]
fn one_call_too_many_is_told_so() {
    let service = Service::start();
    let mut held: Vec<Hand> = (0..64).map(|_| Hand::new(&service, exec(&sh("exec sleep 60")))).collect();
    held.iter_mut().for_each(|hand| hand.until(0));
    assert!(
        matches!(Client::new(service.connect()).unwrap().ping(), Err(Failure::Refused(body)) if body.code == "busy")
    );
    drop(held.pop());
    let begin = Instant::now();
    while Client::new(service.connect()).unwrap().ping().is_err() {
        assert!(begin.elapsed() < Duration::from_secs(10));
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// A tenth of an agent's real trouble: orphans by hundreds, and each command's own status all the same.
#[test]
fn orphans_take_nobody_s_status() {
    let service = Service::first_process();
    let orphans = sh("for i in 1 2 3 4 5 6 7 8 9 10; do (sh -c 'sleep 0.0$i; exit 77' &) ; done; exit 0");
    std::thread::scope(|threads| {
        for n in 0..24u8 {
            let (service, orphans) = (&service, &orphans);
            threads.spawn(move || {
                if n % 3 == 0 {
                    assert_eq!(run_on(service, orphans.clone()).exit(), OK);
                } else {
                    let script = format!("sleep 0.0{}; exit {n}", n % 10);
                    assert_eq!(
                        run_on(service, sh(&script)).exit(),
                        agent::protocol::Exit::Code(ExitCode { code: n, oom: false })
                    );
                }
            });
        }
    });
    // And none of them is left unburied.
    let begin = Instant::now();
    while run_on(&service, sh("cat /proc/[0-9]*/stat | cut -d' ' -f3,4 | grep -c '^Z 1$'")).text().trim() != "0" {
        assert!(begin.elapsed() < Duration::from_secs(10));
    }
}

#[test]
fn a_call_that_drains_keeps_no_orphan_from_its_burial() {
    let service = Service::first_process();
    // Its leader is dead, and its host doesn't take what it wrote.
    let mut stalled = Hand::new(&service, exec(&sh("head -c 300000 /dev/zero; exec sh -c 'exit 3'")));
    while stalled.id.is_empty() {
        stalled.until(0);
    }
    std::thread::sleep(Duration::from_millis(200));
    run_on(&service, sh("for i in 1 2 3 4 5; do (sh -c 'exit 77' &) ; done; sleep 0.1"));
    let begin = Instant::now();
    while run_on(&service, sh("cat /proc/[0-9]*/stat | cut -d' ' -f3,4 | grep -c '^Z 1$'")).text().trim() > "1" {
        assert!(begin.elapsed() < Duration::from_secs(10));
    }
    stalled.until(usize::MAX);
    assert_eq!((stalled.out.len(), stalled.exit.unwrap().unwrap()), (300_000, code(3)));
}
