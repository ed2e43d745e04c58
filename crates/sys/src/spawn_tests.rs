//! What a started program has, and how a start ends that goes wrong.

use super::*;
use std::fs::File;
use std::io::{Read, Seek};
use std::path::Path;

const SOON: Duration = Duration::from_secs(10);

fn start(program: &str, argv: &[&str], output: &File) -> Result<Held, Failed> {
    start_in(Groups::Same, program, argv, output)
}

fn start_in(groups: Groups<'_>, program: &str, argv: &[&str], output: &File) -> Result<Held, Failed> {
    start_as(4242, groups, program, argv, output)
}

fn start_as(uid: u32, groups: Groups<'_>, program: &str, argv: &[&str], output: &File) -> Result<Held, Failed> {
    let program = File::open(program).expect("the program");
    let null = File::open("/dev/null").expect("null");
    let argv: Vec<CString> = argv.iter().map(|arg| CString::new(*arg).expect("no NUL")).collect();
    hold(&Plan {
        program: program.as_fd(),
        is_script: false,
        argv: &argv,
        user: Some(User { uid, gid: 4243, groups: &[4244] }),
        input: null.as_fd(),
        output: output.as_fd(),
        passed: null.as_fd(),
        open_files: 512,
        oom_score_adj: c"200",
        new_pid_namespace: false,
        groups,
    })
}

fn said(mut output: &File) -> String {
    let mut text = String::new();
    output.rewind().expect("rewind");
    output.read_to_string(&mut text).expect("read");
    text
}

fn wait(pidfd: &OwnedFd) -> Option<i32> {
    let status = rustix::process::waitid(WaitId::PidFd(pidfd.as_fd()), WaitIdOptions::EXITED).expect("wait");
    status.and_then(|status| status.exit_status())
}

#[test]
fn the_program_has_no_rights_and_nothing_of_ours() {
    let _not_given = File::open("/dev/zero").expect("open");
    let output = tempfile::tempfile().expect("a file");
    let script = "cat /proc/self/status /proc/self/oom_score_adj; echo fds:; ls /proc/$$/fd; \
                  echo env=$(cat /proc/$$/environ); umask; ulimit -c; ulimit -n; pwd; ps -o sid= -p $$ | tr -d ' '; echo $$";
    let held = start("/bin/sh", &["sh", "-c", script], &output).expect("forked");
    let pid = held.pid();
    let pidfd = held.release(SOON).expect("started");
    assert_eq!(wait(&pidfd), Some(0));
    let text = said(&output);
    let lines: Vec<&str> = text.lines().collect();
    for line in [
        "Uid:\t4242\t4242\t4242\t4242",
        "Gid:\t4243\t4243\t4243\t4243",
        "CapInh:\t0000000000000000",
        "CapPrm:\t0000000000000000",
        "CapEff:\t0000000000000000",
        "CapBnd:\t0000000000000000",
        "CapAmb:\t0000000000000000",
        "NoNewPrivs:\t1",
        "SigBlk:\t0000000000000000",
        "SigIgn:\t0000000000000000",
        "200",
        "env=",
        "0077",
        "0",
        "512",
        "/",
    ] {
        assert!(lines.contains(&line), "no {line:?} in {text}");
    }
    assert!(lines.iter().any(|line| line.strip_prefix("Groups:\t").map(str::trim) == Some("4244")), "{text}");
    assert!(text.contains("fds:\n0\n1\n2\n3\nenv="), "{text}");
    // It leads its session.
    assert_eq!(lines[lines.len() - 2..], [pid.to_string(), pid.to_string()]);
}

#[test]
fn before_it_is_let_go_nothing_runs_and_dropped_it_is_gone() {
    let output = tempfile::tempfile().expect("a file");
    let held = start("/bin/echo", &["echo", "hello"], &output).expect("forked");
    let process = format!("/proc/{}", held.pid());
    assert!(Path::new(&process).exists());
    drop(held);
    assert!(!Path::new(&process).exists());
    assert_eq!(said(&output), "");
}

