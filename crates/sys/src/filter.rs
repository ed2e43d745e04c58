//! A seccomp filter for a program that is started: the calls that it may make. All others fail with `EPERM`.

use libc::{BPF_ABS, BPF_JEQ, BPF_JMP, BPF_JSET, BPF_K, BPF_LD, BPF_RET, BPF_W, c_long, sock_filter};

/// `AUDIT_ARCH_X86_64`: numbers of calls mean something in one architecture only.
const ARCH: u32 = 0xc000_003e;
/// Where the kernel's `seccomp_data` has the call's number, the architecture, and the low half of the first argument.
const NUMBER: u32 = 0;
const ARCHITECTURE: u32 = 4;
const FIRST_ARGUMENT: u32 = 16;

/// The filter that allows `calls`, and `clone` where it makes a thread. `clone3`, whose arguments no filter can see, is
/// answered by `ENOSYS`: the C library takes `clone` then.
pub fn allowing(calls: &[c_long]) -> Vec<sock_filter> {
    let refuse = |errno: i32| ret(libc::SECCOMP_RET_ERRNO | errno.cast_unsigned());
    let allow = || ret(libc::SECCOMP_RET_ALLOW);
    // The other architecture, and x32, whose numbers begin where no number of this one is.
    let mut code = vec![load(ARCHITECTURE), jump(BPF_JEQ, ARCH, 1, 0), ret(libc::SECCOMP_RET_KILL_PROCESS)];
    code.push(load(NUMBER));
    for &call in calls {
        code.extend([jump(BPF_JEQ, number(call), 0, 1), allow()]);
    }
    code.extend([jump(BPF_JEQ, number(libc::SYS_clone3), 0, 1), refuse(libc::ENOSYS)]);
    code.extend([jump(BPF_JEQ, number(libc::SYS_clone), 0, 3), load(FIRST_ARGUMENT)]);
    code.extend([jump(BPF_JSET, libc::CLONE_THREAD.cast_unsigned(), 0, 1), allow()]);
    code.push(refuse(libc::EPERM));
    code
}

fn number(call: c_long) -> u32 {
    u32::try_from(call).unwrap_or(u32::MAX)
}

fn load(at: u32) -> sock_filter {
    instruction(BPF_LD | BPF_W | BPF_ABS, at, 0, 0)
}

fn jump(kind: u32, value: u32, yes: u8, no: u8) -> sock_filter {
    instruction(BPF_JMP | kind | BPF_K, value, yes, no)
}

fn ret(value: u32) -> sock_filter {
    instruction(BPF_RET | BPF_K, value, 0, 0)
}

fn instruction(code: u32, k: u32, jt: u8, jf: u8) -> sock_filter {
    sock_filter { code: u16::try_from(code).unwrap_or(u16::MAX), jt, jf, k }
}
