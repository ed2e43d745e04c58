//! An exec against an agent that is this test's own hand, frame by frame.

use std::time::{Duration, Instant};

use super::*;
use crate::protocol::{
    Call, Decoder, Exit, ExitCode, Frame, GRANT, Get, Grant, Hello, Keep, Kind, Put, Signal, SignalName, Started,
    encode, encode_json, stream,
};

/// An exec and what it said.
struct Trial {
    exec: Exec,
    now: Instant,
    decoder: Decoder,
}

impl Trial {
    fn new(program: &Program) -> Self {
        let now = Instant::now();
        Self { exec: Exec::new(program, Limits::HARDWARE, now).unwrap(), now, decoder: Decoder::new() }
    }

    fn running(program: &Program) -> Self {
        let mut trial = Self::new(program);
        trial.hello(&["exec", "tty"]);
        trial.json(Kind::Started, 0, &Started { id: "c1".into(), pid: 7 });
        assert!(matches!(trial.event(), Event::Greeted(_)));
        assert!(matches!(trial.event(), Event::Started(_)));
        assert_eq!(trial.said().iter().map(|f| f.kind).collect::<Vec<_>>(), [Kind::Call, Kind::Args, Kind::Env]);
        trial
    }

    fn hello(&mut self, caps: &[&str]) {
        let caps = caps.iter().map(|cap| (*cap).into()).collect();
        let hello = Hello { protocol: [1, 1], agent: "0".into(), boot: "0".into(), init: "self".into(), caps };
        self.json(Kind::Hello, 0, &hello);
    }

    fn json<T: serde::Serialize>(&mut self, kind: Kind, stream: u8, body: &T) {
        let mut out = Vec::new();
        encode_json(&mut out, kind, stream, body);
        self.exec.receive(&out, self.now);
    }

    fn frame(&mut self, kind: Kind, stream: u8, payload: &[u8]) {
        let mut out = Vec::new();
        encode(&mut out, kind, stream, payload);
        self.exec.receive(&out, self.now);
    }

    /// All that it has sent since the last time.
    fn said(&mut self) -> Vec<Frame> {
        let bytes = self.exec.output().to_vec();
        self.exec.sent(bytes.len());
        let (mut rest, mut frames) = (bytes.as_slice(), Vec::new());
        while !rest.is_empty() {
            let (used, frame) = self.decoder.take(rest).unwrap();
            rest = &rest[used..];
            frames.extend(frame);
        }
        frames
    }

    fn event(&mut self) -> Event {
        self.exec.next_event().expect("an event")
    }

    fn failure(&mut self) -> Failure {
        match self.event() {
            Event::Failed(failure) => failure,
            other => panic!("{other:?}"),
        }
    }
}

fn program() -> Program {
    Program { args: vec!["cat".into()], user: "root".into(), stdin: true, ..Program::default() }
}

const DONE: Exit = Exit::Code(ExitCode { code: 3, oom: false });

#[test]
fn a_call_from_hello_to_bye() {
    let mut trial = Trial::running(&program());
    trial.exec.input(b"in");
    trial.exec.end_input();
    trial.frame(Kind::Data, stream::OUT, b"out");
    trial.frame(Kind::Data, stream::ERR, b"err");
    trial.json(Kind::Exit, 0, &DONE);
    assert_eq!((trial.exec.pending(stream::OUT), trial.exec.pending(stream::ERR)), (&b"out"[..], &b"err"[..]));
    assert!(matches!(trial.event(), Event::Ended(exit) if exit == DONE && exit.status() == 3));
    let kinds: Vec<_> = trial.said().into_iter().map(|f| (f.kind, f.payload)).collect();
    assert_eq!(kinds, [(Kind::Data, b"in".to_vec()), (Kind::End, vec![]), (Kind::Bye, vec![])]);
    // Nothing leaves that state.
    trial.exec.closed();
    trial.frame(Kind::Exit, 0, b"");
    assert!(trial.exec.next_event().is_none() && trial.exec.is_over() && trial.exec.deadline().is_none());
}

