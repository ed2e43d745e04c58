//! Images, and the worker run on them as the helper runs it: these descriptors, another user, the log applied.
#![allow(dead_code, reason = "each test file uses its part")]

use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::time::{Duration, Instant};
use tempfile::TempDir;
use wire::image::NewFile;
use wire::name::guest_path::GuestPath;
use wire::worker::log::{TRAILER, Trailer};
use wire::worker::reply::{Reply, Why};
use wire::worker::{MAX_READ, ask};

/// A uid that no account has.
const WORKER: &str = "61184";

/// How the worker ended.
#[derive(Debug)]
pub(crate) struct Ended {
    /// What it said, or its exit status and its last words.
    pub(crate) reply: Result<Reply, String>,
    /// What it wrote.
    pub(crate) out: Vec<u8>,
    /// How long it took.
    pub(crate) took: Duration,
}

/// An image in a folder of its own.
pub(crate) struct Image {
    pub(crate) dir: TempDir,
}

pub(crate) fn run(program: &str, args: &[&str]) -> Output {
    Command::new(program).args(args).output().unwrap_or_else(|e| panic!("{program}: {e}"))
}

pub(crate) fn ok(program: &str, args: &[&str]) -> String {
    let out = run(program, args);
    let text = String::from_utf8_lossy(&out.stdout).into_owned();
    assert!(out.status.success(), "{program} {args:?}: {}{text}{}", out.status, String::from_utf8_lossy(&out.stderr));
    text
}

pub(crate) fn file(path: &str, data: &[u8], mode: u16) -> NewFile {
    NewFile { path: GuestPath::new(path).unwrap(), data: data.to_vec(), mode }
}

/// Bytes that are no repetition, the same for the same seed.
pub(crate) fn bytes(length: usize, seed: u64) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    (0..length)
        .map(|_| {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            (state >> 24) as u8
        })
        .collect()
}

impl Image {
    /// An image of `size`, made by `mkfs.ext4` with these options.
    pub(crate) fn new(size: &str, options: &[&str]) -> Image {
        let image = Image { dir: tempfile::tempdir().unwrap() };
        let path = image.text();
        let mut args = vec!["-q", "-F", "-E", "nodiscard"];
        args.extend(options);
        args.extend([path.as_str(), size]);
        ok("mkfs.ext4", &args);
        image
    }

    /// A copy.
    pub(crate) fn copy(&self) -> Image {
        let image = Image { dir: tempfile::tempdir().unwrap() };
        ok("cp", &["--sparse=always", &self.text(), &image.text()]);
        image
    }

    pub(crate) fn path(&self) -> PathBuf {
        self.dir.path().join("image")
    }

    pub(crate) fn text(&self) -> String {
        self.path().to_str().unwrap().to_owned()
    }

    pub(crate) fn bytes(&self) -> Vec<u8> {
        fs::read(self.path()).unwrap()
    }

    /// Changes bytes of the image.
    pub(crate) fn poke(&self, at: u64, bytes: &[u8]) {
        File::options().write(true).open(self.path()).unwrap().write_all_at(bytes, at).unwrap();
    }

    /// Runs commands of debugfs that change the image.
    pub(crate) fn debugfs(&self, commands: &[&str]) {
        let list = self.dir.path().join("commands");
        fs::write(&list, commands.join("\n")).unwrap();
        ok("debugfs", &["-w", "-f", list.to_str().unwrap(), &self.text()]);
    }

    /// What debugfs says.
    pub(crate) fn says(&self, command: &str) -> String {
        ok("debugfs", &["-R", command, &self.text()])
    }

    /// Runs the worker with this request.
    pub(crate) fn worker(&self, request: &[u8]) -> Ended {
        worker(&self.path(), self.dir.path(), request)
    }

    /// A file's bytes, by the worker.
    pub(crate) fn read(&self, path: &str) -> Result<Vec<u8>, (Why, String)> {
        let ended = self.worker(&ask::read(&GuestPath::new(path).unwrap()));
        match ended.reply.unwrap() {
            Reply::Read { size } => {
                assert!(size <= MAX_READ);
                assert_eq!(size, ended.out.len() as u64);
                Ok(ended.out)
            }
            Reply::Refused { why, text } => Err((why, text)),
            other => panic!("{other:?}"),
        }
    }

    /// Writes files, and applies the log. Returns how many changes there were.
    pub(crate) fn write(&self, files: &[NewFile]) -> Result<u32, (Why, String)> {
        let before = self.bytes();
        let ended = self.worker(&request(files));
        assert!(before == self.bytes(), "the worker has changed the image");
        match ended.reply.unwrap() {
            Reply::Written { log, changes, free_blocks: _ } => {
                assert_eq!(log, ended.out.len() as u64);
                assert_eq!(self.apply(&ended.out), changes);
                Ok(changes)
            }
            Reply::Refused { why, text } => Err((why, text)),
            other => panic!("{other:?}"),
        }
    }

