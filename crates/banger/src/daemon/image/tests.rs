//! Names and references.

use super::*;
use crate::daemon::store::assets::tests::asset;
use crate::daemon::store::{Store as Index, assets};
use std::path::Path;

#[test]
fn names_are_checked_and_the_lower_case_form_is_the_way_out() {
    for good in ["debian-12", "a", "0x", "my_image.v2"] {
        check_name(Kind::Image, good).unwrap();
    }
    for bad in ["", "-a", ".a", "a/b", "a b", "a@b", "é", "..", &"a".repeat(65)] {
        assert_eq!(check_name(Kind::Image, bad).unwrap_err().code, "bad_name", "{bad}");
    }
    assert_eq!(check_name(Kind::Kernel, "Debian").unwrap_err().fix[0], "debian");
}

#[test]
fn a_reference_is_a_name_or_the_beginning_of_one_digest() {
    let index = Index::open(Path::new(":memory:")).unwrap();
    let (one, two) = (asset(Kind::Image, "debian-12", 'a'), asset(Kind::Image, "abcd", 'b'));
    index.change(|t| assets::save(t, &one).and_then(|()| assets::save(t, &two))).unwrap();
    let find = |reference: &str| index.change(|t| find(t, Kind::Image, reference));
    assert_eq!(find("debian-12").unwrap(), one);
    assert_eq!(find("abcd").unwrap(), two, "a name comes first");
    assert_eq!(find("aaaa").unwrap(), one);
    assert_eq!(find("sha256:BBBBB").unwrap(), two);
    assert_eq!(find("aaa").unwrap_err().code, "no_such_image");
    assert_eq!(find("debain-12").unwrap_err().fix[0], "debian-12 is close; banger image list shows what is here");
    let again = asset(Kind::Image, "same", 'a');
    index.change(|t| assets::save(t, &again)).unwrap();
    assert_eq!(find("aaaa").unwrap_err().code, "ambiguous");
    assert_eq!(index.change(|t| super::find(t, Kind::Kernel, "debian-12")).unwrap_err().code, "no_such_kernel");
}