#[test]
fn a_connection_that_ends_is_lost_and_never_a_status() {
    let mut trial = Trial::new(&program());
    trial.exec.closed();
    assert!(matches!(trial.failure(), Failure::Lost(Stage::Greeting)));
    let mut trial = Trial::running(&program());
    trial.frame(Kind::Data, stream::OUT, b"all of it?");
    trial.frame(Kind::End, stream::OUT, b"");
    trial.frame(Kind::End, stream::ERR, b"");
    trial.exec.closed();
    let failure = trial.failure();
    assert!(matches!(failure, Failure::Lost(Stage::Running)) && failure.status() == 125);
    assert_eq!(trial.exec.pending(stream::OUT), b"all of it?");
}

#[test]
fn what_is_asked_early_waits_for_the_start() {
    let size = TtySize { rows: 40, cols: 120 };
    let mut trial = Trial::new(&Program { tty: Some(TtySize { rows: 1, cols: 1 }), ..program() });
    for _ in 0..200 {
        trial.exec.signal(SignalName::Int);
    }
    trial.exec.resize(TtySize { rows: 2, cols: 2 });
    trial.exec.resize(size);
    trial.exec.unwanted(stream::ERR);
    trial.exec.end_input();
    trial.hello(&["exec", "tty"]);
    assert_eq!(trial.said().len(), 3, "CALL, ARGS, ENV");
    trial.json(Kind::Started, 0, &Started { id: "c1".into(), pid: 7 });
    let said = trial.said();
    assert_eq!(said[0].json::<TtySize>(), Ok(size));
    assert_eq!(said[1].json::<Signal>(), Ok(Signal { signal: SignalName::Int }));
    let rest: Vec<_> = said[2..].iter().map(|f| (f.kind, f.stream)).collect();
    assert_eq!(rest, [(Kind::Gone, stream::ERR), (Kind::End, stream::IN)]);
}

#[test]
fn an_agent_that_can_t_do_it_is_not_asked() {
    let mut trial = Trial::new(&Program { tty: Some(TtySize { rows: 1, cols: 1 }), ..program() });
    trial.hello(&["exec"]);
    assert!(matches!(trial.event(), Event::Greeted(_)));
    assert!(matches!(trial.failure(), Failure::TooOld("tty")));
    assert_eq!(trial.said(), []);
}

#[test]
fn input_is_held_to_the_grant() {
    let mut trial = Trial::running(&program());
    let mut sent = 0;
    while trial.exec.input_room() > 0 {
        let room = trial.exec.input_room();
        trial.exec.input(&vec![0; room]);
        sent += room;
        trial.said();
    }
    assert_eq!(sent, GRANT as usize);
    trial.json(Kind::Grant, stream::IN, &Grant { bytes: GRANT / 2 });
    assert!(trial.exec.input_room() > 0);
    trial.json(Kind::Grant, stream::IN, &Grant { bytes: GRANT });
    assert!(matches!(trial.failure(), Failure::Protocol(ProtocolError::Grant)));
}

#[test]
fn output_is_granted_once_it_was_passed_on() {
    let mut trial = Trial::running(&program());
    for _ in 0..4 {
        trial.frame(Kind::Data, stream::OUT, &[0; 65_536]);
    }
    assert_eq!(trial.said(), []);
    let mut passed = 0;
    while passed < 131_071 {
        let n = trial.exec.pending(stream::OUT).len().min(131_071 - passed);
        trial.exec.passed_on(stream::OUT, n);
        passed += n;
    }
    assert_eq!(trial.said(), [], "less than half");
    trial.exec.passed_on(stream::OUT, 1);
    assert_eq!(trial.said()[0].json::<Grant>(), Ok(Grant { bytes: 131_072 }));
    // What nobody reads is granted as well: its sender stops at GONE, not for want of credit.
    trial.exec.unwanted(stream::OUT);
    assert_eq!(trial.said()[0].kind, Kind::Gone);
    trial.frame(Kind::Data, stream::OUT, &[0; 65_536]);
    trial.frame(Kind::Data, stream::OUT, &[0; 65_536]);
    assert!(trial.exec.pending(stream::OUT).is_empty());
    trial.frame(Kind::Data, stream::OUT, b"x");
    assert!(trial.exec.next_event().is_none(), "it had a grant for that");
}

