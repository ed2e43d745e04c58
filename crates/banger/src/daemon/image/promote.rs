//! `image.promote`: a stopped VM's disk becomes an image.
//!
//! A guest wrote that disk, so nothing of it is looked into here: it is copied as bytes, and what only one machine may have
//! is written over by the root helper, whose worker parses it without rights and brings a journal up to date on the way.

use super::make::{Incoming, Told, is_free, keep};
use crate::api::Fault;
use crate::api::asset::Asset as Shown;
use crate::daemon::Daemon;
use crate::daemon::error::exit;
use crate::daemon::serve::Caller;
use crate::daemon::store::assets::Kind;
use crate::daemon::store::vms::Vm;
use crate::daemon::vm::work::Work;
use crate::daemon::vm::{disk, find, whole};
use crate::image::progress::{Stage, Watch};
use crate::image::store::taken;
use std::fs::{self, File};
use std::io;
use std::os::unix::fs::{FileExt, PermissionsExt};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;
use wire::image::{Image, NewFile, Read, Write};
use wire::name::guest_path::GuestPath;
use wire::path::Root;

/// What else is under way with the VM is waited for so long: its end, say.
const OTHERS: Duration = Duration::from_secs(5);
/// Keys of a machine's ssh daemon: an image has none, whoever made them.
const HOST_KEYS: [&str; 3] = ["rsa", "ecdsa", "ed25519"];

/// Makes it.
pub(crate) fn promote(
    daemon: &Arc<Daemon>,
    caller: &mut Caller,
    reference: &str,
    name: &str,
    force: bool,
) -> Result<Shown, Fault> {
    let vm = daemon.store.change(|t| find(t, reference))?;
    let source = format!("VM {}, of {}", vm.name, vm.base.image);
    let incoming = Incoming { name: name.to_owned(), source, force };
    is_free(daemon, Kind::Image, &incoming)?;
    // It can't be started, or taken away, until its disk is copied.
    let held = daemon.slots.hold(&vm.id, &vm.name, "its disk becomes an image", OTHERS)?;
    let mut vm = daemon.store.change(|t| find(t, &vm.id))?;
    let (helper, op_id) = (Arc::clone(daemon), caller.op_id().to_owned());
    let work = Work::new(&helper, &op_id);
    if vm.state.is_down() {
        whole::make(&work, &mut vm)?;
    }
    let method = method(&vm)?;
    let told = Told::new(caller, &incoming.name);
    let turn = told.turn(daemon)?;
    let places = work.places(&vm);
    let origin = disk::origin(daemon, &vm);
    let base = if method == disk::SNAPSHOT { taken(&origin).unwrap_or(0) } else { 0 };
    let folder = daemon.images.store.work(disk::used(&places).unwrap_or(0) + base)?;
    told.begin(Stage::Pack, &vm.name);
    let image = folder.path().join("root.ext4");
    match method.as_str() {
        disk::SNAPSHOT => copied(&origin, &image).and_then(|()| {
            flatten(&places.cow(), &image).map_err(|error| Fault::file("reading", &places.cow(), &error))
        })?,
        _ => copied(&places.disk(), &image)?,
    }
    drop(held);
    without_identity(&work, &vm, &image)?;
    let stored = daemon.images.store.keep_image(&folder, &image, &told).map_err(told.fault())?;
    drop((folder, turn));
    told.end();
    keep(daemon, Kind::Image, &incoming, &stored, None, false)
}

/// How its disk was made, where it has one that nobody writes to.
fn method(vm: &Vm) -> Result<String, Fault> {
    let name = &vm.name;
    if !vm.state.is_down() {
        let message = format!("{name} is {}: a disk that is written to can't become an image", vm.state.shown());
        return Err(Fault::new("is_running", exit::STATE, message).fix(format!("banger vm stop {name}")));
    }
    vm.disk_method.clone().ok_or_else(|| {
        let message = format!("{name} has no disk yet: it was never started");
        Fault::new("no_disk", exit::STATE, message).fix(format!("banger vm start {name}"))
    })
}

fn copied(from: &Path, to: &Path) -> Result<(), Fault> {
    let made = disk::copy(from, to);
    made.map(drop).map_err(|error| Fault::file(&format!("copying {} to", from.display()), to, &error))
}

