//! What lies in the kernel: links, firewall rules, loop devices, mounts, processes. Taken before and after, and compared,
//! by other programs and files than the helper's own code uses.

use std::collections::BTreeMap;
use std::fs;

use anyhow::{Context, Result, bail};
use serde_json::Value;

use crate::programs;

/// Whose processes are counted.
#[derive(Clone, Copy)]
pub(crate) enum Processes<'a> {
    /// All that `/proc` shows: in a PID namespace of one's own.
    All,
    /// Those in the network namespace of this name, as `readlink /proc/PID/ns/net` gives it.
    Of(&'a str),
    /// None.
    None,
}

/// One list for each kind of thing.
#[derive(PartialEq)]
pub(crate) struct Inventory(BTreeMap<&'static str, Vec<String>>);

const KINDS: [&str; 5] = ["links", "rules", "loops", "mounts", "processes"];

impl Inventory {
    /// Looks at the namespaces of the calling process.
    pub(crate) fn take(processes: Processes<'_>) -> Result<Self> {
        let lists = [links()?, rules()?, loops(), mounts()?, self::processes(processes)?];
        Ok(Self(KINDS.into_iter().zip(lists).collect()))
    }

    /// One line a thing, as [`Inventory::parse`] reads it.
    pub(crate) fn to_text(&self) -> String {
        self.0.iter().flat_map(|(kind, list)| list.iter().map(move |l| format!("{kind} {l}\n"))).collect()
    }

    /// Reads what [`Inventory::to_text`] wrote.
    pub(crate) fn parse(text: &str) -> Self {
        let mut lists: BTreeMap<_, Vec<String>> = KINDS.into_iter().map(|k| (k, Vec::new())).collect();
        for (kind, thing) in text.lines().filter_map(|l| l.split_once(' ')) {
            if let Some((_, list)) = lists.iter_mut().find(|(k, _)| **k == kind) {
                list.push(thing.to_owned());
            }
        }
        Self(lists)
    }

    /// `links 2 = 2  rules 0 = 0 …`, and what is new or gone where something is.
    pub(crate) fn compare(&self, after: &Self) -> (String, Vec<String>) {
        let (mut counts, mut differences) = (Vec::new(), Vec::new());
        for kind in KINDS {
            let (before, after) = (&self.0[kind], &after.0[kind]);
            let sign = if before == after { '=' } else { '≠' };
            counts.push(format!("{kind} {} {sign} {}", before.len(), after.len()));
            differences.extend(surplus(after, before).map(|t| format!("new in {kind}: {t}")));
            differences.extend(surplus(before, after).map(|t| format!("gone from {kind}: {t}")));
        }
        (counts.join("   "), differences)
    }
}

/// Compares with what was taken before, prints the line, and fails where anything differs.
pub(crate) fn report(place: &str, before: &Inventory, after: &Inventory) -> Result<()> {
    let (counts, differences) = before.compare(after);
    if differences.is_empty() {
        println!("left {place}: nothing   ({counts})");
        return Ok(());
    }
    println!("left {place}: {counts}");
    let shown: Vec<String> = differences.iter().take(20).map(|d| format!("    {}", programs::plain(d))).collect();
    bail!("not as before {place}:\n{}", shown.join("\n"))
}

/// What `a` has more of than `b`.
fn surplus<'a>(a: &'a [String], b: &'a [String]) -> impl Iterator<Item = &'a String> {
    let mut left: Vec<&String> = b.iter().collect();
    a.iter().filter(move |thing| match left.iter().position(|l| l == thing) {
        Some(at) => {
            left.swap_remove(at);
            false
        }
        None => true,
    })
}

/// Each link with its alias, each with its addresses.
fn links() -> Result<Vec<String>> {
    let links = json("ip", &["-j", "addr"])?;
    let text = |v: &Value| v.as_str().unwrap_or_default().to_owned();
    let link = |link: &Value| {
        let addresses = link["addr_info"].as_array().map_or(&[][..], |a| a);
        // The kernel gives link-local addresses on its own, a while after a link comes up.
        let given = addresses.iter().filter(|a| a["scope"] != "link");
        let addresses: Vec<String> = given.map(|a| format!("{}/{}", text(&a["local"]), a["prefixlen"])).collect();
        format!("{} {} {}", text(&link["ifname"]), text(&link["ifalias"]), addresses.join(" "))
    };
    Ok(sorted(links.as_array().context("ip -j addr gave no list")?.iter().map(link)))
}

/// Tables, chains, sets and rules, without what counts by itself.
fn rules() -> Result<Vec<String>> {
    let mut ruleset = json("nft", &["-j", "list", "ruleset"])?;
    let things = ruleset["nftables"].as_array_mut().context("nft -j gave no list")?;
    things.retain(|thing| thing.get("metainfo").is_none());
    things.iter_mut().for_each(without_counts);
    Ok(sorted(things.iter().map(Value::to_string)))
}

fn without_counts(value: &mut Value) {
    match value {
        Value::Object(fields) => {
            ["packets", "bytes", "expires"].iter().for_each(|k| drop(fields.remove(*k)));
            fields.values_mut().for_each(without_counts);
        }
        Value::Array(values) => values.iter_mut().for_each(without_counts),
        _ => {}
    }
}

/// Loop devices that have a file behind them.
fn loops() -> Vec<String> {
    let Ok(devices) = fs::read_dir("/sys/block") else { return Vec::new() };
    let attached = |name: String| {
        let file = fs::read_to_string(format!("/sys/block/{name}/loop/backing_file")).ok()?;
        Some(format!("{name} {}", file.trim_end()))
    };
    sorted(devices.filter_map(|d| attached(d.ok()?.file_name().to_string_lossy().into_owned())))
}

fn mounts() -> Result<Vec<String>> {
    let text = fs::read_to_string("/proc/self/mountinfo").context("can't read the list of mounts")?;
    let mount = |line: &str| {
        let (front, back) = line.split_once(" - ")?;
        Some(format!("{} {}", front.split(' ').nth(4)?, back.split(' ').take(2).collect::<Vec<_>>().join(" ")))
    };
    Ok(sorted(text.lines().filter_map(mount)))
}

fn processes(which: Processes<'_>) -> Result<Vec<String>> {
    let namespace = match which {
        Processes::None => return Ok(Vec::new()),
        Processes::All => None,
        Processes::Of(namespace) => Some(namespace),
    };
    let mut found = Vec::new();
    for entry in fs::read_dir("/proc")? {
        let process = entry?.path();
        // One that ended in between is no process.
        let Ok(name) = fs::read_to_string(process.join("comm")) else { continue };
        let there = fs::read_link(process.join("ns/net")).is_ok_and(|n| namespace.is_none_or(|w| n.as_os_str() == w));
        let program = fs::read_link(process.join("exe")).is_ok();
        if there && (program || namespace.is_none()) {
            found.push(name.trim_end().to_owned());
        }
    }
    found.sort();
    Ok(found)
}

fn json(program: &str, arguments: &[&str]) -> Result<Value> {
    let text = programs::output(program, arguments)?;
    // `ip -j` writes nothing at all where there is nothing.
    let text = if text.trim().is_empty() { "[]" } else { &text };
    serde_json::from_str(text).with_context(|| format!("{program} wrote no JSON"))
}

fn sorted(list: impl Iterator<Item = String>) -> Vec<String> {
    let mut list: Vec<String> = list.collect();
    list.sort();
    list
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_new_and_what_is_gone_is_named() {
        let before = Inventory::parse("links lo\nlinks tap-fc-1\nmounts /a tmpfs\nmounts /a tmpfs\n");
        let after = Inventory::parse("links lo\nlinks br-fc\nmounts /a tmpfs\nmounts /a tmpfs\nmounts /a tmpfs\n");
        let (counts, differences) = before.compare(&after);
        assert_eq!(counts, "links 2 ≠ 2   rules 0 = 0   loops 0 = 0   mounts 2 ≠ 3   processes 0 = 0");
        assert_eq!(differences, ["new in links: br-fc", "gone from links: tap-fc-1", "new in mounts: /a tmpfs"]);
        assert!(report("here", &before, &after).is_err());
        assert!(report("here", &before, &before).is_ok());
    }

    #[test]
    fn text_is_read_back() {
        let taken = Inventory::take(Processes::All).unwrap();
        assert!(taken == Inventory::parse(&taken.to_text()));
        assert!(taken.0["links"].iter().any(|l| l.starts_with("lo ")) && !taken.0["processes"].is_empty());
    }
}
