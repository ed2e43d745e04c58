//! Durations as a person writes them.

use std::time::Duration;

const UNITS: [(&str, u64); 4] = [("ms", 1), ("h", 3_600_000), ("m", 60_000), ("s", 1000)];

/// Reads `90s`, `1h30m`, `250ms`; a bare number is seconds. Never zero, at most a day.
pub(crate) fn parse(text: &str) -> Result<Duration, String> {
    let wrong =
        || format!("{} is no duration: numbers with h, m, s or ms, such as 90s or 1h30m", wire::code::shown(text));
    let mut total: u64 = 0;
    let mut rest = text;
    while !rest.is_empty() {
        let digits = rest.bytes().take_while(u8::is_ascii_digit).count();
        let number: u64 = rest[..digits].parse().map_err(|_| wrong())?;
        rest = &rest[digits..];
        let (unit, factor) = match UNITS.iter().find(|(unit, _)| rest.starts_with(unit)) {
            Some(&found) => found,
            None if rest.is_empty() && digits == text.len() => ("", 1000),
            None => return Err(wrong()),
        };
        rest = &rest[unit.len()..];
        total = number.checked_mul(factor).and_then(|part| total.checked_add(part)).ok_or_else(wrong)?;
    }
    match total {
        1..=86_400_000 => Ok(Duration::from_millis(total)),
        _ => Err(format!("{} is not between 1ms and 24h", wire::code::shown(text))),
    }
}

/// Reads how old something is: `7d`, or what [`parse`] reads.
pub(crate) fn age(text: &str) -> Result<Duration, String> {
    let days =
        text.strip_suffix('d').filter(|days| (1..=5).contains(&days.len()) && days.bytes().all(|b| b.is_ascii_digit()));
    match days.and_then(|days| days.parse::<u64>().ok()) {
        Some(days) => Ok(Duration::from_secs(days * 86_400)),
        None => parse(text).map_err(|error| format!("{error}; or days: 7d")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ages() {
        let seconds = |text| age(text).map(|age| age.as_secs()).ok();
        assert_eq!([seconds("7d"), seconds("0d"), seconds("12h"), seconds("60")], [604_800, 0, 43_200, 60].map(Some));
        for bad in ["d", "1.5d", "-1d", "123456d", "1w", "d1"] {
            assert!(age(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn durations() {
        for (text, ms) in [("90s", 90_000), ("1h30m", 5_400_000), ("5", 5000), ("250ms", 250), ("1s500ms", 1500)] {
            assert_eq!(parse(text), Ok(Duration::from_millis(ms)), "{text}");
        }
        for bad in ["", "0", "0s", "s", "1d", "-1s", "1.5s", "1h5", " 1s", "25h", "99999999999999999999", "1 s", "5sm"]
        {
            assert!(parse(bad).is_err(), "{bad}");
        }
    }
}
