//! Sizes as a person writes them.

const UNITS: [(&str, u64); 12] = [
    ("KiB", 1 << 10),
    ("MiB", 1 << 20),
    ("GiB", 1 << 30),
    ("TiB", 1 << 40),
    ("K", 1 << 10),
    ("M", 1 << 20),
    ("G", 1 << 30),
    ("T", 1 << 40),
    ("k", 1 << 10),
    ("m", 1 << 20),
    ("g", 1 << 30),
    ("t", 1 << 40),
];

/// Reads `512M`, `1G`, `1GiB`, `1.5G` as MiB; powers of 1024, a bare number is MiB.
pub(crate) fn mebibytes(text: &str) -> Result<u64, String> {
    let wrong = || {
        let shown = wire::code::shown(text);
        format!("{shown} is no size: a number with M, G, T, MiB, GiB or TiB, such as 512M or 1.5G; bare is MiB")
    };
    let found = UNITS.iter().find_map(|(unit, factor)| Some((text.strip_suffix(unit)?, *factor)));
    let (number, factor) = found.unwrap_or((text, 1 << 20));
    let plain = !number.is_empty() && number.bytes().all(|byte| byte.is_ascii_digit() || byte == b'.');
    let number: f64 = if plain { number.parse().map_err(|_| wrong())? } else { return Err(wrong()) };
    let bytes = number * factor as f64;
    if !(1.0..=(1u64 << 50) as f64).contains(&bytes) {
        return Err(wrong());
    }
    match bytes as u64 >> 20 {
        0 => Err(format!("{} is less than 1 MiB", wire::code::shown(text))),
        mib => Ok(mib),
    }
}

/// Bytes for a person: `1.5G`, three digits at most.
pub(crate) fn shown(bytes: u64) -> String {
    let mut value = bytes as f64;
    for unit in ["B", "K", "M", "G", "T"] {
        if value < 1000.0 || unit == "T" {
            return if value < 10.0 && unit != "B" { format!("{value:.1}{unit}") } else { format!("{value:.0}{unit}") };
        }
        value /= 1024.0;
    }
    String::new()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes() {
        for (text, mib) in [("512", 512), ("512M", 512), ("1G", 1024), ("1GiB", 1024), ("1.5G", 1536), ("2048k", 2)] {
            assert_eq!(mebibytes(text), Ok(mib), "{text}");
        }
        for bad in ["", "M", "-1", "1e3", "1 G", "1GB", "0", "1K", "inf", "NaN", "1..5G", "99999999T"] {
            assert!(mebibytes(bad).is_err(), "{bad}");
        }
        assert_eq!([shown(0), shown(1 << 30), shown(41_943_040), shown(1536)], ["0B", "1.0G", "40M", "1.5K"]);
    }
}
