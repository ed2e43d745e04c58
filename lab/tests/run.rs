//! What `lab/run` promises outside: statuses, streams, the time limit, and that nothing stays.

use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

fn lab(arguments: &[&str]) -> Command {
    let mut command = Command::new(Path::new(env!("CARGO_MANIFEST_DIR")).join("run"));
    command.args(arguments).stdin(Stdio::null());
    command
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

fn run(arguments: &[&str]) -> Output {
    lab(arguments).output().expect("lab/run")
}

#[test]
fn status_and_both_streams_come_out() {
    let out = run(&["--", "sh", "-c", "uname -n; echo wrong >&2; exit 7"]);
    assert_eq!((text(&out.stdout).as_str(), out.status.code()), ("lab\n", Some(7)), "{}", text(&out.stderr));
    // Before it, lab/run may have told that it made the machine.
    assert!(text(&out.stderr).ends_with("wrong\n"), "{}", text(&out.stderr));
    let out = run(&["--", "sh", "-c", "kill -KILL $$"]);
    assert_eq!(out.status.code(), Some(137));
    let out = run(&["--", "no-such-program"]);
    assert_eq!(out.status.code(), Some(125));
    assert!(text(&out.stderr).contains("can't start no-such-program"), "{}", text(&out.stderr));
}

#[test]
fn more_than_any_buffer_holds_comes_out_whole() {
    let out = run(&["--", "sh", "-c", "seq 300000; seq 300000 >&2"]);
    let expected: String = (1..=300_000).map(|n| format!("{n}\n")).collect();
    assert!(text(&out.stdout) == expected, "{} bytes came, not {}", out.stdout.len(), expected.len());
    assert!(text(&out.stderr).ends_with(&expected));
}

#[test]
fn input_variables_and_files_go_in() {
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("brought");
    std::fs::write(&file, "from outside\n").expect("a file");
    let (file, folder) = (file.to_str().expect("text"), folder.path().to_str().expect("text"));
    let script = format!("cat; echo $SAID; cat brought; cat {folder}/brought; rm brought");
    let mut child = lab(&["--with", file, "--with", folder, "--env", "SAID=said", "--", "sh", "-c", &script])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .expect("lab/run");
    child.stdin.take().expect("a pipe").write_all(b"typed\n").expect("write");
    let out = child.wait_with_output().expect("wait");
    assert_eq!(text(&out.stdout), "typed\nsaid\nfrom outside\nfrom outside\n");
    assert!(Path::new(file).exists());
}

#[test]
fn what_stays_in_the_background_holds_nothing_up() {
    let begun = Instant::now();
    let out = run(&["--timeout", "100", "--", "sh", "-c", "sleep 300 & echo done"]);
    assert_eq!((text(&out.stdout).as_str(), out.status.code()), ("done\n", Some(0)));
    assert!(begun.elapsed() < Duration::from_secs(300));
}

#[test]
fn a_kernel_that_panics_is_told_of() {
    let out = run(&["--", "sh", "-c", "echo before; echo c >/proc/sysrq-trigger; sleep 300"]);
    assert_eq!((text(&out.stdout).as_str(), out.status.code()), ("before\n", Some(125)));
    let said = text(&out.stderr);
    for part in ["the lab's kernel panicked", "Kernel panic - not syncing: sysrq triggered crash", "sysrq_handle_crash"]
    {
        assert!(said.contains(part), "no {part} in\n{said}");
    }
}

#[test]
fn machines_know_nothing_of_each_other() {
    let script = "[ ! -e /root/here ] && touch /root/here && cat /proc/sys/kernel/random/uuid; date +%s";
    let both = [(); 2].map(|()| lab(&["--", "sh", "-c", script]).stdout(Stdio::piped()).spawn().expect("lab/run"));
    let both = both.map(|child| text(&child.wait_with_output().expect("wait").stdout));
    let [one, two] = both.each_ref().map(|said| said.lines().collect::<Vec<_>>());
    assert_eq!((one.len(), two.len()), (2, 2), "{both:?}");
    assert_ne!(one[0], two[0], "the same random numbers");
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).expect("time").as_secs();
    let there: u64 = one[1].parse().expect("seconds");
    assert!(now.abs_diff(there) < 60, "{there} in the lab, {now} here");
}

/// A lab with a command that runs on, and its QEMU's pid.
fn started(arguments: &[&str]) -> (Child, u32) {
    let rest = ["--", "sh", "-c", "echo up; sleep 300"];
    let arguments: Vec<&str> = arguments.iter().chain(&rest).copied().collect();
    let mut child = lab(&arguments).stdout(Stdio::piped()).spawn().expect("lab/run");
    let mut line = String::new();
    BufReader::new(child.stdout.take().expect("a pipe")).read_line(&mut line).expect("read");
    assert_eq!(line, "up\n");
    let children = format!("/proc/{0}/task/{0}/children", child.id());
    let children = std::fs::read_to_string(children).expect("its children");
    (child, children.trim().parse().expect("one child"))
}

fn wait_gone(pid: u32) {
    let begun = Instant::now();
    while Path::new(&format!("/proc/{pid}")).exists() {
        assert!(begun.elapsed() < Duration::from_secs(20), "QEMU {pid} goes on");
        std::thread::sleep(Duration::from_millis(20));
    }
}

#[test]
fn its_time_ends_it() {
    let (mut child, qemu) = started(&["--timeout", "2"]);
    assert_eq!(child.wait().expect("wait").code(), Some(124));
    wait_gone(qemu);
}

#[test]
fn a_signal_ends_it_whole() {
    for (signal, status) in [("TERM", Some(143)), ("INT", Some(130)), ("KILL", None)] {
        let (mut child, qemu) = started(&[]);
        let sent = Command::new("kill").args([format!("-{signal}"), child.id().to_string()]).status().expect("kill");
        assert!(sent.success());
        assert_eq!(child.wait().expect("wait").code(), status, "{signal}");
        wait_gone(qemu);
    }
}
