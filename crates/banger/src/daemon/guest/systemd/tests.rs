//! A guest that says that it runs what it is told, and then never comes to an end.

use super::*;
use crate::daemon::guest;
use agent::protocol::{Hello, Kind, Started, encode_json};
use std::cell::Cell;
use std::io::{Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};

/// What it says when it is called, and then again and again.
type Dribble = (Vec<u8>, &'static [u8]);

/// Bytes of a frame of its program's.
fn of_a_frame() -> Dribble {
    let mut said = Vec::new();
    encode_json(&mut said, Kind::Started, 0, &Started { id: "1".into(), pid: 2 });
    said.extend([0xff, 0x0f, 0, 0, Kind::Data as u8, 1]);
    (said, b" ")
}

/// Whole frames of a kind that is passed over, which are no silence.
fn of_nothing() -> Dribble {
    (Vec::new(), &[0, 0, 0, 0, 200, 0])
}

/// One call, by `act`, to a guest that dribbles until it is hung up on. How long it took.
fn beside<T: std::fmt::Debug>(dribble: Dribble, act: impl FnOnce(&Path) -> T) -> (T, Duration) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("vsock");
    let listener = UnixListener::bind(&path).unwrap();
    let guest = std::thread::spawn(move || serve(listener.accept().unwrap().0, dribble).unwrap_err());
    let begun = Instant::now();
    let done = act(&path);
    let took = begun.elapsed();
    let hung_up = guest.join().unwrap().kind();
    let is_heard = matches!(hung_up, io::ErrorKind::BrokenPipe | io::ErrorKind::ConnectionReset);
    assert!(is_heard, "it was heard as far as its dribble: {hung_up}, {done:?}");
    (done, took)
}

fn serve(mut stream: UnixStream, (first, again): Dribble) -> io::Result<()> {
    stream.read_exact(&mut [0; 13])?;
    let (agent, boot, init) = ("1".to_owned(), "0".repeat(32), "handed-over".to_owned());
    let mut said = b"OK 1\n".to_vec();
    let caps = vec!["exec".into(), "time".into()];
    encode_json(&mut said, Kind::Hello, 0, &Hello { protocol: [1, 1], agent, boot, init, caps });
    stream.write_all(&said)?;
    // It has been called.
    stream.read_exact(&mut [0])?;
    stream.write_all(&first)?;
    loop {
        std::thread::sleep(Duration::from_millis(5));
        stream.write_all(again)?;
    }
}

/// On a busy machine, too.
const SLACK: Duration = Duration::from_secs(20);

#[test]
fn a_guest_that_never_ends_has_its_time_and_no_more() {
    let limit = Duration::from_millis(300);
    let (done, took) = beside(of_a_frame(), |vsock| {
        run(vsock, roots(&GO_ON), Bounds { end: Instant::now() + limit, is_enough: &|| false }).map(drop)
    });
    assert!(matches!(done, Err(Failure::Io(_))), "{done:?}");
    assert!(took >= limit && took < SLACK, "{took:?}");
}

#[test]
fn what_watches_it_goes_on_meanwhile_and_can_end_it() {
    let looks = Cell::new(0);
    let is_enough = || {
        looks.set(looks.get() + 1);
        looks.get() > 50
    };
    let (done, took) = beside(of_a_frame(), |vsock| go_on(vsock, &is_enough));
    assert!(done.is_err() && looks.get() > 50 && took < SLACK, "{took:?}, {} looks", looks.get());
}

#[test]
fn frames_that_are_passed_over_are_no_answer() {
    let limit = Duration::from_millis(300);
    let time = |vsock: &Path| guest::call(vsock, limit).map_err(Failure::from)?.time();
    let (done, took) = beside(of_nothing(), time);
    assert!(matches!(done, Err(Failure::Io(_))), "{done:?}");
    assert!(took >= limit && took < SLACK, "{took:?}");

    let looks = Cell::new(0);
    let is_over = || {
        looks.set(looks.get() + 1);
        looks.get() > 50
    };
    let (done, took) = beside(of_nothing(), |vsock| guest::set_clock(vsock, &is_over));
    assert!(done.is_err() && looks.get() > 50 && took < guest::ANSWER, "{took:?}, {} looks", looks.get());
}
