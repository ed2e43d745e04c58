//! `banger-jailer` over a program that says what it is in its jail. Read back from inside by that program, and from
//! outside by `/proc`.

#![allow(clippy::unwrap_used, reason = "a test ends where its ground is missing")]

use std::fs::{self, File};
use std::io::Read as _;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _, symlink};
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::OnceLock;
use std::time::{Duration, Instant};

const UID: u32 = 5601;
const GID: u32 = 5602;

/// A directory that with all above it is root's alone, on a file system of its own for this test's mounts to be told
/// from others'.
struct Ground {
    dir: PathBuf,
}

impl Ground {
    fn new(name: &str) -> Ground {
        assert!(rustix::process::geteuid().is_root(), "this test needs root");
        let dir = PathBuf::from(format!("/run/banger-jailer-{}-{name}", std::process::id()));
        fs::create_dir(&dir).unwrap();
        fs::set_permissions(&dir, fs::Permissions::from_mode(0o755)).unwrap();
        fs::create_dir(dir.join("base")).unwrap();
        let program = dir.join("firecracker");
        fs::copy(probe(), &program).unwrap();
        fs::set_permissions(&program, fs::Permissions::from_mode(0o755)).unwrap();
        Ground { dir }
    }

    fn at(&self, name: &str) -> String {
        self.dir.join(name).to_str().unwrap().to_owned()
    }

    /// The jail's root, seen from outside.
    fn root(&self, id: &str) -> PathBuf {
        self.dir.join("base/firecracker").join(id).join("root")
    }

    fn command(&self, id: &str, program: &str, more: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_banger-jailer"));
        command.args(["--id", id, "--exec-file", &self.at(program)]);
        command.args(["--uid", &UID.to_string(), "--gid", &GID.to_string(), "--chroot-base-dir", &self.at("base")]);
        command.args(more).stdin(Stdio::null());
        command
    }

    fn jail(&self, id: &str, more: &[&str]) -> Output {
        self.command(id, "firecracker", more).env("SECRET", "1").output().unwrap()
    }
}

impl Drop for Ground {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.dir);
    }
}

/// The probe, compiled once.
fn probe() -> &'static Path {
    static PROBE: OnceLock<PathBuf> = OnceLock::new();
    PROBE.get_or_init(|| {
        let out = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join(format!("probe-{}", std::process::id()));
        let source = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/probe.c");
        let status = Command::new("cc").args(["-static", "-O1", "-o"]).arg(&out).arg(source).status();
        assert!(status.expect("cc, of gcc").success());
        out
    })
}

fn said(output: &Output) -> String {
    let text = format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{text}");
    text
}

fn refused(output: &Output) -> String {
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(!output.status.success() && output.stdout.is_empty(), "{text}");
    text
}

fn machine_mounts() -> String {
    fs::read_to_string("/proc/self/mountinfo").unwrap()
}

#[test]
fn what_a_jailed_program_is() {
    let ground = Ground::new("is");
    let before = machine_mounts();
    let text = said(&ground.jail("a", &["--", "--api-sock", "/x"]));
    for line in [
        format!("ids: {UID} {UID} {UID} {GID} {GID} {GID} groups 0"),
        "environment: empty".into(),
        "no new privs: 1".into(),
        "bounding: 0".into(),
        "no-file: 2048".into(),
        "fsize: -1".into(),
        "core: 0".into(),
        "descriptors: 0".into(),
        "cwd: /".into(),
        "ls /: dev firecracker firecracker.pid run".into(),
        format!("dev /dev/kvm: 10:232 20600 {UID}"),
        format!("dev /dev/net/tun: 10:200 20600 {UID}"),
        format!("dev /dev/urandom: 1:9 20600 {UID}"),
        "read urandom: done".into(),
        "write the program: Permission denied".into(),
        "make a file: done".into(),
        "setuid: Operation not permitted".into(),
        "chroot: Operation not permitted".into(),
    ] {
        assert!(text.lines().any(|said| said == line), "{line}\n{text}");
    }
    let argv = text.lines().find(|line| line.starts_with("argv:")).unwrap();
    assert!(
        argv.starts_with("argv: /firecracker --id a --start-time-us ") && argv.ends_with(" --api-sock /x"),
        "{argv}"
    );
    assert!(text.contains("ls /dev: kvm net null") && text.contains("urandom"), "{text}");
    // The machine has the names, and nothing that was mounted on them.
    assert_eq!(machine_mounts(), before);
    let root = ground.root("a");
    assert_eq!(fs::metadata(root.join("firecracker")).unwrap().len(), 0);
    assert_eq!(fs::read_dir(root.join("dev")).unwrap().count(), 0);
    let (uid, mode) = (fs::metadata(&root).unwrap().uid(), fs::metadata(&root).unwrap().mode() & 0o7777);
    assert_eq!((uid, mode), (UID, 0o700));
    let above = fs::metadata(root.parent().unwrap()).unwrap();
    assert_eq!((above.uid(), above.mode() & 0o7777), (0, 0o711));
    // What the program wrote lies there, and could not be executed: the root has no programs.
    assert_eq!(fs::metadata(root.join("made")).unwrap().uid(), UID);
}

