//! Saving a VM and loading it, with a real QEMU and a guest of a few bytes that echoes what it is told.

mod support;

use std::io::{Read as _, Write as _};
use std::os::unix::fs::MetadataExt as _;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use support::{PATIENCE, Vmm, tiny_kernel, wait_until_gone};

const MIB: u64 = 1 << 20;

/// Where a snapshot lies.
struct Saved {
    dir: tempfile::TempDir,
}

impl Saved {
    fn state(&self) -> PathBuf {
        self.dir.path().join("state")
    }

    fn memory(&self) -> PathBuf {
        self.dir.path().join("memory")
    }

    fn create(&self) -> String {
        serde_json::json!({"snapshot_path": self.state(), "mem_file_path": self.memory()}).to_string()
    }

    fn load(&self, resume: bool) -> String {
        self.load_with(&serde_json::json!({"resume_vm": resume}))
    }

    fn load_with(&self, more: &serde_json::Value) -> String {
        let mut body = serde_json::json!({
            "snapshot_path": self.state(),
            "mem_backend": {"backend_type": "File", "backend_path": self.memory()},
        });
        for (key, value) in more.as_object().expect("an object") {
            body[key] = value.clone();
        }
        body.to_string()
    }
}

/// A guest of 32 MiB that has said hello.
fn booted(more: &[(&str, &str, serde_json::Value)]) -> Vmm {
    let mut vmm = Vmm::start(&[]);
    let kernel = tiny_kernel(vmm.dir.path(), "hello from the guest\n");
    vmm.done("PUT", "/machine-config", r#"{"vcpu_count":1,"mem_size_mib":32}"#);
    vmm.done("PUT", "/boot-source", &serde_json::json!({"kernel_image_path": kernel}).to_string());
    for (method, path, body) in more {
        vmm.done(method, path, &body.to_string());
    }
    vmm.done("PUT", "/actions", r#"{"action_type":"InstanceStart"}"#);
    vmm.wait_for_word("hello from the guest");
    vmm
}

/// A paused guest and what was saved of it.
fn saved(more: &[(&str, &str, serde_json::Value)]) -> (Vmm, Saved) {
    let vmm = booted(more);
    let saved = Saved { dir: tempfile::tempdir().expect("a directory") };
    vmm.done("PATCH", "/vm", r#"{"state":"Paused"}"#);
    vmm.done("PUT", "/snapshot/create", &saved.create());
    (vmm, saved)
}

/// Sends a byte to the console and waits for its echo.
fn echo(vmm: &mut Vmm, byte: u8) {
    vmm.child.stdin.as_mut().expect("a pipe").write_all(&[byte]).expect("written");
    let mut got = [0];
    vmm.child.stdout.as_mut().expect("a pipe").read_exact(&mut got).expect("an echo");
    assert_eq!(got, [byte]);
}

fn resume(vmm: &Vmm) {
    vmm.done("PATCH", "/vm", r#"{"state":"Resumed"}"#);
}

#[test]
fn a_saved_guest_goes_on_here_and_there_and_is_saved_again() {
    let (mut first, kept) = saved(&[]);
    let seen = std::fs::metadata(kept.memory()).expect("a file");
    assert_eq!(seen.len(), 32 * MIB);
    assert!(seen.blocks() * 512 < 8 * MIB, "the file is {} blocks, not sparse", seen.blocks());
    assert_eq!(std::fs::read_dir(kept.dir.path()).expect("read").count(), 2, "two files and no more");

    // The same moment can be saved again, and the guest goes on.
    let state = std::fs::read(kept.state()).expect("read");
    first.done("PUT", "/snapshot/create", &kept.create());
    assert!(state == std::fs::read(kept.state()).expect("read"));
    resume(&first);
    echo(&mut first, b'a');

    // Two from one, at once; one of them paused first.
    let mut second = Vmm::start(&[]);
    let mut third = Vmm::start(&[]);
    second.done("PUT", "/snapshot/load", &kept.load(true));
    third.done("PUT", "/snapshot/load", &kept.load(false));
    assert_eq!((&second.get("/")["state"], &third.get("/")["state"]), (&"Running".into(), &"Paused".into()));
    assert_eq!(second.get("/vm/config")["machine-config"]["mem_size_mib"], 32);
    echo(&mut second, b'b');
    resume(&third);
    echo(&mut third, b'c');
    echo(&mut first, b'd');

    // What was loaded can be saved, and so on.
    let next = Saved { dir: tempfile::tempdir().expect("a directory") };
    second.done("PATCH", "/vm", r#"{"state":"Paused"}"#);
    second.done("PUT", "/snapshot/create", &next.create());
    let mut fourth = Vmm::start(&[]);
    fourth.done("PUT", "/snapshot/load", &next.load(true));
    echo(&mut fourth, b'e');
    resume(&second);
    echo(&mut second, b'f');
    fourth.child.stdin.as_mut().expect("a pipe").write_all(b"r").expect("written");
    assert!(fourth.ended().success());
}

#[test]
fn the_files_of_a_snapshot_stay_as_they_are() {
    let (_first, kept) = saved(&[]);
    let digest = |path: &Path| Command::new("sha256sum").arg(path).output().expect("sha256sum").stdout;
    let before = (digest(&kept.state()), digest(&kept.memory()));
    let mut second = Vmm::start(&[]);
    second.done("PUT", "/snapshot/load", &kept.load(true));
    for _ in 0..20 {
        echo(&mut second, b'x');
    }
    assert_eq!((digest(&kept.state()), digest(&kept.memory())), before);
}

#[test]
fn what_is_in_the_wrong_state_is_refused_in_firecrackers_words() {
    let vmm = booted(&[]);
    let kept = Saved { dir: tempfile::tempdir().expect("a directory") };
    let said = vmm.refused("PUT", "/snapshot/create", &kept.create());
    assert!(said.ends_with("Operation not allowed: save/restore unavailable while running"), "{said}");
    let said = vmm.refused("PUT", "/snapshot/load", &kept.load(true));
    assert_eq!(said, "The requested operation is not supported after starting the microVM.");
    vmm.done("PATCH", "/vm", r#"{"state":"Paused"}"#);
    let same = serde_json::json!({"snapshot_path": kept.state(), "mem_file_path": kept.state()});
    vmm.refused("PUT", "/snapshot/create", &same.to_string());
    let diff = serde_json::json!({
        "snapshot_type": "Diff", "snapshot_path": kept.state(), "mem_file_path": kept.memory(),
    });
    assert!(vmm.refused("PUT", "/snapshot/create", &diff.to_string()).contains("not supported"));
    for bad in ["/dev/null", "/", "/no/such/place"] {
        let body = serde_json::json!({"snapshot_path": kept.state(), "mem_file_path": bad});
        vmm.refused("PUT", "/snapshot/create", &body.to_string());
    }
    assert_eq!(std::fs::read_dir(kept.dir.path()).expect("read").count(), 0);
    resume(&vmm);

    let other = Vmm::start(&[]);
    other.done("PUT", "/machine-config", r#"{"vcpu_count":1,"mem_size_mib":32}"#);
    let said = other.refused("PUT", "/snapshot/load", &kept.load(true));
    let why = "Loading a microVM snapshot not allowed after configuring boot-specific resources.";
    assert_eq!(said, format!("Load snapshot error: {why}"));
    other.get("/");
    for more in [
        serde_json::json!({"clock_realtime": true}),
        serde_json::json!({"huge_pages": "2M"}),
        serde_json::json!({"mem_backend": {"backend_type": "Uffd", "backend_path": "/u"}}),
    ] {
        let fresh = Vmm::start(&[]);
        assert!(fresh.refused("PUT", "/snapshot/load", &kept.load_with(&more)).contains("not supported"), "{more}");
        assert_eq!(fresh.get("/")["state"], "Not started");
    }
}

/// Each bad set is refused with the reason, and as with Firecracker the process ends after that, with 1.
#[test]
fn a_bad_set_is_refused_and_ends_the_process() {
    let (_first, kept) = saved(&[]);
    let (state, memory) = (std::fs::read(kept.state()).expect("read"), std::fs::read(kept.memory()).expect("read"));
    let other = booted(&[]);
    other.done("PATCH", "/vm", r#"{"state":"Paused"}"#);
    let mixed = Saved { dir: tempfile::tempdir().expect("a directory") };
    other.done("PUT", "/snapshot/create", &mixed.create());
    let mut changed = memory.clone();
    changed[0x10_0100] ^= 1;
    let garbage: Vec<u8> = (0..100_000u32).map(|n| (n.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
    let text = String::from_utf8_lossy(&state[27..]).into_owned();
    let header = &text[..text.find("QEVM").expect("the stream")];
    let elsewhere = {
        let other = header.replacen("\"version\":\"", "\"version\":\"9", 1);
        let mut file = state[..23].to_vec();
        file.extend_from_slice(&(other.len() as u32).to_le_bytes());
        file.extend_from_slice(other.as_bytes());
        file.extend_from_slice(&state[27 + header.len()..]);
        file
    };
    for (state, memory, said) in [
        (&garbage[..], &memory[..], "no snapshot of banger-qemu's"),
        (&b""[..], &memory, "ends too early"),
        (&state[..state.len() / 2], &memory, "its header says another number"),
        (&state[..100], &memory, "header"),
        (&elsewhere, &memory, "another QEMU"),
        (&state, &memory[..16 * MIB as usize], "the file has 16777216 bytes"),
        (&state, &changed, "not the memory that was saved with this state"),
    ] {
        let bad = Saved { dir: tempfile::tempdir().expect("a directory") };
        std::fs::write(bad.state(), state).expect("written");
        std::fs::write(bad.memory(), memory).expect("written");
        let mut vmm = Vmm::start(&[]);
        let answer = vmm.refused("PUT", "/snapshot/load", &bad.load(true));
        assert!(answer.starts_with("Load snapshot error: Failed to restore from snapshot:"), "{answer}");
        assert!(answer.contains(said), "{answer} is not about {said}");
        assert_eq!(vmm.ended().code(), Some(1), "{said}");
        assert!(!vmm.api().exists());
    }
    let mut vmm = Vmm::start(&[]);
    let gone = Saved { dir: tempfile::tempdir().expect("a directory") };
    let answer = vmm.refused("PUT", "/snapshot/load", &gone.load(true));
    assert!(answer.contains("Failed to open snapshot file"), "{answer}");
    assert_eq!(vmm.ended().code(), Some(1));
}

/// A stream of QEMU's that is wrong while its sum is right: what only QEMU can find out ends it, and nothing hangs.
#[test]
fn a_stream_that_qemu_refuses_is_told() {
    let (mut first, kept) = saved(&[]);
    let before = std::fs::read(kept.state()).expect("read");
    let overridden = serde_json::json!({"network_overrides": [{"iface_id": "eth7", "host_dev_name": "tap7"}]});
    let mut vmm = Vmm::start(&[]);
    let answer = vmm.refused("PUT", "/snapshot/load", &kept.load_with(&overridden));
    assert!(answer.ends_with("Unknown Network Device."), "{answer}");
    assert_eq!(vmm.ended().code(), Some(1));
    // Another machine than the state's: the header says two CPUs and a device more.
    let length = u32::from_le_bytes(before[23..27].try_into().expect("four bytes")) as usize;
    let header = String::from_utf8(before[27..27 + length].to_vec()).expect("text");
    let header = header.replacen("\"drives\":[]", "\"entropy\":{},\"drives\":[]", 1);
    let header = header.replacen("\"mem_size_mib\":32", "\"mem_size_mib\":64", 1);
    let mut file = before[..23].to_vec();
    file.extend_from_slice(&(header.len() as u32).to_le_bytes());
    file.extend_from_slice(header.as_bytes());
    file.extend_from_slice(&before[27 + length..]);
    std::fs::write(kept.state(), file).expect("written");
    std::fs::File::options().write(true).open(kept.memory()).and_then(|file| file.set_len(64 * MIB)).expect("longer");
    let mut vmm = Vmm::start(&[]);
    let begin = Instant::now();
    let answer = vmm.refused("PUT", "/snapshot/load", &kept.load(true));
    assert!(answer.contains("Failed to build microVM from snapshot"), "{answer}");
    assert!(begin.elapsed() < PATIENCE, "{:?}", begin.elapsed());
    assert_eq!(vmm.ended().code(), Some(1));
    resume(&first);
    echo(&mut first, b'a');
}

/// A process that is killed while it saves leaves what was there before under the final names.
#[test]
fn a_killed_save_leaves_no_half_file() {
    for delay in [0, 2, 5, 10, 20, 40] {
        let vmm = booted(&[]);
        vmm.done("PATCH", "/vm", r#"{"state":"Paused"}"#);
        let kept = Saved { dir: tempfile::tempdir().expect("a directory") };
        std::fs::write(kept.state(), "old").expect("written");
        std::fs::write(kept.memory(), "old").expect("written");
        let qemu = vmm.qemu().expect("QEMU");
        let mut socket = std::os::unix::net::UnixStream::connect(vmm.api()).expect("connected");
        let body = kept.create();
        let request = format!("PUT /snapshot/create HTTP/1.1\r\nContent-Length: {}\r\n\r\n{body}", body.len());
        socket.write_all(request.as_bytes()).expect("written");
        std::thread::sleep(Duration::from_millis(delay));
        drop(vmm);
        wait_until_gone(qemu);
        let (state, memory) = (std::fs::read(kept.state()).expect("read"), std::fs::read(kept.memory()).expect("read"));
        assert!(memory == b"old" || memory.len() as u64 == 32 * MIB, "{} bytes", memory.len());
        assert!(state == b"old" || memory.len() as u64 == 32 * MIB, "a state without its memory");
    }
}

#[test]
fn the_devices_and_their_limits_come_back() {
    let dir = tempfile::tempdir().expect("a directory");
    let disk = dir.path().join("disk");
    std::fs::write(&disk, vec![0; 1 << 20]).expect("written");
    let drive = serde_json::json!({
        "drive_id": "d", "is_root_device": false, "is_read_only": true, "path_on_host": disk,
        "rate_limiter": {"bandwidth": {"size": 1000, "refill_time": 1000}},
    });
    let balloon = serde_json::json!({"amount_mib": 3, "deflate_on_oom": true, "stats_polling_interval_s": 1});
    let vsock = serde_json::json!({"guest_cid": 3, "uds_path": dir.path().join("v")});
    let (first, kept) = saved(&[
        ("PUT", "/drives/d", drive.clone()),
        ("PUT", "/balloon", balloon),
        ("PUT", "/entropy", serde_json::json!({})),
        ("PUT", "/vsock", vsock),
    ]);
    let mut second = Vmm::start(&[]);
    let over = dir.path().join("w");
    let asked = serde_json::json!({"resume_vm": true, "vsock_override": {"uds_path": over}});
    second.done("PUT", "/snapshot/load", &kept.load_with(&asked));
    echo(&mut second, b'x');
    let told = second.get("/vm/config");
    let before = first.get("/vm/config");
    for part in ["drives", "balloon", "entropy", "machine-config", "network-interfaces"] {
        assert_eq!(told[part], before[part], "{part}");
    }
    assert_eq!(
        (&told["vsock"]["uds_path"], &told["boot-source"]),
        (&serde_json::json!(over), &serde_json::Value::Null)
    );
    assert!(over.exists());
    second.done("PATCH", "/balloon", r#"{"amount_mib":5}"#);
    assert_eq!(second.get("/balloon/statistics")["target_mib"], 5);
}

/// As in a jail: no descriptor can be named by a path there, and yet nothing keeps a name.
#[test]
fn without_proc_a_guest_boots_is_saved_and_loaded() {
    let start = || {
        let dir = tempfile::tempdir().expect("a directory");
        let mut command = Command::new("unshare");
        command.args(["--mount", "sh", "-c"]).arg("mount -t tmpfs none /proc && exec \"$0\" --api-sock \"$1\"");
        command.arg(support::program().get_program()).arg(dir.path().join("api"));
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null());
        let vmm = Vmm { child: command.spawn().expect("started"), dir };
        let end = Instant::now() + PATIENCE;
        while UnixStream::connect(vmm.api()).is_err() {
            assert!(Instant::now() < end, "no API socket");
            std::thread::sleep(Duration::from_millis(5));
        }
        vmm
    };
    let mut first = start();
    let kernel = tiny_kernel(first.dir.path(), "hello from the guest\n");
    first.done("PUT", "/machine-config", r#"{"vcpu_count":1,"mem_size_mib":33}"#);
    first.done("PUT", "/boot-source", &serde_json::json!({"kernel_image_path": kernel}).to_string());
    first.done("PUT", "/actions", r#"{"action_type":"InstanceStart"}"#);
    first.wait_for_word("hello from the guest");
    echo(&mut first, b'a');
    let kept = Saved { dir: tempfile::tempdir().expect("a directory") };
    first.done("PATCH", "/vm", r#"{"state":"Paused"}"#);
    first.done("PUT", "/snapshot/create", &kept.create());
    let mut second = start();
    second.done("PUT", "/snapshot/load", &kept.load(true));
    echo(&mut second, b'b');
    let names = std::fs::read_dir("/tmp").expect("read").flatten();
    let left = names.filter(|entry| {
        let is_ours = entry.file_name().to_string_lossy().starts_with("banger-ram-");
        is_ours && entry.metadata().is_ok_and(|seen| seen.len() == 33 * MIB)
    });
    assert_eq!(left.count(), 0);
}
