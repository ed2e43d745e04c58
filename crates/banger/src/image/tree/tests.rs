//! Where entries come to lie, whatever their names say.

use super::*;
use crate::image::progress::Unwatched;
use crate::image::tar::tests::{data, end, header};

struct Made {
    tree: Tree,
    folder: tempfile::TempDir,
}

fn empty(room: u64) -> Made {
    let folder = tempfile::tempdir().unwrap();
    Made { tree: Tree::new(folder.path(), room), folder }
}

/// A tree of entries: a name, a type, what it links to or holds.
fn unpacked(entries: &[(&str, u8, &str)]) -> Result<Made, Error> {
    let mut made = empty(1 << 20);
    made.tree.unpack(&archive(entries)[..], &Unwatched)?;
    Ok(made)
}

fn archive(entries: &[(&str, u8, &str)]) -> Vec<u8> {
    let mut archive = Vec::new();
    for (name, kind, what) in entries {
        let is_file = *kind == b'0';
        archive.extend(header(
            name.as_bytes(),
            *kind,
            if is_file { what.len() as u64 } else { 0 },
            if is_file { b"" } else { what.as_bytes() },
        ));
        if is_file {
            archive.extend(data(what.as_bytes()));
        }
    }
    archive.extend(end());
    archive
}

fn refused(entries: &[(&str, u8, &str)]) -> String {
    unpacked(entries).map(|_| panic!("taken: {entries:?}")).unwrap_err().to_string()
}

impl Made {
    /// The bytes of a file.
    fn read(&self, path: &str) -> Option<String> {
        let mut parts = parts(path.as_bytes()).unwrap();
        let name = parts.pop()?;
        let above = if parts.is_empty() { ROOT } else { self.tree.found(&parts.join(&b"/"[..])).unwrap()? };
        let index = self.tree.entry(above, name)?;
        match self.tree.node(index).what {
            What::File { .. } => std::fs::read_to_string(self.folder.path().join(Tree::file_name(index))).ok(),
            _ => None,
        }
    }

    fn stored(&self) -> usize {
        std::fs::read_dir(self.folder.path()).unwrap().count()
    }
}

#[test]
fn no_name_leads_out() {
    for name in ["../x", "a/../../x", "..", "/../x", "a/.."] {
        assert!(refused(&[(name, b'0', "x")]).contains(".."), "{name}");
    }
    assert!(refused(&[("a\nb", b'0', "x")]).contains("control"));
    assert!(refused(&[("l", b'1', "../../etc/passwd")]).contains(".."));
    assert!(refused(&[("l", b'1', "/etc/passwd")]).contains("not there"));
    // A link may lead where it likes; what is put behind it stays in the tree.
    for target in ["/", "/../../..", "../../../.."] {
        let made = unpacked(&[("out", b'2', target), ("out/etc/shadow", b'0', "mine")]).unwrap();
        assert_eq!(made.read("etc/shadow").as_deref(), Some("mine"), "{target}");
    }
    let made = unpacked(&[("usr", b'5', ""), ("bin", b'2', "usr/bin"), ("bin/sh", b'0', "sh")]).unwrap();
    assert_eq!(made.read("usr/bin/sh").as_deref(), Some("sh"));
    assert!(refused(&[("a", b'2', "b"), ("b", b'2', "a"), ("a/x", b'0', "x")]).contains("no end"));
    assert!(refused(&[("a", b'0', "x"), ("a/b", b'0', "x")]).contains("no directory"));
    assert!(refused(&[("lost+found", b'2', "x")]).contains("ext4 has"));
    assert!(refused(&[(".", b'0', "x")]).contains("root"));
    assert!(refused(&[("a", b'2', "")]).contains("to nothing"));
}

