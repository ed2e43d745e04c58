//! The one loop: signals, the port, the calls, their pipes. One thread, one poll.

mod ends;
mod relayed;

use std::collections::BTreeMap;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use agent::protocol::{Attach, Hello, VERSION};
use agent::relay::Stream;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::process::Pid;
use sys::session::Birth;

use super::call::{Call, Machine, Pipe, Wish};
use super::console::say;
use super::doorbell::Doorbell;
use super::port::Port;
use super::pump::{Next, Pump};
use super::settings::Then;
use super::ssh::Ssh;
use super::{facts, handover};
use ends::Ending;

/// Calls at once; one above is told that it is one too many.
const CALLS: usize = 64;
/// So many are told so at once; a connection above waits, or is refused.
const TOLD: usize = 16;

/// What this process is in the guest.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Role {
    /// PID 1.
    First,
    /// Beside the init that the first process has become.
    HandedOver,
    /// Beside another first process.
    Service,
    /// On a socket that it was given; the machine is its own, or isn't.
    Called {
        /// Whether `start`, `time` and the like may change it.
        ours: bool,
    },
}

impl Role {
    /// An agent beside a first process of another kind owns the machine as well; only its end is the other's.
    fn owns_the_machine(self) -> bool {
        !matches!(self, Self::Called { ours: false })
    }

    fn may_end(self) -> bool {
        match self {
            Self::First | Self::HandedOver => true,
            Self::Service => handover::is_systemd(),
            Self::Called { .. } => false,
        }
    }

    /// As HELLO tells it.
    fn name(self) -> &'static str {
        match self {
            Self::First => "self",
            Self::HandedOver => "handed-over",
            Self::Service | Self::Called { .. } => "service",
        }
    }
}

/// Where a relayed stream goes.
#[derive(Debug)]
enum Target {
    Call(u32),
    Pump(Pump),
}

/// How a call is reached.
#[derive(Debug)]
enum Link {
    Stream(Stream),
    Socket(OwnedFd),
    Gone,
}

/// What a poll can wake for.
#[derive(Debug, Clone, Copy)]
enum Wake {
    Child,
    Port,
    Listener,
    Local,
    Ssh,
    Bell,
    Pump(Stream),
    Socket(u32),
    Pipe(u32, Pipe),
}

/// All that the agent holds.
pub(super) struct Serve {
    role: Role,
    machine: Machine,
    children: OwnedFd,
    port: Option<Port>,
    /// Until when the port is still looked for, and when next.
    port_search: Option<(Instant, Instant, Duration)>,
    listener: Option<OwnedFd>,
    /// A listening socket of this machine's, instead of a host's.
    local: Option<OwnedFd>,
    bell: Doorbell,
    ssh: Ssh,
    streams: BTreeMap<Stream, Target>,
    calls: BTreeMap<u32, (Call, Link)>,
    next_call: u32,
    program: Option<(Pid, Then)>,
    ending: Option<Ending>,
    buffer: Vec<u8>,
}

impl Serve {
    pub(super) fn new(role: Role) -> io::Result<Self> {
        Ok(Self {
            role,
            machine: Machine { ours: role.owns_the_machine(), may_end: role.may_end(), armed: false },
            children: sys::guest::child_signals()?,
            port: None,
            port_search: None,
            listener: None,
            local: None,
            bell: Doorbell::default(),
            ssh: Ssh::default(),
            streams: BTreeMap::new(),
            calls: BTreeMap::new(),
            next_call: 1,
            program: None,
            ending: None,
            buffer: vec![0; 32 * 1024],
        })
    }

    /// Starts the command line's program.
    pub(super) fn run_program(&mut self, command: &str, then: Then) {
        let mut shell = Command::new("/bin/sh");
        shell.arg0("sh").args(["-c", command]).stdin(Stdio::null()).current_dir("/").env_clear();
        shell.envs([("PATH", "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"), ("HOME", "/root")]);
        shell.env("TERM", "linux");
        match sys::session::spawn(&mut shell, Birth::default()) {
            Ok(child) => {
                let pid = i32::try_from(child.id()).ok().and_then(Pid::from_raw);
                self.program = pid.map(|pid| (pid, then));
            }
            Err((_, error)) => {
                say(&format!("program: /bin/sh: {error}"));
                self.program_ended(then);
            }
        }
    }

    /// Takes a connection for a call.
    pub(super) fn add_connection(&mut self, socket: OwnedFd) -> io::Result<()> {
        rustix::io::ioctl_fionbio(&socket, true)?;
        self.add_call(Link::Socket(socket));
        Ok(())
    }

    /// Takes connections for calls from a socket that listens.
    pub(super) fn listen_on(&mut self, listener: OwnedFd) -> io::Result<()> {
        rustix::io::ioctl_fionbio(&listener, true)?;
        self.local = Some(listener);
        Ok(())
    }

