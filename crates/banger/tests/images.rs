//! Images and kernels made of Debian's packages by an ordinary user, through `banger` and `bangerd`, without the root helper.
//!
//! The packages come from the machine's own mirror.
#![allow(clippy::unwrap_used, reason = "a test")]

use serde_json::Value;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// Makes of root an ordinary user with subordinate ones, for this process's children: `$1` is a folder for the `/etc` that
/// they see, the rest the command. Neither the machine's accounts nor its files change.
const AS_A_USER: &str = r#"
set -e
mount -t tmpfs -o mode=0755 banger-test "$1"
cp -a --one-file-system /etc/. "$1"
echo 'banger-test:x:59998:59998::/nonexistent:/bin/sh' >>"$1/passwd"
echo 'banger-test:x:59998:' >>"$1/group"
echo 'banger-test:600000:65536' | tee "$1/subuid" >"$1/subgid"
mount --bind "$1" /etc
shift
exec setpriv --reuid 59998 --regid 59998 --clear-groups -- "$@"
"#;

/// This very test as an ordinary user, where it is root's.
fn as_a_user(test: &str, body: impl FnOnce(Place)) {
    if !rustix::process::geteuid().is_root() {
        let programs = std::env::current_exe().unwrap().parent().unwrap().to_owned();
        return body(Place::make(&programs));
    }
    let (etc, programs) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    // Where the user may execute them, whatever closes the folder of the build.
    Command::new("chmod").arg("0755").arg(programs.path()).status().unwrap();
    let exe = programs.path().join("test");
    std::fs::copy(std::env::current_exe().unwrap(), &exe).unwrap();
    for (from, name) in [(env!("CARGO_BIN_EXE_banger"), "banger"), (env!("CARGO_BIN_EXE_bangerd"), "bangerd")] {
        std::fs::copy(from, programs.path().join(name)).unwrap();
    }
    let mut command = Command::new("unshare");
    command.args(["--mount", "--propagation", "private", "--", "sh", "-c", AS_A_USER, "sh"]).arg(etc.path()).arg(&exe);
    let out = command.args(["--exact", test, "--nocapture"]).output().unwrap();
    let text = format!("{}{}", String::from_utf8_lossy(&out.stdout), String::from_utf8_lossy(&out.stderr));
    assert!(out.status.success() && text.contains("1 passed"), "as an ordinary user:\n{text}");
}

/// A daemon with places of its own.
struct Place {
    programs: PathBuf,
    state: tempfile::TempDir,
    daemon: Child,
}

impl Place {
    fn make(programs: &Path) -> Place {
        let state = tempfile::tempdir_in("/var/tmp").unwrap();
        let daemon = daemon(programs, state.path());
        Place { programs: programs.to_owned(), state, daemon }
    }

    fn restart(&mut self) {
        self.daemon.kill().unwrap();
        self.daemon.wait().unwrap();
        self.daemon = daemon(&self.programs, self.state.path());
    }

    fn banger(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(self.programs.join("banger"));
        command.args(arguments).env("BANGER_SOCKET", self.state.path().join("bangerd.sock")).stdin(Stdio::null());
        command
    }

    fn json(&self, arguments: &[&str]) -> Value {
        let out = self.banger(arguments).output().unwrap();
        assert!(out.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&out.stderr));
        serde_json::from_slice(&out.stdout).unwrap()
    }

    /// The folder that an image or a kernel has by its digest.
    fn folder(&self, kind: &str, shown: &Value) -> PathBuf {
        let digest = shown["digest"].as_str().unwrap().strip_prefix("sha256:").unwrap();
        self.state.path().join(kind).join(digest)
    }

    fn making(&self) -> usize {
        std::fs::read_dir(self.state.path().join("making")).unwrap().count()
    }
}

fn daemon(programs: &Path, state: &Path) -> Child {
    let mut command = Command::new(programs.join("bangerd"));
    command.arg("--state-dir").arg(state).arg("--runtime-dir").arg(state);
    let daemon = command.args(["--helper-socket", "/nonexistent"]).stderr(Stdio::null()).spawn().unwrap();
    let begun = Instant::now();
    while std::os::unix::net::UnixStream::connect(state.join("bangerd.sock")).is_err() {
        assert!(begun.elapsed() < Duration::from_secs(30), "the daemon doesn't listen");
        std::thread::sleep(Duration::from_millis(10));
    }
    daemon
}

impl Drop for Place {
    fn drop(&mut self) {
        let _ = self.daemon.kill();
        let _ = self.daemon.wait();
    }
}

fn said(program: &str, arguments: &[&str], file: &Path) -> String {
    let path = "/usr/sbin:/usr/bin:/sbin:/bin";
    let out = Command::new(program).env("PATH", path).args(arguments).arg(file).output().unwrap();
    assert!(out.status.success(), "{program}: {}", String::from_utf8_lossy(&out.stderr));
    String::from_utf8_lossy(&out.stdout).into_owned()
}

