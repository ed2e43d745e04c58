//! What is followed, replaced, kept and refused.
#![allow(clippy::unwrap_used, reason = "what a test needs is there, or the test fails")]

mod common;

use common::{Image, bytes, file, ok, request};
use std::fs;
use wire::image::NewFile;
use wire::worker::log::From;
use wire::worker::reply::Why;

/// What `read` and `write` refuse, by kind.
fn why<T: std::fmt::Debug>(answer: Result<T, (Why, String)>) -> Why {
    let (why, text) = answer.unwrap_err();
    assert!(!text.is_empty() && !text.contains('\n'), "{text}");
    why
}

/// An image with what the script makes in a folder.
fn image_of(options: &[&str], script: &str) -> Image {
    let from = tempfile::tempdir().unwrap();
    ok("sh", &["-ec", &format!("cd '{}'; {script}", from.path().display())]);
    let mut options = options.to_vec();
    let from = from.path().to_str().unwrap().to_owned();
    options.extend(["-d", &from]);
    Image::new("32M", &options)
}

#[test]
fn links_lead_nowhere_but_into_the_image() {
    let long = "x/../".repeat(40) + "../../../etc/target";
    let script = format!(
        "mkdir -p etc/x a/x; echo inside > etc/target; ln -s /etc etc/up; ln -s ../../../../etc/target a/climbs
         ln -s target etc/short; ln -s '/{long}' a/long; ln -s a/b/new dangling; ln -s self self
         ln -s /etc/target/ a/slash; mkdir x; ln -s / a/root
         ln -s 0 chain0; for n in $(seq 40); do ln -s chain$((n-1)) chain$n; done; ln -sf etc/target chain0"
    );
    for options in [&[][..], &["-O", "inline_data"]] {
        let image = image_of(options, &script);
        for path in ["/etc/up/target", "/a/climbs", "/etc/short", "/a/long", "/a/root/etc/target", "/chain39"] {
            assert_eq!(image.read(path).unwrap(), b"inside\n", "{path}");
        }
        assert_eq!(why(image.read("/self")), Why::Loop);
        assert_eq!(why(image.read("/chain40")), Why::Loop);
        assert_eq!(why(image.write(&[file("/self/x", b"", 0o644)])), Why::Loop);
        assert_eq!(why(image.read("/dangling")), Why::NotFound);
        assert_eq!(why(image.read("/a/root")), Why::WrongType);
        // Written through: the links stay, what they lead to is made or replaced.
        image.write(&[file("/a/climbs", b"new", 0o600), file("/dangling", b"made", 0o644)]).unwrap();
        image.is_clean();
        assert_eq!(image.read("/etc/target").unwrap(), b"new");
        assert_eq!(image.read("/a/b/new").unwrap(), b"made");
        assert!(image.says("stat /a/climbs").contains("Type: symlink"));
    }
}

#[test]
fn only_regular_files_are_read_and_replaced() {
    let image = image_of(&[], "mkdir -p dir/sub; mkfifo fifo; echo x > file; mknod null c 1 3");
    let before = image.bytes();
    for path in ["/dir", "/dir/sub", "/fifo", "/null", "/file/below"] {
        assert_eq!(why(image.read(path)), Why::WrongType, "{path}");
        assert_eq!(why(image.write(&[file(path, b"x", 0o644)])), Why::WrongType, "{path}");
    }
    assert_eq!(why(image.read("/none")), Why::NotFound);
    assert_eq!(why(image.read("/none/below")), Why::NotFound);
    // The second one is refused, so the first is not written either.
    assert_eq!(why(image.write(&[file("/new", b"x", 0o644), file("/dir", b"x", 0o644)])), Why::WrongType);
    assert!(image.bytes() == before);
    assert_eq!(image.write(&[]), Ok(0));
}

#[test]
fn another_name_of_a_replaced_file_keeps_what_it_had() {
    let image = image_of(&[], "echo old > a; ln a b; echo alone > c");
    let free =
        |image: &Image| image.says("show_super_stats -h").lines().find(|l| l.starts_with("Free")).map(str::to_owned);
    image.write(&[file("/a", b"new", 0o644)]).unwrap();
    image.is_clean();
    assert_eq!((image.read("/a").unwrap(), image.read("/b").unwrap()), (b"new".to_vec(), b"old\n".to_vec()));
    assert!(image.says("stat /b").contains("Links: 1"));
    let before = free(&image);
    image.write(&[file("/c", b"again", 0o644)]).unwrap();
    assert_eq!(free(&image), before, "nothing is left of what was replaced");
}

