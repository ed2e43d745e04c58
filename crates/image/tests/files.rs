//! Files into images of every kind that is written to, and out of them; e2fsck, debugfs and the kernel read them back.
#![allow(clippy::unwrap_used, reason = "what a test needs is there, or the test fails")]

mod common;

use common::{Image, bytes, file};

/// Each with what `mkfs.ext4` is told.
const KINDS: &[(&str, &str, &[&str])] = &[
    ("default", "64M", &[]),
    ("4k", "64M", &["-b", "4096"]),
    ("2k", "64M", &["-b", "2048"]),
    ("1k", "64M", &["-b", "1024"]),
    ("64k", "128M", &["-b", "65536"]),
    ("no checksums", "64M", &["-O", "^metadata_csum,uninit_bg"]),
    ("no checksums at all", "64M", &["-O", "^metadata_csum,^uninit_bg"]),
    ("32 bits", "64M", &["-O", "^64bit"]),
    ("ext3", "64M", &["-O", "^extent,^64bit,^metadata_csum,^flex_bg,^huge_file,^extra_isize"]),
    ("ext2", "64M", &["-O", "none,filetype,sparse_super", "-I", "128"]),
    ("no filetype", "64M", &["-O", "^filetype"]),
    ("inline data", "64M", &["-O", "inline_data"]),
    ("inline data, 1k", "64M", &["-b", "1024", "-O", "inline_data"]),
    ("bigalloc", "128M", &["-O", "bigalloc", "-C", "65536"]),
    ("bigalloc, 1k", "64M", &["-b", "1024", "-O", "bigalloc", "-C", "16384"]),
    ("no journal", "64M", &["-O", "^has_journal"]),
    ("meta_bg", "64M", &["-O", "meta_bg,^resize_inode"]),
    ("csum seed, orphan file", "64M", &["-O", "metadata_csum_seed,orphan_file"]),
    ("small inodes", "64M", &["-I", "128", "-O", "^metadata_csum"]),
    ("large inodes", "64M", &["-I", "1024", "-O", "inline_data"]),
    ("no index", "64M", &["-O", "^dir_index"]),
    ("large_dir", "64M", &["-O", "large_dir"]),
    ("sparse_super2", "64M", &["-O", "sparse_super2,^resize_inode"]),
];

#[test]
fn what_is_written_is_read_back_by_everybody() {
    for (kind, size, options) in KINDS {
        println!("{kind}");
        let image = Image::new(size, options);
        // No kernel of ours mounts blocks that are larger than a page.
        let mounts = *kind != "64k";
        let (small, large) = (bytes(40, 1), bytes(3_000_000, 2));
        let files = [
            file("/etc/hostname", &small, 0o600),
            file("/a/b/c/d/large", &large, 0o755),
            file("/empty", b"", 0o644),
            file("/etc/a b\"c'ü", &bytes(9_000, 3), 0o640),
        ];
        image.write(&files).unwrap();
        image.is_clean();
        for wanted in &files {
            let path = wanted.path.as_str();
            assert!(image.read(path).unwrap() == wanted.data, "{kind}: {path}");
            if !path.contains('"') {
                assert!(image.debugfs_reads(path) == wanted.data, "{kind}: {path} by debugfs");
            }
        }
        if mounts {
            let paths: Vec<&str> = files.iter().map(|file| file.path.as_str()).take(3).collect();
            let read = image.kernel_reads(&paths);
            assert!(read.iter().zip(&files).all(|(read, file)| *read == file.data), "{kind}: by the kernel");
            modes_are_right(&image, kind);
        }
        // Replaced: larger by smaller and the other way round, and by nothing.
        let again = [
            file("/a/b/c/d/large", &bytes(10, 4), 0o644),
            file("/etc/hostname", &bytes(200_000, 5), 0o600),
            file("/empty", &bytes(60, 6), 0o644),
            file("/etc/a b\"c'ü", b"", 0o640),
        ];
        image.write(&again).unwrap();
        image.is_clean();
        for wanted in &again {
            assert!(image.read(wanted.path.as_str()).unwrap() == wanted.data, "{kind}: {}", wanted.path.as_str());
        }
        if mounts {
            image.mounted("rw", "echo more > etc/by-the-kernel; rm -r a; sync");
            image.is_clean();
        }
    }
}

fn modes_are_right(image: &Image, kind: &str) {
    let stat = image.mounted("ro,noload", "stat -c '%n %a %u:%g %h %F' a a/b/c/d/large etc/hostname empty");
    assert_eq!(
        stat.lines().collect::<Vec<_>>(),
        [
            "a 755 0:0 3 directory",
            "a/b/c/d/large 755 0:0 1 regular file",
            "etc/hostname 600 0:0 1 regular file",
            "empty 644 0:0 1 regular empty file",
        ],
        "{kind}"
    );
}
