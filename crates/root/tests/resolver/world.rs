//! The world around a helper in a test of the resolver's methods: the lab's own network, name servers that remember
//! what they were asked, what resolved says of the bridge.

#![allow(dead_code, unreachable_pub, reason = "without the lab's module nothing is used")]

use crate::common::{self, Helper, OWNER, RUNTIME, STATE, make_dir, make_file};
use rustix::mount::{MountFlags, MountPropagationFlags, mount, mount_bind, mount_change};
use serde_json::json;
use std::net::UdpSocket;
use std::os::fd::OwnedFd;
use std::process::Command;
use std::sync::{Arc, Mutex};

/// Runs a script; gives what it wrote, and ends the test where it fails.
pub fn shell(script: &str) -> String {
    let out = Command::new("bash").args(["-euc", script]).output().expect("bash");
    let text = String::from_utf8_lossy(&out.stdout).into_owned();
    assert!(out.status.success(), "{script}\n{}\n{text}{}", out.status, String::from_utf8_lossy(&out.stderr));
    text
}

/// Runs `body` in a process of its own with fresh namespaces of those kinds: this very test, once more.
pub fn in_own(name: &str, kinds: &[&str], body: impl FnOnce()) {
    const INSIDE: &str = "BANGER_TEST_INSIDE";
    if std::env::var_os(INSIDE).is_some() {
        places();
        return body();
    }
    let output = Command::new("unshare")
        .args(kinds)
        .arg(std::env::current_exe().expect("the test's own file"))
        .args([&format!("lab::{name}"), "--exact", "--nocapture", "--test-threads=1"])
        .env(INSIDE, "1")
        .output()
        .expect("unshare, of util-linux");
    let text = format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success() && text.contains("1 passed"), "{text}");
}

/// Where a helper and its owner live; what runs beside, resolved and its bus, stays as it is.
fn places() {
    mount_change("/", MountPropagationFlags::PRIVATE | MountPropagationFlags::REC).expect("private mounts");
    for at in ["/mnt", "/var/lib"] {
        mount("tmpfs", at, "tmpfs", MountFlags::empty(), Some(c"mode=755")).expect("a tmpfs");
    }
    for file in ["passwd", "group"] {
        let (real, copy) = (format!("/etc/{file}"), format!("/mnt/{file}"));
        let line = match file {
            "passwd" => format!("{}:x:{OWNER}:{OWNER}::/:/bin/sh\n", common::OWNER_NAME),
            _ => format!("{}:x:{OWNER}:\n", common::OWNER_NAME),
        };
        let text = std::fs::read_to_string(&real).expect("users");
        std::fs::write(&copy, format!("{}\n{line}", text.trim_end())).expect("a copy");
        mount_bind(&copy, &real).expect("bound");
    }
    for (dir, uid, mode) in [
        ("/var/lib/banger-root", 0, 0o700),
        (STATE, OWNER, 0o755),
        (RUNTIME, OWNER, 0o711),
        ("/mnt/h", 0, 0o711),
        ("/mnt/e", 0, 0o755),
    ] {
        make_dir(dir, uid, mode);
    }
    make_file(common::META, common::meta().as_bytes(), 0, 0o644);
}

/// The lab's network as it was, when this is dropped.
pub struct Network;

/// Whatever a test makes goes at its end.
pub fn lab_network() -> Network {
    Network
}

impl Drop for Network {
    fn drop(&mut self) {
        let away = "for l in tap-fc-1 br-fc other0; do ip link del $l 2>/dev/null || :; done
                    nft delete table inet banger 2>/dev/null || :; nft delete table bridge banger 2>/dev/null || :
                    systemctl kill -s CONT systemd-resolved || :; systemctl start systemd-resolved";
        let _ = Command::new("bash").args(["-c", away]).status();
    }
}

/// Another link, by which all other names are asked.
pub struct Other;

impl Other {
    /// With that name server.
    pub fn link(server: &str) -> Other {
        shell(&format!(
            "ip link add other0 type dummy; ip address add 192.0.2.2/24 dev other0; ip link set other0 up
             resolvectl dns other0 {server}; resolvectl default-route other0 yes; resolvectl dnssec other0 no"
        ));
        Other
    }
}

impl Drop for Other {
    fn drop(&mut self) {
        let _ = Command::new("ip").args(["link", "del", "other0"]).status();
    }
}

/// A VM's end of a tap on the bridge: while it is open, the bridge has carrier.
pub fn vm_runs(helper: &Helper) -> OwnedFd {
    let tap = json!({"bridge_name": "br-fc", "bridge_ip": "172.16.9.1", "cidr": "24", "tap_name": "tap-fc-1"});
    helper.ok("priv.create_tap", &tap);
    let open = sys::tapfd::attach("tap-fc-1").expect("the tap");
    // At last a pause: nothing tells when resolved has heard of the carrier, which the kernel tells it as it tells us.
    let up = "for n in {1..100}; do [ \"$(cat /sys/class/net/br-fc/carrier)\" = 1 ] && break; sleep 0.05; done
              for n in {1..100}; do resolvectl status br-fc >/dev/null && break; sleep 0.05; done; sleep 1.5";
    shell(up);
    open
}

