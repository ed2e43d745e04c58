//! The ends of a copy: which side a path is on, what it means there, and what can't be.

use super::Cp;
use super::words::no_file;
use crate::cli::output;
use crate::cli::problem::Problem;
use agent::copy::Source;
use std::ffi::{OsStr, OsString};
use std::fs::{self, File};
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

/// Where a relative path in a guest begins.
const HOME: &str = "/root";

/// One end of a copy.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum End {
    Here(PathBuf),
    Guest {
        vm: String,
        /// Absolute.
        path: String,
    },
    /// A tar on a standard stream.
    Stream,
}

/// Reads an argument: `-`, `NAME:PATH`, else a path here. What has a `/` before its `:` is one here.
pub(super) fn end(text: &OsStr) -> Result<End, Problem> {
    let bytes = text.as_bytes();
    if bytes == b"-" {
        return Ok(End::Stream);
    }
    let is_name = |byte: &u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || *byte == b'-';
    let colon = bytes.iter().position(|byte| *byte == b':').filter(|at| *at > 0 && bytes[..*at].iter().all(is_name));
    let Some(at) = colon else {
        return match bytes.is_empty() {
            true => Err(Problem::usage("a path has a name")),
            false => Ok(End::Here(text.into())),
        };
    };
    let read = |bytes: &[u8]| std::str::from_utf8(bytes).map(str::to_owned);
    let (Ok(vm), Ok(path)) = (read(&bytes[..at]), read(&bytes[at + 1..])) else {
        return Err(Problem::usage("a path in a VM is UTF-8: copy its directory, or a tar on -"));
    };
    let path = match path.as_str() {
        "" => HOME.to_owned(),
        absolute if absolute.starts_with('/') => absolute.to_owned(),
        relative => format!("{HOME}/{relative}"),
    };
    Ok(End::Guest { vm, path })
}

/// What can't be is refused before anything is begun.
pub(super) fn check(cp: &Cp, from: &[End], to: &End) -> Result<(), Problem> {
    let has = |wanted: fn(&End) -> bool| from.iter().any(wanted);
    let is_guest = |end: &End| matches!(end, End::Guest { .. });
    if !is_guest(to) && !from.iter().all(is_guest) {
        return Err(Problem::usage("one side of a copy is a VM's: NAME:PATH").fix("banger vm cp FILE web:/root/"));
    }
    if has(|end| *end == End::Stream) && from.len() > 1 {
        return Err(Problem::usage("a tar on standard input is copied alone"));
    }
    if *to == End::Stream && from.len() > 1 {
        return Err(Problem::usage("one tar on standard output has one source"));
    }
    if *to == End::Stream && output::on_terminal() {
        return Err(Problem::usage("a tar is nothing for a terminal").fix("banger vm cp web:/root - | tar tv"));
    }
    if cp.owner.is_some() && !is_guest(to) {
        return Err(Problem::usage("--owner is for files that go into a VM: here they become yours"));
    }
    for path in from.iter().filter_map(|end| if let End::Here(path) = end { Some(path) } else { None }) {
        fs::symlink_metadata(path).map_err(|error| no_file(&path.display().to_string(), &error))?;
    }
    Ok(())
}

/// Where what comes out of a guest is made.
pub(super) struct Place {
    pub(super) folder: OwnedFd,
    /// The name that it gets there; `None`: a directory's content has names of its own.
    pub(super) top: Option<Vec<u8>>,
    /// The directory, where it was made for this.
    pub(super) made: Option<PathBuf>,
}

