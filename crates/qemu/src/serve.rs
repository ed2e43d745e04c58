//! The API's socket: a thread for each connection, so that a slow client holds up nobody.

use std::io::{self, Read, Write};
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed, Ordering::SeqCst};
use std::time::{Duration, Instant};

use wire::firecracker::Fault as FaultBody;

use crate::GENERIC_ERROR;
use crate::api;
use crate::http::{self, Bad};
use crate::socket::OwnSocket;
use crate::vmm::Vmm;

/// The most connections at once.
const MAX_CONNECTIONS: usize = 32;
/// The most beyond them that are told so; above, they are closed without a word.
const MAX_REFUSALS: usize = 16;
/// How long a connection may say nothing between two requests, and how long a request may take from its first byte to
/// its last: who sends a byte now and then must not hold one of few places.
const IDLE: Duration = Duration::from_secs(30);

/// Accepts until the process ends.
pub(crate) fn serve(socket: &OwnSocket, vmm: &Arc<Vmm>, max_body: usize) {
    let open = Arc::new(AtomicUsize::new(0));
    loop {
        let mut stream = match socket.listener().accept() {
            Ok((stream, _)) => stream,
            Err(error) => {
                // Too many open files, most likely: others end soon.
                vmm.log().error(&format!("The API can't accept a connection: {error}"));
                std::thread::sleep(Duration::from_millis(100));
                continue;
            }
        };
        if stream.set_write_timeout(Some(Duration::from_secs(5))).is_err() {
            continue;
        }
        let before = open.load(SeqCst);
        if before >= MAX_CONNECTIONS + MAX_REFUSALS {
            continue;
        }
        open.fetch_add(1, SeqCst);

        let (served, counted) = (Arc::clone(vmm), Counted(Arc::clone(&open)));
        let started = std::thread::Builder::new().name("api".into()).spawn(move || {
            if before < MAX_CONNECTIONS {
                connection(stream, &served, max_body);
            } else {
                refuse(&mut stream, 503, "Too many open connections.");
            }
            drop(counted);
        });
        if let Err(error) = started {
            vmm.log().error(&format!("The API has no thread for a connection: {error}"));
        }
    }
}

/// Counts a connection out, however its thread ends.
struct Counted(Arc<AtomicUsize>);

impl Drop for Counted {
    fn drop(&mut self) {
        self.0.fetch_sub(1, SeqCst);
    }
}

/// A connection that waits for a whole request only so long.
struct Patient {
    stream: UnixStream,
    patience: Duration,
    /// When the request has to be there, once it has begun.
    until: Option<Instant>,
}

impl Read for Patient {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        let left = self.until.map_or(self.patience, |until| until.saturating_duration_since(Instant::now()));
        if left.is_zero() {
            return Err(io::ErrorKind::TimedOut.into());
        }
        self.stream.set_read_timeout(Some(left))?;
        let got = self.stream.read(into)?;
        self.until.get_or_insert_with(|| Instant::now() + self.patience);
        Ok(got)
    }
}

impl Write for Patient {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.stream.write(bytes)
    }
    fn flush(&mut self) -> io::Result<()> {
        self.stream.flush()
    }
}

fn connection(stream: UnixStream, vmm: &Vmm, max_body: usize) {
    let mut stream = Patient { stream, patience: IDLE, until: None };
    let mut held = Vec::new();
    loop {
        // What came with the request before may be the beginning of this one.
        stream.until = (!held.is_empty()).then(|| Instant::now() + stream.patience);
        let request = match http::read(&mut stream, &mut held, max_body) {
            Ok(request) => request,
            Err(Bad::Gone) => return,
            Err(Bad::Refused(status, message)) => {
                vmm.metrics().api_refused.fetch_add(1, Relaxed);
                refuse(&mut stream.stream, status, &message);
                return;
            }
        };
        let Answer { status, body, ends } = answer(vmm, &request);
        let keep_alive = request.keep_alive && ends.is_none();
        let written = http::write(&mut stream, status, body.as_deref(), keep_alive);
        if let Some(why) = ends {
            vmm.give_up(GENERIC_ERROR, &why);
        }
        if written.is_err() || !keep_alive {
            return;
        }
    }
}

/// What is sent, and why the process ends afterwards, where it does.
struct Answer {
    status: u16,
    body: Option<String>,
    ends: Option<String>,
}

fn answer(vmm: &Vmm, request: &http::Request) -> Answer {
    let what = format!("{:?} request on {:?}", request.method, request.path);
    vmm.log().info(&format!("The API server received a {what}."));
    vmm.metrics().api_requests.fetch_add(1, Relaxed);
    match api::parse(request.method, &request.path, &request.body).and_then(|action| api::dispatch(vmm, action)) {
        Ok(None) => Answer { status: 204, body: None, ends: None },
        Ok(Some(body)) => Answer { status: 200, body: Some(body), ends: None },
        Err(refusal) => {
            vmm.metrics().api_refused.fetch_add(1, Relaxed);
            vmm.log().error(&format!("{what}: {refusal}"));
            let ends = refusal.ends.then(|| refusal.to_string());
            Answer { status: 400, body: Some(fault(&refusal.to_string())), ends }
        }
    }
}

/// Answers for the last time, and reads on for a moment: what is closed with unread bytes in it takes its answer along.
fn refuse(stream: &mut UnixStream, status: u16, message: &str) {
    let end = Instant::now() + Duration::from_secs(1);
    let ready = http::write(stream, status, Some(&fault(message)), false)
        .and_then(|()| stream.shutdown(std::net::Shutdown::Write))
        .and_then(|()| stream.set_read_timeout(Some(Duration::from_secs(1))));
    let mut piece = [0; 4096];
    while ready.is_ok() && Instant::now() < end && stream.read(&mut piece).is_ok_and(|got| got > 0) {}
}

fn fault(message: &str) -> String {
    let body = FaultBody { fault_message: message.to_owned() };
    serde_json::to_string(&body).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;
    use std::os::unix::net::UnixStream;
    use std::time::{Duration, Instant};

    use super::Patient;
    use crate::http::{self, Bad};

    #[test]
    fn a_request_that_never_gets_whole_is_given_up() {
        let (stream, mut client) = UnixStream::pair().expect("a pair");
        let mut stream = Patient { stream, patience: Duration::from_millis(200), until: None };
        std::thread::spawn(move || {
            while client.write_all(b"x").is_ok() {
                std::thread::sleep(Duration::from_millis(20));
            }
        });
        let begin = Instant::now();
        assert!(matches!(http::read(&mut stream, &mut b"GET /".to_vec(), 100), Err(Bad::Gone)));
        assert!(begin.elapsed() < Duration::from_secs(2), "{:?}", begin.elapsed());
    }
}
