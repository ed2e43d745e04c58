//! Whose rights a system call is made with: a user's whole credentials, for the length of a closure.
//!
//! The file system's ids and the supplementary groups are each thread's own in the kernel, so another thread goes on
//! with its rights. A thread that is *started* inside the closure inherits the user's: start none there.

use rustix::fd::{AsFd, AsRawFd};
use rustix::process::{DumpableBehavior, Gid};
use std::fmt;
use std::io;

/// A user: his ids, all his groups, his name and home.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Identity {
    /// His uid.
    pub uid: u32,
    /// His primary group.
    pub gid: u32,
    /// Every group that he is in, the primary one among them; sorted.
    pub groups: Vec<u32>,
    /// His name.
    pub name: String,
    /// His home directory.
    pub home: String,
}

impl Identity {
    /// The user of that name, by `/etc/passwd` and `/etc/group`. `None` where he is not in there.
    ///
    /// The files are read as text: the C library would load other databases' code into this process.
    ///
    /// # Errors
    /// Where a file can't be read.
    pub fn by_name(name: &str) -> io::Result<Option<Identity>> {
        Ok(find(&read("/etc/passwd")?, &read("/etc/group")?, |user, _| user == name))
    }

    /// The user of that uid; the first one where several share it.
    ///
    /// # Errors
    /// Where a file can't be read.
    pub fn by_uid(uid: u32) -> io::Result<Option<Identity>> {
        Ok(find(&read("/etc/passwd")?, &read("/etc/group")?, |_, number| number == uid))
    }

    /// Runs `act` with this user's file-system uid, gid and groups, and gives them back behind it, also where it
    /// panics.
    ///
    /// Opening, making, renaming and removing files is then judged by the kernel as if he did it: root's way past
    /// permissions is gone with the uid. Inside another such closure of this user's nothing is changed: who has several
    /// files to look at pays for one change.
    ///
    /// # Errors
    /// Where the credentials can't be taken on; `act` has not run then. Where they can't be given back the process
    /// ends: no thread of it may go on with a mixture.
    pub fn run_as<T>(&self, act: impl FnOnce() -> T) -> io::Result<T> {
        let before = Credentials::of_this_thread()?;
        let wanted = Credentials { uid: self.uid, gid: self.gid, groups: self.groups.clone() };
        if before == wanted {
            return Ok(act());
        }
        let guard = GiveBack(&before);
        wanted.take_on()?;
        let done = act();
        drop(guard);
        Ok(done)
    }

    /// Asks the kernel whether the user could make something in that directory.
    ///
    /// # Errors
    /// `PermissionDenied` where not; as [`Identity::run_as`].
    pub fn may_write(&self, dir: impl AsFd) -> io::Result<()> {
        // By the credentials that count for files, which access(2) does not ask about.
        let (fd, may, how) = (dir.as_fd().as_raw_fd(), libc::W_OK | libc::X_OK, libc::AT_EACCESS);
        self.run_as(|| {
            // SAFETY: the descriptor is open and the text is whole while the call lasts; nothing is written.
            match unsafe { libc::syscall(libc::SYS_faccessat2, fd, c".".as_ptr(), may, how) } {
                0 => Ok(()),
                _ => Err(io::Error::last_os_error()),
            }
        })?
    }
}

/// What a thread's file accesses are judged by.
#[derive(Debug, PartialEq, Eq)]
struct Credentials {
    uid: u32,
    gid: u32,
    groups: Vec<u32>,
}

impl Credentials {
    fn of_this_thread() -> io::Result<Credentials> {
        let mut groups: Vec<u32> = rustix::process::getgroups()?.into_iter().map(Gid::as_raw).collect();
        groups.sort_unstable();
        Ok(Credentials { uid: set_fsuid(u32::MAX), gid: set_fsgid(u32::MAX), groups })
    }

