//! Archives out and in again, those of GNU tar, and what must not pass.

use proptest::prelude::*;

use super::*;

fn written(entries: &[(Entry, Vec<u8>)]) -> Vec<u8> {
    let mut out = Vec::new();
    for (entry, content) in entries {
        header(entry, &mut out);
        out.extend_from_slice(content);
        out.extend(padding(content.len() as u64));
    }
    out.extend(trailer());
    out
}

/// What an archive holds, however it is cut.
fn read(archive: &[u8], cut: usize) -> Result<Vec<(Entry, Vec<u8>)>, TarError> {
    let (mut reader, mut out, mut done) = (Reader::default(), Vec::<(Entry, Vec<u8>)>::new(), 0);
    for mut piece in archive.chunks(cut) {
        while let Some(item) = reader.take(&mut piece)? {
            match item {
                Item::Entry(entry) => out.push((entry, Vec::new())),
                Item::Data(at, bytes) => {
                    let content = &mut out.last_mut().expect("an entry").1;
                    content.resize(at as usize, 0);
                    content.extend_from_slice(bytes);
                }
                Item::Done => done += 1,
            }
        }
        assert!(piece.is_empty(), "it takes all that it gets");
    }
    assert!(!reader.has_ended() || done == out.len());
    if reader.has_ended() { Ok(out) } else { Err(TarError::Cut) }
}

fn file(name: &str, content: &[u8]) -> (Entry, Vec<u8>) {
    let kind = Kind::File(content.len() as u64);
    (Entry { name: name.into(), kind, mode: 0o644, mtime: 1_700_000_000, extra: Extra::default() }, content.to_vec())
}

#[test]
fn gnu_tar_reads_ours_and_we_its() {
    let dir = tempfile::tempdir().unwrap();
    let long = "d".repeat(200);
    let entry = |name: &str, kind| {
        (Entry { name: name.into(), kind, mode: 0o755, mtime: 1, extra: Extra::default() }, Vec::new())
    };
    let ours = [
        entry("top", Kind::Directory),
        file("top/a", b"content"),
        file(&format!("top/{long}"), &[7; 513]),
        entry("top/link", Kind::Symlink(long.clone().into())),
        entry("top/again", Kind::Hardlink(b"top/a".to_vec())),
    ];
    std::fs::write(dir.path().join("a.tar"), written(&ours)).unwrap();
    let tar = |args: &[&str]| {
        let output = std::process::Command::new("tar").current_dir(&dir).args(args).output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    };
    tar(&["xf", "a.tar"]);
    assert_eq!(std::fs::read(dir.path().join("top").join(&long)).unwrap(), [7; 513]);
    assert_eq!(std::fs::read(dir.path().join("top/again")).unwrap(), b"content");
    assert_eq!(std::fs::read_link(dir.path().join("top/link")).unwrap().to_str(), Some(&*long));
    for format in ["--format=posix", "--format=ustar"] {
        if format == "--format=ustar" {
            std::fs::remove_file(dir.path().join("top/link")).unwrap();
            std::fs::remove_file(dir.path().join("top").join(&long)).unwrap();
        }
        tar(&["cf", "b.tar", format, "--sort=name", "top"]);
        let theirs = read(&std::fs::read(dir.path().join("b.tar")).unwrap(), 10_240).unwrap();
        let names: Vec<_> = theirs.iter().map(|(entry, _)| String::from_utf8_lossy(&entry.name).into_owned()).collect();
        assert_eq!(names[..2], ["top/", "top/a"], "{format}: {names:?}");
        assert_eq!((theirs[1].1.as_slice(), theirs[1].0.mode), (&b"content"[..], 0o644));
    }
}

#[test]
fn names_that_lead_out_are_refused() {
    let long = "x".repeat(256);
    let deep = "x/".repeat(2049);
    for name in ["/etc/passwd", "..", "../x", "a/../b", "a/..", "a//b", "a/./b", "a\0b", "//", "././a", &long, &deep] {
        assert_eq!(parts(name.as_bytes()), Err(TarError::Name), "{name}");
    }
    assert_eq!(parts(b"a/b/"), Ok(vec![&b"a"[..], b"b"]));
    assert_eq!(parts(b"./a"), Ok(vec![&b"a"[..]]));
    for top in [&b"."[..], b"./", b""] {
        assert_eq!(parts(top), Ok(vec![]));
    }
}

