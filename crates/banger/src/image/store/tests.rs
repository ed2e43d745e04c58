//! The store, checked by sha256sum and cpio.

use super::*;
use crate::image::initrd::Module;
use crate::image::progress::Unwatched;
use std::process::Command;

fn kernel() -> Kernel {
    let modules = vec![Module { name: "ext4".into(), object: b"object".to_vec() }];
    Kernel { version: "6.1".into(), vmlinux: vec![1; 9000], modules, initrd: None, source: String::new() }
}

#[test]
fn a_kernels_digest_is_that_of_all_its_files() {
    let state = tempfile::tempdir().unwrap();
    let store = Store::open(state.path()).unwrap();
    let kept = store.keep_kernel(&kernel()).unwrap();
    let sums = |arguments: &[&str]| {
        program::output(Command::new("sha256sum").current_dir(&kept.path).args(arguments)).unwrap()
    };
    assert_eq!(sums(&["-c", "SHA256SUMS"]), "vmlinux: OK\nversion: OK\nmodules/order: OK\nmodules/ext4.ko: OK\n");
    assert!(sums(&["SHA256SUMS"]).starts_with(&kept.digest));
    assert_eq!(store.keep_kernel(&kernel()).unwrap(), kept);
    let other = Kernel { vmlinux: vec![2; 9000], ..kernel() };
    assert_ne!(store.keep_kernel(&other).unwrap().digest, kept.digest);
    // One initrd for each agent, packed once; a given one is used as it is.
    let agent = state.path().join("agent");
    fs::write(&agent, "one").unwrap();
    let first = store.initrd(&kept, &agent).unwrap();
    assert_eq!(store.initrd(&kept, &agent).unwrap(), first);
    let listed = Command::new("cpio").arg("-t").stdin(File::open(&first).unwrap()).output().unwrap();
    let listed = String::from_utf8(listed.stdout).unwrap();
    assert!(listed.contains("init\n") && listed.contains("modules/ext4.ko\n"), "{listed}");
    fs::write(&agent, "two").unwrap();
    assert_ne!(store.initrd(&kept, &agent).unwrap(), first);
    let given = Kernel { initrd: Some(b"given".to_vec()), ..kernel() };
    let given = store.keep_kernel(&given).unwrap();
    assert_eq!(fs::read(store.initrd(&given, &agent).unwrap()).unwrap(), b"given");
    store.remove(Shelf::Kernels, &kept.digest).unwrap();
    store.remove(Shelf::Kernels, &kept.digest).unwrap();
    assert!(store.kernel(&kept.digest).is_err());
    assert_eq!(fs::read_dir(state.path().join("making")).unwrap().count(), 0);
}

#[test]
fn what_nobody_holds_is_swept_and_what_somebody_makes_is_not() {
    let state = tempfile::tempdir().unwrap();
    let store = Store::open(state.path()).unwrap();
    let held = store.work(0).unwrap();
    let left = state.path().join("making/1-1");
    fs::create_dir_all(left.join("tree")).unwrap();
    Store::open(state.path()).unwrap();
    assert!(!left.exists() && held.path().exists());
    let path = held.path().to_owned();
    drop(held);
    assert!(!path.exists());
    assert_eq!(store.work(u64::MAX).unwrap_err().kind, Kind::Room);
}

#[test]
fn a_digest_is_sha256sums_whatever_the_holes() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("file");
    for (length, writes) in
        [(0, &[][..]), (70 << 20, &[(1 << 20, 5)]), (9_000_001, &[(0, 4097), (5 << 20, 1), (9_000_000, 1)])]
    {
        let file = File::create(&path).unwrap();
        file.set_len(length).unwrap();
        for &(at, count) in writes {
            std::os::unix::fs::FileExt::write_all_at(&file, &vec![3; count], at).unwrap();
        }
        let said = program::output(Command::new("sha256sum").arg(&path)).unwrap();
        assert_eq!(said.split_whitespace().next(), Some(&digest_of(&path, &Unwatched).unwrap()[..]), "{length}");
    }
}
