//! A daemon's stand-in: it answers each call with what the test wants, so that no VM is needed.

use serde_json::{Value, json};
use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixListener;
use std::path::PathBuf;
use std::process::{Command, Output, Stdio};
use std::sync::{Arc, Mutex};

pub(crate) struct StandIn {
    dir: tempfile::TempDir,
    /// The calls that came, as they were written.
    calls: Arc<Mutex<Vec<Value>>>,
}

impl StandIn {
    /// Answers by `answer`: `Err` is a fault's code and message.
    pub(crate) fn new(answer: impl Fn(&Value) -> Result<Value, (&'static str, u8)> + Send + 'static) -> StandIn {
        let dir = tempfile::tempdir().unwrap();
        let listener = UnixListener::bind(dir.path().join("s")).unwrap();
        let calls = Arc::<Mutex<Vec<Value>>>::default();
        let noted = Arc::clone(&calls);
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                let mut stream = stream.unwrap();
                let mut line = String::new();
                BufReader::new(&stream).read_line(&mut line).unwrap();
                let Ok(call) = serde_json::from_str::<Value>(&line) else { continue };
                noted.lock().unwrap().push(call.clone());
                let event = match answer(&call) {
                    Ok(value) => json!({"done": value}),
                    Err((code, exit)) => json!({"error": {"code": code, "message": "no", "why": null, "fix": [],
                        "stage": null, "op_id": "op-1", "exit": exit}}),
                };
                let _ = writeln!(stream, "{event}");
            }
        });
        StandIn { dir, calls }
    }

    /// One that has these VMs, and two images.
    pub(crate) fn with_vms(names: &'static [&'static str]) -> StandIn {
        StandIn::new(|call| match call["op"].as_str().unwrap() {
            "vm.list" => Ok(json!({"vms": names.iter().map(|name| vm(name)).collect::<Vec<_>>()})),
            "vm.show" => match names.iter().find(|name| call["name"] == **name) {
                Some(name) => Ok(vm(name)),
                None => Err(("no_such_vm", 3)),
            },
            "vm.stop" => Ok(json!({"vm": vm(call["name"].as_str().unwrap()), "changed": true, "ms": 1200,
                "warnings": ["it had to be killed"]})),
            "vm.start" if call["name"] == "nosuch" => Err(("no_such_vm", 3)),
            "vm.start" => Ok(json!({"vm": null, "changed": true, "ms": 1, "warnings": ["slow"]})),
            "vm.create" => Ok(vm("web")),
            "image.list" => Ok(json!({"assets": [asset("debian-12"), asset("dev")]})),
            "kernel.list" => Ok(json!({"assets": []})),
            "image.about" => Ok(json!({"state": "/nosuch", "default_image": "debian-12", "has_image": false,
                "has_kernel": false})),
            _ => Err(("bug", 1)),
        })
    }

    pub(crate) fn socket(&self) -> PathBuf {
        self.dir.path().join("s")
    }

    /// The names of the calls that came since the last time.
    #[allow(dead_code, reason = "each file of tests has its own copy of this one")]
    pub(crate) fn calls(&self) -> Vec<String> {
        self.calls.lock().unwrap().drain(..).map(|call| call["op"].as_str().unwrap().to_owned()).collect()
    }

    /// `banger` with these words and variables, its streams pipes.
    #[allow(dead_code, reason = "each file of tests has its own copy of this one")]
    pub(crate) fn run(&self, words: &str, variables: &[(&str, &str)]) -> Output {
        let mut command = Command::new(env!("CARGO_BIN_EXE_banger"));
        self.ready(command.args(words.split(' ')), variables).output().unwrap()
    }

    /// The same on a terminal: what it shows, and the status.
    #[allow(dead_code, reason = "each file of tests has its own copy of this one")]
    pub(crate) fn on_terminal(&self, words: &str, variables: &[(&str, &str)]) -> (String, Option<i32>) {
        let mut command = Command::new("script");
        let line = format!("{} {words}", env!("CARGO_BIN_EXE_banger"));
        let out = self.ready(command.args(["-qec", &line, "/dev/null"]), variables).output().unwrap();
        (String::from_utf8(out.stdout).unwrap().replace('\r', ""), out.status.code())
    }

    fn ready<'a>(&self, command: &'a mut Command, variables: &[(&str, &str)]) -> &'a mut Command {
        for name in ["NO_COLOR", "CLICOLOR", "CLICOLOR_FORCE", "CI", "BANGER_PROGRESS", "BANGER_OP_ID", "BANGER_IMAGE"]
        {
            command.env_remove(name);
        }
        command.env("BANGER_CONFIG", "/dev/null").env("BANGER_SOCKET", self.socket()).env("TERM", "xterm");
        command.envs(variables.iter().copied()).stdin(Stdio::null())
    }
}

pub(crate) fn vm(name: &str) -> Value {
    json!({"name": name, "id": "7f3a9c21e4b0", "state": "stopped",
        "image": {"name": "debian-12", "digest": null}, "kernel": "debian-6.1", "cpus": 2, "memory_bytes": 1 << 30,
        "disk": {"size_bytes": 1_u64 << 33, "used_bytes": null, "method": null},
        "network": {"ip": "172.16.0.7", "dns": null, "mac": null, "nat": true, "published": []}, "vmm": null,
        "agent": {"state": "none", "version": null, "protocol": null}, "workspace": null,
        "created_at": "2026-11-24T21:00:01Z", "started_at": null, "ready_ms": null, "last_error": null})
}

fn asset(name: &str) -> Value {
    json!({"name": name, "digest": "sha256:00", "size_bytes": 1, "shared_bytes": 0, "version": null, "source": "x",
        "vms": [], "created_at": "2026-11-24T21:00:01Z"})
}