#[test]
fn who_closes_something_for_others_waits_until_no_child_has_a_copy() {
    let (mut full, tasks) = io::pipe().expect("a pipe");
    // The child enters its group, a pipe that is full, before it closes what it inherited.
    let size = rustix::pipe::fcntl_setpipe_size(&tasks, 4096).expect("the size");
    (&tasks).write_all(&vec![0; size]).expect("written");
    let (mut theirs, ours) = io::pipe().expect("a pipe");
    let (said, done) = std::sync::mpsc::channel();
    std::thread::scope(|scope| {
        let starts = scope.spawn(|| {
            let output = tempfile::tempfile().expect("a file");
            start_in(Groups::Each(&[tasks.as_fd()]), "/bin/echo", &["echo", "hello"], &output).map(drop)
        });
        let forked = || {
            let tasks = std::fs::read_dir("/proc/self/task").expect("tasks").flatten();
            let mut children = tasks.map(|task| std::fs::read_to_string(task.path().join("children")));
            children.any(|children| children.is_ok_and(|children| !children.is_empty()))
        };
        while !forked() {
            std::thread::yield_now();
        }
        scope.spawn(move || {
            drop(ours);
            none_inherits();
            said.send(()).expect("heard");
        });
        let early = done.recv_timeout(Duration::from_millis(200)).is_ok();
        // Before anything here can panic: the child would wait for ever, and this thread for its starter.
        full.read_exact(&mut vec![0; size]).expect("read");
        assert!(!early, "the child has a copy");
        done.recv_timeout(SOON).expect("the child is at its gate");
        assert_eq!(theirs.read(&mut [0]).expect("read"), 0, "somebody has it still");
        starts.join().expect("a thread").expect("forked");
    });
}

#[test]
fn a_child_in_our_memory_is_waited_for_and_has_descriptors_of_its_own() {
    let (mut reader, writer) = io::pipe().expect("a pipe");
    let fd = writer.as_raw_fd();
    let mut said = [0; 2];
    let signals = BlockedSignals::new().expect("blocked");
    let (pid, pidfd) = fork_and_wait(|| {
        let (word, length) = (c"it ran".as_ptr(), 6);
        said = [fd, i32::from(call(libc::SYS_write, [fd as usize, word as usize, length, 0, 0]).is_ok())];
        let _ = call(libc::SYS_close_range, [0, u32::MAX as usize, 0, 0, 0]);
    })
    .expect("a child");
    drop(signals);
    // What it wrote into our memory is there, what it closed isn't closed here.
    assert_eq!(said, [fd, 1]);
    assert!(Path::new(&format!("/proc/{pid}")).exists());
    assert_eq!(wait(&pidfd), Some(127));
    drop(writer);
    let mut text = String::new();
    reader.read_to_string(&mut text).expect("read");
    assert_eq!(text, "it ran");
}

#[test]
fn who_is_let_into_no_group_is_not_started() {
    let output = tempfile::tempfile().expect("a file");
    // Of these two files the second takes nothing.
    let (first, second) = (tempfile::tempfile().expect("a file"), File::open("/dev/null").expect("null"));
    let failed = start_in(Groups::Each(&[first.as_fd(), second.as_fd()]), "/bin/echo", &["echo", "hello"], &output);
    let failed = failed.expect_err("it can't be written");
    assert_eq!((failed.call, failed.error.raw_os_error()), ("write to tasks", Some(libc::EBADF)));
    assert_eq!((said(&first), said(&output)), ("0".into(), String::new()));
    let again = start_in(Groups::Each(&[first.as_fd()]), "/bin/echo", &["echo", "hello"], &output).expect("forked");
    assert_eq!(wait(&again.release(SOON).expect("started")), Some(0));
    assert_eq!((said(&first), said(&output)), ("00".into(), "hello\n".into()));
}

/// One that would run, as root.
fn plan<'a>(program: &'a File, argv: &'a [CString], output: &'a File) -> Plan<'a> {
    Plan {
        program: program.as_fd(),
        is_script: false,
        argv,
        user: None,
        input: program.as_fd(),
        output: output.as_fd(),
        passed: program.as_fd(),
        open_files: 512,
        oom_score_adj: c"0",
        new_pid_namespace: false,
        groups: Groups::Same,
    }
}

#[test]
fn descriptors_that_can_not_be_taken_are_told() {
    let output = tempfile::tempfile().expect("a file");
    let (program, argv) = (File::open("/bin/true").expect("the program"), [c"true".to_owned()]);
    // SAFETY: nothing has this number, and nothing comes of it but an error.
    let none = unsafe { BorrowedFd::borrow_raw(1_000_000) };
    let failed = hold(&Plan { passed: none, ..plan(&program, &argv, &output) }).expect_err("it has no such descriptor");
    assert_eq!((failed.call, failed.error.raw_os_error()), ("descriptors", Some(libc::EBADF)));
}