    /// Takes them on and reads them back: setfsuid(2) reports no failure.
    fn take_on(&self) -> io::Result<()> {
        if self.uid == 0 {
            // Back to root: the uid first, it brings the right to set the others.
            set_fsuid(self.uid);
        }
        let dumpable = rustix::process::dumpable_behavior()?;
        set_groups(&self.groups)?;
        set_fsgid(self.gid);
        set_fsuid(self.uid);
        // The kernel puts it to fs.suid_dumpable when these change, and that may be 2: a core for the administrator.
        // Nobody can ask for that, so where it was 2 already another thread is about to put it back, too.
        if dumpable != DumpableBehavior::Dumpable {
            rustix::process::set_dumpable_behavior(DumpableBehavior::NotDumpable)?;
        }
        let now = Credentials::of_this_thread()?;
        if now == *self {
            Ok(())
        } else {
            Err(io::Error::other(format!("the thread's credentials are {now}, not {self}")))
        }
    }
}

impl fmt::Display for Credentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "fsuid {} fsgid {} groups {:?}", self.uid, self.gid, self.groups)
    }
}

struct GiveBack<'a>(&'a Credentials);

impl Drop for GiveBack<'_> {
    fn drop(&mut self) {
        if self.0.take_on().is_err() {
            std::process::abort();
        }
    }
}

/// The uid that what the calling thread makes belongs to.
pub(crate) fn file_uid() -> u32 {
    set_fsuid(u32::MAX)
}

/// Sets the calling thread's file-system uid and gives the one before; `u32::MAX` only asks.
fn set_fsuid(uid: u32) -> u32 {
    // SAFETY: changes the calling thread's credentials alone; touches no memory.
    unsafe { libc::setfsuid(uid) }.cast_unsigned()
}

fn set_fsgid(gid: u32) -> u32 {
    // SAFETY: as above.
    unsafe { libc::setfsgid(gid) }.cast_unsigned()
}

