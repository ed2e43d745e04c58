//! A host whose firewall is iptables as it was before nftables: its rules are seen and changed by its own program alone.
//!
//! Nobody says when they change, so they are looked at with each guest and each probe; and only where the kernel has
//! such a filter table already.

use super::program::{self, Said};
use crate::host::Host;
use crate::log::{Level, Value};
use crate::settings::Mark;
use rustix::fd::OwnedFd;
use rustix::fs::{Mode, OFlags};
use std::sync::{Mutex, PoisonError};
use wire::reply::{BlockedBy, RuleElsewhere};

/// The rule, behind `-I` or `-D` and the chain's name.
fn rule(mark: &str) -> [&str; 10] {
    ["-m", "mark", "--mark", mark, "-m", "comment", "--comment", "banger", "-j", "ACCEPT"]
}

/// The mark as the program prints it.
fn text_of(mark: Mark) -> String {
    match mark.mask {
        u32::MAX => format!("{:#x}", mark.value),
        mask => format!("{:#x}/{mask:#x}", mark.value),
    }
}

/// How it stands with those tables.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Legacy {
    /// Nothing of ours is there.
    #[default]
    Clean,
    /// Our rule is the first one of this chain.
    Stands(&'static str),
    /// They are in force, and could not be asked or changed.
    Failed,
}

/// Adds the rule where packets that are forwarded would be dropped.
pub(super) fn open(host: &Host) -> Legacy {
    if !in_use() {
        return Legacy::Clean;
    }
    settle(host).unwrap_or(Legacy::Failed)
}

fn settle(host: &Host) -> Option<Legacy> {
    let forward = list(host, FORWARD)?;
    let Some(chain) = needed(&forward) else { return Some(Legacy::Clean) };
    let mark = host.settings.mark;
    let there = if chain == FORWARD { ours(&forward, mark) } else { ours(&list(host, chain)?, mark) };
    if there == [0] {
        return Some(Legacy::Stands(chain));
    }
    if !there.is_empty() {
        remove(host, chain);
    }
    change(host, "-I", chain)?;
    Some(Legacy::Stands(chain))
}

/// Removes it.
pub(super) fn close(host: &Host) {
    if in_use() {
        remove(host, FORWARD);
        remove(host, DOCKER_USER);
    }
}

fn remove(host: &Host, chain: &str) {
    // Not for ever: somebody may add it as fast as we remove it. Where the chain is not, nothing of ours is.
    for _ in 0..8 {
        match ask(host, &["-S", chain]) {
            Some(said) if said.success && !ours(&said.out, host.settings.mark).is_empty() => {}
            _ => return,
        }
        if change(host, "-D", chain).is_none() {
            return;
        }
    }
}

/// What `priv.list_resources` says of a rule that stands there.
pub(super) fn elsewhere(chain: &str) -> RuleElsewhere {
    RuleElsewhere {
        family: FAMILY.into(),
        table: "filter".into(),
        chain: chain.into(),
        handle: 0,
        why: "it accepts banger's mark and says banger".into(),
    }
}

/// What it says where they are in force and could not be dealt with.
pub(super) fn unknown(mark: Mark) -> Option<BlockedBy> {
    in_use().then(|| BlockedBy {
        family: FAMILY.into(),
        table: "filter".into(),
        chain: FORWARD.into(),
        handle: 0,
        why: format!(
            "iptables-legacy is in use here and could not be asked. Where it drops: iptables-legacy -I FORWARD {}",
            rule(&text_of(mark)).join(" ")
        ),
    })
}

const FAMILY: &str = "iptables-legacy";
const FORWARD: &str = "FORWARD";
const DOCKER_USER: &str = "DOCKER-USER";

/// The chain that needs the rule, by what `-S FORWARD` prints; `None` where nothing is dropped.
fn needed(listed: &str) -> Option<&'static str> {
    let jumps = |line: &str, to: &str| line.split(' ').skip_while(|word| *word != "-j").nth(1) == Some(to);
    if listed.lines().any(|line| jumps(line, DOCKER_USER)) {
        return Some(DOCKER_USER);
    }
    let drops = |line: &str| line == "-P FORWARD DROP" || jumps(line, "DROP") || jumps(line, "REJECT");
    listed.lines().any(|line| drops(line) || leaves(line)).then_some(FORWARD)
}

/// Whether a rule sends packets on to a chain of somebody's, which may drop them there.
fn leaves(line: &str) -> bool {
    const ENDS: [&str; 6] = ["ACCEPT", "RETURN", "LOG", "NFLOG", "MARK", "TCPMSS"];
    line.starts_with("-A ")
        && line.split(' ').skip_while(|word| !matches!(*word, "-j" | "-g")).nth(1).is_some_and(|to| !ENDS.contains(&to))
}