#[test]
fn limits_and_a_name_for_qemus() {
    let ground = Ground::new("limits");
    fs::rename(ground.dir.join("firecracker"), ground.dir.join("banger-qemu")).unwrap();
    let more = ["--resource-limit", "fsize=4096", "--resource-limit", "no-file=100"];
    let text = said(&ground.command("a", "banger-qemu", &more).output().unwrap());
    assert!(text.contains("no-file: 100\nfsize: 4096\n"), "{text}");
    assert!(text.contains("argv: /firecracker --id a"), "{text}");
    assert!(ground.root("a").join("firecracker.pid").exists());
}

/// Waits for the pid file to have a pid in it.
fn pid_of(root: &Path) -> u32 {
    let until = Instant::now() + Duration::from_secs(20);
    loop {
        let mut text = String::new();
        if let Ok(mut file) = File::open(root.join("firecracker.pid")) {
            file.read_to_string(&mut text).unwrap();
        }
        if let Ok(pid) = text.parse() {
            return pid;
        }
        assert!(Instant::now() < until, "no pid in {root:?}: {text:?}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// Waits until that process executes the probe.
fn status_of(pid: u32) -> String {
    let until = Instant::now() + Duration::from_secs(20);
    loop {
        let line = fs::read_to_string(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        if line.starts_with("/firecracker\0") {
            return fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
        }
        assert!(Instant::now() < until, "{pid} is {line:?}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

fn kill(pid: u32) {
    assert!(Command::new("kill").args(["-9", &pid.to_string()]).status().unwrap().success());
}

#[test]
fn the_jailer_becomes_the_program() {
    let ground = Ground::new("becomes");
    let mut child = ground.command("a", "firecracker", &["--", "wait"]).stdout(Stdio::null()).spawn().unwrap();
    assert_eq!(pid_of(&ground.root("a")), child.id());
    let status = status_of(child.id());
    assert!(
        status.contains(&format!("Uid:\t{UID}\t{UID}\t{UID}\t{UID}")) && status.contains("Threads:\t1"),
        "{status}"
    );
    child.kill().unwrap();
    child.wait().unwrap();
}

#[test]
fn a_pid_namespace_and_a_daemon() {
    let ground = Ground::new("pidns");
    let output = ground.command("a", "firecracker", &["--new-pid-ns", "--daemonize", "--", "wait"]).output().unwrap();
    assert!(said(&output).is_empty(), "its streams are /dev/null");
    let pid = pid_of(&ground.root("a"));
    let status = status_of(pid);
    assert!(status.contains(&format!("NSpid:\t{pid}\t1")), "{status}");
    for stream in 0..3 {
        let number = fs::metadata(format!("/proc/{pid}/fd/{stream}")).unwrap().rdev();
        assert_eq!(number, fs::metadata("/dev/null").unwrap().rdev());
    }
    kill(pid);
}

#[test]
fn its_network_namespace() {
    let ground = Ground::new("netns");
    let name = format!("banger-jailer-{}", std::process::id());
    assert!(Command::new("ip").args(["netns", "add", &name]).status().unwrap().success());
    let path = format!("/run/netns/{name}");
    let mut child =
        ground.command("a", "firecracker", &["--netns", &path, "--", "wait"]).stdout(Stdio::null()).spawn().unwrap();
    status_of(child.id());
    let theirs = fs::read_link(format!("/proc/{}/ns/net", child.id())).unwrap();
    let wanted = format!("net:[{}]", fs::metadata(&path).unwrap().ino());
    child.kill().unwrap();
    child.wait().unwrap();
    assert!(Command::new("ip").args(["netns", "delete", &name]).status().unwrap().success());
    assert_eq!(theirs, Path::new(&wanted));
    let link = ground.at("link");
    symlink("/proc/self/ns/net", &link).unwrap();
    for path in [link.as_str(), "/etc/passwd", "/none"] {
        let error = refused(&ground.jail("b", &["--netns", path]));
        assert!(error.contains("--netns"), "{error}");
    }
}

#[test]
fn its_control_group() {
    let ground = Ground::new("cgroup");
    let parent = format!("banger-jailer-{}", std::process::id());
    let mounts = machine_mounts();
    let find = |wanted: &str| {
        mounts.lines().find(|line| line.contains(wanted)).map(|line| line.split(' ').nth(4).unwrap().to_owned())
    };
    let (version, setting, at, procs) = match find(" - cgroup cgroup rw,pids") {
        Some(at) => ("1", "pids.max=7", at, "tasks"),
        None => ("2", "pids.max=7", find(" - cgroup2 ").expect("a hierarchy"), "cgroup.procs"),
    };
    let more = ["--cgroup-version", version, "--cgroup", setting, "--parent-cgroup", &parent, "--", "wait"];
    let mut child = ground.command("a", "firecracker", &more).stdout(Stdio::null()).spawn().unwrap();
    status_of(child.id());
    let group = Path::new(&at).join(&parent).join("a");
    let inside = fs::read_to_string(group.join(procs)).unwrap();
    let most = fs::read_to_string(group.join("pids.max")).unwrap();
    child.kill().unwrap();
    child.wait().unwrap();
    // The kernel lets a group go a moment after its last process.
    let until = Instant::now() + Duration::from_secs(10);
    while fs::remove_dir(&group).is_err() {
        assert!(Instant::now() < until, "{group:?} stays");
        std::thread::sleep(Duration::from_millis(5));
    }
    fs::remove_dir(Path::new(&at).join(&parent)).unwrap();
    assert_eq!((inside.trim(), most.trim()), (child.id().to_string().as_str(), "7"));
}

#[test]
fn nothing_that_was_planted_is_followed() {
    let ground = Ground::new("planted");
    let victim = ground.dir.join("victim");
    let untouched = |what: &str| {
        assert!(!victim.exists(), "{what}: the link was followed");
    };
    // A jail of somebody's, prepared for the next launch.
    let root = ground.root("a");
    fs::create_dir_all(&root).unwrap();
    for name in ["firecracker", "firecracker.pid", "dev", "run"] {
        symlink(&victim, root.join(name)).unwrap();
        let error = refused(&ground.jail("a", &[]));
        assert!(error.starts_with("banger-jailer: "), "{error}");
        untouched(name);
        fs::remove_dir_all(&root).unwrap();
        fs::create_dir(&root).unwrap();
    }
    // A second name of another's file, as the program that would be written over.
    fs::write(ground.dir.join("file"), "words").unwrap();
    fs::hard_link(ground.dir.join("file"), root.join("firecracker")).unwrap();
    assert!(refused(&ground.jail("a", &[])).contains("there already"));
    assert_eq!(fs::read_to_string(ground.dir.join("file")).unwrap(), "words");
    fs::remove_dir_all(&root).unwrap();
    // The root, its parents, the base: links, or not root's alone.
    fs::create_dir(&victim).unwrap();
    symlink(&victim, &root).unwrap();
    refused(&ground.jail("a", &[]));
    fs::remove_file(&root).unwrap();
    fs::create_dir(&root).unwrap();
    std::os::unix::fs::chown(&root, Some(UID), Some(GID)).unwrap();
    assert!(refused(&ground.jail("a", &[])).contains("must be root's"));
    std::os::unix::fs::chown(&root, Some(0), Some(0)).unwrap();
    for above in [root.parent().unwrap(), &ground.dir.join("base")] {
        fs::set_permissions(above, fs::Permissions::from_mode(0o775)).unwrap();
        assert!(refused(&ground.jail("a", &[])).contains("can be written by others"), "{above:?}");
        fs::set_permissions(above, fs::Permissions::from_mode(0o711)).unwrap();
    }
    assert_eq!(fs::read_dir(&victim).unwrap().count(), 0);
    // And as it was prepared, it serves.
    said(&ground.jail("a", &[]));
    assert!(refused(&ground.jail("a", &[])).contains("must be root's"), "a jail serves once");
}

#[test]
fn programs_that_are_not_roots_alone() {
    let ground = Ground::new("programs");
    let program = ground.dir.join("firecracker");
    for (mode, told) in [(0o775, "can be written by others"), (0o644, "not executable"), (0o4755, "set-id")] {
        fs::set_permissions(&program, fs::Permissions::from_mode(mode)).unwrap();
        let error = refused(&ground.jail("a", &[]));
        assert!(error.contains(told), "{error}");
    }
    fs::set_permissions(&program, fs::Permissions::from_mode(0o755)).unwrap();
    std::os::unix::fs::chown(&program, Some(UID), None).unwrap();
    assert!(refused(&ground.jail("a", &[])).contains("must be root's"));
    std::os::unix::fs::chown(&program, Some(0), None).unwrap();
    symlink(&program, ground.dir.join("link")).unwrap();
    refused(&ground.command("a", "link", &[]).output().unwrap());
    refused(&ground.command("a", "base", &[]).output().unwrap());
    refused(&ground.command("a", "none", &[]).output().unwrap());
    assert!(!ground.dir.join("base/firecracker").exists(), "nothing was made for a program that is none");
}

#[test]
fn what_its_starter_mounted_is_inside() {
    let ground = Ground::new("staged");
    let root = ground.root("a");
    fs::create_dir_all(&root).unwrap();
    fs::write(root.join("vmlinux"), "").unwrap();
    fs::write(ground.dir.join("kernel"), "a kernel").unwrap();
    let jailer = env!("CARGO_BIN_EXE_banger-jailer");
    let script = format!(
        "mount --make-rprivate / && mount --bind {0}/kernel {1}/vmlinux && exec {jailer} --id a --exec-file \
         {0}/firecracker --uid {UID} --gid {GID} --chroot-base-dir {0}/base -- wait",
        ground.dir.display(),
        root.display(),
    );
    let mut child =
        Command::new("unshare").args(["--mount", "sh", "-c", &script]).stdout(Stdio::null()).spawn().unwrap();
    status_of(child.id());
    let seen = fs::read_to_string(format!("/proc/{}/root/vmlinux", child.id())).unwrap();
    let mounts = fs::read_to_string(format!("/proc/{}/mountinfo", child.id())).unwrap();
    child.kill().unwrap();
    child.wait().unwrap();
    assert_eq!(seen, "a kernel");
    let mut at: Vec<&str> = mounts.lines().filter_map(|line| line.split(' ').nth(4)).collect();
    at.sort_unstable();
    assert_eq!(at, ["/", "/dev", "/firecracker", "/vmlinux"], "{mounts}");
    assert_eq!(fs::metadata(root.join("vmlinux")).unwrap().len(), 0);
}

/// As a starter does it: the jailer is the first process of a PID namespace, and has something as descriptor 3.
#[test]
fn what_is_passed_is_the_programs_below_a_proc_of_its_own() {
    let ground = Ground::new("inherit");
    let starts = |id: &str, starter: &[&str]| {
        let jailer = ground.command(id, "firecracker", &["--inherit"]);
        let mut command = Command::new(starter[0]);
        command.args(&starter[1..]).args(["/bin/sh", "-c", "exec \"$@\" 3</etc/hostname 4</etc/passwd", "sh"]);
        command.arg(jailer.get_program()).args(jailer.get_args()).stdin(Stdio::null()).output().unwrap()
    };
    let said = said(&starts("a", &["unshare", "--pid", "--fork", "--"]));
    for line in [
        "descriptors: 1\n",
        "pid: 1 ",
        "ls /proc: 1 self thread-self\n",
        "passed: /etc/hostname\n",
        "write proc: Read-only",
    ] {
        assert!(said.contains(line), "{line}\n{said}");
    }
    // The machine's number, for whoever looks for the VMM by it.
    assert_ne!(fs::read_to_string(ground.root("a").join("firecracker.pid")).unwrap(), "1");
    let refused = starts("b", &["env"]);
    let text = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert!(!refused.status.success() && text.contains("--inherit: this process is not the first"), "{text}");
    assert!(!ground.root("b").exists());
}
