//! `banger try` as root on a machine where nothing is installed, with an image that its cache has already.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test may panic")]

use std::collections::BTreeSet;
use std::fs;
use std::io::Write as _;
use std::os::unix::fs::{PermissionsExt as _, chown};
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

/// Who owns the VMs where root tries.
const NOBODYS: u32 = 59_999;

fn variable(name: &str) -> PathBuf {
    std::env::var_os(name).unwrap_or_else(|| panic!("{name} names a file for this test")).into()
}

fn said(program: &str, arguments: &[&str]) -> String {
    let out = Command::new(program).args(arguments).output().unwrap();
    assert!(out.status.success(), "{program} {arguments:?}: {}", String::from_utf8_lossy(&out.stderr));
    String::from_utf8_lossy(&out.stdout).into_owned()
}

/// The image's name for a VM that names none.
fn default_name() -> String {
    let text = fs::read_to_string("/etc/os-release").unwrap();
    let number = text.lines().find_map(|line| line.strip_prefix("VERSION_ID=")).unwrap();
    format!("debian-{}", number.trim_matches('"'))
}

/// Copies the programs to where anybody reaches them: a clone in a home directory is its owner's alone.
fn programs(to: &Path) {
    fs::create_dir(to).unwrap();
    let built = Path::new(env!("CARGO_BIN_EXE_banger"));
    for program in ["banger", "bangerd", "banger-image"] {
        fs::copy(built.with_file_name(program), to.join(program)).unwrap();
    }
}

/// A daemon without a helper, as the one that `try` starts; its process, its socket, where its programs are.
struct Daemon(Child, PathBuf, PathBuf);

impl Daemon {
    fn start(bin: &Path, state: &Path, runtime: &Path) -> Daemon {
        let socket = runtime.join("bangerd.sock");
        let mut command = Command::new(bin.join("bangerd"));
        command.arg("--state-dir").arg(state).arg("--runtime-dir").arg(runtime).args(["--names", "127.0.0.1:0"]);
        let child = command.uid(NOBODYS).gid(NOBODYS).stderr(Stdio::null()).spawn().unwrap();
        let daemon = Daemon(child, socket, bin.to_owned());
        let end = Instant::now() + Duration::from_secs(10);
        while std::os::unix::net::UnixStream::connect(&daemon.1).is_err() {
            assert!(Instant::now() < end, "bangerd does not listen");
            std::thread::sleep(Duration::from_millis(5));
        }
        daemon
    }

    fn ask(&self, arguments: &[&str]) {
        let mut command = Command::new(self.2.join("banger"));
        command.uid(NOBODYS).gid(NOBODYS).env("BANGER_SOCKET", &self.1).args(arguments);
        let out = command.output().unwrap();
        assert!(out.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&out.stderr));
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Links, mounts, processes of banger's, control groups: by programs.
fn machine() -> BTreeSet<String> {
    let mut all = BTreeSet::new();
    let links: serde_json::Value = serde_json::from_str(&said("ip", &["-j", "link"])).unwrap();
    all.extend(links.as_array().unwrap().iter().map(|link| format!("link {}", link["ifname"])));
    all.extend(said("findmnt", &["-rno", "TARGET"]).lines().map(|line| format!("mount {line}")));
    let processes = said("ps", &["-eo", "args"]);
    all.extend(processes.lines().filter(|line| line.contains("/run/banger-try/")).map(str::to_owned));
    all
}

#[test]
fn a_command_in_a_vm_and_nothing_is_left() {
    let cache = tempfile::Builder::new().prefix("banger-try-").tempdir_in("/var/tmp").unwrap();
    fs::set_permissions(cache.path(), fs::Permissions::from_mode(0o755)).unwrap();
    let at = |name: &str| cache.path().join(name);
    for dir in ["try", "run", "files"] {
        fs::create_dir(at(dir)).unwrap();
        chown(at(dir), Some(NOBODYS), Some(NOBODYS)).unwrap();
    }
    let (tree, archive) = (at("tree"), at("files/root.tar"));
    fs::create_dir(&tree).unwrap();
    let (tree_text, root) = (tree.to_str().unwrap(), variable("BANGER_TEST_ROOT"));
    said("debugfs", &["-R", &format!("rdump / {tree_text}"), root.to_str().unwrap()]);
    said("tar", &["-C", tree_text, "--numeric-owner", "-cf", archive.to_str().unwrap(), "."]);
    fs::remove_dir_all(&tree).unwrap();
    for (from, name) in [("BANGER_TEST_KERNEL", "files/vmlinux"), ("BANGER_TEST_INITRD", "files/initrd")] {
        fs::copy(variable(from), at(name)).unwrap();
    }
    {
        let text = |name: &str| at(name).to_str().unwrap().to_owned();
        programs(&at("bin"));
        let daemon = Daemon::start(&at("bin"), &at("try"), &at("run"));
        daemon.ask(&["kernel", "import", &text("files/vmlinux"), "--initrd", &text("files/initrd"), "--name", "k"]);
        daemon.ask(&["image", "import", &text("files/root.tar"), "--size", "1G", "--name", &default_name()]);
    }
    let before = machine();
    let out = run(cache.path(), &["--memory", "256M", "--", "sh", "-c", "cat; id -u; exit 7"], b"hi\n");
    let words = String::from_utf8_lossy(&out.stderr).into_owned();
    assert_eq!((out.status.code(), &out.stdout[..]), (Some(7), &b"hi\n0\n"[..]), "{words}");
    let last = words.lines().last().unwrap_or_default();
    assert!(last.starts_with("left on this machine: cache ") && last.ends_with(", nothing else"), "{words}");
    assert_eq!(machine(), before);
    // With nothing but a command, which is what people write.
    let out = run(cache.path(), &["--", "true"], b"");
    let words = String::from_utf8_lossy(&out.stderr).into_owned();
    assert_eq!(out.status.code(), Some(0), "{words}");
    // Its own failures have a status of their own, and leave as little.
    let out = run(cache.path(), &["--image", "nosuch", "--", "true"], b"");
    let words = String::from_utf8_lossy(&out.stderr).into_owned();
    assert_eq!(out.status.code(), Some(125), "{words}");
    assert!(words.contains("error[no_such_image]"), "{words}");
    // Every command's flags reach the one inside.
    let out = run_with(&["--json", "--progress=json"], cache.path(), &["--image", "nosuch", "--", "true"], b"");
    let told = String::from_utf8_lossy(&out.stderr).into_owned();
    let lines: Vec<serde_json::Value> = told.lines().filter_map(|line| serde_json::from_str(line).ok()).collect();
    assert!(lines.iter().any(|line| line["stage"] == "plan") && !told.contains("error["), "{told}");
    let error = lines.last().map(|line| (&line["error"]["code"], &line["error"]["exit"]));
    assert_eq!(error, Some((&"no_such_image".into(), &125.into())), "{told}");
    assert_eq!(out.status.code(), Some(125));
    assert_eq!(machine(), before);
}

fn run(cache: &Path, arguments: &[&str], input: &[u8]) -> Output {
    run_with(&[], cache, arguments, input)
}

fn run_with(early: &[&str], cache: &Path, arguments: &[&str], input: &[u8]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_banger"));
    command.env_remove("SUDO_UID").args(early).arg("try").arg("--cache").arg(cache).args(arguments);
    let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    child.stdin.take().unwrap().write_all(input).unwrap();
    child.wait_with_output().unwrap()
}
