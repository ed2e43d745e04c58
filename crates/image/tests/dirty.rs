//! Images as a guest leaves them that was killed: the journal is full, the places are stale. The kernel makes them: the
//! image is copied while it is mounted.
#![allow(clippy::unwrap_used, reason = "what a test needs is there, or the test fails")]

mod common;

use common::{Image, bytes, file, ok, run};
use std::fs;
use wire::worker::reply::Why;

/// A copy of the image after the script, before the kernel unmounts it.
fn killed_after(image: &Image, mount: &str, script: &str) -> Image {
    let copy = Image { dir: tempfile::tempdir().unwrap() };
    let taken = format!("{script}\nsync -f .; cp --sparse=always \"$1\" '{}'; exec 8<&- 9<&-", copy.text());
    image.mounted(&format!("rw,noinit_itable,{mount}"), &taken);
    let superblock = &copy.bytes()[1024..2048];
    assert!(superblock[0x60] & 4 != 0, "the copy needs its journal");
    copy
}

/// Files with these names and contents, and a directory with many that come and go.
const BUSY: &str = "mkdir -p a/b; echo one > a/one; echo two > a/b/two
    for n in $(seq 300); do echo $n > a/b/n$n; done; sync -f .; rm a/b/n1* a/b/n2*; mkdir c; echo three > c/three
    sync -f .; rm -r a/b/n*; for n in $(seq 40); do mkdir c/d$n; done; sync -f .; rm -r c/d*; echo four > c/four";

fn is_as_the_busy_left_it(image: &Image) {
    for (path, wanted) in [("/a/one", "one\n"), ("/a/b/two", "two\n"), ("/c/three", "three\n"), ("/c/four", "four\n")] {
        assert_eq!(image.read(path).unwrap(), wanted.as_bytes(), "{path}");
    }
    assert_eq!(image.read("/a/b/n1").unwrap_err().0, Why::NotFound);
}

#[test]
fn a_journal_is_replayed_first() {
    let kinds: &[(&str, &[&str], &str)] = &[
        ("checksums, 64 bits", &["-O", "metadata_csum,64bit"], "data=ordered"),
        ("checksums, 32 bits", &["-O", "metadata_csum,^64bit"], "data=ordered"),
        ("none, 64 bits", &["-O", "^metadata_csum,64bit"], "data=ordered"),
        ("none, 32 bits", &["-O", "^metadata_csum,^64bit"], "data=ordered"),
        ("the old checksum", &["-O", "^metadata_csum"], "journal_checksum"),
        ("data too", &["-b", "1024"], "data=journal"),
        ("4k", &["-b", "4096"], "data=ordered"),
        ("ext3", &["-O", "^extent,^64bit,^metadata_csum,^flex_bg,^huge_file,^extra_isize"], "data=ordered"),
        ("inline data", &["-O", "inline_data"], "data=ordered"),
        ("bigalloc", &["-b", "1024", "-O", "bigalloc", "-C", "16384"], "data=ordered"),
        ("orphan file", &["-O", "orphan_file"], "data=ordered"),
    ];
    for (kind, options, mount) in kinds {
        println!("{kind}");
        let image = killed_after(&Image::new("64M", options), mount, BUSY);
        // A read leaves the image; what it shows is what the journal says.
        let before = image.bytes();
        is_as_the_busy_left_it(&image);
        assert!(image.bytes() == before);
        // e2fsck's replay finds the same.
        let theirs = image.copy();
        assert!(run("e2fsck", &["-fy", &theirs.text()]).status.code().is_some_and(|code| code <= 1), "{kind}");
        is_as_the_busy_left_it(&theirs);
        image.write(&[file("/a/ours", &bytes(100_000, 1), 0o644), file("/c/four", b"4", 0o600)]).unwrap();
        assert!(image.bytes()[1024 + 0x60] & 4 == 0, "{kind}: the journal is empty now");
        image.is_clean();
        assert_eq!(image.read("/a/one").unwrap(), b"one\n");
        // The kernel goes on from there, and finds no old transaction in the journal.
        image.mounted(
            "rw",
            "test \"$(cat c/four)\" = 4; test $(stat -c %s a/ours) = 100000; echo more > more; sync -f .",
        );
        image.is_clean();
        assert_eq!(image.read("/more").unwrap(), b"more\n", "{kind}");
    }
}

