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
    let asked = args::parse(std::env::args_os().skip(1));
    // What a starter left open or set is not the VMM's, but for what it is told of.
    let count = matches!(&asked, Ok(Asked::Run(args)) if args.inherit).into();
    let passed = sys::sandbox::take_passed(count).and_then(|passed| {
        sys::sandbox::clear_environment()?;
        Ok(passed)
    });
    match (asked, passed) {
        (_, Err(error)) => failed(&format!("cleaning up after the starter: {error}")),
        (Ok(Asked::Print(text)), _) => {
            print!("{text}");
            ExitCode::SUCCESS
        }
        (Ok(Asked::Run(args)), Ok(passed)) => match jail::run(&args, &passed) {
            Ok(()) => ExitCode::SUCCESS,
            Err(error) => failed(&error),
        },
        (Err(error), _) => failed(&error),
    }
}

fn failed(error: &str) -> ExitCode {
    eprintln!("banger-jailer: {error}");
    ExitCode::FAILURE
}