#[test]
fn what_is_no_archive_is_refused() {
    let good = written(&[file("a", b"x")]);
    let broken = |at: usize, byte: u8| {
        let mut bytes = good.clone();
        bytes[at] = byte;
        read(&bytes, 100)
    };
    assert_eq!(broken(0, b'b'), Err(TarError::Header), "the sum");
    assert_eq!(broken(257, b'x'), Err(TarError::Header));
    assert_eq!(read(&good[..good.len() - 1], 100), Err(TarError::Cut));
    assert_eq!(read(b"", 1), Err(TarError::Cut));
    assert_eq!(read(&[good.clone(), b"more".to_vec()].concat(), 100), Err(TarError::AfterEnd));
    assert_eq!(read(&[good, vec![0; 9000]].concat(), 100).map(|all| all.len()), Ok(1));
    for records in ["x", "7 path=a\n", "8 patha\n", "999999 path=a\n", "12 size=-100\n"] {
        let mut bytes = Vec::new();
        let kind = Kind::File(records.len() as u64);
        header(&Entry { name: b"p".to_vec(), kind, mode: 0, mtime: 0, extra: Extra::default() }, &mut bytes);
        let sum: u32 = bytes.iter().map(|byte| u32::from(*byte)).sum::<u32>() - sum_of(&bytes[148..156]) + 8 * 32;
        let sum = sum + u32::from(b'x') - u32::from(b'0');
        bytes[156] = b'x';
        bytes[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
        bytes.extend_from_slice(records.as_bytes());
        bytes.extend(padding(records.len() as u64));
        bytes.extend(trailer());
        assert_eq!(read(&bytes, 100), Err(TarError::Pax), "{records}");
    }
}

fn sum_of(bytes: &[u8]) -> u32 {
    bytes.iter().map(|byte| u32::from(*byte)).sum()
}

fn tar(dir: &std::path::Path, args: &[&str]) {
    let output = std::process::Command::new("tar").current_dir(dir).args(args).output().unwrap();
    assert!(output.status.success(), "{args:?}: {}", String::from_utf8_lossy(&output.stderr));
}

fn holed(extents: &[(u64, u64)], size: u64) -> Entry {
    let extents = extents.iter().map(|&(at, length)| Extent { at, length }).collect();
    let extra = Extra { extents: Some(extents), ..Extra::default() };
    Entry { name: b"holed".to_vec(), kind: Kind::File(size), mode: 0o644, mtime: 7, extra }
}

#[test]
fn files_with_holes_pass_between_gnu_tar_and_us() {
    let dir = tempfile::tempdir().unwrap();
    let size = 40u64 << 20;
    let entry = holed(&[(1 << 20, 512), (30 << 20, 4000), (size, 0)], size);
    let mut ours = Vec::new();
    header(&entry, &mut ours);
    ours.extend([b"hello".repeat(200)[..512].to_vec(), vec![7; 4000], padding(4512)].concat());
    ours.extend(trailer());
    std::fs::write(dir.path().join("a.tar"), &ours).unwrap();
    tar(dir.path(), &["xf", "a.tar"]);
    let there = std::fs::read(dir.path().join("holed")).unwrap();
    assert_eq!((there.len() as u64, &there[1 << 20..][..5], there[30 << 20]), (size, &b"hello"[..], 7));
    assert!(there.iter().filter(|byte| **byte != 0).count() == 4512);
    tar(dir.path(), &["cSf", "b.tar", "--format=posix", "holed"]);
    let theirs = read(&std::fs::read(dir.path().join("b.tar")).unwrap(), 700).unwrap();
    let [(entry, content)] = theirs.as_slice() else { panic!("{}", theirs.len()) };
    assert_eq!((&entry.name[..], &entry.kind), (&b"holed"[..], &Kind::File(size)));
    assert!(entry.stored() < 1 << 20 && there.starts_with(content), "{}", entry.stored());
    // The forms of before are refused: read as plain files they would be other files.
    for format in ["--format=gnu", "--sparse-version=0.0", "--sparse-version=0.1"] {
        tar(dir.path(), &["cSf", "b.tar", format, "holed"]);
        let older = read(&std::fs::read(dir.path().join("b.tar")).unwrap(), 700);
        assert_eq!(older, Err(TarError::Sparse), "{format}");
    }
}

#[test]
fn maps_that_make_no_sense_are_refused() {
    // Content of 1024 bytes, the map's block and 512 more.
    let with = |map: &str| {
        let mut out = Vec::new();
        header(&holed(&[(0, 512)], 4096), &mut out);
        let at = out.len() - BLOCK;
        out[at..].fill(b'0');
        out[at..at + map.len()].copy_from_slice(map.as_bytes());
        out.extend([1; BLOCK]);
        out.extend(trailer());
        read(&out, 100).map(|all| all[0].0.stored())
    };
    assert_eq!(with("1\n3584\n512\n"), Ok(512));
    assert_eq!(with("2\n0\n512\n600\n0\n"), Ok(512));
    for map in [
        "1\n3585\n512\n",
        "1\n0\n511\n",
        "1\n0\n513\n",
        "2\n512\n256\n0\n256\n",
        "2\n0\n256\n255\n256\n",
        "0\n",
        "1\n-1\n512\n",
        "2\n0\n12\n12\n500\n",
        "1\n\n512\n",
        "1\n4611686018427387903\n512\n",
        "1\n9999999999999999999999\n512\n",
        "8193\n",
        "99999999999\n",
    ] {
        assert_eq!(with(map), Err(TarError::Sparse), "{map:?}");
    }
    let endless = with("");
    assert!(endless.is_err(), "zeros without an end are no number");
}

#[test]
fn names_of_any_length_and_attributes_pass_between_gnu_tar_and_us() {
    let dir = tempfile::tempdir().unwrap();
    let long = "n".repeat(200);
    std::fs::write(dir.path().join(&long), "content").unwrap();
    std::os::unix::fs::symlink(&long, dir.path().join(format!("{long}-link"))).unwrap();
    tar(dir.path(), &["cf", "b.tar", "--format=gnu", "--sort=name", &long, &format!("{long}-link")]);
    let theirs = read(&std::fs::read(dir.path().join("b.tar")).unwrap(), 700).unwrap();
    assert_eq!((theirs[0].0.name.as_slice(), theirs[0].1.as_slice()), (long.as_bytes(), &b"content"[..]));
    assert_eq!(theirs[1].0.kind, Kind::Symlink(long.clone().into_bytes()));

    let attributes = vec![(b"user.a=b%c".to_vec(), b"v\0\n=1".to_vec()), (b"user.empty".to_vec(), Vec::new())];
    let (mut entry, content) = file("f", b"x");
    entry.extra = Extra { attributes: attributes.clone(), owner: (4_000_000, 7), extents: None };
    let ours = written(&[(entry.clone(), content)]);
    assert_eq!(read(&ours, 100).unwrap()[0].0, entry);
    std::fs::write(dir.path().join("a.tar"), &ours).unwrap();
    tar(dir.path(), &["xf", "a.tar", "--xattrs", "--no-same-owner"]);
    let mut value = [0; 16];
    let length = rustix::fs::getxattr(dir.path().join("f"), "user.a=b%c", value.as_mut_slice()).unwrap();
    assert_eq!(&value[..length], b"v\0\n=1");
    tar(dir.path(), &["cf", "b.tar", "--format=posix", "--xattrs", "--xattrs-include=*", "f"]);
    let mut theirs = read(&std::fs::read(dir.path().join("b.tar")).unwrap(), 700).unwrap().remove(0).0.extra.attributes;
    theirs.sort();
    assert_eq!(theirs, attributes);
}

proptest! {
    /// Entries come out as they went in, however the archive is cut.
    #[test]
    fn archives_survive_any_cut(
        files in proptest::collection::vec(("[a-z/]{1,150}", proptest::collection::vec(any::<u8>(), 0..1500)), 0..6),
        cut in 1..2000usize,
    ) {
        let entries: Vec<_> = files.iter().map(|(name, content)| file(name, content)).collect();
        prop_assert_eq!(read(&written(&entries), cut).unwrap(), entries);
    }

    /// Any bytes, also behind a good header: an error, or entries.
    #[test]
    fn nonsense_is_survived(bytes in proptest::collection::vec(any::<u8>(), 0..3000), at in 0..512usize, cut in 1..700usize) {
        let _ = read(&bytes, cut);
        let mut archive = written(&[file("a", b"x")]);
        archive[at] ^= bytes.first().copied().unwrap_or(1);
        archive.extend_from_slice(&bytes);
        let _ = read(&archive, cut);
    }
}
