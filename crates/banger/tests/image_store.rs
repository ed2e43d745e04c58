//! Images and kernels as a user meets them: imported, used, refused to go, gone. Read back by other programs.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test may panic")]

#[allow(dead_code, reason = "the other tests' part of it")]
mod world;

use serde_json::{Value, json};
use std::fs::{self, File};
use std::io::Write;
use std::path::Path;
use std::process::{Command, Output, Stdio};
use world::*;

const STATE: &str = "/var/lib/banger";

/// Runs it with a file as its input.
fn run_from(arguments: &[&str], input: &Path) -> Output {
    banger(arguments).stdin(File::open(input).unwrap()).output().unwrap()
}

fn said(program: &str, arguments: &[&str]) -> String {
    let out = Command::new(program).args(arguments).output().unwrap();
    assert!(out.status.success(), "{program} {arguments:?}: {}", text(&out.stderr));
    String::from_utf8_lossy(&out.stdout).into_owned()
}

/// How many things are in a folder of the state directory.
fn count(folder: &str) -> usize {
    fs::read_dir(Path::new(STATE).join(folder)).unwrap().count()
}

/// The image's name for a VM that names none.
fn default_name() -> String {
    let text = fs::read_to_string("/etc/os-release").unwrap();
    let number = text.lines().find_map(|line| line.strip_prefix("VERSION_ID=")).unwrap();
    format!("debian-{}", number.trim_matches('"'))
}

#[test]
fn what_comes_in_is_used_and_goes() {
    isolated("what_comes_in_is_used_and_goes", |world| {
        world.without_image_files();
        assert_eq!(json(&["image", "list", "--json"]), json!([]));
        assert_eq!(ok(&["kernel", "list"]), "");
        let missing = run(&["vm", "create", "web", "--image", "debain", "--kernel", "k", "--json"]);
        assert_eq!(missing.status.code(), Some(3), "{}", text(&missing.stderr));
        let error: Value = serde_json::from_slice(&missing.stderr).unwrap();
        assert_eq!(error["error"]["code"], "no_such_image");

        let kernel =
            ["kernel", "import", "/var/lib/banger/vmlinux", "--initrd", "/var/lib/banger/initrd", "--name", "k"];
        assert_eq!(ok(&kernel), "k\n");
        assert_eq!(run(&kernel).status.code(), Some(0), "the very same keeps its name");
        let digest = json(&["kernel", "show", "k", "--json"])["digest"].as_str().unwrap().to_owned();
        let folder = format!("{STATE}/kernels/{}", digest.strip_prefix("sha256:").unwrap());
        assert!(said("sh", &["-c", &format!("cd {folder} && sha256sum -c SHA256SUMS")]).contains("initrd: OK"));

        // The guest's root file system, as debugfs takes it out of the image that the tests have.
        let (tree, archive) = (Path::new("/mnt/tree"), Path::new("/mnt/root.tar"));
        fs::create_dir(tree).unwrap();
        said("debugfs", &["-R", "rdump / /mnt/tree", "/var/lib/banger/root.ext4"]);
        said("tar", &["-C", "/mnt/tree", "--numeric-owner", "-cf", "/mnt/root.tar", "."]);
        fs::remove_dir_all(tree).unwrap();
        let name = default_name();
        let import = ["image", "import", "-", "--size", "1G", "--name", &name];
        let out = run_from(&import, archive);
        assert_eq!(out.status.code(), Some(0), "{}", text(&out.stderr));
        let digest = text(&out.stdout).trim().strip_prefix("sha256:").unwrap();
        let image = format!("{STATE}/images/{digest}/root.ext4");
        assert_eq!(said("sha256sum", &[&image]).split_whitespace().next(), Some(digest));
        said("e2fsck", &["-f", "-n", &image]);
        let taken = run_from(&["image", "import", "-", "--name", &name], Path::new("/var/lib/banger/initrd"));
        assert_eq!(taken.status.code(), Some(4), "{}", text(&taken.stderr));

        // Without a name for either: these are the default ones.
        let facts = "stat -c %U:%G:%a /etc/shadow; cat /etc/os-release";
        let out = ok(&["vm", "run", "--memory", "256M", "--", "sh", "-c", facts]);
        assert!(out.starts_with("root:shadow:640\n") && out.contains("Debian"), "{out}");

        ok(&["vm", "create", "web", "--image", &digest[..8], "--memory", "256M"]);
        assert_eq!(json(&["image", "show", &name, "--json"])["vms"], json!(["web"]));
        let row = ok(&["image", "list"]);
        assert_eq!(row.split('\t').nth(1), Some(format!("sha256:{digest}").as_str()), "{row}");
        let used = run(&["image", "rm", &name]);
        assert_eq!(used.status.code(), Some(4));
        assert!(text(&used.stderr).contains("in use by web"), "{}", text(&used.stderr));
        assert_eq!(run(&["kernel", "rm", "k"]).status.code(), Some(4));
        assert_eq!(ok(&["image", "rm", "-f", &name, "nosuch"]), format!("{name}\nnosuch\n"));
        // The name is gone, and the VM has what it was made of.
        ok(&["vm", "start", "web"]);
        assert_eq!(ok(&["vm", "exec", "web", "hostname"]), "web\n");
        ok(&["vm", "rm", "-f", "web"]);
        assert_eq!(count("images"), 1);
        world.kill_daemon();
        assert_eq!((count("images"), count("making")), (0, 0), "the next start removes what nothing needs");
        assert_eq!(ok(&["kernel", "rm", "k"]), "k\n");
        assert_eq!(count("kernels"), 0);
        assert_eq!(run(&["kernel", "rm", "k"]).status.code(), Some(3));
    });
}

