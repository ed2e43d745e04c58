//! `vm dial`: standard input and output are a connection to a port in a guest.

use super::{forward, link};
use crate::api::Fault;
use crate::cli::problem::Problem;
use crate::cli::reach::Reach;
use agent::host::{self, CopyFailure, Failure};
use clap::Args;
use rustix::io::Errno;
use std::fs::File;
use std::io::{stdin, stdout};
use std::net::SocketAddr;
use std::os::fd::{AsFd, BorrowedFd};

#[derive(Args)]
pub(crate) struct Dial {
    /// The VM: its name, or 4 or more digits of its id.
    name: String,
    /// The port, or ADDRESS:PORT with an address of the VM's own [default address: 127.0.0.1].
    #[arg(value_name = "PORT", value_parser = forward::target)]
    to: SocketAddr,
    #[command(flatten)]
    reach: Reach,
}

pub(super) fn dial(dial: &Dial) -> Result<(), Problem> {
    let nothing = File::options().write(true).open("/dev/null");
    let nothing = nothing.map_err(|error| Problem::of_fault(Fault::bug(error)))?;
    let (stdin, stdout) = (stdin(), stdout());
    // The reader of our output is told that it has ended, though its input may go on.
    let output_ended = || {
        let _ = rustix::stdio::dup2_stdout(&nothing);
    };
    through(&dial.reach, &dial.name, dial.to, [stdin.as_fd(), stdout.as_fd()], output_ended)
}

/// Connects what `[input, output]` are to a port of a guest's, until both directions have ended.
pub(super) fn through(
    reach: &Reach,
    name: &str,
    to: SocketAddr,
    ends: [BorrowedFd<'_>; 2],
    output_ended: impl Fn(),
) -> Result<(), Problem> {
    let make = |link: &link::Link| host::dial(&link.socket, link.limits(), to, ends, &output_ended);
    link::call(reach, name, |link| make(link).map_err(CopyFailure::from), |vm, failure| refused(vm, to, failure))
}

fn refused(vm: &str, to: SocketAddr, failure: &CopyFailure) -> Option<Problem> {
    let CopyFailure::Call(Failure::Refused(body)) = failure else { return None };
    let problem = Problem::new("refused", format!("{vm} has no way to {to}"));
    // The number is the guest's: it may be none that there is.
    let is = |errno: Errno| body.errno == errno.raw_os_error();
    Some(if is(Errno::CONNREFUSED) {
        problem.why("nobody listens there").fix(format!("banger vm ports {vm}"))
    } else if is(Errno::ADDRNOTAVAIL) {
        problem.why("that is none of its own addresses")
    } else {
        problem.why(std::io::Error::from_raw_os_error(body.errno))
    })
}