#[test]
fn a_journal_that_went_round_and_has_its_own_mark_in_its_data() {
    let image = Image::new("64M", &["-b", "1024", "-J", "size=1"]);
    let script = "printf '\\300\\073\\071\\230' > magic; head -c 3000 /dev/zero | tr '\\0' x >> magic
        for round in $(seq 30); do for n in $(seq 20); do head -c 2000 magic > f$n.$round; done; sync -f .
        test $round -lt 3 || rm f*.$((round-2)); done";
    let image = killed_after(&image, "data=journal", script);
    let wanted = [&[0xc0, 0x3b, 0x39, 0x98][..], &[b'x'; 1996]].concat();
    for name in ["/f1.30", "/f20.30", "/f7.29"] {
        assert!(image.read(name).unwrap() == wanted, "{name}");
    }
    image.write(&[file("/ours", b"x", 0o644)]).unwrap();
    image.is_clean();
    assert!(image.read("/f20.30").unwrap() == wanted);
}

#[test]
fn what_was_deleted_while_open_is_freed() {
    let by_file = ["-O", "orphan_file,metadata_csum"];
    let seeded = ["-O", "orphan_file,metadata_csum_seed"];
    for options in [&[][..], &["-O", "^metadata_csum"], &["-O", "^extent,^64bit"], &by_file, &seeded] {
        let script = "head -c 300000 /dev/urandom > gone; head -c 200000 /dev/urandom > also; echo kept > kept
            exec 8<gone 9<also; rm gone also";
        let image = killed_after(&Image::new("64M", options), "data=ordered", script);
        let says = image.says("show_super_stats -h");
        assert!(says.contains("First orphan inode:") || says.contains("orphan_present"), "{says}");
        assert_eq!(image.read("/kept").unwrap(), b"kept\n");
        image.write(&[file("/ours", b"x", 0o644)]).unwrap();
        image.is_clean();
    }
}

#[test]
fn a_journal_that_is_damaged_or_not_known_is_refused() {
    let image = killed_after(&Image::new("64M", &["-b", "1024"]), "data=ordered", BUSY);
    let put = [file("/x", b"x", 0o644)];
    // Where the journal begins, by debugfs.
    let block: u64 = image.says("bmap <8> 0").trim().parse().unwrap();
    let journal = block * 1024;
    let is = |image: &Image, wanted: Why| {
        let before = image.bytes();
        let (why, text) = image.write(&put).unwrap_err();
        assert_eq!(why, wanted, "{text}");
        assert_eq!(image.read("/a/one").unwrap_err().0, wanted);
        assert!(image.bytes() == before);
    };
    for (at, bytes) in [(0, [0; 4]), (0x10, [0xff; 4]), (0x28, [0xff; 4]), (0x20, [0, 0, 0, 5])] {
        let bad = image.copy();
        bad.poke(journal + at, &bytes);
        is(&bad, if at == 0x28 { Why::NotSupported } else { Why::Damaged });
    }
    // A block of a committed transaction.
    let bad = image.copy();
    let start = u64::from(u32::from_be_bytes(image.bytes()[journal as usize + 0x1c..][..4].try_into().unwrap()));
    let first: u64 = image.says(&format!("bmap <8> {}", start + 1)).trim().parse().unwrap();
    bad.poke(first * 1024 + 100, b"damage");
    is(&bad, Why::Damaged);
    // Without its superblock's pointer to the journal.
    let bad = image.copy();
    ok("debugfs", &["-w", "-R", "set_super_value journal_inum 0", &bad.text()]);
    is(&bad, Why::Damaged);
    let fast = Image::new("64M", &["-O", "fast_commit"]);
    let fast = killed_after(&fast, "data=ordered", "echo x > a; sync -f .");
    let (why, text) = fast.write(&put).unwrap_err();
    assert!(why == Why::NotSupported, "{text}");
    fs::remove_file(fast.path()).unwrap();
}