#[test]
fn attributes_and_rights_of_directories_are_kept_and_times_are_set() {
    let image = image_of(&[], "mkdir d; chmod 1777 d; echo x > d/x");
    image.debugfs(&["ea_set /d user.mark here", "ea_set /d security.selinux label", "set_inode_field /d mtime 1"]);
    image.write(&[file("/d/new", b"x", 0o4755 & 0o777), file("/d/x", b"y", 0o600)]).unwrap();
    image.is_clean();
    let attributes = image.says("ea_list /d");
    assert!(attributes.contains("user.mark") && attributes.contains("security.selinux"), "{attributes}");
    let stat = image.mounted("ro", "stat -c '%a %Y' d; stat -c '%a %X %Y %Z %W' d/new; date +%s");
    let numbers: Vec<i64> = stat.split_whitespace().map(|n| n.parse().unwrap()).collect();
    let now = numbers[7];
    assert_eq!((numbers[0], numbers[2]), (1777, 755));
    for at in [1, 3, 4, 5, 6] {
        assert!((now - 120..=now).contains(&numbers[at]), "{stat}");
    }
}

#[test]
fn large_attributes_go_with_the_file_that_had_them() {
    let image = image_of(&[], "echo x > a; echo x > b");
    let value = image.dir.path().join("value");
    fs::write(&value, vec![b'v'; 900]).unwrap();
    image.debugfs(&[&format!("ea_set -f {} /a user.large", value.display())]);
    assert!(!image.says("stat /a").contains("File ACL: 0"));
    image.write(&[file("/a", b"y", 0o644)]).unwrap();
    image.is_clean();
}

#[test]
fn what_is_immutable_or_append_only_is_left() {
    let image = image_of(&[], "mkdir d e f; echo x > a; echo x > b; echo x > d/x; echo x > e/x");
    image.debugfs(&[
        "set_inode_field /a flags 0x80010",
        "set_inode_field /b flags 0x80020",
        "set_inode_field /d flags 0x80010",
        "set_inode_field /e flags 0x80020",
    ]);
    for path in ["/a", "/b", "/d/x", "/d/new", "/d/new/below", "/e/x"] {
        assert_eq!(why(image.write(&[file(path, b"y", 0o644)])), Why::Protected, "{path}");
    }
    image.write(&[file("/e/new", b"y", 0o644)]).unwrap();
    image.is_clean();
}

#[test]
fn a_full_image_stays_as_it_was() {
    for options in
        [&[][..], &["-b", "4096"], &["-b", "1024", "-O", "bigalloc", "-C", "16384"], &["-O", "^extent,^64bit"]]
    {
        let image = Image::new("8M", options);
        let before = image.bytes();
        let (why, text) =
            image.write(&[file("/small", b"x", 0o644), file("/big", &bytes(12 << 20, 1), 0o644)]).unwrap_err();
        assert_eq!(why, Why::NoSpace, "{text}");
        assert!(image.bytes() == before);
        // Filled to the last block, by ever smaller files.
        let largest = 2 << 20;
        let (mut size, mut count) = (largest, 0);
        while size > 0 {
            match image.write(&[file(&format!("/f{count}"), &bytes(size, 7), 0o644)]) {
                Ok(_) => count += 1,
                Err((Why::NoSpace, _)) => size /= 2,
                other => panic!("{other:?}"),
            }
        }
        image.is_clean();
        // What is replaced makes room for what replaces it.
        image.write(&[file("/f0", &bytes(largest, 9), 0o644)]).unwrap();
        image.is_clean();
        assert!(image.read("/f0").unwrap() == bytes(largest, 9));
    }
}

/// How many of a write's changes are a file's, and of these how many may be put in their places before it is made.
fn kinds(image: &Image, files: &[NewFile]) -> (usize, usize) {
    let ended = image.worker(&request(files));
    let changes = image.proposed(&ended.out, files);
    let kinds: Vec<bool> = changes
        .iter()
        .filter_map(|change| match change.from {
            From::File { fresh, .. } => Some(fresh),
            From::Log { .. } => None,
        })
        .collect();
    image.write(files).unwrap();
    image.is_clean();
    (kinds.len(), kinds.iter().filter(|fresh| **fresh).count())
}