#[test]
fn the_later_entry_is_in_the_place_of_the_earlier() {
    let made =
        unpacked(&[("a", b'0', "one"), ("b", b'1', "a"), ("a", b'0', "two"), ("d/x", b'0', "x"), ("d", b'5', "")]);
    let made = made.unwrap();
    assert_eq!(made.read("a").as_deref(), Some("two"));
    assert_eq!(made.read("b").as_deref(), Some("one"));
    assert_eq!(made.read("d/x").as_deref(), Some("x"));
    assert_eq!((made.stored(), made.tree.bytes()), (3, 7));
    // A whole directory, and a link to it that isn't followed.
    let made =
        unpacked(&[("d/e/x", b'0', "x"), ("d/y", b'0', "y"), ("keep", b'1', "d/y"), ("d", b'2', "/keep")]).unwrap();
    assert_eq!(made.read("keep").as_deref(), Some("y"));
    assert_eq!((made.stored(), made.tree.bytes()), (1, 1));
    let made = unpacked(&[("a", b'0', "x"), ("a", b'1', "a"), ("b", b'1', "a"), ("b", b'1', "a")]).unwrap();
    assert_eq!((made.read("a").as_deref(), made.read("b").as_deref()), (Some("x"), Some("x")));
    assert!(refused(&[("d/e", b'5', ""), ("x", b'1', "d")]).contains("directory"));
}

#[test]
fn what_has_no_room_is_refused_before_it_is_written() {
    let mut made = empty(10);
    let error = made.tree.unpack(&archive(&[("a", b'0', "12345"), ("b", b'0', "123456")])[..], &Unwatched).unwrap_err();
    assert_eq!(error.kind, Failure::Room);
    assert!(error.what.starts_with("b: "), "{error}");
    assert_eq!(made.stored(), 1);
}

#[test]
fn identity_is_taken_away() {
    let mut made =
        unpacked(&[("etc/ssh/ssh_host_rsa_key", b'0', "secret"), ("etc/ssh/sshd_config", b'0', "x")]).unwrap();
    made.tree.take(b"etc/ssh", |name| name.starts_with(b"ssh_host_")).unwrap();
    made.tree.take(b"no/such", |_| true).unwrap();
    assert_eq!((made.read("etc/ssh/ssh_host_rsa_key"), made.stored()), (None, 1));
}

#[test]
fn a_whiteout_takes_away_what_lower_layers_have_and_no_more() {
    let mut made = unpacked(&[("d/a", b'0', "a"), ("d/b", b'0', "b"), ("e/a", b'0', "a"), ("f", b'0', "f")]).unwrap();
    let layer = [
        ("d/.wh.a", b'0', ""),
        ("d/.wh.nosuch", b'0', ""),
        ("none/.wh.x", b'0', ""),
        // An opaque directory, said behind what the layer itself puts into it.
        ("e/new", b'0', "new"),
        ("e/.wh..wh..opq", b'0', ""),
        ("e/later", b'0', "later"),
        // Away, and there again: in either order what is the layer's own is there.
        ("g", b'0', "g"),
        (".wh.g", b'0', ""),
        (".wh.f", b'0', ""),
        (".wh..wh.aufs", b'0', ""),
    ];
    made.tree.layer(&archive(&layer)[..], &Unwatched).unwrap();
    let there = ["d/a", "d/b", "e/a", "e/new", "e/later", "f", "g"].map(|path| made.read(path).is_some());
    assert_eq!(there, [false, true, false, true, true, false, true]);
    assert_eq!(made.stored(), 4);
    for (name, why) in [(".wh.", "nothing"), ("a/.wh...", "nothing"), ("../.wh.x", "..")] {
        let error = made.tree.layer(&archive(&[("a", b'5', ""), (name, b'0', "")])[..], &Unwatched).unwrap_err();
        assert!(error.to_string().contains(why), "{name}: {error}");
    }
    // In an archive that is no layer they are names as any other.
    let made = unpacked(&[("f", b'0', "f"), (".wh.f", b'0', "")]).unwrap();
    assert!(made.read("f").is_some() && made.read(".wh.f").is_some());
}
