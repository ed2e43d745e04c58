//! A guest of a template that is none of ours: whatever it says, and however slowly, it is over in time.

use super::*;
use agent::copy::Copied;
use agent::protocol::{Decoder, Hello, Kind, Start, encode_json};
use serde_json::json;
use std::os::unix::net::UnixListener;
use wire::name::guest_path::GuestPath;

/// What it does in the place of one step of the conversation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Instead {
    Nothing,
    Nonsense,
    End,
    /// A byte now and then, of a frame that never ends.
    Dribble,
    /// The same, of an answer that is not the one.
    Other,
    Refusal,
}

/// The steps, in their order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Step {
    Ok,
    Hello,
    Start,
    Put,
    Digest,
}

/// A guest that does `step` otherwise, or all of it well.
struct Guest(Option<(Step, Instead)>);

impl Guest {
    /// One connection: the first is the call of `start`, the second that of `put`.
    fn serve(&self, stream: &mut UnixStream, is_put: bool) -> io::Result<()> {
        let mut asked = [0; 13];
        stream.read_exact(&mut asked)?;
        let step = |step, good: Vec<u8>, stream: &mut UnixStream| self.step(step, &good, is_put, stream);
        step(Step::Ok, b"OK 1\n".to_vec(), stream)?;
        let caps = ["start", "tar"].map(str::to_owned).to_vec();
        let (agent, boot, init) = ("1".to_owned(), "0".repeat(32), "self".to_owned());
        step(Step::Hello, framed(Kind::Hello, &Hello { protocol: [1, 1], agent, boot, init, caps }), stream)?;
        wait_for(stream, Kind::Call)?;
        if !is_put {
            return step(Step::Start, framed(Kind::Reply, &json!({})), stream);
        }
        step(Step::Put, Vec::new(), stream)?;
        let archive = wait_for(stream, Kind::End)?;
        let sha256 = crate::image::store::hex(&<sha2::Sha256 as sha2::Digest>::digest(&archive));
        let copied = Copied { entries: 1, bytes: 1, sha256, ..Copied::default() };
        step(Step::Digest, framed(Kind::Reply, &copied), stream)?;
        wait_for(stream, Kind::Bye).map(drop)
    }

    fn step(&self, step: Step, good: &[u8], is_put: bool, stream: &mut UnixStream) -> io::Result<()> {
        // The first call's greeting is the one that is done otherwise.
        let instead = self.0.filter(|(at, _)| *at == step && (!is_put || step != Step::Hello && step != Step::Ok));
        let Some((_, instead)) = instead else { return stream.write_all(good) };
        let error = json!({"code": "no", "message": "no"});
        match instead {
            Instead::Nothing => {}
            Instead::Nonsense => stream.write_all(&[0xff; 4096])?,
            Instead::End => stream.shutdown(std::net::Shutdown::Both)?,
            Instead::Dribble => {
                let kind = if step == Step::Hello { Kind::Hello } else { Kind::Reply };
                stream.write_all(&[0xff, 0x0f, 0, 0, kind as u8, 0])?;
                loop {
                    std::thread::sleep(Duration::from_millis(5));
                    stream.write_all(b" ")?;
                }
            }
            Instead::Other if step == Step::Digest => {
                let copied = Copied { entries: 1, bytes: 1, sha256: "0".repeat(64), ..Copied::default() };
                stream.write_all(&framed(Kind::Reply, &copied))?;
            }
            Instead::Other => stream.write_all(&framed(Kind::Started, &json!({"x": 1})))?,
            Instead::Refusal => stream.write_all(&framed(Kind::Error, &error))?,
        }
        // Until the other end has enough.
        io::copy(stream, &mut io::sink()).and(Err(io::ErrorKind::Other.into()))
    }
}

fn framed(kind: Kind, body: &impl serde::Serialize) -> Vec<u8> {
    let mut out = Vec::new();
    encode_json(&mut out, kind, 0, body);
    out
}

/// Reads until a frame of that kind has come; the bytes of the input until then.
fn wait_for(stream: &mut UnixStream, kind: Kind) -> io::Result<Vec<u8>> {
    let (mut decoder, mut input, mut byte) = (Decoder::new(), Vec::new(), [0]);
    loop {
        stream.read_exact(&mut byte)?;
        let (_, frame) = decoder.take(&byte).map_err(io::Error::other)?;
        match frame {
            Some(frame) if frame.kind == kind => return Ok(input),
            Some(frame) if frame.kind == Kind::Data => input.extend(frame.payload),
            _ => {}
        }
    }
}

/// The conversation with a guest that goes on from a template.
fn converse(vsock: &Path, bounds: Bounds<'_>) -> Result<(), String> {
    let client = call_within(vsock, bounds).map_err(|error| error.to_string())?;
    client.start(Start::default()).map_err(|failure| failure.to_string())?;
    let path = GuestPath::new("/etc/x").unwrap();
    let file = NewFile { path, data: vec![b'x'], mode: 0o644 };
    put_within(vsock, &[file], bounds).map_err(|failure| failure.to_string())
}

fn against(guest: Guest, limit: Duration, is_enough: &dyn Fn() -> bool) -> (Result<(), String>, Duration) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("vsock");
    let listener = UnixListener::bind(&path).unwrap();
    let serving = std::thread::spawn(move || {
        for (n, stream) in listener.incoming().take(2).enumerate() {
            let mut stream = stream.unwrap();
            // Who has hung up hears no more.
            let _ = guest.serve(&mut stream, n == 1);
        }
    });
    let begun = Instant::now();
    let done = converse(&path, Bounds { end: begun + limit, is_enough });
    let took = begun.elapsed();
    // It waits for its two calls.
    for _ in 0..2 {
        let _ = UnixStream::connect(&path);
    }
    serving.join().unwrap();
    (done, took)
}

/// On a busy machine, too.
const SLACK: Duration = Duration::from_secs(20);

#[test]
fn a_good_guest_is_believed() {
    let (done, _) = against(Guest(None), SLACK, &|| false);
    assert_eq!(done, Ok(()));
}

#[test]
fn whatever_another_says_it_is_over_in_time() {
    let all = [Instead::Nothing, Instead::Nonsense, Instead::Dribble, Instead::Other, Instead::Refusal];
    for step in [Step::Ok, Step::Hello, Step::Start, Step::Put, Step::Digest] {
        for instead in all {
            let limit = Duration::from_millis(300);
            let (done, took) = against(Guest(Some((step, instead))), limit, &|| false);
            let why = done.expect_err(&format!("{step:?} {instead:?}"));
            assert!(took < limit + SLACK, "{step:?} {instead:?}: {took:?}, {why}");
        }
        // One that hangs up is known at once: it is no reason to wait for the end.
        if step != Step::Ok {
            let (done, took) = against(Guest(Some((step, Instead::End))), 3 * SLACK, &|| false);
            assert!(done.is_err() && took < SLACK, "{step:?}: {took:?}");
        }
    }
    let (done, _) = against(Guest(Some((Step::Digest, Instead::Other))), SLACK, &|| false);
    assert!(done.unwrap_err().contains("what arrived is not what was sent"), "the wrong digest is named");
}

#[test]
fn a_guest_that_had_its_time_is_not_waited_for() {
    let begun = Instant::now();
    let had_it = || begun.elapsed() > Duration::from_millis(200);
    let (done, took) = against(Guest(Some((Step::Hello, Instead::Dribble))), 3 * SLACK, &had_it);
    assert!(done.is_err() && took < SLACK, "{took:?}");
}
