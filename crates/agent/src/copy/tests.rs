//! Trees out and in again, and archives that are made to lead out of their place.

use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::Path;

use super::*;
use crate::protocol::Keep;
use crate::tar::{Entry, Extra, Kind, header, padding, trailer};

fn place(path: &Path) -> std::os::fd::OwnedFd {
    std::fs::File::open(path).unwrap().into()
}

fn unpacked(path: &Path, archive: &[u8], rules: Rules) -> Result<Copied, CopyError> {
    let mut unpack = Unpack::new(place(path), rules)?;
    archive.chunks(777).try_for_each(|piece| unpack.take(piece))?;
    unpack.end()
}

fn packed(path: &Path, name: &str, follow: bool) -> (Vec<u8>, Copied) {
    let mut pack = Pack::new(vec![Source { path: path.into(), name: name.into() }], follow);
    let mut archive = Vec::new();
    while pack.copied().is_none() {
        pack.fill(&mut archive, 1000).unwrap();
    }
    (archive, pack.copied().unwrap())
}

fn clobber() -> Rules {
    Rules { clobber: true, ..Rules::default() }
}

#[test]
fn a_tree_is_the_same_on_the_other_side() {
    let (from, to) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let tree = from.path().join("tree");
    std::fs::create_dir_all(tree.join("a/b")).unwrap();
    std::fs::write(tree.join("a/file"), vec![b'x'; 200_000]).unwrap();
    std::fs::write(tree.join("a/empty"), "").unwrap();
    std::fs::hard_link(tree.join("a/file"), tree.join("a/b/same")).unwrap();
    symlink("../nowhere", tree.join("a/link")).unwrap();
    std::fs::set_permissions(tree.join("a/file"), PermissionsExt::from_mode(0o4755)).unwrap();
    std::fs::set_permissions(tree.join("a/b"), PermissionsExt::from_mode(0o555)).unwrap();
    std::fs::write(tree.join("x".repeat(255)), "long").unwrap();
    let (archive, out) = packed(&tree, "tree", false);
    let into = unpacked(to.path(), &archive, clobber()).unwrap();
    assert_eq!((out.entries, &out.sha256, out.left_out), (into.entries, &into.sha256, 0));
    assert_eq!((into.bytes, into.stripped), (200_004, 1));
    let there = to.path().join("tree");
    let stat = std::fs::metadata(there.join("a/file")).unwrap();
    assert_eq!((stat.mode() & 0o7777, stat.nlink()), (0o755, 2));
    assert_eq!(stat.mtime(), std::fs::metadata(tree.join("a/file")).unwrap().mtime());
    assert_eq!(std::fs::metadata(there.join("a/b")).unwrap().mode() & 0o7777, 0o755, "its owner can fill it");
    assert_eq!(std::fs::read_link(there.join("a/link")).unwrap().to_str(), Some("../nowhere"));
    let same =
        std::process::Command::new("diff").arg("-r").arg("--no-dereference").args([&tree, &there]).output().unwrap();
    assert!(same.status.success(), "{}", String::from_utf8_lossy(&same.stdout));
    // And again over it; a name of its own for the top; the content alone.
    assert_eq!(unpacked(to.path(), &archive, clobber()).unwrap().entries, into.entries);
    unpacked(to.path(), &archive, Rules { top: Some(b"other".to_vec()), ..clobber() }).unwrap();
    assert!(to.path().join("other/a/empty").exists());
    let (archive, _) = packed(&tree, "", false);
    unpacked(&to.path().join("other/a/b"), &archive, clobber()).unwrap();
    assert!(to.path().join("other/a/b/a/file").exists());
}

#[test]
fn links_are_followed_where_that_is_wanted() {
    let (from, to) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    std::fs::write(from.path().join("real"), "content").unwrap();
    std::fs::create_dir(from.path().join("tree")).unwrap();
    symlink("../real", from.path().join("tree/link")).unwrap();
    symlink("nowhere", from.path().join("tree/dangling")).unwrap();
    let (archive, copied) = packed(&from.path().join("tree"), "tree", true);
    assert_eq!(copied.left_out, 1, "it leads nowhere");
    unpacked(to.path(), &archive, clobber()).unwrap();
    assert!(std::fs::symlink_metadata(to.path().join("tree/link")).unwrap().is_file());
}

