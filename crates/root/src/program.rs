//! Programs: which file may be run, found and checked by descriptor, so that what was checked is what runs.

mod mounts;

use crate::fail::Fail;
use crate::host::Host;
use mounts::{Forgeable, Mounts};
use rustix::fs::{FileType, Mode, OFlags};
use rustix::io::Errno;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use sys::dir::{CallError, Facts};
use wire::code::shown;
use wire::vm::Wanted;

/// A program of root's that was checked. It is executed by its descriptor.
#[derive(Debug)]
pub(crate) struct Program {
    pub(super) file: OwnedFd,
    /// Which file it is.
    pub(crate) facts: Facts,
    /// Where it was.
    pub(crate) path: String,
    /// Whether it is a script (`#!`).
    pub(crate) is_script: bool,
}

impl Program {
    /// Whether it is an ELF program that the kernel starts by itself, without a loader (elf(5), `PT_INTERP`). What can't
    /// be told isn't.
    pub(crate) fn is_static(&self) -> bool {
        const INTERPRETER: u32 = 3;
        let read = |at: u64, into: &mut [u8]| rustix::io::pread(&self.file, &mut *into, at) == Ok(into.len());
        let mut head = [0; 64];
        if !read(0, &mut head) || !head.starts_with(b"\x7fELF\x02\x01") {
            return false;
        }
        let field =
            |at: usize, length: usize| head[at..at + length].iter().rev().fold(0, |n, byte| n << 8 | u64::from(*byte));
        // Where the program headers are, the size of one, how many there are.
        let (table, size, count) = (field(32, 8), field(54, 2), field(56, 2));
        count > 0
            && (0..count).all(|nth| {
                let mut kind = [0; 4];
                let at = table.checked_add(nth * size);
                at.is_some_and(|at| read(at, &mut kind)) && u32::from_le_bytes(kind) != INTERPRETER
            })
    }
}

impl AsFd for Program {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}

/// The path of a program that is wanted by path or by name.
pub(crate) fn resolve(host: &Host, wanted: &Wanted) -> Result<String, Fail> {
    let names = [&host.settings.vmm_names[..], &host.settings.jailer_names[..]].concat();
    match wanted {
        Wanted::Path(path) => Program::open(path.as_str(), &names).map(|program| program.path),
        Wanted::Name(name) => find(&host.settings.program_dirs, name, &names),
    }
}

/// The program `name` that the helper needs for itself, in the first of `dirs` that has one. `None` where none has.
pub(crate) fn of_ours(dirs: &[String], name: &str) -> Result<Option<Program>, Fail> {
    let names = [name.to_owned()];
    for dir in dirs {
        if let Some(program) = Program::look(&format!("{dir}/{name}"), &names, Chosen::ByRoot)? {
            return Ok(Some(program));
        }
    }
    Ok(None)
}

/// A library of root's that nobody else can have written, links to it followed. `None` where it isn't that, or isn't
/// there.
pub(crate) fn library(path: &str) -> Option<OwnedFd> {
    const MOST_LINKS: usize = 8;
    let mut path = path.to_owned();
    for _ in 0..MOST_LINKS {
        let entry = walk(&path, Chosen::ByRoot).ok()?;
        let name = path.rsplit('/').next().unwrap_or("");
        let Some(target) = link_target(&entry, name).ok()? else {
            let facts = Facts::of(&entry).ok()?;
            let is_roots = facts.kind == FileType::RegularFile && facts.uid == 0 && !facts.is_writable_by_others();
            return is_roots.then_some(entry);
        };
        let dir = path.strip_suffix(name).unwrap_or("/");
        path = if target.starts_with('/') { target } else { format!("{dir}{target}") };
    }
    None
}

