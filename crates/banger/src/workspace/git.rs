//! Git, as a program, in two ways: on the owner's repository, and on a private one of ours.
//!
//! The owner's is only read, but for the end of a pull, and no hook, monitor or garbage collection of it is run. What a
//! guest wrote is looked at in the private one alone: it has no configuration but ours, so no filter, no text conversion
//! and no other program is named anywhere, and its own attributes overrule those of every `.gitattributes`.

use crate::api::Fault;
use crate::daemon::error::exit;
use std::ffi::{OsStr, OsString};
use std::io::{self, Read, Write};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::thread;

/// Of the owner's settings, what would run a program or speak to somebody.
const QUIET: [&str; 6] = [
    "core.hooksPath=/dev/null",
    "core.fsmonitor=false",
    "gc.auto=0",
    "maintenance.auto=false",
    "protocol.allow=never",
    "core.attributesFile=/dev/null",
];
/// Nothing is converted, whatever a tree's own attributes say.
const PLAIN: &str = "* -text -filter -ident -working-tree-encoding !diff !merge\n";
/// The most of a failed git's words.
const WORDS: u64 = 8 << 10;

/// A repository, and how git is run on it.
#[derive(Clone, Debug)]
pub(super) struct Git {
    place: Place,
    /// Objects that are somebody else's to keep.
    beside: Option<PathBuf>,
}

#[derive(Clone, Debug)]
enum Place {
    /// A directory in the owner's work tree.
    Owners(PathBuf),
    /// A repository's directory of ours, and the tree that is looked at.
    Private { dir: PathBuf, tree: PathBuf },
}

impl Git {
    /// The repository to whose work tree a directory belongs.
    pub(super) fn of_owner(directory: &Path) -> Git {
        Git { place: Place::Owners(directory.to_owned()), beside: None }
    }

    /// One of ours.
    pub(super) fn private(dir: &Path, tree: &Path) -> Git {
        Git { place: Place::Private { dir: dir.to_owned(), tree: tree.to_owned() }, beside: None }
    }

    /// The same, which finds the objects of `directory` too.
    pub(super) fn beside(self, directory: PathBuf) -> Git {
        Git { beside: Some(directory), ..self }
    }

    /// The private repository's directory; the work tree of the owner's.
    pub(super) fn dir(&self) -> &Path {
        match &self.place {
            Place::Owners(dir) | Place::Private { dir, .. } => dir,
        }
    }

    /// Has the private repository convert nothing; `exclude` is what else is not looked at, as of `info/exclude`.
    pub(super) fn neutral(dir: &Path, exclude: &[u8]) -> Result<(), Fault> {
        let info = dir.join("info");
        let written = std::fs::create_dir_all(&info)
            .and_then(|()| std::fs::write(info.join("attributes"), PLAIN))
            .and_then(|()| std::fs::write(info.join("exclude"), exclude));
        written.map_err(|error| Fault::file("writing below", &info, &error))
    }

    fn command(&self, arguments: &[&OsStr]) -> Command {
        let mut command = Command::new("git");
        for (name, _) in std::env::vars_os().filter(|(name, _)| name.as_bytes().starts_with(b"GIT_")) {
            command.env_remove(name);
        }
        match &self.place {
            Place::Owners(directory) => {
                command.arg("-C").arg(directory);
            }
            Place::Private { dir, tree } => {
                command.env("GIT_DIR", dir).env("GIT_WORK_TREE", tree).current_dir(tree).env("HOME", dir);
                command.env("GIT_CONFIG_GLOBAL", "/dev/null").env("GIT_CONFIG_SYSTEM", "/dev/null");
                command.env("GIT_CONFIG_NOSYSTEM", "1").env("GIT_ATTR_NOSYSTEM", "1").env_remove("XDG_CONFIG_HOME");
            }
        }
        if let Some(beside) = &self.beside {
            command.env("GIT_ALTERNATE_OBJECT_DIRECTORIES", quoted(beside.as_os_str().as_bytes()));
        }
        command.env("LC_ALL", "C").env("GIT_OPTIONAL_LOCKS", "0").env("GIT_TERMINAL_PROMPT", "0");
        command.env("GIT_NO_LAZY_FETCH", "1").env("GIT_LITERAL_PATHSPECS", "1");
        for setting in QUIET {
            command.args(["-c", setting]);
        }
        command.arg("--no-pager").args(arguments).stdin(Stdio::null()).stderr(Stdio::piped());
        command
    }

