//! QEMU's control socket: a command, its answer.

use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use serde_json::{Value, json};

/// How long an answer may take.
const LIMIT: Duration = Duration::from_secs(30);

pub(super) struct Qmp {
    to: UnixStream,
    from: BufReader<UnixStream>,
}

impl Qmp {
    /// Waits for QEMU's greeting.
    pub(super) fn greet(socket: UnixStream) -> Result<Self> {
        socket.set_read_timeout(Some(LIMIT))?;
        let mut qmp = Self { from: BufReader::new(socket.try_clone()?), to: socket };
        qmp.line()?;
        qmp.ask("qmp_capabilities", json!({}))?;
        Ok(qmp)
    }

    /// What a command returns. Events are passed over.
    pub(super) fn ask(&mut self, command: &str, arguments: Value) -> Result<Value> {
        let request = json!({ "execute": command, "arguments": arguments });
        self.to.write_all(format!("{request}\n").as_bytes()).with_context(|| format!("can't ask QEMU to {command}"))?;
        loop {
            let mut line = self.line()?;
            if let Some(value) = line.get_mut("return") {
                return Ok(value.take());
            }
            if let Some(error) = line.get("error") {
                bail!("QEMU refuses to {command}: {}", error["desc"].as_str().unwrap_or("no reason"));
            }
        }
    }

    /// Saves the machine's state, without its memory, into a file; the machine stands still afterwards.
    pub(super) fn save(&mut self, file: &str) -> Result<()> {
        let quoted = file.replace('\'', r"'\''");
        self.ask("migrate", json!({ "uri": format!("exec:cat > '{quoted}'") }))?;
        let start = Instant::now();
        loop {
            let answer = self.ask("query-migrate", json!({}))?;
            match answer["status"].as_str() {
                Some("completed") => return Ok(()),
                Some("failed" | "cancelled") => {
                    bail!("QEMU can't save the machine: {}", answer["error-desc"].as_str().unwrap_or("no reason"))
                }
                _ if start.elapsed() > LIMIT => bail!("QEMU takes too long to save the machine"),
                _ => std::thread::sleep(Duration::from_millis(5)),
            }
        }
    }

    /// Where each processor is, and its general registers.
    pub(super) fn registers(&mut self) -> Result<String> {
        let said = self.ask("human-monitor-command", json!({ "command-line": "info registers -a" }))?;
        let shown = |line: &&str| ["CPU#", "R", "CS", "GS", "CR"].iter().any(|start| line.starts_with(start));
        Ok(said.as_str().unwrap_or_default().lines().filter(shown).collect::<Vec<_>>().join("\n"))
    }

    /// Says that memory is a file that both sides have.
    pub(super) fn memory_is_shared(&mut self) -> Result<()> {
        let shared = json!([{ "capability": "x-ignore-shared", "state": true }]);
        self.ask("migrate-set-capabilities", json!({ "capabilities": shared }))?;
        Ok(())
    }

    fn line(&mut self) -> Result<Value> {
        let mut line = String::new();
        match self.from.read_line(&mut line).context("QEMU doesn't answer")? {
            0 => bail!("QEMU has ended"),
            _ => serde_json::from_str(&line).context("QEMU's answer is no JSON"),
        }
    }
}
