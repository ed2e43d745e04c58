//! A listening Unix socket that is gone from its directory when its owner is, and only if it is still the same one.

use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};

/// The socket and its name.
#[derive(Debug)]
pub(crate) struct OwnSocket {
    listener: UnixListener,
    name: Name,
}

/// The name of a socket that this process made.
#[derive(Debug)]
struct Name {
    path: PathBuf,
    identity: (u64, u64),
}

impl OwnSocket {
    /// Makes it; a name that exists is refused, whatever it is.
    ///
    /// # Errors
    /// What binding says.
    pub(crate) fn bind(path: &Path) -> io::Result<Self> {
        // The name must be found again at the end, from wherever the process then stands.
        let path = std::path::absolute(path)?;
        let listener = UnixListener::bind(&path)?;
        let seen = std::fs::symlink_metadata(&path)?;
        Ok(Self { listener, name: Name { path, identity: (seen.dev(), seen.ino()) } })
    }

    pub(crate) fn listener(&self) -> &UnixListener {
        &self.listener
    }

    pub(crate) fn path(&self) -> &Path {
        &self.name.path
    }

    /// Takes the name away, where somebody still holds the socket as the process ends.
    pub(crate) fn unlink(&self) {
        self.name.unlink();
    }
}

impl Drop for Name {
    fn drop(&mut self) {
        self.unlink();
    }
}

impl Name {
    fn unlink(&self) {
        let same = std::fs::symlink_metadata(&self.path).is_ok_and(|now| (now.dev(), now.ino()) == self.identity);
        if same {
            // It may have gone in between; nobody is there to be told.
            let _ = std::fs::remove_file(&self.path);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::OwnSocket;

    #[test]
    fn it_goes_with_its_owner_unless_another_took_the_name() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("s");
        let socket = OwnSocket::bind(&path).expect("bound");
        assert!(OwnSocket::bind(&path).is_err());
        drop(socket);
        assert!(!path.exists());
        let socket = OwnSocket::bind(&path).expect("bound again");
        std::fs::remove_file(&path).expect("removed");
        std::fs::write(&path, "another's").expect("written");
        drop(socket);
        assert!(path.exists());
    }
}
