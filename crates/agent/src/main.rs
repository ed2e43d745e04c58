//! The guest's first process: mounts, network, the relay, the host's calls, and a program to run.
//!
//! As PID 1 it boots the guest and never ends, or becomes the distribution's init, with another agent beside. Otherwise it leaves mounts and network alone and only serves calls;
//! with `call` as its argument it serves one, on its standard input, which must be a socket (or all that come, where that
//! listens), and changes nothing of the machine itself; with `call machine` it does that too.

mod guest;

use std::process::ExitCode;

fn main() -> ExitCode {
    let words: Vec<_> = std::env::args_os().skip(1).take(3).collect();
    let words: Vec<_> = words.iter().map(|word| word.to_str().unwrap_or_default()).collect();
    match words.as_slice() {
        // The kernel gives its first process whatever words it doesn't know itself, but no socket.
        ["call"] if guest::is_called() => guest::called(false),
        ["call", "machine"] if guest::is_called() => guest::called(true),
        _ if rustix::process::getpid() == rustix::process::Pid::INIT => guest::first_process(),
        [guest::HANDED_OVER] => guest::handed_over(),
        ["--version"] => {
            println!("banger-agent {}", env!("CARGO_PKG_VERSION"));
            ExitCode::SUCCESS
        }
        [] => guest::service(),
        _ => {
            eprintln!("usage: banger-agent [--version | call [machine]]");
            ExitCode::from(2)
        }
    }
}