/// Writes over what no two machines may share; each new VM gets its own.
fn without_identity(work: &Work<'_>, vm: &Vm, image: &Path) -> Result<(), Fault> {
    let image = Image::File(work.places(vm).host(image, Root::State)?);
    let file = |path: &str, text: &str, mode| -> Result<NewFile, Fault> {
        Ok(NewFile { path: GuestPath::new(path).map_err(Fault::bug)?, data: text.as_bytes().to_vec(), mode })
    };
    let mut files = vec![
        file("/etc/hostname", "banger\n", 0o644)?,
        file("/etc/hosts", "127.0.0.1 localhost\n::1 localhost ip6-localhost\n", 0o644)?,
        file("/etc/machine-id", "", 0o444)?,
        file("/etc/banger/guest.json", "{}", 0o644)?,
        file("/etc/banger/authorized_keys", "", 0o644)?,
    ];
    for kind in HOST_KEYS {
        let (key, public) = (format!("/etc/ssh/ssh_host_{kind}_key"), format!("/etc/ssh/ssh_host_{kind}_key.pub"));
        let (key, public) = (file(&key, "", 0o600)?, file(&public, "", 0o644)?);
        // What isn't there is not made. What is there and can't be read can't be written either, which says why.
        if work.helper().read_ext4_file(&Read { image: image.clone(), path: key.path.clone() }).is_ok() {
            files.extend([key, public]);
        }
    }
    let written = work.helper().write_ext4_files(Write { image, files });
    written.map_err(|error| work.refused("taking what is one machine's own out of the image", error))
}

/// The kernel's format of a snapshot's store (drivers/md/dm-snap-persistent.c): a chunk with a header, then areas, each a
/// chunk of exceptions and the chunks that they tell of.
const CHUNK: u64 = 4096;
/// An area: a chunk of exceptions of 16 bytes each, and their chunks.
const AREA: usize = 1 + 4096 / 16;
const MAGIC: u32 = 0x7041_6e53;

/// Puts what a snapshot's store holds into a copy of its base.
fn flatten(cow: &Path, image: &Path) -> io::Result<()> {
    let wrong = |what: &str| Err(io::Error::new(io::ErrorKind::InvalidData, what.to_owned()));
    fs::set_permissions(image, fs::Permissions::from_mode(0o600))?;
    let (cow, image) = (File::open(cow)?, File::options().read(true).write(true).open(image)?);
    let (chunks, length) = (cow.metadata()?.len() / CHUNK, image.metadata()?.len());
    let mut header = [0; 16];
    cow.read_exact_at(&mut header, 0)?;
    if header.iter().all(|byte| *byte == 0) {
        return Ok(());
    }
    match [0, 4, 8, 12].map(|at| word(&header, at)) {
        [MAGIC, 0, ..] => return wrong("the snapshot's store was full: its changes are lost"),
        [MAGIC, _, 1, sectors] if u64::from(sectors) * 512 == CHUNK => {}
        _ => return wrong("it is no snapshot's store of ours"),
    }
    let (mut exceptions, mut chunk) = (vec![0; 4096], vec![0; 4096]);
    // Areas lie one behind the other, and none can be behind the store's end.
    for area in (1..chunks).step_by(AREA) {
        cow.read_exact_at(&mut exceptions, area * CHUNK)?;
        for exception in exceptions.chunks_exact(16) {
            let [old, new] = [0, 8].map(|at| u64::from(word(exception, at)) | u64::from(word(exception, at + 4)) << 32);
            if new == 0 {
                return image.sync_all();
            }
            let to = old.checked_mul(CHUNK).filter(|to| *to < length);
            let (Some(to), true) = (to, new < chunks) else {
                return wrong("the snapshot's store names a place that is not there");
            };
            cow.read_exact_at(&mut chunk, new * CHUNK)?;
            let most = usize::try_from((length - to).min(CHUNK)).unwrap_or(0);
            image.write_all_at(&chunk[..most], to)?;
        }
    }
    image.sync_all()
}

