//! What a process that parses a stranger's data denies itself for good: the file system, the network, and every system
//! call that it does not need.

use rustix::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::io;

use crate::filter;

/// `struct landlock_ruleset_attr` up to ABI 6.
#[repr(C)]
struct Ruleset {
    fs: u64,
    net: u64,
    scoped: u64,
}

/// Denies every access to the file system by a name, every TCP port, and what Landlock's later versions add: all that
/// the kernel knows of, up to version 6. Needs `no_new_privs`. `false` where the kernel has no Landlock.
///
/// # Errors
/// What the kernel answers, where it has Landlock.
pub fn deny_names() -> io::Result<bool> {
    const VERSION: u32 = 1;
    // SAFETY: with this flag the kernel takes no ruleset and answers a number.
    let abi = unsafe { libc::syscall(libc::SYS_landlock_create_ruleset, std::ptr::null::<Ruleset>(), 0, VERSION) };
    if abi < 0 {
        let error = io::Error::last_os_error();
        let absent = matches!(error.raw_os_error(), Some(libc::ENOSYS | libc::EOPNOTSUPP));
        return if absent { Ok(false) } else { Err(error) };
    }
    // The kernel refuses bits that it doesn't know; each version added these.
    let fs_bits = match abi {
        1 => 13,
        2 => 14,
        3 | 4 => 15,
        _ => 16,
    };
    let rules = Ruleset {
        fs: (1 << fs_bits) - 1,
        net: if abi >= 4 { 0b11 } else { 0 },
        scoped: if abi >= 6 { 0b11 } else { 0 },
    };
    let length = match abi {
        ..=3 => 8,
        4 | 5 => 16,
        _ => size_of::<Ruleset>(),
    };
    // SAFETY: `rules` has at least `length` bytes, as long as the kernel's own version of it.
    let made = unsafe { libc::syscall(libc::SYS_landlock_create_ruleset, &raw const rules, length, 0) };
    let made = i32::try_from(made).map_err(io::Error::other)?;
    if made < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the call above made it, and nobody else has it.
    let ruleset = unsafe { OwnedFd::from_raw_fd(made) };
    // SAFETY: takes a descriptor that is open and no flags.
    match unsafe { libc::syscall(libc::SYS_landlock_restrict_self, ruleset.as_raw_fd(), 0) } {
        0 => Ok(true),
        _ => Err(io::Error::last_os_error()),
    }
}

#[cfg(target_arch = "x86_64")]
const ARCH: u32 = 0xc000_003e;
#[cfg(target_arch = "aarch64")]
const ARCH: u32 = 0xc000_00b7;

const LOAD: u16 = (libc::BPF_LD | libc::BPF_W | libc::BPF_ABS) as u16;
const EQUAL: u16 = (libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K) as u16;
const GREATER: u16 = (libc::BPF_JMP | libc::BPF_JGT | libc::BPF_K) as u16;
const BITS: u16 = (libc::BPF_JMP | libc::BPF_JSET | libc::BPF_K) as u16;
const RETURN: u16 = (libc::BPF_RET | libc::BPF_K) as u16;
/// Where `struct seccomp_data` has the call's number, the architecture and the low half of the third argument.
const NUMBER: u32 = 0;
const ARCHITECTURE: u32 = 4;
const THIRD: u32 = 16 + 2 * 8;

/// A system call that [`allow_calls`] can leave.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Call {
    /// `pread64`
    ReadAt,
    /// `pwrite64`
    WriteAt,
    /// `write`
    Write,
    /// `mmap`, but for memory that can be executed
    Map,
    /// `munmap`
    Unmap,
    /// `mremap`
    Remap,
    /// `brk`
    Break,
    /// `clock_gettime`, where the kernel gives no way without a call
    Time,
    /// `gettimeofday`, the same: libext2fs asks by it
    TimeOfDay,
    /// `time`, the same, where there is such a call: libext2fs asks by that too
    Seconds,
    /// `sysinfo`, by which glibc's `qsort` asks how much memory there is
    Memory,
    /// `sigaltstack`, which the end of a Rust program calls
    AlternateStack,
    /// `exit_group`
    Exit,
}

impl Call {
    fn number(self) -> libc::c_long {
        match self {
            Call::ReadAt => libc::SYS_pread64,
            Call::WriteAt => libc::SYS_pwrite64,
            Call::Write => libc::SYS_write,
            Call::Map => libc::SYS_mmap,
            Call::Unmap => libc::SYS_munmap,
            Call::Remap => libc::SYS_mremap,
            Call::Break => libc::SYS_brk,
            Call::Time => libc::SYS_clock_gettime,
            Call::TimeOfDay => libc::SYS_gettimeofday,
            #[cfg(target_arch = "x86_64")]
            Call::Seconds => libc::SYS_time,
            #[cfg(not(target_arch = "x86_64"))]
            Call::Seconds => libc::SYS_clock_gettime,
            Call::Memory => libc::SYS_sysinfo,
            Call::AlternateStack => libc::SYS_sigaltstack,
            Call::Exit => libc::SYS_exit_group,
        }
    }
}

