//! Many VMs from one template, all of them alive at once: each is another, keeps the time, reaches and is reached, and leaves a
//! disk that is whole. And what a template may hold, whose it is, and that no command ran in what was saved.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test may panic")]

#[allow(dead_code, reason = "each file of tests has its own copy of this one")]
mod world;

use rustix::process::{Pid, Signal, kill_process};
use std::collections::BTreeSet;
use std::fs;
use std::io::{BufRead, BufReader, ErrorKind, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};
use world::*;

const SIZE: [&str; 2] = ["--memory", "256M"];
/// Where there are many: what none of them has touched yet counts when the next one starts.
const SMALL: [&str; 2] = ["--memory", "128M"];
/// Those with systemd.
const INIT: [&str; 3] = ["--init", "--memory", "384M"];
const SMALL_INIT: [&str; 3] = ["--init", "--memory", "192M"];
/// So many are started at once.
const TURN: usize = 4;
/// How far a guest's clock may be off, as far as the round trips of the looks can tell.
const OFF: Duration = Duration::from_millis(10);
/// Its daemon has looked at it within this time, a moment behind its start.
const SET: Duration = Duration::from_secs(5);
/// Looks at each guest's clock; the answers that were quick tell most.
const LOOKS: usize = 10;
/// What a guest tells of itself, a line each. No two may tell the same.
const OWN: [&str; 8] = [
    "hostname",
    "cat /etc/machine-id",
    "cat /proc/sys/kernel/random/boot_id",
    "cat /sys/class/net/eth0/address",
    "ip -4 -o addr show eth0 | tr -s ' ' | cut -d' ' -f4",
    "sha256sum </etc/ssh/ssh_host_ed25519_key",
    "head -c 32 /dev/urandom | sha256sum",
    // bash asks getrandom(2) for each.
    "echo $SRANDOM $SRANDOM $SRANDOM $SRANDOM",
];

/// A VM whose command waits for questions.
struct Fork {
    child: Child,
    asks: ChildStdin,
    answers: BufReader<ChildStdout>,
    /// What it told of itself.
    own: Vec<String>,
}

impl Fork {
    fn begin(kind: &[&str]) -> Fork {
        let script = format!(
            "{}; ping -q -c 1 -W 60 172.16.0.1 >/dev/null && echo reached; echo $RANDOM >/written; \
             while read -r; do echo $EPOCHREALTIME; done",
            OWN.join("; ")
        );
        let all = [&["vm", "run"], kind, &["--", "bash", "-c", &script]].concat();
        let mut child = banger(&all).stdin(Stdio::piped()).spawn().unwrap();
        let asks = child.stdin.take().unwrap();
        let mut fork = Fork { asks, answers: BufReader::new(child.stdout.take().unwrap()), child, own: Vec::new() };
        fork.own = OWN.iter().map(|_| fork.line()).collect();
        assert_eq!(fork.line(), "reached");
        fork
    }

    fn line(&mut self) -> String {
        let mut line = String::new();
        self.answers.read_line(&mut line).unwrap();
        assert!(line.ends_with('\n'), "{:?} said no more than {line:?}", self.own);
        line.trim().to_owned()
    }

    fn name(&self) -> &str {
        &self.own[0]
    }

    /// Between what its clock is ahead of this one, in seconds: an answer was true at some time between question and answer.
    fn ahead(&mut self) -> (f64, f64) {
        let now = || SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs_f64();
        let (mut least, mut most) = (f64::NEG_INFINITY, f64::INFINITY);
        for _ in 0..LOOKS {
            let asked = now();
            self.asks.write_all(b"\n").unwrap();
            let told: f64 = self.line().parse().expect("a time");
            (least, most) = (least.max(told - now()), most.min(told - asked));
        }
        (least, most)
    }

