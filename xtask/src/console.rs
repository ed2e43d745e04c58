//! What the lab's kernel says, read as it comes: a kernel that panics is seen at once, and told of from its first word on.
//! Not below `lab`: tests in a module of that name are run in the lab.

use std::io::Read;
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use crate::programs;

/// What each panic has in its first line.
const PANIC: &str = "Kernel panic - not syncing";
/// In the trace of one that came between a guest of the lab's own and the lab: KVM enters and leaves its guests there.
const AT_A_GUEST: [&str; 2] = ["svm_vcpu_enter_exit+", "__svm_vcpu_run+"];
/// How long a kernel that panicked may be silent before it counts as ended: not each of them gets to its restart.
const SILENCE: Duration = Duration::from_secs(2);
/// How long one may go on talking: one that faults again and again has no end.
const LAST_WORDS: Duration = Duration::from_secs(10);
/// Lines of an error that is no panic.
const LAST_LINES: usize = 40;
/// Lines of a panic, from its first one and from its last one. A stack that overflowed has hundreds between.
const PANIC_LINES: (usize, usize) = (100, 60);

/// A console that is read.
pub(crate) struct Console(JoinHandle<Said>);

/// All that was said on one.
#[derive(Debug, Default)]
pub(crate) struct Said(String);

/// How a kernel panicked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Panic {
    /// Where KVM enters or leaves a guest.
    AtAGuest,
    Elsewhere,
}

impl Console {
    /// Reads on in a thread of its own, until QEMU ends or the kernel has panicked: then whoever waits at `channel` for the
    /// guest hears its end.
    pub(crate) fn read(from: UnixStream, channel: UnixStream) -> Self {
        Self(thread::spawn(move || follow(from, &channel)))
    }

    /// All that was said; waits for QEMU's end.
    pub(crate) fn whole(self) -> Said {
        self.0.join().unwrap_or_default()
    }
}

fn follow(mut from: UnixStream, channel: &UnixStream) -> Said {
    let mut said = Said::default();
    let mut bytes = [0; 4096];
    let mut panicked: Option<Instant> = None;
    // What can't be read has ended.
    while let Ok(n @ 1..) = from.read(&mut bytes) {
        // Only where it is new: a few bytes come at a time.
        let new = said.0.floor_char_boundary(said.0.len().saturating_sub(PANIC.len()));
        said.0.push_str(&String::from_utf8_lossy(&bytes[..n]));
        match panicked {
            Some(begun) if begun.elapsed() > LAST_WORDS => break,
            None if said.0[new..].contains(PANIC) => {
                panicked = Some(Instant::now());
                if from.set_read_timeout(Some(SILENCE)).is_err() {
                    break;
                }
            }
            _ => {}
        }
    }
    if panicked.is_some() {
        // Fails where the other end has gone: that is heard as well.
        let _ = channel.shutdown(Shutdown::Both);
    }
    said
}

impl Said {
    pub(crate) fn panic(&self) -> Option<Panic> {
        // A frame behind a question mark may be one that lies on the stack from before.
        let mut frames = self.0.lines().filter(|line| !line.contains("? "));
        let mut at_a_guest = || frames.any(|line| AT_A_GUEST.iter().any(|place| line.contains(place)));
        self.0.contains(PANIC).then(|| if at_a_guest() { Panic::AtAGuest } else { Panic::Elsewhere })
    }

