//! Signals and window sizes, from whatever thread sees them into the one that drives the call.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

use rustix::io::Errno;
use rustix::pipe::{PipeFlags, pipe_with};

use crate::protocol::{SignalName, TtySize};

/// Bytes of an order in the pipe: few enough that each is written whole.
const LEN: usize = 6;

/// Something to be done with a call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Order {
    /// A signal for the program's group.
    Signal(SignalName),
    /// The terminal's new size.
    Resize(TtySize),
    /// End it without a result.
    Abandon,
}

/// The end that sends orders.
#[derive(Debug, Clone)]
pub struct Control(Arc<OwnedFd>);

/// The end that is waited on.
#[derive(Debug)]
pub struct Orders(OwnedFd);

/// A pair of them.
///
/// # Errors
/// Where there are no descriptors left.
pub fn control() -> io::Result<(Control, Orders)> {
    let (read, write) = pipe_with(PipeFlags::CLOEXEC | PipeFlags::NONBLOCK)?;
    Ok((Control(Arc::new(write)), Orders(read)))
}

impl Control {
    /// Sends a signal to the program's group.
    ///
    /// # Errors
    /// `WouldBlock` with 10,000 orders before it; `BrokenPipe` where nobody takes them.
    pub fn signal(&self, signal: SignalName) -> io::Result<()> {
        self.send(Order::Signal(signal))
    }

    /// Gives the terminal a new size.
    ///
    /// # Errors
    /// As [`Control::signal`].
    pub fn resize(&self, size: TtySize) -> io::Result<()> {
        self.send(Order::Resize(size))
    }

    /// Ends the call at once and without a result; the guest ends its program then.
    ///
    /// # Errors
    /// As [`Control::signal`].
    pub fn abandon(&self) -> io::Result<()> {
        self.send(Order::Abandon)
    }

    fn send(&self, order: Order) -> io::Result<()> {
        let mut bytes = [0; LEN];
        match order {
            Order::Signal(signal) => {
                bytes[1] = SignalName::ALL.iter().position(|name| *name == signal).unwrap_or_default() as u8;
            }
            Order::Resize(size) => {
                bytes[0] = 1;
                bytes[2..4].copy_from_slice(&size.rows.to_ne_bytes());
                bytes[4..].copy_from_slice(&size.cols.to_ne_bytes());
            }
            Order::Abandon => bytes[0] = 2,
        }
        loop {
            match rustix::io::write(&*self.0, &bytes) {
                Err(Errno::INTR) => {}
                done => return done.map(drop).map_err(io::Error::from),
            }
        }
    }
}

impl Orders {
    /// To be waited on, for reading.
    pub fn fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }

    /// The next one, where there is one.
    pub fn next(&self) -> Option<Order> {
        let mut bytes = [0; LEN];
        match rustix::io::read(&self.0, &mut bytes) {
            Ok(LEN) => {}
            _ => return None,
        }
        let [what, signal, r0, r1, c0, c1] = bytes;
        Some(match what {
            0 => Order::Signal(*SignalName::ALL.get(usize::from(signal))?),
            1 => Order::Resize(TtySize { rows: u16::from_ne_bytes([r0, r1]), cols: u16::from_ne_bytes([c0, c1]) }),
            _ => Order::Abandon,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn orders_come_as_they_were_given() {
        let (control, orders) = control().unwrap();
        let size = TtySize { rows: 40, cols: 1000 };
        for name in SignalName::ALL {
            control.signal(name).unwrap();
            assert_eq!(orders.next(), Some(Order::Signal(name)));
        }
        control.resize(size).unwrap();
        control.clone().abandon().unwrap();
        assert_eq!((orders.next(), orders.next()), (Some(Order::Resize(size)), Some(Order::Abandon)));
        assert_eq!(orders.next(), None);
        drop(orders);
        assert_eq!(control.abandon().unwrap_err().kind(), io::ErrorKind::BrokenPipe);
    }

    #[test]
    fn too_many_are_refused_and_none_is_torn() {
        let (control, orders) = control().unwrap();
        let size = TtySize { rows: 7, cols: 9 };
        let mut given = 0;
        while control.resize(size).is_ok() {
            given += 1;
        }
        assert!(given > 1000);
        for _ in 0..given {
            assert_eq!(orders.next(), Some(Order::Resize(size)));
        }
        assert_eq!(orders.next(), None);
    }
}
