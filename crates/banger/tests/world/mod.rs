//! A machine of its own for one test: network, mount and process namespaces, a real root helper, a real daemon as an
//! unprivileged user, a real Debian guest. `BANGER_TEST_KERNEL`, `BANGER_TEST_INITRD` and `BANGER_TEST_ROOT` name the
//! guest's files, as `xtask guest` tells them; `BANGER_TEST_ROOT_WITH` a root file system with more packages.

mod schema;

use rustix::mount::{MountFlags, MountPropagationFlags, mount, mount_bind, mount_change};
use serde_json::Value;
use std::collections::BTreeSet;
use std::fs::{self, File, Permissions};
use std::io::{Read, Write};
use std::net::UdpSocket;
use std::os::unix::fs::{PermissionsExt, chown};
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

/// The owner; in the namespaces' own `/etc/passwd`.
pub(crate) const OWNER: u32 = 5501;
/// Nobody of the daemon's.
pub(crate) const OTHER: u32 = 5502;
const PROGRAMS: &str = "/run/bin";
const STATE: &str = "/var/lib/banger";
/// A guest boots within this time, on a busy machine without KVM too: longer than bangerd waits for one (180 s), whose own word on it
/// comes first.
pub(crate) const LONG: Duration = Duration::from_secs(300);
/// A template is made within this time: a boot, an init that comes up, a save and a try, each with a limit of its own.
const MAKING: Duration = Duration::from_secs(900);

/// Runs `body` in a process of its own in fresh namespaces: this very test, once more.
pub(crate) fn isolated(test: &str, body: impl FnOnce(&mut World)) {
    isolated_on("BANGER_TEST_ROOT", test, body);
}

/// As [`isolated`]; the guests have a compiler, make, and systemd.
#[allow(dead_code, reason = "each file of tests has its own copy of this one")]
pub(crate) fn isolated_with_packages(test: &str, body: impl FnOnce(&mut World)) {
    isolated_on("BANGER_TEST_ROOT_WITH", test, body);
}

fn isolated_on(root: &str, test: &str, body: impl FnOnce(&mut World)) {
    const INSIDE: &str = "BANGER_TEST_INSIDE";
    if std::env::var_os(INSIDE).is_some() {
        let mut world = World::make();
        return body(&mut world);
    }
    assert!(rustix::process::geteuid().is_root(), "this test needs root");
    // The shell is the namespaces' first process: it reaps what is left to it, and all end with it.
    let output = Command::new("unshare")
        .args(["--mount", "--net", "--ipc", "--pid", "--fork", "--kill-child", "--mount-proc", "sh", "-c"])
        .args(["\"$0\" \"$@\"; exit $?"])
        .arg(std::env::current_exe().expect("the test's own file"))
        .args([test, "--exact", "--include-ignored", "--nocapture", "--test-threads=1"])
        .env(INSIDE, "1")
        .env("BANGER_TEST_ROOT", std::env::var_os(root).unwrap_or_else(|| panic!("{root} is not set: scripts/test")))
        .stdin(Stdio::null())
        .output()
        .expect("unshare, of util-linux");
    let text = format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success() && text.contains("1 passed"), "{test}, in its namespaces:\n{text}");
    text.lines().filter(|line| line.starts_with("figure: ")).for_each(|line| println!("{line}"));
}

/// The helper and the daemon of one test.
pub(crate) struct World {
    helper: Child,
    daemon: Child,
    arguments: Vec<String>,
}

impl World {
    fn make() -> World {
        ground();
        let helper = helper();
        let files = ["root.ext4", "vmlinux", "initrd"].map(|file| format!("{STATE}/{file}"));
        // What is made ahead belongs to no VM, and tests ask what VMs left.
        let ahead = ["--taps-ahead".to_owned(), "0".to_owned()];
        let arguments = [ahead.into(), vec!["--image-files".to_owned()], files.into()].concat();
        let daemon = daemon(&arguments);
        World { helper, daemon, arguments }
    }

    /// As [`World::kill_daemon`]; the daemon then knows no image but those that were made.
    #[allow(dead_code, reason = "each file of tests has its own copy of this one")]
    pub(crate) fn without_image_files(&mut self) {
        self.arguments.truncate(2);
        self.kill_daemon();
    }

    /// As [`World::kill_daemon`]; the daemon then has these arguments instead of what else is made ahead.
    #[allow(dead_code, reason = "each file of tests has its own copy of this one")]
    pub(crate) fn with_arguments(&mut self, ahead: &[&str]) {
        self.arguments.splice(..2, ahead.iter().map(|word| (*word).to_owned()));
        self.kill_daemon();
    }

