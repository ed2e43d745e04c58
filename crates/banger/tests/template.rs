//! Templates as a user meets them: one is made, new VMs go on from it, and whatever is wrong with it, a command runs.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test may panic")]

#[allow(dead_code, reason = "each file of tests has its own copy of this one")]
mod world;

use serde_json::Value;
use std::collections::BTreeSet;
use std::fs::{self, File};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};
use world::*;

const TEMPLATES: &str = "/var/lib/banger/templates";
const SIZE: [&str; 2] = ["--memory", "256M"];

fn build() -> String {
    let made = json(&[&["template", "build", "--json"], SIZE.as_slice()].concat());
    made["id"].as_str().expect("an id").to_owned()
}

/// Names of stages, and their notes.
type Notes = Vec<(String, String)>;

/// Runs a script in a new VM: what it wrote, and the notes of its stages.
fn sh(more: &[&str], script: &str) -> (String, Notes) {
    let arguments =
        [&["vm", "run", "--timings", "--json"], SIZE.as_slice(), more, &["--", "sh", "-c", script]].concat();
    let out = run(&arguments);
    assert_eq!(out.status.code(), Some(0), "{}", text(&out.stderr));
    let timings: Value = serde_json::from_slice(&out.stderr).expect("timings, and no other word");
    let stages = timings["stages"].as_array().expect("stages");
    let note = |stage: &Value| ["name", "note"].map(|key| stage[key].as_str().expect(key).to_owned()).into();
    let notes: Notes = stages.iter().map(note).collect();
    let took = |stage: &Value| format!("{} {}", stage["name"], stage["us"].as_u64().unwrap_or(0) / 1000);
    let took: Vec<String> = stages.iter().map(took).collect();
    let first = timings["first_output_us"].as_u64().expect("a time") / 1000;
    println!("figure: first output after {first} ms: {}; {:?}", took.join(", "), self::note(&notes, "boot"));
    (text(&out.stdout).to_owned(), notes)
}

/// The last note of a stage.
fn note<'a>(notes: &'a [(String, String)], stage: &str) -> &'a str {
    notes.iter().rev().find(|(name, _)| name == stage).map_or("", |(_, note)| note)
}

fn is_warm(notes: &[(String, String)]) -> bool {
    note(notes, "boot").starts_with("no boot: ")
}

fn digests(id: &str) -> Vec<(u64, u64, i64)> {
    let facts = ["state", "memory", "root.ext4"].map(|file| fs::metadata(format!("{TEMPLATES}/{id}/{file}")).unwrap());
    for file in &facts {
        assert_eq!(file.mode() & 0o777, 0o444);
    }
    facts.iter().map(|file| (file.ino(), file.len(), file.mtime())).collect()
}