/// Lets this thread, and all that it starts, make these system calls and no others: the kernel kills the process at any
/// other one. Needs `no_new_privs`.
///
/// # Errors
/// What the kernel answers.
pub fn allow_calls(calls: &[Call]) -> io::Result<()> {
    let step = |code, jt, jf, k| libc::sock_filter { code, jt, jf, k };
    let allow = step(RETURN, 0, 0, libc::SECCOMP_RET_ALLOW);
    let kill = step(RETURN, 0, 0, libc::SECCOMP_RET_KILL_PROCESS);
    // The kernel asks a new filter about every call that there is, and most have higher numbers than these.
    let highest = calls.iter().map(|call| call.number()).max().unwrap_or(0);
    let highest = u32::try_from(highest).map_err(io::Error::other)?;
    let mut program = vec![step(LOAD, 0, 0, ARCHITECTURE), step(EQUAL, 1, 0, ARCH), kill, step(LOAD, 0, 0, NUMBER)];
    program.extend([step(GREATER, 0, 1, highest), kill]);
    for call in calls {
        let number = u32::try_from(call.number()).map_err(io::Error::other)?;
        if *call == Call::Map {
            let executable = u32::try_from(libc::PROT_EXEC).map_err(io::Error::other)?;
            program.push(step(EQUAL, 0, 4, number));
            program.extend([step(LOAD, 0, 0, THIRD), step(BITS, 0, 1, executable), kill, allow]);
        } else {
            program.extend([step(EQUAL, 0, 1, number), allow]);
        }
    }
    program.push(kill);
    filter::apply(&program)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::{Command, ExitStatus};

    const SELF: &str = "SYS_CONFINE_TEST";

    /// Runs this test again, in a process of its own, as `what`.
    fn again(test: &str, what: &str) -> ExitStatus {
        let mut command = Command::new(std::env::current_exe().unwrap());
        command.args([&format!("confine::tests::{test}"), "--exact", "--test-threads=1"]).env(SELF, what);
        command.output().unwrap().status
    }

    #[test]
    fn a_call_that_is_not_allowed_kills() {
        use std::os::unix::process::ExitStatusExt;
        let test = "a_call_that_is_not_allowed_kills";
        let Ok(what) = std::env::var(SELF) else {
            assert_eq!(again(test, "exit").code(), Some(7));
            assert_eq!(again(test, "open").signal(), Some(libc::SIGSYS));
            assert_eq!(again(test, "execute").signal(), Some(libc::SIGSYS));
            assert_eq!(again(test, "map").code(), Some(7));
            assert_eq!(again(test, "seconds").code(), Some(7));
            assert_eq!(again(test, "day").signal(), Some(libc::SIGSYS));
            return;
        };
        rustix::thread::set_no_new_privs(true).unwrap();
        allow_calls(&[Call::Exit, Call::Map, Call::Seconds]).unwrap();
        let map = |protection| {
            let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS;
            // SAFETY: new memory that nothing is put into.
            unsafe { libc::mmap(std::ptr::null_mut(), 4096, protection, flags, -1, 0) }
        };
        // SAFETY: without a place the kernel writes nothing.
        let time = |call| unsafe { libc::syscall(call, std::ptr::null::<u8>(), std::ptr::null::<u8>()) };
        match what.as_str() {
            "open" => drop(std::fs::File::open("/dev/null")),
            "execute" => drop(map(libc::PROT_READ | libc::PROT_EXEC)),
            "map" => drop(map(libc::PROT_READ)),
            #[cfg(target_arch = "x86_64")]
            "seconds" => assert!(time(libc::SYS_time) > 0),
            "day" => drop(time(libc::SYS_gettimeofday)),
            _ => {}
        }
        // SAFETY: ends the process; nothing of it is needed.
        unsafe { libc::_exit(7) }
    }

    #[test]
    fn no_name_is_opened_any_more() {
        if std::env::var(SELF).is_err() {
            assert!(again("no_name_is_opened_any_more", "names").success());
            return;
        }
        rustix::thread::set_no_new_privs(true).unwrap();
        if deny_names().unwrap() {
            let error = std::fs::File::open("/etc/passwd").unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::PermissionDenied);
        }
    }
}
