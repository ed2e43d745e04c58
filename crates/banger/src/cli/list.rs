//! `banger helper list`: what of banger's is in the kernel now.

use super::problem::Problem;
use super::{List, manner, output, table};
use serde_json::value::RawValue;
use wire::Method;
use wire::client::Error;
use wire::reply::{Resources, SnapshotFound, SnapshotState, TapFound};

const HEADER: [&str; 5] = ["KIND", "NAME", "ON", "STATE", "DETAIL"];

pub(crate) fn run(list: &List) -> Result<(), Problem> {
    let failed = |error| Problem::of_call(error, &list.reach.socket, list.reach.timeout);
    let client = crate::root::client(&list.reach.socket, list.reach.timeout);
    let found = client.call_raw(Method::ListResources.name(), RawValue::NULL).map_err(failed)?;
    if list.json {
        // As it came: a newer helper may say more than this program knows.
        return output::json(&found);
    }
    let found: Resources =
        serde_json::from_str(found.get()).map_err(|error| failed(Error::Reply(error.to_string())))?;
    let mut rows = rows(&found);
    if manner::is_quiet() {
        rows.iter_mut().for_each(|row| row.swap(0, 1));
    }
    if output::on_terminal() && rows.is_empty() {
        output::hint("nothing of banger's is in the kernel\n");
    }
    table::print(&HEADER, &rows)
}

fn rows(found: &Resources) -> Vec<Vec<String>> {
    let mut rows = Vec::new();
    let mut add = |kind: &str, name: &str, on: &str, state: &str, detail: String| {
        rows.push([kind, name, on, state, &detail].map(table::cell).to_vec());
    };
    for bridge in &found.bridges {
        let detail = because(&format!("{}, ports: {}", bridge.addresses.join(" "), bridge.ports), &bridge.why);
        add("bridge", &bridge.name, "", up(bridge.up), detail);
    }
    for tap in &found.taps {
        add("tap", &tap.name, &tap.bridge, up(tap.up), because(&use_of(tap), &tap.why));
    }
    for guest in &found.guests {
        add("guest", &guest.address, &guest.bridge, "way out", because(&guest.tap, &guest.why));
    }
    for rule in &found.rules_elsewhere {
        let chain = format!("{} {}", rule.table, rule.chain);
        add("rule", &chain, &rule.family, "added", because(&format!("handle {}", rule.handle), &rule.why));
    }
    for sysctl in &found.sysctls {
        let state = if sysctl.value == sysctl.set { "set" } else { "changed since" };
        add("sysctl", &sysctl.name, "", state, format!("{}, {}", sysctl.value, sysctl.why));
    }
    for by in &found.blocked_by {
        add("foreign", &format!("{} {}", by.table, by.chain), &by.family, "drops", by.why.clone());
    }
    for snapshot in &found.snapshots {
        let state = match snapshot.state {
            SnapshotState::Ready => format!("{} % used", percent(snapshot)),
            SnapshotState::Unfinished => "unfinished".to_owned(),
            SnapshotState::Invalid => "invalid: was full".to_owned(),
        };
        let detail = format!(
            "{}, {}: {} of {} bytes",
            if snapshot.in_use { "in use" } else { "free" },
            snapshot.cow,
            snapshot.used_bytes,
            snapshot.cow_bytes
        );
        add("snapshot", &snapshot.name, &snapshot.rootfs, &state, because(&detail, &snapshot.why));
    }
    for vm in &found.vms {
        let detail = format!("pid {}, cid {}, {}, {}", vm.pid, vm.cid, vm.program, vm.socket);
        add("vm", &vm.vm_id, &vm.tap, "runs", detail);
    }
    rows
}

/// A detail, and what makes the object banger's; a helper of before does not say that.
fn because(detail: &str, why: &str) -> String {
    if why.is_empty() { detail.to_owned() } else { format!("{detail}; {why}") }
}

fn use_of(tap: &TapFound) -> String {
    let used = if tap.carrier { "in use" } else { "free" };
    if tap.isolated { format!("{used}, isolated") } else { used.to_owned() }
}

fn percent(snapshot: &SnapshotFound) -> u64 {
    snapshot.used_bytes.saturating_mul(100).checked_div(snapshot.cow_bytes).unwrap_or(0)
}

fn up(up: bool) -> &'static str {
    if up { "up" } else { "down" }
}

#[cfg(test)]
mod tests {
    use super::*;
    use wire::reply::{BridgeFound, SysctlFound};

    #[test]
    fn a_table_is_aligned_and_escaped() {
        let found = Resources {
            bridges: vec![BridgeFound {
                name: "br-fc".into(),
                addresses: vec!["172.16.0.1/24".into()],
                up: true,
                ports: 1,
                why: "a bridge whose alias is \"banger bridge\"".into(),
            }],
            taps: vec![TapFound {
                name: "tap-fc-\t1".into(),
                up: true,
                carrier: true,
                isolated: true,
                ..TapFound::default()
            }],
            sysctls: vec![SysctlFound {
                name: "net.ipv4.conf.eth0.forwarding".into(),
                value: 0,
                set: 1,
                why: "answers".into(),
            }],
            snapshots: vec![SnapshotFound {
                name: "fc-rootfs-a".into(),
                rootfs: "/s/a.ext4".into(),
                cow: "/s/a.cow".into(),
                used_bytes: 84_000,
                cow_bytes: 100_000,
                in_use: true,
                ..SnapshotFound::default()
            }],
            ..Resources::default()
        };
        assert_eq!(
            table::table(&HEADER, &rows(&found), 200),
            "KIND      NAME                           ON         STATE          DETAIL\n\
             bridge    br-fc                          -          up             172.16.0.1/24, ports: 1; a bridge whose alias is \"banger bridge\"\n\
             tap       tap-fc-\\t1                     -          up             in use, isolated\n\
             sysctl    net.ipv4.conf.eth0.forwarding  -          changed since  0, answers\n\
             snapshot  fc-rootfs-a                    /s/a.ext4  84 % used      in use, /s/a.cow: 84000 of 100000 bytes\n"
        );
        assert_eq!(table::table(&HEADER, &[], 200), "");
    }
}
