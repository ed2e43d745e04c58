//! Debian as this machine knows it: its release, its own package sources, and packages fetched as apt verifies them, in a
//! folder of ours. Neither the machine's lists nor its packages change, and no root is needed.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use super::error::{Error, Kind};
use super::program;
use super::progress::Watch;

/// The releases whose packages were tried: number, code name.
pub const RELEASES: [(&str, &str); 2] = [("12", "bookworm"), ("13", "trixie")];

/// The code name of the release that `/etc/os-release` names.
///
/// # Errors
/// This machine is no such Debian.
pub fn release() -> Result<&'static str, Error> {
    let path = Path::new("/etc/os-release");
    release_of(&fs::read_to_string(path).map_err(|cause| Error::file("read", path, &cause))?)
}

fn release_of(os_release: &str) -> Result<&'static str, Error> {
    let field = |name: &str| {
        let value = os_release.lines().find_map(|l| l.strip_prefix(name)?.strip_prefix('='));
        value.map_or("", |v| v.trim_matches('"'))
    };
    let version = field("VERSION_ID");
    match RELEASES.iter().find(|(number, _)| field("ID") == "debian" && *number == version) {
        Some((_, name)) => Ok(name),
        None => {
            let here = [field("PRETTY_NAME"), field("ID")].into_iter().find(|n| !n.is_empty()).unwrap_or("unknown");
            Err(Error::new(Kind::Machine, format!("this is {here}; Debian 12 or 13 is needed"))
                .fix("run it in a Debian VM or machine"))
        }
    }
}

/// Debian's own sources of one release, as this machine has them, in the forms of `sources.list` and `.sources`. Sources of
/// others are left out: a guest needs none of them.
pub fn sources(release: &str) -> Sources {
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
    Sources { lines, stanzas }
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

/// The machine's proxy settings for apt, as lines of its configuration: `Acquire::http::Proxy "http://…";`.
///
/// # Errors
/// There is no apt here.
pub fn proxies() -> Result<Vec<String>, Error> {
    let settings = program::output(Command::new("apt-config").arg("dump"))?;
    let proxy = |l: &&str| l.starts_with("Acquire::http::Proxy") || l.starts_with("Acquire::https::Proxy");
    Ok(settings.lines().filter(proxy).map(str::to_owned).collect())
}

/// Package sources in apt's two forms.
#[derive(Debug)]
pub struct Sources {
    /// As in `sources.list`.
    pub lines: String,
    /// As in a `.sources` file.
    pub stanzas: String,
}

impl Sources {
    /// Writes them into a folder, as `debian.list` and `debian.sources`; the files that there are then.
    ///
    /// # Errors
    /// What the kernel says.
    pub fn write_to(&self, folder: &Path) -> Result<Vec<PathBuf>, Error> {
        let mut files = Vec::new();
        for (name, text) in [("debian.list", &self.lines), ("debian.sources", &self.stanzas)] {
            if !text.is_empty() {
                let file = folder.join(name);
                fs::write(&file, text).map_err(|cause| Error::file("write", &file, &cause))?;
                files.push(file);
            }
        }
        Ok(files)
    }

    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.lines.is_empty() && self.stanzas.is_empty()
    }

    /// The first mirror that they name.
    #[must_use]
    pub fn mirror(&self) -> Option<&str> {
        let is_uri = |word: &&str| word.contains("://");
        let stanza = self.stanzas.lines().find_map(|line| line.strip_prefix("URIs:")?.split_whitespace().find(is_uri));
        stanza.or_else(|| self.lines.split_whitespace().find(is_uri))
    }
}

/// What the mirror did not give, in words.
pub(crate) fn no_mirror(cause: Error) -> Error {
    match cause.kind {
        Kind::Program => Error { what: "Debian's packages can't be fetched".into(), kind: Kind::Mirror, ..cause }
            .fix("see whether the mirror in /etc/apt answers: sudo apt-get update"),
        _ => cause,
    }
}