#[test]
fn what_is_no_file_is_left_out_and_what_is_there_may_stay() {
    let (from, to) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    rustix::fs::mkfifoat(rustix::fs::CWD, from.path().join("fifo"), rustix::fs::Mode::RUSR).unwrap();
    let _socket = std::os::unix::net::UnixListener::bind(from.path().join("socket")).unwrap();
    std::fs::write(from.path().join("file"), "new").unwrap();
    std::fs::write(to.path().join("file"), "old").unwrap();
    let (archive, copied) = packed(from.path(), "", false);
    assert_eq!((copied.entries, copied.left_out), (1, 2));
    let kept = unpacked(to.path(), &archive, Rules::default()).unwrap();
    assert_eq!((kept.left_out, std::fs::read_to_string(to.path().join("file")).unwrap()), (1, "old".into()));
    unpacked(to.path(), &archive, clobber()).unwrap();
    assert_eq!(std::fs::read_to_string(to.path().join("file")).unwrap(), "new");
}

#[test]
fn directories_are_left_out_by_their_names() {
    let from = tempfile::tempdir().unwrap();
    for file in ["target/a", "sub/target/b", "sub/node/c", "node/d", "sub/deep/node/e", "nodes/f", "g/target", "h"] {
        let path = from.path().join(file);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, file).unwrap();
    }
    let mut pack = Pack::new(vec![Source { path: from.path().join(".").into(), name: Vec::new() }], false);
    pack.leave(["/target", "node", "/h", "/sub/nothing"].map(|name| name.as_bytes().to_vec()));
    let mut archive = Vec::new();
    while pack.copied().is_none() {
        pack.fill(&mut archive, 1000).unwrap();
    }
    let to = tempfile::tempdir().unwrap();
    let made = unpacked(to.path(), &archive, clobber()).unwrap();
    assert_eq!((made.files, made.left_out), (4, 0));
    for kept in ["sub/target/b", "nodes/f", "g/target", "h", "sub/deep"] {
        assert!(to.path().join(kept).exists(), "{kept}");
    }
}

#[test]
fn holes_and_attributes_are_kept() {
    let (from, to) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let (tree, at) = (from.path().join("t"), |path: &str| from.path().join("t").join(path));
    std::fs::create_dir_all(at("dir")).unwrap();
    let holes = std::fs::File::create(at("dir/holed")).unwrap();
    for (offset, text) in [(0u64, "first"), (5 << 20, "in the middle"), ((64 << 20) - 4, "last")] {
        std::os::unix::fs::FileExt::write_all_at(&holes, text.as_bytes(), offset).unwrap();
    }
    std::fs::File::create(at("nothing")).unwrap().set_len(3 << 30).unwrap();
    std::fs::write(at("read-only"), "x").unwrap();
    let flags = rustix::fs::XattrFlags::empty();
    rustix::fs::setxattr(at("read-only"), "user.key", b"value", flags).unwrap();
    rustix::fs::setxattr(at("dir"), "user.key", &[0xff; 1000], flags).unwrap();
    std::fs::set_permissions(at("read-only"), PermissionsExt::from_mode(0o444)).unwrap();
    let pack = |keep| {
        let mut pack = Pack::new(vec![Source { path: tree.clone().into(), name: b"t".to_vec() }], false);
        pack.keep(keep);
        let mut archive = Vec::new();
        while pack.copied().is_none() {
            pack.fill(&mut archive, 1000).unwrap();
        }
        (archive, pack.copied().unwrap())
    };
    let (archive, copied) = pack(Keep::User);
    assert!(archive.len() < 1 << 20 && copied.bytes < 1 << 20, "{} of {}", archive.len(), copied.bytes);
    let rules = |keep| Rules { keep, ..clobber() };
    let made = unpacked(to.path(), &archive, rules(Keep::User)).unwrap();
    assert_eq!((made.bytes, made.left_out), (copied.bytes, 0));
    let there = |path: &str| to.path().join("t").join(path);
    let same = std::process::Command::new("cmp").args([at("dir/holed"), there("dir/holed")]).output().unwrap();
    assert!(same.status.success());
    for (path, most) in [("dir/holed", 1 << 11), ("nothing", 0)] {
        let (one, other) = (std::fs::metadata(at(path)).unwrap(), std::fs::metadata(there(path)).unwrap());
        assert_eq!(one.len(), other.len());
        assert!(other.blocks() <= most.max(one.blocks()), "{path}: {} blocks, not {}", other.blocks(), one.blocks());
    }
    let value = |path: &str| {
        let mut value = vec![0; 2000];
        rustix::fs::getxattr(there(path), "user.key", value.as_mut_slice()).map(|length| value[..length].to_vec())
    };
    assert_eq!((value("read-only"), value("dir")), (Ok(b"value".to_vec()), Ok(vec![0xff; 1000])));
    // What isn't asked for is not kept, and a plain reader gets a plain archive.
    std::fs::remove_dir_all(there("")).unwrap();
    unpacked(to.path(), &archive, rules(Keep::Plain)).unwrap();
    assert_eq!(value("read-only"), Err(Errno::NODATA));
    std::fs::remove_file(at("nothing")).unwrap();
    let (plain, copied) = pack(Keep::Plain);
    assert!(copied.bytes == (64 << 20) + 1 && plain.len() > 64 << 20);
}

