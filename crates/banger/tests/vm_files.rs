//! Files into guests and out of them, and connections to their ports, as a user meets them.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test may panic")]
#![allow(dead_code, reason = "the world has more than these tests need")]

mod world;

use rustix::fs::{XattrFlags, getxattr, setxattr};
use rustix::process::{Pid, Signal, kill_process};
use std::fs;
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown, symlink};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Instant;
use world::*;

/// A directory of the owner's.
const HOME: &str = "/mnt/run/home";

/// Runs a program here, as root; its output.
fn here(program: &str, arguments: &[&str]) -> String {
    let out = Command::new(program).args(arguments).current_dir(HOME).output().expect(program);
    assert!(out.status.success(), "{program} {arguments:?}: {}{}", text(&out.stdout), text(&out.stderr));
    text(&out.stdout).to_owned()
}

fn tree(at: &Path) {
    fs::create_dir_all(at.join("a/b")).unwrap();
    fs::write(at.join("a/large"), (0..500_000u32).flat_map(u32::to_le_bytes).collect::<Vec<_>>()).unwrap();
    fs::write(at.join("a/b/script"), "#!/bin/sh\necho ran\n").unwrap();
    fs::set_permissions(at.join("a/b/script"), PermissionsExt::from_mode(0o750)).unwrap();
    fs::write(at.join("a/two\nlines \u{1b}[2J"), "").unwrap();
    symlink("../b/script", at.join("a/b/link")).unwrap();
    symlink("/nowhere", at.join("a/dangling")).unwrap();
    fs::hard_link(at.join("a/large"), at.join("a/b/again")).unwrap();
    for n in 0..200 {
        fs::write(at.join(format!("a/small-{n}")), n.to_string()).unwrap();
    }
}

/// A home for the owner with a tree in it, and a VM called web.
fn prepare() {
    fs::create_dir(HOME).unwrap();
    tree(&Path::new(HOME).join("src"));
    here("chown", &["-R", "--no-dereference", "bowner:bowner", "."]);
    chown(HOME, Some(5501), Some(5501)).unwrap();
    ok(&["vm", "create", "web", "--start", "--memory", "256M"]);
}

