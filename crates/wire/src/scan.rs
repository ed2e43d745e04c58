//! A strict JSON scanner that takes bytes as they come and knows where the first value ends.
//!
//! Stricter than RFC 8259 where two readers could disagree: a key that an object has already, a lone surrogate, a
//! nesting or a number of keys beyond a bound end the scan. UTF-8 is left to whoever holds the whole value.

use std::ops::Range;

/// Objects and arrays inside one another, the outermost counted.
pub(crate) const MAX_DEPTH: usize = 64;
/// Keys of one object.
pub(crate) const MAX_KEYS: usize = 64;
/// Bytes of one key, escapes resolved.
pub(crate) const MAX_KEY: usize = 256;

/// What ended a scan.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Flaw {
    /// A byte that can't stand here; what could.
    Expected(&'static str),
    /// The same key twice in one object.
    DuplicateKey(String),
    /// A bound of this module, in words.
    Beyond(&'static str),
}

/// One member of the outermost object.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Member {
    /// Its key, escapes resolved.
    pub(crate) key: String,
    /// Where its value lies in the bytes that were scanned.
    pub(crate) value: Range<usize>,
}

enum State {
    /// Before the outermost `{`.
    Start,
    /// A value must come.
    Value,
    /// A value or `]`.
    FirstItem,
    /// A key or `}`.
    FirstKey,
    /// A key.
    Key,
    /// A `:`.
    Colon,
    /// `,` or the end of the object or array.
    After,
    /// Inside a string.
    Text,
    /// After a backslash.
    Escape,
    /// Inside `\uXXXX`: digits still to come, and their value so far.
    Hex(u8, u16),
    /// After a high surrogate: a backslash, then a `u`, must come.
    LowBackslash,
    LowU,
    Number(Number),
    /// Inside `true`, `false` or `null`: what must still come.
    Literal(&'static [u8]),
    Done,
}

#[derive(Clone, Copy)]
enum Number {
    Sign,
    Zero,
    Integer,
    Point,
    Fraction,
    Exponent,
    ExponentSign,
    ExponentDigits,
}

enum Level {
    Object(Vec<Vec<u8>>),
    Array,
}

/// The scanner. Feed it with [`Scanner::feed`] until it has the end.
pub(crate) struct Scanner {
    levels: Vec<Level>,
    state: State,
    in_key: bool,
    high: Option<u16>,
    key: Vec<u8>,
    begin: usize,
    members: Vec<Member>,
}

impl Scanner {
    pub(crate) fn new() -> Scanner {
        Scanner {
            levels: Vec::new(),
            state: State::Start,
            in_key: false,
            high: None,
            key: Vec::new(),
            begin: 0,
            members: Vec::new(),
        }
    }

    /// The outermost object's members, as far as they were scanned.
    pub(crate) fn into_members(self) -> Vec<Member> {
        self.members
    }

    /// Scans `all[from..]`, where `all[..from]` was scanned before. The index behind the value's last byte once it is
    /// whole, `None` while more must come.
    pub(crate) fn feed(&mut self, all: &[u8], from: usize) -> Result<Option<usize>, Flaw> {
        let mut at = from;
        while at < all.len() {
            if matches!(self.state, State::Text) {
                at += self.plain_run(&all[at..])?;
                if at == all.len() {
                    break;
                }
            }
            // A number ends with the byte behind it, which is then looked at again.
            if self.step(all[at], at)? {
                at += 1;
            }
            if matches!(self.state, State::Done) {
                return Ok(Some(at));
            }
        }
        Ok(None)
    }

    /// The length of the run of bytes that mean themselves in a string.
    fn plain_run(&mut self, bytes: &[u8]) -> Result<usize, Flaw> {
        let run = plain(bytes);
        if self.in_key {
            self.push_key(&bytes[..run])?;
        }
        Ok(run)
    }

    fn push_key(&mut self, bytes: &[u8]) -> Result<(), Flaw> {
        if self.key.len() + bytes.len() > MAX_KEY {
            return Err(Flaw::Beyond("a key of more than 256 bytes"));
        }
        self.key.extend_from_slice(bytes);
        Ok(())
    }