/// The VM is gone: its tap is nobody's, and the bridge without carrier, for resolved too.
pub fn vm_ends(vm: OwnedFd) {
    drop(vm);
    shell(
        "for n in {1..200}; do [ \"$(cat /sys/class/net/br-fc/carrier)\" = 0 ] && break; sleep 0.05; done
         for n in {1..100}; do resolvectl status br-fc | grep -q 'Current Scopes: none' && exit; sleep 0.05; done
         resolvectl status br-fc; exit 1",
    );
}

/// Asks resolved for a name's address, past its cache; gives what it says.
pub fn asked(name: &str) -> String {
    let ask = format!("resolvectl query -4 --cache=no --legend=no {name} 2>&1 || :");
    shell(&ask)
}

/// What resolved was told about the bridge, a setting a line.
pub fn settings() -> String {
    shell(
        "for what in dns domain default-route llmnr mdns dnssec dnsovertls; do
            echo $what: $(resolvectl $what br-fc | sed 's/^Link [0-9]* (br-fc)://'); done",
    )
}

/// Whether it knows a server or a domain there.
pub fn knows() -> bool {
    !settings().starts_with("dns:\ndomain:\n")
}

/// A name server that answers every name with 172.16.9.9, and remembers what it was asked.
pub struct Names(Arc<Mutex<Vec<String>>>);

impl Names {
    /// At that address and port. It goes with the test's process.
    pub fn at(address: &str) -> Names {
        let socket = UdpSocket::bind(address).expect("a name server's socket");
        let heard = Arc::new(Mutex::new(Vec::new()));
        let asked = Arc::clone(&heard);
        std::thread::spawn(move || {
            let mut query = [0; 1500];
            while let Ok((length, from)) = socket.recv_from(&mut query) {
                let (name, end) = question(&query[..length]);
                asked.lock().expect("the names").push(name);
                let _ = socket.send_to(&answer(&query[..length], end), from);
            }
        });
        Names(heard)
    }

    /// Whether it was asked for that name.
    pub fn heard(&self, name: &str) -> bool {
        self.0.lock().expect("the names").iter().any(|asked| asked.eq_ignore_ascii_case(name))
    }
}

/// The name that is asked for, and where the question ends (RFC 1035, 4.1.2).
fn question(query: &[u8]) -> (String, usize) {
    let (mut at, mut labels) = (12, Vec::new());
    while query[at] != 0 {
        let end = at + 1 + usize::from(query[at]);
        labels.push(String::from_utf8_lossy(&query[at + 1..end]).into_owned());
        at = end;
    }
    (labels.join("."), at + 5)
}

/// One A record where an address is asked for, else none.
fn answer(query: &[u8], end: usize) -> Vec<u8> {
    let is_a = query[end - 4..end] == [0, 1, 0, 1];
    let mut reply = query[..2].to_vec();
    reply.extend([0x85, 0x80, 0, 1, 0, u8::from(is_a), 0, 0, 0, 0]);
    reply.extend(&query[12..end]);
    if is_a {
        reply.extend([0xc0, 12, 0, 1, 0, 1, 0, 0, 0, 1, 0, 4, 172, 16, 9, 9]);
    }
    reply
}

/// Begins a command that sends the request behind it to the helper of the unit.
pub const ASK: &str = r#"python3 -c '
import socket, sys
s = socket.socket(socket.AF_UNIX); s.connect("/run/banger-root/bangerd-root.sock"); s.settimeout(60)
s.sendall(sys.argv[1].encode() + b"\n")
print(s.makefile().readline().strip())' "#;

/// The helper as an installation has it, until this is dropped.
pub struct Unit;

/// Installs the helper's units and what they need, and starts the socket.
pub fn install_unit() -> Unit {
    let unit = Unit;
    for (name, text) in [
        ("service", include_str!("../../../../dist/systemd/bangerd-root.service")),
        ("socket", include_str!("../../../../dist/systemd/bangerd-root.socket")),
    ] {
        std::fs::write(format!("/run/systemd/system/bangerd-root.{name}"), text).expect("a unit");
    }
    shell(&format!(
        "useradd -m -u 4100 named; install -m 0755 {} /usr/local/bin/
         install -d -o named -g named -m 0700 /var/lib/banger
         mkdir -p /etc/banger /run/systemd/system/bangerd-root.socket.d
         printf 'owner_user = \"named\"\nowner_uid = 4100\nowner_gid = 4100\nowner_home = \"/home/named\"\n' \
             >/etc/banger/install.toml
         printf '[Socket]\nSocketUser=named\n' >/run/systemd/system/bangerd-root.socket.d/owner.conf
         systemctl daemon-reload; systemctl start bangerd-root.socket",
        env!("CARGO_BIN_EXE_bangerd-root")
    ));
    unit
}

impl Drop for Unit {
    fn drop(&mut self) {
        let away = "systemctl stop bangerd-root.socket bangerd-root.service
                    rm -rf /run/systemd/system/bangerd-root.* /usr/local/bin/bangerd-root /etc/banger
                    rm -rf /run/banger /run/banger-root /var/lib/banger /var/lib/banger-root
                    systemctl daemon-reload; systemctl reset-failed; userdel -r named";
        let _ = Command::new("bash").args(["-c", away]).output();
    }
}
