//! What the guest says when it is asked, over vsock: through the VMM's socket, as any client of Firecracker's reaches a guest.

use std::os::unix::net::UnixStream;
use std::thread::sleep;
use std::time::{Duration, Instant};

use agent::client::{self, Client, Program};
use agent::protocol::{Exit, ExitCode};
use anyhow::{Context, Result, bail, ensure};

use super::outside;
use crate::programs::{indented, plain};

/// The VM's vsock on this side.
const SOCKET: &str = "/run/banger/demo.vsock";
/// A guest that has begun its program may take a moment to listen.
const LISTENS: Duration = Duration::from_secs(30);
/// A command in the guest takes no longer.
const COMMAND: Duration = Duration::from_secs(30);
const MOST: usize = 64 * 1024;

/// Waits until the guest's agent answers.
pub(crate) fn greet() -> Result<()> {
    let start = Instant::now();
    loop {
        match call().and_then(|client| Ok(client.ping()?)) {
            Ok(()) => return Ok(()),
            Err(e) if start.elapsed() > LISTENS => {
                return Err(e).with_context(|| format!("no answer over vsock in {} s", LISTENS.as_secs()));
            }
            Err(_) => sleep(Duration::from_millis(5)),
        }
    }
}

/// The guest's kernel and release, as it names them.
pub(crate) fn system() -> Result<String> {
    shell(
        r#"echo "$(uname -sr) on $(. /etc/os-release; echo "$PRETTY_NAME"), $(grep -c ^processor /proc/cpuinfo) CPU""#,
    )
}

/// The guest's address, as its own tools show it.
pub(crate) fn address(expected: &str) -> Result<String> {
    let shown = shell("ip -4 -oneline addr show dev eth0; ip route show default")?;
    ensure!(shown.contains(expected), "the guest hasn't the address {expected}:\n{}", indented(&shown, 4));
    let (addresses, route) = shown.split_once('\n').unwrap_or((&shown, "no default route"));
    let words: Vec<&str> = addresses.split_whitespace().skip(1).take(3).collect();
    Ok(format!("{}, {route}", words.join(" ")))
}

/// A ping from the guest to the host beyond the NAT.
pub(crate) fn ping() -> Result<String> {
    let shown = shell(&format!("ping -c 1 -W 5 {}", outside::HOST))?;
    let reply = shown.lines().find(|l| l.contains("bytes from")).context("ping wrote no reply")?;
    Ok(reply.to_owned())
}

/// One line over TCP to that host, which says whom it sees: this machine, if the guest is masqueraded.
pub(crate) fn tcp() -> Result<String> {
    let (host, port) = (outside::HOST, outside::PORT);
    let heard = shell(&format!("exec 3<>/dev/tcp/{host}/{port}; echo hello >&3; head -n 1 <&3"))?;
    let masqueraded = heard.ends_with(&format!("from {}", outside::OURS));
    ensure!(masqueraded, "the host beyond the NAT didn't see {}: {heard}", outside::OURS);
    Ok(heard)
}

/// Runs a command by the guest's bash and gives what it wrote, fit to be shown.
fn shell(command: &str) -> Result<String> {
    let path = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
    let program = Program { args: &["/bin/bash", "-c", command], env: &[path], user: "root", cwd: "/", most: MOST };
    let out = call()?.exec(program).with_context(|| format!("in the guest: {command}"))?;
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).lines().map(plain).collect::<Vec<_>>().join("\n");
    if out.exit != Exit::Code(ExitCode { code: 0, oom: false }) {
        let wrote = text(&[out.stdout, out.stderr].concat());
        bail!("in the guest: {command} failed ({:?}):\n{}", out.exit, indented(&wrote, 8));
    }
    Ok(text(&out.stdout))
}

/// A connection to the agent: `CONNECT port`, `OK number`, then the agent's own frames.
fn call() -> Result<Client<UnixStream>> {
    let mut stream = UnixStream::connect(SOCKET).with_context(|| format!("can't connect to {SOCKET}"))?;
    stream.set_read_timeout(Some(COMMAND))?;
    stream.set_write_timeout(Some(COMMAND))?;
    client::ask(&mut stream)?;
    client::answered(&mut stream).context("nobody listens in the guest")?;
    Ok(Client::new(stream)?)
}
