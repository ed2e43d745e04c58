//! What a guest made of a tree: compared with what was shipped, as a patch, a branch, or changes to the work tree here.
//!
//! All of it is hostile: names, links, modes, content, and git's own files most of all. So what came is taken apart file
//! by file into a private repository, without an index, filters or hooks; the owner's repository gets the finished
//! commits, which git checks once more on their way in (`index-pack --strict`), and the branch.

use super::git::Git;
pub use super::ignored::ignored_directories;
use super::push::uncommitted;
use super::stream::{Change, Commit, Entry, Kind, changes};
use super::{Folder, LeftOut, SHIPPED, names, remove};
use crate::api::Fault;
use crate::daemon::error::exit;
use std::collections::BTreeSet;
use std::ffi::OsStr;
use std::fs;
use std::io::{self, Write};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

/// The commit with what came back.
const PULLED: &str = "refs/banger/pulled";
/// Those that become the branch.
const MADE: &str = "refs/banger/made";

/// How much differs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Size {
    /// Files.
    pub files: u64,
    /// Lines that came; a file that is no text has none.
    pub added: u64,
    /// Lines that went.
    pub deleted: u64,
}

/// A branch that was made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Branch {
    /// Its name.
    pub name: String,
    /// Its newest commit.
    pub commit: String,
    /// Whether an earlier pull had brought all of it already.
    pub unchanged: bool,
    /// Files that hold the owner's own uncommitted changes too: those are in a commit before.
    pub own: u64,
}

/// A branch that is wanted.
#[derive(Clone, Copy, Debug)]
pub struct NewBranch<'a> {
    /// Its name.
    pub name: &'a str,
    /// The VM's, for the message.
    pub vm: &'a str,
    /// The newest commit that the last pull made, where there was one.
    pub last: Option<&'a str>,
    /// Whether a branch that holds something else is replaced.
    pub force: bool,
}

/// What came back, beside what it is compared with.
#[derive(Debug)]
pub struct Pulled {
    git: Git,
    owner: Git,
    top: PathBuf,
    /// The commit that a branch begins at.
    start: String,
    /// What it is compared with.
    before: String,
    /// What it is.
    now: String,
    /// What was not taken.
    pub left_out: Vec<LeftOut>,
}

/// Takes what came: `tree` holds it, and is changed. `top` is the owner's work tree, `commit` the one that was shipped;
/// `base` is what to compare with, in the place of what was shipped.
///
/// # Errors
/// Nothing was shipped whole, the repository here isn't the one that was, git fails.
pub fn take(folder: &Folder, tree: &Path, top: &Path, commit: &str, base: Option<&str>) -> Result<Pulled, Fault> {
    if folder.cut().exists() || !folder.repository().exists() {
        return Err(Fault::new(
            "workspace_cut",
            exit::STATE,
            "a push was cut off: what the guest has is no whole tree",
        )
        .fix("banger vm workspace push, once more"));
    }
    let owner = Git::of_owner(top);
    let objects = owner.line(&["rev-parse", "--path-format=absolute", "--git-path", "objects"]).map_err(|fault| {
        Fault::new("no_work_tree", exit::STATE, format!("{} is no git work tree any more", top.display()))
            .why(fault.why.unwrap_or_default())
    })?;
    let git = Git::private(&folder.repository(), tree).beside(PathBuf::from(objects));
    let (start, before) = match base {
        Some(base) => {
            let found =
                owner.line(&["rev-parse", "--verify", "--quiet", "--end-of-options", &format!("{base}^{{commit}}")]);
            let found = found.map_err(|_| {
                Fault::new("no_such_commit", exit::MISSING, format!("{} is no commit here", wire::code::shown(base)))
            })?;
            let found = found.to_string_lossy().into_owned();
            (found.clone(), found)
        }
        None => (commit.to_owned(), SHIPPED.to_owned()),
    };
    let mut left_out = Vec::new();
    let mut entries = walk(tree, TopGit::Remove, &mut left_out)?;
    let shipped = listed(&git.output(&["ls-tree", "-r", "-z", "--name-only", SHIPPED])?);
    let ignored = ignored(&git)?;
    entries.retain(|entry| shipped.contains(&entry.path) || !ignored.contains(&entry.path));
    let mut kept = Vec::with_capacity(entries.len());
    for entry in entries {
        match refused(&git, &entry)? {
            Some(why) => left_out.push(LeftOut { path: names::shown(&entry.path), why }),
            None => kept.push(entry),
        }
    }
    let author = format!("banger <banger> {} +0000", seconds());
    let commit = Commit { reference: PULLED, author: &author, message: "pulled", parent: SHIPPED };
    let now = commit.of_tree(&git, tree, &kept)?;
    left_out.sort_by(|one, other| one.path.cmp(&other.path));
    Ok(Pulled { git, owner, top: top.to_owned(), start, before, now, left_out })
}

