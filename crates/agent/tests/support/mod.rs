//! The agent's program on one end of a socket pair, and the library's host half on the other.

// Each test file uses a part of it; and a test's helpers are tests too, but clippy's setting knows only marked functions.
#![allow(dead_code, unreachable_pub)]
#![allow(clippy::unwrap_used)]

use std::io::{PipeReader, PipeWriter, Read};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::process::{Child, Command};
use std::time::{Duration, Instant};

use agent::host::{Control, Driver, Ended, Exec, Failure, Limits, Note, Orders, Program, control};
use agent::protocol::{Exit, ExitCode, SignalName};

/// `banger-agent call` with our end of its socket.
pub struct Agent {
    pub child: Child,
    pub socket: UnixStream,
}

impl Agent {
    pub fn start() -> Self {
        let (ours, theirs) = UnixStream::pair().unwrap();
        let mut command = Command::new(env!("CARGO_BIN_EXE_banger-agent"));
        let child = command.arg("call").stdin(OwnedFd::from(theirs)).spawn().unwrap();
        ours.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
        Self { child, socket: ours }
    }

    /// Waits until the agent ended by itself.
    pub fn ended(mut self) {
        drop(self.socket);
        assert!(self.child.wait().unwrap().success());
    }
}

/// The user that this test runs as, as a number.
pub fn me() -> String {
    rustix::process::getuid().as_raw().to_string()
}

pub fn program(args: &[&str]) -> Program {
    let args = args.iter().map(Into::into).collect();
    Program { args, user: me(), cwd: "/".into(), stdin: true, ..Program::default() }
}

pub fn sh(script: &str) -> Program {
    program(&["/bin/sh", "-c", script])
}

pub const OK: Exit = Exit::Code(ExitCode { code: 0, oom: false });

pub fn code(code: u8) -> Exit {
    Exit::Code(ExitCode { code, oom: false })
}

/// A call that runs in a thread, with our ends of its three pipes.
pub struct Running {
    thread: std::thread::JoinHandle<Result<Ended, Failure>>,
    pub control: Control,
    pub stdin: Option<PipeWriter>,
    pub stdout: Option<PipeReader>,
    pub stderr: Option<PipeReader>,
    pub started: std::sync::mpsc::Receiver<u32>,
    pub agent: Option<Child>,
}

/// Starts a call by the driver.
pub fn start(program: Program, timeout: Option<Duration>) -> Running {
    let agent = Agent::start();
    let socket = agent.socket.try_clone().unwrap();
    start_on(socket, Some(agent.child), program, timeout)
}

pub fn start_on(socket: UnixStream, agent: Option<Child>, program: Program, timeout: Option<Duration>) -> Running {
    let (control, orders): (Control, Orders) = control().unwrap();
    let (stdin, ours_in) = std::io::pipe().unwrap();
    let (ours_out, stdout) = std::io::pipe().unwrap();
    let (ours_err, stderr) = std::io::pipe().unwrap();
    let (tell, started) = std::sync::mpsc::channel();
    let thread = std::thread::spawn(move || {
        let exec = Exec::new(&program, Limits::EMULATED, Instant::now())?;
        let driver = Driver {
            socket: &socket,
            stdin: Some(stdin.as_fd()),
            stdout: stdout.as_fd(),
            stderr: stderr.as_fd(),
            orders: &orders,
            timeout,
        };
        driver.run(exec, |note| {
            if let Note::Started { pid } = note {
                let _ = tell.send(pid);
            }
        })
    });
    let (stdin, stdout, stderr) = (Some(ours_in), Some(ours_out), Some(ours_err));
    Running { thread, control, stdin, stdout, stderr, started, agent }
}

/// What a whole call gave.
#[derive(Debug)]
pub struct Whole {
    pub ended: Result<Ended, Failure>,
    pub stdout: Vec<u8>,
    pub stderr: Vec<u8>,
}

impl Whole {
    pub fn exit(&self) -> Exit {
        self.ended.as_ref().unwrap_or_else(|failure| panic!("{failure}")).exit
    }

    pub fn text(&self) -> &str {
        std::str::from_utf8(&self.stdout).unwrap()
    }
}

impl Running {
    /// Reads both outputs to their ends; the input stays as it is.
    pub fn whole(mut self) -> Whole {
        let read = |pipe: Option<PipeReader>| {
            std::thread::spawn(move || {
                let mut bytes = Vec::new();
                pipe.map(|mut pipe| pipe.read_to_end(&mut bytes).unwrap());
                bytes
            })
        };
        let (stdout, stderr) = (read(self.stdout.take()), read(self.stderr.take()));
        let ended = self.thread.join().unwrap();
        let whole = Whole { ended, stdout: stdout.join().unwrap(), stderr: stderr.join().unwrap() };
        drop(self.stdin);
        if let Some(mut agent) = self.agent {
            agent.wait().unwrap();
        }
        whole
    }

    pub fn wait_started(&self) -> u32 {
        self.started.recv_timeout(Duration::from_secs(20)).unwrap()
    }

    pub fn signal(&self, signal: SignalName) {
        self.control.signal(signal).unwrap();
    }
}

/// A whole call whose input ends at once.
pub fn run(program: Program) -> Whole {
    let mut running = start(program, None);
    running.stdin = None;
    running.whole()
}

/// `banger-agent call` on a listening socket: one agent, as many calls as somebody makes.
pub struct Service {
    child: Child,
    dir: tempfile::TempDir,
}

impl Service {
    pub fn start() -> Self {
        Self::by(Command::new(env!("CARGO_BIN_EXE_banger-agent")), &["call"])
    }

    /// The same as the first process of a PID namespace, where orphans become its own. As root.
    pub fn first_process() -> Self {
        let program = env!("CARGO_BIN_EXE_banger-agent");
        let mut command = Command::new("unshare");
        command.args(["--pid", "--fork", "--kill-child", "--mount-proc", program]);
        Self::by(command, &["call"])
    }

    /// The same on a machine that is its own to change: its files, names and network are nobody else's. As root.
    pub fn machine() -> Self {
        let program = env!("CARGO_BIN_EXE_banger-agent");
        let script = "mount -t tmpfs t /run && mount -t tmpfs t /etc && echo root:x:0:0::/root:/bin/sh >/etc/passwd && \
                      ip tuntap add eth0 mode tap && exec \"$0\" call machine";
        let mut command = Command::new("unshare");
        command.args(["--mount", "--uts", "--net", "sh", "-c", script, program]);
        Self::by(command, &[])
    }

    fn by(mut command: Command, args: &[&str]) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let listener = std::os::unix::net::UnixListener::bind(dir.path().join("s")).unwrap();
        let child = command.args(args).stdin(OwnedFd::from(listener)).spawn().unwrap();
        Self { child, dir }
    }

    pub fn connect(&self) -> UnixStream {
        let socket = UnixStream::connect(self.dir.path().join("s")).unwrap();
        socket.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
        socket
    }
}

impl Drop for Service {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A whole call on a service, whose input ends at once.
pub fn run_on(service: &Service, program: Program) -> Whole {
    let mut running = start_on(service.connect(), None, program, None);
    running.stdin = None;
    running.whole()
}