#[test]
fn only_what_was_free_is_written_before_the_write_is_made() {
    for (block, features) in [("1024", "^has_journal"), ("4096", "^has_journal"), ("1024", "^has_journal,bigalloc")] {
        let image = Image::new("16M", &["-b", block, "-O", features]);
        let put = |seed| [file("/a", &bytes(300_000, seed), 0o644), file("/b", &bytes(5, seed), 0o644)];
        // New ones, such that are replaced, one twice in one request: what is replaced gives nothing to its successor.
        for seed in 1..4 {
            let (all, fresh) = kinds(&image, &put(seed));
            assert!(all >= 2 && fresh == all, "{fresh} of {all}");
        }
        let twice = [file("/a", &bytes(200_000, 8), 0o644), file("/a", &bytes(100_000, 9), 0o644)];
        let (all, ok) = kinds(&image, &twice);
        assert_eq!(ok, all);
        assert!(image.read("/a").unwrap() == bytes(100_000, 9));
        // Where there is no room beside it, it does, and nothing is written before.
        image.write(&[file("/fill", &bytes(9_000_000, 5), 0o644)]).unwrap();
        let (all, ok) = kinds(&image, &[file("/fill", &bytes(9_100_000, 6), 0o644)]);
        assert!(all > 0 && ok == 0, "{ok} of {all}");
        assert!(image.read("/fill").unwrap() == bytes(9_100_000, 6));
        // The same file twice, each in the other's place.
        let twice = [file("/fill", &bytes(9_000_000, 7), 0o644), file("/fill", &bytes(6_000_000, 8), 0o644)];
        let (all, ok) = kinds(&image, &twice);
        assert!(all > 0 && ok == 0, "{ok} of {all}");
        assert!(image.read("/fill").unwrap() == bytes(6_000_000, 8));
    }
}

#[test]
fn no_inode_left() {
    let image = Image::new("8M", &["-N", "32"]);
    let files: Vec<_> = (0..40).map(|n| file(&format!("/d{n}/f"), b"x", 0o644)).collect();
    assert_eq!(why(image.write(&files)), Why::NoSpace);
    image.write(&files[..8]).unwrap();
    image.is_clean();
}

#[test]
fn large_directories_keep_their_index() {
    for options in
        [&["-b", "1024"][..], &["-b", "4096"], &["-b", "1024", "-O", "^metadata_csum"], &["-O", "inline_data"]]
    {
        let image = Image::new("64M", options);
        image.mounted("rw", "mkdir d; for n in $(seq 1200); do : > d/a-name-of-some-length-$n; done");
        assert!(image.says("htree_dump /d").contains("Root node dump"), "the kernel makes an index");
        let name = |n: usize| format!("/d/{}{n}", "another name ".repeat(3));
        let files: Vec<_> = (0..1000).map(|n| file(&name(n), name(n).as_bytes(), 0o644)).collect();
        image.write(&files).unwrap();
        image.is_clean();
        assert!(image.says("htree_dump /d").contains("Root node dump"), "and it stays");
        for n in [0, 500, 999] {
            assert_eq!(image.read(&name(n)).unwrap(), name(n).into_bytes());
        }
        let count = image.mounted("rw", "ls d | wc -l; cat 'd/another name another name another name 777'; rm -r d");
        assert_eq!(count, "2200\n/d/another name another name another name 777");
        image.is_clean();
    }
}

#[test]
fn many_files_in_a_directory_of_our_own() {
    for options in [&["-b", "1024"][..], &["-O", "inline_data"], &["-b", "1024", "-O", "^dir_index,^extent,^64bit"]] {
        let image = Image::new("64M", options);
        let name = |n: usize| format!("/new/deep/{n:0200}");
        let files: Vec<_> = (0..600).map(|n| file(&name(n), &bytes(n, n as u64), 0o644)).collect();
        for files in files.chunks(200) {
            image.write(files).unwrap();
        }
        image.is_clean();
        assert_eq!(image.mounted("ro", "ls new/deep | wc -l").trim(), "600");
        assert_eq!(image.read(&name(599)).unwrap(), bytes(599, 599));
    }
}

