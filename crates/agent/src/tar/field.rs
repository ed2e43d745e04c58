//! The fields of a header and the records of pax, as every reader of archives needs them. What is allowed in which
//! archive is its reader's to say.

use super::BLOCK;

/// A text field: up to its NUL.
pub fn text(field: &[u8]) -> &[u8] {
    field.split(|byte| *byte == 0).next().unwrap_or_default()
}

/// Octal digits between blanks; or, where the first byte is 0x80, GNU's big-endian bytes. Nothing counts as zero.
/// `None` for what is no number, or none of 64 bits.
pub fn number(field: &[u8]) -> Option<u64> {
    if let [0x80, rest @ ..] = field {
        return rest.iter().try_fold(0u64, |sum, byte| sum.checked_mul(256)?.checked_add(u64::from(*byte)));
    }
    text(field).trim_ascii().iter().try_fold(0u64, |sum, digit| {
        let digit = digit.checked_sub(b'0').filter(|digit| *digit < 8)?;
        sum.checked_mul(8)?.checked_add(u64::from(digit))
    })
}

/// Decimal digits and nothing else.
pub fn decimal(digits: &[u8]) -> Option<u64> {
    let plain = !digits.is_empty() && digits.iter().all(u8::is_ascii_digit);
    std::str::from_utf8(digits).ok().filter(|_| plain)?.parse().ok()
}

/// Whether a header's sum is right.
pub fn sum_is_right(header: &[u8; BLOCK]) -> bool {
    let of = |bytes: &[u8]| bytes.iter().map(|byte| u64::from(*byte)).sum::<u64>();
    let own = &header[148..156];
    number(own) == Some(of(header) - of(own) + 8 * u64::from(b' '))
}

/// The name in a header. A prefix counts in POSIX's own form alone; GNU's older one has times there.
pub fn name(header: &[u8; BLOCK]) -> Vec<u8> {
    let (name, prefix) = (text(&header[..100]), text(&header[345..500]));
    if header[257..263] == *b"ustar\0" && !prefix.is_empty() { [prefix, b"/", name].concat() } else { name.to_vec() }
}

/// Takes the first of pax's records off: `LENGTH KEY=VALUE\n`, whose length counts itself, in 7 digits at most. `None`
/// where there is none that makes sense; nothing of `records` is to be used then.
pub fn record<'a>(records: &mut &'a [u8]) -> Option<(&'a [u8], &'a [u8])> {
    let blank = records.iter().take(8).position(|byte| *byte == b' ')?;
    let length = usize::try_from(decimal(&records[..blank])?).ok()?;
    let record = records.get(blank + 1..length)?.strip_suffix(b"\n")?;
    *records = &records[length..];
    let equals = record.iter().position(|byte| *byte == b'=')?;
    Some((&record[..equals], &record[equals + 1..]))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_of_both_forms() {
        for (field, want) in [
            (&b"0000644\0"[..], Some(0o644)),
            (b" 644 \0\0\0", Some(0o644)),
            (b"", Some(0)),
            (b"\0\0", Some(0)),
            (b"9", None),
            (b"-1", None),
            (b"\x80\0\0\x01\0", Some(256)),
            (b"\x80\x01\0\0\0\0\0\0\0\0", None),
            (b"\xff\xff", None),
        ] {
            assert_eq!(number(field), want, "{field:?}");
        }
        assert_eq!((decimal(b"10"), decimal(b""), decimal(b"+1"), decimal(b"1 ")), (Some(10), None, None, None));
    }

    #[test]
    fn records_one_by_one() {
        let mut records = &b"11 path=ab\n13 size=1=2=\n"[..];
        assert_eq!(record(&mut records), Some((&b"path"[..], &b"ab"[..])));
        assert_eq!(record(&mut records), Some((&b"size"[..], &b"1=2="[..])));
        assert!(records.is_empty());
        for bad in
            [&b""[..], b"9 path=a", b"3 \n", b"0 a=b\n", b"99 a=b\n", b"x a=b\n", b"00000006 a=b\n", b"6 a=b\0\n"]
        {
            assert_eq!(record(&mut &*bad), None, "{bad:?}");
        }
    }
}
