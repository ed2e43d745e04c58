//! A daemon that is told to end: what is nobody's yet goes with it, what is somebody's stays, and it does not take long.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test may panic")]

#[allow(dead_code, reason = "each file of tests has its own copy of this one")]
mod world;

use rustix::process::{Pid, Signal, kill_process};
use std::fs;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::process::{Child, ExitStatus, Stdio};
use std::time::{Duration, Instant};
use world::*;

/// What a daemon takes at most that ends, and a busy machine more.
const SOON: Duration = Duration::from_secs(30);

/// A daemon that keeps so many ready, of small VMs, in the place of the one that is there.
fn keep(world: &mut World, count: u8) {
    let config = format!("warm_pool = {count}\n[vm_defaults]\nmemory_mib = 256\n");
    fs::write("/etc/banger/config.toml", config).unwrap();
    world.kill_daemon();
}

fn send(child: &Child, signal: Signal) {
    kill_process(Pid::from_child(child), signal).unwrap();
}

/// Waits for its end: how it ended, and after how long.
fn ended(child: &mut Child) -> (ExitStatus, Duration) {
    let begun = Instant::now();
    loop {
        if let Some(status) = child.try_wait().unwrap() {
            return (status, begun.elapsed());
        }
        assert!(begun.elapsed() < LONG, "it does not end");
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// Names of what is half made.
fn drafts() -> Vec<String> {
    let entries = fs::read_dir("/var/lib/banger/templates").into_iter().flatten().flatten();
    let names = entries.map(|entry| entry.file_name().into_string().unwrap());
    names.filter(|name| name.ends_with(".draft")).collect()
}

/// How many VMs have a jail, and how many a tap.
fn there() -> (usize, usize) {
    let left = left();
    let jails = left.iter().filter(|what| what.contains("/jail/"));
    (jails.count(), left.iter().filter(|what| what.starts_with("tap-")).count())
}

#[test]
fn what_is_nobodys_goes_and_what_is_somebodys_stays() {
    isolated("what_is_nobodys_goes_and_what_is_somebodys_stays", |world| {
        world.with_arguments(&["--taps-ahead", "2"]);
        keep(world, 2);
        ok(&["template", "build"]);
        ok(&["vm", "create", "web"]);
        ok(&["vm", "start", "web"]);
        // Its command waits for a word, and goes on without the daemon.
        let mut run =
            banger(&["vm", "run", "--name", "job", "--rm", "--", "sh", "-c", "echo begun; read word; echo $word"]);
        let mut run = run.stdin(Stdio::piped()).spawn().unwrap();
        let mut out = run.stdout.take().unwrap();
        read_until(&mut out, "begun\n");
        until("two wait, and two are somebody's", || vmms().len() == 4);
        until("a tap is made ahead", || there().1 > 4);
        let build = banger(&["template", "build", "--memory", "192M"]).spawn().unwrap();
        until("one more is made", || !drafts().is_empty() && vmms().len() == 5);

        send(world.daemon(), Signal::TERM);
        let (status, took) = ended(world.daemon());
        println!("figure: the daemon ended after {} ms", took.as_millis());
        assert!(status.code() == Some(0) && took < SOON, "{status} after {took:?}");
        assert_eq!((vmms().len(), there(), drafts()), (2, (2, 2), vec![]));
        let built = build.wait_with_output().unwrap();
        let said = text(&built.stderr);
        assert!(built.status.code() == Some(130) && said.contains("[interrupted]"), "{}: {said}", built.status);
        let refused = banger(&["vm", "list"]).output().unwrap();
        assert_eq!(refused.status.code(), Some(6), "{}", text(&refused.stderr));
        run.stdin.take().unwrap().write_all(b"done\n").unwrap();
        read_until(&mut out, "done\n");
        let told = run.wait_with_output().unwrap();
        assert_eq!(told.status.code(), Some(0), "{}", text(&told.stderr));

        fs::remove_file("/etc/banger/config.toml").unwrap();
        world.with_arguments(&["--taps-ahead", "0"]);
        assert_eq!(ok(&["vm", "exec", "web", "--", "echo", "here"]), "here\n");
        until("the run's VM went with it", || ok(&["vm", "list", "--quiet"]) == "web\n");
        let log = fs::read_to_string("/mnt/daemon.log").unwrap();
        let last = log.rsplit("\"bangerd ends\"").next().unwrap();
        assert!(!last.contains("is taken away"), "nothing was left: {last}");
        ok(&["vm", "rm", "-f", "web"]);
        ok(&["template", "rm", "files"]);
        until("nothing is left", || left().is_empty());
    });
}

/// Takes whoever comes to port 8000 of the guest, greets him, and keeps him.
const SERVER: &str = r#"use IO::Socket::INET; my @all;
my $s = IO::Socket::INET->new(LocalAddr => "127.0.0.1", LocalPort => 8000, Listen => 9) or die;
while (my $c = $s->accept) { syswrite $c, "x"; push @all, $c }"#;

/// Somebody who uses a published port.
fn guest_of(port: u16) -> Option<TcpStream> {
    let mut stream = TcpStream::connect(("127.0.0.1", port)).ok()?;
    stream.read_exact(&mut [0]).ok().map(|()| stream)
}

#[test]
fn a_start_is_waited_for_whoever_uses_a_port_and_no_tap_is_made_behind_it() {
    isolated("a_start_is_waited_for_whoever_uses_a_port_and_no_tap_is_made_behind_it", |world| {
        world.with_arguments(&["--taps-ahead", "2"]);
        ok(&["vm", "create", "web", "--start", "--memory", "256M", "-p", "8080:8000"]);
        let serve = format!("perl -e '{SERVER}' </dev/null >/dev/null 2>&1 &");
        ok(&["vm", "exec", "web", "--", "sh", "-c", &serve]);
        let mut guests = Vec::new();
        until("three use its port", || {
            guests.extend(guest_of(8080));
            guests.len() == 3
        });
        ok(&["vm", "create", "db", "--memory", "256M"]);
        until("two taps are ahead", || there().1 == 3);

        // A start and the end both come to the helper, and neither is through before the other has come.
        send(world.helper(), Signal::STOP);
        let start = banger(&["vm", "start", "db", "--wait", "boot"]).spawn().unwrap();
        until("it is under way", || field("db", "/state") == "starting");
        send(world.daemon(), Signal::TERM);
        std::thread::sleep(Duration::from_secs(1));
        send(world.helper(), Signal::CONT);
        let (status, _) = ended(world.daemon());
        let said = start.wait_with_output().unwrap();
        assert_eq!((status.code(), said.status.code()), (Some(0), Some(0)), "{}", text(&said.stderr));
        assert_eq!((vmms().len(), there()), (2, (2, 2)));
        drop(guests);

        world.with_arguments(&["--taps-ahead", "0"]);
        ok(&["vm", "rm", "-f", "web", "db"]);
        until("nothing is left", || left().is_empty());
    });
}

#[test]
fn it_does_not_wait_for_long_and_not_at_all_when_told_twice() {
    isolated("it_does_not_wait_for_long_and_not_at_all_when_told_twice", |world| {
        keep(world, 1);
        ok(&["template", "build"]);
        for twice in [true, false] {
            until("one waits", || waiting().len() == 1);
            // A helper that answers nobody.
            send(world.helper(), Signal::STOP);
            send(world.daemon(), Signal::INT);
            std::thread::sleep(Duration::from_secs(1));
            assert!(world.daemon().try_wait().unwrap().is_none(), "it waits for the helper");
            if twice {
                send(world.daemon(), Signal::TERM);
            }
            let (status, took) = ended(world.daemon());
            send(world.helper(), Signal::CONT);
            assert_eq!(status.code(), Some(if twice { 130 } else { 0 }));
            assert!(took < if twice { Duration::from_secs(10) } else { SOON }, "{took:?}");
            assert!(twice || took > Duration::from_secs(10), "{took:?}");
            // What it left the next one takes away.
            keep(world, if twice { 1 } else { 0 });
        }
        until("nothing is left", || left().is_empty());
    });
}