#[test]
fn a_wrong_frame_ends_the_call() {
    let started = |pid| serde_json::to_vec(&Started { id: "c1".into(), pid }).unwrap();
    let wrong: [(Kind, u8, Vec<u8>); 9] = [
        (Kind::Hello, 0, b"{}".to_vec()),
        (Kind::Started, 0, started(1)),
        (Kind::Call, 0, b"{}".to_vec()),
        (Kind::Reply, 0, b"{}".to_vec()),
        (Kind::Bye, 0, vec![]),
        (Kind::Data, stream::IN, b"x".to_vec()),
        (Kind::Exit, 0, b"{\"code\":300}".to_vec()),
        (Kind::Error, 0, b"{\"code\":\"\xff\"}".to_vec()),
        (Kind::Grant, stream::OUT, b"{\"bytes\":1}".to_vec()),
    ];
    for (kind, stream, payload) in wrong {
        let mut trial = Trial::running(&program());
        trial.frame(kind, stream, &payload);
        assert!(matches!(trial.failure(), Failure::Protocol(_)), "{kind:?}");
    }
    let mut trial = Trial::running(&program());
    trial.frame(Kind::End, stream::OUT, b"");
    trial.frame(Kind::Data, stream::OUT, b"after its end");
    assert!(matches!(trial.failure(), Failure::Protocol(ProtocolError::OutOfPlace)));
    let mut trial = Trial::running(&program());
    for _ in 0..5 {
        trial.frame(Kind::Data, stream::ERR, &[0; 65_536]);
    }
    assert!(matches!(trial.failure(), Failure::Protocol(ProtocolError::Grant)));
}

#[test]
fn frames_without_content_have_an_end() {
    let grant = serde_json::to_vec(&Grant { bytes: 0 }).unwrap();
    for (kind, stream, payload) in
        [(Kind::Data, stream::OUT, vec![]), (Kind::Grant, stream::IN, grant), (Kind::Gone, stream::IN, vec![])]
    {
        let mut trial = Trial::running(&program());
        let mut frames = 0;
        while !trial.exec.is_over() {
            trial.frame(kind, stream, &payload);
            frames += 1;
        }
        assert_eq!(frames, 1001, "{kind:?}");
    }
    // At an honest pace they are nothing to anybody.
    let mut trial = Trial::running(&program());
    for _ in 0..5000 {
        trial.frame(Kind::Data, stream::OUT, b"");
        trial.now += Duration::from_millis(2);
    }
    assert!(!trial.exec.is_over());
}

#[test]
fn each_wait_has_its_limit() {
    let second = Duration::from_secs(1);
    let mut trial = Trial::new(&program());
    assert_eq!(trial.exec.deadline(), Some(trial.now + 2 * second));
    trial.exec.tick(trial.now + second);
    assert!(trial.exec.next_event().is_none());
    trial.exec.tick(trial.now + 2 * second);
    assert!(matches!(trial.failure(), Failure::Late(Stage::Greeting)));

    let mut trial = Trial::new(&program());
    trial.hello(&["exec"]);
    assert!(matches!(trial.event(), Event::Greeted(_)));
    trial.exec.tick(trial.now + 10 * second);
    assert!(matches!(trial.failure(), Failure::Late(Stage::Starting)));

    let mut trial = Trial::running(&program());
    assert_eq!(trial.exec.deadline(), None, "a program may take its time");
    trial.exec.receive(&[5, 0, 0, 0, 6, 2, b'x'], trial.now);
    trial.exec.receive(b"x", trial.now + 9 * second);
    assert_eq!(trial.exec.deadline(), Some(trial.now + 10 * second), "a byte now and then is no frame");
    trial.exec.forgive(5 * second);
    trial.exec.tick(trial.now + 14 * second);
    assert!(trial.exec.next_event().is_none());
    trial.exec.tick(trial.now + 15 * second);
    assert!(matches!(trial.failure(), Failure::Late(Stage::Running)));
}

#[test]
fn what_the_guest_refuses_is_shown_escaped() {
    let mut trial = Trial::new(&program());
    trial.hello(&["exec"]);
    assert!(matches!(trial.event(), Event::Greeted(_)));
    let body = ErrorBody { code: "not_found".into(), step: "\x1b[2Jexec".into(), errno: 2 };
    trial.json(Kind::Error, 0, &body);
    let failure = trial.failure();
    assert_eq!(failure.status(), 127);
    assert_eq!(
        failure.to_string(),
        "the guest's agent: not_found (\\u{1b}[2Jexec: No such file or directory (os error 2))"
    );
    assert_eq!(trial.said().last().map(|f| f.kind), Some(Kind::Bye));
}

