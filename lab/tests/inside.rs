//! What the lab promises to those tests that run in it; and the helper under its systemd units. Run by `lab/test`.

mod lab {
    use std::path::{Path, PathBuf};
    use std::process::Command;

    /// Runs a script; gives what it wrote, and ends the test where it fails.
    fn shell(script: &str) -> String {
        let out = Command::new("bash").args(["-euc", script]).output().expect("bash");
        let text = String::from_utf8_lossy(&out.stdout).into_owned();
        assert!(out.status.success(), "{script}\n{}\n{text}{}", out.status, String::from_utf8_lossy(&out.stderr));
        text
    }

    #[test]
    fn systemd_runs_and_nothing_in_it_failed() {
        assert_eq!(std::fs::read_to_string("/proc/1/comm").expect("proc"), "systemd\n");
        assert_eq!(shell("systemctl --failed --no-legend --plain"), "");
    }

    #[test]
    fn a_snapshot_keeps_what_is_written_and_its_base_stays() {
        let script = "
            cd $(mktemp -d); truncate -s 32M base; truncate -s 8M cow; mkfs.ext4 -q base; before=$(sha256sum <base)
            base=$(losetup -f --show -r base) cow=$(losetup -f --show cow)
            dmsetup create kept --table \"0 $(blockdev --getsz $base) snapshot $base $cow P 8\"
            mkdir at; mount /dev/mapper/kept at; echo written >at/file; umount at
            dmsetup remove kept
            dmsetup create kept --table \"0 $(blockdev --getsz $base) snapshot $base $cow P 8\"
            mount -o ro /dev/mapper/kept at; cat at/file; umount at; dmsetup remove kept
            losetup -d $base $cow; [ \"$before\" = \"$(sha256sum <base)\" ] && echo unchanged";
        assert_eq!(shell(script), "written\nunchanged\n");
    }

    #[test]
    fn files_share_blocks_on_xfs_and_btrfs() {
        for kind in ["xfs", "btrfs"] {
            let script = format!(
                "cd $(mktemp -d); truncate -s 320M disk; mkfs.{kind} -q disk >&2; mkdir at; mount -o loop disk at
                 echo shared >at/one; cp --reflink=always at/one at/two; cat at/two; umount at"
            );
            assert_eq!(shell(&script), "shared\n", "{kind}");
        }
    }

    /// The bridge and the name server of the test below, taken away when this is dropped.
    struct Names;

    impl Drop for Names {
        fn drop(&mut self) {
            let away = "kill $(cat /run/names.pid); ip link del br-names; ip link del v0";
            let _ = std::process::Command::new("bash").args(["-c", away]).output();
        }
    }

    #[test]
    fn resolved_asks_a_link_s_own_server_at_a_port_of_its_own() {
        let _names = Names;
        // That the bridge has carrier resolved hears from the kernel, some time after us.
        let up = "
            ip link add br-names type bridge; ip link add v0 type veth peer name v1; ip link set v0 master br-names
            ip address add 172.16.9.1/24 dev br-names; for l in v0 v1 br-names; do ip link set $l up; done
            dnsmasq --no-resolv --no-hosts --bind-interfaces --listen-address=127.0.0.1 --port=42069 \\
                --address=/one.vm/172.16.9.2 --pid-file=/run/names.pid
            resolvectl dns br-names 127.0.0.1:42069; resolvectl domain br-names '~vm'; resolvectl default-route br-names no
            for _ in $(seq 150); do getent ahostsv4 one.vm >/run/names.answer && break; sleep 0.2; done
            head -n 1 /run/names.answer | cut -d' ' -f1";
        assert_eq!(shell(up), "172.16.9.2\n");
        assert_eq!(shell("getent ahostsv4 one.example || echo none"), "none\n");
        assert_eq!(shell("resolvectl revert br-names; getent ahostsv4 one.vm || echo none"), "none\n");
    }

    #[test]
    fn docker_and_firewalld_start_only_when_asked() {
        let state = "for s in docker containerd firewalld; do systemctl is-active $s || :; done";
        assert_eq!(shell(state), "inactive\ninactive\ninactive\n");
        // One after the other: together they change each other's rules, for a minute.
        shell("systemctl start docker");
        assert_eq!(shell("docker info --format '{{.Driver}}'"), "overlay2\n");
        assert!(shell("iptables -S FORWARD").contains("-j DOCKER-USER"));
        shell("systemctl stop docker.socket docker containerd; nft flush ruleset; ip link del docker0");
        shell("systemctl start firewalld");
        assert_eq!(shell("firewall-cmd --state"), "running\n");
        assert!(shell("nft list tables").contains("table inet firewalld"));
        shell("systemctl stop firewalld; nft flush ruleset");
    }

    /// A program of the workspace, built beside this test.
    fn program(name: &str) -> PathBuf {
        let own = std::env::current_exe().expect("our own path");
        own.parent().and_then(Path::parent).expect("deps").join(name)
    }

    const UNITS: [(&str, &str); 2] = [
        ("bangerd-root.service", include_str!("../../dist/systemd/bangerd-root.service")),
        ("bangerd-root.socket", include_str!("../../dist/systemd/bangerd-root.socket")),
    ];

    /// For scripts: a request as the owner, and a property of the unit.
    const ASK: &str = r#"ask() { python3 -c '
import os, socket, sys
os.setgroups([]); os.setgid(4000); os.setuid(4000)
s = socket.socket(socket.AF_UNIX); s.connect("/run/banger-root/bangerd-root.sock"); s.settimeout(60)
s.sendall(sys.argv[1].encode() + b"\n")
print(s.makefile().readline().strip())' "$1"; }
state() { systemctl show --value -p "$1" bangerd-root.service; }
"#;

    /// Units, owner and metadata, as an installation has them; a hanging helper is noticed sooner.
    fn install_helper() {
        for (name, text) in UNITS {
            std::fs::write(Path::new("/etc/systemd/system").join(name), text).expect("a unit");
        }
        shell(&format!(
            "useradd -m -u 4000 owner; install -m 0755 {} /usr/local/bin/
             mkdir -p /etc/banger /etc/systemd/system/bangerd-root.{{socket,service}}.d
             install -d -o owner -g owner -m 0700 /var/lib/banger
             cat >/etc/banger/install.toml <<END\nowner_user = 'owner'\nowner_uid = 4000\nowner_gid = 4000\nowner_home = '/home/owner'\nEND
             printf '[Socket]\nSocketUser=owner\n' >/etc/systemd/system/bangerd-root.socket.d/owner.conf
             printf '[Service]\nWatchdogSec=6\n' >/etc/systemd/system/bangerd-root.service.d/sooner.conf
             systemctl daemon-reload",
            program("bangerd-root").display(),
        ));
    }

    /// Runs a script that may use [`ASK`].
    fn ask(script: &str) -> String {
        shell(&format!("{ASK}{script}"))
    }

    const LIST: &str = r#"ask '{"method":"priv.list_resources","params":{}}'"#;

    fn assert_bridge_listed() {
        let listed = ask(LIST);
        assert!(listed.contains(r#""name":"br-fc""#), "{listed}");
    }

    /// What [`install_helper`] put there; taken away when this is dropped, for the next test in the same machine.
    struct Installed;

    impl Drop for Installed {
        fn drop(&mut self) {
            let away = "systemctl stop bangerd-root.socket bangerd-root.service; ip link del br-fc
                        rm -rf /etc/systemd/system/bangerd-root.* /usr/local/bin/bangerd-root /etc/banger
                        rm -rf /run/banger /run/banger-root /var/lib/banger /var/lib/banger-root
                        systemctl daemon-reload; systemctl reset-failed; userdel -r owner";
            let _ = std::process::Command::new("bash").args(["-c", away]).output();
        }
    }

    #[test]
    fn the_helper_runs_under_systemd() {
        let _installed = Installed;
        install_helper();
        assert_eq!(shell("systemd-analyze verify bangerd-root.service bangerd-root.socket 2>&1"), "");

        // The socket is there before the helper; the first request starts it.
        shell("systemctl start bangerd-root.socket");
        assert_eq!(
            ask("state ActiveState; stat -c '%U %a' /run/banger-root/bangerd-root.sock"),
            "inactive\nowner 600\n"
        );
        let made = r#"ask '{"method":"priv.ensure_bridge","params":{"bridge_name":"br-fc","bridge_ip":"172.16.0.1","cidr":"24"}}'"#;
        assert_eq!(ask(made), "{\"ok\":true,\"result\":{}}\n");
        assert_eq!(ask("state ActiveState; ip -br address show br-fc | awk '{print $3}'"), "active\n172.16.0.1/24\n");

        // What it made is known to the next one, however the last one went.
        shell("systemctl restart bangerd-root.service");
        assert_bridge_listed();
        ask("kill -KILL $(state MainPID); for n in {1..100}; do sleep 0.1; [ $(state NRestarts) = 1 ] && break; done");
        assert_bridge_listed();
        assert_eq!(ask("state NRestarts"), "1\n");

        // A helper that hangs is ended by the watchdog and started again.
        ask("kill -STOP $(state MainPID); for n in {1..90}; do sleep 1; [ $(state NRestarts) = 2 ] && break; done");
        assert_eq!(ask("state NRestarts"), "2\n");
        assert_bridge_listed();

        shell("systemctl stop bangerd-root.socket bangerd-root.service; [ ! -e /run/banger-root/bangerd-root.sock ]");
        assert_eq!(shell("systemctl --failed --no-legend --plain"), "");
        shell("ip link del br-fc");
    }

    mod nested {
        #[test]
        fn kvm_runs_guests() {
            ::sys::kvm::runs_guests().expect("a guest of the lab's own");
        }
    }
}
