//! `banger try`: a VM on a machine where nothing of banger's is installed.
//!
//! Root is needed for namespaces, so `sudo` is asked first, and says what it is for. Then, from the outside in:
//!
//! ```text
//! banger try          the user's: says what it will do, becomes root by sudo
//!   outer             root's: looks at the machine, makes the namespaces, looks again when they are gone
//!     inside          first process of a mount and a PID namespace: /run, /var/lib/banger, accounts of its own
//!       bangerd-root  in a network namespace of its own, which belongs to the owner
//!       pasta         that namespace's way out, without rights, where the machine has the program
//!       bangerd       the owner's, in the machine's network, which images are fetched by
//!       banger vm run …
//! ```
//!
//! When `inside` ends, the kernel ends everything in it: no process, mount, link or rule outlives it.

mod inside;
mod outer;
mod remains;

pub(crate) use inside::run as inside;
pub(crate) use outer::run;

use clap::Args;
use std::ffi::OsString;
use std::os::unix::process::ExitStatusExt as _;
use std::path::PathBuf;
use std::process::ExitStatus;

/// The status of what is banger's own failure, as `vm run` has it.
const OURS: u8 = 125;
/// What is needed to run a VM, all in one directory.
const PROGRAMS: [&str; 7] =
    ["banger", "bangerd", "bangerd-root", "banger-jailer", "banger-qemu", "banger-image", "banger-agent"];

/// What `vm run` is to get, word for word. The parser takes the first `--` for its own; where that is the command's, as in
/// `banger try -- uname -a`, it comes back. `all` is the whole command line, whose end `run` is.
fn as_written(run: &[OsString], all: &[OsString]) -> Vec<OsString> {
    let before = all.len().checked_sub(run.len() + 1).and_then(|at| all.get(at));
    let own = before.filter(|word| *word == "--" && !run.is_empty());
    own.into_iter().chain(run).cloned().collect()
}

/// A command's own status; 128 and its number where a signal ended it.
fn code_of(status: ExitStatus) -> u8 {
    let code = status.code().or_else(|| Some(128 + status.signal()?));
    code.and_then(|code| u8::try_from(code).ok()).unwrap_or(OURS)
}

/// What `try` takes.
#[derive(Args)]
pub(crate) struct Try {
    /// Where images are kept between two runs [default: banger in the user's cache directory]
    #[arg(long, value_name = "DIR", env = "BANGER_CACHE_DIR")]
    cache: Option<PathBuf>,
    /// What `banger vm run` takes: its flags, and the command behind `--`.
    #[arg(value_name = "RUN-ARGUMENTS", trailing_var_arg = true, allow_hyphen_values = true)]
    run: Vec<OsString>,
}

/// What the outer part tells the inner one. Not for people.
#[derive(Args)]
pub(crate) struct Inside {
    #[arg(long)]
    programs: PathBuf,
    #[arg(long)]
    state: PathBuf,
    #[arg(long)]
    user: String,
    #[arg(long)]
    uid: u32,
    #[arg(long)]
    gid: u32,
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    run: Vec<OsString>,
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;

    #[derive(Parser)]
    struct Only {
        #[command(flatten)]
        wanted: Try,
    }

    #[test]
    fn what_run_gets_is_what_was_written() {
        for (line, want) in [
            ("try -- uname -a", "-- uname -a"),
            ("try -it", "-it"),
            ("try", ""),
            ("try --cache /c -- uname -a", "-- uname -a"),
            ("try --cache /c --memory 1G -- sh -c x", "--memory 1G -- sh -c x"),
            ("try -y --image a -- cat -- b", "-y --image a -- cat -- b"),
            ("try -- -- x", "-- -- x"),
        ] {
            let all: Vec<OsString> = line.split(' ').map(OsString::from).collect();
            let wanted = Only::try_parse_from(&all).unwrap_or_else(|error| panic!("{line}: {error}")).wanted;
            let run = as_written(&wanted.run, &all);
            let run: Vec<_> = run.iter().map(|word| word.to_str().unwrap()).collect();
            assert_eq!(run.join(" "), want, "{line}");
        }
    }
}
