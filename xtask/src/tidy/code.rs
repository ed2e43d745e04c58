//! Rust's text without its words: comments and strings are blanked, so that what is left is code.

/// The text with comments, strings and characters as blanks; the lines stay where they are.
pub(super) fn without_words(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(c) = rest.chars().next() {
        let length = word(rest, out.chars().next_back());
        if length == 0 {
            out.push(c);
            rest = &rest[c.len_utf8()..];
        } else {
            out.extend(rest[..length].chars().map(|c| if c == '\n' { '\n' } else { ' ' }));
            rest = &rest[length..];
        }
    }
    out
}

/// How many bytes at the beginning of `rest` are a comment, a string or a character; 0 where they are code.
fn word(rest: &str, before: Option<char>) -> usize {
    let until = |from: usize, end: &str| rest[from..].find(end).map_or(rest.len(), |at| from + at + end.len());
    let inside_name = before.is_some_and(|c| c.is_alphanumeric() || c == '_');
    if rest.starts_with("//") {
        return rest.find('\n').unwrap_or(rest.len());
    }
    if rest.starts_with("/*") {
        return until(2, "*/");
    }
    if rest.starts_with('"') {
        return quoted(rest, '"');
    }
    if !inside_name {
        let hashes = rest.strip_prefix("br").or_else(|| rest.strip_prefix('r')).map(|raw| {
            let count = raw.bytes().take_while(|&b| b == b'#').count();
            (rest.len() - raw.len() + count, count, raw[count..].starts_with('"'))
        });
        if let Some((at, count, true)) = hashes {
            return until(at + 1, &format!("\"{}", "#".repeat(count)));
        }
    }
    // A character, and not a lifetime: a quote, one character or an escape, a quote.
    if let Some(inner) = rest.strip_prefix('\'') {
        let mut chars = inner.chars();
        return match (chars.next(), chars.next()) {
            (Some('\\'), _) => quoted(rest, '\''),
            (Some(c), Some('\'')) => c.len_utf8() + 2,
            _ => 0,
        };
    }
    0
}

fn quoted(rest: &str, quote: char) -> usize {
    let mut escaped = false;
    for (at, c) in rest.char_indices().skip(1) {
        match c {
            _ if escaped => escaped = false,
            '\\' => escaped = true,
            c if c == quote => return at + 1,
            _ => {}
        }
    }
    rest.len()
}

/// Whether a line has the word, and not a longer one in which it stands.
pub(super) fn has_word(line: &str, word: &str) -> bool {
    let part = |c: char| c.is_alphanumeric() || c == '_';
    line.match_indices(word).any(|(at, _)| {
        !line[..at].chars().next_back().is_some_and(part) && !line[at + word.len()..].chars().next().is_some_and(part)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_code_is_left() {
        let text =
            "let a = \"x // y\\\" z\"; // b\nlet c = r#\"d \" e\"#; /* f\ng */ h('\\'', '\"', b'x', 'i: loop {}) // k";
        let code = without_words(text);
        assert_eq!(code.lines().count(), text.lines().count());
        let words: String = code.split_whitespace().collect::<Vec<_>>().join(" ");
        assert_eq!(words, "let a = ; let c = ; h( , , b , 'i: loop {})");
    }

    #[test]
    fn words_are_whole() {
        assert!(has_word("a unsafe{", "unsafe"));
        assert!(!has_word("unsafe_code", "unsafe") && !has_word("anunsafe", "unsafe"));
    }
}
