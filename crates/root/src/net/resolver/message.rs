//! D-Bus messages as bytes: the calls that we write, the replies that we read. Pure.
//!
//! The form is the D-Bus specification's, "Message Protocol"; little endian both ways, as on every machine that we
//! run on. An array's length does not count what aligns its first element, a message's alignment starts at its own
//! first byte.

/// No message that we wait for is longer; a longer one ends the conversation.
pub(super) const LONGEST: usize = 64 << 10;

/// A message's first bytes: enough to know its length.
pub(super) const HEAD: usize = 16;

const METHOD_CALL: u8 = 1;
const METHOD_RETURN: u8 = 2;
const ERROR: u8 = 3;
/// The bus starts no service for this call.
const NO_AUTO_START: u8 = 2;

const PATH: u8 = 1;
const INTERFACE: u8 = 2;
const MEMBER: u8 = 3;
const ERROR_NAME: u8 = 4;
const REPLY_SERIAL: u8 = 5;
const DESTINATION: u8 = 6;
const SIGNATURE: u8 = 8;

/// Values behind one another.
#[derive(Debug, Default)]
pub(super) struct Values(Vec<u8>);

impl Values {
    fn align(&mut self, to: usize) -> &mut Values {
        self.0.resize(self.0.len().next_multiple_of(to), 0);
        self
    }

    /// A byte.
    pub(super) fn byte(&mut self, value: u8) -> &mut Values {
        self.0.push(value);
        self
    }

    /// `q`
    pub(super) fn u16(&mut self, value: u16) -> &mut Values {
        self.align(2).0.extend(value.to_le_bytes());
        self
    }

    /// `u`; `i` and `b` have the same form.
    pub(super) fn u32(&mut self, value: u32) -> &mut Values {
        self.align(4).0.extend(value.to_le_bytes());
        self
    }

    /// `s`, `o`
    pub(super) fn text(&mut self, text: &str) -> &mut Values {
        self.u32(text.len() as u32).0.extend(text.as_bytes());
        self.byte(0)
    }

    /// `g`
    fn signature(&mut self, text: &str) -> &mut Values {
        self.byte(text.len() as u8).0.extend(text.as_bytes());
        self.byte(0)
    }

    /// `ay`
    pub(super) fn bytes(&mut self, bytes: &[u8]) -> &mut Values {
        self.u32(bytes.len() as u32).0.extend(bytes);
        self
    }

    /// An array of structs: `write` puts them down, each begun with [`Values::structure`].
    pub(super) fn structs(&mut self, write: impl FnOnce(&mut Values)) -> &mut Values {
        self.u32(0);
        let length_at = self.0.len() - 4;
        let from = self.align(8).0.len();
        write(self);
        let length = (self.0.len() - from) as u32;
        self.0[length_at..length_at + 4].copy_from_slice(&length.to_le_bytes());
        self
    }

    /// A struct begins.
    pub(super) fn structure(&mut self) -> &mut Values {
        self.align(8)
    }

    fn field(&mut self, code: u8, kind: &str) -> &mut Values {
        self.structure().byte(code).signature(kind)
    }
}

/// Whom a call goes to.
#[derive(Clone, Copy, Debug)]
pub(super) struct Target {
    pub(super) name: &'static str,
    pub(super) path: &'static str,
    pub(super) interface: &'static str,
}

/// A call's bytes. The order of its fields is sd-bus's, so that the two can be compared.
pub(super) fn call(serial: u32, to: &Target, member: &str, signature: &str, body: &Values) -> Vec<u8> {
    let mut out = Values::default();
    out.byte(b'l').byte(METHOD_CALL).byte(NO_AUTO_START).byte(1);
    out.u32(body.0.len() as u32).u32(serial).structs(|fields| {
        fields.field(PATH, "o").text(to.path);
        fields.field(MEMBER, "s").text(member);
        fields.field(INTERFACE, "s").text(to.interface);
        fields.field(DESTINATION, "s").text(to.name);
        if !signature.is_empty() {
            fields.field(SIGNATURE, "g").signature(signature);
        }
    });
    out.align(8).0.extend(&body.0);
    out.0
}

