//! What is said of a worker, and of its answers.

use super::PROGRAM;
use crate::fail::Fail;
use rustix::process::WaitIdStatus;
use wire::worker::reply::Why;

/// What a death of a program without rights means to who asked for its work.
pub(in crate::disk) fn died(name: &str, status: &WaitIdStatus) -> Fail {
    let how = match (status.exit_status(), status.terminating_signal()) {
        (Some(code), _) => format!("ended with status {code} and no answer"),
        (None, Some(libc::SIGXCPU)) => "used up its time".to_owned(),
        (None, Some(libc::SIGXFSZ)) => "wrote more than it may".to_owned(),
        (None, Some(libc::SIGSYS)) => "made a system call that it may not (SIGSYS)".to_owned(),
        (None, Some(libc::SIGKILL)) => "was killed; memory may have run out".to_owned(),
        (None, Some(signal)) => format!("was ended by signal {signal}"),
        (None, None) => "ended".to_owned(),
    };
    Fail::new(format!("{name} {how}: the image may be damaged, or made to break it"))
}

/// An answer that the worker's protocol allows and that makes no sense here, or a call that failed on what it left.
pub(in crate::disk) fn nonsense(cause: impl std::fmt::Display) -> Fail {
    Fail::new(format!("{PROGRAM}'s work can't be used; the helper's log says why")).because(cause)
}

/// What a refusal of the worker is to the client.
pub(in crate::disk) fn refused(why: Why, text: &str) -> Fail {
    let what = match why {
        Why::NotSupported => "the image can't be used",
        Why::Damaged => "the image is damaged; check it (e2fsck -f) first",
        Why::NotFound => "no such file in the image",
        Why::WrongType => "it is no regular file in the image",
        Why::Loop => "too many symlinks in the image",
        Why::TooLarge => "too large",
        Why::NoSpace => "the image has not enough room",
        Why::Protected => "the image's own flags forbid it",
        Why::Failed => "the image could not be worked on",
    };
    Fail::new(format!("{what}: {text}"))
}
