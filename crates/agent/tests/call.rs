//! The agent's side of a call, by the program itself on a socket pair, against the library's client.

// A test's helpers are tests too; clippy's setting knows only the functions marked so.
#![allow(clippy::unwrap_used)]

use std::io::{Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::process::{Child, Command};
use std::time::{Duration, Instant};

use agent::client::{Client, Error, Output, Program};
use agent::protocol::{
    Call, Decoder, Down, Exec, Exit, ExitCode, ExitSignal, Frame, Grant, Kind, Signal, SignalName, encode, encode_json,
    encode_strings, stream,
};

/// `banger-agent call` with our end of its socket.
struct Agent {
    child: Child,
    socket: UnixStream,
}

impl Agent {
    fn start() -> Self {
        let (ours, theirs) = UnixStream::pair().unwrap();
        let mut command = Command::new(env!("CARGO_BIN_EXE_banger-agent"));
        let child = command.arg("call").stdin(OwnedFd::from(theirs)).spawn().unwrap();
        ours.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
        Self { child, socket: ours }
    }

    fn client(&self) -> Client<UnixStream> {
        Client::new(self.socket.try_clone().unwrap()).unwrap()
    }

    /// Waits until the agent ended by itself.
    fn ended(mut self) {
        drop(self.socket);
        assert!(self.child.wait().unwrap().success());
    }
}

fn me() -> String {
    String::from_utf8(Command::new("id").arg("-u").output().unwrap().stdout).unwrap().trim().into()
}

fn run(args: &[&str]) -> Result<Output, Error> {
    let agent = Agent::start();
    let (env, user) = (["COLOUR=green"], me());
    let result = agent.client().exec(Program { args, env: &env, user: &user, cwd: "/", most: 8 << 20 });
    agent.ended();
    result
}

fn sh(script: &str) -> Output {
    run(&["/bin/sh", "-c", script]).unwrap()
}

const OK: Exit = Exit::Code(ExitCode { code: 0, oom: false });

#[test]
fn ping_is_answered() {
    let agent = Agent::start();
    let client = agent.client();
    assert_eq!(client.hello().protocol, [1, 1]);
    assert_eq!(client.hello().boot.len(), 32);
    assert_eq!(client.hello().init, "service");
    client.ping().unwrap();
    agent.ended();
}

#[test]
fn a_program_s_outputs_status_and_surroundings() {
    let output = sh("echo out; echo err >&2; echo $COLOUR $PWD; cat; exit 3");
    assert_eq!(output.exit, Exit::Code(ExitCode { code: 3, oom: false }));
    assert_eq!(String::from_utf8_lossy(&output.stdout), "out\ngreen /\n");
    assert_eq!(output.stderr, b"err\n");
    let killed = sh("kill -KILL $$");
    assert_eq!(killed.exit, Exit::Signal(ExitSignal { signal: 9, core: false, oom: false }));
}

#[test]
fn a_child_has_a_session_and_no_descriptor_of_the_agent() {
    let output = sh("cut -d' ' -f1,6 /proc/$$/stat; ls /proc/$$/fd; exec grep SigBlk /proc/self/status");
    let text = String::from_utf8(output.stdout).unwrap();
    let (first, rest) = text.split_once('\n').unwrap();
    let (pid, session) = first.split_once(' ').unwrap();
    assert_eq!(pid, session);
    assert_eq!(rest, "0\n1\n2\nSigBlk:\t0000000000000000\n");
}

#[test]
fn what_can_t_be_started_says_why() {
    let code = |args: &[&str]| match run(args) {
        Err(Error::Refused(body)) => body.code,
        other => panic!("{args:?}: {other:?}"),
    };
    assert_eq!(code(&["/nowhere/at/all"]), "not_found");
    assert_eq!(code(&["no-such-program-here"]), "not_found");
    assert_eq!(code(&["/etc"]), "not_executable");
    assert_eq!(code(&["/etc/passwd"]), "not_executable");

    let agent = Agent::start();
    let at = |user, cwd| Program { args: &["/bin/true"], env: &[], user, cwd, most: 0 };
    assert!(
        matches!(agent.client().exec(at("nobody-of-that-name", "/")), Err(Error::Refused(b)) if b.code == "no_user")
    );
    let agent = Agent::start();
    let user = me();
    assert!(matches!(agent.client().exec(at(&user, "/nowhere")), Err(Error::Refused(b)) if b.code == "bad_cwd"));
}

#[test]
fn all_output_comes_before_the_exit_and_a_background_child_delays_nothing() {
    let begin = Instant::now();
    for _ in 0..5 {
        let output = sh("sleep 3 & head -c 60000 /dev/zero; echo -n x");
        assert_eq!((output.exit, output.stdout.len()), (OK, 60_001));
    }
    assert!(begin.elapsed() < Duration::from_secs(3), "{:?}", begin.elapsed());
}

#[test]
fn more_than_all_credit_arrives_whole() {
    let output = sh("seq 1 500000; seq 1 100000 >&2");
    let want = |n: u32| (1..=n).map(|i| format!("{i}\n")).collect::<String>().into_bytes();
    assert!(output.stdout == want(500_000), "{} bytes", output.stdout.len());
    assert!(output.stderr == want(100_000), "{} bytes", output.stderr.len());
}

#[test]
fn output_is_bounded() {
    assert!(matches!(run(&["/bin/sh", "-c", "yes"]), Err(Error::TooMuch)));
}

/// A call by hand, for what the client doesn't do.
struct Raw {
    agent: Agent,
    decoder: Decoder,
    held: Vec<u8>,
}

impl Raw {
    fn exec(args: &[&str], stdin: bool) -> Self {
        let mut raw = Self { agent: Agent::start(), decoder: Decoder::new(), held: vec![] };
        assert_eq!(raw.frame().unwrap().kind, Kind::Hello);
        let exec = Exec { v: 1, tty: None, stdin, user: me(), cwd: "/".into(), hold: false, linger_s: 0 };
        let mut out = Vec::new();
        encode_json(&mut out, Kind::Call, 0, &Call::Exec(exec));
        encode(&mut out, Kind::Args, 0, &encode_strings(args).unwrap());
        encode(&mut out, Kind::Env, 0, &[]);
        raw.agent.socket.write_all(&out).unwrap();
        assert_eq!(raw.frame().unwrap().kind, Kind::Started);
        raw
    }

    fn send(&mut self, kind: Kind, stream: u8, payload: &[u8]) {
        let mut out = Vec::new();
        encode(&mut out, kind, stream, payload);
        self.agent.socket.write_all(&out).unwrap();
    }

    fn frame(&mut self) -> Option<Frame> {
        loop {
            while !self.held.is_empty() {
                let (used, frame) = self.decoder.take(&self.held).unwrap();
                self.held.drain(..used);
                if frame.is_some() {
                    return frame;
                }
            }
            let mut buffer = [0; 4096];
            let n = self.agent.socket.read(&mut buffer).unwrap();
            if n == 0 {
                return None;
            }
            self.held.extend_from_slice(&buffer[..n]);
        }
    }

    /// The rest: the output, and the last frame.
    fn rest(mut self) -> (Vec<u8>, Frame) {
        let mut output = Vec::new();
        loop {
            let frame = self.frame().unwrap();
            match frame.kind {
                Kind::Data => output.extend_from_slice(&frame.payload),
                Kind::End | Kind::Grant | Kind::Gone => {}
                _ => {
                    self.send(Kind::Bye, 0, &[]);
                    self.agent.ended();
                    return (output, frame);
                }
            }
        }
    }
}

#[test]
fn input_goes_in_and_its_end_is_seen() {
    let mut raw = Raw::exec(&["/usr/bin/wc", "-c"], true);
    for _ in 0..4 {
        raw.send(Kind::Data, stream::IN, &[b'x'; 65_536]);
    }
    // All that was granted at first; more only after a GRANT.
    let grant = raw.frame().unwrap();
    assert_eq!((grant.kind, grant.stream), (Kind::Grant, stream::IN));
    assert!(grant.json::<Grant>().unwrap().bytes >= 128 * 1024);
    raw.send(Kind::Data, stream::IN, b"12345");
    raw.send(Kind::End, stream::IN, &[]);
    let (output, exit) = raw.rest();
    assert_eq!(String::from_utf8_lossy(&output).trim(), "262149");
    assert_eq!(exit.json::<Exit>().unwrap(), OK);
}

#[test]
fn input_beyond_the_grant_ends_the_call() {
    let mut raw = Raw::exec(&["/bin/sleep", "60"], true);
    for _ in 0..5 {
        raw.send(Kind::Data, stream::IN, &[b'x'; 65_536]);
    }
    let (_, error) = raw.rest();
    assert_eq!(error.kind, Kind::Error);
    assert!(String::from_utf8_lossy(&error.payload).contains(r#""code":"protocol""#));
}

#[test]
fn a_program_that_closes_its_input_goes_on() {
    let mut raw = Raw::exec(&["/bin/sh", "-c", "exec <&-; sleep 0.3; echo still here"], true);
    std::thread::sleep(Duration::from_millis(150));
    raw.send(Kind::Data, stream::IN, b"nobody reads this");
    let gone = raw.frame().unwrap();
    assert_eq!((gone.kind, gone.stream), (Kind::Gone, stream::IN));
    let (output, exit) = raw.rest();
    assert_eq!(output, b"still here\n");
    assert_eq!(exit.json::<Exit>().unwrap(), OK);
}

#[test]
fn a_signal_reaches_the_group() {
    let mut raw = Raw::exec(&["/bin/sh", "-c", "sleep 60 & wait"], false);
    let mut out = Vec::new();
    encode_json(&mut out, Kind::Signal, 0, &Signal { signal: SignalName::Term });
    raw.agent.socket.write_all(&out).unwrap();
    let (_, exit) = raw.rest();
    assert_eq!(exit.json::<Exit>().unwrap(), Exit::Signal(ExitSignal { signal: 15, core: false, oom: false }));
}

#[test]
fn a_host_that_goes_away_takes_its_program_along() {
    let begin = Instant::now();
    let raw = Raw::exec(&["/bin/sleep", "3333"], false);
    raw.agent.ended();
    assert!(begin.elapsed() < Duration::from_secs(5), "HUP is enough for sleep");
}

#[test]
fn nonsense_is_answered_by_an_error() {
    for bytes in [&b"GET / HTTP/1.1\r\n\r\n"[..], &[0; 64], &[0xff; 6]] {
        let mut agent = Agent::start();
        agent.socket.write_all(bytes).unwrap();
        let mut text = Vec::new();
        let mut piece = [0; 1024];
        while !String::from_utf8_lossy(&text).contains(r#""code":"protocol""#) {
            let n = agent.socket.read(&mut piece).unwrap();
            assert!(n > 0, "closed without a word");
            text.extend_from_slice(&piece[..n]);
        }
        agent.ended();
    }
}

#[test]
fn down_is_not_for_a_service() {
    let agent = Agent::start();
    // The machine is another's: refused, and above all not done.
    assert!(matches!(agent.client().down(Down::Reset, 0), Err(Error::Refused(body)) if body.code == "unsupported"));
    agent.ended();
}
