//! Directories that needn't come back at all: what the owner's own rules leave out of his repository, as they were shipped.
//!
//! It is a matter of time alone: what is not named here comes, and is left out then. So only plain names are taken, and none
//! where a rule takes something in again. A guest that changes its `.gitignore` changes nothing of it.

use super::git::Git;
use super::{Folder, SHIPPED};
use crate::api::Fault;
use agent::protocol::MAX_LEAVE;
use std::collections::BTreeSet;
use std::fs;

/// Their names, as the agent's `get` takes them; none where nothing was shipped whole.
pub fn ignored_directories(folder: &Folder) -> Vec<String> {
    let git = Git::private(&folder.repository(), &folder.repository());
    of(&git, folder).unwrap_or_default()
}

fn of(git: &Git, folder: &Folder) -> Result<Vec<String>, Fault> {
    let listed = git.output(&["ls-tree", "-r", "-z", "--name-only", SHIPPED])?;
    let shipped: Vec<&str> =
        listed.split(|byte| *byte == 0).filter_map(|name| std::str::from_utf8(name).ok()).collect();
    let mut rules = vec![(String::new(), fs::read(folder.repository().join("info/exclude")).unwrap_or_default())];
    for path in shipped.iter().filter(|path| path.rsplit('/').next() == Some(".gitignore")) {
        let below = path.strip_suffix(".gitignore").unwrap_or_default();
        rules.push((below.to_owned(), git.output(&["cat-file", "blob", &format!("{SHIPPED}:{path}")])?));
    }
    Ok(names(&rules, &shipped))
}

/// Those of the rules, each with the directory of its file, that hold nothing that was shipped.
fn names(rules: &[(String, Vec<u8>)], shipped: &[&str]) -> Vec<String> {
    let lines = |text: &[u8]| String::from_utf8_lossy(text).lines().map(str::to_owned).collect::<Vec<_>>();
    if rules.iter().any(|(_, text)| lines(text).iter().any(|line| line.starts_with('!'))) {
        return Vec::new();
    }
    let all: BTreeSet<String> = rules
        .iter()
        .flat_map(|(below, text)| lines(text).into_iter().filter_map(|line| name(below, &line)).collect::<Vec<_>>())
        .collect();
    let mut bytes = 0;
    let fits = |name: &String| {
        bytes += name.len();
        bytes <= MAX_LEAVE.1
    };
    all.into_iter().filter(|name| !holds(name, shipped)).take(MAX_LEAVE.0).take_while(fits).collect()
}

/// What a line of a `.gitignore` in the directory `below` names, where that is one name or path and no pattern.
fn name(below: &str, line: &str) -> Option<String> {
    let line = line.trim_end().trim_end_matches('/');
    let is_plain = |c: char| c.is_ascii_alphanumeric() || "._-+@/".contains(c);
    let (rest, is_path) = (line.trim_start_matches('/'), line.contains('/'));
    let parts_are_names = rest.split('/').all(|part| !matches!(part, "" | "." | ".."));
    if !line.chars().all(is_plain) || !parts_are_names || line.starts_with("//") {
        return None;
    }
    match (is_path, below) {
        (true, below) => Some(format!("/{below}{rest}")),
        // Of each directory of that name below the tree's top; one below another directory alone can't be said.
        (false, "") => Some(rest.to_owned()),
        (false, _) => None,
    }
}

/// Whether a directory of that name was shipped.
fn holds(name: &str, shipped: &[&str]) -> bool {
    shipped.iter().any(|path| match name.strip_prefix('/') {
        Some(name) => path.strip_prefix(name).is_some_and(|rest| rest.starts_with('/')),
        None => path.split('/').rev().skip(1).any(|part| part == name),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn plain_names_are_left_and_nothing_that_was_shipped() {
        let named = |rules: &[(&str, &str)], shipped: &[&str]| {
            let rules: Vec<_> = rules.iter().map(|(dir, text)| ((*dir).to_owned(), text.as_bytes().to_vec())).collect();
            names(&rules, shipped)
        };
        let text =
            "# x\n/target\nnode_modules/\n*.o\na b\nout/deep/\n\n/../x\n./y\nfile[1]\n\\!z\n.venv \n//w\n**/q\n/\n";
        let found = named(&[("", text), ("sub/", "/build\nobj\ngen/x\n")], &["src/a", "target2/b"]);
        assert_eq!(found, [".venv", "/out/deep", "/sub/build", "/sub/gen/x", "/target", "node_modules"]);
        let found = named(&[("", text)], &["target/kept", "a/node_modules/kept", "out/deeper", ".venv"]);
        assert_eq!(found, [".venv", "/out/deep"], "a file of that name is no directory");
        assert!(named(&[("", text), ("sub/", "*\n!kept\n")], &[]).is_empty());
        let many: String = (0..300).map(|n| format!("d{n:03}\n")).collect();
        assert_eq!(named(&[("", &many)], &[]).len(), MAX_LEAVE.0);
        assert_eq!(named(&[("", &format!("{}\n{}\n", "a".repeat(5000), "b".repeat(5000)))], &[]).len(), 1);
    }
}