#[test]
fn what_is_cut_off_leaves_nothing() {
    isolated("what_is_cut_off_leaves_nothing", |world| {
        world.without_image_files();
        let hostile = run_with(&["image", "import", "-", "--name", "a"], b"\x1f\x8bno gzip at all");
        assert_eq!(hostile.status.code(), Some(1), "{}", text(&hostile.stderr));
        assert!(text(&hostile.stderr).starts_with("error[bad_input]"), "{}", text(&hostile.stderr));
        let name = run_with(&["image", "import", "-", "--name", "A"], b"");
        assert_eq!(name.status.code(), Some(2), "{}", text(&name.stderr));
        let small = run_with(&["image", "import", "-", "--name", "a", "--size", "1M"], &[0; 1024]);
        assert_eq!(small.status.code(), Some(2), "{}", text(&small.stderr));
        assert_eq!((count("images"), count("making")), (0, 0));

        // A file that is begun and never ends: first its importer is killed, then the daemon.
        fs::write("/mnt/file", [7; 4096]).unwrap();
        let archive = said("tar", &["-C", "/mnt", "-cf", "-", "file"]);
        let begin = || {
            let mut child = banger(&["image", "import", "-", "--name", "a"]).stdin(Stdio::piped()).spawn().unwrap();
            let mut pipe = child.stdin.take().unwrap();
            pipe.write_all(&archive.as_bytes()[..2000]).unwrap();
            until("it is begun", || count("making") == 1);
            (child, pipe)
        };
        let (mut child, pipe) = begin();
        child.kill().unwrap();
        child.wait().unwrap();
        // Somebody still holds the pipe open: the daemon doesn't wait for him.
        until("it is undone", || count("making") == 0);
        drop(pipe);
        let (child, pipe) = begin();
        world.kill_daemon();
        let out = child.wait_with_output().unwrap();
        assert_eq!(out.status.code(), Some(1));
        assert!(text(&out.stderr).starts_with("error[daemon_lost]"), "{}", text(&out.stderr));
        drop(pipe);
        assert_eq!((count("images"), count("making")), (0, 0));
        assert_eq!(json(&["image", "list", "--json"]), json!([]));
    });
}