#[test]
fn arguments_that_can_t_be_sent() {
    let long = |field: fn(&mut Program)| {
        let mut program = program();
        field(&mut program);
        matches!(Exec::new(&program, Limits::HARDWARE, Instant::now()), Err(Failure::BadArguments))
    };
    assert!(long(|program| program.args = vec!["a\0b".into()]));
    assert!(long(|program| program.env = vec!["x".repeat(65_536).into()]));
    assert!(long(|program| program.user = "x".repeat(1025)));
    assert!(long(|program| program.cwd = "/".repeat(1025)));
    // The longest that pass are one CALL still, however they are escaped.
    let worst = Program { user: "\x01".repeat(1024), cwd: "\x01".repeat(1024), ..program() };
    let mut trial = Trial::new(&worst);
    trial.hello(&["exec"]);
    let call = trial.said().remove(0);
    assert!(matches!(call.json::<Call>(), Ok(Call::Exec(exec)) if exec.cwd == worst.cwd));
}

#[test]
fn a_copy_s_silence_counts_while_it_is_the_guest_s_turn() {
    let begin = Instant::now();
    let put = Put { v: 1, to: "/x".into(), into: false, owner: None, clobber: true, keep: Keep::User };
    let mut trial = Trial { exec: Exec::put(put, Limits::HARDWARE, begin), now: begin, decoder: Decoder::new() };
    trial.hello(&["exec", "tar"]);
    assert!(matches!(trial.event(), Event::Greeted(_)));
    trial.said();
    // Nothing is there to be sent yet, for an hour.
    for minute in 0..60 {
        trial.exec.tick(begin + Duration::from_secs(60 * minute));
        assert!(!trial.exec.is_over(), "{minute}");
    }
    trial.exec.end_input();
    trial.said();
    trial.exec.tick(begin + Duration::from_secs(3600));
    trial.exec.tick(begin + Duration::from_secs(3659));
    assert!(!trial.exec.is_over());
    trial.exec.tick(begin + Duration::from_secs(3661));
    assert!(matches!(trial.failure(), Failure::Late(Stage::Running)));

    let get = Get { v: 1, from: "/x".into(), follow: false, contents: false, keep: Keep::Plain, leave: vec![] };
    let mut trial = Trial { exec: Exec::get(get, Limits::HARDWARE, begin), now: begin, decoder: Decoder::new() };
    trial.hello(&["exec", "tar"]);
    trial.event();
    trial.frame(Kind::Data, stream::OUT, b"held by this end");
    trial.exec.tick(begin + Duration::from_secs(600));
    assert!(!trial.exec.is_over(), "it is this end that waits");
    trial.exec.passed_on(stream::OUT, 16);
    trial.exec.tick(begin + Duration::from_secs(601));
    trial.exec.tick(begin + Duration::from_secs(662));
    assert!(matches!(trial.failure(), Failure::Late(Stage::Running)));
}

#[test]
fn an_older_agent_is_asked_for_less_and_never_for_all() {
    let asked = |keep, caps: &[&str]| {
        let begin = Instant::now();
        let get = Get { v: 1, from: "/x".into(), follow: false, contents: false, keep, leave: vec!["/a".into()] };
        let mut trial = Trial { exec: Exec::get(get, Limits::HARDWARE, begin), now: begin, decoder: Decoder::new() };
        trial.hello(caps);
        assert!(matches!(trial.event(), Event::Greeted(_)));
        match trial.exec.next_event() {
            Some(Event::Failed(failure)) => Err(failure),
            _ => Ok((String::from_utf8(trial.said().remove(0).payload).unwrap(), trial.exec.keep())),
        }
    };
    let (text, keep) = asked(Keep::User, &["tar"]).unwrap();
    assert!(!text.contains("keep") && !text.contains("leave") && keep == Keep::Plain, "{text}");
    let (text, _) = asked(Keep::User, &["tar", "leave"]).unwrap();
    assert!(text.contains(r#""leave":["/a"]"#), "{text}");
    let (text, keep) = asked(Keep::User, &["tar", "xattr"]).unwrap();
    assert!(text.contains(r#""keep":"user""#) && keep == Keep::User, "{text}");
    assert!(matches!(asked(Keep::All, &["tar"]), Err(Failure::TooOld("xattr"))));
}
