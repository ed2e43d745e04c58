//! What can't be reached from a directory's descriptor, and what can.

use super::*;
use std::os::unix::fs::symlink;

fn place() -> (tempfile::TempDir, Dir) {
    let temp = tempfile::tempdir().unwrap();
    std::fs::create_dir_all(temp.path().join("in/sub")).unwrap();
    std::fs::write(temp.path().join("in/sub/file"), "text").unwrap();
    std::fs::write(temp.path().join("outside"), "secret").unwrap();
    let dir = Dir::open(temp.path().join("in").to_str().unwrap()).unwrap();
    (temp, dir)
}

#[test]
fn no_way_out() {
    let (temp, dir) = place();
    let inside = temp.path().join("in");
    symlink("../outside", inside.join("link")).unwrap();
    symlink("/", inside.join("top")).unwrap();
    symlink("sub", inside.join("alias")).unwrap();
    symlink("/proc/self/root", inside.join("magic")).unwrap();
    for (below, errno) in [
        ("../outside", Errno::XDEV),
        ("sub/../../outside", Errno::XDEV),
        ("/etc/passwd", Errno::XDEV),
        ("link", Errno::LOOP),
        ("top/etc/passwd", Errno::LOOP),
        ("alias/file", Errno::LOOP),
        ("magic/etc/passwd", Errno::LOOP),
        ("sub/none", Errno::NOENT),
        ("sub/file/x", Errno::NOTDIR),
    ] {
        assert_eq!(dir.open_at(below, OFlags::RDONLY, 0).unwrap_err().errno(), errno, "{below}");
    }
    let read = std::io::read_to_string(File::from(dir.open_at("sub/file", OFlags::RDONLY, 0).unwrap())).unwrap();
    assert_eq!(read, "text");
    assert!(Dir::open(inside.join("alias").to_str().unwrap()).unwrap_err().is_symlink());
}

#[test]
fn a_fifo_does_not_hold_us() {
    let (_temp, dir) = place();
    fs::mknodat(&dir, "fifo", FileType::Fifo, Mode::from_raw_mode(0o600), 0).unwrap();
    let opened = dir.open_at("fifo", OFlags::RDONLY, 0).unwrap();
    assert_eq!(Facts::of(&opened).unwrap().kind, FileType::Fifo);
    assert_eq!(dir.open_at("fifo", OFlags::WRONLY, 0).map(drop).unwrap_or(()), ());
}

#[test]
fn names_are_one_part() {
    let (temp, dir) = place();
    for name in ["", ".", "..", "../outside", "sub/file"] {
        assert_eq!(dir.unlink(name).unwrap_err().errno(), Errno::INVAL, "{name}");
        assert_eq!(dir.rename("sub", name).unwrap_err().errno(), Errno::INVAL, "{name}");
    }
    assert!(temp.path().join("outside").exists());
    assert!(!dir.unlink("none").unwrap());
}

#[test]
fn a_file_is_written_whole() {
    let (_temp, dir) = place();
    dir.write_whole("record", b"one", 0o600).unwrap();
    dir.write_whole("record", b"two", 0o600).unwrap();
    assert_eq!(dir.names().unwrap(), ["record", "sub"]);
    let facts = dir.facts("record").unwrap();
    assert_eq!((facts.size, facts.mode, facts.nlink), (3, 0o600, 1));
    let made = dir.make_dir("wide", 0o711).unwrap();
    assert_eq!(Facts::of(&made).unwrap().mode, 0o711);
    assert!(dir.remove_dir("wide").unwrap() && !dir.remove_dir("wide").unwrap());
}

#[test]
fn what_takes_a_new_directorys_place_keeps_its_mode() {
    let (temp, dir) = place();
    let theirs = temp.path().join("in/theirs");
    std::fs::create_dir_all(theirs.join("secret")).unwrap();
    dir.dir("theirs").unwrap().set_mode(0o700).unwrap();
    let over = std::sync::atomic::AtomicBool::new(false);
    let is_over = || over.load(std::sync::atomic::Ordering::Relaxed);
    let refused = std::thread::scope(|scope| {
        scope.spawn(|| {
            while !is_over() {
                let _ = fs::renameat_with(&dir, "new", &dir, "theirs", fs::RenameFlags::EXCHANGE);
            }
        });
        let begun = std::time::Instant::now();
        let mut refused = 0;
        while refused < 20 && begun.elapsed() < std::time::Duration::from_secs(20) {
            // The name is free, so what is in its place came in between.
            if dir.entry("new").is_err() {
                let made = dir.make_dir_among_others("new", 0o711);
                refused += usize::from(made.is_err_and(|error| error.errno() == Errno::EXIST));
            }
            // Whichever is the new one goes; the other one gets its name back.
            let _ = (dir.remove_dir("new"), dir.remove_dir("theirs"));
            let _ = fs::renameat_with(&dir, "new", &dir, "theirs", fs::RenameFlags::NOREPLACE);
        }
        over.store(true, std::sync::atomic::Ordering::Relaxed);
        refused
    });
    assert!(refused > 0, "they never came in between");
    // As above, of what was there in the end.
    let _ = (dir.remove_dir("new"), dir.remove_dir("theirs"));
    let _ = fs::renameat_with(&dir, "new", &dir, "theirs", fs::RenameFlags::NOREPLACE);
    assert_eq!(Facts::of(dir.dir("theirs").unwrap()).unwrap().mode, 0o700);
}

#[test]
fn what_is_taken_by_its_descriptor_is_nobodys() {
    let (_temp, dir) = place();
    let file = dir.open_at("sub/file", OFlags::PATH, 0).unwrap();
    let before = Facts::of(&file).unwrap();
    take(&file, before.uid, before.gid, 0).unwrap();
    assert_eq!(dir.facts("sub/file").unwrap().mode, 0);
    assert!(take(&dir, before.uid, before.gid, 0o711).is_ok() && Facts::of(&dir).unwrap().mode == 0o711);
}

#[test]
fn an_error_is_the_call_as_it_was_made() {
    let (_temp, dir) = place();
    let told = dir.open_at("sub/\n", OFlags::RDWR | OFlags::APPEND, 0).unwrap_err().to_string();
    assert_eq!(
        told,
        format!("openat2(<{}>, \"sub/\\n\", O_RDWR|O_APPEND, beneath): No such file or directory (ENOENT)", dir.path())
    );
}

#[test]
fn a_lease_does_not_hold_the_opener() {
    let temp = tempfile::tempdir().unwrap();
    let leased = File::options().create(true).truncate(true).write(true).open(temp.path().join("f")).unwrap();
    // SAFETY: takes a lease on a file that is ours; its signal (SIGIO) is ignored below.
    unsafe { libc::signal(libc::SIGIO, libc::SIG_IGN) };
    // SAFETY: as above; no memory is touched.
    let taken = unsafe { libc::fcntl(std::os::fd::AsRawFd::as_raw_fd(&leased), libc::F_SETLEASE, libc::F_WRLCK) };
    assert_eq!(taken, 0, "{}", std::io::Error::last_os_error());
    let dir = Dir::open(temp.path().to_str().unwrap()).unwrap();
    let begun = std::time::Instant::now();
    assert_eq!(dir.open_at("f", OFlags::RDONLY, 0).unwrap_err().errno(), Errno::AGAIN);
    // Far below the 45 s that the kernel gives a lease's holder (/proc/sys/fs/lease-break-time).
    assert!(begun.elapsed() < std::time::Duration::from_secs(10), "{:?}", begun.elapsed());
}
