//! What a VM's processes take of the machine: the VMM, and its children.

use std::fs;
use std::time::Duration;

/// The unit of times in `/proc/PID/stat`, in milliseconds: 100 of them are a second wherever banger runs (`USER_HZ`, time(7)).
const TICK: u64 = 10;

/// What they have had to do so far: one that waits for a processor has something to do.
#[derive(Clone, Copy)]
pub(crate) struct Wanted {
    ran: Duration,
    waited: Duration,
}

impl Wanted {
    /// By now.
    pub(crate) fn of(pid: i32) -> Wanted {
        Wanted { ran: of(pid), waited: waited(pid) }
    }

    /// Since then. A thread that has ended meanwhile takes its waiting along, which says nothing of the others' work.
    pub(crate) fn since(self, then: Wanted) -> Duration {
        self.ran.saturating_sub(then.ran) + self.waited.saturating_sub(then.waited)
    }

    /// Whether others had the processors for most of it.
    pub(crate) fn is_starved(self) -> bool {
        self.waited > self.ran
    }
}

/// The VMM and its children, whichever of its threads started them.
pub(super) fn processes(pid: i32) -> impl Iterator<Item = i32> {
    let threads = fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().flatten();
    let children = threads.filter_map(|thread| fs::read_to_string(thread.path().join("children")).ok());
    let children: Vec<i32> = children
        .flat_map(|line| line.split_whitespace().filter_map(|child| child.parse().ok()).collect::<Vec<_>>())
        .collect();
    children.into_iter().chain([pid])
}

/// How long they have run on processors, all together.
pub(crate) fn of(pid: i32) -> Duration {
    processes(pid).filter_map(|pid| ran(&fs::read_to_string(format!("/proc/{pid}/stat")).ok()?)).sum()
}

/// How long their threads that are there have waited for a processor while they had something to do, as far as the kernel counts that
/// (`/proc/PID/task/TID/schedstat`, in nanoseconds: on a processor, waiting for one, how often).
fn waited(pid: i32) -> Duration {
    let threads = |pid| fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().flatten();
    let waited = |told: String| told.split_whitespace().nth(1)?.parse().ok();
    let all = processes(pid).flat_map(threads);
    all.filter_map(|thread| waited(fs::read_to_string(thread.path().join("schedstat")).ok()?))
        .map(Duration::from_nanos)
        .sum()
}

/// The time of user and system in a line of `/proc/PID/stat` (proc(5)). The program's name before them may be anything.
fn ran(stat: &str) -> Option<Duration> {
    let mut fields = stat.rsplit_once(')')?.1.split_whitespace().skip(11);
    let mut ticks = || fields.next()?.parse::<u64>().ok();
    let all = ticks()?.checked_add(ticks()?)?;
    Some(Duration::from_millis(all.checked_mul(TICK)?))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Instant;

    #[test]
    fn a_name_is_no_field() {
        let line = "7 (a) b (c) R 1 7 7 0 -1 4194560 90 0 0 0 30 12 0 0 20 0 1 0 77 1";
        assert_eq!(ran(line), Some(Duration::from_millis(420)));
        for wrong in ["", "7 (a", "7 (a) R 1", "7 (a) R 1 7 7 0 -1 4 90 0 0 0 x 12 0"] {
            assert_eq!(ran(wrong), None, "{wrong}");
        }
    }

    #[test]
    fn a_thread_that_ends_takes_nobody_s_work_along() {
        let wanted = |ran, waited| Wanted { ran: Duration::from_millis(ran), waited: Duration::from_millis(waited) };
        assert_eq!(wanted(700, 90).since(wanted(400, 80)), Duration::from_millis(310));
        assert_eq!(wanted(700, 5).since(wanted(400, 9_000)), Duration::from_millis(300));
        assert_eq!(wanted(0, 50).since(wanted(400, 20)), Duration::from_millis(30));
        assert!(wanted(400, 401).is_starved() && !wanted(400, 400).is_starved());
    }

    #[test]
    fn who_works_has_worked_and_who_waits_has_not() {
        let own = i32::try_from(std::process::id()).unwrap();
        let before = of(own);
        let begun = Instant::now();
        while of(own) < before + Duration::from_millis(50) {
            assert!(begun.elapsed() < Duration::from_secs(60));
        }
        let mut child = std::process::Command::new("sleep").arg("1000").spawn().unwrap();
        let pid = i32::try_from(child.id()).unwrap();
        assert!(processes(own).any(|one| one == pid) && of(pid) < Duration::from_secs(1));
        child.kill().unwrap();
        child.wait().unwrap();
        assert_eq!(of(pid), Duration::ZERO);
    }
}
