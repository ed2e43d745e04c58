//! `banger explain`: what an error code means, and what to do; the pages are docs/errors.md's sections.

use super::output;
use super::problem::Problem;
use crate::near;
use clap::Args;

const PAGES: &str = include_str!("../../../../docs/errors.md");
const MARK: &str = "\n## `";

#[derive(Args)]
pub(crate) struct Explain {
    /// The code, as it stands in brackets behind `error`; none: all of them are listed.
    code: Option<String>,
}

/// Prints a page, or the codes.
pub(crate) fn explain(wanted: &Explain) -> Result<(), Problem> {
    match &wanted.code {
        None => output::data(&pages().map(|(code, _)| format!("{code}\n")).collect::<String>()),
        Some(code) => output::data(&format!("{}\n", page(code)?)),
    }
}

fn page(code: &str) -> Result<&'static str, Problem> {
    // As it stands in a line that was copied: error[no_vmm].
    let code = code.trim_start_matches("error").trim_start_matches('[').trim_end_matches([':', ']']);
    pages().find(|(known, _)| *known == code).map(|(_, page)| page).ok_or_else(|| {
        let problem = Problem::missing("no_such_code", format!("there is no error code {}", wire::code::shown(code)));
        match near::nearest(code, pages().map(|(code, _)| code)) {
            Some(near) => problem.fix(format!("{near} is close; banger explain lists them all")),
            None => problem.fix("banger explain lists them all"),
        }
    })
}

/// The codes that have a page.
pub(crate) fn codes() -> impl Iterator<Item = &'static str> {
    pages().map(|(code, _)| code)
}

/// Each code with its page.
fn pages() -> impl Iterator<Item = (&'static str, &'static str)> {
    PAGES.split(MARK).skip(1).filter_map(|section| {
        let (code, page) = section.split_once("`\n")?;
        Some((code, page.trim_end()))
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::image::error::Kind;
    use std::collections::BTreeSet;
    use std::fs;
    use std::path::Path;
    use wire::Code;

    /// The code of every failure that is made in the sources below `dir`, tests left out.
    fn made(dir: &Path, found: &mut BTreeSet<String>) {
        for entry in fs::read_dir(dir).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                made(&path, found);
                continue;
            }
            let text = fs::read_to_string(&path).unwrap();
            let text = text.split("#[cfg(test)]").next().unwrap();
            for call in
                ["Fault::new(", "Problem::new(", "Problem::machine(", "Problem::missing(", "let (code, exit) = "]
            {
                for rest in text.split(call).skip(1) {
                    // A code is a literal, or one of two behind a condition.
                    let rest = if call.starts_with("let") {
                        rest.split(';').next().unwrap()
                    } else {
                        rest.split(',').next().unwrap()
                    };
                    let words = rest.split('"').skip(1).step_by(2);
                    found.extend(words.map(str::to_owned));
                }
            }
        }
    }

    #[test]
    fn every_code_has_a_page_and_every_page_a_code() {
        let mut codes = BTreeSet::new();
        made(&Path::new(env!("CARGO_MANIFEST_DIR")).join("src"), &mut codes);
        assert!(codes.len() > 80 && codes.contains("no_vmm") && codes.contains("no_such_file"), "{codes:?}");
        codes.extend(Code::ALL.map(|code| code.as_str().to_owned()));
        codes.extend(Kind::ALL.map(|kind| kind.code().to_owned()));
        codes.extend(["dropped", "queued", "no_route", "not_forwarded", "lost", "usage"].map(str::to_owned));
        codes.extend(["no_such_image", "no_such_kernel"].map(str::to_owned));
        let pages: BTreeSet<String> = pages().map(|(code, _)| code.to_owned()).collect();
        let missing: Vec<&String> = codes.difference(&pages).collect();
        let idle: Vec<&String> = pages.difference(&codes).collect();
        assert!(missing.is_empty() && idle.is_empty(), "no page: {missing:?}; no code: {idle:?}");
    }

    #[test]
    fn a_page_is_found_as_it_is_copied() {
        assert!(page("error[no_vmm]:").unwrap().starts_with("This machine can't start a VM"));
        assert!(page("no_vm").unwrap_err().to_string().contains("no_vmm is close"));
        assert!(pages().all(|(_, page)| page.lines().all(|line| !line.starts_with('#')) && page.len() > 20));
    }
}
