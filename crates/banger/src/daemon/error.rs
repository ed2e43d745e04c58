//! Every failure that the daemon tells its callers: a stable code, what, why, what to do, and the exit status.

use crate::api::Fault;
use std::fmt::Display;
use std::io;
use std::path::Path;
use wire::client::{Error, KILLED};

/// Exit statuses of commands that run nothing in a guest.
pub mod exit {
    /// Failed.
    pub const FAILED: u8 = 1;
    /// The request itself is wrong.
    pub const USAGE: u8 = 2;
    /// There is no such object.
    pub const MISSING: u8 = 3;
    /// It is in the wrong state, its name is taken, it is in use.
    pub const STATE: u8 = 4;
    /// No room: memory, disk, a limit.
    pub const ROOM: u8 = 5;
    /// This machine can't.
    pub const MACHINE: u8 = 6;
    /// Interrupted, and undone.
    pub const INTERRUPTED: u8 = 130;
}

impl Fault {
    /// A failure with that exit status.
    pub fn new(code: &str, exit: u8, message: impl Into<Box<str>>) -> Fault {
        Fault {
            code: code.to_owned(),
            message: message.into(),
            why: None,
            fix: Vec::new(),
            stage: None,
            op_id: Box::default(),
            exit,
        }
    }

    /// Adds the reason.
    pub fn why(mut self, why: impl Display) -> Fault {
        self.why = Some(why.to_string().into());
        self
    }

    /// Adds what to do, the best first.
    pub fn fix(mut self, fix: impl Into<String>) -> Fault {
        self.fix.push(fix.into());
        self
    }

    /// In which stage it failed; the first that is said counts.
    pub fn at(mut self, stage: &str) -> Fault {
        self.stage.get_or_insert_with(|| stage.into());
        self
    }

    /// Something of the daemon's own files failed.
    pub fn file(what: &str, path: &Path, error: &io::Error) -> Fault {
        let (at, what) = (path.display(), what.to_owned());
        match error.kind() {
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => {
                Fault::new("no_space", exit::ROOM, format!("the disk is full: {what} {at}"))
                    .why(error)
                    .fix("banger vm rm NAME of a VM that isn't needed frees its disk")
            }
            _ => Fault::new("file", exit::FAILED, format!("{what} {at} failed")).why(error),
        }
    }

    /// The store failed.
    pub fn store(error: &rusqlite::Error) -> Fault {
        let full =
            matches!(error, rusqlite::Error::SqliteFailure(code, _) if code.code == rusqlite::ErrorCode::DiskFull);
        match full {
            true => Fault::new("no_space", exit::ROOM, "the disk is full: bangerd's store can't be written").why(error),
            false => Fault::new("store", exit::FAILED, "bangerd's store can't be read or written").why(error),
        }
    }

    /// A call of the root helper's failed; `doing` says what it was for.
    pub fn helper(doing: &str, socket: &Path, error: Error) -> Fault {
        let at = socket.display();
        match error {
            Error::Io(error) if error.kind() == io::ErrorKind::TimedOut => {
                Fault::new("helper_timeout", exit::FAILED, format!("{doing}: banger's root helper has not answered"))
                    .why("an operation that was begun goes on; asking for it again is safe")
            }
            Error::Io(error) => {
                Fault::new("helper_down", exit::MACHINE, format!("banger's root helper doesn't answer on {at}"))
                    .why(format!("{doing}: {error}"))
                    .fix("sudo systemctl start bangerd-root")
                    .fix("or, without installing anything: banger try -- CMD")
            }
            Error::Reply(what) => {
                Fault::new("bad_reply", exit::FAILED, format!("what answers on {at} is no root helper")).why(what)
            }
            Error::Refused(refused) => {
                let fault = match refused.of_vmm() {
                    Some(how) if how.contains(KILLED) => {
                        Fault::new("vmm_killed", exit::FAILED, format!("{doing} failed"))
                    }
                    Some(_) => Fault::new("vmm_failed", exit::FAILED, format!("{doing} failed")),
                    // The helper names the limit that was reached.
                    None if refused.message.contains("limits.") => {
                        Fault::new("helper_limit", exit::ROOM, format!("{doing}: the root helper has no room for it"))
                            .fix("wait until others are done; /etc/banger/root.toml has the limits")
                    }
                    None => Fault::new("helper_refused", exit::FAILED, format!("{doing} failed")),
                };
                fault.why(format!("the root helper: {}", refused.message))
            }
        }
    }

    /// There is no such VM; `near` is a name that is close.
    pub fn no_such_vm(name: &str, near: Option<&str>) -> Fault {
        let shown = wire::code::shown(name);
        let fault = Fault::new("no_such_vm", exit::MISSING, format!("there is no VM {shown}"));
        match near {
            Some(near) => fault.fix(format!("{near} is close; banger vm list shows what is here")),
            None => fault.fix("banger vm list shows what is here"),
        }
    }

    /// The caller asked for the end, and what was begun is undone.
    pub fn interrupted(undone: &[String]) -> Fault {
        let what =
            if undone.is_empty() { "nothing was begun".into() } else { format!("undone: {}", undone.join(", ")) };
        Fault::new("interrupted", exit::INTERRUPTED, what)
    }

    /// Something that can't be unless this program is wrong.
    pub fn bug(what: impl Display) -> Fault {
        Fault::new("bug", exit::FAILED, "bangerd did something that it should not").why(what)
    }
}

impl From<rusqlite::Error> for Fault {
    fn from(error: rusqlite::Error) -> Fault {
        Fault::store(&error)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_vmm_said_last_does_not_say_whose_fault_it_is() {
        for (message, code) in [
            ("banger-qemu: waited 30 s (limits.launch_seconds) for its API; it said nothing", "vmm_failed"),
            ("banger-qemu ended with status 1 before its VM ran; its last words: limits.vms", "vmm_failed"),
            ("banger-qemu ended with status 1 before its VM ran; its last words: was ended by signal 9 ", "vmm_failed"),
            ("banger-qemu was ended by signal 9 before its VM ran; its last words: a; its last words: b", "vmm_killed"),
            ("there are 64 VMs, and limits.vms is 64", "helper_limit"),
            ("snapshot.mem_path: can't be copied", "helper_refused"),
        ] {
            let refused = wire::client::Refused { code: None, message: message.into(), op_id: None };
            assert_eq!(&*Fault::helper("the launch", Path::new("/s"), Error::Refused(refused)).code, code, "{message}");
        }
    }

    #[test]
    fn a_full_disk_is_no_room() {
        let error = io::Error::from(io::ErrorKind::StorageFull);
        assert_eq!(Fault::file("writing", Path::new("/x"), &error).exit, exit::ROOM);
        let fault = Fault::new("x", 1, "y").at("disk").at("wire");
        assert_eq!(fault.stage.as_deref(), Some("disk"));
    }
}
