//! Parameters from their JSON: strict objects, `null` as zero, base64 without a copy of its text.

use crate::code::{Code, Refusal};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::de::value::MapAccessDeserializer;
use serde::de::{Deserialize, Deserializer, Error, MapAccess, SeqAccess, Visitor};
use serde_json::value::RawValue;
use std::borrow::Cow;
use std::fmt;
use std::marker::PhantomData;

/// Reads `params`. A key that stands twice is `bad_request`, everything else `bad_params`.
pub(crate) fn read<'a, T: Deserialize<'a>>(params: Option<&'a str>) -> Result<T, Refusal> {
    serde_json::from_str::<Object<T>>(params.unwrap_or("{}")).map(|object| object.0).map_err(|error| {
        let message = error.to_string();
        // serde's own words, with a field's name out of our own structs.
        let code = if message.starts_with("duplicate field") { Code::BadRequest } else { Code::BadParams };
        Refusal::new(code, "", bounded(message))
    })
}

/// serde repeats a string of the wrong type whole, and a request holds one of many megabytes. Both ends are kept: what
/// was found, what was expected and where.
fn bounded(message: String) -> String {
    const LONGEST: usize = 1024;
    const END: usize = 256;
    if message.len() <= LONGEST {
        return message;
    }
    let before = message.floor_char_boundary(LONGEST - END);
    let behind = message.ceil_char_boundary(message.len() - END);
    format!("{}…{}", &message[..before], &message[behind..])
}

/// A JSON object and nothing else: serde's derived structs take an array as well.
pub(crate) struct Object<T>(pub(crate) T);

impl<'de, T: Deserialize<'de>> Deserialize<'de> for Object<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Map<T>(PhantomData<T>);
        impl<'de, T: Deserialize<'de>> Visitor<'de> for Map<T> {
            type Value = Object<T>;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object")
            }
            fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<Object<T>, A::Error> {
                T::deserialize(MapAccessDeserializer::new(map)).map(Object)
            }
        }
        deserializer.deserialize_map(Map(PhantomData))
    }
}

/// `null` is the zero value.
pub(crate) fn zero<'de, D: Deserializer<'de>, T: Deserialize<'de> + Default>(deserializer: D) -> Result<T, D::Error> {
    Ok(Option::<T>::deserialize(deserializer)?.unwrap_or_default())
}

/// An object, or `null` for the zero value.
pub(crate) fn object<'de, D: Deserializer<'de>, T: Deserialize<'de> + Default>(deserializer: D) -> Result<T, D::Error> {
    Ok(Option::<Object<T>>::deserialize(deserializer)?.map(|object| object.0).unwrap_or_default())
}

/// An object, or `null` for none.
pub(crate) fn optional<'de, D: Deserializer<'de>, T: Deserialize<'de>>(deserializer: D) -> Result<Option<T>, D::Error> {
    Ok(Option::<Object<T>>::deserialize(deserializer)?.map(|object| object.0))
}

/// A list of objects, or `null` for none; a `null` in it is the zero value.
pub(crate) fn objects<'de, D: Deserializer<'de>, T: Deserialize<'de> + Default>(
    deserializer: D,
) -> Result<Vec<T>, D::Error> {
    let items = Option::<List<Option<Object<T>>>>::deserialize(deserializer)?.map(|list| list.0).unwrap_or_default();
    Ok(items.into_iter().map(|item| item.map(|object| object.0).unwrap_or_default()).collect())
}

/// A list of texts, or `null` for none; a `null` in it is the empty text.
pub(crate) fn texts<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<String>, D::Error> {
    let items = Option::<List<Option<String>>>::deserialize(deserializer)?.map(|list| list.0).unwrap_or_default();
    Ok(items.into_iter().map(Option::unwrap_or_default).collect())
}

/// The most items of one list. An empty object is two bytes of text and twenty times as much memory, so what bounds the
/// text does not bound the list.
const MAX_ITEMS: usize = 16_384;

struct List<I>(Vec<I>);

impl<'de, I: Deserialize<'de>> Deserialize<'de> for List<I> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Items<I>(PhantomData<I>);
        impl<'de, I: Deserialize<'de>> Visitor<'de> for Items<I> {
            type Value = List<I>;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a list")
            }
            fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<List<I>, A::Error> {
                let mut items = Vec::new();
                while let Some(item) = seq.next_element()? {
                    if items.len() == MAX_ITEMS {
                        return Err(A::Error::custom(format_args!("a list of more than {MAX_ITEMS} items")));
                    }
                    items.push(item);
                }
                Ok(List(items))
            }
        }
        deserializer.deserialize_seq(Items(PhantomData))
    }
}

/// A string, borrowed where it has no escapes.
#[derive(serde::Deserialize)]
pub(crate) struct Text<'a>(#[serde(borrow)] pub(crate) Cow<'a, str>);

/// Bytes as standard, padded base64; line breaks in it are skipped, as the existing helper does.
#[derive(Default)]
pub(crate) struct Base64(pub(crate) Vec<u8>);

impl<'de> Deserialize<'de> for Base64 {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Bytes;
        impl Visitor<'_> for Bytes {
            type Value = Base64;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a base64 string")
            }
            fn visit_str<E: Error>(self, text: &str) -> Result<Base64, E> {
                // Hardly any text has line breaks, and to look for them takes longer than to decode it.
                let decoded = STANDARD.decode(text).or_else(|error| {
                    let joined = text.replace(['\n', '\r'], "");
                    if joined.len() == text.len() { Err(error) } else { STANDARD.decode(joined) }
                });
                decoded.map(Base64).map_err(|error| E::custom(format_args!("not standard base64: {error}")))
            }
        }
        deserializer.deserialize_str(Bytes)
    }
}

impl serde::Serialize for Base64 {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        // Nothing in base64 needs an escape: handed on as JSON that is ready, it isn't looked through for any.
        let mut text = String::with_capacity(self.0.len() / 3 * 4 + 6);
        text.push('"');
        STANDARD.encode_string(&self.0, &mut text);
        text.push('"');
        RawValue::from_string(text).map_err(serde::ser::Error::custom)?.serialize(serializer)
    }
}

#[cfg(feature = "schema")]
impl schemars::JsonSchema for Base64 {
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

    #[derive(Debug, serde::Deserialize)]
    #[serde(deny_unknown_fields)]
    struct Asks {
        #[serde(default, deserialize_with = "zero")]
        pid: i64,
    }

    #[test]
    fn base64_there_and_back() {
        for data in [&b""[..], b"w", b"we", b"web\n"] {
            let text = serde_json::to_string(&Base64(data.to_vec())).unwrap();
            assert_eq!(text, format!("\"{}\"", STANDARD.encode(data)));
            assert_eq!(serde_json::from_str::<Base64>(&text).unwrap().0, data);
        }
        assert_eq!(serde_json::from_str::<Base64>(r#""d2Vi\r\nCg\n==""#).unwrap().0, b"web\n");
        for bad in [r#""d2ViCg""#, r#""d2Vi-g==""#, r#""d2\nViCg""#] {
            assert!(serde_json::from_str::<Base64>(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_message_repeats_a_wrong_value_in_part() {
        let text = format!("{{\"pid\":\"{}\"}}", "é\u{7f}".repeat(1 << 20));
        let refused = read::<Asks>(Some(&text)).unwrap_err();
        assert!(refused.code == Code::BadParams && refused.message.len() < 1100, "{}", refused.message.len());
        assert!(refused.message.starts_with("invalid type: string") && refused.message.contains("expected i64"));
        assert_eq!(read::<Asks>(Some("{\"pid\":7}")).unwrap().pid, 7);
    }
}
