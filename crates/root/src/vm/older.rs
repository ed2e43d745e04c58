//! VMs that an older banger started and left no record of, taken for such only where their shape proves it: a process
//! of the owner's uid that executes a VMM's program of root's, with its API socket among its arguments.
//!
//! The owner can start such a process himself, and end it himself: by being found here he gains nothing.

use crate::host::Host;
use crate::program::Program;
use rustix::fs::{AtFlags, OFlags};
use std::io::Read;
use sys::dir::{Dir, Facts};
use sys::pidfd::{self, PidFd};

/// The longest command line that is read: a VMM's has some hundred bytes.
const MAX_COMMAND_LINE: u64 = 16 << 10;

/// A VMM without a record.
pub(super) struct Older {
    pub(super) vmm: PidFd,
    /// Its API socket, as its command line has it.
    pub(super) socket: String,
}

/// The VMM whose socket is exactly that.
pub(super) fn by_socket(host: &Host, api_sock: &str) -> Option<Older> {
    let names = Dir::open("/proc").and_then(|proc| proc.names()).ok()?;
    let pids = names.iter().filter_map(|name| name.parse().ok());
    pids.filter_map(|pid| by_pid(host, pid)).find(|older| older.socket == api_sock)
}

/// That process, where it is one. It is opened first, looked at then, and alive after that: so it is what was seen.
pub(super) fn by_pid(host: &Host, pid: i32) -> Option<Older> {
    let vmm = pidfd::open(pid).ok()?;
    let process = Dir::open(&format!("/proc/{pid}")).ok()?;
    if Facts::of(&process).ok()?.uid != host.owner.uid {
        return None;
    }
    // Before its memory is read, which the owner's processes can make slow: only a VMM's is.
    if !runs_a_vmm(host, &process) {
        return None;
    }
    let mut line = Vec::new();
    let file = process.open_at("cmdline", OFlags::RDONLY, 0).ok()?;
    std::fs::File::from(file).take(MAX_COMMAND_LINE).read_to_end(&mut line).ok()?;
    let socket = socket_of(&line)?;
    vmm.is_alive().then_some(Older { vmm, socket })
}

/// Whether what it executes is the file that its path leads to, and that is a VMM's program of root's.
fn runs_a_vmm(host: &Host, process: &Dir) -> bool {
    let path = rustix::fs::readlinkat(process, "exe", Vec::new()).ok().and_then(|path| path.into_string().ok());
    let executed = rustix::fs::statat(process, "exe", AtFlags::empty()).map(Facts::from);
    let program = path.and_then(|path| Program::open(&path, &host.settings.vmm_names).ok());
    matches!((program, executed), (Some(program), Ok(executed)) if program.facts.is_same_file(&executed))
}

/// The argument behind `--api-sock`.
fn socket_of(command_line: &[u8]) -> Option<String> {
    let mut arguments = command_line.split(|&byte| byte == 0);
    arguments.find(|&argument| argument == b"--api-sock")?;
    let socket = std::str::from_utf8(arguments.next()?).ok()?;
    (!socket.is_empty()).then(|| socket.to_owned())
}

#[cfg(test)]
mod tests {
    use super::socket_of;

    #[test]
    fn the_socket_is_an_argument_of_its_own() {
        assert_eq!(socket_of(b"firecracker\0--api-sock\0/run/a.sock\0--id\0x\0").as_deref(), Some("/run/a.sock"));
        for none in [&b"firecracker\0"[..], b"firecracker\0--api-sock\0", b"x --api-sock /run/a.sock\0", b""] {
            assert_eq!(socket_of(none), None);
        }
    }
}