    /// Puts a log's changes into the image.
    pub(crate) fn apply(&self, log: &[u8]) -> u32 {
        if log.is_empty() {
            return 0;
        }
        let image = File::options().write(true).open(self.path()).unwrap();
        let length = image.metadata().unwrap().len();
        let (rest, end) = log.split_at(log.len() - TRAILER);
        let trailer = Trailer::decode(end.try_into().unwrap(), log.len() as u64, length).unwrap();
        let changes = trailer.changes(&rest[trailer.index_at() as usize..]).unwrap();
        for change in &changes {
            image.write_all_at(&log[change.at as usize..][..change.length as usize], change.offset).unwrap();
        }
        changes.len() as u32
    }

    /// `e2fsck -fn` finds nothing.
    #[track_caller]
    pub(crate) fn is_clean(&self) {
        let out = run("e2fsck", &["-fn", &self.text()]);
        assert!(
            out.status.success(),
            "e2fsck -fn: {}\n{}{}",
            out.status,
            String::from_utf8_lossy(&out.stdout),
            String::from_utf8_lossy(&out.stderr)
        );
    }

    /// Runs a script of the shell with the image mounted in a namespace of its own; the script's directory is there.
    pub(crate) fn mounted(&self, options: &str, script: &str) -> String {
        let there = self.dir.path().join("mounted");
        fs::create_dir_all(&there).unwrap();
        let script =
            format!("set -e; mount -t ext4 -o loop,{options} \"$1\" \"$2\"; cd \"$2\"; {script}\ncd /; umount \"$2\"");
        ok("unshare", &["-m", "sh", "-c", &script, "sh", &self.text(), there.to_str().unwrap()])
    }

    /// These files' bytes, by one kernel mount.
    pub(crate) fn kernel_reads(&self, paths: &[&str]) -> Vec<Vec<u8>> {
        let copies: Vec<PathBuf> = (0..paths.len()).map(|n| self.dir.path().join(format!("copy{n}"))).collect();
        let copy = |(path, copy): (&&str, &PathBuf)| format!("cp -- '.{path}' '{}'\n", copy.display());
        self.mounted("ro,noload", &paths.iter().zip(&copies).map(copy).collect::<String>());
        copies.iter().map(|copy| fs::read(copy).unwrap()).collect()
    }

    /// A file's bytes, by debugfs.
    pub(crate) fn debugfs_reads(&self, path: &str) -> Vec<u8> {
        let copy = self.dir.path().join("copy");
        let _ = fs::remove_file(&copy);
        self.says(&format!("dump \"{path}\" {}", copy.display()));
        fs::read(copy).unwrap()
    }
}

/// A request to write.
pub(crate) fn request(files: &[NewFile]) -> Vec<u8> {
    let mut bytes = ask::write_head(files);
    files.iter().for_each(|file| bytes.extend(&file.data));
    bytes
}

/// Runs the worker as another user, with its descriptors and no environment. `dir` takes its files.
pub(crate) fn worker(image: &Path, dir: &Path, request: &[u8]) -> Ended {
    let [asked, reply, out] = ["asked", "reply", "out"].map(|name| dir.join(name));
    fs::write(&asked, request).unwrap();
    fs::write(&out, b"").unwrap();
    let setpriv = format!("setpriv --reuid {WORKER} --regid {WORKER} --clear-groups");
    let script = format!("exec {setpriv} \"$1\" 3<\"$2\" 4>\"$3\" 5<\"$4\" 6<>\"$5\"");
    let begun = Instant::now();
    let ended = Command::new("/bin/sh")
        .env_clear()
        .env("PATH", "/usr/bin:/bin")
        .args(["-c", &script, "sh", env!("CARGO_BIN_EXE_banger-image")])
        .args([image, &reply, &asked, &out])
        .output()
        .unwrap();
    let took = begun.elapsed();
    let said = fs::read(&reply).unwrap();
    let reply = match (ended.status.code(), ended.status.signal()) {
        (Some(0), _) => Reply::decode(&said).map_err(|error| error.to_string()),
        (Some(code), _) => Err(format!("status {code}: {}", String::from_utf8_lossy(&ended.stderr))),
        (None, signal) => Err(format!("signal {signal:?}: {}", String::from_utf8_lossy(&ended.stderr))),
    };
    Ended { reply, out: fs::read(&out).unwrap(), took }
}
