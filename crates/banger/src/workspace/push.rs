//! What is shipped: the files of a work tree as they are there, and a `.git` with the commit that they stand on.

use super::git::Git;
use super::pull::{TopGit, walk};
use super::stream::{Change, Commit, Entry, Kind, changes, on_disk};
use super::{Folder, LeftOut, Making, SHIPPED, names, remove};
use crate::api::Fault;
use crate::daemon::error::exit;
use rustix::fs::{FileType, Mode, OFlags, ResolveFlags};
use rustix::io::Errno;
use sha2::{Digest, Sha256};
use std::collections::BTreeSet;
use std::ffi::OsStr;
use std::fmt::Write as _;
use std::fs::{self, File, Permissions};
use std::io::{self, Read};
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};

/// The guest's files' checksums, in its `.git`, as sha256sum reads them.
pub const SUMS: &str = "banger-sums";
/// Files of an earlier push that are no more, in its `.git`; each with a NUL.
pub const GONE: &str = "banger-gone";
/// Whose the commits of the private repository are.
const NOBODY: &str = "banger <banger> 0 +0000";

/// How much of the history the guest gets.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Depth {
    /// The one commit.
    Shallow,
    /// It and all before it.
    Full,
}

/// What is to be shipped.
#[derive(Clone, Debug)]
pub struct Wanted<'a> {
    /// A directory of the work tree; all of the tree is shipped.
    pub path: &'a Path,
    /// Where in the guest, an absolute path; `None`: below root's home, under the tree's own name.
    pub to: Option<&'a str>,
    /// A new branch in the guest.
    pub branch: Option<&'a str>,
    /// The files of this commit, and not those of the work tree.
    pub from: Option<&'a str>,
    /// Files that git doesn't know, and doesn't ignore, too.
    pub include_untracked: bool,
    /// How much of the history.
    pub depth: Depth,
    /// Without permission to write.
    pub readonly: bool,
}

/// What was made ready, or shipped.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Shipped {
    /// The work tree's top here.
    pub host: PathBuf,
    /// Where it is in the guest.
    pub guest: String,
    /// The directory that was named, below the top; empty: the top.
    pub below: String,
    /// The commit that it stands on.
    pub commit: String,
    /// The branch in the guest; `None`: none is checked out here either.
    pub branch: Option<String>,
    /// How many files.
    pub files: u64,
    /// Their bytes.
    pub bytes: u64,
    /// Files that are not as in the commit.
    pub changed: u64,
    /// Files that git doesn't know, left out.
    pub untracked: u64,
    /// What else was left out.
    pub left_out: Vec<LeftOut>,
}

/// A tree that is ready to be shipped.
#[derive(Debug)]
pub struct Ready {
    making: Making,
    /// What it is.
    pub shipped: Shipped,
    /// Whether files of an earlier push are to be removed in the guest: those that `.git/`[`GONE`] names.
    pub has_gone: bool,
}

impl Ready {
    /// The folder whose content belongs to the guest's `/`.
    pub fn root(&self) -> PathBuf {
        self.making.path.join("root")
    }

    /// Remembers it as what the guest has, before the first byte is sent: until [`Ready::arrived`] the guest counts as one
    /// that has neither the old tree nor the new one.
    ///
    /// # Errors
    /// What the kernel says.
    pub fn leaves(&self, folder: &Folder) -> Result<(), Fault> {
        let (new, now) = (self.making.path.join("repository"), folder.repository());
        let failed = |error: io::Error| Fault::file("writing", &folder.cut(), &error);
        fs::write(folder.cut(), "").map_err(failed)?;
        remove(&now)?;
        fs::rename(new, &now).map_err(|error| Fault::file("making", &now, &error))
    }

    /// All of it is in the guest.
    ///
    /// # Errors
    /// What the kernel says.
    pub fn arrived(&self, folder: &Folder) -> Result<(), Fault> {
        fs::remove_file(folder.cut()).map_err(|error| Fault::file("removing", &folder.cut(), &error))
    }
}