    /// `None`: there are so many that this one isn't even told.
    fn add_call(&mut self, link: Link) -> Option<u32> {
        if self.role == Role::First {
            self.ssh.look();
        }
        let id = self.next_call;
        let call = match self.calls.len() {
            few if few < CALLS => Call::new(id, &hello(self.role)),
            many if many < CALLS + TOLD => Call::busy(id, &hello(self.role)),
            _ => return None,
        };
        self.next_call = self.next_call.wrapping_add(1);
        self.calls.insert(id, (call, link));
        Some(id)
    }

    /// Serves for ever.
    pub(super) fn forever(&mut self) -> io::Result<()> {
        loop {
            self.turn()?;
        }
    }

    /// Serves until no call is left.
    pub(super) fn until_idle(&mut self) -> io::Result<()> {
        while !self.calls.is_empty() {
            self.turn()?;
        }
        Ok(())
    }

    fn turn(&mut self) -> io::Result<()> {
        for (wake, got) in self.wait()? {
            self.woken(wake, got);
        }
        let now = Instant::now();
        self.search_port(now);
        self.attach();
        self.calls.values_mut().for_each(|(call, _)| call.tick(now));
        self.bell.tick(now, self.port.as_mut());
        if let Some(ending) = &self.ending {
            if ending.kill_at <= now {
                self.end();
            } else {
                // There may be nobody left to send the signal that wakes us.
                self.bury();
            }
        }
        self.flush();
        Ok(())
    }

    fn wait(&self) -> io::Result<Vec<(Wake, PollFlags)>> {
        let now = Instant::now();
        let mut wakes = vec![Wake::Child];
        let mut fds = vec![PollFd::new(&self.children, PollFlags::IN)];
        let mut until = self.next_deadline();
        let mut add = |wake, fd, flags| {
            wakes.push(wake);
            fds.push(PollFd::from_borrowed_fd(fd, flags));
        };
        if let Some(port) = &self.port {
            let (flags, later) = port.wants(now);
            until = earliest(until, later);
            if !flags.is_empty() {
                add(Wake::Port, port.file(), flags);
            }
            for (stream, target) in &self.streams {
                if let Target::Pump(pump) = target {
                    let flags = pump.wants(&port.mux, *stream);
                    if !flags.is_empty() {
                        add(Wake::Pump(*stream), pump.socket(), flags);
                    }
                }
            }
        }
        if let Some(listener) = self.listener.as_ref().filter(|_| self.calls.len() < CALLS + TOLD) {
            add(Wake::Listener, listener.as_fd(), PollFlags::IN);
        }
        if let Some(listener) = self.local.as_ref().filter(|_| self.calls.len() < CALLS + TOLD) {
            add(Wake::Local, listener.as_fd(), PollFlags::IN);
        }
        if let Some(listener) = self.ssh.listener() {
            add(Wake::Ssh, listener, PollFlags::IN);
        }
        if let Some(socket) = self.bell.socket() {
            add(Wake::Bell, socket, PollFlags::OUT);
        }
        for (id, (call, link)) in &self.calls {
            if let Link::Socket(socket) = link {
                let mut flags = PollFlags::IN;
                flags.set(PollFlags::OUT, !call.output.is_empty());
                add(Wake::Socket(*id), socket.as_fd(), flags);
            }
            call.pipes().into_iter().for_each(|(pipe, fd, flags)| add(Wake::Pipe(*id, pipe), fd, flags));
        }
        let timeout = until.map(|until| timespec(until.saturating_duration_since(now)));
        match poll(&mut fds, timeout.as_ref()) {
            Ok(_) => {}
            Err(Errno::INTR) => return Ok(Vec::new()),
            Err(error) => return Err(error.into()),
        }
        let got = fds.iter().map(PollFd::revents);
        Ok(wakes.into_iter().zip(got).filter(|(_, got)| !got.is_empty()).collect())
    }

    fn next_deadline(&self) -> Option<Instant> {
        let calls = self.calls.values().filter_map(|(call, _)| call.deadline()).min();
        let search = self.port_search.map(|(_, next, _)| next);
        let ending = self.ending.as_ref().map(|ending| ending.kill_at);
        earliest(earliest(calls, search), earliest(ending, self.bell.deadline()))
    }

    fn woken(&mut self, wake: Wake, got: PollFlags) {
        match wake {
            Wake::Child => self.bury(),
            Wake::Port => self.port_ready(got),
            Wake::Listener => self.accept(),
            Wake::Local => self.accept_local(),
            Wake::Ssh => self.ssh.accept(),
            Wake::Bell => self.bell.socket_ready(),
            Wake::Pump(stream) => {
                let (Some(port), Some(Target::Pump(pump))) = (&mut self.port, self.streams.get_mut(&stream)) else {
                    return;
                };
                if pump.ready(got, &mut port.mux, stream) == Next::Drop {
                    self.streams.remove(&stream);
                }
            }
            Wake::Socket(id) => self.read_socket(id),
            Wake::Pipe(id, pipe) => {
                if let Some((call, _)) = self.calls.get_mut(&id) {
                    call.ready(pipe, got);
                }
            }
        }
    }