    /// By its name and the address that this has: some port answers that nobody listens there, or somebody does.
    fn is_reached(&self) -> bool {
        let last = address_of(&format!("{}.vm", self.name())).expect("a name");
        assert_eq!(self.own[4], format!("172.16.0.{last}/24"));
        let to = SocketAddr::from((Ipv4Addr::new(172, 16, 0, last), 9));
        match TcpStream::connect_timeout(&to, LONG) {
            Ok(_) => true,
            Err(error) => error.kind() == ErrorKind::ConnectionRefused,
        }
    }

    /// systemd is content, and its journal has what is of this machine alone.
    fn is_systemds(&self) {
        comes_to_say(self.name(), "systemctl is-active ssh; systemctl is-system-running --wait", "active\nrunning");
        comes_to_say(self.name(), "journalctl -m -F _MACHINE_ID", &self.own[1]);
        comes_to_say(self.name(), "journalctl -m -F _BOOT_ID", &self.own[2].replace('-', ""));
    }
}

/// A command of a VM, and that it says so within its time.
fn comes_to_say(name: &str, script: &str, word: &str) {
    until(&format!("{name}: {word:?} of {script}"), || {
        text(&run(&["vm", "exec", name, "--", "sh", "-c", script]).stdout).trim() == word
    });
}

/// Its disk's layer under a second name, which stays when the VM goes.
fn keep_layer(name: &str) -> PathBuf {
    let id = field(name, "/id");
    let kept = PathBuf::from(format!("/var/lib/banger/{name}.qcow2"));
    fs::hard_link(format!("/var/lib/banger/vms/{}/root.qcow2", id.as_str().unwrap()), &kept).unwrap();
    kept
}

/// What e2fsck says of the layer over the template's disk, with each of these arguments in turn. By QEMU's own tool and not
/// by ours.
fn checked(template: &str, layer: &Path, ways: &[&str]) -> Vec<Option<i32>> {
    let disk = layer.with_extension("raw");
    let told = serde_json::json!({
        "driver": "qcow2", "file": {"driver": "file", "filename": layer},
        "backing": {"driver": "raw", "file": {"driver": "file", "filename": format!("/var/lib/banger/templates/{template}/root.ext4")}},
    });
    let copied = Command::new("qemu-img").args(["convert", "-O", "raw", &format!("json:{told}")]).arg(&disk).output();
    let copied = copied.expect("qemu-img, of qemu-utils");
    assert!(copied.status.success(), "{}", text(&copied.stderr));
    let check = |way: &&str| Command::new("e2fsck").arg(way).arg(&disk).output().expect("e2fsck").status.code();
    let said = ways.iter().map(check).collect();
    fs::remove_file(disk).unwrap();
    fs::remove_file(layer).unwrap();
    said
}

fn build(kind: &[&str]) -> String {
    let made = json(&[&["template", "build", "--json"], kind].concat());
    made["id"].as_str().unwrap().to_owned()
}

