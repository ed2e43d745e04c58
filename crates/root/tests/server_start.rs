//! The helper's start: every mistake is named, nobody's socket is taken, systemd is understood.

#![allow(clippy::disallowed_methods, reason = "tests make files and start programs by path, as a person does")]

mod common;

use common::*;
use rustix::process::Signal;
use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::os::unix::net::{UnixDatagram, UnixListener};
use std::time::Duration;

const ASK: &str = r#"{"method":"priv.process_running","params":{"pid":0}}"#;

fn with_meta(text: &str) -> String {
    make_file(META, text.as_bytes(), 0, 0o644);
    Start::new().fails()
}

isolated! {
    fn metadata_mistakes_are_named_with_their_line() {
        for (good, bad, told) in [
            ("owner_uid = 5501", "owner_uid = 0", "line 2: owner_uid is 0"),
            ("owner_uid = 5501", "owner_uid = 5502", "line 2: owner_uid is 5502"),
            ("owner_uid = 5501", "owner_uid = \"5501\"", "line 2: invalid type"),
            ("\"bowner\"", "\"nobody-has-this-name\"", "line 1: owner_user"),
            ("\"bowner\"", "\"root\"", "line 2: owner_uid is 5501"),
            ("owner_gid = 5501", "owner_gid = 0", "line 3: owner_gid is 0"),
            ("owner_gid = 5501", "owner_gid = 5502", "line 3: owner_gid is 5502"),
            ("owner_home", "owner_house", "missing field `owner_home`"),
            ("commit = ", "commit ", "line 6: "),
            ("2026-01-01T00:00:00Z\n", "7\n", "line 8: "),
        ] {
            let error = with_meta(&meta().replace(good, bad));
            assert!(error.starts_with(META) && error.contains(told), "{bad}: {error}");
        }
        assert!(with_meta("").contains("missing field"));
        make_file(META, format!("{}more = {{ a = 1 }}\n", meta()).as_bytes(), 0, 0o644);
        Helper::start();
    }
}

isolated! {
    fn metadata_must_be_roots_alone() {
        for mode in [0o666, 0o664, 0o646] {
            make_file(META, meta().as_bytes(), 0, mode);
            assert!(Start::new().fails().contains("can be written by others than root"));
        }
        make_file(META, meta().as_bytes(), OWNER, 0o644);
        assert!(Start::new().fails().contains("belongs to uid 5501"));
        make_file(META, meta().as_bytes(), 0, 0o644);
        make_dir("/mnt/e", 0, 0o777);
        assert!(Start::new().fails().contains("/mnt/e can be written by others"));
        make_dir("/mnt/e", OWNER, 0o755);
        assert!(Start::new().fails().contains("/mnt/e belongs to uid 5501"));
        make_dir("/mnt/e", 0, 0o755);
        fs::rename(META, "/mnt/e/real.toml").unwrap();
        assert!(Start::new().fails().contains("there is no such file"));
        symlink("real.toml", META).unwrap();
        assert!(Start::new().fails().contains("is a symlink"));
        fs::remove_file(META).unwrap();
        fs::create_dir(META).unwrap();
        assert!(Start::new().fails().contains("a directory, not a regular file"));
    }
}

isolated! {
    fn configuration_mistakes_are_named() {
        for (text, told) in [
            ("\nprogram_dir = []\n", "line 2: unknown field `program_dir`"),
            ("[limits]\nconections = 3\n", "line 2: unknown field `conections`"),
            ("[limits]\nworkers = 0\n", "limits.workers is 0, and must be 1 to 256"),
            ("log_level = \"loud\"\n", "log_level is none of"),
            ("fault = \"x\"\n", "fault"),
            ("program_dirs = [\"bin\"]\n", "program_dirs"),
        ] {
            let error = Start::new().config(text).fails();
            assert!(error.contains(told), "{text}: {error}");
        }
        assert!(Start::new().args(&["--config", "/mnt/e/none.toml"]).fails().contains("there is no such file"));
        make_file(CONFIG, b"", OTHER, 0o644);
        assert!(Start::new().args(&["--config", CONFIG]).fails().contains("belongs to uid 5502"));
    }
}