#[test]
fn new_vms_go_on_from_a_template_and_each_is_another() {
    isolated("new_vms_go_on_from_a_template_and_each_is_another", |_| {
        let (_, cold) = sh(&[], "echo cold");
        assert!(note(&cold, "disk").contains("no template of files with 256 MiB and 1 CPU"), "{cold:?}");
        let id = build();
        assert!(left().is_empty(), "{:?}", left());
        assert_eq!(build(), id, "one is enough");
        let before = digests(&id);
        let listed = json(&["template", "list", "--json"]);
        assert_eq!(
            (listed[0]["id"].as_str(), listed[0]["memory_bytes"].as_u64()),
            (Some(id.as_str()), Some(256 << 20))
        );
        assert_eq!(json(&["template", "show", &id[..6], "--json"]), listed[0]);

        // Two at a time, each with all that makes it another, the way out, and a disk that it can write.
        let script = "cat /etc/machine-id /proc/sys/kernel/random/boot_id /sys/class/net/eth0/address; \
            head -c 16 /dev/urandom | od -An -tx1; hostname; ip -4 -o addr show eth0 | tr -s ' ' | cut -d' ' -f4; \
            sha256sum </etc/ssh/ssh_host_ed25519_key; cat /etc/hostname; date +%s.%N; echo $$ >/kept; cat /kept; \
            grep -c $(hostname) /etc/hosts; stat -c %a /etc/ssh/ssh_host_ed25519_key; test -s /etc/banger/authorized_keys; \
            ping -q -c 1 -W 20 172.16.0.1 >/dev/null && echo reached";
        let outputs: Vec<(String, Notes, Duration)> = std::thread::scope(|scope| {
            let one = || {
                let (out, notes) = sh(&[], script);
                (out, notes, SystemTime::now().duration_since(UNIX_EPOCH).unwrap())
            };
            let pairs = (0..3).flat_map(|_| [scope.spawn(one), scope.spawn(one)].map(|run| run.join().unwrap()));
            pairs.collect()
        });
        let mut seen: [BTreeSet<String>; 7] = Default::default();
        for (out, notes, ended) in &outputs {
            assert!(is_warm(notes), "{notes:?}");
            assert_eq!(note(notes, "disk"), format!("layer on template {id}"));
            let lines: Vec<&str> = out.lines().map(str::trim).collect();
            assert_eq!(lines.len(), 13, "{out}");
            for (seen, line) in seen.iter_mut().zip(&lines) {
                seen.insert((*line).to_owned());
            }
            assert!(lines[0].len() == 32 && lines[2].starts_with("06:00:ac:10:00:"), "{out}");
            assert_eq!((lines[4], lines[10], lines[11], lines[12]), (lines[7], "1", "600", "reached"), "{out}");
            let clock: f64 = lines[8].parse().expect("a time");
            let late = ended.as_secs_f64() - clock;
            assert!((-0.1..20.0).contains(&late), "the guest's clock is {late} s off");
        }
        // All but addresses, which are used again.
        for (n, seen) in seen.iter().enumerate().filter(|(n, _)| ![2, 5].contains(n)) {
            assert_eq!(seen.len(), outputs.len(), "line {n}: {seen:?}");
        }
        assert_eq!(digests(&id), before, "what they went on from");
        assert!(left().is_empty(), "{:?}", left());

        let (_, notes) = sh(&["--cold"], "true");
        assert!(!is_warm(&notes) && note(&notes, "disk").ends_with("a boot: --cold"), "{notes:?}");
        // So does one that was made before it is started for the first time.
        for (cold, method) in [(&["--cold"][..], planned_method()), (&[], "layer".into())] {
            ok(&[&["vm", "create", "web"], SIZE.as_slice()].concat());
            ok(&[&["vm", "start", "web"], cold].concat());
            assert_eq!(field("web", "/disk/method"), method, "{cold:?}");
            ok(&["vm", "rm", "-f", "web"]);
        }
        let (_, notes) = sh(&["--cpus", "2"], "true");
        assert!(note(&notes, "disk").ends_with("no template of files with 256 MiB and 2 CPUs"), "{notes:?}");
        let removed = json(&["template", "rm", &id, "--json"]);
        assert!(removed[0]["freed_bytes"].as_u64().unwrap() > 1 << 20);
        assert_eq!((fs::read_dir(TEMPLATES).unwrap().count(), ok(&["template", "list", "--quiet"]).as_str()), (0, ""));
    });
}

/// How the disk of one that boots is made here.
fn planned_method() -> String {
    let plan = ok(&[&["vm", "run", "--dry-run", "--cold", "--json=disk"], SIZE.as_slice()].concat());
    serde_json::from_str::<Value>(&plan).expect("JSON")["disk"]["method"].as_str().expect("a method").to_owned()
}

/// That it was booted, and what the reason was.
fn booted(script: &str, why: &str) {
    let (out, notes) = sh(&[], script);
    assert_eq!(out, "done\n");
    assert!(!is_warm(&notes) && note(&notes, "disk").contains(why), "{why}: {notes:?}");
    assert!(left().is_empty(), "{why}: {:?}", left());
}

/// What is done to a file.
type Change = fn(&str);

fn writable(path: &str) -> File {
    File::options().write(true).open(path).unwrap()
}

fn templates() -> usize {
    fs::read_dir(TEMPLATES).map_or(0, Iterator::count)
}

