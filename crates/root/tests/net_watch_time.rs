//! How soon it is back where others can take it away: 200 flushes while the machine is busy. Heard by a thread that runs
//! before all others: from the foreign commit to ours, and from the end of the program that made it. At that end the
//! kernel waits for a grace period with all of nftables locked (`nft_rcv_nl_event`), and we with it.

#![allow(clippy::disallowed_methods, reason = "the bans are the helper's; a test sets its world up by paths")]

mod common;
#[path = "net/watched.rs"]
mod watched;
#[path = "net/way_out.rs"]
mod way_out;
#[path = "net/world.rs"]
mod world;

use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};
use sys::netlink::Family;
use sys::netlink_events::Events;
use watched::{ANYBODYS, ours, world};
use way_out::gets_out;

/// This thread runs before all that have no such right.
fn before_all_others() {
    let tid = rustix::thread::gettid().as_raw_nonzero().to_string();
    common::output("chrt", &["-f", "-R", "-p", "50", &tid]);
}

/// Whose commit ended, and when.
fn commits() -> Receiver<(String, Instant)> {
    let events = Events::open(Family::Netfilter, &[7]).expect("a socket");
    let (told, heard) = channel();
    std::thread::spawn(move || {
        before_all_others();
        let mut buffer = vec![0; 64 << 10];
        loop {
            let mut fds = [rustix::event::PollFd::new(&events, rustix::event::PollFlags::IN)];
            rustix::event::poll(&mut fds, None).expect("poll");
            let now = Instant::now();
            while let Ok(Some(length)) = events.receive(&mut buffer) {
                // The last message of a commit, NFT_MSG_NEWGEN, holds the program's name.
                let datagram = &buffer[..length];
                let has = |name: &[u8]| datagram.windows(name.len()).any(|part| part == name);
                let by = if has(b"nft\0") { "nft" } else { "the helper" };
                if told.send((by.to_owned(), now)).is_err() {
                    return;
                }
            }
        }
    });
    heard
}

/// A program that is busy, in a session of its own, as another service's is: with us in one, it would be our share of the
/// processor that it takes.
struct Busy(std::process::Child);

impl Busy {
    fn start() -> Busy {
        let spawned = std::process::Command::new("setsid").args(["sh", "-c", "while :; do :; done"]).spawn();
        Busy(spawned.expect("setsid"))
    }
}

impl Drop for Busy {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

isolated! { fn two_hundred_flushes_on_a_busy_machine() {
    let (_helper, guest) = world(ANYBODYS);
    let before = ours();
    let commits = commits();
    let busy: Vec<_> = (0..3).map(|_| Busy::start()).collect();
    let (mut took, mut late) = (Vec::new(), Vec::new());
    before_all_others();
    for round in 0..200 {
        while commits.try_recv().is_ok() {}
        watched::nft("flush ruleset");
        let ended = Instant::now();
        let mut foreign = None;
        let back = loop {
            let (by, at) = commits.recv_timeout(Duration::from_secs(2)).unwrap_or_else(|_| panic!("not back within 2 s, round {round}\n{}", common::log_text()));
            match by.as_str() {
                "nft" => foreign = Some(at),
                _ if foreign.is_some() => break at,
                _ => {}
            }
        };
        took.push(back - foreign.unwrap());
        late.push(back.saturating_duration_since(ended));
        // More than twenty a second are a fight.
        std::thread::sleep(Duration::from_millis(60));
    }
    drop(busy);
    for (since, all) in [("the foreign commit", &mut took), ("the end of its program", &mut late)] {
        all.sort();
        println!("figure: 200 flushes beside three busy loops, from {since}: median {:?}, p90 {:?}, p99 {:?}, longest {:?}", all[100], all[180], all[198], all[199]);
    }
    assert!(took[199] < Duration::from_secs(2));
    assert_eq!(ours(), before);
    gets_out(&guest);
} }
