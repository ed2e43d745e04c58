//! A guest's agent that sends what it likes: the host's half of a call holds to its bounds, and gives one last event, in
//! pieces as whole.
#![no_main]

use std::time::{Duration, Instant};

use agent::host::{Event, Exec, Limits, Program};
use agent::protocol::{Dial, GRANT, Get, Keep, VERSION, stream};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    let Some((&how, bytes)) = data.split_first() else { return };
    let whole = run(how, bytes, bytes.len().max(1));
    assert_eq!(whole, run(how, bytes, usize::from(how) % 61 + 1));
});

/// What became of it, as text; the time stands still.
fn run(how: u8, bytes: &[u8], step: usize) -> String {
    let now = Instant::now();
    let mut exec = call(how, now);
    let mut last = None;
    for piece in bytes.chunks(step) {
        exec.receive(piece, now);
        assert!(exec.output().len() < 256 * 1024, "what waits for the guest has a bound");
        while let Some(event) = exec.next_event() {
            assert!(last.is_none(), "something after the last event");
            last = match event {
                Event::Ended(exit) => Some(format!("{exit:?}")),
                Event::Replied(frame) => Some(format!("{frame:?}")),
                Event::Failed(failure) => Some(format!("{failure}")),
                Event::Greeted(_) | Event::Started(_) | Event::Gone => None,
            };
        }
        for stream in [stream::OUT, stream::ERR] {
            assert!(exec.pending(stream).len() <= GRANT as usize);
            if how & 0x10 != 0 {
                while !exec.pending(stream).is_empty() {
                    let n = exec.pending(stream).len();
                    exec.passed_on(stream, n);
                }
            }
        }
        let n = exec.output().len();
        exec.sent(n);
        let room = exec.input_room();
        exec.input(&[0; 64][..room.min(64)]);
    }
    assert_eq!(last.is_some(), exec.is_over());
    exec.closed();
    exec.tick(now + Duration::from_secs(3600));
    assert!(exec.is_over() && exec.deadline().is_none());
    last.unwrap_or_default()
}

fn call(how: u8, now: Instant) -> Exec {
    let program = Program { args: vec!["cat".into()], user: "root".into(), stdin: true, ..Program::default() };
    match how % 3 {
        0 => Exec::new(&program, Limits::HARDWARE, now).expect("a program"),
        1 => {
            let get =
                Get { v: VERSION, from: "/x".into(), follow: false, contents: false, keep: Keep::User, leave: vec![] };
            Exec::get(get, Limits::HARDWARE, now)
        }
        _ => {
            let dial = Dial { v: VERSION, net: "tcp".into(), addr: [127, 0, 0, 1].into(), port: 1 };
            Exec::dial(dial, Limits::HARDWARE, now)
        }
    }
}
