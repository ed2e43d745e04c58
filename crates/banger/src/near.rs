//! Names that are close to one that was meant.

/// The name that is nearest, where a slip of two letters explains the difference; of one letter in a name that is short.
pub(crate) fn nearest<'a>(sent: &str, known: impl Iterator<Item = &'a str>) -> Option<&'a str> {
    let most = if sent.chars().count() < SHORT { 1 } else { 2 };
    known.map(|known| (distance(sent, known), known)).min().filter(|&(far, _)| far <= most).map(|(_, known)| known)
}

/// With two letters changed most short names are any other.
const SHORT: usize = 5;

/// How many letters must be put in, taken out, changed, or have changed places with the next.
fn distance(a: &str, b: &str) -> usize {
    let [a, b] = [a, b].map(|text| text.chars().take(100).collect::<Vec<char>>());
    // For the beginning of `a` before the last letter, up to it, and with this one.
    let (mut before, mut row) = (Vec::new(), (0..=b.len()).collect::<Vec<usize>>());
    for i in 0..a.len() {
        let mut next = vec![i + 1];
        for j in 0..b.len() {
            let changed = row[j] + usize::from(a[i] != b[j]);
            let mut least = changed.min(next[j] + 1).min(row[j + 1] + 1);
            if i > 0 && j > 0 && a[i] == b[j - 1] && a[i - 1] == b[j] {
                least = least.min(before[j - 1] + 1);
            }
            next.push(least);
        }
        before = std::mem::replace(&mut row, next);
    }
    row.last().copied().unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_slip_is_no_other_name() {
        for (sent, known, near) in [
            ("wbe", &["db", "web"][..], Some("web")),
            ("debain-12", &["debian-11", "debian-12"], Some("debian-12")),
            ("calmotter", &["calm-otter"], Some("calm-otter")),
            ("x", &["db", "web", "y"], Some("y")),
            ("db", &["web"], None),
            ("web", &["dev"], None),
            ("sandbox", &["sandpit"], None),
            ("", &["web"], None),
        ] {
            assert_eq!(nearest(sent, known.iter().copied()), near, "{sent}");
        }
        assert_eq!(
            [distance("", "abc"), distance("abc", ""), distance("abcd", "badc"), distance("ca", "abc")],
            [3, 3, 2, 3]
        );
    }
}
