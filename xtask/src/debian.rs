//! The Debian release that this machine runs, and its own package sources.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result, bail};

use crate::programs;

/// The releases whose packages the demo was tried with.
const RELEASES: [(&str, &str); 2] = [("12", "bookworm"), ("13", "trixie")];

/// The code name of the release that `/etc/os-release` names.
pub(crate) fn release() -> Result<&'static str> {
    let text = fs::read_to_string("/etc/os-release").context("can't read /etc/os-release")?;
    release_of(&text)
}

fn release_of(os_release: &str) -> Result<&'static str> {
    let field = |name: &str| {
        let value = os_release.lines().find_map(|l| l.strip_prefix(name)?.strip_prefix('='));
        value.map_or("", |v| v.trim_matches('"'))
    };
    let version = field("VERSION_ID");
    match RELEASES.iter().find(|(number, _)| field("ID") == "debian" && *number == version) {
        Some((_, name)) => Ok(name),
        None => {
            let here = [field("PRETTY_NAME"), field("ID")].into_iter().find(|n| !n.is_empty()).unwrap_or("unknown");
            bail!("this is {here}; Debian 12 or 13 is needed: run it in a Debian VM or machine")
        }
    }
}

/// Debian's own sources of one release, as this machine has them, in the forms of `sources.list` and `.sources`. Sources of
/// others are left out: a guest needs none of them.
pub(crate) fn sources(release: &str) -> Result<(String, String)> {
    let mut files = vec![Path::new("/etc/apt/sources.list").to_owned()];
    if let Ok(entries) = fs::read_dir("/etc/apt/sources.list.d") {
        files.extend(entries.filter_map(|e| Some(e.ok()?.path())));
    }
    files.sort();
    let (mut lines, mut stanzas) = (String::new(), String::new());
    for file in files {
        let Ok(text) = fs::read_to_string(&file) else { continue };
        match file.extension().and_then(|e| e.to_str()) {
            Some("list") => one_line_sources(&text, release).for_each(|l| lines += &format!("{l}\n")),
            Some("sources") => stanza_sources(&text, release).for_each(|s| stanzas += &format!("{s}\n\n")),
            _ => {}
        }
    }
    Ok((lines, stanzas))
}

fn suites(release: &str) -> [String; 3] {
    [release.to_owned(), format!("{release}-updates"), format!("{release}-security")]
}

/// `deb [options] URI SUITE COMPONENT…`
fn one_line_sources<'a>(text: &'a str, release: &str) -> impl Iterator<Item = &'a str> {
    let suites = suites(release);
    text.lines().map(str::trim).filter(move |line| {
        let Some(rest) = line.strip_prefix("deb ") else { return false };
        let (options, rest) = match rest.trim_start().strip_prefix('[').and_then(|r| r.split_once(']')) {
            Some(parts) => parts,
            None => ("", rest),
        };
        let mut words = rest.split_whitespace().skip(1);
        let suite = words.next().unwrap_or("");
        signed_by_debian(options) && suites.iter().any(|s| s == suite) && words.any(|c| c == "main")
    })
}

/// Paragraphs of `Key: value` lines.
fn stanza_sources<'a>(text: &'a str, release: &str) -> impl Iterator<Item = String> + 'a {
    let suites = suites(release);
    let stanzas = text.split("\n\n").map(|s| {
        let lines: Vec<&str> = s.lines().filter(|l| !l.starts_with('#')).collect();
        lines.join("\n")
    });
    stanzas.filter(move |stanza| {
        let field = |name: &str| {
            let line = stanza.lines().find_map(|l| l.split_once(':').filter(|(k, _)| k.eq_ignore_ascii_case(name)));
            line.map_or("", |(_, value)| value.trim())
        };
        let all_ours = field("Suites").split_whitespace().all(|w| suites.iter().any(|s| s == w));
        let has = |name, word| field(name).split_whitespace().any(|w| w == word);
        !field("Suites").is_empty()
            && all_ours
            && has("Types", "deb")
            && has("Components", "main")
            && !field("Enabled").eq_ignore_ascii_case("no")
            && signed_by_debian(stanza)
    })
}

/// No key named, or Debian's own.
fn signed_by_debian(text: &str) -> bool {
    !text.to_ascii_lowercase().contains("signed-by") || text.contains("debian-archive-")
}

/// The machine's proxy settings for apt, as `mmdebstrap --aptopt` takes them.
pub(crate) fn proxies() -> Result<Vec<String>> {
    let settings = programs::output("apt-config", ["dump"])?;
    let proxy = |l: &&str| l.starts_with("Acquire::http::Proxy") || l.starts_with("Acquire::https::Proxy");
    Ok(settings.lines().filter(proxy).map(|l| l.trim_end_matches(';').to_owned()).collect())
}

/// Runs something that reads apt's lists; where that fails, gets the lists once and tries again.
pub(crate) fn with_lists<T>(mut attempt: impl FnMut() -> Result<T>) -> Result<T> {
    if let Ok(done) = attempt() {
        return Ok(done);
    }
    if !rustix::process::geteuid().is_root() {
        return attempt().context("apt's lists are missing or old\n  fix: sudo apt-get update");
    }
    println!("apt      its lists are missing or old: apt-get update");
    programs::output("apt-get", ["-qq", "update"])?;
    attempt()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn releases_are_told_apart() {
        assert_eq!(release_of("ID=debian\nVERSION_ID=\"12\"\n").unwrap(), "bookworm");
        assert_eq!(release_of("ID=debian\nVERSION_ID=\"13\"\n").unwrap(), "trixie");
        for other in ["ID=ubuntu\nVERSION_ID=\"12\"\n", "ID=debian\nVERSION_ID=\"11\"\n", ""] {
            assert!(release_of(other).is_err(), "{other}");
        }
    }

    #[test]
    fn only_debians_own_sources_are_taken() {
        let lines = "deb http://m/debian bookworm main contrib\ndeb [arch=amd64 signed-by=/k/other.gpg] http://x bookworm main\n\
                     # deb http://m/debian bookworm main\ndeb [arch=amd64] http://m/s bookworm-security main\n\
                     deb http://m/debian sid main\ndeb-src http://m/debian bookworm main\n";
        let taken: Vec<&str> = one_line_sources(lines, "bookworm").collect();
        assert_eq!(
            taken,
            ["deb http://m/debian bookworm main contrib", "deb [arch=amd64] http://m/s bookworm-security main"]
        );
        let stanzas = "Types: deb\n# why\nURIs: http://m/debian\nSuites: bookworm bookworm-updates\nComponents: main\n\
                       Signed-By: /usr/share/keyrings/debian-archive-keyring.gpg\n\nTypes: deb\nURIs: http://x\nSuites: nodistro\n\
                       Components: main\n\nTypes: deb\nURIs: http://y\nSuites: bookworm\nComponents: main\nSigned-By: /k/y.gpg\n";
        let taken: Vec<String> = stanza_sources(stanzas, "bookworm").collect();
        assert_eq!(taken.len(), 1, "{taken:?}");
        assert!(taken[0].contains("http://m/debian") && !taken[0].contains("# why"));
    }
}