#[test]
fn a_tree_goes_in_and_comes_out_the_same() {
    isolated("a_tree_goes_in_and_comes_out_the_same", |_| {
        prepare();
        let at = |path: &str| format!("{HOME}/{path}");
        let guest = |script: &str| ok(&["vm", "exec", "web", "--", "sh", "-c", script]);
        ok(&["vm", "cp", &at("src"), "web:/root/src"]);
        assert_eq!(guest("cat src/a/b/script; stat -c '%a %U' src/a/b/script"), "#!/bin/sh\necho ran\n750 root\n");
        let sum = here("sha256sum", &["src/a/large"]);
        assert_eq!(guest("sha256sum src/a/large"), sum);
        ok(&["vm", "cp", "web:/root/src", &at("back")]);
        here("diff", &["-r", "--no-dereference", "src", "back"]);
        let facts = |tree: &str| {
            here("find", &[tree, "-type", "f", "-printf", "%P %m %n %s %Ts %u\n"]).lines().map(str::to_owned).collect()
        };
        let [mut before, mut after]: [Vec<String>; 2] = [facts("src"), facts("back")];
        before.sort_unstable();
        after.sort_unstable();
        assert_eq!(before, after, "modes, links, sizes, times, owner");

        // Into a directory that is there; its content; a file under another name; several at once.
        ok(&["vm", "cp", "web:/root/src/a/b", &at("back")]);
        assert!(Path::new(&at("back/b/script")).exists());
        ok(&["vm", "cp", "web:/root/src/a/b/.", &at("flat")]);
        assert!(Path::new(&at("flat/script")).exists());
        ok(&["vm", "cp", &at("flat/."), "web:/root/flat"]);
        assert_eq!(guest("ls flat"), "again\nlink\nscript\n");
        ok(&["vm", "cp", &at("src/a/b/script"), "web:other"]);
        ok(&["vm", "cp", "--owner", "daemon:1", &at("flat/script"), &at("src/a/small-7"), "web:/tmp/"]);
        assert_eq!(guest("sh other; stat -c '%U %g' /tmp/script; cat /tmp/small-7"), "ran\ndaemon 1\n7");
        fs::write(at("flat/script"), "newer").unwrap();
        let kept = json(&["vm", "cp", "--json", "--no-clobber", &at("flat/script"), "web:/tmp/script"]);
        assert_eq!(kept["files"], 1);
        assert_eq!(guest("cat /tmp/script"), "#!/bin/sh\necho ran\n");
        ok(&["vm", "cp", "web:/root/src/a/b/link", &at("link")]);
        assert_eq!(fs::read_link(at("link")).unwrap().to_str(), Some("../b/script"));
        guest("ln -s /root/other /root/way");
        ok(&["vm", "cp", "-L", "web:/root/way", &at("followed")]);
        assert_eq!(fs::read_to_string(at("followed")).unwrap(), "#!/bin/sh\necho ran\n");

        // What can't be is an error, and nothing has changed.
        let status = |command: &[&str]| run(&[&["vm", "cp"], command].concat()).status.code();
        assert_eq!(status(&["web:/root/nosuch", &at("nosuch")]), Some(3));
        assert_eq!(status(&["web:/root/src/.", &at("no/such")]), Some(3));
        assert_eq!(status(&["web:/root/nosuch/.", &at("nosuch")]), Some(3));
        assert!(!Path::new(&at("nosuch")).exists());
        assert_eq!(status(&[&at("nosuch"), "web:/root/x"]), Some(3));
        assert_eq!(status(&[&at("src"), "wbe:/root/x"]), Some(3));
        assert_eq!(status(&[&at("src"), &at("other")]), Some(2));
        assert_eq!(status(&["--owner", "nobody-here", &at("src"), "web:/root/x"]), Some(3));
        assert_eq!(guest("test -e /root/x || echo none"), "none\n");

        ok(&["vm", "rm", "-f", "web"]);
        assert_eq!(left(), Vec::<String>::new());
    });
}

#[test]
fn archives_and_other_guests() {
    isolated("archives_and_other_guests", |_| {
        prepare();
        ok(&["vm", "create", "db", "--start", "--memory", "256M"]);
        let archive = Command::new("tar").args(["-c", "-C", HOME, "src"]).output().unwrap().stdout;
        let out = run_with(&["vm", "cp", "-", "web:/root"], &archive);
        assert_eq!(out.status.code(), Some(0), "{}", text(&out.stderr));
        ok(&["vm", "cp", "web:/root/src", "db:/root/copy"]);
        let back = run(&["vm", "cp", "db:/root/copy", "-"]);
        assert_eq!(back.status.code(), Some(0), "{}", text(&back.stderr));
        fs::create_dir(format!("{HOME}/out")).unwrap();
        let mut tar =
            Command::new("tar").args(["-x", "-C", &format!("{HOME}/out")]).stdin(Stdio::piped()).spawn().unwrap();
        tar.stdin.take().unwrap().write_all(&back.stdout).unwrap();
        assert!(tar.wait().unwrap().success());
        here("diff", &["-r", "--no-dereference", "src", "out/copy"]);
        let half = run_with(&["vm", "cp", "-", "web:/tmp"], &archive[..archive.len() / 2]);
        assert_eq!(half.status.code(), Some(1), "{}", text(&half.stderr));
        assert_eq!(run(&["vm", "cp", "web:/nosuch", "db:/root"]).status.code(), Some(3));
        assert_eq!(run(&["vm", "cp", "web:/root/src", "db:/nosuch/at/all"]).status.code(), Some(3));
        // A reader that has had enough is no failure.
        let mut child = banger(&["vm", "cp", "web:/root/src", "-"]).spawn().unwrap();
        let mut some = [0; 600];
        child.stdout.take().unwrap().read_exact(&mut some).unwrap();
        assert_eq!(child.wait().unwrap().code(), Some(0));
    });
}