impl Pulled {
    /// How much differs.
    ///
    /// # Errors
    /// Git fails.
    pub fn size(&self) -> Result<Size, Fault> {
        let out = self.git.output(&self.diff(&["--numstat", "-z"]))?;
        let mut size = Size::default();
        // `ADDED TAB DELETED TAB PATH NUL`; `-` for what is no text.
        for line in out.split(|byte| *byte == 0).filter(|line| !line.is_empty()) {
            let mut fields = line.splitn(3, |byte| *byte == b'\t');
            let mut number = || fields.next().and_then(agent::tar::field::decimal).unwrap_or(0);
            size.added += number();
            size.deleted += number();
            size.files += 1;
        }
        Ok(size)
    }

    /// Writes the difference as a patch for `git apply`. Names in it are escaped; the content is the guest's.
    ///
    /// # Errors
    /// Git fails; what `to` says.
    pub fn patch(&self, to: &mut dyn Write) -> Result<(), Fault> {
        self.git.write_to(&self.diff(&["--patch", "--binary", "--full-index"]), to)
    }

    fn diff<'a>(&'a self, how: &[&'a str]) -> Vec<&'a str> {
        let plain = [
            "--ignore-submodules=all",
            "--no-renames",
            "--no-ext-diff",
            "--no-textconv",
            "--no-color",
            "--end-of-options",
        ];
        [&["diff-tree", "-r"], how, &plain, &[self.before.as_str(), self.now.as_str()]].concat()
    }

    /// Makes a branch of the difference, or brings the one of an earlier pull up to date. Nothing that is checked out
    /// changes.
    ///
    /// # Errors
    /// `branch_taken`, `checked_out`, `base_gone`; git fails.
    pub fn branch(&self, wanted: &NewBranch<'_>) -> Result<Branch, Fault> {
        let NewBranch { name, vm, last, force } = *wanted;
        self.owner.output(&["check-ref-format", "--branch", name]).map_err(|_| {
            Fault::new("usage", exit::USAGE, format!("{} can't be a branch's name", wire::code::shown(name)))
        })?;
        let start = &self.start;
        if !self.owner.is_so(&["cat-file", "-e", &format!("{start}^{{commit}}")])? {
            return Err(Fault::new(
                "base_gone",
                exit::STATE,
                format!("the commit {start}, which was shipped, is not here any more"),
            )
            .fix("--patch FILE writes the changes to a file")
            .fix("--base REF begins at another commit"));
        }
        let reference = format!("refs/heads/{name}");
        let there = self.owner.line(&["rev-parse", "--verify", "--quiet", &reference]).ok();
        let there = there.and_then(|there| there.into_string().ok());
        if there.is_some() {
            self.is_free(&reference, name)?;
        }
        let goes_on = there.is_some() && there.as_deref() == last;
        if there.is_some() && !goes_on && !force {
            return Err(Fault::new(
                "branch_taken",
                exit::STATE,
                format!("there is a branch {name} already, with other commits"),
            )
            .fix("--branch NAME makes another one")
            .fix("--force replaces it"));
        }
        let author = self.author();
        let differs = changes(&self.git, &self.before, &self.now)?;
        let own = self.own(&differs)?;
        let tree = format!("{start}^{{tree}}");
        let tree = self.git.line(&["rev-parse", "--verify", &tree])?.to_string_lossy().into_owned();
        let mut parent = if goes_on { there.clone().unwrap_or_default() } else { start.clone() };
        if !own.is_empty() && !goes_on {
            let message = format!("Uncommitted changes, as {vm} got them\n");
            let commit = Commit { reference: MADE, author: &author, message: &message, parent: &parent };
            parent = commit.of_changes(&self.git, &tree, &own)?;
        }
        let message = format!("Changes made in the VM {vm}\n");
        let commit = Commit { reference: MADE, author: &author, message: &message, parent: &parent };
        let made = commit.of_changes(&self.git, &tree, &differs)?;
        let own = own.len() as u64;
        if goes_on && changes(&self.git, &parent, &made)?.is_empty() {
            return Ok(Branch { name: name.to_owned(), commit: parent, unchanged: true, own });
        }
        let wants = format!("{made}\n^{start}\n");
        let pack = ["pack-objects", "--revs", "--stdout", "-q"];
        self.git.pipe(&pack, wants.as_bytes(), &self.owner, &["index-pack", "--stdin", "--strict"])?;
        let none = "0".repeat(made.len());
        let why = format!("banger: pulled from {vm}");
        let update =
            ["update-ref", "--create-reflog", "-m", &why, &reference, &made, there.as_deref().unwrap_or(&none)];
        self.owner.output(&update)?;
        Ok(Branch { name: name.to_owned(), commit: made, unchanged: false, own })
    }

    /// Changes the work tree's files as the patch says: all of them, or none where one doesn't fit.
    ///
    /// # Errors
    /// `does_not_apply`, with the files that don't fit.
    pub fn apply(&self) -> Result<(), Fault> {
        // By the private repository's settings, so no filter of anybody's is run, and no index changes.
        let here = Git::private(self.git.dir(), &self.top);
        let mut patch = Vec::new();
        self.patch(&mut patch)?;
        let applied =
            here.feed(&["apply", "--whitespace=nowarn", "-"], |to| to.write_all(&patch).map_err(super::git::broken));
        applied.map(drop).map_err(|fault| {
            Fault::new(
                "does_not_apply",
                exit::STATE,
                format!("the changes don't fit the files in {}; nothing was changed", self.top.display()),
            )
            .why(fault.why.unwrap_or_default())
            .fix("without --apply they become a branch, to be merged")
        })
    }

    /// The owner's uncommitted changes to files that the guest changed too, as they were shipped.
    fn own(&self, differs: &[Change]) -> Result<Vec<Change>, Fault> {
        if self.before != SHIPPED {
            return Ok(Vec::new());
        }
        let changed: BTreeSet<&[u8]> = differs.iter().map(|change| change.path.as_slice()).collect();
        let mut own = uncommitted(&self.git, &self.start)?;
        own.retain(|change| changed.contains(change.path.as_slice()));
        Ok(own)
    }

    fn is_free(&self, reference: &str, name: &str) -> Result<(), Fault> {
        let at = self.owner.line(&["for-each-ref", "--format=%(worktreepath)", reference])?;
        if at.is_empty() {
            return Ok(());
        }
        let message = format!("the branch {name} is checked out in {}", at.to_string_lossy());
        Err(Fault::new("checked_out", exit::STATE, message).fix("--branch NAME makes another one"))
    }

    /// Who pulls, as his commits say it.
    fn author(&self) -> String {
        let known = self.owner.line(&["var", "GIT_AUTHOR_IDENT"]).ok().and_then(|known| known.into_string().ok());
        known.unwrap_or_else(|| format!("banger <banger> {} +0000", seconds()))
    }
}

/// What becomes of the `.git` at the top of a tree.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum TopGit {
    /// It is ours, and stays.
    Keep,
    /// It is a guest's, and goes before git looks at the tree.
    Remove,
}