/// An apt of ours: the machine's sources, proxies and keys, its own lists and nothing else of the machine's settings.
pub(crate) struct Apt {
    folder: PathBuf,
}

impl Apt {
    /// Makes it in an empty folder, and fetches the lists of one release.
    pub(crate) fn new(folder: &Path, release: &str, watch: &dyn Watch) -> Result<Apt, Error> {
        let sources = sources(release);
        if sources.is_empty() {
            return Err(Error::new(Kind::Machine, format!("/etc/apt names no source of Debian {release}"))
                .fix("add Debian's own to /etc/apt/sources.list.d"));
        }
        let parts = ["parts", "state/lists/partial", "cache/archives/partial", "none"];
        for part in parts.map(|part| folder.join(part)) {
            fs::create_dir_all(&part).map_err(|cause| Error::file("make", &part, &cause))?;
        }
        sources.write_to(&folder.join("parts"))?;
        let write = |name: &str, text: &str| {
            let file = folder.join(name);
            fs::write(&file, text).map_err(|cause| Error::file("write", &file, &cause))
        };
        write("status", "")?;
        let at = folder.display();
        // The user that apt takes for fetching, where root calls it, can't enter a folder of ours.
        let settings = format!(
            "Dir::Etc::main \"/dev/null\";\nDir::Etc::parts \"{at}/none\";\nDir::Etc::sourcelist \"/dev/null\";\n\
             Dir::Etc::sourceparts \"{at}/parts\";\nDir::State \"{at}/state\";\nDir::State::status \"{at}/status\";\n\
             Dir::Cache \"{at}/cache\";\nAcquire::Languages \"none\";\nAPT::Sandbox::User \"root\";\n"
        );
        write("apt.conf", &(settings + &proxies()?.join("\n") + "\n"))?;
        let apt = Apt { folder: folder.to_owned() };
        program::watched(apt.command("apt-get").args(["-qq", "--error-on=any", "update"]), watch, |_| {})
            .map_err(no_mirror)?;
        Ok(apt)
    }

    /// The package that `package` of these sources depends on and whose name begins with `prefix`.
    pub(crate) fn behind(&self, package: &str, prefix: &str) -> Result<String, Error> {
        let shown = program::output(self.command("apt-cache").args(["--no-all-versions", "show", package]))
            .map_err(no_mirror)?;
        let depends = shown.lines().find_map(|line| line.strip_prefix("Depends: ")).unwrap_or_default();
        let found = depends.split([' ', ',']).find(|name| name.starts_with(prefix)).map(str::to_owned);
        found.ok_or_else(|| Error::new(Kind::Mirror, format!("apt knows no {prefix}… behind {package}")))
    }

    /// Fetches a package, verified against the signed lists, and unpacks it into an empty folder; nothing is installed.
    pub(crate) fn unpack(&self, package: &str, into: &Path, watch: &dyn Watch) -> Result<(), Error> {
        let archives = self.folder.join("cache/archives");
        let mut download = self.command("apt-get");
        download.args(["-qq", "download", package]).current_dir(&archives);
        program::watched(&mut download, watch, |_| {}).map_err(no_mirror)?;
        let failed = |cause| Error::file("read", &archives, &cause);
        let entries = fs::read_dir(&archives).map_err(failed)?.collect::<Result<Vec<_>, _>>().map_err(failed)?;
        let fetched = entries.iter().map(fs::DirEntry::path).find(|p| p.extension().is_some_and(|e| e == "deb"));
        let fetched = fetched.ok_or_else(|| Error::new(Kind::Mirror, "apt downloaded nothing"))?;
        let mut extract = program::bound("dpkg-deb");
        program::watched(extract.arg("--extract").arg(fetched).arg(into), watch, |_| {})
    }

    fn command(&self, program: &str) -> Command {
        let mut command = program::bound(program);
        command.env("APT_CONFIG", self.folder.join("apt.conf"));
        command
    }
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
