//! Archives by tar itself, and by hand where tar would not make them.

use super::*;
use std::fs;
use std::path::Path;
use std::process::Command;

/// A header of one entry, its checksum right.
pub(crate) fn header(name: &[u8], kind: u8, size: u64, link: &[u8]) -> Vec<u8> {
    let mut block = vec![0; BLOCK];
    block[..name.len()].copy_from_slice(name);
    block[100..107].copy_from_slice(b"0000644");
    block[108..115].copy_from_slice(b"0000000");
    block[116..123].copy_from_slice(b"0000000");
    block[124..135].copy_from_slice(format!("{size:011o}").as_bytes());
    block[136..147].copy_from_slice(b"00000000005");
    block[156] = kind;
    block[157..157 + link.len()].copy_from_slice(link);
    block[257..265].copy_from_slice(b"ustar\x0000");
    summed(block)
}

fn summed(mut block: Vec<u8>) -> Vec<u8> {
    block[148..156].fill(b' ');
    let sum: u32 = block.iter().map(|byte| u32::from(*byte)).sum();
    block[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
    block
}

/// The data of an entry, with its padding.
pub(crate) fn data(bytes: &[u8]) -> Vec<u8> {
    let mut bytes = bytes.to_vec();
    bytes.resize(bytes.len().next_multiple_of(BLOCK), 0);
    bytes
}

pub(crate) fn end() -> Vec<u8> {
    vec![0; 2 * BLOCK]
}

fn pax(key: &str, value: &[u8]) -> Vec<u8> {
    let rest = key.len() + value.len() + 3;
    let length = (1..).find(|digits| (rest + digits).to_string().len() == *digits).unwrap() + rest;
    [format!("{length} {key}=").as_bytes(), value, b"\n"].concat()
}

fn extended(records: &[u8]) -> Vec<u8> {
    [header(b"x", b'x', records.len() as u64, b""), data(records)].concat()
}

fn all(archive: &[u8]) -> Result<Vec<(Entry, Vec<u8>)>, Error> {
    let mut archive = Archive::new(archive);
    let mut entries = Vec::new();
    while let Some(entry) = archive.next()? {
        let mut bytes = Vec::new();
        if let Kind::File(size) = entry.kind {
            (&mut archive).take(size).read_to_end(&mut bytes).map_err(|cause| unreadable(&cause))?;
        }
        entries.push((entry, bytes));
    }
    Ok(entries)
}

fn refused(archive: &[u8]) -> String {
    all(archive).map(|entries| panic!("taken: {entries:?}")).unwrap_err().to_string()
}

fn tar(folder: &Path, arguments: &[&str]) -> Vec<u8> {
    let out = Command::new("tar").current_dir(folder).args(arguments).arg("-cf").args(["-", "."]).output().unwrap();
    assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
    out.stdout
}

#[test]
fn what_tar_writes_is_read_in_each_of_its_forms() {
    let folder = tempfile::tempdir().unwrap();
    let long = "l".repeat(120);
    let deep = folder.path().join(&long).join(&long);
    fs::create_dir_all(&deep).unwrap();
    fs::write(deep.join("file"), "some bytes").unwrap();
    fs::hard_link(deep.join("file"), folder.path().join("second")).unwrap();
    std::os::unix::fs::symlink(format!("/{long}/{long}/to"), folder.path().join("sym link")).unwrap();
    for form in ["--format=gnu", "--format=pax", "--format=posix"] {
        let archive =
            tar(folder.path(), &[form, "--sort=name", "--owner=u:3000000", "--group=g:7", "--mtime=@1234567890"]);
        let entries = all(&archive).unwrap();
        let found = |end: &str| entries.iter().find(|(e, _)| e.path.ends_with(end.as_bytes())).unwrap();
        let (file, bytes) = found("/file");
        assert_eq!(file.path, format!("./{long}/{long}/file").into_bytes(), "{form}");
        assert_eq!(
            (file.uid, file.gid, file.mtime, &bytes[..]),
            (3_000_000, 7, 1_234_567_890, &b"some bytes"[..]),
            "{form}"
        );
        assert_eq!(found("second").0.kind, Kind::HardLink(file.path.clone()), "{form}");
        assert_eq!(found("sym link").0.kind, Kind::Symlink(format!("/{long}/{long}/to").into_bytes()), "{form}");
        assert_eq!(entries.len(), 6, "{form}");
        // Whatever is missing at its end: it is told, never a shorter archive.
        let end = archive.iter().rposition(|byte| *byte != 0).unwrap().next_multiple_of(BLOCK);
        for cut in (0..end + BLOCK).step_by(97) {
            assert!(all(&archive[..cut]).is_err(), "{form}: {cut} of {} bytes", archive.len());
        }
    }
}

#[test]
fn sizes_that_lie_are_told() {
    let cut = [header(b"a", b'0', (8 << 30) - 1, b""), data(b"abc"), end()].concat();
    assert!(refused(&cut).contains("cut off"));
    let endless = format!("{:011o}", u32::MAX);
    let mut long_name = header(b"a", b'L', 0, b"");
    long_name[124..135].copy_from_slice(endless.as_bytes());
    assert!(refused(&summed(long_name)).contains("extended header"));
    let two =
        [extended(&pax("size", b"18446744073709551615")), header(b"a", b'0', 1, b""), data(b"abc"), end()].concat();
    assert!(refused(&two).contains("cut off"));
    let more = [extended(&pax("size", b"18446744073709551616")), header(b"a", b'0', 1, b""), end()].concat();
    assert!(refused(&more).contains("makes no sense"));
    let mut binary = header(b"a", b'0', 0, b"");
    binary[124..136].fill(0xff);
    assert!(refused(&summed(binary)).contains("size"));
}

#[test]
fn what_two_readers_could_read_differently_is_refused() {
    let hidden = [header(b"inner", b'0', 0, b""), end()].concat();
    for kind in [b'1', b'2', b'3', b'5', b'6'] {
        let archive = [header(b"a", kind, hidden.len() as u64, b"x"), hidden.clone(), end()].concat();
        assert!(refused(&archive).contains("no file"), "{}", char::from(kind));
    }
    let global = pax("path", b"elsewhere");
    let archive = [header(b"g", b'g', global.len() as u64, b""), data(&global), header(b"a", b'0', 0, b""), end()];
    assert!(refused(&archive.concat()).contains("all of its entries"));
    assert!(refused(&[header(b"a", b'S', 0, b""), end()].concat()).contains("sparse"));
    assert!(refused(&[header(b"a", b'Z', 0, b""), end()].concat()).contains("unknown type"));
    assert!(refused(&[extended(&pax("path", b"x")), end()].concat()).contains("without its entry"));
    assert!(refused(&[extended(b"99 path=x\n"), header(b"a", b'0', 0, b""), end()].concat()).contains("no sense"));
    let mut wrong = header(b"a", b'0', 0, b"");
    wrong[0] = b'b';
    assert!(refused(&[wrong, end()].concat()).contains("checksum"));
    assert!(refused(&[header(b"a", b'0', 0, b"")].concat()).contains("cut off"));
    let comment = pax("comment", b"harmless");
    let archive = [header(b"g", b'g', comment.len() as u64, b""), data(&comment), header(b"a", b'0', 0, b""), end()];
    assert_eq!(all(&archive.concat()).unwrap().len(), 1);
}

proptest::proptest! {
    #[test]
    fn no_bytes_harm(mut archive in proptest::collection::vec(0u8..=255, 0..2000), kind in 0u8..=255, size in 0u64..3000) {
        let _ = all(&archive);
        // And behind a header that is right.
        let mut whole = header(b"a", kind, size, b"b");
        whole.append(&mut archive);
        let _ = all(&whole);
    }
}
