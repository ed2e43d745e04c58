//! A host whose firewall is iptables as it was before nftables: its rules are seen and changed by its own program alone.
//!
//! Nobody says when they change, so they are looked at with each guest; and only where that table is in use.

use crate::host::Host;
use crate::log::{Level, Value};
use rustix::fs::{Mode, OFlags};
use std::io::Read as _;
use std::process::{Command, Output, Stdio};
use wire::reply::BlockedBy;

const PROGRAM: &str = "/usr/sbin/iptables-legacy";
/// The rule, behind `-C`, `-I` or `-D` and the chain's name.
const RULE: [&str; 8] = ["-m", "mark", "--mark", "0x62000000/0xff000000", "-m", "comment", "--comment", "banger"];

/// Adds the rule where packets that are forwarded would be dropped. `false` where these rules are in force and could
/// not be dealt with.
pub(super) fn open(host: &Host) -> bool {
    if !in_use() {
        return true;
    }
    let Some(listed) = ask(host, &["-S", "FORWARD"]).filter(|listed| is_good(host, listed)) else { return false };
    let Some(chain) = needed(&String::from_utf8_lossy(&listed.stdout)) else { return true };
    ask_rule(host, "-C", chain).is_some_and(|checked| checked.status.success())
        || ask_rule(host, "-I", chain).is_some_and(|added| is_good(host, &added))
}

/// What `priv.list_resources` says where that failed.
pub(super) fn unknown() -> Option<BlockedBy> {
    in_use().then(|| BlockedBy {
        family: "ip".into(),
        table: "filter".into(),
        chain: "FORWARD".into(),
        handle: 0,
        why: format!(
            "iptables-legacy is in use here and could not be asked. Where it drops: iptables-legacy -I FORWARD {} -j ACCEPT",
            RULE.join(" ")
        ),
    })
}

fn is_good(host: &Host, output: &Output) -> bool {
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr);
        warn(host, &said);
    }
    output.status.success()
}

fn warn(host: &Host, cause: &str) {
    let fields = [("cause", Value::Text(cause, 256))];
    host.log.own(
        Level::Warn,
        "iptables-legacy is in use here and could not be asked: a guest may not get out",
        &fields,
    );
}

/// Removes it.
pub(super) fn close(host: &Host) {
    if !in_use() {
        return;
    }
    for chain in ["FORWARD", "DOCKER-USER"] {
        // Not for ever: somebody may add it as fast as we remove it.
        for _ in 0..8 {
            if !ask_rule(host, "-D", chain).is_some_and(|removed| removed.status.success()) {
                break;
            }
        }
    }
}

/// The chain that needs the rule, by what `-S FORWARD` prints; `None` where nothing is dropped.
fn needed(listed: &str) -> Option<&'static str> {
    let jumps = |line: &str, to: &str| line.split(' ').skip_while(|word| *word != "-j").nth(1) == Some(to);
    if listed.lines().any(|line| jumps(line, "DOCKER-USER")) {
        return Some("DOCKER-USER");
    }
    let drops = |line: &str| line == "-P FORWARD DROP" || jumps(line, "DROP") || jumps(line, "REJECT");
    listed.lines().any(drops).then_some("FORWARD")
}

/// The tables of that kind that are loaded: to ask the program would load them.
pub(crate) fn tables() -> Vec<String> {
    let mut names = String::new();
    let opened = rustix::fs::open("/proc/net/ip_tables_names", OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty());
    // No such file: a kernel without them.
    let _ = opened.map(|file| std::fs::File::from(file).take(4096).read_to_string(&mut names));
    names.lines().map(str::to_owned).collect()
}

fn in_use() -> bool {
    tables().iter().any(|name| name == "filter")
}

fn ask_rule(host: &Host, what: &str, chain: &str) -> Option<Output> {
    ask(host, &[&[what, chain], &RULE[..], &["-j", "ACCEPT"]].concat())
}

/// Runs the program with arguments that no caller has a say in, and nothing of ours.
#[allow(clippy::disallowed_methods, reason = "the kernel's old interface is this program's own: fixed arguments")]
fn ask(host: &Host, arguments: &[&str]) -> Option<Output> {
    let mut command = Command::new(PROGRAM);
    command.args(["-w", "5"]).args(arguments).env_clear().current_dir("/").stdin(Stdio::null());
    command.output().map_err(|error| warn(host, &format!("{PROGRAM}: {error}"))).ok()
}

#[cfg(test)]
mod tests {
    use super::needed;

    #[test]
    fn the_rule_goes_where_packets_are_dropped() {
        assert_eq!(needed("-P FORWARD ACCEPT\n"), None);
        assert_eq!(needed("-P FORWARD ACCEPT\n-A FORWARD -i eth9 -j DROP\n"), Some("FORWARD"));
        assert_eq!(needed("-P FORWARD DROP\n"), Some("FORWARD"));
        assert_eq!(needed("-P FORWARD DROP\n-A FORWARD -j DOCKER-USER\n"), Some("DOCKER-USER"));
    }
}