/// Makes the tree ready in `folder`.
///
/// # Errors
/// The path is in no work tree, a commit or branch can't be, a file can't be read.
pub fn ready(wanted: &Wanted<'_>, folder: &Folder) -> Result<Ready, Fault> {
    let making = folder.making()?;
    let tree = Tree::find(wanted)?;
    let root = making.path.join("root");
    let at = root.join(tree.guest.trim_start_matches('/'));
    fs::create_dir_all(&at).map_err(|error| Fault::file("making", &at, &error))?;
    let guests = at.join(".git");
    let private = making.path.join("repository");
    tree.repository(&at, wanted.depth)?;
    let inside = Git::private(&guests, &at);
    let (entries, mut left_out, untracked) = if wanted.from.is_some() {
        inside.output(&["checkout-index", "--all", "--quiet"])?;
        (walk(&at, TopGit::Keep, &mut Vec::new())?, Vec::new(), BTreeSet::new())
    } else {
        tree.copy(&at, wanted)?
    };
    duplicate(&guests, &private)?;
    Git::neutral(&private, &tree.excluded()?)?;
    let commit = Commit { reference: SHIPPED, author: NOBODY, message: "shipped", parent: &tree.commit };
    let git = Git::private(&private, &at);
    let name = commit.of_tree(&git, &at, &entries)?;
    let differs = changes(&git, &tree.commit, &name)?;
    let changed = differs.iter().filter(|change| !untracked.contains(&change.path)).count() as u64;
    left_out.sort_by(|one, other| one.path.cmp(&other.path));
    let gone = gone(folder, &entries)?;
    let mut shipped = Shipped {
        host: tree.top,
        guest: tree.guest,
        below: tree.below,
        commit: tree.commit,
        branch: tree.branch,
        files: entries.len() as u64,
        bytes: 0,
        changed,
        untracked: if wanted.include_untracked { 0 } else { untracked.len() as u64 },
        left_out,
    };
    let (sums, bytes) = sums(&at, &entries)?;
    shipped.bytes = bytes;
    for (name, content) in [(SUMS, &sums), (GONE, &gone)] {
        let path = guests.join(name);
        fs::write(&path, content).map_err(|error| Fault::file("writing", &path, &error))?;
    }
    if wanted.readonly {
        read_only(&at, &entries)?;
    }
    Ok(Ready { making, shipped, has_gone: !gone.is_empty() })
}

/// Whether it can be: what is wrong with a path, a commit or a name is told before anything is made.
///
/// # Errors
/// As [`ready`].
pub fn check(wanted: &Wanted<'_>) -> Result<(), Fault> {
    Tree::find(wanted).map(drop)
}

/// The commit that the work tree stands on now, where the path is in one.
pub fn head(path: &Path) -> Option<String> {
    let head = Git::of_owner(path).line(&["rev-parse", "--verify", "--quiet", "HEAD^{commit}"]).ok()?;
    head.into_string().ok()
}

/// Whether the path is in a work tree.
pub fn is_work_tree(path: &Path) -> bool {
    Git::of_owner(path).line(&["rev-parse", "--is-inside-work-tree"]).is_ok_and(|said| said == "true")
}

/// A work tree of the owner's, as it is to be shipped.
struct Tree {
    git: Git,
    top: PathBuf,
    guest: String,
    below: String,
    commit: String,
    branch: Option<String>,
}

/// What is copied: the files, what was left out, and which files git doesn't know.
type Copied = (Vec<Entry>, Vec<LeftOut>, BTreeSet<Vec<u8>>);

impl Tree {
    fn find(wanted: &Wanted<'_>) -> Result<Tree, Fault> {
        let shown = wanted.path.display();
        let facts = fs::metadata(wanted.path)
            .map_err(|error| Fault::new("usage", exit::USAGE, format!("{shown} can't be shipped")).why(error))?;
        if !facts.is_dir() {
            return Err(Fault::new("usage", exit::USAGE, format!("{shown} is no directory")));
        }
        let here = Git::of_owner(wanted.path);
        let top = here.line(&["rev-parse", "--show-toplevel"]).map_err(|fault| match fault.code.as_str() {
            "no_git" => fault,
            _ => Fault::new("no_work_tree", exit::USAGE, format!("{shown} is in no git work tree"))
                .why(fault.why.unwrap_or_default())
                .fix(format!("git -C {shown} init"))
                .fix("banger vm cp takes a directory as it is"),
        })?;
        let top = PathBuf::from(top);
        let below = here.line(&["rev-parse", "--show-prefix"])?.to_string_lossy().trim_end_matches('/').to_owned();
        let git = Git::of_owner(&top);
        let reference = wanted.from.unwrap_or("HEAD");
        let commit = git
            .line(&["rev-parse", "--verify", "--quiet", "--end-of-options", &format!("{reference}^{{commit}}")])
            .map_err(|_| match wanted.from {
                Some(from) => Fault::new(
                    "no_such_commit",
                    exit::MISSING,
                    format!("{} is no commit here", wire::code::shown(from)),
                )
                .fix("git branch -a lists branches"),
                None => Fault::new("no_commit", exit::STATE, format!("{shown} has no commit yet"))
                    .fix("git commit makes the first one"),
            })?;
        let branch = match wanted.branch {
            Some(branch) => {
                git.output(&["check-ref-format", "--branch", branch]).map_err(|_| {
                    Fault::new("usage", exit::USAGE, format!("{} can't be a branch's name", wire::code::shown(branch)))
                })?;
                Some(branch.to_owned())
            }
            None => {
                git.line(&["symbolic-ref", "--quiet", "--short", "HEAD"]).ok().and_then(|name| name.into_string().ok())
            }
        };
        let guest = guest_path(wanted.to, &top)?;
        Ok(Tree { git, top, guest, below, commit: commit.to_string_lossy().into_owned(), branch })
    }

