//! Files into a guest and out of one, and connections to its ports, through the agent's program.

// A test's helpers are tests too; clippy's setting knows only the functions marked so.
#![allow(clippy::unwrap_used)]

mod support;

use std::io::{Read, Write};
use std::net::TcpListener;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::time::{Duration, Instant};

use agent::copy::{Copied, Pack, Rules, Source};
use agent::host::{CopyFailure, Driver, Ended, Exec, Failure, Limits, control, get, get_archive, put, put_archive};
use agent::protocol::{Dial, Get, Keep, Put, VERSION};
use support::Service;

fn tree(path: &Path) {
    std::fs::create_dir_all(path.join("a/b")).unwrap();
    std::fs::write(path.join("a/large"), (0..300_000u32).flat_map(u32::to_le_bytes).collect::<Vec<_>>()).unwrap();
    std::fs::write(path.join("a/b/script"), "#!/bin/sh\n").unwrap();
    std::fs::set_permissions(path.join("a/b/script"), PermissionsExt::from_mode(0o750)).unwrap();
    std::os::unix::fs::symlink("b/script", path.join("a/link")).unwrap();
    for n in 0..500 {
        std::fs::write(path.join(format!("a/small-{n}")), n.to_string()).unwrap();
    }
}

fn put_to(service: &Service, from: &Path, to: &Path, into: bool) -> Result<Copied, CopyFailure> {
    let name = from.file_name().unwrap().as_encoded_bytes().to_vec();
    let pack = Pack::new(vec![Source { path: from.into(), name }], false);
    let asked = Put { v: VERSION, to: to.to_str().unwrap().into(), into, owner: None, clobber: true, keep: Keep::User };
    put(&service.connect(), asked, pack, Limits::EMULATED, |_| true)
}

fn get_to(service: &Service, from: &Path, to: &Path) -> Result<Copied, CopyFailure> {
    let asked = Get {
        v: VERSION,
        from: from.to_str().unwrap().into(),
        follow: false,
        contents: false,
        keep: Keep::User,
        leave: vec![],
    };
    let place = OwnedFd::from(std::fs::File::open(to).unwrap());
    let rules = Rules { clobber: true, ..Rules::default() };
    get(&service.connect(), asked, place, rules, Limits::EMULATED, |_| true)
}

fn same(one: &Path, other: &Path) {
    let output =
        std::process::Command::new("diff").args(["-r", "--no-dereference"]).args([one, other]).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stdout));
}

#[test]
fn a_tree_goes_in_and_comes_out() {
    let service = Service::start();
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name);
    tree(&path("src"));
    std::fs::create_dir(path("in")).unwrap();
    std::fs::create_dir(path("out")).unwrap();
    let copied = put_to(&service, &path("src"), &path("in"), true).unwrap();
    assert_eq!((copied.entries, copied.left_out), (506, 0));
    same(&path("src"), &path("in/src"));
    // A name of its own, where there is none yet; into it, once there is.
    put_to(&service, &path("src"), &path("in/other"), false).unwrap();
    same(&path("src"), &path("in/other"));
    put_to(&service, &path("src/a/b"), &path("in/other"), false).unwrap();
    assert!(path("in/other/b/script").exists());
    let copied = get_to(&service, &path("in/src"), &path("out")).unwrap();
    assert_eq!((copied.entries, copied.bytes > 1_200_000), (506, true));
    same(&path("src"), &path("out/src"));
    assert_eq!(std::fs::metadata(path("out/src/a/b/script")).unwrap().permissions().mode() & 0o7777, 0o750);
}

