//! What runs in the lab: first as `/init`, which finds the root file system and starts systemd on it; then, as a unit of
//! systemd's, as the program that runs what the host asks for.

mod init;
mod serve;

use std::process::ExitCode;

fn main() -> ExitCode {
    let done = if rustix::process::getpid().is_init() { init::start() } else { serve::forever() };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => {
            eprintln!("banger-lab-inside: {e}");
            ExitCode::FAILURE
        }
    }
}