/// A server in the guest, of Perl: answers each connection with what it has read of it, up to its end, in upper case.
const SERVER: &str = r#"use IO::Socket::INET;
my $s = IO::Socket::INET->new(LocalAddr => $ARGV[0], LocalPort => $ARGV[1], Listen => 9, ReuseAddr => 1) or die;
while (my $c = $s->accept) { my $got = join "", <$c>; print $c uc $got; close $c }"#;

fn serve(address: &str, port: &str) {
    let script = format!("perl -e '{SERVER}' {address} {port} </dev/null >/dev/null 2>&1 &");
    ok(&["vm", "exec", "web", "--", "sh", "-c", &script]);
}

#[test]
fn holes_attributes_and_owners_are_kept() {
    isolated("holes_attributes_and_owners_are_kept", |_| {
        prepare();
        ok(&["vm", "create", "db", "--start", "--memory", "256M"]);
        let at = |path: &str| format!("{HOME}/{path}");
        let guest = |vm: &str, script: &str| ok(&["vm", "exec", vm, "--", "sh", "-c", script]);
        here("truncate", &["-s", "2G", "src/holed"]);
        here("sh", &["-c", "printf middle | dd of=src/holed bs=1 seek=1G conv=notrunc status=none"]);
        setxattr(at("src/a/b/script"), "user.key", b"a value", XattrFlags::empty()).unwrap();
        here("chown", &["-R", "bowner:bowner", "src"]);
        let told = json(&["vm", "cp", "--json", &at("src/."), "web:/root/src"]);
        assert!(
            told["bytes"].as_u64().unwrap() < 10_000_000 && told["left_out"].as_array().unwrap().is_empty(),
            "{told}"
        );
        let facts = "stat -c %s src/holed; du -k src/holed | cut -f1; tail -c +1073741825 src/holed | head -c 6";
        let facts = guest("web", facts);
        let lines: Vec<&str> = facts.lines().collect();
        assert!(lines[0] == "2147483648" && lines[1].parse::<u64>().unwrap() <= 64 && lines[2] == "middle", "{facts}");
        // getxattr(2) and setxattr(2) by their numbers: the image has no program for them.
        let perl = r#"my ($file, $name, $value) = map { "$_\0" } @ARGV; my $got = "\0" x 100;
            if (@ARGV > 2) { syscall(188, $file, $name, $value, length($value) - 1, 0) == 0 or die $!; exit }
            my $n = syscall(191, $file, $name, $got, 100); die $! if $n < 0; print substr $got, 0, $n"#;
        fs::write(at("xattr.pl"), perl).unwrap();
        ok(&["vm", "cp", &at("xattr.pl"), "web:/root/"]);
        ok(&["vm", "cp", "web:/root/xattr.pl", "db:/root/"]);
        let attribute = |vm: &str, path: &str, name: &str| guest(vm, &format!("perl xattr.pl {path} {name}"));
        assert_eq!(attribute("web", "/root/src/a/b/script", "user.key"), "a value");

        // From guest to guest, as it is: owners, what root alone may set.
        guest("web", "chown 1234:4321 src/a/b/script; chmod 4755 src/a/b/script; mknod src/null c 1 3");
        guest("web", "perl xattr.pl src/a trusted.key 'top secret'");
        let out = run(&["vm", "cp", "-a", "--json", "web:/root/src", "db:/root/"]);
        assert_eq!(out.status.code(), Some(0), "{}", text(&out.stderr));
        let told: serde_json::Value = serde_json::from_slice(&out.stdout).unwrap();
        assert_eq!(told["left_out"], serde_json::json!([{"path": "src/null", "why": "no file, directory or link"}]));
        assert_eq!(
            guest("db", "stat -c '%a %u %g' src/a/b/script; stat -c %s src/holed"),
            "4755 1234 4321\n2147483648\n"
        );
        assert_eq!(attribute("db", "/root/src/a", "trusted.key"), "top secret");
        assert_eq!(attribute("db", "/root/src/a/b/script", "user.key"), "a value");

        // Here it becomes the caller's, without what might be a trap.
        let out = run(&["vm", "cp", "-a", "--json", "db:/root/src", &at("back")]);
        assert_eq!(out.status.code(), Some(0), "{}", text(&out.stderr));
        let told: serde_json::Value = serde_json::from_slice(&out.stdout).unwrap();
        assert_eq!(told["left_out"], serde_json::json!([{"path": "src/a", "why": "an extended attribute alone"}]));
        assert_eq!(told["set_ids_removed"], 1);
        let facts = fs::metadata(at("back/a/b/script")).unwrap();
        assert_eq!((facts.mode() & 0o7777, facts.uid()), (0o755, 5501));
        let mut value = [0; 100];
        let length = getxattr(at("back/a/b/script"), "user.key", value.as_mut_slice()).unwrap();
        assert_eq!(&value[..length], b"a value");
        here("cmp", &["src/holed", "back/holed"]);
        assert!(here("du", &["-k", "back/holed"]).split('\t').next().unwrap().parse::<u64>().unwrap() <= 64);
        ok(&["vm", "rm", "-f", "web", "db"]);
    });
}

