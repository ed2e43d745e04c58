//! Images that somebody has bent: the worker refuses, fails or dies, in bounded time, and what it proposes is a log that
//! touches nothing outside of the image.
#![allow(clippy::unwrap_used, reason = "what a test needs is there, or the test fails")]

mod common;

use common::{Ended, Image, bytes, file, ok, request};
use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;
use wire::image::NewFile;
use wire::name::guest_path::GuestPath;
use wire::worker::ask;
use wire::worker::reply::{Reply, Why};

/// More than the worker's own limit of a processor's time, on a machine that does much else.
const LONGEST: Duration = Duration::from_secs(60);

/// Numbers that are random enough, the same in every run.
struct Dice(u64);

impl Dice {
    fn roll(&mut self, sides: u64) -> u64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % sides
    }
}

/// An image, and the parts of it that say where the others are.
struct Target {
    image: Vec<u8>,
    regions: Vec<(u64, u64)>,
    /// A file to be read.
    path: &'static str,
}

fn numbers(text: &str) -> Vec<u64> {
    text.split(|c: char| !c.is_ascii_digit()).filter_map(|number| number.parse().ok()).collect()
}

/// An image with a directory that has an index, a file whose extents fill blocks, links, attributes.
fn target(options: &[&str], dirty: bool) -> Target {
    let mut options = options.to_vec();
    options.extend(["-b", "1024", "-N", "512", "-J", "size=1"]);
    let image = Image::new("8M", &options);
    let script = "mkdir d; for n in $(seq 200); do : > d/a-name-of-some-length-$n; done; ln -s d/f link; mkdir e
        ln -s $(printf 'x/../%.0s' $(seq 30))d/f long; mkdir x
        for n in $(seq 0 2 300); do printf x | dd of=d/f bs=1024 seek=$n conv=notrunc status=none; done; sync -f .";
    let copy = Image { dir: tempfile::tempdir().unwrap() };
    let taken = format!("{script}; cp \"$1\" '{}'", copy.text());
    image.mounted("rw,noinit_itable", &taken);
    let image = if dirty { copy } else { image };
    let block = |number: u64| (number * 1024, 1024);
    let mut regions = vec![(1024, 1024), block(2)];
    let stats = image.says("stats");
    for line in stats.lines().filter(|line| line.contains("Inode table at") || line.contains("inode table at")) {
        let at = numbers(&line[line.find("table at").unwrap()..])[0];
        regions.extend([(at * 1024, 4096), block(numbers(&line[line.find("bitmap at").unwrap()..])[0])]);
    }
    for path in ["/", "/d", "/e"] {
        regions.extend(numbers(&image.says(&format!("blocks {path}"))).into_iter().take(6).map(block));
    }
    // What maps the file's blocks: `(ETB0):n` and `(IND):n`.
    let stat = image.says("stat /d/f");
    for part in stat.split('(').filter(|part| part.starts_with("ETB") || part.contains("IND")) {
        regions.push(block(numbers(&part[part.find("):").unwrap()..])[0]));
    }
    if dirty {
        for n in 0..12 {
            regions.push(block(numbers(&image.says(&format!("bmap <8> {n}")))[0]));
        }
    }
    Target { image: image.bytes(), regions, path: "/d/f" }
}

fn bend(target: &Target, dice: &mut Dice) -> Vec<(u64, Vec<u8>)> {
    let changes = 1 + dice.roll(4);
    let one = |dice: &mut Dice| {
        let (start, length) = target.regions[dice.roll(target.regions.len() as u64) as usize];
        let width = 1 << dice.roll(4);
        let at = start + dice.roll(length / width) * width;
        let value = match dice.roll(5) {
            0 => vec![0; width as usize],
            1 => vec![0xff; width as usize],
            2 => (0..width).map(|_| dice.roll(256) as u8).collect(),
            // A number close to what is there, and another place's bytes.
            3 => {
                let mut value = target.image[at as usize..][..width as usize].to_vec();
                value[0] = value[0].wrapping_add(1 + dice.roll(7) as u8);
                value
            }
            _ => {
                let (from, length) = target.regions[dice.roll(target.regions.len() as u64) as usize];
                let from = from + dice.roll(length / width) * width;
                target.image[from as usize..][..width as usize].to_vec()
            }
        };
        (at, value)
    };
    (0..changes).map(|_| one(dice)).collect()
}

/// How often it ended in which way.
#[derive(Default, Debug)]
struct Count {
    read: AtomicU32,
    written: AtomicU32,
    refused: AtomicU32,
    died: AtomicU32,
}

