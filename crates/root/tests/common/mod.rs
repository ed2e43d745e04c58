//! Support for tests over the built helper: namespaces of their own, fresh directories, a helper, calls to it.
//!
//! A test is written as `isolated! { fn name() { … } }`. It runs in mount, network, PID and IPC namespaces that are
//! made for it and go with it, whatever it leaves behind; nothing of the machine's own is touched.

#![allow(dead_code, reason = "each test file uses a part")]

use rustix::mount::{MountFlags, MountPropagationFlags, mount, mount_bind, mount_bind_recursive, mount_change};
use rustix::process::{Gid, Pid, Signal, Uid, kill_process};
use serde_json::Value;
use std::fs::{self, File};
use std::io::{Read, Write};
use std::net::Shutdown;
use std::os::unix::fs::{PermissionsExt, chown};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

/// The owner's ids, and another user's; both are in the namespace's `/etc/passwd`.
pub(crate) const OWNER: u32 = 5501;
pub(crate) const OTHER: u32 = 5502;
pub(crate) const OWNER_NAME: &str = "bowner";

/// Where a test's helper has its places.
pub(crate) const STATE: &str = "/mnt/s";
pub(crate) const RUNTIME: &str = "/mnt/r";
pub(crate) const SOCKET: &str = "/mnt/h/bangerd-root.sock";
pub(crate) const META: &str = "/mnt/e/install.toml";
pub(crate) const CONFIG: &str = "/mnt/e/root.toml";
const LOG: &str = "/mnt/log";