#[test]
fn a_guest_s_ports_are_reached_through_its_agent() {
    isolated("a_guest_s_ports_are_reached_through_its_agent", |_| {
        prepare();
        serve("127.0.0.1", "8000");
        until("it listens", || run_with(&["vm", "dial", "web", "8000"], b"").status.success());
        let large: Vec<u8> = (0..400_000u32).map(|n| b'a' + (n % 26) as u8).collect();
        let out = run_with(&["vm", "dial", "web", "8000"], &large);
        assert_eq!(out.status.code(), Some(0), "{}", text(&out.stderr));
        assert!(out.stdout == large.to_ascii_uppercase());
        let nobody = run(&["vm", "dial", "web", "9"]);
        assert_eq!(nobody.status.code(), Some(1));
        assert!(text(&nobody.stderr).contains("error[refused]"), "{}", text(&nobody.stderr));
        assert_eq!(run(&["vm", "dial", "web", "8.8.8.8:53"]).status.code(), Some(1), "none of its own");
        assert_eq!(run(&["vm", "dial", "wbe", "8000"]).status.code(), Some(3));

        // Who listens, and how to get there.
        serve("0.0.0.0", "8080");
        let listed = |port: u16| {
            let all = json(&["vm", "ports", "--json"]);
            all.as_array().unwrap().iter().find(|one| one["port"] == port).cloned()
        };
        until("it is listed", || listed(8080).is_some());
        let inside = serde_json::json!({"name": "web", "proto": "tcp", "address": "127.0.0.1", "port": 8000,
            "process": "perl", "reach": null, "published": null});
        assert_eq!(listed(8000), Some(inside));
        assert_eq!(listed(8080).unwrap()["reach"], "web.vm:8080");
        let rows = ok(&["vm", "ports", "web"]);
        let row = "web\ttcp\t127.0.0.1:8000\tperl\tinside only: banger vm forward web 8000\n";
        assert!(rows.contains(row), "{rows}");
        let mut stream = TcpStream::connect("172.16.0.2:8080").unwrap();
        stream.write_all(b"by the network").unwrap();
        stream.shutdown(std::net::Shutdown::Write).unwrap();
        let mut got = String::new();
        stream.read_to_string(&mut got).unwrap();
        assert_eq!(got, "BY THE NETWORK", "what is said to be reached is");
        assert_eq!(run(&["vm", "ports", "web", "wbe"]).status.code(), Some(7));

        let mut child = banger(&["vm", "forward", "web", "0:8000", "0:9"]).spawn().unwrap();
        let mut said = child.stderr.take().unwrap();
        let ports: Vec<u16> = ["8000\n", "9\n"]
            .iter()
            .map(|end| {
                let mut line = Vec::new();
                let mut byte = [0];
                while !line.ends_with(b"\n") {
                    said.read_exact(&mut byte).unwrap();
                    line.push(byte[0]);
                }
                let line = text(&line).to_owned();
                assert!(line.starts_with("127.0.0.1:") && line.ends_with(&format!("-> web:{end}")), "{line}");
                line[10..].split(' ').next().unwrap().parse().unwrap()
            })
            .collect();
        let ask = |port| {
            let mut stream = TcpStream::connect(("127.0.0.1", port)).unwrap();
            stream.write_all(b"hello").unwrap();
            stream.shutdown(std::net::Shutdown::Write).unwrap();
            let mut got = Vec::new();
            stream.read_to_end(&mut got).map(|_| got)
        };
        std::thread::scope(|scope| {
            let all: Vec<_> = (0..8).map(|_| scope.spawn(|| ask(ports[0]).unwrap())).collect();
            all.into_iter().for_each(|one| assert_eq!(one.join().unwrap(), b"HELLO"));
        });
        assert!(
            ask(ports[1]).is_err_and(|error| error.kind() == std::io::ErrorKind::ConnectionReset)
                || ask(ports[1]).unwrap().is_empty()
        );
        read_until(&mut said, "error[refused]: web has no way to 127.0.0.1:9\n");
        assert_eq!(ask(ports[0]).unwrap(), b"HELLO", "one that is refused ends no other");
        ok(&["vm", "kill", "web"]);
        assert_eq!(child.wait().unwrap().code(), Some(1), "it ends with its VM");
        assert!(TcpStream::connect(("127.0.0.1", ports[0])).is_err());

        ok(&["vm", "start", "web"]);
        let mut child = banger(&["vm", "forward", "web", "0:8000"]).spawn().unwrap();
        read_until(child.stderr.as_mut().unwrap(), "web:8000\n");
        kill_process(Pid::from_child(&child), Signal::INT).unwrap();
        assert!(!child.wait().unwrap().success());
        ok(&["vm", "rm", "-f", "web"]);
        assert_eq!(left(), Vec::<String>::new());
    });
}

