//! Guests that answer: a Debian's agent over vsock, and what it wrote to its disk.

use super::*;
use agent::client::{Client, Program};
use std::io::{Read as _, Write as _};
use std::os::unix::net::UnixStream;
use std::process::Command;
use std::time::{Duration, Instant};

/// What a guest may take to answer: emulation, on a busy machine.
pub(crate) const PATIENCE: Duration = Duration::from_secs(120);

/// The agent of VM `n`, once it answers.
pub(crate) fn client(n: u32) -> Client<UnixStream> {
    let end = Instant::now() + PATIENCE;
    loop {
        if let Some(stream) = agent(n) {
            return Client::new(stream).expect("the agent");
        }
        assert!(Instant::now() < end, "no agent answers\n{}", fs::read_to_string(log(n)).unwrap_or_default());
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// A connection to the agent; none while the guest has none.
fn agent(n: u32) -> Option<UnixStream> {
    let mut stream = connect_to(OWNER, &vsock(n)).ok()?;
    stream.set_read_timeout(Some(PATIENCE)).ok()?;
    stream.write_all(b"CONNECT 1023\n").ok()?;
    let mut line = Vec::new();
    while !line.ends_with(b"\n") {
        let mut byte = [0];
        stream.read_exact(&mut byte).ok()?;
        line.push(byte[0]);
    }
    line.starts_with(b"OK ").then_some(stream)
}

/// Runs a script in the guest of VM `n` by its agent.
pub(crate) fn sh(n: u32, script: &str) -> String {
    let args = ["/bin/sh", "-c", script];
    let program = Program { args: &args, env: &[], user: "root", cwd: "/", most: 1 << 20 };
    let output = client(n).exec(program).expect("run");
    String::from_utf8(output.stdout).expect("text")
}

/// What the guest wrote to `/kept` is in its ended VM's disk, by e2fsprogs.
pub(crate) fn assert_wrote(disk: &str, kept: &str) {
    // Ended without an unmount: its journal is played first, and then there is nothing more to mend.
    let played = Command::new("e2fsck").args(["-p", disk]).output().expect("e2fsck");
    assert!(matches!(played.status.code(), Some(0 | 1)), "{}", String::from_utf8_lossy(&played.stdout));
    output("e2fsck", &["-fn", disk]);
    assert_eq!(output("debugfs", &["-R", "cat /kept", disk]), kept);
}
