//! What a recipe may say, and how mmdebstrap's words are read.

use super::*;

#[test]
fn a_recipe_says_nothing_to_mmdebstrap_but_what_it_means() {
    let good = Recipe { include: vec!["g++".into(), "make=4.3-4.1".into()], ..Recipe::default() };
    assert!(check(&good).is_ok());
    let suite = |s: &str| Recipe { suite: Some(s.into()), ..Recipe::default() };
    let include = |p: &str| Recipe { include: vec![p.into()], ..Recipe::default() };
    let mirror = |m: &str| Recipe { mirror: Some(m.into()), ..Recipe::default() };
    for wrong in [
        suite("--help"),
        suite("a/b"),
        suite(""),
        include(""),
        include("-x"),
        include("a,b"),
        include("?essential"),
        include("../x.deb"),
        mirror("deb http://x y z"),
        mirror("-"),
        mirror("ftp://x"),
        Recipe { script: Some("x".repeat(MAX_SCRIPT + 1)), ..Recipe::default() },
    ] {
        assert_eq!(check(&wrong).unwrap_err().kind, Kind::Request, "{wrong:?}");
    }
}

#[test]
fn stages_are_told_by_mmdebstraps_words() {
    for (line, stage) in [
        ("I: running apt-get update...", None),
        ("I: extracting archives...", Some(Stage::Unpack)),
        ("I: installing essential packages...", Some(Stage::Configure)),
        ("I: installing remaining packages inside the chroot...", Some(Stage::Configure)),
        ("E: extracting archives", None),
    ] {
        assert_eq!(stage_of(line), stage, "{line}");
    }
}