    /// Kills the root helper and starts it again.
    pub(crate) fn kill_helper(&mut self) {
        self.without_helper(|| {});
    }

    /// Kills the root helper, and starts it again when `act` is over.
    pub(crate) fn without_helper(&mut self, act: impl FnOnce()) {
        self.helper.kill().expect("killed");
        self.helper.wait().expect("gone");
        act();
        self.helper = helper();
    }

    /// The daemon's process.
    #[allow(dead_code, reason = "each file of tests has its own copy of this one")]
    pub(crate) fn daemon(&mut self) -> &mut Child {
        &mut self.daemon
    }

    /// The root helper's process.
    #[allow(dead_code, reason = "each file of tests has its own copy of this one")]
    pub(crate) fn helper(&mut self) -> &mut Child {
        &mut self.helper
    }

    /// Kills the daemon and starts it again.
    pub(crate) fn kill_daemon(&mut self) {
        self.without_daemon(|| {});
    }

    /// Kills the daemon, and starts it again when `act` is over.
    pub(crate) fn without_daemon(&mut self, act: impl FnOnce()) {
        self.daemon.kill().expect("killed");
        self.daemon.wait().expect("gone");
        act();
        self.daemon = daemon(&self.arguments);
    }
}

impl Drop for World {
    fn drop(&mut self) {
        for child in [&mut self.daemon, &mut self.helper] {
            let _ = child.kill();
            let _ = child.wait();
        }
        if std::thread::panicking() {
            for log in ["/mnt/daemon.log", "/mnt/helper.log"] {
                println!("{log}:\n{}", fs::read_to_string(log).unwrap_or_default());
            }
        }
    }
}

/// `/run`, `/etc`, `/var/lib/banger` of the test's own, the owner, the programs, the guest's files.
fn ground() {
    mount_change("/", MountPropagationFlags::PRIVATE | MountPropagationFlags::REC).expect("private mounts");
    mount("tmpfs", "/mnt", "tmpfs", MountFlags::empty(), Some(c"mode=755")).expect("a tmpfs");
    command("cp", &["-a", "--one-file-system", "/etc", "/mnt/etc"]);
    let _ = fs::remove_dir_all("/mnt/etc/banger");
    for (file, line) in
        [("passwd", format!("bowner:x:{OWNER}:{OWNER}::/:/bin/sh\n")), ("group", format!("bowner:x:{OWNER}:\n"))]
    {
        let mut file = File::options().append(true).open(format!("/mnt/etc/{file}")).expect("accounts");
        file.write_all(line.as_bytes()).expect("an account");
    }
    mount_bind("/mnt/etc", "/etc").expect("bound");
    for dir in ["/mnt/run", "/mnt/run/bin", "/mnt/lib", "/mnt/lib/banger"] {
        fs::create_dir(dir).expect(dir);
    }
    mount_bind("/mnt/run", "/run").expect("bound");
    mount_bind("/mnt/lib", "/var/lib").expect("bound");
    tun();
    let built = PathBuf::from(env!("CARGO_BIN_EXE_banger"));
    for program in ["bangerd-root", "banger-jailer", "banger-qemu", "banger-image", "banger", "bangerd"] {
        let from = built.with_file_name(program);
        assert!(from.exists(), "{from:?} is missing: cargo build -p root -p jailer -p qemu -p image");
        fs::copy(&from, format!("{PROGRAMS}/{program}")).expect(program);
    }
    command(&format!("{PROGRAMS}/banger"), &["helper", "init", "--owner", "bowner"]);
    fs::write("/etc/banger/root.toml", format!("program_dirs = [{PROGRAMS:?}, \"/usr/bin\"]\n")).expect("settings");
    command("ip", &["link", "set", "lo", "up"]);
    for (name, file) in [("KERNEL", "vmlinux"), ("INITRD", "initrd"), ("ROOT", "root.ext4")] {
        let name = format!("BANGER_TEST_{name}");
        let from = std::env::var(&name).unwrap_or_else(|_| panic!("{name} is not set: cargo xtask guest"));
        let to = format!("{STATE}/{file}");
        command("cp", &["--sparse=always", &from, &to]);
        chown(&to, Some(OWNER), Some(OWNER)).expect("the owner's");
    }
}

/// Where no udev has opened the tap device to all users, the VMM couldn't open its own tap.
fn tun() {
    let open = fs::metadata("/dev/net/tun").is_ok_and(|facts| facts.permissions().mode() & 0o006 == 0o006);
    if !open {
        command("mknod", &["-m", "0666", "/mnt/tun", "c", "10", "200"]);
        mount_bind("/mnt/tun", "/dev/net/tun").expect("bound");
    }
}