    /// Makes the guest's `.git`: the commit's objects, the branch, an index of the commit.
    fn repository(&self, at: &Path, depth: Depth) -> Result<(), Fault> {
        let dir = at.join(".git");
        let format = self.git.line(&["rev-parse", "--show-object-format"])?;
        let inside = Git::private(&dir, at);
        let init = [OsStr::new("init"), OsStr::new("--quiet"), OsStr::new("--template=")];
        let object_format = OsStr::from_bytes(&[b"--object-format=", format.as_bytes()].concat()).to_owned();
        inside.output(&[init[0], init[1], init[2], &object_format])?;
        let to = ["index-pack", "--stdin"];
        match depth {
            Depth::Shallow => {
                let listed = self.git.output(&["rev-list", "--objects", "--no-walk", &self.commit])?;
                let names: Vec<&[u8]> = listed
                    .split(|byte| *byte == b'\n')
                    .filter_map(|line| line.split(|byte| *byte == b' ').next())
                    .filter(|name| !name.is_empty())
                    .collect();
                let input = [names.join(&b'\n'), b"\n".to_vec()].concat();
                self.git.pipe(&["pack-objects", "--stdout", "-q"], &input, &inside, &to)?;
                self.write(&dir.join("shallow"), format!("{}\n", self.commit).as_bytes())?;
            }
            Depth::Full => {
                let input = format!("{}\n", self.commit);
                self.git.pipe(&["pack-objects", "--stdout", "-q", "--revs"], input.as_bytes(), &inside, &to)?;
                // Where the owner's own history ends somewhere, the guest's does too.
                let shallow = self.git.line(&["rev-parse", "--path-format=absolute", "--git-path", "shallow"])?;
                if let Ok(ends) = fs::read(Path::new(&shallow)) {
                    self.write(&dir.join("shallow"), &ends)?;
                }
            }
        }
        match &self.branch {
            Some(branch) => {
                let reference = format!("refs/heads/{branch}");
                inside.output(&["update-ref", &reference, &self.commit])?;
                inside.output(&["symbolic-ref", "HEAD", &reference])?;
            }
            None => drop(inside.output(&["update-ref", "--no-deref", "HEAD", &self.commit])?),
        }
        inside.output(&["read-tree", &self.commit])?;
        Git::neutral(&dir, b"")?;
        Ok(())
    }

    fn write(&self, path: &Path, content: &[u8]) -> Result<(), Fault> {
        fs::write(path, content).map_err(|error| Fault::file("writing", path, &error))
    }

    /// Copies the work tree's files.
    fn copy(&self, at: &Path, wanted: &Wanted<'_>) -> Result<Copied, Fault> {
        // Nothing but what stands between them may hold a NUL.
        let names = |out: Vec<u8>| -> BTreeSet<Vec<u8>> {
            out.split(|byte| *byte == 0).filter(|name| !name.is_empty()).map(<[u8]>::to_vec).collect()
        };
        let tracked = names(self.git.output(&["ls-files", "-z", "--cached"])?);
        let mut untracked = names(self.git.output(&["ls-files", "-z", "--others", "--exclude-standard"])?);
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let top = rustix::fs::open(&self.top, flags, Mode::empty())
            .map_err(|errno| Fault::file("opening", &self.top, &errno.into()))?;
        let (mut entries, mut left_out) = (Vec::new(), Vec::new());
        let mut leave = |path: &[u8], why| left_out.push(LeftOut { path: names::shown(path), why });
        let shipped = tracked.iter().chain(untracked.iter().filter(|_| wanted.include_untracked));
        for path in shipped {
            match copy(&top, path, at)? {
                Took::Entry(kind) => entries.push(Entry { path: path.clone(), kind }),
                Took::Nothing => {}
                Took::Other(why) => leave(path, why),
            }
        }
        untracked.retain(|path| !path.ends_with(b"/"));
        Ok((entries, left_out, untracked))
    }