/// A little-endian word of a buffer; 0 behind its end.
fn word(bytes: &[u8], at: usize) -> u32 {
    bytes.get(at..).and_then(|bytes| bytes.first_chunk()).map_or(0, |bytes| u32::from_le_bytes(*bytes))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A store with those exceptions, as the kernel lays it out: each new chunk behind the one before, areas in between.
    fn store(changes: &[(u64, u8)]) -> Vec<u8> {
        let mut out = vec![0; 4096];
        out[..16].copy_from_slice(&[MAGIC, 1, 1, 8].map(u32::to_le_bytes).concat());
        for area in changes.chunks(256) {
            let first = out.len() as u64 / CHUNK + 1;
            let exceptions = area.iter().zip(first..).flat_map(|((old, _), new)| [*old, new]);
            let mut table: Vec<u8> = exceptions.flat_map(u64::to_le_bytes).collect();
            table.resize(4096, 0);
            out.extend(table);
            area.iter().for_each(|(_, fill)| out.extend([*fill; 4096]));
        }
        // The kernel clears the next area ahead.
        out.extend([0; 2 * 4096]);
        out
    }

    fn flattened(cow: &[u8]) -> io::Result<Vec<u8>> {
        let dir = tempfile::tempdir()?;
        let (from, to) = (dir.path().join("cow"), dir.path().join("image"));
        fs::write(&from, cow)?;
        fs::write(&to, vec![b'b'; 700 * 4096 + 512])?;
        flatten(&from, &to)?;
        fs::read(to)
    }

    #[test]
    fn a_store_over_its_base_is_a_disk() {
        let base = vec![b'b'; 700 * 4096 + 512];
        assert_eq!(flattened(&[0; 16384]).unwrap(), base, "a snapshot that was never made");
        assert_eq!(flattened(&store(&[])).unwrap(), base);
        // Two areas and a half; the last chunk is only a part of one.
        let changes: Vec<(u64, u8)> = (0..600).map(|n| (700 - n, u8::try_from(n % 251).unwrap())).collect();
        let mut want = base.clone();
        for (old, fill) in &changes {
            let at = usize::try_from(old * CHUNK).unwrap();
            let end = (at + 4096).min(want.len());
            want[at..end].fill(*fill);
        }
        assert!(flattened(&store(&changes)).unwrap() == want);
        assert!(flattened(&store(&changes[..256])).is_ok());
    }

    #[test]
    fn a_store_that_is_none_is_refused() {
        let good = store(&[(3, 7)]);
        let with = |at: usize, bytes: &[u8]| {
            let mut bad = good.clone();
            bad[at..at + bytes.len()].copy_from_slice(bytes);
            flattened(&bad).unwrap_err().to_string()
        };
        assert!(with(4, &[0; 4]).contains("was full"));
        assert!(with(8, &[9]).contains("no snapshot's") && with(12, &[16]).contains("no snapshot's"));
        assert!(with(0, b"ext4").contains("no snapshot's"));
        assert!(with(4096, &700_000u64.to_le_bytes()).contains("not there"));
        assert!(with(4096, &u64::MAX.to_le_bytes()).contains("not there"));
        assert!(with(4104, &u64::MAX.to_le_bytes()).contains("not there"));
        assert!(flattened(b"short").is_err());
    }

    mod lab {
        use super::*;
        use std::process::Command;

        fn shell(script: &str) -> String {
            let out = Command::new("bash").args(["-ec", script]).output().unwrap();
            assert!(out.status.success(), "{script}\n{}", String::from_utf8_lossy(&out.stderr));
            String::from_utf8(out.stdout).unwrap().trim().to_owned()
        }

        /// The device, and its loops: gone however the test ends.
        struct Made(String);

        impl Drop for Made {
            fn drop(&mut self) {
                let _ = Command::new("bash").args(["-c", &self.0]).status();
            }
        }

        /// The kernel reads a snapshot, which it wrote itself, and so do we: the same bytes.
        #[test]
        fn a_store_is_read_as_the_kernel_reads_it() {
            const CHUNKS: u64 = 2000;
            const LENGTH: u64 = CHUNKS * CHUNK + 512;
            let dir = tempfile::tempdir_in("/var/tmp").unwrap();
            let [base, cow, image] = ["base", "cow", "image"].map(|name| dir.path().join(name));
            fs::write(&base, vec![b'b'; usize::try_from(LENGTH).unwrap()]).unwrap();
            File::create(&cow).unwrap().set_len(32 << 20).unwrap();
            let loops = [(&base, "-r"), (&cow, "")]
                .map(|(file, how)| shell(&format!("losetup {how} -f --show {}", file.display())));
            let table = format!("0 {} snapshot {} {} P 8", LENGTH / 512, loops[0], loops[1]);
            let _made = Made(format!("dmsetup remove --retry promoted; losetup -d {} {}", loops[0], loops[1]));
            // It grows over three activations, beyond its first area of exceptions, in no order.
            for (round, count) in [(1, 100), (2, 400), (3, 300)] {
                shell(&format!("dmsetup create promoted --table '{table}'"));
                let device = File::options().read(true).write(true).open("/dev/mapper/promoted").unwrap();
                for n in 0..count {
                    let at = (n * 1237 + round * 71) % CHUNKS * CHUNK + n % 8 * 512;
                    device.write_all_at(&[u8::try_from(n % 200).unwrap() + 40; 512], at).unwrap();
                }
                device.write_all_at(&[u8::try_from(round).unwrap(); 512], CHUNKS * CHUNK).unwrap();
                device.sync_all().unwrap();
                drop(device);
                let seen = fs::read("/dev/mapper/promoted").unwrap();
                let used = shell("dmsetup status promoted");
                shell("dmsetup remove --retry promoted; sync");
                let _ = fs::remove_file(&image);
                fs::copy(&base, &image).unwrap();
                flatten(&cow, &image).unwrap();
                let same = fs::read(&image).unwrap();
                assert_eq!(seen.len(), same.len());
                let differs = seen.iter().zip(&same).position(|(a, b)| a != b);
                assert_eq!(differs, None, "round {round}, a store of {used}");
                assert!(seen.iter().any(|byte| *byte != b'b'));
            }
        }
    }
}
