//! Files inside images against what the existing helper runs for each (`e2rm`, `e2cp`, `debugfs` for mode and owner), one
//! `debugfs`, a loop mount. Once with images and logs on the disk that this program was built on, once in memory.
//!
//! Programs alone have the files' bytes on hand, in files; ours has all of a request's way, with 14 MB of text for 10 MiB.
//! What a client of a helper that runs programs waits for: `today.rs`.
//!
//! None of the programs sees to it that a write is whole. They do flush the image: `e2rm` three times, `e2cp` five times,
//! `debugfs` once (e2fsprogs 1.47), so nine times for each file; the helper four times for all, five where they are large.

use crate::stats::{Times, compare, head};
use crate::world::{self, Helper, OWNER, SOCKET, beside, run};
use anyhow::{Context, Result, anyhow, ensure};
use std::fs;
use std::os::unix::fs::chown;
use std::os::unix::net::UnixStream;
use wire::client::Client;
use wire::code::Code;
use wire::image::{Image, NewFile, Read, Write};
use wire::name::guest_path::GuestPath;
use wire::path::Roots;

const OURS: &str = "/var/lib/banger/ours.ext4";
const THEIRS: &str = "/var/lib/banger/theirs.ext4";

/// A way of writing files, by their paths and lengths.
type By = fn(&[(String, usize)]) -> Result<()>;

/// On a disk, then in memory.
pub(crate) fn measure(rounds: usize) -> Result<()> {
    world::on_disk_and_in_memory(|title| in_images(title, rounds))
}

fn in_images(title: &str, rounds: usize) -> Result<()> {
    beside("banger-image")?;
    for path in [OURS, THEIRS] {
        let _ = fs::remove_file(path);
        run(&format!("mkfs.ext4 -q -F {path} 512M"))?;
        chown(path, Some(OWNER), Some(OWNER))?;
    }
    fs::create_dir_all("/run/files")?;
    fs::create_dir_all("/run/mounted")?;
    let helper = Helper::start(None)?;
    let client = Client::new(|| UnixStream::connect(SOCKET));
    let roots = Roots { state: "/var/lib/banger".into(), runtime: "/run/banger".into() };
    let image = Image::new(OURS, &roots, Code::BadParams, "image_path").ok().context("an image")?;
    let ten = || (0..10).map(|nth| (format!("/etc/file{nth}"), 1000)).collect::<Vec<_>>();
    let small = vec![("/etc/hostname".to_owned(), 1000)];
    let big = vec![("/opt/big".to_owned(), 10 << 20)];
    let rows = [
        ("write one small file", &small, "e2rm, e2cp, debugfs -w", by_programs as By),
        ("write ten small files", &ten(), "10 e2rm, 10 e2cp, 10 debugfs -w", by_programs),
        ("write ten small files", &ten(), "one debugfs -w", debugfs),
        ("write ten small files", &ten(), "mount -o loop, 10 cp, umount", mount),
        ("write 10 MiB", &big, "e2rm, e2cp, debugfs -w", by_programs),
        ("write 10 MiB", &big, "one debugfs -w", debugfs),
        ("write 10 MiB", &big, "mount -o loop, cp, umount", mount),
    ]
    .map(|(what, files, against, act)| (what, files.clone(), against, act));
    head(&format!("Files in images, {title}"));
    for (what, files, against, act) in rows {
        let (mut ours, mut theirs) = (Times::default(), Times::default());
        for round in 0..=rounds * 3 {
            let asked = Write { image: image.clone(), files: new_files(&files, round)? };
            for (nth, (_, length)) in files.iter().enumerate() {
                fs::write(format!("/run/files/{nth}"), vec![fill(round); *length])?;
            }
            ours.take(|| client.write_ext4_files(asked))?;
            theirs.take(|| act(&files))?;
            if round == 0 {
                // The first of each warms caches and is not counted.
                (ours, theirs) = Default::default();
            }
        }
        compare(what, &ours, &theirs, against);
    }
    let (mut ours, mut theirs) = (Times::default(), Times::default());
    let asked = Read { image: image.clone(), path: GuestPath::new("/etc/hostname").ok().context("a path")? };
    fs::write("/run/script", "cat /etc/hostname\n")?;
    for _ in 0..rounds * 10 {
        let data = ours.take(|| client.read_ext4_file(&asked))?;
        ensure!(data.len() == 1000, "{} bytes were read", data.len());
        theirs.take(|| run(&format!("debugfs -f /run/script {THEIRS}")))?;
    }
    compare("read a small file", &ours, &theirs, "debugfs");
    let files = new_files(&big, 1)?;
    let most = worker_at_its_most(&helper, || client.write_ext4_files(Write { image, files }))?;
    println!("\nmemory at its most: helper {} KiB, its worker for 10 MiB {most} KiB", helper.status_kib("VmHWM:")?);
    // Theirs may be broken by now: nothing of it is whole or not at all.
    run(&format!("e2fsck -fn {OURS}")).context("the image is broken")?;
    Ok(())
}

/// The most memory that a worker is seen to have while `act` goes on, in KiB.
fn worker_at_its_most<E: Into<anyhow::Error> + Send>(
    helper: &Helper,
    act: impl FnOnce() -> Result<(), E> + Send,
) -> Result<u64> {
    std::thread::scope(|scope| {
        let acting = scope.spawn(act);
        let mut most = 0;
        while !acting.is_finished() {
            most = most.max(helper.child_kib("VmHWM:"));
        }
        acting.join().map_err(|_| anyhow!("a panic"))?.map_err(Into::into)?;
        Ok(most)
    })
}

fn fill(round: usize) -> u8 {
    b'a' + u8::try_from(round % 26).unwrap_or(0)
}

fn new_files(files: &[(String, usize)], round: usize) -> Result<Vec<NewFile>> {
    let new = |(path, length): &(String, usize)| {
        let path = GuestPath::new(path).ok().context("a path")?;
        Ok(NewFile { path, data: vec![fill(round); *length], mode: 0o644 })
    };
    files.iter().map(new).collect()
}

/// As the existing helper: each file by itself, the old one taken away first, mode and owner set at last.
fn by_programs(files: &[(String, usize)]) -> Result<()> {
    for (nth, (path, _)) in files.iter().enumerate() {
        let _ = crate::world::try_run(&format!("e2rm {THEIRS}:{path}"));
        run(&format!("e2cp /run/files/{nth} {THEIRS}:{path}"))?;
        let set = |field: &str, value: &str| format!("set_inode_field {path} {field} {value}\n");
        let script = [set("mode", "0100644"), set("uid", "0"), set("gid", "0")].concat();
        fs::write("/run/script", script)?;
        run(&format!("debugfs -w -f /run/script {THEIRS}"))?;
    }
    Ok(())
}

fn debugfs(files: &[(String, usize)]) -> Result<()> {
    let mut script = String::from("mkdir /etc\nmkdir /opt\n");
    for (nth, (path, _)) in files.iter().enumerate() {
        script += &format!("rm {path}\nwrite /run/files/{nth} {path}\nset_inode_field {path} mode 0100644\n");
    }
    fs::write("/run/script", script)?;
    run(&format!("debugfs -w -f /run/script {THEIRS}"))
}

fn mount(files: &[(String, usize)]) -> Result<()> {
    run(&format!("mount -o loop {THEIRS} /run/mounted"))?;
    run("mkdir -p /run/mounted/etc /run/mounted/opt")?;
    for (nth, (path, _)) in files.iter().enumerate() {
        run(&format!("cp /run/files/{nth} /run/mounted{path}"))?;
    }
    run("umount /run/mounted")
}