    /// Takes one byte. False where it was not used up.
    fn step(&mut self, byte: u8, at: usize) -> Result<bool, Flaw> {
        let blank = matches!(byte, b' ' | b'\t' | b'\n' | b'\r');
        match self.state {
            State::Start if blank => {}
            State::Start if byte == b'{' => self.open(byte, at)?,
            State::Start => return Err(Flaw::Expected("an object")),
            State::Value | State::FirstItem | State::FirstKey | State::Key | State::Colon | State::After if blank => {}
            State::FirstItem if byte == b']' => self.close(at),
            State::Value | State::FirstItem => self.value(byte, at)?,
            State::FirstKey if byte == b'}' => self.close(at),
            State::FirstKey | State::Key if byte == b'"' => {
                self.in_key = true;
                self.key.clear();
                self.state = State::Text;
            }
            State::FirstKey => return Err(Flaw::Expected("a key or the end of the object")),
            State::Key => return Err(Flaw::Expected("a key")),
            State::Colon if byte == b':' => self.state = State::Value,
            State::Colon => return Err(Flaw::Expected("a colon")),
            State::After => self.after(byte, at)?,
            State::Text | State::Escape | State::Hex(..) | State::LowBackslash | State::LowU => self.text(byte, at)?,
            State::Number(number) => return self.number(number, byte, at),
            State::Literal(rest) => match rest.split_first() {
                Some((&want, rest)) if want == byte => {
                    self.state = State::Literal(rest);
                    if rest.is_empty() {
                        self.ended(at + 1);
                    }
                }
                _ => return Err(Flaw::Expected("true, false or null")),
            },
            State::Done => return Ok(false),
        }
        Ok(true)
    }

    /// The first byte of a value.
    fn value(&mut self, byte: u8, at: usize) -> Result<(), Flaw> {
        if self.levels.len() == 1 {
            self.begin = at;
        }
        self.state = match byte {
            b'{' | b'[' => return self.open(byte, at),
            b'"' => State::Text,
            b'-' => State::Number(Number::Sign),
            b'0' => State::Number(Number::Zero),
            b'1'..=b'9' => State::Number(Number::Integer),
            b't' => State::Literal(b"rue"),
            b'f' => State::Literal(b"alse"),
            b'n' => State::Literal(b"ull"),
            _ => return Err(Flaw::Expected("a value")),
        };
        self.in_key = false;
        Ok(())
    }

    fn open(&mut self, byte: u8, _at: usize) -> Result<(), Flaw> {
        if self.levels.len() == MAX_DEPTH {
            return Err(Flaw::Beyond("more than 64 levels of nesting"));
        }
        if byte == b'{' {
            self.levels.push(Level::Object(Vec::new()));
            self.state = State::FirstKey;
        } else {
            self.levels.push(Level::Array);
            self.state = State::FirstItem;
        }
        Ok(())
    }

    fn close(&mut self, at: usize) {
        self.levels.pop();
        self.ended(at + 1);
    }

    /// A value has ended before byte `end`.
    fn ended(&mut self, end: usize) {
        self.state = if self.levels.is_empty() { State::Done } else { State::After };
        if self.levels.len() == 1
            && let Some(member) = self.members.last_mut()
        {
            member.value = self.begin..end;
        }
    }

    fn after(&mut self, byte: u8, at: usize) -> Result<(), Flaw> {
        match (byte, self.levels.last()) {
            (b',', Some(Level::Object(_))) => self.state = State::Key,
            (b',', Some(Level::Array)) => self.state = State::Value,
            (b'}', Some(Level::Object(_))) | (b']', Some(Level::Array)) => self.close(at),
            _ => return Err(Flaw::Expected("a comma or the end of the object or array")),
        }
        Ok(())
    }

    fn text(&mut self, byte: u8, at: usize) -> Result<(), Flaw> {
        match self.state {
            State::Text if byte == b'"' => {
                if self.in_key {
                    self.key_ended()?;
                } else {
                    self.ended(at + 1);
                }
            }
            State::Text if byte == b'\\' => self.state = State::Escape,
            State::Text => return Err(Flaw::Expected("no control character in a string")),
            State::Escape if byte == b'u' => self.state = State::Hex(4, 0),
            State::Escape => {
                let meant = match byte {
                    b'"' | b'\\' | b'/' => byte,
                    b'b' => 8,
                    b'f' => 12,
                    b'n' => b'\n',
                    b'r' => b'\r',
                    b't' => b'\t',
                    _ => return Err(Flaw::Expected("an escape that JSON knows")),
                };
                self.character(char::from(meant))?;
            }
            State::Hex(left, value) => {
                let digit = char::from(byte).to_digit(16).ok_or(Flaw::Expected("four hexadecimal digits"))?;
                let value = value << 4 | u16::try_from(digit).unwrap_or(0);
                if left > 1 {
                    self.state = State::Hex(left - 1, value);
                } else {
                    self.unit(value)?;
                }
            }
            State::LowBackslash if byte == b'\\' => self.state = State::LowU,
            State::LowU if byte == b'u' => self.state = State::Hex(4, 0),
            _ => return Err(LONE_SURROGATE),
        }
        Ok(())
    }

