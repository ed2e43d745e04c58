//! HTTP/1.1 on one connection: a bounded head, a body of a stated length, one answer; and again.

use std::io::{self, Read, Write};

use crate::api::Method;

/// The most bytes of a request's first line and headers.
const MAX_HEAD: usize = 8 * 1024;
/// The most headers.
const MAX_HEADERS: usize = 32;

/// A whole request.
#[derive(Debug)]
pub(crate) struct Request {
    pub(crate) method: Method,
    /// The path, without a host's name before it or a query behind it.
    pub(crate) path: String,
    pub(crate) body: Vec<u8>,
    /// Whether the connection goes on after the answer.
    pub(crate) keep_alive: bool,
}

/// Why there is no request.
#[derive(Debug)]
pub(crate) enum Bad {
    /// The client has gone, or was too slow.
    Gone,
    /// What it sent is refused with this status and message, and the connection ends.
    Refused(u16, String),
}

impl From<io::Error> for Bad {
    fn from(_: io::Error) -> Self {
        Self::Gone
    }
}

fn refused(status: u16, message: &str) -> Bad {
    Bad::Refused(status, message.to_owned())
}

/// What a head says.
struct Head {
    method: Method,
    path: String,
    length: usize,
    keep_alive: bool,
    expects: bool,
    /// Bytes of the head itself.
    end: usize,
}

/// Reads the next request; what was read beyond it stays in `held` for the one after.
///
/// # Errors
/// [`Bad`]
pub(crate) fn read(stream: &mut (impl Read + Write), held: &mut Vec<u8>, max_body: usize) -> Result<Request, Bad> {
    let head = loop {
        if let Some(head) = parse_head(held)? {
            break head;
        }
        if held.len() >= MAX_HEAD {
            return Err(refused(431, "The request's head is longer than 8 KiB."));
        }
        let room = MAX_HEAD - held.len();
        fill(stream, held, room)?;
    };
    if head.length > max_body {
        let message = format!(
            "Request payload with size {} is larger than the limit of {max_body} allowed by server.",
            head.length
        );
        return Err(Bad::Refused(413, message));
    }
    held.drain(..head.end);
    if head.expects && held.len() < head.length {
        stream.write_all(b"HTTP/1.1 100 Continue\r\n\r\n")?;
    }
    while held.len() < head.length {
        let room = head.length - held.len();
        fill(stream, held, room)?;
    }
    let body = held.drain(..head.length).collect();
    Ok(Request { method: head.method, path: head.path, body, keep_alive: head.keep_alive })
}

/// Reads once, at most `room` bytes.
fn fill(stream: &mut impl Read, held: &mut Vec<u8>, room: usize) -> Result<(), Bad> {
    let mut piece = [0; 4096];
    let room = room.min(piece.len());
    match stream.read(&mut piece[..room])? {
        0 => Err(Bad::Gone),
        got => {
            held.extend_from_slice(&piece[..got]);
            Ok(())
        }
    }
}

/// Takes the head apart once it is whole.
fn parse_head(bytes: &[u8]) -> Result<Option<Head>, Bad> {
    let mut headers = [httparse::EMPTY_HEADER; MAX_HEADERS];
    let mut request = httparse::Request::new(&mut headers);
    let end = match request.parse(&bytes[..bytes.len().min(MAX_HEAD)]) {
        Ok(httparse::Status::Complete(end)) => end,
        Ok(httparse::Status::Partial) => return Ok(None),
        Err(httparse::Error::TooManyHeaders) => return Err(refused(431, "The request has more than 32 headers.")),
        Err(error) => return Err(Bad::Refused(400, format!("Invalid HTTP request: {error}."))),
    };
    let method = match request.method {
        Some("GET") => Method::Get,
        Some("PUT") => Method::Put,
        Some("PATCH") => Method::Patch,
        Some("DELETE") => Method::Delete,
        _ => return Err(refused(400, "Unsupported HTTP method.")),
    };
    let mut head = Head {
        method,
        path: path_of(request.path.unwrap_or("/")),
        length: 0,
        keep_alive: request.version == Some(1),
        expects: false,
        end,
    };
    let mut length = None;
    for header in request.headers.iter() {
        let value = std::str::from_utf8(header.value).unwrap_or("").trim_matches([' ', '\t']);
        if header.name.eq_ignore_ascii_case("content-length") {
            let number = content_length(value).filter(|number| length.is_none_or(|before| before == *number));
            length = Some(number.ok_or_else(|| refused(400, "Invalid Content-Length."))?);
        } else if header.name.eq_ignore_ascii_case("transfer-encoding") {
            return Err(refused(400, "Transfer-Encoding is not supported: send a Content-Length."));
        } else if header.name.eq_ignore_ascii_case("expect") {
            if !value.eq_ignore_ascii_case("100-continue") {
                return Err(refused(417, "Only 100-continue can be expected."));
            }
            head.expects = true;
        } else if header.name.eq_ignore_ascii_case("connection") {
            let has = |word: &str| value.split(',').any(|part| part.trim().eq_ignore_ascii_case(word));
            head.keep_alive = (head.keep_alive || has("keep-alive")) && !has("close");
        }
    }
    head.length = length.unwrap_or(0);
    Ok(Some(head))
}

/// Digits only: `+5`, `0x5` and lists are read differently by different programs.
fn content_length(value: &str) -> Option<usize> {
    if value.is_empty() || !value.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    value.parse().ok()
}

fn path_of(target: &str) -> String {
    let path = match target.strip_prefix("http://") {
        Some(rest) => rest.find('/').map_or("/", |at| &rest[at..]),
        None => target,
    };
    path.split('?').next().unwrap_or("/").to_owned()
}

/// Writes an answer in one piece.
///
/// # Errors
/// The client has gone, or doesn't read.
pub(crate) fn write(stream: &mut impl Write, status: u16, body: Option<&str>, keep_alive: bool) -> io::Result<()> {
    let reason = match status {
        200 => "OK",
        204 => "No Content",
        413 => "Payload Too Large",
        417 => "Expectation Failed",
        431 => "Request Header Fields Too Large",
        503 => "Service Unavailable",
        _ => "Bad Request",
    };
    let connection = if keep_alive { "keep-alive" } else { "close" };
    let mut answer = format!("HTTP/1.1 {status} {reason}\r\nServer: Firecracker API\r\nConnection: {connection}\r\n");
    match body {
        Some(body) => {
            answer.push_str("Content-Type: application/json\r\n");
            answer.push_str(&format!("Content-Length: {}\r\n\r\n{body}", body.len()));
        }
        None => answer.push_str("\r\n"),
    }
    stream.write_all(answer.as_bytes())
}

#[cfg(test)]
#[path = "http_tests.rs"]
mod tests;
