//! The helper as the demo runs it: its files written, started, stopped, with its own words in every error.

use std::fs::{self, File};
use std::io;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use rustix::process::{Pid, Signal, kill_process};
use wire::client::Client;

use crate::programs::{self, indented};

/// Where the demo's programs lie: root's alone, in a `/run` of the demo's own.
pub(crate) const PROGRAMS: &str = "/run/banger-demo/bin";
const SOCKET: &str = "/run/banger-root/bangerd-root.sock";
const LOG: &str = "/run/banger-demo/helper.log";
/// A launch is answered when the VM runs; under emulation on a busy machine that takes a while.
const CALL: Duration = Duration::from_secs(60);

/// The user that VMs belong to.
pub(crate) struct Owner {
    pub(crate) name: String,
    pub(crate) uid: u32,
    pub(crate) gid: u32,
}

impl Owner {
    /// Looks a user up.
    pub(crate) fn named(name: &str) -> Result<Self> {
        let line = programs::output("getent", ["passwd", name]).with_context(|| format!("there is no user {name}"))?;
        let id = |nth| line.split(':').nth(nth).and_then(|f| f.parse().ok()).context("getent wrote no user");
        Ok(Self { name: name.to_owned(), uid: id(2)?, gid: id(3)? })
    }
}

/// A running helper. Dropped without [`Helper::stop`], it is killed.
pub(crate) struct Helper {
    child: Child,
    pub(crate) started_in: Duration,
}

impl Helper {
    /// Starts it and waits until it takes connections.
    pub(crate) fn start() -> Result<Self> {
        let start = Instant::now();
        let log = File::create(LOG)?;
        let mut command = Command::new(format!("{PROGRAMS}/bangerd-root"));
        command.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log);
        let child = command.spawn().context("can't start bangerd-root")?;
        let mut helper = Self { child, started_in: Duration::ZERO };
        while client().list_resources().is_err() {
            if let Some(status) = helper.child.try_wait()? {
                bail!("bangerd-root ended at once ({status}):\n{}", log_lines());
            }
            if start.elapsed() > Duration::from_secs(10) {
                bail!("bangerd-root takes no connection after 10 s:\n{}", log_lines());
            }
            sleep(Duration::from_millis(1));
        }
        helper.started_in = start.elapsed();
        Ok(helper)
    }

    /// Asks it to stop; it has to end well and take its socket with it.
    pub(crate) fn stop(mut self) -> Result<()> {
        kill_process(Pid::from_child(&self.child), Signal::TERM)?;
        let asked = Instant::now();
        let status = loop {
            match self.child.try_wait()? {
                Some(status) => break status,
                None if asked.elapsed() > Duration::from_secs(10) => {
                    bail!("bangerd-root still runs 10 s after TERM:\n{}", log_lines())
                }
                None => sleep(Duration::from_millis(2)),
            }
        };
        if !status.success() {
            bail!("bangerd-root ended with {status}:\n{}", log_lines());
        }
        if Path::new(SOCKET).exists() {
            bail!("bangerd-root left its socket {SOCKET}");
        }
        Ok(())
    }
}

impl Drop for Helper {
    fn drop(&mut self) {
        // It may have ended; then there is nothing to kill.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// What opens a connection to the helper.
pub(crate) trait Connect: Fn() -> io::Result<UnixStream> {}
impl<F: Fn() -> io::Result<UnixStream>> Connect for F {}

/// A client of the helper.
pub(crate) fn client() -> Client<impl Connect> {
    let connect = || {
        let stream = UnixStream::connect(SOCKET)?;
        stream.set_read_timeout(Some(CALL))?;
        stream.set_write_timeout(Some(CALL))?;
        Ok(stream)
    };
    Client::new(connect).op_id("op-demo")
}

/// The helper's last words, without what succeeded.
pub(crate) fn log_lines() -> String {
    let text = fs::read_to_string(LOG).unwrap_or_default();
    let lines = text.lines().filter(|l| !l.contains("helper rpc completed"));
    indented(&lines.collect::<Vec<_>>().join("\n"), 4)
}
