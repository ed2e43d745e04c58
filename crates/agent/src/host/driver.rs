//! One exec between a connected socket and the caller's own descriptors, with poll and no threads.
//!
//! The descriptors of the caller are shared with whoever gave them to him, so their flags are left as they are: each is
//! read or written only when the kernel says that this doesn't wait, a pipe or terminal by [`STEP`] bytes at a time.

use std::fs::File;
use std::net::SocketAddr;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::net::{RecvFlags, SendFlags};

use super::{Event, Exec, Failure, Limits, Order, Orders, Stage, control};
use crate::protocol::{Dial, Exit, ExitCode, Hello, SignalName, VERSION, stream};

/// What a pipe takes at least when it can be written at all (PIPE_BUF, pipe(7)).
const STEP: usize = 4096;
/// What is read at once.
const PIECE: usize = 64 * 1024;
/// What a program has between TERM and KILL when its time is over, and then until the call is given up.
const LAST_WORDS: Duration = Duration::from_secs(5);
/// A sleep that is so much longer than asked for was no sleep: this process was stopped.
const STOPPED: Duration = Duration::from_secs(1);

/// What the caller may want to show.
#[derive(Debug)]
pub enum Note<'a> {
    /// The agent said HELLO. It is the guest's word, to be escaped where it is shown.
    Greeted(&'a Hello),
    /// The program runs.
    Started {
        /// Its process in the guest.
        pid: u32,
    },
    /// The first byte of its output is there.
    FirstByte,
    /// Its output has ended, and all of it was passed on: whoever reads the caller's may be told so.
    OutputEnded,
}

/// How the program ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ended {
    /// Its own end.
    pub exit: Exit,
    /// Whether it was ended because its time was over.
    pub timed_out: bool,
}

/// What an exec, or a connection to a port of the guest's, runs between.
#[derive(Debug)]
pub struct Driver<'a> {
    /// Connected to the agent, and nothing of its words read: after a VMM's `OK` line.
    pub socket: &'a UnixStream,
    /// The program's input; `None`: it ends at once.
    pub stdin: Option<BorrowedFd<'a>>,
    /// Where its output goes.
    pub stdout: BorrowedFd<'a>,
    /// Where its error output goes.
    pub stderr: BorrowedFd<'a>,
    /// Signals and window sizes.
    pub orders: &'a Orders,
    /// The most time from its start on; then TERM, and KILL 5 seconds later.
    pub timeout: Option<Duration>,
}

/// Connects what `[input, output]` are to a TCP port of the guest's, until both directions have ended. `ended` is called
/// when the guest's side has, and all of it was passed on.
///
/// # Errors
/// [`Failure`]
pub fn dial(
    socket: &UnixStream,
    limits: Limits,
    to: SocketAddr,
    [stdin, stdout]: [BorrowedFd<'_>; 2],
    ended: impl Fn(),
) -> Result<(), Failure> {
    let asked = Dial { v: VERSION, net: "tcp".into(), addr: to.ip(), port: to.port() };
    let (_control, orders) = control()?;
    // A connection has no error output: what comes as such goes where nobody reads it.
    let nothing = File::options().write(true).open("/dev/null")?;
    let driver = Driver { socket, stdin: Some(stdin), stdout, stderr: nothing.as_fd(), orders: &orders, timeout: None };
    let note = |note: Note<'_>| {
        if matches!(note, Note::OutputEnded) {
            ended();
        }
    };
    driver.run(Exec::dial(asked, limits, Instant::now()), note).map(drop)
}

/// What a poll woke for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Wake {
    Socket,
    Orders,
    Input,
    Output(u8),
}

/// One of the caller's two outputs.
#[derive(Debug)]
struct Sink<'a> {
    stream: u8,
    fd: BorrowedFd<'a>,
    step: usize,
    open: bool,
}

/// How far the end of a program is whose time is over.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Clock {
    /// No limit, or not begun.
    Off,
    Until(Instant),
    Asked(Instant),
    Killed(Instant),
}

struct Run<'a, N> {
    driver: Driver<'a>,
    exec: Exec,
    note: N,
    sinks: [Sink<'a>; 2],
    clock: Clock,
    first_byte: bool,
    output_ended: bool,
    orders_open: bool,
    /// The socket takes no more; what it still gives counts.
    deaf: bool,
    result: Option<Result<Exit, Failure>>,
}

