//! Paths inside a guest's image.

use super::{Invalid, name_text};
use crate::code::shown;

/// The longest path, as the kernel has it (`PATH_MAX` less its NUL).
pub const MAX_PATH: usize = 4095;
/// The longest part of a path: ext4's.
pub const MAX_PART: usize = 255;

/// An absolute path of a file inside an image: no `.`, `..` or empty part, no control character.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct GuestPath(String);

name_text!(GuestPath);

impl GuestPath {
    /// Checks a path.
    pub fn new(text: &str) -> Result<GuestPath, Invalid> {
        let invalid = |why: &str| Invalid::new(format!("guest path {} {why}", shown(text)));
        let Some(rest) = text.strip_prefix('/') else {
            return Err(invalid("must be absolute"));
        };
        if text.len() > MAX_PATH {
            return Err(invalid("is longer than 4095 bytes"));
        }
        if text.chars().any(char::is_control) {
            return Err(invalid("holds a control character"));
        }
        for part in rest.split('/') {
            match part {
                "" => return Err(invalid("has an empty part")),
                "." | ".." => return Err(invalid("has . or .. in it")),
                _ if part.len() > MAX_PART => return Err(invalid("has a part of more than 255 bytes")),
                _ => {}
            }
        }
        Ok(GuestPath(text.to_owned()))
    }

    /// The parts, from the root on; there is at least one.
    pub fn parts(&self) -> impl Iterator<Item = &str> {
        self.0.split('/').skip(1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn paths() {
        let path = GuestPath::new("/etc/ssh/my key").unwrap();
        assert_eq!(path.parts().collect::<Vec<_>>(), ["etc", "ssh", "my key"]);
        for bad in ["", "/", "etc", "/etc/", "//etc", "/a/../b", "/a/./b", "/a\nrm -rf", "/a\0b"] {
            assert!(GuestPath::new(bad).is_err(), "{bad}");
        }
        assert!(GuestPath::new(&format!("/{}", "a".repeat(256))).is_err());
    }

    proptest! {
        #[test]
        fn parts_give_the_path_back(text in "(/\\PC{0,6}){0,4}") {
            if let Ok(path) = GuestPath::new(&text) {
                let again: String = path.parts().flat_map(|part| ["/", part]).collect();
                prop_assert_eq!(again, text);
            }
        }
    }
}
