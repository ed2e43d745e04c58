//! Times as JSON and tables show them.

use std::time::{SystemTime, UNIX_EPOCH};
use wire::time::Utc;

/// A time in UTC, to the second.
pub fn rfc3339(time: SystemTime) -> String {
    format!("{}Z", Utc::since_epoch(time.duration_since(UNIX_EPOCH).unwrap_or_default()))
}

/// Seconds since 1970, now.
pub fn unix_now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}

/// Seconds since 1970 as a time in UTC.
pub fn of_unix(seconds: u64) -> String {
    rfc3339(UNIX_EPOCH + std::time::Duration::from_secs(seconds.min(1 << 40)))
}

/// Milliseconds since 1970, now.
pub fn unix_now_ms() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}

/// Milliseconds since 1970 as a time in UTC, with them.
pub fn of_unix_ms(ms: u64) -> String {
    let seconds = of_unix(ms / 1000);
    format!("{}.{:03}Z", seconds.trim_end_matches('Z'), ms % 1000)
}

/// The seconds since 1970 of a time as [`rfc3339`] writes it.
pub fn parse_rfc3339(text: &str) -> Option<u64> {
    let digits = text.strip_suffix('Z')?;
    let (date, time) = digits.split_once('T')?;
    let mut date = date.split('-').map(|part| part.parse::<u64>().ok());
    let mut time = time.split(':').map(|part| part.parse::<u64>().ok());
    let next = |of: &mut dyn Iterator<Item = Option<u64>>| of.next().flatten();
    let (year, month, day) = (next(&mut date)?, next(&mut date)?, next(&mut date)?);
    let (hour, minute, second) = (next(&mut time)?, next(&mut time)?, next(&mut time)?);
    if !(1970..=9999).contains(&year) || !(1..=12).contains(&month) || !(1..=31).contains(&day) {
        return None;
    }
    // As in `Utc`: years that begin in March.
    let (year, month) = if month > 2 { (year, month - 3) } else { (year - 1, month + 9) };
    let days = 365 * year + year / 4 - year / 100 + year / 400 + (153 * month + 2) / 5 + day - 1 - 719_468;
    Some(days * 86_400 + hour * 3600 + minute * 60 + second)
}

/// How old something is, for a person: its largest unit alone.
pub fn age(seconds: u64) -> String {
    match seconds {
        0..60 => format!("{seconds} s"),
        60..3600 => format!("{} min", seconds / 60),
        3600..172_800 => format!("{} h", seconds / 3600),
        _ => format!("{} days", seconds / 86_400),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn times_are_those_of_date() {
        for seconds in [0, 951_782_399, 951_782_400, 1_709_164_800, 1_764_031_982, 4_102_444_799, 4_107_542_400] {
            let out = std::process::Command::new("date")
                .args(["-u", "+%Y-%m-%dT%H:%M:%SZ", "-d"])
                .arg(format!("@{seconds}"))
                .output()
                .unwrap();
            let want = String::from_utf8(out.stdout).unwrap();
            assert_eq!(rfc3339(UNIX_EPOCH + Duration::from_secs(seconds)), want.trim());
            assert_eq!(parse_rfc3339(want.trim()), Some(seconds));
            assert_eq!(of_unix_ms(seconds * 1000 + 7), want.trim().replace('Z', ".007Z"));
        }
    }
}
