//! Images, stores and what losetup and dmsetup say, for the tests of the snapshot methods.

#![allow(dead_code, reason = "each test file uses a part")]

use crate::common::{Helper, OWNER, STATE, eventually, output};
use serde_json::{Value, json};
use std::collections::BTreeSet;
use std::fs::{self, File};
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt, chown};
use std::path::Path;

pub(crate) const CREATE: &str = "priv.create_dm_snapshot";
pub(crate) const CLEANUP: &str = "priv.cleanup_dm_snapshot";
pub(crate) const REMOVE: &str = "priv.remove_dm_snapshot";
pub(crate) const BASE: &str = "/mnt/s/images/base.ext4";
pub(crate) const BLOCK: usize = 4096;

/// A file of the owner's, sparse.
pub(crate) fn sparse(path: &str, size: u64) {
    File::create(path).and_then(|file| file.set_len(size)).expect(path);
    chown(path, Some(OWNER), Some(OWNER)).expect(path);
}

/// A base of that many blocks, each of them its own.
pub(crate) fn base(blocks: usize) -> Vec<u8> {
    let bytes: Vec<u8> = (0..blocks).flat_map(|n| block(&format!("base {n} "))).collect();
    fs::write(BASE, &bytes).expect(BASE);
    chown(BASE, Some(OWNER), Some(OWNER)).expect(BASE);
    bytes
}

/// A block full of that text.
pub(crate) fn block(text: &str) -> Vec<u8> {
    text.bytes().cycle().take(BLOCK).collect()
}

/// The state directory on the machine's own disk, not in memory; what is in it goes with the guard.
pub(crate) struct OnDisk(String);

impl OnDisk {
    pub(crate) fn state(test: &str) -> OnDisk {
        let dir = format!("/var/tmp/banger-test-{test}");
        for sub in ["images", "kernels", "logs"] {
            crate::common::make_dir(&format!("{dir}/{sub}"), OWNER, 0o755);
        }
        chown(&dir, Some(OWNER), Some(OWNER)).expect("chown");
        rustix::mount::mount_bind(&dir, STATE).expect("bound");
        OnDisk(dir)
    }
}

impl Drop for OnDisk {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// The store's path of a snapshot.
pub(crate) fn store(id: &str) -> String {
    format!("{STATE}/images/{id}.cow")
}

pub(crate) fn node(id: &str) -> String {
    format!("/dev/mapper/fc-rootfs-{id}")
}

/// What makes the snapshot `id` of the base.
pub(crate) fn new(id: &str) -> Value {
    json!({"rootfs_path": BASE, "cow_path": store(id), "dm_name": format!("fc-rootfs-{id}")})
}

/// What takes it away by name alone.
pub(crate) fn target(id: &str) -> Value {
    json!({"target": format!("fc-rootfs-{id}")})
}

/// Makes a snapshot with a store of that many bytes.
pub(crate) fn make(helper: &Helper, id: &str, store_bytes: u64) -> Value {
    sparse(&store(id), store_bytes);
    helper.ok(CREATE, &new(id))
}

/// What `losetup` says of loop devices over files of this test's state directory: other tests have one of that name too.
pub(crate) fn loops() -> Vec<Value> {
    let text = output("losetup", &["-J", "-l", "-O", "NAME,BACK-FILE,RO,AUTOCLEAR,DIO,BACK-MAJ:MIN"]);
    if text.trim().is_empty() {
        return Vec::new();
    }
    let all: Value = serde_json::from_str(&text).expect("JSON");
    let dev = fs::metadata(STATE).expect(STATE).dev();
    let dev = format!("{}:{}", rustix::fs::major(dev), rustix::fs::minor(dev));
    let is_here = |one: &Value| one["back-file"].as_str().is_some_and(|file| file.starts_with(STATE));
    let ours = |one: &&Value| is_here(one) && one["back-maj:min"].as_str().map(str::trim) == Some(dev.as_str());
    all["loopdevices"].as_array().expect("a list").iter().filter(ours).cloned().collect()
}

/// Those over that file.
pub(crate) fn loops_on(path: &str) -> Vec<Value> {
    loops().into_iter().filter(|one| one["back-file"] == path).collect()
}

/// The names of the machine's dm devices, as dmsetup says; empty without device-mapper.
pub(crate) fn devices() -> BTreeSet<String> {
    if !Path::new("/dev/mapper/control").exists() {
        return BTreeSet::new();
    }
    let text = output("dmsetup", &["info", "-c", "--noheadings", "-o", "name"]);
    text.lines().map(str::trim).filter(|line| line.starts_with("fc-rootfs-")).map(str::to_owned).collect()
}

/// The nodes of snapshots.
pub(crate) fn nodes() -> BTreeSet<String> {
    let entries = fs::read_dir("/dev/mapper").into_iter().flatten();
    let names = entries.map(|entry| entry.expect("an entry").file_name().to_string_lossy().into_owned());
    names.filter(|name| name.starts_with("fc-rootfs-")).collect()
}

/// Nothing of any snapshot is there. What udev looks at a moment longer may go a moment later.
pub(crate) fn nothing_is_left() {
    eventually("no snapshot, node or loop device is left", || {
        devices().is_empty() && nodes().is_empty() && loops().is_empty()
    });
}

/// Writes a block of a device, to the device.
pub(crate) fn write_block(path: &str, nth: usize, bytes: &[u8]) {
    let file = File::options().write(true).open(path).expect(path);
    file.write_all_at(bytes, (nth * BLOCK) as u64).expect(path);
    file.sync_all().expect(path);
}

/// Reads so many blocks of a device, from the device and not from memory.
pub(crate) fn read_blocks(path: &str, first: usize, count: usize) -> Vec<u8> {
    let file = File::options().read(true).custom_flags(libc::O_DIRECT).open(path).expect(path);
    let mut room = vec![0; (count + 1) * BLOCK];
    let start = room.as_ptr().align_offset(BLOCK);
    file.read_exact_at(&mut room[start..start + count * BLOCK], (first * BLOCK) as u64).expect(path);
    room[start..start + count * BLOCK].to_vec()
}

/// A loop device that losetup bound, as an older banger or an administrator did. Unbound with the guard.
pub(crate) struct Losetup(pub(crate) String);

impl Losetup {
    pub(crate) fn bind(options: &[&str], file: &str) -> Losetup {
        // Others on the machine may take the free one first.
        for _ in 0..50 {
            let done = std::process::Command::new("losetup").args(["-f", "--show"]).args(options).arg(file).output();
            let done = done.expect("losetup");
            if done.status.success() {
                return Losetup(String::from_utf8_lossy(&done.stdout).trim().to_owned());
            }
        }
        panic!("no loop device for {file}");
    }

    pub(crate) fn is_bound(&self) -> bool {
        Path::new(&format!("/sys/block/{}/loop", self.0.trim_start_matches("/dev/"))).exists()
    }
}

impl Drop for Losetup {
    fn drop(&mut self) {
        if self.is_bound() {
            let _ = std::process::Command::new("losetup").args(["-d", &self.0]).output();
        }
    }
}