isolated! {
    fn places_must_be_real_and_the_owners() {
        make_dir(STATE, OTHER, 0o755);
        assert!(Start::new().fails().contains("/mnt/s belongs to uid 5502"));
        make_dir(STATE, OWNER, 0o777);
        assert!(Start::new().fails().contains("can be written by others than the owner"));
        make_dir(STATE, OWNER, 0o755);
        fs::rename(STATE, "/mnt/real").unwrap();
        assert!(Start::new().fails().contains("/mnt/s does not exist"));
        symlink("real", STATE).unwrap();
        assert!(Start::new().fails().contains("--state-dir"));
        fs::remove_file(STATE).unwrap();
        fs::rename("/mnt/real", STATE).unwrap();

        // Who could write the socket's directory could put another socket there.
        make_dir("/mnt/h", OWNER, 0o711);
        assert!(Start::new().fails().contains("/mnt/h belongs to uid 5501"));
        make_dir("/mnt/h", 0, 0o733);
        assert!(Start::new().fails().contains("/mnt/h can be written by others"));

        // What a boot takes away is made again.
        fs::remove_dir_all(RUNTIME).unwrap();
        fs::remove_dir_all("/run/banger-root").unwrap();
        fs::remove_dir_all("/var/lib/banger-root").unwrap();
        fs::remove_dir_all("/mnt/h").unwrap();
        let _helper = Helper::start();
        for (path, uid, mode) in [
            (RUNTIME, OWNER, 0o711),
            ("/run/banger-root", 0, 0o711),
            ("/run/banger-root/records", 0, 0o700),
            ("/var/lib/banger-root", 0, 0o700),
            ("/mnt/h", 0, 0o711),
            (SOCKET, OWNER, 0o600),
        ] {
            let facts = fs::metadata(path).unwrap();
            assert_eq!((facts.uid(), facts.mode() & 0o7777), (uid, mode), "{path}");
        }
    }
}

isolated! {
    fn a_stale_socket_is_replaced_and_a_live_one_never() {
        drop(UnixListener::bind(SOCKET).unwrap());
        let mut first = Helper::start();
        let before = fs::metadata(SOCKET).unwrap().ino();
        // A second helper, on the same directories: it waits a moment for one that may be going.
        assert!(Start::new().fails().contains("another bangerd-root runs"));
        // And one that has directories of its own, so that only the socket tells.
        make_dir("/mnt/other-root", 0, 0o711);
        let apart = Start::new().config("run_dir = \"/mnt/other-root\"\n");
        let error = apart.fails();
        assert!(error.contains("somebody listens on"), "{error}");
        assert_eq!(fs::metadata(SOCKET).unwrap().ino(), before);
        assert!(first.runs());
        assert_eq!(first.call(ASK)["ok"], true);
        // Killed, it leaves a stale one behind, which the next one replaces.
        first.kill();
        assert!(exists(SOCKET));
        let second = Helper::start();
        assert_eq!(second.call(ASK)["ok"], true);
    }
}

isolated! {
    fn what_is_no_socket_stays() {
        make_file(SOCKET, b"precious", 0, 0o644);
        assert!(Start::new().fails().contains("not a socket"));
        assert_eq!(fs::read(SOCKET).unwrap(), b"precious");
        fs::remove_file(SOCKET).unwrap();
        symlink("/mnt/e/install.toml", SOCKET).unwrap();
        assert!(Start::new().fails().contains("a symlink, not a socket"));
        assert!(exists(META));
    }
}

isolated! {
    fn somebody_elses_socket_is_not_removed_at_the_end() {
        let helper = Helper::start();
        fs::remove_file(SOCKET).unwrap();
        let _other = UnixListener::bind(SOCKET).unwrap();
        assert!(helper.stop().success());
        assert!(exists(SOCKET));
    }
}

/// What systemd does: the socket as descriptor 3, and the service's own pid in `LISTEN_PID`.
fn activated(listen_pid: &str, listener: &str) -> String {
    let program = env!("CARGO_BIN_EXE_bangerd-root");
    format!(
        "import os, socket, sys\n\
         s = {listener}\n\
         os.dup2(s.fileno(), 3); os.set_inheritable(3, True)\n\
         os.dup2(os.open('/etc/passwd', os.O_RDONLY), 200); os.set_inheritable(200, True)\n\
         env = {{'LISTEN_FDS': '1', 'LISTEN_PID': {listen_pid}}}\n\
         os.dup2(os.open('/mnt/log', os.O_WRONLY | os.O_APPEND | os.O_CREAT), 2)\n\
         os.execve('{program}', ['bangerd-root', '--socket', '{SOCKET}', '--state-dir', '{STATE}',\n\
           '--runtime-dir', '{RUNTIME}', '--install-meta', '{META}'], env)\n"
    )
}

