//! Bytes in, one request's envelope out, or which limit was reached. No I/O.
//!
//! A request ends with the last byte of one JSON object: no newline and no end of file is waited for, and what follows
//! is never looked at.

use crate::code::{Code, Refusal, shown};
use crate::scan::{self, Flaw, Scanner};
use std::borrow::Cow;
use std::ops::Range;

/// Collects the bytes of one request.
///
/// ```
/// let mut decoder = wire::frame::Decoder::new(1 << 20);
/// assert!(decoder.push(br#"{"method":"priv.delete_tap","#).unwrap().is_none());
/// let frame = decoder.push(br#""params":{"tap_name":"tap-fc-1"}}"#).unwrap().unwrap();
/// assert_eq!(frame.envelope().unwrap().method, "priv.delete_tap");
/// ```
pub struct Decoder {
    text: String,
    /// The beginning of a character whose other bytes must come.
    cut: Vec<u8>,
    scanned: usize,
    scanner: Scanner,
    limit: usize,
}

impl Decoder {
    /// A decoder for a request of at most `limit` bytes.
    pub fn new(limit: usize) -> Decoder {
        Decoder { text: String::new(), cut: Vec::new(), scanned: 0, scanner: Scanner::new(), limit }
    }

    /// How many bytes have come.
    pub fn received(&self) -> usize {
        self.text.len() + self.cut.len()
    }

    /// Takes the next bytes. The frame once it is whole; `bad_request` as soon as it can't become one.
    pub fn push(&mut self, bytes: &[u8]) -> Result<Option<Frame>, Refusal> {
        let all = self.append(bytes);
        let end = self.scanner.feed(self.text.as_bytes(), self.scanned).map_err(refusal)?;
        self.scanned = self.text.len();
        match end {
            Some(end) if end <= self.limit => {
                let mut text = std::mem::take(&mut self.text);
                text.truncate(end);
                let scanner = std::mem::replace(&mut self.scanner, Scanner::new());
                Frame::new(text, scanner).map(Some)
            }
            None if self.received() < self.limit => all.map(|()| None),
            _ => Err(bad(format!("the request has more than {} bytes", self.limit))),
        }
    }

    /// Appends what is text, which is looked at while it is in the processor's caches, and says whether all is.
    fn append(&mut self, mut bytes: &[u8]) -> Result<(), Refusal> {
        while !self.cut.is_empty()
            && let Some((first, rest)) = bytes.split_first()
        {
            self.cut.push(*first);
            bytes = rest;
            match std::str::from_utf8(&self.cut) {
                Ok(character) => {
                    self.text.push_str(character);
                    self.cut.clear();
                }
                Err(error) if error.error_len().is_some() => return Err(no_text()),
                Err(_) => {}
            }
        }
        if let Ok(text) = std::str::from_utf8(bytes) {
            self.text.push_str(text);
            return Ok(());
        }
        let valid = bytes.utf8_chunks().next().map_or("", |chunk| chunk.valid());
        self.text.push_str(valid);
        let rest = &bytes[valid.len()..];
        if std::str::from_utf8(rest).is_err_and(|error| error.error_len().is_some()) {
            return Err(no_text());
        }
        self.cut.extend(rest);
        Ok(())
    }

    /// What to answer when the peer ends its side before the request is whole.
    pub fn ended(&self) -> Refusal {
        if self.received() == 0 {
            bad("no request came before the end of the connection")
        } else {
            bad("the connection ended in the middle of the request")
        }
    }
}

/// One whole JSON object that could be a request.
#[derive(Debug)]
pub struct Frame {
    text: String,
    method: Option<Range<usize>>,
    params: Option<Range<usize>>,
    op_id: Option<Range<usize>>,
    version: Option<Range<usize>>,
}

impl Frame {
    fn new(text: String, scanner: Scanner) -> Result<Frame, Refusal> {
        let mut frame = Frame { text, method: None, params: None, op_id: None, version: None };
        for member in scanner.into_members() {
            let place = match scan::fold(member.key.as_bytes()).as_str() {
                "method" => &mut frame.method,
                "params" => &mut frame.params,
                "op_id" | "opid" => &mut frame.op_id,
                "version" => &mut frame.version,
                _ => continue,
            };
            if place.replace(member.value).is_some() {
                return Err(bad(format!("the key {} stands twice", shown(&member.key))));
            }
        }
        Ok(frame)
    }

    /// The envelope, its types checked.
    pub fn envelope(&self) -> Result<Envelope<'_>, Refusal> {
        let version = self.part(&self.version).unwrap_or("0");
        if version.parse::<i64>().is_err() {
            return Err(bad("version must be an integer"));
        }
        Ok(Envelope {
            method: self.string(&self.method, "method")?,
            op_id: self.string(&self.op_id, "op_id")?,
            params: self.part(&self.params),
        })
    }

    /// The whole text, and where its parameters are.
    pub(crate) fn into_parts(self) -> (String, Option<Range<usize>>) {
        let params = self.params.clone().filter(|_| self.part(&self.params).is_some());
        (self.text, params)
    }

    /// A member's text; `None` where it is missing or `null`.
    fn part(&self, place: &Option<Range<usize>>) -> Option<&str> {
        let text = self.text.get(place.clone()?)?;
        (text != "null").then_some(text)
    }

    fn string(&self, place: &Option<Range<usize>>, key: &'static str) -> Result<Cow<'_, str>, Refusal> {
        match self.part(place) {
            None => Ok(Cow::Borrowed("")),
            Some(text) => serde_json::from_str::<crate::params::Text<'_>>(text)
                .map(|text| text.0)
                .map_err(|_| bad(format!("{key} must be a string"))),
        }
    }
}