/// Declares a test that runs in namespaces of its own.
#[macro_export]
macro_rules! isolated {
    ($(#[$meta:meta])* fn $name:ident() $body:block) => {
        #[test]
        $(#[$meta])*
        fn $name() {
            $crate::common::isolate(module_path!(), stringify!($name), || $body);
        }
    };
}

/// Runs `body` in a process of its own in fresh namespaces: this very test, once more.
pub(crate) fn isolate(module: &str, name: &str, body: impl FnOnce()) {
    const INSIDE: &str = "BANGER_TEST_INSIDE";
    if std::env::var_os(INSIDE).is_some() {
        prepare();
        return body();
    }
    assert!(rustix::process::geteuid().is_root(), "this test needs root");
    let test = match module.split_once("::") {
        Some((_, inner)) => format!("{inner}::{name}"),
        None => name.to_owned(),
    };
    // The shell is the namespace's first process: it reaps what is left to it, and all end with it.
    let output = Command::new("unshare")
        .args(["--mount", "--net", "--ipc", "--pid", "--fork", "--kill-child", "--mount-proc", "sh", "-c"])
        .args(["\"$0\" \"$@\"; exit $?"])
        .arg(std::env::current_exe().expect("the test's own file"))
        .args([test.as_str(), "--exact", "--include-ignored", "--nocapture", "--test-threads=1"])
        .env(INSIDE, "1")
        .stdin(Stdio::null())
        .output()
        .expect("unshare, of util-linux");
    let text = format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success() && text.contains("1 passed"), "{test}, in its namespaces:\n{text}");
    // Figures: shown with `--nocapture`.
    text.lines().filter(|line| line.contains("figure: ")).for_each(|line| println!("{line}"));
}

/// The ground: `/run`, `/var/lib`, `/mnt` empty and ours, two more users, the owner's and root's directories.
fn prepare() {
    mount_change("/", MountPropagationFlags::PRIVATE | MountPropagationFlags::REC).expect("private mounts");
    for at in ["/mnt", "/var/lib"] {
        mount("tmpfs", at, "tmpfs", MountFlags::empty(), Some(c"mode=755")).expect("a tmpfs");
    }
    fresh_run();
    fresh_sysfs();
    for (file, lines) in [
        (
            "passwd",
            format!(
                "{OWNER_NAME}:x:{OWNER}:{OWNER}::/home/{OWNER_NAME}:/bin/sh\nbother:x:{OTHER}:{OTHER}::/:/bin/sh\n"
            ),
        ),
        ("group", format!("{OWNER_NAME}:x:{OWNER}:\nbother:x:{OTHER}:\n")),
    ] {
        let (real, copy) = (format!("/etc/{file}"), format!("/mnt/{file}"));
        let text = fs::read_to_string(&real).expect("users");
        fs::write(&copy, format!("{}\n{lines}", text.trim_end())).expect("a copy");
        mount_bind(&copy, &real).expect("bound");
    }
    for (dir, uid, mode) in [
        ("/run/banger-root", 0, 0o711),
        ("/var/lib/banger-root", 0, 0o700),
        (STATE, OWNER, 0o755),
        (RUNTIME, OWNER, 0o711),
        ("/mnt/h", 0, 0o711),
        ("/mnt/e", 0, 0o755),
        ("/mnt/o", 0, 0o755),
        ("/mnt/s/images", OWNER, 0o755),
        ("/mnt/s/kernels", OWNER, 0o755),
        ("/mnt/s/logs", OWNER, 0o755),
        ("/mnt/r/vm", OWNER, 0o755),
    ] {
        make_dir(dir, uid, mode);
    }
    fs::write(META, meta()).expect("metadata");
    fs::set_permissions(META, fs::Permissions::from_mode(0o644)).expect("mode");
}

/// `/run` empty, but for what tells of a udev that runs: devices are everybody's.
fn fresh_run() {
    fs::create_dir("/mnt/.udev").expect("a place");
    let udev = mount_bind_recursive("/run/udev", "/mnt/.udev");
    mount("tmpfs", "/run", "tmpfs", MountFlags::empty(), Some(c"mode=755")).expect("a tmpfs");
    if udev.is_ok() {
        fs::create_dir("/run/udev").expect("a place");
        mount_bind_recursive("/mnt/.udev", "/run/udev").expect("udev's directory");
    }
}

/// `/sys` of this network namespace; the control groups stay where they were.
fn fresh_sysfs() {
    fs::create_dir("/mnt/.cgroup").expect("a place");
    let cgroup = mount_bind_recursive("/sys/fs/cgroup", "/mnt/.cgroup");
    mount("sysfs", "/sys", "sysfs", MountFlags::empty(), None).expect("sysfs");
    if cgroup.is_ok() {
        mount_bind_recursive("/mnt/.cgroup", "/sys/fs/cgroup").expect("cgroups");
    }
}

/// Makes a directory.
pub(crate) fn make_dir(path: &str, uid: u32, mode: u32) {
    fs::create_dir_all(path).expect(path);
    chown(path, Some(uid), Some(uid)).expect(path);
    fs::set_permissions(path, fs::Permissions::from_mode(mode)).expect(path);
}

/// Makes a file.
pub(crate) fn make_file(path: &str, bytes: &[u8], uid: u32, mode: u32) {
    fs::write(path, bytes).expect(path);
    chown(path, Some(uid), Some(uid)).expect(path);
    fs::set_permissions(path, fs::Permissions::from_mode(mode)).expect(path);
}

/// Install metadata that are right.
pub(crate) fn meta() -> String {
    format!(
        "owner_user = \"{OWNER_NAME}\"\nowner_uid = {OWNER}\nowner_gid = {OWNER}\nowner_home = \"/home/{OWNER_NAME}\"\n\
         version = \"0.0.0-test\"\ncommit = \"0000000\"\nbuilt_at = \"2026-01-01T00:00:00Z\"\n\
         installed_at = 2026-01-01T00:00:00Z\n"
    )
}

/// Runs a program and gives what it printed; it must succeed.
pub(crate) fn output(program: &str, arguments: &[&str]) -> String {
    let output = Command::new(program).args(arguments).output().unwrap_or_else(|error| panic!("{program}: {error}"));
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{program} {arguments:?}: {said}");
    String::from_utf8(output.stdout).expect("text")
}

/// A helper's command, not yet started.
pub(crate) struct Start {
    command: Command,
    log: Option<Stdio>,
}

impl Start {
    /// With the test's places.
    pub(crate) fn new() -> Start {
        let mut command = Command::new(env!("CARGO_BIN_EXE_bangerd-root"));
        for (flag, value) in
            [("--socket", SOCKET), ("--state-dir", STATE), ("--runtime-dir", RUNTIME), ("--install-meta", META)]
        {
            command.args([flag, value]);
        }
        command.env_clear().env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin").stdin(Stdio::null()).current_dir("/");
        Start { command, log: None }
    }

    /// With a configuration.
    pub(crate) fn config(mut self, text: &str) -> Start {
        make_file(CONFIG, text.as_bytes(), 0, 0o644);
        self.command.args(["--config", CONFIG]);
        self
    }

    /// With another argument.
    pub(crate) fn args(mut self, arguments: &[&str]) -> Start {
        self.command.args(arguments);
        self
    }

    /// With a variable in its environment.
    pub(crate) fn env(mut self, name: &str, value: &str) -> Start {
        self.command.env(name, value);
        self
    }

    /// Started by another program, which gets its command line behind its own arguments.
    pub(crate) fn under(mut self, program: &str, arguments: &[&str]) -> Start {
        let mut command = Command::new(program);
        command.args(arguments).arg(self.command.get_program()).args(self.command.get_args());
        command.env_clear().env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin").stdin(Stdio::null()).current_dir("/");
        self.command = command;
        self
    }

    /// With its standard error there instead of in the test's log.
    pub(crate) fn log_to(mut self, log: impl Into<Stdio>) -> Start {
        self.log = Some(log.into());
        self
    }

    fn spawn(mut self) -> Child {
        let file = || File::options().create(true).append(true).open(LOG).expect("the log").into();
        let log = self.log.take().unwrap_or_else(file);
        self.command.stdout(Stdio::null()).stderr(log).spawn().expect("the helper's program")
    }

    /// Starts it and waits until it serves.
    pub(crate) fn start(self) -> Helper {
        let child = self.spawn();
        let mut helper = Helper { child };
        let end = Instant::now() + Duration::from_secs(10);
        while UnixStream::connect(SOCKET).is_err() {
            let ended = helper.child.try_wait().expect("wait");
            assert!(ended.is_none() && Instant::now() < end, "the helper does not serve: {}", log_end());
            std::thread::sleep(Duration::from_millis(2));
        }
        helper
    }

    /// Starts it, and expects it to end by itself with a status above 0. Gives why, as it said.
    pub(crate) fn fails(self) -> String {
        let mut child = self.spawn();
        let end = Instant::now() + Duration::from_secs(5);
        let status = loop {
            match child.try_wait().expect("wait") {
                Some(status) => break status,
                None if Instant::now() > end => {
                    let _ = child.kill();
                    panic!("the helper serves, which it must not");
                }
                None => std::thread::sleep(Duration::from_millis(2)),
            }
        };
        assert!(status.code().is_some_and(|code| code > 0), "{status}");
        let told = log_lines().into_iter().rfind(|line| line["msg"] == "helper can not start").expect("a line");
        told["message"].as_str().expect("a message").to_owned()
    }
}

/// A helper that runs. Killed when it is dropped.
pub(crate) struct Helper {
    child: Child,
}

impl Helper {
    /// A helper with everything as usual.
    pub(crate) fn start() -> Helper {
        Start::new().start()
    }

    /// Its process.
    pub(crate) fn pid(&self) -> i32 {
        self.child.id().cast_signed()
    }

    /// Asks it as the owner: the request's JSON, the reply's. `{"method":"priv.…","params":{…}}`
    pub(crate) fn call(&self, request: &str) -> Value {
        exchange(OWNER, request)
    }

    /// Asks for `method` with `params`, and gives the result of a success.
    pub(crate) fn ok(&self, method: &str, params: &Value) -> Value {
        let reply = self.ask(method, params);
        assert_eq!(reply["ok"], true, "{method} {params}: {reply}\n{}", log_end());
        reply["result"].clone()
    }

    /// Asks for `method` with `params`, and gives code and message of a failure.
    pub(crate) fn err(&self, method: &str, params: &Value) -> (String, String) {
        let reply = self.ask(method, params);
        assert_eq!(reply["ok"], false, "{method} {params}: {reply}");
        let part = |key: &str| reply["error"][key].as_str().unwrap_or_default().to_owned();
        (part("code"), part("message"))
    }

    fn ask(&self, method: &str, params: &Value) -> Value {
        self.call(&serde_json::json!({"version": 1, "method": method, "params": params}).to_string())
    }

    /// Sends it a signal.
    pub(crate) fn signal(&self, signal: Signal) {
        let pid = Pid::from_raw(self.pid()).expect("a pid");
        kill_process(pid, signal).expect("the helper");
    }

    /// Stops it and waits for its end.
    pub(crate) fn stop(mut self) -> ExitStatus {
        self.signal(Signal::TERM);
        self.wait()
    }

    /// Kills it and waits for its end; what it launched goes on.
    pub(crate) fn kill(mut self) {
        self.signal(Signal::KILL);
        self.wait();
    }

    /// Waits for its end.
    pub(crate) fn wait(&mut self) -> ExitStatus {
        let end = Instant::now() + Duration::from_secs(20);
        loop {
            if let Some(status) = self.child.try_wait().expect("wait") {
                return status;
            }
            assert!(Instant::now() < end, "the helper does not end: {}", log_end());
            std::thread::sleep(Duration::from_millis(2));
        }
    }

    /// Whether it still runs.
    pub(crate) fn runs(&mut self) -> bool {
        self.child.try_wait().expect("wait").is_none()
    }

    /// A number of its `/proc/PID/status`, in KiB: `VmRSS`, `VmHWM`.
    pub(crate) fn status_kib(&self, key: &str) -> u64 {
        let status = fs::read_to_string(format!("/proc/{}/status", self.pid())).expect("status");
        let line = status.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix(':')).expect("the key");
        line.trim().trim_end_matches(" kB").parse().expect("a number")
    }

    /// How many descriptors it has open.
    pub(crate) fn open_files(&self) -> usize {
        fs::read_dir(format!("/proc/{}/fd", self.pid())).expect("fds").count()
    }
}