    /// What git wrote to its output.
    ///
    /// # Errors
    /// There is no git, or it failed: with its own words.
    pub(super) fn output<S: AsRef<OsStr>>(&self, arguments: &[S]) -> Result<Vec<u8>, Fault> {
        self.feed(arguments, |_| Ok(()))
    }

    /// The same as one line, without its end.
    ///
    /// # Errors
    /// As [`Git::output`].
    pub(super) fn line<S: AsRef<OsStr>>(&self, arguments: &[S]) -> Result<OsString, Fault> {
        let mut out = self.output(arguments)?;
        if out.last() == Some(&b'\n') {
            out.pop();
        }
        Ok(OsStr::from_bytes(&out).to_owned())
    }

    /// The same, of a git that reads what `write` gives it.
    ///
    /// # Errors
    /// As [`Git::output`]; what `write` says, where git has no complaint of its own.
    pub(super) fn feed<S: AsRef<OsStr>>(
        &self,
        arguments: &[S],
        write: impl FnOnce(&mut dyn Write) -> Result<(), Fault> + Send,
    ) -> Result<Vec<u8>, Fault> {
        let arguments: Vec<&OsStr> = arguments.iter().map(AsRef::as_ref).collect();
        let mut command = self.command(&arguments);
        let mut child = Reaped(command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().map_err(not_started)?);
        let (stdin, stdout, stderr) = (child.0.stdin.take(), child.0.stdout.take(), child.0.stderr.take());
        let (fed, out, words) = thread::scope(|scope| {
            let words = scope.spawn(|| words(stderr));
            let fed = scope.spawn(|| match stdin {
                Some(stdin) => {
                    let mut stdin = io::BufWriter::with_capacity(64 << 10, stdin);
                    write(&mut stdin).and_then(|()| stdin.flush().map_err(broken))
                }
                None => Ok(()),
            });
            let mut out = Vec::new();
            let read = stdout.map_or(Ok(0), |mut stdout| stdout.read_to_end(&mut out));
            let fed = fed.join().unwrap_or_else(|_| Err(Fault::bug("a thread that feeds git panicked")));
            (read.map_err(broken).and(fed), out, words.join().unwrap_or_default())
        });
        // Why git ended says more than that it reads no more.
        ended(&arguments, child.0.wait().map_err(broken)?, &words)?;
        fed.map(|()| out)
    }

    /// Whether git succeeds; what it says is nobody's.
    ///
    /// # Errors
    /// There is no git.
    pub(super) fn is_so<S: AsRef<OsStr>>(&self, arguments: &[S]) -> Result<bool, Fault> {
        let arguments: Vec<&OsStr> = arguments.iter().map(AsRef::as_ref).collect();
        let mut command = self.command(&arguments);
        let status = command.stdout(Stdio::null()).stderr(Stdio::null()).status().map_err(not_started)?;
        Ok(status.success())
    }

    /// Writes what git says to `to`.
    ///
    /// # Errors
    /// As [`Git::output`]; what `to` says.
    pub(super) fn write_to<S: AsRef<OsStr>>(&self, arguments: &[S], to: &mut dyn Write) -> Result<(), Fault> {
        let arguments: Vec<&OsStr> = arguments.iter().map(AsRef::as_ref).collect();
        let mut command = self.command(&arguments);
        let mut child = Reaped(command.stdout(Stdio::piped()).spawn().map_err(not_started)?);
        let (stdout, stderr) = (child.0.stdout.take(), child.0.stderr.take());
        let (copied, words) = thread::scope(|scope| {
            let words = scope.spawn(|| words(stderr));
            let copied = stdout.map_or(Ok(0), |mut stdout| io::copy(&mut stdout, to));
            (copied, words.join().unwrap_or_default())
        });
        copied.map_err(|error| Fault::new("output", exit::FAILED, "the patch could not be written").why(error))?;
        ended(&arguments, child.0.wait().map_err(broken)?, &words)
    }