/// What a request says around its parameters.
#[derive(Debug, PartialEq, Eq)]
pub struct Envelope<'a> {
    /// The method's name, as it was sent.
    pub method: Cow<'a, str>,
    /// The caller's id of the operation; empty where there is none.
    pub op_id: Cow<'a, str>,
    /// The parameters' text; `None` where they are missing or `null`.
    pub params: Option<&'a str>,
}

fn no_text() -> Refusal {
    bad("the request is not valid UTF-8")
}

fn bad(message: impl Into<String>) -> Refusal {
    Refusal::new(Code::BadRequest, "", message)
}

fn refusal(flaw: Flaw) -> Refusal {
    bad(match flaw {
        Flaw::Expected(what) => format!("the request is not valid JSON: expected {what}"),
        Flaw::DuplicateKey(key) => format!("the key {} stands twice in one object", shown(&key)),
        Flaw::Beyond(what) => format!("the request has {what}"),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn frame(text: &[u8]) -> Result<Option<Frame>, Refusal> {
        Decoder::new(1 << 16).push(text)
    }

    #[test]
    fn a_byte_at_a_time_gives_the_same() {
        let text = br#" {"Version":1,"METHOD":"priv.x","Params":{"a":1},"OpID":"op-1","other":[]} trailing"#;
        let mut decoder = Decoder::new(1 << 16);
        let mut found = None;
        for byte in text {
            if let Some(frame) = decoder.push(&[*byte]).unwrap() {
                found = Some(frame);
                break;
            }
        }
        let found = found.unwrap();
        let envelope = found.envelope().unwrap();
        assert_eq!((envelope.method.as_ref(), envelope.op_id.as_ref()), ("priv.x", "op-1"));
        assert_eq!(envelope.params, Some(r#"{"a":1}"#));
    }

    #[test]
    fn a_character_may_be_cut_anywhere() {
        let text = "{\"op_id\":\"é€😀.\"}";
        for cut in 0..text.len() {
            let (first, rest) = text.as_bytes().split_at(cut);
            let mut decoder = Decoder::new(1 << 16);
            assert!(decoder.push(first).unwrap().is_none());
            assert_eq!(decoder.received(), cut);
            // What is behind the end is no part of it.
            let frame = decoder.push(&[rest, b"\xff"].concat()).unwrap().unwrap();
            assert_eq!(frame.envelope().unwrap().op_id, "é€😀.", "{cut}");
            let mut decoder = Decoder::new(1 << 16);
            decoder.push(first).unwrap();
            let bad = decoder.push(b"\xff").unwrap_err();
            assert_eq!(bad.code, Code::BadRequest, "{cut}");
        }
    }

    #[test]
    fn keys_fold_as_an_existing_helper_folds_them() {
        let found =
            frame("{\"method\":\"m\",\"param\u{17f}\":{\"pid\":1},\"ver\u{17f}ion\":1}".as_bytes()).unwrap().unwrap();
        assert_eq!(found.envelope().unwrap().params, Some("{\"pid\":1}"));
    }

    #[test]
    fn null_and_missing_are_empty() {
        let found = frame(br#"{"method":null,"params":null,"version":null}"#).unwrap().unwrap();
        let envelope = found.envelope().unwrap();
        assert_eq!(envelope, Envelope { method: "".into(), op_id: "".into(), params: None });
    }

    #[test]
    fn wrong_types_of_the_envelope_are_bad_requests() {
        for text in
            [r#"{"version":"1"}"#, r#"{"version":1.0}"#, r#"{"method":5}"#, r#"{"op_id":[]}"#, r#"{"method":{}}"#]
        {
            let refused = frame(text.as_bytes()).unwrap().unwrap().envelope().unwrap_err();
            assert_eq!(refused.code, Code::BadRequest, "{text}");
        }
        for text in [&b"{\"op_id\":\"a\",\"OpID\":\"b\"}"[..], b"{\"method\":\"\xff\"}", b"[]", b"null"] {
            assert_eq!(frame(text).unwrap_err().code, Code::BadRequest);
        }
    }

    #[test]
    fn the_limit_is_of_the_value_and_not_of_what_follows() {
        let text = br#"{"a":"12345678"}"#;
        assert!(Decoder::new(text.len()).push(text).unwrap().is_some());
        assert!(Decoder::new(text.len() - 1).push(text).is_err());
        assert!(Decoder::new(4).push(b"{\"a\"").is_err());
        let mut long = text.to_vec();
        long.resize(1000, b' ');
        assert!(Decoder::new(text.len()).push(&long).unwrap().is_some());
    }
}
