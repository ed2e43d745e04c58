//! `bangerd`, the owner's daemon.

fn main() -> std::process::ExitCode {
    banger::daemon::start::main()
}
