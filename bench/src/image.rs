//! Files inside images against what the existing helper runs for each (`e2rm`, `e2cp`, `debugfs` for mode and owner), one
//! `debugfs`, a loop mount. Once with images and logs on the disk that this program was built on, once in memory.
//!
//! Their times are those of the programs alone, without the request's way to a helper that runs them; ours has all of it.
//! None of the programs sees to it that a write is whole. They do flush the image: `e2rm` three times, `e2cp` five times,
//! `debugfs` once (e2fsprogs 1.47), so nine times for each file; the helper four times for all.

use crate::stats::{Times, compare, head};
use crate::world::{Helper, OWNER, SOCKET, beside, run};
use anyhow::{Context, Result, ensure};
use std::fs;
use std::os::unix::fs::chown;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use wire::client::Client;
use wire::code::Code;
use wire::image::{Image, NewFile, Read, Write};
use wire::name::guest_path::GuestPath;
use wire::path::Roots;

const OURS: &str = "/var/lib/banger/ours.ext4";
const THEIRS: &str = "/var/lib/banger/theirs.ext4";

/// On a disk, then in memory.
pub(crate) fn measure(rounds: usize) -> Result<()> {
    let disk = beside("bangerd-root")?.with_file_name("bench-disk");
    fs::create_dir_all(&disk)?;
    let measured = at(&disk, "on a disk", rounds);
    fs::remove_dir_all(disk)?;
    measured?;
    let memory = PathBuf::from("/run/bench-memory");
    at(&memory, "in memory", rounds)?;
    fs::remove_dir_all(memory).context("what is left in memory")
}

/// With the owner's images and root's logs below one directory.
fn at(dir: &Path, title: &str, rounds: usize) -> Result<()> {
    for (below, at, owner) in [("state", "/var/lib/banger", OWNER), ("logs", "/var/lib/banger-root", 0)] {
        let dir = dir.join(below);
        fs::create_dir_all(&dir)?;
        fs::create_dir_all(at)?;
        chown(&dir, Some(owner), Some(owner))?;
        run(&format!("mount --bind {} {at}", dir.display()))?;
    }
    run("chmod 0700 /var/lib/banger-root")?;
    let measured = in_images(title, rounds);
    for at in ["/var/lib/banger-root", "/var/lib/banger"] {
        run(&format!("umount {at}"))?;
    }
    measured
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
    let by_three: fn(&[(String, usize)]) -> Result<()> = by_programs;
    let rows = [
        ("write one small file", &small, "e2rm, e2cp, debugfs -w", by_three),
        ("write ten small files", &ten(), "10 e2rm, 10 e2cp, 10 debugfs -w", by_three),
        ("write ten small files", &ten(), "one debugfs -w", debugfs),
        ("write ten small files", &ten(), "mount -o loop, 10 cp, umount", mount),
        ("write 10 MiB", &big, "e2rm, e2cp, debugfs -w", by_three),
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
    let asked = Read { image, path: GuestPath::new("/etc/hostname").ok().context("a path")? };
    fs::write("/run/script", "cat /etc/hostname\n")?;
    for _ in 0..rounds * 10 {
        let data = ours.take(|| client.read_ext4_file(&asked))?;
        ensure!(data.len() == 1000, "{} bytes were read", data.len());
        theirs.take(|| run(&format!("debugfs -f /run/script {THEIRS}")))?;
    }
    compare("read a small file", &ours, &theirs, "debugfs");
    println!("\nthe helper's memory, at its most: {} KiB (its worker's is not in it)", helper.status_kib("VmHWM:")?);
    // Theirs may be broken by now: nothing of it is whole or not at all.
    run(&format!("e2fsck -fn {OURS}")).context("the image is broken")?;
    Ok(())
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
