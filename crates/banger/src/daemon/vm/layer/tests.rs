//! Layers that QEMU's own tools wrote to, and what became of them on the way.

use super::*;
use std::os::unix::fs::{MetadataExt, symlink};
use std::process::Command;
use tempfile::TempDir;

/// Not whole clusters, and two second tables.
const SIZE: u64 = (600 << 20) + 5 * 512;

struct Case {
    dir: TempDir,
}

impl Case {
    /// A base with some bytes, and a layer as the root helper makes it.
    fn new(size: u64) -> Case {
        let case = Case { dir: tempfile::tempdir().unwrap() };
        let base = File::create(case.base()).unwrap();
        base.set_len(size).unwrap();
        for at in [0, 100_000, size / 2, size - 70_000] {
            base.write_all_at(&[b'b'; 70_000], at).unwrap();
        }
        let layer = File::create(case.layer()).unwrap();
        layer.set_len(qcow2::EMPTY).unwrap();
        qcow2::empty(size).iter().for_each(|(at, part)| layer.write_all_at(part, *at).unwrap());
        case
    }

    fn base(&self) -> PathBuf {
        self.dir.path().join("base")
    }

    fn layer(&self) -> PathBuf {
        self.dir.path().join("layer")
    }

    fn disk(&self) -> PathBuf {
        self.dir.path().join("disk")
    }

    fn flatten(&self) -> io::Result<&'static str> {
        flatten(&self.layer(), &self.base(), &self.disk())
    }

    fn flat(&self) -> io::Result<Vec<u8>> {
        self.flatten()?;
        fs::read(self.disk())
    }

    /// The layer over its base, in QEMU's words.
    fn options(&self) -> String {
        let (layer, base) = (self.layer(), self.base());
        let (layer, base) = (layer.display(), base.display());
        format!("driver=qcow2,discard=unmap,file.filename={layer},backing.driver=raw,backing.file.filename={base}")
    }

    /// As a VM would.
    fn write(&self, commands: &[&str]) {
        let mut io = Command::new("qemu-io");
        io.args(["--image-opts", &self.options()]);
        commands.iter().for_each(|command| {
            io.args(["-c", command]);
        });
        let out = io.output().unwrap();
        let said = String::from_utf8_lossy(&out.stdout);
        assert!(out.status.success() && !said.contains("failed"), "{said}{}", String::from_utf8_lossy(&out.stderr));
    }

    /// What QEMU makes of it; `None` where it refuses.
    fn by_qemu(&self) -> Option<Vec<u8>> {
        let raw = self.dir.path().join("raw");
        let mut convert = Command::new("qemu-img");
        convert.args(["convert", "-q", "--image-opts", &self.options(), "-O", "raw"]).arg(&raw);
        convert.output().unwrap().status.success().then(|| fs::read(raw).unwrap())
    }

    /// Whether the disk is what QEMU makes of the layer; `None` where it refuses. Quicker than [`Case::by_qemu`].
    fn is_qemus(&self) -> Option<bool> {
        let disk = format!("driver=raw,file.filename={}", self.disk().display());
        let compare = Command::new("qemu-img").args(["compare", "--image-opts", &disk, &self.options()]).output();
        match compare.unwrap().status.code() {
            Some(0) => Some(true),
            Some(1) => Some(false),
            _ => None,
        }
    }

    fn left_over(&self) -> bool {
        part(&self.disk()).exists()
    }
}

/// A layer with something of all that VMs do.
fn written() -> Case {
    let case = Case::new(SIZE);
    case.write(&[
        "write -P 1 0 512",
        "write -P 2 65000 2000",
        "write -P 3 130k 1M",
        "write -z 3M 300k",
        "write -z -u 200k 64k",
        "write -P 4 300M 128k",
        "discard 300M 64k",
        "write -P 5 536870400 1024",
        "write -P 6 629146112 512",
        "write -z 599M 1M",
        "write -P 7 599M 4k",
    ]);
    case
}

#[test]
fn a_layer_over_its_base_is_what_qemu_makes_of_it() {
    for case in [Case::new(SIZE), Case::new(1 << 20), written()] {
        let want = case.by_qemu().unwrap();
        assert!(case.flat().unwrap() == want);
        assert!(!case.left_over());
        // Once more, over what is there.
        assert!(case.flat().unwrap() == want);
        let facts = fs::metadata(case.disk()).unwrap();
        assert_eq!(facts.mode() & 0o777, 0o600);
        assert!(facts.blocks() * 512 < 8 << 20, "{} blocks", facts.blocks());
    }
}