    /// A UTF-16 code unit that was escaped.
    fn unit(&mut self, unit: u16) -> Result<(), Flaw> {
        match (self.high.take(), unit) {
            (None, 0xd800..=0xdbff) => {
                self.high = Some(unit);
                self.state = State::LowBackslash;
                Ok(())
            }
            (Some(high), 0xdc00..=0xdfff) => {
                let code = 0x10000 + ((u32::from(high) - 0xd800) << 10) + (u32::from(unit) - 0xdc00);
                self.character(char::from_u32(code).ok_or(LONE_SURROGATE)?)
            }
            (None, _) => self.character(char::from_u32(u32::from(unit)).ok_or(LONE_SURROGATE)?),
            _ => Err(LONE_SURROGATE),
        }
    }

    fn character(&mut self, c: char) -> Result<(), Flaw> {
        self.state = State::Text;
        if self.in_key {
            self.push_key(c.encode_utf8(&mut [0; 4]).as_bytes())?;
        }
        Ok(())
    }

    fn key_ended(&mut self) -> Result<(), Flaw> {
        self.in_key = false;
        self.state = State::Colon;
        let outermost = self.levels.len() == 1;
        let Some(Level::Object(keys)) = self.levels.last_mut() else {
            return Err(Flaw::Expected("an object"));
        };
        if keys.len() == MAX_KEYS {
            return Err(Flaw::Beyond("more than 64 keys in one object"));
        }
        // The envelope's keys are taken in any case, so two that differ in case alone are the same.
        let folded = if outermost { fold(&self.key).into_bytes() } else { std::mem::take(&mut self.key) };
        if keys.contains(&folded) {
            let key = if outermost { &self.key } else { &folded };
            return Err(Flaw::DuplicateKey(String::from_utf8_lossy(key).into_owned()));
        }
        keys.push(folded);
        if outermost {
            let key = String::from_utf8_lossy(&self.key).into_owned();
            self.members.push(Member { key, value: 0..0 });
        }
        Ok(())
    }

    fn number(&mut self, number: Number, byte: u8, at: usize) -> Result<bool, Flaw> {
        use Number::*;
        let next = match (number, byte) {
            (Sign, b'0') => Zero,
            (Sign | Integer, b'0'..=b'9') => Integer,
            (Zero | Integer, b'.') => Point,
            (Point | Fraction, b'0'..=b'9') => Fraction,
            (Zero | Integer | Fraction, b'e' | b'E') => Exponent,
            (Exponent, b'+' | b'-') => ExponentSign,
            (Exponent | ExponentSign | ExponentDigits, b'0'..=b'9') => ExponentDigits,
            (Zero | Integer | Fraction | ExponentDigits, _) => {
                self.ended(at);
                return Ok(false);
            }
            _ => return Err(Flaw::Expected("a digit")),
        };
        self.state = State::Number(next);
        Ok(true)
    }
}

/// A key of the envelope in the one case that all its cases have. The Kelvin sign and the long s are a k and an s, as
/// in the decoder that existing helpers have: two readers must not take one text for two requests.
pub(crate) fn fold(key: &[u8]) -> String {
    let folded = |c| match c {
        '\u{212a}' => 'k',
        '\u{17f}' => 's',
        c => c.to_ascii_lowercase(),
    };
    String::from_utf8_lossy(key).chars().map(folded).collect()
}

const LONE_SURROGATE: Flaw = Flaw::Expected("no lone surrogate in a string");

/// How many bytes from the beginning on mean themselves in a string.
fn plain(bytes: &[u8]) -> usize {
    const TOGETHER: usize = 64;
    let means_more = |&b: &u8| b == b'"' || b == b'\\' || b < 0x20;
    // A file of many megabytes comes as one string. Without a way out of its middle a piece is compared many bytes at once.
    let is_plain = |piece: &&[u8]| !piece.iter().fold(false, |found, b| found | means_more(b));
    let pieces = bytes.chunks_exact(TOGETHER).take_while(is_plain).count() * TOGETHER;
    let rest = &bytes[pieces..];
    pieces + rest.iter().position(means_more).unwrap_or(rest.len())
}

#[cfg(test)]
#[path = "scan_tests.rs"]
mod tests;
