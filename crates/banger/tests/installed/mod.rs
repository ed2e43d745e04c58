//! An installation of banger in the lab, as the README and `docs/helper.md` have it, for one test.

use serde_json::Value;
use std::path::PathBuf;
use std::process::Command;
use std::time::{Duration, Instant};

/// What the shell says; it has to succeed.
pub(crate) fn shell(script: &str) -> String {
    let out = Command::new("bash").args(["-ec", script]).output().unwrap();
    let (said, errors) = (String::from_utf8_lossy(&out.stdout), String::from_utf8_lossy(&out.stderr));
    if !out.status.success() {
        let journal = Command::new("journalctl").args(["-n", "60", "--no-pager"]).output().unwrap();
        let journal = String::from_utf8_lossy(&journal.stdout).into_owned();
        panic!("{script}\n{}: {said}{errors}\n{journal}", out.status);
    }
    said.into_owned()
}

/// What `banger` says to the owner.
pub(crate) fn banger(arguments: &str) -> String {
    shell(&format!("runuser -u named -- banger {arguments}"))
}

pub(crate) fn show(field: &str) -> Value {
    let vm: Value = serde_json::from_str(&banger("vm show web --json")).unwrap();
    vm.pointer(field).unwrap().clone()
}

pub(crate) fn until(what: &str, is_so: impl Fn() -> bool) {
    let begun = Instant::now();
    while !is_so() {
        assert!(begun.elapsed() < Duration::from_secs(60), "{what}");
        std::thread::sleep(Duration::from_millis(50));
    }
}

/// Devices, links, VMMs, and the VMs' own directories.
pub(crate) fn left() -> String {
    shell(
        "dmsetup ls | grep -v '^No devices' || :; losetup -nO BACK-FILE; ip -o link | grep -o 'tap-[^:@]*' || :
         pgrep -a qemu || :; pgrep -fa '[-]-api-sock' || :; ls /var/lib/banger/vms /run/banger/vms",
    )
}

/// Takes the installation away, however the test ends.
pub(crate) struct Installed;

impl Drop for Installed {
    fn drop(&mut self) {
        let away = "systemctl stop bangerd bangerd-root.socket bangerd-root
                    rm -rf /run/systemd/system/bangerd* /usr/local/bin/{banger*,firecracker} /usr/libexec/banger /etc/banger
                    rm -rf /run/banger /run/banger-root /var/lib/banger /var/lib/banger-root
                    ip link delete br-fc; systemctl daemon-reload; systemctl reset-failed; userdel -r named";
        let _ = Command::new("bash").args(["-c", away]).output();
    }
}

const UNITS: [(&str, &str); 3] = [
    ("bangerd.service", include_str!("../../../../dist/systemd/bangerd.service")),
    ("bangerd-root.service", include_str!("../../../../dist/systemd/bangerd-root.service")),
    ("bangerd-root.socket", include_str!("../../../../dist/systemd/bangerd-root.socket")),
];

/// As the README and `docs/helper.md` say it, with an image by its files.
pub(crate) fn install() -> Installed {
    install_with("ROOT")
}

/// The same, with that root file system.
pub(crate) fn install_with(root: &str) -> Installed {
    let installed = Installed;
    let programs = PathBuf::from(env!("CARGO_BIN_EXE_banger")).parent().unwrap().display().to_string();
    for (name, text) in UNITS {
        std::fs::write(format!("/run/systemd/system/{name}"), text).unwrap();
    }
    let file = |name: &str| std::env::var(format!("BANGER_TEST_{name}")).expect(name);
    let (kernel, initrd, root) = (file("KERNEL"), file("INITRD"), file(root));
    shell(&format!(
        "useradd -m -u 4200 -G kvm named
         cd {programs}; install banger bangerd bangerd-root /usr/local/bin/
         install -d /usr/libexec/banger; install banger-qemu banger-jailer banger-image /usr/libexec/banger/
         banger helper init --owner named
         cp --sparse=always {root} /var/lib/banger/root.ext4
         cp {kernel} /var/lib/banger/vmlinux; cp {initrd} /var/lib/banger/initrd; chown named: /var/lib/banger/*
         cd /run/systemd/system
         mkdir bangerd-root.socket.d bangerd.service.d
         printf '[Socket]\\nSocketUser=named\\n' >bangerd-root.socket.d/owner.conf
         printf '[Service]\\nUser=named\\nExecStart=\\nExecStart=/usr/local/bin/bangerd --taps-ahead 0 --image-files' \
             >bangerd.service.d/owner.conf
         printf ' /var/lib/banger/%s' root.ext4 vmlinux initrd >>bangerd.service.d/owner.conf
         systemctl daemon-reload; systemctl start bangerd-root.socket"
    ));
    installed
}

/// What `banger` says, and its status.
pub(crate) fn ended(arguments: &str) -> String {
    shell(&format!("s=0; runuser -u named -- banger {arguments} || s=$?; echo $s"))
}