#[test]
fn zeros_take_no_room() {
    let case = Case::new(SIZE);
    case.write(&["write -P 1 10M 64M"]);
    let before = case.flatten().map(|_| fs::metadata(case.disk()).unwrap().blocks()).unwrap();
    case.write(&["write -z -u 10M 64M"]);
    case.flatten().unwrap();
    assert_eq!(case.is_qemus(), Some(true));
    let after = fs::metadata(case.disk()).unwrap().blocks();
    assert!(after * 512 + (63 << 20) < before * 512, "{before} {after}");
}

#[test]
fn names_in_a_layer_are_not_looked_at() {
    let case = written();
    let other = case.dir.path().join("other");
    fs::write(&other, vec![b'x'; 1 << 20]).unwrap();
    let rebase =
        Command::new("qemu-img").args(["rebase", "-u", "-F", "raw", "-b"]).args([other, case.layer()]).status();
    assert!(rebase.unwrap().success());
    case.flatten().unwrap();
    assert_eq!(case.is_qemus(), Some(true), "QEMU too is told what lies below");
}

#[test]
fn what_is_no_layer_of_ours_is_refused_before_anything_is_made() {
    let refused = |options: &str| {
        let case = Case::new(SIZE);
        let (size, layer) = (SIZE.to_string(), case.layer());
        let mut create = Command::new("qemu-img");
        create.args(["create", "-q", "-f", "qcow2", "-o", options]).arg(&layer).arg(size);
        assert!(create.status().unwrap().success(), "{options}");
        let error = case.flat().unwrap_err();
        assert!(!case.disk().exists() && !case.left_over(), "{options}");
        error.to_string()
    };
    let data = tempfile::tempdir().unwrap();
    let data = format!("data_file={}", data.path().join("data").display());
    assert!(refused("compat=0.10").contains("no layer's of ours"));
    assert!(refused("cluster_size=4k").contains("no layer's of ours"));
    assert!(refused("extended_l2=on,cluster_size=64k").contains("features"));
    assert!(refused("compression_type=zstd").contains("features"));
    assert!(refused(&data).contains("features"));
    let case = written();
    File::options().write(true).open(case.base()).unwrap().set_len(SIZE + 512).unwrap();
    assert!(case.flat().unwrap_err().to_string().contains("another size"));
    let elsewhere = case.dir.path().join("elsewhere");
    fs::rename(case.layer(), &elsewhere).unwrap();
    symlink(&elsewhere, case.layer()).unwrap();
    assert_eq!(case.flat().unwrap_err().raw_os_error(), Some(Errno::LOOP.raw_os_error()));
    fs::remove_file(case.layer()).unwrap();
    rustix::fs::mkfifoat(rustix::fs::CWD, case.layer(), 0o600.into()).unwrap();
    assert!(case.flat().unwrap_err().to_string().contains("no layer's of ours"));
    assert!(!case.disk().exists() && !case.left_over());
}

#[test]
fn compressed_clusters_are_refused() {
    let case = Case::new(1 << 20);
    case.write(&["write -c -P 1 0 64k"]);
    assert!(case.flat().unwrap_err().to_string().contains("features"));
}

#[test]
fn what_was_cut_off_is_made_anew_and_a_disk_that_is_there_is_kept_until_then() {
    let case = written();
    fs::write(part(&case.disk()), "half").unwrap();
    fs::write(case.disk(), "before").unwrap();
    let layer = fs::read(case.layer()).unwrap();
    fs::write(case.layer(), &layer[..layer.len() / 2]).unwrap();
    assert!(case.flat().is_err());
    assert_eq!(fs::read(case.disk()).unwrap(), b"before");
    fs::write(case.layer(), &layer).unwrap();
    case.flatten().unwrap();
    assert_eq!(case.is_qemus(), Some(true));
    assert!(fs::read(case.layer()).unwrap() == layer, "only read");
}

#[test]
fn what_can_not_be_put_in_its_place_leaves_nothing() {
    let case = written();
    fs::create_dir(case.disk()).unwrap();
    assert!(case.flat().is_err());
    assert!(!case.left_over());
    fs::remove_dir(case.disk()).unwrap();
    fs::remove_file(case.base()).unwrap();
    assert!(case.flat().is_err());
    assert!(!case.disk().exists() && !case.left_over());
}

