//! Twenty cases, each from another agent's trouble, by the agent's program and the host's driver on this machine. Their full
//! counts run with `BANGER_AGENT_FULL=1` (some minutes); otherwise fewer.
//!
//! Those that stand in other files: 15 (orphans) in `many.rs`, 17 (either side of a connection ends first) in `copies.rs`,
//! 20 (a hostile tree) in the library's `copy`.

// A test's helpers are tests too; clippy's setting knows only the functions marked so.
#![allow(clippy::unwrap_used)]

mod support;

use std::io::{Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use agent::host::{Failure, Program, Stage};
use agent::protocol::{Exit, ExitSignal, SignalName, TtySize};
use support::{OK, Service, Whole, code, program, run_on, sh, start, start_on};

/// As often as the case wants, or as the suite has time for.
fn times(full: u32, few: u32) -> std::ops::Range<u32> {
    0..if std::env::var_os("BANGER_AGENT_FULL").is_some() { full } else { few }
}

fn tty(script: &str) -> Program {
    Program { tty: Some(TtySize { rows: 24, cols: 80 }), ..sh(script) }
}

/// Background children that end soon by themselves, whatever a test does.
const BACKGROUND: &str = "sleep 10 & ";

/// kata-containers/kata-containers#1160: a background child holds the streams, and nobody waits for it.
#[test]
fn case_1_a_background_child_holds_up_nothing() {
    let service = Service::start();
    for make in [sh, tty] {
        let begin = Instant::now();
        assert_eq!(run_on(&service, make("trap '' HUP; sleep 10 &")).exit(), OK);
        assert!(begin.elapsed() < Duration::from_secs(5), "{:?}", begin.elapsed());
    }
}

/// kata-containers/kata-containers#7352: the first remedy for case 1 lost output.
#[test]
fn case_2_and_all_output_is_there() {
    let service = Service::start();
    for n in times(1000, 60) {
        let whole = run_on(&service, sh(&format!("{BACKGROUND} head -c 60000 /dev/zero; printf end")));
        assert_eq!((whole.exit(), whole.stdout.len()), (OK, 60_003), "run {n}");
        assert!(whole.stdout.ends_with(b"end"));
    }
}

/// chaitin/agent-compose#364: whatever kills the other side, it is no success.
#[test]
fn case_3_a_lost_call_is_no_success() {
    for _ in times(50, 5) {
        let mut running = start(sh("echo here; sleep 60"), None);
        running.stdout.as_mut().unwrap().read_exact(&mut [0; 5]).unwrap();
        let begin = Instant::now();
        running.agent.as_mut().unwrap().kill().unwrap();
        let ended = running.whole().ended;
        assert!(matches!(&ended, Err(Failure::Lost(Stage::Running))), "{ended:?}");
        assert_eq!(ended.unwrap_err().status(), 125);
        assert!(begin.elapsed() < Duration::from_secs(2), "{:?}", begin.elapsed());
    }
}

/// clearcontainers/agent#196: output and status came by two ways, and the status won.
#[test]
fn case_4_the_status_is_last() {
    let service = Service::start();
    for n in times(5000, 150) {
        let whole = run_on(&service, program(&["/bin/echo", "x"]));
        assert_eq!((whole.exit(), whole.text()), (OK, "x\n"), "run {n}");
    }
}

/// kubernetes/kubernetes#124571: a slow reader.
#[test]
fn case_5_a_slow_reader_gets_all() {
    let most = times(2_000_000, 300_000).end;
    let mut running = start(program(&["/usr/bin/seq", "1", &most.to_string()]), None);
    running.stdin = None;
    let mut stdout = running.stdout.take().unwrap();
    let reader = std::thread::spawn(move || {
        let (mut got, mut piece) = (Vec::new(), vec![0; 100_000]);
        loop {
            let n = stdout.read(&mut piece).unwrap();
            if n == 0 {
                return got;
            }
            got.extend_from_slice(&piece[..n]);
            std::thread::sleep(Duration::from_micros(300));
        }
    });
    assert_eq!(running.whole().exit(), OK);
    let want: Vec<u8> = (1..=most).flat_map(|n| format!("{n}\n").into_bytes()).collect();
    assert!(reader.join().unwrap() == want);
}

/// containerd/containerd#13934: the last bytes of an input were lost when it ended at once.
#[test]
fn case_6_every_byte_of_an_input_arrives() {
    let service = Service::start();
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("f");
    let mebibytes = u64::from(times(500, 16).end);
    let mut running = start_on(service.connect(), None, sh(&format!("cat >{}", file.display())), None);
    let mut stdin = running.stdin.take().unwrap();
    let writer = std::thread::spawn(move || {
        let piece: Vec<u8> = (0..1 << 18).flat_map(|n: u32| n.wrapping_mul(2_654_435_761).to_le_bytes()).collect();
        (0..mebibytes).for_each(|_| stdin.write_all(&piece).unwrap());
        piece
    });
    assert_eq!(running.whole().exit(), OK);
    let (piece, got) = (writer.join().unwrap(), std::fs::read(&file).unwrap());
    assert_eq!(got.len() as u64, mebibytes << 20);
    assert!(got.chunks(1 << 20).all(|chunk| chunk == piece));
}

/// podman#5046, #9096: an archive in and out, and a program that writes byte by byte.
#[test]
fn case_7_archives_through_pipes_and_single_bytes() {
    let service = Service::start();
    let dir = tempfile::tempdir().unwrap();
    let large: Vec<u8> = (0..200_000u32).flat_map(|n| n.wrapping_mul(2_654_435_761).to_le_bytes()).collect();
    std::fs::write(dir.path().join("f"), &large).unwrap();
    let path = dir.path().to_str().unwrap();
    let packed = Command::new("tar").args(["-C", path, "-czf", "-", "f"]).output().unwrap().stdout;
    std::fs::create_dir(dir.path().join("in")).unwrap();
    let out = with_input(&service, sh(&format!("cd {path}/in && tar xzf - && tar czf - f")), &packed);
    assert_eq!(out.exit(), OK);
    let mut tar =
        Command::new("tar").args(["-xzOf", "-"]).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    let mut stdin = tar.stdin.take().unwrap();
    let writer = std::thread::spawn(move || stdin.write_all(&out.stdout));
    assert!(tar.wait_with_output().unwrap().stdout == large);
    writer.join().unwrap().unwrap();
    let count = times(500_000, 20_000).end;
    let bytes = run_on(&service, sh(&format!("dd if=/dev/zero bs=1 count={count} 2>/dev/null | tr '\\0' x")));
    assert_eq!((bytes.exit(), bytes.stdout.len()), (OK, count as usize));
    let direct = run_on(&service, sh(&format!("dd if=/dev/zero bs=1 count={count} 2>/dev/null")));
    assert_eq!(direct.stdout.len(), count as usize);
}

fn with_input(service: &Service, program: Program, input: &[u8]) -> Whole {
    let mut running = start_on(service.connect(), None, program, None);
    let mut stdin = running.stdin.take().unwrap();
    let input = input.to_vec();
    // Who reads no more of it is no failure of this side's.
    let writer = std::thread::spawn(move || drop(stdin.write_all(&input)));
    let whole = running.whole();
    writer.join().unwrap();
    whole
}

/// lxc/incus#1289: a program that closes its input, and speaks much later.
#[test]
fn case_8_an_input_that_the_program_closes_ends_nothing() {
    let service = Service::start();
    let seconds = times(10, 1).end;
    let script = format!("exec <&-; sleep {seconds}; echo late >&2");
    let mut running = start_on(service.connect(), None, sh(&script), None);
    let mut stdin = running.stdin.take().unwrap();
    running.wait_started();
    let _ = stdin.write_all(&[0; 100_000]);
    let whole = running.whole();
    assert_eq!((whole.exit(), &*whole.stderr), (OK, &b"late\n"[..]));
}

/// NVIDIA/OpenShell#828: an input that never ends.
#[test]
fn case_9_an_input_that_nobody_closes_holds_up_nothing() {
    for _ in times(20, 3) {
        let begin = Instant::now();
        let whole = start(program(&["/bin/echo", "hi"]), None).whole();
        assert_eq!((whole.exit(), whole.text()), (OK, "hi\n"));
        assert!(begin.elapsed() < Duration::from_secs(5));
    }
}

/// e2b-dev/infra#1761, kata-containers/kata-containers#11747: the end of the input has to arrive.
#[test]
fn case_10_the_end_of_an_input_arrives() {
    let service = Service::start();
    for n in times(200, 10) {
        for size in [0, 1, 65_536, 300_000] {
            let whole = with_input(&service, program(&["/usr/bin/wc", "-c"]), &vec![b'x'; size]);
            assert_eq!((whole.exit(), whole.text().trim()), (OK, &*size.to_string()), "run {n}");
        }
        assert_ne!(with_input(&service, program(&["/bin/tar", "xf", "-"]), b"").exit(), code(0), "no archive");
    }
}

/// e2b-dev/E2B#1352: answers of all sizes, one after another.
#[test]
fn case_11_large_and_small_answers_in_turn() {
    let service = Service::start();
    for n in times(10_000, 100) {
        let size = if n % 2 == 0 { 8192 } else { 2 };
        let whole = run_on(&service, program(&["/usr/bin/head", "-c", &size.to_string(), "/dev/zero"]));
        assert_eq!((whole.exit(), whole.stdout.len()), (OK, size), "run {n}");
    }
}

/// open-webui/open-terminal#145: a terminal's last bytes.
#[test]
fn case_12_a_terminal_loses_nothing_at_its_end() {
    let service = Service::start();
    for n in times(2000, 60) {
        let whole = run_on(&service, tty("printf x"));
        assert_eq!((whole.exit(), whole.text()), (OK, "x"), "run {n}");
    }
    let whole = run_on(&service, tty("seq 1 20000"));
    assert!(whole.text().ends_with("20000\r\n") && whole.text().lines().count() == 20_000);
}

/// moby/moby#35407: the size is there before the first command asks.
#[test]
fn case_13_the_size_is_there_first() {
    let service = Service::start();
    for _ in times(200, 10) {
        let running = start_on(service.connect(), None, tty("stty size"), None);
        running.control.resize(TtySize { rows: 33, cols: 99 }).unwrap();
        let whole = running.whole();
        // The early one may come before or after the command's question; the call's own never fails to.
        assert!(matches!(whole.text().trim(), "24 80" | "33 99"), "{whole:?}");
    }
}

/// docker/cli#2607: Ctrl-C without a terminal, and a command line that is killed: nobody is left.
#[test]
fn case_14_nobody_is_left_behind() {
    let service = Service::start();
    // A shell that is asked while it still starts something may hear of it late: so only once all of them are there.
    let mut running = start_on(service.connect(), None, sh("(echo ready; exec sleep 61) | cat"), None);
    let leader = running.wait_started();
    running.stdout.as_mut().unwrap().read_exact(&mut [0; 6]).unwrap();
    running.signal(SignalName::Int);
    let interrupted = Exit::Signal(ExitSignal { signal: 2, core: false, oom: false });
    assert_eq!(running.whole().exit(), interrupted);
    gone(leader, Duration::from_secs(2));
    // Those that don't mind HUP have five seconds.
    let running = start_on(service.connect(), None, sh("trap '' HUP; sleep 63 & sleep 64; wait"), None);
    let leader = running.wait_started();
    running.control.abandon().unwrap();
    assert!(matches!(running.whole().ended, Err(Failure::Abandoned)));
    gone(leader, Duration::from_secs(8));
}

/// Waits until no living process is of that session.
fn gone(session: u32, at_most: Duration) {
    let begin = Instant::now();
    loop {
        let output = Command::new("ps").args(["-o", "pid=,stat=", "-s", &session.to_string()]).output().unwrap();
        let text = String::from_utf8(output.stdout).unwrap();
        let alive: Vec<&str> = text.lines().filter(|line| !line.contains('Z')).collect();
        if alive.is_empty() {
            return;
        }
        assert!(begin.elapsed() < at_most, "{alive:?}");
        std::thread::sleep(Duration::from_millis(50));
    }
}

/// apple/container#1277: what can't be started says so at once, with a terminal too.
#[test]
fn case_16_what_can_t_be_started_says_so_at_once() {
    let service = Service::start();
    let dir = tempfile::tempdir().unwrap();
    let script = dir.path().join("script");
    std::fs::write(&script, "#!/no/such/interpreter\n").unwrap();
    std::fs::set_permissions(&script, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    let paths = [("/no/such/program", 127), ("no-such-program", 127), ("/etc", 126), (script.to_str().unwrap(), 126)];
    for (path, status) in paths {
        for size in [None, Some(TtySize { rows: 24, cols: 80 })] {
            let begin = Instant::now();
            let ended = run_on(&service, Program { tty: size, ..program(&[path]) }).ended;
            assert_eq!(ended.unwrap_err().status(), status, "{path} {size:?}");
            assert!(begin.elapsed() < Duration::from_secs(2), "{:?}", begin.elapsed());
        }
    }
}

/// firecracker-microvm/firecracker#1253: asked for while nobody answers yet, with many signals in that time.
#[test]
fn case_18_what_is_asked_early_is_done() {
    let (ours, theirs) = UnixStream::pair().unwrap();
    let script = "trap 'exit 9' INT; echo ready; sleep 5 & wait";
    let mut running = start_on(ours, None, sh(script), None);
    (0..200).for_each(|_| running.signal(SignalName::Int));
    std::thread::sleep(Duration::from_millis(500));
    let mut agent = Command::new(env!("CARGO_BIN_EXE_banger-agent"));
    running.agent = Some(agent.arg("call").stdin(OwnedFd::from(theirs)).spawn().unwrap());
    // One INT for all of them: before the trap is there it ends the shell.
    let exit = running.whole().exit();
    assert!(exit == code(9) || exit == Exit::Signal(ExitSignal { signal: 2, core: false, oom: false }), "{exit:?}");
    let service = Service::start();
    assert_eq!(run_on(&service, program(&["/bin/echo", "works"])).text(), "works\n");
}

/// fhunleth/muontrap#104: the credit is used up when the command ends, and the host sleeps.
#[test]
fn case_19_what_waits_for_a_sleeping_host_is_whole() {
    let service = Service::start();
    let asleep = Duration::from_millis(u64::from(times(5000, 700).end));
    for make in [sh, tty] {
        let mut running = start_on(service.connect(), None, make("head -c 400000 /dev/zero | tr '\\0' x"), None);
        running.stdin = None;
        running.wait_started();
        std::thread::sleep(asleep);
        let whole = running.whole();
        assert_eq!((whole.exit(), whole.stdout.len()), (OK, 400_000));
    }
}

/// kata-containers/runtime#2467: who makes his own end of a pipe not block does that to nobody else's.
#[test]
fn what_a_program_does_to_its_streams_stays_there() {
    let service = Service::start();
    let python = "import os,sys,time\nos.set_blocking(0,False);os.set_blocking(1,False)\n\
                  sys.stderr.write('x'*1000000)";
    let whole = run_on(&service, program(&["/usr/bin/python3", "-c", python]));
    if whole.ended.as_ref().is_err_and(|failure| failure.status() == 127) {
        eprintln!("not run: no python3 here");
        return;
    }
    assert_eq!((whole.exit(), whole.stderr.len()), (OK, 1_000_000));
}

/// libkrun/libkrun#772: both ways at once, more than all credit.
#[test]
fn both_ways_at_once() {
    let service = Service::start();
    let input: Vec<u8> = (0..1 << 18).flat_map(|n: u32| n.to_le_bytes()).collect();
    let whole = with_input(&service, program(&["/bin/cat"]), &input);
    assert!(whole.exit() == OK && whole.stdout == input);
}

/// e2b-dev/infra#2620: who stops reading costs the agent no memory.
#[test]
fn a_flood_that_nobody_reads_costs_no_memory() {
    let running = start(sh("yes"), None);
    running.wait_started();
    let resident = || {
        let status = std::fs::read_to_string(format!("/proc/{}/status", running.agent.as_ref().unwrap().id())).unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
        line.trim().trim_end_matches(" kB").parse::<u64>().unwrap()
    };
    std::thread::sleep(Duration::from_millis(200));
    let before = resident();
    std::thread::sleep(Duration::from_millis(u64::from(times(5000, 300).end)));
    assert!(resident() <= before + 1024, "{before} kB, then {} kB", resident());
    running.control.abandon().unwrap();
    running.whole();
}
