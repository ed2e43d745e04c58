//! A terminal of a program's: the guest keeps both its ends.

use std::io;
use std::os::fd::OwnedFd;

use agent::protocol::TtySize;
use rustix::fs::{Gid, Mode, Uid};
use rustix::pty::{OpenptFlags, grantpt, ioctl_tiocgptpeer, openpt, unlockpt};
use rustix::termios::{LocalModes, SpecialCodeIndex, Winsize, tcgetattr, tcsetwinsize};

/// The group of terminals, in every distribution's /etc/group.
const TTY_GROUP: u32 = 5;

/// A pseudo-terminal.
#[derive(Debug)]
pub(super) struct Terminal {
    /// Our end: it doesn't block.
    pub(super) master: OwnedFd,
    /// The program's end. As long as we hold it as well, its last user's leaving takes nothing away.
    pub(super) slave: OwnedFd,
}

impl Terminal {
    /// One of that size, which the user may open again by its name.
    pub(super) fn open(size: TtySize, uid: u32) -> io::Result<Self> {
        let flags = OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC;
        let master = openpt(flags)?;
        rustix::io::ioctl_fionbio(&master, true)?;
        grantpt(&master)?;
        unlockpt(&master)?;
        let slave = ioctl_tiocgptpeer(&master, flags)?;
        resize(&master, size)?;
        // Who may do neither runs its programs as himself.
        let _ = rustix::fs::fchown(&slave, Some(Uid::from_raw(uid)), Some(Gid::from_raw(TTY_GROUP)));
        let _ = rustix::fs::fchmod(&slave, Mode::from_raw_mode(0o620));
        Ok(Self { master, slave })
    }
}

/// Sets the size, which the kernel tells the foreground group.
pub(super) fn resize(terminal: &OwnedFd, size: TtySize) -> io::Result<()> {
    Ok(tcsetwinsize(terminal, Winsize { ws_row: size.rows, ws_col: size.cols, ws_xpixel: 0, ws_ypixel: 0 })?)
}

/// What the terminal's reader takes for the end of its input. In the middle of a line the first such character only hands
/// over what there is of it. Empty where the program reads bytes as they come: then there is no such character.
pub(super) fn end_of_input(terminal: &OwnedFd, in_a_line: bool) -> Vec<u8> {
    match tcgetattr(terminal) {
        Ok(state) if state.local_modes.contains(LocalModes::ICANON) => {
            vec![state.special_codes[SpecialCodeIndex::VEOF]; if in_a_line { 2 } else { 1 }]
        }
        _ => Vec::new(),
    }
}