#[test]
fn whatever_is_wrong_with_a_template_the_command_runs() {
    isolated("whatever_is_wrong_with_a_template_the_command_runs", |world| {
        // Written into, cut off, gone.
        let changes: [(&str, Change); 4] = [
            ("root.ext4", |path| writable(path).write_all_at(b"x", 1 << 20).unwrap()),
            ("memory", |path| writable(path).write_all_at(b"x", 64 << 20).unwrap()),
            ("state", |path| writable(path).set_len(5000).unwrap()),
            ("memory", |path| fs::remove_file(path).unwrap()),
        ];
        for (name, change) in changes {
            let id = build();
            change(&format!("{TEMPLATES}/{id}/{name}"));
            booted("echo done", "are not what they were");
            assert_eq!(templates(), 0, "{name}: it is of no use any more");
        }

        // The helper has no room for its memory: that is no failure of the template's, however often.
        let id = build();
        let settings = fs::read_to_string("/etc/banger/root.toml").unwrap();
        fs::write("/etc/banger/root.toml", format!("{settings}[limits]\nmemory_mebibytes = 1\n")).unwrap();
        world.kill_helper();
        booted("echo done", "limits.memory_mebibytes");
        booted("echo done", "limits.memory_mebibytes");
        assert_eq!(templates(), 1);
        fs::write("/etc/banger/root.toml", settings).unwrap();
        world.kill_helper();
        let (_, notes) = sh(&[], "true");
        assert!(is_warm(&notes), "it is as good as before: {notes:?}");

        // A guest that can't be reached: once, and then twice in a row.
        let unreachable = |id: &str| {
            std::thread::scope(|scope| {
                let unreachable = scope.spawn(|| {
                    let sockets = || fs::read_dir("/run/banger/vms").into_iter().flatten().flatten();
                    let vsock = || sockets().map(|dir| dir.path().join("vsock.sock")).find(|path| path.is_symlink());
                    let end = Instant::now() + LONG;
                    while vsock().is_none_or(|path| fs::remove_file(path).is_err()) {
                        assert!(Instant::now() < end);
                    }
                });
                booted("echo done", &format!("template {id}: the guest of the template does not answer"));
                unreachable.join().unwrap();
            });
        };
        unreachable(&id);
        let (_, notes) = sh(&[], "true");
        assert!(is_warm(&notes), "once is no reason: {notes:?}");
        unreachable(&id);
        unreachable(&id);
        assert_eq!(templates(), 0, "it failed twice");
        let id = build();

        // Of another initial RAM disk.
        let initrd = "/var/lib/banger/initrd";
        fs::copy(initrd, "/var/lib/banger/new").unwrap();
        std::os::unix::fs::chown("/var/lib/banger/new", Some(OWNER), Some(OWNER)).unwrap();
        fs::rename("/var/lib/banger/new", initrd).unwrap();
        booted("echo done", &format!("template {id} has another initial RAM disk or agent"));
        assert_ne!(build(), id);
    });
}

#[test]
fn a_daemon_that_is_killed_leaves_no_half_template() {
    isolated("a_daemon_that_is_killed_leaves_no_half_template", |world| {
        let found = |dir: &str, suffix: &str| {
            let entries = fs::read_dir(dir).into_iter().flatten().flatten();
            entries
                .flat_map(|entry| fs::read_dir(entry.path()).into_iter().flatten().flatten())
                .any(|file| file.file_name().to_string_lossy().ends_with(suffix))
        };
        // A folder, a disk, a VMM, the state, the disk in its place, a layer of the try, its VMM.
        let reached: [&dyn Fn() -> bool; 7] = [
            &|| templates() == 1,
            &|| found("/var/lib/banger/vms", "root.ext4"),
            &|| !vmms().is_empty(),
            &|| found(TEMPLATES, "state"),
            &|| found(TEMPLATES, "root.ext4"),
            &|| found("/var/lib/banger/vms", "root.qcow2"),
            &|| found("/var/lib/banger/vms", "root.qcow2") && !vmms().is_empty(),
        ];
        for (n, is_reached) in reached.iter().enumerate() {
            let mut building = banger(&[&["template", "build"], SIZE.as_slice()].concat()).spawn().unwrap();
            let end = Instant::now() + LONG;
            while !is_reached() {
                assert!(Instant::now() < end, "step {n} never came");
            }
            world.kill_daemon();
            assert_ne!(building.wait().unwrap().code(), Some(0), "step {n}");
            until(&format!("step {n}: nothing is left"), || left().is_empty());
            assert_eq!((templates(), ok(&["template", "list", "-q"]).as_str()), (0, ""), "step {n}");
        }
        // What is whole stays; a folder that never got its row goes.
        let id = build();
        let rowless = format!("{TEMPLATES}/0123456789ab");
        fs::create_dir(&rowless).unwrap();
        std::os::unix::fs::chown(&rowless, Some(OWNER), Some(OWNER)).unwrap();
        world.kill_daemon();
        assert_eq!(templates(), 1);
        let (_, notes) = sh(&[], "true");
        assert_eq!(note(&notes, "disk"), format!("layer on template {id}"));

        // A VM from it goes on without its daemon, holds it, and goes with its caller.
        let mut running =
            banger(&[&["vm", "run"], SIZE.as_slice(), &["--", "sh", "-c", "echo up; sleep 1000"]].concat())
                .spawn()
                .unwrap();
        // Not before its caller has the connection: until then it would go with the call.
        read_until(running.stdout.as_mut().unwrap(), "up");
        world.kill_daemon();
        let vm = json(&["vm", "list", "--json"])[0].clone();
        assert_eq!((vm["state"].as_str(), vm["disk"]["method"].as_str()), (Some("running"), Some("layer")));
        assert!(vm["network"]["mac"].as_str().unwrap().starts_with("06:00:ac:10:00:"));
        let out = run(&["template", "rm", &id]);
        assert_eq!(out.status.code(), Some(4), "{}", text(&out.stderr));
        running.kill().unwrap();
        running.wait().unwrap();
        until("nothing is left", || left().is_empty());
        ok(&["template", "rm", &id]);
    });
}
