//! Images, read back by e2fsprogs' own programs.

use super::*;
use crate::image::build;
use crate::image::progress::Unwatched;
use crate::image::store::Store;
use std::io::Read;
use std::process::Stdio;

/// What another program prints.
fn said(program: &str, arguments: &[&str], image: &Path) -> String {
    program::output(Command::new(program).args(arguments).arg(image)).unwrap()
}

/// An archive of a folder with everything that is hard to put into an image, as tar makes it.
fn odd_archive() -> Vec<u8> {
    let folder = tempfile::tempdir().unwrap();
    let at = folder.path();
    fs::create_dir_all(at.join("a \"b\"/<2>")).unwrap();
    fs::write(at.join("a \"b\"/<2>/-x"), "x").unwrap();
    fs::write(at.join("#file"), "two names").unwrap();
    fs::hard_link(at.join("#file"), at.join("a \"b\"/zwei")).unwrap();
    fs::write(at.join("empty"), "").unwrap();
    let mut large = vec![7; 300_000];
    large.extend(vec![0; 5 << 20]);
    large.push(1);
    fs::write(at.join("large"), &large).unwrap();
    std::os::unix::fs::symlink("x".repeat(3000), at.join("long link")).unwrap();
    std::os::unix::fs::symlink("a \"b\"/<2>", at.join("short link")).unwrap();
    program::output(Command::new("mkfifo").arg(at.join("fifo"))).unwrap();
    program::output(Command::new("chmod").args(["4751"]).arg(at.join("#file"))).unwrap();
    for n in 0..600 {
        fs::write(at.join(format!("many-{n}")), n.to_string()).unwrap();
    }
    let tar = ["--format=pax", "--sort=name", "--owner=0", "--group=42", "--mtime=@1234567890", "-cf", "-", "."];
    let child = Command::new("tar").current_dir(at).args(tar).stdout(Stdio::piped()).spawn().unwrap();
    child.wait_with_output().unwrap().stdout
}

fn image_of(archive: impl Read, state: &Path) -> Result<String, Error> {
    let store = Store::open(state)?;
    let work = store.work(0)?;
    let image = build::import([archive], SMALLEST, build::Origin::Given, &work, &Unwatched)?;
    store.keep_image(&work, &image, &Unwatched).map(|stored| stored.digest)
}

#[test]
fn the_image_has_what_the_archive_has_as_other_programs_see_it() {
    let state = tempfile::tempdir().unwrap();
    let archive = odd_archive();
    let digest = image_of(&archive[..], state.path()).unwrap();
    let image = state.path().join("images").join(&digest).join("root.ext4");
    // e2fsck ends with something else than 0 where it finds anything.
    said("e2fsck", &["-f", "-n"], &image);
    assert_eq!(said("sha256sum", &[], &image).split_whitespace().next(), Some(&digest[..]));
    let debugfs = |request: &str| said("debugfs", &["-R", request], &image);
    assert_eq!(debugfs("cat \"/a \"\"b\"\"/<2>/-x\""), "x");
    assert_eq!(debugfs("cat /#file"), "two names");
    assert_eq!(debugfs("cat \"/a \"\"b\"\"/zwei\""), "two names");
    let stat = debugfs("stat \"/a \"\"b\"\"/zwei\"");
    for wanted in ["Mode:  04751", "User:     0", "Group:    42", "Links: 2", "mtime: 0x499602d2"] {
        assert!(stat.contains(wanted), "{wanted}: {stat}");
    }
    assert!(debugfs("stat /fifo").contains("Type: FIFO"));
    assert!(debugfs("stat \"/short link\"").contains("Fast link dest: \"a \"b\"/<2>\""));
    assert_eq!(debugfs("cat \"/long link\""), "x".repeat(3000));
    let listed = debugfs("ls /");
    assert_eq!((0..600).filter(|n| listed.contains(&format!("many-{n} "))).count(), 600);
    let out = state.path().join("large");
    debugfs(&format!("dump /large {}", out.display()));
    let large = fs::read(out).unwrap();
    assert!(
        large.len() == 300_000 + (5 << 20) + 1
            && large[299_999] == 7
            && large[300_000] == 0
            && large.last() == Some(&1)
    );
    // Sparse as a whole, and no folder of the making is left.
    assert!(std::os::unix::fs::MetadataExt::blocks(&fs::metadata(&image).unwrap()) * 512 < 4 << 20);
    assert_eq!(fs::read_dir(state.path().join("making")).unwrap().count(), 0);
    // The same archive, the same image.
    assert_eq!(image_of(&archive[..], state.path()).unwrap(), digest);
}

#[test]
fn packed_archives_are_told_by_their_bytes() {
    let folder = tempfile::tempdir().unwrap();
    let plain = folder.path().join("a.tar");
    fs::write(&plain, odd_archive()).unwrap();
    let digest = image_of(File::open(&plain).unwrap(), folder.path()).unwrap();
    for (program, end) in [("gzip", "gz"), ("xz", "xz"), ("zstd", "zst")] {
        program::output(Command::new(program).arg("-qk").arg(&plain)).unwrap();
        let packed = folder.path().join(format!("a.tar.{end}"));
        assert_eq!(image_of(File::open(&packed).unwrap(), folder.path()).unwrap(), digest, "{program}");
        let bytes = fs::read(&packed).unwrap();
        let cut = image_of(&bytes[..bytes.len() - 9], folder.path()).unwrap_err();
        assert_eq!(cut.kind, Kind::Input, "{program}: {cut}");
    }
}

#[test]
fn what_has_no_room_or_is_hostile_leaves_nothing() {
    let state = tempfile::tempdir().unwrap();
    let zeros = crate::image::tar::tests::header(b"a", b'0', 80 << 20, b"").into_iter().collect::<Vec<_>>();
    let large = zeros.chain(std::io::repeat(1).take(80 << 20)).chain(std::io::repeat(0).take(1024));
    let error = image_of(large, state.path()).unwrap_err();
    assert_eq!(error.kind, Kind::Room, "{error}");
    let header = crate::image::tar::tests::header(b"a", b'0', 62 << 20, b"");
    let fits_not = header.chain(std::io::repeat(1).take(62 << 20)).chain(std::io::repeat(0).take(1024));
    let error = image_of(fits_not, state.path()).unwrap_err();
    assert!(error.kind == Kind::Room && error.fix[0].starts_with("--size "), "{error}");
    let error = image_of(&b"no archive at all"[..], state.path()).unwrap_err();
    assert_eq!(error.kind, Kind::Input, "{error}");
    for folder in ["images", "making"] {
        assert_eq!(fs::read_dir(state.path().join(folder)).unwrap().count(), 0, "{folder}");
    }
}

#[test]
fn a_script_that_fails_is_no_image() {
    let state = tempfile::tempdir().unwrap();
    let store = Store::open(state.path()).unwrap();
    let work = store.work(0).unwrap();
    let image = work.path().join("image");
    File::create_new(&image).unwrap().set_len(SMALLEST).unwrap();
    program::output(Command::new("mke2fs").args(["-q", "-F", "-t", "ext4"]).arg(&image)).unwrap();
    let tree = Tree::new(work.path(), 0);
    let script = work.path().join("script");
    fs::write(&script, "mkdir \"a\"\ncd \"b\"\nwrite \"none\" \"c\"\n").unwrap();
    let error = fill(&tree, &script, &image, &Unwatched).unwrap_err();
    let why = error.why.as_deref().unwrap_or_default();
    assert!(error.kind == Kind::Program && why.contains("b: File not found") && why.contains("\"none\""), "{error}");
}