impl Count {
    fn one(&self, image: &Image, ended: &Ended, files: &[NewFile]) {
        assert!(ended.took < LONGEST, "{:?}", ended.took);
        let counter = match &ended.reply {
            Ok(Reply::Read { size }) => {
                assert_eq!(ended.out.len() as u64, *size);
                &self.read
            }
            Ok(Reply::Written { log, changes, .. }) => {
                assert_eq!(ended.out.len() as u64, *log);
                assert_eq!(image.apply(&ended.out, files), *changes);
                &self.written
            }
            Ok(Reply::Refused { why, text }) => {
                assert!(*why != Why::Failed, "{text}");
                &self.refused
            }
            // A signal: of seccomp, of a limit, or of a pointer that the library followed.
            Err(how) => {
                assert!(how.starts_with("signal"), "{how}");
                println!("{how}");
                &self.died
            }
        };
        counter.fetch_add(1, Ordering::Relaxed);
    }
}

#[test]
fn two_thousand_bent_images() {
    let extents = ["-O", "^metadata_csum,^uninit_bg,inline_data"];
    let blocks = ["-O", "^metadata_csum,^uninit_bg,^extent,^64bit,^flex_bg,^huge_file"];
    let targets = [
        target(&extents, false),
        target(&blocks, false),
        target(&extents, true),
        target(&["-O", "metadata_csum"], true),
    ];
    let count = Count::default();
    let path = GuestPath::new("/d/f").unwrap();
    let files =
        [file("/d/new", &bytes(5000, 1), 0o644), file("/d/f", &bytes(9000, 2), 0o644), file("/e/a/b", b"x", 0o644)];
    let put = request(&files);
    std::thread::scope(|scope| {
        for thread in 0..4_u64 {
            let (targets, count, path, put, files) = (&targets, &count, &path, &put, &files);
            scope.spawn(move || {
                let mut dice = Dice(thread);
                for n in 0..520 {
                    let target = &targets[n % targets.len()];
                    let image = Image { dir: tempfile::tempdir().unwrap() };
                    fs::write(image.path(), &target.image).unwrap();
                    let out = File::options().write(true).open(image.path()).unwrap();
                    for (at, bytes) in bend(target, &mut dice) {
                        out.write_all_at(&bytes, at).unwrap();
                    }
                    count.one(&image, &image.worker(&ask::read(path)), &[]);
                    count.one(&image, &image.worker(put), files);
                    assert_eq!(target.path, path.as_str());
                }
            });
        }
    });
    println!("{count:?}");
    let of = |counter: &AtomicU32| counter.load(Ordering::Relaxed);
    let all = [&count.read, &count.written, &count.refused, &count.died].map(of);
    assert_eq!(all.iter().sum::<u32>(), 4 * 520 * 2);
    assert!(all[0] > 200 && all[1] > 200 && all[2] > 200, "too few came so far: {count:?}");
}

/// What is far from any image that `mkfs` makes.
#[test]
fn superblocks_that_ask_for_the_impossible() {
    let image = Image::new("8M", &["-b", "1024", "-O", "^metadata_csum,^uninit_bg"]);
    let count = Count::default();
    let path = GuestPath::new("/x").unwrap();
    let files = [file("/x", b"x", 0o644)];
    let put = request(&files);
    for (offset, value) in [
        (0x00, u32::MAX),
        (0x04, u32::MAX),
        (0x14, u32::MAX),
        (0x18, 6),
        (0x18, u32::MAX),
        (0x1c, u32::MAX),
        (0x20, 0),
        (0x20, 8),
        (0x24, 0),
        (0x28, 0),
        (0x28, u32::MAX),
        (0x58, 0xffff),
        (0x58, 0),
        (0xfc, 0),
    ] {
        for large in [false, true] {
            let bent = image.copy();
            if large {
                // Room for all that it may say.
                File::options().write(true).open(bent.path()).unwrap().set_len(8 << 40).unwrap();
            }
            bent.poke(1024 + offset, &u32::to_le_bytes(value));
            for ask in [&ask::read(&path), &put] {
                let ended = common::worker(&bent.path(), bent.dir.path(), ask);
                assert!(ended.took < LONGEST, "{offset:#x}: {:?}", ended.took);
                if !large {
                    count.one(&bent, &ended, &files);
                }
            }
        }
    }
}

/// The library's heap overflow with content in the inode: never reached, because we write none that way.
#[test]
fn a_link_that_lies_about_its_length_and_a_file_in_its_inode() {
    let image = Image::new("8M", &["-O", "inline_data,^metadata_csum"]);
    image.mounted("rw", "printf short > s; ln -s s l; ln -s $(printf 'x%.0s' $(seq 70)) m");
    for (path, size) in
        [("/s", "100"), ("/s", "4000"), ("/l", "4000"), ("/l", "70"), ("/m", "59"), ("/m", "1"), ("/m", "0")]
    {
        let bent = image.copy();
        ok("debugfs", &["-w", "-R", &format!("set_inode_field {path} size {size}"), &bent.text()]);
        let answer = bent.read(path);
        assert!(matches!(answer, Err((Why::Damaged | Why::NotFound, _))), "{path} {size}: {answer:?}");
    }
}