fn forks(many: usize, kind: &[&str]) {
    let (template, begun) = (build(kind), Instant::now());
    let mut forks: Vec<Fork> = Vec::new();
    while forks.len() < many {
        let turn = TURN.min(many - forks.len());
        forks.extend(std::thread::scope(|scope| {
            let begun: Vec<_> = (0..turn).map(|_| scope.spawn(|| Fork::begin(kind))).collect();
            begun.into_iter().map(|fork| fork.join().unwrap()).collect::<Vec<_>>()
        }));
    }
    let listed = json(&["vm", "list", "--json"]);
    let layers = listed.as_array().unwrap().iter().filter(|vm| vm["disk"]["method"] == "layer").count();
    assert_eq!((layers, vmms().len()), (many, many), "all go on from the template");
    for (nth, what) in OWN.iter().enumerate() {
        let told: BTreeSet<&str> = forks.iter().map(|fork| fork.own[nth].as_str()).collect();
        assert_eq!(told.len(), many, "{what}: {told:?}");
    }
    assert!(forks.iter().all(|fork| fork.own[1].len() == 32 && fork.own[3].starts_with("06:00:ac:10:00:")));
    let mut behind = Vec::new();
    for fork in &mut forks {
        let off = OFF.as_secs_f64();
        let (mut least, mut most) = fork.ahead();
        // The last ones may not have been looked at by their daemon yet.
        let end = Instant::now() + SET;
        while !(least <= off && most >= -off) && Instant::now() < end {
            std::thread::sleep(OFF);
            (least, most) = fork.ahead();
        }
        assert!(least <= off && most >= -off, "{}'s clock is {least} to {most} s ahead", fork.name());
        behind.push((-(least + most) * 500.0).round());
        assert!(fork.is_reached(), "{}", fork.name());
        if kind.contains(&"--init") {
            fork.is_systemds();
        }
    }
    println!("\nfigure: {many} are there and were looked at after {} s", begun.elapsed().as_secs());
    println!("figure: so many ms each of {many} clocks is late: {behind:?}");

    // Half of them are stopped, half of them lose their VMM.
    for (nth, mut fork) in forks.into_iter().enumerate() {
        let (name, layer) = (fork.name().to_owned(), keep_layer(fork.name()));
        let is_killed = nth % 2 == 1;
        if is_killed {
            let vmm = field(&name, "/vmm/pid").as_i64().and_then(|pid| Pid::from_raw(pid as i32)).expect("a process");
            kill_process(vmm, Signal::KILL).unwrap();
        } else {
            ok(&["vm", "stop", &name]);
        }
        fork.child.wait().unwrap();
        until(&format!("{name} is gone"), || !ok(&["vm", "list", "--quiet"]).lines().any(|line| line == name));
        if is_killed {
            let said = checked(&template, &layer, &["-fp", "-fn"]);
            assert!(matches!(said[..], [Some(0 | 1), Some(0)]), "{name}, killed: {said:?}");
        } else {
            assert_eq!(checked(&template, &layer, &["-fn"]), [Some(0)], "{name}, stopped");
        }
    }
    until("nothing is left", || left().is_empty());
    println!("figure: {many} are gone after {} s", begun.elapsed().as_secs());
}

#[test]
fn twelve_vms_from_one_template_are_twelve() {
    isolated("twelve_vms_from_one_template_are_twelve", |_| forks(12, &SIZE));
}

#[test]
fn four_vms_with_systemd_from_one_template_are_four() {
    isolated_with_packages("four_vms_with_systemd_from_one_template_are_four", |_| forks(4, &INIT));
}

#[test]
#[ignore = "five minutes and 20 GB; by hand, as the next one"]
fn a_hundred_vms_with_systemd_from_one_template_are_a_hundred() {
    isolated_with_packages("a_hundred_vms_with_systemd_from_one_template_are_a_hundred", |_| {
        forks(100, &SMALL_INIT);
    });
}

#[test]
#[ignore = "three minutes and 10 GB; by hand: cargo nextest run -p banger --test forks --run-ignored all"]
fn a_hundred_vms_from_one_template_are_a_hundred() {
    isolated("a_hundred_vms_from_one_template_are_a_hundred", |_| forks(100, &SMALL));
}

/// Whether a file has that text, wherever.
fn holds(path: &Path, text: &str) -> bool {
    let found = Command::new("grep").args(["-qaF", "-e", text]).arg(path).status().expect("grep").code();
    found.filter(|code| *code < 2).expect("grep can read it") == 0
}

/// What debugfs shows of a file in a disk; nothing where it is not there.
fn in_disk(disk: &Path, path: &str) -> Vec<u8> {
    Command::new("debugfs").arg("-R").arg(format!("cat {path}")).arg(disk).output().expect("debugfs").stdout
}

