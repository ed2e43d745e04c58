//! Images, and the worker run on them as the helper runs it: these descriptors, another user, the log applied.
#![allow(dead_code, reason = "each test file uses its part")]

use rustix::net::{
    AddressFamily, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage, SendFlags, SocketFlags, SocketType, recv,
    sendmsg, socketpair,
};
use std::fs::{self, File};
use std::io::IoSlice;
use std::mem::MaybeUninit;
use std::os::fd::AsFd;
use std::os::unix::fs::FileExt;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};
use tempfile::TempDir;
use wire::image::NewFile;
use wire::name::guest_path::GuestPath;
use wire::worker::log::{Change, From, TRAILER, Trailer};
use wire::worker::reply::{Reply, Why};
use wire::worker::{JOB, MAX_READ, PASSED, ask};

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
                self.fresh_ones_are_free(&self.proposed(&ended.out, files));
                assert_eq!(self.apply(&ended.out, files), changes);
                Ok(changes)
            }
            Reply::Refused { why, text } => Err((why, text)),
            other => panic!("{other:?}"),
        }
    }

    /// What a log proposes.
    pub(crate) fn proposed(&self, log: &[u8], files: &[NewFile]) -> Vec<Change> {
        if log.is_empty() {
            return Vec::new();
        }
        let length = self.path().metadata().unwrap().len();
        let (rest, end) = log.split_at(log.len() - TRAILER);
        let trailer = Trailer::decode(end.try_into().unwrap(), log.len() as u64, length).unwrap();
        let lengths: Vec<u64> = files.iter().map(|file| file.data.len() as u64).collect();
        trailer.changes(&rest[trailer.index_at() as usize..], &lengths).unwrap()
    }

    /// Puts a log's changes into the image.
    pub(crate) fn apply(&self, log: &[u8], files: &[NewFile]) -> u32 {
        let image = File::options().write(true).open(self.path()).unwrap();
        let changes = self.proposed(log, files);
        for Change { offset, length, from } in &changes {
            let bytes = match *from {
                From::Log { at } => log[at as usize..][..*length as usize].to_vec(),
                From::File { nth, at, .. } => {
                    let mut bytes = files[nth as usize].data[at as usize..].to_vec();
                    bytes.resize(*length as usize, 0);
                    bytes
                }
            };
            image.write_all_at(&bytes, *offset).unwrap();
        }
        changes.len() as u32
    }

    /// What is put into the image before the write is made is free in it, as another program sees it.
    pub(crate) fn fresh_ones_are_free(&self, changes: &[Change]) {
        let fresh: Vec<&Change> =
            changes.iter().filter(|change| matches!(change.from, From::File { fresh: true, .. })).collect();
        if fresh.is_empty() {
            return;
        }
        let text = ok("dumpe2fs", &[&self.text()]);
        let number = |text: &str| text.trim().parse::<u64>().unwrap_or_else(|_| panic!("{text:?} is no number"));
        let of = |key: &str| text.lines().find_map(|line| line.strip_prefix(key)).map(number);
        let size = of("Block size:").unwrap();
        // Ranges end with a cluster's first block.
        let cluster = of("Cluster size:").unwrap_or(size) / size;
        let groups = text.lines().filter_map(|line| line.strip_prefix("  Free blocks: "));
        let free: Vec<(u64, u64)> = groups
            .flat_map(|ranges| ranges.split(", ").filter(|range| !range.is_empty()))
            .map(|range| range.split_once('-').unwrap_or((range, range)))
            .map(|(first, last)| (number(first), number(last)))
            .collect();
        for change in fresh {
            let blocks = change.offset / size..(change.offset + change.length).div_ceil(size);
            for block in blocks {
                let is_free = free.iter().any(|(first, last)| (*first..last + cluster).contains(&block));
                assert!(is_free, "block {block} is used, and would be written before the commit");
            }
        }
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
    ask::write(files)
}

/// Runs the worker as another user, with its socket and no environment, and gives it a job. `dir` takes its files.
pub(crate) fn worker(image: &Path, dir: &Path, request: &[u8]) -> Ended {
    let script = format!("exec setpriv --reuid {WORKER} --regid {WORKER} --clear-groups \"$1\" 3<&0 </dev/null");
    let mut command = Command::new("/bin/sh");
    command.env_clear().env("PATH", "/usr/bin:/bin").args(["-c", &script, "sh", env!("CARGO_BIN_EXE_banger-image")]);
    run_worker(command, image, dir, request)
}

/// Runs a command that executes the worker with its standard input as the socket.
pub(crate) fn run_worker(mut command: Command, image: &Path, dir: &Path, request: &[u8]) -> Ended {
    let [asked, out] = ["asked", "out"].map(|name| dir.join(name));
    fs::write(&asked, request).unwrap();
    fs::write(&out, b"").unwrap();
    let (socket, theirs) = socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None).unwrap();
    let begun = Instant::now();
    let child = command.stdin(theirs).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    // Its end of the socket is its own alone from here on.
    drop(command);
    let given = [
        File::open(image).unwrap(),
        File::open(&asked).unwrap(),
        File::options().read(true).write(true).open(&out).unwrap(),
    ];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(PASSED))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    let passed = given.each_ref().map(AsFd::as_fd);
    control.push(SendAncillaryMessage::ScmRights(&passed));
    // One that has ended already says why by its status.
    let _ = sendmsg(&socket, &[IoSlice::new(&[JOB])], &mut control, SendFlags::NOSIGNAL);
    let ended = child.wait_with_output().unwrap();
    let took = begun.elapsed();
    let mut said = [0; 4096];
    let length = recv(&socket, &mut said, RecvFlags::DONTWAIT).map_or(0, |(length, _)| length);
    let reply = match (ended.status.code(), ended.status.signal()) {
        (Some(0), _) => Reply::decode(&said[..length]).map_err(|error| error.to_string()),
        (Some(code), _) => Err(format!("status {code}: {}", String::from_utf8_lossy(&ended.stderr))),
        (None, signal) => Err(format!("signal {signal:?}: {}", String::from_utf8_lossy(&ended.stderr))),
    };
    Ended { reply, out: fs::read(&out).unwrap(), took }
}