impl<'a> Driver<'a> {
    /// Runs the call to its end. When it returns all that came of the program's output has been passed on, or its reader
    /// is gone, which the program was told.
    ///
    /// # Errors
    /// [`Failure`]; what the program wrote by then has been passed on.
    pub fn run<N: FnMut(Note<'_>)>(self, exec: Exec, note: N) -> Result<Ended, Failure> {
        let sink = |stream, fd: BorrowedFd<'a>| {
            let file =
                rustix::fs::fstat(fd).is_ok_and(|stat| rustix::fs::FileType::from_raw_mode(stat.st_mode).is_file());
            Sink { stream, fd, step: if file { PIECE } else { STEP }, open: true }
        };
        let sinks = [sink(stream::OUT, self.stdout), sink(stream::ERR, self.stderr)];
        let (driver, clock, result) = (self, Clock::Off, None);
        Run {
            driver,
            exec,
            note,
            sinks,
            clock,
            first_byte: false,
            output_ended: false,
            orders_open: true,
            deaf: false,
            result,
        }
        .into_end()
    }
}

impl<N: FnMut(Note<'_>)> Run<'_, N> {
    fn into_end(mut self) -> Result<Ended, Failure> {
        if self.driver.stdin.is_none() {
            self.exec.end_input();
        }
        let mut buffer = vec![0; PIECE];
        loop {
            self.take_events();
            self.write_socket();
            if self.result.is_some() && self.sinks.iter().all(|sink| self.exec.pending(sink.stream).is_empty()) {
                break;
            }
            for (wake, got) in self.wait()? {
                self.woken(wake, got, &mut buffer)?;
            }
            self.exec.tick(Instant::now());
            self.watch_clock();
        }
        let timed_out = matches!(self.clock, Clock::Asked(_) | Clock::Killed(_));
        match self.result {
            Some(Ok(exit)) => Ok(Ended { exit, timed_out }),
            Some(Err(failure)) => Err(failure),
            None => Err(Failure::Lost(Stage::Running)),
        }
    }

    fn take_events(&mut self) {
        while let Some(event) = self.exec.next_event() {
            match event {
                Event::Greeted(hello) => (self.note)(Note::Greeted(&hello)),
                Event::Started(started) => {
                    (self.note)(Note::Started { pid: started.pid });
                    if let Some(timeout) = self.driver.timeout {
                        self.clock = Clock::Until(Instant::now() + timeout);
                    }
                }
                Event::Gone => {}
                Event::Ended(exit) => self.result = Some(Ok(exit)),
                // A connection has no status; that it ended is all there is to say.
                Event::Replied(_) => self.result = Some(Ok(Exit::Code(ExitCode { code: 0, oom: false }))),
                Event::Failed(failure) => self.result = Some(Err(failure)),
            }
        }
        if !self.first_byte && self.sinks.iter().any(|sink| !self.exec.pending(sink.stream).is_empty()) {
            self.first_byte = true;
            (self.note)(Note::FirstByte);
        }
        if !self.output_ended && self.exec.has_ended(stream::OUT) {
            self.output_ended = true;
            (self.note)(Note::OutputEnded);
        }
    }

    fn wait(&mut self) -> Result<Vec<(Wake, PollFlags)>, Failure> {
        let (mut wakes, mut fds) = (Vec::new(), Vec::new());
        let mut add = |wake, fd, flags| {
            wakes.push(wake);
            fds.push(PollFd::from_borrowed_fd(fd, flags));
        };
        if self.result.is_none() {
            let mut flags = PollFlags::IN;
            flags.set(PollFlags::OUT, !self.deaf && !self.exec.output().is_empty());
            add(Wake::Socket, self.driver.socket.as_fd(), flags);
        }
        if self.orders_open {
            add(Wake::Orders, self.driver.orders.fd(), PollFlags::IN);
        }
        if let Some(stdin) = self.driver.stdin.filter(|_| self.exec.input_room() > 0) {
            add(Wake::Input, stdin, PollFlags::IN);
        }
        for sink in self.sinks.iter().filter(|sink| sink.open) {
            // With nothing to write it is still told when its reader goes.
            let wanted = !self.exec.pending(sink.stream).is_empty();
            add(Wake::Output(sink.stream), sink.fd, if wanted { PollFlags::OUT } else { PollFlags::empty() });
        }
        let now = Instant::now();
        let clock = match self.clock {
            Clock::Off => None,
            Clock::Until(at) | Clock::Asked(at) | Clock::Killed(at) => Some(at),
        };
        let until = [self.exec.deadline(), clock.filter(|_| self.result.is_none())].into_iter().flatten().min();
        let left = until.map(|until| until.saturating_duration_since(now));
        match poll(&mut fds, left.map(timespec).as_ref()) {
            Ok(_) | Err(Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
        let got: Vec<_> = fds.iter().map(PollFd::revents).collect();
        if let Some(over) = left.and_then(|left| now.elapsed().checked_sub(left)).filter(|over| *over > STOPPED) {
            self.exec.forgive(over);
        }
        Ok(wakes.into_iter().zip(got).filter(|(_, got)| !got.is_empty()).collect())
    }

    fn woken(&mut self, wake: Wake, got: PollFlags, buffer: &mut [u8]) -> Result<(), Failure> {
        match wake {
            Wake::Socket => self.read_socket(buffer),
            Wake::Orders => self.take_orders(got),
            Wake::Input => self.read_input(buffer),
            Wake::Output(stream) => self.write_output(stream, got),
        }
    }

    fn read_socket(&mut self, buffer: &mut [u8]) -> Result<(), Failure> {
        match rustix::net::recv(self.driver.socket, &mut *buffer, RecvFlags::DONTWAIT) {
            Ok((_, 0)) => self.exec.closed(),
            Ok((_, n)) => self.exec.receive(&buffer[..n], Instant::now()),
            Err(Errno::AGAIN | Errno::INTR) => {}
            // Whatever it is called, nothing more comes.
            Err(_) => self.exec.closed(),
        }
        Ok(())
    }

    fn write_socket(&mut self) {
        while !self.deaf && !self.exec.output().is_empty() {
            let flags = SendFlags::DONTWAIT | SendFlags::NOSIGNAL;
            match rustix::net::send(self.driver.socket, self.exec.output(), flags) {
                Ok(n) => self.exec.sent(n),
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => return,
                // There may still be an EXIT to be read.
                Err(_) => self.deaf = true,
            }
        }
    }

    fn take_orders(&mut self, got: PollFlags) -> Result<(), Failure> {
        while let Some(order) = self.driver.orders.next() {
            match order {
                Order::Signal(signal) => self.exec.signal(signal),
                Order::Resize(size) => self.exec.resize(size),
                Order::Abandon if self.result.is_some() => {
                    // The program is over; it is its output that the caller won't wait for.
                    self.sinks.iter_mut().for_each(|sink| sink.open = false);
                    [stream::OUT, stream::ERR].into_iter().for_each(|stream| self.exec.unwanted(stream));
                }
                Order::Abandon => self.exec.abandon(),
            }
        }
        self.orders_open = !got.intersects(PollFlags::HUP | PollFlags::ERR);
        Ok(())
    }

    fn read_input(&mut self, buffer: &mut [u8]) -> Result<(), Failure> {
        let Some(stdin) = self.driver.stdin else { return Ok(()) };
        let room = self.exec.input_room().min(buffer.len());
        if room == 0 {
            return Ok(());
        }
        match rustix::io::read(stdin, &mut buffer[..room]) {
            Ok(n) if n > 0 => self.exec.input(&buffer[..n]),
            Err(Errno::AGAIN | Errno::INTR) => {}
            // Its end, or a terminal that is gone.
            _ => self.exec.end_input(),
        }
        Ok(())
    }

    fn write_output(&mut self, stream: u8, got: PollFlags) -> Result<(), Failure> {
        let Some(sink) = self.sinks.iter_mut().find(|sink| sink.stream == stream) else { return Ok(()) };
        let pending = self.exec.pending(stream);
        let failed = if pending.is_empty() {
            got.intersects(PollFlags::ERR | PollFlags::HUP | PollFlags::NVAL)
        } else {
            match rustix::io::write(sink.fd, &pending[..pending.len().min(sink.step)]) {
                Ok(n) => {
                    self.exec.passed_on(stream, n);
                    false
                }
                Err(Errno::AGAIN | Errno::INTR) => false,
                Err(Errno::PIPE | Errno::IO | Errno::CONNRESET) => true,
                // A full disk and the like is no reader that left: the caller has to know.
                Err(error) => {
                    sink.open = false;
                    self.exec.unwanted(stream);
                    return Err(error.into());
                }
            }
        };
        if failed {
            sink.open = false;
            self.exec.unwanted(stream);
        }
        Ok(())
    }

    fn watch_clock(&mut self) {
        let now = Instant::now();
        self.clock = match self.clock {
            Clock::Until(at) if at <= now && self.result.is_none() => {
                self.exec.signal(SignalName::Term);
                Clock::Asked(now + LAST_WORDS)
            }
            Clock::Asked(at) if at <= now && self.result.is_none() => {
                self.exec.signal(SignalName::Kill);
                Clock::Killed(now + LAST_WORDS)
            }
            Clock::Killed(at) if at <= now && self.result.is_none() => {
                self.result = Some(Err(Failure::Late(Stage::Running)));
                Clock::Killed(at)
            }
            clock => clock,
        };
    }
}

pub(super) fn timespec(time: Duration) -> Timespec {
    Timespec { tv_sec: i64::try_from(time.as_secs()).unwrap_or(i64::MAX), tv_nsec: time.subsec_nanos().into() }
}