#[test]
fn tables_that_loop_are_refused() {
    let case = written();
    let layer = fs::read(case.layer()).unwrap();
    let first = [header_word(&layer, 40), header_word(&layer, 40) + 8];
    let seconds = first.map(|at| header_word(&layer, at as usize) & !(1 << 63));
    let with = |changes: &[(u64, u64)]| {
        let mut layer = layer.clone();
        changes.iter().for_each(|(at, value)| put(&mut layer, *at, *value));
        walk(SIZE, &layer).map(drop).map_err(|error| error.to_string())
    };
    assert_eq!(with(&[]), Ok(()));
    let twice = || Err(Bad::Overlap.to_string());
    assert_eq!(with(&[(first[1], seconds[0])]), twice());
    assert_eq!(with(&[(first[1], first[0])]), twice());
    assert_eq!(with(&[(first[1], 0), (seconds[0] + 8, seconds[0])]), twice());
    assert_eq!(with(&[(40, seconds[0]), (seconds[0], seconds[0])]), twice());
    let nowhere = || Err(Bad::Place.to_string());
    assert_eq!(with(&[(40, 0)]), twice());
    assert_eq!(with(&[(40, 512)]), nowhere());
    assert_eq!(with(&[(first[0], 1 << 55)]), nowhere());
    assert_eq!(with(&[(seconds[1], layer.len() as u64)]), nowhere());
}

#[test]
fn thousands_of_bent_layers_stay_within_their_bounds() {
    let case = written();
    let whole = fs::read(case.layer()).unwrap();
    let mut dice = Dice(0x2545_f491_4f6c_dd1d);
    let (mut passed, mut compared) = (0, 0);
    for n in 0..6000 {
        let layer = bent(&whole, &mut dice);
        let Ok(pieces) = walk(SIZE, &layer) else { continue };
        passed += 1;
        assert!(pieces <= SIZE.div_ceil(CLUSTER));
        // What is accepted is what QEMU, where it takes the layer too, has the guest see.
        if passed % 12 == 0 {
            fs::write(case.layer(), &layer).unwrap();
            case.flatten().unwrap();
            assert_eq!(fs::metadata(case.disk()).unwrap().len(), SIZE);
            let is_qemus = case.is_qemus();
            assert_ne!(is_qemus, Some(false), "bent layer {n}");
            compared += usize::from(is_qemus.is_some());
        }
    }
    assert!((500..5500).contains(&passed) && compared > 30, "{passed} passed, {compared} compared");
}

/// Reads a layer as it is read from a file, with all that must hold; how many pieces it has.
fn walk(size: u64, layer: &[u8]) -> io::Result<u64> {
    let (length, mut reads, mut data, mut count, mut end) = (layer.len() as u64, 0, 0, 0, 0);
    let read = |at: u64, bytes: &mut [u8]| {
        reads += 1;
        assert!(reads <= 2 + size.div_ceil(BY_ENTRY), "each table once");
        let at = usize::try_from(at).unwrap();
        let from = layer.get(at..at + bytes.len()).ok_or(io::ErrorKind::UnexpectedEof)?;
        bytes.copy_from_slice(from);
        Ok(())
    };
    pieces(size, length, read, |piece| {
        let (at, bytes) = match piece {
            Piece::Zeros { at, length } => (at, length),
            Piece::Data { from, at, length: bytes } => {
                data += 1;
                assert!(from < length && data <= length.div_ceil(CLUSTER));
                (at, bytes)
            }
        };
        assert!(at >= end && bytes > 0 && bytes <= CLUSTER && at + bytes <= size, "in order, within the disk");
        (end, count) = (at + bytes, count + 1);
        Ok(())
    })?;
    Ok(count)
}

/// Some words of its header and tables are others, or its end is missing.
fn bent(whole: &[u8], dice: &mut Dice) -> Vec<u8> {
    let mut layer = whole.to_vec();
    let first = header_word(&layer, 40);
    let tables = [0, 1].map(|n| header_word(&layer, (first + 8 * n) as usize) & !(1 << 63));
    for _ in 0..=dice.below(3) {
        let at = match dice.below(8) {
            0 => dice.below(104),
            1 => first + 8 * dice.below(4),
            _ => tables[dice.below(2) as usize] + 8 * dice.below(64),
        };
        let clusters = layer.len() as u64 / CLUSTER + 2;
        let value = match dice.below(7) {
            0 => dice.next(),
            1 => 1 << dice.below(64),
            2 => u64::MAX << dice.below(64),
            3 => dice.below(2),
            _ => (dice.below(clusters) * CLUSTER) | (dice.below(2) << 63),
        };
        put(&mut layer, at, value);
    }
    if dice.below(16) == 0 {
        layer.truncate(dice.below(layer.len() as u64) as usize);
    }
    layer
}

fn header_word(layer: &[u8], at: impl TryInto<usize>) -> u64 {
    let at = at.try_into().ok().unwrap();
    u64::from_be_bytes(layer[at..at + 8].try_into().unwrap())
}

fn put(layer: &mut [u8], at: u64, value: u64) {
    let at = usize::try_from(at).unwrap();
    layer[at..at + 8].copy_from_slice(&value.to_be_bytes());
}

/// Numbers that are the same each time.
struct Dice(u64);

impl Dice {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    fn below(&mut self, end: u64) -> u64 {
        self.next() % end.max(1)
    }
}
