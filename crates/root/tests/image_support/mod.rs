//! Images for tests, and other programs that look into them.

#![allow(dead_code, reason = "each test file uses a part")]

pub(crate) mod trace;
pub(crate) mod write;

use super::common::*;
use serde_json::{Value, json};
use std::path::{Path, PathBuf};
use std::process::Command;

/// The image that most tests work on, below the state directory.
pub(crate) const IMAGE: &str = "/mnt/s/images/a.ext4";
/// Where the worker's program is, as far as the helper knows.
pub(crate) const BIN: &str = "/mnt/bin";
/// Root's own directory, where logs of writes lie.
pub(crate) const LOGS: &str = "/var/lib/banger-root";

/// The worker that ships, which `scripts/test` names; else the one that was built beside the helper.
fn built() -> PathBuf {
    let beside = || Path::new(env!("CARGO_BIN_EXE_bangerd-root")).with_file_name("banger-image");
    let path = shipped().unwrap_or_else(beside);
    assert!(path.exists(), "{} is missing: cargo build -p image", path.display());
    path
}

/// What `scripts/build` made: it is static, the other is not.
pub(crate) fn shipped() -> Option<PathBuf> {
    std::env::var_os("BANGER_TEST_IMAGE").map(PathBuf::from)
}

/// Puts the worker's program where the configuration says that programs are.
pub(crate) fn install() {
    install_as_worker(&built());
}

/// Puts another program in its place.
pub(crate) fn install_as_worker(program: &Path) {
    make_dir(BIN, 0, 0o755);
    let bytes = std::fs::read(program).expect("the program");
    make_file(&format!("{BIN}/banger-image"), &bytes, 0, 0o755);
}

/// A configuration that finds the worker there, and more lines.
pub(crate) fn config(more: &str) -> String {
    format!("program_dirs = [\"{BIN}\"]\n{more}\n")
}

/// A helper that has its worker.
pub(crate) fn helper() -> Helper {
    helper_with("")
}

/// The same with more lines in its configuration.
pub(crate) fn helper_with(more: &str) -> Helper {
    Start::new().config(&config(more)).start()
}

/// Makes an image of the owner's, of so many MiB, with `/etc/hostname` and `/etc/motd` in it.
pub(crate) fn make_image(path: &str, mib: u64, options: &[&str]) {
    let tree = "/mnt/tree";
    make_dir(&format!("{tree}/etc"), 0, 0o755);
    make_file(&format!("{tree}/etc/hostname"), b"guest\n", 0, 0o644);
    make_file(&format!("{tree}/etc/motd"), &b"as it was\n".repeat(1000), 0, 0o644);
    let mut command = Command::new("mkfs.ext4");
    command.args(["-q", "-F", "-d", tree]).args(options).args([path, &format!("{mib}M")]);
    let output = command.output().expect("mkfs.ext4, of e2fsprogs");
    assert!(output.status.success(), "mkfs.ext4 {options:?}: {}", String::from_utf8_lossy(&output.stderr));
    std::os::unix::fs::chown(path, Some(OWNER), Some(OWNER)).expect("the owner's");
}

/// `e2fsck -fn` finds nothing, and no journal waits for a replay, which it would pass over.
pub(crate) fn is_clean(path: &str) -> Result<(), String> {
    let output = Command::new("e2fsck").args(["-fn", path]).output().expect("e2fsck");
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    if !output.status.success() || said.contains("skipping journal recovery") {
        return Err(format!("e2fsck -fn {path}: {}: {said}", output.status));
    }
    Ok(())
}

/// The same, or the test fails.
pub(crate) fn assert_clean(path: &str) {
    is_clean(path).unwrap_or_else(|said| panic!("{said}"));
}

/// A file inside an image, as debugfs reads it. `None` where there is none.
pub(crate) fn inside(image: &str, path: &str) -> Option<Vec<u8>> {
    let output = Command::new("debugfs").args(["-R", &format!("cat {path}"), image]).output().expect("debugfs");
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    (!said.contains("File not found")).then_some(output.stdout)
}

/// What debugfs's `stat` says of it.
pub(crate) fn stat_inside(image: &str, path: &str) -> String {
    output("debugfs", &["-R", &format!("stat {path}"), image])
}

/// Parameters of a write: paths, contents, modes.
pub(crate) fn write_params(image: &str, files: &[(&str, &[u8], u32)]) -> Value {
    let files: Vec<Value> = files
        .iter()
        .map(|(path, data, mode)| json!({"guest_path": path, "data": base64(data), "mode": mode}))
        .collect();
    json!({"image_path": image, "files": files})
}

/// Writes files through the helper; it must succeed.
pub(crate) fn write(helper: &Helper, image: &str, files: &[(&str, &[u8], u32)]) {
    let request = json!({"method": "priv.write_ext4_files", "params": write_params(image, files)});
    let reply = helper.call(&request.to_string());
    assert_eq!(reply["ok"], true, "{reply}\n{}", log_text());
}

/// Reads a file through the helper; it must succeed.
pub(crate) fn read(helper: &Helper, image: &str, path: &str) -> Vec<u8> {
    let result = helper.ok("priv.read_ext4_file", &json!({"image_path": image, "guest_path": path}));
    from_base64(result["data"].as_str().expect("data"))
}

/// Code and message of a read that fails.
pub(crate) fn read_error(helper: &Helper, image: &str, path: &str) -> (String, String) {
    helper.err("priv.read_ext4_file", &json!({"image_path": image, "guest_path": path}))
}

const ALPHABET: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";

/// Base64 by hand: not by the code that is tested.
pub(crate) fn base64(bytes: &[u8]) -> String {
    let mut text = String::new();
    for chunk in bytes.chunks(3) {
        let number = chunk.iter().fold(0u32, |n, &byte| n << 8 | u32::from(byte)) << (8 * (3 - chunk.len()));
        for place in 0..4 {
            let digit = (number >> (18 - 6 * place)) as usize & 63;
            text.push(if place > chunk.len() { '=' } else { char::from(ALPHABET[digit]) });
        }
    }
    text
}

/// And back.
pub(crate) fn from_base64(text: &str) -> Vec<u8> {
    let mut bytes = Vec::new();
    for chunk in text.as_bytes().chunks(4) {
        let digit = |c: &u8| ALPHABET.iter().position(|a| a == c).unwrap_or(0) as u32;
        let number = chunk.iter().fold(0u32, |n, c| n << 6 | digit(c));
        let have = 3 - chunk.iter().filter(|&&c| c == b'=').count();
        bytes.extend(&number.to_be_bytes()[1..1 + have]);
    }
    bytes
}

/// The names of the logs that there are.
pub(crate) fn logs() -> Vec<String> {
    let entries = std::fs::read_dir(LOGS).expect("root's own");
    entries.map(|entry| entry.expect("an entry").file_name().into_string().expect("text")).collect()
}