/// Sets the calling thread's groups: by the system call, the C library's function sets those of every thread.
fn set_groups(groups: &[u32]) -> io::Result<()> {
    // SAFETY: the kernel reads `len` ids behind the pointer, which is what the slice holds.
    let answer = unsafe { libc::syscall(libc::SYS_setgroups, groups.len(), groups.as_ptr()) };
    if answer == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Takes every supplementary group off the calling thread. To be called before there is another one.
///
/// # Errors
/// `EPERM` without the right to.
pub fn drop_groups() -> io::Result<()> {
    set_groups(&[])
}

fn read(path: &str) -> io::Result<String> {
    let text = std::fs::read(path).map_err(|error| io::Error::new(error.kind(), format!("{path}: {error}")))?;
    Ok(String::from_utf8_lossy(&text).into_owned())
}

fn find(passwd: &str, group: &str, wanted: impl Fn(&str, u32) -> bool) -> Option<Identity> {
    let (name, uid, gid, home) = passwd.lines().filter_map(user).find(|&(name, uid, ..)| wanted(name, uid))?;
    let mut groups: Vec<u32> = group.lines().filter_map(|line| member(line, name)).collect();
    groups.push(gid);
    groups.sort_unstable();
    groups.dedup();
    Some(Identity { uid, gid, groups, name: name.to_owned(), home: home.to_owned() })
}

/// `name:password:uid:gid:text:home:shell`
fn user(line: &str) -> Option<(&str, u32, u32, &str)> {
    let mut fields = line.split(':');
    let name = fields.next().filter(|name| !name.is_empty() && !name.starts_with(['#', '+', '-']))?;
    let uid = fields.nth(1)?.parse().ok()?;
    let gid = fields.next()?.parse().ok()?;
    Some((name, uid, gid, fields.nth(1)?))
}

/// The gid of `name:password:gid:members` where `wanted` is one of the members.
fn member(line: &str, wanted: &str) -> Option<u32> {
    let mut fields = line.split(':').skip(2);
    let gid = fields.next()?.parse().ok()?;
    fields.next()?.split(',').any(|name| name == wanted).then_some(gid)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::File;
    use std::os::unix::fs::{MetadataExt, PermissionsExt};

    const PASSWD: &str =
        "root:x:0:0:root:/root:/bin/sh\n\n#c:x:1:1::/:\nann:x:1000:1000:A:/home/ann:/bin/sh\nbad:x:y:1::/:\n";
    const GROUP: &str = "root:x:0:\nann:x:1000:\nkvm:x:104:ben,ann\nannex:x:105:annex\n";

    fn ann() -> Identity {
        find(PASSWD, GROUP, |name, _| name == "ann").unwrap()
    }

    #[test]
    fn a_user_and_his_groups() {
        let ann = ann();
        assert_eq!((ann.uid, ann.gid, ann.home.as_str()), (1000, 1000, "/home/ann"));
        assert_eq!(ann.groups, [104, 1000]);
        assert_eq!(find(PASSWD, GROUP, |_, uid| uid == 1000), Some(ann));
        assert_eq!(find(PASSWD, GROUP, |name, _| name == "#c" || name == "bad" || name == "kvm"), None);
    }

    #[test]
    fn files_are_made_and_refused_as_the_user() {
        assert!(rustix::process::geteuid().is_root(), "this test needs root");
        let dir = tempfile::tempdir().unwrap();
        std::fs::set_permissions(dir.path(), std::fs::Permissions::from_mode(0o777)).unwrap();
        let (made, secret) = (dir.path().join("made"), dir.path().join("secret"));
        std::fs::write(&secret, "x").unwrap();
        std::fs::set_permissions(&secret, std::fs::Permissions::from_mode(0o600)).unwrap();
        let before = Credentials::of_this_thread().unwrap();
        let refused = ann().run_as(|| {
            File::create(&made).unwrap();
            File::open(&secret).unwrap_err().kind()
        });
        assert_eq!(refused.unwrap(), io::ErrorKind::PermissionDenied);
        let facts = std::fs::metadata(&made).unwrap();
        assert_eq!((facts.uid(), facts.gid()), (1000, 1000));
        assert_eq!(Credentials::of_this_thread().unwrap(), before);
        File::open(&secret).unwrap();
    }

    #[test]
    fn a_closure_inside_a_closure_ends_none_of_it() {
        assert!(rustix::process::geteuid().is_root(), "this test needs root");
        let (before, now) = (Credentials::of_this_thread().unwrap(), || Credentials::of_this_thread().unwrap());
        let other = Identity { uid: 1001, gid: 1001, groups: vec![1001], ..ann() };
        let seen = ann().run_as(|| {
            let inner = ann().run_as(now).unwrap();
            let others = other.run_as(now).unwrap();
            (inner, others, now())
        });
        let (inner, others, behind) = seen.unwrap();
        assert_eq!((inner.uid, inner.gid, inner.groups.as_slice()), (1000, 1000, &[104, 1000][..]));
        assert_eq!((others.uid, others.groups), (1001, vec![1001]));
        assert_eq!(behind, inner);
        assert_eq!(now(), before);
    }

    #[test]
    fn a_directory_is_asked_about_with_the_user_s_rights() {
        assert!(rustix::process::geteuid().is_root(), "this test needs root");
        let dir = tempfile::tempdir().unwrap();
        let may = |mode| {
            std::fs::set_permissions(dir.path(), std::fs::Permissions::from_mode(mode)).unwrap();
            ann().may_write(File::open(dir.path()).unwrap()).map_err(|error| error.kind())
        };
        assert_eq!(may(0o777), Ok(()));
        for mode in [0o755, 0o776, 0o775] {
            assert_eq!(may(mode), Err(io::ErrorKind::PermissionDenied), "{mode:o}");
        }
    }

    #[test]
    fn a_panic_gives_the_credentials_back() {
        assert!(rustix::process::geteuid().is_root(), "this test needs root");
        let before = Credentials::of_this_thread().unwrap();
        let panicked = std::panic::catch_unwind(|| ann().run_as(|| panic!("in the closure")));
        assert!(panicked.is_err());
        assert_eq!(Credentials::of_this_thread().unwrap(), before);
    }

    #[test]
    fn another_thread_keeps_its_rights() {
        assert!(rustix::process::geteuid().is_root(), "this test needs root");
        let (tell, told) = std::sync::mpsc::channel::<()>();
        let (say, said) = std::sync::mpsc::channel();
        let other = std::thread::spawn(move || {
            told.recv().unwrap();
            say.send(Credentials::of_this_thread().unwrap()).unwrap();
        });
        let seen = ann().run_as(|| {
            tell.send(()).unwrap();
            said.recv().unwrap()
        });
        other.join().unwrap();
        assert_eq!(seen.unwrap(), Credentials::of_this_thread().unwrap());
    }
}
