//! The daemon as systemd runs it, beside the helper, as an installation has them: in the lab, `lab/test the_daemon_is_a_service`.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test may panic")]

mod installed;

use installed::*;
use std::process::Command;
use std::time::Instant;

/// The owner keeps hold of the disk's node in its VMM's jail, as he could beyond the disk's end, when another device may
/// have its number; he can't open it, nor give himself the right to.
fn its_node_is_nobodys() {
    let pid = show("/vmm/pid");
    let node = shell(&format!("for file in /proc/{pid}/root/*; do if test -b $file; then echo $file; fi; done"));
    let node = node.trim();
    assert_eq!(shell(&format!("stat -c '%u %g %a' {node}")), "0 0 0\n");
    let keep = "sysopen(my $kept, $ARGV[0], 010000000) or die $!; my $path = \"/proc/self/fd/\" . fileno($kept); \
                print open(my $opened, q(<), $path) || chmod(0666, $path) ? q(opened) : q(refused)";
    let owner = shell(&format!("stat -c '--reuid %u --regid %g --clear-groups' /proc/{pid}"));
    assert_eq!(shell(&format!("setpriv {} perl -e '{keep}' {node}", owner.trim())), "refused");
}

mod lab {
    mod nested {
        mod guests {
            use crate::*;

            #[test]
            fn the_daemon_is_a_service_whose_vms_go_on_without_it() {
                let _installed = install();
                shell("systemctl start bangerd");
                assert_eq!(shell("systemctl is-active bangerd bangerd-root"), "active\nactive\n");
                let begun = Instant::now();
                banger("vm create web --memory 256M --start");
                println!("figure: up after {:?}, {}", begun.elapsed(), show("/vmm"));
                assert_eq!((show("/state"), show("/disk/method")), ("running".into(), "dm-snapshot".into()));
                assert_eq!(banger("vm exec web hostname"), "web\n");
                assert!(shell("dmsetup ls").starts_with("fc-rootfs-"));

                // Neither of them takes a VM along.
                for unit in ["bangerd", "bangerd-root"] {
                    let pid = show("/vmm/pid");
                    shell(&format!("systemctl restart {unit}"));
                    until("it answers again", || {
                        Command::new("runuser")
                            .args(["-u", "named", "banger", "vm", "list"])
                            .output()
                            .unwrap()
                            .status
                            .success()
                    });
                    assert_eq!((show("/state"), show("/vmm/pid")), ("running".into(), pid), "{unit}");
                    assert_eq!(banger("vm exec web hostname"), "web\n");
                }
                banger("vm stop web");
                banger("vm start web");
                assert_eq!(banger("vm exec web hostname"), "web\n");
                banger("vm rm -f web");
                assert_eq!(banger("vm run --memory 256M -- echo from the guest"), "from the guest\n");
                // It may be making a template, which goes with it.
                shell("systemctl stop bangerd");
                assert_eq!(shell("systemctl show -P Result bangerd"), "success\n");
                let journal = shell("journalctl -u bangerd -n 20 --no-pager");
                assert_eq!(left(), "/run/banger/vms:\n\n/var/lib/banger/vms:\n", "{journal}");
            }

            #[test]
            fn a_vm_over_a_snapshot_becomes_an_image() {
                let _installed = install();
                shell("systemctl start bangerd");
                banger("vm create web --memory 256M --start");
                assert_eq!(show("/disk/method"), "dm-snapshot");
                its_node_is_nobodys();
                // More chunks than one of the store's areas tells of.
                let script = "head -c 5000000 /dev/urandom >/root/made; sync; sha256sum </root/made";
                let sum = banger(&format!("vm exec web -- sh -c '{script}'"));
                banger("vm stop web");
                let digest = banger("image promote web as mine");
                let image = format!("/var/lib/banger/images/{}/root.ext4", digest.trim().trim_start_matches("sha256:"));
                shell(&format!("e2fsck -fn {image}"));
                assert_eq!(shell(&format!("debugfs -R 'cat /root/made' {image} | sha256sum")), sum);
                let run = banger("vm run --image mine --memory 256M -- sh -c 'sha256sum </root/made'");
                assert_eq!(run, sum);
                banger("vm rm -f web");
                banger("image rm mine");
                shell("systemctl stop bangerd");
                assert_eq!(left(), "/run/banger/vms:\n\n/var/lib/banger/vms:\n");
            }
        }

        mod firecracker {
            use crate::*;

            #[test]
            fn vms_run_on_firecracker_where_it_is_installed() {
                let _installed = install();
                shell("install \"$BANGER_TEST_FIRECRACKER\" /usr/local/bin/firecracker; systemctl start bangerd");
                let begun = Instant::now();
                let said = ended("vm run --memory 256M -- sh -c 'echo from the guest; exit 7'");
                assert_eq!(said, "from the guest\n7\n");
                println!("figure: a run took {:?}", begun.elapsed());
                assert_eq!(left(), "/run/banger/vms:\n\n/var/lib/banger/vms:\n");

                banger("vm create web --memory 256M --start");
                println!("figure: {}", show("/vmm"));
                its_node_is_nobodys();
                let vmm = (show("/vmm/program"), show("/vmm/accel"), show("/disk/method"));
                assert_eq!(vmm, ("firecracker".into(), "kvm".into(), "dm-snapshot".into()));
                // Not by the daemon's own word.
                let running = shell("pgrep -f '[-]-api-sock'");
                assert_eq!(running.trim(), show("/vmm/pid").to_string());
                shell(&format!("cmp /proc/{}/exe \"$BANGER_TEST_FIRECRACKER\"", running.trim()));
                assert_eq!(ended("vm exec web -- sh -c 'echo kept >/root/kept; exit 9'"), "9\n");
                banger("vm stop web");
                banger("vm start web");
                assert_eq!(banger("vm exec web -- cat /root/kept"), "kept\n");
                // One that is killed is seen to be gone, and starts again.
                shell(&format!("kill -KILL {}", show("/vmm/pid")));
                until("it has ended", || show("/state") == "stopped");
                banger("vm start web");
                assert_eq!(banger("vm exec web hostname"), "web\n");
                banger("vm rm -f web");
                assert_eq!(left(), "/run/banger/vms:\n\n/var/lib/banger/vms:\n");
            }
        }
    }
}
