//! Tests of what is gathered: files are opened when named, and order is kept.

use super::*;
use wire::firecracker::{HostPath, ResourceId};

struct Files(tempfile::TempDir);

impl Files {
    fn new() -> Self {
        Self(tempfile::tempdir().expect("a directory"))
    }

    fn path(&self, name: &str) -> HostPath {
        HostPath::new(self.0.path().join(name).to_str().expect("text")).expect("a path")
    }

    fn file(&self, name: &str, content: &[u8]) -> HostPath {
        std::fs::write(self.0.path().join(name), content).expect("written");
        self.path(name)
    }

    fn drive(&self, id: &str, root: bool) -> Drive {
        serde_json::from_value(serde_json::json!({
            "drive_id": id, "is_root_device": root, "path_on_host": self.file(&format!("{id},format=qcow2"), b"disk"),
        }))
        .expect("a drive")
    }
}

fn order(parts: &Resources) -> Vec<&str> {
    parts.disks.iter().map(|disk| disk.config.drive_id.as_str()).collect()
}

#[test]
fn the_root_drive_is_first_and_a_drive_keeps_its_place() {
    let (files, mut parts) = (Files::new(), Resources::default());
    for (id, root) in [("a", false), ("b", false), ("r", true), ("a", false)] {
        parts.set_drive(files.drive(id, root)).expect(id);
    }
    assert_eq!(order(&parts), ["r", "a", "b"]);
    let second = parts.set_drive(files.drive("s", true)).expect_err("two roots").to_string();
    assert_eq!(second, "Drive config error: A root block device already exists!");
    parts.set_drive(files.drive("r", false)).expect("no root any more");
    parts.set_drive(files.drive("s", true)).expect("another root");
    assert_eq!(order(&parts), ["s", "r", "a", "b"]);
}

#[test]
fn a_drive_is_a_file_that_can_be_opened_as_asked() {
    let (files, mut parts) = (Files::new(), Resources::default());
    let mut drive = files.drive("a", false);
    for bad in [files.path("missing"), files.path("."), HostPath::new("/dev/null").expect("a path")] {
        drive.path_on_host = Some(bad);
        let said = parts.set_drive(drive.clone()).expect_err("refused").to_string();
        assert!(said.starts_with("Drive config error: Unable to create the virtio block device"), "{said}");
    }
    let fifo = files.path("fifo");
    let mode = rustix::fs::Mode::from_raw_mode(0o600);
    rustix::fs::mknodat(rustix::fs::CWD, fifo.as_str(), rustix::fs::FileType::Fifo, mode, 0).expect("a FIFO");
    drive.path_on_host = Some(fifo);
    drive.is_read_only = Some(true);
    parts.set_drive(drive).expect_err("a FIFO, without waiting for its writer");
    assert_eq!(order(&parts), Vec::<&str>::new());
}

