//! What a copy says: how it went, and why it ended.

use super::Cp;
use crate::api::Fault;
use crate::cli::documents::{self, LeftOut};
use crate::cli::problem::Problem;
use crate::cli::{output, size};
use crate::daemon::error::exit;
use agent::copy::{Copied, CopyError};
use agent::host::{CopyFailure, Failure};
use rustix::io::Errno;
use std::io::{self, IsTerminal};
use std::time::Duration;

/// So much of what was left out is named to a person.
const NAMED: usize = 5;
/// The most characters of a guest's text that are shown.
const SHOWN: usize = 300;

/// A path here that is not what it has to be.
pub(super) fn no_file(path: &str, error: &io::Error) -> Problem {
    let missing = error.kind() == io::ErrorKind::NotFound;
    let (code, exit) = if missing { ("no_such_file", exit::MISSING) } else { ("copy", exit::FAILED) };
    Problem::of_fault(Fault::new(code, exit, format!("{path} can't be used")).why(error))
}

/// What ends a copy, for a person.
pub(super) fn refine(vm: &str, failure: &CopyFailure) -> Option<Problem> {
    let no_room = |at: &str| Fault::new("no_space", exit::ROOM, format!("{at} has no room for all of it"));
    let fault = match failure {
        CopyFailure::Call(Failure::Refused(body)) => {
            // The number is the guest's: it may be none that there is.
            let is = |errno: Errno| body.errno == errno.raw_os_error();
            let fault = if body.code == "no_user" {
                Fault::new("no_user", exit::MISSING, format!("{vm} has no such user or group"))
            } else if is(Errno::NOENT) {
                Fault::new("no_such_file", exit::MISSING, format!("{vm} has no such file"))
            } else if is(Errno::NOSPC) || body.step == CopyError::TooMuch.to_string() {
                no_room(vm)
            } else {
                Fault::new("copy", exit::FAILED, format!("the copy ended in {vm}"))
            };
            fault.why(body.step.chars().take(SHOWN).collect::<String>())
        }
        CopyFailure::Here(CopyError::TooMuch | CopyError::File(_, _, Errno::NOSPC | Errno::DQUOT)) => {
            no_room("the disk here")
        }
        CopyFailure::Here(error @ CopyError::File(.., Errno::PIPE)) => {
            Fault::new("stream_closed", exit::FAILED, "nobody takes the archive any more").why(error)
        }
        CopyFailure::Here(error @ CopyError::Tar(..)) => {
            Fault::new("bad_archive", exit::FAILED, "the archive can't be taken").why(error)
        }
        CopyFailure::Here(error) => Fault::new("copy", exit::FAILED, "the copy ended here").why(error),
        CopyFailure::Differs => Fault::new("copy", exit::FAILED, "what arrived is not what was sent"),
        CopyFailure::Call(_) | CopyFailure::Abandoned => return None,
    };
    Some(Problem::of_fault(fault))
}

/// Says what was copied and what was not.
pub(super) fn tell(cp: &Cp, all: &Copied, took: Duration) -> Result<(), Problem> {
    if all.left_out > 0 {
        let named: Vec<String> = all.listed.iter().take(NAMED).map(|it| format!("{} ({})", it.path, it.why)).collect();
        let more = all.left_out.saturating_sub(named.len() as u64);
        let more = if more > 0 { format!(", {more} more") } else { String::new() };
        output::warning(&format!("left out: {}{more}", named.join(", ")));
    }
    if all.stripped > 0 {
        output::warning(&format!("{} lost their set-id or sticky bits", all.stripped));
    }
    if cp.asked.json {
        let told = documents::Copied {
            files: all.files,
            bytes: all.bytes,
            left_out: all.listed.iter().map(|it| LeftOut { path: it.path.clone(), why: it.why.to_string() }).collect(),
            left_out_total: all.left_out,
            set_ids_removed: all.stripped,
            ms: u64::try_from(took.as_millis()).unwrap_or(u64::MAX),
        };
        // Standard output may be the archive's.
        if cp.destination != "-" {
            return output::json(&told);
        }
        return output::json_beside(&told);
    }
    if io::stderr().is_terminal() {
        let files = if all.files == 1 { "1 file".to_owned() } else { format!("{} files", all.files) };
        output::hint(&format!("{files}, {}, {:.1} s\n", size::shown(all.bytes), took.as_secs_f64()));
    }
    Ok(())
}
