//! Templates where KVM runs the guests, in the nested lab: on QEMU, and on Firecracker itself where `BANGER_TEST_FIRECRACKER`
//! and `BANGER_TEST_JAILER` name its programs (`docs/lab.md`).

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test may panic")]

#[allow(dead_code, reason = "each file of tests has its own copy of this one")]
mod installed;

use installed::*;
use serde_json::Value;
use std::io::{BufRead, BufReader};
use std::panic::catch_unwind;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

const TEMPLATES: &str = "/var/lib/banger/templates";
const NOTHING: &str = "/run/banger/vms:\n\n/var/lib/banger/vms:\n";
/// Less than elsewhere: all of it lies in the lab's memory.
const SIZE: &str = "--memory 128M --boot-timeout 5m";
/// With systemd.
const INIT: &str = "--init --memory 256M --boot-timeout 5m";

/// What makes a VM another one, a line each.
const FACTS: &str = "hostname; cat /etc/machine-id /proc/sys/kernel/random/boot_id /sys/class/net/eth0/address; \
    head -c 16 /dev/urandom | sha256sum; ip -4 -o addr show eth0 | tr -s ' ' | cut -d' ' -f4; \
    date +%s.%N; cat /etc/hostname; \
    ping -q -c 1 -W 20 172.16.0.1 >/dev/null && echo reached";

/// A run that lasts until its input ends.
struct Run(Child);

impl Run {
    fn begin(kind: &str, script: &str) -> Run {
        let mut run = Command::new("runuser");
        run.args(["-u", "named", "--", "banger", "vm", "run", "--timings", "--json"]).args(kind.split(' '));
        run.args(["--", "sh", "-c", &format!("{script}; echo end; read x")]).current_dir("/");
        Run(run.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap())
    }

    /// What it wrote before it waits.
    fn said(&mut self) -> Vec<String> {
        let lines = BufReader::new(self.0.stdout.as_mut().unwrap()).lines().map(|line| line.unwrap().trim().to_owned());
        lines.take_while(|line| line != "end").collect()
    }

    /// Lets it end: the notes of its stages `disk` and `boot`.
    fn end(mut self) -> [String; 2] {
        drop(self.0.stdin.take());
        let out = self.0.wait_with_output().unwrap();
        let timings: Value = serde_json::from_slice(&out.stderr)
            .unwrap_or_else(|error| panic!("{error}: {}", String::from_utf8_lossy(&out.stderr)));
        println!("figure: first output after {} ms", timings["first_output_us"].as_u64().unwrap() / 1000);
        let stages = timings["stages"].as_array().unwrap().iter().rev();
        ["disk", "boot"].map(|name| {
            let note = stages.clone().find(|stage| stage["name"] == name).unwrap()["note"].as_str().unwrap();
            note.to_owned()
        })
    }
}

/// A machine with Firecracker on it, whose daemon runs; its guests have that root file system.
fn with_firecracker(root: &str) -> Installed {
    let installed = install_with(root);
    shell("install \"$BANGER_TEST_FIRECRACKER\" /usr/local/bin/firecracker; systemctl start bangerd");
    installed
}

fn build(kind: &str) -> String {
    let begun = Instant::now();
    let id = banger(&format!("template build {kind}")).trim().to_owned();
    println!("figure: a template after {:?}", begun.elapsed());
    assert_eq!(left(), NOTHING);
    id
}

fn files(id: &str) -> String {
    shell(&format!("stat -c '%n %a %i %s %Y %Z' {TEMPLATES}/{id}/*"))
}

/// What bangerd says of a VM that was booted instead.
fn why() -> String {
    shell("journalctl -u bangerd -o cat | tail -n 5")
}

/// Two at once: each is another, has memory and disk of its own, and its clock is right. What they told of themselves.
fn two_go_on(kind: &str, id: &str) -> ([Run; 2], Vec<Vec<String>>) {
    let mut runs = ["1", "2"].map(|own| Run::begin(kind, &format!("{FACTS}; echo {own} >/kept")));
    let told: Vec<Vec<String>> = runs.iter_mut().map(Run::said).collect();
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs_f64();
    for own in &told {
        assert_eq!(own.len(), 9, "{told:?}");
        assert!(own[3].starts_with("06:00:ac:10:00:") && own[5].starts_with("172.16.0."), "{own:?}: {}", why());
        assert_eq!((&own[0], own[8].as_str()), (&own[7], "reached"));
        let late = now - own[6].parse::<f64>().expect("a time");
        assert!((-0.1..60.0).contains(&late), "its clock is {late} s off");
    }
    for fact in 0..7 {
        assert_ne!(told[0][fact], told[1][fact], "{told:?}");
    }
    let removed = ended(&format!("template rm {id} 2>/dev/null"));
    assert_eq!(removed, "4\n", "disks lie on it");
    (runs, told)
}