impl Drop for Helper {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Connects as that user.
pub(crate) fn connect(uid: u32) -> UnixStream {
    connect_to(uid, SOCKET).expect("connect")
}

/// So many connections of that user.
pub(crate) fn connect_many(uid: u32, count: usize) -> Vec<UnixStream> {
    as_user(uid, move || (0..count).map(|_| UnixStream::connect(SOCKET)).collect()).expect("connected")
}

/// Connects to a socket as that user.
pub(crate) fn connect_to(uid: u32, path: &str) -> std::io::Result<UnixStream> {
    let path = path.to_owned();
    let stream = as_user(uid, move || UnixStream::connect(path))?;
    stream.set_read_timeout(Some(Duration::from_secs(30)))?;
    Ok(stream)
}

/// Does it in a thread that is that user: a thread's ids are its own, and go with it.
fn as_user<T: Send + 'static>(
    uid: u32,
    act: impl FnOnce() -> std::io::Result<T> + Send + 'static,
) -> std::io::Result<T> {
    let thread = std::thread::spawn(move || {
        if uid != 0 {
            rustix::thread::set_thread_groups(&[])?;
            rustix::thread::set_thread_gid(Gid::from_raw(uid))?;
            rustix::thread::set_thread_uid(Uid::from_raw(uid))?;
        }
        act()
    });
    thread.join().expect("the thread")
}