/// Looks for `name` in `dirs`; the first one that is there counts. `PATH` has no say: it is the starter's.
fn find(dirs: &[String], name: &str, names: &[String]) -> Result<String, Fail> {
    for dir in dirs {
        match Program::look(&format!("{dir}/{name}"), names, Chosen::ByRoot) {
            Ok(Some(program)) => return Ok(program.path),
            Ok(None) => {}
            Err(fail) => return Err(fail),
        }
    }
    let mut message = format!("there is no {} in {}", shown(name), dirs.join(", "));
    let instead = dirs.iter().map(|dir| format!("{dir}/banger-qemu"));
    match instead.into_iter().find(|path| name != "banger-qemu" && Program::open(path, names).is_ok()) {
        Some(path) => message.push_str(&format!("; {path}, which needs no KVM, is: ask for that")),
        None => message.push_str(": install it there"),
    }
    Err(Fail::new(message))
}

impl Program {
    /// Opens and checks the program at `path`, which anybody may have chosen; its name must be one of `names`.
    pub(crate) fn open(path: &str, names: &[String]) -> Result<Program, Fail> {
        let missing = || Fail::new(format!("there is no program {}: install it, or name another", shown(path)));
        Program::look(path, names, Chosen::ByAnybody)?.ok_or_else(missing)
    }

    /// The same; `None` where nothing is there.
    fn look(path: &str, names: &[String], chosen: Chosen) -> Result<Option<Program>, Fail> {
        let refuse = |why: String| Fail::new(format!("program {} {why}", shown(path)));
        let name = path.rsplit('/').next().unwrap_or("");
        if !names.iter().any(|known| known == name) {
            return Err(refuse(format!("is not one of {}: the configuration can name more", names.join(", "))));
        }
        let entry = match walk(path, chosen) {
            Ok(entry) => entry,
            Err(Stop::Missing) => return Ok(None),
            Err(Stop::Call(error)) => return Err(refuse("can't be reached".into()).because(error)),
            Err(Stop::NotRoots(dir)) => {
                return Err(refuse(format!("lies below {}, which others than root can write", shown(&dir))));
            }
            Err(Stop::Forgeable(dir)) => {
                let told = shown(&dir);
                return Err(refuse(format!("lies on the nosuid mount at {told}, where root's files may be anybody's")));
            }
        };
        let facts = Facts::of(&entry).map_err(|error| refuse("can't be looked at".into()).because(error))?;
        check(&facts).map_err(|why| refuse(why.into()))?;
        // By its descriptor: no name is looked up again.
        let again = format!("/proc/self/fd/{}", rustix::fd::AsRawFd::as_raw_fd(&entry));
        let file = rustix::fs::open(&again, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())
            .map_err(|errno| refuse("can't be read".into()).because(CallError::new("open of the descriptor", errno)))?;
        if has_capabilities(&file).map_err(|error| refuse("can't be looked at".into()).because(error))? {
            return Err(refuse("has file capabilities (getcap): it would have rights that a VMM must not".into()));
        }
        let mut start = [0; 2];
        let is_script = rustix::io::pread(&file, &mut start, 0) == Ok(2) && &start == b"#!";
        Ok(Some(Program { file, facts, path: path.to_owned(), is_script }))
    }
}

fn check(facts: &Facts) -> Result<(), &'static str> {
    if facts.kind == FileType::Symlink {
        return Err("is a symlink: name the file that it leads to");
    }
    if facts.kind != FileType::RegularFile {
        return Err("is not a regular file");
    }
    if facts.uid != 0 {
        return Err("must be root-owned");
    }
    if facts.is_writable_by_others() {
        return Err("must not be writable by group or others");
    }
    if facts.mode & 0o111 == 0 {
        return Err("is not executable");
    }
    if facts.mode & 0o6000 != 0 {
        return Err("has a set-id bit: it would change who runs it");
    }
    Ok(())
}

fn has_capabilities(file: &OwnedFd) -> Result<bool, CallError> {
    let mut value = [0u8; 64];
    match rustix::fs::fgetxattr(file, "security.capability", &mut value[..]) {
        Ok(_) | Err(Errno::RANGE) => Ok(true),
        Err(Errno::NODATA | Errno::OPNOTSUPP) => Ok(false),
        Err(errno) => Err(CallError::new("fgetxattr(security.capability)", errno)),
    }
}

/// Who chose the directory that a program is looked for in.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Chosen {
    /// The configuration. One that others can write is in the way only where the program is there.
    ByRoot,
    /// A client, or whoever runs a process: nothing below a directory of somebody else's is looked at. It may be a file
    /// system of his, whose answers are his.
    ByAnybody,
}