/// Where our rule stands among a chain's, by what `-S` prints.
fn ours(listed: &str, mark: Mark) -> Vec<usize> {
    let mark = text_of(mark);
    let rules = listed.lines().filter(|line| line.starts_with("-A "));
    let is_ours = |line: &str| line.split(' ').skip(2).map(|word| word.trim_matches('"')).eq(rule(&mark));
    rules.enumerate().filter(|(_, line)| is_ours(line)).map(|(nth, _)| nth).collect()
}

/// The tables of that kind that are loaded: to ask the program would load them.
pub(crate) fn tables() -> Vec<String> {
    // Kept open, and read from its start each time: to open it costs ten times as much.
    static NAMES: Mutex<Option<OwnedFd>> = Mutex::new(None);
    let mut kept = NAMES.lock().unwrap_or_else(PoisonError::into_inner);
    let mut names = [0; 4096];
    let mut read = |file: &OwnedFd| rustix::io::pread(file, &mut names, 0).ok();
    // The kernel's module may have gone, and come again, since it was opened.
    let length = kept.as_ref().and_then(&mut read).or_else(|| {
        let flags = OFlags::RDONLY | OFlags::CLOEXEC;
        // No such file: a kernel without them.
        *kept = rustix::fs::open("/proc/net/ip_tables_names", flags, Mode::empty()).ok();
        kept.as_ref().and_then(&mut read)
    });
    String::from_utf8_lossy(&names[..length.unwrap_or(0)]).lines().map(str::to_owned).collect()
}

fn in_use() -> bool {
    tables().iter().any(|name| name == "filter")
}

fn list(host: &Host, chain: &str) -> Option<String> {
    let said = ask(host, &["-S", chain])?;
    if !said.success {
        warn(host, &said.err);
        return None;
    }
    Some(said.out)
}

fn change(host: &Host, what: &str, chain: &str) -> Option<()> {
    let mark = text_of(host.settings.mark);
    let rule = rule(&mark);
    let said = ask(host, &[&[what, chain], &rule[..]].concat())?;
    if !said.success {
        warn(host, &said.err);
        return None;
    }
    let fields = [("rule", Value::Text(&format!("{what} {chain} {}", rule.join(" ")), 256))];
    host.log.own(Level::Info, "iptables-legacy was changed", &fields);
    Some(())
}

fn ask(host: &Host, arguments: &[&str]) -> Option<Said> {
    program::run(arguments).map_err(|cause| warn(host, &cause)).ok()
}

fn warn(host: &Host, cause: &str) {
    let fields = [("cause", Value::Text(cause, 256))];
    host.log.own(
        Level::Warn,
        "iptables-legacy is in use here and could not be asked: a guest may not get out",
        &fields,
    );
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_rule_goes_where_packets_are_dropped() {
        assert_eq!(needed("-P FORWARD ACCEPT\n"), None);
        assert_eq!(needed("-P FORWARD ACCEPT\n-A FORWARD -i eth9 -j LOG\n-A FORWARD -j ACCEPT\n"), None);
        assert_eq!(needed("-P FORWARD ACCEPT\n-A FORWARD -i eth9 -j DROP\n"), Some("FORWARD"));
        assert_eq!(needed("-P FORWARD ACCEPT\n-A FORWARD -j fence\n"), Some("FORWARD"), "who knows what is there");
        assert_eq!(needed("-P FORWARD DROP\n"), Some("FORWARD"));
        assert_eq!(needed("-P FORWARD DROP\n-A FORWARD -j DOCKER-USER\n"), Some("DOCKER-USER"));
    }

    #[test]
    fn ours_is_that_rule_and_no_other() {
        let mark = Mark { value: 0x100, mask: 0xff00 };
        let text = text_of(mark);
        assert_eq!(text, "0x100/0xff00");
        let (rule, head) = (rule(&text).join(" "), rule(&text)[..8].join(" "));
        let ours = |listed: &str| ours(listed, mark);
        assert_eq!(ours(&format!("-P FORWARD DROP\n-A FORWARD {rule}\n-A FORWARD -j DROP\n")), [0]);
        assert_eq!(ours(&format!("-N X\n-A X -j DROP\n-A X {}\n", rule.replace("banger", "\"banger\""))), [1]);
        assert!(ours(&format!("-A FORWARD -i eth0 {rule}\n-A FORWARD {} -j DROP\n", head)).is_empty());
    }
}
