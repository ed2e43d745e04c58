//! `banger-jailer`: turns root into a VMM's user, inside a root directory of its own, and ends in the VMM.
//!
//! It takes the arguments of Firecracker's jailer and does what that does. It has one thread, follows no link, and
//! writes, gives away and copies nothing through one: whoever will own the jail owns it only when all is done.

mod args;
mod cgroup;
mod jail;
mod limits;
mod program;
mod user;

use args::Asked;
use std::process::ExitCode;

fn main() -> ExitCode {
    // What a starter left open or set is not the VMM's.
    if let Err(error) = sys::sandbox::take_passed(0).and_then(|_| sys::sandbox::clear_environment()) {
        return failed(&format!("cleaning up after the starter: {error}"));
    }
    match args::parse(std::env::args_os().skip(1)) {
        Ok(Asked::Print(text)) => {
            print!("{text}");
            ExitCode::SUCCESS
        }
        Ok(Asked::Run(args)) => match jail::run(&args) {
            Ok(()) => ExitCode::SUCCESS,
            Err(error) => failed(&error),
        },
        Err(error) => failed(&error),
    }
}

fn failed(error: &str) -> ExitCode {
    eprintln!("banger-jailer: {error}");
    ExitCode::FAILURE
}