    /// What the owner's own settings leave out, beside the tree's `.gitignore` files.
    fn excluded(&self) -> Result<Vec<u8>, Fault> {
        let own = self.git.line(&["rev-parse", "--path-format=absolute", "--git-path", "info/exclude"])?;
        let global = self.git.line(&["config", "--type=path", "--get", "core.excludesFile"]).ok().map(PathBuf::from);
        let global = global.or_else(|| {
            let config = std::env::var_os("XDG_CONFIG_HOME").map(PathBuf::from);
            let config = config.or_else(|| Some(PathBuf::from(std::env::var_os("HOME")?).join(".config")));
            Some(config?.join("git/ignore"))
        });
        let mut all = Vec::new();
        for path in [global, Some(PathBuf::from(own))].into_iter().flatten() {
            // One that isn't there excludes nothing.
            all.extend(fs::read(&path).unwrap_or_default());
            all.push(b'\n');
        }
        Ok(all)
    }
}

fn guest_path(to: Option<&str>, top: &Path) -> Result<String, Fault> {
    let own = top.file_name().map_or("work".into(), OsStr::to_string_lossy);
    let path = to.map_or_else(|| format!("/root/{own}"), str::to_owned);
    let path = path.trim_end_matches('/');
    let parts: Vec<&str> = path.split('/').skip(1).collect();
    let plain = path.starts_with('/')
        && path.len() <= 1024
        && !path.contains(char::is_control)
        && parts.iter().all(|part| !["", ".", "..", ".git"].contains(part) && part.len() <= 255);
    if plain {
        return Ok(path.to_owned());
    }
    Err(Fault::new("usage", exit::USAGE, format!("{} can't be a directory of the guest's", wire::code::shown(path)))
        .fix("--to /root/work: an absolute path without . and .."))
}

