//! A file that gets its name when it is whole: whoever looks sees what was there before, or all of the new one.

use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, CWD, FileType, Mode, OFlags};

/// A file without its name.
#[derive(Debug)]
pub(crate) struct Draft {
    pub(crate) file: File,
    dir: OwnedFd,
    /// Under which it lies meanwhile, where the file system has no files without a name.
    lies_at: Option<PathBuf>,
    name: PathBuf,
}

impl Draft {
    /// Begins one that is to be `path`. A link there is followed; anything else than a regular file is refused.
    ///
    /// # Errors
    /// What opening says.
    pub(crate) fn begin(path: &Path) -> io::Result<Self> {
        let path = match std::fs::metadata(path) {
            Ok(seen) if seen.is_file() => std::fs::canonicalize(path)?,
            Ok(_) => return Err(io::Error::other("there is something that is no regular file")),
            Err(error) if error.kind() == io::ErrorKind::NotFound => std::path::absolute(path)?,
            Err(error) => return Err(error),
        };
        let name = path.file_name().ok_or_else(|| io::Error::other("not a file's path"))?;
        let parent = path.parent().ok_or_else(|| io::Error::other("not a file's path"))?;
        let flags = OFlags::DIRECTORY | OFlags::CLOEXEC;
        let dir = rustix::fs::openat(CWD, parent, flags | OFlags::RDONLY, Mode::empty())?;
        let mode = Mode::from_raw_mode(0o600);
        // One without a name gets it by way of `/proc`.
        let nameless = match crate::memory::names_descriptors() {
            true => rustix::fs::openat(&dir, ".", OFlags::TMPFILE | OFlags::RDWR | OFlags::CLOEXEC, mode),
            false => Err(rustix::io::Errno::OPNOTSUPP),
        };
        let (file, lies_at) = match nameless {
            Ok(file) => (file, None),
            Err(rustix::io::Errno::OPNOTSUPP | rustix::io::Errno::ISDIR) => {
                let at = beside(name)?;
                let flags = OFlags::CREATE | OFlags::EXCL | OFlags::RDWR | OFlags::CLOEXEC;
                (rustix::fs::openat(&dir, &at, flags, mode)?, Some(at))
            }
            Err(error) => return Err(error.into()),
        };
        Ok(Self { file: file.into(), dir, lies_at, name: name.into() })
    }

    /// Makes sure that it is on the disk.
    ///
    /// # Errors
    /// What the disk says.
    pub(crate) fn sync(&self) -> io::Result<()> {
        self.file.sync_all()
    }

    /// Gives it its name; what had it before is gone.
    ///
    /// # Errors
    /// What naming says.
    pub(crate) fn name(mut self) -> io::Result<()> {
        let at = match self.lies_at.take() {
            Some(at) => at,
            None => {
                let at = beside(self.name.as_os_str())?;
                let own = format!("/proc/self/fd/{}", self.file.as_raw_fd());
                rustix::fs::linkat(CWD, own, &self.dir, &at, AtFlags::SYMLINK_FOLLOW)?;
                at
            }
        };
        // From here on it is taken away again where its name can't be had.
        let at = self.lies_at.insert(at);
        if let Ok(seen) = rustix::fs::statat(&self.dir, &self.name, AtFlags::SYMLINK_NOFOLLOW)
            && FileType::from_raw_mode(seen.st_mode) != FileType::RegularFile
        {
            return Err(io::Error::other("there is something that is no regular file"));
        }
        rustix::fs::renameat(&self.dir, &*at, &self.dir, &self.name)?;
        self.lies_at = None;
        Ok(rustix::fs::fsync(&self.dir)?)
    }
}

impl Drop for Draft {
    fn drop(&mut self) {
        if let Some(at) = &self.lies_at {
            // Nothing can be done about one that stays; its name says what it is.
            let _ = rustix::fs::unlinkat(&self.dir, at, AtFlags::empty());
        }
    }
}

/// A name that nobody has, beside `name`.
fn beside(name: &std::ffi::OsStr) -> io::Result<PathBuf> {
    let mut bytes = [0; 8];
    crate::boot::random(&mut bytes)?;
    let short: String = name.to_string_lossy().chars().take(40).collect();
    Ok(format!(".{short}.{:016x}.part", u64::from_le_bytes(bytes)).into())
}

#[cfg(test)]
mod tests {
    use super::Draft;
    use std::io::Write as _;

    #[test]
    fn it_is_there_whole_or_not_at_all() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("f");
        let names = || std::fs::read_dir(dir.path()).expect("read").count();
        drop(Draft::begin(&path).expect("begun"));
        assert_eq!(names(), 0);
        std::fs::write(&path, "old").expect("written");
        let mut draft = Draft::begin(&path).expect("begun");
        draft.file.write_all(b"new").expect("written");
        assert_eq!(std::fs::read_to_string(&path).expect("read"), "old");
        draft.name().expect("named");
        assert_eq!((std::fs::read_to_string(&path).expect("read").as_str(), names()), ("new", 1));
    }

    #[test]
    fn a_link_is_followed_and_what_is_no_file_stays() {
        let dir = tempfile::tempdir().expect("a directory");
        let (file, link, gone) = (dir.path().join("f"), dir.path().join("l"), dir.path().join("no/f"));
        std::fs::write(&file, "old").expect("written");
        std::os::unix::fs::symlink("f", &link).expect("a link");
        let mut draft = Draft::begin(&link).expect("begun");
        draft.file.write_all(b"new").expect("written");
        draft.name().expect("named");
        assert_eq!(std::fs::read_to_string(&file).expect("read"), "new");
        assert!(std::fs::symlink_metadata(&link).expect("there").is_symlink());
        for bad in [dir.path(), "/dev/null".as_ref(), &gone] {
            Draft::begin(bad).expect_err("refused");
        }
    }
}
