//! The scanner's tests: where a value ends, what ends a scan, however the bytes are cut.

use super::*;
use proptest::prelude::*;

fn scan(text: &[u8]) -> Result<Option<usize>, Flaw> {
    Scanner::new().feed(text, 0)
}

#[test]
fn the_end_is_behind_the_last_brace() {
    assert_eq!(scan(b" {} {"), Ok(Some(3)));
    assert_eq!(scan(br#"{"a":[1,-0.5e+3,{"b":"}"}],"c":null}x"#), Ok(Some(36)));
    assert_eq!(scan(br#"{"a":1"#), Ok(None));
    assert_eq!(scan(b""), Ok(None));
}

#[test]
fn what_json_forbids_ends_the_scan() {
    for text in [
        "hello",
        "[",
        "null",
        "{,",
        "{\"a\" 1}",
        "{\"a\":}",
        "{\"a\":1,}",
        "{\"a\":[1,]}",
        "{\"a\":01}",
        "{\"a\":+1}",
        "{\"a\":1.}",
        "{\"a\":1e}",
        "{\"a\":.5}",
        "{\"a\":tru}",
        "{\"a\":\"\\x\"}",
        "{\"a\":\"\x01\"}",
        "{'a':1}",
        "{\"a\":1]",
        "\u{feff}{}",
        "{\"a\":\"\\ud800\"}",
        "{\"a\":\"\\udc00\"}",
        "{\"a\":\"\\ud800\\u0041\"}",
        "{\"a\":\"\\ud800x\"}",
    ] {
        assert!(scan(text.as_bytes()).is_err(), "{text}");
    }
}

#[test]
fn a_key_stands_once() {
    assert_eq!(scan(br#"{"a":1,"A":2}"#), Err(Flaw::DuplicateKey("A".into())));
    assert_eq!(scan(br#"{"x":{"a":1,"A":2}}"#), Ok(Some(19)));
    for (one, other) in [("params", "param\u{17f}"), ("k", "\u{212a}"), ("S", "\\u017f")] {
        let text = format!("{{\"{one}\":1,\"{other}\":2}}");
        assert!(matches!(scan(text.as_bytes()), Err(Flaw::DuplicateKey(_))), "{text}");
        let text = format!("{{\"x\":{text}}}");
        assert_eq!(scan(text.as_bytes()), Ok(Some(text.len())));
    }
    assert_eq!(scan(br#"{"x":{"a":1,"\u0061":2}}"#), Err(Flaw::DuplicateKey("a".into())));
}

#[test]
fn depth_keys_and_key_length_have_bounds() {
    let nested = |n: usize| format!("{{\"a\":{}{}}}", "[".repeat(n), "]".repeat(n));
    assert!(scan(nested(MAX_DEPTH - 1).as_bytes()).is_ok());
    assert!(scan(nested(MAX_DEPTH).as_bytes()).is_err());
    let keys = |n: usize| format!("{{{}}}", (0..n).map(|i| format!("\"k{i}\":0")).collect::<Vec<_>>().join(","));
    assert!(scan(keys(MAX_KEYS).as_bytes()).is_ok());
    assert!(scan(keys(MAX_KEYS + 1).as_bytes()).is_err());
    assert!(scan(format!("{{\"{}\":0}}", "k".repeat(MAX_KEY + 1)).as_bytes()).is_err());
}

#[test]
fn members_tell_where_their_values_lie() {
    let text = br#" {"method" : "m\n" ,"params":{"a":[1]},"n":12,"x":true}"#;
    let mut scanner = Scanner::new();
    assert_eq!(scanner.feed(text, 0), Ok(Some(text.len())));
    let values: Vec<_> = scanner.into_members().into_iter().map(|m| (m.key, text[m.value].to_vec())).collect();
    assert_eq!(values[0], ("method".into(), br#""m\n""#.to_vec()));
    assert_eq!(values[1], ("params".into(), br#"{"a":[1]}"#.to_vec()));
    assert_eq!(values[2], ("n".into(), b"12".to_vec()));
    assert_eq!(values[3], ("x".into(), b"true".to_vec()));
}

proptest! {
    /// However the bytes are cut, the result is the same; and what passes is what serde_json reads.
    #[test]
    fn cuts_do_not_matter(text in r#"[ {}\[\]",:\\u0-9a-ftrnl.eE+-]{0,40}"#, cut in 0usize..40) {
        let text = format!("{{{text}");
        let whole = scan(text.as_bytes());
        let mut scanner = Scanner::new();
        let cut = cut.min(text.len());
        let first = scanner.feed(&text.as_bytes()[..cut], 0);
        let second = match first { Ok(None) => scanner.feed(text.as_bytes(), cut), other => other };
        prop_assert_eq!(&whole, &second);
        if let Ok(Some(end)) = whole {
            prop_assert!(serde_json::from_str::<serde_json::Value>(&text[..end]).is_ok());
        }
    }

    /// Any JSON object of serde_json's making passes, to its last byte.
    #[test]
    fn honest_json_passes(keys in proptest::collection::vec("\\PC{0,8}", 0..6), n in any::<f64>(), s in "\\PC*") {
        let mut map = serde_json::Map::new();
        for (index, key) in keys.iter().enumerate() {
            map.insert(format!("{index}{key}"), serde_json::json!([n, s, {"k": null}]));
        }
        let text = serde_json::Value::Object(map).to_string();
        prop_assert_eq!(scan(text.as_bytes()), Ok(Some(text.len())));
    }
}

#[test]
fn a_run_ends_where_a_byte_means_more() {
    for at in 0..200 {
        for byte in *b"\"\\\x1f" {
            let mut text = [b'a'; 200];
            text[at] = byte;
            assert_eq!(plain(&text), at);
        }
    }
    assert_eq!(plain(&[0xff; 129]), 129);
    assert_eq!(plain(b""), 0);
}
