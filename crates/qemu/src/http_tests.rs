//! Tests of HTTP: requests in any pieces, and what is refused.

use super::*;

/// A client that sends its bytes in pieces of `step`, and collects what it is answered.
struct Client<'a> {
    bytes: &'a [u8],
    step: usize,
    answers: Vec<u8>,
}

impl Read for Client<'_> {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        let n = self.step.min(into.len()).min(self.bytes.len());
        into[..n].copy_from_slice(&self.bytes[..n]);
        self.bytes = &self.bytes[n..];
        Ok(n)
    }
}

impl Write for Client<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.answers.extend_from_slice(bytes);
        Ok(bytes.len())
    }
    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

fn once(bytes: &[u8], step: usize) -> (Result<Request, Bad>, Vec<u8>) {
    let mut client = Client { bytes, step, answers: Vec::new() };
    (read(&mut client, &mut Vec::new(), 100), client.answers)
}

#[test]
fn a_request_comes_in_any_pieces() {
    let bytes = b"PUT /drives/a?x=1 HTTP/1.1\r\nHost: localhost\r\nContent-Length: 5\r\n\r\n{\"a\"}";
    for step in [1, 2, 7, 4096] {
        let request = once(bytes, step).0.expect("a request");
        assert_eq!((request.method, request.path.as_str()), (Method::Put, "/drives/a"));
        assert_eq!((request.body.as_slice(), request.keep_alive), (&b"{\"a\"}"[..], true));
    }
}

#[test]
fn requests_follow_one_another_on_a_connection() {
    let bytes = b"GET / HTTP/1.1\r\n\r\nPUT /x HTTP/1.1\r\ncontent-length:2\r\n\r\n{}GET /version HTTP/1.0\r\n\r\n";
    let mut client = Client { bytes, step: 4096, answers: Vec::new() };
    let mut held = Vec::new();
    let mut next = || read(&mut client, &mut held, 100);
    assert_eq!(next().expect("first").path, "/");
    assert_eq!(next().expect("second").body, b"{}");
    let last = next().expect("third");
    assert_eq!((last.path.as_str(), last.keep_alive), ("/version", false));
    assert!(matches!(next(), Err(Bad::Gone)));
}

#[test]
fn expectation_is_answered_before_the_body() {
    let bytes = b"PUT /x HTTP/1.1\r\nExpect: 100-continue\r\nContent-Length: 2\r\n\r\n{}";
    assert_eq!(once(bytes, 30).1, b"HTTP/1.1 100 Continue\r\n\r\n");
    // Too large: the refusal comes in its place.
    let (request, answers) = once(b"PUT /x HTTP/1.1\r\nExpect: 100-continue\r\nContent-Length: 101\r\n\r\n", 4096);
    assert!(matches!(request, Err(Bad::Refused(413, _))) && answers.is_empty());
}

#[test]
fn what_is_refused_has_its_status() {
    let long = format!("GET /{} HTTP/1.1\r\n\r\n", "x".repeat(9000));
    let many = format!("GET / HTTP/1.1\r\n{}\r\n", "a: b\r\n".repeat(40));
    for (bytes, expected) in [
        (&b"POST / HTTP/1.1\r\n\r\n"[..], 400),
        (b"GET / HTTP/2.0\r\n\r\n", 400),
        (b"\x00\x01\x02\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nContent-Length: +5\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nContent-Length: 1, 1\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nContent-Length: \xC2\xA01\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nContent-Length: 99999999999999999999999\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nExpect: a miracle\r\n\r\n", 417),
        (b"PUT / HTTP/1.1\r\nContent-Length: 18446744073709551615\r\n\r\n", 413),
        (long.as_bytes(), 431),
        (many.as_bytes(), 431),
    ] {
        match once(bytes, 4096).0 {
            Err(Bad::Refused(status, message)) => assert_eq!(status, expected, "{message}"),
            other => panic!("{other:?} for {:?}", String::from_utf8_lossy(bytes)),
        }
    }
}

#[test]
fn answers_are_framed() {
    let mut out = Vec::new();
    write(&mut out, 204, None, true).expect("written");
    assert_eq!(out, b"HTTP/1.1 204 No Content\r\nServer: Firecracker API\r\nConnection: keep-alive\r\n\r\n");
    out.clear();
    write(&mut out, 200, Some("{}"), false).expect("written");
    assert!(out.ends_with(b"Content-Length: 2\r\n\r\n{}") && out.starts_with(b"HTTP/1.1 200 OK\r\n"));
}