/// Sends a word to a port here, and its end; the answer.
fn ask(port: u16) -> std::io::Result<String> {
    let mut stream = TcpStream::connect(("127.0.0.1", port))?;
    stream.write_all(b"hello")?;
    stream.shutdown(std::net::Shutdown::Write)?;
    let mut got = String::new();
    stream.read_to_string(&mut got).map(|_| got)
}

fn answers(port: u16) -> bool {
    ask(port).is_ok_and(|answer| answer == "HELLO")
}

fn is_closed(port: u16) -> bool {
    TcpStream::connect(("127.0.0.1", port)).is_err_and(|error| error.kind() == std::io::ErrorKind::ConnectionRefused)
}

#[test]
fn a_port_that_is_taken_is_said_before_anything_is_made() {
    isolated("a_port_that_is_taken_is_said_before_anything_is_made", |_| {
        let taken = TcpListener::bind("127.0.0.1:8080").unwrap();
        let out = run(&["vm", "run", "-p", "8081:81", "-p", "8080:80", "--", "true"]);
        assert_eq!(out.status.code(), Some(125));
        assert!(text(&out.stderr).starts_with("error[port_taken]: 127.0.0.1:8080 "), "{}", text(&out.stderr));
        assert_eq!(run(&["vm", "create", "web", "-p", "0.0.0.0:8080:80"]).status.code(), Some(4));
        assert_eq!(run(&["vm", "create", "web", "-p", "81:80"]).status.code(), Some(1), "not root's port");
        assert_eq!(run(&["vm", "create", "web", "-p", "8080"]).status.code(), Some(2));
        assert_eq!((ok(&["vm", "list", "-q"]), left()), (String::new(), Vec::new()));
        assert!(is_closed(8081));
        drop(taken);

        ok(&["vm", "create", "web", "-p", "8080:80", "--memory", "256M"]);
        assert!(is_closed(8080), "one that doesn't run holds none");
        let taken = TcpListener::bind("127.0.0.1:8080").unwrap();
        let out = run(&["vm", "start", "web"]);
        assert_eq!(out.status.code(), Some(4));
        assert!(text(&out.stderr).contains("error[port_taken]"), "{}", text(&out.stderr));
        assert!(left().iter().all(|left| left.starts_with("/var/lib/banger/vms/")), "{:?}", left());
        drop(taken);
        ok(&["vm", "rm", "web"]);
    });
}