    fn accept(&mut self) {
        let Some(Ok((socket, from))) = self.listener.as_ref().map(sys::vsock::accept) else { return };
        // Any program of the guest can connect to its own machine; only the host's word counts.
        if from.cid == sys::vsock::CID_HOST {
            self.add_call(Link::Socket(socket));
        }
    }

    fn accept_local(&mut self) {
        let flags = rustix::net::SocketFlags::CLOEXEC | rustix::net::SocketFlags::NONBLOCK;
        if let Some(Ok(socket)) = self.local.as_ref().map(|listener| rustix::net::accept_with(listener, flags)) {
            self.add_call(Link::Socket(socket));
        }
    }

    fn read_socket(&mut self, id: u32) {
        let Some((call, link)) = self.calls.get_mut(&id) else { return };
        let Link::Socket(socket) = link else { return };
        match rustix::io::read(&*socket, &mut self.buffer) {
            Ok(n) if n > 0 => call.receive(&self.buffer[..n], &mut self.machine),
            Err(Errno::AGAIN | Errno::INTR) => {}
            _ => {
                call.host_is_gone();
                *link = Link::Gone;
            }
        }
    }

    /// Moves the calls' output to the host, closes what is over, and writes the port.
    fn flush(&mut self) {
        let mut over = Vec::new();
        for (id, (call, link)) in &mut self.calls {
            loop {
                call.produce();
                let before = call.output.len();
                match link {
                    Link::Stream(stream) => {
                        if let Some(port) = &mut self.port {
                            let taken = port.mux.send(*stream, &call.output);
                            call.output.drain(..taken);
                        }
                    }
                    Link::Socket(socket) => flush_socket(socket, call),
                    Link::Gone => call.output.clear(),
                }
                // What is left waits for the link; where there was nothing, for the call.
                if before == 0 || !call.output.is_empty() {
                    break;
                }
            }
            if call.output.is_empty() || matches!(link, Link::Gone) {
                if let Some(Wish::Down(how, grace)) = call.wish.take_if(|wish| matches!(wish, Wish::Down(..)))
                    && self.ending.is_none()
                {
                    self.ending = Some(Ending::begin(self.role, how, grace));
                }
                if call.is_gone() {
                    over.push(*id);
                }
            }
        }
        for id in over {
            if let Some((_, Link::Stream(stream))) = self.calls.remove(&id) {
                self.streams.remove(&stream);
                if let Some(port) = &mut self.port {
                    port.mux.finish(stream);
                }
            }
        }
        if let Some(port) = &mut self.port {
            port.write();
        }
    }

    /// Gives execs that linger to the calls that asked for them.
    fn attach(&mut self) {
        let wish = |call: &Call| match &call.wish {
            Some(Wish::Attach(attach)) => Some(attach.clone()),
            _ => None,
        };
        let wishes: Vec<(u32, Attach)> =
            self.calls.iter().filter_map(|(id, (call, _))| wish(call).map(|attach| (*id, attach))).collect();
        for (id, attach) in wishes {
            let found = self.calls.iter_mut().find_map(|(from, (call, _))| Some((*from, call.hand_over(&attach.id)?)));
            let (from, running) = found.map_or((None, None), |(from, running)| (Some(from), Some(running)));
            let Some((call, _)) = self.calls.get_mut(&id) else { continue };
            call.wish = None;
            let refused = call.attached(&attach, running);
            if let Some((running, (call, _))) = refused.zip(from.and_then(|from| self.calls.get_mut(&from))) {
                call.take_back(running);
            }
        }
    }
}

fn flush_socket(socket: &OwnedFd, call: &mut Call) {
    while !call.output.is_empty() {
        match rustix::net::send(socket, &call.output, rustix::net::SendFlags::NOSIGNAL) {
            Ok(n) => drop(call.output.drain(..n)),
            Err(Errno::INTR) => {}
            // AGAIN waits for the poll; anything else is found again by the read, which ends the call.
            Err(_) => return,
        }
    }
}

fn hello(role: Role) -> Hello {
    let caps = [
        "exec", "tty", "linger", "start", "time", "adjust", "entropy", "stats", "listen", "tar", "xattr", "dial",
        "files", "leave",
    ];
    Hello {
        protocol: [VERSION, VERSION],
        agent: env!("CARGO_PKG_VERSION").into(),
        boot: facts::boot_id(),
        init: role.name().into(),
        caps: caps.map(String::from).into(),
    }
}

fn earliest(a: Option<Instant>, b: Option<Instant>) -> Option<Instant> {
    match (a, b) {
        (Some(a), Some(b)) => Some(a.min(b)),
        (a, b) => a.or(b),
    }
}

fn timespec(time: Duration) -> Timespec {
    Timespec { tv_sec: i64::try_from(time.as_secs()).unwrap_or(i64::MAX), tv_nsec: time.subsec_nanos().into() }
}