impl Place {
    /// For `from`, a path in a guest, in the place of `to`, or in it where it is a directory, as it has to be for `into`.
    pub(super) fn find(to: &Path, from: &Path, contents: bool, into: bool) -> Result<Place, Problem> {
        let failed = |error| no_file(&to.display().to_string(), &error);
        let open = |path: &Path| File::open(path).map(OwnedFd::from).map_err(failed);
        let is_dir = match fs::metadata(to) {
            Ok(there) => Some(there.is_dir()),
            Err(error) if error.kind() == io::ErrorKind::NotFound => None,
            Err(error) => return Err(failed(error)),
        };
        let own = from.file_name().map(|name| name.as_bytes().to_vec());
        match is_dir {
            Some(true) => Ok(Place { folder: open(to)?, top: own.filter(|_| !contents), made: None }),
            Some(false) if into || contents => Err(failed(io::ErrorKind::NotADirectory.into())),
            None if into => Err(failed(io::ErrorKind::NotFound.into())),
            None if contents => {
                fs::create_dir(to).map_err(failed)?;
                Ok(Place { folder: open(to)?, top: None, made: Some(to.to_owned()) })
            }
            _ => {
                let folder = to.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
                let name = to.file_name().ok_or_else(|| failed(io::ErrorKind::NotFound.into()))?;
                Ok(Place { folder: open(folder)?, top: Some(name.as_bytes().to_vec()), made: None })
            }
        }
    }
}

/// Whether a path means what is in a directory, and not the directory.
pub(super) fn is_contents(path: &OsStr) -> bool {
    let path = path.as_bytes();
    matches!(path, b"." | b".." | b"/") || path.ends_with(b"/.") || path.ends_with(b"/..")
}

/// A source here; `top` is the name of what has none of its own.
pub(super) fn source(path: &Path, top: &[u8]) -> Source {
    let mut inside = OsString::from(path);
    match path.file_name() {
        Some(name) if !is_contents(path.as_os_str()) => Source { path: inside, name: name.as_bytes().to_vec() },
        _ => {
            inside.push("/.");
            Source { path: inside, name: top.to_vec() }
        }
    }
}

/// A guest's path: its directory, and its name there.
pub(super) fn split(path: &str) -> Option<(&str, &str)> {
    let path = path.trim_end_matches('/');
    let (folder, name) = path.rsplit_once('/')?;
    (!matches!(name, "" | "." | "..")).then_some((if folder.is_empty() { "/" } else { folder }, name))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn guest(vm: &str, path: &str) -> End {
        End::Guest { vm: vm.into(), path: path.into() }
    }

    #[test]
    fn which_side_a_path_is_on() {
        let read = |text: &str| end(OsStr::new(text)).unwrap();
        assert_eq!(read("-"), End::Stream);
        assert_eq!(read("web:/etc/hosts"), guest("web", "/etc/hosts"));
        assert_eq!(read("web:proj/"), guest("web", "/root/proj/"));
        assert_eq!(read("web:"), guest("web", "/root"));
        assert_eq!(read("7f3a:/a:b"), guest("7f3a", "/a:b"));
        for here in ["a", "./a:b", "/x/a:b", ":a", "Web:/x", "a b:c", "./-"] {
            assert_eq!(read(here), End::Here(here.into()), "{here}");
        }
        assert!(end(OsStr::new("")).is_err() && end(OsStr::from_bytes(b"web:\xff")).is_err());
    }

    #[test]
    pub(super) fn sources_have_the_names_that_cp_gives_them() {
        for (path, name) in [("a/b", "b"), ("a/b/", "b"), ("/x", "x"), ("a/.", ""), (".", ""), ("..", ""), ("/", "")] {
            assert_eq!(String::from_utf8(source(Path::new(path), b"").name).unwrap(), name, "{path}");
            assert_eq!(is_contents(OsStr::new(path)), name.is_empty(), "{path}");
        }
        assert_eq!(source(Path::new("a/."), b"top").name, b"top");
        for (path, want) in [("/a/b", ("/a", "b")), ("/a/", ("/", "a")), ("/a/b//", ("/a", "b"))] {
            assert_eq!(split(path), Some(want), "{path}");
        }
        assert_eq!([split("/"), split("/a/.."), split("/a/.")], [None; 3]);
    }
}
