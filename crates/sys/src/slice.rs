//! How long a thread runs at a stretch before others have their turn.

use std::io;
use std::time::Duration;

/// `struct sched_attr` of include/uapi/linux/sched/types.h, in its first version.
#[repr(C)]
#[derive(Default)]
struct Attr {
    size: u32,
    policy: i32,
    flags: u64,
    nice: i32,
    priority: u32,
    runtime: u64,
    deadline: u64,
    period: u64,
}

/// `SCHED_FLAG_RESET_ON_FORK`
const NOT_INHERITED: u64 = 0x1;

const SIZE: u32 = size_of::<Attr>() as u32;

/// Asks for turns of that length for the calling thread, at least 0.1 ms. Its share of a processor stays the same; but
/// who asks for shorter turns than others runs when he wakes, and not when theirs are over. Nobody needs a right to it.
///
/// What the thread starts from then on, threads and processes, does not inherit it.
///
/// Before Linux 6.12 the kernel takes the call and changes nothing. A thread that runs by another policy than the usual
/// one is left alone.
///
/// # Errors
/// What the kernel says.
pub fn ask(turn: Duration) -> io::Result<()> {
    let mut attr = Attr::default();
    // SAFETY: the kernel writes `SIZE` bytes at most to what is pointed to, which is as long and outlives the call.
    let got = unsafe { libc::syscall(libc::SYS_sched_getattr, 0, &raw mut attr, SIZE, 0) };
    if got != 0 {
        return Err(io::Error::last_os_error());
    }
    if attr.policy != libc::SCHED_OTHER {
        return Ok(());
    }
    attr.flags |= NOT_INHERITED;
    (attr.size, attr.runtime) = (SIZE, u64::try_from(turn.as_nanos()).unwrap_or(u64::MAX));
    // SAFETY: the kernel reads `size` bytes of what is pointed to, which is as long and outlives the call.
    let set = unsafe { libc::syscall(libc::SYS_sched_setattr, 0, &raw const attr, 0) };
    if set == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_thread_asks_for_itself_and_keeps_its_nice() {
        std::thread::spawn(|| {
            let nice = || {
                std::fs::read_to_string("/proc/thread-self/stat").map(|stat| stat.split(' ').nth(18).map(str::to_owned))
            };
            rustix::process::nice(3).expect("nobody needs a right to be nicer");
            let before = nice().expect("/proc");
            ask(Duration::from_micros(100)).expect("the call is there since Linux 3.14");
            assert_eq!(nice().expect("/proc"), before);
            let mut attr = Attr::default();
            // SAFETY: as above.
            unsafe { libc::syscall(libc::SYS_sched_getattr, 0, &raw mut attr, SIZE, 0) };
            assert_eq!(Some(attr.nice.to_string()), before);
            // 0 before Linux 6.12.
            assert!([0, 100_000].contains(&attr.runtime), "{}", attr.runtime);
            std::thread::spawn(|| {
                let mut attr = Attr::default();
                // SAFETY: as above.
                unsafe { libc::syscall(libc::SYS_sched_getattr, 0, &raw mut attr, SIZE, 0) };
                assert_ne!(attr.runtime, 100_000, "it is inherited");
            })
            .join()
            .expect("a thread");
        })
        .join()
        .expect("a thread");
    }
}
