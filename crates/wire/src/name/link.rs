//! Names of network links: bridges and taps.

use super::{Invalid, is_plain, name_text};
use crate::code::shown;

/// The longest name of a link: the kernel's `IFNAMSIZ` less its NUL.
pub const MAX_LINK: usize = 15;

/// A bridge of banger's: `br-fc`, or `br-fc-` and something behind it.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct BridgeName(String);

/// A tap of banger's: `tap-fc-` or `tap-pool-`, and something behind it.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct TapName(String);

name_text!(BridgeName);
name_text!(TapName);

impl BridgeName {
    /// Checks a bridge's name.
    pub fn new(text: &str) -> Result<BridgeName, Invalid> {
        let ours = text == "br-fc" || text.strip_prefix("br-fc-").is_some_and(|rest| !rest.is_empty());
        if ours && is_link(text) {
            return Ok(BridgeName(text.to_owned()));
        }
        Err(Invalid::new(format!(
            "bridge {} is not one of banger's: br-fc, or br-fc- and up to 9 letters, digits, - _ .",
            shown(text)
        )))
    }
}

impl TapName {
    /// Checks a tap's name.
    pub fn new(text: &str) -> Result<TapName, Invalid> {
        let rest = text.strip_prefix("tap-fc-").or_else(|| text.strip_prefix("tap-pool-"));
        if rest.is_some_and(|rest| !rest.is_empty()) && is_link(text) {
            return Ok(TapName(text.to_owned()));
        }
        Err(Invalid::new(format!(
            "tap {} is outside banger-managed naming: tap-fc- or tap-pool-, 15 letters, digits, - _ . in all",
            shown(text)
        )))
    }
}

fn is_link(text: &str) -> bool {
    text.len() <= MAX_LINK && is_plain(text)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn names_of_ours() {
        for good in ["br-fc", "br-fc-1", "br-fc-abcdefghi"] {
            assert_eq!(BridgeName::new(good).unwrap().as_str(), good);
        }
        for bad in
            ["", "br-fc-", "br-fcx", "BR-FC", " br-fc", "br-fc ", "br-fc-abcdefghij", "docker0", "br-fc-%d", "br-fc-é"]
        {
            assert!(BridgeName::new(bad).is_err(), "{bad}");
        }
        for good in ["tap-fc-1", "tap-fc-7f3c2a9e", "tap-pool-12"] {
            assert_eq!(TapName::new(good).unwrap().as_str(), good);
        }
        for bad in [
            "tap-fc-",
            "tap-pool-",
            "tap-fc-+",
            "tap-fc-%d",
            "tap-fc-123456789",
            "eth0",
            "tap-fc-a/b",
            "tap-fc-a\0",
            "tap-fc-a\n",
            "tap-fc-é",
        ] {
            assert!(TapName::new(bad).is_err(), "{bad}");
        }
    }

    proptest! {
        #[test]
        fn whatever_passes_is_a_name_of_the_kernels(text in "(tap-fc-|tap-pool-|br-fc-?)?\\PC{0,16}") {
            let passed = TapName::new(&text).is_ok() || BridgeName::new(&text).is_ok();
            if passed {
                prop_assert!(text.len() <= 15 && !text.contains(|c: char| c == '/' || c == ':' || c == '%' || c.is_whitespace()));
            }
        }
    }
}
