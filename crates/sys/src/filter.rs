//! Seccomp filters for a program that is started: the calls that it may make, all others fail with `EPERM`; or the size from
//! which it gets huge pages.

use std::io;

use libc::{BPF_ABS, BPF_JEQ, BPF_JGE, BPF_JMP, BPF_JSET, BPF_K, BPF_LD, BPF_RET, BPF_W, c_long, sock_filter};

/// `AUDIT_ARCH_X86_64`: numbers of calls mean something in one architecture only.
const ARCH: u32 = 0xc000_003e;
/// Where the kernel's `seccomp_data` has the call's number, the architecture, and the low halves of the arguments.
const NUMBER: u32 = 0;
const ARCHITECTURE: u32 = 4;
const FIRST_ARGUMENT: u32 = 16;
const SECOND_ARGUMENT: u32 = 24;
const THIRD_ARGUMENT: u32 = 32;
/// And the high half of one.
const HIGH: u32 = 4;

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

/// The filter under which a piece of memory that is shorter than `least` bytes gets no huge pages: `madvise` answers that
/// with `EINVAL`, as a kernel does that has none. All else is allowed.
pub fn huge_pages_from(least: u32) -> Vec<sock_filter> {
    vec![
        load(ARCHITECTURE),
        jump(BPF_JEQ, ARCH, 0, 8),
        load(NUMBER),
        jump(BPF_JEQ, number(libc::SYS_madvise), 0, 6),
        load(THIRD_ARGUMENT),
        jump(BPF_JEQ, libc::MADV_HUGEPAGE.cast_unsigned(), 0, 4),
        load(SECOND_ARGUMENT + HIGH),
        jump(BPF_JEQ, 0, 0, 2),
        load(SECOND_ARGUMENT),
        jump(BPF_JGE, least, 0, 1),
        ret(libc::SECCOMP_RET_ALLOW),
        ret(libc::SECCOMP_RET_ERRNO | libc::EINVAL.cast_unsigned()),
    ]
}

/// Puts the calling thread, and all that it starts, under a filter for good. Needs `no_new_privs`. Allocates nothing.
///
/// # Errors
/// What the kernel answers; `EINVAL` for a filter that is too long.
pub fn apply(code: &[sock_filter]) -> io::Result<()> {
    let len = u16::try_from(code.len()).map_err(|_| io::Error::from_raw_os_error(libc::EINVAL))?;
    let filter = libc::sock_fprog { len, filter: code.as_ptr().cast_mut() };
    // SAFETY: `filter` and the program it points to live for the call, which copies them and writes to neither.
    match unsafe { libc::syscall(libc::SYS_seccomp, libc::SECCOMP_SET_MODE_FILTER, 0, &raw const filter) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
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

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::mm::{Advice, MapFlags, ProtFlags};

    const SMALL: usize = 2 << 20;
    const LEAST: u32 = 4 << 20;

    /// What the kernel answers who asks for huge pages for `len` bytes, or for none.
    fn asked(len: usize, advice: Advice) -> rustix::io::Result<()> {
        let (rights, flags) = (ProtFlags::READ | ProtFlags::WRITE, MapFlags::PRIVATE | MapFlags::NORESERVE);
        // SAFETY: new memory, where the kernel chooses.
        let at = unsafe { rustix::mm::mmap_anonymous(std::ptr::null_mut(), len, rights, flags) }.expect("memory");
        // SAFETY: of memory that is nobody's but this function's, and holds nothing.
        let answer = unsafe { rustix::mm::madvise(at, len, advice) };
        // SAFETY: it is used no more.
        unsafe { rustix::mm::munmap(at, len) }.expect("unmapped");
        answer
    }

    #[test]
    fn small_pieces_get_no_huge_pages() {
        // In a thread of its own: it is under the filter for good.
        std::thread::spawn(|| {
            let huge = |len| asked(len, Advice::LinuxHugepage);
            // A kernel without huge pages refuses all.
            let (small, large) = (asked(SMALL, Advice::LinuxNoHugepage), huge(LEAST as usize));
            rustix::thread::set_no_new_privs(true).expect("no_new_privs");
            apply(&huge_pages_from(LEAST)).expect("the filter");
            assert_eq!(huge(SMALL), Err(rustix::io::Errno::INVAL));
            assert_eq!(huge(LEAST as usize), large);
            assert_eq!(huge(1 << 32), large, "its length has a high half");
            assert_eq!(asked(SMALL, Advice::LinuxNoHugepage), small, "another advice");
        })
        .join()
        .expect("the thread");
    }
}