#[test]
fn a_template_holds_nobodys_and_is_its_owners() {
    isolated("a_template_holds_nobodys_and_is_its_owners", |_| {
        // What a user's command has, of the same image, before and after.
        let word = format!("word-{}", std::process::id());
        let run = || ok(&[&["vm", "run"], SIZE.as_slice(), &["-e", &format!("TOKEN={word}"), "--", "env"]].concat());
        assert!(run().contains(&word));
        // Whoever wants to run something in a VM that becomes a template is refused. The second of that name goes on from
        // the template, as a try, and has a machine-id.
        let script = format!("test -s /etc/machine-id && echo {word}");
        let made = std::thread::scope(|scope| {
            let building = scope.spawn(|| build(&SIZE));
            let mut refused = 0;
            while !building.is_finished() {
                let drafts = fs::read_dir("/var/lib/banger/templates").into_iter().flatten().flatten();
                let names: Vec<String> = drafts.map(|entry| entry.file_name().into_string().unwrap()).collect();
                for id in names.iter().filter_map(|name| name.strip_suffix(".draft")) {
                    let name = format!("template-{id}");
                    let out = world::run(&["vm", "exec", &name, "--", "sh", "-c", &script]);
                    assert!(!out.status.success() || text(&out.stdout).contains(&word), "it ran in {name}");
                    let said = text(&out.stderr);
                    refused += usize::from(said.contains("[not_running]") || said.contains("[no_such_vm]"));
                }
            }
            assert!(refused > 0, "it was never seen");
            building.join().unwrap()
        });
        assert!(run().contains(&word));
        let folder = PathBuf::from(format!("/var/lib/banger/templates/{made}"));
        let files = ["state", "memory", "root.ext4"].map(|file| folder.join(file));
        // The owner's private key, by the lines of its body, and the command's word.
        let private = fs::read_to_string("/var/lib/banger/ssh/id_ed25519").unwrap();
        // Its first line is every key's.
        let body: Vec<&str> = private.lines().filter(|line| line.len() == 70).skip(1).collect();
        assert!(body.len() > 2 && holds(Path::new("/var/lib/banger/ssh/id_ed25519"), body[0]));
        let secrets: Vec<&str> = body.into_iter().chain([word.as_str()]).collect();
        for file in &files {
            for secret in &secrets {
                assert!(!holds(file, secret), "{} has what is nobody's business", file.display());
            }
        }
        let disk = &files[2];
        assert_eq!(in_disk(disk, "/etc/hostname"), b"banger\n", "debugfs reads it");
        for none in ["/etc/machine-id", "/etc/ssh/ssh_host_ed25519_key", "/var/lib/systemd/random-seed"] {
            assert_eq!(text(&in_disk(disk, none)), "", "{none}");
        }
        // Another user of this machine sees none of it, and can't ask for a VM from it.
        let as_other = |program: &str, arguments: &[&str]| {
            let mut command = Command::new(program);
            command.args(arguments).uid(OTHER).gid(OTHER).current_dir("/").env("LC_ALL", "C");
            let out = command.output().expect(program);
            (out.status.success(), text(&out.stderr).to_owned())
        };
        for file in files.iter().chain([&folder]) {
            let (read, said) = as_other("cp", &["-r", file.to_str().unwrap(), "/dev/null"]);
            assert!(!read && said.contains("Permission denied"), "{}: {said}", file.display());
        }
        let (ran, said) = as_other("/run/bin/banger", &["vm", "run", "--", "true"]);
        assert!(!ran, "{said}");
        // Nor can one of its VMs: what that writes is in its own layer.
        let before = files.each_ref().map(|file| fs::metadata(file).unwrap().modified().unwrap());
        ok(&[&["vm", "run"], SIZE.as_slice(), &["--", "sh", "-c", "echo own >/etc/own; sync"]].concat());
        assert_eq!(before, files.each_ref().map(|file| fs::metadata(file).unwrap().modified().unwrap()));
        assert_eq!(in_disk(disk, "/etc/own"), b"");
    });
}