fn helper() -> Child {
    let log = File::options().append(true).create(true).open("/mnt/helper.log").expect("a log");
    let helper = Command::new(format!("{PROGRAMS}/bangerd-root")).stderr(log).spawn().expect("the helper");
    let socket = "/run/banger-root/bangerd-root.sock";
    until("the helper listens", || UnixStream::connect(socket).is_ok());
    helper
}

fn daemon(arguments: &[String]) -> Child {
    let log = File::options().append(true).create(true).open("/mnt/daemon.log").expect("a log");
    log.set_permissions(Permissions::from_mode(0o644)).expect("mode");
    let mut command = Command::new(format!("{PROGRAMS}/bangerd"));
    // One that is made unasked is a VM, and tests ask what VMs left.
    let configured = fs::read_to_string("/etc/banger/config.toml").is_ok_and(|text| text.contains("templates ="));
    let templates = if configured { [].as_slice() } else { &["--templates", "off"] };
    command.args(arguments).args(templates).uid(OWNER).gid(OWNER).stdin(Stdio::null()).stderr(log);
    let daemon = command.spawn().expect("the daemon");
    // A program that one before it was starting when it was killed may still have its socket: that one answers nobody.
    until("the daemon answers", || run(&["vm", "list"]).status.success());
    daemon
}

/// `banger` with those arguments, as the owner.
pub(crate) fn banger(arguments: &[&str]) -> Command {
    let mut command = Command::new(format!("{PROGRAMS}/banger"));
    command.args(arguments).uid(OWNER).gid(OWNER).current_dir("/").stdin(Stdio::null());
    command.stdout(Stdio::piped()).stderr(Stdio::piped());
    for name in ["BANGER_SOCKET", "BANGER_OP_ID", "BANGER_PROGRESS", "BANGER_IMAGE", "CI"] {
        command.env_remove(name);
    }
    command
}

/// Runs it to its end.
pub(crate) fn run(arguments: &[&str]) -> Output {
    banger(arguments).output().expect("banger")
}

/// Runs it with an input.
pub(crate) fn run_with(arguments: &[&str], input: &[u8]) -> Output {
    let mut child = banger(arguments).stdin(Stdio::piped()).spawn().expect("banger");
    child.stdin.take().expect("piped").write_all(input).expect("written");
    child.wait_with_output().expect("banger")
}

/// Runs it, and it has to succeed; its standard output.
pub(crate) fn ok(arguments: &[&str]) -> String {
    let out = run(arguments);
    assert_eq!(out.status.code(), Some(0), "{arguments:?}: {}", text(&out.stderr));
    text(&out.stdout).to_owned()
}

/// The JSON that it prints, which is as its schema says.
pub(crate) fn json(arguments: &[&str]) -> Value {
    let document = serde_json::from_str(&ok(arguments)).expect("JSON");
    schema::hold(&format!("{PROGRAMS}/banger"), arguments, &document);
    document
}

/// The field of a VM.
pub(crate) fn field(name: &str, pointer: &str) -> Value {
    json(&["vm", "show", name, "--json"]).pointer(pointer).expect(pointer).clone()
}

pub(crate) fn text(bytes: &[u8]) -> &str {
    std::str::from_utf8(bytes).expect("UTF-8")
}

/// Reads from a running command until a word has come.
pub(crate) fn read_until(from: &mut impl Read, word: &str) {
    let (mut got, mut byte) = (Vec::new(), [0]);
    while !got.ends_with(word.as_bytes()) {
        assert_eq!(
            from.read(&mut byte).expect("read"),
            1,
            "{word:?} did not come: {:?}",
            String::from_utf8_lossy(&got)
        );
        got.push(byte[0]);
    }
}

/// Waits for something, as long as a guest may take to boot.
pub(crate) fn until(what: &str, is_so: impl FnMut() -> bool) {
    within(LONG, what, is_so);
}

