//! Bytes as standard, padded base64. A file of many megabytes passes here, so its text isn't copied and its bytes are
//! decoded over it; line breaks in it are skipped, as the existing helper does.

use base64::engine::general_purpose::STANDARD;
use base64::{DecodeError, DecodeSliceError, Engine as _};
use serde::de::{Deserialize, Deserializer, Error, Visitor};
use std::borrow::Cow;
use std::fmt;
use std::io;
use std::ops::Range;

/// Characters that are decoded at once; four of them are three bytes.
const PIECE: usize = 4096;

/// Bytes, or the text that stands for them.
pub(crate) enum Base64<'a> {
    /// Written by [`write`], by the formatter that both sides have.
    Bytes(Vec<u8>),
    /// As it was read, not decoded yet; borrowed where it has no escapes, and then it has no line breaks either.
    Text(Cow<'a, str>),
}

impl Default for Base64<'_> {
    fn default() -> Self {
        Base64::Text("".into())
    }
}

impl Base64<'_> {
    /// The bytes.
    pub(crate) fn decode(self) -> Result<Vec<u8>, String> {
        match self {
            Base64::Bytes(bytes) => Ok(bytes),
            Base64::Text(Cow::Borrowed(text)) => STANDARD.decode(text).map_err(|error| refused(&error)),
            Base64::Text(Cow::Owned(text)) => {
                let mut bytes = text.into_bytes();
                bytes.retain(|byte| !matches!(byte, b'\n' | b'\r'));
                let all = 0..bytes.len();
                decode_over(bytes, all)
            }
        }
    }

    /// Where its text lies in the one that it was borrowed from.
    pub(crate) fn place_in(&self, text: &str) -> Option<Range<usize>> {
        let Base64::Text(Cow::Borrowed(part)) = self else { return None };
        let start = part.as_ptr().addr().checked_sub(text.as_ptr().addr())?;
        let place = start..start.checked_add(part.len())?;
        (place.end <= text.len()).then_some(place)
    }
}

/// Decodes `text[place]` over the beginning of `text`, which becomes its bytes. They are fewer than the characters that
/// they come from, so none is written before it was read.
pub(crate) fn decode_over(mut text: Vec<u8>, place: Range<usize>) -> Result<Vec<u8>, String> {
    let mut piece = [0; PIECE / 4 * 3];
    let (mut from, mut to) = (place.start, 0);
    while from < place.end {
        let next = place.end.min(from + PIECE);
        let characters = &text[from..next];
        let at = |error| refused(&behind(error, from - place.start));
        let length = match STANDARD.decode_slice(characters, &mut piece) {
            Ok(length) => length,
            Err(DecodeSliceError::DecodeError(error)) => return Err(at(error)),
            // It is as long as the bytes of that many characters.
            Err(error @ DecodeSliceError::OutputSliceTooSmall) => return Err(error.to_string()),
        };
        if next < place.end && length < piece.len() {
            let padding = characters.iter().position(|&byte| byte == b'=').unwrap_or(0);
            return Err(at(DecodeError::InvalidByte(padding, b'=')));
        }
        text[to..to + length].copy_from_slice(&piece[..length]);
        (from, to) = (next, to + length);
    }
    text.truncate(to);
    Ok(text)
}

/// The error as it is where so many characters come first.
fn behind(error: DecodeError, before: usize) -> DecodeError {
    match error {
        DecodeError::InvalidByte(at, byte) => DecodeError::InvalidByte(before + at, byte),
        DecodeError::InvalidLength(length) => DecodeError::InvalidLength(before + length),
        other => other,
    }
}

fn refused(error: &DecodeError) -> String {
    format!("not standard base64: {error}")
}

/// Writes bytes as a JSON string. Nothing in base64 needs an escape, so it isn't looked through for any.
pub(crate) fn write(bytes: &[u8], out: &mut (impl io::Write + ?Sized)) -> io::Result<()> {
    const PIECE: usize = 48 << 10;
    let mut text = vec![0; base64::encoded_len(bytes.len().min(PIECE), true).unwrap_or(0)];
    out.write_all(b"\"")?;
    for piece in bytes.chunks(PIECE) {
        let length = STANDARD.encode_slice(piece, &mut text).map_err(|error| io::Error::other(error.to_string()))?;
        out.write_all(&text[..length])?;
    }
    out.write_all(b"\"")
}

impl<'de: 'a, 'a> Deserialize<'de> for Base64<'a> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Text;
        impl<'de> Visitor<'de> for Text {
            type Value = Base64<'de>;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a base64 string")
            }
            fn visit_borrowed_str<E: Error>(self, text: &'de str) -> Result<Self::Value, E> {
                Ok(Base64::Text(Cow::Borrowed(text)))
            }
            fn visit_str<E: Error>(self, text: &str) -> Result<Self::Value, E> {
                Ok(Base64::Text(Cow::Owned(text.to_owned())))
            }
        }
        deserializer.deserialize_str(Text)
    }
}

impl serde::Serialize for Base64<'_> {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Base64::Bytes(bytes) => serializer.serialize_bytes(bytes),
            Base64::Text(text) => serializer.serialize_str(text),
        }
    }
}

#[cfg(feature = "schema")]
impl schemars::JsonSchema for Base64<'_> {
    fn schema_name() -> Cow<'static, str> {
        "Base64".into()
    }
    fn json_schema(_: &mut schemars::SchemaGenerator) -> schemars::Schema {
        schemars::json_schema!({"type": "string", "contentEncoding": "base64"})
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn text(data: &[u8]) -> String {
        let mut out = Vec::new();
        crate::reply::write(&Base64::Bytes(data.to_vec()), &mut out).unwrap();
        String::from_utf8(out).unwrap()
    }

    fn read(text: &str) -> Result<Vec<u8>, String> {
        serde_json::from_str::<Base64<'_>>(text).unwrap().decode()
    }

    #[test]
    fn there_and_back() {
        for data in [&b""[..], b"w", b"we", b"web\n", &[7; 200_000]] {
            let text = text(data);
            assert_eq!(text, format!("\"{}\"", STANDARD.encode(data)));
            assert_eq!(read(&text).unwrap(), data);
        }
        assert_eq!(read(r#""d2Vi\r\nCg\n==""#).unwrap(), b"web\n");
        for bad in [r#""d2ViCg""#, r#""d2Vi-g==""#, r#""d2\nViCg""#] {
            assert!(read(bad).is_err(), "{bad}");
        }
    }

    proptest! {
        #[test]
        fn over_its_text_it_is_decoded_as_beside_it(
            data in proptest::collection::vec(any::<u8>(), 0..4 * PIECE),
            before in 0_usize..40,
            behind in 0_usize..40,
            changed in proptest::option::of((any::<prop::sample::Index>(), prop::sample::select(&b"=A/\n-"[..]))),
            cut in 0_usize..6,
        ) {
            let mut encoded = STANDARD.encode(&data).into_bytes();
            encoded.truncate(encoded.len() - encoded.len().min(cut));
            if let Some((at, byte)) = changed
                && !encoded.is_empty()
            {
                let at = at.index(encoded.len());
                encoded[at] = byte;
            }
            let text = [&vec![b'"'; before][..], &encoded, &vec![b'}'; behind]].concat();
            let over = decode_over(text, before..before + encoded.len());
            let beside = STANDARD.decode(&encoded);
            prop_assert_eq!(over.is_ok(), beside.is_ok(), "{:?}, {:?}", over, beside);
            if let (Ok(over), Ok(beside)) = (over, beside) {
                prop_assert!(over == beside);
            }
        }
    }
}
