//! The guest's first process: mounts, network, the relay, the host's calls, and a program to run.
//!
//! As PID 1 it boots the guest and never ends. Otherwise it leaves mounts and network alone and only serves calls;
//! with `call` as its argument it serves one, on its standard input, which must be a socket.

mod guest;

use std::process::ExitCode;

fn main() -> ExitCode {
    let first = std::env::args_os().nth(1);
    match first.as_ref().and_then(|arg| arg.to_str()) {
        _ if rustix::process::getpid().as_raw_nonzero().get() == 1 => guest::first_process(),
        Some("--version") => {
            println!("banger-agent {}", env!("CARGO_PKG_VERSION"));
            ExitCode::SUCCESS
        }
        Some("call") => guest::one_call(),
        None => guest::service(),
        Some(_) => {
            eprintln!("usage: banger-agent [--version | call]");
            ExitCode::from(2)
        }
    }
}