#[test]
fn published_ports_answer_as_long_as_their_vm_runs() {
    isolated("published_ports_answer_as_long_as_their_vm_runs", |world| {
        ok(&["vm", "create", "web", "--start", "--no-nat", "--memory", "256M", "-p", "8080:8000", "-p", "0.0.0.0:0:9"]);
        serve("127.0.0.1", "8000");
        until("it answers", || answers(8080));
        let port = |n: usize| json(&["vm", "show", "web", "--json"])["network"]["published"][n].clone();
        let all = [port(0), port(1)];
        let of = |guest: u16| all.iter().find(|one| one["guest_port"] == guest).unwrap().clone();
        let first = serde_json::json!({"address": "127.0.0.1", "port": 8080, "guest_port": 8000, "open": true});
        assert_eq!(of(8000), first);
        let second = u16::try_from(of(9)["port"].as_u64().unwrap()).unwrap();
        assert!(of(9)["address"] == "0.0.0.0" && second != 0);
        assert!(ask(second).is_ok_and(|answer| answer.is_empty()) || ask(second).is_err(), "nobody listens in it");
        let shown = ok(&["vm", "show", "web"]);
        assert!(shown.contains("port      127.0.0.1:8080 -> 8000\n"), "{shown}");
        let rows = ok(&["vm", "ports", "web"]);
        assert!(rows.contains("web\ttcp\t127.0.0.1:8000\tperl\t127.0.0.1:8080\n"), "{rows}");
        let listed = json(&["vm", "ports", "--json"]);
        let one = listed.as_array().unwrap().iter().find(|one| one["port"] == 8000).unwrap();
        assert_eq!((&one["reach"], &one["published"]), (&serde_json::Value::Null, &"127.0.0.1:8080".into()));

        // Every byte, and several at once; one more than there may be is closed, and commands go on.
        let large: Vec<u8> = (0..400_000u32).map(|n| b'a' + (n % 26) as u8).collect();
        let mut stream = TcpStream::connect("127.0.0.1:8080").unwrap();
        let mut writing = stream.try_clone().unwrap();
        let upper = large.to_ascii_uppercase();
        std::thread::scope(|scope| {
            scope.spawn(move || {
                writing.write_all(&large).unwrap();
                writing.shutdown(std::net::Shutdown::Write).unwrap();
            });
            let mut got = Vec::new();
            stream.read_to_end(&mut got).unwrap();
            assert!(got == upper);
        });
        let idle: Vec<TcpStream> = (0..24).map(|_| TcpStream::connect("127.0.0.1:8080").unwrap()).collect();
        until("the next is closed", || !answers(8080));
        assert_eq!(ok(&["vm", "exec", "web", "echo", "still"]), "still\n");
        drop(idle);
        until("it answers again", || answers(8080));

        assert_eq!(run(&["vm", "run", "-p", "8080:80", "--", "true"]).status.code(), Some(125), "web has it");
        world.kill_daemon();
        assert!(answers(8080), "a daemon that comes back listens again");
        // Who takes a port while there is no daemon has it; the others are listened for.
        let taken = std::thread::scope(|scope| {
            let taker = scope.spawn(|| {
                let end = Instant::now() + LONG;
                loop {
                    match TcpListener::bind("127.0.0.1:8080") {
                        Ok(taken) => return taken,
                        Err(_) => assert!(Instant::now() < end, "the daemon was quicker"),
                    }
                }
            });
            world.kill_daemon();
            taker.join().unwrap()
        });
        let shown = ok(&["vm", "show", "web"]);
        assert!(shown.contains("127.0.0.1:8080 -> 8000, not listened for: somebody else has it\n"), "{shown}");
        assert!(shown.contains(&format!("0.0.0.0:{second} -> 9\n")), "{shown}");
        drop(taken);
        ok(&["vm", "stop", "web"]);
        assert!(is_closed(8080) && is_closed(second));
        assert!(ok(&["vm", "show", "web"]).contains("port      127.0.0.1:8080 -> 8000, when it runs\n"));
        ok(&["vm", "start", "web"]);
        serve("0.0.0.0", "8000");
        until("it answers after a start", || answers(8080));
        assert_eq!(u64::from(second), port(0)["port"].as_u64().unwrap().max(port(1)["port"].as_u64().unwrap()));
        ok(&["vm", "restart", "web"]);
        serve("0.0.0.0", "8000");
        until("it answers after a restart", || answers(8080));
        ok(&["vm", "kill", "web"]);
        until("its end closes it", || is_closed(8080));
        ok(&["vm", "rm", "-f", "web"]);

        let script = format!("perl -e '{SERVER}' 127.0.0.1 80 </dev/null & echo begun; read x");
        let mut child = banger(&["vm", "run", "--memory", "256M", "-p", "8080:80", "--", "sh", "-c", &script])
            .stdin(Stdio::piped())
            .spawn()
            .unwrap();
        read_until(child.stdout.as_mut().unwrap(), "begun\n");
        until("a run's VM answers", || answers(8080));
        drop(child.stdin.take());
        child.wait().unwrap();
        assert!(is_closed(8080));
        assert_eq!(left(), Vec::<String>::new());
    });
}