#[test]
fn what_can_t_be_copied_says_why() {
    let service = Service::start();
    let dir = tempfile::tempdir().unwrap();
    let step = |result: Result<Copied, CopyFailure>| match result {
        Err(CopyFailure::Call(Failure::Refused(body))) => (body.step, body.errno),
        other => panic!("{other:?}"),
    };
    std::fs::write(dir.path().join("file"), "x").unwrap();
    let (text, errno) = step(put_to(&service, &dir.path().join("file"), Path::new("/nowhere/at/all"), true));
    assert!(text.starts_with("open /nowhere") && errno == 2, "{text}");
    let (text, errno) = step(get_to(&service, Path::new("/nowhere/at/all"), dir.path()));
    assert!(text.contains("look at all") && errno == 2, "{text}");
    let missing = put_to(&service, &dir.path().join("missing"), dir.path(), true);
    assert!(matches!(missing, Err(CopyFailure::Here(_))), "{missing:?}");
    // Nothing of that has hurt the next one.
    put_to(&service, &dir.path().join("file"), &dir.path().join("again"), false).unwrap();
    assert_eq!(std::fs::read_to_string(dir.path().join("again")).unwrap(), "x");
}

#[test]
fn a_copy_that_is_given_up_leaves_no_half_file() {
    let service = Service::start();
    let dir = tempfile::tempdir().unwrap();
    tree(&dir.path().join("src"));
    let asked = Get {
        v: VERSION,
        from: dir.path().join("src").to_str().unwrap().into(),
        follow: false,
        contents: true,
        keep: Keep::User,
        leave: vec![],
    };
    std::fs::create_dir(dir.path().join("out")).unwrap();
    let place = || OwnedFd::from(std::fs::File::open(dir.path().join("out")).unwrap());
    let limits = Limits::EMULATED;
    let result = get(&service.connect(), asked, place(), Rules::default(), limits, |bytes| bytes < 500_000);
    assert!(matches!(result, Err(CopyFailure::Abandoned)));
    let large = dir.path().join("out/a/large");
    assert!(!large.exists() || large.metadata().unwrap().len() == 1_200_000);
}

/// An archive that tar made goes in, and what comes out is one that tar reads.
#[test]
fn archives_of_others_go_in_and_come_out() {
    let service = Service::start();
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name);
    tree(&path("src"));
    std::fs::create_dir(path("in")).unwrap();
    std::fs::create_dir(path("out")).unwrap();
    let tar = |args: &[&str]| {
        let mut command = std::process::Command::new("tar");
        command.arg("-C").arg(dir.path()).args(args);
        command
    };
    let mut made = tar(&["-c", "src"]).stdout(std::process::Stdio::piped()).spawn().unwrap();
    let to = path("in").to_str().unwrap().to_owned();
    let asked = |to: &str| Put { v: VERSION, to: to.into(), into: true, owner: None, clobber: true, keep: Keep::User };
    let archive = made.stdout.take().unwrap();
    let copied = put_archive(&service.connect(), asked(&to), archive.as_fd(), Limits::EMULATED, |_| true).unwrap();
    assert!(made.wait().unwrap().success());
    assert_eq!((copied.entries, copied.files), (506, 503));
    same(&path("src"), &path("in/src"));

    let asked_back = Get {
        v: VERSION,
        from: path("in/src").to_str().unwrap().into(),
        follow: false,
        contents: false,
        keep: Keep::User,
        leave: vec![],
    };
    let mut read = tar(&["-x", "-C", "out"]).stdin(std::process::Stdio::piped()).spawn().unwrap();
    let mut pipe = read.stdin.take().unwrap();
    let take = |piece: &[u8]| {
        pipe.write_all(piece).unwrap();
        Ok(())
    };
    let copied = get_archive(&service.connect(), asked_back, Limits::EMULATED, take, |_| true).unwrap();
    drop(pipe);
    assert!(read.wait().unwrap().success());
    assert_eq!((copied.entries, copied.files), (506, 503));
    same(&path("src"), &path("out/src"));

    // What is no archive, or a half of one, or leads out, ends here; nothing of it is made there.
    let names = || std::fs::read_dir(path("in")).unwrap().count();
    for script in ["echo no archive", "tar -c src | head -c 700", "tar -cP ../src"] {
        let out = std::process::Command::new("sh").current_dir(path("out")).args(["-c", script]).output().unwrap();
        std::fs::write(path("archive"), out.stdout).unwrap();
        let file = std::fs::File::open(path("archive")).unwrap();
        let failure =
            put_archive(&service.connect(), asked(&to), file.as_fd(), Limits::EMULATED, |_| true).unwrap_err();
        let ours = matches!(failure, CopyFailure::Here(_));
        assert!(ours || matches!(failure, CopyFailure::Call(Failure::Refused(_))), "{script}: {failure:?}");
        assert_eq!(names(), 1, "{script}");
    }
}