/// The whole length of the message that begins so; `None` where it is none that we read.
pub(super) fn length(head: &[u8; HEAD]) -> Option<usize> {
    let mut reader = Reader { bytes: head, at: 4 };
    let body = reader.u32()? as usize;
    reader.at = 12;
    let fields = reader.u32()? as usize;
    let total = fields.checked_next_multiple_of(8)?.checked_add(HEAD)?.checked_add(body)?;
    (head[0] == b'l' && head[3] == 1 && total <= LONGEST).then_some(total)
}

/// What a message says to the call with one number.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Heard {
    /// Its reply: the body, with its signature.
    Reply(String, Vec<u8>),
    /// An error's name, and its words where there are any.
    Error(String, String),
    /// Another message: a signal, a reply to another call.
    Other,
}

/// Reads a whole message; `None` where it is malformed.
pub(super) fn read(message: &[u8], serial: u32) -> Option<Heard> {
    let head = message.first_chunk::<HEAD>()?;
    if length(head)? != message.len() {
        return None;
    }
    let mut reader = Reader { bytes: message, at: 12 };
    let end = HEAD + reader.u32()? as usize;
    let (mut error, mut to, mut signature) = (String::new(), None, String::new());
    while reader.at < end {
        reader.align(8);
        let code = reader.byte()?;
        // All fields of all versions have one of these types.
        match (code, reader.signature()?) {
            (ERROR_NAME, "s") => error = reader.text()?.to_owned(),
            (REPLY_SERIAL, "u") => to = Some(reader.u32()?),
            (SIGNATURE, "g") => signature = reader.signature()?.to_owned(),
            (_, "s" | "o") => drop(reader.text()?),
            (_, "g") => drop(reader.signature()?),
            (_, "u") => drop(reader.u32()?),
            _ => return None,
        }
    }
    if reader.at != end {
        return None;
    }
    let body = message.get(end.next_multiple_of(8)..)?;
    Some(match message[1] {
        METHOD_RETURN if to == Some(serial) => Heard::Reply(signature, body.to_vec()),
        ERROR if to == Some(serial) => Heard::Error(error, first_text(&signature, body)),
        _ => Heard::Other,
    })
}

fn first_text(signature: &str, body: &[u8]) -> String {
    let text = signature.starts_with('s').then(|| Reader { bytes: body, at: 0 }.text().map(str::to_owned));
    text.flatten().unwrap_or_default()
}

/// A reply that is one number.
pub(super) fn number(body: &[u8]) -> Option<u32> {
    Reader { bytes: body, at: 0 }.u32()
}

struct Reader<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl<'a> Reader<'a> {
    fn align(&mut self, to: usize) {
        self.at = self.at.next_multiple_of(to);
    }

    fn take(&mut self, length: usize) -> Option<&'a [u8]> {
        let end = self.at.checked_add(length)?;
        let taken = self.bytes.get(self.at..end)?;
        self.at = end;
        Some(taken)
    }

    fn byte(&mut self) -> Option<u8> {
        self.take(1).map(|byte| byte[0])
    }

    fn u32(&mut self) -> Option<u32> {
        self.align(4);
        self.take(4)?.try_into().ok().map(u32::from_le_bytes)
    }

    fn ended(&mut self, length: usize) -> Option<&'a str> {
        let text = std::str::from_utf8(self.take(length)?).ok()?;
        (self.byte()? == 0).then_some(text)
    }

    fn text(&mut self) -> Option<&'a str> {
        let length = self.u32()?;
        self.ended(length as usize)
    }

    fn signature(&mut self) -> Option<&'a str> {
        let length = self.byte()?;
        self.ended(length.into())
    }
}

#[cfg(test)]
#[path = "message_tests.rs"]
mod tests;
