//! What the tests share: a `banger-qemu` of their own, a plain HTTP client, and a kernel of 47 bytes.
#![allow(dead_code)] // Each test file uses a part.

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

/// How long anything may take on a busy machine.
pub(crate) const PATIENCE: Duration = Duration::from_secs(30);

/// A running `banger-qemu`, killed at the end, QEMU with it.
pub(crate) struct Vmm {
    pub(crate) dir: tempfile::TempDir,
    pub(crate) child: Child,
}

impl Vmm {
    /// Starts it with an API socket and more arguments, and waits for the socket.
    pub(crate) fn start(more: &[&str]) -> Self {
        Self::start_in(tempfile::tempdir().expect("a directory"), more)
    }

    /// The same in a directory that is there.
    pub(crate) fn start_in(dir: tempfile::TempDir, more: &[&str]) -> Self {
        let mut command = program();
        command.arg("--api-sock").arg(dir.path().join("api")).args(more);
        let child = command.spawn().expect("started");
        let vmm = Self { dir, child };
        let end = Instant::now() + PATIENCE;
        while UnixStream::connect(vmm.api()).is_err() {
            assert!(Instant::now() < end, "no API socket");
            std::thread::sleep(Duration::from_millis(5));
        }
        vmm
    }

    pub(crate) fn api(&self) -> PathBuf {
        self.dir.path().join("api")
    }

    /// One request on a connection of its own: the status and the body.
    pub(crate) fn ask(&self, method: &str, path: &str, body: &str) -> (u16, String) {
        let request =
            format!("{method} {path} HTTP/1.1\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{body}", body.len());
        self.raw(request.as_bytes())
    }

    /// Bytes as they are.
    pub(crate) fn raw(&self, bytes: &[u8]) -> (u16, String) {
        let mut socket = UnixStream::connect(self.api()).expect("connected");
        socket.set_read_timeout(Some(PATIENCE)).expect("a limit");
        // The server may refuse before it has read all.
        let _ = socket.write_all(bytes);
        let mut answer = Vec::new();
        socket.read_to_end(&mut answer).expect("an answer");
        let answer = String::from_utf8(answer).expect("text");
        let status = answer.split(' ').nth(1).and_then(|text| text.parse().ok()).expect("a status");
        let body = answer.split_once("\r\n\r\n").map_or("", |(_, body)| body);
        (status, body.to_owned())
    }

    /// A request that must succeed without an answer.
    pub(crate) fn done(&self, method: &str, path: &str, body: &str) {
        assert_eq!(self.ask(method, path, body), (204, String::new()), "{method} {path} {body}");
    }

    /// A request that must be refused; gives the message.
    pub(crate) fn refused(&self, method: &str, path: &str, body: &str) -> String {
        let (status, answer) = self.ask(method, path, body);
        assert_eq!(status, 400, "{method} {path} {body}: {answer}");
        let answer: serde_json::Value = serde_json::from_str(&answer).expect("JSON");
        answer["fault_message"].as_str().expect("a message").to_owned()
    }

    /// A description.
    pub(crate) fn get(&self, path: &str) -> serde_json::Value {
        let (status, answer) = self.ask("GET", path, "");
        assert_eq!(status, 200, "{answer}");
        serde_json::from_str(&answer).expect("JSON")
    }

    /// The process of QEMU: the one whose parent is this `banger-qemu`.
    pub(crate) fn qemu(&self) -> Option<i32> {
        children(self.child.id()).first().copied()
    }

    /// Sends a signal with `kill`.
    pub(crate) fn signal(&self, signal: &str) {
        kill(signal, i32::try_from(self.child.id()).expect("a number"));
    }

    /// Waits for the end.
    pub(crate) fn ended(&mut self) -> ExitStatus {
        wait_for(&mut self.child)
    }

    pub(crate) fn stdin(&mut self) -> ChildStdin {
        self.child.stdin.take().expect("a pipe")
    }

    /// Reads the console until a line holds `word`.
    pub(crate) fn wait_for_word(&mut self, word: &str) -> String {
        let out = self.child.stdout.as_mut().expect("a pipe");
        let mut out = BufReader::with_capacity(1, out);
        loop {
            let mut line = Vec::new();
            let got = out.read_until(b'\n', &mut line).expect("the console");
            assert!(got > 0, "the console ended before {word:?}");
            let line = String::from_utf8_lossy(&line).into_owned();
            if line.contains(word) {
                return line;
            }
        }
    }
}

