//! What the relay waits for: descriptors and deadlines.

use std::io;
use std::ops::Bound;
use std::os::fd::AsFd as _;
use std::time::{Duration, Instant};

use agent::relay::Stream;
use rustix::event::{PollFd, PollFlags};

use super::Relay;

/// What a polled descriptor belongs to.
#[derive(Debug, Clone, Copy)]
pub(super) enum Source {
    Port,
    Opened,
    Listener,
    Pending(usize),
    Conn(Stream),
}

impl Relay {
    /// Waits for whatever can be done next, or the next deadline.
    pub(super) fn poll(&self) -> io::Result<Vec<(Source, PollFlags)>> {
        let mut sources = vec![Source::Port, Source::Opened];
        let port = if self.mux.output().is_empty() { PollFlags::IN } else { PollFlags::IN | PollFlags::OUT };
        let mut fds = vec![PollFd::new(&self.port, port), PollFd::new(&self.opened, PollFlags::IN)];
        if self.rests_until.is_none() {
            sources.push(Source::Listener);
            fds.push(PollFd::new(&self.listener, PollFlags::IN));
        }
        for (at, pending) in self.pending.iter().enumerate() {
            sources.push(Source::Pending(at));
            fds.push(PollFd::from_borrowed_fd(pending.socket.as_fd(), PollFlags::IN));
        }
        // Whoever came after the last sender is first, or a few that always have something take all the room.
        let later = (self.turn.map_or(Bound::Unbounded, Bound::Excluded), Bound::Unbounded);
        let earlier = self.turn.into_iter().flat_map(|turn| self.conns.range(..=turn));
        for (stream, conn) in self.conns.range(later).chain(earlier) {
            if let Some(flags) = conn.interest(self.mux.sendable(*stream)) {
                sources.push(Source::Conn(*stream));
                fds.push(PollFd::from_borrowed_fd(conn.socket.as_fd(), flags));
            }
        }
        let timeout = self.next_deadline().map(|at| {
            let left = at.saturating_duration_since(Instant::now()) + Duration::from_millis(1);
            rustix::event::Timespec { tv_sec: left.as_secs().cast_signed(), tv_nsec: left.subsec_nanos().into() }
        });
        match rustix::event::poll(&mut fds, timeout.as_ref()) {
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
        let flags: Vec<PollFlags> = fds.iter().map(PollFd::revents).collect();
        Ok(sources.into_iter().zip(flags).filter(|(_, flags)| !flags.is_empty()).collect())
    }

    fn next_deadline(&self) -> Option<Instant> {
        let pending = self.pending.iter().map(|pending| pending.deadline);
        let conns = self.conns.values().filter_map(|conn| conn.deadline);
        pending.chain(conns).chain(self.rests_until).min()
    }
}