#[test]
fn the_longest_names_and_the_deepest_path() {
    let image = Image::new("32M", &[]);
    let deep = "/".to_owned() + &vec!["d"; 1024].join("/");
    let long = format!("/{}/{}", "n".repeat(255), "m".repeat(255));
    image.write(&[file(&deep, b"deep", 0o644), file(&long, b"long", 0o644)]).unwrap();
    image.is_clean();
    assert_eq!((image.read(&deep).unwrap(), image.read(&long).unwrap()), (b"deep".to_vec(), b"long".to_vec()));
}

#[test]
fn holes_and_what_was_never_written_are_zeros_and_a_read_has_a_bound() {
    let image = Image::new("128M", &[]);
    image.mounted(
        "rw",
        "printf begin > s; printf end | dd of=s bs=1 seek=5000000 conv=notrunc status=none; truncate -s 7000001 s
         fallocate -l 300000 u; printf x | dd of=u bs=1 seek=100000 conv=notrunc status=none
         truncate -s 67108864 most; truncate -s 67108865 more; truncate -s 2T huge; : > none",
    );
    let mut wanted = vec![0; 7_000_001];
    wanted[..5].copy_from_slice(b"begin");
    wanted[5_000_000..5_000_003].copy_from_slice(b"end");
    assert!(image.read("/s").unwrap() == wanted);
    let mut wanted = vec![0; 300_000];
    wanted[100_000] = b'x';
    assert!(image.read("/u").unwrap() == wanted);
    assert_eq!(image.read("/none").unwrap(), b"");
    assert_eq!(image.read("/most").unwrap().len(), 64 << 20);
    for (path, size) in [("/more", "67108865"), ("/huge", "2199023255552")] {
        let (why, text) = image.read(path).unwrap_err();
        assert!(why == Why::TooLarge && text.contains(size), "{text}");
    }
}

#[test]
fn images_that_are_none_or_marked_or_of_another_kind() {
    let image = image_of(&[], "echo x > a");
    let put = [file("/b", b"x", 0o644)];
    let both = |image: &Image| (why(image.read("/a")), why(image.write(&put)));
    for length in [0, 1023, 2047, 4096] {
        let other = image.copy();
        fs::write(other.path(), &image.bytes()[..length]).unwrap();
        let (read, write) = both(&other);
        assert!(read == write && matches!(read, Why::NotSupported | Why::Damaged), "{length}");
    }
    let other = image.copy();
    fs::File::options().write(true).open(other.path()).unwrap().set_len(20 << 20).unwrap();
    assert_eq!(both(&other), (Why::Damaged, Why::Damaged), "cut");
    let other = image.copy();
    other.poke(0, &[0; 4096]);
    assert_eq!(both(&other), (Why::NotSupported, Why::NotSupported), "no superblock");
    let other = image.copy();
    ok("debugfs", &["-w", "-R", "set_super_value state 2", &other.text()]);
    assert_eq!(both(&other), (Why::Damaged, Why::Damaged), "marked with errors");
    for (feature, options) in
        [("quota", "quota"), ("encrypt", "encrypt"), ("ea_inode", "ea_inode"), ("casefold", "casefold")]
    {
        let other = image_of(&["-O", options], "echo x > a");
        assert_eq!(other.read("/a").unwrap(), b"x\n", "{feature}");
        let (why, text) = other.write(&put).unwrap_err();
        assert!(why == Why::NotSupported && text.contains(feature), "{feature}: {text}");
    }
    // Features that nobody knows, without checksums so that the superblock may be changed by hand.
    for (at, reads) in [(0x5c, true), (0x60, false), (0x64, false)] {
        let other = image_of(&["-O", "^metadata_csum"], "echo x > a");
        let mut field = [0; 4];
        field.copy_from_slice(&other.bytes()[1024 + at..][..4]);
        other.poke(1024 + at as u64, &(u32::from_le_bytes(field) | 0x4000_0000).to_le_bytes());
        assert_eq!(other.read("/a").is_ok(), reads, "{at:#x}");
        assert_eq!(why(other.write(&put)), Why::NotSupported, "{at:#x}");
    }
    ok(
        "sh",
        &[
            "-c",
            "mkfs.xfs -V >/dev/null 2>&1 || true; dd if=/dev/urandom of=\"$1\" bs=1M count=4 status=none",
            "sh",
            &other.text(),
        ],
    );
    assert_eq!(both(&other), (Why::NotSupported, Why::NotSupported), "noise");
}