/// Not by the daemon's own word: two processes of Firecracker's that map the one memory for themselves.
fn are_firecrackers(id: &str) {
    let maps = shell(
        "for p in $(pgrep -f '[-]-api-sock'); do cmp /proc/$p/exe \"$BANGER_TEST_FIRECRACKER\"
             grep '/memory$' /proc/$p/maps | cut -d' ' -f2,5 | sort -u; done",
    );
    let memory = shell(&format!("stat -c %i {TEMPLATES}/{id}/memory"));
    assert_eq!(maps, format!("rw-p {memory}rw-p {memory}"));
}

/// Two of QEMU's that hold KVM.
fn are_qemus_with_kvm(_: &str) {
    let open = "for p in $(pgrep qemu-system); do ls -l /proc/$p/fd | grep -cx '.* -> anon_inode:kvm-vm'; done";
    assert_eq!(shell(open), "1\n1\n");
}

/// It ends, and went on from the template.
fn went_on(run: Run, disk: &str, id: &str) {
    let [made, boot] = run.end();
    assert_eq!(made, format!("{disk} on template {id}"));
    assert!(boot.starts_with("no boot: "), "{boot}");
}

/// Two of a template whose VMMs are what `are` asserts, and whose disks are made that way; nothing of them stays.
fn new_vms_go_on(disk: &str, are: fn(&str)) {
    let id = build(SIZE);
    let before = files(&id);
    let (runs, _) = two_go_on(SIZE, &id);
    are(&id);
    runs.into_iter().for_each(|run| went_on(run, disk, &id));
    assert_eq!((files(&id), left()), (before, NOTHING.to_owned()));
    remove(&id);
}

fn remove(id: &str) {
    banger(&format!("template rm {id}"));
    assert_eq!(shell(&format!("ls {TEMPLATES}")), "");
}

/// What a guest's shell says, however it ends: its systemd may not answer yet.
fn said(name: &str, script: &str) -> String {
    shell(&format!("runuser -u named -- banger vm exec {name} -- sh -c '{script}' || :"))
}

/// systemd, D-Bus and the journal know this machine alone.
fn is_systemds([hostname, machine, boot]: [&str; 3]) {
    let up = format!("{machine}\nrunning\n");
    until(&format!("{hostname}: its systemd has gone on"), || {
        said(hostname, "journalctl -m -F _MACHINE_ID; systemctl is-system-running --wait") == up
    });
    let asked = said(
        hostname,
        "systemctl --failed --plain --no-legend; \
         hostnamectl hostname; systemd-run -q --wait --pipe cat /etc/machine-id; \
         busctl call org.freedesktop.systemd1 / org.freedesktop.DBus.Peer GetMachineId; \
         journalctl -m -F _BOOT_ID",
    );
    let boot = boot.replace('-', "");
    assert_eq!(asked, format!("{hostname}\n{machine}\ns \"{machine}\"\n{boot}\n"));
}

/// Stops it in order; its disk, put together by dmsetup's hand out of the template's and its changes, is whole.
fn ends_clean(name: &str, id: &str) {
    let vm: Value = serde_json::from_str(&banger(&format!("vm show {name} --json"))).unwrap();
    let kept = format!("/var/lib/banger/{name}.cow");
    shell(&format!("ln /var/lib/banger/vms/{}/root.cow {kept}", vm["id"].as_str().unwrap()));
    let stopped = banger(&format!("vm stop {name} --timeout 5m 2>&1"));
    assert!(
        stopped.starts_with(&format!("{name}\t")) && stopped.lines().count() == 1,
        "it had to be killed: {stopped}"
    );
    shell(&format!(
        "base=$(losetup -rf --show {TEMPLATES}/{id}/root.ext4); own=$(losetup -f --show {kept})
         dmsetup create kept --table \"0 $(blockdev --getsz $base) snapshot $base $own P 8\"
         e2fsck -fn /dev/mapper/kept; debugfs -R \"cat /kept\" /dev/mapper/kept | grep -q .
         dmsetup remove kept; losetup -d $base $own; rm {kept}"
    ));
}

