//! Netlink's messages as bytes: a writer and a reader for attributes, the same for links, rules and connections. Pure.
//!
//! `include/uapi/linux/netlink.h`: a header of 16 bytes, the family's own header, attributes of `length, type, value`,
//! all of it aligned to 4. The reader believes no length that it is given.

use std::ffi::CStr;

/// The type of an answer that is an error, or with the number 0 a receipt.
pub(crate) const ERROR: u16 = 2;
/// The type of an answer that ends a dump.
pub(crate) const DONE: u16 = 3;

/// Every request.
pub(crate) const REQUEST: u16 = 0x1;
/// A receipt is wanted.
pub(crate) const ACK: u16 = 0x4;
/// A list is wanted.
pub(crate) const DUMP: u16 = 0x300;
/// Make it where it is missing.
pub(crate) const CREATE: u16 = 0x400;
/// Fail where it is there already.
pub(crate) const EXCL: u16 = 0x200;

const NESTED: u16 = 0x8000;
const HEADER: usize = 16;

/// Requests, one behind the other, to be sent in one datagram.
#[derive(Debug, Default)]
pub(crate) struct Requests {
    bytes: Vec<u8>,
    starts: Vec<usize>,
}

impl Requests {
    /// Adds a request: its type, its flags, its family's header; attributes follow.
    pub(crate) fn push(&mut self, kind: u16, flags: u16, family_header: &[u8]) -> Attrs<'_> {
        // A usual conversation fits.
        self.bytes.reserve(if self.bytes.is_empty() { 512 } else { 0 });
        let start = self.bytes.len();
        self.starts.push(start);
        self.bytes.extend([0; 4]);
        self.bytes.extend(kind.to_ne_bytes());
        self.bytes.extend((flags | REQUEST).to_ne_bytes());
        self.bytes.extend([0; 8]);
        self.bytes.extend(family_header);
        pad(&mut self.bytes);
        let length = (self.bytes.len() - start) as u32;
        self.bytes[start..start + 4].copy_from_slice(&length.to_ne_bytes());
        Attrs { out: &mut self.bytes, start, inner: None }
    }

    /// Asks for a receipt of the last request: what is before it in a batch has come through then.
    pub(crate) fn ask_receipt(&mut self) {
        if let Some(&at) = self.starts.last() {
            let flags = u16::from_ne_bytes([self.bytes[at + 6], self.bytes[at + 7]]) | ACK;
            self.bytes[at + 6..at + 8].copy_from_slice(&flags.to_ne_bytes());
        }
    }

    /// How many requests there are.
    pub(crate) fn len(&self) -> usize {
        self.starts.len()
    }

    /// The flags of each.
    pub(crate) fn flags(&self) -> Vec<u16> {
        self.starts.iter().map(|&at| u16::from_ne_bytes([self.bytes[at + 6], self.bytes[at + 7]])).collect()
    }

    /// The bytes, numbered from `first` on.
    pub(crate) fn numbered(&mut self, first: u32) -> &[u8] {
        for (nth, &start) in self.starts.iter().enumerate() {
            self.bytes[start + 8..start + 12].copy_from_slice(&first.wrapping_add(nth as u32).to_ne_bytes());
        }
        &self.bytes
    }
}

/// Writes the attributes of the last request, or of a nest in it.
pub(crate) struct Attrs<'a> {
    out: &'a mut Vec<u8>,
    /// Where the request begins.
    start: usize,
    /// Where the nest begins.
    inner: Option<usize>,
}

impl Attrs<'_> {
    /// An attribute of any bytes.
    pub(crate) fn bytes(&mut self, kind: u16, value: &[u8]) -> &mut Self {
        self.parts(kind, &[value])
    }

    fn parts(&mut self, kind: u16, parts: &[&[u8]]) -> &mut Self {
        let length: usize = parts.iter().map(|part| part.len()).sum();
        self.out.extend(((4 + length) as u16).to_ne_bytes());
        self.out.extend(kind.to_ne_bytes());
        parts.iter().for_each(|part| self.out.extend(*part));
        pad(self.out);
        self.measure();
        self
    }

    /// A text, with the NUL that the kernel wants.
    pub(crate) fn text(&mut self, kind: u16, value: &str) -> &mut Self {
        self.parts(kind, &[value.as_bytes(), &[0]])
    }

    /// A byte.
    pub(crate) fn u8(&mut self, kind: u16, value: u8) -> &mut Self {
        self.bytes(kind, &[value])
    }

    /// A number in the machine's order.
    pub(crate) fn u32(&mut self, kind: u16, value: u32) -> &mut Self {
        self.bytes(kind, &value.to_ne_bytes())
    }

    /// A number in the network's order.
    pub(crate) fn be32(&mut self, kind: u16, value: u32) -> &mut Self {
        self.bytes(kind, &value.to_be_bytes())
    }

    /// Attributes inside an attribute.
    pub(crate) fn nest(&mut self, kind: u16, fill: impl FnOnce(&mut Attrs<'_>)) -> &mut Self {
        let at = self.out.len();
        self.out.extend(4u16.to_ne_bytes());
        self.out.extend((kind | NESTED).to_ne_bytes());
        fill(&mut Attrs { out: self.out, start: self.start, inner: Some(at) });
        self.measure();
        self
    }

    fn measure(&mut self) {
        if let Some(at) = self.inner {
            let length = (self.out.len() - at) as u16;
            self.out[at..at + 2].copy_from_slice(&length.to_ne_bytes());
        }
        let length = (self.out.len() - self.start) as u32;
        self.out[self.start..self.start + 4].copy_from_slice(&length.to_ne_bytes());
    }
}