/// A connection with nothing between but two pipes.
fn dial(service: &Service, port: u16, input: &[u8]) -> (Result<Ended, Failure>, Vec<u8>) {
    let dial = Dial { v: VERSION, net: "tcp".into(), addr: [127, 0, 0, 1].into(), port };
    let (_control, orders) = control().unwrap();
    let (stdin, mut ours_in) = std::io::pipe().unwrap();
    let (mut ours_out, stdout) = std::io::pipe().unwrap();
    let socket = service.connect();
    let exec = Exec::dial(dial, Limits::EMULATED, Instant::now());
    std::thread::scope(|threads| {
        threads.spawn(move || ours_in.write_all(input));
        let read = threads.spawn(move || {
            let mut got = Vec::new();
            ours_out.read_to_end(&mut got).map(|_| got)
        });
        let (stdin, fds) = (Some(stdin.as_fd()), (stdout.as_fd(), std::io::stderr()));
        let driver =
            Driver { socket: &socket, stdin, stdout: fds.0, stderr: fds.1.as_fd(), orders: &orders, timeout: None };
        let ended = driver.run(exec, |_| {});
        drop(stdout);
        (ended, read.join().unwrap().unwrap())
    })
}

/// rust-vmm/vhost-device#874: a server that answers only after the end, and a server that ends first.
#[test]
fn each_side_may_end_first() {
    let service = Service::start();
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    let input = vec![b'x'; 1_000_000];
    std::thread::scope(|threads| {
        threads.spawn(|| {
            let (mut peer, _) = listener.accept().unwrap();
            let mut got = Vec::new();
            peer.read_to_end(&mut got).unwrap();
            write!(peer, "{} bytes", got.len()).unwrap();
            drop(peer);
            let (mut peer, _) = listener.accept().unwrap();
            peer.write_all(b"goodbye").unwrap();
            peer.shutdown(std::net::Shutdown::Write).unwrap();
            let mut got = Vec::new();
            peer.read_to_end(&mut got).unwrap();
            assert_eq!(got.len(), 1_000_000);
        });
        let (ended, output) = dial(&service, port, &input);
        assert_eq!((ended.unwrap().exit.status(), output), (0, b"1000000 bytes".to_vec()));
        let (ended, output) = dial(&service, port, &input);
        assert_eq!((ended.unwrap().exit.status(), output), (0, b"goodbye".to_vec()));
    });
}

#[test]
fn a_port_that_nobody_has_and_an_address_of_another() {
    let service = Service::start();
    let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let begin = Instant::now();
    let (ended, _) = dial(&service, port, b"");
    assert!(matches!(ended, Err(Failure::Refused(body)) if body.errno == 111 && body.step == "connect"));
    assert!(begin.elapsed() < Duration::from_secs(5));
    for (addr, net) in [([192, 0, 2, 1], "tcp"), ([0, 0, 0, 0], "tcp"), ([127, 0, 0, 1], "udp")] {
        let dial = Dial { v: VERSION, net: net.into(), addr: addr.into(), port };
        let (_control, orders) = control().unwrap();
        let (socket, err) = (service.connect(), std::io::stderr());
        let fd = err.as_fd();
        let driver = Driver { socket: &socket, stdin: None, stdout: fd, stderr: fd, orders: &orders, timeout: None };
        let ended = driver.run(Exec::dial(dial, Limits::EMULATED, Instant::now()), |_| {});
        assert!(matches!(ended, Err(Failure::Refused(body)) if body.step != "connect"), "{addr:?} {net}");
    }
}
