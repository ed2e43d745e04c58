//! What a file of a guest's may be called, and where its links may lead, to become part of the owner's repository.

/// Characters that some file systems don't see in a name (HFS+), in UTF-8: `.g<200c>it` is `.git` there.
const UNSEEN: std::ops::RangeInclusive<char> = '\u{200c}'..='\u{200f}';

/// Why a path can't be taken; `None`: it can. `target` is where it leads, of a symbolic link.
pub(super) fn refused(path: &[u8], target: Option<&[u8]>) -> Option<&'static str> {
    let parts = || path.split(|byte| *byte == b'/');
    if parts().any(|part| part.is_empty() || part == b"." || part == b"..") {
        return Some("not a name below the tree");
    }
    if parts().any(is_git) {
        return Some("git's own");
    }
    let target = target?;
    // Read by git itself, which must not be led elsewhere.
    if parts().next_back().is_some_and(|last| plain(last).starts_with(".git")) {
        return Some("a link in the place of a file that git reads");
    }
    leads_out(path, target).then_some("a link that leads out of the tree")
}

/// Whether a part of a path is `.git` for any file system that git knows.
pub(super) fn is_git(part: &[u8]) -> bool {
    let name = plain(part);
    // NTFS's: what stands behind a colon, and points and blanks at the end, don't count; GIT~1 is its short form.
    let name = name.split(':').next().unwrap_or_default().trim_end_matches([' ', '.']);
    name == ".git" || name.strip_prefix("git~").is_some_and(|rest| rest.bytes().all(|byte| byte.is_ascii_digit()))
}

fn plain(part: &[u8]) -> String {
    let unseen =
        |c: &char| UNSEEN.contains(c) || matches!(c, '\u{202a}'..='\u{202e}' | '\u{206a}'..='\u{206f}' | '\u{feff}');
    String::from_utf8_lossy(part).chars().filter(|c| !unseen(c)).collect::<String>().to_ascii_lowercase()
}

/// Whether a link may lead out of the tree. Only so many `..` as it lies deep, and all of them first: behind a name they
/// would go back from wherever that name, itself a link perhaps, leads.
fn leads_out(path: &[u8], target: &[u8]) -> bool {
    let mut depth = path.iter().filter(|byte| **byte == b'/').count();
    let mut down = false;
    if target.is_empty() || target.starts_with(b"/") || target.contains(&0) {
        return true;
    }
    for part in target.split(|byte| *byte == b'/') {
        match part {
            b"" | b"." => {}
            b".." if down || depth == 0 => return true,
            b".." => depth -= 1,
            part if is_git(part) => return true,
            _ => down = true,
        }
    }
    false
}

/// A name for a person: one line, whatever it holds.
pub(super) fn shown(path: &[u8]) -> String {
    match std::str::from_utf8(path) {
        Ok(text) => crate::cli::line(text),
        Err(_) => path.escape_ascii().to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_gits_own_in_any_spelling() {
        for name in [
            ".git",
            ".GIT",
            ".Git/config",
            "a/.git/hooks/x",
            ".git.",
            ".git ",
            ".git::$INDEX",
            "git~1",
            "GIT~1/x",
            ".g\u{200c}it",
            "\u{feff}.git/config",
            "a/.gi\u{202e}t",
        ] {
            assert_eq!(refused(name.as_bytes(), None), Some("git's own"), "{name}");
        }
        for name in [".gitignore", ".github/x", "git", "a.git", "git~x", ".git-x", "x\ny", "a b", ".gitmodules"] {
            assert_eq!(refused(name.as_bytes(), None), None, "{name}");
        }
        for name in ["", "/a", "a//b", "../a", "a/..", "./a", "a/"] {
            assert!(refused(name.as_bytes(), None).is_some(), "{name}");
        }
    }

    #[test]
    fn a_link_stays_in_its_tree() {
        let out = |path: &str, target: &str| refused(path.as_bytes(), Some(target.as_bytes())).is_some();
        for (path, target) in [("a", "b"), ("a/b", "../c"), ("a/b/c", "../../d/e"), ("a", "./b"), ("a/b", "../x/")] {
            assert!(!out(path, target), "{path} -> {target}");
        }
        for (path, target) in [
            ("a", "/etc/passwd"),
            ("a", ".."),
            ("a", "../x"),
            ("a/b", "../../x"),
            ("a", ""),
            ("a/b", "c/../../../x"),
            ("a", "b/.."),
            ("a", ".git/hooks"),
            ("a/b", "../.git/config"),
            (".gitmodules", "x"),
            (".gitignore", "x"),
        ] {
            assert!(out(path, target), "{path} -> {target}");
        }
    }

    #[test]
    fn a_shown_name_is_one_line() {
        assert_eq!(shown(b"a\n\x1b[2Jb"), r"a\n\u{1b}[2Jb");
        assert_eq!(shown("ä".as_bytes()), "ä");
        assert_eq!(shown(b"\xff\n"), r"\xff\n");
    }
}