/// One request as that user: sent, its reply read to the end.
pub(crate) fn exchange(uid: u32, request: &str) -> Value {
    let mut stream = connect(uid);
    stream.write_all(request.as_bytes()).expect("sent");
    reply(stream)
}

/// Reads a reply: one line, and the end.
pub(crate) fn reply(mut stream: UnixStream) -> Value {
    let mut text = String::new();
    stream.read_to_string(&mut text).expect("a reply");
    assert!(text.ends_with('\n') && text.matches('\n').count() == 1, "no line: {text:?}");
    serde_json::from_str(&text).expect("JSON")
}

/// Ends the side that this end writes.
pub(crate) fn no_more(stream: &UnixStream) {
    stream.shutdown(Shutdown::Write).expect("shutdown");
}

/// The helper's log, as it is.
pub(crate) fn log_text() -> String {
    String::from_utf8_lossy(&fs::read(LOG).unwrap_or_default()).into_owned()
}

/// The end of the log, for a message.
fn log_end() -> String {
    let text = log_text();
    let lines: Vec<&str> = text.lines().collect();
    lines[lines.len().saturating_sub(8)..].join("\n")
}

/// The helper's log: each line must be a JSON object with the keys that all have.
pub(crate) fn log_lines() -> Vec<Value> {
    let text = log_text();
    let read = |line: &str| {
        assert!(line.len() < 4096, "a line of {} bytes", line.len());
        let value: Value = serde_json::from_str(line).unwrap_or_else(|error| panic!("{error}: {line:?}"));
        assert!(["time", "level", "msg"].iter().all(|key| value[key].is_string()), "{line}");
        value
    };
    text.lines().map(read).collect()
}

/// Waits until `holds`, up to ten seconds.
pub(crate) fn eventually(what: &str, holds: impl FnMut() -> bool) {
    eventually_within(Duration::from_secs(10), what, holds);
}

/// The same with another patience.
pub(crate) fn eventually_within(patience: Duration, what: &str, mut holds: impl FnMut() -> bool) {
    let end = Instant::now() + patience;
    while !holds() {
        assert!(Instant::now() < end, "not within {patience:?}: {what}\n{}", log_end());
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// Whether something has that name.
pub(crate) fn exists(path: &str) -> bool {
    Path::new(path).symlink_metadata().is_ok()
}
