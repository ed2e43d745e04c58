//! `ssh-config`: has ssh itself, and what is built on it, know the names of VMs, by one Include in the user's own settings.

use super::init::account::Account;
use super::output;
use super::problem::Problem;
use super::reach::Reach;
use crate::api::Request;
use crate::api::ssh::Config;
use clap::Args;
use std::fs::{self, DirBuilder, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

/// The line above the Include, by which it is found again.
const MARK: &str = "# banger's VMs: banger ssh-config --uninstall takes this line and the next away";
/// The same, where there was no file before.
const MADE: &str = "# banger's VMs: banger ssh-config --uninstall takes this file away";

#[derive(Args)]
#[group(id = "what", required = true, multiple = false, args = ["install", "uninstall", "print"])]
pub(super) struct SshConfig {
    /// Include the settings for *.vm in ~/.ssh/config.
    #[arg(long)]
    install: bool,
    /// Undo that.
    #[arg(long)]
    uninstall: bool,
    /// Print the settings.
    #[arg(long)]
    print: bool,
    /// Say what would be changed; change nothing.
    #[arg(long, conflicts_with = "print")]
    dry_run: bool,
    #[command(flatten)]
    reach: Reach,
}

pub(super) fn run(wanted: &SshConfig) -> Result<(), Problem> {
    if wanted.uninstall {
        let file = UserFile::of_user()?;
        let after = without(&file.before);
        return file.change(after, wanted.dry_run, "includes banger's VMs no more", "doesn't include banger's VMs");
    }
    let Config { config } = wanted.reach.ask(Request::SshConfig {})?;
    if wanted.print {
        let text = fs::read_to_string(&config)
            .map_err(|error| Problem::new("file", format!("{} can't be read", config.display())).why(error))?;
        return output::data(&text);
    }
    let file = UserFile::of_user()?;
    let after = with(&file.before, &config);
    file.change(Some(after), wanted.dry_run, "includes banger's VMs: ssh NAME.vm", "includes banger's VMs already")
}

/// The user's settings, as they were found; `None`: there is no such file.
struct UserFile {
    path: PathBuf,
    before: Option<Vec<u8>>,
}

impl UserFile {
    fn of_user() -> Result<UserFile, Problem> {
        let home = Account::own_home().ok_or_else(|| Problem::new("no_home", "this user has no home directory"))?;
        let path = home.join(".ssh/config");
        // Where it is a link to a file that is kept elsewhere, that one is changed.
        let path = fs::canonicalize(&path).unwrap_or(path);
        match fs::read(&path) {
            Ok(before) => Ok(UserFile { path, before: Some(before) }),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(UserFile { path, before: None }),
            Err(error) => Err(Problem::new("file", format!("{} can't be read", path.display())).why(error)),
        }
    }

    /// Makes it what it is to be, as a whole or not at all, and says so.
    fn change(self, after: Option<Vec<u8>>, dry_run: bool, done: &str, already: &str) -> Result<(), Problem> {
        let path = self.path.display();
        let bytes =
            |text: &Option<Vec<u8>>| text.as_ref().map_or("no file".to_owned(), |text| format!("{} bytes", text.len()));
        let (would, said) = match self.before == after {
            true => (String::new(), already),
            false if dry_run => {
                (format!("would be changed, from {} to {}: ", bytes(&self.before), bytes(&after)), done)
            }
            false => (String::new(), done),
        };
        if self.before != after && !dry_run {
            let changed = match &after {
                Some(text) => self.write(text),
                None => fs::remove_file(&self.path),
            };
            changed.map_err(|error| Problem::new("file", format!("{path} can't be changed")).why(error))?;
        }
        output::ours(&format!("{path}: {would}{said}\n"));
        Ok(())
    }

    fn write(&self, text: &[u8]) -> io::Result<()> {
        let dir = self.path.parent().unwrap_or(Path::new("/"));
        match DirBuilder::new().mode(0o700).create(dir) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error),
            _ => {}
        }
        let mode = fs::metadata(&self.path).map_or(0o600, |facts| facts.mode() & 0o777);
        let new = dir.join(format!(".banger-{}", std::process::id()));
        let made = OpenOptions::new().write(true).create_new(true).mode(mode).open(&new);
        let written = made.and_then(|mut file| file.write_all(text).and_then(|()| file.sync_all()));
        written.and_then(|()| fs::rename(&new, &self.path)).inspect_err(|_| drop(fs::remove_file(&new)))
    }
}

/// The text with the Include before all else, where it holds for every host; one that was there before is replaced.
fn with(before: &Option<Vec<u8>>, config: &Path) -> Vec<u8> {
    let rest = without(before);
    let mark = if rest.is_some() { MARK } else { MADE };
    let mut out = format!("{mark}\nInclude \"{}\"\n", config.display()).into_bytes();
    out.extend(rest.unwrap_or_default());
    out
}

/// The text without it, to the byte; `None` where there was no file.
fn without(before: &Option<Vec<u8>>) -> Option<Vec<u8>> {
    let text = before.as_deref()?;
    let lines: Vec<&[u8]> = text.split_inclusive(|byte| *byte == b'\n').collect();
    let is = |line: &[u8], mark: &str| line.strip_suffix(b"\n") == Some(mark.as_bytes());
    let Some(at) = lines.iter().position(|line| is(line, MARK) || is(line, MADE)) else { return Some(text.to_vec()) };
    let is_include = lines.get(at + 1).is_some_and(|line| line.starts_with(b"Include "));
    let rest = [&lines[..at], &lines[at + if is_include { 2 } else { 1 }..]].concat().concat();
    (!rest.is_empty() || is(lines[at], MARK)).then_some(rest)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn what_was_installed_is_taken_away_to_the_byte(text in proptest::option::of("(Host a\n|  User b\n|\n|# c|\r\n|Include d\n){0,6}")) {
            let before = text.map(String::into_bytes);
            let once = with(&before, Path::new("/s/ssh/config"));
            let twice = with(&Some(once.clone()), Path::new("/s/ssh/config"));
            prop_assert_eq!(&once, &twice);
            let elsewhere = with(&Some(once), Path::new("/other"));
            prop_assert!(!String::from_utf8_lossy(&elsewhere).contains("/s/ssh/config"));
            prop_assert_eq!(without(&Some(elsewhere)), before);
        }
    }

    #[test]
    fn what_the_user_wrote_around_it_stays() {
        let installed = with(&Some(b"Host a\n".to_vec()), Path::new("/x"));
        let edited = [b"# mine\n", &installed[..], b"Host b\n"].concat();
        assert_eq!(without(&Some(edited)).unwrap(), b"# mine\nHost a\nHost b\n");
        // His own file in the place of ours is his.
        let added = [&with(&None, Path::new("/x"))[..], b"Host c\n"].concat();
        assert_eq!(without(&Some(added)).unwrap(), b"Host c\n");
        assert_eq!(without(&Some(with(&None, Path::new("/x")))), None);
    }
}
