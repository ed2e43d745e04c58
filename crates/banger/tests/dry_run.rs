//! `--dry-run` of what takes something away: it says what would go, and its size, as the act then does; nothing is changed.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test may panic")]
#![allow(dead_code, reason = "the world has more than this test needs")]

mod world;

use serde_json::Value;
use std::fs;
use std::os::unix::fs::chown;
use std::process::Command;
use world::*;

/// All files that are somebody's, and all that there is to be listed.
fn all() -> String {
    let find = "cd /var/lib/banger && find images kernels templates vms ssh -name '*.log' -o -name '*.times' -o -printf '%p %i %s %T@\\n' | sort";
    let out = Command::new("sh").args(["-c", find]).output().unwrap();
    let lists = ["vm", "image", "kernel", "template"].map(|what| ok(&[what, "list", "--json"]));
    format!("{}{}", text(&out.stdout), lists.join("\n"))
}

/// Says it first, and does it then; how many bytes went.
fn both(what: &[&str]) -> u64 {
    let before = all();
    let told: Value = serde_json::from_str(&ok(&[what, &["--dry-run", "--json"]].concat())).unwrap();
    let said = ok(&[what, &["--dry-run"]].concat());
    assert_eq!(all(), before, "{what:?}");
    let done: Value = serde_json::from_str(&ok(&[what, &["--json"]].concat())).unwrap();
    assert_ne!(all(), before);
    let freed = |document: &Value| document[0]["freed_bytes"].as_u64().unwrap();
    assert_eq!(freed(&told), freed(&done), "{told} {done}");
    let name = what.last().unwrap();
    assert_eq!(said.trim_end(), *name, "the name on a pipe");
    freed(&done)
}

#[test]
fn what_would_go_is_said_and_nothing_goes() {
    isolated("what_would_go_is_said_and_nothing_goes", |_| {
        let tar = ["-C", "/", "-cf", "/mnt/tiny.tar", "etc/hostname"];
        assert!(Command::new("tar").args(tar).status().unwrap().success());
        for name in ["tiny", "same"] {
            ok(&["image", "import", "/mnt/tiny.tar", "--name", name, "--size", "64M"]);
        }
        let [kernel, initrd] = ["vmlinux", "initrd"].map(|file| format!("/var/lib/banger/{file}"));
        ok(&["kernel", "import", &kernel, "--initrd", &initrd, "--name", "mine"]);
        ok(&["vm", "create", "web", "--memory", "256M", "--start"]);
        ok(&["template", "build", "--memory", "256M", "--kernel", "mine"]);
        ok(&["vm", "create", "db", "--kernel", "mine"]);

        // What the act refuses is refused.
        for (arguments, code) in [
            (["vm", "rm", "--dry-run", "web"], "is_running"),
            (["kernel", "rm", "--dry-run", "mine"], "in_use"),
            (["vm", "rm", "--dry-run", "nosuch"], "no_such_vm"),
            (["image", "rm", "--dry-run", "nosuch"], "no_such_image"),
            (["template", "rm", "--dry-run", "0000"], "no_such_template"),
        ] {
            let out = run(&arguments);
            assert!(text(&out.stderr).starts_with(&format!("error[{code}]")), "{}", text(&out.stderr));
        }
        ok(&["vm", "rm", "-f", "--dry-run", "web"]);
        assert_eq!(field("web", "/state"), "running");
        // A guest that runs writes its disk when it likes to.
        ok(&["vm", "stop", "web"]);
        assert!(both(&["vm", "rm", "-f", "web"]) > 1 << 20);
        assert_eq!(both(&["vm", "rm", "db"]), 0, "it never had a disk");
        // The files stay as long as another name has them.
        let size = json(&["image", "show", "tiny", "--json"])["size_bytes"].as_u64().unwrap();
        assert_eq!((both(&["image", "rm", "same"]), both(&["image", "rm", "tiny"])), (0, size));
        // A template that can't be gone on from without its kernel goes with it.
        let of_kernel = json(&["kernel", "show", "mine", "--json"])["size_bytes"].as_u64().unwrap();
        let of_template = json(&["template", "list", "--json"])[0]["size_bytes"].as_u64().unwrap();
        assert_eq!(both(&["kernel", "rm", "mine"]), of_kernel + of_template);
        assert_eq!(json(&["template", "list", "--json"]), Value::Array(vec![]));
        ok(&["template", "build", "--memory", "256M"]);
        let id = json(&["template", "list", "--json"])[0]["id"].as_str().unwrap().to_owned();
        assert!(both(&["template", "rm", &id]) > 1 << 20);

        // The owner's own settings of ssh.
        let home = "/run/banger/home";
        fs::create_dir(home).unwrap();
        chown(home, Some(OWNER), Some(OWNER)).unwrap();
        let accounts = fs::read_to_string("/etc/passwd").unwrap();
        let of_owner = format!("bowner:x:{OWNER}:{OWNER}::");
        fs::write("/etc/passwd", accounts.replace(&format!("{of_owner}/:"), &format!("{of_owner}{home}:"))).unwrap();
        let file = format!("{home}/.ssh/config");
        let dry = |what: &str| text(&run(&["ssh-config", what, "--dry-run"]).stderr).to_owned();
        let said = dry("--install");
        assert!(said.contains("would be changed, from no file to ") && said.contains(" bytes"), "{said}");
        assert!(!fs::exists(&file).unwrap() && !fs::exists(format!("{home}/.ssh")).unwrap());
        ok(&["ssh-config", "--install"]);
        let installed = fs::read(&file).unwrap();
        let said = dry("--uninstall");
        assert!(said.contains(&format!("would be changed, from {} bytes to no file", installed.len())), "{said}");
        assert_eq!(fs::read(&file).unwrap(), installed);
    });
}
