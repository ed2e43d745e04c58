//! Archives read back by cpio; modules out of a directory as a kernel package has it.

use std::process::{Command, Stdio};

use super::*;

/// An object with one named section `.modinfo`, as much of a module as is looked at.
fn module(depends: &str) -> Vec<u8> {
    let info = format!("license=GPL\0depends={depends}\0name=x\0");
    let names = b"\0.modinfo\0.shstrtab\0";
    let (info_at, names_at) = (64, 64 + info.len());
    let table = names_at + names.len();
    let mut elf = b"\x7fELF\x02\x01\x01".to_vec();
    elf.resize(16, 0);
    elf.extend([1, 0, 62, 0]);
    elf.resize(40, 0);
    elf.extend((table as u64).to_le_bytes());
    elf.resize(58, 0);
    for half in [64u16, 3, 2] {
        elf.extend(half.to_le_bytes());
    }
    elf.extend(info.as_bytes());
    elf.extend(names);
    for (name, at, length) in [(0u32, 0usize, 0usize), (1, info_at, info.len()), (10, names_at, names.len())] {
        let start = elf.len();
        elf.extend(name.to_le_bytes());
        elf.resize(start + 24, 0);
        elf.extend((at as u64).to_le_bytes());
        elf.extend((length as u64).to_le_bytes());
        elf.resize(start + 64, 0);
    }
    elf
}

/// A kernel package's module directory.
fn package() -> tempfile::TempDir {
    let directory = tempfile::tempdir().unwrap();
    let drivers = directory.path().join("kernel/drivers/net");
    fs::create_dir_all(&drivers).unwrap();
    fs::write(directory.path().join("modules.builtin"), "kernel/fs/ext4/ext4.ko\nkernel/lib/crc-t10.ko\n").unwrap();
    for (name, depends) in
        [("virtio_net", "net_failover,virtio,crc_t10"), ("net-failover", "failover"), ("failover", ""), ("virtio", "")]
    {
        fs::write(drivers.join(format!("{name}.ko")), module(depends)).unwrap();
    }
    directory
}

fn names(modules: &[Module]) -> Vec<&str> {
    modules.iter().map(|m| m.name.as_str()).collect()
}

#[test]
fn modules_come_behind_what_they_need_and_built_in_ones_not_at_all() {
    let package = package();
    let loads = modules(package.path(), &["virtio-net", "ext4", "virtio"]).unwrap();
    assert_eq!(names(&loads), ["failover", "net_failover", "virtio", "virtio_net"]);
}

#[test]
fn what_only_helps_is_loaded_before_where_it_is_there() {
    let package = package();
    let drivers = package.path().join("kernel/drivers/net");
    fs::write(drivers.join("xfs.ko"), module("virtio\0softdep=pre: crypto-crc32c nowhere post: failover")).unwrap();
    fs::write(drivers.join("crc32c_generic.ko"), module("")).unwrap();
    assert_eq!(names(&modules(package.path(), &["xfs"]).unwrap()), ["crc32c_generic", "virtio", "xfs"]);
}

#[test]
fn packed_modules_are_unpacked() {
    let package = package();
    let drivers = package.path().join("kernel/drivers/net");
    for (program, file) in [("xz", "failover.ko"), ("zstd", "virtio.ko")] {
        let arguments: &[&str] = if program == "zstd" { &["-q", "--rm"] } else { &["--check=crc32"] };
        assert!(Command::new(program).args(arguments).arg(drivers.join(file)).status().unwrap().success());
    }
    assert!(drivers.join("failover.ko.xz").exists() && drivers.join("virtio.ko.zst").exists());
    let loads = modules(package.path(), &["virtio_net"]).unwrap();
    assert_eq!(names(&loads), ["failover", "net_failover", "virtio", "virtio_net"]);
    assert_eq!(loads[0].object, module(""));
}

#[test]
fn a_missing_and_a_damaged_module_are_named() {
    let package = package();
    let error = modules(package.path(), &["vsock"]).unwrap_err();
    assert!(error.to_string().contains("no module vsock"), "{error}");
    fs::write(package.path().join("kernel/drivers/net/vsock.ko"), b"\x7fELF\x02\x01 cut off").unwrap();
    let error = modules(package.path(), &["vsock"]).unwrap_err();
    assert!(error.to_string().contains("vsock.ko is damaged"), "{error}");
    let error = modules(Path::new("/nowhere"), &["vsock"]).unwrap_err();
    assert!(error.to_string().contains("can't read /nowhere/kernel"), "{error}");
}

#[test]
fn modules_that_need_each_other_end() {
    let package = package();
    for (name, depends) in [("a", "b"), ("b", "a")] {
        fs::write(package.path().join(format!("kernel/{name}.ko")), module(depends)).unwrap();
    }
    assert_eq!(names(&modules(package.path(), &["a"]).unwrap()), ["b", "a"]);
}

#[test]
fn cpio_reads_the_archive_back() {
    let loads = modules(package().path(), &["virtio_net"]).unwrap();
    let archive = pack(b"the agent", &loads);
    assert_eq!(archive, pack(b"the agent", &loads));
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("initrd");
    fs::write(&file, &archive).unwrap();
    let cpio = |flags: &str| {
        let mut cpio = Command::new("cpio");
        cpio.arg(flags).arg("--quiet").current_dir(directory.path()).stdin(fs::File::open(&file).unwrap());
        let out = cpio.stderr(Stdio::piped()).output().expect("this test needs cpio");
        assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
        String::from_utf8(out.stdout).unwrap()
    };
    let listing = cpio("-itv");
    assert!(listing.contains("crw-------"), "{listing}");
    let listed: Vec<&str> = listing.lines().map(|l| l.rsplit(' ').next().unwrap()).collect();
    assert_eq!(listed[..5], ["dev", "modules", "dev/console", "init", "modules/order"]);
    fs::create_dir(directory.path().join("out")).unwrap();
    // Without the device node, which only root may make.
    let mut cpio = Command::new("cpio");
    cpio.args(["-idm", "--quiet", "init", "modules/*"]).current_dir(directory.path().join("out"));
    assert!(cpio.stdin(fs::File::open(&file).unwrap()).status().unwrap().success());
    let read = |name: &str| fs::read(directory.path().join("out").join(name)).unwrap();
    assert_eq!(read("init"), b"the agent");
    assert_eq!(read("modules/order"), b"failover.ko\nnet_failover.ko\nvirtio.ko\nvirtio_net.ko\n");
    assert_eq!(read("modules/virtio_net.ko"), loads[3].object);
}