#[test]
fn what_qemu_cant_do_is_refused_not_ignored() {
    let (files, mut parts) = (Files::new(), Resources::default());
    let remote = Drive { socket: Some(files.path("s")), ..files.drive("a", false) };
    assert!(parts.set_drive(remote).expect_err("refused").to_string().contains("not supported"));
    let limited = r#"{"iface_id":"a","host_dev_name":"t","tx_rate_limiter":{"ops":{"size":1,"refill_time":1}}}"#;
    let said = parts.set_nic(serde_json::from_str(limited).expect("an interface")).expect_err("refused").to_string();
    assert!(said.contains("tx_rate_limiter"), "{said}");
    let hinting = r#"{"amount_mib":1,"deflate_on_oom":false,"free_page_hinting":true}"#;
    let said = parts.set_balloon(serde_json::from_str(hinting).expect("a balloon")).expect_err("refused").to_string();
    assert!(said.contains("free_page_hinting"), "{said}");
    for limit in
        [r#"{"ops":{"size":1,"refill_time":1}}"#, r#"{"bandwidth":{"size":1,"refill_time":1,"one_time_burst":1}}"#]
    {
        let entropy = serde_json::from_str(&format!(r#"{{"rate_limiter":{limit}}}"#)).expect("an entropy device");
        parts.set_entropy(entropy).expect_err(limit);
    }
    for machine in [
        MachineConfig { huge_pages: HugePages::Hugetlbfs2M, ..MachineConfig::default() },
        MachineConfig { cpu_template: Some(CpuTemplate::T2), ..MachineConfig::default() },
    ] {
        assert!(parts.set_machine(machine).expect_err("refused").to_string().contains("not supported"));
    }
}

#[test]
fn a_machine_has_bounds_and_is_changed_whole_or_not() {
    let mut parts = Resources::default();
    for (vcpus, smt, mib) in [(0, false, 1), (33, false, 1), (3, true, 1), (1, false, 0)] {
        let machine = MachineConfig { vcpu_count: vcpus, smt, mem_size_mib: mib, ..MachineConfig::default() };
        parts.set_machine(machine).expect_err("refused");
    }
    let update = MachineConfigUpdate { vcpu_count: Some(4), ..MachineConfigUpdate::default() };
    parts.update_machine(&update).expect("changed");
    assert_eq!((parts.machine.vcpu_count, parts.machine.mem_size_mib), (4, 128));
    let update = MachineConfigUpdate { vcpu_count: Some(2), mem_size_mib: Some(0), ..update };
    parts.update_machine(&update).expect_err("half of it is wrong");
    assert_eq!(parts.machine.vcpu_count, 4);
    parts.update_machine(&MachineConfigUpdate::default()).expect_err("nothing to change");
}

#[test]
fn a_kernel_is_known_by_its_magic() {
    let (files, mut parts) = (Files::new(), Resources::default());
    let mut bzimage = vec![0; 0x300];
    bzimage[0x202..0x206].copy_from_slice(b"HdrS");
    for (content, good) in [(&b"\x7fELF\x02"[..], true), (&bzimage, true), (b"#!/bin/sh", false), (b"", false)] {
        let boot = BootSource { kernel_image_path: files.file("k", content), initrd_path: None, boot_args: None };
        assert_eq!(parts.set_boot(boot).is_ok(), good);
    }
    let boot = BootSource { kernel_image_path: files.path("none"), initrd_path: None, boot_args: None };
    let said = parts.set_boot(boot).expect_err("missing").to_string();
    assert!(said.starts_with("Boot source error: The kernel file cannot be opened:"), "{said}");
}

#[test]
fn an_interface_needs_a_tap_that_exists() {
    let mut parts = Resources::default();
    let nic: NetworkInterface =
        serde_json::from_str(r#"{"iface_id":"eth0","host_dev_name":"no-such-tap0"}"#).expect("an interface");
    let said = parts.set_nic(nic).expect_err("no tap").to_string();
    assert!(said.contains("no-such-tap0") && said.contains("create it first"), "{said}");
}

#[test]
fn the_number_of_devices_is_bounded() {
    let (files, mut parts) = (Files::new(), Resources::default());
    for n in 0..MAX_DEVICES {
        parts.set_drive(files.drive(&format!("d{n}"), false)).expect("room");
    }
    parts.set_drive(files.drive("more", false)).expect_err("no room");
    parts.set_drive(files.drive("d3", false)).expect("a change needs no room");
    assert_eq!(parts.disks[3].config.drive_id, ResourceId::new("d3").expect("an id"));
}

#[test]
fn a_vsock_that_is_set_again_leaves_one_socket() {
    let (files, mut parts) = (Files::new(), Resources::default());
    for name in ["one", "two"] {
        parts.set_vsock(Vsock { vsock_id: None, guest_cid: 3, uds_path: files.path(name) }).expect(name);
    }
    let left: Vec<_> =
        std::fs::read_dir(files.0.path()).expect("read").map(|e| e.expect("entry").file_name()).collect();
    assert_eq!(left, ["two"]);
}

#[test]
fn a_balloon_is_not_larger_than_the_guest() {
    let mut parts = Resources::default();
    let balloon =
        |mib: u32| serde_json::from_str(&format!(r#"{{"amount_mib":{mib},"deflate_on_oom":true}}"#)).expect("it");
    parts.set_balloon(balloon(128)).expect("all of it");
    let said = parts.set_balloon(balloon(129)).expect_err("more").to_string();
    assert_eq!(said, "Balloon config error: Amount of pages requested is too large.");
    let smaller = MachineConfigUpdate { mem_size_mib: Some(64), ..MachineConfigUpdate::default() };
    assert!(parts.update_machine(&smaller).expect_err("smaller").to_string().contains("balloon"));
}