/// Where the way to a program ended.
enum Stop {
    Missing,
    NotRoots(String),
    /// The mount there has no set-user-ID programs: who mounted it may have chosen whose the files on it are.
    Forgeable(String),
    Call(CallError),
}

/// The entry at `path`, opened with `O_PATH` and not followed. Every directory on the way, those that links lead
/// through too (`/bin`), belongs to root and can be written by nobody else: so nobody can race this walk.
///
/// Whose a file is counts only where root alone could say so: not on a mount with `nosuid`, which users' own mounts have.
fn walk(path: &str, chosen: Chosen) -> Result<OwnedFd, Stop> {
    const MOST_LINKS: usize = 8;
    let mut links = 0;
    let mut mounts = Mounts::default();
    let mut todo: Vec<String> = parts(path);
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let root =
        rustix::fs::open("/", flags, Mode::empty()).map_err(|errno| Stop::Call(CallError::new("open(/)", errno)))?;
    let mut others: Option<String> = None;
    mounts.trust(&root).map_err(Stop::Call)?;
    let mut above = vec![directory(root, "/", &mut others)?];
    while let Some(part) = todo.pop() {
        let here = above.last().ok_or(Stop::Missing)?;
        if part == ".." {
            if above.len() > 1 {
                above.pop();
            }
            continue;
        }
        let entry = open_entry(here, &part)?;
        match mounts.check(&entry).map_err(Stop::Call)? {
            Forgeable::No => {}
            Forgeable::Yes => return Err(Stop::Forgeable(part)),
        }
        // What a link leads through is put before what is left, so this is the path's own last part.
        if todo.is_empty() {
            // Told only of what is there: where it is missing, another directory may have it.
            return others.map_or(Ok(entry), |dir| Err(Stop::NotRoots(dir)));
        }
        if let Some(target) = link_target(&entry, &part)? {
            links += 1;
            if links > MOST_LINKS {
                return Err(Stop::Call(CallError::new(format!("walk of {path:?}"), Errno::LOOP)));
            }
            if target.starts_with('/') {
                above.truncate(1);
            }
            todo.extend(parts(&target));
            continue;
        }
        above.push(directory(entry, &part, &mut others)?);
        if chosen == Chosen::ByAnybody
            && let Some(dir) = others
        {
            return Err(Stop::NotRoots(dir));
        }
    }
    Err(Stop::Missing)
}

/// The parts of a path, the last first.
fn parts(path: &str) -> Vec<String> {
    path.split('/').rev().filter(|part| !part.is_empty() && *part != ".").map(str::to_owned).collect()
}

fn open_entry(dir: &OwnedFd, name: &str) -> Result<OwnedFd, Stop> {
    let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    rustix::fs::openat(dir, name, flags, Mode::empty()).map_err(|errno| match errno {
        Errno::NOENT | Errno::NOTDIR => Stop::Missing,
        errno => Stop::Call(CallError::new(format!("openat({name:?}, O_PATH|O_NOFOLLOW)"), errno)),
    })
}

/// Where a symlink leads; `None` for anything else.
fn link_target(entry: &OwnedFd, name: &str) -> Result<Option<String>, Stop> {
    if Facts::of(entry).map_err(Stop::Call)?.kind != FileType::Symlink {
        return Ok(None);
    }
    let target = rustix::fs::readlinkat(entry, "", Vec::new())
        .map_err(|errno| Stop::Call(CallError::new(format!("readlinkat(<{name}>)"), errno)))?;
    Ok(Some(target.to_string_lossy().into_owned()))
}

/// The directory itself. Where others than root can change what is in it, its name is kept in `others`.
fn directory(dir: OwnedFd, name: &str, others: &mut Option<String>) -> Result<OwnedFd, Stop> {
    let facts = Facts::of(&dir).map_err(Stop::Call)?;
    if facts.kind != FileType::Directory {
        return Err(Stop::Missing);
    }
    if facts.uid != 0 || facts.is_writable_by_others() {
        others.get_or_insert_with(|| name.to_owned());
    }
    Ok(dir)
}