#[test]
fn a_debian_and_its_kernel_are_made_without_root() {
    as_a_user("a_debian_and_its_kernel_are_made_without_root", |place| {
        let script = place.state.path().join("script");
        std::fs::write(&script, "#!/bin/sh -e\nid -u >/made-by\n").unwrap();
        let build =
            ["image", "build", "dev", "--include", "make", "--size", "1G", "--progress", "json", "--json", "--script"];
        let out = place.banger(&build).arg(&script).output().unwrap();
        let told = String::from_utf8(out.stderr).unwrap();
        assert!(out.status.success(), "{told}");
        let stages: Vec<Value> = told.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
        let begun = stages.iter().filter(|said| said["state"] == "begun");
        let mut begun: Vec<&str> = begun.map(|said| said["stage"].as_str().unwrap()).collect();
        begun.dedup();
        assert_eq!(begun, ["fetch", "unpack", "configure", "unpack", "pack", "check"]);
        let shown: Value = serde_json::from_slice(&out.stdout).unwrap();
        let image = place.folder("images", &shown).join("root.ext4");
        said("e2fsck", &["-f", "-n"], &image);
        let debugfs = |request: &str| said("debugfs", &["-R", request], &image);
        assert_eq!(debugfs("cat /made-by"), "0\n");
        assert!(debugfs("stat /usr/bin/make").contains("Type: regular"));
        let shadow = debugfs("stat /etc/shadow");
        assert!(shadow.contains("Mode:  0640") && shadow.contains("User:     0   Group:    42"), "{shadow}");
        assert!(debugfs("stat /usr/bin/su").contains("Mode:  04755"));
        assert!(debugfs("stat /etc/machine-id").contains("Size: 0"));
        assert!(debugfs("stat /banger-script").is_empty());
        assert!(shown["size_bytes"].as_u64().unwrap() < 600 << 20, "{shown}");
        assert_eq!(place.making(), 0);
        let again = place.banger(&["image", "build", "dev"]).output().unwrap();
        assert_eq!(again.status.code(), Some(4), "the name is taken, and that is said at once");

        let shown = place.json(&["kernel", "import", "--debian", "--json"]);
        assert!(shown["name"].as_str().unwrap().starts_with("debian-"), "{shown}");
        let folder = place.folder("kernels", &shown);
        assert!(said("cat", &[], &folder.join("modules/order")).contains("virtio_blk\n"));
        assert_eq!(said("cat", &[], &folder.join("version")), shown["version"].as_str().unwrap());
        assert_eq!(place.making(), 0);
    });
}

#[test]
fn a_build_that_fails_says_why_and_leaves_nothing() {
    as_a_user("a_build_that_fails_says_why_and_leaves_nothing", |mut place| {
        let failed = |arguments: &[&str]| {
            let out = place.banger(arguments).output().unwrap();
            assert!(!out.status.success(), "{arguments:?}");
            assert_eq!(place.making(), 0, "{arguments:?}");
            String::from_utf8(out.stderr).unwrap()
        };
        let missing = failed(&["image", "build", "a", "--mirror", "file:/nonexistent"]);
        assert!(
            missing.starts_with("error[no_mirror]: Debian's packages can't be fetched\n  why: its last lines:\n    | "),
            "{missing}"
        );
        let option = failed(&["image", "build", "a", "--suite=--help"]);
        assert!(option.starts_with("error[usage]"), "{option}");
        let version = failed(&["kernel", "import", "--debian", "1/../x"]);
        assert!(version.starts_with("error[usage]"), "{version}");

        // Killed in its middle: no process of it goes on, and the daemon's next start has nothing to remove but folders.
        let mut child = place.banger(&["image", "build", "a"]).stderr(Stdio::null()).spawn().unwrap();
        let begun = Instant::now();
        let begun_in = |place: &Place| {
            let making = std::fs::read_dir(place.state.path().join("making")).unwrap().flatten();
            making.flat_map(|work| std::fs::read_dir(work.path().join("tmp"))).flatten().flatten().count()
        };
        while begun_in(&place) == 0 {
            assert!(begun.elapsed() < Duration::from_secs(60), "mmdebstrap doesn't begin");
            std::thread::sleep(Duration::from_millis(20));
        }
        child.kill().unwrap();
        child.wait().unwrap();
        let at = place.state.path().join("making");
        let at = at.to_string_lossy();
        let is_of_it = |entry: std::fs::DirEntry| {
            std::fs::read(entry.path().join("cmdline")).is_ok_and(|line| String::from_utf8_lossy(&line).contains(&*at))
        };
        while std::fs::read_dir("/proc").unwrap().flatten().any(is_of_it) {
            assert!(begun.elapsed() < Duration::from_secs(120), "something of the build goes on");
            std::thread::sleep(Duration::from_millis(20));
        }
        assert_eq!(place.making(), 1);
        place.restart();
        assert_eq!(place.making(), 0);
    });
}
