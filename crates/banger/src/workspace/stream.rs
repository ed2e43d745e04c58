//! Commits, by the stream that `git fast-import` reads: files' bytes as they are, through no filter and no index.

use super::git::{Git, broken, quoted};
use super::names::shown;
use crate::api::Fault;
use crate::daemon::error::exit;
use std::fs::File;
use std::io::{self, Read, Write};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

/// What a path is in a commit.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// A file.
    File {
        /// Whether it is a program.
        executable: bool,
    },
    /// A symbolic link, and where it leads.
    Link(Vec<u8>),
}

/// A file of a tree on the disk.
#[derive(Clone, Debug)]
pub(super) struct Entry {
    /// Below the tree.
    pub(super) path: Vec<u8>,
    /// What it is.
    pub(super) kind: Kind,
}

/// One change of a commit.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Change {
    /// Which file.
    pub(super) path: Vec<u8>,
    /// Its mode and object; `None`: it is gone.
    pub(super) now: Option<(String, String)>,
}

/// A commit's frame: its reference, who made it, why, and the commit before.
#[derive(Clone, Debug)]
pub(super) struct Commit<'a> {
    /// The reference that it gets.
    pub(super) reference: &'a str,
    /// `Name <mail> seconds zone`.
    pub(super) author: &'a str,
    /// Why.
    pub(super) message: &'a str,
    /// The commit before.
    pub(super) parent: &'a str,
}

impl Commit<'_> {
    fn write(&self, out: &mut dyn Write) -> Result<(), Fault> {
        let Commit { reference, author, message, parent } = self;
        write!(
            out,
            "commit {reference}\nauthor {author}\ncommitter {author}\ndata {}\n{message}\nfrom {parent}\n",
            message.len()
        )
        .map_err(broken)
    }

    /// Makes the commit whose tree is what lies below `root`; its name.
    ///
    /// # Errors
    /// A file can't be read, or git fails.
    pub(super) fn of_tree(&self, git: &Git, root: &Path, entries: &[Entry]) -> Result<String, Fault> {
        import(git, |out| {
            self.write(out)?;
            out.write_all(b"deleteall\n").map_err(broken)?;
            entries.iter().try_for_each(|entry| whole(out, root, entry))?;
            out.write_all(b"done\n").map_err(broken)
        })?;
        self.name(git)
    }

    /// Makes the commit whose tree is `tree` with those changes; its name.
    ///
    /// # Errors
    /// Git fails.
    pub(super) fn of_changes(&self, git: &Git, tree: &str, changes: &[Change]) -> Result<String, Fault> {
        import(git, |out| {
            self.write(out)?;
            writeln!(out, "M 040000 {tree} \"\"").map_err(broken)?;
            // What goes makes room first: a directory may become a file.
            let (gone, there): (Vec<&Change>, Vec<&Change>) = changes.iter().partition(|change| change.now.is_none());
            for Change { path, now } in gone.into_iter().chain(there) {
                let path = quoted(path);
                let line = match now {
                    Some((mode, object)) => [b"M ", mode.as_bytes(), b" ", object.as_bytes(), b" "].concat(),
                    None => b"D ".to_vec(),
                };
                out.write_all(&[&line, path.as_bytes(), b"\n"].concat()).map_err(broken)?;
            }
            out.write_all(b"done\n").map_err(broken)
        })?;
        self.name(git)
    }

    fn name(&self, git: &Git) -> Result<String, Fault> {
        Ok(git.line(&["rev-parse", "--verify", self.reference])?.to_string_lossy().into_owned())
    }
}

fn import(git: &Git, write: impl FnOnce(&mut dyn Write) -> Result<(), Fault> + Send) -> Result<(), Fault> {
    git.feed(&["fast-import", "--quiet", "--done", "--force", "--date-format=raw"], write).map(drop)
}

fn whole(out: &mut dyn Write, root: &Path, entry: &Entry) -> Result<(), Fault> {
    let path = quoted(&entry.path);
    let mode = match &entry.kind {
        Kind::File { executable: true } => "100755",
        Kind::File { executable: false } => "100644",
        Kind::Link(_) => "120000",
    };
    out.write_all(&[b"M ", mode.as_bytes(), b" inline ", path.as_bytes(), b"\n"].concat()).map_err(broken)?;
    if let Kind::Link(target) = &entry.kind {
        writeln!(out, "data {}", target.len()).and_then(|()| out.write_all(target)).map_err(broken)?;
        return out.write_all(b"\n").map_err(broken);
    }
    let at = on_disk(root, &entry.path);
    let failed = |error: io::Error| Fault::file("reading", &at, &error);
    let mut file = File::open(&at).map_err(failed)?;
    let length = file.metadata().map_err(failed)?.len();
    writeln!(out, "data {length}").map_err(broken)?;
    let copied = io::copy(&mut Read::take(&mut file, length), out).map_err(broken)?;
    if copied != length {
        return Err(Fault::new("changed", exit::FAILED, format!("{} became shorter meanwhile", shown(&entry.path))));
    }
    out.write_all(b"\n").map_err(broken)
}

/// Where a path of a tree lies.
pub(super) fn on_disk(root: &Path, path: &[u8]) -> PathBuf {
    root.join(std::ffi::OsStr::from_bytes(path))
}

/// What differs between two trees, as the second has it.
///
/// # Errors
/// Git fails, or says what can't be read.
pub(super) fn changes(git: &Git, from: &str, to: &str) -> Result<Vec<Change>, Fault> {
    let how = ["diff-tree", "-r", "-z", "--raw", "--no-renames", "--no-abbrev", "--ignore-submodules=all"];
    let out = git.output(&[&how[..], &["--end-of-options", from, to]].concat())?;
    let mut fields = out.split(|byte| *byte == 0).filter(|field| !field.is_empty());
    let mut found = Vec::new();
    // `:MODE MODE OBJECT OBJECT STATUS`, then the path.
    while let (Some(what), Some(path)) = (fields.next(), fields.next()) {
        let what = String::from_utf8_lossy(what);
        let words: Vec<&str> = what.split(' ').collect();
        let [_, mode, _, object, status] = words[..] else {
            return Err(Fault::bug(format!("git diff-tree said {what:?}")));
        };
        let now = (status != "D").then(|| (mode.to_owned(), object.to_owned()));
        found.push(Change { path: path.to_vec(), now });
    }
    Ok(found)
}
