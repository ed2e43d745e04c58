//! Parameters from their JSON: strict objects, `null` as zero.

pub(crate) mod base64;

use crate::code::{Code, Refusal};
use serde::de::value::MapAccessDeserializer;
use serde::de::{Deserialize, Deserializer, Error, MapAccess, SeqAccess, Visitor};
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
    fn a_message_repeats_a_wrong_value_in_part() {
        let text = format!("{{\"pid\":\"{}\"}}", "é\u{7f}".repeat(1 << 20));
        let refused = read::<Asks>(Some(&text)).unwrap_err();
        assert!(refused.code == Code::BadParams && refused.message.len() < 1100, "{}", refused.message.len());
        assert!(refused.message.starts_with("invalid type: string") && refused.message.contains("expected i64"));
        assert_eq!(read::<Asks>(Some("{\"pid\":7}")).unwrap().pid, 7);
    }
}
