//! What the door waits for: new connections, those that go on, and a tick while any of them can be late.

use crate::conn::Conn;
use crate::listen::Listener;
use rustix::event::epoll::{self, CreateFlags, EventData, EventFlags};
use rustix::fd::{AsFd, AsRawFd, OwnedFd};
use rustix::io::Errno;
use rustix::time::{
    Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, Timespec, timerfd_create, timerfd_settime,
};
use std::mem::MaybeUninit;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

// No descriptor has such a number.
const LISTENER: u64 = u64::MAX;
const TICK: u64 = u64::MAX - 1;

/// What happened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Event {
    /// Somebody connected.
    Listener,
    /// The connection of that token can go on.
    Conn(u64),
    /// A second is over.
    Tick,
    /// Nothing, in the time that was given.
    Nothing,
}

/// What a connection waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Wants {
    /// Something to read.
    Bytes,
    /// Room to write.
    Room,
}

/// The set of what is waited for. Each event goes to one thread, once: what is to be heard of again is put in again.
#[derive(Debug)]
pub(crate) struct Watch {
    epoll: OwnedFd,
    timer: OwnedFd,
    ticks: AtomicBool,
}

/// The token of a connection: its descriptor's number, nobody else's while it is open.
pub(crate) fn token(conn: &Conn) -> u64 {
    u64::from(conn.as_fd().as_raw_fd().cast_unsigned())
}

impl Watch {
    pub(crate) fn new(listener: &Listener) -> Result<Watch, Errno> {
        let epoll = epoll::create(CreateFlags::CLOEXEC)?;
        let timer = timerfd_create(TimerfdClockId::Monotonic, TimerfdFlags::CLOEXEC | TimerfdFlags::NONBLOCK)?;
        let once = EventFlags::IN | EventFlags::ONESHOT;
        epoll::add(&epoll, listener, EventData::new_u64(LISTENER), once)?;
        epoll::add(&epoll, &timer, EventData::new_u64(TICK), EventFlags::IN | EventFlags::ET)?;
        Ok(Watch { epoll, timer, ticks: AtomicBool::new(false) })
    }

    /// Waits for the next event, at most so long.
    pub(crate) fn next(&self, at_most: Option<Duration>) -> Event {
        let at_most =
            at_most.map(|time| Timespec { tv_sec: time.as_secs().cast_signed(), tv_nsec: time.subsec_nanos().into() });
        let mut one = [MaybeUninit::<epoll::Event>::uninit(); 1];
        match epoll::wait(&self.epoll, &mut one, at_most.as_ref()) {
            Ok(([event], _)) => match event.data.u64() {
                LISTENER => Event::Listener,
                TICK => {
                    let _ = rustix::io::read(&self.timer, &mut [0_u8; 8]);
                    Event::Tick
                }
                token => Event::Conn(token),
            },
            _ => Event::Nothing,
        }
    }

    /// Hears of the next connection again.
    pub(crate) fn again_listener(&self, listener: &Listener) {
        let once = EventFlags::IN | EventFlags::ONESHOT;
        let _ = epoll::modify(&self.epoll, listener, EventData::new_u64(LISTENER), once);
    }

    /// No connection is heard of any more.
    pub(crate) fn forget(&self, listener: &Listener) {
        let _ = epoll::delete(&self.epoll, listener);
    }

    /// Hears of a connection, once. `known`: it was put in before.
    pub(crate) fn conn(&self, conn: &Conn, wants: Wants, known: bool) -> Result<(), Errno> {
        let what = match wants {
            Wants::Bytes => EventFlags::IN | EventFlags::RDHUP,
            Wants::Room => EventFlags::OUT,
        };
        let (data, flags) = (EventData::new_u64(token(conn)), what | EventFlags::ONESHOT);
        if known { epoll::modify(&self.epoll, conn, data, flags) } else { epoll::add(&self.epoll, conn, data, flags) }
    }

    /// Ticks every second, or no longer.
    pub(crate) fn tick(&self, on: bool) {
        if self.ticks.swap(on, Ordering::AcqRel) == on {
            return;
        }
        let second = Timespec { tv_sec: i64::from(on), tv_nsec: 0 };
        let every = Itimerspec { it_interval: second, it_value: second };
        let _ = timerfd_settime(&self.timer, TimerfdTimerFlags::empty(), &every);
    }
}
