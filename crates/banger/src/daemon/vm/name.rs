//! Names of VMs: what one may be, and made-up ones.

use crate::api::Fault;
use crate::daemon::error::exit;

const KINDS: [&str; 24] = [
    "brave", "brisk", "calm", "clear", "clever", "cosy", "eager", "early", "fair", "fresh", "gentle", "glad", "happy",
    "keen", "kind", "light", "lucky", "merry", "mild", "neat", "proud", "quick", "quiet", "swift",
];
const ANIMALS: [&str; 24] = [
    "badger", "beaver", "crane", "deer", "dove", "falcon", "finch", "fox", "hare", "heron", "ibis", "lark", "lynx",
    "marten", "mole", "otter", "owl", "robin", "seal", "stork", "swan", "toad", "vole", "wren",
];

/// Checks a name: a DNS label that is no number and no id.
///
/// # Errors
/// `bad_name`.
pub(super) fn check(name: &str) -> Result<(), Fault> {
    let shown = wire::code::shown(name);
    let bad = |what: &str| Fault::new("bad_name", exit::USAGE, format!("{shown} can't be a VM's name: {what}"));
    let rule = "1 to 63 of a-z, 0-9 and -, a letter first, no - last";
    if name.bytes().any(|byte| byte.is_ascii_uppercase()) {
        let lower = name.to_ascii_lowercase();
        let fault = bad("upper case");
        return Err(if check(&lower).is_ok() { fault.fix(lower) } else { fault });
    }
    let part = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
    let is_label = (1..=63).contains(&name.len())
        && name.bytes().all(part)
        && name.starts_with(|first: char| first.is_ascii_lowercase())
        && !name.ends_with('-');
    if !is_label {
        return Err(bad(rule));
    }
    if is_of_template(name) {
        return Err(bad("a template is made under such a name"));
    }
    if name == "localhost" {
        return Err(bad("it is every machine's own"));
    }
    if name.len() >= 8 && name.bytes().all(|byte| byte.is_ascii_hexdigit()) {
        return Err(bad("it looks like an id"));
    }
    Ok(())
}

/// What the name of a VM in the making of a template begins with; its template's id follows.
const TEMPLATE: &str = "template-";

/// The name of a VM in the making of that template.
pub(super) fn of_template(id: &str) -> String {
    format!("{TEMPLATE}{id}")
}

/// Whether a VM of that name is one in the making of a template.
pub(crate) fn is_of_template(name: &str) -> bool {
    let id = name.strip_prefix(TEMPLATE).unwrap_or_default();
    id.len() == 12 && id.bytes().all(|byte| byte.is_ascii_hexdigit())
}

/// A made-up name that `is_taken` doesn't know; the 576 may all be.
pub(super) fn made_up(seed: u32, is_taken: impl Fn(&str) -> bool) -> Option<String> {
    let all = KINDS.len() * ANIMALS.len();
    let from = seed as usize % all;
    let names = (from..from + all).map(|n| n % all).map(|n| {
        // Neighbours share neither part.
        format!("{}-{}", KINDS[n % KINDS.len()], ANIMALS[(n / KINDS.len() + n) % ANIMALS.len()])
    });
    names.into_iter().find(|name| !is_taken(name))
}

/// Whether a name is one that is made up where nobody gives one.
pub(crate) fn is_made_up(name: &str) -> bool {
    name.split_once('-').is_some_and(|(kind, animal)| KINDS.contains(&kind) && ANIMALS.contains(&animal))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    #[test]
    fn names() {
        for good in ["web", "a", "web-2", "a0", "deadbee", "calm-otter"] {
            assert_eq!(check(good), Ok(()), "{good}");
        }
        let long = "a".repeat(64);
        for bad in ["", "-a", "a-", "2a", "Web", "a.b", "a b", "deadbeef", "localhost", "é", &long] {
            assert_eq!(check(bad).unwrap_err().code, "bad_name", "{bad}");
        }
        assert_eq!(check("Web").unwrap_err().fix, ["web"]);
    }

    #[test]
    fn made_up_names_are_good_and_all_different() {
        let mut taken = BTreeSet::new();
        while let Some(name) = made_up(7, |name| taken.contains(name)) {
            assert_eq!(check(&name), Ok(()));
            taken.insert(name);
        }
        assert_eq!(taken.len(), KINDS.len() * ANIMALS.len());
    }
}