/// The files below `root`, and nothing of git's: what else is called `.git` is removed. What can't be taken is told.
pub(super) fn walk(root: &Path, top: TopGit, left_out: &mut Vec<LeftOut>) -> Result<Vec<Entry>, Fault> {
    let (mut entries, mut folders) = (Vec::new(), vec![Vec::new()]);
    while let Some(folder) = folders.pop() {
        let at = root.join(OsStr::from_bytes(&folder));
        let failed = |error: io::Error| Fault::file("reading", &at, &error);
        for entry in fs::read_dir(&at).map_err(failed)? {
            let entry = entry.map_err(failed)?;
            let name = entry.file_name();
            let is_top = folder.is_empty() && name == ".git";
            if is_top && top == TopGit::Keep {
                continue;
            }
            let mut path = folder.clone();
            if !path.is_empty() {
                path.push(b'/');
            }
            path.extend_from_slice(name.as_bytes());
            let kind = entry.file_type().map_err(failed)?;
            if names::is_git(name.as_bytes()) {
                if kind.is_dir() {
                    remove(&entry.path())?
                } else {
                    fs::remove_file(entry.path()).map_err(failed)?
                }
                if !is_top {
                    left_out.push(LeftOut { path: names::shown(&path), why: "git's own" });
                }
            } else if kind.is_dir() {
                folders.push(path);
            } else if kind.is_symlink() {
                let target = fs::read_link(entry.path()).map_err(failed)?;
                entries.push(Entry { path, kind: Kind::Link(target.as_os_str().as_bytes().to_vec()) });
            } else if kind.is_file() {
                let mode = entry.metadata().map_err(failed)?.permissions().mode();
                if mode & 0o400 == 0 {
                    fs::set_permissions(entry.path(), fs::Permissions::from_mode(mode | 0o600)).map_err(failed)?;
                }
                entries.push(Entry { path, kind: Kind::File { executable: mode & 0o100 != 0 } });
            } else {
                left_out.push(LeftOut { path: names::shown(&path), why: "not a file" });
            }
        }
    }
    entries.sort_by(|one, other| one.path.cmp(&other.path));
    Ok(entries)
}

/// What of the private repository's tree its `.gitignore` files leave out.
fn ignored(git: &Git) -> Result<BTreeSet<Vec<u8>>, Fault> {
    let ignored = ["ls-files", "-z", "--others", "--ignored", "--exclude-standard"];
    Ok(listed(&git.output(&ignored)?))
}

/// Why a file is not taken. A link that leads out comes back where it was shipped so: it is the owner's own.
fn refused(git: &Git, entry: &Entry) -> Result<Option<&'static str>, Fault> {
    let Kind::Link(target) = &entry.kind else { return Ok(names::refused(&entry.path, None)) };
    let Some(why) = names::refused(&entry.path, Some(target)) else { return Ok(None) };
    let shipped = [SHIPPED.as_bytes(), b":", &entry.path].concat();
    let shipped = git.output(&[OsStr::new("cat-file"), OsStr::new("blob"), OsStr::from_bytes(&shipped)]);
    Ok((shipped.ok().as_ref() != Some(target)).then_some(why))
}

fn listed(out: &[u8]) -> BTreeSet<Vec<u8>> {
    out.split(|byte| *byte == 0).filter(|name| !name.is_empty()).map(<[u8]>::to_vec).collect()
}

fn seconds() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs()
}