/// What a guest says of a file that comes out of it.
#[test]
fn attributes_that_are_not_a_user_s_are_left_out() {
    let dir = tempfile::tempdir().unwrap();
    let attributes = ["security.capability", "trusted.overlay.opaque", "system.posix_acl_access", "user.kept"];
    let attributes = attributes.map(|name| (name.into(), b"x".to_vec())).into();
    let extra = Extra { attributes, owner: (1, 1), extents: None };
    let entry = Entry { name: b"file".to_vec(), kind: Kind::File(0), mode: 0o644, mtime: 0, extra };
    let mut archive = Vec::new();
    header(&entry, &mut archive);
    archive.extend(trailer());
    let copied = unpacked(dir.path(), &archive, Rules { keep: Keep::User, ..clobber() }).unwrap();
    assert_eq!((copied.left_out, copied.listed[0].why), (3, Why::Attribute));
    let mut list = vec![0; 1000];
    let length = rustix::fs::listxattr(dir.path().join("file"), list.as_mut_slice()).unwrap();
    assert_eq!(&list[..length], b"user.kept\0");
    assert_eq!(std::fs::metadata(dir.path().join("file")).unwrap().uid(), rustix::process::geteuid().as_raw());
    // A file of an exabyte of holes takes no room, and one of more than there can be is an error.
    let holed = |size| {
        let extra = Extra { extents: Some(Vec::new()), ..Extra::default() };
        let mut archive = Vec::new();
        header(&Entry { name: b"holes".to_vec(), kind: Kind::File(size), mode: 0o644, mtime: 0, extra }, &mut archive);
        archive.extend(trailer());
        unpacked(dir.path(), &archive, clobber())
    };
    assert_eq!(holed(1 << 40).map(|copied| copied.bytes), Ok(0));
    assert!(matches!(holed((1 << 62) - 1), Err(CopyError::File(..))));
}

#[test]
fn what_is_listed_fits_into_an_answer() {
    let mut copied = Copied::default();
    for n in 0..100 {
        copied.leave_out(&[b'\x1b'; 4096], Why::Gone);
        assert_eq!(copied.left_out, n + 1);
    }
    copied.list_at_most(12 * 1024);
    assert!(copied.listed.len() > 3 && serde_json::to_vec(&copied).unwrap().len() < crate::protocol::MAX_CONTROL);
    copied.list_at_most(0);
    assert!(!serde_json::to_string(&copied).unwrap().contains("listed"), "an older host knows no such field");
}

/// An archive by hand: names, kinds, and what the files hold.
fn archive(entries: &[(&str, Kind)]) -> Vec<u8> {
    let mut out = Vec::new();
    for (name, kind) in entries {
        header(
            &Entry {
                name: name.as_bytes().to_vec(),
                kind: kind.clone(),
                mode: 0o644,
                mtime: 0,
                extra: Extra::default(),
            },
            &mut out,
        );
        if let Kind::File(size) = kind {
            out.extend(vec![b'!'; *size as usize]);
            out.extend(padding(*size));
        }
    }
    out.extend(trailer());
    out
}