    /// What an error shows of it: of a panic the beginning too, else the last lines. Nothing but what is worse than an error
    /// goes to the console (`loglevel=3`), so a fault begins where the text does.
    pub(crate) fn shown(&self) -> String {
        if self.panic().is_none() {
            return programs::indented(&self.0, LAST_LINES);
        }
        let all = programs::indented(&self.0, usize::MAX);
        let lines: Vec<&str> = all.lines().collect();
        let (first, last) = PANIC_LINES;
        let text = match lines.len().saturating_sub(first + last) {
            0 => all,
            between => {
                let (first, last) = (&lines[..first], &lines[lines.len() - last..]);
                format!("{}\n    | … {between} lines …\n{}", first.join("\n"), last.join("\n"))
            }
        };
        format!("    the lab's kernel panicked:\n{text}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    /// As one was that overflowed its stack where it left a guest; most of its frames left out.
    const OVERFLOW: &str = "\
[  173.814018] BUG: TASK stack guard page was hit at 0000000000000000 (stack is 0000000000000000..0000000000000000)
[  173.814018] stack guard page: 0000 [#1] PREEMPT SMP NOPTI
[  173.814018] RIP: 0010:exc_general_protection+0x20/0x4a0
[  173.814018]  asm_exc_general_protection+0x22/0x30
[  173.814018]  svm_vcpu_enter_exit+0x28/0x60 [kvm_amd]
[  173.814018]  svm_vcpu_run+0x1b8/0x6c0 [kvm_amd]
[  173.814018] Kernel panic - not syncing: Fatal exception in interrupt
[  173.814018] Kernel Offset: disabled
";
    const SYSRQ: &str = "\
[   12.000000] sysrq: Trigger a crash
[   12.000000] Kernel panic - not syncing: sysrq triggered crash
[   12.000000] CPU: 1 PID: 301 Comm: sh Not tainted 6.1.0-57-cloud-amd64 #1  Debian 6.1.192-3
";

    fn said(text: &str) -> Said {
        Said(text.to_owned())
    }

    #[test]
    fn a_panic_is_known_by_its_line_and_place() {
        assert_eq!(said(OVERFLOW).panic(), Some(Panic::AtAGuest));
        assert_eq!(said(SYSRQ).panic(), Some(Panic::Elsewhere));
        let before = SYSRQ.to_owned() + "[   12.000000]  ? svm_vcpu_enter_exit+0x28/0x60 [kvm_amd]\n";
        assert_eq!(said(&before).panic(), Some(Panic::Elsewhere));
        for none in ["", "[    1.0] kvm: svm_vcpu_enter_exit+0x28/0x60", "[    1.0] EXT4-fs error (device vda): panic"]
        {
            assert_eq!(said(none).panic(), None, "{none}");
        }
    }

    #[test]
    fn a_panic_is_shown_from_its_first_line_to_its_last() {
        assert_eq!(said(OVERFLOW).shown().lines().count(), OVERFLOW.lines().count() + 1);
        let frames: String = (0..1000).map(|n| format!("[  1.0] frame {n};\n")).collect();
        let long = said(&format!("[  1.0] BUG: it begins\n{frames}{SYSRQ}")).shown();
        for line in ["BUG: it begins", "frame 98;", "… 844 lines …", "frame 943;", "Kernel panic", "CPU: 1"] {
            assert!(long.contains(line), "no {line} in\n{long}");
        }
        assert!(!long.contains("frame 99;") && !long.contains("frame 942;"), "{long}");
        assert_eq!(said(&frames).shown().lines().count(), LAST_LINES);
    }

    /// A kernel says something and stays; gives what one who waits for its guest then reads.
    fn heard_after(says: &str, stays: bool) -> Vec<u8> {
        let (from, mut kernel) = UnixStream::pair().unwrap();
        let (mut channel, mut guest) = UnixStream::pair().unwrap();
        kernel.write_all(says.as_bytes()).unwrap();
        let _kernel = stays.then_some(kernel);
        let _ = follow(from, &channel);
        let sent = guest.write_all(b"alive");
        drop(guest);
        let mut heard = Vec::new();
        channel.read_to_end(&mut heard).unwrap();
        assert_eq!(sent.is_ok(), !heard.is_empty());
        heard
    }

    #[test]
    fn who_waits_for_a_guest_hears_of_its_panic() {
        assert_eq!(heard_after("[    1.0] EXT4-fs error\n", false), b"alive");
        assert_eq!(heard_after(SYSRQ, false), b"");
        assert_eq!(heard_after(OVERFLOW, true), b"");
    }
}
