//! Text of others, made fit for a terminal.

/// `text` on one line: control characters, and those that hide or turn other text, are escaped.
pub(crate) fn line(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        if is_unsafe(c) { out.extend(c.escape_default()) } else { out.push(c) }
    }
    out
}

/// A JSON document on one line that means the same and holds no such character. `json` must be valid JSON.
pub(crate) fn json(json: &str) -> String {
    let mut out = String::with_capacity(json.len());
    for c in json.chars() {
        match c {
            // JSON has these between its tokens only.
            '\n' | '\r' | '\t' => out.push(' '),
            // And these inside strings only.
            c if is_unsafe(c) => {
                let mut units = [0; 2];
                c.encode_utf16(&mut units).iter().for_each(|unit| out.push_str(&format!("\\u{unit:04x}")));
            }
            c => out.push(c),
        }
    }
    out
}

fn is_unsafe(c: char) -> bool {
    c.is_control()
        || matches!(c, '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{206f}' | '\u{feff}')
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn json_keeps_its_meaning(text in "(\\PC|[\u{0}-\u{9f}\u{202e}\u{feff}]){0,40}") {
            let value = serde_json::json!({"a": [text, 1.5, null]});
            // As a helper could write it: escaped no further than JSON asks.
            let shown = json(&serde_json::to_string_pretty(&value).unwrap());
            prop_assert!(!shown.contains(is_unsafe));
            prop_assert_eq!(serde_json::from_str::<serde_json::Value>(&shown).unwrap(), value);
        }

        #[test]
        fn a_line_is_one(text in "(\\PC|[\u{0}-\u{9f}\u{202e}\u{feff}]){0,40}") {
            prop_assert!(!line(&text).contains(is_unsafe));
        }
    }
}