const LISTENING: &str = "socket.socket(socket.AF_UNIX); s.bind('/mnt/h/passed.sock'); s.listen(8); os.chown('/mnt/h/passed.sock', 5501, 5501)";

fn python(script: &str) -> std::process::Child {
    std::process::Command::new("python3").args(["-c", script]).spawn().expect("python3")
}

isolated! {
    fn a_passed_socket_is_taken_and_left() {
        let mut child = python(&activated("str(os.getpid())", LISTENING));
        eventually("it serves", || connect_to(OWNER, "/mnt/h/passed.sock").is_ok());
        let mut stream = connect_to(OWNER, "/mnt/h/passed.sock").unwrap();
        std::io::Write::write_all(&mut stream, ASK.as_bytes()).unwrap();
        assert_eq!(reply(stream)["ok"], true);
        assert!(!exists(SOCKET), "it has one already");
        let open = format!("/proc/{}/fd/200", child.id());
        assert!(!exists(&open), "what else was open is closed");
        let pid = rustix::process::Pid::from_raw(child.id().cast_signed()).unwrap();
        rustix::process::kill_process(pid, Signal::TERM).unwrap();
        assert!(child.wait().unwrap().success());
        assert!(exists("/mnt/h/passed.sock"), "it is not ours to remove");
    }
}

isolated! {
    fn a_socket_for_another_process_is_not_taken() {
        let mut child = python(&activated("'1'", LISTENING));
        eventually("it serves on its own socket", || connect_to(OWNER, SOCKET).is_ok());
        assert!(!exists(&format!("/proc/{}/fd/200", child.id())));
        child.kill().unwrap();
        child.wait().unwrap();
    }
}

isolated! {
    fn what_is_passed_must_be_a_listening_unix_socket() {
        for listener in [
            "socket.socket(socket.AF_UNIX)",
            "socket.socket(socket.AF_INET); s.listen(1)",
            "socket.socketpair()[0]",
            "open('/etc/passwd')",
        ] {
            let status = python(&activated("str(os.getpid())", listener)).wait().unwrap();
            assert!(status.code().is_some_and(|code| code > 0), "{listener}: {status}");
            assert!(log_text().lines().last().unwrap().contains("LISTEN_FDS"), "{listener}");
        }
    }
}

isolated! {
    fn systemd_is_told() {
        let notified = UnixDatagram::bind("/mnt/h/notify").unwrap();
        notified.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
        let hear = || {
            let mut text = [0; 64];
            let length = notified.recv(&mut text).expect("a message");
            String::from_utf8_lossy(&text[..length]).into_owned()
        };
        let start = Start::new().env("NOTIFY_SOCKET", "/mnt/h/notify").env("WATCHDOG_USEC", "100000");
        let helper = start.start();
        assert_eq!(hear(), "READY=1");
        assert_eq!((hear(), hear()), ("WATCHDOG=1".into(), "WATCHDOG=1".into()));
        helper.signal(Signal::TERM);
        eventually("STOPPING=1", || hear() == "STOPPING=1");
    }
}

isolated! {
    fn the_command_line() {
        let run = |arguments: &[&str]| {
            let output = std::process::Command::new(env!("CARGO_BIN_EXE_bangerd-root")).args(arguments).output().unwrap();
            (output.status.code(), String::from_utf8(output.stdout).unwrap(), String::from_utf8(output.stderr).unwrap())
        };
        let version = run(&["--version"]);
        assert_eq!(version, (Some(0), format!("bangerd-root {}\n", env!("CARGO_PKG_VERSION")), String::new()));
        assert!(run(&["--help"]).1.contains("--install-meta FILE"));
        let (status, _, said) = run(&["--sokcet", "/x"]);
        assert!(status == Some(2) && said.contains("--sokcet"), "{said}");
    }
}

isolated! {
    fn a_careless_umask_opens_nothing() {
        rustix::process::umask(rustix::fs::Mode::empty());
        let _helper = Helper::start();
        assert_eq!(fs::metadata(SOCKET).unwrap().permissions().mode() & 0o7777, 0o600);
        assert_eq!(fs::metadata("/run/banger-root/lock").unwrap().permissions().mode() & 0o7777, 0o600);
    }
}
