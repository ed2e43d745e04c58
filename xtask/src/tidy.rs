//! The repository checks itself: what no compiler sees, each with the line and what to do about it.

mod arrows;
mod code;
mod docs;

use anyhow::{Context, Result, bail};
use std::path::{Path, PathBuf};
use std::process::Command;

/// The longest file of code.
const MAX_LINES: usize = 600;

/// A file of the repository.
struct File {
    /// From the repository's top.
    path: String,
    text: String,
    /// The text without comments and strings, its lines as they were; the text itself where it is no Rust.
    code: String,
}

impl File {
    fn is_rust(&self) -> bool {
        self.path.ends_with(".rs")
    }
}

/// What is wrong, and where.
#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Violation {
    path: String,
    line: usize,
    what: String,
}

impl Violation {
    fn new(path: &str, line: usize, what: impl Into<String>) -> Violation {
        Violation { path: path.to_owned(), line, what: what.into() }
    }
}

/// Checks the whole repository.
pub(crate) fn run() -> Result<()> {
    let top = top()?;
    let files = files(&top)?;
    let mut found: Vec<Violation> = files.iter().flat_map(file).collect();
    found.extend(places(&top, &files));
    found.extend(arrows::inside(&files));
    found.extend(arrows::crates(&top)?);
    found.extend(arrows::linked(&top)?);
    found.extend(docs::links(&top, &files));
    found.extend(docs::methods(&files));
    found.sort();
    for Violation { path, line, what } in &found {
        println!("{path}:{line}: {what}");
    }
    match found.len() {
        0 => {
            println!("{} files are in order", files.len());
            Ok(())
        }
        n => bail!("{n} things are not in order"),
    }
}

fn top() -> Result<PathBuf> {
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    Ok(here.parent().context("xtask lies in the repository")?.to_owned())
}

/// Every text file that git knows, or would take.
fn files(top: &Path) -> Result<Vec<File>> {
    let listed = output(Command::new("git").current_dir(top).args(["ls-files", "-co", "--exclude-standard", "-z"]))?;
    let mut files = Vec::new();
    for path in listed.split('\0').filter(|path| !path.is_empty()) {
        // Gone but not yet told to git; or no text (a fuzzer's corpus).
        let Ok(text) = std::fs::read_to_string(top.join(path)) else { continue };
        let code = if path.ends_with(".rs") { code::without_words(&text) } else { text.clone() };
        files.push(File { path: path.to_owned(), text, code });
    }
    Ok(files)
}

/// What a program prints; its failure is ours.
fn output(command: &mut Command) -> Result<String> {
    let out = command.output().with_context(|| format!("{} could not be started", command.get_program().display()))?;
    if !out.status.success() {
        bail!("{} failed: {}", command.get_program().display(), String::from_utf8_lossy(&out.stderr));
    }
    Ok(String::from_utf8(out.stdout)?)
}

/// What one file must keep.
fn file(file: &File) -> Vec<Violation> {
    let mut found = Vec::new();
    let path = file.path.as_str();
    if file.is_rust() {
        if !file.text.starts_with("//! ") {
            found.push(Violation::new(path, 1, "begin the file with a //! line that says what it is for"));
        }
        let lines = file.text.lines().count();
        if lines > MAX_LINES {
            let what = format!("{lines} lines are more than {MAX_LINES}: split the file by meaning");
            found.push(Violation::new(path, lines, what));
        }
        if !may_be_unsafe(path) {
            let unsafe_lines = lines_with(&file.code, |line| code::has_word(line, "unsafe"));
            found.extend(
                unsafe_lines.map(|n| Violation::new(path, n, "unsafe code stands in crates/sys alone: move it there")),
            );
        }
    }
    if file.is_rust()
        || path.ends_with(".sh")
        || path.ends_with(".toml")
        || path.ends_with(".md")
        || path.starts_with("scripts/")
    {
        for mark in [concat!("TO", "DO"), concat!("FIX", "ME")] {
            let lines = lines_with(&file.text, |line| code::has_word(line, mark));
            found
                .extend(lines.map(|n| Violation::new(path, n, format!("{mark}: do it, or write it down as an issue"))));
        }
    }
    found
}

fn may_be_unsafe(path: &str) -> bool {
    path.starts_with("crates/sys/") || path == "crates/image/src/ext2fs.rs"
}

fn lines_with<'a>(text: &'a str, wrong: impl Fn(&str) -> bool + 'a) -> impl Iterator<Item = usize> + 'a {
    text.lines().enumerate().filter(move |(_, line)| wrong(line)).map(|(n, _)| n + 1)
}

/// Nothing names the place where it was written: the repository's own, or the writer's home.
fn places(top: &Path, files: &[File]) -> Vec<Violation> {
    let home = std::env::var("HOME").ok().filter(|home| Path::new(home).parent() != Some(Path::new("/")));
    let places: Vec<String> = home.into_iter().chain([top.display().to_string()]).collect();
    let mut found = Vec::new();
    for file in files {
        for place in &places {
            let lines = lines_with(&file.text, |line| line.contains(place.as_str()));
            let what = format!("{place} is this machine's: name it by a variable, or from the repository's top");
            found.extend(lines.map(|n| Violation::new(&file.path, n, what.clone())));
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    fn made(path: &str, text: &str) -> File {
        File { path: path.into(), text: text.into(), code: code::without_words(text) }
    }

    fn whats(path: &str, text: &str) -> Vec<(usize, String)> {
        file(&made(path, text)).into_iter().map(|v| (v.line, v.what)).collect()
    }

    #[test]
    fn each_rule_finds_its_line() {
        assert_eq!(whats("crates/wire/src/a.rs", "//! A.\n\nfn a() {}\n"), []);
        let starts = |path: &str, text: &str, line: usize, what: &str| {
            let found = whats(path, text);
            assert!(found.len() == 1 && found[0].0 == line && found[0].1.starts_with(what), "{text}: {found:?}");
        };
        starts("crates/wire/src/a.rs", "fn a() {}\n", 1, "begin the file");
        starts("crates/wire/src/a.rs", "//! A.\nfn a() { unsafe { b() } }\n", 2, "unsafe code");
        starts("crates/wire/src/a.rs", concat!("//! A.\n// TO", "DO: b\n"), 2, concat!("TO", "DO"));
        starts("crates/wire/src/a.rs", &format!("//! A.\n{}", "\n".repeat(MAX_LINES)), MAX_LINES + 1, "601 lines");
        assert_eq!(whats("crates/sys/src/a.rs", "//! A.\nfn a() { unsafe { b() } }\n"), []);
        assert_eq!(
            whats("crates/wire/src/a.rs", "//! A.\n// unsafe is a word here\nconst A: &str = \"unsafe\";\n"),
            []
        );
        let here = made("docs/a.md", "first\nsee /some/where/x\n");
        assert_eq!(places(Path::new("/some/where"), &[here]).first().map(|v| v.line), Some(2));
    }
}