fn within(limit: Duration, what: &str, mut is_so: impl FnMut() -> bool) {
    let begun = Instant::now();
    while !is_so() {
        assert!(begun.elapsed() < limit, "{what}: not so after {} s", limit.as_secs());
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// Waits until so many templates are there; no making may fail meanwhile.
#[allow(dead_code, reason = "each file of tests has its own copy of this one")]
pub(crate) fn templates_made(count: usize) {
    let before = failed_makings().len();
    within(MAKING, "templates are made", || {
        assert_eq!(failed_makings()[before..], [""; 0], "a making failed");
        // To ask takes a process, which takes its time from the making.
        std::thread::sleep(Duration::from_millis(200));
        ok(&["template", "list", "--quiet"]).lines().count() == count
    });
}

/// What bangerd said of unasked makings that failed for reasons of their own.
#[allow(dead_code, reason = "each file of tests has its own copy of this one")]
pub(crate) fn failed_makings() -> Vec<String> {
    let has = |line: &str, word: &str| line.contains(word);
    let is_one = |line: &&str| has(line, r#""op":"template","#) && has(line, "ERROR") && !has(line, "interrupted");
    let log = fs::read_to_string("/mnt/daemon.log").unwrap_or_default();
    log.lines().filter(is_one).map(str::to_owned).collect()
}

/// The last part of the address that the daemon answers for a name.
pub(crate) fn address_of(name: &str) -> Option<u8> {
    let socket = UdpSocket::bind("127.0.0.1:0").expect("a socket");
    socket.set_read_timeout(Some(Duration::from_secs(10))).expect("a limit");
    // RFC 1035, part 4: a header with one question; the name's labels; type A, class IN.
    let mut question = vec![0x12, 0x34, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0];
    for label in name.split('.') {
        question.push(u8::try_from(label.len()).expect("a label"));
        question.extend(label.bytes());
    }
    question.extend([0, 0, 1, 0, 1]);
    socket.send_to(&question, "127.0.0.1:42069").expect("sent");
    let mut answer = [0; 512];
    let length = socket.recv(&mut answer).expect("an answer");
    assert_eq!(answer[..2], question[..2]);
    let found = answer[7] == 1 && answer[3] & 15 == 0;
    found
        .then(|| answer[..length].windows(3).rev().find(|part| *part == [172, 16, 0]).map(|_| answer[length - 1]))
        .flatten()
}

/// The VMMs' processes.
pub(crate) fn vmms() -> Vec<i32> {
    let entries = fs::read_dir("/proc").expect("/proc").flatten();
    let is_vmm = |line: &[u8]| String::from_utf8_lossy(line).contains("--api-sock");
    let vmms = entries.filter(|entry| fs::read(entry.path().join("cmdline")).is_ok_and(|line| is_vmm(&line)));
    vmms.filter_map(|entry| entry.file_name().to_str()?.parse().ok()).collect()
}

/// The ids of the VMs that are paused, as their VMMs say: those that wait in the pool.
#[allow(dead_code, reason = "each file of tests has its own copy of this one")]
pub(crate) fn waiting() -> BTreeSet<String> {
    let is_paused = |id: &String| {
        let asked = UnixStream::connect(format!("/run/banger/vms/{id}/api.sock")).and_then(|mut stream| {
            stream.set_read_timeout(Some(LONG))?;
            stream.write_all(b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n")?;
            let (mut answer, mut part) = (String::new(), [0; 1024]);
            while !answer.contains('}') {
                let length = stream.read(&mut part)?;
                answer.push_str(text(&part[..length]));
                if length == 0 {
                    break;
                }
            }
            Ok(answer)
        });
        asked.is_ok_and(|answer| answer.contains("\"Paused\""))
    };
    let entries = fs::read_dir("/run/banger/vms").into_iter().flatten().flatten();
    entries.filter_map(|entry| entry.file_name().into_string().ok()).filter(is_paused).collect()
}

/// What of VMs the kernel has: taps, VMMs, jails, mounts of the helper's, and the owner's directories of VMs.
pub(crate) fn left() -> Vec<String> {
    let links: Value = serde_json::from_str(&command("ip", &["-j", "link"])).expect("JSON");
    let names = links.as_array().expect("links").iter().filter_map(|link| link["ifname"].as_str());
    let mut found: Vec<String> = names.filter(|name| name.starts_with("tap-")).map(str::to_owned).collect();
    found.extend(vmms().iter().map(|pid| format!("process {pid}")));
    for dir in ["/run/banger/vms", "/var/lib/banger/vms", "/var/lib/banger/jail/firecracker"] {
        let entries = fs::read_dir(dir).into_iter().flatten().flatten();
        found.extend(entries.map(|entry| entry.path().display().to_string()));
    }
    let sets = command("nft", &["list", "ruleset"]);
    found.extend(sets.lines().filter(|line| line.contains("elements = ")).map(|line| line.trim().to_owned()));
    found
}

fn command(program: &str, arguments: &[&str]) -> String {
    let out = Command::new(program).args(arguments).output().expect(program);
    assert!(out.status.success(), "{program} {arguments:?}: {}", text(&out.stderr));
    text(&out.stdout).to_owned()
}