/// A run that boots, and nobody notices but who asks why.
fn booted(why: &str) {
    let mut run = Run::begin(SIZE, "echo done");
    assert_eq!(run.said(), ["done"]);
    let [disk, boot] = run.end();
    assert!(disk.contains(why) && !boot.starts_with("no boot"), "{why}: {disk}, {boot}");
    assert_eq!(left(), NOTHING);
}

mod lab {
    mod nested {
        mod guests {
            use crate::*;

            #[test]
            fn new_vms_go_on_from_a_template_on_qemu_with_kvm() {
                let _installed = install_with("ROOT");
                shell("systemctl start bangerd");
                new_vms_go_on("layer", are_qemus_with_kvm);
            }

            #[test]
            fn a_clock_that_is_set_back_is_no_templates_fault() {
                let _installed = install_with("ROOT");
                shell("systemctl start bangerd");
                // Again and again while one is made and tried; by more than a guest's clock is let be wrong.
                let over = AtomicBool::new(false);
                let id = thread::scope(|scope| {
                    scope.spawn(|| {
                        while !over.load(Ordering::Relaxed) {
                            shell("date -s '-1 minute'");
                            thread::sleep(Duration::from_millis(1500));
                        }
                    });
                    let made = catch_unwind(|| build(SIZE));
                    over.store(true, Ordering::Relaxed);
                    made.unwrap()
                });
                // And before the template's own time.
                shell("date -s '-1 day'");
                let (runs, _) = two_go_on(SIZE, &id);
                runs.into_iter().for_each(|run| went_on(run, "layer", &id));
                assert_eq!(left(), NOTHING);
                remove(&id);
            }
        }

        mod firecracker {
            use crate::*;

            #[test]
            fn new_vms_go_on_from_a_template_on_firecracker() {
                let _installed = with_firecracker("ROOT");
                new_vms_go_on("dm-snapshot", are_firecrackers);
            }

            #[test]
            fn new_vms_with_systemd_go_on_from_a_template_on_firecracker() {
                let _installed = with_firecracker("ROOT_WITH");
                let id = build(INIT);
                let before = files(&id);
                let ([one, mut other], told) = two_go_on(INIT, &id);
                are_firecrackers(&id);
                told.iter().for_each(|own| is_systemds([0, 1, 2].map(|fact| own[fact].as_str())));
                ends_clean(&told[1][0], &id);
                other.0.wait().unwrap();
                went_on(one, "dm-snapshot", &id);
                assert_eq!((files(&id), left()), (before, NOTHING.to_owned()));
                remove(&id);
            }

            #[test]
            fn whatever_firecracker_refuses_is_booted() {
                let _installed = with_firecracker("ROOT");
                let id = build(SIZE);
                // The helper follows no link.
                let dir = format!("{TEMPLATES}/{id}");
                shell(&format!("mv {dir} /var/lib/banger/moved; ln -s ../moved {dir}"));
                booted(&format!("template {id}: "));
                shell(&format!("rm {dir}; mv /var/lib/banger/moved {dir}"));
                let mut run = Run::begin(SIZE, "echo warm");
                assert_eq!(run.said(), ["warm"]);
                assert!(run.end()[1].starts_with("no boot: "), "once is no reason");

                // A state that Firecracker itself refuses, and nobody before it: twice, and the template is gone.
                shell(&format!("truncate -s 3000 {dir}/state; runuser -u named -- python3 -c '{KNOWN}' {dir}"));
                booted("it loads no such state");
                booted("it loads no such state");
                assert_eq!(shell(&format!("ls {TEMPLATES}")), "");
            }
        }
    }
}

/// Makes the files that are there the template's, as its row has them.
const KNOWN: &str = r#"
import os, sqlite3, sys
def facts(name):
    of = os.stat(sys.argv[1] + "/" + name)
    time = lambda ns: "(%d, %d)" % divmod(ns, 10**9)
    return "%d %d %s %s\n" % (of.st_ino, of.st_size, time(of.st_ctime_ns), time(of.st_mtime_ns))
store = sqlite3.connect("/var/lib/banger/banger.db", timeout=30)
all = "".join(map(facts, ["state", "memory", "root.ext4"]))
assert store.execute("UPDATE templates SET files = ?", [all]).rowcount == 1
store.commit()
"#;
