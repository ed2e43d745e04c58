//! Who may use whom: between crates, between the helper's modules, and what the helper links in the end.

use super::{File, Violation, code, lines_with, output};
use anyhow::{Context, Result};
use std::collections::BTreeSet;
use std::path::Path;
use std::process::Command;

/// Each crate of ours, and which of ours it may use. Nothing below calls up.
const CRATES: [(&str, &[&str]); 11] = [
    ("wire", &[]),
    ("sys", &[]),
    ("root", &["wire", "sys"]),
    ("image", &["wire", "sys"]),
    ("jailer", &["sys"]),
    ("qemu", &["wire", "sys", "agent"]),
    ("agent", &["sys"]),
    ("banger", &["wire", "sys", "agent"]),
    ("xtask", &["wire", "sys", "agent", "banger", "lab"]),
    ("bench", &["wire", "sys", "agent", "banger"]),
    ("lab", &["wire", "sys", "agent", "banger"]),
];

/// The helper's families: none knows another, whatever they share lies below them.
const FAMILIES: [&str; 3] = ["net", "disk", "vm"];
/// What lies below the families in the helper; it knows nothing of them and of the server above.
const BELOW: [&str; 11] =
    ["fail", "steps", "links", "mark", "places", "settings", "trusted", "log", "locks", "notify", "rights"];
const ABOVE: [&str; 9] = ["net", "disk", "vm", "ops", "serve", "listen", "work", "conn", "main"];

/// The arrows between the helper's modules.
pub(super) fn inside(files: &[File]) -> Vec<Violation> {
    let mut found = Vec::new();
    for file in files {
        let Some(module) = module(&file.path) else { continue };
        let forbidden: Vec<&str> = if FAMILIES.contains(&module) {
            FAMILIES.into_iter().filter(|family| *family != module).chain(["ops", "serve", "listen", "work"]).collect()
        } else if BELOW.contains(&module) {
            ABOVE.to_vec()
        } else {
            continue;
        };
        for used in forbidden {
            let lines = lines_with(&file.code, move |line| uses(line, used));
            let what =
                format!("{module} must not know {used}: move what both need below them, or let the caller pass it");
            found.extend(lines.map(|n| Violation::new(&file.path, n, what.clone())));
        }
    }
    found
}

/// The first part of a module's path in the helper: `net` for `net.rs` and `net/tap.rs`.
fn module(path: &str) -> Option<&str> {
    let rest = path.strip_prefix("crates/root/src/")?;
    rest.split('/').next().map(|first| first.trim_end_matches(".rs"))
}

fn uses(line: &str, module: &str) -> bool {
    line.match_indices("crate::").any(|(at, _)| {
        let rest = &line[at + "crate::".len()..];
        match rest.strip_prefix('{') {
            Some(list) => list.split([',', '}']).any(|item| item.trim().split("::").next() == Some(module)),
            None => code::has_word(rest.split(|c: char| !c.is_alphanumeric() && c != '_').next().unwrap_or(""), module),
        }
    })
}

/// The arrows between crates, by what cargo knows of them.
pub(super) fn crates(top: &Path) -> Result<Vec<Violation>> {
    let args = ["metadata", "--format-version", "1", "--no-deps", "--offline"];
    let metadata: serde_json::Value =
        serde_json::from_str(&output(Command::new("cargo").current_dir(top).args(args))?)?;
    let packages = metadata["packages"].as_array().context("cargo metadata lists packages")?;
    let mut found = Vec::new();
    for package in packages {
        let name = package["name"].as_str().unwrap_or_default();
        let manifest = package["manifest_path"].as_str().unwrap_or_default();
        let manifest = Path::new(manifest).strip_prefix(top).unwrap_or(Path::new(manifest)).display().to_string();
        let Some((_, allowed)) = CRATES.iter().find(|(known, _)| *known == name) else {
            found.push(Violation::new(&manifest, 1, format!("say in {} which crates of ours {name} may use", file!())));
            continue;
        };
        for dependency in package["dependencies"].as_array().into_iter().flatten() {
            let used = dependency["name"].as_str().unwrap_or_default();
            // A test may use what it tests against.
            let ours = CRATES.iter().any(|(known, _)| *known == used) && dependency["kind"].as_str() != Some("dev");
            if ours && !allowed.contains(&used) {
                let what = format!("{name} must not use {used}: see the walls in ARCHITECTURE.md");
                found.push(Violation::new(&manifest, 1, what));
            }
        }
    }
    Ok(found)
}

/// What the helper is built from is what `crates/root/LINKS` says: a crate a line, its name first.
pub(super) fn linked(top: &Path) -> Result<Vec<Violation>> {
    let args = ["tree", "--offline", "-p", "root", "-e", "normal", "--prefix", "none", "-f", "{p}"];
    let tree = output(Command::new("cargo").current_dir(top).args(args))?;
    let text = std::fs::read_to_string(top.join(LINKS)).unwrap_or_default();
    Ok(compared(&tree, &text))
}

const LINKS: &str = "crates/root/LINKS";

fn compared(tree: &str, text: &str) -> Vec<Violation> {
    let first = |line: &str| line.split_whitespace().next().unwrap_or("").to_owned();
    let linked: BTreeSet<String> = tree.lines().map(first).filter(|name| !name.is_empty()).collect();
    let lines = || text.lines().enumerate().filter(|(_, line)| !line.starts_with('#') && !line.trim().is_empty());
    let said: BTreeSet<String> = lines().map(|(_, line)| first(line)).collect();
    let more = linked.difference(&said).map(|name| {
        let what = format!("the helper is built from {name}, which is not listed: is it worth that? then add a line");
        Violation::new(LINKS, 1, what)
    });
    let less = lines().filter(|(_, line)| !linked.contains(&first(line))).map(|(n, line)| {
        Violation::new(LINKS, n + 1, format!("the helper is not built from {} any more: remove the line", first(line)))
    });
    more.chain(less).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn made(path: &str, text: &str) -> File {
        File { path: path.into(), text: text.into(), code: code::without_words(text) }
    }

    #[test]
    fn families_and_what_lies_below() {
        let wrong = [
            made("crates/root/src/net/tap.rs", "//! A.\nuse crate::vm::Vms;\n"),
            made("crates/root/src/vm.rs", "//! A.\nuse crate::{fail::Fail, net};\n"),
            made("crates/root/src/steps.rs", "//! A.\nfn a() { crate::ops::run() }\n"),
        ];
        for file in wrong {
            let found = inside(std::slice::from_ref(&file));
            assert!(found.len() == 1 && found[0].line == 2, "{}: {found:?}", file.path);
        }
        let right = [
            made("crates/root/src/ops.rs", "use crate::{net, vm};\n"),
            made("crates/root/src/net/tap.rs", "use crate::net::link; use crate::vmm; // crate::vm\n"),
            made("crates/wire/src/net.rs", "use crate::vm::Pid;\n"),
        ];
        assert_eq!(inside(&right), []);
    }

    #[test]
    fn what_is_linked_is_listed_and_the_other_way_round() {
        let text = "# name, why\nlibc    calls\nold     why\n";
        let found = compared("root v0.1.0 (/x)\nlibc v0.2.1\nlibc v0.2.1 (*)\n\n", &format!("{text}root    ours\n"));
        assert!(found.len() == 1 && found[0].line == 3, "{found:?}");
        let found = compared("root v0.1.0 (/x)\nlibc v0.2.1\nnew v1.0.0\n", "root\nlibc\n");
        assert!(found.len() == 1 && found[0].what.contains("new"), "{found:?}");
    }
}