impl Drop for Vmm {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// One request on a connection that goes on: the status and the body.
pub(crate) fn exchange(socket: &mut UnixStream, method: &str, path: &str, body: &str) -> (u16, String) {
    socket.set_read_timeout(Some(PATIENCE)).expect("a limit");
    let request = format!("{method} {path} HTTP/1.1\r\nContent-Length: {}\r\n\r\n{body}", body.len());
    socket.write_all(request.as_bytes()).expect("written");
    let mut reader = BufReader::new(socket);
    let mut head = String::new();
    while !head.ends_with("\r\n\r\n") {
        assert!(reader.read_line(&mut head).expect("an answer") > 0, "{head}");
    }
    let status = head.split(' ').nth(1).and_then(|text| text.parse().ok()).expect("a status");
    let length = head
        .lines()
        .find_map(|line| line.strip_prefix("Content-Length: "))
        .map_or(0, |text| text.parse().expect("a number"));
    let mut body = vec![0; length];
    reader.read_exact(&mut body).expect("a body");
    (status, String::from_utf8(body).expect("text"))
}

/// The program, with pipes and without a level that fills the tests' output.
pub(crate) fn program() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_banger-qemu"));
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

pub(crate) fn wait_for(child: &mut Child) -> ExitStatus {
    let end = Instant::now() + PATIENCE;
    loop {
        if let Some(status) = child.try_wait().expect("a status") {
            return status;
        }
        assert!(Instant::now() < end, "it does not end");
        std::thread::sleep(Duration::from_millis(5));
    }
}

pub(crate) fn kill(signal: &str, pid: i32) {
    let status = Command::new("/bin/kill").args(["-s", signal, "--", &pid.to_string()]).status().expect("kill");
    assert!(status.success());
}

/// The children of a process, by /proc.
pub(crate) fn children(parent: u32) -> Vec<i32> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir("/proc").expect("/proc").flatten() {
        let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse::<i32>().ok()) else { continue };
        let status = std::fs::read_to_string(entry.path().join("status")).unwrap_or_default();
        if status.lines().any(|line| line.strip_prefix("PPid:").map(str::trim) == Some(&parent.to_string())) {
            found.push(pid);
        }
    }
    found
}

/// Whether a process is there and no zombie.
pub(crate) fn lives(pid: i32) -> bool {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    status.lines().any(|line| line.starts_with("State:") && !line.contains('Z'))
}

pub(crate) fn wait_until_gone(pid: i32) {
    let end = Instant::now() + PATIENCE;
    while lives(pid) {
        assert!(Instant::now() < end, "process {pid} is still there");
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// Prints what is at 0x100100, then echoes the serial port until an `r`, upon which the keyboard controller resets.
/// ```text
///       mov $0x100100,%esi
/// next: lodsb; test %al,%al; jz poll; mov $0x3f8,%dx; out %al,%dx; jmp next
/// poll: pause; mov $0x3fd,%dx; in %dx,%al; test $1,%al; jz poll
///       mov $0x3f8,%dx; in %dx,%al; cmp $'r',%al; je end; out %al,%dx; jmp poll
/// end:  mov $0xfe,%al; out %al,$0x64
/// halt: hlt; jmp halt
/// ```
const CODE: [u8; 47] = [
    0xbe, 0x00, 0x01, 0x10, 0x00, 0xac, 0x84, 0xc0, 0x74, 0x07, 0x66, 0xba, 0xf8, 0x03, 0xee, 0xeb, 0xf4, 0xf3, 0x90,
    0x66, 0xba, 0xfd, 0x03, 0xec, 0xa8, 0x01, 0x74, 0xf5, 0x66, 0xba, 0xf8, 0x03, 0xec, 0x3c, 0x72, 0x74, 0x03, 0xee,
    0xeb, 0xe9, 0xb0, 0xfe, 0xe6, 0x64, 0xf4, 0xeb, 0xfd,
];
const LOADED_AT: u64 = 0x10_0000;

/// Writes a kernel that a PVH boot loader takes, with the words that it is to print.
pub(crate) fn tiny_kernel(dir: &Path, words: &str) -> PathBuf {
    let mut image = CODE.to_vec();
    image.resize(0x100, 0);
    image.extend_from_slice(words.as_bytes());
    image.push(0);
    // The note XEN_ELFNOTE_PHYS32_ENTRY (18): where a 32-bit CPU begins.
    let mut note = Vec::new();
    for word in [4u32, 8, 18] {
        note.extend_from_slice(&word.to_le_bytes());
    }
    note.extend_from_slice(b"Xen\0");
    note.extend_from_slice(&LOADED_AT.to_le_bytes());
    let (note_at, image_at) = (0x200u64, 0x1000u64);
    let mut file = b"\x7fELF\x02\x01\x01".to_vec();
    file.resize(16, 0);
    for half in [2u16, 62] {
        file.extend_from_slice(&half.to_le_bytes());
    }
    file.extend_from_slice(&1u32.to_le_bytes());
    for long in [LOADED_AT, 64, 0] {
        file.extend_from_slice(&long.to_le_bytes());
    }
    file.extend_from_slice(&0u32.to_le_bytes());
    for half in [64u16, 56, 2, 64, 0, 0] {
        file.extend_from_slice(&half.to_le_bytes());
    }
    let image_len = image.len() as u64;
    let note_len = note.len() as u64;
    for (kind, flags, rest) in [
        (1u32, 7u32, [image_at, LOADED_AT, LOADED_AT, image_len, image_len, 0x1000]),
        (4, 4, [note_at, 0, 0, note_len, note_len, 4]),
    ] {
        file.extend_from_slice(&kind.to_le_bytes());
        file.extend_from_slice(&flags.to_le_bytes());
        for long in rest {
            file.extend_from_slice(&long.to_le_bytes());
        }
    }
    file.resize(usize::try_from(note_at).expect("small"), 0);
    file.extend_from_slice(&note);
    file.resize(usize::try_from(image_at).expect("small"), 0);
    file.extend_from_slice(&image);
    let path = dir.join("kernel");
    std::fs::write(&path, file).expect("written");
    path
}
