//! What documents promise: links that lead somewhere, a table of methods that tells the truth.

use super::{File, Violation};
use std::collections::BTreeSet;
use std::path::Path;
use wire::Method;

/// Every relative link of every document leads to a file.
pub(super) fn links(top: &Path, files: &[File]) -> Vec<Violation> {
    let mut found = Vec::new();
    for file in files.iter().filter(|file| file.path.ends_with(".md")) {
        let folder = Path::new(&file.path).parent().unwrap_or(Path::new(""));
        let mut fenced = false;
        for (n, line) in file.text.lines().enumerate() {
            if line.trim_start().starts_with("```") {
                fenced = !fenced;
            }
            for target in targets(line).filter(|_| !fenced) {
                let path = target.split('#').next().unwrap_or("");
                let elsewhere = path.is_empty() || path.contains("://") || path.starts_with("mailto:");
                if !elsewhere && !top.join(folder).join(path).exists() {
                    found.push(Violation::new(
                        &file.path,
                        n + 1,
                        format!("the link {target} leads nowhere: mend or remove it"),
                    ));
                }
            }
        }
    }
    found
}

/// The targets of a line's links, `[text](target)`.
fn targets(line: &str) -> impl Iterator<Item = &str> {
    line.match_indices("](").filter_map(|(at, _)| {
        let rest = &line[at + 2..];
        rest.split([')', ' ']).next()
    })
}

/// The README has a row for each method, whose state is "not yet", and no more, where the helper answers so.
pub(super) fn methods(files: &[File]) -> Vec<Violation> {
    const README: &str = "README.md";
    let Some(readme) = files.iter().find(|file| file.path == README) else {
        return vec![Violation::new(README, 1, "there is none: write it, with a table of the methods")];
    };
    let missing = missing(files);
    let mut found = Vec::new();
    for &method in Method::ALL {
        let name = format!("`{}`", method.name());
        let row = readme.text.lines().enumerate().find(|(_, line)| line.starts_with('|') && line.contains(&name));
        let is_missing = missing.contains(&format!("{method:?}"));
        match row {
            None => found.push(Violation::new(README, 1, format!("the table of the methods has no row for {name}"))),
            Some((n, row)) if says_missing(row) != is_missing => {
                let truth = if is_missing {
                    "is not built yet: say \"not yet\" in its row"
                } else {
                    "is built: take \"not yet\" from its row"
                };
                found.push(Violation::new(README, n + 1, format!("{name} {truth}")));
            }
            Some(_) => {}
        }
    }
    found
}

/// Whether a row's last cell is those two words; a method that does part of its work says more.
fn says_missing(row: &str) -> bool {
    row.trim_end().trim_end_matches('|').rsplit('|').next().is_some_and(|state| state.trim() == "not yet")
}

/// The methods that the helper's one match answers by `missing(Method::…)`.
fn missing(files: &[File]) -> BTreeSet<String> {
    let ops = files.iter().find(|file| file.path == "crates/root/src/ops.rs");
    let code = ops.map_or("", |file| file.code.as_str());
    let after = code.split("missing(Method::").skip(1);
    after.filter_map(|rest| rest.split(')').next()).map(str::to_owned).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn made(path: &str, text: &str) -> File {
        File { path: path.into(), text: text.into(), code: text.into() }
    }

    fn readme(state: impl Fn(Method) -> &'static str) -> File {
        let rows = Method::ALL.iter().map(|&method| format!("| `{}` | {} |\n", method.name(), state(method)));
        made("README.md", &rows.collect::<String>())
    }

    #[test]
    fn the_table_must_agree_with_the_match() {
        let ops = || made("crates/root/src/ops.rs", "Err(missing(Method::FsckSnapshot)),");
        let honest = |method| if method == Method::FsckSnapshot { "not yet" } else { "works" };
        assert_eq!(methods(&[readme(honest), ops()]), []);
        let in_part = |method| if method == Method::FsckSnapshot { "not yet" } else { "not yet where resolved runs" };
        assert_eq!(methods(&[readme(in_part), ops()]), []);
        assert_eq!(methods(&[readme(|_| "works"), ops()]).len(), 1);
        assert_eq!(methods(&[readme(|_| "not yet"), ops()]).len(), Method::ALL.len() - 1);
        assert_eq!(methods(&[made("README.md", ""), ops()]).len(), Method::ALL.len());
    }

    #[test]
    fn links_lead_somewhere() {
        let top = Path::new(env!("CARGO_MANIFEST_DIR"));
        let text = "[a](Cargo.toml) [b](src/main.rs#x) [c](https://example.org/x)\n[d](none.md)\n```\n[e](none)\n```\n";
        let found = links(top, &[made("a.md", text)]);
        assert!(found.len() == 1 && found[0].line == 2, "{found:?}");
    }
}