    /// Gives one git what another one says.
    ///
    /// # Errors
    /// As [`Git::output`].
    pub(super) fn pipe<S: AsRef<OsStr>, T: AsRef<OsStr>>(
        &self,
        from: &[S],
        input: &[u8],
        to: &Git,
        arguments: &[T],
    ) -> Result<(), Fault> {
        let from: Vec<&OsStr> = from.iter().map(AsRef::as_ref).collect();
        let mut child = self
            .command(&from)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .map(Reaped)
            .map_err(not_started)?;
        let (stdin, stdout, stderr) = (child.0.stdin.take(), child.0.stdout.take(), child.0.stderr.take());
        let (fed, told, words) = thread::scope(|scope| {
            let words = scope.spawn(|| words(stderr));
            let fed = scope.spawn(|| stdin.map_or(Ok(()), |mut stdin| stdin.write_all(input)));
            let told = to.feed(arguments, |into| {
                stdout.map_or(Ok(0), |mut stdout| io::copy(&mut stdout, into)).map(drop).map_err(broken)
            });
            let fed = fed.join().unwrap_or_else(|_| Err(io::Error::other("a thread panicked")));
            (fed, told, words.join().unwrap_or_default())
        });
        ended(&from, child.0.wait().map_err(broken)?, &words)?;
        fed.map_err(broken)?;
        told.map(drop)
    }
}

/// A child that doesn't outlive this value.
struct Reaped(Child);

impl Drop for Reaped {
    fn drop(&mut self) {
        // Both fail only where it has ended already.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn words(from: Option<impl Read>) -> String {
    let mut said = Vec::new();
    if let Some(mut from) = from {
        let _ = from.by_ref().take(WORDS).read_to_end(&mut said);
        // Who is not read any more would wait for ever.
        let _ = io::copy(&mut from, &mut io::sink());
    }
    String::from_utf8_lossy(&said).into_owned()
}

fn ended(arguments: &[&OsStr], status: ExitStatus, words: &str) -> Result<(), Fault> {
    if status.success() {
        return Ok(());
    }
    let command = arguments.first().map(|word| word.to_string_lossy()).unwrap_or_default();
    let last: Vec<&str> = words.lines().filter(|line| !line.trim().is_empty()).take(5).collect();
    let why = if last.is_empty() { status.to_string() } else { last.join("; ") };
    Err(Fault::new("git_failed", exit::FAILED, format!("git {command} failed")).why(why))
}

fn not_started(error: io::Error) -> Fault {
    match error.kind() {
        io::ErrorKind::NotFound => Fault::new("no_git", exit::MACHINE, "there is no program git here")
            .fix("sudo apt install git")
            .fix("banger vm cp takes a directory as it is"),
        _ => Fault::new("no_git", exit::MACHINE, "git can't be started").why(error),
    }
}

pub(super) fn broken(error: io::Error) -> Fault {
    Fault::new("git_failed", exit::FAILED, "git could not be spoken to").why(error)
}

/// As git reads a path between quotes: C's escapes.
pub(super) fn quoted(path: &[u8]) -> OsString {
    let mut out = vec![b'"'];
    for byte in path {
        match byte {
            b'"' | b'\\' => out.extend([b'\\', *byte]),
            0x20..=0x7e => out.push(*byte),
            other => out.extend(format!("\\{other:03o}").bytes()),
        }
    }
    out.push(b'"');
    OsStr::from_bytes(&out).to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_quoted_path_has_no_byte_that_means_something() {
        assert_eq!(quoted(b"a b"), r#""a b""#);
        assert_eq!(quoted(b"a\n\"\\\xff:"), r#""a\012\"\\\377:""#);
    }

    #[test]
    fn a_failure_says_what_git_said() {
        let dir = tempfile::tempdir().unwrap();
        let fault = Git::of_owner(dir.path()).output(&["rev-parse", "--show-toplevel"]).unwrap_err();
        assert!(fault.message.contains("rev-parse") && fault.why.unwrap().contains("not a git repository"));
    }
}