#[test]
fn what_fails_before_the_gate_is_told_when_it_is_opened() {
    let output = tempfile::tempfile().expect("a file");
    let (program, argv) = (File::open("/bin/true").expect("the program"), [c"true".to_owned()]);
    let plan = Plan { oom_score_adj: c"no number", ..plan(&program, &argv, &output) };
    let held = hold(&plan).expect("forked");
    let pidfd = held.pidfd.as_ref().expect("held");
    // It has ended by itself.
    let ended = rustix::process::waitid(WaitId::PidFd(pidfd.as_fd()), WaitIdOptions::EXITED | WaitIdOptions::NOWAIT);
    assert_eq!(ended.expect("wait").and_then(|status| status.exit_status()), Some(127));
    let failed = held.release(SOON).expect_err("its score is none");
    assert_eq!((failed.call, failed.error.raw_os_error()), ("oom_score_adj", Some(libc::EINVAL)));
}

#[test]
fn one_child_does_not_keep_anothers_gate_open() {
    let output = tempfile::tempfile().expect("a file");
    let mut first = start("/bin/true", &["true"], &output).expect("forked");
    let second = start("/bin/true", &["true"], &output).expect("forked");
    first.gate = None;
    let status = rustix::process::waitid(
        WaitId::PidFd(first.pidfd.as_ref().expect("held").as_fd()),
        WaitIdOptions::EXITED | WaitIdOptions::NOWAIT,
    );
    assert_eq!(status.expect("wait").and_then(|status| status.exit_status()), Some(127));
    drop(second);
}

#[test]
fn what_can_not_be_executed_is_told_with_its_error() {
    let output = tempfile::tempfile().expect("a file");
    let failed = start("/etc/passwd", &["passwd"], &output).expect("forked").release(SOON).expect_err("no program");
    assert_eq!((failed.call, failed.error.raw_os_error()), ("execveat", Some(libc::EACCES)));
}

#[test]
fn who_stops_the_child_on_its_way_does_not_hold_us() {
    let output = tempfile::tempfile().expect("a file");
    let held = start("/bin/true", &["true"], &output).expect("forked");
    let process = format!("/proc/{}", held.pid());
    let pidfd = held.pidfd.as_ref().expect("held");
    rustix::process::pidfd_send_signal(pidfd, rustix::process::Signal::STOP).expect("stopped");
    let before = Instant::now();
    let failed = held.release(Duration::from_millis(200)).expect_err("it is stopped");
    assert_eq!((failed.call, failed.error.kind()), ("wait for the report", io::ErrorKind::TimedOut));
    assert!(before.elapsed() < Duration::from_secs(5) && !Path::new(&process).exists());
}

#[test]
fn the_program_does_not_possess_the_starters_keys() {
    if !Path::new("/proc/keys").exists() {
        return;
    }
    // This test's own thread joins a session keyring and puts a key there, as a login does.
    // SAFETY: no memory is passed.
    let joined = unsafe { libc::syscall(libc::SYS_keyctl, libc::KEYCTL_JOIN_SESSION_KEYRING, 0) };
    assert!(joined > 0, "{}", io::Error::last_os_error());
    let (kind, name, value) = (c"user", c"banger-test-secret", c"secret");
    // SAFETY: three texts of ours, and the length of the third.
    let key = unsafe { libc::syscall(libc::SYS_add_key, kind.as_ptr(), name.as_ptr(), value.as_ptr(), 6, joined) };
    assert!(key > 0, "{}", io::Error::last_os_error());
    let ours = std::fs::read_to_string("/proc/keys").expect("keys");
    assert!(ours.contains("banger-test-secret"), "{ours}");
    let output = tempfile::tempfile().expect("a file");
    let pidfd = start("/bin/cat", &["cat", "/proc/keys"], &output).expect("forked").release(SOON).expect("started");
    assert_eq!(wait(&pidfd), Some(0));
    assert!(!said(&output).contains("banger-test-secret"), "{}", said(&output));
}

#[test]
fn the_programs_keyring_is_none_of_its_users_keys() {
    if !Path::new("/proc/keys").exists() {
        return;
    }
    let output = tempfile::tempfile().expect("a file");
    let script = "cat /proc/keys; echo users:; cat /proc/key-users";
    // Nobody else has this uid.
    let held = start_as(4247, Groups::Same, "/bin/sh", &["sh", "-c", script], &output).expect("forked");
    assert_eq!(wait(&held.release(SOON).expect("started")), Some(0));
    let text = said(&output);
    let (keys, users) = text.split_once("users:\n").expect("two parts");
    // Id, flags, uses, time, permissions, uid, gid, kind, name: those that it may see.
    let fields = |line: &str| -> Vec<String> { line.split_whitespace().map(str::to_owned).collect() };
    let seen: Vec<_> = keys.lines().map(fields).map(|line| line[4..6].to_vec()).collect();
    // It can't be linked, and so not kept, nor written.
    assert_eq!(seen, [["0b000000", "0"]], "{keys}");
    assert!(!users.lines().any(|line| line.trim_start().starts_with("4247:")), "{users}");
}