fn pad(out: &mut Vec<u8>) {
    out.resize(out.len().next_multiple_of(4), 0);
}

/// One answer.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Answer<'a> {
    /// Its type.
    pub(crate) kind: u16,
    /// Its flags.
    pub(crate) flags: u16,
    /// The number of the request that it answers.
    pub(crate) sequence: u32,
    /// What is behind the header.
    pub(crate) body: &'a [u8],
}

/// The answers in a datagram. What is cut off at the end is no answer.
pub(crate) fn answers(mut bytes: &[u8]) -> impl Iterator<Item = Answer<'_>> {
    std::iter::from_fn(move || {
        let length = u32::from_ne_bytes(*bytes.first_chunk()?) as usize;
        let message = bytes.get(..length).filter(|message| message.len() >= HEADER)?;
        bytes = bytes.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some(Answer {
            kind: u16_at(message, 4)?,
            flags: u16_at(message, 6)?,
            sequence: u32_at(message, 8)?,
            body: &message[HEADER..],
        })
    })
}

/// The attributes in `bytes`, as type and value. What is cut off, or says an impossible length, ends the list.
pub(crate) fn attrs(mut bytes: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
    std::iter::from_fn(move || {
        let length = usize::from(u16_at(bytes, 0)?);
        let kind = u16_at(bytes, 2)? & 0x3fff;
        let value = bytes.get(4..length)?;
        bytes = bytes.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some((kind, value))
    })
}

/// The first attribute of a type.
pub(crate) fn attr(bytes: &[u8], kind: u16) -> Option<&[u8]> {
    attrs(bytes).find(|&(found, _)| found == kind).map(|(_, value)| value)
}

/// A number in the machine's order at an offset.
pub(crate) fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    bytes.get(at..)?.first_chunk().map(|four| u32::from_ne_bytes(*four))
}

/// A short number in the machine's order at an offset.
pub(crate) fn u16_at(bytes: &[u8], at: usize) -> Option<u16> {
    bytes.get(at..)?.first_chunk().map(|two| u16::from_ne_bytes(*two))
}

/// A text, up to its NUL.
pub(crate) fn text(value: &[u8]) -> String {
    match CStr::from_bytes_until_nul(value) {
        Ok(text) => text.to_string_lossy().into_owned(),
        Err(_) => String::from_utf8_lossy(value).into_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_read() {
        let mut requests = Requests::default();
        requests.push(16, ACK, &[1, 2, 3]).text(3, "br-fc").nest(18, |inner| {
            inner.u8(1, 7).nest(2, |deep| {
                deep.be32(9, 0x0102_0304);
            });
        });
        requests.push(18, 0, &[]).u32(1, 5);
        let bytes = requests.numbered(u32::MAX).to_vec();
        let got: Vec<_> = answers(&bytes).collect();
        assert_eq!(got.len(), 2);
        assert_eq!((got[0].kind, got[0].flags, got[0].sequence), (16, ACK | REQUEST, u32::MAX));
        assert_eq!((got[1].kind, got[1].sequence), (18, 0));
        let body = &got[0].body[4..];
        assert_eq!(text(attr(body, 3).unwrap()), "br-fc");
        let inner = attr(body, 18).unwrap();
        assert_eq!(attr(inner, 1).unwrap(), [7]);
        assert_eq!(attr(attr(inner, 2).unwrap(), 9).unwrap(), [1, 2, 3, 4]);
    }

    #[test]
    fn lies_about_lengths_end_the_list() {
        assert_eq!(answers(&[]).count(), 0);
        assert_eq!(answers(&[255; 64]).count(), 0);
        assert_eq!(attrs(&[0, 0, 1, 0, 9, 9, 9, 9]).count(), 0);
        assert_eq!(attrs(&[3, 0, 1, 0]).count(), 0);
        assert_eq!(attrs(&[9, 0, 1, 0, 9, 9, 9, 9]).count(), 0);
        assert_eq!(attrs(&[5, 0, 1, 0, 9]).collect::<Vec<_>>(), [(1, &[9][..])]);
        let mut whole = Requests::default();
        whole.push(1, 0, &[0; 4]).text(1, "x");
        let bytes = whole.numbered(1).to_vec();
        for cut in 0..bytes.len() {
            assert_eq!(answers(&bytes[..cut]).count(), 0, "{cut}");
        }
    }
}
