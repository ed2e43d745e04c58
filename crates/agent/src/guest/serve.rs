//! The one loop: signals, the port, the calls, their pipes. One thread, one poll, one place where children are buried.

use std::collections::BTreeMap;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use agent::protocol::{Down, Hello, PORT, VERSION};
use agent::relay::{Event, Stream};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::process::{Pid, Signal, WaitOptions, WaitStatus};
use rustix::system::RebootCommand;

use super::boot;
use super::call::{Call, Pipe};
use super::console::{say, stage};
use super::doorbell::Doorbell;
use super::port::Port;
use super::pump::{Next, Pump};
use super::settings::Then;

/// Calls at once; a connection above is closed unread.
const CALLS: usize = 64;
/// How long the port may take to appear after its driver.
const PORT_LIMIT: Duration = Duration::from_secs(10);

/// What this process is in the guest.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Role {
    /// PID 1.
    First,
    /// Beside another first process.
    Service,
    /// For one connection.
    OneCall,
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
    Bell,
    Pump(Stream),
    Socket(u32),
    Pipe(u32, Pipe),
}

/// An end of the machine that is under way.
#[derive(Debug)]
struct Ending {
    how: RebootCommand,
    kill_at: Instant,
}

/// All that the agent holds.
pub(super) struct Serve {
    role: Role,
    hello: Hello,
    children: OwnedFd,
    port: Option<Port>,
    /// Until when the port is still looked for, and when next.
    port_search: Option<(Instant, Instant, Duration)>,
    listener: Option<OwnedFd>,
    bell: Doorbell,
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
            hello: hello(role),
            children: sys::guest::child_signals()?,
            port: None,
            port_search: None,
            listener: None,
            bell: Doorbell::default(),
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
        match sys::guest::spawn_session(&mut shell, None) {
            Ok(child) => {
                let pid = i32::try_from(child.id()).ok().and_then(Pid::from_raw);
                self.program = pid.map(|pid| (pid, then));
            }
            Err(error) => {
                say(&format!("program: /bin/sh: {error}"));
                self.program_ended(then);
            }
        }
    }

    /// Looks for the way to the host: a vsock of a VMM's, or the port, which may still be on its way.
    pub(super) fn find_host(&mut self) {
        let real = sys::vsock::local_cid().is_ok_and(|cid| (3..u32::MAX).contains(&cid));
        if real {
            match sys::vsock::listen(PORT, 64) {
                Ok(listener) => {
                    self.listener = Some(listener);
                    self.bell.ring_by_socket();
                    stage("vsock");
                }
                Err(error) => say(&format!("vsock port {PORT}: {error}")),
            }
        }
        if Port::is_possible() {
            let now = Instant::now();
            self.port_search = Some((now + PORT_LIMIT, now, Duration::from_millis(1)));
            self.search_port(now);
        } else if !real {
            say("no way to the host: neither a virtio-serial port nor a vsock");
        }
    }

    fn search_port(&mut self, now: Instant) {
        let Some((limit, next, step)) = self.port_search else { return };
        if now < next {
            return;
        }
        self.port = Port::find();
        if self.port.is_some() {
            self.port_search = None;
            stage("relay");
        } else if now > limit {
            self.port_search = None;
            if self.listener.is_none() {
                say("no virtio-serial port named banger.agent");
            }
        } else {
            self.port_search = Some((limit, now + step, (step * 2).min(Duration::from_millis(50))));
        }
    }

    /// Takes a connection for a call.
    pub(super) fn add_connection(&mut self, socket: OwnedFd) -> io::Result<()> {
        rustix::io::ioctl_fionbio(&socket, true)?;
        self.add_call(Link::Socket(socket));
        Ok(())
    }

    fn add_call(&mut self, link: Link) -> u32 {
        let id = self.next_call;
        self.next_call = self.next_call.wrapping_add(1);
        self.calls.insert(id, (Call::new(id, &self.hello, self.role == Role::First), link));
        id
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
        if let Some(listener) = self.listener.as_ref().filter(|_| self.calls.len() < CALLS) {
            add(Wake::Listener, listener.as_fd(), PollFlags::IN);
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
            call.pipes().for_each(|(pipe, fd, flags)| add(Wake::Pipe(*id, pipe), fd, flags));
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
                    call.ready(pipe);
                }
            }
        }
    }

    fn port_ready(&mut self, got: PollFlags) {
        let Some(port) = &mut self.port else { return };
        if got.intersects(PollFlags::IN | PollFlags::HUP | PollFlags::ERR) {
            port.read(&mut self.buffer);
        }
        while let Some(event) = self.port.as_mut().and_then(|port| port.mux.next_event()) {
            self.relayed(event);
        }
    }

    fn relayed(&mut self, event: Event) {
        let Some(port) = &mut self.port else { return };
        match event {
            Event::Synced => {
                for target in std::mem::take(&mut self.streams).into_values() {
                    self.drop_target(target);
                }
                self.bell.ring_by_stream();
            }
            Event::Opened { stream, port: wanted } => self.opened(stream, wanted),
            Event::Connected(stream) => self.bell.connected(stream, &mut port.mux),
            Event::Data(stream, bytes) => match self.streams.get_mut(&stream) {
                Some(Target::Pump(pump)) => {
                    if pump.take(&bytes, &mut port.mux, stream) == Next::Drop {
                        self.streams.remove(&stream);
                    }
                }
                Some(Target::Call(id)) => {
                    if let Some((call, _)) = self.calls.get_mut(id) {
                        call.receive(&bytes);
                    }
                    port.mux.consumed(stream, bytes.len());
                }
                None => port.mux.consumed(stream, bytes.len()),
            },
            Event::Finished(stream) => match self.streams.get_mut(&stream) {
                Some(Target::Pump(pump)) => {
                    if pump.finished(&mut port.mux, stream) == Next::Drop {
                        self.streams.remove(&stream);
                    }
                }
                // A call has no half-close: its host is gone.
                Some(Target::Call(_)) => {
                    port.mux.finish(stream);
                    self.drop_stream(stream);
                }
                None => port.mux.finish(stream),
            },
            Event::Reset(stream) => {
                self.bell.reset(stream);
                self.drop_stream(stream);
            }
            Event::Credit(_) => {}
        }
    }

    fn opened(&mut self, stream: Stream, wanted: u32) {
        let target = match wanted {
            PORT if self.calls.len() < CALLS => Some(Target::Call(self.add_call(Link::Stream(stream)))),
            PORT => None,
            other => Pump::connect(other).map(Target::Pump),
        };
        let Some(port) = &mut self.port else { return };
        match target {
            Some(target) => {
                if matches!(target, Target::Call(_)) {
                    port.mux.accept(stream);
                }
                self.streams.insert(stream, target);
            }
            None => port.mux.refuse(stream),
        }
    }

    fn drop_stream(&mut self, stream: Stream) {
        if let Some(target) = self.streams.remove(&stream) {
            self.drop_target(target);
        }
    }

    fn drop_target(&mut self, target: Target) {
        if let Target::Call(id) = target
            && let Some((call, link)) = self.calls.get_mut(&id)
        {
            call.host_is_gone();
            *link = Link::Gone;
        }
    }

    fn accept(&mut self) {
        let Some(Ok((socket, from))) = self.listener.as_ref().map(sys::vsock::accept) else { return };
        // Any program of the guest can connect to its own machine; only the host's word counts.
        if from.cid == sys::vsock::CID_HOST {
            self.add_call(Link::Socket(socket));
        }
    }

    fn read_socket(&mut self, id: u32) {
        let Some((call, link)) = self.calls.get_mut(&id) else { return };
        let Link::Socket(socket) = link else { return };
        match rustix::io::read(&*socket, &mut self.buffer) {
            Ok(n) if n > 0 => call.receive(&self.buffer[..n]),
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
            if call.output.is_empty() || matches!(link, Link::Gone) {
                if let Some((how, grace)) = call.down.take()
                    && self.ending.is_none()
                {
                    self.ending = Some(begin_end(how, grace));
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

    /// Buries every child that has ended: the leaders' calls and the program are told, orphans are not missed.
    fn bury(&mut self) {
        // The signals themselves say no more than that there is something to do.
        while rustix::io::read(&self.children, &mut self.buffer).is_ok_and(|n| n > 0) {}
        loop {
            match rustix::process::wait(WaitOptions::NOHANG) {
                Ok(Some((pid, status))) => self.buried(pid, status),
                Err(Errno::INTR) => {}
                // Nobody is left: an end that waits for the last one needn't wait longer.
                Err(_) if self.ending.is_some() => return self.end(),
                _ => return,
            }
        }
    }

    fn buried(&mut self, pid: Pid, status: WaitStatus) {
        if let Some((program, then)) = self.program
            && program == pid
        {
            self.program = None;
            match (status.exit_status(), status.terminating_signal()) {
                (Some(code), _) => say(&format!("program ended: exit {code}")),
                (None, signal) => say(&format!("program ended: signal {}", signal.unwrap_or(0))),
            }
            return self.program_ended(then);
        }
        if let Some((call, _)) = self.calls.values_mut().find(|(call, _)| call.leader() == Some(pid)) {
            call.buried(status);
        }
    }

    fn program_ended(&mut self, then: Then) {
        if then == Then::Poweroff && self.role == Role::First {
            // Its own background children have had their time.
            let _ = sys::guest::signal_all(Signal::KILL);
            boot::reset();
        }
    }

    fn end(&mut self) {
        if let (Some(ending), Role::First) = (self.ending.take(), self.role) {
            let _ = sys::guest::signal_all(Signal::KILL);
            boot::restart(ending.how);
        }
    }
}

/// Asks every process to end; who hasn't by then is killed.
fn begin_end(how: Down, grace: Duration) -> Ending {
    let _ = sys::guest::signal_all(Signal::TERM);
    let how = match how {
        Down::Reset => RebootCommand::Restart,
        Down::Poweroff => RebootCommand::PowerOff,
    };
    Ending { how, kill_at: Instant::now() + grace.min(Duration::from_secs(3600)) }
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
    let boot = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default();
    Hello {
        protocol: [VERSION, VERSION],
        agent: env!("CARGO_PKG_VERSION").into(),
        boot: boot.chars().filter(char::is_ascii_hexdigit).collect(),
        init: if role == Role::First { "self" } else { "service" }.into(),
        caps: vec!["exec".into()],
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