/// kubernetes/kubernetes#87773 and all its relatives: nothing outside of the place, and no half file in it.
#[test]
fn hostile_archives_end_and_nothing_is_outside() {
    let link = |to: &str| Kind::Symlink(to.as_bytes().to_vec());
    let hard = |to: &str| Kind::Hardlink(to.as_bytes().to_vec());
    let file = Kind::File(6);
    let hostile: Vec<Vec<(&str, Kind)>> = vec![
        vec![("../out", file.clone())],
        vec![("/tmp/banger-hostile-out", file.clone())],
        vec![("a/../../out", file.clone())],
        vec![("link", link("..")), ("link/out", file.clone())],
        vec![("link", link("../victim")), ("link/out", file.clone())],
        // Two links, as it really happened.
        vec![("a", link("b")), ("b", link("..")), ("a/out", file.clone())],
        vec![("a", Kind::Directory), ("a/up", link("../..")), ("a/up/out", file.clone())],
        vec![("link", link("../victim")), ("link", Kind::Directory)],
        vec![("link", link("../victim/kept")), ("again", hard("link"))],
        vec![("again", hard("../victim/kept"))],
        vec![("again", hard("/etc/passwd"))],
        vec![("there/again", hard("."))],
        vec![("there/x", file.clone())],
        vec![("loop", link("loop")), ("loop/x", file.clone())],
        vec![("dir", Kind::Directory), ("dir", file.clone())],
    ];
    for entries in hostile {
        let dir = tempfile::tempdir().unwrap();
        let (victim, target) = (dir.path().join("victim"), dir.path().join("target"));
        std::fs::create_dir(&victim).unwrap();
        std::fs::create_dir(&target).unwrap();
        std::fs::write(victim.join("kept"), "kept").unwrap();
        let result = unpacked(&target, &archive(&entries), clobber());
        assert!(result.is_err(), "{entries:?}");
        let names = |path: &Path| {
            let mut names: Vec<_> = std::fs::read_dir(path).unwrap().map(|e| e.unwrap().file_name()).collect();
            names.sort();
            names
        };
        assert_eq!(names(dir.path()), ["target", "victim"], "{entries:?}");
        assert_eq!(names(&victim), ["kept"], "{entries:?}");
        assert_eq!(std::fs::read_to_string(victim.join("kept")).unwrap(), "kept");
        assert_eq!(std::fs::metadata(victim.join("kept")).unwrap().nlink(), 1);
    }
    assert!(!Path::new("/tmp/banger-hostile-out").exists());
}

#[test]
fn a_file_through_a_link_replaces_the_link_and_not_what_it_leads_to() {
    let dir = tempfile::tempdir().unwrap();
    let target = dir.path().join("target");
    std::fs::create_dir(&target).unwrap();
    std::fs::write(dir.path().join("victim"), "kept").unwrap();
    symlink("../victim", target.join("file")).unwrap();
    unpacked(&target, &archive(&[("file", Kind::File(6))]), clobber()).unwrap();
    assert_eq!(std::fs::read_to_string(dir.path().join("victim")).unwrap(), "kept");
    assert!(std::fs::symlink_metadata(target.join("file")).unwrap().is_file());
}

/// CVE-2019-6111: a file was asked for, and others come.
#[test]
fn other_files_than_were_asked_for_get_the_name_of_what_was() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join(".profile"), "kept").unwrap();
    let other = archive(&[(".profile", Kind::File(6)), (".ssh", Kind::Directory), (".ssh/keys", Kind::File(6))]);
    let rules = Rules { top: Some(b"asked".to_vec()), ..clobber() };
    assert!(unpacked(dir.path(), &other, rules.clone()).is_err(), "a file, and then a directory");
    unpacked(dir.path(), &archive(&[(".ssh", Kind::Directory), (".ssh/keys", Kind::File(6))]), rules).unwrap_err();
    std::fs::remove_file(dir.path().join("asked")).unwrap();
    let rules = Rules { top: Some(b"asked".to_vec()), ..clobber() };
    unpacked(dir.path(), &archive(&[(".ssh", Kind::Directory), (".ssh/keys", Kind::File(6))]), rules).unwrap();
    assert!(dir.path().join("asked/keys").exists() && !dir.path().join(".ssh").exists());
    assert_eq!(std::fs::read_to_string(dir.path().join(".profile")).unwrap(), "kept");
}

#[test]
fn an_archive_that_is_cut_leaves_no_half_file() {
    let dir = tempfile::tempdir().unwrap();
    let whole = archive(&[("one", Kind::File(5000)), ("two", Kind::File(5000))]);
    for cut in [100, 600, 4000, 5700, 7000, whole.len() - 1] {
        let into = tempfile::tempdir_in(&dir).unwrap();
        let result = unpacked(into.path(), &whole[..cut], clobber());
        assert!(matches!(result, Err(CopyError::Tar(TarError::Cut, _))), "{cut}");
        for entry in std::fs::read_dir(into.path()).unwrap() {
            assert_eq!(entry.unwrap().metadata().unwrap().len(), 5000, "{cut}");
        }
    }
}

#[test]
fn a_copy_is_bounded() {
    let dir = tempfile::tempdir().unwrap();
    let some = archive(&[("one", Kind::File(600)), ("two", Kind::File(600))]);
    let limited = |limit| unpacked(dir.path(), &some, Rules { limit: Some(limit), ..clobber() });
    assert_eq!(limited(1199), Err(CopyError::TooMuch));
    assert!(limited(1200).is_ok());
    let mut head = Vec::new();
    header(
        &Entry { name: b"huge".to_vec(), kind: Kind::File(1 << 50), mode: 0o644, mtime: 0, extra: Extra::default() },
        &mut head,
    );
    assert_eq!(unpacked(dir.path(), &head, clobber()), Err(CopyError::TooMuch), "before a byte of it");
}