/// What became of a file that was to be copied.
enum Took {
    Entry(Kind),
    /// It isn't there: it was removed, and not yet from git.
    Nothing,
    Other(&'static str),
}

/// Copies one file of the work tree; nothing on the way to it is followed.
fn copy(top: &OwnedFd, path: &[u8], at: &Path) -> Result<Took, Fault> {
    let failed = |errno: Errno| Fault::file("reading", Path::new(OsStr::from_bytes(path)), &errno.into());
    if path.ends_with(b"/") {
        return Ok(Took::Other("another repository"));
    }
    let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS;
    let looked =
        rustix::fs::openat2(top, path, OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC, Mode::empty(), resolve);
    let found = match looked {
        Ok(found) => found,
        Err(Errno::NOENT | Errno::NOTDIR) => return Ok(Took::Nothing),
        // With NO_SYMLINKS a link itself can't be opened so: its directory can.
        Err(Errno::LOOP) => return link(top, path, at),
        Err(errno) => return Err(failed(errno)),
    };
    let stat = rustix::fs::fstat(&found).map_err(failed)?;
    match FileType::from_raw_mode(stat.st_mode) {
        FileType::RegularFile => {}
        FileType::Directory => return Ok(Took::Other("another repository")),
        FileType::Symlink => return link(top, path, at),
        _ => return Ok(Took::Other("not a file")),
    }
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let file = rustix::fs::openat2(top, path, flags, Mode::empty(), resolve).map_err(failed)?;
    let mut file = File::from(file);
    let executable = stat.st_mode & 0o100 != 0;
    let to = on_disk(at, path);
    let written = parent(&to).and_then(|()| {
        let mut new = File::create_new(&to)?;
        io::copy(&mut file, &mut new)?;
        new.set_modified(file.metadata()?.modified()?)?;
        new.set_permissions(Permissions::from_mode(if executable { 0o755 } else { 0o644 }))
    });
    written.map_err(|error| Fault::file("copying to", &to, &error))?;
    Ok(Took::Entry(Kind::File { executable }))
}

fn link(top: &OwnedFd, path: &[u8], at: &Path) -> Result<Took, Fault> {
    let failed = |errno: Errno| Fault::file("reading", Path::new(OsStr::from_bytes(path)), &errno.into());
    let (folder, name) = match path.iter().rposition(|byte| *byte == b'/') {
        Some(slash) => (&path[..slash], &path[slash + 1..]),
        None => (&b"."[..], path),
    };
    let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS;
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let folder = match rustix::fs::openat2(top, folder, flags, Mode::empty(), resolve) {
        Ok(folder) => folder,
        // A link stands where git has a directory: what it has below is gone.
        Err(Errno::LOOP | Errno::NOENT | Errno::NOTDIR) => return Ok(Took::Nothing),
        Err(errno) => return Err(failed(errno)),
    };
    let target = match rustix::fs::readlinkat(&folder, name, Vec::new()) {
        Ok(target) => target.into_bytes(),
        Err(Errno::NOENT) => return Ok(Took::Nothing),
        Err(errno) => return Err(failed(errno)),
    };
    let to = on_disk(at, path);
    let made = parent(&to).and_then(|()| symlink(OsStr::from_bytes(&target), &to));
    made.map_err(|error| Fault::file("copying to", &to, &error))?;
    Ok(Took::Entry(Kind::Link(target)))
}

fn parent(path: &Path) -> io::Result<()> {
    path.parent().map_or(Ok(()), fs::create_dir_all)
}

/// The same folder once more; what git never writes again is the same file.
fn duplicate(from: &Path, to: &Path) -> Result<(), Fault> {
    let failed = |error: io::Error| Fault::file("copying to", to, &error);
    fs::create_dir(to).map_err(failed)?;
    for entry in fs::read_dir(from).map_err(failed)? {
        let entry = entry.map_err(failed)?;
        let there = to.join(entry.file_name());
        if entry.file_type().map_err(failed)?.is_dir() {
            duplicate(&entry.path(), &there)?;
        } else if from.ends_with("pack") {
            fs::hard_link(entry.path(), &there).map_err(failed)?;
        } else {
            fs::copy(entry.path(), &there).map_err(failed)?;
        }
    }
    Ok(())
}

/// The files of an earlier push that are none of this one, each with a NUL.
fn gone(folder: &Folder, entries: &[Entry]) -> Result<Vec<u8>, Fault> {
    let before = folder.repository();
    if !before.exists() {
        return Ok(Vec::new());
    }
    let there: BTreeSet<&[u8]> = entries.iter().map(|entry| entry.path.as_slice()).collect();
    let listed = Git::private(&before, &folder.path).output(&["ls-tree", "-r", "-z", "--name-only", SHIPPED])?;
    let names = listed.split(|byte| *byte == 0).filter(|name| !name.is_empty() && !there.contains(name));
    // Not every one that reads such a list knows that a name may begin with a dash.
    Ok(names.flat_map(|name| [b"./", name, b"\0"].concat()).collect())
}

/// The files' checksums as sha256sum writes them, and how many bytes they hold.
fn sums(root: &Path, entries: &[Entry]) -> Result<(Vec<u8>, u64), Fault> {
    let (mut out, mut bytes) = (Vec::new(), 0);
    let mut buffer = vec![0; 128 << 10];
    for Entry { path, kind } in entries {
        if matches!(kind, Kind::Link(_)) {
            continue;
        }
        let at = on_disk(root, path);
        let failed = |error: io::Error| Fault::file("reading", &at, &error);
        let (mut file, mut sum) = (File::open(&at).map_err(failed)?, Sha256::new());
        loop {
            let read = file.read(&mut buffer).map_err(failed)?;
            if read == 0 {
                break;
            }
            bytes += read as u64;
            sum.update(&buffer[..read]);
        }
        let hex = sum.finalize().iter().fold(String::new(), |mut hex, byte| {
            let _ = write!(hex, "{byte:02x}");
            hex
        });
        // A name with a line's end in it is marked, and both it and the mark are escaped.
        let escaped = path.iter().any(|byte| matches!(byte, b'\n' | b'\\' | b'\r'));
        if escaped {
            out.push(b'\\');
        }
        out.extend(hex.bytes());
        out.extend(b"  ./");
        for byte in path {
            match byte {
                b'\n' => out.extend(b"\\n"),
                b'\r' => out.extend(b"\\r"),
                b'\\' => out.extend(b"\\\\"),
                other => out.push(*other),
            }
        }
        out.push(b'\n');
    }
    Ok((out, bytes))
}

fn read_only(root: &Path, entries: &[Entry]) -> Result<(), Fault> {
    for Entry { path, kind } in entries {
        let Kind::File { executable } = kind else { continue };
        let at = on_disk(root, path);
        let mode = if *executable { 0o555 } else { 0o444 };
        fs::set_permissions(&at, Permissions::from_mode(mode)).map_err(|error| Fault::file("closing", &at, &error))?;
    }
    Ok(())
}

/// Changes of the commit to what was shipped: what the owner had not committed.
pub(super) fn uncommitted(git: &Git, commit: &str) -> Result<Vec<Change>, Fault> {
    changes(git, commit, SHIPPED)
}

/// A path as a shell of the guest's reads it.
pub fn in_shell(path: &str) -> String {
    format!("'{}'", path.replace('\'', r"'\''"))
}