#[test]
fn figures_are_the_guest_s_own() {
    isolated("figures_are_the_guest_s_own", |_| {
        prepare();
        ok(&["vm", "create", "db", "--start", "--memory", "192M"]);
        let guest = |script: &str| ok(&["vm", "exec", "web", "--", "sh", "-c", script]);
        let stats = |name: &str| json(&["vm", "stats", "--json", name])[0].clone();
        let number = |value: &serde_json::Value, key: &str| value[key].as_f64().unwrap_or_else(|| panic!("{value}"));
        let near = |a: f64, b: f64, by: f64| assert!((a - b).abs() <= by, "{a} is not {b}, give or take {by}");
        let now = stats("web");
        let used = guest("awk '/MemTotal/ {t = $2} /MemAvailable/ {print (t - $2) * 1024}' /proc/meminfo");
        near(number(&now, "memory_used_bytes"), used.trim().parse().unwrap(), 24e6);
        let disk = guest("df -B1 --output=used / | tail -n 1");
        near(number(&now, "disk_used_bytes"), disk.trim().parse().unwrap(), 4e6);
        let up = guest("cut -d' ' -f1 /proc/uptime");
        near(number(&now, "uptime_ms"), up.trim().parse::<f64>().unwrap() * 1000.0, 10_000.0);
        near(number(&now, "load1"), guest("cut -d' ' -f1 /proc/loadavg").trim().parse().unwrap(), 0.5);

        // One that works is seen to work, and to be sent something.
        guest("while :; do :; done </dev/null >/dev/null 2>&1 &");
        // As much as this machine lets it: others may want its processors.
        until("its processor is seen to work, and the other one's not", || {
            let [web, db] = ["web", "db"].map(|name| number(&stats(name), "cpu_percent"));
            web > 30.0 && db < web / 2.0
        });
        let came = number(&stats("web"), "net_rx_bytes");
        here("ping", &["-c", "3", "-i", "0.2", "-s", "1000", "172.16.0.2"]);
        let more = number(&stats("web"), "net_rx_bytes") - came;
        assert!((3000.0..100_000.0).contains(&more), "{more}");

        let rows = ok(&["vm", "stats"]);
        let names: Vec<&str> = rows.lines().map(|row| row.split('\t').next().unwrap()).collect();
        assert_eq!(names, ["db", "web"]);
        assert!(rows.lines().all(|row| row.split('\t').count() == 8), "{rows}");
        // It goes on until nobody reads.
        let mut child = banger(&["vm", "stats", "--watch=200ms", "--json", "web"]).spawn().unwrap();
        let mut out = child.stdout.take().unwrap();
        for _ in 0..3 {
            read_until(&mut out, "}\n");
        }
        drop(out);
        assert_eq!(child.wait().unwrap().code(), Some(0));
        ok(&["vm", "stop", "db"]);
        assert_eq!(run(&["vm", "stats", "db"]).status.code(), Some(4));
        let some = run(&["vm", "stats", "web", "db"]);
        assert_eq!((some.status.code(), text(&some.stdout).lines().count()), (Some(7), 1));
        assert_eq!(run(&["vm", "stats", "wbe"]).status.code(), Some(3));
        ok(&["vm", "rm", "-f", "web", "db"]);
    });
}
